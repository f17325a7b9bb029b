"""Trains and evaluates LLM-SRec: interactions in; a frozen SASRec teacher, the model and honest metrics out.

  python -m llmsrec_jax.main --config=configs/shop.py
  python -m llmsrec_jax.main --config=configs/files.py:smoke --config.train.lr=3e-4 --workdir=runs/mine
  python -m llmsrec_jax.main --config=configs/shop.py --mode=reproduce --experiment=order_suite --seeds=0,1,2
  python -m llmsrec_jax.main --mode=report --workdir=runs/shop

Running a command again skips what is finished and resumes what was interrupted.
"""

import signal
from functools import partial
from pathlib import Path

from absl import app, flags

from llmsrec_jax import command, config, experiments

MODES = ("run", "prepare", "teacher", "train", "evaluate", "reproduce", "report")
flags.adopt_module_key_flags(command)
_WORKDIR = flags.DEFINE_string("workdir", None, "where everything goes; default runs/FILE[-WORD]")
_MODE = flags.DEFINE_enum("mode", "run", MODES, "which stage, after those it needs; run = all")
_JOIN = flags.DEFINE_string("distributed", "off", "auto | off | HOST:PORT,N,I: process I of N")
_EXPERIMENT = flags.DEFINE_string(
    "experiment", "", f"of --mode=reproduce: <{'|'.join(experiments.EXPERIMENTS)}>"
)
_SEEDS = flags.DEFINE_list("seeds", None, "of --mode=reproduce: N,N,..; default config.seed")
_ROWS = flags.DEFINE_string(
    "rows", "", "of --mode=reproduce: NAME,NAME,..: run only these rows of the table; default all"
)
_DRY = flags.DEFINE_bool("dry-run", False, "of --mode=reproduce: only say what would run")
_FOLDERS = flags.DEFINE_list("folders", None, "of --mode=report: DIR,..; default --workdir")
parse = partial(command.parse, doc=str(__doc__), needs_config=lambda: _MODE.value != "report")


def _check() -> None:
    """Raises ValueError: flags that do not go together."""
    if _FOLDERS.present and _MODE.value != "report":
        raise ValueError("--folders needs --mode=report")
    if not (_WORKDIR.present or command.CONFIG.present):
        raise ValueError(
            "--mode=report needs --workdir=DIR, for its page and what it is of, or the --config=FILE.py of the runs"
        )
    given = _EXPERIMENT.present or _SEEDS.present or _ROWS.present or _DRY.present
    if given and _MODE.value != "reproduce":
        raise ValueError("--experiment, --seeds, --rows and --dry-run need --mode=reproduce")
    if _MODE.value == "reproduce":
        if not _EXPERIMENT.value:
            known = ", ".join(experiments.EXPERIMENTS)
            raise ValueError(f"--mode=reproduce needs --experiment=NAME, one of {known}")
        experiments.rows(experiments.find(_EXPERIMENT.value), _ROWS.value)
        if len({*(_SEEDS.value or ())}) < len(_SEEDS.value or ()):
            raise ValueError(f"--seeds={','.join(_SEEDS.value or ())}: one of them stands twice")
        for word in _SEEDS.value or ():
            if not word.isdecimal():
                raise ValueError(f"--seeds: {word!r} is no seed, give numbers as --seeds=0,1,2")


# Imports of what a mode needs are slow: --help and mistakes answer at once.
def _run(cfg: config.Config, workdir: Path) -> None:
    from llmsrec_jax import pipeline

    print(command.render(cfg), flush=True)
    pipeline.run(cfg, workdir, _MODE.value, _JOIN.value)


def _reproduce(cfg: config.Config, workdir: Path) -> None:
    from llmsrec_jax import reproduce

    print(command.render(cfg), flush=True)
    seeds = [int(word) for word in _SEEDS.value or [cfg.seed]]
    what = _EXPERIMENT.value, seeds, _DRY.value, _JOIN.value, _ROWS.value
    reproduce.run(cfg, workdir, *what)


def _report(cfg: config.Config, workdir: Path) -> None:
    from llmsrec_jax import report

    folders = [Path(folder) for folder in _FOLDERS.value or [workdir]]
    print(*report.write(folders, workdir / "report"), sep="\n")


def main(argv: list[str]) -> None:
    try:
        _check()
    except ValueError as error:
        command.fail(f"error: {error}")
    workdir = Path(_WORKDIR.value or f"runs/{command.folder_name()}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # training takes it over, to save
    do = {"reproduce": _reproduce, "report": _report}.get(_MODE.value, _run)
    try:
        do(command.CONFIG.value, workdir)
    except KeyboardInterrupt as error:
        command.fail(
            f"interrupted: {str(error) or 'by a signal'}\nthe same command goes on from there", 130
        )
    except (ValueError, OSError) as error:
        command.stop(error)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
