"""A run that is killed, again and again, ends with the results of one that was not; signals, second runs, damage."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llmsrec_jax import loaders, pipeline, results
from llmsrec_jax.checkpoint import Lock
from llmsrec_jax.writer import read_log
from tests.systems import config_file, tiny

REPO = Path(__file__).parent.parent
PATIENCE_S = 600.0
SHORT = {"teacher.epochs": 6, "train.epochs": 2, "train.save_every_s": 0.05}
ENDLESS = {**SHORT, "train.epochs": 100_000, "train.patience": 0, "train.validations_per_epoch": 1}


class Runs:
    """Starts the program on one configuration, in a work folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        env = {**os.environ, "PYTHONPATH": str(REPO)}
        # its own, because a killed process may leave half of a compiled program
        env |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
        self.env = env | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def start(self, workdir: Path, settings: dict[str, object]) -> subprocess.Popen:
        file = config_file(self.folder / "tiny.py", settings)
        command = [sys.executable, "-m", "llmsrec_jax.main", f"--config={file}"]
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, workdir: Path, settings: dict[str, object]) -> None:
        process = self.start(workdir, settings)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors


def wait(until, process: subprocess.Popen) -> bool:
    """Whether it became true while the process ran."""
    end = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < end:
        if until():
            return True
        time.sleep(0.005)
    assert time.monotonic() < end
    return False


def owns(process: subprocess.Popen, workdir: Path) -> bool:
    lock = workdir / ".lock"
    return lock.exists() and f"process {process.pid} " in lock.read_text()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("faults") / "runs")


@pytest.fixture(scope="module")
def uninterrupted(runs) -> tuple[Path, float]:
    """Work folder, and seconds of work with every program compiled."""
    runs.finish(runs.folder / "first", SHORT)
    workdir = runs.folder / "uninterrupted"
    process = runs.start(workdir, SHORT)
    assert wait(lambda: owns(process, workdir), process)
    start = time.monotonic()
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert_same_run(workdir, runs.folder / "first")
    return workdir, time.monotonic() - start


def without(keys: set[str], rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in keys} for row in rows]


def assert_same_run(workdir: Path, wanted: Path) -> None:
    """The same results to the last bit, the same log, and nothing left over."""
    load = lambda folder: results.read(folder / "results.json")
    assert without({"git"}, load(workdir)) == without({"git"}, load(wanted))
    log = lambda folder: without({"time"}, read_log(folder / "metrics.jsonl"))
    assert log(workdir) == log(wanted)
    names = lambda folder: sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if "/steps/" not in str(p)
    )
    assert names(workdir) == names(wanted)
    steps = lambda folder: sorted(str(p.relative_to(folder)) for p in folder.glob("*/*/steps/*"))
    assert steps(workdir) == steps(wanted)
    with Lock(workdir):  # nobody holds it
        pass


def kill_and_go_on(runs: Runs, uninterrupted: tuple[Path, float], kills: int, seed: int) -> None:
    wanted, seconds = uninterrupted
    rng, workdir = np.random.default_rng(seed), runs.folder / f"killed-{kills}-{seed}"
    done = 0
    while done < kills:
        process = runs.start(workdir, SHORT)
        if wait(lambda process=process: owns(process, workdir), process):
            time.sleep(rng.uniform(0, seconds))
            process.kill()
        process.communicate(timeout=PATIENCE_S)
        if process.returncode == 0:  # there was less left to do than that
            assert_same_run(workdir, wanted)
            shutil.rmtree(workdir)
        else:
            assert process.returncode == -signal.SIGKILL
            done += 1
    runs.finish(workdir, SHORT)
    assert_same_run(workdir, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_five_kills(runs, uninterrupted, seed):
    kill_and_go_on(runs, uninterrupted, 5, seed)


@pytest.fixture(scope="module")
def stopped(runs) -> tuple[Path, str]:
    """(a work folder whose run got SIGTERM while it trained LLM-SRec, what that run said)"""
    workdir = runs.folder / "stopped"
    process = runs.start(workdir, ENDLESS)
    saved = lambda: any(p.name.isdigit() for p in workdir.glob("checkpoints/*/steps/*"))
    try:
        assert wait(saved, process), process.communicate()
        second = runs.start(workdir, ENDLESS)
        _, errors = second.communicate(timeout=PATIENCE_S)
        assert second.returncode == 2
        assert f"error: {workdir} is in use by process {process.pid} on" in errors
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 130
    return workdir, errors


def test_sigterm_saves_and_says_so(stopped):
    workdir, errors = stopped
    (message,) = (line for line in errors.splitlines() if line.startswith("interrupted"))
    step = int(message.removeprefix("interrupted: signal 15: saved at step "))
    (steps,) = workdir.glob("checkpoints/*/steps")
    assert max(int(p.name) for p in steps.glob("[0-9]*")) == step
    assert "the same command goes on from there" in errors
    assert not (workdir / "results.json").exists()


@pytest.fixture
def copy(stopped, tmp_path, monkeypatch) -> Path:
    """Of the stopped run; it must not be trained on."""

    def never(*args):
        raise AssertionError("trained on")

    monkeypatch.setattr(loaders, "stream", never)
    return Path(shutil.copytree(stopped[0], tmp_path / "copy"))


def latest(workdir: Path) -> Path:
    return max(workdir.glob("checkpoints/*/steps/[0-9]*"), key=lambda path: int(path.name))


def test_a_damaged_checkpoint_is_refused(copy):
    checkpoint = latest(copy)
    path = max(checkpoint.rglob("d/*"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"checkpoint {checkpoint} cannot be used: .*damaged"):
        pipeline.run(tiny(ENDLESS), copy)


def test_a_foreign_checkpoint_is_refused(copy):
    (steps,) = copy.glob("checkpoints/*/steps")
    (foreign,) = copy.glob("teacher/*/steps")
    shutil.rmtree(steps)
    shutil.copytree(foreign, steps)
    with pytest.raises(ValueError, match=f"checkpoint {steps}.* used: it belongs to configuration"):
        pipeline.run(tiny(ENDLESS), copy)
