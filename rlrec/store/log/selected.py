"""Queries here count selected decisions of the log, and find the times and ids of these decisions. Other queries store
exclusions, which hide decisions from all readers of the log, and list the decisions that beliefs left out."""

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
    """A Selection chooses decisions of the log. A decision is selected if it passes every field; a field that is None
    lets all decisions pass.

    since, until: times in microseconds; decisions at `since` are included, decisions at `until` are not. without:
    SQL tests on a decision `d`, from stored exclusions; a decision that passes any of these tests is not selected."""

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
        """Return SQL tests on a decision `d`. A decision is selected if it passes all these tests."""
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
    """Return ids as a list for IN in SQL. For no ids, the list matches no row."""
    return ", ".join(map(str, sorted(map(int, ids)))) or "NULL"


def version_counts(unit: Unit, selection: Selection) -> dict[int, int]:
    """Return how many of the selected decisions each version served, by version id."""
    tests = f"{_id_test(unit, selection)} AND {_condition(selection)}"
    text = f"SELECT d.version_id, count(*) FROM decision d WHERE {tests} GROUP BY d.version_id"
    return _read_once(unit, text, lambda: dict(unit.ask(text)))


class DayCount(NamedTuple):
    """This record has the number of decisions that a version served on one day. Days begin at midnight in the
    configured time zone; `day` is the number of days since 1970-01-01."""

    day: int
    version_id: int
    decisions: int


def day_counts(unit: Unit, selection: Selection) -> list[DayCount]:
    """Return how many of the selected decisions each version served on each day, in order of day."""
    return day_counts_and_newest(unit, selection, 1)[0]


def day_counts_and_newest(unit: Unit, selection: Selection, n: int) -> tuple[list[DayCount], int | None]:
    """Return the DayCounts of the selected decisions, and the time of the n-th newest selected decision, from one pass
    over the log."""
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
    """Return the first and the last decision id of the log, or 0 and 0 if the log is empty. The function runs two
    queries, since one query for both ids would scan the log."""
    first_id, last_id = (int(unit.ask_value(f"SELECT {end}(id) FROM decision") or 0) for end in ("min", "max"))
    return first_id, last_id


def any_common(unit: Unit, *selections: Selection) -> bool:
    """Tell whether any decision is in all of these selections."""
    tests = " AND ".join(map(_condition, selections))
    return unit.ask_value(f"SELECT 1 FROM decision d WHERE {tests} LIMIT 1") is not None


def newest_at(unit: Unit, selection: Selection, n: int) -> int | None:
    """Return the time of the n-th newest selected decision, or None if fewer than n decisions are selected."""
    # an index has the times of the decisions that were not imported
    index_tests = [] if may_be_imported(unit) else ["d.imported = 0"]
    tests = " AND ".join([_condition(selection), *index_tests])
    text = f"SELECT d.at FROM decision d WHERE {tests} ORDER BY d.at DESC LIMIT 1 OFFSET ?"
    at = unit.ask_value(text, n - 1)
    return None if at is None else int(at)


def newest_id(unit: Unit, selection: Selection, n: int) -> int | None:
    """Return the n-th largest id of the selected decisions, or None if fewer than n decisions are selected."""
    text = f"SELECT d.id FROM decision d WHERE {_condition(selection)} ORDER BY d.id DESC LIMIT 1 OFFSET ?"
    return unit.ask_value(text, n - 1)


class LogExtent(NamedTuple):
    """This record tells over which times, ids and positions a set of decisions extends. All numbers are 0 if the set is
    empty.

    positions: the length of the longest slate; steps: the largest number of steps of a visit, counted up to the last
    decision of the visit in the set; first_version, last_version: the smallest and largest id of the versions that
    made the decisions; decisions: the number of decisions; first_session, last_session: the smallest and largest id
    of their sessions; first_at, last_at: the times of the first and last decision."""

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
        """Return the time from the first decision to the last decision, in microseconds."""
        return self.last_at - self.first_at


def extent(unit: Unit, selection: Selection) -> LogExtent:
    """Return the LogExtent of the selected decisions."""
    aggregates = (
        "max(d.size)", "max(d.step) + 1", "min(d.version_id)", "max(d.version_id)", "count(*)",
        "min(d.session_id)", "max(d.session_id)", "min(d.at)", "max(d.at)",
    )  # fmt: skip
    columns = ", ".join(f"coalesce({value}, 0)" for value in aggregates)
    text = f"SELECT {columns} FROM decision d WHERE {scan_tests(unit, selection)}"  # the caller reads the log next
    return _read_once(unit, text, lambda: unit.records(LogExtent, text)[0])


def _read_once(unit: Unit, text: str, read: Callable[[], T]) -> T:
    """Return the answer to a query over the whole log. If the unit works on a snapshot, which does not change, a
    repeated query is answered from memory. text: the text of the query; read: a function that runs the query."""
    if unit.folder is not None or not unit.alongside:
        return read()
    if text not in unit.extents:
        unit.extents[text] = read()
    answer: T = unit.extents[text]
    return answer


def times(unit: Unit, selection: Selection) -> tuple[int, int]:
    """Return the time of the first and the time of the last selected decision, or 0 and 0 where no decision is
    selected."""
    is_time_range = selection == Selection(since=selection.since, until=selection.until)
    if not is_time_range or may_be_imported(unit):
        return extent(unit, selection)[-2:]
    # an index has the times of decisions that were not imported
    rows = f"FROM decision d WHERE d.imported = 0 AND {_condition(selection)}"
    first_at, last_at = (int(unit.ask_value(f"SELECT {end}(d.at) {rows}") or 0) for end in ("min", "max"))
    return first_at, last_at


STRETCHES, MAX_COUNTED = 1_000, 20_000  # of a log, and decisions that tell in which of these there are some


def covered_us(unit: Unit, selection: Selection) -> int:
    """Estimate the length of the time, in microseconds, that the selected decisions cover. The result is 0 if all
    decisions have the same time.

    This time begins with the first decision, and ends when the next decision after the last one could be expected.
    If, for example, decisions come only at one hour of each day, the time ends a day after the last decision."""
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
    """Tell whether the selected decision with the largest id was imported from a line without a time. Such a decision
    has the time of the import as its time."""
    newest_row = f"SELECT d.run_id, d.at FROM decision d WHERE {_condition(selection, '+')} ORDER BY d.id DESC LIMIT 1"
    import_run = "run r ON r.id = n.run_id WHERE r.command = 'import-log' AND n.at >= r.at"
    return unit.folder is None and unit.ask_value(f"SELECT 1 FROM ({newest_row}) n JOIN {import_run}") is not None


class LoggedPage(NamedTuple):
    """This record has the eligible set, the length of the slate, the context and the version of a decision."""

    eligible_id: int
    size: int
    context_id: int
    version_id: int


def newest_pages(unit: Unit, selection: Selection, n: int) -> list[LoggedPage]:
    """Return a LoggedPage for each of the n selected decisions with the largest ids, newest first."""
    columns = ", ".join(f"d.{name}" for name in LoggedPage._fields)
    text = f"SELECT {columns} FROM decision d WHERE {_condition(selection)} ORDER BY d.id DESC LIMIT ?"
    return unit.records(LoggedPage, text, n)


def newest_users(unit: Unit, selection: Selection, n: int) -> list[tuple[int, int, int]]:
    """Return triples for the n newest selected decisions, newest first: the policy, the decision id and the user.
    Decisions without a user are left out, so that there may be fewer than n triples."""
    newest_decisions = f"SELECT d.policy_id, d.id, d.session_id FROM decision d WHERE {_condition(selection)}"
    tables = f"({newest_decisions} ORDER BY d.id DESC LIMIT ?) n JOIN session s ON s.id = n.session_id"
    return unit.ask(f"SELECT n.policy_id, n.id, s.user_id FROM {tables} WHERE s.user_id IS NOT NULL", n)


class SlotCount(NamedTuple):
    """This record has the number of slots that show an arm at a position."""

    arm_id: int
    position: int
    slots: int


def newest_slots(unit: Unit, selection: Selection, n: int) -> list[SlotCount]:
    """Count the slots of the n newest selected decisions. The result has a SlotCount for each pair of an arm and a
    position."""
    newest_decisions = f"SELECT d.id FROM decision d WHERE {_condition(selection)} ORDER BY d.id DESC LIMIT ?"
    tables = f"({newest_decisions}) n JOIN slot s ON s.decision_id = n.id"
    return unit.records(SlotCount, f"SELECT s.arm_id, s.position, count(*) FROM {tables} GROUP BY 1, 2", n)


def ids_after(unit: Unit, selection: Selection, *, low: int, limit: int) -> list[int]:
    """Return the first `limit` ids of selected decisions that are above `low`, ascending. The result is shorter if the
    eligible sets of these decisions have more than contents.MAX_ARMS arms in total, but it has at least one id if there
    is any."""
    columns, tests = "d.id, d.eligible_id", _condition(selection)
    rows = unit.ask(f"SELECT {columns} FROM decision d WHERE {tests} AND d.id > ? ORDER BY d.id LIMIT ?", low, limit)
    sizes = contents.set_sizes(unit, {set_id for _, set_id in rows})
    arms_so_far = accumulate(sizes.pop(set_id, 0) for _, set_id in rows)  # a set counts where it first occurs
    n_decisions = max(1, sum(1 for _ in takewhile(contents.MAX_ARMS.__ge__, arms_so_far)))
    return [decision_id for decision_id, _ in rows[:n_decisions]]


def session_bounds(unit: Unit, selection: Selection) -> tuple[int, int] | None:
    """Return two bounds (low, high): the sessions of all selected decisions have ids with low < id <= high. Return None
    if the selection does not limit the ids of sessions."""
    if selection.since is None and selection.first_id is None:
        return None
    log_extent = extent(unit, selection)
    return max(log_extent.first_session, 1) - 1, log_extent.last_session


def few_test(unit: Unit, selection: Selection, *, limit: int = MAX_LOOKUPS) -> str | None:
    """Return an SQL test on decisions `d` that is answered by an index. All selected decisions pass the test, and at
    most `limit` decisions pass it in total. Return None where there is no such test."""
    test = _indexed_test(unit, selection)
    is_few = test and unit.ask_value(f"SELECT 1 FROM decision d WHERE {test} LIMIT 1 OFFSET {limit}") is None
    return test if is_few else None


def _indexed_test(unit: Unit, selection: Selection) -> str | None:
    """Return an SQL test on decisions `d` that is answered by an index and that all selected decisions pass. Return
    None where there is no such test."""
    if (policy_ids := _policy_ids(unit, selection)) is not None:
        return f"d.policy_id IN ({policy_ids})"
    if selection.since is not None and not may_be_imported(unit):
        return f"d.imported = 0 AND d.at >= {int(selection.since)}"
    return None


def _policy_ids(unit: Unit, selection: Selection) -> str | None:
    """Return the ids of the policies that drew the selected decisions, as a list for IN in SQL. Return None if any
    policy may have drawn them."""
    if unit.folder is not None:
        return None
    if selection.variant_ids:  # each variant has its own policy
        return f"SELECT policy_id FROM variant WHERE id IN ({numbers(selection.variant_ids)})"
    return numbers(selection.policy_ids) if selection.policy_ids else None


def scan_tests(unit: Unit, selection: Selection) -> str:
    """Return the tests of a selection in a form for queries that read many decisions. Such a query scans all decisions
    between the smallest and the largest selected id, or uses an index if few of these decisions are selected."""
    return f"{_id_test(unit, selection)} AND {_condition(selection, '+')}"


def _id_test(unit: Unit, selection: Selection) -> str:
    """Return an SQL test that all selected decisions pass: a range of decision ids, which is found by an index, or the
    test of `_indexed_test` if few ids of the range are selected."""
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
    """Tell whether the log may have imported decisions, which were drawn outside the store."""
    return unit.folder is not None or unit.ask_row("SELECT 1 FROM policy WHERE kind = 'logged' LIMIT 1") is not None


def _condition(selection: Selection, prefix: str = "") -> str:
    """Return the tests of a selection, joined by AND. prefix: a text before each test; `+` keeps SQLite from using an
    index, which would jump between pages."""
    return " AND ".join(f"{prefix}{test}" for test in selection.conditions()) or "1 = 1"


UnitIds = tuple[int | None, int | None]
"""The id of a user, or that of a session."""


class Exclusion(NamedTuple):
    """This record is an exclusion, which hides the decisions that pass a filter. by_unit: 1 if only decisions of listed
    users and sessions are hidden, else 0."""

    id: int
    name: str
    filter: str
    by_unit: int
    created_at: int


def all_exclusions(unit: Unit) -> list[Exclusion]:
    """Return the stored exclusions, in order of name."""
    return unit.select(Exclusion, "exclusion ORDER BY name")


def add(unit: Unit, name: str, text: str, units: Sequence[UnitIds] | None) -> Exclusion:
    """Store an exclusion of the decisions that pass a filter, and return the exclusion.

    name: the name of the exclusion; text: the text of the filter; units: the users and sessions to which the
    exclusion is limited, or None for no limit."""
    by_unit = int(units is not None)
    key = unit.add("exclusion", name=name, filter=text, by_unit=by_unit, created_at=unit.now)
    unit.insert("exclusion_unit", ("exclusion_id", "user_id", "session_id"), [(key, *ids) for ids in units or ()])
    return Exclusion(key, name, text, by_unit, unit.now)


def remove(unit: Unit, exclusion_id: int) -> None:
    """Delete an exclusion. Beliefs do not learn the decisions that they left out because of the exclusion."""
    unit.tell("DELETE FROM exclusion_unit WHERE exclusion_id = ?", exclusion_id)
    unit.tell("DELETE FROM exclusion WHERE id = ?", exclusion_id)


def unit_ids(unit: Unit, exclusion_id: int) -> list[UnitIds]:
    """Return the users and sessions to which an exclusion is limited, as pairs (user id, session id). In each pair, one
    of the two ids is None."""
    rows = unit.ask("SELECT user_id, session_id FROM exclusion_unit WHERE exclusion_id = ?", exclusion_id)
    return [(user_id, session_id) for user_id, session_id in rows]


def sole_names(unit: Unit, user_ids: Collection[int]) -> list[str]:
    """Return the names of the exclusions whose list has exactly one of these users, and not several of them."""
    tables = "exclusion_unit x JOIN exclusion e ON e.id = x.exclusion_id"
    suffix = "GROUP BY e.name HAVING count(DISTINCT x.user_id) = 1 ORDER BY 1"
    return [row[0] for row in unit.ask(f"SELECT e.name FROM {tables} WHERE x.user_id IN (?*) {suffix}", user_ids)]


def unit_keys(unit: Unit, exclusion_id: int) -> tuple[list[str], list[str]]:
    """Return two lists for an exclusion: the keys of the users, and the keys of the sessions, to which it is
    limited."""
    text = "SELECT k.key FROM exclusion_unit x JOIN {0} k ON k.id = x.{1}_id WHERE x.exclusion_id = ? ORDER BY 1"
    users = unit.ask(text.format("users", "user"), exclusion_id)
    sessions = unit.ask(text.format("session", "session"), exclusion_id)
    return [row[0] for row in users], [row[0] for row in sessions]


def session_ids(unit: Unit, exclusion_id: int, *, scope: str = "") -> list[int]:
    """Return the ids of the sessions to which an exclusion is limited, including all sessions of the users to whom it
    is limited.

    scope: an SQL test on decisions `d`; if given, only sessions that have such a decision are returned. Without it,
    the result also has sessions whose decisions are only in a log in a folder."""
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
    """Record that the belief of a version leaves out the decisions of a selection that stored exclusions hide."""
    tests = [*replace(selection, without=()).conditions(), f"({' OR '.join(selection.without)})"]
    source = f"SELECT d.id, CAST(? AS BIGINT) FROM decision d WHERE {' AND '.join(tests)}"
    if unit.tell(f"INSERT INTO omission (decision_id, version_id) {source} ON CONFLICT DO NOTHING", version_id):
        unit.tell("UPDATE version SET has_omissions = 1 WHERE id = ?", version_id)


def omissions(unit: Unit, version_ids: Collection[int], decision_ids: Collection[int]) -> set[tuple[int, int]]:
    """Return the pairs (version id, decision id) for which the belief of the version left the decision out. Only these
    versions and these decisions are considered."""
    text = "SELECT version_id, decision_id FROM omission WHERE decision_id IN (?*) AND version_id IN (?*)"
    return {(version, decision) for version, decision in unit.ask(text, decision_ids, version_ids)}


def any_learned(unit: Unit, log: Selection, test: str, version_ids: Collection[int], *, is_omitted: bool) -> bool:
    """Tell whether the log has a decision that passes a test and that the belief of one of these versions left out.
    With `is_omitted` False, tell whether it has one that passes the test and that none of these beliefs left out.

    log: the selection of decisions that are considered; test: an SQL test on decisions `d`."""
    omitted_row = "SELECT 1 FROM omission o WHERE o.decision_id = d.id AND o.version_id IN (?*)"
    tests = [*log.conditions(), test, f"{'' if is_omitted else 'NOT '}EXISTS ({omitted_row})"]
    return unit.ask_row(f"SELECT 1 FROM decision d WHERE {' AND '.join(tests)} LIMIT 1", version_ids) is not None


def omitted_ids(unit: Unit, version_id: int, first: int, last: int) -> list[int]:
    """Return the ids from `first` to `last` of the decisions that the belief of a version left out."""
    text = "SELECT decision_id FROM omission WHERE decision_id BETWEEN ? AND ? AND version_id = ?"
    return [row[0] for row in unit.ask(text, first, last, version_id)]
