"""Lines of Vowpal Wabbit and Personalizer: what becomes of each key, and of lines that cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.app.logs import summary
from tests.conftest import ON_BOTH, CommandResult, Run, empty_store

Line = dict[str, Any]
DISHES = [{"i": {"id": dish}, "j": [{"price": price}]} for dish, price in (("soup", 4), ("pasta", 8), ("salad", 6))]


pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def other(tmp_path: Path) -> Run:
    """Commands on an empty store of their own."""
    return empty_store(tmp_path / "other.db")


def rank(
    n: int, a: Iterable[int] = (1, 2, 3), p: Iterable[float] = (0.5, 0.25, 0.25), cost: float = 0, **more: Any
) -> Line:
    """A ranking event of a contextual bandit: actions are counted from 1."""
    a, p = list(a), list(p)
    return {
        "_label_cost": cost, "_label_probability": p[0], "_label_Action": a[0], "_labelIndex": a[0] - 1,
        "Timestamp": f"2026-01-31T12:{n // 60 % 60:02}:{n % 60:02}.0000000Z", "Version": "1", "EventId": f"e{n}",
        "a": a, "c": {"User": {"hour": n % 24}, "_multi": DISHES}, "p": p, "VWState": {"m": "N/A"}, **more,
    }  # fmt: skip


def reward(n: int, value: float, **more: Any) -> Line:
    """A reward that was received after its event was written."""
    return {"RewardValue": value, "EnqueuedTimeUtc": "2026-01-31T12:20:00Z", "EventId": f"e{n}",
            "Observations": [{"v": value, "EventId": f"e{n}", "ActionId": None}], **more}  # fmt: skip


def imported(run: Run, *lines: Line | str, options: Iterable[str] = ()) -> CommandResult:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    Path("log.json").write_text("".join(f"{text}\n" for text in texts))
    return run("import-log", "log.json", "--layout", "dsjson", "--policy", "rank", "--json", *options)


def test_a_line_becomes_a_decision(run: Run) -> None:
    """`a` counts from 1, the event id is the request id, and the id of an action its arm."""
    imported(run, rank(7, (2, 1, 3), (0.5, 0.125, 0.375), -1))
    (line,) = run("export-log", "-").lines
    (slot,) = line["slate"]
    assert (line["request_id"], slot["arm"], slot["propensity"], slot["min_propensity"]) == ("e7", "pasta", 0.5, 0.125)
    assert (line["eligible"], line["context"], line["reward"]) == (
        ["pasta", "salad", "soup"], {"User": {"hour": 7}}, 1.0
    )  # fmt: skip
    assert run("arm", "list", "--json").json[0]["features"] == {"i": {"id": "pasta"}, "j": [{"price": 8}]}


def test_rewards_in_other_lines_join_by_event_id(run: Run) -> None:
    """Whether they come before or after their decision, in this file or in the next."""
    Path("late.json").write_text(json.dumps(reward(2, 0.5)) + "\n")
    result = imported(run, reward(1, 1.0), rank(1), rank(2), reward(9, 1.0), options=["late.json"])
    assert result.json == summary(accepted=2)
    assert "1 observation without a decision" in result.stderr
    rewards = {line["request_id"]: line["reward"] for line in run("export-log", "-").lines}
    assert rewards == {"e1": 1.0, "e2": 0.5}
    again = imported(run, rank(1), reward(1, 0.25))
    assert "1 line stored before, with the observations of that time" in again.stderr


@ON_BOTH
def test_an_observation_joins_the_slot_that_it_names(run: Run) -> None:
    """By the `_id` of its outcome, as by the event id of a decision."""
    page = slots_of(1, "ccb")[0]
    for outcome in page["_outcomes"]:
        outcome["_label_cost"] = 0
    late = [{"RewardValue": value, "EventId": name} for name, value in (("0-1", 0.75), ("0-7", 1.0))]
    result = imported(run, *late, page)
    assert "1 observation without a decision" in result.stderr
    (line,) = run("export-log", "-").lines
    assert [(event["position"], event["kind"], event["value"]) for event in line["events"]] == [(2, "reward", 0.75)]


def test_lines_that_the_format_marks_are_skipped(run: Run) -> None:
    """Not to be learned from, never activated, or of a checkpoint; an activation may come in another line."""
    lines = [
        rank(1, _skipLearn=True),
        rank(2, DeferredAction=True, _deferred=True),
        rank(3, DeferredAction=True, o=[{"EventId": "e3", "DeferredAction": False}]),
        rank(4, DeferredAction=True),
        {"EventId": "e4", "ActionTaken": True},
        rank(6, DeferredAction=True),
        {"EventId": "e6", "RewardValue": None, "DeferredAction": False},
        rank(5),
        rank(7, pdrop=1),
        '["checkpoint", 7]',
        '{"checkpoint_info": {"reward_function_type": 0}}',
    ]
    assert imported(run, *lines).json == summary(accepted=4, skipped=5)
    assert [line["request_id"] for line in run("export-log", "-").lines] == ["e3", "e4", "e6", "e5"]
    assert not any(
        slot["censored"] for line in run("export-log", "-").lines for slot in line["slate"] if "censored" in slot
    )


def test_a_decision_of_a_log_that_dropped_lines_is_the_first_of_its_visit(run: Run) -> None:
    """Its session has no other line; where another key names the session, what came before may be missing."""
    imported(run, rank(1, pdrop=0.5), rank(2, pdrop=0.5, session="long"), rank(3))
    states = [line["state"] for line in run("export-log", "-").lines]
    assert states == [{"step": 0}, {}, {"step": 0}]


def test_a_log_of_an_apprentice_has_no_propensities(run: Run) -> None:
    """It earned nothing where it chose another action than the baseline, which was shown; a baseline alone says
    nothing."""
    result = imported(run, rank(1), rank(2, (2, 1, 3), cost=0, _original_label_cost=-1.0), rank(3))
    assert "log.json: rewards are withheld" in result.stderr
    assert "3 decisions without a propensity" in result.stderr
    assert {line["slate"][0]["propensity"] for line in run("export-log", "-").lines} == {None}
    imported(run, rank(4, (2, 1, 3), cost=-1, _original_label_cost=-1.0, _ba=[1, 2, 3]))
    assert run("export-log", "-").lines[-1]["slate"][0]["propensity"] == 0.5


def test_the_label_says_what_was_shown_where_actions_are_counted_from_0(run_sqlite: Run) -> None:
    """Actions stand in their order, as in logs of interaction-grounded learning; an original cost of 0, or one that
    another cost replaced, withholds nothing. Counts and `ips` are those of a plain sum over the lines."""
    random = np.random.default_rng(11)
    lines, earned = list[Line](), list[float]()
    for n in range(60):
        p = random.permutation([0.5, 0.3, 0.2]).tolist()
        shown = int(random.choice(3, p=p))
        cost = -float(random.random() < 0.5)
        label = {"_label_Action": shown + 1, "_labelIndex": shown, "_label_probability": p[shown]}
        observed = {"o": [{"v": {"v=click": 1}}], "_original_label_cost": 0.0 if n % 2 else cost / 2}
        lines.append(rank(n, (0, 1, 2), p, cost) | label | observed)
        earned.append(-cost / p[shown] / 3)
    assert imported(run_sqlite, *lines).json == summary(accepted=60)
    exported = run_sqlite("export-log", "-").lines
    for line, written in zip(exported, lines, strict=True):
        (slot,) = line["slate"]
        assert slot["arm"] == DISHES[written["_labelIndex"]]["i"]["id"]
        assert slot["propensity"] == written["p"][written["_labelIndex"]]
        assert line["reward"] == -written["_label_cost"]
    (row,) = run_sqlite("evaluate", "uniform", "--estimator", "ips", "--json").json
    assert (row["n"], row["value"]) == (60, pytest.approx(np.mean(earned), rel=1e-12))


@pytest.mark.parametrize(
    ("options", "expected"),
    [((), 0.25), (("--reward-from", "_original_label_cost"), 0.75), (("--reward-from", "o"), 0.5),
     (("--reward-from", "o.dwell"), 0.125)],
)  # fmt: skip
def test_a_reward_comes_from_another_key(run_sqlite: Run, options: Iterable[str], expected: float) -> None:
    observed = [{"v": 0.5, "EventId": "e1"}] if "o.dwell" not in options else [{"v": {"dwell": 0.125}, "EventId": "e1"}]
    imported(run_sqlite, rank(1, cost=-0.25, o=observed, _original_label_cost=-0.75), options=options)
    assert run_sqlite("export-log", "-").lines[0]["reward"] == expected


def test_slots_and_late_observations_have_the_key_of_the_reward_too(run_sqlite: Run) -> None:
    page = slots_of(1, "ccb")[0]
    for outcome, cost in zip(page["_outcomes"], (-0.25, -0.5), strict=True):
        outcome |= {"_label_cost": -1.0, "_original_label_cost": cost}
    imported(run_sqlite, page, options=["--reward-from", "_original_label_cost"])
    late = reward(1, 1.0) | {"Observations": [{"v": {"dwell": 0.125}}]}
    imported(run_sqlite, rank(1), late, options=["--reward-from", "o.dwell"])
    assert [line["reward"] for line in run_sqlite("export-log", "-").lines] == [0.75, 0.125]
    result = imported(run_sqlite, rank(2), options=["--reward-from", "_label_costs"])
    assert (result.exit_code, "did you mean _label_cost" in result.error["hint"]) == (2, True)


def test_an_arm_without_an_id_is_called_by_its_features(run_sqlite: Run) -> None:
    """Equal features, in any order, are one arm; `--arm-id` names another field."""
    actions = [{"TAction": {"topic": topic, "size": 1}} for topic in ("tea", "milk")]
    line = rank(1, (1, 2), (0.5, 0.5), c={"_multi": actions})
    turned = rank(2, (2, 1), (0.5, 0.5), c={"_multi": [{"TAction": {"size": 1, "topic": "milk"}}, actions[0]]})
    imported(run_sqlite, line, turned)
    first, second = run_sqlite("export-log", "-").lines
    assert first["slate"][0]["arm"] == second["slate"][0]["arm"]
    result = imported(run_sqlite, rank(3, (1, 2), (0.5, 0.5), c=line["c"]), options=["--arm-id", "TAction.topic"])
    assert result.json["accepted"] == 1
    assert run_sqlite("export-log", "-").lines[-1]["eligible"] == ["milk", "tea"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (rank(2, (0, 1, 2)), "counted from 1"),
        (rank(2, (1, 2, 4)), "none of the 3 actions"),
        (rank(2, (1, 1, 3)), "twice"),
        (rank(2, p=(0.5, 0.5)), "field p"),
        (rank(2, p=(0.5, 0.5, 0.5)), "sum to 1.5"),
        (rank(2, p=(0.0, 0.5, 0.5)), "no probability of something shown"),
        (rank(2, _label_Action=3), "field _label_Action"),
        (rank(2, _label_probability=0.9), "field _label_probability"),
        (rank(2, pdrop=1.5), "field pdrop"),
        (rank(2, c={"User": {}}), "field c._multi"),
        (rank(2, Timestamp="2999-01-01T00:00:00Z"), "in the future"),
        (rank(2, cost=1e300), "too large"),
        ({"EventId": "e2", "c": {"_multi": DISHES}}, "which action was shown"),
        ({"EventId": "e2", "_label_ca": {"action": 1.5, "cost": 0, "pdf_value": 0.1}, "c": {}}, "continuous actions"),
        ('{"_label_cost":-1,"EventId"', "line 2"),
        ("plain text", "line 2"),
        ({"EventId": "e2"}, "without its actions"),
    ],
)
def test_a_damaged_line_is_named(run_sqlite: Run, bad: Line | str, reason: str) -> None:
    result = imported(run_sqlite, rank(1), bad, rank(3))
    assert (result.exit_code, "log.json line 2" in result.error["error"]) == (2, True)
    assert reason in result.error["error"] + str(result.error["hint"])


def slots_of(number: int, kind: str) -> list[Line]:
    """Pages of ccb, whose second slot may show two of the four dishes, or of slates, with dishes and drinks."""
    random = np.random.default_rng(7)
    names = ["soup", "pasta", "salad", "rice"] if kind == "ccb" else ["soup", "pasta", "tea", "milk", "water"]
    actions = [{"id": name} | ({} if kind == "ccb" else {"_slot_id": int(n > 1)}) for n, name in enumerate(names)]
    lines = []
    for n in range(number):
        first = random.permutation(4).tolist() if kind == "ccb" else random.permutation(2).tolist()
        second = [arm for arm in (1, 3) if arm != first[0]] if kind == "ccb" else random.permutation(3).tolist()
        outcomes = list[Line]()
        for ranked in (first, second):
            p = random.dirichlet(np.ones(len(ranked)) * 5).astype(np.float32).astype(float).tolist()
            outcomes.append({"_a": ranked, "_p": p, "_id": f"{n}-{len(outcomes)}"})
        cost = [-float(random.random() < 0.5) for _ in outcomes]
        if kind == "ccb":
            outcomes = [each | {"_label_cost": value, "_o": []} for each, value in zip(outcomes, cost, strict=True)]
        lines.append({
            "Timestamp": f"2026-01-31T12:{n // 60 % 60:02}:{n % 60:02}Z", "Version": "1", "EventId": f"e{n}",
            "c": {"User": {"hour": 9}, "_multi": actions, "_slots": [{}, {"_inc": [1, 3]} if kind == "ccb" else {}]},
            "_outcomes": outcomes, "VWState": {"m": "N/A"}, **({} if kind == "ccb" else {"_label_cost": sum(cost)}),
        })  # fmt: skip
    return lines


def test_a_page_of_slates_comes_as_it_was(run: Run) -> None:
    imported(run, slots_of(1, "slates")[0])
    (line,) = run("export-log", "-").lines
    assert [slot["marginal"] == slot["propensity"] for slot in line["slate"]] == [True, True]
    assert line["eligible"] == ["milk", "pasta", "soup", "tea", "water"]
    assert [event["position"] for event in line["events"]] in ([None], [])


def test_slots_that_earned_nothing_of_their_own_are_no_answer_about_a_reward_of_pages(run_sqlite: Run) -> None:
    imported(run_sqlite, *slots_of(20, "slates"))
    slots, *pages = run_sqlite("evaluate", "uniform", "--estimator", "ips,sips,sn-sips", "--json").json
    assert (slots["reward_seen"], slots["verdict"], "reward-unseen" in slots["reasons"]) == (0, "insufficient", True)
    assert all(row["reward_seen"] == 1 and "reward-unseen" not in row["reasons"] for row in pages)


def test_what_such_lines_hold_comes_back_from_an_export(run: Run, other: Run) -> None:
    """Features of actions, the arms of slots, the probabilities of all arms, and how much of the log was kept."""
    imported(run, rank(1, (2, 1, 3), (0.5, 0.125, 0.375), pdrop=0.25), slots_of(1, "slates")[0] | {"EventId": "page"})
    lines = run("export-log", "-").lines
    assert (lines[0]["keep_probability"], lines[0]["support"]) == (0.75, {"pasta": 0.5, "salad": 0.375, "soup": 0.125})
    assert lines[0]["features"]["pasta"] == {"i": {"id": "pasta"}, "j": [{"price": 8}]}
    assert sorted(map(len, lines[1]["slot_sets"])) == [2, 3]
    other("import-log", "-", "--layout", "jsonl", stdin=run("export-log", "-").stdout)
    again = other("export-log", "-").lines
    assert [line | {"decision_id": 0} for line in again] == [line | {"decision_id": 0} for line in lines]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"_a": [4], "_p": [1.0]}, "none of the 4 actions"),
        ({"_a": [0, 3], "_p": [0.5, 0.5]}, "could not show"),
        ({"_a": [1, 3], "_p": [0.5]}, "1 probabilities of 2 actions"),
    ],
)
def test_a_damaged_slot_is_named(run_sqlite: Run, change: Line, reason: str) -> None:
    line = slots_of(1, "ccb")[0]
    line["_outcomes"][1] |= change
    result = imported(run_sqlite, rank(1), line)
    assert (result.exit_code, "log.json line 2, field _outcomes[1]" in result.error["error"]) == (2, True)
    assert reason in result.error["error"]
