"""Work is counted from what is in a batch: real prefixes, no padding, every row once."""

import numpy as np
import pytest

from llmsrec_jax import config
from llmsrec_jax.batch import HISTORY, SequenceBatch
from llmsrec_jax.benchmark import work
from llmsrec_jax.benchmark.system import System
from llmsrec_jax.benchmark.timing import Spread
from llmsrec_jax.benchmark.work import Work
from llmsrec_jax.llama import flops


def test_a_step_costs_what_its_prompts_cost(bench):
    whole, sizes = bench.whole(0), bench.sizes
    wanted = []
    for prompts in (whole.users, whole.items):
        slots = float(np.sum(prompts.kind == HISTORY))
        lengths = prompts.prefix_len.astype(int), prompts.lengths - prompts.prefix_len
        wanted.append(sizes.prompts(*lengths, slots, training=True))
    found = sizes.step(whole)
    assert found.rows == bench.system.cfg.train.batch
    assert found.flops == pytest.approx(sum(w.flops for w in wanted))
    assert (found.tokens, found.live) == tuple(
        sum(x) for x in zip(*((w.tokens, w.live) for w in wanted), strict=True)
    )


def test_prefixes_at_hand_are_no_work(bench):
    """Those of items only; the job without shortcuts costs what it did."""
    cfg = config.apply(bench.system.cfg, {"llm.item_store": "hbm"})
    sizes, whole = work.Sizes(cfg, bench.system.llama), bench.whole(0)
    saved = flops.prefill(bench.system.llama, whole.items.prefix_len)
    assert bench.sizes.step(whole).flops - sizes.step(whole).flops == pytest.approx(saved)
    assert sizes.encoding(whole.users) == bench.sizes.encoding(whole.users)
    assert sizes.step(whole).whole == bench.sizes.step(whole).whole


def test_with_lora_every_token_is_trained_through(bench):
    """Twice q and v of rank 4, forward and both ways back; an encoding keeps its constant prefix."""
    cfg = config.apply(bench.system.cfg, {"lora.rank": 4})
    sizes, llama = work.Sizes(cfg, bench.system.llama), bench.system.llama
    prefix, live, none = np.array([3]), np.array([2]), np.array([0])
    added = flops.lora(llama, 4, ("q", "v"), 5, 1)
    plain, found = (each.prompts(prefix, live, 1, training=False) for each in (bench.sizes, sizes))
    assert found.flops == plain.flops + added and found.live == 2
    whole = bench.sizes.prompts(none, prefix + live, 1, training=True)
    trained = sizes.prompts(prefix, live, 1, training=True)
    assert trained.flops == whole.flops + 3 * added and trained.live == trained.tokens == 5


def test_heads_by_hand(bench):
    """f_I per slot 2 (8 x 32 + 32 x 32), a head 2 (32 x 16 + 16 x 8); three times that in training."""
    prefix, live, llama = np.array([3]), np.array([2]), bench.system.llama
    found = bench.sizes.prompts(prefix, live, 1, training=False)
    heads = 2 * (8 * 32 + 32 * 32) + 2 * (32 * 16 + 16 * 8)
    backbone = flops.prefill(llama, prefix) + flops.extend(llama, prefix, live)
    assert found == Work(1, 5, 2, backbone + heads, found.whole)
    trained = bench.sizes.prompts(prefix, live, 1, training=True)
    assert trained.flops == backbone + flops.extend_backward(llama, prefix, live) + 3 * heads
    told = bench.sizes.prompts(prefix, live, 1, 1, training=False)
    assert told.flops - found.flops == 2 * (8 * 32 + 32 * 32)
    joint = {"alignment.text": "any", "alignment.middle": 24}
    wide = work.Sizes(config.apply(bench.system.cfg, joint), llama)
    wider = wide.prompts(prefix, live, 1, 1, training=False)
    assert wider.flops - told.flops == 2 * (24 - 8) * 32  # of the item alone


def test_windows_by_hand():
    """Three columns, E = 4, one block: six products of 4 x 4 each, 1 + 2 + 3 keys seen, two scores; backward twice that."""
    cfg = config.Teacher(d=4, blocks=1)
    history = np.array([[0, 5, 6, 7]])
    found = work.windows(cfg, 9, (SequenceBatch(history, history, history[..., None]),))
    forward = 3 * 6 * 2 * 16 + 2 * 2 * 4 * 6 + 3 * 2 * 2 * 4
    assert found == Work(1, 3, 3, 3 * forward, 3 * forward)


def test_rates_are_of_the_median():
    found = work.rates(Work(10, 40, 20, 100.0, 300.0), Spread(1, 2, 9), peak=500)
    assert found["rows_per_s"] == 5 and found["live_tokens_per_s"] == 10
    assert found["share_of_peak"] == 0.1 and found["whole_share_of_peak"] == 0.3


def test_what_stands_for_items_has_a_width_of_its_own(bench):
    """A-LLMRec's joint embeddings; those of users stay the teacher's."""
    joint = {"alignment.text": "any", "alignment.middle": 24}
    other = System(config.apply(bench.system.cfg, joint), bench.system.shape)
    assert other.cf_items.shape == (other.made.dataset.catalog.size, 24)
    assert other.cf_users.shape[1] == bench.system.cf_items.shape[1] == 8
