"""One function per stage of a run: what it takes on this machine, as plain numbers.

A batch's cost depends on its static shape alone. So every shape is compiled first and timed in rounds, and a whole epoch, or
a whole pass over items and users, is the sum over its batches of the times of their shapes.
"""

import collections
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmsrec_jax import loaders
from llmsrec_jax.benchmark import tasks, timing, work
from llmsrec_jax.benchmark.padded import Whole
from llmsrec_jax.benchmark.system import System
from llmsrec_jax.benchmark.timing import Programs, Spread
from llmsrec_jax.cf_training import TeacherJob
from llmsrec_jax.title_loaders import TitleBatches

# batches built to see which shapes an epoch consists of
TRAIN_BATCHES, TEACHER_BATCHES = 200, 50
MATMUL_SIZES = (512, 1024, 2048, 4096, 8192, 16384)
ENOUGH_S = 0.02  # a product that takes this long is not dominated by its launch
MINUTE = 60.0

Say = Callable[[str], None]


@dataclass
class Bench:
    """What the stages share: the system, how often to repeat, and the shapes of an epoch."""

    system: System
    repeats: int
    say: Say
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def peak(self) -> float:
        """Measured matmul operations per second, all devices together."""
        if "peak" not in self.results:
            self.results["peak"] = peak(self)
        return self.results["peak"]["flops_per_s"]

    @cached_property
    def sizes(self) -> work.Sizes:
        return work.Sizes(self.system.cfg, self.system.llama)

    @cached_property
    def task(self) -> tasks.Task:
        return tasks.of(self.system)

    @property
    def batches(self) -> loaders.LLMBatches | TitleBatches:
        return self.task.batches

    def whole(self, step: int) -> Whole:
        """What the batch of a step is made of, where vectors are asked for."""
        assert isinstance(self.task, tasks.Retrieval)
        return self.task.whole(step)

    @cached_property
    def work_of_epoch(self) -> work.Work:
        return self.epoch.total(lambda step: self.task.step(step, self.sizes))

    @cached_property
    def epoch(self) -> "Epoch":
        return Epoch.of(self.batches, self.batches.order.steps_per_epoch, TRAIN_BATCHES)


@dataclass(frozen=True)
class Epoch:
    """A sample of an epoch's batches, by shape: how many there are of each in an epoch, and one of them."""

    steps: int
    counts: dict[Any, float]
    examples: dict[Any, Any]
    build: list[float]  # seconds per batch

    @classmethod
    def of(cls, batches: Callable[[int], Any], steps: int, most: int) -> "Epoch":
        seen, examples, build = collections.Counter(), {}, []
        for step in range(min(steps, most)):
            start = time.perf_counter()
            batch = batches(step)
            build.append(time.perf_counter() - start)
            key = timing.shapes_of(batch)
            seen[key] += 1
            examples.setdefault(key, batch)
        counts = {key: n * steps / len(build) for key, n in seen.items()}
        return cls(steps, counts, examples, build)

    @property
    def sampled(self) -> int:
        """How many steps were looked at."""
        return len(self.build)

    def total(self, of_step: Callable[[int], work.Work]) -> work.Work:
        """Work of the whole epoch, in proportion to the sample."""
        summed = work.summed(map(of_step, range(self.sampled)))
        return summed.scaled(self.steps / self.sampled)


def peak(bench: Bench) -> dict[str, Any]:
    """The fastest square matrix product, in the dtype of the layers, on every device at once."""
    dtype, devices, mesh = bench.system.dtype, bench.system.devices, bench.system.mesh
    found, each = {}, mesh.sharding(mesh.mesh.axis_names)
    for size in MATMUL_SIZES:
        key = jax.random.key(size)
        shape = (devices, size, size)
        a, b = (
            jax.device_put(jax.random.normal(k, shape, dtype), each) for k in jax.random.split(key)
        )
        program = jax.jit(jax.vmap(jnp.matmul)).lower(a, b).compile()
        times = timing.rounds({"": lambda p=program, a=a, b=b: p(a, b)}, max(bench.repeats, 5))[""]
        best = min(t.wall for t in times)
        found[size] = 2 * size**3 * devices / best
        if best > ENOUGH_S:
            break
    size = max(found, key=lambda s: found[s])
    return {"flops_per_s": found[size], "dtype": jnp.dtype(dtype).name, "size": size}


def data(bench: Bench) -> dict[str, Any]:
    """Planning the shapes, and building batches on the host (one thread; in a run it works ahead of the device)."""
    bench.task.prompts("users")  # the data and their tokens are there
    start = time.perf_counter()
    batches = bench.batches
    planning, epoch = time.perf_counter() - start, bench.epoch
    build = Spread.of(epoch.build)
    users = bench.work_of_epoch
    return {
        "planning_seconds": planning,
        "seconds": build,
        "users_per_s": batches.order.batch / build.median,
        "minutes_per_epoch": build.scaled(epoch.steps / MINUTE),
        "steps_per_epoch": epoch.steps,
        "users": len(batches.samples),
        "items": bench.system.made.dataset.catalog.size - 1,
        "tokens_per_step": users.tokens / epoch.steps,
        "live_tokens_per_step": users.live / epoch.steps,
        "padded_tokens_per_step": _padded(epoch) / epoch.steps,
    }


def _padded(epoch: Epoch) -> float:
    """Token places of an epoch's static shapes."""
    places = lambda batch: batch.prompts.prefix_ids.size + batch.prompts.ids.size
    return sum(n * places(epoch.examples[key]) for key, n in epoch.counts.items())


def _stage(programs: Programs, times: list[timing.Timed]) -> dict[str, Any]:
    return {**timing.spreads(times), **programs.summary(), **timing.peak_bytes()}


def store(bench: Bench) -> dict[str, Any] | None:
    """Making the item store, as a run does it: once, with compilation. None where none is kept."""
    taken = timing.timed(lambda: [bench.system.store])
    kept = bench.system.store
    if kept is None:
        return None
    return {**taken._asdict(), "bytes": kept.nbytes, "kind": bench.system.cfg.llm.item_store}


class Stepper:
    """Runs training steps one after the other: the state is donated from step to step."""

    def __init__(self, step: Any, frozen: Any, state: Any, put: Callable[[Any], Any]):
        self.programs, self._frozen, self._put = Programs(step), frozen, put
        self._state = state

    def add(self, batch: Any) -> None:
        """Compiles for the shape of `batch` (host arrays)."""
        self.programs.add(self._frozen, self._state, self._put(batch))

    def __call__(self, batch: Any) -> dict[str, jax.Array]:
        """Metrics of one step; moving the batch to the devices is part of it."""
        self._state, metrics = self.programs(self._frozen, self._state, self._put(batch))
        return metrics


def epoch_jobs(stepper: Stepper, epoch: Epoch) -> dict[Any, Callable[[], Any]]:
    """A step of every shape of an epoch, compiled."""
    for batch in epoch.examples.values():
        stepper.add(batch)
    return {key: lambda b=batch: stepper(b) for key, batch in epoch.examples.items()}


def epoch_stage(bench: Bench, stepper: Stepper, epoch: Epoch, total: work.Work) -> dict[str, Any]:
    """What an epoch takes; `total` is its work."""
    taken = timing.rounds(epoch_jobs(stepper, epoch), bench.repeats)
    result = _stage(stepper.programs, timing.total(taken, epoch.counts))
    seconds = result["seconds"]
    result["minutes_per_epoch"] = seconds.scaled(1 / MINUTE)
    result["step_seconds"] = seconds.scaled(1 / epoch.steps)
    result["steps_per_epoch"] = epoch.steps
    return result | work.rates(total, seconds, bench.peak)


def train(bench: Bench) -> dict[str, Any]:
    """The LLM's training step, forward, backward and Adam, over an epoch's mix of shapes."""
    system = bench.system
    step = system.step(objective=bench.task.objective)
    stepper = Stepper(step, system.frozen, system.state(), system.put)
    result = epoch_stage(bench, stepper, bench.epoch, bench.work_of_epoch)
    shapes = {bench.batches.shape(step) for step in range(bench.epoch.sampled)}
    cfg = system.cfg
    needs = [bench.task.job.needs(cfg.train.parts, cfg.llm.item_store, shape) for shape in shapes]
    return result | {"estimated_bytes": max(each.program for each in needs)}


def teacher_parts(bench: Bench) -> tuple[loaders.TeacherBatches, Epoch, Stepper]:
    system = bench.system
    job = TeacherJob(system.cfg, system.mesh, system.made.dataset)
    batches = job.batches
    epoch = Epoch.of(batches, batches.order.steps_per_epoch, TEACHER_BATCHES)
    stepper = Stepper(job.step, jax.random.key(0), system.teacher_state(), system.put)
    return batches, epoch, stepper


def teacher(bench: Bench) -> dict[str, Any]:
    """The teacher's training step, over an epoch's mix of shapes; building its batches apart."""
    batches, epoch, stepper = teacher_parts(bench)
    cfg, items = bench.system.cfg.teacher, bench.system.made.dataset.catalog.size - 1
    total = epoch.total(lambda step: work.windows(cfg, items, batches(step)))
    result = epoch_stage(bench, stepper, epoch, total)
    loading = Spread.of(epoch.build).scaled(epoch.steps / MINUTE)
    return result | {"loading_minutes_per_epoch": loading}


@dataclass
class Pass:
    """Encoding all prompts of a kind once: a job per shape, and how many blocks there are of it."""

    prompts: Any
    programs: Programs
    jobs: dict[Any, Callable[[], Any]]
    counts: dict[Any, float]

    @classmethod
    def of(cls, bench: Bench, kind: str) -> "Pass":
        system, cfg = bench.system, bench.system.cfg.evaluate
        asked = bench.task.encoding(kind)
        programs, counts, examples = Programs(asked.program), collections.Counter(), {}
        options = (cfg.batch, system.mesh.parts, cfg.shapes, None, asked.store, asked.outs)
        for _, batch in loaders.encoding_batches(asked.prompts, *options):
            key = timing.shapes_of(batch)
            counts[key] += 1
            examples.setdefault(key, batch)
        for batch in examples.values():
            programs.add(system.frozen, system.params, system.put(batch))

        def encode(batch: Any) -> np.ndarray:
            return np.asarray(programs(system.frozen, system.params, system.put(batch)))

        jobs = {key: lambda b=batch: encode(b) for key, batch in examples.items()}
        return cls(asked.prompts, programs, jobs, dict(counts))


def encode(bench: Bench, kind: str) -> dict[str, Any]:
    """All prompts of `users` or `items` once, results fetched."""
    one = Pass.of(bench, kind)
    times = timing.total(timing.rounds(one.jobs, bench.repeats), one.counts)
    result = _stage(one.programs, times)
    result["minutes"] = result["seconds"].scaled(1 / MINUTE)
    return result | work.rates(bench.task.work(kind, bench.sizes), result["seconds"], bench.peak)
