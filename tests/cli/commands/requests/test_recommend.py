"""rlrec recommend: one slate, and streams of requests."""

from __future__ import annotations

import hashlib
from math import exp, log
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run, jsonl, runner

KEYS = [
    "decision_id", "request_id", "session", "visit", "step", "user", "policy", "version", "experiment", "variant",
    "propensity", "log_propensity", "slate", "at", "duplicate", "route",
]  # fmt: skip


@pytest.fixture
def shop(run: Run) -> Run:
    """Arms a1 to a4 and a uniform policy `u`."""
    stock(run)
    return run


def stock(run: Run) -> None:
    run("arm", "import", "-", stdin="".join(f'{{"arm": "a{n}"}}\n' for n in range(1, 5)))
    run("policy", "create", "u", "--kind", "uniform")


def ask(**keys: Any) -> dict[str, Any]:
    return {"policy": "u", "session": "s1", **keys}


def test_the_answer_has_the_keys_of_the_contract_in_order(shop: Run) -> None:
    answer = shop("recommend", "--policy", "u", "--session", "s1", "--user", "u1", "-k", 2, "--json").json
    assert list(answer) == KEYS
    assert [list(slot) for slot in answer["slate"]] == [["position", "arm", "propensity", "marginal", "score"]] * 2
    assert [slot["position"] for slot in answer["slate"]] == [1, 2]
    assert [slot["propensity"] for slot in answer["slate"]] == pytest.approx([1 / 4, 1 / 3])
    assert [slot["marginal"] for slot in answer["slate"]] == pytest.approx([1 / 4, 1 / 4])
    assert answer["propensity"] == pytest.approx(1 / 12)
    assert exp(answer["log_propensity"]) == pytest.approx(answer["propensity"])
    options = {key: answer[key] for key in KEYS if key not in ("slate", "at", "propensity", "log_propensity")}
    assert options == {
        "decision_id": 1, "request_id": None, "session": "s1", "visit": 1, "step": 0, "user": "u1", "policy": "u",
        "version": 1, "experiment": None, "variant": None, "duplicate": False, "route": None,
    }  # fmt: skip


def test_steps_of_a_session_count_and_its_user_is_inherited(shop: Run) -> None:
    shop("recommend", "--policy", "u", "--session", "s1", "--user", "u1")
    answer = shop("recommend", "--policy", "u", "--session", "s1", "--json").json
    assert (answer["visit"], answer["step"], answer["user"]) == (1, 1, "u1")
    assert shop("recommend", "--policy", "u", "--session", "s1", "--user", "u2").exit_code == 6


def test_a_retry_under_its_request_id_answers_the_stored_decision(shop: Run) -> None:
    words = ["recommend", "--policy", "u", "--session", "s1", "--request-id", "r1", "--json"]
    first = shop(*words, "--context", '{"a": 1, "b": [1, 2]}', "--arms", "a1,a2").json
    again = shop(*words, "--context", '{"b": [1, 2.0], "a": 1}', "--arms", '["a2", "a1"]').json
    assert again == first | {"duplicate": True}
    result = shop(*words, "--context", '{"a": 1, "b": [2, 1]}', "--arms", "a1,a2")
    assert (result.exit_code, result.error["code"]) == (6, 6)
    assert shop("recommend", "--policy", "u", "--session", "s1", "--json").json["decision_id"] == 2


@pytest.mark.parametrize("arms", ["a2", '["a2"]', " a2"])
def test_arms_are_a_comma_list_or_a_json_array(shop: Run, arms: str) -> None:
    answer = shop("recommend", "--policy", "u", "--session", "s1", "--arms", arms, "--json").json
    assert (answer["slate"][0]["arm"], answer["propensity"]) == ("a2", 1)


def test_a_dry_run_draws_what_the_next_command_would_and_writes_nothing(shop: Run, sqlite_db: str) -> None:
    words = ["recommend", "--policy", "u", "--session", "s1", "-k", 3, "--seed", 5, "--json"]
    before = hashlib.sha256(Path(sqlite_db).read_bytes()).digest()
    dry = shop(*words, "--dry-run", "--request-id", "r1").json
    assert hashlib.sha256(Path(sqlite_db).read_bytes()).digest() == before
    assert (dry["decision_id"], dry["visit"], dry["step"]) == (None, None, None)
    real = shop(*words, "--request-id", "r1").json
    assert (real["decision_id"], real["slate"], real["duplicate"]) == (1, dry["slate"], False)


UNREAD, STORED = "policy u reads no context", "; the context is stored all the same"


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_context_that_is_not_read_is_said_once_for_each_policy(shop: Run, dry: tuple[str, ...]) -> None:
    shop("policy", "create", "v", "--kind", "uniform")
    with_context = [ask(context={"hour": n}, session=f"s{n}", policy="uv"[n % 2]) for n in range(6)]
    words = ("recommend", "--input", "-", *dry)
    output = shop(*words, stdin=[ask(), *with_context, {"op": "flush"}, *with_context]).stderr
    assert [output.count(UNREAD), output.count(UNREAD.replace(" u ", " v "))] == [1, 1]
    assert output.count(STORED) == (0 if dry else 2)
    assert "context" not in shop(*words, stdin=[ask(), ask(context={})]).stderr
    answer = shop("recommend", "--policy", "u", "--session", "s", "--context", '{"hour": 9}', *dry)
    assert (answer.exit_code, UNREAD in answer.stderr) == (0, True)


def test_a_retired_arm_of_a_list_is_named(shop: Run) -> None:
    """The slate is drawn from the others; a stream says it once."""
    shop("arm", "retire", "a3")
    words = ("recommend", "--policy", "u", "--session", "s1", "--seed", 1)
    answers = [shop(*words, "--dry-run", "--arms", arms, "--json") for arms in ("a1,a3", "a1")]
    assert answers[0].json["slate"] == answers[1].json["slate"]
    news = "retired arms are left out: a3; `rlrec arm restore` brings them back\n"
    assert [answer.stderr for answer in answers] == [news + answers[1].stderr, answers[1].stderr]
    stream = jsonl([ask(arms=["a1", "a3"]), ask(arms=["a2", "a3"]), ask(arms=["a3"])])
    result = shop("recommend", "--input", "-", stdin=stream)
    assert result.stderr.count(news) == 1
    assert result.lines[2]["error"] == "no arm is eligible: retired: a3; `rlrec arm restore` brings them back"
    refused = shop(*words, "--arms", "a1,a3", "-k", 2)
    assert "k is 2, with only 1 arm eligible. retired: a3; `rlrec arm restore`" in refused.stderr


def test_a_context_that_is_read_is_no_news(shop: Run, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("value,arm,probability\n9,a1,1\n*,a2,1\n")
    shop("policy", "create", "f", "--kind", "fixed", "--param", f"probabilities={tmp_path}/p.csv", "--param", "by=hour")
    assert (
        "reads no context"
        not in shop("recommend", "--policy", "f", "--session", "s", "--context", '{"hour": 9}').stderr
    )


def test_every_format_shows_the_same_slate(shop: Run) -> None:
    words = ["recommend", "--policy", "u", "--session", "s", "--request-id", "r"]
    result = shop(*words, "--json").json | {"duplicate": True}
    assert shop(*words, "--format", "ndjson").lines == [result]
    slot = result["slate"][0]
    rows = shop(*words, "--format", "csv").stdout.splitlines()
    assert rows == ["decision_id,position,arm,propensity,marginal,score", f"1,1,{slot['arm']},0.25,0.25,"]
    assert "decision 1: u version 1, propensity 0.25, answered before" in shop(*words).stdout


# -- streams --


def test_a_stream_answers_each_line_in_order_and_refuses_in_place(shop: Run) -> None:
    result = shop(
        "recommend", "--input", "-", "--json",
        stdin=[
            ask(user="u1"), "not json", ask(policy="v"), ask(session="s2", k=9), ask(k="2"), ask(seesion="s3"),
            ask(session=""), ask(arms=["a9"]), ask(context={"a": 1e300}, k=2), {"policy": "u"}, ask(user="u2"),
        ],
    )  # fmt: skip
    assert result.exit_code == 5
    answers = result.lines
    assert [answer.get("decision_id") for answer in answers] == [1, *[None] * 7, 2, None, None]
    refused = [answer for answer in answers if "error" in answer]
    assert all(list(answer) == ["line", "error", "field", "code"] for answer in refused)
    assert [answer["line"] for answer in refused] == [2, 3, 4, 5, 6, 7, 8, 10, 11]
    assert [answer["field"] for answer in refused] == [
        None, "policy", "k", "k", "seesion", "session", "arms", "session", "user",
    ]  # fmt: skip
    assert "9 lines refused" in result.stderr


def test_a_flush_ends_a_group(shop: Run) -> None:
    shop("policy", "create", "ucb", "--kind", "ucb")
    rows = ask(policy="ucb", arms=["a1", "a2"])
    answers = shop("recommend", "--input", "-", "--seed", 1, stdin=[rows, '{"op": "flush"}', rows]).lines
    assert [answer["propensity"] for answer in answers] == [0.5, 1.0]  # the second one knows what the first one tried
    assert answers[0]["slate"][0]["arm"] != answers[1]["slate"][0]["arm"]


def test_the_second_of_two_lines_with_one_request_id_is_the_duplicate(shop: Run) -> None:
    first, second, other = ask(request_id="r"), ask(request_id="r"), ask(request_id="r", k=2)
    result = shop("recommend", "--input", "-", stdin=[first, second, other])
    assert [answer.get("duplicate") for answer in result.lines] == [False, True, None]
    assert result.lines[0]["decision_id"] == result.lines[1]["decision_id"]
    assert (result.exit_code, result.lines[2]["field"]) == (5, "request_id")


def test_a_stream_draws_what_single_commands_draw(shop: Run, tmp_path: Path) -> None:
    options = [ask(session=f"s{n}", k=2) for n in range(5)]
    (tmp_path / "in").write_text(jsonl(options))
    dry = shop("recommend", "--input", tmp_path / "in", "--seed", 9, "--dry-run").lines
    stream = shop("recommend", "--input", tmp_path / "in", "--seed", 9).lines
    assert [answer["slate"] for answer in dry] == [answer["slate"] for answer in stream]
    assert [answer["decision_id"] for answer in dry] == [None] * 5
    assert [answer["decision_id"] for answer in stream] == [1, 2, 3, 4, 5]
    assert all(log(answer["propensity"]) == pytest.approx(answer["log_propensity"]) for answer in stream)


def test_an_empty_stream_is_answered_with_nothing(shop: Run) -> None:
    result = shop("recommend", "--input", "-", stdin="\n\r\n")
    assert (result.exit_code, result.stdout) == (0, "")


@pytest.mark.parametrize(
    "words", [["-k", "1"], ["--context", "{}"], ["--policy", "u"], ["--session", "s"], ["--request-id", "r"]]
)
def test_a_stream_takes_no_options_of_one_page(shop: Run, words: list[str]) -> None:
    result = shop("recommend", "--input", "-", *words, stdin=[ask()])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"--input and {words[0]} do not go together" in result.stderr


def test_a_stream_of_nothing_still_needs_a_store(tmp_path: Path) -> None:
    assert "no store" in runner(str(tmp_path / "none.db"))("recommend", "--input", "-", stdin="").failed(3)
