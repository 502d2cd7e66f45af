"""Inverse-propensity means of `policy show`, from the log of the store."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

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


def test_a_belief_is_shown_for_the_newest_context(db: str, tmp_path: Path) -> None:
    """Of the policy's decisions, else of the log, without what a request stated of its arms; not for an empty one."""
    run = runner(db)
    run("arm", "import", "-", stdin=[{"arm": arm} for arm in ("a1", "a2")])
    for name, kind in (("number", '"number"'), ("vector", '{"vector": 2}')):
        (tmp_path / name).write_text(f'{{"context": {{"fields": {{"hour": {kind}}}}}}}')
    run("policy", "create", "seeing", "--kind", "linucb", "--features", tmp_path / "number").done()
    assert run("policy", "show", "seeing", "--json").json["context"] == {}
    requests = [{"policy": "seeing", "session": "s", "context": {"hour": hour}, "arms": [{"arm": "a1"}, {"arm": "a2",
                 "features": {"price": 2}}]} for hour in (3, 9)]  # fmt: skip
    answers = run("recommend", "--input", "-", "--format", "ndjson", stdin=requests).lines
    run("feedback", answers[1]["decision_id"], "click")
    run("policy", "create", "other", "--kind", "linucb", "--features", tmp_path / "number").done()
    run("policy", "create", "strict", "--kind", "linucb", "--features", tmp_path / "vector").done()
    shown = {name: run("policy", "show", name, "--json").json for name in ("seeing", "other", "strict")}
    assert [answer["context"] for answer in shown.values()] == [{"hour": 9}, {"hour": 9}, {}]
    named, empty = (run("policy", "show", "seeing", "--context", text, "--json").json for text in ('{"hour": 9}', "{}"))
    assert shown["seeing"] == named
    assert empty["context"] == {}
    assert empty["arms"] != named["arms"]
    title = 'reads hour; shown for the context {"hour": 9}, the newest unless --context names one'
    assert title in run("policy", "show", "seeing").stdout
    page = tmp_path / "page.html"
    run("report", page, "--policy", "seeing").done()
    assert "In the newest context (hour 9), seeing@1 shows a1 most" in page.read_text(encoding="utf-8")
