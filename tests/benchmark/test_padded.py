"""The padded layout is the same job: same prompts, same losses step by step."""

import jax
import numpy as np

from llmsrec_jax.benchmark import versus


def test_same_training(bench):
    """The second loss agrees only if the gradients of the first step did."""
    found = versus.train(bench, ("padded",), 2)
    np.testing.assert_allclose(found["losses"]["padded"], found["losses"]["ours"], rtol=1e-5)
    assert found["losses"]["ours"][0] != found["losses"]["ours"][1]
    assert found["times_faster"]["padded"].min > 0


def test_two_blocks_as_wide_as_the_longest_without_prefix(bench):
    whole = bench.whole(0)
    wide = jax.tree.map(lambda x: x[0, 0], whole.widened().prompts)
    for prompts, grid in zip((whole.users, whole.items), wide.live.grids, strict=True):
        np.testing.assert_array_equal(grid.length, prompts.lengths)
        assert grid.at.shape[1] == -(-prompts.lengths.max() // 8) * 8
    assert wide.prefix_ids.size == 0
    assert wide.ids.size == sum(grid.at.size for grid in wide.live.grids)
    np.testing.assert_array_equal(whole.candidates, bench.batches(0).candidates[0])
