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
from rlrec.app.distributions.trained import Trained
from rlrec.app.inputs import lookup
from rlrec.app.training.ascent import TrainingOptions
from rlrec.cli import program
from rlrec.ope.paired import PairedDifference
from rlrec.policy.gradient import Parameters
from rlrec.simulate.barista import Barista
from rlrec.store import Store, arms
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
    """What the gate's visits say of a gain, and what it is."""

    said: PairedDifference
    truth: float

    @property
    def covers(self) -> bool:
        """An end that is not known covers all on its side."""
        low, high = self.said.lower, self.said.upper
        return (low is None or low <= self.truth) and (high is None or self.truth <= high)

    @property
    def wide(self) -> bool:
        """Whether half the interval is wider than half the gain."""
        low, high, gain = self.said.lower, self.said.upper, self.said.value
        return low is None or high is None or gain is None or high - low > abs(gain)


def claim(seed: int, *, visits: int = VISITS) -> Claim:
    """A candidate beside the policy that logged, and that it comes from: uniform, or in odd seeds what a first round
    leads to. It has climbed for 1 to 30 epochs. Neither sees rewards, so that their values are exact."""
    audience, start, entropy = Barista(), KIND.nothing(4), ENTROPY[0]
    if seed % 2:
        start, entropy = earlier(), ENTROPY[1]
    live = Server(parameters=start, blind=True)
    spool = spooled(live, drawn(live, audience, visits=visits, seed=seed), seed=seed)
    with closing(night(spool, start, options=TrainingOptions(entropy=entropy, epochs=1 + seed * 7 % 30))) as found:
        new = replace(live, parameters=found.climbed.parameters)
        return Claim(found.gain((1 - LEVEL) / 2), value(new, audience) - value(live, audience))


@lru_cache(maxsize=1)
def earlier() -> Parameters:
    """What uniform visits teach."""
    live = Server(parameters=KIND.nothing(4), blind=True)
    spool = spooled(live, drawn(live, Barista(), visits=EARLIER, seed=SEEDS), seed=SEEDS)
    with closing(night(spool, live.parameters, options=TrainingOptions(entropy=ENTROPY[0]))) as found:
        return found.climbed.parameters


def value(server: Server, audience: Barista) -> float:
    """Of a policy that does not see rewards, exactly."""
    return bars.value_of(audience, lambda items: server.chances(items, np.zeros(items.shape)))


# -- rounds --

ROUNDS, SESSIONS, STORES = 3, 20_000, 5
GROUP = 500  # visits that are served together, a second apart: so long does a guest wait
NEWEST = 2**62  # of catalogues
PATIENCE = 20  # the gain may fall for ten epochs before it rises
PLAYED = 20_000  # visits by which a version is valued
GOAL, WITHOUT = 0.95, 0.8  # of the optimum


class Worth(NamedTuple):
    """Mean reward of a visit, and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, eq=False)
class Round:
    """What became of one: the value of the candidate, whether it was promoted, and the value of what is live then; with
    standard errors."""

    candidate: Worth
    promoted: bool
    live: Worth


class Bar:
    """A store with an audience, through the command line."""

    def __init__(self, path: Path, *, sessions: int, seed: int) -> None:
        self.db, self.sessions, self.seed, self.audience = str(path), sessions, seed, Barista()
        # the salt of the splits: the same figures every time
        with patch("rlrec.app.inputs.seeds.random_salt", return_value=f"{seed:032x}"):
            self.say("init")
        self.say("policy", "create", "first", "--kind", "thompson", "--param", "floor=0.1")
        self.say("policy", "create", "bar", "--kind", "gradient")

    def say(self, *words: object, may_refuse: bool = False) -> Any:
        """What a command answers."""
        done = CliRunner().invoke(program, ["-q", "--db", self.db, *map(str, words), "--json"], catch_exceptions=False)
        if done.exit_code and not (may_refuse and done.exit_code == 3):
            raise RuntimeError(f"{words} exited with {done.exit_code}: {done.stderr}")
        return json.loads(done.stdout)

    def rounds(self, number: int) -> Iterator[Round]:
        """Log, train, gate, and promote, again and again."""
        for place in range(number):
            yield self.round(place)

    def round(self, place: int) -> Round:
        """One of them. The first is served by Thompson sampling, the others by what is live."""
        seed, who = self.seed * 10 + place, "bar" if place else "first"
        asked = ("--policy", who, "--sessions", self.sessions, "--group", GROUP, "--seed", seed)
        served = self.say("simulate", "barista", *asked)
        options = ("--since", served["started_at"], "--seed", seed, "--entropy", ENTROPY[place], "--patience", PATIENCE)
        words = ("--now", served["ended_at"], "train-pg", "bar", "--promote", "if-better", *options)
        made = self.say(*words, may_refuse=True)
        return Round(self.worth(f"bar@{made['version']}"), made["promoted"], self.worth("bar"))

    def worth(self, name: str) -> Worth:
        """Of a version, from the mean rewards of visits that are played in memory."""
        log = drawn(self.server(name), self.audience, visits=PLAYED, seed=self.seed)
        each = (log.expected * log.inside).sum(axis=1)
        return Worth(float(each.mean()), float(each.std(ddof=1)) / sqrt(len(each)))

    def server(self, name: str) -> Server:
        """A version as visits are played with it."""
        with closing(Store(self.db)) as store, store.read() as unit:
            trained = Trained(unit, lookup.version(unit, name)[0])
            ids = {one.key: one.id for one in arms.every(unit)}
            found = np.array([ids[name] for name in simulate.names(self.audience.arms)])
            return Server(
                parameters=trained.parameters_of(found), kind=trained.policy, context=trained.encoded([{}])[0],
                described=trained.described.of(found, NEWEST), gap_s=GROUP,
            )  # fmt: skip


# -- the figures --


def barista(setting: Setting) -> Iterator[Figure]:
    """Coverage in memory, and rounds through stores."""
    yield from covering(setting)
    yield from climbing(setting)


def covering(setting: Setting) -> Iterator[Figure]:
    """By what logged, and together."""
    claims = [claim(seed) for seed in range(max(int(SEEDS * setting.scale), 10))]
    for what, chosen in (("a uniform log", claims[::2]), ("the log of an earlier version", claims[1::2])):
        yield _coverage(what, chosen)
    yield _coverage("both", claims, at_least=COVERED)
    wide = [one.said.verdict for one in claims if one.wide]
    called = sum(verdict in ("weak", "insufficient") for verdict in wide)
    told = f"called weak, or worse, where half the width is more than half the gain, {called} of {len(wide)}"
    yield Figure(name=told, value=called / max(1, len(wide)), unit="", at_least=1.0)


def _coverage(what: str, claims: Sequence[Claim], *, at_least: float | None = None) -> Figure:
    n, share = len(claims), float(np.mean([one.covers for one in claims]))
    told = f"new minus live, {what}: intervals that cover the truth, of {n} (+- {sqrt(share * (1 - share) / n):.2g})"
    return Figure(name=told, value=share, unit="", at_least=at_least)


def climbing(setting: Setting) -> Iterator[Figure]:
    """Each store by itself."""
    audience = Barista()
    best, (fixed, _) = audience.optimum(), audience.context_free()
    yield Figure(name="the best context-free policy, of the optimum", value=fixed / best, unit="", at_most=WITHOUT)
    for seed in range(1, max(int(STORES * setting.scale), 1) + 1):
        found = list(Bar(setting.path(".db"), sessions=setting.size(SESSIONS), seed=seed).rounds(ROUNDS))
        course = ", ".join(f"{one.candidate.value / best:.3f}{'' if one.promoted else ' (refused)'}" for one in found)
        live = found[-1].live
        told = f"store {seed}: candidates {course}; live in the end (+- {live.error / best:.1g})"
        yield Figure(name=told, value=live.value / best, unit="", at_least=GOAL)
