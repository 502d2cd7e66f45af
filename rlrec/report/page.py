"""A report as one page of HTML: figures, their data in tables, and remarks; nothing is loaded, no script runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rlrec.errors import quantity
from rlrec.report import curves, figures, svg
from rlrec.report.figures import Figure
from rlrec.report.svg import escape, number

if TYPE_CHECKING:
    from rlrec.app.evaluation.passes.estimates import EstimateRow
    from rlrec.app.judging.report import Result

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5b6570;--line:#d9dee3;--paper:#fff;--page:#f3f5f7;--link:#0060a0}
@media (prefers-color-scheme:dark){:root{--ink:#e8ebee;--soft:#a9b2bb;--line:#3a424a;--paper:#15191d;--page:#0d1013;
--link:#7cc4f2}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:16px/1.45 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:16px}h1{font-size:1.6rem;margin:.2em 0}h2{margin:1.6em 0 .5em}
h1,h2,h3,p,li,summary{overflow-wrap:anywhere}h3{font-size:1rem;margin:0 0 .6em;line-height:1.35}
p,ul{margin:.4em 0}ul{padding-left:1.2em}a{color:var(--link)}.soft{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));gap:16px;align-items:start}
figure{margin:0;background:var(--paper);border:1px solid var(--line);border-radius:8px;padding:14px;min-width:0}
svg.fig{display:block;width:100%;max-width:560px;height:auto;margin:auto}
details{margin-top:8px}summary{cursor:pointer;color:var(--soft);font-size:.9rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;background:var(--paper)}
th,td{padding:3px 8px 3px 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top;
unicode-bidi:isolate;white-space:nowrap}th{white-space:normal;vertical-align:bottom}.n{text-align:right;font-variant-numeric:tabular-nums}
.w{white-space:normal;min-width:24ch;overflow-wrap:anywhere}.d{white-space:nowrap}
@media (max-width:500px){main{padding:8px}figure{padding:10px 6px}
#health td:first-child{white-space:normal;overflow-wrap:anywhere;min-width:0}}
@media print{:root{--ink:#000;--soft:#444;--line:#bbb;--paper:#fff;--page:#fff}body{font-size:10pt}
h3{font-size:10pt}figure{break-inside:avoid}h2,h3,section>p,section>ul{break-after:avoid}a{text-decoration:none}
.cards{grid-template-columns:1fr 1fr}details{display:none}}
""".strip().replace("\n", "")
LAWS = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
SHORT = ("time", "estimates", "experiments", "training")  # sections whose findings the summary has: to act on
LONG = 30  # letters of a cell that may be broken
EMPTY = (
    "Nothing was served yet. <code>rlrec policy create home --kind thompson --param floor=0.05</code> makes a policy, "
    "<code>rlrec recommend --policy home --session s1 -k 3</code> serves from it and logs what it did, "
    "<code>rlrec feedback</code> records what came of it; <code>rlrec import-log</code> brings in the log of another "
    "system. Then write this page again."
)


class Section(NamedTuple):
    """A part of the page. name: its anchor, and its name in `remarks`; lead: a sentence under the heading."""

    name: str
    heading: str
    lead: str
    figures: Sequence[Figure]
    extra: str = ""


def page(answer: Result, title: str) -> str:
    """The page of a report."""
    sections = [*_sections(answer)]
    findings = [
        f'<li><a href="#{section.name}-{count}">{escape(finding)}</a></li>'
        for section in sections
        if section.name in SHORT
        for count, figure in enumerate(section.figures)
        for finding in ([figure.title] if figure.findings is None else figure.findings)
    ]
    body = "".join(_section(section, answer.remarks.get(section.name, [])) for section in sections)
    findings += [] if answer.best is None else [f"<li>{escape(answer.best)}</li>"]
    summary = f"<nav><h2>In short</h2><ul>{''.join(findings)}</ul></nav>" if findings else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{LAWS}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}{svg.STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1><p>{_extent(answer)}</p>{summary}{body}"
        '<p class="soft">Bands and intervals hold with 95 %, each for itself. Drawn by rlrec.</p>'
        "</main></body></html>\n"
    )


def _extent(answer: Result) -> str:
    """The extent of the log, and the time of the page."""
    details = [f"as of {answer.created_at[:16]}Z", answer.reward and f"reward {answer.reward}", answer.log]
    as_of = f'<span class="soft">{escape(", ".join(filter(None, details)))}</span>'
    if answer.first is None or answer.last is None:
        return f"{EMPTY} {as_of}" if not answer.log else f"No decision is selected. {as_of}"
    is_single_day = answer.first[:10] == answer.last[:10]
    first, last = (f'<span class="d">{time[:10]}</span>' for time in (answer.first, answer.last))
    days = f"on {first}," if is_single_day else f"from {first} to {last},"
    return f"{quantity(answer.decisions, 'decision')} {days} {as_of}"


def _sections(answer: Result) -> Iterator[Section]:
    """The sections that have something to show or to say."""
    yield Section(
        "experiments", "Experiments", "Variants against the first one, by the unit that was split.",
        [*filter(None, map(figures.comparison, answer.experiments))],
        _named_table("Who got what since the first day, whatever served then", *figures.variants(answer.experiments)),
    )  # fmt: skip
    newest = "" if answer.judged is None else f" From the newest {answer.judged:,} decisions."
    steps = [line for line in answer.reasons if line.startswith("Next")]
    reasons = _list([line for line in answer.reasons if line not in steps])
    by_reward: dict[tuple[str, str], list[EstimateRow]] = {}
    for row in answer.estimates:
        by_reward.setdefault((row.reward, row.estimate.unit), []).append(row)
    yield Section(
        "estimates", "What policies would earn",
        "Estimated from the log: a policy is judged by what others served, weighted by probabilities." + newest,
        [*filter(None, map(figures.estimates, by_reward.values()))],
        _list(steps) + (reasons and f"<details><summary>What the verdicts rest on</summary>{reasons}</details>"),
    )  # fmt: skip
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
    lists = "".join(_list([note]) for note in notes)
    yield Section("time", "Over time", "What a visit earned, and who came back.", charts, lists)
    about = "Each arm with the reward that a slot of it is believed to earn; of kind long-term, what a look adds later."
    charts = [*filter(None, map(figures.beliefs, answer.beliefs))]
    yield Section("beliefs", "What policies believe", about, charts)
    exposure = answer.exposure
    yield Section(
        "exposure", "What was shown", "How the slots are spread over the catalogue." + newest,
        [] if exposure is None else [figures.exposure(exposure)],
    )  # fmt: skip
    yield Section(
        "positions", "Positions", "How likely each position is looked at.",
        [curves.examination(answer.curves)] if answer.curves else [],
    )  # fmt: skip
    training_figures = (curves.training(row.policy, row.version, row.report, live=row.live) for row in answer.trained)
    yield Section("training", "Training", "Learning curves of trained versions.", [*filter(None, training_figures)])
    findings = _list(f"{row.severity}: {row.check}, {row.subject}: {row.detail}" for row in answer.findings)
    yield Section("health", "Health", _health(answer), [], findings + _traffic(answer))


def _section(section: Section, remarks: Sequence[str]) -> str:
    if not section.figures and not section.extra and not remarks:
        return ""
    cards = ""
    for count, figure in enumerate(section.figures):
        key = f"{section.name}-{count}"
        drawing = svg.figure(figure.drawing, key=key, title=figure.title, description=figure.description)
        cards += (
            f'<figure id="{key}"><figcaption><h3>{escape(figure.title)}</h3>{_list(figure.lines)}</figcaption>'
            f"{drawing}<details><summary>The data</summary>{_table(figure.headers, figure.rows)}</details></figure>"
        )
    return (
        f'<section id="{section.name}"><h2>{section.heading}</h2><p class="soft">{section.lead}</p>'
        f"{_list(remarks)}<div class=cards>{cards}</div>{section.extra}</section>"
    )


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    numeric = [all(isinstance(row[count], int | float | None) for row in rows) for count in range(len(headers))]
    looks = [' class="n"' if is_numeric else "" for is_numeric in numeric]
    head = "".join(f'<th scope="col"{look}>{escape(name)}</th>' for name, look in zip(headers, looks, strict=True))
    body = "".join(f"<tr>{''.join(map(_cell, row, looks))}</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any, look: str) -> str:
    if not isinstance(value, str):
        return f"<td{look}>{number(value)}</td>"
    wrapping = ' class="w"' if len(value) > LONG else ""
    return f"<td{wrapping}>{escape(value)}</td>"


def _list(lines: Iterator[str] | Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="soft">{items}</ul>' if items else ""


def _health(answer: Result) -> str:
    counts = Counter(finding.severity for finding in answer.findings)
    counts_text = " and ".join(quantity(counts[severity], severity) for severity in ("error", "warning"))
    checked = "the clock, what waits, the newest decisions, and the log as far as estimates rest on it"
    return f"{counts_text} in quick checks of {checked}. <code>rlrec doctor</code> audits everything."


def _traffic(answer: Result) -> str:
    headers = ["policy", "decisions", "newest on", "live", "kind"]
    rows = [
        [row.policy, row.decisions, row.newest, f"{row.live} of {row.versions}", row.kind] for row in answer.traffic
    ]
    return _named_table("What served", headers, rows)


def _named_table(name: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return f"<h3>{name}</h3>{_table(headers, rows)}" if rows else ""
