"""Effects of arms: whether intervals hold the truth on logs of policies that learn, what they cost, and whether weights
that `reward suggest` finds hold the slopes of worlds that are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from statistics import median

import numpy as np

from rlrec import policy as kinds
from rlrec import simulate
from rlrec.app.audiences.in_memory import NO_CONTEXT, RunBeliefs
from rlrec.app.evaluation.passes.arm_effects import EffectSums
from rlrec.app.judging import effects as judged_effects
from rlrec.arrays import Array, Ids
from rlrec.ope.estimators.shrinkage import draw_lines, joint_rates
from rlrec.ope.intervals.tails import t_quantile
from rlrec.ope.sums.exposures import Exposures, block_numbers, std_errors
from rlrec.policy.beliefs.base import OnlineLearner, Policy
from rlrec.policy.scores.floors import Floor
from rlrec.policy.scores.scores import Scores, split_runs, subset
from rlrec.policy.slates import slate_draws
from tests.app import logs
from tests.benchmarks import scale
from tests.benchmarks.measure import Figure, Sample, Setting, process, rlrec
from tests.benchmarks.shops import LATER, Lite, logged, tell

RUNS, PAGES, GROUP, VISIT = 500, 1_500, 100, 3  # logs; pages of a log, of a belief, of a visit
EXAMINATION = np.array([1.0, 0.5])
NOW = np.array([-0.3, -0.1, 0.0, 0.1, 0.25])
BACK = np.array([0.06, -0.04, 0.0, 0.02, -0.04])
RETURN_WEIGHT, FOLLOWED = 1.0, 1.0  # of a return, and what a person who came back earns on average
CANDIDATES = 3
LEAST, MOST, LEAST_SHRUNK = 0.93, 0.97, 0.90
LOGGERS: dict[str, Sequence[str]] = {
    "thompson": ["thompson"], "epsilon-greedy": ["epsilon-greedy"], "plackett-luce": ["plackett-luce"],
    "two-stage": ["two-stage"], "pooled": ["thompson", "epsilon-greedy"],
}  # fmt: skip
MILLION, MANY_PAGES, MANY_ARMS = 1_000_000, 20_000, 5_000
STORED, STORED_PAGES = 400, 400  # logs through the store: of 40, coverage is off by .03 by chance
SETS = 200  # of arms, for weights


def effects(setting: Setting) -> Iterator[Figure]:
    """Coverage in memory and through the store, weights, speed and memory."""
    for seed, (name, loggers) in enumerate(LOGGERS.items()):
        raw, shrunk = covered(loggers, runs=setting.size(RUNS), seed=seed)
        for outcome, share in zip(("now", "returning", "long run"), raw.tolist(), strict=True):
            off = abs(share - (LEAST + MOST) / 2)
            yield Figure(
                name=f"{name}: coverage of {outcome} {share:.4f}, off by", value=off, unit="", at_most=MOST - 0.95
            )
        yield Figure(name=f"{name}: coverage, shrunk", value=shrunk, unit="", at_least=LEAST_SHRUNK)
    # the curve is found in the same short log, and its error is in no interval: it adds little to theirs
    share = stored(setting)
    off = abs(share - (LEAST + MOST) / 2)
    yield Figure(name=f"through the store: coverage {share:.4f}, off by", value=off, unit="", at_most=MOST - 0.95)
    for slopes, share in weights(setting.size(SETS)).items():
        yield Figure(name=f"weights {slopes}: coverage", value=share, unit="", at_least=0.91)
    yield from _costs(setting)


# -- logs in memory --


def covered(loggers: Sequence[str], *, runs: int, seed: int) -> tuple[Array, float]:
    """The share of intervals of arms that hold the effect now, on coming back and in the long run, (3,), and of shrunk
    ones in the long run."""
    held, held_shrunk = np.zeros(3), 0.0
    for sums in logs_of(loggers, runs=runs, seed=seed):
        estimates = sums.estimate(return_weight=RETURN_WEIGHT)
        share = sums.pages.looks[1] / sums.pages.looks[1].sum()
        worth = RETURN_WEIGHT + FOLLOWED
        now, _, returning = zip(
            estimates.effect.T, std_errors(estimates.influence, columns=estimates.columns).T, strict=True
        )
        answers = (now, returning, estimates.arm_totals)
        truths = [truth - share @ truth for truth in (NOW, BACK, NOW + worth * BACK)]
        reach = t_quantile(0.975, min(PAGES // VISIT, len(estimates.influence)) - 1)
        for number, ((effect, error), truth) in enumerate(zip(answers, truths, strict=True)):
            held[number] += (np.abs(effect - truth) <= reach * error).mean()
        total = estimates.long_run(estimates.posteriors)
        held_shrunk += float((np.abs(total.mean - truths[2]) <= 1.96 * total.sd).mean())
    return held / runs, held_shrunk / runs


def logs_of(loggers: Sequence[str], *, runs: int, seed: int) -> Iterator[EffectSums]:
    """The sums of many logs, each of equally many pages of its loggers, which learn from clicks."""
    rng, arms = np.random.default_rng(seed), len(NOW)
    slates = np.empty((runs, PAGES, len(EXAMINATION)), np.int64)
    draw, expected = np.empty((runs, PAGES), np.int64), [list[Array]() for _ in range(runs)]
    turn = PAGES // len(loggers)
    for number, kind in enumerate(loggers):
        # of two stages the second one, which ranks lists that an even first one draws
        is_listed = kind == "two-stage"
        policy = kinds.make("thompson" if is_listed else kind, {"floor": 0.2})
        beliefs, seeds = RunBeliefs(policy, runs, simulate.arm_names(arms)), rng.integers(2**63, size=runs)
        for start in range(number * turn, (number + 1) * turn, GROUP):
            pages = np.arange(start, min(start + GROUP, (number + 1) * turn))
            for run, scores in enumerate(scores_of(policy, beliefs)):
                slates[run, pages], draw[run, pages] = drawn(
                    scores, policy.exploration, int(seeds[run]), pages, expected[run], is_listed=is_listed
                )
            clicked = rng.random(slates[:, pages].shape) < EXAMINATION * (0.5 + NOW[slates[:, pages]])
            for column, page in enumerate(pages):
                beliefs.add(slates[:, page], 1.0 * clicked[:, column], np.ones((runs, 1)), None)
    for run in range(runs):
        yield sums_of(slates[run], draw[run], np.array(expected[run]), rng)


def scores_of(policy: Policy, beliefs: RunBeliefs) -> list[Scores]:
    """The scores of each run."""
    scores = policy.scores(beliefs.belief(), arms=simulate.arm_names(beliefs.shape[1]), context=NO_CONTEXT)
    return split_runs(scores) if isinstance(policy, OnlineLearner) else [scores] * beliefs.shape[0]


def drawn(
    scores: Scores, floor: Floor, seed: int, pages: Ids, expected: list[Array], *, is_listed: bool
) -> tuple[Ids, Ids]:  # fmt: skip
    """Slates of pages, (n, 2), and the number of the draw of each, (n,), whose expectation is appended."""
    arms, rng = len(NOW), np.random.default_rng([seed, pages[0]])
    lists = np.tile(np.arange(arms), (len(pages), 1))
    if is_listed:
        lists = np.sort(lists[0][rng.random(lists.shape).argsort(axis=1)[:, :CANDIDATES]], axis=1)
    distinct, kind = np.unique(lists, axis=0, return_inverse=True)
    slates, draw = np.empty((len(pages), len(EXAMINATION)), np.int64), np.empty(len(pages), np.int64)
    for number, candidates in enumerate(distinct):
        rows = np.flatnonzero(kind.reshape(-1) == number)
        sampler = slate_draws.SlateSampler(subset(scores, candidates), size=2, floor=floor)
        seeds = np.full(len(rows), seed, np.uint64)
        slates[rows] = candidates[sampler.draw(seeds=seeds, decisions=pages[rows]).slates]
        draw[rows], table = len(expected), np.zeros(arms)
        table[candidates] = EXAMINATION @ sampler.marginals
        expected.append(table)
    return slates, draw


def sums_of(slates: Ids, draw: Ids, expected: Array, rng: np.random.Generator) -> EffectSums:
    """The sums of a log: what pages earn has a trend, noise that is larger on every third page, and persons differ."""
    n, arms = len(slates), len(NOW)
    page, visit = np.arange(n), np.arange(n) // VISIT
    digests = rng.integers(-(2**62), 2**62, n // VISIT)
    look = np.tile(EXAMINATION, n)
    exposures = Exposures(np.repeat(page, 2), slates.ravel(), look, expected, draw)
    looks = np.bincount(exposures.row * arms + exposures.arm, weights=look, minlength=n * arms).reshape(n, arms)
    noise = 0.6 * rng.normal(size=n) * np.where(page % 3 == 0, 1.5, 1.0) + 0.3 * rng.normal(size=n // VISIT)[visit]
    earned = 0.4 + looks @ NOW + 0.3 * np.sin(page / n * 6) + noise
    by_visit = earned.reshape(-1, VISIT)
    later = (by_visit[:, ::-1].cumsum(axis=1)[:, ::-1] - by_visit).ravel()
    returned = rng.random(n // VISIT) < 0.5 + looks.reshape(-1, VISIT, arms).sum(axis=1) @ BACK
    followed = rng.exponential(FOLLOWED, n // VISIT)
    sums = EffectSums.zeros(arms, outcomes=2)
    step = np.column_stack([np.ones(n), np.log1p(page % VISIT), np.zeros(n)])
    sums.pages.add_rows(
        step, exposures, np.column_stack([earned, later]), factor=np.ones(n), cluster=digests[visit]
    )  # fmt: skip
    constant = np.column_stack([np.ones(n // VISIT), np.zeros((n // VISIT, 2))])
    sums.visits.add_rows(
        constant, exposures.merge_rows(visit), 1.0 * returned[:, None], factor=np.ones(n // VISIT), cluster=digests
    )
    block = block_numbers(digests)
    by_block = [
        np.bincount(block, weights=column, minlength=len(sums.returns)) for column in (returned, returned * followed)
    ]
    return replace(sums, returns=by_block[0], gains=by_block[1])


# -- logs in stores --


def stored(setting: Setting) -> float:
    """The share of intervals of arms that hold the effect on clicks, in logs of Thompson sampling that went through
    stores: an arm is clicked at its rate where it is looked at."""
    rates, share, number = 0.4 + NOW, 0.0, max(int(STORED * setting.scale), 4)
    for seed in range(number):
        shop = Lite(setting)
        tell(shop, "init")
        logs.begin(shop.db, len(NOW), "log", "thompson", floor="0.2")
        logs.serve(shop.db, "log", pages=STORED_PAGES, group=50, together=2, rates=rates.tolist(), size=2, users=200,
                   curve=EXAMINATION.tolist(), seed=seed)  # fmt: skip
        with closing(logs.at(shop.db, 1e5)) as store:
            (group,) = judged_effects.effects(store, judged_effects.Request())["groups"]
        arms = sorted(group["arms"], key=lambda row: row["arm"])
        lower, upper, looks = (
            np.array([row[name] for row in arms], np.float64) for name in ("lower", "upper", "looks")
        )
        # against the mean showing: contrasts with the mean of arms by looks are nearly those
        truth = rates - looks @ rates / looks.sum()
        share += float(((lower <= truth) & (truth <= upper)).mean()) / number
        shop.drop()
    return share


# -- weights of events --


def weights(sets: int) -> dict[str, float]:
    """The share of intervals that hold the slope, of both kinds of events in many sets of arms, by the slopes."""
    rng, shares = np.random.default_rng(7), dict[str, float]()
    for arms, noise, slopes in ((50, 0.09, (-0.1, 0.6)), (50, 0.03, (-0.1, 1.5)), (16, 0.03, (-0.3, 2.0))):
        held = 0.0
        for _ in range(sets):
            looks, click = rng.gamma(1, 200, arms) + 20, rng.uniform(0.1, 0.6, arms)
            buy = click * np.where(rng.random(arms) < 0.2, 0, 0.2) * rng.uniform(0.7, 1.3, arms)
            counts = np.column_stack([rng.poisson(looks * click), rng.poisson(looks * buy)]).astype(np.float64)
            error = noise * np.sqrt(np.median(looks) / looks)
            effect = (
                np.column_stack([click, buy]) @ slopes + 0.03 * rng.normal(size=arms) + error * rng.normal(size=arms)
            )
            rates, _ = joint_rates(counts, np.diag(counts.sum(axis=0)), looks)
            lower, upper = np.quantile(
                draw_lines(effect, error, rates, draws=1_000, rng=rng).slopes, [0.025, 0.975], axis=0
            )
            held += float(((lower <= slopes) & (slopes <= upper)).mean())
        shares[f"{slopes[0]:g} and {slopes[1]:g} of {arms} arms"] = held / sets
    return shares


# -- what they cost --


def _costs(setting: Setting) -> Iterator[Figure]:
    """CPU of a whole process against `evaluate` on a million decisions, by turns; memory with 5,000 arms."""
    size = setting.size(MILLION)
    shop = logged(Lite(setting), setting, size, visit=4)
    words = {"effects": ["effects", "--log", "policy=log"], "evaluate": ["evaluate", "home", "--log", "policy=log"]}
    samples: dict[str, list[Sample]] = {name: [] for name in words}
    for _ in range(setting.times(3)):
        for name, command in words.items():
            samples[name].append(process(rlrec("--db", shop.db, *command), added=LATER))
    cpu = {name: median(sample.cpu for sample in taken) for name, taken in samples.items()}
    yield Figure(name=f"effects on {size:,} decisions, CPU", value=cpu["effects"], unit="s", reference=cpu["evaluate"],
                 at_most=2)  # fmt: skip
    pages, other = setting.size(MANY_PAGES), Lite(setting)
    tell(other, "init")
    tell(other, "arm", "import", "-", lines=[{"arm": f"a{number}"} for number in range(MANY_ARMS)])
    tell(other, "policy", "create", "home", "--kind", "thompson", "--param", "floor=0.05")
    for day in scale.DAYS[:2]:
        lines = [{**line, "session": f"{day}{line['session']}"} for line in scale.requests(0, pages // 2)]
        tell(other, "recommend", "--input", "-", lines=lines, now=day + scale.NOON)
    sample = process(rlrec("--db", other.db, "effects"), added=LATER)
    yield Figure(
        name=f"effects of 5,000 arms on {pages:,} pages: memory", value=sample.memory, unit="MB", at_most=1_000
    )
