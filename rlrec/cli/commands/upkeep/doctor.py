"""This module holds the command `rlrec doctor`, which audits the store. It can also correct the times of decisions that
lie in the future."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.shared import (
    NOTHING_STORED,
    GroupedCommand,
    Store,
    dry_run_option,
    notice,
    print_sentences,
    rehearsal,
    takes_store,
)
from rlrec.cli.text.text import View
from rlrec.cli.text.values import Integer
from rlrec.errors import CheckFailed, quantity

FINDING_COLUMNS = ("check", "severity", "subject", "detail")


@click.command(cls=GroupedCommand)
@click.option(
    "--sample", type=Integer(0), metavar="N",
    help="Rederive only N random decisions (without it: all, at most 10,000). In a log of more than 20,000 decisions, "
    "these are runs of 10 neighbours, which mostly share a belief; only their sessions and the newest rows are "
    "audited, and the output says how rare a fault can be and remain unseen.",
)  # fmt: skip
@click.option("--seed", type=Integer(0), default=0, show_default=True, help="Seed of the sample.")
@click.option("--repair-clock", is_flag=True, help="Move what lies ahead of the database's clock back to now.")
@dry_run_option
@takes_store("rlrec doctor --json", "rlrec doctor --repair-clock --dry-run")
def doctor(store: Store, show: Show, repair_clock: bool, dry_run: bool, **request: Any) -> None:
    """It changes nothing, but stores its time and findings for `rlrec status`. An error is exit 3, a warning is not.
    csv and ndjson have one line per finding.

    A decision logged far in the future (by --now, RLREC_NOW, or a wrong clock of the host) stops the clock: no later
    decision can lie before it, and nothing matures. --repair-clock moves all decisions that lie in the future, with
    their events and visits, back by the same time, so that the newest is at now. It says how many it moved, by how many
    seconds, and how many times of other rows (versions, sessions, runs) it moved; it audits nothing else. Future events
    of past decisions are not moved. This is the only command that changes logged times. Stop all writers first."""
    from rlrec.app.audit.integrity.clock import repair

    if repair_clock:
        with rehearsal(store) if dry_run else nullcontext():
            repaired_rows = repair(store)
        show(repaired_rows)
        return

    options = app.doctor.Request(**request)
    report = app.doctor.doctor(store, options)
    if dry_run:
        notice(NOTHING_STORED)
    else:
        app.doctor.note(store, options, report)
    if show.format == "ndjson":
        show(report.findings)
    else:
        flat = [asdict(finding) for finding in report.findings]
        show(report, table=_findings_view(report, app.doctor.overview(report)), columns=FINDING_COLUMNS, flat=flat)
    if report.ok:
        n_warnings = sum(finding.severity == "warning" for finding in report.findings)
        result = f"no error, {quantity(n_warnings, 'warning')}" if n_warnings else "nothing is wrong"
        n_checks, n_decisions = len(app.doctor.CHECKS) - len(report.left_out), report.checked["decisions"]
        print_sentences(show, f"{n_checks} checks of {quantity(n_decisions, 'decision')}: {result}.")
    else:
        failed_checks = [finding.check for finding in report.findings if finding.severity == "error"]
        hint = "nothing was changed; restore a backup as `rlrec help data` says, or export what is sound"
        if {*failed_checks} <= {"shown"}:
            hint = "a backup does not help: `rlrec import-log FILE` into a new store with the right propensities"
        elif {*failed_checks} <= {"feedback"}:
            hint = "a backup does not help: send events as the finding says"
        raise CheckFailed(f"doctor found {quantity(len(failed_checks), 'error')}", hint=hint)


def _findings_view(report: app.doctor.Report, overview: list[dict[str, Any]]) -> View:
    rows = [
        [row["check"], row["count"], row["looked_at"], _verdict_text(row["errors"], row["warnings"])]
        for row in overview
    ]
    notes = [f"{finding.severity} {finding.check}, {finding.subject}: {finding.detail}" for finding in report.findings]
    errors, warnings = (sum(row[name] for row in overview) for name in ("errors", "warnings"))
    title = [f"{report.at}: {_verdict_text(errors, warnings)}"]
    return View(headers=["check", "count", "looked at", "result"], rows=rows, title=title, notes=notes)


def _verdict_text(errors: int, warnings: int) -> str:
    counts = [quantity(n, word) for n, word in ((errors, "error"), (warnings, "warning")) if n]
    return ", ".join(counts) or "ok"
