"""The catalogue: add, import, list, retire and restore arms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlrec import policy as kinds
from rlrec.app.inputs import canonical, lookup
from rlrec.records import Sums
from rlrec.store import Store, Unit
from rlrec.store.database.unit import parse
from rlrec.store.policies import arms, beliefs, policies
from rlrec.times import format_time

HIGH_RATIO = 3  # times the mean reward of the others from which on a prior is high
MIN_PULLS = 100  # pulls by which the others tell their mean


Features = tuple[str, Mapping[str, Any]]  # of an arm, behind its key


@dataclass(frozen=True)
class ArmChanges(Sums):
    """How many arms an import added, gave other features, and left as they were."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0


@dataclass(frozen=True)
class StatusChange:
    """Arms that are retired now, or restored, and how many of them were not before."""

    arms: list[str]
    changed: int


def put(store: Store, groups: Callable[[], Iterable[Sequence[Features]]], *, at_once: bool = True) -> ArmChanges:
    """Add arms, or give stored ones other features: all in one transaction, or a transaction a group."""
    if at_once:
        changes = store.write(
            lambda unit: sum((_put(unit, group) for group in groups()), ArmChanges()), repeatable=True
        )
    else:
        stored = (store.write(partial(_put, group=group), repeatable=True) for group in groups())
        changes = sum(stored, ArmChanges())
    if changes.added:
        _notice_priors(store)
    return changes


def _notice_priors(store: Store) -> None:
    """Say of each policy whose prior puts a new arm far above the others, and how to set it."""
    with store.read() as unit:
        live = policies.live(unit, [policy.name for policy in policies.all_policies(unit)])
        totals = beliefs.totals(unit, {version.id for version, _ in live.values()})
    for name, (version, _) in live.items():
        (alpha, beta), (pulls, reward) = kinds.load(version.policy.kind).prior, totals.get(version.id, (0.0, 0.0))
        if not alpha or version.contextual or pulls < MIN_PULLS:
            continue
        mean, rival_mean = alpha / (alpha + beta), (alpha + reward) / (alpha + beta + pulls)
        if mean >= HIGH_RATIO * rival_mean:
            store.notice(
                f"{name}: a new arm begins with a mean reward of {mean:.2g}, {mean / rival_mean:.2g} times that of the "
                f"others, and may be shown most at first; `rlrec policy create NAME --kind {version.policy.kind} "
                f"--from-log policy={name} --prior-from policy={name}` makes a policy where it begins with theirs"
            )


def _put(unit: Unit, group: Sequence[Features]) -> ArmChanges:
    added, updated = arms.put(unit, {arm: canonical.text(dict(features)) for arm, features in group})
    return ArmChanges(added, updated, len(group) - added - updated)


def retire(store: Store, keys: Sequence[str], *, retired: bool) -> StatusChange:
    """Take arms out of eligibility, or back into it. Raises InputError for one the catalogue lacks."""

    def work(unit: Unit) -> StatusChange:
        stored = arms.ids(unit, keys)
        if missing_keys := [key for key in keys if key not in stored]:
            raise lookup.unknown("arm", missing_keys[0], [arm.key for arm in arms.all_arms(unit)])
        return StatusChange(list(keys), arms.retire(unit, keys, retired=retired))

    return store.write(work, repeatable=True)


def list_arms(store: Store) -> list[dict[str, Any]]:
    """Every arm, retired ones too, in the order in which they were added."""
    with store.read() as unit:
        return [
            {
                "arm": arm.key, "status": "active" if arm.retired_at is None else "retired",
                "features": parse(arm.features, f"arm {arm.key}"), "added_at": format_time(arm.added_at),
                "retired_at": None if arm.retired_at is None else format_time(arm.retired_at),
            }
            for arm in arms.all_arms(unit)
        ]  # fmt: skip
