"""This module makes a trained policy that starts from a bandit. Version 1 of the trained policy draws slates as the
bandit does, as closely as the kind allows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from rlrec.app.distributions import designs, exact
from rlrec.app.inputs import lookup
from rlrec.app.log import stored_contexts
from rlrec.arrays import Array, Ids, Index
from rlrec.errors import InputError
from rlrec.policy.beliefs.base import Policy
from rlrec.policy.contexts.encoder import Design, Encoder
from rlrec.policy.gradients import imitation
from rlrec.policy.gradients.gradient import MEMORY_FEATURES, Gradient, State
from rlrec.policy.gradients.reinforce import LoggedSlates
from rlrec.records import Version
from rlrec.store import Unit
from rlrec.store.log import contents, decisions
from rlrec.store.policies import arms

if TYPE_CHECKING:
    from rlrec.app.learning.warm_start import InitialBelief

KIND = "gradient"
NEWEST = 2_000  # of the bandit's decisions, whose eligible sets, contexts and sizes are fitted
CASES = 500  # most cases that are fitted
HELD_OUT = 5  # every so many-th case with a context is not fitted but used to measure the remaining KL
PAGES = 5_000  # slates drawn for the fit, and as many again to estimate the KL
CELLS = 20_000_000  # most scores in a fit to all arms at position 1; beyond it, arms are drawn
# added to an arm's frequency on slates, divided by the number of arms, in the scores that a fit starts from
START = 0.01
TINY = 1e-300
LEAST = 0.02  # floor of a copy, unless one is given


def find_source(unit: Unit, reference: str) -> Version:
    """Return the version that a reference names, which a trained policy will copy. Raises InputError if no trained
    policy can copy the version."""
    version, _ = lookup.version(unit, reference)
    policy = designs.policy_of(version)
    if reason := _refusal_reason(policy):
        name = version.policy.name
        hint = (
            "name a bandit whose probabilities are exact, such as thompson" if policy.can_serve
            else f"`rlrec policy create NAME --kind softmax --from-log policy={name}` makes one that can"
        )  # fmt: skip
        raise InputError(f"{reference} of kind {version.policy.kind} cannot be copied: {reason}", hint=hint)
    return version


def _refusal_reason(policy: Policy) -> str:
    """Return words that say why a kind cannot be copied, or an empty text if it can be copied."""
    if policy.is_stateful:
        return "it is trained itself"
    return "its slates have no probabilities" if not policy.can_serve or policy.stages or policy.is_draft else ""


def way_to_copy(version: Version) -> str:
    """Return the commands that create a trained policy which starts as a copy of a version. The text is empty if no
    trained policy can copy the version."""
    policy, create_command = designs.policy_of(version), "rlrec policy create"
    if not policy.can_serve:
        learn_command = f"{create_command} BANDIT --kind softmax --from-log policy={version.policy.name}"
        copy_command = f"{create_command} NAME --kind {KIND} --from-policy BANDIT"
        return f"a bandit that learned from it (`{learn_command}`, then `{copy_command}`)"
    copy_command = f"{create_command} NAME --kind {KIND} --from-policy {version.policy.name}"
    return "" if _refusal_reason(policy) else f"the policy that served (`{copy_command}`)"


def parameters(version: Version, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the trained policy: `params` and, if they have no floor, the exploration of the copied
    version as the floor. This floor is at least LEAST, since arms that are hardly ever shown teach nothing. Raises
    InputError if the version explores differently by position."""
    if "floor" in params:
        return dict(params)
    exploration = designs.policy_of(version).exploration
    if not isinstance(exploration, tuple):
        return {**params, "floor": round(max(exploration, LEAST), 12)}
    if exploration[-1]:
        message = f"{version.policy.name} explores differently by position"
        raise InputError(message, hint="name a floor: --param floor=0.05")
    slots = ",".join(str(position) for position, floor in enumerate(exploration, 1) if floor)
    return {**params, "floor": max(exploration), "explore_slots": slots}


def encoders(version: Version) -> dict[str, Encoder]:
    """Return the encoders of the version by name, `context` and `arm`, or none if the version reads no context. Raises
    InputError if contexts are sparse."""
    if not version.is_contextual:
        return {}
    design = Design.from_json(version.parameters)
    if design.context.is_sparse:
        message = f"contexts of {version.policy.name} have {design.context.width} columns: it is not copied"
        hint = "create the policy with its --features, and train it on that log: train-pg --log"
        raise InputError(message, hint=hint)
    return {"context": design.context, "arm": design.arm}


class _Case(NamedTuple):
    """This record stands for requests with the same eligible set, size of slate and context. (If the version reads no
    contexts, the context is empty.) weight: the number of these requests."""

    arms: tuple[int, ...]
    context: Mapping[str, Any]
    size: int
    weight: float


def graduate(unit: Unit, version: Version, belief: InitialBelief, params: Mapping[str, Any]) -> InitialBelief:
    """Return the belief of a trained policy with weights that copy a version, and with a record that has the remaining
    KL divergence. belief: the belief without weights. Raises InputError if the version has no exact probabilities."""
    draft = designs.make_draft(KIND, params, version.reward)
    draft = replace(draft, parameters=belief.parameters)
    return _Graduation(unit, version, cast(Gradient, designs.policy_of(draft))).belief(belief)


class _Graduation:
    """A _Graduation fits a trained kind to one version. arms (m,): the ids of all arms."""

    def __init__(self, unit: Unit, version: Version, policy: Gradient) -> None:
        self.unit, self.version, self.policy = unit, version, policy
        self.distribution: exact.VersionDistribution = exact.load(unit, version)
        catalogue = arms.all_arms(unit)
        self.keys = {arm.id: arm.key for arm in catalogue}
        self.arms: Ids = np.array([arm.id for arm in catalogue], np.int64)
        self.active_ids = tuple(arm.id for arm in catalogue if arm.status(unit.now) == "active")
        self.arm_features = designs.CatalogueFeatures(unit, policy.design.arm).encode(self.arms, designs.NOW)
        self.is_contextual = bool(designs.policy_of(version).fields_read)

    def belief(self, belief: InitialBelief) -> InitialBelief:
        """Return the belief with fitted weights. The record of the belief has the KL divergence that remains."""
        cases = self._cases()
        fitted_parameters = self.policy.zero_parameters(len(self.arms))
        has_closed_form = (
            len({(case.arms, case.size) for case in cases}) == 1 and cases[0].size == 1 and not self.is_contextual
        )
        for case in cases[:1]:
            fitted_parameters["bias"][self._index(case.arms)] = self._start_scores(case)
        kl = 0.0
        if cases:
            # cases held out from the fit measure what it is worth in new contexts
            held_out_cases = cases[HELD_OUT - 1 :: HELD_OUT] if self.is_contextual else []
            fitted_cases = (
                [case for number, case in enumerate(cases, 1) if number % HELD_OUT] if held_out_cases else cases
            )
            if not has_closed_form:
                slates = self._slates(fitted_cases, seed=1)
                fitted_parameters = imitation.fit(
                    self.policy, fitted_parameters, slates, is_contextual=self.is_contextual
                )
            kl = imitation.divergence(self.policy, fitted_parameters, self._slates(held_out_cases or cases, seed=2))
        weights, shared_weights = self.policy.pack(fitted_parameters, self.arms)
        return replace(
            belief, weights=weights, parameters={**belief.parameters, "shared": shared_weights},
            record={**belief.record, **self._learned_from(), "kl": kl}, parent_id=self.version.id,
        )  # fmt: skip

    def _learned_from(self) -> dict[str, Any]:
        """Return the record of the decisions that a learning version has learned from, mature or not."""
        if not self.version.learning:
            return {}
        policy, since = self.version.policy, self.version.since
        selection = {"policy_ids": [policy.id], "imported": False} | ({"first_id": since} if since else {})
        return {
            "filter": f"policy={policy.name}", "selection": selection,
            "last_id": decisions.peek(self.unit) - 1,
        }  # fmt: skip

    def _cases(self) -> list[_Case]:
        """Return the requests of the policy's newest decisions, most frequent first. If the policy served nothing, or
        only empty contexts, return the newest requests of the whole log; without a log, return one request for all
        active arms in an empty context. Raises InputError if the version reads contexts, the policy served nothing, and
        all contexts of the log are empty."""
        policy_requests = decisions.newest_requests(self.unit, self.version.policy.id, limit=NEWEST)
        reads_contexts = self.is_contextual
        for requests in (policy_requests, decisions.newest_requests(self.unit, None, limit=NEWEST)):
            counts = Counter((set_id, context if reads_contexts else 0, size) for set_id, context, size in requests)
            ids = np.array(sorted({context for _, context, _ in counts}), np.int64)
            bodies = (
                stored_contexts.distinct_contexts(self.unit, ids)[0] if reads_contexts and requests else [{}] * len(ids)
            )
            if any(bodies) if reads_contexts else requests:
                break
        if reads_contexts and not policy_requests and not any(bodies):
            name = self.version.policy.name
            hint = f"`rlrec recommend --policy {name} --context JSON` logs requests to copy it on"
            raise InputError(f"{name} cannot be copied: it served nothing, and the log has no contexts", hint=hint)
        if not requests:
            return [_Case(self.active_ids, {}, 1, 1.0)] if self.active_ids else []
        sets = contents.eligible_arms(self.unit, {set_id for set_id, _, _ in counts})
        contexts = dict(zip(ids.tolist(), bodies, strict=True))
        return [
            _Case(sets[set_id], contexts[context], size, float(count))
            for (set_id, context, size), count in counts.most_common(CASES)
        ]

    def _index(self, ids: Sequence[int]) -> Index:
        """Return the index of each of these arms in the array of all arms, (n,). ids: the n arm ids."""
        return np.searchsorted(self.arms, np.array(ids, np.int64))

    def _start_scores(self, case: _Case) -> Array:
        """Return the scores from which the fit starts. They are computed from the probability that an arm is anywhere
        on a slate. For slates with one slot they copy the version exactly."""
        pages = self._distribution(case).slate_sampler(case.size)
        shown_shares = pages.p_first if case.size == 1 else np.nan_to_num(pages.marginals).sum(axis=0) / case.size
        return imitation.scores(
            shown_shares if case.size == 1 else shown_shares + START / len(shown_shares), self.policy
        )

    def _distribution(self, case: _Case) -> exact.EligibleDistribution:
        ids = np.array(case.arms, np.int64)
        distribution = self.distribution.case(case.arms, ids, case.context, keys=self.keys, revision=designs.NOW)
        if distribution.scores.samples:
            message = f"{self.version.reference} cannot be copied: its probabilities are shares of samples"
            hint = f"`--from-log policy={self.version.policy.name}` in place of --from-policy begins as it served"
            raise InputError(message, hint=hint)
        return distribution

    def _slates(self, cases: Sequence[_Case], *, seed: int) -> list[LoggedSlates]:
        """Return slates that the version shows for these requests, grouped by eligible set. The weight of a slate is in
        `gain`. If there are few arms, and slates have one slot, each arm has a slate; else slates are drawn with
        `seed`."""
        shows_all_arms = all(case.size == 1 for case in cases) and sum(len(case.arms) ** 2 for case in cases) <= CELLS
        total_weight, groups = (
            sum(case.weight for case in cases),
            defaultdict[tuple[tuple[int, ...], int], list[Any]](list),
        )
        for number, case in enumerate(cases):
            pages = self._distribution(case).slate_sampler(case.size)
            if shows_all_arms:
                shown_arms, weight = np.arange(len(case.arms))[:, None], case.weight * pages.p_first
                log_served = np.log(np.maximum(pages.p_first, TINY))[:, None]
            else:
                n_slates = max(1, round(PAGES * case.weight / total_weight))
                seed_words = np.full(n_slates, seed * CASES + number, np.uint64)
                draw = pages.draw(seeds=seed_words, decisions=np.arange(n_slates), with_marginals=False)
                shown_arms, weight = draw.slates, np.full(n_slates, case.weight / n_slates)
                log_served = np.log(draw.propensity)
            x = np.broadcast_to(
                self.policy.encode(case.context), (len(shown_arms), len(self.policy.design.context.names))
            )
            groups[case.arms, case.size].append((x, shown_arms, weight, log_served))
        columns = ((arm_ids, zip(*rows, strict=True)) for (arm_ids, _), rows in groups.items())
        return [self._logged_slates(arm_ids, *map(np.concatenate, values)) for arm_ids, values in columns]

    def _logged_slates(
        self, arm_ids: tuple[int, ...], x: Array, shown_arms: Index, weight: Array, log_served: Array
    ) -> LoggedSlates:
        """Return n slates of one eligible set as inputs of the gradient, as if each began a visit. x: the features of
        the contexts; shown_arms: the index of each arm shown; log_served: the logarithm of the propensities."""
        n, index = len(x), self._index(arm_ids)
        session = np.zeros((n, len(self.policy.names) - x.shape[1]))
        no_arms = np.empty(0, np.int64)
        return LoggedSlates(
            state=State(np.hstack([x, session]), no_arms, no_arms, np.empty((0, len(MEMORY_FEATURES)))), arms=index,
            arm_features=self.arm_features[index], shown_arms=shown_arms, log_propensity=log_served, gain=weight,
            returns=weight, scale=np.ones(n),
        )  # fmt: skip
