"""This module finds policies, versions, rewards and experiments by the names that users give. Its errors for unknown
names suggest similar ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING

from rlrec import policy as kinds
from rlrec.errors import Conflict, InputError, suggest
from rlrec.records import Head, Reward, Version
from rlrec.store import Unit
from rlrec.store.log import settings
from rlrec.store.policies import policies, routes

if TYPE_CHECKING:
    from rlrec.store.policies.curves import Curve
    from rlrec.store.policies.experiments import Experiment

HOLDOUT_OF = "holdout_of"  # key in the definition of an experiment: the route whose holdout it is
# similar names that are sought for a group of lines: each search compares a name with all stored ones
MAX_SUGGESTIONS = 10


def split_reference(reference: str) -> tuple[str, int | None]:
    """Split NAME or NAME@V into the policy's name and the version's number (None for NAME). The name of a variant's
    policy, POLICY@EXPERIMENT/VARIANT, is not split."""
    name, _, number = reference.rpartition("@")
    if name and number.isascii() and number.isdigit() and len(number) < 18 and number == str(int(number)):
        return name, int(number)
    return reference, None


def resolve(
    unit: Unit, references: Collection[str], *, built_in: Collection[str] = ()
) -> dict[str, tuple[Version, Head] | InputError]:
    """Return, for each reference, its version (the live version for NAME) and the head of its policy. If a reference
    names nothing, return an error in their place. built_in: names such as `uniform`, which have a meaning of their own
    if no policy has the name; the error for such a name has no hint."""
    split_references = {reference: split_reference(reference) for reference in references}
    live_versions = policies.live(unit, {name for name, _ in split_references.values()})
    numbered_policies = {
        live_versions[name][0].policy.id
        for name, number in split_references.values()
        if number is not None and name in live_versions
    }
    rows = policies.versions(unit, numbered_policies) if numbered_policies else ()
    versions = {(version.policy.name, version.number): version for version in rows}
    results: dict[str, tuple[Version, Head] | InputError] = {}
    suggestions_left = iter(range(MAX_SUGGESTIONS))
    for reference, (name, number) in sorted(split_references.items()):
        if name not in live_versions:
            is_first = reference not in built_in and next(suggestions_left, None) is not None
            make_error = partial(unknown_policy, unit) if is_first else partial(unknown, "policy", names=())
            results[reference] = make_error(name=name, field="policy")
        elif number is None:
            results[reference] = live_versions[name]
        elif (name, number) in versions:
            results[reference] = versions[name, number], live_versions[name][1]
        else:
            results[reference] = InputError(
                f"policy {name} has no version {number}", hint=f"`rlrec policy show {name}` lists its versions"
            )
    return results


def version(unit: Unit, reference: str) -> tuple[Version, Head]:
    """Return the version of a reference, and the head of its policy. Raises InputError if nothing has this name."""
    result = resolve(unit, [reference])[reference]
    if isinstance(result, InputError):
        raise result
    return result


def unknown_policy(unit: Unit, name: str, *, clause: str = "", field: str | None = None) -> InputError:
    """Return the error for a name that no policy has. If a route has this name, the error says so."""
    if name in routes.by_name(unit, [name]):
        hint = f"write route={name}" if clause else f"`rlrec route show {name}` names what it serves"
        return InputError(f"{name!r} is a route, not a policy{clause and ',' + clause}", hint=hint, field=field)
    names = [
        *(policy.name for policy in policies.all_policies(unit)),
        *(change.route for change in routes.newest_changes(unit)),
    ]
    hint = "`rlrec policy list` shows them, `rlrec policy create` makes one"
    return unknown("policy", name, names, clause=clause, hint=hint, field=field)


def route(unit: Unit, name: str, *, lock: bool = False, clause: str = "") -> routes.RouteChange:
    """Return the newest change of a route. Raises InputError if there is no such route. lock: whether to keep others
    from changing the route until the transaction ends; clause: words for the place where the name was typed, for the
    error."""
    newest = routes.lock(unit, name) if lock else routes.by_name(unit, [name]).get(name)
    if newest is None:
        names = [change.route for change in routes.newest_changes(unit)]
        raise unknown("route", name, names, clause=clause, hint="`rlrec route create` makes one")
    return newest


def refuse_route_name(unit: Unit, name: str) -> None:
    """Raise Conflict if a route has the name of a new policy, since callers name policies and routes in the same way.
    Until the transaction ends, no route can take the name."""
    settings.lock(unit)
    if name in routes.by_name(unit, [name]):
        raise Conflict(f"{name!r} is the name of a route", hint="choose another name", field="policy")


def experiment_names(unit: Unit) -> set[str]:
    """Return the names of all experiments in the store, and of those whose variants occur in an imported log."""
    from rlrec.store.policies import experiments

    imported_names = (policy.name.partition("@")[2].partition("/")[0] for policy in policies.all_policies(unit))
    return {*(row.name for row in experiments.all_experiments(unit)), *filter(None, imported_names)}


def reward(unit: Unit, name: str | None) -> Reward:
    """Return a reward definition by its name. Without a name, return the reward that all live policies learn, or the
    reward `default` if they learn different rewards. If some live policies have served, the others do not count. Raises
    InputError if no reward has the name."""
    if name is None:
        from rlrec.sentences import DEFAULT_REWARD

        versions = policies.live(unit, [policy.name for policy in policies.all_policies(unit)]).values()
        pairs = [
            (version.reward.name, head.seq) for version, head in versions if kinds.load(version.policy.kind).can_serve
        ]
        learned_names = {name for name, seq in pairs if seq} or {name for name, _ in pairs}
        name = learned_names.pop() if len(learned_names) == 1 else DEFAULT_REWARD
    definitions = {definition.name: definition for definition in policies.rewards(unit)}
    if name not in definitions:
        raise unknown("reward", name, definitions)
    return definitions[name]


def experiment(unit: Unit, name: str) -> Experiment:
    """Return the experiment with a name. Raises InputError if nothing has this name."""
    from rlrec.store.policies import experiments

    experiments_by_name = experiments.by_name(unit, [name])
    if name not in experiments_by_name:
        raise unknown("experiment", name, [experiment.name for experiment in experiments.all_experiments(unit)])
    return experiments_by_name[name]


def compared_with(experiment: Experiment, label: str | None) -> Experiment:
    """Return the experiment with the variant `label` moved to the front, so that the other variants are compared with
    it. Raises InputError if there is no such variant, or if the experiment is the holdout of a route and `label` is not
    its first variant."""
    if label is None:
        return experiment
    labels = [variant.label for variant in experiment.variants][: 1 if is_holdout(experiment) else None]
    if label not in labels:
        hint = f"it has {', '.join(labels)}"
        raise InputError(f"experiment {experiment.name} has no variant {label!r} to compare with", hint=hint)
    return experiment._replace(variants=tuple(sorted(experiment.variants, key=lambda row: row.label != label)))


def route_of_holdout(unit: Unit, experiment: Experiment) -> routes.RouteChange | None:
    """Return the newest change of the route whose holdout an experiment is, or None if the experiment is no holdout."""
    return route(unit, experiment.declaration[HOLDOUT_OF]) if is_holdout(experiment) else None


def is_holdout(experiment: Experiment) -> bool:
    """Tell whether an experiment is the holdout of a route."""
    return HOLDOUT_OF in experiment.declaration


def curve(unit: Unit, reference: str) -> Curve:
    """Return the position curve with a reference: NAME@N for number N, or NAME for the newest curve of this name.
    Raises InputError if there is no such curve."""
    from rlrec.store.policies import curves

    stored_curve = curves.by_name(unit, reference)
    if stored_curve is None:
        names = [curve.reference for curve in curves.all_curves(unit)]
        names += [name.partition("@")[0] for name in names]
        raise unknown("position curve", reference, names, hint="`rlrec position list` shows them")
    return stored_curve


def refuse_running_variant(unit: Unit, version: Version) -> None:
    """Raise InputError if the policy of a version is a variant of a running experiment, since running experiments never
    change."""
    from rlrec.store.policies import experiments

    for experiment in experiments.all_experiments(unit):
        variants = {variant.policy_id for variant in experiment.serving}
        if experiment.status == "running" and version.policy.id in variants:
            raise InputError(
                f"{version.policy.name} is a variant of the running experiment {experiment.name}",
                hint=f"stop it with `rlrec experiment stop {experiment.name}`, then start another one",
            )


def unknown(
    noun: str, name: str, names: Iterable[str], *, clause: str = "", hint: str | None = None, field: str | None = None
) -> InputError:
    """Return the error for a name that does not exist. Its hint is a similar name, if there is one. noun: the kind of
    thing; names: the existing names; clause: words for the place where the name was typed."""
    hint = suggest(name, list(names)) or hint or f"`rlrec {noun} list` shows them"
    return InputError(f"unknown {noun} {name!r}{clause}", hint=hint, field=field)
