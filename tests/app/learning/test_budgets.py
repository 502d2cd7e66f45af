"""Budgets through the store: what is spent is counted once, whoever asks and however late costs come; the price is in
the context of each decision, and propensities follow from it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rlrec.app.inputs import lookup
from rlrec.store import Store
from rlrec.store.policies import beliefs
from tests.app.model_prices import Clients, World, opened
from tests.conftest import ON_BOTH, CommandResult, runner

Run = Callable[..., CommandResult]
COSTS = {"small": 0.001, "middle": 0.004, "large": 0.02}
MORNING, NOON, EVENING = "2030-01-02T06:00:00Z", "2030-01-02T12:00:00Z", "2030-01-02T18:00:00Z"
NEXT_DAY = "2030-01-03T06:00:00Z"


@pytest.fixture
def shop(db: str) -> Run:
    run = runner(db)
    for arm in COSTS:
        run("arm", "add", arm).done()
    run("reward", "define", "value", "quality=1", "--clip", "0,1", "--window", "1h").done()
    run("reward", "define", "spend", "cost=1").done()
    run("policy", "create", "p", *words(budget="cost:0.1/day")).done()
    return run


def words(*, kind: str = "thompson", floor: float = 0.3, **parameters: object) -> list[object]:
    params = [word for name, value in parameters.items() for word in ("--param", f"{name}={value}")]
    return ["--kind", kind, "--reward", "value", "--param", f"floor={floor}", *params]


def ask(run: Run, n: int, *, at: str, seed: int, policy: str = "p", **fields: object) -> list[dict[str, Any]]:
    lines = [{"policy": policy, "session": f"s{seed}-{number}", **fields} for number in range(n)]
    return run("--now", at, "recommend", "--input", "-", "--format", "ndjson", "--seed", seed, stdin=lines).done().lines


def pay(run: Run, decisions: list[dict[str, Any]], *, at: str) -> float:
    """Report cost and quality of decisions: the sum of the costs."""
    costs = [COSTS[decision["slate"][0]["arm"]] for decision in decisions]
    lines = [
        {"decision_id": decision["decision_id"], "events": {"cost": cost, "quality": 0.5}}
        for decision, cost in zip(decisions, costs, strict=True)
    ]
    run("--now", at, "feedback", "--input", "-", stdin=lines).done()
    return sum(costs)


def spent(db: str, reference: str = "p") -> tuple[float, float, float]:
    """Slots, their cost, and how many of these have a known cost, by the belief of a version."""
    with closing(Store(db)) as store, store.read() as unit:
        version, _ = lookup.version(unit, reference)
        rows = beliefs.spend(unit, version.id)
    return sum(row.pulls for row in rows), sum(row.reward_sum for row in rows), sum(row.reward_squares for row in rows)


def audit(run: Run, at: str = "2030-02-01T00:00:00Z") -> dict[str, int]:
    report = run("--now", at, "doctor", "--json").json
    assert [row for row in report["findings"] if row["severity"] == "error"] == []
    return dict(report["checked"])


@ON_BOTH
def test_slots_count_when_they_are_served_and_costs_when_they_come(shop: Run, db: str) -> None:
    first = ask(shop, 6, at=MORNING, seed=1)
    assert spent(db) == (6, 0, 0)
    cost = pay(shop, first[:4], at=NOON)
    assert spent(db) == pytest.approx((6, cost, 4))
    more = ask(shop, 5, at=EVENING, seed=2)
    cost += pay(shop, first[4:] + more, at=NEXT_DAY)
    assert spent(db) == pytest.approx((11, cost, 11))
    shop("--now", NEXT_DAY, "feedback", first[0]["decision_id"], "cost=0.5").done()  # a second cost of one answer
    shop("--now", NEXT_DAY, "feedback", first[1]["decision_id"], "--censor").done()  # nobody judged what it cost
    assert spent(db) == pytest.approx((11, cost + 0.5, 11))
    assert audit(shop)["propensities"] == 11


def test_a_cost_counts_in_the_period_of_its_decision(shop: Run, db: str) -> None:
    first = ask(shop, 3, at=MORNING, seed=1)
    pay(shop, first, at=NEXT_DAY)
    with closing(Store(db)) as store, store.read() as unit:
        rows = beliefs.spend(unit, lookup.version(unit, "p")[0].id)
    assert len({row.bucket for row in rows}) == 1


def test_the_price_stands_in_the_context_of_each_decision(shop: Run) -> None:
    pay(shop, ask(shop, 12, at=MORNING, seed=1, context={"task": "mail"}), at=MORNING)
    answer = ask(shop, 1, at=NOON, seed=2, context={"task": "mail"})[0]
    shown = shop("decision", "show", answer["decision_id"], "--json").json
    assert shown["context"]["task"] == "mail"
    assert shown["context"]["@price"] > 0
    assert shown["agrees"]
    assert shop("decision", "show", 1, "--json").json["context"]["@price"] == 0


def test_a_policy_shows_its_spend_its_price_and_the_costs_of_arms(shop: Run) -> None:
    cost = pay(shop, ask(shop, 12, at=MORNING, seed=1), at=MORNING)
    shown = shop("--now", NOON, "policy", "show", "p", "--json").json
    table, price = shop("--now", NOON, "policy", "show", "p").stdout, shown["budget"].pop("price")
    assert shown["budget"] == {"event": "cost", "amount": 0.1, "period": "day", "spent": pytest.approx(cost)}
    answer = ask(shop, 1, at=NOON, seed=2)[0]
    assert shop("decision", "show", answer["decision_id"], "--json").json["context"]["@price"] == price > 0
    by_arm = {row["arm"]: row for row in shown["arms"]}
    shown_arm = answer["slate"][0]
    assert by_arm[shown_arm["arm"]]["probability"] == pytest.approx(shown_arm["propensity"])
    assert by_arm["small"]["cost"] < by_arm["middle"]["cost"] < by_arm["large"]["cost"]
    assert "of 0.1 (cost); nothing is left: the cheapest arms serve" in table
    assert "budget" not in shop("policy", "create", "q", *words(), "--json").json["params"]


def test_a_budget_that_is_spent_leaves_the_cheapest_arm_and_the_floor(shop: Run) -> None:
    shop("policy", "create", "q", *words(budget="cost:0.2/day")).done()
    assert pay(shop, ask(shop, 30, at=MORNING, seed=1, policy="q"), at=MORNING) > 0.2
    answers = ask(shop, 20, at=NOON, seed=2, policy="q")
    propensity = {decision["slate"][0]["arm"]: decision["propensity"] for decision in answers}
    assert propensity["small"] == pytest.approx(0.8, abs=1e-4)
    tomorrow = ask(shop, 20, at=NEXT_DAY, seed=3, policy="q")
    shown = [shop("--now", NEXT_DAY, "policy", "show", "q", *form) for form in ((), ("--json",))]
    assert f"of 0.2 (cost); price {shown[1].json['budget']['price']:.4g}" in shown[0].stdout
    assert max(row["propensity"] for row in tomorrow if row["slate"][0]["arm"] != "small") > 0.11


def test_a_retry_with_the_price_moved_is_the_same_request(shop: Run) -> None:
    line = ("--policy", "p", "--session", "s", "--request-id", "r1", "--json")
    first = shop("--now", MORNING, "recommend", *line).done().json
    pay(shop, [first, *ask(shop, 9, at=MORNING, seed=1)], at=MORNING)
    assert shop("--now", NOON, "recommend", *line).done().json == {**first, "duplicate": True}


@pytest.mark.slow
@ON_BOTH
def test_copies_go_on_from_what_was_spent(shop: Run, db: str) -> None:
    pay(shop, ask(shop, 8, at=MORNING, seed=1, user="u1"), at=MORNING)
    shop("--now", NOON, "policy", "freeze", "p").done()
    assert spent(db, "p@2") == spent(db)
    shop("--now", NOON, "policy", "rebuild", "p").done()
    shop("--now", NOON, "experiment", "create", "e", "--variant", "a=p", "--variant", "b=uniform").done()
    assert spent(db, "p@e/a") == spent(db) == spent(db, "p@2")
    pay(shop, ask(shop, 4, at=EVENING, seed=2), at=EVENING)
    frozen = ask(shop, 3, at=EVENING, seed=3, policy="p@2")
    pay(shop, frozen, at=EVENING)
    assert [spent(db, name)[0] for name in ("p", "p@2", "p@e/a")] == [15, 8, 8]
    assert audit(shop)["propensities"] == 15
    shop("--now", NEXT_DAY, "db", "forget", "--user", "u1", "--yes").done()
    audit(shop)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [{}, {"discount": 0.9}, {"window": 64}])
def test_pruned_and_forgotten_decisions_leave_an_audit_that_adds_up(
    shop: Run, db: str, memory: dict[str, float]
) -> None:
    shop("policy", "create", "q", *words(budget="cost:0.1/day", **memory)).done()
    for seed, (at, user) in enumerate([(MORNING, "u1"), (NOON, "u2"), (NEXT_DAY, "u1")], 1):
        pay(shop, ask(shop, 4, at=at, seed=seed, user=user, policy="q"), at=at)
    shop("--now", "2030-01-04T00:00:00Z", "db", "forget", "--user", "u2", "--yes").done()
    assert spent(db, "q")[0] == 8
    audit(shop)
    shop("--now", "2030-01-04T00:00:00Z", "db", "prune", "--before", "2030-01-03T00:00:00Z", "--yes").done()
    assert spent(db, "q")[0] == 8
    audit(shop)


def test_an_audit_says_where_spend_is_not_that_of_the_log(shop: Run, sqlite_db: str) -> None:
    pay(shop, ask(shop, 8, at=MORNING, seed=1), at=MORNING)
    with closing(sqlite3.connect(sqlite_db)) as tampered, tampered:
        for table in ("belief", "belief_delta"):
            tampered.execute(f"UPDATE {table} SET reward_sum = reward_sum + 1 WHERE bucket < 0")
        tampered.execute("UPDATE belief_delta SET d_reward_sum = d_reward_sum + 1 WHERE bucket < 0")
    findings = shop("--now", NEXT_DAY, "doctor", "--json").json["findings"]
    assert any("its slots and events give" in row["detail"] for row in findings)


def test_a_new_policy_knows_costs_and_requests_of_the_log_that_taught_it(shop: Run, db: str) -> None:
    cost = pay(shop, ask(shop, 30, at=MORNING, seed=1), at=MORNING)
    later = "2030-03-05T06:00:00Z"
    shop("--now", later, "policy", "create", "q", *words(budget="cost:0.05/day"), "--from-log", "policy=p").done()
    assert spent(db, "q") == pytest.approx((30, cost, 30))
    answer = ask(shop, 1, at=later, seed=5, policy="q")[0]
    assert shop("decision", "show", answer["decision_id"], "--json").json["context"]["@price"] > 0
    audit(shop, "2030-03-06T12:00:00Z")


@pytest.mark.parametrize("kind", ["epsilon-greedy", "ucb", "ucb-tuned", "kl-ucb"])
def test_other_kinds_with_a_score_have_a_price_too(shop: Run, kind: str) -> None:
    shop("policy", "create", "q", *words(kind=kind, budget="cost:0.03/day")).done()
    for seed in range(3):
        pay(shop, ask(shop, 9, at=MORNING, seed=seed, policy="q"), at=MORNING)
    assert shop("decision", "show", 27, "--json").json["context"]["@price"] > 0
    assert audit(shop)["propensities"] == 27


def test_a_budget_of_an_event_that_no_reward_weighs_is_refused(shop: Run) -> None:
    refused = shop("policy", "create", "q", *words(budget="euros:3/day"), "--json")
    assert refused.exit_code == 2
    assert "no reward definition weighs 'euros'" in refused.error["error"]
    assert "rlrec reward define savings 'euros=-1'" in refused.error["hint"]


def test_kinds_without_a_score_of_each_arm_and_stages_have_no_budget(shop: Run) -> None:
    for kind, name in (("exp3", "budget"), ("two-stage", "second.budget"), ("lin-thompson", "budget")):
        refused = shop("policy", "create", "q", "--kind", kind, "--param", f"{name}=cost:3/day", "--json")
        assert refused.exit_code == 2
        assert f"no parameter '{name}'" in refused.error["error"]
        assert refused.error["hint"].startswith("whole policies of these kinds have one: epsilon-greedy, ")


def test_the_price_decides_between_the_arms_that_rules_leave(db: str, tmp_path: Path) -> None:
    """As in a store that has these arms alone."""
    prices = []
    for path, arms, rules in (
        (db, ["middle", "large", "small"], {"arms": "middle,large"}),
        ("two.db", ["middle", "large"], {}),
    ):
        run = runner(path if path == db else str(tmp_path / path))
        run("init").done()
        run("arm", "import", "-", stdin=[{"arm": arm} for arm in arms]).done()
        run("reward", "define", "value", "quality=1", "--clip", "0,1", "--window", "1h").done()
        run("reward", "define", "spend", "cost=1").done()
        run("policy", "create", "p", *words(budget="cost:0.2/day", **rules)).done()
        pay(run, ask(run, 24, at=MORNING, seed=1), at=MORNING)
        answer = ask(run, 1, at=NOON, seed=2)[0]
        prices.append(run("decision", "show", answer["decision_id"], "--json").json["context"]["@price"])
    assert prices[0] == prices[1] > 0


@pytest.mark.slow
def test_a_budget_in_a_shadow_a_sweep_and_a_copy(shop: Run, db: str, tmp_path: Path) -> None:
    """A shadow spends nothing, a sweep refuses what it cannot know, and a copy goes on from what was spent."""
    shop("policy", "create", "even", "--kind", "uniform", "--reward", "value").done()
    shop("route", "create", "home", "--to", "even").done()
    shop("policy", "shadow", "home", "p").done()
    pay(shop, ask(shop, 12, at=MORNING, seed=1, policy="home"), at=MORNING)
    (shadow,) = shop("route", "show", "home", "--json").json["shadows"]
    assert (shadow["decisions"], spent(db)[0]) == (12, 0)
    refused = shop("sweep", "--kinds", "thompson", "--param", "thompson:budget=cost:0.1/day", "--log", "policy=even")
    assert (refused.exit_code, "a log does not tell what it would have spent" in refused.stderr) == (2, True)
    pay(shop, ask(shop, 9, at=NOON, seed=2), at=NOON)
    copied = str(tmp_path / "copy.db")
    shop("--now", EVENING, "db", "copy", "--to", copied, "--yes").done()
    assert spent(copied) == spent(db)
    answers = [ask(run, 5, at=EVENING, seed=4) for run in (shop, runner(copied))]
    assert answers[0] == answers[1]
    audit(runner(copied))


def test_a_request_states_no_price(shop: Run) -> None:
    refused = shop("recommend", "--policy", "p", "--session", "s", "--context", '{"@price": 3}', "--json")
    assert refused.exit_code == 2
    assert "'@price'" in refused.error["error"]


def test_a_log_with_prices_comes_back(shop: Run, tmp_path: Path) -> None:
    pay(shop, ask(shop, 6, at=MORNING, seed=1), at=MORNING)
    ask(shop, 2, at=NOON, seed=2)
    file = tmp_path / "log.jsonl"
    shop("export-log", file).done()
    shop("import-log", file, "--layout", "jsonl", "--policy", "old").done()
    assert (
        shop("decision", "show", 16, "--json").json["context"] == shop("decision", "show", 8, "--json").json["context"]
    )
    assert audit(shop)["propensities"] == 8


@pytest.mark.simulation
def test_days_of_models_spend_their_budget_and_earn_what_the_best_mix_does(shop: Run, sqlite_db: str) -> None:
    world, requests = World.random(21), 400
    shop("arm", "import", "-", stdin=[{"arm": name} for name in world.names]).done()
    for arm in COSTS:
        shop("arm", "retire", arm).done()
    cost = world.cost_between(0.4)
    shop("reward", "define", "paid", "cost_usd=1").done()
    shop("policy", "create", "q", *words(floor=0.02, budget=f"cost_usd:{cost * requests}/day")).done()
    with closing(opened(Path(sqlite_db))) as store:
        clients = Clients(store, world, "q", seed=5, first_day="2030-01-02T00:00:00Z")
        days = [clients.day(number, requests, group=10) for number in range(3)]
    assert [day.cost / (cost * requests) for day in days[1:]] == pytest.approx([1, 1], abs=0.05)
    best = [world.best_mix(cost * requests / day.requests)[0] for day in days]
    assert sum(day.quality / day.requests for day in days[1:]) > 0.9 * sum(best[1:])
    assert audit(shop)["propensities"] == sum(day.requests for day in days)
