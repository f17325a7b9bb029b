"""The paper's tables as data: complete, consistent with what is published, and legal configurations."""

from typing import get_args

import pytest

from llmsrec_jax import config, experiments, published, questions, rules
from llmsrec_jax.experiments import EXPERIMENTS
from llmsrec_jax.stages import unseen_items

WANTED = (
    "table3 table4 table5 table6 table7 table8 table9 table10 table11 table12 fig1a fig1 fig3 fig4 fig5 fig6 fig7 "
    "full_ranking beyond_accuracy order_suite teachers"
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
    assert all(choice in questions.CHOICES for choice in one.choices)


@pytest.mark.parametrize("name", questions.CHOICES)
def test_choices_name_their_settings_and_every_word_of_them(name):
    choice, base = questions.CHOICES[name], config.Config()
    declared = {setting: kind for setting, _, kind in config.flatten(base)}
    for setting, meanings in choice.settings.items():
        assert not meanings or set(meanings) == set(get_args(declared[setting]))
        for word, meaning in meanings.items():
            told = choice.answer(config.apply(base, {setting: word}))
            assert f"{setting}={word}: {meaning}" in told and told.endswith(choice.always)
    assert choice.always or choice.settings


def test_every_way_to_embed_unseen_items_is_explained_made_and_compared():
    ways = get_args(config.Unseen)
    assert tuple(questions.WAYS) == tuple(unseen_items.WAYS) == ways
    columns = EXPERIMENTS["table7"].columns
    assert tuple(column.changes["transfer.unseen"] for column in columns) == ways


def test_numbers_among_the_choices_are_told():
    cfg = config.apply(config.Config(), {"slices.item_share": 0.2, "slices.ties": "out"})
    told = questions.CHOICES["warm and cold"].answer(cfg)
    assert told.startswith("slices.item_share=0.2. slices.ties=out: nobody")


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_published_values_have_a_cell_each(name):
    one = EXPERIMENTS[name]
    rows = {row.name for row in one.rows}
    for dataset, printed in published.PUBLISHED[name].items():
        assert set(printed) <= rows, dataset
        assert all(len(values) <= len(one.columns) for values in printed.values()), dataset
        for row, values in printed.items():
            assert published.value(name, dataset, row, len(values)) is None
            assert published.value(name, "elsewhere", row, 0) is None


SAME = [  # what the paper prints twice: (table, column) of the rows that both have
    (("table3", 0), ("table6", 0)),
    (("table8", 0), ("table6", 0)),
    (("table8", 1), ("table6", 1)),
    (("table8", 2), ("table3", 1)),
    (("table11", 0), ("table6", 0)),
    (("table11", 1), ("table6", 2)),
    (("table12", 0), ("table6", 0)),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_is_printed_twice_is_the_same(one, other):
    compared = 0
    for dataset, rows in published.PUBLISHED[one[0]].items():
        for row in rows:
            twice = [published.value(table, dataset, row, column) for table, column in (one, other)]
            if None not in twice:
                assert twice[0] == twice[1], (dataset, row)
                compared += 1
    assert compared >= 3


def test_figures_show_what_tables_print_of_them():
    at = lambda *place: published.value(*place)
    assert at("fig1", "Electronics", "LLM-SRec", 1) == 0.2845
    assert at("fig5", "CDs_and_Vinyl", "LLM-SRec, llama-3.2-3b", 0) == 0.3809
    assert at("fig7", "Electronics", "LLM-SRec", 1) == 0.2838
    suite = [at("order_suite", "Movies_and_TV", "SASRec", column) for column in range(4)]
    assert suite == [0.3459, None, None, 0.6535]


def test_as_many_permutations_as_are_asked_for():
    """5 unless the configuration says how many; none of a model whose training is what was changed."""
    one, row = EXPERIMENTS["order_suite"], experiments.SASREC
    number = lambda asked, column: (
        experiments.cell(
            config.apply(config.Config(), {"order.permutations": asked}), one, row, column
        ).order.permutations
    )
    for asked, wanted in ((0, 5), (2, 2)):
        found = {column.name: number(asked, column) for column in one.columns}
        assert found.pop("shuffled training") == 0 and set(found.values()) == {wanted}


def test_a_typo_is_named():
    with pytest.raises(ValueError, match=r"no experiment 'tabel8' \(did you mean table8\?\)"):
        experiments.find("tabel8")


def test_rows_by_name():
    of = lambda name, text: experiments.rows(EXPERIMENTS[name], text)
    assert of("table3", "") == {"SASRec", "TALLRec", "LLaRA", "CoLLM", "A-LLMRec", "LLM-SRec"}
    assert of("table3", "sasrec,llm-SREC, SASRec") == {"SASRec", "LLM-SRec"}
    assert of("fig7", "LLM-SRec") == {"LLM-SRec"}
    commas = "llm-srec,llm-srec,llama-3.2-1b, LLM-SRec, llama-3.1-8b"
    assert of("fig5", commas) == {"LLM-SRec", "LLM-SRec, llama-3.2-1b", "LLM-SRec, llama-3.1-8b"}
    wrong = (
        r"no row 'sasrek' \(did you mean sasrec\?\); this experiment has: SASRec; TALLRec; .*SRec"
    )
    with pytest.raises(ValueError, match=wrong):
        of("table3", "LLM-SRec,SASRek")
