"""What an LLM that is asked for a title chooses, from the probabilities of the tokens of all candidates' titles (E1).

Nothing has to be written for that: greedy decoding takes the most probable token, and which one that is, at every place of every
candidate's title, is known from reading them.
"""

import numpy as np


def likelihood(log_prob: np.ndarray, length: np.ndarray) -> np.ndarray:
    """float64 [U, C]: log-probability of titles, of their tokens' [U, C, T] (the end included) and lengths [U, C]."""
    return np.where(_real(log_prob, length), log_prob, 0.0).astype(np.float64).sum(axis=-1)


def constrained(ids: np.ndarray, log_prob: np.ndarray, length: np.ndarray) -> np.ndarray:
    """bool [U, C]: what greedy decoding within the trie of the candidates' titles ends at; several, where titles are the same.

    ids: int [U, C, T] tokens; log_prob, length: as for `likelihood`.
    """
    left = np.ones(length.shape, bool)
    for place in range(ids.shape[-1]):
        going = left & (place < length)
        value = np.where(going, log_prob[..., place], -np.inf)
        best = np.take_along_axis(ids[..., place], value.argmax(axis=1)[:, None], axis=1)
        # equal tokens after equal ones: the same node. Where all have ended they are all the same title
        left &= ~going.any(axis=1, keepdims=True) | (going & (ids[..., place] == best))
    return left


def free(first: np.ndarray, length: np.ndarray) -> np.ndarray:
    """bool [U, C]: what greedy decoding over the whole vocabulary writes; none of a row, where it writes no candidate's title.

    first: bool [U, C, T] whether a token is the most probable of all.
    """
    return np.all(first.astype(bool) | ~_real(first, length), axis=-1)


def hits(chosen: np.ndarray, target: np.ndarray) -> np.ndarray:
    """float64 [U]: whether what was chosen (bool [U, C]) is the candidate in column `target` [U], in expectation over equal titles."""
    own = np.take_along_axis(chosen, target[:, None], axis=1)[:, 0]
    return own / np.maximum(chosen.sum(axis=1), 1)


def _real(values: np.ndarray, length: np.ndarray) -> np.ndarray:
    return np.arange(values.shape[-1]) < length[..., None]
