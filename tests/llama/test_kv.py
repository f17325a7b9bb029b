"""Keys and values at hand: by place, exact or rounded."""

import jax.numpy as jnp
import numpy as np
import pytest

from llmsrec_jax.batch import Grid
from llmsrec_jax.llama.kv import KV

BEYOND = np.iinfo(np.int32).max


def draw(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def test_a_grid_finds_its_tokens():
    kv = KV(draw(3, 10, 2, 4), draw(3, 10, 2, 4) + 1)
    grid = Grid(np.array([[7, 8], [2, BEYOND]], np.int32), np.array([2, 1]))
    past = kv.layer(jnp.int32(1), grid, jnp.float32)
    np.testing.assert_array_equal(past.k[0], kv.k[1, 7:9])
    np.testing.assert_array_equal(past.v[1, 0], kv.v[1, 2])
    assert not past.k[1, 1].any() and past.length is grid.length


def test_int8_is_within_half_a_step_of_every_token_and_head():
    kv = KV(draw(2, 5, 2, 16) * 3, jnp.zeros((2, 5, 2, 16)))
    small = kv.as_dtype(jnp.int8)
    assert small.k.dtype == jnp.int8 and small.k_scale.shape == (2, 5, 2)
    grid = Grid(np.arange(5, dtype=np.int32)[None], np.array([5]))
    past = small.layer(1, grid, jnp.float32)
    step = np.abs(kv.k[1]).max(-1, keepdims=True) / 127
    error = np.abs(past.k[0] - kv.k[1])
    assert (error <= step * 0.5001).all() and error.max() > 0.1 * step.min()
    assert not past.v.any()  # nothing turns into NaN


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_floats_are_cast(dtype):
    kv = KV(draw(1, 2, 2, 4), draw(1, 2, 2, 4)).as_dtype(dtype)
    assert kv.k.dtype == kv.v.dtype == dtype and kv.k_scale is None
