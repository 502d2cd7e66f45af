"""This module packs the history of a visit as a decision saw it. For each slot that was shown before in the visit, the
history has the arm, how many decisions ago it was shown, and the reward of the slot.

A decision stores its history packed, in little-endian words of 8 bytes. Four words come first: the microseconds
since the previous decision; 256 x the slots shown before in the visit + the slots remembered; the reward of the
visit so far (double); and one bit for each remembered slot, from the lowest, which is set if the slot's reward is
not 0. Then come 4 bytes for each remembered slot, the oldest slot first: 256 x arm id + how many decisions ago (1:
the previous decision), padded to a whole word. The rewards of the slots whose bit is set (doubles) come last. If an
arm id or a number of decisions is too large for this form, the second word is inverted (~), and each slot takes two
words, one for the arm and one for the number of decisions. The first decision of a visit has no history, and no
bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rlrec.arrays import Flags, offsets, piece_rows
from rlrec.errors import RlrecError
from rlrec.records import Record

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

N_REMEMBERED = 64  # slots: the last ones of the visit, one bit of a word for each
WORD = 8  # bytes
COUNT_BITS = 8  # for the number of slots, and for the number of decisions ago
MAX_SHORT = (1 << COUNT_BITS) - 1
MIN_LONG_ID = 1 << 24  # smaller arm ids are short
N_RECENT = 10  # arms in the session state
HISTORY_KEYS = ("shown", "reward", "rewards", "history")  # keys that `to_json` adds to a state
_HEAD = struct.Struct("<qqdQ")
HEAD_WORDS = _HEAD.size // WORD


class History(Record, kw_only=False, eq=False):
    """A History object holds the histories of n decisions. The entries of decision i, one for each remembered slot, are
    start[i]:start[i + 1], the oldest slot first."""

    step: Ints  # (n,) decisions before this one in the visit
    gap_s: Floats  # (n,) since the previous decision; 0 at step 0
    n_shown: Ints  # (n,) slots shown before in the visit
    reward: Floats  # (n,) their reward so far, page events included
    start: Ints  # (n + 1,)
    arm: Ints  # (e,) ids
    ago: Ints  # (e,) decisions since it was shown; 1: the previous one
    slot_reward: Floats  # (e,) reward from the events received so far

    @classmethod
    def empty(cls, n: int) -> History:
        """Return the empty histories of n decisions, each the first of its visit."""
        ids, zeros = np.zeros(0, np.int64), np.zeros(n, np.int64)
        return cls(zeros, np.zeros(n), zeros, np.zeros(n), np.zeros(n + 1, np.int64), ids, ids, np.zeros(0))

    def __len__(self) -> int:
        return len(self.step)

    @property
    def rows(self) -> Ints:
        """Return the index of the decision to which each entry belongs, (e,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.start))

    def take(self, rows: npt.NDArray[Any]) -> History:
        """Return the histories of the selected decisions.

        rows: the indices of the decisions, or a mask (n,)."""
        indices = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        entry_counts = np.diff(self.start)[indices]
        start, entries = offsets(entry_counts), piece_rows(self.start[indices], entry_counts)
        return History(
            self.step[indices], self.gap_s[indices], self.n_shown[indices], self.reward[indices], start,
            self.arm[entries], self.ago[entries], self.slot_reward[entries],
        )  # fmt: skip

    def to_bytes(self) -> list[bytes]:
        """Return each history packed into bytes."""
        if not self.step.any():
            return [b""] * len(self)
        filled_rows, rows = np.flatnonzero(self.step > 0), self.rows
        # which histories need long slots, and which slots have a nonzero reward (-0 counts as nonzero)
        has_long_slots = np.bincount(rows[(self.arm >= MIN_LONG_ID) | (self.ago > MAX_SHORT)], minlength=len(self)) > 0
        has_reward = np.ascontiguousarray(self.slot_reward).view(np.int64) != 0
        bits = np.zeros((len(self), N_REMEMBERED), np.bool_)
        bits[rows, np.arange(len(rows)) - self.start[rows]] = has_reward
        layout = WordOffsets(np.diff(self.start)[filled_rows], has_long_slots[filled_rows], bits[filled_rows])
        words = np.zeros(int(layout.size.sum()), "<i8")
        # the four words of the head
        real_words, count_words = words.view("<f8"), (self.n_shown[filled_rows] << COUNT_BITS) + layout.count
        words[layout.begin] = np.rint(self.gap_s[filled_rows] * 1e6)
        words[layout.begin + 1] = np.where(layout.is_long, ~count_words, count_words)
        real_words[layout.begin + 2] = self.reward[filled_rows]
        words[layout.begin + 3] = np.packbits(layout.bits, axis=1, bitorder="little").view("<i8")[:, 0]
        # the slots and their rewards
        is_long = layout.slot_is_long
        words.view("<u4")[layout.short_slots] = ((self.arm << COUNT_BITS) + self.ago)[~is_long]
        if layout.is_long.any():  # few are long, and most have no reward
            words[layout.long_slots] = np.column_stack([self.arm[is_long], self.ago[is_long]]).reshape(-1)
        if has_reward.any():
            real_words[layout.values] = self.slot_reward[has_reward]
        packed_bytes, sizes = words.tobytes(), np.zeros(len(self), np.int64)
        sizes[filled_rows] = WORD * layout.size
        return [packed_bytes[begin:end] for begin, end in pairwise([0, *np.cumsum(sizes).tolist()])]


class WordOffsets:
    """A WordOffsets object holds the places of the fields of n packed histories, in words. The histories lie one after
    another.

    count (n,): the number of slots of each history; is_long (n,): whether a slot of the history takes two words;
    bits (n, 64): which slots have a nonzero reward. is_earning (e,): whether each slot of all histories has a nonzero
    reward; short_slots: the places of the slots that take half a word, counted in half words; long_slots: the places
    of both words of the long slots; values: the places of the rewards."""

    def __init__(self, count: Ints, is_long: Flags, bits: Flags) -> None:
        self.count, self.is_long, self.bits = count, is_long, bits
        slot_words, n_earning = np.where(is_long, 2 * count, (count + 1) // 2), bits.sum(axis=1)
        self.size = HEAD_WORDS + slot_words + n_earning
        self.begin = np.cumsum(self.size) - self.size
        self.is_earning: Flags = bits[np.arange(N_REMEMBERED) < count[:, None]]
        first_slot_word = self.begin + HEAD_WORDS
        self.short_slots = piece_rows(2 * first_slot_word[~is_long], count[~is_long])
        self.long_slots = piece_rows(first_slot_word[is_long], 2 * count[is_long])
        self.values = piece_rows(first_slot_word + slot_words, n_earning)

    @property
    def slot_is_long(self) -> Flags:
        """Tell whether each slot takes two words, (e,)."""
        return np.repeat(self.is_long, self.count)


def unpack(blobs: Sequence[bytes], step: Ints) -> History:
    """Return the histories of n decisions, unpacked from bytes. Raises RlrecError for bytes that are not a history.

    blobs: the bytes of each decision, which are empty if the decision has no history or an unknown one; step (n,):
    the number of earlier decisions in the visit."""
    n, byte_sizes = len(blobs), np.fromiter(map(len, blobs), np.int64, len(blobs))
    if (byte_sizes % WORD).any() or ((byte_sizes > 0) & (byte_sizes < WORD * HEAD_WORDS)).any():
        raise _damage_error()
    # the heads, and the layout that they describe
    words, filled_rows = np.frombuffer(b"".join(blobs), "<i8"), np.flatnonzero(byte_sizes)
    begin = (np.cumsum(byte_sizes) - byte_sizes)[filled_rows] // WORD
    has_long_slots = words[begin + 1] < 0
    count = np.where(has_long_slots, ~words[begin + 1], words[begin + 1])
    bits = np.unpackbits(words[begin + 3].view(np.uint8).reshape(-1, WORD), axis=1, bitorder="little").view(np.bool_)
    layout = WordOffsets(count & MAX_SHORT, has_long_slots, bits)
    has_reward = layout.is_earning
    is_consistent = (layout.size == byte_sizes[filled_rows] // WORD) & (layout.count <= N_REMEMBERED)
    if not is_consistent.all() or has_reward.sum() != bits.sum():
        raise _damage_error()
    # the slots: arm and ago
    slots, real_words = np.empty((2, len(has_reward)), np.int64), words.view("<f8")
    short_slots = words.view("<u4")[layout.short_slots].astype(np.int64)
    is_long = layout.slot_is_long if has_long_slots.any() else None
    slots[:, slice(None) if is_long is None else ~is_long] = short_slots >> COUNT_BITS, short_slots & MAX_SHORT
    if is_long is not None:
        slots[:, is_long] = words[layout.long_slots].reshape(-1, 2).T
    # rewards of slots and visits
    rewards, (gap, reward), (n_shown, counts) = np.zeros(len(has_reward)), np.zeros((2, n)), np.zeros((2, n), np.int64)
    rewards[has_reward] = real_words[layout.values]
    gap[filled_rows], reward[filled_rows] = words[begin] / 1e6, real_words[begin + 2]
    n_shown[filled_rows], counts[filled_rows] = count >> COUNT_BITS, layout.count
    return History(np.asarray(step, np.int64), gap, n_shown, reward, offsets(counts), slots[0], slots[1], rewards)


def _damage_error() -> RlrecError:
    return RlrecError("the history that a decision stores is damaged", hint="`rlrec doctor` says of which decision")


# -- histories in JSON --


def is_packed(blob: bytes) -> bool:
    """Tell whether a blob can be the bytes of a history."""
    if not blob:
        return True
    if len(blob) < _HEAD.size:
        return False
    _, packed_count, _, bits = _HEAD.unpack_from(blob)
    count = (~packed_count if packed_count < 0 else packed_count) & MAX_SHORT
    slot_words = 2 * count if packed_count < 0 else (count + 1) // 2
    return (
        count <= N_REMEMBERED and not bits >> count and len(blob) == WORD * (HEAD_WORDS + slot_words + bits.bit_count())
    )


def match_steps(blobs: Sequence[bytes], step: Ints) -> Flags:
    """Tell whether the bytes of each decision are the history of a decision at this step, (n,).

    blobs: the bytes of each decision, which must be empty at the first step of a visit and only there; step (n,):
    the number of earlier decisions in the visit."""
    is_filled = np.fromiter(map(bool, blobs), np.bool_, len(blobs))
    return np.fromiter(map(is_packed, blobs), np.bool_, len(blobs)) & (is_filled == (step > 0))


def to_json(past: History, keys: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return the JSON object of each history, which answers and files show next to a state. The object is empty if the
    history has no entries.

    `rewards` in the object are the rewards of the arms that the state lists as `recent`. keys: the key of each arm,
    by id."""
    columns = past.arm.tolist(), past.ago.tolist(), past.slot_reward.tolist()
    slots = [{"arm": keys.get(arm), "ago": ago, "reward": reward} for arm, ago, reward in zip(*columns, strict=True)]
    visits, documents = zip(past.n_shown.tolist(), past.reward.tolist(), pairwise(past.start), strict=True), []
    for n_shown, reward, (begin, stop) in visits:
        rewards = [slot["reward"] for slot in slots[begin:stop][-N_RECENT:]]
        document = {"shown": n_shown, "reward": reward, "rewards": rewards, "history": slots[begin:stop]}
        documents.append(document if stop > begin else {})
    return documents


class ShownHistory(NamedTuple):
    """A ShownHistory is a history parsed from the result of `to_json`. Only at the first step of a visit it has no
    entries.

    gap_s: the seconds since the previous decision; n_shown: the number of slots shown before in the visit; reward:
    the reward of the visit so far; entries: for each remembered slot the key of the arm, how many decisions ago it
    was shown, and its reward."""

    gap_s: float
    n_shown: int
    reward: float
    entries: tuple[tuple[str, int, float], ...]


NO_HISTORY = ShownHistory(0.0, 0, 0.0, ())


def pack(histories: Sequence[ShownHistory], ids: Mapping[str, int]) -> list[bytes]:
    """Return histories that come from another store, packed into bytes.

    ids: the id of each arm in this store, by its key."""
    gap_s, reward = (np.array([row[column] for row in histories], np.float64) for column in (0, 2))
    n_shown, n_entries = np.array([(row.n_shown, len(row.entries)) for row in histories], np.int64).reshape(-1, 2).T
    entries = [entry for row in histories for entry in row.entries]
    arm, ago = np.array([(ids[arm], ago) for arm, ago, _ in entries], np.int64).reshape(-1, 2).T
    slot_reward = np.array([reward for *_, reward in entries], np.float64)
    step = n_entries  # only matters whether it is 0
    return History(step, gap_s, n_shown, reward, offsets(n_entries), arm, ago, slot_reward).to_bytes()


def from_json(state: Mapping[str, Any]) -> tuple[Mapping[str, Any], ShownHistory | None]:
    """Split a state that an answer shows into the state without history, which is stored, and the history. The history
    is None if it is missing or malformed."""
    if state == {"step": 0}:
        return state, NO_HISTORY
    history = _parse_history(state) if "history" in state else None
    return state if history is None else {name: state[name] for name in state if name not in HISTORY_KEYS}, history


def _parse_history(state: Mapping[str, Any]) -> ShownHistory | None:
    from rlrec.policy.contexts.features import is_name

    try:
        entries = [(row["arm"], row["ago"], row["reward"]) for row in state["history"]]
        step, gap_s, n_shown, reward = (state[name] for name in ("step", "gap_s", *HISTORY_KEYS[:2]))
        rewards = [reward for *_, reward in entries]
        is_valid = (
            0 < len(entries) <= N_REMEMBERED
            and all(is_name(arm) and _is_count(ago) and 1 <= ago <= step for arm, ago, _ in entries)
            and all(type(value) in (int, float) and abs(value) <= 1e308 for value in (gap_s, reward, *rewards))
            and _is_count(n_shown) and n_shown >= len(entries)
            and 0 <= gap_s < 1e11
            and state.get("rewards", rewards[-N_RECENT:]) == rewards[-N_RECENT:]
        )  # fmt: skip
    except (KeyError, TypeError):
        return None
    return ShownHistory(gap_s, n_shown, reward, tuple(entries)) if is_valid else None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**48
