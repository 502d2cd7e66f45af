"""Logs that lie in a folder: what answers for the tables of a log in place of the store."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar, cast

from rlrec.errors import RlrecError
from rlrec.store.database.unit import Unit

P = ParamSpec("P")
R = TypeVar("R")
_TABLES = (
    "decision|slot|event|users|session|visit|context|candidate_list|route_decision|decision_features|slot_set|"
    "logged_support|team_draft"
)
_ROWS = rf'\b(?:FROM|JOIN) "?(?:{_TABLES})\b'


class LogFolder:
    """The log of a unit that reads a folder (`Unit.folder`): it has a method for each function that is `of_log`."""

    def refuse(self, text: str) -> None:
        """Raises RlrecError for a query of rows of the log: the store has those of another one."""
        if re.search(_ROWS, text):
            raise RlrecError(f"a folder cannot answer {text[:200]}", hint="give the log of the store")


def of_log(function: Callable[Concatenate[Unit, P], R]) -> Callable[Concatenate[Unit, P], R]:
    """The query of a log, which the folder of a unit answers where the unit has one."""

    @wraps(function)
    def answer(unit: Unit, *args: P.args, **named: P.kwargs) -> R:
        if unit.folder is None:
            return function(unit, *args, **named)
        result: R = getattr(unit.folder, function.__name__)(*args, **named)
        return result

    return cast(Callable[Concatenate[Unit, P], R], answer)
