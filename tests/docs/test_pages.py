"""The README and every page of the manual run as they stand, and print what they show."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from rlrec.cli.commands import COMMANDS
from rlrec.cli.commands.setup import help as manual
from tests.conftest import Run, _create
from tests.docs import pages


@pytest.fixture(scope="module")
def environments() -> Iterator[Callable[..., Path]]:
    """The programs of an environment with the package, what it depends on, and these extras."""
    with ExitStack() as stack:

        @cache
        def programs(*extras: str) -> Path:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rlrec-pages-")))
            return stack.enter_context(pages.installed(folder, *extras))

        yield programs


SECOND_HALVES = {"README": "## Five minutes\n", "visits": "## From a bandit to the long run\n"}
"""The heading of a long page from which on it needs nothing of what stands above: the two are run apart."""
RUNS = [(path, second) for path in pages.PATHS for second in ([False, True] if path.stem in SECOND_HALVES else [False])]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "second"), RUNS, ids=[path.stem + "-below" * second for path, second in RUNS])
def test_a_page_prints_what_it_shows(
    path: Path, second: bool, tmp_path: Path, request: pytest.FixtureRequest, environments: Callable[..., Path]
) -> None:
    page = path.read_text(encoding="utf-8")
    start = page.index(SECOND_HALVES[path.stem]) if path.stem in SECOND_HALVES else len(page)
    text = page[start:] if second else page[:start]
    replaced = {pages.SERVER_FOLDER: str(tmp_path)}
    try:
        environment = environments(*re.findall(r"`pip install '\.\[(\w+)\]'`", page))
    except PackageNotFoundError as missing:  # an extra of the tests may be left out
        pytest.skip(str(missing))
    (tmp_path / ".venv").symlink_to(environment.parent)
    if pages.POSTGRES in text:
        replaced[pages.POSTGRES] = _create(request.getfixturevalue("postgres_server"), "shop")
    printed = pages.run(text, tmp_path, environment, replaced)
    if os.environ.get("PAGES") == "write":
        text = pages.rewritten(text, printed)
        path.write_text(page[:start] + text if second else text + page[start:], encoding="utf-8")
    for step, output in zip(pages.steps(text), printed, strict=True):
        if step.shown:
            shown = text[slice(*step.shown)]
            assert pages.matches(shown, output), f"{step.script}\nprints now\n{output}\nand the page shows\n{shown}"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("at ... UTC\n", "at 12:00 UTC", True),
        ("at ... UTC\n", "at 12:00\nUTC", False),
        ("a\n...\nd\n", "a\nb\nc\nd\n", True),
        ("a\n...\nd\n", "a\nd\n", True),
        ("0.12345678901234\n", "0.12345678901239\n", True),
        ("0.123456\n", "0.123457\n", False),
        ("a\n", "a\nb\n", False),
    ],
)
def test_three_dots_stand_for_what_differs(shown: str, printed: str, same: bool) -> None:
    assert pages.matches(shown, printed) is same


def test_a_block_right_after_another_is_its_output() -> None:
    text = "```sh\nls\n```\n\n```text\na\n```\n\nA picture:\n\n```text\n-->\n```\n\n```python\n# b.py\nprint()\n```\n"
    first, second = pages.steps(text)
    assert (first.script, text[slice(*first.shown or ())]) == ("ls\n", "a\n")
    assert (second.script, second.shown) == ("cat > b.py <<'END_OF_FILE'\n# b.py\nprint()\nEND_OF_FILE\n", None)


# -- the manual --


def test_help_lists_every_page_in_one_line(run_sqlite: Run) -> None:
    topics = [row["topic"] for row in run_sqlite("help", "--json").json]
    assert sorted(topics) == sorted(path.stem for path in manual.MANUAL_FOLDER.glob("*.md"))
    assert topics == [*manual.PAGE_ORDER]
    assert max(map(len, run_sqlite("help").stdout.splitlines())) <= 80


@pytest.mark.parametrize("path", pages.PATHS[1:], ids=lambda path: path.stem)
def test_a_page_begins_with_a_title_and_a_line_about_it(path: Path) -> None:
    title, summary, *_ = path.read_text(encoding="utf-8").split("\n\n")
    assert re.fullmatch("# [A-Z][^\n]*[^.]", title)
    assert re.fullmatch(r"[A-Z][^\n]{20,80}\.", summary)
    assert (path.stem in COMMANDS) == title.startswith("# The command ")


def test_help_shows_a_page_or_a_command(run_sqlite: Run) -> None:
    page = run_sqlite("help", "first-steps")
    assert page.stdout.startswith("# First steps\n")
    assert "```" not in page.stdout
    assert run_sqlite("help", "policy", "create").stdout == run_sqlite("policy", "create", "--help").stdout


def test_a_terminal_gets_prose_that_fits() -> None:
    for page in manual.manual_pages():
        lines = manual.plain_text(page.text, 72).splitlines()
        assert [line for line in lines if len(line) > 72 and not line.startswith("    ")] == []


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_the_pages_are_one_for_man(run_sqlite: Run) -> None:
    page = run_sqlite("help", "--man").stdout
    done = subprocess.run(["groff", "-man", "-ww", "-Tutf8"], input=page.encode(), capture_output=True, check=True)
    assert done.stderr == b""
    titles = [text.text.splitlines()[0][2:].replace("-", "\\-") for text in manual.manual_pages()]
    assert [title for title in titles if f".SH {title}\n" not in page] == []


@pytest.mark.parametrize(
    ("words", "near"),
    [(["judgin"], "judging"), (["recomend"], "recommend"), (["policy", "creat"], "create"), (["zzz"], "rlrec help")],
)
def test_a_topic_that_does_not_exist_is_exit_2(run_sqlite: Run, words: list[str], near: str) -> None:
    result = run_sqlite("help", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert near in result.stderr


@pytest.mark.parametrize("path", pages.PATHS, ids=lambda path: path.stem)
def test_links_lead_to_files(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []
