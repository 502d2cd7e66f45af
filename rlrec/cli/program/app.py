"""This module offers the functions of `rlrec.app` that commands call, and figures, as attributes. A function's module
is imported when the attribute is first used. For example, `app.policy.create` is in `rlrec.app.policies.policy`."""

# mypy: implicit-reexport
# ruff: noqa: F401 (imports for the type checker, which does not see what __getattr__ does)
from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlrec.app import names, opening
    from rlrec.app.experiments import compare, ending, experiment, ramp, route, shadow
    from rlrec.app.judging import best_policy as best_policy
    from rlrec.app.judging import delays, effects, evaluate, exploration, exposure, outcomes, positions, report, status
    from rlrec.app.judging import sweep as sweep
    from rlrec.app.policies import policy, policy_beliefs, rebuild, train, versions
    from rlrec.app.requests import decision, feedback, pipe, recommend, session, settle, user
    from rlrec.app.setup import arm, demo, init, reward, simulate
    from rlrec.app.upkeep import db_copy, db_removals, db_roles, doctor, exclusions, export_log, import_log
    from rlrec.report import figures, html, svg

PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
ROOMS = ("app.requests", "app.setup", "app.policies", "app.experiments", "app.judging", "app.upkeep", "app", "report")


def __getattr__(name: str) -> ModuleType:
    for room in ROOMS:
        if os.path.exists(os.path.join(PACKAGE, *room.split("."), f"{name}.py")):
            module = globals()[name] = import_module(f"rlrec.{room}.{name}")
            return module
    raise AttributeError(f"no use case {name}")
