"""States and histories of imported decisions whose lines do not say them, from the rows before in their visit."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from rlrec.app.inputs import canonical
from rlrec.app.log import reward_log
from rlrec.app.serving.open_sessions import RECENT
from rlrec.arrays import Array, Ids, numbers_in_runs, offsets, piece_rows, run_starts, take
from rlrec.policy.history import REMEMBERED, History
from rlrec.records import Reward
from rlrec.store import Unit, arms, reader
from rlrec.store.reader import Batch

SESSIONS = 5_000  # read at once
READ = ("decision_id", "session_id", "visit", "step", "at", "position", "arm_id", "recorded", "imported")


def derive(unit: Unit, session_ids: Collection[int], decision_ids: Collection[int], definition: Reward) -> None:
    """Store state and history of these decisions, from the visits of these sessions as they are stored.

    A visit of which steps are missing is left alone: nobody knows what it showed. What slots have earned is by this
    definition, from the events until the time of the decision."""
    wanted, ordered = np.array(sorted(decision_ids), np.int64), sorted(session_ids)
    for start in range(0, len(ordered), SESSIONS):
        batch = _visits(unit, ordered[start : start + SESSIONS])
        _store(unit, batch, wanted, definition)


def _visits(unit: Unit, session_ids: Sequence[int]) -> Batch:
    """All slots and events of these sessions: by session, visit, step and position."""
    inside = [f"d.session_id IN ({reader.numbers(session_ids)})"]
    slots = reader.ask_slots(unit, READ, inside, order="d.session_id, d.visit, d.step, s.position")
    events = reader.ask_events(unit, reader.EVENT_COLUMNS, inside)
    return Batch(slots=reader.read_slots(slots), events=events.columns())


def _store(unit: Unit, batch: Batch, wanted: Ids, definition: Reward) -> None:
    slots = batch.slots
    first = run_starts(slots["decision_id"])
    visit = run_starts(slots["session_id"][first], slots["visit"][first])
    step = slots["step"][first]
    # visits that have every step
    number = numbers_in_runs(visit, len(first))
    lengths = np.diff(visit, append=len(first))
    complete = np.repeat(np.logical_and.reduceat(step == number, visit), lengths)
    chosen = np.flatnonzero(complete & (step > 0) & np.isin(slots["decision_id"][first], wanted))
    if not len(chosen):
        return
    past = _histories(batch, chosen, first=first, begin=np.repeat(visit, lengths), definition=definition)
    keys = arms.keys(unit, set(past.arm.tolist()))
    states = _states(past, keys)
    ids = slots["decision_id"][first[chosen]].tolist()
    changes = zip(states, past.packed(), ids, strict=True)
    unit.tell_each("UPDATE decision SET state = ?, history = ? WHERE id = ?", changes)


def _histories(batch: Batch, chosen: Ids, *, first: Ids, begin: Ids, definition: Reward) -> History:
    """The histories of some decisions. first: the first slot of each decision; begin: the first decision of its
    visit."""
    slots, at = batch.slots, batch.slots["at"][first]
    # the slots before each decision, and the last of these
    before, since = first[chosen], first[begin[chosen]]
    shown = before - since
    count = np.minimum(shown, REMEMBERED)
    entries, row = piece_rows(before - count, count), np.repeat(np.arange(len(chosen)), count)
    # what they have earned by all events, and where some of these came later, by those before
    of_slot, of_page = _rewards(batch, definition, first)
    total = np.concatenate([[0.0], np.cumsum(of_slot + of_page)])
    earned, reward = of_slot[entries], total[before] - total[since]
    start = offsets(count)
    for index in _with_late_events(batch, chosen, first, begin).tolist():
        low, high = int(since[index]), int(before[index])
        of_slot, of_page = _rewards(_until(batch, low, high, int(at[chosen[index]])), definition)
        reward[index] = of_slot.sum() + of_page.sum()
        earned[start[index] : start[index + 1]] = of_slot[len(of_slot) - count[index] :]
    step = slots["step"][first[chosen]]
    ago, gap_us = step[row] - slots["step"][entries], np.maximum(at[chosen] - at[chosen - 1], 0)
    return History(step, gap_us / 1e6, shown, reward, start, slots["arm_id"][entries], ago, earned)


def _rewards(batch: Batch, definition: Reward, first: Ids | None = None) -> tuple[Array, Array]:
    """The reward of each slot, and that of each page at its first slot, (n,) each."""
    decision_id = batch.slots["decision_id"]
    first = run_starts(decision_id) if first is None else first
    pages = np.zeros(len(decision_id))
    pages[first] = reward_log.page_events(batch, definition, decision_id[first])
    return reward_log.with_rewards(batch, definition).reward, pages


def _with_late_events(batch: Batch, chosen: Ids, first: Ids, begin: Ids) -> Ids:
    """The index of the decisions in whose visit an event came later than they did, of a decision before."""
    events, slots = batch.events, batch.slots
    if not (events["age_us"] > 0).any():  # most logs give no times of events
        return np.empty(0, np.int64)
    order = np.argsort(slots["decision_id"][first], kind="stable")
    decision = order[np.searchsorted(slots["decision_id"][first[order]], events["decision_id"])]
    latest = slots["at"][first].copy()
    np.maximum.at(latest, decision, slots["at"][first[decision]] + events["age_us"])
    highest = np.zeros(len(chosen), np.int64)
    for row, index in enumerate(chosen.tolist()):
        highest[row] = latest[begin[index] : index].max()
    return np.flatnonzero(highest > slots["at"][first[chosen]])


def _until(batch: Batch, low: int, high: int, time: int) -> Batch:
    """The slots from `low` to `high`, with the events of these until a time."""
    slots, events = take(batch.slots, slice(low, high)), batch.events
    inside = np.flatnonzero(np.isin(events["decision_id"], slots["decision_id"]))
    served = dict(zip(slots["decision_id"].tolist(), slots["at"].tolist(), strict=True))
    at = np.array([served[number] for number in events["decision_id"][inside].tolist()], np.int64)
    return Batch(slots=slots, events=take(events, inside[at + events["age_us"][inside] <= time]))


def _states(past: History, keys: Mapping[int, str]) -> list[str]:
    """Canonical JSON of the states that serving would have stored."""
    texts = {arm: json.dumps(key, ensure_ascii=False) for arm, key in keys.items()}
    names = [texts[arm] for arm in past.arm.tolist()]
    bounds = zip(past.start[:-1].tolist(), past.start[1:].tolist(), strict=True)
    recent = [",".join(names[max(low, high - RECENT) : high]) for low, high in bounds]
    rows = zip(past.gap_s.tolist(), recent, past.step.tolist(), strict=True)
    return [f'{{"gap_s":{canonical.number(gap)},"recent":[{arms}],"step":{step}}}' for gap, arms, step in rows]
