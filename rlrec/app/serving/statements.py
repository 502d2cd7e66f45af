"""This module reads what requests state about their arms (scores and features) and about their slates (page rules).
These statements become part of the context, under `@arms` and `@page`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlrec.app.inputs import arm_names
from rlrec.app.serving.requests import Request
from rlrec.errors import InputError, suggest
from rlrec.policy.contexts.statements import ARMS, PAGE, STATED_OF_ARM, check_arms, check_names
from rlrec.policy.slates.page_rules import add_typed as add_typed
from rlrec.policy.slates.page_rules import parse
from rlrec.store import Unit
from rlrec.store.policies import arms

if TYPE_CHECKING:
    from rlrec.app.inputs.arm_rules import Narrowing


def take_statements(requests: Sequence[Request | InputError]) -> Sequence[Request | InputError]:
    """Move the statements about arms and pages of each request into its context, and return the requests. Their arms
    are then plain keys. A request with a wrong statement is replaced by its InputError."""
    return [request if isinstance(request, InputError) else _take_statements(request) for request in requests]


def _take_statements(request: Request) -> Request | InputError:
    try:
        keys, entries = _split_arms(request.arms or ())
        context, field = dict(request.context), "arms"
        check_names(context)
        if entries and ARMS in context:
            hint = "state scores and features in one of them"
            raise InputError(f"arms are objects, and the context has {ARMS}, too", hint=hint, field="arms")
        if ARMS in context:
            entries, field = context[ARMS], f"context.{ARMS}"
        check_arms(entries, field=field)
        has_group = any(key.startswith("@") for key in keys)
        unlisted_arms = entries.keys() - set(keys) if request.arms is not None and not has_group else ()
        if unlisted_arms:
            message = (
                f"the context describes arm {min(unlisted_arms)[:80]!r}, which is not among the arms of the request"
            )
            raise InputError(message, hint="list it, or leave it out", field=field)
        if request.page and PAGE in context:
            message = f"page is given, and the context has {PAGE}, too"
            raise InputError(message, hint="state the rules in one of them", field="page")
        rules = parse(request.page or context.pop(PAGE, {})).to_json()
    except InputError as error:
        return error
    if entries:
        context[ARMS] = entries
    if rules:
        context[PAGE] = rules
    fields = {name: getattr(request, name) for name in Request.__slots__}
    return Request(**{**fields, "context": context, "arms": None if request.arms is None else keys, "page": {}})


def _split_arms(arms: Sequence[Any]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Split the arms of a request. Returns a list of their keys, and the stated scores and features, by key."""
    keys, entries = list[str](), dict[str, dict[str, Any]]()
    for arm in arms:
        if isinstance(arm, str):
            keys.append(arm)
            continue
        keys.append(arm.arm)
        stated_values = {name: getattr(arm, name) for name in STATED_OF_ARM}
        if entry := {name: value for name, value in stated_values.items() if value is not None and value != {}}:
            entries[arm.arm] = entry
    return keys, entries


def check_named_arms(
    unit: Unit,
    request: Request,
    listed_ids: Sequence[int],
    groups: Mapping[str, Sequence[str]],
    narrowing: Narrowing | None,
) -> list[str]:
    """Return the page rules of a request that have no effect, since all arms that they name were taken away by what the
    person was shown or did. Raises InputError if a rule names no arm that is active and left by the lists of arms of
    the request and its policy.

    listed_ids: the ids, ascending, of the active arms in the request's list; groups: the keys of the arms of each
    group of arms; narrowing: the arms that rules leave, None without such rules."""
    rules = parse(request.context[PAGE]).names
    members = {name: groups.get(name, (name,)) for name in rules}
    stored_ids = arms.ids(unit, {key for keys in members.values() for key in keys})
    superset, lacking = (listed_ids, frozenset[int]()) if narrowing is None else (narrowing.superset, narrowing.lacking)

    def is_left(key: str) -> bool:
        arm = stored_ids.get(key, -1)
        index = bisect_left(superset, arm)
        return arm not in lacking and index < len(superset) and superset[index] == arm

    for name, rule in rules.items():
        if not any(map(is_left, members[name])):
            texts = [f"{status}: {names}" for status, names in arm_names.inactive_texts(unit, members[name]).items()]
            lists = "`arms`" if narrowing is None else narrowing.lists
            hint = "; ".join(texts) or f"left out by {lists}"
            if name not in {*stored_ids, *groups}:
                hint = suggest(name, arms.keys_like(unit, name)) or "`rlrec arm list` shows all"
            subject = f"group {name!r}, of which no arm is" if name in groups else f"arm {name!r}, which is not"
            raise InputError(f"{rule} of the request names {subject} eligible", hint=hint, field="page")
    past_arms = frozenset[int]() if narrowing is None else narrowing.past_arms
    return [
        rule
        for name, rule in rules.items()
        if past_arms.issuperset(stored_ids[key] for key in members[name] if is_left(key))
    ]
