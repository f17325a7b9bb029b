"""Results as CSV: all records, and the cells of each experiment."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmsrec_jax.report.experiments import estimated
from llmsrec_jax.report.reading import Folder


def sheets(folders: Sequence[Folder]) -> dict[str, str]:
    """File name -> content. Nothing is merged or left out: each row names its folder."""
    records = [
        {"folder": folder.name, **_flat(record)} for folder in folders for record in folder.records
    ]
    found = {"records.csv": _csv(records)}
    cells: dict[str, list[dict[str, Any]]] = {}
    for folder in folders:
        for one in folder.experiments:
            name = re.sub(r"[^\w.-]+", "_", one["experiment"])
            common = {"folder": folder.name, "source": one["source"], "dataset": one["dataset"]}
            rows = cells.setdefault(f"experiment_{name}.csv", [])
            rows += [common | _cell(cell) for cell in one["cells"]]
    return found | {name: _csv(rows) for name, rows in cells.items()}


def _cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    ours, paper = estimated(dict(cell)), cell["published"]
    each = {"seeds": "seed", "values": "value", "users": "users"}
    return {
        **{name: value for name, value in cell.items() if name != "values"},
        "difference": None if ours is None or paper is None else ours.mean - paper,
        **{
            name: " ".join(str(value[part]) for value in cell["values"])
            for name, part in each.items()
        },
    }


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """A change becomes columns; the settings behind the hash are not repeated row by row."""
    change = {f"change_{name}": value for name, value in record.get("change", {}).items()}
    return {
        name: value for name, value in record.items() if name not in ("change", "settings")
    } | change


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    rows = list(rows)
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    sheet = csv.DictWriter(text, list(columns), lineterminator="\n")
    sheet.writeheader()
    sheet.writerows(rows)
    return text.getvalue()
