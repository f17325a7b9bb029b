"""A-LLMRec's stage 1: size, terms by hand, whom each term trains, and what does not fit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax.batch import AlignBatch
from llmsrec_jax.models import allmrec

TERMS = ("recommendation", "matching", "item", "text")


def random(users=6, items=9, d_cf=4, d_text=5):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    positive, negative = (rng.integers(1, items, users, dtype=np.int32) for _ in range(2))
    batch = AlignBatch(normal(users, d_cf), jnp.asarray(positive), jnp.asarray(negative))
    model = allmrec.Alignment(d_cf, d_text, 3, nnx.Rngs(params=0))
    return model, batch, allmrec.Frozen(normal(items, d_cf), normal(items, d_text))


def test_size_and_initialisation_are_the_authors():
    """SASRec of 64, SBERT of 768, middle of 128."""
    params = nnx.state(allmrec.Alignment(64, 768, 128, nnx.Rngs(params=0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 128 * (2 * 64 + 2 * 768 + 2) + 832
    for name, bound in (("first", 768**-0.5), ("last", 128**-0.5)):
        for leaf in jax.tree.leaves(params["text"][name]):
            assert 0.9 * bound < np.abs(leaf).max() <= bound
            assert leaf.std() == pytest.approx(bound / 3**0.5, rel=0.15)


def by_hand():
    """The item side always decodes (1, 1) from a middle of 1/2, the text side 3 from a middle of 3/4."""
    model = allmrec.Alignment(2, 1, 1, nnx.Rngs(params=0))
    values = {
        "item": ([[0.0], [0.0]], [0.0], [[2.0, 0.0]], [0.0, 1.0]),
        "text": ([[0.0]], [math.log(3)], [[4.0]], [0.0]),
    }
    for name, (first, first_bias, last, last_bias) in values.items():
        side = getattr(model, name)
        side.first.kernel[...], side.first.bias[...] = jnp.array(first), jnp.array(first_bias)
        side.last.kernel[...], side.last.bias[...] = jnp.array(last), jnp.array(last_bias)
    frozen = allmrec.Frozen(jnp.array([[9.0, 9], [1, 3], [0, 1]]), jnp.array([[9.0], [2.0], [3.0]]))
    return model, frozen


def test_terms_by_hand():
    model, frozen = by_hand()
    batch = AlignBatch(jnp.array([[2.0, -1.0]]), jnp.array([1]), jnp.array([2]))
    share, terms = allmrec.loss(model, batch, frozen)
    softplus = lambda x: math.log1p(math.exp(x))
    want = {
        "recommendation": softplus(-0.5) + softplus(0.5),  # both score (2 - 1) / 2
        "matching": 2 * 0.25**2,
        "item": (0 + 4) / 2 + (1 + 0) / 2,
        "text": 1.0 + 0.0,
    }
    assert {name: float(terms[name]) for name in want} == pytest.approx(want, rel=1e-6)
    total = want["recommendation"] + 0.125 + 0.5 * 2.5 + 0.2
    assert float(share) == float(terms["loss"]) == pytest.approx(total, rel=1e-6)
    share, _ = allmrec.loss(model, batch, frozen, item_weight=0.0, text_weight=2.0)
    assert float(share) == pytest.approx(want["recommendation"] + 0.125 + 2.0, rel=1e-6)
    np.testing.assert_allclose(allmrec.item_repr(model, frozen.cf_items[1:]), [[0.5], [0.5]])


def test_rows_without_a_positive_do_not_count():
    model, frozen = by_hand()
    user = jnp.array([[2.0, -1.0], [7.0, 7.0]])
    batch = AlignBatch(user, jnp.array([1, 0]), jnp.array([2, 0]))
    alone = AlignBatch(*(leaf[:1] for leaf in batch))
    assert float(allmrec.loss(model, batch, frozen)[0]) == pytest.approx(
        float(allmrec.loss(model, alone, frozen)[0]), rel=1e-6
    )
    nobody = AlignBatch(user, jnp.array([0, 0]), jnp.array([0, 0]))
    assert float(allmrec.loss(model, nobody, frozen)[0]) == 0.0


@pytest.mark.parametrize(
    "term, reached",
    [
        ("recommendation", {"item.first", "item.last"}),
        ("matching", {"item.first", "text.first"}),
        ("item", {"item.first", "item.last"}),
        ("text", {"text.first", "text.last"}),
        ("loss", {"item.first", "item.last", "text.first", "text.last"}),
    ],
)
def test_whom_each_term_trains(term, reached):
    model, batch, frozen = random()
    graphdef, params = nnx.split(model)
    share = lambda params: allmrec.loss(nnx.merge(graphdef, params), batch, frozen)[1][term]
    found = set()
    for path, grad in jax.tree.leaves_with_path(nnx.to_pure_dict(jax.grad(share)(params))):
        if np.abs(grad).max() > 0:
            found.add(".".join(str(key.key) for key in path[:2]))
    assert found == reached


def test_shares_of_devices_add_up():
    model, batch, frozen = random()
    batch = batch._replace(positive=batch.positive.at[0].set(0))  # 2 samples here, 3 there
    whole, terms = allmrec.loss(model, batch, frozen)
    parts = jax.tree.map(lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:]), batch)
    share = lambda part: allmrec.loss(model, part, frozen, axis="devices")
    shares, termed = jax.vmap(share, axis_name="devices")(parts)
    np.testing.assert_allclose(shares.sum(), whole, rtol=1e-6)
    for name in TERMS:
        np.testing.assert_allclose(termed[name].sum(), terms[name], rtol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"texts": (9, 6)}, "the text encoder gives vectors of width 6, .* stage 1 is of width 5"),
        ({"cf_items": (9, 8)}, "the teacher gives vectors of width 8, .* of width 4"),
        ({"texts": (8, 5)}, "vectors of 8 texts, but the teacher has 9 items"),
    ],
)
def test_tables_that_do_not_fit(change, message):
    model, batch, frozen = random()
    frozen = frozen._replace(**{name: jnp.zeros(shape) for name, shape in change.items()})
    for refuse in (
        lambda: allmrec.check(model, frozen),
        lambda: allmrec.loss(model, batch, frozen),
    ):
        with pytest.raises(ValueError, match=message):
            refuse()
