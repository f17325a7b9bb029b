"""LLM-SRec as a system: what trains, what depends on what, and that neither prefixes nor padding change a result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import config
from llmsrec_jax.batch import HISTORY, OUT, LLMBatch, PromptBatch
from llmsrec_jax.models import llm4rec
from llmsrec_jax.prompts import plan
from llmsrec_jax.prompts.prompts import Prompts
from tests.systems import System, named, relative_error, system

# A shift of all item vectors changes no difference of scores: its gradient is rounding noise.
ZERO_GRADIENT = "item_head.last.bias"
LIMIT = 2e-6
SUMMED_LIMIT = (
    1e-5  # of gradients that are sums over prompts in another order, where most of the terms cancel
)


@pytest.fixture(scope="module")
def made() -> System:
    return system(users=12, items=40)


def groups(
    prompts: Prompts, cuts: list[int], prefixes: tuple[int | None, ...] = (None,), extra: int = 0
) -> tuple[PromptBatch, ...]:
    """The prompts in groups that end at `cuts`, with so many cached tokens (None = all of them) and `extra` pads."""
    parts = []
    everyone = np.split(np.arange(len(prompts)), cuts)
    for rows, prefix in zip(everyone, prefixes, strict=True):
        p = int(prompts.prefix_len[rows].max()) if prefix is None else prefix
        cached = np.minimum(prompts.prefix_len[rows], p)
        live = int((prompts.lengths[rows] - cached).max())
        shape = (len(rows), p + (extra if prefix is None else 0), live + extra)
        parts.append(plan.fill(prompts, rows, shape))
    return tuple(parts)


@pytest.fixture(scope="module")
def prompts(made) -> tuple[Prompts, Prompts]:
    """Of 6 users, and of their 6 x 3 candidates."""
    users = made.dataset.eligible("train")[:6]
    items = np.random.default_rng(0).permutation(40)[:18] + 1
    return made.builder.users(made.dataset.inputs("train", users)), made.builder.items(items)


def batch(made, users: tuple[PromptBatch, ...], items: tuple[PromptBatch, ...]) -> LLMBatch:
    candidates = np.arange(18, dtype=np.int32).reshape(6, 3)
    return LLMBatch(users, items, candidates, made.cf_users[:6])


@pytest.fixture(scope="module")
def gradients(made):
    """Loss terms, gradients of the trainables and of the teacher's item table."""

    def total(params, cf_items, data):
        model, llama = made.merged(params)
        return llm4rec.loss(model, llama, data, cf_items, made.cfg)

    function = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    return lambda data: function(made.params, made.frozen.cf_items, data)


@pytest.fixture(scope="module")
def reference(made, prompts, gradients):
    """No cached prefix, no padding beyond the longest prompt: every token is fed live."""
    return gradients(batch(made, *(groups(kind, [], (0,)) for kind in prompts)))


def test_the_cached_prefix_is_exact(made, prompts, gradients, reference):
    """In groups, padded, all of the prefix cached or a part of it."""
    (want_loss, want_terms), (want_grads, want_items) = reference
    users = groups(prompts[0], [2], (None, 16), extra=5)
    items = groups(prompts[1], [9], (8, None), extra=3)
    assert users[1].prefix_len.min() == 16 < users[0].prefix_len.min()
    (loss, terms), (grads, items) = gradients(batch(made, users, items))
    assert relative_error(loss, want_loss) < LIMIT
    for name, want in want_terms.items():
        assert relative_error(terms[name], want) < LIMIT, name
    assert relative_error(items, want_items) < LIMIT
    found, wanted = named(grads), named(want_grads)
    largest = max(np.abs(gradient).max() for gradient in wanted.values())
    assert np.abs(found.pop(ZERO_GRADIENT)).max() < LIMIT * largest
    for name, gradient in found.items():
        assert relative_error(gradient, wanted[name]) < LIMIT, name


def test_every_trainable_gets_a_gradient_and_nothing_else_does(made, reference):
    _, (grads, _) = reference
    assert jax.tree.structure(grads) == jax.tree.structure(made.params)
    wanted = {"user_out", "item_out"}
    for head in ("item_projector", "user_head", "item_head", "cf_user_head"):
        wanted |= {f"{head}.{layer}.bias" for layer in ("first", "norm", "last")}
        wanted |= {f"{head}.first.kernel", f"{head}.norm.scale", f"{head}.last.kernel"}
    assert set(named(grads)) == wanted
    for name, gradient in named(grads).items():
        assert np.isfinite(gradient).all()
        assert (np.abs(gradient).max() > 1e-5) == (name != ZERO_GRADIENT), name


def test_a_vector_depends_on_the_prompts_own_items_only(made, prompts):
    users = groups(prompts[0], [])[0]

    def second_user(cf_items):
        return llm4rec.encode_users(*made.merged(), users, cf_items, slots=3)[1].sum()

    size = np.abs(jax.jit(jax.grad(second_user))(made.frozen.cf_items)).max(axis=1)
    row = slice(prompts[0].offsets[1], prompts[0].offsets[2])
    own = prompts[0].slot_item[row][prompts[0].kind[row] == HISTORY]
    assert set(np.flatnonzero(size)) == set(own) and len(own) == 3
    assert size[own].min() > 1e-4 * size.max()


@pytest.fixture(scope="module")
def encoders(made):
    model, llama = made.model, made.llama
    merged = lambda params: (nnx.merge(model, params), nnx.merge(llama, made.frozen.llama))
    users = lambda p, b: llm4rec.encode_users(*merged(p), b, made.frozen.cf_items, slots=3)
    items = lambda p, b: llm4rec.encode_items(*merged(p), b, made.frozen.cf_items)
    return jax.jit(users), jax.jit(items)


@pytest.mark.parametrize("kind", [0, 1], ids=["users", "items"])
def test_neither_the_company_nor_the_padding_matters(made, prompts, encoders, kind):
    every, encode = prompts[kind].take(np.arange(4)), encoders[kind]
    found = {}
    for rows, extra in ((len(every), 0), (1, 9)):
        cuts = list(range(rows, len(every), rows))
        widest = groups(every, cuts, (None,) * (len(cuts) + 1), extra)
        p = max(g.prefix_ids.shape[1] for g in widest)
        t = max(g.ids.shape[1] for g in widest)
        parts = np.split(np.arange(len(every)), cuts)
        filled = [plan.fill(every, part, (rows, p, t)) for part in parts]
        found[rows] = np.concatenate([encode(made.params, group) for group in filled])
    assert np.linalg.matrix_rank(found[4]) == 4
    assert relative_error(found[1], found[4]) < 1e-6


@pytest.mark.parametrize("truncation", ["history", "title"])
def test_an_overlong_prompt_keeps_its_out_slot(truncation):
    """D19: oldest items go, then title tokens, never the Out token; what is left still makes a vector."""
    limit = 70
    small = system(
        {"prompts.max_tokens": limit, "prompts.truncation": truncation, "prompts.history_len": 10},
        users=8,
        items=40,
    )
    users = small.dataset.eligible("train")
    prompts = small.builder.users(small.dataset.inputs("train", users))
    assert small.builder.trimmed["lost_items"] > 0
    assert prompts.lengths.max() <= limit
    np.testing.assert_array_equal(prompts.kind[prompts.offsets[1:] - 1], OUT)
    assert np.count_nonzero(prompts.kind == OUT) == len(prompts)
    if truncation == "title":
        return
    filled = groups(prompts, [])[0]

    @jax.jit
    def encode(params):
        model, llama = small.merged(params)
        return llm4rec.encode_users(model, llama, filled, small.frozen.cf_items, slots=10)

    vectors = encode(small.params)
    assert np.isfinite(vectors).all() and len(np.unique(vectors, axis=0)) == len(users)
    moved = jax.tree.map(lambda x: x, small.params)
    moved["user_out"][...] = moved["user_out"][...] + 0.1 * np.arange(32)
    assert np.abs(encode(moved) - vectors).max(axis=1).min() > 1e-3


def test_chunks_keep_the_gradients_of_the_whole_batch(made, prompts, reference):
    """6 users and 18 items, 3 at a time: also those of the uniformity loss, which pairs all users."""
    (_, wanted_terms), (wanted, _) = reference
    cfg = config.apply(made.cfg, {"train.chunk": 3})

    def total(params, data):
        model, llama = made.merged(params)
        return llm4rec.loss(model, llama, data, made.frozen.cf_items, cfg)

    live = batch(made, *(groups(kind, [], (0,)) for kind in prompts))
    found, terms = jax.jit(jax.grad(total, has_aux=True))(made.params, live)
    for name, value in wanted_terms.items():
        assert relative_error(terms[name], value) < LIMIT, name
    for name, gradient in named(wanted).items():
        if name != ZERO_GRADIENT:
            assert relative_error(named(found)[name], gradient) < SUMMED_LIMIT, name


def test_chunks_need_less_memory():
    """On a stand-in for the LLM; 10 prompts, 4 at a time, so that a chunk is smaller than the others."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 64, 64)).astype(np.float32) / 8
    ids = rng.integers(0, 9, (10, 300)).astype(np.int32)
    data = PromptBatch(ids, ids[:, 0], ids, ids, ids, ids[:, 0])

    def encode(weights):
        def rows(part):
            x = jnp.broadcast_to(part.ids[..., None] / 9.0, (*part.ids.shape, 64))
            for weight in weights:
                x = jnp.tanh(x @ weight)
            return x.mean(axis=1)

        return rows

    def total(weights, chunk):
        return (llm4rec.in_chunks(encode(weights), data, chunk) ** 2).sum()

    step = jax.jit(jax.grad(total), static_argnums=1)
    compiled = {chunk: step.lower(weights, chunk).compile() for chunk in (0, 4)}
    assert relative_error(compiled[4](weights), compiled[0](weights)) < LIMIT
    memory = {chunk: one.memory_analysis().temp_size_in_bytes for chunk, one in compiled.items()}
    assert memory[4] < 0.6 * memory[0]
