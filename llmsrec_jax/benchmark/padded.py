"""The engine without its savings, to measure what they save: whole prompts, padded to the longest, hidden states everywhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmsrec_jax.batch import LLMBatch, PromptBatch
from llmsrec_jax.data.interactions import offsets_of
from llmsrec_jax.llama import ops
from llmsrec_jax.llama.model import LAYER_WEIGHTS, Llama, shapes
from llmsrec_jax.prompts import plan
from llmsrec_jax.prompts.prompts import Prompts

MULTIPLE = 8  # of padded lengths


class PaddedLlama(Llama):
    """Every layer at every position, layers recomputed in the backward pass: the usual way to fit a long batch."""

    def extend(
        self, x_BTD: Any, length: Any, past: Any, out_BM: Any, *, remat: str = "inputs"
    ) -> jax.Array:
        every = jnp.broadcast_to(jnp.arange(x_BTD.shape[1]), x_BTD.shape[:2])
        h_BTD = super().extend(x_BTD, length, past, every, remat="inputs")
        return ops.take(h_BTD, out_BM)


def as_padded(llama: Llama) -> PaddedLlama:
    """The same weights, used so."""
    names = shapes(llama.cfg)
    stacked = {name: llama.layers[name][...] for name in LAYER_WEIGHTS}
    rest = {name: getattr(llama, name)[...] for name in names if name not in stacked}
    return PaddedLlama(llama.cfg, {**stacked, **rest})


def unpack(groups: tuple[PromptBatch, ...]) -> Prompts:
    """The prompts of all rows of groups [rows, ..] of one device, in order, without padding."""
    rows = []
    for group in groups:
        for row in range(len(group.length)):
            prefix, live = group.prefix_len[row], group.length[row]
            none = np.zeros(prefix, np.int32)
            rows.append(
                (
                    np.concatenate([group.prefix_ids[row, :prefix], group.ids[row, :live]]),
                    np.concatenate([none.astype(np.int8), group.kind[row, :live]]),
                    np.concatenate([none, group.slot_item[row, :live]]),
                )
            )
    ids, kind, slot_item = (np.concatenate(part) for part in zip(*rows, strict=True))
    lengths = np.array([len(ids) for ids, _, _ in rows])
    nothing_constant = np.zeros(len(rows), np.int32)
    return Prompts(ids, kind, slot_item, offsets_of(lengths), nothing_constant)


def widened(batch: LLMBatch) -> LLMBatch:
    """A training batch of one device (arrays [1, ..]) as two blocks, all users and all items, each as wide as its longest."""
    one = jax.tree.map(lambda x: x[0], batch)
    users, items = (_block(unpack(groups)) for groups in (one.users, one.items))
    padded = one._replace(users=(users,), items=(items,))
    return jax.tree.map(lambda x: x[None], padded)


def _block(prompts: Prompts) -> PromptBatch:
    width = -(-int(prompts.lengths.max()) // MULTIPLE) * MULTIPLE
    return plan.fill(prompts, np.arange(len(prompts)), (len(prompts), 0, width))
