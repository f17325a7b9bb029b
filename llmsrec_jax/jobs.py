"""What the cells of experiments need: runs up to their judgement, prepared data, measurements. A finished one is never done again."""

import gc
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from llmsrec_jax import config, estimate, pipeline, processes
from llmsrec_jax.benchmark import measure
from llmsrec_jax.checkpoint import Stage, read_json
from llmsrec_jax.experiments import (
    ALONE,
    CARD,
    OTHER,
    RECORDS,
    SPEED,
    TRANSFER,
    Column,
    Row,
)
from llmsrec_jax.keys import DATA, TEACHER, TRAIN
from llmsrec_jax.llama import config as llama
from llmsrec_jax.metrics import mean_and_se
from llmsrec_jax.outcomes import Outcomes
from llmsrec_jax.schema import COSINE, COSINE_HIDDEN, HIT_VALID


class Found(NamedTuple):
    """What a job says of a cell."""

    value: float
    se: float | None  # over users; None where it is no mean over them, or over a single one
    users: int


class Job(Protocol):
    """What several cells need: one run, or one measurement."""

    title: str

    @property
    def finished(self) -> bool: ...

    def operations(self) -> estimate.Operations | None:
        """An estimate of what is left, stage by stage; None = nothing is known."""
        ...

    def do(self) -> None: ...

    def find(self, row: Row, column: Column) -> Found | None:
        """None: the run has no such number."""
        ...

    def absent(self, row: Row, column: Column) -> str:
        """Why it has none."""
        ...


def _perform(run: pipeline.Run, mode: str) -> None:
    """In a run of its own, which is let go: a backbone is on the devices as long as its run is."""
    pipeline.perform(pipeline.Run(run.work.cfg, run.work.workdir, run.work.writer), mode)
    gc.collect()  # stages know each other


class Judged:
    """A run, up to its judgement: with LLM-SRec, or the teacher alone."""

    def __init__(self, run: pipeline.Run, with_llm: bool):
        self.run, self.with_llm = run, with_llm
        self.judgement = run.judgement if with_llm else run.teacher_judgement
        self.title = "LLM-SRec" if with_llm else "CF-SRec"

    @property
    def finished(self) -> bool:
        return self._is_here and self.judgement.stage.finished

    @property
    def _is_here(self) -> bool:
        """Whether the backbone is: asking for a plan downloads nothing."""
        cfg = self.run.work.cfg
        return not self.with_llm or llama.is_here(cfg.llm.path, cfg.llm.revision)

    def operations(self) -> estimate.Operations | None:
        return estimate.operations(self.run, self.with_llm) if self._is_here else None

    def do(self) -> None:
        _perform(self.run, "run" if self.with_llm else "teacher")

    @cached_property
    def outcomes(self) -> Outcomes:
        return self.judgement.outcomes()

    @cached_property
    def _records(self) -> dict[tuple[str, ...], dict[str, Any]]:
        names = ("model", "condition", "protocol", "slice", "metric")
        records = self.judgement.records()
        return {tuple(one[name] for name in names): one for one in records}

    def find(self, row: Row, column: Column) -> Found | None:
        if column.metric == ALONE:
            return Found(*mean_and_se(self._alone(row)), len(self.outcomes.users))
        name, metric = self.judgement.names[row.model], self._metric(row, column)
        key = (name, column.condition, column.protocol, column.slice, metric)
        found = self._records.get(key)
        return None if found is None else Found(found["value"], found["se"], found["users"])

    def absent(self, row: Row, column: Column) -> str:
        mask, of = self.outcomes.slices.get(column.slice), self.run.work.cfg.data
        if mask is None and not self.run.data.ordered:
            return f"all timestamps of every user are equal (data.ties={of.ties}): nobody's transitions are known"
        if mask is not None and not mask.any():
            return (
                f"none of the {len(mask)} test users is in the slice {column.slice}: "
                "it takes more of them (evaluate.max_users) or another share (slices)"
            )
        if column.metric == HIT_VALID:
            return f"{row.name}: no answer is valid"
        return f"{row.name}: there is no {column.metric} of {column.slice} test users"

    def per_user(self, row: Row, column: Column) -> np.ndarray | None:
        """float64 [users of the slice]; None where the number is no mean over users."""
        if column.metric == ALONE:
            return self._alone(row)
        parts = column.protocol, column.condition, self.run.work.cfg.evaluate
        values = self.outcomes.models[row.model].values(*parts).get(self._metric(row, column))
        mask = self.outcomes.slices.get(column.slice)
        if values is None or mask is None or np.isnan(values).any():  # some users are not counted
            return None
        return values[mask]

    def users(self, column: Column) -> np.ndarray:
        """Who they are whose values `per_user` has, str [n]."""
        return self.outcomes.people[self.outcomes.slices[column.slice]]

    def training(self, row: Row) -> str:
        """What trained the model of a row: two of different trainings differ by a chance that users do not show."""
        stages = {"teacher": ("teacher", TEACHER), "llm_srec": ("checkpoints", TRAIN)}
        return self.run.work.stage(*stages[row.model]).key if row.model in stages else ""

    def _metric(self, row: Row, column: Column) -> str:
        """Of the records: both cosines are there, and order.vector says which one is looked at (Table 5)."""
        if column.metric not in (COSINE, OTHER):
            return column.metric
        alike = self.outcomes.models[row.model].alike
        if COSINE_HIDDEN not in alike:  # one vector is all that it has
            return column.metric
        hidden = self.run.work.cfg.order.vector == "hidden"
        return COSINE_HIDDEN if hidden == (column.metric == COSINE) else COSINE

    def _alone(self, row: Row) -> np.ndarray:
        """Of all test users. It depends on who else is in the run: no number of a model, so no record."""
        return self.outcomes.alone(row.model)


class Transferred(Judged):
    """A run, up to its judgement on the other dataset."""

    def __init__(self, run: pipeline.Run, with_llm: bool):
        """Raises ValueError: there is no other dataset."""
        super().__init__(run, with_llm)
        self._transfer = run.transfer
        if self._transfer is None:
            raise ValueError(
                "no other dataset is named: set transfer.category, or transfer.files.interactions and "
                "transfer.files.items"
            )
        self.judgement = self._transfer.judgement

    def operations(self) -> estimate.Operations | None:
        home = super().operations()
        if home is None or self._transfer is None:
            return None
        there = estimate.transfer_operations(self._transfer)
        return None if there is None else home | there

    def training(self, row: Row) -> str:
        """Another one trains there too, where unseen items have its embeddings."""
        extra = " target" * (self.run.work.cfg.transfer.unseen == "target")
        return super().training(row) + extra


class Card:
    """The prepared data, and what their card counts."""

    def __init__(self, run: pipeline.Run, with_llm: bool):
        self.run, self.title = run, "data"

    @property
    def _stage(self) -> Stage:
        return self.run.work.stage("data", DATA)

    @property
    def finished(self) -> bool:
        return self._stage.finished

    def operations(self) -> None:
        return None  # reading and downloading, not computing

    def do(self) -> None:
        _perform(self.run, "prepare")

    def find(self, row: Row, column: Column) -> Found | None:
        card = self._stage.info["card"]
        return Found(float(card[row.name]), None, card["users"])

    def absent(self, row: Row, column: Column) -> str:
        raise AssertionError("a card has every number")


class Speed:
    """The benchmark of this configuration, and of the run that it asks for before (CoLLM's)."""

    def __init__(self, run: pipeline.Run, with_llm: bool):
        self.run, self.title = run, "benchmark"
        cfg = run.work.cfg
        stages = ("train", "users", "items", *["alignment"] * cfg.alignment.trains)
        first = config.before(cfg)
        self._parts = [(cfg, stages), *([] if first is None else [(first, ("train",))])]

    def _folder(self, cfg: config.Config) -> Path:
        key = config.key({**config.to_dict(cfg), "seed": 0})  # made data: any seed
        return self.run.work.workdir / "benchmark" / key

    def _results(self, cfg: config.Config) -> dict[str, Any]:
        file = self._folder(cfg) / "benchmark.json"
        return read_json(file) if file.exists() else {}

    def _has(self, cfg: config.Config, stages: tuple[str, ...]) -> bool:
        return set(stages) <= self._results(cfg).keys()

    @property
    def finished(self) -> bool:
        return all(self._has(*part) for part in self._parts)

    def operations(self) -> None:
        return None

    def do(self) -> None:
        if processes.several():
            raise ValueError("times are measured in one process: run this experiment alone")
        for cfg, stages in self._parts:
            if not self._has(cfg, stages):
                options = measure.Options(stages, (), repeats=3, steps=1)
                measure.run(cfg, self._folder(cfg), options, self.run.work.writer.say)

    def find(self, row: Row, column: Column) -> Found | None:
        results, *before = [self._results(cfg) for cfg, _ in self._parts]
        minutes = lambda of, stage, name: of[stage][name]["median"]
        epochs = [(results, "alignment")] * self.run.work.cfg.alignment.trains
        epochs += [(each, "train") for each in before]
        earlier = sum(minutes(*epoch, "minutes_per_epoch") for epoch in epochs)
        values = {
            "train": earlier + minutes(results, "train", "minutes_per_epoch"),
            "inference": sum(minutes(results, stage, "minutes") for stage in ("users", "items")),
            "earlier": earlier,
        }
        return Found(float(values[column.metric]), None, results["environment"]["sizes"]["users"])

    def absent(self, row: Row, column: Column) -> str:
        raise AssertionError("a measurement has every number")


KINDS: dict[str, Callable[[pipeline.Run, bool], Job]] = {
    RECORDS: Judged,
    TRANSFER: Transferred,
    CARD: Card,
    SPEED: Speed,
}
