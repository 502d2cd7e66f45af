"""Steps of parameters in the unit of their own effect, shrunk where the log tells little of it.

Adam moves all parameters alike, whatever they do to the policy. Where rewards are rare, most parameters say nothing but
noise, and all moves together soon lead beyond what the log supports. A natural step moves each by what it would gain,
and a group of parameters whose gradients do not agree from batch to batch stays where it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array
from rlrec.policy.gradient import Parameters
from rlrec.records import Sums

WEIGHTS, BIAS = "linear", "bias"


@dataclass(frozen=True, eq=False)
class GradientMoments(Sums):
    """Sums over batches. total: of their gradients; squares: of these squared; fisher: diagonal of the Fisher matrix of
    all slots."""

    total: Parameters
    squares: Parameters
    fisher: Parameters


@dataclass(frozen=True, eq=False)
class NaturalSteps:
    """An ascent by natural steps. sizes: step size of each parameter; mean_state (d,): mean features of a state, and of
    its words behind them, which weights of states are orthogonal to: what they have in common with the bias belongs to
    the bias."""

    sizes: Parameters
    mean_state: Array

    @classmethod
    def of(
        cls, moments: GradientMoments, mean_state: Array, *, batches: float, decisions: float, slots: float
    ) -> NaturalSteps:
        """The steps that follow the posterior mean of each parameter's best value: a normal prior around 0 for every
        group, whose variance is what products of different batches say (without noise, on average).

        A pass over all batches at rate r changes the log probability of a slot by r x batches (root mean square).
        Source: own derivation from the natural gradient (Amari 1998) with the diagonal of the Fisher matrix, and
        empirical Bayes shrinkage (Efron & Morris 1973)."""
        sizes, moved = Parameters(), 0.0
        for name, total in moments.total.items():
            squares, fisher = moments.squares[name], moments.fisher[name]
            # variance of the gradients, and how much of their squares is signal
            noise = float((squares - total**2 / batches).sum())
            signal = float((total**2 - squares).sum()) * batches / max(1, batches - 1)
            if signal <= 0 or not fisher.any():
                sizes[name] = np.zeros_like(total)
                continue
            # observations that the prior is worth, in units of the Fisher matrix
            prior = noise / float(fisher.sum()) * float((fisher**2).sum()) / signal
            sizes[name] = np.where(fisher > 0, 1 / np.maximum(fisher + prior, 1e-300), 0.0)
            moved += float((fisher * (sizes[name] * total) ** 2).sum())
        unit = np.sqrt(slots / moved) * decisions if moved else 0.0
        return cls({name: unit * size for name, size in sizes.items()}, mean_state)

    def step(self, parameters: Parameters, gradient: Parameters, *, rate: float) -> tuple[Parameters, NaturalSteps]:
        """Parameters one step up, and the steps after it."""
        gradient = centred(gradient, self.mean_state)
        change = {name: rate * self.sizes[name] * values for name, values in gradient.items()}
        if change[WEIGHTS].shape[1]:
            change[BIAS] = change[BIAS] - change[WEIGHTS] @ self.mean_state
        return {name: values + change[name] for name, values in parameters.items()}, self


def centred(gradient: Parameters, mean_state: Array) -> Parameters:
    """The gradient by weights of the features of states less their mean; models without such weights keep theirs."""
    if not gradient[WEIGHTS].shape[1]:
        return gradient
    return {**gradient, WEIGHTS: gradient[WEIGHTS] - gradient[BIAS][:, None] * mean_state}
