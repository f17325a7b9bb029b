"""Who is judged: models as what the judgement needs to know of them; and those of a dataset that they were trained on."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from llmsrec_jax import evaluate, results, schema
from llmsrec_jax.data import shop
from llmsrec_jax.data.interactions import UserSequences
from llmsrec_jax.data.neighbours import Neighbours
from llmsrec_jax.evaluate import Scores, Vectors
from llmsrec_jax.keys import DATA, JUDGED, TEACHER, TRAIN
from llmsrec_jax.stages.preparation import Prepared
from llmsrec_jax.stages.reader import Reader
from llmsrec_jax.stages.teacher import Teacher
from llmsrec_jax.stages.work import Work

# name -> whether what was bought last weighs more
NEIGHBOURS = {schema.SKNN: False, schema.V_SKNN: True}


class Model(NamedTuple):
    """One of them."""

    trained_on: str  # name of a dataset
    settings: dict[str, Any]  # {dotted name: value}: what its numbers depend on
    scores: Scores
    permuted: Sequence[Scores]  # of histories in other orders
    alike: np.ndarray | None = (
        None  # float64 [U]: cosine of their hidden states, where there are any
    )
    answers: dict[str, np.ndarray] = {}  # more metrics per user, float64 [U]


class Entrants(Protocol):
    """All of one judgement."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The settings that all their numbers together depend on."""
        ...

    @property
    def names(self) -> dict[str, str]:
        """What every model is called in tables."""
        ...

    def models(self) -> dict[str, Model]:
        """Made by all processes."""
        ...


class Trained:
    """The floors, the teacher, LLM-SRec where there is one, and the bound where it is known."""

    def __init__(self, work: Work, data: Prepared, teacher: Teacher, llm: Reader | None):
        self._work, self._data, self._teacher, self._llm = work, data, teacher, llm

    @property
    def fields(self) -> tuple[str, ...]:
        return JUDGED[self._llm is not None]

    @property
    def names(self) -> dict[str, str]:
        others = {name: name for name in schema.FLOORS_AND_BOUND}
        return others | results.names(self._work.cfg)

    def models(self) -> dict[str, Model]:
        cfg, keys, dataset = self._work.cfg, self._work.keys, self._data.dataset
        users, _ = self._data.candidates("test")
        orders = [self._data.test_histories(n) for n in range(cfg.order.permutations + 1)]
        popular, here = evaluate.popularity(dataset, users), dataset.name
        models = {
            schema.POPULARITY: Model(here, keys(DATA), popular, [popular] * cfg.order.permutations),
            **{name: self._neighbours(orders, users, name) for name in self._asked},
        }
        items = self._teacher.items
        first, *others = [Vectors(self._teacher.users(each), items) for each in orders]
        models[schema.TEACHER] = Model(here, keys(TEACHER), first, others)
        if self._llm is not None:
            models["llm_srec"] = Model(here, keys(TRAIN), **self._llm.judged()._asdict())
        if cfg.data.source == "shop":
            made = shop.generate(cfg.data.shop, cfg.seed)
            best = Vectors(*made.bayes(dataset, users, "test"))
            models[schema.BOUND] = Model(here, keys(DATA), best, [])
        return models

    @property
    def _asked(self) -> tuple[str, ...]:
        return tuple(NEIGHBOURS) if self._work.cfg.evaluate.neighbours else ()

    def _neighbours(self, orders: list[UserSequences], users: np.ndarray, name: str) -> Model:
        """The order of training sequences does not matter to them."""
        dataset, k = self._data.dataset, self._work.cfg.evaluate.neighbours
        size, rule = dataset.catalog.size, NEIGHBOURS[name]
        first, *others = [Neighbours(users, x, dataset.train, size, k, rule) for x in orders]
        settings = self._work.keys((*DATA, "evaluate.neighbours"))
        return Model(dataset.name, settings, first, others)
