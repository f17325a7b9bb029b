"""SVG that a page can hold: its text is text, its colours are the page's, and it is the same each time."""

import re
import xml.etree.ElementTree as xml

import pytest
from matplotlib.axes import Axes

from llmsrec_jax.report import figures
from llmsrec_jax.report.systems import Estimate
from tests.report import conftest as made

AT = {
    ("a", "x"): Estimate(0.5, 0.1, 0.01, (0, 1)),
    ("a", "y"): Estimate(0.4, None, 0.01, (0,)),
    ("b", "x"): Estimate(0.3, None, None, (0,)),
}


def bars(name="f"):
    return figures.bars(["a", "b"], ["x", "y"], AT, {("b", "y"): 0.2}, made.EVIL, name, "caption")


def scatter(name="f"):
    return figures.scatter(["a", "b"], "x", "y", AT, (made.EVIL, "y"), name, "caption")


def histogram(name="f"):
    return figures.histogram(made.histogram()["histograms"], made.EVIL, name, "caption")


def curves(name="f"):
    lines = {made.EVIL: [(0.0, 2.0), (1.0, 1.0)], "_b": [(0.0, 3.0)]}
    return figures.curves(lines, ("epoch", made.EVIL), name, "caption")


@pytest.mark.parametrize("draw", [bars, scatter, histogram, curves])
def test_what_a_page_needs(draw):
    svg = draw().svg
    found = xml.fromstring(svg)  # well formed: what is not ours is escaped
    assert any(made.EVIL == "".join(text.itertext()).strip() for text in found.iter("text"))
    assert "currentColor" in svg and "var(--series-0)" in svg
    colours = set(re.findall(r"(?:fill|stroke): ?([^;\"]+)", svg))
    named = {"none", "currentColor"} | {f"var(--series-{k})" for k in range(8)}
    assert colours <= named
    assert svg == draw().svg


def test_two_figures_share_no_id():
    ids = [
        {element.get("id") for element in xml.fromstring(bars(name).svg).iter()} - {None}
        for name in ("f", "g")
    ]
    assert ids[0] and not ids[0] & ids[1]
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', bars("f").svg))
    assert used <= ids[0]


def test_every_known_spread_is_an_error_bar(monkeypatch):
    """Over seeds where there are several, else over users; none where neither is known."""
    drawn, errorbar = [], Axes.errorbar

    def spied(axes, x, y, yerr, xerr, **look):
        drawn.append((y, yerr, xerr))
        return errorbar(axes, x, y, yerr, xerr, **look)

    monkeypatch.setattr(Axes, "errorbar", spied)
    bars()
    assert drawn == [(0.5, 0.1, None), (0.4, 0.01, None)]
    drawn.clear()
    scatter()
    assert drawn == [(0.4, 0.01, 0.1)]


def test_absent_values_are_said_and_published_ones_marked():
    found = bars()
    assert found.svg.count(">no value<") == 1
    assert [key.name for key in found.keys] == ["a", "b", "published"]


def test_scatter_has_the_line_of_equal_values_and_only_whole_points():
    found = scatter()
    assert ">y = x<" in found.svg
    assert [key.name for key in found.keys] == ["a"]  # b has no y


def test_many_columns_make_a_wide_figure():
    columns = [str(k) for k in range(20)]
    wide = figures.bars(["a"], columns, {}, {}, "label", "f", "caption")
    assert wide.width > 4 * figures.WIDTH


def test_more_systems_than_colours():
    rows = [str(k) for k in range(figures.SERIES + 2)]
    at = {(row, "x"): Estimate(0.5, None, None, (0,)) for row in rows}
    found = figures.bars(rows, ["x"], at, {}, "label", "f", "caption")
    assert [key.series for key in found.keys] == [*range(figures.SERIES), 0, 1]
