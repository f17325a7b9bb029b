"""LLM-SRec as a system: what trains, what depends on what, and that neither prefixes nor padding change a result."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import config, parallel, stores
from llmsrec_jax.batch import HISTORY, USER_OUT, Flat, Grid, LLMBatch, PromptBatch
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.models import llm4rec
from llmsrec_jax.prompts.layout import Budget, Group, Shape, fill
from llmsrec_jax.prompts.prompts import Prompts
from tests.systems import System, assert_gradients_agree, named, relative_error, system

# A shift of all item vectors changes no difference of scores: its gradient is rounding noise.
ZERO_GRADIENT = "item_head.last.bias"
LIMIT = 2e-6
SUMMED_LIMIT = (
    1e-5  # of gradients that are sums over prompts in another order, where most of the terms cancel
)


@pytest.fixture(scope="module")
def made(request) -> System:
    """With the teacher's user representation in prompts where a test asks for it (`made` parametrised indirectly)."""
    told = getattr(request, "param", False)
    return system({"prompts.user_repr": told}, users=12, items=40)


BOTH = pytest.mark.parametrize("made", [False, True], ids=["", "told"], indirect=True)
TOLD = pytest.mark.parametrize("made", [True], ids=["told"], indirect=True)


def groups(
    prompts: Prompts, cuts: list[int], prefixes: tuple[int | None, ...] = (None,), extra: int = 0
) -> list[Group]:
    """The prompts in groups that end at `cuts`, with so many cached tokens (None = all of them) and `extra` pads."""
    parts = []
    everyone = np.split(np.arange(len(prompts)), cuts)
    for rows, prefix in zip(everyone, prefixes, strict=True):
        p = int(prompts.prefix_len[rows].max()) if prefix is None else prefix
        cached = np.minimum(prompts.prefix_len[rows], p)
        live = int((prompts.lengths[rows] - cached).max())
        shape = Shape(len(rows), p + (extra if prefix is None else 0), live + extra)
        parts.append(Group(prompts, rows, shape))
    return parts


def one_batch(groups: list[Group], slots: int = 0, budget: Budget | None = None) -> PromptBatch:
    return fill(groups, slots or sum(int(g.prompts.slots[g.rows].sum()) for g in groups), budget)


@pytest.fixture(scope="module")
def prompts(made) -> tuple[Prompts, Prompts]:
    """Of 6 users, and of their 6 x 3 candidates."""
    users = made.dataset.eligible("train")[:6]
    items = np.random.default_rng(0).permutation(40)[:18] + 1
    histories = made.dataset.inputs("train", users)
    return made.builder.users(histories, made.cf_users[:6]), made.builder.items(items)


def batch(
    made, users: list[Group], items: list[Group], slots: int = 0, budget: Budget | None = None
) -> LLMBatch:
    """Of one part."""
    candidates = np.arange(18, dtype=np.int32).reshape(6, 3)
    prompts = jax.tree.map(lambda x: x[None], one_batch([*users, *items], slots, budget))
    return LLMBatch(prompts, candidates, made.cf_users[:6])


@pytest.fixture(scope="module")
def gradients(made):
    """Loss terms, gradients of the trainables and of the teacher's item table."""

    def total(params, cf_items, data):
        model, llama = made.merged(params)
        frozen = made.frozen._replace(cf_items=cf_items)
        return llm4rec.loss(model, llama, data, frozen, made.cfg)

    function = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    return lambda data: function(made.params, made.frozen.cf_items, data)


@pytest.fixture(scope="module")
def reference(made, prompts, gradients):
    """No cached prefix, no padding beyond the longest prompt: every token is fed live."""
    return gradients(batch(made, *(groups(kind, [], (0,)) for kind in prompts)))


LAYOUTS = {
    "padded": dict(extra=4),
    "padding on the grids only": dict(extra=4, slots=60, budget=Budget(900, 1300)),
    "nothing to spare": dict(extra=0, budget="exact"),
}


@pytest.mark.parametrize(
    "made, layout",
    [*((False, name) for name in LAYOUTS), (True, "padding on the grids only")],
    indirect=["made"],
)
def test_the_cached_prefix_is_exact(made, prompts, gradients, reference, layout):
    """In groups, on either kind of token axis, all of the prefix cached or a part of it."""
    (want_loss, want_terms), (want_grads, want_items) = reference
    layout = LAYOUTS[layout]
    extra, budget = layout["extra"], layout.get("budget")
    part = int(prompts[0].prefix_len.min()) * 2 // 3
    users = groups(prompts[0], [2], (None, part), extra)
    items = groups(prompts[1], [9], (8, None), extra)
    short = batch(made, users, items).prompts.prefix.grids[1].length
    assert 4 < short.min() == part < prompts[0].prefix_len.min()
    if budget == "exact":
        grids = batch(made, users, items).prompts
        sums = [sum(int(g.length.sum()) for g in axis.grids) for axis in (grids.prefix, grids.live)]
        budget = Budget(*sums)
    data = batch(made, users, items, layout.get("slots", 0), budget)
    (loss, terms), (grads, items) = gradients(data)
    assert relative_error(loss, want_loss) < LIMIT
    for name, want in want_terms.items():
        assert relative_error(terms[name], want) < LIMIT, name
    assert relative_error(items, want_items) < LIMIT
    found, wanted = named(grads), named(want_grads)
    largest = max(np.abs(gradient).max() for gradient in wanted.values())
    assert np.abs(found.pop(ZERO_GRADIENT)).max() < LIMIT * largest
    del wanted[ZERO_GRADIENT]
    assert_gradients_agree(found, wanted, whole=LIMIT, leaf=2 * LIMIT)


def test_without_weights_only_the_retrieval_loss_is_left(made, prompts):
    """Row (a) of Table 8, bit for bit: what is not weighed is as if it were not there."""
    cfg = config.apply(made.cfg, {"distill.weight": 0.0, "uniformity.weight": 0.0})
    data = batch(made, *(groups(kind, []) for kind in prompts))

    def loss(params, alone):
        share, terms = llm4rec.loss(*made.merged(params), data, made.frozen, cfg)
        return terms["retrieval"] if alone else share

    ablated, plain = (
        jax.jit(jax.value_and_grad(partial(loss, alone=alone)))(made.params)
        for alone in (False, True)
    )
    assert ablated[0] == plain[0]
    for name, gradient in named(ablated[1]).items():
        np.testing.assert_array_equal(gradient, named(plain[1])[name], name)


@BOTH
def test_every_trainable_gets_a_gradient_and_nothing_else_does(made, reference):
    _, (grads, _) = reference
    assert jax.tree.structure(grads) == jax.tree.structure(made.params)
    wanted = {"user_out", "item_out"}
    told = ["user_projector"] if made.cfg.prompts.user_repr else []
    for head in ("item_projector", "user_head", "item_head", "cf_user_head", *told):
        wanted |= {f"{head}.{layer}.bias" for layer in ("first", "norm", "last")}
        wanted |= {f"{head}.first.kernel", f"{head}.norm.scale", f"{head}.last.kernel"}
    assert set(named(grads)) == wanted
    for name, gradient in named(grads).items():
        assert np.isfinite(gradient).all()
        assert (np.abs(gradient).max() > 1e-5) == (name != ZERO_GRADIENT), name


def test_a_vector_depends_on_the_prompts_own_items_only(made, prompts, encoders):
    users, encode = one_batch(groups(prompts[0], [])), encoders["users"]

    def second_user(cf_items):
        return encode(made.frozen._replace(cf_items=cf_items), made.params, users)[1].sum()

    size = np.abs(jax.jit(jax.grad(second_user))(made.frozen.cf_items)).max(axis=1)
    row = slice(prompts[0].offsets[1], prompts[0].offsets[2])
    own = prompts[0].slot_item[row][prompts[0].kind[row] == HISTORY]
    assert set(np.flatnonzero(size)) == set(own) and len(own) == 3
    assert size[own].min() > 1e-4 * size.max()


def test_a_projector_more_changes_no_other_draw():
    build = lambda told: nnx.state(
        llm4rec.LLMSRec(4, 8, config.Head(16, 8), (0.0, 1.0), nnx.Rngs(params=0), told)
    )
    plain, told = named(build(False)), named(build(True))
    more = {name for name in told if name.startswith("user_projector.")}
    assert len(more) == 6 and plain.keys() == told.keys() - more
    for name, values in plain.items():
        np.testing.assert_array_equal(told[name], values)


@TOLD
def test_a_vector_depends_on_what_is_told_of_its_own_user(made, prompts, encoders):
    users, encode = one_batch(groups(prompts[0], [2], (None, None))), encoders["users"]
    second = lambda told: encode(made.frozen, made.params, users._replace(cf_user_repr=told))[
        1
    ].sum()
    size = np.abs(jax.jit(jax.grad(second))(users.cf_user_repr)).max(axis=1)
    assert np.flatnonzero(size).tolist() == [1]


@TOLD
def test_what_is_told_needs_a_projector(made, prompts):
    without = system(users=12, items=40)
    encode = llm4rec.encoder("users", without.model, without.llama)
    with pytest.raises(ValueError, match="no projector"):
        encode(without.frozen, without.params, one_batch(groups(prompts[0], [])))


@pytest.fixture(scope="module")
def encoders(made):
    graphs = made.model, made.llama
    return {kind: jax.jit(llm4rec.encoder(kind, *graphs)) for kind in llm4rec.HEADS}


@pytest.mark.parametrize(
    "made, kind", [(False, 0), (False, 1), (True, 0)], indirect=["made"], ids=str
)
def test_neither_the_company_nor_the_padding_matters(made, prompts, encoders, kind):
    every, encode = prompts[kind].take(np.arange(4)), encoders[["users", "items"][kind]]
    found = {}
    for rows, extra in ((len(every), 0), (1, 9)):
        cuts = list(range(rows, len(every), rows))
        widest = groups(every, cuts, (None,) * (len(cuts) + 1), extra)
        _, p, t = np.max([g.shape for g in widest], axis=0).tolist()
        filled = [one_batch([g._replace(shape=Shape(rows, p, t))], 12) for g in widest]
        found[rows] = np.concatenate([encode(made.frozen, made.params, one) for one in filled])
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
    np.testing.assert_array_equal(prompts.kind[prompts.offsets[1:] - 1], USER_OUT)
    assert np.count_nonzero(prompts.kind == USER_OUT) == len(prompts)
    if truncation == "title":
        return
    filled = one_batch(groups(prompts, []))
    users_of = jax.jit(llm4rec.encoder("users", small.model, small.llama))
    encode = lambda params: users_of(small.frozen, params, filled)
    vectors = encode(small.params)
    assert np.isfinite(vectors).all() and len(np.unique(vectors, axis=0)) == len(users)
    moved = jax.tree.map(lambda x: x, small.params)
    moved["user_out"][...] = moved["user_out"][...] + 0.1 * np.arange(32)
    assert np.abs(encode(moved) - vectors).max(axis=1).min() > 1e-3


def test_parts_keep_the_gradients_of_the_whole_batch(made, prompts, gradients, reference):
    """6 users and 18 items in 3 parts: also those of the uniformity loss, which pairs all users."""
    (want, wanted_terms), (wanted, _) = reference
    shape = lambda p, rows: Shape(rows, int(p.prefix_len.max()), int(p.live_lengths.max()))
    parts = []
    for part in range(3):
        rows = np.arange(2 * part, 2 * part + 2), np.arange(6 * part, 6 * part + 6)
        pair = zip(prompts, rows, strict=True)
        parts.append(one_batch([Group(p, some, shape(p, len(some))) for p, some in pair], 12))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
    whole = batch(made, groups(prompts[0], []), groups(prompts[1], []))
    (loss, terms), (found, _) = gradients(whole._replace(prompts=stacked))
    assert relative_error(loss, want) < LIMIT
    for name, value in wanted_terms.items():
        assert relative_error(terms[name], value) < LIMIT, name
    for name, gradient in named(wanted).items():
        if name != ZERO_GRADIENT:
            assert relative_error(named(found)[name], gradient) < SUMMED_LIMIT, name


def test_parts_need_less_memory():
    """On a stand-in for the LLM: 12 prompts at once, and in 3 parts."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 64, 64)).astype(np.float32) / 8
    ids = rng.integers(0, 9, (12, 300)).astype(np.int32)
    grid = Grid(ids, ids[:, 0])
    flat = Flat(ids, None, (grid,))
    data = PromptBatch(ids, flat, (), None, ids, ids, flat, ids, ids, ids, None)

    def total(weights, data):
        def encode(part):
            x = jnp.broadcast_to(part.ids[..., None] / 9.0, (*part.ids.shape, 64))
            for weight in weights:
                x = jnp.tanh(x @ weight)
            return x.mean(axis=1)

        return (llm4rec.part_by_part(encode, data) ** 2).sum()

    split = lambda parts, x: x.reshape(parts, 12 // parts, *x.shape[1:])
    memory, found = {}, {}
    for parts in (1, 3):
        cut = jax.tree.map(partial(split, parts), data)
        compiled = jax.jit(jax.grad(total)).lower(weights, cut).compile()
        found[parts] = compiled(weights, cut)
        memory[parts] = compiled.memory_analysis().temp_size_in_bytes
    assert relative_error(found[3], found[1]) < LIMIT
    assert memory[3] < 0.6 * memory[1]


def test_stored_prefixes_are_those_computed(made, prompts, gradients, reference):
    """In float32 on the devices or brought along: the same numbers; as int8 they are near."""
    (want_loss, _), (wanted, _) = reference
    every = made.builder.items(np.arange(1, 41))
    mesh = parallel.make_mesh(config.Mesh(devices=1))
    graph = made.llama, made.frozen.llama
    users, items = groups(prompts[0], []), groups(prompts[1], [9], (None, None))
    plain = batch(made, users, items).prompts

    def found(on_host, dtype):
        store = stores.build(graph, every, mesh, on_host=on_host, dtype=dtype)
        at = [g._replace(stored=store.starts(g.prompts, g.rows)) for g in items]
        data = store.bring(one_batch([*users, *at]), 18 * 40)
        whole = batch(made, users, items)._replace(prompts=jax.tree.map(lambda x: x[None], data))

        def total(params):
            model, llama = made.merged(params)
            frozen = made.frozen._replace(items=store.resident)
            return llm4rec.loss(model, llama, whole, frozen, made.cfg)[0]

        assert data.prefix_ids.size < plain.prefix_ids.size
        tokens = jax.tree.leaves(store._kv)[0].shape[1]  # with the pads of the last block
        needed = every.prefix_len.sum()
        assert needed <= tokens <= needed + stores.BLOCK_TOKENS
        assert store.nbytes == stores.nbytes(llama_config.size("tiny"), tokens, dtype)
        return jax.jit(jax.value_and_grad(total))(made.params)

    for on_host, dtype, limit in (
        (False, jnp.float32, LIMIT),
        (True, jnp.float32, LIMIT),
        (False, jnp.int8, 0.03),
    ):
        loss, grads = found(on_host, dtype)
        assert dtype != jnp.int8 or relative_error(loss, want_loss) > LIMIT  # rounded, that is
        assert relative_error(loss, want_loss) < limit
        for name, gradient in named(grads).items():
            if name != ZERO_GRADIENT:
                assert relative_error(gradient, named(wanted)[name]) < 5 * limit, (name, dtype)
