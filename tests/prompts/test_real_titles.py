"""Real titles with real tokenizers: assembled prompts equal the tokenizer's own encoding."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsrec_jax.prompts.templates import template
from llmsrec_jax.prompts.tokens import Tokenizer
from tests.prompts import cases

TOKENIZERS = ["tokenizer_llama3", "tokenizer_llama2", "llama_stories260k", "llama_titles"]
DATASETS = ["amazon2018_electronics_1m", "amazon2014_beauty", "steam_100k"]
SAMPLE = 800  # titles per data set


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request, shared) -> Tokenizer:
    return Tokenizer.load(shared / "data" / request.param)


def sample(shared, name: str) -> list[str]:
    """The oddest titles and some of the others."""
    path = shared / "data" / name / "items.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        titles = [json.loads(line).get("title") or "Empty title" for line in lines]
    titles = [t for t in titles if not cases.spells_special(t)]
    odd = [t for t in titles if not t.isascii() or not t[:1].isalnum() or "  " in t]
    longest = sorted(titles, key=len)[-50:]
    rest = np.random.default_rng(0).choice(
        len(titles), min(SAMPLE // 2, len(titles)), replace=False
    )
    return list(dict.fromkeys([*odd[: SAMPLE // 2], *longest, *(titles[i] for i in rest)]))


@pytest.mark.parametrize("dataset", DATASETS)
def test_prompts_equal_the_whole_encoding(tokenizer, shared, dataset):
    titles = sample(shared, dataset)
    builder = cases.builder(tokenizer, titles, max_tokens=100_000)
    assert builder._tokens.splittable
    items = builder.items(np.arange(1, len(titles) + 1))
    cases.assert_items_exact(items, tokenizer, template("reference"), titles)
    rng = np.random.default_rng(1)
    rows = [
        [(int(i), int(d)) for i, d in zip(rng.integers(1, len(titles) + 1, 10), days, strict=True)]
        for days in np.sort(rng.integers(10_000, 19_000, (len(titles) // 8, 10)))
    ]
    wanted = [[(k + 1, d, titles[i - 1]) for k, (i, d) in enumerate(row)] for row in rows]
    users = builder.users(cases.histories(rows))
    cases.assert_users_exact(users, tokenizer, template("reference"), wanted)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    titles=st.lists(
        st.one_of(
            st.text(max_size=25), st.text(alphabet=" \"'.,:()[]\n\t1aÉ日🎧\u2581", max_size=10)
        ),
        min_size=20,
        max_size=40,
    ),
    day=st.integers(-20_000, 40_000),
)
def test_any_title_is_exact(tokenizer, titles, day):
    titles = [title for title in titles if not cases.spells_special(title)]
    builder = cases.builder(tokenizer, titles, max_tokens=100_000)
    items = builder.items(np.arange(1, len(titles) + 1))
    cases.assert_items_exact(items, tokenizer, template("reference"), titles)
    row = [(i + 1, day + i) for i in range(len(titles))]
    rows = [row[i : i + 10] for i in range(0, len(row), 10)]
    wanted = [[(k + 1, d, titles[i - 1]) for k, (i, d) in enumerate(r)] for r in rows]
    users = builder.users(cases.histories(rows))
    cases.assert_users_exact(users, tokenizer, template("reference"), wanted)


@pytest.mark.parametrize("dataset", DATASETS)
def test_sentencepiece_model_encodes_as_the_library(shared, dataset):
    library = pytest.importorskip("sentencepiece")
    path = shared / "data" / "tokenizer_llama2"
    theirs = library.SentencePieceProcessor(str(path / "tokenizer.model"))
    ours = Tokenizer.load(path)
    texts = [*sample(shared, dataset), *cases.TITLES, "   ", " a   b "]
    assert ours.encode_batch(texts, after_slot=False) == theirs.encode(texts)
