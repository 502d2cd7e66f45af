"""Visitors to train on: logs of whole visits, in a few large groups, and what training makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec.app.distributions.trained import TrainedModel
from rlrec.app.policies import policy, train
from rlrec.app.requests.feedback import Line
from rlrec.app.requests.recommend import Request, recommend_group
from rlrec.app.setup import arm
from rlrec.store import Store, Unit
from rlrec.store.policies import arms
from tests.app.shop import MINUTE, SECOND, START, clock, tell_all, version

ARMS = ("tea", "coffee", "chai", "mate")
LATER = START + 24 * 60 * MINUTE
SHAPES = {"tea": 1.0, "coffee": -1.0, "chai": 0.5, "mate": 0.0}
FEATURES = {"context": {"fields": {"hour": {"type": "number", "mean": 12, "scale": 6}}},
            "arm": {"fields": {"heat": {"type": "number", "mean": 0, "scale": 1}}}}  # fmt: skip


def ignored(text: str) -> None:
    """A notice that nobody waits for."""


def opened(
    store: Store, *, logger: str = "uniform", keys: Sequence[str] = ARMS, parameters: Mapping[str, str] | None = None,
    features: Mapping[str, Any] | None = FEATURES,
) -> Store:  # fmt: skip
    """Arms, a policy `base` that logs, and `visits`, which is to be trained."""
    store.notice = ignored
    arm.put(clock(store, START), lambda: [[(key, {"heat": SHAPES.get(key, 0.0)}) for key in keys]])
    policy.create(store, policy.Request(name="base", kind=logger, parameters={"floor": "0.3"}))
    answers = policy.Request(name="visits", kind="gradient", parameters=parameters or {}, features=features)
    policy.create(store, answers)
    return store


Liked = Callable[[str, int, Sequence[str]], bool]


def moody(key: str, step: int, before: Sequence[str]) -> bool:
    """Tea pleases, unless it was shown just before; coffee pleases at the end."""
    return key not in before if key == "tea" else key == "coffee" and step == 2


def serve(
    store: Store, *, name: str = "base", visits: int = 120, steps: int = 3, size: int = 1, users: int | None = None,
    eligible: Callable[[int], Sequence[str] | None] = lambda number: None, liked: Liked = moody, start: int = START,
    prefix: str = "s", seed: int = 1, experiment: str | None = None,
) -> list[list[dict[str, Any]]]:  # fmt: skip
    """Visits side by side, a decision of each in a group; what they like is clicked. The answers, step by step."""
    before: dict[int, list[str]] = {number: [] for number in range(visits)}
    result = []
    for step in range(steps):
        options = [
            Request(
                policy=None if experiment else name, experiment=experiment, session=f"{prefix}{number}", size=size,
                user=None if users is None else f"u{number % users}", context={"hour": float(number % 24)},
                arms=eligible(number),
            )
            for number in before
        ]  # fmt: skip
        answers: list[Any] = recommend_group(clock(store, start + 10 * step * SECOND), options, seed=seed + step)
        reported = []
        for number, answer in enumerate(answers):
            keys = [slot["arm"] for slot in answer["slate"]]
            for position, key in enumerate(keys, 1):
                if liked(key, step, before[number]):
                    reported.append(Line(decision_id=answer["decision_id"], position=position, events={"click": 1.0}))
            before[number] = keys
        tell_all(clock(store, start + (10 * step + 5) * SECOND), reported)
        result.append(answers)
    clock(store, LATER)
    return result


QUICK: dict[str, Any] = {"name": "visits", "seed": 1, "epochs": 2, "batch": 40}


def trained(store: Store, **options: Any) -> dict[str, Any]:
    """What a short training answers."""
    return {**train.train(store, train.Request(**QUICK | options))}


def parameters(store: Store, number: int | None = None, *, name: str = "visits") -> dict[str, Any]:
    """What a version has learned, the newest one by default: of each arm by its key, and what all share."""
    with store.read() as unit:
        return _parameters(unit, name, number)


def _parameters(unit: Unit, name: str, number: int | None) -> dict[str, Any]:
    from rlrec.store.policies import policies

    newest = policies.versions(unit, [version(unit, name).policy.id])[-1].number
    answers = TrainedModel(unit, version(unit, name, number or newest))
    keys = arms.keys(unit, answers.arms.tolist())
    weights, shared = answers.policy.pack(answers.parameters, answers.arms)
    return {keys[item]: np.frombuffer(packed, "<f8") for item, packed in weights} | {
        name: np.array(values) for name, values in shared.items()
    }


def apart(item: Mapping[str, npt.ArrayLike], other: Mapping[str, npt.ArrayLike]) -> float:
    """The largest difference of two sets of parameters."""
    assert item.keys() == other.keys()
    return max(float(np.abs(np.subtract(item[name], other[name])).max(initial=0.0)) for name in item)


def twin(store: Store, folder: Path, name: str = "twin.db") -> Store:
    """A copy of a SQLite store."""
    import sqlite3

    with closing(sqlite3.connect(store.url.database or "")) as source, closing(sqlite3.connect(folder / name)) as copy:
        source.backup(copy)
    return Store(str(folder / name), now=store.now, notice=store.notice)
