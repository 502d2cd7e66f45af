"""This module lists the names that complete what a user types: names in a store, and names built into the program."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pkgutil import resolve_name

from rlrec.store import Store, Unit
from rlrec.store.policies import arms, curves, experiments, policies, routes


def _versions(unit: Unit) -> Iterable[str]:
    """Yield the names of all policies, then the name NAME@V of every version."""
    names = {policy.id: policy.name for policy in policies.all_policies(unit)}
    yield from names.values()
    yield from (version.reference for version in policies.versions(unit, names))


IN_STORE: dict[str, Callable[[Unit], Iterable[str]]] = {
    "arm": lambda unit: (arm.key for arm in arms.all_arms(unit)),
    "policy": _versions,
    "route": lambda unit: (change.route for change in routes.newest_changes(unit)),
    "experiment": lambda unit: (experiment.name for experiment in experiments.all_experiments(unit)),
    "reward": lambda unit: (reward.name for reward in policies.rewards(unit)),
    "event": lambda unit: dict.fromkeys(kind for reward in policies.rewards(unit) for kind in reward.weights),
    "curve": lambda unit: dict.fromkeys(curve.name for curve in curves.all_curves(unit)),
}


IN_PROGRAM = {  # registries, loaded when they are needed
    "kind": ["rlrec.policy:KINDS"], "environment": ["rlrec.simulate:ENVIRONMENTS"],
    "estimator": ["rlrec.ope:GROUPS", "rlrec.ope:ESTIMATORS"],
}  # fmt: skip


def stored_names(store: Store, sort: str) -> list[str]:
    """Return all names of one sort of object in the store. sort: a key of `IN_STORE`, such as the word for arms or
    policies."""
    with store.read() as unit:
        return list(IN_STORE[sort](unit))


def program_names(sort: str) -> list[str]:
    """Return the names that are built into the program: of kinds of policies, estimators or environments. sort: which
    of these."""
    return [name for registry in IN_PROGRAM[sort] for name in resolve_name(registry)]
