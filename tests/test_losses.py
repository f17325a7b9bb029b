"""Eq. 1-4 and Eq. 10 against hand-worked numbers, and their behaviour on degenerate batches."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from llmsrec_jax import losses


def rows(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_retrieval_loss_by_hand():
    user = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    items = jnp.array([[[2.0, 5.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 1.0]]])
    # logits: user 0 -> (2, 0), user 1 -> (0, 2)
    expected = (np.log(1 + np.exp(-2.0)) + np.log(1 + np.exp(2.0))) / 2
    np.testing.assert_allclose(losses.retrieval_loss(user, items), expected, rtol=1e-6)


def test_distillation_scales():
    user, cf = jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 0.5]])
    np.testing.assert_allclose(losses.distill_loss(user, cf), (1 + 1) / 2, rtol=1e-6)
    np.testing.assert_allclose(losses.distill_loss(user, cf, reduction="sum_dim"), 2.0, rtol=1e-6)
    np.testing.assert_allclose(losses.distill_loss(user, cf, normalize=False), (9 + 0.25) / 2)
    np.testing.assert_allclose(losses.distill_loss(user, cf, type="cosine"), 1.0, rtol=1e-6)
    same = losses.distill_loss(user, 7 * user)
    np.testing.assert_allclose(same, 0.0, atol=1e-7)


def test_contrastive_distillation_by_hand():
    user = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    cf = jnp.array([[2.0, 0.0], [1.0, 1.0]])
    s = np.array([[1.0, 0.5**0.5], [0.0, 0.5**0.5]]) / 0.5
    expected = -np.mean(np.diag(s) - np.log(np.exp(s).sum(1)))
    value = losses.distill_loss(user, cf, type="contrastive", temperature=0.5)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    one = losses.distill_loss(user[:1], cf[:1], type="contrastive")
    np.testing.assert_allclose(one, 0.0, atol=1e-7)


def test_uniformity_by_hand():
    x = jnp.array([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])
    expected = (2 * np.exp(-4.0) + np.exp(-8.0)) / 3
    np.testing.assert_allclose(losses.uniformity_loss(x), expected, rtol=1e-5)
    np.testing.assert_allclose(losses.uniformity_loss(x, log=True), np.log(expected), rtol=1e-5)
    np.testing.assert_allclose(
        losses.uniformity_loss(x, temperature=1.0), (2 * np.exp(-2) + np.exp(-4)) / 3, rtol=1e-5
    )
    collapsed = losses.uniformity_loss(jnp.ones((4, 3)))
    np.testing.assert_allclose(collapsed, 1.0, rtol=1e-6)


@pytest.mark.parametrize("log", [False, True])
def test_one_user_has_no_uniformity(log):
    """D5: the authors' mean over no pairs is NaN."""
    value, grad = jax.value_and_grad(lambda x: losses.uniformity_loss(x, log=log))(rows(0, 1, 8))
    assert value == 0.0
    np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize("x", [np.zeros((3, 4)), np.ones((3, 4))], ids=["zero", "duplicates"])
def test_gradients_of_degenerate_rows_are_finite(x):
    cf = rows(1, 3, 4)

    def total(x):
        return losses.distill_loss(x, cf) + losses.uniformity_loss(x)

    value, grad = jax.value_and_grad(total)(jnp.asarray(x, jnp.float32))
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_gradients_by_finite_differences():
    user, cf, items = rows(2, 4, 6), rows(3, 4, 6), rows(4, 4, 3, 6)

    def total(x):
        return (
            losses.retrieval_loss(x, items)
            + losses.distill_loss(x, cf, reduction="sum_dim")
            + losses.distill_loss(x, cf, type="contrastive", temperature=1.0)
            + losses.uniformity_loss(x, log=True)
        )

    with jax.enable_x64(True):
        jax.test_util.check_grads(total, (jnp.asarray(user, jnp.float64),), order=1, modes=["rev"])


def test_probabilities_of_tokens_tile_by_tile(monkeypatch):
    """The same for tiles of any size, the last one not full; gradients too."""
    rng = np.random.default_rng(0)
    h, table = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((11, 4), (9, 4)))
    token = jnp.asarray(rng.integers(0, 9, 11))
    plain = jax.nn.log_softmax(h @ table.T, axis=1)[jnp.arange(11), token]
    grad = jax.grad(lambda h: jax.nn.log_softmax(h @ table.T, axis=1)[jnp.arange(11), token].sum())(
        h
    )
    for smallest in (3, 64):
        monkeypatch.setattr(losses, "SMALLEST_TILE", smallest)
        monkeypatch.setattr(losses, "TILE_NUMBERS", 9)
        found, _ = losses.token_log_probs(h, table, token)
        np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)
        tiled = jax.grad(lambda h: losses.token_log_probs(h, table, token)[0].sum())(h)
        np.testing.assert_allclose(tiled, grad, rtol=1e-4, atol=1e-5)
