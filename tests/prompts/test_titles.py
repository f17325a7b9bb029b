"""Prompts that ask for a title equal the tokenizer's own encoding; answers as branches; what is refused."""

import itertools

import numpy as np
import pytest

from llmsrec_jax import config
from llmsrec_jax.batch import HISTORY, USER_REPR
from llmsrec_jax.prompts.prompts import PromptBuilder
from llmsrec_jax.prompts.templates import HISTORY_SLOT, USER_REPR_SLOT, named, template
from llmsrec_jax.prompts.titles import Question, TitlePrompts
from llmsrec_jax.prompts.tokens import ItemTokens, Tokenizer
from tests.prompts import cases
from tests.prompts.test_prompts import USERS, expected

TITLES = [title or "untitled" for title in cases.TITLES]
CANDIDATES = np.array([[3, 1, 13, 9], [9, 8, 7, 6], [13, 12, 2, 5], [1, 2, 3, 4]])


def made(
    tokenizer: Tokenizer | None = None, titles: list[str] = TITLES, **settings
) -> TitlePrompts:
    cfg = config.Prompts(**{"max_tokens": 4096, "task": "title", **settings})
    tokenizer, catalog = tokenizer or cases.made("byte_level"), cases.catalog(titles)
    wording = named(cfg.wording, cfg.item_repr)
    tokens = ItemTokens.build(tokenizer, catalog, wording, progress=iter)
    return TitlePrompts(PromptBuilder(tokenizer, tokens, catalog, cfg), catalog, cfg, 4)


def texts(wording: str, item_repr: bool, user_repr: bool) -> list[str]:
    """The whole prompts of USERS, with slots between titles even where there are none."""
    form, found = template(named(wording, item_repr), user_repr), []
    for row, shown in zip(expected(USERS, TITLES), CANDIDATES, strict=True):
        text = form.lead + USER_REPR_SLOT if form.lead else ""
        for i, (number, day, title) in enumerate(row):
            text += form.opening(number, form.date(day), first=i == 0)
            text += form.titled(title) + HISTORY_SLOT
        text += form.close + form.choose
        listed = (form.titled(TITLES[item - 1]) + HISTORY_SLOT for item in shown)
        found.append(text + form.between.join(listed) + form.ask)
    return found


CHOOSE = (
    'Choose one "Title" to recommend for this user to buy next from the following item "Title" set:'
)
SERIES = "his user has made a series of purchases in the following order: "
LISTED = "[No.1 Time: 2008/05/01 Title:"
TABLE_1 = {  # as printed: (item_repr, user_repr) -> the prompt of the first user
    (
        False,
        False,
    ): f'T{SERIES}(History Item List: {LISTED} Plain "quoted" Lamp, 40W[HistoryEmb]]). {CHOOSE}'
    ' trailing space [HistoryEmb], Plain "quoted" Lamp, 40W[HistoryEmb], A[HistoryEmb], 1234567 digits[HistoryEmb].',
    (
        True,
        False,
    ): f'T{SERIES}(History Item List: {LISTED} Plain "quoted" Lamp, 40W, [HistoryEmb]]). {CHOOSE}'
    ' trailing space , [HistoryEmb], Plain "quoted" Lamp, 40W, [HistoryEmb], A, [HistoryEmb], 1234567 digits, [HistoryEmb].',
    (True, True): "This is user representation from recommendation models: [UserRep], and "
    f't{SERIES}(History Item List: {LISTED} Plain "quoted" Lamp, 40W, [HistoryEmb]]). {CHOOSE}'
    ' trailing space , [HistoryEmb], Plain "quoted" Lamp, 40W, [HistoryEmb], A, [HistoryEmb], 1234567 digits, [HistoryEmb].',
}


@pytest.mark.parametrize(("item_repr", "user_repr"), TABLE_1)
def test_table_1(item_repr, user_repr):
    """In (a) a slot is only where the tokenizer is cut."""
    assert texts("paper", item_repr, user_repr)[0] == TABLE_1[item_repr, user_repr]
    assert texts("reference", True, False)[0] == (
        f'T{SERIES}Item No.1, Time: 2008-05-01, "Plain "quoted" Lamp, 40W"[HistoryEmb]. {CHOOSE} "trailing space "[HistoryEmb], '
        '"Plain "quoted" Lamp, 40W"[HistoryEmb], "A"[HistoryEmb], "1234567 digits"[HistoryEmb].'
    )


@pytest.mark.parametrize("wording", ["reference", "paper"])
@pytest.mark.parametrize("item_repr, user_repr", [(True, False), (False, False), (True, True)])
def test_prompts_are_the_whole_encoding(wording, item_repr, user_repr):
    """Table 1 (a), (b), (c)."""
    settings = {"wording": wording, "item_repr": item_repr, "user_repr": user_repr}
    titles, tokenizer = made(**settings), cases.made("byte_level")
    told = cases.vectors(4) if user_repr else None
    answers = CANDIDATES[:, 1:2]
    rows = titles.build(cases.histories(USERS), Question(CANDIDATES, answers), told)
    assert rows.branches is None and not rows.prefix_len.any() and rows.asked is not None
    slots = [tokenizer.special_id(slot) for slot in (HISTORY_SLOT, USER_REPR_SLOT)]
    form = template(named(wording, item_repr), user_repr)
    for row, text in enumerate(texts(wording, item_repr, user_repr)):
        span = slice(rows.offsets[row], rows.offsets[row + 1])
        ids, kind = rows.ids[span].copy(), rows.kind[span]
        ids[kind == HISTORY], ids[kind == USER_REPR] = slots
        whole = (
            cases.without_slots(tokenizer, text) if not item_repr else tokenizer.encode_prompt(text)
        )
        assert ids[: len(whole)].tolist() == whole
        answer = form.answer(TITLES[answers[row, 0] - 1])
        (wanted,) = tokenizer.encode_batch([answer], after_slot=True)
        assert ids[len(whole) :].tolist() == wanted
        place, token, _ = rows.asked.take(np.array([row]))
        np.testing.assert_array_equal(place, len(whole) - 1 + np.arange(len(wanted) + 1))
        assert token.tolist() == [*wanted, tokenizer.end]
    items = rows.slot_item[rows.kind == HISTORY]
    shown = [
        [item for item, _ in user[-10:]] + list(c)
        for user, c in zip(USERS, CANDIDATES, strict=True)
    ]
    assert items.tolist() == (sum(shown, []) if item_repr else [])


def test_answers_are_branches():
    """All candidates behind one prompt: each has the tokens and positions of a row of its own, and sees no other one."""
    titles, histories = made(), cases.histories(USERS)
    rows = titles.build(histories, Question(CANDIDATES, CANDIDATES))
    question = Question(CANDIDATES, CANDIDATES)
    np.testing.assert_array_equal(titles.lengths(histories, question), rows.lengths)
    assert rows.branches is not None and rows.asked is not None
    for row in range(len(USERS)):
        start, (place, token, _) = rows.offsets[row], rows.asked.take(np.array([row]))
        seen = 0
        for column in range(4):
            alone = titles.build(
                histories, Question(CANDIDATES, CANDIDATES[:, column : column + 1])
            )
            assert alone.asked is not None
            own_place, own_token, _ = alone.asked.take(np.array([row]))
            here = slice(seen, seen + len(own_token))
            np.testing.assert_array_equal(token[here], own_token)
            for at, own in zip(
                place[here], own_place, strict=True
            ):  # the same token, with the same before it
                first, end = rows.branches.hidden[start + at]
                before = [k for k in range(at + 1) if not first <= k < end]
                assert rows.branches.position[start + at] == own == len(before) - 1
                got = rows.ids[start + np.array(before)]
                np.testing.assert_array_equal(got, alone.ids[alone.offsets[row] :][: len(before)])
            seen = here.stop
        assert seen == len(token)


def test_rows_are_built_when_they_are_taken():
    titles, histories = made(), cases.histories(USERS)
    question = Question(CANDIDATES, CANDIDATES)
    late, rows = titles.later(histories, question), titles.build(histories, question)
    np.testing.assert_array_equal(late.lengths, rows.lengths)
    np.testing.assert_array_equal(late.slots, rows.slots)
    some, wanted = late.take(np.array([2, 0])), rows.take(np.array([2, 0]))
    np.testing.assert_array_equal(some.ids, wanted.ids)
    assert some.asked is not None and wanted.asked is not None
    np.testing.assert_array_equal(some.asked.token, wanted.asked.token)
    ids, length = titles.tokens(CANDIDATES)
    assert ids.shape[:2] == CANDIDATES.shape and (length <= titles.most).all()
    flat = [
        row[:n].tolist()
        for rows, ns in zip(ids, length, strict=True)
        for row, n in zip(rows, ns, strict=True)
    ]
    assert sum(flat, []) == rows.asked.token.tolist()


@pytest.mark.parametrize("wording", ["reference", "paper"])
@pytest.mark.parametrize("max_tokens", [300, 2048])
@pytest.mark.parametrize(
    "titles", [TITLES, [f"title {i:02d}" for i in range(13)]], ids=["", "alike"]
)
def test_no_row_is_longer_than_the_longest(wording, max_tokens, titles):
    """Whatever is listed; and one that is nearly so long can be asked for."""
    builder = made(titles=titles, max_tokens=max_tokens, wording=wording)
    histories = cases.histories(USERS)
    lists = np.array([*itertools.permutations(range(1, 9), 4)])
    rows = np.repeat(np.arange(len(USERS)), len(lists))
    candidates = np.tile(lists, (len(USERS), 1))
    found = [
        builder.lengths(histories.take(rows), Question(candidates, candidates[:, [column]])).max()
        for column in range(4)
    ]
    longest = builder.longest(histories, 4)
    assert 0.7 * longest < max(found) <= longest <= max_tokens


def test_long_titles_are_cut_alike_in_the_list_and_the_answer():
    titles = made(title_tokens=3)
    rows = titles.build(cases.histories(USERS[:1]), Question(CANDIDATES[:1], CANDIDATES[:1, :1]))
    assert rows.asked is not None and titles.most == 4
    answer = rows.ids[-3:].tolist()
    assert rows.asked.token.tolist() == [*answer, cases.made("byte_level").end]
    listed = rows.ids.tolist()
    assert any(listed[i : i + 3] == answer for i in range(len(listed) - 3))


def test_histories_give_way():
    """What candidates need is not there for the history: its oldest items are left out."""
    roomy, tight = made(), made(max_tokens=300, title_tokens=24)
    question = Question(CANDIDATES[1:2], CANDIDATES[1:2, :1])
    history = cases.histories(USERS[1:2])
    rows = tight.build(history, question)
    assert rows.lengths[0] <= 300 < roomy.build(history, question).lengths[0]
    assert tight._builder.trimmed["lost_items"] == 1
    kept = rows.slot_item[rows.kind == HISTORY].tolist()
    assert kept[-4:] == CANDIDATES[1].tolist() and kept[-5] == 13 and len(kept) < 14


def test_refusals():
    with pytest.raises(
        ValueError, match="max_tokens=200 has no room .* 4 candidates .*title_tokens"
    ):
        made(max_tokens=200)
    with pytest.raises(ValueError, match="no token that ends a text"):
        made(cases.made("unsplittable"))
    with pytest.raises(ValueError, match="1 different titles.*title_tokens=1 shows.* lists 4"):
        made(titles=["lamp", "desk", "pen"], title_tokens=1)
    assert made().alike == 0
    equal = made(titles=[*TITLES, "A", "A"])
    assert equal.alike == 3 and len({*equal.same[13:].tolist()}) == 1
    assert len({*equal.same.tolist()}) == len(TITLES) + 1


def test_a_title_that_begins_another_one_ends():
    """Both are asked for with the token that ends them: neither holds the other's."""
    titles = made(titles=["lamp", "lamp blue", "pen", "desk"])
    ids, length = titles.tokens(np.array([[1, 2]]))
    (short, long), (few, more) = ids[0], length[0]
    assert few < more and short[few - 1] == cases.made("byte_level").end != long[few - 1]
