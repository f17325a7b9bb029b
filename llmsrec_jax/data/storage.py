"""Arrays and records on disk: every file appears whole or not at all, and a damaged one is named when read."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """An uncompressed .npz, written atomically."""
    with _replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz. A missing or damaged file is a ValueError naming it."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: run the prepare stage again") from None
    except Exception as error:  # a damaged archive raises almost anything, struct.error included
        raise ValueError(damaged(path, error)) from error


def write_records(path: Path, records: list[dict[str, Any]]) -> None:
    """One JSON object per line, written atomically."""
    with _replacing(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of write_records. A missing or damaged file is a ValueError naming it."""
    try:
        return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: run the prepare stage again") from None
    except (OSError, ValueError) as error:
        raise ValueError(damaged(path, error)) from error


def write_text(path: Path, text: str) -> None:
    """A text file, written atomically."""
    with _replacing(path) as file:
        file.write(text.encode())


def fingerprint(path: str) -> str:
    """Digest of a file's content; of one that is not there, its path."""
    if not Path(path).is_file():
        return path
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(path: Path, why: object) -> str:
    """The message for a file that cannot be used."""
    return f"{path} is damaged ({why}): delete it and run the prepare stage again"


class _replacing:
    """A binary file that takes the place of `path` only when it is complete and on disk."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.new")

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.temporary, "wb")
        return self.file

    def __exit__(self, kind, error, trace):
        try:
            with self.file:
                if kind is None:
                    self.file.flush()
                    os.fsync(self.file.fileno())
            if kind is None:
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)  # of a write that failed: the disk may be full
