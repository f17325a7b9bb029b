"""Title generation is measured as retrieval is; its work is counted from the prompts themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmsrec_jax import config, title_loaders
from llmsrec_jax.batch import HISTORY, USER_REPR
from llmsrec_jax.benchmark import made, measure, tasks
from llmsrec_jax.benchmark.measure import Options
from llmsrec_jax.benchmark.stages import Bench
from llmsrec_jax.benchmark.system import System
from llmsrec_jax.llama import flops
from llmsrec_jax.presets import PRESETS
from tests.benchmark.conftest import SMALL
from tests.systems import tiny

WRITES = {
    **SMALL,
    **PRESETS["llara"],
    **PRESETS["title"],
    "lora.rank": 2,
    "lora.targets": ("q_proj", "v_proj"),
    "prompts.user_repr": True,
    "prompts.title_tokens": 6,
    "train.negatives": 3,
    "evaluate.negatives": 11,
    "llm.dtype": "fp32",
}


@pytest.fixture(scope="module")
def writing() -> Bench:
    cfg = tiny(WRITES)
    return Bench(System(cfg, made.shape(cfg.data)), repeats=1, say=print)


@pytest.fixture(scope="module")
def found(writing, tmp_path_factory) -> tuple[Path, dict[str, Any], list[str]]:
    """A folder, what was measured, what was said."""
    folder, said = tmp_path_factory.mktemp("writing"), []
    stages = ("peak", "data", "train", "users", "items")
    return (
        folder,
        measure.run(writing.system.cfg, folder, Options(stages, (), 1, 1), said.append),
        said,
    )


def test_every_stage_but_that_of_items(found):
    folder, results, said = found
    assert {"peak", "data", "train", "users", "table9"} <= results.keys()
    assert not {"items", "store"} & results.keys()
    assert any("there are no items to encode" in line for line in said)
    train = results["train"]
    counted = train["arguments_bytes"] + train["temporary_bytes"]
    assert train["estimated_bytes"] == pytest.approx(counted, rel=0.15)
    for row in results["table9"].values():
        assert len(row) == 4 and min(row) > 0
    shown = (folder / "benchmark.md").read_text()
    assert "inference, all evaluated users" in shown and "ours write titles" in shown


def test_work_is_that_of_the_prompts(writing):
    """A step: one answer each. Inference: every user once, all candidates' titles behind the prompt."""
    task = writing.task
    assert isinstance(task, tasks.Titles)
    rows, question = task.batches.members(1)
    of_step = writing.system.samples.take(rows), question
    assert len(question.answers) == SMALL["train.batch"]
    for training, (histories, question) in ((True, of_step), (False, task.judged)):
        told = writing.system.told(len(histories))
        prompts = task.titles.build(histories, question, told)
        work = task.step(1) if training else task.work("users")
        assert work.rows == len(prompts) and work.tokens == work.live == len(prompts.ids)
        own = task.titles.tokens(question.answers)[1] - 1
        trunk = prompts.lengths - own.sum(axis=1)
        assert own.shape[1] == (1 if training else 12) and own.min() > 0
        llama, times = writing.system.llama, 3 if training else 1
        useful = flops.answers(llama, trunk, own)
        useful += flops.answers(llama, trunk, own, backward=True) if training else 0
        slots = np.sum((prompts.kind == HISTORY) | (prompts.kind == USER_REPR))
        projector = 2 * (8 * 32 + 32 * 32)
        names = [name.removesuffix("_proj") for name in writing.system.cfg.lora.targets]
        read = len(prompts) + own.sum()
        lora = flops.lora(llama, 2, names, len(prompts.ids), read)
        assert work.flops == useful + times * (slots * projector + lora)
        if not training:
            assert work.rows == SMALL["evaluate.max_users"] and work.whole > work.flops


def test_an_epoch_is_that_of_its_steps(writing):
    """But for the samples that fill no batch."""
    task = writing.task
    steps = range(task.batches.order.steps_per_epoch)
    (seen,) = {writing.system.cfg.train.batch * len(steps)}
    assert seen == task.epoch().rows == 12
    assert task.epoch().flops == pytest.approx(sum(task.step(step).flops for step in steps))


def test_made_titles_have_the_lengths_of_the_shape(writing):
    system = writing.system
    titles = system.made.titles(title_loaders.listed(system.cfg))
    items = np.arange(1, system.made.dataset.catalog.size)[:, None]
    drawn = system.made.builder.items(items[:, 0]).lengths
    length = titles.tokens(items)[1][:, 0] - 1
    assert length.max() == 6 and titles.alike < len(items) / 4
    long = drawn - drawn.min() >= 6
    assert np.all(length[long] == 6)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (Options(("peak",), ("padded",), 1, 1), "--vs compares retrieval"),
        (Options(("growth",), (), 1, 1), "--stages=growth is of retrieval"),
    ],
)
def test_what_is_of_retrieval_alone_is_refused(tmp_path, options, why):
    with pytest.raises(ValueError, match=f"{why}.*leave out prompts.task=title"):
        measure.run(config.apply(tiny(WRITES), {"mesh.devices": 1}), tmp_path, options)
    assert not list(tmp_path.iterdir())
