"""Kills, for tests of what goes on afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from llmsrec_jax.checkpoint import Checkpoints


class Killed(Exception):
    """Stands for a kill."""


@contextmanager
def killed(monkeypatch: pytest.MonkeyPatch, checkpoints: int) -> Iterator[list[int]]:
    """What is done inside is killed as soon as so many checkpoints are there; their steps."""
    save, seen = Checkpoints.save, []

    def counted(self, step, *rest):
        save(self, step, *rest)
        seen.append(step)
        if len(seen) == checkpoints:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", counted)
        with pytest.raises(Killed):
            yield seen
