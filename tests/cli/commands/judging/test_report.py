"""`report`: a page that holds what the store knows, whatever names it has, and says what it cannot show."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rlrec.app.judging import evaluate, exposure
from rlrec.app.judging.report import Request, report
from rlrec.app.log import partitions
from rlrec.report import html as pages
from rlrec.store import Store
from rlrec.store.log import reader
from rlrec.store.log.reader import Batch
from rlrec.times import DAY_US, format_time, parse
from tests.app.shop import fixed
from tests.cli.commands.judging.test_exposure import ARMS, serve
from tests.conftest import ON_BOTH, Run, click, empty_store, filled, runner, store_after

LATER = "2032-01-01T00:00:00Z"
EVIL = "<script>alert('a & b')</script>\u202e\x1b"


def stocked(db: str) -> None:
    run = runner(db)
    lines = "\n".join(json.dumps({"arm": arm, "features": {}}) for arm in [*ARMS, EVIL])
    steps = [
        (["arm", "import", "-"], lines),
        (["policy", "create", "home", "--kind", "thompson", "--param", "floor=0.3"], None),
        (["policy", "create", "other", "--kind", "uniform"], None),
        (["experiment", "create", "ab", "--variant", "a=home", "--variant", "b=other"], None),
    ]
    for words, stdin in steps:
        assert run(*words, stdin=stdin).exit_code == 0, words
    serve(run)
    lines = "\n".join(json.dumps({"experiment": "ab", "session": f"e{n}", "user": f"v{n}"}) for n in range(30))
    answers = run("recommend", "--input", "-", stdin=lines).lines
    clicks = [{"decision_id": each["decision_id"], "position": 1, "events": {"click": 1}} for each in answers[::2]]
    assert run("feedback", "--input", "-", stdin=clicks).exit_code == 0


shop = store_after(stocked)


def page(run: Run, *options: str, now: str = LATER) -> str:
    return run("--now", now, "report", "-", *options).done().stdout


@pytest.fixture(scope="module")
def shop_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of `shop` as it is at first."""
    path = tmp_path_factory.mktemp("shop") / "rlrec.db"
    empty_store(path)
    return page(filled(str(path), stocked))


def test_the_page_has_every_part_that_the_store_can_show(shop_page: str) -> None:
    text = shop_page
    assert set(re.findall(r'<section id="(\w+)"', text)) >= {"time", "estimates", "experiments", "beliefs", "exposure"}
    assert len(re.findall("<svg", text)) >= 5
    assert len(text.encode()) < 300_000


def test_every_figure_is_xml_with_a_title_a_description_and_its_data(shop_page: str) -> None:
    figures = re.findall(r"<figure.*?</figure>", shop_page, re.DOTALL)
    assert figures
    for figure in figures:
        drawn = ET.fromstring(re.search(r"<svg.*?</svg>", figure, re.DOTALL).group())
        assert [each.tag for each in drawn][:2] == ["title", "desc"]
        assert all(drawn[number].text for number in (0, 1))
        assert figure.count("<table>") == 1


def test_nothing_in_the_page_runs_or_is_loaded(shop: Run) -> None:
    text = page(shop, "--title", EVIL)
    assert "&lt;script&gt;" in text
    assert re.search(r"<script|javascript:|\son\w+=|https?://|url\(|@import|<iframe|<img", text) is None


def test_names_do_not_turn_the_direction_of_writing(shop_page: str) -> None:
    assert re.search("[\u202e\x1b]", shop_page) is None


@ON_BOTH
def test_estimates_and_exposure_are_from_the_newest_decisions_and_say_so(
    shop: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlrec.app.judging.report.MAX_JUDGED", 40)
    text = page(shop)
    assert text.count("From the newest 40 decisions.") == 2


def test_estimates_and_exposure_share_one_read(shop: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.now = parse(LATER)
    reads, batches = list[int](), reader.batches
    monkeypatch.setattr(partitions, "BATCH", 40)

    def count(*args: Any, columns: Iterable[str], **options: Any) -> Iterator[Batch]:
        reads.append("propensity" in columns)
        return batches(*args, columns=columns, **options)

    monkeypatch.setattr(reader, "batches", count)
    answer = report(store, Request())
    assert sum(reads) == 1
    alone = exposure.exposure(store, exposure.Request(reward=answer.reward, expected=False))
    assert answer.exposure == alone


def test_its_parts_agree_while_others_write(shop: Run, store: Store) -> None:
    """Whoever is served while the page is made is in none of its parts."""
    before = page(shop)
    writes, served = iter(range(3)), ("recommend", "--policy", "home", "--session")

    def serve_more(*_: object) -> None:
        if (n := next(writes, None)) is not None:
            assert shop("--now", LATER, "--allow-future", *served, f"new{n}").exit_code == 0

    store.now, store.progress = parse(LATER), serve_more
    answers = report(store, Request())
    assert (next(writes, None), pages.page(answers, "What the recommender does")) == (None, before)


def test_what_lies_before_a_long_pause_is_not_shown_over_time(run_sqlite: Run) -> None:
    for words in (["arm", "add", "a"], ["policy", "create", "home", "--kind", "uniform"]):
        assert run_sqlite(*words).exit_code == 0
    for day in ("2027-01-01", "2027-03-01", "2027-03-02"):
        request = ("recommend", "--policy", "home", "--session", day, "--user", "u")
        assert run_sqlite("--now", f"{day}T12:00:00Z", "--allow-future", *request).exit_code == 0
    text = page(run_sqlite, "--no-estimates")
    assert "Nothing from before 2027-03-01 is shown over time" in text
    assert "2027-01-01T" not in text
    assert "left out" not in text
    assert "; 1 earlier decision left out" in page(run_sqlite, "--no-estimates", "--since", "2027-02-01")


def test_visits_at_the_end_of_an_old_log_do_not_count_as_lost(run_sqlite: Run) -> None:
    """Nobody could be seen to come back behind the end of the log, however long ago that is."""
    for words in (["arm", "add", "a"], ["policy", "create", "home", "--kind", "uniform"]):
        assert run_sqlite(*words).exit_code == 0
    for day in range(1, 13):
        request = ("recommend", "--policy", "home", "--session", f"s{day}", "--user", "u")
        assert run_sqlite("--now", f"2027-03-{day:02}T12:00:00Z", "--allow-future", *request).exit_code == 0
    text = page(run_sqlite, "--no-estimates")
    assert "Came back within a day, all visits together: 100\xa0% on 10\xa0Mar" in text
    assert "12\xa0Mar" in text  # of the reward


def test_an_empty_store_says_what_to_do(run: Run) -> None:
    text = page(run)
    assert "rlrec policy create" in text
    assert "<svg" not in text


def test_what_is_not_mature_says_so(run_sqlite: Run) -> None:
    for words in (["arm", "add", "a"], ["policy", "create", "home", "--kind", "uniform"]):
        assert run_sqlite(*words).exit_code == 0
    assert run_sqlite("--now", LATER, "recommend", "--policy", "home", "--session", "s").exit_code == 0
    assert "is mature" in page(run_sqlite)


def test_what_learned_from_the_log_is_no_finding_about_it(run_sqlite: Run) -> None:
    """`home` learned from the very rows that would judge it, and has the largest estimate."""
    for words in (
        ["policy", "create", "home", "--kind", "thompson", "--param", "floor=0.3"],
        ["simulate", "bernoulli", "--env", "rates=0.6,0.2", "--policy", "home", "--sessions", "2000", "--group", "500"],
    ):
        assert run_sqlite(*words).exit_code == 0
    text = page(run_sqlite)
    (headline,) = headlines(text, "estimates")
    assert re.fullmatch(r"uniform is worse than what was logged: -\d\d % \[-\d\d, -\d\d\] per impression", headline)
    assert "<li>home@1: this log cannot tell whether it is better or worse" in text.partition('id="estimates"')[2]


SIMULATED_RANKING = ("simulate", "bernoulli", "--experiment", "ranking", "--sessions", "200", "--group", "50")


def test_a_variant_stands_for_itself_and_its_parent_that_serves_nobody_is_not_shown(run_sqlite: Run) -> None:
    for words in (
        ["policy", "create", "shelf", "--kind", "thompson", "--param", "floor=0.1"],
        ["policy", "create", "old", "--kind", "uniform"],
        ["experiment", "create", "ranking", "--unit", "session", "--variant", "was=old", "--variant", "new=shelf"],
        [*SIMULATED_RANKING, "--env", "rates=0.5,0.4,0.1"],
    ):
        assert run_sqlite(*words).exit_code == 0
    text, parent, variant = (
        page(run_sqlite, *options) for options in ((), ("--policy", "shelf"), ("--policy", "shelf@ranking/new"))
    )
    for each in (text, parent, variant):
        assert "<td>shelf@ranking/new@1</td>" in each
        assert "<td>shelf@ranking/new</td>" in each  # in the table of what served
        assert "<td>shelf@1</td>" not in each
        assert "ranking: new" in each
    assert "<td>old@ranking/was</td>" not in variant.partition("What served")[2]
    assert "did you mean shelf@ranking/new?" in run_sqlite("report", "-", "--policy", "shelf@ranking/other").failed(2)


def headlines(text: str, section: str) -> list[str]:
    return re.findall(rf'<a href="#{section}-\d">(.*?)</a>', text)


def test_a_policy_against_itself_is_no_gain_and_no_loss(run_sqlite: Run) -> None:
    """All that was served came from one uniform policy, which differs from the built-in by rounding at most."""
    for words in (
        ["policy", "create", "shop", "--kind", "uniform"],
        [
            "simulate",
            "bernoulli",
            "--env",
            "rates=0.6,0.2,0.3",
            "--policy",
            "shop",
            "--sessions",
            "600",
            "--group",
            "200",
        ],
    ):
        assert run_sqlite(*words).exit_code == 0
    text = page(run_sqlite)
    assert headlines(text, "estimates") == []
    assert "<li>shop@1 is the same policy as what was logged: no difference</li>" in text
    assert re.search(r"<h3>Reward default per impression; what was logged earned 0\.\d+</h3>", text)


def test_what_serves_is_judged_and_not_the_policy_that_variants_replaced(run_sqlite: Run) -> None:
    variants = ("--variant", "new=shelf", "--variant", "old=shelf", "--holdout-uniform", "10%")
    for words in (
        ["policy", "create", "shelf", "--kind", "thompson", "--param", "floor=0.1"],
        ["simulate", "bernoulli", "--policy", "shelf", "--sessions", "60", "--group", "20", "--env", "rates=0.5,0.4"],
        ["experiment", "create", "ranking", "--unit", "session", *variants],
        [*SIMULATED_RANKING, "--env", "rates=0.5,0.4"],
    ):
        assert run_sqlite(*words).exit_code == 0
    for options in ((), ("--policy", "shelf")):
        text = page(run_sqlite, *options)
        judged = text.partition('<section id="estimates"')[2].partition("</section>")[0]
        assert "shelf@1 served nobody since 2026-01-01; its variants shelf@ranking/new and shelf@ranking/old" in judged
        named = {*re.findall(r"<tr><td>([^<]*)</td>", judged)}
        assert named == {"shelf@ranking/new@1", "shelf@ranking/old@1", "uniform"}


def test_an_experiment_says_who_got_what_since_when_and_what_a_thousand_of_them_earned(shop: Run) -> None:
    table = page(shop, "--no-estimates").partition("Who got what")[2].partition("</table>")[0]
    rows = [re.findall("<td[^>]*>([^<]*)</td>", row) for row in table.split("<tr>")[2:]]
    shown = shop("--now", LATER, "experiment", "show", "ab", "--json").json
    earned = [row for row in shown["outcomes"] if row["metric"] == "reward_per_unit"]
    for row, variant, outcome in zip(rows, shown["variants"], earned, strict=True):
        name, since, until, status, split, label, policy, share, units, reward, value, *_, per_thousand, total = row
        assert (name, since, until) == ("ab", shown["first_at"][:10], shown["last_at"][:10])
        assert (status, split) == ("running", "as defined")
        assert (label, policy, share) == (
            variant["variant"],
            f"{'home' if label == 'a' else 'other'}@ab/{label}",
            "50.0\xa0%",
        )
        assert (units, reward) == (f"{variant['units']} users", "default")
        figures = [outcome["value"] * number for number in (1, 1000, outcome["units"])]
        assert [float(text.replace(",", "")) for text in (value, per_thousand, total)] == pytest.approx(
            figures, rel=0.01
        )


def test_what_is_excluded_is_counted_apart_and_nowhere_else(shop: Run) -> None:
    assert shop("log", "exclude", "staff", "--where", "user=v0+v1").exit_code == 0
    text = page(shop, "--no-estimates")
    assert "; 2 excluded decisions left out" in text
    table = text.partition("Who got what")[2].partition("</table>")[0]
    shown = shop("--now", LATER, "experiment", "show", "ab", "--json").json["outcomes"]
    counted = [row["units"] for row in shown if row["metric"] == "reward_per_unit"]
    assert sum(counted) == 28
    assert re.findall(r"(\d+) users<", table) == [*map(str, counted)]


def test_the_filter_all_reaches_every_part(shop: Run) -> None:
    text = page(shop, "--log", "all", "--no-estimates")
    assert "is not a log filter" not in text
    assert '<section id="time"' in text


def test_the_summary_has_the_sentence_of_experiment_show(shop: Run, shop_page: str) -> None:
    (headline,) = headlines(shop_page, "experiments")
    assert headline == f"ab: {shop('--now', LATER, 'experiment', 'show', 'ab').stdout.splitlines()[0]}"
    assert headline.startswith("ab: b")


def test_the_summary_has_nothing_that_nobody_can_act_on(shop_page: str) -> None:
    nav = shop_page.partition("<nav ")[2].partition("</nav>")[0]
    assert {*re.findall(r'href="#(\w+)-', nav)} == {"time", "experiments"}


def test_another_reward_judges_the_whole_page(shop: Run) -> None:
    shop("reward", "define", "twice", "click=2", "--clip", "0,2")
    text = page(shop, "--reward", "twice")
    assert "(twice)" in headlines(text, "time")[0] or "reward per visit (twice)" in text
    assert "<h3>Reward twice per page" in text
    table = text.partition("Who got what")[2].partition("</table>")[0]
    assert ("<td>twice</td>" in table, "<td>default</td>" in table) == (True, False)
    assert "did you mean twice?" in shop("report", "-", "--reward", "twoce").failed(2)


@pytest.mark.parametrize("days", [5, 33])
def test_a_week_is_compared_with_a_week_and_a_day_with_nothing(run_sqlite: Run, days: int) -> None:
    """Clicks on Sundays alone: every week is like the others, and the days are not. 2026-01-07 is a Wednesday."""
    for words in (["arm", "add", "a"], ["policy", "create", "home", "--kind", "uniform"]):
        assert run_sqlite(*words).exit_code == 0
    for day in range(days):
        at = format_time(parse("2026-01-07T12:00:00Z") + day * DAY_US)
        lines = [{"policy": "home", "session": f"s{day}-{n}", "user": f"u{day}-{n}"} for n in range(4)]
        clock = ("--allow-future", "--now", at)
        served = run_sqlite(*clock, "recommend", "--input", "-", stdin=lines).lines
        if day % 7 == 4:
            click(run_sqlite, [line["decision_id"] for line in served[:3]], *clock)
    headline = headlines(page(run_sqlite, "--no-estimates"), "time")[0]
    if days == 5:
        assert re.fullmatch(r"Reward per visit, all visits together: 0 on 10\xa0Jan", headline)
    else:
        assert headline.endswith("in the week of 2\xa0Feb, no sure change since the week of 12\xa0Jan")


def test_a_policy_narrows_the_page(shop: Run) -> None:
    text = page(shop, "--policy", "other", "--no-estimates")
    assert "home@1" not in text
    assert '<section id="estimates"' not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--policy", "hom"), "did you mean home?"),
        (("--log", "polcy=home"), "is not a log filter"),
        (("--log", "since=2026-01-01", "--since", "2027-01-01"), "names since twice"),
        (("--log", "user=a,user=b"), "write user=a+b"),
        (("--log", "surface=home"), "included, field:surface"),
    ],
)
def test_a_wrong_name_is_refused_and_the_page_stays(
    shop: Run, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")
    refused = shop("report", path, *words)
    assert (refused.exit_code, path.read_text()) == (2, "before")
    assert message in refused.stderr


def test_the_answer_tells_the_size_of_the_file(shop: Run, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    done = shop("--now", LATER, "report", path, "--json").json
    assert done.items() >= {"file": str(path), "bytes": path.stat().st_size, "decisions": 90}.items()
    assert [each.name for each in tmp_path.glob(".rlrec-*")] == []


def test_the_store_is_not_written_over(shop: Run, sqlite_db: str) -> None:
    assert "is the store itself" in shop("report", sqlite_db).failed(2)


def test_an_interleaved_experiment_compares_its_two_rankers(shop: Run) -> None:
    for name in ("home", "other"):
        assert shop("policy", "freeze", name).exit_code == 0
    words = ("experiment", "create", "turns", "--interleave", "home@2,other@2", "--unit", "session")
    assert shop(*words).exit_code == 0
    lines = [{"experiment": "turns", "session": f"i{n}", "k": 2} for n in range(20)]
    answers = shop("recommend", "--input", "-", stdin=lines).lines
    clicks = [{"decision_id": each["decision_id"], "position": 1, "events": {"click": 1}} for each in answers[::3]]
    assert shop("feedback", "--input", "-", stdin=clicks).exit_code == 0
    text = page(shop, "--no-estimates")
    assert re.search(r"turns: B[^<]* (better|worse)[^<]* than A", text)


PLOTS = [
    ("exposure",), ("exposure", "--by", "day"), ("outcomes", "--by", "day"),
    ("evaluate", "home", "other", "--by", "day"), ("experiment", "show", "ab"), ("policy", "show", "home"),
]  # fmt: skip


@pytest.mark.parametrize("words", PLOTS, ids=map(" ".join, PLOTS))
def test_a_plot_is_a_figure_of_its_own(shop: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    path = tmp_path / "plot.svg"
    done = shop("--now", LATER, *words, "--plot", path, "--json").done()
    assert done.json
    root = ET.parse(path).getroot()
    assert (root.tag, root[0].tag) == ("{http://www.w3.org/2000/svg}svg", "{http://www.w3.org/2000/svg}title")


def test_a_plot_says_what_it_finds(imported: Run, tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    assert imported("evaluate", "blue", "red", "--plot", path).exit_code == 0
    title = ET.parse(path).getroot()[0].text or ""
    assert re.match(r"Reward default per impression; what was logged earned 0\.\d+\. blue@1: this log cannot", title)


def test_a_plot_has_a_file_of_its_own(shop: Run) -> None:
    refused = shop("exposure", "--plot", "-")
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_a_figure_is_no_picture_of_another_format(shop: Run, tmp_path: Path) -> None:
    assert "name it FILE.svg" in shop("exposure", "--plot", tmp_path / "plot.PNG").failed(2)
    assert not [*tmp_path.glob("*.PNG")]


def test_a_plot_over_the_store_is_refused_before_anything_is_stored(shop: Run, sqlite_db: str) -> None:
    assert "is the store itself" in shop("--now", LATER, "position", "fit", "home", "--plot", sqlite_db).failed(2)
    assert shop("position", "list", "--json").json == []


def logged(db: str) -> None:
    """The log of another system, whose propensities are wrong, and three policies that learn two rewards. Nobody comes
    twice."""
    run, rows = runner(db), []
    for n in range(900):
        at, arm = parse("2026-01-05T00:00:00Z") + n * DAY_US // 200, "a" if n % 5 else "b"
        events = [{"position": 1, "kind": "click", "at": format_time(at + 60_000_000)}] if n % 3 == 0 else []
        slate = [{"position": 1, "arm": arm, "propensity": 0.5}]
        row = {"session": f"s{n}", "user": f"u{n}", "at": format_time(at), "eligible": ["a", "b"], "slate": slate}
        rows.append({**row, "events": events})
    run("reward", "define", "twice", "click=2").done()
    run("import-log", "-", "--layout", "jsonl", "--policy", "shop", stdin=rows).done()
    for name, share, reward in (("red", 0.5, "default"), ("blue", 0.9, "default"), ("new", 0.2, "twice")):
        fixed(run, name, {"a": share, "b": 1 - share}, "--reward", reward)


imported = store_after(logged)


@pytest.fixture(scope="module")
def imported_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of `imported` as it is at first."""
    path = tmp_path_factory.mktemp("imported") / "rlrec.db"
    empty_store(path)
    return page(filled(str(path), logged))


def test_targets_are_judged_as_evaluate_judges_them(imported: Run, sqlite_db: str) -> None:
    """The imported log is no target, and those of one reward are judged together, as in one command."""
    with closing(Store(sqlite_db)) as store:
        rows = report(store, Request()).estimates
        evaluated_rows = [
            row for names in (["new"], ["blue", "red"])
            for row in evaluate.answering_rows(evaluate.evaluate(store, evaluate.Request(targets=names)))
        ]  # fmt: skip
    assert [(row.name, row.reward) for row in rows] == [
        ("new@1", "twice"), ("blue@1", "default"), ("red@1", "default"),
    ]  # fmt: skip
    assert [row.record for row in evaluated_rows] == [row.record for row in rows]


def test_policies_that_have_learned_nothing_are_no_finding(imported: Run) -> None:
    """They draw as `uniform` does: one judgement of it would stand there once for each of them."""
    for name, kind in (("bandit", "thompson"), ("visits", "gradient")):
        imported("policy", "create", name, "--kind", kind).done()
    text = page(imported)
    assert not [line for line in headlines(text, "estimates") if line.startswith(("bandit", "visits"))]
    judged = text.partition('<section id="estimates"')[2].partition("</section>")[0]
    assert {*re.findall(r"<tr><td>([^<]*)</td>", judged)} == {"new@1", "blue@1", "red@1"}
    for name, way in (("bandit", "rlrec sweep"), ("visits", "rlrec train-pg visits")):
        assert re.search(rf"{name}@1 has learned nothing yet, and draws as if all arms were alike: .*{way}", judged)


def test_health_has_the_checks_that_the_log_fails(imported_page: str) -> None:
    health = imported_page.partition('<section id="health"')[2]
    assert "warning: wrong-propensities, new@1, blue@1, red@1: some arm was shown more often" in health
    assert "as far as estimates rest on it: 0 errors and 1 warning." in health
    assert re.search("<td[^>]*>1</td><td[^>]*>logged</td>", health)  # the live version, not "1 of 1"


def test_health_names_what_the_last_audit_found(imported: Run, imported_page: str) -> None:
    """Quick checks see less than an audit: the page never has fewer warnings than `doctor` without saying so."""
    assert "</code>, has not run yet.</p>" in imported_page.partition('<section id="health"')[2]
    at = imported("doctor", "--json").json["at"]
    failed = imported("status").failed(3)
    assert re.search("the last audit, at [^ ]*, found 1 error. `rlrec doctor` looks again", failed)
    text, numbers = page(imported), f"1 error and 0 warnings at {at[:16]}Z"
    assert f"</code>: {numbers}.</p>" in text
    short = text.partition("In short")[2].partition("</nav>")[0]  # a reader of these lines alone learns of it, too
    assert "Health: wrong-propensities, new@1, blue@1, red@1: some arm was shown more often" in short
    assert f"Health: `rlrec doctor` found {numbers}" in short
    assert ". Next: `rlrec import-log FILE` into a new store" in short


def test_each_policy_has_a_line_and_a_lift_that_names_its_reward(imported_page: str) -> None:
    text = imported_page
    for line, name in zip(headlines(text, "estimates"), ("new@1", "blue@1", "red@1"), strict=True):
        assert line.startswith(f"{name}: this log cannot tell whether it is better or worse than what was logged")
    assert headlines(text, "time")[0].startswith("Reward per visit by twice, all visits together: ")
    assert "Z, reward twice</span>" in text
    table = text.partition('id="estimates-1"')[2].partition("</table>")[0]
    assert re.findall(r'<th scope="col"[^>]*>([^<]*)', table)[:3] == ["policy", "answer", "lift in percent"]
    assert re.findall("<tr><td>([^<]*)</td><td>([^<]*)</td>", table) == [("blue@1", "unknown"), ("red@1", "unknown")]


def test_no_value_stands_beside_an_answer_that_nobody_knows(imported_page: str) -> None:
    drawing = imported_page.partition('id="estimates-1"')[2].partition("</svg>")[0]
    notes = re.findall(r'<text[^>]* text-anchor="end"[^>]*>([^<]*)<', drawing)
    assert notes == ["cannot tell", "cannot tell"]


def test_what_to_do_next_stands_outside_of_the_details(imported_page: str) -> None:
    estimates = imported_page.partition('<section id="estimates"')[2].partition("</section>")[0]
    step = re.search(r"<li>Next[^<]*: `rlrec ", estimates)
    assert step is not None
    assert step.start() < estimates.index("What the verdicts rest on")


def test_an_experiment_names_the_days_that_its_decisions_cover(shop: Run, shop_page: str) -> None:
    shown = shop("--now", LATER, "experiment", "show", "ab", "--json").json
    first, last = (shown[name][:10] for name in ("first_at", "last_at"))
    days = first if first == last else f"{first} to {last}"
    assert f"<h3>ab, {days}: variants against a</h3>" in shop_page


def test_an_experiment_answers_for_its_variants(shop_page: str) -> None:
    """Estimates of the variants, against the mix of both, say something else in other words."""
    text = shop_page
    lines = [*headlines(text, "experiments"), *headlines(text, "estimates")]
    assert [line for line in lines if "@ab/" in line] == []
    assert "An experiment answers for its variants" in text
    assert "<td>home@ab/a@1</td>" in text.partition('id="estimates"')[2]


def test_what_nobody_knows_is_no_finding(imported: Run, tmp_path: Path) -> None:
    """An imported policy has no distribution, and ids that occur once tell nothing of who comes back."""
    text = page(imported, "--no-estimates")
    assert "No user came again within 7 days: are the ids of users kept from visit to visit?" in text
    assert "ame back" not in text.partition("</nav>")[0]
    believed = text.partition('id="beliefs"')[2].partition("</section>")[0]
    assert ("blue@1 shows a most (90.0\xa0% at position 1)" in believed, "shop@1" in believed) == (True, False)
    path = tmp_path / "shop.svg"
    assert imported("policy", "show", "shop", "--plot", path).exit_code == 0
    assert ">shop@1 has no probabilities of its own: they are those of the log</title>" in path.read_text()
