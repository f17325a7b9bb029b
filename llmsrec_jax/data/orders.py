"""Permuted histories, to see which model notices: seeded by user, so the same for every model (E6, E8).

Items move, with their titles and vectors; dates and numbers stay where they are (D21).
"""

from dataclasses import replace

import numpy as np

from llmsrec_jax import config
from llmsrec_jax.data import counter
from llmsrec_jax.data.interactions import UserSequences
from llmsrec_jax.data.splits import Dataset


def shuffle(
    histories: UserSequences, users: np.ndarray, recent: int, seed: int, stream: str, number: int
) -> UserSequences:
    """Every history in an order of its own, drawn by (seed, stream, number, user) and nothing else.

    users: int [n], rows of the dataset. recent: only so many of the last items are permuted; 0 = all.
    """
    rows, lengths = histories.rows, histories.lengths
    position = np.arange(len(rows)) - histories.offsets[rows]
    draw = counter.bits(seed, stream, number, np.asarray(users)[rows], position)
    fixed = position < (lengths[rows] - recent if recent else 0)
    place = np.where(fixed, position.astype(np.uint64), draw)
    order = np.lexsort((place, ~fixed, rows))
    return replace(histories, items=histories.items[order])


def shuffled_training(dataset: Dataset, seed: int) -> Dataset:
    """`dataset` with every training sequence permuted once, target included; the rest as it was (E6)."""
    users = np.arange(len(dataset))
    return replace(dataset, train=shuffle(dataset.train, users, 0, seed, "training order", 0))


def test_histories(
    dataset: Dataset, users: np.ndarray, cfg: config.Config, number: int
) -> UserSequences:
    """What is shown of `users` in the test, in their order number 1, 2, .. (E8); 0 is the original."""
    histories = dataset.inputs("test", users)
    if not number:
        return histories
    recent = cfg.prompts.history_len if cfg.order.scope == "window" else 0
    return shuffle(histories, users, recent, cfg.seed, "test order", number)


def changed(histories: UserSequences, permuted: UserSequences) -> np.ndarray:
    """bool [n]: histories that are not what they were; those of one item never change."""
    moved = histories.items != permuted.items
    return np.bincount(histories.rows, weights=moved, minlength=len(histories)) > 0
