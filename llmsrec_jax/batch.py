"""The seam between the numpy world (data, prompts) and the jax world (models, engine): typed batches.

Dimension legend, used in names (`x_BTD`), annotations and einsum strings alike:
  B users or prompts in a batch   L history length in items   T live tokens (queries)   P prefix tokens   S key/value length
  C candidates per user (1 + negatives)   I catalogue incl. pad row 0   D LLM width   E CF width   R shared width
  N query heads   K key/value heads   H head dim   F feed-forward   V vocabulary   A tokens on a flat axis
"""

from typing import Any, NamedTuple

NOTHING = -1  # no token is asked for
HIDDEN = -1  # in a window: an item that the model is to guess; ids of real items are above 0
TOKEN, HISTORY, USER_REPR, USER_OUT, ITEM_OUT = range(5)  # what fills a live position

Array = Any  # numpy on the host, jax.Array on the device


class Grid(NamedTuple):
    """Sequences of similar length side by side, as attention takes them: where on a flat axis their tokens are."""

    at: Array  # int32 [rows, T]; beyond a sequence's end: its own pads where the axis is the grids, else a place beyond the axis
    length: Array  # int32 [rows]
    # int32 [rows, T, 2]: from which token of its sequence up to which other one each sees none; None: each sees all before it
    hidden: Array | None = None


class Outs(NamedTuple):
    """Out slots, where a sequence may hold those of several prompts."""

    # int32 [rows, M] of every live grid: positions in tails; 0 beyond a sequence's last one
    at: tuple[Array, ...]
    place: Array  # int32 [B] where each prompt is among them, laid end to end
    prompt: Array  # int32 [sum of rows * M] number of the prompt, or B


class Asked(NamedTuple):
    """Tokens that prompts are asked for, each to be read off a token of its sequence."""

    # int32 [rows, M] of every live grid: positions in tails; 0 behind the last one
    at: tuple[Array, ...]
    token: Array  # int32 [sum of rows * M] id of each, grids laid end to end; NOTHING behind the last one


class Flat(NamedTuple):
    """Sequences one after the other on a token axis, on which all linear layers work: no padding between them."""

    position: Array  # int32 [A] of each token in its prompt
    # int32 [A] place of each token on the grids, laid end to end; of pads: the number of places.
    # None: the axis is the grids, row after row, with their pads
    place: Array | None
    grids: tuple[Grid, ...]
    # int32 [A] whose each token is: what LoRA's dropout drops follows from it. None: nothing is dropped
    owner: Array | None = None


class PromptBatch(NamedTuple):
    """Prompts of static shapes: constant prefixes, and live tails that start at or before the first slot.

    Prompts are numbered grid by grid, those of a sequence by their Out slots. The first grids of `live` continue those of
    `prefix`, the last ones those of `stored`.
    """

    prefix_ids: Array  # int32 [A of prefix]
    prefix: Flat
    stored: tuple[Grid, ...]  # prefixes whose keys and values are at hand: where, on their axis
    kv: Any  # those keys and values (llama.kv.KV), where they came along; None = the model's own store
    ids: Array  # int32 [A of live]; 0 at slots and pads
    kind: Array  # int8 [A of live] of each token; an Out slot is the last one of its prompt or of a branch
    live: Flat
    slot: Array  # int32 [A of live] number of the projected slot, or how many there are at most
    slot_at: Array  # int32 [slots] token of the slot, or the length of the axis; history slots come first
    slot_item: Array  # int32 [history slots] its item id, or 0
    # float32 [users, E] of the other slots, one in every user's prompt: the teacher's user representation. None: no such slots
    cf_user_repr: Array | None
    outs: Outs | None = None  # None: every sequence is one prompt
    asked: Asked | None = None  # where there are no Out slots
    shows_items: Array | None = None  # bool: else zeros stand in history slots. None: it does


class LLMBatch(NamedTuple):
    """One training step of LLM-SRec, in `parts` of one shape, each a pass through the LLM: first its users, then its items."""

    prompts: PromptBatch  # arrays [parts, ...]
    candidates: Array  # int32 [B, C] row among the items of all parts; column 0 is the positive
    cf_user_repr: Array  # float32 [B, E] frozen teacher's user representation


class TitleBatch(NamedTuple):
    """One training step of title generation, in `parts` of one shape, each a pass through the LLM."""

    prompts: PromptBatch  # arrays [parts, ...]


class SequenceBatch(NamedTuple):
    """Left-padded item windows for the teacher: the most recent item is in the last column; 0 = pad."""

    history: Array  # int32 [B, L]; HIDDEN where an item is to be guessed
    positive: Array  # int32 [B, L] the next item, or the hidden one; 0 = nothing to learn there
    negative: Array  # int32 [B, L, negatives per position]


class AlignBatch(NamedTuple):
    """One training step of A-LLMRec's stage 1: a user's last training item, and one that it never took."""

    cf_user_repr: Array  # float32 [B, E] frozen teacher's user representation, of what came before
    positive: Array  # int32 [B]; 0 = no sample
    negative: Array  # int32 [B]
