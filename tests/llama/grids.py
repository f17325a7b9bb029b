"""The engine on padded blocks of sequences: one grid, laid on the token axis as it is."""

from typing import Any

import jax
import jax.numpy as jnp

from llmsrec_jax.batch import Flat, Grid
from llmsrec_jax.llama.kv import Source
from llmsrec_jax.llama.model import NOTHING, Added, Llama


def flat(rows: int, width: int, length: Any, start: Any = 0) -> Flat:
    """Sequences that begin at a position, each its own owner."""
    at = jnp.arange(rows * width, dtype=jnp.int32).reshape(rows, width)
    position = (start + at % width).ravel()
    return Flat(position, None, (Grid(at, jnp.asarray(length)),), owner=at.ravel() // width)


def prefill(llama: Llama, ids: Any, length: Any, added: Added = NOTHING) -> Source | None:
    """Of right-padded prefixes int [B, P]."""
    B, P = ids.shape
    if P == 0:
        return None
    axis = flat(B, P, length)
    return llama.prefill(ids.ravel(), axis, added), axis.grids[0]


def extend(
    llama: Llama,
    x_BTD: Any,
    length: Any,
    past: Source | None,
    out: Any,
    remat: str = "names",
    added: Added = NOTHING,
) -> jax.Array:
    """Hidden states [B, M, D] of right-padded tails."""
    B, T, D = x_BTD.shape
    axis = flat(B, T, length, 0 if past is None else past[1].length[:, None])
    out = [jnp.asarray(out)]
    h_QD = llama.extend(x_BTD.reshape(-1, D), axis, [past], out, remat=remat, added=added)
    return h_QD.reshape(B, -1, D)
