"""Paired bootstrap: what it says of no difference, of a clear one, and how often it is wrong."""

import numpy as np
import pytest

from llmsrec_jax import statistics


def hits(rng, share: float, users: int = 500) -> np.ndarray:
    return (rng.random(users) < share).astype(float)


def test_the_same_values_do_not_differ():
    a = hits(np.random.default_rng(0), 0.4)
    found = statistics.paired(a, a)
    assert (found.change, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.words() == "no detectable change"


def test_a_clear_drop():
    rng = np.random.default_rng(0)
    a = hits(rng, 0.5)
    b = a * hits(rng, 0.8)
    found = statistics.paired(a, b)
    assert found.detected and found.low < found.change < found.high < 0
    assert found.change == pytest.approx(b.mean() - a.mean())
    assert found.relative == pytest.approx(b.mean() / a.mean() - 1)
    assert found.words().startswith("drops by ") and "% ± " in found.words()
    assert statistics.paired(b, a).words().startswith("rises by ")


def test_interval_agrees_with_the_standard_error():
    rng = np.random.default_rng(1)
    a, b = rng.random(2000), rng.random(2000) + 0.1
    found = statistics.paired(a, b, draws=4000)
    se = np.std(b - a, ddof=1) / np.sqrt(2000)
    assert (found.high - found.low) / (2 * 1.96 * se) == pytest.approx(1, abs=0.06)


def test_drawing_in_pieces_is_the_same_chance(monkeypatch):
    rng = np.random.default_rng(2)
    a, b = rng.random(300), rng.random(300)
    whole = statistics.paired(a, b)
    monkeypatch.setattr(statistics, "CHUNK", 7 * 300)
    pieces = statistics.paired(a, b)
    assert pieces.low == pytest.approx(whole.low, abs=0.01)
    assert pieces.change == whole.change


def test_error_rate_without_a_difference():
    rng = np.random.default_rng(3)
    found = [
        statistics.paired(hits(rng, 0.4), hits(rng, 0.4), draws=400).detected for _ in range(400)
    ]
    assert 0.02 < np.mean(found) < 0.085  # 0.05 ± 3 standard errors


def test_of_nothing_there_is_no_relative_change():
    found = statistics.paired(np.zeros(50), np.r_[np.ones(25), np.zeros(25)])
    assert found.detected and np.isnan(found.relative)
    assert found.words() == "rises by 0.5000"


@pytest.mark.parametrize("a, b", [(np.zeros(3), np.zeros(4)), (np.zeros(0), np.zeros(0))])
def test_other_users_cannot_be_compared(a, b):
    with pytest.raises(ValueError, match="same users"):
        statistics.paired(a, b)


def test_no_quotient_of_what_may_be_on_either_side_of_zero():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.7, 0.1, 300), rng.normal(-0.2, 0.1, 300)
    found = statistics.paired(first, second)
    assert found.detected and np.isnan(found.relative)
    assert found.words().startswith("drops by 0.") and "%" not in found.words()


@pytest.mark.parametrize(("users", "least"), [(1, 1.0), (3, 0.25), (5, 1 / 16)])
def test_few_users_prove_nothing(users, least):
    """All of them change alike: no less than the two-sided sign test says."""
    found = statistics.paired(np.full(users, 0.5), np.full(users, 0.7))
    assert found.p == least and found.words() == "no detectable change"
