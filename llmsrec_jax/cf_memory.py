"""What trainings without an LLM need of every device's memory: a CF-SRec's, and A-LLMRec's stage 1; as in memory.py, from shapes alone.

What the forward pass keeps for the backward pass is read off a trace, so that every model and every loss has its account.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from llmsrec_jax import config, loaders, losses, rules
from llmsrec_jax.batch import AlignBatch, SequenceBatch
from llmsrec_jax.data.splits import Dataset
from llmsrec_jax.memory import FP32, MARGIN, PASSES, Needs, fits, shown
from llmsrec_jax.models import allmrec, cf
from llmsrec_jax.prompts import plan

TILES = 2  # of logits over the catalogue at a time: their logarithms, and their gradients
TWICE = 2  # of embeddings that a loss gathers: their gradients, and those as the scatter reads them
# of what a layer keeps for its backward pass: most that a forward pass holds at a time
FORWARD = 0.65
# what is tried where training does not fit; all of it changes results
SMALLER = ("teacher.batch", "teacher.max_len", "teacher.d")
HALVINGS = (2, 4, 8)

Shape = jax.ShapeDtypeStruct


def nbytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _kept(function: Callable[..., Any], params: Any, *args: Any) -> int:
    """Bytes that `function(params, *args)` keeps for its backward pass to the parameters; args: shapes."""
    backward = lambda params, *args: jax.vjp(lambda params: function(params, *args), params)[1]
    return nbytes(jax.eval_shape(backward, params, *args))


def _columns(shape: plan.Windows) -> int:
    return sum(rows * width for rows, width in shape)


@dataclass(frozen=True)
class TeacherJob:
    """The training of a CF-SRec, as far as memory goes."""

    cfg: config.Config
    dataset: Dataset
    devices: int

    def needs(self, shape: plan.Windows | None = None) -> Needs:
        """shape: of the windows of a device's step; None = the dearest that is likely to come."""
        shape = self._dearest() if shape is None else shape
        cfg, items = self.cfg.teacher, self.dataset.catalog.size
        graphdef, params = self._model
        columns = _columns(shape)
        groups, key = self._batch(shape), jax.eval_shape(lambda: jax.random.key(0))
        loss = lambda params, groups, key: cf.loss(
            nnx.merge(graphdef, params), groups, cfg.loss, key
        )
        step = nbytes(params) + _kept(loss, params, groups, key)
        beyond = FP32 * columns * cf.MODELS[cfg.model].backward(cfg)
        if cfg.loss == "ce":
            # the table's gradients are made in the forward pass, when no others are there yet
            tiles = FP32 * TILES * losses.tile_of(columns, items) * items
            step += max(tiles + min(beyond, 0), beyond) - FP32 * items * cfg.d
        else:
            step += beyond + FP32 * columns * TWICE * (2 + cfg.negatives) * cfg.d
        return Needs(
            trained=3 * nbytes(params),
            batch=nbytes(groups),
            step=step,
            encoding=self._encoding(),
        )

    @cached_property
    def _model(self) -> tuple[nnx.GraphDef, nnx.State]:
        size, cfg = self.dataset.catalog.size, self.cfg.teacher
        return nnx.split(nnx.eval_shape(lambda: cf.new(size, cfg, nnx.Rngs(params=0))))

    def _dearest(self) -> plan.Windows:
        cfg = self.cfg
        made = self.dataset, cfg.teacher, cf.MODELS[cfg.teacher.model].hides, cfg.seed
        batches = loaders.TeacherBatches(*made, self.devices)
        passes = batches.order.steps_per_epoch * cfg.teacher.epochs * self.devices
        met = plan.met_windows(
            *(batches.shapes, batches.lengths, batches.rows, min(PASSES, passes), cfg.seed)
        )
        return max(met, key=_columns)

    def _batch(self, shape: plan.Windows) -> cf.Groups:
        drawn = loaders.drawn(self.cfg.teacher)
        ids = lambda *shape: Shape(shape, jnp.int32)
        return tuple(
            SequenceBatch(ids(*grid), ids(*grid), ids(*grid) if drawn == 1 else ids(*grid, drawn))
            for grid in shape
        )

    def _encoding(self) -> int:
        cfg, (graphdef, params) = self.cfg.teacher, self._model
        longest = int(self.dataset.train.lengths.max()) + 1  # with validation's item
        width = min(cfg.max_len, longest)
        history = Shape((loaders.TEACHER_ROWS, width), jnp.int32)
        encode = lambda params, history: nnx.merge(graphdef, params).user_repr(history)
        return int(FORWARD * _kept(encode, params, history) / cfg.blocks)

    def require(self, limit: int | None) -> Needs:
        """What it needs; a ValueError that says what to change, where that is more than `limit` bytes (None = unknown)."""
        needs = self.needs()
        if fits(needs.total, limit):
            return needs
        lines = [f"the teacher's training does not fit: {needs.listed(limit)}"]
        least = needs.total
        for name in SMALLER:
            for flag, job in self._halved(name):
                total = job.needs().total
                least = min(least, total)
                if fits(total, limit):
                    lines.append(f"  {flag} needs {shown(total)}, with other results")
                    break
        if len(lines) == 1:
            free = shown(MARGIN * least)
            lines.append(
                f"nothing that was tried fits: it takes devices with {free} free, or fewer items"
            )
        raise ValueError("\n".join(lines))

    def _halved(self, name: str) -> Iterator[tuple[str, "TeacherJob"]]:
        """With this setting halved, again and again, and its flag; what is not legal is left out."""
        known = {name: value for name, value, _ in config.flatten(self.cfg)}[name]
        for halving in HALVINGS:
            try:
                cfg = config.apply(self.cfg, {name: known // halving})
                rules.validate(cfg)
                loaders.per_device(cfg.teacher.batch, self.devices, "teacher.batch")
            except ValueError:
                continue
            yield f"--config.{name}={known // halving}", replace(self, cfg=cfg)


def alignment_needs(cfg: config.Config, items: int, d_text: int, rows: int) -> Needs:
    """Of A-LLMRec's stage 1, with titles' vectors of width d_text, `items` rows in either table and `rows` samples per device and step."""
    d_cf, middle = cfg.teacher.d, cfg.alignment.middle
    new = lambda: allmrec.Alignment(d_cf, d_text, middle, nnx.Rngs(params=0))
    graphdef, params = nnx.split(nnx.eval_shape(new))
    tables: list[Any] = [Shape((items, width), jnp.float32) for width in (d_cf, d_text)]
    frozen = allmrec.Frozen(*tables)
    ids = Shape((rows,), jnp.int32)
    batch = AlignBatch(Shape((rows, d_cf), jnp.float32), ids, ids)
    loss = lambda params, batch, frozen: allmrec.loss(nnx.merge(graphdef, params), batch, frozen)[0]
    return Needs(
        weights=nbytes(frozen.texts),
        teacher=nbytes(frozen.cf_items),
        trained=3 * nbytes(params),
        batch=nbytes(batch),
        step=nbytes(params) + _kept(loss, params, batch, frozen),
        encoding=FP32 * items * (d_cf + middle),  # all items, decoded
    )
