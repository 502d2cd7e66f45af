"""Groups of rows for `--by`: by what the log says of them, or by a field of their context."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from rlrec.app.evaluation.contexts import Contexts
from rlrec.app.evaluation.loggers import Loggers
from rlrec.app.inputs import canonical
from rlrec.arrays import Ids
from rlrec.errors import InputError, suggest
from rlrec.store import Unit, experiments, policies
from rlrec.store.bulk import Columns
from rlrec.store.reader import ABSENT
from rlrec.times import written

FIELDS = {
    "position": "position", "policy": "policy_id", "version": "version_id", "variant": "variant_id", "day": "at",
    "arm": "arm_id",
}  # fmt: skip
MOST = 1_000
DAY_US = 86_400_000_000


class Grouping:
    """Rows by group; `None` is the one group of an evaluation without `--by`."""

    def __init__(self, unit: Unit, by: str | None, *, keys: Mapping[int, str], loggers: Loggers) -> None:
        self.unit, self.by, self.keys, self.loggers = unit, by, keys, loggers
        self.labels: dict[Any, Any] = {None: None} if by is None else {}

    @property
    def field(self) -> str | None:
        """The field of the context that it reads."""
        return None if self.by is None or self.by in FIELDS else self.by

    def split(self, slots: Columns, contexts: Contexts) -> Iterator[tuple[Any, Ids | None]]:
        """The groups of some rows, and which rows; None means all of them. Raises InputError beyond 1,000 groups."""
        if self.by is None:
            yield None, None
            return
        codes, names = self._by_context(contexts) if self.by not in FIELDS else self._by_column(slots)
        order = np.argsort(codes, kind="stable")
        ends = np.searchsorted(codes[order], np.arange(len(names) + 1))
        for place, (name, label) in enumerate(names):
            self.labels.setdefault(name, label)
            if len(self.labels) > MOST:
                raise InputError(f"--by {self.by} makes more than {MOST:,} groups", hint="choose a coarser field")
            if ends[place] < ends[place + 1]:
                yield name, order[ends[place] : ends[place + 1]]

    def check(self, names: Collection[str]) -> None:
        """Raises InputError if no context of the log had the field. names: of fields that contexts had."""
        if self.field is not None and self.field not in names:
            near = suggest(self.field, [*FIELDS, *sorted(names)])
            hint = near or f"--by takes {', '.join(FIELDS)}, or a field of the context"
            raise InputError(f"no context of the log has the field {self.by!r}", hint=hint)

    def _by_context(self, contexts: Contexts) -> tuple[Ids, list[tuple[Any, Any]]]:
        assert self.by is not None
        codes, values = contexts.coded(self.by, canonical.text)
        return codes, [(canonical.text(value), _shown(value)) for value in values]

    def _by_column(self, slots: Columns) -> tuple[Ids, list[tuple[Any, Any]]]:
        assert self.by is not None
        column = slots[FIELDS[self.by]]
        values, codes = np.unique(column // DAY_US if self.by == "day" else column, return_inverse=True)
        if len(values) > MOST:
            raise InputError(f"--by {self.by} makes more than {MOST:,} groups", hint="choose a coarser field")
        labels = self._labels(values)
        names = dict.fromkeys(labels[value] for value in values.tolist())  # a policy and its variants are one group
        place = {name: number for number, name in enumerate(names)}
        same = np.array([place[labels[value]] for value in values.tolist()], np.int64)
        return same[codes], [(name, name) for name in names]

    def _labels(self, values: Ids) -> dict[int, Any]:
        wanted = values.tolist()
        if self.by == "arm":
            return {value: self.keys[value] for value in wanted}
        if self.by == "day":
            return {value: written(value * DAY_US)[:10] for value in wanted}
        if self.by == "version":
            known = self.loggers.known(values)
            return {value: f"{known[value].policy.name}@{known[value].number}" for value in wanted}
        if self.by == "policy":
            return self._policies(wanted)
        if self.by == "variant":
            names = experiments.labels(self.unit, [value for value in wanted if value != ABSENT])
            return {value: "/".join(names[value]) if value in names else None for value in wanted}
        return {value: value for value in wanted}

    def _policies(self, wanted: list[int]) -> dict[int, Any]:
        shown = {policy.id: policy.display_name for policy in policies.all_policies(self.unit)}
        return {value: shown[value] for value in wanted}

    def ordered(self) -> list[Any]:
        """The groups in a fixed order: numbers by size, texts by letter, none last."""
        return sorted(self.labels, key=lambda name: (*_rank(self.labels[name]), repr(name)))


def _rank(label: Any) -> tuple[int, float, str]:
    if label is None:
        return 2, 0.0, ""
    if isinstance(label, int | float):
        return 0, float(label), ""
    return 1, 0.0, str(label)


def _shown(value: Any) -> Any:
    return canonical.text(value) if isinstance(value, dict | list) else value
