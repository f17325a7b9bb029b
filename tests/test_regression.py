"""Ridge regression against plain least squares, block by block, and on what cannot be learnt."""

import numpy as np
import pytest

from llmsrec_jax.regression import ridge


def drawn(rows=200, inputs=6, outputs=3, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, inputs)) * np.arange(1, inputs + 1) + 5.0
    weights, bias = rng.normal(size=(inputs, outputs)), rng.normal(size=outputs)
    return x, x @ weights + bias + noise * rng.normal(size=(rows, outputs)), weights, bias


def test_a_linear_map_is_found():
    x, y, weights, bias = drawn()
    found = ridge([(x, y)])
    np.testing.assert_allclose(found.weights, weights, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.bias, bias, atol=0.02)
    np.testing.assert_allclose(found(x), y, atol=1e-3)


def test_blocks_change_nothing():
    x, y, *_ = drawn(noise=1.0)
    whole, parts = ridge([(x, y)]), ridge((x[i : i + 7], y[i : i + 7]) for i in range(0, 200, 7))
    np.testing.assert_allclose(parts.weights, whole.weights, rtol=1e-9)
    np.testing.assert_allclose(parts.bias, whole.bias, rtol=1e-9)


def test_noise_is_not_learnt():
    """As many inputs as rows: least squares would repeat every row; the penalty leaves little but the mean."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 60)), 3.0 + rng.normal(size=(60, 2))
    other = rng.normal(size=(500, 60))
    assert np.abs(ridge([(x, y)])(other) - 3.0).mean() < 0.4
    plain = np.linalg.lstsq(x, y - y.mean(axis=0), rcond=None)[0]
    assert np.abs(other @ plain).mean() > 2.0


def test_constant_inputs_give_the_mean():
    y = np.arange(8.0).reshape(4, 2)
    np.testing.assert_allclose(ridge([(np.ones((4, 3)), y)])(np.ones((1, 3))), [y.mean(axis=0)])


def test_one_row_is_no_regression():
    with pytest.raises(ValueError, match="a regression of 1 rows"):
        ridge([(np.ones((1, 2)), np.ones((1, 2)))])
