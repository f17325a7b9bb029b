"""Times of blocked calls: rounds over all jobs in turn, so that whatever disturbs the machine disturbs them alike."""

import contextlib
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.monitoring

COMPILED = "/jax/core/compile/backend_compile_duration"  # what jax.monitoring calls it


class Spread(NamedTuple):
    """Of repeated measurements."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(min(values), statistics.median(values), max(values))

    def scaled(self, factor: float) -> "Spread":
        return Spread(*(factor * value for value in self))


class Timed(NamedTuple):
    """One call: seconds on the clock, and seconds of all of this process's threads on the processor."""

    wall: float
    cpu: float


def timed(job: Callable[[], Any]) -> Timed:
    """`job` once; what it returns is waited for."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(job())
    return Timed(time.perf_counter() - wall, time.process_time() - cpu)


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Names of the programs that JAX compiles, or reads from its cache, in the meantime."""
    seen: list[str] = []

    def note(event: str, duration_secs: float, **about: Any) -> None:
        if event == COMPILED:
            seen.append(about.get("fun_name", "a program"))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def rounds(
    jobs: Mapping[Any, Callable[[], Any]], repeats: int, *, warm: bool = False
) -> dict[Any, list[Timed]]:
    """Every job once unmeasured, unless they are warm; then `repeats` rounds of every job once, in order.

    Raises:
      RuntimeError: a program was compiled in one of the rounds, so that its time is none of the job's.
    """
    for job in jobs.values() if not warm else ():
        timed(job)
    taken: dict[Any, list[Timed]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            with compilations() as compiled:
                taken[name].append(timed(job))
            if compiled:
                what = f"{', '.join(compiled)} compiled while {name!r} was timed"
                raise RuntimeError(f"{what}: not a time to keep")
    return taken


def total(taken: Mapping[Any, Sequence[Timed]], counts: Mapping[Any, float]) -> list[Timed]:
    """Per round: the jobs' times, each weighted by how often it occurs."""
    weighted = lambda r: [(counts[name], times[r]) for name, times in taken.items()]
    number = len(next(iter(taken.values())))
    return [
        Timed(sum(n * t.wall for n, t in weighted(r)), sum(n * t.cpu for n, t in weighted(r)))
        for r in range(number)
    ]


def spreads(times: Sequence[Timed]) -> dict[str, Spread]:
    return {
        "seconds": Spread.of([t.wall for t in times]),
        "cpu_seconds": Spread.of([t.cpu for t in times]),
    }


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times faster, round by round."""
    return Spread.of([s / f for s, f in zip(slow, fast, strict=True)])


def shapes_of(batch: Any) -> tuple[tuple[int, ...], ...]:
    """What a compiled program depends on."""
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


class Programs:
    """A jitted function, compiled ahead of time once per shape of its last argument: calling it never compiles."""

    def __init__(self, function: Any):
        self._function = function
        self._compiled: dict[Any, Any] = {}
        self.trace_seconds = self.compile_seconds = 0.0

    def add(self, *args: Any) -> None:
        key = shapes_of(args[-1])
        if key in self._compiled:
            return
        start = time.perf_counter()
        lowered = self._function.lower(*args)
        traced = time.perf_counter()
        self._compiled[key] = lowered.compile()
        self.trace_seconds += traced - start
        self.compile_seconds += time.perf_counter() - traced

    def __call__(self, *args: Any) -> Any:
        return self._compiled[shapes_of(args[-1])](*args)

    def summary(self) -> dict[str, Any]:
        """Programs, seconds until they were there, and the largest one's memory on a device, in bytes."""
        memory = [program.memory_analysis() for program in self._compiled.values()]
        worst = lambda field: max((getattr(m, field, 0) for m in memory if m), default=0)
        return {
            "programs": len(self._compiled),
            "trace_seconds": self.trace_seconds,
            "compile_seconds": self.compile_seconds,
            "arguments_bytes": worst("argument_size_in_bytes"),
            "temporary_bytes": worst("temp_size_in_bytes"),
        }


def peak_bytes() -> dict[str, Any]:
    """Most memory so far: of the busiest local device, where it says so, else of this process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    if peaks:
        return {"peak_bytes": max(peaks), "peak_of": "device"}
    high = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return {"peak_bytes": high, "peak_of": "process"}


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
