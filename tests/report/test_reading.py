"""What the files of a work folder must be, and what is said of those that are not."""

import json

import pytest

from llmsrec_jax.report import reading
from tests.report import conftest as made


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_all_there_is(folder):
    (found,) = reading.read([folder])
    assert found.name == "one" and len(found.records) == len(made.records())
    assert found.cards[0]["users"] == 300 and len(found.log) == 3
    assert [one["experiment"] for one in found.experiments] == ["figure1", "figure4", "table8"]
    (study,) = found.cases
    assert len(study["cases"]) == 5


def test_results_alone_are_enough(tmp_path):
    made.save(tmp_path / "results.json", {"schema": 1, "records": []})
    (found,) = reading.read([tmp_path])
    assert (found.records, found.config, found.cards, found.log) == ([], {}, [], [])
    assert found.cases == [] and found.experiments == []


def test_a_folder_is_read_once_and_namesakes_are_told_apart(folder, tmp_path):
    other = made.make(tmp_path / "below" / "one", made.records(1))
    found = reading.read([folder, other, folder])
    assert [each.name for each in found] == [str(folder), str(other)]


def test_no_folder():
    with pytest.raises(ValueError, match="no work folder given"):
        reading.read([])


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        reading.read([tmp_path / "nowhere"])
    (tmp_path / "shop").mkdir()
    with pytest.raises(ValueError, match=r"shpo: no such folder \(did you mean .*/shop\?\)"):
        reading.read([tmp_path / "shpo"])


def test_a_folder_without_results_says_what_to_run(tmp_path):
    run = rf"holds no results: first run python -m llmsrec_jax.main .*--workdir={tmp_path}"
    with pytest.raises(ValueError, match=run):
        reading.read([tmp_path])


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, "evaluate") for name in ("results.json", "cases.json")),
        ("experiments/table8.json", "reproduce --experiment=table8"),
    ],
)
def test_another_schema(folder, name, mode):
    edit(folder / name, lambda content: content.update(schema=2))
    wanted = rf"{name} is of schema 2, and schema 1 is wanted: move it away .*--mode={mode}"
    with pytest.raises(ValueError, match=wanted):
        reading.read([folder])


def test_experiments_of_before_say_less(folder):
    edit(folder / "experiments/table8.json", lambda content: content.pop("changed"))
    (found,) = [one for one in reading.read([folder])[0].experiments if one["source"] == "Table 8"]
    assert found["changed"] is None


def test_no_schema(folder):
    made.save(folder / "results.json", made.records())
    with pytest.raises(ValueError, match=r"results\.json does not say its schema"):
        reading.read([folder])


@pytest.mark.parametrize(
    "name", ["results.json", "config.json", "cases.json", "data/key/stage.json"]
)
def test_a_file_cut_short(folder, name):
    text = (folder / name).read_text()
    (folder / name).write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=rf"{name} is damaged, perhaps cut short"):
        reading.read([folder])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("results.json", lambda c: c["records"][3].pop("metric"), "record 3 has no 'metric'"),
        ("results.json", lambda c: c["records"][1].update(value="x"), "'value' of record 1 is 'x'"),
        ("results.json", lambda c: c["records"][-2]["change"].pop("p"), "has no 'p'"),
        ("cases.json", lambda c: c["cases"][1]["ranks"].pop("teacher"), "case 1 has no 'teacher'"),
        ("cases.json", lambda c: c.update(models=[]), "names no models"),
        ("experiments/table8.json", lambda c: c.update(figure="pie"), "figure 'pie' is none of"),
        ("experiments/table8.json", lambda c: c["cells"][0].update(status="?"), "status '\\?' is"),
        ("experiments/table8.json", lambda c: c["rows"].pop(), "stands in no row or column"),
        ("experiments/table8.json", lambda c: c["cells"].append(c["cells"][0]), "is there twice"),
        ("experiments/figure1.json", lambda c: c["columns"].append("c"), "columns in pairs"),
        ("experiments/figure4.json", lambda c: c["histograms"][0]["edges"].pop(), "one edge more"),
    ],
)
def test_what_is_missing_or_wrong_is_named(folder, name, change, message):
    edit(folder / name, change)
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        reading.read([folder])
