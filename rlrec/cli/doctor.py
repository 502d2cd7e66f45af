"""rlrec doctor."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from rlrec.cli.output import Show
from rlrec.cli.shared import printed, stored
from rlrec.cli.values import Whole
from rlrec.cli.view import View
from rlrec.errors import CheckFailed

COLUMNS = ("check", "severity", "subject", "detail")


@click.command()
@click.option(
    "--sample", type=Whole(0), metavar="N",
    help="Derive the propensities of N random decisions again; without it all, or 10,000 where there are more.",
)  # fmt: skip
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Of the sample.")
@printed
@stored
def doctor(store: Any, show: Show, **request: Any) -> None:
    """Audit the store: beliefs, propensities, draws, references.

    Nothing is changed. An error is exit 3; warnings are not. csv and ndjson have a line a finding.

    \b
    Example:
      rlrec doctor --json
    """
    from rlrec.app import doctor as use_case

    report = use_case.doctor(store, use_case.Request(**request))
    if show.format == "ndjson":
        show(report.findings)
    else:
        flat = [asdict(finding) for finding in report.findings]
        show(report, table=_view(report, use_case.overview(report)), columns=COLUMNS, flat=flat)
    if not report.ok:
        errors = sum(finding.severity == "error" for finding in report.findings)
        raise CheckFailed(
            f"doctor found {errors} error{'s' if errors > 1 else ''}",
            hint="nothing was changed; restore a backup, or `rlrec export-log` what is sound",
        )


def _view(report: Any, overview: list[dict[str, Any]]) -> View:
    """What was checked, a line each, and below it what was found."""
    rows = [
        [row["check"], row["count"], row["looked_at"], _verdict(row["errors"], row["warnings"])] for row in overview
    ]
    notes = [f"{found.severity} {found.check}, {found.subject}: {found.detail}" for found in report.findings]
    return View(headers=["check", "count", "looked at", "result"], rows=rows, notes=notes)


def _verdict(errors: int, warnings: int) -> str:
    said = [f"{n} {word}{'s' if n > 1 else ''}" for n, word in ((errors, "error"), (warnings, "warning")) if n]
    return ", ".join(said) or "ok"
