"""Evaluation: vectors of users and items in, ranks and records out. It knows no model.

Sampled ranking (stored candidates) and full ranking come from the same vectors in the same pass (E22).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from llmsrec_jax import config, metrics, parallel
from llmsrec_jax.data.splits import Dataset

USERS_PER_TILE = 256


@runtime_checkable
class Catalogue(Protocol):
    """What a recommender that scores every item is to those who rank; rows are those of the evaluated users."""

    def catalogue(self, rows: np.ndarray) -> np.ndarray:
        """float [n, I] of all items for users `rows` int [n]; column 0 is the pad."""
        ...

    def of(self, rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """float [n, C] of candidates int [n, C]."""
        ...


@dataclass(frozen=True)
class Choices:
    """One that was asked for the users' candidates and knows nothing else (title generation)."""

    scores: np.ndarray  # float [U, C]

    def of(self, rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """As `Catalogue`, of those very candidates."""
        return self.scores[rows]

    def best(self, candidates: np.ndarray, k: int) -> np.ndarray:
        """int [U, at most k]: the best candidates; ties go to the lower column."""
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(candidates, order, axis=1)


Scores = Catalogue | Choices


@dataclass(frozen=True)
class Vectors:
    """What most recommenders are: scores are `user @ item.T`."""

    user: np.ndarray  # float [U, R], rows aligned with the evaluated users
    item: np.ndarray  # float [I, R], row 0 is the pad

    def catalogue(self, rows: np.ndarray) -> np.ndarray:
        """As `Catalogue`."""
        return self.user[rows] @ self.item.T

    def of(self, rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """As `Catalogue`."""
        return np.einsum("ur,ucr->uc", self.user[rows], self.item[candidates])


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay so."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


Counts = tuple[np.ndarray, np.ndarray]  # (above, tied), int [U] or, of several orders, [orders, U]


def encode(
    batches: Iterable[tuple[list[np.ndarray], Any]],
    encoder: Callable[[Any, Any, Any], Any],
    frozen: Any,
    params: Any,
    mesh: parallel.DeviceMesh,
    rows: int,
    advance: Callable[[int], None] = lambda done: None,
    kept: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda rows, values: values,
) -> np.ndarray:
    """[rows, R]: runs `encoder` over planned batches and puts every row where it belongs.

    kept: of rows int [n] and what the encoder returns for them, float32 [n, ..]: what there is to remember, [n, R].
    """
    out: np.ndarray | None = None
    done = np.zeros(rows, bool)  # padding repeats rows, which are to be counted once
    put = partial(parallel.put_batch, mesh=mesh)
    started = ((index, encoder(frozen, params, put(batch))) for index, batch in batches)
    for index, vectors in _one_ahead(started):
        for positions, values in zip(index, np.asarray(vectors), strict=True):
            values = kept(positions, values)
            if out is None:
                out = np.zeros((rows, values.shape[-1]), values.dtype)
            out[positions] = values
        before = done.sum()
        done[np.concatenate(index)] = True
        advance(int(done.sum() - before))
    if out is None:
        raise ValueError("nothing to encode")
    return out


def _one_ahead(started: Iterable[Any]) -> Iterator[Any]:
    """Starts the next before it hands out one: the host prepares a batch while the devices are busy with the last."""
    before: list[Any] = []
    for each in started:
        yield from before
        before = [each]
    yield from before


def check_finite(
    model: str, vectors: Vectors, user_keys: np.ndarray, item_keys: np.ndarray
) -> None:
    """Raises ValueError naming the first user or item whose vector is not finite (D42: NaN is no rank)."""
    for kind, x, keys in (("user", vectors.user, user_keys), ("item", vectors.item, item_keys)):
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if len(bad):
            raise ValueError(
                f"{model}: the vector of {kind} '{keys[bad[0]]}' is not finite ({len(bad)} of {len(x)} {kind}s)"
            )


def _tiles(users: int) -> Iterator[np.ndarray]:
    """Rows, some at a time."""
    for start in range(0, users, USERS_PER_TILE):
        yield np.arange(start, min(start + USERS_PER_TILE, users))


def sampled_ranking(scores: Scores, candidates: np.ndarray) -> Counts:
    """Counts for candidates int [U, C], the target in column 0."""
    tiles = _tiles(len(candidates))
    counts = [metrics.count_above(scores.of(tile, candidates[tile])) for tile in tiles]
    above, tied = zip(*counts, strict=True)
    return np.concatenate(above), np.concatenate(tied)


def full_ranking(
    of: Catalogue, targets: np.ndarray, seen: Callable[[int], np.ndarray] | None
) -> Counts:
    """Counts over the whole catalogue; `seen(row)` are item ids to skip (the target itself is never skipped)."""
    above, tied = np.empty(len(targets), np.int64), np.empty(len(targets), np.int64)
    for tile in _tiles(len(targets)):
        scores = of.catalogue(tile)
        own = scores[np.arange(len(tile)), targets[tile]][:, None]
        allowed = np.ones(scores.shape, bool)
        allowed[:, 0] = False
        if seen is not None:
            for row, user in enumerate(tile):
                allowed[row, seen(int(user))] = False
        allowed[np.arange(len(tile)), targets[tile]] = False
        above[tile] = np.sum((scores > own) & allowed, axis=1)
        tied[tile] = np.sum((scores == own) & allowed, axis=1)
    return above, tied


def selection_metric(counts: Counts, k: int, ties: str) -> dict[str, float]:
    """hr@k, ndcg@k and mrr@k of a ranking: what validations look at (D24)."""
    return {
        f"{name}@{k}": float(metrics.metric(name, k, *counts, ties).mean())
        for name in metrics.GAINS
    }


def values(counts: Counts, cfg: config.Evaluate) -> dict[str, np.ndarray]:
    """{metric: float64 [U]}, of several orders the mean over them."""
    found = {
        f"{name}@{k}": metrics.metric(name, k, *counts, cfg.ties)
        for name in metrics.GAINS
        for k in cfg.ks
    }
    return {name: np.atleast_2d(one).mean(axis=0) for name, one in found.items()}


def records(
    found: dict[str, np.ndarray], slices: dict[str, np.ndarray], common: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of results.json: one per slice and metric; empty slices are left out.

    found: {metric: float [U]}; NaN = it says nothing of this user.
    """
    rows = []
    for name, per_user in found.items():
        for part, mask in slices.items():
            told = per_user[mask & ~np.isnan(per_user)]
            if len(told):
                value, se = metrics.mean_and_se(told)
                row = {"slice": part, "metric": name, "value": value, "se": se}
                rows.append({**common, **row, "users": len(told)})
    return rows


def similarity(original: np.ndarray, permuted: Sequence[np.ndarray]) -> np.ndarray:
    """float64 [U]: cosine of user vectors [U, R] before and after their histories were permuted, mean over permutations (E9)."""
    first = original.astype(np.float64)
    return np.mean([_cosine(first, x.astype(np.float64)) for x in permuted], axis=0)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 [U]: exactly 1 for equal rows, 0 where one is all zeros."""
    dot = lambda x, y: np.sum(x * y, axis=1)
    return dot(a, b) / np.maximum(np.sqrt(dot(a, a) * dot(b, b)), 1e-300)


def top_lists(
    of: Catalogue, users: int, seen: Callable[[int], np.ndarray] | None, k: int
) -> np.ndarray:
    """int32 [U, k]: the k best-scored items of every user, `seen(row)` left out; ties go to the lower item id."""
    out = np.zeros((users, k), np.int32)
    for tile in _tiles(users):
        scores = of.catalogue(tile)
        scores[:, 0] = -np.inf
        for row, of_user in zip(tile, scores, strict=True):
            if seen is not None:
                of_user[seen(int(row))] = -np.inf
            least = np.partition(of_user, -k)[-k]
            found = np.flatnonzero(of_user >= least)
            out[row] = found[np.argsort(-of_user[found], kind="stable")[:k]]
    return out


def popularity(dataset: Dataset, users: np.ndarray) -> Vectors:
    """The order-blind, user-blind floor: training counts (S16)."""
    return Vectors(np.ones((len(users), 1)), dataset.counts[:, None].astype(np.float64))
