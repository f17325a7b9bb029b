"""Permuted histories, to see which model notices: seeded by user, so the same for every model (E6, E8).

Items move, with their titles and vectors; dates and numbers stay where they are (D21).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from llmsrec_jax import config
from llmsrec_jax.data import counter, storage
from llmsrec_jax.data.interactions import UserSequences
from llmsrec_jax.data.splits import Dataset

FILE = "order.npz"


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


def shuffled_training(dataset: Dataset, seed: int) -> UserSequences:
    """Every training sequence of `dataset` permuted once, target included (E6)."""
    users = np.arange(len(dataset))
    return shuffle(dataset.train, users, 0, seed, "training order", 0)


def shuffled_test(
    dataset: Dataset, users: np.ndarray, cfg: config.Config, number: int
) -> UserSequences:
    """What is shown of `users` in the test, in their order number 1, 2, .. (E8)."""
    histories = dataset.inputs("test", users)
    recent = cfg.prompts.history_len if cfg.order.scope == "window" else 0
    return shuffle(histories, users, recent, cfg.seed, "test order", number)


def save(folder: Path, permuted: UserSequences) -> None:
    """The order of all of them, as one file that every model reads."""
    storage.write_arrays(folder / FILE, items=permuted.items)


def load(folder: Path, original: UserSequences) -> UserSequences:
    """Those of `original` (int32 [items of all]) as they were saved in another order.

    Raises:
      ValueError: the file is missing or damaged, or of other sequences.
    """
    items = storage.read_arrays(folder / FILE).get("items")
    if items is None or items.shape != original.items.shape:
        raise ValueError(storage.damaged(folder / FILE, "it is not of these sequences"))
    return replace(original, items=items)


def changed(histories: UserSequences, permuted: UserSequences) -> np.ndarray:
    """bool [n]: histories that are not what they were; those of one item never change."""
    moved = histories.items != permuted.items
    return np.bincount(histories.rows, weights=moved, minlength=len(histories)) > 0
