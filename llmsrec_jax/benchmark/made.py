"""Made data with the lengths of real data: users, items and titles as the paper's datasets have them, without a file.

Your own files (data.source=files) are taken as they are, but for the titles. Speed depends on lengths alone, so titles are random token ids; those of candidates
and answers, which are looked up as text, are words without meaning. A statistic is a list of quantiles, drawn from by inversion.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np

from llmsrec_jax import config
from llmsrec_jax.data.interactions import Catalog, UserSequences, offsets_of
from llmsrec_jax.data.splits import Dataset, prepare
from llmsrec_jax.prompts.prompts import PromptBuilder
from llmsrec_jax.prompts.templates import DAY_MS, named
from llmsrec_jax.prompts.titles import TitlePrompts
from llmsrec_jax.prompts.tokens import ItemTokens

SHARES = (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1)
# Llama-3 tokens of ` "title"`, quotes included, at SHARES: Amazon 2018 Electronics (23,133 titles, mean 31.0) and Industrial
# and Scientific (3,686 titles, mean 26.3)
ELECTRONICS = (1, 8, 12, 14, 18, 21, 24, 27, 31, 36, 43, 52, 60, 71, 82, 162, 530)
SCIENTIFIC = (4, 7, 12, 15, 18, 21, 23, 26, 28, 31, 34, 38, 43, 46, 50, 65, 75)
# interactions per user: Amazon 2018 Electronics (5-core, mean 8.6), and Amazon Games as SASRec's authors have it (mean 9.3)
FIVE_CORE = (5, 5, 5, 5, 5, 6, 6, 7, 7, 9, 10, 14, 19, 27, 34, 70, 263)
GAMES = (1, 3, 4, 5, 5, 5, 6, 6, 7, 8, 11, 15, 22, 35, 50, 129, 860)
FIRST_DAY, DAYS = 17_000, 730  # of the interactions
QUOTES = 2  # tokens of a title's length
OPENING = re.compile(r" ?[A-Za-z]+|[0-9]{1,3}| ?[^\s\w]+|\s")  # as Llama-3 cuts the templates


@dataclass(frozen=True)
class Shape:
    """Sizes and length statistics of a dataset after preprocessing."""

    users: int
    items: int
    interactions: int
    history: Sequence[int]  # interactions per user at SHARES, stretched to the mean of this dataset
    title: Sequence[int]  # tokens at SHARES

    def smaller(self, users: int) -> "Shape":
        """With at most this many users, all else in proportion (0 = as it is)."""
        share = min(users, self.users) / self.users if users else 1.0
        scaled = [round(share * n) for n in (self.users, self.items, self.interactions)]
        return replace(self, users=scaled[0], items=scaled[1], interactions=scaled[2])


# users, items, interactions: Table 10 (E18), and for Games the published file
SHAPES = {
    "Industrial_and_Scientific": Shape(23_627, 25_764, 266_164, FIVE_CORE, SCIENTIFIC),
    "Electronics": Shape(27_601, 31_533, 292_308, FIVE_CORE, ELECTRONICS),
    "Video_Games": Shape(31_013, 23_715, 287_107, GAMES, ELECTRONICS),
}


def shape(cfg: config.Data) -> Shape:
    """The one of `data.category`, else Scientific's, for at most `data.max_users` users."""
    return SHAPES.get(cfg.category, SHAPES["Industrial_and_Scientific"]).smaller(cfg.max_users)


def given(cfg: config.Data, seed: int) -> Dataset | None:
    """The prepared dataset of your own files; None where data are to be made. Raises ValueError: an unusable file."""
    if cfg.source != "files":
        return None
    from llmsrec_jax.data import sources  # needs more packages than made data

    catalog, interactions, counts = sources.load(cfg, seed)
    return prepare(catalog, interactions, cfg, seed, counts)[0]


def shape_of(dataset: Dataset, like: Shape) -> Shape:
    """Its sizes, with the titles of `like`."""
    lengths = dataset.train.lengths
    history = [int(n) for n in np.quantile(lengths, SHARES)]
    sizes = len(dataset), dataset.catalog.size - 1, int(lengths.sum())
    return Shape(*sizes, history, like.title)


def draw(quantiles: Sequence[int], n: int, rng: np.random.Generator) -> np.ndarray:
    """float64 [n]: the quantile function at evenly spread places, in random order: every sample has its mean."""
    places = (np.arange(n) + rng.random(n)) / n
    return np.interp(rng.permutation(places), SHARES, quantiles)


def history_lengths(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """int64 [users]: interactions per user; the mean is the dataset's, the shape that of `history` above its minimum."""
    drawn = draw(shape.history, shape.users, rng)
    low = drawn.min()
    stretch = (shape.interactions / shape.users - low) / (drawn.mean() - low)
    return np.minimum(np.rint(low + (drawn - low) * stretch).astype(np.int64), shape.items // 2)


def dataset(shape: Shape, seed: int) -> Dataset:
    """Uniform items, some days apart; the last two interactions of a user are its validation and test item."""
    rng = np.random.default_rng([seed, zlib.crc32(b"made")])
    lengths = history_lengths(shape, rng)
    is_long = lengths > 2  # others cannot be evaluated
    kept = np.where(is_long, lengths - 2, lengths)
    offsets = offsets_of(kept)
    steps = rng.integers(0, max(DAYS // int(lengths.max()), 1) + 1, offsets[-1])
    rows = np.repeat(np.arange(shape.users), kept)
    days = FIRST_DAY + rng.integers(DAYS, size=shape.users)[rows] + np.cumsum(steps) % DAYS
    order = np.lexsort((days, rows))
    times = days[order].astype(np.int64) * DAY_MS
    item = lambda: np.where(is_long, rng.integers(1, shape.items + 1, shape.users), 0)
    last = np.full(shape.users, (FIRST_DAY + 2 * DAYS) * DAY_MS)
    names = lambda letter, n: np.array([f"{letter}{i}" for i in range(n)])
    keys = np.concatenate([[""], names("i", shape.items)])
    return Dataset(
        name="made",
        catalog=Catalog(keys, [*keys], np.arange(shape.items + 1) > 0),
        user_keys=names("u", shape.users),
        train=UserSequences(
            offsets, rng.integers(1, shape.items + 1, offsets[-1]).astype(np.int32), times
        ),
        valid_item=item().astype(np.int32),
        valid_time=last,
        test_item=item().astype(np.int32),
        test_time=last + DAY_MS,
    )


class Tokens:
    """Stands in for a tokenizer: Llama-3's number of tokens for the templates' text, ids without meaning."""

    def __init__(self, vocab: int):
        self.vocab_size, self.fingerprint = vocab, "made"
        self.bos_ids, self.end = [0], 1

    def encode(self, text: str) -> list[int]:
        """One id per word, number of up to three digits, or run of signs."""
        return [zlib.crc32(piece.encode()) % self.vocab_size for piece in OPENING.findall(text)]

    def encode_batch(self, texts: Sequence[str], *, after_slot: bool) -> list[list[int]]:
        return [self.encode(text) for text in texts]


@dataclass(frozen=True)
class Made:
    """A dataset and its prompts."""

    shape: Shape
    seed: int
    vocab: int
    prompts: config.Prompts
    given: Dataset | None = None  # real users and items of that shape

    @cached_property
    def dataset(self) -> Dataset:
        return self.given or dataset(self.shape, self.seed)

    @cached_property
    def _lengths(self) -> np.ndarray:
        """int64 [I]: tokens of titles, quotes included; the pad has one too."""
        rng = np.random.default_rng([self.seed, zlib.crc32(b"titles")])
        drawn = np.rint(draw(self.shape.title, self.shape.items, rng)).astype(np.int64)
        return np.concatenate([[1], np.maximum(drawn, 1)])

    @cached_property
    def builder(self) -> PromptBuilder:
        """The product's own, over random titles."""
        rng = np.random.default_rng([self.seed, zlib.crc32(b"ids")])
        offsets = offsets_of(self._lengths)
        ids = rng.integers(self.vocab, size=offsets[-1]).astype(np.int32)
        tokenizer = Tokens(self.vocab)
        wording = named(self.prompts.wording, self.prompts.item_repr)
        key = {"tokenizer": tokenizer.fingerprint, "wording": wording}
        tokens = ItemTokens(ids, offsets, True, key)
        return PromptBuilder(cast(Any, tokenizer), tokens, self.dataset.catalog, self.prompts)

    def titles(self, candidates: int) -> TitlePrompts:
        """The product's own, over words without meaning. Raises what that raises."""
        of = lambda i, words: " ".join(_word(i + j) for j in range(max(words, 1)))
        words = [of(i, n - QUOTES) for i, n in enumerate(self._lengths)]
        catalog = replace(self.dataset.catalog, titles=words)
        return TitlePrompts(self.builder, catalog, self.prompts, candidates)


def _word(number: int) -> str:
    """Of letters alone, another one for every number."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))
