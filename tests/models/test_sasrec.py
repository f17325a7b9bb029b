import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from llmsrec_jax import config
from llmsrec_jax.batch import SequenceBatch
from llmsrec_jax.models import cf, sasrec, sequence

ITEMS, MAX_LEN = 23, 16


def split_model(**settings):
    """A small model with biases and norms that matter, split as the hot call wants it."""
    cfg = config.Teacher(**{"d": 8, "max_len": MAX_LEN, "blocks": 1, **settings})
    graph, state = nnx.split(sasrec.SASRec(ITEMS, cfg, nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return graph, jax.tree.unflatten(tree, noisy)


@pytest.fixture(scope="module")
def small():
    return split_model()


def windows(lengths, width=MAX_LEN, seed=0):
    """Left-padded random windows with so many live items each."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(1, ITEMS, (len(lengths), width))
    live = np.arange(width) >= width - np.array(lengths)[:, None]
    return np.where(live, rows, 0).astype(np.int32)


def sequences(lengths, width=MAX_LEN):
    history, positive, negative = (windows(lengths, width, seed) for seed in (0, 1, 2))
    return SequenceBatch(history, positive, negative)


@jax.jit
def features(graph_state, history):
    return sequence.features(nnx.merge(*graph_state), history)


@partial(jax.jit, static_argnums=0)
def value_and_gradients(graph, state, groups, key=None):
    share = lambda s: cf.loss(nnx.merge(graph, s), groups, "bce", key)
    return jax.value_and_grad(share)(state)


def loss(graph, state, groups, key=None):
    return float(value_and_gradients(graph, state, groups, key)[0])


def gradients(graph, state, groups):
    return value_and_gradients(graph, state, groups)[1]


def plain(model, row):
    """The authors' computation of one full window, row by row in float64, every pad attended to."""
    f = lambda x: np.asarray(x, np.float64)
    norm = lambda m, x: (
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-8) * f(m.scale)
        + f(m.bias)
    )
    linear = lambda m, x: x @ f(m.kernel) + f(m.bias)
    live = (row != 0)[:, None]
    table = f(model.item_embedding)
    x = (table[row] * math.sqrt(table.shape[1]) + f(model.position_embedding)) * live
    for block in model.blocks:
        q = norm(block.query_norm, x)
        query, (key, value) = linear(block.query, q), np.split(linear(block.key_value, x), 2, 1)
        mixed = np.zeros_like(x)
        for part in np.split(np.arange(x.shape[1]), block.heads):
            for t in range(len(row)):
                scores = key[: t + 1, part] @ query[t, part] / math.sqrt(len(part))
                weights = np.exp(scores - scores.max())
                mixed[t, part] = weights @ value[: t + 1, part] / weights.sum()
        x = norm(block.ff_norm, q + linear(block.out, mixed))
        x = (x + linear(block.ff_out, np.maximum(linear(block.ff_in, x), 0))) * live
    return norm(model.norm, x)


@pytest.mark.parametrize("heads", [1, 2])
def test_equals_the_plain_computation(heads):
    graph_state = split_model(heads=heads, blocks=2)
    history = windows([0, 1, 5, MAX_LEN])
    model = nnx.merge(*graph_state)
    expected = np.stack([plain(model, row) for row in history])
    np.testing.assert_allclose(features(graph_state, history), expected, rtol=0, atol=2e-5)


def test_short_windows_equal_full_windows(small):
    """Values and gradients, rows with no pad beside the live items, with some, and with nothing else."""
    short = sequences([0, 1, 3, 6], width=6)
    full = SequenceBatch(*(np.pad(part, ((0, 0), (MAX_LEN - 6, 0))) for part in short))
    expected = features(small, full.history)[:, -6:]
    worst = jnp.abs(features(small, short.history) - expected).max()
    assert worst <= 1e-6 * jnp.abs(expected).max()
    both = gradients(*small, (short,)), gradients(*small, (full,))
    for actual, expected in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)


def test_number_of_pads_matters(small):
    """The virtual pad is not decoration: the same items in a model of a longer window differ (oracle surprise 1)."""
    graph, state = split_model(max_len=2 * MAX_LEN)
    state["position_embedding"] = nnx.Param(jnp.tile(small[1]["position_embedding"][...], (2, 1)))
    for name in ("item_embedding", "blocks", "norm"):
        state[name] = small[1][name]
    history = windows([3], width=3)
    assert not np.allclose(features(small, history), features((graph, state), history), atol=1e-2)


def test_later_items_do_not_matter(small):
    history = windows([MAX_LEN])
    changed = history.copy()
    changed[0, 10:] = changed[0, 10:] % (ITEMS - 1) + 1
    before, after = features(small, history), features(small, changed)
    np.testing.assert_array_equal(before[:, :10], after[:, :10])
    assert np.abs(before[:, 10:] - after[:, 10:]).max() > 1e-3


def test_user_representation_is_the_last_column(small):
    history = windows([0, 1, 5, MAX_LEN])
    users = jax.jit(lambda g, h: nnx.merge(*g).user_repr(h))(small, history)
    np.testing.assert_allclose(users, features(small, history)[:, -1], atol=1e-6)


def test_too_long_windows_are_refused(small):
    with pytest.raises(ValueError, match="teacher.max_len is 16"):
        sequence.features(nnx.merge(*small), jnp.zeros((1, MAX_LEN + 1), jnp.int32))


def test_groups_share_one_mean(small):
    """Cutting a batch into windows of different length changes nothing; neither do rows without items."""
    graph, state = small
    short, long = sequences([1, 4], width=4), sequences([0, MAX_LEN])
    wide = SequenceBatch(*(np.pad(part, ((0, 0), (MAX_LEN - 4, 0))) for part in short))
    together = SequenceBatch(*map(np.concatenate, zip(wide, long, strict=True)))
    expected = loss(graph, state, (together,))
    assert loss(graph, state, (short, long)) == pytest.approx(expected, rel=1e-6)


def test_loss_by_hand(small):
    """Mean over the columns with a positive, both halves."""
    rows = sequences([2, 5, 0, 1])
    positive, negative = jax.jit(lambda g, b: cf.logits(nnx.merge(*g), (b,)))(small, rows)
    negative = negative[:, 0]
    counted = rows.positive.ravel() != 0
    of = lambda logits, sign: np.log1p(np.exp(-sign * np.asarray(logits, np.float64)))[counted]
    expected = of(positive, 1).mean() + of(negative, -1).mean()
    assert loss(*small, (rows,)) == pytest.approx(expected, rel=1e-5)


def test_several_negatives_share_the_weight_of_one(small):
    """[B, L, K]: the mean of the losses with one of them each."""
    rows = sequences([2, 5, 0, 1])
    other = windows([2, 5, 0, 1], seed=3)
    both = rows._replace(negative=np.stack([rows.negative, other], axis=-1))
    each = [loss(*small, (rows._replace(negative=n),)) for n in (rows.negative, other)]
    assert loss(*small, (both,)) == pytest.approx(np.mean(each), rel=1e-6)


def test_a_batch_without_items_is_harmless(small):
    value, zeros = value_and_gradients(*small, (sequences([0, 0, 0, 0]),))
    assert value == 0.0
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(zeros))


def test_the_pad_row_is_never_trained(small):
    table = gradients(*small, (sequences([0, 3, 7, MAX_LEN]),))["item_embedding"]
    assert not np.asarray(table[...])[0].any() and np.asarray(table[...])[1:].any()


def test_shares_of_two_devices_sum_to_the_global_loss(small):
    """Devices with different counts of live columns."""
    graph, state = small
    rows = sequences([1, 9, 2, 12])
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def per_device(state, rows):
        share = lambda s: cf.loss(nnx.merge(graph, s), (rows,), "bce", axis="data")
        return jax.lax.psum(jax.value_and_grad(share)(state), "data")

    mapped = jax.shard_map(
        per_device, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False
    )
    value, actual = jax.jit(mapped)(state, rows)
    expected, expected_gradients = value_and_gradients(graph, state, (rows,))
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for pair in zip(*map(jax.tree.leaves, (actual, expected_gradients)), strict=True):
        np.testing.assert_allclose(*pair, rtol=0, atol=1e-6)


def test_dropout_follows_its_key(small):
    rows = (sequences([4, 9, 1, 2]),)
    values = [loss(*small, rows, jax.random.key(k)) for k in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    assert values[0] != loss(*small, rows)


def test_dropout_keeps_the_mean():
    dropped = sequence.dropout(jnp.ones(40_000), 0.3, jax.random.key(0))
    assert np.unique(dropped) == pytest.approx([0.0, 1 / 0.7])
    assert np.mean(dropped) == pytest.approx(1.0, abs=0.01)
    odd = jnp.ones((3, 5))
    assert sequence.dropout(odd, 0.5, jax.random.key(0)).shape == odd.shape
    assert sequence.dropout(odd, 0.0, jax.random.key(0)) is odd


def test_initialisation_is_the_authors():
    """Xavier-normal on every matrix by PyTorch's fans, the fused projection counted as one [3E, E]."""
    cfg = config.Teacher(d=64, max_len=100)
    model = sasrec.SASRec(1000, cfg, nnx.Rngs(0))
    block = model.blocks[1]
    std = lambda leaf: float(jnp.std(leaf[...]))
    assert std(model.item_embedding) == pytest.approx(math.sqrt(2 / 1064), rel=0.02)
    assert std(model.position_embedding) == pytest.approx(math.sqrt(2 / 164), rel=0.05)
    for linear in (block.query, block.key_value):
        assert std(linear.kernel) == pytest.approx(math.sqrt(2 / 256), rel=0.05)
        assert not np.asarray(linear.bias[...]).any()
    for linear in (block.out, block.ff_in, block.ff_out):
        assert std(linear.kernel) == pytest.approx(math.sqrt(2 / 128), rel=0.05)
    for linear in (block.ff_in, block.ff_out):
        assert 0.1 < np.abs(linear.bias[...]).max() <= 0.125
