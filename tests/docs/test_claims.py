"""What the README and the pages claim is so: of commands, reasons, examples, and of what they need."""

from __future__ import annotations

import ast
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest

from rlrec import simulate
from rlrec.cli import program
from rlrec.ope.checks.reasons import REASONS
from tests.conftest import Run
from tests.docs.pages import PATHS, ROOT, steps
from tests.docs.test_examples import leaves

TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in PATHS}
CODES = (0, 1, 2, 3, 4, 5, 6, 129, 130, 141, 143)


def test_parameters_of_audiences_are_as_the_page_has_them() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| `([a-z]+)` \| (\S+) \| ([^|]+) \|", TEXTS["simulate"], re.MULTILINE)
    stated = {(audience, name): (default, limits) for audience, name, default, limits in rows}
    for audience in simulate.ENVIRONMENTS:
        for parameter in fields(cast(Any, simulate.load_environment(audience))):
            row = stated.pop((audience, parameter.name), None)
            if row is None:  # as of shop, and rates, which have a row of all
                assert (
                    parameter.name == "rates"
                    or parameter.default == simulate.default_parameters("shop")[parameter.name]
                )
                continue
            if isinstance(parameter.default, int | float):
                assert float(row[0]) == parameter.default
            if "bounds" in parameter.metadata:
                low, high = parameter.metadata["bounds"]
                assert row[1] == (f"{low:g} to {high:.3g}" if high < 1000 else f"{low:g} to {high:.0f}")
    assert not stated


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README"].split()) <= 950


def test_every_page_is_linked_from_the_readme() -> None:
    assert [name for name in TEXTS if name != "README" and f"(rlrec/help/{name}.md)" not in TEXTS["README"]] == []


def test_the_table_of_commands_is_complete() -> None:
    rows = re.findall(r"^\| `(.*?) \| ", TEXTS["commands"], re.MULTILINE)
    named = [{*re.findall(r"[a-z-]+", row)} for row in rows]  # the words of the first cell of each row
    lacking = [path for path, _ in leaves(program, "") if not any({*path.split()} <= words for words in named)]
    assert lacking == []


def test_every_reason_of_a_verdict_is_explained() -> None:
    assert [reason for reason in REASONS if f"`{reason}`" not in TEXTS["judging"]] == []


def test_every_exit_code_is_explained() -> None:
    assert [code for code in CODES if not re.search(rf"^[|\d, ]*\b{code}\b", TEXTS["exit-codes"], re.MULTILINE)] == []


# -- what a page claims of its examples --


def simulations(page: str, audience: str) -> list[list[str]]:
    """The words of its commands `simulate AUDIENCE` that need no store."""
    lines = "".join(step.script for step in steps(TEXTS[page])).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"rlrec simulate {audience} --ephemeral")]


@pytest.mark.slow
def test_a_policy_that_forgets_has_less_regret_where_rewards_drift(run_sqlite: Run) -> None:
    plain, window = (run_sqlite(*words, "--json").json["regret"] for words in simulations("contexts", "drift"))
    assert 2 * window < plain


@pytest.mark.slow
def test_a_bandit_earns_less_in_a_visit_than_the_best_policy_without_context(run_sqlite: Run) -> None:
    (words,) = simulations("visits", "barista")
    figures = run_sqlite(*words, "--json").json
    assert figures["reward_per_session"] < 0.8 * figures["context_free_per_session"]


@pytest.mark.parametrize("page", ["README", "cron"])
def test_what_cron_writes_lies_at_absolute_paths(page: str) -> None:
    lines = [line for line in TEXTS[page].splitlines() if re.match(r" *\d+ \d+ \* \* \*", line)]
    written = [path for line in lines for path in re.findall(r">+ *(\S+)", line)]
    assert len(written) >= 3
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
    installed = {{"scikit_learn": "sklearn"}.get(name, name) for name in installed}
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
    result = run_sqlite("demo", "--data", folder)
    assert (result.exit_code, (folder / "README.md").read_text(encoding="utf-8")) == (2, "mine")
