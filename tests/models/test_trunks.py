"""LLM-SRec on samples that share a trunk: hidden states, loss and gradients are those of the samples apart."""

import gzip
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax.batch import LLMBatch
from llmsrec_jax.data.interactions import Catalog
from llmsrec_jax.llama import attention, weights
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.loaders import LLMBatches
from llmsrec_jax.models import llm4rec
from llmsrec_jax.prompts.prompts import PromptBuilder
from llmsrec_jax.prompts.tokens import ItemTokens, Tokenizer
from llmsrec_jax.prompts.trunks import Trunks
from tests.models.test_llm4rec import LIMIT, SUMMED_LIMIT, ZERO_GRADIENT
from tests.systems import System, named, relative_error, system

SETTINGS = {
    **{"train.targets": "all", "train.batch": 12, "train.negatives": 2, "prompts.history_len": 6},
    **{"train.length_groups": 2, "train.shapes": 2},
}


@pytest.fixture(scope="module")
def made() -> System:
    return system(SETTINGS, users=16, items=40)


@pytest.fixture(scope="module")
def real(made, shared) -> System:
    """Beauty's titles in the tokens of a published tokenizer."""
    with gzip.open(shared / "data" / "amazon2014_beauty" / "items.jsonl.gz", "rt") as lines:
        titles = ["", *(json.loads(next(lines)).get("title") or "Empty title" for _ in range(40))]
    catalog = Catalog(made.dataset.catalog.keys, titles, made.dataset.catalog.has_title)
    tokenizer = Tokenizer.load(shared / "data" / "llama_titles")
    tokens = ItemTokens.build(tokenizer, catalog, made.cfg.prompts.wording, progress=iter)
    tiny = weights.random(llama_config.size("tiny"), 0, jnp.float32, tokenizer.vocab_size)
    graph, state = nnx.split(tiny)
    return replace(
        made,
        dataset=replace(made.dataset, catalog=catalog),
        builder=PromptBuilder(tokenizer, tokens, catalog, made.cfg.prompts),
        llama=graph,
        frozen=made.frozen._replace(llama=state),
    )


def both(made: System, monkeypatch, parts: int) -> tuple[LLMBatches, LLMBatches]:
    """Batches of the same samples, in rows and apart."""
    shared = made.batches(changes={"train.parts": parts})
    with monkeypatch.context() as patch:
        apart = lambda builder, samples: Trunks.apart(builder.user_lengths(samples))
        patch.setattr(Trunks, "of", apart)
        alone = made.batches(changes={"train.parts": parts})
    alone.order = shared.order
    return shared, alone


def live(batch: LLMBatch) -> int:
    """Tokens that are fed live."""
    return sum(int(grid.length.sum()) for grid in batch.prompts.live.grids)


def computed(made: System, batch: LLMBatch):
    """(hidden states of users and items [parts, n, D], loss, gradients of the trainables and of the teacher's items)."""

    def total(params, cf_items, data):
        model, llama = made.merged(params)
        frozen = made.frozen._replace(cf_items=cf_items)
        loss, _ = llm4rec.loss(model, llama, data, frozen, made.cfg)
        h_PBD = jax.lax.map(lambda one: llm4rec.hidden(model, llama, one, frozen), data.prompts)
        return loss, h_PBD

    function = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (loss, h_PBD), gradients = function(made.params, made.frozen.cf_items, batch)
    return np.asarray(h_PBD), loss, gradients


@pytest.mark.parametrize(
    "which, parts, block",
    [("made", 2, 16), ("real", 1, 128)],
    ids=["in parts, row by row", "real titles"],
)
def test_a_row_is_its_prompts(request, monkeypatch, which, parts, block):
    """Also where attention of processors goes row by row, in blocks of so many queries."""
    monkeypatch.setattr(attention, "MIN_BLOCK", block)
    system = request.getfixturevalue(which)
    batches = both(system, monkeypatch, parts)
    drop = lambda batch: jax.tree.map(lambda x: x[0], batch)
    one, other = (drop(each(0)) for each in batches)
    assert one.prompts.outs is not None and other.prompts.outs is None
    assert live(one) < live(other)
    (h, loss, (grads, items)), (wanted_h, wanted, (wanted_grads, wanted_items)) = (
        computed(system, batch) for batch in (one, other)
    )
    samples, alone = (each.members(0)[0].ravel() for each in batches)
    users = lambda h, n: h[:, :n].reshape(-1, h.shape[-1])
    n = len(samples) // parts
    found, want = users(h, n)[np.argsort(samples)], users(wanted_h, n)[np.argsort(alone)]
    assert np.linalg.matrix_rank(want) == 12
    for row, expected in zip(found, want, strict=True):
        assert relative_error(row, expected) < LIMIT
    assert relative_error(loss, wanted) < LIMIT
    assert relative_error(items, wanted_items) < SUMMED_LIMIT
    for name, gradient in named(wanted_grads).items():
        if name != ZERO_GRADIENT:
            assert relative_error(named(grads)[name], gradient) < SUMMED_LIMIT, name


def test_a_prompt_knows_nothing_of_the_others_in_its_row(made):
    """Its gradient reaches its own items alone."""
    batches = made.batches()
    data = jax.tree.map(lambda x: x[0, 0], batches(0).prompts)
    samples = batches.members(0)[0].ravel()
    is_branch = batches.trunks.branches(samples)
    model, llama = made.merged()

    def state(cf_items, number):
        frozen = made.frozen._replace(cf_items=cf_items)
        return llm4rec.hidden(model, llama, data, frozen)[number].sum()

    gradient = jax.jit(jax.grad(state))
    inputs = batches.samples.take(samples)
    for number in (int(np.argmax(is_branch)), int(np.argmax(~is_branch[1:]) + 1)):
        reached = np.abs(gradient(made.frozen.cf_items, number)).max(axis=1)
        own, _ = inputs[number]
        assert set(np.flatnonzero(reached)) == set(own[-6:])


def test_live_tokens_are_counted(made, monkeypatch):
    """Of an epoch: what a row saves is what its branches share with its trunk, but for the constant prefix."""
    shared, apart = both(made, monkeypatch, 1)
    saved, wanted = 0, 0
    for step in range(shared.order.steps_per_epoch):
        saved += live(apart(step)) - live(shared(step))
        samples = shared.members(step)[0].ravel()
        branches = samples[shared.trunks.branches(samples)]
        wanted += int((shared.trunks.shared - shared.trunks.prefix)[branches].sum())
        assert sorted(samples) == sorted(apart.members(step)[0].ravel())
    assert saved == wanted > 0
