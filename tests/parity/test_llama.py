"""LLaMA against recorded arrays (llama/probe.npz of an oracle set) and against real checkpoints.

Limit: 5e-5 of each array's largest value. Only real positions are compared, and pads are ordinary tokens there.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax.llama import config, model, ops, weights
from tests.llama import grids

LIMIT = 5e-5


def close(got, want):
    assert np.isfinite(want).all() and np.abs(want).max() > 0
    np.testing.assert_allclose(got, want, rtol=0, atol=LIMIT * np.abs(want).max())


def load(folder, dtype=jnp.float32):
    cfg, folder = config.locate(str(folder))
    return weights.load(folder, cfg, dtype)


@pytest.fixture(scope="module")
def probe(oracle):
    return dict(np.load(oracle / "llama" / "probe.npz"))


@pytest.fixture(scope="module")
def llama(oracle):
    return load(oracle / "llama")


@pytest.fixture(scope="module")
def hidden(llama):
    graphdef, state = nnx.split(llama)
    run = jax.jit(lambda state, x, length: nnx.merge(graphdef, state).hidden(x, length))
    return lambda x, length: run(state, x, length)


def test_hidden_states(llama, hidden, probe):
    ids, length = probe["input_ids"], probe["lengths"]
    got = hidden(llama.embed(ids), length)
    real = np.arange(ids.shape[1]) < length[:, None]
    close(np.asarray(got)[real], probe["last_hidden"][real])
    close(np.where(real[..., None], got, 0), probe["last_hidden_masked"])
    everything = hidden(llama.embed(ids), np.full_like(length, ids.shape[1]))
    close(everything, probe["last_hidden"])  # the pads' own states as well


def test_logits_by_the_tied_embedding(llama, hidden, probe):
    ids, length = probe["input_ids"], probe["lengths"]
    if not llama.cfg.tied:
        pytest.skip("an untied lm_head is not loaded")
    logits = jnp.einsum("BTD,VD->BTV", hidden(llama.embed(ids), length), llama.table[...])
    close(logits[np.arange(len(ids)), length - 1], probe["logits_last"])
    close(logits[3, : length[3]], probe["logits_row3"])


def test_states_between_the_layers(llama, probe):
    *states, last = probe["hidden_states_row3"]
    x = llama.embed(jnp.asarray(probe["input_ids"][3, : len(last)]))
    close(x, states[0])
    flat = grids.flat(1, len(last), [len(last)])
    rope = ops.rope_tables(llama.cfg, flat.position)
    for i in range(llama.cfg.layers):
        x, _ = model._layer(
            llama.cfg, llama.sharding, llama._layer(i, {}, flat), x, rope, flat, [None]
        )
        if i + 1 < llama.cfg.layers:
            close(x, states[i + 1])
    close(ops.rms_norm(x, llama.norm[...], llama.cfg.eps), last)


def test_long_input(llama, hidden, probe):
    ids = probe["long_ids"]
    got = hidden(llama.embed(ids), np.array([ids.shape[1]]))
    want = probe["long_last_hidden"]
    close(got[0, -len(want) :], want)


def test_long_input_after_a_prefix(llama, probe):
    ids, want = probe["long_ids"], probe["long_last_hidden"]
    S, T = ids.shape[1], len(want)
    graphdef, state = nnx.split(llama)

    @jax.jit
    def run(state, prefix, tail):
        llama = nnx.merge(graphdef, state)
        past = grids.prefill(llama, prefix, jnp.array([S - T]))
        return grids.extend(llama, llama.embed(tail), jnp.array([T]), past, jnp.arange(T)[None])

    close(run(state, ids[:, : S - T], ids[:, S - T :])[0], want)


def test_embeddings_as_input(hidden, probe):
    x, want = probe["embeds_in"], probe["embeds_last_hidden"]
    close(hidden(x, np.full(len(x), x.shape[1])), want)


def test_rope(llama, probe):
    close(ops.inverse_frequencies(llama.cfg), probe["rope_inv_freq"])
    positions = np.array([[0, 1, 5, 100, 1023]])
    for got, name in zip(ops.rope_tables(llama.cfg, positions), ("cos", "sin"), strict=True):
        want = probe[f"rope_{name}_0_1024"]
        assert want.shape[-1] == llama.cfg.head_dim  # both halves, which are equal
        close(np.concatenate([got[0], got[0]], -1), want)


def test_stories_continue_as_recorded(shared):
    """Every recorded token is the argmax after those before it: that is greedy decoding, in one pass."""
    folder = shared / "data" / "llama_stories260k"
    llama = load(folder)
    want = json.loads((folder / "greedy_reference.json").read_text())["ids"]
    graphdef, state = nnx.split(llama)
    length = jnp.array([len(want)])

    @jax.jit
    def run(state, ids):
        llama = nnx.merge(graphdef, state)
        return llama.hidden(llama.embed(ids), length)

    logits = run(state, jnp.array([want]))[0] @ llama.table[...].T
    assert len(want) > 100 and want[0] == 1
    np.testing.assert_array_equal(logits.argmax(-1)[:-1], want[1:])


def test_titles_backbone_in_both_precisions(shared):
    folder = shared / "data" / "llama_titles"
    single, half = load(folder), load(folder, jnp.bfloat16)
    ids = jnp.asarray(np.random.default_rng(0).integers(2, single.cfg.vocab, (2, 24)))
    ids = ids.at[:, 0].set(0)  # begin of text
    length = jnp.array([24, 24])
    run = jax.jit(lambda llama, ids: llama.hidden(llama.embed(ids), length), static_argnums=0)
    want, got = run(single, ids), run(half, ids)
    assert single.table[...].dtype == jnp.float32 and half.table[...].dtype == jnp.bfloat16
    np.testing.assert_array_equal(single.table[...], half.table[...].astype(jnp.float32))
    assert jnp.isfinite(want).all()
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < 0.05
