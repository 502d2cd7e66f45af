"""This module computes, for versions of trained kinds, the states of decisions and the scores of arms in these
states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rlrec.app.distributions import designs
from rlrec.arrays import Array, Ids, Index, Words, distinct, look_up, rows_by_kind
from rlrec.policy.beliefs.base import Policy
from rlrec.policy.contexts.encoder import EncodedRows
from rlrec.policy.contexts.statements import FEATURES, by_arm
from rlrec.policy.gradients.gradient import ARM_PARAMETERS, Gradient, Parameters, State, restrict_memory, score_states
from rlrec.policy.gradients.history import History
from rlrec.policy.slates import slate_draws
from rlrec.policy.slates.slate_draws import Draw
from rlrec.records import Record, Version
from rlrec.store import Unit
from rlrec.store.log import contents
from rlrec.store.policies import beliefs

if TYPE_CHECKING:
    from rlrec.policy.slates.page_layout import PageLayout

CELLS = 1 << 19  # scores that are computed at a time, so that they stay in the processor's cache
PORTION = 1_000  # decisions with stated features of arms that are processed at a time
SETS = 500  # eligible sets that are read at a time


class EligibleGroup(Record, kw_only=False, eq=False):
    """This record holds decisions that share an eligible set and the features of its arms. rows: the indices of the
    decisions; arms (m,), ascending: the ids of the arms; score (rows, m): the noiseless score of each arm for each
    decision."""

    rows: Ids
    arms: Ids
    score: Array


class TrainedModel:
    """This class holds the trained parameters of one version, of a kind that reads the states of sessions. learner: a
    policy to use instead of the version's own, such as one without exploration; weights: the weights of each arm (None:
    as stored)."""

    def __init__(
        self, unit: Unit, version: Version, *, learner: Policy | None = None,
        weights: Sequence[beliefs.ArmWeights] | None = None,
    ) -> None:  # fmt: skip
        self.unit, self.policy = unit, cast(Gradient, learner or designs.policy_of(version))
        rows = beliefs.weights(unit, version.id) if weights is None else weights
        self.arms: Ids = np.array([arm for arm, _ in rows], np.int64)
        self.parameters = self.policy.unpack(rows, version.parameters.get("shared", {}))
        self.arm_features = designs.CatalogueFeatures(unit, self.policy.design.arm)

    def select(self, arms: Ids, revision: int) -> tuple[Parameters, Array]:
        """Return the version's parameters for the arms in `arms`, and the features of these arms at a revision of the
        catalogue."""
        return self.parameters_of(arms), self.arm_features.encode(arms, revision)

    def parameters_of(self, arms: Ids) -> Parameters:
        """Return the version's parameters for the arms in `arms`. The parameters are 0 for an arm on which the version
        was not trained."""
        index, is_trained = look_up(self.arms, arms)
        parameters = dict(self.parameters)
        for name in ARM_PARAMETERS:
            values = np.zeros((len(arms), *self.parameters[name].shape[1:]))
            values[is_trained] = self.parameters[name][index[is_trained]]
            parameters[name] = values
        return parameters

    def encode_contexts(self, contexts: Sequence[Mapping[str, Any]]) -> EncodedRows:
        """Return the encoded contexts of n decisions, (n, q), where q is the number of encoded features."""
        return self.policy.design.context.rows(contexts)

    def states(self, context: EncodedRows, history: History, revision: Ids) -> State:
        """Return the states of n decisions. context (n, q): the encoded contexts; history: the earlier slots of each
        visit; revision (n,): the revision of the catalogue at each decision."""
        return self.policy.states(context, history, self._features(history.arm, revision[history.rows]))

    def _features(self, arms: Ids, revision: Ids) -> Array:
        """Return the encoded features of e shown arms, (e, p). revision (e,): the revision at which each arm's features
        are read."""
        if not len(arms):
            return np.zeros((0, len(self.policy.design.arm.names)))
        first_rows, index = distinct(arms, self.arm_features.epochs(revision))
        rows = [self.arm_features.encode(arms[[row]], int(revision[row]))[0] for row in first_rows.tolist()]
        return np.array(rows)[index]

    def scores(self, state: State, arms: Ids, revision: int) -> Array:
        """Return the noiseless scores of m arms in n states, (n, m). arms (m,): their ids, ascending; revision: the
        revision of the arms' features."""
        parameters, features = self.select(arms, revision)
        return self.policy.scores_of(parameters, state, arms=arms, arm_features=features)

    def scores_at(self, state: State, arms: Ids, revisions: Ids) -> Array:
        """Return the noiseless scores of m arms in n states, (n, m). revisions (n,): the revision of the arms' features
        in each state."""
        score = np.empty((len(revisions), len(arms)))
        for rows in rows_by_kind(revisions):
            score[rows] = self.scores(state.take(rows), arms, int(revisions[rows[0]]))
        return score

    def at_requests(
        self, contexts: Sequence[Mapping[str, Any]], sets: Sequence[Ids], revisions: Ids, *, keys: Mapping[int, str]
    ) -> Ids:
        """Return, for each of n decisions, the revision that stands for the features of arms at its request, (n,).
        It is negative if the request states features. sets: the eligible arms of each decision; keys: the key of
        each arm."""
        rows = zip(contexts, sets, revisions.tolist(), strict=True)
        at_request = self.arm_features.at_request
        return np.array([at_request(context, arms, keys, revision) for context, arms, revision in rows], np.int64)

    def draw(self, score: Array, *, size: int, seeds: Words, decisions: Ids, layout: PageLayout | None = None) -> Draw:
        """Draw the slates of n decisions, under page rules if there is a layout. score (n, m): the noiseless scores of
        the arms in each decision."""
        floor, logits = self.policy.exploration, score / self.policy.temperature
        if layout is not None:
            from rlrec.policy.slates import rules

            return rules.draw_rows(logits, layout, floor=floor, seeds=seeds, decisions=decisions, size=size)
        return slate_draws.draw_each(logits, size=size, floor=floor, seeds=seeds, decisions=decisions)

    def log(self, score: Array, slates: Index, *, layout: PageLayout | None = None) -> Draw:
        """Return given slates in the form in which `draw` returns drawn slates, with their propensities. score (n, m):
        the noiseless scores of the arms; slates (n, k): the indices of the arms."""
        floor, logits = self.policy.exploration, score / self.policy.temperature
        if layout is not None:
            from rlrec.policy.slates import rules

            return rules.log_rows(logits, layout, slates, floor=floor)
        return slate_draws.log_each(logits, slates, floor=floor)

    def cases(
        self, state: State, eligible: Ids, revision: Ids, *, sets: Mapping[int, Ids] | None = None
    ) -> Iterator[EligibleGroup]:
        """Yield n decisions in groups with the same eligible set and the same features of arms. Groups are so small
        that their scores fit into memory. eligible (n,): the id of each decision's eligible set; sets: the arms of each
        eligible set, by id, if they were read before."""
        epoch = self.arm_features.epochs(revision)
        first_rows, group = distinct(epoch, eligible)
        order, ends, start = np.argsort(group, kind="stable"), np.cumsum(np.bincount(group)).tolist(), 0
        state = state.take(order) if len(first_rows) > 1 else state
        by_set = self._reduce_sets(eligible[first_rows], epoch[first_rows], revision[first_rows], sets)
        for (arms, parameters), end in zip(by_set, ends, strict=True):
            while start < end:
                portion_end = min(start + max(1, CELLS // len(arms)), end)
                states = restrict_memory(state.slice_rows(start, portion_end), arms)
                yield EligibleGroup(order[start:portion_end], arms, score_states(parameters, states))
                start = portion_end

    def request_cases(
        self, state: State, eligible: Ids, revision: Ids, contexts: Sequence[Mapping[str, Any]], context_number: Ids, *,
        sets: Mapping[int, Ids], keys: Mapping[int, str],
    ) -> Iterator[EligibleGroup]:  # fmt: skip
        """Yield decisions in groups, as `cases` does, if their requests may state features of arms. contexts: the
        distinct contexts; context_number (n,): the index of each decision's context; keys: the key of each arm, by
        id."""
        has_features = np.array([bool(by_arm(context, FEATURES)) for context in contexts], np.bool_)[context_number]
        if not has_features.any():
            yield from self.cases(state, eligible, revision, sets=sets)
            return
        stating_rows = np.flatnonzero(has_features)
        for rows in (
            np.flatnonzero(~has_features),
            *np.split(stating_rows, range(PORTION, len(stating_rows), PORTION)),
        ):
            row_contexts = [contexts[number] for number in context_number[rows].tolist()]
            arms = [sets[key] for key in eligible[rows].tolist()]
            revisions = self.at_requests(row_contexts, arms, revision[rows], keys=keys)
            for group in self.cases(state.take(rows), eligible[rows], revisions, sets=sets):
                yield EligibleGroup(rows[group.rows], group.arms, group.score)

    def _reduce_sets(
        self, eligible: Ids, epoch: Ids, revision: Ids, arms_by_set: Mapping[int, Ids] | None
    ) -> Iterator[tuple[Ids, tuple[Array, Array, Array]]]:
        """Yield the arms of each eligible set, with the model's weights, biases and memory weights of these arms.
        epoch: the number of the catalogue's state for each set, ascending; arms_by_set: the arms of each set, None to
        read them."""
        for rows in np.split(np.arange(len(eligible)), np.flatnonzero(np.diff(epoch)) + 1):
            for start in range(0, len(rows), SETS):
                portion = rows[start : start + SETS]
                set_ids = eligible[portion].tolist()
                arms_of = contents.eligible_arms(self.unit, set(set_ids)) if arms_by_set is None else arms_by_set
                sets = [np.array(arms_of[key], np.int64) for key in set_ids]
                all_arms = np.unique(np.concatenate(sets))
                weights, bias, memory = self.policy.arm_weights(*self.select(all_arms, int(revision[portion[0]])))
                for arms in sets:
                    arm_index = np.searchsorted(all_arms, arms)
                    yield arms, (weights[arm_index], bias[arm_index], memory[arm_index])
