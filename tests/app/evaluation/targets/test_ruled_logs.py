"""Estimates from logs whose pages had rules, against the truth: the rewards of all pages, each by its probability."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Run, click_events

SHELVES = {"a": "x", "b": "x", "c": "y", "d": "y", "e": None}
RATES = {"a": 0.1, "b": 0.3, "c": 0.5, "d": 0.7, "e": 0.9}
TARGET = {"a": 0.5, "b": 0.2, "c": 0.1, "d": 0.1, "e": 0.1}
EXAMINATION = (1.0, 0.6, 0.4)  # share of pages whose position is looked at
PAGES: dict[str, dict[str, Any]] = {
    "free": {},
    "pinned": {"pin": {"2": "d"}},
    "capped": {"most": {"shelf": 1}, "least": {"a": 0.2, "@last": {"3": 0.5}}},
    "all": {"pin": {"1": "c"}, "most": {"shelf": 1}, "least": {"e": 0.3}},
}
GROUPS = {"@last": ["d", "e"], "@first": ["a", "b"]}
TARGET_RULES: dict[str, list[dict[str, Any]]] = {
    "plain": [], "ruled": [{"most": {"shelf": 2}, "least": {"b": {"3": 0.15}, "@first": 0.1}}],
}  # fmt: skip


def pages(weights: Mapping[str, float], rules: list[dict[str, Any]], *, floor: float) -> Iterator[tuple[Any, float]]:
    """Every page of three arms with its probability, position by position as the rules are written."""
    pins = {int(at): arm for page in rules for at, arm in page.get("pin", {}).items()}
    limit = min((page["most"]["shelf"] for page in rules if "most" in page), default=5)
    least = {name: share for page in rules for name, share in page.get("least", {}).items()}
    for page in permutations(SHELVES, 3):
        probability = 1.0
        for position, arm in enumerate(page, 1):
            if position in pins:
                probability *= pins[position] == arm
                continue
            fixed = {*page[: position - 1], *pins.values()}
            shelves = [SHELVES[other] for other in fixed if SHELVES[other]]
            allowed = [other for other in SHELVES if other not in fixed and shelves.count(SHELVES[other]) < limit]
            if arm not in allowed:
                probability = 0.0
                break
            coins = of_arm = 0.0
            for name, share in least.items():
                possible = [other for other in GROUPS.get(name, [name]) if other in allowed]
                here = (share.get(str(position), 0.0) if isinstance(share, dict) else share) * bool(possible)
                coins += here
                of_arm += here / len(possible) if arm in possible else 0.0
            best = weights[arm] / sum(weights[other] for other in allowed)
            drawn = floor / len(allowed) + (1 - floor) * best
            probability *= of_arm + (1 - coins) * drawn
        yield page, probability


def uniform_steps(page: tuple[str, ...], rules: dict[str, Any]) -> list[float]:
    """The propensity of each arm of a page of a uniform logger, given the arms above it."""
    drawn = list(pages(dict.fromkeys(SHELVES, 1.0), [rules], floor=0.0))
    joint = [sum(p for other, p in drawn if other[:depth] == page[:depth]) for depth in range(4)]
    return [joint[depth + 1] / joint[depth] for depth in range(3)]


def truth(rules: list[dict[str, Any]], *, floor: float, weights: Mapping[str, float] = TARGET) -> float:
    """The mean number of clicks on a page of the target."""
    every_page = list(pages(weights, rules, floor=floor))
    assert sum(probability for _, probability in every_page) == pytest.approx(1)
    return sum(
        probability * sum(RATES[arm] * examination for arm, examination in zip(page, EXAMINATION, strict=True))
        for page, probability in every_page
    )


@pytest.fixture
def shop(run_sqlite: Run, tmp_path: Path) -> Run:
    run = run_sqlite
    names = {arm: [name[1:] for name, arms in GROUPS.items() if arm in arms] for arm in SHELVES}
    lines = [
        {"arm": arm, "features": {"shelf": shelf} if shelf else {}, "groups": names[arm]}
        for arm, shelf in SHELVES.items()
    ]
    run("arm", "import", "-", stdin=lines)
    table = tmp_path / "target.csv"
    table.write_text("arm,probability\n" + "".join(f"{arm},{share}\n" for arm, share in TARGET.items()))
    fixed = ("--kind", "fixed", "--param", f"probabilities={table}", "--param", "floor=0.1")
    run("policy", "create", "home", "--kind", "uniform")
    run("policy", "create", "plain", *fixed)
    run("policy", "create", "ruled", *fixed, "--param", "most=shelf=2", "--param", "least=b=0.15@3,@first=0.1")
    return run


def serve(run: Run, number: int, *, seed: int) -> None:
    """Visits of two pages, by all kinds of rules in turn, with clicks by the rates."""
    kinds, generator = list(PAGES.values()), np.random.default_rng(seed)
    lines = [
        {"session": f"s{visit}", "policy": "home", "k": 3, "page": kinds[(visit + step * (1 + visit // 4)) % 4]}
        for step in range(2) for visit in range(number)
    ]  # fmt: skip
    answers = run("recommend", "--input", "-", "--seed", seed, "--json", stdin=lines).lines
    clicks = click_events(
        answers, lambda slot: generator.random() < RATES[slot["arm"]] * EXAMINATION[slot["position"] - 1]
    )
    assert run("feedback", "--input", "-", stdin=clicks).exit_code == 0


def means(floor: float) -> dict[str, float]:
    """The mean number of clicks on a page of each target, over requests of every kind alike."""
    return {
        name: float(np.mean([truth([page, *target_rules], floor=floor) for page in PAGES.values()]))
        for name, target_rules in TARGET_RULES.items()
    }


def test_served_pages_with_rules_tell_what_targets_earn(shop: Run) -> None:
    """Seeded. All 14 estimates lie within 4.5 standard errors: false alarms in fewer than one of 10,000 seeds."""
    serve(shop, 1000, seed=1)
    expected = means(0.1)
    words = ("evaluate", "plain", "ruled", "--estimator", "ips,snips,dr,rips,tis,pdis,wdr", "--json")
    rows = shop("--now", "+3d", *words).json
    assert len(rows) == 14
    per_page = {"impression": 1 / 3, "slate": 1.0, "session": 2.0}
    for row in rows:
        expected_value = expected[row["target"]] * per_page[row["unit"]]
        assert (row["n"], row["left_out"]) == ({"impression": 6000, "slate": 2000, "session": 1000}[row["unit"]], 0)
        assert abs(row["value"] - expected_value) < 4.5 * row["std_error"], row
        assert row["std_error"] < 0.1 * expected_value, row
    # it would not do to ask targets without the rules of the requests
    free = truth([], floor=0.1)
    assert abs(free - expected["plain"]) > 0.1


def test_every_pair_of_pages_at_its_probability_gives_the_truth(shop: Run) -> None:
    """Exact: a log has each visit that a uniform logger may show once, with clicks in proportion to its probability."""
    drawn = {name: list(pages(dict.fromkeys(SHELVES, 1.0), [rules], floor=0.0)) for name, rules in PAGES.items()}
    kinds = ("pinned", "all"), ("capped", "pinned")
    visits = [
        (pair, (first, second), p * q)
        for pair in kinds for first, p in drawn[pair[0]] for second, q in drawn[pair[1]] if p and q
    ]  # fmt: skip
    lines, scale = list[str](), len(visits) / len(kinds) / 100  # rewards are at most 1
    for number, (pair, two_pages, probability) in enumerate(visits):
        for step, (kind, page) in enumerate(zip(pair, two_pages, strict=True)):
            steps = uniform_steps(page, PAGES[kind])
            clicks = [
                {"kind": "click", "position": at, "value": RATES[arm] * examination * scale * probability}
                for at, (arm, examination) in enumerate(zip(page, EXAMINATION, strict=True), 1)
            ]  # fmt: skip
            lines.append(json.dumps({
                "session": f"s{number}", "at": f"2026-01-01T00:0{step}:00Z", "eligible": list(SHELVES),
                "slate": [{"arm": arm, "propensity": p} for arm, p in zip(page, steps, strict=True)],
                "context": {"@page": PAGES[kind]}, "events": clicks,
            }))  # fmt: skip
    shop("import-log", "-", "--layout", "jsonl", "--policy", "old", stdin="\n".join(lines)).done()
    shop("policy", "create", "reader", "--kind", "gradient", *READER_RULES).done()
    names = ("plain", "ruled", "reader")
    words = ("evaluate", *names, "--estimator", "ips,sips,rips,tis,pdis", "--log", "policy=old", "--json")
    rows = shop(*words).json
    assert len(rows) == 15
    for row in rows:
        weights = dict.fromkeys(SHELVES, 1.0) if row["target"] == "reader" else TARGET  # it was never trained
        target_rules = TARGET_RULES["plain" if row["target"] == "plain" else "ruled"]
        by_kind = [truth([PAGES[kind], *target_rules], floor=0.1, weights=weights) for pair in kinds for kind in pair]
        per_page = {"impression": 1 / 3, "slate": 1.0, "session": 2.0}[row["unit"]]
        assert row["value"] == pytest.approx(np.mean(by_kind) * per_page / 100, rel=1e-9), row


def test_pages_that_a_target_cannot_make_are_left_out_of_it_alone(shop: Run) -> None:
    """A request in four pins d where one target pins a; no page has a fourth position; candidates keep no rules."""
    serve(shop, 40, seed=1)
    uniform = ("--kind", "uniform", "--param")
    shop("policy", "create", "rival", *uniform, "pin=2=a")
    shop("policy", "create", "long", *uniform, "pin=4=a")
    stages = ("--param", "first=uniform", "--param", "second=uniform", "--param", "candidates=4")
    assert shop("policy", "create", "staged", "--kind", "two-stage", *stages).exit_code == 0
    words = ("evaluate", "rival", "long", "staged", "plain", "--estimator", "ips,rips,tis,wdr", "--json")
    result = shop("--now", "+3d", *words).done()
    counts = {
        (row["target"], row["unit"]): (row["n"], row["left_out"], "page-rules" in row["reasons"]) for row in result.json
    }
    refused = {"rival": (60, 20, 18), "long": (240, 80, 40), "staged": (180, 60, 38), "plain": (0, 0, 0)}
    assert counts == {
        (target, unit): (total - number, number, number > 0)
        for target, numbers in refused.items()
        for unit, total, number in zip(("impression", "slate", "session"), (240, 80, 40), numbers, strict=True)
    }
    text = shop("--now", "+3d", "evaluate", "rival", "--estimator", "ips").stdout
    assert "it keeps no rules; 60 of 240 were left out" in text


def test_pages_that_name_arms_outside_the_lists_of_a_target_are_left_out_of_it(shop: Run) -> None:
    """A target refuses a request that pins what it blocks, or gives a share to a group of which it blocks all."""
    requests: list[dict[str, Any]] = [{"pin": {"1": "c"}}, {"least": {"c": 0.3}}, {"least": {"@first": 0.3}}, {}]
    lines = [{"session": f"s{n}", "policy": "home", "page": requests[n % 4]} for n in range(80)]
    shop("recommend", "--input", "-", "--seed", 1, stdin=lines).done()
    refused = {"c": 40, "a": 0, "a,b": 20}
    for blocked in refused:
        shop("policy", "create", blocked.replace(",", ""), "--kind", "uniform", "--param", f"block={blocked}").done()
    result = shop("--now", "+3d", "evaluate", "c", "a", "ab", "--estimator", "ips", "--json").json
    assert [row["left_out"] for row in result] == [*refused.values()]
    assert ["page-rules" in row["reasons"] for row in result] == [True, False, True]
    lines = [{"policy": "ab" if page is requests[2] else "c", "session": "x", "page": page} for page in requests]
    served = shop("recommend", "--input", "-", stdin=lines).lines
    assert ["left out by block of policy" in answer.get("error", "") for answer in served] == [True, True, True, False]


def test_pages_that_requests_lay_out_raise_no_alarm(shop: Run) -> None:
    """Eager people come more often, and see a pinned page: neither a slot nor a later visit depends on what was shown.
    Seeded; of 20 other seeds, none raises an alarm."""
    generator = np.random.default_rng(1)
    for day in range(1, 5):
        now = ("--now", f"2026-01-0{day}")
        users = [user for user in range(400) if user < 200 or generator.random() < 0.5]
        lines = [
            {"session": f"{user}-{day}", "user": f"u{user}", "policy": "home", "k": 3} for user in users
        ]  # fmt: skip
        for line, user in zip(lines, users, strict=True):
            line |= {"page": {"pin": {"1": "a"}}} if user < 200 else {}
        answers = shop(*now, "recommend", "--input", "-", "--seed", day, "--json", stdin=lines).lines
        scale = {answer["decision_id"]: 1.0 if user < 200 else 0.5 for answer, user in zip(answers, users, strict=True)}
        clicks = [
            {"decision_id": answer["decision_id"], "position": slot["position"], "events": {"click": 1}}
            for answer in answers for slot in answer["slate"]
            if generator.random() < RATES[slot["arm"]] * scale[answer["decision_id"]]
        ]  # fmt: skip
        shop(*now, "feedback", "--input", "-", stdin=clicks).done()
    for row in shop("--now", "2026-01-08", "evaluate", "plain", "--estimator", "snips,wdr", "--json").json:
        assert {"carry-over", "dependent-slots"}.isdisjoint(row["reasons"]), row


READER_RULES = ("--param", "most=shelf=2", "--param", "least=b=0.15@3,@first=0.1", "--param", "floor=0.1")


def test_a_policy_that_reads_the_session_keeps_the_rules_of_pages(shop: Run) -> None:
    """What a trained one served under rules, its own and those of requests, weighs 1 in each unit."""
    first, then, last = (("--now", f"2026-01-{day}") for day in ("01", "03", "05"))
    shop("policy", "create", "reader", "--kind", "gradient", "--param", "most=shelf=2", "--param", "floor=0.1").done()
    free = [{"session": f"f{number}", "policy": "home", "k": 3} for number in range(200)]
    answers = shop(*first, "recommend", "--input", "-", "--seed", 3, "--json", stdin=free).lines
    clicks = click_events(answers, lambda slot: slot["arm"] in "ab")
    shop(*first, "feedback", "--input", "-", stdin=clicks).done()
    assert shop(*then, "train-pg", "reader", "--lr", 0.5, "--promote", "always", "--json").json["promoted"]
    lines = [
        {"session": f"r{visit}", "policy": "reader", "k": 3, "page": list(PAGES.values())[(visit + step) % 4]}
        for step in range(2) for visit in range(40)
    ]  # fmt: skip
    served = shop(*then, "recommend", "--input", "-", "--seed", 1, "--json", stdin=lines).lines
    assert served[0]["slate"][0]["propensity"] != pytest.approx(0.2, abs=0.02)
    words = ("--estimator", "ips,snips,sips,rips,tis,pdis", "--log", "policy=reader", "--json")
    rows = shop(*last, "evaluate", "reader", *words).json
    assert {(row["unit"], row["n"], row["left_out"]) for row in rows} == {
        ("impression", 240, 0), ("slate", 80, 0), ("session", 40, 0),
    }  # fmt: skip
    for row in rows:
        assert (row["mean_weight"], row["ess"]) == pytest.approx((1, 40), rel=1e-9), row  # 40 sessions
    assert shop(*last, "doctor").exit_code == 0


def test_visits_that_are_left_out_for_rules_are_a_reason_for_doubt(shop: Run) -> None:
    """Pages that a target cannot make cut long visits before all."""
    serve(shop, 40, seed=1)
    shop("policy", "create", "rival", "--kind", "uniform", "--param", "pin=2=a").done()
    words = ("--now", "+3d", "evaluate", "rival", "--estimator", "ips,tis", "--json")
    page, visit = shop(*words).json
    assert ["ruled-visits" in row["reasons"] for row in (page, visit)] == [False, True]
    assert visit["verdict"] != "ok"
    free = [{"session": f"f{number}", "policy": "home", "k": 3} for number in range(800)]
    shop("recommend", "--input", "-", "--seed", 3, stdin=free).done()
    _, visit = shop(*words).json
    assert {"page-rules", "ruled-visits"} & {*visit["reasons"]} == {"page-rules"}
