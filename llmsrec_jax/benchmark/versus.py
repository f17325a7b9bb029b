"""The same job done otherwise, in one run, round by round: our padded layout, and PyTorch as the field uses it.

No time is taken before the results agree.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from llmsrec_jax import config, evaluate, loaders
from llmsrec_jax.benchmark import padded, stages, timing
from llmsrec_jax.benchmark.stages import Bench, Pass, Stepper
from llmsrec_jax.benchmark.system import System
from llmsrec_jax.benchmark.timing import Timed

OURS, PADDED, TORCH = "ours", "padded", "torch"
TOLERANCE = 1e-4  # of losses and vectors in float32, relative
ENCODED_BATCHES = 2  # of evaluate.batch random prompts, for PyTorch
TEACHER_STEPS = 5  # of an epoch, for PyTorch: all cost the same
# where less than float32 is measured, agreement is shown in float32 on a batch that fits beside it
CHECKED = {
    "llm.dtype": "fp32",
    "llm.remat": "inputs",
    "llm.item_store": "recompute",  # and where all items' would not fit a second time
    "llm.item_store_dtype": "auto",
    "train.batch": 4,
    "train.parts": 1,
    "train.length_groups": 1,
    "train.shapes": 1,
    "evaluate.batch": 4,
    "evaluate.shapes": 1,
}


class Disagreement(ValueError):
    """Two implementations of one job have different results: their times mean nothing."""


class Contestant(NamedTuple):
    """One way to do a job: `prepare` is not timed, `run` is; `run` returns the result when it is there."""

    prepare: Callable[[Any], Any]
    run: Callable[[Any], Any]


def agree(what: str, found: Mapping[str, Any]) -> None:
    """Raises Disagreement unless all of `found` (numbers or arrays) equal OURS, relative to its largest."""
    ours = np.asarray(found[OURS], np.float64)
    for name, value in found.items():
        error = np.abs(np.asarray(value, np.float64) - ours).max() / np.abs(ours).max()
        if not error <= TOLERANCE:
            raise Disagreement(
                f"{what} of {name} and {OURS} differ by {error:.1e} (at most {TOLERANCE:.0e}): "
                "no time is shown"
            )


def _compare(taken: Mapping[str, Sequence[Timed]]) -> dict[str, Any]:
    """Times per contestant, and how many times faster ours is, round by round.

    On a processor that others use too, CPU seconds say more than the clock.
    """
    each = {name: timing.spreads(times) for name, times in taken.items()}
    ratio = lambda of: {
        name: timing.ratios([t[of] for t in times], [t[of] for t in taken[OURS]])
        for name, times in taken.items()
        if name != OURS
    }
    return {
        "seconds": {name: one["seconds"] for name, one in each.items()},
        "cpu_seconds": {name: one["cpu_seconds"] for name, one in each.items()},
        "times_faster": ratio(0),
        "times_faster_cpu": ratio(1),
    }


def _parts(taken: Mapping[Any, list[Timed]], name: str) -> dict[Any, list[Timed]]:
    """Those of one contestant."""
    return {part: times for (who, part), times in taken.items() if who == name}


def _changed(bench: Bench, changes: Mapping[str, Any]) -> Bench:
    cfg = config.apply(bench.system.cfg, changes)
    return Bench(replace(bench.system, cfg=cfg), bench.repeats, bench.say)


# training ----------------------------------------------------------------------------------------------------


def train(bench: Bench, names: Sequence[str], steps: int) -> dict[str, Any]:
    """The first `steps` training steps of an epoch, again and again."""
    checked = _check_losses(bench, names) if bench.system.dtype != np.float32 else None
    jobs, first = {}, {}
    for name, (prepare, run) in _trainers(bench, names).items():
        prepared = [prepare(step) for step in range(min(steps, bench.epoch.sampled))]
        jobs[name] = lambda p=prepared, run=run: [run(batch) for batch in p]
        first[name] = jobs[name]()  # compiles what is left to compile
    if checked is None:
        agree("losses", first)
    taken = timing.rounds(jobs, bench.repeats, warm=True)
    sizes = {"steps": len(first[OURS]), "users_per_step": bench.batches.order.batch}
    return {**sizes, "losses": checked or first, **_compare(taken)}


def _check_losses(bench: Bench, names: Sequence[str]) -> dict[str, list[float]]:
    """Two steps in float32."""
    checked = _changed(bench, CHECKED)
    losses = {}
    with jax.default_matmul_precision("highest"):
        for name, (prepare, run) in _trainers(checked, names).items():
            losses[name] = [run(prepare(0)) for _ in range(2)]
    agree("losses in float32", losses)
    return losses


def _trainers(bench: Bench, names: Sequence[str]) -> dict[str, Contestant]:
    """{name: training steps, prepared by number; the loss before each}, all from the same weights."""
    system = bench.system
    found = {OURS: _ours(system, system.llama_graph, bench.batches)}
    if PADDED in names:
        graph = nnx.split(padded.as_padded(system.backbone))[0]
        found[PADDED] = _ours(system, graph, lambda step: bench.whole(step).widened())
    if TORCH in names:
        from llmsrec_jax.benchmark import torch_llm

        for name, model in torch_llm.variants(system, bench.say).items():
            trainer = torch_llm.Trainer(model, system.cfg.train)
            found[name] = Contestant(lambda step: torch_llm.Batch.of(bench.whole(step)), trainer)
    return found


def _ours(system: System, llama: nnx.GraphDef, build: Callable[[int], Any]) -> Contestant:
    stepper = Stepper(system.step(llama), system.frozen, system.state(), system.put)

    def prepare(step: int) -> Any:
        batch = build(step)
        stepper.add(batch)
        return batch

    return Contestant(prepare, lambda batch: float(stepper(batch)["loss"]))


# encoding ----------------------------------------------------------------------------------------------------


def encode(bench: Bench, kind: str) -> dict[str, Any]:
    """All prompts of `users` or `items` once: ours by its shapes, PyTorch's by a random sample of them."""
    from llmsrec_jax.benchmark import torch_llm

    is_float32 = bench.system.dtype == np.float32
    with jax.default_matmul_precision("highest"):
        _agree_on_vectors(bench if is_float32 else _changed(bench, CHECKED), kind)
    one, rows = Pass.of(bench, kind), bench.system.cfg.evaluate.batch
    n = len(one.prompts)
    drawn = np.random.default_rng(bench.system.cfg.seed).permutation(n)[: ENCODED_BATCHES * rows]
    sample = [one.prompts.take(drawn[at : at + rows]) for at in range(0, len(drawn), rows)]
    jobs: dict[Any, Callable[[], Any]] = {(OURS, key): job for key, job in one.jobs.items()}
    models = torch_llm.variants(bench.system, bench.say)
    for name, model in models.items():
        for i, prompts in enumerate(sample):
            jobs[name, i] = lambda m=model, p=prompts: torch_llm.encode(m, kind, p)
    taken = timing.rounds(jobs, bench.repeats)
    times = {OURS: timing.total(_parts(taken, OURS), one.counts)}
    tokens = sum(int(prompts.lengths.sum()) for prompts in sample)
    scale = int(one.prompts.lengths.sum()) / tokens
    for name in models:
        parts = _parts(taken, name)
        times[name] = timing.total(parts, dict.fromkeys(parts, scale))
    return {"prompts": n, "sampled_by_torch": len(drawn), **_compare(times)}


def _agree_on_vectors(bench: Bench, kind: str) -> None:
    from llmsrec_jax.benchmark import torch_llm

    system = bench.system
    prompts = bench.task.prompts(kind)
    few = prompts.take(np.arange(min(len(prompts), system.cfg.evaluate.batch)))
    store = system.store if kind == "items" else None
    blocks = loaders.encoding_batches(few, len(few), 1, 1, None, store)
    arguments = (blocks, system.encoder(kind), system.frozen, system.params, system.mesh, len(few))
    vectors = {OURS: evaluate.encode(*arguments)}
    for name, model in torch_llm.variants(system, bench.say).items():
        vectors[name] = torch_llm.encode(model, kind, few)
    agree(f"vectors of {kind}", vectors)


# the teacher -------------------------------------------------------------------------------------------------


def teacher(bench: Bench) -> dict[str, Any]:
    """An epoch of SASRec from prepared batches; PyTorch's by its first steps, in windows as wide as teacher.max_len."""
    from llmsrec_jax.benchmark import torch_sasrec

    cfg = bench.system.cfg.teacher
    if (cfg.model, cfg.loss) != ("sasrec", "bce"):
        raise ValueError(
            f"--vs=torch: PyTorch's teacher is SASRec with BCE, not teacher.model={cfg.model}, "
            f"teacher.loss={cfg.loss}"
        )
    calm = _changed(bench, {"teacher.dropout": 0.0})  # what is dropped differs
    batches, _, stepper = stages.teacher_parts(calm)
    stepper.add(batches(0))
    trainer = torch_sasrec.Trainer(calm.system)
    losses = {
        OURS: [float(stepper(batches(0))["loss"]) for _ in range(2)],
        "torch": [trainer(torch_sasrec.windows(batches, 0)) for _ in range(2)],
    }
    agree("losses of the teacher", losses)
    batches, epoch, stepper = stages.teacher_parts(bench)
    jobs: dict[Any, Callable[[], Any]] = {}
    for key, job in stages.epoch_jobs(stepper, epoch).items():
        jobs[OURS, key] = job
    trainer = torch_sasrec.Trainer(bench.system)
    for step in range(min(TEACHER_STEPS, epoch.steps)):
        prepared = torch_sasrec.windows(batches, step)
        jobs["torch", step] = lambda p=prepared: trainer(p)
    taken = timing.rounds(jobs, bench.repeats)
    ours, theirs = _parts(taken, OURS), _parts(taken, "torch")
    each = dict.fromkeys(theirs, epoch.steps / len(theirs))
    times = {OURS: timing.total(ours, epoch.counts), "torch": timing.total(theirs, each)}
    return {"steps_per_epoch": epoch.steps, "losses": losses, **_compare(times)}
