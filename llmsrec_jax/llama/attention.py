"""One `attend()` for every path: causal attention over an optional cached prefix, grouped K/V heads.

XLA with masks everywhere (TPU included, for now); on CUDA the fused cuDNN kernel where it applies, chosen when tracing.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import backend
from jaxtyping import Array, Float, Int

CUDNN_MAX_HEAD_DIM = 128
MIN_BLOCK = 128  # queries; smaller blocks compile longer and save little


class Past(NamedTuple):
    """One layer's keys and values of a right-padded prefix."""

    k: Float[Array, "B P K H"]
    v: Float[Array, "B P K H"]
    length: Int[Array, "B"]


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    length: Int[Array, "B"],
    past: Past | None = None,
    at_BT: Int[Array, "B T"] | None = None,
    hidden_BS2: Int[Array, "B S 2"] | None = None,
) -> Float[Array, "B T N H"]:
    """Causal softmax(q k / sqrt(H)) v over the prefix and the tail up to each query.

    length: tail tokens that are real; later ones are never attended to. Queries beyond it get finite values of no meaning.
    at: tail position of every query; None = query t is at position t.
    hidden: per tail position, from which tail position up to which other one it sees no key; None = it sees all before it.
    """
    if past is None and at_BT is None and hidden_BS2 is None and _cudnn_fits(q_BTNH):
        return _attend_cudnn(q_BTNH, k_BSKH, v_BSKH, length)
    if at_BT is None and jax.default_backend() == "cpu" and q_BTNH.shape[1] >= MIN_BLOCK:
        return _attend_row_by_row(q_BTNH, k_BSKH, v_BSKH, length, past, hidden_BS2)
    mask = _mask(length, k_BSKH.shape[1], at_BT, hidden_BS2)
    start = 0  # of the tail among the keys
    if past is not None:
        start = past.k.shape[1]
        before = jnp.arange(start) < past.length[:, None]
        before = jnp.broadcast_to(before[:, None, :], (*mask.shape[:2], start))
        mask = jnp.concatenate([before, mask], axis=-1)
        k_BSKH = jnp.concatenate([past.k, k_BSKH], axis=1)
        v_BSKH = jnp.concatenate([past.v, v_BSKH], axis=1)
    if at_BT is not None:
        return _attend_xla(q_BTNH, k_BSKH, v_BSKH, mask)
    outs = []
    for first, end in blocks(q_BTNH.shape[1]):  # a block needs no key after its last query
        S = start + end
        outs.append(
            _attend_xla(q_BTNH[:, first:end], k_BSKH[:, :S], v_BSKH[:, :S], mask[:, first:end, :S])
        )
    return jnp.concatenate(outs, axis=1)


def _attend_row_by_row(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    length: Array,
    past: Past | None,
    hidden_BS2: Array | None,
) -> Array:
    """For processors: what one row's block of queries needs stays in their cache, and blocks of pads are not computed."""
    if past is None:
        none = jnp.zeros((len(length), 0, *k_BSKH.shape[2:]), k_BSKH.dtype)
        past = Past(none, none, jnp.zeros_like(length))

    def block(first: int, row: Any) -> Array:
        q_TNH, k_SKH, v_SKH, length, past, hidden_T2 = row
        T, end, start = len(q_TNH), len(k_SKH), len(past.k)
        before = jnp.broadcast_to(jnp.arange(start) < past.length, (T, start))
        key, query = jnp.arange(end), jnp.arange(first, first + T)[:, None]
        tail = (key <= query) & (key < length)
        if hidden_T2 is not None:
            tail &= ~_between(key, hidden_T2)
        mask = jnp.concatenate([before, tail], axis=-1)
        k_SKH, v_SKH = jnp.concatenate([past.k, k_SKH]), jnp.concatenate([past.v, v_SKH])
        return _attend_one(q_TNH, k_SKH, v_SKH, mask)

    def one(row: Any) -> Array:
        q_TNH, k_SKH, v_SKH, length, past, hidden_S2 = row
        outs = []
        for first, end in blocks(len(q_TNH)):
            q = q_TNH[first:end]
            some, empty = partial(block, first), lambda row: jnp.zeros_like(row[0])
            hidden = None if hidden_S2 is None else hidden_S2[first:end]
            needed = (q, k_SKH[:end], v_SKH[:end], length, past, hidden)
            outs.append(jax.lax.cond(first < length, some, empty, needed))
        return jnp.concatenate(outs)

    every = (q_BTNH, k_BSKH, v_BSKH, length, past, hidden_BS2)
    return jax.lax.map(jax.checkpoint(one), every)


def blocks(T: int) -> list[tuple[int, int]]:
    """Cuts T queries into at most 4 blocks of at least MIN_BLOCK: up to 3/8 of the logits are never computed."""
    number = max(1, min(4, T // MIN_BLOCK))
    edges = [T * i // number for i in range(number + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def _mask(length: Array, S: int, at_BT: Array | None, hidden_BS2: Array | None) -> Array:
    """bool [B, T, S]: which tail keys a query sees."""
    key = jnp.arange(S)
    query = key[None, :] if at_BT is None else at_BT
    mask = (key <= query[:, :, None]) & (key < length[:, None, None])
    if hidden_BS2 is None:
        return mask
    if at_BT is not None:
        hidden_BS2 = jnp.take_along_axis(hidden_BS2, at_BT[..., None], axis=1)
    return mask & ~_between(key, hidden_BS2)


def _between(key: Array, hidden: Array) -> Array:
    """bool [..., S]: keys [S] that `hidden` [..., 2] names."""
    return (key >= hidden[..., :1]) & (key < hidden[..., 1:])


def _attend_xla(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask_BTS: Array) -> Array:
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    # G after T, as the product yields them: the large array is not transposed
    logits = jnp.einsum("BTKGH,BSKH->BKTGS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    # finite: a row without any visible key must not turn into NaN
    logits = jnp.where(mask_BTS[:, None, :, None], logits * H**-0.5, -1e30)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("BKTGS,BSKH->BTKGH", weights, v_BSKH).reshape(B, T, N, H)


def _attend_one(q_TNH: Array, k_SKH: Array, v_SKH: Array, mask_TS: Array) -> Array:
    """Every product is a plain batched one, K/V head by head: half the time of einsum's own order on CPU."""
    T, N, H = q_TNH.shape
    S, K = k_SKH.shape[:2]
    q_KTH = (q_TNH * H**-0.5).reshape(T, K, N // K, H).transpose(1, 2, 0, 3).reshape(K, -1, H)
    logits = jax.lax.batch_matmul(q_KTH, k_SKH.transpose(1, 2, 0)).astype(jnp.float32)
    logits = jnp.where(mask_TS, logits.reshape(K, N // K, T, S), -1e30)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_SKH.dtype).reshape(K, -1, S)
    out = jax.lax.batch_matmul(weights, v_SKH.transpose(1, 0, 2))
    return out.reshape(K, N // K, T, H).transpose(2, 0, 1, 3).reshape(T, N, H)


def _cudnn_fits(q_BTNH: Array) -> bool:
    """Whether this process computes on CUDA and the kernel takes this dtype and head size."""
    H = q_BTNH.shape[-1]
    if q_BTNH.dtype not in (jnp.bfloat16, jnp.float16) or H % 8 or H > CUDNN_MAX_HEAD_DIM:
        return False
    if jax.default_backend() != "gpu" or "cuda" not in backend.get_backend().platform_version:
        return False
    return all(float(device.compute_capability) >= 8.0 for device in jax.local_devices())


def _attend_cudnn(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, length: Array) -> Array:
    """The kernel leaves rows beyond `length` undefined, forward and backward: they are replaced by zeros on both sides."""
    real = (jnp.arange(q_BTNH.shape[1]) < length[:, None])[:, :, None, None]
    q, k, v = (jnp.where(real, x, 0) for x in (q_BTNH, k_BSKH, v_BSKH))
    length = jnp.maximum(length, 1).astype(jnp.int32)
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        query_seq_lengths=length,
        key_value_seq_lengths=length,
        implementation="cudnn",
    )
    return jnp.where(real, out, 0)
