"""Trunks: what is shared is what token ids say, and every prompt is in its row as it is alone."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from llmsrec_jax.data.samples import Samples
from llmsrec_jax.prompts.prompts import PromptBuilder, Prompts
from llmsrec_jax.prompts.trunks import Trunks, joined
from tests.factories import dataset
from tests.prompts import cases

Tokens = list[tuple[int, ...]]  # (id, kind, slot item, position)
HISTORY_LEN = 5
CASES = {
    "plain": {},
    "paper": {"wording": "paper"},
    "unsplittable": {},
    "absolute": {"numbering": "absolute"},
    "history cut": {"max_tokens": 150},
    "titles cut": {"max_tokens": 150, "truncation": "title"},
    "told": {"user_repr": True},
}


def samples(times: int = 1, users: int = 12) -> Samples:
    """All targets of users with 2 to 9 training items, a day apart or (times=0) at once."""
    rng = np.random.default_rng(0)
    n = len(cases.TITLES)
    made = dataset([list(rng.integers(1, n + 1, 4 + u % 8)) for u in range(users)], items=n)
    made = replace(made, train=replace(made.train, times=made.train.times * times))
    return Samples.of(made, made.eligible("train"), "all")


def builder(case: str) -> PromptBuilder:
    tokenizer = cases.made("unsplittable" if case == "unsplittable" else "byte_level")
    return cases.builder(tokenizer, history_len=HISTORY_LEN, **CASES[case])


def prompts_of(builder: PromptBuilder, samples: Samples, rows: np.ndarray) -> Prompts:
    return builder.users(samples.take(rows), cases.vectors(len(rows)))


def tokens(prompts: Prompts, row: int) -> Tokens:
    span = slice(prompts.offsets[row], prompts.offsets[row + 1])
    columns = prompts.ids[span], prompts.kind[span], prompts.slot_item[span]
    at = np.arange(len(columns[0]))
    if prompts.branches is not None:
        at = prompts.branches.position[span]
    return list(zip(*(x.tolist() for x in (*columns, at)), strict=True))


def unrolled(prompts: Prompts) -> list[Tokens]:
    """What the Out slot of every prompt in rows sees, in order."""
    assert prompts.branches is not None
    found = []
    for row in range(len(prompts)):
        every = tokens(prompts, row)
        hidden = prompts.branches.hidden[prompts.offsets[row] :].tolist()
        for out, token in enumerate(every):
            if token[1] == builder_out(prompts):
                first, last = hidden[out]
                found.append(every[: min(first, out)] + every[last : out + 1])
    return found


def builder_out(prompts: Prompts) -> int:
    return int(prompts.kind.max())  # Out slots are the last of the kinds


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("times", [1, 0])
def test_what_prompts_have_in_common(case, times):
    """Token by token; never an Out slot, and nothing behind what is told of the user."""
    built, some = builder(case), samples(times)
    every = prompts_of(built, some, np.arange(len(some)))
    first = np.arange(len(some) - 1)
    wanted = []
    for row in first:
        pairs = zip(tokens(every, row), tokens(every, row + 1), strict=False)
        same = itertools.takewhile(lambda two: two[0] == two[1] and two[0][1] < 2, pairs)
        wanted.append(len(list(same)))
    np.testing.assert_array_equal(built.in_common(some, first), wanted)
    np.testing.assert_array_equal(built.in_common(some, first[::3]), wanted[::3])
    assert len(built.in_common(some, first[:0])) == 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("times", [1, 0])
def test_every_prompt_is_as_it_is_alone(case, times):
    """Whatever is cut, and wherever a row ends."""
    built, some = builder(case), samples(times)
    trunks = Trunks.of(built, some)
    assert (trunks.sizes.max() > 1) == (case != "told")
    rng = np.random.default_rng(1)
    for first in range(4):
        order = trunks.ordered(rng.permutation(len(trunks.sizes)))[first:]
        assert len(set(order)) == len(order) == len(some) - first
        prompts = prompts_of(built, some, order)
        shared = np.where(trunks.branches(order), trunks.shared[order], 0)
        rows = joined(prompts, shared)
        assert unrolled(rows) == [tokens(prompts, row) for row in range(len(order))]
        assert unrolled(rows.take(np.arange(len(rows)))) == unrolled(rows)
        assert len(rows) == len(prompts)
        prefix, live = trunks.rows(order)
        np.testing.assert_array_equal(np.sort(rows.live_lengths + rows.prefix_len), prefix + live)
        assert sorted(rows.prefix_len) == sorted(prefix)
        assert live.max() <= trunks.widest


def test_windows_that_begin_at_one_item_share_a_row():
    """All but the closing words: up to the fifth item of five; those that slide are alone."""
    some = samples()
    for case in ("plain", "unsplittable", "absolute", "paper"):
        trunks, slots = Trunks.of(builder(case), some), some.lengths
        goes_on = np.append(some.users[1:] == some.users[:-1], False) & (slots < HISTORY_LEN)
        np.testing.assert_array_equal(trunks.shared > 0, goes_on)
        branch = (trunks.prefix + trunks.live - trunks.shared)[goes_on]
        assert branch.max() < trunks.live.min()  # that of one item: its slot and the closing words


def test_titles_that_are_cut_are_not_shared():
    """Where a longer history leaves its titles less room."""
    some = samples()
    plain, cut = Trunks.of(builder("plain"), some), Trunks.of(builder("titles cut"), some)
    fewer = (plain.shared > 0) & (cut.shared == 0)
    assert fewer.any() and (cut.shared > 0).any()
    assert (np.append((plain.prefix + plain.live)[1:], 0)[fewer] > 150).all()


def test_of_single_targets_nothing_is_compared(monkeypatch):
    built = builder("plain")
    monkeypatch.setattr(Prompts, "in_common", None)
    some = samples()
    last = Samples.of(some.dataset, some.dataset.eligible("train"), "last")
    assert Trunks.of(built, last).sizes.tolist() == [1] * len(last)


def made(runs: list[int], seed: int = 0) -> Trunks:
    """Runs of so many samples, each sharing all but 3 live tokens with the next."""
    live = np.concatenate([10 * np.arange(1, n + 1) for n in runs])
    ends = np.concatenate([np.arange(n) == n - 1 for n in runs])
    prefix = np.repeat(np.random.default_rng(seed).integers(4, 9, len(runs)), runs)
    return Trunks(prefix, live, np.where(ends, 0, prefix + live - 3))


def test_runs_are_ordered_the_latest_first():
    trunks = made([2, 1, 3])
    assert trunks.sizes.tolist() == [2, 1, 3] and len(trunks) == 6
    assert trunks.ordered(np.array([2, 0, 1])).tolist() == [5, 4, 3, 1, 0, 2]
    every = np.array([[5, 4, 3, 1, 0, 2], [4, 3, 1, 5, 2, 0]])
    assert trunks.branches(every).tolist() == [
        [False, True, True, False, True, False],
        [False, True, False, False, False, False],
    ]
    prefix, live = trunks.rows(every)
    assert live.tolist() == [[0, 0, 0, 10, 23, 36], [0, 10, 10, 20, 23, 30]]
    assert ((prefix > 0) == (live > 0)).all()
    assert trunks.widest == 36


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_dealing_keeps_rows_together(parts):
    """A sample each: as cards are dealt, forth and back; rows are cut where a part is full only."""
    single = Trunks.apart((np.zeros(20, int), np.arange(20)[::-1] + 1))
    dealt = single.deal(np.arange(20), parts)
    turns = np.arange(20)[::-1].reshape(-1, parts)
    turns[1::2] = turns[1::2, ::-1].copy()
    np.testing.assert_array_equal(dealt, turns.T)
    trunks = made([1, 4, 3, 2, 5, 1, 4])
    rng = np.random.default_rng(0)
    for _ in range(20):
        order = trunks.ordered(rng.permutation(7))
        dealt = trunks.deal(order, parts)
        assert sorted(dealt.ravel()) == list(range(20)) and dealt.shape == (parts, 20 // parts)
        assert 7 <= np.count_nonzero(~trunks.branches(dealt)) < 7 + parts
        for part in dealt:
            begins = np.flatnonzero(~trunks.branches(part))
            lengths = [sum(x[-1] for x in trunks.rows(one)) for one in np.split(part, begins[1:])]
            assert lengths == sorted(lengths)


def test_passes_are_drawn_from_runs():
    trunks = made([1, 4, 3])
    drawn = trunks.drawn(6, 50, np.random.default_rng(0))
    assert drawn.shape == (50, 6) and set(drawn.ravel()) == set(range(8))
    begins = ~trunks.branches(drawn)
    latest = set(drawn[:, 1:][begins[:, 1:]])
    assert latest == {0, 4, 7}  # but for the first of a pass, where a batch may have cut a run
    assert set(drawn[:, 0]) > latest
    single = Trunks.apart((np.zeros(9, int), np.ones(9, int)))
    wanted = np.random.default_rng(3).integers(9, size=(4, 5))
    np.testing.assert_array_equal(single.drawn(5, 4, np.random.default_rng(3)), wanted)
