"""Title generation is measured as retrieval is; its work is counted from the prompts themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmsrec_jax import config, title_loaders
from llmsrec_jax.batch import HISTORY, USER_REPR
from llmsrec_jax.benchmark import made, measure, table9, tasks, work
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
    options = Options(("peak", "data", "train", "users", "items"), (), 1, 1)
    return folder, measure.run(writing.system.cfg, folder, options, said.append), said


def test_every_stage_but_that_of_items(found):
    folder, results, said = found
    assert {"peak", "data", "train", "users", "table9"} <= results.keys()
    assert not {"items", "store"} & results.keys()
    assert any("no item is encoded alone" in line for line in said)
    train = results["train"]
    counted = train["arguments_bytes"] + train["temporary_bytes"]
    assert train["estimated_bytes"] == pytest.approx(counted, rel=0.15)
    for row in results["table9"].values():
        assert len(row) == 4 and min(row) > 0
    shown = (folder / "benchmark.md").read_text()
    assert "inference, all evaluated users" in shown and "ours write titles" in shown


def test_work_is_that_of_the_prompts(writing):
    """A step: one answer each. Inference: every user once, all candidates' titles behind the prompt, or each behind its own."""
    task, system = writing.task, writing.system
    assert isinstance(task, tasks.Titles)
    # what stands for items has another width
    joint = {"alignment.text": "any", "alignment.middle": 24}
    sizes = work.Sizes(config.apply(system.cfg, joint), system.llama)
    of_items, of_users = (2 * (width * 32 + 32 * 32) for width in (24, 8))
    names = [name.removesuffix("_proj") for name in system.cfg.lora.targets]
    rows, question = task.batches.members(1)
    of_step = system.samples.take(rows), question
    assert len(question.answers) == SMALL["train.batch"]
    for training, (histories, question) in ((True, of_step), (False, task.judged)):
        prompts = task.builder.build(histories, question, system.told(len(histories)))
        found = task.step(1, sizes) if training else task.work("users", sizes)
        assert found.rows == len(prompts) and found.tokens == found.live == len(prompts.ids)
        own = task.builder.tokens(question.answers)[1] - 1
        trunk = prompts.lengths - own.sum(axis=1)
        assert own.shape[1] == (1 if training else 12) and own.min() > 0
        llama, times = system.llama, 3 if training else 1
        useful = flops.answers(llama, trunk, own)
        useful += flops.answers(llama, trunk, own, backward=True) if training else 0
        slots = [np.sum(prompts.kind == kind) for kind in (HISTORY, USER_REPR)]
        projected = np.dot(slots, [of_items, of_users])
        lora = flops.lora(llama, 2, names, len(prompts.ids), len(prompts) + own.sum())
        assert found.flops == useful + times * (projected + lora)
        alone = trunk[:, None] + own
        whole = flops.whole(llama, alone, backward=training)
        whole += 2 * llama.d * llama.vocab * (own + 1).sum() * (2 if training else 1)
        lora = flops.lora(llama, 2, names, alone.sum(), alone.sum())
        assert found.whole == whole + times * (own.shape[1] * projected + lora)


def test_an_epoch_is_that_of_its_steps(writing):
    """Here every sample is in a batch."""
    task, sizes = writing.task, writing.sizes
    steps = [task.step(step, sizes) for step in range(task.batches.order.steps_per_epoch)]
    assert work.summed(steps).rows == task.epoch(sizes).rows == 12
    assert work.summed(steps).flops == pytest.approx(task.epoch(sizes).flops)


def test_made_titles_have_the_lengths_of_the_shape(writing):
    """As those of histories; but for the shortest, which are a word in quotes."""
    cfg = config.apply(writing.system.cfg, {"prompts.title_tokens": 128})
    system = System(cfg, writing.system.shape)
    items = np.arange(1, system.made.dataset.catalog.size)[:, None]
    builder = system.made.titles(title_loaders.listed(cfg))
    length = builder.tokens(items)[1][:, 0] - 1
    prompts = system.made.builder.items(items[:, 0]).lengths
    (around,) = {*(prompts - length)[length > 3].tolist()}
    assert around == int(prompts.min()) - max(int(prompts.min()) - around, 1)
    assert length.min() >= 3 and len({*length.tolist()}) > 10 and builder.alike == 0


def test_titles_too_long_for_a_published_dataset_cost_only_its_cells(writing):
    """They are drawn as long as the real ones, which prompts of this size may have no room for."""
    said = []
    cfg = config.apply(writing.system.cfg, {"prompts.title_tokens": 64, "prompts.max_tokens": 900})
    projection = table9.Projection(System(cfg, writing.system.shape), said.append)
    rates = {name: {"useful_flops_per_s": 1e9} for name in ("train", "users")}
    for row in projection.rows(rates).values():
        assert row == [None] * 4
    assert len(said) == 2 and all("has no room for a history" in line for line in said)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (Options(("peak",), ("padded",), 1, 1), "--vs compares retrieval"),
        (Options(("growth",), (), 1, 1), "--stages=growth is of retrieval"),
        (Options(("items",), (), 1, 1), "--stages=items: .* no item is encoded alone"),
    ],
)
def test_what_is_of_retrieval_alone_is_refused(tmp_path, options, why):
    with pytest.raises(ValueError, match=why):
        measure.run(config.apply(tiny(WRITES), {"mesh.devices": 1}), tmp_path, options)
    assert not list(tmp_path.iterdir())
