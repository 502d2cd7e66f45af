"""What contextual beliefs are taught by a log: fitted features, moments, and where a model is expanded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from rlrec.app.distributions import exact
from rlrec.app.inputs import lookup
from rlrec.app.learning import warm_start
from rlrec.app.upkeep.doctor import Request as Audit
from rlrec.app.upkeep.doctor import doctor
from rlrec.arrays import Array, Ids
from rlrec.policy.kinds.linear import Linear
from rlrec.store import Store
from tests.conftest import Run, runner

DEVICES = ("ios", "web")
ROWS = 600


def rows() -> tuple[Array, list[str], Ids, Array]:
    """Hour, device, arm and click of a log in which the arms differ by context."""
    rng = np.random.default_rng(8)
    hour, web, arm = rng.normal(size=ROWS), rng.integers(0, 2, ROWS), rng.integers(0, 2, ROWS)
    logit = np.where(arm == 0, 0.7 * hour - 0.5, 1.2 * web - 1.0)
    return hour, [DEVICES[i] for i in web], arm, (rng.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(float)


@pytest.fixture
def logged(sqlite_db: str, tmp_path: Path) -> tuple[str, Run]:
    hour, device, arm, click = rows()
    with (tmp_path / "log.ndjson").open("w") as file:
        for row in range(ROWS):
            slate = [{"position": 1, "arm": f"a{arm[row]}", "propensity": 0.5}]
            events = [{"position": 1, "kind": "click", "value": 1}] if click[row] else []
            context = {"hour": hour[row], "device": device[row]}
            line = {"session": f"s{row}", "slate": slate, "eligible": ["a0", "a1"], "context": context}
            file.write(json.dumps(line | {"events": events}) + "\n")
    run = runner(sqlite_db)
    run("import-log", tmp_path / "log.ndjson", "--layout", "jsonl", "--policy", "old").done()
    return sqlite_db, run


def weights(db: str, name: str) -> tuple[Linear, Array, exact.VersionDistribution]:
    with closing(Store(db)) as store, store.read() as unit:
        held = exact.load(unit, lookup.version(unit, name)[0])
    policy = held.policy
    assert isinstance(policy, Linear)
    return policy, policy.weights(held.belief(np.array([1, 2]))), held


def designs(policy: Linear) -> Iterator[tuple[Array, Array]]:
    """Features and clicks of each arm."""
    hour, device, arm, click = rows()
    x = policy.design.context.encode([{"hour": h, "device": d} for h, d in zip(hour.tolist(), device, strict=True)])
    return ((x[arm == which], click[arm == which]) for which in (0, 1))


def test_features_are_fitted_and_weights_are_those_of_the_ridge(logged: tuple[str, Run]) -> None:
    db, run = logged
    run("policy", "create", "lin", "--kind", "lin-thompson", "--from-log", "policy=old").done()
    policy, result, _ = weights(db, "lin")
    assert set(policy.design.context.names) == {"1", "device=ios", "device=web", "hour"}
    for (x, click), selected in zip(designs(policy), result, strict=True):
        assert selected == pytest.approx(np.linalg.solve(x.T @ x + np.eye(4), x.T @ click), abs=1e-9)


def test_a_logistic_model_ends_at_the_mode_of_its_posterior(logged: tuple[str, Run]) -> None:
    from scipy.optimize import minimize

    db, run = logged
    run("policy", "create", "log", "--kind", "logistic-thompson", "--from-log", "policy=old").done()
    policy, result, _ = weights(db, "log")
    for (x, click), selected in zip(designs(policy), result, strict=True):

        def loss(w: Array, x: Array = x, click: Array = click) -> float:
            return float(np.logaddexp(0, x @ w).sum() - click @ x @ w + w @ w / 2)

        best = minimize(loss, np.zeros(4), tol=1e-12).x
        assert selected == pytest.approx(best, abs=1e-4)


def test_sums_are_those_of_the_anchor_when_the_steps_run_out(
    logged: tuple[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_start, "ROUNDS", 1)
    db, run = logged
    run("policy", "create", "log", "--kind", "logistic-thompson", "--from-log", "policy=old").done()
    policy, result, _ = weights(db, "log")
    for (x, click), selected in zip(designs(policy), result, strict=True):
        step = np.linalg.solve(x.T @ x / 4 + np.eye(4), x.T @ (click - 0.5))  # of Newton, from 0
        assert selected == pytest.approx(step, abs=1e-9)


@pytest.mark.slow
def test_what_was_taught_passes_the_audit(logged: tuple[str, Run]) -> None:
    db, run = logged
    for kind in ("linucb", "logistic-thompson"):
        run("policy", "create", kind, "--kind", kind, "--param", "floor=0.1", "--from-log", "policy=old").done()
        for turn in range(3):
            context = json.dumps({"hour": turn, "device": "web"})
            result = run("recommend", "--policy", kind, "--session", turn, "--context", context, "--json").done()
            run("feedback", result.json["decision_id"], "click").done()
    with closing(Store(db)) as store:
        assert doctor(store, Audit()).ok


def test_a_log_it_learned_from_is_no_judge(logged: tuple[str, Run]) -> None:
    _, run = logged
    run("policy", "create", "lin", "--kind", "softmax", "--from-log", "policy=old").done()
    answer = run("evaluate", "lin", "--log", "policy=old", "--estimator", "ips", "--json").done().json
    assert "in-sample" in json.dumps(answer[0]["reasons"])


def test_show_names_weights_and_looks_into_a_context(logged: tuple[str, Run]) -> None:
    _, run = logged
    run("policy", "create", "lin", "--kind", "lin-thompson", "--from-log", "policy=old").done()
    by_device = [
        run("policy", "show", "lin", "--context", json.dumps({"device": item}), "--json").done().json["arms"]
        for item in DEVICES
    ]
    assert set(by_device[0][0]["weights"]) == {"1", "device=ios", "device=web", "hour"}
    assert by_device[1][1]["mean"] > by_device[0][1]["mean"] + 0.1  # a1 is for the web
    assert by_device[1][1]["p_best"] > 0.9
    assert run("policy", "show", "lin", "--context", '{"hour": "nine"}').failed(2).count("\n") == 1


def test_rebuilding_moves_where_a_model_is_expanded(logged: tuple[str, Run]) -> None:
    db, run = logged
    run("policy", "create", "log", "--kind", "logistic-thompson", "--param", "floor=0.2").done()
    options = [{"policy": "log", "session": f"x{i}"} for i in range(300)]
    served = run("--now", "2026-01-01", "recommend", "--input", "-", "--format", "ndjson", stdin=options).done().lines
    reported = [{"decision_id": answer["decision_id"], "events": {"click": 1}} for answer in served[::20]]
    run("--now", "2026-01-01T00:01:00Z", "feedback", "--input", "-", stdin=reported).done()
    answers = run("--now", "2026-01-02", "policy", "rebuild", "log", "--json").done().json
    assert (answers["version"], answers["parent"], answers["rebuilt"]) == (2, 1, True)
    counts = np.bincount([int(answer["slate"][0]["arm"][1]) for answer in served], minlength=2)
    clicks = np.bincount([int(answer["slate"][0]["arm"][1]) for answer in served[::20]], minlength=2)
    _, result, _ = weights(db, "log@2")
    for n, hits, row in zip(counts, clicks, result, strict=True):
        chance = 1 / (1 + np.exp(-row[0]))
        assert n * chance + row[0] == pytest.approx(hits, abs=1e-3)  # the score equation of intercept and ridge
