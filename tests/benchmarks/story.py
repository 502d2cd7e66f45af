"""The story of `rlrec help visits` through the shell, with the commands that it documents: a holdout, a policy for the
long run, training, a ramp. What serves at the end is counted on fresh users; their claims are compared with it."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.measure import Figure, Setting, rlrec, said

STORES, SESSIONS, ROUNDS, PLAYED = 5, 3_000, 3, 4_000
TIMES, TRUE = 3.0, 1.0  # what serves at the end against the click bandit; sentences that are true
WEIGHTS = {"click": 0.05, "purchase": 2.0, "return": 1.0}
SHOPS, LOGGED, BACK = 10, 2_075, {"click": 0.05, "return": 1.0}  # stores; visits of some 1,500 users; without purchases
LATER = "2027-01-01"  # when every decision is mature, and nobody is to come again
BETTER = re.compile(r"(?:durable )?([+-][\d.]+) % \[([+-]?[\d.]+), ([+-]?[\d.]+)\]")
NEWCOMERS = """
CREATE TEMP TABLE page AS WITH play AS (SELECT d.id, d.at, d.session_id, s.user_id FROM decision d
    JOIN session s ON s.id = d.session_id WHERE d.id > :first)
    SELECT * FROM play WHERE user_id IN (SELECT user_id FROM play GROUP BY user_id
    HAVING min(at) < (SELECT (min(at) + max(at)) / 2 FROM play))"""
EVENTS = "SELECT kind, sum(value) FROM event WHERE decision_id IN (SELECT id FROM page) GROUP BY kind"


class Sentence(NamedTuple):
    """A claim of a command: how much one policy earns above another, as a share, with its interval."""

    text: str
    lower: float
    upper: float


class Story:
    """A store with a shop, through the shell."""

    def __init__(self, path: Path, *, seed: int, sessions: int, weights: Mapping[str, float] = WEIGHTS) -> None:
        self.path, self.seed, self.sessions, self.weights = path, seed, sessions, weights
        path.unlink()
        self.run("init")
        reward = ",".join(f"{kind}={weight:g}" for kind, weight in weights.items())
        self.run("reward", "define", "durable", reward, "--window", "7d")
        self.run("policy", "create", "clicks", "--kind", "thompson", "--param", "floor=0.05")
        self.run("policy", "create", "even", "--kind", "uniform")
        self.run("policy", "create", "lasting", "--kind", "long-term", "--reward", "durable")

    def route(self) -> None:
        """Let the click bandit serve all but a holdout."""
        self.run("route", "create", "home", "--to", "clicks", "--holdout", "5%")

    def run(self, *words: object) -> str:
        """What a command prints."""
        return said(rlrec("-q", "--db", self.path, *words)).decode()

    def serve(self, number: int, policy: str = "home") -> str:
        """A round of visitors of the route, or of a policy; the time of the first decision."""
        return str(self._simulate(self.path, policy, self.sessions, seed=100 * self.seed + number)["started_at"])

    def value(self, policy: str, sessions: int) -> float:
        """The reward of a fresh user over a life, counted in a copy, of those who come in its first half."""
        copy = self.path.with_suffix(f".{policy.partition('@')[0]}.db")
        shutil.copyfile(self.path, copy)
        with closing(sqlite3.connect(copy)) as connection:
            (first,) = connection.execute("SELECT max(id) FROM decision").fetchone()
        self._simulate(copy, policy, sessions, "--now", LATER, "--allow-future", seed=self.seed)
        with closing(sqlite3.connect(copy)) as connection:
            connection.execute(NEWCOMERS, {"first": first})
            visits, users = connection.execute(
                "SELECT count(DISTINCT session_id), count(DISTINCT user_id) FROM page"
            ).fetchone()
            events = dict(connection.execute(EVENTS).fetchall()) | {"return": visits - users}
        copy.unlink()
        return float(sum(weight * events.get(kind, 0) for kind, weight in self.weights.items()) / users)

    def learn(self) -> None:
        """Let a new version for the long run serve."""
        version = json.loads(self.run("policy", "rebuild", "lasting", "--horizon", "3d", "--json"))["version"]
        self.run("policy", "promote", f"lasting@{version}")

    def sentence(self, *words: object) -> Sentence | None:
        """The claim in the first line of an answer; None where it makes none."""
        first = self.run("--now", LATER, *words).partition("\n")[0]
        figures = BETTER.search(first)
        return None if figures is None else Sentence(first, float(figures[2]) / 100, float(figures[3]) / 100)

    def _simulate(self, path: Path, policy: str, sessions: int, *words: object, seed: int) -> dict[str, Any]:
        options = ("-k", 5, "--sessions", sessions, "--group", 100, "--seed", seed, "--json")
        command = rlrec("-q", "--db", path, *words, "simulate", "shop", "--policy", policy, *options)
        return dict(json.loads(said(command)))


def story(setting: Setting) -> Iterator[Figure]:
    """Each store by itself, with default settings."""
    stores, sessions, played = max(int(STORES * setting.scale), 1), setting.size(SESSIONS), setting.size(PLAYED)
    for seed in range(1, stores + 1):
        shop = Story(setting.path(".db"), seed=seed, sessions=sessions)
        shop.route()
        shop.serve(0)
        shop.run("policy", "freeze", "clicks")
        bandit, even = shop.value("clicks@2", played), shop.value("even", played)
        claims = [(shop.sentence("experiment", "show", "home-holdout", "--reward", "durable"), bandit, even)]
        for number in range(1, ROUNDS + 1):
            shop.learn()
            if number == 1:
                shop.run("route", "set", "home", "--to", "lasting")
            since = shop.serve(number)
        lasting, since_switch = shop.value("lasting", played), ("--log", f"since={since}")
        claims.append(
            (shop.sentence("experiment", "show", "home-holdout", "--reward", "durable", *since_switch), lasting, even)
        )
        shop.run("policy", "create", "pg", "--kind", "gradient", "--from-policy", "lasting", "--reward", "durable")
        trained = json.loads(shop.run("train-pg", "pg", "--seed", seed, "--json"))["version"]
        shop.run("policy", "promote", f"pg@{trained}")
        shop.run("route", "set", "home", "--to", "pg", "--share", "50%")
        shop.serve(ROUNDS + 1)
        ramp = ("experiment", "show", "home-ramp-1", "--reward", "durable")
        candidate = shop.value("pg", played)
        claims.append((shop.sentence(*ramp), candidate, lasting))
        is_better = shop.run("--now", LATER, *ramp).startswith("candidate is better")
        shop.run("experiment", "stop", "home-ramp-1", *(["--promote", "candidate"] if is_better else []))
        serving = candidate if is_better else lasting
        text = f"store {seed}: {{}} of durable a fresh user, against the click bandit"
        yield Figure(name=text.format("uniform"), value=even, reference=bandit, unit="")
        yield Figure(name=text.format("the trained policy"), value=candidate, reference=bandit, unit="")
        yield Figure(name=text.format("what serves"), value=serving, reference=bandit, unit="", at_least=TIMES)
        stated = [claim for claim in claims if claim[0] is not None]
        true = [_is_true(sentence, value, reference) for sentence, value, reference in stated if sentence is not None]
        text = f"store {seed}: sentences whose direction is true, {sum(true)} of {len(true)}"
        yield Figure(name=text, value=sum(true) / max(len(true), 1), unit="", at_least=TRUE)


def _is_true(sentence: Sentence, value: float, reference: float) -> bool:
    """Whether a policy earns more than another, or less, as a sentence says; it may say neither."""
    gain = value / reference - 1
    return not (sentence.lower > 0 > gain or sentence.upper < 0 < gain)


def rounds(setting: Setting) -> Iterator[Figure]:
    """Stores with a log of the click bandit each, and rounds of the policy for the long run on it, against the bandit,
    uniform, and a bandit of the reward that the log has taught."""
    stores, sessions, played = max(int(SHOPS * setting.scale), 2), setting.size(LOGGED), setting.size(PLAYED)
    for name, weights, goal in (("durable", WEIGHTS, 3.3), ("clicks and returns", BACK, 2.1)):
        earned = [_play(setting.path(".db"), seed, sessions, played, weights) for seed in range(1, stores + 1)]
        clicks, even, priced, first, last = (np.array(values) for values in zip(*earned, strict=True))
        bandit, error = clicks.mean(), 2 * (first - even).std(ddof=1) / stores**0.5
        best = max(even.mean(), priced.mean(), bandit)
        won = (first >= even - error).mean()
        yield Figure(name=f"{name}: uniform, against the click bandit", value=even.mean(), reference=bandit, unit="")
        yield Figure(name=f"{name}: the bandit of the reward", value=priced.mean(), reference=bandit, unit="")
        text = f"{name}: long-term after {{}}, against {{}}"
        yield Figure(
            name=text.format("1 round", "the bandit"), value=first.mean(), reference=bandit, unit="", at_least=2.0
        )
        yield Figure(name=f"{name}: stores where it earns what uniform does", value=won, unit="", at_least=0.8)
        yield Figure(
            name=text.format(f"{ROUNDS}", "the bandit"), value=last.mean(), reference=bandit, unit="", at_least=goal
        )
        yield Figure(
            name=text.format(f"{ROUNDS}", "the best"), value=last.mean(), reference=best, unit="", at_least=0.9
        )


def _play(path: Path, seed: int, sessions: int, played: int, weights: Mapping[str, float]) -> list[float]:
    """What fresh users of a store bring: of the bandit, of uniform, of the bandit of the reward, and of the policy for
    the long run after its first and its last round."""
    shop = Story(path, seed=seed, sessions=sessions, weights=weights)
    shop.serve(0, "clicks")
    shop.run("policy", "freeze", "clicks")
    shop.run(
        "policy", "create", "priced", "--kind", "epsilon-greedy", "--reward", "durable", "--from-log", "policy=clicks"
    )
    values = [shop.value(policy, played) for policy in ("clicks@2", "even", "priced")]
    for number in range(1, ROUNDS + 1):
        shop.learn()
        if number in (1, ROUNDS):
            values.append(shop.value("lasting", played))
        if number < ROUNDS:
            shop.serve(number, "lasting")
    return values
