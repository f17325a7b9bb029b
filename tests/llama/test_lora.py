"""LoRA: the formula against a plain computation, nothing with B = 0, gradients of A and B alone, merging, dropout, remat."""

from dataclasses import replace
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import config
from llmsrec_jax.llama import adapters, flops, ops, weights
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.llama.lora import TARGETS, Lora
from llmsrec_jax.llama.model import LAYER_WEIGHTS, shapes
from tests.llama import grids
from tests.llama.test_model import ITEMS, REMATS, close, draw, equations, products, sharp

ALL, SOME = tuple(TARGETS), ("q_proj", "down_proj")
TINY = llama_config.size("tiny")


def made(targets=ALL, rank=3, alpha=6.0, dropout=0.0, b=1.0) -> adapters.Adapters:
    """Adapters with random A, and B of this size."""
    cfg = config.Lora(rank, alpha, dropout, targets)
    both = adapters.Adapters(cfg, TINY, nnx.Rngs(params=0))
    for name, leaf in both.b.items():
        both.b[name][...] = b * draw(*leaf.shape, seed=len(name))
    return both


@pytest.fixture(scope="module")
def llama():
    return sharp()


def test_targets_are_the_products_by_their_names_in_checkpoints():
    named = {rule.tensor.split(".")[-2]: rule.name for rule in weights.RULES if rule.inputs}
    assert named == TARGETS
    (_, declared) = next((n, t) for n, _, t in config.flatten(config.Lora()) if n == "targets")
    assert get_args(get_args(declared)[0]) == ALL


@pytest.mark.parametrize(("name", "inputs"), [("q", 1), ("o", 2), ("down", 1)])
@pytest.mark.parametrize("mode", ["none", "w8"])
def test_the_formula(name, inputs, mode):
    """W x + alpha / rank * B A x, in float64; of a quantised W too."""
    rank, rng = 3, np.random.default_rng(0)
    shape = shapes(TINY)[name]
    stacked = rng.standard_normal(shape, np.float32)
    weight = stacked if mode == "none" else weights.quant.quantise(stacked, inputs, mode)
    row = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), weight)
    x = rng.standard_normal((5, *shape[1 : 1 + inputs])).astype(np.float32)
    a = rng.standard_normal((*shape[1 : 1 + inputs], rank)).astype(np.float32)
    b = rng.standard_normal((rank, *shape[1 + inputs :])).astype(np.float32)
    got = ops.linear(
        jnp.asarray(x), Lora(row, jnp.asarray(a), jnp.asarray(b), None, 2.0, 0.0), inputs
    )
    low = np.tensordot(x.astype(np.float64), a, inputs)
    want = ops.linear(jnp.asarray(x), row, inputs) + 2.0 * np.tensordot(low, b, 1)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


@pytest.mark.torch
def test_gradients_and_first_values_are_those_of_torch():
    """peft's layer: lora_B(lora_A(x)) * alpha / r, A by Kaiming's rule with a = sqrt 5, B zero."""
    torch = pytest.importorskip("torch")
    rng, rank, alpha = np.random.default_rng(1), 4, 12.0
    x, w, a, b, weighed = (
        rng.standard_normal(s).astype(np.float32)
        for s in ((7, 32), (32, 4, 8), (32, rank), (rank, 4, 8), (7, 4, 8))
    )
    tx, ta, tb = (torch.tensor(v, requires_grad=True) for v in (x, a, b.reshape(rank, -1)))
    wanted = tx @ torch.tensor(w.reshape(32, -1)) + (tx @ ta @ tb) * (alpha / rank)
    (wanted * torch.tensor(weighed.reshape(7, -1))).sum().backward()

    def total(x, a, b):
        y = ops.linear(x, Lora(jnp.asarray(w), a, b, None, alpha / rank, 0.0))
        return (y * weighed).sum()

    grads = jax.grad(total, argnums=(0, 1, 2))(*map(jnp.asarray, (x, a, b)))
    for got, want in zip(grads, (tx, ta, tb), strict=True):
        close(np.reshape(got, want.shape), want.grad.numpy())
    linear = torch.nn.Linear(4096, 64, bias=False)
    torch.nn.init.kaiming_uniform_(linear.weight, a=5**0.5)
    theirs = linear.weight.detach().numpy()
    wide = llama_config.LlamaConfig(8, 4096, 1, 2, 1, 8, 8)
    ours = adapters.Adapters(config.Lora(64), wide, nnx.Rngs(params=0))
    (first,) = np.asarray(ours.a["q"][...])
    assert np.abs(theirs).max() == pytest.approx(np.abs(first).max(), rel=1e-3)
    assert theirs.std() == pytest.approx(first.std(), rel=1e-2)
    assert not np.any(ours.b["q"][...])


@partial(jax.jit, static_argnames="graphdef")
def _read(state, graphdef, added):
    llama = nnx.merge(graphdef, state)
    past = grids.prefill(llama, ITEMS.ids, ITEMS.prefix_len, added)
    return past[0], grids.extend(llama, ITEMS.tail, ITEMS.length, past, ITEMS.out, added=added)


def read(llama, added):
    """Keys and values of prefixes, and hidden states behind them."""
    graphdef, state = nnx.split(llama)
    return _read(state, graphdef, added)


@pytest.mark.parametrize(
    ("dtype", "mode", "targets", "dropout", "compare"),
    [
        ("float32", "none", ALL, 0.0, np.testing.assert_array_equal),
        ("bfloat16", "none", SOME, 0.5, np.testing.assert_array_equal),
        ("float32", "w8", SOME, 0.0, close),
    ],
)
def test_with_b_zero_nothing_changes(dtype, mode, targets, dropout, compare):
    """To the last bit, whatever is dropped. But int8's scales: they are multiplied and added at once, or with this between."""
    llama = weights.random(TINY, 3, jnp.dtype(dtype), mode=mode)
    added = made(targets, b=0.0, dropout=dropout).added(jax.random.key(0))
    for got, want in zip(
        *(jax.tree.leaves(read(llama, each)) for each in (added, {})), strict=True
    ):
        compare(got, want)


def test_merging_does_the_same_and_can_be_undone(llama):
    added = made(b=0.1).added()
    merged = adapters.merged(llama, added)
    for got, want in zip(
        *map(jax.tree.leaves, (read(merged, {}), read(llama, added))), strict=True
    ):
        close(got, want, 5e-6)
    assert np.abs(read(merged, {})[1] - read(llama, {})[1]).max() > 0.1
    back = adapters.unmerged(merged, added)
    for name in LAYER_WEIGHTS:
        close(back.layers[name][...], llama.layers[name][...], 1e-6)
        moved = np.any(merged.layers[name][...] != llama.layers[name][...])
        assert moved == (name in TARGETS.values())


def test_int8_takes_no_merging():
    with pytest.raises(ValueError, match="merged into int8 weights: load them with llm.quant=none"):
        adapters.merged(weights.random(TINY, 0, jnp.float32, mode="w8"), made().added())


def whole(llama, tail, added, remat="names"):
    """Hidden states of the tails alone, every token live."""
    return grids.extend(llama, tail, ITEMS.length, None, ITEMS.out, remat, added)


def test_gradients_of_a_and_b_by_differences(llama):
    both, coefficient = made(b=0.1), draw(4, 2, 32)
    graphdef, state = nnx.split(both)

    @jax.jit
    def loss(state):
        return (whole(llama, ITEMS.tail, nnx.merge(graphdef, state).added()) * coefficient).sum()

    grads = jax.jit(jax.grad(loss))(state)
    for path, gradient in jax.tree_util.tree_leaves_with_path(grads):
        assert all(np.abs(layer).max() > 0 for layer in gradient), path
        step = 3e-3 * gradient / jnp.linalg.norm(gradient)
        moved = lambda sign, path=path, step=step: jax.tree_util.tree_map_with_path(
            lambda at, leaf: leaf + sign * step if at == path else leaf, state
        )
        change = (loss(moved(1)) - loss(moved(-1))) / 2
        assert float(change) == pytest.approx(float((gradient * step).sum()), rel=0.02), path


@pytest.mark.parametrize("remat", REMATS)
def test_what_the_backward_pass_computes(llama, remat):
    """Per target: forward A and B; backward both of them once to the inputs and once to themselves. None to the weights."""
    graphdef, state = nnx.split(llama)

    def run(added, x, state, remat=remat):
        return whole(nnx.merge(graphdef, state), x, added, remat).sum()

    added = made(("q_proj", "v_proj")).added()
    jaxpr = jax.make_jaxpr(jax.grad(run, (0, 1)))(added, ITEMS.tail, state).jaxpr
    plain = jax.make_jaxpr(jax.grad(lambda x, state: run({}, x, state)))(ITEMS.tail, state).jaxpr
    more = np.subtract(products(jaxpr), products(plain))
    recomputed = {"none": 0, "names": 0, "inputs": 4}[remat]  # A x twice, and B of it
    assert more[0] == 2 * 6 + recomputed, more
    stacked = {shape[1:] for name, shape in shapes(TINY).items() if name in TARGETS.values()}
    for equation in equations(jaxpr):
        if equation.primitive.name == "scan":
            assert all(result.aval.shape[1:] not in stacked for result in equation.outvars)


@pytest.mark.parametrize("remat", ["none", "inputs"])
def test_remat_changes_nothing(llama, remat):
    """What is dropped among it: it is drawn again, not kept."""
    added = made(("q_proj",), dropout=0.3, b=0.1).added(jax.random.key(1))

    @partial(jax.jit, static_argnames="remat")
    def loss(a, remat):
        changed = {"q": replace(added["q"], a=a)}
        return (whole(llama, ITEMS.tail, changed, remat) * draw(4, 2, 32)).sum()

    got, want = (jax.grad(loss)(added["q"].a, each) for each in (remat, "names"))
    close(got, want)


def test_dropout_is_put_to_what_a_reads():
    """Rows of ones through A of ones: the number of kept inputs, each weighed 1 / 0.75."""
    key, ones = jax.random.key(3), jnp.ones((400, 100))
    tokens = jnp.arange(400) % 20, jnp.arange(400) // 20  # owner, position
    weights = jnp.zeros((100, 1)), jnp.ones((100, 1)), jnp.ones((1, 1))
    linear = lambda key, rows=slice(None): ops.linear(
        ones[rows], Lora(*weights, key, 1.0, 0.25, tuple(x[rows] for x in tokens))
    )
    kept = linear(key)[:, 0] * 0.75
    close(kept, np.rint(kept))
    assert kept.mean() == pytest.approx(75, abs=0.7) and kept.std() > 3
    np.testing.assert_array_equal(linear(key), linear(key))
    assert np.any(linear(key) != linear(jax.random.key(4)))
    np.testing.assert_array_equal(linear(None), 100.0)
    some = jnp.array([7, 350, 7])
    np.testing.assert_array_equal(linear(key, some), linear(key)[some])  # whatever else is there
    with pytest.raises(ValueError, match="goes by the tokens, and they were not told"):
        ops.linear(ones, Lora(*weights, key, 1.0, 0.25))


def test_inputs_that_devices_share_out_are_dropped_as_on_one():
    key, ones, tokens = jax.random.key(3), jnp.ones((9, 6, 5)), (jnp.arange(9), jnp.zeros(9, int))
    a, b = jnp.asarray(np.arange(30.0).reshape(6, 5, 1)), jnp.ones((1, 1))
    whole = Lora(jnp.zeros((6, 5, 1)), a, b, key, 1.0, 0.5, tokens)
    parts = [
        replace(whole, base=whole.base[rows], a=a[rows], part=jnp.int32(number), parts=2)
        for number, rows in enumerate((slice(3), slice(3, 6)))
    ]
    found = [ops.linear(ones[:, :3], part, 2) for part in parts]
    close(found[0] + found[1], ops.linear(ones, whole, 2))


def test_every_layer_and_product_drops_others():
    both = made(dropout=0.5)
    data = [jax.random.key_data(one.key) for one in both.added(jax.random.key(0)).values()]
    assert len(np.unique(np.concatenate(data), axis=0)) == len(ALL) * TINY.layers
    assert all(one.key is None for one in both.added().values())
    none = made(dropout=0.0).added(jax.random.key(0))
    assert all(one.key is None for one in none.values())


def test_prefixes_are_exact_where_nothing_trains(llama):
    """Cached keys and values with LoRA, against every token fed live."""
    added = made(b=0.1).added()
    P, T = ITEMS.ids.shape[1], ITEMS.tail.shape[1]
    position, start = np.arange(P + T), ITEMS.prefix_len[:, None]
    source = np.where(position < start, position, np.minimum(P + position - start, P + T - 1))
    x = jnp.concatenate([llama.embed(ITEMS.ids), ITEMS.tail], 1)
    x = jnp.take_along_axis(x, source[..., None], 1)
    length = ITEMS.prefix_len + ITEMS.length
    live = jax.jit(lambda x: grids.extend(llama, x, length, None, ITEMS.out + start, added=added))
    close(read(llama, added)[1], live(x))


@pytest.mark.parametrize("bad", [{"rank": 0}, {"rank": -1}, {"rank": 2, "targets": ()}], ids=str)
def test_nothing_to_train_is_refused(bad):
    with pytest.raises(ValueError, match="nothing to train"):
        adapters.Adapters(config.Lora(**bad), TINY, nnx.Rngs(params=0))


def test_operations_by_hand():
    """d = 4, 2 heads of 2, one for keys, ff 3, 3 layers, rank 5. Of a token: q (4 + 4), v (4 + 2), down (3 + 4) times 2 * 5."""
    cfg = llama_config.LlamaConfig(7, 4, 3, 2, 1, 2, 3)
    found = flops.lora(cfg, 5, ("q", "v", "down"), 6, 2)
    assert found == 10 * (2 * 6 * (8 + 6 + 7) + (6 * 6 + 2 * (8 + 7)))
