"""LoRA (Hu et al. 2021, arXiv:2106.09685) as one more kind of weight: W x + alpha / rank * B A x, of which A and B train.

As in Hugging Face's peft: dropout is put to the x of A alone, A and B are kept in float32. They are rounded to the dtype of x
for the products, whose sums are in float32. With B = 0 what comes out is W x to the last bit (int8: up to its last rounding).

What is dropped of a token follows from the key (of the step, the layer and the product), from whose token it is (`Flat.owner`) and
from its position: neither from the other prompts of a batch, nor from its shape, nor from the devices.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
    tokens: tuple[Array, Array] | None = None  # int32 [A] each: owner and position of what is read
    part: Array | None = None  # int32: which part of the inputs is here, of so many
    parts: int = field(default=1, metadata={"static": True})


def add(y: Float[Array, "..."], x: Float[Array, "..."], weight: Lora, inputs: int) -> Array:
    """`y`, which is the product of x with the base, and the rest; in the dtype of y."""
    if weight.key is not None:
        x = jnp.where(_kept(weight, weight.key, x.shape), x / (1 - weight.dropout), 0)
    low = checkpoint_name(_product(x, weight.a, inputs), LOW)
    added = weight.scale * _product(low.astype(x.dtype), weight.b, 1)
    return (y.astype(jnp.float32) + added).astype(y.dtype)


def _kept(weight: Lora, key: Array, shape: tuple[int, ...]) -> Array:
    """bool [A, *inputs]; 16 random bits each. Of inputs that devices share out, all are drawn on each of them."""
    if weight.tokens is None:
        raise ValueError("LoRA's dropout goes by the tokens, and they were not told")
    width = weight.parts * math.prod(shape[1:])

    def draw(owner: Array, position: Array) -> Array:
        own = jax.random.fold_in(jax.random.fold_in(key, owner), position)
        return jax.random.bits(own, (-(-width // 2),), jnp.uint32)

    halves = jax.vmap(draw)(*weight.tokens)
    bits = jax.lax.bitcast_convert_type(halves, jnp.uint16).reshape(shape[0], -1)[:, :width]
    if weight.part is not None:
        bits = bits.reshape(shape[0], weight.parts, -1)[:, weight.part]
    return bits.reshape(shape) >= round(weight.dropout * 2**16)


def taken(weights: Mapping[str, Any], at: Array) -> dict[str, Any]:
    """The weights of a layer, to be put to tokens `at` of its axis alone."""

    def of(weight: Any) -> Any:
        if not isinstance(weight, Lora) or weight.tokens is None:
            return weight
        owner, position = (jnp.take(x, at, mode="clip") for x in weight.tokens)
        return replace(weight, tokens=(owner, position))

    return {name: of(weight) for name, weight in weights.items()}


def _product(x: Array, weight: Array, inputs: int) -> Float[Array, "..."]:
    """In float32."""
    axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    weight = weight.astype(x.dtype)
    return jax.lax.dot_general(x, weight, (axes, ((), ())), preferred_element_type=jnp.float32)


def delta(weight: Lora) -> Float[Array, "layers *inputs_outputs"]:
    """What all layers' products add up to, as one weight: alpha / rank * B A, float32."""
    product = partial(jnp.tensordot, axes=1, precision="highest")
    return weight.scale * jax.vmap(product)(weight.a, weight.b)
