"""The engine: causality, padding, exactness of the cached path and its gradients, what a backward pass keeps."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax.llama import config, weights
from llmsrec_jax.llama.model import LAYER_WEIGHTS, Llama, shapes
from tests.llama import grids

REMATS = ("none", "names", "inputs")


def sharp(dtype=jnp.float32, **changes):
    """A tiny LLaMA whose attention is not nearly uniform, as that of `random` is."""
    cfg = config.LlamaConfig(
        **{**dict(vocab=64, d=32, layers=3, heads=4, kv_heads=2, head_dim=8, ff=48), **changes}
    )
    llama = weights.random(cfg, 3, dtype)
    llama.layers["q"][...] = llama.layers["q"][...] * 4  # logits of about unit size
    return llama


@pytest.fixture(scope="module")
def llama():
    return sharp()


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), jnp.float32)


def close(got, want, limit=2e-6):
    scale = np.abs(want).max()
    assert scale > 0
    np.testing.assert_allclose(got, want, rtol=0, atol=limit * scale)


def test_causal_by_gradients(llama):
    x, t, coefficient = draw(2, 9, 32), 5, draw(2, 32)
    length = jnp.array([9, 9])
    grad = jax.jit(jax.grad(lambda x: (llama.hidden(x, length)[:, t] * coefficient).sum()))(x)
    size = jnp.abs(grad).sum((0, 2))
    assert (size[: t + 1] > 0.1).all() and (size[t + 1 :] == 0).all()


class Prompts(NamedTuple):
    """Ragged prompts: ids of the prefix, embeddings of the tail, two positions per row to read."""

    ids: jax.Array
    prefix_len: np.ndarray
    tail: jax.Array
    length: np.ndarray
    out: np.ndarray


def prompts(P, T, prefix_len, length, seed=0):
    rng = np.random.default_rng(seed)
    prefix_len, length = np.array(prefix_len), np.array(length)
    ids = rng.integers(1, 64, (len(length), P))
    tail = draw(len(length), T, 32, seed=seed)
    return Prompts(
        jnp.asarray(ids), prefix_len, tail, length, np.stack([length - 1, length // 2], 1)
    )


ITEMS = prompts(24, 40, prefix_len=[24, 9, 1, 15], length=[10, 8, 11, 3])
USERS = prompts(24, 40, prefix_len=[6, 4, 0, 5], length=[40, 23, 9, 1], seed=1)


def cached(llama, tail, p, remat):
    past = grids.prefill(llama, p.ids, p.prefix_len)
    return grids.extend(llama, tail, p.length, past, p.out, remat)


def full(llama, tail, p, remat):
    """One pass over prefix and tail glued together, without padding between them."""
    P, S = p.ids.shape[1], p.ids.shape[1] + tail.shape[1]
    position, start = jnp.arange(S), p.prefix_len[:, None]
    source = jnp.where(position < start, position, jnp.minimum(P + position - start, S - 1))
    x = jnp.take_along_axis(jnp.concatenate([llama.embed(p.ids), tail], 1), source[..., None], 1)
    return grids.extend(llama, x, p.prefix_len + p.length, None, p.out + start, remat)


@partial(jax.jit, static_argnames=("graphdef", "path", "remat"))
def _differentiate(state, p, graphdef, path, remat):
    def weighted(tail):
        hidden = path(nnx.merge(graphdef, state), tail, p, remat)
        return (hidden * draw(*hidden.shape, seed=5)).sum(), hidden

    grad, hidden = jax.grad(weighted, has_aux=True)(p.tail)
    return hidden, grad


def differentiate(path, llama, p, remat="names"):
    """Hidden states, and the gradient of their weighted sum with respect to the tail."""
    graphdef, state = nnx.split(llama)
    return _differentiate(state, p, graphdef, path, remat)


def check_exact(llama, p):
    """Relative L2 distances of 2e-6, rows counting equally: what float32 leaves when sums run in another order."""
    real = (np.arange(p.tail.shape[1]) < p.length[:, None])[..., None]
    for got, want in zip(
        differentiate(cached, llama, p), differentiate(full, llama, p), strict=True
    ):
        if got.shape == p.tail.shape:
            assert (np.where(real, 0, got) == 0).all()
        size = np.linalg.norm(want, axis=(1, 2))
        assert (size[p.length > 1] > 0.1).all()
        distance = np.linalg.norm(got - want, axis=(1, 2)) / np.maximum(size, 0.1)
        assert np.sqrt((distance**2).mean()) < 2e-6


@pytest.mark.parametrize("p", [ITEMS, USERS], ids=["items", "users"])
def test_prefix_is_exact_in_outputs_and_gradients(llama, p):
    check_exact(llama, p)


@pytest.mark.parametrize(
    "shape",
    [
        dict(P=0, T=6, prefix_len=[0, 0], length=[6, 2]),
        dict(P=3, T=1, prefix_len=[3, 2], length=[1, 1]),
    ],
    ids=["no prefix", "one live token"],
)
def test_prefix_is_exact_at_the_edges(shape):
    check_exact(sharp(layers=1), prompts(**shape))


def test_pads_and_neighbours_change_nothing(llama):
    want, want_grad = differentiate(cached, llama, ITEMS)
    ids = jnp.where(jnp.arange(24) < ITEMS.prefix_len[:, None], ITEMS.ids, 63)
    real = jnp.arange(40)[:, None] < ITEMS.length[:, None, None]
    tail = jnp.where(real, ITEMS.tail, 100 * draw(4, 40, 32, seed=1))
    hidden, grad = differentiate(cached, llama, ITEMS._replace(ids=ids, tail=tail))
    np.testing.assert_array_equal(hidden, want)
    np.testing.assert_array_equal(grad, want_grad)
    alone = jax.tree.map(lambda x: x[np.array([2, 2, 2, 2])], ITEMS)
    close(differentiate(cached, llama, alone)[0][0], want[2])


@pytest.mark.parametrize("remat", ["none", "inputs"])
def test_remat_changes_nothing(llama, remat):
    for got, want in zip(
        differentiate(cached, llama, ITEMS, remat), differentiate(cached, llama, ITEMS), strict=True
    ):
        close(got, want)


def test_nothing_turns_into_nan(llama):
    """Empty prefixes and tails, an out position at or beyond the length or outside of the block."""
    empty = ITEMS._replace(
        prefix_len=np.array([0, 24, 2, 0]),
        length=np.array([0, 0, 3, 40]),
        out=np.array([[-1, 0], [5, 39], [3, 40], [39, 0]]),
    )
    for array in differentiate(cached, llama, empty):
        assert jnp.isfinite(array).all()


def test_out_picks_positions_in_any_order(llama):
    x, length = draw(2, 8, 32), jnp.array([8, 6])
    every = jax.jit(llama.hidden)(x, length)
    out = jnp.array([[5, 2, 5], [0, 1, 4]])
    got = jax.jit(lambda x: grids.extend(llama, x, length, None, out))(x)
    want = jnp.stack([every[0, jnp.array([5, 2, 5])], every[1, jnp.array([0, 1, 4])]])
    close(got, want)


def test_prefix_carries_no_gradient(llama):
    graphdef, state = nnx.split(llama)
    ids, length = jnp.ones((2, 5), jnp.int32), jnp.array([5, 3])
    square = lambda state: (grids.prefill(nnx.merge(graphdef, state), ids, length)[0].k ** 2).sum()
    grads = jax.jit(jax.grad(square))(state)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_frozen_is_no_parameter_and_merges_inside_jit(llama):
    assert not jax.tree.leaves(nnx.state(llama, nnx.Param))
    graphdef, state = nnx.split(llama)
    ids = jnp.array([[3, 1]])
    step = jax.jit(lambda state, ids: nnx.merge(graphdef, state).embed(ids))
    np.testing.assert_array_equal(step(state, ids), llama.table[...][ids])


def test_unknown_remat_is_refused(llama):
    with pytest.raises(ValueError, match="'full', choose none | names | inputs"):
        grids.extend(llama, draw(1, 2, 32), jnp.array([2]), None, jnp.array([[1]]), "full")


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def backward(llama, remat):
    graphdef, state = nnx.split(llama)
    length, out = jnp.array([20, 20]), jnp.array([[19], [19]])
    run = lambda x, state: grids.extend(
        nnx.merge(graphdef, state), x, length, None, out, remat
    ).sum()
    return jax.make_jaxpr(jax.grad(run))(draw(2, 20, 32), state).jaxpr


def products(jaxpr):
    """(in the layer loop, after it) numbers of matrix products, forward and backward."""
    count = lambda eqns: sum(e.primitive.name == "dot_general" for e in eqns)
    loops = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
    inside = sum(count(equations(e.params["jaxpr"].jaxpr)) for e in loops)
    return inside, count(equations(jaxpr)) - inside


def test_names_recompute_no_weight_product(llama):
    inside, after = products(backward(llama, "none"))
    # forward 7 weight products + 2 of attention; backward the same 7 with respect to x, 4 of attention
    assert (inside, after) == (9 + 11, 9 + 11)
    assert products(backward(llama, "names")) == (inside + 1, after + 1)  # the attention logits
    assert products(backward(llama, "inputs"))[0] >= inside + 6


@pytest.mark.parametrize("remat", REMATS)
def test_weights_are_not_copied_as_residuals(llama, remat):
    stacked = {shape[1:] for name, shape in shapes(llama.cfg).items() if name in LAYER_WEIGHTS}
    stacked.remove((llama.cfg.d,))  # norms are vectors: nothing
    for equation in equations(backward(llama, remat)):
        if equation.primitive.name == "scan":
            for result in equation.outvars:
                assert result.aval.shape[1:] not in stacked


def test_last_layer_runs_at_out_positions_only(llama):
    """Outside of the loop over layers nothing is as large as a feed-forward over all positions."""
    ff = llama.cfg.ff
    loop = lambda e: e.primitive.name == "scan"
    jaxpr = backward(llama, "names")
    inside = {
        id(e) for s in equations(jaxpr) if loop(s) for e in equations(s.params["jaxpr"].jaxpr)
    }
    after = [
        v.aval.shape
        for e in equations(jaxpr)
        if id(e) not in inside and not loop(e)
        for v in e.outvars
    ]
    assert (2, ff) in after and (40, ff) not in after


def test_bfloat16(llama):
    half = sharp(jnp.bfloat16)
    hidden, grad = differentiate(cached, half, ITEMS)
    want, want_grad = differentiate(cached, llama, ITEMS)
    assert hidden.dtype == grad.dtype == jnp.float32
    error = lambda got, want: np.linalg.norm(got - want) / np.linalg.norm(want)
    assert error(hidden, want) < 0.1 and error(grad, want_grad) < 0.2
    ids, length = jnp.ones((2, 3), jnp.int32), jnp.ones(2, jnp.int32)
    kv, _ = jax.eval_shape(partial(grids.prefill, half), ids, length)
    assert kv.k.dtype == kv.v.dtype == jnp.bfloat16


def abstract(cfg, dtype):
    return Llama(cfg, {k: jax.ShapeDtypeStruct(s, dtype) for k, s in shapes(cfg).items()})


@pytest.mark.parametrize("size", config.SIZES)
def test_every_size_builds(size):
    cfg = config.SIZES[size]
    graphdef, state = nnx.split(abstract(cfg, jnp.bfloat16))
    ids, length = jax.ShapeDtypeStruct((2, 16), jnp.int32), jax.ShapeDtypeStruct((2,), jnp.int32)
    x, out = (
        jax.ShapeDtypeStruct((2, 8, cfg.d), jnp.bfloat16),
        jax.ShapeDtypeStruct((2, 1), jnp.int32),
    )

    def loss(x, state, ids, length, out):
        llama = nnx.merge(graphdef, state)
        return grids.extend(llama, x, length, grids.prefill(llama, ids, length), out).sum()

    grad = jax.eval_shape(jax.grad(loss), x, state, ids, length, out)
    assert grad.shape == x.shape and grad.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "size, numbers",
    [
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("llama-3.1-8b", 8_030_261_248 - 128_256 * 4096),  # the untied lm_head is not loaded
    ],
)
def test_real_sizes_count_as_published(size, numbers):
    assert sum(np.prod(shape) for shape in shapes(config.SIZES[size]).values()) == numbers
