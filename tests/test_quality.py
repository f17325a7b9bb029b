"""What the software is for: on a small shop, LLM-SRec learns from order and text."""

import runpy
from pathlib import Path

import pytest

from llmsrec_jax import config, pipeline, results
from tests.conftest import REPO

SMALLER = {
    "data.shop.users": 800,
    "data.shop.items": 200,
    "teacher.epochs": 20,
    "train.epochs": 7,
    "evaluate.max_users": 500,
    "evaluate.show_users": 0,
    "mesh.devices": 1,
}


@pytest.mark.slow
def test_llm_srec_beats_popularity_and_the_teacher_on_cold_items(tmp_path: Path):
    shop = runpy.run_path(str(REPO / "configs" / "shop.py"))["get_config"]()
    pipeline.run(config.apply(shop, SMALLER), tmp_path)
    ndcg = {
        (row["model"], row["slice"]): (row["value"], row["se"])
        for row in results.read(tmp_path / "results.json")
        if row["metric"] == "ndcg@10" and row["protocol"] == "sampled"
    }

    def better(model: str, other: str, part: str) -> bool:
        """By twice the standard error of the difference, as if the two were independent."""
        (one, se), (two, other_se) = ndcg[model, part], ndcg[other, part]
        return one - two > 2 * (se**2 + other_se**2) ** 0.5

    assert better("llm_srec", "popularity", "all")
    assert better("llm_srec", "teacher", "cold")
    assert better("bayes bound", "llm_srec", "all")
    assert better("teacher", "popularity", "all")
