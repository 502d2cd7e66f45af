"""This module turns a log filter (`key=value` pairs joined by commas) into a selection of decisions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from rlrec.app.inputs import lookup
from rlrec.errors import InputError, quantity, suggest
from rlrec.store import Unit
from rlrec.store.database.unit import parse as parse_body
from rlrec.store.log import selected, sessions
from rlrec.store.policies import experiments, policies, users
from rlrec.times import format_time, parse_local

FIELD = "field:"  # prefix of a field of the context
KEYS = (
    "policy", "version", "loggers", "experiment", "variant", "route", "since", "until", "split", "user", "session",
    "included",
)  # fmt: skip
# Examples of values that are not names.
EXAMPLES = {
    "version": "2", "loggers": "NAME@V+NAME@V", "since": "2026-01-01", "until": "2026-02-01", "split": "gate",
    "user": "KEY+KEY", "session": "KEY+KEY",
}  # fmt: skip
_QUOTED = r'"(?:[^"\\]|\\.)*"'  # a JSON text, in which no character separates
_PAIR, _VALUE = re.compile(rf'(?:{_QUOTED}|[^",])+'), re.compile(rf'(?:{_QUOTED}|[^"+])+')
_SIDES = re.compile(rf'((?:{_QUOTED}|[^"=])*)(=?)(.*)', re.DOTALL)
ALL = "all"  # or loggers=all: counts every row once, whoever logged it
IN_FILTER = " in the log filter"
SPLITS = ("train", "tune", "gate")  # by the split numbers of sessions


def join_filters(*filters: str | None) -> str:
    """Return a filter of the decisions that pass all of several filters. None and "" select all decisions."""
    return ",".join(filter(None, filters))


def with_loggers(text: str | None, names: Iterable[str]) -> str:
    """Return a filter whose `loggers` are set to certain policies or versions, so that it selects only decisions that
    they served. text: the filter without them, None for all decisions; names: the policies or versions."""
    pairs = parse(text or "") | {"loggers": "+".join(names)}
    pairs.pop(ALL, None)
    return ",".join(f"{key}={value}" for key, value in pairs.items())


def with_since(text: str | None, at: int | None) -> str | None:
    """Return a filter whose `since` is set to a time, or None if it selects all decisions. text: the filter without
    this time, None for all decisions; at: the time, None to leave `since` as it is."""
    pairs = parse(text or "") | ({} if at is None else {"since": format_time(at)})
    return ",".join(key if key == ALL else f"{key}={value}" for key, value in pairs.items()) or None


def parse(text: str) -> dict[str, str]:
    """Split a filter into its pairs of key and value, as typed. The word ALL has no value. Raises InputError for an
    unknown or repeated key."""
    pairs: dict[str, str] = {}
    if _PAIR.sub("", text).strip(","):
        raise InputError(f"a quote is not closed in the log filter {text!r}", hint='write "a, b", and \\" for a quote')
    for pair in filter(None, (pair.strip() for pair in _PAIR.findall(text))):
        if pair in (ALL, f"loggers={ALL}"):
            pairs[ALL] = ""
            continue
        sides = _SIDES.fullmatch(pair)
        key, sign, value = (side.strip() for side in sides.groups()) if sides else (pair, "", "")
        is_field = key.startswith(FIELD)
        if is_field:
            key = FIELD + json.dumps(_unquote(key.removeprefix(FIELD)), ensure_ascii=False)
        if not (is_field or key in KEYS) or not sign or not value or key == f'{FIELD}""':
            shape = f"write {key}={EXAMPLES.get(key, 'NAME')}" if key in KEYS else suggest(key, list(KEYS))
            hint = (
                shape or f"write KEY=VALUE, joined by commas; keys: {', '.join(KEYS)}, {FIELD}{key if sign else 'NAME'}"
            )
            raise InputError(f"{pair!r} is not a log filter", hint=hint)
        if key in pairs:
            way_out = f"write {key}={pairs[key]}+{value}" if "+" in EXAMPLES.get(key, "") else None
            raise InputError(f"the log filter names {key} twice", hint=way_out)
        pairs[key] = value
    return pairs


def _unquote(word: str) -> str:
    """Return a word without its quotes, if it is quoted as JSON. Raises InputError for a broken quote."""
    try:
        return str(json.loads(word)) if word.startswith('"') else word
    except ValueError:
        raise InputError(f"{word} is not a quoted text, in the log filter", hint="write it as JSON does") from None


def texts_of(value: str) -> list[str]:
    """Split the value of a filter into several texts at each `+`."""
    return [_unquote(word.strip()) for word in _VALUE.findall(value)]


def _scalar(word: str) -> Any:
    """Return the value of a word: a number, true, false, null or quoted text of JSON is decoded; any other word is a
    text."""
    try:
        value = json.loads(word, parse_constant=str)
    except ValueError:
        return word
    return word if isinstance(value, dict | list) else value


def selection(unit: Unit, text: str | None) -> selected.Selection:
    """Return the selection of decisions that a filter describes (None: all), without those that stored exclusions leave
    out. Raises InputError for names that the store lacks."""
    pairs = parse(text or "")
    log = replace(select(unit, pairs), without=exclusion_tests(unit, ignored_names=pairs.get("included")))
    if log.without:
        unit.note_exclusions(partial(_exclusion_sentence, unit, log))
    return log


def _exclusion_sentence(unit: Unit, log: selected.Selection) -> str | None:
    """Return a sentence that says how many of the selected decisions the stored exclusions leave out, or None if they
    leave out none."""
    n_all, n_left = (selected.extent(unit, rows).decisions for rows in (replace(log, without=()), log))
    counts = f"{n_all - n_left:,} of {quantity(n_all, 'decision')}"
    hint = f"`rlrec log list` names them, --log included={ALL} brings them back"
    return f"exclusions leave out {counts}: {hint}" if n_left < n_all else None


def exclusion_tests(unit: Unit, *, ignored_names: str | None = None, scope: str = "") -> tuple[str, ...]:
    """Return an SQL test on a decision `d` for each stored exclusion. The test is true for decisions that the exclusion
    leaves out. ignored_names: names of exclusions to ignore; scope: an SQL test that all decisions of interest pass,
    for speed if they are few."""
    exclusions = {exclusion.name: exclusion for exclusion in selected.all_exclusions(unit)}
    names = {*exclusions} if ignored_names == ALL else {*texts_of(ignored_names or "")}
    for name in sorted(names - exclusions.keys()):
        raise lookup.unknown("exclusion", name, exclusions, clause=IN_FILTER, hint="`rlrec log list` shows them")
    return tuple(excluding_test(unit, exclusions[name], scope=scope) for name in exclusions if name not in names)


def unexcluded_tests(unit: Unit) -> list[str]:
    """Return SQL tests on a decision `d`. All of them are true if no stored exclusion leaves the decision out."""
    return selected.Selection(without=exclusion_tests(unit)).conditions()


def excluding_test(unit: Unit, exclusion: selected.Exclusion, *, scope: str = "") -> str:
    """Return an SQL test on a decision `d` that is true if an exclusion leaves the decision out. scope: an SQL test
    that all decisions of interest pass, for speed if they are few."""
    log = select(unit, parse(exclusion.filter), scope=scope, is_stored=True)
    if exclusion.by_unit:
        log = replace(log, session_ids=selected.session_ids(unit, exclusion.id, scope=scope))
    return f"({' AND '.join(log.conditions()) or '1 = 1'})"


def select(unit: Unit, pairs: Mapping[str, str], *, scope: str = "", is_stored: bool = False) -> selected.Selection:
    """Return the selection of decisions that a parsed filter describes. scope: an SQL test that all decisions of
    interest pass, for speed if they are few; is_stored: whether the filter is stored. A stored filter may name a field
    that no context has."""
    versions = _version_ids(unit, pairs)
    if "loggers" in pairs:
        logger_ids = {lookup.version(unit, name)[0].id for name in pairs["loggers"].split("+")}
        versions = sorted(logger_ids if versions is None else logger_ids & {*versions})
    since, until = (_parse_time(pairs[key]) if key in pairs else None for key in ("since", "until"))
    route_ids = [lookup.route(unit, pairs["route"], clause=IN_FILTER).route_id] if "route" in pairs else None
    variant_ids = _variant_ids(unit, pairs) if "experiment" in pairs or "variant" in pairs else None
    if "experiment" in pairs and "variant" not in pairs:
        experiment = lookup.experiment(unit, pairs["experiment"])
        # all decisions of the route while the experiment ran
        if (route := lookup.route_of_holdout(unit, experiment)) is not None:
            variant_ids, route_ids = None, [route.route_id]
            since = max(since or 0, experiments.assignment_times(unit, experiment.id)[0])
            until = min(filter(None, (until, experiment.stopped_at)), default=None)
    return selected.Selection(
        policy_ids=_policy_ids(unit, pairs["policy"]) if "policy" in pairs else None,
        version_ids=versions,
        variant_ids=variant_ids,
        since=since,
        until=until,
        splits=[_split_number(pairs["split"])] if "split" in pairs else None,
        route_ids=route_ids,
        session_ids=_session_ids(unit, pairs) if {"user", "session"} & pairs.keys() else None,
        context_ids=_context_ids(unit, pairs, scope, is_stored) if any(FIELD in key for key in pairs) else None,
    )


def _session_ids(unit: Unit, pairs: Mapping[str, str]) -> list[int]:
    """Return the ids of the sessions that a filter names by keys, users or both. If by both, a session must match
    both."""
    ids_by_key: dict[str, set[int]] = {}
    if "user" in pairs:
        ids = user_ids(unit, pairs["user"])
        ids_by_key["user"] = {row[0] for row in unit.ask("SELECT id FROM session WHERE user_id IN (?*)", ids)}
    if "session" in pairs:
        keys = texts_of(pairs["session"])
        sessions_by_key = sessions.find(unit, keys)
        _refuse_unknown("session", [key for key in keys if key not in sessions_by_key])
        ids_by_key["session"] = {session.id for session in sessions_by_key.values()}
    return sorted(set.intersection(*ids_by_key.values()))


def user_ids(unit: Unit, value: str) -> list[int]:
    """Return the ids of the users that the value of a filter names."""
    keys = texts_of(value)
    main_keys = users.main_keys(unit, keys) if unit.folder is None else {}
    ids = sessions.user_ids(unit, [main_keys.get(key, key) for key in keys])
    _refuse_unknown("user", [key for key in keys if main_keys.get(key, key) not in ids])
    return sorted({*ids.values()})


def _refuse_unknown(noun: str, keys: list[str]) -> None:
    for key in keys:
        hint = 'a key with a comma, "+" or a quote stands in quotes; `rlrec session list` shows keys'
        raise InputError(f"unknown {noun} {key!r} in the log filter", hint=hint)


def _context_ids(unit: Unit, pairs: Mapping[str, str], scope: str, is_stored: bool) -> list[int]:
    """Return the ids of the contexts with the values that a filter asks for. scope: an SQL test that all decisions of
    interest pass, for speed if they are few; is_stored: whether the filter is stored, and may name a field that no
    context has."""
    allowed_values = {
        json.loads(key.removeprefix(FIELD)): {_value_key(_scalar(word.strip())) for word in _VALUE.findall(value)}
        for key, value in pairs.items() if FIELD in key
    }  # fmt: skip
    names, ids = set[str](), list[int]()
    test = f" WHERE id IN (SELECT d.context_id FROM decision d WHERE {scope})" if scope else ""
    for rows in unit.portions(f"SELECT id, body FROM context{test}"):
        for key, body in rows:
            fields = parse_body(body, f"body of context {key}")
            names.update(fields)
            if all(name in fields and _value_key(fields[name]) in values for name, values in allowed_values.items()):
                ids.append(key)
    for name in () if is_stored else sorted(allowed_values.keys() - names):
        raise lookup.unknown("field", name, names, clause=IN_FILTER, hint="no context has this field")
    return ids


def _value_key(value: Any) -> tuple[bool, Any]:
    """Return a form of a JSON value that is equal for equal numbers and equal texts. It differs for true and 1."""
    return isinstance(value, bool), str(value) if isinstance(value, dict | list) else value


def _split_number(name: str) -> int:
    if name not in SPLITS:
        raise lookup.unknown("split", name, SPLITS, clause=IN_FILTER, hint=f"one of {', '.join(SPLITS)}")
    return SPLITS.index(name)


def _policy_ids(unit: Unit, reference: str) -> list[int]:
    """Return the ids of a policy and of its copies that are variants of experiments. If the reference has a version
    number, return the id of the policy alone."""
    name, number = lookup.split_reference(reference)
    stored_policies = policies.all_policies(unit)
    ids = [policy.id for policy in stored_policies if name == policy.name or (number is None and name == policy.base)]
    if not ids:
        raise lookup.unknown_policy(unit, name, clause=IN_FILTER)
    return ids


def _version_ids(unit: Unit, pairs: Mapping[str, str]) -> list[int] | None:
    """Return the ids of the versions that a filter names by number, of the named policy or of all policies; None if the
    filter names no version."""
    policy, number = pairs.get("policy"), pairs.get("version")
    if policy is not None and lookup.split_reference(policy)[1] is not None:
        version = lookup.version(unit, policy)[0]
        if number not in (None, str(version.number)):
            raise InputError(f"the log filter names version {number} beside {policy}", hint="leave out one of them")
        return [version.id]
    if number is None:
        return None
    if not (number.isascii() and number.isdigit()):
        raise InputError(f"version {number!r} in the log filter is not a number")
    policy_ids = [owner.id for owner in policies.all_policies(unit)] if policy is None else _policy_ids(unit, policy)
    return [version.id for version in policies.versions(unit, policy_ids) if version.number == int(number)]


def _variant_ids(unit: Unit, pairs: Mapping[str, str]) -> list[int]:
    """Return the ids of the variants that a filter names by label, of the named experiment or of all experiments."""
    stored_experiments = experiments.all_experiments(unit)
    name = pairs.get("experiment")
    if name is not None and all(experiment.name != name for experiment in stored_experiments):
        raise lookup.unknown(
            "experiment", name, [experiment.name for experiment in stored_experiments], clause=IN_FILTER
        )
    variants = [
        variant
        for experiment in stored_experiments
        if name in (None, experiment.name)
        for variant in experiment.serving
    ]
    label = pairs.get("variant")
    if label is not None and all(variant.label != label for variant in variants):
        hint = suggest(label, [variant.label for variant in variants])
        raise InputError(f"unknown variant {label!r} in the log filter", hint=hint)
    return [variant.id for variant in variants if label in (None, variant.label)]


def _parse_time(text: str) -> int:
    try:
        return parse_local(text)
    except InputError as error:
        error.message = f"{error.message} (in the log filter)"
        raise
