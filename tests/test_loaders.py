"""Batches: a function of (seed, step), every user once an epoch, candidates at the right prompts, few shapes."""

import itertools
from operator import itemgetter

import jax
import numpy as np
import pytest

from llmsrec_jax import config, loaders, parallel
from llmsrec_jax.batch import HIDDEN, ITEM_OUT, USER_OUT, USER_REPR
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.data.splits import Dataset
from llmsrec_jax.llama.kv import KV
from llmsrec_jax.loaders import EpochOrder, LLMBatches, TeacherBatches
from llmsrec_jax.prompts.trunks import Trunks
from llmsrec_jax.stores import ItemStore
from tests.factories import dataset, random_dataset
from tests.systems import System, rows_of, system

SETTINGS = {"train.batch": 6, "train.negatives": 3, "train.length_groups": 3, "train.shapes": 3}


@pytest.fixture(scope="module")
def made() -> System:
    return system(SETTINGS, users=26, items=60)


@pytest.fixture(scope="module")
def sequences() -> Dataset:
    return random_dataset(users=50, items=80, longest=30)


def teacher(made: Dataset, devices=1, batch=8, seed=0, mine=None) -> TeacherBatches:
    cfg = config.Teacher(batch=batch, max_len=12)
    return TeacherBatches(made, cfg, False, seed, devices, mine)


def assert_same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


# the order of users ------------------------------------------------------------------------------------------


def test_every_user_once_an_epoch_but_the_remainder():
    users = np.arange(100, 123)
    order = EpochOrder(users, 5, seed=1)
    assert order.steps_per_epoch == 4
    epochs = [np.concatenate([order(4 * e + s) for s in range(4)]) for e in range(6)]
    for epoch in epochs:
        assert len(set(epoch)) == 20 and set(epoch) <= set(users)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert set(np.concatenate(epochs)) == set(users)  # the remainder is not always the same


def test_the_order_is_a_function_of_seed_and_step():
    users = np.arange(17)
    forward = [EpochOrder(users, 4, seed=3)(step) for step in range(12)]
    one = EpochOrder(users, 4, seed=3)
    for step in (11, 0, 7, 3, 8, 4):
        np.testing.assert_array_equal(one(step), forward[step])
    other = [EpochOrder(users, 4, seed=4)(step) for step in range(12)]
    assert not np.array_equal(forward, other)


def test_fewer_users_than_a_batch():
    order = EpochOrder(np.arange(3), 8, seed=0)
    assert order.batch == 3 and order.steps_per_epoch == 1
    assert sorted(order(5)) == [0, 1, 2]


def test_samples_of_a_run_follow_one_another():
    """The latest first; where a batch ends, the next one goes on."""
    shared = np.array([5, 0, 0, 5, 6, 7, 0])
    trunks = Trunks(np.full(7, 4), np.full(7, 9), shared)
    order = EpochOrder(np.arange(7), 3, seed=0, trunks=trunks)
    assert order.steps_per_epoch == 2
    seen = set()
    for epoch in range(20):
        found = [*order(2 * epoch), *order(2 * epoch + 1)]
        assert len(set(found)) == 6
        seen.add(tuple(found))
        assert not shared[found[0]]
        assert all(not shared[b] or a == b + 1 for a, b in itertools.pairwise(found))
    assert len(seen) > 4


def test_no_user_at_all():
    with pytest.raises(ValueError, match="no user has two training items, .* lower data.min_user"):
        EpochOrder(np.arange(0), 8, seed=0)


def test_a_batch_that_does_not_divide(made, sequences):
    with pytest.raises(ValueError, match=r"train.batch=6 does not divide over 4 devices.*multiple"):
        made.batches(devices=4)
    with pytest.raises(ValueError, match="teacher.batch=9 does not divide over 2 devices"):
        teacher(sequences, devices=2, batch=9)


# LLM-SRec's batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices, targets", [(1, "last"), (2, "last"), (2, "all")])
def test_batches_are_a_function_of_the_step(made, devices, targets):
    batches = lambda: made.batches(devices, {"train.targets": targets})
    forward = [batches()(step) for step in range(9)]
    for first in (0, 3, 8):
        stream = loaders.stream(batches(), first, 9)
        for step, found in zip(range(first, 9), stream, strict=True):
            assert_same(found, forward[step])


def test_another_seed_gives_other_batches(made):
    other = made.batches(changes={"seed": 1})
    assert not np.array_equal(made.batches()(0).cf_user_repr, other(0).cf_user_repr)


Rows = list[tuple[np.ndarray, np.ndarray]]


def prompts_of(batch, device: int) -> tuple[Rows, Rows]:
    """(token ids, slot items) of one device's users and of its items, in order; live slots have id 0."""
    users, items = [], []
    for part in range(batch.prompts.ids.shape[1]):
        one = jax.tree.map(itemgetter((device, part)), batch.prompts)
        for ids, kind, slots in rows_of(one):
            assert not set(kind[:-1]) & {USER_OUT, ITEM_OUT}
            {USER_OUT: users, ITEM_OUT: items}[kind[-1]].append((ids, slots))
    return users, items


@pytest.mark.parametrize("devices, parts", [(1, 1), (2, 1), (1, 3)])
@pytest.mark.parametrize(
    "exclude, targets",
    [("train", "last"), ("history", "last"), ("train", "all"), ("history", "all")],
)
def test_what_is_in_a_batch(made, devices, parts, exclude, targets):
    """Each sample with its own prompt, teacher vector, target and negatives, in prompts of those very items."""
    changes = {"train.exclude": exclude, "train.parts": parts, "train.targets": targets}
    batches, data = made.batches(devices, changes), made.dataset
    user_of, vectors = data.train.rows, made.cf_users
    titles = made.builder.items(np.arange(1, data.catalog.size))
    seen = []
    for step in range(batches.order.steps_per_epoch):
        batch = batches(step)
        for device in range(devices):
            users, items = prompts_of(batch, device)
            assert len(users) == 6 // devices and len(items) == 4 * len(users)
            rows = [
                int(np.flatnonzero((vectors == v).all(1))[0]) for v in batch.cf_user_repr[device]
            ]
            seen += rows
            before = [place - data.train.offsets[user_of[place]] for place in rows]
            wanted = made.builder.users(data.train.beginnings(user_of[rows], np.array(before)))
            for part in range(parts):
                one = jax.tree.map(itemgetter((device, part)), batch.prompts)
                tokens = [
                    np.concatenate([grid.length for grid in axis.grids])[: len(users) // parts]
                    for axis in (one.prefix, one.live)
                ]
                assert (np.diff(sum(tokens)) >= 0).all()
            for place, row in enumerate(rows):
                ids, slots = users[place]
                span = slice(wanted.offsets[place], wanted.offsets[place + 1])
                np.testing.assert_array_equal(ids, wanted.ids[span])
                known, _ = data.train[user_of[row]]
                history = known[: before[place]]
                np.testing.assert_array_equal(slots, history[-3:])
                chosen = []
                for position in batch.candidates[device, place]:
                    title, (item,) = items[position]
                    span = slice(titles.offsets[item - 1], titles.offsets[item])
                    np.testing.assert_array_equal(title, titles.ids[span])
                    chosen.append(int(item))
                assert chosen[0] == known[before[place]] and len(set(chosen[1:])) == 3
                banned = set(known) if exclude == "train" else set(history)
                assert not banned & set(chosen[1:])
    users = data.eligible("train")
    samples = len(users) if targets == "last" else np.sum(data.train.lengths[users] - 1)
    assert len(set(seen)) == len(seen) == samples // 6 * 6


@pytest.mark.parametrize("devices, parts", [(1, 1), (2, 1), (1, 3)])
def test_every_users_slot_has_the_vector_of_its_own_input(devices, parts):
    """In the order of the users, which is that of the vectors to be matched."""
    told = system({**SETTINGS, "prompts.user_repr": True}, users=26, items=60)
    batches = told.batches(devices, {"train.parts": parts})
    for step in range(batches.order.steps_per_epoch):
        batch = batches(step)
        for device in range(devices):
            found = []
            for part in range(parts):
                one = jax.tree.map(itemgetter((device, part)), batch.prompts)
                for grid in one.live.grids:
                    for row in range(len(grid.length)):
                        live = grid.at[row, : grid.length[row]]
                        (tokens,) = np.nonzero(one.kind[live] == USER_REPR)
                        assert len(tokens) == (one.kind[live[-1]] == USER_OUT)
                        numbers = one.slot[live[tokens]]
                        np.testing.assert_array_equal(one.slot_at[numbers], live[tokens])
                        found += [*one.cf_user_repr[numbers - len(one.slot_item)]]
            np.testing.assert_array_equal(found, batch.cf_user_repr[device])


def choices(batch, devices: int = 1) -> dict[bytes, list[int]]:
    """{a user's teacher vector: its candidates}."""
    found = {}
    for device in range(devices):
        _, items = prompts_of(batch, device)
        for vector, row in zip(batch.cf_user_repr[device], batch.candidates[device], strict=True):
            found[vector.tobytes()] = [int(items[position][1][0]) for position in row]
    return found


def test_negatives_are_fresh_every_epoch(made):
    batches = made.batches()
    chosen = {}
    for step in range(2 * batches.order.steps_per_epoch):
        for vector, items in choices(batches(step)).items():
            chosen.setdefault(vector, []).append(items)
    twice = [lists for lists in chosen.values() if len(lists) == 2]
    assert len(twice) > 10
    assert all(a[0] == b[0] for a, b in twice)
    assert sum(a[1:] != b[1:] for a, b in twice) > len(twice) - 2


@pytest.mark.parametrize("devices", [2, 3, 6])
@pytest.mark.parametrize("targets", ["last", "all"])
def test_devices_share_the_samples_of_one(made, devices, targets):
    """The samples of a step and their negatives do not depend on the number of devices."""
    changes = {"train.targets": targets}
    whole, parts = made.batches(1, changes)(3), made.batches(devices, changes)(3)
    assert len(choices(whole)) == 6
    assert choices(whole) == choices(parts, devices)


def test_few_shapes(made):
    """No more compiled programs than train.shapes, whatever the step; later epochs bring no new ones."""
    batches = made.batches()
    epoch = batches.order.steps_per_epoch
    shapes = [
        str(jax.tree.map(lambda x: (x.shape, x.dtype.name), batches(step)))
        for step in range(40 * epoch)
    ]
    assert 1 < len(set(shapes)) <= made.cfg.train.shapes
    assert set(shapes[20 * epoch :]) <= set(shapes[: 20 * epoch])


@pytest.mark.parametrize("kind", ["hbm", "host"])
def test_items_at_hand_leave_their_prefixes_out(made, kind):
    """Each item's grid points at its own prefix, in the store or among those that came along."""
    prompts = made.builder.items(np.arange(1, made.dataset.catalog.size))
    starts = np.cumsum(prompts.prefix_len) - prompts.prefix_len
    tokens = np.concatenate(
        [p[:n] for p, n in zip(_split(prompts), prompts.prefix_len, strict=True)]
    )
    kv = KV(tokens[None, :, None, None], tokens[None, :, None, None])  # a token's key is its id
    store = ItemStore(np.concatenate([[0], starts]), kv, kind == "host")
    plain, batches = made.batches(), made.batches(store=store)
    for step in range(batches.order.steps_per_epoch):
        batch = jax.tree.map(lambda x: x[0, 0], batches(step).prompts)
        whole = [row for row in rows_of(jax.tree.map(lambda x: x[0, 0], plain(step).prompts))]
        assert len(batch.prefix.grids) == len(batch.live.grids) - len(batch.stored)
        found = (kv if kind == "hbm" else batch.kv).k[0, :, 0, 0]
        assert (batch.kv is None) == (kind == "hbm")
        wanted = iter(whole[6:])
        for grid, tails in zip(batch.stored, batch.live.grids[-len(batch.stored) :], strict=True):
            for at, n, live, t in zip(*grid[:2], *tails[:2], strict=True):
                ids = np.concatenate([found[at[:n]], batch.ids[live[:t]]])
                np.testing.assert_array_equal(ids, next(wanted)[0])


def _split(prompts) -> list[np.ndarray]:
    return np.split(prompts.ids, prompts.offsets[1:-1])


def test_parts_must_be_equal(made):
    with pytest.raises(ValueError, match="train.parts=4 does not divide the 6 users"):
        made.batches(changes={"train.parts": 4})


def test_programs_are_compiled_once_per_shape(made):
    mesh = parallel.make_mesh(config.Mesh(devices=1))
    step = parallel.train_wrapper(lambda frozen, state, batch: (state + 1, batch.candidates), mesh)
    batches, state = made.batches(), parallel.replicate(np.int32(0), mesh)
    shapes, sizes = set(), []
    for number in range(5 * batches.order.steps_per_epoch):
        batch = batches(number)
        shapes.add(str(jax.tree.map(np.shape, batch)))
        state, _ = step((), state, parallel.put_batch(batch, mesh))
        sizes.append(parallel.programs(step))
        assert sizes[-1] == len(shapes)
    assert sizes[-1] <= made.cfg.train.shapes


# the teacher's batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("hides", [False, True])
def test_teacher_batches_are_a_function_of_the_step(sequences, devices, hides):
    new = lambda: hiding(sequences, 0.5, devices) if hides else teacher(sequences, devices)
    forward = [new()(step) for step in range(12)]
    for step, found in zip(range(5, 12), loaders.stream(new(), 5, 12), strict=True):
        assert_same(found, forward[step])
    assert not np.array_equal(
        forward[0][-1].history, teacher(sequences, devices, seed=1)(0)[-1].history
    )


@pytest.mark.parametrize("devices", [1, 2])
def test_teacher_windows(sequences, devices):
    """The last items, each predicting the next; negatives never in training; every user once an epoch."""
    batches = teacher(sequences, devices)
    rows = {}
    for user in range(len(sequences.user_keys)):
        items, _ = sequences.train[user]
        rows[tuple(items[-13:])] = user
    seen = []
    for step in range(batches.order.steps_per_epoch):
        groups = batches(step)
        assert sum(group.history.shape[1] for group in groups) * devices == 8
        for group in groups:
            width = group.history.shape[-1]
            flat = [x.reshape(-1, width) for x in group]  # one negative per position
            for history, positive, negative in zip(*flat, strict=True):
                live = history > 0
                assert (np.diff(live.astype(int)) >= 0).all() and live.any()  # left-padded
                np.testing.assert_array_equal(positive[:-1][live[:-1]], history[1:][live[:-1]])
                np.testing.assert_array_equal(positive > 0, live)
                np.testing.assert_array_equal(negative > 0, live)
                user = rows[(*history[live], positive[-1])]
                assert not set(negative[live]) & set(sequences.train[user][0])
                seen.append(user)
    eligible = set(sequences.eligible("train"))
    assert len(set(seen)) == len(seen) == len(eligible) // 8 * 8 and set(seen) <= eligible


def windows_seen(batches, epochs):
    """Of every epoch [(items of a window, pads left out, which of them are hidden, negatives)]."""
    for epoch in range(epochs):
        seen: list[tuple[tuple[int, ...], tuple[bool, ...], bytes]] = []
        steps = batches.order.steps_per_epoch
        for group in itertools.chain(*map(batches, range(epoch * steps, (epoch + 1) * steps))):
            hidden = group.history == HIDDEN
            assert (hidden == (group.positive > 0)).all()
            assert ((group.negative > 0) == hidden[..., None]).all()
            whole = np.where(hidden, group.positive, group.history)
            for each in np.ndindex(whole.shape[:2]):
                live = whole[each] > 0
                negatives = group.negative[each][hidden[each]].tobytes()
                seen.append((tuple(whole[each][live]), tuple(hidden[each][live]), negatives))
        yield seen


def hiding(sequences, cut, devices=1, **changes):
    settings = {"batch": 8, "max_len": 12, "negatives": 2, "model": "bert4rec", **changes}
    cfg = config.Teacher(bert4rec=config.BERT4Rec(cut=cut), **settings)
    return TeacherBatches(sequences, cfg, True, 0, devices)


def test_hidden_items_and_what_they_are(sequences):
    """Whole training sequences, each item seen or asked for; fresh every epoch, negatives only where asked."""
    seen = windows_seen(hiding(sequences, cut=0.0), 2)
    first, second = ({items: asked for items, asked, _ in epoch} for epoch in seen)
    wanted = {tuple(sequences.train[user][0][-12:]) for user in sequences.eligible("train")}
    assert set(first) < wanted and len(first) == 48
    both = set(first) & set(second)
    assert sum(first[items] != second[items] for items in both) > len(both) / 2


@pytest.mark.parametrize(("windows", "max_len"), [("last", 12), ("all", 4)])
def test_windows_that_are_cut_end_with_the_only_hidden_item(windows, max_len, sequences):
    """The longest windows that end there; any item but the first of all is the last one of some."""
    users = [tuple(sequences.train[user][0]) for user in sequences.eligible("train")]
    known = {
        whole[max(0, end - max_len) : end] for whole in users for end in range(1, len(whole) + 1)
    }
    batches = hiding(sequences, cut=1.0, windows=windows, max_len=max_len)
    seen = list(itertools.chain(*windows_seen(batches, 60)))
    for items, asked, _ in seen:
        assert asked == (False,) * (len(items) - 1) + (True,) and items in known
    ends = {items for items, _, _ in seen}
    assert len(ends) > 3 * len(users)
    few = [whole for whole in users if len(whole) <= 4]
    assert len(few) > 2
    for whole in few:
        asked_at = {end for end in range(1, len(whole) + 1) if whole[:end] in ends}
        assert asked_at == set(range(2, len(whole) + 1))


@pytest.mark.parametrize("windows", ["last", "all"])
def test_what_is_hidden_does_not_depend_on_the_batch(windows, sequences):
    """Nor on the devices; and windows of one user have negatives of their own."""
    alone, among = (
        next(windows_seen(hiding(sequences, 0.5, devices, windows=windows, batch=batch), 1))
        for devices, batch in ((1, 1), (4, 16))
    )
    assert set(among) < set(alone) and len(among) == len(alone) // 16 * 16
    drawn = [negatives for _, asked, negatives in alone if sum(asked) == 1]
    assert len(set(drawn)) == len(drawn) > 10


def test_a_loss_over_the_catalogue_needs_no_negatives(sequences):
    batches = TeacherBatches(sequences, config.Teacher(batch=8, loss="ce"), False, 0, 1)
    assert all(group.negative.shape == (*group.history.shape, 0) for group in batches(0))


def test_teacher_shapes_are_few(sequences):
    batches = teacher(sequences)
    shapes = {str(jax.tree.map(np.shape, batches(step))) for step in range(200)}
    assert len(shapes) <= loaders.TEACHER_SHAPES


# several processes -------------------------------------------------------------------------------------------

EIGHT = {"train.batch": 8}  # users of a step on 4 devices
SHARES = [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0, 3], [1, 2]], [[0], [1], [2], [3]]]


def joined(parts, shares):
    """What all processes built, in the order of the devices."""
    order = np.argsort(np.concatenate(shares))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *parts)


@pytest.mark.parametrize("shares", SHARES)
def test_processes_build_parts_of_the_same_batches(made, sequences, shares):
    """To the last bit, and all in the shapes of the whole batch."""
    one = made.batches(4, EIGHT), teacher(sequences, 4)
    each = [(made.batches(4, EIGHT, mine), teacher(sequences, 4, mine=mine)) for mine in shares]
    shapes = set()
    for step in range(30):
        whole = [build(step) for build in one]
        made.builder.trimmed["prompts"] = 0
        parts = [[build(step) for build in own] for own in each]
        assert made.builder.trimmed["prompts"] == 8  # by all of them together
        assert_same(joined(parts, shares), whole)
        shapes.add(str(jax.tree.map(np.shape, whole)))
    assert len(shapes) > 1


def test_another_number_of_processes_goes_on_at_the_same_position(made, sequences):
    kinds = (
        lambda mine: made.batches(4, EIGHT, mine),
        lambda mine: teacher(sequences, 4, mine=mine),
    )
    for build in kinds:
        first, found = 0, []
        for shares, last in ((SHARES[3], 5), (SHARES[1], 9), (SHARES[0], 12)):
            streams = [loaders.stream(build(mine), first, last) for mine in shares]
            found += [joined(parts, shares) for parts in zip(*streams, strict=True)]
            first = last
        for step, batch in enumerate(loaders.stream(build(None), 0, 12)):
            assert_same(found[step], batch)
        assert len(found) == 12


@pytest.mark.parametrize("shares", SHARES)
def test_processes_encode_parts_of_the_same_blocks(made, sequences, shares):
    prompts = made.builder.items(np.arange(1, made.dataset.catalog.size))
    histories = sequences.inputs("valid", np.arange(len(sequences)))
    kinds = (
        lambda mine=None: loaders.encoding_batches(prompts, 4, 4, 3, mine),
        lambda mine=None: loaders.window_batches(histories, 12, 4, 4, mine),
    )
    for encode in kinds:
        whole = list(encode())
        parts = zip(*(encode(mine) for mine in shares), strict=True)
        for (index, batch), own in zip(whole, parts, strict=True):
            for rows, _ in own:  # those of all devices: that is where the results go
                assert_same(rows, index)
            assert_same(joined([batch for _, batch in own], shares), batch)


# evaluation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 4, 64])
def test_every_history_is_encoded(sequences, devices, rows):
    users = np.arange(len(sequences.user_keys))
    histories = sequences.inputs("valid", users)
    seen, shapes = [], set()
    for index, batch in loaders.window_batches(histories, 12, rows, devices):
        assert batch.shape[0] == devices == len(index)
        shapes.add(batch.shape)
        for part, windows in zip(index, batch, strict=True):
            for row, window in zip(part, windows, strict=True):
                np.testing.assert_array_equal(window[window > 0], histories[row][0][-12:])
            seen += part.tolist()
    assert set(seen) == set(users)
    assert len(seen) < len(users) + rows * devices * len(shapes)  # repeats fill blocks, no more
    assert len({shape[2] for shape in shapes}) <= 4


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(("rows", "shapes"), [(1, 8), (4, 1), (4, 8), (64, 3)])
def test_every_prompt_is_encoded(made, devices, rows, shapes):
    prompts = made.builder.items(np.arange(1, made.dataset.catalog.size))
    seen, sizes = [], set()
    for index, batch in loaders.encoding_batches(prompts, rows, devices, shapes):
        sizes.add(str(jax.tree.map(np.shape, batch)))
        for device, part in enumerate(index):
            seen += part.tolist()
            one = jax.tree.map(itemgetter(device), batch)
            for row, (ids, _, slots) in zip(part, rows_of(one), strict=True):
                span = slice(prompts.offsets[row], prompts.offsets[row + 1])
                np.testing.assert_array_equal(ids, prompts.ids[span])
                assert slots.tolist() == [row + 1]
    assert set(seen) == set(range(len(prompts)))
    assert len(sizes) <= shapes


def test_a_user_with_two_training_items_is_the_shortest(made):
    """An input of one item, a target, nothing else."""
    short = dataset([[1, 2, 3, 4], [5, 6, 7, 8, 9, 10], [1, 5, 6, 7]], items=60)
    assert short.eligible("train").tolist() == [0, 1, 2]
    samples = Samples.of(short, short.eligible("train"), "last")
    cfg = config.apply(made.cfg, {"train.batch": 3})
    batches = LLMBatches(samples, made.builder, made.cf_users[:3], cfg, 1)
    slots = sorted(tuple(s.tolist()) for _, s in prompts_of(batches(0), 0)[0])
    assert slots == [(1,), (1,), (5, 6, 7)]


@pytest.mark.parametrize("exclude", ["train", "history"])
def test_users_with_one_target_make_the_same_batches(made, exclude):
    """Sequences of two training items, where all targets are the last ones: to the last bit."""
    rng = np.random.default_rng(0)
    short = dataset([list(rng.choice(60, 4, replace=False) + 1) for _ in range(20)], items=60)

    def batches(targets: str) -> LLMBatches:
        samples = Samples.of(short, short.eligible("train"), targets)
        cfg = config.apply(made.cfg, {"train.exclude": exclude, "train.targets": targets})
        return LLMBatches(samples, made.builder, made.cf_users[samples.ends], cfg, 1)

    last, every = batches("last"), batches("all")
    assert last.order.steps_per_epoch == every.order.steps_per_epoch == 3
    for step in range(9):
        assert_same(last(step), every(step))
