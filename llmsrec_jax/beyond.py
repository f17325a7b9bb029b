"""What lists of recommendations are like beyond being right (E24): pure numpy functions of top-k lists.

Definitions of 2402.01339, whose code they were compared with by hand; counts are those of training data.
"""

import numpy as np


def coverage(top: np.ndarray, items: int) -> float:
    """Share of the catalogue that anyone is shown. top: int [U, k], item ids; items: how many there are."""
    return len(np.unique(top)) / items


def novelty(top: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """float64 [U]: mean of -log2 of the shown items' shares of all interactions, in bits.

    counts: int [I]. An item without any counts as one interaction: it would be infinitely new.
    """
    share = np.maximum(counts, 1) / max(counts.sum(), 1)
    return -np.log2(share)[top].mean(axis=1)


def serendipity(top: np.ndarray, targets: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """float64 [U]: 1 where the target is shown and the k most popular items would not have shown it.

    With one target per user, hits among unexpected targets / min(their number, k), 0 where there is none.
    """
    k = top.shape[1]
    popular = np.argsort(-counts[1:], kind="stable")[:k] + 1  # ties: the lower item id
    hit = (top == targets[:, None]).any(axis=1)
    return (hit & ~np.isin(targets, popular)).astype(np.float64)


def popularity_lift(top: np.ndarray, counts: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """float64 [U]: mean count of the shown items over that of the user's own history, minus 1; 0 = no bias.

    profile: float [U], mean count of the items of each history, above 0.
    """
    return counts[top].mean(axis=1) / profile - 1
