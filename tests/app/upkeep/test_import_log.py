"""A log that is followed: every line once, whatever ends the process, and whatever becomes of the file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import pytest

from rlrec.app.imports import growing
from rlrec.app.imports.layouts.base import Source
from rlrec.app.setup import reward
from rlrec.app.upkeep import export_log, import_log
from rlrec.app.upkeep.import_log import BadLines, ImportSummary, Request
from rlrec.cli.text import lines
from rlrec.errors import Conflict, InputError
from rlrec.store import Store
from tests.app.imports.test_foreign_logs import cb
from tests.conftest import ON_BOTH, Run
from tests.stops import until

Process = get_context("fork").Process
PATIENCE_S = 60


def line(session: str, **more: Any) -> str:
    text = {"session": session, "slate": [{"arm": "a", "propensity": 0.5}], "eligible": ["a", "b"], "reward": 1}
    return f"{json.dumps(text | more)}\n"


def add(path: Path, *texts: str) -> None:
    with path.open("a") as file:
        file.writelines(texts)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "log").write_text(line("s1") + line("s2"))
    return tmp_path / "log"


class Refused(list[tuple[int | None, str]]):
    """The lines that were set apart."""

    def refuse(self, error: InputError, text: bytes) -> None:
        self.append((error.line, error.message))


def refuse(error: InputError, text: bytes) -> NoReturn:
    raise error


def followed(
    store: Store, path: Path, *steps: Callable[[], object], layout: str = "jsonl", refused: Refused | None = None,
    options: dict[str, Any] | None = None, stream: BinaryIO | None = None,
) -> ImportSummary:  # fmt: skip
    """What a file brings that is followed while these things happen to it, one after another, each when there is
    nothing to read any more."""
    left = list(steps)

    def wait(seconds: float | None, _: BinaryIO | None) -> bool:
        if seconds != 0.0:
            if not left:
                return False
            left.pop(0)()
        return True

    quarantine = refused is not None
    bad_lines = BadLines(
        quarantine=quarantine, refuse=refused.refuse if refused is not None else refuse, report_file=lambda _: None
    )
    source = Source(file=str(path), name=str(path), decode=lines.decode_group)
    request = Request(files=[source], layout=layout, policy="shop", options=options or {})
    return import_log.follow_log(store, request, bad_lines, stream=stream, poll_s=0.01, wait=wait)


def sessions(store: Store) -> list[str]:
    return [record["session"] for record in export_log.export_log(store)]


def nothing() -> None:
    """One more look."""


@ON_BOTH
def test_lines_come_as_they_are_written(store: Store, path: Path) -> None:
    """Also those of a file that takes its place, and of one that was truncated."""

    def rotate() -> None:
        path.rename(path.with_name("log.1"))
        add(path.with_name("log.1"), line("s4"))
        path.write_text(line("s5"))

    text = line("s3")
    summary = followed(
        store, path, partial(add, path, text[:20]), partial(add, path, text[20:]), rotate,
        *[nothing] * (growing.QUIET_POLLS + 1), partial(path.write_text, line("t")), partial(add, path, line("s6")),
    )  # fmt: skip
    assert sessions(store) == ["s1", "s2", "s3", "s4", "s5", "t", "s6"]
    assert (summary.accepted, summary.duplicates) == (7, 0)
    assert followed(store, path, partial(add, path, line("s7"))).accepted == 1


@ON_BOTH
def test_a_visit_is_credited_once_the_next_one_is_followed(store: Store, path: Path) -> None:
    reward.define(store, reward.Request(name="loyal", weights="return=1"))
    path.write_text(line("s1", user="u", at="2026-01-01") + line("t", user="v", at="2026-01-01"))
    days = [partial(add, path, line(f"s{day}", user="u", at=f"2026-01-0{day}")) for day in (2, 3)]
    followed(store, path, *days)
    with store.read() as unit:
        assert unit.ask("SELECT decision_id, position, kind FROM event WHERE kind = 'return' ORDER BY decision_id") == [
            (1, 1, "return"), (3, 1, "return"),
        ]  # fmt: skip


@ON_BOTH
def test_a_line_is_told_from_the_same_line_before(store: Store, path: Path) -> None:
    """By how often it came before in the file, as for an import of the whole file, which adds nothing any more."""
    repeat = partial(add, path, line("s1"), line("s1"))
    assert followed(store, path, repeat, repeat).accepted == 6
    assert followed(store, path, repeat).accepted == 2
    source = Source(file=str(path), name="log", decode=lines.decode_group)
    bad_lines = BadLines(quarantine=False, refuse=refuse, report_file=lambda _: None)
    again = import_log.import_log(store, Request(files=[source], layout="jsonl", policy="shop"), bad_lines)
    assert (again.accepted, again.duplicates) == (0, 8)
    assert Counter(sessions(store)) == {"s1": 7, "s2": 1}


def test_what_an_import_has_stored_is_a_duplicate(store: Store, run: Run, path: Path) -> None:
    run("import-log", path, "--layout", "jsonl", "--policy", "shop")
    summary = followed(store, path, partial(add, path, line("s1"), line("s3")))
    assert (summary.accepted, summary.duplicates) == (2, 2)


def test_a_line_that_names_its_request_comes_once(store: Store, path: Path) -> None:
    request = line("s3", request_id="r1")
    summary = followed(store, path, partial(add, path, request), partial(add, path, request, request))
    assert (summary.accepted, summary.duplicates) == (3, 2)


@ON_BOTH
def test_a_bad_line_ends_it_and_what_comes_before_is_stored(store: Store, path: Path) -> None:
    """The position is that of the line, until somebody puts it right."""
    bad = partial(add, path, line("s3"), "no JSON\n", line("s4"))
    with pytest.raises(InputError) as error:
        followed(store, path, bad)
    assert (error.value.line, sessions(store)) == (4, ["s1", "s2", "s3"])
    with pytest.raises(InputError):
        followed(store, path)
    refused = Refused()
    summary = followed(store, path, refused=refused)
    assert (summary.accepted, summary.rejected, sessions(store)[-1]) == (1, 1, "s4")
    assert [number for number, _ in refused] == [4]
    assert followed(store, path).accepted == 0


@pytest.mark.parametrize("length", [300, 5_000])
@pytest.mark.parametrize("streams", [False, True])
def test_a_line_beyond_every_bound_is_passed_over(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch, length: int, streams: bool
) -> None:
    """Both one that a portion holds, and one that no portion holds."""
    monkeypatch.setattr("rlrec.app.imports.layouts.base.LINE_BYTES", 200)
    monkeypatch.setattr("rlrec.app.imports.layouts.base.BLOCK_BYTES", 100)
    monkeypatch.setattr(growing, "PORTION_BYTES", 1_000)
    monkeypatch.setattr(lines, "LIMIT", 200)
    path.write_text(line("s1") + line("s" * length) + line("s2") + "bad\n")
    refused = Refused()
    with path.open("rb", buffering=0) as file:
        followed(store, path, refused=refused, stream=file if streams else None)
    assert sessions(store) == ["s1", "s2"]
    assert [(number, "longer than" in message) for number, message in refused] == [(2, True), (4, False)]


def test_a_line_that_contradicts_the_store_is_refused_alone(store: Store, path: Path) -> None:
    with pytest.raises(Conflict) as error:
        followed(
            store,
            path,
            partial(add, path, line("x", request_id="r")),
            partial(add, path, line("y"), line("z", request_id="r")),
        )
    assert (error.value.line, sessions(store)) == (5, ["s1", "s2", "x", "y"])


def test_two_processes_do_not_follow_one_file(store: Store, db: str, path: Path) -> None:
    def meanwhile() -> None:
        add(path, line("s3"))
        with closing(Store(db)) as other:
            assert followed(other, path).accepted == 1

    with pytest.raises(Conflict, match="another process follows"):
        followed(store, path, meanwhile)
    assert sessions(store) == ["s1", "s2", "s3"]


def test_times_without_a_zone_are_counted_once(store: Store, path: Path) -> None:
    store.notice = (notices := list[str]()).append
    texts = [line(f"z{n}", at="2026-01-31T09:00:00") for n in range(3)]
    followed(store, path, *(partial(add, path, text) for text in texts))
    assert notices[1:] == ["3 lines with a time without a zone, which is read as UTC"]


def test_layouts_that_are_known_as_a_whole_are_not_followed(store: Store, path: Path) -> None:
    for layout in ("csv", "obd", "parquet"):
        with pytest.raises(InputError, match="read as a whole"):
            followed(store, path, layout=layout)


# -- lines of a decision service --


@ON_BOTH
def test_observations_join_decisions_that_were_stored_before(store: Store, path: Path, run: Run) -> None:
    """And activate those that waited; others are counted."""
    random = np.random.default_rng(3)
    waiting = cb(2, random, 0.0, o=[]) | {"DeferredAction": True}
    path.write_text(
        "".join(f"{json.dumps(decision)}\n" for decision in (cb(1, random, 0.0, o=[]), waiting, cb(3, random, 1.0)))
    )
    observed = [
        {"EventId": "e1", "RewardValue": 0.75, "EnqueuedTimeUtc": "2026-01-31T12:30:00Z"},
        {"EventId": "e2", "ActionTaken": True},
        {"EventId": "elsewhere", "RewardValue": 1.0},
    ]
    store.notice = (notices := list[str]()).append
    followed(store, path, *(partial(add, path, f"{json.dumps(late)}\n") for late in observed), layout="dsjson")
    assert [text.partition(":")[0] for text in notices[1:]] == [
        "1 observation joined decisions that were stored before",
        "1 observation without a decision that was stored here",
    ]
    records = {record["request_id"]: record for record in run("export-log", "-").lines}
    assert [records[name]["reward"] for name in ("e1", "e2", "e3")] == [0.75, 0.0, 1.0]
    assert records["e1"]["events"][0]["at"] == "2026-01-31T12:30:00.000000Z"
    assert not any(slot.get("censored") for record in records.values() for slot in record["slate"])
    assert run("doctor", "--json").exit_code == 0


def test_a_decision_that_nobody_activates_is_censored(store: Store, path: Path, run: Run) -> None:
    path.write_text(f"{json.dumps(cb(2, np.random.default_rng(3), 0.0, o=[]) | {'DeferredAction': True})}\n")
    assert followed(store, path, layout="dsjson").accepted == 1
    (record,) = run("export-log", "-").lines
    assert record["slate"][0]["censored"] is True


def test_a_log_of_an_apprentice_is_not_followed(store: Store, path: Path) -> None:
    path.write_text(
        f"{json.dumps(cb(1, np.random.default_rng(3), 1.0) | {'_label_cost': 0, 'a': [2, 1, 3], '_label_Action': 2})}\n"
    )
    with pytest.raises(InputError, match="apprentice"):
        followed(store, path, layout="dsjson")


# -- text of Vowpal Wabbit --


def test_an_example_is_complete_at_a_blank_line(store: Store, path: Path) -> None:
    path.write_text("shared |u a\n0:-1:0.5 'x|\n")
    steps = [partial(add, path, text) for text in ("'y|\n", "\n0:0:0.25 'x|\n'y|\n", "\n")]
    assert followed(store, path, *steps, layout="vw").accepted == 2
    records = list(export_log.export_log(store))
    assert [(record["eligible"], record["reward"]) for record in records] == [(["x", "y"], 1.0), (["x", "y"], 0.0)]


# -- streams and processes --


def test_a_stream_is_taken_in_to_its_end(store: Store, path: Path) -> None:
    receiver, sender = os.pipe()

    def write(text: str) -> None:
        os.write(sender, text.encode())

    with open(receiver, "rb", buffering=0) as stream:
        steps = [partial(write, line("s1")), partial(write, line("s1")), partial(os.close, sender)]
        assert followed(store, Path("-"), *steps, stream=stream).accepted == 2
    assert sessions(store) == ["s1", "s1"]


FOLLOW = ("--layout", "jsonl", "--policy", "shop", "--follow", "--poll", "10ms", "--json")


def _has(store: Store, count: int) -> bool:
    return len(sessions(store)) >= count


def _follow(db: str, path: Path) -> None:
    with closing(Store(db)) as store:
        followed(store, path, *[partial(time.sleep, 0.01)] * 100_000)


@ON_BOTH
@pytest.mark.slow
def test_a_process_that_is_killed_loses_and_doubles_nothing(store: Store, db: str, path: Path) -> None:
    """Lines that end anywhere, some of them alike, while one process after another is killed."""
    count = 2
    for kill in range(3):
        process = Process(target=_follow, args=(db, path))
        process.start()
        for number in range(5 + kill):
            text = line(f"s{number % 4}")
            add(path, text[:30])
            add(path, text[30:])
            count += 1
        until(partial(_has, store, 3 + kill))
        process.kill()
        process.join()
    followed(store, path)
    assert len(sessions(store)) == count
    assert Counter(sessions(store)) == Counter(json.loads(text)["session"] for text in path.read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_the_counts(sqlite_db: str, path: Path, forked_rlrec: Path, sent: signal.Signals) -> None:
    process = subprocess.Popen(
        [forked_rlrec, "--db", sqlite_db, "import-log", path, *FOLLOW],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "from line 1; SIGTERM or Ctrl-C ends it" in process.stderr.readline()
    with closing(Store(sqlite_db)) as store:
        until(lambda: len(sessions(store)) == 2)
    process.send_signal(sent)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, json.loads(out)["accepted"], "Traceback" in err) == (0, 2, False)
