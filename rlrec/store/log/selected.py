"""Queries here count selected decisions of the log, and find their times and ids. Others store exclusions, whose
decisions no reader of the log sees, and list the decisions that beliefs left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from typing import NamedTuple, TypeVar

from rlrec.store.database.unit import Unit
from rlrec.store.log import contents
from rlrec.times import DAY_US, day_of

_SPLIT = "(SELECT owner.split FROM session owner WHERE owner.id = d.session_id)"  # of a decision
T = TypeVar("T")
PORTION = 1_000_000  # ids of decisions that are counted at a time
# A range of ids is scanned where it spans at most so many ids per selected decision; else an index that jumps between
# pages, or one that lists ids, costs less.
MAX_SPREAD, MAX_COLUMN_SPREAD = 12, 3
MAX_LOOKUPS = 120_000  # decisions that are read at once by their ids
# the route that asked for the decision
ROUTE = "(SELECT asked.route_id FROM route_decision asked WHERE asked.decision_id = d.id)"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A Selection chooses decisions of the log. A field that is None does not restrict the choice. Times are
    microseconds; `since` is included, and `until` is excluded.

    without: SQL tests on a decision `d`, from stored exclusions. A decision that passes one of these tests is left
    out."""

    policy_ids: Collection[int] | None = None
    version_ids: Collection[int] | None = None
    variant_ids: Collection[int] | None = None
    since: int | None = None
    until: int | None = None
    first_id: int | None = None
    last_id: int | None = None
    imported: bool | None = None
    splits: Collection[int] | None = None
    route_ids: Collection[int] | None = None
    session_ids: Collection[int] | None = None
    context_ids: Collection[int] | None = None
    without: tuple[str, ...] = ()

    def conditions(self) -> list[str]:
        """Return the SQL tests on a decision `d` that state this selection, to be joined by AND."""
        sets = {
            "policy_id": self.policy_ids, "version_id": self.version_ids, "variant_id": self.variant_ids,
            "session_id": self.session_ids, "context_id": self.context_ids,
        }  # fmt: skip
        bounds = {"at >=": self.since, "at <": self.until, "id >=": self.first_id, "id <=": self.last_id}
        return [
            *(f"d.{name} IN ({numbers(ids)})" for name, ids in sets.items() if ids is not None),
            *(f"d.{test} {int(limit)}" for test, limit in bounds.items() if limit is not None),
            *([] if self.imported is None else [f"d.imported = {int(self.imported)}"]),
            *([] if self.splits is None else [f"{_SPLIT} IN ({numbers(self.splits)})"]),
            *([] if self.route_ids is None else [f"{ROUTE} IN ({numbers(self.route_ids)})"]),
            # `0 = ` comes first, since a `+` may be put before the test; a test that is NULL leaves nothing out
            *([f"0 = CASE WHEN {' OR '.join(self.without)} THEN 1 ELSE 0 END"] if self.without else []),
        ]


def numbers(ids: Collection[int]) -> str:
    """Write ids as a list for SQL's IN. No ids give a list that matches no row."""
    return ", ".join(map(str, sorted(map(int, ids)))) or "NULL"


def version_counts(unit: Unit, selection: Selection) -> dict[int, int]:
    """Return how many of the selected decisions each version served, by version id."""
    tests = f"{_id_test(unit, selection)} AND {_condition(selection)}"
    text = f"SELECT d.version_id, count(*) FROM decision d WHERE {tests} GROUP BY d.version_id"
    return _read_once(unit, text, lambda: dict(unit.ask(text)))


class DayCount(NamedTuple):
    """This record counts the decisions that a version served on one day of the time zone. Days are numbered from
    1970-01-01."""

    day: int
    version_id: int
    decisions: int


def day_counts(unit: Unit, selection: Selection) -> list[DayCount]:
    """Return how many of the selected decisions each version served on each day, in order of day."""
    return day_counts_and_newest(unit, selection, 1)[0]


def day_counts_and_newest(unit: Unit, selection: Selection, n: int) -> tuple[list[DayCount], int | None]:
    """Return both `day_counts` and `newest_at`, from one pass over the log."""
    import numpy as np  # which most commands do without

    from rlrec.arrays import distinct
    from rlrec.store.database.bulk import PendingQuery

    quarter_us = DAY_US // 96  # offsets of time zones are multiples of a quarter of an hour
    counts, newest_times = Counter[tuple[int, int]](), np.empty(0, np.int64)
    first_id, last_id = id_ends(unit)
    tests = scan_tests(unit, selection)
    for start in range(first_id, last_id + 1, PORTION):  # sorting here costs less than a GROUP BY in the database
        portion_tests = f"d.id >= {start} AND d.id < {start + PORTION} AND {tests}"
        text = f"SELECT d.at, d.version_id FROM decision d WHERE {portion_tests}"
        rows = PendingQuery(unit, text, dict.fromkeys(("at", "version"), np.int64)).columns()
        newest_times = np.concatenate([newest_times, rows["at"]])
        if len(newest_times) > n:
            newest_times = np.partition(newest_times, len(newest_times) - n)[-n:]
        quarters, version_ids = rows["at"] // quarter_us, rows["version"]
        first_rows, pair_numbers = distinct(quarters, version_ids)
        columns = quarters[first_rows], version_ids[first_rows], np.bincount(pair_numbers)
        for quarter, version_id, decisions in zip(*(column.tolist() for column in columns), strict=True):
            counts[day_of(quarter * quarter_us), version_id] += decisions
    days = [DayCount(*key, decisions) for key, decisions in sorted(counts.items())]
    return days, int(newest_times.min()) if len(newest_times) == n else None


def id_ends(unit: Unit) -> tuple[int, int]:
    """Return the first and the last decision id of the log, both 0 where the log is empty. These are two queries, since
    one query for both would scan the log."""
    first_id, last_id = (int(unit.ask_value(f"SELECT {end}(id) FROM decision") or 0) for end in ("min", "max"))
    return first_id, last_id


def any_common(unit: Unit, *selections: Selection) -> bool:
    """Tell whether some decision is in all of the selections."""
    tests = " AND ".join(map(_condition, selections))
    return unit.ask_value(f"SELECT 1 FROM decision d WHERE {tests} LIMIT 1") is not None


def newest_at(unit: Unit, selection: Selection, n: int) -> int | None:
    """Return the time of the n-th newest selected decision, or None if fewer than n are selected."""
    # an index has the times of the decisions that were not imported
    index_tests = [] if may_be_imported(unit) else ["d.imported = 0"]
    tests = " AND ".join([_condition(selection), *index_tests])
    text = f"SELECT d.at FROM decision d WHERE {tests} ORDER BY d.at DESC LIMIT 1 OFFSET ?"
    at = unit.ask_value(text, n - 1)
    return None if at is None else int(at)


def newest_id(unit: Unit, selection: Selection, n: int) -> int | None:
    """Return the n-th largest id of the selected decisions, or None if fewer than n are selected."""
    text = f"SELECT d.id FROM decision d WHERE {_condition(selection)} ORDER BY d.id DESC LIMIT 1 OFFSET ?"
    return unit.ask_value(text, n - 1)


class LogExtent(NamedTuple):
    """This record has the extent of a set of decisions. All numbers are 0 if the set is empty.

    positions: the length of the longest slate; steps: the number of steps of the longest visit, up to the last
    decision of the set; first_version, last_version: the smallest and largest id of the versions that served;
    decisions: the number of decisions; first_session, last_session: the smallest and largest id of their sessions;
    first_at, last_at: the times of the first and last decision."""

    positions: int
    steps: int
    first_version: int
    last_version: int
    decisions: int
    first_session: int = 0
    last_session: int = 0
    first_at: int = 0
    last_at: int = 0

    @property
    def span_us(self) -> int:
        """Return the time from the first decision to the last one, in microseconds."""
        return self.last_at - self.first_at


def extent(unit: Unit, selection: Selection) -> LogExtent:
    """Return the extent of the selected decisions."""
    aggregates = (
        "max(d.size)", "max(d.step) + 1", "min(d.version_id)", "max(d.version_id)", "count(*)",
        "min(d.session_id)", "max(d.session_id)", "min(d.at)", "max(d.at)",
    )  # fmt: skip
    columns = ", ".join(f"coalesce({value}, 0)" for value in aggregates)
    text = f"SELECT {columns} FROM decision d WHERE {scan_tests(unit, selection)}"  # the caller reads the log next
    return _read_once(unit, text, lambda: unit.records(LogExtent, text)[0])


def _read_once(unit: Unit, text: str, read: Callable[[], T]) -> T:
    """Return the answer to a query over the whole log. Where the unit works on a snapshot that does not change, each
    query is asked only once."""
    if unit.folder is not None or not unit.alongside:
        return read()
    if text not in unit.extents:
        unit.extents[text] = read()
    answer: T = unit.extents[text]
    return answer


def times(unit: Unit, selection: Selection) -> tuple[int, int]:
    """Return the times of the first and of the last selected decision, both 0 where nothing is selected."""
    is_time_range = selection == Selection(since=selection.since, until=selection.until)
    if not is_time_range or may_be_imported(unit):
        return extent(unit, selection)[-2:]
    # an index has the times of decisions that were not imported
    rows = f"FROM decision d WHERE d.imported = 0 AND {_condition(selection)}"
    first_at, last_at = (int(unit.ask_value(f"SELECT {end}(d.at) {rows}") or 0) for end in ("min", "max"))
    return first_at, last_at


STRETCHES, MAX_COUNTED = 1_000, 20_000  # of a log, and decisions that tell in which of these there are some


def covered_us(unit: Unit, selection: Selection) -> int:
    """Estimate the time that the selected decisions cover, in microseconds.

    The time goes from the first decision to when the one after the last was to be expected. Where all decisions come
    at one hour of the day, that is a day after the last one. The result is 0 where all came at once."""
    first_at, last_at = times(unit, selection)
    if first_at == last_at:
        return last_at - first_at
    first_id, last_id = id_ends(unit)
    text = f"SELECT count(DISTINCT (d.at - {first_at}) * {STRETCHES} / {last_at - first_at + 1}) FROM decision d"
    stride = 1 + (last_id - first_id) // MAX_COUNTED
    tests = f"d.id / {stride} * {stride} = d.id AND {scan_tests(unit, selection)}"
    n_stretches = max(2, int(unit.ask_value(f"{text} WHERE {tests}")))
    return round((last_at - first_at) * (1 + 1 / (n_stretches - 1) - 1 / (STRETCHES - 1)))


def lacks_times(unit: Unit, selection: Selection) -> bool:
    """Tell whether the selected decision with the newest id was imported without a time. Such a decision has the time
    of its import."""
    newest_row = f"SELECT d.run_id, d.at FROM decision d WHERE {_condition(selection, '+')} ORDER BY d.id DESC LIMIT 1"
    import_run = "run r ON r.id = n.run_id WHERE r.command = 'import-log' AND n.at >= r.at"
    return unit.folder is None and unit.ask_value(f"SELECT 1 FROM ({newest_row}) n JOIN {import_run}") is not None


class LoggedPage(NamedTuple):
    """This record has the eligible set, length, context and version of a decision."""

    eligible_id: int
    size: int
    context_id: int
    version_id: int


def newest_pages(unit: Unit, selection: Selection, n: int) -> list[LoggedPage]:
    """Return the pages of the n selected decisions with the largest ids, newest first."""
    columns = ", ".join(f"d.{name}" for name in LoggedPage._fields)
    text = f"SELECT {columns} FROM decision d WHERE {_condition(selection)} ORDER BY d.id DESC LIMIT ?"
    return unit.records(LoggedPage, text, n)


def newest_users(unit: Unit, selection: Selection, n: int) -> list[tuple[int, int, int]]:
    """Return the policy, id and user of the n newest selected decisions, newest first. Decisions without a user are
    left out."""
    newest = f"SELECT d.policy_id, d.id, d.session_id FROM decision d WHERE {_condition(selection)}"
    tables = f"({newest} ORDER BY d.id DESC LIMIT ?) n JOIN session s ON s.id = n.session_id"
    return unit.ask(f"SELECT n.policy_id, n.id, s.user_id FROM {tables} WHERE s.user_id IS NOT NULL", n)


class SlotCount(NamedTuple):
    """This record counts how many slots an arm has at a position."""

    arm_id: int
    position: int
    slots: int


def newest_slots(unit: Unit, selection: Selection, n: int) -> list[SlotCount]:
    """Count the slots of the n newest selected decisions, by arm and position."""
    newest = f"SELECT d.id FROM decision d WHERE {_condition(selection)} ORDER BY d.id DESC LIMIT ?"
    tables = f"({newest}) n JOIN slot s ON s.decision_id = n.id"
    return unit.records(SlotCount, f"SELECT s.arm_id, s.position, count(*) FROM {tables} GROUP BY 1, 2", n)


def ids_after(unit: Unit, selection: Selection, *, low: int, limit: int) -> list[int]:
    """Return the first `limit` ids of selected decisions above `low`, ascending. Return fewer, but at least one, where
    their eligible sets have more than contents.MAX_ARMS arms together."""
    columns, tests = "d.id, d.eligible_id", _condition(selection)
    rows = unit.ask(f"SELECT {columns} FROM decision d WHERE {tests} AND d.id > ? ORDER BY d.id LIMIT ?", low, limit)
    sizes = contents.set_sizes(unit, {set_id for _, set_id in rows})
    arms_so_far = accumulate(sizes.pop(set_id, 0) for _, set_id in rows)  # a set counts where it first occurs
    n_decisions = max(1, sum(1 for _ in takewhile(contents.MAX_ARMS.__ge__, arms_so_far)))
    return [decision_id for decision_id, _ in rows[:n_decisions]]


def session_bounds(unit: Unit, selection: Selection) -> tuple[int, int] | None:
    """Return bounds (low, high) such that the sessions of all selected decisions have ids with low < id <= high. Return
    None if these sessions may have any ids."""
    if selection.since is None and selection.first_id is None:
        return None
    log_extent = extent(unit, selection)
    return max(log_extent.first_session, 1) - 1, log_extent.last_session


def few_test(unit: Unit, selection: Selection, *, most: int = MAX_LOOKUPS) -> str | None:
    """Return an SQL test on decisions `d`, answered by an index, that all selected decisions pass and that at most
    `most` decisions pass. Return None where there is no such test."""
    test = _indexed_test(unit, selection)
    is_few = test and unit.ask_value(f"SELECT 1 FROM decision d WHERE {test} LIMIT 1 OFFSET {most}") is None
    return test if is_few else None


def _indexed_test(unit: Unit, selection: Selection) -> str | None:
    """Return an SQL test that an index answers and that all selected decisions pass, or None where there is none."""
    if (policy_ids := _policy_ids(unit, selection)) is not None:
        return f"d.policy_id IN ({policy_ids})"
    if selection.since is not None and not may_be_imported(unit):
        return f"d.imported = 0 AND d.at >= {int(selection.since)}"
    return None


def _policy_ids(unit: Unit, selection: Selection) -> str | None:
    """Write the ids of the policies that drew the selected decisions as a list for SQL's IN. Return None for any
    policy."""
    if unit.folder is not None:
        return None
    if selection.variant_ids:  # each variant has its own policy
        return f"SELECT policy_id FROM variant WHERE id IN ({numbers(selection.variant_ids)})"
    return numbers(selection.policy_ids) if selection.policy_ids else None


def scan_tests(unit: Unit, selection: Selection) -> str:
    """Return the tests of a selection for a query that scans many decisions. The query scans the log in its order
    between the smallest and largest selected id, or uses the index where these ids lie far apart."""
    return f"{_id_test(unit, selection)} AND {_condition(selection, '+')}"


def _id_test(unit: Unit, selection: Selection) -> str:
    """Return an SQL test on ids of decisions that all selected decisions pass. The ids are found by an index."""
    if (test := _indexed_test(unit, selection)) is None:
        return "1 = 1"
    if (policy_ids := _policy_ids(unit, selection)) is not None:
        ids_text = "SELECT d.id FROM decision d WHERE d.policy_id = p.id ORDER BY d.id"
        id_bounds = f"min(({ids_text} LIMIT 1)), max(({ids_text} DESC LIMIT 1))"  # an index has those of each policy
        rows = f"policy p WHERE p.id IN ({policy_ids})"
    else:
        # with the `+`, the database does not walk through all ids
        id_bounds, rows = "min(+d.id), max(+d.id)", f"decision d WHERE {test}"
    text = f"SELECT {id_bounds}, (SELECT count(*) FROM decision d WHERE {test}) FROM {rows}"
    first_id, last_id, n_decisions = _read_once(unit, text, lambda: unit.ask(text)[0])
    is_sparse = (last_id or 0) - (first_id or 0) > MAX_COLUMN_SPREAD * n_decisions
    return test if is_sparse else f"d.id BETWEEN {first_id or 0} AND {last_id or -1}"


def may_be_imported(unit: Unit) -> bool:
    """Tell whether some decisions may have been drawn elsewhere and imported."""
    return unit.folder is not None or unit.ask_row("SELECT 1 FROM policy WHERE kind = 'logged' LIMIT 1") is not None


def _condition(selection: Selection, prefix: str = "") -> str:
    """Return the tests of a selection, joined by AND. prefix: `+` keeps SQLite from using an index, which would jump
    between pages."""
    return " AND ".join(f"{prefix}{test}" for test in selection.conditions()) or "1 = 1"


UnitIds = tuple[int | None, int | None]
"""The id of a user, or that of a session."""


class Exclusion(NamedTuple):
    """This record is an exclusion, which hides the decisions that pass a filter. by_unit: 1 where the exclusion covers
    only decisions of its listed users and sessions."""

    id: int
    name: str
    filter: str
    by_unit: int
    created_at: int


def all_exclusions(unit: Unit) -> list[Exclusion]:
    """Return the stored exclusions, in order of name."""
    return unit.select(Exclusion, "exclusion ORDER BY name")


def add(unit: Unit, name: str, text: str, units: Sequence[UnitIds] | None) -> Exclusion:
    """Store an exclusion of the decisions that pass a filter. units: the users and sessions to which the exclusion is
    limited, or None for no limit."""
    by_unit = int(units is not None)
    key = unit.add("exclusion", name=name, filter=text, by_unit=by_unit, created_at=unit.now)
    unit.insert("exclusion_unit", ("exclusion_id", "user_id", "session_id"), [(key, *ids) for ids in units or ()])
    return Exclusion(key, name, text, by_unit, unit.now)


def remove(unit: Unit, exclusion_id: int) -> None:
    """Delete an exclusion. Decisions that beliefs left out stay left out."""
    unit.tell("DELETE FROM exclusion_unit WHERE exclusion_id = ?", exclusion_id)
    unit.tell("DELETE FROM exclusion WHERE id = ?", exclusion_id)


def unit_ids(unit: Unit, exclusion_id: int) -> list[UnitIds]:
    """Return the ids of the user and of the session of each unit of an exclusion. A unit has one of the two."""
    rows = unit.ask("SELECT user_id, session_id FROM exclusion_unit WHERE exclusion_id = ?", exclusion_id)
    return [(user_id, session_id) for user_id, session_id in rows]


def sole_names(unit: Unit, user_ids: Collection[int]) -> list[str]:
    """Return the names of the exclusions that have exactly one of these users."""
    tables = "exclusion_unit x JOIN exclusion e ON e.id = x.exclusion_id"
    having = "GROUP BY e.name HAVING count(DISTINCT x.user_id) = 1 ORDER BY 1"
    return [row[0] for row in unit.ask(f"SELECT e.name FROM {tables} WHERE x.user_id IN (?*) {having}", user_ids)]


def unit_keys(unit: Unit, exclusion_id: int) -> tuple[list[str], list[str]]:
    """Return the keys of the users, and the keys of the sessions, that are units of an exclusion."""
    text = "SELECT k.key FROM exclusion_unit x JOIN {0} k ON k.id = x.{1}_id WHERE x.exclusion_id = ? ORDER BY 1"
    users = unit.ask(text.format("users", "user"), exclusion_id)
    sessions = unit.ask(text.format("session", "session"), exclusion_id)
    return [row[0] for row in users], [row[0] for row in sessions]


def session_ids(unit: Unit, exclusion_id: int, *, scope: str = "") -> list[int]:
    """Return the ids of the sessions that belong to the units of an exclusion.

    scope: a test on decisions `d`, to find only sessions with such a decision. Without it, sessions of a log in a
    folder are found, too."""
    if scope:
        text = (
            "SELECT DISTINCT v.id FROM decision d CROSS JOIN session v CROSS JOIN exclusion_unit x"
            f" WHERE {scope} AND v.id = d.session_id AND (x.session_id = v.id OR x.user_id = v.user_id)"
            " AND x.exclusion_id = ?"
        )
        return [row[0] for row in unit.ask(text, exclusion_id)]
    rows = unit_ids(unit, exclusion_id)
    users, sessions = {user for user, _ in rows} - {None}, [session for _, session in rows if session is not None]
    return sessions + [row[0] for row in unit.ask("SELECT id FROM session WHERE user_id IN (?*)", users)]


def omit(unit: Unit, version_id: int, selection: Selection) -> None:
    """Record that a belief leaves out the selected decisions that are excluded."""
    tests = [*replace(selection, without=()).conditions(), f"({' OR '.join(selection.without)})"]
    source = f"SELECT d.id, CAST(? AS BIGINT) FROM decision d WHERE {' AND '.join(tests)}"
    if unit.tell(f"INSERT INTO omission (decision_id, version_id) {source} ON CONFLICT DO NOTHING", version_id):
        unit.tell("UPDATE version SET has_omissions = 1 WHERE id = ?", version_id)


def omissions(unit: Unit, version_ids: Collection[int], decision_ids: Collection[int]) -> set[tuple[int, int]]:
    """Return the pairs (version, decision) where the belief of the version left the decision out, among these versions
    and decisions."""
    text = "SELECT version_id, decision_id FROM omission WHERE decision_id IN (?*) AND version_id IN (?*)"
    return {(version, decision) for version, decision in unit.ask(text, decision_ids, version_ids)}


def any_learned(unit: Unit, log: Selection, test: str, version_ids: Collection[int], *, omitted: bool) -> bool:
    """Tell whether a log has a decision that passes a test and that one of these versions omits (`omitted`), or that
    none of them omits (not `omitted`)."""
    omitted_row = "SELECT 1 FROM omission o WHERE o.decision_id = d.id AND o.version_id IN (?*)"
    tests = [*log.conditions(), test, f"{'' if omitted else 'NOT '}EXISTS ({omitted_row})"]
    return unit.ask_row(f"SELECT 1 FROM decision d WHERE {' AND '.join(tests)} LIMIT 1", version_ids) is not None


def omitted_ids(unit: Unit, version_id: int, first: int, last: int) -> list[int]:
    """Return the decisions between two ids that the belief of a version left out."""
    text = "SELECT decision_id FROM omission WHERE decision_id BETWEEN ? AND ? AND version_id = ?"
    return [row[0] for row in unit.ask(text, first, last, version_id)]
