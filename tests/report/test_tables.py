"""Tables of plain records."""

from llmsrec_jax.report import systems, tables
from llmsrec_jax.report.document import Figure, Table
from tests.report import conftest as made


def group(rows=None) -> systems.Group:
    (found,), _ = systems.groups(rows or made.records())
    return found


def blocks(kind, rows=None) -> list:
    return [block for block in tables.section(group(rows)).blocks if isinstance(block, kind)]


def test_full_ranking_stands_beside_sampled_ranking():
    ranking = blocks(Table)[0]
    each = [
        f"{metric}, {protocol} ranking" for metric in tables.MAIN for protocol in made.PROTOCOLS
    ]
    assert ranking.columns == ["", *each]
    row = [cell.text for cell in ranking.rows[1]]
    assert row == ["teacher", *["0.3000 ± 0.0100", "0.1500 ± 0.0100"] * 2]


def test_rank_correlation_of_each_seed():
    (block,) = tables.agreements(group(made.records(0) + made.records(1)))
    assert isinstance(block, Table) and block.columns == ["", "seed 0", "seed 1"]
    assert [[c.text for c in row] for row in block.rows] == [
        [metric, "+1.00", "+1.00"] for metric in tables.MAIN
    ]
    few = [row for row in made.records() if row["model"] != "popularity"]
    (block,) = tables.agreements(group(few))
    assert isinstance(block, Table) and list(block.notes()) == ["2 systems: at least 3 are needed"]
    alone = [row for row in few if row["protocol"] == "sampled"]
    assert tables.agreements(group(alone)) == []


def test_differences_are_said_in_words():
    changes = next(t for t in blocks(Table) if t.caption.startswith("Differences"))
    words = {row[0].text: row[1].text for row in changes.rows}
    assert words == {"teacher": "drops by 6.1% ± 0.8%", "llm_srec": "no detectable change"}


def test_numbers_that_are_not_finite():
    rows = made.records()
    for row in rows:
        if "change" in row:
            row["change"]["relative"] = row["change"]["relative_se"] = None
    rows.append(made.record("new", 0, 0.1))
    changes = next(t for t in blocks(Table, rows) if t.caption.startswith("Differences"))
    assert changes.rows[0][1].text == "drops by 0.0183"
    assert blocks(Table, rows)[0].rows[-2][1].note == "no such record"


def test_slices_and_orders_are_drawn():
    names = [figure.caption.split(":")[0] for figure in blocks(Figure)]
    assert names == ["Histories shuffled", "By slice"]
    sliced = next(t for t in blocks(Table) if t.caption.startswith("By slice"))
    assert sliced.columns == ["", "all users", "warm", "cold"]


def test_turned():
    table = tables.quantities(group(), systems.pick(made.records(), slice="all"), "x")
    turned = tables.turned(table)
    assert turned.columns[1:] == [row[0].text for row in table.rows]
    assert turned.rows[0][1:] == [row[1] for row in table.rows]
