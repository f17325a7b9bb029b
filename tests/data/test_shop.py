"""The shop's process and its best ranking: normalised, calibrated, and better than every heuristic."""

import dataclasses
from functools import cache

import numpy as np
import pytest

from llmsrec_jax import config
from llmsrec_jax.data import sampling, shop
from llmsrec_jax.data.interactions import UserSequences
from llmsrec_jax.data.splits import Dataset, prepare


@cache
def made(order: float = 0.9, late: float = 0.15, users: int = 1200, seed: int = 0):
    cfg = config.Shop(users=users, late_items=late, order=order)
    generated = shop.generate(cfg, seed)
    data = config.Data(kcore="none", shop=cfg)
    return generated, prepare(generated.catalog, generated.interactions, data, seed)[0]


def scores(generated: shop.Shop, dataset: Dataset, split: str) -> np.ndarray:
    """float [U, I], the history masked."""
    users = np.arange(len(dataset))
    user_factor, item_factor = generated.bayes(dataset, users, split)
    score = user_factor.astype(np.float64) @ item_factor.T
    history = dataset.inputs(split, users)
    score[history.rows, history.items] = 0
    return score


def ndcg(score: np.ndarray, dataset: Dataset, split: str) -> np.ndarray:
    """NDCG@10 per user on 99 negatives; ties count half."""
    users = np.arange(len(dataset))
    candidates = sampling.candidates(dataset, split, users, 99, "uniform", 0)
    own = np.take_along_axis(score, candidates, 1)
    rank = (own[:, 1:] > own[:, :1]).sum(1) + (own[:, 1:] == own[:, :1]).sum(1) / 2
    return np.where(rank < 10, 1 / np.log2(rank + 2), 0)


def test_same_seed_same_shop_and_readable_titles():
    one, two, other = (shop.generate(config.Shop(users=30), seed) for seed in (0, 0, 1))
    assert (one.interactions.item == two.interactions.item).all()
    assert (one.interactions.time == two.interactions.time).all()
    assert (
        len(one.interactions) != len(other.interactions)
        or (one.interactions.item != other.interactions.item).any()
    )
    titles = one.catalog.titles[1:]
    assert len(set(titles)) == len(titles) == 400
    assert {len(title.split()) for title in titles} <= {3, 4, 5}
    words = {word for title in titles for word in title.split()}
    assert len(words) < 50


def test_what_the_process_promises():
    generated, dataset = made()
    lengths = dataset.known().lengths
    assert lengths.min() == shop.LENGTHS[0] and lengths.max() == shop.LENGTHS[1]
    known = dataset.known()
    pairs = known.rows * dataset.catalog.size + known.items
    assert len(np.unique(pairs)) == len(pairs)  # nobody buys an item twice
    rows = generated._rows(dataset.catalog)
    assert (generated.wave[rows][known.items] <= shop.epoch_at(known.times)).all()
    cold = dataset.counts[dataset.test_item] == 0
    few = dataset.counts[dataset.test_item] < 5
    assert 0.05 < cold.mean() < 0.25 and 0.15 < few.mean() < 0.5
    category = generated.category[rows]
    step = known.rows[1:] == known.rows[:-1]
    follows = category[known.items[1:]] == shop._NEXT[category[known.items[:-1]]]
    assert abs(follows[step].mean() - (0.9 + 0.1 / 12)) < 0.01


@pytest.mark.parametrize("order, late", [(0.9, 0.15), (0.0, 0.5), (1.0, 0.0)])
def test_bayes_is_a_distribution_over_unbought_items(order, late):
    generated, dataset = made(order, late, users=300)
    rows = generated._rows(dataset.catalog).astype(
        np.int32
    )  # back to the whole catalogue, unsold items included
    train = dataclasses.replace(dataset.train, items=rows[dataset.train.items])
    whole = dataclasses.replace(
        dataset, catalog=generated.catalog, train=train, valid_item=rows[dataset.valid_item]
    )
    np.testing.assert_allclose(scores(generated, whole, "test").sum(axis=1), 1, atol=1e-5)


def test_bayes_is_calibrated():
    """The promised chance of the best item equals how often it comes; likewise the expected log score."""
    generated, dataset = made(users=6000)
    score = scores(generated, dataset, "test")
    best = score.max(axis=1)
    hit = score.argmax(axis=1) == dataset.test_item
    assert abs(best.mean() - hit.mean()) < 4 * np.sqrt((best * (1 - best)).mean() / len(best))
    for low, high in ((0, 0.15), (0.15, 0.3), (0.3, 1)):
        some = (best >= low) & (best < high)
        spread = np.sqrt((best[some] * (1 - best[some])).mean() / some.sum())
        assert some.sum() > 100 and abs(best[some].mean() - hit[some].mean()) < 4 * spread
    cold = dataset.counts == 0
    promised, came = score[:, cold].sum(axis=1), cold[dataset.test_item]
    assert came.mean() > 0.02
    assert abs(promised.mean() - came.mean()) < 4 * np.sqrt(
        (promised * (1 - promised)).mean() / 6000
    )


def heuristics(generated: shop.Shop, dataset: Dataset) -> dict[str, np.ndarray]:
    """Scores [U, I] of simple rules that see the same inputs."""
    users = np.arange(len(dataset))
    history = dataset.inputs("test", users)
    last = history.items[history.offsets[1:] - 1]
    words = [title.split() for title in dataset.catalog.titles]
    brand, colour = (np.asarray([w[k] if w else "" for w in words]) for k in (0, 1))
    category = generated.category[generated._rows(dataset.catalog)]
    alike = (brand[last][:, None] == brand) * 2.0 + (colour[last][:, None] == colour)
    follows = shop._NEXT[category[last]][:, None] == category
    train = dataset.train
    pairs = np.zeros((dataset.catalog.size,) * 2)
    inside = train.rows[1:] == train.rows[:-1]
    np.add.at(pairs, (train.items[:-1][inside], train.items[1:][inside]), 1)
    return {
        "popularity": np.tile(dataset.counts.astype(float), (len(users), 1)),
        "like the last item": alike,
        "next in the chain": follows + 0.0,
        "next in the chain and like the last item": 10.0 * follows + alike,
        "item to item": pairs[last] + dataset.counts / 1e6,
    }


def test_bayes_beats_every_heuristic():
    generated, dataset = made()
    best = ndcg(scores(generated, dataset, "test"), dataset, "test")
    for name, score in heuristics(generated, dataset).items():
        gain = best - ndcg(score, dataset, "test")
        assert gain.mean() > 5 * gain.std() / np.sqrt(len(gain)), name


def shuffled(dataset: Dataset) -> Dataset:
    """Training items in random order, at the same times."""
    train = dataset.train
    order = np.lexsort((np.random.default_rng(0).random(len(train.items)), train.rows))
    return dataclasses.replace(
        dataset, train=UserSequences(train.offsets, train.items[order], train.times)
    )


@pytest.mark.parametrize("order, matters", [(0.0, False), (0.9, True)])
def test_order_matters_only_where_it_should(order, matters):
    generated, dataset = made(order, late=0.0)
    in_order = ndcg(scores(generated, dataset, "valid"), dataset, "valid")
    at_random = ndcg(scores(generated, shuffled(dataset), "valid"), dataset, "valid")
    loss = in_order - at_random
    if matters:
        assert loss.mean() > 0.2
    else:
        assert abs(loss.mean()) < 0.005


def test_impossible_histories_still_have_a_finite_ranking():
    generated, dataset = made()
    assert np.isfinite(scores(generated, shuffled(dataset), "test")).all()


def test_bayes_follows_the_dataset_rows():
    """Dropped items and users, and any choice of users, leave the others' factors as they are."""
    generated, dataset = made(users=300)
    users = np.asarray([7, 3])
    few, items = generated.bayes(dataset, users, "test")
    every, same = generated.bayes(dataset, np.arange(300), "test")
    np.testing.assert_allclose(few, every[users], rtol=1e-6)
    assert (
        (items == same).all() and (items[0] == 0).all() and items.shape[0] == dataset.catalog.size
    )
    other = shop.generate(config.Shop(users=300, items=144), 0)
    with pytest.raises(ValueError, match="is not of this shop"):
        other.bayes(dataset, users, "test")


@pytest.mark.parametrize(
    "field, value",
    [("items", 143), ("users", 0), ("order", 1.5), ("late_items", 0.6), ("order", float("nan"))],
)
def test_impossible_sizes_are_refused(field, value):
    with pytest.raises(ValueError, match=f"data.shop.{field}={value}"):
        shop.generate(dataclasses.replace(config.Shop(), **{field: value}), 0)


def test_the_smallest_shop_never_runs_dry():
    for order in (0.0, 1.0):
        cfg = config.Shop(users=400, items=144, late_items=0.5, order=order)
        generated = shop.generate(cfg, 0)
        assert generated.interactions.item.min() >= 1
        dataset, _ = prepare(
            generated.catalog, generated.interactions, config.Data(kcore="none"), 0
        )
        assert np.isfinite(scores(generated, dataset, "test")).all()
