"""Golden strings of both wordings."""

import pytest

from llmsrec_jax.prompts.templates import SPECIAL, named, template

ITEMS = [(1, "2014-08-10", 'Lamp "Sun", 40W'), (2, "2014-09-01", "Mug")]


def test_authors_user_prompt():
    assert template("reference").user(ITEMS) == (
        "This user has made a series of purchases in the following order: "
        'Item No.1, Time: 2014-08-10, "Lamp "Sun", 40W"[HistoryEmb],'
        'Item No.2, Time: 2014-09-01, "Mug"[HistoryEmb]'
        ". Based on this sequence of purchases, generate user representation token:[UserOut]"
    )


def test_user_prompt_with_the_teachers_representation():
    """Table 2 (c), E2."""
    assert template("reference", user_repr=True).user(ITEMS) == (
        "This is user representation from recommendation models: [UserRep], "
        "and this user has made a series of purchases in the following order: "
        'Item No.1, Time: 2014-08-10, "Lamp "Sun", 40W"[HistoryEmb],'
        'Item No.2, Time: 2014-09-01, "Mug"[HistoryEmb]'
        ". Based on this sequence of purchases and user representation, "
        "generate user representation token:[UserOut]"
    )


def test_printed_user_prompt_with_the_teachers_representation():
    assert template("paper", user_repr=True).user([(1, "2014/08/10", "Mug")]) == (
        "This is user representation from recommendation models: [UserRep], "
        "and this user has made a series of purchases in the following order: "
        "(History Item List: [No.1 Time: 2014/08/10 Title: Mug, [HistoryEmb]]). "
        "Based on this sequence of purchases and user representation, "
        "generate user representation token: [UserOut]"
    )


@pytest.mark.parametrize("wording", ["reference", "paper"])
def test_item_prompts_tell_nothing_of_users(wording):
    assert template(wording, user_repr=True).item("Mug") == template(wording).item("Mug")


def test_titles_alone():
    """Table 2 (a); the slots are where the tokenizer is cut."""
    form, printed = (template(named(wording, False)) for wording in ("reference", "paper"))
    assert form.user(ITEMS) == template("reference").user(ITEMS)
    assert form.item("Mug") == (
        'The item title is as follows: "Mug"[HistoryEmb]'
        ", then generate item representation token:[ItemOut]"
    )
    assert printed.item("Mug") == (
        'The item title is as follows: "Title": Mug[HistoryEmb]'
        ", then generate item representation token: [ItemOut]"
    )
    assert printed.user([(1, "2014/08/10", "Mug")]) == (
        "This user has made a series of purchases in the following order: "
        "(History Item List: [No.1 Time: 2014/08/10 Title: Mug[HistoryEmb]]). "
        "Based on this sequence of purchases, generate user representation token: [UserOut]"
    )
    assert named("paper", True) == "paper"


def test_authors_item_prompt():
    assert template("reference").item("Mug") == (
        'The item title and item embedding are as follows: "Mug"[HistoryEmb]'
        ", then generate item representation token:[ItemOut]"
    )


def test_printed_user_prompt():
    items = [(n, date.replace("-", "/"), title) for n, date, title in ITEMS]
    assert template("paper").user(items) == (
        "This user has made a series of purchases in the following order: (History Item List: "
        '[No.1 Time: 2014/08/10 Title: Lamp "Sun", 40W, [HistoryEmb]], '
        "[No.2 Time: 2014/09/01 Title: Mug, [HistoryEmb]]"
        "). Based on this sequence of purchases, generate user representation token: [UserOut]"
    )


def test_printed_item_prompt():
    assert template("paper").item("Mug") == (
        'The item title and item embedding are as follows: "Title": Mug, [HistoryEmb]'
        ", then generate item representation token: [ItemOut]"
    )


@pytest.mark.parametrize(
    ("wording", "date"), [("reference", "1999-12-31"), ("paper", "1999/12/31")]
)
def test_dates(wording, date):
    assert template(wording).date(10956) == date


def test_braces_in_a_title_are_text():
    assert template("reference").titled("{number}") == ' "{number}"'


def test_special_tokens_are_in_the_authors_order():
    assert SPECIAL[3:6] == ("[HistoryEmb]", "[UserOut]", "[ItemOut]")
    assert SPECIAL[:3] + SPECIAL[6:] == ("[PAD]", "</s>", "[UserRep]", "[CLS]")


def test_unknown_wording_is_refused():
    with pytest.raises(ValueError, match="use one of reference, paper"):
        template("papre")
