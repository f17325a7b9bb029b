"""Counter-based random numbers: a value depends on its keys alone, not on what else is drawn, nor in which order."""

import hashlib
import zlib
from typing import Any

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def bits(seed: int, *keys: Any) -> np.ndarray:
    """uint64 random bits for the broadcast of `keys`: integers, integer arrays, or text labels (a chained splitmix64)."""
    with np.errstate(over="ignore"):
        state = _avalanche(_integers(seed) + _GOLDEN)
        for key in keys:
            state = _avalanche((state + _GOLDEN) ^ _integers(key))
    return state


def below(limit: Any, seed: int, *keys: Any) -> np.ndarray:
    """int64 uniform in [0, limit), limit < 2^32 (an array broadcasts); bias below limit / 2^32."""
    high = bits(seed, *keys) >> np.uint64(32)
    return ((high * _integers(limit)) >> np.uint64(32)).astype(np.int64)


def uniform(seed: int, *keys: Any) -> np.ndarray:
    """float64 uniform in [0, 1)."""
    return (bits(seed, *keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def text_bits(texts: np.ndarray) -> np.ndarray:
    """uint64 [n]: a fixed hash of each string, so that random choices follow a name and not its row number."""
    digests = [hashlib.blake2b(str(text).encode(), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _integers(key: Any) -> np.ndarray:
    if isinstance(key, str):
        key = zlib.crc32(key.encode())
    if isinstance(key, int):
        key &= _MASK
        return np.asarray(key, dtype=np.uint64)
    return np.asarray(key).astype(np.uint64)


def _avalanche(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
