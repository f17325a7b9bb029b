"""What stands in a report, and in which order."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmsrec_jax import provenance
from llmsrec_jax.data.card import render_card
from llmsrec_jax.report import experiments, figures, systems, tables
from llmsrec_jax.report.document import (
    MISSING,
    Block,
    Cases,
    Figure,
    Folded,
    Plain,
    Section,
    Table,
    Warned,
    words,
)
from llmsrec_jax.report.kinds import joined
from llmsrec_jax.report.reading import Folder

CURVES = ("loss", "ndcg@10")
COMPARED = ("data.", "evaluate.")  # settings that numbers in one table must share


def sections(folders: Sequence[Folder]) -> list[Section]:
    records, clashes = systems.collect(folders)
    found, lists = systems.groups(records)
    warned = [*lists, *clashes, *_unlike(folders)]
    first = Section("This report", [*map(Warned, warned), _folders(folders)])
    parts = [
        Section("Experiments", [], _experiments(folders)),
        Section("Results", [], [tables.section(group) for group in found]),
        Section("Training", list(_training(folders))),
        Section("Cases", _cases(folders)),
        Section("Data", _cards(folders)),
        Section("Settings", [], _settings(folders)),
    ]
    return [first, *(part for part in parts if part.blocks or part.sections)]


def _folders(folders: Sequence[Folder]) -> Table:
    rows = []
    for folder in folders:
        models = dict.fromkeys(record["model"] for record in folder.records)
        source = dict.fromkeys(record.get("git", "") for record in folder.records)
        told = dict.fromkeys(found["experiment"] for found in folder.experiments)
        parts = ("; ".join(models), ", ".join(told), ", ".join(filter(None, source)))
        rows.append(words(folder.name, *(part or "none" for part in parts)))
    return Table("Work folders", ["", "models", "experiments", "commit"], rows)


def _experiments(folders: Sequence[Folder]) -> list[Section]:
    """Those of one name together; what sets the settings of one apart from the others' is said with it."""
    named = [(found, folder.name) for folder in folders for found in folder.experiments]
    same = [(found["experiment"], found["dataset"]) for found, _ in named]
    order = list(dict.fromkeys(found["experiment"] for found, _ in named))
    named.sort(key=lambda one: order.index(one[0]["experiment"]))
    apart: dict[int, dict[str, Any]] = {}
    for dataset in dict.fromkeys(found["dataset"] for found, _ in named):
        of = [found for found, _ in named if found["dataset"] == dataset]
        unlike = provenance.differing([_counting(found) for found in of])
        apart |= {id(found): each for found, each in zip(of, unlike, strict=True)}
    return [
        experiments.section(
            found,
            where if same.count((found["experiment"], found["dataset"])) > 1 else "",
            provenance.words(apart[id(found)]),
        )
        for found, where in named
    ]


def _cases(folders: Sequence[Folder]) -> list[Block]:
    several = sum(bool(folder.cases) for folder in folders) > 1
    return [
        Cases(content, folder.name if several else "")
        for folder in folders
        for content in folder.cases
    ]


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
                told = ("validation ", ", sampled ranking where the name tells no other")
                before, behind = ("", "") if metric == "loss" else told
                caption = f"Stage {stage}: {before}{metric}{behind}"
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


def _counting(found: Mapping[str, Any]) -> dict[str, str]:
    """Settings of an experiment: without what changes no number, and what it always has otherwise."""
    settings, own = _flat(found.get("config", {})), found.get("own", ())
    return {n: value for n, value in settings.items() if n not in own and not n.startswith("mesh.")}


def _settings(folders: Sequence[Folder]) -> list[Section]:
    """Of every model and of every experiment: first where they differ, then all."""
    several = len(folders) > 1
    models: dict[str, Mapping[str, str]] = {}
    experiments: dict[str, Mapping[str, str]] = {}
    for folder in folders:
        where = folder.name if several else ""
        for name, each in _used(folder).items():
            models.setdefault(joined((name, where)), each)
        for found in folder.experiments:
            if "config" in found:
                experiments[joined((found["experiment"], where))] = _flat(found["config"])
    parts = (("Models", models), ("Experiments", experiments))
    return [Section(title, _beside(each)) for title, each in parts if each]


def _used(folder: Folder) -> dict[str, Mapping[str, str]]:
    """Name -> settings that its numbers depend on but for the seed; of older results those of the folder's last run."""
    found = systems.systems(folder.records)
    known = dict(zip(found, systems.settings(found.values()), strict=True))
    told: dict[str, Mapping[str, str]]
    told = {
        name: {setting: str(value) for setting, value in each.items() if setting != "seed"}
        for name, each in known.items()
        if each
    }
    return told or ({"last run": _flat(folder.config)} if folder.config else {})


def _beside(each: Mapping[str, Mapping[str, str]]) -> list[Block]:
    names = list(dict.fromkeys(name for settings in each.values() for name in settings))
    values = {name: [settings.get(name, MISSING) for settings in each.values()] for name in names}
    apart = {name: len({*row} - {MISSING}) > 1 for name, row in values.items()}
    unequal = [words(name, *row) for name, row in values.items() if apart[name]]
    alike = [
        words(name, next(value for value in row if value != MISSING))
        for name, row in values.items()
        if not apart[name]
    ]
    blocks: list[Block] = []
    if unequal:
        blocks.append(Table("Settings that differ", ["", *each], unequal))
    said = f"Settings of {'; '.join(each)}{' that do not differ' * bool(unequal)}"
    return [
        *blocks,
        Folded(
            "All other settings" if unequal else "All settings", [Table(said, ["", "value"], alike)]
        ),
    ]


def _unlike(folders: Sequence[Folder]) -> list[str]:
    """A warning for each dataset whose folders were prepared or evaluated differently."""
    warnings = []
    for dataset in dict.fromkeys(record["dataset"] for f in folders for record in f.records):
        values: dict[str, dict[str, str]] = {}  # setting -> folder -> values
        for folder in folders:
            of = [record for record in folder.records if record["dataset"] == dataset]
            each = _used(replace(folder, records=of)).values() if of else []
            for name in dict.fromkeys(n for settings in each for n in settings):
                if name.startswith(COMPARED):
                    told = dict.fromkeys(settings[name] for settings in each if name in settings)
                    values.setdefault(name, {})[folder.name] = " and ".join(told)
        unequal = [
            f"{name} ({', '.join(f'{value} in {where}' for where, value in each.items())})"
            for name, each in values.items()
            if len(set(each.values())) > 1
        ]
        if unequal:
            warnings.append(
                f"{dataset}: these folders differ in {', '.join(unequal)}: compare their numbers with care"
            )
    return warnings
