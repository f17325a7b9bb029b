"""Filling: every token in its place, on either kind of axis; what does not fit is refused."""

import numpy as np
import pytest

from llmsrec_jax.batch import HISTORY, USER_OUT
from llmsrec_jax.prompts.layout import Budget, Group, Shape, fill, prefixes
from llmsrec_jax.prompts.trunks import joined
from tests.prompts import cases
from tests.systems import rows_of

USERS = [[(1, 14_000)], [(i, 14_000 + i) for i in range(1, 14)], [(2, 1), (3, 2)]]


@pytest.fixture(scope="module")
def prompts(request):
    """With the teacher's user representation where a test asks for it."""
    told = getattr(request, "param", False)
    builder = cases.builder(cases.made("byte_level"), max_tokens=4096, user_repr=told)
    return builder.users(cases.histories(USERS), cases.vectors(3))


def groups(prompts, prefix=None):
    """Row 2 alone, then rows 0 and 1."""
    p = int(prompts.prefix_len.max()) if prefix is None else prefix
    cut = np.minimum(prompts.prefix_len, p)
    t = int((prompts.lengths - cut).max())
    return [
        Group(prompts, np.array([2]), Shape(1, p, t)),
        Group(prompts, np.array([0, 1]), Shape(2, p, t)),
    ]


def exact(prompts):
    return Budget(int(prompts.prefix_len.sum()), int(prompts.live_lengths.sum()))


@pytest.mark.parametrize("prompts", [False, True], ids=["", "told"], indirect=True)
@pytest.mark.parametrize("prefix", [None, 0, 8])
@pytest.mark.parametrize("budget", [None, Budget(5000, 9000)], ids=["grids", "tokens"])
def test_every_token_is_in_its_place(prompts, prefix, budget):
    batch = fill(groups(prompts, prefix), 20, budget)
    for (ids, kind, items), row in zip(rows_of(batch), [2, 0, 1], strict=True):
        span = slice(prompts.offsets[row], prompts.offsets[row + 1])
        np.testing.assert_array_equal(ids, prompts.ids[span])
        assert kind[-1] == USER_OUT and np.count_nonzero(kind == USER_OUT) == 1
        np.testing.assert_array_equal(items, prompts.slot_item[span][prompts.kind[span] == HISTORY])
    for before, after in zip(batch.prefix.grids, batch.live.grids, strict=True):
        for row in range(len(after.length)):
            at = after.at[row, : after.length[row]]
            np.testing.assert_array_equal(np.diff(batch.live.position[at]), 1)
            assert batch.live.position[at[0]] == before.length[row]
    if prompts.cf_user_repr is not None:
        np.testing.assert_array_equal(batch.cf_user_repr, prompts.cf_user_repr[[2, 0, 1]])
    integers = (batch.ids, batch.prefix_ids, batch.slot, batch.slot_at, batch.live.position)
    assert {array.dtype for array in integers} == {np.dtype(np.int32)}


def test_tokens_are_side_by_side_and_pads_are_nothing(prompts):
    needed = exact(prompts)
    tight = fill(groups(prompts), 20, needed)
    assert (tight.ids.size, tight.prefix_ids.size) == (needed.live, needed.prefix)
    loose = fill(groups(prompts), 20, Budget(needed.prefix + 3, needed.live + 5))
    np.testing.assert_array_equal(loose.ids, np.r_[tight.ids, [0] * 5])
    assert not loose.kind[-5:].any() and (loose.slot[-5:] == 20).all()
    on_grids = sum(grid.at.size for grid in loose.live.grids)
    assert (loose.live.place[-5:] == on_grids).all()
    for flat, size in ((loose.live, needed.live + 5), (loose.prefix, needed.prefix + 3)):
        at = np.concatenate([grid.at.ravel() for grid in flat.grids])
        real = flat.place < len(at)
        np.testing.assert_array_equal(at[flat.place[real]], np.flatnonzero(real))
        beyond = np.concatenate(
            [(np.arange(g.at.shape[1]) >= g.length[:, None]).ravel() for g in flat.grids]
        )
        assert (at[beyond] == size).all() and (at[~beyond] < size).all()


def test_stored_prefixes_are_pointed_at(prompts):
    first, second = groups(prompts)
    batch = fill([first, second._replace(stored=np.array([100, 7]))], 20, exact(prompts))
    (grid,) = batch.stored
    assert len(batch.prefix.grids) == 1 and len(batch.live.grids) == 2
    np.testing.assert_array_equal(grid.length, prompts.prefix_len[[0, 1]])
    for row, start in enumerate([100, 7]):
        n = grid.length[row]
        np.testing.assert_array_equal(grid.at[row, :n], start + np.arange(n))
        assert (grid.at[row, n:] == np.iinfo(np.int32).max).all()


def test_prefixes_alone(prompts):
    width = int(prompts.prefix_len.max())
    ids, flat = prefixes(prompts, np.array([2, 0]), 3, width)
    n = prompts.prefix_len[[2, 0]]
    wanted = [prompts.ids[prompts.offsets[r] :][:k] for r, k in zip([2, 0], n, strict=True)]
    np.testing.assert_array_equal(ids[: n.sum()], np.concatenate(wanted))
    assert len(ids) == 3 * width and flat.grids[0].length.tolist() == [*n, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(shape=Shape(2, 300, 3)), "prompt 1 has .* live tokens, more than the shape's 3"),
        (dict(shape=Shape(4, 300, 4000)), "2 prompts for a shape of 4 rows"),
        (dict(budget=Budget(9000, 20)), "tokens for an axis of 20"),
        (dict(slots=2), "11 history slots, where 2 fit"),
    ],
)
def test_what_does_not_fit_is_refused(prompts, change, message):
    group = groups(prompts)[1]._replace(**{k: v for k, v in change.items() if k == "shape"})
    with pytest.raises(ValueError, match=message):
        fill([group], change.get("slots", 20), change.get("budget"))


def test_branches_are_on_the_grid_of_their_row(prompts):
    """What they are hidden from is counted in live tokens; an empty row has none."""
    shared = np.array([0, 0, int(prompts.prefix_len[2]) + 1])
    one = prompts.take(np.array([0, 2, 2]))
    rows = joined(one, shared)
    p, t = 8, int((rows.lengths - np.minimum(rows.prefix_len, 8)).max())
    batch = fill([Group(rows, np.arange(3), Shape(3, p, t), outs=2)], 20, Budget(5000, 9000))
    (grid,) = batch.live.grids
    assert grid.length[0] == 0 and batch.prefix.grids[0].length.tolist() == [0, 8, 8]
    for (ids, _, _), row in zip(rows_of(batch), [0, 2, 2], strict=True):
        span = slice(prompts.offsets[row], prompts.offsets[row + 1])
        np.testing.assert_array_equal(ids, prompts.ids[span])
    outs = batch.outs
    (at,) = outs.at
    assert at.shape == (3, 2) and outs.place.tolist() == [2, 4, 5]
    assert outs.prompt.tolist() == [3, 3, 0, 3, 1, 2]
    first, both = (grid.length[1:] - 1).tolist()
    assert at.tolist() == [[0, 0], [first, 0], [int(prompts.lengths[2]) - p - 1, both]]
    with pytest.raises(ValueError, match="2 prompts in a row, where 1 fit"):
        fill([Group(rows, np.arange(3), Shape(3, p, t))], 20)
