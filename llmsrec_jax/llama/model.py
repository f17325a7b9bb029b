"""LLaMA for frozen use: a prompt is a constant prefix (`prefill`, no gradient) and a live tail (`extend`, differentiable in x).

Weights are stacked over layers; layers run by `lax.scan` over the layer number. The last layer is handled apart: past it only
the `out` positions matter, so only its keys and values are computed everywhere. Split once (`nnx.split`), merge inside `jit`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from llmsrec_jax.llama import ops
from llmsrec_jax.llama.attention import Past, attend
from llmsrec_jax.llama.config import LlamaConfig
from llmsrec_jax.llama.sharding import WHOLE, Sharding

SAVED = ("q", "k", "v", "mid", "gate", "up")  # residuals from which no weight product is recomputed

REARRANGED = ("dynamic_slice", "squeeze", "reshape", "broadcast_in_dim", "all_gather")

Weights = Mapping[str, Array]  # of one layer


class Frozen(nnx.Variable):
    """Never trained, never saved."""


class KV(NamedTuple):
    """Rotated keys and values of a right-padded prefix, all layers."""

    k: Float[Array, "layers B P K H"]
    v: Float[Array, "layers B P K H"]
    length: Int[Array, "B"]

    def layer(self, i: int | Array) -> Past:
        return Past(_row(self.k, i), _row(self.v, i), self.length)


def shapes(cfg: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight. Those of the layers have the layer axis first."""
    L, D, N, K, H, F = cfg.layers, cfg.d, cfg.heads, cfg.kv_heads, cfg.head_dim, cfg.ff
    return {
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
    def __init__(self, cfg: LlamaConfig, weights: Mapping[str, Array], sharding: Sharding = WHOLE):
        """weights: one array per entry of `shapes(cfg)`, all of one dtype, in which the layers compute.

        sharding: how they are shared out. If they are, the methods run per device (`jax.shard_map`).
        """
        self.cfg, self.sharding = cfg, sharding
        self.table = Frozen(weights["table"])
        self.layers = nnx.Dict({name: Frozen(weights[name]) for name in LAYER_WEIGHTS})
        self.norm = Frozen(weights["norm"])

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Input embeddings of token ids."""
        return self.sharding.lookup(self.table[...], ids)

    def prefill(self, ids: Int[Array, "B P"], length: Int[Array, "B"]) -> KV:
        """Keys and values of right-padded prefixes; carries no gradient."""
        x_BPD = self.embed(ids)
        rope = self._rope(None, ids)

        def body(x_BTD: Array, i: Array) -> tuple[Array, tuple[Array, Array]]:
            return _layer(self.cfg, self.sharding, self._layer(i), x_BTD, rope, length)

        last = self.cfg.layers - 1
        x_BPD, (k, v) = jax.lax.scan(body, x_BPD, jnp.arange(last))
        _, k_last, v_last = _keys_values(self.cfg, self.sharding, self._layer(last), x_BPD, rope)
        k, v = jnp.concatenate([k, k_last[None]]), jnp.concatenate([v, v_last[None]])
        return jax.lax.stop_gradient(KV(k, v, length))

    def extend(
        self,
        x_BTD: Float[Array, "B T D"],
        length: Int[Array, "B"],
        past: KV | None,
        out_BM: Int[Array, "B M"],
        *,
        remat: str = "names",
    ) -> Float[Array, "B M D"]:
        """Final hidden states, float32, at tail positions `out`, of a right-padded tail that continues `past`.

        Differentiable in x. length: real tail tokens; past None = the tail is the whole prompt.
        remat: what is kept for the backward pass: none (everything) | names (no weight product is recomputed) | inputs (of layers).
        """
        rope = self._rope(past, x_BTD)

        def body(x_BTD: Array, i: Array) -> tuple[Array, None]:
            before = None if past is None else past.layer(i)
            return _layer(self.cfg, self.sharding, self._layer(i), x_BTD, rope, length, before)[
                0
            ], None

        def last_layer(x_BTD: Array) -> Array:
            i = self.cfg.layers - 1
            before = None if past is None else past.layer(i)
            return _layer(
                self.cfg, self.sharding, self._layer(i), x_BTD, rope, length, before, out_BM
            )[0]

        x_BTD = x_BTD.astype(self.table[...].dtype)
        x_BTD, _ = jax.lax.scan(_remat(body, remat), x_BTD, jnp.arange(self.cfg.layers - 1))
        x_BMD = _remat(last_layer, remat)(x_BTD)
        return ops.rms_norm(x_BMD, self.norm[...], self.cfg.eps)

    def hidden(
        self, x_BTD: Float[Array, "B T D"], length: Int[Array, "B"]
    ) -> Float[Array, "B T D"]:
        """Final hidden states, float32, at all positions; those at or beyond `length` are of no meaning."""
        every = jnp.broadcast_to(jnp.arange(x_BTD.shape[1]), x_BTD.shape[:2])
        return self.extend(x_BTD, length, None, every, remat="none")

    def _layer(self, i: int | Array) -> Weights:
        # indexed, not scanned over: slicing off the last layer would copy all the weights in every call
        whole, layers = self.sharding.whole, self.layers
        return {name: whole(name, _row(layers[name][...], i)) for name in LAYER_WEIGHTS}

    def _rope(self, past: KV | None, tail: Array) -> tuple[Array, Array]:
        start = jnp.zeros((tail.shape[0],), jnp.int32) if past is None else past.length
        return ops.rope_tables(self.cfg, start[:, None] + jnp.arange(tail.shape[1]))


def _row(stacked: Array, i: int | Array) -> Array:
    return jax.lax.dynamic_index_in_dim(stacked, i, keepdims=False)


def _keys_values(
    cfg: LlamaConfig, sharding: Sharding, w: Weights, x_BTD: Array, rope: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    """Normed input [B, T, D], rotated keys and values [B, T, K, H]."""
    h_BTD = ops.rms_norm(x_BTD, w["attn_norm"], cfg.eps).astype(x_BTD.dtype)
    h_BTD = sharding.enter(h_BTD)
    k_BTKH = ops.rotate(jnp.einsum("BTD,DKH->BTKH", h_BTD, w["k"]), rope)
    v_BTKH = jnp.einsum("BTD,DKH->BTKH", h_BTD, w["v"])
    return h_BTD, checkpoint_name(k_BTKH, "k"), checkpoint_name(v_BTKH, "v")


def _layer(
    cfg: LlamaConfig,
    sharding: Sharding,
    w: Weights,
    x_BTD: Array,
    rope: tuple[Array, Array],
    length: Array,
    past: Past | None = None,
    at_BM: Array | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """One layer: its output (at positions `at` only, if given) and its keys and values at all positions."""
    h_BTD, k_BTKH, v_BTKH = _keys_values(cfg, sharding, w, x_BTD, rope)
    if at_BM is not None:
        x_BTD, h_BTD = ops.take(x_BTD, at_BM), ops.take(h_BTD, at_BM)
        rope = (ops.take(rope[0], at_BM), ops.take(rope[1], at_BM))
    q_BTNH = ops.rotate(jnp.einsum("BTD,DNH->BTNH", h_BTD, w["q"]), rope)
    q_BTNH = checkpoint_name(q_BTNH, "q")
    a_BTNH = attend(q_BTNH, k_BTKH, v_BTKH, length, past, at_BM)
    o_BTD = sharding.leave(jnp.einsum("BTNH,NHD->BTD", a_BTNH, w["o"]))
    mid_BTD = checkpoint_name(x_BTD + o_BTD, "mid")
    h_BTD = sharding.enter(ops.rms_norm(mid_BTD, w["mlp_norm"], cfg.eps).astype(x_BTD.dtype))
    gate_BTF = checkpoint_name(jnp.einsum("BTD,DF->BTF", h_BTD, w["gate"]), "gate")
    up_BTF = checkpoint_name(jnp.einsum("BTD,DF->BTF", h_BTD, w["up"]), "up")
    down_BTD = jnp.einsum("BTF,FD->BTD", jax.nn.silu(gate_BTF) * up_BTF, w["down"])
    return mid_BTD + sharding.leave(down_BTD), (k_BTKH, v_BTKH)


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
