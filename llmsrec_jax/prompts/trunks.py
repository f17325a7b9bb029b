"""Samples whose prompts open alike are computed as one row: a trunk, and behind it what else each of them says (E21).

Of a user's prompts, the next one often is this one but for the words that close it: up to the item from which on the window
moves. The latest prompt of such a run stands in the row as it is: the trunk. Each earlier one adds a branch, the tokens that
it does not share; they go on from where they leave the trunk and see nothing behind it but themselves, so they are what they are in a
prompt of their own. Token ids decide what is shared, not what is known about templates, windows or tokenizers.

Samples are numbered by time. In a batch those of a row follow one another, the latest first; a run may be cut anywhere.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from llmsrec_jax import config
from llmsrec_jax.data.interactions import offsets_of, spans
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.prompts.prompts import Branches, PromptBuilder, Prompts

Lengths = tuple[np.ndarray, np.ndarray]  # int [..., n] prefix and live tokens


def in_training(lengths: Lengths, lora: config.Lora) -> Lengths:
    """Prefix and live tokens where prompts of these lengths are trained on.

    What stands before the first slot is constant only while nothing trains that it passes through: with LoRA, all is live.
    """
    prefix, live = lengths
    return (np.zeros_like(prefix), prefix + live) if lora.trains else lengths


@dataclass(frozen=True, eq=False)
class Trunks:
    """Of n samples: the lengths of their prompts, and what these share.

    A run is samples of one user, neighbours in time, each of which shares more than the constant prefix with the next one, and
    no less than the one before it.
    """

    prefix: np.ndarray  # int [n] tokens before the first slot
    live: np.ndarray  # int [n] tokens from there on
    shared: np.ndarray  # int64 [n] tokens that prompt i has in common with those of the later samples of its run; 0 = it ends one

    @classmethod
    def apart(cls, lengths: Lengths) -> "Trunks":
        """Of prompts that share nothing."""
        return cls(*lengths, np.zeros(len(lengths[1]), np.int64))

    @classmethod
    def of(cls, builder: PromptBuilder, samples: Samples) -> "Trunks":
        """Of samples user by user, by time."""
        prefix, live = builder.user_lengths(samples)
        shared = np.zeros(len(live), np.int64)
        pairs = np.flatnonzero(samples.users[1:] == samples.users[:-1])
        shared[pairs] = builder.in_common(samples, pairs)
        shared[shared <= prefix] = 0  # nothing but what is constant anyway
        # a branch is cut from the row's latest prompt: it must hold what the next one shares with that
        shared[:-1][(shared[:-1] > shared[1:]) & (shared[1:] > 0)] = 0
        return cls(prefix, live, shared)

    def in_training(self, lora: config.Lora) -> "Trunks":
        """As these samples are trained on."""
        prefix, live = in_training(self.lengths, lora)
        return replace(self, prefix=prefix, live=live)

    def __len__(self) -> int:
        return len(self.live)

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64 [m] samples of every run: all that may share a row."""
        return np.diff(np.flatnonzero(self.shared == 0), prepend=-1)

    @property
    def most(self) -> int:
        """Samples of the longest run."""
        return int(self.sizes.max())

    @property
    def lengths(self) -> Lengths:
        """Of every prompt by itself."""
        return self.prefix, self.live

    @cached_property
    def widest(self) -> int:
        """Most live tokens of a row."""
        own = np.where(self.shared > 0, self.prefix + self.live - self.shared, self.live)
        return int(np.add.reduceat(own, np.cumsum(self.sizes) - self.sizes).max())

    def ordered(self, runs: np.ndarray) -> np.ndarray:
        """int64: the samples of `runs` (int [m]), run by run."""
        ends, sizes = np.cumsum(self.sizes)[runs], self.sizes[runs]
        return np.repeat(2 * ends - sizes - 1, sizes) - spans(ends - sizes, sizes)

    def drawn(self, rows: int, passes: int, rng: np.random.Generator) -> np.ndarray:
        """int64 [passes, rows]: samples of random runs, the first of which may be cut."""
        runs = rng.integers(len(self.sizes), size=(passes, rows))
        sizes = self.sizes[runs]
        begin = offsets_of(sizes.sum(axis=1))[:-1] + np.arange(passes) * sizes[:, 0] // passes
        return self.ordered(runs.ravel())[begin[:, None] + np.arange(rows)]

    def branches(self, samples: np.ndarray) -> np.ndarray:
        """bool [..., n]: which of samples (int [..., n], one after the other) go on in the row of the one before."""
        after = np.zeros(samples.shape, bool)
        after[..., 1:] = samples[..., 1:] == samples[..., :-1] - 1
        return after & (self.shared[samples] > 0)

    def rows(self, samples: np.ndarray) -> Lengths:
        """Prefix and live tokens int64 [..., n] of the rows of samples int [..., n], sorted: those that are not needed are empty."""
        _, prefix, live = self._rows(samples)
        order = np.lexsort((prefix, prefix + live), axis=-1)
        return np.take_along_axis(prefix, order, -1), np.take_along_axis(live, order, -1)

    def _rows(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The row of each of samples [..., n], counted from 0; prefix and live tokens [..., n] of the rows."""
        is_branch, n = self.branches(samples), samples.shape[-1]
        row = np.cumsum(~is_branch, axis=-1) - 1
        flat = row.reshape(-1, n) + n * np.arange(row.size // n)[:, None]
        prefix, live, shared = (x[samples] for x in (self.prefix, self.live, self.shared))
        live = np.where(is_branch, prefix + live - shared, live)
        add = lambda x: np.bincount(flat.ravel(), x.ravel(), row.size).astype(np.int64)
        prefix, live = add(np.where(is_branch, 0, prefix)), add(live)
        return row, prefix.reshape(row.shape), live.reshape(row.shape)

    def deal(self, samples: np.ndarray, parts: int) -> np.ndarray:
        """int [parts, n]: samples int [parts * n] dealt out so that no part has all the long rows; each sorted by length.

        A row that a part has no room for is cut: its end is in the next part.
        """
        dealt = samples[self._turns(samples, parts)].reshape(parts, -1)
        return np.stack([part[self._turns(part, 1)] for part in dealt])

    def _turns(self, samples: np.ndarray, parts: int) -> np.ndarray:
        """int [n]: the order of samples [n], part by part, in which no row is cut."""
        row, prefix, live = self._rows(samples)
        prefix, live = prefix[: row[-1] + 1], live[: row[-1] + 1]
        turn, part = np.divmod(np.argsort(np.lexsort((prefix, prefix + live))), parts)
        part = np.where(turn % 2, parts - 1 - part, part)
        return np.argsort((part * len(samples) + turn)[row], kind="stable")


def joined(prompts: Prompts, shared: np.ndarray) -> Prompts:
    """As many rows as there are prompts, in order: the empty ones first.

    shared: int [n] tokens that each prompt has in common with the row which it goes on; 0 = it begins a row.
    """
    begins, n = shared == 0, len(prompts)
    own = prompts.lengths - shared
    source = spans(prompts.offsets[:-1] + shared, own)
    row = np.cumsum(begins) - 1 + n - np.count_nonzero(begins)
    offsets = offsets_of(np.bincount(row, own, n).astype(np.int64))
    prefix_len = np.zeros(n, np.int32)
    prefix_len[row[begins]] = prompts.prefix_len[begins]
    before = offsets_of(own)[:-1] - offsets[row]  # tokens of the row
    owner = None
    if prompts.owner is not None:  # the same of all prompts in a row, which are a user's
        owner = np.zeros(n, np.int32)
        owner[row] = prompts.owner
    hidden = np.stack([shared, np.where(begins, 0, before)], axis=1).astype(np.int32)
    return replace(
        prompts,
        ids=prompts.ids[source],
        kind=prompts.kind[source],
        slot_item=prompts.slot_item[source],
        offsets=offsets,
        prefix_len=prefix_len,
        owner=owner,
        branches=Branches(spans(shared, own).astype(np.int32), np.repeat(hidden, own, axis=0)),
    )
