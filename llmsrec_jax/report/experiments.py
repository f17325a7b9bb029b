"""One experiment: the paper's table beside ours, its figure, its differences in words, and the choices behind it."""

from collections.abc import Sequence
from typing import Any

from llmsrec_jax.report import figures
from llmsrec_jax.report.document import (
    MISSING,
    Block,
    Cell,
    Figure,
    Folded,
    Section,
    Table,
    Text,
    number,
    words,
)
from llmsrec_jax.report.kinds import RANKINGS, Kind, joined, kind, parts, usual
from llmsrec_jax.report.systems import Estimate, seeds_words, spread_words
from llmsrec_jax.statistics import ONE_PAIR, claims

Experiment = dict[str, Any]
OF_USERS = "paired bootstrap over users"
FEW = 12  # differences that are shown at once


def section(found: Experiment, where: str, unlike: str = "") -> Section:
    """`where` is the work folder, told where several have this experiment; `unlike`: settings in which others differ."""
    blocks: list[Block] = [table(found), *drawn(found, where)]
    if found["overall"]:
        blocks += compared(found["overall"], "over seeds and users")
        blocks.append(Folded("Differences, seed by seed", compared(found["differences"])))
    elif found["differences"]:
        blocks += compared(found["differences"])
    if found["choices"]:
        rows = [words(question, str(answer)) for question, answer in found["choices"].items()]
        blocks.append(Table("Choices", ["question", "what was used"], rows))
    if found["changed"] is not None:
        share = f"{found['changed']:.1%}".replace("%", " %")
        blocks.append(Text(f"Another order changes {share} of the test histories."))
    undone = sum(cell["status"] != "done" for cell in found["cells"])
    if undone:
        blocks.insert(0, Text(f"{undone} of {len(found['cells'])} cells have no value of ours."))
    if unlike:
        blocks.insert(0, Text(f"Run with {unlike}; other experiments of this report were not."))
    title = joined((found["title"], found["dataset"], where))
    return Section(f"{found['source']}: {title}", blocks)


def estimated(cell: dict[str, Any]) -> Estimate | None:
    """Our value; None where there is none."""
    if cell["status"] != "done" or cell["mean"] is None:
        return None
    seeds = tuple(value["seed"] for value in cell["values"])
    return Estimate(cell["mean"], cell["sd"], cell["se"], seeds)


def table(found: Experiment) -> Table:
    """Rows by columns; under each column the published value, ours and the difference.

    A column is repeated for each thing that it measures; what most columns share is said once, above.
    """
    measured: dict[str, list[Kind]] = {column: [] for column in found["columns"]}
    cells = {}
    for cell in found["cells"]:
        if kind(cell) not in measured[cell["column"]]:
            measured[cell["column"]].append(kind(cell))
        cells[cell["row"], cell["column"], kind(cell)] = cell
    kinds = [of for each in measured.values() for of in each]
    common = usual(kinds)
    places = [(column, of) for column, each in measured.items() for of in each or [None]]
    published = any(cell["published"] is not None for cell in found["cells"])
    columns, spans = [""], []
    for column, of in places:
        own = [part for part in parts(of) if part and part not in common] if of else []
        unsaid = [part for part in own if not _says(column, part)]
        name = f"{column} ({joined(unsaid)})" if unsaid else column
        spans.append((name, 3 if published else 1))
        columns += ["published", "ours", "difference"] if published else [name]
    rows = [
        [Cell(row)]
        + [
            part
            for column, of in places
            for part in _cells(cells.get((row, column, of)), found["seeds"], published)
        ]
        for row in found["rows"]
    ]
    unless = " unless a column says otherwise" if len(set(kinds)) > 1 else ""
    caption = f"{found['title']}: {joined(common)}{unless}; {spread_words(found['seeds'])}"
    return Table(caption, columns, rows, spans if published else [])


def _says(column: str, part: str) -> bool:
    """Whether the name of a column holds the word that counts in a part of what it measures."""
    return part.split()[0].lower() in column.lower()


def _cells(cell: dict[str, Any] | None, seeds: Sequence[int], published: bool) -> list[Cell]:
    """What stands in one place of the table."""
    if cell is None:
        empty = Cell(MISSING, "not part of the experiment")
        return [Cell(MISSING), empty, Cell(MISSING)] if published else [empty]
    ours, paper = estimated(cell), cell["published"]
    if ours is not None:
        shown = ours.cell(seeds)
        if cell["why"]:  # of the seeds that are not there
            shown = shown._replace(note=". ".join(filter(None, (shown.note, cell["why"]))))
    else:
        status = cell["status"] if cell["status"] != "done" else "missing"
        shown = Cell(status, cell["why"] or "no reason given", failed=True)
    if not published:
        return [shown]
    return [
        Cell(MISSING if paper is None else number(paper)),
        shown,
        Cell(MISSING if paper is None or ours is None else apart(ours.mean, paper)),
    ]


def apart(ours: float, paper: float) -> str:
    """`−0.0123 (−3.1 %)`."""
    share = f" ({(ours - paper) / paper:+.1%})".replace("%", " %") if paper else ""
    return number(ours - paper, "+") + share.replace("-", "−")


def compared(changes: Sequence[dict[str, Any]], chance: str = OF_USERS) -> list[Block]:
    """The differences; of many, those that are claimed in a sentence, and all of them on demand."""
    table = differences(changes, chance)
    if len(changes) <= FEW:
        return [table]
    detected = [row for row in table.rows if claims(row[1].text)]
    unknown = sum(row[1].text.startswith(ONE_PAIR) for row in table.rows)
    each = [joined((row[0].text, *(cell.text for cell in row[2:-4]))) for row in detected]
    listed = "; ".join(f"{what}: {row[1].text}" for what, row in zip(each, detected, strict=True))
    text = f"{len(detected)} of {len(changes)} differences are detectable"
    text += f": {listed}." if listed else "."
    if unknown:
        text += f" {unknown} more are of {ONE_PAIR}."
    return [Text(text), Folded("Differences", [table])]


def differences(changes: Sequence[dict[str, Any]], chance: str = OF_USERS) -> Table:
    """Each in words, with the numbers behind them; what all of them compare is said once, above."""
    same = len({one["what"] for one in changes}) == 1
    rows = []
    for one in changes:
        of = joined(
            (one["metric"], one["protocol"], seeds_words(one.get("seeds") or [one["seed"]]))
        )
        change = one["difference"]
        numbers = [
            f"{_known(change['first'], '')} → {_known(change['second'], '')}",
            f"{_known(change['change'])} [{_known(change['low'])}, {_known(change['high'])}]",
            MISSING if change["p"] is None else f"{change['p']:.3f}",
            str(change["users"]),
        ]
        rows.append(words(one["row"], one["words"], *[one["what"]] * (not same), of, *numbers))
    columns = ["", "in words", *["what"] * (not same), "of", "values", "change, 95 % interval"]
    about = f"{changes[0]['what']}; " if same else ""
    return Table(f"Differences: {about}{chance}", [*columns, "p", "users"], rows)


def _known(value: float | None, sign: str = "+") -> str:
    return MISSING if value is None else number(value, sign)


def drawn(found: Experiment, where: str) -> list[Figure]:
    """The experiment's figure, one for each thing it measures."""
    name = "-".join(filter(None, (found["experiment"], found["dataset"], where)))
    source = f"{found['source']}, {found['dataset']}"
    if found["figure"] == "histogram":
        bins = found["histograms"]
        caption = f"{source}: {found['title']}, shares of users"
        return [figures.histogram(bins, _measured(found["cells"]), name, caption)] if bins else []
    shown = []
    for count, cells in enumerate(_panels(found)):
        at = {(c["row"], c["column"]): value for c in cells if (value := estimated(c))}
        papers = {(c["row"], c["column"]): c["published"] for c in cells}
        papers = {place: value for place, value in papers.items() if value is not None}
        label, panel = _measured(cells), f"{name}-{count}"
        columns = [c for c in found["columns"] if c in {cell["column"] for cell in cells}]
        if found["figure"] == "bars":
            rows, caption = _present(found, label, {row for row, _ in (*at, *papers)})
            if rows:
                shown.append(figures.bars(rows, columns, at, papers, label, panel, caption))
        elif found["figure"] == "scatter":
            for first, second in zip(columns[::2], columns[1::2], strict=False):
                both = {row for row, _ in at if {(row, first), (row, second)} <= set(at)}
                rows, caption = _present(found, label, both)
                labels, place = (f"{label}, {first}", second), f"{panel}-{first}"
                if rows:
                    shown.append(figures.scatter(rows, first, second, at, labels, place, caption))
    return shown


def _present(found: Experiment, label: str, rows: set[str]) -> tuple[list[str], str]:
    """The rows that can be drawn, in order, and a caption that names the others."""
    absent = [row for row in found["rows"] if row not in rows]
    without = f"; no value of {joined(absent)}" if absent else ""
    caption = f"{found['source']}, {found['dataset']}: {label}, {spread_words(found['seeds'])}"
    return [row for row in found["rows"] if row in rows], caption + without


def _panels(found: Experiment) -> list[list[dict[str, Any]]]:
    """Cells that share axes: rankings, or other things of one protocol; where a place has several cells, those of one
    metric, protocol and slice."""
    cells = found["cells"]
    single = len({(cell["row"], cell["column"]) for cell in cells}) == len(cells)
    panels: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        protocol = "" if cell["protocol"] in RANKINGS else cell["protocol"]
        panels.setdefault((protocol,) if single else kind(cell)[:3], []).append(cell)
    return list(panels.values())


def _measured(cells: Sequence[dict[str, Any]]) -> str:
    """Metric and protocol where all cells agree on them."""
    said = {parts(kind(cell))[:2] for cell in cells}
    return joined(said.pop()) if len(said) == 1 else "value"
