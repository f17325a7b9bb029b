"""The small operations of a LLaMA layer. Norms and rotations are computed in float32 whatever the dtype of x."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llmsrec_jax.llama import lora, quant
from llmsrec_jax.llama.config import LlamaConfig
from llmsrec_jax.llama.lora import Lora
from llmsrec_jax.llama.quant import Quantised


def linear(x: Float[Array, "..."], weight: Array | Quantised | Lora, inputs: int = 1) -> Array:
    """The last `inputs` axes of x against the first ones of the weight: every product with a weight is here."""
    if isinstance(weight, Lora):
        return lora.add(linear(x, weight.base, inputs), x, weight, inputs)
    if isinstance(weight, Quantised):
        return quant.linear(x, weight, inputs)
    # last axes first, as jnp.einsum writes it: the order of the sum is part of the result
    axes = tuple(reversed(range(x.ndim - inputs, x.ndim))), tuple(reversed(range(inputs)))
    return jax.lax.dot_general(x, weight, (axes, ((), ())), preferred_element_type=x.dtype)


def rms_norm(x: Float[Array, "*B D"], scale: Float[Array, "D"], eps: float) -> Float[Array, "*B D"]:
    """x / rms(x) * scale in float32. Returns float32; the caller casts."""
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + eps) * scale.astype(jnp.float32)


def inverse_frequencies(cfg: LlamaConfig) -> np.ndarray:
    """Radians per position of every rotated pair, float32 [head_dim / 2], llama3 scaling included.

    In float32 and in the order of the HF code: one rounding error here is a visible phase after a thousand positions.
    """
    rope = cfg.rope
    exponent = np.arange(0, cfg.head_dim, 2).astype(np.float32) / np.float32(cfg.head_dim)
    inverse = np.float32(1) / np.power(np.float32(rope.theta), exponent)
    if rope.kind == "llama3":
        turns = np.float32(rope.original) / (np.float32(2 * np.pi) / inverse)  # in the old context
        keep = (turns - np.float32(rope.low)) / np.float32(rope.high - rope.low)
        stretched = inverse / np.float32(rope.factor)
        between = (1 - keep) * stretched + keep * inverse
        inverse = np.where(keep <= 0, stretched, np.where(keep >= 1, inverse, between))
    return inverse


def rope_tables(
    cfg: LlamaConfig, positions: Int[Array, "*A"]
) -> tuple[Float[Array, "*A H/2"], Float[Array, "*A H/2"]]:
    """Cosine and sine, float32."""
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(cfg)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "*A N H"],
    rope: tuple[Float[Array, "*A H/2"], Float[Array, "*A H/2"]],
) -> Float[Array, "*A N H"]:
    """Turns (x[i], x[i + H/2]) by the angle of pair i (half-split pairs, as in HF checkpoints)."""
    cos, sin = (table[..., None, :] for table in rope)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
