"""Findings of an audit: the problem, its place, and its severity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rlrec.errors import RlrecError
from rlrec.records import Record

MAX_FINDINGS = 50  # findings of one check that are listed one by one
# errors that reading a damaged row may raise
UNREADABLE = (RlrecError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


OWNERS = {"decision": "id", "slot": "decision_id", "event": "decision_id"}


def row_subject(table: str, key: Mapping[str, object]) -> str:
    """The subject of a finding on a row, from its primary key; for a row that belongs to a decision, that decision."""
    if table in OWNERS:
        return f"decision {key[OWNERS[table]]}"
    return f"{table} {', '.join(f'{name} {value}' for name, value in key.items())}"


class Finding(Record):
    """A problem, or something worth a look. `severity`: error (something stored is wrong), warning (look into it),
    info."""

    check: str
    severity: str
    subject: str
    detail: str


class Findings:
    """All findings of one audit: for each check the first ones, and the number of the others."""

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

    def has(self, check: str, subject: str) -> bool:
        """Whether a check has a finding whose subject begins with this text."""
        return any(row.check == check and row.subject.startswith(subject) for row in self._findings)

    @contextmanager
    def unreadable(self, check: str, subject: str) -> Iterator[None]:
        """Run a part of a check, and turn an error from damaged data into a finding, so that the audit goes on."""
        try:
            yield
        except UNREADABLE as error:
            self.error(check, subject, f"the check could not go on: {error or type(error).__name__}")

    def count(self, severity: str) -> int:
        return sum(n for (_, level), n in self._count.items() if level == severity)

    def in_order(self) -> list[Finding]:
        """The findings: errors first, then warnings, then the rest; each in the order in which it was found."""
        summaries = [
            Finding(check=check, severity=severity, subject="store", detail=f"{n - MAX_FINDINGS} more like these")
            for (check, severity), n in self._count.items()
            if n > MAX_FINDINGS
        ]
        rank = {"error": 0, "warning": 1, "info": 2}
        return sorted([*self._findings, *summaries], key=lambda finding: rank[finding.severity])
