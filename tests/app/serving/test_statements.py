"""Requests that state something of their arms, through every door: what is stored, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import rlrec
from tests.conftest import ON_BOTH, Run, begin

STATED = [{"arm": "a", "score": 1.7}, {"arm": "b", "score": 0.2, "features": {"price": 9}}]
IN_CONTEXT = {"@arms": {"a": {"score": 1.7}, "b": {"features": {"price": 9}, "score": 0.2}}}


@pytest.fixture
def shop(run: Run) -> Run:
    begin(run, "abc", "mine", "scored", "--param", "temperature=0.5")
    return run


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def stream_line(run: Run, **request: Any) -> Any:
    line = json.dumps({"session": "s", "policy": "mine"} | request)
    return json.loads(run("recommend", "--input", "-", "--seed", "1", stdin=line).stdout)


@ON_BOTH
def test_objects_are_arms_and_end_in_the_context(shop: Run, db: str) -> None:
    """The command line, a stream, a pipe and Python draw the same from the same."""
    typed = ["recommend", "--policy", "mine", "--session", "s", "-k", "2", "--seed", "1", "--json"]
    answers = [shop(*typed, "--candidates", json.dumps(STATED)).json, stream_line(shop, arms=STATED, k=2)]
    answers.append(stream_line(shop, arms=["b", "a"], context=IN_CONTEXT, k=2))
    piped = {"op": "recommend", "session": "s", "policy": "mine", "arms": STATED, "k": 2}
    answers += lines(shop("pipe", "--seed", "1", stdin=json.dumps(piped)).stdout)
    with rlrec.open(db) as store:
        answers.append(dict(store.recommend("mine", session="s", arms=STATED, k=2, seed=1)))
    logged = lines(shop("export-log", "-", "--layout", "jsonl").stdout)
    assert [row["context"] for row in logged] == [IN_CONTEXT] * 5
    assert [row["eligible"] for row in logged] == [["a", "b"]] * 5
    for answer in answers:
        first, second = answer["slate"]
        share = {"a": 1 / (1 + math.exp((0.2 - 1.7) / 0.5))}
        assert first["propensity"] == pytest.approx(share.get(first["arm"], 1 - share["a"]), abs=1e-12)
        assert (second["propensity"], {first["score"], second["score"]}) == (1, {1.7, 0.2})
    assert shop("doctor").exit_code == 0


@pytest.mark.parametrize(("request_fields", "message", "field"), [
    ({"arms": ["a", {"arm": "b", "score": 1}]}, "arm 'a' has no score", "arms"),
    ({"arms": [*STATED, {"arm": "a", "score": 3}]}, "arm 'a' is listed twice", "arms"),
    ({"arms": [*STATED, {"arm": "x", "score": 3}]}, "unknown arm 'x'", "arms"),
    ({"arms": [{"arm": "a", "scor": 3}]}, "unknown field", "arms[0].scor"),
    ({"policy": "new", "arms": STATED}, "arm 'a' has no score 'new'", "arms"),
    ({"arms": [{"arm": "a", "scores": {"new": "3"}}]}, "expected a number", "arms[0].scores.new"),
    ({"arms": [{"arm": "a", "scores": 3}]}, "expected an object", "arms[0].scores"),
    ({"arms": [{"arm": "a", "scores": {"x": 1e200}}]}, "the score 'x' of arm 'a' is 1e+200", "arms.a.scores.x"),
    ({"context": {"@arms": {"a": {"scores": {"x": "1"}}}}}, "the score 'x' of arm 'a' is", "context.@arms.a.scores.x"),
    ({"context": {"@arms": {"a": {"scores": 1}}}}, "the scores of arm 'a' are 1", "context.@arms.a.scores"),
    ({"arms": [{"arm": "a", "score": "3"}]}, "expected a number or null", "arms[0].score"),
    ({"arms": [{"arm": "a", "score": 1e200}]}, "the score of arm 'a' is 1e+200", "arms.a.score"),
    ({"arms": [{"arm": "a", "features": [1]}]}, "expected an object", "arms[0].features"),
    ({"arms": [{"score": 1}]}, "is missing", "arms[0].arm"),
    ({"arms": [{"arm": "", "score": 1}]}, "a key has 1 to 200 characters", "arms"),
    ({"arms": [1]}, "expected text or an object", "arms[0]"),
    ({"arms": STATED, "context": IN_CONTEXT}, "arms are objects, and the context has @arms", "arms"),
    ({"arms": ["a"], "context": IN_CONTEXT}, "the context describes arm 'b'", "context.@arms"),
    ({"context": {"@arms": {"x": {"score": 1}}}}, "unknown arm 'x'", "arms"),
    ({"context": IN_CONTEXT}, "arm 'c' has no score", "arms"),
    ({"arms": [{"arm": "@home", "score": 1}]}, "'@home' is a group, which has no score and no features", "arms"),
    ({"context": {"@arms": {"@home": {"score": 1}}}}, "'@home' is a group, which has no score and no features", "arms"),
    ({"arms": []}, "no arm is eligible: the list of arms is empty", "arms"),
    ({"context": {"@arms": 1}}, "@arms is 1", "context.@arms"),
    ({"context": {"@arm": 1}}, "context has a field '@arm'", "context.@arm"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(
    run_sqlite: Run, request_fields: dict[str, Any], message: str, field: str
) -> None:
    run_sqlite("arm", "import", "-", stdin=[{"arm": arm, "groups": ["home"]} for arm in "abc"])
    run_sqlite("policy", "create", "mine", "--kind", "scored")
    run_sqlite("policy", "create", "new", "--kind", "scored", "--param", "score=new")
    good = json.dumps({"session": "s", "policy": "mine", "arms": STATED, "page": None, "block": None})
    bad = json.dumps({"session": "s", "policy": "mine"} | request_fields)
    result = run_sqlite("recommend", "--input", "-", stdin=f"{bad}\n{good}\n")
    refused, answer = lines(result.stdout)
    assert (result.exit_code, refused["line"], refused["field"]) == (5, 1, field)
    assert refused["error"].startswith(message)
    assert answer["decision_id"] == 1
    assert len(lines(run_sqlite("export-log", "-", "--layout", "jsonl").stdout)) == 1


@pytest.mark.parametrize(("typed", "source"), [
    ((), ""), (("--arms", "a"), "--arms: "), (("--candidates", '[{"arm": "a", "score": 1}]'), "--candidates: "),
])  # fmt: skip
def test_an_error_names_the_option_that_was_typed(run_sqlite: Run, typed: tuple[str, ...], source: str) -> None:
    begin(run_sqlite, "a", "new", "scored", "--param", "score=new")
    result = run_sqlite("recommend", "--policy", "new", "--session", "s", *typed)
    assert result.stderr.startswith(f"Error: {source}arm 'a' has no score 'new'. kind scored needs one for each arm")
    assert "in `--candidates`" in result.stderr


def test_numbers_that_json_lacks_are_refused(run_sqlite: Run) -> None:
    begin(run_sqlite, "a", "mine", "scored")
    line = '{"session": "s", "policy": "mine", "arms": [{"arm": "a", "score": NaN}]}'
    (refused,) = lines(run_sqlite("recommend", "--input", "-", stdin=line).stdout)
    assert (refused["error"], refused["field"]) == ("NaN is not a number in JSON", "arms[0].score")
    for typed, message in (("[{}]", "[0].arm: is missing"), ("{}", "expected a JSON array"), ("[", "not JSON")):
        assert message in run_sqlite("recommend", "--policy", "mine", "--session", "s", "--candidates", typed).failed(2)
    result = run_sqlite("recommend", "--policy", "mine", "--session", "s", "--arms", "a", "--candidates", "[]")
    assert (result.exit_code, "do not go together" in result.stderr) == (2, True)


def test_a_retry_is_recognised_by_what_it_states(shop: Run) -> None:
    """The order of the arms does not matter, a score does."""
    first = stream_line(shop, arms=STATED, request_id="r")
    assert stream_line(shop, arms=STATED[::-1], request_id="r") == first | {"duplicate": True}
    other = stream_line(shop, arms=[STATED[0] | {"score": 2}, STATED[1]], request_id="r")
    assert (other["code"], other["field"]) == (6, "request_id")


def test_ten_thousand_candidates_are_drawn_from_a_file(run_sqlite: Run, tmp_path: Path) -> None:
    arms = [f"x{number}" for number in range(10_000)]
    begin(run_sqlite, arms, "mine", "scored", "--param", "temperature=100")
    path = tmp_path / "candidates.json"
    path.write_text(json.dumps([{"arm": arm, "score": number / 7} for number, arm in enumerate(arms)]))
    answer = run_sqlite(
        "recommend", "--policy", "mine", "--session", "s", "-k", "4", "--candidates", f"@{path}", "--json"
    )
    assert len(answer.json["slate"]) == 4
    shown = run_sqlite("decision", "show", "1", "--json").json
    assert (shown["agrees"], len(shown["arms"])) == (True, 10_000)
