"""The engine without its savings, to measure what they save: whole prompts, padded to the longest, hidden states everywhere."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmsrec_jax.batch import Flat, LLMBatch
from llmsrec_jax.llama.model import LAYER_WEIGHTS, NOTHING, Added, Llama, shapes
from llmsrec_jax.loaders import LLMBatches, among
from llmsrec_jax.prompts import layout
from llmsrec_jax.prompts.prompts import Prompts

MULTIPLE = 8  # of padded lengths


class PaddedLlama(Llama):
    """Every layer at every position, layers recomputed in the backward pass: the usual way to fit a long batch."""

    def extend(
        self,
        x_AD: Any,
        flat: Flat,
        past: Any,
        out: Sequence[Any],
        *,
        remat: str = "inputs",
        added: Added = NOTHING,
    ) -> jax.Array:
        """Of one width for each kind of prompt, so that all positions are read grid by grid."""
        rows = lambda grid: jnp.broadcast_to(jnp.arange(grid.at.shape[1]), grid.at.shape)
        read, begin = [], 0
        every = [rows(grid) for grid in flat.grids]
        flattened = super().extend(x_AD, flat, past, every, remat="inputs", added=added)
        for grid, at in zip(flat.grids, out, strict=True):
            n, width = grid.at.shape
            h_BTD = flattened[begin : begin + n * width].reshape(n, width, -1)
            read.append(jnp.take_along_axis(h_BTD, at[..., None], axis=1).reshape(at.size, -1))
            begin += n * width
        return jnp.concatenate(read)


def as_padded(llama: Llama) -> PaddedLlama:
    """The same weights, used so."""
    names = shapes(llama.cfg)
    stacked = {name: llama.layers[name][...] for name in LAYER_WEIGHTS}
    rest = {name: getattr(llama, name)[...] for name in names if name not in stacked}
    return PaddedLlama(llama.cfg, {**stacked, **rest})


class Whole(NamedTuple):
    """The prompts of a training step on one device, as they are."""

    users: Prompts
    items: Prompts
    candidates: np.ndarray  # int32 [B, C] row among `items`
    cf_user_repr: np.ndarray  # float32 [B, E]

    @classmethod
    def of(cls, batches: LLMBatches, step: int) -> "Whole":
        """Of all devices together: their candidates follow one another."""
        rows, item_rows, candidates = batches.members(step)
        return cls(
            batches.user_prompts(rows.ravel()),
            batches.items.take(item_rows.ravel()),
            among(candidates, item_rows).reshape(-1, candidates.shape[-1]),
            batches.cf_user_repr[rows.ravel()],
        )

    def widened(self) -> LLMBatch:
        """As two blocks, all users and all items, each as wide as its longest; arrays [1, ..]."""
        groups = [_block(self.users), _block(self.items)]
        slots = int(self.users.slots.sum() + self.items.slots.sum())
        prompts = layout.fill(groups, slots)
        batch = LLMBatch(
            jax.tree.map(lambda x: x[None], prompts), self.candidates, self.cf_user_repr
        )
        return jax.tree.map(lambda x: x[None], batch)


def _block(prompts: Prompts) -> layout.Group:
    width = -(-int(prompts.lengths.max()) // MULTIPLE) * MULTIPLE
    whole = replace(prompts, prefix_len=np.zeros_like(prompts.prefix_len))
    return layout.Group(whole, np.arange(len(prompts)), layout.Shape(len(prompts), 0, width))
