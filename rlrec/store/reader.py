"""The log as columns, in ranges of session id: a batch holds whole sessions, one row an impression."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlrec.store.bulk import Asked, Columns
from rlrec.store.unit import Unit

BATCH = 50_000  # decisions in a batch, about
ABSENT = -1  # stands for a missing id
_NONE = "-1.0"  # stands for a missing probability

# name: (type, expression over decision d, slot s, session v)
COLUMNS: dict[str, tuple[type, str]] = {
    "decision_id": (np.int64, "d.id"),
    "session_id": (np.int64, "d.session_id"),
    "user_id": (np.int64, f"coalesce(v.user_id, {ABSENT})"),
    "split": (np.int64, "v.split"),
    "visit": (np.int64, "d.visit"),
    "step": (np.int64, "d.step"),
    "at": (np.int64, "d.at"),
    "policy_id": (np.int64, "d.policy_id"),
    "version_id": (np.int64, "d.version_id"),
    "belief_seq": (np.int64, "d.belief_seq"),
    "context_id": (np.int64, "d.context_id"),
    "eligible_id": (np.int64, "d.eligible_id"),
    "variant_id": (np.int64, f"coalesce(d.variant_id, {ABSENT})"),
    "size": (np.int64, "d.size"),
    "seed": (np.int64, "coalesce(d.seed, 0)"),
    "log_propensity": (np.float64, "coalesce(d.log_propensity, 1.0)"),
    "imported": (np.bool_, "d.imported"),
    "position": (np.int64, "s.position"),
    "arm_id": (np.int64, "s.arm_id"),
    "propensity": (np.float64, f"coalesce(s.propensity, {_NONE})"),
    "marginal": (np.float64, f"coalesce(s.marginal, {_NONE})"),
    "min_propensity": (np.float64, f"coalesce(s.min_propensity, {_NONE})"),
    "censored": (np.bool_, "s.censored"),
    "rounded": (np.bool_, "s.rounded"),
}
EVENTS: dict[str, tuple[type, str]] = {
    "decision_id": (np.int64, "e.decision_id"),
    "number": (np.int64, "e.number"),
    "position": (np.int64, "coalesce(e.position, 0)"),
    "kind": (object, "e.kind"),
    "value": (np.float64, "e.value"),
    "age_us": (np.int64, "e.at - d.at"),
    "seq": (np.int64, "e.seq"),
}
# What evaluations and beliefs read; audits ask for more.
LOGGED = tuple(name for name in COLUMNS if name not in ("seed", "log_propensity", "rounded"))
HAPPENED = ("decision_id", "position", "kind", "value", "age_us")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which decisions of the log; None means any. Times are microseconds, `since` included, `until` not."""

    policy_ids: Collection[int] | None = None
    version_ids: Collection[int] | None = None
    variant_ids: Collection[int] | None = None
    since: int | None = None
    until: int | None = None
    first_id: int | None = None
    last_id: int | None = None
    imported: bool | None = None

    def conditions(self) -> list[str]:
        """Tests on a decision `d`, to be joined by AND."""
        sets = {"policy_id": self.policy_ids, "version_id": self.version_ids, "variant_id": self.variant_ids}
        bounds = {"at >=": self.since, "at <": self.until, "id >=": self.first_id, "id <=": self.last_id}
        return [
            *(f"d.{name} IN ({numbers(wanted)})" for name, wanted in sets.items() if wanted is not None),
            *(f"d.{test} {int(limit)}" for test, limit in bounds.items() if limit is not None),
            *([] if self.imported is None else [f"d.imported = {int(self.imported)}"]),
        ]


def numbers(wanted: Collection[int]) -> str:
    """A list of SQL; of nothing, one that nothing is in."""
    return ", ".join(map(str, sorted(map(int, wanted)))) or "NULL"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """slots: one row an impression; events: one row an event of them, position 0 the page."""

    slots: Columns
    events: Columns

    def __len__(self) -> int:
        return len(self.slots["decision_id"])


def batches(
    unit: Unit, selection: Selection, *, size: int = BATCH, columns: Collection[str] = LOGGED
) -> Iterator[Batch]:
    """The selected log in ranges of session id, each of about `size` decisions: whole sessions, rows by session,
    decision and position. Memory is bounded by two batches: one is read while another is worked on."""
    names = [name for name in COLUMNS if name in {*columns, "decision_id", "session_id", "position"}]
    ahead: _Range | None = None
    for low, high in _sessions(unit, size):
        following = _Range(unit, low, high, selection.conditions(), names)
        if ahead is not None:
            yield from ahead.batch()
        ahead = following
    if ahead is not None:
        yield from ahead.batch()


def _sessions(unit: Unit, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of session id, the first left out, that hold about `size` decisions each."""
    low = 0
    after = "SELECT session_id FROM decision WHERE session_id > ? ORDER BY session_id LIMIT 1 OFFSET ?"
    while True:
        high = unit.ask_value(after, low, size - 1)
        if high is None:
            high = unit.ask_value("SELECT max(session_id) FROM decision WHERE session_id > ?", low)
        if high is None:
            return
        yield low, int(high)
        low = int(high)


class _Range:
    """A range of sessions, asked for.

    Where its decisions lie close together they are read in order of their ids, which is the order on the disk: an
    index leads from one page to another. A `+` keeps the database from using one nevertheless."""

    def __init__(self, unit: Unit, low: int, high: int, conditions: Sequence[str], names: Sequence[str]) -> None:
        extent = "SELECT min(id), max(id), count(*) FROM decision WHERE session_id > ? AND session_id <= ?"
        first, last, count = unit.ask_row(extent, low, high) or (0, 0, 0)
        tests = [f"+{test}" for test in conditions]
        if last - first < 2 * count:
            sessions = [f"+d.session_id > {low}", f"+d.session_id <= {high}"]
            slots = [f"d.id >= {first}", f"d.id <= {last}", *sessions, *tests]
            events = [f"e.decision_id >= {first}", f"e.decision_id <= {last}", *sessions, *tests]
            self._slots = ask_slots(unit, names, slots, order="d.id, s.position")
            self._events = ask_events(unit, HAPPENED, events, of="event e CROSS JOIN decision d")
        else:
            inside = [f"d.session_id > {low}", f"d.session_id <= {high}", *tests]
            self._slots = ask_slots(unit, names, inside, order="d.session_id, d.id, s.position")
            self._events = ask_events(unit, HAPPENED, inside)

    def batch(self) -> Iterator[Batch]:
        """The batch, unless nothing of the range is selected."""
        slots, events = whole(self._slots), self._events.columns()
        session = slots["session_id"]
        if (session[1:] < session[:-1]).any():
            order = np.argsort(session, kind="stable")
            slots = {name: column[order] for name, column in slots.items()}
        if len(session):
            yield Batch(slots=slots, events=events)


def ranges(unit: Unit, policy_id: int, *, first: int, last: int, size: int = BATCH) -> Iterator[Batch]:
    """The policy's own decisions by ranges of decision id: for beliefs, where sessions do not matter."""
    own = ["d.imported = 0"]
    for start, end in decisions(unit, policy_id, first=first, last=last, size=size):
        found = between(unit, policy_id, start, end, tests=own)
        if len(found):
            yield found


def decisions(unit: Unit, policy_id: int, *, first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of decision id, both ends included, that hold `size` decisions of the policy each."""
    ahead = "SELECT id FROM decision WHERE policy_id = ? AND id >= ? AND id <= ? ORDER BY id LIMIT 1 OFFSET ?"
    while first <= last:
        end = unit.ask_value(ahead, policy_id, first, last, size - 1) or last
        yield first, int(end)
        first = int(end) + 1


def between(
    unit: Unit,
    policy_id: int,
    first: int,
    last: int,
    *,
    tests: Sequence[str] = (),
    slots: Sequence[str] = LOGGED,
    events: Sequence[str] = HAPPENED,
) -> Batch:
    """The policy's decisions of a range of ids, by decision and position."""
    inside = [f"d.policy_id = {policy_id}", f"d.id >= {first}", f"d.id <= {last}", *tests]
    asked = ask_slots(unit, slots, inside, order="d.id, s.position"), ask_events(unit, events, inside)
    return Batch(slots=whole(asked[0]), events=asked[1].columns())


def ask_slots(unit: Unit, names: Sequence[str], tests: Sequence[str], *, order: str) -> Asked:
    """Some of COLUMNS for the slots of decisions `d` that pass all tests."""
    wanted = {name: COLUMNS[name] for name in names}
    session = " CROSS JOIN session v" if any("v." in text for _, text in wanted.values()) else ""
    joined = ["s.decision_id = d.id", *(["v.id = d.session_id"] if session else []), *tests]
    text = (
        f"SELECT {', '.join(text for _, text in wanted.values())} FROM decision d CROSS JOIN slot s{session}"
        f" WHERE {' AND '.join(joined)} ORDER BY {order}"
    )
    return Asked(unit, text, {name: kind for name, (kind, _) in wanted.items()})


def ask_events(
    unit: Unit, names: Sequence[str], tests: Sequence[str], *, of: str = "decision d CROSS JOIN event e"
) -> Asked:
    """Some of EVENTS for the events of decisions `d` that pass all tests. of: both tables, the first to be looked
    into first."""
    wanted = {name: EVENTS[name] for name in names}
    text = (
        f"SELECT {', '.join(text for _, text in wanted.values())} FROM {of}"
        f" WHERE {' AND '.join(['e.decision_id = d.id', *tests])}"
    )
    return Asked(unit, text, {name: kind for name, (kind, _) in wanted.items()})


def whole(asked: Asked) -> Columns:
    """Slots that were asked for, with NaN for a probability that is missing."""
    slots = asked.columns()
    for name, column in slots.items():
        if COLUMNS[name][0] is np.float64:
            column[column > 0 if name == "log_propensity" else column < 0] = np.nan
    return slots


def last_id(unit: Unit, policy_id: int | None = None) -> int:
    """The newest decision of a policy, or of the store; 0 where there is none."""
    newest = "SELECT coalesce(max(id), 0) FROM decision"
    return int(
        unit.ask_value(newest) if policy_id is None else unit.ask_value(f"{newest} WHERE policy_id = ?", policy_id)
    )


def longest(unit: Unit, selection: Selection) -> int:
    """Positions of the longest selected page; 0 where nothing is selected."""
    return int(unit.ask_value(f"SELECT coalesce(max(d.size), 0) FROM decision d WHERE {_all(selection)}"))


def ids_after(unit: Unit, selection: Selection, *, low: int, limit: int) -> list[int]:
    """The first `limit` selected decisions whose id is above `low`, ascending."""
    wanted = f"SELECT d.id FROM decision d WHERE {_all(selection)} AND d.id > ? ORDER BY d.id LIMIT ?"
    return [row[0] for row in unit.ask(wanted, low, limit)]


def _all(selection: Selection) -> str:
    return " AND ".join(selection.conditions()) or "1 = 1"
