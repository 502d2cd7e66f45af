"""A report as one HTML page: figures, their data in tables, and remarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rlrec.errors import quantity
from rlrec.report import curves, figures
from rlrec.report.figures import Figure
from rlrec.report.html import Section, Table, render, table

if TYPE_CHECKING:
    from rlrec.app.evaluation.passes.estimates import EstimateRow
    from rlrec.app.judging.report import Result

# sections whose findings, which one may act on, are in the summary
SHORT = ("time", "estimates", "experiments", "training")


def page(answer: Result, title: str) -> str:
    """The page of a report."""
    return render("report.html", title=title, **contents(answer))


def contents(answer: Result) -> dict[str, Any]:
    """The values for the template of a report."""
    sections = dict(_sections(answer))
    findings = [
        (f"{name}-{count}", finding)
        for name, section in sections.items()
        if name in SHORT
        for count, figure in enumerate(section.figures)
        for finding in ([figure.title] if figure.findings is None else figure.findings)
    ]
    findings += [] if answer.best is None else [("", answer.best)]
    counts = Counter(finding.severity for finding in answer.findings)
    health = " and ".join(quantity(counts[severity], severity) for severity in ("error", "warning"))
    remarked = {name: section._replace(remarks=answer.remarks.get(name, [])) for name, section in sections.items()}
    return {"answer": answer, "sections": remarked, "findings": findings, "health": health}


def _sections(answer: Result) -> Iterator[tuple[str, Section]]:
    """The sections by name, in the order of the summary."""
    yield "experiments", Section(
        [*filter(None, map(figures.comparison, answer.experiments))],
        tables=_tables("Who got what since the first day, whatever served then", *figures.variants(answer.experiments)),
    )  # fmt: skip
    steps = [line for line in answer.reasons if line.startswith("Next")]
    by_reward: dict[tuple[str, str], list[EstimateRow]] = {}
    for row in answer.estimates:
        by_reward.setdefault((row.reward, row.estimate.unit), []).append(row)
    yield "estimates", Section(
        [*filter(None, map(figures.estimates, by_reward.values()))], lines=steps,
        summary="What the verdicts rest on", details=[line for line in answer.reasons if line not in steps],
    )  # fmt: skip
    yield "time", _over_time(answer)
    yield "beliefs", Section([*filter(None, map(figures.beliefs, answer.beliefs))])
    exposure = answer.exposure
    yield "exposure", Section([] if exposure is None else [figures.exposure(exposure)])
    yield "positions", Section([curves.examination(answer.curves)] if answer.curves else [])
    training_figures = (curves.training(row.policy, row.version, row.report, live=row.live) for row in answer.trained)
    yield "training", Section([*filter(None, training_figures)])
    headers = ["policy", "decisions", "newest on", "live", "kind"]
    rows = [
        [row.policy, row.decisions, row.newest, f"{row.live} of {row.versions}", row.kind] for row in answer.traffic
    ]
    findings = [f"{row.severity}: {row.check}, {row.subject}: {row.detail}" for row in answer.findings]
    yield "health", Section(lines=findings, tables=_tables("What served", headers, rows))


def _over_time(answer: Result) -> Section:
    over_time, charts, notes = answer.over_time, list[Figure](), list[str]()
    if over_time is not None:
        return_rates = figures.return_rates(over_time, answer.last, answer.weeks)
        charts = [*filter(None, [figures.over_time(over_time, weeks=answer.weeks), return_rates])]
        if return_rates is None and "no-users" in over_time["reasons"]:
            notes.append("Who came back is not known: no decision names a user (`recommend --user`).")
        elif figures.nobody_returned(over_time):
            notes.append("No user came again within 7 days: are the ids of users kept from visit to visit?")
        elif return_rates is None:
            notes.append("Who came back cannot be said yet: the log has to go on for a day after a visit.")
        if any(f"partial-{answer.period}" in row["reasons"] for row in over_time["outcomes"]):
            notes.append(f"The first or the newest {answer.period} is covered by the log in part.")
    return Section(charts, lines=notes)


def _tables(name: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[tuple[str, Table]]:
    return [(name, table(headers, rows))] if rows else []
