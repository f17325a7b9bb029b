"""Between the token axis and the grids: there and back, values and gradients, pads worth nothing."""

import jax
import jax.numpy as jnp
import numpy as np

from llmsrec_jax.batch import Flat, Grid
from llmsrec_jax.llama import axes

# an axis of 8 places; sequences of 3 and 1 tokens on a grid of width 3, one of 2 on a grid of width 4
GRIDS = (
    Grid(np.array([[0, 1, 2], [3, 8, 8]]), np.array([3, 1])),
    Grid(np.array([[4, 5, 8, 8]]), np.array([2])),
)
RAGGED = Flat(np.zeros(8, int), np.array([0, 1, 2, 3, 6, 7, 10, 10]), GRIDS)
X = np.arange(1.0, 9.0)[:, None] * np.ones(2, np.float32)


def test_spread_and_collect():
    first, second = axes.spread(jnp.asarray(X), RAGGED)
    np.testing.assert_array_equal(first[..., 0], [[1, 2, 3], [4, 0, 0]])
    np.testing.assert_array_equal(second[..., 0], [[5, 6, 0, 0]])
    back = axes.collect([first + 1, second + 1], RAGGED)
    np.testing.assert_array_equal(back[:, 0], [2, 3, 4, 5, 6, 7, 0, 0])


def test_gradients_go_back_where_values_came_from():
    weights = [np.arange(12.0).reshape(2, 3, 2), 20 + np.arange(8.0).reshape(1, 4, 2)]

    def total(x):
        parts = axes.spread(x, RAGGED)
        return sum((w * p).sum() for w, p in zip(weights, parts, strict=True))

    grad = jax.grad(total)(jnp.asarray(X))
    want = np.concatenate([weights[0][0], weights[0][1, :1], weights[1][0, :2], np.zeros((2, 2))])
    np.testing.assert_array_equal(grad, want)
    collected = lambda *grids: (axes.collect(grids, RAGGED) * X).sum()
    first, second = jax.grad(collected, argnums=(0, 1))(*map(jnp.asarray, weights))
    np.testing.assert_array_equal(first[..., 0], [[1, 2, 3], [4, 0, 0]])
    np.testing.assert_array_equal(second[..., 0], [[5, 6, 0, 0]])


def test_an_axis_that_is_the_grids():
    at = np.arange(6).reshape(2, 3)
    dense = Flat(at.ravel() % 3, None, (Grid(at, np.array([3, 1])),))
    (one,) = axes.spread(jnp.asarray(X[:6]), dense)
    np.testing.assert_array_equal(one[..., 0], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(axes.collect([one], dense), X[:6])


def test_positions_on_the_axis():
    out = [np.array([[2], [0]]), np.array([[1]])]
    np.testing.assert_array_equal(axes.tokens(RAGGED, out), [2, 3, 5])
    split = axes.split(jnp.arange(3), out)
    assert [part.tolist() for part in split] == [[[0], [1]], [[2]]]
    clipped = [np.array([[-5], [9]]), np.array([[0]])]
    np.testing.assert_array_equal(axes.tokens(RAGGED, clipped), [0, 8, 4])
