"""Every CF-SRec through the stages of a run: alone, and as LLM-SRec's teacher (E23)."""

import shutil

import numpy as np
import pytest

from llmsrec_jax import pipeline
from llmsrec_jax.keys import JUDGED, TEACHER, Keys
from llmsrec_jax.models import cf
from llmsrec_jax.presets import PRESETS, READ_BY
from llmsrec_jax.writer import Writer
from tests.kills import killed
from tests.systems import named, records, tiny

OTHERS = [name for name in cf.MODELS if name != "sasrec"]


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_of_its_own(copy, name):
    """Judged on the candidates of the others, beside them; a second run does nothing."""
    pipeline.run(tiny(PRESETS[name]), copy, "teacher")
    found = {row["model"]: row for row in records(copy)}
    assert {f"teacher {name} ce", "teacher", "popularity"} <= set(found)
    assert len({row["candidates_hash"] for row in found.values()}) == 1
    assert len(list((copy / "teacher").iterdir())) == 2


@pytest.mark.parametrize("mask_seen", [True, False])
def test_the_best_by_the_whole_catalogue(copy, mask_seen, capsys):
    """By definition, with the history where lists of the test show it; named so; what says nothing of it has the key it had."""
    changes = {"teacher.select": "full", "evaluate.mask_seen": mask_seen}
    pipeline.run(tiny(changes), copy, "teacher")
    assert "teacher: best ndcg@10 (full ranking) 0." in capsys.readouterr().out
    assert {"teacher", "teacher best in full ranking"} <= {r["model"] for r in records(copy)}
    run = pipeline.Run(tiny(changes), copy, Writer(copy, silent=True))
    assert len(list((copy / "teacher").iterdir())) == 2
    read = {"teacher.select", "evaluate.mask_seen"}
    assert read <= Keys(tiny(changes))(TEACHER).keys()
    assert not read & Keys(tiny())(TEACHER).keys()
    assert "evaluate.mask_seen" in Keys(tiny())(JUDGED[False])
    users, candidates = run.data.candidates("valid")
    histories, gains = run.data.dataset.inputs("valid", users), []
    scores = run.teacher.users(histories) @ run.teacher.items.T
    for row, target in enumerate(candidates[:, 0]):
        scores[row, [0, *(histories[row][0] if mask_seen else ())]] = -np.inf
        rank = np.flatnonzero(np.argsort(-scores[row], kind="stable") == target)[0]
        gains.append(1 / np.log2(rank + 2) if rank < 10 else 0.0)
    assert run.teacher._stage.info["best"] == pytest.approx(np.mean(gains), rel=1e-6)
    assert 0 < np.mean(gains)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_it_goes_on_where_it_was_killed(copy, name, monkeypatch):
    """With dropout, windows in other places every epoch: the same parameters, to the bit."""
    changes = {**PRESETS[name], "teacher.dropout": 0.2, "teacher.windows": "all"}
    teacher = lambda: pipeline.Run(tiny(changes), copy, Writer(copy, silent=True)).teacher
    pipeline.run(tiny(changes), copy, "teacher")
    whole, folder = named(teacher()._params), teacher()._stage.folder
    shutil.rmtree(folder)
    with killed(monkeypatch, checkpoints=3) as seen:
        pipeline.run(tiny({**changes, "train.save_every_s": 0.0}), copy, "teacher")
    assert seen == [1, 2, 3] and not (folder / "stage.json").exists()
    pipeline.run(tiny(changes), copy, "teacher")
    for leaf, values in named(teacher()._params).items():
        np.testing.assert_array_equal(values, whole[leaf], leaf)


@pytest.mark.parametrize("name", OTHERS)
def test_any_of_them_teaches(copy, name):
    """Its user and item vectors are what LLM-SRec reads and learns from; data and tokens are shared."""
    pipeline.run(tiny({**PRESETS[name], "teacher.loss": "sampled_ce"}), copy)
    names = {row["model"] for row in records(copy)}
    assert {f"llm_srec, teacher {name} sampled_ce", f"teacher {name} sampled_ce"} <= names
    for stage, count in (("data", 1), ("tokens", 1), ("teacher", 2), ("checkpoints", 2)):
        assert len(list((copy / stage).iterdir())) == count, stage


def test_a_teacher_does_not_depend_on_settings_that_it_does_not_read():
    for name in cf.MODELS:
        fields = set(Keys(tiny(PRESETS.get(name, {})))(TEACHER))
        for row, (choice, values) in READ_BY.items():
            if choice == "teacher.model":
                found = {field for field in fields if field.startswith(row)}
                assert bool(found) == (name in values), (name, row)
    fields = {loss: Keys(tiny({"teacher.loss": loss}))(TEACHER) for loss in cf.LOSSES}
    assert [loss for loss in fields if "teacher.negatives" in fields[loss]] == ["bce", "sampled_ce"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("sasrec", kind) for kind in cf.LOSSES), *((name, "ce") for name in OTHERS)],
)
def test_where_order_matters_every_model_beats_popularity(tmp_path, name, kind):
    """By more than three standard errors; chains of categories are what the shop is made of."""
    shop = {"data.shop.users": 600, "data.shop.items": 160, "data.shop.order": 1.0}
    sizes = {"teacher.d": 32, "teacher.max_len": 24, "teacher.dropout": 0.1, "teacher.epochs": 40}
    rest = {"evaluate.max_users": 0, "teacher.validate_every": 10, "teacher.lr": 3e-3}
    cfg = tiny({**shop, **PRESETS.get(name, {}), **sizes, **rest, "teacher.loss": kind})
    pipeline.run(cfg, tmp_path, "teacher")
    rows = [r for r in records(tmp_path) if (r["metric"], r["protocol"]) == ("ndcg@10", "sampled")]
    found = {r["model"].split()[0]: r for r in rows if r["slice"] == "all"}
    better, floor = found["teacher"], found["popularity"]
    assert better["value"] > floor["value"] + 3 * (better["se"] + floor["se"])


def test_neighbours_stand_beside_the_others(copy):
    """Where they are asked for; what was bought last matters to one of them only, and nobody is trained for it."""
    cfg = {"evaluate.neighbours": 20, "order.permutations": 1}
    pipeline.run(tiny(cfg), copy, "teacher")
    assert len(list((copy / "teacher").iterdir())) == 1
    rows = [r for r in records(copy) if (r["metric"], r["slice"]) == ("ndcg@10", "all")]
    found = {(r["model"], r["condition"]): r for r in rows if r["protocol"] == "sampled"}
    assert found["sknn", "shuffled"]["change"]["change"] == 0
    assert found["v-sknn", "shuffled"]["change"]["change"] != 0
    assert found["sknn", "original"]["value"] > 0
    assert len({r["candidates_hash"] for r in rows}) == 1
