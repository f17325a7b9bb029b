"""metrics.jsonl survives interruptions; the console says what people need."""

import io
import json
import threading

import numpy as np
import pytest

from llmsrec_jax import writer
from llmsrec_jax.writer import Writer, read_log, table


def steps(path):
    return [(line["stage"], line["step"]) for line in read_log(path)]


def test_log_writes_json_lines(tmp_path):
    with Writer(tmp_path / "run") as log:
        log.log("train", 3, {"epoch": 0.5, "loss": np.float32(0.25), "bad": float("nan")})
    (line,) = read_log(tmp_path / "run" / "metrics.jsonl")
    assert line["time"].endswith("+00:00")
    del line["time"]
    assert line == {"stage": "train", "step": 3, "epoch": 0.5, "loss": 0.25, "bad": None}


def test_resume_drops_what_will_be_written_again(tmp_path):
    log = Writer(tmp_path)
    for stage, step in [
        ("teacher", 10),
        ("teacher", 20),
        ("train", 5),
        ("train", 15),
        ("train", 25),
    ]:
        log.log(stage, step, {"key": "a"})
    log.log("train", 30, {"key": "another configuration"})
    log.resume("train", "a", 15)
    kept = [("teacher", 10), ("teacher", 20), ("train", 5), ("train", 15), ("train", 30)]
    assert steps(log.path) == kept
    log.log("train", 16, {"key": "a"})
    log.resume("teacher", "a", 0)
    assert steps(log.path) == [("train", 5), ("train", 15), ("train", 30), ("train", 16)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_torn_last_line_is_dropped(tmp_path):
    log = Writer(tmp_path)
    log.log("train", 1, {"loss": 1.0})
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + whole[: len(whole) // 2])
    assert steps(log.path) == [("train", 1)]
    log.resume("train", "a", 1)
    log.log("train", 2, {})
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2]


def test_a_damaged_line_is_named(tmp_path):
    log = Writer(tmp_path)
    log.log("train", 1, {})
    log.path.write_bytes(b"{broken\n" + log.path.read_bytes())
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1 is damaged"):
        log.resume("train", "a", 1)


def test_resume_without_a_file_is_fine(tmp_path):
    Writer(tmp_path).resume("train", "a", 0)
    assert read_log(tmp_path / "metrics.jsonl") == []


class Clock:
    """Stands in for the time module: every look takes a second."""

    now = 0.0

    def monotonic(self):
        self.now += 1.0
        return self.now


def test_plain_lines_without_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "time", Clock())
    console = io.StringIO()
    with Writer(tmp_path, console).progress("train", 100, 40, batch=20) as bar:
        for _ in range(60):
            bar.update(loss=0.5)
    lines = console.getvalue().splitlines()
    assert 3 <= len(lines) <= 10
    for part in ("train: ", "/100 steps", "loss 0.5000", "users/s", " left"):
        assert part in lines[0]
    assert lines[-1].startswith("train: 100/100 steps, loss 0.5000") and lines[-1].endswith("spent")


def test_time_left_does_not_count_compilation(tmp_path, monkeypatch):
    clock, console = Clock(), io.StringIO()
    monkeypatch.setattr(writer, "time", clock)
    with Writer(tmp_path, console).progress("train", 1000, batch=20) as bar:
        clock.now += 100
        bar.update(loss=0.5)
        for _ in range(20):
            bar.update(loss=0.5)
    first, second = console.getvalue().splitlines()[:2]
    assert "1/1000 steps" in first and first.endswith("spent")
    left = second.split(", ")[-1].removesuffix(" left")
    hours, minutes, _ = map(int, left.split(":"))
    assert hours * 60 + minutes < 60


def test_progress_of_other_units_and_short_work(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "time", Clock())
    console = io.StringIO()
    with Writer(tmp_path, console).progress("tokens", 3000, unit="items") as bar:
        bar.update(1000)
        bar.update(2000)
    assert "tokens: 3000/3000 items, " in console.getvalue()
    assert "items/s" in console.getvalue() and "loss" not in console.getvalue()
    before = console.getvalue()
    with Writer(tmp_path, console).progress("nothing", 0):
        pass
    assert console.getvalue() == before


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "time", Clock())
    console = Terminal()
    with Writer(tmp_path, console).progress("train", 2, batch=4) as bar:
        bar.update(loss=1.0)
        bar.update(loss=0.0)
    assert bar.loss == pytest.approx(0.9)
    assert "train:   0%|" in console.getvalue()
    assert "\rtrain: 2/2 steps, loss 0.9000" in console.getvalue()


def test_a_bar_does_not_count_compilation(tmp_path):
    bar = Writer(tmp_path, Terminal()).progress("train", 100)
    shown = bar._bar
    later = shown.start_t + 1000
    shown._time = lambda: later
    bar.update()
    assert shown.format_dict["elapsed"] == 0
    shown.close()


@pytest.mark.parametrize("console", [io.StringIO, Terminal])
def test_a_long_compilation_is_said(tmp_path, monkeypatch, console):
    """Where nothing is done yet after a while, once; and not where the first step was quick."""
    said = threading.Event()
    monkeypatch.setattr(writer, "SILENT_S", 0.0)
    monkeypatch.setattr(writer, "_write", lambda text, where=None: said.set() or lines.append(text))
    lines = []
    with Writer(tmp_path, console()).progress("train", 2, compiles=True) as bar:
        assert said.wait(30)
        bar.update()
        bar.update()
    assert [line for line in lines if "compiling" in line] == [
        "train: compiling, once for each shape; then it runs"
    ]
    monkeypatch.setattr(writer, "SILENT_S", 60.0)
    with Writer(tmp_path, console()).progress("train", 2, compiles=True) as bar:
        bar.update()
    assert bar._patience.finished.is_set()
    bar._compiling()  # too late
    assert len([line for line in lines if "compiling" in line]) == 1


def test_nothing_is_left_to_compile(tmp_path):
    assert Writer(tmp_path, io.StringIO()).progress("train", 2, 2, compiles=True)._patience is None


def test_results_go_to_standard_output(tmp_path, capsys):
    Writer(tmp_path).say("a table")
    assert capsys.readouterr() == ("a table\n", "")


def test_table_aligns_numbers_right_and_words_left():
    text = table(["model", "hr@10"], [["popularity", "0.1000"], ["llm_srec", ""], ["x", "10.5"]])
    assert text.splitlines() == [
        "model        hr@10",
        "----------  ------",
        "popularity  0.1000",
        "llm_srec         -",
        "x             10.5",
    ]


def test_table_without_rows_is_its_head():
    assert table(["a", "bb"], []).splitlines() == ["a  bb", "-  --"]
