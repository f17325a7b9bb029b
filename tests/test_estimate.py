"""Estimates before a run: they grow with what there is to do, and vanish with what is done."""

import numpy as np
import pytest

from llmsrec_jax import config, estimate, pipeline
from llmsrec_jax.llama import flops
from llmsrec_jax.presets import PRESETS
from llmsrec_jax.writer import Writer
from tests.systems import tiny
from tests.text import folders

RATE = 1e9


def seconds(folder, changes=None, with_llm=True) -> float | None:
    cfg = pipeline.settled(config.apply(tiny(), changes or {}))
    found = estimate.operations(pipeline.Run(cfg, folder, Writer(folder)), with_llm)
    return None if found is None else sum(found.values()) / RATE


@pytest.mark.parametrize(
    "changes",
    [
        {"train.epochs": 2},
        {"train.targets": "all"},
        {"order.permutations": 1},
        {"train.validations_per_epoch": 4},
        {"data.shop.users": 160, "evaluate.max_users": 80},
        {"llm.path": "random:toy"},
        {"teacher.epochs": 8},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_more_takes_longer(tmp_path, changes):
    plain = seconds(tmp_path)
    assert plain and seconds(tmp_path, changes) > 1.02 * plain
    assert seconds(tmp_path, with_llm=False) < plain


def test_stage_1_of_a_llmrec_by_hand(tmp_path):
    """12 wide, 20 within, 2 layers, 144 titles; 80 users, widths 8 and 12, a middle of 6."""
    joint = {"alignment.text": str(folders.write(tmp_path / "bert")), "alignment.middle": 6}
    cfg = pipeline.settled(tiny({**joint, "alignment.epochs": 3}))
    found = estimate.operations(pipeline.Run(cfg, tmp_path, Writer(tmp_path)), True)
    assert found is not None
    named = {folder.parent.name: operations for folder, operations in found.items()}
    titles = 2 * 2 * 12 * (4 * 12 + 2 * 20) * estimate.TITLE * 144 / estimate.LLM_SHARE
    trained = 3 * 2 * 2 * 6 * (8 + 12) * 2 * 80 * 3 / estimate.TEACHER_SHARE
    assert (named["texts"], named["alignment"]) == (titles, pytest.approx(trained))
    assert {"texts", "alignment"} & {folder.parent.name for folder in plain(tmp_path)} == set()


def trained(folder, changes) -> list[float]:
    """Operations of every training of the LLM's."""
    cfg = pipeline.settled(tiny({**changes, "train.validations_per_epoch": 1}))
    found = estimate.operations(pipeline.Run(cfg, folder, Writer(folder)), True) or {}
    return [n for folder, n in found.items() if folder.parent.name == "checkpoints"]


def test_lora_trains_through_every_token(tmp_path):
    """No shortcut is left, and what its products cost comes on top; CoLLM's first run is TALLRec's, its second one has none."""
    none, titles = {"prompts.user_repr": True}, {"prompts.item_repr": False}
    lora = {"lora.rank": 2, "lora.targets": ("q_proj",)}
    (frozen,), (tallrec,) = trained(tmp_path, none), trained(tmp_path, titles | lora)
    assert trained(tmp_path, none | lora | {"lora.first": True}) == [tallrec, frozen]
    shape = pipeline.Run(tiny(), tmp_path, Writer(tmp_path)).work.keys.backbone[0]

    def cost(tokens: int, times: int) -> float:
        whole = flops.whole(shape, np.array([tokens]), backward=times > 1)
        return whole + times * flops.lora(shape, 2, ["q"], tokens, 1)

    user, item = 30 + 3 * 45, 45  # tokens: three items are shown
    steps = 80 * (cost(user, 3) + 2 * cost(item, 3)) / estimate.LIVE_SHARE
    assert tallrec == pytest.approx(steps + 20 * cost(user, 1) + 144 * cost(item, 1))
    assert tallrec > 1.5 * frozen


def test_title_generation_lists_candidates_and_answers(tmp_path):
    """In training one title behind a prompt, then those of all candidates; no item prompt. What is read takes no more time."""
    title = {**PRESETS["tallrec"], **PRESETS["title"], "lora.rank": 2, "lora.targets": ("q_proj",)}
    cfg = pipeline.settled(tiny({**title, "train.validations_per_epoch": 1}))
    run = pipeline.Run(cfg, tmp_path, Writer(tmp_path))
    found = estimate.operations(run, True) or {}
    by_name = {folder.parent.name: n for folder, n in found.items()}
    shape = run.work.keys.backbone[0]

    def cost(answers: int, times: int) -> float:
        n = 30 + 3 * 45 + 20 * 34 + answers * 31
        whole = flops.whole(shape, np.array([n]), backward=times > 1)
        return whole + times * flops.lora(shape, 2, ["q"], n, 1)

    logits = 2 * shape.vocab * shape.d * 31
    read = cost(20, 1) + 20 * logits
    steps = 80 * (cost(1, 3) / estimate.LIVE_SHARE + 3 * logits)
    assert by_name["checkpoints"] == pytest.approx(steps + 20 * read)
    assert by_name["titles"] == pytest.approx(40 * read) and "vectors" not in by_name


def plain(folder) -> estimate.Operations:
    cfg = pipeline.settled(tiny())
    return estimate.operations(pipeline.Run(cfg, folder, Writer(folder)), True) or {}


def test_nothing_is_known_of_files_that_were_not_read(tmp_path):
    changes = {"data.source": "files", "data.files.interactions": str(tmp_path / "x.csv")}
    assert seconds(tmp_path, changes) is None
    published = {"data.source": "amazon", "data.category": "Electronics"}
    assert seconds(tmp_path, published) > 10 * seconds(tmp_path)


def test_what_is_finished_takes_no_time(tmp_path):
    before = seconds(tmp_path, with_llm=False)
    pipeline.run(tiny(), tmp_path, "teacher")
    assert seconds(tmp_path, with_llm=False) == 0.0 < before
    assert 0 < seconds(tmp_path) < seconds(tmp_path / "elsewhere")
