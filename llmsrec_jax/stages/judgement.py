"""evaluate: the test set, once, for every model on the same candidates; outcomes per user, records, tables and cases out."""

import math
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from llmsrec_jax import cases, config, evaluate, outcomes, processes, results
from llmsrec_jax.checkpoint import Stage, read_json, write_json
from llmsrec_jax.data.interactions import UserSequences
from llmsrec_jax.data.slices import slices
from llmsrec_jax.evaluate import Catalogue, Counts, Scores, Vectors
from llmsrec_jax.outcomes import Outcome, Outcomes
from llmsrec_jax.provenance import Settings
from llmsrec_jax.results import Record
from llmsrec_jax.schema import COSINE, COSINE_HIDDEN, SCHEMA
from llmsrec_jax.stages.entrants import Entrants, Model
from llmsrec_jax.stages.preparation import Prepared
from llmsrec_jax.stages.work import Work

CONTENTS = 2  # of the stage, besides the schema of its files: what it holds of a model


def _stacked(each: list[Counts]) -> Counts:
    """Of several orders, int [orders, U]."""
    above, tied = zip(*each, strict=True)
    return np.stack(above), np.stack(tied)


class Judgement:
    """What is said of the models in the end."""

    def __init__(self, work: Work, data: Prepared, entrants: Entrants, cases: str):
        """data: what they are judged on. cases: a file of the work folder."""
        self._work, self._data, self._entrants, self._cases = work, data, entrants, cases

    def judge(self) -> None:
        """Ranks every test user, once; writes results.json and the cases and shows tables."""
        stage = self.stage
        if not self._work.done(stage):
            models = self._entrants.models()  # by all processes
            self._work.once(stage, lambda stage: self._make(stage, models))
        with processes.led("evaluation") as leads:
            if leads:
                self._show(stage)

    @property
    def stage(self) -> Stage:
        """Of the outcomes, the records and the cases."""
        which = {"schema": SCHEMA, "contents": CONTENTS}
        return self._work.stage("judged", self._entrants.fields, **which)

    @property
    def names(self) -> dict[str, str]:
        """What every model is called in tables."""
        return self._entrants.names

    def records(self) -> list[Record]:
        """Of all models, of a finished judgement."""
        return results.read(self.stage.folder / "results.json")

    def outcomes(self) -> Outcomes:
        """Of a finished judgement."""
        return Outcomes.load(self.stage.folder / "outcomes.npz")

    def _make(self, stage: Stage, models: dict[str, Model]) -> dict[str, Any]:
        work, dataset, seed = self._work, self._data.dataset, self._work.cfg.seed
        users, candidates = self._data.candidates("test")
        each = {name: self._outcome(name, model) for name, model in models.items()}
        masks = slices(dataset, "test", users, work.cfg.slices, self._data.ordered)
        digest = results.digest(candidates)
        people = dataset.user_keys[users]
        if work.cfg.data.source == "shop":  # each seed has a shop, and people, of its own
            people = np.char.add(people, f" of seed {seed}")
        found = Outcomes(users, people, digest, masks, each)
        found.save(stage.folder / "outcomes.npz")
        rows: list[Record] = []
        settings: dict[str, Settings] = {}
        for name, model in models.items():
            where = dataset.name, model.trained_on, digest
            used = model.settings | config.subset(work.cfg, results.EVALUATION)
            about = results.common(work.cfg, used, *where)
            settings[about["config_hash"]] = used
            rows += found.records(name, work.cfg, {"model": self.names[name], **about})
        results.merge(stage.folder / "results.json", rows, settings)
        write_json(stage.folder / "cases.json", cases.collect(found, dataset, self.names, seed))
        permuted = any(model.permuted for model in models.values())
        return {"users": len(users), "changed": self._data.changed if permuted else None}

    def _outcome(self, name: str, model: Model) -> Outcome:
        dataset, scores = self._data.dataset, model.scores
        users, candidates = self._data.candidates("test")
        if isinstance(scores, Vectors):
            evaluate.check_finite(name, scores, dataset.user_keys[users], dataset.catalog.keys)
        if isinstance(scores, Catalogue):
            top = evaluate.top_lists(scores, len(users), self._seen, outcomes.LISTED)
            lists, coverage = outcomes.lists(dataset, users, top)
        else:
            top, lists, coverage = scores.best(candidates, outcomes.LISTED), {}, math.nan
        one = Outcome(self._counts(scores), top, lists, coverage, answers=model.answers)
        if not model.permuted:
            return one
        each = [self._counts(permuted) for permuted in model.permuted]
        stacked = {p: _stacked([counts[p] for counts in each]) for p in one.ranks}
        vectors = [one.user for one in (scores, *model.permuted) if isinstance(one, Vectors)]
        alike = {COSINE: evaluate.similarity(vectors[0], vectors[1:])} if vectors else {}
        if model.alike is not None:
            alike[COSINE_HIDDEN] = model.alike
        return replace(one, permuted=stacked, alike=alike)

    def _seen(self, row: int) -> np.ndarray:
        """Items that no list shows the test user in `row` again."""
        return self._histories[row][0]

    @cached_property
    def _histories(self) -> UserSequences:
        return self._data.test_histories(0)

    def _counts(self, scores: Scores) -> dict[str, Counts]:
        """Of both protocols, or of the one that there is."""
        users, candidates = self._data.candidates("test")
        seen = self._seen if self._work.cfg.evaluate.mask_seen else None
        targets = self._data.dataset.targets("test", users)
        found = {"sampled": evaluate.sampled_ranking(scores, candidates)}
        if isinstance(scores, Catalogue):
            found["full"] = evaluate.full_ranking(scores, targets, seen)
        return found

    def _show(self, stage: Stage) -> None:
        work, cfg = self._work, self._work.cfg
        file = stage.folder / "results.json"
        rows, used = results.read(file), results.settings(file)
        found = read_json(stage.folder / "cases.json")
        cases.merge(work.workdir / self._cases, found)
        for case in found["cases"][: cfg.evaluate.show_users]:
            work.writer.say(cases.render(case, cfg.prompts.history_len))
        every = work.workdir / "results.json"
        merged = results.merge(every, rows, used)
        work.writer.say(results.tables(merged, rows[-1], results.settings(every)))
        work.writer.say(f"\n{every} (--mode=report makes a page of it)")
