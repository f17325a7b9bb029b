"""LLaMA for frozen use: a prompt is a constant prefix (`prefill`, no gradient) and a live tail (`extend`, differentiable in x).

All tokens of a batch are on one flat axis [A, D]; only attention sees sequences, group by group (`batch.Flat`), so that padding
costs nothing but there. Weights are stacked over layers; layers run by `lax.scan` over the layer number. The last layer is
handled apart: past it only the `out` positions matter, so only its keys and values are computed everywhere.
Split once (`nnx.split`), merge inside `jit`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from llmsrec_jax.batch import Flat, Grid
from llmsrec_jax.llama import axes, ops
from llmsrec_jax.llama.attention import Past, attend
from llmsrec_jax.llama.config import LlamaConfig
from llmsrec_jax.llama.kv import KV, Source
from llmsrec_jax.llama.lora import LOW, Lora, taken
from llmsrec_jax.llama.sharding import WHOLE, Sharding

SAVED = (
    "q",
    "k",
    "v",
    "mid",
    "gate",
    "up",
    LOW,
)  # residuals from which no weight product is recomputed
REARRANGED = ("dynamic_slice", "squeeze", "reshape", "broadcast_in_dim", "all_gather")

Weights = Mapping[
    str, Any
]  # of one layer: arrays, those of products perhaps quantised, or with LoRA
Added = Mapping[str, Lora]  # LoRA by the weights that it is added to
NOTHING: Added = {}


class Frozen(nnx.Variable):
    """Never trained, never saved."""


def shapes(cfg: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight. Those of the layers have the layer axis first."""
    L, D, N, K, H, F = cfg.layers, cfg.d, cfg.heads, cfg.kv_heads, cfg.head_dim, cfg.ff
    lm_head = {"lm_head": (cfg.vocab, D)} if cfg.writes and not cfg.tied else {}
    return lm_head | {
        "table": (cfg.vocab, D),
        "attn_norm": (L, D),
        "q": (L, D, N, H),
        "k": (L, D, K, H),
        "v": (L, D, K, H),
        "o": (L, N, H, D),
        "mlp_norm": (L, D),
        "gate": (L, D, F),
        "up": (L, D, F),
        "down": (L, F, D),
        "norm": (D,),
    }


LAYER_WEIGHTS = ("attn_norm", "q", "k", "v", "o", "mlp_norm", "gate", "up", "down")


class Llama(nnx.Module):
    def __init__(self, cfg: LlamaConfig, weights: Mapping[str, Any], sharding: Sharding = WHOLE):
        """weights: one per entry of `shapes(cfg)`: arrays of one dtype, in which the layers compute; or, for the products of
        the layers, `quant.Quantised`.

        sharding: how they are shared out. If they are, the methods run per device (`jax.shard_map`).
        """
        self.cfg, self.sharding = cfg, sharding
        self.table = Frozen(weights["table"])
        self.layers = nnx.Dict({name: Frozen(weights[name]) for name in LAYER_WEIGHTS})
        self.norm = Frozen(weights["norm"])
        own_head = "lm_head" in weights
        self.lm_head = Frozen(weights["lm_head"]) if own_head else None

    def embed(self, ids: Int[Array, "*A"]) -> Float[Array, "*A D"]:
        """Input embeddings of token ids."""
        return self.sharding.lookup(self.table[...], ids)

    @property
    def predictor(self) -> Float[Array, "V D"]:
        """What final hidden states are multiplied by to predict tokens; of a shared-out backbone, the whole of it.

        Raises:
          ValueError: an lm_head that was not read.
        """
        if self.lm_head is None and not self.cfg.tied:
            raise ValueError("this backbone was read without its lm_head: it predicts no tokens")
        held = self.table if self.lm_head is None else self.lm_head
        return self.sharding.columns(held[...])

    def prefill(self, ids: Int[Array, "A"], flat: Flat, added: Added = NOTHING) -> KV:
        """Keys and values of prefixes; carries no gradient: what trains with LoRA is `extend`, from the first token on."""
        x_AD = self.embed(ids)
        rope = ops.rope_tables(self.cfg, flat.position)
        alone = (None,) * len(flat.grids)

        def body(x_AD: Array, each: tuple[Array, Added]) -> tuple[Array, tuple[Array, Array]]:
            w = self._layer(*each, flat)
            return _layer(self.cfg, self.sharding, w, x_AD, rope, flat, alone)

        before, last = self._numbered(added)
        x_AD, (k, v) = jax.lax.scan(body, x_AD, before)
        w = self._layer(*last, flat)
        _, k_last, v_last = _keys_values(self.cfg, self.sharding, w, x_AD, rope)
        k, v = jnp.concatenate([k, k_last[None]]), jnp.concatenate([v, v_last[None]])
        return jax.lax.stop_gradient(KV(k, v))

    def extend(
        self,
        x_AD: Float[Array, "A D"],
        flat: Flat,
        past: Sequence[Source | None],
        out: Sequence[Int[Array, "rows M"]],
        *,
        remat: str = "names",
        added: Added = NOTHING,
    ) -> Float[Array, "Q D"]:
        """Final hidden states, float32, at tail positions `out` of every grid's sequences, one after the other.

        Differentiable in x and in `added`, LoRA of all layers. past: per grid, what its tails continue; None = the tail is the whole prompt.
        remat: what is kept for the backward pass: none (everything) | names (no weight product is recomputed) | inputs (of layers).
        """
        rope = ops.rope_tables(self.cfg, flat.position)
        dtype = self.table[...].dtype

        def layer(x_AD: Array, i: Any, row: Added, at: Sequence[Array] | None = None) -> Array:
            cached = [None if one is None else one[0].layer(i, one[1], dtype) for one in past]
            w = self._layer(i, row, flat)
            return _layer(self.cfg, self.sharding, w, x_AD, rope, flat, cached, at)[0]

        before, (number, row) = self._numbered(added)
        body = _remat(lambda x_AD, each: (layer(x_AD, *each), None), remat)
        last_layer = _remat(lambda x_AD, row: layer(x_AD, number, row, out), remat)
        x_AD, _ = jax.lax.scan(body, x_AD.astype(dtype), before)
        return ops.rms_norm(last_layer(x_AD, row), self.norm[...], self.cfg.eps)

    def hidden(
        self, x_BTD: Float[Array, "B T D"], length: Int[Array, "B"]
    ) -> Float[Array, "B T D"]:
        """Final hidden states, float32, at all positions; those at or beyond `length` are of no meaning."""
        B, T, D = x_BTD.shape
        at = jnp.arange(B * T, dtype=jnp.int32).reshape(B, T)
        flat = Flat(at.ravel() % T, None, (Grid(at, length),))
        every = self.extend(x_BTD.reshape(-1, D), flat, [None], [at % T], remat="none")
        return every.reshape(B, T, D)

    def _numbered(self, added: Added) -> tuple[tuple[Array, Added], tuple[int, Added]]:
        """Numbers of the layers with their rows of `added`: of all but the last, stacked, and of the last."""
        last = self.cfg.layers - 1
        rows = lambda index: jax.tree.map(lambda leaf: leaf[index], added)
        return (jnp.arange(last), rows(slice(last))), (last, rows(last))

    def _layer(self, i: int | Array, added: Added, flat: Flat) -> Weights:
        # indexed, not scanned over: slicing off the last layer would copy all the weights in every call
        sharding, layers = self.sharding, self.layers
        w = {name: sharding.whole(name, _row(layers[name][...], i)) for name in LAYER_WEIGHTS}
        own = {name: sharding.own(name, row) for name, row in added.items()}
        tokens = None if flat.owner is None else (flat.owner, flat.position)
        return w | {name: replace(row, base=w[name], tokens=tokens) for name, row in own.items()}


def _row(stacked: Any, i: int | Array) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), stacked)


def _keys_values(
    cfg: LlamaConfig, sharding: Sharding, w: Weights, x_AD: Array, rope: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    """Normed input [A, D], rotated keys and values [A, K, H]."""
    h_AD = sharding.enter(ops.rms_norm(x_AD, w["attn_norm"], cfg.eps).astype(x_AD.dtype))
    k_AKH = ops.rotate(ops.linear(h_AD, w["k"]), rope)
    v_AKH = ops.linear(h_AD, w["v"])
    return h_AD, checkpoint_name(k_AKH, "k"), checkpoint_name(v_AKH, "v")


def _layer(
    cfg: LlamaConfig,
    sharding: Sharding,
    w: Weights,
    x_AD: Array,
    rope: tuple[Array, Array],
    flat: Flat,
    past: Sequence[Past | None],
    out: Sequence[Array] | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """One layer: its output (at positions `out` only, if given) and its keys and values at all tokens."""
    h_AD, k_AKH, v_AKH = _keys_values(cfg, sharding, w, x_AD, rope)
    if out is not None:
        at = axes.tokens(flat, out)
        x_AD, h_AD, cos, sin = (jnp.take(x, at, axis=0, mode="clip") for x in (x_AD, h_AD, *rope))
        rope, w = (cos, sin), taken(w, at)
    q_ANH = checkpoint_name(ops.rotate(ops.linear(h_AD, w["q"]), rope), "q")
    q = axes.spread(q_ANH, flat) if out is None else axes.split(q_ANH, out)
    k, v = axes.spread(k_AKH, flat), axes.spread(v_AKH, flat)
    positions = [None] * len(q) if out is None else out
    lengths, hidden = [grid.length for grid in flat.grids], [grid.hidden for grid in flat.grids]
    a = [attend(*each) for each in zip(q, k, v, lengths, past, positions, hidden, strict=True)]
    a_ANH = axes.join(a) if out is not None else axes.collect(a, flat)
    o_AD = sharding.leave(ops.linear(a_ANH, w["o"], 2))
    mid_AD = checkpoint_name(x_AD + o_AD, "mid")
    h_AD = sharding.enter(ops.rms_norm(mid_AD, w["mlp_norm"], cfg.eps).astype(x_AD.dtype))
    gate_AF = checkpoint_name(ops.linear(h_AD, w["gate"]), "gate")
    up_AF = checkpoint_name(ops.linear(h_AD, w["up"]), "up")
    down_AD = ops.linear(jax.nn.silu(gate_AF) * up_AF, w["down"])
    return mid_AD + sharding.leave(down_AD), (k_AKH, v_AKH)


def _save_results(primitive: Any, *_: Any, **__: Any) -> bool:
    """Everything computed; not what is only re-arranged or lent, or the weights would be copied layer by layer."""
    return primitive.name not in REARRANGED


POLICIES = {
    "none": _save_results,
    "names": jax.checkpoint_policies.save_only_these_names(*SAVED),
    "inputs": jax.checkpoint_policies.nothing_saveable,
}


def _remat(function: Callable[..., Any], remat: str) -> Callable[..., Any]:
    if remat not in POLICIES:
        raise ValueError(f"llm.remat: no policy {remat!r}, choose {' | '.join(POLICIES)}")
    return jax.checkpoint(function, policy=POLICIES[remat], prevent_cse=False)
