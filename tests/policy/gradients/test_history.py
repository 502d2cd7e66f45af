"""What a decision remembers of its visit: packed, read in arrays, taken by rows, and shown."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from rlrec.errors import RlrecError
from rlrec.policy.gradients import history
from rlrec.policy.gradients.history import History
from tests.policy.histories import Entry, pack
from tests.policy.histories import entries as entries_of

KEYS = {7: "tea", 8: "milk", 9: "choc"}


def entries(n: int) -> list[Entry]:
    return [(7 + i % 3, n - i, i / 7) for i in range(n)]


PACKED = [
    None,
    (1_500_000, 2, 0.5, [(7, 2, 0.5), (8, 1, 0.0)]),
    (2**40, 900, -3.25, entries(history.N_REMEMBERED)),
    None,
    (0, 1, 1e100, [(2**40, 1, 1e100)]),
    (5, 4, 0.1, [(7, 3, 0.1), (8, 2, -0.0), (9, 1, 0.0)]),
    (5, 2, 0.0, [(2**24 - 1, 255, 0.0), (9, 1, 0.0)]),
    (5, 2, 0.0, [(2**24, 1, 0.0), (9, 1, 2.0)]),
    (5, 2, 0.0, [(8, 256, 0.0), (9, 1, 0.0)]),
]
BLOBS = [b"" if packed is None else pack(*packed) for packed in PACKED]
STEPS = np.array([0, 2, 450, 0, 1, 3, 255, 1, 256])


def of(result: History, row: int) -> list[tuple[int, int, float]]:
    """The entries of one decision."""
    selected = slice(*result.start[row : row + 2])
    columns = (result.arm, result.ago, result.slot_reward)
    return list(zip(*(column[selected].tolist() for column in columns), strict=True))


def test_arrays_hold_what_each_decision_packed() -> None:
    result = history.unpack(BLOBS, STEPS)
    assert result.gap_s[:5].tolist() == [0, 1.5, 2**40 / 1e6, 0, 0]
    assert result.n_shown[:5].tolist() == [0, 2, 900, 0, 1]
    assert result.reward[:5].tolist() == [0, 0.5, -3.25, 0, 1e100]
    assert [of(result, row) for row in range(len(BLOBS))] == [packed[3] if packed else [] for packed in PACKED]
    assert result.rows.tolist() == [1] * 2 + [2] * 64 + [4] + [5] * 3 + [6] * 2 + [7] * 2 + [8] * 2


def test_entries_are_those_that_were_packed() -> None:
    """The sign of a zero too."""
    for reported in ([(7, 3, 0.1), (8, 2, -0.0), (9, 1, 0.0)], [(2**40, 300, 1.5), (1, 1, 0.0)], entries(64)):
        assert repr(entries_of(pack(1, 900, 2.5, reported))) == repr(reported)


def test_bytes_are_those_of_the_format() -> None:
    """Short slots, and long ones."""
    head = struct.pack("<qqdQ", 1_500_000, 2 << 8 | 2, 0.5, 0b01)
    assert BLOBS[1] == head + struct.pack("<2Id", 7 << 8 | 2, 8 << 8 | 1, 0.5)
    head = struct.pack("<qqdQ", 0, ~(1 << 8 | 1), 1e100, 0b1)
    assert BLOBS[4] == head + struct.pack("<2qd", 2**40, 1, 1e100)


def test_what_earned_nothing_takes_four_bytes() -> None:
    nothing = [(7, 64 - i, 0.0) for i in range(64)]
    assert len(pack(1, 64, 0.0, nothing)) == 32 + 64 * 4
    assert len(pack(1, 64, 1.0, [*nothing[1:], (7, 1, 1.0)])) == 32 + 64 * 4 + 8


def test_what_was_unpacked_packs_to_the_same_bytes() -> None:
    assert history.unpack(BLOBS, STEPS).to_bytes() == BLOBS
    assert history.unpack([], STEPS[:0]).to_bytes() == []
    assert History.empty(2).to_bytes() == [b"", b""]


@pytest.mark.parametrize("rows", [[4, 2, 2], [], [0, 3], [1]])
def test_rows_can_be_taken_in_any_order(rows: list[int]) -> None:
    result = history.unpack(BLOBS, STEPS).take(np.array(rows, np.int64))
    assert result.to_bytes() == [BLOBS[row] for row in rows]
    assert result.step.tolist() == STEPS[rows].tolist()


def test_rows_can_be_taken_by_a_mask() -> None:
    result = history.unpack(BLOBS, STEPS)
    assert result.take(result.step > 0).to_bytes() == [blob for blob in BLOBS if blob]


def test_a_first_decision_remembers_nothing() -> None:
    result, none = history.unpack([b"", b""], np.zeros(2, np.int64)), History.empty(2)
    for name in ("step", "gap_s", "n_shown", "reward", "start", "arm", "ago", "slot_reward"):
        item, other = getattr(result, name), getattr(none, name)
        assert item.dtype == other.dtype
        np.testing.assert_array_equal(item, other)


@pytest.mark.parametrize("blob", [blob for blob in BLOBS if blob])
def test_bytes_that_are_no_history_are_told(blob: bytes) -> None:
    assert history.is_packed(blob)
    count, bits = int.from_bytes(blob[8:9]), int.from_bytes(blob[24:32], "little")
    beyond = blob[:24] + (bits | 1 << 63).to_bytes(8, "little") + blob[32:]
    many = blob[:8] + bytes([count ^ 0x7F]) + blob[9:]
    broken = [blob[:-1], blob[:-8], blob + bytes(8), blob[:24], many, *([beyond] if len(blob) < 500 else [])]
    for item in broken:
        assert not history.is_packed(item)
        with pytest.raises(RlrecError, match="damaged"):
            history.unpack([b"", item], np.array([0, 1]))


def test_first_decisions_keep_nothing_and_all_others_something() -> None:
    assert history.match_steps(BLOBS, STEPS).all()
    assert not history.match_steps(BLOBS, np.where(STEPS == 0, 1, 0)).any()


# -- shown and read again --


def state(blob: bytes, step: int, gap_s: float) -> dict[str, object]:
    """As it is shown: a state and what is known beside it."""
    recent = [KEYS[arm] for arm, *_ in entries_of(blob)][-history.N_RECENT :]
    return {"step": step, "gap_s": gap_s, "recent": recent} | history.to_json(history.unpack([blob], [step]), KEYS)[0]


def test_rewards_lie_beside_the_recent_arms() -> None:
    reported = state(BLOBS[2], 450, 1.0)
    assert reported["rewards"] == [i / 7 for i in range(54, 64)]
    assert reported["history"][-1] == {"arm": "tea", "ago": 1, "reward": 9.0}
    assert history.to_json(History.empty(1), KEYS) == [{}]


@pytest.mark.parametrize(("blob", "step", "gap_s"), [(BLOBS[1], 2, 1.5), (BLOBS[2], 450, 2**40 / 1e6)])
def test_what_is_shown_packs_to_the_same_bytes(blob: bytes, step: int, gap_s: float) -> None:
    reported = state(blob, step, gap_s)
    retained, result = history.from_json(reported)
    assert result is not None
    assert history.pack([result], {key: arm for arm, key in KEYS.items()}) == [blob]
    assert retained == {name: reported[name] for name in ("step", "gap_s", "recent")}


def test_a_first_state_is_known_to_remember_nothing() -> None:
    retained, result = history.from_json({"step": 0})
    assert retained == {"step": 0}
    assert result is not None
    assert history.pack([result], {}) == [b""]


def test_what_follows_from_the_history_need_not_be_told() -> None:
    reported = state(BLOBS[1], 2, 1.5)
    short = {name: reported[name] for name in reported if name not in ("rewards", "recent")}
    assert history.from_json(short) == ({"step": 2, "gap_s": 1.5}, history.from_json(reported)[1])


WRONG = [
    {"history": []}, {"history": [{"arm": "tea", "ago": 0, "reward": 0}]}, {"history": [1]}, {"history": "tea"},
    {"shown": 1}, {"shown": True}, {"reward": "1"}, {"rewards": [0.5]}, {"gap_s": -1.0}, {"gap_s": None},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_state_of_another_shape_is_left_alone(wrong: dict[str, object]) -> None:
    reported = state(BLOBS[1], 2, 1.5) | wrong
    assert history.from_json(reported) == (reported, None)
    assert history.from_json({}) == ({}, None)
