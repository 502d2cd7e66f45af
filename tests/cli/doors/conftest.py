"""Servers of slow tests are forked from a process that has loaded the program."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def forked_servers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test does not name a program of its own."""
    if request.node.get_closest_marker("slow"):
        program = str(request.getfixturevalue("forked_rlrec"))
        monkeypatch.setattr("tests.cli.doors.test_serve.PROGRAM", [program])
