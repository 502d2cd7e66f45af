"""The walk of a command does not grow unnoticed: whoever makes it longer says so here, with a reason in the commit."""

from __future__ import annotations

from operator import le

import pytest

from tests.benchmarks.walks import Walk, code_lines, crossed
from tests.conftest import Run

REACHED = {"recommend": Walk(59, 438, 298), "feedback": Walk(32, 198, 120)}
LINES = 55_001


@pytest.mark.parametrize("name", REACHED)
def test_a_walk_is_no_longer_than_it_was(run_sqlite: Run, sqlite_db: str, name: str) -> None:
    for words in ("arm add a", "arm add b", "arm add c", "policy create home --kind thompson"):
        run_sqlite(*words.split())
    if name == "feedback":
        run_sqlite("recommend", "--policy", "home", "--session", "s1")
    walk = crossed(sqlite_db, name)
    assert all(map(le, walk, REACHED[name])), walk


@pytest.mark.slow
def test_the_package_is_no_longer_than_it_was() -> None:
    assert code_lines() <= LINES
