"""Useful floating-point operations of LLaMA, counted from real token lengths: the one place where the formula is.

Useful is the least work that gives the same numbers: a prefix forward only, a tail forward and, where it is trained through,
backward to its inputs (frozen weights get no gradient), the last layer and logits only where they are read. Padding and
recomputed layers are never useful. A multiplication and its addition are two operations; norms, rotations and softmax are not
counted.

Per layer, with widths as in batch.py:
  a token's queries and outputs  2 * 2 D N H     keys and values  2 * 2 D K H     feed-forward  2 * 3 D F
  a query that sees S keys       4 N H S         (scores, and the mix of the values)
  backward to the inputs         the same again for every product with a weight; for attention once more over keys of the
                                 prefix (they get no gradient) and twice over those of the tail
"""

import math
from collections.abc import Sequence

import numpy as np

from llmsrec_jax.llama.adapters import widths
from llmsrec_jax.llama.config import LlamaConfig

Lengths = np.ndarray  # int [n], tokens per prompt


def _key_value(cfg: LlamaConfig) -> int:
    return 4 * cfg.d * cfg.kv_heads * cfg.head_dim


def _rest(cfg: LlamaConfig) -> int:
    """Of a token and layer, besides its keys and values: queries, outputs, feed-forward."""
    return 4 * cfg.d * cfg.heads * cfg.head_dim + 6 * cfg.d * cfg.ff


def _seen(cfg: LlamaConfig, keys: Lengths) -> Lengths:
    return 4 * cfg.heads * cfg.head_dim * keys


def _causal(length: Lengths) -> Lengths:
    """Keys seen by all queries of a sequence together."""
    return length * (length + 1) // 2


def _total(of_prompts: Lengths) -> float:
    """Their sum, which int64 may not hold."""
    return float(np.sum(of_prompts, dtype=np.float64))


def logits(cfg: LlamaConfig) -> int:
    """Of a token, forward; backward to what they are made of they cost the same again."""
    return 2 * cfg.d * cfg.vocab


def prefill(cfg: LlamaConfig, length: Lengths) -> float:
    """Keys and values of prefixes, in all layers."""
    P = np.asarray(length, np.int64)
    full = P * (_key_value(cfg) + _rest(cfg)) + _seen(cfg, _causal(P))
    return _total((cfg.layers - 1) * full + P * _key_value(cfg))


def extend(cfg: LlamaConfig, prefix: Lengths, live: Lengths) -> float:
    """Hidden state of the last token of tails that continue prefixes."""
    P, T = np.asarray(prefix, np.int64), np.asarray(live, np.int64)
    full = T * (_key_value(cfg) + _rest(cfg)) + _seen(cfg, P * T + _causal(T))
    last = T * _key_value(cfg) + _rest(cfg) + _seen(cfg, P + T)
    return _total((cfg.layers - 1) * full + last)


def extend_backward(cfg: LlamaConfig, prefix: Lengths, live: Lengths) -> float:
    """From the hidden state of the last token to all inputs of the tails."""
    P, T = np.asarray(prefix, np.int64), np.asarray(live, np.int64)
    full = T * (_key_value(cfg) + _rest(cfg)) + _seen(cfg, P * T + 2 * _causal(T))
    last = T * _key_value(cfg) + _rest(cfg) + _seen(cfg, P + 2 * T)
    return _total((cfg.layers - 1) * full + last)


def answers(cfg: LlamaConfig, trunk: Lengths, own: Lengths, *, backward: bool = False) -> float:
    """Logits at the last token of trunks, and at every token of `own` int [n, A] sequences behind each: they see the trunk and
    nothing of each other. Backward: from there to all inputs; no token counts as constant, as none is treated so.
    """
    P, T = np.asarray(trunk, np.int64), np.asarray(own, np.int64)
    behind, begin = np.sum(T * P[:, None] + _causal(T), axis=1), _causal(P)
    tokens, read, times = P + T.sum(axis=1), 1 + T.sum(axis=1), 2 if backward else 1
    full = tokens * (_key_value(cfg) + _rest(cfg)) + _seen(cfg, times * (begin + behind))
    last = tokens * _key_value(cfg) + read * _rest(cfg) + _seen(cfg, times * (P + behind))
    return _total((cfg.layers - 1) * full + last + read * logits(cfg))


def lora(cfg: LlamaConfig, rank: int, names: Sequence[str], tokens: float, read: float) -> float:
    """Products with A and B of these weights at so many tokens, forward, in the least work too: most of the last layer is computed
    for those tokens alone that are read.

    Backward they cost the same again to the inputs, and once more to A and B themselves.
    """
    of_token = {name: 2 * rank * sum(map(math.prod, widths(cfg, name))) for name in names}
    everywhere = sum(cost for name, cost in of_token.items() if name in ("k", "v"))
    full = (cfg.layers - 1) * sum(of_token.values()) + everywhere
    return tokens * full + read * (sum(of_token.values()) - everywhere)


def whole(cfg: LlamaConfig, length: Lengths, *, backward: bool) -> float:
    """All layers at all tokens of whole prompts: what the job costs without any shortcut, padding and logits left out."""
    T = np.asarray(length, np.int64)
    products, seen = T * (_key_value(cfg) + _rest(cfg)), _seen(cfg, _causal(T))
    times = (2, 3) if backward else (1, 1)
    return _total(cfg.layers * (times[0] * products + times[1] * seen))
