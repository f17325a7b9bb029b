"""The paper's tables as data: complete, consistent with what is published, and legal configurations."""

import pytest

from llmsrec_jax import config, experiments, published, rules
from llmsrec_jax.experiments import EXPERIMENTS

WANTED = (
    "table3 table5 table6 table7 table8 table9 table10 table11 table12 fig1 fig3 fig4 fig5 fig6 fig7 "
    "full_ranking beyond_accuracy order_suite"
)


def test_every_experiment_is_there():
    assert set(EXPERIMENTS) == set(WANTED.split())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_cells_are_legal_configurations(name):
    one, base = EXPERIMENTS[name], config.Config()
    for row in one.rows:
        for column in one.columns:
            if not row.missing:
                rules.validate(experiments.cell(base, one, row, column))
    columns, rows = [c.name for c in one.columns], [r.name for r in one.rows]
    assert len(set(columns)) == len(columns) and len(set(rows)) == len(rows)
    assert not one.against or one.against in rows
    assert all(column in columns for pair in one.compare for column in pair)
    assert all(choice in experiments.CHOICES for choice in one.choices)


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_published_values_have_a_cell_each(name):
    one = EXPERIMENTS[name]
    rows = {row.name for row in one.rows}
    for dataset, printed in published.PUBLISHED[name].items():
        assert set(printed) <= rows, dataset
        assert all(len(values) <= len(one.columns) for values in printed.values()), dataset
    first = next(iter(published.PUBLISHED[name]))
    row = next(iter(published.PUBLISHED[name][first]))
    assert published.value(name, first, row, 0) == published.PUBLISHED[name][first][row][0]
    assert published.value(name, first, row, 99) is None
    assert published.value(name, "elsewhere", row, 0) is None


def test_a_typo_is_named():
    with pytest.raises(ValueError, match=r"no experiment 'tabel8' \(did you mean table8\?\)"):
        experiments.find("tabel8")
