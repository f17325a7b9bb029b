"""Tables and figures of plain results: records of results.json that may stand together."""

import math
from collections.abc import Sequence
from typing import Any

from llmsrec_jax import statistics
from llmsrec_jax.report import experiments, figures
from llmsrec_jax.report.document import MISSING, Block, Cell, Folded, Section, Table, Text
from llmsrec_jax.report.kinds import RANKINGS, Kind, joined, kind, told
from llmsrec_jax.report.systems import (
    BOUND,
    FEWEST,
    Estimate,
    Group,
    Record,
    agreement,
    estimate,
    pick,
    spread_words,
    systems,
)
from llmsrec_jax.schema import GREEDY

MAIN = ("hr@10", "ndcg@10")
ORIGINAL = {"condition": "original"}
ALL = {"slice": "all"}
WHO = "teacher is the CF-SRec, SASRec unless it says otherwise; llm_srec is LLM-SRec."


def section(group: Group) -> Section:
    """All that the records of one group say."""
    records = group.records
    ranked = [row for row in pick(records, **ORIGINAL, **ALL) if row["protocol"] != GREEDY]
    users = sorted({row["users"] for row in ranked})
    count = " to ".join(f"{number:,}" for number in dict.fromkeys(users[:1] + users[-1:]))
    plain = pick(records, **ORIGINAL)
    main = [row for metric in MAIN for row in pick(plain, metric=metric, **ALL)]
    sliced = [row for row in pick(plain, protocol="sampled") if row["metric"] == MAIN[1]]
    name = f"{group.dataset}-{group.split}-{'-'.join(map(str, group.seeds))}-{group.candidates}"
    who = f" {WHO}" if {"teacher", "llm_srec"} & {row["model"] for row in records} else ""
    blocks: list[Block] = [Text(f"{count} users.{who}")] * bool(users)
    if main:
        blocks.append(quantities(group, main, "Ranking"))
    blocks += [*agreements(group), *orders(group, name)]
    if len({row["slice"] for row in sliced}) > 1:
        blocks += [quantities(group, sliced, "By slice"), *_slices(group, sliced, name)]
    everything = [
        turned(quantities(group, pick(records, condition=condition), "Every metric"))
        for condition in dict.fromkeys(row["condition"] for row in records)
    ]
    return Section(group.title, [*blocks, Folded("Every metric", list(everything))])


def quantities(group: Group, records: Sequence[Record], caption: str) -> Table:
    """A row for each system, a column for each thing that is measured; what all columns share is in the caption."""
    measured = list(dict.fromkeys(kind(row) for row in records))
    apart, common = told(measured)
    columns = [joined(words) for words in apart] if len(measured) > 1 else [measured[0][0]]
    rows = []
    for name, of in systems(records).items():
        at: dict[Kind, list[Record]] = {}
        for row in of:
            at.setdefault(kind(row), []).append(row)
        values = [estimate(at.get(one, [])) for one in measured]
        rows.append([Cell(name), *(_shown(value, group.seeds) for value in values)])
    return Table(f"{caption}: {common}; {spread_words(group.seeds)}", ["", *columns], rows)


def turned(table: Table) -> Table:
    """Its columns as rows."""
    names, *cells = zip(*table.rows, strict=True)
    rows = [[Cell(column), *row] for column, row in zip(table.columns[1:], cells, strict=True)]
    return Table(table.caption, ["", *(cell.text for cell in names)], rows)


def _shown(value: Estimate | None, seeds: Sequence[int]) -> Cell:
    return value.cell(seeds) if value else Cell(MISSING, "no such record")


def agreements(group: Group) -> list[Block]:
    """How sampled and full ranking order the systems."""
    found = systems(pick(group.records, **ORIGINAL, **ALL))
    present = {(row["metric"], row["protocol"]) for row in group.records}
    metrics = [m for m in MAIN if {(m, protocol) for protocol in RANKINGS} <= present]
    if not metrics:
        return []
    rows = []
    for metric in metrics:
        row = [Cell(metric)]
        for seed in group.seeds:
            value, count = agreement(found, metric, seed)
            if count < FEWEST:
                row.append(Cell(MISSING, f"{count} systems: at least {FEWEST} are needed"))
            elif math.isnan(value):
                row.append(Cell(MISSING, "undefined: one ranking holds all systems equal"))
            else:
                row.append(Cell(f"{value:+.2f}".replace("-", "−"), f"over {count} systems"))
        rows.append(row)
    without = ", without the Bayes bound" if BOUND in found else ""
    caption = f"Sampled against full ranking: Spearman rank correlation over systems{without}"
    return [Table(caption, ["", *(f"seed {seed}" for seed in group.seeds)], rows)]


def orders(group: Group, name: str) -> list[Block]:
    """What another order of the histories does: Figure 1, Table 5 and the differences in words."""
    blocks: list[Block] = []
    records = pick(group.records, metric=MAIN[1], **ALL)
    protocol = "sampled" if pick(records, protocol="sampled") else "full"
    found = systems(pick(records, protocol=protocol))
    for condition in dict.fromkeys(row["condition"] for row in records):
        at = {
            (system, state): value
            for system, rows in found.items()
            for state in ("original", condition)
            if (value := estimate(pick(rows, condition=state)))
        }
        if condition == "original":
            continue
        shown = [system for system in found if (system, condition) in at]
        what = f"{MAIN[1]}, {protocol} ranking"
        caption = f"Histories {condition}: {what}, {spread_words(group.seeds)}"
        labels = (f"{what}, original histories", f"{condition} histories")
        drawing = f"orders-{name}-{condition}"
        blocks.append(figures.scatter(shown, "original", condition, at, labels, drawing, caption))
    cosines = pick(group.records, metric="cosine", **ALL)
    if cosines:
        blocks.append(quantities(group, cosines, "User vectors of both orders"))
    return [*blocks, *_changes(group)]


def _changes(group: Group) -> list[Block]:
    changed = [row for row in pick(group.records, **ALL) if "change" in row]
    changed = [row for row in changed if row["metric"] in MAIN]
    listed = []
    for name, rows in systems(changed).items():
        for row in rows:
            change = {name: row["change"][name] for name in statistics.Difference._fields}
            known: dict[str, Any] = {k: math.nan if v is None else v for k, v in change.items()}
            words = statistics.Difference(**known).words()
            listed.append(
                {**row, "row": name, "words": words, "what": f"{row['condition']} against original"}
                | {"difference": row["change"]}
            )
    return experiments.compared(listed) if listed else []


def _slices(group: Group, records: Sequence[Record], name: str) -> list[Block]:
    found = systems(records)
    slices = list(dict.fromkeys(row["slice"] for row in records))
    at = {
        (system, slice.replace("_", " ")): value
        for system, rows in found.items()
        for slice in slices
        if (value := estimate(pick(rows, slice=slice)))
    }
    label = f"{MAIN[1]}, sampled ranking"
    caption = f"By slice: {label}, {spread_words(group.seeds)}"
    columns = [slice.replace("_", " ") for slice in slices]
    return [figures.bars([*found], columns, at, {}, label, f"slices-{name}", caption)]
