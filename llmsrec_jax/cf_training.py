"""Trainings without an LLM, a CF-SRec's and A-LLMRec's stage 1: their programs, and what these need of every device's memory.

XLA's own account is asked, of programs that are compiled before anything long begins; the step is the one that will run.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmsrec_jax import config, loaders, parallel, rules, train
from llmsrec_jax.batch import AlignBatch, SequenceBatch
from llmsrec_jax.data.splits import Dataset
from llmsrec_jax.memory import MARGIN, PASSES, Needs, fits, shown
from llmsrec_jax.models import allmrec, cf
from llmsrec_jax.prompts import plan

PARTS = (2, 4, 8)  # of a setting that are tried where training does not fit

Shape = jax.ShapeDtypeStruct


def nbytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def ids(*shape: int) -> Shape:
    return Shape(shape, jnp.int32)


def columns(shape: plan.Windows) -> int:
    return sum(rows * width for rows, width in shape)


@dataclass(frozen=True)
class _Job(ABC):
    """A training, as far as its programs go; models are shapes."""

    what: ClassVar[str]
    update: ClassVar[Callable[..., Any]]  # the step of train.py
    fewer: ClassVar[str]  # what it takes where no setting helps

    cfg: config.Config
    mesh: parallel.DeviceMesh

    @property
    @abstractmethod
    def _model(self) -> tuple[nnx.GraphDef, nnx.State]: ...

    @property
    @abstractmethod
    def _sizes(self) -> dict[str, int]:
        """{setting: what is in use of it}, of which parts are tried where it does not fit; all of them change results."""

    @abstractmethod
    def needs(self) -> Needs: ...

    @cached_property
    def step(self) -> Callable[..., Any]:
        """Over all devices, compiled once per shape."""
        parts = {"model": self._model[0], "cfg": self.cfg, "axis": self.mesh.axis}
        return parallel.train_wrapper(partial(type(self).update, **parts), self.mesh)

    def _state(self, lr: float, b2: float) -> train.State:
        return jax.eval_shape(lambda params: train.init_state(params, lr, b2), self._model[1])

    def _beside(self, program: Callable[..., Any], batch: Any, *args: Any) -> int:
        """Bytes that a program over all devices needs beside these arguments, the last of which is of every device's own rows."""
        args = (
            *(parallel.replicated(arg, self.mesh) for arg in args),
            parallel.parted(batch, self.mesh),
        )
        return parallel.temporary(program, *args)

    def require(self, limit: int | None) -> Needs:
        """What it needs.

        Raises:
          ValueError: that, with `memory.MARGIN`, is more than `limit` bytes (None = unknown); it says what would fit.
        """
        needs = self.needs()
        if fits(needs.total, limit):
            return needs
        lines = [f"{self.what} does not fit: {needs.listed(limit)}"]
        least = needs.total
        for name, used in self._sizes.items():
            for flag, total in self._tried(name, used):
                least = min(least, total)
                if fits(total, limit):
                    lines.append(f"  {flag} needs {shown(total)}, with other results")
                    break
        if len(lines) == 1:
            free = shown(MARGIN * least)
            lines.append(
                f"nothing that was tried fits: it takes devices with {free} free, or {self.fewer}"
            )
        raise ValueError("\n".join(lines))

    def _tried(self, name: str, used: int) -> Iterator[tuple[str, int]]:
        """With ever smaller parts of this setting: its flag, and bytes in all; what is not legal is left out."""
        for part in PARTS:
            try:
                cfg = config.apply(self.cfg, {name: used // part})
                rules.validate(cfg)
                total = replace(self, cfg=cfg).needs().total
            except ValueError:
                continue
            yield f"--config.{name}={used // part}", total


@dataclass(frozen=True)
class TeacherJob(_Job):
    """The training of a CF-SRec."""

    what = "the teacher's training"
    update = train.teacher_step
    fewer = "fewer items"

    dataset: Dataset

    @cached_property
    def batches(self) -> loaders.TeacherBatches:
        """Raises ValueError where they are uneven."""
        cfg, mesh = self.cfg, self.mesh
        hides = cf.MODELS[cfg.teacher.model].hides
        made = self.dataset, cfg.teacher, hides, cfg.seed
        return loaders.TeacherBatches(*made, mesh.parts, mesh.mine)

    @cached_property
    def encoder(self) -> Callable[..., Any]:
        """(nothing, parameters, windows) -> O_u, over all devices."""
        graphdef = self._model[0]
        encode = lambda frozen, params, history: nnx.merge(graphdef, params).user_repr(history)
        return parallel.encode_wrapper(encode, self.mesh)

    def needs(self, shape: plan.Windows | None = None) -> Needs:
        """shape: of the windows of a device's step; None = the dearest that is likely to come."""
        cfg, (_, params) = self.cfg.teacher, self._model
        state = self._state(cfg.lr, cfg.b2)
        groups = self._groups(self._dearest() if shape is None else shape)
        key = jax.eval_shape(lambda: jax.random.key(0))
        longest = int(self.dataset.train.lengths.max()) + 1  # with validation's item
        block = ids(loaders.TEACHER_ROWS, min(cfg.max_len, longest))
        return Needs(
            trained=nbytes(state),
            batch=nbytes(groups),
            step=self._beside(self.step, groups, key, state),
            encoding=self._beside(self.encoder, block, (), params),
        )

    @property
    def _sizes(self) -> dict[str, int]:
        widest = int(self.batches.lengths.max())
        return {
            "teacher.batch": self.batches.order.batch,
            "teacher.max_len": widest,
            "teacher.d": self.cfg.teacher.d,
        }

    @cached_property
    def _model(self) -> tuple[nnx.GraphDef, nnx.State]:
        size, cfg = self.dataset.catalog.size, self.cfg.teacher
        return nnx.split(nnx.eval_shape(lambda: cf.new(size, cfg, nnx.Rngs(params=0))))

    def _dearest(self) -> plan.Windows:
        batches, cfg = self.batches, self.cfg
        passes = batches.order.steps_per_epoch * cfg.teacher.epochs * self.mesh.parts
        met = plan.met_windows(
            *(batches.shapes, batches.lengths, batches.rows, min(PASSES, passes), cfg.seed)
        )
        return max(met, key=columns)

    def _groups(self, shape: plan.Windows) -> cf.Groups:
        drawn = loaders.drawn(self.cfg.teacher)
        return tuple(SequenceBatch(ids(*grid), ids(*grid), ids(*grid, drawn)) for grid in shape)


@dataclass(frozen=True)
class AlignmentJob(_Job):
    """The training of A-LLMRec's stage 1."""

    what = "alignment: training"
    update = train.align_step
    fewer = "fewer items, or a text encoder of narrower vectors (alignment.text)"

    items: int  # rows of either table
    d_text: int  # width of the titles' vectors
    samples: int

    @cached_property
    def decoded(self) -> Callable[..., Any]:
        """(parameters, CF embeddings of items) -> what allmrec.decoded makes of them, on every device."""
        graphdef = self._model[0]
        decode = lambda params, cf_items: allmrec.decoded(nnx.merge(graphdef, params), cf_items)
        return parallel.everywhere(decode, self.mesh)

    def needs(self) -> Needs:
        cfg, (_, params) = self.cfg.alignment, self._model
        d, rows = self.cfg.teacher.d, alignment_rows(self.cfg, self.samples, self.mesh.parts)
        table: Any = lambda width: Shape((self.items, width), jnp.float32)
        frozen = allmrec.Frozen(table(d), table(self.d_text))
        read = parallel.replicated((params, frozen.cf_items), self.mesh)
        state = self._state(cfg.lr, cfg.b2)
        batch: Any = AlignBatch(Shape((rows, d), jnp.float32), ids(rows), ids(rows))
        return Needs(
            teacher=nbytes(frozen),
            trained=nbytes(state),
            batch=nbytes(batch),
            step=self._beside(self.step, batch, frozen, state),
            encoding=parallel.temporary(self.decoded, *read),
        )

    @property
    def _sizes(self) -> dict[str, int]:
        cfg = self.cfg.alignment
        return {"alignment.batch": min(cfg.batch, self.samples), "alignment.middle": cfg.middle}

    @cached_property
    def _model(self) -> tuple[nnx.GraphDef, nnx.State]:
        widths = self.cfg.teacher.d, self.d_text, self.cfg.alignment.middle
        new = lambda: allmrec.Alignment(*widths, nnx.Rngs(params=0))
        return nnx.split(nnx.eval_shape(new))


def alignment_rows(cfg: config.Config, samples: int, devices: int) -> int:
    """Of each device and step of stage 1; ValueError where they are uneven."""
    return loaders.per_device(min(cfg.alignment.batch, samples), devices, "alignment.batch")
