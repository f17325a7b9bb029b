"""An experiment's table: the published value beside ours, and every cell that has none with its reason."""

import numpy as np

from llmsrec_jax import statistics
from llmsrec_jax.report import experiments
from llmsrec_jax.report.document import Folded, Table, Text
from tests.report import conftest as made


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_published_ours_and_the_difference():
    table = experiments.table(made.experiment())
    assert table.spans == [("A", 3), ("B", 3)]
    assert table.columns == ["", *["published", "ours", "difference"] * 2]
    assert texts(table) == [
        ["LLM-SRec", "0.4000", "0.3500 ± 0.0100", "−0.0500 (−12.5 %)", "–", "0.3000 ± 0.0100", "–"],
        [
            *("w/o distillation", "0.3200", "0.3300 ± 0.0100", "+0.0100 (+3.1 %)"),
            *("0.2800", "not run", "–"),
        ],
    ]
    assert "ndcg@10, sampled ranking" in table.caption
    assert "standard error over users, seed 0" in table.caption


def test_what_was_not_run_keeps_its_place_and_its_reason():
    table = experiments.table(made.experiment())
    cell = table.rows[1][5]
    assert cell.failed and table.notes() == {"needs weights that are not here": 1}
    first, *_ = experiments.section(made.experiment(), "").blocks
    assert first == Text("1 of 4 cells have no value of ours.")


def test_how_many_histories_another_order_changes():
    blocks = experiments.section(made.experiment(changed=0.9731), "").blocks
    assert Text("Another order changes 97.3 % of the test histories.") in blocks
    assert sum(isinstance(block, Text) for block in blocks) == 2


def test_a_place_without_a_cell_is_shown():
    one = made.experiment(cells=made.experiment()["cells"][:3])
    cell = experiments.table(one).rows[1][5]
    assert (cell.text, cell.note) == ("–", "not part of the experiment")


def test_seeds():
    values = [{"seed": s, "value": v, "se": 0.01, "users": 9} for s, v in ((0, 0.3), (1, 0.5))]
    cells = [
        made.cell("r", "c", 0.4, values=values, sd=0.1414),
        made.cell("r", "d", 0.4, values=values[:1]),
    ]
    one = made.experiment(seeds=[0, 1], rows=["r"], columns=["c", "d"], cells=cells)
    table = experiments.table(one)
    assert texts(table) == [["r", "0.4000 ± 0.1414", "0.4000 ± 0.0100"]]
    assert "standard deviation over seeds 0, 1" in table.caption
    assert list(table.notes()) == ["seed 0 only; ± is the standard error over users"]


def test_a_column_of_two_metrics_is_two_columns():
    kinds = [{"metric": metric} for metric in ("ndcg@10", "hr@10")]
    cells = [made.cell("r", "c", 0.4, **kind) for kind in kinds]
    one = made.experiment(rows=["r"], columns=["c"], cells=cells)
    assert experiments.table(one).columns == ["", "c (ndcg@10)", "c (hr@10)"]
    assert len(experiments.drawn(one, "")) == 2


def test_what_most_columns_share_is_said_once_and_other_things_have_axes_of_their_own():
    cosine = {"metric": "cosine", "protocol": "user vectors", "condition": "shuffled"}
    kinds = {"original": {}, "warm": {"slice": "warm"}, "cosine of user vectors": cosine}
    cells = [made.cell("r", column, 0.4, **kind) for column, kind in kinds.items()]
    one = made.experiment(rows=["r"], columns=[*kinds], cells=cells)
    table = experiments.table(one)
    assert table.columns == ["", "original", "warm", "cosine of user vectors (shuffled histories)"]
    common = "ndcg@10, sampled ranking, all users, original histories"
    assert f": {common} unless a column says otherwise;" in table.caption
    assert [figure.caption.split(": ")[1] for figure in experiments.drawn(one, "")] == [
        f"{label}, ± standard error over users, seed 0"
        for label in ("ndcg@10, sampled ranking", "cosine, user vectors")
    ]


def test_differences_in_words():
    changes = made.experiment()["differences"]
    table = experiments.differences(changes)
    assert texts(table) == [
        [
            *("LLM-SRec", "drops by 6.1% ± 0.8%", "ndcg@10, sampled, seed 0", "0.3500 → 0.3287"),
            *("−0.0213 [−0.0313, −0.0113]", "0.001", "100"),
        ]
    ]
    assert "shuffled against original" in table.caption
    other = {**changes[0], "what": "reversed against original"}
    assert "what" in experiments.differences([*changes, other]).columns


def test_of_many_differences_the_detectable_ones_are_told():
    (one,) = made.experiment()["differences"]
    assert len(experiments.compared([one] * experiments.FEW)) == 1
    nothing = {**one, "words": statistics.paired(np.ones(3), np.ones(3)).words()}
    text, folded = experiments.compared([one] + [nothing] * experiments.FEW)
    assert text == Text(
        "1 of 13 differences are detectable:"
        " LLM-SRec, ndcg@10, sampled, seed 0: drops by 6.1% ± 0.8%."
    )
    assert isinstance(folded, Folded) and len(folded.blocks[0].rows) == 13
    text, _ = experiments.compared([nothing] * 13)
    assert text == Text("0 of 13 differences are detectable.")
    clear = statistics.paired(np.ones(9), np.full(9, 0.5))
    pair = {**one, "words": statistics.of_one_pair(clear)}
    text, _ = experiments.compared([nothing] * 12 + [pair])
    assert text == Text(f"0 of 13 differences are detectable. 1 more are of {statistics.ONE_PAIR}.")


def test_what_several_seeds_say_comes_first():
    (one,) = made.experiment()["differences"]
    three = {**{k: v for k, v in one.items() if k != "seed"}, "seeds": [0, 1, 2]}
    found = made.experiment(overall=[three], differences=[{**one, "seed": s} for s in range(3)])
    blocks = experiments.section(found, "").blocks
    (overall,) = [b for b in blocks if isinstance(b, Table) and "over seeds" in b.caption]
    assert texts(overall)[0][:3] == [
        *("LLM-SRec", "drops by 6.1% ± 0.8%", "ndcg@10, sampled, seeds 0, 1, 2"),
    ]
    (folded,) = [b for b in blocks if isinstance(b, Folded)]
    assert len(folded.blocks[0].rows) == 3


def test_choices_and_figures():
    blocks = experiments.section(made.experiment(), "").blocks
    choices = blocks[-1]
    assert isinstance(choices, Table) and texts(choices) == [["which vector", "the user head's"]]
    assert len(experiments.drawn(made.experiment(), "")) == 1
    assert experiments.drawn(made.experiment(figure=""), "") == []


def test_nothing_was_run():
    cells = [made.cell("r", "c", None, published=0.4)]
    one = made.experiment("figure1", figure="scatter", rows=["r"], columns=["c", "d"], cells=cells)
    section = experiments.section({**one, "differences": []}, "")
    assert [type(block).__name__ for block in section.blocks] == ["Text", "Table", "Table"]


def test_counts_have_no_decimals_and_lost_seeds_their_reason():
    cells = [made.cell("users", "number", 3947.0, published=10321, se=None, why="no seed 1")]
    one = made.experiment(rows=["users"], columns=["number"], cells=cells)
    table = experiments.table(one)
    assert texts(table) == [["users", "10,321", "3,947", "−6,374 (−61.8 %)"]]
    assert list(table.notes()) == ["no seed 1"]


def test_figures_leave_out_rows_without_any_value_and_say_so():
    cells = [made.cell("a", "c", 0.4), made.cell("b", "c", None)]
    one = made.experiment(rows=["a", "b"], columns=["c"], cells=cells)
    (figure,) = experiments.drawn(one, "")
    assert [key.name for key in figure.keys] == ["a"]
    assert figure.caption.endswith("; no value of b")
