"""`sweep` against policies that were taught one by one, and on logs whose best kind is known."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest

from rlrec.app.distributions import designs
from rlrec.app.evaluation.passes.estimates import EstimateRow
from rlrec.app.judging import sweep
from rlrec.app.judging.evaluate import Workers
from rlrec.app.policies import policy
from rlrec.arrays import Array
from rlrec.errors import CheckFailed
from rlrec.store.policies import arms
from rlrec.times import parse
from tests.app import logs
from tests.app.evaluation import worlds
from tests.conftest import filled

PLACES = [{"place": f"p{number}"} for number in range(8)]
PERSONAL = np.where(np.arange(8)[:, None] % 4 == np.arange(4), 0.7, 0.2)  # each place has its best arm
PLAIN = np.tile([0.5, 0.2, 0.2, 0.2], (8, 1))
FEATURES = {"context": {"fields": {"place": [f"p{number}" for number in range(8)]}}, "arm": {"hash": 2}}
PAGES = 600


def logged(db: str, which: str, size: int = 1) -> None:
    """A log of a policy that learns and explores, in twenty groups, of visitors who come once."""
    logs.begin(db, 4, "log", "thompson", floor="0.4")
    rates = {"personal": PERSONAL, "plain": PLAIN}[which][np.arange(PAGES) % 8]
    logs.serve(db, "log", pages=PAGES, rates=rates, contexts=PLACES, size=size, group=PAGES // 20, together=1)


Answer = tuple[sweep.Result, list[EstimateRow], list[EstimateRow]]


def answered(db: str, **options: Any) -> Answer:
    with closing(logs.at(db, 1e6)) as store:
        return sweep.sweep(store, sweep.Request(cluster="session", **options))


def values(answer: Answer) -> dict[str, float]:
    return {row["target"]: row["value"] or 0.0 for row in answer[0]["candidates"]}


# -- what a candidate is judged by --


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "param", "size"),
    [
        ("thompson", "floor=0.1", 1), ("squarecb", "model=hybrid", 2), ("exp3", "gamma=0.2", 1),
    ],
)  # fmt: skip
def test_each_stretch_is_judged_by_a_policy_that_learned_from_those_before(
    sqlite_db: str, kind: str, param: str, size: int
) -> None:
    filled(sqlite_db, logged, "personal", size)
    answer = answered(sqlite_db, kinds=kind, params=[f"{kind}:{param}"], features=FEATURES)
    begins, total, rows = answer[0]["begins"], 0.0, 0
    for number, (begin, end) in enumerate(zip(begins, [*begins[1:], "2027-01-01T00:00:00Z"], strict=True)):
        features = None if kind in ("thompson", "exp3") else FEATURES
        request = policy.Request(
            name=f"taught-{number}", kind=kind, parameters=dict([param.split("=")]), features=features,
            from_log=f"policy=log,until={begin}",
        )  # fmt: skip
        with closing(logs.at(sqlite_db, 1e6)) as store:
            policy.create(store, request)
        alone = logs.estimate(sqlite_db, request.name, "ips", log=f"all,policy=log,since={begin},until={end}")
        total, rows = total + alone["value"] * alone["n"], rows + alone["n"]
    (estimate,) = [row.estimate for row in answer[2] if row.estimate.estimator == "ips" and row.target != "uniform"]
    assert (estimate.n, len(begins)) == (rows, 7)
    assert estimate.value == pytest.approx(total / rows, rel=1e-9)


def test_stretches_have_as_many_decisions_each(sqlite_db: str) -> None:
    filled(sqlite_db, logged, "personal")
    result = answered(sqlite_db, kinds="ucb")[0]
    minutes = [(parse(begin) - logs.START) / logs.MINUTE for begin in result["begins"]]
    assert minutes == [7, 9, 11, 13, 15, 17, 19]
    assert result["decisions"] == 420


@pytest.mark.slow
def test_a_logistic_model_is_expanded_again_after_each_stretch(sqlite_db: str) -> None:
    """Expanded once around rate .5, what it learns of rare clicks would be a linear model."""
    filled(sqlite_db, logged, "personal")
    once = values(answered(sqlite_db, kinds="logistic-thompson,lin-thompson", features=FEATURES))
    assert once["logistic-thompson"] == pytest.approx(once["lin-thompson"], rel=0.1)


# -- which is best --


@pytest.mark.slow
def test_where_contexts_matter_a_kind_that_reads_them_is_best(sqlite_db: str) -> None:
    filled(sqlite_db, logged, "personal")
    result = answered(sqlite_db, kinds="thompson,epsilon-greedy,lin-thompson")[0]
    first, *others = result["candidates"]
    assert (first["target"], first["answer"], result["best"]) == ("lin-thompson", "better", "lin-thompson")
    assert [row["may_be_best"] for row in others] == [False, False, False]
    assert {row["target"] for row in others} == {"thompson", "epsilon-greedy", "uniform"}


@pytest.mark.slow
def test_where_they_do_not_plain_thompson_is(sqlite_db: str) -> None:
    filled(sqlite_db, logged, "plain")
    options = {"kinds": "thompson,lin-thompson,linucb", "features": FEATURES}
    result = answered(sqlite_db, **options)[0]
    assert result["best"] == "thompson"
    assert result["command"] == "rlrec policy create thompson --kind thompson --from-log all"


def test_the_command_names_the_reward_by_which_was_judged() -> None:
    """Also where it was that of the policies: `policy create` would take `default`."""
    candidate = sweep.Candidate("ucb", {"c": "0.5"}, designs.make_draft("ucb", {"c": 0.5}, worlds.CLICK))
    command = sweep.creation_command(candidate, sweep.Request(kinds="ucb", log="field:device=phone x"), {"ucb"})
    start = "rlrec policy create ucb-2 --kind ucb --param c=0.5 --reward click"
    assert command == f"{start} --from-log 'field:device=phone x'"


FRESH = 1_600  # visitors whom a policy serves, from whom it goes on learning


def served_value(db: str, request: policy.Request, rates: Array, *, minutes: float) -> float:
    """What a policy that learned from all of the log earns of fresh visitors."""
    with closing(logs.at(db, minutes)) as store:
        policy.create(store, request)
    by_page = rates[np.arange(FRESH) % 8]
    clicks = logs.serve(db, request.name, pages=FRESH, rates=by_page, contexts=PLACES, start=minutes + 1, seed=9)
    return clicks / FRESH


@pytest.mark.simulation
@pytest.mark.parametrize("which", ["personal", "plain"])
def test_the_ranking_is_that_of_what_the_policies_earn_when_they_are_served(sqlite_db: str, which: str) -> None:
    """A value is off by 5 of its standard errors, and what 1,600 visitors click by 5 of theirs, in 1 of 10^6 runs."""
    filled(sqlite_db, logged, which)
    answer = answered(sqlite_db, kinds="thompson,squarecb,lin-thompson")
    rates, earned = {"personal": PERSONAL, "plain": PLAIN}[which], dict[str, float]()
    for number, row in enumerate(answer[0]["candidates"]):
        if row["kind"] is not None:
            request = policy.Request(name=row["kind"], kind=row["kind"], from_log="policy=log")
            earned[row["target"]] = served_value(sqlite_db, request, rates, minutes=1e6 + 100 * number)
    assert answer[0]["best"] == max(earned, key=lambda name: earned[name])
    for judged in answer[1]:
        if judged.target in earned:
            assert judged.estimate.std_error is not None
            error = np.hypot(judged.estimate.std_error, 0.5 / np.sqrt(FRESH))
            assert judged.estimate.value == pytest.approx(earned[judged.target], abs=5 * error)


# -- how it works --


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_a_log_in_many_partitions_has_the_same_answer(sqlite_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(sqlite_db, logged, "personal")
    options: dict[str, Any] = {
        "kinds": "lin-thompson,ucb", "features": FEATURES,
        "log": "policy=log,until=2026-02-01T00:15:00Z",
        "params": ["lin-thompson:model=disjoint,hybrid", "lin-thompson:samples=10"],
    }  # fmt: skip
    alone = values(answered(sqlite_db, **options))
    logs.in_batches(monkeypatch, 54)
    with closing(logs.at(sqlite_db, 1e6)) as store:
        parts = sweep.sweep(store, sweep.Request(cluster="session", **options), Workers(jobs=2))
    assert values(parts) == pytest.approx(alone, rel=1e-9)


def test_a_log_of_one_moment_cannot_teach_and_judge(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 4, "log", "uniform")
    logs.serve(sqlite_db, "log", pages=40, rates=[0.2] * 4)
    with pytest.raises(CheckFailed, match="40 decisions make no 10 stretches of time") as refused:
        answered(sqlite_db, kinds="ucb")
    assert str(refused.value.hint).startswith("take in more of the log: ")


def test_decisions_of_one_time_stay_in_one_block(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 4, "log", "uniform")
    logs.serve(sqlite_db, "log", pages=400, rates=[0.2] * 4, group=60)  # 7 times
    answer = answered(sqlite_db, kinds="ucb")[0]
    assert (answer["blocks"], len({*answer["begins"]}), answer["decisions"]) == (7, 4, 220)


def test_a_log_whose_requests_cap_their_page_teaches_and_judges(sqlite_db: str) -> None:
    with closing(logs.at(sqlite_db, 0)) as store:
        described = {f"a{index}": f'{{"shelf": {index % 2}}}' for index in range(4)}
        store.write(lambda unit: arms.put(unit, described))
    logs.create(sqlite_db, "log", "uniform")
    capped = [{"@page": {"most": {"shelf": 1}}}]
    logs.serve(sqlite_db, "log", pages=200, rates=[0.9, 0.5, 0.1, 0.1], contexts=capped, size=2, group=10, together=1)
    result = answered(sqlite_db, kinds="ucb")[0]
    assert {row["target"]: row["value"] is not None for row in result["candidates"]} == {"uniform": True, "ucb": True}
    assert result["decisions"] == 140
