"""What an LLM is asked for, as far as a benchmark goes: vectors of users and items, or the titles of candidates."""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from llmsrec_jax import loaders, parallel, stores, title_loaders
from llmsrec_jax.benchmark import work
from llmsrec_jax.benchmark.padded import Whole
from llmsrec_jax.benchmark.system import System
from llmsrec_jax.data import sampling
from llmsrec_jax.data.interactions import Histories
from llmsrec_jax.memory import Job, RetrievalJob
from llmsrec_jax.models import llm4rec, titles
from llmsrec_jax.prompts.prompts import LatePrompts, Prompts
from llmsrec_jax.prompts.titles import Question, TitlePrompts
from llmsrec_jax.title_memory import TitleJob


class Encoding(NamedTuple):
    """All prompts of a kind, to be read once."""

    prompts: Prompts | LatePrompts
    program: Any  # of a batch of them, jitted
    store: stores.ItemStore | None = None
    outs: int = 1  # tokens that a prompt is asked for, at most


class Retrieval:
    """Vectors of users and of items."""

    kinds = ("users", "items")  # of prompts that inference reads
    objective = staticmethod(llm4rec.loss)

    def __init__(self, system: System):
        self._system = system

    @cached_property
    def job(self) -> Job:
        """As far as memory goes."""
        system = self._system
        prompts = system.made.builder, system.samples
        return RetrievalJob.of(system.cfg, system.located, *prompts, system.mesh)

    @cached_property
    def batches(self) -> loaders.LLMBatches:
        """Of training."""
        system = self._system
        parts = (system.samples, system.made.builder, system.cf_users)
        return loaders.LLMBatches(*parts, system.cfg, system.mesh.parts, store=system.store)

    def whole(self, step: int) -> Whole:
        """What the batch of a step is made of."""
        return Whole.of(self.batches, step)

    def step(self, step: int, sizes: work.Sizes) -> work.Work:
        """Work of a training step."""
        return sizes.step(self.whole(step))

    def epoch(self, sizes: work.Sizes) -> work.Work:
        """Work of all training steps, every item a candidate equally often."""
        system, prompts = self._system, self._system.cfg.prompts
        builder, samples = system.made.builder, system.samples
        slots = np.minimum(samples.lengths, prompts.history_len).sum() * prompts.item_repr
        told = len(samples) * prompts.user_repr
        lengths = builder.user_lengths(samples)
        users = sizes.prompts(*lengths, float(slots), told, training=True)
        items = builder.items(np.arange(1, system.made.dataset.catalog.size))
        each = items.prefix_len.astype(np.int64), items.live_lengths
        all_once = sizes.prompts(*each, len(items) * prompts.item_repr, training=True)
        times = len(samples) * (1 + system.cfg.train.negatives) / len(items)
        return users + all_once.scaled(times)

    def prompts(self, kind: str) -> Prompts | LatePrompts:
        """Of all items, or of the evaluated users (the test set's inputs)."""
        system, made = self._system, self._system.made
        if kind == "items":
            return made.builder.items(np.arange(1, made.dataset.catalog.size))
        histories = tested(system)[1]
        return made.builder.later(histories, system.told(len(histories)))

    def encoding(self, kind: str) -> Encoding:
        """Of `prompts(kind)`."""
        system = self._system
        store = system.store if kind == "items" else None
        return Encoding(self.prompts(kind), system.encoder(kind), store)

    def work(self, kind: str, sizes: work.Sizes) -> work.Work:
        """Of reading them once."""
        prompts = self.prompts(kind)
        return sizes.encoding(prompts.take(np.arange(len(prompts))))


class Titles:
    """The next item's title, and every candidate's (E1)."""

    kinds = ("users",)
    objective = staticmethod(titles.loss)

    def __init__(self, system: System):
        self._system = system

    @cached_property
    def builder(self) -> TitlePrompts:
        """What builds the prompts."""
        return self._system.made.titles(title_loaders.listed(self._system.cfg))

    @cached_property
    def job(self) -> Job:
        """As far as memory goes."""
        system = self._system
        parts = self.builder, system.samples, self.judged
        return TitleJob.of(system.cfg, system.llama, *parts, system.mesh)

    @cached_property
    def batches(self) -> title_loaders.TitleBatches:
        """Of training."""
        system = self._system
        told = system.cf_users if system.cfg.prompts.user_repr else None
        parts = system.samples, self.builder, told
        return title_loaders.TitleBatches(*parts, system.cfg, system.mesh.parts)

    def step(self, step: int, sizes: work.Sizes) -> work.Work:
        """Work of a training step."""
        rows, question = self.batches.members(step)
        samples = self._system.samples.take(rows)
        return sizes.answers(self.builder, samples, question, training=True)

    def epoch(self, sizes: work.Sizes) -> work.Work:
        """Work of all training steps."""
        samples, cfg = self._system.samples, self._system.cfg
        question = title_loaders.asked_in_training(samples, np.arange(len(samples)), 0, cfg)
        return sizes.answers(self.builder, samples, question, training=True)

    @cached_property
    def judged(self) -> tuple[Histories, Question]:
        """The evaluated users, and what they are asked."""
        system, cfg = self._system, self._system.cfg
        users, histories = tested(system)
        ranked = users, cfg.evaluate.negatives, cfg.evaluate.sampling, cfg.seed
        candidates = sampling.candidates(system.made.dataset, "test", *ranked)
        return histories, Question(candidates, candidates)

    def prompts(self, kind: str) -> LatePrompts:
        """Of the evaluated users, with the titles of all their candidates."""
        histories, question = self.judged
        return self.builder.later(histories, question, self._system.told(len(histories)))

    def encoding(self, kind: str) -> Encoding:
        """Of `prompts(kind)`."""
        system = self._system
        read = titles.encoder(system.model[0], system.llama_graph)
        outs = int(self.builder.asked(self.judged[1]).max())
        return Encoding(self.prompts(kind), parallel.encode_wrapper(read, system.mesh), outs=outs)

    def work(self, kind: str, sizes: work.Sizes) -> work.Work:
        """Of reading them once."""
        return sizes.answers(self.builder, *self.judged, training=False)


Task = Retrieval | Titles


def of(system: System) -> Task:
    """The one of `prompts.task`."""
    return (Retrieval if system.cfg.prompts.retrieves else Titles)(system)


def tested(system: System) -> tuple[np.ndarray, Histories]:
    """Evaluated users int [n], and what they are known by."""
    dataset, limit = system.made.dataset, system.cfg.evaluate.max_users
    users = dataset.eligible("test")
    users = users[:limit] if limit else users
    return users, dataset.inputs("test", users)
