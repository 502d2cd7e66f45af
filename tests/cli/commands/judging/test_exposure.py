"""`exposure`: figures of the catalogue against a census of the exported log."""

from __future__ import annotations

import json
import math
from collections import Counter
from contextlib import closing
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from rlrec.store import Store
from rlrec.store.policies import curves
from tests.conftest import Run, click_events, runner, store_after

ARMS: dict[str, dict[str, Any]] = {
    f"a{number}": {"genre": "xyz"[number % 3], "price": number / 10} for number in range(8)
}


def serve(run: Run, *, decisions: int = 60, policy: str = "home", seed: int = 1) -> None:
    """Pages of three of a bandit that learns in between, by users who come back; the first position earns most."""
    rng = np.random.default_rng(seed)
    for group in range(3):
        requests = [
            {"policy": policy, "session": f"s{group}.{number}", "user": f"u{number % 9}", "k": 3}
            for number in range(decisions // 3)
        ]
        answers = run("recommend", "--input", "-", stdin=requests).lines
        events = click_events(answers, lambda slot: rng.random() < 0.6 / slot["position"])
        assert run("feedback", "--input", "-", stdin=events).exit_code == 0


def stocked(db: str) -> None:
    run = runner(db)
    lines = [{"arm": arm, "features": features} for arm, features in ARMS.items()]
    assert run("arm", "import", "-", stdin=lines).exit_code == 0
    assert run("policy", "create", "home", "--kind", "thompson", "--param", "floor=0.1").exit_code == 0
    serve(run)


shop = store_after(stocked)


def exposure(run: Run, *options: str) -> Any:
    return run("exposure", *options, "--json").json


def test_realised_figures_are_those_of_a_census(shop: Run) -> None:
    """Counted in plain Python from the exported log."""
    slates = [[slot["arm"] for slot in line["slate"]] for line in shop("export-log", "-").lines]
    counts = Counter(arm for slate in slates for arm in slate)
    shares = sorted(counts.get(arm, 0) / counts.total() for arm in ARMS)
    entropy = -sum(share * math.log(share) for share in shares if share)
    figures = exposure(shop)
    assert (figures["decisions"], figures["slots"]) == (len(slates), counts.total())
    assert {row["arm"]: row["realised"] for row in figures["arms"]} == {arm: counts.get(arm, 0) for arm in ARMS}
    gini = sum(abs(x - y) for x in shares for y in shares) / (2 * 8 * 8 * (1 / 8))
    catalogue = figures["catalogue"]
    assert catalogue["arms"] == 8
    assert catalogue["gini"] == pytest.approx(gini, abs=1e-9)
    assert catalogue["entropy"] == pytest.approx(entropy, abs=1e-9)
    assert catalogue["effective_arms"] == pytest.approx(math.exp(entropy), abs=1e-9)
    assert catalogue["coverage"] == pytest.approx(sum(share > 0 for share in shares) / 8, abs=1e-9)


def test_expected_exposure_sums_the_probabilities_of_every_decision(shop: Run) -> None:
    """Those of a page add up to its length, and what was shown scatters around them: eight arms leave six standard
    deviations once in a hundred million runs."""
    figures = exposure(shop)
    assert sum(row["expected"] for row in figures["arms"]) == pytest.approx(figures["slots"], rel=1e-9)
    assert all(row["expected"] > 0 for row in figures["arms"])
    assert figures["catalogue"]["expected_coverage"] == 1.0
    for row in figures["arms"]:
        assert abs(row["realised"] - row["expected"]) < 6 * math.sqrt(row["expected"]) + 1


def test_expected_exposure_of_a_fixed_policy_is_exact(shop: Run) -> None:
    shop("policy", "create", "flat", "--kind", "uniform")
    serve(shop, policy="flat", decisions=30)
    figures = exposure(shop, "--policy", "flat")
    assert figures["decisions"] == 30
    assert [row["expected"] for row in figures["arms"]] == pytest.approx([90 / 8] * 8, rel=1e-12)
    assert figures["catalogue"]["expected_gini"] == pytest.approx(0.0, abs=1e-12)


def test_the_share_of_the_floor_is_the_floor(shop: Run) -> None:
    assert exposure(shop)["catalogue"]["floor_share"] == pytest.approx(0.1, abs=1e-12)


def test_variety_is_the_mean_distance_of_two_arms_of_a_page(shop: Run) -> None:
    largest = max(features["price"] for features in ARMS.values())

    def distance(left: str, right: str) -> Any:
        pair = [
            np.array([*(ARMS[arm]["genre"] == genre for genre in "xyz"), ARMS[arm]["price"] / largest], float)
            for arm in (left, right)
        ]
        return 1 - pair[0] @ pair[1] / np.linalg.norm(pair[0]) / np.linalg.norm(pair[1])

    slates = [[slot["arm"] for slot in line["slate"]] for line in shop("export-log", "-").lines]
    means = [np.mean([distance(*pair) for pair in combinations(slate, 2)]) for slate in slates]
    assert exposure(shop)["catalogue"]["variety"] == pytest.approx(np.mean(means), abs=1e-12)


def test_days_add_up(shop: Run) -> None:
    figures = exposure(shop, "--by", "day")
    assert sum(day["decisions"] for day in figures["days"]) == figures["decisions"]
    assert sum(day["slots"] for day in figures["days"]) == figures["slots"]


def test_new_arms_are_young(shop: Run) -> None:
    catalogue = exposure(shop)["catalogue"]
    assert catalogue["young_share"] == 1.0
    assert all(row["age_days"] < 1 for row in exposure(shop)["arms"])


def test_an_imported_log_has_no_expected_exposure(shop: Run, tmp_path: Any) -> None:
    """Only the propensity of what was shown came along."""
    line = {"session": "x", "slate": [{"arm": "a1", "propensity": 0.7}], "eligible": ["a1", "a2"]}
    (tmp_path / "log.jsonl").write_text(json.dumps(line) + "\n")
    assert shop("import-log", tmp_path / "log.jsonl", "--layout", "jsonl", "--policy", "old").exit_code == 0
    figures = exposure(shop, "--policy", "old")
    assert [row["expected"] for row in figures["arms"]] == [None, None]
    assert figures["underived"] == 1
    assert "1 decision without probabilities of all arms" in shop("exposure", "--policy", "old").stdout
    assert figures["catalogue"]["expected_gini"] is None
    assert figures["catalogue"]["floor_share"] is None
    assert figures["catalogue"]["coverage"] == 0.5
    old = line | {"session": "y", "slate": [{"arm": "z", "propensity": 1}], "eligible": ["z"], "at": "2020-01-01"}
    shop("import-log", "-", "--layout", "jsonl", "--policy", "older", stdin=[old]).done()
    # the import brought the arm, years after its log
    assert [row["age_days"] for row in exposure(shop, "--policy", "older")["arms"]] == [None]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--policy", "hme"], "home"),
        (["--log", "since=2099-01-01"], "no decision is selected"),
        (["--reward", "clicks"], "unknown reward"),
        (["--by", "week"], "'week' is not 'day'"),
    ],
)
def test_what_cannot_be_shown_is_refused(shop: Run, options: list[str], words: str) -> None:
    assert words in shop("exposure", *options).failed(2)


def test_the_table_begins_with_the_catalogue(shop: Run) -> None:
    lines = shop("exposure").stdout.splitlines()
    assert "60 decisions, 180 slots, 8 eligible arms" in lines[0]
    assert "every slot is a pull" in lines[1]
    assert "gini" in lines[2]
    assert "`rlrec position fit`" in lines[-1]


def test_arm_list_has_the_exposure_beside(shop: Run) -> None:
    """An arm that was never eligible has none."""
    assert shop("arm", "add", "late").exit_code == 0
    figures = {row["arm"]: row["realised"] for row in exposure(shop)["arms"]}
    listed = {row["arm"]: row["realised"] for row in shop("arm", "list", "--exposure", "--json").json}
    assert listed == {**figures, "late": None}


def test_arm_list_of_an_empty_log_has_no_exposure(run: Run) -> None:
    run("arm", "add", "a1")
    assert run("arm", "list", "--exposure", "--json").json[0]["expected"] is None


def test_policy_show_says_how_evenly_it_serves(shop: Run) -> None:
    shown = shop("policy", "show", "home", "--json").json
    served = np.sort([arm["served"] for arm in shown["arms"]])
    gini = 2 * (np.arange(1, 9) * served).sum() / (8 * served.sum()) - 9 / 8
    assert shown["exposure"]["served"]["gini"] == pytest.approx(gini, abs=1e-12)
    assert shown["exposure"]["now"]["coverage"] == 1.0
    assert "of 8 arms were shown equally often (Gini" in shop("policy", "show", "home").stdout


def test_rates_count_pulls_by_a_curve(shop: Run, db: str) -> None:
    """With examination (1, 1/2) a slot at position 1 is a pull, at position 2 half of one, and at 3 nothing."""
    positions = [{"position": 1, "examination": 1.0}, {"position": 2, "examination": 0.5}]
    with closing(Store(db)) as store:
        store.write(
            lambda unit: curves.add(
                unit, name="home", number=1, reward_id=1, model="pbm", method="overlap", options="{}",
                positions=json.dumps(positions), report="{}",
            ),
            repeatable=False,
        )  # fmt: skip
    pulls, clicks = Counter[str](), Counter[str]()
    for line in shop("export-log", "-").lines:
        clicked = {event["position"] for event in line["events"]}
        for slot in line["slate"][:2]:
            pulls[slot["arm"]] += 1 / slot["position"]
            clicks[slot["arm"]] += slot["position"] in clicked
    answer = shop("--now", "2099-01-01", "exposure", "--position", "home", "--json").json
    assert answer["curve"] == "home@1"
    rates = {arm: clicks[arm] / count for arm, count in pulls.items()}
    assert len(rates) > 1
    assert {row["arm"]: row["rate"] for row in answer["arms"]} == pytest.approx({arm: rates.get(arm) for arm in ARMS})
    assert shop("exposure", "--position", "hom").exit_code == 2
