"""rlrec pipe: requests and feedback through one warm process."""

from __future__ import annotations

import gc
import json
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rlrec.app.requests.pipe import Pipe
from rlrec.cli.commands.requests import recommend
from rlrec.cli.commands.requests.pipe import line_type
from rlrec.errors import InputError
from rlrec.store import Store
from tests.conftest import PATIENCE_S, Run, jsonl, runner

FLUSH = {"op": "flush"}


@pytest.fixture
def shop(run: Run) -> Run:
    """Arms a1 and a2, and a policy `home` that tries what it knows least."""
    return stocked(run)


def stocked(run: Run) -> Run:
    run("arm", "import", "-", stdin='{"arm": "a1"}\n{"arm": "a2"}\n')
    run("policy", "create", "home", "--kind", "ucb")
    return run


def ask(**keys: Any) -> dict[str, Any]:
    return {"op": "recommend", "policy": "home", "session": "s1"} | keys


def tell(**keys: Any) -> dict[str, Any]:
    return {"op": "feedback", "events": {"click": 1}} | keys


def test_requests_and_feedback_are_answered_in_order(shop: Run) -> None:
    result = shop(
        "pipe", "--seed", 1,
        stdin=[ask(request_id="r1"), FLUSH, tell(decision_id=1, key="k"), ask(), tell(decision_id=1, key="k")],
    )  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    first, reported, second, again = result.lines
    assert (first["decision_id"], first["request_id"], first["duplicate"]) == (1, "r1", False)
    assert reported == {"decision_id": 1, "events": 1, "duplicates": 0, "reward": 1.0}
    assert (second["decision_id"], second["step"]) == (2, 1)
    assert again == {"decision_id": 1, "events": 0, "duplicates": 1, "reward": 1.0}


def test_an_input_of_bad_lines_alone_stores_nothing(shop: Run, tmp_path: Path) -> None:
    assert "2 lines refused, nothing is stored" in shop("pipe", stdin=[ask(k=0), "{"]).failed(5)
    quarantine = ("-", "--on-error", "quarantine", "--rejects", tmp_path / "bad.ndjson")
    for words, text in (
        (("feedback", "--input"), jsonl([tell(op=None), "{"])),
        (("arm", "import"), "arm,until\na9,soon\na8,late\n"),
        (("import-log", "--layout", "jsonl"), jsonl(["{", "{"])),
    ):
        result = shop(*words, *quarantine, stdin=text)
        assert (result.exit_code, "2 lines refused, nothing is stored" in result.stderr) == (5, True), words


def test_bad_lines_are_refused_in_place(shop: Run) -> None:
    result = shop(
        "pipe", "--json",
        stdin=[
            ask(), "not json", {"session": "s"}, {"op": "recomend"}, ask(k=0), ask(session=""), ask(policy="none"),
            tell(), tell(decision_id=99), tell(decision_id=1, position=1, at="noon"), ask(k="2"), ask(events={}),
            tell(decision_id=1, request_id="r"), tell(decision_id=1, key="x" * 201), tell(decision_id=1, k=1),
            FLUSH | {"now": True}, ask(session="s2"),
        ],
    )  # fmt: skip
    assert result.exit_code == 5
    assert "15 lines refused, the rest is stored" in result.stderr
    answers = result.lines
    assert [answer.get("decision_id") for answer in answers] == [1, *[None] * 15, 2]
    assert [answer["line"] for answer in answers[1:-1]] == [*range(2, 17)]
    assert all(list(answer) == ["line", "error", "field", "code"] for answer in answers[1:-1])
    assert [answer["field"] for answer in answers[1:-1]] == [
        None, "op", "op", "k", "session", "policy", "decision_id", "decision_id", "at", "k", "events",
        "request_id", "key", "k", "op",
    ]  # fmt: skip
    assert answers[2]["error"] == "is missing: it is recommend or feedback"
    assert answers[3]["error"] == "'recomend' is not recommend or feedback: did you mean recommend?"


def test_a_seed_makes_the_same_answers(sqlite_db: str, shop: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    other.write_bytes(Path(sqlite_db).read_bytes())
    for name in ("-wal", "-shm"):
        if Path(sqlite_db + name).exists():
            Path(str(other) + name).write_bytes(Path(sqlite_db + name).read_bytes())
    (tmp_path / "in").write_text(jsonl([*(ask(session=f"s{n}") for n in range(50)), FLUSH, tell(decision_id=7), ask()]))
    clock = ("--now", "2027-01-01T00:00:00Z")
    first = shop(*clock, "pipe", "--input", tmp_path / "in", "--seed", 7)
    second = runner(str(other))(*clock, "pipe", "--input", tmp_path / "in", "--seed", 7)
    assert first.exit_code == second.exit_code == 0
    assert first.stdout == second.stdout


def test_what_the_pipe_draws_a_stream_draws(shop: Run) -> None:
    options = [{key: value for key, value in ask(session=f"s{n}").items() if key != "op"} for n in range(20)]
    dry = shop("recommend", "--input", "-", "--seed", 3, "--dry-run", stdin=options).lines
    piped = shop("pipe", "--seed", 3, stdin=[{"op": "recommend"} | item for item in options]).lines
    assert [answer["slate"] for answer in piped] == [answer["slate"] for answer in dry]


@pytest.mark.slow
def test_a_caller_that_waits_is_answered_line_by_line(sqlite_db: str, shop: Run, forked_rlrec: Path) -> None:
    command = [forked_rlrec, "--db", sqlite_db, "pipe"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for number in (1, 2, 3):
            for line in (ask(), tell(decision_id=number)):
                child.stdin.write(jsonl([line]).encode())
                child.stdin.flush()
                assert json.loads(child.stdout.readline())["decision_id"] == number
        _, err = child.communicate(timeout=PATIENCE_S)
    assert (child.returncode, err) == (0, b"")


def test_a_pipe_of_nothing_still_needs_a_store(tmp_path: Path) -> None:
    assert "no store" in runner(str(tmp_path / "none.db"))("pipe", stdin="").failed(3)


@pytest.mark.parametrize("target", ["policy", "experiment"])
def test_near_names_are_looked_up_for_few_lines_of_a_group(shop: Run, target: str) -> None:
    shop("policy", "create", "rival", "--kind", "thompson")
    shop("experiment", "create", "homes", "--variant", "a=home", "--variant", "b=rival")
    unknown = [{"op": "recommend", target: f"home{number}", "session": "s"} for number in range(30)]
    errors = [answer["error"] for answer in shop("pipe", "--seed", 1, stdin=unknown).lines]
    assert [error.startswith(f"unknown {target} 'home{number}'") for number, error in enumerate(errors)] == [True] * 30
    assert sum("did you mean home" in error for error in errors) == 10


def test_events_that_nothing_weighs_do_not_slow_the_answers_after_them(shop: Run) -> None:
    """Rewards are worked out from the events that count, in time that grows with their number alone."""
    events = ({f"e{line % 5}_{number}": 1 for number in range(100)} for line in range(500))
    body = jsonl([ask(), FLUSH, *(tell(decision_id=1, events=each | {"click": 1}) for each in events)])
    start = time.process_time()
    result = shop("pipe", "--seed", 1, stdin=body)
    assert [answer["events"] for answer in result.lines[1:]] == [101] * 500
    assert result.lines[-1]["reward"] == 1
    assert time.process_time() - start < 2.5


def test_refused_lines_leave_nothing_behind_in_a_long_process(sqlite_db: str, shop: Run) -> None:
    """Neither errors nor the lines of their groups wait for the garbage collector."""
    refused = "not json", ask(sesion="s"), ask(arms=["a1", "a1"]), ask(policy="none"), tell(decision_id=99), tell()
    numbered = list(enumerate(jsonl(refused).encode().splitlines(), 1))
    gc.collect()
    gc.freeze()  # what other tests left is neither looked through nor counted
    with closing(Store(sqlite_db)) as store:
        pipe = Pipe(store)
        recommend.answer_group(pipe, numbered, line_type())
        gc.collect()
        gc.disable()
        try:
            before = sum(isinstance(item, InputError) for item in gc.get_objects())
            answers, n_refused = recommend.answer_group(pipe, numbered, line_type())
            after = sum(isinstance(item, InputError) for item in gc.get_objects())
        finally:
            gc.enable()
    assert (n_refused, after - before) == (len(refused), 0)
    assert [answer["line"] for answer in answers] == [1, 2, 3, 4, 5, 6]
