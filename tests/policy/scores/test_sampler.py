"""Uniforms: the published Philox answers, and rows that depend on seed and decision id alone."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.policy.scores.sampler import philox, uniforms, uniforms_at

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
# counter, key and answer of philox4x32-10 in Random123's kat_vectors
PUBLISHED = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (PI[:4], PI[4:], (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("counter", "key", "answer"), PUBLISHED)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, ...], answer: tuple[int, ...]
) -> None:
    c0, c1, c2, c3, k0, k1 = (np.array([word], np.uint64) for word in (*counter, *key))
    assert tuple(int(word[0]) for word in philox((c0, c1, c2, c3), (k0, k1))) == answer


def test_words_are_the_key_the_decision_and_the_block() -> None:
    seed, decision = 0x299F31D0A4093822, 0x0370734413198A2E
    low, high = np.array([0xA4093822], np.uint64), np.array([0x299F31D0], np.uint64)
    block = np.array([1], np.uint64)
    counter = (np.array([0x13198A2E], np.uint64), np.array([0x03707344], np.uint64), block, block * 0)
    w0, w1, _, _ = (int(word[0]) for word in philox(counter, (low, high)))
    expected = ((w1 << 32 | w0) >> 11) * 2.0**-53
    result = uniforms(np.array([seed], np.uint64), np.array([decision], np.int64), words=3)
    assert result[0, 2] == expected


def test_a_row_depends_on_its_own_seed_and_decision_alone() -> None:
    seeds, decisions = np.arange(50, dtype=np.uint64), np.arange(50)[::-1].copy()
    together = uniforms(seeds, decisions, words=7)
    alone = np.concatenate([uniforms(seeds[[i]], decisions[[i]], words=7) for i in range(50)])
    assert np.array_equal(together, alone)


def test_any_subset_of_words_is_the_same() -> None:
    seeds, decisions = np.full(3, 2**64 - 1, np.uint64), np.array([-1, 0, 2**63 - 1])
    words = np.array([70_001, 3, 0, 12])
    assert np.array_equal(uniforms_at(seeds, decisions, words), uniforms(seeds, decisions, words=70_002)[:, words])


@pytest.mark.parametrize("words", [[0], [1], [5, 2], [3, 0, 70_001, 1]])
def test_one_decision_is_the_same_as_among_many(words: list[int]) -> None:
    rng = np.random.default_rng(1)
    seeds, decisions = rng.integers(0, 2**64, 200, np.uint64), rng.integers(-(2**63), 2**63, 200, np.int64)
    seeds[:2], decisions[1:3] = 2**64 - 1, -1
    together = uniforms_at(seeds, decisions, np.array(words))
    alone = [uniforms_at(seeds[[i]], decisions[[i]], np.array(words)) for i in range(200)]
    assert np.array_equal(together, np.concatenate(alone))


def test_uniforms_lie_inside_the_interval_and_are_even() -> None:
    """Chi-square over 1,000 cells: false alarm 1e-6."""
    drawn = uniforms(np.full(1000, 5, np.uint64), np.arange(1000), words=1000).ravel()
    counts = np.bincount((drawn * 1000).astype(np.intp), minlength=1000)
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert ((counts - 1000) ** 2 / 1000).sum() < 1225.5  # quantile 1 - 1e-6 of chi-square, 999 degrees of freedom
