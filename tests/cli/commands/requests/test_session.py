"""rlrec session."""

import csv
import io
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from itertools import count
from typing import Any

import pytest

from rlrec.store import Store
from rlrec.store.log import sessions
from tests.conftest import ON_BOTH, Run, begin

DAY = "2099-01-01T"


def prepared(run: Run) -> Any:
    begin(run, "xy", "home", "thompson", "--param", "floor=0.1")
    return run


@pytest.fixture
def ready(run: Run) -> Any:
    return prepared(run)


def ask(run: Run, time: Any, *words: Any, session: str = "s1") -> Any:
    answer = run("--now", DAY + time, "recommend", "--policy", "home", "--session", session, *words, "--json")
    return answer.json


def show(run: Run, time: Any, *words: Any) -> Any:
    return run("--now", DAY + time, "session", "show", "s1", *words, "--json").json


def test_timeline_has_state_slate_events_reward_and_return(ready: Any) -> None:
    first = ask(ready, "00:00:00Z", "--user", "u1", "--context", '{"hour": 9}')["decision_id"]
    second = ask(ready, "00:01:00Z", "-k", "2")["decision_id"]
    ready("--now", DAY + "00:02:00Z", "feedback", first, "click")
    ready("--now", DAY + "00:02:00Z", "feedback", second, "click", "--position", "2", "--key", "f1")
    ready("--now", DAY + "00:02:00Z", "feedback", second, "click=3")
    result = show(ready, "00:03:00Z", "--gamma", "0.5")
    item, two = result["decisions"]
    assert (result["user"], result["visit"], result["visits"], result["ended_at"]) == ("u1", 1, 1, None)
    assert (item["context"], item["state"], item["reward"], item["return"]) == ({"hour": 9}, {"step": 0}, 1.0, 3.0)
    arm = item["slate"][0]["arm"]
    assert two["state"] == {
        "gap_s": 60, "recent": [arm], "step": 1, "shown": 1, "reward": 0.0, "rewards": [0.0],
        "history": [{"arm": arm, "ago": 1, "reward": 0.0}],
    }  # fmt: skip
    assert [slot["reward"] for slot in two["slate"]] == [0.0, 1.0]
    assert (two["reward"], two["return"]) == (4.0, 4.0)
    assert [(event["position"], event["value"], event["key"]) for event in two["events"]] == [
        (2, 1.0, "f1"),
        (None, 3.0, None),
    ]


def test_events_after_the_window_are_marked_and_count_nowhere(ready: Any) -> None:
    ask(ready, "00:00:00Z", "-k", "2")
    for time, words, reward in (
        ("00:30:00Z", ("--position", "1"), 1.0),
        ("00:31:00Z", ("--position", "2"), 0.0),
        ("00:31:00Z", (), 1.0),
    ):
        answer = ready("--now", DAY + time, "feedback", 1, "click", *words, "--json")
        assert (answer.json["reward"], "no estimate counts it" in answer.stderr) == (reward, time > "00:30:00Z")
    later = partial(ready, "--now", DAY + "02:00:00Z")
    for row in (show(ready, "02:00:00Z")["decisions"][0], later("decision", "show", 1, "--json").json):
        assert (row["reward"], [event["late"] for event in row["events"]]) == (1.0, [False, True, True])
    assert later("export-log", "-").lines[0]["reward"] == 1.0
    for command in ("session show s1", "decision show 1"):
        assert later(*command.split()).stdout.count("click=1 (late)") == 2


def test_end_opens_visit_2_at_step_0(ready: Any) -> None:
    ask(ready, "00:00:00Z")
    ended = ready("--now", DAY + "00:01:00Z", "session", "end", "s1", "--json").done()
    assert ended.json == {
        "session": "s1",
        "visit": 1,
        "decisions": 1,
        "ended_at": DAY + "00:01:00.000000Z",
        "already_ended": False,
    }
    answer = ask(ready, "00:02:00Z")
    assert (answer["visit"], answer["step"]) == (2, 0)
    assert show(ready, "00:02:00Z", "--visit", "1")["ended_at"] == ended.json["ended_at"]
    assert show(ready, "00:02:00Z")["visit"] == 2


def test_ending_twice_says_so_and_changes_nothing(ready: Any) -> None:
    ask(ready, "00:00:00Z")
    first, second = (
        ready("--now", DAY + time, "session", "end", "s1", "--json") for time in ("00:01:00Z", "00:05:00Z")
    )
    assert second.exit_code == 0
    assert second.json == first.json | {"already_ended": True}


@ON_BOTH
def test_visit_that_timed_out_ended_with_its_timeout(ready: Any) -> None:
    ask(ready, "00:00:00Z")
    assert show(ready, "00:30:00Z")["ended_at"] is None
    assert show(ready, "02:00:00Z")["ended_at"] == DAY + "00:30:00.000000Z"
    ended = ready("--now", DAY + "02:00:00Z", "session", "end", "s1", "--json").json
    assert (ended["ended_at"], ended["already_ended"]) == (DAY + "00:30:00.000000Z", True)
    assert ask(ready, "02:01:00Z")["visit"] == 2


def test_censored_slot_is_marked(ready: Any) -> None:
    number = ask(ready, "00:00:00Z")["decision_id"]
    ready("--now", DAY + "00:00:01Z", "feedback", number, "--censor")
    assert show(ready, "00:01:00Z")["decisions"][0]["slate"][0]["censored"]
    assert "(censored)" in ready("--now", DAY + "00:01:00Z", "session", "show", "s1").stdout


@pytest.mark.parametrize("command", ["show", "end"])
def test_unknown_session_names_the_near_ones(ready: Any, command: Sequence[str]) -> None:
    ask(ready, "00:00:00Z", session="visitor-17")
    assert "did you mean visitor-17?" in ready("--now", DAY + "00:01:00Z", "session", command, "visitor-71").failed(2)


def test_unknown_visit_says_which_there_are(ready: Any) -> None:
    ask(ready, "00:00:00Z")
    assert "visits 1 to 1" in ready("--now", DAY + "00:01:00Z", "session", "show", "s1", "--visit", "3").failed(2)


def test_list_is_newest_first_and_says_when_it_is_cut(ready: Any) -> None:
    for name in ("s1", "s2", "s3"):
        ask(ready, "00:00:00Z", session=name)
    listed = ready("--now", DAY + "00:01:00Z", "session", "list", "--limit", "2", "--json")
    assert [row["session"] for row in listed.json] == ["s3", "s2"]
    assert list(listed.json[0]) == ["session", "user", "visits", "decisions", "last_at"]
    assert "newest 2 sessions" in listed.stderr
    everything = ready("--now", DAY + "00:01:00Z", "session", "list", "--limit", "0", "--json")
    assert (len(everything.json), everything.stderr) == (3, "")


def test_list_reads_the_sessions_that_it_shows_alone(run_sqlite: Run, sqlite_db: str) -> None:
    ready, steps = prepared(run_sqlite), list[int]()
    for start in (0, 10, 100):
        lines = "".join(f'{{"policy": "home", "session": "s{number}"}}\n' for number in range(start, 10 * start + 10))
        assert ready("--now", DAY + "00:00:00Z", "recommend", "--input", "-", stdin=lines).exit_code == 0
        with closing(Store(sqlite_db)) as store, store.read() as unit:
            calls = count()
            unit.driver.connection.set_progress_handler(lambda calls=calls: next(calls) < 0, 1)
            assert len(sessions.list_sessions(unit, limit=10)) == 10
            steps.append(next(calls))
    assert steps[2] < 1.2 * steps[0]


def test_csv_has_a_whole_row_for_every_slot(ready: Any) -> None:
    ask(ready, "00:00:00Z", "-k", "2")
    ask(ready, "00:01:00Z")
    ready("--now", DAY + "00:02:00Z", "feedback", 1, "click=0.123456789", "--position", "2")
    ready("--now", DAY + "00:02:00Z", "feedback", 1, "scroll=3")
    result = ready("--now", DAY + "00:03:00Z", "session", "show", "s1", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout, newline="")))
    assert [(row["session"], row["decision_id"], row["position"]) for row in rows] == [
        ("s1", "1", "1"),
        ("s1", "1", "2"),
        ("s1", "2", "1"),
    ]
    assert [row["events"] for row in rows] == ["", "click=0.123456789", ""]
    assert [row["page_events"] for row in rows] == ["scroll=3.0", "scroll=3.0", ""]


def test_censoring_is_shown_by_the_names_of_its_options(ready: Any) -> None:
    number = ask(ready, "00:00:00Z")["decision_id"]
    ready("--now", DAY + "00:00:01Z", "feedback", number, "--censor")
    ready("--now", DAY + "00:00:02Z", "feedback", number, "--uncensor")
    events = show(ready, "00:01:00Z")["decisions"][0]["events"]
    assert [event["kind"] for event in events] == ["censor", "uncensor"]
    assert " censor uncensor " in ready("--now", DAY + "00:01:00Z", "session", "show", "s1").stdout


@pytest.mark.parametrize("gamma", ["nan", "-0.1", "1.5", "inf"])
def test_a_discount_that_cannot_be_is_refused(ready: Any, gamma: float) -> None:
    refused = ready("session", "show", "s1", "--gamma", gamma).failed(2)
    assert len(refused.splitlines()) == 1


@ON_BOTH
def test_the_sessions_of_a_user_are_those_of_all_keys(run: Run) -> None:
    for words in (["arm", "add", "a"], ["policy", "create", "home", "--kind", "uniform"]):
        assert run(*words).exit_code == 0
    for session, user in (("s1", "u1"), ("s2", "u2"), ("s3", "u1"), ("s4", "cookie")):
        assert run("recommend", "--policy", "home", "--session", session, "--user", user).exit_code == 0
    assert run("user", "merge", "cookie", "--into", "u1").exit_code == 0
    for key in ("u1", "cookie"):
        listed = run("session", "list", "--user", key, "--limit", "2")
        assert [line.split()[:2] for line in listed.stdout.splitlines()[2:]] == [["s4", "u1"], ["s3", "u1"]]
        assert f"`rlrec session list --user {key} --limit 20` shows more" in listed.stderr
    refused = run("session", "list", "--user", "u9")
    assert (refused.exit_code, refused.stderr.startswith("Error: unknown user 'u9'")) == (2, True)
