"""Between the flat token axis, on which linear layers work, and the grids of sequences, on which attention works."""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from llmsrec_jax.batch import Flat


@jax.custom_vjp
def permute(x: Array, at: Int[Array, "B"], back: Int[Array, "A"]) -> Array:
    """Rows `at` of x [A, ...]; zeros where `at` is A. `back` undoes it: its gradient needs no scatter.

    Every row is taken at most once: back[at[b]] = b, and back[a] = B where row a is not taken.
    """
    return x.at[at].get(mode="fill", fill_value=0)


permute.defvjp(
    lambda x, at, back: (permute(x, at, back), (at, back)),
    lambda saved, g: (permute(g, saved[1], saved[0]), None, None),
)


def _sizes(flat: Flat) -> list[tuple[int, int]]:
    return [(grid.at.shape[0], grid.at.shape[1]) for grid in flat.grids]


def _cut(x: Array, shapes: Sequence[tuple[int, int]]) -> list[Array]:
    """[B, ...] -> [rows, T, ...] of every shape in turn."""
    ends = np.cumsum([0, *(rows * width for rows, width in shapes)]).tolist()
    parts = [x[a:b] for a, b in pairwise(ends)] if len(shapes) > 1 else [x]
    return [p.reshape(*s, *x.shape[1:]) for p, s in zip(parts, shapes, strict=True)]


def _at(flat: Flat) -> Array:
    return join([grid.at for grid in flat.grids])


def spread(x: Array, flat: Flat) -> list[Array]:
    """Tokens [A, ...] -> [rows, T, ...] of every grid; zeros beyond a sequence's end."""
    if flat.place is not None:
        x = permute(x, _at(flat), flat.place)
    return _cut(x, _sizes(flat))


def collect(grids: Sequence[Array], flat: Flat) -> Array:
    """[rows, T, ...] of every grid -> tokens [A, ...]; zeros at pads."""
    x = join(grids)
    return x if flat.place is None else permute(x, flat.place, _at(flat))


def split(x: Array, out: Sequence[Int[Array, "rows M"]]) -> list[Array]:
    """[sum of rows * M, ...] -> [rows, M, ...] of every grid."""
    return _cut(x, [(o.shape[0], o.shape[1]) for o in out])


def join(grids: Sequence[Array]) -> Array:
    """[rows, T, ...] of every grid -> [sum of rows * T, ...]."""
    flat = [grid.reshape(-1, *grid.shape[2:]) for grid in grids]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat)


def tokens(flat: Flat, out: Sequence[Int[Array, "rows M"]]) -> Int[Array, "B"]:
    """Where on the flat axis the positions `out` of every grid's sequences are; outside of the grid: its nearest column."""
    take = lambda grid, o: jnp.take_along_axis(grid.at, o, axis=1, mode="clip")
    return join([take(grid, o) for grid, o in zip(flat.grids, out, strict=True)])
