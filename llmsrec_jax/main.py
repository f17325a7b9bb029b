"""Trains and evaluates LLM-SRec: interactions in; a frozen SASRec teacher, the model and honest metrics out.

  python -m llmsrec_jax.main --config=configs/shop.py
  python -m llmsrec_jax.main --config=configs/files.py:smoke --config.train.lr=3e-4 --workdir=runs/mine
  python -m llmsrec_jax.main --config=configs/shop.py --mode=reproduce --experiment=order_suite --seeds=0,1,2

Running a command again skips what is finished and resumes what was interrupted.
"""

import signal
from functools import partial
from pathlib import Path

from absl import app, flags

from llmsrec_jax import command, config, experiments

MODES = ("run", "prepare", "teacher", "train", "evaluate", "reproduce")
flags.adopt_module_key_flags(command)
_WORKDIR = flags.DEFINE_string("workdir", None, "where everything goes; default runs/FILE[-WORD]")
_MODE = flags.DEFINE_enum("mode", "run", MODES, "which stage, after those it needs; run = all")
_JOIN = flags.DEFINE_string("distributed", "off", "auto | off | HOST:PORT,N,I: process I of N")
_EXPERIMENT = flags.DEFINE_string(
    "experiment", "", f"of --mode=reproduce: <{'|'.join(experiments.EXPERIMENTS)}>"
)
_SEEDS = flags.DEFINE_list("seeds", None, "of --mode=reproduce: N,N,..; default config.seed")
_DRY = flags.DEFINE_bool("dry-run", False, "of --mode=reproduce: only say what would run")
parse = partial(command.parse, doc=str(__doc__))


def _check() -> None:
    """Raises ValueError: flags that do not go together."""
    given = _EXPERIMENT.present or _SEEDS.present or _DRY.present
    if given and _MODE.value != "reproduce":
        raise ValueError("--experiment, --seeds and --dry-run need --mode=reproduce")
    if _MODE.value == "reproduce":
        experiments.find(_EXPERIMENT.value)
        for word in _SEEDS.value or ():
            if not word.isdecimal():
                raise ValueError(f"--seeds: {word!r} is no seed, give numbers as --seeds=0,1,2")


def _do(cfg: config.Config, workdir: Path) -> None:
    """What --mode says. Its imports are slow: --help and mistakes answer at once."""
    if _MODE.value == "reproduce":
        from llmsrec_jax import reproduce

        seeds = [int(word) for word in _SEEDS.value or [cfg.seed]]
        reproduce.run(cfg, workdir, _EXPERIMENT.value, seeds, _DRY.value, _JOIN.value)
    else:
        from llmsrec_jax import pipeline

        pipeline.run(cfg, workdir, _MODE.value, _JOIN.value)


def main(argv: list[str]) -> None:
    try:
        _check()
    except ValueError as error:
        command.stop(error)
    workdir = Path(_WORKDIR.value or f"runs/{command.folder_name()}")
    print(config.render(command.CONFIG.value), flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # training takes it over, to save
    try:
        _do(command.CONFIG.value, workdir)
    except KeyboardInterrupt as error:
        command.fail(
            f"interrupted: {str(error) or 'by a signal'}\nthe same command goes on from there", 130
        )
    except (ValueError, OSError) as error:
        command.stop(error)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
