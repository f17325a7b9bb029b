"""Data and prompts become batches. A batch is a pure function of (seed, step); grain prefetches and keeps the position.

Because of that, resuming is starting at a step number, and the batches do not depend on how the run was interrupted.
Nor do they depend on the number of processes: each builds the rows of its own devices (`mine`: their places among all
`devices`; None = all), in shapes chosen for the whole batch, so that all of them run the same program.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llmsrec_jax import config, parallel
from llmsrec_jax.batch import HIDDEN, AlignBatch, LLMBatch, PromptBatch, SequenceBatch
from llmsrec_jax.data import counter, sampling
from llmsrec_jax.data.interactions import Histories, UserSequences
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.data.splits import Dataset
from llmsrec_jax.data.stretches import Stretches
from llmsrec_jax.prompts import layout, plan, trunks
from llmsrec_jax.prompts.prompts import LatePrompts, PromptBuilder, Prompts
from llmsrec_jax.prompts.trunks import Trunks
from llmsrec_jax.stores import ItemStore

# windows of a batch: groups of similar length, compiled shapes at most
TEACHER_GROUPS, TEACHER_SHAPES = 4, 3
TEACHER_ROWS = 512  # windows per encoding step


def stream(build: Callable[[int], Any], first: int, last: int) -> Iterator[Any]:
    """`build(step)` for first <= step < last, prefetched by one background thread."""
    import grain

    steps = grain.MapDataset.range(first, last).map(build)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


class EpochOrder:
    """Which users make up a step: a fresh permutation every epoch, whole batches only, a function of (seed, step).

    Or which samples, told by their `trunks`: runs are permuted, and those of a run follow one another, so that they meet in a
    batch. A batch holds as many samples as it does without runs; where it ends, it cuts one.
    """

    def __init__(self, users: np.ndarray, batch: int, seed: int, trunks: Trunks | None = None):
        if len(users) == 0:
            raise ValueError(
                "no user has two training items, one to learn and one before it; lower data.min_user or check the data"
            )
        self.users, self.seed, self._trunks = users, seed, trunks
        self.batch = min(batch, len(users))
        self.steps_per_epoch = len(users) // self.batch
        self._cached: tuple[int, np.ndarray] = (-1, users)

    def __call__(self, step: int) -> np.ndarray:
        epoch, within = divmod(step, self.steps_per_epoch)
        cached, order = self._cached
        if cached != epoch:
            order = self._order(np.random.default_rng((self.seed, epoch)))
            self._cached = (epoch, order)
        return order[within * self.batch : (within + 1) * self.batch]

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        if self._trunks is None:
            return rng.permutation(self.users)
        return self.users[self._trunks.ordered(rng.permutation(len(self._trunks.sizes)))]


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


def drawn(cfg: config.Teacher) -> int:
    """Negatives per column of a CF-SRec's batches; a loss over the catalogue needs none."""
    return 0 if cfg.loss == "ce" else cfg.negatives


class TeacherBatches:
    """A CF-SRec's training batches: windows of similar length grouped, so that short users cost little (S2-S5)."""

    def __init__(
        self,
        dataset: Dataset,
        cfg: config.Teacher,
        hides: bool,
        seed: int,
        devices: int,
        mine: Sequence[int] | None = None,
    ):
        """hides: items of whole sequences are hidden and to be guessed, else the next item is (BERT4Rec)."""
        self.dataset, self.cfg, self.seed, self.devices = dataset, cfg, seed, devices
        self.mine, self.hides = own(devices, mine), hides
        self.stretches = Stretches.last(dataset.eligible("train"))
        if cfg.windows == "all":
            longest = cfg.max_len + (not hides)
            of = dataset.train, self.stretches.users
            self.stretches = Stretches.every(*of, longest, cfg.max_len)
        every = np.arange(len(self.stretches.users))
        self.order = EpochOrder(every, cfg.batch, seed)
        self.rows = per_device(self.order.batch, devices, "teacher.batch")
        lengths = dataset.train.lengths[self.stretches.users] - (not hides)
        self.lengths = np.minimum(lengths, cfg.max_len)
        self.shapes = plan.plan_windows(
            self.lengths, self.rows, TEACHER_GROUPS, TEACHER_SHAPES, seed
        )

    def __call__(self, step: int) -> tuple[SequenceBatch, ...]:
        """Groups of arrays [own devices, rows, T]."""
        shards = self.order(step).reshape(self.devices, self.rows)
        shards = np.take_along_axis(
            shards, np.argsort(self.lengths[shards], axis=1, kind="stable"), 1
        )
        shape = plan.choose_windows(self.shapes, self.lengths[shards])
        return parallel.stack([self._shard(shards[device], shape, step) for device in self.mine])

    def _shard(
        self, stretches: np.ndarray, shape: plan.Windows, step: int
    ) -> tuple[SequenceBatch, ...]:
        groups, start, epoch = [], 0, step // self.order.steps_per_epoch
        for rows, width in shape:
            members = self.stretches.take(stretches[start : start + rows])
            start += rows
            width = min(width, self.cfg.max_len)
            asked = self._hidden if self.hides else self._next
            history, positive = asked(members, width, epoch)
            negative = sampling.teacher_negatives(
                self.dataset, members, positive, drawn(self.cfg), self.seed, epoch
            )
            groups.append(SequenceBatch(history, positive, negative))
        return tuple(groups)

    def _next(self, of: Stretches, width: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """History and positives int32 [n, width]: every item, and the one that follows it."""
        window = windows(self.dataset.train, of, width + 1)
        history = window[:, :-1]
        # the first item has no input to predict it from
        return history, np.where(history > 0, window[:, 1:], 0)

    def _hidden(self, of: Stretches, width: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """History and positives int32 [n, width]: some items hidden, and what they are (S4).

        Or what follows behind one of them is cut off, and it alone is hidden, as the next one is for a user.
        """
        train, rule = self.dataset.train, self.cfg.bert4rec
        lengths = np.minimum(train.lengths[of.users] - of.back, self.cfg.max_len)
        draws = of.users, of.back, self.seed, epoch
        behind = sampling.cuts(lengths, rule.cut, *draws)
        window = windows(train, of.before(np.maximum(behind, 0)), width)
        hidden = sampling.hidden(window, rule.share, *draws)
        hidden[behind >= 0] = np.arange(width) == width - 1
        return np.where(hidden, HIDDEN, window), np.where(hidden, window, 0)


def windows(sequences: UserSequences, of: Stretches, width: int) -> np.ndarray:
    """int32 [n, width]: the last `width` items of each stretch, left-padded with 0."""
    ends = of.ends(sequences)[:, None]
    index = ends - width + np.arange(width)[None, :]
    live = index >= sequences.offsets[of.users][:, None]
    return np.where(live, sequences.items[np.where(live, index, 0)], 0).astype(np.int32)


class AlignBatches:
    """Batches of A-LLMRec's stage 1: samples, each with an item that its user never took in training (S11)."""

    def __init__(
        self,
        samples: Samples,
        cf_user_repr: np.ndarray,
        batch: int,
        seed: int,
        devices: int,
        mine: Sequence[int] | None = None,
    ):
        """`cf_user_repr` float32 [n, E]: the teacher's vectors of the samples' inputs."""
        self.samples, self.cf_user_repr, self.seed = samples, cf_user_repr, seed
        self.stretches = Stretches(samples.users, samples.later)
        self.devices, self.mine = devices, own(devices, mine)
        self.order = EpochOrder(np.arange(len(samples)), batch, seed)
        self.rows = per_device(self.order.batch, devices, "alignment.batch")

    def __call__(self, step: int) -> AlignBatch:
        """Arrays [own devices, rows, ...]."""
        rows = self.order(step).reshape(self.devices, self.rows)[self.mine]
        samples, positive = self.samples, self.samples.targets[rows]
        of = self.stretches.take(rows.ravel())
        negative = sampling.teacher_negatives(
            *(samples.dataset, of, positive.reshape(-1, 1), 1, self.seed),
            epoch=step // self.order.steps_per_epoch,
        )
        return AlignBatch(self.cf_user_repr[rows], positive, negative.reshape(rows.shape))


def shows_items(order: EpochOrder, step: int, train: config.Train) -> np.ndarray | None:
    """Whether the prompts of a step show item embeddings, a bool []; None = those of every step do (LLaRA's Eq. 4)."""
    if not train.curriculum:
        return None
    share = step / (order.steps_per_epoch * train.epochs)
    return np.asarray(counter.uniform(order.seed, "curriculum", step) < share)


class LLMBatches:
    """LLM-SRec's training batches: the users' prompts of samples, and those of their candidates.

    `train.batch` counts samples. Those of one user whose prompts open alike follow one another in an epoch (`EpochOrder`), and
    go through the LLM as one row (prompts/trunks.py) as far as they are of one device and part.
    """

    def __init__(
        self,
        samples: Samples,
        builder: PromptBuilder,
        cf_user_repr: np.ndarray,
        cfg: config.Config,
        devices: int,
        mine: Sequence[int] | None = None,
        store: ItemStore | None = None,
    ):
        """`cf_user_repr` float32 [n, E]: the teacher's vectors of the samples' inputs."""
        self.samples, self.cfg, self.devices, self.builder = samples, cfg, devices, builder
        self.mine, self.store = own(devices, mine), store
        self.trunks = Trunks.of(builder, samples).in_training(cfg.lora)
        every = np.arange(len(samples))
        self.order = EpochOrder(every, cfg.train.batch, cfg.seed, self.trunks)
        self.rows = per_device(self.order.batch, devices, "train.batch")
        self.parts = parts_of(self.rows, cfg.train.parts or 1)  # 0: nothing has planned it
        self.cf_user_repr, self.targets = cf_user_repr, samples.targets
        items = np.arange(1, samples.dataset.catalog.size)
        self.items = self._owned(builder.items(items), 2 * items)
        lengths = trunks.in_training((self.items.prefix_len, self.items.live_lengths), cfg.lora)
        self.item_trunks = Trunks.apart(lengths)
        rows = self.rows // self.parts
        self.shared = min(rows, self.trunks.most)  # at most so many samples in a row
        self.shapes = plan.plan_steps(
            *(self.trunks, lengths, (rows, rows * (1 + cfg.train.negatives))),
            *(cfg.train.length_groups, cfg.train.shapes, cfg.seed, store is not None),
        )

    def __call__(self, step: int) -> LLMBatch:
        """Arrays [own devices, ...]."""
        rows, item_rows, candidates = self.members(step)
        shape = self._shape(rows, item_rows)
        shown = shows_items(self.order, step, self.cfg.train)
        return parallel.stack(
            [self._shard(rows[d], item_rows[d], candidates[d], shape, shown) for d in self.mine]
        )

    def shape(self, step: int) -> plan.StepShape:
        """Of every part of a step."""
        return self._shape(*self.members(step)[:2])

    def _shape(self, rows: np.ndarray, item_rows: np.ndarray) -> plan.StepShape:
        users, items = self.trunks.rows(rows), self.item_trunks.rows(item_rows)
        return plan.choose_step(self.shapes, users, items)

    def members(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Samples and item prompts int [devices, parts, n], and candidates (item ids) int [devices, samples, C] of a step."""
        rows = self.order(step).reshape(self.devices, self.rows)
        rows = np.stack([self.trunks.deal(r, self.parts) for r in rows])
        candidates = self._candidates(rows, step // self.order.steps_per_epoch)
        item_rows = candidates.reshape(self.devices, -1) - 1
        return (
            rows,
            np.stack([self.item_trunks.deal(r, self.parts) for r in item_rows]),
            candidates,
        )

    def user_prompts(self, rows: np.ndarray) -> Prompts:
        """Of samples [n]."""
        prompts = self.builder.users(self.samples.take(rows), self.cf_user_repr[rows])
        return self._owned(prompts, 2 * self.samples.users[rows] + 1)

    def _owned(self, prompts: Prompts, owner: np.ndarray) -> Prompts:
        """Whose each prompt is, where dropout asks: an item's, or a user's, whose samples may share rows."""
        owned = self.cfg.lora.drops
        return replace(prompts, owner=owner.astype(np.int32)) if owned else prompts

    def _shard(
        self,
        rows: np.ndarray,
        item_rows: np.ndarray,
        candidates: np.ndarray,
        shape: plan.StepShape,
        shown: np.ndarray | None,
    ) -> LLMBatch:
        """Of samples [parts, n], items [parts, m] and candidates [parts * n, C] of one device."""
        parts = [
            self._part(self._rows(some), items, shape)._replace(shows_items=shown)
            for some, items in zip(rows, item_rows, strict=True)
        ]
        return LLMBatch(
            prompts=parallel.stack(parts),
            candidates=among(candidates, item_rows),
            cf_user_repr=self.cf_user_repr[rows.ravel()],
        )

    def _rows(self, samples: np.ndarray) -> Prompts:
        """Prompts of samples [n], those that share a trunk in one row."""
        prompts = self.user_prompts(samples)
        if self.shared == 1:
            return prompts
        shared = np.where(self.trunks.branches(samples), self.trunks.shared[samples], 0)
        return trunks.joined(prompts, shared)

    def _part(self, prompts: Prompts, item_rows: np.ndarray, shape: plan.StepShape) -> PromptBatch:
        users = groups_of(prompts, np.arange(len(prompts)), shape.users, self.shared)
        items = groups_of(self.items, item_rows, shape.items)
        cfg = self.cfg.prompts
        slots = (len(prompts) * cfg.history_len + len(item_rows)) * cfg.item_repr
        live = shape.user_tokens.live + shape.item_tokens.live
        prefix = shape.user_tokens.prefix
        if self.store is None:
            prefix += shape.item_tokens.prefix
        else:
            items = [g._replace(stored=self.store.starts(g.prompts, g.rows)) for g in items]
        batch = layout.fill([*users, *items], slots, layout.Budget(prefix, live))
        return batch if self.store is None else self.store.bring(batch, shape.item_tokens.prefix)

    def _candidates(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        """int32 [devices, parts * n, C] of rows [devices, parts, n]."""
        negatives = sampling.train_negatives(
            self.samples,
            rows.reshape(-1),
            epoch,
            self.cfg.train.negatives,
            self.cfg.train.exclude,
            self.cfg.seed,
        )
        rows = rows.reshape(self.devices, -1)
        return np.concatenate(
            [self.targets[rows][..., None], negatives.reshape(*rows.shape, -1)], axis=2
        )


def among(candidates: np.ndarray, item_rows: np.ndarray) -> np.ndarray:
    """int32, of the shape of `candidates` (item ids): where in `item_rows` (any shape) the prompt of each is; any, of equal ones."""
    position = np.empty(int(item_rows.max()) + 2, np.int32)
    position[item_rows.ravel() + 1] = np.arange(item_rows.size)
    return position[candidates]


def parts_of(users: int, parts: int) -> int:
    """In how many passes through the LLM the users of a device go.

    Raises:
      ValueError: they do not go in equal ones.
    """
    if users % parts:
        raise ValueError(
            f"train.parts={parts} does not divide the {users} users of a device and step; use a divisor"
        )
    return parts


def groups_of(
    prompts: Prompts, rows: np.ndarray, shapes: Sequence[layout.Shape], outs: int = 1
) -> list[layout.Group]:
    """Prompts `rows`, as many in each group as its shape has rows, one after the other."""
    ends = np.cumsum([shape.rows for shape in shapes])[:-1]
    return [
        layout.Group(prompts, some, shape, outs=outs)
        for some, shape in zip(np.split(rows, ends), shapes, strict=True)
    ]


def encoding_batches(
    prompts: Prompts | LatePrompts,
    rows: int,
    devices: int,
    max_shapes: int,
    mine: Sequence[int] | None = None,
    store: ItemStore | None = None,
    outs: int = 1,
) -> Iterator[tuple[list[np.ndarray], PromptBatch]]:
    """All prompts once, globally sorted: (row indices of every device, batch [own devices, ...]).

    store: of items, where their prefixes are at hand. outs: tokens that a prompt is asked for, at most.
    """
    planned = plan.plan_sorted if store is None else plan.plan_stored
    blocks = planned(prompts.prefix_len, prompts.live_lengths, rows, max_shapes)
    slots = int(prompts.slots.max(initial=0))

    def shard(index: np.ndarray, shape: layout.Shape) -> PromptBatch:
        some, every = prompts.take(index), np.arange(len(index))
        at_hand = None if store is None else store.starts(some, every)
        group = layout.Group(some, every, shape, at_hand, outs)
        batch = layout.fill([group], slots * shape.rows)
        return batch if store is None else store.bring(batch, shape.rows * shape.prefix)

    for index, shape in _dealt(blocks, devices):
        yield index, parallel.stack([shard(index[device], shape) for device in own(devices, mine)])


def _dealt(
    planned: list[tuple[np.ndarray, layout.Shape]], devices: int
) -> Iterator[tuple[list[np.ndarray], layout.Shape]]:
    """Blocks of one shape, one per device.

    The last rows of a block may repeat a row; writing results by row index makes that harmless.
    """
    by_shape: dict[layout.Shape, list[np.ndarray]] = {}
    for index, shape in planned:
        by_shape.setdefault(shape, []).append(index)
    for shape, blocks in by_shape.items():
        blocks += [blocks[-1]] * (-len(blocks) % devices)
        for start in range(0, len(blocks), devices):
            yield blocks[start : start + devices], shape


def window_batches(
    histories: Histories,
    max_len: int,
    rows: int,
    devices: int,
    mine: Sequence[int] | None = None,
) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """Left-padded teacher windows of all users, grouped by length.

    Yields (row indices of every device, int32 [own devices, rows, T]).
    """
    lengths = np.minimum(histories.lengths, max_len)
    blocks = plan.plan_sorted(np.zeros_like(lengths), lengths, rows, max_shapes=4)
    for group, shape in _dealt(blocks, devices):
        width = min(shape.live, max_len)
        some = [histories.take(group[device]) for device in own(devices, mine)]
        last = [Stretches.last(np.arange(len(one))) for one in some]
        yield group, parallel.stack([windows(*one, width) for one in zip(some, last, strict=True)])
