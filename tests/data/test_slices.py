"""Slices by hand: which users are warm, cold, transition."""

import numpy as np
import pytest

from llmsrec_jax import config
from llmsrec_jax.data.slices import (
    highest,
    history,
    places,
    popularity,
    slices,
    transition,
    warm_cold,
)
from tests.factories import dataset, random_dataset

CFG, ROWS = config.Slices(), config.Slices(ties="row")


def test_warm_and_cold_by_hand():
    made = dataset([[1, 2, 9, 7], [1, 2, 9, 1], [1, 3, 9, 2]], items=9)
    users = np.arange(3)
    # counts 3, 2, 1, 0 x 6: three warm items (1, 2, 3), the three cold ones with the highest rows (7, 8, 9)
    masks = warm_cold(made, "test", users, ROWS)
    np.testing.assert_array_equal(masks["cold"], [True, False, False])
    np.testing.assert_array_equal(masks["warm"], [False, True, True])


def test_transition_scores_by_hand():
    # training parts: u0 (1 2 3), u1 (1 2), u2 (3 1), u3 (5): pairs 12 twice, 23 once, 31 once
    made = dataset([[1, 2, 3, 8, 9], [1, 2, 8, 9], [3, 1, 8, 9], [5, 8, 9]], items=9)
    # scores: u0 (2 + 1) / 2, u1 2, u2 1, u3 0
    masks = transition(made, "test", np.arange(4), CFG)
    np.testing.assert_array_equal(masks["transition"], [True, True, False, False])
    np.testing.assert_array_equal(masks["non_transition"], [False, False, True, True])


def test_head_and_tail_by_hand():
    # training counts: item 1 three, items 2 and 3 one each: item 1 alone holds half of the five
    made = dataset([[1, 2, 9, 1], [1, 3, 9, 2], [1, 9, 4]], items=9)
    masks = popularity(made, "test", np.arange(3), CFG)
    np.testing.assert_array_equal(masks["head"], [True, False, False])
    np.testing.assert_array_equal(masks["tail"], [False, True, True])


def test_short_and_long_histories_by_hand():
    made = dataset([[1, 2, 9, 4], [1, 2, 3, 9, 2], [1, 9, 4]], items=9)  # inputs of 3, 4, 2 items
    masks = history(made, "test", np.arange(3), CFG)
    np.testing.assert_array_equal(masks["short_history"], [True, False, True])
    np.testing.assert_array_equal(masks["long_history"], [False, True, False])


def test_slices_follow_the_users_asked_for():
    made = random_dataset(users=20)
    every = slices(made, "test", np.arange(20), CFG)
    assert every["all"].all()
    order = np.random.default_rng(0).permutation(20)
    shuffled = warm_cold(made, "test", order, CFG)
    np.testing.assert_array_equal(shuffled["cold"], every["cold"][order])
    assert (every["transition"] ^ every["non_transition"]).all()


@pytest.mark.parametrize(
    ("ties", "wanted"),
    [("row", [0, 1, 3]), ("out", [3]), ("hash", None)],
)
def test_ties_at_the_line(ties, wanted):
    """Scores 2, 2, 2, 3, 1: one is above the line of the three highest, three are on it."""
    score, names = np.array([2.0, 2.0, 2.0, 3.0, 1.0]), np.array([f"u{n}" for n in range(5)])
    chosen = lambda score, names: highest(score, 3, places(names, ties), ties)
    found = np.flatnonzero(chosen(score, names)).tolist()
    if wanted is not None:
        assert found == wanted
        return
    assert len(found) == 3 and 3 in found and 4 not in found
    order = np.array([4, 2, 0, 3, 1])  # of the data: those of the same names are chosen
    assert {*names[order][chosen(score[order], names[order])]} == {*names[found]}


@pytest.mark.parametrize("ties", ["row", "out", "hash"])
def test_a_line_between_two_scores_leaves_nothing_to_decide(ties):
    score, place = np.array([1.0, 2.0, 2.0, 0.0]), places(np.array(list("abcd")), ties)
    assert highest(score, 2, place, ties).tolist() == [False, True, True, False]
    assert not highest(score, 0, place, ties).any() and highest(score, 4, place, ties).all()


def test_names_and_not_rows_break_ties():
    """Most users are tied; which ones are taken does not depend on the order of the data."""
    score, names = np.ones(2000), np.array([f"user {n}" for n in range(2000)])
    taken = highest(score, 1000, places(names, "hash"), "hash")
    assert taken.sum() == 1000
    assert abs(taken[:1000].sum() - 500) < 80  # 5 standard deviations of a draw without names


def test_shares():
    made = random_dataset(users=40)
    sizes = lambda **other: {
        name: int(mask.sum())
        for name, mask in slices(made, "test", np.arange(40), config.Slices(**other)).items()
    }
    assert sizes(transition_share=0.25)["transition"] == 10
    assert sizes(transition_share=0.25)["non_transition"] == 30
    few, many = (sizes(item_share=share) for share in (0.1, 0.5))
    assert few["warm"] < many["warm"] and many["warm"] + many["cold"] == 40  # none is both
