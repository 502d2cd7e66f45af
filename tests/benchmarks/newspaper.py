"""Rounds of learning for the long run at a newspaper whose articles live a day, through the command line."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.measure import Figure, Setting, rlrec, said

STORES, SESSIONS, ROUNDS, PLAYED = 10, 1_700, 3, 2_550
WON, TIMES = 0.9, 1.1  # the share of stores that earn at least what the bandit does, and how much more on average
HOUR_US = 3_600_000_000
REWARD = "click=0.05, purchase=2, return=1"
NEW = """
CREATE TEMP TABLE visits AS SELECT d.id, d.session_id, s.user_id FROM decision d JOIN session s ON s.id = d.session_id
    WHERE d.id > :first AND s.user_id NOT IN (SELECT o.user_id FROM decision e JOIN session o ON o.id = e.session_id
    WHERE e.id <= :first AND o.user_id IS NOT NULL)"""
EARNED = """
SELECT (SELECT sum(CASE kind WHEN 'click' THEN 0.05 WHEN 'purchase' THEN 2 ELSE 0 END * value) FROM event
    WHERE decision_id IN (SELECT id FROM visits)), count(DISTINCT session_id), count(DISTINCT user_id) FROM visits"""
SHOWN = """
SELECT count(*), sum(first - added_at < :hour) FROM (SELECT a.added_at, min(d.at) AS first FROM arm a
    LEFT JOIN slot s ON s.arm_id = a.id LEFT JOIN decision d ON d.id = s.decision_id
    WHERE a.added_at > :since AND a.added_at < (SELECT max(at) FROM decision) - :hour GROUP BY a.id)"""


class Played(NamedTuple):
    """Reward of a fresh user; articles that appeared meanwhile, and those shown within their first hour."""

    reward: float
    articles: int
    prompt: int


class Newspaper:
    """A store with readers, through the shell."""

    def __init__(self, path: Path, *, seed: int) -> None:
        self.path, self.seed = path, seed
        path.unlink()
        self.run("init")
        self.run("reward", "define", "durable", REWARD, "--window", "7d")
        self.run("policy", "create", "clicks", "--kind", "thompson", "--param", "floor=0.05")
        self.run("policy", "create", "lasting", "--kind", "long-term", "--reward", "durable")

    def run(self, *words: object, path: Path | None = None) -> Any:
        """The answer of a command."""
        return json.loads(said(rlrec("-q", "--db", path or self.path, *words, "--json")))

    def serve(self, policy: str, sessions: int, *, number: int, path: Path | None = None) -> None:
        """Visits of readers, who go on from round to round."""
        options = ("-k", 5, "--sessions", sessions, "--group", 100, "--seed", 100 * self.seed + number)
        self.run("simulate", "news", "--policy", policy, *options, path=path)

    def value(self, policy: str, sessions: int) -> Played:
        """What the users who are new in the next days bring, with their returns until these end; in a copy."""
        copy = self.path.with_suffix(f".{policy}.db")
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute(f"VACUUM INTO '{copy}'")
        with closing(sqlite3.connect(copy)) as connection:
            first, at = connection.execute("SELECT max(id), max(at) FROM decision").fetchone()
        self.serve(policy, sessions, number=99, path=copy)
        with closing(sqlite3.connect(copy)) as connection:
            connection.execute(NEW, {"first": first})
            earned, visits, users = connection.execute(EARNED).fetchone()
            articles, prompt = connection.execute(SHOWN, {"hour": HOUR_US, "since": at + HOUR_US}).fetchone()
        copy.unlink()
        return Played((earned + visits - users) / users, articles, prompt)


def newspaper(setting: Setting) -> Iterator[Figure]:
    """Each store by itself: a round of the bandit, then rounds of the policy for the long run."""
    stores, sessions, played = max(int(STORES * setting.scale), 1), setting.size(SESSIONS), setting.size(PLAYED)
    ratios = []
    for seed in range(1, stores + 1):
        store = Newspaper(setting.path(".db"), seed=seed)
        store.serve("clicks", sessions, number=0)
        for number in range(1, ROUNDS + 1):
            version = store.run("policy", "rebuild", "lasting", "--horizon", "3d")["version"]
            store.run("policy", "promote", f"lasting@{version}")
            if number < ROUNDS:
                store.serve("lasting", sessions, number=number)
        bandit, lasting = store.value("clicks", played), store.value("lasting", played)
        ratios.append(lasting.reward / bandit.reward)
        name = f"store {seed}: durable of a fresh user, against the click bandit"
        yield Figure(name=name, value=lasting.reward, reference=bandit.reward, unit="")
        name = f"store {seed}: articles shown within their first hour, of {lasting.articles}"
        yield Figure(name=name, value=lasting.prompt, reference=lasting.articles, unit="", at_least=1.0)
    won = sum(ratio >= 1 for ratio in ratios)
    yield Figure(name=f"at least the bandit, {won} of {stores}", value=won / stores, unit="", at_least=WON)
    yield Figure(name="against the bandit, on average", value=sum(ratios) / stores, unit="", at_least=TIMES)
