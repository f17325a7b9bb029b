"""Keys and values of constant prefixes, on a flat token axis: exact, or as int8 with a scale per token and head."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from llmsrec_jax.batch import Grid
from llmsrec_jax.llama.attention import Past

INT8_MAX = 127


class KV(NamedTuple):
    """Rotated keys and values of prefix tokens, all layers."""

    k: Array  # [layers, A, K, H]
    v: Array
    k_scale: Array | None = None  # float32 [layers, A, K], where k and v are int8
    v_scale: Array | None = None

    def layer(self, i: int | Array, grid: Grid, dtype: Any) -> Past:
        """Of the sequences of a grid. Indexed by layer and token at once: slicing off a layer would copy it."""

        def rows(values: Array, scale: Array | None) -> Array:
            found = jnp.asarray(values).at[i, grid.at].get(mode="fill", fill_value=0)
            if scale is not None:
                factor = jnp.asarray(scale).at[i, grid.at].get(mode="fill", fill_value=0)
                found = found.astype(jnp.float32) * factor[..., None]
            return found.astype(dtype)

        return Past(rows(self.k, self.k_scale), rows(self.v, self.v_scale), grid.length)

    def as_dtype(self, dtype: Any) -> "KV":
        """Rounded to a floating-point type, or to int8: to the nearest of 255 steps up to the largest of a token and head."""
        if dtype != jnp.int8:
            return KV(self.k.astype(dtype), self.v.astype(dtype))
        (k, k_scale), (v, v_scale) = _steps(self.k), _steps(self.v)
        return KV(k, v, k_scale, v_scale)


Source = tuple[KV, Grid]  # a grid's prefixes, and where their keys and values are


def _steps(x: Array) -> tuple[Array, Array]:
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis=-1), 1e-30) / INT8_MAX
    return jnp.rint(x / scale[..., None]).astype(jnp.int8), scale
