"""SASRec against the arrays recorded from the authors' code: forward, scores, loss, gradients, ten Adam steps.

Limits: forward 5e-5 and gradients 1e-4 of the array's largest value, traces 1e-3. Not compared: the bias of the key
projection, whose gradient is analytically zero (adding the same to all keys shifts all logits of a query), so that
Adam turns rounding noise into steps.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from llmsrec_jax import config
from llmsrec_jax.batch import SequenceBatch
from llmsrec_jax.models import cf, sasrec, sequence

NORM = {"weight": "scale", "bias": "bias"}


@pytest.fixture(scope="module")
def arrays(oracle):
    return dict(np.load(oracle / "sasrec.npz"))


def name_table(blocks):
    """Authors' name -> [(our path, part of the fused rows or None)]."""
    table = {
        "item_emb.weight": [(("item_embedding",), None)],
        "pos_emb.weight": [(("position_embedding",), None)],
    }
    norms = {"last_layernorm": ("norm",)}
    linears = {}
    for b in range(blocks):
        norms[f"attention_layernorms.{b}"] = ("blocks", b, "query_norm")
        norms[f"forward_layernorms.{b}"] = ("blocks", b, "ff_norm")
        linears[f"attention_layers.{b}.out_proj"] = ("blocks", b, "out")
        linears[f"forward_layers.{b}.conv1"] = ("blocks", b, "ff_in")
        linears[f"forward_layers.{b}.conv2"] = ("blocks", b, "ff_out")
        for theirs, ours in {"weight": "kernel", "bias": "bias"}.items():
            table[f"attention_layers.{b}.in_proj_{theirs}"] = [
                (("blocks", b, "query", ours), slice(0, 1)),
                (("blocks", b, "key_value", ours), slice(1, 3)),
            ]
    for theirs, ours in norms.items():
        table |= {f"{theirs}.{t}": [((*ours, o), None)] for t, o in NORM.items()}
    for theirs, ours in linears.items():
        table[f"{theirs}.weight"] = [((*ours, "kernel"), None)]
        table[f"{theirs}.bias"] = [((*ours, "bias"), None)]
    return table


def ours(arrays, prefix):
    """The arrays below `prefix` as {our path: array in our layout}; every one of them must be known."""
    theirs = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
    blocks = sum(k.startswith("attention_layernorms") for k in theirs) // 2
    table = name_table(blocks)
    assert set(table) == set(theirs)
    result = {}
    for name, targets in table.items():
        width = theirs[name].shape[0] // 3
        for path, part in targets:
            value = theirs[name]
            if part is not None:
                value = value[part.start * width : part.stop * width]
            value = value[..., 0] if value.ndim == 3 else value
            result[path] = value.T if path[-1] == "kernel" else value
    return result


def settings(arrays):
    max_len, d = arrays["w/pos_emb.weight"].shape
    blocks = sum(k.startswith("w/attention_layernorms") for k in arrays) // 2
    return config.Teacher(d=d, max_len=max_len, blocks=blocks, heads=1, lr=1e-3, b2=0.98)


def build(arrays, scale=1.0):
    model = sasrec.SASRec(len(arrays["w/item_emb.weight"]), settings(arrays), nnx.Rngs(0))
    graph, state = nnx.split(model)
    leaves = ours(arrays, "w/")
    flat = nnx.to_flat_state(state)
    assert {path for path, _ in flat} == set(leaves)
    for path, leaf in flat:
        assert leaf.shape == leaves[path].shape, path
        leaf.set_value(jnp.asarray(leaves[path]) * scale)
    return graph, state


def leaves_of(state):
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def without_key_bias(path, array):
    """The value half of the fused bias."""
    is_fused_bias = path[-2:] == ("key_value", "bias")
    return array[len(array) // 2 :] if is_fused_bias else array


def assert_close(actual, expected, limit, name=""):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    worst = np.abs(actual - expected).max() / np.abs(expected).max()
    assert worst <= limit, f"{name}: {worst:.1e} of the largest value"


@jax.jit
def features(graph_state, history):
    return sequence.features(nnx.merge(*graph_state), history)


@jax.jit
def user_repr(graph_state, history):
    return nnx.merge(*graph_state).user_repr(history)


@jax.jit
def logits(graph_state, rows):
    return cf.logits(nnx.merge(*graph_state), (rows,))


def batch(arrays, step):
    parts = (arrays[f"trace_{name}"][step] for name in ("seq", "pos", "neg"))
    return SequenceBatch(*(jnp.asarray(part) for part in parts))


def test_forward(arrays):
    actual = features(build(arrays), arrays["probe_seq"])
    assert_close(actual, arrays["probe_log2feats"], 5e-5)
    assert_close(actual[:, -1], arrays["probe_last"], 5e-5)


def test_layernorm_epsilon(arrays):
    actual = features(build(arrays, scale=1e-3), arrays["probe_seq"])
    assert_close(actual, arrays["eps_probe_log2feats"], 5e-5)


def test_short_windows_equal_the_full_ones(arrays):
    """In windows that hold just one item, the shorter half, and all but the longest; the empty one included."""
    model, live = build(arrays), (arrays["probe_seq"] != 0).sum(1)
    for length in sorted({1, int(np.median(live)), int(np.sort(live)[-2])}):
        fits = live <= length
        actual = features(model, arrays["probe_seq"][fits, -length:])
        assert_close(actual, arrays["probe_log2feats"][fits, -length:], 5e-5, f"length {length}")


def test_scores(arrays):
    graph, state = build(arrays)
    users = np.asarray(user_repr((graph, state), arrays["probe_seq"]))
    items = np.asarray(state["item_embedding"][...])[arrays["probe_candidates"]]
    assert_close(np.einsum("BE,BCE->BC", users, items), arrays["probe_scores"], 5e-5)


@pytest.mark.parametrize("split", ["test", "train"])
def test_user_representations(arrays, oracle, split):
    """In windows as short as the longest history allows."""
    windows = dict(np.load(oracle / "sequences.npz"))
    np.testing.assert_array_equal(windows[f"{split}_user"], arrays[f"{split}_user"])
    history = windows[f"{split}_seq"].astype(np.int32)
    longest = int((history != 0).sum(1).max())
    actual = user_repr(build(arrays), history[:, -longest:])
    assert_close(actual, arrays[f"{split}_repr"], 5e-5)


def test_logits(arrays):
    positive, negative = logits(build(arrays), batch(arrays, 0))
    assert_close(positive, arrays["step0_pos_logits"].ravel(), 5e-5)
    assert_close(negative, arrays["step0_neg_logits"].reshape(-1, 1), 5e-5)


@partial(jax.jit, static_argnums=0)
def value_and_gradients(graph, state, groups):
    return jax.value_and_grad(lambda s: cf.loss(nnx.merge(graph, s), groups, "bce"))(state)


def in_two_groups(rows):
    """The rows of a batch sorted by length, the shorter half in windows that just hold them."""
    order = np.argsort((rows.history != 0).sum(1))
    half = len(order) // 2
    longest = max(1, int((rows.history[order[:half]] != 0).sum(1).max()))
    short = SequenceBatch(*(part[order[:half], -longest:] for part in rows))
    return short, SequenceBatch(*(part[order[half:]] for part in rows))


@pytest.mark.parametrize("cut", [lambda rows: (rows,), in_two_groups])
def test_loss_and_every_gradient(arrays, cut):
    value, gradients = value_and_gradients(*build(arrays), cut(batch(arrays, 0)))
    assert float(value) == pytest.approx(arrays["trace_loss"][0], rel=5e-5)
    expected = ours(arrays, "step0_grad/")
    actual = leaves_of(gradients)
    assert set(actual) == set(expected)
    for path in expected:
        pair = (without_key_bias(path, g) for g in (actual[path], expected[path]))
        assert_close(*pair, 1e-4, str(path))
    np.testing.assert_array_equal(actual[("item_embedding",)][0], 0.0)


def test_ten_adam_steps(arrays):
    graph, state = build(arrays)
    cfg = settings(arrays)
    adam = optax.adam(cfg.lr, b1=0.9, b2=cfg.b2, eps=1e-8)

    @jax.jit
    def update(state, opt, gradients):
        updates, opt = adam.update(gradients, opt)
        return optax.apply_updates(state, updates), opt

    opt, losses = adam.init(state), []
    for i in range(len(arrays["trace_loss"])):
        value, gradients = value_and_gradients(graph, state, (batch(arrays, i),))
        state, opt = update(state, opt, gradients)
        losses.append(float(value))
    np.testing.assert_allclose(losses, arrays["trace_loss"], rtol=1e-3)
    expected = ours(arrays, "final/")
    for path, leaf in leaves_of(state).items():
        pair = (without_key_bias(path, w) for w in (leaf, expected[path]))
        assert_close(*pair, 1e-3, str(path))
