"""Trains and evaluates LLM-SRec: interactions in; a frozen SASRec teacher, the model and honest metrics out.

  python -m llmsrec_jax.main --config=configs/shop.py
  python -m llmsrec_jax.main --config=configs/files.py:smoke --config.train.lr=3e-4 --workdir=runs/mine

Running a command again skips what is finished and resumes what was interrupted.
"""

import signal
from functools import partial
from pathlib import Path

from absl import app, flags

from llmsrec_jax import command, config

MODES = ("run", "prepare", "teacher", "train", "evaluate")
flags.adopt_module_key_flags(command)
_WORKDIR = flags.DEFINE_string("workdir", None, "where everything goes; default runs/FILE[-WORD]")
_MODE = flags.DEFINE_enum("mode", "run", MODES, "which stage, after those it needs; run = all")
_JOIN = flags.DEFINE_string("distributed", "off", "auto | off | HOST:PORT,N,I: process I of N")
parse = partial(command.parse, doc=str(__doc__))


def main(argv: list[str]) -> None:
    workdir = Path(_WORKDIR.value or f"runs/{command.folder_name()}")
    print(config.render(command.CONFIG.value), flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # training takes it over, to save
    try:
        from llmsrec_jax import pipeline  # slow to import: --help and mistakes answer at once

        pipeline.run(command.CONFIG.value, workdir, _MODE.value, _JOIN.value)
    except KeyboardInterrupt as error:
        command.fail(
            f"interrupted: {str(error) or 'by a signal'}\nthe same command goes on from there", 130
        )
    except (ValueError, OSError) as error:
        command.stop(error)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
