"""How time and memory grow with users, items, history length and the size of the LLM: the exponents, and what they may be.

Every axis is a ladder of points that differ in that axis alone. All titles are equally long and all users have a full history,
so that a prompt has one length and every program one shape: the others would only have to be compiled at every point.
"""

import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from llmsrec_jax import config, loaders
from llmsrec_jax.benchmark import made, timing
from llmsrec_jax.benchmark.stages import Bench, Epoch, Pass, Stepper, epoch_jobs
from llmsrec_jax.benchmark.system import System
from llmsrec_jax.data import sampling, splits
from llmsrec_jax.data.interactions import Interactions

FIXED = {
    "data.kcore": "none",  # few users of many items would leave none
    "data.max_users": 0,
    "data.user_share": 1.0,
    "prompts.max_tokens": 2048,
    "train.batch": 4,
    "train.parts": 1,
    "train.max_users": 0,
    "train.length_groups": 1,
    "train.shapes": 1,
    "evaluate.batch": 16,
    "evaluate.max_users": 0,
    "evaluate.shapes": 1,
    "llm.item_store": "recompute",
    "llm.item_store_dtype": "auto",
    "mesh.devices": 1,
    "mesh.mode": "shard_map",
    "mesh.fsdp": 1,
    "mesh.tensor": 1,
}
BASE_USERS, BASE_ITEMS, BASE_HISTORY = 1000, 1000, 10
TIMES, HISTORY_TIMES = (1, 3, 10), (0.5, 1, 2)
BACKBONES = ("random:tiny", "random:toy", "random:bench")
BEYOND = 4  # interactions that no prompt holds: the targets and older ones; some users have twice as many
LOADED = 8  # batches that are built to see how long it takes
# What the design promises at most. Attention alone is quadratic in the history, of which an item's prompt has none; the
# teacher's item embeddings are the one thing on a device that grows with the catalogue.
AT_MOST: dict[str, dict[str, int]] = {
    "users": {"prepare": 1, "plan": 1, "load": 1, "train": 1, "encode_users": 1, "encode_items": 0}
    | {"host_peak": 1, "host": 1, "arguments": 0, "temporary": 0},
    "items": {"prepare": 1, "plan": 1, "load": 0, "train": 0, "encode_users": 0, "encode_items": 1}
    | {"host_peak": 1, "host": 1, "arguments": 1, "temporary": 0},
    "history": {
        "prepare": 1,
        "plan": 1,
        "load": 1,
        "train": 2,
        "encode_users": 2,
        "encode_items": 0,
    }
    | {"host_peak": 1, "host": 1, "arguments": 1, "temporary": 2},
    "llm": {"prepare": 0, "plan": 0, "load": 0, "train": 1, "encode_users": 1, "encode_items": 1}
    | {"host_peak": 0, "host": 0, "arguments": 1, "temporary": 1},
}
BYTES = ("host_peak", "host", "arguments", "temporary")
# of an exponent: bytes are exact, times are not
SLACK_BYTES, SLACK_SECONDS = 0.01, 0.1


@dataclass(frozen=True)
class Point:
    """Where everything is measured once."""

    users: int
    items: int
    history: int  # items in a user prompt
    llm: str  # llm.path

    @property
    def interactions(self) -> float:
        """Of a user, on average."""
        return self.history + 1.5 * BEYOND

    def shape(self, title: int) -> made.Shape:
        spread = [self.history + BEYOND + round(BEYOND * share) for share in made.SHARES]
        interactions = round(self.users * self.interactions)
        titles = [title] * len(made.SHARES)
        return made.Shape(self.users, self.items, interactions, spread, titles)


Ladders = Mapping[str, Sequence[Point]]


def ladders(llm: str) -> Ladders:
    """1 x, 3 x, 10 x the users and the items; half, once and twice the history; three small backbones."""
    base = Point(BASE_USERS, BASE_ITEMS, BASE_HISTORY, llm)
    return {
        "users": [replace(base, users=n * base.users) for n in TIMES],
        "items": [replace(base, items=n * base.items) for n in TIMES],
        "history": [replace(base, history=round(n * base.history)) for n in HISTORY_TIMES],
        "llm": [replace(base, llm=path) for path in BACKBONES],
    }


def exponent(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Of the power law through the points, by least squares of logarithms; None where a value is 0."""
    if min(*x, *y) <= 0:
        return None
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def growth(bench: Bench, along: Ladders | None = None) -> dict[str, Any]:
    """{axis: what `fitted` says of its points}."""
    along = along or ladders(bench.system.cfg.llm.path)
    measured: dict[Point, dict[str, float]] = {}
    for point in dict.fromkeys(point for points in along.values() for point in points):
        start = time.perf_counter()
        measured[point] = at(bench, point)
        bench.say(f"growth: {point}, {time.perf_counter() - start:.0f} s")
    return {axis: fitted(axis, [measured[p] for p in points]) for axis, points in along.items()}


def fitted(axis: str, measured: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Values and exponents of every quantity along an axis, which of them are `above` what the design promises, and bytes
    per step of the axis: straight from the first point to the last."""
    x, most = [one[axis] for one in measured], AT_MOST[axis]
    values = {name: [one[name] for one in measured] for name in most}
    exponents = {name: exponent(x, y) for name, y in values.items()}
    slack = lambda name: SLACK_BYTES if name in BYTES else SLACK_SECONDS
    above = [n for n, e in exponents.items() if e is not None and e > most[n] + slack(n)]
    slope = lambda y: (y[-1] - y[0]) / (x[-1] - x[0])
    return {
        "x": x,
        "values": values,
        "exponents": exponents,
        "at_most": most,
        "above": above,
        "bytes_each": {name: slope(values[name]) for name in BYTES},
    }


def at(bench: Bench, point: Point) -> dict[str, float]:
    """Where it is, and seconds (of the processor where that is the device) and bytes of everything there."""
    changes = FIXED | {"prompts.history_len": point.history, "llm.path": point.llm}
    cfg = config.apply(bench.system.cfg, changes)
    title = round(statistics.median(bench.system.shape.title))
    system = System(cfg, point.shape(title))
    here = Bench(system, bench.repeats, bench.say)
    found = _host(here)
    batches = here.batches
    epoch = Epoch.of(batches, batches.order.steps_per_epoch, 1)
    stepper = Stepper(system.step(), system.frozen, system.state(), system.put)
    taken = timing.rounds(epoch_jobs(stepper, epoch), bench.repeats)
    found["train"] = _device_seconds(timing.total(taken, epoch.counts))
    programs = [stepper.programs]
    for kind in ("users", "items"):
        one = Pass.of(here, kind)
        taken = timing.rounds(one.jobs, bench.repeats)
        found[f"encode_{kind}"] = _device_seconds(timing.total(taken, one.counts))
        programs.append(one.programs)
    memory = [program.summary() for program in programs]
    for name in ("arguments", "temporary"):
        found[name] = max(each[f"{name}_bytes"] for each in memory)
    llm = sum(leaf.size for leaf in jax.tree.leaves(system.frozen.llama))
    return found | {
        "users": point.users,
        "items": point.items,
        "history": point.history,
        "llm": llm,
    }


def _host(bench: Bench) -> dict[str, float]:
    """CPU seconds of the numpy side, and bytes of its arrays: those there while training, and the most there ever were."""
    system = bench.system
    table = interactions(system.made.dataset)
    batches = bench.batches
    jobs: dict[str, Callable[[], Any]] = {
        "prepare": lambda: _prepare(system, table),
        "plan": lambda: Bench(system, bench.repeats, bench.say).batches,
        "load": lambda: [batches(step) for step in range(LOADED)],
    }
    taken = timing.rounds(jobs, bench.repeats)
    found = {name: statistics.median(t.cpu for t in times) for name, times in taken.items()}
    found["load"] *= batches.order.steps_per_epoch / LOADED
    tracemalloc.start()
    held = [jobs["prepare"](), jobs["plan"]()]
    found["host"], _ = tracemalloc.get_traced_memory()
    prompts, cfg = bench.task.prompts("users"), system.cfg.evaluate
    held.append(prompts)
    for _ in loaders.encoding_batches(prompts, cfg.batch, system.mesh.parts, cfg.shapes):
        pass
    _, found["host_peak"] = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return found


def _prepare(system: System, table: Interactions) -> Any:
    """The product's way from a table of interactions to a dataset and the candidates of its test users."""
    seed, options = system.cfg.seed, system.cfg.evaluate
    dataset, _ = splits.prepare(system.made.dataset.catalog, table, system.cfg.data, seed)
    ranked = dataset.eligible("test"), options.negatives, options.sampling, seed
    return dataset, sampling.candidates(dataset, "test", *ranked)


def interactions(dataset: splits.Dataset) -> Interactions:
    """The table that a dataset could have come from."""
    last = [(dataset.valid_item, dataset.valid_time), (dataset.test_item, dataset.test_time)]
    rows = np.arange(len(dataset))
    train = dataset.train
    user = np.concatenate([train.rows, *[rows[items > 0] for items, _ in last]])
    item = np.concatenate([train.items, *[items[items > 0] for items, _ in last]])
    when = np.concatenate([train.times, *[times[items > 0] for items, times in last]])
    return Interactions(user.astype(np.int32), item, when, dataset.user_keys)


def _device_seconds(times: Sequence[timing.Timed]) -> float:
    """CPU seconds where the processor is the device: other programs on it then do not count."""
    is_cpu = jax.default_backend() == "cpu"
    return statistics.median(t.cpu if is_cpu else t.wall for t in times)
