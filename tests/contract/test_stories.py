"""What a store promises whatever happened in it: policies of random kinds and rules serve random requests, people
answer, and versions, arms, routes and persons change meanwhile. Then audits find nothing, both databases say the same,
and so do copies, exports and plain counts."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from math import perm
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from tests.conftest import CommandResult, Run, draws_of, empty_store, initialise, runner

STILL = ("uniform", "scored", "gradient")  # kinds that serve alike until somebody changes them
KINDS = (
    *STILL, "epsilon-greedy", "ucb", "ucb-tuned", "kl-ucb", "thompson", "exp3", "linucb", "lin-thompson", "softmax",
    "logistic-thompson", "plackett-luce", "squarecb", "long-term", "two-stage",
)  # fmt: skip
READING = ("linucb", "lin-thompson", "logistic-thompson", "softmax", "squarecb", "gradient")
FEATURES = {
    "context": {"fields": {"hour": {"type": "number", "mean": 12, "scale": 6}, "device": ["ios", "web"]}},
    "arm": {"fields": {"price": "number", "topic": {"hash": 4}}},
}
ESTIMATORS = ("ips,snips,dr,sndr", "clipped-ips:5,switch-dr:5,dros:25", "rips,sips,iips,cascade-dr", "session")
AS_SERVED = ("ips,snips", "tis,wis", "sips,sn-sips,iips,rips")


class Story:
    """A store's life, which follows from its number alone; the parts of a life that the store refuses are refused
    everywhere. still: policies that served alike throughout."""

    def __init__(self, run: Run, number: int, folder: Path) -> None:
        self._run, self._random, self._time = run, Random(number), datetime(2026, 1, 1, tzinfo=UTC)
        self._features = folder / "features.json"
        self._features.write_text(json.dumps(FEATURES))
        self._arms, self.names, self._callers = list[str](), list[str](), list[dict[str, str]]()
        self._sessions, self._decisions = list[tuple[str, str | None]](), list[tuple[int, int]]()
        self.still = list[str]()
        self._has_rules = number % 2 == 1  # some stories have pages without rules, whose slates can be counted by hand
        self._begin()
        for number_of_round in range(self._random.randint(3, 7)):
            self._serve()
            self._answer(number_of_round)
            for _ in range(self._random.randint(0, 3)):
                self._change(number_of_round)
        self._time += timedelta(days=12)

    def run(self, *words: object, **options: Any) -> CommandResult:
        """A command at the present time, which may be refused and never fails."""
        result = self._run("--now", self._time.isoformat(), *words, **options)
        assert result.exit_code in (0, 2, 3, 5, 6), (words, result.stderr)
        return result

    def evaluate(self, run: Run, *words: object) -> Any:
        """The rows of an evaluation in some store, or the error."""
        result = run("--now", self._time.isoformat(), "evaluate", *words, "--json")
        return result.json if result.exit_code == 0 else result.error["error"]

    @property
    def log(self) -> list[Any]:
        return self.run("-q", "export-log", "-", "--reward", "default").lines

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _begin(self) -> None:
        draw = self._random
        self._arms = [f"a{number}" for number in range(draw.randint(3, 8))]
        rows = list[dict[str, Any]]()
        for arm in self._arms:
            features = {"price": draw.randint(1, 20), "topic": draw.choice("xyz"), "shelf": draw.choice("uv")}
            rows.append({"arm": arm, "features": features, "groups": draw.sample(["g1", "g2"], draw.randint(1, 2))})
        self.run("arm", "import", "-", stdin=rows)
        self.run("reward", "define", "durable", "click=0.05,purchase=2,return=1", "--window", "7d")
        for number in range(draw.randint(1, 4)):
            kind = draw.choice(KINDS if self._chance(0.6) else STILL)
            words = (
                ["--param", f"floor={draw.choice([0.01, 0.05])}"] if kind != "two-stage" and self._chance(0.6) else []
            )
            words += ["--reward", "durable"] if self._chance(0.3) else []
            words += ["--features", str(self._features)] if kind in READING else []
            words += ["--param", f"model={draw.choice(['shared', 'hybrid'])}"] if kind in READING[:5] else []
            rules = (
                f"block={draw.choice(self._arms)}", "not_after=purchase/30d", "not_shown=@g1=2/2d", "most=shelf=1",
                f"pin=1={draw.choice(self._arms)}", f"least={draw.choice(self._arms)}=0.1",
            )  # fmt: skip
            for rule in rules:
                if (self._has_rules or not rule.startswith(("most", "pin", "least"))) and self._chance(0.12):
                    words += ["--param", rule]
            name = f"p{number}"
            if self.run("policy", "create", name, "--kind", kind, *words).exit_code == 0:
                self.names.append(name)
                self.still += [name] if kind in STILL else []
        self.run("policy", "create", "base", "--kind", "thompson")
        self.names.append("base")
        self.run("route", "create", "front", "--to", draw.choice(self.names), "--holdout", "20%")
        self.run("experiment", "create", "ab", "--variant", "a=base", "--variant", f"b={draw.choice(self.names)}")
        self._callers = [{"policy": name} for name in [*self.names, "front"]] + [{"experiment": "ab"}]

    def _serve(self) -> None:
        draw, lines = self._random, list[dict[str, Any]]()
        for _ in range(draw.randint(5, 50)):
            if not self._sessions or self._chance(0.5):
                user = f"u{draw.randint(0, 15)}" if self._chance(0.8) else None
                self._sessions.append((f"s{len(self._sessions)}", user))
            session, user = draw.choice(self._sessions)
            scored = [{"arm": arm, "score": round(draw.gauss(0, 1), 2)} for arm in self._arms]
            line: dict[str, Any] = {
                **draw.choice(self._callers), "session": session, "k": draw.choice([1, 1, 1, 2, 3]), "arms": scored,
                "context": {"hour": draw.randint(0, 23), "device": draw.choice(["ios", "web"])},
            } | ({} if user is None else {"user": user})  # fmt: skip
            line |= {"block": [draw.choice(self._arms)]} if self._chance(0.1) else {}
            line |= {"not_after": ["click/2d"]} if self._chance(0.08) else {}
            line |= {"not_shown": draw.choice(["2/1d", "@g2=3/1h"])} if self._chance(0.08) else {}
            if self._has_rules and self._chance(0.1):
                rules = {"pin": {"1": draw.choice(self._arms)}}, {"most": {"shelf": 1}}, {"least": {"@g1": 0.2}}
                line |= {"page": draw.choice(rules)}
            lines.append(line)
        answers = self.run("recommend", "--input", "-", "--seed", draw.randint(0, 10**9), stdin=lines).lines
        self._decisions += [(line["decision_id"], len(line["slate"])) for line in answers if "slate" in line]
        self._time += timedelta(minutes=draw.choice([1, 5, 20]))

    def _answer(self, number: int) -> None:
        draw, lines = self._random, list[dict[str, Any]]()
        for decision_id, size in self._decisions[-60:]:
            if self._chance(0.4):
                events = draw.choice(
                    [{"click": 1}, {"purchase": 1}, {"dwell": draw.random()}, {"click": 1, "dwell": 2}]
                )
                line = {"decision_id": decision_id, "events": events, "key": f"{decision_id}/{number}"}
                line |= {"position": draw.randint(1, size)} if self._chance(0.8) else {}
                lines.append({"decision_id": decision_id, "censor": True} if self._chance(0.05) else line)
        self.run("feedback", "--input", "-", "--on-error", "quarantine", "--rejects", self._features.with_name("bad"),
                 stdin=lines)  # fmt: skip
        self._time += timedelta(minutes=draw.choice([1, 40, 300, 2_000, 6_000]))

    def _change(self, number: int) -> None:
        draw, name = self._random, self._random.choice(self.names)
        users = [f"u{user}" for user in draw.sample(range(16), 2)]
        changes = (
            ("policy", "rebuild", name), ("policy", "freeze", name),
            ("policy", "promote", f"{name}@{draw.randint(1, 3)}"),
            ("arm", "retire", draw.choice(self._arms)), ("arm", "restore", draw.choice(self._arms)), ("settle",),
            ("arm", "add", f"n{number}"), ("user", "merge", users[0], "--into", users[1]), ("session", "end", "s0"),
            ("route", "set", "front", "--to", name), ("train-pg", name, "--epochs", "2", "--seed", "1"),
        )  # fmt: skip
        change = draw.choice(changes)
        if self.run(*change).exit_code == 0 and change[:2] == ("arm", "add"):
            self._arms.append(change[2])


@pytest.fixture(scope="module")
def after_story(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[str, Story]]:
    """A store in SQLite after the story of a number, which tests of this file read alone."""

    @cache
    def story_of(number: int) -> tuple[str, Story]:
        folder = tmp_path_factory.mktemp("story")
        db = str(shutil.copy(sqlite_template, folder / "story.db"))
        with draws_of(f"story {number}"):
            return db, Story(runner(db), number, folder)

    return story_of


def stories(*few: int, many: range) -> pytest.MarkDecorator:
    """Stories of each run, and more of `pytest -m simulation`."""
    return pytest.mark.parametrize(
        "number", [*few, *(pytest.param(number, marks=pytest.mark.simulation) for number in many)]
    )


def without_log(estimates: Any) -> Any:
    """Rows of an evaluation but for the name of the log that was read."""
    return [{**row, "log": None} for row in estimates] if isinstance(estimates, list) else estimates


@stories(1, many=range(2, 20))
def test_figures_agree_wherever_they_come_from(
    after_story: Callable[[int], tuple[str, Story]], tmp_path: Path, number: int
) -> None:
    db, story = after_story(number)
    story.run("doctor").done()
    story.run("db", "copy", "--to", tmp_path / "copy.db", "--yes").done()
    story.run("export-log", tmp_path / "parquet", "--layout", "parquet")
    copied, taken = runner(str(tmp_path / "copy.db")), empty_store(tmp_path / "taken.db")
    for target, estimators in zip(("uniform", story.names[0]) * 2, ESTIMATORS, strict=True):
        words = (target, "--estimator", estimators, "--reward", "durable")
        stored = story.evaluate(runner(db), *words)
        assert story.evaluate(copied, *words) == stored
        in_parquet = story.evaluate(runner(db), *words, "--log", f"parquet:{tmp_path / 'parquet'}")
        assert without_log(in_parquet) == without_log(stored)
    lines, file = story.log, tmp_path / "log.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    taken("import-log", file, "--layout", "jsonl").done()
    fields = ("session", "visit", "step", "user", "slate", "events", "log_propensity", "eligible", "context", "state")
    again = taken("--now", "2027-01-01", "export-log", "-").lines
    assert [[line[name] for name in fields] for line in again] == [[line[name] for name in fields] for line in lines]


@stories(0, many=range(2, 20, 2))
def test_figures_are_those_of_plain_counts(sqlite_db: str, tmp_path: Path, number: int) -> None:
    story = Story(runner(sqlite_db), number, tmp_path)
    # a censored page, here each slot of it, counts in its visit and has no reward
    lines = [line for line in story.log if not any(slot.get("censored") for slot in line["slate"])]
    names = itemgetter("session", "visit")
    visits = [{(line["user"] or line["session"], *names(line)) for line in log} for log in (story.log, lines)]
    units, paid = (Counter(unit for unit, *_ in rows) for rows in visits)
    earned, n_visits = sum(line["reward"] for line in lines), units.total()
    counted = {
        "visits": n_visits / len(units), "decisions_per_visit": len(story.log) / n_visits,
        "reward_per_visit": earned / paid.total(), "reward_per_unit": earned / len(paid),
    }  # fmt: skip
    rows = story.run("outcomes", "--reward", "default", "--json").json["outcomes"]
    assert {row["metric"]: row["value"] for row in rows if row["metric"] in counted} == pytest.approx(counted)
    # what served weighs 1 in its own log, whatever rules there were
    for name in story.still:
        for estimators in AS_SERVED:
            words = (f"{name}@1", "--estimator", estimators, "--log", f"policy={name},version=1", "--reward", "default")
            answer = story.evaluate(runner(sqlite_db), *words)
            for row in answer if isinstance(answer, list) else ():
                assert [row["mean_weight"], row["max_weight"]] == pytest.approx([1, 1]), row
                assert row["value"] == pytest.approx(row["served"]), row
    # a uniform policy draws each page of k of m arms with probability (m - k)! / m!
    logger = max((line for line in lines if line["user"]), key=lambda line: line["reward"])
    parts = {
        "all": lines, f"all,user={logger['user']}": [line for line in lines if line["user"] == logger["user"]],
        f"all,since={logger['at']}": [line for line in lines if line["at"] >= logger["at"]],
        f"loggers={logger['policy']}@{logger['version']},all": [
            line for line in lines if all(line[name] == logger[name] for name in ("policy", "version"))
        ],
    }  # fmt: skip
    for log, lines in parts.items():
        weight = np.array([1 / perm(len(line["eligible"]), len(line["slate"])) for line in lines])
        weight /= np.exp([line["log_propensity"] for line in lines])
        reward = np.array([line["reward"] for line in lines])
        words = ("uniform", "--estimator", "sips,sn-sips", "--log", log, "--reward", "default")
        answer = story.evaluate(runner(sqlite_db), *words)
        naive = [float((weight * reward).mean()), float(weight @ reward / weight.sum())]
        assert [row["value"] for row in answer] == pytest.approx(naive), log


@stories(1, many=range(2, 20))
def test_both_databases_tell_the_same_story(
    after_story: Callable[[int], tuple[str, Story]], empty_db: str, tmp_path: Path, number: int
) -> None:
    initialise(empty_db)
    (sqlite_db, lite), server = after_story(number), Story(runner(empty_db), number, tmp_path)
    server.run("doctor").done()
    assert (lite.names, lite.log) == (server.names, server.log)
    for target in ("uniform", lite.names[-1]):
        words = (target, "--estimator", "snips,dr,rips,wdr", "--reward", "durable")
        assert lite.evaluate(runner(sqlite_db), *words) == server.evaluate(runner(empty_db), *words)
