"""Negatives and candidate lists, counter-based: a user's draw depends on (seed, purpose, user row, catalogue), not on the company.

Every list is unique within a user. Candidates never contain a known positive (D40), training negatives no training item (D26).
"""

from pathlib import Path
from typing import Any

import numpy as np

from llmsrec_jax.data import counter, storage
from llmsrec_jax.data.interactions import UserSequences
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.data.splits import Dataset
from llmsrec_jax.data.stretches import Stretches
from llmsrec_jax.data.unseen import Unseen

_BLOCK = 8192  # users drawn at once: bounds the memory


def candidates(
    dataset: Dataset, split: str, users: np.ndarray, num_negatives: int, sampling: str, seed: int
) -> np.ndarray:
    """int32 [n, 1 + num_negatives]: column 0 the target, then unique items that the user has no interaction with.

    sampling: uniform, or popularity (without replacement, by training count).
    Raises ValueError where a user has no target or the catalogue is too small.
    """
    users = np.asarray(users, dtype=np.int64)
    targets = dataset.targets(split, users)
    if not targets.all():
        name = str(dataset.user_keys[users[np.flatnonzero(targets == 0)[0]]])
        raise ValueError(
            f"user {name!r} has no {split} target: rank only Dataset.eligible({split!r})"
        )
    sets = dataset.known().take(users)
    drawn = _draw(dataset, sets, users, num_negatives, sampling, ("candidates", split), seed)
    return np.concatenate([targets[:, None], drawn], axis=1)


def save_candidates(folder: Path, split: str, users: np.ndarray, candidates: np.ndarray) -> None:
    """Candidate lists int32 [n, C] of `users` int32 [n], stored once with the run."""
    storage.write_arrays(
        Path(folder) / f"candidates_{split}.npz", users=users, candidates=candidates
    )


def load_candidates(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(users, candidates) of save_candidates. A missing or damaged file is a ValueError naming it."""
    path = Path(folder) / f"candidates_{split}.npz"
    arrays = storage.read_arrays(path)
    try:
        return arrays["users"], arrays["candidates"]
    except KeyError as error:
        raise ValueError(storage.damaged(path, f"no {error} in it")) from error


def train_negatives(
    samples: Samples, rows: np.ndarray, epoch: int, num: int, exclude: str, seed: int
) -> np.ndarray:
    """int32 [n, num] unique uniform negatives of samples `rows`, a function of (seed, epoch, user, items after the target).

    exclude: train = no training item of the user (D26); history = not the model's input only, so that the target itself
    can be drawn, as in the authors' code. Validation and test items can be drawn: never to see them here would give them away.
    """
    users = np.asarray(samples.users[rows], dtype=np.int64)
    if exclude == "train":
        sets = samples.dataset.train.take(users)
    elif exclude == "history":
        sets = samples.take(rows)
    else:
        raise ValueError(f"train.exclude={exclude!r}: use train or history")
    key = epoch + (samples.later[rows] << 32)  # of a user's last target: the epoch alone
    return _draw(samples.dataset, sets, users, num, "uniform", ("train", key), seed)


def shown(users: np.ndarray, number: int, seed: int, *keys: Any) -> np.ndarray:
    """int64 [n, number]: in which order each of `users` (int [n]) is shown so many candidates, a function of (seed, keys, user)."""
    keys = tuple(key[:, None] if np.ndim(key) else key for key in keys)
    drawn = counter.bits(seed, "shown", *keys, np.asarray(users)[:, None], np.arange(number))
    return np.argsort(drawn, axis=1, kind="stable")


def teacher_negatives(
    dataset: Dataset, of: Stretches, positive: np.ndarray, num: int, seed: int, epoch: int
) -> np.ndarray:
    """int32 [B, L, num]: uniform negatives per position of `positive` [B, L] (0 = pad), none of the user's training items.

    A function of (seed, epoch, user, items behind the stretch, distance from the right edge), so the window's width does not matter.
    """
    unseen = dataset.unseen
    users = np.asarray(of.users, dtype=np.int64)[:, None, None]
    key = (epoch + (of.back << 32))[:, None, None]  # of a user's end: the epoch alone
    if np.any(unseen.available[users] == 0):
        name = str(dataset.user_keys[users[np.argmin(unseen.available[users[:, 0, 0]]), 0, 0]])
        raise ValueError(f"user {name!r} has every item in training: no negative is left")
    place, which = np.arange(positive.shape[1])[::-1, None], np.arange(num)
    rank = counter.below(unseen.available[users], seed, "teacher", key, users, place, which)
    return np.where(positive[..., None] > 0, unseen.item(users, rank), 0).astype(np.int32)


def cuts(
    lengths: np.ndarray, share: float, users: np.ndarray, back: np.ndarray, seed: int, epoch: int
) -> np.ndarray:
    """int64 [n]: how many items are cut off behind windows of `lengths` items; -1 = the window stays whole (S4).

    `share` of them are cut, anywhere behind their second item or a later one. A function of (seed, epoch, user, where the window ends).
    """
    keys = seed, "cut", epoch, users, back
    behind = counter.below(np.maximum(lengths - 1, 1), *keys, "at")
    return np.where(counter.uniform(*keys) < share, behind, -1)


def hidden(
    window: np.ndarray, share: float, users: np.ndarray, back: np.ndarray, seed: int, epoch: int
) -> np.ndarray:
    """bool [n, L]: the items of left-padded windows [n, L] to be guessed (S4).

    `share` of the items each by its own draw, the luckiest one always. A function of (seed, epoch, user, where the window ends,
    distance from the right edge), as `teacher_negatives`.
    """
    place = np.arange(window.shape[1])[::-1]
    keys = np.asarray(users)[:, None], np.asarray(back)[:, None], place
    drawn = np.where(window > 0, counter.uniform(seed, "hidden", epoch, *keys), 2.0)
    return ((drawn < share) | (drawn == drawn.min(axis=1, keepdims=True))) & (window > 0)


def _draw(
    dataset: Dataset,
    sets: UserSequences,
    users: np.ndarray,
    num: int,
    sampling: str,
    labels: tuple[str, Any],
    seed: int,
) -> np.ndarray:
    """int32 [n, num] unique items outside `sets` [n]: the first num of each user's own endless stream of draws."""
    purpose, key = labels
    drawn = np.zeros((len(users), num), dtype=np.int32)
    for start in range(0, len(users), _BLOCK):
        block = users[start : start + _BLOCK]
        rows = np.arange(start, start + len(block))
        unseen = Unseen(sets.take(rows), dataset.catalog.size)
        if sampling == "uniform":
            draw = _Uniform(unseen)
        elif sampling == "popularity":
            draw = _Popularity(unseen, dataset.counts)
        else:
            raise ValueError(f"evaluate.sampling={sampling!r}: use uniform or popularity")
        few = draw.available < num
        if few.any():
            worst = int(np.argmin(draw.available))
            raise ValueError(
                f"user {str(dataset.user_keys[block[worst]])!r} leaves only {draw.available[worst]} of "
                f"{dataset.catalog.size - 1} items to draw from, {num} negatives are asked for: lower {'evaluate' if purpose == 'candidates' else 'train'}.negatives"
            )
        stream = _Stream(counter.bits(seed, purpose, key[rows] if np.ndim(key) else key, block))
        drawn[start : start + _BLOCK] = _first_unique(draw, stream, len(block), num)
    return drawn


class _Stream:
    """Random numbers by (user, place in the user's stream)."""

    def __init__(self, user_bits: np.ndarray):
        self.user_bits = user_bits  # uint64 [n]

    def bits(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        """uint64 [n, m]."""
        return counter.bits(0, self.user_bits[rows][:, None], places)


class _Uniform:
    """Every item outside the set alike."""

    def __init__(self, unseen: Unseen):
        self.unseen, self.available = unseen, unseen.available

    def propose(self, rows: np.ndarray, random: np.ndarray) -> np.ndarray:
        """int32 [n, m] items; 0 = a miss."""
        limit = self.available[rows][:, None].astype(np.uint64)
        rank = ((random >> np.uint64(32)) * limit) >> np.uint64(32)
        return self.unseen.item(rows[:, None], rank.astype(np.int64))

    def weights(self, row: int) -> np.ndarray:
        """float64 [I]."""
        items = np.arange(self.unseen.size)
        return np.where(self.unseen.contains(np.asarray(row), items), 0.0, 1.0) * (items > 0)


class _Popularity:
    """Items outside the set in proportion to their training count."""

    def __init__(self, unseen: Unseen, counts: np.ndarray):
        self.unseen, self.counts = unseen, counts
        self.cumulative = np.cumsum(counts)
        rows = unseen.pairs // unseen.size
        taken = np.bincount(
            rows, weights=counts[unseen.pairs % unseen.size] > 0, minlength=len(unseen.available)
        )
        self.available = (np.sum(counts > 0) - taken).astype(np.int64)

    def propose(self, rows: np.ndarray, random: np.ndarray) -> np.ndarray:
        """int32 [n, m] items; 0 = a miss (the item drawn is in the set)."""
        total = np.uint64(self.cumulative[-1])
        share = ((random >> np.uint64(32)) * total) >> np.uint64(32)
        item = np.searchsorted(self.cumulative, share.astype(np.int64), side="right")
        return np.where(self.unseen.contains(rows[:, None], item), 0, item).astype(np.int32)

    def weights(self, row: int) -> np.ndarray:
        """float64 [I]."""
        inside = self.unseen.contains(np.asarray(row), np.arange(self.unseen.size))
        return np.where(inside, 0.0, self.counts)


def _first_unique(draw: Any, stream: _Stream, n: int, num: int) -> np.ndarray:
    """int32 [n, num]: the first num distinct hits of every row's stream.

    A short look at the stream serves most rows and a longer one most others; a row that is still short (a catalogue little
    larger than num, or a few very popular items) is drawn exactly, without replacement. Which of the three a row takes
    depends on the row alone.
    """
    result = np.zeros((n, num), dtype=np.int32)
    rows = np.arange(n)
    for length in (num + num // 8 + 8, 8 * num + 64):
        items = draw.propose(rows, stream.bits(rows, np.arange(length)))
        fresh = _first_occurrences(items)
        rank = np.cumsum(fresh, axis=1)
        done = rank[:, -1] >= num
        chosen = fresh & (rank <= num) & done[:, None]
        result[rows[done]] = items[chosen].reshape(-1, num)
        rows = rows[~done]
        if not len(rows):
            break
    for row in rows:
        result[row] = _without_replacement(draw.weights(row), stream, row, num)
    return result


def _first_occurrences(items: np.ndarray) -> np.ndarray:
    """bool [n, m]: not 0, and not seen before in its row."""
    m = items.shape[1]
    packed = np.sort(items.astype(np.int64) * m + np.arange(m), axis=1)
    ordered, place = packed // m, packed % m
    first = ordered > 0
    first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    fresh = np.empty_like(first)
    np.put_along_axis(fresh, place, first, axis=1)
    return fresh


def _without_replacement(weights: np.ndarray, stream: _Stream, row: int, num: int) -> np.ndarray:
    """int32 [num]: successive draws in proportion to the weights (exponential races)."""
    items = np.flatnonzero(weights)
    random = stream.bits(np.asarray([row]), 2**40 + items)[0]
    waiting = -np.log((random >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54)
    return items[np.argsort(waiting / weights[items], kind="stable")[:num]].astype(np.int32)
