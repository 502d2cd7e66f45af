"""Kind scored through the store: experiments, routes, shadows, exports, imports, and estimates from its log."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ON_BOTH, Run, begin, click_events

LATER = ("--now", "2099-01-01T00:00:00Z")
ARMS = list("abcdefgh")


pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def shop(run_sqlite: Run) -> Run:
    begin(run_sqlite, ARMS, "mine", "scored", "--param", "temperature=0.5", "--param", "floor=0.05")
    run_sqlite("policy", "create", "ranker", "--kind", "scored", "--param", "epsilon=0")
    run_sqlite("policy", "create", "bandit", "--kind", "thompson")
    return run_sqlite


def requests(n: int, **fields: Any) -> list[dict[str, Any]]:
    """Of visits of two steps, four of eight arms with scores that differ from request to request."""
    rng, lines = random.Random(4), list[dict[str, Any]]()
    for number in range(n):
        arms = [{"arm": arm, "score": round(rng.gauss(0, 1), 3)} for arm in sorted(rng.sample(ARMS, 4))]
        lines.append({"session": f"s{number // 2}", "user": f"u{number // 2}", "k": 2, "arms": arms, **fields})
    return lines


def serve(run: Run, lines: list[dict[str, Any]], *options: str) -> list[dict[str, Any]]:
    result = run("recommend", "--input", "-", "--seed", "9", *options, stdin=lines).done()
    return [json.loads(line) for line in result.stdout.splitlines()]


def earn(run: Run, answers: list[dict[str, Any]]) -> None:
    rng = random.Random(5)
    lines = click_events(answers, lambda slot: rng.random() < ARMS.index(slot["arm"]) / 8)
    assert run("feedback", "--input", "-", stdin=lines).exit_code == 0


def estimates(run: Run, *words: str) -> list[dict[str, Any]]:
    rows = run(*LATER, "evaluate", *words, "--json").json
    return [{name: row[name] for name in ("target", "estimator", "unit", "value", "std_error", "n")} for row in rows]


def test_the_ranker_beside_a_bandit(shop: Run) -> None:
    """An experiment and a route with a shadow serve both from the same requests; either is judged on the whole log."""
    assert shop("experiment", "create", "rivals", "--variant", "a=mine", "--variant", "b=bandit").exit_code == 0
    both = serve(shop, requests(60, experiment="rivals"))
    assert {answer["variant"] for answer in both} == {"a", "b"}
    assert shop("route", "create", "home", "--to", "bandit").exit_code == 0
    assert shop("policy", "shadow", "home", "mine").exit_code == 0
    routed = serve(shop, [line | {"session": "r" + line["session"]} for line in requests(20, policy="home")])
    assert {answer["policy"] for answer in routed} == {"bandit"}
    dry = serve(shop, requests(4, policy="mine"), "--dry-run")
    assert all(slot["propensity"] > 0 and slot["score"] is not None for answer in dry for slot in answer["slate"])
    (shadow,) = shop("route", "show", "home", "--json").json["shadows"]
    assert shadow["decisions"] == 20
    earn(shop, both + routed)
    assert shop("doctor").exit_code == 0
    for estimators in ("ips,dr", "rips,sn-iips", "wdr,pdis"):  # of impressions, slates, visits
        rows = shop(*LATER, "evaluate", "ranker", "mine", "--log", "all", "--estimator", estimators, "--json").json
        assert {row["target"] for row in rows} == {"ranker", "mine"}
    shown = shop("decision", "show", str(both[0]["decision_id"]), "--json").json
    assert shown["agrees"] is True
    assert "@arms" in shown["context"]


def test_joint_propensities_under_rules_are_those_of_enumeration(shop: Run) -> None:
    """Slates of 4 of 8 with a pin, a cap and a blocked ninth arm: the softmax of what a position may show, with the
    floor."""
    shop("arm", "add", "i")
    scores, page = [1.7, 0.2, 1.7, -3.0, 0.9, 2.5, 0.9, 0.9, 4.0], {"pin": {"2": "c"}, "most": {"shelf": 2}}
    arms = [
        {"arm": arm, "score": score, "features": {"shelf": number % 3}}
        for number, (arm, score) in enumerate(zip([*ARMS, "i"], scores, strict=True))
    ]
    line = {"policy": "mine", "k": 4, "arms": arms, "block": ["i"], "page": page}
    answers = serve(shop, [line | {"session": f"s{number}"} for number in range(300)])
    for answer in answers:
        shown, on_page, joint = [ARMS.index(slot["arm"]) for slot in answer["slate"]], [2], 1.0
        for position, arm in enumerate(shown):
            allowed = [
                other for other in range(8)
                if other not in on_page and sum(other % 3 == above % 3 for above in on_page) < 2
            ]  # fmt: skip
            weight = {other: math.exp(scores[other] / 0.5) for other in allowed}
            if position != 1:
                joint *= 0.05 / len(allowed) + 0.95 * weight[arm] / sum(weight.values())
                on_page.append(arm)
        assert shown[1] == 2
        assert answer["propensity"] == pytest.approx(joint, abs=1e-12, rel=1e-12)
    assert len({tuple(slot["arm"] for slot in answer["slate"]) for answer in answers}) > 40
    assert shop("doctor").exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["jsonl", "csv", "dsjson"])
def test_an_export_is_the_same_log_elsewhere(shop: Run, tmp_path: Path, layout: str) -> None:
    earn(shop, serve(shop, requests(80, policy="mine", k=1 if layout == "dsjson" else 2)))
    here = estimates(shop, "ranker", "--log", "policy=mine", "--estimator", "ips,snips")
    path = f"log.{layout}"
    assert shop("export-log", path, "--layout", layout).exit_code == 0
    elsewhere = ("--db", str(tmp_path / "other.db"))
    shop(*elsewhere, "init")
    shop(*elsewhere, "policy", "create", "ranker", "--kind", "scored", "--param", "epsilon=0")
    shop(*elsewhere, "import-log", path, "--layout", layout, "--policy", "old").done()
    there = estimates(
        lambda *words: shop(*elsewhere, *words), "ranker", "--log", "policy=old", "--estimator", "ips,snips"
    )
    assert [row["value"] for row in there] == pytest.approx([row["value"] for row in here], rel=1e-6)


@pytest.mark.slow
def test_a_log_in_parquet_and_several_processes_give_the_same(shop: Run) -> None:
    earn(shop, serve(shop, requests(80, policy="mine")))
    words = ("ranker", "--log", "policy=mine", "--estimator", "ips,snips,dr")
    here = estimates(shop, *words)
    assert estimates(shop, *words, "--jobs", "2") == here
    assert shop("export-log", "folder", "--layout", "parquet").exit_code == 0
    assert estimates(shop, "ranker", "--log", "parquet:folder,policy=mine", *words[3:]) == here


def test_a_target_without_scores_in_the_log_is_refused(shop: Run) -> None:
    earn(shop, serve(shop, [{"session": f"s{n}", "policy": "bandit"} for n in range(10)]))
    result = shop(*LATER, "evaluate", "ranker", "--log", "policy=bandit")
    assert (result.exit_code, "has no score" in result.stderr) == (2, True)
    assert len(result.stderr.splitlines()) == 1


def test_decisions_without_scores_are_left_out_and_counted(shop: Run) -> None:
    """Requests of two bandits: those of one bring scores of all their arms, of the other none, or of all but one."""
    shop("policy", "create", "other", "--kind", "thompson")
    without = requests(12, policy="other")
    for line in without[:10]:
        line["arms"] = [entry["arm"] for entry in line["arms"]]
    for line in without[10:]:
        del line["arms"][0]["score"]
    earn(shop, serve(shop, [*without, *requests(40, policy="bandit")[12:]]))
    words = ("--estimator", "ips,rips,wdr", "--json")
    rows = shop(*LATER, "evaluate", "ranker", "uniform", "--log", "all", *words).json
    counts = {(row["target"], row["unit"]): (row["n"], row["left_out"], "no-scores" in row["reasons"]) for row in rows}
    assert counts == {
        ("ranker", "impression"): (56, 24, True), ("ranker", "slate"): (28, 12, True),
        ("ranker", "session"): (14, 6, True), ("uniform", "impression"): (80, 0, False),
        ("uniform", "slate"): (40, 0, False), ("uniform", "session"): (20, 0, False),
    }  # fmt: skip
    alone = shop(*LATER, "evaluate", "ranker", "--log", "policy=bandit", *words).json
    assert [row["value"] for row in alone] == [row["value"] for row in rows if row["target"] == "ranker"]
    shown = shop(*LATER, "evaluate", "ranker", "--log", "all", "--estimator", "ips")
    assert "an arm that could be shown has no score; 24 of 80 were left out" in shown.stdout


def test_variants_that_rank_alike_are_named(shop: Run) -> None:
    shop("policy", "create", "twin", "--kind", "scored", "--param", "epsilon=0")
    create = ("experiment", "create", "ab", "--variant", "a=ranker", "--variant", "b=twin", "--variant", "c=mine")
    created = shop(*create).done()
    assert "variants a and b rank by the scores of a request, with the same parameters" in created.stderr
    assert created.stderr.count("variants") == 1
    assert "rank by" not in shop(*create).stderr
    lines = requests(8, experiment="ab")
    beforehand = [answer["variant"] for answer in serve(shop, lines, "--dry-run")]
    assert beforehand == [answer["variant"] for answer in serve(shop, lines)]
    assert len({*beforehand}) > 1


@ON_BOTH
def test_two_rankers_are_compared_from_the_same_requests(run: Run, tmp_path: Path) -> None:
    """Each arm brings the score of either ranker, whoever serves. The log of one judges the other, by hand too, here
    and where the log is imported."""
    run("arm", "import", "-", stdin=[{"arm": arm} for arm in ARMS])
    for name in ("new", "old"):
        params = ("--param", f"score={name}", "--param", "temperature=0.5")
        assert run("policy", "create", name, "--kind", "scored", *params).exit_code == 0
    created = run("experiment", "create", "ab", "--variant", "n=new", "--variant", "o=old")
    assert (created.exit_code, "rank by" in created.stderr) == (0, False)
    rng, lines = random.Random(4), requests(80, experiment="ab", k=1)
    for arm in (arm for line in lines for arm in line["arms"]):
        arm["scores"] = {"old": arm.pop("score"), "new": round(rng.gauss(0, 1), 3)}
    answers = serve(run, lines)
    earn(run, answers)
    wanted = dict.fromkeys(("new", "old"), 0.0)
    for answer, line, row in zip(answers, lines, exported(run), strict=True):
        for name in wanted:
            odds = {arm["arm"]: math.exp(arm["scores"][name] / 0.5) for arm in line["arms"]}
            probability = odds[answer["slate"][0]["arm"]] / sum(odds.values())
            if answer["variant"] == name[0]:
                assert answer["propensity"] == pytest.approx(probability, abs=1e-12)
            else:
                wanted[name] += row["reward"] * probability / answer["propensity"]
    assert run("doctor").exit_code == 0
    variants = [answer["variant"] for answer in answers]
    for name, other in (("new", "o"), ("old", "n")):
        words = (name, "--log", f"experiment=ab,variant={other}", "--estimator", "ips")
        (here,) = estimates(run, *words)
        assert here["value"] == pytest.approx(wanted[name] / variants.count(other), rel=1e-9)
    run("export-log", "log.jsonl", "--layout", "jsonl")
    elsewhere = ("--db", str(tmp_path / "other.db"))
    run(*elsewhere, "init")
    run(*elsewhere, "policy", "create", "new", "--kind", "scored", "--param", "score=new", "--param", "temperature=0.5")
    assert run(*elsewhere, "import-log", "log.jsonl", "--layout", "jsonl", "--policy", "past").exit_code == 0
    imported = estimates(lambda *words: run(*elsewhere, *words), "new", "--log", "policy=past", "--estimator", "ips")
    assert imported[0]["value"] == pytest.approx(
        estimates(run, "new", "--log", "all", "--estimator", "ips")[0]["value"]
    )
    run("policy", "create", "third", "--kind", "scored", "--param", "score=third")
    missing = run(*LATER, "evaluate", "third", "--log", "all")
    assert "in every row of the log some arm has no scores.third, by which third ranks" in missing.stderr


def exported(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run("export-log", "-", "--layout", "jsonl").stdout.splitlines()]
