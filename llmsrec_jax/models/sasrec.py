"""SASRec, the frozen CF teacher: the LLM-SRec authors' variant, bit for bit (S2).

Queries are LayerNormed but keys and values are not; both residuals start from the normalised input; the mask is
causal only, so the zero rows of left pads are attended to (key and value = the projection's bias); pad rows are
zeroed after each block; positions are absolute slots of the window, the most recent item in slot max_len - 1.

A window may be shorter than max_len and still give the result of the full one: all pads of a row have the same key
and value, hence max_len - live of them weigh as much as one key whose logit is raised by log(max_len - live).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from llmsrec_jax import config
from llmsrec_jax.models.heads import torch_uniform
from llmsrec_jax.models.sequence import (
    MASKED,
    dropout,
    flat,
    keys,
    last_features,
    norm,
    normal,
    slots,
    unflat,
)

EPSILON = 1e-8  # of the norms


def _linear(width: int, outputs: int, fan_out: int, bias_init, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        width,
        outputs,
        kernel_init=normal(width, fan_out),
        bias_init=bias_init,
        precision="highest",
        rngs=rngs,
    )


def _attention_bias(history: Int[Array, "B T"], max_len: int) -> Float[Array, "B 1 T S"]:
    """What is added to the logits of S = 1 + T keys: first the virtual pad of each row, then the window's columns."""
    B, T = history.shape
    pads_B = max_len - jnp.sum(history != 0, axis=1)
    pad_B = jnp.where(pads_B > 0, jnp.log(jnp.maximum(pads_B, 1).astype(jnp.float32)), MASKED)
    seen_BTT = (history != 0)[:, None, :] & jnp.tri(T, dtype=bool)
    pad_BT1 = jnp.broadcast_to(pad_B[:, None, None], (B, T, 1))
    return jnp.concatenate([pad_BT1, jnp.where(seen_BTT, 0.0, MASKED)], axis=2)[:, None]


class Block(nnx.Module):
    """Q = LN(x); x = Q + MHA(Q, x, x); x = LN(x); x = x + FFN(x). Flat columns [N, E] of windows [B, T]."""

    def __init__(self, cfg: config.Teacher, rngs: nnx.Rngs):
        E, zeros = cfg.d, nnx.initializers.zeros_init()
        self.query_norm, self.ff_norm = norm(E, EPSILON, rngs), norm(E, EPSILON, rngs)
        self.query = _linear(E, E, 3 * E, zeros, rngs)
        self.key_value = _linear(E, 2 * E, 3 * E, zeros, rngs)
        self.out = _linear(E, E, E, zeros, rngs)
        self.ff_in = _linear(E, E, E, torch_uniform(E), rngs)
        self.ff_out = _linear(E, E, E, torch_uniform(E), rngs)
        self.heads, self.dropout = cfg.heads, cfg.dropout

    def _mix(
        self, pad_F: Array, q_BTE: Array, kv_BTF: Array, bias_B1TS: Array, key: Array | None
    ) -> Array:
        """The weight of the virtual pad is not dropped: dozens of pads, each dropped alone, average to this."""
        B, T, E = q_BTE.shape
        kv_BSF = jnp.concatenate([jnp.broadcast_to(pad_F, (B, 1, 2 * E)), kv_BTF], axis=1)
        k_BSNH, v_BSNH = (
            x.reshape(B, T + 1, self.heads, -1) for x in jnp.split(kv_BSF, 2, axis=-1)
        )
        q_BTNH = q_BTE.reshape(B, T, self.heads, -1) / math.sqrt(E // self.heads)
        logits_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH, precision="highest")
        weights_BNTS = jax.nn.softmax(logits_BNTS + bias_B1TS, axis=-1)
        dropped_BNTT = dropout(weights_BNTS[..., 1:], self.dropout, key)
        weights_BNTS = jnp.concatenate([weights_BNTS[..., :1], dropped_BNTT], axis=-1)
        mixed_BTNH = jnp.einsum("BNTS,BSNH->BTNH", weights_BNTS, v_BSNH, precision="highest")
        return mixed_BTNH.reshape(B, T, E)

    def _attend(self, q_NE: Array, x_NE: Array, biases: list[Array], key: Array | None) -> Array:
        pad_F = self.key_value(jnp.zeros_like(x_NE[0]))
        shapes = [(bias.shape[0], bias.shape[2]) for bias in biases]
        parts = unflat(self.query(q_NE), shapes), unflat(self.key_value(x_NE), shapes)
        groups = zip(*parts, biases, keys(key, len(biases)), strict=True)
        return self.out(flat([self._mix(pad_F, *group) for group in groups]))

    def __call__(self, x_NE: Array, biases: list[Array], key: Array | None) -> Array:
        attention_key, in_key, out_key = keys(key, 3)
        q_NE = self.query_norm(x_NE)
        x_NE = self.ff_norm(q_NE + self._attend(q_NE, x_NE, biases, attention_key))
        hidden_NE = jax.nn.relu(dropout(self.ff_in(x_NE), self.dropout, in_key))
        return x_NE + dropout(self.ff_out(hidden_NE), self.dropout, out_key)


class SASRec(nnx.Module):
    """`item_embedding` [I, E] float32; row 0 (the pad) is initialised as any other, but never read (oracle surprise 2)."""

    def __init__(self, items: int, cfg: config.Teacher, rngs: nnx.Rngs):
        table = lambda rows: nnx.Param(normal(rows, cfg.d)(rngs.params(), (rows, cfg.d)))
        self.item_embedding, self.position_embedding = table(items), table(cfg.max_len)
        self.blocks = nnx.List([Block(cfg, rngs) for _ in range(cfg.blocks)])
        self.norm = norm(cfg.d, EPSILON, rngs)
        self.dropout = cfg.dropout

    def encode(
        self, items_NE: Array, histories: Sequence[Array], key: Array | None = None
    ) -> Float[Array, "N E"]:
        """Features of the flat columns of left-padded windows [B, T], T <= max_len; dropout only with a key.

        Raises:
          ValueError: windows longer than max_len.
        """
        positions = self.position_embedding[...]
        max_len, E = positions.shape
        live_N1 = flat(histories)[:, None] != 0
        embedding_key, *block_keys = keys(key, 1 + len(self.blocks))
        x_NE = items_NE * math.sqrt(E) + flat([slots(positions, history) for history in histories])
        x_NE = jnp.where(live_N1, dropout(x_NE, self.dropout, embedding_key), 0.0)
        biases = [_attention_bias(history, max_len) for history in histories]
        for block, block_key in zip(self.blocks, block_keys, strict=True):
            x_NE = jnp.where(live_N1, block(x_NE, biases, block_key), 0.0)
        return self.norm(x_NE)

    user_repr = last_features
