"""Mean regret of a thousand runs beside what was found elsewhere, and how fast they were."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import Any

from tests.benchmarks.measure import Figure, Setting, Stopwatch

RUNS = 1_000
WITHIN = 0.1  # of the reference
FAST = 500_000  # decisions a second
TWO: dict[str, Any] = {"rates": (0.9, 0.8)}
TEN: dict[str, Any] = {"rates": (0.5, *[0.4] * 9)}
FIGURES: list[tuple[str, dict[str, Any], str, dict[str, Any], int, float]] = [
    ("ucb", {}, "bernoulli", TWO, 5_000, 64),
    ("kl-ucb", {}, "bernoulli", TWO, 5_000, 12.7),
    ("thompson", {}, "bernoulli", TWO, 5_000, 9.3),
    ("thompson", {}, "bernoulli", TEN, 10_000, 168),
    ("ucb", {}, "bernoulli", TEN, 10_000, 593),
    ("ucb", {"window": 1214.0, "c": sqrt(0.5)}, "drift", {}, 10_000, 284),
    ("thompson", {"discount": 0.9975}, "drift", {}, 10_000, 270),
    ("thompson", {}, "drift", {}, 10_000, 772),
]


def regret(setting: Setting) -> Iterator[Figure]:
    """The mean regret of each policy, by how much it is off, and its decisions a second."""
    from rlrec import policy as kinds
    from rlrec import simulate
    from rlrec.app.audiences.in_memory import study

    runs = setting.size(RUNS)
    for kind, params, name, inputs, steps, reference in FIGURES:
        policy, audience = kinds.make(kind, params), simulate.make_audience(name, inputs)
        watch = Stopwatch()
        with watch:
            result = study(policy, audience, runs=runs, steps=steps, seed=1).regret
        mean, error = float(result.mean()), float(result.std(ddof=1)) / sqrt(runs)
        reported = " ".join([kind, *(f"{key}={value:.4g}" for key, value in params.items())])
        what = f"{reported}, {audience.arms} arms ({name}), {steps:,} decisions"
        yield Figure(name=f"{what}: regret, +- {error:.2g}", value=mean, unit="", reference=reference)
        yield Figure(name=f"{what}: off by", value=abs(mean / reference - 1), unit="", at_most=WITHIN)
        speed, goal = runs * steps / setting.seconds(watch.sample), FAST if inputs is TEN else None
        yield Figure(name=f"{what}: decisions a second", value=speed, unit="/s", at_least=goal)
