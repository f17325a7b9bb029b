"""BERT4Rec as a CF-SRec (S4): Sun et al. 2019 with RecBole's sizes, trained to guess hidden items from both sides.

Post-norm transformer blocks with GELU and a projection (linear, GELU, LayerNorm) before the dot product; no bias per item, so
that scores stay dot products. Positions count from the end of the window. For a user, a hidden item is put after the history;
`teacher.bert4rec.cut` of the windows are trained on like that, cut behind any of their items but the first, with as many items before
it as the window holds. The original hides the last item of the whole sequence there, RecBole that of each of its beginnings, all of
which it has in an epoch. The preset `bert4rec` is RecBole's but for that: full cross-entropy, width 64, two blocks of two heads and
inner width 256, dropout 0.2, a fifth of the items hidden.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from llmsrec_jax import config
from llmsrec_jax.batch import HIDDEN
from llmsrec_jax.models.sequence import (
    MASKED,
    dropout,
    flat,
    keys,
    last_features,
    norm,
    slots,
    unflat,
)

EPSILON = 1e-12  # of the norms
INITIAL = nnx.initializers.normal(0.02)


def _linear(width: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(width, outputs, kernel_init=INITIAL, precision="highest", rngs=rngs)


class Block(nnx.Module):
    """x = LN(x + MHA(x)); x = LN(x + FFN(x)). Flat columns [N, E] of windows [B, T]; pads are no keys."""

    def __init__(self, cfg: config.Teacher, rngs: nnx.Rngs):
        E = cfg.d
        self.query_key_value, self.out = _linear(E, 3 * E, rngs), _linear(E, E, rngs)
        self.ff_in = _linear(E, cfg.bert4rec.inner, rngs)
        self.ff_out = _linear(cfg.bert4rec.inner, E, rngs)
        self.attention_norm, self.ff_norm = norm(E, EPSILON, rngs), norm(E, EPSILON, rngs)
        self.heads, self.dropout = cfg.heads, cfg.dropout

    def _mix(self, qkv_BTF: Array, history: Array, key: Array | None) -> Float[Array, "B T E"]:
        B, T, _ = qkv_BTF.shape
        q_BTNH, k_BSNH, v_BSNH = (
            x.reshape(B, T, self.heads, -1) for x in jnp.split(qkv_BTF, 3, axis=-1)
        )
        logits_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH, precision="highest")
        logits_BNTS = logits_BNTS / math.sqrt(q_BTNH.shape[-1])
        seen_B11S = (history != 0)[:, None, None, :]
        weights_BNTS = jax.nn.softmax(jnp.where(seen_B11S, logits_BNTS, MASKED), axis=-1)
        weights_BNTS = dropout(weights_BNTS, self.dropout, key)
        mixed_BTNH = jnp.einsum("BNTS,BSNH->BTNH", weights_BNTS, v_BSNH, precision="highest")
        return mixed_BTNH.reshape(B, T, -1)

    def __call__(
        self, x_NE: Array, histories: Sequence[Array], key: Array | None
    ) -> Float[Array, "N E"]:
        out_key, ff_key, *mix_keys = keys(key, 2 + len(histories))
        parts = unflat(self.query_key_value(x_NE), [history.shape for history in histories])
        groups = zip(parts, histories, mix_keys, strict=True)
        mixed_NE = self.out(flat([self._mix(*group) for group in groups]))
        x_NE = self.attention_norm(x_NE + dropout(mixed_NE, self.dropout, out_key))
        inner_NF = jax.nn.gelu(self.ff_in(x_NE), approximate=False)
        return self.ff_norm(x_NE + dropout(self.ff_out(inner_NF), self.dropout, ff_key))


class BERT4Rec(nnx.Module):
    """Answers the calls of `sequence.CFSRec`; windows may hold hidden items."""

    def __init__(self, items: int, cfg: config.Teacher, rngs: nnx.Rngs):
        table = lambda *shape: nnx.Param(INITIAL(rngs.params(), (*shape, cfg.d)))
        self.item_embedding, self.position_embedding = table(items), table(cfg.max_len)
        self.hidden_item = table()
        self.blocks = nnx.List([Block(cfg, rngs) for _ in range(cfg.blocks)])
        self.project = _linear(cfg.d, cfg.d, rngs)
        self.embedding_norm, self.norm = (norm(cfg.d, EPSILON, rngs) for _ in range(2))
        self.dropout = cfg.dropout

    def encode(
        self, items_NE: Array, histories: Sequence[Array], key: Array | None = None
    ) -> Float[Array, "N E"]:
        """As `sequence.CFSRec`; every column sees all others of its window.

        Raises:
          ValueError: windows longer than max_len.
        """
        embedding_key, *block_keys = keys(key, 1 + len(self.blocks))
        hidden_N1 = flat(histories)[:, None] == HIDDEN
        x_NE = jnp.where(hidden_N1, self.hidden_item[...], items_NE)
        positions = self.position_embedding[...]
        x_NE = x_NE + flat([slots(positions, history) for history in histories])
        x_NE = dropout(self.embedding_norm(x_NE), self.dropout, embedding_key)
        for block, block_key in zip(self.blocks, block_keys, strict=True):
            x_NE = block(x_NE, histories, block_key)
        return self.norm(jax.nn.gelu(self.project(x_NE), approximate=False))

    def user_repr(self, history: Int[Array, "B T"]) -> Float[Array, "B E"]:
        """The features of a hidden item after the last one; of a full window the oldest item makes room."""
        hidden_B1 = jnp.full((len(history), 1), HIDDEN, history.dtype)
        asked_BT = jnp.concatenate([history, hidden_B1], axis=1)
        return last_features(self, asked_BT[:, -len(self.position_embedding[...]) :])
