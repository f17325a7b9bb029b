"""Negatives are unique, never positive, depend on their user alone, and have the distribution they claim."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsrec_jax.data import sampling
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.data.stretches import Stretches
from tests.factories import dataset, random_dataset

SAMPLINGS = st.sampled_from(["uniform", "popularity"])


def popular(made):
    """The same dataset with every item in somebody's training part, so that popularity can draw them all."""
    extra = np.arange(1, made.catalog.size, dtype=np.int32)
    train = made.train
    longer = dataclasses.replace(
        train,
        offsets=np.append(train.offsets, train.offsets[-1] + len(extra)),
        items=np.append(train.items, extra),
        times=np.append(train.times, np.arange(len(extra))),
    )
    none = {
        name: np.append(getattr(made, name), 0).astype(getattr(made, name).dtype)
        for name in ("valid_item", "valid_time", "test_item", "test_time")
    }
    return dataclasses.replace(
        made, train=longer, user_keys=np.append(made.user_keys, "all"), **none
    )


def last(made):
    """A sample of every user."""
    return Samples.of(made, np.arange(len(made)), "last")


@given(
    st.integers(0, 50),
    st.integers(16, 40),
    st.sampled_from(["valid", "test"]),
    SAMPLINGS,
    st.data(),
)
def test_candidates_are_the_target_and_unique_non_positives(seed, items, split, how, data):
    made = popular(random_dataset(users=12, items=items, longest=12, seed=seed))
    num = data.draw(st.integers(1, items - 12))
    users = made.eligible(split)
    drawn = sampling.candidates(made, split, users, num, how, seed)
    assert drawn.shape == (len(users), 1 + num) and drawn.dtype == np.int32
    assert (drawn[:, 0] == made.targets(split, users)).all()
    for user, row in zip(users, drawn, strict=True):
        assert len(set(row)) == 1 + num and row.min() >= 1 and row.max() <= items
        assert not set(row[1:]) & set(made.known()[user][0])


@given(st.integers(0, 50), SAMPLINGS, st.data())
def test_candidates_depend_on_their_user_alone(seed, how, data):
    made = popular(random_dataset(users=12, items=30, seed=seed))
    everyone = sampling.candidates(made, "test", np.arange(12), 12, how, seed)
    some = np.asarray(data.draw(st.lists(st.integers(0, 11), min_size=1, unique=True)))
    assert (sampling.candidates(made, "test", some, 12, how, seed) == everyone[some]).all()
    fewer = sampling.candidates(made, "test", some, 3, how, seed)
    assert fewer.shape == (len(some), 4)


def test_many_users_in_blocks_equal_one_block(monkeypatch):
    made = random_dataset(users=40, items=60)
    whole = sampling.candidates(made, "test", np.arange(40), 20, "uniform", 0)
    monkeypatch.setattr(sampling, "_BLOCK", 7)
    blocks = sampling.candidates(made, "test", np.arange(40), 20, "uniform", 0)
    assert (whole == blocks).all()
    every = Samples.of(made, np.arange(40), "all")
    drawn = sampling.train_negatives(every, np.arange(len(every)), 4, 3, "train", 0)
    alone = [
        sampling.train_negatives(every, np.asarray([n]), 4, 3, "train", 0)[0]
        for n in range(len(every))
    ]
    assert len(every) > 40 and (drawn == np.asarray(alone)).all()


def test_seeds_and_splits_draw_differently():
    made = random_dataset(users=30, items=200)
    users = np.arange(30)
    first = sampling.candidates(made, "test", users, 50, "uniform", 0)
    for split, seed in (("test", 1), ("valid", 0)):
        other = sampling.candidates(made, split, users, 50, "uniform", seed)
        assert (first[:, 1:] == other[:, 1:]).mean() < 0.05


@pytest.mark.parametrize("how", ["uniform", "popularity"])
def test_the_shares_are_right(how):
    """One negative each for many equal users: items 4.. in equal shares, or by training count."""
    others = [[4, 5, 6, 1, 2], [4, 5, 1, 2, 3], [4, 1, 2, 3, 5]]
    made = dataset([[1, 2, 3]] * 20_000 + others, items=8)
    drawn = sampling.candidates(made, "test", np.arange(20_000), 1, how, 0)[:, 1]
    shares = np.bincount(drawn, minlength=9)[4:] / 20_000
    # the last two train on 4 5 6 | 4 5 1 | 4 1 2: counts of 4, 5, 6 are 3, 2, 1
    expected = np.full(5, 0.2) if how == "uniform" else np.asarray([3, 2, 1, 0, 0]) / 6
    assert np.abs(shares - expected).max() < 5 * 0.5 / np.sqrt(20_000)


def test_without_replacement_has_the_shares_of_successive_draws():
    """Both ways to draw (streams, and races for rows that run dry) give the same inclusion probabilities."""
    weights = np.asarray([0.0, 8, 4, 2, 1])
    streams = sampling._Stream(np.arange(20_000).astype(np.uint64))
    races = [sampling._without_replacement(weights, streams, row, 2) for row in range(20_000)]
    share = weights / weights.sum()
    first = np.bincount([race[0] for race in races], minlength=5) / 20_000
    second = np.bincount([race[1] for race in races], minlength=5) / 20_000
    expected = [
        sum(share[i] * share[j] / (1 - share[i]) for i in range(1, 5) if i != j) for j in range(5)
    ]
    assert np.abs(first - share).max() < 0.018
    assert np.abs(second - expected).max() < 0.018


def test_too_small_a_catalogue_names_the_user():
    made = dataset([[1, 2, 3, 4], [1, 2, 3, 4, 5]], items=8)
    assert sampling.candidates(made, "test", np.asarray([0]), 4, "uniform", 0).shape == (1, 5)
    message = (
        "user 'u1' leaves only 3 of 8 items .* 4 negatives are asked for: lower evaluate.negatives"
    )
    with pytest.raises(ValueError, match=message):
        sampling.candidates(made, "test", np.arange(2), 4, "uniform", 0)
    two = dataset([[1, 2, 4], [5, 1, 2]], 8)  # trained items: 1 and 5; the first user knows 1
    with pytest.raises(ValueError, match="user 'u0' leaves only 1 of 8"):
        sampling.candidates(two, "test", np.asarray([0]), 2, "popularity", 0)


def test_wrong_requests_are_refused():
    made = dataset([[1, 2, 3, 4]], items=8)
    with pytest.raises(ValueError, match="evaluate.sampling='zipf': use uniform or popularity"):
        sampling.candidates(made, "test", np.asarray([0]), 2, "zipf", 0)
    with pytest.raises(ValueError, match="train.exclude='all': use train or history"):
        sampling.train_negatives(last(made), np.asarray([0]), 0, 2, "all", 0)
    without = dataclasses.replace(made, test_item=np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="user 'u0' has no test target"):
        sampling.candidates(without, "test", np.asarray([0]), 2, "uniform", 0)


def test_train_negatives_and_what_they_exclude():
    made = dataset([[1, 2, 3, 4, 5]], items=7)  # training input 1 2, target 3, valid 4, test 5
    one = np.asarray([0])
    draws = {
        exclude: {
            int(item)
            for epoch in range(60)
            for item in sampling.train_negatives(last(made), one, epoch, 2, exclude, 0)[0]
        }
        for exclude in ("train", "history")
    }
    assert draws == {"train": {4, 5, 6, 7}, "history": {3, 4, 5, 6, 7}}
    with pytest.raises(
        ValueError, match="leaves only 4 of 7 .* 5 negatives .* lower train.negatives"
    ):
        sampling.train_negatives(last(made), one, 0, 5, "train", 0)


@given(
    *(st.integers(0, 50), st.integers(0, 9), st.integers(1, 5)),
    *(st.sampled_from(["train", "history"]), st.sampled_from(["last", "all"])),
)
def test_train_negatives_are_unique_and_depend_on_their_sample_alone(
    seed, epoch, num, exclude, targets
):
    made = random_dataset(users=9, items=20, longest=10, seed=seed)
    every = Samples.of(made, np.arange(9), targets)
    rows = np.arange(len(every))
    drawn = sampling.train_negatives(every, rows, epoch, num, exclude, seed)
    assert drawn.shape == (len(every), num) and drawn.dtype == np.int32
    sets = made.train.take(every.users) if exclude == "train" else every.take(rows)
    for sample, row in enumerate(drawn):
        assert len(set(row)) == num and row.min() >= 1 and row.max() <= 20
        assert not set(row) & set(sets[sample][0])
        alone = sampling.train_negatives(every, rows[[sample]], epoch, num, exclude, seed)
        assert (alone[0] == row).all()


def test_samples_of_one_user_have_negatives_of_their_own():
    """Other ones at every target and in every epoch; those of its last target are the same among all and alone."""
    made = random_dataset(users=6, items=200, longest=12)
    every, lasts = Samples.of(made, np.arange(6), "all"), last(made)
    drawn = [
        sampling.train_negatives(every, np.arange(len(every)), e, 9, "train", 0) for e in range(3)
    ]
    assert len({row.tobytes() for one in drawn for row in one}) == 3 * len(every)
    for epoch, one in enumerate(drawn):
        alone = sampling.train_negatives(lasts, np.arange(6), epoch, 9, "train", 0)
        assert (one[every.later == 0] == alone).all()


@given(st.integers(0, 50), st.integers(0, 5), st.data())
def test_teacher_negatives(seed, epoch, data):
    made = random_dataset(users=9, items=20, longest=10, seed=seed)
    users = np.asarray(data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=9)))
    positive = np.ones((len(users), 7), dtype=np.int32)
    positive[:, :2] = 0
    drawn = sampling.teacher_negatives(made, Stretches.last(users), positive, 2, seed, epoch)
    assert drawn.dtype == np.int32 and drawn.shape == (*positive.shape, 2)
    assert (drawn[:, :2] == 0).all() and drawn[:, 2:].min() >= 1
    for user, row in zip(users, drawn[:, 2:], strict=True):
        assert not set(row.ravel()) & set(made.train[user][0]) and row.max() <= 20
    alone = Stretches.last(users[:1])
    narrow = sampling.teacher_negatives(made, alone, positive[:1, 3:], 1, seed, epoch)
    assert (narrow == drawn[:1, 3:, :1]).all()


def test_teacher_negatives_change_with_the_epoch_and_the_stretch_and_need_an_item():
    made = random_dataset(users=30, items=200)
    last, positive = Stretches.last(np.arange(30)), np.ones((30, 20), dtype=np.int32)
    draw = lambda of, epoch: sampling.teacher_negatives(made, of, positive, 2, 0, epoch)
    first, others = draw(last, 0), (draw(last, 1), draw(last.before(np.full(30, 5)), 0))
    assert all((first == other).mean() < 0.05 for other in others)
    assert (first[..., 0] == first[..., 1]).mean() < 0.05
    full = dataset([[1, 2, 3, 4], [1, 2, 3, 4, 1, 2]], items=4)
    drawn = sampling.teacher_negatives(full, Stretches.last(np.asarray([0])), positive[:1], 1, 0, 0)
    # the later items of the user can be drawn, the training items cannot
    assert set(drawn.ravel()) == {3, 4}
    with pytest.raises(ValueError, match="user 'u1' has every item in training"):
        sampling.teacher_negatives(full, Stretches.last(np.arange(2)), positive[:2], 1, 0, 0)


@given(st.integers(0, 50), st.floats(0.01, 1))
def test_hidden_items(seed, share):
    """At least one of every window that has any, never a pad; a window's width and company do not matter."""
    lengths = np.array([0, 1, 3, 8])
    window = np.where(np.arange(8) >= 8 - lengths[:, None], 5, 0).astype(np.int32)
    users, back = np.arange(4), np.array([0, 0, 2, 0])
    found = sampling.hidden(window, share, users, back, seed, 0)
    assert found.dtype == bool and not (found & (window == 0)).any()
    assert (found.sum(axis=1) >= (lengths > 0)).all()
    narrow = sampling.hidden(window[1:3, 4:], share, users[1:3], back[1:3], seed, 0)
    assert (narrow == found[1:3, 4:]).all()


def test_shares_of_hidden_items():
    users, window, ends = np.arange(4000), np.ones((4000, 10), np.int32), np.zeros(4000, int)
    some = sampling.hidden(window, 0.3, users, ends, 0, 0)
    wanted = 0.3 + 0.7**10 / 10  # where no draw is below the share, one item is hidden all the same
    assert some.mean() == pytest.approx(wanted, abs=0.01)
    for other in (  # another epoch, and another window of the user
        sampling.hidden(window, 0.3, users, ends, 0, 1),
        sampling.hidden(window, 0.3, users, ends + 5, 0, 0),
    ):
        assert 0.3 < (some == other).mean() < 0.7


def test_where_windows_are_cut():
    """A share of them, at all places alike; at least one item is left before the hidden one, if there are two."""
    users, ends = np.arange(4000), np.zeros(4000, int)
    behind = sampling.cuts(ends + 6, 0.75, users, ends, 0, 0)
    assert (behind < 0).mean() == pytest.approx(0.25, abs=0.03) and behind.min() == -1
    places = np.bincount(behind[behind >= 0])
    np.testing.assert_allclose(places / 3000, np.full(5, 0.2), atol=0.03)
    for lengths in (1, 2):
        assert (sampling.cuts(ends + lengths, 1.0, users, ends, 0, 0) == 0).all()
    assert (sampling.cuts(ends + 6, 0.0, users, ends, 0, 0) == -1).all()
    one = sampling.cuts(np.array([6]), 0.75, np.array([7]), np.array([0]), 0, 0)
    assert one == behind[7]
    for epoch, back in ((1, 0), (0, 3)):
        assert (behind != sampling.cuts(ends + 6, 0.75, users, ends + back, 0, epoch)).mean() > 0.5


def test_stored_candidates_come_back(tmp_path):
    made = random_dataset()
    users = made.eligible("test")
    drawn = sampling.candidates(made, "test", users, 9, "uniform", 0)
    sampling.save_candidates(tmp_path, "test", users, drawn)
    again = sampling.load_candidates(tmp_path, "test")
    assert (again[0] == users).all() and (again[1] == drawn).all() and again[1].dtype == np.int32
    path = tmp_path / "candidates_test.npz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="candidates_test.npz is damaged"):
        sampling.load_candidates(tmp_path, "test")
    with pytest.raises(ValueError, match="candidates_valid.npz is missing"):
        sampling.load_candidates(tmp_path, "valid")
