"""Measures what the engine does here: training, inference, the teacher, data loading; and projects the paper's Table 9.

  python -m llmsrec_jax.benchmark --config=configs/scientific.py --config.llm.path=random:llama-3.2-3b
  python -m llmsrec_jax.benchmark --config=configs/scientific.py --config.llm.path=random:bench --vs=padded,torch
  python -m llmsrec_jax.benchmark --config=configs/scientific.py --config.llm.path=random:toy --stages=growth --repeats=3

Needs no data, weights or network: users, items and titles are made, as many and as long as the dataset of data.category has
them (Industrial_and_Scientific, Electronics, Video_Games; data.max_users makes it smaller in proportion). Your own files
(configs/files.py) are measured as they are, with made titles; they need the package's other dependencies. Compilation is
never part of a time; every time is that of blocked calls, repeated. What is measured is written after every stage.

Title generation (--config=FILE.py:tallrec,title) is measured too, but for --vs and --stages=growth.

--vs=torch needs PyTorch (pip install -e '.[torch]'); the results must agree to 1e-4 before any time is shown.
"""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from absl import app, flags

from llmsrec_jax import command, config

DEFAULT_STAGES = ("peak", "data", "train", "users", "items", "teacher")
# of A-LLMRec alone; many programs: some minutes of compilation
STAGES = (*DEFAULT_STAGES, "alignment", "growth")
VS = ("padded", "torch")


def _define_words(name: str, default: tuple[str, ...], legal: tuple[str, ...], help: str):
    holder = flags.DEFINE_list(name, list(default), f"<{'|'.join(legal)}>,..: {help}")

    def check(given: list[str]) -> bool:
        for word in given:
            if word not in legal:
                hint = config.closest(word, legal)
                raise flags.ValidationError(f"{word!r} should be of {', '.join(legal)}{hint}")
        return True

    flags.register_validator(name, check)
    return holder


flags.adopt_module_key_flags(command)
_OUT = flags.DEFINE_string("out", None, "folder of the results; default runs/benchmark-FILE[-WORD]")
_STAGES = _define_words("stages", DEFAULT_STAGES, STAGES, "what to measure")
_VS = _define_words("vs", (), VS, "measure other ways to do the same beside it")
_REPEATS = flags.DEFINE_integer("repeats", 5, "rounds of every measurement", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 1, "steps per round when comparing training", lower_bound=1)
parse = partial(command.parse, doc=str(__doc__))


def patient() -> Callable[[str], None]:
    """A `print` that ends the program once Ctrl-C was pressed: where it falls into a callback of XLA's, Python drops the exception."""
    pressed = []

    def press(*received: object) -> None:
        pressed.append(received)
        raise KeyboardInterrupt

    def say(text: str) -> None:
        print(text, flush=True)
        if pressed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, press)
    return say


def main(argv: list[str]) -> None:
    out = Path(_OUT.value or f"runs/benchmark-{command.folder_name()}")
    print(command.render(command.CONFIG.value), flush=True)
    if "torch" in _VS.value:  # both live on one device: take memory as it is needed
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        from llmsrec_jax.benchmark import measure  # slow to import

        options = measure.Options(
            tuple(_STAGES.value), tuple(_VS.value), _REPEATS.value, _STEPS.value
        )
        measure.run(command.CONFIG.value, out, options, patient())
    except KeyboardInterrupt:
        kept = f"what was measured is in {out}" if out.exists() else "nothing was measured yet"
        command.fail(f"interrupted: {kept}", 130)
    except (ValueError, OSError) as error:
        command.stop(error)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
