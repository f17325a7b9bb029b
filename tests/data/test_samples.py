"""Samples: every position but the first is a target once, after its own history; who has one target has one sample."""

import numpy as np
import pytest

from llmsrec_jax.data.samples import Samples
from tests.factories import dataset, random_dataset


@pytest.mark.parametrize("targets", ["last", "all"])
def test_what_precedes_a_target_is_its_input(targets):
    made = random_dataset(users=12)
    users = np.array([7, 0, 3])
    samples = Samples.of(made, users, targets)
    wanted = []
    for user in users:
        items, times = made.train[user]
        first = 1 if targets == "all" else len(items) - 1
        wanted += [
            (user, items[:n].tolist(), times[:n].tolist(), items[n], len(items) - 1 - n)
            for n in range(first, len(items))
        ]
    inputs = samples.take(np.arange(len(samples)))
    found = [
        (user, *(part.tolist() for part in inputs[row]), samples.targets[row], samples.later[row])
        for row, user in enumerate(samples.users)
    ]
    assert found == wanted
    np.testing.assert_array_equal(samples.lengths, inputs.lengths)
    np.testing.assert_array_equal(samples.take([2, 0])[1][0], inputs[0][0])


def test_how_many_there_are():
    made = random_dataset(users=30)
    users = made.eligible("train")
    assert len(Samples.of(made, users, "all")) == np.sum(made.train.lengths[users] - 1)
    assert len(Samples.of(made, users, "last")) == len(users)


def test_the_last_targets_are_the_datasets():
    made = random_dataset(users=30)
    users = made.eligible("train")
    samples = Samples.of(made, users, "last")
    np.testing.assert_array_equal(samples.targets, made.targets("train", users))
    inputs = made.inputs("train", users)
    for row in range(len(users)):
        np.testing.assert_array_equal(samples.take([row])[0][0], inputs[row][0])


def test_users_of_two_items_have_one_sample():
    made = dataset([[1, 2, 3, 4], [5, 6, 7, 8]], items=9)
    last, every = (Samples.of(made, np.arange(2), targets) for targets in ("last", "all"))
    for name in ("users", "ends"):
        np.testing.assert_array_equal(getattr(last, name), getattr(every, name))
