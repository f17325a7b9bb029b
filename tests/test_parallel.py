"""However many devices share the work, and how: the same loss terms, gradients, parameters and vectors.

Loops block after every step, or fake devices could starve.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import config, evaluate, loaders, losses, parallel, train
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.llama import weights
from llmsrec_jax.llama.model import Frozen
from llmsrec_jax.models import cf, llm4rec
from tests.conftest import REPO
from tests.factories import random_dataset
from tests.systems import System, assert_gradients_agree, named, relative_error, system

LIMIT, GRADIENT_LIMIT = 1e-6, 2e-6  # relative errors in float32
# A shift of all item vectors changes no difference of scores: its gradient is rounding noise, which Adam magnifies.
# A shift of the hidden layer is nearly one.
ZERO_GRADIENT, DRIFTS = "item_head.last.bias", ("item_head.last.bias", "item_head.norm.bias")
STEPS = 3
MESHES: dict[str, dict[str, Any]] = {
    "one": {"devices": 1},
    "data 2": {"devices": 2},
    "fsdp 2, tensor 2": {"devices": 4, "fsdp": 2, "tensor": 2},
    "data 4": {"devices": 4},
    "pmap 2": {"devices": 2, "mode": "pmap"},
    "fsdp 2": {"devices": 2, "fsdp": 2},
    "tensor 2": {"devices": 2, "tensor": 2},
    "data 2, tensor 2": {"devices": 4, "tensor": 2},
}
IN_PARTS = (
    "fsdp 2, tensor 2"  # of its users, one after the other, while the devices exchange weights
)
# each costs a compilation of everything
OFTEN = ("data 2", "fsdp 2, tensor 2")
COMPARED = [
    pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow)
    for name in MESHES
    if name != "one"
]


def mesh_of(**axes: Any) -> parallel.DeviceMesh:
    return parallel.make_mesh(config.Mesh(**axes))


@pytest.fixture(scope="module")
def made(request) -> System:
    """With the teacher's user representation in prompts where a test asks for it."""
    told = {"prompts.user_repr": getattr(request, "param", False)}
    return system({"train.batch": 8, "train.lr": 1e-4, **told}, users=24, items=40)


def backbone(made: System, mesh: parallel.DeviceMesh) -> tuple[nnx.GraphDef, llm4rec.Frozen]:
    """The backbone of `made`, made anew and shared out."""
    vocab, shape = made.builder.tokenizer.vocab_size, llama_config.size("tiny")
    llama = weights.random(shape, 0, jnp.float32, vocab, sharding=mesh.weights)
    graph, state = nnx.split(llama)
    return graph, llm4rec.Frozen(state, parallel.replicate(made.frozen.cf_items, mesh))


@contextmanager
def optimised() -> Iterator[None]:
    """Programs as users have them: in those of the suite (`conftest.py`) sums are rounded more than LIMIT allows."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, False)
    try:
        yield
    finally:
        jax.config.update(name, before)


class Trained:
    """Gradients of the first step, then STEPS steps, on some devices."""

    def __init__(self, made: System, mesh: parallel.DeviceMesh, parts: int = 1):
        batches = made.batches(mesh.parts, {"train.parts": parts})
        llama, frozen = backbone(made, mesh)
        step = partial(train.llm_step, model=made.model, llama=llama, cfg=made.cfg, axis=mesh.axis)
        wrapped = parallel.train_wrapper(step, mesh)
        start = train.init_state(jax.tree.map(jnp.copy, made.params), made.cfg.train.lr, 0.98)
        state = parallel.replicate(start, mesh)
        before = named(jax.tree.map(np.array, made.frozen))
        self.terms, self.first_moment = [], {}
        for number in range(STEPS):
            batch = parallel.put_batch(batches(number), mesh)
            state, terms = jax.block_until_ready(wrapped(frozen, state, batch))
            self.terms.append({name: float(value) for name, value in terms.items()})
            if number == 0:  # after one step of Adam: a tenth of the gradient
                self.first_moment = named(jax.tree.map(np.array, state.opt.mu))
        self.params, self.step = named(state.params), int(state.step)
        self.size = sum(leaf.size for leaf in jax.tree.leaves(state))
        self.frozen = {name: (array, before[name]) for name, array in named(frozen).items()}
        self.programs = parallel.programs(wrapped)


@pytest.fixture(scope="module")
def one(made) -> Trained:
    with optimised():
        return Trained(made, mesh_of(**MESHES["one"]))


@pytest.fixture(scope="module", params=COMPARED)
def many(made, request) -> Trained:
    parts = 2 if request.param == IN_PARTS else 1
    with optimised():
        return Trained(made, mesh_of(**MESHES[request.param]), parts)


def test_loss_terms_are_those_of_the_global_batch(one, many):
    limits = (LIMIT, 1e-5, 1e-5)  # later steps inherit what Adam made of rounding noise
    for alone, shared, limit in zip(one.terms, many.terms, limits, strict=True):
        assert set(alone) == {"loss", "retrieval", "distill", "uniformity_user", "uniformity_cf"}
        for name, value in alone.items():
            assert shared[name] == pytest.approx(value, rel=limit), name
        parts = [alone[name] for name in set(alone) - {"loss"}]
        assert alone["loss"] == pytest.approx(sum(parts), rel=1e-6)
    assert many.programs == one.programs == 1


def test_uniformity_pairs_users_of_different_devices(made, many):
    """Recomputed from the vectors of all users of the batch; the mean of both halves would be another number."""
    model, _ = made.merged()
    vectors = model.cf_user_head(made.batches(2)(0).cf_user_repr.reshape(8, -1))
    value = many.terms[0]["uniformity_cf"]
    assert value == pytest.approx(float(losses.uniformity_loss(vectors)), rel=1e-6)
    halves = [float(losses.uniformity_loss(half)) for half in (vectors[:4], vectors[4:])]
    assert abs(np.mean(halves) - value) > 1e-3


@pytest.mark.parametrize("made", [False, True], ids=["", "told"], indirect=True)
def test_gradients(made, one, many):
    without = lambda moments: {name: m for name, m in moments.items() if name != ZERO_GRADIENT}
    got, want = without(many.first_moment), without(one.first_moment)
    assert_gradients_agree(got, want, whole=LIMIT, leaf=2 * GRADIENT_LIMIT)


def test_parameters_after_some_steps(made, one, many):
    """Adam divides by the size of a gradient, rounding noise included; the way travelled must agree all the same."""
    start = named(made.params)
    assert one.step == many.step == STEPS
    largest = max(np.abs(x).max() for x in start.values())
    for name, alone in one.params.items():
        shared, way = many.params[name], alone - start[name]
        assert 5e-5 < np.abs(way).max() < 3.1e-4, name  # three steps of up to 1e-4
        if name not in DRIFTS:
            assert np.abs(shared - alone).max() < LIMIT * largest, name
            assert relative_error(shared - start[name], way) < 1e-3, name


def test_what_is_frozen_stays_frozen(made, one, many):
    """And does not depend on how it is shared out."""
    for run in (one, many):
        assert len(run.frozen) == 1 + len(jax.tree.leaves(made.frozen.llama))
        for name, (after, before) in run.frozen.items():
            np.testing.assert_array_equal(after, before, err_msg=name)
        trainable = sum(leaf.size for leaf in jax.tree.leaves(made.params))
        assert run.size == 3 * trainable + 3  # parameters, two moments; Adam's count, step, rate


def encoded(made: System, mesh: parallel.DeviceMesh, kind: str) -> np.ndarray:
    """Vectors of some `users` or `items`, float32 [n, R]."""
    llama, frozen = backbone(made, mesh)
    encode = llm4rec.encoder(kind, made.model, llama)
    users = made.dataset.eligible("train")
    prompts = {
        "users": lambda: made.builder.users(
            made.dataset.inputs("train", users), made.cf_users[: len(users)]
        ),
        "items": lambda: made.builder.items(np.arange(1, 11)),
    }[kind]()
    batches = loaders.encoding_batches(prompts, 4, mesh.parts, 1)
    wrapped, params = parallel.encode_wrapper(encode, mesh), parallel.replicate(made.params, mesh)
    return evaluate.encode(batches, wrapped, frozen, params, mesh, len(prompts))


@pytest.mark.parametrize(
    "made, kind", [(False, "users"), (False, "items"), (True, "users")], indirect=["made"]
)
def test_encoding(made, kind):
    """Rows come back in their places, from one device as from several."""
    alone = encoded(made, mesh_of(**MESHES["one"]), kind)
    assert np.abs(alone).max(axis=1).min() > 0
    assert len(np.unique(alone, axis=0)) == len(alone)
    for name in OFTEN:
        assert relative_error(encoded(made, mesh_of(**MESHES[name]), kind), alone) < LIMIT, name


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(MESHES) - {"one", *OFTEN}))
def test_encoding_on_other_meshes(made, name):
    alone = encoded(made, mesh_of(**MESHES["one"]), "users")
    assert relative_error(encoded(made, mesh_of(**MESHES[name]), "users"), alone) < LIMIT


def test_the_teacher():
    """Without dropout, whose masks are drawn per device."""
    data, cfg = (
        random_dataset(users=40, items=50),
        config.Teacher(d=8, max_len=8, blocks=1, batch=8),
    )
    cfg.dropout = 0.0
    model, params = nnx.split(cf.new(data.catalog.size, cfg, nnx.Rngs(params=0)))
    whole = config.Config(teacher=cfg)
    found = {}
    for axes in ("one", "data 2", "pmap 2", "fsdp 2, tensor 2"):
        mesh = mesh_of(**MESHES[axes])
        batches = loaders.TeacherBatches(data, cfg, False, 0, mesh.parts)
        step = partial(train.teacher_step, model=model, cfg=whole, axis=mesh.axis)
        wrapped = parallel.train_wrapper(step, mesh)
        state = train.init_state(jax.tree.map(jnp.copy, params), cfg.lr, cfg.b2)
        state = parallel.replicate(state, mesh)
        key, losses_ = parallel.replicate(jax.random.key(0), mesh), []
        for number in range(2):
            batch = parallel.put_batch(batches(number), mesh)
            state, metrics = jax.block_until_ready(wrapped(key, state, batch))
            losses_.append(float(metrics["loss"]))
        found[axes] = losses_, named(state.opt.mu)
    wanted, moments = found.pop("one")
    for axes, (got, got_moments) in found.items():
        np.testing.assert_allclose(got, wanted, rtol=LIMIT)
        for name, moment in moments.items():
            assert relative_error(got_moments[name], moment) < GRADIENT_LIMIT, (axes, name)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"devices": 99}, "mesh.devices=99, but there are 4 devices"),
        ({"devices": 4, "tensor": 3}, "mesh.fsdp=1 x mesh.tensor=3 must divide .* devices, 4"),
        ({"devices": 2, "fsdp": 2, "tensor": 2}, "mesh.fsdp=2 x mesh.tensor=2 must .* devices, 2"),
        ({"mode": "pmap", "fsdp": 2}, "mesh.mode=pmap .* the whole backbone .* use shard_map for"),
        ({"mode": "pmap", "tensor": 2}, "mesh.mode=pmap has one axis of devices"),
    ],
)
def test_a_mesh_that_cannot_be(axes, message):
    with pytest.raises(ValueError, match=message):
        mesh_of(**axes)


def test_axes_of_one_device_do_not_exist():
    """So that what is compiled without them knows nothing of them."""
    mesh = mesh_of(devices=2)
    assert (mesh.mesh.axis_names, mesh.axis, mesh.parts, mesh.mine) == (
        ("data",),
        ("data",),
        2,
        [0, 1],
    )
    assert mesh_of().mesh.size == 4
    mesh = mesh_of(devices=4, fsdp=2, tensor=2)
    assert (mesh.mesh.axis_names, mesh.axis) == (("data", "fsdp", "tensor"), ("data", "fsdp"))
    assert (mesh.parts, mesh.mine) == (2, [0, 1])


@pytest.mark.parametrize("axes", ["data 2", "pmap 2", "fsdp 2", "data 2, tensor 2"])
def test_every_device_gets_its_own_rows(axes):
    mesh = mesh_of(**MESHES[axes])
    rows = np.arange(8).reshape(2, 4)
    total = parallel.train_wrapper(
        lambda frozen, state, batch: (
            state + jax.lax.psum(jnp.sum(batch), mesh.axis),
            frozen * jax.lax.pmax(batch[0], mesh.axis),
        ),
        mesh,
    )
    frozen, state = parallel.replicate((np.int32(10), np.int32(1)), mesh)
    state, last = jax.block_until_ready(total(frozen, state, parallel.put_batch(rows, mesh)))
    assert int(state) == 1 + 28 and int(last) == 40
    double = parallel.encode_wrapper(lambda frozen, params, batch: batch[:, None] * params, mesh)
    for width in (4, 4, 2):  # the second call needs no new program
        some = rows[:, :width]
        result = double((), frozen, parallel.put_batch(some, mesh))
        np.testing.assert_array_equal(result, 10 * some[..., None])
    assert parallel.programs(double) == 2
    batch = parallel.put_batch(rows, mesh)  # compiled ahead of time, as the benchmark does
    ahead = double.lower((), frozen, batch).compile()
    np.testing.assert_array_equal(ahead((), frozen, batch), 10 * rows[..., None])


@pytest.mark.parametrize("axes", ["one", "fsdp 2"])
def test_a_weight_without_a_rule_is_refused(axes):
    """Not replicated in silence: that is what does not fit."""
    mesh = mesh_of(**MESHES[axes])
    frozen = nnx.State({"layers": {"router": Frozen(jnp.ones((2, 4)))}})
    encode = parallel.encode_wrapper(lambda frozen, params, batch: batch, mesh)
    with pytest.raises(ValueError, match="no rule says how to share out the weight 'router'"):
        encode(frozen, (), parallel.put_batch(np.ones((mesh.parts, 1)), mesh))


KEEPS_MEMORY = """
import resource, jax, jax.numpy as jnp
from llmsrec_jax import parallel
parallel.keep_memory()
step = jax.jit(lambda x: jnp.roll(jax.lax.optimization_barrier(x + 1), 7).sum())  # a buffer of 64 MiB
x = jnp.ones((4096, 4096))
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
run = lambda: [step(x).block_until_ready() for _ in range(8)]
run()
before = faults()
run()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_memory_of_a_step_serves_the_next():
    """16,384 pages would be mapped anew by each of eight steps; the heap may still find its size in one or two."""
    env = {**os.environ, "PYTHONPATH": str(REPO), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    ran = subprocess.run(
        [sys.executable, "-c", KEEPS_MEMORY], env=env, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 8 * 16_384 / 2


@pytest.mark.parametrize(("given", "kept"), [(None, 0.0), ("2.5", 7.0)])
def test_small_programs_are_kept_unless_the_environment_says_otherwise(monkeypatch, given, kept):
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "anywhere")
    monkeypatch.delenv(name.upper(), raising=False)
    if given is not None:
        monkeypatch.setenv(name.upper(), given)  # JAX has read it already
    jax.config.update(name, 7.0)
    try:
        parallel.keep_compiled()
        assert getattr(jax.config, name) == kept
    finally:
        jax.config.update(name, before)
