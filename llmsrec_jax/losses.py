"""The losses of LLM-SRec (Eq. 1-4), of contrastive distillation (Eq. 10) and over a catalogue: pure functions of arrays.

Those of equations take the vectors of the whole (global) batch. All reduce to a scalar, in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Matrix = Float[Array, "B R"]


def unit(x: Float[Array, "*B R"]) -> Float[Array, "*B R"]:
    """L2-normalised rows; a zero row stays zero and gets a zero-safe gradient."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def retrieval_loss(user_BR: Matrix, candidate_BCR: Float[Array, "B C R"]) -> Float[Array, ""]:
    """Eq. 1: cross-entropy of raw dot products, the positive in column 0 (E3)."""
    logits_BC = jnp.einsum("BR,BCR->BC", user_BR, candidate_BCR, precision="highest")
    return -jnp.mean(jax.nn.log_softmax(logits_BC, axis=-1)[:, 0])


def _mse(user_BR: Matrix, cf_BR: Matrix, normalize: bool, reduction: str) -> Float[Array, ""]:
    if normalize:
        user_BR, cf_BR = unit(user_BR), unit(cf_BR)
    square = jnp.mean((user_BR - cf_BR) ** 2, axis=0)
    return jnp.sum(square) if reduction == "sum_dim" else jnp.mean(square)


def _cosine(user_BR: Matrix, cf_BR: Matrix) -> Float[Array, ""]:
    return jnp.mean(1.0 - jnp.sum(unit(user_BR) * unit(cf_BR), axis=-1))


def _contrastive(user_BR: Matrix, cf_BR: Matrix, temperature: float) -> Float[Array, ""]:
    logits_BB = jnp.matmul(unit(user_BR), unit(cf_BR).T, precision="highest") / temperature
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits_BB, axis=-1)))


def distill_loss(
    user_BR: Matrix,
    cf_BR: Matrix,
    *,
    type: str = "mse",
    normalize: bool = True,
    reduction: str = "mean",
    temperature: float = 0.07,
) -> Float[Array, ""]:
    """Eq. 2 (`mse`, D2, D3), its cosine form, or Eq. 10 (`contrastive`, D6), between f_user(h_U) and f_CF(O_u)."""
    forms: dict[str, Callable[[], Float[Array, ""]]] = {
        "mse": lambda: _mse(user_BR, cf_BR, normalize, reduction),
        "cosine": lambda: _cosine(user_BR, cf_BR),
        "contrastive": lambda: _contrastive(user_BR, cf_BR, temperature),
    }
    return forms[type]()


def uniformity_loss(
    x_BR: Matrix, *, log: bool = False, temperature: float = 2.0
) -> Float[Array, ""]:
    """Eq. 3: mean over pairs i < j of exp(-t |xi - xj|^2) of unit rows (D4); 0 for a single row (D5)."""
    x_BR = unit(x_BR)
    n = x_BR.shape[0]
    square_BB = jnp.sum((x_BR[:, None] - x_BR[None]) ** 2, axis=-1)
    pairs_BB = jnp.triu(jnp.ones((n, n), bool), k=1)
    total = jnp.sum(jnp.where(pairs_BB, jnp.exp(-temperature * square_BB), 0.0))
    mean = total / max(n * (n - 1) // 2, 1)
    return jnp.log(mean) if log and n > 1 else mean


def token_log_probs(
    h_QD: Float[Array, "Q D"], table_VD: Float[Array, "V D"], token_Q: Int[Array, "Q"]
) -> tuple[Float[Array, "Q"], Array]:
    """Log-probability of each token under softmax(h @ table.T), and whether it is the most probable one (bool [Q]).

    A tile of the [Q, V] logits at a time, forward and backward. Products are in the table's dtype, sums in float32.
    """
    Q, V = len(h_QD), len(table_VD)
    tile = tile_of(Q, V, TILE_NUMBERS)
    pad = -Q % tile
    h_NTD = jnp.pad(h_QD.astype(table_VD.dtype), ((0, pad), (0, 0))).reshape(
        -1, tile, h_QD.shape[1]
    )
    token_NT = jnp.pad(token_Q, (0, pad)).reshape(-1, tile)

    def one(part: tuple[Array, Array]) -> tuple[Array, Array]:
        h_TD, token_T = part
        logits_TV = jnp.einsum("TD,VD->TV", h_TD, table_VD, preferred_element_type=jnp.float32)
        own_T = jnp.take_along_axis(logits_TV, token_T[:, None], axis=1)[:, 0]
        return own_T - jax.nn.logsumexp(logits_TV, axis=1), own_T >= logits_TV.max(axis=1)

    log_NT, first_NT = jax.lax.map(jax.checkpoint(one), (h_NTD, token_NT))
    return log_NT.ravel()[:Q], first_NT.ravel()[:Q]


@jax.custom_vjp
def catalogue_loss(
    x_NE: Float[Array, "N E"], table_IE: Float[Array, "I E"], target_N: Int[Array, "N"]
) -> Float[Array, ""]:
    """Sum of the cross-entropies of `x @ table.T` over items 1.. against the targets; columns without one (0) count nothing.

    The gradients are made in the same pass, tile by tile of the columns that count: three matmuls, as few as there can be, and
    never more than a tile of the [N, I] logits in memory.
    """
    return _catalogue(x_NE, table_IE, target_N)[0]


TILE_NUMBERS, SMALLEST_TILE = 2**23, 64  # logits and columns at a time
# of a catalogue: what is made of them is little, so what counts is that they stay in the cache and that few rows count nothing
CATALOGUE_NUMBERS = 2**21


def tile_of(n: int, width: int, numbers: int) -> int:
    """How many of n rows of `width` logits are made at a time, `numbers` logits or SMALLEST_TILE rows."""
    return min(n, max(SMALLEST_TILE, numbers // width))


def _catalogue(x_NE: Array, table_IE: Array, target_N: Array) -> tuple[Array, Array, Array]:
    """The sum, and its gradients to both matrices."""
    (N, E), I = x_NE.shape, len(table_IE)
    tile = tile_of(N, I, CATALOGUE_NUMBERS)
    counted_N, items_I = target_N != 0, jnp.arange(I)
    # columns that count come first; the last tile may run over the end, whose columns count nothing
    order_N = jnp.argsort(~counted_N, stable=True)
    order_N = jnp.concatenate([order_N, jnp.full(-N % tile, N, order_N.dtype)])

    def add(number: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        total, dx_NE, dtable_IE = sums
        at_T = jax.lax.dynamic_slice(order_N, (number * tile,), (tile,))
        x_TE = x_NE.at[at_T].get(mode="fill", fill_value=0)
        target_T = target_N.at[at_T].get(mode="fill", fill_value=0)
        logits_TI = jnp.matmul(x_TE, table_IE.T, precision="highest")
        log_TI = jax.nn.log_softmax(jnp.where(items_I == 0, -jnp.inf, logits_TI), axis=1)
        live_T = target_T != 0
        own_T = jnp.take_along_axis(log_TI, target_T[:, None], axis=1)[:, 0]
        total -= jnp.sum(jnp.where(live_T, own_T, 0.0))
        wrong_TI = jnp.exp(log_TI) - (items_I == target_T[:, None])
        wrong_TI = jnp.where(live_T[:, None], wrong_TI, 0.0)
        dx_TE = jnp.matmul(wrong_TI, table_IE, precision="highest")
        dtable_IE += jnp.matmul(wrong_TI.T, x_TE, precision="highest")
        return total, dx_NE.at[at_T].set(dx_TE, mode="drop"), dtable_IE

    tiles = -(-jnp.sum(counted_N) // tile)
    zeros = jnp.float32(0), jnp.zeros((N, E)), jnp.zeros((I, E))
    return jax.lax.fori_loop(0, tiles, add, zeros)


def _forward(x_NE: Array, table_IE: Array, target_N: Array) -> tuple[Array, tuple[Array, Array]]:
    total, *gradients = _catalogue(x_NE, table_IE, target_N)
    return total, (gradients[0], gradients[1])


def _backward(gradients: tuple[Array, Array], scale: Array) -> tuple[Array, Array, None]:
    return scale * gradients[0], scale * gradients[1], None


catalogue_loss.defvjp(_forward, _backward)
