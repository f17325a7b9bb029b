"""CSR sequences against plain lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsrec_jax.data.interactions import Catalog, UserSequences, distinct, offsets_of

lists = st.lists(st.lists(st.integers(1, 50), max_size=6), min_size=1, max_size=8)


def sequences(items: list[list[int]]) -> UserSequences:
    flat = np.asarray([i for row in items for i in row], dtype=np.int32)
    return UserSequences(offsets_of(np.asarray([len(r) for r in items])), flat, flat * 1000)


def as_lists(made: UserSequences) -> list[list[int]]:
    assert all(
        (times == items * 1000).all() for items, times in (made[u] for u in range(len(made)))
    )
    return [made[u][0].tolist() for u in range(len(made))]


@given(lists, st.data())
def test_take_repeats_and_reorders(items, data):
    rows = data.draw(st.lists(st.integers(0, len(items) - 1), max_size=10))
    assert as_lists(sequences(items).take(np.asarray(rows, dtype=int))) == [items[r] for r in rows]


@given(lists, st.data())
def test_append_and_drop_last(items, data):
    more = data.draw(st.lists(st.integers(0, 3), min_size=len(items), max_size=len(items)))
    more = np.asarray(more, dtype=np.int32)
    longer = sequences(items).append(more, more.astype(np.int64) * 1000)
    expected = [row + [int(m)] * int(m > 0) for row, m in zip(items, more, strict=True)]
    assert as_lists(longer) == expected
    assert longer.items.dtype == np.int32 and longer.times.dtype == np.int64
    assert as_lists(longer.drop_last()) == [row[:-1] for row in expected]


def test_rows_lengths_and_bounds():
    made = sequences([[1, 2], [], [3]])
    assert made.rows.tolist() == [0, 0, 2] and made.lengths.tolist() == [2, 0, 1]
    assert made[-1][0].tolist() == [3]
    with pytest.raises(IndexError, match="row 3 of 3"):
        made[3]


def test_catalog_take_keeps_the_pad():
    catalog = Catalog(np.asarray(["", "a", "b"]), ["", "A", "B"], np.asarray([False, True, False]))
    taken = catalog.take(np.asarray([2]))
    assert taken.keys.tolist() == ["", "b"] and taken.titles == ["", "B"] and taken.size == 2
    assert taken.has_title.tolist() == [False, False]


@given(st.lists(st.integers(-5, 5)))
def test_distinct(values):
    assert distinct(np.asarray(values, dtype=np.int64)).tolist() == sorted(set(values))
