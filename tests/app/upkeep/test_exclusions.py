"""Exclusions: what every reader leaves out, what beliefs learn no more, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import rlrec
from rlrec.app.imports.log_stores import reading
from rlrec.app.inputs import filters
from rlrec.store import Store
from rlrec.store.log import selected
from rlrec.times import parse
from tests.app.grown import grown
from tests.conftest import ON_BOTH, CommandResult, Run, filled, runner, store_after

NEVER_KEY = 'k"1, 2+3'
AFTER = "2026-01-02T00:00:00Z"


def at(run: Run, time: str, *args: object, stdin: str | None = None) -> CommandResult:
    return run("--now", time, "-q", *args, stdin=stdin).done()


def visited(db: str) -> None:
    """People and machines: 60 users of two decisions who click now and then, six who click all they see; contexts."""
    run = runner(db)
    at(run, "2026-01-01T00:00:00Z", "arm", "import", "-", stdin=[{"arm": arm} for arm in "abcd"])
    at(run, "2026-01-01T00:00:00Z", "policy", "create", "home", "--kind", "thompson", "--param", "floor=0.3")
    serve(run, policy="home")


def serve(run: Run, **source: str) -> None:
    """Two visits of everybody. source: policy or experiment."""
    users = [f"u{number}" for number in range(60)] + [f"m{number}" for number in range(6)]
    requests = [
        {
            **source, "session": f"s-{user}-{visit}", "user": user, "k": 3,
            "context": {"device": ["phone", "desk", NEVER_KEY][number % 3], "age": [1, True, "1", 1.5][number % 4]},
        }
        for visit in range(2)
        for number, user in enumerate(users)
    ]  # fmt: skip
    answers = at(
        run, "2026-01-01T00:01:00Z", "recommend", "--input", "-", "--seed", 1, "--format", "ndjson",
        stdin=requests,
    ).lines  # fmt: skip
    events = [
        {"decision_id": answer["decision_id"], "position": position, "events": {"click": 1}}
        for number, answer in enumerate(answers)
        for position in (1, 2, 3)
        if answer["user"][0] == "m" or (7 * number + position) % 5 == 0
    ]
    at(run, "2026-01-01T00:02:00Z", "feedback", "--input", "-", stdin=events)


run = store_after(visited)


def belief(run: Run, name: str, version: int) -> dict[str, tuple[float, float]]:
    arms = at(run, AFTER, "policy", "show", f"{name}@{version}", "--json").json["arms"]
    return {row["arm"]: (row["pulls"], row["reward_sum"]) for row in arms}


@ON_BOTH
def test_what_reads_the_log_is_as_in_a_store_without_the_excluded(run: Run, tmp_path: Path) -> None:
    answer = at(run, AFTER, "log", "exclude", "bots", "--machines", "--json").json
    assert (answer["users"], answer["sessions"]) == ([f"m{number}" for number in range(6)], [])
    assert (answer["decisions"], answer["total"]) == (12, 132)
    assert answer["rebuild"] == ["rlrec policy rebuild home"]
    at(run, AFTER, "policy", "rebuild", "home")

    without = runner(str(tmp_path / "without.db"))
    at(without, AFTER, "init")
    at(without, AFTER, "arm", "import", "-", stdin=[{"arm": arm} for arm in "abcd"])
    everything = at(run, AFTER, "export-log", "-", "--log", "included=all").stdout.splitlines()
    people = [line for line in everything if json.loads(line)["user"][0] != "m"]
    assert at(run, AFTER, "export-log", "-").stdout.splitlines() == people
    at(without, AFTER, "import-log", "-", "--layout", "jsonl", "--policy", "home", stdin="\n".join(people) + "\n")
    for name, options in (("new", []), ("all", ["--log", "all"])):
        at(without, AFTER, "policy", "create", name, "--kind", "thompson", "--from-log", *(options[1:] or ["all"]))
    at(run, AFTER, "policy", "create", "new", "--kind", "thompson", "--from-log", "policy=home")
    expected = belief(without, "new", 1)
    assert belief(run, "home", 2) == belief(run, "new", 1) == expected
    assert belief(run, "home", 1) != expected
    for words in (["outcomes", "--json"], ["evaluate", "uniform", "--log", "policy=home", "--json"]):
        first, second = (list(numbers(at(store, AFTER, *words).json)) for store in (run, without))
        assert first == pytest.approx(second, rel=1e-12)


def numbers(value: Any) -> Iterator[float]:
    """All numbers of a document in their order."""
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from numbers(entry)
    elif isinstance(value, int | float):
        yield float(value)


@ON_BOTH
def test_the_excluded_teach_no_more(run: Run) -> None:
    at(run, AFTER, "log", "exclude", "bots", "--where", "user=m0+m1")
    at(run, AFTER, "policy", "rebuild", "home")
    before = belief(run, "home", 1), belief(run, "home", 2)
    late = [{"decision_id": 61, "position": 2, "events": {"click": -1}}]  # a decision of m0
    requests = [{"policy": "home", "session": "new", "user": "m1", "k": 3}]
    shown = at(
        run, AFTER, "recommend", "--input", "-", "--seed", 1, "--format", "ndjson", stdin=requests
    ).lines  # fmt: skip
    late += [{"decision_id": shown[0]["decision_id"], "position": 1, "events": {"click": 1}}]
    at(run, AFTER, "feedback", "--input", "-", stdin=late)
    assert belief(run, "home", 2) == before[1]
    changed = {arm for arm, sums in belief(run, "home", 1).items() if sums != before[0][arm]}
    assert len(changed) == 1  # which has learned from the decision, and goes on to
    assert at(run, AFTER, "doctor", "--json").json["ok"]
    answer = at(run, AFTER, "log", "include", "bots", "--json").json
    assert answer["rebuild"] == ["rlrec policy rebuild home"]
    assert belief(run, "home", 2) == before[1]
    answered = run("--now", AFTER, "log", "exclude", "staff", "--where", "user=u1").done()
    assert "`rlrec policy rebuild home`, then `rlrec policy promote home@VERSION`: its belief has" in answered.stderr
    assert "rlrec policy rebuild home; rlrec policy promote home@VERSION\n" in answered.stdout
    at(run, AFTER, "log", "include", "staff")
    at(run, AFTER, "policy", "rebuild", "home")
    assert sum(pulls for pulls, _ in belief(run, "home", 3).values()) == 133 * 3
    assert at(run, AFTER, "doctor", "--json").json["ok"]


def test_a_rebuilt_belief_that_serves_needs_no_rebuild(run: Run) -> None:
    exclude = ("log", "exclude", "bots", "--where", "user=m0+m1", "--json")
    assert at(run, AFTER, *exclude).json["rebuild"] == ["rlrec policy rebuild home"]
    at(run, AFTER, "policy", "rebuild", "home")
    assert at(run, AFTER, *exclude).json["rebuild"] == ["rlrec policy rebuild home"]  # it does not serve yet
    at(run, AFTER, "policy", "promote", "home@2")
    assert at(run, AFTER, *exclude).json["rebuild"] == []
    assert at(run, AFTER, "log", "include", "bots", "--json").json["rebuild"] == ["rlrec policy rebuild home"]


@ON_BOTH
@pytest.mark.slow
def test_an_audit_knows_what_every_kind_left_out(db: str, tmp_path: Path) -> None:
    """Also where people are forgotten, decisions pruned and versions frozen afterwards."""
    run = filled(db, grown)
    day, week = "2026-01-03T00:00:00Z", "2026-01-10T00:00:00Z"
    at(run, day, "log", "exclude", "one", "--where", "user=u1")
    at(run, day, "log", "exclude", "page", "--where", "field:page=y")
    rows = at(run, day, "policy", "list", "--format", "ndjson").lines
    learning = [row["policy"] for row in rows if row["status"] == "learning" and "@" not in row["policy"]]
    for name in learning:
        at(run, day, "policy", "rebuild", name)
        at(
            run,
            day,
            "policy",
            "promote",
            f"{name}@{at(run, day, 'policy', 'show', name, '--json').json['versions'][-1]}",
        )
    requests = [
        {"policy": name, "session": f"n{number}", "user": f"u{number}", "context": {"page": "xyz"[number]}}
        for name in learning for number in range(3)
    ]  # fmt: skip
    shown = at(run, day, "recommend", "--input", "-", "--format", "ndjson", "--seed", 1, stdin=requests).lines
    old = at(run, day, "export-log", "-", "--log", "included=all").stdout.splitlines()
    decided = [json.loads(line)["decision_id"] for line in old]
    events = [{"decision_id": number, "position": 1, "events": {"click": 1}} for number in decided[::7]]
    at(run, day, "feedback", "--input", "-", stdin=events)
    assert len(shown) == 3 * len(learning)
    at(run, day, "settle")
    for name in learning:
        at(run, week, "policy", "freeze", name)
    at(run, week, "settle")
    assert errors(run, week) == []
    at(run, week, "db", "copy", "--to", tmp_path / "copy.db")
    assert errors(runner(str(tmp_path / "copy.db")), week) == []
    at(run, week, "db", "forget", "--user", "u1", "--yes")
    assert errors(run, week) == []
    assert at(run, week, "log", "list", "--json").json[0]["users"] == []
    at(run, week, "db", "prune", "--before", "2026-01-02T00:00:00Z", "--yes")
    assert errors(run, week) == []


def errors(run: Run, time: str) -> list[Any]:
    report = run("--now", time, "-q", "doctor", "--json").json
    return [row for row in report["findings"] if row["severity"] == "error"]


FILTERED = {  # the decisions of each filter
    "user=u1": 2, "user=u1+u2": 4, "session=s-u1-0": 1, "user=u1,session=s-u1-0+s-u2-0": 1, "field:device=phone": 44,
    f"field:device={json.dumps(NEVER_KEY)}": 44, "field:device=phone+desk": 88, "field:age=1": 34, "field:age=1.0": 34,
    "field:age=true": 34, 'field:age="1"': 32, 'field:"age"=1.5': 32, "field:age=1,field:device=phone": 12,
}  # fmt: skip


@pytest.mark.slow
def test_a_filter_names_people_and_fields(run: Run, db: str, tmp_path: Path) -> None:
    def exported(where: str) -> int:
        return len(at(run, AFTER, "export-log", "-", "--log", where).stdout.splitlines())

    def rows(log: str) -> int:
        words = ("evaluate", "uniform", "--log", log, "--estimator", "ips", "--interval", "normal", "--json")
        return int(at(run, AFTER, *words).json[0]["n"])

    assert {where: exported(where) for where in FILTERED} == FILTERED
    at(run, AFTER, "export-log", tmp_path / "log", "--layout", "parquet")
    folder = f"parquet:{tmp_path / 'log'}"
    with closing(Store(db, now=parse(AFTER))) as store, reading(store, folder) as (unit, *_):
        by_folder = {where: selected.extent(unit, filters.selection(unit, where)).decisions for where in FILTERED}
    assert by_folder == FILTERED
    assert rows(f"{folder},user=u1+u4,field:age=1") == 3 * 2
    assert rows("field:device=phone") == 3 * 44  # read as `export-log` reads the store
    assert run("--now", AFTER, "outcomes", "--log", "field:device=table").exit_code == 2


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--where", "until=2020-01-01"], 2, "nothing would be excluded"),
        (["--where", "since=2020-01-01"], 2, "nothing would be left"),
        (["--where", "field:devices=phone"], 2, "unknown field 'devices'"),
        (["--where", "user=nobody"], 2, "unknown user 'nobody'"),
        (["--where", 'user="u1'], 2, "a quote is not closed"),
        (["--where", "included=all"], 2, "--where FILTER or of --machines"),
        (["--where", ""], 2, "--where FILTER or of --machines"),
        ([], 2, "--where FILTER or of --machines"),
        (["--where", "user=u1", "--machines"], 2, "--where FILTER or of --machines"),
    ],
)
def test_an_exclusion_that_cannot_be_stores_nothing(run: Run, words: list[str], code: int, text: str) -> None:
    refused = run("--now", AFTER, "log", "exclude", "x", *words)
    assert (refused.exit_code, refused.stderr.count("\n")) == (code, 1)
    assert text in refused.stderr
    assert at(run, AFTER, "log", "list", "--json").json == []


def test_a_name_means_one_exclusion(run: Run) -> None:
    for created in (True, False):
        answer = at(run, AFTER, "log", "exclude", "bots", "--where", "user=m0", "--json").json
        assert answer["created"] is created
    assert run("--now", AFTER, "log", "exclude", "bots", "--where", "user=m1").exit_code == 6
    assert run("--now", AFTER, "log", "include", "bot").exit_code == 2
    assert run("--now", AFTER, "outcomes", "--log", "included=bot").exit_code == 2


def test_two_exclusions_leave_something_together(run: Run) -> None:
    at(run, AFTER, "log", "exclude", "phones", "--where", "field:device=phone+desk")
    refused = run("--now", AFTER, "log", "exclude", "others", "--where", f"field:device={json.dumps(NEVER_KEY)}")
    assert (refused.exit_code, "nothing would be left" in refused.stderr) == (2, True)


def test_an_answer_says_what_it_leaves_out(run: Run) -> None:
    at(run, AFTER, "log", "exclude", "bots", "--machines")
    for words, text in (
        (["outcomes"], "exclusions leave out 12 of 132 decisions: `rlrec log list` names them, --log included=all"),
        (["outcomes", "--log", "user=u1+m1"], "exclusions leave out 2 of 4 decisions"),
        (["outcomes", "--log", "user=u1"], ""),
        (["outcomes", "--log", "included=bots"], ""),
    ):
        stderr = run("--now", AFTER, *words).done().stderr
        assert text in stderr
        assert bool(text) == ("exclusions" in stderr)


def test_a_merged_user_takes_the_exclusion_along(run: Run) -> None:
    at(run, AFTER, "log", "exclude", "bots", "--where", "user=m1")
    at(run, AFTER, "user", "merge", "m1", "--into", "u1")
    assert at(run, AFTER, "log", "list", "--json").json[0]["users"] == ["u1"]
    assert at(run, AFTER, "doctor", "--json").json["ok"]


def test_what_is_learned_names_no_people(run: Run) -> None:
    refused = run("--now", AFTER, "policy", "create", "x", "--kind", "ucb", "--from-log", "user=u1")
    assert (refused.exit_code, "names no user" in refused.stderr) == (2, True)


def test_doctor_names_machines_and_the_way_to_leave_them_out(run: Run) -> None:
    findings = at(run, AFTER, "doctor", "--json").json["findings"]
    (detail,) = [row["detail"] for row in findings if row["check"] == "machines"]
    assert detail == (
        "6 users click nearly all that they are shown (m0, m1, m2, m3, m4, ...): "
        "`rlrec log exclude bots --machines` leaves them out; with --dry-run --json it names them"
    )
    at(run, AFTER, "log", "exclude", "bots", "--machines")
    assert [row for row in at(run, AFTER, "doctor", "--json").json["findings"] if row["check"] == "machines"] == []
    assert not at(run, AFTER, "log", "exclude", "bots", "--machines", "--json").json["created"]


def test_an_experiment_says_how_many_of_its_units_are_machines(run_sqlite: Run) -> None:
    start = "2026-01-01T00:00:00Z"
    at(run_sqlite, start, "arm", "import", "-", stdin=[{"arm": arm} for arm in "abcd"])
    at(run_sqlite, start, "policy", "create", "even", "--kind", "uniform")
    for name in ("ab", "later"):
        at(run_sqlite, start, "experiment", "create", name, "--variant", "a=even", "--variant", "b=even")
    serve(run_sqlite, experiment="ab")

    def notices(name: str) -> str:
        return run_sqlite("--now", AFTER, "experiment", "show", name).done().stderr

    assert (
        "of experiment ab, 6 users click nearly all that they are shown (m0, m1, m2, m3, m4, ...): "
        "`rlrec log exclude bots --machines` leaves them out\n"
    ) in notices("ab")
    assert "nearly all" not in notices("later")
    at(run_sqlite, AFTER, "log", "exclude", "bots", "--machines")
    assert "nearly all" not in notices("ab")


def test_a_machine_that_the_whole_log_hides_is_left_out_by_its_name(run_sqlite: Run) -> None:
    start, after = "2026-01-01T00:00:00Z", "2026-01-01T00:03:00Z"
    at(run_sqlite, start, "arm", "import", "-", stdin=[{"arm": arm} for arm in "abcd"])
    for name in ("even", "often"):
        at(run_sqlite, start, "policy", "create", name, "--kind", "uniform")
    at(run_sqlite, start, "experiment", "create", "ab", "--variant", "a=even", "--variant", "b=even")
    serve(run_sqlite, experiment="ab")
    clicking = [{"policy": "often", "session": f"t{n}", "user": f"t{n}", "k": 3} for n in range(1_200)]
    answers = at(run_sqlite, after, "recommend", "--input", "-", "--format", "ndjson", stdin=clicking).lines
    events = [
        {"decision_id": answer["decision_id"], "position": position, "events": {"click": 1}}
        for number, answer in enumerate(answers)
        for position in (1, 2, 3)
        if number % 4
    ]
    at(run_sqlite, after, "feedback", "--input", "-", stdin=events)
    notice = run_sqlite("--now", AFTER, "experiment", "show", "ab").done().stderr
    command = notice[notice.index("log exclude") :].split("`")[0]
    assert command == "log exclude bots --where user=m0+m1+m2+m3+m4+m5"
    assert run_sqlite("--now", AFTER, "log", "exclude", "bots", "--machines").exit_code == 2
    at(run_sqlite, AFTER, *command.split())
    assert "nearly all" not in run_sqlite("--now", AFTER, "experiment", "show", "ab").done().stderr


def test_python_has_the_commands_and_the_decisions(run: Run, db: str) -> None:
    with rlrec.open(db, now=AFTER, notice=lambda _: None) as store:
        assert store.log.exclude("bots", machines=True)["decisions"] == 12
        assert [row["exclusion"] for row in store.log.list()] == ["bots"]
        assert (len([*store.log()]), len([*store.log("included=all")])) == (120, 132)
        assert store.log.include("bots")["total"] == 132


@ON_BOTH
def test_a_merge_says_which_exclusions_reach_the_whole_person(run: Run) -> None:
    at(run, AFTER, "log", "exclude", "staff", "--where", "user=u1+u4+u5")
    merged = run("--now", AFTER, "user", "merge", "u1", "--into", "u2").done()
    assert "exclusion staff leaves out all keys of u2 from now on" in merged.stderr
    for key, into in (("u4", "u5"), ("u7", "u8")):  # both, neither
        assert at(run, AFTER, "user", "merge", key, "--into", into, "--json").json["excluded_by"] == []
