"""Ramps by cron through the store: every command is killed at a random moment, and called again, for thirty days."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np

from rlrec.app.experiments import route
from rlrec.app.policies import policy
from rlrec.app.requests import feedback, recommend
from rlrec.app.setup import init
from rlrec.store import Store
from tests.app import logs
from tests.benchmarks.measure import Figure, Setting, environment, rlrec
from tests.benchmarks.ramps import BACK, DAYS

RUNS, ARRIVING = 40, 2
USERS, PAST_DAYS = 1_000, 5  # new users each half day, with one decision each; days before the ramp
STEPS = ("--steps", "5%,20%,50%,100%", "--hold", "2d")
RATES = {"current": 0.3, "half": 0.15, "more": 0.36}  # of users who click once, by policy
HALF_DAY_MINUTES = 720
LONGEST_S = 1.0  # after which a command has ended, or is about to


class Cron:
    """A store whose route has a ramp, and what calls it twice a day. kills: how many commands were killed."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed, self.kills, self.half_days = path, seed, 0, 0
        self._moment, self._clicks = random.Random(seed), np.random.default_rng(seed)

    @classmethod
    def prepare(cls, path: Path) -> None:
        """A store whose route has served for some days."""
        with closing(Store(str(path))) as store:
            init.init(store)
        logs.catalogue(str(path), 3)
        with closing(logs.at(str(path), 0)) as store:
            for name in RATES:
                policy.create(store, policy.Request(name=name, kind="uniform", parameters={}))
            route.create(store, route.Request(name="home", to="current"))
        past = cls(path, 0)
        for _ in range(2 * PAST_DAYS):
            past.serve()

    @classmethod
    def begin(cls, prepared: Path, path: Path, candidate: str, seed: int) -> Cron:
        """A copy of a prepared store, with a ramp."""
        copyfile(prepared, path)
        ramp = cls(path, seed)
        ramp.half_days = 2 * PAST_DAYS
        ramp.call("route", "ramp", "home", "--to", candidate, *STEPS)
        return ramp

    def call(self, *words: str) -> Mapping[str, Any]:
        """The answer of a command that was killed before, at a random moment, and is called until it answers."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(logs.START // 1_000_000 + self.half_days * 43_200))
        command = rlrec("-q", "--allow-future", "--now", now, "--db", self.path, *words, "--json")
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(self._moment.uniform(0.0, LONGEST_S))
        self.kills += process.poll() is None
        process.kill()
        process.wait()
        done = subprocess.run(command, env=environment(), capture_output=True, check=False)
        if done.returncode not in (0, 3) and b"has a ramp" not in done.stderr:
            raise RuntimeError(f"{' '.join(words)} exited with {done.returncode}: {done.stderr.decode()[-500:]}")
        answer: Mapping[str, Any] = json.loads(done.stdout or "{}")
        return answer

    def serve(self) -> set[str]:
        """Half a day of new users, who click as often as the policy that serves them lets them: the policies."""
        with closing(logs.at(str(self.path), self.half_days * HALF_DAY_MINUTES + 60)) as store:
            keys = [f"u{self.half_days}-{number}" for number in range(USERS)]
            requests = [recommend.Request(policy="home", session=key, user=key) for key in keys]
            answers = recommend.recommend_group(store, requests, seed=self.seed + self.half_days)
            served = [answer for answer in answers if isinstance(answer, dict)]
            assert len(served) == USERS, "a caller failed"
            names = [str(answer["policy"]).partition("@")[0] for answer in served]
            clicked = self._clicks.random(USERS) < [RATES[name] for name in names]
            lines = [
                feedback.Line(decision_id=answer["decision_id"], events={"click": 1.0})
                for answer, clicks in zip(served, clicked.tolist(), strict=True) if clicks
            ]  # fmt: skip
            feedback.feedback_stream(store, lambda: [lines], quarantine=False, reject=print)
        self.half_days += 1
        return {*names}

    def end(self) -> tuple[bool, set[str]]:
        """Whether the ramp ended in its first step, and the policies that serve at the end."""
        did, is_first, last = "waited", True, self.half_days + 2 * DAYS
        while did not in ("rolled-back", "promoted", "none") and self.half_days < last:
            self.serve()
            answer = self.call("route", "advance", "home")
            did = str(answer["did"])
            is_first &= answer["share"] in (0.05, 0.0, None)  # now, once it went back, and where it had before
        return is_first, self.serve()


def cron(setting: Setting) -> Iterator[Figure]:
    """Shares of runs. A command that was killed once it had stored its change says `none` when it is called again: what
    serves then tells how the ramp ended."""
    runs, crons, early = max(1, round(RUNS * setting.scale)), list[Cron](), 0
    Cron.prepare(prepared := setting.path(".db"))
    for seed in range(runs):
        crons.append(Cron.begin(prepared, setting.path(".db"), "half", seed))
        is_first, served = crons[-1].end()
        early += is_first and served == {"current"}
    text = f"half the clicks, {2 * USERS:,} new users a day: back within the first step, {early} of {runs}"
    yield Figure(name=text, value=early / runs, unit="", at_least=BACK)
    arrived, n = 0, max(1, round(ARRIVING * setting.scale))
    for seed in range(n):
        crons.append(Cron.begin(prepared, setting.path(".db"), "more", seed))
        arrived += crons[-1].end()[1] == {"more"}
    text = f"a fifth more clicks: serves everybody within {DAYS} days, {arrived} of {n}"
    yield Figure(name=text, value=arrived / n, unit="", at_least=1.0)
    yield Figure(name="commands killed on the way", value=sum(row.kills for row in crons), unit="commands")
