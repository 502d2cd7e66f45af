"""Results as table, json, ndjson and csv."""

import csv
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rlrec.cli.output.output import Show
from rlrec.cli.output.tables import short_times
from rlrec.cli.text.text import View
from tests.conftest import PATIENCE_S, Run, begin, filled, runner


@dataclass(frozen=True)
class Slot:
    position: int
    arm: str
    propensity: float | None


@dataclass(frozen=True)
class Answer:
    decision_id: int
    request_id: str | None
    slate: tuple[Slot, ...]
    duplicate: bool = False


ANSWER = Answer(17, None, (Slot(1, "007", 1 / 3), Slot(2, "1e5", None)))


@pytest.fixture
def shown(capfdbinary: Any) -> Any:
    def show(form: Any, *args: Any, **kwargs: Any) -> Any:
        Show(form)(*args, **kwargs)
        return capfdbinary.readouterr().out.decode("utf-8")

    return show


def test_json_keeps_keys_in_order_and_numbers_in_full(shown: Any) -> None:
    text = shown("json", ANSWER)
    record = json.loads(text)
    assert text.count("\n") == 1
    assert list(record) == ["decision_id", "request_id", "slate", "duplicate", "schema_version"]
    assert record["slate"][0]["propensity"] == 1 / 3
    assert record["request_id"] is None


def test_json_of_a_list_is_one_document(shown: Any) -> None:
    assert json.loads(shown("json", iter([{"a": 1}, {"a": 2}]))) == [{"a": 1}, {"a": 2}]
    assert json.loads(shown("json", [])) == []


def test_ndjson_is_one_object_a_line(shown: Any) -> None:
    assert [json.loads(line) for line in shown("ndjson", [{"a": 1}, {"a": "x\ny"}]).splitlines()] == [
        {"a": 1}, {"a": "x\ny"},
    ]  # fmt: skip
    assert shown("ndjson", []) == ""


def test_text_is_utf8_and_not_escaped(shown: Any) -> None:
    assert shown("json", {"arm": "crème 😀"}) == '{"arm": "crème 😀", "schema_version": 1}\n'


@pytest.mark.parametrize("form", ["json", "ndjson", "csv", "table"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("nan")]])
def test_a_nan_is_never_printed(form: Any, value: float) -> None:
    with pytest.raises(ValueError, match=r"(?i)nan|inf|JSON"):
        Show(form)({"a": value})


def test_times_are_utc_with_microseconds_and_z(shown: Any) -> None:
    east = datetime(2026, 1, 31, 13, 0, tzinfo=timezone(timedelta(hours=1)))
    record = json.loads(shown("ndjson", {"a": east, "b": datetime(2026, 1, 31, 12, 0, 0, 5, tzinfo=UTC)}))
    assert record == {"a": "2026-01-31T12:00:00.000000Z", "b": "2026-01-31T12:00:00.000005Z"}


def test_structs_and_array_scalars_are_shown(shown: Any) -> None:
    class Row(msgspec.Struct):
        a: int

    class Scalar:
        def tolist(self) -> Any:
            return 0.5

    assert json.loads(shown("json", [Row(a=1), {"a": Scalar()}])) == [{"a": 1}, {"a": 0.5}]


def test_csv_follows_rfc_4180(shown: Any) -> None:
    rows = [{"arm": 'a"b, c', "x": 1 / 3, "none": None, "flag": True, "at": ["1", 2]}, {"arm": "l1\nl2"}]
    text = shown("csv", rows)
    assert text.startswith("arm,x,none,flag,at\r\n")
    assert (text.count("\r\n"), text[-2:]) == (3, "\r\n")
    first, second = list(csv.DictReader(io.StringIO(text, newline="")))
    assert first == {"arm": 'a"b, c', "x": repr(1 / 3), "none": "", "flag": "true", "at": '["1", 2]'}
    assert second["arm"] == "l1\nl2"


def test_csv_of_nothing_has_its_header_where_columns_are_known(shown: Any) -> None:
    assert shown("csv", [], columns=["a", "b"]) == "a,b\r\n"


def test_csv_of_one_record_shows_the_rows_of_its_view(shown: Any) -> None:
    view = View(headers=["arm", "p"], rows=[(s.arm, s.propensity) for s in ANSWER.slate])
    assert shown("csv", ANSWER, table=view) == f"arm,p\r\n007,{1 / 3!r}\r\n1e5,\r\n"


def test_table_cells_are_verbatim(shown: Any) -> None:
    text = shown("table", [{"arm": "007"}, {"arm": "1e5"}, {"arm": " a"}, {"arm": "-0.10"}])
    assert text.splitlines() == ["arm", "-----", "007", "1e5", " a", "-0.10"]


def test_table_has_short_numbers_to_the_right(shown: Any) -> None:
    text = shown("table", [{"n": 7, "p": 1 / 3}, {"n": 120, "p": None}, {"n": 9.0, "p": 12345.678}])
    assert [line.split() for line in text.splitlines()[2:]] == [["7", "0.3333"], ["120", "-"], ["9", "12345.7"]]
    assert text.splitlines()[2].startswith("  7")


def test_one_record_is_a_sheet_with_its_lists_below(shown: Any) -> None:
    text = shown("table", ANSWER)
    assert text.splitlines()[:3] == ["decision_id  17", "request_id   -", "duplicate    no"]
    assert "\nslate\n" in text
    assert "007" in text


def test_nothing_in_a_table_moves_the_cursor(shown: Any) -> None:
    assert shown("table", [{"arm": "a\x1b[2Jb\nc"}]).splitlines()[2] == r"a\x1b[2Jb\nc"


def test_a_view_has_its_title_above(shown: Any) -> None:
    text = shown("table", ANSWER, table=View(title=["decision 17"], headers=["arm"], rows=[["a"]]))
    assert text == "decision 17\n\narm\n-----\na\n"


def test_a_stream_sends_each_group_before_the_next_is_made(capfdbinary: Any) -> None:
    observed = []

    def groups() -> Iterator[Any]:
        for n in range(3):
            yield [{"n": n}, {"n": n}]
            observed.append(capfdbinary.readouterr().out.count(b"\n"))

    Show("table").stream(groups())
    assert observed == [2, 2, 2]


@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), [float("nan")], {"a": -float("inf")}])
def test_a_stream_prints_no_nan(value: float, capfdbinary: Any) -> None:
    with pytest.raises(ValueError, match=r"(?i)JSON"):
        Show("json").stream([[{"n": None, "a": 1.5}, {"n": 1, "a": value}]])
    assert capfdbinary.readouterr().out == b""


def test_a_stream_shows_what_any_result_may_hold(capfdbinary: Any) -> None:
    at = datetime(2026, 1, 31, 12, tzinfo=UTC)
    retained = {"arm": "crème 😀 ˿ÿ", "x": 1.7976931348623157e308, "none": None, "n": -(2**63)}
    Show("json").stream([[ANSWER, {"at": at.isoformat(), "x": (1, 1 / 3)}], [retained], [{"big": 2**70}]])
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert [json.loads(line) for line in lines[1:]] == [
        {"at": "2026-01-31T12:00:00+00:00", "x": [1, 1 / 3]}, retained, {"big": 2**70},
    ]  # fmt: skip
    assert json.loads(lines[0])["slate"][1]["arm"] == "1e5"
    assert "crème 😀" in lines[2]


def test_an_iterator_is_not_read_to_its_end_before_the_first_line(capfdbinary: Any) -> None:
    observed = []

    def rows() -> Iterator[Any]:
        yield {"n": 1}
        observed.append(capfdbinary.readouterr().out)
        yield {"n": 2}

    Show("ndjson")(rows())
    assert observed == [b'{"n": 1}\n']


def fill_every_result(db: str) -> None:
    for text in (
        "arm add a", "policy create home --kind thompson", "policy create visits --kind gradient",
        "experiment create ab --variant a=home --variant b=visits",
        "recommend --policy home --session s --user u", "feedback 1 click --position 1",
    ):  # fmt: skip
        runner(db)("--now", "2026-01-01", *text.split()).done()


@pytest.mark.parametrize(
    "words",
    [
        "evaluate uniform", "evaluate uniform --estimator snips,dr,wdr --by arm", "outcomes", "outcomes --by day",
        "exposure", "exploration", "policy show home", "policy versions home", "policy diff home home",
        "decision show 1", "session show s", "session list", "experiment show ab", "report -", "status", "doctor",
        "position fit home", "train-pg visits", "policy freeze home", "settle", "export-log - --format csv",
        "import-log log --layout jsonl --policy old", "policy create p2 --kind thompson --from-log policy=home",
    ],
)  # fmt: skip
def test_what_is_there_once_is_named_in_the_singular(
    sqlite_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run, later = filled(sqlite_db, fill_every_result), ("--now", "2026-01-01T03:00:00Z")
    if words.startswith("import-log"):
        Path("log").write_text(run(*later, "export-log", "-").stdout.replace('"s"', '"t"'))
    result = run(*later, *words.split())
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", result.stdout, flags=re.DOTALL) + result.stderr
    assert "rror" in text or result.exit_code in (0, 3)
    assert re.findall(r"(?<![\d.,@-])1 (?:[a-z-]+ ){0,2}(?!has\b|its\b|fills\b)[a-z]+[^si]s\b", text) == []


FULL = "cannot write the output: No space left on device"
STORED = (
    (["recommend", "--policy", "home", "--session", "s"], "decision_id 1, session s"),
    (["feedback", "1", "click"], "decision_id 1, events 1"),
    (["policy", "create", "more", "--kind", "uniform"], "policy more, version 1"),
    (["arm", "add", "b"], "added 1, updated 0"),
)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_lost_answer_says_what_is_stored(run_sqlite: Run, sqlite_db: str, forked_rlrec: Path) -> None:
    def onto_full_disk(*words: str) -> tuple[int, str]:
        with open("/dev/full", "wb") as full:
            command = [str(forked_rlrec), "--db", sqlite_db, *words, "--json"]
            child = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, timeout=PATIENCE_S)
        error = json.loads(child.stderr)
        assert error["error"] == FULL
        return child.returncode, error["hint"]

    begin(run_sqlite, "a", "home", "thompson")
    for words, result in STORED:
        hint = f"what the command did is stored ({result}); a repeat without a key may store it twice"
        assert onto_full_disk(*words) == (1, hint)
    for words in (["status"], [*STORED[0][0], "--dry-run"]):
        assert onto_full_disk(*words) == (1, None)
    assert run_sqlite("status", "--json").json["decisions"] == 1


def test_a_time_within_a_command_stays_as_the_command_takes_it() -> None:
    text = "since 2026-10-17T00:00:00.000000Z: `rlrec outcomes --entered-since 2026-10-17T00:00:00.000000Z` compares"
    assert short_times(text) == text.replace("17T00:00:00.000000Z:", "17 00:00:00:")
