"""Ties, duplicates and k-cores, by hand and by property."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmsrec_jax.data import counter, filters
from llmsrec_jax.data.interactions import Interactions

ITEM_KEYS = np.asarray(["", "10", "9", "x"])


def table(rows: list[tuple[int, int, int]]) -> Interactions:
    user, item, time = (np.asarray(column) for column in zip(*rows, strict=True))
    keys = np.asarray([f"u{n}" for n in range(user.max() + 1)])
    return Interactions(user.astype(np.int32), item.astype(np.int32), time.astype(np.int64), keys)


def items_in_order(made: Interactions, ties: str, seed: int = 0) -> list[int]:
    rows, _ = filters.chronological(made, ITEM_KEYS, ties, seed)
    return made.item[rows].tolist()


def test_canonical_order_is_numeric_for_numbers():
    keys = np.asarray(["b", "10", "9", "aa", "a"])
    assert keys[filters.canonical_order(keys)].tolist() == ["9", "a", "b", "10", "aa"]


def test_tie_policies():
    rows = [(0, 1, 5), (0, 3, 5), (0, 2, 5), (0, 1, 4)]
    assert items_in_order(table(rows), "file") == [1, 1, 3, 2]
    assert items_in_order(table(rows), "item") == [1, 2, 3, 1]  # ids 9, x, 10: shorter first
    orders = {tuple(items_in_order(table(rows), "random", seed)[1:]) for seed in range(40)}
    assert len(orders) == 6


@given(st.permutations(range(4)), st.integers(0, 5))
def test_random_ties_do_not_depend_on_the_file_order(order, seed):
    rows = [(0, 1, 5), (0, 3, 5), (0, 2, 5), (0, 1, 4)]
    shuffled = [rows[place] for place in order]
    assert items_in_order(table(shuffled), "random", seed) == items_in_order(
        table(rows), "random", seed
    )


def test_exact_duplicates_are_marked_and_the_first_in_the_file_kept():
    made = table([(0, 1, 5), (1, 1, 5), (0, 1, 5), (0, 1, 6), (0, 2, 5), (0, 1, 5)])
    rows, repeated = filters.chronological(made, ITEM_KEYS, "file", 0)
    assert sorted(rows[repeated].tolist()) == [2, 5]


tables = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=30
)


@given(tables, st.booleans(), st.sampled_from(["file", "item", "random"]))
def test_order_and_repeats_are_those_of_a_plain_sort(rows, is_sorted, ties):
    if is_sorted:
        rows = sorted(rows, key=lambda row: (row[0], row[2]))
    bits = lambda key: counter.text_bits(np.asarray([key]))
    tie = {
        "file": lambda user, item: 0,
        "item": lambda user, item: [0, 3, 1, 2][item],
        "random": lambda user, item: counter.bits(
            7, "ties", bits(f"u{user}"), bits(ITEM_KEYS[item])
        ),
    }[ties]
    key = lambda n: (rows[n][0], rows[n][2], tie(*rows[n][:2]))
    expected = sorted(range(len(rows)), key=key)
    found, repeated = filters.chronological(table(rows), ITEM_KEYS, ties, 7)
    assert found.tolist() == expected
    assert repeated.tolist() == [rows[n] in rows[:n] for n in expected]


pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=120)


@given(pairs, st.integers(1, 4), st.integers(1, 4))
def test_iterative_core_is_the_largest_fixed_point(rows, min_user, min_item):
    user, item = (np.asarray(column) for column in zip(*rows, strict=True))
    keep, _ = filters.iterative_core(user, item, min_user, min_item)
    assert keep.tolist() == naive_core(rows, min_user, min_item)


def naive_core(rows, min_user, min_item):
    """Removes one offending row at a time: every order of removals ends in the same largest core."""
    kept = list(range(len(rows)))
    while True:
        for place in kept:
            user, item = rows[place]
            users = sum(rows[k][0] == user for k in kept)
            items = sum(rows[k][1] == item for k in kept)
            if users < min_user or items < min_item:
                kept.remove(place)
                break
        else:
            return [place in kept for place in range(len(rows))]


def test_last_out_parts_and_short_users():
    part, short = filters.last_out_parts(np.asarray([0, 0, 1, 1, 1, 1, 3]))
    assert part.tolist() == [0, 0, 0, 0, 1, 2, 0]
    assert short == 2


def sample(keys, share, max_users, seed):
    return filters.sample_users(keys, share, max_users, "hash", seed)


def test_user_sample_follows_names_and_grows():
    keys = np.asarray([f"u{n}" for n in range(50)])
    small, large = (sample(keys, 1.0, n, seed=1) for n in (10, 20))
    assert small.sum() == 10 and large.sum() == 20 and (large | ~small).all()
    order = np.random.default_rng(0).permutation(50)
    assert (sample(keys[order], 1.0, 10, seed=1) == small[order]).all()
    assert (sample(keys, 1.0, 10, seed=2) != small).any()
    assert sample(keys, 1.0, 0, seed=1).all()
    assert (sample(keys, 0.41, 0, seed=1) == large).all()
    assert (sample(keys, 0.41, 10, seed=1) == small).all()


def test_the_authors_draw_goes_by_row():
    keys = np.asarray([f"u{n}" for n in range(1000)])
    kept = filters.sample_users(keys, 0.33, 0, "reference", seed=0)
    random.seed(0)
    assert np.flatnonzero(kept).tolist() == sorted(random.sample(list(range(1000)), 330))
    assert (filters.sample_users(keys[::-1], 0.33, 0, "reference", seed=0) == kept).all()
    assert filters.sample_users(keys, 1.0, 7, "reference", seed=0).sum() == 7
