"""evaluate: the test set, once, for every model on the same candidates; outcomes per user, records, tables and cases out."""

from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from llmsrec_jax import cases, evaluate, outcomes, processes, results
from llmsrec_jax.checkpoint import Stage, read_json, write_json
from llmsrec_jax.data import shop
from llmsrec_jax.data.interactions import UserSequences
from llmsrec_jax.data.slices import slices
from llmsrec_jax.evaluate import Counts, Vectors
from llmsrec_jax.keys import DATA, JUDGED, TEACHER, TRAIN
from llmsrec_jax.outcomes import Outcome, Outcomes
from llmsrec_jax.results import Record
from llmsrec_jax.stages.llm import LLMRec
from llmsrec_jax.stages.preparation import Prepared
from llmsrec_jax.stages.teacher import Teacher
from llmsrec_jax.stages.work import Work

FIELDS = {"popularity": DATA, "bayes bound": DATA, "teacher": TEACHER, "llm_srec": TRAIN}


class Model(NamedTuple):
    """What is judged."""

    vectors: Vectors
    permuted: list[np.ndarray]  # user vectors [U, R] of histories in other orders


def _stacked(each: list[Counts]) -> Counts:
    """Of several orders, int [orders, U]."""
    above, tied = zip(*each, strict=True)
    return np.stack(above), np.stack(tied)


class Judgement:
    """What is said of the models in the end."""

    def __init__(self, work: Work, data: Prepared, teacher: Teacher, llm: LLMRec):
        self._work, self._data, self._teacher, self._llm = work, data, teacher, llm

    def judge(self, with_llm: bool) -> None:
        """Ranks every test user, once; writes results.json and cases.json and shows tables."""
        stage = self.stage(with_llm)
        if not self._work.done(stage):
            models = self._models(with_llm)  # by all processes
            self._work.once(stage, lambda stage: self._make(stage, models))
        with processes.led("evaluation") as leads:
            if leads:
                self._show(stage)

    def stage(self, with_llm: bool) -> Stage:
        """Of the outcomes, the records and the cases."""
        return self._work.stage("judged", JUDGED[with_llm])

    def records(self, with_llm: bool = True) -> list[Record]:
        """Of all models, of a finished judgement."""
        return results.read(self.stage(with_llm).folder / "results.json")

    def outcomes(self, with_llm: bool = True) -> Outcomes:
        """Of a finished judgement."""
        return Outcomes.load(self.stage(with_llm).folder / "outcomes.npz")

    @cached_property
    def names(self) -> dict[str, str]:
        """What every model is called in tables."""
        cfg = self._work.cfg
        called = {"teacher": results.trained("teacher", cfg), "llm_srec": results.label(cfg)}
        return {name: called.get(name, name) for name in FIELDS}

    def _models(self, with_llm: bool) -> dict[str, Model]:
        cfg, dataset = self._work.cfg, self._data.dataset
        users, _ = self._data.candidates("test")
        first, *others = [
            self._teacher.users(self._data.test_histories(number))
            for number in range(cfg.order.permutations + 1)
        ]
        popular = evaluate.popularity(dataset, users)
        models = {
            "popularity": Model(popular, [popular.user] * len(others)),
            "teacher": Model(Vectors(first, self._teacher.items), others),
        }
        if with_llm:
            models["llm_srec"] = Model(self._llm.vectors, self._llm.permuted)
        if cfg.data.source == "shop":
            made = shop.generate(cfg.data.shop, cfg.seed)
            models["bayes bound"] = Model(Vectors(*made.bayes(dataset, users, "test")), [])
        return models

    def _make(self, stage: Stage, models: dict[str, Model]) -> dict[str, Any]:
        work, dataset, seed = self._work, self._data.dataset, self._work.cfg.seed
        users, candidates = self._data.candidates("test")
        each = {name: self._outcome(name, model) for name, model in models.items()}
        masks, digest = slices(dataset, "test", users), results.digest(candidates)
        found = Outcomes(users, digest, masks, each)
        found.save(stage.folder / "outcomes.npz")
        rows: list[Record] = []
        for name in models:
            fields = work.keys(FIELDS[name])
            about = results.common(work.cfg, fields, dataset.name, digest)
            rows += found.records(name, work.cfg, {"model": self.names[name], **about})
        results.merge(stage.folder / "results.json", rows)
        write_json(stage.folder / "cases.json", cases.collect(found, dataset, self.names, seed))
        return {"users": len(users)}

    def _outcome(self, name: str, model: Model) -> Outcome:
        dataset, vectors = self._data.dataset, model.vectors
        users, _ = self._data.candidates("test")
        evaluate.check_finite(name, vectors, dataset.user_keys[users], dataset.catalog.keys)
        top = evaluate.top_lists(vectors, self._seen, outcomes.LISTED)
        lists, coverage = outcomes.lists(dataset, users, top)
        one = Outcome(self._counts(vectors), top, lists, coverage)
        if not model.permuted:
            return one
        each = [self._counts(Vectors(user, vectors.item)) for user in model.permuted]
        stacked = {p: _stacked([counts[p] for counts in each]) for p in one.ranks}
        alike = evaluate.similarity(vectors.user, model.permuted)
        return replace(one, permuted=stacked, cosine=alike)

    def _seen(self, row: int) -> np.ndarray:
        """Items that no list shows the test user in `row` again."""
        return self._histories[row][0]

    @cached_property
    def _histories(self) -> UserSequences:
        return self._data.test_histories(0)

    def _counts(self, vectors: Vectors) -> dict[str, Counts]:
        """Of both protocols."""
        users, candidates = self._data.candidates("test")
        seen = self._seen if self._work.cfg.evaluate.mask_seen else None
        targets = self._data.dataset.targets("test", users)
        return {
            "sampled": evaluate.sampled_ranking(vectors, candidates),
            "full": evaluate.full_ranking(vectors, targets, seen),
        }

    def _show(self, stage: Stage) -> None:
        work, cfg = self._work, self._work.cfg
        rows = results.read(stage.folder / "results.json")
        merged = results.merge(work.workdir / "results.json", rows)
        work.writer.say(results.tables(merged, rows[-1]))
        found = read_json(stage.folder / "cases.json")
        write_json(work.workdir / "cases.json", found)
        for case in found["cases"][: cfg.evaluate.show_users]:
            work.writer.say(cases.render(case, cfg.prompts.history_len))
