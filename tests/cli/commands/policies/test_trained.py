"""Trained policies from the shell: created, looked into, compared, in experiments, and their versions."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.policy.gradients.gradient import MEMORY_FEATURES
from rlrec.store import Store
from tests.app.learned import REPORT, trained
from tests.conftest import Run, runner, store_after

READ = {"context": {"fields": {"hour": "number"}}, "arm": {"fields": {"price": "number"}}}
NAMES = [
    "bias", "1", "hour", *(f"session:{name}" for name in ("step", "gap", "reward", "last", "variety")),
    "shown:1", "shown:price", "faded:1", "faded:price", *(f"own:{name}" for name in MEMORY_FEATURES),
]  # fmt: skip


def stocked(db: str) -> None:
    run, features = runner(db), Path(db).with_name("read.json")
    for number in range(1, 5):
        run("arm", "add", f"a{number}", "--features", json.dumps({"price": number}))
    features.write_text(json.dumps(READ))
    run("policy", "create", "home", "--kind", "gradient", "--param", "floor=0.1", "--features", features).done()


# Arms a1 to a4, and a policy `home` of which nothing is trained yet.
shop = store_after(stocked)


def practised(db: str) -> None:
    stocked(db)
    with closing(Store(db)) as store:
        trained(store, "home")


# Its version 2 is trained, and live.
learned = store_after(practised)


def visit(run: Run, *pages: int, name: str = "home", session: str = "s") -> list[Any]:
    """Decisions of one visit by their lengths; each first slot is clicked."""
    answers = []
    for size in pages:
        options = ("--session", session, "-k", size, "--context", '{"hour": 9}', "--seed", 4, "--json")
        answers.append(run("recommend", "--policy", name, *options).json)
        assert run("feedback", answers[-1]["decision_id"], "click", "--position", 1).exit_code == 0
    return answers


# -- one decision --


@pytest.mark.parametrize("size", [1, 3])
def test_a_decision_is_derived_from_what_it_remembers(learned: Run, size: int) -> None:
    *_, last = visit(learned, 2, 1, size)
    answer = learned("decision", "show", last["decision_id"], "--json").json
    assert (answer["agrees"], answer["version"], len(answer["arms"])) == (True, 2, 4)
    for position, slot in enumerate(answer["slate"]):
        assert slot["derived_propensity"] == pytest.approx(slot["propensity"], rel=1e-9)
        assert (slot["derived_marginal"] is None) == (slot["marginal"] is None) == (position > 0)
        arm = next(arm for arm in answer["arms"] if arm["arm"] == slot["arm"])
        assert arm["score"] == pytest.approx(slot["score"])
        assert arm["probabilities"][position] == pytest.approx(slot["propensity"])
    for position in range(size):
        assert sum(arm["probabilities"][position] for arm in answer["arms"]) == pytest.approx(1)


def test_a_person_sees_what_the_policy_saw(learned: Run) -> None:
    first, second = visit(learned, 2, 1)
    begins, result = (learned("decision", "show", answer["decision_id"], "--json").json for answer in (first, second))
    assert begins["features"] == {"1": 1.0, "hour": 9.0}
    assert all(arm["seen"] == {} for arm in begins["arms"])
    features = result["features"]
    assert (features["session:step"], features["session:reward"]) == pytest.approx((np.log(2), np.arcsinh(1)))
    top, below = (slot["arm"] for slot in first["slate"])
    observed = {slot["arm"]: slot["seen"] for slot in result["arms"] if slot["seen"]}
    assert observed == {
        top: pytest.approx({"count": np.log(2), "faded": 1, "last": 1, "earned": np.arcsinh(1)}),
        below: pytest.approx({"count": np.log(2), "faded": 1, "last": 1}),
    }
    assert (
        "features: constant=1, hour=9, session:step=0.6931" in learned("decision", "show", second["decision_id"]).stdout
    )


def bent(db: str, statement: str) -> None:
    with closing(Store(db)) as store:
        store.write(lambda unit: unit.tell(statement))


@pytest.mark.parametrize(
    ("change", "agrees"),
    [
        ("UPDATE slot SET propensity = 0.99 * propensity", False), ("UPDATE slot SET marginal = 0.5", False),
        ("UPDATE arm_weights SET weights = zeroblob(length(weights))", False),
        ("UPDATE decision SET history = NULL", None), ("UPDATE decision SET history = x'00'", None),
        ("UPDATE decision SET history = x''", False),
        ("UPDATE decision SET history = cast(substr(history, 1, 32) || x'ff' || substr(history, 34) as blob)", False),
        ("UPDATE decision SET history = cast(substr(history, 1, 24) || x'ff' || substr(history, 26) as blob)", None),
    ],
)  # fmt: skip
def test_what_does_not_agree_is_told(learned: Run, sqlite_db: str, change: str, agrees: bool | None) -> None:
    *_, last = visit(learned, 2, 3)
    bent(sqlite_db, change)
    result = learned("decision", "show", last["decision_id"], "--json").done()
    assert result.json["agrees"] is agrees
    assert learned("decision", "show", last["decision_id"]).exit_code == 0


@pytest.mark.slow
def test_a_variant_serves_what_its_version_serves(learned: Run) -> None:
    """Also in visits that go on: the same probabilities for the same histories."""
    learned("experiment", "create", "e", "--variant", "a=home", "--variant", "b=home@2", "--unit", "session")
    for session in ("u1", "u2", "u3", "u4"):
        for _ in range(3):
            options = ("--session", session, "--context", '{"hour": 9}', "-k", 2, "--json")
            answer = learned("recommend", "--experiment", "e", *options).json
            learned("feedback", answer["decision_id"], "click", "--position", 2)
            result = learned("decision", "show", answer["decision_id"], "--json").json
            assert result["agrees"]
            if not answer["step"]:
                other = {row["arm"]: row["probability"] for row in shown(learned, "home@2", hour=9)["arms"]}
                selected = {row["arm"]: row["probabilities"][0] for row in result["arms"]}
                assert selected == pytest.approx(other)
    assert learned("doctor", "--json").json["findings"] == []


# -- a policy --


def shown(run: Run, reference: str, **context: Any) -> Any:
    return run("policy", "show", reference, "--context", json.dumps(context), "--json").json


def test_weights_stand_under_the_names_of_features(learned: Run) -> None:
    result = shown(learned, "home")
    assert result["training"] == REPORT
    for arm in result["arms"]:
        assert list(arm["weights"]) == NAMES
        assert all(arm["weights"].values())
        assert arm["mean"] is arm["lower"] is arm["upper"] is None
    assert sum(arm["probability"] for arm in result["arms"]) == pytest.approx(1)
    assert len({round(arm["probability"], 9) for arm in result["arms"]}) == 4


def test_a_version_that_is_not_trained_is_uniform(learned: Run) -> None:
    result = shown(learned, "home@1")
    assert result["training"] is None
    assert [arm["probability"] for arm in result["arms"]] == pytest.approx([0.25] * 4)
    output = learned("policy", "show", "home@1").stdout
    assert "epoch" not in output
    assert "gate" not in output


def test_a_person_sees_how_it_learned(learned: Run) -> None:
    result = learned("policy", "show", "home", "--curve").stdout.splitlines()
    start = next(row for row, line in enumerate(result) if line.split()[:2] == ["epoch", "lr"])
    assert result[start].split() == [
        "epoch", "lr", "value", "gain", "lower", "upper", "ess", "entropy", "kl", "clipped", "variance",
        "without_baseline",
    ]  # fmt: skip
    curve = result[start + 2 : start + 4]
    assert curve[0].split() == [
        "1",
        "-",
        "0.25",
        "0.0625",
        "-0.125",
        "0.25",
        "90.5",
        "1.5",
        "0.03125",
        "0.25",
        "2",
        "8",
    ]
    assert curve[1].split() == ["2", "-", "-", "-", "-", "-", "-", "-", "-", "0", "1", "4"]
    assert result[start - 1].endswith("the best is epoch 1")
    gate = next(line for line in result if line.startswith("gate"))
    assert gate == (
        "gate: it is better than version 1: +50 % [+25, +75] per visit (weak: low-ess); value 0.75 against 0.5, by wdr "
        "on 60 sessions, ess 40.5, candidate 2 at alpha 0.0125"
    )


def test_a_gate_that_never_looked_is_said(shop: Run, sqlite_db: str) -> None:
    with closing(Store(sqlite_db)) as store:
        trained(store, "home", report={"curve": [], "best": 0, "gate": dict.fromkeys(REPORT["gate"])})
    assert "gate: not used for this version" in shop("policy", "show", "home").stdout


@pytest.mark.parametrize("form", ["table", "csv", "ndjson", "json"])
def test_every_format_shows_a_trained_policy(learned: Run, form: str) -> None:
    result = learned("policy", "show", "home", "--format", form)
    assert (result.exit_code, result.stderr) == (0, "")


def test_two_versions_are_compared(learned: Run) -> None:
    rows = learned("policy", "diff", "home@1", "home", "--json").json
    chance = {arm["arm"]: arm["probability"] for arm in shown(learned, "home")["arms"]}
    for row in rows:
        assert (row["probability_a"], row["mean_a"], row["mean_difference"]) == (pytest.approx(0.25), None, None)
        assert row["probability_difference"] == pytest.approx(chance[row["arm"]] - 0.25)
    assert learned("policy", "diff", "home@1", "home").exit_code == 0


def test_kinds_tell_of_it(run_sqlite: Run) -> None:
    result = next(policy for policy in run_sqlite("policy", "kinds", "--json").json if policy["kind"] == "gradient")
    assert result["parameters"] == {
        "model": "linear", "temperature": 1.0, "recency": 0.7, "floor": 0.0, "explore_slots": "", "position": "",
    }  # fmt: skip
    assert "train-pg" in result["when"]
    assert "gradient" in run_sqlite("policy", "kinds").stdout


# -- versions --


def probabilities(run: Run, reference: str) -> list[float]:
    return [arm["probability"] for arm in shown(run, reference, hour=3)["arms"]]


def test_freezing_copies_what_was_trained(learned: Run) -> None:
    answers = learned("policy", "freeze", "home", "--json")
    assert (answers.exit_code, answers.json["version"], answers.json["parent"]) == (0, 3, 2)
    assert probabilities(learned, "home@3") == probabilities(learned, "home@2")
    assert [row["weights"] for row in shown(learned, "home@3")["arms"]] == [
        row["weights"] for row in shown(learned, "home@2")["arms"]
    ]


def test_a_belief_cannot_be_rebuilt(learned: Run) -> None:
    refused = learned("policy", "rebuild", "home", "--json")
    assert refused.exit_code == 2
    assert "train-pg home" in refused.error["hint"]


def test_what_learns_nothing_cannot_be_retired(learned: Run) -> None:
    learned("policy", "freeze", "home")
    refused = learned("policy", "retire", "home@3", "--json")
    assert refused.exit_code == 2
    assert "frozen" in refused.error["error"]


def test_versions_go_live_and_back(learned: Run) -> None:
    trained_item = probabilities(learned, "home")
    assert learned("policy", "rollback", "home").exit_code == 0
    assert probabilities(learned, "home") == pytest.approx([0.25] * 4)
    assert visit(learned, 1)[0]["version"] == 1
    assert learned("policy", "promote", "home@2").exit_code == 0
    assert probabilities(learned, "home") == trained_item
    assert visit(learned, 1)[0]["version"] == 2


# -- making one --


def test_features_are_fitted_to_a_log(shop: Run) -> None:
    shop("policy", "create", "u", "--kind", "uniform")
    for number, page in enumerate(["x", "y", "x"]):
        shop("recommend", "--policy", "u", "--session", number, "--context", json.dumps({"page": page}))
    shop("--allow-future", "--now", "2099-01-01T00:00:00Z", "settle")
    now = ("--allow-future", "--now", "2099-01-01T00:00:00Z", "policy", "create", "fits", "--kind", "gradient")
    shop(*now, "--from-log", "policy=u", "--json").done()
    result = shown(shop, "fits")
    assert list(result["features"]["context"]["fields"]) == ["page"]
    assert list(result["features"]["arm"]["fields"]) == ["price"]
    assert {"page=x", "page=y"} <= set(result["arms"][0]["weights"])
    assert visit(shop, 2, 1, name="fits")[1]["step"] == 1


@pytest.mark.parametrize("options", [("--prior",), ("--prior-from", "policy=home")])
def test_a_prior_is_refused(shop: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "prior.csv").write_text("arm,alpha,beta\na1,2,3\n")
    params = (*options, tmp_path / "prior.csv") if len(options) == 1 else options
    refused = shop("policy", "create", "new", "--kind", "gradient", *params, "--json")
    assert refused.exit_code == 2
    assert "no prior" in refused.error["error"]


@pytest.mark.parametrize("param", ["model=shared", "temperature=0", "recency=2", "discount=0.9", "floor=-1"])
def test_impossible_parameters_are_refused(shop: Run, param: str) -> None:
    assert shop("policy", "create", "new", "--kind", "gradient", "--param", param).exit_code == 2


@pytest.mark.parametrize("name", ["bias", "session:gap", "shown:1", "own:earned"])
def test_a_field_of_contexts_bears_no_name_of_the_session(shop: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "named.json").write_text(json.dumps({"context": {"fields": {name: "number"}}}))
    refused = shop("policy", "create", "new", "--kind", "gradient", "--features", tmp_path / "named.json", "--json")
    assert refused.exit_code == 2
    assert repr(name) in refused.error["error"]
