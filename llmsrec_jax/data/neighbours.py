"""SKNN and V-SKNN (S16): what users with similar training sequences have. No training, no vectors: the control that the field expects.

Jannach and Ludewig's nearest neighbours over sessions (2017, 2018), with users' histories for sessions. Similarity: SKNN takes the
cosine of the sets of items; V-SKNN weighs the asking user's items by recency, linearly, the last one most. An item's score is the
sum of the similarities of the k nearest users who have it, in V-SKNN times the recency of the last item they share with the asking
user. SKNN is blind to order; V-SKNN is not.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from llmsrec_jax.data.interactions import UserSequences

if TYPE_CHECKING:
    import scipy.sparse as sp  # slow to import, and most runs need none

TILE = 256  # users at a time
REACH = 0.1  # of recency lost with every step back, in the scores of V-SKNN


@dataclass(frozen=True)
class Neighbours:
    """Scores of the catalogue for users with these histories, from those who were in training."""

    users: np.ndarray  # int [U] rows of the training sequences: nobody is a neighbour of itself
    histories: UserSequences  # [U]
    train: UserSequences
    size: int  # of the catalogue, the pad row included
    k: int
    recency: bool  # V-SKNN, else SKNN

    @cached_property
    def _sets(self) -> "sp.csr_matrix":
        """[N, I]: 1 where a training sequence has the item."""
        import scipy.sparse as sp

        ones = np.ones(len(self.train.items), np.float32)
        where = self.train.rows, self.train.items
        sets = sp.csr_matrix((ones, where), (len(self.train), self.size))
        sets.data[:] = 1.0
        return sets

    @cached_property
    def _items(self) -> "sp.csr_matrix":
        """[I, N]: its transpose, for products with histories."""
        return self._sets.T.tocsr()

    def _of(self, rows: np.ndarray, weigh: bool) -> "sp.csr_matrix":
        """[n, I] of histories: 1 where one has the item, or how recent it is there, from 1/length to 1."""
        import scipy.sparse as sp

        some = self.histories.take(rows)
        values = np.ones(len(some.items))
        if weigh:
            place = np.arange(len(some.items)) - some.offsets[:-1][some.rows] + 1
            values = place / some.lengths[some.rows]
        found = sp.coo_matrix((values, (some.rows, some.items)), (len(rows), self.size))
        return _largest(found)

    def catalogue(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, I]: scores of all items for users in `rows` of the histories; 0 = no neighbour has it."""
        some: Any = self._scores[rows]
        return some.toarray()

    def of(self, rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """float32 [n, C]: those of candidates int [n, C]."""
        return np.take_along_axis(self.catalogue(rows), candidates, axis=1)

    @cached_property
    def _scores(self) -> "sp.csr_matrix":
        """[U, I], made once: most items are no neighbour's."""
        import scipy.sparse as sp

        users = np.arange(len(self.users))
        tiles = [users[begin : begin + TILE] for begin in range(0, len(users), TILE)]
        return sp.csr_matrix(sp.vstack([sp.csr_matrix(self._tile(tile)) for tile in tiles]))

    def _tile(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, I]."""
        scores = np.zeros((len(rows), self.size), np.float32)
        asking = self._of(rows, self.recency)
        product: Any = asking @ self._items
        alike = product.toarray()
        if not self.recency:
            own, theirs = np.diff(asking.indptr), np.diff(self._sets.indptr)  # sizes of sets
            alike = alike / np.sqrt(np.maximum(np.outer(own, theirs), 1))
        alike[np.arange(len(rows)), self.users[rows]] = 0.0
        for row, (of_all, number) in enumerate(zip(alike, rows, strict=True)):
            near = _first(of_all, self.k)
            weights = of_all[near]
            if self.recency:
                weights = weights * self._recency(int(number), near)
            scores[row] = weights @ self._sets[near]
        return scores

    def _recency(self, row: int, near: np.ndarray) -> np.ndarray:
        """float64 [k]: of the last item that each of the users `near` shares with the history."""
        items, _ = self.histories[row]
        back = np.arange(len(items))[::-1]  # steps from the end
        weights = np.maximum(1.0 - REACH * back, 0.0)
        last = np.zeros(self.size)
        np.maximum.at(last, items, weights)
        shared = self._sets[near].multiply(last[None])
        return np.asarray(shared.max(axis=1).toarray()).ravel()


def _largest(found: "sp.coo_matrix") -> "sp.csr_matrix":
    """Of the entries of one place the largest: an item bought twice is as recent as the last time."""
    import scipy.sparse as sp

    order = np.lexsort((found.data, found.col, found.row))
    row, col, data = found.row[order], found.col[order], found.data[order]
    last = np.ones(len(row), bool)
    last[:-1] = (row[1:] != row[:-1]) | (col[1:] != col[:-1])
    return sp.csr_matrix((data[last], (row[last], col[last])), found.shape)


def _first(values: np.ndarray, k: int) -> np.ndarray:
    """int [at most k]: places of the k largest values above 0; ties go to the lower place."""
    some = np.flatnonzero(values)
    return some[np.argsort(-values[some], kind="stable")[:k]]
