"""Groups of evaluated users, from training data only: by target (E12: warm / cold), by transitions (E11), by history."""

import numpy as np

from llmsrec_jax import config
from llmsrec_jax.data import counter
from llmsrec_jax.data.splits import Dataset


def highest(score: np.ndarray, number: int, place: np.ndarray, ties: str) -> np.ndarray:
    """bool [n]: those with the `number` highest scores; of equal ones the lower `place` first, none at the line if ties=out."""
    order = np.lexsort((place, -score))
    mask = np.zeros(len(score), bool)
    mask[order[:number]] = True
    if ties == "out" and 0 < number < len(score):
        within, without = score[order[number - 1 : number + 1]]
        mask[score == within] &= within != without
    return mask


def places(names: np.ndarray, ties: str) -> np.ndarray:
    """Integers [n] that tell which of equal ones counts as the higher one."""
    return counter.text_bits(names) if ties == "hash" else np.arange(len(names))


def warm_cold(
    dataset: Dataset, split: str, users: np.ndarray, cfg: config.Slices
) -> dict[str, np.ndarray]:
    """Masks over `users` whose target is among the most / least interacted items."""
    counts, keys = dataset.counts[1:], dataset.catalog.keys[1:]
    edge, target = int(len(counts) * cfg.item_share), dataset.targets(split, users)
    place = places(keys, cfg.ties)
    most = highest(counts, edge, place, cfg.ties)
    least = highest(-counts, edge, ~place, cfg.ties)  # from the other end: no item is both
    return {"warm": np.r_[False, most][target], "cold": np.r_[False, least][target]}


def transition(
    dataset: Dataset, split: str, users: np.ndarray, cfg: config.Slices
) -> dict[str, np.ndarray]:
    """Masks over `users` by t-score, the mean training count of a user's own item-to-item transitions.

    Those with the highest scores are `transition`, the rest `non_transition`; users with a single item score 0.
    """
    train, size = dataset.train, dataset.catalog.size
    pair = train.items[:-1].astype(np.int64) * size + train.items[1:]
    inside = np.ones(len(train.items), bool)
    inside[train.offsets[1:] - 1] = False  # the last item of a user starts no transition
    pair = pair[inside[:-1]]
    owner = np.repeat(np.arange(len(train)), train.lengths)[:-1][inside[:-1]]
    _, code, count = np.unique(pair, return_inverse=True, return_counts=True)
    total = np.bincount(owner, weights=count[code], minlength=len(train))
    score = total / np.maximum(train.lengths - 1, 1)
    number = int(np.ceil(len(users) * cfg.transition_share))
    place = places(dataset.user_keys[users], cfg.ties)
    upper = highest(score[users], number, place, cfg.ties)
    return {"transition": upper, "non_transition": ~upper}


def popularity(
    dataset: Dataset, split: str, users: np.ndarray, cfg: config.Slices
) -> dict[str, np.ndarray]:
    """Masks over `users` by their target: `head`, the most popular items that hold half of the training interactions, or `tail`.

    The item that crosses the half is in the head; ties in popularity go to the lower item id.
    """
    order = np.argsort(-dataset.counts[1:], kind="stable") + 1
    before = np.cumsum(dataset.counts[order]) - dataset.counts[order]
    head = np.zeros(dataset.catalog.size, bool)
    head[order[before < dataset.counts.sum() / 2]] = True
    mask = head[dataset.targets(split, users)]
    return {"head": mask, "tail": ~mask}


def history(
    dataset: Dataset, split: str, users: np.ndarray, cfg: config.Slices
) -> dict[str, np.ndarray]:
    """Masks over `users` by what they had seen: at most the median number of items, or more."""
    lengths = dataset.inputs(split, users).lengths
    short = lengths <= np.median(lengths) if len(lengths) else np.zeros(0, bool)
    return {"short_history": short, "long_history": ~short}


GROUPINGS = (warm_cold, transition, history, popularity)


def slices(
    dataset: Dataset, split: str, users: np.ndarray, cfg: config.Slices, ordered: bool = True
) -> dict[str, np.ndarray]:
    """Every slice as a boolean mask over `users`; `all` first. Without those by transitions where nothing is `ordered`."""
    everyone = {"all": np.ones(len(users), bool)}
    for grouping in GROUPINGS:
        if ordered or grouping is not transition:
            everyone |= grouping(dataset, split, users, cfg)
    return everyone
