"""Every shell block of the README runs, in order, in one folder; its commands are those that exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlrec.cli import COMMANDS
from tests.conftest import Run

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)


@pytest.mark.slow
def test_every_block_of_the_readme_runs(tmp_path: Path) -> None:
    rlrec = f'rlrec() {{ {shlex.quote(sys.executable)} -m rlrec "$@"; }}\nset -e\n'
    script = rlrec + "\n".join(BLOCK.findall(README)).replace("python3", shlex.quote(sys.executable))
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("Error")) == (0, 0), done.stderr
    assert '"duplicate": true' in done.stdout
    assert "look into it" not in done.stdout


def test_the_table_of_commands_is_complete() -> None:
    table = README.split("## Commands")[1].split("##")[0]
    assert [name for name in COMMANDS if f"`{name}" not in table] == []


# -- what it says of its examples --


def simulations(audience: str) -> list[list[str]]:
    """The words of its commands `simulate AUDIENCE` that need no store."""
    lines = "\n".join(BLOCK.findall(README)).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"rlrec simulate {audience} --ephemeral")]


@pytest.mark.slow
def test_a_policy_that_forgets_has_less_regret_where_rewards_drift(run_sqlite: Run) -> None:
    plain, window = (run_sqlite(*words, "--json").json["regret"] for words in simulations("drift"))
    assert 2 * window < plain


@pytest.mark.slow
def test_a_bandit_earns_less_in_a_visit_than_the_best_policy_without_context(run_sqlite: Run) -> None:
    (words,) = simulations("barista")
    figures = run_sqlite(*words, "--json").json
    assert figures["reward_per_session"] < 0.8 * figures["context_free_per_session"]


def test_what_cron_writes_lies_at_absolute_paths() -> None:
    lines = [line for line in README.splitlines() if re.match(r" +\d+ \d+ \* \* \*", line)]
    written = [path for line in lines for path in re.findall(r">+ *(\S+)", line)]
    assert len(written) > 3
    assert [path for path in written if not path.startswith("/")] == []


def third_party(module: str, read: set[str]) -> Iterator[str]:
    """The packages that a module of the tests imports, by itself or through other modules of the tests."""
    path = ROOT / (module.replace(".", "/") + ".py")
    if module in read or not path.is_file():
        return
    read.add(module)
    tree = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names]
    for name in [*names, *(node.module or "" for node in tree if isinstance(node, ast.ImportFrom))]:
        if name.startswith("tests."):
            yield from third_party(name, read)
        elif name.partition(".")[0] not in {*sys.stdlib_module_names, "rlrec", "tests"}:
            yield name.partition(".")[0]


def test_the_extra_of_the_benchmarks_has_all_that_they_import() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["bench"]]
    installed = {re.split(r"[\[><=]", name)[0].replace("-", "_") for name in wanted}
    folder = ROOT / "tests" / "benchmarks"
    read = {"tests.conftest"}  # fixtures, which benchmarks do not use
    modules = [f"tests.benchmarks.{path.stem}" for path in folder.glob("*.py") if not path.stem.startswith("test_")]
    assert {name for module in modules for name in third_party(module, read)} - installed == set()


def test_sample_data_is_copied_from_the_package(run_sqlite: Run, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    assert len(run_sqlite("demo", "--data", folder, "--json").json) >= 4
    assert run_sqlite("demo", "--data", folder).exit_code == 0  # the same files again are fine
    assert (folder / "random_all.csv.gz").read_bytes() == (ROOT / "sample_data" / "random_all.csv.gz").read_bytes()
    (folder / "README.md").write_text("mine", encoding="utf-8")
    said = run_sqlite("demo", "--data", folder)
    assert (said.exit_code, (folder / "README.md").read_text(encoding="utf-8")) == (2, "mine")
