"""This module assigns each imported decision to a visit of its session and to a step of this visit. It also derives the
state and the history that the decision saw, if its line states neither."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import field
from typing import NamedTuple

import numpy as np

from rlrec.app.imports.columns import EMPTY, FIRST_STATE, NULL, LogColumns, values
from rlrec.app.inputs import canonical
from rlrec.app.log import reward_log
from rlrec.arrays import Array, Flags, Ids, look_up, numbers_in_runs, offsets, piece_rows, run_starts, take
from rlrec.policy.gradients.history import N_RECENT, N_REMEMBERED, History, pack
from rlrec.records import Record, Reward
from rlrec.store import Unit
from rlrec.store.database import loading
from rlrec.store.database.bulk import Columns
from rlrec.store.database.loading import Column, Same
from rlrec.store.database.unit import slices
from rlrec.store.log import reader, sessions
from rlrec.store.log.reader import Batch
from rlrec.store.log.sessions import NewestVisit, Visit
from rlrec.store.log.settings import StoreSettings
from rlrec.store.policies import arms

VISITS = 5_000  # visits that are read at once
READ = ("decision_id", "session_id", "visit", "step", "at", "position", "arm_id")


# -- visit numbers --


class VisitMoves(Record, kw_only=False):
    """This record holds the visits of an import that got a new number, because the number in the line was taken.
    new_numbers: the new number of each visit, by (session, number in the line); targets: the same visits as (session,
    new number)."""

    new_numbers: dict[tuple[int, int], int] = field(default_factory=dict)
    targets: set[tuple[int, int]] = field(default_factory=set)


def assign(
    unit: Unit, rows: LogColumns, session_ids: Sequence[int], at: Sequence[int], *, stored_ids: Collection[int],
    settings: StoreSettings, moves: VisitMoves,
) -> tuple[Column, Column, frozenset[int]]:  # fmt: skip
    """Store the visits of these rows. Returns the visit and the step of each row, and the indexes of rows whose visit
    was begun before this group. session_ids: the session of each row; at: the time of each row; stored_ids: the ids of
    sessions that the store had before; moves: the visits that got new numbers."""
    n = len(rows)
    (visit, step), is_grown = np.zeros((2, n), np.int64), np.zeros(n, np.bool_)
    stated_columns, unordered_rows = [values(column, n) for column in (rows.visit, rows.step)], np.arange(n)
    if (is_silent := (rows.visit, rows.step) == (NULL, NULL)) or not any(None in column for column in stated_columns):
        newest_visits = sessions.newest_visits(unit, stored_ids) if stored_ids else ()
        numbers_of_lines = None if is_silent else np.array(stated_columns, np.int64)
        timeout_us = settings.session_timeout_us
        visit, step, is_grown, is_assigned, new_visits, extended_visits = in_order(
            session_ids, at, newest_visits, numbers=numbers_of_lines, timeout_us=timeout_us
        )
        if len(new_visits["number"]):
            columns = {name: column.tolist() for name, column in new_visits.items()}
            loading.write(unit, "visit", {**columns, "recent": Same("[]")})
        sessions.extend_visits(unit, {name: column.tolist() for name, column in extended_visits.items()})
        unordered_rows = np.flatnonzero(~is_assigned)
    if len(unordered_rows):
        row_sessions = [session_ids[row] for row in unordered_rows.tolist()]
        numbers = VisitNumbers(unit, set(row_sessions).intersection(stored_ids), settings, moves)
        row_values = list(zip(session_ids, *stated_columns, at, strict=True))
        visit[unordered_rows], step[unordered_rows] = np.transpose(
            [numbers.assign(*row_values[row]) for row in unordered_rows.tolist()]
        )
        is_grown[unordered_rows] = np.isin(row_sessions, list(stored_ids))
        numbers.write()
    visits, steps = (Same(int(ids[0])) if (ids == ids[0]).all() else ids.tolist() for ids in (visit, step))
    return visits, steps, frozenset(np.flatnonzero(is_grown).tolist())


class OrderedVisits(NamedTuple):
    """This record holds the visit and the step of each of n rows.

    is_grown (n,): whether the visit of the row was begun before; is_assigned (n,): whether the session of the row
    was handled, and not left out; new_visits, extended_visits: the columns of new visits and of visits that got
    longer, in order of session and number."""

    visit: Ids
    step: Ids
    is_grown: Flags
    is_assigned: Flags
    new_visits: Columns
    extended_visits: Columns


def in_order(
    session_ids: Sequence[int], at: Sequence[int], newest_visits: Sequence[NewestVisit], *, timeout_us: int,
    numbers: Ids | None = None,
) -> OrderedVisits:  # fmt: skip
    """Return the visits of n rows, computed for all sessions at once, as `VisitNumbers` would assign them. Sessions
    that need `VisitNumbers` itself are left out.

    If lines state no visits, a session is left out if a live request may continue its newest visit, if a row is
    older than that visit, or if its rows are not in order of time. If lines state visits, a session is left out if
    the store has it already, or if two of its rows have the same visit and step.

    session_ids: the session of each row; at: the time of each row; newest_visits: the newest visit of each session that
    has a visit; numbers (2, n): the visit and step that each line states, None if lines state no visits."""
    session, time, n = np.array(session_ids, np.int64), np.array(at, np.int64), len(at)
    order = np.argsort(session, kind="stable") if numbers is None else np.lexsort((numbers[1], numbers[0], session))
    session, time = session[order], time[order]
    first_rows = run_starts(session)
    run = np.repeat(np.arange(len(first_rows)), np.diff(first_rows, append=n))
    # the newest visit of each session, zeros without one
    newest_rows = np.array([(0,) * len(NewestVisit._fields), *sorted(newest_visits)], np.int64)
    index, has_visit = look_up(newest_rows[:, 0], session[first_rows])
    _, number, newest_at, steps, is_live = np.where(has_visit, newest_rows[index].T, 0)
    # the beginnings of visits, and the rows of each
    if numbers is None:
        gap = np.diff(time, prepend=0)
        gap[first_rows] = np.where(has_visit, time[first_rows] - newest_at, timeout_us + 1)
        begins, is_left_out = gap > timeout_us, (gap < 0) | (is_live != 0)[run]
        count = np.cumsum(begins)
        visit = number[run] + count - (count - begins)[first_rows][run]
        start = run_starts(run, visit)
        step = numbers_in_runs(start, n) + np.repeat(
            np.where(begins[start], 0, steps[run[start]]), np.diff(start, append=n)
        )
    else:
        visit, step = numbers[:, order]
        start, begins = run_starts(run, visit), np.ones(n, np.bool_)
        is_left_out = has_visit[run] | (np.diff(step, prepend=-1) == 0)
        is_left_out[start] = has_visit[run[start]]
    is_assigned, is_new = ~np.logical_or.reduceat(is_left_out, first_rows), begins[start]
    last_at = np.maximum.reduceat(time, start)
    columns = {
        "session_id": session[start], "number": visit[start], "started_at": np.minimum.reduceat(time, start),
        "last_at": last_at, "ended_at": last_at, "steps": np.maximum.reduceat(step, start) + 1,
    }  # fmt: skip
    inverse, visit_mask = np.argsort(order), is_assigned[run[start]]
    return OrderedVisits(
        visit=visit[inverse], step=step[inverse], is_grown=np.repeat(~is_new, np.diff(start, append=n))[inverse],
        is_assigned=is_assigned[run][inverse], new_visits=take(columns, visit_mask & is_new),
        extended_visits=take(columns, visit_mask & ~is_new),
    )  # fmt: skip


class VisitNumbers:
    """A VisitNumbers object assigns imported decisions to visits of their sessions, one by one. These visits are ended,
    so that a live request opens a new visit."""

    def __init__(self, unit: Unit, stored_ids: Collection[int], settings: StoreSettings, moves: VisitMoves) -> None:
        """Read the visits and steps of stored sessions. stored_ids: the ids of these sessions; moves: the visits that
        got new numbers."""
        self.unit = unit
        self.timeout_us = settings.session_timeout_us
        self.moves = moves
        self.visits = sessions.numbered_visits(unit, stored_ids) if stored_ids else defaultdict(dict)
        self.steps: dict[tuple[int, int], set[int]] = defaultdict(set)
        self.live_visits: set[tuple[int, int]] = set()
        for session, visit, step, is_imported in sessions.steps(unit, stored_ids) if stored_ids else ():
            self.steps[session, visit].add(step)
            if not is_imported:
                self.live_visits.add((session, visit))
        self.changed_visits: dict[tuple[int, int], Visit] = {}

    def assign(self, session: int, visit: int | None, step: int | None, at: int) -> tuple[int, int]:
        """Return the visit and the step of the session's next decision. visit, step: those that the line states, or
        None."""
        number = self._number(session, visit, step, at)
        row = self.visits[session].get(number)
        if row is None:
            for visit_row in self.visits[session].values():  # an open visit is over once there is a later one
                if visit_row.ended_at is None:
                    self._put(visit_row._replace(ended_at=min(self.unit.now, visit_row.last_at + self.timeout_us)))
            row = Visit(session_id=session, number=number, started_at=at, last_at=at, steps=0, recent="[]", ended_at=at)
        step = row.steps if step is None else step
        first, last = min(row.started_at, at), max(row.last_at, at)
        self._put(row._replace(started_at=first, last_at=last, ended_at=last, steps=max(row.steps, step + 1)))
        self.steps[session, number].add(step)
        return number, step

    def _number(self, session: int, visit: int | None, step: int | None, at: int) -> int:
        """Return the number of a decision's visit. This is the visit that the line names, else the newest visit unless
        it has timed out. If that visit has a live request, or another decision at this step, return a new number."""
        visits = self.visits[session]
        newest = max(visits, default=0)
        if visit is None:
            goes_on = newest and abs(at - visits[newest].last_at) <= self.timeout_us
            return newest if goes_on and self._is_free(session, newest, step) else newest + 1
        number = self.moves.new_numbers.get((session, visit), visit)
        is_of_another = (session, visit) not in self.moves.new_numbers and (session, visit) in self.moves.targets
        if number in visits and (is_of_another or not self._is_free(session, number, step)):
            number = self.moves.new_numbers[session, visit] = newest + 1
            self.moves.targets.add((session, number))
        return number

    def _is_free(self, session: int, number: int, step: int | None) -> bool:
        return (session, number) not in self.live_visits and step not in self.steps[session, number]

    def _put(self, visit: Visit) -> None:
        self.visits[visit.session_id][visit.number] = visit
        self.changed_visits[visit.session_id, visit.number] = visit

    def write(self) -> None:
        sessions.put_visits(self.unit, [visit for _, visit in sorted(self.changed_visits.items())])


# -- states and histories --


def derive_states(
    unit: Unit, rows: LogColumns, definitions: Mapping[str, Reward], *, arm_ids: Mapping[str, int],
    session_id: Sequence[int], visit: Column, step: Column, at: Sequence[int], grown_rows: Set[int],
) -> tuple[Column, Column]:  # fmt: skip
    """Return two columns, the state and the history of each row. If a line states neither, they are derived from the
    earlier decisions of the visit. Nothing is derived if the log dropped lines or the visit lacks steps, since it is
    then not known what was shown before.

    definitions: the reward of each policy, from which the rewards in a history are computed; grown_rows: the indexes
    of rows whose visit was begun before this group."""
    n, names = len(rows), values(rows.policy, len(rows))
    if (rows.history, rows.state, rows.keep_probability, step) == (NULL, EMPTY, NULL, Same(0)):
        return Same(FIRST_STATE), Same(b"")
    pasts, shares, steps = values(rows.history, n), values(rows.keep_probability, n), values(step, n)
    packs = iter(pack([past for past in pasts if past is not None], arm_ids))
    states: list[str] = list(values(rows.state, n))
    histories: list[bytes | None] = [past and next(packs) for past in pasts]
    blanks = [row for row in range(n) if states[row] == EMPTY.value and histories[row] is None and shares[row] is None]
    for row in blanks:
        if not steps[row]:
            states[row], histories[row] = FIRST_STATE, b""
    if later := [row for row in blanks if steps[row]]:
        columns = {"session_id": session_id, "visit": values(visit, n), "step": steps, "at": at}
        begun_visits = {(session_id[row], columns["visit"][row]) for row in later if row in grown_rows}
        batch = _batch(unit, rows, columns, sorted(begun_visits), arm_ids)
        keys = arms.keys(unit, set(batch.slots["arm_id"].tolist()))
        for name, reward in definitions.items():
            for state, history, row in _find_states(batch, [row for row in later if names[row] == name], reward, keys):
                states[row], histories[row] = state, history
    return states, histories


def _batch(
    unit: Unit, rows: LogColumns, columns: Mapping[str, Sequence[int]], begun_visits: Sequence[tuple[int, int]],
    arm_ids: Mapping[str, int],
) -> Batch:  # fmt: skip
    """Return the slots and events of rows and of visits in the store. Slots are in order of session, visit, step and
    position. The decision id of a row is its index; decisions in the store have negative ids. columns: the session,
    visit, step and time of each row; begun_visits: the session and number of each stored visit."""
    batch = rows.batch(columns["at"])
    row = batch.slots["decision_id"]
    slots = [batch.slots | {name: np.array(column, np.int64)[row] for name, column in columns.items()}]
    slots[0]["arm_id"] = np.array(list(map(arm_ids.__getitem__, rows.slots.arm)), np.int64)
    events = [batch.events]
    for portion in slices(begun_visits, VISITS):
        conditions = [f"(d.session_id, d.visit) IN (VALUES {', '.join(map(str, portion))})"]
        stored_batch = reader.read_decisions(unit, conditions, slots=READ)
        slots.append(stored_batch.slots | {"decision_id": -stored_batch.slots["decision_id"]})
        events.append(stored_batch.events | {"decision_id": -stored_batch.events["decision_id"]})
    slot_columns = {name: np.concatenate([piece[name] for piece in slots]) for name in READ}
    order = np.lexsort([slot_columns[name] for name in ("position", "step", "visit", "session_id")])
    columns_of_events = {name: np.concatenate([piece[name] for piece in events]) for name in reader.EVENT_COLUMNS}
    return Batch(slots=take(slot_columns, order), events=columns_of_events)


def _find_states(
    batch: Batch, rows: Sequence[int], definition: Reward, keys: Mapping[int, str]
) -> Iterator[tuple[str, bytes, int]]:
    """Return the state, the history and the index of the given rows, without rows at step 0 and rows whose visit lacks
    a step. rows: indexes of rows; definition: the reward that slots earn; keys: the key of each arm, by id."""
    slots = batch.slots
    first = run_starts(slots["decision_id"])
    visit = run_starts(slots["session_id"][first], slots["visit"][first])
    step = slots["step"][first]
    # visits without a missing step
    number = numbers_in_runs(visit, len(first))
    lengths = np.diff(visit, append=len(first))
    is_complete = np.repeat(np.logical_and.reduceat(step == number, visit), lengths)
    picks = np.flatnonzero(is_complete & (step > 0) & np.isin(slots["decision_id"][first], rows))
    if not len(picks):
        return iter(())
    past = _histories(batch, picks, first=first, begin=np.repeat(visit, lengths), definition=definition)
    return zip(_states(past, keys), past.to_bytes(), slots["decision_id"][first[picks]].tolist(), strict=True)


def _histories(batch: Batch, picks: Ids, *, first: Ids, begin: Ids, definition: Reward) -> History:
    """Return, for some decisions of a batch, what their visits had shown and earned before. picks: the indexes of these
    decisions; first: the index of each decision's first slot; begin: the index of the first decision in each decision's
    visit."""
    slots, at = batch.slots, batch.slots["at"][first]
    # the number of slots before each decision, and the last of them
    first_slot, since = first[picks], first[begin[picks]]
    n_shown = first_slot - since
    count = np.minimum(n_shown, N_REMEMBERED)
    entries, row = piece_rows(first_slot - count, count), np.repeat(np.arange(len(picks)), count)
    # their rewards by all events; where some events came after the decision, by those before it
    by_slot, by_page = _rewards(batch, definition, first)
    gains, reward = by_slot[entries], _sums_before(by_slot + by_page, first[np.unique(begin)])[first_slot]
    start = offsets(count)
    for index in _with_late_events(batch, picks, first, begin).tolist():
        low, high = int(since[index]), int(first_slot[index])
        by_slot, by_page = _rewards(_until(batch, low, high, int(at[picks[index]])), definition)
        reward[index] = by_slot.sum() + by_page.sum()
        gains[start[index] : start[index + 1]] = by_slot[len(by_slot) - count[index] :]
    step = slots["step"][first[picks]]
    ago, gap_us = step[row] - slots["step"][entries], np.maximum(at[picks] - at[picks - 1], 0)
    return History(step, gap_us / 1e6, n_shown, reward, start, slots["arm_id"][entries], ago, gains)


def _sums_before(values: Array, starts: Ids) -> Array:
    """Return for each of n values the sum of the earlier values in the same run of consecutive values, (n,). The values
    are added one by one: differences of cumulative sums would be rounded differently for other batches. starts: the
    index at which each run starts."""
    total, number = np.zeros(len(values)), numbers_in_runs(starts, len(values))
    for rows in np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number)))[1:-1]:
        total[rows] = total[rows - 1] + values[rows - 1]
    return total


def _rewards(batch: Batch, definition: Reward, first: Ids | None = None) -> tuple[Array, Array]:
    """Return two arrays with a value for each of n slots, (n,): the reward of the slot, and the reward from events on
    the whole slate, which only the first slot gets (other slots have 0). first: the index of each decision's first
    slot."""
    decision_id = batch.slots["decision_id"]
    first = run_starts(decision_id) if first is None else first
    pages = np.zeros(len(decision_id))
    pages[first] = reward_log.page_events(batch, definition, decision_id[first])
    return reward_log.with_rewards(batch, definition).reward, pages


def _with_late_events(batch: Batch, picks: Ids, first: Ids, begin: Ids) -> Ids:
    """Return the indexes, within `picks`, of decisions that were made before the last event on an earlier decision of
    the visit. picks: the decisions to look at; first: the index of each decision's first slot; begin: the index of the
    first decision in each decision's visit."""
    events, slots = batch.events, batch.slots
    if not (events["age_us"] > 0).any():  # most logs have no times of events
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
    """Return the slots from index `low` up to but not including `high`, and the events on their decisions up to a
    time."""
    slots, events = take(batch.slots, slice(low, high)), batch.events
    event_rows = np.flatnonzero(np.isin(events["decision_id"], slots["decision_id"]))
    served_at = dict(zip(slots["decision_id"].tolist(), slots["at"].tolist(), strict=True))
    at = np.array([served_at[number] for number in events["decision_id"][event_rows].tolist()], np.int64)
    return Batch(slots=slots, events=take(events, event_rows[at + events["age_us"][event_rows] <= time]))


def _states(past: History, keys: Mapping[int, str]) -> list[str]:
    """Return the session state of each decision, as a live store would have stored it: as canonical JSON. keys: the key
    of each arm, by id."""
    texts = {arm: json.dumps(key, ensure_ascii=False) for arm, key in keys.items()}
    names = [texts[arm] for arm in past.arm.tolist()]
    bounds = zip(past.start[:-1].tolist(), past.start[1:].tolist(), strict=True)
    recent_arms = [",".join(names[max(low, high - N_RECENT) : high]) for low, high in bounds]
    gaps, index = np.unique(past.gap_s, return_inverse=True)
    gap = list(map(list(map(canonical.number, gaps.tolist())).__getitem__, index.tolist()))
    rows = zip(gap, recent_arms, past.step.tolist(), strict=True)
    return [f'{{"gap_s":{seconds},"recent":[{arms}],"step":{step}}}' for seconds, arms, step in rows]
