"""Bytes that LLaMA takes on a device: its weights, and what passes of prompts need, forward or for training.

Told from widths as in batch.py and `model.shapes`; nothing is traced. What the backward pass keeps of every layer follows from
`llm.remat`. What a layer works with in between is the larger of two moments, as XLA's accounts of compiled programs show them:

  the feed-forward's backward     3 [A, F] of it; 3 [A, D] (entry and middle of the layer, the gradient); 2 x the grids
  attention's backward            2 [A, D]; 3 x the grids; 2 arrays of logits, of the largest grid
  forward only                    2 [A, F] and 3 [A, D]; or [A, D], 2 x the grids, 2 arrays of logits of a block of queries

The grids are queries [rows, T, N H] and keys and values [rows, P + T, 2 K H]: there before attention, and where it leaves them;
in its backward pass also their gradients. Logits are a float32 per query, key and head; what masks them, of that size and the
same in all layers, is there from the beginning, for every grid. Which weights a layer needs is cut out of the stack of all layers: 3 [D, F].

Accounts are those of CPU programs, in both orders of attention: row by row (on CPU, one row's logits at a time), and plain, which
is taken to hold on GPU and TPU. CUDA's fused kernel, which has no logits, serves whole prompts without a prefix only: it is left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp

from llmsrec_jax.llama import attention
from llmsrec_jax.llama.adapters import widths
from llmsrec_jax.llama.config import LlamaConfig
from llmsrec_jax.llama.model import shapes
from llmsrec_jax.llama.sharding import RULES, TENSOR
from llmsrec_jax.llama.weights import INPUTS

FP32, INT8 = 4, 1
MASK = 6  # of a number that may be dropped: its random bits, as they are made
PER_PAIR = 2 * FP32  # of logits at work: themselves and their exponentials, or their gradients
Grid = tuple[int, int, int]  # rows, prefix, live


class Pass(NamedTuple):
    """Static sizes of a pass of prompts through the backbone."""

    tails: Sequence[Grid]
    prefixes: Sequence[Grid]  # those to compute; stored ones cost nothing here
    prefix: int  # tokens of them
    live: int
    asked: int = 1  # at most so many tokens of a row of tails leave the last layer
    branches: bool = False  # of tails hide from each other


class LowRank(NamedTuple):
    """LoRA, as it trains."""

    names: Sequence[str]  # of products
    rank: int
    drops: bool


class Dropping(NamedTuple):
    """Bytes of what drops a part of LoRA's inputs, and of what else it needs."""

    masks: int  # while a layer is at work
    early: bool  # they are there from the layer's feed-forward on, not from its attention on
    rest: int  # all the time


@dataclass(frozen=True)
class Footprint:
    """Of a backbone on one of the devices that share it."""

    whole: LlamaConfig
    dtype: Any
    quantised: bool
    cut: Mapping[str, int]  # devices along the axes of llama/sharding.py
    platform: str

    @property
    def itemsize(self) -> int:
        return jnp.dtype(self.dtype).itemsize

    @property
    def _b(self) -> int:
        """Bytes of an activation: CPU programs compute bfloat16 in float32, and keep it so."""
        return FP32 if self.platform == "cpu" else self.itemsize

    @property
    def cfg(self) -> LlamaConfig:
        """A device's own heads and feed-forward."""
        cfg, n = self.whole, self.cut[TENSOR]
        return replace(cfg, heads=cfg.heads // n, kv_heads=cfg.kv_heads // n, ff=cfg.ff // n)

    @property
    def weights(self) -> int:
        """Of the whole backbone; quantised products have a float32 scale per output."""
        total = 0
        for name, shape in shapes(self.whole).items():
            sizes = self._sizes(name, shape)
            if self.quantised and INPUTS[name]:
                outputs = (sizes[0], *sizes[1 + INPUTS[name] :])
                total += INT8 * math.prod(sizes) + FP32 * math.prod(outputs)
            else:
                total += self.itemsize * math.prod(sizes)
        return total

    def predictor(self, backward: bool) -> int:
        """Of what predicts tokens, on top of `weights`: all its columns, if shared out; for the backward pass also in float32."""
        table, shared = self.whole.vocab * self.whole.d, math.prod(self.cut.values()) > 1
        widened = backward and self.itemsize < FP32
        return table * (shared * self.itemsize + widened * FP32)

    def _sizes(self, name: str, shape: Sequence[int]) -> list[int]:
        """`shape` of a device's part."""
        spec = [axes if isinstance(axes, tuple) else (axes,) for axes in RULES[name]]
        shares = [math.prod(self.cut[a] for a in axes if a) for axes in spec]
        return [
            n // share
            for n, share in zip(shape, shares + [1] * (len(shape) - len(shares)), strict=True)
        ]

    def training(self, one: Pass, remat: str, after: int = 0, lora: LowRank | None = None) -> int:
        """Of tails forward and backward to their inputs, behind their prefixes.

        after: bytes of what is made of the hidden states that are asked for, and of its backward pass. lora: what trains within.
        """
        cfg, b, A = self.cfg, self._b, one.live
        D, F, grids = A * cfg.d * b, A * cfg.ff * b, self._grids(one.tails)
        pairs = [self._pairs(self._at_once(grid)) for grid in one.tails]
        drop = Dropping(0, False, 0) if lora is None else self._lora(one, lora, remat)
        feed = 3 * F + 3 * D + 2 * grids + drop.masks * drop.early
        at_work = max(feed, 2 * D + 3 * grids + PER_PAIR * max(pairs) + drop.masks)
        if remat == "names":
            every = A * self._heads * b + 2 * D + 2 * F
        elif remat == "inputs":
            every, at_work = D, at_work + 2 * F  # gate and up are made again
        else:
            # besides gate and up, three factors of the feed-forward; the logits, and once more those of the layer at work
            logits = (FP32 + b) * sum(map(self._pairs, one.tails))
            every = 5 * F + 2 * D + logits + self._blockwise(one.tails)
            at_work = 2 * F + 4 * D + grids + logits
        # room for what is kept is made before the prefixes are computed
        at_work = max(at_work, self._forward(one.prefixes, one.prefix), self._last(one, after))
        at_work += self._cut_out
        hidden = FP32 * sum(pairs)
        return self._keys(one.prefix) + (cfg.layers - 1) * every + hidden + at_work + drop.rest

    def _lora(self, one: Pass, lora: LowRank, remat: str) -> Dropping:
        """Of a pass: A x of every layer, the gradient of the widest input, and what drops a part of the inputs.

        With remat=none, what is dropped and what is left of the inputs is kept of every layer instead.
        """
        inputs = {name: math.prod(widths(self.cfg, name)[0]) for name in lora.names}
        b, low = self._b, FP32 * lora.rank * len(inputs)
        may_drop = sum(inputs.values()) * lora.drops
        every = {"none": low + (1 + b) * may_drop, "names": low, "inputs": 0}[remat]
        masks = (MASK + b) * one.live * may_drop * (remat != "none")
        early = remat == "inputs" or any(name in inputs for name in ("gate", "up", "down"))
        rest = one.live * ((self.cfg.layers - 1) * every + b * max(inputs.values()))
        return Dropping(masks, early, rest)

    def forward(self, one: Pass, after: int = 0) -> int:
        """Of prefixes, then tails, without a backward pass. after: as for `training`."""
        pairs = [self._pairs(self._at_once(grid)) for grid in one.tails if one.branches]
        tails = self._forward(one.tails, one.live) + FP32 * sum(pairs)  # masks, of all layers
        moments = self._forward(one.prefixes, one.prefix), tails
        return self._keys(one.prefix) + self._cut_out + max(*moments, self._last(one, after))

    def _last(self, one: Pass, after: int) -> int:
        """Of attention in the last layer, from the tokens that are asked for alone, all rows at once; or of what is `after` it."""
        most = max((n * one.asked * (P + T) for n, P, T in one.tails), default=0)
        kept = 2 * one.live * self.cfg.d * self._b + 2 * self._grids(one.tails)
        return max(kept + PER_PAIR * self.cfg.heads * most, after)

    def _forward(self, grids: Sequence[Grid], tokens: int) -> int:
        cfg, b = self.cfg, self._b
        pairs = max(map(self._of_last_block, grids), default=0)
        feed = tokens * (2 * cfg.ff + 3 * cfg.d) * b
        return max(feed, tokens * cfg.d * b + 2 * self._grids(grids) + PER_PAIR * pairs)

    def _keys(self, tokens: int) -> int:
        """And values, of all layers."""
        return self.cfg.layers * tokens * 2 * self.cfg.kv_heads * self.cfg.head_dim * self._b

    @property
    def _heads(self) -> int:
        """Width of queries, keys and values."""
        return (self.cfg.heads + 2 * self.cfg.kv_heads) * self.cfg.head_dim

    def _grids(self, grids: Sequence[Grid]) -> int:
        cfg = self.cfg
        numbers = sum(n * (T * cfg.heads + 2 * (P + T) * cfg.kv_heads) for n, P, T in grids)
        return numbers * cfg.head_dim * self._b

    def _blockwise(self, grids: Sequence[Grid]) -> int:
        """As `_grids`, with the keys that every block of queries sees."""
        ends = lambda T: [end for _, end in attention.blocks(T)]
        return sum(
            self._grids([(n, P + end, 0) for end in ends(T)]) + self._grids([(n, -T, T)])
            for n, P, T in grids
        )

    def _pairs(self, grid: Grid) -> int:
        """Queries times the keys that their blocks see, of all heads."""
        rows, P, T = grid
        return rows * self.cfg.heads * sum((b - a) * (P + b) for a, b in attention.blocks(T))

    def _at_once(self, grid: Grid) -> Grid:
        """Of the rows that attention takes at a time."""
        alone = self.platform == "cpu" and grid[2] >= attention.MIN_BLOCK
        return (1, *grid[1:]) if alone else grid

    def _of_last_block(self, grid: Grid) -> int:
        """As `_pairs`, of the largest block alone: forward, they come one after the other."""
        rows, P, T = self._at_once(grid)
        first, end = attention.blocks(T)[-1]
        return rows * self.cfg.heads * (end - first) * (P + end)

    @property
    def _cut_out(self) -> int:
        wide = self._b + (INT8 if self.quantised else 0)
        return 3 * self.cfg.d * self.cfg.ff * wide
