"""The seam between the numpy world (data, prompts) and the jax world (models, engine): typed batches.

Dimension legend, used in names (`x_BTD`), annotations and einsum strings alike:
  B users or prompts in a batch   L history length in items   T live tokens (queries)   P prefix tokens   S key/value length
  C candidates per user (1 + negatives)   I catalogue incl. pad row 0   D LLM width   E CF width   R shared width
  N query heads   K key/value heads   H head dim   F feed-forward   V vocabulary
"""

from typing import Any, NamedTuple

TOKEN, HISTORY, OUT = 0, 1, 2  # PromptBatch.kind: what fills a live position

Array = Any  # numpy on the host, jax.Array on the device


class PromptBatch(NamedTuple):
    """Prompts of one static shape: a constant prefix, then a live tail that starts at or before the first slot."""

    prefix_ids: Array  # int32 [B, P] right-padded with 0
    prefix_len: Array  # int32 [B]
    ids: Array  # int32 [B, T] right-padded; 0 at slots
    kind: Array  # int8 [B, T] TOKEN | HISTORY | OUT; TOKEN at pads
    slot_item: Array  # int32 [B, T] item id at HISTORY slots, else 0
    length: Array  # int32 [B] live tokens; the Out slot is the last one


class LLMBatch(NamedTuple):
    """One training step of LLM-SRec. Users are sorted by prompt length; `users` groups are in that order."""

    users: tuple[PromptBatch, ...]  # concatenated: B rows
    items: tuple[PromptBatch, ...]  # concatenated: item prompts of this batch
    candidates: Array  # int32 [B, C] row in the concatenated item prompts; column 0 is the positive
    cf_user_repr: Array  # float32 [B, E] frozen teacher's user representation


class SequenceBatch(NamedTuple):
    """Left-padded item windows for the teacher: the most recent item is in the last column; 0 = pad."""

    history: Array  # int32 [B, L]
    positive: Array  # int32 [B, L] next item
    negative: Array  # int32 [B, L, negatives per position]
