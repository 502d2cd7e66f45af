"""This module defines the findings of an audit. Each finding has a problem, a place and a severity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rlrec.errors import RlrecError
from rlrec.records import Record

MAX_FINDINGS = 50  # findings of one check that are listed one by one
# errors that reading a damaged row may raise
UNREADABLE = (RlrecError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


DECISION_COLUMNS = {"decision": "id", "slot": "decision_id", "event": "decision_id"}


def row_subject(table: str, key: Mapping[str, object]) -> str:
    """Return the subject of a finding on a row of a table. For a row that belongs to a decision, the subject is the
    decision.

    key: the primary key of the row."""
    if table in DECISION_COLUMNS:
        return f"decision {key[DECISION_COLUMNS[table]]}"
    return f"{table} {', '.join(f'{name} {value}' for name, value in key.items())}"


class Finding(Record):
    """A finding describes a problem, or a fact worth a look. `severity` is "error" (stored data are wrong, or a policy
    learns nothing from events), "warning" (a user should look into the matter) or "info"."""

    check: str
    severity: str
    subject: str
    detail: str


class Findings:
    """This object collects the findings of one audit. Only the first findings of each check and severity are stored;
    all further findings are counted."""

    def __init__(self) -> None:
        self._findings: list[Finding] = []
        self._count: Counter[tuple[str, str]] = Counter()

    def add(self, check: str, severity: str, subject: str, detail: str) -> None:
        self._count[check, severity] += 1
        if self._count[check, severity] <= MAX_FINDINGS:
            self._findings.append(Finding(check=check, severity=severity, subject=subject, detail=detail))

    def error(self, check: str, subject: str, detail: str) -> None:
        self.add(check, "error", subject, detail)

    def decision_error(self, check: str, decision_id: int, detail: str) -> None:
        self.error(check, f"decision {decision_id}", detail)

    def warning(self, check: str, subject: str, detail: str) -> None:
        self.add(check, "warning", subject, detail)

    def has_finding(self, check: str, subject: str) -> bool:
        """Tell whether a check has a finding whose subject begins with the text `subject`."""
        return any(row.check == check and row.subject.startswith(subject) for row in self._findings)

    @contextmanager
    def report_unreadable(self, check: str, subject: str) -> Iterator[None]:
        """Run the block, a part of a check. If damaged data raise an error, add a finding, so that the audit goes
        on."""
        try:
            yield
        except UNREADABLE as error:
            self.error(check, subject, f"the check could not go on: {error or type(error).__name__}")

    def count(self, severity: str) -> int:
        return sum(n for (_, level), n in self._count.items() if level == severity)

    def in_order(self) -> list[Finding]:
        """Return the findings, with errors first, then warnings, then infos. Findings of one severity are in the order
        in which they were added. Findings that were only counted become one finding that states their number."""
        summaries = [
            Finding(check=check, severity=severity, subject="store", detail=f"{n - MAX_FINDINGS} more like these")
            for (check, severity), n in self._count.items()
            if n > MAX_FINDINGS
        ]
        rank = {"error": 0, "warning": 1, "info": 2}
        return sorted([*self._findings, *summaries], key=lambda finding: rank[finding.severity])
