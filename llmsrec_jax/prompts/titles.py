"""Prompts that ask for a title (Table 1, E1): a history, candidates to choose from, and the titles that may be the answer.

A row is the prompt and, behind it, answers: one in training; in evaluation all candidates, as branches that see the prompt and
nothing of each other, so that keys and values of what they share are computed once. An answer is the title as candidates show it
and the token that ends a text: so no title is the beginning of another one. What it is asked for is read off the token before it.

Candidates are encoded as they stand behind a slot, one by one.
"""

import threading
from typing import NamedTuple

import numpy as np

from llmsrec_jax import config
from llmsrec_jax.batch import HISTORY
from llmsrec_jax.data.interactions import Catalog, Histories, UserSequences, offsets_of, spans
from llmsrec_jax.prompts.pieces import Pieces, Spans
from llmsrec_jax.prompts.prompts import Asked, Branches, LatePrompts, PromptBuilder, Prompts
from llmsrec_jax.prompts.templates import named, template

_ROOM = 32  # tokens that candidates always leave to the history
# texts of a title: the first candidate, another one, an answer
_FIRST, _LATER, _ANSWER, _KINDS = range(4)


class Question(NamedTuple):
    """What n prompts ask."""

    candidates: np.ndarray  # int [n, C] item ids, in the order in which they are shown
    answers: np.ndarray  # int [n, A] item ids of the titles that may follow

    def take(self, rows: np.ndarray) -> "Question":
        """Of `rows`, in that order."""
        return Question(self.candidates[rows], self.answers[rows])


class TitlePrompts:
    """Builds them. Titles are cut to `prompts.title_tokens`."""

    def __init__(
        self, builder: PromptBuilder, catalog: Catalog, cfg: config.Prompts, candidates: int
    ):
        """builder: of the same settings. candidates: how many prompts list at most.

        Raises:
          ValueError: so many long titles leave no room for a history; too few differ; no token ends a text.
        """
        self._builder, self._titles, self._cfg = builder, catalog.titles, cfg
        self._form = template(named(cfg.wording, cfg.item_repr), cfg.user_repr)
        self._tokenizer, self._slots = builder.tokenizer, int(cfg.item_repr)
        self._end = self._tokenizer.end
        (ask,) = self._tokenizer.encode_batch([self._form.ask], after_slot=True)
        (between,) = self._tokenizer.encode_batch([self._form.between], after_slot=True)
        self._ask, self._separator = np.array(ask, np.int32), len(between)
        self._pieces, self._lock = Pieces(), threading.Lock()
        self._check(candidates)

    def _check(self, candidates: int) -> None:
        ids, length = self.tokens(np.arange(1, len(self._titles))[:, None])
        _, same, distinct = np.unique(ids[:, 0], axis=0, return_inverse=True, return_counts=True)
        if len(distinct) < candidates:
            raise ValueError(
                f"there are {len(distinct)} different titles, as far as prompts.title_tokens={self._cfg.title_tokens} shows "
                f"them, and a prompt lists {candidates}: too few to tell candidates apart"
            )
        # int [I]: equal for items whose titles are
        self.same = np.concatenate([[-1], same.ravel()])
        self.alike = int(distinct[distinct > 1].sum())  # items that share what is shown of a title
        self.most = int(length.max())  # tokens of an answer, its end included
        # tokens of a candidate, what is before it and its slot included, at most
        every = np.tile(np.arange(1, len(self._titles)), (2, 1)).T
        self._block = int(self._shown(every).length.max()) + self._slots
        need = self._builder.template_tokens + candidates * self._block + len(self._ask)
        need += self._cfg.title_tokens + _ROOM
        if need > self._cfg.max_tokens:
            raise ValueError(
                f"prompts.max_tokens={self._cfg.max_tokens} has no room for a history beside {candidates} candidates of up to "
                f"{self._block} tokens: that takes {need}; or lower prompts.title_tokens={self._cfg.title_tokens}"
            )

    def build(
        self,
        histories: UserSequences,
        question: Question,
        cf_user_repr: np.ndarray | None = None,
    ) -> Prompts:
        """Rows of prompts and answers. cf_user_repr: as for PromptBuilder.users, which says what is raised."""
        shown, answer = self._shown(question.candidates), self._answer(question.answers)
        n = len(histories)
        block = _grid(shown, n) + self._slots
        tail = block.sum(axis=1) + len(self._ask)
        opening = self._builder.users(histories, cf_user_repr, tail + self._cfg.title_tokens)
        trunk, own = opening.lengths + tail, _grid(answer, n)
        offsets = offsets_of(trunk + own.sum(axis=1))
        ids, kind, slot_item = (np.zeros(offsets[-1], t) for t in (np.int32, np.int8, np.int32))
        at = spans(offsets[:-1], opening.lengths)
        ids[at], kind[at], slot_item[at] = opening.ids, opening.kind, opening.slot_item
        begin = offsets[:-1] + opening.lengths
        starts = begin[:, None] + np.cumsum(block, axis=1) - block
        _write(ids, starts.ravel(), shown)
        slots = (starts.ravel() + shown.length)[: starts.size * self._slots]
        kind[slots], slot_item[slots] = HISTORY, question.candidates.ravel()[: len(slots)]
        closing = (offsets[:-1] + trunk)[:, None] - len(self._ask) + np.arange(len(self._ask))
        ids[closing] = self._ask
        before = trunk[:, None] + np.cumsum(own, axis=1) - own  # tokens of the row
        _write(ids, (offsets[:-1, None] + before).ravel(), answer)
        return Prompts(
            ids,
            kind,
            slot_item,
            offsets,
            np.zeros(n, np.int32),
            opening.cf_user_repr,
            _branches(trunk, before, own) if own.shape[1] > 1 else None,
            self._asked(trunk, before, answer),
        )

    def lengths(self, histories: Histories, question: Question) -> np.ndarray:
        """int64 [n]: tokens of the rows of `build(histories, question)`, at a fraction of the work."""
        n = len(histories)
        tail = (_grid(self._shown(question.candidates), n) + self._slots).sum(axis=1)
        tail += len(self._ask)
        opening = sum(self._builder.user_lengths(histories, tail + self._cfg.title_tokens))
        return opening + tail + self.asked(question) - question.answers.shape[1]

    def longest(self, histories: Histories, candidates: int) -> int:
        """Tokens of a row with one answer, at most, whichever `candidates` items are listed."""
        opening = int(np.max(sum(self._builder.user_lengths(histories))))
        tail = candidates * self._block + len(self._ask)
        return min(self._cfg.max_tokens, opening + tail + self.most)

    def asked(self, question: Question) -> np.ndarray:
        """int64 [n]: tokens that every row is asked for."""
        return (_grid(self._answer(question.answers), len(question.answers)) + 1).sum(axis=1)

    def later(
        self, histories: Histories, question: Question, cf_user_repr: np.ndarray | None = None
    ) -> LatePrompts:
        """`build(histories, question, cf_user_repr)`, measured now and built when they are taken, some at a time."""
        lengths = self.lengths(histories, question)
        count = np.minimum(histories.lengths, self._cfg.history_len) + question.candidates.shape[1]

        def build(rows: np.ndarray) -> Prompts:
            told = None if cf_user_repr is None else cf_user_repr[rows]
            return self.build(histories.take(rows), question.take(rows), told)

        return LatePrompts(np.zeros_like(lengths), lengths, count * self._slots, build)

    def tokens(self, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of answers int [n, A]: int32 [n, A, T] ids, the end included, 0 behind it; and their lengths int64 [n, A]."""
        found = self._answer(answers)
        length = _grid(found, len(answers)) + 1
        ids = np.zeros((answers.size, int(length.max(initial=1))), np.int32)
        flat = ids.ravel()
        starts = np.arange(answers.size) * ids.shape[1]
        _write(flat, starts, found)
        flat[starts + found.length] = self._end
        return ids.reshape(*answers.shape, -1), length

    def _asked(self, trunk: np.ndarray, before: np.ndarray, answer: Spans) -> Asked:
        """Behind prompts of `trunk` [n] tokens, answers that begin at `before` [n, A] of their rows."""
        count = answer.length + 1
        step = spans(np.zeros_like(count), count)
        first = step == 0
        place = np.where(
            first,
            np.repeat(np.repeat(trunk - 1, before.shape[1]), count),
            np.repeat(before.ravel(), count) + step - 1,
        )
        token = np.full(len(step), self._end, np.int32)
        _write(token, offsets_of(count)[:-1], answer)
        rows = count.reshape(before.shape).sum(axis=1)
        return Asked(place.astype(np.int32), token, offsets_of(rows))

    def _shown(self, candidates: np.ndarray) -> Spans:
        """Text of candidates [n, C], row after row: what is before a title, and the title."""
        kinds = np.full(np.shape(candidates), _LATER)
        kinds[:, 0] = _FIRST
        limit = self._cfg.title_tokens + np.where(kinds == _LATER, self._separator, 0)
        return self._cut(np.asarray(candidates, np.int64), kinds, limit)

    def _answer(self, items: np.ndarray) -> Spans:
        """Titles of items of any shape, in order."""
        return self._cut(np.asarray(items, np.int64), _ANSWER, self._cfg.title_tokens)

    def _cut(self, items: np.ndarray, kinds: np.ndarray | int, limit: np.ndarray | int) -> Spans:
        codes = (items * _KINDS + kinds).ravel()
        with self._lock:
            found = self._pieces.spans(self._pieces.rows(codes, self._encode))
        most = np.broadcast_to(limit, items.shape).ravel()
        return found._replace(length=np.minimum(found.length, most))

    def _encode(self, codes: list[int]) -> list[list[int]]:
        form, texts = self._form, []
        for code in codes:
            item, kind = divmod(code, _KINDS)
            title = self._titles[item]
            text = form.answer(title) if kind == _ANSWER else form.titled(title)
            texts.append((form.between if kind == _LATER else "") + text)
        return self._tokenizer.encode_batch(texts, after_slot=True)


def _grid(pieces: Spans, n: int) -> np.ndarray:
    """int64 [n, ..]: lengths of as many pieces of every row."""
    return pieces.length.reshape(n, -1)


def _write(ids: np.ndarray, starts: np.ndarray, pieces: Spans) -> None:
    ids[spans(starts, pieces.length)] = pieces.source[spans(pieces.start, pieces.length)]


def _branches(trunk: np.ndarray, before: np.ndarray, own: np.ndarray) -> Branches:
    """Of rows of a trunk and answers of `own` [n, A] tokens that begin at `before` [n, A]."""
    lengths = np.concatenate([trunk[:, None], own], axis=1).ravel()
    first = np.zeros(lengths.shape, np.int64).reshape(len(trunk), -1)
    first[:, 1:] = trunk[:, None]
    end = np.zeros_like(first)
    end[:, 1:] = before
    hidden = np.stack([first.ravel(), end.ravel()], axis=1).astype(np.int32)
    return Branches(
        spans(first.ravel(), lengths).astype(np.int32), np.repeat(hidden, lengths, axis=0)
    )
