"""rlrec feedback and rlrec settle: what users did, one line or many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlrec.cli.commands.requests import feedback
from tests.conftest import Run, jsonl, runner, store_after


def opened(db: str) -> None:
    run = runner(db)
    run("arm", "import", "-", stdin='{"arm": "a1"}\n{"arm": "a2"}\n{"arm": "a3"}\n')
    run("policy", "create", "g", "--kind", "thompson")
    run("recommend", "--policy", "g", "--session", "s1", "--arms", "a1", "--request-id", "r1")
    run("recommend", "--policy", "g", "--session", "s2", "-k", 3, "--request-id", "r2")


# Decision 1 shows a1; decision 2 a page of a1, a2, a3 in some order; policy `g` learns.
shop = store_after(opened)


def clicks(run: Run) -> float:
    return float(sum(row["reward_sum"] for row in run("policy", "show", "g", "--json").json["arms"]))


def pulls(run: Run) -> float:
    return float(sum(row["pulls"] for row in run("policy", "show", "g", "--json").json["arms"]))


def test_the_answer_has_the_keys_of_the_contract_in_order(shop: Run) -> None:
    assert list(shop("feedback", 1, "click", "--json").json.items()) == [
        ("decision_id", 1), ("events", 1), ("duplicates", 0), ("reward", 1.0),
    ]  # fmt: skip
    assert clicks(shop) == 1


def test_a_value_is_one_unless_given(shop: Run) -> None:
    result = shop("feedback", 1, "click=0.25", "dwell_s=31.5", "--json")
    assert (result.json["events"], result.json["reward"]) == (2, 0.25)
    assert "no reward definition weighs 'dwell_s'" in result.stderr
    assert shop("feedback", 1, "click", "click=2").exit_code == 2


def test_a_line_has_at_most_a_thousand_kinds_of_events(shop: Run) -> None:
    line = {"decision_id": 1, "events": {f"e{number}": 1 for number in range(1001)}}
    result = shop("feedback", "--input", "-", "--json", stdin=json.dumps(line))
    message = "<stdin> line 1, field events: 1,001 kinds of events are given"
    assert (result.exit_code, result.error["error"]) == (2, message)


def test_of_many_kinds_that_nothing_weighs_few_are_told(shop: Run) -> None:
    def notices(start: int) -> list[str]:
        line = {"decision_id": 1, "events": {f"e{number}": 1 for number in range(start, start + 600)}}
        return shop("feedback", "--input", "-", stdin=json.dumps(line)).done().stderr.splitlines()

    others = "no reward definition weighs 590 other kinds of events either; they are stored and count for nothing yet"
    assert (len(notices(0)), notices(600)[-1]) == (11, others)
    assert notices(1200) == []  # after a thousand


def test_without_a_position_a_longer_slate_means_the_page(shop: Run) -> None:
    assert shop("feedback", 2, "click", "--json").json["reward"] == 1
    assert clicks(shop) == 0
    assert shop("feedback", 2, "click", "--position", 3, "--json").json["reward"] == 1
    assert shop("feedback", 2, "other", "--json").json["reward"] == 2
    assert clicks(shop) == 1


def test_a_key_names_the_whole_line(shop: Run) -> None:
    words = ["feedback", 1, "click", "--key", "k", "--json"]
    assert shop(*words).json == {"decision_id": 1, "events": 1, "duplicates": 0, "reward": 1.0}
    assert shop(*words).json == {"decision_id": 1, "events": 0, "duplicates": 1, "reward": 1.0}
    assert shop(*words, "--position", 1).json["duplicates"] == 1
    for other in (["dwell_s"], ["--censor"], ["--at", "2099-01-01T00:00:00Z"]):
        assert shop(*words, *other).exit_code == 6
    assert shop("feedback", 2, "click", "--key", "k").exit_code == 6
    assert clicks(shop) == 1


def test_censor_takes_slots_out_of_the_belief_and_uncensor_puts_them_back(shop: Run) -> None:
    shop("feedback", 1, "click")
    assert shop("feedback", 1, "--censor", "--json").json["events"] == 1
    assert (pulls(shop), clicks(shop)) == (3, 0)
    shop("feedback", 2, "--censor")  # no position: every slot
    assert pulls(shop) == 0
    shop("feedback", 2, "--uncensor", "--position", 2)
    shop("feedback", 1, "--uncensor")
    assert (pulls(shop), clicks(shop)) == (2, 1)


def test_every_format_says_the_same(shop: Run) -> None:
    words = ["feedback", 1, "click", "--key", "k"]
    shop(*words)
    answer = shop(*words, "--json").json
    assert shop(*words, "--format", "ndjson").lines == [answer]
    assert shop(*words, "--format", "csv").stdout.splitlines() == ["decision_id,events,duplicates,reward", "1,0,1,1.0"]
    assert shop(*words).stdout.splitlines()[0].split() == ["decision_id", "1"]


# -- many lines --

GOOD: list[dict[str, Any]] = [
    {"decision_id": 1, "events": {"click": 1}, "key": "k1"},
    {"request_id": "r2", "position": 2, "events": {"click": 1, "dwell_s": 31.5}},
    {"decision_id": 2, "position": 1, "censor": True},
    {"decision_id": 1, "events": {"click": 1}, "key": "k1"},
]
BAD: list[Any] = [
    "not json",
    {"decision_id": 9, "events": {"click": 1}},
    {"decision_id": 2, "position": 4, "events": {"click": 1}},
    {"decision_id": 1, "events": {"click": "1"}},
    {"decision_id": 1, "events": {"click": True}},
    {"decision_id": 1, "event": {"click": 1}},
    {"decision_id": 1, "request_id": "r1", "events": {"click": 1}},
    {"events": {"click": 1}},
    {"decision_id": 1, "events": {}},
    {"decision_id": 1, "events": {"click": 1}, "at": "yesterday"},
    {"decision_id": 1, "events": {"click": 2}, "key": "k1"},
    {"request_id": "nobody", "events": {"click": 1}},
]
FIELDS = [
    None, "decision_id", "position", "events.click", "events.click", "event", "request_id", "decision_id", "events",
    "at", "key", "request_id",
]  # fmt: skip


def test_many_lines_are_stored_in_one_go(shop: Run) -> None:
    result = shop("feedback", "--input", "-", "--json", stdin=GOOD)
    assert (result.exit_code, list(result.json.items())) == (0, [("accepted", 3), ("duplicates", 1), ("rejected", 0)])
    assert (pulls(shop), clicks(shop)) == (3, 2)
    again = shop("feedback", "--input", "-", "--json", stdin=[GOOD[0]]).json
    assert again == {"accepted": 0, "duplicates": 1, "rejected": 0}
    other = shop("feedback", "--input", "-", "--json", stdin=[{**GOOD[0], "events": {"click": 2}}])
    assert (other.exit_code, "<stdin> line 1, field key: " in other.error["error"]) == (6, True)


def test_quarantine_stores_the_good_lines_and_keeps_the_bad_ones(shop: Run, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(jsonl([*GOOD, *BAD]))
    words = ["--on-error", "quarantine", "--rejects", tmp_path / "bad", "--json"]
    result = shop("feedback", "--input", tmp_path / "in", *words)
    assert (result.exit_code, result.json) == (5, {"accepted": 3, "duplicates": 1, "rejected": len(BAD)})
    rejects = sorted(map(json.loads, (tmp_path / "bad").read_text().splitlines()), key=lambda row: row["line"])
    assert [(row["line"], row["field"]) for row in rejects] == list(enumerate(FIELDS, 5))
    assert [row["text"] for row in rejects] == jsonl(BAD).splitlines()
    assert (pulls(shop), clicks(shop)) == (3, 2)


@pytest.mark.parametrize("options", [(), ("--on-error", "quarantine", "--rejects", "rejects.ndjson")])
def test_lines_after_the_window_of_a_reward_are_counted(
    run_sqlite: Run, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default reward counts clicks of 30 minutes; `looks` counts them for a day."""
    monkeypatch.chdir(tmp_path)
    run_sqlite("arm", "add", "a")
    run_sqlite("reward", "define", "looks", "look=1", "--window", "1d")
    for name, reward in (("short", "default"), ("long", "looks")):
        run_sqlite("policy", "create", name, "--kind", "uniform", "--reward", reward)
        run_sqlite("--now", "2026-01-02T08:00Z", "recommend", "--policy", name, "--session", name)
    times = "08:29:59", "08:30:00", "08:30:01", "09:00:00"
    lines = [
        {"decision_id": number, "events": {kind: 1}, "at": f"2026-01-02T{time}Z", "key": f"{number} {kind} {time}"}
        for time in times for number, kind in ((1, "click"), (1, "look"), (2, "look"))
    ]  # fmt: skip
    words = "--now", "2026-01-02T10:00Z", "feedback", "--input", "-", *options
    notices = [line for line in run_sqlite(*words, stdin=lines).done().stderr.splitlines() if "window" in line]
    assert len(notices) == 1
    assert "2 of 12 lines came after the window of reward default" in notices[0]
    assert "window" not in run_sqlite(*words, stdin=lines).done().stderr  # all are duplicates


def test_quarantine_and_its_file_go_together(shop: Run, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(jsonl(GOOD))
    assert shop("feedback", "--input", tmp_path / "in", "--on-error", "quarantine").exit_code == 2
    assert shop("feedback", "--input", tmp_path / "in", "--rejects", tmp_path / "bad").exit_code == 2
    assert shop("feedback", 1, "click", "--input", tmp_path / "in").exit_code == 2
    assert clicks(shop) == 0


# -- settle --


def test_settled_slots_enter_when_their_window_is_over(run: Run) -> None:
    run("arm", "add", "a1")
    run("reward", "define", "slow", "purchase=1", "--window", "1h", "--learn", "settled", "--clip", "0,1")
    run("policy", "create", "g", "--kind", "thompson", "--reward", "slow")
    run("--now", "2026-01-01T12:00:00Z", "recommend", "--policy", "g", "--session", "s1")
    run("--now", "2026-01-01T12:30:00Z", "recommend", "--policy", "g", "--session", "s2")
    run("--now", "2026-01-01T12:40:00Z", "feedback", 1, "purchase")
    assert run("--now", "2026-01-01T13:00:00Z", "settle", "--json").json == {"settled": 0, "open": 2}
    assert (pulls(run), clicks(run)) == (0, 0)
    assert list(run("--now", "2026-01-01T13:00:01Z", "settle", "--json").json.items()) == [("settled", 1), ("open", 1)]
    assert (pulls(run), clicks(run)) == (1, 1)
    assert run("--now", "2026-01-01T14:00:00Z", "settle", "--json").json == {"settled": 1, "open": 0}
    assert (pulls(run), clicks(run)) == (2, 1)


def test_nothing_to_settle_is_fine(shop: Run) -> None:
    assert shop("settle", "--json").json == {"settled": 0, "open": 0}
    assert shop("settle", "--format", "csv").stdout.splitlines() == ["settled,open", "0,0"]


def test_censor_and_uncensor_contradict_each_other(shop: Run) -> None:
    result = shop("feedback", 1, "--censor", "--uncensor")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "--censor and --uncensor contradict each other" in result.stderr


def test_a_time_without_a_zone_is_told_of_once(run_sqlite: Run) -> None:
    """It is read as UTC; a date is midnight UTC, and no news."""
    run_sqlite("policy", "create", "p", "--kind", "uniform")
    line = {"slate": [{"arm": "a", "propensity": 0.5}], "eligible": ["a", "b"], "reward": 1}
    rows = [{**line, "session": f"s{n}", "at": f"2026-01-01T12:00:0{n}"} for n in range(3)]
    words = ("import-log", "-", "--layout", "jsonl", "--policy", "old")
    time = "2026-01-01T12:00:0{}"
    news = f"a time without a zone is read as UTC, such as {time}: write {time}Z, or an offset\n"
    assert "3 lines with a time without a zone" in run_sqlite(*words, stdin=rows).stderr
    for since, n_notices in (("2026-01-01T12:00:02", 1), ("2026-01-01T12:00:02Z", 0), ("2026-01-01", 0)):
        result = run_sqlite("evaluate", "uniform", "--log", f"policy=old,since={since}", "--json")
        assert result.stderr.count(news.format(2, 2)) == result.stderr.count("zone") == n_notices
    result = run_sqlite("--now", "2026-01-01T12:00:02", "-q", "policy", "list")
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_line_without_censor_says_nothing_of_it_whatever_default_click_gives_a_flag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """click before 8.3 has False there."""
    (flag,) = (param for param in feedback.feedback.params if param.name == "censor")
    monkeypatch.setattr(flag, "default", False)
    assert feedback.line_type.__wrapped__()().censor is None
