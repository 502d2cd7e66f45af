"""Requests that state scores and features of their arms, and rules of their page: these become part of the context,
under `@arms` and `@page`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from rlrec.app.serving.requests import Request
from rlrec.errors import InputError, suggest
from rlrec.policy.contexts.statements import ARMS, PAGE, STATED_OF_ARM, check_arms, check_names
from rlrec.policy.slates.page_rules import parse
from rlrec.store import Unit
from rlrec.store.policies import arms


def take_statements(requests: Sequence[Request | InputError]) -> Sequence[Request | InputError]:
    """The requests with keys alone as their arms, and with what they state of these in their contexts."""
    return [request if isinstance(request, InputError) else _take(request) for request in requests]


def _take(request: Request) -> Request | InputError:
    try:
        keys, entries = _split(request.arms or ())
        context, field = dict(request.context), "arms"
        check_names(context)
        if entries and ARMS in context:
            hint = "state scores and features in one of them"
            raise InputError(f"arms are objects, and the context has {ARMS}, too", hint=hint, field="arms")
        if ARMS in context:
            entries, field = context[ARMS], f"context.{ARMS}"
        check_arms(entries, field=field)
        has_group = any(key.startswith("@") for key in keys)
        unlisted = entries.keys() - set(keys) if request.arms is not None and not has_group else ()
        if unlisted:
            message = f"the context describes arm {min(unlisted)[:80]!r}, which is not among the arms of the request"
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


def _split(arms: Sequence[Any]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The keys of arms, and what is stated of each."""
    keys, entries = list[str](), dict[str, dict[str, Any]]()
    for arm in arms:
        if isinstance(arm, str):
            keys.append(arm)
            continue
        keys.append(arm.arm)
        stated = {name: getattr(arm, name) for name in STATED_OF_ARM}
        if entry := {name: value for name, value in stated.items() if value is not None and value != {}}:
            entries[arm.arm] = entry
    return keys, entries


def check_named_arms(unit: Unit, request: Request, catalogue: Sequence[int]) -> None:
    """Raises InputError where a rule of the page of a request names an arm that is unknown, not in the catalogue (ids,
    ascending), or left out by the request itself. What other rules leave out lets it rest."""
    page = parse(request.context[PAGE])
    named = {key: f"pin {position}={key}" for position, key in page.pin.items()}
    named |= {key: f"least {key}={share}" for key, share in page.least.items()}
    stored = arms.ids(unit, named)
    for key, rule in named.items():
        arm, listed = stored.get(key, -1), request.arms
        index = bisect_left(catalogue, arm)
        is_served = index < len(catalogue) and catalogue[index] == arm
        has_group = any(name.startswith("@") for name in listed or ())
        if not is_served or key in (request.block or ()) or not (listed is None or has_group or key in listed):
            hint = "it is retired, not listed in `arms`, or blocked"
            near = suggest(key, arms.keys_like(unit, key)) if key not in stored else None
            message = f"{rule} of the request names arm {key!r}, which is not eligible"
            raise InputError(message, hint=near or hint, field="page")
