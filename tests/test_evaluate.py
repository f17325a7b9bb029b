"""Ranking from vectors: both protocols, masks, batch independence, errors."""

import numpy as np
import pytest

from llmsrec_jax import config, evaluate, parallel
from llmsrec_jax.evaluate import Vectors
from tests.factories import random_dataset


def vectors(users=7, items=30, seed=0) -> Vectors:
    rng = np.random.default_rng(seed)
    return Vectors(
        rng.normal(size=(users, 5)).astype(np.float32),
        rng.normal(size=(items, 5)).astype(np.float32),
    )


def test_sampled_ranking_counts_better_candidates():
    v = vectors()
    candidates = np.stack([np.random.default_rng(u).permutation(29)[:10] + 1 for u in range(7)])
    above, tied = evaluate.sampled_ranking(v, candidates)
    for row in range(7):
        scores = v.item[candidates[row]] @ v.user[row]
        assert above[row] == (scores[1:] > scores[0]).sum()
    assert not tied.any()


def test_full_ranking_masks_seen_items_but_not_the_target():
    v = Vectors(np.array([[1.0], [1.0]]), np.array([[99.0], [5.0], [4.0], [3.0], [3.0], [1.0]]))
    targets = np.array([3, 3])
    above, tied = evaluate.full_ranking(v, targets, None)
    np.testing.assert_array_equal(above, [2, 2])  # the pad row never counts
    np.testing.assert_array_equal(tied, [1, 1])
    seen = [np.array([1, 3]), np.array([4, 5])]
    above, tied = evaluate.full_ranking(v, targets, lambda row: seen[row])
    np.testing.assert_array_equal(above, [1, 2])
    np.testing.assert_array_equal(tied, [1, 0])


@pytest.mark.parametrize("tile", [1, 3, 1000])
def test_tile_size_changes_nothing(monkeypatch, tile):
    v, targets = vectors(users=9), np.arange(1, 10)
    candidates = np.random.default_rng(0).integers(1, 30, (9, 12))
    sampled, full = evaluate.sampled_ranking(v, candidates), evaluate.full_ranking(v, targets, None)
    monkeypatch.setattr(evaluate, "USERS_PER_TILE", tile)
    np.testing.assert_array_equal(evaluate.sampled_ranking(v, candidates), sampled)
    np.testing.assert_array_equal(evaluate.full_ranking(v, targets, None), full)


def test_both_protocols_agree_when_the_candidates_are_the_catalogue():
    v = vectors(users=6, items=20)
    targets = np.array([4, 4, 1, 19, 7, 2])
    rest = [np.setdiff1d(np.arange(1, 20), [t]) for t in targets]
    candidates = np.concatenate([targets[:, None], np.stack(rest)], axis=1)
    np.testing.assert_array_equal(
        evaluate.sampled_ranking(v, candidates)[0], evaluate.full_ranking(v, targets, None)[0]
    )


def test_nan_is_an_error_that_names_the_user():
    v = vectors(users=3)
    v.user[1, 2] = np.nan
    with pytest.raises(ValueError, match="m: the vector of user 'bob' is not finite"):
        evaluate.check_finite("m", v, np.array(["ann", "bob", "eve"]), np.arange(30).astype(str))


def test_cosine_ignores_lengths():
    v = vectors()
    scaled = Vectors(v.user * 3, v.item * np.arange(1, 31, dtype=np.float32)[:, None])
    np.testing.assert_allclose(evaluate.unit(scaled.item), evaluate.unit(v.item), rtol=1e-5)


def test_popularity_ranks_by_training_counts():
    made = random_dataset()
    users = np.arange(5)
    v = evaluate.popularity(made, users)
    np.testing.assert_array_equal(v.user @ v.item.T, np.tile(made.counts, (5, 1)))


def test_records_carry_protocol_slice_and_error():
    counts = {"sampled": (np.array([0, 3, 50]), np.zeros(3, int))}
    masks = {
        "all": np.ones(3, bool),
        "cold": np.array([True, False, False]),
        "none": np.zeros(3, bool),
    }
    found = evaluate.values(counts["sampled"], config.Evaluate(ks=(1, 10)))
    rows = evaluate.records(found, masks, {"dataset": "d", "protocol": "sampled"})
    assert {r["slice"] for r in rows} == {"all", "cold"}
    row = next(r for r in rows if r["metric"] == "hr@10" and r["slice"] == "all")
    assert (
        row["value"] == pytest.approx(2 / 3) and row["users"] == 3 and row["protocol"] == "sampled"
    )
    assert row["se"] == pytest.approx(np.std([1, 1, 0], ddof=1) / 3**0.5)


def test_lists_leave_out_the_pad_and_what_was_seen():
    v = Vectors(np.array([[1.0]]), np.array([[9.0], [1.0], [5.0], [3.0], [4.0]]))
    np.testing.assert_array_equal(evaluate.top_lists(v, 1, lambda row: np.array([2]), 2)[0], [4, 3])


def test_encoding_keeps_a_batch_ahead():
    """The host prepares and starts the next one while the devices are busy with the last."""
    seen = []

    class Running:
        def __init__(self, batch):
            self.number = int(batch[0])
            seen.append(f"start {self.number}")

        def __array__(self, dtype=None, copy=None):
            seen.append(f"fetch {self.number}")
            return np.full((1, 1, 2), self.number, np.float32)

    mesh = parallel.make_mesh(config.Mesh(devices=1))
    batches = (([np.array([2 - number])], np.full(1, number)) for number in range(3))
    start = lambda frozen, params, batch: Running(batch)
    got = evaluate.encode(batches, start, None, None, mesh, 3)
    np.testing.assert_array_equal(got[:, 0], [2, 1, 0])
    assert seen == ["start 0", "start 1", "fetch 0", "start 2", "fetch 1", "fetch 2"]


def test_encoding_remembers_what_is_asked_for():
    """Of every row, whose number is told, in the dtype in which it was made."""
    mesh = parallel.make_mesh(config.Mesh(devices=1))
    batches = [([np.array(rows)], np.array([rows])) for rows in ([2, 0], [1, 1])]
    encoder = lambda frozen, params, batch: np.tile(batch[..., None], 3).astype(np.float32)
    kept = lambda rows, values: np.stack([values.sum(axis=1), 10.0 * rows], axis=1)
    got = evaluate.encode(batches, encoder, None, None, mesh, 3, kept=kept)
    assert got.dtype == np.float64 and got.tolist() == [[0, 0], [3, 10], [6, 20]]
