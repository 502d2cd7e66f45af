"""The use cases, each imported when a command asks for it: `app.policy.create` is that of
`rlrec.app.policies.policy`; and the
figures."""

# mypy: implicit-reexport
# ruff: noqa: F401 (imports for the type checker, which does not see what __getattr__ does)
from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlrec.app import names
    from rlrec.app.experiments import compare, experiment, route, shadow
    from rlrec.app.judging import delays, evaluate, exploration, exposure, outcomes, positions, report, status
    from rlrec.app.policies import policy, policy_beliefs, rebuild, train, versions
    from rlrec.app.requests import decision, feedback, recommend, session, settle
    from rlrec.app.setup import arm, demo, init, reward, simulate, study
    from rlrec.app.upkeep import db_copy, db_forget, db_prune, doctor, export_log, import_log
    from rlrec.report import curves, figures


_MODULES = {
    "rlrec.app": "names",
    "rlrec.app.experiments": "compare experiment route shadow",
    "rlrec.app.judging": "delays evaluate exploration exposure outcomes positions report status",
    "rlrec.app.policies": "policy policy_beliefs rebuild train versions",
    "rlrec.app.requests": "decision feedback recommend session settle",
    "rlrec.app.setup": "arm demo init reward simulate study",
    "rlrec.app.upkeep": "db_copy db_forget db_prune doctor export_log import_log",
    "rlrec.report": "curves figures",
}
_PACKAGES = {name: package for package, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> ModuleType:
    return import_module(f"{_PACKAGES[name]}.{name}")
