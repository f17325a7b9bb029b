"""Ragged prompts -> batches of static shapes: token axes without padding, and the grids that attention needs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llmsrec_jax.batch import (
    HISTORY,
    ITEM_OUT,
    NOTHING,
    USER_OUT,
    USER_REPR,
    Asked,
    Flat,
    Grid,
    Outs,
    PromptBatch,
)
from llmsrec_jax.data.interactions import offsets_of, spans
from llmsrec_jax.prompts.prompts import Prompts


class Shape(NamedTuple):
    """Static sizes of a grid of prompts. It holds a prompt when P prefix and T live tokens do.

    Prefix tokens beyond P are fed as live tokens, which changes no result where they are computed (they are constant, only
    their work is not saved): so each shape is free to choose its P. What is stored may be rounded: it is taken whole.
    """

    rows: int
    prefix: int
    live: int


class Group(NamedTuple):
    """Prompts that share a grid."""

    prompts: Prompts
    rows: np.ndarray  # int [shape.rows]
    shape: Shape
    stored: np.ndarray | None = None  # int [rows] where their prefixes begin among those at hand
    outs: int = 1  # at most so many prompts, or tokens that are asked for, in a row


class Budget(NamedTuple):
    """Static sizes of the token axes: at most so many tokens, the rest is padding."""

    prefix: int
    live: int


def fill(groups: Sequence[Group], slots: int, budget: Budget | None = None) -> PromptBatch:
    """One batch of all groups in order, those with stored prefixes last, with at most `slots` history slots.

    budget: None lays the grids on the axes as they are, pads included: right where there is hardly any padding.

    Raises:
      ValueError: another number of rows, or what does not fit.
    """
    start, cut, live = zip(*map(_measure, groups), strict=True)
    widths = [group.shape.live for group in groups]
    axis, at_live = _flat(live, widths, cut, budget and budget.live)
    ids, kind, item = (np.zeros(len(axis.position), t) for t in (np.int32, np.int8, np.int32))
    grids, owner = list(axis.grids), np.zeros(len(axis.position), np.int32)
    for g, (group, at) in enumerate(zip(groups, at_live, strict=True)):
        source = spans(start[g] + cut[g], live[g])
        ids[at] = group.prompts.ids[source]
        kind[at] = group.prompts.kind[source]
        item[at] = group.prompts.slot_item[source]
        if group.prompts.owner is not None:
            owner[at] = np.repeat(group.prompts.owner[group.rows], live[g])
        if group.prompts.branches is not None:
            position, hidden = (x[source] for x in group.prompts.branches)
            axis.position[at] = position
            hidden = np.maximum(hidden - np.repeat(cut[g], live[g])[:, None], 0)
            grids[g] = grids[g]._replace(hidden=_on_grid(hidden, live[g], group.shape.live))
    owned = any(group.prompts.owner is not None for group in groups)
    axis = axis._replace(grids=tuple(grids), owner=owner if owned else None)
    made = [g for g, group in enumerate(groups) if group.stored is None]
    prefix, places = _flat(
        [cut[g] for g in made],
        [groups[g].shape.prefix for g in made],
        [np.zeros_like(cut[g]) for g in made],
        budget and budget.prefix,
    )
    prefix_ids = np.zeros(len(prefix.position), np.int32)
    for g, at in zip(made, places, strict=True):
        prefix_ids[at] = groups[g].prompts.ids[spans(start[g], cut[g])]
    stored = tuple(
        _stored(group.stored, length, group.shape.prefix)
        for group, length in zip(groups, cut, strict=True)
        if group.stored is not None
    )
    told = [g.prompts.cf_user_repr[g.rows] for g in groups if g.prompts.cf_user_repr is not None]
    cf_user_repr = np.concatenate(told) if told else None
    numbers = _slots(kind, item, slots, sum(map(len, told)))
    asks = any(group.prompts.asked is not None for group in groups)
    several = not asks and any(group.prompts.branches is not None for group in groups)
    outs = _outs(groups, [kind[at] for at in at_live], live) if several else None
    asked = _asked(groups, cut) if asks else None
    read = prefix_ids, prefix, stored, None, ids, kind, axis
    return PromptBatch(*read, *numbers, cf_user_repr, outs, asked)


def prefixes(prompts: Prompts, rows: np.ndarray, count: int, width: int) -> tuple[np.ndarray, Flat]:
    """(int32 [count * width] ids, axis) of the prefixes of at most `count` prompts, none longer than `width`."""
    length = np.zeros(count, np.int64)
    length[: len(rows)] = prompts.prefix_len[rows]
    axis, (at,) = _flat([length], [width], [np.zeros_like(length)], count * width)
    ids = np.zeros(count * width, np.int32)
    ids[at] = prompts.ids[spans(prompts.offsets[rows], length[: len(rows)])]
    return ids, axis


def _measure(group: Group) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a group's prompts: where they start, prefix and live tokens, int64 [n] each."""
    prompts, rows, shape = group.prompts, np.asarray(group.rows, np.int64), group.shape
    if len(rows) != shape.rows:
        raise ValueError(f"{len(rows)} prompts for a shape of {shape.rows} rows")
    start = prompts.offsets[rows]
    cut = np.minimum(prompts.prefix_len[rows], shape.prefix).astype(np.int64)
    live = prompts.offsets[rows + 1] - start - cut
    if len(rows) and live.max() > shape.live:
        row = int(rows[np.argmax(live)])
        raise ValueError(
            f"prompt {row} has {live.max()} live tokens, more than the shape's {shape.live}"
        )
    return start, cut, live


def _flat(
    lengths: Sequence[np.ndarray],
    widths: Sequence[int],
    first_positions: Sequence[np.ndarray],
    size: int | None,
) -> tuple[Flat, list[np.ndarray]]:
    """The axis of sequences of these lengths on grids of these widths, and the places of every grid's tokens on it."""
    total = sum(int(length.sum()) for length in lengths)
    if size is not None and total > size:
        raise ValueError(f"{total} tokens for an axis of {size}")
    spaces = [len(length) * width for length, width in zip(lengths, widths, strict=True)]
    on_grids = sum(spaces)
    axis = on_grids if size is None else size
    position, place = np.zeros(axis, np.int32), np.full(axis, on_grids, np.int32)
    grids, places, base, begin = [], [], 0, 0
    for length, width, first, space in zip(lengths, widths, first_positions, spaces, strict=True):
        column = np.arange(width)
        row_starts = base + np.arange(len(length)) * width
        if size is None:
            at, starts = row_starts[:, None] + column, row_starts
        else:
            starts = begin + offsets_of(length)[:-1]
            at = np.where(column < length[:, None], starts[:, None] + column, axis)
        tokens = spans(starts, length)
        position[tokens] = spans(first, length)
        place[tokens] = spans(row_starts, length)
        grids.append(Grid(at.astype(np.int32), length.astype(np.int32)))
        places.append(tokens)
        base, begin = base + space, begin + int(length.sum())
    return Flat(position, None if size is None else place, tuple(grids)), places


def _on_grid(values: np.ndarray, length: np.ndarray, width: int) -> np.ndarray:
    """[rows, width, ...] of the values [A, ...] of rows of these lengths; zeros behind them."""
    grid = np.zeros((len(length) * width, *values.shape[1:]), np.int32)
    grid[spans(np.arange(len(length)) * width, length)] = values
    return grid.reshape(len(length), width, *values.shape[1:])


def _outs(
    groups: Sequence[Group], kinds: Sequence[np.ndarray], lengths: Sequence[np.ndarray]
) -> Outs:
    """kinds: of the live tokens of every group, whose rows have these lengths."""
    grids, place, base = [], [], 0
    for group, kind, length in zip(groups, kinds, lengths, strict=True):
        out = np.flatnonzero(np.isin(kind, (USER_OUT, ITEM_OUT)))
        row = np.repeat(np.arange(len(length)), length)[out]
        number = np.arange(len(row)) - np.searchsorted(row, row)  # in its row
        if number.max(initial=0) >= group.outs:
            raise ValueError(f"{number.max() + 1} prompts in a row, where {group.outs} fit")
        at = np.zeros((len(length), group.outs), np.int32)
        at[row, number] = spans(np.zeros_like(length), length)[out]
        grids.append(at)
        place.append(base + row * group.outs + number)
        base += at.size
    places = np.concatenate(place).astype(np.int32)
    prompt = np.full(base, len(places), np.int32)
    prompt[places] = np.arange(len(places))
    return Outs(tuple(grids), places, prompt)


def _asked(groups: Sequence[Group], cut: Sequence[np.ndarray]) -> Asked:
    """cut: of every group, tokens before its rows' tails, int [n]."""
    grids, tokens = [], []
    for group, before in zip(groups, cut, strict=True):
        asked = group.prompts.asked
        if asked is None:
            raise ValueError("prompts that ask for tokens beside others")
        place, token, offsets = asked.take(np.asarray(group.rows, np.int64))
        count = np.diff(offsets)
        if count.max(initial=0) > group.outs:
            raise ValueError(f"{count.max()} tokens asked for in a row, where {group.outs} fit")
        here = spans(np.arange(len(count)) * group.outs, count)
        at = np.zeros((len(count), group.outs), np.int32)
        of = np.full(at.shape, NOTHING, np.int32)
        at.ravel()[here], of.ravel()[here] = place - np.repeat(before, count), token
        grids.append(at)
        tokens.append(of.ravel())
    return Asked(tuple(grids), np.concatenate(tokens))


def _stored(starts: np.ndarray, length: np.ndarray, width: int) -> Grid:
    column = np.arange(width)
    beyond = np.iinfo(np.int32).max
    at = np.where(column < length[:, None], np.asarray(starts)[:, None] + column, beyond)
    return Grid(at.astype(np.int32), length.astype(np.int32))


def _slots(
    kind: np.ndarray, item: np.ndarray, slots: int, told: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`slot`, `slot_at` and `slot_item` of a PromptBatch, with `told` USER_REPR slots in the order of their prompts."""
    at, of_users = np.flatnonzero(kind == HISTORY), np.flatnonzero(kind == USER_REPR)
    if len(at) > slots:
        raise ValueError(f"{len(at)} history slots, where {slots} fit")
    slot = np.full(len(kind), slots + told, np.int32)
    slot[at], slot[of_users] = np.arange(len(at)), slots + np.arange(told)
    slot_at, slot_item = np.full(slots + told, len(kind), np.int32), np.zeros(slots, np.int32)
    slot_at[: len(at)], slot_item[: len(at)] = at, item[at]
    slot_at[slots:] = of_users
    return slot, slot_at, slot_item
