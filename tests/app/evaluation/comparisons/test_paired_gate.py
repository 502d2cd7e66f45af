"""The gain of a gate: what both sides share, and the error of what was simulated for them."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rlrec.app.evaluation.comparisons.paired_gate import SLOT_ESTIMATOR, Gain, judge_gain, page_gains, refusal_sentence
from rlrec.app.evaluation.passes.fold import GroupPartial
from rlrec.app.evaluation.targets import targets
from rlrec.app.policies import policy, versions
from rlrec.ope.comparisons.comparison import compare, gate_alpha
from rlrec.ope.intervals.intervals import Minus
from rlrec.store.log.selected import Selection
from tests.app import logs
from tests.conftest import Run

CONTEXTS = ({"hour": 1}, {"hour": 2})
FEATURES = {"context": {"fields": {"hour": {"type": "number", "mean": 1, "scale": 1}}}}


def gain(db: str, *sides: str) -> Gain:
    with closing(logs.at(db, 1e6)) as store, store.read() as unit:
        pair = targets.resolve(unit, sides, reward="default", greedy=False)
        return Gain.estimate(SLOT_ESTIMATOR, unit, pair, Selection())


def test_the_error_of_simulated_pages_is_in_the_interval_of_a_gain(sqlite_db: str) -> None:
    """A posterior that arms share has no marginals in closed form below position 1."""
    logs.begin(sqlite_db, 4, "u", "uniform")
    logs.create(sqlite_db, "v", "epsilon-greedy", epsilon="1")
    with closing(logs.at(sqlite_db, 0)) as store:
        shared = {"model": "shared", "samples": "50"}
        policy.create(store, policy.Request(name="p", kind="lin-thompson", parameters=shared, features=FEATURES))
        versions.freeze(store, "p")
    logs.serve(sqlite_db, "u", pages=400, rates=(0.1, 0.3, 0.5, 0.7), size=2, contexts=CONTEXTS)
    judged = gain(sqlite_db, "p@2", "u")
    plain, widened = compare(*judged.sides, alpha=0.05), judged.judge(Minus, 0.05)
    assert plain.value == widened.value
    assert plain.std_error is not None
    assert plain.lower is not None
    assert plain.std_error < (widened.std_error or 0)
    assert (widened.lower or 0) < plain.lower
    assert not gain(sqlite_db, "u", "v").replicas


def test_a_gate_answers_as_evaluate_does_with_the_same_reasons(sqlite_db: str, tmp_path: Path) -> None:
    """What the log or the model leaves in doubt a gate leaves in doubt; little data is in the interval."""
    logs.begin(sqlite_db, 2, "u", "uniform")
    (tmp_path / "good.csv").write_text("arm,probability\na0,0.3\na1,0.7\n")
    logs.create(sqlite_db, "good", "fixed", probabilities=str(tmp_path / "good.csv"))
    logs.serve(sqlite_db, "u", pages=600, rates=(0.1, 0.9), users=300)
    clear = gain(sqlite_db, "good", "u")
    for reasons, answer in ((("low-ess",), "better"), (("models-differ",), "unknown"), (("drift",), "unknown")):
        estimates = [estimate.with_reasons(reasons) for estimate in clear.estimates]
        judgement = judge_gain(replace(clear, estimates=estimates), None, 1, gate_alpha(1))
        assert (judgement["answer"], judgement["passed"]) == (answer, answer == "better")
        sentence = refusal_sentence({**judgement, "against": "u"})
        assert (sentence is None) == judgement["passed"]
        assert sentence is None or reasons[0] in sentence
        later = refusal_sentence({**judgement, "against": "u", "since_decision": 7})
        assert later == (sentence and f"{sentence}; only visits after those that taught it count")


def test_what_pages_earn_as_a_whole_is_asked_of_visits(sqlite_db: str, run_sqlite: Run) -> None:
    """Clicks lie on slots, and `done` on the page: half of the reward, which slots do not see."""
    logs.catalogue(sqlite_db, 3)
    run_sqlite("reward", "define", "both", "click=1, done=1")
    for name in ("u", "v"):
        run_sqlite("policy", "create", name, "--kind", "uniform", "--reward", "both")
    requests = [json.dumps({"policy": "u", "session": f"s{n}", "k": 2}) for n in range(60)]
    served = run_sqlite("--now", "2026-01-01", "recommend", "--input", "-", stdin="\n".join(requests)).lines
    lines = [{"decision_id": row["decision_id"], "events": {"done": 1}} for row in served]
    lines += [{"decision_id": row["decision_id"], "position": 1, "events": {"click": 1}} for row in served]
    run_sqlite("--now", "2026-01-01", "feedback", "--input", "-", stdin=lines)
    with closing(logs.at(sqlite_db, 1e6)) as store, store.read() as unit:
        pair = targets.resolve(unit, ["v", "u"], reward="both", greedy=False)
        slots, visits = page_gains(unit, pair, Selection())
    assert slots.estimates[0].reward_seen == 0.5
    assert "reward-unseen" not in slots.estimates[0].reasons
    assert visits is not None
    assert [estimate.value for estimate in visits.estimates] == [2.0, 2.0]


def test_rows_without_simulated_pages_are_the_same_in_every_part_of_them() -> None:
    simulated = GroupPartial(sums=1.0, replicas={0: 2.0, 1: 4.0}, reasons=frozenset(), n_gaps=0)
    exact = GroupPartial(sums=10.0, replicas={}, reasons=frozenset({"in-sample"}), n_gaps=1)
    for total in (simulated + exact, exact + simulated):
        assert (total.sums, total.replicas, total.reasons, total.n_gaps) == (
            11.0,
            {0: 12.0, 1: 14.0},
            {"in-sample"},
            1,
        )
