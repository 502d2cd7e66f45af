"""A clock far ahead: commands that log refuse it, `doctor` reports its traces, and --repair-clock removes them."""

from __future__ import annotations

import pytest

from tests.cli.test_bad_input import refuses
from tests.conftest import ON_BOTH, Run

FAR = ("--now", "2099-01-01T00:00:00Z")
RECOMMEND = ("recommend", "--policy", "home", "--session")


@pytest.fixture
def shop(run: Run) -> Run:
    """Two arms, a policy `home`, and one decision under the clock of the database."""
    for arm in ("a1", "a2"):
        run("arm", "add", arm)
    run("policy", "create", "home", "--kind", "thompson")
    run(*RECOMMEND, "s1")
    return run


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
    ],
)
def test_a_clock_far_ahead_logs_nothing_unless_asked_for(shop: Run, words: tuple[object, ...]) -> None:
    refuses(shop(*FAR, *words, stdin=""), 2, "--now 2099-01-01T00:00:00.000000Z lies far ahead", "--allow-future")
    refuses(shop(*words, stdin="", env={"RLREC_NOW": FAR[1]}), 2, "RLREC_NOW")
    assert shop("--allow-future", *FAR, *words, stdin="").exit_code == 0


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
    assert frozen("doctor", "--repair-clock", "--json").json == {"decisions": 0, "seconds": 0.0}
    refuses(frozen(*FAR, "doctor", "--repair-clock"), 2, "leave out --now")


def test_a_repair_waits_until_there_is_room(frozen: Run) -> None:
    frozen("--allow-future", "--now", "2099-01-03", *RECOMMEND, "s4")
    refuses(frozen("-q", "doctor", "--repair-clock"), 3, "repeat the repair after")
