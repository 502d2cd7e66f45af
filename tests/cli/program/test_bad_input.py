"""Whatever is wrong, a command says it in one line, ends with the right code, and stores nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rlrec.store import Store
from tests.cli.conftest import Rows
from tests.conftest import ON_BOTH, PATIENCE_S, CommandResult, Run, _create, runner, store_after

NOW = "2027-01-15T08:00:00Z"  # START
LATER = "2027-01-15T08:00:10Z"
DEEP = '{"a":' * 70 + "1" + "}" * 70
HUGE = "123456789012345678901234567890"


def stocked(db: str) -> None:
    run = runner(db)
    for words in (
        ["arm", "add", "a"], ["arm", "add", "b"], ["arm", "add", "c"],
        ["policy", "create", "home", "--kind", "thompson"],
        ["recommend", "--policy", "home", "--session", "s1", "--user", "u1", "-k", 2, "--request-id", "r1"],
        ["feedback", 1, "click", "--position", 1, "--key", "k1", "--at", NOW],
    ):  # fmt: skip
        assert run("--now", NOW, *words).exit_code == 0, words


# Three arms, a policy that learns, one page of two slots under request id r1, one event under key k1.
shop = store_after(stocked)


def refuses(result: CommandResult, code: int, *words: str) -> None:
    """One line of error, nothing else, and no traceback."""
    assert result.exit_code == code, result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("Error: ")
    assert not any(word in result.stderr for word in ("Traceback", "unexpected", "sqlalchemy", "psycopg"))
    assert all(word in result.stderr for word in words), result.stderr


# -- one command --

COMMANDS: list[tuple[int, list[Any], str]] = [
    (2, ["feedback", 99, "click"], "unknown decision 99"),
    (2, ["feedback", HUGE, "click"], "DECISION_ID"),
    (2, ["feedback", "x", "click"], "DECISION_ID"),
    (2, ["feedback", 0, "click"], "DECISION_ID"),
    (2, ["feedback", 1], "no event"),
    (2, ["feedback"], "DECISION_ID"),
    (2, ["feedback", 1, "click=NaN"], "NaN"),
    (2, ["feedback", 1, "click=inf"], "inf"),
    (2, ["feedback", 1, "click=1e999"], "1e999"),
    (2, ["feedback", 1, "click=often"], "often"),
    (2, ["feedback", 1, "click=true"], "true"),
    (2, ["feedback", 1, "click="], "not a number"),
    (2, ["feedback", 1, "click=1_000"], "1_000"),
    (2, ["feedback", 1, "click=1e200", "--position", 1], "too large"),
    (2, ["feedback", 1, "cl!ck"], "cl!ck"),
    (2, ["feedback", 1, "1click"], "is no kind of event"),
    (2, ["feedback", 1, "!censor"], "is no kind of event"),
    (2, ["feedback", 1, "x" * 65], "kind"),
    (2, ["feedback", 1, "click", "click"], "twice"),
    (2, ["feedback", 1, "click", "--position", 3], "was not shown"),
    (2, ["feedback", 1, "click", "--position", 0], "position"),
    (2, ["feedback", 1, "click", "--at", "2027-01-15T07:59:59.999999Z"], "before decision 1"),
    (2, ["feedback", 1, "click", "--at", "2027-01-15T08:00:10.000001Z"], "in the future"),
    (2, ["feedback", 1, "click", "--at", "yesterday"], "yesterday"),
    (2, ["feedback", 1, "click", "--key", ""], "1 to 200"),
    (2, ["feedback", 1, "click", "--key", "x" * 201], "1 to 200"),
    (6, ["feedback", 1, "click=2", "--position", 1, "--key", "k1", "--at", NOW], "'k1' is known"),
    (6, ["feedback", 1, "click", "--position", 1, "--key", "k1"], "'k1' is known"),
    (2, ["recommend", "--policy", "hom", "--session", "s1"], "did you mean home"),
    (2, ["recommend", "--policy", "home@9", "--session", "s1"], "no version 9"),
    (2, ["recommend", "--policy", f"home@{HUGE}", "--session", "s1"], "unknown policy"),
    (2, ["recommend", "--session", "s1"], "policy or an experiment"),
    (2, ["recommend", "--policy", "home", "--experiment", "e", "--session", "s1"], "one of them"),
    (2, ["recommend", "--experiment", "e", "--session", "s1"], "unknown experiment"),
    (2, ["recommend", "--policy", "home"], "--session"),
    (2, ["recommend", "--policy", "home", "--session", ""], "1 to 200"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "-k", 4], "only 3 arms"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "-k", 0], "-k"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "-k", HUGE], "k"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--arms", "a,z"], "unknown arm 'z'"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--arms", "b,a,b"], "arm 'b' is listed twice"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--arms", "a", "-k", 2], "only 1 arm"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--user", ""], "1 to 200 characters"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--arms", "[]"], "no arm"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--arms", "[1]"], "must be text"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--context", "[1]"], "JSON object"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--context", '{"x": NaN}'], "NaN"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--context", '{"x": 1e999}'], "1e999"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--context", f'{{"x": {HUGE}}}'], "64 bits"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--context", '{"x": "\\u0000"}'], "NUL"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--context", '{"x": "\\ud800"}'], "Unicode"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--context", '{"x": 1, "x": 2}'], "twice"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--block", "a", "--block=b"], "write --block a,b"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--not-shown", 1, "--not-shown", 2], "give it once"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "-k", 1, "--size", 2], "--size is given more than once"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--context", DEEP], "deep"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--context", "@none.json"], "none.json"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--seed", -1], "seed"),
    (2, ["recommend", "--policy", "home", "--session", "s1", "--seed", HUGE], "seed"),
    (6, ["recommend", "--policy", "home", "--session", "s1", "--user", "u2"], "belongs to user 'u1'"),
    (6, ["recommend", "--policy", "home", "--session", "s1", "--request-id", "r1"], "'r1' is known"),
    (2, ["arm", "retire", "z"], "unknown arm 'z'"),
    (2, ["arm", "add", "d", "--features", "[]"], "JSON object"),
    (2, ["policy", "create", "p", "--kind", "thomson"], "did you mean thompson"),
    (2, ["policy", "create", "p", "--kind", "thompson", "--param", "floor=2"], "floor"),
    (2, ["policy", "create", "p", "--kind", "thompson", "--param", "floor=NaN"], "finite"),
    (2, ["policy", "create", "p q", "--kind", "thompson"], "not a name"),
    (6, ["policy", "create", "home", "--kind", "uniform"], "another definition"),
    (2, ["policy", "promote", "home"], "names no version"),
    (3, ["policy", "rollback", "home"], "no promotion"),
    (6, ["reward", "define", "default", "click=2"], "another definition"),
    (2, ["reward", "define", "r", "click=NaN"], "finite"),
    (2, ["reward", "define", "r", "click"], "is not a weight"),
    (6, ["init", "--session-timeout", "1h"], "another session timeout"),
    (2, ["recomend"], "did you mean recommend"),
    (2, ["version"], "did you mean rlrec --version?"),
    (2, ["policy", "create", "p", "--kind", "thompson", "--floor", "0.1"], "of a policy: --param floor=VALUE"),
    (2, ["recommend", "--floor", "0.1"], "policy: policy create NAME --kind KIND --param floor=VALUE"),
    (2, ["recommend", "--epsilon=0.1"], "--param epsilon=VALUE"),
    (2, ["simulate", "bernouli"], "did you mean bernoulli?"),
    (2, ["simulate", "nope", "--ephemeral"], "unknown environment 'nope'"),
    (3, ["policy", "rollback", "home"], "`rlrec policy list` shows the policies that could serve"),
    (2, ["recommend", "--polcy", "home"], "did you mean --policy"),
]  # fmt: skip


def test_a_wrong_command_says_so_and_stores_nothing(shop: Run, rows: Rows) -> None:
    before = rows()
    for code, words, result in COMMANDS:
        refuses(shop("--now", LATER, *words), code, result)
    assert rows() == before


@pytest.mark.parametrize(
    ("words", "result"),
    [
        (["feedback", "click"], "'click' is not a decision id. it is the number that recommend answered"),
        (["feedback", 1, "click=x"], "event click: 'x' is not a number"),
        (["experiment", "create", "e", "--variant", "a=home:x"], "the weight of variant a: 'x' is not a number"),
        (["policy", "destroy"], "no such command 'destroy'. see rlrec policy --help"),
        (["export-log", "-", "--log", "policy"], "write policy=NAME"),
        (["recommend", "--policy", "hom", "--session", "s1"], "Error: --policy: unknown policy 'hom'"),
        (["recommend", "--policy", "home", "--session", "s1", "-k", 4], "Error: -k: "),
        (["policy", "show", "hom"], "Error: NAME: unknown policy 'hom'"),
    ],
)
def test_a_message_speaks_of_what_was_typed(shop: Run, words: list[Any], result: str) -> None:
    refuses(shop("--now", LATER, *words), 2, result)


@pytest.mark.parametrize(
    ("words", "result"),
    [
        (["reward", "define", "v", "a=1", "b=-2"], "(b=-2). write one word, with commas: 'a=1, b=-2'"),
        (["recommend", "home"], "(home). did you mean --policy home?"),
        (["session", "show", "a", "b"], "(b). see rlrec session show --help"),
    ],
)
def test_a_word_too_many_is_told_where_it_belongs(run_sqlite: Run, words: list[str], result: str) -> None:
    answer = run_sqlite(*words)
    assert (answer.exit_code, answer.stderr) == (2, f"Error: Got unexpected extra argument {result}\n")


def test_a_message_names_the_variable_that_was_set(shop: Run) -> None:
    words = ["recommend", "--policy", "home", "--session", "s1"]
    refused = shop(*words, env={"RLREC_RECOMMEND_K": "two"})
    refuses(refused, 2, "'-k'", "'two' is not a whole number", "RLREC_RECOMMEND_K")
    unknown = shop("--now", LATER, "recommend", "--session", "s1", env={"RLREC_RECOMMEND_POLICY": "hom"})
    refuses(unknown, 2, "--policy (from RLREC_RECOMMEND_POLICY): unknown policy 'hom'")
    for name in ("RLREC_NOW", "RLREC_DEBUG", "RLREC_QUIET"):
        refuses(shop("arm", "list", env={name: "garbage"}), 2, "'garbage'", f"(from {name})")


def test_an_id_is_written_as_it_was_printed(shop: Run, rows: Rows) -> None:
    before = rows()
    for word in ("01", "+1", "1_0", "\u0661", "0", "-1", str(2**63), HUGE):
        for words in (["feedback", "--", word, "click"], ["decision", "show", "--", word]):
            refuses(shop("--now", LATER, *words), 2, "ID")
    assert rows() == before


@ON_BOTH
def test_numbers_at_the_end_of_their_range_are_one_line(shop: Run) -> None:
    last = 2**63 - 1
    refuses(shop("--now", LATER, "feedback", last, "click"), 2, f"unknown decision {last}")
    refuses(shop("--now", LATER, "decision", "show", last), 2, f"unknown decision {last}")
    for visit in (2**31, last):
        refuses(shop("--now", LATER, "session", "show", "s1", "--visit", visit), 2, f"no visit {visit}")
    refuses(shop("--now", LATER, "session", "show", "s1", "--visit", last + 1), 2, "does not fit into 64 bits")
    assert shop("--now", LATER, "session", "list", "--limit", last, "--json").json[0]["session"] == "s1"
    for position in (2**15, 2**31, last):
        result = shop("--now", LATER, "feedback", 1, "click", "--position", position)
        refuses(result, 2, f"position {position} of decision 1 was not shown")


def test_errors_are_json_where_results_are(shop: Run) -> None:
    for code, words, piece in COMMANDS:
        result = shop("--now", LATER, *words, "--json")
        assert (result.exit_code, result.stdout) == (code, "")
        assert sorted(result.error) == ["code", "error", "hint"]
        assert result.error["code"] == code
        assert piece in result.error["error"] + str(result.error["hint"])


def test_a_policy_without_eligible_arms_says_so(shop: Run, rows: Rows) -> None:
    shop("--now", NOW, "arm", "retire", "a", "b", "c")
    before = rows()
    for more in ([], ["--arms", "a"]):
        result = shop("--now", LATER, "recommend", "--policy", "home", "--session", "s1", *more)
        refuses(result, 2, "no arm is eligible")
    assert rows() == before


# -- lines --

GOOD = b'{"decision_id": 1, "position": 2, "events": {"click": 1}}\n'
LINES: list[tuple[str | bytes, str]] = [
    ('{"decision_id": 1, "events": {"click": NaN}}', "NaN"),
    ('{"decision_id": 1, "events": {"click": Infinity}}', "Infinity"),
    ('{"decision_id": 1, "events": {"click": -Infinity}}', "Infinity"),
    ('{"decision_id": 1, "events": {"click": 1e999}}', "1e999"),
    ('{"decision_id": 1, "events": {"click": "1"}}', "events.click"),
    ('{"decision_id": 1, "events": {"click": true}}', "events.click"),
    ('{"decision_id": 1, "events": {"click": null}}', "events.click"),
    (f'{{"decision_id": 1, "events": {{"click": {HUGE}}}}}', "64 bits"),
    ('{"decision_id": 1, "position": 1, "events": {"click": 1e101}}', "too large"),
    ('{"decision_id": 1, "events": {"cl!ck": 1}}', "cl!ck"),
    ('{"decision_id": 1, "events": {"": 1}}', "kind"),
    ('{"decision_id": 1, "events": {}}', "no event"),
    ('{"decision_id": 1}', "no event"),
    ('{"events": {"click": 1}}', "no decision is named"),
    ('{"decision_id": 99, "events": {"click": 1}}', "unknown decision 99"),
    ('{"decision_id": -1, "events": {"click": 1}}', "unknown decision -1"),
    ('{"decision_id": "1", "events": {"click": 1}}', "decision_id"),
    ('{"decision_id": 1.5, "events": {"click": 1}}', "decision_id"),
    ('{"decision_id": true, "events": {"click": 1}}', "decision_id"),
    (f'{{"decision_id": {HUGE}, "events": {{"click": 1}}}}', "64 bits"),
    ('{"request_id": "r9", "events": {"click": 1}}', "unknown request 'r9'"),
    ('{"request_id": "r1", "decision_id": 1, "events": {"click": 1}}', "both given"),
    ('{"decision_id": 1, "position": 3, "events": {"click": 1}}', "was not shown"),
    ('{"decision_id": 1, "position": 0, "events": {"click": 1}}', "was not shown"),
    (f'{{"decision_id": 1, "position": {2**62}, "events": {{"click": 1}}}}', "was not shown"),
    ('{"decision_id": 1, "events": {"click": 1}, "weight": 2}', "unknown field"),
    ('[{"decision_id": 1, "events": {"click": 1}}]', "the list"),
    ('{"decision_id": 1, "events": {"click": 1}, "key": "a\\u0000b"}', "NUL"),
    ('{"decision_id": 1, "events": {"click": 1}, "key": "\\ud800"}', "not valid Unicode"),
    ('{"decision_id": 1, "events": {"click": 1}, "key": ""}', "1 to 200"),
    ('{"decision_id": 1, "events": {"click": 1}, "key": 7}', "key"),
    (b'{"decision_id": 1, "events": {"click": 1}, "key": "\xff"}', "not UTF-8"),
    ('{"decision_id": 1, "events": {"click": 1}, "at": "2027-01-15T07:00:00Z"}', "before decision 1"),
    ('{"decision_id": 1, "events": {"click": 1}, "at": "2037-01-15T08:00:00Z"}', "in the future"),
    ('{"decision_id": 1, "events": {"click": 1}, "at": 1800000000}', "at"),
    ('{"decision_id": 1, "events": {"click": 1}, "censor": 1}', "censor"),
    ('{"decision_id": 1, "events": {"click": 1}, "events": {"click": 2}}', "twice"),
    ('{"decision_id": 1, "events": {"click": 1}', "not JSON"),
    ("click", "not JSON"),
    (DEEP, ""),
]  # fmt: skip


def raw(line: str | bytes) -> bytes:
    return (line if isinstance(line, bytes) else line.encode()) + b"\n"


def test_one_bad_line_stops_all_and_stores_nothing(shop: Run, rows: Rows) -> None:
    before = rows()
    for line, piece in LINES:
        result = shop("--now", LATER, "feedback", "--input", "-", stdin=GOOD + raw(line) + GOOD)
        refuses(result, 2, "<stdin> line 2", piece)
    assert rows() == before


def test_bad_lines_go_to_the_rejects_and_good_ones_in(shop: Run, rows: Rows, tmp_path: Path) -> None:
    lines = b"".join(GOOD + raw(line) for line, _ in LINES)
    rejects = tmp_path / "rejects.ndjson"
    result = shop(
        "--now", LATER, "feedback", "--input", "-", "--on-error", "quarantine", "--rejects", rejects, "--json",
        stdin=lines,
    )  # fmt: skip
    assert result.exit_code == 5
    assert result.json == {"accepted": len(LINES), "duplicates": 0, "rejected": len(LINES)}
    reported = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert sorted(line["line"] for line in reported) == list(range(2, 2 * len(LINES) + 1, 2))
    assert len(rows()["event"]) == 1 + len(LINES)


REQUESTS: list[tuple[str | bytes, str]] = [
    ('{"policy": "home"}', "session"),
    ('{"policy": "home", "session": 7}', "session"),
    ('{"policy": "home", "session": ""}', "1 to 200"),
    ('{"policy": "home", "session": "s\\u0000"}', "NUL"),
    ('{"session": "s1"}', "policy"),
    ('{"policy": "hom", "session": "s1"}', "unknown policy"),
    ('{"policy": "home", "session": "s1", "k": 0}', "k is 0"),
    ('{"policy": "home", "session": "s1", "k": 4}', "only 3 arms"),
    ('{"policy": "home", "session": "s1", "k": "2"}', "k"),
    ('{"policy": "home", "session": "s1", "k": true}', "k"),
    ('{"policy": "home", "session": "s1", "arms": ["z"]}', "unknown arm"),
    ('{"policy": "home", "session": "s1", "arms": "a"}', "arms"),
    ('{"policy": "home", "session": "s1", "context": [1]}', "context"),
    ('{"policy": "home", "session": "s1", "context": {"x": NaN}}', "NaN"),
    ('{"policy": "home", "session": "s1", "size": 2}', "unknown field"),
    ('{"policy": "home", "session": "s1", "user": "u2"}', "belongs to user"),
    ('{"policy": "home", "session": "s1", "request_id": "r1"}', "known with other content"),
    ('["home", "s1"]', "the list"),
    (b'{"policy": "home", "session": "\xff"}', "not UTF-8"),
]


def test_refused_requests_are_answered_in_place_and_leave_nothing(shop: Run, rows: Rows) -> None:
    before = rows()
    result = shop("--now", LATER, "recommend", "--input", "-", stdin=b"".join(raw(line) for line, _ in REQUESTS))
    assert result.exit_code == 5
    assert [answer["line"] for answer in result.lines] == list(range(1, len(REQUESTS) + 1))
    for answer, (_, piece) in zip(result.lines, REQUESTS, strict=True):
        assert piece in answer["error"] + str(answer["field"])
    assert rows() == before


# -- the clock --


def test_a_clock_before_the_newest_decision_is_refused(shop: Run, rows: Rows) -> None:
    before = rows()
    for words in (["recommend", "--policy", "home", "--session", "s1"], ["feedback", 1, "click"], ["arm", "list"]):
        refuses(shop("--now", "2027-01-15T07:59:59Z", *words), 2, "before the newest decision")
        refuses(shop("--now", "later", *words), 2, "later")
    assert rows() == before


# -- stores that are none --


def picture(path: Path) -> str:
    path.joinpath("store.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(5000))
    return str(path / "store.png")


def outdated(path: Path, template: Path, revision: str) -> str:
    path.joinpath("old.db").write_bytes(template.read_bytes())
    with closing(Store(str(path / "old.db"))) as store:
        store.write(lambda unit: unit.tell(f"UPDATE rlrec_version SET version_num = '{revision}'"))
    return str(path / "old.db")


@pytest.mark.parametrize("words", [["arm", "list"], ["arm", "add", "a"], ["feedback", 1, "click"], ["init", "--check"]])
def test_a_store_that_is_none_is_named(tmp_path: Path, sqlite_template: Path, words: list[Any]) -> None:
    refuses(runner(picture(tmp_path))(*words), 1, "store.png is not a database")
    refuses(runner(str(tmp_path))(*words), 1, "is a folder")
    refuses(runner(str(tmp_path / "none.db"))(*words), 3, "no store", f"`rlrec --db {tmp_path}/none.db init`")
    refuses(runner(str(tmp_path / "no" / "none.db"))(*words), 3, "its folder does not exist")
    refuses(runner(outdated(tmp_path, sqlite_template, "0009"))(*words), 3, "from 0010 on", "of rlrec 0.1.0")
    refuses(runner(outdated(tmp_path, sqlite_template, "9999"))(*words), 3, "newer rlrec")
    refuses(runner("mysql://h/x")(*words), 2, "mysql")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.db", "store.png"]
    assert (tmp_path / "store.png").read_bytes()[:4] == b"\x89PNG"


def test_a_log_is_not_written_where_no_folder_is(tmp_path: Path, sqlite_db: str) -> None:
    path = tmp_path / "no" / "log.jsonl"
    result = runner(sqlite_db)("export-log", str(path))
    refuses(result, 1, f"cannot write {path}: no such file", f"make its folder first: {tmp_path / 'no'}")
    assert ".part" not in result.stderr


def test_an_unreachable_server_is_busy_and_said_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    result = runner(f"postgresql://u:secret@127.0.0.1:1/x?connect_timeout={2 * PATIENCE_S}")("arm", "list")
    refuses(result, 4, "cannot reach", "a retry is safe")
    assert "secret" not in result.stderr
    assert time.monotonic() - began < PATIENCE_S


def test_a_database_that_is_not_there_is_a_missing_store(postgres_server: str) -> None:
    refuses(runner(postgres_server.format("nowhere"))("arm", "list"), 3, "no database", "createdb")


@pytest.mark.slow
def test_an_empty_database_is_no_store(empty_db: str) -> None:
    refuses(runner(empty_db)("arm", "list"), 3, "rlrec --db", "init`")


@pytest.fixture
def guarded(postgres_server: str) -> Iterator[str]:
    """A database that a login with a password may use."""
    import psycopg

    url = _create(postgres_server, "guarded")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'right-one'")
        row = connection.execute("SHOW hba_file").fetchone()
        assert row is not None
        rules = Path(row[0])
        text = rules.read_text()
        rules.write_text("local all guest scram-sha-256\n" + text)
        connection.execute("SELECT pg_reload_conf()")
    guest = url.replace("postgres:@", "guest:WORD@").replace("postgres@", "guest:WORD@")
    for _ in range(200):  # until the server has read its rules again
        try:
            psycopg.connect(guest).close()
        except psycopg.OperationalError:
            break
        time.sleep(0.05)
    yield guest
    rules.write_text(text)


def test_a_wrong_password_is_said_and_not_printed(guarded: str) -> None:
    for word in ("wrong-one", ""):
        result = runner(guarded.replace("WORD", word))("arm", "list")
        refuses(result, 1, "refused the login")
        assert "wrong-one" not in result.stderr
    refuses(runner(guarded.replace("guest:", "nobody-of-that-name:"))("arm", "list"), 1, "refused the login")
    result = runner(guarded.replace("WORD", "right-one"))("arm", "list")
    refuses(result, 3, "guest:***@", "init`")
    assert "right-one" not in result.stderr


# -- as a real process --


# Root may read and write every file, unless it gives that up (capabilities 1 and 2) before it becomes the command.
MODEST = """
import ctypes, os, sys
[ctypes.CDLL(None).prctl(24, capability) for capability in (1, 2)]
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def process(db: str, *words: str | bytes) -> subprocess.CompletedProcess[str]:
    command: list[str | bytes] = [sys.executable, "-c", MODEST, "-m", "rlrec", "--db", db, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")


@pytest.mark.slow
def test_a_store_that_may_not_be_written_can_be_read(sqlite_db: str) -> None:
    Path(sqlite_db).chmod(0o444)
    result = process(sqlite_db, "arm", "add", "a")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "cannot be written" in result.stderr
    assert process(sqlite_db, "arm", "list", "--json").stdout == "[]\n"


@pytest.mark.slow
def test_a_store_that_may_not_be_read_says_so(sqlite_db: str) -> None:
    file = Path(sqlite_db)
    for denied in (file, file.parent):
        denied.chmod(0)
        result = process(sqlite_db, "arm", "list")
        denied.chmod(0o700)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        assert "permission denied" in result.stderr


@pytest.mark.slow
def test_a_folder_that_takes_no_file_is_no_place_to_init(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = process(str(tmp_path / "x.db"), "init")
    tmp_path.chmod(0o700)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"Error: cannot create {tmp_path}/x.db: permission denied. choose another path with --db\n"


@pytest.mark.slow
def test_bytes_that_are_no_text_are_refused(sqlite_db: str) -> None:
    result = process(sqlite_db, "arm", "add", b"a\xff")
    assert (result.returncode, result.stdout) == (2, "")
    assert "not valid Unicode" in result.stderr
    assert process(sqlite_db, "arm", "list", "--json").stdout == "[]\n"


@pytest.mark.slow
def test_a_stderr_that_is_full_changes_no_exit_code(shop: Run, sqlite_db: str, forked_rlrec: Path) -> None:
    """A line that cannot be written there is no failure of what was done, and no traceback takes its place."""
    for code, words in ((0, ["feedback", "1", "unheard_of"]), (0, ["export-log", "-"]), (2, ["decision", "show", "9"])):
        with open("/dev/full", "wb") as full:
            command = [forked_rlrec, "--db", sqlite_db, *words]
            assert subprocess.run(command, stdout=subprocess.PIPE, stderr=full, check=False).returncode == code


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="others do not limit addresses")
def test_too_little_memory_is_one_line(shop: Run, sqlite_db: str) -> None:
    """At these limits: the libraries of numpy cannot be mapped, OpenBLAS gets no buffer, and the modules that describe
    errors cannot be loaded (near 120 MB)."""
    command = [sys.executable, "-m", "rlrec", "--db", sqlite_db, "evaluate", "uniform", "--json"]
    for megabytes in (80, 100, 120, 128):
        limited = ["sh", "-c", f'ulimit -v {megabytes << 10}; exec "$0" "$@"', *command]
        result = subprocess.run(limited, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1), megabytes
        assert json.loads(result.stderr)["error"] == "out of memory", megabytes


def test_an_error_about_a_value_from_the_environment_names_the_variable(run_sqlite: Run) -> None:
    for option, value in (("LOG", "foo"), ("ESTIMATOR", "best"), ("REWARD", "zz"), ("LEVEL", "2")):
        result = run_sqlite("evaluate", "uniform", env={f"RLREC_EVALUATE_{option}": value})
        assert (result.exit_code, f"(from RLREC_EVALUATE_{option})" in result.stderr) == (2, True), result.stderr


def test_a_version_is_named_by_its_number_alone(run_sqlite: Run) -> None:
    run_sqlite("policy", "create", "home", "--kind", "thompson")
    result = [run_sqlite("policy", "show", f"home@{number}").exit_code for number in ("1", "01", "+1", "1.0")]
    assert result == [0, 2, 2, 2]
