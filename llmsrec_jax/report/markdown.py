"""The report as Markdown: its words and tables; figures are in the page."""

from collections.abc import Sequence

from llmsrec_jax.report.document import (
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
)
from llmsrec_jax.report.kinds import joined

SHOWN = 3  # cases


def render(title: str, sections: Sequence[Section]) -> str:
    parts = [f"# {title}"]
    for section in sections:
        parts += _section(section, 2)
    return "\n\n".join(parts) + "\n"


def _section(section: Section, depth: int) -> list[str]:
    parts = [f"{'#' * depth} {_safe(section.title)}"]
    parts += [text for block in section.blocks if (text := _block(block))]
    for below in section.sections:
        parts += _section(below, depth + 1)
    return parts


def _safe(text: str) -> str:
    """Shown as it is: neither HTML nor the end of a cell."""
    for mark in "\\`*_|[]<>":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return _safe(text)
        case Warned(text):
            return f"**Warning:** {_safe(text)}"
        case Plain(text):
            return "\n".join(f"    {line}" for line in text.splitlines())
        case Figure(caption=caption):
            return f"Figure, in index.html: {_safe(caption)}"
        case Folded(_, blocks):
            return "\n\n".join(map(_block, blocks))
        case Cases():
            return _cases(block)
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    notes = table.notes()
    heads = [name for name, size in table.spans for _ in range(size)]
    columns = [
        _safe(f"{head}: {column}" if head else column)
        for head, column in zip(
            ["", *heads] if heads else [""] * len(table.columns), table.columns, strict=True
        )
    ]

    def shown(cell: Cell) -> str:
        mark = f" ({notes[cell.note]})" if cell.note else ""
        return _safe(cell.text) + mark

    line = lambda cells: f"| {' | '.join(cells)} |"
    lines = [
        line(columns),
        line([":--", *("--:" if number else ":--" for number in table.numeric()[1:])]),
    ]
    lines += [line([shown(cell) for cell in row]) for row in table.rows]
    parts = [f"**{_safe(table.caption)}**", "\n".join(lines)]
    parts += ["\n".join(f"{number}. {_safe(note)}" for note, number in notes.items())] * bool(notes)
    return "\n\n".join(parts)


def _cases(found: Cases) -> str:
    content, cases = found.content, found.content["cases"]
    title = joined((content["dataset"], f"seed {content['seed']}", found.where))
    parts = [
        f"{_safe(title)}: the first {min(SHOWN, len(cases))} of {len(cases)} users;"
        " all of them can be browsed in index.html."
    ]
    for case in cases[:SHOWN]:
        history = "; ".join(f"{row['date']} {_safe(row['title'])}" for row in case["history"])
        lines = [
            f"- user {_safe(str(case['user']))}: {history}",
            f"  - next: {_safe(case['target'])}",
        ]
        for model in content["models"]:
            top = "; ".join(map(_safe, case["top"][model]))
            lines.append(f"  - {_safe(model)}, rank {case['ranks'][model]}: {top}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
