"""prepare: the dataset, its card, the candidates of every evaluated user and other orders of sequences; made once, stored."""

from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from llmsrec_jax.checkpoint import Stage
from llmsrec_jax.data import card as cards
from llmsrec_jax.data import orders, sampling, sources, splits
from llmsrec_jax.data.interactions import UserSequences
from llmsrec_jax.data.splits import Dataset
from llmsrec_jax.keys import CANDIDATES, DATA, ORDERS
from llmsrec_jax.stages.work import Work


class Prepared:
    """What all models see."""

    def __init__(self, work: Work):
        self._work = work
        self._candidates: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def prepare(self) -> None:
        """Makes what is missing, and shows the card."""
        work, cfg = self._work, self._work.cfg.evaluate
        stage = work.stage("data", DATA)
        work.once(stage, self._make_data)
        work.writer.say(cards.render_card(stage.info["card"]))
        for split, limit in (("valid", cfg.validation_users), ("test", cfg.max_users)):
            make = partial(self._make_candidates, split=split, limit=limit)
            work.once(work.stage("candidates", CANDIDATES[split]), make)
        if work.cfg.order.train == "shuffled":
            work.once(self._training_order, self._shuffle_training)
        for number in self._numbers:
            work.once(self._test_order(number), partial(self._shuffle_test, number=number))

    def _make_data(self, stage: Stage) -> dict[str, Any]:
        cfg, seed = self._work.cfg.data, self._work.cfg.seed
        catalog, interactions, counts = sources.load(cfg, seed)
        dataset, card = splits.prepare(catalog, interactions, cfg, seed, counts)
        dataset.save(stage.folder)
        return {"card": card}

    def _make_candidates(self, stage: Stage, split: str, limit: int) -> dict[str, Any]:
        cfg, seed = self._work.cfg.evaluate, self._work.cfg.seed
        users = splits.sample_users(self.dataset.eligible(split), limit, seed)
        options = (cfg.negatives, cfg.sampling, seed)
        candidates = sampling.candidates(self.dataset, split, users, *options)
        sampling.save_candidates(stage.folder, split, users, candidates)
        return {"users": len(users)}

    @property
    def _numbers(self) -> range:
        """Of the orders of the test histories besides their own."""
        return range(1, self._work.cfg.order.permutations + 1)

    @property
    def _training_order(self) -> Stage:
        return self._work.stage("orders", ORDERS["train"])

    def _test_order(self, number: int) -> Stage:
        return self._work.stage("orders", ORDERS["test"], permutation=number)

    def _shuffle_training(self, stage: Stage) -> dict[str, Any]:
        orders.save(stage.folder, orders.shuffled_training(self.dataset, self._work.cfg.seed))
        return {}

    def _shuffle_test(self, stage: Stage, number: int) -> dict[str, Any]:
        users, _ = self.candidates("test")
        permuted = orders.shuffled_test(self.dataset, users, self._work.cfg, number)
        orders.save(stage.folder, permuted)
        return {}

    @cached_property
    def dataset(self) -> Dataset:
        return Dataset.load(self._work.stage("data", DATA).folder)

    @cached_property
    def training(self) -> Dataset:
        """What models are trained on: the same, but for the order of training sequences (E6)."""
        dataset = self.dataset
        if self._work.cfg.order.train == "original":
            return dataset
        return replace(dataset, train=orders.load(self._training_order.folder, dataset.train))

    def test_histories(self, number: int) -> UserSequences:
        """Of the test users, in their original order (0) or another one (1, 2, ..)."""
        original = self.dataset.inputs("test", self.candidates("test")[0])
        return orders.load(self._test_order(number).folder, original) if number else original

    @property
    def _tied(self) -> float:
        """Share of neighbouring interactions with equal timestamps."""
        return self._work.stage("data", DATA).info["card"]["tied_pairs"]

    @property
    def ordered(self) -> bool:
        """Whether the order of histories means anything."""
        return self._tied < 1.0 or self._work.cfg.data.ties == "file"

    @cached_property
    def changed(self) -> float:
        """Share of the test histories that are other ones in another order."""
        original = self.test_histories(0)
        each = [orders.changed(original, self.test_histories(n)) for n in self._numbers]
        return float(np.mean(each))

    def require_order(self) -> None:
        """Says what there is of order in the data; stops before the long work where there is none to change."""
        cfg = self._work.cfg
        if not self._numbers and cfg.order.train == "original":
            return
        if not self.ordered:
            raise ValueError(
                f"all timestamps of every user are equal: its order is data.ties={cfg.data.ties}, which means nothing; "
                "data.ties=file takes the order of the file"
            )
        if self._tied:
            self._work.writer.say(
                f"{self._tied:.1%} of neighbouring interactions have equal timestamps: their order is data.ties={cfg.data.ties}"
            )
        if not self._numbers:
            return
        if not self.changed:
            raise ValueError(
                f"order.permutations={len(self._numbers)}: no test history has two different items to permute"
            )
        self._work.writer.say(f"another order changes {self.changed:.1%} of the test histories")

    def candidates(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """(users int32 [n], candidates int32 [n, C]) of `valid` or `test`."""
        if split not in self._candidates:
            folder = self._work.stage("candidates", CANDIDATES[split]).folder
            self._candidates[split] = sampling.load_candidates(folder, split)
        return self._candidates[split]
