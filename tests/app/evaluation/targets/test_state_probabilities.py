"""Targets that read the session: asked in the state that was recorded with each decision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.store.log import reader
from rlrec.store.log.selected import Selection
from rlrec.store.policies import arms
from tests.app import learned, logs, trained
from tests.conftest import ON_BOTH

BIAS, LAST = [0.5, 0.0, -0.4], -1.5
RATES = (0.2, 0.5, 0.8)


def logged(db: str, *, size: int = 1, pages: int = 120) -> list[list[list[int]]]:
    """A uniform log of visits of two pages, and a target that bores: the places of the arms of each page of a visit."""
    logs.begin(db, 3, "log", "uniform")
    logs.create(db, "home", "gradient")
    trained.version(db, "home", bias=BIAS, last=LAST)
    logs.serve(db, "log", pages=pages, rates=RATES, size=size, start=3.0)
    with closing(trained.stored(db)) as store, store.read() as unit:
        (batch,) = reader.batches(unit, Selection())
    shown = (batch.slots["arm_id"] - batch.slots["arm_id"].min()).reshape(-1, 2, size)
    return shown.tolist()


def weights(visits: list[list[list[int]]], *, last: float = LAST, floor: float = 0.0) -> list[float]:
    """Of every page, whose uniform propensity is 1/3 or 1/6."""
    result = []
    for visit in visits:
        for before, shown in zip([[], *visit], visit, strict=False):
            chance = trained.chances(BIAS, last, set(before), floor=floor)
            result.append(trained.page(chance, shown) * (3 if len(shown) == 1 else 6))
    return result


def test_a_row_is_weighed_in_the_state_that_was_logged(db: str) -> None:
    visits = logged(db)
    row = logs.estimate(db, "home", "ips", interval="normal")
    assert row["mean_weight"] == pytest.approx(np.mean(weights(visits)))
    assert row["max_weight"] == pytest.approx(max(weights(visits)))
    assert abs(row["mean_weight"] - np.mean(weights(visits, last=0.0))) > 1e-3
    assert (row["unsupported"], "logging-states" in row["reasons"]) == (0.0, True)


def test_a_state_is_not_made_anew_from_the_log(sqlite_db: str) -> None:
    visits = logged(sqlite_db)
    with closing(trained.stored(sqlite_db)) as store:
        store.write(lambda unit: unit.tell("UPDATE decision SET history = x'' WHERE step = 1"))
    row = logs.estimate(sqlite_db, "home", "ips", interval="normal")
    assert row["mean_weight"] == pytest.approx(np.mean(weights(visits, last=0.0)))


@ON_BOTH
def test_rows_without_a_state_are_left_out_and_counted(db: str) -> None:
    visits = logged(db)
    with closing(trained.stored(db)) as store:
        store.write(lambda unit: unit.tell("UPDATE decision SET history = NULL WHERE step = 1"))
    for row in logs.judged(db, "home", estimators="impression", interval="normal"):
        assert (row["n"], row["left_out"], "no-state" in row["reasons"]) == (60, 60, True)
    row, other = logs.judged(db, "home", "uniform", estimators="ips", interval="normal")
    assert row["mean_weight"] == pytest.approx(np.mean(weights(visits)[::2]))
    assert (other["n"], "no-state" in other["reasons"]) == (120, False)


def test_below_position_1_both_sides_are_the_page_down_to_the_row(db: str) -> None:
    visits = logged(db, size=2)
    rows = logs.judged(db, "home", estimators="ips", by="position", interval="normal")
    tops = [  # of a page of two both were shown just before
        trained.chances(BIAS, LAST, set(before))[page[0]] * 3
        for visit in visits
        for before, page in zip([[], *visit], visit, strict=False)
    ]
    assert [row["mean_weight"] for row in rows] == pytest.approx([np.mean(tops), np.mean(weights(visits))])
    assert [row["left_out"] for row in rows] == [0, 0]


def test_greedy_is_the_best_arm_of_the_state(sqlite_db: str) -> None:
    visits = logged(sqlite_db)
    rows = logs.judged(sqlite_db, "home", estimators="ips", interval="normal", greedy=True)[0]
    greedy = [3.0 * (shown == best) for shown, best in _best(visits)]
    assert rows["mean_weight"] == pytest.approx(np.mean(greedy))
    assert "greedy" in rows["estimand"]


def _best(visits: list[list[list[int]]]) -> Iterator[Any]:
    for visit in visits:
        for before, shown in zip([[], *visit], visit, strict=False):
            yield shown[0], int(np.argmax(trained.chances(BIAS, LAST, set(before))))


def test_a_reward_model_is_averaged_over_what_the_state_makes_likely(sqlite_db: str, tmp_path: Path) -> None:
    visits = logged(sqlite_db)
    path = tmp_path / "model.csv"
    path.write_text("arm,reward\na0,0.1\na1,0.4\na2,0.9\n")
    row = logs.estimate(sqlite_db, "home", "dm", reward_model=str(path))
    expected = [
        trained.chances(BIAS, LAST, set(before)) @ [0.1, 0.4, 0.9]
        for visit in visits
        for before, _ in zip([[], *visit], visit, strict=False)
    ]
    assert row["value"] == pytest.approx(np.mean(expected))


def test_what_a_greedy_logger_never_shows_is_unsupported(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 3, "log", "epsilon-greedy", epsilon="0")
    logs.create(sqlite_db, "home", "gradient")
    logs.serve(sqlite_db, "log", pages=100, rates=(0.9, 0.1, 0.1), start=3.0, group=20)
    row = logs.estimate(sqlite_db, "home", "ips", interval="normal")
    assert 0.4 < row["unsupported"] < 0.67
    assert "unsupported" in row["reasons"]


@pytest.mark.slow
def test_on_its_own_log_every_weight_is_1(db: str) -> None:
    """Whatever a state says: contexts, features of arms, rewards that came between the pages of a visit."""
    with closing(logs.at(db, 0)) as store:
        store.write(lambda unit: arms.put(unit, {f"a{number}": f'{{"size": {number}}}' for number in range(4)}))
    logs.create(db, "home", "gradient", floor="0.1")
    with closing(logs.at(db, 1)) as store:
        learned.trained(store, "home")
    contexts = [{"device": "phone", "n": 2.0}, {"device": "tv"}, {}]
    logs.serve(db, "home", pages=40, rates=[0.5] * 4, size=2, start=3.0, group=1, minutes=0.1, contexts=contexts)
    for row in logs.judged(db, "home", estimators="ips,tis", interval="normal"):
        assert [row["max_weight"], row["mean_weight"]] == pytest.approx([1, 1], rel=1e-9)
    plain = logs.judged(db, "uniform", estimators="ips,tis", interval="normal")
    assert min(row["max_weight"] for row in plain) > 1.05


def test_a_logger_that_reads_the_session_says_itself_what_it_could_show(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 3, "home", "gradient")
    trained.version(sqlite_db, "home", bias=BIAS, last=LAST)
    logs.serve(sqlite_db, "home", pages=100, rates=RATES, start=3.0)
    same, other = logs.judged(sqlite_db, "home", "uniform", estimators="ips", interval="normal")
    assert (same["max_weight"], same["unsupported"], other["unsupported"]) == (pytest.approx(1.0), 0.0, 0.0)
    with closing(trained.stored(sqlite_db)) as store:
        store.write(lambda unit: unit.tell("UPDATE slot SET min_propensity = 0"))
    assert logs.estimate(sqlite_db, "uniform", "ips", interval="normal")["unsupported"] is None


@pytest.mark.slow
def test_a_target_that_no_row_says_anything_of_is_told_as_such(sqlite_db: str) -> None:
    logged(sqlite_db)
    with closing(trained.stored(sqlite_db)) as store:
        store.write(lambda unit: unit.tell("UPDATE decision SET history = NULL"))
    for row in logs.judged(sqlite_db, "home", estimators="all"):
        assert (row["n"], row["value"], row["verdict"]) == (0, None, "insufficient"), row["estimator"]
        assert {"no-rows", "no-state"} <= {*row["reasons"]}
        assert row["left_out"] == (60 if row["unit"] == "session" else 120)
