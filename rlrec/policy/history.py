"""What was known of a visit when a decision was made: of each slot shown before it the arm, how long ago, its reward.

Packed it is what a decision keeps: little-endian rows of three 8-byte words. The first row holds the microseconds since
the decision before (integer), the slots shown before in the visit (integer), and what they have earned so far (double).
One row follows for each slot remembered, oldest first: arm id, how many decisions ago (1: the one before), reward. The
first decision of a visit has nothing to remember, and no bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

REMEMBERED = 64  # slots: the last ones of the visit
WORDS = 3
RECENT = 10  # arms that a state shows by themselves
SHOWN = ("shown", "reward", "rewards", "history")  # what is shown beside a state
_ROW = struct.Struct("<qqd")


@dataclass(frozen=True, eq=False)
class History:
    """Of n decisions what each remembers. The entries of decision i are start[i]:start[i + 1], oldest first."""

    step: Ints  # (n,) decisions before it in the visit
    gap_s: Floats  # (n,) since the one before; 0 at step 0
    shown: Ints  # (n,) slots shown before
    reward: Floats  # (n,) what they have earned so far, page events included
    start: Ints  # (n + 1,)
    arm: Ints  # (e,) ids
    ago: Ints  # (e,) decisions since it was shown; 1: the one before
    earned: Floats  # (e,) by what had been received

    @classmethod
    def nothing(cls, n: int) -> History:
        """The histories of n first decisions."""
        none, zeros = np.zeros(0, np.int64), np.zeros(n, np.int64)
        return cls(zeros, np.zeros(n), zeros, np.zeros(n), np.zeros(n + 1, np.int64), none, none, np.zeros(0))

    def __len__(self) -> int:
        return len(self.step)

    @property
    def rows(self) -> Ints:
        """The decision that each entry belongs to, (e,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.start))

    def take(self, rows: npt.NDArray[Any]) -> History:
        """Of some decisions, by place or by mask."""
        places = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        counts = np.diff(self.start)[places]
        start = np.concatenate([[0], np.cumsum(counts)])
        entries = np.arange(start[-1]) + np.repeat(self.start[places] - start[:-1], counts)
        return History(
            self.step[places], self.gap_s[places], self.shown[places], self.reward[places], start,
            self.arm[entries], self.ago[entries], self.earned[entries],
        )  # fmt: skip

    def packed(self) -> list[bytes]:
        """Each as it is kept."""
        has = (self.step > 0).astype(np.int64)
        ends = np.cumsum(np.diff(self.start) + has)
        words = np.zeros((int(ends[-1]) if len(ends) else 0, WORDS), "<i8")
        reals = words.view("<f8")
        first = has > 0
        heads = (ends - np.diff(self.start) - has)[first]
        words[heads, 0] = np.rint(self.gap_s[first] * 1e6)
        words[heads, 1] = self.shown[first]
        reals[heads, 2] = self.reward[first]
        body = np.ones(len(words), np.bool_)
        body[heads] = False
        words[body, 0], words[body, 1], reals[body, 2] = self.arm, self.ago, self.earned
        whole, width = words.tobytes(), WORDS * 8
        bounds = [0, *(ends * width).tolist()]
        return [whole[low:high] for low, high in pairwise(bounds)]


def unpack(blobs: Sequence[bytes], step: Ints) -> History:
    """The histories of n decisions from what each keeps; step (n,). No bytes: nothing is remembered, or known."""
    words = np.frombuffer(b"".join(blobs), "<i8").reshape(-1, WORDS)
    reals = words.view("<f8")
    rows = np.fromiter(map(len, blobs), np.int64, len(blobs)) // (8 * WORDS)
    has = rows > 0
    heads = (np.cumsum(rows) - rows)[has]
    body = np.ones(len(words), np.bool_)
    body[heads] = False
    gap, shown, reward = np.zeros(len(blobs)), np.zeros(len(blobs), np.int64), np.zeros(len(blobs))
    gap[has], shown[has], reward[has] = words[heads, 0] / 1e6, words[heads, 1], reals[heads, 2]
    start = np.concatenate([[0], np.cumsum(rows - has)])
    entries = words[body]
    return History(
        np.asarray(step, np.int64), gap, shown, reward, start,
        np.ascontiguousarray(entries[:, 0]), np.ascontiguousarray(entries[:, 1]), reals[body, 2],
    )  # fmt: skip


# -- one decision, in plain Python --

Entry = tuple[int, int, float]  # arm, ago, reward


def pack(gap_us: int, shown: int, reward: float, entries: Sequence[Entry]) -> bytes:
    """What one decision keeps."""
    flat: list[float] = [gap_us, shown, reward]
    for entry in entries:
        flat += entry
    return struct.pack("<" + "qqd" * (len(entries) + 1), *flat)


def entries(blob: bytes) -> list[Entry]:
    """The slots that one decision remembers, oldest first."""
    return list(_ROW.iter_unpack(blob))[1:]


def whole(blob: bytes) -> bool:
    """Whether these can be the bytes of a history."""
    return len(blob) % _ROW.size == 0


def arms(blob: bytes) -> set[int]:
    """The ids of the arms that one decision remembers."""
    return {arm for arm, *_ in entries(blob)}


def shown(blob: bytes, keys: Mapping[int, str]) -> dict[str, Any]:
    """What is shown of it beside a state: `rewards` lie beside the state's `recent`. Nothing at the first step."""
    if not blob:
        return {}
    (_, count, reward), *remembered = _ROW.iter_unpack(blob)
    return {
        "shown": count,
        "reward": reward,
        "rewards": [earned for _, _, earned in remembered[-RECENT:]],
        "history": [{"arm": keys.get(arm), "ago": ago, "reward": earned} for arm, ago, earned in remembered],
    }


class Told(NamedTuple):
    """What `shown` told; arms are keys. It has no entries at the first step, and else one at least."""

    gap_us: int
    shown: int
    reward: float
    entries: tuple[tuple[str, int, float], ...]

    def packed(self, ids: Mapping[str, int]) -> bytes:
        """As a decision of another store keeps it."""
        if not self.entries:
            return b""
        remembered = [(ids[arm], ago, earned) for arm, ago, earned in self.entries]
        return pack(self.gap_us, self.shown, self.reward, remembered)


FIRST = Told(0, 0, 0.0, ())


def read(state: Mapping[str, Any]) -> tuple[Mapping[str, Any], Told | None]:
    """A state as it is stored, and what was shown beside it; None where that is missing, or not of this shape."""
    if state == {"step": 0}:
        return state, FIRST
    found = _told(state) if "history" in state else None
    return state if found is None else {name: state[name] for name in state if name not in SHOWN}, found


def _told(state: Mapping[str, Any]) -> Told | None:
    try:
        listed = [(row["arm"], row["ago"], row["reward"]) for row in state["history"]]
        step, gap_s, count, reward, rewards = (state[name] for name in ("step", "gap_s", *SHOWN[:3]))
        sound = (
            0 < len(listed) <= REMEMBERED
            and all(_is_key(arm) and _is_count(ago) and 1 <= ago <= step for arm, ago, _ in listed)
            and all(_is_number(number) for number in (gap_s, reward, *(earned for *_, earned in listed)))
            and _is_count(count) and count >= len(listed)
            and 0 <= gap_s < 1e11
            and rewards == [earned for *_, earned in listed[-RECENT:]]
        )  # fmt: skip
    except (KeyError, TypeError):
        return None
    return Told(round(gap_s * 1e6), count, reward, tuple(listed)) if sound else None


def _is_key(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 200 and "\x00" not in value


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e308  # type: ignore[arg-type]
