"""What LLM-SRec is trained on: the beginnings of training sequences, each with the item that follows it (E21)."""

from dataclasses import dataclass

import numpy as np

from llmsrec_jax.data.interactions import UserSequences, spans
from llmsrec_jax.data.splits import Dataset


@dataclass(frozen=True, eq=False)
class Samples:
    """n samples of a dataset. Inputs are copied when they are taken: those of all positions would fill the memory."""

    dataset: Dataset
    users: np.ndarray  # int [n] rows of the dataset
    ends: np.ndarray  # int64 [n] place of the target in `dataset.train.items`

    @classmethod
    def of(cls, dataset: Dataset, users: np.ndarray, targets: str) -> "Samples":
        """Of `users`, int [m] with at least two training items, one after the other.

        targets: last = one each, of the last training item | all = one of every item but the first, in order of time.
        """
        ends = dataset.train.offsets[users + 1]
        counts = np.ones(len(users), np.int64)
        if targets == "all":
            counts = dataset.train.lengths[users] - 1
        return cls(dataset, np.repeat(users, counts), spans(ends - counts, counts))

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n] of the inputs."""
        return self.ends - self.dataset.train.offsets[self.users]

    @property
    def later(self) -> np.ndarray:
        """int64 [n]: how many training items follow the target."""
        return self.dataset.train.offsets[self.users + 1] - 1 - self.ends

    @property
    def targets(self) -> np.ndarray:
        """int32 [n]."""
        return self.dataset.train.items[self.ends]

    def take(self, rows: np.ndarray) -> UserSequences:
        """Inputs of samples `rows`, in that order."""
        rows = np.asarray(rows, np.int64)
        return self.dataset.train.beginnings(self.users[rows], self.lengths[rows])
