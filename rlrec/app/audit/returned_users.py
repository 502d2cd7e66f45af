"""Visits in which users came back, against the events that record it."""

from __future__ import annotations

from rlrec.app.audit.findings import MOST, Findings
from rlrec.store import Unit, returns, settings
from rlrec.times import written

CHECK = "returns"


def check(unit: Unit, *, findings: Findings) -> None:
    """Where some reward weighs returns, each has one event, and the next one will credit the user's last decision."""
    if not settings.get(unit).weighs_returns:
        return
    for counted in returns.miscounted(unit, limit=MOST):
        came = f"its user came back at {written(counted.at)}, and it has"
        if counted.events:
            findings.error(CHECK, f"decision {counted.decision_id}", f"{came} {counted.events} events of that")
        else:
            detail = f"{came} no event of that, as where the user was named only after that visit"
            findings.warning(CHECK, f"decision {counted.decision_id}", detail)
    for user, decision_id in returns.misplaced(unit, limit=MOST):
        detail = f"when the user comes back decision {decision_id} is credited, which is not their last one"
        findings.error(CHECK, f"user {user}", detail)
