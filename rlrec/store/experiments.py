"""Experiments, their variants, and who was assigned to which."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from rlrec.store import tables as t
from rlrec.store.unit import Unit


@dataclass(frozen=True, kw_only=True)
class Variant:
    id: int
    label: str
    policy: str
    policy_id: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class Experiment:
    id: int
    name: str
    unit: str
    salt: str
    status: str
    definition: str
    created_at: int
    stopped_at: int | None
    variants: tuple[Variant, ...]


_EXPERIMENT = ("id", "name", "unit", "salt", "status", "definition", "created_at", "stopped_at")


def every(unit: Unit) -> list[Experiment]:
    return _load(unit, sa.select(*(t.experiment.c[name] for name in _EXPERIMENT)).order_by(t.experiment.c.id))


def named(unit: Unit, names: Collection[str], *, lock: bool = False) -> dict[str, Experiment]:
    """Of the names given, those known; locked against being stopped meanwhile if asked."""
    statement = sa.select(*(t.experiment.c[name] for name in _EXPERIMENT)).where(t.experiment.c.name.in_(names))
    if lock and unit.postgres:
        statement = statement.with_for_update(read=True)
    return {experiment.name: experiment for experiment in _load(unit, statement.order_by(t.experiment.c.id))}


def _load(unit: Unit, statement: sa.Select[tuple[object, ...]]) -> list[Experiment]:
    found = unit.rows(statement)
    variant = t.variant.c
    rows = unit.many(
        sa.select(variant.experiment_id, variant.id, variant.label, t.policy.c.name, variant.policy_id, variant.weight)
        .join(t.policy, t.policy.c.id == variant.policy_id)
        .order_by(variant.id),
        variant.experiment_id,
        [row[0] for row in found],
    )
    variants: dict[int, list[Variant]] = {}
    for owner, key, label, policy, policy_id, weight in rows:
        variants.setdefault(owner, []).append(
            Variant(id=key, label=label, policy=policy, policy_id=policy_id, weight=weight)
        )
    return [
        Experiment(**dict(zip(_EXPERIMENT, row, strict=True)), variants=tuple(variants.get(row[0], [])))
        for row in found
    ]


def labels(unit: Unit, variant_ids: Collection[int]) -> dict[int, tuple[str, str]]:
    """(experiment, label) of each variant."""
    joined = t.variant.join(t.experiment, t.experiment.c.id == t.variant.c.experiment_id)
    statement = sa.select(t.variant.c.id, t.experiment.c.name, t.variant.c.label).select_from(joined)
    return {row[0]: (row[1], row[2]) for row in unit.many(statement, t.variant.c.id, variant_ids)}


def add(unit: Unit, *, name: str, by: str, salt: str, definition: str) -> int | None:
    """A running experiment: its id, or None where the name is taken."""
    statement = sa.text(
        "INSERT INTO experiment (name, unit, salt, status, definition, created_at)"
        " VALUES (:name, :by, :salt, 'running', :definition, :now) ON CONFLICT (name) DO NOTHING RETURNING id"
    )
    values = {"name": name, "by": by, "salt": salt, "definition": definition, "now": unit.now}
    made = unit.value(statement, values)
    return None if made is None else int(made)


def add_variant(unit: Unit, *, experiment_id: int, label: str, policy_id: int, weight: float) -> int:
    return unit.add(t.variant, experiment_id=experiment_id, label=label, policy_id=policy_id, weight=weight)


def stop(unit: Unit, experiment_id: int) -> bool:
    """Stop an experiment: whether it was running until now."""
    running = (t.experiment.c.id == experiment_id) & (t.experiment.c.status == "running")
    return unit.run(sa.update(t.experiment).where(running).values(status="stopped", stopped_at=unit.now)) > 0


def assigned(unit: Unit, experiment: Experiment, unit_ids: Collection[int]) -> dict[int, int]:
    """The variant id of each unit that was assigned before."""
    column = t.assignment.c[f"{experiment.unit}_id"]
    statement = sa.select(column, t.assignment.c.variant_id).where(t.assignment.c.experiment_id == experiment.id)
    return dict(unit.many(statement, column, unit_ids))


def assign(unit: Unit, experiment: Experiment, rows: Iterable[tuple[int, int]]) -> None:
    """Remember (unit id, variant id); a unit that was assigned meanwhile keeps what it has."""
    column = f"{experiment.unit}_id"
    values = [(experiment.id, unit_id, variant_id, unit.now) for unit_id, variant_id in sorted(rows)]
    known = f"(experiment_id, {column}) DO NOTHING"
    unit.insert(t.assignment, ("experiment_id", column, "variant_id", "at"), values, known=known)


def count_units(unit: Unit, experiment_id: int) -> dict[int, int]:
    """How many units were assigned to each variant."""
    assignment = t.assignment.c
    statement = sa.select(assignment.variant_id, sa.func.count()).where(assignment.experiment_id == experiment_id)
    return dict(unit.rows(statement.group_by(assignment.variant_id)))
