"""Few static shapes for prompts of many lengths.

A shape (rows, P, T) holds a prompt when P prefix and T live tokens do. Prefix tokens beyond P are fed as live tokens,
which changes no result (they are constant, only their work is not saved): so each shape is free to choose its P.
"""

import itertools
from typing import NamedTuple

import numpy as np

from llmsrec_jax.batch import PromptBatch
from llmsrec_jax.prompts.prompts import Prompts

_MULTIPLE = 8
_LIVE_COST = 2  # of a live token against a prefix token: forward and backward against forward only
_DRAWS = 400  # simulated batches
_QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.97, 1.0)
_FULL_ROWS = 512  # live tokens up to which an evaluation block keeps all its rows


class Shape(NamedTuple):
    """Static sizes of one PromptBatch."""

    rows: int
    prefix: int
    live: int


def fill(prompts: Prompts, rows: np.ndarray, shape: tuple[int, int, int]) -> PromptBatch:
    """Padded arrays of `rows` (int [shape.rows]) in a static shape.

    Raises:
      ValueError: another number of rows, or a prompt that does not fit.
    """
    count, prefix, live = shape
    if len(rows) != count:
        raise ValueError(f"{len(rows)} prompts for a shape of {count} rows")
    start = prompts.offsets[rows]
    cut = np.minimum(prompts.prefix_len[rows], prefix).astype(np.int64)
    length = prompts.offsets[np.asarray(rows) + 1] - start - cut
    if count and length.max() > live:
        row = int(np.asarray(rows)[np.argmax(length)])
        raise ValueError(
            f"prompt {row} has {length.max()} live tokens, more than the shape's {live}"
        )
    prefix_index, prefix_pad = _grid(start, cut, prefix)
    live_index, live_pad = _grid(start + cut, length, live)
    zero = np.int32(0)
    return PromptBatch(
        prefix_ids=np.where(prefix_pad, zero, prompts.ids[prefix_index]),
        prefix_len=cut.astype(np.int32),
        ids=np.where(live_pad, zero, prompts.ids[live_index]),
        kind=np.where(live_pad, np.int8(0), prompts.kind[live_index]),
        slot_item=np.where(live_pad, zero, prompts.slot_item[live_index]),
        length=length.astype(np.int32),
    )


def _grid(start: np.ndarray, length: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(index [n, width] of start, start+1, ..; whether it lies beyond length, where the index is 0)."""
    column = np.arange(width)
    pad = column >= length[:, None]
    return np.where(pad, 0, start[:, None] + column), pad


def plan_groups(
    prefix_lengths: np.ndarray,
    live_lengths: np.ndarray,
    batch: int,
    groups: int,
    max_shapes: int,
    seed: int = 0,
) -> list[tuple[Shape, ...]]:
    """Training: a batch is sorted by length and cut into groups; at most `max_shapes` tuples of group shapes.

    Batches are simulated from the lengths (int [n] each); tuples that save most are added one by one. Cheapest first;
    the last one holds any batch. P and T are multiples of 8 (of 16 beyond 256); where no prompt has a prefix (plain
    windows) T is at most the longest.
    """
    prefix, live = np.asarray(prefix_lengths, np.int64), np.asarray(live_lengths, np.int64)
    if not len(live):
        raise ValueError("no lengths to plan shapes from")
    drawn = np.random.default_rng(seed).integers(len(live), size=(_DRAWS, batch))
    order = np.lexsort((prefix[drawn], (prefix + live)[drawn]), axis=1)
    drawn = np.take_along_axis(drawn, order, axis=1)
    bounds = _cuts(prefix[drawn], live[drawn], min(groups, batch))
    longest = int(live.max()) if prefix.max() == 0 else None
    options = []  # per group: (shape, which simulated batches it holds)
    for a, b in itertools.pairwise(bounds):
        needs = _Needs(prefix[drawn[:, a:b]], live[drawn[:, a:b]], longest)
        shapes = dict.fromkeys(needs.shape(b - a, q) for q in _QUANTILES)
        options.append([(shape, needs.holds(shape)) for shape in shapes])
    everything = _Needs(prefix[None], live[None], longest)
    largest = tuple(everything.shape(b - a, 1.0) for a, b in itertools.pairwise(bounds))
    return _select(largest, options, max_shapes)


class _Needs:
    """Live tokens that simulated groups [S, rows] need, for every P worth trying."""

    def __init__(self, prefix: np.ndarray, live: np.ndarray, longest: int | None):
        low = int(prefix.min()) // _MULTIPLE * _MULTIPLE
        tried = np.unique(_round_up(np.arange(low, prefix.max() + 1))).tolist()
        self._need = {p: (live + np.maximum(prefix - p, 0)).max(axis=1) for p in tried}
        self._longest = longest

    def shape(self, rows: int, quantile: float) -> Shape:
        """The cheapest shape that holds this share of the groups."""
        shapes = []
        for p, need in self._need.items():
            t = int(_round_up(np.quantile(need, quantile, method="inverted_cdf")))
            shapes.append(Shape(rows, p, min(t, self._longest or t)))
        return min(shapes, key=_cost)

    def holds(self, shape: Shape) -> np.ndarray:
        """bool [S]."""
        return self._need[shape.prefix] <= shape.live


def _cost(shape: Shape) -> int:
    return shape.rows * (shape.prefix + _LIVE_COST * shape.live)


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


def _select(
    largest: tuple[Shape, ...],
    options: list[list[tuple[Shape, np.ndarray]]],
    max_shapes: int,
) -> list[tuple[Shape, ...]]:
    if np.prod([len(o) for o in options]) <= 4096:
        combined = list(itertools.product(*options))
    else:  # many groups: the same quantile for all
        longest = max(len(o) for o in options)
        combined = [tuple(o[min(i, len(o) - 1)] for o in options) for i in range(longest)]
    tuples = [tuple(shape for shape, _ in one) for one in combined]
    holds = np.stack([np.logical_and.reduce([h for _, h in one]) for one in combined])
    costs = np.array([sum(map(_cost, one)) for one in tuples])
    chosen = [largest]
    paid = np.full(holds.shape[1], float(sum(map(_cost, largest))))
    while len(chosen) < max_shapes:
        saved = (np.maximum(paid - costs[:, None], 0) * holds).sum(axis=1)
        best = int(np.argmax(saved))
        if saved[best] < 0.005 * paid.sum():  # not worth a compilation
            break
        chosen.append(tuples[best])
        paid = np.where(holds[best], np.minimum(paid, costs[best]), paid)
    return sorted(dict.fromkeys(chosen), key=lambda one: sum(map(_cost, one)))


def choose(
    shapes: list[tuple[Shape, ...]], prefix_lengths: np.ndarray, live_lengths: np.ndarray
) -> tuple[Shape, ...]:
    """The cheapest tuple that holds sorted batches (int [..., B] each).

    The last tuple holds any real batch. Should the lengths be bounds that no prompt reaches (maxima over devices, place
    by place) and nothing hold them, it is the last one, widened.
    """
    for one in shapes:
        if holds(one, prefix_lengths, live_lengths):
            return one
    needs = _needs(shapes[-1], prefix_lengths, live_lengths)
    return tuple(
        shape._replace(live=max(shape.live, int(_round_up(np.array(need)))))
        for need, shape in zip(needs, shapes[-1], strict=True)
    )


def holds(one: tuple[Shape, ...], prefix_lengths: np.ndarray, live_lengths: np.ndarray) -> bool:
    """Whether a tuple holds sorted batches (int [..., B] each)."""
    needs = _needs(one, prefix_lengths, live_lengths)
    return all(need <= shape.live for need, shape in zip(needs, one, strict=True))


def _needs(one: tuple[Shape, ...], prefix: np.ndarray, live: np.ndarray) -> list[int]:
    """Live tokens that the groups of sorted batches [..., B] need with each shape's P."""
    bounds = np.cumsum([0, *(shape.rows for shape in one)])
    return [
        int((live[..., a:b] + np.maximum(prefix[..., a:b] - shape.prefix, 0)).max())
        for shape, (a, b) in zip(one, itertools.pairwise(bounds), strict=True)
    ]


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
    widths = _widths(need, max_shapes)
    blocks, start = [], 0
    while start < len(order):
        width = int(widths[np.searchsorted(widths, need[order[start]])])
        count = rows
        while count > 1 and count * width > rows * _FULL_ROWS:
            count = (count + 1) // 2
        index = order[start : start + count]
        start += count
        index = np.concatenate([index, np.repeat(index[-1:], count - len(index))])
        blocks.append((index, Shape(count, shared, width)))
    return blocks


def _widths(need: np.ndarray, max_shapes: int) -> np.ndarray:
    """At most `max_shapes` widths with the least padding (dynamic programming over the distinct rounded lengths)."""
    values, counts = np.unique(_round_up(need), return_counts=True)
    total = np.concatenate([[0], np.cumsum(counts)])
    cost = (total[None, 1:] - total[:-1, None]) * values[
        None, :
    ]  # of values[a..b] at width values[b]
    cost = np.where(np.tri(len(values), k=-1, dtype=bool), np.inf, cost)
    best, steps = cost[0], []
    for _ in range(min(max_shapes, len(values)) - 1):
        extended = np.concatenate([[np.inf], best[:-1]])[:, None] + cost  # a new bucket starts at a
        extended[0] = np.inf
        steps.append(np.where(extended.min(0) < best, np.argmin(extended, axis=0), 0))
        best = np.minimum(best, extended.min(0))
    widths, last = [len(values) - 1], len(values) - 1
    for step in reversed(steps):
        if step[last] > 0:
            last = int(step[last]) - 1
            widths.append(last)
    return values[np.sort(widths)]
