"""How long a run will take, before it starts: counted operations over this machine's matmul rate. At most, since training may stop early."""

from typing import NamedTuple

import numpy as np

from llmsrec_jax import config
from llmsrec_jax.benchmark import made, stages
from llmsrec_jax.benchmark.system import System
from llmsrec_jax.keys import DATA, PERMUTED, TEACHER, TRAIN, VECTORS
from llmsrec_jax.llama import flops
from llmsrec_jax.pipeline import Run

TITLE, AROUND = (
    30,
    15,
)  # tokens of a title and of what stands around it in a prompt; means of Amazon's
OUTRO = 30
# measured rates of whole prompts and of the teacher's windows, as shares of the matmul peak (BUILD_NOTES.md)
LLM_SHARE, TEACHER_SHARE = 1.0, 0.03


class Sizes(NamedTuple):
    """Of prepared data."""

    users: int
    items: int
    length: float  # interactions per user


def rate(cfg: config.Config) -> float:
    """Matmul operations per second of all devices, measured now."""
    system = System(cfg, made.shape(cfg.data))
    return stages.peak(stages.Bench(system, 3, print))["flops_per_s"]


def sizes(run: Run) -> Sizes | None:
    """From the data card; before the data are prepared, from what is published of them, or None."""
    cfg, stage = run.work.cfg.data, run.work.stage("data", DATA)
    if stage.finished:
        card = stage.info["card"]
        return Sizes(card["users"], card["items"], card["length_mean"])
    if cfg.source == "shop":
        return Sizes(cfg.shop.users, cfg.shop.items, 13.0)
    if cfg.category in made.SHAPES:
        shape = made.shape(cfg)
        return Sizes(shape.users, shape.items, shape.interactions / shape.users)
    return None


def seconds(run: Run, with_llm: bool, flops_per_s: float) -> float | None:
    """Of all stages that are not finished; None where nothing is known of the data."""
    cfg, work, known = run.work.cfg, run.work, sizes(run)
    if known is None:
        return None
    total, teacher = 0.0, cfg.teacher
    if not work.stage("teacher", TEACHER).finished:
        n = min(known.length, teacher.max_len)
        of_window = 12 * teacher.d**2 * n * teacher.blocks + 2 * teacher.d * n
        total += 3 * of_window * known.users * teacher.epochs / TEACHER_SHARE
    if with_llm:
        total += _llm(run, known) / LLM_SHARE
    return total / flops_per_s


def _llm(run: Run, known: Sizes) -> float:
    """Operations of training and encoding what is not yet there."""
    cfg, work, train = run.work.cfg, run.work, run.work.cfg.train
    shape = work.keys.backbone[0]
    shown = min(known.length, cfg.prompts.history_len)
    user = int(min(cfg.prompts.max_tokens, OUTRO + shown * (TITLE + AROUND)))
    cost = lambda tokens, back: flops.whole(shape, np.array([tokens]), backward=back)
    of = lambda users, items, back=False: (
        users * cost(user, back) + items * cost(TITLE + AROUND, back)
    )
    total = 0.0
    if not work.stage("checkpoints", TRAIN).finished:
        users = min(train.max_users or known.users, known.users)
        samples = users * max(known.length - 3, 1) if train.targets == "all" else users
        total += train.epochs * of(samples, samples * (1 + train.negatives), True)
        valid = min(cfg.evaluate.validation_users or known.users, known.users)
        seen = min(known.items, valid * (1 + cfg.evaluate.negatives))
        total += train.epochs * train.validations_per_epoch * of(valid, seen)
    tested = min(cfg.evaluate.max_users or known.users, known.users)
    if not work.stage("vectors", VECTORS).finished:
        total += of(tested, known.items)
    for number in range(1, cfg.order.permutations + 1):
        if not work.stage("permuted", PERMUTED, permutation=number).finished:
            total += of(tested, 0)
    return total
