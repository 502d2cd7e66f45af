"""Where `train-pg` leads with its defaults, by the exact value of what it makes: digits as a bandit, from the logs of
three loggers; ten arms; pages whose pairs earn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from rlrec.app.distributions.trained import TrainedModel
from rlrec.app.inputs import lookup
from rlrec.arrays import Array, Index
from rlrec.cli import program
from rlrec.policy.gradients.history import History
from rlrec.policy.slates import plackett_luce
from rlrec.store import Store
from rlrec.store.policies import arms
from tests.benchmarks.measure import Figure, Setting

ARMS, SEEDS, DECISIONS = 10, 8, 3_411
RIGHT, WRONG = 0.7, 0.1  # what a digit earns that is called by its name, or by another
LOGGERS = {
    "sharp": (0.545, 0.02, 0.6),
    "medium": (0.4, 0.1, 0.59),
    "uniform": (WRONG + (RIGHT - WRONG) / ARMS, 1.0, 0.59),
}
TAUGHT = 6  # images of each digit by which a logger has learned
TEN, PAGES, LEAST_PAGE, BEST_ARM = 5_000, 4_000, 0.385, 0.999
LATER = "2026-06-01T00:00:00Z"
NEWEST = 2**62  # of catalogues


class Bench:
    """A store with an imported log of the arms arm0 to arm9, and a policy `pg`."""

    def __init__(self, path: Path, *, seed: int, pages: Index, propensities: Array, earned: Index,
                 contexts: Sequence[Mapping[str, Any]] = ()) -> None:  # fmt: skip
        """pages, propensities (n, k): what was shown. earned (n,): 0 or 1, of the page."""
        self.db, begin, lines = str(path), datetime.fromisoformat("2026-01-01T00:00:00Z"), []
        for number, (page, chances, reward) in enumerate(
            zip(pages.tolist(), propensities.tolist(), earned.tolist(), strict=True)
        ):
            decision: dict[str, Any] = {
                "session": f"s{seed}-{number}", "user": f"u{seed}-{number}",
                "at": f"{begin + timedelta(minutes=number):%Y-%m-%dT%H:%M:%SZ}",
                "eligible": [f"arm{arm}" for arm in range(ARMS)], "context": contexts[number] if contexts else {},
                "slate": [
                    {"arm": f"arm{arm}", "propensity": chance} for arm, chance in zip(page, chances, strict=True)
                ],
                "events": [{"kind": "click", "value": 1}] * reward,
            }  # fmt: skip
            lines.append(json.dumps(decision))
        self.run("init")
        self.run("import-log", "-", "--layout", "jsonl", "--policy", "log", stdin="\n".join(lines))
        self.run("policy", "create", "pg", "--kind", "gradient", "--from-log", "policy=log")

    def run(self, *words: object, stdin: str | None = None) -> Any:
        """The answer of a command."""
        arguments = ["-q", "--db", self.db, "--now", LATER, *map(str, words), "--json"]
        result = CliRunner().invoke(program, arguments, input=stdin, catch_exceptions=False)
        if result.exit_code:
            raise RuntimeError(f"{words} exited with {result.exit_code}: {result.stderr}")
        return json.loads(result.stdout)

    def chances(self, version: int, contexts: Sequence[Mapping[str, Any]]) -> Array:
        """Probability of each arm on top in some contexts, (n, arms)."""
        with closing(Store(self.db)) as store, store.read() as unit:
            model = TrainedModel(unit, lookup.version(unit, f"pg@{version}")[0])
            ids = {arm.key: arm.id for arm in arms.all_arms(unit)}
            numbers = np.array([ids[f"arm{arm}"] for arm in range(ARMS)])
            n, nothing = len(contexts), np.zeros(len(contexts))
            history = History(
                step=nothing.astype(np.int64), gap_s=nothing, n_shown=nothing.astype(np.int64), reward=nothing,
                start=np.zeros(n + 1, np.int64), arm=np.empty(0, np.int64), ago=np.empty(0, np.int64),
                slot_reward=np.empty(0),
            )  # fmt: skip
            state = model.states(model.encode_contexts(contexts), history, np.full(n, NEWEST))
            order = np.argsort(numbers)
            score = model.scores(state, numbers[order], NEWEST)
            result = np.empty((n, ARMS))
            result[:, order] = plackett_luce.probabilities(
                score, temperature=model.policy.temperature, floor=model.policy.exploration
            )
            return result


def climbs(setting: Setting) -> Iterator[Figure]:
    """Means over seeds, and the lowest of them."""
    seeds = max(int(SEEDS * setting.scale), 1)
    for name, (value, _, least) in LOGGERS.items():
        begun, trained = np.array([digits(setting, name, seed) for seed in range(seeds)]).T
        text = f"digits, {DECISIONS:,} decisions of a {name} logger ({value:.3f}), {seeds} seeds"
        yield Figure(name=f"{text}: version 1", value=float(begun.mean()), unit="", reference=value)
        yield Figure(name=f"{text}: version 2, lowest {trained.min():.3f}", value=float(trained.mean()), unit="",
                     at_least=least)  # fmt: skip
    best = [ten_arms(setting, seed) for seed in range(max(seeds // 4, 1))]
    yield Figure(name="ten arms, 200 epochs: the best arm, lowest", value=min(best), unit="", at_least=BEST_ARM)
    earned = [ring(setting, seed) for seed in range(max(seeds // 2, 1))]
    yield Figure(name="pages whose neighbours earn (.222 at the start), lowest", value=min(earned), unit="",
                 at_least=LEAST_PAGE)  # fmt: skip


@lru_cache(maxsize=1)
def images() -> tuple[Array, Index, list[dict[str, Any]]]:
    """Pixels (n, 64) and digits (n,), and the contexts that they make."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = data.data / 16
    return pixels, data.target, [{"pixels": row.round(4).tolist()} for row in pixels]


def earns(chance: Array) -> float:
    """Mean reward of probabilities (n, 10) of all images."""
    digit = images()[1]
    return float(WRONG + (RIGHT - WRONG) * chance[np.arange(len(digit)), digit].mean())


def logger(name: str, seed: int) -> Array:
    """Probabilities (n, 10) of a logger that learned from few images, as sharp as it earns what it does."""
    from sklearn.linear_model import LogisticRegression

    (pixels, digit, _), (value, floor, _) = images(), LOGGERS[name]
    order = np.random.default_rng(seed).permutation(len(digit))
    few = np.concatenate([order[digit[order] == number][:TAUGHT] for number in range(ARMS)])
    score = LogisticRegression(C=10, max_iter=5_000).fit(pixels[few], digit[few]).decision_function(pixels)

    def drawn(temperature: float) -> Array:
        softmax = np.exp((score - score.max(axis=1, keepdims=True)) / temperature)
        result: Array = (1 - floor) * softmax / softmax.sum(axis=1, keepdims=True) + floor / ARMS
        return result

    low, high = 1e-3, 50.0
    for _ in range(50):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if earns(drawn(middle)) > value else (low, middle)
    return drawn(low)


def digits(setting: Setting, name: str, seed: int) -> tuple[float, float]:
    """The exact values of version 1, which is as the log was served, and of what its training makes."""
    (_, digit, contexts), chance = images(), logger(name, seed)
    rng = np.random.default_rng([seed, 7])
    shown = rng.integers(0, len(digit), DECISIONS)
    arm = np.minimum((chance[shown].cumsum(axis=1) < rng.random((DECISIONS, 1))).sum(axis=1), ARMS - 1)
    earned = rng.random(DECISIONS) < np.where(arm == digit[shown], RIGHT, WRONG)
    bench = Bench(
        setting.path(".db"), seed=seed, pages=arm[:, None], propensities=chance[shown, arm][:, None],
        earned=earned.astype(np.int64), contexts=[contexts[number] for number in shown],
    )  # fmt: skip
    bench.run("train-pg", "pg", "--seed", seed)
    begun, trained = (earns(bench.chances(version, contexts)) for version in (1, 2))
    return begun, trained


def ten_arms(setting: Setting, seed: int) -> float:
    """How likely the best of ten arms is shown after 200 epochs on a uniform log; the next earns nine tenths of it."""
    rng = np.random.default_rng(seed)
    arm = rng.integers(0, ARMS, TEN)
    earned = (rng.random(TEN) < (arm + 1) / ARMS).astype(np.int64)
    bench = Bench(
        setting.path(".db"), seed=seed, pages=arm[:, None], propensities=np.full((TEN, 1), 1 / ARMS), earned=earned
    )
    bench.run("train-pg", "pg", "--seed", seed, "--epochs", 200)
    return float(bench.chances(2, [{}])[0, -1])


def ring(setting: Setting, seed: int) -> float:
    """The value of pages of two of ten arms after training, where a page earns if its arms are neighbours on a ring: by
    itself every arm is worth the same."""
    rng = np.random.default_rng(seed)
    pages = np.array([rng.permutation(ARMS)[:2] for _ in range(PAGES)])
    earned = np.isin((pages[:, 0] - pages[:, 1]) % ARMS, (1, ARMS - 1)).astype(np.int64)
    logged = np.tile([1 / ARMS, 1 / (ARMS - 1)], (PAGES, 1))
    bench = Bench(setting.path(".db"), seed=seed, pages=pages, propensities=logged, earned=earned)
    bench.run("train-pg", "pg", "--seed", seed)
    top = bench.chances(2, [{}])[0]
    return float(sum(top[arm] * top[(arm + way) % ARMS] / (1 - top[arm]) for arm in range(ARMS) for way in (1, -1)))
