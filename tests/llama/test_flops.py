"""Useful operations: worked by hand, against the published size, and against what XLA counts in the engine's own programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax.llama import config, flops, weights
from tests.llama import grids

SMALL = config.LlamaConfig(vocab=7, d=4, layers=3, heads=2, kv_heads=1, head_dim=2, ff=3)
# of a token and layer: keys and values 2 * 2 * 4 * 2 = 32; queries and outputs 2 * 2 * 4 * 4 = 64, feed-forward 2 * 3 * 4 * 3 = 72
KV, REST, SEEN = 32, 136, 16  # SEEN per query and key: 4 * 2 * 2


def test_prefill_by_hand():
    """Three tokens see 1 + 2 + 3 keys in two layers; of the last layer only keys and values are needed."""
    assert flops.prefill(SMALL, np.array([3])) == 2 * (3 * (KV + REST) + 6 * SEEN) + 3 * KV


def test_extend_by_hand():
    """Two tokens after three see 4 + 5 keys; in the last layer only the last token asks."""
    full, last = 2 * (KV + REST) + 9 * SEEN, 2 * KV + REST + 5 * SEEN
    assert flops.extend(SMALL, np.array([3]), np.array([2])) == 2 * full + last


def test_backward_by_hand():
    """Once more over the three prefix keys of each query, twice over the 1 + 2 of the tail."""
    full, last = 2 * (KV + REST) + (6 + 2 * 3) * SEEN, 2 * KV + REST + (3 + 2 * 2) * SEEN
    assert flops.extend_backward(SMALL, np.array([3]), np.array([2])) == 2 * full + last


def test_whole_by_hand():
    forward, seen = 3 * 4 * (KV + REST), 3 * 10 * SEEN
    assert flops.whole(SMALL, np.array([4]), backward=False) == forward + seen
    assert flops.whole(SMALL, np.array([4]), backward=True) == 2 * forward + 3 * seen


def test_answers_by_hand():
    """Behind three tokens two of one sequence, one of another: pairs that a mask of rows, answer by answer, allows."""
    trunk, own = np.array([3]), np.array([[2, 1]])
    branch = np.array([0, 0, 0, 1, 1, 2])
    at = np.arange(6)
    mask = (at[:, None] >= at) & ((branch == 0) | (branch[:, None] == branch))
    read = at >= 2  # the trunk's last token, and all behind
    logits = 4 * 2 * 4 * 7
    for backward, times in ((False, 1), (True, 2)):
        full = 6 * (KV + REST) + times * mask.sum() * SEEN
        last = 6 * KV + 4 * REST + times * mask[read].sum() * SEEN
        found = flops.answers(SMALL, trunk, own, backward=backward)
        assert found == 2 * full + last + logits
    two = flops.answers(SMALL, np.array([3, 5]), np.array([[2, 1], [4, 0]]))
    assert two == flops.answers(SMALL, trunk, own) + flops.answers(
        SMALL, np.array([5]), np.array([[4]])
    )


def test_prompts_add_up():
    prefix, live = np.array([3, 5]), np.array([2, 7])
    for count in (flops.extend, flops.extend_backward):
        each = [count(SMALL, prefix[i : i + 1], live[i : i + 1]) for i in range(2)]
        assert count(SMALL, prefix, live) == sum(each)


def test_a_token_of_the_3b():
    """Two operations per weight of the layers: 2.819 billion of them."""
    one = flops.whole(config.SIZES["llama-3.2-3b"], np.array([1]), backward=False)
    assert one == pytest.approx(2 * 2.819e9, rel=1e-3)


@pytest.mark.parametrize("backward", [False, True])
def test_xla_counts_about_the_same(backward):
    """It counts masked keys, norms and rotations too, and the loop over layers once: here there is one turn of it."""
    cfg = config.LlamaConfig(vocab=32, d=128, layers=2, heads=4, kv_heads=2, head_dim=32, ff=384)
    graphdef, state = nnx.split(weights.random(cfg, 0, jnp.float32))
    B, P, T = 2, 8, 16
    prefix, live = np.full(B, P), np.full(B, T)

    def last(x, state):
        llama = nnx.merge(graphdef, state)
        past = grids.prefill(llama, jnp.zeros((B, P), jnp.int32), jnp.full(B, P))
        return grids.extend(llama, x, jnp.full(B, T), past, jnp.full((B, 1), T - 1)).sum()

    function = jax.grad(last) if backward else last
    x = jnp.ones((B, T, cfg.d))
    counted = jax.jit(function).lower(x, state).compile().cost_analysis()["flops"]
    ours = flops.prefill(cfg, prefix) + flops.extend(cfg, prefix, live)
    if backward:
        ours += flops.extend_backward(cfg, prefix, live)
    assert ours < counted < 1.25 * ours
