"""Several processes as one program: JAX's own SPMD runtime. Every process runs the same code in the same order.

The first process alone writes files; the others wait for it, so the work folder must be one that all of them see.
With one process nothing here waits for anything.
"""

import contextlib
import itertools
import re
import socket
import zlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

ADDRESS = re.compile(r"([^\s,]+:\d+),(\d+),(\d+)")
# how long a process that ends waits for the others, which may be in a collective that it will never join; then all end
SHUTDOWN_S = 30
_calls = itertools.count(1)


def connect(distributed: str) -> None:
    """Joins the other processes; comes before anything that uses a device.

    `off` | `auto` (Cloud TPU, GKE, Slurm, Open MPI and Kubernetes tell JAX who takes part) | `HOST:PORT,N,I`: address of
    process 0, number of processes, number of this one.

    Raises:
      ValueError: none of these, or there is nothing to detect.
    """
    match = ADDRESS.fullmatch(distributed)
    if match:
        host, total, number = match[1], int(match[2]), int(match[3])
        if number >= total:
            raise ValueError(
                f"--distributed={distributed}: of {total} processes the last is {total - 1}"
            )
        jax.distributed.initialize(
            host, num_processes=total, process_id=number, shutdown_timeout_seconds=SHUTDOWN_S
        )
    elif distributed == "auto":
        try:
            jax.distributed.initialize(shutdown_timeout_seconds=SHUTDOWN_S)
        except ValueError as error:
            raise ValueError(
                f"--distributed=auto finds no cluster ({error}): use off, or HOST:PORT,N,I"
            ) from error
    elif distributed != "off":
        raise ValueError(f"--distributed={distributed}: must be auto, off or HOST:PORT,N,I")


def first() -> bool:
    """Whether this process writes files and speaks."""
    return jax.process_index() == 0


def several() -> bool:
    return jax.process_count() > 1


def barrier(name: str) -> None:
    """Returns when every process has come here."""
    multihost_utils.sync_global_devices(name)


def agree(value: bool) -> bool:
    """What the first process says, in all of them."""
    if not several():
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def least(size: int | None) -> int | None:
    """The smallest of all processes' sizes in bytes, in whole MiB where they are several; None where one knows none."""
    if not several():
        return size
    mib = multihost_utils.process_allgather(np.int32(-1 if size is None else size >> 20))
    smallest = int(np.min(mib))
    return None if smallest < 0 else smallest << 20


def on_this_machine() -> int:
    """How many of the processes, this one included, run on the same host."""
    if not several():
        return 1
    name = np.int32(zlib.crc32(socket.gethostname().encode()) >> 1)
    return int(np.sum(multihost_utils.process_allgather(name) == name))


@contextlib.contextmanager
def led(what: str) -> Iterator[bool]:
    """Around what the first process does while the others wait; yields whether this is the first one.

    Raises:
      ValueError: in the others, when the first one failed; it says why.
    """
    fine = False
    try:
        yield first()
        fine = True
    finally:
        went_well = agree(fine)
        if fine and not went_well:
            raise ValueError(f"{what}: the first process failed, and says why")


def preempted() -> bool:
    """Whether SIGTERM reached any process: true in all of them at the same call, of which all make equally many."""
    return several() and multihost_utils.reached_preemption_sync_point(next(_calls))
