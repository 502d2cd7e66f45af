"""A family of scores is one file: what slates and studies do with scores, they do with a family that they never met."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules

import numpy as np
import pytest

from rlrec.app.audiences.in_memory import draw_slates
from rlrec.arrays import Array, Index
from rlrec.policy.scores import families
from rlrec.policy.scores.families.point import Point
from rlrec.policy.scores.floors import Floor
from rlrec.policy.scores.scores import DrawnOrder, ExactScores, Order, Scores, cells, find_top, split_runs
from rlrec.policy.slates import slate_draws

FILES = [module.name for module in iter_modules(families.__path__)]


@dataclass(frozen=True, eq=False)
class Shuffled(ExactScores):
    """m arms in any order, each as likely as the others."""

    values: Array

    def __len__(self) -> int:
        return len(self.values)

    def order(self, positions: int, *, earlier_order: Order | None = None) -> ShuffledOrder:
        return ShuffledOrder(len(self))

    def noise(self, shape: tuple[int, int], rng: np.random.Generator) -> Array:
        return rng.random(shape)


@dataclass(frozen=True)
class ShuffledOrder(DrawnOrder):
    m: int

    def best(self) -> Array:
        return np.full(self.m, 1 / self.m)

    def ranks(self, size: int) -> Array:
        return np.full((size, self.m), 1 / self.m)

    def next_arms(self, prefixes: Index, *, floor: Floor) -> Array:
        probability = np.full((len(prefixes), self.m), 1 / (self.m - prefixes.shape[1]))
        np.put_along_axis(probability, prefixes, 0.0, axis=1)
        return probability

    def conditionals(self, slates: Index, *, floor: Floor, with_minimum: bool) -> tuple[Array, Array]:
        even = np.broadcast_to(1 / (self.m - np.arange(slates.shape[1])), slates.shape)
        return even, even

    def ranking(self, keys: Array, size: int) -> Index:
        return find_top(keys, size)


def test_slates_of_a_new_family_are_drawn_with_its_probabilities() -> None:
    """20,000 draws, four standard errors of four arms at two positions: false-alarm rate below 6e-4."""
    n, scores = 20_000, Shuffled(np.zeros(4))
    drawn = slate_draws.draw(scores, size=2, floor=0.1, seeds=np.full(n, 7, np.uint64), decisions=np.arange(n))
    assert drawn.propensity == pytest.approx(np.tile([1 / 4, 1 / 3], (n, 1)), abs=1e-12)
    assert drawn.marginal == pytest.approx(1 / 4, abs=1e-12)
    for position in range(2):
        frequency = np.bincount(drawn.slates[:, position], minlength=4) / n
        assert np.abs(frequency - 1 / 4).max() < 4 * np.sqrt(3 / 16 / n)


def test_studies_draw_from_a_new_family() -> None:
    arms = draw_slates(Shuffled(np.zeros(4)), (20_000, 4), floors=np.zeros(1), rng=np.random.default_rng(1))[:, 0]
    assert np.abs(np.bincount(arms, minlength=4) / 20_000 - 1 / 4).max() < 4 * np.sqrt(3 / 16 / 20_000)


def test_runs_are_unstacked_array_by_array() -> None:
    runs = Point(np.array([[1.0, 2.0], [4.0, 3.0]]))
    assert [run.values.tolist() for run in split_runs(runs)] == [[1.0, 2.0], [4.0, 3.0]]
    assert cells(runs) == 4


@pytest.mark.parametrize("file", FILES)
def test_a_file_brings_a_family_with_all_that_scores_have(file: str) -> None:
    module = import_module(f"{families.__name__}.{file}")
    classes = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    members = [name for name in vars(Scores) if not name.startswith("_") or name == "__len__"]
    assert any(all(hasattr(cls, name) or name in cls.__annotations__ for name in members) for cls in classes)
