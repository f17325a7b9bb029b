"""Which numbers stand together, seeds put together, and rank correlation by hand."""

import math

import pytest

from llmsrec_jax.report import reading, systems
from tests.report import conftest as made


def test_seeds_stand_together():
    (group,), warnings = systems.groups(made.records(0) + made.records(1))
    assert group.seeds == [0, 1] and group.title == "shop, test set, seeds 0, 1"
    assert warnings == []


def test_another_list_of_candidates_stands_apart():
    rows = made.records(0) + made.records(1) + made.records(0, candidates_hash="other")
    groups, (warning,) = systems.groups(rows)
    assert [(group.seeds, group.candidates) for group in groups] == [
        *(([1], ""), ([0], "list0"), ([0], "other")),
    ]
    for group in groups:
        lists = {(row["seed"], row["candidates_hash"]) for row in group.records}
        assert len(lists) == 1
    assert "seed 0" in warning and "list0, other" in warning and "cannot be compared" in warning


def test_datasets_and_splits_stand_apart():
    rows = [made.record("a", 0, 0.1, **kind) for kind in ({}, {"dataset": "b"}, {"split": "valid"})]
    groups, warnings = systems.groups(rows)
    assert len(groups) == 3 and not warnings


def test_a_record_of_two_folders_is_counted_once(tmp_path):
    same = [made.record("a", 0, 0.1)]
    folders = [made.make(tmp_path / name, same) for name in ("x", "y")]
    records, warnings = systems.collect(reading.read(folders))
    assert records == same and not warnings


def test_folders_that_contradict_each_other(tmp_path):
    folders = [
        made.make(tmp_path / name, [made.record("a", 0, value)])
        for name, value in (("x", 0.1), ("y", 0.2))
    ]
    records, (warning,) = systems.collect(reading.read(folders))
    assert [row["value"] for row in records] == [0.1]
    assert "other values in y than in x" in warning


def test_twins_are_told_apart_by_their_settings():
    rows = [made.record("a", 0, 0.1, config_hash=key) for key in ("k1", "k2")]
    assert list(systems.systems(rows)) == ["a (k1)", "a (k2)"]
    seeds = [made.record("a", seed, 0.1) for seed in (0, 1)]
    assert list(systems.systems(seeds)) == ["a"]


def test_seeds_of_other_settings_are_no_seeds_of_one_system():
    """Seed 1 was trained for longer: no mean over both."""
    used = [{"seed": 0, "train.epochs": 1}, {"seed": 1, "train.epochs": 9}]
    rows = [made.record("a", seed, 0.1, settings=used[seed]) for seed in (0, 1)]
    assert list(systems.systems(rows)) == ["a (train.epochs=1)", "a (train.epochs=9)"]
    same = [row | {"settings": {"seed": row["seed"], "train.epochs": 1}} for row in rows]
    assert list(systems.systems(same)) == ["a"]


def test_baselines_first_and_the_bound_last():
    rows = [made.record(model, 0, 0.1) for model in ("bayes bound", "x", "teacher", "popularity")]
    assert list(systems.systems(rows)) == ["popularity", "teacher", "x", "bayes bound"]


def test_estimates():
    two = systems.estimate([made.record("a", seed, value) for seed, value in ((0, 0.1), (1, 0.3))])
    assert two is not None and two.mean == pytest.approx(0.2)
    assert two.sd == pytest.approx(math.sqrt(0.02)) and two.spread == two.sd
    one = systems.estimate([made.record("a", 0, 0.1)])
    assert one == (0.1, None, 0.01, (0,)) and one.spread == 0.01
    assert systems.estimate([]) is None


def test_a_value_of_fewer_seeds_says_so():
    one = systems.Estimate(0.25, None, 0.01, (1,))
    assert one.cell([1]) == ("0.2500 ± 0.0100", "", False)
    assert one.cell([0, 1]).note == "seed 1 only; ± is the standard error over users"


def test_spearman_by_hand():
    assert systems.spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert systems.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # 1 - 6 (1 + 1 + 0 + 0) / (4 (16 - 1))
    assert systems.spearman([1, 2, 3, 4], [2, 1, 3, 4]) == pytest.approx(0.8)
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)
    assert systems.spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(math.sqrt(0.9))
    assert math.isnan(systems.spearman([1, 1, 1], [1, 2, 3]))


def test_agreement_leaves_out_the_bound_and_needs_three():
    found = systems.systems(made.records())
    assert systems.agreement(found, "ndcg@10", 0) == (pytest.approx(1), 3)
    found.pop("popularity")
    value, count = systems.agreement(found, "ndcg@10", 0)
    assert math.isnan(value) and count == 2
