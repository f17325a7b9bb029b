"""Norm and rotation, against numbers worked by hand."""

import jax.numpy as jnp
import numpy as np

from llmsrec_jax.llama import ops
from llmsrec_jax.llama.config import LlamaConfig, Rope

PLAIN = Rope()


def config(head_dim, rope=PLAIN):
    return LlamaConfig(
        vocab=4, d=4, layers=1, heads=1, kv_heads=1, head_dim=head_dim, ff=4, rope=rope
    )


def test_rms_norm():
    x = jnp.array([[3.0, 4.0]])
    out = ops.rms_norm(x, jnp.array([1.0, 2.0]), eps=0.0)
    np.testing.assert_allclose(out, [[3 / 12.5**0.5, 8 / 12.5**0.5]], rtol=1e-6)
    np.testing.assert_allclose(ops.rms_norm(x, jnp.ones(2), eps=12.5), [[0.6, 0.8]], rtol=1e-6)


def test_rms_norm_is_float32_for_bfloat16():
    x = jnp.array([[1.0, 256.0]], jnp.bfloat16)
    out = ops.rms_norm(x, jnp.ones(2, jnp.bfloat16), eps=0.0)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, np.array([[1, 256]]) / ((1 + 256**2) / 2) ** 0.5, rtol=1e-6)


def test_default_frequencies():
    frequencies = ops.inverse_frequencies(config(8, Rope(theta=10_000.0)))
    np.testing.assert_allclose(frequencies, [1.0, 0.1, 0.01, 0.001], rtol=1e-6)


def test_llama3_frequencies():
    # 64 old positions: wavelengths (2 pi, 63, 628, 6283) are short, between, long, long
    rope = Rope(theta=10_000.0, kind="llama3", factor=8.0, low=1.0, high=4.0, original=128)
    keep = (128 / (2 * np.pi * 10) - 1.0) / 3.0
    want = [1.0, 0.1 * (keep + (1 - keep) / 8), 0.01 / 8, 0.001 / 8]
    np.testing.assert_allclose(ops.inverse_frequencies(config(8, rope)), want, rtol=1e-6)


def test_rotation_turns_half_split_pairs():
    cfg = config(4, Rope(theta=100.0))  # 1 and 0.1 radians per position
    x = jnp.array([1.0, 0.0, 0.0, 1.0]).reshape(1, 1, 1, 4)
    out = ops.rotate(x, ops.rope_tables(cfg, jnp.array([[2]])))
    want = [np.cos(2.0), -np.sin(0.2), np.sin(2.0), np.cos(0.2)]
    np.testing.assert_allclose(out.ravel(), want, rtol=1e-6)


def test_rotated_products_depend_on_distance_only():
    cfg = config(8)
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)
    turn = lambda x, position: ops.rotate(x, ops.rope_tables(cfg, jnp.array([[position]])))
    near = (turn(q, 7) * turn(k, 3)).sum()
    far = (turn(q, 107) * turn(k, 103)).sum()
    np.testing.assert_allclose(near, far, rtol=1e-4)
