"""Title generation: probabilities of tokens, candidates as branches, the loss whatever the devices and parts, what trains."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import config, parallel, train
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.llama import weights
from llmsrec_jax.llama.lora import TARGETS
from llmsrec_jax.loaders import encoding_batches
from llmsrec_jax.models import titles
from llmsrec_jax.models.llm4rec import Frozen, _tail
from llmsrec_jax.prompts.titles import Question, TitlePrompts
from llmsrec_jax.title_loaders import TitleBatches
from tests.systems import System, named, relative_error, system
from tests.test_parallel import MESHES, mesh_of

TITLE = {
    "prompts.task": "title",
    "prompts.max_tokens": 2048,
    "prompts.user_repr": True,
    "lora.rank": 2,
    "lora.alpha": 8.0,
    "lora.dropout": 0.2,
    "distill.weight": 0.0,
    "uniformity.weight": 0.0,
    "train.negatives": 4,
}


@pytest.fixture(scope="module")
def made() -> System:
    return system(TITLE, users=24, items=40)


def builder(made: System) -> TitlePrompts:
    return TitlePrompts(made.builder, made.dataset.catalog, made.cfg.prompts, 5)


def batches(
    made: System, devices: int = 1, mine: list[int] | None = None, **changes: Any
) -> TitleBatches:
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    cfg = config.apply(made.cfg, changes)
    samples = Samples.of(made.dataset, made.dataset.eligible("train"), cfg.train.targets)
    return TitleBatches(samples, builder(made), made.cf_users[samples.ends], cfg, devices, mine)


def read(made: System, question: Question, users: np.ndarray) -> list[np.ndarray]:
    """Log-probabilities of what every row is asked for."""
    prompts = builder(made).later(
        made.dataset.inputs("test", users), question, made.cf_users[users]
    )
    whole = prompts.take(np.arange(len(users))).asked
    assert whole is not None
    most = int(np.diff(whole.offsets).max())
    found: list[np.ndarray] = [np.zeros(0)] * len(users)
    encode = jax.jit(titles.encoder(made.model, made.llama))
    for (rows,), batch in encoding_batches(prompts, 4, 1, 2, outs=most):
        each = encode(made.frozen, made.params, jax.tree.map(lambda x: x[0], batch))
        for row, values in zip(rows, np.asarray(each).reshape(len(rows), most, 2), strict=True):
            found[row] = values[: whole.offsets[row + 1] - whole.offsets[row], 0]
    return found


def test_candidates_are_read_as_if_alone(made):
    """Behind one prompt, each candidate's tokens have the probabilities that they have in a row of its own."""
    users = np.arange(8)
    candidates = (
        1 + np.random.default_rng(0).permuted(np.tile(np.arange(40), (8, 1)), axis=1)[:, :5]
    )
    together = read(made, Question(candidates, candidates), users)
    alone = [read(made, Question(candidates, candidates[:, c : c + 1]), users) for c in range(5)]
    for row, found in enumerate(together):
        assert (found <= 0).all() and len(found) > 5
        apart = np.concatenate([one[row] for one in alone])
        np.testing.assert_allclose(found, apart, rtol=1e-5, atol=1e-4)


def test_probabilities_are_those_of_the_whole_vocabulary(made):
    """Of a row, read with all hidden states and a plain softmax."""
    question = Question(np.array([[5, 9, 2, 7, 1]]), np.array([[9]]))
    history = made.dataset.inputs("test", np.array([3]))
    rows = builder(made).build(history, question, made.cf_users[3:4])
    ((_, batch),) = encoding_batches(rows, 1, 1, 1, outs=builder(made).most)
    batch = jax.tree.map(lambda x: x[0], batch)
    model, llama = made.merged()
    x_TD = _tail(model, llama, batch, made.frozen.cf_items)
    length = batch.live.grids[0].length
    # LoRA begins with B = 0: the plain backbone
    h_TD = llama.hidden(x_TD[None], jnp.asarray(length))[0]
    logits = np.asarray(h_TD @ llama.table[...].T, np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    plain = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    asked = rows.asked
    assert asked is not None
    (found,) = read(made, question, np.array([3]))
    np.testing.assert_allclose(found, plain[asked.place, asked.token], atol=1e-4)


class Step:
    """One training step on some devices."""

    def __init__(self, made: System, axes: str, parts: int):
        mesh = mesh_of(**MESHES[axes])
        vocab, shape = made.builder.tokenizer.vocab_size, llama_config.size("tiny")
        llama = weights.random(shape, 0, jnp.float32, vocab, sharding=mesh.weights)
        llama, weighed = nnx.split(llama)
        graphs = {"model": made.model, "llama": llama}
        per_device = partial(train.llm_step, **graphs, cfg=made.cfg, objective=titles.loss)
        wrapped = parallel.train_wrapper(partial(per_device, axis=mesh.axis), mesh)
        items, key = parallel.replicate((made.frozen.cf_items, jax.random.key(3)), mesh)
        frozen = Frozen(weighed, items, None, key)
        params = jax.tree.map(jnp.copy, made.params)
        state = parallel.replicate(train.init_state(params, 1e-3, 0.98), mesh)
        batch = batches(made, mesh.parts, train__parts=parts)(0)
        state, terms = wrapped(frozen, state, parallel.put_batch(batch, mesh))
        self.loss, self.moments = float(terms["loss"]), named(state.opt.mu)


@pytest.fixture(scope="module")
def first(made) -> Step:
    return Step(made, "one", 1)


def test_what_trains(first):
    """B = 0 lets nothing through to A."""
    assert 3 < first.loss < 100
    still = {name for name, x in first.moments.items() if not np.any(x)}
    assert still == {name for name in first.moments if name.startswith("lora.a")}
    assert {name.partition(".")[0] for name in first.moments} == {
        *("item_projector", "user_projector", "lora")
    }


@pytest.mark.parametrize(
    ("axes", "parts"),
    [
        ("one", 2),
        ("fsdp 2, tensor 2", 2),
        *(pytest.param(axes, 2, marks=pytest.mark.slow) for axes in ("data 2", "pmap 2")),
    ],
)
def test_a_step_is_the_same_whatever_the_devices_and_parts(made, first, axes, parts):
    other = Step(made, axes, parts)
    assert other.loss == pytest.approx(first.loss, rel=1e-5)
    for name, wanted in first.moments.items():
        if np.any(wanted):
            assert relative_error(other.moments[name], wanted) < 1e-4, name


def test_titles_are_learnt():
    """Step after step on one batch: its titles become likely."""
    changes = {
        "lora.dropout": 0.0,
        "lora.rank": 8,
        "lora.alpha": 32.0,
        "lora.targets": tuple(TARGETS),
    }
    made = system({**TITLE, **changes}, users=24, items=40)
    batch = jax.tree.map(lambda x: jnp.asarray(x[0]), batches(made, train__length_groups=1)(0))
    graphs = {"model": made.model, "llama": made.llama, "objective": titles.loss}
    step = jax.jit(partial(train.llm_step, **graphs, cfg=made.cfg))
    state = train.init_state(jax.tree.map(jnp.copy, made.params), 1e-2, 0.98)
    found = []
    for _ in range(40):
        state, terms = step(made.frozen, state, batch)
        found.append(float(terms["loss"]))
    assert found[-1] < 0.2 * found[0]


def test_the_loss_is_that_of_the_titles_tokens(made):
    """Mean of what each sample's own row says, tokens of all titles alike."""
    loader = batches(made)
    rows = loader.order(0)
    question = loader.question(rows, 0)
    np.testing.assert_array_equal(question.answers[:, 0], loader.samples.targets[rows])
    assert (
        np.sort(question.candidates, axis=1)[:, 1:] != np.sort(question.candidates, axis=1)[:, :-1]
    ).all()
    assert (question.candidates == question.answers).sum() == len(rows)
    first = (question.candidates == question.answers).argmax(axis=1)
    assert len(set(first.tolist())) > 1  # the target has no place of its own
    batch = jax.tree.map(lambda x: jnp.asarray(x[0]), loader(0))
    share, _ = titles.loss(*made.merged(), batch, made.frozen, made.cfg)
    asked = batch.prompts.asked
    encode = partial(titles.tokens, *made.merged(), frozen=made.frozen)
    found = encode(prompts=jax.tree.map(lambda x: x[0], batch.prompts))
    log, wanted = np.asarray(found.log_prob), np.asarray(asked.token[0]) >= 0
    assert wanted.sum() == builder(made).asked(question).sum()
    np.testing.assert_allclose(float(share), -log[wanted].mean(), rtol=1e-6)


def test_processes_build_parts_of_the_same_batches(made):
    whole = batches(made, 4, train__batch=16, train__parts=2)
    for mine in ([0], [1, 3]):
        own = batches(made, 4, mine, train__batch=16, train__parts=2)
        for step in (0, 1):
            wanted = jax.tree.map(lambda x, mine=mine: x[mine], whole(step))
            jax.tree.map(np.testing.assert_array_equal, own(step), wanted)


def test_other_epochs_show_other_candidates(made):
    loader = batches(made)
    rows = np.arange(4)
    same, other = loader.question(rows, 0), loader.question(rows, 1)
    assert (same.candidates == loader.question(rows, 0).candidates).all()
    assert (same.candidates != other.candidates).any() and (same.answers == other.answers).all()
    alone = loader.question(rows[2:3], 0)
    np.testing.assert_array_equal(alone.candidates[0], same.candidates[2])
