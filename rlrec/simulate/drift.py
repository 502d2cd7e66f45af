"""An audience whose taste moves: jumps by a schedule, and slow change."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, pi

import numpy as np

from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.simulate.base import World, checked, require_between

Jump = tuple[int, float, int, int]  # arm, its rate meanwhile, from this time to before that one


@dataclass(kw_only=True, eq=False)
class Drift(World):
    """rates: of each arm, in [0, 1]; jumps: an arm's rate for some time. swing: each rate is moved by
    swing sin(2 pi (t / period + arm / arms)), and cut at 0 and 1; period in decisions. A jump holds whatever the swing.
    """

    rates: tuple[float, ...] = (0.5, 0.3, 0.4)
    jumps: tuple[Jump, ...] = ((2, 0.9, 3000, 5000),)
    swing: float = 0.0
    period: float = 10_000.0

    def __post_init__(self) -> None:
        self._base = checked(self.rates)
        self.arms = len(self.rates)
        self._phase = np.arange(self.arms) / self.arms
        for arm, rate, start, end in self.jumps:
            checked((rate, rate))
            if not 0 <= arm < self.arms:
                raise InputError(f"a jump of arm {arm}", hint=f"arms are 0 to {self.arms - 1}; jumps=none for no jumps")
            if not 0 <= start < end:
                raise InputError(f"a jump from {start} to {end}", hint="it begins at 0 or later, and ends after that")
        require_between("swing", self.swing, 0, 1)
        if not (isfinite(self.period) and self.period > 0):
            raise InputError(f"period is {self.period:g}", hint="it counts decisions, and is above 0")

    def means(self) -> Array:
        time = self._time[:, None]
        means = np.repeat(self._base, len(time), axis=0)
        if self.swing:
            means += self.swing * np.sin(2 * pi * (time / self.period + self._phase))
            np.clip(means, 0.0, 1.0, out=means)
        for arm, rate, start, end in self.jumps:
            means[(start <= self._time) & (self._time < end), arm] = rate
        return means
