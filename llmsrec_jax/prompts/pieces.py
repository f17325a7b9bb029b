"""Encoded texts that come up again and again, kept by an integer code."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Spans(NamedTuple):
    """Rows of ids: source[start[i] : start[i] + length[i]]."""

    source: np.ndarray  # int32 [N]
    start: np.ndarray  # int64 [n]
    length: np.ndarray  # int64 [n]


class Pieces:
    """A growing CSR of ids. Rows are only appended, so spans handed out stay valid."""

    def __init__(self) -> None:
        self._row: dict[int, int] = {}
        self.size = 0  # ids held
        self._ids = np.zeros(1024, np.int32)
        self._codes, self._starts, self._lengths = (np.zeros(64, np.int64) for _ in range(3))

    def rows(self, codes: np.ndarray, encode: Callable[[list[int]], list[list[int]]]) -> np.ndarray:
        """int64 [n] row of each code (int64 [n]); those seen for the first time are encoded."""
        unique, inverse = np.unique(codes, return_inverse=True)
        rows = np.array([self._row.get(code, -1) for code in unique.tolist()], np.int64)
        missing = unique[rows < 0]
        if len(missing):
            rows[rows < 0] = self._append(missing, encode(missing.tolist()))
        return rows[inverse]

    def spans(self, rows: np.ndarray) -> Spans:
        """Where the ids of `rows` are."""
        return Spans(self._ids, self._starts[rows], self._lengths[rows])

    def code(self, row: int) -> int:
        """The code of a row."""
        return int(self._codes[row])

    def _append(self, codes: np.ndarray, pieces: list[list[int]]) -> np.ndarray:
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        first, last = len(self._row), len(self._row) + len(codes)
        start, end = self.size, self.size + int(lengths.sum())
        self._codes = _with_room(self._codes, last)
        self._starts = _with_room(self._starts, last)
        self._lengths = _with_room(self._lengths, last)
        self._ids = _with_room(self._ids, end)
        self._codes[first:last], self._lengths[first:last] = codes, lengths
        self._starts[first:last] = start + np.cumsum(lengths) - lengths
        self._ids[start:end] = np.fromiter((i for piece in pieces for i in piece), np.int32)
        self.size = end
        rows = np.arange(first, last)
        self._row.update(zip(codes.tolist(), rows.tolist(), strict=True))
        return rows


def _with_room(array: np.ndarray, size: int) -> np.ndarray:
    """The array, or a copy at least twice as long."""
    if size <= len(array):
        return array
    larger = np.zeros(max(size, 2 * len(array)), array.dtype)
    larger[: len(array)] = array
    return larger
