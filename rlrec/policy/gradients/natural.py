"""This module computes natural gradient steps. Such steps are measured by their effect on the policy, and shrink if the
log has little information.

Steps of one size for all parameters (Adam: Kingma & Ba 2015) ignore the effect of a parameter on the policy. Where
rewards are rare or visits long, the gradients of most parameters are noise, and steps along all of them soon lead
beyond what the log supports. A natural step moves each parameter by its expected gain. A group of parameters whose
gradients disagree between batches does not move."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from math import sqrt

import numpy as np

from rlrec.arrays import Array
from rlrec.policy.gradients.gradient import Parameters
from rlrec.records import Record, add_each

BIAS, WEIGHTS, ARM_MEMORY, HISTORY = "bias", "linear", "own", "history"
N_FOLDS = 10  # sums of batches that are compared with each other
MAX_BATCHES = 100  # a pass over more batches changes the policy as much as one over this many
ROUNDING_ERROR = 1e-12  # information of a group relative to the largest of any group, below which it is rounding
DOUBT_Z = 1.0  # standard errors that are subtracted from the agreement of the batches


class FoldGradients:
    """A FoldGradients object holds the sum of the gradients of batches, in total and by fold (group of batches).
    Batches are assigned to the folds in turn.

    sums: the sum of each fold; sizes: the number of batches in each fold; total: the sum of all batches."""

    def __init__(self, gradients: Iterable[Parameters]) -> None:
        sums, sizes = [Parameters() for _ in range(N_FOLDS)], [0] * N_FOLDS
        for number, gradient in enumerate(gradients):
            fold = number % N_FOLDS
            sums[fold], sizes[fold] = add_each(sums[fold], gradient), sizes[fold] + 1
        n_filled = min(N_FOLDS, sum(sizes))
        self.sums, self.sizes, self.total = sums[:n_filled], sizes[:n_filled], reduce(add_each, sums, Parameters())
        # the share of all pairs of batches that are in different folds
        self._cross_fold_share = 1 - float(sum(size**2 for size in sizes)) / max(1, sum(sizes)) ** 2

    def signal(self, *names: str) -> float:
        """Return the estimated squared length of the total gradient of some groups of parameters without its noise,
        minus DOUBT_Z standard errors. A negative result is replaced by 0, and with a single fold the result is 0.

        names: the names of the groups. The estimate is made from products of different folds, which have no noise on
        average. The standard error is the jackknife's, whose square is about half too large if there is no signal."""
        if len(self.sums) < 2:
            return 0.0
        total = self.total
        fold_products = np.array([
            sum(float((fold[name] * (total[name] - fold[name])).sum()) for name in names) for fold in self.sums
        ])  # fmt: skip
        error = 2 * sqrt((1 - 1 / len(fold_products)) * float(((fold_products - fold_products.mean()) ** 2).sum()))
        return max(0.0, float(fold_products.sum()) - DOUBT_Z * error) / self._cross_fold_share

    def noise(self, name: str) -> float:
        """Return the expected squared length of the noise in the total gradient of a group of parameters. With a single
        fold, the result is 0.

        name: the name of the group."""
        if len(self.sums) < 2:
            return 0.0
        total, n_batches = self.total[name], sum(self.sizes)
        residuals = (fold[name] - size / n_batches * total for fold, size in zip(self.sums, self.sizes, strict=True))
        return sum(float((residual**2).sum()) for residual in residuals) / self._cross_fold_share


class MeanFeatures(Record, kw_only=False, eq=False):
    """A MeanFeatures object holds the means of features over the decisions.

    state (d,): the means of the features of a state, followed by the means of its words. memory (arms, 4): the means
    of what a state remembers of each arm, where an arm that is not remembered counts as zeros.

    The means are subtracted from the features before gradients are taken. Otherwise a step of the weights would also
    move the mean score of an arm, which the step of its bias already does."""

    state: Array
    memory: Array

    def centre_gradient(self, gradient: Parameters) -> Parameters:
        """Return the gradient for centred features (features minus their means), from the gradient for the features. If
        the model has no weights of states, their gradient stays empty."""
        bias = gradient[BIAS][:, None]
        mean_memory = bias * self.memory
        centred_gradient = gradient | {ARM_MEMORY: gradient[ARM_MEMORY] - mean_memory}
        centred_gradient[HISTORY] = gradient[HISTORY] - mean_memory.sum(axis=0)
        if gradient[WEIGHTS].shape[1]:
            centred_gradient[WEIGHTS] = gradient[WEIGHTS] - bias * self.state
        return centred_gradient

    def change(self, step: Parameters) -> Parameters:
        """Return the change of the parameters from a step of the parameters for centred features (features minus their
        means)."""
        bias_change = (self.memory * (step[ARM_MEMORY] + step[HISTORY])).sum(axis=1)
        if step[WEIGHTS].shape[1]:
            bias_change = bias_change + step[WEIGHTS] @ self.state
        return {**step, BIAS: step[BIAS] - bias_change}


class NaturalSteps(Record, kw_only=False, eq=False):
    """A NaturalSteps object changes parameters by natural gradient steps, which raise the objective.

    sizes: the step size of each parameter; means: the means of the features. common_step (arms,): the step of each
    bias per unit of the mean gain of all arms; shares (arms,): the weight of each arm in this mean."""

    sizes: Parameters
    means: MeanFeatures
    common_step: Array
    shares: Array

    @classmethod
    def from_gradients(
        cls, gradients: FoldGradients, fisher: Parameters, means: MeanFeatures, *, decisions: float, slots: float
    ) -> NaturalSteps:
        """Return the steps that follow the posterior mean of each parameter's best value.

        Every group of parameters has a normal prior, whose variance is estimated from products of different batches.
        The mean of the prior is 0; for biases the mean is the mean gain of arms, so that an arm which was seldom
        shown moves as the other arms do. A pass over up to MAX_BATCHES batches, at rate r, changes the log
        probability of a slot by r x batches (root mean square). Source: own derivation from the natural gradient
        (Amari 1998) with the diagonal of the Fisher matrix, and empirical Bayes shrinkage towards a mean (Efron &
        Morris 1973).

        gradients: the gradients by features minus their means; fisher: the diagonal of the Fisher matrix of all slots,
        by the same features; decisions, slots: the numbers of decisions and of slots in the log."""
        sizes, squared_change = Parameters(), 0.0
        common_step = arm_shares = np.zeros(len(fisher[BIAS]))
        rounding = ROUNDING_ERROR * max((float(values.max(initial=0.0)) for values in fisher.values()), default=0.0)
        for name, total in gradients.total.items():
            information, signal = fisher[name], gradients.signal(name)
            if signal <= 0 or float(information.max(initial=0.0)) <= rounding:
                sizes[name] = np.zeros_like(total)
                continue
            # the prior's weight in observations, in units of the Fisher matrix
            prior_weight = gradients.noise(name) / float(information.sum()) * float((information**2).sum()) / signal
            sizes[name] = np.where(information > 0, 1 / np.maximum(information + prior_weight, 1e-300), 0.0)
            change = sizes[name] * total
            if name == BIAS:
                common_step = sizes[name] * prior_weight
                arm_shares = sizes[name] / float((sizes[name] * information).sum())
                change = change + common_step * float(arm_shares @ total)
            squared_change += float((information * change**2).sum())
        pass_share = min(1.0, MAX_BATCHES / max(1, sum(gradients.sizes)))
        scale = np.sqrt(slots / squared_change) * decisions * pass_share if squared_change else 0.0
        return cls({name: scale * size for name, size in sizes.items()}, means, scale * common_step, arm_shares)

    def step(self, parameters: Parameters, gradient: Parameters, *, rate: float) -> Parameters:
        """Return the parameters after one step of ascent along the gradient.

        rate: the factor of the step."""
        gradient = self.means.centre_gradient(gradient)
        step = {name: rate * self.sizes[name] * values for name, values in gradient.items()}
        step[BIAS] = step[BIAS] + rate * float(self.shares @ gradient[BIAS]) * self.common_step
        change = self.means.change(step)
        return {name: values + change[name] for name, values in parameters.items()}
