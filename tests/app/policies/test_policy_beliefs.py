"""Inverse-propensity means of `policy show`, from the log of the store."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from rlrec.app.learning import arm_means
from rlrec.app.policies import policy_beliefs
from rlrec.store import Store
from tests.app.grown import grown, sql
from tests.conftest import filled, runner

START, LATER, LAST = "2026-01-01T00:00:00Z", "2026-01-01T00:10:00Z", "2026-01-01T01:00:00Z"


def test_means_weigh_mature_uncensored_slots_by_their_marginals(db: str) -> None:
    run = runner(db)
    run("--now", START, "arm", "import", "-", stdin=[{"arm": arm} for arm in ("a1", "a2", "a3", "a4")])
    run("--now", START, "policy", "create", "p", "--kind", "thompson", "--param", "floor=0.1")
    slots = []
    for now in (START, LATER, LAST):  # the last ones are not mature
        options = [{"policy": "p", "session": f"{now}{i}", "k": 2} for i in range(20)]
        answers = run("--now", now, "recommend", "--input", "-", "--seed", 3, "--format", "ndjson", stdin=options).lines
        reported = [
            {"decision_id": answer["decision_id"], "position": 2, "events": {"click": 1}} for answer in answers[::3]
        ]
        reported += [{"decision_id": answers[3]["decision_id"], "censor": True}]
        assert run("--now", now, "feedback", "--input", "-", stdin=reported).exit_code == 0
        rows = [
            (slot, float(row % 3 == 0)) for row, answer in enumerate(answers) if row != 3 for slot in answer["slate"]
        ]
        slots += [(slot, clicked * (slot["position"] == 2)) for slot, clicked in rows if now != LAST]
    for row in run("--now", LAST, "policy", "show", "p", "--json").json["arms"]:
        selected = [(slot["marginal"] ** -0.5, reward) for slot, reward in slots if slot["arm"] == row["arm"]]
        weight, reward = np.array(selected).T
        assert row["ipw_mean"] == pytest.approx((weight * reward).sum() / weight.sum())
        assert row["ipw_lower"] < row["ipw_mean"] < row["ipw_upper"]


def test_beliefs_count_the_slots_that_the_log_has(sqlite_db: str) -> None:
    run = filled(sqlite_db, grown)
    run("--now", "2026-01-01T02:00:00Z", "db", "prune", "--before", "2026-01-01T00:10:00Z", "--yes")
    names = [name for (name,) in sql(sqlite_db, "SELECT name FROM policy")]
    shown_slots = (
        "SELECT p.name, a.key, count(*) FROM slot s JOIN decision d ON d.id = s.decision_id JOIN arm a"
        " ON a.id = s.arm_id JOIN policy p ON p.id = d.policy_id JOIN policy_head h ON h.policy_id = p.id"
        " JOIN version v ON v.id = h.live_id WHERE v.status = 'learning' OR d.version_id = v.id GROUP BY 1, 2"
    )
    logged = {(name, arm): slots for name, arm, slots in sql(sqlite_db, shown_slots)}
    with closing(Store(sqlite_db)) as store:
        beliefs = {name: policy_beliefs.show(store, name)["arms"] for name in names}
    counted = {(name, row["arm"]): row["served"] for name, rows in beliefs.items() for row in rows if row["served"]}
    assert counted == logged


def test_weighted_means_of_a_long_log_are_from_a_part_unless_all_is_asked_for(
    sqlite_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(sqlite_db, grown)
    with closing(Store(sqlite_db)) as store:
        complete = policy_beliefs.show(store, "ts")
        monkeypatch.setattr(arm_means, "SAMPLED", 20)
        monkeypatch.setattr(arm_means, "STRETCHES", 5)
        sampled, everything = (policy_beliefs.show(store, "ts", sample=sample) for sample in (True, False))
    assert (complete["weighed"], everything["weighed"]) == (None, None)
    assert 0 < sampled["weighed"] <= 20
    assert everything["arms"] == complete["arms"] != sampled["arms"]
