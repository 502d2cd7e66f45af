"""Kind scored: a million draws beside their propensities, and estimates of the ranker from logs that explored around
it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import numpy as np
from scipy.special import chdtrc

import rlrec
from rlrec import policy as kinds
from rlrec.arrays import Array, Ids
from rlrec.policy.beliefs.base import Belief
from rlrec.policy.slates import slate
from rlrec.policy.slates.slate_draws import SlateSampler
from tests.benchmarks.measure import Figure, Setting
from tests.benchmarks.shops import Lite, tell

DRAWS, PORTION = 1_000_000, 50_000
LEAST = 1e-6  # of a test of frequencies; the draws are seeded, so that it alarms for ever or never
LOGS, DECISIONS, ARMS, LISTED = 300, 400, 12, 6
LATER = "2099-01-01T00:00:00Z"
TRUTH_DECISIONS = 2_000_000
SHELVES, RULED_DECISIONS, RULED_ESTIMATORS = 4, 150, ("ips", "snips", "dr")


def rankers(setting: Setting) -> Iterator[Figure]:
    """1e6 slates of 4 of 8 by temperature and by epsilon; 300 logs of 400 decisions, and what they say of the ranker.

    Of 300 intervals of 95 % that are right, fewer than 93 or more than 97 % hold the truth in one run of eleven."""
    for params in ({"temperature": 0.7, "floor": 0.1}, {"epsilon": 0.3}):
        name = ", ".join(f"{key}={value:g}" for key, value in params.items())
        yield Figure(name=f"p of 1e6 slates, {name}", value=frequencies(params), unit="", at_least=LEAST)
    covered, error = coverage(setting)
    yield Figure(name="intervals of 95 % that hold the truth", value=covered, unit="")
    yield Figure(name="that share less 95 %, in size", value=abs(covered - 0.95), unit="", at_most=0.0201)
    yield Figure(name="bias over its standard error", value=abs(error), unit="", at_most=4)
    for estimator, (covered, error) in ruled_coverage(setting).items():
        yield Figure(name=f"{estimator} under rules of pages: intervals that hold the truth", value=covered, unit="")
        yield Figure(
            name=f"{estimator}: that share less 95 %, in size", value=abs(covered - 0.95), unit="", at_most=0.0201
        )
        yield Figure(name=f"{estimator}: bias over its standard error", value=abs(error), unit="", at_most=4)


def frequencies(params: dict[str, float]) -> float:
    """The p-value of chi-square of the slates drawn against their joint propensities."""
    policy, nothing = kinds.make("scored", params), np.zeros(8)
    belief = Belief(pulls=nothing, reward_sum=nothing, reward_squares=nothing, alpha=nothing, beta=nothing, total=0.0)
    arms, values = list("abcdefgh"), [1.7, 0.2, 1.7, -3.0, 0.9, 2.5, 0.9, 0.9]
    context = {"@arms": {arm: {"score": value} for arm, value in zip(arms, values, strict=True)}}
    scores, floor = policy.scores(belief, arms=arms, context=context), policy.exploration
    slates, sampler = np.array(list(permutations(range(8), 4)), np.intp), SlateSampler(scores, size=4, floor=floor)
    codes, counts = slates @ 8 ** np.arange(4), np.zeros(8**4)
    for first in range(0, DRAWS, PORTION):
        draw = sampler.draw(seeds=np.full(PORTION, 7, np.uint64), decisions=np.arange(first, first + PORTION))
        counts += np.bincount(draw.slates @ 8 ** np.arange(4), minlength=8**4)
    expected = DRAWS * slate.conditionals(scores, slates, floor=floor).prod(axis=1)
    rare = expected < 5
    columns = (np.append(values[~rare], values[rare].sum()) for values in (counts[codes], expected))
    observed, wanted = (values[np.append(expected[~rare], expected[rare].sum()) > 0] for values in columns)
    return float(chdtrc(len(wanted) - 1, ((observed - wanted) ** 2 / wanted).sum()))


def audience(rng: np.random.Generator, n: int) -> tuple[Ids, Array, Array]:
    """Requests: the arms listed (n, 6), their scores by a shop's ranker, and the rates of clicks, which the ranker
    knows in part."""
    taste, quality = rng.normal(size=(n, 1)), np.sin(np.arange(ARMS))
    listed = np.argsort(rng.random((n, ARMS)), axis=1)[:, :LISTED]
    liking = quality[listed] + taste * np.cos(2.0 * listed)
    scores = np.round(liking + rng.normal(size=listed.shape), 4)
    return listed, scores, 1 / (1 + np.exp(1.5 - liking))


def coverage(setting: Setting) -> tuple[float, float]:
    """The share of intervals that hold the click rate of the ranker, which fresh users tell; and how many standard
    errors the mean estimate is off."""
    logs = max(20, round(LOGS * setting.scale))
    _, scores, rates = audience(np.random.default_rng(99), TRUTH_DECISIONS)
    truth = float(rates[np.arange(len(rates)), scores.argmax(axis=1)].mean())
    shop, rng = Lite(setting), np.random.default_rng(5)
    tell(shop, "init")
    tell(shop, "arm", "import", "-", lines=[{"arm": f"a{arm}"} for arm in range(ARMS)])
    tell(shop, "policy", "create", "mine", "--kind", "scored", "--param", "temperature=0.7")
    tell(shop, "policy", "create", "ranker", "--kind", "scored", "--param", "epsilon=0")
    held, values = 0, list[float]()
    for number in range(logs):
        listed, scores, rates = audience(rng, DECISIONS)
        requests = [
            {"session": f"{number}-{row}", "policy": "mine", "context": {"log": number},
             "arms": [{"arm": f"a{arm}", "score": score} for arm, score in zip(*pair, strict=True)]}
            for row, pair in enumerate(zip(listed.tolist(), scores.tolist(), strict=True))
        ]  # fmt: skip
        text = tell(shop, "recommend", "--input", "-", "--seed", str(number), lines=requests)
        answers = [json.loads(line) for line in text.splitlines()]
        by_arm = [dict(zip(arms, row, strict=True)) for arms, row in zip(listed.tolist(), rates.tolist(), strict=True)]
        clicked = [
            {"decision_id": answer["decision_id"], "position": 1, "events": {"click": 1}}
            for answer, rate in zip(answers, by_arm, strict=True)
            if rng.random() < rate[int(answer["slate"][0]["arm"][1:])]
        ]
        tell(shop, "feedback", "--input", "-", lines=clicked)
    with rlrec.open(shop.db, now=LATER) as store:
        for number in range(logs):
            (row,) = store.evaluate("ranker", log=f"policy=mine,field:log={number}", estimators="snips")
            held += row["lower"] <= truth <= row["upper"]
            values.append(row["value"])
    return held / logs, (np.mean(values) - truth) / (np.std(values) / np.sqrt(logs))


def ruled_requests(
    rng: np.random.Generator, n: int, **fields: object
) -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
    """Requests of pages of three with a pin, a cap and a least share, and the rates of their arms."""
    requests, by_arm = list[dict[str, Any]](), list[dict[str, float]]()
    for row in zip(*(values.tolist() for values in audience(rng, n)), strict=True):
        listed, scores, rates = row
        if len({arm % SHELVES for arm in listed}) < 3:
            continue
        keys = [f"a{arm}" for arm in listed]
        other_shelf = next(arm for arm in listed if arm % SHELVES != listed[0] % SHELVES)
        page = {"pin": {"2": keys[0]}, "most": {"shelf": 1}, "least": {f"a{other_shelf}": 0.1}}
        arms = [{"arm": key, "score": score} for key, score in zip(keys, scores, strict=True)]
        requests.append({"session": f"{fields}{len(requests)}", "k": 3, "arms": arms, "page": page, **fields})
        by_arm.append(dict(zip(keys, rates, strict=True)))
    return requests, by_arm


def ruled_coverage(setting: Setting) -> dict[str, tuple[float, float]]:
    """The share of intervals of each estimator that hold the click rate of a sharper ranker under the same rules, which
    fresh users tell; and how many standard errors the mean estimate is off."""
    logs, shop, rng = max(20, round(LOGS * setting.scale)), Lite(setting), np.random.default_rng(6)
    tell(shop, "init")
    arms = [{"arm": f"a{arm}", "features": {"shelf": arm % SHELVES}} for arm in range(ARMS)]
    tell(shop, "arm", "import", "-", lines=arms)
    for name, temperature in (("mine", 0.7), ("sharp", 0.4)):
        tell(shop, "policy", "create", name, "--kind", "scored", "--param", f"temperature={temperature}")

    def pages(number: int, n: int, policy: str) -> Iterator[tuple[int, int, float]]:
        """Decision, position and rate of each slot that is shown."""
        requests, by_arm = ruled_requests(rng, n, policy=policy, context={"log": number})
        text = tell(shop, "recommend", "--input", "-", "--seed", str(number), lines=requests)
        for line, rates in zip(text.splitlines(), by_arm, strict=True):
            answer = json.loads(line)
            for slot in answer["slate"]:
                yield answer["decision_id"], slot["position"], rates[slot["arm"]]

    truth = float(np.mean([rate for *_, rate in pages(logs, max(2_000, round(20_000 * setting.scale)), "sharp")]))
    for number in range(logs):
        clicked = [
            {"decision_id": decision, "position": position, "events": {"click": 1}}
            for decision, position, rate in pages(number, RULED_DECISIONS, "mine")
            if rng.random() < rate
        ]
        tell(shop, "feedback", "--input", "-", lines=clicked)
    held: dict[str, list[bool]] = {name: [] for name in RULED_ESTIMATORS}
    values: dict[str, list[float]] = {name: [] for name in RULED_ESTIMATORS}
    with rlrec.open(shop.db, now=LATER) as store:
        for number in range(logs):
            log = f"policy=mine,field:log={number}"
            for row in store.evaluate("sharp", log=log, estimators=",".join(RULED_ESTIMATORS)):
                held[row["estimator"]].append(row["lower"] <= truth <= row["upper"])
                values[row["estimator"]].append(row["value"])
    return {
        name: (float(np.mean(held[name])), (np.mean(values[name]) - truth) / (np.std(values[name]) / np.sqrt(logs)))
        for name in RULED_ESTIMATORS
    }
