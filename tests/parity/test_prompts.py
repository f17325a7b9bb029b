"""Prompt strings and token ids against those recorded from the authors' code."""

import json

import numpy as np
import pytest

from llmsrec_jax import config
from llmsrec_jax.data.interactions import Catalog, UserSequences, offsets_of
from llmsrec_jax.prompts.prompts import PromptBuilder, Prompts
from llmsrec_jax.prompts.templates import (
    DAY_MS,
    HISTORY_SLOT,
    ITEM_SLOT,
    USER_REPR_SLOT,
    USER_SLOT,
    template,
)
from llmsrec_jax.prompts.tokens import ItemTokens, Tokenizer, check_vocabulary

FORM = template("reference")


@pytest.fixture(scope="module")
def tokenizer(oracle) -> Tokenizer:
    return Tokenizer.load(oracle / "llama")


@pytest.fixture(scope="module")
def catalog(oracle) -> Catalog:
    lines = (oracle / "dataset" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    titles = {int(row["item"]): row["title"] for row in map(json.loads, lines)}
    rows = ["", *(titles[i] for i in range(1, len(titles) + 1))]
    return Catalog(
        np.array([str(i) for i in range(len(rows))]), rows, np.array([bool(t) for t in rows])
    )


def interactions(oracle, split: str) -> dict[int, list[tuple[int, int]]]:
    """(item, time) by user, in file order."""
    users: dict[int, list[tuple[int, int]]] = {}
    for line in (oracle / "dataset" / f"{split}.tsv").read_text().splitlines()[1:]:
        user, item, time = map(int, line.split("\t"))
        users.setdefault(user, []).append((item, time))
    return users


def histories(rows: list[list[tuple[int, int]]]) -> UserSequences:
    flat = np.array([pair for row in rows for pair in row], np.int64)
    lengths = np.array([len(row) for row in rows])
    return UserSequences(offsets_of(lengths), flat[:, 0].astype(np.int32), flat[:, 1])


@pytest.fixture(scope="module")
def inputs(oracle):
    """Histories of users by stage, as the authors cut them."""
    train, valid = interactions(oracle, "train"), interactions(oracle, "valid")
    stages = {
        "train": lambda u: train[u][:-1],
        "valid": lambda u: train[u],
        "test": lambda u: train[u] + valid.get(u, [])[:1],
    }
    return lambda stage, users: [stages[stage](int(u)) for u in users]


@pytest.fixture(scope="module", params=["pieces", "whole_segments"])
def builder(request, tokenizer, catalog) -> PromptBuilder:
    tokens = ItemTokens.build(tokenizer, catalog, progress=iter)
    assert tokens.splittable
    if request.param == "whole_segments":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tokenizer, "has_token_across", lambda *_: True)
            tokens = ItemTokens.build(tokenizer, catalog, progress=iter)
        assert not tokens.splittable
    return PromptBuilder(tokenizer, tokens, catalog, config.Prompts())


def assert_ids(prompts: Prompts, recorded: np.ndarray, tokenizer: Tokenizer, out: str) -> None:
    """Every prompt, slots and right padding included."""
    end = tokenizer.special_id(out)
    of_user = tokenizer.special_id(USER_REPR_SLOT)
    slots = np.array([0, tokenizer.special_id(HISTORY_SLOT), of_user, end, end])
    ids = prompts.ids + slots[prompts.kind]
    width = recorded.shape[1]
    assert len(prompts) == len(recorded) and prompts.lengths.max() == width
    padded = np.full(recorded.shape, tokenizer.special_id("[PAD]"))
    padded[np.arange(width) < prompts.lengths[:, None]] = ids
    np.testing.assert_array_equal(padded, recorded)


def text(history: list[tuple[int, int]], catalog: Catalog) -> str:
    last = history[-10:]
    return FORM.user(
        [(k + 1, FORM.date(t // DAY_MS), catalog.titles[i]) for k, (i, t) in enumerate(last)]
    )


def test_strings(oracle, catalog, inputs, tokenizer):
    recorded = json.loads((oracle / "heads_prompts.json").read_text(encoding="utf-8"))
    arrays = np.load(oracle / "heads.npz")
    users = [text(row, catalog) for row in inputs("train", arrays["user"])]
    items = [FORM.item(catalog.titles[i]) for i in arrays["candidates"].reshape(-1)]
    assert users == recorded["user_prompts"]
    assert items == recorded["item_prompts"]
    for strings, ids, mask in (
        (users, arrays["user_token_ids"], arrays["user_attn_mask"]),
        (items, arrays["item_token_ids"], arrays["item_attn_mask"]),
    ):
        for string, row, live in zip(strings, ids, mask, strict=True):
            assert tokenizer.encode_prompt(string) == row[live > 0].tolist()


def test_extended_tokenizer(oracle, tokenizer):
    recorded = json.loads((oracle / "tokenizer_probe.json").read_text(encoding="utf-8"))
    assert tokenizer.vocab_size == recorded["base_vocab"]
    for token, number in recorded["special_ids"].items():
        assert tokenizer.special_id(token) == number
    theirs = Tokenizer.load(oracle / "tokenizer_extended")
    for probe in recorded["probes"]:
        assert tokenizer.encode_prompt(probe["text"]) == probe["ids"]
        assert theirs.encode_prompt(probe["text"]) == probe["ids"]


def test_vocabulary_fits_the_weights(oracle, tokenizer):
    size = json.loads((oracle / "llama" / "config.json").read_text())["vocab_size"]
    check_vocabulary(tokenizer, size)
    with pytest.raises(ValueError, match="do not belong together"):
        check_vocabulary(Tokenizer.load(oracle / "tokenizer_extended"), size)


def test_heads_batch(oracle, builder, tokenizer, inputs):
    arrays = np.load(oracle / "heads.npz")
    users = builder.users(histories(inputs("train", arrays["user"])))
    assert_ids(users, arrays["user_token_ids"], tokenizer, USER_SLOT)
    items = builder.items(arrays["candidates"].reshape(-1))
    assert_ids(items, arrays["item_token_ids"], tokenizer, ITEM_SLOT)


def test_trace_batches(oracle, builder, tokenizer, inputs):
    tokens = np.load(oracle / "train_tokens.npz")
    trace = json.loads((oracle / "train_trace.json").read_text())
    steps = trace["steps"]
    assert len(steps) == len([name for name in tokens if name.startswith("user_ids")])
    for number, step in enumerate(steps):
        users = builder.users(histories(inputs("train", step["users"])))
        assert_ids(users, tokens[f"user_ids_{number:02}"], tokenizer, USER_SLOT)
        items = builder.items(np.array(step["candidates"]).reshape(-1))
        assert_ids(items, tokens[f"item_ids_{number:02}"], tokenizer, ITEM_SLOT)


def test_evaluation(oracle, builder, tokenizer, inputs, catalog):
    arrays = np.load(oracle / "eval.npz")
    for stage in ("test", "valid"):
        users = builder.users(histories(inputs(stage, arrays[f"{stage}_clean/user"])))
        assert_ids(users, arrays[f"{stage}_clean/user_token_ids"], tokenizer, USER_SLOT)
    items = builder.items(np.arange(1, catalog.size))
    assert_ids(items, arrays["item_token_ids"], tokenizer, ITEM_SLOT)
    assert builder.trimmed["lost_items"] == builder.trimmed["lost_title_tokens"] == 0
