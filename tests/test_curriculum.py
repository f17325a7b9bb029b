"""LLaRA's curriculum: item embeddings come into prompts little by little."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import config, results, rules
from llmsrec_jax.loaders import shows_items
from llmsrec_jax.models import llm4rec
from tests.models.test_titles import TITLE, batches
from tests.systems import System, named, system, tiny

ON = {"train.curriculum": True}


@pytest.fixture(scope="module")
def made() -> System:
    return system({**ON, "train.batch": 8, "train.epochs": 200}, users=24, items=40)


def test_more_and_more_steps_show_items(made):
    """Step t of T with probability t / T, a function of (seed, step); every device and part alike."""
    order, train = made.batches().order, made.cfg.train
    total = order.steps_per_epoch * train.epochs
    shown = np.array([shows_items(order, step, train) for step in range(total)])
    fifths = shown[: total // 5 * 5].reshape(5, -1)
    error = 3 * (0.25 / fifths.shape[1]) ** 0.5
    np.testing.assert_allclose(fifths.mean(axis=1), [0.1, 0.3, 0.5, 0.7, 0.9], atol=error)
    off = config.apply(made.cfg, {"train.curriculum": False}).train
    assert shows_items(order, 3, off) is None
    for step in (int(np.argmax(shown)), int(np.argmin(shown))):
        for devices, parts in ((1, 1), (2, 2)):
            batch = made.batches(devices, {"train.parts": parts})(step)
            told = batch.prompts.shows_items
            assert told is not None and told.shape == (devices, parts)
            assert (told == shown[step]).all()


@pytest.mark.parametrize("shows", [True, False])
def test_hidden_items_are_zeros_and_their_projector_rests(made, shows):
    step = next(
        s for s in range(600) if shows_items(made.batches().order, s, made.cfg.train) == shows
    )
    batch = jax.tree.map(lambda x: jnp.asarray(x[0]), made.batches()(step))
    _, llama = made.merged()

    def loss(params: nnx.State, items: jax.Array) -> jax.Array:
        model = nnx.merge(made.model, params)
        return llm4rec.loss(model, llama, batch, made.frozen._replace(cf_items=items), made.cfg)[0]

    items = made.frozen.cf_items
    value, grads = jax.value_and_grad(loss)(made.params, items)
    moved = {name for name, x in named(grads).items() if np.any(x)}
    projector = {name for name in named(grads) if name.startswith("item_projector")}
    assert projector <= moved if shows else not projector & moved
    assert {"user_out", "item_out"} <= moved
    other = loss(made.params, 2 * items + 1)
    assert (value != other) == shows


def test_titles_have_it_too():
    made = system({**TITLE, **ON, "train.epochs": 50}, users=24, items=40)
    loader = batches(made)
    told = [loader(step).prompts.shows_items for step in (0, 140)]
    wanted = [shows_items(loader.order, step, made.cfg.train) for step in (0, 140)]
    assert [bool(x.all()) for x in told if x is not None] == [
        bool(x) for x in wanted if x is not None
    ]
    assert len([x for x in told if x is not None]) == 2


def test_what_it_is_called_and_where_it_is_refused():
    cfg = config.apply(config.preset(config.Config(), "llara"), ON)
    rules.validate(cfg)
    assert results.label(cfg) == "llara, curriculum"
    with pytest.raises(ValueError, match="train.curriculum: prompts.item_repr=False shows no item"):
        rules.validate(config.apply(config.preset(tiny(), "tallrec"), ON))
