"""attend() against a loop in numpy; the fused path's contract with a stand-in kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmsrec_jax.llama import attention
from llmsrec_jax.llama.attention import Past, attend

B, T, P, N, K, H = 3, 7, 5, 4, 2, 8


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


Q, KEYS, VALUES = draw(B, T, N, H), draw(B, T, K, H, seed=1), draw(B, T, K, H, seed=2)
LENGTH = np.array([7, 4, 1], np.int32)
PAST = Past(draw(B, P, K, H, seed=3), draw(B, P, K, H, seed=4), np.array([5, 0, 2], np.int32))
# two branches behind three tokens, the first of two tokens; one that leaves its trunk at once
HIDDEN = np.zeros((B, T, 2), np.int32)
HIDDEN[0, 3:5], HIDDEN[0, 5:], HIDDEN[1, 2:] = (2, 3), (1, 5), (0, 2)


def by_hand(past=None, hidden=None):
    """One query at a time, only over the keys it may see."""
    out = np.zeros((B, T, N, H))
    for b in range(B):
        for t in range(LENGTH[b]):
            first, last = (0, 0) if hidden is None else hidden[b, t]
            seen = [s for s in range(t + 1) if not first <= s < last]
            for n in range(N):
                keys, values = KEYS[b, seen, n // 2], VALUES[b, seen, n // 2]
                if past is not None:
                    cut = past.length[b]
                    keys = np.concatenate([past.k[b, :cut, n // 2], keys])
                    values = np.concatenate([past.v[b, :cut, n // 2], values])
                logits = keys.astype(np.float64) @ Q[b, t, n] / np.sqrt(H)
                weights = np.exp(logits - logits.max())
                out[b, t, n] = weights / weights.sum() @ values
    return out


def real(x):
    return np.asarray(x)[np.arange(T) < LENGTH[:, None]]


@pytest.mark.parametrize("block", [128, 3, 1], ids=["one block", "two blocks", "four blocks"])
@pytest.mark.parametrize("past", [None, PAST], ids=["alone", "after a prefix"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("hidden", [None, HIDDEN], ids=["a sequence", "a tree"])
def test_attend_equals_the_loop(monkeypatch, past, block, platform, hidden):
    """On a processor row by row, where there are enough queries; elsewhere all rows at once."""
    monkeypatch.setattr(attention, "MIN_BLOCK", block)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    out = attend(Q, KEYS, VALUES, LENGTH, past, None, hidden)
    np.testing.assert_allclose(real(out), real(by_hand(past, hidden)), atol=2e-6)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("past", [None, PAST], ids=["alone", "after a prefix"])
@pytest.mark.parametrize("hidden", [None, HIDDEN], ids=["a sequence", "a tree"])
def test_both_orders_have_the_same_gradients(monkeypatch, past, hidden):
    monkeypatch.setattr(attention, "MIN_BLOCK", 2)
    cotangent = np.where((np.arange(T) < LENGTH[:, None])[..., None, None], draw(B, T, N, H), 0)
    found = []
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        run = lambda *x: attend(*x, LENGTH, past, None, hidden)
        _, back = jax.vjp(run, Q, KEYS, VALUES)
        found.append(back(cotangent))
    for one, other in zip(*found, strict=True):
        assert np.abs(one).max() > 0.1
        np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.mark.parametrize("T, number", [(0, 1), (255, 1), (256, 2), (300, 2), (5000, 4)])
def test_blocks_cover_all_queries(T, number):
    blocks = attention.blocks(T)
    assert len(blocks) == number and blocks[0][0] == 0 and blocks[-1][1] == T
    assert all(a[1] == b[0] for a, b in zip(blocks, blocks[1:], strict=False))


def test_queries_at_chosen_positions():
    at = np.array([[6, 0], [3, 1], [0, 0]], np.int32)
    chosen = np.take_along_axis(Q, at[..., None, None], 1)
    for hidden in (None, HIDDEN):
        out = attend(chosen, KEYS, VALUES, LENGTH, PAST, at, hidden)
        want = np.take_along_axis(by_hand(PAST, hidden), at[..., None, None], 1)
        np.testing.assert_allclose(out, want, atol=2e-6)


def test_a_row_without_any_key_is_finite():
    nothing = np.zeros(B, np.int32)
    value, grad = jax.value_and_grad(lambda q: attend(q, KEYS, VALUES, nothing).sum())(Q)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_softmax_is_float32_in_bfloat16():
    # 512 equal keys: probabilities of 1/512 summed in bf16 would drift
    q = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
    v = jnp.ones((1, 512, 1, 8), jnp.bfloat16)
    at = jnp.array([[511]])
    out = attend(q, v, v, jnp.array([512]), None, at)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), 1.0)


def test_cudnn_is_chosen_by_platform_dtype_and_head(monkeypatch):
    query = lambda dtype, head: jnp.zeros((1, 2, 2, head), dtype)
    assert not attention._cudnn_fits(query(jnp.bfloat16, 64))  # the suite runs on the CPU

    class Device:
        compute_capability = "9.0"

    class Backend:
        platform_version = "PJRT C API cuda 12090"

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    monkeypatch.setattr(attention.backend, "get_backend", Backend)
    assert attention._cudnn_fits(query(jnp.bfloat16, 64))
    assert not attention._cudnn_fits(query(jnp.float32, 64))
    assert not attention._cudnn_fits(query(jnp.bfloat16, 12))
    assert not attention._cudnn_fits(query(jnp.bfloat16, 256))
    monkeypatch.setattr(Device, "compute_capability", "7.5")
    assert not attention._cudnn_fits(query(jnp.bfloat16, 64))
    monkeypatch.setattr(Device, "compute_capability", "9.0")
    monkeypatch.setattr(Backend, "platform_version", "PJRT C API rocm 60300")
    assert not attention._cudnn_fits(query(jnp.bfloat16, 64))


def test_fused_path_hides_what_the_kernel_leaves_undefined(monkeypatch):
    plain = jax.nn.dot_product_attention

    def kernel(q, k, v, *, query_seq_lengths, implementation, **options):
        assert implementation == "cudnn"
        out = plain(q, k, v, query_seq_lengths=query_seq_lengths, **options)
        padded = jnp.arange(T) >= query_seq_lengths[:, None]
        return jnp.where(padded[:, :, None, None], jnp.nan, out)

    monkeypatch.setattr(attention, "_cudnn_fits", lambda q: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    out = attend(Q, KEYS, VALUES, LENGTH)
    np.testing.assert_allclose(out, by_hand(), atol=2e-6)  # zeros at the pads
    grads = jax.grad(lambda *qkv: (attend(*qkv, LENGTH) ** 2).sum(), (0, 1, 2))(Q, KEYS, VALUES)
    monkeypatch.setattr(attention, "_cudnn_fits", lambda q: False)
    mask = (np.arange(T) < LENGTH[:, None])[:, :, None, None]
    want = jax.grad(lambda *qkv: (jnp.where(mask, attend(*qkv, LENGTH), 0) ** 2).sum(), (0, 1, 2))(
        Q, KEYS, VALUES
    )
    for grad, expected in zip(grads, want, strict=True):
        np.testing.assert_allclose(grad, expected, atol=3e-6)


@pytest.mark.gpu
def test_fused_kernel_equals_xla_on_the_accelerator():
    half = [jnp.asarray(x, jnp.bfloat16) for x in (Q, KEYS, VALUES)]
    if not attention._cudnn_fits(half[0]):
        pytest.skip("no CUDA device with a fused attention kernel")
    mask = attention._mask(jnp.asarray(LENGTH), T, None)
    fused = attend(*half, jnp.asarray(LENGTH))
    plain = attention._attend_xla(*half, mask)
    np.testing.assert_allclose(
        real(fused.astype(jnp.float32)), real(plain.astype(jnp.float32)), atol=2e-2
    )
