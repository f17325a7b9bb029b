"""Stages, checkpoints that survive kills and name damage, and the lock."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmsrec_jax import config
from llmsrec_jax.checkpoint import Checkpoints, Lock, Stage, read_json, write_json


class State(NamedTuple):
    params: dict
    step: jax.Array


def state(step: int, width: int = 3, **extra) -> State:
    rng = np.random.default_rng(step)
    params = {
        "w": jnp.asarray(rng.normal(size=(4, width)), jnp.float32),
        "half": jnp.full((5,), step, jnp.bfloat16),
        "host": np.arange(step, step + 3, dtype=np.int32),
        **extra,
    }
    return State(params, jnp.int32(step))


def assert_same(found: State, wanted: State) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert type(a) is type(b) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def kept(folder: Path) -> list[str]:
    """Names of the checkpoints; nothing else is there but the index."""
    names = {p.name for p in (folder / "steps").iterdir()}
    return sorted(names - {"index.json"})


def test_nothing_saved_yet(tmp_path):
    with Checkpoints(tmp_path, "key") as checkpoints:
        assert checkpoints.latest(state(0)) is None
        assert checkpoints.best(state(0)) is None


def test_the_latest_and_the_best_are_kept(tmp_path):
    metrics = {1: None, 2: 0.1, 3: 0.5, 4: None, 5: 0.5, 6: 0.2}
    with Checkpoints(tmp_path, "key") as checkpoints:
        for step, metric in metrics.items():
            checkpoints.save(step, state(step), {"step": step}, metric)
        assert kept(tmp_path) == ["3", "6"]  # the earliest of equals
    with Checkpoints(tmp_path, "key") as checkpoints:
        found, meta = checkpoints.latest(state(0))
        assert_same(found, state(6))
        assert meta == {"step": 6}
        found, meta = checkpoints.best(state(0))
        assert_same(found, state(3))
        assert meta == {"step": 3}
        checkpoints.save(7, state(7), {}, 0.6)
        assert kept(tmp_path) == ["7"]


def test_without_a_metric_there_is_no_best(tmp_path):
    with Checkpoints(tmp_path, "key") as checkpoints:
        checkpoints.save(1, state(1), {})
        assert checkpoints.best(state(0)) is None


def test_a_metric_that_is_no_number_is_refused(tmp_path):
    with Checkpoints(tmp_path, "key") as checkpoints:
        with pytest.raises(ValueError, match="metric of step 1 is nan"):
            checkpoints.save(1, state(1), {}, float("nan"))


def test_leaves_go_back_to_their_devices(tmp_path):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.NamedSharding(mesh, jax.P())
    with Checkpoints(tmp_path, "key") as checkpoints:
        checkpoints.save(1, jax.device_put(state(1), everywhere), {})
        found, _ = checkpoints.latest(jax.device_put(state(0), everywhere))
    assert found.params["w"].sharding == everywhere
    assert_same(jax.device_get(found), jax.device_get(state(1)))


def test_the_console_stays_quiet(tmp_path, capfd):
    for step in (1, 2):
        with Checkpoints(tmp_path, "key") as checkpoints:
            checkpoints.latest(state(0))
            checkpoints.save(step, state(step), {}, 0.5)
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, "key") as checkpoints:
        checkpoints.save(4, state(4), {"step": 4}, 0.5)
    return folder


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (lambda: state(0, width=4), r"params.w is float32\[4, 3\], expected float32\[4, 4\]"),
        (
            lambda: state(0, half=jnp.zeros(5)),
            r"params.half is bfloat16\[5\], expected float32\[5\]",
        ),
        (lambda: state(0, more=jnp.zeros(1)), "params.more is missing from the checkpoint"),
        (lambda: State({}, jnp.int32(0)), "params.half is unknown to this model"),
    ],
)
def test_another_model_is_refused(saved, like, message):
    with Checkpoints(saved, "key") as checkpoints:
        with pytest.raises(ValueError, match=message) as error:
            checkpoints.latest(like())
    assert str(saved / "steps" / "4") in str(error.value)


def test_another_configuration_is_refused(saved):
    with pytest.raises(ValueError, match="belongs to configuration key, not other"):
        Checkpoints(saved, "other")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("part", ["4", "index.json"])
def test_damage_is_named(saved, tmp_path, damage, part):
    shutil.copytree(saved, tmp_path / "run")
    steps = tmp_path / "run" / "steps"
    files = [p for p in [steps / part, *(steps / part).rglob("*")] if p.is_file()]
    damage(max(files, key=lambda p: p.stat().st_size))
    with pytest.raises(
        ValueError, match=f"steps/{part} cannot be used: .*Delete .*steps to start"
    ) as error:
        with Checkpoints(tmp_path / "run", "key") as checkpoints:
            checkpoints.latest(state(0))
    assert len(str(error.value)) < 1000


def test_every_byte_of_the_index_counts(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    index = tmp_path / "run" / "steps" / "index.json"
    index.write_text(index.read_text().replace('"metric": 0.5', '"metric": 0.6'))
    with pytest.raises(ValueError, match=r"index.json cannot be used: it is damaged \(its digest"):
        Checkpoints(tmp_path / "run", "key")


def test_the_files_of_another_checkpoint_are_damage_even_where_they_are_whole(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    with Checkpoints(tmp_path / "other", "key") as checkpoints:
        checkpoints.save(4, state(5), {}, 0.5)
    shutil.rmtree(tmp_path / "run" / "steps" / "4")
    shutil.copytree(tmp_path / "other/steps/4", tmp_path / "run/steps/4")
    with Checkpoints(tmp_path / "run", "key") as checkpoints:
        with pytest.raises(ValueError, match=r"is (damaged \(its digest differs\)|missing)"):
            checkpoints.latest(state(0))


def test_what_a_kill_left_is_cleaned(saved, tmp_path):
    """A half-written checkpoint, a whole one that did not get into the index, and a half-deleted one."""
    shutil.copytree(saved, tmp_path / "run")
    shutil.copytree(saved / "steps" / "4", tmp_path / "run/steps/5.orbax-checkpoint-tmp")
    shutil.copytree(saved / "steps" / "4", tmp_path / "run/steps/6")
    (tmp_path / "run" / "steps" / "3").mkdir()
    with Checkpoints(tmp_path / "run", "key") as checkpoints:
        assert kept(tmp_path / "run") == ["4"]
        assert_same(checkpoints.latest(state(0))[0], state(4))
        checkpoints.save(6, state(6), {}, 0.1)
    assert kept(tmp_path / "run") == ["4", "6"]


SAVER = """
import sys, itertools, numpy as np
from pathlib import Path
from llmsrec_jax.checkpoint import Checkpoints
make = lambda step: {f"leaf{i}": np.full((100, 100), step * i, np.float32) for i in range(20)}
with Checkpoints(Path(sys.argv[1]), "key") as checkpoints:
    found = checkpoints.latest(make(0))
    first = found[1]["step"] if found else 0
    if found:
        np.testing.assert_array_equal(found[0]["leaf3"], make(first)["leaf3"])
    print("resumed", first, flush=True)
    for step in itertools.count(first + 1):
        checkpoints.save(step, make(step), {"step": step}, (step * 7 % 13) / 13)
        print("saved", step, flush=True)
"""


def test_kill_at_any_moment(tmp_path):
    """What was reported as saved is there after kill -9, whole; the next process goes on from it."""
    reported = 0
    for delay in (0.0, 0.013, 0.031, 0.057):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout is not None
            word, first = process.stdout.readline().split()
            assert word == "resumed" and int(first) in (reported, reported + 1)
            for _ in range(4):
                reported = int(process.stdout.readline().split()[1])
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
            for line in process.stdout:
                reported = int(line.split()[1])
        assert 1 <= len([p for p in (tmp_path / "steps").iterdir() if p.name.isdigit()]) <= 4


def stage(workdir: Path, **changes) -> Stage:
    cfg = config.apply(config.Config(), {f"train.{k}": v for k, v in changes.items()})
    return Stage(workdir, "train", config.subset(cfg, ("seed", "train")))


def test_a_stage_is_finished_once_it_says_so(tmp_path):
    one = stage(tmp_path)
    assert one.folder == tmp_path / "train" / one.key
    assert not one.finished and not one.folder.exists()
    one.finish({"steps": 7})
    assert one.finished and stage(tmp_path).finished
    assert stage(tmp_path).info == {"steps": 7}
    other = stage(tmp_path, lr=1.0)
    assert not other.finished and other.key != one.key
    record = read_json(one.folder / "stage.json")
    assert record["fields"]["train.lr"] == 1e-4
    assert set(record["versions"]) >= {"jax", "numpy"}


def test_a_foreign_or_damaged_stage_is_refused(tmp_path):
    one, other = stage(tmp_path), stage(tmp_path, lr=1.0)
    one.finish({})
    shutil.copytree(one.folder, other.folder)
    with pytest.raises(ValueError, match="does not belong to this configuration: delete"):
        _ = other.finished
    cut(other.folder / "stage.json")
    with pytest.raises(ValueError, match="stage.json is damaged"):
        _ = stage(tmp_path, lr=1.0).finished


def test_json_files_appear_whole(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": [1, None]})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": [1, None]}
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent.json")


def test_the_second_run_is_refused(tmp_path):
    with Lock(tmp_path / "run"):
        with pytest.raises(ValueError, match=rf"run is in use by process {os.getpid()} on .+"):
            with Lock(tmp_path / "run"):
                pass
    with Lock(tmp_path / "run"):  # free again
        pass


def test_the_lock_of_a_killed_run_is_free(tmp_path):
    script = """
import sys, time
from pathlib import Path
from llmsrec_jax.checkpoint import Lock
with Lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"in use by process {process.pid} on "):
            with Lock(tmp_path):
                pass
        os.kill(process.pid, signal.SIGKILL)
    with Lock(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()


def test_stage_fields_survive_json(tmp_path):
    fields = config.subset(config.Config(), ("evaluate",))
    Stage(tmp_path, "evaluate", fields).finish({})
    assert Stage(tmp_path, "evaluate", fields).finished  # tuples become lists in JSON
