"""The command line as a user sees it: one clear line for a mistake, and nothing left behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
SHOP = str(REPO / "configs" / "shop.py")


def run(folder: Path, *args: str, program: tuple[str, ...] = ("-m", "llmsrec_jax.main")):
    return subprocess.run(
        [sys.executable, *program, *args],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )


FILES = {
    "broken.py": "def get_config(:\n",
    "raises.py": "def get_config(arg=None):\n    return unknown_name\n",
    "other.py": "def get_config(arg=None):\n    return {'lr': 1}\n",
    "empty.py": "",
    "illegal.py": (
        "from llmsrec_jax import config\n\n"
        "def get_config(arg=None):\n    return config.apply(config.Config(), {'train.lrr': 1})\n"
    ),
}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--config is missing: try --config=configs/shop.py, or --help"),
        (["--confg=x.py"], "Unknown command line flag 'confg'. Did you mean: config ?"),
        (["--config=brokn.py"], "--config=brokn.py: no such file (did you mean broken.py?)"),
        (["--config=broken.py"], "invalid syntax (broken.py, line 1)"),
        (["--config=raises.py"], "raises.py: NameError: name 'unknown_name' is not defined"),
        (["--config=other.py"], "other.py: TypeError: "),
        (["--config=empty.py"], "empty.py: AttributeError: "),
        (["--config=illegal.py"], "there is no setting train.lrr (did you mean train.lr?)"),
        ([f"--config={SHOP}:smok"], "unknown argument 'smok': known are default, "),
        (
            [f"--config={SHOP}", "--config.train.lrr=3"],
            "no setting train.lrr (did you mean train.lr",
        ),
        ([f"--config={SHOP}", "--config.tran.lr=3"], "no setting tran.lr (did you mean train.lr"),
        ([f"--config={SHOP}", "--config.train=3"], "train is a section; set one of train.batch"),
        ([f"--config={SHOP}", "--config.train.batch=2.5"], "--config.train.batch=2.5: invalid"),
        (
            [f"--config={SHOP}", "--config.train.lr=fast"],
            "--config.train.lr=fast: could not convert",
        ),
        ([f"--config={SHOP}", "--config.head.norm=maybe"], "--config.head.norm=maybe: "),
        ([f"--config={SHOP}", "--mode=reproduce"], "--mode=reproduce needs --experiment=NAME, one"),
        (
            [f"--config={SHOP}", "--mode=reproduce", "--experiment=tabel8"],
            "there is no experiment 'tabel8' (did you mean table8?)",
        ),
        (
            [f"--config={SHOP}", "--mode=reproduce", "--experiment=table8", "--seeds=0,x"],
            "--seeds: 'x' is no seed, give numbers as --seeds=0,1,2",
        ),
        (
            [f"--config={SHOP}", "--mode=reproduce", "--experiment=table8", "--seeds=0,1,0"],
            "--seeds=0,1,0: one of them stands twice",
        ),
        (
            [f"--config={SHOP}", "--mode=reproduce", "--experiment=table8", "--rows=LLM-SREK"],
            "there is no row 'llm-srek' (did you mean llm-srec?); this experiment has: ",
        ),
        (["--mode=report"], "--mode=report needs --workdir=DIR, for its page"),
        (["--mode=report", "--workdir=gone"], "gone: no such folder"),
        ([f"--config={SHOP}", "--dry-run"], "--rows and --dry-run need --mode=reproduce"),
        ([f"--config={SHOP}", "--config.data.ties=fil"], "data.ties='fil': must be one of random"),
        ([f"--config={SHOP}", "--config.evaluate.ks=1,5"], "10 is not in evaluate.ks=(1, 5)"),
        (
            [f"--config={SHOP}", "--config.evaluate.ks=1,x"],
            "evaluate.ks='x': must be of type int",
        ),
        ([f"--config={SHOP}", "--config.teacher.d=-1"], "teacher.d=-1: must be at least 1"),
        ([f"--config={SHOP}", "--mode=al"], "--mode=al: value should be one of <run|prepare|"),
        ([f"--config={SHOP}", "extra"], "unexpected 'extra': settings look like"),
        (["--config.seed=1", f"--config={SHOP}"], "before a value for --config was specified"),
    ],
)
def test_a_mistake_gives_one_line(tmp_path, args, message):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    result = run(tmp_path, *args)
    assert result.returncode == 2
    assert result.stdout == ""
    assert message in result.stderr and result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == set(FILES)


def test_debug_shows_the_traceback(tmp_path):
    result = run(tmp_path, "--debug", f"--config={SHOP}:smok")
    assert "Traceback" in result.stderr and "unknown argument 'smok'" in result.stderr


def test_help_is_quick_and_complete(tmp_path):
    start = time.monotonic()
    result = run(tmp_path, "--help", program=("-X", "importtime", "-m", "llmsrec_jax.main"))
    assert time.monotonic() - start < 5  # about a second on an idle machine
    assert result.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "llmsrec_jax.config" in imported
    assert not imported & {"jax", "flax", "orbax", "grain", "transformers", "polars", "numpy"}
    for word in (
        "--workdir",
        "--mode",
        "<run|prepare|teacher|train|evaluate|reproduce|report>",
        "save_every_s=120",
    ):
        assert word in result.stdout


def test_a_run_imports_nothing_that_it_does_not_need(tmp_path):
    """Start-up is imports: the slow libraries are for other sources, other tokenizers and later stages."""
    result = run(
        tmp_path,
        *(f"--config={SHOP}:smoke", "--mode=prepare", "--workdir=run"),
        program=("-X", "importtime", "-m", "llmsrec_jax.main"),
    )
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time")}
    assert {"llmsrec_jax.pipeline", "flax.nnx", "optax"} <= imported
    slow = {"tensorflow", "tensorflow_datasets", "torch", "transformers", "huggingface_hub"}
    slow |= {"polars", "matplotlib", "pandas", "scipy", "tokenizers", "grain", "orbax.checkpoint"}
    assert not imported & slow


STUB = """
import sys, types
from pathlib import Path
import llmsrec_jax
from llmsrec_jax import config, main

def run(cfg, workdir, mode, distributed):
    {body}

stub = types.ModuleType("llmsrec_jax.pipeline")
stub.run = run
llmsrec_jax.pipeline = sys.modules["llmsrec_jax.pipeline"] = stub
main.app.run(main.main, flags_parser=main.parse)
"""


def run_stub(folder: Path, body: str, *args: str):
    return run(folder, f"--config={SHOP}", *args, program=("-c", STUB.format(body=body)))


def test_overrides_reach_the_pipeline_typed(tmp_path):
    body = (
        "print(repr((cfg.train.lr, cfg.train.batch, cfg.evaluate.ks, cfg.head.norm, "
        "cfg.data.ties, cfg.data.files.user_column, str(workdir), mode)))"
    )
    result = run_stub(
        tmp_path,
        body,
        "--config.train.lr=1",
        "--config.train.batch",
        "30",
        "--config.evaluate.ks=5,10",
        "--noconfig.head.norm",
        "--config.data.ties=item",
        "--config.data.files.user_column=a b=c",
        "--mode=teacher",
    )
    assert result.returncode == 0, result.stderr
    shown, last = result.stdout.rsplit("\n", 2)[:2]
    assert last == repr((1.0, 30, (5, 10), False, "item", "a b=c", "runs/shop", "teacher"))
    assert "batch=30" in shown and "user_column='a b=c'" in shown


@pytest.mark.parametrize(
    ("args", "workdir"),
    [
        ([f"--config={SHOP}:smoke,paper"], "runs/shop-smoke-paper"),
        ([f"--config={SHOP}", "--workdir=elsewhere/x"], "elsewhere/x"),
        ([f"--config={SHOP}", "--config.evaluate.ks=(1, 10)"], "runs/shop"),
    ],
)
def test_workdir(tmp_path, args, workdir):
    program = ("-c", STUB.format(body="print(f'workdir {workdir} {cfg.evaluate.ks[0]}')"))
    result = run(tmp_path, *args, program=program)
    assert result.stdout.endswith(f"workdir {workdir} 1\n"), result.stderr


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("config.check_name('x')", 2, "error: there is no setting x (--debug shows where)"),
        (
            "open('absent.csv')",
            2,
            "error: [Errno 2] No such file or directory: 'absent.csv' (--debug",
        ),
        ("raise KeyboardInterrupt('saved at step 7')", 130, "interrupted: saved at step 7"),
        ("import os; os.kill(os.getpid(), 15)", 130, "interrupted: by a signal\nthe same command"),
    ],
)
def test_errors_of_a_run(tmp_path, body, code, message):
    result = run_stub(tmp_path, body)
    assert result.returncode == code
    assert message in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("body", "args"),
    [
        ("int('x')", ()),  # a ValueError that no check of this package raised
        ("{}['x']", ()),
        ("config.check_name('x')", ("--debug",)),
    ],
)
def test_a_bug_keeps_its_traceback(tmp_path, body, args):
    result = run_stub(tmp_path, body, *args)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
