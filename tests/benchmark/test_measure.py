"""A run from the command line: every section measured and written, nothing but the fast path imported, nothing lost."""

import json
import os
import subprocess
import sys

import jax
import pytest

from llmsrec_jax import config
from llmsrec_jax.benchmark import made, measure, report, stages, table9, work
from llmsrec_jax.benchmark.measure import Options
from llmsrec_jax.benchmark.system import System
from llmsrec_jax.presets import PRESETS
from tests.benchmark.conftest import SMALL, small
from tests.conftest import REPO
from tests.systems import TINY

FIELDS = {  # of every stage that runs compiled programs
    *("seconds", "cpu_seconds", "rows_per_s", "tokens_per_s", "live_tokens_per_s"),
    *("useful_flops", "share_of_peak", "programs", "compile_seconds", "peak_bytes"),
}
HEAVY = {
    *("grain", "tokenizers", "polars", "orbax", "tensorflow_datasets", "transformers", "torch"),
    *("huggingface_hub", "tqdm", "tensorstore"),
}
PROGRAM = """
import atexit, runpy, sys
atexit.register(lambda: print("IMPORTED", *sorted({name.partition(".")[0] for name in sys.modules})))
runpy.run_module("llmsrec_jax.benchmark", run_name="__main__")
"""


def run(*args: str) -> subprocess.CompletedProcess[str]:
    given = [f"--config.{name}={value}" for name, value in {**TINY, **SMALL}.items()]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, f"--config={REPO}/configs/scientific.py", *given, *args],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )


def test_a_run_measures_everything_on_the_fast_path(tmp_path):
    result = run("--repeats=2", f"--out={tmp_path}", "--config.llm.item_store=hbm")
    assert result.returncode == 0, result.stderr
    imported = result.stdout.rpartition("IMPORTED")[2].split()
    assert "flax" in imported and not HEAVY & set(imported)
    found = json.loads((tmp_path / "benchmark.json").read_text())
    titles = {name: title for name, title in report.TITLES.items() if name != "alignment"}
    assert {"environment", "config", "peak", "data", *titles, "table9"} <= set(found)
    for stage in titles:
        assert FIELDS <= set(found[stage]), stage
        assert 0 < found[stage]["seconds"]["min"] <= found[stage]["seconds"]["max"]
        assert 0 < found[stage]["share_of_peak"] < 1
    ours = [row for name, row in found["table9"].items() if name.startswith("here")]
    assert len(ours[0]) == 4 and all(minutes > 0 for minutes in ours[0])
    shown = (tmp_path / "benchmark.md").read_text()
    assert shown in result.stdout
    train = found["train"]
    counted = train["arguments_bytes"] + train["temporary_bytes"]
    assert train["estimated_bytes"] == pytest.approx(counted, rel=0.15)
    assert "memory per device: " in result.stdout and "estimated beforehand" in shown
    assert found["store"]["bytes"] > 0 and found["store"]["wall"] > 0
    assert "Item prefixes kept (llm.item_store=hbm): " in shown
    for word in (*titles.values(), "paper, LLM-SRec, A6000 | 186 | 34.2", "Matmul peak"):
        assert word in shown


def test_an_interruption_loses_nothing_that_was_measured(tmp_path, monkeypatch):
    def interrupted(bench):
        raise KeyboardInterrupt

    data = {name: 1.0 for name in ("planning_seconds", "users_per_s")}
    data |= {f"{kind}tokens_per_step": 1.0 for kind in ("", "live_", "padded_")}
    data["minutes_per_epoch"] = {"min": 1.0, "median": 2.0, "max": 3.0}
    monkeypatch.setattr(measure, "STAGES", {"data": lambda bench: data, "train": interrupted})
    with pytest.raises(KeyboardInterrupt):
        measure.run(small(), tmp_path, Options(("data", "train"), (), 1, 1))
    assert json.loads((tmp_path / "benchmark.json").read_text())["data"] == data
    assert "2 (1 .. 3) minutes per epoch" in (tmp_path / "benchmark.md").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--stages=data,trian"], "'trian' should be of peak, data, train"),
        (["--stages=trian"], "did you mean train?"),
        (["--vs=jax"], "should be of padded, torch"),
        (["--repeats=0"], "--repeats=0"),
        (["--config.train.lrr=3"], "did you mean train.lr"),
    ],
)
def test_a_mistake_gives_one_line(args, message):
    result = run(*args)
    assert result.returncode == 2 and message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_comparing_without_pytorch_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(measure.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs PyTorch"):
        measure.run(small(), tmp_path, Options(("peak",), ("torch",), 1, 1))
    assert not list(tmp_path.iterdir())


def test_prompts_that_the_other_side_does_not_know_are_refused(tmp_path):
    cfg = config.apply(small(), {"prompts.user_repr": True})
    with pytest.raises(ValueError, match="leave out prompts.user_repr"):
        measure.run(cfg, tmp_path, Options(("peak",), ("torch",), 1, 1))


@pytest.mark.parametrize("name", ["gru4rec", "bert4rec"])
def test_any_teacher_is_measured_alone(tmp_path, name):
    """By the batches and the step of its training."""
    cfg = config.apply(small(), PRESETS[name])
    found = measure.run(cfg, tmp_path, Options(("teacher",), (), 1, 1))
    assert FIELDS <= set(found["teacher"]) and "users" not in found
    assert found["teacher"]["useful_flops"] > 0 and found["teacher"]["programs"] > 0
    assert found["config"]["teacher"]["model"] == name


def test_stage_1_where_there_is_none_is_refused(tmp_path):
    """Or where its text encoder is not here: before anything else is measured."""
    for changes, why in (({}, "name alignment.text"), ({"alignment.text": "nowhere"}, "no such")):
        cfg = config.apply(small(), changes)
        with pytest.raises(ValueError, match=why):
            measure.run(cfg, tmp_path, Options(("train", "alignment"), (), 1, 1))


def test_comparing_what_is_quantised_is_refused(tmp_path):
    cfg = config.apply(small(), {"llm.quant": "w8"})
    with pytest.raises(ValueError, match="llm.quant='w8' has others: leave one out"):
        measure.run(cfg, tmp_path, Options(("peak",), ("padded",), 1, 1))


def test_quantised_weights_are_smaller_arguments(tmp_path):
    """By what the weights of the layers are smaller, and the report says what they are."""
    took, held = {}, {}
    for mode in ("none", "w8"):
        system = System(config.apply(small(), {"llm.quant": mode}), made.shape(small().data))
        one = stages.Pass.of(stages.Bench(system, 1, print), "items")
        took[mode] = one.programs.summary()["arguments_bytes"]
        held[mode] = sum(leaf.nbytes for leaf in jax.tree.leaves(system.frozen.llama))
        found = {"environment": measure.environment(system)}
        assert ("float32 w8 on" in report.markdown(found)) == (mode == "w8")
    assert took["none"] - took["w8"] == held["none"] - held["w8"] > 0


def test_table_9_is_the_work_over_the_rates(bench):
    """Twice the rate, half the minutes; a rate that is missing leaves its cells empty."""
    projection = table9.Projection(bench.system)
    rates = lambda **found: {name: {"useful_flops_per_s": rate} for name, rate in found.items()}
    slow, fast = (projection.rows(rates(train=rate, items=1e9)) for rate in (1e9, 2e9))
    name = f"here, {bench.system.cfg.llm.path}"
    assert slow[name][0] == 2 * fast[name][0] > 0
    assert slow[name][1] is slow[name][3] is None
    assert set(slow) == {name, "the same rates, llama-3.2-3b"}
    assert projection.rows({}) == {}


def test_the_papers_work():
    """Operations for Scientific and a 3B, against an independent count with slightly other lengths (peta: 132.8, 25.7)."""
    cfg = config.apply(config.Config(), {"llm.path": "random:llama-3.2-3b"})
    system = System(cfg, made.SHAPES["Industrial_and_Scientific"])
    sizes = work.Sizes(cfg, system.llama)
    (found,) = table9.Projection(system)._of("Industrial_and_Scientific", [sizes])
    assert found.train and found.users and found.items
    assert found.train.whole == pytest.approx(132.8e15, rel=0.1)
    assert found.users.whole + found.items.whole == pytest.approx(25.7e15, rel=0.1)
    assert found.train.flops < 0.8 * found.train.whole
