"""The command line that all programs share: a config file with typed overrides, and one line for a mistake."""

import re
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, cast, get_args, get_origin

from absl import flags, logging
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from llmsrec_jax import config, rules


class _Listed(tuple_parser.TupleParser):
    """Of words as of numbers, without quotes: a,b."""

    def parse(self, argument: Any) -> tuple[Any, ...]:
        parse = super().parse
        values = parse(argument)
        if len(values) == 1 and isinstance(values[0], str):
            return tuple(value for word in values[0].split(",") for value in parse(word))
        return values


FLAGS = flags.FLAGS
FLAGS.verbosity = logging.WARNING  # unless given: absl would show the remarks of libraries
config_flags.register_flag_parser_for_type(cast(Any, Literal), flags.ArgumentParser())
config_flags.register_flag_parser_for_type(tuple, _Listed())
CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py[:WORD,WORD]")
DEBUG = flags.DEFINE_bool("debug", False, "show the traceback of an error")


def fail(message: str, code: int = 2) -> NoReturn:
    sys.stderr.write(f"{message}\n")  # at once: several processes may share the console
    sys.exit(code)


def parse(argv: list[str], doc: str, needs_config: Callable[[], bool] = lambda: True) -> list[str]:
    """Parses the command line of the program that `doc` describes; a mistake ends it with one line that says what to do.

    needs_config: whether the other flags ask for something that is configured.
    """
    if {"--help", "-help", "-h"} & set(argv):
        print(f"{doc}\nflags:\n{FLAGS.main_module_help()}\n\n--config.NAME=DEFAULT|OTHER:")
        print(render(config.Config(), legal=True))
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
        if not given and needs_config():
            raise ValueError("--config is missing: try --config=configs/shop.py, or --help")
        if rest[1:]:
            raise ValueError(f"unexpected {rest[1]!r}: settings look like --config.train.lr=3e-4")
        if needs_config():
            rules.validate(CONFIG.value)
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


def render(cfg: config.Config, legal: bool = False) -> str:
    """The whole tree for a person: one paragraph per section; with `legal`, what else a word may be."""
    sections: dict[str, list[str]] = {}
    for name, value, declared in config.flatten(cfg):
        section, _, leaf = name.rpartition(".")
        words = get_args(declared) if legal and get_origin(declared) is Literal else (value,)
        shown = "|".join([str(value), *(str(word) for word in words if word != value)])
        if isinstance(value, tuple):
            shown = ",".join(map(str, value))
        sections.setdefault(section, []).append(
            f"{leaf}={shown!r}" if " " in shown else f"{leaf}={shown}"
        )
    return "\n".join(
        textwrap.fill(
            (f"{section}: " if section else "") + " ".join(settings),
            width=100,
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for section, settings in sections.items()
    )


def folder_name() -> str:
    """FILE[-WORD..] of `--config=FILE.py:WORD,..`: what a run's folder is called by default."""
    file, _, words = config_flags.get_config_filename(FLAGS["config"]).partition(":")
    return "-".join([Path(file).stem, *words.split(",")]).rstrip("-")


def stop(error: BaseException) -> NoReturn:
    """Ends the program for an error of a run: one line for what a user can mend, a traceback for a bug."""
    mendable = isinstance(error, OSError) or is_ours(error)
    if DEBUG.value or not mendable:
        raise error
    fail(f"error: {error} (--debug shows where)")


def is_ours(error: BaseException) -> bool:
    """Whether this package raised it, knowingly, and not a library in the middle of its work."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parent)
