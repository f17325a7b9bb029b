"""What all CF-SRec models have in common (S2-S5), and their losses."""

from dataclasses import is_dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import config, losses
from llmsrec_jax.batch import HIDDEN, SequenceBatch
from llmsrec_jax.models import cf, sequence
from llmsrec_jax.presets import READ_BY
from tests.systems import named

ITEMS, MAX_LEN, WIDTH = 23, 12, 8
CAUSAL = [name for name, kind in cf.MODELS.items() if not kind.hides]
OTHERS = [name for name in cf.MODELS if name != "sasrec"]  # which has tests of its own


def settings(name, **more) -> config.Teacher:
    small = {"d": WIDTH, "max_len": MAX_LEN, "heads": 2, "model": name, **more}
    cfg = config.Teacher(**small)
    cfg.gru4rec.hidden, cfg.bert4rec.inner = 10, 12
    return cfg


def model_of(name, **more):
    """Split, with every weight moved off its start, so that biases and norms matter."""
    graph, state = nnx.split(cf.new(ITEMS, settings(name, **more), nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return graph, jax.tree.unflatten(tree, noisy)


def windows(lengths, width=MAX_LEN, seed=0):
    rows = np.random.default_rng(seed).integers(1, ITEMS, (len(lengths), width))
    live = np.arange(width) >= width - np.array(lengths)[:, None]
    return np.where(live, rows, 0).astype(np.int32)


class Watched:
    """A section of the configuration that notes which settings are read."""

    def __init__(self, section, name, read):
        self._section, self._name, self._read = section, name, read

    def __getattr__(self, leaf):
        value, name = getattr(self._section, leaf), f"{self._name}.{leaf}"
        self._read.add(name)
        return Watched(value, name, self._read) if is_dataclass(value) else value


@pytest.mark.parametrize("name", cf.MODELS)
def test_settings_are_read_by_the_models_that_are_said_to(name):
    """Of all others the configuration refuses them."""
    read = set()
    cf.new(ITEMS, Watched(settings(name), "teacher", read), nnx.Rngs(0))
    of_models = {k: v for k, (choice, v) in READ_BY.items() if choice == "teacher.model"}
    assert {k for k in of_models if k in read} == {k for k, v in of_models.items() if name in v}


@jax.jit
def features(split, history):
    return sequence.features(nnx.merge(*split), history)


@jax.jit
def user_repr(split, history):
    return nnx.merge(*split).user_repr(history)


@partial(jax.jit, static_argnames="kind")
def value_and_gradients(split, groups, kind, key=None):
    share = lambda state: cf.loss(nnx.merge(split[0], state), groups, kind, key)
    return jax.value_and_grad(share)(split[1])


def batch(lengths, width=MAX_LEN, negatives=2):
    history, positive = windows(lengths, width), windows(lengths, width, seed=1)
    negative = [windows(lengths, width, seed=2 + n) for n in range(negatives)]
    return SequenceBatch(history, positive, np.stack(negative, axis=-1))


@pytest.mark.parametrize("name", CAUSAL)
def test_later_items_do_not_matter(name):
    split, history = model_of(name), windows([MAX_LEN])
    changed = history.copy()
    changed[0, 8:] = changed[0, 8:] % (ITEMS - 1) + 1
    before, after = features(split, history), features(split, changed)
    np.testing.assert_array_equal(before[:, :8], after[:, :8])
    assert np.abs(before[:, 8:] - after[:, 8:]).max(axis=-1).min() > 1e-3


def test_both_sides_matter_where_items_are_hidden():
    split, history = model_of("bert4rec"), windows([MAX_LEN])
    for place in (0, MAX_LEN - 1):
        changed = history.copy()
        changed[0, place] = changed[0, place] % (ITEMS - 1) + 1
        moved = np.abs(features(split, history) - features(split, changed)).max(axis=-1)
        assert moved.min() > 1e-4


def test_what_is_hidden_does_not_matter():
    """Its embedding, and the gradient to it: the last row, which index -1 would be, included."""
    split, history = model_of("bert4rec"), windows([6, MAX_LEN])
    history[:, -3] = HIDDEN
    asked = np.where(history == HIDDEN, ITEMS - 1, 0)
    history[history == ITEMS - 1] = 1
    batch = SequenceBatch(history, np.where(asked, 5, 0), np.full((*asked.shape, 1), 7))
    graph, state = split
    moved = jax.tree.map(lambda x: x, state)
    moved["item_embedding"] = nnx.Param(state["item_embedding"][...].at[ITEMS - 1].add(9.0))
    np.testing.assert_array_equal(features(split, history), features((graph, moved), history))
    gradient = value_and_gradients(split, (batch,), "bce")[1]["item_embedding"][...]
    assert not np.asarray(gradient)[ITEMS - 1].any()
    assert np.asarray(gradient)[[5, 7]].any(axis=1).all()


@pytest.mark.parametrize("name", cf.MODELS)
def test_the_width_of_a_window_does_not_matter(name):
    """Vectors of users, and gradients, of rows with few items, many, and none."""
    split, rows = model_of(name), batch([0, 1, 4, 6], width=6)
    wide = SequenceBatch(
        *(np.pad(x, ((0, 0), (6, 0), (0, 0))[: x.ndim], constant_values=0) for x in rows)
    )
    short, full = user_repr(split, rows.history)[1:], user_repr(split, wide.history)[1:]
    np.testing.assert_allclose(short, full, rtol=0, atol=2e-6)
    got, wanted = (named(value_and_gradients(split, (x,), "bce")[1]) for x in (rows, wide))
    for path, gradient in wanted.items():
        np.testing.assert_allclose(got[path], gradient, rtol=0, atol=2e-6, err_msg=path)


def test_a_full_window_makes_room_for_what_is_asked():
    """The oldest item leaves, no other does."""
    split, history = model_of("bert4rec"), windows([MAX_LEN, MAX_LEN])
    changed = history.copy()
    changed[0, 0], changed[1, 1] = (history[0, 0] % 22) + 1, (history[1, 1] % 22) + 1
    before, after = user_repr(split, history), user_repr(split, changed)
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 1e-5


@pytest.mark.parametrize("name", cf.MODELS)
@pytest.mark.parametrize("kind", cf.LOSSES)
def test_every_loss_of_every_model(name, kind):
    """Groups share one mean, empty ones do no harm, the pad row is never trained, every other weight is."""
    split, rows = model_of(name), batch([2, 5, 0, 11])
    cut = lambda some: SequenceBatch(*(x[some] for x in rows))
    value, gradients = value_and_gradients(split, (rows,), kind)
    parts, both = value_and_gradients(split, (cut(slice(0, 1)), cut(slice(1, 4))), kind)
    assert float(parts) == pytest.approx(float(value), rel=1e-6)
    found, again = named(gradients), named(both)
    for path, gradient in found.items():
        np.testing.assert_allclose(again[path], gradient, rtol=0, atol=2e-6, err_msg=path)
        # keys move every logit of a softmax alike: their bias has none
        assert gradient.any() or path == "hidden_item", path
    assert not found["item_embedding"][0].any()
    nothing, zeros = value_and_gradients(split, (batch([0, 0]),), kind)
    assert float(nothing) == 0.0 and not any(x.any() for x in named(zeros).values())


@pytest.mark.parametrize("name", OTHERS)
def test_dropout_follows_its_key(name):
    split, rows = model_of(name, dropout=0.4), (batch([4, 9, 1, 2]),)
    keys = [jax.random.key(k) for k in (0, 0, 1)]
    values = [float(value_and_gradients(split, rows, "ce", key)[0]) for key in keys]
    assert values[0] == values[1] != values[2]
    assert values[0] != float(value_and_gradients(split, rows, "ce")[0])


def test_sampled_cross_entropy_by_hand():
    split, rows = model_of("gru4rec"), batch([3, 1])
    x = np.asarray(features(split, rows.history), np.float64)
    table = np.asarray(split[1]["item_embedding"][...], np.float64)
    ids = np.concatenate([rows.positive[..., None], rows.negative], axis=-1)
    scores = np.einsum("bte,btce->btc", x, table[ids])
    each = np.log(np.exp(scores).sum(-1)) - scores[..., 0]
    wanted = each[rows.positive > 0].mean()
    assert float(value_and_gradients(split, (rows,), "sampled_ce")[0]) == pytest.approx(wanted)


@pytest.mark.parametrize("tile", [1, 3, 40, 10_000])
@pytest.mark.parametrize("counted", [0, 1, 17, 40])
def test_the_loss_over_a_catalogue(tile, counted, monkeypatch):
    """Value and gradients are those of the plain computation, however it is cut into tiles."""
    monkeypatch.setattr(losses, "SMALLEST_TILE", 1)
    monkeypatch.setattr(losses, "CATALOGUE_NUMBERS", tile * ITEMS)
    rng = np.random.default_rng(0)
    x, table = rng.normal(size=(40, WIDTH)), rng.normal(size=(ITEMS, WIDTH))
    target = np.zeros(40, np.int32)
    target[rng.permutation(40)[:counted]] = rng.integers(1, ITEMS, counted)

    def plain(x, table):
        log = jax.nn.log_softmax((x @ table.T)[:, 1:], axis=1)
        own = jnp.take_along_axis(log, jnp.maximum(target - 1, 0)[:, None], axis=1)[:, 0]
        return -jnp.sum(jnp.where(target > 0, own, 0.0)) * 0.5

    ours = lambda x, table: losses.catalogue_loss(x, table, jnp.asarray(target)) * 0.5
    arguments = jnp.float32(x), jnp.float32(table)
    wanted, expected = jax.value_and_grad(plain, (0, 1))(*arguments)
    value, got = jax.jit(jax.value_and_grad(ours, (0, 1)))(*arguments)
    np.testing.assert_allclose(value, wanted, rtol=2e-6)
    for actual, gradient in zip(got, expected, strict=True):
        np.testing.assert_allclose(actual, gradient, rtol=0, atol=2e-6)


def test_operations_count_what_a_window_costs():
    """Longer windows, more layers and whole catalogues cost more; scores of a catalogue by hand."""
    for name in cf.MODELS:
        cfg, n = settings(name, blocks=1), np.array([5, 7])
        one = cf.operations(cfg, n, n, ITEMS)
        assert one < cf.operations(cfg, n + 1, n, ITEMS)
        assert one < cf.operations(settings(name, blocks=2), n, n, ITEMS)
        full = cf.operations(settings(name, blocks=1, loss="ce"), n, n, ITEMS)
        assert full - one == 2 * WIDTH * (ITEMS - 2) * 12


@pytest.mark.torch
def test_a_gru_layer_is_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    cfg = settings("gru4rec", blocks=2)
    model = cf.new(ITEMS, cfg, nnx.Rngs(0))
    theirs = torch.nn.GRU(WIDTH, 10, num_layers=2, bias=False, batch_first=True)
    for number, layer in enumerate(model.layers):
        for kind, matrix in (("ih", layer.of_input), ("hh", layer.of_state)):
            weight = torch.tensor(np.asarray(matrix[...]).T.copy())
            getattr(theirs, f"weight_{kind}_l{number}").data.copy_(weight)
    history = windows([MAX_LEN, MAX_LEN])
    items = np.asarray(model.item_embedding[...])[history]
    expected = theirs(torch.tensor(items))[0].detach().numpy()
    expected = expected @ np.asarray(model.out.kernel[...]) + np.asarray(model.out.bias[...])
    np.testing.assert_allclose(sequence.features(model, history), expected, rtol=0, atol=2e-6)


@pytest.mark.torch
def test_a_convolution_is_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    model = cf.new(ITEMS, settings("nextitnet", blocks=1), nnx.Rngs(0))
    ours = model.blocks[1].second
    theirs = torch.nn.Conv1d(WIDTH, WIDTH, 3, dilation=8)
    kernel = np.asarray(ours.taps.kernel[...]).reshape(3, WIDTH, WIDTH)
    theirs.weight.data.copy_(torch.tensor(kernel.transpose(2, 1, 0).copy()))
    theirs.bias.data.copy_(torch.tensor(np.asarray(ours.taps.bias[...])))
    x = np.random.default_rng(0).normal(size=(2, MAX_LEN, WIDTH)).astype(np.float32)
    padded = torch.nn.functional.pad(torch.tensor(x).transpose(1, 2), (16, 0))
    expected = theirs(padded).transpose(1, 2).detach().numpy()
    got = ours(x.reshape(-1, WIDTH), [(2, MAX_LEN)]).reshape(x.shape)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)


@pytest.mark.torch
def test_a_block_of_bert4rec_is_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    (graph, state), lengths = model_of("bert4rec", blocks=1), [MAX_LEN, 5]
    block = nnx.merge(graph, state).blocks[0]
    theirs = torch.nn.TransformerEncoderLayer(
        *(WIDTH, 2, 12, 0.0, "gelu", 1e-12), batch_first=True, norm_first=False
    )
    weights = {
        "self_attn.in_proj": block.query_key_value,
        "self_attn.out_proj.": block.out,
        "linear1.": block.ff_in,
        "linear2.": block.ff_out,
    }
    arrays = {}
    for name, linear in weights.items():
        end = name if name.endswith(".") else f"{name}_"
        arrays[f"{end}weight"] = np.asarray(linear.kernel[...]).T
        arrays[f"{end}bias"] = np.asarray(linear.bias[...])
    for name, norm in (("norm1", block.attention_norm), ("norm2", block.ff_norm)):
        arrays[f"{name}.weight"] = np.asarray(norm.scale[...])
        arrays[f"{name}.bias"] = np.asarray(norm.bias[...])
    theirs.load_state_dict({name: torch.tensor(x.copy()) for name, x in arrays.items()})
    history = windows(lengths)
    x = np.random.default_rng(0).normal(size=(2, MAX_LEN, WIDTH)).astype(np.float32)
    expected = theirs(torch.tensor(x), src_key_padding_mask=torch.tensor(history == 0))
    got = block(x.reshape(-1, WIDTH), [history], None).reshape(x.shape)
    live = history > 0
    np.testing.assert_allclose(
        np.asarray(got)[live], expected.detach().numpy()[live], rtol=0, atol=5e-6
    )


def spread_of(name, items=2000, **more):
    """Standard deviation, largest magnitude and mean of every array of a fresh model of the usual size."""
    model = cf.new(items, config.Teacher(model=name, heads=2, blocks=1, **more), nnx.Rngs(0))
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model)))
    named = {".".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in leaves}
    return {name: (x.std(), np.abs(x).max(), x.mean()) for name, x in named.items()}


def test_initialisation_of_gru4rec_is_recboles():
    """Xavier for embeddings (normal) and the GRU (uniform, its gates as one matrix), PyTorch's default for the layer behind it."""
    found = spread_of("gru4rec")
    assert found["item_embedding"][0] == pytest.approx((2 / 2064) ** 0.5, rel=0.02)
    for matrix, rows in (("of_input", 64), ("of_state", 128)):
        assert found[f"layers.0.{matrix}"][1] == pytest.approx((6 / (384 + rows)) ** 0.5, rel=0.01)
    for leaf in ("out.kernel", "out.bias"):
        assert 0.9 * 128**-0.5 < found[leaf][1] <= 128**-0.5


def test_initialisation_of_nextitnet_is_recboles():
    """PyTorch's default for convolutions, items uniform by their number, Xavier-normal with a bias of 0.1 for the last layer."""
    found = spread_of("nextitnet")
    assert 0.99 * 2000**-0.5 < found["item_embedding"][1] <= 2000**-0.5
    for convolution in ("first", "second"):
        for leaf in ("kernel", "bias"):
            largest = found[f"blocks.0.{convolution}.taps.{leaf}"][1]
            assert 0.9 * 192**-0.5 < largest <= 192**-0.5
    assert found["out.kernel"][0] == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert found["out.bias"] == pytest.approx((0.0, 0.1, 0.1), abs=1e-6)


def test_initialisation_of_bert4rec_is_recboles():
    """Normal of 0.02 for every matrix and embedding, no bias."""
    found = spread_of("bert4rec")
    for name, (std, largest, mean) in found.items():
        if name.endswith("bias"):
            assert largest == 0
        elif name.endswith("scale"):
            assert (std, mean) == (0, 1)
        else:
            assert std == pytest.approx(0.02, rel=0.2), name
