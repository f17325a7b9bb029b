"""The files of finished work folders, read and checked before anything is drawn."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsrec_jax import config, writer
from llmsrec_jax.report.kinds import kind
from llmsrec_jax.schema import SCHEMA, STUDIES

FIRST = "order_suite"  # of experiments: the question that the others are details of
FIGURES = ("", "bars", "scatter", "histogram")
STATUSES = ("done", "missing", "not run", "no value")
EVALUATE = "--mode=evaluate, which trains nothing again"
NUMBER = (int, float, type(None))  # null: not finite
RECORD = {
    **dict.fromkeys(("model", "dataset", "split", "condition", "protocol", "metric"), str),
    **dict.fromkeys(("slice", "candidates_hash", "config_hash"), str),
    **{"seed": int, "users": int, "value": NUMBER, "se": NUMBER},
}
CHANGE: dict[str, Any] = dict.fromkeys(
    ("first", "second", "change", "low", "high", "p", "relative", "relative_se", "users"), NUMBER
)
EXPERIMENT = {
    **dict.fromkeys(("experiment", "title", "source", "dataset", "figure"), str),
    **dict.fromkeys(("seeds", "rows", "columns", "cells", "differences", "histograms"), list),
    "choices": dict,
}
CELL = {
    **dict.fromkeys(("row", "column", "metric", "protocol", "slice", "condition"), str),
    **dict.fromkeys(("published", "mean", "sd", "se"), NUMBER),
    **{"values": list, "status": str, "why": str},
}
VALUE = {"seed": int, "value": NUMBER, "se": NUMBER, "users": int}
DIFFERENCE = {
    **dict.fromkeys(("row", "what", "metric", "protocol", "words"), str),
    "difference": dict,
}
HISTOGRAM = {"row": str, "column": str, "edges": list, "counts": list}
CASES = {"dataset": str, "seed": int, "models": list, "cases": list}
CASE = {"user": (str, int), "history": list, "target": str, "ranks": dict, "top": dict, "hit": dict}


@dataclass(frozen=True)
class Folder:
    """One work folder. `cards` are the data cards of its data stages, `log` the lines of metrics.jsonl, `cases` those of
    the dataset trained on and of another one, where there are any."""

    name: str
    records: list[dict[str, Any]]
    config: dict[str, Any]
    cards: list[dict[str, Any]]
    log: list[dict[str, Any]]
    cases: list[dict[str, Any]]
    experiments: list[dict[str, Any]]


def read(folders: Sequence[Path]) -> list[Folder]:
    """Each folder once, called by its own name, or by its path where two have the same name.

    Raises:
      ValueError: no folder, one without results, or a file that is damaged or of another schema.
    """
    if not folders:
        raise ValueError("no work folder given: name at least one that holds results.json")
    distinct = list({folder.resolve(): folder for folder in folders}.values())
    names = [folder.resolve().name for folder in distinct]
    return [
        _folder(folder, name if names.count(name) == 1 else str(folder))
        for folder, name in zip(distinct, names, strict=True)
    ]


def _folder(path: Path, name: str) -> Folder:
    if not path.is_dir():
        beside = [str(other) for other in path.parent.glob("*") if other.is_dir()]
        raise ValueError(f"{path}: no such folder{config.closest(str(path), beside)}")
    results, cases = path / "results.json", [path / name for name in STUDIES]
    experiments = sorted(
        (path / "experiments").glob("*.json"), key=lambda file: (file.stem != FIRST, file.name)
    )
    if not results.is_file() and not experiments:
        raise ValueError(
            f"{path} holds no results: first run"
            f" python -m llmsrec_jax.main --config=FILE.py --workdir={path}"
        )
    stages = {file: _json(file) for file in sorted(path.glob("data/*/stage.json"))}
    for file, stage in stages.items():
        _require(file, "it", stage, {"info": dict})
        _require(file, "info", stage["info"], {"card": dict})
    settings = path / "config.json"
    return Folder(
        name=name,
        records=_records(results) if results.is_file() else [],
        config=_json(settings) if settings.is_file() else {},
        cards=[stage["info"]["card"] for stage in stages.values()],
        log=writer.read_log(path / "metrics.jsonl"),
        cases=[_cases(file) for file in cases if file.is_file()],
        experiments=[_experiment(file) for file in experiments],
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged, perhaps cut short ({error}): delete it and run the command that wrote it again"
        ) from error


def _versioned(path: Path, remedy: str) -> dict[str, Any]:
    """A file that says which schema it follows; remedy: how to have it written anew."""
    content = _json(path)
    found = content.get("schema") if isinstance(content, dict) else None
    if found != SCHEMA:
        has = "does not say its schema" if found is None else f"is of schema {found!r}"
        raise ValueError(
            f"{path} {has}, and schema {SCHEMA} is wanted: move it away and write it anew with this version ({remedy})"
        )
    return content


def _require(path: Path, what: str, found: Any, fields: Mapping[str, Any]) -> None:
    """Whether `found`, the part `what` of the file, has all `fields`, each of its type."""
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {what} is not an object")
    for name, wanted in fields.items():
        if name not in found:
            raise ValueError(f"{path}: {what} has no {name!r}")
        if not isinstance(found[name], wanted):
            raise ValueError(f"{path}: {name!r} of {what} is {found[name]!r:.60}")


def _records(path: Path) -> list[dict[str, Any]]:
    content = _versioned(path, EVALUATE)
    _require(path, "it", content, {"records": list})
    settings = content.get("settings", {})  # of older files it is not known
    _require(path, "settings", settings, {})
    for number, record in enumerate(content["records"]):
        _require(path, f"record {number}", record, RECORD)
        if "change" in record:
            _require(path, f"change of record {number}", record["change"], CHANGE)
        if record["config_hash"] in settings:
            record["settings"] = settings[record["config_hash"]]
    return content["records"]


def _cases(path: Path) -> dict[str, Any]:
    content = _versioned(path, EVALUATE)
    _require(path, "it", content, CASES)
    if not content["models"]:
        raise ValueError(f"{path} names no models")
    for number, case in enumerate(content["cases"]):
        _require(path, f"case {number}", case, CASE)
        for row in case["history"]:
            _require(path, f"history of case {number}", row, {"date": str, "title": str})
        for model in content["models"]:
            kinds = {"ranks": int, "top": list, "hit": bool}
            for part, wanted in kinds.items():
                _require(path, f"{part!r} of case {number}", case[part], {model: wanted})
    return content


def _experiment(path: Path) -> dict[str, Any]:
    found = _versioned(path, f"--mode=reproduce --experiment={path.stem}")
    _require(path, "it", found, EXPERIMENT)
    if found["figure"] not in FIGURES:
        raise ValueError(f"{path}: figure {found['figure']!r} is none of {FIGURES}")
    if found["figure"] == "scatter" and len(found["columns"]) % 2:
        raise ValueError(f"{path}: a scatter needs its columns in pairs, original and shuffled")
    places = set()
    for number, cell in enumerate(found["cells"]):
        _require(path, f"cell {number}", cell, CELL)
        for value in cell["values"]:
            _require(path, f"a value of cell {number}", value, VALUE)
        if cell["status"] not in STATUSES:
            raise ValueError(f"{path}: status {cell['status']!r} is none of {STATUSES}")
        place = (cell["row"], cell["column"], kind(cell))
        if place in places:
            raise ValueError(f"{path}: cell {number} is there twice: {', '.join(place[:2])}")
        places.add(place)
        if cell["row"] not in found["rows"] or cell["column"] not in found["columns"]:
            raise ValueError(f"{path}: cell {number} stands in no row or column of the table")
    found.setdefault("overall", [])  # over seeds, of which older files do not tell
    for name, usual in (("changed", None), ("own", [])):
        found.setdefault(name, usual)
    _require(path, "it", found, {"changed": NUMBER, "own": list})
    for part, seeds in (("differences", {"seed": int}), ("overall", {"seeds": list})):
        for number, told in enumerate(found[part]):
            _require(path, f"{part} {number}", told, DIFFERENCE | seeds)
            _require(path, f"{part} {number}", told["difference"], CHANGE)
    for number, bins in enumerate(found["histograms"]):
        _require(path, f"histogram {number}", bins, HISTOGRAM)
        if len(bins["edges"]) != len(bins["counts"]) + 1:
            raise ValueError(f"{path}: histogram {number} needs one edge more than counts")
    return found
