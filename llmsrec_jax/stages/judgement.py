"""evaluate: the test set, once, for every model on the same candidates; records, tables and cases out."""

from typing import NamedTuple

import numpy as np

from llmsrec_jax import evaluate, processes, results, statistics
from llmsrec_jax.data import shop
from llmsrec_jax.data.slices import slices
from llmsrec_jax.evaluate import ORIGINAL, SHUFFLED, Counts, Vectors
from llmsrec_jax.keys import DATA, TEACHER, TRAIN
from llmsrec_jax.stages.llm import LLMRec
from llmsrec_jax.stages.preparation import Prepared
from llmsrec_jax.stages.teacher import Teacher
from llmsrec_jax.stages.work import Work


class Model(NamedTuple):
    """What is judged."""

    vectors: Vectors
    fields: tuple[str, ...]  # settings they depend on
    permuted: list[np.ndarray]  # user vectors [U, R] of histories in other orders


class Judgement:
    """What is said of the models in the end."""

    def __init__(self, work: Work, data: Prepared, teacher: Teacher, llm: LLMRec):
        self._work, self._data, self._teacher, self._llm = work, data, teacher, llm

    def judge(self, with_llm: bool) -> None:
        """Writes results.json and shows tables."""
        models = self._models(with_llm)
        with processes.led("evaluation") as leads:
            if leads:
                users, _ = self._data.candidates("test")
                masks = slices(self._data.dataset, "test", users)
                rows = []
                for name, model in models.items():
                    rows += self._ranked(name, model, masks)
                self._show(models, rows)

    def _models(self, with_llm: bool) -> dict[str, Model]:
        cfg, dataset = self._work.cfg, self._data.dataset
        users, _ = self._data.candidates("test")
        first, *others = [
            self._teacher.users(self._data.test_histories(number))
            for number in range(cfg.order.permutations + 1)
        ]
        popular = evaluate.popularity(dataset, users)
        models = {
            "popularity": Model(popular, DATA, [popular.user] * len(others)),
            results.trained("teacher", cfg): Model(
                Vectors(first, self._teacher.items), TEACHER, others
            ),
        }
        if with_llm:
            models[results.label(cfg)] = Model(self._llm.vectors, TRAIN, self._llm.permuted)
        if cfg.data.source == "shop":
            made = shop.generate(cfg.data.shop, cfg.seed)
            models["bayes bound"] = Model(Vectors(*made.bayes(dataset, users, "test")), DATA, [])
        return models

    def _ranked(
        self, name: str, model: Model, masks: dict[str, np.ndarray]
    ) -> list[results.Record]:
        """Records of one model, in every order of the histories there is."""
        work, dataset = self._work, self._data.dataset
        cfg, (users, candidates) = work.cfg, self._data.candidates("test")
        vectors, keys = model.vectors, (dataset.user_keys[users], dataset.catalog.keys)
        evaluate.check_finite(name, vectors, *keys)
        fields = work.keys(model.fields)
        common = {"model": name} | results.common(cfg, fields, dataset.name, candidates)
        original, rows = {}, []
        for protocol, counts in self._counts(vectors).items():
            original[protocol] = evaluate.values(counts, cfg.evaluate)
            where = common | {"condition": ORIGINAL, "protocol": protocol}
            rows += evaluate.records(original[protocol], masks, where)
        if model.permuted:
            rows += self._permuted(model, original, masks, common)
        return rows

    def _permuted(
        self,
        model: Model,
        original: dict[str, dict[str, np.ndarray]],
        masks: dict[str, np.ndarray],
        common: results.Record,
    ) -> list[results.Record]:
        """Records in other orders; what changes is told for all users together."""
        cfg, rows = self._work.cfg, []
        each = [self._counts(Vectors(user, model.vectors.item)) for user in model.permuted]
        settings = {"permutations": len(each), "scope": cfg.order.scope}
        common = common | {"condition": SHUFFLED, **settings}
        for protocol, before in original.items():
            above, tied = zip(*(counts[protocol] for counts in each), strict=True)
            after = evaluate.values((np.stack(above), np.stack(tied)), cfg.evaluate)
            made = evaluate.records(after, masks, common | {"protocol": protocol})
            for row in made:
                name = row["metric"]
                if row["slice"] == "all" and name in results.SHOWN:
                    row["change"] = statistics.paired(before[name], after[name], cfg.seed)._asdict()
            rows += made
        alike = evaluate.similarity(model.vectors.user, model.permuted)
        where = common | {"protocol": "user vectors"}
        return rows + evaluate.records({"cosine": alike}, masks, where)

    def _counts(self, vectors: Vectors) -> dict[str, Counts]:
        """Of both protocols."""
        cfg, dataset = self._work.cfg.evaluate, self._data.dataset
        users, candidates = self._data.candidates("test")
        histories = self._data.test_histories(0)
        seen = (lambda row: histories[row][0]) if cfg.mask_seen else None
        targets = dataset.targets("test", users)
        return {
            "sampled": evaluate.sampled_ranking(vectors, candidates),
            "full": evaluate.full_ranking(vectors, targets, seen),
        }

    def _show(self, models: dict[str, Model], rows: list[results.Record]) -> None:
        work, dataset = self._work, self._data.dataset
        users, _ = self._data.candidates("test")
        merged = results.merge(work.workdir / "results.json", rows)
        work.writer.say(results.tables(merged, rows[-1]))
        shown = {name: model.vectors for name, model in models.items()}
        targets, length = dataset.targets("test", users), work.cfg.prompts.history_len
        for row in range(min(work.cfg.evaluate.show_users, len(users))):
            work.writer.say(evaluate.case(shown, dataset, users, targets, row, length))
