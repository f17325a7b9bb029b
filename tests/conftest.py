"""Fixtures shared by the suite. Set before jax is imported: CPU, four fake devices, programs kept for this session."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compilation, and programs are small here: with these a model's gradients compile in a ninth of it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
QUICK = "--xla_cpu_use_fusion_emitters=false"
for flag in ("--xla_force_host_platform_device_count=4", QUICK):
    if flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # for this session alone
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # no file of it is ever half written by another
    os.environ["JAX_COMPILATION_CACHE_DIR"] += f"/{worker}"

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data and oracles; the test is skipped where it is absent."""
    folder = Path(os.environ.get("LLMSREC_SHARED", REPO.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data at {folder}: set LLMSREC_SHARED")
    return folder


@pytest.fixture(scope="session")
def oracle() -> Path:
    """Folder of one oracle set (arrays recorded from the authors' code)."""
    default = Path(os.environ.get("LLMSREC_SHARED", REPO.parent / "shared")) / "oracle" / "public"
    folder = Path(os.environ.get("LLMSREC_ORACLE", default))
    if not (folder / "heads.npz").is_file():
        pytest.skip(f"no oracle arrays at {folder}: set LLMSREC_ORACLE")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The work folder of a run of `tiny()`, left as it is by every test: copy it to change it."""
    from llmsrec_jax import pipeline
    from tests.systems import tiny

    workdir = tmp_path_factory.mktemp("runs") / "finished"
    pipeline.run(tiny(), workdir)
    return workdir


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))
