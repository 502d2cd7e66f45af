"""Experiments, their variants, and the variant of each unit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from rlrec.store.database.unit import Row, StoredRows, Unit


class Variant(NamedTuple):
    id: int
    label: str
    policy: str
    policy_id: int
    weight: float


class Experiment(NamedTuple):
    id: int
    name: str
    unit: str
    salt: str
    status: str
    definition: str
    created_at: int
    stopped_at: int | None
    variants: tuple[Variant, ...]

    @property
    def serving(self) -> tuple[Variant, ...]:
        """The variants that serve policies of their own: all but the users of a route outside of its holdout."""
        return tuple(row for row in self.variants if row.policy.endswith(f"@{self.name}/{row.label}"))


_EXPERIMENT = Experiment._fields[:-1]


def all_experiments(unit: Unit) -> list[Experiment]:
    return _load(unit, unit.ask(f"SELECT {', '.join(_EXPERIMENT)} FROM experiment ORDER BY id"))


def by_name(unit: Unit, names: Collection[str], *, lock: bool = False) -> dict[str, Experiment]:
    """The experiments with these names, by name. lock: nobody can stop them until the transaction ends."""
    lock_clause = " FOR SHARE" if lock and unit.postgres else ""
    text = f"SELECT {', '.join(_EXPERIMENT)} FROM experiment WHERE name IN (?*) ORDER BY id{lock_clause}"
    return {experiment.name: experiment for experiment in _load(unit, unit.ask(text, names))}


def _load(unit: Unit, experiments: Sequence[Row]) -> list[Experiment]:
    rows = unit.ask(
        "SELECT variant.experiment_id, variant.id, label, policy.name, variant.policy_id, weight"
        " FROM variant JOIN policy ON policy.id = variant.policy_id"
        " WHERE variant.experiment_id IN (?*) ORDER BY variant.id",
        [row[0] for row in experiments],
    )
    variants: dict[int, list[Variant]] = {}
    for experiment_id, *values in rows:
        variants.setdefault(experiment_id, []).append(Variant(*values))
    return [Experiment._make((*row, tuple(variants.get(row[0], ())))) for row in experiments]


def labels(unit: Unit, variant_ids: Collection[int]) -> dict[int, tuple[str, str]]:
    """The name of each variant: its experiment, and its label."""
    tables = "variant JOIN experiment ON experiment.id = variant.experiment_id"
    rows = unit.ask(f"SELECT variant.id, name, label FROM {tables} WHERE variant.id IN (?*)", variant_ids)
    return StoredRows("variant", ((number, (name, label)) for number, name, label in rows))


def add(unit: Unit, *, name: str, by: str, salt: str, definition: str) -> int | None:
    """Start an experiment: its id, or None where the name is taken."""
    experiment_id = unit.ask_value(
        "INSERT INTO experiment (name, unit, salt, status, definition, created_at)"
        " VALUES (?, ?, ?, 'running', ?, ?) ON CONFLICT (name) DO NOTHING RETURNING id",
        name, by, salt, definition, unit.now,
    )  # fmt: skip
    return None if experiment_id is None else int(experiment_id)


def add_variant(unit: Unit, *, experiment_id: int, label: str, policy_id: int, weight: float) -> int:
    return unit.add("variant", experiment_id=experiment_id, label=label, policy_id=policy_id, weight=weight)


def stop(unit: Unit, experiment_id: int) -> bool:
    """Stop an experiment: whether it was running until now."""
    stopped = "UPDATE experiment SET status = 'stopped', stopped_at = ? WHERE id = ? AND status = 'running'"
    return unit.tell(stopped, unit.now, experiment_id) > 0


def assignments(unit: Unit, experiment_id: int, by: str, unit_ids: Collection[int]) -> dict[int, int]:
    """The variant id of each of these units that was assigned before. by: user or session."""
    text = f"SELECT {by}_id, variant_id FROM assignment WHERE experiment_id = ? AND {by}_id IN (?*)"
    return dict(unit.ask(text, experiment_id, unit_ids))


def assign(unit: Unit, experiment_id: int, by: str, rows: Iterable[tuple[int, int]]) -> None:
    """Store (unit id, variant id), of users or sessions; a unit that was assigned meanwhile keeps its variant."""
    column = f"{by}_id"
    values = [(experiment_id, unit_id, variant_id, unit.now) for unit_id, variant_id in sorted(rows)]
    conflict_clause = f"(experiment_id, {column}) DO NOTHING"
    unit.insert("assignment", ("experiment_id", column, "variant_id", "at"), values, on_conflict=conflict_clause)


def count_units(unit: Unit, experiment_id: int) -> dict[int, int]:
    """How many units were assigned to each variant; a person with several keys is one."""
    merged = "SELECT 1 FROM merged_user m WHERE m.user_id = assignment.user_id"
    counted = f"SELECT variant_id, count(*) FROM assignment WHERE experiment_id = ? AND NOT EXISTS ({merged})"
    return dict(unit.ask(f"{counted} GROUP BY variant_id", experiment_id))


def assignment_times(unit: Unit, experiment_id: int) -> tuple[int, int]:
    """When the first and the last unit were assigned; 0 where none was."""
    times = "SELECT coalesce(min(at), 0), coalesce(max(at), 0) FROM assignment WHERE experiment_id = ?"
    first, last = unit.ask(times, experiment_id)[0]
    return int(first), int(last)
