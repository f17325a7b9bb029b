"""From a raw table to the Dataset that every later stage sees: filters, leave-last-out, and the data card."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llmsrec_jax import config
from llmsrec_jax.data import counter, filters, storage
from llmsrec_jax.data.card import describe
from llmsrec_jax.data.interactions import (
    Catalog,
    Interactions,
    UserSequences,
    distinct,
    offsets_of,
)
from llmsrec_jax.data.unseen import Unseen

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Users with a chronological training part and at most one validation and one test item each."""

    name: str
    catalog: Catalog
    user_keys: np.ndarray  # [U] str
    train: UserSequences  # [U]
    valid_item: np.ndarray  # int32 [U]; 0 = the user has none
    valid_time: np.ndarray  # int64 [U] ms
    test_item: np.ndarray  # int32 [U]; 0 = the user has none
    test_time: np.ndarray  # int64 [U] ms

    def __len__(self) -> int:
        return len(self.user_keys)

    @cached_property
    def counts(self) -> np.ndarray:
        """int64 [I]: training interactions per item."""
        return np.bincount(self.train.items, minlength=self.catalog.size)

    def inputs(self, split: str, users: np.ndarray) -> UserSequences:
        """What a model may see of `users` (rows) when it predicts their target in `split`."""
        _check(split)
        users = np.asarray(users, dtype=np.int64)
        train = self.train.take(users)
        if split == "train":
            return train.drop_last()
        if split == "valid":
            return train
        return train.append(self.valid_item[users], self.valid_time[users])

    def targets(self, split: str, users: np.ndarray) -> np.ndarray:
        """int32 [n]: the item to predict, 0 = none."""
        _check(split)
        users = np.asarray(users, dtype=np.int64)
        if split == "valid":
            return self.valid_item[users]
        if split == "test":
            return self.test_item[users]
        some = self.train.lengths[users] > 0
        target = np.zeros(len(users), dtype=np.int32)
        target[some] = self.train.items[self.train.offsets[users[some] + 1] - 1]
        return target

    def eligible(self, split: str) -> np.ndarray:
        """int32: rows of the users who have a target and a non-empty input in `split`."""
        users = np.arange(len(self))
        some = (self.targets(split, users) > 0) & (self.inputs(split, users).lengths > 0)
        return np.flatnonzero(some).astype(np.int32)

    def known(self) -> UserSequences:
        """[U]: all positives of every user: training, validation and test, chronological."""
        return self._known

    @cached_property
    def _known(self) -> UserSequences:
        train_valid = self.train.append(self.valid_item, self.valid_time)
        return train_valid.append(self.test_item, self.test_time)

    @cached_property
    def unseen(self) -> Unseen:
        """The items outside every user's training part."""
        return Unseen(self.train, self.catalog.size)

    def save(self, folder: Path | str) -> None:
        """Two files, each atomic; the arrays come last and hold the checksum of the titles."""
        folder = Path(folder)
        catalog = self.catalog
        records = [
            {"item": str(key), "title": title, "has_title": bool(has)}
            for key, title, has in zip(catalog.keys, catalog.titles, catalog.has_title, strict=True)
        ]
        storage.write_records(folder / ITEMS_FILE, records)
        storage.write_arrays(
            folder / ARRAYS_FILE,
            name=np.asarray(self.name),
            items_sha256=np.asarray(_sha256(folder / ITEMS_FILE)),
            user_keys=self.user_keys,
            train_offsets=self.train.offsets,
            train_items=self.train.items,
            train_times=self.train.times,
            valid_item=self.valid_item,
            valid_time=self.valid_time,
            test_item=self.test_item,
            test_time=self.test_time,
        )

    @classmethod
    def load(cls, folder: Path | str) -> "Dataset":
        """What `save` wrote. A missing or damaged file is a ValueError naming it."""
        arrays_path, items_path = Path(folder) / ARRAYS_FILE, Path(folder) / ITEMS_FILE
        arrays = storage.read_arrays(arrays_path)
        records = storage.read_records(items_path)
        try:
            if arrays["items_sha256"].item() != _sha256(items_path):
                raise ValueError(storage.damaged(items_path, "its checksum differs"))
            catalog = Catalog(
                np.asarray([record["item"] for record in records], dtype=str),
                [record["title"] for record in records],
                np.asarray([record["has_title"] for record in records], dtype=bool),
            )
            train = UserSequences(*(arrays[f"train_{x}"] for x in ("offsets", "items", "times")))
            rest = ("user_keys", "valid_item", "valid_time", "test_item", "test_time")
            return cls(
                arrays["name"].item(), catalog, train=train, **{name: arrays[name] for name in rest}
            )
        except KeyError as error:
            raise ValueError(storage.damaged(arrays_path, f"no {error} in it")) from error


ARRAYS_FILE, ITEMS_FILE = "dataset.npz", "items.jsonl"


def prepare(
    catalog: Catalog,
    interactions: Interactions,
    cfg: config.Data,
    seed: int,
    source_counts: dict[str, Any] | None = None,
) -> tuple[Dataset, dict[str, Any]]:
    """Sample, order, filter and split. Returns the dataset and its card (see card.py).

    Users and items are numbered in canonical order, so the result does not depend on the file's row order; with
    kcore='reference' in order of first appearance over the train, then valid, then test rows, as the authors do (D34, D35).
    Raises ValueError when nothing is left.
    """
    counts: dict[str, Any] = dict(source_counts or {})
    counts["interactions_read"] = len(interactions)
    counts["users_read"] = len(interactions.user_keys)
    rows, part = _select(catalog, interactions, cfg, seed, counts)
    if not len(rows) or not np.any(part == 0):
        raise ValueError(
            f"no user is left of {counts['users_read']} ({len(interactions)} interactions): "
            f"lower data.min_user={cfg.min_user} or data.min_item={cfg.min_item}, sample more users "
            f"(data.user_share={cfg.user_share}, data.max_users={cfg.max_users}), or set data.kcore=none"
        )
    dataset = _number(catalog, interactions, rows, part, cfg)
    return dataset, describe(dataset, counts)


def sample_users(users: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """A seeded sample of at most `limit` of the rows `users` int [n], ascending; all if limit is 0.

    Whether a row is in it depends on (seed, row) and its rank among the others, so a larger limit only adds users.
    """
    if not 0 < limit < len(users):
        return users
    draw = counter.bits(seed, "sample_users", users)
    return np.sort(users[np.argsort(draw, kind="stable")[:limit]])


def _select(catalog, interactions, cfg, seed, counts) -> tuple[np.ndarray, np.ndarray]:
    """Rows that stay, by (user, time), and their part: 0 train, 1 valid, 2 test."""
    backwards = _steps_back(interactions)
    rows, repeated = filters.chronological(interactions, catalog.keys, cfg.ties, seed)
    rows = rows[~repeated]
    sampled = filters.sample_users(
        interactions.user_keys, cfg.user_share, cfg.max_users, cfg.user_sample, seed
    )
    counts["exact_duplicates_dropped"] = int(repeated.sum())
    counts["rows_out_of_time_order"] = backwards
    counts["users_not_sampled"] = int(len(sampled) - sampled.sum())
    rows = rows[sampled[interactions.user[rows]]]
    user, item = interactions.user[rows], interactions.item[rows]
    before = len(distinct(user)), len(distinct(item)), len(rows)
    if cfg.kcore == "reference":
        part, short = filters.last_out_parts(user)
        keep = filters.one_pass_core(user, item, part, cfg.min_user, cfg.min_item)
        rows, part = rows[keep], part[keep]
    else:
        if cfg.kcore == "iterative":
            keep, counts["kcore_rounds"] = filters.iterative_core(
                user, item, cfg.min_user, cfg.min_item
            )
            rows = rows[keep]
        part, short = filters.last_out_parts(interactions.user[rows])
    after = (len(distinct(column[rows])) for column in (interactions.user, interactions.item))
    for what, was, now in zip(
        ("users", "items", "interactions"), before, (*after, len(rows)), strict=True
    ):
        counts[f"{what}_dropped_by_kcore"] = was - now
    counts["users_too_short"] = short
    return rows, part


def _steps_back(interactions: Interactions) -> int:
    """Rows that are earlier than the same user's row before them in the file."""
    rows = np.argsort(interactions.user, kind="stable")
    user, time = interactions.user[rows], interactions.time[rows]
    return int(np.sum((user[1:] == user[:-1]) & (time[1:] < time[:-1])))


def _number(catalog, interactions, rows, part, cfg) -> Dataset:
    """Give users and items their final rows and build the dataset."""
    user_order, item_order = _orders(catalog, interactions, rows, part, cfg)
    user_row = np.zeros(len(interactions.user_keys), dtype=np.int64)
    user_row[user_order] = np.arange(len(user_order))
    item_row = np.zeros(catalog.size, dtype=np.int32)
    item_row[item_order] = np.arange(1, len(item_order) + 1)
    rows_of_user = user_row[interactions.user[rows]]
    order = np.argsort(rows_of_user, kind="stable")
    user, part = rows_of_user[order], part[order]
    item, time = item_row[interactions.item[rows]][order], interactions.time[rows][order]

    def single(which: int) -> tuple[np.ndarray, np.ndarray]:
        items = np.zeros(len(user_order), dtype=np.int32)
        times = np.zeros(len(user_order), dtype=np.int64)
        items[user[part == which]], times[user[part == which]] = (
            item[part == which],
            time[part == which],
        )
        return items, times

    lengths = np.bincount(user[part == 0], minlength=len(user_order))
    train = UserSequences(offsets_of(lengths), item[part == 0], time[part == 0])
    return Dataset(
        called(cfg),
        catalog.take(item_order),
        interactions.user_keys[user_order],
        train,
        *single(1),
        *single(2),
    )


def _orders(catalog, interactions, rows, part, cfg) -> tuple[np.ndarray, np.ndarray]:
    users, items = distinct(interactions.user[rows]), distinct(interactions.item[rows])
    if cfg.kcore != "reference":
        user_order = users[filters.canonical_order(interactions.user_keys[users])]
        return user_order, items[filters.canonical_order(catalog.keys[items])]
    appearance = interactions.item[rows[np.lexsort((np.arange(len(rows)), part))]]
    first = np.unique(appearance, return_index=True)[1]
    return users, appearance[np.sort(first)]  # raw user rows are in order of first appearance


def called(cfg: config.Data) -> str:
    """The name of a dataset: its own, or the folder of the user's files, the category, or the source."""
    if cfg.source == "files":
        return cfg.name or Path(cfg.files.interactions).absolute().parent.name
    return cfg.name or (cfg.category if cfg.source == "amazon" else cfg.source)


def _check(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: use one of {', '.join(SPLITS)}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
