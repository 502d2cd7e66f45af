"""Features of arms for one decision stand in for those of the catalogue."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rlrec.store import Store
from tests.conftest import ON_BOTH, Run

READ = {"context": {"fields": {}}, "arm": {"fields": {"price": "number"}}}
PRICES: dict[str, dict[str, Any]] = {"a": {"price": 0}, "b": {"price": 3}}
SWAPPED = {"a": PRICES["b"], "b": PRICES["a"]}


pytestmark = pytest.mark.usefixtures("folder")


def imported(run: Run, policy: str, arm: str, reward: float, **more: Any) -> None:
    lines = [
        {"session": f"{policy}{arm}{n}", "eligible": ["a", "b"], "slate": [{"arm": arm, "propensity": 0.5}],
         "reward": reward, **more}
        for n in range(20)
    ]  # fmt: skip
    assert run("import-log", "-", "--layout", "jsonl", "--policy", policy, stdin=lines).exit_code == 0


@pytest.fixture
def cheap(run: Run) -> Run:
    """A store with a policy that has learned to show what is cheap, from a log of the catalogue."""
    run("arm", "import", "-", stdin=[{"arm": arm, "features": PRICES[arm]} for arm in PRICES])
    for arm in "ab":
        imported(run, "old", arm, float(arm == "a"))
    Path("read.json").write_text(json.dumps(READ))
    run("policy", "create", "cheap", "--kind", "softmax", "--param", "model=shared", "--param", "temperature=0.3",
        "--features", "read.json", "--from-log", "policy=old")  # fmt: skip
    return run


def value(run: Run, policy: str) -> float:
    (row,) = run("evaluate", "cheap", "--log", f"policy={policy}", "--estimator", "ips", "--json").json
    return float(row["value"])


@ON_BOTH
@pytest.mark.slow
def test_a_target_reads_the_features_of_the_decision(cheap: Run) -> None:
    """`a` at the price of `b` is shown as often as `b` was; an arm that the line does not describe is as it was."""
    imported(cheap, "plain-a", "a", 1.0)
    imported(cheap, "plain-b", "b", 1.0)
    imported(cheap, "swapped-a", "a", 1.0, features=SWAPPED)
    imported(cheap, "partly-b", "b", 1.0, features={"a": PRICES["a"]})
    plain = value(cheap, "plain-a"), value(cheap, "plain-b")
    assert plain[0] > plain[1] + 0.2
    assert value(cheap, "swapped-a") == pytest.approx(plain[1], abs=1e-12)
    assert value(cheap, "partly-b") == pytest.approx(plain[1], abs=1e-12)


def test_features_of_an_arm_that_was_not_eligible_are_refused(run_sqlite: Run) -> None:
    line = {"session": "s", "eligible": ["a"], "slate": [{"arm": "a"}], "features": {"b": {"price": 1}}}
    assert "field features" in run_sqlite("import-log", "-", "--layout", "jsonl", stdin=json.dumps(line)).failed(2)


@ON_BOTH
def test_what_a_line_said_of_its_arms_is_forgotten_with_its_user(run: Run, db: str) -> None:
    line = {
        "session": "s", "user": "u1", "eligible": ["a", "b"], "slate": [{"arm": "a", "propensity": 0.5}],
        "features": PRICES, "support": {"a": 0.5, "b": 0.5}, "slot_sets": [["a", "b"]],
    }  # fmt: skip
    run("import-log", "-", "--layout", "jsonl", stdin=json.dumps(line))
    assert run("db", "forget", "--user", "u1", "--yes").exit_code == 0
    with closing(Store(db)) as store, store.read() as unit:
        for table in ("decision_features", "slot_set", "logged_support"):
            assert unit.ask(f"SELECT count(*) FROM {table}") == [(0,)]
        assert [body for (body,) in unit.ask("SELECT body FROM context") if "price" in body] == []


def test_arms_without_a_logged_probability_are_unsupported(run: Run) -> None:
    """`uniform` wants a third of c where the line says that it had no chance, half of it where the slot could show a
    and c alone; where all arms had one, nothing; what stands below position 1 is not known."""
    none, some = {"a": 0.5, "b": 0.5, "c": 0.0}, {"a": 0.25, "b": 0.25, "c": 0.5}
    lines = [
        {"support": none, "slate": [{"arm": "a", "propensity": 0.5}]},
        {"support": some, "slate": [{"arm": "a", "propensity": 0.25}]},
        {"support": {"a": 1.0, "b": 0.0, "c": 0.0}, "slot_sets": [["a", "c"]],
         "slate": [{"arm": "a", "propensity": 1.0}]},
        {"support": none, "slate": [{"arm": "b", "propensity": 0.5}, {"arm": "a", "propensity": 0.5}]},
    ]  # fmt: skip
    result = [json.dumps({"session": f"s{n}", "eligible": [*"abc"], **line}) for n, line in enumerate(lines)]
    assert run("import-log", "-", "--layout", "jsonl", stdin="\n".join(result)).exit_code == 0
    (row,) = run("evaluate", "uniform", "--estimator", "snips", "--json").json
    assert row["unsupported"] == pytest.approx((1 / 3 + 0 + 1 / 2 + 1 / 3) / 4, abs=1e-12)
    assert "unsupported" in row["reasons"]
