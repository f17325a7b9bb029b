"""Ctrl-C ends a measurement, wherever it falls."""

import signal

import pytest

from llmsrec_jax.benchmark import __main__ as program


def test_a_signal_that_a_callback_swallows_still_ends_it(capsys):
    before = signal.getsignal(signal.SIGINT)
    try:
        say = program.patient()
        say("first")
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            pass  # as Python does with what is raised in a callback
        with pytest.raises(KeyboardInterrupt):
            say("second")
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().out == "first\nsecond\n"
