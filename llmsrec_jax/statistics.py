"""What a difference between two models, or two conditions of one, is worth: paired bootstrap over users, and the spread over seeds.

Users are the only source of chance in one seed; trainings are another one, which only several seeds show.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

DRAWS = 2000
UNDETECTED = "no detectable change"
LEVEL = 0.05  # two-sided, of everything that is called a difference
ONE_PAIR = "one pair of trainings: training noise unknown"
FEWEST_SEEDS = 3  # that say something of their spread
NORMAL = 1.959964  # of a normal distribution, LEVEL is outside ± so many standard deviations
MANY = 1e4
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


def of_one_pair(told: Difference) -> str:
    """Of two trainings: another pair would differ otherwise, so nothing is claimed of what users alone would show."""
    words = told.words()
    return words if words == UNDETECTED else f"{ONE_PAIR} (of users alone: {words})"


def claims(words: str) -> bool:
    """Whether words of this module say that there is a difference."""
    return words != UNDETECTED and not words.startswith(ONE_PAIR)


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


def overlap(people: Sequence[np.ndarray]) -> np.ndarray:
    """float [n, n]: which share of their users (names [U] each, every one once) two seeds have in common."""
    found = np.eye(len(people))
    for i, j in combinations(range(len(people)), 2):
        both = len(np.intersect1d(people[i], people[j], assume_unique=True))
        found[i, j] = found[j, i] = both / (len(people[i]) * len(people[j])) ** 0.5
    return found


def over_seeds(each: Sequence[Difference], common: np.ndarray | None = None) -> Difference:
    """Of the mean over seeds, each of which has trainings, candidates and perhaps users of its own.

    common: `overlap` of their users, float [n, n]; None = they are the same. The variance is that of a mean over seeds, plus that of a
    mean over their users, of which those of several seeds count as equal in all of them: the spread over seeds does not
    show these. It does show the others, who therefore count twice: fewer false alarms than LEVEL. Student's t with the
    degrees of freedom of such a sum (Welch and Satterthwaite).

    Raises:
      ValueError: fewer than FEWEST_SEEDS.
    """
    n = len(each)
    if n < FEWEST_SEEDS:
        raise ValueError(f"{n} seeds: at least {FEWEST_SEEDS} show how far trainings differ")
    a, b, change, low, high, _, relative, _, number = np.array(each, np.float64).T
    of_seeds, se_of_users = float(change.var(ddof=1)) / n, (high - low) / (2 * NORMAL)
    together = np.ones((n, n)) if common is None else common
    variance = of_seeds + float(se_of_users @ together @ se_of_users) / n**2
    mean, se = float(change.mean()), variance**0.5
    # of so many degrees of freedom it is normal for all that matters
    free = min((n - 1) * (variance / of_seeds) ** 2, MANY) if of_seeds else MANY
    p = two_sided(abs(mean) / se, free) if se else 1.0 if mean == 0 else 0.0
    p = max(p, 2.0 ** (1 - number.sum()))  # as in `paired`
    reach, first = quantile(free) * se, float(a.mean())
    known = np.isfinite(relative).all() and first > 0
    return Difference(
        *(first, float(b.mean()), mean, mean - reach, mean + reach, min(p, 1.0)),
        *((mean / first, se / first) if known else (float("nan"), float("nan"))),
        int(number.min()),
    )


def two_sided(t: float, free: float) -> float:
    """The chance that Student's t with `free` degrees of freedom, at least 2, is at least `t` from 0."""
    angle, within = _student(free)
    return float(1 - np.interp(np.arctan(t / free**0.5), angle, within))


def quantile(free: float) -> float:
    """What Student's t is beyond, on either side, with chance LEVEL."""
    angle, within = _student(free)
    return float(np.tan(np.interp(1 - LEVEL, within, angle)) * free**0.5)


def _student(free: float) -> tuple[np.ndarray, np.ndarray]:
    """(angles x, chance that |t| is at most sqrt(free) tan x): of x the density is as cos(x) ** (free - 1)."""
    # close to 0 where there are many degrees of freedom
    x = np.pi / 2 * np.linspace(0.0, 1.0, 4001) ** 2
    density = np.cos(x) ** (free - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(x))])
    return x, below / below[-1]
