"""Stretches of training sequences: nothing is left out, nothing is taken twice more than it must be."""

import numpy as np
import pytest

from llmsrec_jax import config
from llmsrec_jax.batch import HIDDEN
from llmsrec_jax.data.stretches import Stretches
from llmsrec_jax.loaders import TeacherBatches
from tests.factories import random_dataset


@pytest.mark.parametrize(("longest", "step"), [(5, 4), (4, 4), (40, 39), (2, 1)])
def test_every_step_of_every_sequence_is_in_one(longest, step):
    made = random_dataset(users=40, items=60, longest=30)
    train, users = made.train, np.array([3, 0, 39, 17, 8, 30])
    found = Stretches.every(train, users, longest, step)
    np.testing.assert_array_equal(found.users[found.back == 0], users)
    ends = found.ends(train)
    for user in users:
        n, own = train.lengths[user], found.back[found.users == user]
        assert len(own) == 1 + max(0, -(-(n - longest) // step))
        assert (np.diff(own) <= step).all() and (np.diff(own) > 0).all()
        assert own.max() == max(n - longest, 0)  # the first item is in the last of them
        np.testing.assert_array_equal(ends[found.users == user], train.offsets[user + 1] - own)


@pytest.mark.parametrize("hides", [False, True])
def test_an_epoch_trains_on_every_item(hides):
    """But the first of each sequence, which nothing precedes, where the next item is asked for; windows stay whole."""
    made = random_dataset(users=24, items=60, longest=30)
    whole = config.BERT4Rec(cut=0.0)
    cfg = config.Teacher(batch=1, max_len=6, loss="ce", windows="all", bert4rec=whole)
    batches = TeacherBatches(made, cfg, hides, 0, 1)
    seen: dict[int, set[int]] = {}
    for step in range(batches.order.steps_per_epoch):
        user = int(batches.stretches.users[batches.order(step)][0])
        for group in batches(step):
            shown = np.where(group.history == HIDDEN, group.positive, group.history)
            seen.setdefault(user, set()).update((shown if hides else group.positive)[shown > 0])
    for user in made.eligible("train"):
        items, _ = made.train[user]
        assert seen[user] == set(items[0 if hides else 1 :])
