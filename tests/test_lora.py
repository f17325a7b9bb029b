"""LoRA in LLM-SRec: what trains and what does not, every token live, dropout by step and device, whatever the devices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import parallel, train
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


@pytest.mark.parametrize(
    ("axes", "parts"),
    [
        ("fsdp 2, tensor 2", 2),
        pytest.param("data 2", 1, marks=pytest.mark.slow),
        pytest.param("pmap 2", 1, marks=pytest.mark.slow),
        pytest.param("tensor 2", 1, marks=pytest.mark.slow),
    ],
)
def test_gradients_do_not_depend_on_the_devices(one, axes, parts):
    """Without dropout, whose masks are drawn per device."""
    many = Steps(made_with(lora__dropout=0.0), axes, parts=parts)
    assert float(many.terms["loss"]) == pytest.approx(float(one.terms["loss"]), rel=2e-6)
    for name, wanted in one.moments.items():
        if name != ZERO_GRADIENT:
            assert relative_error(many.moments[name], wanted) < 1e-5, name


def test_what_is_dropped_depends_on_the_step_alone(made):
    """So that going on is as if nothing had happened; and something is dropped."""
    few = {"lora__targets": ("q_proj", "o_proj")}
    dropping, plain = made_with(lora__dropout=0.3, **few), made_with(lora__dropout=0.0, **few)
    first, again, later = (Steps(dropping, first=number) for number in (0, 0, 3))
    assert float(first.terms["loss"]) == float(again.terms["loss"])
    others = [Steps(plain, first=number) for number in (0, 3)]
    assert len({float(each.terms["loss"]) for each in (first, later, *others)}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["tensor 2", "data 2"])
def test_dropout_on_several_devices(axes):
    """Other masks than one device draws, and gradients no further from its than those of another key are."""
    dropping = made_with(lora__dropout=0.1)
    together = lambda each: np.concatenate([array.ravel() for array in each.moments.values()])
    alone = [together(Steps(dropping, key=key)) for key in range(6)]
    several = [together(Steps(dropping, axes, key=key)) for key in range(6)]
    pairs = lambda some: [(x, y) for x in alone for y in some if x is not y]
    nearest = lambda some: min(np.corrcoef(x, y)[0, 1] for x, y in pairs(some))
    assert nearest(several) > nearest(alone) - 0.1
