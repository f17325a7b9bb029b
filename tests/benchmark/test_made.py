"""Made data: as many users, items and interactions as stated, as long as stated, in the product's own prompts."""

import numpy as np
import pytest

from llmsrec_jax import config
from llmsrec_jax.batch import HISTORY, USER_OUT
from llmsrec_jax.benchmark import made
from llmsrec_jax.benchmark.system import System
from llmsrec_jax.prompts.templates import TEMPLATES
from llmsrec_jax.prompts.tokens import Tokenizer


@pytest.fixture(scope="module")
def scientific() -> made.Made:
    shape = made.SHAPES["Industrial_and_Scientific"]
    return made.Made(shape, seed=0, vocab=50, prompts=config.Prompts())


@pytest.mark.parametrize(
    ("name", "history", "title"),
    [  # means: Table 10's interactions per user; of the titles that were counted
        ("Industrial_and_Scientific", 266_164 / 23_627, 26.3),
        ("Electronics", 292_308 / 27_601, 31.0),
        ("Video_Games", 287_107 / 31_013, 31.0),
    ],
)
def test_means_are_those_of_the_dataset(name, history, title):
    shape, rng = made.SHAPES[name], np.random.default_rng(0)
    assert made.history_lengths(shape, rng).mean() == pytest.approx(history, rel=0.01)
    assert made.draw(shape.title, shape.items, rng).mean() == pytest.approx(title, rel=0.03)


def test_quantiles_are_those_of_the_dataset():
    drawn = made.draw(made.ELECTRONICS, 10_000, np.random.default_rng(0))
    inner = slice(1, -1)  # the rarest are not drawn
    found = np.quantile(drawn, made.SHARES[inner])
    np.testing.assert_allclose(found, made.ELECTRONICS[inner], rtol=0.02)


def test_dataset(scientific):
    data, shape = scientific.dataset, scientific.shape
    assert (len(data), data.catalog.size - 1) == (shape.users, shape.items)
    assert data.known().lengths.sum() == pytest.approx(shape.interactions, rel=0.01)
    assert len(data.eligible("train")) == len(data.eligible("test")) == shape.users
    later = np.diff(data.train.times)[np.diff(data.train.rows) == 0]
    assert later.min() >= 0 and data.train.items.min() >= 1


def test_a_function_of_the_seed(scientific):
    shape = scientific.shape.smaller(50)
    one, same, other = (made.dataset(shape, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.train.items, same.train.items)
    assert not np.array_equal(one.train.items, other.train.items)


def test_smaller_in_proportion():
    shape = made.shape(config.Data(category="Electronics", max_users=2760))
    assert (shape.users, shape.items, shape.interactions) == (2760, 3153, 29_230)
    assert made.shape(config.Data(category="Electronics")) == made.SHAPES["Electronics"]
    assert made.shape(config.Data()) == made.SHAPES["Industrial_and_Scientific"]


def test_prompts_are_the_products(scientific):
    """Scientific's mean title of 26.3 tokens behind 11 of the template; every history item has its slot."""
    items = scientific.builder.items(np.arange(1, scientific.dataset.catalog.size))
    assert items.prefix_len.mean() == pytest.approx(26.3 + 11, abs=0.5)
    assert set(items.live_lengths) == {9} and items.ids.max() < 50
    inputs = scientific.dataset.inputs("train", np.arange(100))
    users = scientific.builder.users(inputs)
    slots = np.add.reduceat(users.kind == HISTORY, users.offsets[:-1])
    np.testing.assert_array_equal(slots, np.minimum(inputs.lengths, 10))
    assert np.all(users.kind[users.offsets[1:] - 1] == USER_OUT)


def test_openings_have_the_length_of_llama_3(shared):
    real, stand_in = Tokenizer.load(shared / "data" / "tokenizer_llama3"), made.Tokens(99)
    for form in TEMPLATES.values():
        for text, after_slot in [
            (form.opening(1, form.date(17_000), first=True), False),
            (form.opening(10, form.date(17_500), first=False), True),
            (form.close + form.user_outro, True),
            (form.item_intro, False),
            (form.item_outro, True),
        ]:
            (ids,) = real.encode_batch([text], after_slot=after_slot)
            assert len(stand_in.encode(text)) == len(ids), text


def test_own_files_are_measured_as_they_are(tmp_path):
    path = tmp_path / "interactions.tsv"
    rows = [f"{user}\t{item}\t{item}" for user in range(6) for item in range(user, user + 7)]
    path.write_text("\n".join(["user\titem\ttimestamp", *rows]) + "\n")
    names = {"data.source": "files", "data.files.interactions": str(path), "data.kcore": "none"}
    system = System.of(config.apply(config.Config(), names))
    assert system.made.dataset is system.given
    assert (system.shape.users, system.shape.items) == (6, 12)
    assert np.diff(system.made.dataset.train.offsets).tolist() == [5] * 6
    assert len(system.made.builder.items(np.arange(1, 13))) == 12
