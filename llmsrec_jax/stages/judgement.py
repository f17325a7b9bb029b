"""evaluate: the test set, once, for every model on the same candidates; records, tables and cases out."""

import numpy as np

from llmsrec_jax import evaluate, processes, results
from llmsrec_jax.data import shop
from llmsrec_jax.data.interactions import UserSequences
from llmsrec_jax.data.slices import slices
from llmsrec_jax.evaluate import Vectors
from llmsrec_jax.keys import DATA, TEACHER, TRAIN
from llmsrec_jax.stages.llm import LLMRec
from llmsrec_jax.stages.preparation import Prepared
from llmsrec_jax.stages.teacher import Teacher
from llmsrec_jax.stages.work import Work

Models = dict[str, tuple[Vectors, tuple[str, ...]]]  # name -> vectors, settings they depend on


class Judgement:
    """What is said of the models in the end."""

    def __init__(self, work: Work, data: Prepared, teacher: Teacher, llm: LLMRec):
        self._work, self._data, self._teacher, self._llm = work, data, teacher, llm

    def judge(self, with_llm: bool) -> None:
        """Writes results.json and shows tables."""
        cfg, dataset = self._work.cfg, self._data.dataset
        users, candidates = self._data.candidates("test")
        histories = dataset.inputs("test", users)
        teacher = Vectors(self._teacher.users(histories), self._teacher.items)
        models: Models = {
            "popularity": (evaluate.popularity(dataset, users), DATA),
            "teacher": (teacher, TEACHER),
        }
        if with_llm:
            models[results.label(cfg)] = (self._llm.vectors, TRAIN)
        if cfg.data.source == "shop":
            made = shop.generate(cfg.data.shop, cfg.seed)
            models["bayes bound"] = (Vectors(*made.bayes(dataset, users, "test")), DATA)
        with processes.led("evaluation") as leads:
            if leads:
                self._rank(models, users, candidates, histories)

    def _rank(
        self, models: Models, users: np.ndarray, candidates: np.ndarray, histories: UserSequences
    ) -> None:
        work, cfg, dataset = self._work, self._work.cfg, self._data.dataset
        masks = slices(dataset, "test", users)
        targets = dataset.targets("test", users)
        seen = (lambda row: histories[row][0]) if cfg.evaluate.mask_seen else None
        rows = []
        for name, (vectors, fields) in models.items():
            evaluate.check_finite(name, vectors, dataset.user_keys[users], dataset.catalog.keys)
            counts = {
                "sampled": evaluate.sampled_ranking(vectors, candidates),
                "full": evaluate.full_ranking(vectors, targets, seen),
            }
            common = results.common(cfg, work.keys(fields), dataset.name, candidates)
            rows += evaluate.records(name, counts, masks, cfg.evaluate, common)
        merged = results.merge(work.workdir / "results.json", rows)
        work.writer.say(results.tables(merged, rows[-1]))
        shown = {name: vectors for name, (vectors, _) in models.items()}
        for row in range(min(cfg.evaluate.show_users, len(users))):
            slots = cfg.prompts.history_len
            work.writer.say(evaluate.case(shown, dataset, users, targets, row, slots))
