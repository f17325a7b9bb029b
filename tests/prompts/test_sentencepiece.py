"""The reader of sentencepiece models, on a made model; real ones against the library in test_real_titles.py."""

import struct

import pytest

from llmsrec_jax.prompts import sentencepiece
from llmsrec_jax.prompts.tokens import Tokenizer

WORDS = ["\u2581a", "\u2581b", "ab", "\u2581\u2581"]
SCORES = [-1.0, -2.0, -3.0, -1e9]


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def model(model_type=2, charsmap=b"", dummy_prefix=1, remove_spaces=0) -> bytes:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{b:02X}>", 0.0, 6) for b in range(256)]
    pieces += [(w, s, 1) for w, s in zip(WORDS, SCORES, strict=True)]
    pieces += [(c, -10.0 - i, 1) for i, c in enumerate("\u2581ab")]
    data = b""
    for text, score, kind in pieces:
        data += field(1, field(1, text.encode()) + field(2, score) + field(3, kind))
    data += field(2, field(3, model_type) + field(40, 0) + field(41, 1) + field(42, 2))
    return data + field(3, field(2, charsmap) + field(3, dummy_prefix) + field(4, remove_spaces))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(model())
    return tmp_path


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    names = {i: t for t, i in tokenizer._plain.get_vocab(True).items()}
    return [names[i] for i in tokenizer.encode(text)]


def test_merges_follow_the_scores(folder):
    tokenizer = Tokenizer.load(folder)
    assert tokens(tokenizer, "ab") == ["\u2581a", "b"]  # -1 before -3
    assert tokens(tokenizer, "bab") == ["\u2581b", "ab"]
    assert tokens(tokenizer, "a  b") == [
        "\u2581a",
        "\u2581",
        "\u2581b",
    ]  # the pair of spaces scores last
    assert tokens(tokenizer, "a  ") == ["\u2581a", "\u2581\u2581"]


def test_other_characters_become_bytes(folder):
    assert tokens(Tokenizer.load(folder), "aé") == ["\u2581a", "<0xC3>", "<0xA9>"]


def test_begin_of_text_and_text_after_a_slot(folder):
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.bos_ids == [1]
    assert tokenizer.encode_prompt("a[HistoryEmb]b")[2:] == [
        tokenizer.special_id("[HistoryEmb]"),
        *tokenizer.encode("b"),  # a space is put before it, too
    ]


def test_saved_as_json(folder, tmp_path):
    tokenizer = Tokenizer.load(folder)
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    "content",
    [
        model(model_type=1),
        model(charsmap=b"x"),
        model(dummy_prefix=0),
        model(remove_spaces=1),
        model()[:-40],
        b"",
        b"IQ== 0\nIg== 1\n",
    ],
    ids=["unigram", "charsmap", "no_prefix", "remove_spaces", "cut", "empty", "tiktoken"],
)
def test_others_are_refused(tmp_path, content):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match="tokenizer.model is not a sentencepiece model as Llama-2's"
    ):
        sentencepiece.backend(path)
