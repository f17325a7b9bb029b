"""Real sets load with the counts that their own statistics state."""

import json
import time

import numpy as np
import pytest

from llmsrec_jax import config
from llmsrec_jax.data import sampling, sources
from llmsrec_jax.data.splits import prepare
from llmsrec_jax.data.unseen import Unseen


def settings(shared, name: str, **changes) -> config.Data:
    folder = shared / "data" / name
    items = folder / "items.jsonl.gz"
    cfg = config.Data(source="files", **changes)
    cfg.files.interactions = str(folder / "interactions.tsv.gz")
    cfg.files.items = str(items) if items.exists() else ""
    return cfg


@pytest.mark.parametrize(
    "name", ["amazon2018_electronics_1m", "amazon2014_beauty", "steam_100k", "sasrec_video"]
)
def test_counts_equal_the_stated_ones(shared, name):
    stated = json.loads((shared / "data" / name / "stats.json").read_text())
    cfg = settings(shared, name, kcore="none")
    dataset, card = prepare(*sources.load(cfg, 0)[:2], cfg, 0)
    dropped = card["exact_duplicates_dropped"]
    assert dataset.name == card["name"] == name
    assert card["interactions_read"] == stated["interactions"]
    assert card["interactions"] == stated["interactions"] - dropped
    assert (card["users"], card["items"]) == (stated["users"], stated["items"])
    assert card["repeated_pairs"] + dropped == stated["dup_user_item"]
    assert card["length_max"] <= stated["max_len"] and card["rows_out_of_time_order"] == 0
    assert card["title_coverage"] == stated["title_coverage"]
    if not dropped:
        assert card["length_mean"] == pytest.approx(stated["avg_len"], abs=5e-4)
        assert card["length_median"] == stated["median_len"]
        assert card["tied_pairs"] == pytest.approx(stated.get("tied_adjacent_pairs", 0), abs=5e-5)
        last_two = stated.get("users_whose_last_two_are_tied", 0)
        assert card["tied_last_two"] == pytest.approx(last_two, abs=5e-5)


def test_electronics_is_ready_in_seconds(shared):
    cfg = settings(shared, "amazon2018_electronics_1m")
    start = time.perf_counter()
    dataset, card = prepare(*sources.load(cfg, 0)[:2], cfg, 0)
    users = dataset.eligible("test")
    drawn = sampling.candidates(dataset, "test", users, 99, "uniform", 0)
    assert time.perf_counter() - start < 30
    assert card["interactions_dropped_by_kcore"] == 0  # it is a 5-core
    assert drawn.shape == (43_462, 100)
    known = Unseen(dataset.known(), dataset.catalog.size)
    assert not known.contains(users[:, None], drawn[:, 1:]).any()
    assert (np.diff(np.sort(drawn, axis=1), axis=1) > 0).all()
    assert "Kit for Nook HD &amp; HD+" in " ".join(dataset.catalog.titles)
