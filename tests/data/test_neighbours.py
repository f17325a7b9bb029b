"""SKNN and V-SKNN against loops over users and items."""

import numpy as np
import pytest

from llmsrec_jax.data.interactions import UserSequences, offsets_of
from llmsrec_jax.data.neighbours import Neighbours
from tests.factories import dataset, random_dataset


def plain(history, train, user, size, k, recency):
    """Scores of one user, by the definition."""
    items, n = list(history), len(history)
    place = {item: p + 1 for p, item in enumerate(items)}  # the last time counts
    alike = {}
    for other, theirs in enumerate(train):
        shared = set(items) & set(theirs)
        if recency:
            found = sum(place[item] / n for item in shared)
        else:
            found = len(shared) / np.sqrt(max(len(set(items)) * len(set(theirs)), 1))
        if found and other != user:
            alike[other] = found
    near = sorted(alike, key=lambda other: (-alike[other], other))[:k]
    scores = np.zeros(size)
    for other in near:
        weight = alike[other]
        if recency:
            shared = set(items) & set(train[other])
            weight *= max(max(1 - 0.1 * (n - place[item]), 0) for item in shared)
        scores[list(set(train[other]))] += weight
    return scores


@pytest.mark.parametrize("recency", [False, True])
@pytest.mark.parametrize("k", [1, 3, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_definition(recency, k, seed):
    made = random_dataset(users=25, items=30, seed=seed)
    users = np.array([3, 24, 0, 7])
    histories = made.inputs("test", users)
    model = Neighbours(users, histories, made.train, made.catalog.size, k, recency)
    train = [made.train[user][0].tolist() for user in range(25)]
    wanted = [
        plain(histories[row][0].tolist(), train, user, made.catalog.size, k, recency)
        for row, user in enumerate(users)
    ]
    rows = np.array([2, 0, 3, 1])
    found = model.catalogue(rows)
    np.testing.assert_allclose(found, np.array(wanted)[rows], rtol=1e-5)
    some = np.array([[1, 5], [30, 2], [7, 7], [0, 3]])
    np.testing.assert_array_equal(model.of(rows, some), np.take_along_axis(found, some, axis=1))


def test_what_was_bought_twice_is_as_recent_as_the_last_time():
    made = dataset([[1, 2, 1, 9, 8], [1, 3, 4, 5], [2, 6, 7, 8]], items=9)
    histories = made.inputs("test", np.array([0]))
    history = histories[0][0].tolist()
    assert history == [1, 2, 1, 9]
    train = [made.train[user][0].tolist() for user in range(3)]
    found = Neighbours(np.array([0]), histories, made.train, 10, 2, True).catalogue(np.array([0]))
    np.testing.assert_allclose(found[0], plain(history, train, 0, 10, 2, True), rtol=1e-6)
    assert found[0, 3] == pytest.approx(3 / 4 * 0.9) and found[0, 6] == pytest.approx(2 / 4 * 0.8)


def test_what_was_bought_twice_is_in_a_set_once():
    """By the asking user, and by a neighbour: the cosine is that of sets."""
    made = dataset([[1, 2, 1, 9, 8], [1, 3, 3, 3, 4, 5], [2, 6, 7, 8]], items=9)
    histories, user = made.inputs("test", np.array([0])), np.array([0])
    found = Neighbours(user, histories, made.train, 10, 2, False).catalogue(user)
    train = [made.train[each][0].tolist() for each in range(3)]
    np.testing.assert_allclose(found[0], plain([1, 2, 1, 9], train, 0, 10, 2, False), rtol=1e-6)
    assert found[0, 3] == pytest.approx(1 / np.sqrt(3 * 2))  # {1, 2, 9} and {1, 3}


def test_only_one_of_them_sees_the_order():
    """The same items in reverse."""
    made = random_dataset(users=40, items=30)
    users = np.arange(40)
    forward = made.inputs("test", users)
    items = np.concatenate([forward[user][0][::-1] for user in range(40)])
    backward = UserSequences(offsets_of(forward.lengths), items, forward.times)
    for recency, same in ((False, True), (True, False)):
        one, other = (
            Neighbours(users, histories, made.train, 31, 5, recency).catalogue(users)
            for histories in (forward, backward)
        )
        assert np.array_equal(one, other) == same


def test_nobody_is_alike():
    """No score, and no error, where no other user has any item of the history."""
    made = dataset([[1, 2, 3, 4], [5, 6, 7, 8]], items=8)
    model = Neighbours(np.array([0]), made.inputs("test", np.array([0])), made.train, 9, 3, True)
    assert not model.catalogue(np.array([0])).any()
