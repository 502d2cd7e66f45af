"""Visits in which users came back, against the events that record it."""

from __future__ import annotations

from rlrec.app.audit.integrity.findings import MAX_FINDINGS, Findings
from rlrec.store import Unit
from rlrec.store.log import returns, settings
from rlrec.times import format_time

CHECK = "returns"


def check(unit: Unit, *, findings: Findings) -> None:
    """Check, where some reward weighs returns, that each has one event, and that the next one will credit the user's
    last decision."""
    if not settings.get(unit).weighs_returns:
        return
    for returned_to, at, repeated in returns.wrong_returns(unit, limit=MAX_FINDINGS):
        subject, came = f"decision {returned_to}", f"its user came back at {format_time(at)}, and it has"
        if repeated is None:
            detail = f"{came} no event `return`, as where the user was named only after that visit"
            findings.warning(CHECK, subject, detail)
        else:
            findings.error(CHECK, subject, f"{came} the event `return` more than once")
    for user, decision_id in returns.wrong_last_decisions(unit, limit=MAX_FINDINGS):
        detail = f"when the user comes back decision {decision_id} is credited, which is not their last one"
        findings.error(CHECK, f"user {user}", detail)
