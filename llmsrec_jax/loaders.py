"""Data and prompts become batches. A batch is a pure function of (seed, step); grain prefetches and keeps the position.

Because of that, resuming is starting at a step number, and the batches do not depend on how the run was interrupted.
Nor do they depend on the number of processes: each builds the rows of its own devices (`mine`: their places among all
`devices`; None = all), in shapes chosen for the whole batch, so that all of them run the same program.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from llmsrec_jax import config, parallel
from llmsrec_jax.batch import LLMBatch, PromptBatch, SequenceBatch
from llmsrec_jax.data import sampling
from llmsrec_jax.data.interactions import UserSequences
from llmsrec_jax.data.splits import Dataset
from llmsrec_jax.prompts import plan
from llmsrec_jax.prompts.prompts import PromptBuilder, Prompts

# windows of a batch: groups of similar length, compiled shapes at most
TEACHER_GROUPS, TEACHER_SHAPES = 4, 3
Lengths = tuple[np.ndarray, np.ndarray]  # of prompts: int [n] prefix and live tokens


def stream(build: Callable[[int], Any], first: int, last: int) -> Iterator[Any]:
    """`build(step)` for first <= step < last, prefetched by one background thread."""
    import grain

    steps = grain.MapDataset.range(first, last).map(build)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


class EpochOrder:
    """Which users make up a step: a fresh permutation every epoch, whole batches only, a function of (seed, step)."""

    def __init__(self, users: np.ndarray, batch: int, seed: int):
        if len(users) == 0:
            raise ValueError(
                "no user has enough training interactions; lower data.min_user or check the data"
            )
        self.users, self.seed = users, seed
        self.batch = min(batch, len(users))
        self.steps_per_epoch = len(users) // self.batch
        self._cached: tuple[int, np.ndarray] = (-1, users)

    def __call__(self, step: int) -> np.ndarray:
        epoch, within = divmod(step, self.steps_per_epoch)
        cached, order = self._cached
        if cached != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.users)
            self._cached = (epoch, order)
        return order[within * self.batch : (within + 1) * self.batch]


def per_device(users: int, devices: int, field: str) -> int:
    """Rows of each device.

    Raises:
      ValueError: the batch does not divide over the devices.
    """
    if users % devices:
        raise ValueError(
            f"{field}={users} does not divide over {devices} devices; "
            f"use a multiple of {devices}, or fewer devices (mesh.devices, or fewer processes)"
        )
    return users // devices


def own(devices: int, mine: Sequence[int] | None) -> list[int]:
    """Places of this process's devices among all."""
    return list(range(devices) if mine is None else mine)


class TeacherBatches:
    """SASRec's training batches: windows of similar length grouped, so that short users cost little (S2)."""

    def __init__(
        self,
        dataset: Dataset,
        cfg: config.Teacher,
        seed: int,
        devices: int,
        mine: Sequence[int] | None = None,
    ):
        self.dataset, self.cfg, self.seed, self.devices = dataset, cfg, seed, devices
        self.mine = own(devices, mine)
        users = dataset.eligible("train")
        self.order = EpochOrder(users, cfg.batch, seed)
        self.rows = per_device(self.order.batch, devices, "teacher.batch")
        self.lengths = np.minimum(dataset.train.lengths - 1, cfg.max_len)
        self.shapes = plan.plan_groups(
            *(np.zeros(len(users), np.int64), self.lengths[users]),
            *(self.rows, TEACHER_GROUPS, TEACHER_SHAPES, seed),
        )

    def __call__(self, step: int) -> tuple[SequenceBatch, ...]:
        """Groups of arrays [own devices, rows, T]."""
        users = self.order(step)
        shards = users.reshape(self.devices, self.rows)
        shards = np.take_along_axis(
            shards, np.argsort(self.lengths[shards], axis=1, kind="stable"), 1
        )
        lengths = self.lengths[shards]
        shape = plan.choose(self.shapes, np.zeros_like(lengths), lengths)
        return parallel.stack([self._shard(shards[device], shape, step) for device in self.mine])

    def _shard(self, users: np.ndarray, shape: Any, step: int) -> tuple[SequenceBatch, ...]:
        groups, start, epoch = [], 0, step // self.order.steps_per_epoch
        for rows, _, width in shape:
            members = users[start : start + rows]
            start += rows
            window = windows(self.dataset.train, members, min(width, self.cfg.max_len) + 1)
            history = window[:, :-1]
            # the first item has no input to predict it from
            positive = np.where(history > 0, window[:, 1:], 0)
            negative = sampling.teacher_negatives(
                self.dataset, members, positive, self.cfg.negatives, self.seed, epoch
            )
            groups.append(SequenceBatch(history, positive, negative))
        return tuple(groups)


def windows(sequences: UserSequences, rows: np.ndarray, width: int) -> np.ndarray:
    """int32 [n, width]: the last `width` items of each user, left-padded with 0."""
    ends = sequences.offsets[rows + 1][:, None]
    index = ends - width + np.arange(width)[None, :]
    live = index >= sequences.offsets[rows][:, None]
    return np.where(live, sequences.items[np.where(live, index, 0)], 0).astype(np.int32)


class LLMBatches:
    """LLM-SRec's training batches: every user's prompt for its last training item, and its candidates' prompts."""

    def __init__(
        self,
        dataset: Dataset,
        users: np.ndarray,
        builder: PromptBuilder,
        cf_user_repr: np.ndarray,
        cfg: config.Config,
        devices: int,
        mine: Sequence[int] | None = None,
    ):
        """`users` int32 [n]; `cf_user_repr` float32 [n, E], the teacher's vectors of their training inputs."""
        self.dataset, self.cfg, self.devices, self.builder = dataset, cfg, devices, builder
        self.mine = own(devices, mine)
        self.order = EpochOrder(np.arange(len(users)), cfg.train.batch, cfg.seed)
        self.rows = per_device(self.order.batch, devices, "train.batch")
        self.users, self.cf_user_repr = users, cf_user_repr
        self.targets = dataset.targets("train", users)
        self.items = builder.items(np.arange(1, dataset.catalog.size))
        self.user_lengths = builder.user_lengths(dataset.inputs("train", users))
        self.item_lengths = self.items.prefix_len, self.items.live_lengths
        groups, rest = cfg.train.length_groups, (cfg.train.shapes, cfg.seed)
        self.user_shapes = plan.plan_groups(*self.user_lengths, self.rows, groups, *rest)
        candidates = self.rows * (1 + cfg.train.negatives)
        self.item_shapes = plan.plan_groups(
            *self.item_lengths, candidates, max(groups - 1, 1), *rest
        )

    def __call__(self, step: int) -> LLMBatch:
        """Arrays [own devices, ...]; users of a device sorted by prompt length."""
        rows = self.order(step).reshape(self.devices, self.rows)
        rows = np.stack([_by_length(self.user_lengths, r) for r in rows])
        candidates = self._candidates(rows, step // self.order.steps_per_epoch)
        item_rows = candidates.reshape(self.devices, -1) - 1
        item_rows = np.stack([_by_length(self.item_lengths, r) for r in item_rows])
        user_shape, item_shape = self._shapes(rows, item_rows)
        shards = []
        for device in self.mine:
            users, items = rows[device], item_rows[device]
            position = np.empty(self.dataset.catalog.size, np.int32)
            position[items + 1] = np.arange(len(items))  # any prompt of an item: they are equal
            prompts = self.builder.users(self.dataset.inputs("train", self.users[users]))
            shards.append(
                LLMBatch(
                    users=_groups(prompts, np.arange(len(users)), user_shape),
                    items=_groups(self.items, items, item_shape),
                    candidates=position[candidates[device]],
                    cf_user_repr=self.cf_user_repr[users],
                )
            )
        return parallel.stack(shards)

    def _shapes(self, users: np.ndarray, items: np.ndarray) -> tuple[Any, Any]:
        """Shapes of the users' and of the items' prompts: of one rank, so that there are as many programs as ranks.

        The cheapest rank that holds both: one that costs more need not hold what a cheaper one does.
        """
        last = max(len(self.user_shapes), len(self.item_shapes)) - 1
        at = lambda shapes, rank: shapes[min(rank, len(shapes) - 1)]
        for rank in range(last):
            pair = at(self.user_shapes, rank), at(self.item_shapes, rank)
            fits = _holds(pair[0], self.user_lengths, users)
            if fits and _holds(pair[1], self.item_lengths, items):
                return pair
        return self.user_shapes[-1], self.item_shapes[-1]

    def _candidates(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        """int32 [devices, n, C] of rows [devices, n]."""
        negatives = sampling.train_negatives(
            self.dataset,
            self.users[rows.reshape(-1)],
            epoch,
            self.cfg.train.negatives,
            self.cfg.train.exclude,
            self.cfg.seed,
        )
        return np.concatenate(
            [self.targets[rows][..., None], negatives.reshape(*rows.shape, -1)], axis=2
        )


def _by_length(lengths: Lengths, rows: np.ndarray) -> np.ndarray:
    prefix, live = (length[rows] for length in lengths)
    return rows[np.lexsort((prefix, prefix + live))]


def _holds(shape: Any, lengths: Lengths, rows: np.ndarray) -> bool:
    """Whether every device's rows [devices, n] fit."""
    return plan.holds(shape, *(length[rows] for length in lengths))


def _groups(prompts: Prompts, rows: np.ndarray, shape: Any) -> tuple[PromptBatch, ...]:
    groups, start = [], 0
    for one in shape:
        groups.append(plan.fill(prompts, rows[start : start + one[0]], one))
        start += one[0]
    return tuple(groups)


def encoding_batches(
    prompts: Prompts,
    rows: int,
    devices: int,
    max_shapes: int,
    mine: Sequence[int] | None = None,
) -> Iterator[tuple[list[np.ndarray], PromptBatch]]:
    """All prompts once, globally sorted: (row indices of every device, batch [own devices, rows, ..])."""
    blocks = _blocks(prompts.prefix_len, prompts.live_lengths, rows, devices, max_shapes)
    for group, shape in blocks:
        shards = [plan.fill(prompts, group[device], shape) for device in own(devices, mine)]
        yield group, parallel.stack(shards)


def _blocks(
    prefix: np.ndarray, live: np.ndarray, rows: int, devices: int, max_shapes: int
) -> Iterator[tuple[list[np.ndarray], Any]]:
    """Blocks of one shape, one per device.

    The last rows of a block may repeat a row; writing results by row index makes that harmless.
    """
    by_shape: dict[Any, list[np.ndarray]] = {}
    for index, shape in plan.plan_sorted(prefix, live, rows, max_shapes):
        by_shape.setdefault(shape, []).append(index)
    for shape, blocks in by_shape.items():
        blocks += [blocks[-1]] * (-len(blocks) % devices)
        for start in range(0, len(blocks), devices):
            yield blocks[start : start + devices], shape


def window_batches(
    histories: UserSequences,
    max_len: int,
    rows: int,
    devices: int,
    mine: Sequence[int] | None = None,
) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """Left-padded teacher windows of all users, grouped by length.

    Yields (row indices of every device, int32 [own devices, rows, T]).
    """
    lengths = np.minimum(histories.lengths, max_len)
    blocks = _blocks(np.zeros_like(lengths), lengths, rows, devices, max_shapes=4)
    for group, shape in blocks:
        width = min(shape.live, max_len)
        shards = [windows(histories, group[device], width) for device in own(devices, mine)]
        yield group, parallel.stack(shards)
