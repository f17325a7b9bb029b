"""The training loop that the teacher, A-LLMRec's stage 1 and LLM-SRec share, and their step functions.

Steps own maths: pure, `(frozen, state, batch) -> (state, metrics)`, jitted once, state donated.
The loop owns I/O: progress, validation, checkpoints, early stopping, signals. Its data position is the step number.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from llmsrec_jax import config, processes
from llmsrec_jax.checkpoint import Checkpoints
from llmsrec_jax.models import allmrec, cf, llm4rec
from llmsrec_jax.writer import Writer

ASK_EVERY = 16  # steps


class State(NamedTuple):
    """Everything that changes while training; all of it is checkpointed."""

    params: Any
    opt: Any
    step: jax.Array  # int32
    lr: jax.Array  # float32, current learning rate


def optimizer(b2: float) -> optax.GradientTransformation:
    """Adam without its learning rate, which lives in the state (S1, S2: beta1 0.9, eps 1e-8)."""
    return optax.scale_by_adam(b1=0.9, b2=b2, eps=1e-8)


def init_state(params: Any, lr: float, b2: float) -> State:
    return State(params, optimizer(b2).init(params), jnp.int32(0), jnp.float32(lr))


def _descended(
    share: Callable[[Any], Any], state: State, b2: float, axis: str | tuple[str, ...] | None
) -> tuple[State, dict[str, jax.Array]]:
    """The state one Adam step down, and the loss terms; `share`: of parameters, this device's (loss, terms), which `axis` sums."""
    grads, terms = jax.grad(share, has_aux=True)(state.params)
    if axis is not None:
        grads, terms = jax.lax.psum((grads, terms), axis)
    updates, opt = optimizer(b2).update(grads, state.opt, state.params)
    params = jax.tree.map(lambda p, u: p - state.lr * u, state.params, updates)
    return State(params, opt, state.step + 1, state.lr), terms


def _dropout_key(
    key: jax.Array, state: State, axis: str | tuple[str, ...] | None = None
) -> jax.Array:
    """Of this step, whatever came before it, and of this device of `axis`."""
    key = jax.random.fold_in(key, state.step)
    return key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))


def llm_step(
    frozen: llm4rec.Frozen,
    state: State,
    batch: Any,
    *,
    model: nnx.GraphDef,
    llama: nnx.GraphDef,
    cfg: config.Config,
    objective: Callable[..., tuple[jax.Array, dict[str, jax.Array]]] = llm4rec.loss,
    axis: str | tuple[str, ...] | None = None,
) -> tuple[State, dict[str, jax.Array]]:
    """One Adam step on the global batch of what trains around the LLM: for Eq. 4 (S1), or for `titles.loss`."""
    key = None if frozen.key is None else _dropout_key(frozen.key, state)

    def share(params):
        return objective(
            nnx.merge(model, params),
            nnx.merge(llama, frozen.llama),
            *(batch, frozen, cfg, axis, key),
        )

    return _descended(share, state, cfg.train.b2, axis)


def teacher_step(
    frozen: jax.Array,
    state: State,
    batch: Any,
    *,
    model: nnx.GraphDef,
    cfg: config.Config,
    axis: str | tuple[str, ...] | None = None,
) -> tuple[State, dict[str, jax.Array]]:
    """One Adam step of a CF-SRec (S2-S5). `frozen` is the dropout key; groups of one batch share one mean."""
    key = _dropout_key(frozen, state, axis)

    def share(params):
        value = cf.loss(nnx.merge(model, params), batch, cfg.teacher.loss, key, axis)
        return value, {"loss": value}

    return _descended(share, state, cfg.teacher.b2, axis)


def align_step(
    frozen: allmrec.Frozen,
    state: State,
    batch: Any,
    *,
    model: nnx.GraphDef,
    cfg: config.Config,
    axis: str | tuple[str, ...] | None = None,
) -> tuple[State, dict[str, jax.Array]]:
    """One Adam step of A-LLMRec's stage 1 on the global batch (S11)."""
    weights = {"item_weight": cfg.alignment.item_weight, "text_weight": cfg.alignment.text_weight}

    def share(params):
        return allmrec.loss(nnx.merge(model, params), batch, frozen, **weights, axis=axis)

    return _descended(share, state, cfg.alignment.b2, axis)


def validation_steps(steps_per_epoch: int, epochs: int, per_epoch: int) -> list[int]:
    """Global steps after which to validate: `per_epoch` times an epoch, evenly, at least at its end (D28)."""
    within = sorted({math.ceil(i * steps_per_epoch / per_epoch) for i in range(1, per_epoch + 1)})
    return [epoch * steps_per_epoch + step for epoch in range(epochs) for step in within]


@dataclass
class Progress:
    """The loop's own state; saved in every checkpoint."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    bad: int = 0  # validations since the best one
    stopped: bool = False  # by early stopping
    seconds: float = 0.0  # spent in steps, without validation and saving
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)  # of the steps since the last validation
    summed: int = 0

    def add(self, values: dict[str, float]) -> None:
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in values.items()}
        self.summed += 1

    def take_means(self) -> dict[str, float]:
        """Means since the last call."""
        means = {name: total / self.summed for name, total in self.sums.items()}
        self.sums, self.summed = {}, 0
        return means


@dataclass(frozen=True)
class Job:
    """What `fit` runs."""

    stage: str
    key: str  # of the configuration, for metrics.jsonl
    model: str  # what it is called there
    step: Callable[[Any, State, Any], tuple[State, dict[str, jax.Array]]]
    frozen: Any
    batches: Callable[[int, int], Iterator[Any]]  # (first step, last step) -> host batches
    put: Callable[[Any], Any]  # host batch -> devices
    steps_per_epoch: int
    total_steps: int
    validate_at: list[int]
    validate: Callable[[State], dict[str, float]]
    metric: str  # key of `validate`'s result that selects the checkpoint
    patience: int  # validations; 0 = never stop early
    lr_decay: float  # factor at every validation (D23)
    batch_users: int
    save_every_s: float
    ranking: str = "sampled"  # the protocol of `validate`


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived; the state is saved."""


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying, so that the loop can save; a second one kills as usual.

    Of several processes, JAX takes SIGTERM and lets all of them know at one step (`processes.preempted`).
    """
    if processes.several():
        yield []
        return
    received: list[int] = []

    def note(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: the caller's handlers stay
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _validated(job: Job, state: State, progress: Progress) -> State:
    """Runs a validation, updates `progress`, returns the state with the decayed learning rate."""
    scores = job.validate(state)
    value = scores[job.metric]
    progress.history.append({"step": progress.step, **scores})
    if progress.best is None or value > progress.best:
        progress.best, progress.best_step, progress.bad = value, progress.step, 0
    else:
        progress.bad += 1
    # hosts may differ in the last bit of a score
    progress.stopped = processes.agree(job.patience > 0 and progress.bad >= job.patience)
    return state._replace(lr=state.lr * job.lr_decay)


def fit(job: Job, state: State, checkpoints: Checkpoints, writer: Writer) -> Progress:
    """Trains until the last step or early stopping; resumes from the latest checkpoint.

    Raises:
      Interrupted: SIGINT or SIGTERM; everything is saved, rerunning goes on from there.
      ValueError: the loss is not finite.
    """
    progress = Progress()
    latest = checkpoints.latest(state)
    if latest is not None:
        state, meta = latest
        progress = Progress(**meta)
    writer.resume(job.stage, job.key, progress.step)
    if progress.stopped or progress.step >= job.total_steps:
        return progress
    validate_at = set(job.validate_at)
    stream = job.batches(progress.step, job.total_steps)
    steps = job.total_steps, progress.step
    bar = writer.progress(job.stage, *steps, job.batch_users, compiles=True)
    saved, clock = time.monotonic(), time.monotonic()
    pending: dict[str, jax.Array] | None = None
    # clocks differ between processes, and asking the first one takes time
    ask_every = ASK_EVERY if processes.several() else 1

    def settle() -> None:
        """Fetches the metrics of the last step; called one step late so that the device never waits."""
        nonlocal pending
        if pending is None:
            return
        values = {name: float(value) for name, value in pending.items()}
        pending = None
        if not math.isfinite(values["loss"]):
            raise ValueError(
                f"{job.stage}: loss is {values['loss']} at step {progress.step} "
                f"(terms: {values}); lower the learning rate or check the data"
            )
        progress.add(values)
        bar.update(1, values["loss"])

    def save(metric: float | None = None) -> None:
        nonlocal saved
        checkpoints.save(progress.step, state, asdict(progress), metric)
        saved = time.monotonic()

    with _signals() as received, bar:
        for batch in stream:
            new_state, metrics = job.step(job.frozen, state, job.put(batch))
            settle()
            state, pending = new_state, metrics
            progress.step += 1
            if processes.preempted():
                received.append(signal.SIGTERM)
            stop = bool(received)
            if progress.step in validate_at:
                settle()
                progress.seconds += time.monotonic() - clock
                state = _validated(job, state, progress)
                means = progress.take_means()
                epoch = progress.step / job.steps_per_epoch
                writer.log(
                    job.stage,
                    progress.step,
                    {
                        "key": job.key,
                        "model": job.model,
                        "epoch": epoch,
                        **means,
                        **progress.history[-1],
                        "lr": float(state.lr),
                    },
                )
                save(progress.history[-1][job.metric])
                clock = time.monotonic()
            elif stop or (
                progress.step % ask_every == 0
                and processes.agree(time.monotonic() - saved > job.save_every_s)
            ):
                settle()
                progress.seconds += time.monotonic() - clock
                save()
                clock = time.monotonic()
            if stop or progress.stopped:
                break
        if received:  # the last thing done was to save
            raise Interrupted(f"signal {received[0]}: saved at step {progress.step}")
    return progress


def summary(progress: Progress) -> dict[str, Any]:
    """What a finished stage says about its training."""
    return {
        "steps": progress.step,
        "best_step": progress.best_step,
        "best": progress.best,
        "stopped_early": progress.stopped,
        "seconds": round(progress.seconds, 3),
    }
