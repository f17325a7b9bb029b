"""The order suite itself is right: it finds an effect of order where there is one, and none where there is none."""

from itertools import combinations

import numpy as np
import pytest

from llmsrec_jax import config, evaluate, pipeline, statistics
from llmsrec_jax.data import orders
from llmsrec_jax.evaluate import Vectors
from llmsrec_jax.schema import ORIGINAL, SHUFFLED
from tests.factories import dataset, files, random_dataset
from tests.systems import tiny

SEEDS = range(20)
PERMUTATIONS = 3


def mean_pooling(histories, item: np.ndarray) -> np.ndarray:
    """float32 [n, R]: sums of item vectors, whatever their order. Whole numbers, so that sums are exact."""
    out = np.zeros((len(histories), item.shape[1]), np.float32)
    np.add.at(out, histories.rows, item[histories.items])
    return out


@pytest.fixture
def pooled():
    """User vectors of a model that is blind to order, of original and permuted histories; items; candidates."""
    dataset, cfg = random_dataset(), config.Config()
    users, rng = np.arange(len(dataset)), np.random.default_rng(0)
    item = rng.integers(-9, 10, (dataset.catalog.size, 4)).astype(np.float32)
    numbers = range(1, PERMUTATIONS + 1)
    others = [orders.shuffled_test(dataset, users, cfg, number) for number in numbers]
    each = [mean_pooling(x, item) for x in (dataset.inputs("test", users), *others)]
    others = rng.integers(1, dataset.catalog.size, (len(users), 20))
    candidates = np.concatenate([dataset.targets("test", users)[:, None], others], axis=1)
    return each, item, candidates


def ndcg(user, item, candidates) -> np.ndarray:
    counts = evaluate.sampled_ranking(Vectors(user, item), candidates)
    return evaluate.values(counts, config.Evaluate())["ndcg@10"]


def test_a_model_blind_to_order_does_not_change_at_all(pooled):
    (first, *others), item, candidates = pooled
    assert (evaluate.similarity(first, others) == 1.0).all()
    before = ndcg(first, item, candidates)
    for other in others:
        told = statistics.paired(before, ndcg(other, item, candidates))
        assert told.change == 0.0 and told.p == 1.0 and not told.detected


def test_permuting_users_changes_nothing(pooled):
    (first, second, *_), item, candidates = pooled
    second = second + np.arange(len(second))[:, None] % 3  # a model that does change
    before, after = ndcg(first, item, candidates), ndcg(second, item, candidates)
    order = np.random.default_rng(1).permutation(len(first))
    rows = [x[order] for x in (first, second, candidates)]
    np.testing.assert_array_equal(ndcg(rows[0], item, rows[2]), before[order])
    told, again = (
        statistics.paired(a, b) for a, b in ((before, after), (before[order], after[order]))
    )
    assert told.detected == again.detected
    np.testing.assert_allclose(told, again, rtol=1e-12)


def ndcg_of_teacher(folder, seed: int, changes: dict) -> dict[str, np.ndarray]:
    """{condition: sampled ndcg@10 of every test user} of a SASRec in miniature."""
    small = {
        "data.kcore": "none",  # the same catalogue for every seed: the same programs
        "teacher.d": 16,
        "teacher.lr": 5e-3,
        "teacher.batch": 64,
        "evaluate.max_users": 0,
    }
    cfg = pipeline.settled(tiny({**small, "seed": seed, **changes}))
    with pipeline.opened(cfg, folder) as out, out.hushed():
        run = pipeline.Run(cfg, folder, out)
        pipeline.perform(run, "teacher")
    teacher = run.teacher_judgement.outcomes().models["teacher"]
    each = {c: teacher.values("sampled", c, cfg.evaluate) for c in (ORIGINAL, SHUFFLED)}
    return {condition: found["ndcg@10"] for condition, found in each.items() if found}


@pytest.mark.slow
@pytest.mark.parametrize(("order", "least", "most"), [(1.0, 20, 20), (0.0, 0, 4)])
def test_the_suite_finds_order_where_it_is(tmp_path, order, least, most):
    """SASRec in two shops that differ in nothing but whether order matters; 5 % of 20 seeds may be false alarms: 5 or more
    would happen once in 400 such tests."""
    detected = 0
    for seed in SEEDS:
        changes = {
            "data.shop.order": order,
            "data.shop.users": 300,
            "order.permutations": PERMUTATIONS,
            "teacher.epochs": 80,  # with half of it SASRec has not always learned the order yet
            "teacher.validate_every": 40,
        }
        found = ndcg_of_teacher(tmp_path, seed, changes)
        told = statistics.paired(found[ORIGINAL], found[SHUFFLED], seed)
        detected += told.detected and (told.change < 0 or not order)
    assert least <= detected <= most


def without_order(folder) -> dict[str, str]:
    """Files of users with tastes, each of whose items stand in an order that was drawn: shuffling them again changes nothing.

    (In the shop popular items are bought first, and late ones last, whatever `data.shop.order` is.)
    """
    rng, items = np.random.default_rng(0), 144
    taste = rng.dirichlet(np.full(items, 0.1), 12)
    taste = 0.9 * taste + 0.1 / items
    sequences = [
        rng.permutation(rng.choice(items, rng.integers(6, 15), replace=False, p=taste[u % 12])) + 1
        for u in range(1000)
    ]
    made = files(dataset([each.tolist() for each in sequences], items), folder)
    return {"data.source": "files", "data.files.interactions": made["interactions"]}


def pairs_of_trainings(folder) -> list[statistics.Difference]:
    """Seed by seed: trained on shuffled sequences against original ones, of data without order."""
    few = {"teacher.epochs": 12, "teacher.validate_every": 6}
    changes, found = without_order(folder) | few, []
    for seed in SEEDS:
        first, second = (
            ndcg_of_teacher(folder, seed, changes | {"order.train": order})[ORIGINAL]
            for order in ("original", "shuffled")
        )
        found.append(statistics.paired(first, second, seed))
    return found


@pytest.mark.slow
def test_two_trainings_are_no_difference(tmp_path):
    """One pair of trainings is no proof: users alone call far more than 5 % of them different, where there is nothing.
    Three seeds are: of all triples of 20 seeds, at most 5 % are called one, but for what 20 seeds tell of that."""
    each = pairs_of_trainings(tmp_path)
    triples = [statistics.over_seeds(three).detected for three in combinations(each, 3)]
    print(
        f"{np.mean([one.detected for one in each]):.0%} of pairs, {np.mean(triples):.1%} of triples"
    )
    assert np.mean(triples) <= 0.08
