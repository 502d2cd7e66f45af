"""`cram`: a policy that learned while it served is judged by the rows after each step of its learning."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from rlrec.app.distributions import exact
from rlrec.app.inputs import lookup
from rlrec.app.policies import policy
from rlrec.errors import CheckFailed, InputError
from rlrec.policy.slates import slate
from tests.app import logs
from tests.conftest import filled

RATES = (0.5, 0.3, 0.2)
PAGES, GROUPS = 800, 40


def logged(db: str) -> None:
    """A log of Thompson sampling, in forty groups, a minute apart."""
    logs.begin(db, len(RATES), "home", "thompson", floor="0.1")
    logs.serve(db, "home", pages=PAGES, rates=RATES, group=PAGES // GROUPS, together=1)


def by_hand(db: str) -> float:
    """The estimate from what the store says of each decision, and of each belief that decisions knew."""
    text = (
        "SELECT d.at, d.belief_seq, slot.arm_id, slot.propensity, EXISTS (SELECT 1 FROM event e WHERE e.decision_id ="
        " d.id AND e.position = slot.position) FROM decision d JOIN slot ON slot.decision_id = d.id ORDER BY d.id"
    )
    with closing(logs.at(db, 1e6)) as store, store.read() as unit:
        rows = np.array(unit.ask(text), np.float64)
        version, _ = lookup.version(unit, "home")
        at, seq, arm, propensity, reward = rows.T
        begins = [at[number * PAGES // 20] for number in range(20)]
        weights, later, arms = np.zeros(PAGES), np.zeros(PAGES, bool), np.arange(1, len(RATES) + 1)
        total = np.zeros(PAGES)
        for begin in begins:
            newest = seq[at < begin].max(initial=version.seq)
            serving = exact.load(unit, version, seq=int(newest))
            scores = serving.scores(0, arms, [{}], keys={})[0]
            share = slate.p_first(scores, floor=serving.policy.exploration)
            before, weights, later = weights, share[arm.astype(int) - 1] / propensity, at >= begin
            total += np.where(later, PAGES / later.sum() * (weights - before), 0.0)
    return float(total @ reward / total.sum())


def test_cram_is_what_the_stored_beliefs_make_of_later_rows(sqlite_db: str) -> None:
    filled(sqlite_db, logged)
    (row,) = logs.judged(sqlite_db, "home", estimators="cram")
    assert row["value"] == pytest.approx(by_hand(sqlite_db), rel=1e-9)
    assert "in-sample" not in row["reasons"]
    assert row["mean_weight"] == pytest.approx(1, abs=0.2)
    (plain,) = logs.judged(sqlite_db, "home", estimators="snips")
    assert "in-sample" in plain["reasons"]


def test_cram_of_what_does_not_learn_is_snips(sqlite_db: str) -> None:
    filled(sqlite_db, logged)
    (cram,), (snips,) = (logs.judged(sqlite_db, "uniform", estimators=label, log="all") for label in ("cram", "snips"))
    assert (cram["value"], cram["std_error"]) == (snips["value"], snips["std_error"])


@pytest.mark.parametrize("options", [{"estimators": "cram,ips"}, {"estimators": "cram", "by": "day"}])
def test_cram_judges_alone_and_all_of_a_log(sqlite_db: str, options: dict[str, str]) -> None:
    filled(sqlite_db, logged)
    with pytest.raises(InputError, match="cram works alone"):
        logs.judged(sqlite_db, "home", **options)


def test_a_start_from_the_same_log_is_refused(sqlite_db: str) -> None:
    """What it knew before it served came from rows that would judge it; later rows alone can."""
    filled(sqlite_db, logged)
    with closing(logs.at(sqlite_db, 100)) as store:
        policy.create(store, policy.Request(name="next", kind="thompson", from_log="policy=home"))
    logs.serve(sqlite_db, "next", pages=400, rates=RATES, group=20, together=1, start=200)
    with pytest.raises(InputError, match="next@1 began with what it learned from decisions of this log") as refused:
        logs.judged(sqlite_db, "next", estimators="cram")
    for log in ("policy=next", str(refused.value.hint).split()[1]):  # the error says from when on
        (row,) = logs.judged(sqlite_db, "next", estimators="cram", log=log)
        assert (row["n"], "in-sample" in row["reasons"]) == (400, False)


def test_a_log_of_few_moments_is_too_short(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 3, "home", "thompson")
    logs.serve(sqlite_db, "home", pages=100, rates=RATES, group=20)
    with pytest.raises(CheckFailed, match="100 decisions make no 20 stretches of time: too many have the same"):
        logs.judged(sqlite_db, "home", estimators="cram")
