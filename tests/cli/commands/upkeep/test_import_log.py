"""The commands import-log and export-log: files, refused lines, exit codes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from pkgutil import resolve_name

import pytest

from rlrec.app.imports import layouts
from rlrec.app.imports.layouts.base import Layout
from tests.app.logs import summary
from tests.conftest import Run

LATE = ["2026-02-01 12:00:00.5", "2026-02-01T12:00", "2026-02-01T12:00:01"]
LINE = '{"session": "%s", "slate": [{"arm": "a", "propensity": 0.5}], "eligible": ["a", "b"]}\n'
HEADER = "timestamp,item_id,position,click,propensity_score,user_feature_0,user-item_affinity_0\n"
ROW = "2019-11-24 00:00:00+00:00,{item},{position},{click},{share},x,0.0\n"


def row(item: object = 0, position: object = 1, click: object = 0, share: object = 0.5) -> str:
    return ROW.format(item=item, position=position, click=click, share=share)


def test_bad_lines_are_set_apart(run: Run, tmp_path: Path) -> None:
    rejects = tmp_path / "bad.jsonl"
    text = LINE % "s1" + "{}\n" + LINE % "s2" + "\n" + LINE % ""
    result = run(
        "import-log", "-", "--layout", "jsonl", "--on-error", "quarantine", "--rejects", rejects, "--json", stdin=text
    )
    assert result.exit_code == 5
    assert result.json == summary(accepted=2, rejected=2)
    reported = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [(line["line"], line["field"]) for line in reported] == [(2, "session"), (5, "session")]


def test_several_files_one_of_them_packed(run_sqlite: Run, tmp_path: Path) -> None:
    item, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl.gz"
    item.write_text(LINE % "s1" + LINE % "s2")
    two.write_bytes(gzip.compress((LINE % "s2" + LINE % "s3").encode()))
    result = run_sqlite("import-log", item, two, "--layout", "jsonl", "--json")
    assert result.json == summary(accepted=3, duplicates=1)


@pytest.mark.parametrize(
    ("file", "words", "way"),
    [
        ("a.csv", ["--layout", "csv"], "name its files: {}/*"),
        ("manifest.json", [], "`rlrec evaluate uniform --log parquet:{}`"),
    ],
)
def test_a_folder_is_refused_with_what_to_do(
    run_sqlite: Run, tmp_path: Path, file: str, words: list[str], way: str
) -> None:
    (tmp_path / file).touch()
    assert way.format(tmp_path) in run_sqlite("import-log", tmp_path, *words).failed(2)


def test_an_error_names_its_own_file(run_sqlite: Run, tmp_path: Path) -> None:
    item, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    item.write_text(LINE % "s1")
    two.write_text(LINE % "s2" + LINE.replace("0.5", "5e-324e") % "s3")
    assert f"{two} line 2" in run_sqlite("import-log", item, two, "--layout", "jsonl").failed(2)
    assert run_sqlite("export-log", "-").stdout == ""


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (row(position=0), "position"),
        (row(position="x"), "position"),
        (row(click=2), "click"),
        (row(share=0), "propensity_score"),
        (row(share="1.01"), "propensity_score"),
        (row(share="nan"), "propensity_score"),
        (row(item=""), "item_id"),
        (row().replace("2019-11-24", "2019-13-24"), "timestamp"),
        (row().replace("2019", "2999"), "timestamp"),
        (row().replace(",0.0\n", ",inf\n"), "user-item_affinity_0"),
        (row().replace(",0.0\n", "\n"), "6 cells"),
        (row().replace(",0.0\n", ",0.0,0.0\n"), "8 cells"),
    ],
)
def test_a_bad_row_is_named(run_sqlite: Run, tmp_path: Path, bad: str, field: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(HEADER + row() + bad)
    result = run_sqlite("import-log", path, "--layout", "obd", "--policy", "random").failed(2)
    assert f"{path} line 3" in result
    assert field in result


def test_a_missing_column_is_named(run_sqlite: Run, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("timestamp,item_id,click\n")
    assert "'position'" in run_sqlite("import-log", path, "--layout", "obd", "--policy", "random").failed(2)


def test_obd_needs_a_policy_and_that_must_be_a_logged_one(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(HEADER + row())
    run("policy", "create", "home", "--kind", "uniform")
    without = run("import-log", path, "--layout", "obd")
    wrong = run("import-log", path, "--layout", "obd", "--policy", "home")
    assert (without.exit_code, wrong.exit_code) == (2, 2)
    assert "--policy" in without.stderr
    assert "kind uniform" in wrong.stderr


def test_an_imported_policy_is_the_one_that_create_makes(run_sqlite: Run) -> None:
    run_sqlite("import-log", "-", "--layout", "jsonl", "--policy", "log", stdin=LINE % "s1")
    again = run_sqlite("policy", "create", "log", "--kind", "logged", "--json")
    assert (again.exit_code, again.json["created"]) == (0, False)
    assert run_sqlite("recommend", "--policy", "log", "--session", "s").exit_code == 2


def test_a_file_is_exported_whole_or_not_at_all(run_sqlite: Run, tmp_path: Path) -> None:
    run_sqlite("import-log", "-", "--layout", "jsonl", stdin=LINE % "s1" + LINE % "s2")
    path = tmp_path / "log.jsonl.gz"
    assert run_sqlite("export-log", path, "--json").json == {"exported": 2}
    assert gzip.decompress(path.read_bytes()).decode() == run_sqlite("export-log", "-").stdout
    assert run_sqlite("export-log", path, "--log", "policy=importd").exit_code == 2
    assert len(gzip.decompress(path.read_bytes()).splitlines()) == 2
    assert [item.name for item in tmp_path.iterdir() if "part" in item.name] == []


def test_an_export_is_filtered(run_sqlite: Run) -> None:
    for policy in ("one", "two"):
        run_sqlite("import-log", "-", "--layout", "jsonl", "--policy", policy, stdin=LINE % policy)
    answers = run_sqlite("export-log", "-", "--log", "policy=two").lines
    assert [item["session"] for item in answers] == ["two"]


def test_a_store_that_is_missing_is_named(run_sqlite: Run, tmp_path: Path) -> None:
    result = run_sqlite("--db", tmp_path / "none.db", "export-log", tmp_path / "log.jsonl")
    assert result.exit_code == 3
    assert not (tmp_path / "log.jsonl").exists()
    assert not (tmp_path / "none.db").exists()


def once(path: Path, text: str) -> Path:
    """A FIFO that says this text once."""
    os.mkfifo(path)
    threading.Thread(target=path.write_text, args=(text,), daemon=True).start()
    return path


def test_an_input_that_can_be_read_only_once_is_stored(run_sqlite: Run, tmp_path: Path) -> None:
    arms = once(tmp_path / "arms", '{"arm": "a"}\n{"arm": "b"}\n')
    assert run_sqlite("arm", "import", arms, "--json").json["added"] == 2
    log = once(tmp_path / "log", LINE % "s1" + LINE % "s2")
    assert run_sqlite("import-log", log, "--layout", "jsonl", "--json").json["accepted"] == 2
    clicks = once(tmp_path / "clicks", '{"decision_id": 1, "events": {"click": 1}}\n')
    assert run_sqlite("feedback", "--input", clicks, "--json").json["accepted"] == 1


def aliases(db: str, tmp_path: Path) -> list[Path]:
    """Paths that lead to the store, or to the files that SQLite keeps beside it."""
    (tmp_path / "link").symlink_to(db)
    (tmp_path / "hard").hardlink_to(db)
    (tmp_path / "wal").symlink_to(f"{db}-wal")
    return [Path(db), tmp_path / "link", tmp_path / "hard", tmp_path / "wal", Path(f"{db}-wal"), Path(f"{db}-shm")]


def test_no_output_is_written_over_the_store(run_sqlite: Run, sqlite_db: str, tmp_path: Path) -> None:
    run_sqlite("import-log", "-", "--layout", "jsonl", stdin=LINE % "s1")
    before = run_sqlite("export-log", "-").stdout
    for path in aliases(sqlite_db, tmp_path):
        rejects = ("--on-error", "quarantine", "--rejects", path)
        for words in (
            ["export-log", path],
            ["import-log", "-", "--layout", "jsonl", *rejects],
            ["arm", "import", "-", *rejects],
            ["feedback", "--input", "-", *rejects],
        ):
            result = run_sqlite(*words, stdin="{}\n")
            assert (result.exit_code, "is the store itself" in result.stderr) == (2, True), words
    assert run_sqlite("export-log", "-").stdout == before


def test_refused_lines_are_not_written_over_the_input(run_sqlite: Run, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("{}\n")
    (tmp_path / "link").symlink_to(tmp_path / "log")
    words = ["import-log", tmp_path / "log", "--layout", "jsonl", "--on-error", "quarantine", "--rejects"]
    assert run_sqlite(*words, tmp_path / "link").exit_code == 2
    assert (tmp_path / "log").read_text() == "{}\n"


def test_an_export_touches_no_file_but_its_own(run_sqlite: Run, tmp_path: Path) -> None:
    run_sqlite("import-log", "-", "--layout", "jsonl", stdin=LINE % "s1")
    path, other, link = tmp_path / "log", tmp_path / "other", tmp_path / "link"
    other.write_text("mine")
    (tmp_path / "log.part").symlink_to(other)
    link.symlink_to(path)
    before = {item.name for item in tmp_path.iterdir()}
    assert run_sqlite("export-log", link).exit_code == 0
    assert (link.is_symlink(), path.is_symlink(), other.read_text()) == (True, False, "mine")
    assert path.read_text() == run_sqlite("export-log", "-").stdout
    assert {item.name for item in tmp_path.iterdir()} == before | {"log"}


@pytest.mark.slow
def test_exports_to_one_path_at_a_time_are_each_complete(
    run_sqlite: Run, sqlite_db: str, tmp_path: Path, forked_rlrec: Path
) -> None:
    run_sqlite("import-log", "-", "--layout", "jsonl", stdin="".join(LINE % f"s{n}" for n in range(100)))
    command = [forked_rlrec, "--db", sqlite_db, "export-log", str(tmp_path / "log")]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(4)]
    assert [item.wait() for item in running] == [0] * 4
    assert (tmp_path / "log").read_text() == run_sqlite("export-log", "-").stdout


def test_a_foreign_line_is_told_where_its_arm_belongs(run_sqlite: Run) -> None:
    flat = '{"session": "s1", "arm": "a", "propensity": 0.5, "reward": 1}\n'
    result = run_sqlite("import-log", "-", "--layout", "jsonl", "--json", stdin=flat).error
    assert result["error"] == "<stdin> line 1, field arm: unknown field"
    assert result["hint"].startswith("it stands in `slate`, for example {")
    example = result["hint"].partition("for example ")[2].partition("; ")[0]
    assert run_sqlite("import-log", "-", "--layout", "jsonl", stdin=example + "\n").exit_code == 0
    inside = '{"session": "s1", "slate": [{"arm": "a", "reward": 1}], "eligible": ["a"]}\n'
    result = run_sqlite("import-log", "-", "--layout", "jsonl", "--json", stdin=inside).error
    assert result["hint"].startswith("it stands in the line itself, for example {")
    missing = run_sqlite("import-log", "-", "--layout", "jsonl", stdin='{"session": "s1"}\n')
    assert "field slate: is missing. for example {" in missing.stderr


def test_a_file_that_has_an_unknown_field_on_each_line_is_refused_quickly(run_sqlite: Run, tmp_path: Path) -> None:
    lines = "".join(f'{{"session": "s{n}", "arm": "a"}}\n' for n in range(2000))
    start = time.process_time()
    options = ("--on-error", "quarantine", "--rejects", tmp_path / "rejects")
    assert run_sqlite("import-log", "-", "--layout", "jsonl", *options, stdin=lines).exit_code == 5
    assert time.process_time() - start < 1  # 2 s and more where every line reads the types of its fields again


def test_rewards_that_the_definition_clips_or_ignores_are_counted_and_said(run: Run) -> None:
    """A log of 1 to 5 stars would else be estimated at exactly 1 without a word."""
    stars = [f'{{"session": "s{n}", "slate": [{{"arm": "a"}}], "eligible": ["a"], "reward": {n}}}\n' for n in range(6)]
    event = '{"session": "e%d", "slate": [{"arm": "a"}], "eligible": ["a"], "events": [%s], "reward": %s}\n'
    others = [
        event % (1, '{"kind": "dwell_s", "value": 2}, {"kind": "quit"}', 2),
        event % (2, '{"kind": "click"}', 1),
        event % (3, "", 9),
    ]
    no_propensity = (
        "decisions without a propensity: estimates leave them out; --propensity uniform or fitted gives them some, in "
        "a store that does not have these lines yet"
    )
    result = run("import-log", "-", "--layout", "jsonl", "--json", stdin="".join(stars + others))
    assert result.json == summary(
        accepted=9, clipped=4, ignored=2, clipped_share=4 / 9, ignored_kinds=["dwell_s", "quit"], without_propensity=9,
    )  # fmt: skip
    assert result.stderr.splitlines() == [
        "rewards of 4 decisions: 'default' clips them to 0 to 1; `rlrec reward define NAME reward=1` counts them, and"
        " `evaluate --reward NAME` judges by that",
        "events or rewards of 2 decisions: 'default' ignores them (it does not weigh dwell_s, quit); `rlrec reward"
        " define NAME dwell_s=1,quit=1` counts them, with weights of your own (below 0 for what costs), and `evaluate"
        " --reward NAME` judges by that",
        f"9 {no_propensity}",
    ]
    again = run("import-log", "-", "--layout", "jsonl", "--json", stdin="".join(stars))
    assert (again.json["clipped"], again.stderr) == (0, f"6 {no_propensity}\n")
    run("reward", "define", "stay", "dwell_s=1")
    more = run("import-log", "-", "--layout", "jsonl", stdin=event % (9, '{"kind": "dwell_s", "value": 2}', 2))
    ignored = "'default' ignores them (it does not weigh dwell_s); `evaluate --reward stay` counts some"
    assert f"events or rewards of 1 decision: {ignored}" in more.stderr


def test_a_log_of_clicks_alone_is_said_to_lack_the_others_and_the_next_command_runs(run_sqlite: Run) -> None:
    line = '{"session": "%d", "slate": [{"arm": "a", "propensity": 0.5}], "eligible": ["a", "b"], "events": [%s]}\n'
    events = '{"kind": "click"}, {"kind": "minutes", "value": %d}'
    clicks = "".join(line % (n, events % n) for n in range(120))
    result = run_sqlite("import-log", "-", "--layout", "jsonl", "--policy", "old", stdin=clicks)
    assert "each of 120 decisions earned 1: a log of decisions with a click alone" in result.stderr
    assert "evaluate uniform --log policy=old` estimates" in result.stderr
    more = "".join(line % (n, "") for n in range(120, 300))
    for policy, text in (("all", clicks + more), ("none", more)):
        result = run_sqlite("import-log", "-", "--layout", "jsonl", "--policy", policy, stdin=text)
        assert "earned" not in result.stderr.replace("would have earned", "")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["import-log", "-", "--layout", "jsonl"], ["arm", "import", "-"]])
def test_a_copy_of_the_input_has_no_name(sqlite_db: str, tmp_path: Path, words: list[str]) -> None:
    """A process that is killed can leave nothing behind."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "rlrec", "--db", sqlite_db, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | {"TMPDIR": str(scratch)}) as process:
        assert process.stdin is not None
        process.stdin.write(b"{}\n" * 100_000)  # more than a pipe holds: the copy has begun
        assert list(scratch.iterdir()) == []
        process.kill()
    assert list(scratch.iterdir()) == []


def test_a_log_of_bad_lines_alone_stores_nothing(run: Run, tmp_path: Path) -> None:
    words = ["import-log", "-", "--layout", "jsonl", "--on-error", "quarantine", "--rejects", tmp_path / "bad"]
    result = run(*words, "--json", stdin="{}\n" * 3)
    assert (result.exit_code, result.json["accepted"], result.json["rejected"]) == (5, 0, 3)
    assert run("policy", "list", "--json").json == []


def test_every_layout_is_found_in_the_registry_of_its_direction(run_sqlite: Run, tmp_path: Path) -> None:
    assert all(issubclass(resolve_name(path), Layout) for path in layouts.READERS.values())
    assert all(callable(resolve_name(path)) for path in layouts.WRITERS.values())
    for name in layouts.READERS.keys() - layouts.WRITERS.keys():
        assert f"'{name}' is not" in run_sqlite("export-log", tmp_path / "log", "--layout", name).failed(2)


def test_a_log_without_decisions_suggests_no_estimate(run_sqlite: Run) -> None:
    result = run_sqlite("import-log", "-", "--layout", "jsonl", stdin="\n")
    assert (result.exit_code, result.stderr) == (0, "0 new decisions, 0 stored before, 0 lines refused.\n")


def test_what_a_log_without_propensities_lacks_is_named_with_a_way_to_get_it(run_sqlite: Run) -> None:
    slate = [{"position": n, "arm": arm} for n, arm in enumerate("abc", 1)]
    lines = [json.dumps({"session": f"s{n}", "slate": slate, "eligible": list("abc"), "reward": 1}) for n in range(3)]
    done = run_sqlite("import-log", "-", "--layout", "jsonl", "--policy", "shop", stdin="\n".join(lines))
    assert "outcomes --log policy=shop` shows what it earned" in done.stderr
    assert "evaluate uniform" not in done.stderr
    assert run_sqlite("outcomes", "--log", "policy=shop").exit_code == 0
    for estimator, way in {
        "ips": "an experiment needs none", "sips": "an experiment needs none",
        "iips": "log `marginal` with each slot", "interpol:2": "log `marginal` with each slot",
    }.items():  # fmt: skip
        text = run_sqlite("evaluate", "uniform", "--estimator", estimator).stdout
        assert way in text
        assert "few-rewards" not in text  # one cause, one reason
    refused = run_sqlite("evaluate", "uniform", "--estimator", "pi").stderr
    assert "iips or pbm:CURVE, which need marginals" in refused


def test_a_log_with_marginals_alone_can_judge_others(run_sqlite: Run) -> None:
    done = run_sqlite("import-log", "sample_data/random_all.csv.gz", "--layout", "obd", "--policy", "random")
    assert "without a propensity" not in done.stderr
    assert "evaluate uniform --log policy=random" in done.stderr


@pytest.mark.parametrize("layout", ["jsonl", "dsjson", "csv", "csv with odd times"])
def test_times_without_a_zone_are_counted_once(
    run_sqlite: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """Lines, not times, over groups that two processes read; a date alone has no time of day, and needs no zone."""
    monkeypatch.setattr("rlrec.app.imports.layouts.base.GROUP", 2)
    times = ["2026-01-31T12:00:00", "2026-01-31T12:00:00Z", "2026-01-31", "2026-01-31T12:00:00+01:00", *LATE]
    lines = {
        "jsonl": '{"session": "s%s", "slate": [{"arm": "a"}], "eligible": ["a", "b"], "at": "%s"}',
        "dsjson": '{"EventId": "e%s", "Timestamp": "%s", "a": [1], "p": [1.0], "c": {"_multi": [{"id": "a"}]}}',
        "csv": "a,s%s,%s",
    }  # fmt: skip
    kind, *odd = layout.split(" ", 1)
    rows = [lines[kind] % (number, time) for number, time in enumerate(times if odd or kind != "csv" else LATE)]
    path, columns = tmp_path / "log", tmp_path / "map.json"
    path.write_text("\n".join((["item,visit,time"] if kind == "csv" else []) + rows) + "\n")
    columns.write_text('{"arm": "item", "session": "visit", "at": "time"}')
    options = ("--map", columns) if kind == "csv" else ()
    result = run_sqlite("import-log", path, "--layout", kind, "--policy", "shop", "--check", "--json", *options)
    assert result.json["accepted"] == len(rows)
    count = 3 if kind == "csv" and not odd else 4
    assert result.stderr.count("UTC") == 1
    assert f"{count} lines with a time without a zone, which is read as UTC\n" in result.stderr


@pytest.mark.parametrize("others", [{}, {"2026-01-31": "01-30T23:00", "2026-10-25T03:30:00Z": "10-25T03:30"}])
def test_a_map_names_the_zone_of_times_without_one(run_sqlite: Run, tmp_path: Path, others: dict[str, str]) -> None:
    """Of a time that clocks show twice, the first; others: times that are read one by one."""
    times = {"2026-10-25 02:30:00": "10-25T00:30", "2026-10-25T03:30:00": "10-25T02:30"} | others
    path, columns = tmp_path / "log.csv", tmp_path / "map.json"
    path.write_text("item,time\n" + "".join(f"a,{time}\n" for time in times))
    columns.write_text('{"arm": "item", "at": "time", "zone": "Europe/Berlin"}')
    done = run_sqlite("import-log", path, "--layout", "csv", "--policy", "shop", "--map", columns).done()
    assert "UTC" not in done.stderr
    stored = [line["at"][5:16] for line in run_sqlite("-q", "export-log", "-").lines]
    assert stored == [*times.values()]
    for zone, message in (('"Berlin"', "of the map: 'Berlin' is no time zone"), ("1", '"zone" of the map is 1')):
        columns.write_text(f'{{"arm": "item", "zone": {zone}}}')
        refused = run_sqlite("import-log", path, "--layout", "csv", "--policy", "shop", "--map", columns)
        assert (refused.exit_code, message in refused.stderr) == (2, True)


def test_a_map_names_the_mark_before_decimals(run_sqlite: Run, tmp_path: Path) -> None:
    """Of chances, values of events and fields of contexts; keys stay as they are."""
    path, columns = tmp_path / "log.csv", tmp_path / "map.json"
    path.write_text("item;chance;eur;age\n7,5;0,25;1,5e1;2,5\nb;1;;old\n")
    words = {"arm": "item", "propensity": "chance", "events": {"revenue": "eur"}, "context": ["age"]}
    columns.write_text(json.dumps(words))
    options = ("--layout", "csv", "--policy", "shop", "--map", columns)
    refused = run_sqlite("import-log", path, *options)
    assert (refused.exit_code, '"decimal": "," in the map' in refused.stderr) == (2, True)
    columns.write_text(json.dumps(words | {"decimal": ","}))
    run_sqlite("import-log", path, *options).done()
    first, second = run_sqlite("-q", "export-log", "-").lines
    assert (first["slate"][0]["arm"], first["slate"][0]["propensity"]) == ("7,5", 0.25)
    assert (first["context"], first["events"][0]["value"], second["context"]) == ({"age": 2.5}, 15.0, {"age": "old"})
    columns.write_text(json.dumps(words | {"decimal": ";"}))
    assert '"decimal" of the map is ";"' in run_sqlite("import-log", path, *options).stderr


@pytest.mark.parametrize(
    ("chance", "position", "hint"),
    [("0.00", 1, "leave empty what was rounded to 0"), ("1e-320", 1, "in (0, 1]"), ("0.5", 0, "add 1 to a column")],
)
def test_what_no_slot_can_have_is_refused_with_the_way_out(
    run_sqlite: Run, tmp_path: Path, chance: str, position: int, hint: str
) -> None:
    path, columns = tmp_path / "log.csv", tmp_path / "map.json"
    path.write_text(f"item,chance,place\na,{chance},{position}\n")
    columns.write_text('{"arm": "item", "propensity": "chance", "position": "place"}')
    refused = run_sqlite("import-log", path, "--layout", "csv", "--policy", "shop", "--map", columns)
    assert (refused.exit_code, hint in refused.stderr) == (2, True)


@pytest.mark.parametrize(("column", "copies"), [("time", 2), ("day", 0)])
def test_lines_that_look_like_copies_are_counted(run_sqlite: Run, tmp_path: Path, column: str, copies: int) -> None:
    """Without a time equal lines are what a log of few columns looks like."""
    path, columns = tmp_path / "log.csv", tmp_path / "map.json"
    path.write_text("item,visit,time,day\n" + 3 * "a,v1,2026-01-31T12:00:00Z,1\n" + "a,v1,2026-01-31T12:00:01Z,1\n")
    columns.write_text(json.dumps({"arm": "item", "session": "visit"} | ({"at": column} if copies else {})))
    result = run_sqlite("import-log", path, "--layout", "csv", "--policy", "shop", "--map", columns).done()
    assert (f"{copies} decisions with session, time" in result.stderr) == bool(copies)
    line = '{"session": "s", "slate": [{"arm": "a"}], "eligible": ["a"], "at": %s}\n'
    lines = 3 * (line % ('"2026-01-31T12:00:00Z"' if copies else "null"))
    result = run_sqlite("import-log", "-", "--layout", "jsonl", "--policy", "shop", stdin=lines).done()
    assert (f"{copies} decisions with session, time" in result.stderr) == bool(copies)


def test_an_owner_in_place_of_a_mapped_column_is_noticed(run_sqlite: Run, tmp_path: Path) -> None:
    path, columns = tmp_path / "log.csv", tmp_path / "map.json"
    path.write_text("item,logger\na,old\nb,new\n")
    columns.write_text('{"arm": "item", "policy": "logger"}')
    words = ("import-log", path, "--layout", "csv", "--map", columns, "--check")
    assert "owns all decisions: the column 'logger' is not read" in run_sqlite(*words, "--policy", "shop").done().stderr
    assert "not read" not in run_sqlite(*words).done().stderr


def test_corrected_lines_that_come_beside_the_old_ones_are_noticed(run_sqlite: Run, tmp_path: Path) -> None:
    """A session that goes on is no correction, nor is a log of another policy."""
    path, columns = tmp_path / "log.csv", tmp_path / "map.json"
    columns.write_text('{"arm": "item", "session": "visit", "at": "time", "propensity": "p"}')
    heads = [f"a,v{number},2026-01-31T12:00:00Z" for number in range(3)]

    def imported(chance: str, *more: str, policy: str = "shop") -> str:
        path.write_text("\n".join(["item,visit,time,p", *(f"{head},{chance}" for head in heads), *more, ""]))
        return run_sqlite("import-log", path, "--layout", "csv", "--policy", policy, "--map", columns).done().stderr

    sentence = "3 decisions with policy, session and time of one that was stored before"
    assert sentence not in imported("0.13") + imported("0.13", "a,v0,2026-01-31T12:00:09Z,0.13")
    assert sentence not in imported("0.14", policy="other")
    assert sentence in imported("0.125")
