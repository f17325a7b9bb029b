"""Few static shapes for prompts of many lengths.

Padding costs little on a grid of prompts (attention only) and much on a token axis (everything else): a training step has
its own budget of tokens, and groups of similar length share a grid.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llmsrec_jax.prompts.layout import Budget, Shape
from llmsrec_jax.prompts.trunks import Lengths, Trunks

_MULTIPLE = 8
_LIVE_COST = 2  # of a live token against a prefix token: forward and backward against forward only
_DRAWS = 400  # simulated batches
_QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.97, 1.0)
_STORED_TOKENS = 2048  # live ones of a block of prompts whose prefixes are at hand
_FULL_ROWS = 512  # live tokens up to which an evaluation block keeps all its rows
_PAIRS = 2000  # of a query and a key: what attention to them costs, in forward passes of a token
_BUDGET_MULTIPLES = ((2048, 64), (1 << 62, 256))  # (tokens up to which, multiple)


class StepShape(NamedTuple):
    """Static sizes of a pass of users' and items' prompts through the LLM."""

    users: tuple[Shape, ...]
    items: tuple[Shape, ...]
    user_tokens: Budget
    item_tokens: Budget
    stored: bool = False  # the items' prefixes are at hand

    @property
    def cost(self) -> float:
        """In forward passes of a token."""
        both = *self.users, *self.items
        computed = self.users if self.stored else both
        prefix = self.user_tokens.prefix + (0 if self.stored else self.item_tokens.prefix)
        live = self.user_tokens.live + self.item_tokens.live
        pairs = sum(rows * _LIVE_COST * T * (P + T) for rows, P, T in both)
        pairs += sum(rows * P * P for rows, P, _ in computed)
        return prefix + _LIVE_COST * live + pairs / _PAIRS

    def holds(self, users: Lengths, items: Lengths) -> np.ndarray:
        """bool [...]: which sorted passes (int [..., n] prefix and live tokens) fit."""
        return _fits(self.users, self.user_tokens, *users) & _fits(
            self.items, self.item_tokens, *items
        )


def _fits(
    shapes: Sequence[Shape], budget: Budget, prefix: np.ndarray, live: np.ndarray
) -> np.ndarray:
    rows, limit, width = (np.array(sizes) for sizes in zip(*shapes, strict=True))
    over = np.maximum(prefix - np.repeat(limit, rows), 0)  # fed as live tokens
    prefix, live = prefix - over, live + over
    longest = np.maximum.reduceat(live, np.cumsum(rows) - rows, axis=-1)
    within = (prefix.sum(axis=-1) <= budget.prefix) & (live.sum(axis=-1) <= budget.live)
    return within & (longest <= width).all(axis=-1)


def plan_steps(
    users: Trunks,
    items: Lengths,
    rows: tuple[int, int],
    groups: int,
    max_shapes: int,
    seed: int = 0,
    stored: bool = False,
) -> list[StepShape]:
    """Training: `rows` prompts of users and items per pass, each sorted by length and cut into groups, items into one less.

    Where users' prompts share rows, the others of as many rows are empty. Passes are simulated from the lengths (int [n] each);
    shapes that save most are added one by one. Cheapest first; the last one holds any pass. stored: the items' prefixes are at
    hand, and taken whole: what is kept may be rounded, so that a part of it computed anew would depend on the shape.
    """
    rng = np.random.default_rng(seed)
    kinds = [
        _Drawn(prompts, n, cuts, rng, whole)
        for prompts, n, cuts, whole in zip(
            (users, Trunks.apart(items)), rows, (groups, groups - 1), (False, stored), strict=True
        )
    ]
    user, item = ([kind.sizes(q, b) for q in _QUANTILES for b in _QUANTILES] for kind in kinds)
    steps = [StepShape(u[0], i[0], u[1], i[1], stored) for u, i in zip(user, item, strict=True)]
    (u, u_tokens), (i, i_tokens) = (kind.largest() for kind in kinds)
    steps = [StepShape(u, i, u_tokens, i_tokens, stored), *dict.fromkeys(steps)]
    holds = np.stack([step.holds(kinds[0].lengths, kinds[1].lengths) for step in steps])
    costs = np.array([step.cost for step in steps])
    chosen = [steps[i] for i in _worth_compiling(costs, holds, max_shapes)]
    last = chosen.pop(0)
    return [*sorted(chosen, key=lambda step: step.cost), last]


def met(
    steps: Sequence[StepShape],
    users: Trunks,
    items: Lengths,
    rows: tuple[int, int],
    passes: int,
    seed: int = 0,
) -> list[StepShape]:
    """The shapes of `plan_steps` that at least one of so many simulated passes, other ones than there, takes."""
    rng = np.random.default_rng([seed, passes])
    kinds = zip((users, Trunks.apart(items)), rows, strict=True)
    drawn = [_draw(prompts, n, passes, rng) for prompts, n in kinds]
    fits = np.stack([step.holds(*drawn) for step in steps])
    fits[-1] = True
    return [steps[i] for i in np.unique(np.argmax(fits, axis=0))]


def _draw(prompts: Trunks, rows: int, passes: int, rng: np.random.Generator) -> Lengths:
    """Prefix and live tokens int64 [passes, rows] of sorted passes."""
    if not len(prompts):
        raise ValueError("no lengths to plan shapes from")
    return prompts.rows(prompts.drawn(rows, passes, rng))


class _Drawn:
    """Simulated passes of prompts of one kind: sorted, and cut into groups."""

    def __init__(
        self, prompts: Trunks, rows: int, groups: int, rng: np.random.Generator, whole: bool
    ):
        """whole: no prefix is cut."""
        self._whole = whole
        self.lengths = _draw(prompts, rows, _DRAWS, rng)
        self._most = int(np.max(prompts.prefix)), int(np.max(prompts.live))
        self._widest = prompts.widest
        bounds = _cuts(*self.lengths, min(max(groups, 1), rows))
        self._rows, self._starts = np.diff(bounds), bounds[:-1]

    def sizes(self, of_grids: float, of_tokens: float) -> tuple[tuple[Shape, ...], Budget]:
        """That hold these shares of the passes."""
        longest = [np.maximum.reduceat(x, self._starts, axis=1) for x in self.lengths]
        widths = [_round_up(_quantile(x, of_grids)).tolist() for x in longest]
        if self._whole:
            widths[0] = [int(_round_up(np.array(self._most[0])))] * len(self._rows)
        totals = [int(_quantile(x.sum(axis=1), of_tokens)) for x in self.lengths]
        return tuple(map(Shape, self._rows.tolist(), *widths)), Budget(*map(_round_budget, totals))

    def largest(self) -> tuple[tuple[Shape, ...], Budget]:
        """That hold any pass, also one of the longest prompt again and again."""
        widths = [int(_round_up(np.array(most))) for most in (self._most[0], self._widest)]
        rows = int(self._rows.sum())
        budget = Budget(*(_round_budget(rows * most) for most in self._most))
        return tuple(Shape(n, *widths) for n in self._rows.tolist()), budget


def _quantile(x: np.ndarray, q: float) -> np.ndarray:
    return np.quantile(x, q, axis=0, method="inverted_cdf").astype(np.int64)


def _round_budget(tokens: int) -> int:
    multiple = next(m for limit, m in _BUDGET_MULTIPLES if tokens <= limit)
    return -(-tokens // multiple) * multiple


def choose_step(shapes: Sequence[StepShape], users: Lengths, items: Lengths) -> StepShape:
    """The cheapest that holds all of these sorted passes (int [..., n] each); the last one holds any."""
    return next((one for one in shapes[:-1] if one.holds(users, items).all()), shapes[-1])


Windows = tuple[tuple[int, int], ...]  # (rows, width) of every group


def plan_windows(
    lengths: np.ndarray, batch: int, groups: int, max_shapes: int, seed: int = 0
) -> list[Windows]:
    """Training on plain windows: a batch is sorted by length and cut into groups; at most `max_shapes` shapes of all groups.

    Batches are simulated from the lengths (int [n]); shapes that save most are added one by one. Cheapest first; the last
    one holds any batch. Widths are multiples of 8 (of 16 beyond 256), or the longest.
    """
    rng, windows = np.random.default_rng(seed), Trunks.apart((np.zeros_like(lengths), lengths))
    prefix, live = _draw(windows, batch, _DRAWS, rng)
    bounds = _cuts(prefix, live, min(groups, batch))
    rows, most = np.diff(bounds), int(np.max(lengths))
    longest = np.maximum.reduceat(live, bounds[:-1], axis=1)
    widths = [np.minimum(_round_up(_quantile(longest, q)), most).tolist() for q in _QUANTILES]
    everything = [min(int(_round_up(np.array(most))), most)] * len(rows)
    every = itertools.product(*map(dict.fromkeys, zip(*widths, strict=True)))
    tried = np.array([everything, *every])
    holds = np.array([(longest <= one).all(axis=-1) for one in tried])
    holds[0] = True
    costs = tried @ rows
    chosen = sorted(_worth_compiling(costs, holds, max_shapes), key=lambda i: costs[i])
    return [tuple(zip(rows.tolist(), tried[i].tolist(), strict=True)) for i in chosen]


def choose_windows(shapes: Sequence[Windows], lengths: np.ndarray) -> Windows:
    """The cheapest shape that holds sorted batches of these lengths (int [..., B]); the last one holds any."""
    return next((one for one in shapes[:-1] if _within(one, lengths).all()), shapes[-1])


def met_windows(
    shapes: Sequence[Windows], lengths: np.ndarray, batch: int, passes: int, seed: int = 0
) -> list[Windows]:
    """The shapes of `plan_windows` that at least one of so many simulated batches, other ones than there, takes."""
    rng, windows = (
        np.random.default_rng([seed, passes]),
        Trunks.apart((np.zeros_like(lengths), lengths)),
    )
    _, drawn = _draw(windows, batch, passes, rng)
    fits = np.stack([_within(one, drawn) for one in shapes])
    fits[-1] = True
    return [shapes[i] for i in np.unique(np.argmax(fits, axis=0))]


def _within(windows: Windows, lengths: np.ndarray) -> np.ndarray:
    """bool [...]: which sorted batches (int [..., B]) fit."""
    rows, widths = np.array(windows).T
    longest = np.maximum.reduceat(lengths, np.cumsum(rows) - rows, axis=-1)
    return (longest <= widths).all(axis=-1)


def _round_up(length: np.ndarray) -> np.ndarray:
    length = np.asarray(length, np.int64)
    multiple = np.where(length > 256, 2 * _MULTIPLE, _MULTIPLE)
    return -(-length // multiple) * multiple


def _cuts(prefix: np.ndarray, live: np.ndarray, groups: int) -> list[int]:
    """Where to cut sorted batches [S, B]: the boundaries with the least expected padded cost (dynamic programming)."""
    batch = live.shape[1]
    cost = np.full((batch + 1, batch + 1), np.inf)  # of a group [a, b)
    for a in range(batch):
        expected = np.maximum.accumulate(prefix[:, a:], axis=1).mean(0)
        expected += _LIVE_COST * np.maximum.accumulate(live[:, a:], axis=1).mean(0)
        cost[a, a + 1 :] = expected * np.arange(1, batch - a + 1)
    best, steps = cost[0], []
    for _ in range(groups - 1):
        total = best[:, None] + cost
        steps.append(np.argmin(total, axis=0))
        best = np.min(total, axis=0)
    bounds = [batch]
    for step in reversed(steps):
        bounds.append(int(step[bounds[-1]]))
    return [0, *reversed(bounds)]


def _worth_compiling(costs: np.ndarray, holds: np.ndarray, max_shapes: int) -> list[int]:
    """The first one, which holds all, and those that save most in turn. costs [n], holds bool [n, simulated batches]."""
    chosen, paid = [0], np.full(holds.shape[1], float(costs[0]))
    while len(chosen) < max_shapes:
        saved = (np.maximum(paid - costs[:, None], 0) * holds).sum(axis=1)
        best = int(np.argmax(saved))
        if saved[best] < 0.005 * paid.sum():  # not worth a compilation
            break
        chosen.append(best)
        paid = np.where(holds[best], np.minimum(paid, costs[best]), paid)
    return chosen


def plan_sorted(
    prefix_lengths: np.ndarray,
    live_lengths: np.ndarray,
    rows: int,
    max_shapes: int,
) -> list[tuple[np.ndarray, Shape]]:
    """Evaluation: all prompts once, longest first, in blocks of at most `max_shapes` shapes.

    Prefix and live tokens cost the same here, so P is what every prompt has and T the rest. Long blocks have fewer rows.
    The last block repeats its last prompt where it is not full.
    """
    prefix, live = np.asarray(prefix_lengths, np.int64), np.asarray(live_lengths, np.int64)
    if not len(live):
        return []
    shared = int(prefix.min()) // _MULTIPLE * _MULTIPLE
    need = prefix + live - shared
    order = np.argsort(-need, kind="stable")
    wide = widths(need, max_shapes)
    blocks, start = [], 0
    while start < len(order):
        width = int(wide[np.searchsorted(wide, need[order[start]])])
        count = rows
        while count > 1 and count * width > rows * _FULL_ROWS:
            count = (count + 1) // 2
        index = order[start : start + count]
        start += count
        index = np.concatenate([index, np.repeat(index[-1:], count - len(index))])
        blocks.append((index, Shape(count, shared, width)))
    return blocks


def plan_stored(
    prefix_lengths: np.ndarray, live_lengths: np.ndarray, rows: int, max_shapes: int
) -> list[tuple[np.ndarray, Shape]]:
    """As plan_sorted, for prompts whose whole prefixes are at hand: only their tails are work, so blocks have more rows."""
    prefix, live = np.asarray(prefix_lengths, np.int64), np.asarray(live_lengths, np.int64)
    if not len(live):
        return []
    tail = int(live.max())
    rows = max(rows, _STORED_TOKENS // tail)
    order = np.argsort(-prefix, kind="stable")
    wide, blocks = widths(prefix, max_shapes), []
    for start in range(0, len(order), rows):
        index = order[start : start + rows]
        width = int(wide[np.searchsorted(wide, prefix[index[0]])])
        index = np.concatenate([index, np.repeat(index[-1:], rows - len(index))])
        blocks.append((index, Shape(rows, width, tail)))
    return blocks


def widths(need: np.ndarray, max_shapes: int) -> np.ndarray:
    """int64: at most `max_shapes` widths with the least padding (dynamic programming over the distinct rounded lengths)."""
    values, counts = np.unique(_round_up(need), return_counts=True)
    total = np.concatenate([[0], np.cumsum(counts)])
    # of values[a..b] at width values[b]
    cost = (total[None, 1:] - total[:-1, None]) * values[None, :]
    cost = np.where(np.tri(len(values), k=-1, dtype=bool), np.inf, cost)
    best, steps = cost[0], []
    for _ in range(min(max_shapes, len(values)) - 1):
        extended = np.concatenate([[np.inf], best[:-1]])[:, None] + cost  # a new bucket starts at a
        extended[0] = np.inf
        steps.append(np.where(extended.min(0) < best, np.argmin(extended, axis=0), 0))
        best = np.minimum(best, extended.min(0))
    chosen, last = [len(values) - 1], len(values) - 1
    for step in reversed(steps):
        if step[last] > 0:
            last = int(step[last]) - 1
            chosen.append(last)
    return values[np.sort(chosen)]
