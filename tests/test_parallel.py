"""One device or two: the same loss terms, gradients, parameters and vectors. Loops block, or fake devices could starve."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import config, evaluate, loaders, losses, parallel, train
from llmsrec_jax.models import llm4rec, sasrec
from tests.factories import random_dataset
from tests.systems import System, named, relative_error, system

LIMIT, GRADIENT_LIMIT = 1e-6, 2e-6  # relative errors in float32
# A shift of all item vectors changes no difference of scores: its gradient is rounding noise, which Adam magnifies.
# A shift of the hidden layer is nearly one.
ZERO_GRADIENT, DRIFTS = "item_head.last.bias", ("item_head.last.bias", "item_head.norm.bias")
STEPS = 3


@pytest.fixture(scope="module")
def made() -> System:
    return system({"train.batch": 6, "train.lr": 1e-4}, users=18, items=40)


class Trained:
    """Gradients of the first step, then STEPS steps, on some devices."""

    def __init__(self, made: System, devices: int):
        mesh = parallel.make_mesh(devices)
        batches = made.batches(devices)
        step = partial(
            train.llm_step, model=made.model, llama=made.llama, cfg=made.cfg, axis=parallel.AXIS
        )
        wrapped = parallel.train_wrapper(step, mesh)
        start = train.init_state(jax.tree.map(jnp.copy, made.params), made.cfg.train.lr, 0.98)
        state = parallel.replicate(start, mesh)
        frozen = parallel.replicate(made.frozen, mesh)
        before = named(jax.tree.map(np.array, frozen))
        self.terms, self.first_moment = [], None
        for number in range(STEPS):
            batch = parallel.put_batch(batches(number), mesh)
            state, terms = jax.block_until_ready(wrapped(frozen, state, batch))
            self.terms.append({name: float(value) for name, value in terms.items()})
            if self.first_moment is None:  # after one step of Adam: a tenth of the gradient
                self.first_moment = named(jax.tree.map(np.array, state.opt.mu))
        self.params, self.step = named(state.params), int(state.step)
        self.size = sum(leaf.size for leaf in jax.tree.leaves(state))
        self.frozen = {name: (array, before[name]) for name, array in named(frozen).items()}


@pytest.fixture(scope="module")
def trained(made) -> dict[int, Trained]:
    return {devices: Trained(made, devices) for devices in (1, 2)}


def test_loss_terms_are_those_of_the_global_batch(trained):
    limits = (LIMIT, 1e-5, 1e-5)  # later steps inherit what Adam made of rounding noise
    for one, two, limit in zip(trained[1].terms, trained[2].terms, limits, strict=True):
        assert set(one) == {"loss", "retrieval", "distill", "uniformity_user", "uniformity_cf"}
        for name, value in one.items():
            assert two[name] == pytest.approx(value, rel=limit), name
        total = one["retrieval"] + one["distill"] + one["uniformity_user"] + one["uniformity_cf"]
        assert one["loss"] == pytest.approx(total, rel=1e-6)


def test_uniformity_pairs_users_of_different_devices(made, trained):
    """Recomputed from the vectors of all users of the batch; the mean of both halves would be another number."""
    model, _ = made.merged()
    vectors = model.cf_user_head(made.batches(2)(0).cf_user_repr.reshape(6, -1))
    value = trained[2].terms[0]["uniformity_cf"]
    assert value == pytest.approx(float(losses.uniformity_loss(vectors)), rel=1e-6)
    halves = [float(losses.uniformity_loss(half)) for half in (vectors[:3], vectors[3:])]
    assert abs(np.mean(halves) - value) > 1e-3


def test_gradients(trained):
    for name, one in trained[1].first_moment.items():
        if name != ZERO_GRADIENT:
            assert relative_error(trained[2].first_moment[name], one) < GRADIENT_LIMIT, name


def test_parameters_after_some_steps(made, trained):
    """Adam divides by the size of a gradient, rounding noise included; the way travelled must agree all the same."""
    start = named(made.params)
    assert trained[1].step == trained[2].step == STEPS
    largest = max(np.abs(x).max() for x in start.values())
    for name, one in trained[1].params.items():
        two, way = trained[2].params[name], one - start[name]
        assert 5e-5 < np.abs(way).max() < 3.1e-4, name  # three steps of up to 1e-4
        if name not in DRIFTS:
            assert np.abs(two - one).max() < LIMIT * largest, name
            assert relative_error(two - start[name], way) < 1e-3, name


def test_what_is_frozen_stays_frozen(made, trained):
    for run in trained.values():
        assert len(run.frozen) == 1 + len(jax.tree.leaves(made.frozen.llama))
        for name, (after, before) in run.frozen.items():
            np.testing.assert_array_equal(after, before, err_msg=name)
        trainable = sum(leaf.size for leaf in jax.tree.leaves(made.params))
        assert run.size == 3 * trainable + 3  # parameters, two moments; Adam's count, step, rate


@pytest.mark.parametrize("kind", ["users", "items"])
def test_encoding(made, kind):
    """Rows come back in their places, from one device as from two."""
    encode = llm4rec.encoder(kind, made.model, made.llama)
    users = made.dataset.eligible("train")
    prompts = {
        "users": lambda: made.builder.users(made.dataset.inputs("train", users)),
        "items": lambda: made.builder.items(np.arange(1, 11)),
    }[kind]()
    vectors = {}
    for devices in (1, 2):
        mesh = parallel.make_mesh(devices)
        batches = loaders.encoding_batches(prompts, 4, devices, 1)
        replicated = parallel.replicate((made.frozen, made.params), mesh)
        wrapped = parallel.encode_wrapper(encode, mesh)
        vectors[devices] = evaluate.encode(batches, wrapped, *replicated, mesh, len(prompts))
    assert np.abs(vectors[1]).max(axis=1).min() > 0
    assert len(np.unique(vectors[1], axis=0)) == len(prompts)
    assert relative_error(vectors[2], vectors[1]) < LIMIT


def test_the_teacher():
    """Without dropout, whose masks are drawn per device."""
    data, cfg = (
        random_dataset(users=40, items=50),
        config.Teacher(d=8, max_len=8, blocks=1, batch=8),
    )
    cfg.dropout = 0.0
    model, params = nnx.split(sasrec.SASRec(data.catalog.size, cfg, nnx.Rngs(params=0)))
    whole = config.Config(teacher=cfg)
    found = {}
    for devices in (1, 2):
        mesh = parallel.make_mesh(devices)
        batches = loaders.TeacherBatches(data, cfg, 0, devices)
        step = partial(train.teacher_step, model=model, cfg=whole, axis=parallel.AXIS)
        wrapped = parallel.train_wrapper(step, mesh)
        state = train.init_state(jax.tree.map(jnp.copy, params), cfg.lr, cfg.b2)
        state = parallel.replicate(state, mesh)
        key, losses_ = parallel.replicate(jax.random.key(0), mesh), []
        for number in range(2):
            batch = parallel.put_batch(batches(number), mesh)
            state, metrics = jax.block_until_ready(wrapped(key, state, batch))
            losses_.append(float(metrics["loss"]))
        found[devices] = losses_, named(state.opt.mu)
    np.testing.assert_allclose(found[2][0], found[1][0], rtol=LIMIT)
    for name, moment in found[1][1].items():
        assert relative_error(found[2][1][name], moment) < GRADIENT_LIMIT, name


def test_a_mesh_of_too_many_devices():
    with pytest.raises(ValueError, match="mesh.devices=99, but there are 2 devices"):
        parallel.make_mesh(99)
    assert parallel.make_mesh(0).devices.size == 2 and parallel.make_mesh(1).devices.size == 1


def test_every_device_gets_its_own_rows():
    mesh = parallel.make_mesh(2)
    rows = np.arange(8).reshape(2, 4)
    total = parallel.train_wrapper(
        lambda frozen, state, batch: (
            state + jax.lax.psum(jnp.sum(batch), parallel.AXIS),
            frozen * jax.lax.pmax(batch[0], parallel.AXIS),
        ),
        mesh,
    )
    frozen, state = parallel.replicate((np.int32(10), np.int32(1)), mesh)
    state, last = jax.block_until_ready(total(frozen, state, parallel.put_batch(rows, mesh)))
    assert int(state) == 1 + 28 and int(last) == 40
    double = parallel.encode_wrapper(lambda frozen, params, batch: batch[:, None] * params, mesh)
    np.testing.assert_array_equal(
        double((), frozen, parallel.put_batch(rows, mesh)), 10 * rows[..., None]
    )
