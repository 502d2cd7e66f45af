"""Visits to the barista, whose best policy is known: what intervals of a gain cover, and where rounds of logging and
training lead."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from click.testing import CliRunner

from rlrec import simulate
from rlrec.app.distributions.trained import TrainedModel
from rlrec.app.inputs import lookup
from rlrec.app.training.ascent import TrainingOptions
from rlrec.cli import program
from rlrec.ope.comparisons.comparison import Comparison
from rlrec.policy.gradients.gradient import Parameters
from rlrec.simulate.barista import Barista
from rlrec.store import Store
from rlrec.store.policies import arms
from tests.benchmarks.measure import Figure, Setting
from tests.benchmarks.spools import KIND, Server, drawn, night, spooled
from tests.simulate import bars

# -- intervals --

SEEDS, VISITS, EARLIER = 100, 8_000, 4_000
ENTROPY = (0.05, 0.02, 0.01)  # of the first round, the second, and the third
LEVEL = 0.95
COVERED = 0.9


@dataclass(frozen=True, eq=False)
class Claim:
    """A gain by the visits of the gate, and its true value."""

    estimate: Comparison
    truth: float

    @property
    def covers(self) -> bool:
        """An end that is not known covers all on its side."""
        low, high = self.estimate.lower, self.estimate.upper
        return (low is None or low <= self.truth) and (high is None or self.truth <= high)

    @property
    def is_broad(self) -> bool:
        """Whether half the interval is wider than half the gain."""
        low, high, gain = self.estimate.lower, self.estimate.upper, self.estimate.value
        return low is None or high is None or gain is None or high - low > abs(gain)


def claim(seed: int, *, visits: int = VISITS) -> Claim:
    """A candidate beside the policy that logged, and that it comes from: uniform, or in odd seeds what a first round
    leads to. It has climbed for 1 to 30 epochs. Neither sees rewards, so that their values are exact."""
    audience, start, entropy = Barista(), KIND.zero_parameters(4), ENTROPY[0]
    if seed % 2:
        start, entropy = earlier(), ENTROPY[1]
    live = Server(parameters=start, blind=True)
    spool = spooled(live, drawn(live, audience, visits=visits, seed=seed), seed=seed)
    with closing(night(spool, start, options=TrainingOptions(entropy=entropy, epochs=1 + seed * 7 % 30))) as trained:
        new = replace(live, parameters=trained.climbed.parameters)
        return Claim(trained.gain((1 - LEVEL) / 2), value(new, audience) - value(live, audience))


@lru_cache(maxsize=1)
def earlier() -> Parameters:
    """The parameters that uniform visits teach."""
    live = Server(parameters=KIND.zero_parameters(4), blind=True)
    spool = spooled(live, drawn(live, Barista(), visits=EARLIER, seed=SEEDS), seed=SEEDS)
    with closing(night(spool, live.parameters, options=TrainingOptions(entropy=ENTROPY[0]))) as trained:
        return trained.climbed.parameters


def value(server: Server, audience: Barista) -> float:
    """The exact value of a policy that does not see rewards."""
    return bars.value_of(audience, lambda items: server.chances(items, np.zeros(items.shape)))


# -- rounds --

ROUNDS, SESSIONS, STORES = 3, 20_000, 5
GROUP = 500  # visits that are served together, a second apart: so long does a guest wait
NEWEST = 2**62  # of catalogues
ON_POLICY, OF_BANDIT = "its log", "first the log of a bandit"
PLAYED = 20_000  # visits by which a version is valued
GOAL, WITHOUT = 0.95, 0.8  # of the optimum
MOST = 0.6  # of the stores


class Value(NamedTuple):
    """Mean reward of a visit, and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, eq=False)
class Round:
    """The value of the candidate of a round, whether it was promoted, and the value of what is live then."""

    candidate: Value
    promoted: bool
    live: Value


class Bar:
    """A store with an audience, through the command line."""

    def __init__(self, path: Path, *, sessions: int, seed: int, log: str = ON_POLICY) -> None:
        self.db, self.sessions, self.seed, self.log, self.audience = str(path), sessions, seed, log, Barista()
        # the salt of the splits: the same figures every time
        with patch("rlrec.app.inputs.seeds.random_salt", return_value=f"{seed:032x}"):
            self.run("init")
        self.run("policy", "create", "first", "--kind", "thompson", "--param", "floor=0.1")
        self.run("policy", "create", "bar", "--kind", "gradient")

    def run(self, *words: object, may_refuse: bool = False) -> Any:
        """The answer of a command."""
        arguments = ["-q", "--db", self.db, *map(str, words), "--json"]
        result = CliRunner().invoke(program, arguments, catch_exceptions=False)
        if result.exit_code and not (may_refuse and result.exit_code == 3):
            raise RuntimeError(f"{words} exited with {result.exit_code}: {result.stderr}")
        return json.loads(result.stdout)

    def rounds(self, number: int) -> Iterator[Round]:
        """Log, train, gate, and promote, again and again."""
        for index in range(number):
            yield self.round(index)

    def round(self, index: int) -> Round:
        """A round: visits to what is live, then training on the log so far, with default settings. Where the first log
        is that of Thompson sampling, which supports next to nothing, each round reads its log alone, with entropy."""
        seed, of_bandit = self.seed * 10 + index, self.log == OF_BANDIT
        policy = "first" if of_bandit and not index else "bar"
        audience = ("--policy", policy, "--sessions", self.sessions, "--group", GROUP, "--seed", seed)
        served = self.run("simulate", "barista", *audience)
        options = ("--since", served["started_at"], "--entropy", ENTROPY[index]) if of_bandit else ()
        words = ("--now", served["ended_at"], "train-pg", "bar", "--promote", "if-better", "--seed", seed, *options)
        trained = self.run(*words, may_refuse=True)
        return Round(self.value(f"bar@{trained['version']}"), trained["promoted"], self.value("bar"))

    def value(self, name: str) -> Value:
        """The value of a version, from the mean rewards of visits that are played in memory."""
        log = drawn(self.server(name), self.audience, visits=PLAYED, seed=self.seed)
        reward = (log.expected * log.inside).sum(axis=1)
        return Value(float(reward.mean()), float(reward.std(ddof=1)) / sqrt(len(reward)))

    def server(self, name: str) -> Server:
        """A version as visits are played with it."""
        with closing(Store(self.db)) as store, store.read() as unit:
            trained = TrainedModel(unit, lookup.version(unit, name)[0])
            ids = {arm.key: arm.id for arm in arms.all_arms(unit)}
            items = np.array([ids[name] for name in simulate.arm_names(self.audience.arms)])
            return Server(
                parameters=trained.parameters_of(items), kind=trained.policy, context=trained.encode_contexts([{}])[0],
                described=trained.arm_features.encode(items, NEWEST), gap_s=GROUP,
            )  # fmt: skip


# -- the figures --


def barista(setting: Setting) -> Iterator[Figure]:
    """Coverage in memory, and rounds through stores."""
    yield from covering(setting)
    yield from climbing(setting)


def covering(setting: Setting) -> Iterator[Figure]:
    """By what logged, and together."""
    claims = [claim(seed) for seed in range(max(int(SEEDS * setting.scale), 10))]
    for log, chosen in (("a uniform log", claims[::2]), ("the log of an earlier version", claims[1::2])):
        yield _coverage(log, chosen)
    yield _coverage("both", claims, at_least=COVERED)
    broad = [claim.estimate.verdict for claim in claims if claim.is_broad]
    called = sum(verdict in ("weak", "insufficient") for verdict in broad)
    text = f"called weak, or worse, where half the width is more than half the gain, {called} of {len(broad)}"
    yield Figure(name=text, value=called / max(1, len(broad)), unit="", at_least=1.0)


def _coverage(log: str, claims: Sequence[Claim], *, at_least: float | None = None) -> Figure:
    n, share = len(claims), float(np.mean([claim.covers for claim in claims]))
    text = f"new minus live, {log}: intervals that cover the truth, of {n} (+- {sqrt(share * (1 - share) / n):.2g})"
    return Figure(name=text, value=share, unit="", at_least=at_least)


def climbing(setting: Setting) -> Iterator[Figure]:
    """Each store by itself."""
    audience = Barista()
    best, (fixed, _) = audience.optimum(), audience.best_context_free()
    yield Figure(name="the best context-free policy, of the optimum", value=fixed / best, unit="", at_most=WITHOUT)
    stores = max(int(STORES * setting.scale), 1)
    for log in (ON_POLICY, OF_BANDIT):
        first = 0
        for seed in range(1, stores + 1):
            bar = Bar(setting.path(".db"), sessions=setting.size(SESSIONS), seed=seed, log=log)
            course = list(bar.rounds(ROUNDS))
            candidates = (
                f"{each.candidate.value / best:.3f}{'' if each.promoted else ' (refused)'}" for each in course
            )
            live, first = course[-1].live, first + course[0].promoted
            text = (
                f"{log}, store {seed}: candidates {', '.join(candidates)}; live in the end (+- {live.error / best:.1g})"
            )
            yield Figure(name=text, value=live.value / best, unit="", at_least=GOAL)
        text = f"{log}: stores whose first round was promoted, {first} of {stores}"
        yield Figure(name=text, value=first / stores, unit="", at_least=MOST if log == ON_POLICY else None)
