"""Trains and evaluates LLM-SRec: interactions in; a frozen SASRec teacher, the model and honest metrics out.

  python -m llmsrec_jax.main --config=configs/shop.py
  python -m llmsrec_jax.main --config=configs/files.py:smoke --config.train.lr=3e-4 --workdir=runs/mine

Running a command again skips what is finished and resumes what was interrupted.
"""

import re
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from absl import app, flags, logging
from ml_collections import config_flags

from llmsrec_jax import config

FLAGS = flags.FLAGS
FLAGS.verbosity = logging.WARNING  # unless given: absl would show the remarks of libraries
config_flags.register_flag_parser_for_type(cast(Any, Literal), flags.ArgumentParser())
_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py[:WORD,WORD]")
_WORKDIR = flags.DEFINE_string("workdir", None, "where everything goes; default runs/FILE[-WORD]")
MODES = ("run", "prepare", "teacher", "train", "evaluate")
_MODE = flags.DEFINE_enum("mode", "run", MODES, "which stage, after those it needs; run = all")
_JOIN = flags.DEFINE_string("distributed", "off", "auto | off | HOST:PORT,N,I: process I of N")
_DEBUG = flags.DEFINE_bool("debug", False, "show the traceback of an error")


def fail(message: str, code: int = 2) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)


def parse(argv: list[str]) -> list[str]:
    """Parses the command line; a mistake ends the program with one line that says what to do."""
    if {"--help", "-help", "-h"} & set(argv):
        print(f"{__doc__}\nflags:\n{FLAGS.main_module_help()}\n\n--config.NAME=DEFAULT|OTHER:")
        print(config.render(config.Config(), legal=True))
        sys.exit(0)
    given = re.search(r"^--?config[=\n]([^:\n]*)", "\n".join(argv), re.MULTILINE)
    file = given[1] if given else ""
    try:
        for name in re.findall(r"^--?(?:no)?config\.([^=\n]*)", "\n".join(argv), re.MULTILINE):
            config.check_name(name)
        if given and not Path(file).is_file():
            hint = config.closest(file, [str(path) for path in Path(file).parent.glob("*.py")])
            raise ValueError(f"--config={file}: no such file{hint}")
        rest = FLAGS(argv)
        if not given:
            raise ValueError("--config is missing: try --config=configs/shop.py, or --help")
        if rest[1:]:
            raise ValueError(f"unexpected {rest[1]!r}: settings look like --config.train.lr=3e-4")
        config.validate(_CONFIG.value)
    except Exception as error:
        if "--debug" in argv:
            raise
        fail(f"error: {describe(error, file)}")
    return rest


def describe(error: BaseException, file: str) -> str:
    """One line for an error of the command line or of the config file."""
    # a whole traceback, around what the file raised
    while "\n" in str(error) and error.__context__:
        error = error.__context__
    plain = isinstance(error, flags.Error | ValueError | SyntaxError)
    return str(error) if plain else f"{file}: {type(error).__name__}: {error}"


def is_ours(error: BaseException) -> bool:
    """Whether this package raised it, knowingly, and not a library in the middle of its work."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parent)


def main(argv: list[str]) -> None:
    file, _, words = config_flags.get_config_filename(FLAGS["config"]).partition(":")
    default = "runs/" + "-".join([Path(file).stem, *words.split(",")]).rstrip("-")
    print(config.render(_CONFIG.value), flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # training takes it over, to save
    try:
        from llmsrec_jax import pipeline  # slow to import: --help and mistakes answer at once

        pipeline.run(_CONFIG.value, Path(_WORKDIR.value or default), _MODE.value, _JOIN.value)
    except KeyboardInterrupt as error:
        fail(
            f"interrupted: {str(error) or 'by a signal'}\nthe same command goes on from there", 130
        )
    except (ValueError, OSError) as error:
        if _DEBUG.value or not (isinstance(error, OSError) or is_ours(error)):
            raise
        fail(f"error: {error} (--debug shows where)")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
