"""int8 weights: rounding by hand, products and gradients against dequantised weights, batch-mates, memory, what is recomputed."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from llmsrec_jax.llama import config, ops, quant, weights
from llmsrec_jax.llama.model import LAYER_WEIGHTS, Llama, shapes
from tests.llama.test_model import (
    ITEMS,
    REMATS,
    backward,
    cached,
    close,
    differentiate,
    draw,
    equations,
    products,
)
from tests.llama.test_weights import CFG, checkpoint

MODES = ("w8", "w8a8")
PRODUCTS = [name for name in LAYER_WEIGHTS if "norm" not in name]


def quantised(mode, dtype=jnp.float32, size="tiny"):
    return weights.random(config.size(size), 3, dtype, mode=mode)


def plain(llama):
    """The same numbers as float32 arrays."""
    arrays = {"table": llama.table[...], "norm": llama.norm[...]}
    for name, leaf in llama.layers.items():
        arrays[name] = dequantised(name, leaf[...]) if name in PRODUCTS else leaf[...]
    return Llama(llama.cfg, arrays)


def dequantised(name, leaf):
    return leaf.values * jnp.expand_dims(leaf.scale, range(1, 1 + weights.INPUTS[name]))


def test_rounding_by_hand():
    stacked = np.array([[[1.0, 0.0, -0.5], [-2.54, 0.0, 0.25]]], np.float32)  # 1 layer, 2 in, 3 out
    leaf = quant.quantise(stacked, 1, "w8")
    np.testing.assert_array_equal(leaf.values, [[[50, 0, -127], [-127, 0, 64]]])
    np.testing.assert_allclose(leaf.scale, [[0.02, 1.0, 0.5 / 127]], rtol=1e-6)
    assert leaf.values.dtype == np.int8 and leaf.scale.dtype == np.float32


@pytest.mark.parametrize(("shape", "inputs"), [((3, 700, 5, 200), 1), ((3, 5, 200, 700), 2)])
def test_rounding_error_is_half_a_step(shape, inputs):
    stacked = np.random.default_rng(0).standard_normal(shape, np.float32)
    leaf = quant.quantise(stacked, inputs, "w8")
    assert leaf.scale.shape == shape[:1] + shape[1 + inputs :]
    scale = np.expand_dims(leaf.scale, tuple(range(1, 1 + inputs)))
    assert (np.abs(leaf.values * scale - stacked) <= 0.5001 * scale).all()
    largest = np.abs(leaf.values).max(tuple(range(1, 1 + inputs)))
    assert (largest == 127).all() and leaf.values.min() == -127


def products_of(dtype):
    """(x, float32 weight, its int8, how many of its axes are inputs) of two shapes."""
    for shape, inputs in (((32, 4, 8), 1), ((4, 8, 32), 2)):
        stacked = np.random.default_rng(1).standard_normal((1, *shape), np.float32)
        leaf = partial(quant.quantise, stacked, inputs)
        yield draw(3, 5, *shape[:inputs]).astype(dtype), stacked[0], leaf, inputs


def rounded(x, inputs):
    axes = tuple(range(-inputs, 0))
    step = np.abs(x).max(axes, keepdims=True) / 127
    return np.round(x / step) * step


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("dtype", "limit"), [(jnp.float32, 2e-6), (jnp.bfloat16, 1e-2)])
def test_products(mode, dtype, limit):
    for x, weight, leaf, inputs in products_of(dtype):
        leaf = leaf(mode)[0]
        scale = np.expand_dims(leaf.scale, tuple(range(inputs)))
        wide = np.asarray(x, np.float32)
        given = rounded(wide, inputs) if mode == "w8a8" else wide
        got = jax.jit(ops.linear, static_argnums=2)(x, leaf, inputs)
        assert got.dtype == dtype
        close(np.asarray(got, np.float32), np.tensordot(given, leaf.values * scale, inputs), limit)
        error = np.asarray(got, np.float32) - np.tensordot(wide, weight, inputs)
        assert 1e-4 < np.abs(error).max() / np.abs(np.asarray(got, np.float32)).max() < 0.03


@pytest.mark.parametrize("mode", MODES)
def test_gradient_of_a_product_is_that_of_the_dequantised_weight(mode):
    for x, _, leaf, inputs in products_of(jnp.float32):
        leaf = leaf(mode)[0]
        wide = jnp.asarray(leaf.values * np.expand_dims(leaf.scale, tuple(range(inputs))))
        y, pull = jax.vjp(lambda x, w=leaf, n=inputs: ops.linear(x, w, n), x)
        _, pull_wide = jax.vjp(lambda x, w=wide, n=inputs: ops.linear(x, w, n), x)
        g = draw(*y.shape, seed=2)
        close(pull(g)[0], pull_wide(g)[0])


def test_zero_and_endless_inputs():
    """A token of zeros stays so; one that is not finite is seen, and only there."""
    leaf = quant.quantise(np.ones((1, 4, 3), np.float32), 1, "w8a8")[0]
    x = jnp.ones((5, 4)).at[1].set(0).at[2, 1].set(jnp.nan).at[3, 2].set(jnp.inf)
    y = ops.linear(x, leaf)
    np.testing.assert_array_equal(y[1], 0)
    assert not jnp.isfinite(y[2:4]).any() and jnp.isfinite(y[jnp.array([0, 4])]).all()


def test_w8_is_exactly_the_dequantised_llama():
    """Hidden states and gradients, whatever the backward pass recomputes."""
    llama = quantised("w8")
    want = differentiate(cached, plain(llama), ITEMS)
    for remat in ("names", "inputs"):
        for ours, theirs in zip(differentiate(cached, llama, ITEMS, remat), want, strict=True):
            close(ours, theirs)


def test_w8a8_is_near_it_and_its_gradient_too():
    llama = quantised("w8a8")
    error = lambda got, want: np.linalg.norm(got - want) / np.linalg.norm(want)
    for got, want in zip(
        differentiate(cached, llama, ITEMS), differentiate(cached, plain(llama), ITEMS), strict=True
    ):
        assert 1e-3 < error(got, want) < 0.1


@pytest.mark.parametrize("mode", MODES)
def test_batch_mates_change_nothing(mode):
    """Neither what the other prompts and the pads are, nor how large."""
    llama, p = quantised(mode), ITEMS
    want = differentiate(cached, llama, p)
    ids = jnp.where(jnp.arange(24) < p.prefix_len[:, None], p.ids, 63).at[1:].set(5)
    real = jnp.arange(40)[:, None] < p.length[:, None, None]
    tail = jnp.where(real, p.tail, 100 * draw(4, 40, 32, seed=1)).at[1:].multiply(30)
    got = differentiate(cached, llama, p._replace(ids=ids, tail=tail))
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert (ours[1:] != theirs[1:]).any()


@pytest.mark.parametrize("mode", MODES)
def test_names_recompute_no_weight_product(mode):
    inside, after = products(backward(quantised(mode), "none"))
    assert (inside, after) == (9 + 11, 9 + 11)  # as without
    assert products(backward(quantised(mode), "names")) == (inside + 1, after + 1)


@pytest.mark.parametrize("remat", REMATS)
@pytest.mark.parametrize("mode", MODES)
def test_weights_are_not_copied_as_residuals(mode, remat):
    llama = quantised(mode)
    stacked = {shapes(llama.cfg)[name][1:] for name in PRODUCTS}
    for equation in equations(backward(llama, remat)):
        if equation.primitive.name == "scan":
            for result in equation.outvars:
                assert result.aval.shape[1:] not in stacked


@pytest.mark.parametrize("mode", MODES)
def test_memory(mode):
    """One byte per weight of a product and four per channel; the rest as before. None is kept in another form."""
    llama = quantised(mode, jnp.bfloat16, "toy")
    cfg, of = llama.cfg, shapes(llama.cfg)
    numbers = sum(np.prod(of[name]) for name in PRODUCTS)
    heads = (cfg.heads + 2 * cfg.kv_heads) * cfg.head_dim
    channels = cfg.layers * (heads + 2 * cfg.d + 2 * cfg.ff)
    others = sum(np.prod(of[name]) for name in of if name not in PRODUCTS)
    found = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.split(llama)[1]))
    assert found == numbers + 4 * channels + 2 * others


@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16])
def test_loading_rounds_what_is_stored(tmp_path, stored):
    """Whatever the dtype of the layers."""
    save_file(checkpoint(stored), tmp_path / "model.safetensors")
    wide = weights.load(tmp_path, CFG, jnp.float32)
    for dtype in (jnp.float32, jnp.bfloat16):
        ours = weights.load(tmp_path, CFG, dtype, "w8a8")
        assert ours.table[...].dtype == ours.layers["attn_norm"][...].dtype == dtype
        for name in PRODUCTS:
            want = quant.quantise(np.asarray(wide.layers[name][...]), weights.INPUTS[name], "w8a8")
            jax.tree.map(np.testing.assert_array_equal, ours.layers[name][...], want)


def test_a_weight_that_is_not_finite_is_named(tmp_path):
    tensors = checkpoint()
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"up: layer 1 has weights that are not finite"):
        weights.load(tmp_path, CFG, jnp.float32, "w8")
