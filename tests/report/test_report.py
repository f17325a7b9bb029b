"""The whole: files in, one page, Markdown and CSV out."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from llmsrec_jax import report
from llmsrec_jax.report import page
from tests.report import conftest as made

VOID = {"meta", "link", "br", "path", "use"}


class Outline(HTMLParser):
    """Tags that are open, ids, and addresses."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.ids, self.addresses, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.addresses += [value for name, value in attrs if name in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def test_files(folder, tmp_path):
    paths = report.write([folder], tmp_path / "deep" / "out")
    names = ["index.html", "report.md", "records.csv"]
    names += [f"experiment_{name}.csv" for name in ("figure1", "figure4", "table8")]
    assert [path.name for path in paths] == names
    assert all(path.stat().st_size for path in paths)


def test_the_same_results_give_the_same_bytes(folder, tmp_path):
    first, second = (report.write([folder], tmp_path / name) for name in "ab")
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_no_jax(folder, tmp_path):
    program = (
        "import sys; from pathlib import Path; from llmsrec_jax import report;"
        "assert 'matplotlib' not in sys.modules;"
        f"report.write([Path({str(folder)!r})], Path({str(tmp_path / 'out')!r}));"
        "print({'jax', 'flax', 'grain', 'orbax', 'polars', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "set()", done.stderr


def test_the_page_is_whole_and_needs_nothing_else(written):
    text = (written / "index.html").read_text()
    found = Outline(text)
    assert found.open == [] and len(found.ids) == len(set(found.ids))
    inner = {f"#{name}" for name in found.ids}
    assert set(found.addresses) <= inner | {"data:,"}
    assert "http://" not in text and "https://" not in text
    assert found.tags.count("h1") == 1 and found.tags.count("main") == 1


def test_titles_do_no_harm(written):
    text = (written / "index.html").read_text()
    assert '<b id="evil"' not in text and "evil" in text
    assert Outline(text).tags.count("script") == 2  # the cases and the program
    markdown = (written / "report.md").read_text()
    assert "<b" not in markdown.replace("\\<", "")
    assert page.embedded(made.EVIL).count("<") == 0


def test_what_the_page_says(written):
    text = (written / "index.html").read_text()
    for words in (
        *("drops by 6.1% ±&nbsp;0.8%", "no detectable change", "needs weights that are not here"),
        *("which vector", "Spearman rank correlation", "dataset shop", "evaluate.negatives"),
        *("Stage train: validation ndcg@10", "only A is right", "y = x"),
    ):
        assert words in text, words


def test_markdown_has_every_table(written):
    text, html = ((written / name).read_text() for name in ("report.md", "index.html"))
    rules = re.findall(r"^\| :-[-:| ]*\|$", text, re.MULTILINE)
    assert len(rules) == Outline(html).tags.count("table")
    assert "| w/o distillation | 0.3200 |" in text and "1. needs weights that are not here" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(bars) == 1


def rows(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_csv(written):
    records = rows(written / "records.csv")
    assert len(records) == len(made.records())
    changed = next(row for row in records if row["change_first"])
    assert float(changed["change_relative"]) == pytest.approx(-0.061)
    assert float(records[0]["value"]) == made.records()[0]["value"]
    cells = rows(written / "experiment_table8.csv")
    assert [cell["status"] for cell in cells] == ["done", "done", "done", "not run"]
    assert float(cells[0]["difference"]) == pytest.approx(-0.05)
    assert (cells[0]["seeds"], cells[0]["source"]) == ("0", "Table 8")
    assert cells[3]["why"] == "needs weights that are not here" and cells[3]["difference"] == ""


def test_cases_of_another_dataset(folder, tmp_path):
    """What was trained in the shop and judged elsewhere has cases of its own, which can be browsed too."""
    there = made.cases() | {"dataset": "elsewhere", "models": ["teacher", "llm_srec"]}
    made.save(folder / "cases_transfer.json", there)
    report.write([folder], tmp_path / "out")
    text, markdown = ((tmp_path / "out" / name).read_text() for name in ("index.html", "report.md"))
    assert "<h3>shop, seed 0</h3>" in text and "<h3>elsewhere, seed 0</h3>" in text
    assert Outline(text).tags.count("script") == 3
    assert "elsewhere, seed 0: the first 3 of 5 users" in markdown


def test_several_folders(folder, tmp_path):
    other = made.make(tmp_path / "two", made.records(1))
    report.write([folder, other], tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    assert "mean ± standard deviation over seeds 0, 1" in text and "Warning" not in text
    assert "<h3>shop, seed 0, one</h3>" in text  # cases
    assert "Table 8: Ablations, shop, one" in text and "Table 8: Ablations, shop, two" in text
    folders = {row["folder"] for row in rows(tmp_path / "out" / "experiment_table8.csv")}
    assert folders == {"one", "two"}


def test_other_candidates_and_settings_are_warned_of(folder, tmp_path):
    other = made.make(tmp_path / "two", made.records(candidates_hash="other"))
    made.save(other / "config.json", {"evaluate": {"negatives": 999}})
    report.write([folder, other], tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    assert text.count('class="warning"') == 2
    assert "2 different lists of candidates (list0, other)" in text
    assert "evaluate.negatives (99 in one, 999 in two)" in text
    for name in ("list0", "other"):
        assert f"<h3>shop, test set, seed 0, candidates {name}</h3>" in text


def test_settings_of_each_model_and_experiment(tmp_path):
    """Of runs of other lengths in one folder: rows say so, and the settings are shown for each of them.

    What an experiment always has otherwise is no news of it.
    """
    found = [made.record("teacher", 0, 0.1, config_hash="t")]
    found += [made.record("llm_srec", 0, 0.1, config_hash=key) for key in ("a", "b")]
    folder = made.make(tmp_path / "one", found)
    used = {"t": {"seed": 0, "data.ties": "random"}}
    used |= {key: used["t"] | {"train.epochs": n} for key, n in (("a", 1), ("b", 7))}
    made.save(folder / "results.json", {"schema": 1, "records": found, "settings": used})
    for name, epochs, orders in (("table8", 1, 0), ("table3", 7, 5)):
        config = {"train": {"epochs": epochs}, "order": {"permutations": orders}}
        one = made.experiment(name, config=config, own=["order.permutations"] * bool(orders))
        made.save(folder / "experiments" / f"{name}.json", one)
    report.write([folder], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| llm\\_srec (train.epochs=1) |" in text and "| llm\\_srec (train.epochs=7) |" in text
    assert "| train.epochs | – | 1 | 7 |" in text and "| data.ties | random |" in text
    assert "Run with train.epochs=7; other experiments of this report were not." in text
    assert "| seed |" not in text
    assert "settings" not in rows(tmp_path / "out" / "records.csv")[0]


def test_results_without_anything_else(tmp_path):
    made.save(tmp_path / "run" / "results.json", {"schema": 1, "records": made.records()})
    report.write([tmp_path / "run"], tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == ["This report", "Results"]


def test_curves_are_named_after_their_models(tmp_path):
    """What has one name is told apart by the key of its settings."""
    folder = made.make(tmp_path / "one", made.records())
    lines = [
        {
            "stage": "train",
            "key": key,
            "model": model,
            "step": step,
            "epoch": step,
            "loss": 1 / step,
        }
        for key, model in (("k1", "llm_srec, seed 0"), ("k2", "llm_srec, seed 0"), ("k3", "other"))
        for step in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.write([folder], tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    for name in ("llm_srec, seed 0, k1", "llm_srec, seed 0, k2", "other"):
        assert name in text
    assert "k3" not in text
