"""Tokenizers of every kind, made on the spot, and the ground truth of a prompt."""

import functools

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Backend

from llmsrec_jax import config
from llmsrec_jax.data.interactions import Catalog, UserSequences, offsets_of
from llmsrec_jax.prompts.prompts import PromptBuilder, Prompts
from llmsrec_jax.prompts.templates import (
    HISTORY_SLOT,
    ITEM_SLOT,
    SPECIAL,
    TEMPLATES,
    USER_REPR_SLOT,
    USER_SLOT,
    Template,
    named,
)
from llmsrec_jax.prompts.tokens import ItemTokens, Tokenizer, training_texts

DAY = 86_400_000
TITLES = [
    'Plain "quoted" Lamp, 40W',
    "  two leading spaces",
    "trailing space ",
    "'s apostrophe first",
    "日本語のタイトル 🎧",
    "🎧🎧 emoji first",
    "\ttab and\nnewline\r\n",
    "",
    "1234567 digits",
    "é combining e\u0301 \u200d joiner",
    "{title} braces {number}",
    "-- dashes!! (2nd) [x]",
    "A",
]


def catalog(titles: list[str] = TITLES) -> Catalog:
    keys = np.array(["", *(f"i{n}" for n in range(len(titles)))])
    return Catalog(keys, ["", *titles], np.array([False, *(bool(t) for t in titles)]))


def histories(rows: list[list[tuple[int, int]]]) -> UserSequences:
    """Users as lists of (item, day since 1970)."""
    flat = [pair for row in rows for pair in row]
    items = np.array([item for item, _ in flat], np.int32)
    days = np.array([day for _, day in flat], np.int64)
    return UserSequences(offsets_of(np.array([len(row) for row in rows])), items, days * DAY + 5)


@functools.cache
def corpus() -> tuple[str, ...]:
    days = np.arange(14_000, 14_060) * DAY
    return tuple(text for form in TEMPLATES for text in training_texts(catalog(), form, days))


def byte_level() -> Tokenizer:
    return Tokenizer.train(corpus(), 600)


def _piecewise(before: object, normalizer: object) -> Backend:
    """BPE with byte fallback over text in which spaces are \u2581, as sentencepiece has it."""
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    characters = sorted({c for text in corpus() for c in text if c.isprintable() and c != " "})
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<unk>", "<s>", *(f"<0x{b:02X}>" for b in range(256))],
        initial_alphabet=[*characters, "\u2581"],
        show_progress=False,
    )
    backend.train_from_iterator(corpus(), trainer)
    backend = Backend.from_str(backend.to_str())
    backend.normalizer, backend.pre_tokenizer = normalizer, before
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    backend.decoder = decoders.ByteFallback()
    return backend


def prepending() -> Tokenizer:
    """Llama-2's published pipeline: a space before the text and after every special token."""
    spaces = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    backend = _piecewise(pre_tokenizers.Sequence([]), normalizers.Sequence(spaces))
    return Tokenizer(backend)


def first_only() -> Tokenizer:
    """A space before the text only."""
    return Tokenizer(
        _piecewise(pre_tokenizers.Metaspace(prepend_scheme="first", split=False), None)
    )


def unsplittable() -> Tokenizer:
    """Merges run across spaces: nothing can be cut before a title."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(corpus(), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return Tokenizer(backend)


def context_dependent() -> Tokenizer:
    """No token spans the cut, but a word's ids depend on the character before the space."""
    backend = Backend(models.WordLevel({"<unk>": 0, ', "': 1, ",": 2, ' "': 3}, unk_token="<unk>"))
    pattern = Regex(r', "|,| "|[^, ]+| ')
    backend.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    backend.add_special_tokens([AddedToken("<s>", special=True, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return Tokenizer(backend)


MADE = {
    "byte_level": byte_level,
    "prepending": prepending,
    "first_only": first_only,
    "unsplittable": unsplittable,
}


@functools.cache
def made(name: str) -> Tokenizer:
    return MADE[name]()


def builder(tokenizer: Tokenizer, titles: list[str] = TITLES, **settings) -> PromptBuilder:
    cfg = config.Prompts(**settings)
    items = catalog(titles)
    wording = named(cfg.wording, cfg.item_repr)
    tokens = ItemTokens.build(tokenizer, items, wording, progress=iter)
    return PromptBuilder(tokenizer, tokens, items, cfg)


def vectors(rows: int) -> np.ndarray:
    """Of the teacher, float32 [rows, E]: row by row other ones."""
    return np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)


def restored(prompts: Prompts, row: int, tokenizer: Tokenizer, out: str) -> list[int]:
    """Ids of one prompt with the slots' ids in place."""
    span = slice(prompts.offsets[row], prompts.offsets[row + 1])
    end = tokenizer.special_id(out)
    inner = (tokenizer.special_id(slot) for slot in (HISTORY_SLOT, USER_REPR_SLOT))
    slots = np.array([0, *inner, end, end])
    return (prompts.ids[span] + slots[prompts.kind[span]]).tolist()


def assert_users_exact(
    prompts: Prompts,
    tokenizer: Tokenizer,
    form: Template,
    expected: list[list[tuple[int, int, str]]],
) -> None:
    """Prompts equal the tokenizer's own encoding of the strings of (number, day, title) lists."""
    assert len(prompts) == len(expected)
    for row, items in enumerate(expected):
        text = form.user([(number, form.date(day), title) for number, day, title in items])
        assert restored(prompts, row, tokenizer, USER_SLOT) == tokenizer.encode_prompt(text)


def assert_items_exact(
    prompts: Prompts, tokenizer: Tokenizer, form: Template, titles: list[str]
) -> None:
    assert len(prompts) == len(titles)
    for row, title in enumerate(titles):
        text = form.item(title)
        assert restored(prompts, row, tokenizer, ITEM_SLOT) == tokenizer.encode_prompt(text)


def without_slots(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokenizer's own encoding of a prompt, history slots left out."""
    slot = tokenizer.special_id(HISTORY_SLOT)
    return [token for token in tokenizer.encode_prompt(text) if token != slot]


def spells_special(text: str) -> bool:
    """Whether a tokenizer would read a special token (or half of a byte pair mark) from the text."""
    return any(token in text for token in (*SPECIAL, "<s>", "<unk>", "<|", "<0x"))
