"""Estimators that nobody asked for, by which others are judged: each world is called what it is, whoever is asked."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.evaluation.passes import estimates
from rlrec.app.imports import log_stores
from rlrec.store import Store
from rlrec.store.log import selected
from rlrec.store.log.selected import Selection
from tests.app import logs
from tests.conftest import filled, runner

TARGET = "a0,.5\na1,.2\na2,.1\na3,.1\na4,.05\na5,.05\n"


def imported(db: str, lines: list[dict[str, Any]]) -> None:
    runner(db)("import-log", "-", "--layout", "jsonl", "--policy", "old", stdin=lines).done()


def pages(db: str, folder: Any, *, cascade: bool, seed: int = 1, n: int = 3_000) -> None:
    """A uniform log of pages of three of six arms, where readers stop at a click, or not; and a target that prefers
    what is clicked."""
    rng, rates = np.random.default_rng(seed), np.array([0.5, 0.4, 0.3, 0.25, 0.2, 0.15])
    slates = np.argsort(rng.random((n, 6)), axis=1)[:, :3]
    clicks = rng.random((n, 3)) < rates[slates]
    if cascade:
        clicks &= np.cumsum(clicks, axis=1) - clicks == 0
    shown = [
        [{"arm": f"a{arm}", "propensity": 1 / (6 - k), "marginal": 1 / 6} for k, arm in enumerate(slate)]
        for slate in slates.tolist()
    ]
    events = [[{"kind": "click", "position": int(k) + 1} for k in np.flatnonzero(row)] for row in clicks]
    eligible = [f"a{arm}" for arm in range(6)]
    imported(
        db,
        [
            {"session": f"s{number}", "eligible": eligible, "slate": slate, "events": slot_events}
            for number, (slate, slot_events) in enumerate(zip(shown, events, strict=True))
        ],
    )
    (folder / "t.csv").write_text("arm,probability\n" + TARGET)
    logs.create(db, "t", "fixed", minutes=1e6, probabilities=str(folder / "t.csv"))


INDEPENDENT = ("ips", "snips", "dr", "iips", "sn-iips", "pi", "interpol:2")


@pytest.mark.slow
@pytest.mark.parametrize("cascade", [True, False])
def test_pages_are_judged_the_same_by_whichever_estimator_alone(sqlite_db: str, tmp_path: Any, cascade: bool) -> None:
    pages(sqlite_db, tmp_path, cascade=cascade)
    for name in INDEPENDENT:
        row = logs.estimate(sqlite_db, "t", name, minutes=2e6, interval="normal", cluster="session")
        assumed = not {"no-curve", "sum-of-slots"}.isdisjoint(row["reasons"])
        assert (row["verdict"] == "ok") == (not cascade and not assumed), (name, row["reasons"])
        assert ("dependent-slots" in row["reasons"]) == cascade, name
    slates = logs.judged(sqlite_db, "t", minutes=2e6, interval="normal", estimators="iips,pi")
    assert [row["estimator"] for row in slates] == ["iips", "pi"]


def ruled_by_segment(db: str) -> None:
    rng, n = np.random.default_rng(1), 2_000
    segment = rng.integers(2, size=n)
    arm = (rng.random(n) > np.array([0.8, 0.3])[segment]).astype(int)
    share, clicked = np.bincount(arm) / n, rng.random(n) < np.array([0.7, 0.1])[segment]
    imported(
        db,
        [
            {
                "session": f"s{number}",
                "eligible": ["a0", "a1"],
                "context": {"segment": f"g{segment[number]}"},
                "slate": [{"arm": f"a{arm[number]}", "propensity": float(share[arm[number]])}],
                "events": [{"kind": "click"}] if clicked[number] else [],
            }
            for number in range(n)
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "in_folder"), [("ips", False), ("dr", False), ("wdr", False), ("snips", True)])
def test_a_rule_by_segment_makes_models_differ(sqlite_db: str, estimator: str, in_folder: bool, tmp_path: Path) -> None:
    """The log has the share of each arm over both segments, which earn .7 and .1: ips says .386, and the truth is .4.
    The newest decisions tell, whether dr was asked for or not, also of a folder of Parquet."""
    filled(sqlite_db, ruled_by_segment)
    log = {"log": exported(sqlite_db, tmp_path)} if in_folder else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "MAX_MODEL_DECISIONS", 1_500)
        row = logs.estimate(sqlite_db, "uniform", estimator, **log)
    assert "models-differ" in row["reasons"]
    assert row["verdict"] != "ok"


def exported(db: str, folder: Path) -> str:
    """A filter of the log of a store, as a folder of Parquet."""
    runner(db)("export-log", folder / "log", "--layout", "parquet").done()
    return f"parquet:{folder / 'log'}"


@pytest.mark.parametrize("later", [1.0, 0.5])
def test_a_folder_is_compared_with_what_its_store_was_given_since(sqlite_db: str, tmp_path: Path, later: float) -> None:
    logs.catalogue(sqlite_db, 3)
    for name in ("first", "second"):
        logs.create(sqlite_db, name, "uniform")
    rates = np.array([0.6, 0.5, 0.4])
    logs.serve(sqlite_db, "first", pages=1_500, rates=rates, together=1)
    log = exported(sqlite_db, tmp_path)
    logs.serve(sqlite_db, "second", pages=1_500, rates=later * rates, start=10, together=1)
    row = logs.estimate(sqlite_db, "uniform", "snips", log=log, cluster="session")
    assert (row["verdict"], row["reasons"]) == (("ok", []) if later == 1.0 else ("weak", ["drift"]))


def test_the_newest_decisions_of_a_folder_are_those_of_its_store(sqlite_db: str, tmp_path: Path) -> None:
    logs.begin(sqlite_db, 3, "first", "uniform")
    logs.serve(sqlite_db, "first", pages=40, rates=np.array([0.6, 0.5, 0.4]), together=1)
    log = exported(sqlite_db, tmp_path)

    def newest_ids(store: Store) -> list[int | None]:
        with store.read() as unit:
            return [selected.newest_id(unit, Selection(), number) for number in (1, 7, 40, 41)]

    with closing(Store(sqlite_db)) as store, log_stores.open_log(store, log) as (log_store, _):
        assert newest_ids(log_store) == newest_ids(store)


@pytest.mark.parametrize("later", [1.0, 0.5])
def test_a_log_is_compared_with_what_the_store_was_given_since(sqlite_db: str, later: float) -> None:
    """Visitors of another policy click half as often by now, or as they did; the log ends before."""
    logs.begin(sqlite_db, 3, "first", "uniform")
    logs.create(sqlite_db, "second", "uniform")
    rates = np.array([0.6, 0.5, 0.4])
    logs.serve(sqlite_db, "first", pages=1_500, rates=rates, together=1)
    logs.serve(sqlite_db, "second", pages=1_500, rates=later * rates, start=10, together=1)
    row = logs.estimate(sqlite_db, "uniform", "snips", log="policy=first", cluster="session")
    assert (row["verdict"], row["reasons"]) == (("ok", []) if later == 1.0 else ("weak", ["drift"]))
