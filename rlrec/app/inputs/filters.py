"""A log FILTER (`key=value` pairs joined by commas) as a selection of decisions."""

from __future__ import annotations

from collections.abc import Iterable

from rlrec.app.inputs import lookup
from rlrec.errors import InputError, suggest
from rlrec.store import Unit
from rlrec.store.log.selected import Selection
from rlrec.store.policies import experiments, policies
from rlrec.times import parse as parse_time

KEYS = ("policy", "version", "loggers", "experiment", "variant", "route", "since", "until", "split")
# Values that are no names.
EXAMPLES = {
    "version": "2", "loggers": "NAME@V+NAME@V", "since": "2026-01-01", "until": "2026-02-01", "split": "gate",
}  # fmt: skip
ALL = "all"  # loggers=all, or in short all
IN_FILTER = " in the log filter"
SPLITS = ("train", "tune", "gate")  # by the numbers that sessions have


def join_filters(*filters: str | None) -> str:
    """The filter of decisions that all of these select; None and "" select all."""
    return ",".join(filter(None, filters))


def is_pooled(text: str | None) -> bool:
    """Whether the rows of all loggers count once, whoever logged them."""
    return parse(text or "").get("loggers") == ALL


def with_loggers(text: str | None, names: Iterable[str]) -> str:
    """The filter of the decisions that a filter selects and some versions served."""
    pairs = parse(text or "") | {"loggers": "+".join(names)}
    return ",".join(f"{key}={value}" for key, value in pairs.items())


def parse(text: str) -> dict[str, str]:
    """The pairs of a filter. Raises InputError for an unknown key or one given twice."""
    pairs: dict[str, str] = {}
    for pair in filter(None, (pair.strip() for pair in text.split(","))):
        full_pair = f"loggers={ALL}" if pair == ALL else pair
        key, sign, value = (piece.strip() for piece in full_pair.partition("="))
        if key not in KEYS or not sign or not value:
            shape = f"write {key}={EXAMPLES.get(key, 'NAME')}" if key in KEYS else suggest(key, list(KEYS))
            hint = shape or f"write KEY=VALUE, joined by commas; keys: {', '.join(KEYS)}"
            raise InputError(f"{pair!r} is not a log filter", hint=hint)
        if key in pairs:
            raise InputError(f"the log filter names {key} twice")
        pairs[key] = value
    return pairs


def selection(unit: Unit, text: str | None) -> Selection:
    """The decisions that a filter means; no filter means all. Raises InputError for names the store lacks."""
    pairs = parse(text or "")
    versions = _versions(unit, pairs)
    if (names := pairs.get("loggers", ALL)) != ALL:
        loggers = {lookup.version(unit, name)[0].id for name in names.split("+")}
        versions = sorted(loggers if versions is None else loggers & {*versions})
    since, until = (_time(pairs[key]) if key in pairs else None for key in ("since", "until"))
    route_ids = [lookup.route(unit, pairs["route"], clause=IN_FILTER).route_id] if "route" in pairs else None
    variant_ids = _variants(unit, pairs) if "experiment" in pairs or "variant" in pairs else None
    if "experiment" in pairs and "variant" not in pairs:
        experiment = lookup.experiment(unit, pairs["experiment"])
        if (route := lookup.route_of_holdout(unit, experiment)) is not None:  # all of the route while it ran
            variant_ids, route_ids = None, [route.route_id]
            since = max(since or 0, experiments.assignment_times(unit, experiment.id)[0])
            until = min(filter(None, (until, experiment.stopped_at)), default=None)
    return Selection(
        policy_ids=_policies(unit, pairs["policy"]) if "policy" in pairs else None,
        version_ids=versions,
        variant_ids=variant_ids,
        since=since,
        until=until,
        splits=[_split(pairs["split"])] if "split" in pairs else None,
        route_ids=route_ids,
    )


def _split(name: str) -> int:
    if name not in SPLITS:
        raise lookup.unknown("split", name, SPLITS, clause=IN_FILTER, hint=f"one of {', '.join(SPLITS)}")
    return SPLITS.index(name)


def _policies(unit: Unit, reference: str) -> list[int]:
    """The ids of a policy and of the variants that experiments made of it; with a number, of the policy alone."""
    name, number = lookup.split(reference)
    stored = policies.all_policies(unit)
    ids = [policy.id for policy in stored if name == policy.name or (number is None and name == policy.base)]
    if not ids:
        raise lookup.unknown_policy(unit, name, clause=IN_FILTER)
    return ids


def _versions(unit: Unit, pairs: dict[str, str]) -> list[int] | None:
    """The ids of the versions with one number, of all policies or of the one that is named; None where any counts."""
    policy, number = pairs.get("policy"), pairs.get("version")
    if policy is not None and lookup.split(policy)[1] is not None:
        version = lookup.version(unit, policy)[0]
        if number not in (None, str(version.number)):
            raise InputError(f"the log filter names version {number} beside {policy}", hint="leave out one of them")
        return [version.id]
    if number is None:
        return None
    if not (number.isascii() and number.isdigit()):
        raise InputError(f"version {number!r} in the log filter is not a number")
    policy_ids = [owner.id for owner in policies.all_policies(unit)] if policy is None else _policies(unit, policy)
    return [version.id for version in policies.versions(unit, policy_ids) if version.number == int(number)]


def _variants(unit: Unit, pairs: dict[str, str]) -> list[int]:
    """The ids of the variants with one label, of all experiments or of the one that is named."""
    stored = experiments.all_experiments(unit)
    name = pairs.get("experiment")
    if name is not None and all(experiment.name != name for experiment in stored):
        raise lookup.unknown("experiment", name, [experiment.name for experiment in stored], clause=IN_FILTER)
    variants = [variant for experiment in stored if name in (None, experiment.name) for variant in experiment.serving]
    label = pairs.get("variant")
    if label is not None and all(variant.label != label for variant in variants):
        hint = suggest(label, [variant.label for variant in variants])
        raise InputError(f"unknown variant {label!r} in the log filter", hint=hint)
    return [variant.id for variant in variants if label in (None, variant.label)]


def _time(text: str) -> int:
    try:
        return parse_time(text)
    except InputError as error:
        error.message = f"{error.message} (in the log filter)"
        raise
