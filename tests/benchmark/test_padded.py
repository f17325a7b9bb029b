"""The padded layout is the same job: same prompts, same losses step by step."""

import numpy as np

from llmsrec_jax.benchmark import padded, versus


def test_same_training(bench):
    """The second loss agrees only if the gradients of the first step did."""
    found = versus.train(bench, ("padded",), 2)
    np.testing.assert_allclose(found["losses"]["padded"], found["losses"]["ours"], rtol=1e-5)
    assert found["losses"]["ours"][0] != found["losses"]["ours"][1]
    assert found["times_faster"]["padded"].min > 0


def test_one_block_as_wide_as_the_longest_without_prefix(bench):
    batch = bench.epoch.sample[0]
    wide = padded.widened(batch)
    for ours, (block,) in ((batch.users, wide.users), (batch.items, wide.items)):
        lengths = np.concatenate([(g.prefix_len + g.length)[0] for g in ours])
        np.testing.assert_array_equal(block.length[0], lengths)
        assert block.prefix_ids.shape[2] == 0
        assert block.ids.shape[2] == -(-lengths.max() // 8) * 8
    np.testing.assert_array_equal(wide.candidates, batch.candidates)
