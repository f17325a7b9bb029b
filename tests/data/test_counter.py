"""Random numbers by key: same key, same number; and the numbers look uniform."""

import numpy as np

from llmsrec_jax.data import counter


def test_a_value_depends_on_its_keys_only():
    users = np.asarray([5, 1, 9])
    together = counter.bits(3, "purpose", users[:, None], np.arange(4))
    alone = counter.bits(3, "purpose", 9, 2)
    assert together.shape == (3, 4) and together.dtype == np.uint64
    assert together[2, 2] == alone
    others = [
        counter.bits(4, "purpose", 9, 2),
        counter.bits(3, "other", 9, 2),
        counter.bits(3, "purpose", 2, 9),
    ]
    assert all(other != alone for other in others)


def test_negative_and_huge_seeds_are_legal():
    drawn = {int(counter.bits(seed, 1)) for seed in (-1, 0, 1, 2**63, 2**64 + 5)}
    assert len(drawn) == 5


def test_below_is_uniform_and_inside():
    draws = counter.below(7, 0, np.arange(70_000))
    counts = np.bincount(draws, minlength=7)
    assert len(counts) == 7
    assert np.abs(counts - 10_000).max() < 5 * np.sqrt(10_000 * 6 / 7)


def test_text_bits_follow_the_name():
    first, second = counter.text_bits(np.asarray(["ä", "b"])), counter.text_bits(np.asarray(["b"]))
    assert first[1] == second[0] and first[0] != first[1]
    assert counter.text_bits(np.asarray([], dtype=str)).shape == (0,)
