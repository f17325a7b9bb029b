"""Slices by hand: which users are warm, cold, transition."""

import numpy as np

from llmsrec_jax.data.slices import history, popularity, slices, transition, warm_cold
from tests.factories import dataset, random_dataset


def test_warm_and_cold_by_hand():
    made = dataset([[1, 2, 9, 4], [1, 2, 9, 1], [1, 3, 9, 2]], items=9)
    users = np.arange(3)
    # counts 3, 2, 1, 0 x 6: three warm items (1, 2, 3), the three cold ones with the lowest ids (4, 5, 6)
    masks = warm_cold(made, "test", users)
    np.testing.assert_array_equal(masks["cold"], [True, False, False])
    np.testing.assert_array_equal(masks["warm"], [False, True, True])


def test_transition_scores_by_hand():
    # training parts: u0 (1 2 3), u1 (1 2), u2 (3 1), u3 (5): pairs 12 twice, 23 once, 31 once
    made = dataset([[1, 2, 3, 8, 9], [1, 2, 8, 9], [3, 1, 8, 9], [5, 8, 9]], items=9)
    # scores: u0 (2 + 1) / 2, u1 2, u2 1, u3 0
    masks = transition(made, "test", np.arange(4))
    np.testing.assert_array_equal(masks["transition"], [True, True, False, False])
    np.testing.assert_array_equal(masks["non_transition"], [False, False, True, True])


def test_head_and_tail_by_hand():
    # training counts: item 1 three, items 2 and 3 one each: item 1 alone holds half of the five
    made = dataset([[1, 2, 9, 1], [1, 3, 9, 2], [1, 9, 4]], items=9)
    masks = popularity(made, "test", np.arange(3))
    np.testing.assert_array_equal(masks["head"], [True, False, False])
    np.testing.assert_array_equal(masks["tail"], [False, True, True])


def test_short_and_long_histories_by_hand():
    made = dataset([[1, 2, 9, 4], [1, 2, 3, 9, 2], [1, 9, 4]], items=9)  # inputs of 3, 4, 2 items
    masks = history(made, "test", np.arange(3))
    np.testing.assert_array_equal(masks["short_history"], [True, False, True])
    np.testing.assert_array_equal(masks["long_history"], [False, True, False])


def test_slices_follow_the_users_asked_for():
    made = random_dataset(users=20)
    every = slices(made, "test", np.arange(20))
    assert every["all"].all()
    order = np.random.default_rng(0).permutation(20)
    shuffled = warm_cold(made, "test", order)
    np.testing.assert_array_equal(shuffled["cold"], every["cold"][order])
    assert (every["transition"] ^ every["non_transition"]).all()
