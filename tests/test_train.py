"""The loop on a job of one number: validations, the best checkpoint, stopping, and going on after any interruption."""

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmsrec_jax import train
from llmsrec_jax.checkpoint import Checkpoints
from llmsrec_jax.train import Interrupted, Job, State
from llmsrec_jax.writer import Writer, read_log
from tests.kills import Killed

PER_EPOCH, EPOCHS, VALIDATIONS = 4, 3, 2
TOTAL = PER_EPOCH * EPOCHS
SCORES = {2: 0.1, 4: 0.3, 6: 0.5, 8: 0.2, 10: 0.5, 12: 0.4}  # the best one first at step 6


@jax.jit
def step(frozen, state: State, batch) -> tuple[State, dict[str, jax.Array]]:
    loss, grads = jax.value_and_grad(lambda p: jnp.mean((p["w"] - frozen * batch) ** 2))(
        state.params
    )
    updates, opt = train.optimizer(0.98).update(grads, state.opt, state.params)
    params = jax.tree.map(lambda p, u: p - state.lr * u, state.params, updates)
    return State(params, opt, state.step + 1, state.lr), {"loss": loss, "twice": 2 * loss}


def batches(first: int, last: int):
    for number in range(first, last):
        yield np.random.default_rng(number).normal(size=3).astype(np.float32)


def job(**changes) -> Job:
    made = Job(
        stage="toy",
        key="k",
        model="toy, seed 0",
        step=step,
        frozen=jnp.float32(2.0),
        batches=batches,
        put=jnp.asarray,
        steps_per_epoch=PER_EPOCH,
        total_steps=TOTAL,
        validate_at=train.validation_steps(PER_EPOCH, EPOCHS, VALIDATIONS),
        validate=lambda state: {"hr@10": SCORES[int(state.step)]},
        metric="hr@10",
        patience=0,
        lr_decay=0.5,
        batch_users=3,
        save_every_s=1000.0,
    )
    return replace(made, **changes)


def start() -> State:
    return train.init_state({"w": jnp.zeros(3)}, 0.1, 0.98)


def fit(folder: Path, **changes) -> train.Progress:
    with Checkpoints(folder, "key") as checkpoints, Writer(folder) as writer:
        return train.fit(job(**changes), start(), checkpoints, writer)


def stored(folder: Path, which: str) -> tuple[State, dict]:
    with Checkpoints(folder, "key") as checkpoints:
        found = getattr(checkpoints, which)(start())
    assert found is not None
    return found


def log(folder: Path) -> list[dict]:
    """metrics.jsonl without the time of day."""
    return [
        {k: v for k, v in line.items() if k != "time"}
        for line in read_log(folder / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    fit(folder)
    return folder


def assert_same_run(folder: Path, wanted: Path) -> None:
    """Bit-equal states, the same progress, the same log."""
    for which in ("latest", "best"):
        (state, meta), (state_wanted, meta_wanted) = stored(folder, which), stored(wanted, which)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(state_wanted), strict=True):
            np.testing.assert_array_equal(a, b)
        assert meta | {"seconds": 0} == meta_wanted | {"seconds": 0}
    assert log(folder) == log(wanted)


@pytest.mark.parametrize(
    ("steps", "epochs", "times", "wanted"),
    [
        (100, 1, 10, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),
        (4, 2, 2, [2, 4, 6, 8]),
        (3, 2, 10, [1, 2, 3, 4, 5, 6]),  # fewer steps than validations: each step once (D28)
        (1, 3, 10, [1, 2, 3]),
        (7, 1, 2, [4, 7]),
        (5, 2, 1, [5, 10]),
    ],
)
def test_validation_steps(steps, epochs, times, wanted):
    assert train.validation_steps(steps, epochs, times) == wanted


def test_one_line_per_validation(uninterrupted):
    lines = log(uninterrupted)
    assert [(line["step"], line["hr@10"]) for line in lines] == list(SCORES.items())
    assert [line["epoch"] for line in lines] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    state = start()
    losses = []
    for batch in batches(
        0, 4
    ):  # the means are over the steps since the last validation, not before
        state, metrics = step(jnp.float32(2.0), state, batch)
        losses.append(float(metrics["loss"]))
        if len(losses) == 2:
            state = state._replace(lr=state.lr * 0.5)
    assert lines[0]["loss"] == np.mean(losses[:2]) and lines[1]["loss"] == np.mean(losses[2:])
    assert lines[1]["twice"] == 2 * lines[1]["loss"]


def test_the_best_checkpoint_survives_worse_ones(uninterrupted):
    best, meta = stored(uninterrupted, "best")
    assert int(best.step) == 6 and meta["best"] == 0.5 and meta["best_step"] == 6
    latest, meta = stored(uninterrupted, "latest")
    assert int(latest.step) == TOTAL and meta["best_step"] == 6 and meta["bad"] == 3
    assert not np.array_equal(best.params["w"], latest.params["w"])


def test_lr_falls_at_every_validation(uninterrupted, tmp_path):
    rates = [line["lr"] for line in log(uninterrupted)]
    np.testing.assert_allclose(rates, [0.1 * 0.5**n for n in range(1, 7)], rtol=1e-6)
    assert float(stored(uninterrupted, "latest")[0].lr) == pytest.approx(0.1 * 0.5**6)
    fit(tmp_path, lr_decay=1.0)
    assert {line["lr"] for line in log(tmp_path)} == {float(np.float32(0.1))}


@pytest.mark.parametrize(("patience", "steps"), [(1, 8), (2, 10), (3, 12), (4, 12), (0, 12)])
def test_early_stopping(tmp_path, patience, steps):
    """The best validation is at step 6; one that equals it is no improvement."""
    progress = fit(tmp_path, patience=patience)
    assert progress.step == steps and progress.best_step == 6
    assert progress.stopped == (0 < patience <= 3)
    assert [line["step"] for line in log(tmp_path)] == list(range(2, steps + 1, 2))


def test_a_finished_job_does_nothing(tmp_path):
    def never(*args):
        raise AssertionError("called again")

    for name, changes in {"stopped": {"patience": 1}, "complete": {}}.items():
        first = fit(tmp_path / name, **changes)
        again = fit(tmp_path / name, **changes, step=never, validate=never, batches=never)
        assert again == first
        assert train.summary(again)["stopped_early"] == (name == "stopped")


@pytest.mark.parametrize("bad", [0, 1, 2, 5, 11])
@pytest.mark.parametrize("save_every_s", [0.0, 1000.0])
def test_a_loss_that_is_no_number(tmp_path, bad, save_every_s):
    def broken(first, last):
        for number, batch in enumerate(batches(first, last), first):
            yield batch * np.float32(math.nan if number == bad else 1.0)

    with pytest.raises(ValueError, match=rf"toy: loss is nan at step {bad + 1} .*learning rate"):
        fit(tmp_path, batches=broken, save_every_s=save_every_s)
    with Checkpoints(tmp_path, "key") as checkpoints:
        latest = checkpoints.latest(start())
    saved = 0 if latest is None else int(latest[0].step)
    assert saved == (bad if save_every_s == 0 else bad // 2 * 2)
    assert latest is None or np.isfinite(latest[0].params["w"]).all()


def die_at(number: int) -> Callable:
    def stream(first, last):
        for step_number, batch in enumerate(batches(first, last), first):
            if step_number == number:
                raise Killed
            yield batch

    return stream


@pytest.mark.parametrize(
    ("number", "save_every_s"),
    [*((number, 1000.0) for number in range(TOTAL)), *((number, 0.0) for number in (1, 2, 7, 11))],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path, uninterrupted, number, save_every_s
):
    with pytest.raises(Killed):
        fit(tmp_path, batches=die_at(number), save_every_s=save_every_s)
    fit(tmp_path, save_every_s=save_every_s)
    assert_same_run(tmp_path, uninterrupted)


def test_many_kills(tmp_path, uninterrupted):
    rng = np.random.default_rng(0)
    reached = 0
    for _ in range(6):
        reached = int(rng.integers(reached, min(reached + 4, TOTAL)))
        with pytest.raises(Killed):
            fit(tmp_path, batches=die_at(reached), save_every_s=0.0)
    fit(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("where", ["log", "checkpoint"])
def test_a_kill_around_a_validation(tmp_path, uninterrupted, monkeypatch, where):
    """Between the line and the checkpoint of a validation, or in the middle of saving."""
    owner, name = {"log": (Writer, "log"), "checkpoint": (Checkpoints, "save")}[where]
    whole = getattr(owner, name)

    def half(self, *args, **kwargs):
        if where == "log":
            whole(self, *args, **kwargs)
        if 6 in args:
            raise Killed
        if where == "checkpoint":
            whole(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, half)
        with pytest.raises(Killed):
            fit(tmp_path)
    assert [line["step"] for line in log(tmp_path)] == [2, 4, 6]
    fit(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize(
    ("number", "at", "save_every_s"),
    [
        (signal.SIGTERM, 1, 1000.0),
        (signal.SIGINT, 7, 1000.0),
        (signal.SIGINT, 4, 1000.0),  # a validation step
        (signal.SIGTERM, 3, 0.0),  # saved anyway at this step
        (signal.SIGTERM, TOTAL, 1000.0),
    ],
)
def test_a_signal_saves_and_ends_the_run(tmp_path, uninterrupted, number, at, save_every_s):
    before = signal.getsignal(number)

    def put(batch):
        nonlocal seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), number)
        return jnp.asarray(batch)

    seen = 0
    with pytest.raises(Interrupted, match=f"signal {int(number)}: saved at step {at}"):
        fit(tmp_path, put=put, save_every_s=save_every_s)
    assert int(stored(tmp_path, "latest")[0].step) == at == seen
    assert signal.getsignal(number) == before
    fit(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_a_signal_during_the_last_validation_is_not_lost(tmp_path, uninterrupted):
    def validate(state):
        if int(state.step) == TOTAL:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"hr@10": SCORES[int(state.step)]}

    with pytest.raises(Interrupted, match=f"saved at step {TOTAL}"):
        fit(tmp_path, validate=validate)
    assert_same_run(tmp_path, uninterrupted)


def test_a_second_signal_does_not_wait(tmp_path):
    def put(batch):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        return jnp.asarray(batch)

    with pytest.raises(KeyboardInterrupt) as error:
        fit(tmp_path, put=put)
    assert not isinstance(error.value, Interrupted)


def test_other_jobs_keep_their_lines(tmp_path):
    other = {"stage": "toy", "key": "another", "step": 3, "loss": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(other) + "\n")
    with pytest.raises(Killed):
        fit(tmp_path, batches=die_at(5))
    fit(tmp_path)
    lines = log(tmp_path)
    assert lines[0] == other
    assert [line["step"] for line in lines[1:]] == list(SCORES)
