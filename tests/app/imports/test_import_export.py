"""Logs in and out: nothing is lost on the way, nothing is counted twice, nothing is stored that cannot be."""

from __future__ import annotations

import gzip
import json
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.imports import visits
from rlrec.app.imports.layouts.base import Source
from rlrec.app.imports.layouts.obd import Obd
from rlrec.app.imports.visits import VisitMoves, VisitNumbers
from rlrec.app.inputs import canonical
from rlrec.app.upkeep import import_log
from rlrec.app.upkeep.export_log import export_log
from rlrec.cli.text.lines import decode_group
from rlrec.store import Store
from rlrec.store.database.loading import Same
from rlrec.store.log import settings
from rlrec.store.log.sessions import NewestVisit
from tests.app.logs import summary, traced_peak
from tests.conftest import ON_BOTH, Run, empty_store, jsonl, runner, store_after

SAMPLE = Path("sample_data/random_all.csv.gz")
FOREIGN: dict[str, Any] = {
    "session": "s1",
    "slate": [{"arm": "a", "propensity": 0.25}],
    "eligible": ["a", "b", "c", "d"],
    "at": "2026-01-01T00:00:00Z",
}


def lines(*changes: dict[str, Any]) -> str:
    return "".join(json.dumps(FOREIGN | change) + "\n" for change in changes)


def imported(run: Run, text: str, *options: str) -> Any:
    return run("import-log", "-", "--layout", "jsonl", "--json", *options, stdin=text).done().json


def exported(run: Run, *options: str) -> list[Any]:
    return run("export-log", "-", *options).lines


def without_ids(records: list[Any]) -> list[Any]:
    return [{key: value for key, value in record.items() if key != "decision_id"} for record in records]


@pytest.fixture
def other(tmp_path: Path) -> Run:
    """Another, empty store."""
    return empty_store(tmp_path / "other.db")


def live(db: str) -> None:
    run = runner(db)
    run("arm", "add", "b"), run("arm", "add", "a"), run("arm", "add", "c")
    run("policy", "create", "home", "--kind", "thompson", "--param", "floor=0.1")
    for number in range(4):
        options = ("--session", f"s{number % 2}", "--user", f"u{number % 2}", "--context", '{"hour": 9, "x": 1.5}')
        run("recommend", "--policy", "home", *options, "-k", "2", "--request-id", f"r{number}", "--seed", "7")
    run("feedback", "1", "click", "dwell_s=2.5", "--position", "1", "--key", "k1")
    run("feedback", "2", "purchase=5")
    run("feedback", "3", "--censor", "--position", "2")


# A store with a life of its own: slates, sessions, an experiment's worth of keys, late and censored feedback.
lived = store_after(live)


@ON_BOTH
def test_what_was_exported_comes_back_but_for_its_ids(lived: Run, other: Run) -> None:
    first = exported(lived)
    imported(other, jsonl(first))
    assert len(first) == 4
    assert without_ids(exported(other)) == without_ids(first)


def histories(db: str) -> list[tuple[Any, ...]]:
    with closing(Store(db)) as store, store.read() as unit:
        return unit.ask("SELECT step, state, history FROM decision ORDER BY id")


@ON_BOTH
def test_what_was_known_of_a_visit_comes_back(lived: Run, other: Run, db: str, tmp_path: Path) -> None:
    """As bytes too, where arms have the same ids; what is shown beside a state is not stored in it."""
    other("arm", "add", "b"), other("arm", "add", "a"), other("arm", "add", "c")
    lived("recommend", "--policy", "home", "--session", "s0")
    first = exported(lived)
    assert [len(answer["state"].get("history", ())) for answer in first] == [0, 0, 2, 2, 4]
    assert (first[4]["state"]["rewards"], first[4]["state"]["reward"]) == ([1.0, 0.0, 0.0, 0.0], 1.0)
    imported(other, jsonl(first))
    assert histories(str(tmp_path / "other.db")) == histories(db)
    assert other("decision", "show", 5, "--json").json["state"] == first[4]["state"]


def test_arms_that_are_remembered_are_added(lived: Run, other: Run) -> None:
    last = exported(lived)[2]
    last["state"]["history"][0]["arm"] = "gone"
    imported(other, json.dumps(last) + "\n")
    assert exported(other)[0]["state"] == last["state"]
    assert "gone" in {slot["arm"] for slot in other("arm", "list", "--format", "ndjson").lines}


def test_states_follow_from_the_rows_before(lived: Run, other: Run, db: str, tmp_path: Path) -> None:
    """As serving stored them: with what had been received until then. A line that says something is left alone."""
    other("arm", "add", "b"), other("arm", "add", "a"), other("arm", "add", "c")
    lived("recommend", "--policy", "home", "--session", "s0")
    first = exported(lived)
    imported(other, "".join(json.dumps(line | {"state": {}}) + "\n" for line in first))
    assert [line["state"] for line in exported(other)] == [line["state"] for line in first]
    assert histories(str(tmp_path / "other.db")) == histories(db)


def test_states_of_new_sessions_are_those_of_sessions_that_grow(other: Run, db: str, run: Run, tmp_path: Path) -> None:
    """From the rows of one import, or line by line from the store: to the last bit, late events and pages too."""
    random, log = np.random.default_rng(4), list[dict[str, Any]]()
    for number in range(14):
        arms = random.permutation(["a", "b", "c", "d"])[: 1 + number % 2].tolist()
        late = f"2026-01-01T00:{number + int(random.integers(0, 3)):02d}:30Z"
        events = [{"kind": "click", "value": float(random.random()), "position": 1, "at": late}]
        log.append({
            "session": f"s{random.integers(2)}", "at": f"2026-01-01T00:{number:02d}:00Z",
            "slate": [{"arm": arm, "propensity": 0.25} for arm in arms],
            "events": [*events, {"kind": "click", "value": 0.1, "position": None}],
        })  # fmt: skip
    imported(run, lines(*log))
    for line in log:
        imported(other, lines(line))
    assert sum(line["step"] > 0 for line in exported(run)) == 12
    assert [line["state"] for line in exported(other)] == [line["state"] for line in exported(run)]
    assert histories(str(tmp_path / "other.db")) == histories(db)


def test_states_are_not_known_where_a_step_is_missing(lived: Run, other: Run) -> None:
    last = [line for line in exported(lived) if line["step"]][-1]
    imported(other, json.dumps(last | {"state": {}}) + "\n")
    assert exported(other)[0]["state"] == {}


@pytest.mark.parametrize("state", [{"mood": 3}, {"step": 2, "gap_s": 1, "recent": []}, {"history": ["a"]}])
def test_a_line_that_does_not_tell_leaves_it_unknown(run_sqlite: Run, sqlite_db: str, state: dict[str, Any]) -> None:
    imported(run_sqlite, lines({"state": state}))
    assert histories(sqlite_db) == [(0, canonical.text(state), None)]
    assert exported(run_sqlite)[0]["state"] == state


def test_an_export_has_the_keys_of_recommend_and_of_the_log(lived: Run) -> None:
    answer = lived("recommend", "--policy", "home", "--session", "s9", "--json").json
    last = exported(lived)[-1]
    more = ["context", "state", "eligible", "reward", "seed", "belief_seq", "events"]
    assert list(last) == [*answer, *more]
    assert {key: last[key] for key in answer if key != "slate"} == {
        key: answer[key] for key in answer if key != "slate"
    }


def test_a_known_request_id_is_a_conflict(lived: Run) -> None:
    result = lived("import-log", "-", "--layout", "jsonl", "--policy", "copy", stdin=exported(lived)).failed(6)
    assert "line 1" in result
    assert "request_id" in result
    assert len(exported(lived)) == 4


def test_a_line_is_known_by_its_bytes_and_how_often_they_came(run: Run) -> None:
    twice = lines({}, {}, {"session": "s2"})
    assert imported(run, twice) == summary(accepted=3)
    assert imported(run, twice) == summary(duplicates=3)
    more = lines({}, {}, {}, {"session": "s3"})
    assert imported(run, more) == summary(accepted=2, duplicates=2)
    assert imported(run, more, "--policy", "else") == summary(accepted=4)


def test_a_reward_without_events_is_an_event(run: Run) -> None:
    page = [{"arm": "a", "propensity": 0.2}, {"arm": "b", "propensity": 0.2}]
    imported(run, lines({"reward": 0.5}, {"slate": page, "reward": 1}, {"reward": 9, "events": []}))
    events = [
        [(event["position"], event["kind"], event["value"]) for event in item["events"]] for item in exported(run)
    ]
    assert events == [[(1, "reward", 0.5)], [(None, "reward", 1.0)], []]
    assert [item["reward"] for item in exported(run)] == [0.5, 1.0, 0.0]


def test_an_event_without_a_position_belongs_to_the_slot_of_a_slate_of_one(run: Run) -> None:
    imported(run, lines({"events": [{"kind": "click", "value": 1}]}), "--policy", "logged")
    (decision,) = exported(run)
    assert (decision["reward"], decision["events"][0]["position"]) == (1.0, 1)
    assert run("evaluate", "logged", "--estimator", "snips", "--json").json[0]["value"] == 1.0


def test_a_session_without_visits_is_cut_by_its_pauses(run: Run) -> None:
    times = ("00:00", "00:10", "01:30", "01:31")
    imported(run, lines(*({"at": f"2026-01-01T{time}:00Z"} for time in times)))
    imported(run, lines({"at": "2026-01-01T01:40:00Z"}))
    assert [(item["visit"], item["step"]) for item in exported(run)] == [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]


def test_visits_that_are_taken_move_to_the_next_number(lived: Run) -> None:
    selected = [{"session": "s0", "user": "u0", "visit": 1, "step": step} for step in (0, 1, 5)]
    imported(lived, lines(*selected))
    assert [(item["visit"], item["step"]) for item in exported(lived)[-3:]] == [(2, 0), (2, 1), (2, 5)]
    live = lived("recommend", "--policy", "home", "--session", "s0", "--json").json
    assert (live["visit"], live["step"]) == (3, 0)


def test_an_imported_line_says_what_it_said(run: Run) -> None:
    reported = {"policy": "shop", "version": 7, "experiment": "e", "variant": "b", "belief_seq": 12, "request_id": "r"}
    imported(run, lines(reported), "--policy", "log")
    item = exported(run, "--log", "policy=log")[0]
    assert {key: item[key] for key in reported} == reported


def test_feedback_reaches_imported_decisions_and_teaches_nothing(run: Run) -> None:
    imported(run, lines({"request_id": "r"}))
    result = run("feedback", 1, "click", "--json")
    assert (result.json["events"], result.json["reward"]) == (1, 0.0)  # long after its window
    shown = run("policy", "show", "imported", "--json").json
    assert [arm["pulls"] for arm in shown["arms"]] == [None, None, None, None]
    assert exported(run)[0]["events"][0]["kind"] == "click"


def test_a_feedback_key_stays_one_line(run: Run) -> None:
    event = {"position": 1, "kind": "click", "value": 1.0, "at": "2026-01-01T00:00:01Z", "key": "k"}
    imported(run, lines({"events": [event], "request_id": "r"}))
    again = run("feedback", 1, "click", "--position", 1, "--key", "k", "--json")
    assert again.json["duplicates"] == 1
    assert run("feedback", 1, "click=2", "--position", 1, "--key", "k").exit_code == 6


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"slate": []}, "slate"),
        ({"slate": [{"arm": "z"}]}, "slate[0].arm"),
        ({"slate": [{"arm": "a", "propensity": 0}]}, "slate[0].propensity"),
        ({"slate": [{"arm": "a", "marginal": 1.5}]}, "slate[0].marginal"),
        ({"slate": [{"arm": "a"}, {"arm": "a"}]}, "slate"),
        ({"slate": [{"arm": "a"}, {"arm": "b"}], "eligible": ["a"]}, "slate[1].arm"),
        ({"slate": [{"arm": "a", "position": 2}], "eligible": ["a"]}, "eligible"),
        ({"eligible": ["a", "a"]}, "slate[0].propensity"),
        ({"slate": [{"arm": "a", "marginal": 0.5}], "eligible": ["a"]}, "slate[0].marginal"),
        ({"slate": [{"arm": "b", "position": 2, "propensity": 0.5}], "eligible": ["a", "b"]}, "slate[0].propensity"),
        ({"slate": [{"arm": "a", "propensity": 0.2, "min_propensity": 0.25}]}, "slate[0].min_propensity"),
        ({"slate": [{"arm": "a", "propensity": 0.5, "min_propensity": 0.2}]}, "slate[0].min_propensity"),
        ({"slate": [{"arm": "a", "position": 0}]}, "slate[0].position"),
        ({"session": ""}, "session"),
        ({"at": "yesterday"}, "at"),
        ({"at": "2999-01-01T00:00:00Z"}, "at"),
        ({"events": [{"kind": "click", "position": 2}]}, "events[0].position"),
        ({"events": [{"kind": "!censor"}]}, "events[0].kind"),
        ({"events": [{"kind": "click", "at": "2025-01-01T00:00:00Z"}]}, "events[0].at"),
        ({"reward": "1"}, "reward"),
        ({"sesion": "s"}, "sesion"),
        ({"policy": "no name"}, "policy"),
    ],
)
def test_what_cannot_be_is_refused_by_field(run_sqlite: Run, change: dict[str, Any], field: str) -> None:
    result = run_sqlite("import-log", "-", "--layout", "jsonl", stdin=lines({}, change)).failed(2)
    assert f"line 2, field {field}" in result
    assert exported(run_sqlite) == []


def test_probabilities_that_must_be_1_may_be_off_by_a_rounding(run_sqlite: Run) -> None:
    entries = [{"arm": "a", "propensity": 0.3, "marginal": 0.3}, {"arm": "b", "propensity": 1 - 1e-12, "marginal": 0.7}]
    alone = {"slate": [{"arm": "a", "propensity": 1.0, "marginal": 1 - 1e-12}], "eligible": ["a"]}
    imported(run_sqlite, lines({"slate": entries, "eligible": ["a", "b"]}, alone))
    assert len(exported(run_sqlite)) == 2


@pytest.mark.parametrize("kind", ["thompson", "ucb"])
def test_a_page_of_all_arms_comes_back(run_sqlite: Run, other: Run, kind: str) -> None:
    run_sqlite("arm", "add", "a"), run_sqlite("arm", "add", "b"), run_sqlite("arm", "add", "c")
    run_sqlite("policy", "create", "home", "--kind", kind, "--param", "floor=0.1")
    for number in range(6):
        run_sqlite("recommend", "--policy", "home", "--session", f"s{number}", "-k", 3)
        run_sqlite("feedback", number + 1, "click", "--position", 1)
    reported = exported(run_sqlite)
    imported(other, jsonl(reported), "--policy", "log")
    assert [item["slate"] for item in exported(other)] == [answer["slate"] for answer in reported]


def test_the_store_is_as_it_was_where_one_line_is_refused(run: Run) -> None:
    text = lines({"request_id": "r"}, {"request_id": "r", "session": "b"})
    result = run("import-log", "-", "--layout", "jsonl", stdin=text)
    assert result.exit_code == 6
    assert run("arm", "list", "--json").json == []
    assert run("policy", "list", "--json").json == []


def test_a_line_that_names_its_request_is_one_decision_however_often_it_comes(run: Run, tmp_path: Path) -> None:
    """In a file, and in files of one command that overlap; a line without a request is as many decisions."""
    named, other, unnamed = {"request_id": "r"}, {"request_id": "s", "session": "b"}, {"session": "c"}
    files = str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")
    Path(files[0]).write_text(lines(named, unnamed, named, unnamed))
    Path(files[1]).write_text(lines(other, named))
    for options in (("--check",), ()):
        result = run("import-log", *files, "--layout", "jsonl", "--policy", "log", "--json", *options)
        assert result.json == summary(accepted=4, duplicates=2)
    assert [line["request_id"] for line in exported(run)] == ["r", None, None, "s"]


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlrec.app.imports.layouts.base.GROUP", 2)


@pytest.mark.usefixtures("small_groups")
def test_what_cannot_be_read_is_told_before_what_the_store_refuses(run: Run) -> None:
    many = [{"session": f"s{number}"} for number in range(4)]
    text = lines({"request_id": "r"}, *many, {"request_id": "r"}, *many, {"slate": []}, *many)
    assert "line 11, field slate" in run("import-log", "-", "--layout", "jsonl", stdin=text).failed(2)
    assert run("policy", "list", "--json").json == []


@pytest.mark.usefixtures("small_groups")
def test_policies_may_be_named_late_in_a_file(run: Run) -> None:
    assert imported(run, lines(*({"policy": name} for name in "bbbbacab"))) == summary(accepted=8)
    assert [item["policy"] for item in exported(run)] == [*"bbbbacab"]
    assert [row["policy"] for row in run("policy", "list", "--json").json] == ["a", "b", "c"]


def source(path: Path) -> Source:
    return Source(file=str(path), name=path.name, decode=decode_group)


def test_an_obd_context_is_canonical(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "timestamp,item_id,position,click,propensity_score,user_feature_1,user_feature_0,"
        "user-item_affinity_2,user-item_affinity_10\n"
        '2019-11-24 01:00:00.5+01:00,7,3,1,0.5,"a ""b"", ü",x,2.0,1.5\n'
        "2019-11-24 00:00:00+00:00,10,1,0,0.25,y,x,0.0,0\n"
    )
    with closing(Obd(source(path), policy="random", now=2 * 10**15, options={})) as layout:
        assert list(layout.decode_all(with_text=False)) == [[]]
        [result] = layout.groups()
    features = {"user_feature_1": 'a "b", ü', "user_feature_0": "x"}
    affinities = {"user-item_affinity_2": 2.0, "user-item_affinity_10": 1.5}
    assert result.context[0] == canonical.text(features | affinities)
    assert result.context[1] == canonical.text({"user_feature_1": "y", "user_feature_0": "x"})
    assert (result.eligible, result.eligible_sets, result.size) == (Same(0), (("10", "2", "7"),), Same(3))
    assert (result.at, result.events.row, result.events.position) == ([1574553600500000, 1574553600000000], (0,), (3,))


def test_a_partial_page_comes_back_as_one(run_sqlite: Run, other: Run, tmp_path: Path) -> None:
    head = gzip.decompress(SAMPLE.read_bytes()).splitlines(keepends=True)[:200]
    (tmp_path / "some.csv").write_bytes(b"".join(head))
    run_sqlite("import-log", tmp_path / "some.csv", "--layout", "obd", "--policy", "random")
    first = exported(run_sqlite)
    assert {answer["slate"][0]["position"] for answer in first} == {1, 2, 3}
    imported(other, jsonl(first))
    assert without_ids(exported(other)) == without_ids(first)


@ON_BOTH
def test_groups_of_a_file_see_each_other(db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlrec.app.imports.layouts.base.GROUP", 2)
    monkeypatch.setattr("rlrec.app.upkeep.export_log.GROUP", 2)
    path = tmp_path / "log.jsonl"
    path.write_text(lines(*({"session": f"s{n % 2}", "visit": 1, "step": n, "user": "u"} for n in range(7))))
    reported = import_log.BadLines(quarantine=False, refuse=lambda error, text: None, report_file=lambda name: None)
    with closing(Store(db)) as store:
        import_log.import_log(store, import_log.Request(files=[source(path)], layout="jsonl"), reported)
        result = [(item["session"], item["visit"], item["step"], item["user"]) for item in export_log(store)]
    assert result == [(f"s{n % 2}", 1, n, "u") for n in range(7)]


def test_imported_visits_are_ended(sqlite_db: str, run_sqlite: Run) -> None:
    imported(run_sqlite, lines({}, {"at": "2026-01-01T00:10:00Z"}, {"session": "s2"}))
    with closing(sqlite3.connect(sqlite_db)) as connection:
        rows = connection.execute("SELECT ended_at - started_at, steps FROM visit ORDER BY session_id").fetchall()
    assert rows == [(600_000_000, 2), (0, 1)]


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("change", [{"request_id": "r"}, {"user": "u2"}, {"events": [{"kind": "click", "key": "k"}]}])
def test_nothing_is_stored_where_an_earlier_group_contradicts_a_line(run: Run, change: dict[str, Any]) -> None:
    first = {"request_id": "r", "user": "u1", "events": [{"kind": "click", "key": "k"}]}
    text = lines(first, *({"session": f"t{n}"} for n in range(5)), {"session": "s1"} | change)
    result = run("import-log", "-", "--layout", "jsonl", stdin=text)
    assert (result.exit_code, result.stdout) == (6, "")
    assert "line 7, field" in result.stderr
    assert exported(run) == []
    assert run("policy", "list", "--json").json == []


@pytest.mark.usefixtures("small_groups")
def test_an_import_that_was_stopped_goes_on_where_it_ended(
    run: Run, other: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Portions are stored one by one: others are served between them, and nothing is stored twice."""
    path = tmp_path / "log.jsonl"
    path.write_text(lines(*({"session": f"s{n // 3}", "visit": 1 + n // 5 % 2, "user": "u"} for n in range(9))))
    write, count = Store.write, 0

    def stop(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return write(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write", stop)
        assert run("import-log", path, "--layout", "jsonl").exit_code == 130
    assert len(exported(run)) == 6
    again = run("import-log", path, "--layout", "jsonl", "--json").json
    assert (again["accepted"], again["duplicates"]) == (3, 6)
    other("import-log", path, "--layout", "jsonl")
    assert exported(run) == exported(other)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_lines_that_are_refused(sqlite_db: str, tmp_path: Path) -> None:
    peaks = []
    for count in (1_000, 4_000):
        path = tmp_path / f"{count}.jsonl"
        path.write_text('{"session": "s", "slate": [], "eligible": ["a"]}\n' * count)
        bad_lines = import_log.BadLines(quarantine=True, refuse=lambda error, text: None, report_file=lambda name: None)
        with closing(Store(sqlite_db)) as store, pytest.MonkeyPatch.context() as patched:
            patched.setattr("rlrec.app.imports.layouts.base.GROUP", 400)
            patched.setattr("rlrec.app.imports.layouts.base.BLOCK_BYTES", 20_000)
            request = import_log.Request(files=[source(path)], layout="jsonl")
            peaks.append(traced_peak(partial(import_log.import_log, store, request, bad_lines)))
    assert peaks[1] < 1.3 * peaks[0]


def test_the_database_counts_the_rows_of_an_import(store: Store, run: Run) -> None:
    """Without that, PostgreSQL reads a log that came in just now as if it were empty."""
    imported(run, lines(*({"session": f"s{n}"} for n in range(50))))
    with store.read() as unit:
        if unit.postgres:
            assert unit.ask_value("SELECT reltuples::int FROM pg_class WHERE relname = 'decision'") == 50


@pytest.mark.usefixtures("small_groups")
def test_others_are_served_between_the_portions_of_an_import(
    run_sqlite: Run, sqlite_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, stored = Store.write, list[int]()

    def write_and_look(*args: Any, **options: Any) -> Any:
        result = write(*args, **options)
        with closing(sqlite3.connect(sqlite_db, timeout=0, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            stored.append(other.execute("SELECT count(*) FROM decision").fetchone()[0])
        return result

    monkeypatch.setattr(Store, "write", write_and_look)
    imported(run_sqlite, lines(*({"session": f"s{n}"} for n in range(7))))
    assert stored == [2, 4, 6, 7, 7]


def test_visits_in_order_of_time_are_those_that_are_assigned_row_by_row(sqlite_db: str) -> None:
    """Of new sessions, and of those that have visits."""
    random, timeout_us = np.random.default_rng(8), 30 * 60_000_000
    session_ids = random.integers(1, 40, 500).tolist()
    at = np.cumsum(random.exponential(2 * 60_000_000, 500)).astype(np.int64).tolist()
    with closing(Store(sqlite_db)) as store, store.read() as unit:
        numbers = VisitNumbers(unit, (), settings.get(unit), VisitMoves())
        newest: list[NewestVisit] = []
        for rows in (slice(0, 150), slice(150, 500)):
            numbers.changed_visits.clear()
            ordered = visits.in_order(session_ids[rows], at[rows], newest, timeout_us=timeout_us)
            lines = zip(session_ids[rows], at[rows], strict=True)
            assigned = [numbers.assign(number, None, None, time) for number, time in lines]
            assert ordered.is_assigned.all()
            assert list(zip(ordered.visit.tolist(), ordered.step.tolist(), strict=True)) == assigned
            columns = {name: np.r_[each, ordered.extended_visits[name]] for name, each in ordered.new_visits.items()}
            names = [name for name in columns if name != "started_at"]
            written = sorted(zip(*(columns[name].tolist() for name in names), strict=True))
            assert written == [
                tuple(getattr(visit, name) for name in names) for _, visit in sorted(numbers.changed_visits.items())
            ]
            last = [max(visits.values()) for visits in numbers.visits.values()]
            newest = [NewestVisit(each.session_id, each.number, each.last_at, each.steps, 0) for each in last]
        assert 0 < ordered.is_grown.sum() < len(ordered.is_grown) / 2


def test_visits_that_lines_state_are_those_that_are_assigned_row_by_row(sqlite_db: str) -> None:
    """But for a session of which two rows have the same step, or that is stored."""
    random = np.random.default_rng(9)
    places = random.permutation(
        [(session, visit, step) for session in range(1, 30) for visit in (1, 4) for step in range(5)]
    )
    places, at = places[random.random(len(places)) < 0.6], random.integers(0, 10**12, 400)
    session_ids, at, stated = places[:, 0].tolist(), at[: len(places)].tolist(), places[:, 1:].T
    with closing(Store(sqlite_db)) as store, store.read() as unit:
        numbers = VisitNumbers(unit, (), settings.get(unit), VisitMoves())
        ordered = visits.in_order(session_ids, at, (), numbers=stated, timeout_us=1)
        assigned = [numbers.assign(*row) for row in zip(session_ids, *stated.tolist(), at, strict=True)]
        assert ordered.is_assigned.all()
        assert list(zip(ordered.visit.tolist(), ordered.step.tolist(), strict=True)) == assigned
        names = list(ordered.new_visits)
        written = zip(*(ordered.new_visits[name].tolist() for name in names), strict=True)
        changed = [visit for _, visit in sorted(numbers.changed_visits.items())]
        assert list(written) == [tuple(getattr(visit, name) for name in names) for visit in changed]
    stated = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0]])
    ordered = visits.in_order([1, 2, 2, 3, 4], [9] * 5, [NewestVisit(3, 1, 5, 4, 0)], numbers=stated, timeout_us=10)
    assert ordered.is_assigned.tolist() == [True, False, False, False, True]


def test_visits_that_are_not_in_order_are_left_to_each_row() -> None:
    """Rows that go back, rows before the newest visit, and visits with which a live request goes on."""
    newest = [NewestVisit(3, 2, 50, 4, 0), NewestVisit(4, 1, 5, 1, 1), NewestVisit(5, 7, 10, 3, 0)]
    ordered = visits.in_order([1, 1, 2, 3, 4, 5, 5], [9, 8, 9, 49, 9, 10, 21], newest, timeout_us=10)
    assert ordered.is_assigned.tolist() == [False, False, True, False, False, True, True]
    assert (ordered.visit[-2:].tolist(), ordered.step[-2:].tolist()) == ([7, 8], [3, 0])
    assert ordered.is_grown[-2:].tolist() == [True, False]
