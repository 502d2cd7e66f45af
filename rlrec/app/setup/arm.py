"""This module manages the catalogue: it adds, imports, lists, retires and restores arms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from rlrec import policy as kinds
from rlrec.app.inputs import arm_names, canonical, lookup
from rlrec.errors import InputError
from rlrec.records import Record, Sums
from rlrec.store import Store, Unit
from rlrec.store.database.unit import parse
from rlrec.store.policies import arms, beliefs, policies
from rlrec.times import format_time

HIGH_RATIO = 3  # ratio to the mean reward of the other arms from which on a prior is high
MIN_PULLS = 100  # pulls of the others from which on their mean is known


GROUP_FORM = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"


class ArmLine(NamedTuple):
    """This record is an arm in the form in which users write it. A field that is None, or a time that is missing, does
    not change what is stored."""

    key: str
    features: Mapping[str, Any] | None = None
    groups: Sequence[str] | None = None
    times: Mapping[str, int | None] = {}


class ArmChanges(Sums, eq=True):
    """This record counts the arms that an import added, changed, and left unchanged."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0


class StatusChange(Record, kw_only=False):
    """This record is the result of retiring or restoring arms. arms: the keys that were given; changed: the number of
    arms whose status changed."""

    arms: list[str]
    changed: int


def put(store: Store, groups: Callable[[], Iterable[Sequence[Any]]], *, at_once: bool = True) -> ArmChanges:
    """Add arms, or change stored arms. groups: a function that returns groups of arms, each arm as the fields of an
    ArmLine; at_once: whether all groups are stored in one transaction, instead of one transaction per group."""
    if at_once:
        changes = store.write(
            lambda unit: sum((_put_group(unit, group) for group in groups()), ArmChanges()), repeatable=True
        )
    else:
        changes_by_group = (store.write(partial(_put_group, group=group), repeatable=True) for group in groups())
        changes = sum(changes_by_group, ArmChanges())
    if changes.added:
        _notice_priors(store)
    return changes


def _notice_priors(store: Store) -> None:
    """Print a notice for each policy whose prior mean is far above the mean reward of its arms, so that a new arm would
    be shown most. The notice says how to set the prior."""
    with store.read() as unit:
        live_versions = policies.live(unit, [policy.name for policy in policies.all_policies(unit)])
        totals = beliefs.totals(unit, {version.id for version, _ in live_versions.values()})
    for name, (version, _) in live_versions.items():
        policy = kinds.make(version.policy.kind, version.params)
        (alpha, beta), (pulls, reward) = policy.prior, totals.get(version.id, (0.0, 0.0))
        if not alpha or version.is_contextual or pulls < MIN_PULLS:
            continue
        mean, rival_mean = alpha / (alpha + beta), (alpha + reward) / (alpha + beta + pulls)
        if mean >= HIGH_RATIO * rival_mean:
            store.notice(
                f"{name}: a new arm begins with a mean reward of {mean:.2g}, {mean / rival_mean:.2g} times that of the "
                f"others, and may be shown most at first; `rlrec policy create NAME --kind {version.policy.kind} "
                f"--from-log policy={name} --prior-from policy={name}` makes a policy where it begins with theirs"
            )


def _put_group(unit: Unit, group: Sequence[Any]) -> ArmChanges:
    lines = [ArmLine(*fields) for fields in group]
    for line in lines:
        _check_groups(unit, line)
    n_added, n_updated = arms.put(
        unit,
        {line.key: None if line.features is None else canonical.text(dict(line.features)) for line in lines},
        times={line.key: line.times for line in lines},
        groups={line.key: line.groups for line in lines if line.groups is not None},
    )
    return ArmChanges(n_added, n_updated, len(group) - n_added - n_updated)


def _check_groups(unit: Unit, line: ArmLine) -> None:
    """Raise InputError if a group of the arm has a name that requests cannot use, or if a group and an arm would have
    the same name."""
    for name in line.groups or ():
        if re.fullmatch(GROUP_FORM, name) is None:
            hint = "up to 64 letters, digits, '_', '.' and '-', the first a letter or a digit: requests write @NAME"
            raise InputError(f"{name[:70]!r} is no name of a group", hint=hint, field="groups")
        if arms.ids(unit, [f"@{name}"]):
            raise InputError(f"an arm has the key '@{name}'", hint="choose another name of a group", field="groups")
    if line.key.startswith("@") and arms.members(unit, [line.key[1:]]):
        raise InputError(f"{line.key!r} stands for the arms of a group", hint="choose another key", field="arm")


def retire(store: Store, keys: Sequence[str], *, is_retired: bool) -> StatusChange:
    """Make arms ineligible, or eligible again if `is_retired` is false. Raises InputError for an arm that is not in the
    catalogue. keys: the keys of the arms."""

    def work(unit: Unit) -> tuple[StatusChange, list[str]]:
        stored_ids = arms.ids(unit, keys)
        if missing_keys := [key for key in keys if key not in stored_ids]:
            raise lookup.unknown("arm", missing_keys[0], [arm.key for arm in arms.all_arms(unit)])
        change = StatusChange(list(keys), arms.retire(unit, keys, is_retired=is_retired))
        restored_arms = [] if is_retired else arms.by_keys(unit, keys)
        return change, [arm.key for arm in restored_arms if arm.status(unit.now) == "ended"]

    change, ended_arms = store.write(work, repeatable=True)
    if ended_arms:
        store.notice(f"{ended_arms[0]} has ended: `rlrec arm add {ended_arms[0]} --until TIME` gives it a later end")
    return change


def list_arms(store: Store, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return all arms, including retired arms, in the order in which they were added. names: if not empty, only these
    arms are returned; @GROUP stands for the arms of a group."""

    def stamp(time: int | None) -> str | None:
        return None if time is None else format_time(time)

    with store.read() as unit:
        groups, chosen_ids = arms.groups(unit), arm_names.find(unit, names) if names else None
        return [
            {
                "arm": arm.key, "status": arm.status(unit.now), "features": parse(arm.features, f"arm {arm.key}"),
                "added_at": format_time(arm.added_at), "retired_at": stamp(arm.retired_at),
                "groups": groups.get(arm.id, []), "from": stamp(arm.eligible_from), "until": stamp(arm.eligible_until),
            }
            for arm in arms.all_arms(unit)
            if chosen_ids is None or arm.id in chosen_ids
        ]  # fmt: skip
