"""An audience of others: three environments of sardine-rec (Deffayet et al., 2024), served, learned and served again.

`pip install sardine-rec` brings it; where it is not installed, the benchmark says so and measures nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.measure import Figure, Setting, environment, rlrec, said

SERVED = {"RLREC_NOW": "2026-01-01T00:00:00Z"}  # long ago: every decision is mature, and every visit over


class World(NamedTuple):
    """An environment: its name, the clicks of an episode that a uniform policy earned elsewhere and the half of their
    interval, how many slots a page has for arms, how many episodes are logged and how many served.
    Where there are 1,000 items in ten topics, the arms are the topics: the page fills a slot with items of its topic,
    drawn at random. Ten items are arms themselves."""

    name: str
    uniform: float
    half: float
    slots: int
    logged: int
    served: int


WORLDS = (
    World("SlateTopK-Bored", 43.83, 1.47, 5, 150, 100),
    World("SingleItem-BoredInf", 8.33, 0.55, 1, 300, 200),
    World("SlateRerank-Bored", 13.07, 0.71, 10, 600, 600),
)
ARMS = 10
GAIN, WON = 1.2, 2  # times the better of uniform and Thompson, in so many worlds
# what is earned at a step is that of a slot, and of the steps that follow soon: a visit has up to 100
TRAINING = ("--weights", "slot", "--gamma", "0.9", "--lr", "0.05", "--seed", "1")


class Store:
    """A store with the arms of an environment, through the command line and one warm process."""

    def __init__(self, path: Path, world: World) -> None:
        import_module("sardine")  # registers its environments
        self.path, self.world = path, world
        self.gymnasium: Any = import_module("gymnasium")
        example = self.make()
        topics = example.item_comp if example.num_items > ARMS else np.arange(ARMS)
        self.items = [np.flatnonzero(topics == arm) for arm in range(ARMS)]  # of each arm
        self.filled = example.slate_size // world.slots  # items of a slot
        self.episodes = 0
        self.rng = np.random.default_rng(1)
        self.run("init")
        self.run("arm", "import", "-", lines=[{"arm": f"a{arm}"} for arm in range(ARMS)])

    def make(self) -> Any:
        """An environment of its own for an episode."""
        return self.gymnasium.make(f"sardine/{self.world.name}-v0").unwrapped

    def run(self, *words: object, lines: Sequence[object] = ()) -> Any:
        """The answer of a command."""
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        command = rlrec("-q", "--db", str(self.path), *words, "--format", "json")
        return json.loads(said(command, stdin=text))

    def play(self, policy: str, episodes: int, *, group: int = 50) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Clicks of each episode, a new user each; their context is what they clicked last."""
        pipe = subprocess.Popen(
            rlrec("--db", str(self.path), "pipe"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(SERVED),
        )  # fmt: skip
        earned = np.zeros(episodes)
        for start in range(0, episodes, group):
            seats = range(start, min(start + group, episodes))
            worlds = {seat: self.make() for seat in seats}
            for seat, user in worlds.items():
                user.reset(seed=self.episodes + seat)
            while worlds:
                requests = [
                    {"op": "recommend", "policy": policy, "session": self._session(seat), "user": self._session(seat),
                     "k": self.world.slots}
                    for seat in worlds
                ]  # fmt: skip
                clicks = []
                for seat, answer in zip([*worlds], _ask(pipe, requests), strict=True):
                    arms = [int(slot["arm"][1:]) for slot in answer["slate"]]
                    page = [self.rng.choice(self.items[arm], self.filled, replace=False) for arm in arms]
                    _, reward, ended, _, info = worlds[seat].step(np.concatenate(page))
                    earned[seat] += reward
                    shares = np.reshape(info["clicks"], (self.world.slots, self.filled)).mean(axis=1)
                    for slot, share in enumerate(shares.tolist(), 1):
                        if share:
                            click = {"decision_id": answer["decision_id"], "position": slot, "events": {"click": share}}
                            clicks.append({"op": "feedback", **click})
                    if ended:
                        del worlds[seat]
                _ask(pipe, clicks)
        pipe.communicate()
        self.episodes += episodes
        return earned

    def _session(self, seat: int) -> str:
        return f"e{self.episodes + seat}"


def _ask(pipe: subprocess.Popen[str], lines: Sequence[object]) -> list[Any]:
    """The answers to these lines."""
    assert pipe.stdin is not None
    assert pipe.stdout is not None
    pipe.stdin.write("".join(json.dumps(line) + "\n" for line in lines))
    pipe.stdin.flush()
    answers = [json.loads(pipe.stdout.readline()) for _ in lines]
    for answer in answers:
        if "error" in answer:
            raise RuntimeError(str(answer["error"]))
    return answers


def sardine(setting: Setting) -> Iterator[Figure]:
    """The clicks of an episode by each policy, in each environment."""
    if find_spec("sardine") is None:
        yield Figure(name="nothing: sardine-rec is missing (pip install sardine-rec)", value=float("nan"), unit="")
        return
    won = 0
    for world in WORLDS:
        logged, served = (max(int(episodes * setting.scale), 20) for episodes in (world.logged, world.served))
        store = Store(setting.path(".db"), world)
        earned = {}
        for name, kind in (("uniform", "uniform"), ("bandit", "thompson")):
            store.run("policy", "create", name, "--kind", kind)
            earned[name] = store.play(name, logged)
        reference = max(clicks.mean() for clicks in earned.values())
        for log in tuple(earned):
            lasting, trained = f"long-term-{log}", f"gradient-{log}"
            store.run("policy", "create", lasting, "--kind", "long-term")
            version = store.run("policy", "rebuild", lasting, "--log", f"policy={log}", "--horizon", "1d")["version"]
            earned[lasting] = store.play(f"{lasting}@{version}", served)
            store.run("policy", "create", trained, "--kind", "gradient")
            version = store.run("train-pg", trained, "--log", f"policy={log}", *TRAINING)["version"]
            earned[trained] = store.play(f"{trained}@{version}", served)
        for name, clicks in earned.items():
            half = 1.96 * clicks.std() / len(clicks) ** 0.5
            yield Figure(name=f"{world.name}: {name}, +- {half:.2f}", value=clicks.mean(), reference=reference, unit="")
        half = 1.96 * earned["uniform"].std() / logged**0.5 + world.half
        gap = abs(earned["uniform"].mean() - world.uniform)
        yield Figure(name=f"{world.name}: uniform away from {world.uniform}", value=gap, unit="", at_most=half)
        won += max(clicks.mean() for clicks in earned.values()) >= GAIN * reference
    yield Figure(name=f"worlds with {GAIN} times the better of uniform and Thompson", value=won, unit="", at_least=WON)
