"""The use cases, each imported when a command asks for it: `app.policy.create` is `rlrec.app.policy.create`; and the
figures."""

# mypy: implicit-reexport
# ruff: noqa: F401, I001 (imports for the type checker, which does not see what __getattr__ does)
from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlrec.app import (
        arm, compare, db_copy, db_forget, db_prune, decision, delays, demo, doctor, evaluate, experiment, exploration,
        export_log, exposure, feedback, import_log, init, names, outcomes, policy, policy_beliefs, positions, rebuild,
        recommend, report, reward, route, session, settle, shadow, simulate, status, study, train, versions,
    )  # fmt: skip
    from rlrec.report import curves, figures


def __getattr__(name: str) -> ModuleType:
    return import_module(f"rlrec.{'report' if name in ('curves', 'figures') else 'app'}.{name}")
