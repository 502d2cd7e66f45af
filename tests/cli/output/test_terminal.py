"""On a terminal tables are as wide as that, and verdicts have a colour; in a pipe everything is there, without one."""

import fcntl
import io
import os
import pty
import random
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlrec.cli.output.progress import ProgressLine
from rlrec.cli.text.text import Screen, View
from rlrec.store import Store
from tests.conftest import PATIENCE_S, Run, click_events, runner, store_after

NOW = "2026-01-02T12:00:00Z"
AT_NOON = ("--now", "2026-01-01T12:00:00Z")
ESCAPE = re.compile(r"\x1b\[\d*m")


def terminal(
    db: str, *args: object, columns: int = 80, typed: str = "", program: Path | None = None, **env: str
) -> str:
    """The output of a command on a terminal of that width, stderr too. typed: what a person types there. program: one
    whose processes begin with what it loads."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    words = [str(program)] if program else [sys.executable, "-m", "rlrec"]
    command = [*words, "--db", db, *map(str, args)]
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env={**plain, "TERM": "xterm", **env}
    ) as process:
        os.close(slave)
        os.write(master, typed.encode())
        chunks = list[bytes]()
        while chunk := _read(master):
            chunks.append(chunk)
        process.wait(PATIENCE_S)
    os.close(master)
    return b"".join(chunks).decode().replace("\r\n", "\n")


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65_536)
    except OSError:  # the other end is closed
        return b""


def _fill(db: str) -> None:
    """A store with 80 arms, an experiment of two policies, and a trained policy, each with a log."""
    run, chance = runner(db), random.Random(1)
    arms = "".join(f'{{"arm": "article-number-{number}"}}\n' for number in range(80))
    run(*AT_NOON, "arm", "import", "-", stdin=arms)
    run(*AT_NOON, "policy", "create", "home", "--kind", "thompson", "--param", "floor=0.02")
    run(*AT_NOON, "policy", "create", "other", "--kind", "uniform")
    run(*AT_NOON, "policy", "create", "visits", "--kind", "gradient")
    run(*AT_NOON, "experiment", "create", "ab", "--variant", "a=home", "--variant", "b=other")
    context = {"hour": 9, "device": "ios", "tags": ["tea", "iced"]}
    requests = [
        {**who, "session": f"{next(iter(who.values()))}-{n}", "user": f"u{n % 80}", "k": 2, "context": context}
        for n in range(160)
        for who in ({"policy": "home"}, {"experiment": "ab"}, {"policy": "visits"})
    ]
    answers = run(*AT_NOON, "recommend", "--input", "-", stdin=requests).lines
    lines = click_events(answers, lambda slot: chance.random() < 0.1 + 0.005 * int(slot["arm"].rpartition("-")[2]))
    assert run(*AT_NOON, "feedback", "--input", "-", stdin=lines).exit_code == 0
    run("--now", NOW, "train-pg", "visits", "--epochs", 3, "--seed", 1).done()


run = store_after(_fill)


CAPTURED = [
    ["status"],
    ["policy", "show", "home"],
    ["policy", "show", "visits@2", "--curve"],
    ["policy", "versions", "visits"],
    ["evaluate", "home", "uniform", "--estimator", "snips,dr,pdis"],
    ["evaluate", "home", "--by", "policy"],
    ["experiment", "show", "ab"],
    ["session", "show", "home-7"],
    ["decision", "show", "1"],
    ["train-pg", "visits", "--epochs", "2", "--seed", "2"],
    ["doctor"],
    ["arm", "list"],
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "columns"),
    [
        pytest.param(words, columns, id=f"{' '.join(words)} {columns}")
        for columns, commands in ((80, CAPTURED), (120, CAPTURED[:6]))
        for words in commands
    ],
)
def test_no_line_is_wider_than_the_terminal(
    run: Run, sqlite_db: str, forked_rlrec: Path, command: list[str], columns: int
) -> None:
    text = terminal(sqlite_db, "--now", NOW, *command, columns=columns, program=forked_rlrec)
    lines = ESCAPE.sub("", text).splitlines()
    assert "Error" not in "".join(lines)
    assert [line for line in lines if len(line) > columns] == []
    assert len(lines) >= 4


def test_columns_says_how_wide_a_terminal_is(run: Run, sqlite_db: str) -> None:
    text = terminal(sqlite_db, "--now", NOW, "policy", "list", columns=200, COLUMNS="60")
    assert max(map(len, text.splitlines())) <= 60


def test_a_pipe_has_every_column_and_whole_cells(run: Run) -> None:
    text = run("--now", NOW, "policy", "show", "home", env={"COLUMNS": "60"}).stdout
    header, *_ = (line for line in text.splitlines() if line.startswith("arm "))
    assert header.split() == [
        "arm", "status", "served", "pending", "pulls", "reward_sum", "mean", "lower", "upper", "ipw_mean", "p_best",
        "probability",
    ]  # fmt: skip
    assert text.count("article-number-") == 80


def test_a_terminal_shows_the_likeliest_arms(run: Run, sqlite_db: str, forked_rlrec: Path) -> None:
    words = ("--now", NOW, "policy", "show")
    text = terminal(sqlite_db, *words, "home", columns=100, program=forked_rlrec)
    arms = re.findall(r"^article-number-\d+.* (0\.\d+)(?:  [▏▎▍▌▋▊▉█]+)?$", text, re.MULTILINE)
    assert len(arms) == 20
    assert arms == sorted(arms, reverse=True)
    assert "60 more arms" in text
    assert terminal(sqlite_db, *words, "home", "--all", program=forked_rlrec).count("article-number-") == 80
    trained = terminal(sqlite_db, *words, "visits@2", program=forked_rlrec)
    assert (trained.count("weights of article"), "--all shows the weights of all arms" in trained) == (5, True)


def test_a_session_is_shown_without_json(run: Run) -> None:
    text = run("--now", NOW, "session", "show", "home-7").stdout
    assert "device=ios hour=9 tags=(tea, iced)" in text
    assert not {"{", "}", '"'} & set(text)


def test_the_curve_of_a_trained_version_is_asked_for(run: Run) -> None:
    short, long = (run("--now", NOW, "policy", "show", "visits@2", *more).stdout for more in ([], ["--curve"]))
    epochs = re.compile(r"^ +\d+ +0\.\d+ .*$", re.MULTILINE)
    assert (len(epochs.findall(short)) <= 1, len(epochs.findall(long)) >= 3) == (True, True)


def test_estimates_are_compared_with_what_served(run: Run) -> None:
    for row in run("--now", NOW, "evaluate", "home", "--estimator", "snips,pdis", "--json").json:
        assert row["lift"] == pytest.approx(row["value"] / row["served"] - 1)
        assert row["lift_lower"] < row["lift"] < row["lift_upper"]


def test_units_stand_apart(run: Run) -> None:
    text = run("--now", NOW, "evaluate", "home", "--estimator", "pdis,snips", "--details").stdout
    _, sessions, impressions, _ = text.split("\n\n")
    assert [table.splitlines()[2].split()[2] for table in (sessions, impressions)] == ["pdis", "snips"]


@pytest.mark.parametrize(
    ("env", "options", "coloured"),
    [
        ({}, [], True),
        ({"NO_COLOR": "1"}, [], False),
        ({"TERM": "dumb"}, [], False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, [], True),
        ({}, ["--no-color"], False),
    ],
)  # fmt: skip
def test_verdicts_have_a_colour_on_a_terminal(
    run: Run, sqlite_db: str, forked_rlrec: Path, env: dict[str, str], options: list[str], coloured: bool
) -> None:
    words = (*options, "--now", NOW, "evaluate", "home", "--estimator", "snips")
    text = terminal(sqlite_db, *words, program=forked_rlrec, **env)
    assert bool(ESCAPE.search(text)) == coloured


def test_a_pipe_has_no_colour_unless_forced(run: Run) -> None:
    command = ["--now", NOW, "evaluate", "home", "--estimator", "snips"]
    plain = run(*command)
    assert not ESCAPE.search(plain.stdout + plain.stderr)
    assert ESCAPE.search(run(*command, env={"FORCE_COLOR": "1"}).stdout)
    assert not ESCAPE.search(run(*command, "--json", env={"FORCE_COLOR": "1"}).stdout)


def test_wide_characters_count_twice() -> None:
    from rlrec.cli.output.tables import elide_text, text_width

    assert text_width("日本") == 4
    assert elide_text("日本日本日本", 8) == "日本..."


@pytest.mark.parametrize("width", [None, 80])
def test_columns_stay_aligned_beside_wide_characters(width: int | None) -> None:
    from rlrec.cli.output.tables import text_width, view_text

    text = view_text(View(["arm", "verdict"], [["日本", "ok"], ["1e5", "weak"]]), Screen(width, colour=True))
    ends = [text_width(ESCAPE.sub("", line).rpartition("  ")[0]) for line in text.splitlines()]
    assert len(set(ends)) == 1
    assert "\n1e5 " in text


@pytest.mark.parametrize(
    ("numbers", "line"), [([0, 0], "▁▁"), ([1, 2, 4], "▃▅█"), ([], "")]
)  # fmt: skip
def test_a_sparkline_is_relative_to_its_largest(numbers: list[Any], line: str) -> None:
    from rlrec.cli.output.tables import sparkline

    assert sparkline(numbers) == line


@pytest.mark.slow
def test_a_long_command_says_how_far_it_is(sqlite_db: str, tmp_path: Path) -> None:
    patience = tmp_path / "sitecustomize.py"
    patience.write_text(
        "import rlrec.cli.output.progress as p\np.PATIENCE_S = p.PAUSE_S = 1e-6\n"
        "import rlrec.app.log.partitions as q\nq.BATCH = 50\n"
    )
    log = tmp_path / "log.jsonl"
    for command, rows in (
        (["simulate", "bernoulli", "--policy", "s", "--sessions", "200", "--group", "50"], "200 sessions"),
        (["evaluate", "uniform"], "200 decisions"),
        (["export-log", str(log)], "200 decisions"),
    ):
        if command[0] == "simulate":
            runner(sqlite_db)("policy", "create", "s", "--kind", "thompson")
        when = ["--now", "2030-01-01"] if command[0] == "evaluate" else []
        text = terminal(sqlite_db, *when, *command, PYTHONPATH=str(tmp_path))
        assert re.search(rf"\r{rows}|\r\d+ {rows}", text), (command, text)
        assert re.search(r"a second, \d+ s left", text)
        assert max(len(line) for line in re.split(r"[\r\n]", ESCAPE.sub("", text))) <= 80
        if command[0] == "evaluate":  # partitions are worked on once they are read
            assert re.findall(r"\r(\d) partitions", text)[-1] == "4", text
    for command, parts in (
        (["report", str(tmp_path / "page.html")], "8 parts of the page"),
        (["doctor"], "5 parts of"),
    ):
        text = terminal(sqlite_db, *command, PYTHONPATH=str(tmp_path))
        assert re.findall(rf"\r(\d) of {parts}", text)[-1] == parts[0], (command, text)


def test_ranges_of_decisions_say_how_many_were_read(store: Store) -> None:
    from rlrec.store.log import reader

    calls = list[tuple[str, int, float | None]]()
    run = runner(store.url.render_as_string(hide_password=False))
    run("policy", "create", "s", "--kind", "thompson")
    run("simulate", "bernoulli", "--policy", "s", "--sessions", 25)
    with store.read() as unit:
        unit.progress = lambda *call: calls.append(call)
        ranges = list(reader.id_ranges(unit, 1, first=1, last=25, size=10))
    assert ranges == [(1, 10), (11, 20), (21, 25)]
    assert calls == [("decisions", 10, 0.4), ("decisions", 20, 0.8)]


def test_a_short_command_and_a_pipe_show_no_progress(run: Run, sqlite_db: str, tmp_path: Path) -> None:
    """Short by its own work: how long it waits for a busy machine does not count here."""
    clock = tmp_path / "sitecustomize.py"
    clock.write_text(
        "import time, types\nimport rlrec.cli.output.progress as p\n"
        "p.time = types.SimpleNamespace(monotonic=time.process_time)\n"
    )
    text = terminal(sqlite_db, "--now", NOW, "evaluate", "home", "--estimator", "snips", PYTHONPATH=str(tmp_path))
    assert ("a second" in text, "snips" in text) == (False, True)
    assert "a second" not in run("--now", NOW, "evaluate", "home").stderr


def test_progress_waits_a_second_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.5, 2.0, 2.1, 3.0])
    monkeypatch.setattr("rlrec.cli.output.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setenv("COLUMNS", "60")
    stream = io.StringIO()
    line = ProgressLine(stream)
    for rows, share in ((100, 0.1), (400, 0.4), (410, 0.41), (600, 0.6)):
        line("lines stored", rows, share)
    line.clear()
    assert [text.strip() for text in stream.getvalue().split("\r")] == [
        "", "400 lines stored, 200 a second, 3 s left", "600 lines stored, 200 a second, 2 s left", "", "",
    ]  # fmt: skip
