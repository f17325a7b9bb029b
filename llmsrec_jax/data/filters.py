"""What stands between a raw table and sequences: duplicates, user sample, order and ties, k-core. Row masks and orders only."""

import random

import numpy as np

from llmsrec_jax.data import counter
from llmsrec_jax.data.interactions import Interactions


def canonical_order(keys: np.ndarray) -> np.ndarray:
    """int64 [n]: an order of ids that no file order can change: shorter first, then by text (numbers come out numeric)."""
    return np.lexsort((keys, np.char.str_len(keys)))


def sample_users(
    user_keys: np.ndarray, share: float, max_users: int, how: str, seed: int
) -> np.ndarray:
    """bool [U]: a seeded sample of int(share * U) users (D34), at most max_users of them (0 = no limit).

    hash = by name and not by row; reference = the authors' draw over users in file order, theirs with seed 0.
    """
    size = int(len(user_keys) * share)
    size = min(size, max_users) if max_users else size
    keep = np.zeros(len(user_keys), dtype=bool)
    if how == "reference":
        keep[random.Random(seed).sample(range(len(user_keys)), size)] = True
        return keep
    draw = counter.bits(seed, "sample", counter.text_bits(user_keys))
    keep[np.argsort(draw, kind="stable")[:size]] = True
    return keep


def chronological(
    table: Interactions, item_keys: np.ndarray, ties: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows by (user, time, tie policy) and which of them repeat another row exactly.

    Ties (D39): random = by a hash of (seed, user, item), so the file order is irrelevant; file = row order; item = item id.
    Returns rows int64 [N] and repeated bool [N] (aligned with rows; of equal rows the first in the file is kept).
    """
    rows = order(table.user, table.time)
    user, time = table.user[rows], table.time[rows]
    follows = np.zeros(len(rows), dtype=bool)  # at the same moment as the row before
    follows[1:] = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    tied = follows.copy()
    tied[:-1] |= follows[1:]
    places, moment = np.flatnonzero(tied), np.cumsum(~follows)[tied]
    some = rows[places]
    repeated = np.zeros(len(rows), dtype=bool)
    some = some[np.lexsort((_tie(table, some, item_keys, ties, seed), moment))]
    rows[places] = some
    by_item = np.lexsort((some, table.item[some], moment))
    same = np.diff(moment[by_item]) == 0
    same &= np.diff(table.item[some[by_item]]) == 0
    repeated[places[by_item[1:][same]]] = True
    return rows, repeated


def order(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """int64 [n]: rows by (user, time), else as they are; at once for rows that are in order, as in most published files."""
    ahead = user[1:] > user[:-1]
    if np.all(ahead | ((user[1:] == user[:-1]) & (time[1:] >= time[:-1]))):
        return np.arange(len(user))
    return np.lexsort((time, user))


def _tie(
    table: Interactions, rows: np.ndarray, item_keys: np.ndarray, ties: str, seed: int
) -> np.ndarray:
    """[n]: what decides between `rows` of one user and one moment."""
    if ties == "file":
        return rows
    if ties == "item":
        rank = np.empty(len(item_keys), dtype=np.int64)
        rank[canonical_order(item_keys)] = np.arange(len(item_keys))
        return rank[table.item[rows]]
    names = (table.user_keys, table.user[rows]), (item_keys, table.item[rows])
    return counter.bits(seed, "ties", *(_name_bits(*name) for name in names))


def _name_bits(keys: np.ndarray, codes: np.ndarray) -> np.ndarray:
    found, place = np.unique(codes, return_inverse=True)
    return counter.text_bits(keys[found])[place]


def iterative_core(
    user: np.ndarray, item: np.ndarray, min_user: int, min_item: int
) -> tuple[np.ndarray, int]:
    """bool [N]: the largest set of rows in which every user and item has its minimum; and the rounds it took."""
    rows, rounds = np.arange(len(user)), 0
    while True:
        keep = _frequent(user[rows], item[rows], min_user, min_item)
        if keep.all():
            mask = np.zeros(len(user), dtype=bool)
            mask[rows] = True
            return mask, rounds
        rows, rounds = rows[keep], rounds + 1


def one_pass_core(
    user: np.ndarray, item: np.ndarray, part: np.ndarray, min_user: int, min_item: int
) -> np.ndarray:
    """bool [N]: the authors' filter (D34): one pass over all counts, then the training part keeps min_user rows or the user goes.

    `part` [N] is 0 train, 1 valid, 2 test, fixed before the filter; so some users end up without a valid or test item.
    """
    keep = _frequent(user, item, min_user, min_item)
    training = np.bincount(user[keep & (part == 0)], minlength=user.max(initial=0) + 1)
    return keep & (training[user] >= min_user)


def _frequent(user: np.ndarray, item: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
    return (np.bincount(user)[user] >= min_user) & (np.bincount(item)[item] >= min_item)


def last_out_parts(user: np.ndarray) -> tuple[np.ndarray, int]:
    """int8 [N] for rows sorted by user and time: last = 2 (test), second last = 1 (valid), else 0; and the users too short.

    A user with fewer than 3 rows stays in training as a whole.
    """
    lengths = np.bincount(user) if len(user) else np.zeros(0, dtype=np.int64)
    end = np.cumsum(lengths)
    from_end = end[user] - 1 - np.arange(len(user))
    part = np.where(from_end == 0, 2, np.where(from_end == 1, 1, 0))
    part[lengths[user] < 3] = 0
    return part.astype(np.int8), int(np.sum((lengths > 0) & (lengths < 3)))
