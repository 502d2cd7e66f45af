"""The audit: sound stores are content, and every way to bend one is found where it was bent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from math import comb, exp, lgamma
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.audit.draws import arm_counts
from rlrec.app.audit.draws.arm_counts import StarvingArms, SumsByArm
from rlrec.app.audit.integrity import overdue
from rlrec.app.audit.integrity.findings import Findings
from rlrec.app.upkeep.doctor import CHECKS, Report, Request, doctor
from rlrec.ope.intervals import betting
from rlrec.store import Store
from rlrec.store.database import bulk
from rlrec.store.policies import policies
from rlrec.store.upkeep import audit as store_audit
from rlrec.times import parse
from tests.app.grown import LAST, LATER, START, grown, sql
from tests.app.shop import fixed
from tests.conftest import ON_BOTH, CommandResult, Run, begin, click, filled, runner


@pytest.fixture
def healthy(db: str) -> str:
    """A store in which everything has happened that can happen."""
    filled(db, grown)
    return db


def audit(db: str, **options: Any) -> Report:
    with closing(Store(db)) as store:
        return doctor(store, Request(**options))


def errors(report: Report) -> set[tuple[str, str]]:
    return {(finding.check, finding.subject) for finding in report.findings if finding.severity == "error"}


@pytest.mark.slow
@ON_BOTH
def test_a_sound_store_is_content(healthy: str) -> None:
    counted = set[str]()
    with closing(Store(healthy)) as store:
        store.progress = lambda what, rows, share: counted.add(what)
        report = doctor(store, Request())
    assert report.findings == []
    assert report.ok
    assert report.checked["propensities"] == report.checked["decisions"] == 546
    assert report.checked["versions"] == 17
    assert counted >= {  # every long check says how far it is
        "tables", "tests of rows", "decisions", "changes of beliefs", "requests", "slates drawn again"
    }  # fmt: skip


PAGE = "(SELECT min(d.id) FROM decision d JOIN policy p ON p.id = d.policy_id WHERE p.name = 'ts' AND d.size = 3)"
KEY = "(SELECT max(key) FROM feedback_key WHERE digest <> (SELECT min(digest) FROM feedback_key))"
UCB = "(SELECT max(d.id) FROM decision d JOIN policy p ON p.id = d.policy_id WHERE p.name = 'ucb' AND d.size = 1)"
CLICK = (
    "(SELECT max(e.decision_id) FROM event e JOIN decision d ON d.id = e.decision_id JOIN policy p"
    " ON p.id = d.policy_id WHERE p.name = 'ts' AND e.kind = 'seen' AND NOT EXISTS"
    " (SELECT 1 FROM event n WHERE n.decision_id = e.decision_id AND n.value < 0))"
)
VERSION = "(SELECT v.id FROM version v JOIN policy p ON p.id = v.policy_id WHERE p.name = 'ts' AND v.number = {})"
ARM = "arm_id = 1 AND version_id = " + VERSION
NEWEST = "seq = (SELECT max(seq) FROM belief_delta WHERE {0}) AND {0}"
FROZEN, LEARNING = ARM.format(2), ARM.format(1)
TS, DECISION = "policy ts arm a1", "decision {}"


def of(name: str, number: int = 1) -> str:
    """The rows of an arm's belief in a version of one of the policies that forget or see contexts."""
    return ARM.format(number).replace("'ts'", f"'{name}'")


def both(changed: str, where: str) -> list[str]:
    """A belief and the newest change of it, bent alike."""
    newest = f"UPDATE belief_delta SET {changed} WHERE {NEWEST.format(where)}"
    return [newest, f"UPDATE belief SET {changed} WHERE {where}"]


SEES, OTHER = of("sees"), of("sees").replace("arm_id = 1", "arm_id = 2")
ITS = f"extra = (SELECT extra FROM belief WHERE {OTHER})"
FADES = "(SELECT max(d.id) FROM decision d JOIN policy p ON p.id = d.policy_id WHERE p.name = 'fades')"
THIRD = "(SELECT min(id) FROM decision WHERE step = 2)"
SECOND = (
    f"(SELECT e.id FROM decision e JOIN decision d ON e.session_id = d.session_id AND e.visit = d.visit AND e.step = 1"
    f" WHERE d.id = {THIRD})"
)
PAGES = "UPDATE version SET parameters = replace(parameters, '{}', '{}') WHERE policy_id = " + (
    "(SELECT id FROM policy WHERE name = '{}')"
)

BENT: dict[str, tuple[list[str], str, str]] = {
    "belief": ([f"UPDATE belief SET reward_sum = reward_sum + 1 WHERE {LEARNING}"], "beliefs", TS),
    "belief gone": ([f"DELETE FROM belief WHERE {LEARNING}"], "beliefs", TS),
    "change": ([f"UPDATE belief_delta SET d_pulls = 9 WHERE {NEWEST.format(LEARNING)}"], "beliefs", TS),
    "change gone": ([f"DELETE FROM belief_delta WHERE {NEWEST.format(LEARNING)}"], "beliefs", TS),
    "belief with its change": (
        [
            f"UPDATE belief_delta SET d_pulls = d_pulls + 1, pulls = pulls + 1 WHERE {NEWEST.format(LEARNING)}",
            f"UPDATE belief SET pulls = pulls + 1 WHERE {LEARNING}",
        ],
        "slots", TS,
    ),
    "frozen belief": (
        [
            f"UPDATE belief_delta SET d_reward_sum = 5, reward_sum = 5 WHERE {FROZEN}",
            f"UPDATE belief SET reward_sum = 5 WHERE {FROZEN}",
        ],
        "slots", TS,
    ),
    "weighed event gone": ([f"DELETE FROM event WHERE kind = 'click' AND decision_id = {CLICK}"], "slots", "policy ts"),
    "other event gone": ([f"DELETE FROM event WHERE number = 1 AND decision_id = {CLICK}"], "dangling", CLICK),
    "propensity": ([f"UPDATE slot SET propensity = 0.99 * propensity WHERE decision_id = {UCB}"], "propensities", UCB),
    "propensity and log": (
        [
            f"UPDATE slot SET propensity = 0.99 * propensity, marginal = 0.99 * marginal WHERE decision_id = {UCB}",
            f"UPDATE decision SET log_propensity = log_propensity + ln(0.99) WHERE id = {UCB}",
        ],
        "propensities", UCB,
    ),
    "marginal": ([f"UPDATE slot SET marginal = NULL WHERE decision_id = {PAGE}"], "propensities", PAGE),
    "smallest": ([f"UPDATE slot SET min_propensity = 0.001 WHERE decision_id = {PAGE}"], "propensities", PAGE),
    "log": ([f"UPDATE decision SET log_propensity = log_propensity - 1e-6 WHERE id = {PAGE}"], "propensities", PAGE),
    "belief named": ([f"UPDATE decision SET belief_seq = 0 WHERE id = {UCB}"], "propensities", UCB),
    "arm": ([f"UPDATE slot SET arm_id = 1 + arm_id % 4 WHERE decision_id = {UCB}"], "draws", UCB),
    "arm's belief": ([f"UPDATE slot SET arm_id = 1 + arm_id % 4 WHERE decision_id = {UCB}"], "slots", "policy ucb"),
    "seed": ([f"UPDATE decision SET seed = 12345 WHERE id = {PAGE}"], "draws", PAGE),
    "arm not eligible": ([f"UPDATE slot SET arm_id = 5 WHERE decision_id = {UCB}"], "dangling", UCB),
    "history": ([f"UPDATE decision SET history = x'' WHERE id = {THIRD}"], "history", THIRD),
    "history in pieces": ([f"UPDATE decision SET history = substr(history, 2) WHERE id = {THIRD}"], "history", THIRD),
    "history without end": (
        [f"UPDATE decision SET history = substr(history, 1, length(history) - 24) WHERE id = {THIRD}"],
        "history", THIRD,
    ),
    "arm remembered": ([f"UPDATE slot SET arm_id = 1 + arm_id % 4 WHERE decision_id = {SECOND}"], "history", THIRD),
    "page": ([f"DELETE FROM slot WHERE position = 3 AND decision_id = {PAGE}"], "dangling", PAGE),
    "censored": ([f"UPDATE slot SET censored = 1 - censored WHERE decision_id = {UCB}"], "slots", UCB),
    "decision gone": ([f"DELETE FROM decision WHERE id = {PAGE}"], "dangling", "session ts-0 visit 1"),
    "visit": (["UPDATE visit SET steps = steps + 1 WHERE session_id = 1"], "dangling", "session ts-0 visit 1"),
    "user": (["DELETE FROM users WHERE id = 1"], "dangling", "session id 1"),
    "other policy": ([f"UPDATE decision SET version_id = {VERSION.format(1)} WHERE id = {UCB}"], "dangling", UCB),
    "counter": (["UPDATE policy_head SET seq = 2 WHERE policy_id = 1"], "beliefs", TS),
    "eligible set": (["UPDATE eligible_set SET arms = '[1,2]' WHERE id = 1"], "dangling", "eligible_set 1"),
    "no JSON": (["UPDATE eligible_set SET arms = '[1,2' WHERE id = 1"], "dangling", "eligible_set 1"),
    "context": (["UPDATE context SET body = '7' WHERE id = 1"], "dangling", "context 1"),
    "digest of a session": (["UPDATE session SET digest = digest + 1"], "dangling", "session"),
    "digest of a user": (["UPDATE users SET digest = NULL"], "dangling", "user"),
    "kind": (["UPDATE policy SET kind = 'ucbx' WHERE name = 'ucb'"], "propensities", "policy ucb"),
    "prior": ([f"INSERT INTO prior VALUES ({VERSION.format(1)}, 1, 7, 7)"], "propensities", "decision"),
    "key": (["DELETE FROM event WHERE key IS NOT NULL"], "dangling", "decision"),
    "moments": ([f"UPDATE belief SET {ITS} WHERE {SEES}"], "beliefs", "policy sees arm a1"),
    "moments with their change": (both(ITS, SEES), "slots", "policy sees arm a1"),
    "moments gone": (both("extra = NULL", SEES), "slots", "policy sees arm a1"),
    "moments cut": (both("extra = substr(extra, 1, 8)", SEES), "slots", "policy sees arm a1"),
    "moments in pieces": (both("extra = substr(extra, 1, 7)", SEES), "slots", "policy sees"),
    "moments without number": (
        both("extra = CAST(x'000000000000f87f' || substr(extra, 9) AS BLOB)", SEES), "slots", "policy sees arm a1",
    ),
    "frozen moments": (
        both(ITS, of("sees", 2)), "slots", "policy sees arm a1",
    ),
    "belief's ordinal": ([f"UPDATE belief SET ordinal = ordinal + 1 WHERE {of('fades')}"], "beliefs", "policy fades"),
    "ordinal with its change": (both("ordinal = ordinal - 1", of("fades")), "beliefs", "policy fades arm a1"),
    "bucket": (both("bucket = bucket - 1", of("ends")), "slots", "policy ends arm a1"),
    "decision's ordinal": ([f"UPDATE decision SET ordinal = ordinal - 1 WHERE id = {FADES}"], "dangling", FADES),
    "belief's age": ([f"UPDATE decision SET belief_ordinal = 1 WHERE id = {FADES}"], "propensities", FADES),
    "head's ordinal": (
        ["UPDATE policy_head SET ordinal = ordinal + 1 WHERE ordinal > 0"], "dangling", "policy ends",
    ),
    "frozen ordinal": (
        [f"UPDATE version SET ordinal = ordinal + 1 WHERE id = {VERSION.format(2).replace('ts', 'fades')}"],
        "beliefs", "policy fades arm a1",
    ),
    "taught in pieces": (both("extra = substr(extra, 1, 7)", of("sees", 2)), "beliefs", "policy sees"),
    "no encoder": ([PAGES.format('"intercept":true', '"intercept":7', "sees")], "propensities", "policy sees"),
    "no features": (
        ["UPDATE version SET parameters = '{\"context\":3}' WHERE parameters LIKE '%page%'"], "slots", "policy sees",
    ),
    "encoder": ([PAGES.format('"x"', '"w"', "sees")], "slots", "policy sees"),
    "arm's encoder": ([PAGES.format('"price"', '"rank"', "shares")], "propensities", "decision"),
    "state": ([f"UPDATE decision SET state = '{{' WHERE id = {UCB}"], "dangling", UCB),
    "features": (["UPDATE arm SET features = '7' WHERE id = 2"], "dangling", "arm 2"),
    "earlier features": (["UPDATE arm_history SET features = '{' WHERE arm_id = 3"], "dangling", "arm 3"),
    "history of a visit": (
        ["UPDATE visit SET history = x'0102' WHERE history IS NOT NULL AND session_id = 1"], "history", "session id 1",
    ),
    "recent arms of a visit": (
        ["UPDATE visit SET recent = '[7]' WHERE history IS NOT NULL AND session_id = 1"], "history", "session id 1",
    ),
    "belief before its version": ([f"UPDATE decision SET belief_seq = -1 WHERE id = {PAGE}"], "dangling", PAGE),
    "time": ([f"UPDATE decision SET at = at - 1 WHERE id = {THIRD}"], "history", THIRD),
    "beginning of a visit": (["UPDATE visit SET started_at = started_at - 1"], "dangling", "session"),
    "assignment gone": (["DELETE FROM assignment WHERE id = 1"], "dangling", "decision"),
    "assignment": (
        ["UPDATE assignment SET variant_id = (SELECT sum(id) FROM variant) - variant_id WHERE id = 1"],
        "dangling", "decision",
    ),
    "weights of an experiment": (
        ["UPDATE variant SET weight = CASE label WHEN 'a' THEN 1e-9 ELSE 1 END"], "dangling", "experiment e",
    ),
    "salt of an experiment": (["UPDATE experiment SET salt = '1'"], "dangling", "experiment e"),
    "unit of an experiment": (["UPDATE experiment SET unit = 'session'"], "dangling", "decision"),
    "digest of a feedback key": (
        [f"UPDATE feedback_key SET digest = (SELECT min(digest) FROM feedback_key) WHERE key = {KEY}"],
        "dangling", f"(SELECT decision_id FROM feedback_key WHERE key = {KEY})",
    ),
    "event of a feedback key": (
        [f"UPDATE event SET kind = 'other' WHERE key = {KEY}"], "dangling",
        f"(SELECT decision_id FROM feedback_key WHERE key = {KEY})",
    ),
    "score": ([f"UPDATE slot SET score = score + 0.01 WHERE decision_id = {UCB}"], "propensities", UCB),
    "score on a page": (
        [f"UPDATE slot SET score = 7 WHERE position = 2 AND decision_id = {PAGE}"], "propensities", PAGE,
    ),
    "timeout": (["UPDATE settings SET session_timeout_us = 900000000000000000"], "dangling", "settings"),
    "order of events": (
        [f"UPDATE event SET received_at = received_at - 1, at = at - 1 WHERE number > 1 AND decision_id = {CLICK}"],
        "dangling", CLICK,
    ),
    "belief of its change": (
        ["UPDATE decision SET belief_seq = 1 WHERE id = (SELECT max(id) FROM decision WHERE policy_id = 4)"],
        "dangling", "(SELECT max(id) FROM decision WHERE policy_id = 4)",
    ),
    "narrower encoder": ([PAGES.format('"x",', "", "sees")], "slots", "policy sees"),
}  # fmt: skip


@pytest.mark.parametrize("table", ["arm", "visit", "belief", "decision", "rlrec_version", None])
def test_a_file_with_overwritten_pages_has_the_findings_of_sqlite(sqlite_db: str, table: str | None) -> None:
    run = runner(sqlite_db)
    for words in (["arm", "add", "a"], ["policy", "create", "p", "--kind", "ucb"]):
        run(*words).done()
    run("recommend", "--policy", "p", "--session", "s").done()
    size, page = sql(sqlite_db, f"SELECT 4096, max(rootpage) FROM sqlite_master WHERE name = '{table}'")[0]
    content = bytearray(Path(sqlite_db).read_bytes())
    start, end = (100, size) if page is None else ((page - 1) * size, page * size)  # without a table that of the schema
    content[start:end] = b"\xff" * (end - start)
    Path(sqlite_db).write_bytes(content)
    report = run("doctor", "--json")
    assert report.exit_code == 3
    assert any(
        finding["subject"] == "file" and "SQLite says" in finding["detail"] for finding in report.json["findings"]
    )


TOGETHER = [  # what is bent in a store together; what is found by drawing again is with its like
    [
        "belief", "other event gone", "arm's belief", "history", "visit", "user", "other policy",
        "eligible set", "context", "digest of a user", "moments", "belief's ordinal", "bucket",
        "decision's ordinal",
    ],
    [
        "belief gone", "arm not eligible", "history in pieces", "censored", "moments with their change",
        "ordinal with its change", "head's ordinal", "taught in pieces", "features", "earlier features",
        "history of a visit", "belief before its version", "weights of an experiment",
        "digest of a feedback key",
    ],
    [
        "change", "belief with its change", "history without end", "no JSON", "digest of a session",
        "moments gone", "frozen ordinal", "recent arms of a visit", "order of events", "belief of its change",
    ],
    [
        "change gone", "frozen belief", "arm remembered", "moments cut", "state", "salt of an experiment",
        "event of a feedback key", "timeout",
    ],
    ["weighed event gone", "counter", "moments in pieces", "time"],
    ["page", "moments without number", "beginning of a visit"],
    ["decision gone", "frozen moments"],
    ["key"],
    ["no features", "assignment gone"],
    ["encoder", "assignment"],
    ["unit of an experiment", "narrower encoder"],
    ["propensity", "marginal", "seed", "belief's age", "no encoder"],
    ["propensity and log", "smallest"],
    ["log", "belief named"],
    ["arm", "score on a page"],
    ["kind", "arm's encoder"],
    ["prior"],
    ["score"],
]  # fmt: skip
ALSO_ON_POSTGRES = [
    ["belief", "moments cut", "user", "digest of a feedback key"],
    ["weighed event gone", "encoder", "propensity and log", "weights of an experiment"],
]


def subject_of(db: str, name: str) -> str:
    """Whom a finding about what is bent names."""
    subject = BENT[name][2]
    return f"decision {sql(db, f'SELECT {subject}')[0][0]}" if subject.startswith("(") else subject


def bend(db: str, names: list[str]) -> list[str]:
    """Bend what is named: those of the names that an audit does not find."""
    subjects = {name: subject_of(db, name) for name in names}
    sql(db, *(statement for name in names for statement in BENT[name][0]))
    # what is found without its draws is found in all rows whatever the sample
    drawn_again = any(BENT[name][1] in ("propensities", "draws") for name in names)
    report = audit(db, sample=None if drawn_again else 5)
    assert not report.ok
    return [name for name in names if not is_reported(errors(report), BENT[name][1], subjects[name])]


def is_reported(reported_errors: set[tuple[str, str]], check: str, subject: str) -> bool:
    return any(its == check and (subject + " ") in (where + " ") for its, where in reported_errors)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("db", "names"),
    [("sqlite", names) for names in TOGETHER] + [("postgres", names) for names in ALSO_ON_POSTGRES],
    indirect=["db"],
)
def test_what_was_bent_is_found(healthy: str, names: list[str]) -> None:
    """Each by a finding that no other of those that are bent together makes."""
    assert bend(healthy, names) == []


def test_everything_is_bent() -> None:
    assert sorted(name for names in TOGETHER for name in names) == sorted(BENT)


@pytest.mark.simulation
@pytest.mark.parametrize("name", BENT)
def test_what_is_bent_with_others_is_found_alone_and_makes_no_finding_of_theirs(healthy: str, name: str) -> None:
    """So that none of them hides that another is not found."""
    others = {other for names in (*TOGETHER, *ALSO_ON_POSTGRES) if name in names for other in names}
    subjects = {other: subject_of(healthy, other) for other in others}
    sql(healthy, *BENT[name][0])
    reported = errors(audit(healthy))
    assert [other for other in subjects if is_reported(reported, BENT[other][1], subjects[other])] == [name]


@pytest.mark.parametrize(("seq", "ok"), [(0, False), (1, False), (2, True)])
def test_a_decision_names_no_belief_that_was_changed_long_before(
    run_sqlite: Run, sqlite_db: str, seq: int, ok: bool
) -> None:
    """Where its probabilities are the same as from the belief that it was drawn from."""
    for words in (["arm", "add", "a"], ["policy", "create", "p", "--kind", "uniform"]):
        run_sqlite("--now", START, *words).done()
    for at in (START, LATER, LAST):
        run_sqlite("--now", at, "recommend", "--policy", "p", "--session", "s").done()
    sql(sqlite_db, f"UPDATE decision SET belief_seq = {seq} WHERE id = 3")
    assert errors(audit(sqlite_db)) == (set() if ok else {("dangling", "decision 3")})


@pytest.mark.parametrize(("earlier", "ok"), [("01:59:30", True), ("00:05:00", False)])
def test_an_event_may_be_older_than_one_before_it_by_a_wait_for_its_lock(
    run_sqlite: Run, sqlite_db: str, earlier: str, ok: bool
) -> None:
    """So the program wrote them, before it read the clock under the lock."""
    for words in (["arm", "add", "a"], ["policy", "create", "p", "--kind", "uniform"]):
        run_sqlite("--now", START, *words).done()
    run_sqlite("--now", START, "recommend", "--policy", "p", "--session", "s").done()
    for at in ("2026-01-01T02:00:00Z", "2026-01-01T02:00:01Z"):
        run_sqlite("--now", at, "feedback", 1, "click").done()
    time = parse(f"2026-01-01T{earlier}Z")
    sql(sqlite_db, f"UPDATE event SET at = {time}, received_at = {time} WHERE number = 2")
    assert errors(audit(sqlite_db)) == (set() if ok else {("dangling", "decision 1")})


@pytest.fixture
def shop(run_sqlite: Run) -> Run:
    """A store with a visit of three decisions."""
    begin(run_sqlite, "ab", "p", "uniform")
    run_sqlite("recommend", "--input", "-", stdin=[{"policy": "p", "session": "s"}] * 3).done()
    return run_sqlite


def test_an_error_is_exit_3_after_the_report(shop: Run, sqlite_db: str) -> None:
    sql(sqlite_db, "UPDATE visit SET steps = steps + 1")
    result = shop("doctor", "--json")
    assert result.exit_code == 3
    assert list(result.json) == ["ok", "findings", "checked", "at", "left_out"]
    assert result.json["findings"] == [
        {
            "check": "dangling", "severity": "error", "subject": "session s visit 1",
            "detail": "it says 4 steps and has 3 decisions",
        }
    ]  # fmt: skip
    assert result.error["code"] == 3


def test_every_format_has_one_layout_whatever_was_found(shop: Run, sqlite_db: str) -> None:
    fine = shop("doctor", "--sample", "5").stdout.splitlines()
    assert shop("doctor", "--format", "csv").stdout.splitlines() == ["check,severity,subject,detail"]
    sql(sqlite_db, "UPDATE visit SET steps = steps + 1")
    bent = shop("doctor", "--sample", "5").stdout.splitlines()
    results = [line for line in bent[2:] if line.endswith(("ok", "1 error"))]
    assert (bent[2], len(results)) == (fine[2], len(CHECKS))
    date = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z: (.*)")
    assert [date.fullmatch(lines[0])[1] for lines in (fine, bent)] == ["ok", "1 error"]
    assert "error dangling, session s visit 1: it says 4 steps and has 3 decisions" in bent
    findings = shop("doctor", "--json").json["findings"]
    assert shop("doctor", "--format", "ndjson").lines == findings
    assert shop("doctor", "--format", "csv").stdout.splitlines()[1:] == [",".join(findings[0].values())]


@ON_BOTH
def test_a_sample_of_a_long_log_is_read_alone(healthy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MIN_DECISIONS", 0)
    everything, sampled = audit(healthy, sample=1_000), audit(healthy, sample=5)
    assert [(finding.severity, finding.check) for finding in everything.findings] == [("info", "propensities")]
    assert everything.checked["propensities"] > 500 > 40 > sampled.checked["decisions"] >= 5
    assert "beliefs" in sampled.left_out
    sql(healthy, "UPDATE visit SET steps = steps + 1 WHERE session_id = 1 AND number = 1")
    sql(healthy, "UPDATE slot SET propensity = propensity / 2 WHERE decision_id = 4 AND position = 1")
    assert {check for check, _ in errors(audit(healthy, sample=1_000))} == {"dangling", "propensities"}


def test_a_sample_of_a_long_log_takes_neighbours_that_share_beliefs(
    healthy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "MIN_DECISIONS", 0)
    with closing(Store(healthy)) as store, store.read() as unit:
        ids, total = store_audit.random_ids(unit, 40, seed=0, run=10)
        stored = {row[0] for row in unit.ask("SELECT id FROM decision WHERE imported = 0")}
    runs = {number // 10 for number in ids.tolist()}
    assert (len(ids), total) == (40, len(stored))
    assert len(runs) <= 6
    cut = {number for run in runs for number in range(10 * run, 10 * run + 10)} & stored - {*ids.tolist()}
    assert len({number // 10 for number in cut}) <= 1  # the last run, where the sample was full
    detail = audit(healthy, sample=40).findings[-1].detail
    figures = re.search(r"40 decisions in (\d) runs .*: a fault in (.*)% of the beliefs, or in (.*)% of", detail)
    assert figures is not None
    faults = [100 * (1 - 0.05 ** (1 / number)) for number in (int(figures[1]), 40)]
    assert [float(figures[2]), float(figures[3])] == pytest.approx(faults, abs=0.01)


@pytest.mark.slow
def test_a_sample_is_said_and_the_same_each_time_and_looking_changes_nothing(healthy: str) -> None:
    before = Path(healthy).read_bytes()
    first, again = audit(healthy, sample=7), audit(healthy, sample=7)
    assert first == again
    assert Path(healthy).read_bytes() == before
    assert first.checked["propensities"] == 7
    assert [(finding.severity, finding.check) for finding in first.findings] == [("info", "propensities")]
    assert "7 of 546" in first.findings[0].detail


# -- a wrong logger --


def wrong_log(db: str, folder: Path, *, n: int, pick: Callable[[np.random.Generator, Any], Any]) -> Report:
    """A log of n pages of one arm that says softmax, and shows what `pick` says."""
    logits = np.array([0.6, 0.3, 0.0, -0.2, -0.5])
    chance = np.exp(logits) / np.exp(logits).sum()
    rng = np.random.default_rng(4)
    with closing((folder / "log.ndjson").open("w")) as file:
        for row in range(n):
            arm = int(pick(rng, chance))
            slate = [{"position": 1, "arm": f"a{arm}", "propensity": chance[arm]}]
            line = {"session": f"s{row}", "slate": slate, "eligible": [f"a{i}" for i in range(5)]}
            file.write(json.dumps(line) + "\n")
    runner(db)("import-log", folder / "log.ndjson", "--layout", "jsonl", "--policy", "foreign").done()
    return audit(db)


def test_argmax_logged_as_softmax_is_caught(sqlite_db: str, tmp_path: Path) -> None:
    report = wrong_log(sqlite_db, tmp_path, n=500, pick=lambda _, chance: chance.argmax())
    assert ("shown", "policy foreign arm a0") in errors(report)


def test_half_the_temperature_is_caught_within_a_thousand_decisions(sqlite_db: str, tmp_path: Path) -> None:
    """Half of 200 runs need 316, none more than 686."""

    def cold(rng: np.random.Generator, chance: Any) -> Any:
        return rng.choice(5, p=chance**2 / (chance**2).sum())

    assert ("shown", "policy foreign arm a0") in errors(wrong_log(sqlite_db, tmp_path, n=1_000, pick=cold))


def test_softmax_logged_as_softmax_is_not(sqlite_db: str, tmp_path: Path) -> None:
    assert wrong_log(sqlite_db, tmp_path, n=500, pick=lambda rng, chance: rng.choice(5, p=chance)).ok


def test_argmax_of_our_own_policy_is_caught_by_its_counts(db: str) -> None:
    """Rows put in by hand, with the propensities that the policy has: it is the counts that cannot be."""
    run = runner(db)
    begin(run, ("a1", "a2", "a3"), "u", "uniform")
    run("recommend", "--input", "-", stdin=[{"policy": "u", "session": f"s{i}"} for i in range(200)]).done()
    sql(db, "UPDATE slot SET arm_id = 1")
    report = audit(db)
    assert {("shown", f"policy u arm {arm}") for arm in ("a1", "a2", "a3")} <= errors(report)


def drifting(rng: np.random.Generator, n: int, m: int) -> Any:
    """Propensities (n, m) of a policy that learns: from uniform to nearly one arm."""
    logits = rng.normal(size=m) * np.linspace(0, 12, n)[:, None]
    chance = np.exp(logits - logits.max(axis=1, keepdims=True))
    return chance / chance.sum(axis=1, keepdims=True)


def drawn(rng: np.random.Generator, chance: Any) -> Any:
    """One arm a row, (n,)."""
    return (chance.cumsum(axis=1) > rng.random((len(chance), 1))).argmax(axis=1)


def looks(chance: Any, arm: Any, *, every: int) -> Iterator[SumsByArm]:
    """The totals of all m arms after each batch of so many decisions; chance (n, m) as logged, arm (n,) as shown."""
    m = chance.shape[1]
    bets, counts = np.zeros((betting.N_BETS, m)), np.zeros((4, m))
    for start in range(0, len(arm), every):
        p, hit = chance[start : start + every], arm[start : start + every, None] == np.arange(m)
        separate, least = p[hit], p.min(axis=1)
        missed = betting.log_factors_not_shown(least)
        bets = (
            betting.spread_wealth(bets)
            + missed.sum(axis=1, keepdims=True)
            + (betting.log_factors_shown(separate, least) - missed) @ hit
        )
        counts += (
            np.array([np.ones_like(separate), np.zeros_like(separate), 1 / separate, (1 - separate) / separate**2])
            @ hit
        )
        counts[0], counts[1] = start + len(separate), counts[1] + hit.sum(axis=0)
        totals = SumsByArm(0)
        totals.arms, totals.sums = 1 + np.arange(m), np.vstack([counts, bets])
        yield totals


@pytest.mark.parametrize("logs", [100, pytest.param(1_000, marks=pytest.mark.simulation)])
def test_honest_stores_are_never_accused_at_any_look(logs: int) -> None:
    """Each seeded log is ever accused with probability below 1e-4: none is, but with probability below 0.01 of 100."""
    rng = np.random.default_rng(20)
    for trial in range(logs):
        n, m = int(rng.choice([30, 300, 1_000])), int(rng.choice([2, 5, 20]))
        fixed = np.tile(rng.dirichlet(np.full(m, 0.3)) * 0.95 + 0.05 / m, (n, 1))
        chance = drifting(rng, n, m) if trial % 2 else fixed
        nights = looks(chance, drawn(rng, chance), every=n // 5)
        assert not [why for totals in nights for why in arm_counts.accused_arms(totals, policy=1)]


def test_a_logger_that_turns_wrong_after_a_long_honest_time_is_caught() -> None:
    rng = np.random.default_rng(21)
    chance = np.tile([0.5, 0.3, 0.2], (62_000, 1))
    arm = drawn(rng, chance)
    arm[60_000:] = 0
    *honest, last = (list(arm_counts.accused_arms(totals, policy=1)) for totals in looks(chance, arm, every=20_000))
    assert honest == [[], [], []]
    assert {which for which, _ in last} == {1, 2, 3}


# -- what should have come --


@pytest.fixture
def clicked(sqlite_db: str) -> tuple[str, Callable[..., CommandResult]]:
    """A policy whose first 100 decisions had a click each other time, and 300 silent ones an hour later."""
    run = runner(sqlite_db)
    run("--now", START, "arm", "import", "-", stdin=[{"arm": arm} for arm in ("a1", "a2")]).done()
    run("--now", START, "reward", "define", "slow", "click=1", "--learn", "settled").done()
    run("--now", START, "policy", "create", "p", "--kind", "uniform", "--reward", "slow").done()

    def serve(at: str, n: int) -> list[Any]:
        options = [{"policy": "p", "session": f"{at}{i}"} for i in range(n)]
        return run("--now", at, "recommend", "--input", "-", "--format", "ndjson", stdin=options).done().lines

    click(run, [answer["decision_id"] for answer in serve(START, 100)[::2]], "--now", LATER)
    serve("2026-01-01T01:00:00Z", 300)
    return sqlite_db, run


def test_a_reward_outage_is_a_warning(clicked: tuple[str, Callable[..., CommandResult]]) -> None:
    answer = clicked[1]("--now", LAST, "doctor", "--json").done().json
    reported = [(finding["check"], finding["severity"], finding["subject"]) for finding in answer["findings"]]
    assert answer["ok"]
    assert ("reward-outage", "warning", "policy p") in reported
    assert ("waiting", "warning", "policy p") in reported


def test_an_outage_of_one_kind_of_events_is_named(sqlite_db: str) -> None:
    """Each other decision is clicked, and one in four bought, until nothing tells of purchases any more."""
    run = runner(sqlite_db)
    run("--now", START, "arm", "add", "a1").done()
    run("--now", START, "reward", "define", "shop", "click=1, buy=10").done()
    run("--now", START, "policy", "create", "p", "--kind", "uniform", "--reward", "shop").done()
    for at, n in ((START, 200), (LATER, 300)):
        lines = [{"policy": "p", "session": f"{at}{i}"} for i in range(n)]
        answers = run("--now", at, "recommend", "--input", "-", "--format", "ndjson", stdin=lines).done().lines
        events = [{"click": 1} if i % 4 or at == LATER else {"click": 1, "buy": 1} for i in range(0, n, 2)]
        ids = [answer["decision_id"] for answer in answers[::2]]
        feedback = [{"decision_id": key, "events": values} for key, values in zip(ids, events, strict=True)]
        run("--now", at, "feedback", "--input", "-", stdin=feedback).done()
    report = run("--now", LAST, "doctor", "--json").done().json
    (detail,) = (finding["detail"] for finding in report["findings"] if finding["check"] == "reward-outage")
    assert detail.startswith("no event buy of reward shop came to the last 303 decisions, since decision 197 of")


def test_silence_of_the_immature_is_no_outage(clicked: tuple[str, Callable[..., CommandResult]]) -> None:
    answer = clicked[1]("--now", "2026-01-01T01:10:00Z", "doctor", "--json").done().json
    assert "reward-outage" not in {finding["check"] for finding in answer["findings"]}


def serve_each_fourth_minute(run: Run, minutes: range, *, until: int) -> None:
    """50 decisions each, of which one half is clicked within a minute if it comes before the end."""
    for minute in minutes:
        lines = [{"policy": "p", "session": f"s{minute}-{i}"} for i in range(50)]
        options = ("recommend", "--input", "-", "--format", "ndjson")
        answers = run("--now", f"2026-01-01T00:{minute:02}:00Z", *options, stdin=lines).done().lines
        if minute < until:
            clicked = [answer["decision_id"] for answer in answers[::2]]
            click(run, clicked, "--now", f"2026-01-01T00:{minute + 1:02}:00Z")


def served_40_minutes(db: str) -> None:
    run = runner(db)
    run("--now", START, "arm", "add", "a1").done()
    run("--now", START, "policy", "create", "p", "--kind", "uniform").done()
    serve_each_fourth_minute(run, range(0, 40, 4), until=40)


@pytest.mark.slow
@pytest.mark.parametrize(("until", "observed"), [(40, {"reward-outage"}), (48, set())])
def test_an_outage_is_seen_before_the_window_is_over(sqlite_db: str, until: int, observed: set[str]) -> None:
    """Of 50 decisions each fourth minute one half is clicked within a minute; then nothing comes until minute 57."""
    run = filled(sqlite_db, served_40_minutes)
    serve_each_fourth_minute(run, range(40, 60, 4), until=until)
    report = run("--now", "2026-01-01T00:57:00Z", "doctor", "--json").done().json
    assert {finding["check"] for finding in report["findings"]} == observed


def test_silence_weighs_each_decision_by_what_was_due() -> None:
    """Against the closed form of Beta-binomial where all was due, and the mean over who was due where it was not."""

    def closed(n: int) -> float:
        return exp(lgamma(52) + lgamma(41 + n) - lgamma(41) - lgamma(52 + n))  # 10 of 50 before: Beta(11, 41)

    assert overdue.silence_chance(np.ones(80), n_rewarded=10, n_decisions=50) == pytest.approx(closed(80), rel=1e-6)
    half = sum(comb(80, n) / 2**80 * closed(n) for n in range(81))
    assert overdue.silence_chance(np.full(80, 0.5), n_rewarded=10, n_decisions=50) == pytest.approx(half, rel=1e-6)


def test_a_day_without_the_nightly_delivery_is_no_pause() -> None:
    at = np.arange(1_000)
    nightly = np.repeat(np.arange(100, 1_000, 100), 20)  # after each 100 decisions
    assert not overdue.has_paused(at, nightly)
    assert overdue.has_paused(at, nightly[nightly < 800])


def served(run: Callable[..., CommandResult], name: str, *, n: int = 1_000) -> None:
    lines = [{"policy": name, "session": f"{name}{i}"} for i in range(n)]
    run("-q", "recommend", "--input", "-", "--seed", 1, stdin=lines).done()


@pytest.mark.slow
def test_starving_arms_and_a_log_of_one_arm_are_warnings(sqlite_db: str) -> None:
    run = runner(sqlite_db)
    run("arm", "import", "-", stdin=[{"arm": arm} for arm in ("a1", "a2", "a3")]).done()
    for name, shares in (("one", [1]), ("two", [0.5, 0.5]), ("all", [0.4, 0.4, 0.2])):
        fixed(run, name, {f"a{number}": share for number, share in enumerate(shares, 1)})
        served(run, name)
    findings = audit(sqlite_db).findings
    assert [(finding.check, finding.severity, finding.subject) for finding in findings] == [
        ("starving", "warning", "policy one"),
        ("entropy", "warning", "policy one"),
        ("starving", "warning", "policy two"),
    ]
    assert findings[0].detail.startswith("2 active arms not shown for long: a2 (in 1,000 decisions, not ever), a3 (")
    assert "1.000 arms" in findings[1].detail
    run("arm", "retire", "a2", "a3").done()
    assert [(finding.check, finding.subject) for finding in audit(sqlite_db).findings] == [("entropy", "policy one")]
    # what is excluded says nothing of what policies do
    run("log", "exclude", "all", "--where", "policy=one").done()
    assert audit(sqlite_db).findings == []


def test_an_arm_starves_since_it_was_shown_last(sqlite_db: str) -> None:
    """The 500th of 2,000 decisions is the last one that shows a2; the smallest propensity promises nothing."""
    run = runner(sqlite_db)
    begin(run, ("a1", "a2"), "p", "uniform")
    served(run, "p", n=2_000)
    sql(
        sqlite_db,
        "UPDATE slot SET arm_id = 1 + (decision_id <= 500), min_propensity = 0",
        "UPDATE decision SET at = at + id",
    )
    with closing(Store(sqlite_db)) as store, store.read() as unit:
        policy, hungry, result = policies.all_policies(unit)[0], [], Findings()
        for size in (2_000, 300):
            fold = StarvingArms(unit, policy, keys={1: "a1", 2: "a2"}, ruled_ids=())
            for batch in store_audit.ranges(unit, policy.id, size=size):
                fold.take(batch)
            fold.finish(result)
            hungry.append(result.in_order()[-1].detail)
    assert "1 active arm not shown for long: a2 (in 1,500 decisions, not since" in hungry[0]
    assert hungry[0] == hungry[1]


def test_a_decision_is_the_answer_to_its_request(run_sqlite: Run, sqlite_db: str) -> None:
    begin(run_sqlite, "abc", "home", "uniform")
    run_sqlite("experiment", "create", "tea", "--variant", "x=home", "--variant", "y=home")
    run_sqlite("route", "create", "front", "--to", "home")
    run_sqlite("route", "create", "ramped", "--to", "home")
    run_sqlite("route", "set", "ramped", "--to", "home", "--share", "50%")
    options: list[dict[str, object]] = [
        {"policy": "home"}, {"policy": "home@1", "arms": ["c", "a"]}, {"experiment": "tea", "context": {"h": 1}},
        {"policy": "front"}, {"policy": "ramped", "arms": ["c", "a"]},
    ]  # fmt: skip
    lines = [
        {**words, "session": f"s{number}", "request_id": f"{letter}{number}", "user": f"u{number}"}
        for number, first in enumerate(options, 1)
        for letter, words in (("r", first), ("q", {"policy": "home"}))
    ]
    run_sqlite("recommend", "--input", "-", stdin=lines).done()
    assert audit(sqlite_db).findings == []
    sql(
        sqlite_db,
        "UPDATE decision SET request_digest = x'00' WHERE id = 1",
        "UPDATE session SET user_id = 3 WHERE id = 2",  # of decisions 3 and 4
        "UPDATE decision SET size = 2 WHERE id = 5",
    )
    reported = {subject for check, subject in errors(audit(sqlite_db)) if check == "requests"}
    assert reported == {"decision 1", "decision 3", "decision 4", "decision 5"}


def test_rounded_propensities_are_a_warning(healthy: str) -> None:
    sql(healthy, f"UPDATE slot SET rounded = 1 WHERE decision_id = {PAGE}")
    report = audit(healthy, sample=5)
    assert report.ok
    assert [(finding.check, finding.severity, finding.subject) for finding in report.findings] == [
        ("rounded", "warning", "policy ts"),
        ("propensities", "info", "store"),
    ]
