"""Weights of the layers' products in int8, with a scale per output channel: half of bfloat16's memory, and other numbers.

`w8` rounds the weights alone; `w8a8` rounds the inputs of every product too, each token by its own scale, so that a vector
does not depend on what else is in the batch. Embeddings and norms are never rounded, nor is any gradient.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int8

Mode = Literal["none", "w8", "w8a8"]
STEPS = 127  # from 0 to the largest; -128 stays unused, so that both signs are alike


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class Quantised:
    """A weight `values * scale`, of one layer or (with a layer axis in front of both) of all."""

    values: Int8[Array, "*layers_inputs_outputs"]
    scale: Float32[Array, "*layers_outputs"]
    inputs_too: bool = field(metadata={"static": True})  # w8a8

    def __getitem__(self, index: object) -> "Quantised":
        """Of both arrays, as far as they share axes."""
        return jax.tree.map(lambda array: array[index], self)


def quantise(stacked: Float[np.ndarray, "L *in_out"], inputs: int, mode: Mode) -> Quantised:
    """Host arrays: every output channel of every layer symmetric, its largest weight at 127.

    inputs: how many axes after the layer axis are inputs. Raises ValueError for a weight that is not finite.
    """
    values = np.empty(stacked.shape, np.int8)
    scale = np.empty((len(stacked), *stacked.shape[1 + inputs :]), np.float32)

    def fill(layer: int) -> None:
        weight = stacked[layer].reshape(-1, *scale.shape[1:]).astype(np.float32, copy=False)
        step = np.maximum(weight.max(0), -weight.min(0)) / np.float32(STEPS)
        if not np.isfinite(step).all():
            raise ValueError(f"layer {layer} has weights that are not finite")
        scale[layer] = np.where(step > 0, step, 1)
        target = values[layer].reshape(weight.shape)  # a view
        strip = max(1, (1 << 18) // math.prod(weight.shape[1:]))  # rows that stay in cache
        for row in range(0, len(weight), strip):
            target[row : row + strip] = np.rint(weight[row : row + strip] / scale[layer])

    with ThreadPoolExecutor() as pool:
        list(pool.map(fill, range(len(stacked))))
    return Quantised(values, scale, {"w8": False, "w8a8": True}[mode])  # pyright: ignore


def linear(x: Float[Array, "..."], weight: Quantised, inputs: int) -> Float[Array, "..."]:
    """`ops.linear` of a quantised weight, in the dtype of x. Its gradient is that of the product with `values * scale`."""
    return _linear(x, weight.values, weight.scale, inputs, weight.inputs_too)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _linear(x: Array, values: Array, scale: Array, inputs: int, inputs_too: bool) -> Array:
    """Scales are put to the result, in float32: int8 is exact in every dtype of x, and the sum is scaled once."""
    axes = tuple(range(-inputs, 0)), tuple(range(inputs))
    if not inputs_too:
        wide = values.astype(x.dtype)
        y = jax.lax.dot_general(x, wide, _contract(x, axes), preferred_element_type=jnp.float32)
        return (y * scale).astype(x.dtype)
    rounded, step = _round_tokens(x, axes[0])
    y = jax.lax.dot_general(rounded, values, _contract(x, axes), preferred_element_type=jnp.int32)
    step = step.reshape(step.shape[: x.ndim - inputs] + (1,) * scale.ndim)
    return (y.astype(jnp.float32) * (step * scale)).astype(x.dtype)


def _contract(x: Array, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple:
    return ((tuple(x.ndim + axis for axis in axes[0]), axes[1]), ((), ()))


def _round_tokens(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """int8 and the float32 step of every token, its largest input at 127; what is not finite makes the step so."""
    x = x.astype(jnp.float32)
    step = jnp.max(jnp.abs(x), axes, keepdims=True) / STEPS
    step = jnp.where(step == 0, 1, step)
    return jnp.round(x / step).astype(jnp.int8), step


def _forward(x: Array, values: Array, scale: Array, inputs: int, inputs_too: bool):
    return _linear(x, values, scale, inputs, inputs_too), (values, scale)


def _backward(inputs: int, inputs_too: bool, kept: tuple[Array, Array], g: Array):
    """Rounded inputs count as if they were not (straight through): rounding has no gradient of its own."""
    values, scale = kept
    scaled = (g.astype(jnp.float32) * scale).astype(g.dtype)
    outputs = tuple(range(inputs, values.ndim))
    axes = ((tuple(range(g.ndim - len(outputs), g.ndim)), outputs), ((), ()))
    dx = jax.lax.dot_general(scaled, values.astype(g.dtype), axes, preferred_element_type=g.dtype)
    return dx, None, None


_linear.defvjp(_forward, _backward)
