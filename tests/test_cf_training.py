"""What trainings without an LLM need: XLA's account of the programs that will run; and what a plan refuses."""

import re
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import config, loaders, parallel, train
from llmsrec_jax.batch import AlignBatch
from llmsrec_jax.benchmark import made
from llmsrec_jax.cf_training import AlignmentJob, TeacherJob, columns, nbytes
from llmsrec_jax.memory import MARGIN
from llmsrec_jax.models import allmrec, cf
from llmsrec_jax.presets import PRESETS
from tests.test_memory import account

SETTINGS: dict[str, Any] = {"teacher.max_len": 50, "teacher.dropout": 0.2}
GRU4REC = {"teacher.model": "gru4rec", "teacher.blocks": 1}
BERT4REC = {"teacher.model": "bert4rec", "teacher.loss": "ce", "teacher.heads": 2}
NEXTITNET = {"teacher.model": "nextitnet", "teacher.loss": "sampled_ce"}
MESHES = {
    "one": config.Mesh(devices=1),
    "two": config.Mesh(devices=2),
    "pmap": config.Mesh(devices=2, mode="pmap"),
}


@pytest.fixture(scope="module")
def dataset():
    shape = made.SHAPES["Industrial_and_Scientific"].smaller(300)
    return made.Made(shape, 0, 1024, config.Prompts()).dataset


@pytest.fixture(scope="module")
def job(dataset):
    def new(changes, mesh="one"):
        cfg = config.apply(config.Config(), {**SETTINGS, **changes})
        return TeacherJob(cfg, parallel.make_mesh(MESHES[mesh]), dataset)

    return new


def alignment(changes, mesh="one", samples=1000):
    cfg = config.apply(config.Config(), changes)
    return AlignmentJob(cfg, parallel.make_mesh(MESHES[mesh]), 4000, 384, samples)


@pytest.fixture
def compiled(caplog):
    """Names of what was compiled since the last call."""

    def names():
        found = re.findall(r"Finished XLA compilation of (\S+)", caplog.text)
        caplog.clear()
        return found

    with jax.log_compiles():
        yield names


def beside(program):
    """Bytes that a compiled program needs beside its arguments, by XLA's account."""
    found = program.memory_analysis()
    return account(program) - found.argument_size_in_bytes


def placed(mesh, params, frozen, lr, b2):
    state = train.init_state(params, lr, b2)
    return parallel.replicate(frozen, mesh), parallel.replicate(state, mesh)


@pytest.mark.parametrize(
    ("changes", "mesh"),
    [
        *(({}, mesh) for mesh in MESHES),
        *(
            pytest.param(changes, "one", marks=pytest.mark.slow)
            for changes in (GRU4REC, BERT4REC, NEXTITNET)
        ),
    ],
    ids=str,
)
def test_the_program_that_was_asked_is_the_one_that_runs(changes, mesh, job, compiled):
    """What is said is what XLA counts of it; and where its step comes, nothing is compiled any more."""
    tried = job(changes, mesh)
    batches = tried.batches
    shapes = [tuple(g.history.shape[1:] for g in batches(n)) for n in range(8)]
    step = max(range(8), key=lambda n: columns(shapes[n]))
    needs = tried.needs(shapes[step])
    assert len(compiled()) >= 2
    cfg, size = tried.cfg.teacher, tried.dataset.catalog.size
    params = nnx.state(cf.new(size, cfg, nnx.Rngs(params=0)))
    key, state = placed(tried.mesh, params, jax.random.key(0), cfg.lr, cfg.b2)
    assert needs.trained == nbytes(state) and needs.trained > 3 * nbytes(params)
    batch = parallel.put_batch(batches(step), tried.mesh)
    assert needs.batch == nbytes(batch) / tried.mesh.parts
    compiled()
    before = parallel.programs(tried.step)
    state, metrics = tried.step(key, state, batch)
    assert np.isfinite(metrics["loss"]) and compiled() == []
    assert parallel.programs(tried.step) == 1 >= before
    assert needs.step == beside(tried.step.lower(key, state, batch).compile()) > nbytes(params)


def test_a_block_of_windows_needs_no_more_than_said(job):
    tried = job({})
    train = tried.dataset.train
    blocks = loaders.window_batches(train, 50, loaders.TEACHER_ROWS, 1)
    widest = max((block for _, block in blocks), key=lambda block: block.size)[0]
    params = tried._model[1]
    need = tried._beside(tried.encoder, jax.eval_shape(lambda: widest), (), params)
    assert need == beside(tried.encoder.lower((), params, widest[None]).compile())
    assert need <= tried.needs().encoding < tried.needs().total
    deep, flat = (job({**GRU4REC, "teacher.blocks": n}).needs().encoding for n in (4, 1))
    assert deep > flat


def test_the_dearest_step_that_comes_is_what_counts(job):
    tried = job({"teacher.epochs": 1})
    shape = tried._dearest()
    assert tried.needs() == tried.needs(shape)
    width = max(width for _, width in shape)
    assert 0 < width <= 50 and tried.needs().step < tried.needs(((128, 50),)).step


@pytest.mark.parametrize("mesh", MESHES)
def test_what_stage_1_needs(mesh, compiled):
    tried = alignment({}, mesh)
    needs, cfg = tried.needs(), tried.cfg
    d, middle = cfg.teacher.d, cfg.alignment.middle
    frozen = allmrec.Frozen(*(np.zeros((4000, width), np.float32) for width in (d, 384)))
    params = nnx.state(allmrec.Alignment(d, 384, middle, nnx.Rngs(params=0)))
    frozen, state = placed(tried.mesh, params, frozen, 1e-4, 0.98)
    assert (needs.teacher, needs.trained) == (nbytes(frozen), nbytes(state))
    parts = tried.mesh.parts
    ids = np.ones((parts, cfg.alignment.batch // parts), np.int32)
    batch = AlignBatch(np.zeros((*ids.shape, d), np.float32), ids, ids)
    assert needs.batch == nbytes(batch) / parts
    batch = parallel.put_batch(batch, tried.mesh)
    compiled()
    state, _ = tried.step(frozen, state, batch)
    read = state.params, frozen.cf_items
    tried.decoded(*read)
    assert compiled() == []
    assert needs.step == beside(tried.step.lower(frozen, state, batch).compile())
    assert needs.encoding == beside(tried.decoded.lower(*read).compile())


def refused(job, room):
    """[(setting, value)] that a refusal offers."""
    with pytest.raises(ValueError, match=f"{job.what} does not fit: memory per device") as found:
        job.require(room)
    offered = re.findall(r"--config\.(\S+)=(\d+) needs .*, with other results", str(found.value))
    assert len(dict(offered)) == len(offered)
    return offered


@pytest.mark.slow
def test_what_does_not_fit_says_what_would(job):
    """As few halvings as it takes; and where nothing fits, how much it takes."""
    large = {"teacher.batch": 256, "teacher.blocks": 1, "teacher.negatives": 50}
    tried, half = job(large), job({**large, "teacher.batch": 128})
    needs = half.needs()
    room = int(MARGIN * (needs.total + 1))
    assert half.require(room) == needs
    offered = refused(tried, room)
    assert offered[0] == ("teacher.batch", "128") and len(offered) > 1
    for name, value in offered:
        assert job({**large, name: int(value)}).require(room)
    many = job({**large, "teacher.batch": 4096})  # of which 300 are in use
    assert ("teacher.batch", "150") in refused(many, int(MARGIN * (many.needs().total - 1)))
    with pytest.raises(ValueError, match=r"nothing that was tried fits: .*iB free, or fewer items"):
        tried.require(1 << 20)


def test_what_does_not_fit_of_stage_1_says_what_would():
    large = {**PRESETS["a_llmrec"], "alignment.batch": 4096, "alignment.middle": 1024}
    tried = alignment(large, samples=2048)
    half = alignment({**large, "alignment.batch": 1024}, samples=2048)
    offered = refused(tried, int(MARGIN * (half.needs().total + 1)))
    assert ("alignment.batch", "1024") in offered
    with pytest.raises(ValueError, match=r"fewer items, or a text encoder of narrower vectors"):
        tried.require(1 << 20)
