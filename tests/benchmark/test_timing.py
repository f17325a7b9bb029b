"""Rounds, weights and spreads; programs are compiled when added, never when called."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmsrec_jax.benchmark import timing
from llmsrec_jax.benchmark.timing import Programs, Spread, Timed


def test_rounds_go_through_all_jobs_in_turn():
    calls = []
    jobs = {name: lambda n=name: calls.append(n) for name in "ab"}
    taken = timing.rounds(jobs, 2)
    assert "".join(calls) == "ab" + "ab" * 2  # the first unmeasured
    assert {name: len(times) for name, times in taken.items()} == {"a": 2, "b": 2}
    timing.rounds(jobs, 1, warm=True)
    assert "".join(calls[6:]) == "ab"


def test_a_round_that_compiles_is_no_measurement():
    sizes = itertools.count(2)  # of the warm-up and of every round another one
    with pytest.raises(RuntimeError, match="triple.* compiled while 'a' was timed"):
        timing.rounds({"a": lambda: jax.jit(triple)(np.ones(next(sizes), np.float32))}, 1)
    timing.rounds({"a": lambda: jax.jit(triple)(np.ones(2, np.float32))}, 2)


def triple(x):
    return 3 * x


def test_what_is_compiled_is_known_by_name():
    with timing.compilations() as compiled:
        jax.jit(lambda x: x + 1)(np.ones(2, np.float32))
    before = list(compiled)
    jax.jit(lambda x: x + 2)(np.ones(2, np.float32))
    assert len(before) == 1 and compiled == before


def test_totals_are_weighted_round_by_round():
    taken = {"a": [Timed(1, 2), Timed(3, 4)], "b": [Timed(10, 20), Timed(30, 40)]}
    assert timing.total(taken, {"a": 2, "b": 0.5}) == [Timed(7, 14), Timed(21, 28)]


def test_ratios_are_taken_round_by_round():
    assert timing.ratios([2, 9, 4], [1, 3, 1]) == Spread(2, 3, 4)


def test_spread():
    assert Spread.of([5, 1, 2]) == Spread(1, 2, 5)
    assert Spread(1, 2, 5).scaled(2) == Spread(2, 4, 10)


def test_programs_never_compile_when_called():
    traced = []

    @jax.jit
    def double(scale, x):
        traced.append(x.shape)
        return scale * x

    programs, short, long = Programs(double), jnp.ones(2), jnp.ones(3)
    for x in (short, long, short):
        programs.add(2.0, x)
    assert traced == [(2,), (3,)]
    assert float(programs(2.0, long).sum()) == 6 and len(traced) == 2
    found = programs.summary()
    assert found["programs"] == 2 and found["trace_seconds"] > 0 < found["compile_seconds"]
    with pytest.raises(KeyError):
        programs(2.0, jnp.ones(4))


def test_peak_memory_holds_what_was_held():
    held = jax.block_until_ready(jnp.ones((1 << 28,)))
    found = timing.peak_bytes()
    assert held.nbytes == 1 << 30 < found["peak_bytes"] and found["peak_of"] in (
        "device",
        "process",
    )
