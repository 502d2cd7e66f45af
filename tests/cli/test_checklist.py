"""A checklist of what people expect of a command line, 54 points: `test_09_...` holds point 9, HELD_ELSEWHERE names the
tests of those that another file holds.

Sources: the guidelines of clig.dev, POSIX and GNU habits, no-color.org, the GitHub CLI, and issues that users filed
against other tools. What of a point is left out on purpose is said by its test."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest

from rlrec.cli import EPILOG, program
from tests.cli.output.test_terminal import terminal
from tests.conftest import PATIENCE_S, Run
from tests.docs.test_examples import leaves
from tests.stops import cpu_of_children

COMMANDS = dict(leaves(program, "rlrec"))

ARMS = '{"arm": "espresso"}\n{"arm": "matcha"}\n{"arm": "007"}\n{"arm": "1e5"}\n{"arm": "-dash"}\n{"arm": "crème"}\n'
REQUEST = '{"policy": "home", "session": "s%d", "user": "u%d", "k": 2}\n'


@pytest.fixture
def shop(run_sqlite: Run) -> Run:
    """A runner on a store with six arms, a policy, and ten decisions of the first of January."""
    at = ["--now", "2026-01-01T12:00:00Z"]
    assert run_sqlite(*at, "arm", "import", "-", stdin=ARMS).exit_code == 0
    assert run_sqlite(*at, "policy", "create", "home", "--kind", "thompson", "--param", "floor=0.05").exit_code == 0
    requests = "".join(REQUEST % (number, number) for number in range(10))
    assert run_sqlite(*at, "recommend", "--input", "-", "--seed", "1", stdin=requests).exit_code == 0
    return run_sqlite


def process(
    *words: object, folder: Path, stdin: Any = subprocess.DEVNULL, env: Mapping[str, str] | None = None,
    program: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
    """The program, run to its end in a folder. program: one whose processes begin with what it loads."""
    command = [*([program] if program else [sys.executable, "-m", "rlrec"]), *map(str, words)]
    params = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    variables = {**os.environ, **(env or {})}
    return subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, timeout=PATIENCE_S, check=False, **params
    )


def cpu_seconds(*command: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def options(command: click.Command) -> Iterator[click.Option]:
    return (param for param in command.params if isinstance(param, click.Option))


HELD_ELSEWHERE = {
    3: "test_every_command_has_an_example_that_uses_it",
    6: "test_a_wrong_command_says_so_and_stores_nothing",
    7: "test_wrong_usage_is_one_line_and_exit_2",
    8: "test_results_alone_go_to_stdout",
    11: "test_errors_are_json_where_results_are",
    13: "test_a_terminal_as_input_is_told_what_to_do",
    14: "test_bom_crlf_blank_lines_and_a_missing_last_newline_are_fine",
    16: "test_the_way_out_is_named",
    17: "test_bad_lines_go_to_the_rejects_and_good_ones_in",
    20: "test_a_kind_that_nobody_weighs_is_noticed_once_in_a_store",
    21: "test_the_unexpected_is_one_line_without_a_traceback",
    23: "test_many_lines_are_stored_in_one_go",
    24: "test_status_counts_what_is_stored",
    25: "test_a_dry_run_answers_as_the_command_does_and_stores_nothing",
    27: "test_verdicts_have_a_colour_on_a_terminal",
    29: "test_no_line_is_wider_than_the_terminal",
    30: "test_table_cells_are_verbatim",
    31: "test_each_value_has_its_source",
    32: "test_the_nearer_wins",
    35: "test_options_of_the_program_may_stand_behind_the_command",
    37: "test_a_reader_that_leaves_early_is_no_error",
    47: "test_help_lists_every_page_in_one_line",
    49: "json",  # of every object that a test reads: `CommandResult`
    51: "test_init_again_changes_nothing",
    52: "test_the_answer_has_the_keys_of_the_contract_in_order",
    54: "test_answers_are_those_of_the_commands",
}


def test_every_point_has_a_test() -> None:
    here = {int(name[5:7]) for name in globals() if re.match(r"test_\d\d_", name)}
    assert here | HELD_ELSEWHERE.keys() == set(range(1, 55))
    text = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].rglob("*.py"))
    assert [name for name in HELD_ELSEWHERE.values() if f"def {name}(" not in text] == []


# -- help --


@pytest.mark.slow
def test_01_the_program_alone_shows_help_with_examples(tmp_path: Path) -> None:
    done = process(folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Usage: rlrec" in done.stderr
    assert re.search(rb"Examples:\n +rlrec ", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_02_h_and_help_are_the_same_everywhere_and_touch_no_store(
    run_sqlite: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "..")
    for path in COMMANDS:
        words = path.split()[1:]
        short, long = run_sqlite("--db", tmp_path / "none.db", *words, "-h"), run_sqlite(*words, "--help")
        assert (short, short.exit_code, short.stderr) == (long, 0, ""), path
        assert short.stdout.startswith(f"Usage: {path}")
    assert not (tmp_path / "none.db").exists()


@pytest.mark.slow
def test_04_the_version_comes_at_once() -> None:
    version = min(cpu_seconds(sys.executable, "-m", "rlrec", "--version") for _ in range(3))
    assert version < 2 * min(cpu_seconds(sys.executable, "-c", "import click") for _ in range(3))
    assert re.fullmatch(rb"rlrec, version \d\S*\n", process("--version", folder=Path.cwd()).stdout)


@pytest.mark.slow
def test_05_help_comes_at_once_and_loads_nothing_heavy() -> None:
    """Every help of the program, one after the other in one process, loads less than what is heavy."""
    script = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from rlrec.cli import program\n"
        "for path in sys.argv[1:]:\n"
        "    assert CliRunner().invoke(program, [*path.split()[1:], '--help']).exit_code == 0, path\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *COMMANDS], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "rlrec" in loaded
    assert not loaded & {"sqlalchemy", "scipy", "alembic", "psycopg", "pyarrow", "tabulate"}
    assert any(cpu_seconds(sys.executable, "-m", "rlrec", "--help") <= 0.15 for _ in range(5))


# -- output --


def test_09_every_command_that_prints_a_result_has_json() -> None:
    files = {"rlrec export-log"}  # writes lines of JSON anyway
    without = [
        path for path, command in COMMANDS.items() if "--json" not in {o for p in options(command) for o in p.opts}
    ]
    assert set(without) <= files


def test_10_results_come_as_table_json_ndjson_and_csv(shop: Run) -> None:
    """There is no tsv and no format of single values: `cut` and `jq` take them out of a csv or of JSON."""
    arms = shop("arm", "list", "--format", "json").json
    assert shop("arm", "list", "--format", "ndjson").lines == shop("arm", "list", "--format", "jsonl").lines == arms
    rows = list(csv.DictReader(io.StringIO(shop("arm", "list", "--format", "csv").stdout)))
    assert [row["arm"] for row in rows] == [arm["arm"] for arm in arms]
    assert shop("arm", "list", "--format", "table").stdout == shop("arm", "list").stdout


@pytest.mark.slow
def test_10_a_line_is_written_before_the_last_one_is_read(shop: Run, sqlite_db: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rlrec", "--db", sqlite_db, "recommend", "--input", "-", "--format", "jsonl"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for number in (91, 92):
            child.stdin.write((REQUEST % (number, number)).encode())
            child.stdin.flush()
            assert json.loads(child.stdout.readline())["session"] == f"s{number}"
        child.stdin.close()
        assert (child.stdout.read(), child.wait(PATIENCE_S)) == (b"", 0)


def test_12_a_dash_is_stdin_or_stdout(shop: Run, tmp_path: Path) -> None:
    (tmp_path / "log.ndjson").write_text("")
    assert shop("-q", "export-log", tmp_path / "new.ndjson").exit_code == 0
    assert shop("-q", "export-log", "-").stdout == (tmp_path / "new.ndjson").read_text(encoding="utf-8")
    line = '{"decision_id": 1, "position": 1, "events": {"click": 1}}\n'
    assert shop("feedback", "--input", "-", "--json", stdin=line).json["accepted"] == 1


def test_15_a_bad_line_is_named_by_file_line_column_field_and_text(run_sqlite: Run, tmp_path: Path) -> None:
    path = tmp_path / "arms.ndjson"
    path.write_text('{"arm": "a"}\n{"arm": 3}\n')
    assert "arms.ndjson line 2, field arm: expected text, got 3" in run_sqlite("arm", "import", path).stderr
    path.write_text('{"arm": "a"}\n{"arm": "b",,}\n')
    result = run_sqlite("arm", "import", path)
    assert re.search(r"arms\.ndjson line 2: not JSON: .* at column 13, near '.*\"b\",,}'", result.stderr)


def test_18_exit_codes_are_distinct_and_in_the_help(shop: Run, tmp_path: Path) -> None:
    shop("reward", "define", "r", "click=1")
    assert shop("policy", "list").exit_code == 0
    assert shop("policy", "show", "nobody").exit_code == 2
    assert shop("policy", "rollback", "home").exit_code == 3
    assert shop("reward", "define", "r", "click=2").exit_code == 6
    assert all(re.search(rf"\b{code}\b", EPILOG) for code in (0, 1, 2, 3, 4, 5, 6, 130, 141, 143, 129))


def test_19_quiet_leaves_results_and_errors(shop: Run) -> None:
    """There is no -v: what a command knows is in its result, and --debug shows the traceback of an error."""
    quiet = shop("-q", "feedback", "1", "frown", "--position", "1")
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert "decision_id" in quiet.stdout
    assert "Traceback" in shop("--debug", "policy", "show", "nobody").stderr


def test_22_an_error_says_what_which_value_and_what_next(tmp_path: Path) -> None:
    done = process("--db", "x y.db", "arm", "list", folder=tmp_path)
    assert done.returncode == 3
    assert done.stderr.decode() == "Error: no store at x y.db. create it with `rlrec --db 'x y.db' init`\n"


@pytest.mark.slow
def test_26_what_deletes_asks_or_refuses(shop: Run, sqlite_db: str, forked_rlrec: Path) -> None:
    for words in (["db", "forget", "--user", "u1"], ["db", "prune", "--before", "2026-01-02"]):
        assert "--yes" in shop(*words).failed(2)
        assert "[y/N]" in terminal(sqlite_db, *words, typed="n\n", program=forked_rlrec)
        assert shop(*words, "--dry-run").exit_code == 0
        assert shop("status", "--json").json["decisions"] == 10
    assert shop("db", "forget", "--user", "u1", "--yes", "--json").json["decisions"] == 1


@pytest.mark.slow
def test_28_progress_is_for_terminals(tmp_path: Path, forked_rlrec: Path) -> None:
    """`tests/cli/output/test_terminal.py` watches it there."""
    run = partial(process, folder=tmp_path, program=forked_rlrec)
    words = ["simulate", "bernoulli", "--ephemeral", "--kind", "thompson", "--steps", "3000", "--runs", "20"]
    run("init")
    done = run(*words)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\r" not in done.stdout


# -- options, environment, secrets --


def test_33_options_have_variables_that_help_names(shop: Run) -> None:
    assert "RLREC_<COMMAND>_<OPTION>" in EPILOG
    assert shop("recommend", "--session", "n1", "--json", env={"RLREC_RECOMMEND_POLICY": "home"}).exit_code == 0
    assert "RLREC_DB" in shop("--help").stdout
    assert "RLREC_DB" in shop("help", "environment").stdout


@pytest.mark.slow
def test_34_a_password_is_never_printed(tmp_path: Path, forked_rlrec: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # nobody listens there, and nobody else can
        urls = [f"postgresql://u:s3cret@127.0.0.1:{port}/x", f"postgresql://127.0.0.1:{port}/x?user=u&password=s3cret"]
        for url in urls:
            for debug in ([], ["--debug"]):
                done = process("--db", url, *debug, "arm", "list", folder=tmp_path, program=forked_rlrec)
                assert done.returncode == 4
                assert b"s3cret" not in done.stdout + done.stderr
        words, env = ("--db", urls[1].partition("?")[0], "arm", "list"), {"PGPASSWORD": "s3cret"}
        done = process(*words, folder=tmp_path, env=env, program=forked_rlrec)
        assert (done.returncode, b"s3cret" in done.stderr) == (4, False)


def test_36_an_option_has_one_meaning_and_a_long_name(shop: Run) -> None:
    short: dict[str, set[str]] = {}
    for path, command in COMMANDS.items():
        for option in options(command):
            for name in option.opts:
                if not name.startswith("--"):
                    short.setdefault(name, set()).add(max(option.opts, key=len))
                    assert len(option.opts) > 1, path
    assert {name: long for name, long in short.items() if len(long) > 1} == {}


# options that take values of another sort in another command, where design.md names them
SEVERAL = {
    "--by": "each command has groups of its own",
    "--features": "those of an arm; how a kind reads them",
    "--group": "lines of a transaction; the groups of an arm",
    "--guard": "of a reward, for gates; of a metric, for experiments",
    "--layout": "of imports, and of exports",
    "--param": "of `sweep` for a kind, with several values",
    "--position": "a slot of `feedback`; elsewhere a position curve",
    "--steps": "decisions of a session; shares of a ramp",
    "--weights": "of events; of variants",
}


def test_36_a_long_option_takes_values_of_one_sort() -> None:
    sorts: dict[str, set[Any]] = {}
    for command in COMMANDS.values():
        for option in options(command):
            kind = tuple(option.type.choices) if isinstance(option.type, click.Choice) else option.type.name
            named = "name" if kind in ("text", "name", "key") else kind
            sorts.setdefault(max(option.opts, key=len), set()).add((named, option.is_flag, option.nargs))
    assert {name for name, several in sorts.items() if len(several) > 1} == SEVERAL.keys()


def test_36_ids_may_begin_with_a_dash(shop: Run) -> None:
    words = ["--policy", "home", "--session", "-s", "--user=-u", "--request-id", "--", "--arms=-dash"]
    answer = shop("recommend", *words, "--json").json
    assert (answer["session"], answer["request_id"], answer["slate"][0]["arm"]) == ("-s", "--", "-dash")
    assert shop("feedback", answer["decision_id"], "--key=-k", "--", "click=2").exit_code == 0
    assert shop("session", "show", "--json", "--", "-s").json["session"] == "-s"
    assert shop("arm", "retire", "--", "-dash").exit_code == 0


# -- pipes, signals, clocks, locales --


@pytest.mark.slow
def test_38_ctrl_c_ends_long_work_at_once(tmp_path: Path, forked_rlrec: Path) -> None:
    """By its own work: a machine that is busy with other work may answer late. Training has its lease by then."""
    run = partial(process, folder=tmp_path, program=forked_rlrec)
    at = ["--now", "2026-01-01"]
    run(*at, "init")
    run(*at, "policy", "create", "u", "--kind", "uniform")
    run(*at, "policy", "create", "pg", "--kind", "gradient")
    served = ["simulate", "barista", "--policy", "u", "--sessions", "400", "--group", "100", "--seed", "1"]
    assert run(*at, *served).returncode == 0
    words = ["--now", "2026-02-01", "train-pg", "pg", "--epochs", "10000", "--batch", "1", "--patience", "10000"]
    before = cpu_of_children()
    child = subprocess.Popen(
        [sys.executable, "-m", "rlrec", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )  # fmt: skip
    with child as working:
        while not _leases(tmp_path / "rlrec.db"):
            assert working.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        worked = time.clock_gettime(~working.pid << 3 | 2)  # seconds of CPU of that process
        working.send_signal(signal.SIGINT)
        _, written = working.communicate(timeout=PATIENCE_S)
    assert (working.returncode, written.splitlines()[-1]) == (130, b"Error: interrupted.")  # below its epochs
    assert b"Traceback" not in written
    assert cpu_of_children() - before - worked <= 1
    assert _leases(tmp_path / "rlrec.db") == 0
    assert run("--now", "2027-01-01", "doctor").returncode == 0
    assert run("policy", "versions", "pg", "--format", "csv").stdout.count(b"\n") == 2


def _leases(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM lease").fetchone()[0])


@pytest.mark.slow
def test_39_a_server_that_does_not_answer_is_given_up(tmp_path: Path, forked_rlrec: Path) -> None:
    """The time that a server takes to refuse is that of the start of a process, however busy the machine is."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        url = f"postgresql://u@127.0.0.1:{mute.getsockname()[1]}/x"
        began = time.monotonic()
        assert process("--db", url, "arm", "list", "--json", folder=tmp_path, program=forked_rlrec).returncode == 4
        refused = time.monotonic()
        mute.listen()
        done = process("--db", url, "arm", "list", "--json", folder=tmp_path, program=forked_rlrec)
        took = time.monotonic() - refused
    assert took <= 30 + 10 * (refused - began)
    error = json.loads(done.stderr)
    assert (done.returncode, error["code"]) == (4, 4)
    assert error["hint"]


@pytest.mark.slow
def test_40_times_are_utc_whatever_the_time_zone(tmp_path: Path, forked_rlrec: Path) -> None:
    run = partial(process, folder=tmp_path, program=forked_rlrec)
    run("--now", "2026-01-01T12:00:00+02:00", "init")
    run("--now", "2026-01-01T12:00:00+02:00", "arm", "add", "a")
    run("--now", "2026-01-01T12:00:00", "policy", "create", "p", "--kind", "uniform")
    answers = {
        run("--now", "2026-01-02", "policy", "versions", "p", "--json", env={"TZ": zone}).stdout
        for zone in ("UTC", "Asia/Tokyo", "America/New_York")
    }
    assert len(answers) == 1
    assert b'"2026-01-01T12:00:00.000000Z"' in answers.pop()


@pytest.mark.slow
def test_41_numbers_have_full_precision_in_every_locale(shop: Run, sqlite_db: str, tmp_path: Path) -> None:
    answers = {
        process("--db", sqlite_db, "policy", "show", "home", "--json", folder=tmp_path, env={"LC_ALL": name}).stdout
        for name in ("C", "de_DE.UTF-8")
    }
    assert len(answers) == 1
    assert re.search(rb"0\.\d{15}", answers.pop())


@pytest.mark.slow
def test_42_text_is_utf8_in_every_locale(shop: Run, sqlite_db: str, tmp_path: Path) -> None:
    narrow = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for form in ("table", "json", "csv"):
        done = process("--db", sqlite_db, "arm", "list", "--format", form, folder=tmp_path, env=narrow)
        assert (done.returncode, "crème".encode() in done.stdout) == (0, True)
    assert process("é", folder=tmp_path, env=narrow).stderr.startswith("Error: no such command 'é'.".encode())


def test_43_the_same_seed_gives_the_same_bytes(shop: Run) -> None:
    random = {"recommend", "simulate", "train-pg", "evaluate", "pipe", "demo"}
    seeded = {
        path.split()[1] for path, command in COMMANDS.items() if any("--seed" in o.opts for o in options(command))
    }
    assert random <= seeded
    words = ["--now", "2026-01-02", "recommend", "--policy", "home", "--session", "z", "--dry-run", "--json"]
    answers = [shop(*words, "--seed", seed).stdout for seed in (5, 5, 6)]
    assert answers[0] == answers[1]
    studies = [shop("simulate", "bernoulli", "--ephemeral", "--kind", "ucb", "--seed", 3, "--json") for _ in range(2)]
    assert studies[0] == studies[1]


def test_44_rows_and_keys_have_a_stable_order(shop: Run) -> None:
    for words in (["arm", "list"], ["policy", "show", "home"], ["evaluate", "uniform", "home"], ["session", "list"]):
        assert shop(*words, "--json") == shop(*words, "--json")
    answers = [shop("recommend", "--policy", "home", "--session", f"n{n}", "--json").json for n in range(2)]
    assert [*answers[0]] == [*answers[1]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["with space.db", "crème.db", "sub/../up.db"])
def test_45_a_store_may_lie_anywhere(tmp_path: Path, forked_rlrec: Path, name: str) -> None:
    run = partial(process, folder=tmp_path, program=forked_rlrec)
    (tmp_path / "sub").mkdir()
    assert run("--db", name, "init").returncode == 0
    assert (tmp_path / name).exists()
    (tmp_path / "link.db").symlink_to(tmp_path / name)
    assert run("--db", "link.db", "arm", "add", "a").returncode == 0
    assert run("--db", f"sqlite:///{tmp_path}/link.db", "arm", "list", "--json").stdout != b"[]\n"


@pytest.mark.slow
def test_46_the_shell_completes_names_of_the_store(shop: Run, sqlite_db: str, tmp_path: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert process(folder=tmp_path, env={"_RLREC_COMPLETE": f"{shell}_source"}).stdout
    words = {"COMP_WORDS": f"rlrec --db {sqlite_db} arm retire mat", "COMP_CWORD": "5"}
    assert process(folder=tmp_path, env={"_RLREC_COMPLETE": "bash_complete", **words}).stdout == b"plain,matcha\n"


def test_48_what_to_do_next_is_said_on_stderr(run_sqlite: Run, tmp_path: Path) -> None:
    words = ["policy", "create", "p", "--kind", "uniform"]
    assert "recommend --policy p" in run_sqlite(*words).stderr
    assert run_sqlite("-q", *words).stderr == ""
    assert "arm add" in run_sqlite("--db", tmp_path / "new.db", "init").stderr


@pytest.mark.slow
def test_50_nothing_uses_the_network(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "def look(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.bind'):\n"
        "        raise SystemExit(f'uses the network: {event} {arguments}')\n"
        "sys.addaudithook(look)\n"
        "from rlrec.cli import main\n"
        "for line in sys.argv[1:]:\n"
        "    sys.argv[1:] = line.split()\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        if end.code:\n"
        "            raise\n"
    )
    lines = (
        "init", "arm add a", "policy create p --kind thompson", "recommend --policy p --session s", "feedback 1 click",
        "doctor", "--now +1h evaluate uniform",
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script, *lines], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 decision on" in done.stdout


def test_53_a_check_is_an_exit_code(shop: Run, sqlite_db: str, tmp_path: Path) -> None:
    assert shop("doctor").exit_code == 0
    assert shop("--now", "2026-01-02", "status").exit_code == 0
    with closing(sqlite3.connect(sqlite_db)) as connection, connection:
        connection.execute("UPDATE slot SET propensity = 0.9 WHERE decision_id = 1")
    assert (shop("doctor").exit_code, shop("status").exit_code) == (3, 3)
    assert shop("init", "--check").exit_code == 0
    assert shop("--db", tmp_path / "none.db", "init", "--check").exit_code == 3
