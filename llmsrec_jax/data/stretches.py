"""Which stretches of users' training sequences a CF-SRec is trained on."""

from typing import NamedTuple

import numpy as np

from llmsrec_jax.data.interactions import UserSequences, spans


class Stretches(NamedTuple):
    """n of them."""

    users: np.ndarray  # int [n] rows of the sequences
    back: np.ndarray  # int64 [n] items of the user's sequence behind each

    @classmethod
    def last(cls, users: np.ndarray) -> "Stretches":
        """The ends of the sequences of `users`."""
        return cls(users, np.zeros(len(users), np.int64))

    @classmethod
    def every(cls, train: UserSequences, users: np.ndarray, longest: int, step: int) -> "Stretches":
        """Of `longest` items, as few as follow one another by at most `step` and leave out nothing; evenly spaced, user by user,
        the end first.
        """
        beyond = np.maximum(train.lengths[users] - longest, 0)
        more = -(-beyond // step)
        number = spans(np.zeros_like(more), more + 1)
        row = np.repeat(np.arange(len(users)), more + 1)
        back = number * beyond[row] // np.maximum(more[row], 1)
        return cls(users[row], back.astype(np.int64))

    def ends(self, train: UserSequences) -> np.ndarray:
        """int64 [n]: where in `train.items` each ends."""
        return train.offsets[self.users + 1] - self.back

    def before(self, behind: np.ndarray) -> "Stretches":
        """Those that end so many items (int [n]) earlier."""
        return Stretches(self.users, self.back + behind)

    def take(self, rows: np.ndarray) -> "Stretches":
        """Stretches `rows`, of any shape."""
        return Stretches(self.users[rows], self.back[rows])
