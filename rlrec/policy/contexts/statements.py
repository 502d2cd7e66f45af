"""This module reads the statements of a request on its arms and on its page. Statements are part of the context of the
request, under names that begin with `@`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlrec.errors import InputError, suggest
from rlrec.policy.beliefs.base import PRICE

ARMS, PAGE = "@arms", "@page"
LOGGED_RULES = "@eligible"  # the rules of a request that took away arms
GROUPS = "@groups"  # the members of groups that page rules name, by the group's name with `@`
STATED_FIELDS = (ARMS, PAGE)
# the last three are written by the tool; PRICE where there is a budget
STATEMENTS = (*STATED_FIELDS, PRICE, LOGGED_RULES, GROUPS)
SCORE, SCORES, FEATURES = STATED_OF_ARM = ("score", "scores", "features")
ARM_FEATURES = f"{ARMS}.{FEATURES}"  # as a field of a context: the features of all arms, by key
PAGE_FIELDS = (PAGE, GROUPS, ARM_FEATURES)  # the fields that rules of a page depend on
LARGEST_SCORE = 1e100  # largest score, whose distance from another is finite at any temperature


def by_arm(context: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Return the values that a context states under a name, by arm. The result is None if the context states no such
    values.

    context: the full context, or a context reduced to the fields that are read; name: the name of the values, where
    `scores.new` means the scores of the ranker `new`."""
    if (values := context.get(f"{ARMS}.{name}")) is not None:
        return dict(values)
    entries = context.get(ARMS, {})
    if name.startswith(f"{SCORES}."):
        name = name.removeprefix(f"{SCORES}.")
        entries = {key: entry.get(SCORES, {}) for key, entry in entries.items()}
    return {key: entry[name] for key, entry in entries.items() if name in entry} or None


def check_names(context: Mapping[str, Any]) -> None:
    """Raise InputError for a name that begins with `@` but is not one that a request may state."""
    for name in context:
        if name.startswith("@") and name not in STATED_FIELDS:
            hint = f"`@` begins {ARMS} and {PAGE}, which a request states of its arms and of its page; rename the field"
            raise InputError(f"context has a field {name[:80]!r}", hint=hint, field=f"context.{name[:80]}")


def check_arms(entries: Any, *, field: str) -> None:
    """Raise InputError unless the entries hold scores and features of arms, by the key of the arm.

    entries: what a request states under `@arms`; field: the name of the field for the error."""
    example = 'write {"KEY": {"score": 1.7, "features": {"price": 9}}}'
    if not isinstance(entries, Mapping):
        raise InputError(f"{ARMS} is {_excerpt(entries)}", hint=example, field=field)
    for key, entry in entries.items():
        path = f"{field}.{key[:80]}"
        if not isinstance(entry, Mapping):
            raise InputError(f"arm {key[:80]!r} is {_excerpt(entry)}", hint=example, field=path)
        if unknown_names := entry.keys() - {*STATED_OF_ARM}:
            name = min(unknown_names)
            hint = suggest(name, list(STATED_OF_ARM)) or example
            raise InputError(f"arm {key[:80]!r} has an unknown {name[:80]!r}", hint=hint, field=f"{path}.{name[:80]}")
        named_scores, features = entry.get(SCORES, {}), entry.get(FEATURES, {})
        if not isinstance(named_scores, Mapping):
            hint = 'write {"new": 1.7, "old": 0.4}'
            message = f"the scores of arm {key[:80]!r} are {_excerpt(named_scores)}"
            raise InputError(message, hint=hint, field=f"{path}.{SCORES}")
        _check_score(entry.get(SCORE, 0), SCORE, key, f"{path}.{SCORE}")
        for name, score in named_scores.items():
            _check_score(score, f"score {name[:80]!r}", key, f"{path}.{SCORES}.{name[:80]}")
        if not isinstance(features, Mapping):
            hint = 'write {"price": 9}'
            message = f"the features of arm {key[:80]!r} are {_excerpt(features)}"
            raise InputError(message, hint=hint, field=f"{path}.{FEATURES}")


def _check_score(score: Any, subject: str, key: str, field: str) -> None:
    if type(score) not in (int, float) or not -LARGEST_SCORE <= score <= LARGEST_SCORE:
        hint = f"a score is a number from {-LARGEST_SCORE:g} to {LARGEST_SCORE:g}"
        raise InputError(f"the {subject} of arm {key[:80]!r} is {_excerpt(score)}", hint=hint, field=field)


def _excerpt(value: Any) -> str:
    """Return a value as JSON, shortened to 40 characters for an error."""
    return json.dumps(value, ensure_ascii=False, default=str)[:40]
