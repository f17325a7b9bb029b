"""LoRA in LLM-SRec: what trains and what does not, every token live, dropout by step and token, whatever the devices."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import loaders, parallel, train
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.llama import weights
from llmsrec_jax.llama.lora import TARGETS
from llmsrec_jax.models import llm4rec
from tests.systems import System, named, relative_error, system
from tests.test_parallel import MESHES, ZERO_GRADIENT, mesh_of

# alpha = 4 rank: what they add is felt at once
LORA = {"lora.rank": 2, "lora.alpha": 8.0, "train.batch": 8, "lora.targets": tuple(TARGETS)}


def made_with(**changes: Any) -> System:
    settings = {name.replace("__", "."): value for name, value in changes.items()}
    return system({**LORA, **settings}, users=24, items=40)


@pytest.fixture(scope="module")
def made() -> System:
    return made_with()


class Steps:
    """`count` training steps on some devices, from a B that is not zero."""

    def __init__(
        self,
        made: System,
        axes: str = "one",
        count: int = 1,
        parts: int = 1,
        first: int = 0,
        key: int = 0,
    ):
        mesh = mesh_of(**MESHES[axes])
        vocab, shape = made.builder.tokenizer.vocab_size, llama_config.size("tiny")
        llama = weights.random(shape, 0, jnp.float32, vocab, sharding=mesh.weights)
        llama, self.frozen = nnx.split(llama)
        batches = made.batches(mesh.parts, {"train.parts": parts})
        graphs = {"model": made.model, "llama": llama}
        step = partial(train.llm_step, **graphs, cfg=made.cfg, axis=mesh.axis)
        wrapped = parallel.train_wrapper(step, mesh)
        items, key = parallel.replicate((made.frozen.cf_items, jax.random.key(key)), mesh)
        frozen = llm4rec.Frozen(self.frozen, items, None, key)
        start = jax.tree_util.tree_map_with_path(moved, made.params)
        self.start = named(jax.tree.map(np.array, start))
        state = parallel.replicate(train.init_state(start, 1e-3, 0.98), mesh)
        state = state._replace(step=state.step + first)
        for number in range(first, first + count):
            batch = parallel.put_batch(batches(number), mesh)
            state, self.terms = jax.block_until_ready(wrapped(frozen, state, batch))
        self.state, self.moments = state, named(state.opt.mu)


def moved(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    if "b" not in [getattr(part, "key", None) for part in path]:
        return jnp.copy(leaf)
    return jnp.asarray(0.1 * np.random.default_rng(leaf.size).normal(size=leaf.shape), jnp.float32)


@pytest.fixture(scope="module")
def one() -> Steps:
    return Steps(made_with(lora__dropout=0.0))


def test_what_trains(made, one):
    """A and B of every target, with the heads and tokens; the backbone is in no state and stays as it was."""
    own = {f"lora.{part}.{name}" for part in "ab" for name in TARGETS.values()}
    plain = set(named(system({"train.batch": 8}, users=24, items=40).params))
    assert set(named(made.params)) == plain | own and not plain & own
    before, after = one.start, named(one.state.params)
    for name, moment in one.moments.items():
        if name != ZERO_GRADIENT:
            assert np.any(moment != 0) and np.any(after[name] != before[name]), name
    for name, array in named(made.frozen.llama).items():
        np.testing.assert_array_equal(named(one.frozen)[name], array)


def test_heads_begin_as_they_do_without(made):
    with_lora = named(made.params)
    for name, array in named(system({"train.batch": 8}, users=24, items=40).params).items():
        np.testing.assert_array_equal(with_lora[name], array)


def test_no_token_is_constant_while_lora_trains(made):
    plain = system({"train.batch": 8}, users=24, items=40)
    prompts, before = made.batches()(0).prompts, plain.batches()(0).prompts
    assert prompts.prefix_ids.shape[-1] == 0 < before.prefix_ids.shape[-1]
    lengths = lambda axis: sum(int(grid.length.sum()) for grid in axis.grids)
    assert lengths(prompts.live) == lengths(before.live) + lengths(before.prefix)
    model, llama = made.merged()
    with pytest.raises(ValueError, match="LoRA trains on every token, .* constant prefixes"):
        part = jax.tree.map(lambda x: x[0], plain.batches()(0))
        llm4rec.loss(model, llama, part, made.frozen, made.cfg)


def test_cached_prefixes_hold_what_lora_adds(made):
    """Where vectors are made, prefixes are constant again: vectors are those of prompts whose every token is live."""
    model, llama = made.merged(jax.tree_util.tree_map_with_path(moved, made.params))
    samples = Samples.of(made.dataset, np.arange(8), "last")
    users = made.builder.users(samples.take(np.arange(8)), made.cf_users[samples.ends])
    encode = nnx.jit(llm4rec.encode, static_argnums=0)
    for kind, prompts in (("users", users), ("items", made.builder.items(np.arange(1, 9)))):
        assert (prompts.prefix_len > 0).all()
        vectors = []
        for each in (prompts, replace(prompts, prefix_len=np.zeros_like(prompts.prefix_len))):
            ((index, batch),) = loaders.encoding_batches(each, 8, 1, 1)
            part = jax.tree.map(lambda x: x[0], batch)
            vectors.append(np.asarray(encode(kind, model, llama, part, made.frozen)))
            vectors[-1] = vectors[-1][np.argsort(index[0])]
        assert relative_error(*vectors) < 1e-5


def test_the_loss_with_b_zero_is_that_without(made):
    """Of the same users; there, prefixes are constant. The first gradients are those of the heads, and of B."""
    plain, found = system({"train.batch": 8}, users=24, items=40), []
    for each in (made, plain):
        part = jax.tree.map(lambda x: x[0], each.batches()(0))

        def loss(params, each=each, part=part):
            return llm4rec.loss(*each.merged(params), part, each.frozen, each.cfg)[0]

        value, grads = jax.jit(jax.value_and_grad(loss))(each.params)
        found.append((float(value), named(grads)))
    (value, grads), (wanted, plain_grads) = found
    assert value == pytest.approx(wanted, rel=2e-6)
    for name, gradient in grads.items():
        if name.startswith("lora."):
            assert np.any(gradient != 0) == name.startswith("lora.b."), name
        elif name != ZERO_GRADIENT:
            assert relative_error(gradient, plain_grads[name]) < 1e-5, name


def test_whose_a_token_is_is_told_where_something_is_dropped():
    """Users and items are told apart; a row of several samples is its user's. Without dropout nothing is told."""
    lora = {"lora.rank": 2, "train.targets": "all", "train.batch": 8}
    made = system(lora, users=12, items=40)
    batches = made.batches(1)
    batch = jax.tree.map(lambda x: x[0, 0], batches(0).prompts)
    rows, item_rows, _ = batches.members(0)
    wanted = {
        *(2 * batches.samples.users[rows.ravel()] + 1).tolist(),
        *(2 * (item_rows.ravel() + 1)).tolist(),
    }
    found = {
        (grid.at[row, 0], frozenset(batch.live.owner[grid.at[row, : grid.length[row]]].tolist()))
        for grid in batch.live.grids
        for row in range(len(grid.length))
        if grid.length[row]
    }
    assert all(len(owners) == 1 for _, owners in found)
    assert {owner for _, owners in found for owner in owners} == wanted
    plain = system({**lora, "lora.dropout": 0.0}, users=12, items=40).batches(1)
    assert plain(0).prompts.live.owner is None


DROPPING = {  # of inputs that tensor cuts, and of others
    "lora__dropout": 0.3,
    "lora__targets": ("q_proj", "o_proj", "down_proj"),
}


@pytest.fixture(scope="module")
def dropping() -> Steps:
    return Steps(made_with(**DROPPING))


@pytest.mark.parametrize(
    ("axes", "parts"),
    [
        ("one", 4),
        ("fsdp 2, tensor 2", 2),
        pytest.param("data 2", 1, marks=pytest.mark.slow),
        pytest.param("pmap 2", 1, marks=pytest.mark.slow),
        pytest.param("tensor 2", 1, marks=pytest.mark.slow),
    ],
)
def test_gradients_do_not_depend_on_the_devices(dropping, axes, parts):
    """Nor on the passes of a step: what is dropped of a token goes by whose it is and where it stands."""
    many = Steps(made_with(**DROPPING), axes, parts=parts)
    assert float(many.terms["loss"]) == pytest.approx(float(dropping.terms["loss"]), rel=2e-6)
    for name, wanted in dropping.moments.items():
        if name != ZERO_GRADIENT:
            assert relative_error(many.moments[name], wanted) < 1e-5, name


@pytest.mark.slow
def test_rows_of_several_samples_drop_the_same_however_they_are_cut():
    """Samples of a user share a row in one pass, and do not in several."""
    made = made_with(**DROPPING, train__targets="all")
    assert made.batches()(0).prompts.outs is not None
    whole, cut = Steps(made), Steps(made, parts=4)
    assert float(cut.terms["loss"]) == pytest.approx(float(whole.terms["loss"]), rel=2e-6)
    for name in ("lora.a.q", "lora.b.down"):
        assert relative_error(cut.moments[name], whole.moments[name]) < 1e-5, name


def test_what_is_dropped_depends_on_the_step_alone(dropping):
    """So that going on is as if nothing had happened; and something is dropped."""
    made, plain = made_with(**DROPPING), made_with(**{**DROPPING, "lora__dropout": 0.0})
    again, later = (Steps(made, first=number) for number in (0, 3))
    assert float(dropping.terms["loss"]) == float(again.terms["loss"])
    others = [Steps(plain, first=number) for number in (0, 3)]
    assert len({float(each.terms["loss"]) for each in (dropping, later, *others)}) == 4
