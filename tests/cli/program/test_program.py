"""The program around its commands: help, errors, exit codes, environment, and a terminal's rough ways."""

import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from rlrec import __version__, cli
from rlrec.cli.commands import COMMANDS
from rlrec.cli.commands.setup import help as manual
from rlrec.cli.program.files import Lines, lines_input, refusal_options
from rlrec.cli.program.shared import CommandGroup, current_settings, input_option, notice, takes_output, takes_store
from rlrec.cli.text import lines as reading
from rlrec.cli.text import values
from rlrec.cli.text.values import TIME, Integer
from rlrec.errors import CheckFailed, Conflict, InputError, StoreBusy
from rlrec.store import Store
from tests.conftest import PATIENCE_S, Run


class Row(msgspec.Struct, forbid_unknown_fields=True):
    n: int


@click.command()
@click.option("-k", "size", type=Integer(), default=1, help="How many.")
@click.option("--at", type=TIME)
@takes_output()
def echo(show: Any, size: int, at: str) -> None:
    """Say it back."""
    show({"size": size, "at": at, "word": "é"})


@click.command()
@takes_output()
def many(show: Any) -> None:
    """A long list."""
    show({"n": n} for n in range(100_000))


@click.command()
@click.argument("how")
@takes_output()
def fail(show: Any, how: Any) -> None:
    """Go wrong."""
    raise {
        "input": InputError("no arm 'b'", hint="did you mean a?", field="events.b", line=3),
        "check": CheckFailed("no store at x.db", hint="run rlrec init"),
        "busy": StoreBusy("cannot reach postgresql://u:s3cret@h/db"),
        "conflict": Conflict("other content"),
        "bug": ValueError("odd\nvalue s3cret"),
        "disk": OSError(28, "No space left on device"),
        "ctrl-c": KeyboardInterrupt(),
        "pipe": BrokenPipeError(32, "Broken pipe"),
    }[how]


@click.command()
@takes_store()
def peek(store: Store, show: Any) -> None:
    """Look into the store."""
    notice("a line for a person")
    show({"store": store, "clock": current_settings().now})


@click.command()
@takes_output()
@lines_input
def load(lines: Lines | None, show: Any) -> None:
    """Read lines."""
    if lines is None:
        raise InputError("nothing to read")
    retained = []
    for group in lines.groups(Row):
        for number, row in group:
            if row.n < 0:
                lines.refuse(InputError("n is negative", field="n", line=number))
            else:
                retained.append(row.n)
    show({"kept": retained, "rejected": lines.refusals.count})


@click.command()
@takes_output()
@input_option
def answer(source: Any, show: Any) -> None:
    """Answer lines."""
    show.stream([{"line": number} for number, _ in group] for group in reading.groups(source))


@click.group(cls=CommandGroup)
def thing() -> None:
    """Things."""


@thing.command()
@click.option("--some-size", "n", default=1)
@takes_output()
def add(show: Any, n: int) -> None:
    """Add a thing."""
    show({"n": n})


PROBES = [echo, many, fail, peek, load, answer, thing]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program with the commands above: arguments in, the finished command out."""
    probes = {command.name: command for command in PROBES}
    monkeypatch.setattr(cli, "COMMANDS", {name: ("", probe.get_short_help_str(200)) for name, probe in probes.items()})
    monkeypatch.setattr(cli, "load_command", probes.__getitem__)

    def invoke(*args: Any, stdin: Any = None, **env: Any) -> Any:
        runner = CliRunner(env={"RLREC_DB": None, **env})
        return runner.invoke(cli.program, args, input=stdin)

    return invoke


SCRIPT = """
from tests.cli.program.test_program import PROBES, cli
probes = {command.name: command for command in PROBES}
cli.COMMANDS.update(dict.fromkeys(probes, ("", "")))
cli.load_command = probes.__getitem__
cli.main()
"""


def process(*args: Any, env: Any = (), stdin: Any = None, stdout: Any = subprocess.PIPE) -> Any:
    """A real process of the program, with the commands above."""
    command = [sys.executable, "-c", SCRIPT, *args]
    return subprocess.Popen(
        command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **dict(env)}
    )


# -- help --


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says_of_itself(name: str) -> None:
    command = cli.program.get_command(click.Context(cli.program), name)
    assert command.name == name
    assert command.get_short_help_str(200).rstrip(".") == COMMANDS[name][1]


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command, and all those inside it, with the words that call them."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, (*path, name))


def headings(command: click.Command) -> list[str | None]:
    """The heading of each option that the help of a command shows, in their order."""
    return [getattr(p, "heading", None) for p in command.params if isinstance(p, click.Option) and not p.hidden]


@pytest.mark.slow
def test_help_fits_on_a_screen() -> None:
    runner = CliRunner(env={"COLUMNS": "80"})
    results = {path: runner.invoke(cli.program, [*path, "-h"]) for path, _ in commands(cli.program)}
    assert {(result.exit_code, result.stderr, result.stdout[:12]) for result in results.values()} == {
        (0, "", "Usage: rlrec")
    }
    heights = {path: len(result.stdout.splitlines()) for path, result in results.items()}
    assert {path: height for path, height in heights.items() if height > 60} == {}


@pytest.mark.parametrize(("words", "option"), [(["feedback"], "--user KEY"), (["arm", "retire"], "--dry-run")])
def test_options_of_the_output_come_last(words: list[str], option: str) -> None:
    options, output = CliRunner().invoke(cli.program, [*words, "-h"]).stdout.split("\nOutput:\n")
    assert option in options
    assert option not in output


@pytest.mark.slow
def test_where_options_have_groups_each_is_in_one() -> None:
    headings_by_path = {path: headings(command) for path, command in commands(cli.program)}
    grouped = {path: names for path, names in headings_by_path.items() if set(names) - {"How", "Output", None}}
    assert {("evaluate",), ("train-pg",), ("outcomes",), ("import-log",), ("simulate",)} <= grouped.keys()
    assert [path for path, names in grouped.items() if None in names] == []


@pytest.mark.slow
def test_short_help_names_the_page_of_its_command() -> None:
    pages = {page.topic for page in manual.manual_pages()} & COMMANDS.keys()
    for name in pages:
        command = cli.program.get_command(click.Context(cli.program), name)
        assert command is not None
        assert (command.epilog or "").startswith(f"`rlrec help {name}` explains")


def test_help_of_the_program_imports_no_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "COMMANDS", {"ghost": ("no_such_room", "Not there")})
    assert "ghost  Not there" in run("--help").stdout


@pytest.mark.parametrize("command", [(), ("thing",)])
def test_a_group_alone_shows_its_help_and_exits_2(run: Run, command: Sequence[str]) -> None:
    result = run(*command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: rlrec")


def test_version(run: Run) -> None:
    result = run("--version", RLREC_VERSION="9")
    assert (result.exit_code, result.stdout) == (0, f"rlrec, version {__version__}\n")


# -- errors --


@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ("input", 2, "Error: line 3, field events.b: no arm 'b'. did you mean a?\n"),
        ("check", 3, "Error: no store at x.db. run rlrec init\n"),
        ("busy", 4, "Error: cannot reach postgresql://u:***@h/db.\n"),
        ("conflict", 6, "Error: other content.\n"),
        ("disk", 1, "Error: cannot write the output: No space left on device.\n"),
        ("ctrl-c", 130, "Error: interrupted.\n"),
        ("pipe", 141, ""),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(run: Run, how: Any, code: Any, line: Any) -> None:
    result = run("fail", how)
    assert (result.exit_code, result.stderr, result.stdout) == (code, line, "")


def test_the_unexpected_is_one_line_without_a_traceback(run: Run) -> None:
    result = run("--db", "postgresql://u:s3cret@h/db", "fail", "bug")
    line = (
        r"Error: unexpected ValueError: odd\nvalue ***. `rlrec doctor` says whether the store is damaged, "
        "--debug shows the traceback"
    )
    assert (result.exit_code, result.stderr) == (1, line + "\n")


def test_debug_shows_the_traceback_without_the_password(run: Run) -> None:
    result = run("--debug", "--db", "postgresql://u:s3cret@h/db", "fail", "bug")
    assert "Traceback" in result.stderr
    assert "s3cret" not in result.stderr


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["ehco"], "Error: no such command 'ehco'. did you mean echo?\n"),
        (["ech"], "Error: no such command 'ech'. did you mean echo?\n"),
        (["echo", "--formt", "json"], "Error: no such option --formt. did you mean --format?\n"),
        (["ec"], "Error: no such command 'ec'. did you mean echo?\n"),
        (["echo", "--db", ""], "Error: --db is empty. see rlrec echo --help\n"),
        (["--format", "csv", "echo"], "Error: no such option --format. it goes after the command\n"),
        (["echo", "-k", "x"], "Error: Invalid value for '-k': 'x' is not a whole number. see rlrec echo --help\n"),
        (["--now", "x", "echo"], None),
        (["thing", "ad"], "Error: no such command 'ad'. did you mean add?\n"),
        (["--db", "", "echo"], "Error: --db is empty. see rlrec --help\n"),
        (["echo", "--format", "csv", "--json"], None),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_exit_2(run: Run, args: Any, line: Any) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert line is None or result.stderr == line


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (["fail", "check", "--json"], {}),
        (["fail", "check", "--format", "json"], {}),
        (["fail", "check"], {"RLREC_FAIL_FORMAT": "json"}),
        (["fail", "--json", "--nonsense"], {}),
        (["fail", "--format=json"], {}),
        (["fail", "--nonsense"], {"RLREC_FAIL_FORMAT": "json"}),
        (["no-such-command", "--json"], {}),
        (["fail", "ctrl-c", "--json"], {}),
        (["fail", "bug", "--json"], {}),
    ],
)
def test_with_json_an_error_is_json(run: Run, args: Any, env: Any) -> None:
    result = run(*args, **env)
    reported = json.loads(result.stderr)
    assert list(reported) == ["error", "hint", "code"]
    assert reported["code"] == result.exit_code
    assert result.stdout == ""


# -- options, environment, store --


def test_options_come_from_the_environment_by_the_name_that_is_typed(run: Run) -> None:
    assert json.loads(run("echo", RLREC_ECHO_K="7", RLREC_ECHO_FORMAT="json").stdout)["size"] == 7
    assert json.loads(run("thing", "add", "--json", RLREC_THING_ADD_SOME_SIZE="5").stdout)["n"] == 5


def test_one_variable_is_the_format_of_all_commands(run: Run) -> None:
    assert json.loads(run("echo", RLREC_FORMAT="json").stdout)["size"] == 1
    assert run("echo", RLREC_FORMAT="json", RLREC_ECHO_FORMAT="csv").stdout.startswith("size,at,word")
    assert json.loads(run("fail", "check", RLREC_FORMAT="json").stderr)["code"] == 3
    assert json.loads(run("fail", "--nonsense", RLREC_FORMAT="json").stderr)["code"] == 2
    assert "(from RLREC_FORMAT)" in run("echo", RLREC_FORMAT="yaml").stderr


def test_a_stream_has_one_format(run: Run) -> None:
    stdin = '{"n": 1}\n'
    assert run("answer", "--input", "-", stdin=stdin, RLREC_FORMAT="csv").stdout == '{"line":1}\n'
    assert "not in csv" in run("answer", "--input", "-", "--format", "csv", stdin=stdin).stderr


def test_jsonl_is_ndjson(run: Run) -> None:
    assert run("many", "--format", "jsonl").stdout == run("many", "--format", "ndjson").stdout


def test_the_command_line_beats_the_environment(run: Run) -> None:
    assert run("echo", "--json", "-k", "2", RLREC_ECHO_FORMAT="csv", RLREC_ECHO_K="7").stdout.startswith('{"size": 2')


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Any:
    calls = []

    @contextmanager
    def open_store(db: str, *, now: int, notice: Any, **_: Any) -> Iterator[Any]:
        calls.append((db, now))
        notice(f"opened {db}")
        yield "the store"

    module = types.ModuleType("rlrec.app.opening")
    monkeypatch.setattr(module, "open_store", open_store, raising=False)
    monkeypatch.setitem(sys.modules, "rlrec.app.opening", module)
    return calls


def test_a_command_gets_the_store_of_the_options_before_it(run: Run, opened: Any) -> None:
    result = run("--db", "postgresql://u:s3cret@h/db", "--now", "2026-01-31T12:00:00Z", "peek", "--json")
    assert opened == [("postgresql://u:s3cret@h/db", 1_769_860_800_000_000)]
    assert json.loads(result.stdout) == {"store": "the store", "clock": 1_769_860_800_000_000, "schema_version": 1}
    assert result.stderr == "opened postgresql://u:***@h/db\na line for a person\n"


def test_options_of_the_program_may_stand_behind_the_command(run: Run, opened: Any) -> None:
    result = run(
        "--db", "first.db", "peek", "--json", "--now", "1970-01-01T00:00:01Z", "--db", "x.db", "-q", RLREC_DB="e"
    )
    assert (result.exit_code, result.stderr, opened) == (0, "", [("x.db", 1_000_000)])
    assert run("thing", "--quiet", "add", "--debug").exit_code == 0
    assert "Traceback" in run("fail", "bug", "--debug").stderr
    assert "--quiet" not in run("echo", "--help").stdout
    assert run("echo", RLREC_ECHO_DB="").exit_code == 0  # there is one variable, RLREC_DB


def test_the_store_defaults_to_the_current_folder_and_the_environment(run: Run, opened: Any) -> None:
    run("peek")
    run("peek", RLREC_DB="other.db", RLREC_NOW="1970-01-01T00:00:01Z")
    assert opened == [("rlrec.db", None), ("other.db", 1_000_000)]


def test_quiet_keeps_notices_back(run: Run, opened: Any) -> None:
    assert run("-q", "peek", "--json").stderr == ""


def test_wrong_usage_opens_no_store(run: Run, opened: Any) -> None:
    assert run("peek", "--nonsense").exit_code == 2
    assert run("peek", "--help").exit_code == 0
    assert opened == []


# -- input lines --

LINES = '{"n": 1}\n{"n": "2"}\n{"n": -3}\n{"n": 4}\n'


def test_fail_stops_at_the_first_bad_line(run: Run) -> None:
    result = run("load", "--input", "-", stdin=LINES)
    assert (result.exit_code, result.stdout) == (2, "")
    index = 'Error: <stdin> line 2, field n: expected a whole number, got "2". nothing was stored'
    assert result.stderr.startswith(index)


def test_quarantine_keeps_good_lines_and_says_why_the_others_fell(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(LINES)
    result = run(
        "load", "--json", "--input", f"{tmp_path}/in", "--on-error", "quarantine", "--rejects", f"{tmp_path}/bad"
    )
    rows = [json.loads(line) for line in (tmp_path / "bad").read_text().splitlines()]
    assert result.exit_code == 5
    assert json.loads(result.stdout) == {"kept": [1, 4], "rejected": 2, "schema_version": 1}
    assert json.loads(result.stderr)["error"] == "2 lines refused, the rest is stored"
    assert [(row["line"], row["field"], row["text"]) for row in rows] == [(2, "n", '{"n": "2"}'), (3, "n", '{"n": -3}')]


def test_quarantine_without_bad_lines_is_a_success(run: Run, tmp_path: Path) -> None:
    result = run("load", "--input", "-", "--on-error", "quarantine", "--rejects", f"{tmp_path}/bad", stdin='{"n": 1}')
    assert (result.exit_code, (tmp_path / "bad").read_text()) == (0, "")


@pytest.mark.parametrize("args", [["--on-error", "quarantine"], ["--rejects", "x"], ["--input", "/no/such"], []])
def test_input_options_that_do_not_fit_are_wrong_usage(run: Run, args: Any) -> None:
    assert run("load", *args).exit_code == 2


def test_rejects_are_never_written_over_the_input(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(LINES)
    same = f"{tmp_path}/in"
    assert run("load", "--input", same, "--on-error", "quarantine", "--rejects", same).exit_code == 2
    assert (tmp_path / "in").read_text() == LINES


def test_refusing_alone_hands_over_what_takes_bad_lines(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @refusal_options
    def check(refusals: Any) -> None:
        refusals.reading("log.csv")
        refusals.refuse(InputError("no propensity", line=9), b"a,b")

    monkeypatch.setattr(cli, "COMMANDS", {"check": ("", "Check")})
    monkeypatch.setattr(cli, "load_command", {"check": check}.__getitem__)
    assert run("check").stderr.startswith("Error: log.csv line 9: no propensity. ")


# -- real processes --


@pytest.mark.slow
@pytest.mark.parametrize(("form", "env"), [("ndjson", {"PYTHONUNBUFFERED": "1"}), ("csv", {}), ("json", {})])
def test_a_reader_that_leaves_early_is_no_error(form: Any, env: Any) -> None:
    with process("many", "--format", form, env=env) as child:
        assert child.stdout.readline() != b""
        child.stdout.close()
        assert (child.wait(PATIENCE_S), child.stderr.read()) == (141, b"")


def test_keys_are_utf8_in_any_locale() -> None:
    read = values.KEY.convert("é".encode().decode("ascii", "surrogateescape"), None, None)
    assert read == "é"


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("args", [("echo",), ("--help",), ("many", "--format", "ndjson")])
def test_a_full_disk_is_one_line_and_exit_1(args: Any) -> None:
    with open("/dev/full", "wb") as full, process(*args, stdout=full) as child:
        reported = child.communicate(timeout=PATIENCE_S)[1]
    assert (child.returncode, reported) == (1, b"Error: cannot write the output: No space left on device.\n")


@pytest.mark.slow
def test_a_terminal_as_input_is_told_what_to_do() -> None:
    ours, theirs = os.openpty()
    with process("answer", "--input", "-", stdin=theirs) as child:
        out, err = child.communicate(timeout=PATIENCE_S)
    os.close(ours)
    os.close(theirs)
    assert (child.returncode, out) == (2, b"")
    assert err.startswith(b"Error: no input: stdin is a terminal. pipe ")
