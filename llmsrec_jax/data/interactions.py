"""The nouns of the data layer: a catalogue, raw interactions, and users' sequences. Item 0 is the pad everywhere."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class Catalog:
    """The items. Row 0 is the pad."""

    keys: np.ndarray  # [I] str, external item ids; keys[0] == ''
    titles: list[str]  # len I; titles[0] == ''; missing ones already replaced (data.missing_title)
    has_title: np.ndarray  # bool [I]

    @property
    def size(self) -> int:
        """I, the pad row included."""
        return len(self.keys)

    def take(self, rows: np.ndarray) -> "Catalog":
        """The pad row, then `rows` (>= 1) in that order."""
        rows = np.concatenate([[0], np.asarray(rows, dtype=np.int64)])
        return Catalog(self.keys[rows], [self.titles[row] for row in rows], self.has_title[rows])


@dataclass(frozen=True, eq=False)
class Interactions:
    """A raw table before any filtering; row order = file order."""

    user: np.ndarray  # int32 [N] row of user_keys
    item: np.ndarray  # int32 [N] row of the catalogue, >= 1
    time: np.ndarray  # int64 [N] ms since epoch, UTC
    user_keys: np.ndarray  # [U] str, in order of first appearance

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True, eq=False)
class UserSequences:
    """Chronological item sequences, one per user, in CSR form."""

    offsets: np.ndarray  # int64 [U+1]
    items: np.ndarray  # int32 [N]
    times: np.ndarray  # int64 [N] ms since epoch, UTC

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, user: int) -> tuple[np.ndarray, np.ndarray]:
        """Views (items, times) of one user."""
        if user < 0:
            user += len(self)
        if not 0 <= user < len(self):
            raise IndexError(f"row {user} of {len(self)} sequences")
        span = slice(self.offsets[user], self.offsets[user + 1])
        return self.items[span], self.times[span]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [U]."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """int64 [N]: the row of the user of every entry."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: np.ndarray) -> "UserSequences":
        """Subset, reorder or repeat users."""
        rows = np.asarray(rows, dtype=np.int64)
        return self._spans(self.offsets[rows], self.lengths[rows])

    def beginnings(self, rows: np.ndarray, lengths: np.ndarray) -> "UserSequences":
        """The first `lengths[i]` interactions of user `rows[i]`."""
        return self._spans(self.offsets[rows], lengths)

    def drop_last(self) -> "UserSequences":
        """Every sequence without its last interaction (empty ones stay empty)."""
        return self._spans(self.offsets[:-1], np.maximum(self.lengths - 1, 0))

    def append(self, items: np.ndarray, times: np.ndarray) -> "UserSequences":
        """One more interaction per user, where `items` [U] is not 0."""
        more = items > 0
        offsets = self.offsets + np.concatenate([[0], np.cumsum(more)])
        all_items = np.zeros(offsets[-1], dtype=np.int32)
        all_times = np.zeros(offsets[-1], dtype=np.int64)
        kept = spans(offsets[:-1], self.lengths)
        all_items[kept], all_times[kept] = self.items, self.times
        last = offsets[1:][more] - 1
        all_items[last], all_times[last] = items[more], times[more]
        return UserSequences(offsets, all_items, all_times)

    def _spans(self, starts: np.ndarray, lengths: np.ndarray) -> "UserSequences":
        index = spans(starts, lengths)
        return UserSequences(offsets_of(lengths), self.items[index], self.times[index])


class Histories(Protocol):
    """Sequences of which some can be had at a time: `UserSequences`, or what makes those that are taken."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> np.ndarray: ...

    def take(self, rows: np.ndarray) -> UserSequences: ...


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """int64 [n+1] CSR offsets of `lengths` [n]."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def distinct(values: np.ndarray) -> np.ndarray:
    """The sorted distinct values of an integer array. np.unique hashes them, far slower for millions."""
    ordered = np.sort(values)
    first = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64 [sum(lengths)]: the ranges starts[i] .. starts[i] + lengths[i] - 1, one after the other."""
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
