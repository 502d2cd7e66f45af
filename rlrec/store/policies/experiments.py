"""Queries here store experiments, with their variants and phases, and the variant to which each user or session is
assigned."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from rlrec.store.database.unit import Row, StoredRows, Unit, parse, to_text
from rlrec.store.log import decisions
from rlrec.times import DAY_US

DRAWS, MOVES, FROZEN = "draws", "moves", "frozen"  # the modes of a phase


class Phase(NamedTuple):
    """This record is a phase of an experiment, which begins at `at` and ends when the next phase begins. weights: the
    weight of each variant, by the label of the variant."""

    at: int
    mode: str
    weights: Mapping[str, float]


class Variant(NamedTuple):
    """This record is a variant of an experiment. weight: the weight of the variant in the newest phase."""

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
    layer: str | None
    parts: str | None
    variants: tuple[Variant, ...]
    phase_at: int  # when the newest phase began; 0 where it is the first phase
    mode: str

    @property
    def declaration(self) -> dict[str, Any]:
        """Return the definition of the experiment as a dictionary."""
        return parse(self.definition, f"definition of experiment {self.name}")

    @property
    def state(self) -> str:
        """Return the state of the experiment: `running`, `stopped`, or `frozen` if it runs but takes no new users or
        sessions."""
        return FROZEN if self.status == "running" and self.mode == FROZEN else self.status

    @property
    def serving(self) -> tuple[Variant, ...]:
        """Return the variants that serve a policy of their own. In the holdout of a route, only the variant of the
        held-out users is such a variant; the other users get what the route serves."""
        return tuple(row for row in self.variants if row.policy.endswith(f"@{self.name}/{row.label}"))


_EXPERIMENTS = f"SELECT {', '.join(Experiment._fields[:-3])} FROM experiment"


def all_experiments(unit: Unit) -> list[Experiment]:
    return _load_experiments(unit, unit.ask(f"{_EXPERIMENTS} ORDER BY id"))


def by_name(unit: Unit, names: Collection[str], *, lock: bool = False, holdouts: bool = False) -> dict[str, Experiment]:
    """Return the experiments that have these names, by name.

    lock: whether to keep others from stopping these experiments, or from beginning a phase, until the transaction
    ends; holdouts: whether to include all running holdouts of routes."""
    lock_clause = " FOR SHARE" if lock and unit.postgres else ""
    holdout_clause = " OR (status = 'running' AND id IN (SELECT holdout_id FROM route))" if holdouts else ""
    text = f"{_EXPERIMENTS} WHERE name IN (?*){holdout_clause} ORDER BY id{lock_clause}"
    return {experiment.name: experiment for experiment in _load_experiments(unit, unit.ask(text, names))}


def _load_experiments(unit: Unit, experiments: Sequence[Row]) -> list[Experiment]:
    rows = unit.ask(
        "SELECT variant.experiment_id, phase.at, phase.mode, phase.weights, variant.id, label, policy.name,"
        " variant.policy_id, weight FROM variant JOIN policy ON policy.id = variant.policy_id LEFT JOIN phase"
        " ON phase.id = (SELECT max(id) FROM phase p WHERE p.experiment_id = variant.experiment_id)"
        " WHERE variant.experiment_id IN (?*) ORDER BY variant.id",
        [row[0] for row in experiments],
    )
    variants: dict[int, list[Variant]] = {}
    phases = dict[int, tuple[int, str]]()
    for experiment_id, phase_at, mode, weights, *values in rows:
        variant = Variant(*values)
        if phase_at is not None:
            phases[experiment_id] = phase_at, mode
            variant = variant._replace(weight=_weights(weights)[variant.label])
        variants.setdefault(experiment_id, []).append(variant)
    return [
        Experiment._make((*row, tuple(variants.get(row[0], ())), *phases.get(row[0], (0, DRAWS))))
        for row in experiments
    ]


def _weights(text: str) -> Mapping[str, float]:
    return StoredRows("phase", parse(text, "the weights of a phase").items())


def phases(unit: Unit, experiment: Experiment) -> list[Phase]:
    """Return all phases of an experiment, oldest first."""
    first_weights = unit.ask("SELECT label, weight FROM variant WHERE experiment_id = ? ORDER BY id", experiment.id)
    rows = unit.ask("SELECT at, mode, weights FROM phase WHERE experiment_id = ? ORDER BY id", experiment.id)
    later_phases = (Phase(at, mode, _weights(weights)) for at, mode, weights in rows)
    return [Phase(experiment.created_at, DRAWS, dict(first_weights)), *later_phases]


def phase_of_time(phases: Sequence[Phase], at: int) -> Phase:
    """Return the phase of an experiment that was in force at a time. phases: all phases of the experiment, oldest
    first."""
    return phases[bisect_right(phases, at, lo=1, key=attrgetter("at")) - 1]


def begin_phase(unit: Unit, experiment_id: int, weights: Mapping[str, float], *, moves: bool = False) -> None:
    """Begin a phase in which the variants of new users or sessions are drawn with other weights. weights: the weight of
    each variant, by label.

    moves: whether users or sessions that already have a variant may move to a later one. With the new weights, each
    variant gets a range of hashes. A user moves if the hash of the user is in the range of a later variant. If the
    weight of the last variant rises, this variant thus takes users from the others, and no user leaves it."""
    _add_phase(unit, experiment_id, MOVES if moves else DRAWS, weights)


def freeze(unit: Unit, experiment: Experiment) -> None:
    """Begin a phase in which an experiment takes no new users or sessions."""
    _add_phase(unit, experiment.id, FROZEN, {variant.label: variant.weight for variant in experiment.variants})


def _add_phase(unit: Unit, experiment_id: int, mode: str, weights: Mapping[str, float]) -> None:
    if unit.postgres:  # transactions that draw variants lock this row, too
        unit.ask("SELECT id FROM experiment WHERE id = ? FOR NO KEY UPDATE", experiment_id)
    newest_query = "SELECT coalesce(max(at), 0) FROM {} WHERE experiment_id = ?"
    last_at = max(unit.ask_value(newest_query.format(table), experiment_id) for table in ("assignment", "phase"))
    at = max(unit.now, last_at + 1, (decisions.newest_time(unit) or 0) + 1)
    unit.add("phase", experiment_id=experiment_id, at=at, mode=mode, weights=to_text(dict(weights)))


def labels(unit: Unit, variant_ids: Collection[int]) -> dict[int, tuple[str, str]]:
    """Return two names for each variant, by variant id: the name of the experiment, and the label of the variant."""
    tables = "variant JOIN experiment ON experiment.id = variant.experiment_id"
    rows = unit.ask(f"SELECT variant.id, name, label FROM {tables} WHERE variant.id IN (?*)", variant_ids)
    return StoredRows("variant", ((number, (name, label)) for number, name, label in rows))


def add(
    unit: Unit, *, name: str, by: str, salt: str, definition: str, layer: str | None, parts: Mapping[str, Any] | None
) -> int | None:  # fmt: skip
    """Start an experiment and return its id. Return None if an experiment with this name exists.

    by: what is assigned to variants, `user` or `session`; definition: JSON of the experiment's definition; layer:
    the name of a layer (experiments that share no user or session), or None; parts: the parts of the layer that the
    experiment takes, or None."""
    experiment_id = unit.ask_value(
        "INSERT INTO experiment (name, unit, salt, status, definition, created_at, layer, parts)"
        " VALUES (?, ?, ?, 'running', ?, ?, ?, ?) ON CONFLICT (name) DO NOTHING RETURNING id",
        name, by, salt, definition, unit.now, layer, None if parts is None else to_text(dict(parts)),
    )  # fmt: skip
    return None if experiment_id is None else int(experiment_id)


def add_variant(unit: Unit, *, experiment_id: int, label: str, policy_id: int, weight: float) -> int:
    return unit.add("variant", experiment_id=experiment_id, label=label, policy_id=policy_id, weight=weight)


def stop(unit: Unit, experiment_id: int) -> bool:
    """Stop an experiment, and tell whether it was running."""
    update = "UPDATE experiment SET status = 'stopped', stopped_at = ? WHERE id = ? AND status = 'running'"
    return unit.tell(update, unit.now, experiment_id) > 0


def assignments(unit: Unit, experiment_id: int, by: str, unit_ids: Collection[int]) -> dict[int, int]:
    """Return the variant id of each of these users or sessions, by the id of the user or session. Users or sessions
    without a variant are left out. by: what the ids stand for, `user` or `session`."""
    text = f"SELECT {by}_id, variant_id FROM assignment WHERE experiment_id = ? AND {by}_id IN (?*)"
    return dict(unit.ask(text, experiment_id, unit_ids))


def units_elsewhere(unit: Unit, experiment: Experiment, by: str, unit_ids: Collection[int]) -> set[int]:
    """Return the ids of the users or sessions that were assigned earlier to another running experiment of the same
    layer. Experiments of one layer share no user, but users who are merged can be in several of them.

    by: what the ids stand for, `user` or `session`."""
    join = f"assignment mine ON mine.experiment_id = ? AND mine.{by}_id = a.{by}_id"
    earlier_test = "(mine.id IS NULL OR a.at < mine.at OR (a.at = mine.at AND a.experiment_id < mine.experiment_id))"
    text = (
        f"SELECT a.{by}_id FROM experiment e JOIN assignment a ON a.experiment_id = e.id LEFT JOIN {join}"
        f" WHERE e.layer = ? AND e.id <> ? AND e.status = 'running' AND a.{by}_id IN (?*) AND {earlier_test}"
    )
    return {row[0] for row in unit.ask(text, experiment.id, experiment.layer, experiment.id, unit_ids)}


def assign(unit: Unit, experiment: Experiment, by: str, rows: Iterable[tuple[int, int]]) -> None:
    """Store the variants of users or sessions. A user or session that has a variant already keeps it, with one
    exception: in a phase that moves users or sessions (see `begin_phase`), a variant is replaced by one with a larger
    id.

    by: what is assigned, `user` or `session`; rows: pairs (id of the user or session, variant id)."""
    column = f"{by}_id"
    values = [(experiment.id, unit_id, variant_id, unit.now) for unit_id, variant_id in sorted(rows)]
    conflict_clause = f"(experiment_id, {column}) DO NOTHING"
    if experiment.mode == MOVES:
        changes = "(variant_id, at) = (excluded.variant_id, excluded.at)"
        is_later = "assignment.variant_id < excluded.variant_id"
        conflict_clause = f"(experiment_id, {column}) DO UPDATE SET {changes} WHERE {is_later}"
    unit.insert("assignment", ("experiment_id", column, "variant_id", "at"), values, on_conflict=conflict_clause)


def count_units(unit: Unit, experiment_id: int) -> dict[int, int]:
    """Return how many users or sessions are assigned to each variant, by variant id. A person with several keys counts
    as one user."""
    merged_row = "SELECT 1 FROM merged_user m WHERE m.user_id = assignment.user_id"
    query = f"SELECT variant_id, count(*) FROM assignment WHERE experiment_id = ? AND NOT EXISTS ({merged_row})"
    return dict(unit.ask(f"{query} GROUP BY variant_id", experiment_id))


def count_mixed_users(unit: Unit, experiment_id: int) -> int:
    """Return how many persons were served by two variants of an experiment because two of their keys were merged only
    afterwards."""
    tables = "assignment p JOIN merged_user m ON m.person_id = p.user_id JOIN assignment a ON a.user_id = m.user_id"
    tests = "p.experiment_id = ? AND a.experiment_id = p.experiment_id AND a.variant_id <> p.variant_id"
    return int(unit.ask_value(f"SELECT count(DISTINCT p.user_id) FROM {tables} WHERE {tests}", experiment_id))


def count_visitors(unit: Unit, by: str, *, since: int) -> int:
    """Return how many persons had a visit since a time. If `by` is `session`, return how many sessions had a visit."""
    unit_id = "session_id" if by == "session" else "coalesce(user_id, -session_id)"
    visits = "visit JOIN session ON session.id = session_id"
    return int(unit.ask_value(f"SELECT count(DISTINCT {unit_id}) FROM {visits} WHERE last_at >= ?", since))


def split_by_day(unit: Unit, experiment: Experiment) -> list[tuple[list[float], list[list[int]]]]:
    """Return a pair for each phase: the weights of the variants, and a list of counts for each day. The counts tell how
    many users or sessions of this phase had been assigned to each variant by the end of the day. A person with several
    keys counts once. The result is empty for an experiment in which units were moved to other variants."""
    all_phases, splits = phases(unit, experiment), list[tuple[list[float], list[list[int]]]]()
    if any(phase.mode == MOVES for phase in all_phases):
        return []
    merged_row = "SELECT 1 FROM merged_user m WHERE m.user_id = assignment.user_id"
    query = (
        f"SELECT at / {DAY_US} AS day, variant_id, count(*) FROM assignment WHERE experiment_id = ? AND at >= ?"
        f" AND at < ? AND NOT EXISTS ({merged_row}) GROUP BY day, variant_id ORDER BY day"
    )
    ends = [*(phase.at for phase in all_phases[1:]), unit.now + DAY_US]
    for phase, ended_at in zip(all_phases, ends, strict=True):
        begun_at = 0 if phase is all_phases[0] else phase.at
        days, units = dict[int, list[int]](), dict.fromkeys((variant.id for variant in experiment.variants), 0)
        for day, variant_id, count in unit.ask(query, experiment.id, begun_at, ended_at):
            units[variant_id] += count
            days[day] = [*units.values()]
        splits.append(([phase.weights[variant.label] for variant in experiment.variants], [*days.values()]))
    return splits


def assignment_times(unit: Unit, experiment_id: int) -> tuple[int, int]:
    """Return the times of the first and of the last assignment of a user or session to a variant. Both are 0 if none
    was assigned."""
    times = "SELECT coalesce(min(at), 0), coalesce(max(at), 0) FROM assignment WHERE experiment_id = ?"
    first_at, last_at = unit.ask(times, experiment_id)[0]
    return int(first_at), int(last_at)
