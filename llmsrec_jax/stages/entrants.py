"""Who is judged: models as what the judgement needs to know of them; and those of a dataset that they were trained on."""

from typing import Any, NamedTuple, Protocol

import numpy as np

from llmsrec_jax import evaluate, results
from llmsrec_jax.data import shop
from llmsrec_jax.evaluate import Vectors
from llmsrec_jax.keys import DATA, JUDGED, TEACHER, TRAIN
from llmsrec_jax.stages.llm import LLMRec
from llmsrec_jax.stages.preparation import Prepared
from llmsrec_jax.stages.teacher import Teacher
from llmsrec_jax.stages.work import Work


class Model(NamedTuple):
    """One of them."""

    trained_on: str  # name of a dataset
    settings: dict[str, Any]  # {dotted name: value}: what its numbers depend on
    vectors: Vectors
    permuted: list[np.ndarray]  # user vectors [U, R] of histories in other orders
    alike: np.ndarray | None = (
        None  # float64 [U]: cosine of their hidden states, where there are any
    )


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
    """The floor, the teacher, LLM-SRec where there is one, and the bound where it is known."""

    def __init__(self, work: Work, data: Prepared, teacher: Teacher, llm: LLMRec | None):
        self._work, self._data, self._teacher, self._llm = work, data, teacher, llm

    @property
    def fields(self) -> tuple[str, ...]:
        return JUDGED[self._llm is not None]

    @property
    def names(self) -> dict[str, str]:
        others = {name: name for name in ("popularity", "bayes bound")}
        return others | results.names(self._work.cfg)

    def models(self) -> dict[str, Model]:
        cfg, keys, dataset = self._work.cfg, self._work.keys, self._data.dataset
        users, _ = self._data.candidates("test")
        first, *others = [
            self._teacher.users(self._data.test_histories(number))
            for number in range(cfg.order.permutations + 1)
        ]
        popular, seen = evaluate.popularity(dataset, users), Vectors(first, self._teacher.items)
        here = dataset.name
        models = {
            "popularity": Model(here, keys(DATA), popular, [popular.user] * len(others)),
            "teacher": Model(here, keys(TEACHER), seen, others),
        }
        if self._llm is not None:
            found = self._llm.vectors, self._llm.permuted, self._llm.alike
            models["llm_srec"] = Model(here, keys(TRAIN), *found)
        if cfg.data.source == "shop":
            made = shop.generate(cfg.data.shop, cfg.seed)
            best = Vectors(*made.bayes(dataset, users, "test"))
            models["bayes bound"] = Model(here, keys(DATA), best, [])
        return models
