"""The tables that people see."""

import pytest

from llmsrec_jax import config, results


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
    assert "teacher (0)" in results.tables(rows + twin, rows[0])
    assert "teacher (1)" in results.tables(rows + twin, rows[0])
    others = [{**rows[0], "dataset": "other"}, {**rows[0], "candidates_hash": "d"}]
    text = results.tables(rows + others, rows[0])
    order = ["popularity", "teacher", "llm_srec", "llm_srec w/o distill", "bayes bound"]
    for table in text.split("\n\n"):
        lines = [line.split("0.5000")[0].split() for line in table.splitlines()[3:]]
        found = [(" ".join(words[:-1]), words[-1]) for words in lines]
        assert found == [(model, seed) for seed in "01" for model in order]
    assert "test set of made, 7 users" in text


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({}, "llm_srec"),
        ({"distill.weight": 0.0, "uniformity.weight": 0.0}, "llm_srec w/o distill, uniformity"),
        ({"distill.type": "contrastive"}, "llm_srec, contrastive"),
        ({"prompts.user_repr": True}, "llm_srec, user representation"),
        ({"lora.rank": 4}, "llm_srec, LoRA"),
        ({"prompts.item_repr": False}, "llm_srec, titles only"),
        (config.PRESETS["tallrec"], "tallrec"),
        ({**config.PRESETS["tallrec"], "train.targets": "all"}, "tallrec, auto-regressive"),
        (
            {**config.PRESETS["tallrec"], "distill.weight": 1.0, "order.train": "shuffled"},
            "llm_srec w/o uniformity, titles only, LoRA, shuffled training",
        ),
        (
            {"uniformity.weight": 0.0, "train.targets": "all", "order.train": "shuffled"},
            "llm_srec w/o uniformity, auto-regressive, shuffled training",
        ),
    ],
)
def test_variants_are_told_apart(changes, label):
    assert results.label(config.apply(config.Config(), changes)) == label


def test_a_file_of_another_schema_is_refused(tmp_path):
    file = tmp_path / "results.json"
    assert results.read(file) == []
    for content, found in (("[]", "none"), ('{"schema": 9, "records": []}', "9")):
        file.write_text(content)
        with pytest.raises(
            ValueError, match=f"schema {found}, this version reads 1: move the file"
        ):
            results.read(file)
