"""The command a user types, against a real host: servers that die, kills, second runs, damaged files."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llmsrec_jax import pipeline
from llmsrec_jax.config import apply
from llmsrec_jax.data.amazon_reviews_2023 import download
from tests.data.amazon_reviews_2023 import made
from tests.systems import tiny

REPO = Path(__file__).parents[3]
META = f"raw/meta_categories/meta_{made.CATEGORY}.jsonl.gz"
BLOCK = 1 << 20  # a download is on disk in steps of this size


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A host's folder: 130 items, enough for 99 negatives, and metadata of more than a block."""
    records, rng = made.metadata(130), np.random.default_rng(0)
    for record in records:
        record["description"] = [rng.bytes(8000).hex()]
    return made.publish(tmp_path_factory.mktemp("host"), made.users_rows(120, 130), records)


def start(folder: Path, url: str, *more: str, stop_at: str = "") -> subprocess.Popen:
    """The command, in a folder with a cache of its own. At `stop_at` (MODULE:NAME) it says so, and waits for ever."""
    folder.mkdir(exist_ok=True)
    program = ("-c", STOPPING.format(place=stop_at)) if stop_at else ("-m", "llmsrec_jax.main")
    config = f"--config={REPO / 'configs' / 'scientific.py'}:smoke"
    return subprocess.Popen(
        [sys.executable, *program, config, f"--config.data.base_url={url}", *more],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO), "XDG_CACHE_HOME": str(folder / "cache")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


STOPPING = """
import functools, importlib, os, time
from llmsrec_jax import main

def stop(*given, **options):
    os.write(1, b"here\\n")
    time.sleep(600)

module, _, name = {place!r}.partition(":")
*owners, name = name.split(".")
setattr(functools.reduce(getattr, owners, importlib.import_module(module)), name, stop)
main.app.run(main.main, flags_parser=main.parse)
"""


def prepare(folder: Path, url: str, *more: str) -> tuple[int, str, str]:
    """Exit status, and what was printed."""
    process = start(folder, url, "--mode=prepare", *more)
    shown, errors = process.communicate(timeout=120)
    return process.returncode, shown, errors


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def downloads(folder: Path) -> list[str]:
    """Names of what is in the cache's downloads."""
    return sorted(path.name for path in folder.rglob("downloads/**/*") if path.is_file())


WHOLE = [f"{made.CATEGORY}.csv.gz", f"meta_{made.CATEGORY}.jsonl.gz"]


def results(folder: Path) -> dict[str, str]:
    """Digests of everything that `prepare` leaves for later stages; the stages must be finished."""
    run = folder / "runs/scientific-smoke"
    stages = [*run.glob("data/*/stage.json"), *run.glob("candidates/*/stage.json")]
    files = [path for stage in stages for path in stage.parent.iterdir() if path != stage]
    assert (len(stages), len(files)) == (3, 4)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def gets(host: made.Host) -> list[tuple[str, str | None]]:
    return [
        (path.rpartition("/")[2], given) for method, path, given in host.requests if method == "GET"
    ]


@pytest.fixture(scope="module")
def quiet_day(root, tmp_path_factory) -> Path:
    """A folder where nothing went wrong; its host is gone."""
    folder = tmp_path_factory.mktemp("quiet")
    with made.serving(root) as host:
        code, shown, errors = prepare(folder, host.url)
        assert code == 0, errors
        assert shown.rstrip().endswith("items of the source without a title")  # the data card
        assert gets(host) == [(name, None) for name in WHOLE]
        host.requests.clear()
        code, again, _ = prepare(folder, host.url, "--workdir=another", "--config.seed=1")
        assert (code, host.requests) == (0, [])  # another run downloads nothing
        assert again.splitlines()[-10:] == shown.splitlines()[-10:]
    return folder


@pytest.mark.slow
def test_the_whole_command(root, tmp_path):
    """Downloads, verifies, prepares, trains and evaluates: on the two devices of conftest.py."""
    with made.serving(root) as host:
        process = start(tmp_path, host.url)
        shown, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        assert gets(host) == [(name, None) for name in WHOLE]
        host.requests.clear()
        assert prepare(tmp_path, host.url)[0] == 0 and host.requests == []
    assert "llm_srec" in shown and (tmp_path / "runs/scientific-smoke/results.json").is_file()


def test_a_host_that_dies_half_way_and_comes_back(root, quiet_day, tmp_path):
    """The run waits and goes on where it was."""
    with made.serving(root) as host:
        host.die_after = 5000
        process = start(tmp_path, host.url, "--mode=prepare")
        assert host.closed.wait(60)
        with made.serving(root, port=host.port) as again:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
            assert gets(again) == [(WHOLE[0], "bytes=5000-"), (WHOLE[1], None)]
    assert results(tmp_path) == results(quiet_day)
    assert downloads(tmp_path) == WHOLE


def test_a_host_that_dies_for_good(root, tmp_path, monkeypatch):
    """The run stops, uses nothing of what came, and a later one goes on from there."""
    monkeypatch.setattr(download, "PAUSES_S", (0.01,))
    changes = {"data.source": "amazon", "data.category": made.CATEGORY}
    cfg = apply(tiny(), {**changes, "data.cache_dir": str(tmp_path / "cache")})
    with made.serving(root) as host:
        cfg.data.base_url, host.die_after = host.url, 5000
        with pytest.raises(ValueError, match="5.0 kB of .* are here: the same command goes on"):
            pipeline.run(cfg, tmp_path / "run", "prepare")
    part = f"{WHOLE[0]}.part"
    assert downloads(tmp_path) == [part, f"{part}.json"]
    assert not list(tmp_path.rglob("prepared")) and not list(tmp_path.rglob("stage.json"))
    with made.serving(root, port=host.port) as again:
        pipeline.run(cfg, tmp_path / "run", "prepare")
        assert gets(again) == [(WHOLE[0], "bytes=5000-"), (WHOLE[1], None)]
    assert downloads(tmp_path) == WHOLE and list(tmp_path.rglob("stage.json"))


MOMENTS = {  # one kill after the other, in one folder
    "the interactions are read": "llmsrec_jax.data.amazon_reviews_2023.parse:items",
    "the users are half written": "tensorflow_datasets.core.writer:Writer.finalize",
    "the items of the run are written": "llmsrec_jax.data.storage:write_arrays",
}


def test_kill_9_at_every_turn(root, quiet_day, tmp_path):
    with made.serving(root) as host:
        host.block_s = 0.005  # 16 kB at a time: a third of a second for a block
        process = start(tmp_path, host.url, "--mode=prepare")
        [part] = wait_for(lambda: [p for p in tmp_path.rglob(f"{WHOLE[1]}.part") if size(p)])
        kill(process)
        there = size(part)
        assert downloads(tmp_path) == [WHOLE[0], part.name, f"{part.name}.json"]
        host.requests.clear()
        host.block_s = 0.0
        for moment in MOMENTS.values():
            process = start(tmp_path, host.url, "--mode=prepare", stop_at=moment)
            assert process.stdout
            assert "here\n" in iter(process.stdout.readline, ""), moment
            kill(process)
            assert not list(tmp_path.rglob("stage.json"))
        code, _, errors = prepare(tmp_path, host.url)
        assert code == 0, errors
        assert there == BLOCK and gets(host) == [(WHOLE[1], f"bytes={BLOCK}-")]
    assert results(tmp_path) == results(quiet_day)
    assert downloads(tmp_path) == WHOLE and not list(tmp_path.rglob("*incomplete*"))


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def wait_for(found):
    until = time.monotonic() + 60
    while not (value := found()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return value


def test_damaged_files_are_named(root, quiet_day, tmp_path):
    """Same size and other bytes, then half of it: from the network, and in a folder of the user."""
    whole = (root / META).read_bytes()
    broken = bytearray(whole)
    broken[len(broken) // 2] ^= 1
    other = tmp_path / "host"
    (other / META).parent.mkdir(parents=True)
    (other / "benchmark").symlink_to(root / "benchmark")
    (other / META).write_bytes(broken)
    with made.serving(other) as host:
        code, _, errors = prepare(tmp_path, host.url)
        assert code == 2 and f"{WHOLE[1]} is truncated or damaged (" in errors.splitlines()[-1]
        assert downloads(tmp_path) == WHOLE[:1]
        (other / META).write_bytes(whole[: len(whole) // 2])
        by_hand = f"--config.data.manual_dir={other}"
        code, _, errors = prepare(tmp_path, host.url, by_hand)
    assert code == 2 and f"{other / META} is truncated or damaged (Compressed file" in errors
    assert not list(tmp_path.rglob("stage.json")) and not list(tmp_path.rglob("report.json"))
    (other / META).write_bytes(whole)
    assert prepare(tmp_path, host.url, by_hand)[0] == 0  # no host is there
    assert results(tmp_path) == results(quiet_day)
