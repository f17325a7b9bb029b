"""What the CF-SRec models share: left-padded windows as flat columns, dropout by key, and the two calls they all answer."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

MASKED = -1e30  # logit of a key that must not be seen; finite, so that no gradient is NaN


class CFSRec(Protocol):
    """A sequence model over item ids; a score is the dot product of its features with `item_embedding` [I, E], row 0 unused."""

    item_embedding: nnx.Param

    def encode(
        self, items_NE: Array, histories: Sequence[Array], key: Array | None = None
    ) -> Float[Array, "N E"]:
        """Features of the flat columns of left-padded windows [B, T], whose embeddings are given; dropout only with a key."""
        ...

    def user_repr(self, history: Int[Array, "B T"]) -> Float[Array, "B E"]:
        """O_u: what is compared with the items that may come next."""
        ...


def normal(fan_in: int, fan_out: int) -> Callable[..., Any]:
    """Xavier-normal by PyTorch's fans: a fused projection counts all of its outputs."""
    return nnx.initializers.normal(math.sqrt(2.0 / (fan_in + fan_out)))


def norm(width: int, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout; none without a key. 16 random bits per number: drawing them costs as much as a matmul."""
    if key is None or rate == 0.0:
        return x
    halves = jax.random.bits(key, (-(-x.size // 2),), jnp.uint32)
    bits = jax.lax.bitcast_convert_type(halves, jnp.uint16).reshape(-1)[: x.size].reshape(x.shape)
    return jnp.where(bits >= round(rate * 2**16), x / (1.0 - rate), 0.0)


def keys(key: Array | None, n: int) -> list[Array | None]:
    """One for each of n dropouts; none without a key."""
    return [None] * n if key is None else list(jax.random.split(key, n))


def flat(parts: Sequence[Array]) -> Array:
    """Windows of different length -> one row per column: what acts on columns alone runs, and compiles, once."""
    return jnp.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts])


def unflat(x_NE: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """[B, T, ...] of every group of windows of these shapes (B, T): the inverse of `flat`."""
    ends = list(itertools.accumulate(map(math.prod, shapes)))[:-1]
    parts = zip(jnp.split(x_NE, ends), shapes, strict=True)
    return [part.reshape(*shape, *x_NE.shape[1:]) for part, shape in parts]


def embedded(table_IE: Float[Array, "I E"], ids: Int[Array, "*N"]) -> Float[Array, "*N E"]:
    """Rows of `table_IE`; those of hidden items are the model's to replace."""
    return table_IE[jnp.maximum(ids, 0)]


def slots(position_embedding: Float[Array, "S E"], history: Int[Array, "B T"]) -> Array:
    """[B, T, E] embeddings of the last T of S slots: the most recent item is in the last one.

    Raises:
      ValueError: T > S.
    """
    (max_len, E), T = position_embedding.shape, history.shape[1]
    if T > max_len:
        raise ValueError(f"windows of {T} items, but teacher.max_len is {max_len}: cut them")
    return jnp.broadcast_to(position_embedding[max_len - T :], (*history.shape, E))


def features(model: CFSRec, history: Int[Array, "B T"]) -> Float[Array, "B T E"]:
    """Of every column, without dropout; 0 = pad. Raises as the model's `encode`."""
    items_NE = embedded(model.item_embedding[...], history.reshape(-1))
    return model.encode(items_NE, [history]).reshape(*history.shape, -1)


def last_features(model: CFSRec, history: Int[Array, "B T"]) -> Float[Array, "B E"]:
    """`user_repr` of a model whose columns each say what comes next: the features of the last one. Raises as `features`."""
    return features(model, history)[:, -1]
