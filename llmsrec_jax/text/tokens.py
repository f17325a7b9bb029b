"""Texts as an encoder reads them: special tokens around, cut where they are too long. Plain text stays plain."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmsrec_jax import hf_folder

_CHUNK = 4096  # texts at a time: what the library returns of each is large


class Texts(NamedTuple):
    """Ids of texts, how many of them were cut, and of how many no token was left."""

    ids: list[np.ndarray]  # int32 each
    cut: int
    empty: int


class Tokenizer:
    def __init__(self, backend: Any, max_tokens: int, lower: bool = False):
        """backend: a tokenizers.Tokenizer, owned by this object from now on. max_tokens: special ones included.

        Raises ValueError if it adds no special tokens, or so many that no text fits.
        """
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # i.e. those that a text spells are text
        self._special = len(backend.encode("").ids)
        if not 0 < self._special < max_tokens:
            raise ValueError(
                f"the tokenizer adds {self._special} special tokens to a text of at most {max_tokens}: not an encoder's"
            )
        backend.enable_truncation(max_tokens)
        self._backend, self._lower = backend, lower
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def load(cls, folder: Path, vocab: int, max_tokens: int, lower: bool = False) -> "Tokenizer":
        """Of a model's folder; vocab: rows of the model's table.

        Raises ValueError if there is none to read, or it has more tokens than the model.
        """
        try:
            backend = hf_folder.tokenizer(folder)
        except Exception as error:  # the libraries raise nothing more special
            raise ValueError(f"no readable tokenizer in {folder} ({error})") from error
        try:
            tokenizer = cls(backend, max_tokens, lower)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        if tokenizer.vocab_size > vocab:
            raise ValueError(
                f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab} embeddings: "
                "they do not belong together"
            )
        return tokenizer

    def encode(self, texts: Sequence[str], instead: str = "") -> Texts:
        """`instead` is read where no token is left of a text; ValueError naming the rows of such texts if it is empty too."""
        ids, cut = [], 0
        for start in range(0, len(texts), _CHUNK):
            chunk = [_clean(text) for text in texts[start : start + _CHUNK]]
            if self._lower:
                chunk = [text.lower() for text in chunk]
            for one in self._backend.encode_batch(chunk):
                cut += bool(one.overflowing)
                ids.append(np.array(one.ids, np.int32))
        empty = [row for row, one in enumerate(ids) if len(one) <= self._special]
        if empty and instead:
            (other,) = self.encode([instead]).ids
            for row in empty:
                ids[row] = other
        elif empty:
            rows = ", ".join(map(str, empty[:5])) + (", .." if len(empty) > 5 else "")
            raise ValueError(f"{len(empty)} of {len(ids)} texts are empty (rows {rows})")
        return Texts(ids, cut, len(empty))


def _clean(text: str) -> str:
    """Text that can be encoded: no lone surrogates (from bytes that were not UTF-8)."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
