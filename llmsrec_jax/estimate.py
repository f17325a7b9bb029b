"""How long a run will take, before it starts: counted operations over this machine's matmul rate. At most, since training may stop early."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmsrec_jax import config
from llmsrec_jax.benchmark import made, stages
from llmsrec_jax.benchmark.system import System
from llmsrec_jax.benchmark.work import TRAINED
from llmsrec_jax.keys import ALIGNMENT, DATA, PERMUTED, TEACHER, TEXTS, TRAIN, VECTORS
from llmsrec_jax.llama import flops
from llmsrec_jax.llama.config import LlamaConfig
from llmsrec_jax.llama.lora import TARGETS
from llmsrec_jax.models import allmrec, cf
from llmsrec_jax.pipeline import Run
from llmsrec_jax.stages.transfer import Transfer
from llmsrec_jax.stages.work import Work
from llmsrec_jax.text import config as text

TITLE, AROUND = (
    30,
    15,
)  # tokens of a title and of what stands around it in a prompt; means of Amazon's
OUTRO = 30
LISTED = TITLE + 4  # of a candidate in a prompt, with what parts it from the next one
ANSWER = TITLE + 1
# measured rates of whole prompts and of the teacher's windows, as shares of the matmul peak (BUILD_NOTES.md)
LLM_SHARE, TEACHER_SHARE = 1.0, 0.03
LIVE_SHARE = (
    0.5  # of useful operations, which whole prompts are where LoRA trains: no shortcut is left
)


# {folder of a stage: operations that are left to do, as if all ran at the matmul rate}: runs share stages
Operations = dict[Path, float]


class Sizes(NamedTuple):
    """Of prepared data."""

    users: int
    items: int
    length: float  # interactions per user


def rate(cfg: config.Config) -> float:
    """Matmul operations per second of all devices, measured now."""
    system = System(cfg, made.shape(cfg.data))
    return stages.peak(stages.Bench(system, 3, print))["flops_per_s"]


def sizes(work: Work) -> Sizes | None:
    """From the data card; before the data are prepared, from what is published of them, or None."""
    cfg, stage = work.cfg.data, work.stage("data", DATA)
    if stage.finished:
        card = stage.info["card"]
        return Sizes(card["users"], card["items"], card["length_mean"])
    if cfg.source == "shop":
        return Sizes(cfg.shop.users, cfg.shop.items, 13.0)
    if cfg.category in made.SHAPES:
        shape = made.shape(cfg)
        return Sizes(shape.users, shape.items, shape.interactions / shape.users)
    return None


def operations(run: Run, with_llm: bool) -> Operations | None:
    """Of all stages that are not finished; None where nothing is known of the data."""
    work, known = run.work, sizes(run.work)
    if known is None:
        return None
    found = _teacher(work, known)
    if with_llm and run.before is not None:
        found |= _training(run.before.work, known)
    if with_llm:
        found |= _alignment(work, known) | _training(work, known) | _vectors(work, known)
    return found


def transfer_operations(transfer: Transfer) -> Operations | None:
    """Of what comes on top for another dataset; None where nothing is known of it."""
    work, known = transfer.work, sizes(transfer.work)
    if known is None:
        return None
    encoding, found = transfer.encoding, {}
    if not encoding.finished:
        found[encoding.folder] = _encode(work, known, _tested(work, known), known.items)
    return found | (_teacher(work, known) if transfer.trains else {})


def _teacher(work: Work, known: Sizes) -> Operations:
    stage = work.stage("teacher", TEACHER)
    if stage.finished:
        return {}
    teacher = work.cfg.teacher
    n = min(known.length, teacher.max_len)
    of_window = cf.operations(teacher, n, n, known.items)
    windows = known.users * (known.length / n if teacher.windows == "all" else 1)
    return {stage.folder: TRAINED * of_window * windows * teacher.epochs / TEACHER_SHARE}


def _alignment(work: Work, known: Sizes) -> Operations:
    """Titles to vectors, and stage 1."""
    cfg, found = work.cfg.alignment, {}
    if not cfg.trains:
        return found
    shape = text.from_hf(text.locate(cfg.text))
    texts, stage = work.stage("texts", TEXTS), work.stage("alignment", ALIGNMENT)
    if not texts.finished:
        weights = shape.layers * shape.d * (4 * shape.d + 2 * shape.ff)
        found[texts.folder] = 2 * weights * TITLE * known.items / LLM_SHARE
    if not stage.finished:
        of_sample = allmrec.operations(work.cfg.teacher.d, shape.d, cfg.middle)
        found[stage.folder] = TRAINED * of_sample * known.users * cfg.epochs / TEACHER_SHARE
    return found


def _encode(work: Work, known: Sizes, users: float, items: float, backward: bool = False) -> float:
    """Operations of so many user and item prompts."""
    live = work.cfg.lora.trains  # no token is constant: there are no shortcuts
    cost = partial(_prompt, work, backward=backward, live=live)
    return users * cost(_history(work, known)) + items * cost(TITLE + AROUND)


def _read(
    work: Work, known: Sizes, users: float, listed: int, answers: int, backward: bool = False
) -> float:
    """Operations of so many prompts that list candidates, with some of their titles as answers (E1). All is live, as it is computed."""
    shape = work.keys.backbone[0]
    tokens = _history(work, known, listed * LISTED + ANSWER) + (answers - 1) * ANSWER
    predicted = flops.logits(shape) * answers * ANSWER * (TRAINED if backward else 1)
    return users * (_prompt(work, tokens, backward, True) + predicted / LLM_SHARE)


def _history(work: Work, known: Sizes, more: int = 0) -> int:
    """Tokens of a user's prompt, `more` of which are no history."""
    cfg = work.cfg.prompts
    shown = min(known.length, cfg.history_len)
    return int(min(cfg.max_tokens, OUTRO + shown * (TITLE + AROUND) + more))


def _prompt(work: Work, tokens: int, backward: bool, live: bool) -> float:
    """Operations of one. live: no token of it is constant in training."""
    lora, shape = work.cfg.lora, work.keys.backbone[0]
    whole = flops.whole(shape, np.array([tokens]), backward=backward)
    cost = whole + _lora(lora, shape, tokens) * (TRAINED if backward else 1)
    return cost / (LIVE_SHARE if backward and live else LLM_SHARE)


def _lora(lora: config.Lora, shape: LlamaConfig, tokens: int) -> float:
    """Of a prompt, forward; none where A and B are part of the weights."""
    if not lora.trains:
        return 0.0
    names = [TARGETS[each] for each in lora.targets]
    return flops.lora(shape, lora.rank, names, tokens, 1)


def _tested(work: Work, known: Sizes) -> int:
    return min(work.cfg.evaluate.max_users or known.users, known.users)


def _training(work: Work, known: Sizes) -> Operations:
    cfg, train = work.cfg, work.cfg.train
    checkpoints = work.stage("checkpoints", TRAIN)
    if checkpoints.finished:
        return {}
    users = min(train.max_users or known.users, known.users)
    samples = users * max(known.length - 3, 1) if train.targets == "all" else users
    valid = min(cfg.evaluate.validation_users or known.users, known.users)
    seen = min(known.items, valid * (1 + cfg.evaluate.negatives))
    candidates = 1 + train.negatives
    if cfg.prompts.retrieves:
        steps = _encode(work, known, samples, samples * candidates, True)
    else:
        steps = _read(work, known, samples, candidates, 1, True)
    validations = train.validations_per_epoch * _judged(work, known, valid, seen)
    whole = train.epochs * (steps + validations)
    return {checkpoints.folder: whole}


def _judged(work: Work, known: Sizes, users: float, items: float) -> float:
    """Operations of so many users and, where they are retrieved, items; else of all candidates of every user."""
    if work.cfg.prompts.retrieves:
        return _encode(work, known, users, items)
    candidates = 1 + work.cfg.evaluate.negatives
    return _read(work, known, users, candidates, candidates)


def _vectors(work: Work, known: Sizes) -> Operations:
    of, found = partial(_judged, work, known), {}
    name = "vectors" if work.cfg.prompts.retrieves else "titles"
    tested, vectors = _tested(work, known), work.stage(name, VECTORS)
    if not vectors.finished:
        found[vectors.folder] = of(tested, known.items)
    for number in range(1, work.cfg.order.permutations + 1):
        permuted = work.stage("permuted", PERMUTED, permutation=number)
        if not permuted.finished:
            found[permuted.folder] = of(tested, 0)
    return found
