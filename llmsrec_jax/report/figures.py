"""Figures as SVG to be put into a page: text stays text, colours are the page's, and the same numbers give the same bytes."""

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from llmsrec_jax.report.document import Figure, Key
from llmsrec_jax.report.systems import Estimate

WIDTH, HEIGHT = 460, 300  # units of the SVG; text is 12 of them high
SERIES = 8  # colours of the page
INK = "#010203"  # stands for the colour of the text
MARKERS = {
    **{"o": "●", "s": "■", "^": "▲", "D": "◆"},
    **{"v": "▼", "P": "✚", "X": "✖", "*": "★"},
}
LINES = {"-": "──", "--": "╌╌", ":": "┈┈", "-.": "─·"}
STYLE: dict[Any, Any] = {
    **{"svg.fonttype": "none", "text.parse_math": False, "font.size": 12, "axes.labelsize": 12},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
    **{"figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none"},
    "axes.prop_cycle": f"cycler(color=['{INK}'])",  # of what is given no colour
    **{"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK},
    **{"xtick.color": INK, "ytick.color": INK, "grid.color": INK, "grid.alpha": 0.18},
    **{"axes.grid": True, "grid.linewidth": 0.8, "lines.linewidth": 1.8, "lines.markersize": 6},
}
At = Mapping[tuple[str, str], Estimate]  # (row, column) -> value


def _colour(series: int) -> str:
    """Stands for a colour of the page until _svg names it."""
    return f"#f0f0{series % SERIES:02x}"


def _svg(canvas: Canvas, name: str) -> str:
    """Without ids that another figure of the page has; `name` is the figure's own."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        canvas.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = (
        re.sub(r' (xmlns(:xlink)?|version|width|height)="[^"]*"', "", svg[: svg.index(">")])
        + (svg[svg.index(">") :])
    )
    svg = re.sub(r'(<(?:g|text)\b[^>]*?) id="[^"]*"', r"\1", svg).replace("xlink:href", "href")
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)  # repeats every text
    svg = re.sub(r"#f0f0(\d\d)", lambda found: f"var(--series-{int(found[1])})", svg)
    return svg.replace(INK, "currentColor").strip()


def _canvas(width: float = WIDTH, height: float = HEIGHT) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(width / 72, height / 72), layout="constrained")
    return canvas, canvas.add_subplot()


def _drawn(
    draw: Callable[[Axes], list[Key]],
    name: str,
    caption: str,
    width: float = WIDTH,
    height: float = HEIGHT,
) -> Figure:
    with matplotlib.rc_context(STYLE):
        canvas, axes = _canvas(width, height)
        keys = draw(axes)
        return Figure(_svg(canvas, name), width, caption, keys)


def bars(
    rows: Sequence[str],
    columns: Sequence[str],
    at: At,
    published: Mapping[tuple[str, str], float],
    label: str,
    name: str,
    caption: str,
) -> Figure:
    """A group of bars for each column, a bar for each row, with error bars; `published` values as open diamonds."""
    step, gap = 1 / len(rows), 0.25

    def draw(axes: Axes) -> list[Key]:
        for r, row in enumerate(rows):
            for c, column in enumerate(columns):
                x = c * (1 + gap) + (r + 0.5) * step
                value, paper = at.get((row, column)), published.get((row, column))
                if value is None:
                    _absent(axes, x)
                else:
                    axes.bar(x, value.mean, step * 0.9, color=_colour(r), alpha=_strength(r))
                    _whisker(axes, x, value.mean, yerr=value.spread, color=INK)
                if paper is not None:
                    axes.plot(x, paper, "D", color=INK, mfc="none", mec=INK, ms=6, mew=1.4)
        axes.set_xticks(
            [c * (1 + gap) + 0.5 for c in range(len(columns))],
            [textwrap.fill(column, 13) for column in columns],
        )
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel(label)
        keys = [Key(row, "■", r % SERIES) for r, row in enumerate(rows)]
        return [*keys, Key("published", "◇", -1)] if published else keys

    width = max(WIDTH, 70 + len(columns) * max(104, 16 * len(rows) + 16))
    return _drawn(draw, name, caption, width)


def scatter(
    rows: Sequence[str],
    first: str,
    second: str,
    at: At,
    labels: tuple[str, str],
    name: str,
    caption: str,
) -> Figure:
    """A point for each row: column `first` against `second`, with error bars, and the line where they are equal."""

    def draw(axes: Axes) -> list[Key]:
        keys, ends = [], [0.0]
        for r, row in enumerate(rows):
            x, y = at.get((row, first)), at.get((row, second))
            if x is None or y is None:
                continue
            marker = list(MARKERS)[r % len(MARKERS)]
            _whisker(axes, x.mean, y.mean, xerr=x.spread, yerr=y.spread, color=_colour(r))
            axes.plot(x.mean, y.mean, marker, color=_colour(r), ms=8)
            keys.append(Key(row, MARKERS[marker], r % SERIES))
            ends += [x.mean + x.spread, y.mean + y.spread]
        end = max(ends) * 1.08 or 1.0
        axes.plot([0, end], [0, end], "--", color=INK, lw=1, alpha=0.6)
        axes.annotate(
            "y = x", (end, end), (-4, -2), textcoords="offset points", ha="right", va="top"
        )
        axes.set(xlim=(0, end), ylim=(0, end), xlabel=labels[0], ylabel=labels[1], aspect="equal")
        return keys

    return _drawn(draw, name, caption, 400, 380)


def histogram(bins: Sequence[Mapping[str, Any]], label: str, name: str, caption: str) -> Figure:
    """Outlines of the shares of users; each of `bins` has row, column, edges and counts."""

    def draw(axes: Axes) -> list[Key]:
        keys = []
        for k, one in enumerate(bins):
            line = list(LINES)[k % len(LINES)]
            shares = [count / (sum(one["counts"]) or 1) for count in one["counts"]]
            axes.stairs(shares, one["edges"], color=_colour(k), ls=line, lw=1.8)
            axes.stairs(shares, one["edges"], color=_colour(k), fill=True, alpha=0.12)
            named = ", ".join(filter(None, (one["row"], one["column"])))
            keys.append(Key(named, LINES[line], k % SERIES))
        axes.set(xlabel=label, ylabel="share of users")
        return keys

    return _drawn(draw, name, caption)


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    labels: tuple[str, str],
    name: str,
    caption: str,
) -> Figure:
    """Line name -> its points, in order."""

    def draw(axes: Axes) -> list[Key]:
        keys = []
        for k, (named, points) in enumerate(lines.items()):
            line = list(LINES)[k % len(LINES)]
            dots = "o" if len(points) < 30 else ""
            axes.plot(*zip(*points, strict=True), color=_colour(k), ls=line, marker=dots, ms=4)
            keys.append(Key(named, LINES[line], k % SERIES))
        axes.set(xlabel=labels[0], ylabel=labels[1])
        return keys if len(keys) > 1 else []

    return _drawn(draw, name, caption, height=240)


def _whisker(
    axes: Axes, x: float, y: float, color: str, yerr: float = 0.0, xerr: float = 0.0
) -> None:
    look = {"fmt": "none", "ecolor": color, "elinewidth": 1.2, "capsize": 2.5}
    if xerr or yerr:
        axes.errorbar(x, y, yerr or None, xerr or None, **look)


def _strength(row: int) -> float:
    """Rows beyond the colours take them again, paler."""
    return 1.0 if row < SERIES else 0.5


def _absent(axes: Axes, x: float) -> None:
    axes.annotate(
        "no value",
        (x, 0),
        (0, 4),
        textcoords="offset points",
        rotation=90,
        ha="center",
        va="bottom",
    )
