"""Metrics beyond accuracy, against examples worked by hand."""

import numpy as np
import pytest

from llmsrec_jax import beyond

COUNTS = np.array([0, 8, 4, 2, 2, 0])  # item 0 is the pad; 16 interactions
TOP = np.array([[1, 2], [1, 3], [5, 4]])


def test_coverage():
    assert beyond.coverage(TOP, items=5) == 1.0
    assert beyond.coverage(TOP[:2], items=5) == pytest.approx(3 / 5)


def test_novelty():
    """-log2 of 8/16, 4/16, 2/16 is 1, 2, 3; the item without interactions counts as 1/16: 4 bits."""
    np.testing.assert_allclose(beyond.novelty(TOP, COUNTS), [1.5, 2.0, 3.5])


def test_serendipity():
    """The two most popular items are 1 and 2: only a hit on another one surprises."""
    np.testing.assert_array_equal(beyond.serendipity(TOP, np.array([2, 3, 4]), COUNTS), [0, 1, 1])
    np.testing.assert_array_equal(beyond.serendipity(TOP, np.array([4, 4, 3]), COUNTS), [0, 0, 0])


def test_popularity_lift():
    """Means of what is shown: 6, 5, 1."""
    profile = np.array([6.0, 2.0, 4.0])
    np.testing.assert_allclose(beyond.popularity_lift(TOP, COUNTS, profile), [0, 1.5, -0.75])
