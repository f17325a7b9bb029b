"""Two local processes are one program: the metrics of one process, and both stop when one is told to."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llmsrec_jax import pipeline, processes, reproduce, results
from llmsrec_jax.checkpoint import Lock
from llmsrec_jax.presets import PRESETS
from llmsrec_jax.writer import read_log
from tests.conftest import QUICK, REPO
from tests.systems import config_file, tiny
from tests.text import folders

PATIENCE_S = 600.0
LONG = {"train.epochs": 15, "train.patience": 0, "train.validations_per_epoch": 1}


class Program:
    """The launch script on one configuration, as a process group."""

    def __init__(self, folder: Path, workdir: Path, *flags: str, **changes: object):
        file = config_file(folder / "two.py", {**LONG, "mesh.devices": 0, **changes})
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "PYTHONPATH": str(REPO), "XLA_FLAGS": QUICK}
        self.process = subprocess.Popen(
            ["bash", REPO / "launch/local_multiprocess.sh", "2", f"--config={file}"]
            + [f"--workdir={workdir}", *flags],
            env={**env, "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self) -> tuple[int, str]:
        try:
            said, _ = self.process.communicate(timeout=PATIENCE_S)
        finally:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return self.process.returncode, said

    def members(self) -> list[int]:
        """The two Python processes, by number."""
        listed = subprocess.run(
            ["pgrep", "-g", str(self.process.pid), "-af", "llmsrec_jax.main"],
            capture_output=True,
            text=True,
        ).stdout
        rows = [line.split(maxsplit=1) for line in listed.splitlines()]
        return [int(pid) for pid, command in sorted(rows, key=lambda row: row[1][-1])]

    def wait_for_training(self, workdir: Path, step: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if any(
                line["stage"] == "train" and line["step"] >= step
                for line in read_log(workdir / "metrics.jsonl")
            ):
                return
            time.sleep(0.05)
        raise AssertionError(self.finish()[1])


def values(workdir: Path) -> dict[tuple, float]:
    names = ("model", "protocol", "slice", "metric", "config_hash")
    return {tuple(r[n] for n in names): r["value"] for r in results.read(workdir / "results.json")}


def losses(workdir: Path) -> list[tuple]:
    return [
        (line["stage"], line["step"], line["loss"]) for line in read_log(workdir / "metrics.jsonl")
    ]


def assert_same(workdir: Path, wanted: Path) -> None:
    assert values(workdir) == pytest.approx(values(wanted), rel=1e-6)
    for one, two in zip(losses(workdir), losses(wanted), strict=True):
        assert one[:2] == two[:2] and one[2] == pytest.approx(two[2], rel=1e-4)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("one")
    pipeline.run(tiny({**LONG, "mesh.devices": 2}), workdir)
    return workdir


@pytest.mark.slow
def test_two_processes(one_process, tmp_path):
    """SIGTERM at one of them stops both at one step; resumed by one or by two, all is as if nothing had happened."""
    workdir = tmp_path / "two"
    program = Program(tmp_path, workdir)
    program.wait_for_training(workdir, 10)
    os.kill(program.members()[1], signal.SIGTERM)
    code, said = program.finish()
    assert code == 130, said
    steps = re.findall(r"interrupted: signal 15: saved at step (\d+)", said)
    assert len(steps) == 2 and len(set(steps)) == 1
    (saved,) = workdir.glob(f"checkpoints/*/steps/{steps[0]}")
    assert saved.is_dir()

    shutil.copytree(workdir, tmp_path / "resumed_by_one")
    pipeline.run(tiny({**LONG, "mesh.devices": 2}), tmp_path / "resumed_by_one")
    assert_same(tmp_path / "resumed_by_one", one_process)

    code, said = Program(tmp_path, workdir).finish()
    assert code == 0, said
    assert_same(workdir, one_process)
    assert said.count("test set of tiny") == 1  # only one of them speaks


SHORT = {"train.epochs": 1, "train.max_users": 32, "train.validations_per_epoch": 1}
SHORT |= {"teacher.epochs": 2, "teacher.dropout": 0.0}  # its masks are drawn per part of a batch


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("short")
    pipeline.run(tiny({**LONG, **SHORT, "mesh.devices": 1}), workdir)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [("mesh.fsdp", 2), ("mesh.tensor", 2), ("mesh.mode", "pmap"), ("llm.item_store", "host")],
    ids=lambda setting: setting[0],
)
def test_a_backbone_of_two_processes(short, tmp_path, setting):
    """Neither has all of it (or, through pmap, both do); along `tensor` both bring the same rows; each keeps prefixes itself."""
    changes = SHORT | dict([setting])
    code, said = Program(tmp_path, tmp_path / "run", **changes).finish()
    assert code == 0, said
    assert_same(tmp_path / "run", short)


@pytest.mark.slow
def test_what_trains_before_in_two_processes(tmp_path):
    """One of them encodes the titles, both train A-LLMRec's stage 1 and CoLLM's LoRA on titles alone: the numbers of one process."""
    folder = folders.write(tmp_path / "bert")
    small = {"alignment.text": str(folder), "alignment.middle": 6, "alignment.epochs": 2}
    first = {"lora.rank": 2, "lora.targets": ("q_proj",), "lora.first": True}
    changes = {**SHORT, **PRESETS["a_llmrec"], **small, **first}
    pipeline.run(tiny({**LONG, **changes, "mesh.devices": 1}), tmp_path / "one")
    code, said = Program(tmp_path, tmp_path / "two", **changes).finish()
    assert code == 0, said
    assert_same(tmp_path / "two", tmp_path / "one")
    assert said.count("alignment: best ndcg@10") == 1


def cells(workdir: Path) -> dict[tuple[str, str], dict]:
    told = json.loads((workdir / "experiments" / "beyond_accuracy.json").read_text())
    return {(cell["row"], cell["column"]): cell for cell in told["cells"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("negatives", "ends"),
    [(20, contextlib.nullcontext()), (143, pytest.raises(ValueError, match="nothing of beyond_"))],
    ids=["done", "cannot be done"],
)
def test_an_experiment_of_two_processes(tmp_path, negatives, ends):
    """Cell by cell what one process finds, or why not; one of them writes and speaks."""
    changes = {**SHORT, "evaluate.negatives": negatives}
    with ends:
        reproduce.run(tiny({**LONG, **changes}), tmp_path / "one", "beyond_accuracy", seeds=(0,))
    flags = "--mode=reproduce", "--experiment=beyond_accuracy", "--seeds=0"
    code, said = Program(tmp_path, tmp_path / "two", *flags, **changes).finish()
    assert code == (0 if negatives == 20 else 2), said
    assert said.count("3 of 3 runs to do") == 1
    found, wanted = cells(tmp_path / "two"), cells(tmp_path / "one")
    for place, cell in wanted.items():
        assert found[place]["status"] == cell["status"] and found[place]["why"] == cell["why"]
        assert (found[place]["mean"] or 0) == pytest.approx(cell["mean"] or 0, rel=1e-6)
    done = [found[row, column]["status"] for row, column in found if row in ("SASRec", "LLM-SRec")]
    assert {*done} == {"done" if negatives == 20 else "not run"}


@pytest.mark.parametrize("error", ["is in use by", "absent.csv"])
def test_an_error_of_the_first_ends_all_at_once(tmp_path, error):
    """It alone locks the folder and reads the data; the others do not wait for what will not come."""
    files = {"data.source": "files", "data.files.interactions": str(tmp_path / "absent.csv")}
    with Lock(tmp_path / ("run" if error == "is in use by" else "free")):
        code, said = Program(tmp_path, tmp_path / "run", **files).finish()
    assert code == 2, said  # JAX would end those who wait for ever by a crash
    # not by line: nobody keeps two processes from writing into each other's
    assert len(re.findall("error: ", said)) == 2 and re.search(f"error: .*{error}", said), said
    assert said.count("the first process failed, and says why") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("on", "must be auto, off or HOST:PORT,N,I"),
        ("localhost,2,0", "must be auto, off or HOST:PORT,N,I"),
        ("localhost:1234,2,2", "of 2 processes the last is 1"),
    ],
)
def test_a_wrong_address_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        processes.connect(given)


def test_auto_without_a_cluster_says_what_to_do():
    """In a process of its own: jax joins others before it uses a device, or not at all."""
    code = "from llmsrec_jax import processes; processes.connect('auto')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    last = result.stderr.splitlines()[-1]
    assert re.search(r"ValueError: --distributed=auto finds no cluster .*HOST:PORT,N,I", last)


def test_one_process_waits_for_nobody():
    processes.connect("off")
    assert processes.first() and not processes.several() and not processes.preempted()
    assert processes.agree(True) and not processes.agree(False)
    assert processes.least(5) == 5 and processes.least(None) is None
    processes.barrier("here")
    with processes.led("alone") as leads:
        assert leads
    with pytest.raises(KeyError), processes.led("alone"):
        raise KeyError


@pytest.mark.parametrize(("others", "wanted"), [([7, 3], 3 << 20), ([7, -1], None)])
def test_the_least_of_several(monkeypatch, others, wanted):
    """In whole MiB; None where one process knows nothing."""
    monkeypatch.setattr(processes, "several", lambda: True)
    gather = lambda own: np.array([int(own), *others])
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gather)
    assert processes.least((5 << 20) + 1) == wanted
    assert processes.least(None) is None
