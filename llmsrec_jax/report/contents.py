"""What stands in a report, and in which order."""

from collections.abc import Mapping, Sequence
from typing import Any

from llmsrec_jax.data.card import render_card
from llmsrec_jax.report import experiments, figures, tables
from llmsrec_jax.report.document import (
    MISSING,
    Block,
    Cases,
    Cell,
    Figure,
    Folded,
    Plain,
    Section,
    Table,
    Text,
    Warned,
    words,
)
from llmsrec_jax.report.kinds import joined
from llmsrec_jax.report.reading import Folder
from llmsrec_jax.report.systems import collect, groups

CURVES = ("loss", "ndcg@10")
COMPARED = ("data.", "evaluate.")  # settings that numbers in one table must share


def sections(folders: Sequence[Folder]) -> list[Section]:
    records, clashes = collect(folders)
    found, lists = groups(records)
    warned = [*lists, *clashes, *_unlike(folders)]
    first = Section("This report", [*map(Warned, warned), _folders(folders)])
    parts = [
        Section("Experiments", [], _experiments(folders)),
        Section("Results", [], [tables.section(group) for group in found]),
        Section("Training", list(_training(folders))),
        Section("Cases", _cases(folders)),
        Section("Data", _cards(folders)),
        Section("Settings", _settings(folders)),
    ]
    return [first, *(part for part in parts if part.blocks or part.sections)]


def _folders(folders: Sequence[Folder]) -> Table:
    rows = []
    for folder in folders:
        models = dict.fromkeys(record["model"] for record in folder.records)
        source = dict.fromkeys(record.get("git", "") for record in folder.records)
        told = dict.fromkeys(found["experiment"] for found in folder.experiments)
        parts = (models, told, filter(None, source))
        rows.append(words(folder.name, *(", ".join(part) or "none" for part in parts)))
    return Table("Work folders", ["", "models", "experiments", "commit"], rows)


def _experiments(folders: Sequence[Folder]) -> list[Section]:
    """Those of one name together."""
    named = [(found, folder.name) for folder in folders for found in folder.experiments]
    same = [(found["experiment"], found["dataset"]) for found, _ in named]
    order = list(dict.fromkeys(found["experiment"] for found, _ in named))
    named.sort(key=lambda one: order.index(one[0]["experiment"]))
    return [
        experiments.section(
            found, where if same.count((found["experiment"], found["dataset"])) > 1 else ""
        )
        for found, where in named
    ]


def _cases(folders: Sequence[Folder]) -> list[Block]:
    found = [(folder.cases, folder.name) for folder in folders if folder.cases]
    return [Cases(content, where if len(found) > 1 else "") for content, where in found]


def _named(name: tuple[str, ...], names: Sequence[tuple[str, ...]]) -> str:
    """Folder and model; and the key, where others are called so too, or where there is no model's name."""
    alike = [other for other in names if other[:2] == name[:2]]
    return joined(name if len(alike) > 1 or not name[1] else name[:2])


def _training(folders: Sequence[Folder]) -> list[Figure]:
    """Loss and validation by epoch, a line for each artefact that was trained."""
    shown = []
    stages = dict.fromkeys(line["stage"] for f in folders for line in f.log if "stage" in line)
    for stage in stages:
        for metric in CURVES:
            found: dict[tuple[str, ...], list[tuple[float, float]]] = {}
            for folder in folders:
                for line in folder.log:
                    if line.get("stage") == stage and line.get(metric) is not None:
                        where = folder.name if len(folders) > 1 else ""
                        name = (where, line.get("model", ""), line.get("key", ""))
                        at = line.get("epoch", line["step"])
                        found.setdefault(name, []).append((at, line[metric]))
            lines = {_named(name, [*found]): points for name, points in found.items()}
            if lines:
                caption = f"Stage {stage}: {'validation ' * (metric != 'loss')}{metric}"
                drawing = f"curve-{stage}-{metric}"
                shown.append(figures.curves(lines, ("epoch", metric), drawing, caption))
    return shown


def _cards(folders: Sequence[Folder]) -> list[Block]:
    """Each data card once."""
    cards = {render_card(card): None for folder in folders for card in folder.cards}
    return [Plain(card) for card in cards]


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, str]:
    found = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = str(value)
    return found


def _settings(folders: Sequence[Folder]) -> list[Block]:
    """Of the last run in each folder: first where they differ, then all."""
    flat = {folder.name: _flat(folder.config) for folder in folders if folder.config}
    if not flat:
        return []
    names = list(dict.fromkeys(name for each in flat.values() for name in each))
    rows = {name: [each.get(name, MISSING) for each in flat.values()] for name in names}
    columns = ["", *flat]
    blocks: list[Block] = [Text("Of the last run in each folder.")]
    if unequal := [words(name, *row) for name, row in rows.items() if len(set(row)) > 1]:
        blocks.append(Table("Settings that differ", columns, unequal))
    listed = [[Cell(name), *map(Cell, row)] for name, row in rows.items()]
    return [*blocks, Folded("All settings", [Table("All settings", columns, listed)])]


def _unlike(folders: Sequence[Folder]) -> list[str]:
    """A warning for each dataset whose folders were prepared or evaluated differently."""
    warnings = []
    for dataset in dict.fromkeys(record["dataset"] for f in folders for record in f.records):
        of = [f for f in folders if any(r["dataset"] == dataset for r in f.records)]
        values: dict[str, dict[str, str]] = {}  # setting -> folder -> value
        for folder in of:
            for name, value in _flat(folder.config).items():
                if name.startswith(COMPARED):
                    values.setdefault(name, {})[folder.name] = value
        unequal = [
            f"{name} ({', '.join(f'{value} in {where}' for where, value in each.items())})"
            for name, each in values.items()
            if len(set(each.values())) > 1
        ]
        if unequal:
            warnings.append(
                f"{dataset}: the last runs of these folders differ in {', '.join(unequal)}:"
                " compare their numbers with care"
            )
    return warnings
