"""Functions here check decoded decisions, in the same way for every layout. They find decisions that are impossible,
and say which field shows this and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import isfinite, log
from typing import Any, NamedTuple, cast

import numpy as np

from rlrec import times
from rlrec.app.imports.columns import NULL, LogColumns, fill_column, value_set, values
from rlrec.arrays import Ids, look_up, run_starts
from rlrec.errors import InputError, quantity
from rlrec.log_fields import COUNT, DECISION, KEY, KIND, LOG_PROBABILITY, ORDINAL, PROBABILITY, SHARE, SLOT, FieldCheck
from rlrec.policy.beliefs import reward as rewards
from rlrec.policy.beliefs.base import sum_tolerance
from rlrec.policy.contexts.statements import PAGE
from rlrec.store.database.loading import Column, Same

KEY_LENGTH = 200
NAME = "[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
PROPENSITY_TOLERANCE = 1e-6  # tolerance for probabilities that were computed separately
FLOAT32 = 1e-4  # tolerance for float32 probabilities, some printed with six digits
RULES = f'"{PAGE}"'  # in the JSON of a context whose request had rules of its page
AMOUNT, POLICY = FieldCheck("amount", ""), FieldCheck("policy", "")  # of lines only: a database has no such test


class ValueCheck(NamedTuple):
    """A ValueCheck holds a test of a value, and a function that makes the message for a value that fails the test."""

    test: Callable[[Any], Any]
    message: Callable[[Any], str]
    hint: str | None = None


def _at_least(least: int) -> ValueCheck:
    hint = f"it counts from {least}" + (": add 1 to a column that counts from 0" if least else "")
    return ValueCheck(lambda value: least <= value < 2**31, "{} is out of range".format, hint)


CHECKS: Mapping[FieldCheck | None, ValueCheck] = {
    KEY: ValueCheck(
        re.compile(rf"[^\0]{{1,{KEY_LENGTH}}}").fullmatch,
        f"a key has 1 to {KEY_LENGTH} characters and no NUL, not {{!r:.40}}".format,
    ),
    KIND: ValueCheck(
        rewards.KIND.fullmatch, "{!r:.82} is no kind of event".format, "letters, digits, _ and ., at most 64"
    ),
    POLICY: ValueCheck(
        re.compile(rf"{NAME}(@{NAME}/{NAME})?").fullmatch,
        "{!r:.82} is no name of a policy".format,
        "letters, digits, _ . -, at most 64; or POLICY@EXPERIMENT/VARIANT; or give --policy",
    ),
    PROBABILITY: ValueCheck(
        lambda value: 1e-300 <= value <= 1, "{!r} is no probability of something shown".format,
        "it lies in (0, 1]: divide percent by 100, and leave empty what was rounded to 0",
    ),
    SHARE: ValueCheck(lambda value: 0 <= value <= 1, "{!r} is no probability".format),
    LOG_PROBABILITY: ValueCheck(lambda value: value <= 0, "{!r} is the log of no probability".format),
    COUNT: _at_least(0),
    ORDINAL: _at_least(1),
    AMOUNT: ValueCheck(
        lambda value: isfinite(value) and rewards.is_bounded(value),
        "{!r} is too large".format, f"values stay within {rewards.LIMIT:g}",
    ),
}  # fmt: skip
# by table ("" for that of decisions) and column
CHECKED: Mapping[str, Mapping[str, FieldCheck | None]] = {
    "": {"request_id": KEY, "session": KEY, "user": KEY, "policy": POLICY, "visit": ORDINAL}
    | {field.name: field.check for field in DECISION if field.name in LogColumns.__dataclass_fields__},
    "slots": {"arm": KEY} | {field.name: field.check for field in SLOT[1:]},
    "events": {"position": ORDINAL, "kind": KIND, "value": AMOUNT, "key": KEY},
}


def check_value(value: Any, check: ValueCheck, field: str) -> Any:
    """Return the value. Raises InputError if the value fails the check. The value None always passes. field: the name
    of the value in the error."""
    if value is not None and not check.test(value):
        raise InputError(check.message(value), hint=check.hint, field=field)
    return value


def until(now: int) -> ValueCheck:
    """Return a check that a time is not after `now`."""
    hint = "check it and the clock"
    return ValueCheck(lambda at: at <= now, lambda at: f"{times.format_time(at)} lies in the future", hint)


def is_distribution(probabilities: Collection[float]) -> bool:
    """Tell whether probabilities sum to 1, up to the rounding of float32 or of six decimals."""
    return abs(sum(probabilities) - 1) <= max(FLOAT32, sum_tolerance(len(probabilities)))


class Problem(NamedTuple):
    """A Problem is a reason to refuse a decision. row: the index of the decision; field: the column with the
    problem; table: the name of its table ("slots" or "events", or "" for decisions); number: the index of the row in
    this table."""

    row: int
    field: str
    message: str
    hint: str | None = None
    table: str = ""
    number: int = 0


def value_problems(rows: LogColumns, *, now: int) -> Iterator[Problem]:
    """Yield a problem for each value that its column cannot hold."""
    for table, columns in CHECKED.items():
        holder: Any = getattr(rows, table) if table else rows
        row = holder.row if table else range(len(rows))
        checks = {field: CHECKS[check] for field, check in columns.items() if check in CHECKS}
        for field, (test, message, hint) in (checks | ({} if table == "slots" else {"at": until(now)})).items():
            column = getattr(holder, field) or NULL
            if problems_by_value := {value: message(value) for value in _failing_values(column, test)}:
                for index, value in enumerate(values(column, len(row))):
                    if value in problems_by_value:
                        yield Problem(row[index], field, problems_by_value[value], hint, table, index)
    is_key, message, hint = CHECKS[KEY]
    if no_keys := {arm for arm in set().union(*rows.eligible_sets) if not is_key(arm)}:
        for index, number in enumerate(values(rows.eligible, len(rows))):
            for arm in no_keys.intersection(rows.eligible_sets[number]):
                yield Problem(index, "eligible", message(arm), hint)


def _failing_values(column: Column, test: Callable[[Any], Any]) -> set[Any]:
    """Return the values of a column that fail a test. If the smallest and the largest number pass, all numbers count as
    good, so the test of a column of numbers must accept an interval."""
    entries = [column.value] if isinstance(column, Same) else column
    if None in entries:
        entries = [value for value in entries if value is not None]
    if entries and not isinstance(entries[0], str) and test(min(entries)) and test(max(entries)):
        return set()
    return {value for value in set(entries) if not test(value)}


# -- pages --


def complete_rows(rows: LogColumns) -> LogColumns:
    """Return the decisions, where values that lines leave out are derived from slots. The length of a slate is its last
    position. The probability of a slate that is shown completely is the product of the propensities of its slots."""
    n, positions = len(rows), rows.slots.position
    start = run_starts(np.array(rows.slots.row, np.int64))
    if len(rows.slots.row) > n:
        positions = np.maximum.reduceat(np.array(values(positions, len(rows.slots.row)), np.int64), start).tolist()
    size = positions if rows.size == NULL else fill_column(rows.size, values(positions, n))
    return replace(rows, size=size, log_propensity=_log_propensities(rows, size, start.tolist()))


def with_lone_propensities(rows: LogColumns) -> LogColumns:
    """Return the decisions with further propensities: the only slot of a slate gets its marginal as its propensity if
    it has none."""
    slots, n = rows.slots, len(rows.slots.row)
    sizes, logs = values(rows.size, len(rows)), list(values(rows.log_propensity, len(rows)))
    propensity = list(values(slots.propensity, n))
    for index, (row, marginal) in enumerate(zip(slots.row, values(slots.marginal, n), strict=True)):
        if sizes[row] == 1 and propensity[index] is None and marginal is not None:
            propensity[index], logs[row] = marginal, log(marginal)
    return replace(rows, slots=replace(slots, propensity=propensity), log_propensity=logs)


def _log_propensities(rows: LogColumns, size: Column, start: Sequence[int]) -> Column:
    """Return the logarithm of the probability of each slate: as the line states it, else the sum over its slots. It
    is None if the slate is not shown completely or a slot has no propensity. start: the index of each slate's first
    slot."""
    n, slots, logs_in_line = len(rows), rows.slots, values(rows.log_propensity, len(rows))
    if slots.propensity == NULL or None not in logs_in_line:
        return rows.log_propensity
    log_of = {value: log(value) for value in value_set(slots.propensity)}
    totals = logs = list(map(log_of.get, values(slots.propensity, len(slots.row))))
    if len(logs) > n or size != Same(1):
        pages = zip(pairwise([*start, len(logs)]), values(size, n), strict=True)
        totals = [
            min(0.0, sum(cast(list[float], logs[begin:end])))
            if end - begin == length and None not in logs[begin:end]
            else None
            for (begin, end), length in pages
        ]
    return fill_column(rows.log_propensity, totals)


def page_problems(rows: LogColumns, *, now: int, rounding: float) -> Iterator[Problem]:
    """Yield a problem for each slate that no policy can have shown, and for each event that cannot belong to its slate.
    rounding: how far a sum of probabilities may be from 1, besides the error of rounding to six decimals."""
    slots, n = rows.slots, len(rows.slots.row)
    row, position = np.array(slots.row, np.int64), np.array(values(slots.position, n), np.int64)
    size = np.array(values(rows.size, len(rows)), np.int64)
    if n > len(rows):
        for column, reason in ((position.tolist(), "a position is filled twice"), (slots.arm, "an arm is shown twice")):
            for (number, _), count in Counter(zip(slots.row, column, strict=True)).items():
                if count > 1:
                    yield Problem(number, "", reason, table="slots")
        for index in np.flatnonzero((row[1:] == row[:-1]) & (position[1:] < position[:-1])).tolist():
            yield Problem(slots.row[index], "", "the rows of a decision are in order of position", table="slots")
    for index in np.flatnonzero(position > size[row]).tolist():
        reason = f"a page of {size[row[index]]}, but position {position[index]} was shown"
        yield Problem(slots.row[index], "size", reason)
    if rows.eligible_sets:
        yield from _eligibility_problems(rows, row, position, size, rounding)
    if rows.events.row:
        yield from _event_problems(rows, (row << 32) + position, now)


def _eligibility_problems(rows: LogColumns, row: Ids, position: Ids, size: Ids, rounding: float) -> Iterator[Problem]:
    slots, sets, eligible = rows.slots, list(map(frozenset, rows.eligible_sets)), values(rows.eligible, len(rows))
    for index, (number, arm) in enumerate(zip(slots.row, slots.arm, strict=True)):
        if arm not in sets[eligible[number]]:
            reason = f"arm {arm[:80]!r} was shown, but not eligible"
            yield Problem(number, "arm", reason, table="slots", number=index)
    n_eligible = np.array(list(map(len, sets)), np.int64)[np.array(eligible, np.int64)]
    for number in np.flatnonzero(size > n_eligible).tolist():
        reason = f"a page of {size[number]}, but eligible: only {quantity(int(n_eligible[number]), 'arm')}"
        yield Problem(number, "eligible", reason)
    # the number of arms left at each position
    n_left = n_eligible[row] + 1 - position
    for number, arms in enumerate(values(rows.slot_sets, len(rows)) if rows.slot_sets != NULL else ()):
        shown_arms = set[str]()
        for index, arms_of_slot in enumerate(arms or (), int(np.searchsorted(row, number))):
            n_left[index] = len({*arms_of_slot} - shown_arms)
            shown_arms.add(slots.arm[index])
    # probabilities of slots without alternatives
    hint = "list every arm that could have been shown as eligible; leave out a probability that is not known"
    for field, is_certain, cause in (
        ("propensity", n_left == 1, "no other eligible arm was left at its position"),
        ("marginal", n_eligible[row] == 1, "no other arm was eligible"),
    ):
        column = values(getattr(slots, field), len(row))
        for index in np.flatnonzero(is_certain).tolist():
            tolerance = max(rounding, sum_tolerance(int(n_eligible[row[index]])))
            if column[index] is not None and column[index] < 1 - tolerance:
                reason = f"{column[index]!r} must be 1: {cause}"
                yield Problem(slots.row[index], field, reason, hint, "slots", index)
    # the smallest propensity among the arms left, which sum to 1; under page rules, among those that the request allows
    if NULL in (slots.propensity, slots.min_propensity):
        return
    columns = values(slots.propensity, len(row)), values(slots.min_propensity, len(row)), n_left.tolist()
    for index, (propensity, floor, count) in enumerate(zip(*columns, strict=True)):
        if propensity is None or floor is None:
            continue
        n_others = 0 if RULES in rows.context[slots.row[index]] else count - 1
        excess = propensity + n_others * floor - 1
        if floor > propensity + PROPENSITY_TOLERANCE or excess > max(rounding, sum_tolerance(count)):
            arms = quantity(count, "arm")
            reason = f"{floor!r} is not the smallest probability of {arms} of which one has {propensity!r}"
            yield Problem(slots.row[index], "min_propensity", reason, table="slots", number=index)


def _event_problems(rows: LogColumns, slot_keys: Ids, now: int) -> Iterator[Problem]:
    """Yield the problems of events. slot_keys: a number for each slot, made of its row and position, ascending."""
    events, n = rows.events, len(rows.events.row)
    position, at, key = (values(column, n) for column in (events.position, events.at, events.key))
    numbers = np.array([0 if number is None else number for number in position], np.int64)
    is_shown = (numbers == 0) | look_up(slot_keys, (np.array(events.row, np.int64) << 32) + numbers)[1]
    for index in np.flatnonzero(~is_shown).tolist():
        reason = f"position {position[index]} was not shown"
        yield Problem(events.row[index], "position", reason, table="events", number=index)
    served_at = values(rows.at, len(rows)) if events.at != NULL else ()
    for index, (row, time) in enumerate(zip(events.row, at, strict=True)) if served_at else ():
        if time is not None and time < (now if served_at[row] is None else served_at[row]):
            yield Problem(row, "at", "the event lies before its decision", table="events", number=index)
    # a feedback key names one line: a single position and time, and each kind once
    marks, kinds = dict[Any, Any](), set[Any]()
    entries = zip(events.row, key, values(events.kind, n), strict=True) if events.key != NULL else ()
    for index, (row, name, kind) in enumerate(entries):
        event_mark = position[index], at[index]
        if name is not None and (marks.setdefault((row, name), event_mark) != event_mark or (row, name, kind) in kinds):
            yield Problem(row, "key", f"feedback key {name!r} names two lines", table="events", number=index)
        kinds.add((row, name, kind))
