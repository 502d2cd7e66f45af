"""The shell completes names from the store, and those that the program knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from rlrec.cli import program
from tests.cli.commands.requests.test_pipe import stocked
from tests.conftest import runner

POLICIES = ["home", "other", "home@test/a", "other@test/b"]
POLICIES += [f"{name}@1" for name in POLICIES]


@pytest.fixture
def shop(db: str, monkeypatch: pytest.MonkeyPatch) -> str:
    run = runner(db)
    stocked(run)
    run("policy", "create", "other", "--kind", "uniform")
    run("route", "create", "front", "--to", "home")
    run("experiment", "create", "test", "--variant", "a=home", "--variant", "b=other")
    monkeypatch.setenv("_RLREC_COMPLETE", "bash_complete")
    return db


def completed(db: str, *words: str) -> list[str]:
    *before, incomplete = words
    shell = ShellComplete(program, {}, "rlrec", "_RLREC_COMPLETE")
    return [item.value for item in shell.get_completions(["--db", db, *before], incomplete)]


def test_names_come_from_the_store(shop: str) -> None:
    assert completed(shop, "recommend", "--policy", "") == [*POLICIES, "front"]
    assert completed(shop, "policy", "show", "ho") == POLICIES[::2]
    assert completed(shop, "evaluate", "home", "oth") == POLICIES[1::2]
    assert completed(shop, "recommend", "--arms", "a1,") == ["a1,a1", "a1,a2"]
    assert completed(shop, "arm", "retire", "a1", "a") == ["a1", "a2"]
    assert completed(shop, "recommend", "--experiment", "") == ["test"]
    assert completed(shop, "experiment", "show", "t") == ["test"]
    assert completed(shop, "route", "set", "front", "--to", "h") == POLICIES[::2]
    assert completed(shop, "policy", "shadow", "f") == ["front"]
    assert completed(shop, "evaluate", "--reward", "") == ["default"]
    assert completed(shop, "policy", "create", "h") == []
    assert completed(shop, "feedback", "1", "cl") == ["click"]
    assert completed(shop, "feedback", "--user", "u1", "--arm", "a") == ["a1", "a2"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("policy", "create", "x", "--kind", "tho"), "thompson"),
        (("evaluate", "home", "--estimator", "ips,sni"), "ips,snips"),
        (("simulate", "bern"), "bernoulli"),
        (("recom",), "recommend"),
    ],
)
def test_names_of_the_program_need_no_store(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], name: str
) -> None:
    monkeypatch.setenv("_RLREC_COMPLETE", "bash_complete")
    folder = tmp_path_factory.mktemp("none")
    assert completed(str(folder / "none.db"), *words) == [name]
    assert completed(str(folder / "none.db"), "recommend", "--policy", "") == []
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_shell_is_answered(shop: str) -> None:
    words = f"rlrec recommend --db {shop} --policy o"
    env = {"_RLREC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "5", "PATH": ""}
    done = subprocess.run([sys.executable, "-m", "rlrec"], env=env, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("plain,other\nplain,other@test/b\nplain,other@1\nplain,other@test/b@1\n", "")


@pytest.mark.slow
def test_a_broken_file_of_defaults_writes_nothing_into_the_line(tmp_path: Path) -> None:
    (tmp_path / "rlrec.toml").write_text("db = ")
    env = {"_RLREC_COMPLETE": "bash_complete", "COMP_WORDS": "rlrec policy show ", "COMP_CWORD": "3", "PATH": ""}
    command = [sys.executable, "-m", "rlrec"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
