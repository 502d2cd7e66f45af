"""This module computes the uniform random numbers of a decision. The numbers are words of the Philox generator for
(seed, decision id), each of which can be computed at any time."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rlrec.arrays import Array, Index, Words

W = TypeVar("W", int, Words)

# untyped, so that a uint64 array stays one, and a Python integer, too
_LOW_MASK: Any = 0xFFFFFFFF
_HALF_BITS: Any = 32
_WORD_MASK = 2**64 - 1
_MULTIPLIER: tuple[Any, Any] = (0xD2511F53, 0xCD9E8D57)
_WEYL: tuple[Any, Any] = (0x9E3779B9, 0xBB67AE85)
_N_ROUNDS = 10
_MAX_PLAIN_UNIFORMS = 4  # largest number of uniforms for which plain integers are faster than arrays
_BLOCKS_PER_CHUNK = 1 << 13  # blocks at a time, so that the ten rounds stay in the cache


def philox(counter: tuple[W, W, W, W], key: tuple[W, W]) -> tuple[W, W, W, W]:
    """Return the four output words of Philox4x32-10, each in the low 32 bits of a uint64.

    counter, key: four and two numbers, or arrays of a common (broadcast) shape, with 32 bits in each element.
    Source: Salmon et al. 2011 (Random123), checked against the published known-answer vectors."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(_N_ROUNDS):
        first_product, second_product = c0 * _MULTIPLIER[0], c2 * _MULTIPLIER[1]
        c0 = (second_product >> _HALF_BITS) ^ c1 ^ k0
        c1 = second_product & _LOW_MASK
        c2 = (first_product >> _HALF_BITS) ^ c3 ^ k1
        c3 = first_product & _LOW_MASK
        k0, k1 = (k0 + _WEYL[0]) & _LOW_MASK, (k1 + _WEYL[1]) & _LOW_MASK
    return c0, c1, c2, c3


def uniforms(seeds: Words, decisions: npt.NDArray[np.int64], *, words: int) -> Array:
    """Return the first `words` uniforms of each decision, (n, words), which are multiples of 2^-53 inside (0, 1).

    seeds (n,) uint64: the seed of each decision, which is the key of Philox; decisions (n,) int64: the ids, which
    form the counter together with the block number. A row depends only on the seed and the id of its decision.
    Source: `philox`."""
    return uniforms_at(seeds, decisions, np.arange(words))


def uniforms_at(seeds: Words, decisions: npt.NDArray[np.int64], words: Index) -> Array:
    """Return the uniforms with the numbers `words` of each decision, (n, w). The numbers begin at 0, and the result has
    the columns `words` of `uniforms`.

    seeds (n,) uint64: the seed of each decision; decisions (n,) int64: the ids; words (w,): the numbers. Source:
    `philox`."""
    if len(seeds) * len(words) <= _MAX_PLAIN_UNIFORMS:
        keys = zip(seeds.tolist(), decisions.tolist(), strict=True)
        return np.array([[_double(seed, number, word) for word in words.tolist()] for seed, number in keys])
    seeds, ids = np.asarray(seeds, np.uint64), np.asarray(decisions, np.int64).view(np.uint64)
    # a block of Philox gives two uniforms: compute all blocks from the first to the last, in portions of rows
    blocks = np.arange(words.min() >> 1, (words.max() >> 1) + 1).astype(np.uint64)
    pairs = np.empty((len(seeds), 2 * len(blocks)))
    step = max(1, _BLOCKS_PER_CHUNK // max(1, len(blocks)))
    for start in range(0, len(seeds), step):
        rows = slice(start, start + step)
        for low in range(0, len(blocks), _BLOCKS_PER_CHUNK):
            high = low + _BLOCKS_PER_CHUNK
            pairs[rows, 2 * low : 2 * high] = _doubles(seeds[rows], ids[rows], blocks[low:high])
    return pairs.take(words - 2 * (words.min() >> 1), axis=1)


def normals(seed: int, decision: int, *, start: int, count: int) -> Array:
    """Return standard normal numbers of a decision, (count,). Each pair is computed from two uniforms of the decision,
    beginning with uniform number `start`, which is even.

    Source: Box & Muller 1958, the textbook form."""
    words = start + np.arange(count + count % 2)
    uniform_pairs = uniforms_at(np.array([seed], np.uint64), np.array([decision], np.int64), words).reshape(-1, 2)
    radius, angle = np.sqrt(-2.0 * np.log(uniform_pairs[:, 0])), 2.0 * np.pi * uniform_pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()[:count]


def _doubles(seeds: Words, ids: Words, blocks: Words) -> Array:
    """Return both uniforms that each Philox block gives, as doubles, (n, 2 blocks).

    seeds, ids (n,): the seed and the id of each decision; blocks (b,): the numbers of the blocks."""
    w0, w1, w2, w3 = philox((*_halves(ids[:, None]), *_halves(blocks)), _halves(seeds[:, None]))
    bits = np.stack([w0 | w1 << _HALF_BITS, w2 | w3 << _HALF_BITS], axis=-1).reshape(len(seeds), -1) >> 11
    # zero has no logarithm and no quantile, so it becomes half a step
    return np.maximum(bits.astype(np.float64), 0.5) * 2.0**-53


def _double(seed: int, number: int, word: int) -> float:
    """Return the uniform with the number `word` of a decision, as in `_doubles`, computed with plain integers.

    number: the id of the decision."""
    w = philox((*_halves(number & _WORD_MASK), *_halves(word >> 1)), _halves(seed))
    first_word = 2 * (word & 1)
    return max(float((w[first_word] | w[first_word + 1] << _HALF_BITS) >> 11), 0.5) * 2.0**-53


def _halves(words: W) -> tuple[W, W]:
    return words & _LOW_MASK, words >> _HALF_BITS
