"""GRU4Rec as a CF-SRec (S3): Hidasi et al. 2016 in the form that RecBole trains.

Item embeddings, dropout, GRU layers without biases, a linear layer back to the embedding's width. Whole sequences, left-padded:
the state is zero until the first item. The original differs: session-parallel batches, negatives of the batch, Adagrad. Every layer
begins as RecBole's first one; its deeper ones keep PyTorch's default. The preset `gru4rec` is RecBole's: full cross-entropy, width 64,
one layer of 128, dropout 0.3.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from llmsrec_jax import config
from llmsrec_jax.models.heads import torch_linear
from llmsrec_jax.models.sequence import dropout, flat, keys, last_features, normal, unflat


class Layer(nnx.Module):
    """One GRU layer as PyTorch computes it: n = tanh(W x + r * (U h)), h = (1 - z) n + z h."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs):
        xavier = nnx.initializers.glorot_uniform()
        matrix = lambda rows: nnx.Param(xavier(rngs.params(), (rows, 3 * hidden)))
        self.of_input, self.of_state = matrix(width), matrix(hidden)  # columns: r, z, n

    def __call__(self, x_NE: Array, histories: Sequence[Array]) -> Float[Array, "N H"]:
        """States after every column; pads leave the state as it is."""
        mixed_NG = jnp.matmul(x_NE, self.of_input[...], precision="highest")
        parts = unflat(mixed_NG, [history.shape for history in histories])
        return flat([self._scan(*each) for each in zip(parts, histories, strict=True)])

    def _scan(self, mixed_BTG: Array, history: Array) -> Float[Array, "B T H"]:
        weights_HG = self.of_state[...]

        def step(h_BH: Array, column: tuple[Array, Array]) -> tuple[Array, Array]:
            mixed_BG, live_B = column
            own_BG = jnp.matmul(h_BH, weights_HG, precision="highest")
            (xr, xz, xn), (hr, hz, hn) = (jnp.split(g, 3, axis=1) for g in (mixed_BG, own_BG))
            z_BH = jax.nn.sigmoid(xz + hz)
            n_BH = jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn)
            h_BH = jnp.where(live_B[:, None], (1.0 - z_BH) * n_BH + z_BH * h_BH, h_BH)
            return h_BH, h_BH

        start_BH = jnp.zeros((len(history), len(weights_HG)), mixed_BTG.dtype)
        columns = jnp.moveaxis(mixed_BTG, 1, 0), history.T != 0
        _, states_TBH = jax.lax.scan(step, start_BH, columns)
        return jnp.moveaxis(states_TBH, 0, 1)


class GRU4Rec(nnx.Module):
    """Answers the calls of `sequence.CFSRec`."""

    def __init__(self, items: int, cfg: config.Teacher, rngs: nnx.Rngs):
        E, H = cfg.d, cfg.gru4rec.hidden
        table = normal(items, E)(rngs.params(), (items, E))
        self.item_embedding = nnx.Param(table)
        widths = [E, *[H] * (cfg.blocks - 1)]
        self.layers = nnx.List([Layer(width, H, rngs) for width in widths])
        self.out = torch_linear(H, E, rngs)
        self.dropout = cfg.dropout

    def encode(
        self, items_NE: Array, histories: Sequence[Array], key: Array | None = None
    ) -> Float[Array, "N E"]:
        """As `sequence.CFSRec`; column t sees the items up to t."""
        (embedding_key,) = keys(key, 1)
        x_NE = dropout(items_NE, self.dropout, embedding_key)
        for layer in self.layers:
            x_NE = layer(x_NE, histories)
        return self.out(x_NE)

    user_repr = last_features
