"""Keys and values of every item prompt's prefix, made once: the backbone is frozen, so they never change.

On the devices they cost memory (112 KiB per token for a 3B backbone in bfloat16); in host memory they are brought with every
batch. Either way an item then costs the few tokens of its tail.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmsrec_jax import config, parallel
from llmsrec_jax.batch import Flat, Grid, PromptBatch
from llmsrec_jax.llama import weights
from llmsrec_jax.llama.config import LlamaConfig
from llmsrec_jax.llama.kv import KV
from llmsrec_jax.prompts import layout, plan
from llmsrec_jax.prompts.prompts import Prompts

BLOCK_TOKENS = 8192  # of a pass that fills the store
BLOCK_SHAPES = 6


class ItemStore:
    """The prefixes of all item prompts, one after the other on a token axis."""

    def __init__(self, offsets: np.ndarray, kv: KV, on_host: bool):
        """offsets: int64 [I], where the prefix of each item id begins on the axis of `kv`."""
        self._offsets, self._kv, self._on_host = offsets, kv, on_host

    def starts(self, prompts: Prompts, rows: np.ndarray) -> np.ndarray:
        """int64 [n]: where the prefixes of these item prompts begin."""
        return self._offsets[prompts.slot_item[prompts.offsets[rows] + prompts.prefix_len[rows]]]

    @property
    def resident(self) -> KV | None:
        """What the devices hold all the time."""
        return None if self._on_host else self._kv

    @property
    def nbytes(self) -> int:
        """On the host, or on each device."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._kv))

    def bring(self, batch: PromptBatch, tokens: int) -> PromptBatch:
        """`batch`, whose stored grids say where in the store their prefixes are, with these at hand: at most `tokens`."""
        if not self._on_host:
            return batch
        wanted, grids, begin = [], [], 0
        for grid in batch.stored:
            within = np.arange(grid.at.shape[1]) < grid.length[:, None]
            wanted.append(grid.at[within])
            at = np.full_like(grid.at, np.iinfo(np.int32).max)
            at[within] = begin + np.arange(len(wanted[-1]))
            begin += len(wanted[-1])
            grids.append(Grid(at, grid.length))
        index = np.zeros(tokens, np.int64)
        index[:begin] = np.concatenate(wanted)
        take = lambda leaf: np.take(leaf, index, axis=1)
        return batch._replace(stored=tuple(grids), kv=jax.tree.map(take, self._kv))


def nbytes(cfg: LlamaConfig, tokens: int, dtype: Any) -> int:
    """What a store of so many prefix tokens takes."""
    heads = 2 * cfg.layers * tokens * cfg.kv_heads
    scales = 4 if dtype == jnp.int8 else 0
    return heads * (cfg.head_dim * jnp.dtype(dtype).itemsize + scales)


def kept_as(cfg: config.LLM) -> Any:
    """The dtype behind `llm.item_store_dtype`."""
    words = {"auto": weights.compute_dtype(cfg.dtype), "bf16": jnp.bfloat16, "int8": jnp.int8}
    return words[cfg.item_store_dtype]


def chosen(cfg: config.LLM) -> str:
    """`llm.item_store_dtype`, with one word for that of the layers."""
    return "auto" if kept_as(cfg) == weights.compute_dtype(cfg.dtype) else cfg.item_store_dtype


def of(
    cfg: config.LLM,
    llama: tuple[nnx.GraphDef, nnx.State],
    items: Prompts,
    mesh: parallel.DeviceMesh,
    advance: Callable[[int], None] = lambda done: None,
) -> ItemStore | None:
    """The store that `llm.item_store` (auto: as memory_plan.py chose) and its dtype ask for; None = prefixes are recomputed."""
    if cfg.item_store == "recompute":
        return None
    on_host = {"hbm": False, "host": True}[cfg.item_store]
    return build(llama, items, mesh, on_host=on_host, dtype=kept_as(cfg), advance=advance)


def build(
    llama: tuple[nnx.GraphDef, nnx.State],
    items: Prompts,
    mesh: parallel.DeviceMesh,
    *,
    on_host: bool,
    dtype: Any,
    advance: Callable[[int], None] = lambda done: None,
) -> ItemStore:
    """Runs the prefix of every item's prompt (`items`: all of them, from id 1 on) through the backbone once.

    dtype: of what is kept, int8 among them.
    """
    graphdef, state = llama
    cfg = nnx.merge(graphdef, state).cfg
    order = np.argsort(items.prefix_len, kind="stable")  # neighbours are of one length
    sorted_lengths = items.prefix_len[order].astype(np.int64)
    offsets = np.zeros(len(items) + 1, np.int64)  # prompt i is that of item i + 1
    offsets[order + 1] = np.cumsum(sorted_lengths) - sorted_lengths
    total = int(items.prefix_len.sum())

    def made(state: nnx.State, ids: Any, flat: Flat) -> KV:
        return nnx.merge(graphdef, state).prefill(ids, flat).as_dtype(dtype)

    @partial(jax.jit, donate_argnums=0)
    def write(store: KV, new: KV, start: Any) -> KV:
        put = lambda whole, some: jax.lax.dynamic_update_slice_in_dim(whole, some, start, axis=1)
        return jax.tree.map(put, store, new)

    compute = parallel.everywhere(made, mesh)
    if total >= 1 << 31:
        raise ValueError(f"{total} prefix tokens: a store holds less than 2^31 of them")
    blocks = list(_blocks(items, order))
    room = total + max(len(ids) for _, ids, _ in blocks)  # the next block overwrites a block's pads
    empty = partial(_empty, cfg, room, dtype)
    on_devices = jax.jit(partial(empty, jnp.zeros), out_shardings=mesh.sharding())
    kv, start = empty(np.zeros) if on_host else on_devices(), 0
    for rows, ids, flat in blocks:
        new = compute(state, *parallel.replicate((ids, flat), mesh))
        tokens = int(items.prefix_len[rows].sum())
        if on_host:
            for whole, some in zip(jax.tree.leaves(kv), jax.tree.leaves(new), strict=True):
                whole[:, start : start + tokens] = np.asarray(some)[:, :tokens]
        else:
            kv = write(kv, new, parallel.replicate(np.int32(start), mesh))
        start += tokens
        advance(len(rows))
    return ItemStore(offsets, jax.block_until_ready(kv), on_host)


def _empty(cfg: LlamaConfig, tokens: int, dtype: Any, zeros: Callable[..., Any]) -> KV:
    shape = (cfg.layers, tokens, cfg.kv_heads)
    values = lambda: zeros((*shape, cfg.head_dim), dtype)
    if dtype != jnp.int8:
        return KV(values(), values())
    return KV(values(), values(), zeros(shape, jnp.float32), zeros(shape, jnp.float32))


def _blocks(items: Prompts, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, Flat]]:
    """(rows, token ids, axis) of prefixes in this order, in few shapes."""
    lengths, start = items.prefix_len[order], 0
    widths = plan.widths(lengths, BLOCK_SHAPES)
    while start < len(order):
        width = int(widths[np.searchsorted(widths, lengths[start])])
        count = max(BLOCK_TOKENS // width, 1)
        longer = np.searchsorted(lengths, width, side="right")
        rows = order[start : min(start + count, longer)]
        start += len(rows)
        yield rows, *layout.prefixes(items, rows, count, width)
