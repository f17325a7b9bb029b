"""A work folder's stages on disk: which are finished, what an interrupted one has saved, and who may write.

  <workdir>/.lock                      held by the one run that may write
  <workdir>/<stage>/<key>/stage.json   appears, whole, when the stage is finished
  <workdir>/<stage>/<key>/steps/<n>/   orbax checkpoints of an iterative stage: the latest and the best;
                                       steps/index.json says which count

Every file appears whole or not at all, so a kill at any moment costs at most the work since the last checkpoint.
"""

import contextlib
import copy
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import shutil
import socket
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llmsrec_jax import config, processes
from llmsrec_jax.data import storage

VERSIONS = ("llmsrec_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


def write_json(path: Path, value: Any) -> None:
    """Writes the file whole or not at all; a reader sees the old content until then."""
    storage.write_text(path, json.dumps(value, indent=1))


def read_json(path: Path) -> Any:
    """The value written by write_json.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and run again") from error


class Stage:
    """One step of the pipeline and its artefact: a folder named by the settings that it depends on."""

    def __init__(self, workdir: Path, name: str, fields: dict[str, Any]):
        """`fields`: {dotted setting: value} of what changes the artefact."""
        self.name, self.fields = name, fields
        self.key = config.key(fields)
        self.folder = Path(workdir).resolve() / name / self.key
        self._file = self.folder / "stage.json"

    @property
    def finished(self) -> bool:
        """Whether the artefact is complete.

        Raises:
          ValueError: stage.json is damaged or was made by other settings.
        """
        return self._file.exists() and bool(self._record)

    @property
    def info(self) -> dict[str, Any]:
        """What `finish` was told."""
        return self._record["info"]

    def finish(self, info: dict[str, Any]) -> None:
        """Declares the artefact complete; `info` is JSON."""
        versions = {name: importlib.metadata.version(name) for name in VERSIONS}
        record = {"stage": self.name, "key": self.key, "fields": self.fields}
        write_json(self._file, {**record, "info": info, "versions": versions})
        self.__dict__.pop("_record", None)

    @cached_property
    def _record(self) -> dict[str, Any]:
        record = read_json(self._file)
        mine = json.loads(json.dumps(self.fields))
        if not isinstance(record, dict) or record.get("fields") != mine or "info" not in record:
            raise ValueError(
                f"{self._file} does not belong to this configuration: "
                f"delete {self.folder} and run again"
            )
        return record


def _digest(steps: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(steps).encode()).hexdigest()


def _named(tree: Any) -> dict[str, Any]:
    """{path: leaf} of a pytree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _describe(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps orbax's remarks on normal operation out of the console."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Checkpoints:
    """The latest and the best state of an iterative stage. `save` returns when its checkpoint is on disk.

    An index, written last, says which checkpoints count and what their files hold, so damage is found before
    orbax reads it. Orbax's own manager has no such index, and deletes the latest checkpoint where the best is kept.
    """

    def __init__(self, folder: Path, key: str):
        """`key` stands for the settings of the stage; checkpoints of another one are refused."""
        import orbax.checkpoint as ocp

        self.folder, self.key, self._ocp = Path(folder).resolve() / "steps", key, ocp
        self._index = self.folder / "index.json"
        self._steps = self._read_index()
        # each process reads for itself, and one writes
        alone = jax.process_index()
        options = ocp.options.MultiprocessingOptions(
            primary_host=alone, active_processes={alone}, barrier_sync_key_prefix=f"process{alone}"
        )
        with _quiet():
            self._checkpointer = ocp.Checkpointer(
                ocp.StandardCheckpointHandler(multiprocessing_options=options),
                multiprocessing_options=options,
            )
        if processes.first():
            if not self._index.exists():
                self._write_index()
            self._drop_unlisted()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        with _quiet():
            self._checkpointer.close()

    def save(
        self, step: int, state: Any, meta: dict[str, Any], metric: float | None = None
    ) -> None:
        """Saves a pytree of arrays (jax or numpy) and JSON `meta`; a higher `metric` is better, None was not measured.

        Raises:
          ValueError: the metric is not finite.
        """
        if metric is not None and not math.isfinite(metric):
            raise ValueError(
                f"the metric of step {step} is {metric}: it cannot select a checkpoint"
            )
        if processes.first():
            leaves = {name: np.asarray(x) for name, x in _named(jax.device_get(state)).items()}
            with _quiet():
                args = self._ocp.args.StandardSave(leaves)
                self._checkpointer.save(self.folder / str(step), args=args, force=True)
            self._steps[step] = {
                "metric": metric,
                "meta": meta,
                "leaves": {name: _describe(leaf) for name, leaf in leaves.items()},
                "files": self._files(step),
            }
            keep = {step, self._best_step()}
            self._steps = {n: record for n, record in self._steps.items() if n in keep}
            self._write_index()
            self._drop_unlisted()
        processes.barrier("checkpoint")

    def latest(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """(state, meta) of the last save, shaped and placed as `like`; None before the first one.

        Raises:
          ValueError: the checkpoint is damaged or belongs to another model or configuration.
        """
        return self._restore(max(self._steps), like) if self._steps else None

    def best(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """(state, meta) of the highest metric, the earliest of equals; None before the first metric.

        Raises:
          ValueError: as `latest`.
        """
        step = self._best_step()
        return None if step is None else self._restore(step, like)

    def _best_step(self) -> int | None:
        metrics = {step: record["metric"] for step, record in self._steps.items()}
        measured = [(-m, step) for step, m in metrics.items() if m is not None]
        return min(measured)[1] if measured else None

    def _files(self, step: int) -> dict[str, str]:
        """{path inside the checkpoint: digest of its content}."""
        folder = self.folder / str(step)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): storage.fingerprint(str(path)) for path in files}

    def _read_index(self) -> dict[int, dict[str, Any]]:
        if not self._index.exists():
            if any(self.folder.glob("[0-9]*")):
                raise self._refuse(self._index, "it is missing")
            return {}
        try:
            stored = read_json(self._index)
        except ValueError as error:
            raise self._refuse(self._index, "it is damaged") from error
        if not isinstance(stored, dict) or set(stored) != {"digest", "key", "steps"}:
            raise self._refuse(self._index, "it is not of this program")
        if stored["digest"] != _digest(stored["steps"]):
            raise self._refuse(self._index, "it is damaged (its digest differs)")
        if stored["key"] != self.key:
            raise self._refuse(
                self._index, f"it belongs to configuration {stored['key']}, not {self.key}"
            )
        return {int(step): record for step, record in stored["steps"].items()}

    def _write_index(self) -> None:
        steps = {str(step): record for step, record in self._steps.items()}
        write_json(self._index, {"digest": _digest(steps), "key": self.key, "steps": steps})

    def _drop_unlisted(self) -> None:
        """Removes what no longer counts, and what a kill left between a checkpoint and its place in the index."""
        listed = {self._index.name, *map(str, self._steps)}
        for path in self.folder.iterdir():
            if path.name not in listed:
                shutil.rmtree(path, ignore_errors=True)

    def _refuse(self, path: Path, why: object) -> ValueError:
        return ValueError(
            f"checkpoint {path} cannot be used: {why}. Delete {self.folder} to "
            "start this stage over, or put back the files it had"
        )

    def _restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        record, folder = self._steps[step], self.folder / str(step)
        wanted, stored = _named(like), record["leaves"]
        for name in sorted(set(wanted) ^ set(stored)):
            where = "missing from the checkpoint" if name in wanted else "unknown to this model"
            raise self._refuse(folder, f"{name} is {where}")
        for name, leaf in wanted.items():
            if stored[name] != _describe(leaf):
                raise self._refuse(folder, f"{name} is {stored[name]}, expected {_describe(leaf)}")
        found = self._files(step)
        for path, digest in record["files"].items():
            if found.get(path) != digest:
                why = "is damaged (its digest differs)" if path in found else "is missing"
                raise self._refuse(folder, f"{path} {why}")
        with _quiet():
            leaves = self._checkpointer.restore(folder, args=self._ocp.args.StandardRestore())
        placed = [_place(np.asarray(leaves[name]), leaf) for name, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(like), placed), copy.deepcopy(record["meta"])


def _place(array: np.ndarray, leaf: Any) -> Any:
    """On the devices of `leaf`; a numpy leaf stays numpy."""
    return jax.device_put(array, leaf.sharding) if isinstance(leaf, jax.Array) else array


class Lock:
    """One run per work folder. The kernel releases the lock when its process ends, however it ends."""

    def __init__(self, workdir: Path):
        self._path = Path(workdir) / ".lock"

    def __enter__(self) -> "Lock":
        """Raises a ValueError naming the holder when another run has the folder."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise ValueError(
                f"{self._path.parent} is in use by {holder}: wait for it, or choose another --workdir"
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
