"""States and histories of imported decisions whose lines do not say them, from the rows before in their visit: those
of new visits before they are stored, the others from the store."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from rlrec.app.imports.columns import EMPTY, FIRST_STATE, NULL, LogColumns, values
from rlrec.app.inputs import canonical
from rlrec.app.log import reward_log
from rlrec.app.serving.open_sessions import RECENT
from rlrec.arrays import Array, Ids, numbers_in_runs, offsets, piece_rows, run_starts, take
from rlrec.policy.gradients.history import REMEMBERED, History
from rlrec.records import Reward
from rlrec.store import Unit
from rlrec.store.database.loading import Column, Same
from rlrec.store.log import reader
from rlrec.store.log.reader import Batch
from rlrec.store.policies import arms

VISITS = 5_000  # read at once
READ = ("decision_id", "session_id", "visit", "step", "at", "position", "arm_id")


def logged(
    rows: LogColumns, step: Column, histories: Sequence[bytes | None]
) -> tuple[Column, Column, Sequence[int]]:  # fmt: skip
    """State and history of each row, and the rows of which they follow from earlier ones: where a line says neither,
    they are those of a first decision at step 0. A log that dropped lines does not say what came before."""
    n = len(rows)
    if (rows.history, rows.state, rows.keep_probability, step) == (NULL, EMPTY, NULL, Same(0)):
        return Same(FIRST_STATE), Same(b""), ()
    states, keep = list(values(rows.state, n)), values(rows.keep_probability, n)
    packed, without_history = list(histories), list[int]()
    for row, number in enumerate(values(step, n)):
        if states[row] == EMPTY.value and packed[row] is None and keep[row] is None:
            if number:
                without_history.append(row)
            else:
                states[row], packed[row] = FIRST_STATE, b""
    return states, packed, without_history


def filled(states: Column, histories: Column, derived: Iterable[tuple[str, bytes, int]]) -> tuple[Column, Column]:
    """Both columns with the derived states and histories. derived: state, history and index of a row each."""
    by_row = {row: (state, history) for state, history, row in derived}
    if not by_row:
        return states, histories
    columns = zip(values(states, 0), values(histories, 0), strict=True)
    pairs = [by_row.get(row, stated_pair) for row, stated_pair in enumerate(columns)]
    return [state for state, _ in pairs], [history for _, history in pairs]


def rows_batch(
    rows: LogColumns, arm_ids: Mapping[str, int], *, session_id: Sequence[int], visit: Column, step: Column,
    at: Sequence[int],
) -> Batch:  # fmt: skip
    """The slots and events of rows that are not stored, each decision by the index of its row: by session, visit, step
    and position."""
    n, shown, events = len(rows), rows.slots, rows.events
    row, event_rows = np.array(shown.row, np.int64), np.array(events.row, np.int64)
    named = {"session_id": session_id, "visit": visit, "step": step, "at": at}
    row_columns = {name: np.array(values(column, n), np.int64) for name, column in named.items()}
    slots = {name: column[row] for name, column in row_columns.items()} | {
        "decision_id": row,
        "position": np.array(values(shown.position, len(row)), np.int64),
        "arm_id": np.array(list(map(arm_ids.__getitem__, shown.arm)), np.int64),
    }
    served_at = row_columns["at"][event_rows]
    times = zip(values(events.at, len(event_rows)), served_at.tolist(), strict=True)
    event_columns = {
        "decision_id": event_rows,
        "position": np.array([number or 0 for number in values(events.position, len(event_rows))], np.int64),
        "kind": np.array(values(events.kind, len(event_rows)), object),
        "value": np.array(values(events.value, len(event_rows)), np.float64),
        "age_us": np.array([0 if time is None else time - served for time, served in times], np.int64),
    }
    order = np.lexsort([slots[name] for name in ("position", "step", "visit", "session_id")])
    return Batch(slots=take(slots, order), events=event_columns)


def derive(
    unit: Unit, visits: Collection[tuple[int, int]], decision_ids: Collection[int], definition: Reward
) -> None:  # fmt: skip
    """Store state and history of these decisions, from their visits (session and number) as they are stored.

    A visit of which steps are missing is left alone: nobody knows what it showed. What slots have earned is by this
    definition, from the events until the time of the decision."""
    ordered = sorted(visits)
    for start in range(0, len(ordered), VISITS):
        batch = _visits(unit, ordered[start : start + VISITS])
        keys = arms.keys(unit, set(batch.slots["arm_id"].tolist()))
        changes = visit_states(batch, decision_ids, definition, keys)
        unit.tell_each("UPDATE decision SET state = ?, history = ? WHERE id = ?", changes)


def _visits(unit: Unit, visits: Sequence[tuple[int, int]]) -> Batch:
    """All slots and events of these visits: by session, visit, step and position."""
    visit_values = ", ".join(f"({session}, {number})" for session, number in visits)
    inside = [f"(d.session_id, d.visit) IN (VALUES {visit_values})"]
    slots = reader.ask_slots(unit, READ, inside, order="d.session_id, d.visit, d.step, s.position")
    events = reader.ask_events(unit, reader.EVENT_COLUMNS, inside)
    return Batch(slots=reader.read_slots(slots), events=events.columns())


def visit_states(
    batch: Batch, decision_ids: Collection[int], definition: Reward, keys: Mapping[int, str]
) -> Iterator[tuple[str, bytes, int]]:
    """State, history and id of these decisions, as `derive` stores them. keys: of the arms."""
    slots = batch.slots
    first = run_starts(slots["decision_id"])
    visit = run_starts(slots["session_id"][first], slots["visit"][first])
    step = slots["step"][first]
    # visits that have every step
    number = numbers_in_runs(visit, len(first))
    lengths = np.diff(visit, append=len(first))
    is_complete = np.repeat(np.logical_and.reduceat(step == number, visit), lengths)
    is_wanted = np.isin(slots["decision_id"][first], np.fromiter(decision_ids, np.int64, len(decision_ids)))
    picks = np.flatnonzero(is_complete & (step > 0) & is_wanted)
    if not len(picks):
        return iter(())
    past = _histories(batch, picks, first=first, begin=np.repeat(visit, lengths), definition=definition)
    return zip(_states(past, keys), past.packed(), slots["decision_id"][first[picks]].tolist(), strict=True)


def _histories(batch: Batch, picks: Ids, *, first: Ids, begin: Ids, definition: Reward) -> History:
    """The histories of some decisions. first: the first slot of each decision; begin: the first decision of its
    visit."""
    slots, at = batch.slots, batch.slots["at"][first]
    # the slots before each decision, and the last of these
    first_slot, since = first[picks], first[begin[picks]]
    shown = first_slot - since
    count = np.minimum(shown, REMEMBERED)
    entries, row = piece_rows(first_slot - count, count), np.repeat(np.arange(len(picks)), count)
    # what they have earned by all events, and where some of these came later, by those before
    by_slot, by_page = _rewards(batch, definition, first)
    earned, reward = (
        by_slot[entries],
        _sums_before(by_slot + by_page, first[np.unique(begin)])[first_slot],
    )
    start = offsets(count)
    for index in _with_late_events(batch, picks, first, begin).tolist():
        low, high = int(since[index]), int(first_slot[index])
        by_slot, by_page = _rewards(_until(batch, low, high, int(at[picks[index]])), definition)
        reward[index] = by_slot.sum() + by_page.sum()
        earned[start[index] : start[index + 1]] = by_slot[len(by_slot) - count[index] :]
    step = slots["step"][first[picks]]
    ago, gap_us = step[row] - slots["step"][entries], np.maximum(at[picks] - at[picks - 1], 0)
    return History(step, gap_us / 1e6, shown, reward, start, slots["arm_id"][entries], ago, earned)


def _sums_before(values: Array, starts: Ids) -> Array:
    """The sum of the values before each in its run, (n,): not by a difference of two sums, which would hang on what
    else is in the batch."""
    total, number = np.zeros(len(values)), numbers_in_runs(starts, len(values))
    for rows in np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number)))[1:-1]:
        total[rows] = total[rows - 1] + values[rows - 1]
    return total


def _rewards(batch: Batch, definition: Reward, first: Ids | None = None) -> tuple[Array, Array]:
    """The reward of each slot, and that of each page at its first slot, (n,) each."""
    decision_id = batch.slots["decision_id"]
    first = run_starts(decision_id) if first is None else first
    pages = np.zeros(len(decision_id))
    pages[first] = reward_log.page_events(batch, definition, decision_id[first])
    return reward_log.with_rewards(batch, definition).reward, pages


def _with_late_events(batch: Batch, picks: Ids, first: Ids, begin: Ids) -> Ids:
    """The index of the decisions in whose visit an event came later than they did, of a decision before."""
    events, slots = batch.events, batch.slots
    if not (events["age_us"] > 0).any():  # most logs give no times of events
        return np.empty(0, np.int64)
    order = np.argsort(slots["decision_id"][first], kind="stable")
    decision = order[np.searchsorted(slots["decision_id"][first[order]], events["decision_id"])]
    latest_at = slots["at"][first].copy()
    np.maximum.at(latest_at, decision, slots["at"][first[decision]] + events["age_us"])
    highest = np.zeros(len(picks), np.int64)
    for row, index in enumerate(picks.tolist()):
        highest[row] = latest_at[begin[index] : index].max()
    return np.flatnonzero(highest > slots["at"][first[picks]])


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
    gaps, index = np.unique(past.gap_s, return_inverse=True)
    gap = list(map(list(map(canonical.number, gaps.tolist())).__getitem__, index.tolist()))
    rows = zip(gap, recent, past.step.tolist(), strict=True)
    return [f'{{"gap_s":{seconds},"recent":[{arms}],"step":{step}}}' for seconds, arms, step in rows]
