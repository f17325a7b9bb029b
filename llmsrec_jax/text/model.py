"""A post-norm transformer that reads both ways (BERT): ids of whole texts in, hidden states or one vector per text out.

Families differ by the names in their checkpoints only: `weights` brings them to this one form. Computed in float32.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from llmsrec_jax.text.config import EncoderConfig, Pooling

ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}
MASKED = -1e30  # logit of a key that is a pad; finite, so that no gradient is NaN


def shapes(cfg: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight. Those of the layers have the layer axis first; `qkv` is three products in one."""
    L, D, F = cfg.layers, cfg.d, cfg.ff
    return {
        "word": (cfg.vocab, D),
        "position": (cfg.max_tokens, D),  # token type 0 is added in
        "embed_scale": (D,),
        "embed_bias": (D,),
        "qkv": (L, D, 3 * D),
        "qkv_bias": (L, 3 * D),
        "out": (L, D, D),
        "out_bias": (L, D),
        "attn_scale": (L, D),
        "attn_bias": (L, D),
        "up": (L, D, F),
        "up_bias": (L, F),
        "down": (L, F, D),
        "down_bias": (L, D),
        "ff_scale": (L, D),
        "ff_bias": (L, D),
    }


OUTSIDE = ("word", "position", "embed_scale", "embed_bias")  # of the layers


class Encoder(nnx.Module):
    """Split once (`nnx.split`), merge inside `jit`. Frozen for whoever keeps its state apart from what trains."""

    def __init__(self, cfg: EncoderConfig, weights: Mapping[str, Array]):
        """weights: one per entry of `shapes(cfg)`."""
        self.cfg = cfg
        self.weights = nnx.Dict({name: nnx.Param(weights[name]) for name in shapes(cfg)})

    def __call__(self, ids: Int[Array, "B T"], length: Int[Array, "B"]) -> Float[Array, "B T D"]:
        """Last hidden states; those at or beyond `length` are of no meaning, and change no other."""
        cfg, w = self.cfg, {name: leaf[...] for name, leaf in self.weights.items()}
        T = ids.shape[1]
        x_BTD = w["word"][ids] + w["position"][:T]
        x_BTD = _norm(x_BTD, w["embed_scale"], w["embed_bias"], cfg.eps)
        seen_BT = jnp.arange(T) < length[:, None]
        bias_B11S = jnp.where(seen_BT, 0.0, MASKED)[:, None, None]
        layers = {name: leaf for name, leaf in w.items() if name not in OUTSIDE}
        body = lambda x_BTD, w: (_layer(cfg, w, x_BTD, bias_B11S), None)
        return jax.lax.scan(body, x_BTD, layers)[0]


def vectors(
    encoder: Encoder, ids: Int[Array, "B T"], length: Int[Array, "B"], pooling: Pooling
) -> Float[Array, "B D"]:
    """One vector per text, as `pooling` says."""
    x_BTD = encoder(ids, length)
    if pooling.mode == "cls":
        x_BD = x_BTD[:, 0]
    else:
        seen_BT1 = (jnp.arange(ids.shape[1]) < length[:, None])[..., None]
        x_BD = jnp.sum(jnp.where(seen_BT1, x_BTD, 0.0), axis=1) / length[:, None]
    if pooling.unit:  # as torch's normalize: a zero vector stays one
        square_B1 = jnp.sum(x_BD * x_BD, axis=1, keepdims=True)
        x_BD = x_BD * jax.lax.rsqrt(jnp.maximum(square_B1, 1e-24))
    return x_BD


def _norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale + bias


def _linear(x: Array, weight: Array, bias: Array) -> Array:
    return jnp.matmul(x, weight, precision="highest") + bias


def _layer(cfg: EncoderConfig, w: Mapping[str, Array], x_BTD: Array, bias_B11S: Array) -> Array:
    B, T, D = x_BTD.shape
    qkv_BTF = _linear(x_BTD, w["qkv"], w["qkv_bias"])
    q, k, v = (x.reshape(B, T, cfg.heads, -1) for x in jnp.split(qkv_BTF, 3, axis=-1))
    logits_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q, k, precision="highest")
    logits_BNTS = logits_BNTS * (D // cfg.heads) ** -0.5 + bias_B11S
    mix = jax.nn.softmax(logits_BNTS, axis=-1)
    mixed_BTD = jnp.einsum("BNTS,BSNH->BTNH", mix, v, precision="highest").reshape(B, T, D)
    attended_BTD = x_BTD + _linear(mixed_BTD, w["out"], w["out_bias"])
    x_BTD = _norm(attended_BTD, w["attn_scale"], w["attn_bias"], cfg.eps)
    h_BTF = ACTIVATIONS[cfg.act](_linear(x_BTD, w["up"], w["up_bias"]))
    fed_BTD = x_BTD + _linear(h_BTF, w["down"], w["down_bias"])
    return _norm(fed_BTD, w["ff_scale"], w["ff_bias"], cfg.eps)
