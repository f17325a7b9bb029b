"""Items that a user has not interacted with, by rank: a uniform draw among them needs no rejection."""

import numpy as np

from llmsrec_jax.data.interactions import UserSequences, distinct, offsets_of


class Unseen:
    """The items outside each user's set, addressed by rank, 0 .. available - 1.

    `sequences` [n] are the sets. The r-th item (from 0) outside set u is r + 1 + #{j: k_j - 1 - j <= r} where k_0 < k_1 < ...
    are the distinct items of the set: k_j - 1 - j items outside the set come before k_j.
    """

    def __init__(self, sequences: UserSequences, catalog_size: int):
        self.size = catalog_size
        pairs = distinct(sequences.rows * catalog_size + sequences.items)
        rows = pairs // catalog_size
        lengths = np.bincount(rows, minlength=len(sequences))
        self.starts = offsets_of(lengths)
        place = np.arange(len(pairs)) - self.starts[rows]
        self.pairs = pairs
        self.before = pairs - 1 - place  # row * size + items outside the set before this one
        self.available = catalog_size - 1 - lengths  # int64 [n]

    def item(self, row: np.ndarray, rank: np.ndarray) -> np.ndarray:
        """int32: the item at `rank` < available[row] outside the set of `row` (both broadcast)."""
        smaller = np.searchsorted(self.before, row * self.size + rank, side="right")
        return (rank + 1 + smaller - self.starts[row]).astype(np.int32)

    def contains(self, row: np.ndarray, item: np.ndarray) -> np.ndarray:
        """bool: the item is in the set of `row` (both broadcast)."""
        wanted = row * self.size + item
        if not len(self.pairs):
            return np.zeros(wanted.shape, dtype=bool)
        place = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        return self.pairs[place] == wanted
