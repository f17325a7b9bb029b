"""The r-th item outside a set, against a plain list."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmsrec_jax.data.interactions import UserSequences, offsets_of
from llmsrec_jax.data.unseen import Unseen


@given(st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=5))
def test_ranks_enumerate_the_complement(sets):
    items = np.asarray([i for one in sets for i in one], dtype=np.int32)
    lengths = np.asarray([len(one) for one in sets])
    unseen = Unseen(UserSequences(offsets_of(lengths), items, items.astype(np.int64)), 10)
    for row, one in enumerate(sets):
        outside = [item for item in range(1, 10) if item not in one]
        assert unseen.available[row] == len(outside)
        ranks = np.arange(len(outside))
        assert unseen.item(np.full(len(outside), row), ranks).tolist() == outside
        inside = unseen.contains(np.asarray(row), np.arange(1, 10))
        assert inside.tolist() == [item in one for item in range(1, 10)]
