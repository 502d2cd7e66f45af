"""Kind scored: a million draws beside their propensities, and estimates of the ranker from logs that explored around
it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
from scipy.special import chdtrc

import rlrec
from rlrec import policy as kinds
from rlrec.app.requests.pipe import Line, Pipe, Request
from rlrec.arrays import Array, Ids
from rlrec.policy.beliefs.base import Belief
from rlrec.policy.slates import slate
from rlrec.policy.slates.page_layout import lay_out
from rlrec.policy.slates.page_rules import parse
from rlrec.policy.slates.rules import RuledSampler, RuledScores
from rlrec.policy.slates.slate_draws import SlateSampler
from tests.benchmarks.measure import Figure, Setting
from tests.benchmarks.shops import PREPARED_AT, Lite, Shop, copied, tell

DRAWS, PORTION = 1_000_000, 50_000
LEAST = 1e-6  # of a test of frequencies; the draws are seeded, so that it alarms for ever or never
LOGS, DECISIONS, ARMS, LISTED = 300, 400, 12, 6
LATER = "2099-01-01T00:00:00Z"
TRUTH_DECISIONS = 2_000_000
SHELVES, RULED_DECISIONS, RULED_ESTIMATORS = 4, 150, ("ips", "snips", "dr")
PAGE = {"pin": {"2": "c"}, "most": {"shelf": 1}, "least": {"d": 0.1}}
Pages = Iterator[tuple[Request, dict[int, float]]]  # requests, and the rate of each arm that one lists
Judged = dict[str, tuple[float, float]]  # by estimator: the share of intervals that hold the truth, and a bias


def rankers(setting: Setting) -> Iterator[Figure]:
    """1e6 slates of 4 of 8 by temperature and by epsilon; 300 logs of 400 decisions, and what they say of the ranker.

    Of 300 intervals of 95 % that are right, fewer than 93 or more than 97 % hold the truth in one run of eleven."""
    for params in ({"temperature": 0.7, "floor": 0.1}, {"epsilon": 0.3}):
        for page in ({}, PAGE):
            name = ", ".join([*(f"{key}={value:g}" for key, value in params.items()), *page])
            yield Figure(name=f"p of 1e6 slates, {name}", value=frequencies(params, page), unit="", at_least=LEAST)
    for what, answers in (("", coverage(setting)), (" under rules of pages", ruled_coverage(setting))):
        for name, (covered, error) in answers.items():
            yield Figure(name=f"{name}{what}: intervals of 95 % that hold the truth", value=covered, unit="")
            share = f"{name}{what}: that share less 95 %, in size"
            yield Figure(name=share, value=abs(covered - 0.95), unit="", at_most=0.0201)
            yield Figure(name=f"{name}{what}: bias over its standard error", value=abs(error), unit="", at_most=4)


def frequencies(params: dict[str, float], page: dict[str, Any]) -> float:
    """The p-value of chi-square of the slates drawn against their joint propensities, under rules of the page."""
    policy, nothing = kinds.make("scored", params), np.zeros(8)
    belief = Belief(pulls=nothing, reward_sum=nothing, reward_squares=nothing, alpha=nothing, beta=nothing, total=0.0)
    arms, values = list("abcdefgh"), [1.7, 0.2, 1.7, -3.0, 0.9, 2.5, 0.9, 0.9]
    context = {"@arms": {arm: {"score": value} for arm, value in zip(arms, values, strict=True)}}
    scores, floor = policy.scores(belief, arms=arms, context=context), policy.exploration
    slates = np.array(list(permutations(range(8), 4)), np.intp)
    sampler = SlateSampler(scores, size=4, floor=floor)
    if page:
        ruled = RuledScores(
            scores, lay_out([parse(page)], arms, lambda field: [*map(SHELVES.__rmod__, range(8))]), floor
        )
        scores, sampler, floor = ruled, RuledSampler(ruled, size=4, floor=0.0), 0.0
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


def request(row: int, arms: Sequence[int], scores: Sequence[float], *, policy: str = "mine", **fields: Any) -> Request:
    """A request of a visit of its own for some arms, with the scores that the shop's ranker gives them."""
    stated = {f"a{arm}": {"score": score} for arm, score in zip(arms, scores, strict=True)}
    return Request(session=str(row), policy=policy, arms=[*stated], context={"@arms": stated}, **fields)


def coverage(setting: Setting) -> Judged:
    """The ranker without exploration, of which fresh users tell the click rate."""
    _, scores, rates = audience(np.random.default_rng(99), TRUTH_DECISIONS)
    truth = float(rates[np.arange(len(rates)), scores.argmax(axis=1)].mean())

    def requests(rng: np.random.Generator) -> Pages:
        for row, values in enumerate(zip(*map(np.ndarray.tolist, audience(rng, DECISIONS)), strict=True)):
            arms, scores, rates = values
            yield request(row, arms, scores), dict(zip(arms, rates, strict=True))

    base = shop(setting, mine="temperature=0.7", ranker="epsilon=0")
    return judged(setting, base, requests, target="ranker", estimators=("snips",), truth=truth, seed=5)


def ruled_coverage(setting: Setting) -> Judged:
    """A sharper ranker on pages of three with a pin, a cap and a least share; fresh users tell its click rate."""
    base, n = shop(setting, mine="temperature=0.7", sharp="temperature=0.4"), round(20_000 * setting.scale)

    def requests(rng: np.random.Generator, *, n: int = RULED_DECISIONS, policy: str = "mine") -> Pages:
        for row, values in enumerate(zip(*map(np.ndarray.tolist, audience(rng, n)), strict=True)):
            arms, scores, rates = values
            if len({arm % SHELVES for arm in arms}) < 3:
                continue
            other_shelf = next(arm for arm in arms if arm % SHELVES != arms[0] % SHELVES)
            page = {"pin": {"2": f"a{arms[0]}"}, "most": {"shelf": 1}, "least": {f"a{other_shelf}": 0.1}}
            yield request(row, arms, scores, policy=policy, size=3, page=page), dict(zip(arms, rates, strict=True))

    with copied(base) as copy, rlrec.open(copy.db, now=PREPARED_AT) as store:
        rng, pages = np.random.default_rng(6), partial(requests, n=max(2_000, n), policy="sharp")
        truth = np.mean([rate for *_, rate in shown(Pipe(store.store, seed=6), pages(rng))])
    return judged(setting, base, requests, target="sharp", estimators=RULED_ESTIMATORS, truth=float(truth), seed=7)


def shop(setting: Setting, **policies: str) -> Shop:
    """A store with arms on shelves and policies of kind scored, each with one parameter."""
    base = Lite(setting)
    tell(base, "init")
    arms = [{"arm": f"a{arm}", "features": {"shelf": arm % SHELVES}} for arm in range(ARMS)]
    tell(base, "arm", "import", "-", lines=arms)
    for name, parameter in policies.items():
        tell(base, "policy", "create", name, "--kind", "scored", "--param", parameter)
    return base


def judged(
    setting: Setting, base: Shop, requests: Callable[[np.random.Generator], Pages], *, target: str,
    estimators: Sequence[str], truth: float, seed: int,
) -> Judged:  # fmt: skip
    """What each estimator says of a target from many logs, each in a store of its own: the share of its intervals that
    hold the truth, and how many standard errors its mean is off."""
    rng, rows = np.random.default_rng(seed), list[dict[str, Any]]()
    for number in range(max(20, round(LOGS * setting.scale))):
        with copied(base) as copy:
            with rlrec.open(copy.db, now=PREPARED_AT) as store:
                pipe = Pipe(store.store, seed=number)
                clicked = [
                    Line(decision_id=decision, position=position, events={"click": 1.0})
                    for decision, position, rate in shown(pipe, requests(rng)) if rng.random() < rate
                ]  # fmt: skip
                pipe.group(clicked)
            with rlrec.open(copy.db, now=LATER) as store:
                rows += store.evaluate(target, log="policy=mine", estimators=",".join(estimators))
    answers = Judged()
    for name in estimators:
        values = np.array([[row["lower"], row["value"], row["upper"]] for row in rows if row["estimator"] == name])
        held, error = (values[:, 0] <= truth) & (truth <= values[:, 2]), np.std(values[:, 1]) / np.sqrt(len(values))
        answers[name] = float(held.mean()), float((values[:, 1].mean() - truth) / error)
    return answers


def shown(pipe: Pipe, pages: Pages) -> Iterator[tuple[int, int, float]]:
    """Decision, position and rate of each slot that is drawn for some requests."""
    requests, rates = zip(*pages, strict=True)
    for answer, by_arm in zip(pipe.group(requests), rates, strict=True):
        assert isinstance(answer, dict), answer
        for slot in answer["slate"]:
            yield answer["decision_id"], slot["position"], by_arm[int(slot["arm"][1:])]
