"""A clock far ahead: commands that log refuse it, `doctor` reports its traces, and --repair-clock removes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.program.test_bad_input import refuses
from tests.conftest import ON_BOTH, Run, begin, runner, store_after

FAR = ("--now", "2099-01-01T00:00:00Z")
RECOMMEND = ("recommend", "--policy", "home", "--session")


def stocked(db: str) -> None:
    run = runner(db)
    begin(run, ("a1", "a2"), "home", "thompson")
    run(*RECOMMEND, "s1", "--user", "u1")


# Two arms, a policy `home`, and one decision under the clock of the database.
shop = store_after(stocked)


@pytest.fixture
def frozen(shop: Run) -> Run:
    """The same, with a decision and its click in 2099, and one more that was logged while time stood still."""
    shop("--allow-future", *FAR, *RECOMMEND, "s2")
    shop(*FAR, "feedback", 2, "click")
    shop(*RECOMMEND, "s3")
    return shop


@pytest.mark.parametrize(
    "words",
    [
        (*RECOMMEND, "s2"),
        ("pipe",),
        ("simulate", "bernoulli", "--policy", "home", "--sessions", 1, "--env", "rates=1,0"),
        ("feedback", 1, "click"),
        ("arm", "add", "a3"),
        ("arm", "retire", "a2"),
        ("reward", "define", "slow", "click=1"),
        ("policy", "create", "other", "--kind", "uniform"),
        ("policy", "create", "taught", "--kind", "thompson", "--from-log", "policy=home"),
        ("policy", "freeze", "home"),
        ("policy", "rebuild", "home"),
        ("policy", "promote", "home@1"),
        ("experiment", "create", "e", "--variant", "a=home", "--variant", "b=home"),
        ("route", "create", "front", "--to", "home"),
        ("session", "end", "s1"),
        ("db", "prune", "--before", "2020-01-01", "--yes"),
        ("db", "forget", "--user", "u1", "--yes"),
    ],
)
def test_a_clock_far_ahead_stores_nothing_unless_asked_for(shop: Run, words: tuple[object, ...]) -> None:
    refuses(shop(*FAR, *words, stdin=""), 2, "--now 2099-01-01T00:00:00.000000Z lies far ahead", "--allow-future")
    refuses(shop(*words, stdin="", env={"RLREC_NOW": FAR[1]}), 2, "RLREC_NOW")
    assert shop("--allow-future", *FAR, *words, stdin="").exit_code == 0


LOGGED = '{"session": "%s", "at": "%s", "slate": [{"arm": "a", "propensity": 0.5}], "eligible": ["a", "b"]}\n'


def imports(run: Run, *words: object, at: str) -> int:
    """The exit code of an import of one decision of a time."""
    return run(*words, "import-log", "-", "--layout", "jsonl", "--policy", "old", stdin=LOGGED % ("s1", at)).exit_code


@pytest.mark.parametrize("words", [("feedback", 1, "click"), ("arm", "add", "a3"), ("session", "end", "s1")])
def test_imported_decisions_alone_hold_a_clock_too(run: Run, words: tuple[object, ...]) -> None:
    assert imports(run, at="2024-05-01") == 0
    refuses(run(*FAR, *words), 2, "--now 2099-01-01T00:00:00.000000Z lies far ahead", "--allow-future")
    assert run(*FAR, "session", "list").exit_code == 0
    assert run("--allow-future", *FAR, *words).exit_code == 0


def test_an_imported_log_of_a_time_of_its_own_goes_on_in_it(run: Run) -> None:
    assert imports(run, *FAR, at="2098-12-01") == 0
    assert run(*FAR, "feedback", 1, "click").exit_code == 0


def test_a_command_that_stored_under_its_time_goes_on(run: Run, tmp_path: Path) -> None:
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for number, file in enumerate(files):
        file.write_text(LOGGED % (f"s{number}", "2024-05-01"))
    assert run(*FAR, "import-log", *files, "--layout", "jsonl", "--policy", "old").exit_code == 0


def test_reading_and_dry_runs_take_any_clock(shop: Run) -> None:
    assert shop(*FAR, *RECOMMEND, "s2", "--dry-run").exit_code == 0
    assert shop(*FAR, "evaluate", "uniform", "--json").json[0]["n"] == 1


@pytest.mark.slow
def test_a_store_in_a_time_of_its_own_goes_on_in_it(run: Run) -> None:
    for words in (["arm", "add", "a"], ["policy", "create", "home", "--kind", "uniform"]):
        run(*words)
    first, second = run(*FAR, *RECOMMEND, "s1"), run("--now", "2099-03-01", *RECOMMEND, "s1")
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "the first decision lies far ahead of the database's clock" in first.stderr
    assert second.stderr == ""
    assert run("--now", "2099-03-02", "doctor").exit_code == 0
    assert run("doctor").exit_code == 3


def test_doctor_reports_a_log_that_lies_ahead(shop: Run) -> None:
    assert shop("doctor").exit_code == 0
    shop("--allow-future", *FAR, *RECOMMEND, "s2")
    result = shop("doctor", "--json")
    assert result.exit_code == 3
    errors = [finding for finding in result.json["findings"] if finding["severity"] == "error"]
    assert [finding["check"] for finding in errors] == ["clock"]
    assert "1 decision ahead of the database's clock" in errors[0]["detail"]


def rows_ahead(shop: Run) -> list[str]:
    """The subjects of the findings of `doctor` on rows that lie ahead; there are no others."""
    findings = [row for row in shop("doctor", "--json").json["findings"] if row["severity"] != "info"]
    assert {(row["check"], row["severity"]) for row in findings} <= {("clock", "error")}
    assert all("row, 2099-01-01T00:00:00.000000Z, lies ahead" in row["detail"] for row in findings)
    return [row["subject"] for row in findings]


def test_a_look_ahead_leaves_nothing_ahead(shop: Run) -> None:
    """`doctor` keeps when it looked, as other commands do that only read: by the clock, whatever --now is."""
    assert shop("--now", "+1h", "doctor").exit_code == 0
    assert [row for row in shop("doctor", "--json").json["findings"] if row["check"] == "clock"] == []


def test_doctor_names_rows_that_lie_ahead(shop: Run) -> None:
    shop("--allow-future", *FAR, "feedback", 1, "click")
    assert rows_ahead(shop) == ["decision 1"] * 2  # at and received_at of its event


def test_a_repair_puts_definitions_back_too(shop: Run) -> None:
    shop("--allow-future", *FAR, "policy", "freeze", "home")
    assert sorted(rows_ahead(shop)) == ["run id 3", "version id 2"]
    repaired = shop("doctor", "--repair-clock", "--json").json
    assert repaired == {"decisions": 0, "seconds": 0, "other_times": 2}
    assert rows_ahead(shop) == []


def test_a_repair_lets_time_go_on_and_changes_no_reward(frozen: Run) -> None:
    before = [frozen("decision", "show", number, "--json").json for number in (1, 2, 3)]
    repaired = frozen("doctor", "--repair-clock", "--json").json
    assert repaired["decisions"] == 2
    assert repaired["seconds"] > 365 * 86_400
    after = [frozen("decision", "show", number, "--json").json for number in (1, 2, 3)]
    assert [row["reward"] for row in after] == [row["reward"] for row in before] == [0, 1, 0]
    assert after[0]["at"] == before[0]["at"] <= after[1]["at"] == after[2]["at"] < "2099"
    assert frozen("doctor", "--json").json["ok"]
    fresh = frozen(*RECOMMEND, "s4", "--json")
    assert (fresh.stderr, fresh.json["at"] >= after[2]["at"]) == ("", True)


@ON_BOTH
def test_a_repair_twice_or_of_a_sound_store_changes_nothing(frozen: Run) -> None:
    frozen("doctor", "--repair-clock")
    assert frozen("doctor", "--repair-clock", "--json").json == {"decisions": 0, "seconds": 0, "other_times": 0}
    refuses(frozen(*FAR, "doctor", "--repair-clock"), 2, "leave out --now")


def test_a_repair_waits_until_there_is_room(frozen: Run) -> None:
    frozen("--allow-future", "--now", "2099-01-03", *RECOMMEND, "s4")
    refuses(frozen("-q", "doctor", "--repair-clock"), 3, "repeat the repair after")


def test_at_the_end_of_the_calendar_nothing_matures(run: Run) -> None:
    end = ("--now", "9999-12-31T23:59:59Z")
    for words in (["arm", "add", "a1"], ["policy", "create", "home", "--kind", "uniform"], [*RECOMMEND, "s1"]):
        assert run(*end, *words).exit_code == 0
    refuses(run(*end, "evaluate", "uniform"), 2, "none is mature. a decision counts when the window")
    frozen = run(*end, "policy", "freeze", "home")
    assert (frozen.exit_code, "unexpected" in frozen.stderr) == (0, False)
