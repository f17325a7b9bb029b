"""Batches of title generation (E1): prompts with candidates, and the title that follows; as in loaders.py, functions of (seed, step)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llmsrec_jax import config, parallel
from llmsrec_jax.batch import PromptBatch, TitleBatch
from llmsrec_jax.data import sampling
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.loaders import EpochOrder, groups_of, own, parts_of, per_device, shows_items
from llmsrec_jax.prompts import layout, plan
from llmsrec_jax.prompts.prompts import Prompts
from llmsrec_jax.prompts.titles import Question, TitlePrompts


class TitleBatches:
    """Training batches. `train.batch` counts samples; all tokens of a prompt are live, as all that trains stands in it."""

    def __init__(
        self,
        samples: Samples,
        titles: TitlePrompts,
        cf_user_repr: np.ndarray | None,
        cfg: config.Config,
        devices: int,
        mine: Sequence[int] | None = None,
    ):
        """`cf_user_repr` float32 [n, E]: the teacher's vectors of the samples' inputs, for prompts that tell them."""
        self.samples, self.titles, self.cf_user_repr = samples, titles, cf_user_repr
        self.cfg, self.devices, self.mine = cfg, devices, own(devices, mine)
        every = np.arange(len(samples))
        self.order = EpochOrder(every, cfg.train.batch, cfg.seed)
        self.rows = per_device(self.order.batch, devices, "train.batch")
        self.parts = parts_of(self.rows, cfg.train.parts or 1)
        lengths = titles.lengths(samples, self.question(every, 0))
        longest = titles.longest(samples, 1 + cfg.train.negatives)
        self.shapes = planned(lengths, longest, self.rows // self.parts, cfg)

    def __call__(self, step: int) -> TitleBatch:
        """Arrays [own devices, ...]."""
        rows, question = self.members(step)
        place, shape = self._placed(rows, question)
        place = place.reshape(self.devices, self.parts, -1)
        shown = shows_items(self.order, step, self.cfg.train)
        shards = [self._shard(rows, question, place[d], shape, shown) for d in self.mine]
        return parallel.stack(shards)

    def shape(self, step: int) -> plan.Windows:
        """Of every part of a step."""
        return self._placed(*self.members(step))[1]

    def members(self, step: int) -> tuple[np.ndarray, Question]:
        """Samples int [n] of a step, and what they are asked."""
        rows = self.order(step)
        return rows, self.question(rows, step // self.order.steps_per_epoch)

    def _placed(self, rows: np.ndarray, question: Question) -> tuple[np.ndarray, plan.Windows]:
        """Where the prompts of each part, int [devices * parts, n], are among `rows`, by length; and the shape that holds them."""
        lengths = self.titles.lengths(self.samples.take(rows), question)
        by_part = np.argsort(lengths.reshape(self.devices * self.parts, -1), axis=1, kind="stable")
        place = by_part + np.arange(len(by_part))[:, None] * by_part.shape[1]
        return place, plan.choose_windows(self.shapes, lengths[place])

    def question(self, rows: np.ndarray, epoch: int) -> Question:
        """Of samples [n]."""
        return asked_in_training(self.samples, rows, epoch, self.cfg)

    def _shard(
        self,
        rows: np.ndarray,
        question: Question,
        places: np.ndarray,
        shape: plan.Windows,
        shown: np.ndarray | None,
    ) -> TitleBatch:
        """Of one device: `places` [parts, n] among the samples `rows` of the step."""
        parts = [self._part(self._prompts(rows[at], question.take(at)), shape) for at in places]
        return TitleBatch(parallel.stack([part._replace(shows_items=shown) for part in parts]))

    def _prompts(self, rows: np.ndarray, question: Question) -> Prompts:
        told = None if self.cf_user_repr is None else self.cf_user_repr[rows]
        prompts = self.titles.build(self.samples.take(rows), question, told)
        if not self.cfg.lora.drops:
            return prompts
        return replace(prompts, owner=self.samples.users[rows].astype(np.int32))

    def _part(self, prompts: Prompts, shape: plan.Windows) -> PromptBatch:
        shapes = [layout.Shape(rows, 0, width) for rows, width in shape]
        groups = groups_of(prompts, np.arange(len(prompts)), shapes, self.titles.most)
        return layout.fill(groups, slots_of(len(prompts), self.cfg))


def listed(cfg: config.Config) -> int:
    """Candidates that a prompt lists, at most."""
    return 1 + max(cfg.train.negatives, cfg.evaluate.negatives)


def asked_in_training(
    samples: Samples, rows: np.ndarray, epoch: int, cfg: config.Config
) -> Question:
    """Of samples `rows` [n]: candidates and the target, in an order of their own in every epoch."""
    options = cfg.train.negatives, cfg.train.exclude, cfg.seed
    negatives = sampling.train_negatives(samples, rows, epoch, *options)
    targets = samples.targets[rows][:, None]
    candidates = np.concatenate([targets, negatives], axis=1)
    told = epoch, samples.later[rows]
    order = sampling.shown(samples.users[rows], candidates.shape[1], cfg.seed, "train", *told)
    return Question(np.take_along_axis(candidates, order, axis=1), targets)


def planned(lengths: np.ndarray, longest: int, rows: int, cfg: config.Config) -> list[plan.Windows]:
    """The shapes of passes of `rows` prompts of these lengths, int [n]; other epochs show other candidates."""
    every = np.append(lengths, longest)
    return plan.plan_windows(every, rows, cfg.train.length_groups, cfg.train.shapes, cfg.seed)


def slots_of(rows: int, cfg: config.Config) -> int:
    """Items in so many prompts that their embeddings stand for, at most."""
    return rows * (cfg.prompts.history_len + 1 + cfg.train.negatives) * cfg.prompts.item_repr
