"""A keyed, stateless bijection of [0, n): any part of a shuffle can be computed alone.

A generalised Feistel network on Z_a x Z_b with a * b >= n and cycle walking (Black and Rogaway,
"Ciphers with Arbitrary Finite Domains", CT-RSA 2002). With a = ceil(sqrt(n)) the domain exceeds n
by less than sqrt(n), so a walk is rarely longer than one step. Uses no random generator.

Halves are below 2**16 for every n up to 2**32, so all arithmetic fits 32-bit words there (a third
of the time of 64-bit words, whose product most processors have no vector instruction for).
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# More rounds for small n: six do not mix such short halves evenly (tests count orders).
_ROUNDS, _ROUNDS_SMALL, _SMALL_N = 6, 16, 4096
_MAX_N = 1 << 62
# Odd multipliers of good avalanche: murmur3's and splitmix64's finalisers.
_MULTIPLIER = {np.uint32: 0x85EBCA6B, np.uint64: 0xBF58476D1CE4E5B9}

# uint32 or uint64, throughout one call the same.
_Words = NDArray[np.unsignedinteger[Any]]


@lru_cache(maxsize=256)
def _round_keys(key: tuple[int | str, ...], word: type, rounds: int) -> tuple[Any, ...]:
    little = np.dtype(word).newbyteorder("<")
    digest = hashlib.shake_128(repr(key).encode()).digest(little.itemsize * rounds)
    return tuple(np.frombuffer(digest, dtype=little).astype(word))


def permute(indices: NDArray[np.int64], n: int, *key: int | str) -> NDArray[np.int64]:
    """Map each of `indices` (each in [0, n)) by the bijection of [0, n) that `key` selects."""
    if not 0 < n <= _MAX_N:
        raise ValueError(f"a permutation needs 1 <= n <= {_MAX_N}, got {n}")
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    word = np.uint32 if a * b <= 1 << 32 else np.uint64
    keys = _round_keys(key, word, _ROUNDS_SMALL if n < _SMALL_N else _ROUNDS)
    result = _network(indices.astype(word), a, b, keys)
    outside = np.flatnonzero(result >= n)
    while outside.size:
        walked = _network(result[outside], a, b, keys)
        result[outside] = walked
        outside = outside[walked >= n]
    return result.astype(np.int64)


def _network(x: _Words, a: int, b: int, keys: tuple[Any, ...]) -> _Words:
    word = x.dtype.type
    size_a, size_b = word(a), word(b)
    left = x // size_b
    right = x - left * size_b
    for key_left, key_right in zip(keys[0::2], keys[1::2], strict=True):
        left = _add_scrambled(left, right, key_left, size_a)
        right = _add_scrambled(right, left, key_right, size_b)
    return left * size_b + right


def _add_scrambled(x: _Words, y: _Words, key: Any, size: Any) -> _Words:
    """(x + hash(y, key)) mod size, for x below size; in place."""
    word = x.dtype.type
    multiplier = word(_MULTIPLIER[word])
    half = word(4 * x.dtype.itemsize)
    h = y ^ key
    h *= multiplier
    h ^= h >> half
    h *= multiplier
    h >>= half
    h *= size
    h >>= half  # now below size
    x += h
    # Where x is already below size, the difference wraps around to a huge number.
    np.minimum(x, x - size, out=x)
    return x
