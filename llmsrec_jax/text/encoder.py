"""Texts to vectors: sorted by length into batches of few static shapes.

A text's vector does not depend on what else is encoded, to the last bit: its own length alone chooses the program that makes it.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from llmsrec_jax.text import config, weights
from llmsrec_jax.text.config import Pooling
from llmsrec_jax.text.model import Encoder, vectors
from llmsrec_jax.text.tokens import Tokenizer

WIDTHS = (8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # tokens; longer ones double
TOKENS = 512  # places in a batch: more make no place cheaper on a CPU, and leave more of the last batches empty


class Encoded(NamedTuple):
    vectors: np.ndarray  # float32 [texts, D]
    cut: int  # texts of which only the beginning was read
    empty: int  # texts instead of which something else was read


class TextEncoder:
    """A frozen encoder with its tokenizer."""

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, pooling: Pooling):
        graphdef, self._state = nnx.split(encoder)
        self.width, self.pooling = encoder.cfg.d, pooling
        self._limit = min(encoder.cfg.max_tokens, pooling.max_tokens)
        self._tokenizer = tokenizer
        self._run = jax.jit(
            lambda state, ids, length: vectors(nnx.merge(graphdef, state), ids, length, pooling)
        )

    def encode(self, texts: Sequence[str], instead: str = "") -> Encoded:
        """One vector per text, with a bar on terminals; `instead` as in `Tokenizer.encode`, which raises ValueError."""
        from tqdm import tqdm

        ids, cut, empty = self._tokenizer.encode(texts, instead)
        result = np.empty((len(ids), self.width), np.float32)
        pending: tuple[np.ndarray, jax.Array] | None = None
        batches = list(_batches([len(one) for one in ids], self._limit))
        for rows, shape in tqdm(batches, desc="texts", unit="batch", disable=None):
            padded, length = np.zeros(shape, np.int32), np.ones(shape[0], np.int32)
            for i, row in enumerate(rows):
                padded[i, : len(ids[row])] = ids[row]
                length[i] = len(ids[row])
            made = rows, self._run(self._state, padded, length)
            if pending is not None:  # the device works on a batch while the one before is fetched
                _keep(result, *pending)
            pending = made
        if pending is not None:
            _keep(result, *pending)
        return Encoded(result, cut, empty)


def load(name: str) -> TextEncoder:
    """The encoder in a Hugging Face folder, or behind a name of `config.PACKAGES`; pooled as the folder says.

    Raises ValueError saying what is missing or does not fit.
    """
    folder: Path = config.locate(name)
    cfg, pooling = config.from_hf(folder), config.pooling(folder)
    limit = min(cfg.max_tokens, pooling.max_tokens)
    tokenizer = Tokenizer.load(folder, cfg.vocab, limit, pooling.lower)
    return TextEncoder(weights.load(folder, cfg), tokenizer, pooling)


def _keep(result: np.ndarray, rows: np.ndarray, made: jax.Array) -> None:
    result[rows] = np.asarray(made)[: len(rows)]


def _batches(lengths: Sequence[int], limit: int) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """(rows, shape) of every batch: texts of one width together, the last batch of a width as large as the others."""
    found = np.asarray([_width(length, limit) for length in lengths], np.int64)
    for width in np.unique(found).tolist():
        rows = np.flatnonzero(found == width)
        height = max(1, TOKENS // width)
        for start in range(0, len(rows), height):
            yield rows[start : start + height], (height, width)


def _width(length: int, limit: int) -> int:
    fitting = [width for width in WIDTHS if width >= length]
    return min(fitting[0] if fitting else 1 << math.ceil(math.log2(length)), limit)
