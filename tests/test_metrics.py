"""Ranking metrics against hand-worked ranks, and ties in expectation."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsrec_jax import metrics


def test_counts_by_hand():
    scores = np.array([[2.0, 3.0, 1.0, 2.0], [5.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    above, tied = metrics.count_above(scores)
    np.testing.assert_array_equal(above, [1, 0, 0])
    np.testing.assert_array_equal(tied, [1, 0, 3])


@pytest.mark.parametrize(
    "name, k, expected",
    [("hr", 1, [1, 0, 0]), ("hr", 3, [1, 1, 0]), ("mrr", 3, [1, 1 / 3, 0])]
    + [("ndcg", 3, [1, 0.5, 0]), ("ndcg", 10, [1, 0.5, 1 / np.log2(6)])],
)
def test_metrics_without_ties(name, k, expected):
    above, tied = np.array([0, 2, 4]), np.zeros(3, int)
    for ties in ("average", "pessimistic", "optimistic"):
        np.testing.assert_allclose(metrics.metric(name, k, above, tied, ties), expected)


@given(
    scores=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    k=st.integers(1, 7),
    name=st.sampled_from(sorted(metrics.GAINS)),
)
def test_average_is_the_mean_over_all_tie_orders(scores, k, name):
    above, tied = metrics.count_above(np.array([scores], float))
    gains = []
    for order in itertools.permutations(range(len(scores))):
        rank = sorted(order, key=lambda i: -scores[i]).index(0)
        gains.append(metrics.GAINS[name](np.array([rank]))[0] if rank < k else 0.0)
    np.testing.assert_allclose(metrics.metric(name, k, above, tied)[0], np.mean(gains))
    assert metrics.metric(name, k, above, tied, "pessimistic")[0] == pytest.approx(min(gains))
    assert metrics.metric(name, k, above, tied, "optimistic")[0] == pytest.approx(max(gains))


def test_all_equal_scores_are_chance():
    """The authors' unstable sort gives rank 88 of 100 here (D42)."""
    above, tied = metrics.count_above(np.zeros((1, 100)))
    assert metrics.metric("hr", 10, above, tied)[0] == pytest.approx(0.1)


def test_nan_has_no_rank():
    with pytest.raises(ValueError, match="scores of user row 1 are not finite"):
        metrics.count_above(np.array([[1.0, 2.0], [1.0, np.nan]]))


def test_mean_and_standard_error():
    mean, se = metrics.mean_and_se(np.array([0.0, 1.0, 1.0, 0.0]))
    assert (mean, se) == (0.5, pytest.approx(np.sqrt(1 / 3) / 2))
    assert metrics.mean_and_se(np.array([1.0])) == (1.0, None)
