"""Features that requests state of their arms stand above those of the catalogue: when serving, and wherever a
distribution is derived again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run, begin

READ = {"context": {"fields": {"hour": "number"}}, "arm": {"fields": {"price": "number", "new": "flag"}}}
PRICES: dict[str, dict[str, Any]] = {"a": {"price": 0}, "b": {"price": 3, "new": True}, "c": {"price": 1}}
SWAPPED: dict[str, dict[str, Any]] = {"a": {"price": 3, "new": True}, "b": {"price": 0, "new": False}}
KINDS = {
    "linucb": ["--kind", "linucb", "--param", "model=shared", "--param", "floor=0.1"],
    "softmax": ["--kind", "softmax", "--param", "model=hybrid", "--param", "temperature=0.3"],
    "thompson": ["--kind", "lin-thompson", "--param", "model=shared", "--param", "samples=200"],
    "odds": ["--kind", "plackett-luce", "--param", "model=features"],
    "stages": ["--kind", "two-stage", "--param", "first=plackett-luce", "--param", "first.model=features",
               "--param", "second=thompson", "--param", "candidates=2"],
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def shop(run: Run) -> Run:
    """A store with a log in which what is cheap earns."""
    run("arm", "import", "-", stdin=[{"arm": arm, "features": PRICES[arm]} for arm in PRICES])
    lines = [
        {"session": f"s{arm}{n}", "eligible": ["a", "b", "c"], "slate": [{"arm": arm, "propensity": 1 / 3}],
         "reward": float(arm == "a" or (arm == "c" and n % 2 == 0)), "context": {"hour": n % 3}}
        for arm in PRICES for n in range(20)
    ]  # fmt: skip
    assert run("import-log", "-", "--layout", "jsonl", "--policy", "old", stdin=lines).exit_code == 0
    Path("read.json").write_text(json.dumps(READ))
    return run


def create(run: Run, name: str, *, kind: str = "") -> str:
    """A frozen version: what it serves changes nothing of what it serves next."""
    arguments = ["--features", "read.json", "--from-log", "policy=old"]
    run("policy", "create", name, *KINDS[kind or name], *arguments).done()
    assert run("policy", "freeze", name).exit_code == 0
    return f"{name}@2"


def stated(features: dict[str, dict[str, Any]]) -> list[Any]:
    return [{"arm": arm, "features": features.get(arm, {})} for arm in PRICES]


def probabilities(run: Run, policy: str, arms: list[Any], *, hour: int = 1) -> dict[str, float]:
    line = json.dumps({"session": "p", "policy": policy, "arms": arms, "context": {"hour": hour}})
    answer = run("recommend", "--input", "-", "--seed", "5", stdin=line).done()
    number = json.loads(answer.stdout)["decision_id"]
    shown = run("decision", "show", str(number), "--json").json
    assert shown["agrees"] is True
    return {row["arm"]: row["probabilities"][0] for row in shown["arms"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("db", "name"),
    [*(("sqlite", name) for name in KINDS if name != "stages"), ("postgres", "linucb"), ("postgres", "odds")],
    indirect=["db"],
)
def test_arms_that_a_request_describes_alike_are_served_alike(shop: Run, name: str) -> None:
    """Where a and b swap their features, they swap their probabilities; `hybrid` knows them by name as well."""
    version = create(shop, name)
    plain, swapped = (probabilities(shop, version, arms) for arms in (list(PRICES), stated(SWAPPED)))
    assert probabilities(shop, version, stated({})) == pytest.approx(plain, abs=0.1 if name == "thompson" else 1e-12)
    assert plain["a"] > plain["b"] + 0.05
    if name in ("linucb", "odds"):
        assert swapped == pytest.approx({"a": plain["b"], "b": plain["a"], "c": plain["c"]}, abs=1e-12)
    else:
        assert swapped["a"] < plain["a"] - 0.005
    added = probabilities(shop, version, stated({"c": {"new": True}}))
    if name == "odds":  # a feature is added to those of the catalogue
        assert added["c"] < plain["c"] - 1e-3
    assert shop("doctor").exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linucb", "odds", "stages"])
def test_a_policy_is_judged_on_its_log_as_it_served(shop: Run, name: str) -> None:
    """A twin that learned the same weighs everything 1, with many descriptions; doctor derives all."""
    version = create(shop, name)
    lines = [
        {"session": f"v{n}", "policy": version, "context": {"hour": n % 2}, "k": 1 + n % 2,
         "arms": stated({"a": {"price": n % 7}, "c": {"new": n % 3 == 0}})}
        for n in range(60)
    ]  # fmt: skip
    assert shop("recommend", "--input", "-", "--seed", "3", stdin=lines).exit_code == 0
    assert shop("doctor", "--json").exit_code == 0
    events = [{"decision_id": 61 + n, "position": 1, "events": {"click": n % 2}} for n in range(60)]
    assert shop("feedback", "--input", "-", stdin=events).exit_code == 0
    twin = create(shop, "twin", kind=name)
    target = ["--log", f"policy={name}", "--estimator", "ips", "--json"]
    (row,) = shop("--now", "2099-01-01T00:00:00Z", "evaluate", twin, *target).json
    assert (row["n"], row["lift"]) == (90, pytest.approx(0, abs=1e-12))
    assert row["value"] == pytest.approx(30 / 90)  # clicks a slot
    weights = [row[name] for name in ("max_weight", "mean_weight")]
    assert weights == pytest.approx([1, 1], abs=1e-9)


@pytest.mark.slow
def test_a_trained_version_reads_them_in_every_visit(shop: Run) -> None:
    """Imitating a policy that likes what is cheap: a and b swap their features, later steps of visits included."""
    copied = create(shop, "linucb")
    arguments = ["--kind", "gradient", "--param", "model=bilinear", "--features", "read.json", "--from-policy", copied]
    for name in ("visits", "twin"):
        shop("policy", "create", name, *arguments).done()
    plain, swapped = (probabilities(shop, "visits", arms) for arms in (list(PRICES), stated(SWAPPED)))
    assert swapped["a"] < plain["a"] - 0.05
    lines = [
        {"session": f"v{n % 20}", "policy": "visits", "context": {"hour": n % 2}, "k": 1 + n % 2,
         "arms": stated({"a": {"price": n % 7}, "c": {"new": n % 3 == 0}} if n % 4 else {})}
        for n in range(60)
    ]  # fmt: skip
    assert shop("recommend", "--input", "-", "--seed", "3", stdin=lines).exit_code == 0
    assert shop("doctor").exit_code == 0
    target = ["--log", "policy=visits", "--estimator", "ips", "--json"]
    (row,) = shop("--now", "2099-01-01T00:00:00Z", "evaluate", "twin", *target).json
    assert [row[name] for name in ("max_weight", "mean_weight")] == pytest.approx([1, 1], abs=1e-9)


@pytest.mark.parametrize(("features", "message"), [
    ({"price": "3"}, "\"price\" of arm 'a' is \"3\""), ({"new": 1}, "\"new\" of arm 'a' is 1"),
])  # fmt: skip
def test_features_of_a_wrong_type_are_refused(run_sqlite: Run, features: dict[str, Any], message: str) -> None:
    run_sqlite("arm", "import", "-", stdin=[{"arm": arm} for arm in "abc"])
    Path("read.json").write_text(json.dumps(READ))
    create_plain = ["--kind", "linucb", "--param", "model=shared", "--features", "read.json"]
    run_sqlite("policy", "create", "seeing", *create_plain)
    line = json.dumps({"session": "p", "policy": "seeing", "arms": stated({"a": features})})
    result = run_sqlite("recommend", "--input", "-", stdin=line)
    refused = json.loads(result.stdout)
    assert (result.exit_code, refused["field"]) == (5, f"arms.a.features.{next(iter(features))}")
    assert refused["error"].startswith(message)


def test_a_cap_counts_the_features_that_each_request_states(run_sqlite: Run) -> None:
    """Two requests of one group, with the same arms and rules: at most one new arm, and other ones are new."""
    begin(run_sqlite, "abc", "any", "uniform")
    new = [{"a": {"new": True}, "b": {"new": True}}, {"b": {"new": True}, "c": {"new": True}}]
    lines = [
        {"session": f"s{n}", "policy": "any", "k": 2, "arms": stated(new[n % 2]), "page": {"most": {"new": 1}}}
        for n in range(40)
    ]
    answers = [
        json.loads(row)
        for row in run_sqlite("recommend", "--input", "-", "--seed", "2", stdin=lines).stdout.splitlines()
    ]
    for number, answer in enumerate(answers):
        assert {slot["arm"] for slot in answer["slate"]} != new[number % 2].keys()
    assert run_sqlite("doctor").exit_code == 0
