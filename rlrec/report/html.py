"""This module makes HTML pages from templates. The pages load no files and run no scripts, and all text in them is
escaped."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlrec.errors import quantity
from rlrec.report import figures, svg
from rlrec.report.figures import Figure

if TYPE_CHECKING:
    from rlrec.app.evaluation.passes.estimates import EstimateRow
    from rlrec.app.judging.report import Result

FOLDER = Path(__file__).parent / "templates"
LONG_CELL = 30  # letters from which on a cell may be wrapped
CONTENT_POLICY = "default-src 'none'; style-src 'sha256-{}'; img-src data:; form-action 'self'; base-uri 'none'"


class Cell(NamedTuple):
    """A Cell is a text in a table or a header of a table, or a link that filters a table.

    css_class: the class of the cell in style.css; href: the address to which the text links, if any; order: for a
    header, `ascending` or `descending` if the table is sorted by this column, else empty; is_chosen: whether the
    cell is the filter that is active."""

    text: str
    css_class: str = ""
    href: str = ""
    order: str = ""
    is_chosen: bool = False


class Table(NamedTuple):
    """A Table is a table on a page, with links that change which rows are shown.

    key: the name of the table in links; filters: links that show only some rows; extent: words that say which rows
    are shown; page_links: links to the rows that are not shown."""

    headers: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    key: str = ""
    filters: Sequence[Cell] = ()
    extent: str = ""
    page_links: Sequence[Cell] = ()


class Section(NamedTuple):
    """A Section is a section of a page.

    remarks: texts above the figures; lines: texts below the figures; summary: a text that shows the details when it
    is clicked; details: lines that are hidden until then; tables: pairs of the name of a table and the table."""

    figures: Sequence[Figure] = ()
    remarks: Sequence[str] = ()
    lines: Sequence[str] = ()
    summary: str = ""
    details: Sequence[str] = ()
    tables: Sequence[tuple[str, Table]] = ()

    @property
    def is_shown(self) -> bool:
        return any((self.figures, self.remarks, self.lines, self.details, self.tables))


def plain_text(value: Any) -> str:
    """Return a text unchanged, and a number as text with three digits."""
    return value if isinstance(value, str) else svg.number(value)


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], text: Callable[[Any], str] = plain_text) -> Table:
    """Return a table of these values. Columns of numbers are aligned to the right.

    text: a function that returns the text of a value."""
    numeric_columns = [
        all(isinstance(row[column], int | float | None) for row in rows) for column in range(len(headers))
    ]
    css_classes = ["n" if is_numeric else "" for is_numeric in numeric_columns]
    return Table(
        [Cell(name, css_class) for name, css_class in zip(headers, css_classes, strict=True)],
        [[_cell(value, css_class, text) for value, css_class in zip(row, css_classes, strict=True)] for row in rows],
    )


def _cell(value: Any, css_class: str, text: Callable[[Any], str]) -> Cell:
    words = text(value)
    return Cell(words, css_class or ("w" if len(words) > LONG_CELL else ""))


def _drawing(figure: Figure, key: str) -> Markup:
    return Markup(svg.figure(figure.drawing, key=key, title=figure.title, description=figure.description))


def _plain_value(value: Any) -> Any:
    """Return a value unchanged, except for characters of a text that change the writing direction or that markup does
    not allow. They are replaced."""
    return svg.UNPRINTABLE.sub("\ufffd", value) if type(value) is str else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, finalize=_plain_value,
        trim_blocks=True, lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    style = (FOLDER / "style.css").read_text() + svg.STYLE
    digest = b64encode(sha256(style.encode()).digest()).decode()
    environment.filters |= {"quantity": quantity, "data": lambda figure: table(figure.headers, figure.rows)}
    content_policy = CONTENT_POLICY.format(digest)
    environment.globals |= {"style": Markup(style), "drawing": _drawing, "content_policy": content_policy}
    return environment


def render(template: str, **values: Any) -> str:
    """Return the text of a template (the name of a file), filled in with values by name."""
    return _environment().get_template(template).render(values)


# sections whose findings, which one may act on, are in the summary
SUMMARY_SECTIONS = ("time", "estimates", "experiments", "training")


def page(answer: Result, title: str) -> str:
    """Return a report as an HTML page. `answer` has the contents of the report."""
    return render("report.html", title=title, **contents(answer))


def contents(answer: Result) -> dict[str, Any]:
    """Return the values that fill in the template of a report, by name. `answer` has the contents of the report."""
    sections = dict(_sections(answer))
    findings = [
        (f"{name}-{count}", finding)
        for name, section in sections.items()
        if name in SUMMARY_SECTIONS
        for count, figure in enumerate(section.figures)
        for finding in ([figure.title] if figure.findings is None else figure.findings)
    ]
    findings += [] if answer.best is None else [("", answer.best)]
    counts = Counter(finding.severity for finding in answer.findings)
    health_text = " and ".join(quantity(counts[severity], severity) for severity in ("error", "warning"))
    urgent_findings = [f"{row.check}, {row.subject}: {row.detail}" for row in answer.findings if row.severity != "info"]
    more_text = f" ({len(urgent_findings) - 1} more)" if len(urgent_findings) > 1 else ""
    findings += [("health", f"Health: {urgent_findings[0]}{more_text}")] if urgent_findings else []
    if answer.audit and not answer.audit.startswith(("0 errors and 0", f"{health_text} at")):
        findings.append(("health", f"Health: `rlrec doctor` found {answer.audit}"))
    sections_with_remarks = {
        name: section._replace(remarks=answer.remarks.get(name, [])) for name, section in sections.items()
    }
    return {"answer": answer, "sections": sections_with_remarks, "findings": findings, "health": health_text}


def _sections(answer: Result) -> Iterator[tuple[str, Section]]:
    """Yield the sections of a report, as pairs of a name and a section. The first sections have the findings of the
    summary, in the same order."""
    yield "experiments", Section(
        [*filter(None, map(figures.comparison, answer.experiments))],
        tables=_tables("Who got what since the first day, whatever served then", *figures.variants(answer.experiments)),
    )  # fmt: skip
    steps = [line for line in answer.reasons if line.startswith("Next")]
    by_reward: dict[tuple[str, str], list[EstimateRow]] = {}
    for row in answer.estimates:
        by_reward.setdefault((row.reward, row.estimate.unit), []).append(row)
    yield "estimates", Section(
        [*filter(None, (figures.estimates(rows, answer.steps) for rows in by_reward.values()))], lines=steps,
        summary="What the verdicts rest on", details=[line for line in answer.reasons if line not in steps],
    )  # fmt: skip
    yield "time", _over_time(answer)
    yield "beliefs", Section([*filter(None, map(figures.beliefs, answer.beliefs))])
    exposure = answer.exposure
    yield "exposure", Section([] if exposure is None else [figures.exposure(exposure)])
    yield "positions", Section([figures.examination(answer.curves)] if answer.curves else [])
    training_figures = (figures.training(row.policy, row.version, row.report, live=row.live) for row in answer.trained)
    yield "training", Section([*filter(None, training_figures)])
    headers = ["policy", "decisions", "newest on", "live version", "kind"]
    rows = [[row.policy, row.decisions, row.newest, row.live, row.kind] for row in answer.traffic]
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
