"""This module computes the share of the reward that arrives within a time after a decision, for several times
(windows). The method is a chain ladder over the log, which multiplies the ratios of rewards in neighbouring windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from rlrec.app.inputs import filters, lookup
from rlrec.app.log import reward_log
from rlrec.arrays import Array, Flags, finite_or_none, take
from rlrec.errors import InputError
from rlrec.ope.checks.times import arrived_shares
from rlrec.records import Reward
from rlrec.store import Store
from rlrec.store.database.bulk import Columns
from rlrec.store.log import reader
from rlrec.store.log.reader import Batch
from rlrec.times import SECOND

MINUTES = 1, 5, 15, 30, 60, 180, 360, 720, *(1_440 * days for days in (1, 2, 3, 7, 14, 30))
WINDOWS_US = [60 * SECOND * minutes for minutes in MINUTES]
# The columns of the sums over the decisions that are old enough for a window.
DECISIONS, EVENTS, EARLIER_REWARD, WINDOW_REWARD, COUNTED = range(5)
_DECISION_COLUMNS = (*reward_log.MATURITY_COLUMNS, "keep_probability")


# One window; own: whether it is the definition's.
Result = TypedDict("Result", {
    "window_s": float, "share": float | None, "events": int, "decisions": int, "reward_per_decision": float,
    "own": bool, "reward": str,
})  # fmt: skip


def delays(store: Store, name: str | None = None, *, log: str | None = None) -> list[Result]:
    """Return a row for each window (a time after a decision), with the share of the reward that arrives in it. Only
    decisions older than the window count. The last window is the longest with an event that the reward weighs. Raises
    InputError if there is no such event.

    name: the name of the reward; log: a filter of the decisions."""
    with store.read() as unit:
        definition = lookup.reward(unit, name)
        windows = sorted({*WINDOWS_US, definition.window_us})
        total = np.zeros((len(windows), 5))
        for batch in reader.batches(unit, filters.selection(unit, log), columns=_DECISION_COLUMNS):
            total += _window_sums(batch, definition, windows, now=unit.now)
        _, reward_names = reward_log.find_uncounted(unit, definition)
    with_events = np.flatnonzero(total[:, EVENTS])
    if not len(with_events):
        hint = f"record some with `rlrec feedback`{', or widen --log' if log else ''}"
        hint = f"`rlrec reward delays {reward_names[0]}` has the newest events" if reward_names else hint
        cause = f"no selected decision that is old enough has one of reward {definition.name!r}"
        raise InputError(f"no weighed event: {cause}", hint=hint)
    total = total[: with_events[-1] + 1]
    earlier, later = total[:, EARLIER_REWARD], total[:, WINDOW_REWARD]
    # equal values: nothing arrived in between; unknown where later events cancelled all reward
    link_ratios = np.divide(earlier, later, out=np.where(earlier == later, 1.0, np.nan), where=later != 0)
    return [
        {
            "window_s": window / 1e6, "share": finite_or_none(share), "events": int(row[EVENTS]),
            "decisions": int(row[DECISIONS]), "reward_per_decision": row[WINDOW_REWARD] / row[COUNTED],
            "own": window == definition.window_us, "reward": definition.name,
        }
        for row, window, share in zip(total.tolist(), windows, arrived_shares(link_ratios).tolist(), strict=False)
    ]  # fmt: skip


def _window_sums(batch: Batch, definition: Reward, windows: Sequence[int], *, now: int) -> Array:
    """Return sums over the decisions of a batch that are older than each window, (windows, 5), in the columns DECISIONS
    to COUNTED. EARLIER_REWARD is the reward of the same decisions in the previous window. COUNTED is the number of
    decisions, including decisions that the log dropped when it was sampled.

    windows: times after a decision in microseconds, ascending; now: the present time."""
    slots = batch.slots
    is_uncensored = ~np.isin(slots["decision_id"], slots["decision_id"][slots["censored"]])
    all_decisions, event_batch = _decisions(slots, is_uncensored), _weighted_events(batch, definition, is_uncensored)
    # the decisions with weighted events, and the index of each slot's and event's decision among them
    decisions, slot = np.unique(event_batch.slots["decision_id"], return_inverse=True)
    event = np.searchsorted(decisions, event_batch.events["decision_id"])
    marks = _decisions(event_batch.slots)
    sums, earlier_reward = np.zeros((len(windows), 5)), np.zeros(len(decisions))
    for row, window in enumerate(windows):
        reward = definition._replace(window_us=window)
        gains = reward_log.with_rewards(event_batch, reward).reward - definition.default
        page_reward = np.bincount(slot, weights=gains) + reward_log.page_events(event_batch, reward, decisions)
        page_reward /= marks["keep_probability"]
        mature_marks, mature_decisions = (
            reward_log.is_mature(marks, reward, now=now),
            reward_log.is_mature(all_decisions, reward, now=now),
        )
        n_events = np.count_nonzero(mature_marks[event] & (event_batch.events["age_us"] <= window))
        rewards = earlier_reward[mature_marks].sum(), page_reward[mature_marks].sum()
        n_counted = (1 / all_decisions["keep_probability"][mature_decisions]).sum()
        sums[row] = np.count_nonzero(mature_decisions), n_events, *rewards, n_counted
        earlier_reward = page_reward
    return sums


def _weighted_events(batch: Batch, definition: Reward, is_uncensored: Flags) -> Batch:
    """Return the events of a batch that the reward weighs, and the slots of the decisions with such events. All other
    decisions earned the default reward. is_uncensored (slots,): whether no slot of the same decision is censored."""
    is_weighed = reward_log.kind_numbers(batch, definition.weights) >= 0
    is_weighed &= np.isin(batch.events["decision_id"], batch.slots["decision_id"][is_uncensored])
    events = take(batch.events, is_weighed)
    rows = np.isin(batch.slots["decision_id"], events["decision_id"])
    return Batch(slots=take(batch.slots, rows), events=events)


def _decisions(slots: Columns, rows: Flags | slice = slice(None)) -> Columns:
    """Return a row for each decision of the slots, in order of the decision's id, with its age and its probability of
    being kept (columns _DECISION_COLUMNS). rows: the slots to use."""
    _, first_rows = np.unique(slots["decision_id"][rows], return_index=True)
    return {name: slots[name][rows][first_rows] for name in _DECISION_COLUMNS}
