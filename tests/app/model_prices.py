"""A world of language models behind a policy: requests of some difficulty, answers that cost money, and a judge who
says hours later how good they were."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from scipy.optimize import linprog

from rlrec.app.requests.pipe import Line, Pipe, Request
from rlrec.app.requests.recommend import Answer
from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.store import Store
from rlrec.times import DAY_US, parse

COST_NOISE, COST_SPREAD = 0.5, 1000  # of one request, in logs; prices are per so many requests


@dataclass(kw_only=True)
class World:
    """Models with their price for 1,000 requests, .1 to 20, and their ability, which a request of a difficulty needs.

    judged_after_s, paid_after_s: when quality and cost are known, after the answer."""

    price: Array
    ability: Array
    judged_after_s: float = 0.0
    paid_after_s: float = 0.0
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = [f"model{number}" for number in range(len(self.price))]

    @classmethod
    def random(cls, seed: int, models: int = 7, **delays: float) -> World:
        """Models whose ability tends to grow with their price."""
        rng = np.random.default_rng(seed)
        price = np.sort(np.exp(rng.uniform(np.log(0.1), np.log(20), models)))
        ability = 0.35 * np.log(price) + rng.normal(0, 0.4, models)
        return cls(price=price, ability=ability, **delays)

    def quality(self, difficulty: Array) -> Array:
        """The probability that each model answers each request well, (n, models)."""
        return np.asarray(1 / (1 + np.exp(-(self.ability + 0.8 - difficulty[:, None]))))

    @property
    def mean_quality(self) -> Array:
        node, weight = np.polynomial.hermite_e.hermegauss(40)
        return np.asarray(weight @ self.quality(1.3 * node) / weight.sum())

    @property
    def mean_cost(self) -> Array:
        return np.asarray(self.price / COST_SPREAD)

    def best_mix(self, cost: float) -> tuple[float, Array]:
        """The value of the best fixed mix of models that costs at most so much a request, and the mix."""
        ones = np.ones((1, len(self.price)))
        program = linprog(-self.mean_quality, A_ub=[self.mean_cost], b_ub=[cost], A_eq=ones, b_eq=[1])
        return -float(program.fun), np.asarray(program.x)

    def cost_between(self, share: float) -> float:
        """A cost of a request between the cheapest model and the best one."""
        best = self.mean_cost[np.argmax(self.mean_quality)]
        return float(self.mean_cost.min() + share * (best - self.mean_cost.min()))


@dataclass(kw_only=True)
class Day:
    """What a day cost, how many requests it had, and the expected quality of their answers."""

    cost: float = 0.0
    requests: int = 0
    quality: float = 0.0
    shown: list[int] = field(default_factory=list)


class Clients:
    """Clients who ask a policy of a store, by a daily rhythm, and report what came of it."""

    def __init__(self, store: Store, world: World, policy: str, *, seed: int, first_day: str) -> None:
        self.store, self.world, self.policy, self.rng = store, world, policy, np.random.default_rng(seed)
        self.first_day, self.pipe, self.n_sessions = parse(first_day), Pipe(store, seed=seed), 0
        self.due: list[tuple[int, int, str, float]] = []  # a heap: when it is known, decision, event, value

    def day(self, number: int, requests: int, *, group: int, uneven: float = 0.8) -> Day:
        """A day with about so many requests, in groups that come together."""
        rng, day = self.rng, Day()
        requests = rng.poisson(requests * rng.lognormal(-0.005, 0.1))
        hour = rng.uniform(0, 24, 4 * requests)
        rate = 1 + uneven * np.sin((hour - 9) * np.pi / 12)
        hour = np.sort(hour[rng.random(len(hour)) * (1 + uneven) < rate][:requests])
        for first in range(0, len(hour), group):
            at = self.first_day + number * DAY_US + int(hour[first] / 24 * DAY_US)
            self._report(at)
            self._ask(at, len(hour[first : first + group]), day)
        return day

    def _ask(self, at: int, n: int, day: Day) -> None:
        self.store.now, rng, world = max(at, self.store.now or at), self.rng, self.world
        first, self.n_sessions = self.n_sessions, self.n_sessions + n
        sessions = [f"{self.policy}-{number}" for number in range(first, first + n)]
        answers = self.pipe.group([Request(policy=self.policy, session=key) for key in sessions])
        quality = world.quality(1.3 * rng.standard_normal(n))
        for row, answer in enumerate(answers):
            assert not isinstance(answer, InputError), answer
            decision = cast(Answer, answer)
            arm = world.names.index(decision["slate"][0]["arm"])
            cost = float(world.mean_cost[arm] * rng.lognormal(-(COST_NOISE**2) / 2, COST_NOISE))
            good = float(rng.random() < quality[row, arm])
            for delay, event, value in (
                (world.paid_after_s, "cost_usd", cost), (world.judged_after_s, "quality", good),
            ):  # fmt: skip
                arrives_at = int(self.store.now + 1_000_000 * delay)
                heapq.heappush(self.due, (arrives_at, decision["decision_id"], event, value))
            day.cost, day.requests, day.quality = day.cost + cost, day.requests + 1, day.quality + quality[row, arm]
            day.shown.append(arm)

    def _report(self, until: int) -> None:
        lines = []
        self.store.now = until
        while self.due and self.due[0][0] <= until:
            at, decision_id, event, value = heapq.heappop(self.due)
            lines.append(Line(decision_id=decision_id, events={event: value}, at=at))
        for outcome in self.pipe.group(lines) if lines else ():
            assert not isinstance(outcome, InputError), outcome


def opened(path: Path) -> Store:
    """A store whose clock goes as its clients say."""
    store = Store(str(path), notice=lambda _: None)
    store.allow_future = True
    return store
