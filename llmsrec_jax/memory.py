"""What training needs of every device's memory, told from shapes alone, before anything is loaded or compiled.

The step that counts is the dearest of those that simulated batches take. One of only the longest prompts, which hardly ever
comes, may need more (`Job.worst`). Retrieval is here, title generation in title_memory.py. What passes through the LLM need is in llama/footprint.py, with what is assumed of devices
that were not measured.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from flax import nnx

from llmsrec_jax import config, parallel, processes, rules, stores
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.llama.config import LlamaConfig
from llmsrec_jax.llama.footprint import Footprint, LowRank, Pass
from llmsrec_jax.llama.lora import TARGETS
from llmsrec_jax.llama.sharding import FSDP, TENSOR
from llmsrec_jax.llama.weights import compute_dtype
from llmsrec_jax.models import llm4rec
from llmsrec_jax.prompts import layout, plan, trunks
from llmsrec_jax.prompts.prompts import PromptBuilder
from llmsrec_jax.prompts.trunks import Trunks

MIB, GIB = 1 << 20, 1 << 30
MARGIN = 1.15  # what is asked for beyond the estimate: it may be so much too low
FP32 = 4  # bytes of everything that trains
PROJECTED = 6  # [slots, D] of the projectors that their backward pass needs
# at most so many are simulated: a longer run may meet a shape that none of them takes
PASSES = 4000


class Needs(NamedTuple):
    """Bytes on each device."""

    trained: int  # with Adam's two moments
    batch: int
    step: int  # activations and gradients
    encoding: int  # a block of prompts or windows, in validations
    weights: int = 0  # of the frozen backbone
    teacher: int = 0  # its item vectors or the joint ones, and those of titles
    store: int = 0  # keys and values of item prefixes
    filling: int = 0  # of the store, once

    @property
    def kept(self) -> int:
        """What is there all the time."""
        return self.weights + self.teacher + self.trained + self.store

    @property
    def program(self) -> int:
        """What XLA counts for a training step: arguments and temporary memory."""
        return self.kept + self.batch + self.step

    @property
    def total(self) -> int:
        """At most at any time; while a step is computed the next batch comes in."""
        return self.kept + max(2 * self.batch + self.step, self.filling, self.encoding)

    def listed(self, limit: int | None) -> str:
        """In words; limit: bytes of each device, None = unknown."""
        sizes = {"weights": self.weights, "item vectors": self.teacher}
        sizes |= {"trainables and Adam": self.trained, "item store": self.store}
        sizes |= {"batches": 2 * self.batch, "activations and gradients": self.step}
        sizes |= {"or filling the store": self.filling, "or validation": self.encoding}
        listed = ", ".join(f"{what} {shown(size)}" for what, size in sizes.items() if size)
        of = "" if limit is None else f" of {shown(limit)}"
        return f"memory per device: {shown(self.total)}{of} ({listed})"


def shown(size: float) -> str:
    """Bytes, in words."""
    return f"{size / GIB:.3g} GiB" if size >= GIB else f"{size / MIB:.3g} MiB"


def fits(size: int, limit: int | None) -> bool:
    """Whether so many estimated bytes fit; limit None: unknown, so they do."""
    return limit is None or MARGIN * size <= limit


@dataclass(frozen=True)
class Job(ABC):
    """What is to be trained, as far as memory goes."""

    cfg: config.Config
    llama: LlamaConfig
    devices: int
    batch: int  # samples per step, over all devices
    steps: int  # 0: training is over, vectors are still to be made
    _planned: dict[Any, Any] = field(default_factory=dict, kw_only=True)  # a cache

    @abstractmethod
    def needs(self, parts: int, store: str, shape: Any = None) -> Needs:
        """With `parts` passes per step and the item store `store`. shape: of the step; None = the dearest that is likely to come."""

    @abstractmethod
    def _shapes(self, parts: int, store: str) -> tuple[Sequence[Any], Any]:
        """Those that are likely to come, and the one that holds any pass."""

    def worst(self, parts: int, store: str) -> int:
        """Bytes in all, with a step of only the longest prompts."""
        return self.needs(parts, store, self._shapes(parts, store)[1]).total

    @property
    def prefixes(self) -> int:
        """Bytes of those of all items."""
        return 0

    @property
    def reads(self) -> float:
        """How often training reads an item's prefix."""
        return 0.0

    @property
    def rows(self) -> int:
        """Samples per device and step; a run that only encodes needs no even ones."""
        return max(1, self.batch * self.cfg.mesh.tensor // self.devices)

    def changed(self, changes: dict[str, Any]) -> Self:
        """With other settings, on as many devices as they take.

        Raises:
          ValueError: they are not legal together.
        """
        cfg = config.apply(self.cfg, changes)
        rules.validate(cfg)
        batch, shared = min(self.batch, cfg.train.batch), cfg.mesh.fsdp * cfg.mesh.tensor
        devices = self.devices if self.devices % shared == 0 else shared
        if batch * cfg.mesh.tensor % devices or self.llama.d % shared:
            raise ValueError(f"{changes}: not divisible")
        if cfg.mesh.mode == "pmap" and shared > 1:
            raise ValueError(f"{changes}: not with mesh.mode=pmap")
        return replace(self, cfg=cfg, batch=batch, devices=devices)

    @property
    def _llm(self) -> Footprint:
        cut, llm = {FSDP: self.cfg.mesh.fsdp, TENSOR: self.cfg.mesh.tensor}, self.cfg.llm
        quantised, platform = llm.quant != "none", jax.default_backend()
        return Footprint(self.llama, compute_dtype(llm.dtype), quantised, cut, platform)

    @property
    def _gradients(self) -> int:
        """Bytes of everything that trains."""
        cfg = self.cfg
        settings = map(astuple, (cfg.head, cfg.prompts, cfg.lora))
        options = cfg.teacher.d, self.llama.d, cfg.item_width, *settings
        if options not in self._planned:
            new = lambda: llm4rec.of(cfg, self.llama, (0.0, 1.0), nnx.Rngs(params=0))
            params = jax.tree.leaves(nnx.state(nnx.eval_shape(new)))
            self._planned[options] = FP32 * sum(math.prod(x.shape) for x in params)
        return self._planned[options]

    def _passes(self, parts: int) -> int:
        """How many of training are simulated, to see which shapes come."""
        return min(PASSES, max(self.steps, 1) * self.devices * parts)

    def _trained(self, one: Pass, slots: int, after: int = 0) -> int:
        """Of the backward pass of `one`: activations of the LLM, those of the slots' projections, and gradients.

        after: bytes of what is made of the hidden states, as for `Footprint.training`.
        """
        lora, remat = self.cfg.lora, self.cfg.llm.remat
        names = [TARGETS[target] for target in lora.targets]
        added = LowRank(names, lora.rank, lora.drops) if lora.trains else None
        activations = self._llm.training(one, remat, after, added)
        return self._gradients + PROJECTED * slots * self.llama.d * FP32 + activations

    def _blocks(self, lengths: plan.Lengths, kept: bool) -> set[layout.Shape]:
        """Of prompts to encode, in validations."""
        planned, cfg = plan.plan_stored if kept else plan.plan_sorted, self.cfg.evaluate
        options = (id(lengths[1]), kept, cfg.batch, cfg.shapes)
        if options not in self._planned:
            blocks = planned(*lengths, cfg.batch, cfg.shapes)
            self._planned[options] = {shape for _, shape in blocks}
        return self._planned[options]


def steps_of(cfg: config.Config, samples: int) -> tuple[int, int]:
    """(samples per step, steps in all)."""
    batch = min(cfg.train.batch, samples)
    return batch, cfg.train.epochs * (samples // batch)


def located(backbone: tuple[LlamaConfig, Path | None], vocabulary: int) -> LlamaConfig:
    """The shape of a backbone, as `llama.config.locate` finds it: a random one has the vocabulary of the tokenizer."""
    llama, folder = backbone
    return replace(llama, vocab=vocabulary) if folder is None else llama


@dataclass(frozen=True)
class RetrievalJob(Job):
    """Prompts of users and of items."""

    users: Trunks  # of all training prompts, as they are encoded
    items: plan.Lengths  # of the whole catalogue, alike

    @classmethod
    def of(
        cls,
        cfg: config.Config,
        backbone: tuple[LlamaConfig, Path | None],
        builder: PromptBuilder,
        samples: Samples,
        mesh: parallel.DeviceMesh,
        over: bool = False,
    ) -> "RetrievalJob":
        """backbone: as `located` takes it. over: there is no training any more."""
        items = builder.items(np.arange(1, samples.dataset.catalog.size))
        batch, steps = steps_of(cfg, len(samples))
        return cls(
            cfg,
            located(backbone, builder.tokenizer.vocab_size),
            mesh.mesh.size,
            batch,
            0 if over else steps,
            Trunks.of(builder, samples),
            (items.prefix_len, items.live_lengths),
        )

    @property
    def prefixes(self) -> int:
        return self._stored(int(self.items[0].sum()))

    @property
    def reads(self) -> float:
        return self.steps * self.batch * (1 + self.cfg.train.negatives) / len(self.items[0])

    def needs(self, parts: int, store: str, shape: plan.StepShape | None = None) -> Needs:
        shapes = self._shapes(parts, store)[0] if shape is None else [shape]
        kept, llm = store != "recompute", self._llm
        step = max(shapes, key=lambda one: self._step(one, kept))
        longest = max(1, int(self.items[0].max()))
        block = max(stores.BLOCK_TOKENS, longest)  # of prefixes, to fill the store
        filled = Pass((), [(block // longest, 0, longest)], block, 0)
        brought = self._stored(step.item_tokens.prefix) if store == "host" else 0
        return Needs(
            weights=llm.weights,
            teacher=(len(self.items[0]) + 1) * self.cfg.item_width * FP32,
            trained=3 * self._gradients,
            store=self.prefixes + self._stored(block) if store == "hbm" else 0,
            batch=parts * (brought + self._numbers(step, kept)),
            step=self._step(step, kept),
            filling=llm.forward(filled) + self._stored(block) if kept else 0,
            encoding=max(
                *(
                    self._encoding(grid, "recompute")
                    for grid in self._blocks(self.users.lengths, False)
                ),
                *(self._encoding(grid, store) for grid in self._blocks(self.items, kept)),
            ),
        )

    def _stored(self, tokens: int) -> int:
        """Bytes of prefixes in a store."""
        return stores.nbytes(self.llama, tokens, stores.kept_as(self.cfg.llm))

    def _shapes(self, parts: int, store: str) -> tuple[list[plan.StepShape], plan.StepShape]:
        cfg, seed, rows = self.cfg.train, self.cfg.seed, self.rows // parts
        kept, passes = store != "recompute", self._passes(parts)
        lora = self.cfg.lora
        options = (rows, cfg.negatives, cfg.length_groups, cfg.shapes, passes, kept, lora.trains)
        if options not in self._planned:
            users, items = self.users.in_training(lora), trunks.in_training(self.items, lora)
            lengths = users, items, (rows, rows * (1 + cfg.negatives))
            found = plan.plan_steps(*lengths, cfg.length_groups, cfg.shapes, seed, kept)
            self._planned[options] = plan.met(found, *lengths, passes, seed), found[-1]
        return self._planned[options]

    def _step(self, step: plan.StepShape, kept: bool) -> int:
        made = step.users if kept else (*step.users, *step.items)
        one = Pass(
            (*step.users, *step.items),
            [(grid.rows, 0, grid.prefix) for grid in made],
            _prefix(step, kept),
            step.user_tokens.live + step.item_tokens.live,
        )
        users, items = (sum(grid.rows for grid in kind) for kind in (step.users, step.items))
        prompts = self.cfg.prompts
        slots = (users * prompts.history_len + items) * prompts.item_repr
        slots += users * prompts.user_repr
        return self._trained(one, slots)

    def _numbers(self, step: plan.StepShape, kept: bool) -> int:
        """Bytes of a part's tokens and of what is told of them (batch.PromptBatch)."""
        live = step.user_tokens.live + step.item_tokens.live
        owners = FP32 * live * self.cfg.lora.drops
        return _placed(step, kept) + owners + self._told(step) + self._hidden(step)

    def _told(self, step: plan.StepShape) -> int:
        """Bytes of the teacher's user vectors in a part's prompts."""
        users = sum(grid.rows for grid in step.users) * self.cfg.prompts.user_repr
        return users * self.cfg.teacher.d * FP32

    def _hidden(self, step: plan.StepShape) -> int:
        """Bytes of what each token of a part's users does not see, where their prompts share rows."""
        places = sum(grid.rows * grid.live for grid in step.users)
        return 8 * places if self.users.most > 1 else 0

    def _encoding(self, grid: layout.Shape, store: str) -> int:
        prefix, live = grid.rows * grid.prefix, grid.rows * grid.live
        if store == "recompute":
            return self._llm.forward(Pass([grid], [(grid.rows, 0, grid.prefix)], prefix, live))
        brought = 2 * self._stored(prefix) if store == "host" else 0  # the next block comes in
        return self._llm.forward(Pass([grid], (), 0, live)) + brought


def _prefix(step: plan.StepShape, kept: bool) -> int:
    """Tokens of the axis of prefixes."""
    return step.user_tokens.prefix + (0 if kept else step.item_tokens.prefix)


def _placed(step: plan.StepShape, kept: bool) -> int:
    """Bytes of a part's tokens and of where they are."""
    live = step.user_tokens.live + step.item_tokens.live
    places = sum(grid.rows * (grid.prefix + grid.live) for grid in (*step.users, *step.items))
    return 17 * live + 12 * _prefix(step, kept) + 4 * places


def available(mesh: parallel.DeviceMesh, memory_gib: float) -> int | None:
    """Bytes that are free on the fullest device, the same in all processes; None = unknown.

    memory_gib: `mesh.memory_gib`. Devices that keep no account of their own share the machine's memory.
    """
    if memory_gib:
        return int(memory_gib * GIB)
    own = [d for d in mesh.mesh.devices.flat if d.process_index == jax.process_index()]
    stats = [device.memory_stats() or {} for device in own]
    if all("bytes_limit" in one for one in stats):
        return processes.least(min(s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats))
    machine = host_memory()
    return None if machine is None else machine // len(own)


def host_memory() -> int | None:
    """Bytes of free memory for this process and every other one: those of one machine share it; None = unknown."""
    file = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", file.read_text()) if file.exists() else None
    shared = processes.on_this_machine()
    return processes.least((int(found[1]) << 10) // shared if found else None)
