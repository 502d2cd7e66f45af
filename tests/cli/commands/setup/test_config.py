"""rlrec.toml gives options their defaults, and config show says where each value comes from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlrec.cli import program
from tests.cli.commands.requests.test_pipe import stocked
from tests.conftest import CommandResult, Run, jsonl


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "rlrec").mkdir(parents=True)
    return tmp_path


def rlrec(*args: object, env: dict[str, str] | None = None) -> CommandResult:
    result = CliRunner().invoke(program, [*map(str, args)], env=env, prog_name="rlrec")
    return CommandResult(result.exit_code, result.stdout, result.stderr)


def values(result: CommandResult) -> dict[str, tuple[Any, str]]:
    return {row["option"]: (row["value"], row["source"]) for row in result.json}


def test_each_value_has_its_source(folder: Path) -> None:
    (folder / "rlrec.toml").write_text('db = "near.db"\n[recommend]\nk = 3\ncontext = {hour = 9}\n')
    (folder / "home/rlrec/rlrec.toml").write_text(
        'db = "far.db"\nquiet = true\nformat = "json"\n[recommend]\nk = 2\nuser = "u"\n[policy.create]\nreward = "r"\n'
    )
    env = {"RLREC_RECOMMEND_SEED": "7", "RLREC_ALLOW_FUTURE": "1", "RLREC_TZ": "Europe/Berlin"}
    far = str(folder / "home/rlrec/rlrec.toml")
    shown = rlrec("config", "show", "--now", "2026-01-01", env=env)
    assert values(shown) == {
        "db": ("near.db", "rlrec.toml"),
        "now": ("2026-01-01T00:00:00.000000Z", "--now"),
        "tz": ("Europe/Berlin", "RLREC_TZ"),
        "allow-future": (True, "RLREC_ALLOW_FUTURE"),
        "read-db": (None, "default"),
        "lock-timeout": (None, "default"),
        "statement-timeout": (None, "default"),
        "reconnect": (None, "default"),
        "debug": (False, "default"),
        "quiet": (True, far),
        "no-color": (False, "default"),
        "format": ("json", far),
        "recommend.size": ("3", "rlrec.toml"),
        "recommend.context": ('{"hour": 9}', "rlrec.toml"),
        "recommend.user": ("u", far),
        "recommend.seed": ("7", "RLREC_RECOMMEND_SEED"),
        "policy.create.reward": ("r", far),
    }
    assert all(list(row) == ["option", "value", "source"] for row in shown.json)


def test_variables_that_set_nothing_are_named(folder: Path) -> None:
    env = {"RLREC_RECOMMEND_POLICI": "home", "RLREC_RECOMMEND_K": "2", "RLREC_RECOMMEND_FORMAT": "json"}
    shown = rlrec("config", "show", env=env | {"RLREC_QQ": "1", "RLREC_TZ": "UTC", "RLREC_FORMAT": "csv"}).stderr
    unknown, mistyped = shown.splitlines()
    assert "RLREC_RECOMMEND_POLICI sets no option: did you mean RLREC_RECOMMEND_POLICY" in mistyped
    assert unknown == "RLREC_QQ sets no option: `rlrec help environment` says what does"


def test_without_a_file_all_is_default(folder: Path) -> None:
    shown = values(rlrec("config", "show", "--json"))
    assert {source for _, source in shown.values()} == {"default"}
    assert (shown["db"][0], shown["format"][0]) == ("rlrec.db", "table")


def test_the_nearer_wins(folder: Path, run_sqlite: Run, sqlite_db: str) -> None:
    stocked(run_sqlite)
    config = (
        f'db = "{sqlite_db}"\nformat = "json"\n[recommend]\npolicy = "home"\nk = 2\n[policy.show]\nformat = "csv"\n'
    )
    (folder / "rlrec.toml").write_text(config)
    options = ("recommend", "--session", "s", "--dry-run")
    assert len(rlrec(*options).json["slate"]) == 2
    assert len(rlrec(*options, "-k", 1, env={"RLREC_RECOMMEND_K": "2"}).json["slate"]) == 1
    assert len(rlrec(*options, env={"RLREC_RECOMMEND_K": "1"}).json["slate"]) == 1
    assert len(rlrec(*options, "--size", 1, env={"RLREC_RECOMMEND_SIZE": "2"}).json["slate"]) == 1
    assert len(rlrec(*options, env={"RLREC_RECOMMEND_SIZE": "1"}).json["slate"]) == 1
    assert rlrec("policy", "show", "home").stdout.startswith("arm,")
    assert "[default: 2; x>=1]" in " ".join(rlrec("recommend", "--help").stdout.split())
    (folder / "in").write_text(jsonl([{"policy": "home", "session": "s"}]))
    assert rlrec("recommend", "--input", "in").exit_code == 0  # a default is no contradiction


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("dbb = 1", "Error: rlrec.toml: unknown key dbb. did you mean db?\n"),
        ("[recomend]\nk = 1", "Error: rlrec.toml: unknown key recomend. did you mean recommend?\n"),
        ("[policy]\nname = 1", "Error: rlrec.toml: unknown key policy.name. see `rlrec --help`\n"),
        ("[policy.show]\ncontxt = '{}'", "Error: rlrec.toml: unknown key policy.show.contxt. did you mean context?\n"),
        ("db = ", "Error: rlrec.toml: not TOML: Invalid value (at end of document).\n"),
        ("db = ['a', 'b']", "Error: rlrec.toml: db takes one value, and is given a list.\n"),
        ("[db.forget]\nyes = true", "Error: rlrec.toml: unknown key db.forget.yes. see `rlrec --help`\n"),
        (f"a = {'[' * 5000}{']' * 5000}", "Error: rlrec.toml: tables or lists are nested too deep.\n"),
        (f"a{'.a' * 3000} = 1", "Error: rlrec.toml: tables or lists are nested too deep.\n"),
        ('db = "a\\u0000b"', "Error: the database URL or path holds a NUL. give another path with --db\n"),
        ("now = 'noon'", None),
    ],
)
def test_what_is_wrong_is_named(folder: Path, text: str, line: str | None) -> None:
    (folder / "rlrec.toml").write_text(text)
    reported = rlrec("policy", "list")
    assert (reported.exit_code, reported.stdout) == (2, "")
    assert reported.stderr == line or (line is None and "(from rlrec.toml)" in reported.stderr)


@pytest.mark.parametrize("text", ["db = ", "dbb = 1"])
def test_help_does_not_need_the_file(folder: Path, text: str) -> None:
    (folder / "rlrec.toml").write_text(text)
    for words in (["--help"], ["recommend", "-h"], ["policy", "create", "--help"], ["help", "cron"], ["--version"]):
        assert (rlrec(*words).exit_code, rlrec(*words).stderr) == (0, "")
    for words in (["feedback", "1", "--key", "-h"], ["recommend", "--nonsense"], ["arm", "add", "--", "-h"]):
        assert rlrec(*words).stderr.startswith("Error: rlrec.toml: ")


def test_only_a_plain_file_is_read(folder: Path) -> None:
    os.mkfifo(folder / "rlrec.toml")
    reported = rlrec("policy", "list")
    assert (reported.exit_code, reported.stderr) == (2, "Error: rlrec.toml: not a plain file.\n")


FOREIGN = 65_534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give files away")


def exit_code_as(uid: int, *words: str, sudo_uid: int | None = None) -> int:
    """The exit code of a command in a process of another user."""
    environment = {"SUDO_UID": None if sudo_uid is None else str(sudo_uid)}
    rlrec(*words, env=environment)  # loads what that user may not be able to
    if (child := os.fork()) == 0:
        try:
            os.setuid(uid)
            os._exit(rlrec(*words, env=environment).exit_code)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@AS_ROOT
def test_a_file_of_another_user_is_refused_in_one_line(folder: Path) -> None:
    (folder / "rlrec.toml").write_text('db = "postgresql://db.example.net/theirs"\n')
    os.chown(folder / "rlrec.toml", FOREIGN, FOREIGN)
    refused = rlrec("policy", "list")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "rlrec.toml: it belongs to user 65534, and could send your password to a server of theirs" in refused.stderr
    assert "chown 0 rlrec.toml" in refused.stderr
    assert rlrec("policy", "list", "--help").exit_code == 0


@AS_ROOT
@pytest.mark.parametrize(
    ("owner", "uid", "sudo_uid", "code"),
    [
        (0, FOREIGN, None, 0),
        (FOREIGN, FOREIGN, None, 0),
        (FOREIGN, 0, FOREIGN, 0),
        (1_234, 0, FOREIGN, 2),
        (1_234, FOREIGN, None, 2),
        (1_234, FOREIGN, 1_234, 2),  # who is not root can set SUDO_UID to anything
    ],
)
def test_files_of_the_user_of_root_and_of_who_calls_sudo_are_taken(
    folder: Path, owner: int, uid: int, sudo_uid: int | None, code: int
) -> None:
    (folder / "rlrec.toml").write_text('format = "json"\n')
    os.chown(folder / "rlrec.toml", owner, owner)
    os.chown(folder, uid, uid)
    assert exit_code_as(uid, "config", "show", sudo_uid=sudo_uid) == code


def test_an_option_that_is_repeated_takes_one_value_too(folder: Path, run_sqlite: Run) -> None:
    (folder / "rlrec.toml").write_text('[policy.create]\nparam = "floor=0.25"\n')
    assert run_sqlite("policy", "create", "home", "--kind", "thompson", "--json").json["params"]["floor"] == 0.25


def test_passwords_are_not_shown(folder: Path) -> None:
    (folder / "rlrec.toml").write_text('db = "postgresql://u:s3cret@h/db"')
    assert values(rlrec("config", "show", "--json"))["db"] == ("postgresql://u:***@h/db", "rlrec.toml")
