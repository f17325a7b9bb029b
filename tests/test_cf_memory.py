"""The estimates of trainings without an LLM against XLA's own account of their steps, compiled but never run; and what a plan refuses."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from llmsrec_jax import cf_memory, config, loaders, parallel, train
from llmsrec_jax.batch import AlignBatch
from llmsrec_jax.benchmark import made
from llmsrec_jax.cf_memory import Shape, TeacherJob, nbytes
from llmsrec_jax.memory import MARGIN
from llmsrec_jax.models import allmrec
from llmsrec_jax.prompts import plan
from tests.test_memory import account

MESH = parallel.make_mesh(config.Mesh(devices=1))
SETTINGS: dict[str, Any] = {"teacher.max_len": 50, "teacher.dropout": 0.2}
GRU4REC = {"teacher.model": "gru4rec", "teacher.blocks": 1}
BERT4REC = {"teacher.model": "bert4rec", "teacher.heads": 2}
NEXTITNET = {"teacher.model": "nextitnet"}
WINDOWS = ((64, 24), (64, 50))


@pytest.fixture(scope="module")
def dataset():
    shape = made.SHAPES["Industrial_and_Scientific"].smaller(300)
    return made.Made(shape, 0, 1024, config.Prompts()).dataset


@pytest.fixture(scope="module")
def job(dataset):
    return lambda changes: TeacherJob(
        config.apply(config.Config(), {**SETTINGS, **changes}), dataset, 1
    )


def counted(job: TeacherJob, shape: plan.Windows) -> int:
    """Bytes of a training step, by XLA's account."""
    cfg, (graphdef, params) = job.cfg, job._model
    state = jax.eval_shape(lambda params: train.init_state(params, 1e-3, cfg.teacher.b2), params)
    batch = jax.tree.map(lambda x: Shape((1, *x.shape), x.dtype), job._batch(shape))
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = partial(train.teacher_step, model=graphdef, cfg=cfg, axis=MESH.axis)
    return account(parallel.train_wrapper(step, MESH).lower(key, state, batch).compile())


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher.negatives": 4},
        {**GRU4REC, "teacher.loss": "ce"},
        {**BERT4REC, "teacher.loss": "ce"},
        {**NEXTITNET, "teacher.loss": "sampled_ce"},
        *(
            pytest.param(changes, marks=pytest.mark.slow)
            for changes in (
                {"teacher.loss": "ce", "teacher.heads": 4, "teacher.blocks": 4},
                {"teacher.negatives": 20, "teacher.dropout": 0.0, "teacher.d": 128},
                {**GRU4REC, "teacher.gru4rec.hidden": 256},
                {**GRU4REC, "teacher.blocks": 2},
                {**BERT4REC, "teacher.negatives": 20, "teacher.bert4rec.inner": 512},
                {**NEXTITNET, "teacher.loss": "ce", "teacher.blocks": 5},
            )
        ),
    ],
    ids=str,
)
def test_the_estimate_is_within_15_percent(changes, job):
    tried = job(changes)
    assert tried.needs(WINDOWS).program == pytest.approx(counted(tried, WINDOWS), rel=0.15)


@pytest.mark.parametrize("changes", [{}, GRU4REC, BERT4REC, NEXTITNET], ids=str)
def test_a_block_of_windows_needs_no_more_than_said(changes, job):
    tried = job(changes)
    graphdef, params = tried._model
    encode = lambda frozen, params, history: nnx.merge(graphdef, params).user_repr(history)
    history = Shape((1, loaders.TEACHER_ROWS, 50), jnp.int32)
    compiled = parallel.encode_wrapper(encode, MESH).lower((), params, history).compile()
    need = compiled.memory_analysis().temp_size_in_bytes
    assert need < MARGIN * tried.needs().encoding < 4.5 * need


def test_the_dearest_step_that_comes_is_what_counts(job):
    tried = job({"teacher.epochs": 1})
    shape = tried._dearest()
    assert tried.needs() == tried.needs(shape)
    width = max(width for _, width in shape)
    assert 0 < width <= 50 and tried.needs().step < tried.needs(((128, 50),)).step


def test_what_stage_1_needs():
    cfg, items, width = config.Config(), 4000, 384
    needs = cf_memory.alignment_needs(cfg, items, width, 32)
    model = allmrec.Alignment(cfg.teacher.d, width, cfg.alignment.middle, nnx.Rngs(params=0))
    graphdef, params = nnx.split(model)
    state = train.init_state(params, 1e-4, 0.98)
    table = lambda width: Shape((items, width), jnp.float32)
    frozen, ids = allmrec.Frozen(table(cfg.teacher.d), table(width)), Shape((1, 32), jnp.int32)
    batch = AlignBatch(Shape((1, 32, cfg.teacher.d), jnp.float32), ids, ids)
    step = partial(train.align_step, model=graphdef, cfg=cfg, axis=MESH.axis)
    compiled = parallel.train_wrapper(step, MESH).lower(frozen, state, batch).compile()
    assert needs.program == pytest.approx(account(compiled), rel=0.15)
    assert needs.trained == 3 * nbytes(params) and needs.encoding > 4 * items * cfg.teacher.d


def test_what_does_not_fit_says_what_would(job):
    """As few halvings as it takes, each of which holds; and where nothing fits, how much it takes."""
    # validation is not the dearest part
    deep = {**GRU4REC, "teacher.blocks": 4, "teacher.batch": 256}
    tried = job(deep)
    half = job({**deep, "teacher.batch": 128})
    room = int(MARGIN * (half.needs().total + 1))
    assert half.require(room) == half.needs()
    with pytest.raises(ValueError, match="the teacher's training does not fit: memory") as found:
        tried.require(room)
    offered = re.findall(r"--config\.(\S+)=(\d+) needs .*, with other results", str(found.value))
    assert offered[0] == ("teacher.batch", "128") and len(dict(offered)) == len(offered) > 1
    for name, value in offered:
        assert job({**deep, name: int(value)}).require(room)
    with pytest.raises(ValueError, match=r"nothing that was tried fits: .*iB free, or fewer items"):
        tried.require(1 << 20)
    assert tried.require(None) == tried.needs()
