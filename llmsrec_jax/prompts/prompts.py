"""Prompts from cached pieces: histories and items in, ragged token ids with slots out (Tables 1, 2, D17-D20)."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from llmsrec_jax import config
from llmsrec_jax.batch import HISTORY, ITEM_OUT, TOKEN, USER_OUT, USER_REPR
from llmsrec_jax.data.interactions import Catalog, Histories, UserSequences, offsets_of, spans
from llmsrec_jax.prompts.pieces import Pieces, Spans
from llmsrec_jax.prompts.templates import DAY_MS, named, template
from llmsrec_jax.prompts.tokens import ItemTokens, Tokenizer

_MIN_TITLE = 4  # tokens: truncation='title' drops items rather than cut titles shorter than this
_SIZED_AT_ONCE = 1 << 16  # user prompts
_COMPARED_AT_ONCE = 1 << 12  # pairs of them
_CACHE_LIMIT = 1 << 26  # ids kept in a piece cache (256 MiB)
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896  # years 1 to 9999, days since 1970


class Branches(NamedTuple):
    """Of rows that hold several prompts (trunks.py): the tokens of a branch."""

    position: np.ndarray  # int32 [N] of each token in its prompt
    # int32 [N, 2]: from which token of the row up to which other one it sees none
    hidden: np.ndarray


class Asked(NamedTuple):
    """Tokens that rows are asked for, ragged: each is to be read off the token at `place` of its row (titles.py)."""

    place: np.ndarray  # int32 [K]
    token: np.ndarray  # int32 [K]
    offsets: np.ndarray  # int64 [n+1]

    def take(self, rows: np.ndarray) -> "Asked":
        """Of `rows`, in that order."""
        lengths = np.diff(self.offsets)[rows]
        index = spans(self.offsets[rows], lengths)
        return Asked(self.place[index], self.token[index], offsets_of(lengths))


@dataclass(frozen=True, eq=False)
class Prompts:
    """n prompts, ragged. The Out slot is the last token of each; and of each branch, where they have some. Where tokens
    are asked for there is none.
    """

    ids: np.ndarray  # int32 [N]; 0 at slots
    kind: np.ndarray  # int8 [N] TOKEN | HISTORY | USER_REPR | USER_OUT | ITEM_OUT
    # int32 [N] item id at HISTORY slots, or, of item prompts that have none, at the Out slot; else 0
    slot_item: np.ndarray
    offsets: np.ndarray  # int64 [n+1]
    prefix_len: np.ndarray  # int32 [n] tokens before the first slot
    cf_user_repr: np.ndarray | None = None  # float32 [n, E] of USER_REPR slots, one in every prompt
    branches: Branches | None = None  # None: there are none
    asked: Asked | None = None  # None: vectors are
    owner: np.ndarray | None = None  # int32 [n] whose each is (batch.Flat), where it matters

    def __len__(self) -> int:
        return len(self.prefix_len)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n] tokens, slots included."""
        return np.diff(self.offsets)

    @property
    def live_lengths(self) -> np.ndarray:
        """int64 [n] tokens from the first slot on."""
        return self.lengths - self.prefix_len

    @property
    def slots(self) -> np.ndarray:
        """int64 [n] history slots."""
        return np.add.reduceat(self.kind == HISTORY, self.offsets[:-1], dtype=np.int64)

    def take(self, rows: np.ndarray) -> "Prompts":
        """Prompts of `rows`, in that order."""
        rows = np.asarray(rows, np.int64)
        lengths = self.lengths[rows]
        index = spans(self.offsets[rows], lengths)
        return Prompts(
            self.ids[index],
            self.kind[index],
            self.slot_item[index],
            offsets_of(lengths),
            self.prefix_len[rows],
            None if self.cf_user_repr is None else self.cf_user_repr[rows],
            None if self.branches is None else Branches(*(x[index] for x in self.branches)),
            None if self.asked is None else self.asked.take(rows),
            None if self.owner is None else self.owner[rows],
        )

    def in_common(self) -> np.ndarray:
        """int64 [n // 2]: with how many equal tokens prompts 0 and 1, 2 and 3, .. begin.

        Out slots are equal to nothing, nor are those of user representations, which differ from history to history.
        """
        length = self.lengths.reshape(-1, 2).min(axis=1)
        one, other = (spans(self.offsets[at:-1:2], length) for at in (0, 1))
        same = np.isin(self.kind[one], (TOKEN, HISTORY))
        for each in (self.ids, self.kind, self.slot_item):
            same &= each[one] == each[other]
        pair, place = np.repeat(np.arange(len(length)), length), spans(0 * length, length)
        differs = np.flatnonzero(~same)
        found, first = np.unique(pair[differs], return_index=True)
        length[found] = place[differs][first]
        return length


@dataclass(frozen=True, eq=False)
class LatePrompts:
    """n prompts of which only the sizes are there: the text of all users would fill the memory."""

    prefix_len: np.ndarray  # int64 [n] tokens before the first slot
    live_lengths: np.ndarray  # int64 [n] tokens from the first slot on
    slots: np.ndarray  # int64 [n] history slots, at most
    build: Callable[[np.ndarray], Prompts]

    def __len__(self) -> int:
        return len(self.prefix_len)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n] tokens, slots included."""
        return self.prefix_len + self.live_lengths

    def take(self, rows: np.ndarray) -> Prompts:
        """Builds the prompts of `rows`, in that order."""
        return self.build(rows)


def within(cfg: config.Prompts, positions: int) -> config.Prompts:
    """For a backbone of so many positions."""
    return replace(cfg, max_tokens=min(cfg.max_tokens, positions))


class _Frame(NamedTuple):
    """What stands around the blocks of a prompt."""

    lead: np.ndarray  # int32 ids before the USER_REPR slot; none = nor is there that slot
    outro: np.ndarray  # int32 ids behind the last block
    out: int | None  # kind of the Out slot behind it; None = there is none
    slots: int  # HISTORY slots of every block: 1 or 0

    @property
    def before(self) -> int:
        """Tokens before the first block."""
        return len(self.lead) + 1 if len(self.lead) else 0

    @property
    def size(self) -> int:
        """Tokens, slots included."""
        return self.before + len(self.outro) + self.closing

    @property
    def closing(self) -> int:
        """Out slots: 1 or 0."""
        return int(self.out is not None)

    def blocks(self, text: np.ndarray) -> np.ndarray:
        """Tokens of blocks with so many tokens of text."""
        return text + self.slots


@dataclass(frozen=True, eq=False)
class _Blocks:
    """The M blocks `head title slot` of n prompts, prompt by prompt."""

    count: int  # n
    prompt: np.ndarray  # int64 [M] ascending
    item: np.ndarray  # int64 [M] of the slot
    heads: Spans  # [M]
    titles: Spans  # [M]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """int64 [n]: values [M] added up per prompt."""
        return np.bincount(self.prompt, weights=values, minlength=self.count).astype(np.int64)

    @property
    def text(self) -> np.ndarray:
        """int64 [M]: tokens of each block before its slot."""
        return self.heads.length + self.titles.length

    def sizes(self, frame: _Frame) -> tuple[np.ndarray, np.ndarray]:
        """Of the prompts: tokens before the first slot, and from there on, int64 [n] each."""
        total = self.sums(frame.blocks(self.text)) + frame.size
        if frame.before:
            prefix = np.full(self.count, len(frame.lead))
        elif frame.slots:
            prefix = self.text[np.searchsorted(self.prompt, np.arange(self.count))]
        else:
            prefix = total - frame.closing
        return prefix, total - prefix

    def assemble(self, frame: _Frame) -> Prompts:
        """All prompts, each with the frame around its blocks."""
        text, block, (lead, outro) = self.text, frame.blocks(self.text), frame[:2]
        prefix, live = self.sizes(frame)
        offsets = offsets_of(prefix + live)
        start = np.cumsum(block) - block + self.prompt * frame.size + frame.before
        slot, end = (start + text)[: len(text) * frame.slots], offsets[1:] - frame.closing
        ids = np.zeros(offsets[-1], np.int32)
        for piece, at in ((self.heads, start), (self.titles, start + self.heads.length)):
            ids[spans(at, piece.length)] = piece.source[spans(piece.start, piece.length)]
        ids[offsets[:-1, None] + np.arange(len(lead))] = lead
        ids[end[:, None] - len(outro) + np.arange(len(outro))] = outro
        kind = np.zeros(len(ids), np.int8)
        kind[offsets[:-1, None] + np.arange(len(lead), frame.before)] = USER_REPR
        kind[slot] = HISTORY
        if frame.out is not None:
            kind[end] = frame.out
        slot_item = np.zeros(len(ids), np.int32)
        slot_item[slot] = self.item[: len(slot)]
        if frame.out == ITEM_OUT and not frame.slots:
            slot_item[end] = self.item
        return Prompts(ids, kind, slot_item, offsets, prefix.astype(np.int32))


class PromptBuilder:
    """Builds prompts. `trimmed` counts, over all calls, prompts that lost items or title tokens (D19)."""

    def __init__(
        self, tokenizer: Tokenizer, item_tokens: ItemTokens, catalog: Catalog, cfg: config.Prompts
    ):
        """Takes item tokens built from the same tokenizer, catalogue and wording.

        Raises:
          ValueError: they are not, or `max_tokens` is too small for the template.
        """
        wording = named(cfg.wording, cfg.item_repr)
        owner = (tokenizer.fingerprint, wording, len(catalog.titles))
        key = item_tokens.key
        if owner != (key["tokenizer"], key["wording"], len(item_tokens.lengths)):
            raise ValueError(
                "item tokens of another tokenizer, catalogue or wording; build them anew"
            )
        self.tokenizer, self._tokens, self._cfg = tokenizer, item_tokens, cfg
        self._titles, self._form = catalog.titles, template(wording, cfg.user_repr)
        form, chooses = self._form, cfg.task == "title"
        behind = form.choose if chooses else form.user_outro
        outros = [form.close + behind, form.item_outro]
        encoded = tokenizer.encode_batch(outros, after_slot=True)
        user_outro, item_outro = (np.array(ids, np.int32) for ids in encoded)
        nothing = np.zeros(0, np.int32)
        lead = np.array(self._encode([(form.lead, True)])[0], np.int32) if form.lead else nothing
        self._slots = int(cfg.item_repr)
        self._user = _Frame(lead, user_outro, None if chooses else USER_OUT, self._slots)
        self._item = _Frame(nothing, item_outro, ITEM_OUT, self._slots)
        intro = tokenizer.bos_ids + tokenizer.encode(form.item_intro)
        self._item_intro = np.array(intro if item_tokens.splittable else [], np.int32)
        self._heads, self._segments = Pieces(), Pieces()
        self._lock = threading.Lock()
        self.trimmed = {"prompts": 0, "lost_items": 0, "lost_title_tokens": 0}
        opening = form.opening(10, form.date(20_000), first=True)
        fixed = len(self._encode([(opening, not form.lead)])[0]) + self._user.size + 1
        if cfg.max_tokens < fixed + _MIN_TITLE:
            raise ValueError(
                f"prompts.max_tokens={cfg.max_tokens}, but the template alone takes {fixed} tokens; "
                f"use at least {fixed + _MIN_TITLE}"
            )
        self.template_tokens = fixed  # of user prompts, at least

    def users(
        self,
        histories: UserSequences,
        cf_user_repr: np.ndarray | None = None,
        reserved: np.ndarray | int = 0,
    ) -> Prompts:
        """User prompts of whole histories; the last `history_len` items are used. Of prompts.task=title: their openings, up to
        the first candidate.

        cf_user_repr: float32 [n, E], the teacher's vectors of the histories, for prompts that open with them.
        reserved: int [n] of `max_tokens`, for what is to follow.

        Raises:
          ValueError: an empty history, a time that is no date, or no vectors for prompts that need them.
        """
        _require_items(histories)
        blocks, kept, is_cut = self._user_blocks(histories, reserved)
        self._count(len(kept), self._lost(histories, kept), is_cut.sum())
        return self._told(blocks, cf_user_repr)

    def _told(self, blocks: _Blocks, cf_user_repr: np.ndarray | None) -> Prompts:
        prompts = blocks.assemble(self._user)
        if not self._user.before:
            return prompts
        if cf_user_repr is None:
            raise ValueError("prompts.user_repr: user prompts need the teacher's user vectors")
        return replace(prompts, cf_user_repr=cf_user_repr)

    def later(self, histories: Histories, cf_user_repr: np.ndarray | None = None) -> LatePrompts:
        """`users(histories, cf_user_repr)`, counted now and built when they are taken, some at a time."""
        prefix, live, lost, is_cut = self._user_sizes(histories)
        self._count(len(histories), lost, is_cut)
        slots = np.minimum(histories.lengths, self._cfg.history_len) * self._slots

        def build(rows: np.ndarray) -> Prompts:
            blocks, _, _ = self._user_blocks(histories.take(rows))
            return self._told(blocks, None if cf_user_repr is None else cf_user_repr[rows])

        return LatePrompts(prefix, live, slots, build)

    def user_lengths(
        self, histories: Histories, reserved: np.ndarray | int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """(int64 [n], int64 [n]): prefix and live lengths of `users(histories, reserved=reserved)`, at a fraction of the work."""
        return self._user_sizes(histories, reserved)[:2]

    def in_common(self, histories: Histories, first: np.ndarray) -> np.ndarray:
        """int64 [m]: with how many equal tokens the prompts of histories first[i] (int [m]) and first[i] + 1 begin."""
        found = [np.zeros(0, np.int64)]
        for start in range(0, len(first), _COMPARED_AT_ONCE):
            some = first[start : start + _COMPARED_AT_ONCE]
            pairs = histories.take(np.stack([some, some + 1], axis=1).ravel())
            found.append(self._user_blocks(pairs)[0].assemble(self._user).in_common())
        return np.concatenate(found)

    def _user_sizes(
        self, histories: Histories, reserved: np.ndarray | int = 0
    ) -> tuple[np.ndarray, np.ndarray, int, int]:
        """Prefix and live lengths [n]; how many prompts lost items, and title tokens."""
        _require_items(histories)
        prefix, live = np.zeros((2, len(histories)), np.int64)
        lost, cut, every = 0, 0, np.broadcast_to(reserved, len(histories))
        for start in range(0, len(histories), _SIZED_AT_ONCE):
            rows = np.arange(start, min(start + _SIZED_AT_ONCE, len(histories)))
            some = histories.take(rows)
            blocks, kept, is_cut = self._user_blocks(some, every[rows])
            prefix[rows], live[rows] = blocks.sizes(self._user)
            lost, cut = lost + self._lost(some, kept), cut + int(is_cut.sum())
        return prefix, live, lost, cut

    def _lost(self, histories: UserSequences, kept: np.ndarray) -> int:
        return int(np.sum(kept < np.minimum(histories.lengths, self._cfg.history_len)))

    def items(self, item_ids: np.ndarray) -> Prompts:
        """Item prompts of ids (int [n]).

        Raises:
          ValueError: an id outside the catalogue, or the pad.
        """
        items, n = np.asarray(item_ids, np.int64), len(self._titles)
        if len(items) and not (0 < items.min() and items.max() < n):
            raise ValueError(f"item ids {items.min()}..{items.max()} are not all in 1..{n - 1}")
        intro = np.full(len(items), len(self._item_intro))
        length = self._tokens.offsets[items + 1] - self._tokens.offsets[items]
        room = self._cfg.max_tokens - self._item.blocks(intro) - self._item.size
        self._count(len(items), 0, (length > room).sum())
        heads = Spans(self._item_intro, np.zeros_like(intro), intro)
        titles = Spans(self._tokens.ids, self._tokens.offsets[items], np.minimum(length, room))
        blocks = _Blocks(len(items), np.arange(len(items)), items, heads, titles)
        return blocks.assemble(self._item)

    def report_trimmed(self, when: str) -> str:
        """Of the prompts built since the last report, how many were too long (D19); '' = none."""
        with self._lock:
            prompts, items, tokens = self.trimmed.values()
            self.trimmed.update(dict.fromkeys(self.trimmed, 0))
        if not items and not tokens:
            return ""
        return (
            f"prompts of {when}: of {prompts} built, {items} lost their oldest items and {tokens} lost title tokens "
            "(prompts.max_tokens, D19)"
        )

    def _count(self, prompts: int, lost_items: int, lost_title_tokens: int) -> None:
        with self._lock:
            for name, number in zip(
                self.trimmed, (prompts, lost_items, lost_title_tokens), strict=True
            ):
                self.trimmed[name] += int(number)

    def _user_blocks(
        self, histories: UserSequences, reserved: np.ndarray | int = 0
    ) -> tuple[_Blocks, np.ndarray, np.ndarray]:
        """(blocks, items kept [n], whether titles were cut [n]), within max_tokens less what is `reserved` of them."""
        counts = histories.lengths
        everyone, kept = np.arange(len(counts)), np.minimum(counts, self._cfg.history_len)
        most = np.broadcast_to(self._cfg.max_tokens - np.asarray(reserved), counts.shape)
        blocks, room = self._blocks(histories, everyone, kept, most)
        over = np.flatnonzero((self._wanted(blocks) > room) & (kept > 1))
        if len(over):
            while len(over):  # at most history_len rounds, on ever fewer prompts
                kept[over] -= 1
                some, space = self._blocks(histories, over, kept[over], most[over])
                over = over[(self._wanted(some) > space) & (kept[over] > 1)]
            blocks, room = self._blocks(histories, everyone, kept, most)
        is_cut = blocks.sums(blocks.titles.length) > room
        if is_cut.any():
            blocks = self._cut(blocks, room)
        return blocks, kept, is_cut

    def _wanted(self, blocks: _Blocks) -> np.ndarray:
        """int64 [n]: title tokens for which an item is dropped rather than do with fewer."""
        length = blocks.titles.length
        if self._cfg.truncation == "title":
            length = np.minimum(length, _MIN_TITLE)
        return blocks.sums(length)

    def _cut(self, blocks: _Blocks, room: np.ndarray) -> _Blocks:
        """Titles shortened evenly to `room` tokens [n] per prompt. A cut title ends without its quote."""
        if room.min() < 0:
            raise ValueError(
                f"prompts.max_tokens={self._cfg.max_tokens} has no room for a title of some user: "
                f"add at least {_MIN_TITLE - room.min()}"
            )
        length, prompt = blocks.titles.length, blocks.prompt
        low, high = np.zeros(blocks.count, np.int64), np.full(blocks.count, length.max())
        while (low < high).any():  # the greatest length that fits, by bisection
            middle = (low + high + 1) // 2
            fits = blocks.sums(np.minimum(length, middle[prompt])) <= room
            low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        titles = blocks.titles._replace(length=np.minimum(length, low[prompt]))
        return replace(blocks, titles=titles)

    def _blocks(
        self, histories: UserSequences, rows: np.ndarray, kept: np.ndarray, most: np.ndarray
    ) -> tuple[_Blocks, np.ndarray]:
        """(blocks of the last `kept[i]` items of user `rows[i]`, room for title tokens [n] where prompts have at most `most[i]`)."""
        prompt = np.repeat(np.arange(len(rows)), kept)
        index = spans(histories.offsets[rows + 1] - kept, kept)
        begin = histories.offsets[rows]
        if self._cfg.numbering == "window":
            begin = histories.offsets[rows + 1] - kept
        number = index - begin[prompt] + 1
        is_first = np.diff(prompt, prepend=-1) > 0
        heads, titles = self._pieces(
            histories.items[index].astype(np.int64), number, histories.times[index], is_first
        )
        blocks = _Blocks(len(rows), prompt, histories.items[index], heads, titles)
        fixed = blocks.sums(self._user.blocks(heads.length)) + self._user.size
        return blocks, most - fixed

    def _pieces(
        self, items: np.ndarray, number: np.ndarray, times: np.ndarray, is_first: np.ndarray
    ) -> tuple[Spans, Spans]:
        """Heads and titles of blocks [M]; in a tokenizer that cannot be cut between them, of one encoding."""
        days = times // DAY_MS
        if len(days) and not (_FIRST_DAY <= days.min() and days.max() <= _LAST_DAY):
            raise ValueError("a time is outside the years 1 to 9999; check data.files.time_unit")
        codes = ((number * 2 + is_first) << 32) + (days - _FIRST_DAY)
        with self._lock:
            if max(self._heads.size, self._segments.size) > _CACHE_LIMIT:
                self._heads, self._segments = Pieces(), Pieces()
            rows = self._heads.rows(codes, self._encode_heads)
            heads = self._heads.spans(rows)
            if self._tokens.splittable:
                start = self._tokens.offsets[items]
                return heads, Spans(
                    self._tokens.ids, start, self._tokens.offsets[items + 1] - start
                )
            segments = self._segments.spans(
                self._segments.rows((rows << 32) + items, self._encode_segments)
            )
        # at most what cutting the title must spare
        head = np.minimum(heads.length, segments.length)
        return segments._replace(length=head), segments._replace(
            start=segments.start + head, length=segments.length - head
        )

    def _opening(self, code: int) -> tuple[str, bool]:
        """Text before a title, and whether it opens the prompt."""
        number, is_first, day = code >> 33, bool(code >> 32 & 1), (code & 0xFFFFFFFF) + _FIRST_DAY
        opening = self._form.opening(number, self._form.date(day), first=is_first)
        return opening, is_first and not self._form.lead

    def _encode_heads(self, codes: list[int]) -> list[list[int]]:
        return self._encode([self._opening(code) for code in codes])

    def _encode_segments(self, codes: list[int]) -> list[list[int]]:
        texts = []
        for code in codes:
            opening, is_first = self._opening(self._heads.code(code >> 32))
            texts.append((opening + self._form.titled(self._titles[code & 0xFFFFFFFF]), is_first))
        return self._encode(texts)

    def _encode(self, texts: list[tuple[str, bool]]) -> list[list[int]]:
        """Ids of (text, whether it opens the prompt); BOS included where it does."""
        opening = [text for text, is_first in texts if is_first]
        later = [text for text, is_first in texts if not is_first]
        opening_ids = iter(self.tokenizer.encode_batch(opening, after_slot=False))
        later_ids = iter(self.tokenizer.encode_batch(later, after_slot=True))
        bos = self.tokenizer.bos_ids
        return [bos + next(opening_ids) if first else next(later_ids) for _, first in texts]


def _require_items(histories: Histories) -> None:
    if len(histories) and histories.lengths.min() < 1:
        raise ValueError(f"user row {np.argmin(histories.lengths)} has an empty history")
