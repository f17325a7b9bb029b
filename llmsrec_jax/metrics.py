"""Ranking metrics of one relevant item per user, in expectation over ties: pure numpy functions of counts.

A rank is known by two counts: how many candidates score strictly above the target (`above`) and how many
others tie with it (`tied`). Ties `average` means the expectation over every order of the tied candidates (D42).
"""

from collections.abc import Callable

import numpy as np

GAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # gain of a hit at position 0, 1, ..
    "hr": lambda position: np.ones(len(position)),
    "ndcg": lambda position: 1.0 / np.log2(position + 2.0),
    "mrr": lambda position: 1.0 / (position + 1.0),
}


def count_above(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts (above, tied) per row of `scores` [U, C], the target in column 0.

    Raises:
      ValueError: a score is not finite: NaN has no rank (D42).
    """
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        raise ValueError(f"the scores of user row {bad[0]} are not finite ({len(bad)} such users)")
    target = scores[:, :1]
    above = np.sum(scores > target, axis=1)
    return above, np.sum(scores == target, axis=1) - 1


def metric(
    name: str, k: int, above: np.ndarray, tied: np.ndarray, ties: str = "average"
) -> np.ndarray:
    """float64 [U]: `hr`, `ndcg` or `mrr` at `k` per user; `ties`: average | pessimistic | optimistic."""
    first = above + tied if ties == "pessimistic" else above
    count = np.ones_like(tied) if ties in ("pessimistic", "optimistic") else tied + 1
    positions = np.arange(int((first + count).max(initial=1)))
    gain = np.where(positions < k, GAINS[name](positions), 0.0)
    cumulative = np.concatenate([[0.0], np.cumsum(gain)])
    return (cumulative[first + count] - cumulative[first]) / count


def mean_and_se(values: np.ndarray) -> tuple[float, float | None]:
    """Mean over users and its standard error; None for that of a single user."""
    n = len(values)
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else None
