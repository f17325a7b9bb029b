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


def test_students_t():
    """Quantiles of printed tables."""
    for free, wanted in ((2, 4.3027), (5, 2.5706), (30, 2.0423), (1e4, 1.96)):
        assert statistics.quantile(free) == pytest.approx(wanted, abs=5e-4)
        assert statistics.two_sided(wanted, free) == pytest.approx(0.05, abs=1e-4)
    assert statistics.two_sided(0.0, 7.3) == 1.0


def seed(change: float, of_users: float) -> statistics.Difference:
    """What the bootstrap says of one seed: a change, and its standard error over users."""
    reach = statistics.NORMAL * of_users
    p = 0.01 if abs(change) > reach else 0.5
    return statistics.Difference(
        1.0, 1 + change, change, change - reach, change + reach, p, change, of_users, 400
    )


def test_seeds_by_hand():
    """Without any spread over users it is a t-test of the changes 1, 2, 3: t = 2 / (1 / sqrt(3))."""
    each = [statistics.paired(np.zeros(90), np.full(90, float(n)), draws=50) for n in (1, 2, 3)]
    found = statistics.over_seeds(each)
    assert (found.first, found.second, found.change, found.users) == (0.0, 2.0, 2.0, 90)
    assert found.p == pytest.approx(0.07418, abs=1e-4) and not found.detected
    assert found.high - found.change == pytest.approx(4.3027 / 3**0.5, abs=1e-3)
    assert np.isnan(found.relative) and found.words() == "no detectable change"


@pytest.mark.parametrize("common", [None, np.eye(3)], ids=["the same users", "users of its own"])
@pytest.mark.parametrize("of_users", [0.0, 0.01, 0.05])
def test_training_noise_is_no_difference(of_users, common):
    """Three seeds keep the error rate, however much of the chance is that of users; one pair of trainings does not."""
    rng, noise = np.random.default_rng(0), 0.02
    drawn = rng.normal(0, np.hypot(noise, of_users), (2000, 3))  # seeds with users of their own
    seeds = [[seed(change, of_users) for change in changes] for changes in drawn]
    found = [statistics.over_seeds(each, common).detected for each in seeds]
    assert np.mean(found) < 0.065  # 0.05 + 3 standard errors
    if of_users < noise:
        assert np.mean([one.detected for each in seeds for one in each]) > 0.3


def test_seeds_that_share_their_users_are_no_proof_by_numbers():
    """Trainings that hardly differ: the same users three times are worth those users once."""
    rng, of_users = np.random.default_rng(1), 0.02
    shared = rng.normal(0, of_users, 2000)
    found = [
        statistics.over_seeds([seed(change + rng.normal(0, 1e-3), of_users) for _ in range(3)])
        for change in shared
    ]
    assert np.mean([one.detected for one in found]) < 0.065


def test_users_of_their_own_are_more_users():
    """Who is in several seeds counts in all of them alike; who is in one of them, as one more."""
    half = [np.arange(9) + 9 * s // 2 for s in range(3)]
    shares = statistics.overlap([each.astype(str) for each in half])
    wanted = [[1, 5 / 9, 0], [5 / 9, 1, 4 / 9], [0, 4 / 9, 1]]
    np.testing.assert_allclose(shares, wanted)
    each = [seed(-0.1, 0.03) for _ in range(3)]
    width = lambda common: -(one := statistics.over_seeds(each, common)).low + one.change
    assert width(None) == width(np.ones((3, 3))) == pytest.approx(statistics.NORMAL * 0.03, 1e-3)
    assert width(np.eye(3)) == pytest.approx(statistics.NORMAL * 0.03 / 3**0.5, 1e-3)
    assert width(np.eye(3)) < width(shares) < width(None)
    rng, of_users = np.random.default_rng(3), 0.02
    drawn = rng.normal(-0.035, of_users, (500, 3))
    power = lambda common: np.mean(
        [statistics.over_seeds([seed(x, of_users) for x in xs], common).detected for xs in drawn]
    )
    assert power(None) + 0.2 < power(np.eye(3))


def test_a_real_effect_is_found():
    rng = np.random.default_rng(2)
    found = [
        statistics.over_seeds([seed(rng.normal(-0.1, 0.01), 0.005) for _ in range(3)])
        for _ in range(500)
    ]
    assert np.mean([one.words().startswith("drops by ") for one in found]) > 0.95


def test_one_pair_of_trainings_claims_nothing():
    clear = statistics.paired(np.full(99, 0.5), np.full(99, 0.25))
    assert statistics.claims(clear.words())
    words = statistics.of_one_pair(clear)
    assert not statistics.claims(words) and words.endswith(
        "(of users alone: drops by 50.0% ± 0.0%)"
    )
    same = statistics.paired(np.ones(9), np.ones(9))
    assert statistics.of_one_pair(same) == same.words() and not statistics.claims(same.words())


def test_seeds_that_do_not_differ_at_all():
    same = statistics.paired(np.full(9, 0.5), np.full(9, 0.5))
    found = statistics.over_seeds([same] * 3)
    assert (found.change, found.p, found.low, found.high) == (0, 1, 0, 0)
    one = statistics.paired(np.zeros(1), np.ones(1))
    assert not statistics.over_seeds([one] * 3).detected  # of one user each
    with pytest.raises(ValueError, match="2 seeds: at least 3"):
        statistics.over_seeds([same] * 2)
