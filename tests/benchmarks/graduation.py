"""From a bandit to a trained policy on `shop`, through the command line: rounds of logging and training, and gates that
judge candidates which are worse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import CliRunner

from rlrec.cli import program
from tests.benchmarks.measure import Figure, Setting

STORES, SESSIONS, ROUNDS, POSITIONS = 10, 5_000, 3, 5
GROUP = 500  # visits that are served together
PLAYED = 10_000  # fresh visits by which a policy is valued
PROMOTED, FALSE_ALARMS = 0.8, 0.05
CANDIDATES, OF_GATE = 200, 2_500
REWARD = "click=0.05, purchase=2, return=1"
FLOORS = {"current": 0.02, "candidate": 0.01}  # half the floor makes it about 2 % worse


class Value(NamedTuple):
    """Reward of a visitor over all their visits, and the share of visits that the same user followed within a week."""

    reward: float
    returning: float | None


class Shop:
    """A store with an audience, through the command line. Its clock is that of the newest decision, and a month."""

    def __init__(self, path: Path, *, seed: int) -> None:
        self.path, self.seed, self.now = path, seed, datetime.fromisoformat("2020-01-01T00:00:00Z")
        self.run("init")
        self.run("reward", "define", "durable", REWARD, "--window", "7d")
        self.run("policy", "create", "clicks", "--kind", "thompson")
        self.run("route", "create", "home", "--to", "clicks")

    def run(self, *words: object, may_refuse: bool = False) -> Any:
        """The answer of a command."""
        clock = f"{self.now:%Y-%m-%dT%H:%M:%SZ}"
        arguments = ["-q", "--db", str(self.path), "--now", clock, *map(str, words), "--json"]
        result = CliRunner().invoke(program, arguments, catch_exceptions=False)
        if result.exit_code and not (may_refuse and result.exit_code == 3):
            raise RuntimeError(f"{words} exited with {result.exit_code}: {result.stderr}")
        return json.loads(result.stdout)

    def serve(self, policy: str, sessions: int, *, number: int) -> str:
        """Visits of new users to a route or a policy; the time of their first decision."""
        options = ("-k", POSITIONS, "--group", min(GROUP, sessions), "--seed", 100 * self.seed + number)
        report = self.run("simulate", "shop", "--policy", policy, "--sessions", sessions, *options)
        self.now = datetime.fromisoformat(report["ended_at"]) + timedelta(days=30)
        return str(report["started_at"])

    def value(self, policy: str, sessions: int, *, number: int) -> Value:
        """The value of a policy by visits of its own."""
        since = self.serve(policy, sessions, number=number)
        outcomes = self.run("outcomes", "--by", "policy", "--reward", "durable", "--log", f"since={since}")["outcomes"]
        of_metric = {row["metric"]: row["value"] for row in outcomes}
        return Value(of_metric["reward_per_unit"], of_metric["returned_7d"])


def graduation(setting: Setting) -> Iterator[Figure]:
    """Rounds in each store, then candidates at the gate of a route."""
    yield from climbing(setting)
    yield from doubtful(setting)


def climbing(setting: Setting) -> Iterator[Figure]:
    """Each store by itself, with default settings."""
    sessions, played, stores = setting.size(SESSIONS), setting.size(PLAYED), max(int(STORES * setting.scale), 1)
    promoted = 0
    for seed in range(1, stores + 1):
        shop = Shop(setting.path(".db"), seed=seed)
        shop.serve("home", sessions, number=0)
        shop.run("policy", "create", "pg", "--kind", "gradient", "--from-policy", "clicks", "--reward", "durable")
        shop.run("route", "set", "home", "--to", "pg")
        rounds = list[bool]()
        for number in range(1, ROUNDS + 1):
            shop.serve("home", sessions, number=number)
            training = ("train-pg", "pg", "--promote", "if-better", "--seed", seed)
            rounds.append(shop.run(*training, may_refuse=True)["promoted"])
        promoted += any(rounds)
        shop.run("policy", "freeze", "clicks")
        names = ("clicks@2", "pg@1", "pg")
        bandit, first, last = (shop.value(name, played, number=ROUNDS + index) for index, name in enumerate(names, 1))
        course = "".join("+" if passed else "-" for passed in rounds)
        text = f"store {seed}: {{}} against the bandit, of durable a visitor (rounds {course})"
        yield Figure(name=text.format("version 1"), value=first.reward, reference=bandit.reward, unit="")
        yield Figure(name=text.format("what serves"), value=last.reward, reference=bandit.reward, unit="", at_least=1.0)
        if last.returning is None or bandit.returning is None:  # too short a log
            continue
        yield Figure(
            name=f"store {seed}: users who return within a week", value=last.returning, reference=bandit.returning,
            unit="", at_least=1.0,
        )  # fmt: skip
    name = f"promoted within {ROUNDS} rounds, {promoted} of {stores}"
    yield Figure(name=name, value=promoted / stores, unit="", at_least=PROMOTED)


def doubtful(setting: Setting) -> Iterator[Figure]:
    """Two copies of a bandit: one serves, and the gate of the route judges the other, which shows less of what is
    bought."""
    stores, sessions, passed = max(int(CANDIDATES * setting.scale), 2), setting.size(OF_GATE), 0
    for seed in range(1, stores + 1):
        shop = Shop(setting.path(".db"), seed=1_000 + seed)
        shop.serve("home", sessions, number=0)
        for name, floor in FLOORS.items():
            copy = ("--from-policy", "clicks", "--reward", "durable", "--param", f"floor={floor}")
            shop.run("policy", "create", name, "--kind", "gradient", *copy)
        shop.run("route", "set", "home", "--to", "current")
        shop.serve("home", sessions, number=1)
        gate = ("--require", "if-better", "--reward", "durable")
        passed += shop.run("route", "set", "home", "--to", "candidate", *gate, may_refuse=True)["set"]
    text = f"candidates about 2 % worse: passed, {passed} of {stores}"
    yield Figure(name=text, value=passed / stores, unit="", at_most=FALSE_ALARMS)
