"""Permuted histories: what moves, what stays, and what an order depends on."""

from dataclasses import replace

import numpy as np
import pytest

from llmsrec_jax.data import orders
from llmsrec_jax.data.interactions import UserSequences, offsets_of
from tests.factories import random_dataset


@pytest.fixture(scope="module")
def histories() -> UserSequences:
    lengths = np.array([3, 0, 1, 30, 2, 12])
    n = int(lengths.sum())
    return UserSequences(offsets_of(lengths), np.arange(1, n + 1, dtype=np.int32), np.arange(n) * 7)


def shuffled(histories, users=None, recent=0, seed=0, number=0) -> UserSequences:
    users = np.arange(len(histories)) if users is None else users
    return orders.shuffle(histories, users, recent, seed, "test", number)


def test_items_move_and_dates_stay(histories):
    permuted = shuffled(histories)
    np.testing.assert_array_equal(permuted.times, histories.times)
    np.testing.assert_array_equal(permuted.offsets, histories.offsets)
    for user in range(len(histories)):
        assert sorted(permuted[user][0]) == list(histories[user][0])
    assert not np.array_equal(permuted[3][0], histories[3][0])


def test_an_order_depends_on_seed_number_and_user_alone(histories):
    whole = shuffled(histories)
    some = np.array([5, 3])
    alone = shuffled(histories.take(some), some)
    for row, user in enumerate(some):
        np.testing.assert_array_equal(alone[row][0], whole[user][0])
    for other in (shuffled(histories, seed=1), shuffled(histories, number=1)):
        assert not np.array_equal(other[3][0], whole[3][0])


def test_only_recent_items(histories):
    permuted = shuffled(histories, recent=10)
    np.testing.assert_array_equal(permuted[3][0][:20], histories[3][0][:20])
    assert sorted(permuted[3][0][20:]) == list(histories[3][0][20:])
    assert not np.array_equal(permuted[3][0], histories[3][0])
    for user in (0, 4):  # shorter than that: as if all were permuted
        np.testing.assert_array_equal(permuted[user][0], shuffled(histories)[user][0])


def test_every_order_is_as_likely():
    lengths = np.full(6000, 3)
    three = UserSequences(
        offsets_of(lengths), np.tile([1, 2, 3], 6000).astype(np.int32), np.zeros(18000, np.int64)
    )
    seen, counts = np.unique(shuffled(three).items.reshape(-1, 3), axis=0, return_counts=True)
    assert len(seen) == 6
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 5 / 6)


def test_what_changed(histories):
    some = orders.changed(histories, shuffled(histories))
    assert not some[1] and not some[2] and some[3]
    assert not orders.changed(histories, histories).any()


def test_an_order_is_a_file(histories, tmp_path):
    permuted = shuffled(histories)
    orders.save(tmp_path, permuted)
    read = orders.load(tmp_path, histories)
    for name in ("offsets", "items", "times"):
        np.testing.assert_array_equal(getattr(read, name), getattr(permuted, name))
    with pytest.raises(ValueError, match="order.npz is damaged .it is not of these sequences"):
        orders.load(tmp_path, histories.take(np.array([3])))


def test_shuffled_training_leaves_the_rest_alone():
    data = random_dataset(users=30, items=20)
    other = replace(data, train=orders.shuffled_training(data, 0))
    np.testing.assert_array_equal(other.counts, data.counts)
    np.testing.assert_array_equal(other.train.times, data.train.times)
    assert orders.changed(data.train, other.train).mean() > 0.5
    users = data.eligible("train")
    np.testing.assert_array_equal(users, other.eligible("train"))
    assert not np.array_equal(data.targets("train", users), other.targets("train", users))
