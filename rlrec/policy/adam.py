"""Steps that follow a gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rlrec.policy.gradient import Parameters


@dataclass(frozen=True, eq=False)
class Adam:
    """The moments of the gradients so far. Source: Kingma & Ba 2015, algorithm 1 (ascent)."""

    first: Parameters
    second: Parameters
    count: int = 0

    @classmethod
    def start(cls, parameters: Parameters) -> Adam:
        zero = {name: np.zeros_like(values) for name, values in parameters.items()}
        return cls(zero, zero)

    def step(
        self, parameters: Parameters, gradient: Parameters, *, rate: float, b1: float = 0.9, b2: float = 0.999
    ) -> tuple[Parameters, Adam]:
        """Parameters one step up, and the moments after it."""
        count = self.count + 1
        first = {name: b1 * old + (1 - b1) * gradient[name] for name, old in self.first.items()}
        second = {name: b2 * old + (1 - b2) * gradient[name] ** 2 for name, old in self.second.items()}
        moved = {
            name: values + rate * (first[name] / (1 - b1**count)) / (np.sqrt(second[name] / (1 - b2**count)) + 1e-8)
            for name, values in parameters.items()
        }
        return moved, replace(self, first=first, second=second, count=count)
