"""Policies whose decisions draw samples of their own, in the store: what is logged can be derived again."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from tests.conftest import CommandResult, filled, runner

KINDS = ["lin-thompson shared", "lin-thompson hybrid", "logistic-thompson shared"]


@pytest.fixture(params=KINDS)
def served(request: pytest.FixtureRequest, sqlite_db: str) -> str:
    """Decisions of one and of three positions, some of them in one group, between feedback."""
    filled(sqlite_db, serve, request.param)
    return sqlite_db


def serve(db: str, kind: str) -> None:
    run = runner(db)
    kind, model = kind.split()
    lines = [{"arm": key, "features": {"genre": genre}} for key, genre in zip("abcd", "xyxy", strict=True)]
    run("arm", "import", "-", stdin=lines)
    answer = run("policy", "create", "p", "--kind", kind, "--param", f"model={model}", "--param", "samples=50").done()
    for day in range(2):
        options = [
            {"policy": "p", "session": f"{day}-{n}", "k": 1 + 2 * (n % 2), "context": {"hour": n % 3}} for n in range(8)
        ]
        answers = run("recommend", "--input", "-", stdin=options).lines
        for answer in answers:
            run("feedback", str(answer["decision_id"]), "click", "--position", "1")


def bent(db: str, statement: str) -> CommandResult:
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute(statement)
    return runner(db)("doctor", "--json")


def test_what_is_logged_is_derived_again(served: str) -> None:
    run = runner(served)
    findings = run("doctor", "--json").json["findings"]
    assert {finding["check"] for finding in findings} <= {"positions"}  # all clicks are at position 1, as it may notice
    for number in (2, 3):
        shown = run("decision", "show", str(number), "--json").json
        assert shown["agrees"] is True
        assert [slot["marginal"] is None for slot in shown["slate"]] == [False, *[True] * (len(shown["slate"]) - 1)]
        assert [slot["derived_marginal"] is None for slot in shown["slate"]][1:] == [True] * (len(shown["slate"]) - 1)


@pytest.mark.parametrize("number", [9, 10])
def test_a_propensity_of_other_samples_is_found(served: str, number: int) -> None:
    result = bent(
        served, f"UPDATE slot SET propensity = propensity * 0.9 WHERE decision_id = {number} AND position = 1"
    )
    assert result.exit_code == 3
    assert ("propensities", f"decision {number}") in [
        (finding["check"], finding["subject"]) for finding in result.json["findings"]
    ]


@pytest.mark.slow
def test_another_seed_draws_other_slates(served: str) -> None:
    result = bent(served, "UPDATE decision SET seed = seed + 1")
    assert result.exit_code == 3
    assert "draws" in {finding["check"] for finding in result.json["findings"]}
