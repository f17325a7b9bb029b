"""What a stage has to do, counted from real lengths: rows, tokens, useful operations (llama/flops.py, and the small heads)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmsrec_jax import config
from llmsrec_jax.batch import HISTORY, ITEM_OUT, USER_REPR, SequenceBatch
from llmsrec_jax.benchmark.padded import Whole
from llmsrec_jax.data.interactions import Histories
from llmsrec_jax.llama import flops
from llmsrec_jax.llama.config import LlamaConfig
from llmsrec_jax.llama.lora import TARGETS
from llmsrec_jax.models import allmrec, cf
from llmsrec_jax.prompts.prompts import Prompts
from llmsrec_jax.prompts.titles import Question, TitlePrompts
from llmsrec_jax.prompts.trunks import in_training

TRAINED = 3  # forward, backward to inputs, backward to weights


@dataclass(frozen=True)
class Work:
    """Of prompts or windows. `whole` is what the job costs without shortcuts: every layer at every token, and back."""

    rows: float = 0.0
    tokens: float = 0.0  # real ones
    live: float = 0.0  # of them, not in a constant prefix
    flops: float = 0.0  # useful
    whole: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.rows + other.rows,
            self.tokens + other.tokens,
            self.live + other.live,
            self.flops + other.flops,
            self.whole + other.whole,
        )

    def scaled(self, factor: float) -> "Work":
        values = (self.rows, self.tokens, self.live, self.flops, self.whole)
        return Work(*(factor * value for value in values))


def summed(parts: Iterable[Work]) -> Work:
    return sum(parts, Work())


def _head(fan_in: int, hidden: int, fan_out: int) -> int:
    return 2 * (fan_in * hidden + hidden * fan_out)


class Sizes:
    """Which operations a configuration needs per prompt."""

    def __init__(self, cfg: config.Config, llama: LlamaConfig):
        self.llama, self._lora, self._prompts = llama, cfg.lora, cfg.prompts
        self._keeps_items = cfg.llm.item_store != "recompute"
        self._slot = _head(cfg.item_width, llama.d, llama.d)
        self._user_slot = _head(cfg.teacher.d, llama.d, llama.d)
        self._head = _head(llama.d, cfg.head.hidden, cfg.head.dim)

    def prompts(
        self,
        prefix: np.ndarray,
        live: np.ndarray,
        slots: float,
        told: float = 0.0,
        *,
        training: bool,
        kept: np.ndarray | bool = False,
    ) -> Work:
        """Of prompts with these lengths (int [n] each) and this many slots of items, and of users, to project in all; `kept`: no prefix to compute."""
        llama, total = self.llama, prefix + live
        if training:
            prefix, live = in_training((prefix, live), self._lora)
        times = TRAINED if training else 1
        heads = times * (self._projected(slots, told) + len(live) * self._head)
        useful = flops.prefill(llama, np.where(kept, 0, prefix))
        useful += flops.extend(llama, prefix, live)
        if training:
            useful += flops.extend_backward(llama, prefix, live)
        whole = flops.whole(llama, total, backward=training)
        tokens = float(total.sum())
        rest = heads + times * self._added(tokens, len(live))
        return Work(len(live), tokens, float(live.sum()), useful + rest, whole + rest)

    def answers(
        self, builder: TitlePrompts, histories: Histories, question: Question, *, training: bool
    ) -> Work:
        """Of prompts that ask for a title. All their tokens are live; without shortcuts every answer has a prompt of its own."""
        llama, times = self.llama, TRAINED if training else 1
        own = builder.tokens(question.answers)[1] - 1
        trunk = builder.lengths(histories, question) - own.sum(axis=1)
        shown = np.minimum(histories.lengths, self._prompts.history_len).sum()
        slots = float(shown + question.candidates.size) * self._prompts.item_repr
        told = len(trunk) * self._prompts.user_repr
        useful = flops.answers(llama, trunk, own)
        if training:
            useful += flops.answers(llama, trunk, own, backward=True)
        tokens, read = float(trunk.sum() + own.sum()), float(len(trunk) + own.sum())
        projected = self._projected(slots, told)
        useful += times * (projected + self._added(tokens, read))
        alone, answers = trunk[:, None] + own, own.shape[1]
        whole = flops.whole(llama, alone, backward=training)
        whole += float((own + 1).sum()) * flops.logits(llama) * (2 if training else 1)
        every = float(alone.sum())
        whole += times * (answers * projected + self._added(every, every))
        return Work(len(trunk), tokens, tokens, useful, whole)

    def _projected(self, slots: float, told: float) -> float:
        return slots * self._slot + told * self._user_slot

    def _added(self, tokens: float, read: float) -> float:
        """By LoRA, at so many tokens of which so many are read."""
        if not self._lora.trains:
            return 0.0
        names = [TARGETS[each] for each in self._lora.targets]
        return flops.lora(self.llama, self._lora.rank, names, tokens, read)

    def encoding(self, prompts: Prompts, *, training: bool = False) -> Work:
        """Of whole prompts; prefixes that are kept cost nothing."""
        lengths = prompts.prefix_len.astype(np.int64), prompts.live_lengths
        is_item = prompts.kind[prompts.offsets[1:] - 1] == ITEM_OUT
        kept = is_item & self._keeps_items
        slots = [float((prompts.kind == kind).sum()) for kind in (HISTORY, USER_REPR)]
        return self.prompts(*lengths, *slots, training=training, kept=kept)

    def step(self, whole: Whole) -> Work:
        """Of a training step; `rows` are its users."""
        users, items = (self.encoding(p, training=True) for p in (whole.users, whole.items))
        return replace(users + items, rows=users.rows)


def windows(cfg: config.Teacher, items: int, batches: tuple[SequenceBatch, ...]) -> Work:
    """A training step of the teacher on real columns, in a catalogue of so many items.

    No constant prefix and nothing to save: all tokens are live, useful is whole.
    """
    count = lambda x: np.sum(x != 0, axis=-1, dtype=np.int64).reshape(-1)
    n = np.concatenate([count(group.history) for group in batches])
    asked = np.concatenate([count(group.positive) for group in batches])
    total, columns = TRAINED * cf.operations(cfg, n, asked, items), float(n.sum())
    return Work(len(n), columns, columns, total, total)


def aligned(cfg: config.Config, text: int, samples: int) -> Work:
    """A training step of A-LLMRec's stage 1, with text vectors of that width; it reads no tokens."""
    of_sample = allmrec.operations(cfg.teacher.d, text, cfg.alignment.middle)
    total = float(TRAINED * of_sample * samples)
    return Work(samples, flops=total, whole=total)


def rates(work: Work, seconds: Any, peak: float) -> dict[str, Any]:
    """Per second of the median: rows, tokens, live tokens, useful operations, and these as a share of the matmul peak."""
    each = seconds.median
    return {
        "rows_per_s": work.rows / each,
        "tokens_per_s": work.tokens / each,
        "live_tokens_per_s": work.live / each,
        "useful_flops": work.flops,
        "useful_flops_per_s": work.flops / each,
        "share_of_peak": work.flops / each / peak,
        "whole_share_of_peak": work.whole / each / peak,
    }
