"""rlrec decision."""

import csv
import io
from typing import Any

import pytest

from rlrec.store import Store
from tests.conftest import Run, runner, store_after

KINDS = {"thompson": ("floor=0.1",), "ucb": ("floor=0.2",), "epsilon-greedy": ("epsilon=0.3",), "uniform": ()}


def prepared(db: str) -> None:
    run = runner(db)
    run("arm", "import", "-", stdin=[{"arm": key} for key in ("x", "y", "z")])
    for kind, parameters in KINDS.items():
        run(
            "policy",
            "create",
            kind,
            "--kind",
            kind,
            *(word for parameter in parameters for word in ("--param", parameter)),
        )


ready = store_after(prepared)


def serve(run: Run, policy: str, *words: Any) -> Any:
    return run("recommend", "--policy", policy, "--session", "s1", *words, "--json").json["decision_id"]


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_derived_again_from_the_belief_of_then(ready: Any, kind: str) -> None:
    ready("feedback", serve(ready, kind), "click")
    number = serve(ready, kind, "-k", "2")
    ready("feedback", serve(ready, kind), "click")  # what is learned later does not matter
    answer = ready("decision", "show", number, "--json").json
    assert answer["agrees"] is True
    assert sum(arm["pulls"] for arm in answer["arms"]) == 1
    for index, slot in enumerate(answer["slate"]):
        assert sum(arm["probabilities"][index] for arm in answer["arms"]) == pytest.approx(1)
        assert slot["derived_propensity"] == pytest.approx(slot["propensity"])
        assert slot["derived_marginal"] == pytest.approx(slot["marginal"])


def test_arm_above_has_no_probability_below(ready: Any) -> None:
    answer = ready("decision", "show", serve(ready, "thompson", "-k", "3"), "--json").json
    top = next(arm for arm in answer["arms"] if arm["arm"] == answer["slate"][0]["arm"])
    assert top["probabilities"][1:] == [0.0, 0.0]


def test_events_and_reward_stand_beside(ready: Any) -> None:
    number = serve(ready, "thompson", "-k", "2")
    ready("feedback", number, "click", "--position", "1")
    answer = ready("decision", "show", number, "--json").json
    assert [slot["reward"] for slot in answer["slate"]] == [1.0, 0.0]
    assert (answer["reward"], answer["reward_definition"], len(answer["events"])) == (1.0, "default", 1)


def test_eligible_arms_are_those_of_the_request(ready: Any) -> None:
    number = serve(ready, "uniform", "--arms", "x,z")
    ready("arm", "retire", "x")
    answer = ready("decision", "show", number, "--json").json
    assert {arm["arm"]: arm["probabilities"] for arm in answer["arms"]} == {"x": [0.5], "z": [0.5]}


def test_tampered_propensity_is_noticed(ready: Any, store: Store) -> None:
    import sqlalchemy as sa

    number = serve(ready, "thompson")
    store.write(lambda unit: unit.connection.execute(sa.text("UPDATE slot SET propensity = propensity * 0.999")))
    assert ready("decision", "show", number, "--json").json["agrees"] is False
    assert "DISAGREE" in ready("decision", "show", number).stdout


def test_variant_of_an_experiment_is_derived_from_its_fork(ready: Any) -> None:
    ready("feedback", serve(ready, "thompson"), "click")
    ready("experiment", "create", "ab", "--variant", "a=thompson", "--variant", "b=thompson", "--unit", "session")
    answer = ready("recommend", "--experiment", "ab", "--session", "s2", "-k", "2", "--json").json
    result = ready("decision", "show", answer["decision_id"], "--json").json
    assert (result["experiment"], result["variant"], result["agrees"]) == ("ab", answer["variant"], True)


def test_csv_has_a_row_a_slot_under_the_keys_of_json(ready: Any) -> None:
    number = serve(ready, "thompson", "-k", "2")
    slate = ready("decision", "show", number, "--json").json["slate"]
    output = ready("decision", "show", number, "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(output, newline="")))
    assert [(row["decision_id"], row["arm"]) for row in rows] == [(str(number), slot["arm"]) for slot in slate]
    assert set(slate[0]) < set(rows[0])
    assert [float(row["derived_propensity"]) for row in rows] == [slot["derived_propensity"] for slot in slate]
