"""Logs made in arrays, honest ones and ones with something wrong, as checks of the log see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np

from rlrec.app.evaluation.checks import Check, CheckedRows
from rlrec.app.evaluation.rows import log_rows
from rlrec.app.evaluation.rows.contexts import ContextTable
from rlrec.app.evaluation.rows.log_rows import ArmTable, LoggedBatch
from rlrec.arrays import Array, Flags, Ids, numbers_in_runs, run_starts
from rlrec.ope.sums.base import hash_bits
from rlrec.policy.contexts import features
from rlrec.records import Reward
from rlrec.store.log.reader import ABSENT, Batch
from rlrec.store.log.selected import LogExtent

NOW = 2_000_000_000_000_000
SECOND = 1_000_000
DAY = 86_400 * SECOND
RESOLUTIONS = (1, SECOND, 60 * SECOND, DAY, 1_000 * DAY)  # of times, in microseconds; the last one: all are equal
CLICK = Reward(1, "click", {"click": 1.0}, 0, 0.0, None, None, "settled", "drop")


@dataclass(frozen=True, kw_only=True)
class World:
    """A log of n decisions of k positions, in order of session and step.

    session, step, at, context (n,): the context as its number in `contexts`; arm, p, reward (n, k): p as logged, given
    the positions above; user (n,): ABSENT where none is known; min_propensity (n,): at the top, NaN where not logged;
    arms: of the catalogue, all of them eligible; chance (n, arms): that the top was drawn with; eagerness (n,): of the
    person to click"""

    session: Ids
    step: Ids
    at: Ids
    context: Ids
    contexts: Sequence[dict[str, Any]]
    arm: Ids
    p: Array
    reward: Array
    user: Ids
    min_propensity: Array
    arms: int
    chance: Array
    eagerness: Array

    def take(self, rows: Ids | Flags) -> World:
        """These decisions."""
        columns = {name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **columns)

    def joined(self, other: World) -> World:
        """Both logs, whose sessions differ, as one; contexts are those of both."""
        columns: dict[str, Any] = {
            name: np.concatenate([value, getattr(other, name)])
            for name, value in vars(self).items()
            if isinstance(value, np.ndarray)
        }
        columns["context"] = np.r_[self.context, other.context + len(self.contexts)]
        columns["contexts"] = [*self.contexts, *other.contexts]
        log = replace(self, **columns)
        return log.take(np.lexsort((log.step, log.session)))


def checked_rows(world: World, *, cluster: str = "user", **flags: Any) -> CheckedRows:
    """The impressions of a log, as checks see them. flags: further fields of `CheckedRows`."""
    n, k = world.arm.shape
    decision = np.repeat(np.arange(n) + 1, k)

    def repeated(column: Any) -> Any:
        return np.repeat(column, k)

    digest = hash_bits(world.session, salt=7).view(np.int64)
    user_digest = np.where(world.user == ABSENT, 0, hash_bits(world.user, salt=8).view(np.int64))
    zeros, falses = np.zeros(n * k, np.int64), np.zeros(n * k, np.bool_)
    slots: dict[str, Any] = {
        "decision_id": decision, "session_id": repeated(world.session + 1), "position": np.tile(np.arange(k) + 1, n),
        "session_digest": repeated(digest), "user_id": repeated(world.user), "user_digest": repeated(user_digest),
        "visit": zeros + 1, "step": repeated(world.step), "at": repeated(world.at),
        "context_id": repeated(world.context + 1), "context": repeated(world.context),
        "arm_id": world.arm.ravel() + 1, "propensity": world.p.ravel(),
        "marginal": np.where(np.arange(k) == 0, world.p, np.nan).ravel(),
        "min_propensity": np.where(np.tile(np.arange(k) == 0, n), repeated(world.min_propensity), np.nan),
        "eligible_id": zeros + 1, "size": zeros + k, "policy_id": zeros + 1, "version_id": zeros + 1,
        "belief_seq": zeros, "belief_ordinal": zeros, "catalogue_revision": zeros, "imported": ~falses,
        "censored": falses, "estimated": falses, "subsampled": falses, "keep_probability": np.ones(n * k),
        "group": zeros,
    }  # fmt: skip
    slots |= (
        log_rows.slate_places(slots)
        | log_rows.visit_course(slots)
        | {"cluster": log_rows.cluster_digests(slots, cluster)}
    )
    clicked = np.flatnonzero(world.reward.ravel() != 0)
    events = {
        "decision_id": decision[clicked], "position": slots["position"][clicked],
        "kind": np.full(len(clicked), "click", object), "value": world.reward.ravel()[clicked],
        "age_us": np.zeros(len(clicked), np.int64),
    }  # fmt: skip
    log = Batch(slots=slots, events=events)
    contexts = ContextTable({}, frozenset(), features.hash_contexts(world.contexts))
    arms = ArmTable({arm + 1: f"a{arm:05}" for arm in range(world.arms)})
    batch = LoggedBatch(log=log, contexts=contexts, eligible={1: arms.ids})
    rows, _ = log_rows.usable_rows(log, CLICK, now=NOW)
    options: dict[str, Any] = {
        "cluster": cluster, "reward": CLICK, "model": None, "extent": extent_of(world), **flags
    }  # fmt: skip
    return CheckedRows(batch=batch, arms=arms, rows=rows, **options)


def extent_of(world: World) -> LogExtent:
    """The extent of the log."""
    (n, k), steps = world.arm.shape, int(world.step.max(initial=0)) + 1
    return LogExtent(k, steps, 1, 1, n, first_at=int(world.at.min()), last_at=int(world.at.max()))


def fails(check: Check, world: World, *, batches: int = 1, **flags: Any) -> bool:
    """Whether a log fails a check, from the sums of several batches of whole sessions."""
    parts = [world]
    if batches > 1:
        of_session = world.session % batches
        parts = [world.take(of_session == number) for number in range(batches)]
    options: dict[str, Any] = {"extent": extent_of(world), **flags}
    sums = [check.sums(checked_rows(batch, **options)) for batch in parts if len(batch.session)]
    present = [partial for partial in sums if partial is not None]
    return bool(present) and check.fails(reduce(add, present))


# -- honest logs --

SEGMENTS, DEVICES = 4, 3
SHAPES = {"impressions": (1, 1.3), "pages": (3, 1.5), "visits": (1, 6.0)}  # positions, and decisions of a visit


def honest(
    shape: str,
    seed: int,
    *,
    decisions: int = 1_500,
    arms: int = 5,
    resolution: int | None = None,
    spread: float | None = None,
) -> World:
    """A log in which nothing is wrong: people differ strongly in how often they click and how long they stay, the
    logger reads the context, and times are as coarse as they may be.
    shape: one of SHAPES; resolution: of times, in microseconds; None for any of RESOLUTIONS. spread: a + b of the
    beta distribution of people's rates; None for little, where they differ strongly."""
    rng = np.random.default_rng([seed, decisions, arms, len(shape)])
    k, length = SHAPES[shape]
    # visits of lengths that differ more than geometric ones
    stay = 1 + rng.poisson(rng.gamma(0.5, 2 * (length - 1), decisions))
    session = np.repeat(np.arange(decisions), stay)[:decisions]
    step = numbers_in_runs(run_starts(session), decisions)
    visits = int(session[-1]) + 1
    person = 1 + rng.integers(visits, size=visits)
    # contexts: a segment of the person, a device of the visit, and a number that changes
    segment, device = rng.integers(SEGMENTS, size=visits), rng.integers(DEVICES, size=visits)
    hour = rng.integers(24, size=decisions)
    fields = segment[session].tolist(), device[session].tolist(), hour.tolist()
    contexts = [{"segment": f"s{s}", "device": f"d{d}", "hour": h} for s, d, h in zip(*fields, strict=True)]
    tick = RESOLUTIONS[seed % len(RESOLUTIONS)] if resolution is None else resolution
    at = (NOW - 30 * DAY + rng.integers(0, 20 * DAY, visits)[session] + step * 40 * SECOND) // tick * tick
    # a logger of scores by segment, smoothed, floored or greedy
    scores = rng.normal(size=(SEGMENTS, arms)) * rng.uniform(0.2, 1.5)
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    floor = rng.uniform(0.05, 0.4)
    policy = (odds / odds.sum(axis=1, keepdims=True), np.eye(arms)[scores.argmax(axis=1)])[seed % 2]
    chance = (1 - floor) * policy + floor / arms
    arm, p = drawn_slates(chance[segment[session]], k, rng)
    # people click by their own rates, at better arms and higher positions more often
    spread = spread or rng.uniform(0.3, 3.0)
    mean = rng.uniform(0.03, 0.3)
    rate = rng.beta(spread * mean, spread * (1 - mean), visits + 1)[person[session]]
    attraction = rng.uniform(0.4, 1.0, (SEGMENTS, arms))
    examined = 0.7 ** np.arange(k)
    reward = (
        rng.random((decisions, k)) < rate[:, None] * attraction[segment[session][:, None], arm] * examined
    ).astype(np.float64)
    least = chance.min(axis=1)[segment[session]]
    return World(
        session=session, step=step, at=at, context=np.arange(decisions), contexts=contexts, arm=arm, p=p, reward=reward,
        user=person[session], min_propensity=np.where(seed % 3 == 0, least, np.nan), arms=arms,
        chance=chance[segment[session]], eagerness=rate,
    )  # fmt: skip


def drawn_slates(chance: Array, size: int, rng: np.random.Generator) -> tuple[Ids, Array]:
    """Slates drawn arm by arm from what is left, (n, size), and the probability of each arm given those above."""
    keys = np.log(chance) + rng.gumbel(size=chance.shape)
    arm = np.argsort(-keys, axis=1)[:, :size]
    shares = np.take_along_axis(chance, arm, axis=1)
    return arm, shares / (1 - np.cumsum(shares, axis=1) + shares)


# -- logs in which something is wrong --


def rule_by_segment(shape: str, seed: int, *, decisions: int = 1_500) -> World:
    """The segment says which arm is shown, mostly, and the log has the share of each arm over all segments."""
    world, rng = honest(shape, seed, decisions=decisions), np.random.default_rng(seed)
    segment = np.array([int(context["segment"][1:]) for context in world.contexts])[world.context]
    chance = np.full((SEGMENTS, world.arms), 0.3 / world.arms)
    chance[np.arange(SEGMENTS), rng.permutation(world.arms)[:SEGMENTS]] += 0.7
    return logged_as_shares(world, chance[segment], rng)


def logged_as_shares(world: World, chance: Array, rng: np.random.Generator) -> World:
    """The log with arms drawn by these probabilities, (n, arms), and shares of arms at the top as propensities."""
    arm, _ = drawn_slates(chance, world.arm.shape[1], rng)
    share = (np.bincount(arm[:, 0], minlength=world.arms) / len(arm))[arm]
    p = np.minimum(share / (1 - np.cumsum(share, axis=1) + share), 1.0)
    return replace(world, arm=arm, p=p, chance=chance, min_propensity=np.full(len(arm), np.nan))


def later_rates(shape: str, seed: int, *, later: Sequence[float], visits: int = 5_000) -> World:
    """A uniform log in which arms earn .5, .4, .3, .3 and .3 at first, and other rates in the later half of the time.
    visits: about."""
    world = honest(shape, seed, decisions=int(visits * SHAPES[shape][1]), resolution=1)
    is_late, rng = world.at > (world.at.min() + world.at.max()) / 2, np.random.default_rng(seed)
    rates = np.where(is_late[:, None], np.array(later), np.array([0.5, 0.4, 0.3, 0.3, 0.3]))
    chance = np.full(rates.shape, 1 / world.arms)
    arm, p = drawn_slates(chance, world.arm.shape[1], rng)
    reward = (rng.random(arm.shape) < np.take_along_axis(rates, arm, axis=1)).astype(np.float64)
    return replace(world, arm=arm, p=p, chance=chance, reward=reward, min_propensity=np.full(len(arm), np.nan))


def without_users(shape: str, seed: int, *, decisions: int = 1_500) -> World:
    """People come back under other session keys, and the log does not say so."""
    world = honest(shape, seed, decisions=decisions)
    return replace(world, user=np.full(decisions, ABSENT))


def machines(shape: str, seed: int, *, decisions: int = 6_000, spread: float = 6.0) -> World:
    """A share of 4 % of the sessions, with 17 % of the decisions, clicks nearly everything."""
    world, rng = honest(shape, seed, decisions=decisions, spread=spread), np.random.default_rng(seed)
    number = int(0.04 / 0.96 * len(np.unique(world.session)))
    length = 1 + rng.poisson(0.17 / 0.83 * decisions / number - 1, number)
    rows = rng.integers(decisions, size=length.sum())  # what they are shown is what others were
    played = world.take(rows)
    step = numbers_in_runs(run_starts(np.repeat(np.arange(number), length)), len(rows))
    session = world.session.max() + 1 + np.repeat(np.arange(number), length)
    reward = (rng.random(played.arm.shape) < rng.uniform(0.92, 1.0)).astype(np.float64)
    return world.joined(replace(played, session=session, step=step, user=session + 1, reward=reward))


def twice(shape: str, seed: int, *, share: float = 1.0, decisions: int = 1_500, resolution: int | None = None) -> World:
    """A share of the sessions is in the log once more, under other keys."""
    world, rng = honest(shape, seed, decisions=decisions, resolution=resolution), np.random.default_rng(seed)
    is_copied = rng.random(int(world.session.max()) + 1) < share
    copies = world.take(is_copied[world.session])
    return world.joined(replace(copies, session=copies.session + len(is_copied), user=copies.user + len(is_copied)))


def clipped(shape: str, seed: int, *, decisions: int = 3_000, logs_least: bool = False, fields: int = 2) -> World:
    """Arms are drawn by scores of the context, and propensities below .05 are logged as .05."""
    world, rng = honest(shape, seed, decisions=decisions), np.random.default_rng(seed)
    x = rng.normal(size=(decisions, fields))
    odds = np.exp(2 * x @ rng.normal(size=(fields, world.arms)) / fields**0.5 + rng.normal(size=world.arms))
    chance = odds / odds.sum(axis=1, keepdims=True)
    arm, p = drawn_slates(chance, world.arm.shape[1], rng)
    least = np.where(logs_least, np.maximum(chance.min(axis=1), 0.05), np.nan)
    contexts = [{"x": x1, "y": x2} for x1, x2 in x[:, :2].tolist()]
    is_top = np.arange(arm.shape[1]) == 0
    p = np.where(is_top, np.maximum(p, 0.05), p)
    return replace(world, arm=arm, p=p, chance=chance, min_propensity=least, contexts=contexts)


# What is wrong with a log, by the reason that a reader is shown: makers of logs, by shape and seed.
WRONG: dict[str, dict[str, Callable[[str, int], World]]] = {
    "wrong-propensities": {"a rule by segment, shares logged": rule_by_segment},
    "drift": {
        "rates that halve": partial(later_rates, later=[0.25, 0.2, 0.15, 0.15, 0.15]),
        "arms that reverse": partial(later_rates, later=[0.3, 0.3, 0.3, 0.4, 0.5]),
    },
    "no-users": {"people who come back, without keys": without_users},
    "repeated-rows": {
        "every session twice": twice,
        "a tenth of the sessions twice, times in seconds": partial(twice, share=0.1, resolution=SECOND),
    },
    "clipped-propensities": {
        "propensities cut at .05": clipped,
        "propensities cut at .05, the smallest logged": partial(clipped, logs_least=True),
    },
    "machine-sessions": {
        "sessions of machines": machines,
        "sessions of machines among very uneven people": partial(machines, spread=0.7),
    },
}
