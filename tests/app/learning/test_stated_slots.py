"""Features that requests and imported lines state of arms teach the policies that read them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from rlrec.app.distributions import exact
from rlrec.arrays import Array
from rlrec.policy.kinds.linear import Linear
from rlrec.store import Store, Unit
from rlrec.store.log import settings
from rlrec.store.policies import arms, beliefs, policies
from tests.conftest import ON_BOTH, Run, jsonl

READ = {"context": {"fields": {"hour": "number"}}, "arm": {"fields": {"price": "number", "new": "flag"}}}
FIRST: dict[str, dict[str, Any]] = {"a": {"price": 0.5}, "b": {"price": 2, "new": True}, "c": {"price": 1}}
MODELS = {
    "shared": ["linucb", "model=shared", "floor=0.25"],
    "hybrid": ["lin-thompson", "model=hybrid", "samples=20", "floor=0.25"],
    "moving": ["squarecb", "model=hybrid", "window=40"],
    "fading": ["softmax", "model=hybrid", "temperature=1", "discount=0.5"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("read.json").write_text(json.dumps(READ))


def stocked(run: Run, at: str = "2026-01-01T00:00:00Z") -> None:
    catalogue = jsonl({"arm": key, "features": features} for key, features in FIRST.items())
    assert run("--now", at, "arm", "import", "-", stdin=catalogue).exit_code == 0


def create(run: Run, name: str, *options: str, model: str = "shared") -> None:
    kind, *params = MODELS[model]
    typed = [word for param in params for word in ("--param", param)]
    run("policy", "create", name, "--kind", kind, *typed, "--features", "read.json", *options).done()


class Shop:
    """What a shop asked, showed and heard, by which a reference is computed: per slot arm, context, features that were
    stated of the arm, and the reward, None while it is censored."""

    def __init__(self, run: Run, policy: str, seed: int) -> None:
        self.run, self.policy, self.rng, self.now = run, policy, random.Random(seed), 0
        self.slots: dict[tuple[int, int], list[Any]] = {}

    def clock(self) -> str:
        self.now += 1
        return f"2026-01-02T{self.now:02}:00:00Z"

    def serve(self, n: int) -> None:
        """A group of requests, of which two thirds state something, some only a part."""
        requests = list[dict[str, Any]]()
        for number in range(n):
            entries = [
                {"price": self.rng.choice([0, 0.5, 1, 3]), "new": self.rng.random() < 0.5},
                {"price": self.rng.choice([0, 2.5])},
                {},
            ]
            listed = [{"arm": key, "features": self.rng.choice(entries)} for key in FIRST]
            requests.append(
                {"session": f"s{self.now}.{number}", "policy": self.policy, "k": 1 + number % 2, "arms": listed,
                 "context": {"hour": self.rng.choice([-1, 0, 1.5])}}
            )  # fmt: skip
        result = self.run("--now", self.clock(), "recommend", "--input", "-", "--seed", "4", stdin=requests).done()
        for request, line in zip(requests, result.stdout.splitlines(), strict=True):
            answer, stated = json.loads(line), {entry["arm"]: entry["features"] for entry in request["arms"]}
            for slot in answer["slate"]:
                row = [slot["arm"], request["context"]["hour"], stated[slot["arm"]], 0.0]
                self.slots[answer["decision_id"], slot["position"]] = row

    def feed(self, share: float) -> None:
        """Clicks of some slots, late and repeated ones too; some slots are censored, or let in again."""
        lines = []
        for (number, position), row in self.slots.items():
            line = {"decision_id": number, "position": position}
            if self.rng.random() < share:
                lines.append(line | {"events": {"click": 1}})
                row[3] = None if row[3] is None else 1.0
                row[4:] = [1.0]
            if self.rng.random() < 0.2:
                censored = self.rng.random() < 0.6
                lines.append(line | {"censor": censored})
                row[3] = None if censored else float(len(row) > 4)
        self.run("--now", self.clock(), "feedback", "--input", "-", stdin=lines).done()

    def weights(self, model: str) -> Array:
        """How often each slot counts, by its age in decisions of one policy."""
        ordinals = {number: at for at, number in enumerate(sorted({number for number, _ in self.slots}), 1)}
        ages = np.array([len(ordinals) - ordinals[number] for number, _ in self.slots])
        if model == "moving":  # buckets of one ordinal
            return (ages < 40).astype(float)
        return 0.5**ages if model == "fading" else np.ones(len(ages))

    def ridge(
        self, model: str, catalogue: Mapping[str, Mapping[str, Any]], request: Mapping[str, Any], hour: float
    ) -> tuple[Array, Array]:
        """Mean and deviation of each arm's score by plain ridge regression on the features that stood in the log."""

        def regressor(key: str, hour: float, features: Mapping[str, Any]) -> Array:
            x = np.array([1.0, hour])
            z = np.array([1.0, features.get("new") is True, features.get("price", 0.0)])
            terms = [x * (key == other) for other in FIRST] if model != "shared" else []
            return np.concatenate([np.kron(z, x), *terms])

        used = [
            (weight, row) for weight, row in zip(self.weights(model), self.slots.values(), strict=True)
            if row[3] is not None
        ]  # fmt: skip
        rows = np.array([
            regressor(key, at, {**FIRST[key], **stated} if stated else catalogue[key])
            for _, (key, at, stated, *_) in used
        ])  # fmt: skip
        weight, reward = np.array([weight for weight, _ in used]), np.array([row[3] for _, row in used])
        precision = rows.T @ (rows * weight[:, None]) + np.eye(rows.shape[1])
        regressors = np.array([regressor(key, hour, {**catalogue[key], **request.get(key, {})}) for key in FIRST])
        mean = regressors @ np.linalg.solve(precision, rows.T @ (weight * reward))
        return mean, np.sqrt(np.einsum("ad,de,ae->a", regressors, np.linalg.inv(precision), regressors))


def posterior(unit: Unit, name: str, request: Mapping[str, Any], hour: float) -> tuple[Array, Array]:
    """Mean and deviation of each arm's score in a version that is live."""
    head = policies.by_name(unit, name)
    assert head is not None
    (version,) = policies.versions(unit, [head.id])[-1:]
    served = exact.load(unit, version)
    catalogue = arms.all_arms(unit)
    keys, ids = {arm.id: arm.key for arm in catalogue}, np.array([arm.id for arm in catalogue], np.int64)
    context = {"hour": hour, "@arms": {key: {"features": features} for key, features in request.items()}}
    assert served.arm_features is not None
    revision = served.arm_features.at_request(context, ids, keys, settings.get(unit).catalogue_revision)
    policy = cast("Linear", served.policy)
    solved, x = policy.posterior(served.belief(ids, revision=revision)), policy.encode(context)
    return solved.mean(x), solved.deviation(x)


def stored(unit: Unit, version_id: int, oldest: int) -> list[Any]:
    """The rows of a belief that hold something, without the ordinal that they were written at."""
    rows = [row[:2] + row[3:] for row in beliefs.rows(unit, version_id, start=oldest)]
    return [row for row in rows if any(row[2:5]) or any(np.frombuffer(row[5]))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("db", "model"), [*(("sqlite", model) for model in MODELS), ("postgres", "hybrid")], indirect=["db"]
)
def test_a_belief_is_the_ridge_regression_on_what_was_stated(run: Run, db: str, model: str) -> None:
    """To 1e-9 whatever came late, twice or was censored, after a change of the catalogue too; rebuilt to the last bit,
    as all numbers are sums of powers of two."""
    stocked(run)
    create(run, "seller", model=model)
    shop = Shop(run, "seller", seed=7)
    for _ in range(3):
        shop.serve(15)
        shop.feed(0.3)
    changed = {**FIRST, "a": {"price": 2, "new": True}}
    for catalogue in (FIRST, changed):
        run("--now", shop.clock(), "arm", "add", "a", "--features", json.dumps(catalogue["a"])).done()
        for request in ({}, {"a": {"price": 3, "new": False}, "b": {"new": False}}):
            with closing(Store(db)) as store, store.read() as unit:
                answer = posterior(unit, "seller", request, 1.5)
            np.testing.assert_allclose(answer, shop.ridge(model, catalogue, request, 1.5), rtol=0, atol=1e-9)
    doctor = run("--now", shop.clock(), "doctor")
    assert doctor.exit_code == 0, doctor.stdout
    run("--now", shop.clock(), "policy", "rebuild", "seller").done()
    with closing(Store(db)) as store, store.read() as unit:
        first, second = policies.versions(unit, [1])
        oldest = exact.load(unit, first).learner.forgetting.oldest_bucket(policies.ordinal(unit, 1))
        rows = [stored(unit, version.id, oldest) for version in (first, second)]
    assert len(rows[0]) >= 4
    if model == "fading":  # fades by steps, or all at once
        assert [row[:2] for row in rows[0]] == [row[:2] for row in rows[1]]
    else:
        assert rows[0] == rows[1]
    assert run("--now", shop.clock(), "doctor").exit_code == 0


def dsjson(shop: Shop, requests: Mapping[int, Any]) -> str:
    """The decisions of a shop as lines of Vowpal Wabbit, whose actions have all their features."""
    lines = []
    for (number, _), (key, hour, _, reward, *_) in shop.slots.items():
        listed = [{"id": arm, **features} for arm, features in requests[number].items()]
        shown = [*FIRST].index(key)
        actions = [shown + 1, *(at + 1 for at in range(len(FIRST)) if at != shown)]
        lines.append(
            {"_label_cost": -reward, "_label_probability": 0.5, "_label_Action": shown + 1, "_labelIndex": shown,
             "Timestamp": "2026-01-01T00:00:00Z", "EventId": f"e{number}", "a": actions, "p": [0.5, 0.25, 0.25],
             "c": {"hour": hour, "_multi": listed}}
        )  # fmt: skip
    return jsonl(lines)


@ON_BOTH
@pytest.mark.slow
def test_actions_of_an_imported_line_teach_as_the_decision_served_here(run: Run, db: str) -> None:
    """The same sums to the last bit from dsjson, from the log served here, and from that log exported and imported."""
    stocked(run)
    create(run, "seller")
    shop, rng = Shop(run, "seller", seed=3), random.Random(5)
    requests: dict[int, Any] = {}
    lines = []
    for number in range(1, 25):
        requests[number] = {key: {"price": rng.choice([0, 0.5, 3]), "new": rng.random() < 0.5} for key in FIRST}
        listed = [{"arm": key, "features": features} for key, features in requests[number].items()]
        lines.append({"session": f"s{number}", "policy": "seller", "arms": listed, "context": {"hour": number % 3}})
    answers = run("--now", "2026-01-02T00:00:00Z", "recommend", "--input", "-", "--seed", "4", stdin=lines)
    for answer in map(json.loads, answers.stdout.splitlines()):
        number = answer["decision_id"]
        shop.slots[number, 1] = [answer["slate"][0]["arm"], number % 3, {}, float(number % 2)]
    clicks = jsonl({"decision_id": number, "position": 1, "events": {"click": number % 2}} for number in requests)
    assert run("--now", "2026-01-02T00:01:00Z", "feedback", "--input", "-", stdin=clicks).exit_code == 0
    later = ("--now", "2026-01-03T00:00:00Z")
    for policy, layout, text in (
        ("actions", "dsjson", dsjson(shop, requests)),
        ("exported", "jsonl", run(*later, "export-log", "-", "--layout", "jsonl", "--log", "policy=seller").stdout),
    ):
        result = run(*later, "import-log", "-", "--layout", layout, "--policy", policy, stdin=text).done()
    for log in ("seller", "actions", "exported"):
        for model in ("shared", "hybrid"):
            result = run(*later, "policy", "create", f"{log}-{model}", "--kind", "squarecb", "--param",
                         f"model={model}", "--features", "read.json", "--from-log", f"policy={log}")  # fmt: skip
            assert result.exit_code == 0, result.stderr
    with closing(Store(db)) as store, store.read() as unit:
        fitted = [policy for policy in policies.all_policies(unit) if policy.name.endswith(("-shared", "-hybrid"))]
        rows = [stored(unit, policies.versions(unit, [policy.id])[-1].id, 0) for policy in fitted]
    assert rows[0] == rows[2] == rows[4]
    assert rows[1] == rows[3] == rows[5]
    assert any(row[0] >= beliefs.BY_ARM * beliefs.SECTION for row in rows[1])


@pytest.mark.slow
def test_what_was_stated_is_copied_pruned_and_forgotten_with_its_decisions(run_sqlite: Run, sqlite_db: str) -> None:
    """A copy of the store, a frozen version, a log that was pruned and a user who was forgotten: doctor derives all;
    and what is forgotten is what the user's slots had added."""
    run = run_sqlite
    stocked(run)
    create(run, "seller", model="hybrid")
    listed = [{"arm": key, "features": {"price": 4, "new": False}} for key in FIRST]
    lines = [
        {"session": f"s{n}", "user": "kept" if n % 2 else "gone", "policy": "seller", "arms": listed,
         "context": {"hour": n}}
        for n in range(12)
    ]  # fmt: skip
    run("--now", "2026-01-02T00:00:00Z", "recommend", "--input", "-", "--seed", "4", stdin=lines).done()
    later = ("--now", "2026-03-03T00:00:00Z")
    for arguments in (
        ("policy", "freeze", "seller"), ("db", "copy", "--to", "copy.db"), ("db", "forget", "--user", "gone", "--yes"),
        ("doctor",), ("--db", "copy.db", "doctor"), ("db", "prune", "--before", "2026-02-01", "--yes"), ("doctor",),
    ):  # fmt: skip
        result = run(*later, *arguments)
        assert result.exit_code == 0, (arguments, result.stdout, result.stderr)
    with closing(Store(sqlite_db)) as store, store.read() as unit:
        together = [row for row in beliefs.rows(unit, 1) if row.bucket == beliefs.SECTION]
    assert [row.pulls for row in together] == [6.0]


@pytest.mark.slow
def test_a_sweep_and_an_estimate_replay_what_was_stated(run_sqlite: Run) -> None:
    """Where only features of requests tell what earns, a policy that learns by them is judged best in a sweep; and a
    twin that learned by the same log weighs every row of it as it was served."""
    run, rng = run_sqlite, random.Random(1)
    run("--now", "2026-01-01T00:00:00Z", "arm", "import", "-", stdin=jsonl({"arm": key} for key in FIRST))
    run("--now", "2026-01-01T00:00:00Z", "policy", "create", "any", "--kind", "uniform")
    number = 0
    for hour in range(10):
        lines, clicks = list[dict[str, Any]](), []
        for _ in range(40):
            listed = [{"arm": key, "features": {"price": rng.choice([0, 2])}} for key in FIRST]
            lines.append({"session": f"s{number + len(lines)}", "policy": "any", "arms": listed})
        clock = ("--now", f"2026-01-02T{hour:02}:00:00Z")
        answers = run(*clock, "recommend", "--input", "-", "--seed", "4", stdin=lines).stdout.splitlines()
        for line, answer in zip(lines, map(json.loads, answers), strict=True):
            number = answer["decision_id"]
            prices = {entry["arm"]: entry["features"]["price"] for entry in line["arms"]}
            click = int(prices[answer["slate"][0]["arm"]] == 0 and rng.random() < 0.9)
            clicks.append({"decision_id": number, "position": 1, "events": {"click": click}})
        run(*clock, "feedback", "--input", "-", stdin=clicks)
    later = ("--now", "2026-01-04T00:00:00Z")
    kinds = ["--kinds", "linucb", "--param", "linucb:model=disjoint,shared,hybrid", "--param", "linucb:floor=0.1"]
    swept = run(*later, "sweep", *kinds, "--features", "read.json", "--json").json
    lifts = {row["params"].get("model"): row["lift"] for row in swept["candidates"] if row["kind"]}
    assert lifts["shared"] > 0.5
    assert lifts["hybrid"] > 0.5
    assert abs(lifts["disjoint"]) < 0.3
    create(run, "twin", "--from-log", "policy=any")
    assert run(*later, "doctor").exit_code == 0
    (row,) = run(*later, "evaluate", "twin", "--log", "policy=any", "--estimator", "snips", "--json").json
    assert row["lift"] > 0.5


@pytest.mark.slow
def test_a_version_of_an_older_release_learns_by_the_catalogue_until_it_is_rebuilt(
    run_sqlite: Run, sqlite_db: str
) -> None:
    """Its design does not say that it learns what is stated: what it served before is corrected as it was counted."""
    run = run_sqlite
    stocked(run)
    create(run, "seller")
    with closing(Store(sqlite_db)) as store:
        store.write(
            lambda unit: unit.tell("UPDATE version SET parameters = json_remove(parameters, '$.learns_stated')")
        )
    shop = Shop(run, "seller", seed=1)
    shop.serve(12)
    shop.feed(0.5)
    with closing(Store(sqlite_db)) as store, store.read() as unit:
        assert max(row.bucket for row in beliefs.rows(unit, 1)) == 0
    assert run("--now", shop.clock(), "doctor").exit_code == 0
    assert run("--now", shop.clock(), "policy", "rebuild", "seller").exit_code == 0
    with closing(Store(sqlite_db)) as store, store.read() as unit:
        answer = posterior(unit, "seller", {"a": {"price": 3}}, 1.5)
    np.testing.assert_allclose(answer, shop.ridge("shared", FIRST, {"a": {"price": 3}}, 1.5), rtol=0, atol=1e-9)
    assert run("--now", shop.clock(), "doctor").exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("model", ["shared", "hybrid"])
def test_a_long_process_serves_by_what_its_earlier_groups_stated(run_sqlite: Run, sqlite_db: str, model: str) -> None:
    """It takes changes over from group to group; doctor derives every propensity from the stored beliefs."""
    run, rng = run_sqlite, random.Random(3)
    stocked(run)
    create(run, "seller", model=model)
    lines = list[dict[str, Any]]()
    for number in range(24):
        features = [{"price": rng.choice([0, 2, 4])}, {}]
        listed = [{"arm": key, "features": rng.choice(features)} for key in FIRST]
        name = f"r{number}"
        lines.append(
            {"op": "recommend", "session": f"s{number}", "request_id": name, "policy": "seller", "arms": listed}
        )
        lines.append({"op": "feedback", "request_id": name, "position": 1, "events": {"click": number % 2}})
        if number % 3 == 2:
            lines.append({"op": "flush"})
    result = run("pipe", "--seed", "5", stdin=lines)
    assert result.exit_code == 0, result.stdout[-500:]
    assert '"error"' not in result.stdout
    with closing(Store(sqlite_db)) as store, store.read() as unit:
        assert beliefs.rows(unit, 1)[-1].bucket >= beliefs.SECTION
        assert len({seq for (seq,) in unit.ask("SELECT belief_seq FROM decision")}) > 5
    doctor = run("doctor")
    assert doctor.exit_code == 0, doctor.stdout
