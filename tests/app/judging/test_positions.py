"""`position fit` on logs that the store drew, and on imports; curves are numbered and never change."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.judging import positions
from rlrec.app.judging.positions import CurveAnswer
from rlrec.errors import CheckFailed, InputError, RlrecError, StoreBusy
from rlrec.store.log import settings
from tests.app import logs
from tests.conftest import Run

CURVE = (1.0, 0.5, 0.25)
RATES = [0.6, 0.5, 0.4, 0.3, 0.5, 0.4]


def fitted(db: str, name: str = "home", **options: Any) -> CurveAnswer:
    with closing(logs.at(db, 1e6)) as store:
        return positions.fit(store, positions.Request(name=name, **options))


def served(db: str, kind: str = "thompson", *, pages: int = 3_000, **parameters: str) -> None:
    logs.begin(db, len(RATES), "home", kind, **parameters)
    logs.serve(db, "home", pages=pages, rates=RATES, size=3, curve=CURVE, group=100)


def examination(answer: CurveAnswer) -> list[float]:
    return [position["examination"] for position in answer["positions"]]


@pytest.mark.slow
def test_a_policy_that_learns_leaves_a_log_that_tells_the_curve(db: str) -> None:
    served(db, floor="0.1")
    answer = fitted(db)
    assert (answer["curve"], answer["number"], answer["model"], answer["method"]) == ("home", 1, "pbm", "overlap")
    assert (answer["reward"], answer["clusters"], answer["reasons"]) == ("default", 1_500, ["wide:3"])
    assert examination(answer) == pytest.approx(CURVE, rel=0.25)
    assert [position["slots"] for position in answer["positions"]] == [3_000] * 3
    assert all(p["lower"] <= c <= p["upper"] for p, c in zip(answer["positions"], CURVE, strict=True))


@pytest.mark.slow
def test_what_read_rows_that_were_deleted_meanwhile_stores_nothing(
    sqlite_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(sqlite_db, "uniform", pages=400)
    estimate = positions._estimate

    def remove_behind(*arguments: Any) -> Any:
        with closing(logs.at(sqlite_db, 1e6)) as other:
            other.write(lambda unit: settings.note_removal(unit, 1))
        return estimate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(positions, "_estimate", remove_behind)
        with pytest.raises(StoreBusy, match="deleted meanwhile"):
            fitted(sqlite_db)
    assert fitted(sqlite_db)["number"] == 1


@pytest.mark.slow
def test_the_next_fit_gets_the_next_number_and_changes_no_other(sqlite_db: str) -> None:
    served(sqlite_db, "uniform", pages=400)
    first, second = fitted(sqlite_db, positions=2), fitted(sqlite_db, log="until=2026-02-01T00:05:00Z")
    with closing(logs.at(sqlite_db, 1e6)) as store:
        assert positions.show(store, "home@1") == first
        assert positions.show(store, "home") == second
        assert [row["number"] for row in positions.list_curves(store)] == [1, 2]
        rows = positions.diff(store, "home@1", "home@2")
    assert [row["examination_a"] for row in rows] == [*examination(first), None][: len(rows)]
    assert rows[0]["difference"] == 0


def refused(db: str, **options: Any) -> RlrecError:
    with pytest.raises(RlrecError) as caught:
        fitted(db, **options)
    with closing(logs.at(db, 1e6)) as store:
        assert positions.list_curves(store) == []
    return caught.value


@pytest.mark.slow
def test_positions_that_vary_with_the_context_alone_are_refused(sqlite_db: str) -> None:
    """A ranker without noise."""
    logs.begin(sqlite_db, 3, "home", "ucb")
    logs.serve(sqlite_db, "home", pages=120, rates=[0.9, 0.5, 0.1], size=3, curve=CURVE, group=5)
    error = refused(sqlite_db, log="since=2026-02-01T00:10:00Z")
    assert isinstance(error, CheckFailed)
    assert "vary only with the context" in error.message


def test_too_few_rewards_are_refused(sqlite_db: str) -> None:
    served(sqlite_db, "uniform", pages=10)
    assert "too few rewards" in refused(sqlite_db).message


def test_what_cannot_be_asked_is_refused(sqlite_db: str) -> None:
    assert isinstance(refused(sqlite_db), InputError)  # an empty log
    served(sqlite_db, "uniform", pages=20)
    for options in ({"positions": 1}, {"reward": "nobody"}, {"log": "policy=nobody"}):
        assert refused(sqlite_db, **options).code == 2
    with closing(logs.at(sqlite_db, 1e6)) as store, pytest.raises(InputError, match="unknown position curve"):
        positions.show(store, "home@1")


# -- imports --


def imported(run: Run, path: Path, *, by_context: bool, policy: str = "np", pages: int = 3_000) -> None:
    """Pages of 2 of 3 arms: at random positions without propensities; or at positions that the context says."""
    generator = np.random.default_rng(3)
    with path.open("w") as file:
        for page in range(pages):
            device = int(generator.integers(3))
            order = np.roll(np.arange(3), device) if by_context else generator.permutation(3)
            clicks = [
                {"kind": "click", "position": index + 1, "at": "2026-01-01T00:00:01Z"}
                for index, arm in enumerate(order[:2])
                if generator.random() < (0.3 + 0.2 * arm) * CURVE[index]
            ]
            line = {
                "session": f"{policy}{page}", "context": {"device": device}, "eligible": ["a0", "a1", "a2"],
                "at": "2026-01-01T00:00:00Z", "slate": [{"arm": f"a{arm}"} for arm in order[:2]], "events": clicks,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
    assert run("import-log", path, "--layout", "jsonl", "--policy", policy).exit_code == 0


@pytest.mark.slow
def test_an_import_without_propensities_is_fitted_within_equal_contexts(
    run_sqlite: Run, sqlite_db: str, tmp_path: Path
) -> None:
    imported(run_sqlite, tmp_path / "log.jsonl", by_context=False)
    answer = fitted(sqlite_db)
    assert (answer["method"], answer["reasons"]) == ("em", ["no-interval"])
    assert examination(answer)[1] == pytest.approx(0.5, rel=0.15)
    assert answer["positions"][1]["lower"] is None
    other = fitted(sqlite_db, name="other", model="cascade")
    assert other["log_likelihood"] == pytest.approx(answer["log_likelihood"])
    assert other["reasons"] == ["prefers:pbm"]


@pytest.mark.slow
def test_slots_that_could_not_be_compared_do_not_count(run_sqlite: Run, sqlite_db: str, tmp_path: Path) -> None:
    imported(run_sqlite, tmp_path / "by.jsonl", by_context=True, policy="by", pages=1_000)
    imported(run_sqlite, tmp_path / "free.jsonl", by_context=False, policy="free", pages=1_000)
    together, alone = fitted(sqlite_db), fitted(sqlite_db, log="policy=free")
    assert [row["slots"] for row in together["positions"]] == [2_000, 2_000]  # in contexts where some vary
    assert [row["slots"] for row in alone["positions"]] == [1_000, 1_000]
    other = fitted(sqlite_db, log="policy=by", model="dcm")
    assert ("pbm" in other["log_likelihood"], "unchecked" in other["reasons"]) == (False, True)


@pytest.mark.slow
def test_an_import_whose_positions_follow_the_context_is_refused(
    run_sqlite: Run, sqlite_db: str, tmp_path: Path
) -> None:
    imported(run_sqlite, tmp_path / "log.jsonl", by_context=True, pages=500)
    result = run_sqlite("position", "fit", "home", "--json")
    assert (result.exit_code, result.error["code"]) == (3, 3)
    assert "vary only with the context" in result.error["error"]
    assert run_sqlite("position", "list", "--json").json == []


# -- the command --


@pytest.mark.slow
def test_the_commands_answer_as_the_contract_says(run_sqlite: Run, sqlite_db: str) -> None:
    served(sqlite_db, "uniform", pages=600)
    answer = run_sqlite("position", "fit", "home", "--json").json
    assert list(answer)[:7] == ["curve", "model", "method", "reward", "clusters", "positions", "reasons"]
    assert list(answer["positions"][0]) == ["position", "examination", "lower", "upper", "rewards", "slots"]
    assert run_sqlite("position", "show", "home@1", "--json").json == answer
    table = run_sqlite("position", "show", "home").stdout
    assert "curve home@1, model pbm, method overlap, reward default, 300 clusters" in table
    assert run_sqlite("position", "show", "hom").exit_code == 2
    for model in ("cascade", "dcm"):
        other = run_sqlite("position", "fit", "home", "--model", model, "--positions", 99, "--json").json
        assert (other["method"], len(other["positions"])) == ("likelihood", 3)
        assert other["log_likelihood"] == pytest.approx(answer["log_likelihood"])
        assert other["reasons"] == ["prefers:pbm"]


@pytest.mark.slow
def test_pages_without_a_slot_are_left_out(sqlite_db: str) -> None:
    """The first slot of every second page is censored: the curve is that of the other pages, and it is said."""
    served(sqlite_db, "uniform", pages=2_000)
    complete = fitted(sqlite_db, name="before")
    with closing(sqlite3.connect(sqlite_db)) as connection, connection:
        connection.execute("UPDATE slot SET censored = 1 WHERE position = 1 AND decision_id % 2 = 0")
    answer = fitted(sqlite_db, name="after")
    assert "partial-pages" in answer["reasons"]
    assert [position["slots"] for position in answer["positions"]] == [1_000] * 3
    assert examination(answer) == pytest.approx(examination(complete), rel=0.3)
