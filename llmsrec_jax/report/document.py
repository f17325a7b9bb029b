"""What a report is made of, before it is HTML or Markdown."""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MISSING = "–"
WHOLE = 100  # numbers from here on are counts, shown without decimals
NUMBER = re.compile(r"[+−]?[\d.,]+( ?[±%→\[(].*)?")


class Cell(NamedTuple):
    """`note` is a remark that stands below the table; `failed` marks what should be there and is not."""

    text: str
    note: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Table:
    """The first column names the rows. `spans`, where given, are headings over the other columns, and how many each covers."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    spans: list[tuple[str, int]] = field(default_factory=list)

    def notes(self) -> dict[str, int]:
        """Remark -> its number below the table."""
        said = dict.fromkeys(cell.note for row in self.rows for cell in row if cell.note)
        return {note: number for number, note in enumerate(said, 1)}

    def numeric(self) -> list[bool]:
        """Of each column: whether it holds numbers, which stand to the right."""
        return [
            all(c.failed or c.text == MISSING or NUMBER.fullmatch(c.text) for c in column)
            for column in (zip(*self.rows, strict=True) if self.rows else [[]] * len(self.columns))
        ]


class Text(NamedTuple):
    text: str


class Warned(NamedTuple):
    """A line that must not be overlooked."""

    text: str


class Plain(NamedTuple):
    """Text whose lines and spaces are kept."""

    text: str


class Key(NamedTuple):
    """An entry of a legend: `series` is the number of its colour, -1 that of the text."""

    name: str
    mark: str
    series: int


class Figure(NamedTuple):
    """`svg` of `width` units at its natural size; colours are CSS variables."""

    svg: str
    width: float
    caption: str
    keys: list[Key]


class Cases(NamedTuple):
    """The content of one cases.json, checked; `where` is the work folder, told where several have one."""

    content: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Folded:
    """Blocks that open on demand."""

    title: str
    blocks: list["Block"]


@dataclass(frozen=True)
class Section:
    title: str
    blocks: list["Block"]
    sections: list["Section"] = field(default_factory=list)


Block = Text | Warned | Plain | Table | Figure | Cases | Folded


def number(value: float, sign: str = "") -> str:
    """As text with a true minus; `sign` "+" shows that of positive ones too."""
    text = f"{value:{sign}.4f}" if abs(value) < WHOLE else f"{value:{sign},.0f}"
    return text.replace("-", "−")


def words(*cells: str) -> list[Cell]:
    """A row of a table."""
    return [Cell(text) for text in cells]
