"""CF embeddings on another dataset: of items that the teacher knows its own, of those it never saw what `transfer.unseen` says (E13)."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from llmsrec_jax import config
from llmsrec_jax.data.interactions import Catalog
from llmsrec_jax.data.splits import Dataset
from llmsrec_jax.models import cf
from llmsrec_jax.regression import ridge
from llmsrec_jax.stages.llm import LLMRec
from llmsrec_jax.stages.preparation import Prepared
from llmsrec_jax.stages.teacher import Teacher
from llmsrec_jax.stages.tokens import Tokens

# A random stream of its own: with the teacher's, item i would begin where item i of the other catalogue did
UNSEEN_KEY = 3
TITLES = 1024  # at once


class Place(NamedTuple):
    """A dataset, and a teacher trained there."""

    data: Prepared
    tokens: Tokens
    teacher: Teacher


def embeddings(home: Place, there: Place, llm: LLMRec, cfg: config.Config) -> np.ndarray:
    """float32 [I, E] of the items there, for a teacher and a model trained at home."""
    made = np.array(WAYS[cfg.transfer.unseen](home, there, llm, cfg), np.float32)
    ours, theirs = known(home.data.dataset, there.data.dataset.catalog, cfg.transfer.known)
    made[theirs] = home.teacher.items[ours]
    return made


def known(home: Dataset, there: Catalog, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows int64 [n] at home and there of the items there that the teacher knows; `rule` as transfer.known."""
    ours, theirs = common(home.catalog, there)
    keep = {
        "trained": home.counts[ours] > 0,
        "catalogue": np.ones(len(ours), bool),
        "none": np.zeros(len(ours), bool),
    }[rule]
    return ours[keep], theirs[keep]


def common(one: Catalog, other: Catalog) -> tuple[np.ndarray, np.ndarray]:
    """Rows int64 [n] of the same items in both catalogues. Key and title are the same: keys alone may be mere numbers."""
    rows = {item: row for row, item in enumerate(_named(one)) if row}
    found = [(rows[item], row) for row, item in enumerate(_named(other)) if row and item in rows]
    ours, theirs = np.array(found, np.int64).reshape(-1, 2).T
    return ours, theirs


def _named(catalog: Catalog) -> Iterator[tuple[str, str]]:
    return zip(catalog.keys.tolist(), catalog.titles, strict=True)


def _random(home: Place, there: Place, llm: LLMRec, cfg: config.Config) -> np.ndarray:
    """As a teacher for that catalogue begins: an untrained item says nothing, so it is at chance (as in the paper)."""
    key = jax.random.fold_in(jax.random.key(cfg.seed), UNSEEN_KEY)
    size, rngs = there.data.dataset.catalog.size, nnx.Rngs(params=key)
    return np.asarray(cf.new(size, cfg.teacher, rngs).item_embedding[...])


def _zero(home: Place, there: Place, llm: LLMRec, cfg: config.Config) -> np.ndarray:
    return np.zeros((there.data.dataset.catalog.size, cfg.teacher.d), np.float32)


def _target(home: Place, there: Place, llm: LLMRec, cfg: config.Config) -> np.ndarray:
    """Of another training: the axes of the two spaces need not agree."""
    there.teacher.train()
    return there.teacher.items


def _text(home: Place, there: Place, llm: LLMRec, cfg: config.Config) -> np.ndarray:
    """From the mean of a title's token embeddings in the backbone; fitted to the items that the teacher was trained on."""
    seen, items = np.flatnonzero(home.data.dataset.counts), home.teacher.items
    fitted = ridge((x, items[rows]) for rows, x in _means(home, seen, llm))
    made = np.zeros((there.data.dataset.catalog.size, items.shape[1]))
    for rows, x in _means(there, np.arange(1, len(made)), llm):
        made[rows] = fitted(x)
    return made


def _means(place: Place, items: np.ndarray, llm: LLMRec) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(items [n], means of their titles' token embeddings [n, D]), some items at a time."""
    titles, tokenizer = place.data.dataset.catalog.titles, place.tokens.tokenizer
    for start in range(0, len(items), TITLES):
        rows = items[start : start + TITLES]
        ids = tokenizer.encode_batch([titles[row] for row in rows], after_slot=False)
        lengths = np.array([len(each) for each in ids])  # no title is empty (data.missing_title)
        used, at = np.unique(np.concatenate(ids), return_inverse=True)
        total = np.add.reduceat(llm.embedded(used)[at], np.cumsum(lengths) - lengths, axis=0)
        yield rows, total / lengths[:, None]


WAYS: dict[config.Unseen, Callable[[Place, Place, LLMRec, config.Config], np.ndarray]] = {
    "random": _random,
    "zero": _zero,
    "target": _target,
    "text": _text,
}
