"""What a difference between two models, or two conditions of one, is worth: paired bootstrap over users.

Users are the only source of chance here; seeds are another one.
"""

from typing import NamedTuple

import numpy as np

DRAWS = 2000
UNDETECTED = "no detectable change"
LEVEL = 0.05  # two-sided, of everything that is called a difference
CHUNK = 1 << 22  # numbers drawn at once


class Difference(NamedTuple):
    """Of means over the same users: the second minus the first."""

    first: float
    second: float
    change: float
    low: float  # 95 % interval of the change
    high: float
    p: float  # two-sided
    relative: float  # change / first; NaN where the first is 0
    relative_se: float
    users: int

    @property
    def detected(self) -> bool:
        """Whether it is more than chance at LEVEL."""
        return self.p < LEVEL

    def words(self) -> str:
        """`no detectable change`, or which way and how far."""
        if not self.detected:
            return UNDETECTED
        way = "drops" if self.change < 0 else "rises"
        # a quotient is worth saying where it is known to within a half of itself
        if not np.isfinite(self.relative) or 2 * self.relative_se > abs(self.relative):
            return f"{way} by {abs(self.change):.4f}"
        return f"{way} by {abs(self.relative):.1%} ± {self.relative_se:.1%}"


def paired(first: np.ndarray, second: np.ndarray, seed: int = 0, draws: int = DRAWS) -> Difference:
    """Compares values float [U] of the same users, in the same order.

    Users are drawn with replacement, `draws` times. Users with equal pairs of values are interchangeable, so the numbers of
    each distinct pair are drawn, which is the same and far less work.

    Raises:
      ValueError: no users, or not the same number.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"values of the same users are wanted, not {first.shape} and {second.shape}"
        )
    n = len(first)
    pairs, counts = np.unique(np.stack([first, second], axis=1), axis=0, return_counts=True)
    rng, at_once = np.random.default_rng(seed), max(CHUNK // len(pairs), 1)
    means = np.concatenate(
        [
            rng.multinomial(n, counts / n, size=min(at_once, draws - done)) @ pairs / n
            for done in range(0, draws, at_once)
        ]
    )
    changes = means[:, 1] - means[:, 0]
    a, b = float(first.mean()), float(second.mean())
    # of the change itself at 0 under no difference: the share of draws on the other side
    below, above = np.sum(changes <= 0), np.sum(changes >= 0)
    p = float(2 * (min(below, above) + 1) / (draws + 1))
    # of few users who differ at all, no more than a sign test could say
    p = min(1.0, max(p, 2.0 ** (1 - int(np.sum(first != second)))))
    low, high = np.quantile(changes, [LEVEL / 2, 1 - LEVEL / 2])
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = changes / means[:, 0]
    # of a quantity with a zero of its own: not of one that may be on either side of it
    known = a > 0 and np.isfinite(relative).all() and pairs.min() >= 0
    return Difference(
        *(a, b, b - a, float(low), float(high), p),
        *((b / a - 1, float(relative.std())) if known else (float("nan"), float("nan"))),
        n,
    )
