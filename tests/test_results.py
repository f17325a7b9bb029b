"""The tables that people see."""

from typing import get_args

import numpy as np
import pytest

from llmsrec_jax import config, results, schema, statistics
from llmsrec_jax.presets import PRESETS


def test_tables_show_baselines_first_and_the_bound_last():
    models = ["llm_srec", "bayes bound", "teacher", "llm_srec w/o distill", "popularity"]
    rows = [
        {
            **{
                "model": model,
                "dataset": "made",
                "seed": seed,
                "config_hash": "0",
                "slice": "all",
                "condition": "original",
            },
            **{
                "candidates_hash": "c",
                "protocol": "sampled",
                "metric": "ndcg@10",
                "value": 0.5,
                "se": 0.1,
                "users": 7,
            },
        }
        for seed in (1, 0)
        for model in models
    ]
    twin = [{**row, "config_hash": "1"} for row in rows if row["model"] == "teacher"]
    assert "teacher (0)" in results.tables(rows + twin, rows[0], {})
    assert "teacher (1)" in results.tables(rows + twin, rows[0], {})
    used = {"0": {"seed": 0, "teacher.epochs": 4}, "1": {"seed": 1, "teacher.epochs": 8}}
    told = results.tables(rows + twin, rows[0], used)
    assert "teacher (teacher.epochs=4) " in told and "teacher (teacher.epochs=8) " in told
    others = [{**rows[0], "dataset": "other"}, {**rows[0], "candidates_hash": "d"}]
    text = results.tables(rows + others, rows[0], {"0": {"teacher.epochs": 4}})
    order = ["popularity", "teacher", "llm_srec", "llm_srec w/o distill", "bayes bound"]
    for table in text.split("\n\n"):
        lines = [line.split("0.5000")[0].split() for line in table.splitlines()[3:]]
        found = [(" ".join(words[:-1]), words[-1]) for words in lines]
        assert found == [(model, seed) for seed in "01" for model in order]
    assert "test set of made, 7 users" in text


def test_permuted_histories_are_told_by_settings_only_where_these_tell_rows_apart():
    row = {
        **{"model": "teacher", "dataset": "made", "seed": 0, "slice": "all", "protocol": "sampled"},
        **{"candidates_hash": "c", "metric": "ndcg@10", "value": 0.5, "se": 0.1, "users": 7},
        **{"condition": "original", "config_hash": "k0"},
    }
    change = statistics.paired(np.zeros(3), np.zeros(3))._asdict()
    permuted = {**row, "condition": "shuffled", "scope": "window", "change": change}
    table = lambda rows: results.tables(rows, row, {}).split("in another order\n")[1]
    assert "k0" not in table([row, permuted]) and "settings" not in table([row, permuted])
    twin = {**permuted, "config_hash": "k1"}
    assert "teacher (k0)" in table([row, permuted, twin])
    assert "teacher (k1)" in table([row, permuted, twin])


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({}, "llm_srec"),
        ({"distill.weight": 0.0, "uniformity.weight": 0.0}, "llm_srec w/o distill, uniformity"),
        ({"distill.type": "contrastive"}, "llm_srec, contrastive"),
        ({"prompts.user_repr": True}, "llm_srec, user representation"),
        ({"lora.rank": 4}, "llm_srec, LoRA"),
        ({"prompts.item_repr": False}, "llm_srec, titles only"),
        (PRESETS["tallrec"], "tallrec"),
        (PRESETS["llara"], "llara"),
        (PRESETS["collm"], "collm"),
        ({"lora.rank": 4, "lora.first": True}, "llm_srec, LoRA first"),
        ({**PRESETS["tallrec"], "train.targets": "all"}, "tallrec, auto-regressive"),
        (PRESETS["a_llmrec"], "a_llmrec"),
        ({"alignment.text": "folder"}, "llm_srec, joint embeddings"),
        (
            {**PRESETS["a_llmrec"], "lora.rank": 4, "teacher.loss": "ce"},
            "a_llmrec, LoRA, teacher ce",
        ),
        (
            {**PRESETS["tallrec"], "distill.weight": 1.0, "order.train": "shuffled"},
            "llm_srec w/o uniformity, titles only, LoRA, shuffled training",
        ),
        (
            {"uniformity.weight": 0.0, "train.targets": "all", "order.train": "shuffled"},
            "llm_srec w/o uniformity, auto-regressive, shuffled training",
        ),
        ({"teacher.model": "bert4rec", "teacher.loss": "ce"}, "llm_srec, teacher bert4rec ce"),
    ],
)
def test_variants_are_told_apart(changes, label):
    assert results.label(config.apply(config.Config(), changes)) == label


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "teacher"),
        ({"order.train": "shuffled"}, "teacher, shuffled training"),
        ({"teacher.loss": "ce"}, "teacher ce"),
        ({"teacher.model": "gru4rec", "teacher.loss": "sampled_ce"}, "teacher gru4rec sampled_ce"),
    ],
)
def test_teachers_are_told_apart(changes, name):
    assert results.names(config.apply(config.Config(), changes))["teacher"] == name


def test_every_model_and_loss_of_a_teacher_has_a_name():
    declared = {name: kind for name, _, kind in config.flatten(config.Config())}
    every = {
        (name, v) for name in ("teacher.model", "teacher.loss") for v in get_args(declared[name])
    }
    assert every - {*schema.TEACHERS} == {("teacher.model", "sasrec"), ("teacher.loss", "bce")}


def test_a_file_of_another_schema_is_refused(tmp_path):
    file = tmp_path / "results.json"
    assert results.read(file) == []
    for content, found in (("[]", "none"), ('{"schema": 9, "records": []}', "9")):
        file.write_text(content)
        with pytest.raises(
            ValueError, match=f"schema {found}, this version reads 1: move the file"
        ):
            results.read(file)
