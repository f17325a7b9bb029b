"""prepare: the dataset, its card and the candidates of every evaluated user; made once, stored."""

from functools import cached_property, partial
from typing import Any

import numpy as np

from llmsrec_jax.checkpoint import Stage
from llmsrec_jax.data import card as cards
from llmsrec_jax.data import orders, sampling, sources, splits
from llmsrec_jax.data.interactions import UserSequences
from llmsrec_jax.data.splits import Dataset
from llmsrec_jax.keys import CANDIDATES, DATA
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

    @cached_property
    def dataset(self) -> Dataset:
        return Dataset.load(self._work.stage("data", DATA).folder)

    @cached_property
    def training(self) -> Dataset:
        """What models are trained on: the same, but for the order of training sequences (E6)."""
        shuffled = self._work.cfg.order.train == "shuffled"
        return (
            orders.shuffled_training(self.dataset, self._work.cfg.seed)
            if shuffled
            else self.dataset
        )

    def test_histories(self, number: int) -> UserSequences:
        """Of the test users, in their original order (0) or another one (1, 2, ..)."""
        return orders.test_histories(
            self.dataset, self.candidates("test")[0], self._work.cfg, number
        )

    def require_order(self) -> None:
        """Says what there is of order in the data; stops before the long work where there is none to change."""
        cfg = self._work.cfg
        numbers = range(1, cfg.order.permutations + 1)
        if not numbers and cfg.order.train == "original":
            return
        tied = self._work.stage("data", DATA).info["card"]["tied_pairs"]
        if tied == 1.0 and cfg.data.ties != "file":
            raise ValueError(
                f"all timestamps of every user are equal: its order is data.ties={cfg.data.ties}, which means nothing; "
                "data.ties=file takes the order of the file"
            )
        if tied:
            self._work.writer.say(
                f"{tied:.1%} of neighbouring interactions have equal timestamps: their order is data.ties={cfg.data.ties}"
            )
        if not numbers:
            return
        original = self.test_histories(0)
        share = np.mean([orders.changed(original, self.test_histories(n)) for n in numbers])
        if not share:
            raise ValueError(
                f"order.permutations={len(numbers)}: no test history has two different items to permute"
            )
        self._work.writer.say(f"another order changes {share:.1%} of the test histories")

    def candidates(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """(users int32 [n], candidates int32 [n, C]) of `valid` or `test`."""
        if split not in self._candidates:
            folder = self._work.stage("candidates", CANDIDATES[split]).folder
            self._candidates[split] = sampling.load_candidates(folder, split)
        return self._candidates[split]
