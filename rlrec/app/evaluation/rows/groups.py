"""This module divides rows into groups for `--by`, by a column of the log or by a field of the context."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np

from rlrec import times
from rlrec.app.evaluation.rows.contexts import ContextTable
from rlrec.app.evaluation.rows.log_rows import RowGroup
from rlrec.app.evaluation.rows.loggers import Loggers
from rlrec.app.inputs import canonical
from rlrec.arrays import Ids, rows_by_kind
from rlrec.errors import InputError, suggest
from rlrec.store.database.bulk import Columns
from rlrec.store.log.reader import ABSENT
from rlrec.store.policies import experiments, policies

FIELDS = {
    "position": "position", "policy": "policy_id", "version": "version_id", "variant": "variant_id", "day": "at",
    "arm": "arm_id", "step": "step",
}  # fmt: skip
MAX_GROUPS = 1_000

Label = str | float | bool | None


def group_rows(
    by: str | None, slots: Columns, contexts: ContextTable, context: Ids, *, keys: Mapping[int, str], loggers: Loggers
) -> tuple[list[RowGroup], Ids]:
    """Return the groups of n rows, and the index of each row's group, (n,). Without a field, all rows are one group.

    by: the field of `--by`; context (n,): the index of each row's context in the table; keys: the key of each arm,
    by id."""
    if by is None:
        return [RowGroup(None, None)], np.zeros(len(context), np.int64)
    if by in FIELDS:
        column = slots[FIELDS[by]]
        group_numbers, codes = np.unique(day_numbers(column) if by == "day" else column, return_inverse=True)
        if len(group_numbers) > MAX_GROUPS:
            raise too_many_groups(by)
        labels = _group_labels(by, group_numbers, keys, loggers)
        return [RowGroup(repr(labels[number]), labels[number]) for number in group_numbers.tolist()], codes
    codes, values = contexts.value_codes(by, canonical.text)
    texts = map(canonical.text, values)
    return [
        RowGroup(text, text if isinstance(value, dict | list) else value)
        for text, value in zip(texts, values, strict=True)
    ], codes[context]


def _group_labels(by: str, group_numbers: Ids, keys: Mapping[int, str], loggers: Loggers) -> Mapping[int, Label]:
    """Return the label of each group for reports, by the number of the group. by: a column of the log; keys: the key of
    each arm, by id."""
    codes = group_numbers.tolist()
    if by == "arm":
        return keys
    if by == "day":
        return {code: times.date(code) for code in codes}
    if by == "version":
        return {key: version.reference for key, version in loggers.versions(group_numbers).items()}
    if by == "policy":
        return {policy.id: policy.name for policy in policies.all_policies(loggers.unit)}
    if by == "variant":
        names = experiments.labels(loggers.unit, [code for code in codes if code != ABSENT])
        return {code: "/".join(names[code]) if code in names else None for code in codes}
    return dict(zip(codes, codes, strict=True))


def day_numbers(at: Ids) -> Ids:
    """Return the number of the day of each time, (n,), as `times.day_of` counts days. Days begin at midnight in the
    configured time zone. at (n,): times in microseconds."""
    days = at // times.DAY_US
    if times.zone is None or not len(at):
        return days
    # the midnights of these days and of the days before and after them
    candidate_days = np.unique(days) + np.array([[-1], [0], [1]])
    days = np.unique(np.clip(candidate_days, times.FIRST // times.DAY_US, times.LAST // times.DAY_US))
    index = np.searchsorted([times.midnight(day) for day in days.tolist()], at, side="right") - 1
    return days[np.maximum(index, 0)]


def field_of_context(by: str | None) -> str | None:
    """Return the field of the context by which `--by` groups rows, or None if it groups by a column of the log or not
    at all."""
    return None if by is None or by in FIELDS else by


def refuse_group(by: str | None) -> None:
    """Raise InputError if `by` is a column of the log, such as `day`. A policy can only use fields of contexts."""
    if by in FIELDS:
        hint = f"give the field of the context another name, such as user_{by}"
        raise InputError(f"by={by} is a group of the log, not a field of the context", hint=hint)


def check_field(by: str | None, names: Collection[str], *, groups: Collection[str] = FIELDS) -> None:
    """Raise InputError if rows are grouped by a field of the context and no context of the log has this field.

    names: the fields that the contexts have; groups: the other values that `--by` takes."""
    if (field := field_of_context(by)) is not None and field not in names:
        choices = f"--by takes {', '.join(groups)}" if groups else ""
        if not names:
            choices = f"no context has a field{choices and f'; {choices}'}"
        elif choices:
            choices += ", or a field of the context"
        else:
            choices = f"contexts have {', '.join(sorted(names)[:5])}"
        hint = suggest(field, [*groups, *sorted(names)]) or choices
        raise InputError(f"no context of the log has the field {by!r}", hint=hint)


def too_many_groups(by: str | None) -> InputError:
    return InputError(f"--by {by} makes more than {MAX_GROUPS:,} groups", hint="choose a coarser field")


def group_members(codes: Ids, number: int) -> Iterator[tuple[int, Ids | None]]:
    """Yield the number of each group that has rows, with the indices of its rows. If there is only one group, yield
    None in place of all indices.

    codes (n,): the group of each row; number: the number of groups."""
    if number == 1:
        yield 0, None
        return
    for rows in rows_by_kind(codes):
        yield int(codes[rows[0]]), rows


def sort_groups(groups: Iterable[RowGroup]) -> list[RowGroup]:
    """Return the groups in a fixed order. Groups with a number as label come first, by this number, then texts
    alphabetically, and groups without a label last."""
    return sorted(
        groups, key=lambda group: (group.label is None, isinstance(group.label, str), group.label, group.name or "")
    )
