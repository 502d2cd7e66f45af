"""rlrec doctor."""

from __future__ import annotations

from typing import Any

import click

from rlrec.cli.output import Show, View
from rlrec.cli.shared import printed, stored
from rlrec.errors import CheckFailed


@click.command()
@click.option(
    "--sample", type=click.IntRange(0), metavar="N",
    help="Derive the propensities of N random decisions again; without it all, or 10,000 where there are more.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the sample.")
@printed
@stored
def doctor(store: Any, show: Show, **request: Any) -> None:
    """Audit the store: beliefs, propensities, draws, references.

    Nothing is changed. An error is exit 3; warnings are not.

    \b
    Example:
      rlrec doctor --json
    """
    from rlrec.app import doctor as use_case

    report = use_case.doctor(store, use_case.Request(**request))
    show(report, table=_view(report, use_case.overview(report), findings_only=show.format == "csv"))
    if not report.ok:
        errors = sum(finding.severity == "error" for finding in report.findings)
        raise CheckFailed(
            f"doctor found {errors} error{'s' if errors > 1 else ''}",
            hint="nothing was changed; restore a backup, or `rlrec export-log` what is sound",
        )


def _view(report: Any, overview: list[dict[str, Any]], *, findings_only: bool) -> View:
    """What was checked, a line each, and what was found; without findings what was checked, as a table."""
    if not report.findings and not findings_only:
        rows = [[row["check"], row["count"], row["looked_at"], "ok"] for row in overview]
        return View(headers=["check", "count", "looked at", "result"], rows=rows)
    lines = [
        f"{row['check']:<14} {row['count']:>9,} {row['looked_at']}: {_verdict(row['errors'], row['warnings'])}"
        for row in overview
    ]
    headers = ["severity", "check", "subject", "detail"]
    rows = [[getattr(finding, name) for name in headers] for finding in report.findings]
    return View(title=lines, headers=headers, rows=rows)


def _verdict(errors: int, warnings: int) -> str:
    said = [f"{n} {word}{'s' if n > 1 else ''}" for n, word in ((errors, "error"), (warnings, "warning")) if n]
    return ", ".join(said) or "ok"
