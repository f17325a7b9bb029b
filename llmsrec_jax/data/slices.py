"""Groups of evaluated users, from training data only: by target (E12: warm / cold), by transitions (E11), by history."""

import numpy as np

from llmsrec_jax.data.splits import Dataset

SHARE = 0.35  # of the catalogue that counts as warm, and as cold


def warm_cold(dataset: Dataset, split: str, users: np.ndarray) -> dict[str, np.ndarray]:
    """Masks over `users` whose target is among the 35 % most / least interacted items; ties go to the lower item id."""
    counts = dataset.counts[1:]
    edge, target = int(len(counts) * SHARE), dataset.targets(split, users)

    def first(order: np.ndarray) -> np.ndarray:
        mask = np.zeros(dataset.catalog.size, bool)
        mask[order[:edge] + 1] = True
        return mask[target]

    most, least = (np.argsort(sign * counts, kind="stable") for sign in (-1, 1))
    return {"warm": first(most), "cold": first(least)}


def transition(dataset: Dataset, split: str, users: np.ndarray) -> dict[str, np.ndarray]:
    """Masks over `users` by t-score, the mean training count of a user's own item-to-item transitions.

    The upper half of `users` is `transition`, the rest `non_transition`; users with a single item score 0; ties go
    to the lower user row.
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
    order = np.argsort(-score[users], kind="stable")
    upper = np.zeros(len(users), bool)
    upper[order[: (len(users) + 1) // 2]] = True
    return {"transition": upper, "non_transition": ~upper}


def popularity(dataset: Dataset, split: str, users: np.ndarray) -> dict[str, np.ndarray]:
    """Masks over `users` by their target: `head`, the most popular items that hold half of the training interactions, or `tail`.

    The item that crosses the half is in the head; ties in popularity go to the lower item id.
    """
    order = np.argsort(-dataset.counts[1:], kind="stable") + 1
    before = np.cumsum(dataset.counts[order]) - dataset.counts[order]
    head = np.zeros(dataset.catalog.size, bool)
    head[order[before < dataset.counts.sum() / 2]] = True
    mask = head[dataset.targets(split, users)]
    return {"head": mask, "tail": ~mask}


def history(dataset: Dataset, split: str, users: np.ndarray) -> dict[str, np.ndarray]:
    """Masks over `users` by what they had seen: at most the median number of items, or more."""
    lengths = dataset.inputs(split, users).lengths
    short = lengths <= np.median(lengths) if len(lengths) else np.zeros(0, bool)
    return {"short_history": short, "long_history": ~short}


GROUPINGS = (warm_cold, transition, history, popularity)


def slices(dataset: Dataset, split: str, users: np.ndarray) -> dict[str, np.ndarray]:
    """Every slice as a boolean mask over `users`; `all` first."""
    everyone = {"all": np.ones(len(users), bool)}
    for grouping in GROUPINGS:
        everyone |= grouping(dataset, split, users)
    return everyone
