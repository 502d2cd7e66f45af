"""Statements of a request on its arms and on its page: part of its context, under names that begin with `@`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlrec.errors import InputError, suggest
from rlrec.policy.beliefs.base import PRICE

ARMS, PAGE = "@arms", "@page"
LOGGED_RULES = "@eligible"  # what a request said that took arms from it
STATED = (ARMS, PAGE)
STATEMENTS = (*STATED, PRICE, LOGGED_RULES)  # the last two by the tool itself, the price for a policy with a budget
SCORE, FEATURES = "score", "features"  # of an arm
SCORES, ARM_FEATURES = f"{ARMS}.{SCORE}", f"{ARMS}.{FEATURES}"  # as fields of a context: those of all arms, by key
LARGEST = 1e100  # a score whose distance from another is still finite at any temperature


def by_arm(context: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The values that a context, or the fields of one that are read, states under a name, by arm; None where it states
    nothing."""
    if (values := context.get(f"{ARMS}.{name}")) is not None:
        return dict(values)
    return {key: entry[name] for key, entry in context.get(ARMS, {}).items() if name in entry} or None


def check_names(context: Mapping[str, Any]) -> None:
    """Raises InputError for a name that begins with `@` and is none that a request may state."""
    for name in context:
        if name.startswith("@") and name not in STATED:
            hint = f"`@` begins {ARMS} and {PAGE}, which a request states of its arms and of its page; rename the field"
            raise InputError(f"context has a field {name[:80]!r}", hint=hint, field=f"context.{name[:80]}")


def check_arms(entries: Any, *, field: str) -> None:
    """Raises InputError unless these are scores and features of arms, by key."""
    example = 'write {"KEY": {"score": 1.7, "features": {"price": 9}}}'
    if not isinstance(entries, Mapping):
        raise InputError(f"{ARMS} is {_written(entries)}", hint=example, field=field)
    for key, entry in entries.items():
        path = f"{field}.{key[:80]}"
        if not isinstance(entry, Mapping):
            raise InputError(f"arm {key[:80]!r} is {_written(entry)}", hint=example, field=path)
        if unknown := entry.keys() - {SCORE, FEATURES}:
            name = min(unknown)
            hint = suggest(name, [SCORE, FEATURES]) or example
            raise InputError(f"arm {key[:80]!r} has an unknown {name[:80]!r}", hint=hint, field=f"{path}.{name[:80]}")
        score, features = entry.get(SCORE, 0), entry.get(FEATURES, {})
        if type(score) not in (int, float) or not -LARGEST <= score <= LARGEST:
            hint = f"a score is a number from {-LARGEST:g} to {LARGEST:g}"
            raise InputError(f"the score of arm {key[:80]!r} is {_written(score)}", hint=hint, field=f"{path}.{SCORE}")
        if not isinstance(features, Mapping):
            hint = 'write {"price": 9}'
            message = f"the features of arm {key[:80]!r} are {_written(features)}"
            raise InputError(message, hint=hint, field=f"{path}.{FEATURES}")


def _written(value: Any) -> str:
    """A value as JSON, as far as an error shows it."""
    return json.dumps(value, ensure_ascii=False, default=str)[:40]
