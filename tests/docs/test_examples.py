"""Every example line of every help text runs on a store such as the examples speak of; in a shell if it needs one."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from rlrec.cli import program
from tests.conftest import PATIENCE_S, runner

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = re.compile(r"^ *Examples?:\n((?: +\S.*\n?)+)", re.MULTILINE)
OF_SHELLS = re.compile(r"[|&;<>$`*]|^(?!rlrec )")
ELSEWHERE = {
    "rlrec demo",  # a minute of its own
    "rlrec log exclude bots --machines",  # needs machines: app/upkeep/test_exclusions.py
    "rlrec serve --listen 127.0.0.1:8080", "rlrec serve --listen unix:rlrec.sock",  # until a signal: cli/test_serve.py
    "rlrec screen", "rlrec screen --listen 127.0.0.1:0", "rlrec status --watch 10s",  # test_screen.py
    "rlrec import-log /var/log/shop/decisions.jsonl --layout jsonl --policy shop --follow",  # test_follow_log.py
    "rlrec db roles > roles.sql && psql shop -f roles.sql",  # needs a client of PostgreSQL: cli/test_db_roles.py
    # need people who come back (app/judging/test_effects.py), and ten stretches of time (judging/test_sweep.py)
    "rlrec reward suggest --reward durable --horizon 3d", "rlrec reward suggest --log policy=home --json",
    "rlrec sweep --kinds thompson,ucb,lin-thompson",
    # need more users: commands/experiments/test_plan.py, app/experiments/test_ending.py
    "rlrec experiment plan --lift 5% --log route=home", "rlrec experiment plan ab --lift 5%",
    "rlrec experiment stop ab --promote b",
    "rlrec sweep --kinds thompson,linucb --param linucb:alpha=0.3,1 --param linucb:floor=0.05 --log policy=home",
}  # fmt: skip

FILES = {  # that examples name
    "map.json": '{"arm": "item", "at": "at", "reward": "clicked"}',
    "log.csv": "item,at,clicked\ntea,2026-01-01T09:00:00Z,1\ncoffee,2026-01-01T09:00:07Z,0\n",
    "clicks.csv": "item,at,clicked\ntea,2026-01-01T09:00:00Z,1\ncoffee,2026-01-01T09:00:07Z,0\n",
    "2026-08-25_00.json": '{"_label_cost": -1, "_label_probability": 1.0, "_label_Action": 1, "_labelIndex": 0, '
    '"Timestamp": "2026-01-01T09:00:00Z", "Version": "1", "EventId": "e1", "a": [1], "p": [1.0], '
    '"c": {"_multi": [{"i": {"id": "soup"}}]}}\n',
}


def leaves(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), name)
            assert inner is not None
            yield from leaves(inner, f"{path} {name}")
    else:
        yield path, command


def examples(text: str | None) -> list[str]:
    return [line.strip() for block in EXAMPLES.findall(text or "") for line in block.splitlines()]


COMMANDS = dict(leaves(program, "rlrec"))
LINES = [line for command in COMMANDS.values() for line in examples(command.help)] + examples(program.epilog)


@pytest.fixture(scope="module")
def prepared(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 2026-01-01 with the names that examples use: arms, policies, versions, decisions, an experiment,
    and visits that have ended."""
    path = tmp_path_factory.mktemp("prepared") / "rlrec.db"
    shutil.copy(sqlite_template, path)
    run = runner(str(path))
    clock = ["--now", "2026-01-01T12:00:00Z"]
    page = '{"policy": "home", "session": "s%d", "user": "u%d", "k": 3}\n'
    steps = [
        ["arm", "import", "-"],
        ["arm", "add", "a1", "--group", "home"],
        ["policy", "create", "home", "--kind", "thompson", "--param", "floor=0.02"],
        ["policy", "create", "other", "--kind", "uniform"],
        ["recommend", "--input", "-"],
        ["feedback", "3", "click", "--position", "2"],
        ["feedback", "--input", "-"],
        ["policy", "freeze", "home"],
        ["policy", "freeze", "other"],
        ["policy", "promote", "home@2"],
        ["policy", "rebuild", "home@1"],
        ["experiment", "create", "ab", "--variant", "a=home", "--variant", "b=other", "--unit", "session"],
        ["route", "create", "front", "--to", "home"],
        ["route", "set", "front", "--to", "other"],
        ["route", "create", "cart", "--to", "other"],
        ["route", "set", "cart", "--to", "home@2", "--share", "5%"],
        ["log", "exclude", "bots", "--where", "user=u20"],
        ["policy", "create", "visits", "--kind", "gradient"],
        ["simulate", "bernoulli", "--policy", "visits", "--sessions", "60", "--steps", "3", "--group", "60",
         "--env", "rates=0.5,0.4,0.3,0.2,0.1", "--seed", "1"],
        *[["--now", "2026-01-01T13:00:00Z", "position", "fit", "home", "--log", "policy=home"]] * 2,
    ]  # fmt: skip
    params = {
        "arm": "".join(f'{{"arm": "a{n}"}}\n' for n in range(1, 6)),
        "recommend": "".join(page % (n, n) for n in range(1, 21)),
        "feedback": "".join(
            f'{{"decision_id": {n}, "position": {position}, "events": {{"click": 1}}}}\n'
            for n in range(1, 21)
            for position in (1, 2, 3)
        ),
    }
    for step in steps:
        result = run(*clock, *step, stdin=params.get(step[0]))
        assert result.exit_code == 0, (step, result.stderr)
    return path


def in_shell(line: str, program: Path) -> tuple[int, str, str]:
    script = f'rlrec() {{ {shlex.quote(str(program))} "$@"; }}\nset -euo pipefail\n{line}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL, timeout=PATIENCE_S)  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def in_process(line: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(program, shlex.split(line)[1:], prog_name="rlrec")
    return done.exit_code, done.stdout, done.stderr


def test_every_command_has_an_example_that_uses_it() -> None:
    lacking = [
        path
        for path, command in COMMANDS.items()
        if not any(path in re.sub(r" --db \S+", "", line) for line in examples(command.help))
    ]
    assert lacking == []
    assert sum(line.count("rlrec ") for line in examples(program.epilog)) >= 2  # commands


@pytest.mark.slow
@pytest.mark.parametrize("line", sorted(set(LINES) - ELSEWHERE))
def test_an_example_runs(
    prepared: Path, tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch, forked_rlrec: Path
) -> None:
    shutil.copy(prepared, tmp_path)
    (tmp_path / "sample_data").symlink_to(ROOT / "sample_data")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = in_shell(line, forked_rlrec) if OF_SHELLS.search(line) else in_process(line)
    assert (code, "Error" in stderr) == (0, False), stderr
    written = {path.name for path in tmp_path.iterdir()} - {
        "rlrec.db",
        "rlrec.db-wal",
        "rlrec.db-shm",
        "sample_data",
        *FILES,
    }
    assert stdout or written
