"""What a decision answers is what its request asked for, also where a first stage drew candidates of what it listed."""

from __future__ import annotations

import json

import pytest

from tests.conftest import Run

RULES: tuple[dict[str, object], ...] = ({}, {"not_shown": 1}, {"block": ["a1"]})


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=json.dumps)
def test_arms_listed_for_two_stages_are_those_of_the_request(run_sqlite: Run, rule: dict[str, object]) -> None:
    run = run_sqlite
    for number in range(8):
        run("arm", "add", f"a{number}").done()
    params = ("first=plackett-luce", "second=thompson", "candidates=2")
    run("policy", "create", "pages", "--kind", "two-stage", *(word for p in params for word in ("--param", p))).done()
    line = {"policy": "pages", "session": "s1", "arms": [f"a{number}" for number in range(5)], **rule}
    lines = "".join(json.dumps({**line, "request_id": f"r{number}"}) + "\n" for number in range(2))
    run("recommend", "--input", "-", stdin=lines).done()
    assert run("doctor", "--json").done().json["findings"] == []
    run("recommend", "--input", "-", stdin=lines.splitlines()[0]).done()  # which answers the first one again
