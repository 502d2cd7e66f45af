"""This module finds the decisions that a version learned from. With it, an estimate can say whether it uses decisions
from which its target has learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rlrec import policy as kinds
from rlrec.arrays import Flags
from rlrec.errors import InputError
from rlrec.policy.beliefs.base import Belief, Policy
from rlrec.records import Record, Version
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log.selected import Selection
from rlrec.store.policies import policies


class LearnedFrom(Record):
    """This record describes decisions that a version learned from. selection: the filter of these decisions; mature_at:
    the time at which the windows of their rewards had to be over, None without this condition; window_us: the length of
    these windows; splits: the splits of users (train, tune, gate) to which the decisions belong, None for all."""

    selection: Selection
    mature_at: int | None = None
    window_us: int = 0
    splits: tuple[int, ...] | None = None

    @property
    def columns(self) -> frozenset[str]:
        """Return the names of the columns that `rows` needs and that are not always read from the log."""
        selection = self.selection
        filtered_values = {"split": selection.splits, "variant_id": selection.variant_ids}
        filtered_values |= {"route_id": selection.route_ids, "context_id": selection.context_ids}
        read_columns = {name for name, values in filtered_values.items() if values is not None}
        return frozenset(read_columns if self.splits is None else {*read_columns, "split"})

    def rows(self, slots: Columns) -> Flags:
        """Tell, for each of n rows of the log, whether the version learned from the decision of the row, (n,)."""
        rows = select_rows(slots, self.selection)
        if self.splits is not None:
            rows &= np.isin(slots["split"], self.splits)
        if self.mature_at is not None:
            rows &= slots["imported"] | (self.mature_at - slots["at"] > self.window_us)
        return rows


def select_rows(slots: Columns, selection: Selection) -> Flags:
    """Tell, for each of n rows of the log, whether the selection includes it, (n,). The conditions are those of the SQL
    in `Selection.conditions`."""
    rows = np.ones(len(slots["decision_id"]), np.bool_)
    for name, values in (
        ("policy_id", selection.policy_ids), ("version_id", selection.version_ids), ("split", selection.splits),
        ("variant_id", selection.variant_ids), ("route_id", selection.route_ids),
        ("session_id", selection.session_ids), ("context_id", selection.context_ids),
    ):  # fmt: skip
        if values is not None:
            rows &= np.isin(slots[name], list(values))
    for name, compare, value in (
        ("at", np.greater_equal, selection.since), ("at", np.less, selection.until),
        ("decision_id", np.greater_equal, selection.first_id), ("decision_id", np.less_equal, selection.last_id),
        ("imported", np.equal, selection.imported),
    ):  # fmt: skip
        if value is not None:
            rows &= compare(slots[name], value)
    return rows


def ancestry(unit: Unit, version: Version) -> list[Version]:
    """Return a version and its ancestors, newest first. The parent of a version is the version from which it was
    copied."""
    chain = [version]
    while (parent := chain[-1].parent_id) is not None:
        chain.append(policies.by_id(unit, [parent])[parent])
    return chain


def origin(chain: Sequence[Version]) -> Version:
    """Return the newest ancestor that was created or rebuilt. The belief of a promoted variant is a copy of its belief,
    directly or through variants that were promoted before. chain: the promoted version and its ancestors, from
    `ancestry`."""
    return next(link for link in chain if link.parent_id is None or "rebuilt_from" in link.learned_from)


def fitted_logs(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the records of the logs to which a version was fitted: the log that it was created with, and the log of
    promoted variants. record: what is stored of the version in `learned_from`."""
    return [log for log in (record, record.get("variants", {})) if "selection" in log]


def learned_from(chain: Sequence[Version]) -> list[LearnedFrom]:
    """Return the decisions that a version learned from. They include what the version and its ancestors had learned
    from when they were made. If the version learns online, they also include the decisions of its policy. chain: the
    version and its ancestors, from `ancestry`."""
    version = chain[0]
    initial_logs = started_from(chain)
    if version.status == "frozen" or not learns(version):
        return initial_logs
    first_id = version.since or None
    served_log = Selection(
        policy_ids=[version.policy.id], first_id=first_id, last_id=version.entered_to, imported=False
    )
    return [LearnedFrom(selection=served_log), *initial_logs]


def has_learned(unit: Unit, version: Version, test: str, *, has_omissions: bool = False) -> bool:
    """Tell whether the belief of a version has learned from decisions that pass an SQL test. has_omissions: if True,
    tell instead whether the belief has left out some of these decisions."""
    from rlrec.store.log import selected

    if not kinds.load(version.policy.kind).can_serve or not learns(version):
        return False
    chain = ancestry(unit, version)
    logs = [Selection()] if has_omissions else [log.selection for log in learned_from(chain)]
    ids = [link.id for link in chain]
    return any(selected.any_learned(unit, log, test, ids, is_omitted=has_omissions) for log in logs)


def rebuild_command(version: Version) -> str:
    """Return the command that makes a new version which has not learned from excluded decisions. For a version of a
    variant, the command names the policy from which the variant was copied."""
    is_trained = not kinds.load(version.policy.kind).learns_online and version.policy.kind != "long-term"
    return f"rlrec {'train-pg' if is_trained else 'policy rebuild'} {version.policy.base}"


def started_from(chain: Sequence[Version]) -> list[LearnedFrom]:
    """Return the decisions that versions had learned from when they were made. chain: the versions."""
    return [decisions for ancestor in chain for decisions in _initial_logs(ancestor)]


def make_record(unit: Unit, text: str, log: Selection, *, last_id: int, window_us: int, slots: int) -> dict[str, Any]:
    """Return a record of the log to which a version is fitted, from which `from_log` finds the decisions again. Raises
    InputError if the filter names users or sessions, since their keys would remain in the record when a user is
    forgotten. text: the filter as typed; log: the filter as a selection; last_id: the id of the last decision;
    window_us: the window of the reward; slots: the number of slots."""
    if log.session_ids is not None:
        hint = "`rlrec log exclude` leaves people out of everything that is learned"
        raise InputError("what is learned is recorded with its filter, which names no user or session", hint=hint)
    selection = {name: value for name, value in asdict(log).items() if value is not None and name != "without"}
    return {
        "filter": text, "selection": selection, "last_id": last_id, "now": unit.now, "window_us": window_us,
        "slots": slots,
    }  # fmt: skip


def _initial_logs(version: Version) -> list[LearnedFrom]:
    """Return the decisions that a version had learned from when it was made. They are the log to which it was fitted,
    the log of its prior, and the decisions of the policy whose belief was copied."""
    record = version.learned_from
    logs = [*fitted_logs(record), *fitted_logs(record.get("prior", {}))]
    learned_logs = [from_log(version, log) for log in logs]
    if "policy_id" in record and learns(version):
        last_id = None if "selection" in record else record.get("last_id")
        copied_log = Selection(policy_ids=[record["policy_id"]], last_id=last_id, imported=False)
        # a variant hands over all that its belief holds
        mature_at = None if "variant" in record else version.created_at
        learned_logs.append(LearnedFrom(selection=copied_log, mature_at=mature_at, window_us=version.reward.window_us))
    return learned_logs


def from_log(version: Version, record: Mapping[str, Any]) -> LearnedFrom:
    """Return the decisions of a log to which a version was fitted. record: the record that `make_record` made of the
    log."""
    selection = Selection(**{"last_id": record.get("last_id"), **record["selection"]})
    window = int(record.get("window_us", version.reward.window_us))
    splits = tuple(record["splits"]) if "splits" in record else None
    return LearnedFrom(selection=selection, mature_at=record.get("now"), window_us=window, splits=splits)


def learns(version: Version) -> bool:
    """Tell whether the distribution of a version depends on its belief. For kinds such as `uniform` and `fixed` it does
    not: their beliefs are mere statistics."""
    return depends_on_belief(kinds.make(version.policy.kind, version.policy.params))


def depends_on_belief(policy: Policy) -> bool:
    """Tell whether the distribution of a policy depends on a belief."""
    if policy.is_contextual or policy.stages:
        return policy.is_contextual or any(map(depends_on_belief, policy.stages))
    no_values: Any = np.zeros(0)
    empty_belief = Belief(
        pulls=no_values, reward_sum=no_values, reward_squares=no_values, alpha=no_values, beta=no_values, total=0.0
    )
    return policy.index(empty_belief, context={}) is not None
