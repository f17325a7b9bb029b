"""Exponents of known laws; and a ladder in miniature, on which a device holds the same for any number of users."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmsrec_jax.benchmark import growth, measure, report
from llmsrec_jax.benchmark.growth import AT_MOST, BYTES, Point

FEW = Point(users=40, items=70, history=3, llm="random:tiny")
ALONG = {"users": [FEW, replace(FEW, users=120)]}  # one shape, so nothing more to compile


@pytest.fixture(scope="module")
def found(bench) -> dict[str, Any]:
    return growth.growth(bench, ALONG)


def shown(bench, found: dict[str, Any]) -> list[str]:
    where = {"environment": measure.environment(bench.system)}
    return report.markdown(report.plain({**where, "growth": found})).splitlines()


def test_a_device_holds_the_same_for_any_number_of_users(found):
    users = found["users"]
    for name in ("arguments", "temporary"):
        few, many = users["values"][name]
        assert few == many > 0
        assert users["exponents"][name] == pytest.approx(0, abs=1e-9)
        assert users["bytes_each"][name] == 0 and name not in users["above"]
    assert users["bytes_each"]["host"] > 4 * 8  # the teacher's vector, and more
    assert users["exponents"]["host"] <= 1.01


def test_every_quantity_is_measured_and_shown(bench, found):
    lines = shown(bench, found)
    for axis, table in found.items():
        assert table["x"] == [getattr(point, axis) for point in ALONG[axis]]
        assert set(table["values"]) == set(table["exponents"]) == set(AT_MOST[axis])
        for name, exponent in table["exponents"].items():
            assert exponent is not None and np.isfinite(exponent), name
            rows = [line for line in lines if line.startswith(f"| {report.GROWTH[name]} |")]
            assert len(rows) == len(found)
        assert any(line.startswith(f"| growth with {report.GROWTH_AXES[axis]} ") for line in lines)
    assert "A user more costs 0 bytes on the device" in lines[-1]


def test_exponents_of_known_laws():
    x = [1, 3, 10]
    for power in (0, 0.5, 1, 2):
        assert growth.exponent(x, [7 * n**power for n in x]) == pytest.approx(power, abs=1e-9)
    assert growth.exponent(x, [0, 1, 2]) is None


def test_what_grows_faster_than_designed_is_marked(bench):
    def measured(users: int) -> dict[str, float]:
        ones = dict.fromkeys(AT_MOST["users"], 1.0)
        return ones | {
            "users": users,
            "train": users**2,
            "load": users**1.05,
            "temporary": users**0.02,
        }

    table = growth.fitted("users", [measured(n) for n in (1, 3, 10)])
    assert table["above"] == ["train", "temporary"]  # times are not exact, bytes are
    marked = [line for line in shown(bench, {"users": table}) if line.endswith(" (!) | 1 |")]
    assert marked == [f"| {report.GROWTH['train']} | 1 | 9 | 100 | 2.00 (!) | 1 |"]


def test_the_ladders_differ_in_one_thing_each():
    along = growth.ladders("random:toy")
    assert set(along) == set(AT_MOST) == set(report.GROWTH_AXES)
    for axis, points in along.items():
        values = [getattr(point, axis) for point in points]
        assert len(set(values)) == 3
        assert len({replace(point, **{axis: None}) for point in points}) == 1
    assert [point.users for point in along["users"]] == [1000, 3000, 10_000]
    assert set(report.GROWTH) == set(AT_MOST["llm"]) > set(BYTES)


def test_the_table_of_interactions_is_that_of_the_dataset(bench):
    dataset = bench.system.made.dataset
    table = growth.interactions(dataset)
    assert len(table) == dataset.known().lengths.sum()
    for user in (0, len(dataset) - 1):
        order = np.argsort(table.time[table.user == user], kind="stable")
        assert table.item[table.user == user][order].tolist() == dataset.known()[user][0].tolist()
