"""--mode=reproduce: one experiment, cell by cell, over several seeds; what is finished is never run again.

Cells with the same configuration are one job. A job that cannot be done here leaves its cells with the reason; the others go on.
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmsrec_jax import (
    command,
    config,
    estimate,
    experiments,
    outcomes,
    pipeline,
    processes,
    published,
    questions,
    results,
    rules,
)
from llmsrec_jax.checkpoint import write_json
from llmsrec_jax.data import splits
from llmsrec_jax.experiments import ALONE, SPEED, TRANSFER, Column, Row
from llmsrec_jax.jobs import KINDS, Job, Judged
from llmsrec_jax.outcomes import Outcomes
from llmsrec_jax.schema import SCHEMA
from llmsrec_jax.stages.alignment import require_encoder
from llmsrec_jax.stages.transfer import elsewhere
from llmsrec_jax.statistics import (
    FEWEST_SEEDS,
    LEVEL,
    UNDETECTED,
    Difference,
    of_one_pair,
    over_seeds,
    overlap,
    paired,
)
from llmsrec_jax.writer import Writer, table

DONE, MISSING, OPEN, EMPTY = "done", "missing", "not run", "no value"
LEFT_OUT = "left out (--rows)"
BINS = 40  # of a histogram


class Cell(NamedTuple):
    """One number of one seed."""

    row: Row
    column: Column
    seed: int
    job: Job | None  # None: `why` says why not
    why: str


def _per_user(cell: Cell) -> tuple[Outcomes, np.ndarray] | None:
    """The outcomes of its run, and the cell's values of users; None where there are none."""
    if not isinstance(cell.job, Judged) or not cell.job.finished:
        return None
    values = cell.job.per_user(cell.row, cell.column)
    return None if values is None or not len(values) else (cell.job.outcomes, values)


class Experimenter:
    """One experiment over one configuration."""

    def __init__(
        self,
        name: str,
        cfg: config.Config,
        seeds: Sequence[int],
        workdir: Path,
        out: Writer,
        rows: str = "",
    ):
        """`rows`: those to run, as `experiments.rows` reads them; the others are told as far as they are finished."""
        self.name, self.experiment = name, experiments.find(name)
        self._rows = experiments.rows(self.experiment, rows)
        if (system := results.label(cfg).partition(",")[0]) in results.SYSTEMS:
            raise ValueError(
                f"experiments change LLM-SRec into the systems of their rows, and this configuration is one of them "
                f"already: start from one without the settings of {system}"
            )
        if not cfg.prompts.retrieves:
            raise ValueError(
                "rows say themselves who writes titles: start from a configuration without prompts.task=title"
            )
        self.cfg, self.seeds, self.workdir, self.writer = cfg, seeds, workdir, out
        self._jobs: dict[str, Job] = {}
        self._compared: dict[tuple[tuple[str, str, int], ...], Difference] = {}
        self._common: dict[tuple[str, ...], np.ndarray] = {}
        self._why: dict[int, str] = {}  # id of a job -> why it could not be done
        self.cells = [
            self._cell(row, column, seed)
            for seed in seeds
            for row in self.experiment.rows
            for column in self.experiment.columns
            if experiments.has(row, column)
        ]
        for job in self.jobs:
            if not self._rows & {cell.row.name for cell in self._cells_of(job)}:
                self._why[id(job)] = LEFT_OUT

    def _cell(self, row: Row, column: Column, seed: int) -> Cell:
        if row.missing:
            return Cell(row, column, seed, None, row.missing)
        if row is experiments.SASREC and self.cfg.teacher.model != "sasrec":
            why = f"the teacher's settings are those of teacher.model={self.cfg.teacher.model}"
            return Cell(row, column, seed, None, why)
        kind = self.experiment.kind
        with_llm = row.model == "llm_srec" or column.metric == ALONE or kind == TRANSFER
        try:
            base = config.apply(self.cfg, {"seed": seed})
            cfg = experiments.cell(base, self.experiment, row, column)
            if kind != TRANSFER:  # no cell asks for the other dataset
                cfg = replace(cfg, transfer=config.Transfer())
            rules.validate(cfg)  # as it was written, like pipeline.run
            if with_llm and kind != SPEED:  # what is measured stays without it
                require_encoder(cfg)
            cfg = pipeline.settled(cfg)
            key = json.dumps([with_llm, config.to_dict(cfg)], sort_keys=True)
            if key not in self._jobs:
                run = pipeline.Run(cfg, self.workdir, self.writer)
                self._jobs[key] = KINDS[kind](run, with_llm)
        except ValueError as error:
            return Cell(row, column, seed, None, str(error))
        return Cell(row, column, seed, self._jobs[key], "")

    @property
    def jobs(self) -> list[Job]:
        """Teachers first: they are quick, and the others need them."""
        return sorted(self._jobs.values(), key=lambda job: job.title == "LLM-SRec")

    def plan(self) -> str:
        """What there is to do, for a person."""
        todo = [job for job in self.jobs if self._is_open(job)]
        # of several processes each has its own clock: no estimate
        flops_per_s = estimate.rate(self.cfg) if todo and not processes.several() else 0.0
        lines, known, unknown = [], 0.0, 0
        counted: set[Path] = set()  # stages that an earlier job will have made
        for job in self.jobs:
            cells = self._cells_of(job)
            rows = dict.fromkeys(c.row.name for c in cells)
            columns = dict.fromkeys(c.column.name for c in cells)
            left = None
            if flops_per_s and job in todo and (parts := job.operations()) is not None:
                left = sum(n for stage, n in parts.items() if stage not in counted) / flops_per_s
                counted |= parts.keys()
                known += left
            unknown += left is None and job in todo
            state = "unknown" if left is None else _minutes(left)
            if job not in todo:
                state = "done" if job.finished else LEFT_OUT
            lines.append([str(cells[0].seed), state, ", ".join(rows), ", ".join(columns)])
        for why, names in self._reasons().items():
            lines.append(["-", "missing", ", ".join(names), why])
        head = f"{self.name}: {self.experiment.title} ({self.experiment.source})"
        shown = table(["seed", "at most", "models", "cells"], lines)
        total = f"at most {_minutes(known)} and compilation"
        if unknown:
            total += f", and {unknown} that cannot be estimated before the data are prepared (--mode=prepare) and the backbone is here"
        return f"{head}\n{shown}\n{len(todo)} of {len(self.jobs)} runs to do, {total}"

    def _is_open(self, job: Job) -> bool:
        return not job.finished and self._why.get(id(job)) != LEFT_OUT

    def _cells_of(self, job: Job) -> list[Cell]:
        return [cell for cell in self.cells if cell.job is job]

    def _reasons(self) -> dict[str, list[str]]:
        """{why: rows} of cells without a job."""
        found: dict[str, dict[str, None]] = {}
        for cell in self.cells:
            if cell.job is None:
                found.setdefault(cell.why, {})[cell.row.name] = None
        return {why: [*names] for why, names in found.items()}

    def run(self) -> None:
        """Does what is not done, job by job; experiments/NAME.json is written after each.

        Raises:
          ValueError: nothing of it can be done; names the first reason.
        """
        for number, job in enumerate(self.jobs, start=1):
            if not processes.agree(self._is_open(job)):
                continue
            cells = self._cells_of(job)
            names = ", ".join(dict.fromkeys(cell.row.name for cell in cells))
            of = f"{self.name}: run {number} of {len(self.jobs)}, {names}, seed {cells[0].seed}"
            self.writer.say(of)
            try:
                with self.writer.hushed():  # what the runs say of themselves is told at the end
                    job.do()
            except (ValueError, OSError, ImportError) as error:
                if isinstance(error, ValueError) and not command.is_ours(error):
                    raise  # a bug
                self._why[id(job)] = str(error)
                self.writer.say(f"{of}: cannot be done here: {error}")
            self.save()
        told = self.save()
        if told:
            self.writer.say(self.report(told))
        if not any(job.finished for job in self.jobs):
            asked = [cell for cell in self.cells if cell.row.name in self._rows]
            whys = (self._why.get(id(cell.job), cell.why) for cell in asked)
            raise ValueError(f"nothing of {self.name} can be run here: {next(filter(None, whys))}")

    def save(self) -> dict[str, Any] | None:
        """Writes experiments/NAME.json; returns what is in it, None on other processes than the first."""
        if not processes.first():
            return None
        told = self.result()
        write_json(self._file, told)
        return told

    def result(self) -> dict[str, Any]:
        """All cells so far, with the paper's values, differences and histograms; JSON-ready."""
        one = self.experiment
        used = config.apply(self.cfg, experiments.common_changes(self.cfg, one))
        differences, overall = self._differences()
        return {
            "schema": SCHEMA,
            "experiment": self.name,
            "title": one.title,
            "source": one.source,
            "dataset": self._dataset,
            "seeds": [*self.seeds],
            "config": config.to_dict(used),
            "own": [n for n, value in one.changes.items() if config.subset(used, [n])[n] == value],
            "choices": {
                choice.question: choice.answer(used)
                for choice in map(questions.CHOICES.__getitem__, one.choices)
            },
            "changed": self._changed,
            "figure": one.figure,
            "rows": [row.name for row in one.rows],
            "columns": [column.name for column in one.columns],
            "cells": [
                self._told(row, column, number)
                for row in one.rows
                for number, column in enumerate(one.columns)
                if experiments.has(row, column)
            ],
            "differences": differences,
            "overall": overall,
            "histograms": self._histograms() if one.figure == "histogram" else [],
        }

    @property
    def _changed(self) -> float | None:
        """Share of the test histories that are other ones in another order; None = no finished run has tried one."""
        judged = [job for job in self.jobs if isinstance(job, Judged) and job.finished]
        found = [job.judgement.stage.info.get("changed") for job in judged]
        known = [share for share in found if share is not None]
        return float(np.mean(known)) if known else None

    @property
    def _printed(self) -> str:
        """The dataset for which the paper prints such numbers; '' = none."""
        data, there = self.cfg.data, self.cfg.transfer.category
        category = data.category if data.source == "amazon" else ""
        if self.experiment.kind != TRANSFER:
            return category
        return there if category == published.TRAINED_ON else ""

    @property
    def _dataset(self) -> str:
        """What the numbers are of, for a person."""
        here, there = splits.called(self.cfg.data), elsewhere(self.cfg)
        if self.experiment.kind != TRANSFER:
            return here
        return f"{here} -> {'' if there is None else splits.called(there.data)}"

    def _of(self, row: Row, column: Column) -> list[Cell]:
        return [c for c in self.cells if c.row is row and c.column is column]

    def _told(self, row: Row, column: Column, number: int) -> dict[str, Any]:
        """One cell over all seeds."""
        values, why, status = [], "", OPEN
        for cell in self._of(row, column):
            found = None
            if cell.job is None:
                why, status = cell.why, MISSING if row.missing else OPEN
            elif not cell.job.finished:
                why, status = self._why.get(id(cell.job), "the run is not finished"), OPEN
            else:
                found = cell.job.find(row, column)
                why, status = "" if found else cell.job.absent(row, column), EMPTY
            if found:
                values.append({"seed": cell.seed, **found._asdict()})
        each = [v["value"] for v in values]
        ses = [v["se"] for v in values if v["se"] is not None]
        return {
            **{"row": row.name, "column": column.name, "metric": column.metric},
            **{"protocol": column.protocol, "slice": column.slice, "condition": column.condition},
            "published": published.value(self.name, self._printed, row.name, number),
            "values": values,
            "mean": float(np.mean(each)) if each else None,
            "sd": float(np.std(each, ddof=1)) if len(each) > 1 else None,
            "se": float(np.mean(ses)) if ses else None,
            "status": DONE if each else status,
            "why": why,
        }

    def _differences(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What a column changes for a row, and how a row differs from the reference: seed by seed, and over all of them."""
        one = self.experiment
        columns = {column.name: column for column in one.columns}
        pairs = [
            (
                row.name,
                f"{second} instead of {first}",
                (row, columns[first]),
                (row, columns[second]),
            )
            for row in one.rows
            for first, second in one.compare
        ]
        reference = next((row for row in one.rows if row.name == one.against), None)
        if reference:
            pairs += [
                (
                    f"{reference.name} against {row.name}",
                    column.name,
                    (row, column),
                    (reference, column),
                )
                for row in one.rows
                for column in one.columns
                if row is not reference
            ]
        each, overall = [], []
        for who, what, first, second in pairs:
            found: list[tuple[Cell, Difference]] = []
            for a, b in zip(self._of(*first), self._of(*second), strict=True):
                if told := self._difference(a, b):
                    found.append((a, told))
            if not found:
                continue
            about = {"row": who, "what": what, "trainings": self._trainings(first, second)}
            about |= {"metric": second[1].metric, "protocol": second[1].protocol}
            for a, told in found:
                words = of_one_pair(told) if about["trainings"] > 1 else told.words()
                each.append(about | {"seed": a.seed, "difference": told._asdict(), "words": words})
            if len(found) >= FEWEST_SEEDS:
                cells, differences = zip(*found, strict=True)
                told = over_seeds(differences, self._overlap(cells))
                words = {"difference": told._asdict(), "words": told.words()}
                overall.append(about | {"seeds": tuple(cell.seed for cell in cells)} | words)
        return each, overall

    def _overlap(self, cells: Sequence[Cell]) -> np.ndarray:
        """Of the users of a cell of every seed, found once for all cells of the same users."""
        jobs = [cell.job for cell in cells if isinstance(cell.job, Judged)]
        column = cells[0].column
        place = column.slice, *(job.outcomes.candidates for job in jobs)
        if place not in self._common:
            self._common[place] = overlap([job.users(column) for job in jobs])
        return self._common[place]

    def _trainings(self, first: tuple[Row, Column], second: tuple[Row, Column]) -> int:
        """1: both numbers are of one trained model; 2: of two, which would differ by chance too."""
        found = {
            cell.job.training(cell.row)
            for place in (first, second)
            for cell in self._of(*place)
            if cell.seed == self.seeds[0] and isinstance(cell.job, Judged)
        }
        return len(found)

    def _difference(self, first: Cell, second: Cell) -> Difference | None:
        """Paired over users, once for each pair; None where one has no values of users."""
        place = tuple((c.row.name, c.column.name, c.seed) for c in (first, second))
        if place not in self._compared:
            one, other = _per_user(first), _per_user(second)
            if one is None or other is None:
                return None
            outcomes.require_comparable([one[0], other[0]])
            self._compared[place] = paired(one[1], other[1], self.cfg.seed)
        return self._compared[place]

    def _histograms(self) -> list[dict[str, Any]]:
        """Of values of users of the first seed."""
        found = []
        for cell in self.cells:
            values = _per_user(cell) if cell.seed == self.seeds[0] else None
            if values is None:
                continue
            counts, edges = np.histogram(values[1], BINS)
            place = {"row": cell.row.name, "column": cell.column.name}
            found.append({**place, "edges": edges.tolist(), "counts": counts.tolist()})
        return found

    def report(self, told: dict[str, Any]) -> str:
        """The table and the differences of a `result`, for a person."""
        cells = {(c["row"], c["column"]): c for c in told["cells"]}
        body = [
            [row, *(_shown(cells.get((row, column))) for column in told["columns"])]
            for row in told["rows"]
        ]
        seeds = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}"
        spread = "sd over seeds" if len(self.seeds) > 1 else "standard error over users"
        paper = ", [the paper's value]" if any(c["published"] for c in told["cells"]) else ""
        lines = [
            f"{self.name}: {told['title']}; {told['dataset']}, {seeds}, ± {spread}{paper}",
            table(["", *told["columns"]], body),
            *_told(told["differences"], told["overall"]),
        ]
        if told["changed"] is not None:
            lines.append(f"another order changes {told['changed']:.1%} of the test histories")
        whys = dict.fromkeys(
            (c["status"], c["why"]) for c in told["cells"] if c["status"] in (OPEN, EMPTY)
        )
        lines += [f"{status}: {why}" for status, why in whys]
        return "\n".join([*lines, f"{self._file} (--mode=report makes a page of it)"])

    @property
    def _file(self) -> Path:
        return self.workdir / "experiments" / f"{self.name}.json"


def _told(differences: list[dict[str, Any]], overall: list[dict[str, Any]]) -> list[str]:
    """The detected ones in words, over all seeds or else seed by seed; of the others how many."""
    words: dict[tuple[str, str], list[str]] = {}
    for one in differences:
        words.setdefault((one["row"], one["what"]), []).append(one["words"])
    words |= {(one["row"], one["what"]): [one["words"]] for one in overall}
    some = {names: each for names, each in words.items() if {*each} != {UNDETECTED}}
    lines = [f"{row}, {what}: {' | '.join(each)}" for (row, what), each in some.items()]
    if rest := len(words) - len(some):
        lines.append(f"{UNDETECTED} in {'all' if not some else 'the other'} {rest} comparisons")
    if words:
        of = "users and seeds" if overall else "users"
        lines.append(
            f"chance here is that of {of}: {LEVEL:.0%} of differences that are none are called one"
        )
    if any(one["trainings"] > 1 for one in differences) and not overall:
        lines.append(
            f"two trainings also differ by a chance of their own: {FEWEST_SEEDS} seeds tell (--seeds=0,1,2)"
        )
    return lines


def _shown(cell: dict[str, Any] | None) -> str:
    """Mean ± sd over seeds, else ± standard error over users; the paper's value in brackets. None = there is no such cell."""
    if cell is None:
        return ""
    paper = "" if cell["published"] is None else f" [{_number(cell['published'])}]"
    if cell["status"] != DONE:
        return cell["status"] + paper
    spread = cell["se"] if cell["sd"] is None else cell["sd"]
    return _number(cell["mean"]) + ("" if spread is None else f" ± {_number(spread)}") + paper


def _number(x: float) -> str:
    return f"{x:.4f}" if abs(x) < 100 else f"{x:,.0f}"


def _minutes(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def run(
    cfg: config.Config,
    workdir: Path,
    experiment: str,
    seeds: Sequence[int],
    dry_run: bool = False,
    distributed: str = "off",
    rows: str = "",
) -> None:
    """Runs an experiment, or the `rows` of it that are named, or says what it would run.

    Raises:
      ValueError: no such experiment or row, or runs that cannot be compared.
      train.Interrupted: SIGINT or SIGTERM; the same command goes on from there.
    """
    experiments.rows(experiments.find(experiment), rows)
    rules.validate(cfg)
    if dry_run:  # leaves no trace, and waits for no other run in the folder
        pipeline.join(distributed)
        out = Writer(workdir, silent=not processes.first())
        out.say(Experimenter(experiment, cfg, seeds, workdir, out, rows).plan())
        return
    with pipeline.opened(cfg, workdir, distributed) as out:
        one = Experimenter(experiment, cfg, seeds, workdir, out, rows)
        out.say(one.plan())
        one.run()
