"""A benchmark in miniature."""

import pytest

from llmsrec_jax import config
from llmsrec_jax.benchmark import made
from llmsrec_jax.benchmark.stages import Bench
from llmsrec_jax.benchmark.system import System
from tests.systems import tiny

SMALL = {
    "data.source": "amazon",
    "data.category": "Industrial_and_Scientific",
    "data.max_users": 40,
    "evaluate.batch": 4,
    "evaluate.max_users": 8,
    "train.batch": 4,
    "train.max_users": 12,
}


def small() -> config.Config:
    return tiny(SMALL)


@pytest.fixture(scope="session")
def bench() -> Bench:
    cfg = small()
    return Bench(System(cfg, made.shape(cfg.data)), repeats=2, say=print)
