"""Trained on a small shop, evaluated on other files: nothing trains there, and who knows nothing is at chance."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llmsrec_jax import config, pipeline, results, train
from llmsrec_jax.data import sources
from llmsrec_jax.data.interactions import Catalog
from llmsrec_jax.prompts.tokens import ItemTokens
from llmsrec_jax.stages import unseen_items
from llmsrec_jax.writer import Writer
from tests.factories import catalog, dataset, files, random_dataset
from tests.systems import named, tiny

USERS = 400
CASES = ("cases.json", "cases_transfer.json")
HOME = {"evaluate.max_users": 0, "evaluate.negatives": 99}
CHANCE = 0.1  # of hr@10: 10 of 100


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> dict[str, str]:
    """{setting: value}: another catalogue, with its own titles, in which nothing follows from anything."""
    made = files(random_dataset(users=USERS, items=150), tmp_path_factory.mktemp("files"))
    return {f"transfer.files.{name}": path for name, path in made.items()} | {
        "transfer.name": "there"
    }


@pytest.fixture(scope="module")
def finished(there, tmp_path_factory) -> Path:
    """Left as it is by every test: copy it to change it."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    pipeline.run(tiny(HOME | there), workdir)
    return workdir


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def opened(folder: Path, changes: dict) -> pipeline.Run:
    return pipeline.Run(pipeline.settled(tiny(HOME | changes)), folder, Writer(folder))


def found(folder: Path, metric: str = "hr@10") -> dict[tuple[str, str], dict]:
    """{(dataset, model): record} of all users, sampled ranking."""
    return {
        (row["dataset"], row["model"]): row
        for row in results.read(folder / "results.json")
        if (row["metric"], row["slice"], row["protocol"]) == (metric, "all", "sampled")
    }


def moved(model: str, unseen: str) -> tuple[str, str]:
    return "there", f"{model} from tiny, unseen items {unseen}"


def test_both_datasets_are_judged(finished):
    rows = found(finished)
    assert {name for dataset, name in rows if dataset == "tiny"} == {
        *("popularity", "teacher", "llm_srec", "bayes bound")
    }
    models = [moved(model, "random") for model in ("teacher", "llm_srec")]
    assert {key for key in rows if key[0] == "there"} == {("there", "popularity"), *models}
    assert [rows[key]["trained_on"] for key in models] == ["tiny", "tiny"]
    assert rows["there", "popularity"]["trained_on"] == "there"
    assert {rows[key]["users"] for key in models} == {USERS}
    assert rows[models[0]]["candidates_hash"] != rows["tiny", "teacher"]["candidates_hash"]
    cases = {name: json.loads((finished / name).read_text()) for name in CASES}
    assert [one["dataset"] for one in cases.values()] == ["tiny", "there"]


def test_a_teacher_of_unknown_items_is_at_chance(finished):
    told = found(finished)[moved("teacher", "random")]
    assert 0 < told["se"] < 0.03
    assert abs(told["value"] - CHANCE) < 3 * told["se"]


def test_what_is_trained_is_left_as_it_is(finished, copy, there):
    """In memory, and on disk; only the item table is another one."""
    run = opened(copy, there)
    before = named(run.teacher._params), named(run.llm._params)
    table = before[0].pop("item_embedding")
    shutil.rmtree(copy / "transferred")
    pipeline.perform(run, "evaluate")
    teacher = named(run.transfer._teacher._params)
    assert teacher.pop("item_embedding").shape == (151, 8) != table.shape
    np.testing.assert_array_equal(run.teacher.items, table)
    for ours, theirs in zip(before, (teacher, named(run.transfer._reader._params)), strict=True):
        assert set(ours) == set(theirs)
        for name, values in ours.items():
            np.testing.assert_array_equal(theirs[name], values, err_msg=name)
    for stage in ("teacher", "checkpoints"):
        for path in (finished / stage).rglob("*"):
            twin = copy / path.relative_to(finished)
            assert not path.is_file() or twin.read_bytes() == path.read_bytes()
    assert run.transfer._there.tokens.tokenizer.fingerprint == run.tokens.tokenizer.fingerprint


@pytest.mark.parametrize(("unseen", "trained"), [("zero", []), ("target", [8]), ("text", [])])
def test_ways_to_embed_unseen_items(copy, there, monkeypatch, unseen, trained):
    """Nothing trains, but the teacher there where its embeddings are asked for."""
    fit, widths = train.fit, []

    def noted(job, state, *args):
        widths.append(state.params["item_embedding"][...].shape[1])
        return fit(job, state, *args)

    monkeypatch.setattr(train, "fit", noted)
    cfg = there | {"transfer.unseen": unseen}
    pipeline.run(tiny(HOME | cfg), copy)
    assert widths == trained
    rows, run = found(copy), opened(copy, cfg)
    told, other = (rows[moved("llm_srec", way)] for way in (unseen, "random"))
    assert told["candidates_hash"] == other["candidates_hash"]
    assert told["config_hash"] != other["config_hash"]
    table = run.transfer._teacher.items
    assert table.shape == (151, 8) and np.isfinite(table).all()
    if unseen == "zero":  # all candidates are alike, and ties count as their mean
        assert not table.any()
        teacher = rows[moved("teacher", "zero")]
        assert (teacher["value"], teacher["se"]) == (pytest.approx(CHANCE), pytest.approx(0))
    if unseen == "target":
        np.testing.assert_array_equal(table, run.transfer._there.teacher.items)
    if unseen == "text":
        assert np.linalg.matrix_rank(table[1:] - table[1:].mean(axis=0)) > 1


def test_how_vectors_are_computed_changes_no_number(copy, tmp_path, there):
    """On other devices, the backbone shared out or items' prefixes at hand at home."""
    cfg, other = there | {"transfer.unseen": "text"}, tmp_path / "other"
    shutil.copytree(copy, other)
    pipeline.run(tiny(HOME | cfg), copy)
    cut = {"mesh.devices": 4, "mesh.fsdp": 2, "mesh.tensor": 2}
    pipeline.run(tiny(HOME | cfg | cut), other)
    of = lambda folder: {key: row["value"] for key, row in found(folder, "mrr@10").items()}
    assert of(other) == pytest.approx(of(copy), rel=1e-6)
    stored = opened(other, cfg | {"mesh.devices": 2, "mesh.fsdp": 2, "llm.item_store": "hbm"})
    assert stored.llm.store is not None
    shutil.rmtree(other / "transferred")
    shutil.rmtree(other / "judged")
    pipeline.perform(stored, "evaluate")
    assert of(other) == pytest.approx(of(copy), rel=1e-6)


def test_text_is_mapped_as_the_items_that_were_trained_on():
    """Where CF embeddings are linear in titles, those of other titles are found; untrained items are no examples."""
    rng = np.random.default_rng(0)
    words, weights = rng.normal(size=(10, 4)), rng.normal(size=(4, 3))
    encode = lambda titles, after_slot: [[int(word) for word in title.split()] for title in titles]
    tokens = SimpleNamespace(tokenizer=SimpleNamespace(encode_batch=encode))
    llm = SimpleNamespace(embedded=lambda ids: words[ids].astype(np.float32))

    def place(count: int):
        drawn = [rng.integers(0, 10, rng.integers(1, 6)) for _ in range(count)]
        of_titles = np.stack([words[title].mean(axis=0) for title in drawn]) @ weights
        items = np.concatenate([np.full((1, 3), 99.0), of_titles])
        titles = ["", *(" ".join(map(str, title)) for title in drawn)]
        counts = np.array([0, *np.arange(count) % 4])
        made = SimpleNamespace(
            counts=counts, catalog=SimpleNamespace(titles=titles, size=count + 1)
        )
        known = np.where(counts[:, None] > 0, items, 99.0)
        teacher = SimpleNamespace(items=known)
        return unseen_items.Place(SimpleNamespace(dataset=made), tokens, teacher), items

    home, _ = place(80)
    other, wanted = place(30)
    got = unseen_items.WAYS["text"](home, other, llm, config.Config())
    np.testing.assert_allclose(got[1:], wanted[1:], atol=1e-3)


def test_items_are_the_same_by_key_and_title():
    one = catalog(6)
    titles = ["", "another one", one.titles[4], one.titles[2], one.titles[1]]
    other = Catalog(np.array(["", "i2", "i5", "i2", "i1"]), titles, one.has_title[:5])
    ours, theirs = unseen_items.common(one, other)
    assert (ours.tolist(), theirs.tolist()) == ([2, 1], [3, 4])
    assert [len(rows) for rows in unseen_items.common(one, one.take(np.array([], int)))] == [0, 0]


@pytest.mark.parametrize(
    ("rule", "wanted"), [("trained", [2]), ("catalogue", [2, 1]), ("none", [])]
)
def test_which_items_the_teacher_knows(rule, wanted):
    """Items 1 and 2 are in both catalogues; 1 is only a target of the test."""
    one = dataset([[2, 3, 4, 1]], items=6)
    titles = ["", one.catalog.titles[2], one.catalog.titles[1]]
    there = Catalog(np.array(["", "i2", "i1"]), titles, one.catalog.has_title[:3])
    ours, theirs = unseen_items.known(one, there, rule)
    assert ours.tolist() == wanted and theirs.tolist() == [1, 2][: len(wanted)]


LORA = {"lora.rank": 2, "lora.targets": ("q_proj", "v_proj")}


@pytest.mark.parametrize(
    "changes", [{}, LORA, LORA | {"lora.first": True, "prompts.user_repr": True}], ids=str
)
def test_known_items_keep_what_was_trained(copy, tmp_path, changes):
    """Of the very same data as files that is all of them: the numbers are those at home, whatever unseen ones have."""
    same = files(opened(copy, {}).data.dataset, tmp_path / "same")
    again = {f"transfer.files.{name}": path for name, path in same.items()}
    again |= {"transfer.unseen": "zero", "transfer.known": "catalogue"}
    pipeline.run(tiny(HOME | changes | again), copy)
    for metric in ("hr@10", "ndcg@10", "mrr@10"):
        rows = found(copy, metric)
        for model in results.names(tiny(HOME | changes)).values():
            told = rows["same", f"{model} from tiny, unseen items zero"]
            assert told["value"] == pytest.approx(rows["tiny", model]["value"], rel=1e-9), model
            assert told["candidates_hash"] == rows["tiny", model]["candidates_hash"]


def test_the_second_run_does_nothing(copy, there, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("done again")

    for owner, name in ((train, "fit"), (sources, "load"), (ItemTokens, "build")):
        monkeypatch.setattr(owner, name, never)
    monkeypatch.setattr(unseen_items, "WAYS", {})
    before = {path: path.read_bytes() for path in copy.rglob("*.json")}
    pipeline.run(tiny(HOME | there), copy)
    assert {path: path.read_bytes() for path in copy.rglob("*.json")} == before


def test_bad_data_are_found_before_anything_trains(there, tmp_path):
    lost = there | {"transfer.files.items": str(tmp_path / "nowhere.csv")}
    with pytest.raises(ValueError, match=r"of transfer.*data\.files\.items=.*nowhere.csv: no such"):
        pipeline.run(tiny(HOME | lost), tmp_path / "run")
    (tmp_path / "untitled.csv").write_text("item,title\ni1,\n")
    untitled = there | {"transfer.files.items": str(tmp_path / "untitled.csv")}
    with pytest.raises(ValueError, match="of transfer.*this catalogue has none"):
        pipeline.run(tiny(HOME | untitled), tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()


def test_modes_that_judge_nothing_there_do_not_read_it(copy, there):
    lost = there | {"transfer.files.items": "nowhere.csv"}
    for mode in ("prepare", "train", "teacher"):
        pipeline.run(tiny(HOME | lost), copy, mode)
