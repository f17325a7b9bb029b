"""The losses of LLM-SRec (Eq. 1-4) and of contrastive distillation (Eq. 10): pure functions of arrays.

All of them take the vectors of the whole (global) batch and reduce to a scalar, in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
