"""The MLPs that train: size, initialisation, formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import config
from llmsrec_jax.models.heads import ACTIVATIONS, Head
from llmsrec_jax.models.llm4rec import LLMSRec


def test_trainable_count_at_the_papers_size():
    """S1: 22,797,056 numbers train with Llama-3.2-3B."""
    build = lambda: LLMSRec(64, 3072, config.Head(), (0.0, 1.0), nnx.Rngs(params=0))
    params = nnx.state(nnx.eval_shape(build))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 22_797_056


@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
@pytest.mark.parametrize("norm", [True, False])
def test_formula(act, norm):
    head = Head(5, 7, 3, act, norm, nnx.Rngs(params=1))
    x = np.random.default_rng(0).normal(size=(4, 5))
    h = x @ np.asarray(head.first.kernel[...]) + np.asarray(head.first.bias[...])
    if norm:
        h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
    h = {
        "leaky_relu": np.where(h > 0, h, 0.01 * h),
        "relu": np.maximum(h, 0),
        "gelu": h * (1 + np.vectorize(math.erf)(h / 2**0.5)) / 2,
    }[act]
    expected = h @ np.asarray(head.last.kernel[...]) + np.asarray(head.last.bias[...])
    np.testing.assert_allclose(head(jnp.asarray(x)), expected, atol=2e-6)


def test_initialisation_is_the_authors():
    head = Head(400, 600, 10, "relu", True, nnx.Rngs(params=0))
    assert float(head.first.kernel[...].std()) == pytest.approx((2 / 1000) ** 0.5, rel=0.02)
    bias = np.abs(head.first.bias[...])
    assert 0.95 / 20 < bias.max() <= 1 / 20


def test_out_tokens_look_like_embeddings():
    model = LLMSRec(4, 5000, config.Head(hidden=2, dim=2), (0.3, 0.02), nnx.Rngs(params=0))
    for token in (model.user_out[...], model.item_out[...]):
        assert float(token.mean()) == pytest.approx(0.3, abs=0.002)
        assert float(token.std()) == pytest.approx(0.02, rel=0.05)
    assert not np.array_equal(model.user_out[...], model.item_out[...])
