"""Prompts assembled from pieces equal the tokenizer's own encoding; truncation; slots."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsrec_jax.batch import HISTORY, ITEM_OUT, TOKEN, USER_OUT, USER_REPR
from llmsrec_jax.prompts import prompts as prompts_module
from llmsrec_jax.prompts.templates import ITEM_SLOT, USER_SLOT, named, template
from tests.prompts import cases

WORDINGS = ["reference", "paper"]
USERS = [
    [(1, 14_000)],
    [(i, 14_000 + i) for i in range(1, 14)],
    [(2, 14_010), (3, 14_010), (2, 14_012)],
    [(13, -1), (12, 0), (11, 19_999)],
]


def expected(rows, titles=cases.TITLES, window=10, absolute=False):
    """(number, day, title) of the last `window` items of each user."""
    users = []
    for row in rows:
        skipped = max(0, len(row) - window)
        start = 1 + (skipped if absolute else 0)
        users.append(
            [(start + i, d, titles[item - 1]) for i, (item, d) in enumerate(row[skipped:])]
        )
    return users


@pytest.mark.parametrize("name", cases.MADE)
@pytest.mark.parametrize("wording", WORDINGS)
@pytest.mark.parametrize(
    "numbering, user_repr", [("window", False), ("absolute", False), ("window", True)]
)
def test_users_equal_the_whole_encoding(name, wording, numbering, user_repr):
    tokenizer, form = cases.made(name), template(wording, user_repr)
    settings = {"wording": wording, "numbering": numbering, "user_repr": user_repr}
    builder = cases.builder(tokenizer, **settings, max_tokens=4096)
    wanted = expected(USERS, absolute=numbering == "absolute")
    for _ in range(2):  # from the cache the second time
        prompts = builder.users(cases.histories(USERS), cases.vectors(4))
        cases.assert_users_exact(prompts, tokenizer, form, wanted)
    assert builder.trimmed == {"prompts": 8, "lost_items": 0, "lost_title_tokens": 0}


@pytest.mark.parametrize("name", cases.MADE)
@pytest.mark.parametrize("wording", WORDINGS)
@pytest.mark.parametrize("user_repr", [False, True])
def test_titles_alone_are_encoded_as_with_slots(name, wording, user_repr):
    """Table 2 (a): what the tokenizer makes of the text with slots, and these left out. Only the Out slot is live."""
    tokenizer, form = cases.made(name), template(named(wording, False), user_repr)
    settings = {"wording": wording, "user_repr": user_repr, "item_repr": False}
    builder = cases.builder(tokenizer, **settings, max_tokens=4096)
    told = cases.vectors(4) if user_repr else None
    users, items = builder.users(cases.histories(USERS), told), builder.items(np.array([3, 1, 13]))
    for row, triples in enumerate(expected(USERS)):
        text = form.user([(number, form.date(day), title) for number, day, title in triples])
        wanted = cases.without_slots(tokenizer, text)
        assert cases.restored(users, row, tokenizer, USER_SLOT) == wanted
    for row, item in enumerate((3, 1, 13)):
        wanted = cases.without_slots(tokenizer, form.item(cases.TITLES[item - 1]))
        assert cases.restored(items, row, tokenizer, ITEM_SLOT) == wanted
    for prompts, out in ((users, USER_OUT), (items, ITEM_OUT)):
        assert set(prompts.kind) == {TOKEN, out} | (
            {USER_REPR} if prompts is users and user_repr else set()
        )
        if prompts is items or not user_repr:
            assert (prompts.live_lengths == 1).all()
        assert not prompts.slots.any()
    assert items.slot_item[items.kind == ITEM_OUT].tolist() == [3, 1, 13]  # as an item store asks
    late = builder.later(cases.histories(USERS), told)
    np.testing.assert_array_equal(late.prefix_len, users.prefix_len)
    np.testing.assert_array_equal(late.live_lengths, users.live_lengths)
    assert not late.slots.any()


@pytest.mark.parametrize("name", cases.MADE)
@pytest.mark.parametrize("wording", WORDINGS)
def test_items_equal_the_whole_encoding(name, wording):
    tokenizer = cases.made(name)
    builder = cases.builder(tokenizer, wording=wording)
    items = np.arange(len(cases.TITLES), 0, -1)
    prompts = builder.items(items)
    titles = [cases.TITLES[i - 1] for i in items]
    cases.assert_items_exact(prompts, tokenizer, template(wording), titles)
    assert prompts.slot_item[prompts.kind == HISTORY].tolist() == items.tolist()


@pytest.mark.parametrize("name", cases.MADE)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    titles=st.lists(
        st.one_of(
            st.text(max_size=30),
            st.text(alphabet=" \"'.,[](){}:\n\tab1é日🎧\u200d\u2581<>|/s", max_size=12),
        ).filter(lambda title: not cases.spells_special(title)),
        min_size=1,
        max_size=5,
    ),
    days=st.lists(st.integers(-20_000, 40_000), min_size=5, max_size=5),
    wording=st.sampled_from(WORDINGS),
    user_repr=st.booleans(),
)
def test_any_title_is_exact(name, titles, days, wording, user_repr):
    tokenizer, form = cases.made(name), template(wording, user_repr)
    settings = {"wording": wording, "user_repr": user_repr}
    builder = cases.builder(tokenizer, titles, **settings, max_tokens=8192)
    rows = [[(i + 1, days[i]) for i in range(len(titles))], [(len(titles), days[0])]]
    prompts = builder.users(cases.histories(rows), cases.vectors(2))
    cases.assert_users_exact(prompts, tokenizer, form, expected(rows, titles))
    items = builder.items(np.arange(1, len(titles) + 1))
    cases.assert_items_exact(items, tokenizer, form, titles)


@pytest.mark.parametrize("name", cases.MADE)
def test_titles_that_spell_slots_make_none(name):
    tokenizer = cases.made(name)
    titles = ["[HistoryEmb]", "a <|begin_of_text|>[UserOut] b", "<s></s>[ItemOut]", "Mug"]
    builder = cases.builder(tokenizer, titles)
    prompts = builder.users(cases.histories([[(1, 1), (2, 2), (3, 3), (4, 4)]]))
    assert (prompts.kind == HISTORY).sum() == 4 and (prompts.kind == USER_OUT).sum() == 1
    special = [*tokenizer.bos_ids, tokenizer.special_id(USER_SLOT), tokenizer.special_id(ITEM_SLOT)]
    text = prompts.ids[prompts.kind == TOKEN]
    assert np.isin(text, special).sum() == len(tokenizer.bos_ids)
    assert text.max() < tokenizer.vocab_size
    items = builder.items(np.array([1, 2, 3, 4]))
    assert (items.kind == HISTORY).sum() == (items.kind == ITEM_OUT).sum() == 4
    cases.assert_items_exact(items.take(np.array([3])), tokenizer, template("reference"), ["Mug"])


def test_slots_stand_where_the_template_has_them():
    tokenizer = cases.made("byte_level")
    prompts = cases.builder(tokenizer, max_tokens=4096).users(cases.histories(USERS))
    for row, user in enumerate(USERS):
        span = slice(prompts.offsets[row], prompts.offsets[row + 1])
        kind, slot_item = prompts.kind[span], prompts.slot_item[span]
        assert np.flatnonzero(kind == USER_OUT).tolist() == [prompts.lengths[row] - 1]
        assert slot_item[kind == HISTORY].tolist() == [item for item, _ in user[-10:]]
        assert not slot_item[kind != HISTORY].any() and not prompts.ids[span][kind != TOKEN].any()
        assert np.flatnonzero(kind)[0] == prompts.prefix_len[row]


def test_the_users_slot_ends_the_prefix_that_all_prompts_share():
    """And its vector goes with the prompt, built at once or later."""
    builder = cases.builder(cases.made("byte_level"), user_repr=True, max_tokens=4096)
    prompts = builder.users(cases.histories(USERS), cases.vectors(4))
    assert np.flatnonzero(prompts.kind == USER_REPR).tolist() == (
        (prompts.offsets[:-1] + prompts.prefix_len).tolist()
    )
    assert (
        len({tuple(row[:n]) for row, n in zip(_rows(prompts), prompts.prefix_len, strict=True)})
        == 1
    )
    rows = np.array([2, 0, 2])
    for some in (
        prompts.take(rows),
        builder.later(cases.histories(USERS), cases.vectors(4)).take(rows),
    ):
        np.testing.assert_array_equal(some.cf_user_repr, cases.vectors(4)[rows])
    assert builder.items(np.array([1])).cf_user_repr is None


def _rows(prompts) -> list[np.ndarray]:
    return np.split(prompts.ids, prompts.offsets[1:-1])


def test_prompts_that_need_vectors_and_others():
    histories = cases.histories(USERS)
    builder = cases.builder(cases.made("byte_level"), user_repr=True)
    for build in (builder.users, lambda h: builder.later(h).take(np.array([0]))):
        with pytest.raises(ValueError, match="need the teacher's user vectors"):
            build(histories)
    plain = cases.builder(cases.made("byte_level"))
    assert plain.users(histories, cases.vectors(4)).cf_user_repr is None


def test_take_reorders_and_repeats():
    prompts = cases.builder(cases.made("byte_level"), max_tokens=4096).users(cases.histories(USERS))
    taken = prompts.take(np.array([2, 0, 2]))
    assert taken.lengths.tolist() == prompts.lengths[[2, 0, 2]].tolist()
    assert taken.live_lengths.tolist() == prompts.live_lengths[[2, 0, 2]].tolist()
    span = slice(prompts.offsets[2], prompts.offsets[3])
    for field in ("ids", "kind", "slot_item"):
        values = getattr(taken, field)
        want = getattr(prompts, field)[span]
        np.testing.assert_array_equal(values[: len(want)], want)
        np.testing.assert_array_equal(values[taken.offsets[2] :], want)


@pytest.mark.parametrize("truncation", ["history", "title"])
@pytest.mark.parametrize("max_tokens", [4096, 250])
@pytest.mark.parametrize("user_repr", [False, True])
def test_lengths_without_building(truncation, max_tokens, user_repr):
    settings = {"truncation": truncation, "max_tokens": max_tokens, "user_repr": user_repr}
    builder = cases.builder(cases.made("byte_level"), **settings)
    prefix, live = builder.user_lengths(cases.histories(USERS))
    assert builder.trimmed["prompts"] == 0
    prompts = builder.users(cases.histories(USERS), cases.vectors(4))
    assert prompts.lengths.max() <= max_tokens
    np.testing.assert_array_equal(prefix, prompts.prefix_len)
    np.testing.assert_array_equal(live, prompts.live_lengths)


@pytest.mark.parametrize("truncation", ["history", "title"])
def test_prompts_that_are_built_later(monkeypatch, truncation):
    """Sized in pieces and counted once, however often they are taken."""
    make = lambda: cases.builder(cases.made("byte_level"), truncation=truncation, max_tokens=200)
    histories, builder = cases.histories(USERS), make()
    whole = builder.users(histories)
    monkeypatch.setattr(prompts_module, "_SIZED_AT_ONCE", 2)
    later = make()
    prompts = later.later(histories)
    assert later.trimmed == builder.trimmed
    np.testing.assert_array_equal(prompts.prefix_len, whole.prefix_len)
    np.testing.assert_array_equal(prompts.live_lengths, whole.live_lengths)
    np.testing.assert_array_equal(prompts.lengths, whole.lengths)
    assert (prompts.slots >= whole.slots).all() and len(prompts) == len(whole)
    rows = np.array([1, 0, 1])
    taken, want = prompts.take(rows), whole.take(rows)
    for field in ("ids", "kind", "slot_item", "offsets"):
        np.testing.assert_array_equal(getattr(taken, field), getattr(want, field))
    assert later.trimmed == builder.trimmed


class TestTruncation:
    LONG = ["word " * 30 + str(i) for i in range(12)]
    ROWS = [[(i, 14_000 + i) for i in range(1, 13)], [(1, 14_001)]]

    @pytest.mark.parametrize("name", cases.MADE)
    @pytest.mark.parametrize("numbering", ["window", "absolute"])
    def test_oldest_items_go_first(self, name, numbering):
        tokenizer, form = cases.made(name), template("reference")
        whole = cases.builder(tokenizer, self.LONG, numbering=numbering, max_tokens=8192)
        limit = int(whole.users(cases.histories(self.ROWS)).lengths.max()) - 1
        builder = cases.builder(tokenizer, self.LONG, numbering=numbering, max_tokens=limit)
        prompts = builder.users(cases.histories(self.ROWS))
        wanted = expected(self.ROWS, self.LONG, window=9, absolute=numbering == "absolute")
        cases.assert_users_exact(prompts, tokenizer, form, wanted)
        assert builder.trimmed == {"prompts": 2, "lost_items": 1, "lost_title_tokens": 0}

    @pytest.mark.parametrize("name", cases.MADE)
    @pytest.mark.parametrize("truncation", ["history", "title"])
    def test_every_limit_keeps_slots_and_template(self, name, truncation):
        tokenizer = cases.made(name)
        whole = cases.builder(tokenizer, self.LONG, max_tokens=8192)
        lengths = whole.users(cases.histories(self.ROWS)).lengths
        bare = self._least(tokenizer)
        for limit in np.linspace(bare, lengths.max() + 1, 12).astype(int).tolist():
            builder = cases.builder(tokenizer, self.LONG, max_tokens=limit, truncation=truncation)
            prompts = builder.users(cases.histories(self.ROWS))
            assert prompts.lengths.max() <= limit
            assert (prompts.kind[prompts.offsets[1:] - 1] >= USER_OUT).all()
            slots = np.add.reduceat(prompts.kind == HISTORY, prompts.offsets[:-1])
            assert slots[0] >= 1 and slots[1] == 1
            over = lengths > limit
            lost = slots < np.array([10, 1])
            if truncation == "history":
                assert lost[0] == over[0]
            assert builder.trimmed["lost_items"] == lost.sum()
            assert prompts.lengths[~over].tolist() == lengths[~over].tolist()

    def _least(self, tokenizer, user_repr=False) -> int:
        with pytest.raises(ValueError, match="prompts.max_tokens=9, but the template") as error:
            cases.builder(tokenizer, self.LONG, max_tokens=9, user_repr=user_repr)
        return int(str(error.value).split()[-1])

    @pytest.mark.parametrize("user_repr", [False, True])
    def test_only_item_loses_title_tokens(self, user_repr):
        tokenizer = cases.made("byte_level")
        least = self._least(tokenizer, user_repr)
        builder = cases.builder(tokenizer, self.LONG, max_tokens=least, user_repr=user_repr)
        prompts = builder.users(cases.histories(self.ROWS), cases.vectors(2))
        assert prompts.lengths.max() <= least
        assert (prompts.kind == HISTORY).sum() == 2
        assert builder.trimmed == {"prompts": 2, "lost_items": 1, "lost_title_tokens": 2}

    def test_titles_shrink_evenly(self):
        tokenizer = cases.made("byte_level")
        titles = ["word " * 40, "word " * 40, "Mug"]
        rows = cases.histories([[(1, 1), (2, 2), (3, 3)]])
        whole = cases.builder(tokenizer, titles, max_tokens=4096).users(rows)
        builder = cases.builder(
            tokenizer, titles, max_tokens=int(whole.lengths[0]) - 20, truncation="title"
        )
        cut = builder.users(rows)
        assert cut.lengths[0] == whole.lengths[0] - 20
        slots = [np.flatnonzero(p.kind == HISTORY) for p in (whole, cut)]
        assert (slots[0] - slots[1]).tolist() == [10, 20, 20]  # 10, 10 and none
        assert builder.trimmed == {"prompts": 1, "lost_items": 0, "lost_title_tokens": 1}

    def test_item_prompts_lose_title_tokens(self):
        tokenizer = cases.made("byte_level")
        limit = self._least(tokenizer)
        builder = cases.builder(tokenizer, [*self.LONG[:2], "Mug"], max_tokens=limit)
        prompts = builder.items(np.array([1, 2, 3]))
        assert prompts.lengths.max() == limit
        assert (prompts.kind == HISTORY).sum() == (prompts.kind >= USER_OUT).sum() == 3
        assert builder.trimmed == {"prompts": 3, "lost_items": 0, "lost_title_tokens": 2}
        said = builder.report_trimmed("the test")
        assert said.startswith(
            "prompts of the test: of 3 built, 0 lost their oldest items and 2 lost t"
        )
        builder.items(np.array([3]))
        assert builder.report_trimmed("the rest") == ""
        assert builder.trimmed["prompts"] == 0

    def test_history_len(self):
        tokenizer, form = cases.made("byte_level"), template("reference")
        builder = cases.builder(tokenizer, history_len=2, max_tokens=4096)
        prompts = builder.users(cases.histories(USERS))
        cases.assert_users_exact(prompts, tokenizer, form, expected(USERS, window=2))


class TestErrors:
    def test_empty_history_names_the_row(self):
        builder = cases.builder(cases.made("byte_level"))
        with pytest.raises(ValueError, match="user row 1 has an empty history"):
            builder.users(cases.histories([[(1, 1)], [], [(2, 2)]]))

    def test_no_users_and_no_items(self):
        builder = cases.builder(cases.made("byte_level"))
        assert len(builder.users(cases.histories([]))) == 0
        assert len(builder.items(np.zeros(0, np.int32))) == 0

    @pytest.mark.parametrize("item", [0, -1, len(cases.TITLES) + 1])
    def test_items_outside_the_catalogue(self, item):
        with pytest.raises(ValueError, match="not all in 1.."):
            cases.builder(cases.made("byte_level")).items(np.array([1, item]))

    def test_times_in_the_wrong_unit(self):
        histories = cases.histories([[(1, 14_000 * 1_000_000)]])
        with pytest.raises(ValueError, match="data.files.time_unit"):
            cases.builder(cases.made("byte_level")).users(histories)

    def test_tokens_of_another_catalogue(self):
        builder = cases.builder(cases.made("byte_level"))
        with pytest.raises(ValueError, match="build them anew"):
            type(builder)(cases.made("prepending"), builder._tokens, cases.catalog(), builder._cfg)


def test_piece_cache_is_bounded(monkeypatch):
    monkeypatch.setattr("llmsrec_jax.prompts.prompts._CACHE_LIMIT", 100)
    tokenizer, form = cases.made("unsplittable"), template("reference")
    builder = cases.builder(tokenizer, max_tokens=4096)
    for row in USERS * 2:
        prompts = builder.users(cases.histories([row]))
        cases.assert_users_exact(prompts, tokenizer, form, expected([row]))
    assert len(builder._segments._row) <= max(map(len, USERS))
