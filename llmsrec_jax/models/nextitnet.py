"""NextItNet as a CF-SRec (S5): Yuan et al. 2019 in the form that RecBole trains.

Residual blocks (b) of two causal convolutions, the second dilated twice as wide, each followed by LayerNorm and ReLU; a linear
layer at the end. Zeros stand before the first item, so that a window's width does not matter. RecBole adds penalties on the
weights, the original trains on sampled softmax; here `teacher.loss` says. The preset `nextitnet` is RecBole's: full cross-entropy,
width 64, kernels of 3, dilations (1, 4) five times over, no dropout.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from llmsrec_jax import config
from llmsrec_jax.models.heads import torch_linear, torch_uniform
from llmsrec_jax.models.sequence import dropout, flat, keys, last_features, norm, unflat

EPSILON = 1e-8  # of the norms


class Convolution(nnx.Module):
    """Column t of the output sees columns t, t - d, t - 2d, ... of the input, as many as the kernel is wide."""

    def __init__(self, width: int, kernel: int, dilation: int, rngs: nnx.Rngs):
        self.taps = torch_linear(kernel * width, width, rngs)
        self.reach = [tap * dilation for tap in reversed(range(kernel))]  # oldest first

    def __call__(self, x_NE: Array, shapes: Sequence[tuple[int, ...]]) -> Float[Array, "N E"]:
        """`x_NE` is 0 at pads."""
        parts_BTE = unflat(x_NE, shapes)
        shifted = lambda x, by: jnp.pad(x, ((0, 0), (by, 0), (0, 0)))[:, : x.shape[1]]
        taps = [jnp.concatenate([shifted(x, by) for by in self.reach], -1) for x in parts_BTE]
        return self.taps(flat(taps))


class Block(nnx.Module):
    """x + ReLU(LN(conv_2d(ReLU(LN(conv_d(x))))))."""

    def __init__(self, width: int, kernel: int, dilation: int, rngs: nnx.Rngs):
        self.first = Convolution(width, kernel, dilation, rngs)
        self.second = Convolution(width, kernel, 2 * dilation, rngs)
        self.norms = nnx.List([norm(width, EPSILON, rngs) for _ in range(2)])

    def __call__(
        self, x_NE: Array, live_N1: Array, shapes: Sequence[tuple[int, ...]]
    ) -> Float[Array, "N E"]:
        out_NE = x_NE
        for convolution, scaled in zip((self.first, self.second), self.norms, strict=True):
            out_NE = jax.nn.relu(scaled(convolution(out_NE, shapes)))
            out_NE = jnp.where(live_N1, out_NE, 0.0)
        return x_NE + out_NE


class NextItNet(nnx.Module):
    """Answers the calls of `sequence.CFSRec`."""

    def __init__(self, items: int, cfg: config.Teacher, rngs: nnx.Rngs):
        E, kernel = cfg.d, cfg.nextitnet.kernel
        self.item_embedding = nnx.Param(torch_uniform(items)(rngs.params(), (items, E)))
        dilations = cfg.nextitnet.dilations * cfg.blocks
        self.blocks = nnx.List([Block(E, kernel, dilation, rngs) for dilation in dilations])
        self.out = nnx.Linear(
            E,
            E,
            kernel_init=nnx.initializers.glorot_normal(),
            bias_init=nnx.initializers.constant(0.1),
            precision="highest",
            rngs=rngs,
        )
        self.dropout = cfg.dropout

    def encode(
        self, items_NE: Array, histories: Sequence[Array], key: Array | None = None
    ) -> Float[Array, "N E"]:
        """As `sequence.CFSRec`; column t sees the items up to t."""
        live_N1, (embedding_key,) = flat(histories)[:, None] != 0, keys(key, 1)
        x_NE = jnp.where(live_N1, dropout(items_NE, self.dropout, embedding_key), 0.0)
        shapes = [history.shape for history in histories]
        for block in self.blocks:
            x_NE = block(x_NE, live_N1, shapes)
        return self.out(x_NE)

    user_repr = last_features
