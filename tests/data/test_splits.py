"""prepare and Dataset: splits partition, nothing depends on the file order, what is saved comes back or is refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsrec_jax import config
from llmsrec_jax.data.interactions import Catalog, Interactions
from llmsrec_jax.data.splits import Dataset, prepare, sample_users
from tests.factories import random_dataset

ITEMS = 8


def catalog() -> Catalog:
    keys = np.asarray(["", *(f"i{n}" for n in range(1, ITEMS + 1))])
    return Catalog(keys, ["", *(f"title {n}" for n in range(1, ITEMS + 1))], keys != "")


def interactions(rows: list[tuple[int, int, int]]) -> Interactions:
    """Rows (user, item, time) -> a raw table with users in order of first appearance."""
    names = list(dict.fromkeys(user for user, _, _ in rows))
    user = np.asarray([names.index(user) for user, _, _ in rows], dtype=np.int32)
    item, time = (np.asarray([row[k] for row in rows]) for k in (1, 2))
    keys = np.asarray([f"u{name}" for name in names])
    return Interactions(user, item.astype(np.int32), time.astype(np.int64), keys)


def raw(dataset: Dataset) -> dict[str, list[tuple[str, int]]]:
    """{user: [(item, time), ...]} in order, all parts."""
    known = dataset.known()
    keys = dataset.catalog.keys
    return {
        str(name): [(str(keys[i]), int(t)) for i, t in zip(*known[u], strict=True)]
        for u, name in enumerate(dataset.user_keys)
    }


tables = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, ITEMS), st.integers(0, 9)), min_size=8, max_size=60
)
settings_data = st.builds(
    config.Data,
    kcore=st.sampled_from(["iterative", "none"]),
    ties=st.sampled_from(["random", "item"]),
    min_user=st.integers(1, 3),
    min_item=st.integers(1, 2),
    max_users=st.sampled_from([0, 4]),
    user_share=st.sampled_from([1.0, 0.7]),
)


@given(tables, settings_data, st.randoms(use_true_random=False))
def test_the_file_order_changes_nothing(rows, cfg, random):
    shuffled = random.sample(rows, len(rows))
    try:
        first, card = prepare(catalog(), interactions(rows), cfg, seed=3)
    except ValueError:
        with pytest.raises(ValueError, match="no user is left"):
            prepare(catalog(), interactions(shuffled), cfg, seed=3)
        return
    second, other_card = prepare(catalog(), interactions(shuffled), cfg, seed=3)
    assert raw(first) == raw(second) and (first.user_keys == second.user_keys).all()
    assert (first.test_item == second.test_item).all()
    ignored = {"rows_out_of_time_order"}
    assert {k: v for k, v in card.items() if k not in ignored} == {
        k: v for k, v in other_card.items() if k not in ignored
    }


@given(tables)
def test_the_parts_are_the_sequences(rows):
    dataset, card = prepare(
        catalog(), interactions(rows), config.Data(kcore="none", ties="item"), 0
    )
    expected: dict[str, list[tuple[int, int]]] = {}
    for user, item, time in sorted(set(rows), key=lambda row: (row[2], row[1])):
        expected.setdefault(f"u{user}", []).append((f"i{item}", time))
    assert raw(dataset) == expected
    long_enough = np.asarray([len(expected[str(name)]) >= 3 for name in dataset.user_keys])
    assert ((dataset.valid_item > 0) == long_enough).all()
    assert ((dataset.test_item > 0) == long_enough).all()
    assert card["users_too_short"] == np.sum(~long_enough)
    assert card["exact_duplicates_dropped"] == len(rows) - len(set(rows))
    users = np.arange(len(dataset))
    for split, drop in (("train", 3), ("valid", 2), ("test", 1)):
        inputs, targets = dataset.inputs(split, users), dataset.targets(split, users)
        for user in np.flatnonzero(long_enough):
            whole = dataset.known()[user][0]
            assert inputs[user][0].tolist() == whole[:-drop].tolist()
            assert targets[user] == (whole[-drop] if len(whole) >= drop else 0)
        assert dataset.eligible(split).tolist() == [
            u for u in users if targets[u] > 0 and inputs.lengths[u] > 0
        ]


def literal_reference(rows, min_user, min_item):
    """The authors' filter as D34 and D35 describe it, row by row: {user: (train, valid, test)}, items in order of ids."""
    by_user: dict[int, list[tuple[int, int]]] = {}
    for user, item, time in rows:
        by_user.setdefault(user, []).append((item, time))
    parts = {}
    for user, seq in by_user.items():
        seq = sorted(seq, key=lambda pair: pair[1])  # stable: ties in file order
        parts[user] = (seq[:-2], seq[-2:-1], seq[-1:]) if len(seq) >= 3 else (seq, [], [])
    count_user = {user: len(seq) for user, seq in by_user.items()}
    count_item: dict[int, int] = {}
    for _, item, _ in rows:
        count_item[item] = count_item.get(item, 0) + 1
    kept = {}
    for user, split in parts.items():
        if count_user[user] < min_user:
            continue
        filtered = tuple([p for p in part if count_item[p[0]] >= min_item] for part in split)
        if len(filtered[0]) >= min_user:
            kept[user] = filtered
    order: list[int] = []
    for which in range(3):
        for split in kept.values():
            order += [item for item, _ in split[which]]
    return kept, list(dict.fromkeys(order))


@given(tables.map(lambda rows: list(dict.fromkeys(rows))), st.integers(1, 3), st.integers(1, 6))
def test_reference_filter_is_the_literal_one(rows, min_user, min_item):
    cfg = config.Data(kcore="reference", ties="file", min_user=min_user, min_item=min_item)
    kept, order = literal_reference(rows, min_user, min_item)
    if not kept:
        with pytest.raises(ValueError, match="no user is left"):
            prepare(catalog(), interactions(rows), cfg, 0)
        return
    dataset, _ = prepare(catalog(), interactions(rows), cfg, 0)
    assert dataset.user_keys.tolist() == [f"u{user}" for user in kept]
    assert dataset.catalog.keys.tolist() == ["", *(f"i{item}" for item in order)]
    for row, (train, valid, test) in enumerate(kept.values()):
        ids = [order.index(item) + 1 for item, _ in train]
        assert dataset.train[row][0].tolist() == ids
        assert dataset.valid_item[row] == (order.index(valid[0][0]) + 1 if valid else 0)
        assert dataset.test_item[row] == (order.index(test[0][0]) + 1 if test else 0)


def test_reference_leaves_a_user_without_a_valid_item():
    rows = [(u, i, t) for u in range(3) for t, i in enumerate((1, 2, 3))]
    rows += [(0, 4, 8), (0, 1, 9), (1, 1, 8), (1, 2, 9), (2, 3, 8), (2, 1, 9)]
    cfg = config.Data(kcore="reference", ties="file", min_user=3, min_item=2)
    dataset, card = prepare(catalog(), interactions(rows), cfg, 0)
    assert dataset.valid_item.tolist() == [0, 1, 3]
    assert dataset.inputs("test", np.asarray([0]))[0][0].tolist() == [1, 2, 3]
    assert dataset.eligible("valid").tolist() == [1, 2] and card["valid_users"] == 2
    assert dataset.known()[0][0].tolist() == [1, 2, 3, 1]


def test_repeats_at_other_times_and_disorder_are_counted():
    rows = [(0, 1, 5), (0, 1, 3), (0, 2, 4), (0, 1, 5)]
    dataset, card = prepare(catalog(), interactions(rows), config.Data(kcore="none"), 0)
    assert dataset.known()[0][0].tolist() == [1, 2, 1]
    assert (card["repeated_pairs"], card["exact_duplicates_dropped"]) == (1, 1)
    assert card["rows_out_of_time_order"] == 1


def test_the_sample_comes_before_the_core_and_is_counted():
    rows = [(user, item, item) for user in range(10) for item in (1, 2, 3)]
    cfg = config.Data(min_user=3, min_item=4, user_share=0.5, max_users=4)
    dataset, card = prepare(catalog(), interactions(rows), cfg, 0)
    assert len(dataset) == 4 and card["users_not_sampled"] == 6
    with pytest.raises(ValueError, match=r"data.user_share=0.5, data.max_users=3\)"):
        prepare(catalog(), interactions(rows), dataclasses.replace(cfg, max_users=3), 0)


def test_nothing_left_says_what_to_change():
    with pytest.raises(ValueError, match="lower data.min_user=5 or data.min_item=5"):
        prepare(catalog(), interactions([(0, 1, 1), (1, 2, 2)]), config.Data(), 0)


def test_the_name_is_the_users_or_the_folders():
    rows = interactions([(0, 1, 1)])
    cfg = config.Data(kcore="none", source="files")
    cfg.files.interactions = "some/where/purchases.csv"
    assert prepare(catalog(), rows, cfg, 0)[0].name == "where"
    assert prepare(catalog(), rows, dataclasses.replace(cfg, name="mine"), 0)[0].name == "mine"


def test_split_names_are_checked():
    with pytest.raises(ValueError, match="split 'dev': use one of train, valid, test"):
        random_dataset().inputs("dev", np.arange(2))


def test_sampled_rows_are_sorted_nested_and_seeded():
    users = np.arange(0, 100, 2, dtype=np.int32)
    small, large = sample_users(users, 10, 0), sample_users(users, 20, 0)
    assert len(small) == 10 and set(small) < set(large) <= set(users)
    assert (np.diff(small) > 0).all() and (sample_users(users, 10, 1) != small).any()
    assert sample_users(users, 0, 0) is users and sample_users(users, 99, 0) is users


def test_save_and_load(tmp_path):
    made = random_dataset()
    made.catalog.titles[3] = 'Ünï "quoted" \u2028 line'
    made.save(tmp_path / "data")
    loaded = Dataset.load(tmp_path / "data")
    assert loaded.name == made.name and loaded.catalog.titles == made.catalog.titles
    assert raw(loaded) == raw(made)
    for name in ("user_keys", "valid_item", "valid_time", "test_item", "test_time"):
        before, after = getattr(made, name), getattr(loaded, name)
        assert before.dtype == after.dtype and (before == after).all()
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["dataset.npz", "items.jsonl"]


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_file_is_named(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damage")
    made = random_dataset(users=5, items=20)
    made.save(folder)
    name = data.draw(st.sampled_from(["dataset.npz", "items.jsonl"]))
    content = bytearray((folder / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(bytes(content))
    try:
        loaded = Dataset.load(folder)
    except ValueError as error:
        assert str(folder) in str(error) and "is damaged" in str(error)
    else:  # a byte that carries nothing, such as a timestamp of the archive
        assert raw(loaded) == raw(made) and loaded.catalog.titles == made.catalog.titles


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="dataset.npz is missing: run the prepare stage"):
        Dataset.load(tmp_path)
