"""LoRA (Hu et al. 2021, arXiv:2106.09685) as one more kind of weight: W x + alpha / rank * B A x, of which A and B train.

As in Hugging Face's peft: dropout is put to the x of A alone, A and B are kept in float32. They are rounded to the dtype of x
for the products, whose sums are in float32. With B = 0 what comes out is W x to the last bit (int8: up to its last rounding).
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

# Hugging Face's name of a product -> ours
TARGETS = {f"{name}_proj": name for name in ("q", "k", "v", "o", "gate", "up", "down")}
LOW = "low"  # name of A x, which is kept for the backward pass


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class Lora:
    """`base` and what is added to it, of one layer or (with a layer axis in front of all arrays) of all."""

    base: Any  # an array or quantised; None: not yet put to it
    a: Float[Array, "*layers_inputs_rank"]
    b: Float[Array, "*layers_rank_outputs"]
    key: Array | None  # of dropout; None = nothing is dropped
    scale: float = field(metadata={"static": True})  # alpha / rank
    dropout: float = field(metadata={"static": True})  # share of x


def add(y: Float[Array, "..."], x: Float[Array, "..."], weight: Lora, inputs: int) -> Array:
    """`y`, which is the product of x with the base, and the rest; in the dtype of y."""
    if weight.key is not None:
        kept = jax.random.bernoulli(weight.key, 1 - weight.dropout, x.shape)
        x = jnp.where(kept, x / (1 - weight.dropout), 0)
    low = checkpoint_name(_product(x, weight.a, inputs), LOW)
    added = weight.scale * _product(low.astype(x.dtype), weight.b, 1)
    return (y.astype(jnp.float32) + added).astype(y.dtype)


def _product(x: Array, weight: Array, inputs: int) -> Float[Array, "..."]:
    """In float32."""
    axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    weight = weight.astype(x.dtype)
    return jax.lax.dot_general(x, weight, (axes, ((), ())), preferred_element_type=jnp.float32)


def delta(weight: Lora) -> Float[Array, "layers *inputs_outputs"]:
    """What all layers' products add up to, as one weight: alpha / rank * B A, float32."""
    product = partial(jnp.tensordot, axes=1, precision="highest")
    return weight.scale * jax.vmap(product)(weight.a, weight.b)
