"""This module computes the propensities and draws of logged decisions again, from the belief that each decision names,
and compares them with the stored values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec.app.audit.integrity.findings import UNREADABLE, Findings
from rlrec.app.distributions import designs, past_beliefs
from rlrec.app.distributions.exact import EligibleDistribution, VersionDistribution
from rlrec.app.distributions.page_layouts import page_codes
from rlrec.app.distributions.trained import TrainedModel
from rlrec.arrays import Array, Flags, Ids, Index, Words, offsets, piece_rows, rows_by_kind, run_starts, take
from rlrec.policy.beliefs.base import ALL_FIELDS
from rlrec.policy.contexts.features import value_of
from rlrec.policy.contexts.statements import GROUPS, PAGE, PAGE_FIELDS
from rlrec.policy.gradients.history import N_REMEMBERED, History, match_steps, unpack
from rlrec.policy.kinds.two_stage import ranking_seeds
from rlrec.policy.scores.scores import Scores
from rlrec.policy.slates import slate, slate_draws
from rlrec.policy.slates.interleaving import TeamDraftSampler
from rlrec.policy.slates.page_layout import PageLayout
from rlrec.records import Record, Version
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import candidates, contents
from rlrec.store.log.reader import Batch
from rlrec.store.policies import arms, policies
from rlrec.store.upkeep import audit

CHECK, DRAWS = "propensities", "draws"
ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE = (
    1e-9,
    1e-6,
)  # tolerances: a propensity computed another way may differ by either
MAX_DERIVED = 10_000  # decisions that are derived again by default
PORTION = 50_000  # decisions of a sample that are held at once
STATES_AT_A_TIME = 5_000  # decisions whose histories are held at once


class StoredSlates(Record, kw_only=False, eq=False):
    """This record holds n decisions with all slots of their slates. slots: the columns of the slots, in order of
    decision and position; first_slots (n,): the index of the first slot of each decision."""

    slots: Columns
    first_slots: Index

    def __len__(self) -> int:
        return len(self.first_slots)

    def per_decision(self, name: str) -> npt.NDArray[Any]:
        return self.slots[name][self.first_slots]

    def fields(self, rows: Index, *names: str) -> Iterator[tuple[Any, ...]]:
        """Yield a tuple for each of the given decisions: its index, then its value in each of the named columns.

        rows: the indices of the decisions."""
        return zip(rows.tolist(), *(self.slots[name][self.first_slots[rows]].tolist() for name in names), strict=True)

    def per_slot(self, name: str, slates: Index, size: int) -> npt.NDArray[Any]:
        """Return the values of a column in the slots of the given slates, (slates, size).

        slates: the indices of slates that all have this size."""
        return self.slots[name][self.first_slots[slates][:, None] + np.arange(size)]

    def with_arms(self, slates: Index, size: int, arms: Ids) -> Index:
        """Return the indices of the given slates whose arms are all among the given arms.

        slates: the indices of slates that all have this size."""
        return slates[np.isin(self.per_slot("arm_id", slates, size), arms).all(axis=1)]

    def take(self, rows: Flags | Index) -> StoredSlates:
        size = self.per_decision("size")[rows]
        return StoredSlates(take(self.slots, piece_rows(self.first_slots[rows], size)), offsets(size)[:-1])


def complete_slates(slots: Columns) -> StoredSlates:
    """Return the slates that have all their slots. The check `dangling` reports slates with missing slots."""
    ids = slots["decision_id"]
    first_slots = run_starts(ids)
    lengths = np.diff(np.r_[first_slots, len(ids)])
    is_full = (lengths == slots["size"][first_slots]) & (slots["position"][first_slots + lengths - 1] == lengths)
    return StoredSlates(slots, first_slots).take(is_full)


class References:
    """This cache holds the contexts and eligible sets that decisions refer to. field_names: the context fields that the
    policy reads."""

    def __init__(self, unit: Unit, findings: Findings, *, field_names: Sequence[str]) -> None:
        self.unit, self.findings, self.field_names = unit, findings, field_names
        self.keys: dict[int, str] = {}  # of the arms in the eligible sets that were read
        self._eligible_sets: dict[int, Ids | None] = {}
        self._n_arms = 0
        self._contexts: dict[int, dict[str, object]] = {}

    def read_contexts(self, context_ids: Ids) -> None:
        """Read the contexts with these ids, so that `context_of` can return them. If a context cannot be read, a
        finding is added, and the context counts as empty."""
        for key, body in contents.context_bodies(self.unit, set(context_ids.tolist())).items():
            has_page = PAGE in body or GROUPS in body  # whichever fields the policy reads
            if not self.field_names and not has_page:
                continue
            try:
                context = json.loads(body)
                names = context if self.field_names == ALL_FIELDS else self.field_names
                self._contexts[key] = {name: value_of(context, name) for name in names}
                # otherwise the context holds them already
                if self.field_names != ALL_FIELDS and not context.keys().isdisjoint((PAGE, GROUPS)):
                    stated_fields = {name: value_of(context, name) for name in PAGE_FIELDS}
                    self._contexts[key] |= {name: value for name, value in stated_fields.items() if value is not None}
            except UNREADABLE:
                self.findings.error(CHECK, f"context {key}", "it cannot be read")

    def context_of(self, key: int) -> Mapping[str, object]:
        return self._contexts.get(key, {})

    def eligible_arms(self, key: int) -> Ids | None:
        """Return the arms of an eligible set, or None if the set cannot be read (the check `dangling` reports such a
        set).

        key: the id of the set."""
        if key not in self._eligible_sets:
            if self._n_arms > contents.MAX_ARMS:
                self._eligible_sets.clear()
                self._n_arms = 0
            try:
                ids = contents.eligible_arms(self.unit, [key])[key]
                new_arms = set(ids).difference(self.keys)
                self.keys |= arms.keys(self.unit, new_arms) if new_arms else {}
                self._eligible_sets[key] = np.array(ids, np.int64) if new_arms <= self.keys.keys() else None
                self._n_arms += len(ids)
            except UNREADABLE:
                self._eligible_sets[key] = None
        return self._eligible_sets[key]


class SlateGroup:
    """This object holds n stored slates of one length. An array with a value for each slate has the shape (n,), and an
    array with a value for each slot has the shape (n, size)."""

    def __init__(self, slates: StoredSlates, rows: Index, size: int) -> None:
        self.ids: Ids = slates.slots["decision_id"][slates.first_slots[rows]]
        self.seeds = slates.slots["seed"][slates.first_slots[rows]].view(np.uint64)
        self.log_propensity: Array = slates.slots["log_propensity"][slates.first_slots[rows]]
        self.arms: Ids = slates.per_slot("arm_id", rows, size)
        self.propensity: Array = slates.per_slot("propensity", rows, size)
        self.marginal: Array = slates.per_slot("marginal", rows, size)
        self.min_propensity: Array = slates.per_slot("min_propensity", rows, size)
        self.score: Array = slates.per_slot("score", rows, size)

    def compare(self, derive_slates: Callable[[], DerivedSlates], *, source: str, findings: Findings) -> int:
        """Derive the slates again, and add a finding for every stored slate that differs. Return how many slates could
        be derived.

        derive_slates: a function that derives the slates; source: words for messages that say what the slates were
        derived from."""
        if not len(self.ids):
            return 0
        try:
            with np.errstate(all="ignore"):
                derived_slates = derive_slates()
        except UNREADABLE as error:
            findings.decision_error(CHECK, self.ids[0], f"it cannot be derived again: {error}")
            return 0
        for row in np.flatnonzero(derived_slates.is_redrawn).tolist():
            findings.decision_error(DRAWS, self.ids[row], f"its seed draws another slate from {source}")
        details: dict[int, list[str]] = {}
        for name in ("propensity", "marginal", "min_propensity", "score"):
            values, new_values = getattr(self, name), getattr(derived_slates, name)
            # a marginal without a closed form and an infinite score are stored as NULL
            is_wrong = ~is_close(values, new_values) & ~(np.isnan(values) & (np.isnan(new_values) | (new_values <= 0)))
            for row, column in np.argwhere(is_wrong).tolist():
                figures = f"{values[row, column]:.12g}, not {new_values[row, column]:.12g}"
                details.setdefault(row, []).append(f"{name} at position {column + 1} is {figures}")
        log_joint = np.log(np.maximum(derived_slates.propensity, slate_draws.MIN_PROBABILITY)).sum(axis=1)
        for row in np.flatnonzero(~is_close(np.exp(self.log_propensity), np.exp(log_joint))).tolist():
            figures = f"{self.log_propensity[row]:.12g}, not {log_joint[row]:.12g}"
            details.setdefault(row, []).append(f"log_propensity is {figures}")
        for row, differences in sorted(details.items()):
            findings.decision_error(CHECK, self.ids[row], f"from {source}: {'; '.join(differences)}")
        return len(self.ids)


class DerivedSlates(Record, kw_only=False, eq=False):
    """This record has the propensities and scores of the n slates in a `SlateGroup`, derived again. Each of these
    arrays has the shape (n, size). `score` is NaN where a slot has no score. `is_redrawn` (n,) tells whether the seed
    of the slate draws another slate than the stored one. For such a slate, smallest propensities that cannot be derived
    are copied from the stored slate."""

    is_redrawn: Flags
    propensity: Array
    marginal: Array
    min_propensity: Array
    score: Array


def is_close(stored_values: Array, derived_values: Array) -> Flags:
    """Tell for each stored probability whether it equals the derived probability within the precision of doubles."""
    distance = np.abs(stored_values - derived_values)
    return (distance <= ABSOLUTE_TOLERANCE) | (distance <= RELATIVE_TOLERANCE * np.abs(derived_values))


def check_joint(batch: Batch, *, findings: Findings) -> None:
    """Check the stored propensities of slates against each other, for slates of any log. Add a finding for every slate
    whose propensity is not the product of the propensities of its slots, and for every slot whose propensity is below
    the smallest propensity stored for its position."""
    slots = batch.slots
    ids = slots["decision_id"]
    first_slots = run_starts(ids)
    log_product = np.add.reduceat(np.log(slots["propensity"]), first_slots)
    stored_log = slots["log_propensity"][first_slots]
    with np.errstate(invalid="ignore"):
        is_wrong = np.abs(log_product - stored_log) > ABSOLUTE_TOLERANCE * (1 + np.abs(log_product))
        least_propensity = slots["min_propensity"] * (1 - RELATIVE_TOLERANCE) - ABSOLUTE_TOLERANCE
        is_below = slots["propensity"] < least_propensity
    for row in np.flatnonzero(is_wrong).tolist():
        detail = f"log_propensity is {stored_log[row]:.12g}, its slots' propensities give {log_product[row]:.12g}"
        findings.decision_error(CHECK, ids[first_slots[row]], detail)
    for row in np.flatnonzero(is_below).tolist():
        detail = f"position {slots['position'][row]}: its propensity is below the smallest one there"
        findings.decision_error(CHECK, ids[row], detail)


def check(unit: Unit, decision_ids: Ids, *, findings: Findings) -> int:
    """Derive the slates of these decisions again, and compare the derived slates with the stored slates. Return how
    many slates could be derived."""
    n_derived = 0
    for start in range(0, len(decision_ids), PORTION):
        slates = complete_slates(audit.decision_slots(unit, decision_ids[start : start + PORTION].tolist()))
        versions = policies.by_id(unit, set(slates.per_decision("version_id").tolist()))
        for version_id in sorted(versions):
            version_slates = slates.take(slates.per_decision("version_id") == version_id)
            try:
                n_derived += VersionSlates(unit, versions[version_id], findings).check(version_slates)
            except UNREADABLE as error:
                subject = f"policy {versions[version_id].policy.name}"
                findings.error(CHECK, subject, f"version {versions[version_id].number}: {error}")
    return n_derived


class VersionSlates:
    """A VersionSlates checks the decisions that one version drew."""

    def __init__(self, unit: Unit, version: Version, findings: Findings) -> None:
        self.unit, self.version, self.findings = unit, version, findings
        self.references = References(unit, findings, field_names=designs.policy_of(version).fields_read)

    def check(self, slates: StoredSlates) -> int:
        order = np.argsort(slates.per_decision("belief_seq"), kind="stable")
        seq, ordinal = (slates.per_decision(name)[order] for name in ("belief_seq", "belief_ordinal"))
        self.references.read_contexts(slates.per_decision("context_id"))
        n_derived = 0
        for rows, distribution in past_beliefs.moments(self.unit, self.version, seq, ordinal):
            end = int(rows[-1]) + 1
            self.unit.progress("slates drawn again", end, end / len(order))
            if distribution.trained_model is None:
                n_derived += self._check_moment(slates, order[rows], distribution)
                continue
            for start in range(0, len(rows), STATES_AT_A_TIME):
                portion = slates.take(order[rows[start : start + STATES_AT_A_TIME]])
                n_derived += self._check_states(portion, distribution, distribution.trained_model)
        return n_derived

    def _check_moment(self, slates: StoredSlates, rows: Index, distribution: VersionDistribution) -> int:
        """Check the slates that were drawn from one belief, and return how many slates could be derived. Slates that
        share a distribution are checked together.

        rows: the indices of the slates; distribution: the version with this belief."""
        groups: dict[tuple[int, int, str, int], list[int]] = {}
        fields = slates.fields(rows, "eligible_id", "catalogue_revision", "context_id", "size")
        for row, set_id, revision, context, size in fields:
            reading, epoch = distribution.reading(self.references.context_of(context)), distribution.epoch(revision)
            groups.setdefault((set_id, epoch, reading, size), []).append(row)
        if distribution.generator is not None:
            self._check_lists(slates, rows, distribution)
        n_derived, source = 0, f"the belief of {self.version.reference}"
        for (set_id, _, _, size), members in groups.items():
            if (arms := self.references.eligible_arms(set_id)) is None:
                continue
            revision = int(slates.per_decision("catalogue_revision")[members[0]])
            context = self.references.context_of(int(slates.per_decision("context_id")[members[0]]))
            make_case = partial(distribution.case, set_id, arms, context, keys=self.references.keys, revision=revision)
            group = SlateGroup(slates, slates.with_arms(np.array(members), size, arms), size)
            if distribution.generator is not None:
                group.seeds = ranking_seeds(group.seeds)
            n_derived += group.compare(partial(self._derive, group, make_case), source=source, findings=self.findings)
        return n_derived

    def _check_lists(self, slates: StoredSlates, rows: Index, distribution: VersionDistribution) -> None:
        """Derive the lists of candidates from the belief of their decisions. Add a finding for every stored list that
        differs.

        rows: the indices of the slates; distribution: the version with this belief."""
        lists = candidates.find_lists(self.unit, slates.per_decision("decision_id")[rows].tolist())
        groups: dict[tuple[int, int, str], list[int]] = {}
        fields = slates.fields(rows, "decision_id", "eligible_id", "catalogue_revision", "context_id")
        for row, decision, set_id, revision, context in fields:
            candidate_list, arms = lists.get(decision), self.references.eligible_arms(set_id)
            if candidate_list is None or candidate_list.catalogue_id is None:
                self.findings.decision_error(CHECK, decision, "its list of candidates is not stored")
            elif arms is not None and sorted(candidate_list.arms) != arms.tolist():
                self.findings.decision_error(CHECK, decision, "its candidates are not its eligible arms")
            else:
                reading = distribution.reading(self.references.context_of(context))
                groups.setdefault((candidate_list.catalogue_id, revision, reading), []).append(row)
        for (catalogue, revision, _), group in groups.items():
            if (arms := self.references.eligible_arms(catalogue)) is None:
                continue
            ids, seeds, contexts = (slates.per_decision(name)[group] for name in ("decision_id", "seed", "context_id"))
            context = self.references.context_of(int(contexts[0]))
            try:
                with np.errstate(all="ignore"):
                    keys = self.references.keys
                    case = distribution.candidates(catalogue, arms, context, keys=keys, revision=revision)
                    group_lists = [lists[key] for key in ids.tolist()]
                    _compare_lists(case, group_lists, seeds.view(np.uint64), ids, self.findings)
            except UNREADABLE as error:
                self.findings.decision_error(CHECK, ids[0], f"its candidates cannot be derived again: {error}")

    def _derive(self, group: SlateGroup, make_case: Callable[[], EligibleDistribution]) -> DerivedSlates:
        """Return the slates of a group, drawn and derived again. All slates of the group share a distribution. If two
        rankers filled a slate in turn, the stored turns are used.

        make_case: a function that returns the distribution."""
        case, size = make_case(), group.arms.shape[1]
        arm_indices = np.searchsorted(case.arms, group.arms)
        draw = case.draw(size, seeds=group.seeds, decisions=group.ids)
        is_redrawn: Flags = (draw.slates != arm_indices).any(axis=1)
        propensity, marginal, minimum = draw.propensity, draw.marginal, draw.minimum
        if case.rankers is not None:
            teams = self._stored_teams(group, size)
            is_redrawn |= (np.asarray(draw.teams) != teams).any(axis=1)
            propensity = TeamDraftSampler(case.rankers, size).conditionals(arm_indices, teams)
        else:
            for rows, scores in _group_by_scores(case.scores, group, np.flatnonzero(is_redrawn)):
                propensity[rows] = slate.conditionals(scores, arm_indices[rows], floor=case.floor)
                marginal_table = slate.marginals(scores, size=size, floor=case.floor)
                marginal[rows] = marginal_table[np.arange(size), arm_indices[rows]]
        if size > 1 or case.scores.samples or case.rankers is not None:
            minimum[is_redrawn] = group.min_propensity[is_redrawn]
        score = case.noiseless_scores(arm_indices).astype(np.float64)
        return DerivedSlates(is_redrawn, propensity, marginal, minimum, score)

    def _stored_teams(self, group: SlateGroup, size: int) -> Index:
        """Return which of two rankers picked each slot, 0 or 1, (n, size). If the stored teams (the letter of a ranker
        for each slot) cannot be read, the result for the slate is 0, and a finding is added."""
        by_decision = candidates.find_teams(self.unit, group.ids.tolist())
        teams = np.zeros((len(group.ids), size), np.intp)
        for row, key in enumerate(group.ids.tolist()):
            text = by_decision.get(key, "")
            if len(text) == size and set(text) <= set(candidates.TEAMS):
                teams[row] = [candidates.TEAMS.index(letter) for letter in text]
            else:
                self.findings.decision_error(CHECK, key, "it does not say which ranker picked each slot")
        return teams

    def _check_states(self, slates: StoredSlates, distribution: VersionDistribution, model: TrainedModel) -> int:
        """Check the slates of a policy that reads the history of the visit. The state in which a slate was drawn is
        computed from the history stored with the decision. Return how many slates could be derived."""
        eligible_sets = map(self.references.eligible_arms, slates.per_decision("eligible_id").tolist())
        slates = slates.take(np.array([arms is not None and len(arms) > 0 for arms in eligible_sets], np.bool_))
        is_possible, histories = self._read_histories(slates)
        slates = slates.take(is_possible)
        if not len(slates):
            return 0
        n_derived, revision, size = 0, slates.per_decision("catalogue_revision"), slates.per_decision("size")
        source = f"the weights of {self.version.reference} and the history"
        with np.errstate(all="ignore"):
            ids, context_index = np.unique(slates.per_decision("context_id"), return_inverse=True)
            contexts = [self.references.context_of(key) for key in ids.tolist()]
            codes = context_index.reshape(-1)
            states = model.states(model.encode_contexts(contexts)[codes], histories, revision)
            set_ids, keys = slates.per_decision("eligible_id"), self.references.keys
            arms_or_none = {key: self.references.eligible_arms(key) for key in np.unique(set_ids).tolist()}
            arms_of_set = {key: arms for key, arms in arms_or_none.items() if arms is not None}
            page = page_codes(contexts)[codes]
            for case in model.request_cases(states, set_ids, revision, contexts, codes, sets=arms_of_set, keys=keys):
                for members in rows_by_kind(size[case.rows], page[case.rows]):
                    length, first_row = int(size[case.rows[members[0]]]), int(case.rows[members[0]])
                    rows = slates.with_arms(case.rows[members], length, case.arms)
                    group, score = SlateGroup(slates, rows, length), case.score[np.isin(case.rows, rows)]
                    context, described_at = contexts[codes[first_row]], int(revision[first_row])
                    layout = distribution.layout(
                        int(set_ids[first_row]), case.arms, context, keys=keys, revision=described_at
                    )
                    derive_slates = partial(_derive_states, model, group, score, case.arms, layout)
                    n_derived += group.compare(derive_slates, source=source, findings=self.findings)
        return n_derived

    def _read_histories(self, slates: StoredSlates) -> tuple[Flags, History]:
        """Return two values: whether each slate has a stored history that is possible, (n,), and these histories. Add a
        finding for every other slate."""
        columns = audit.visit_histories(self.unit, slates.per_decision("decision_id").tolist())
        is_unpacked = columns["recorded"] & match_steps(columns["history"].tolist(), columns["step"])
        histories = unpack(columns["history"][is_unpacked].tolist(), columns["step"][is_unpacked])
        is_readable = is_unpacked.copy()
        is_readable[is_unpacked] = is_possible = _possible_histories(histories)
        reasons = np.select([~columns["recorded"], ~is_unpacked], ["is missing", "cannot be unpacked"], "cannot be")
        for row in np.flatnonzero(~is_readable).tolist():
            key, reason = int(columns["decision_id"][row]), reasons[row]
            self.findings.decision_error(CHECK, key, f"it cannot be derived again: what it knew of its visit {reason}")
        return is_readable, histories.take(is_possible)


def _derive_states(
    model: TrainedModel, group: SlateGroup, score: Array, arms: Ids, layout: PageLayout | None
) -> DerivedSlates:
    """Return the slates of a group, drawn and derived again. All slates of the group have the same eligible set and the
    same page rules (such as an arm pinned to a position).

    score: the scores from which each of n slates is drawn, (n, m); arms: the eligible arms, ascending, (m,); layout:
    the page rules, or None."""
    arm_indices = np.searchsorted(arms, group.arms)
    draw = model.draw(score, size=arm_indices.shape[1], seeds=group.seeds, decisions=group.ids, layout=layout)
    figures = model.log(score, arm_indices, layout=layout)
    shown_scores = np.take_along_axis(score, arm_indices, axis=1)
    is_redrawn = (draw.slates != arm_indices).any(axis=1)
    return DerivedSlates(is_redrawn, figures.propensity, figures.marginal, figures.minimum, shown_scores)


def _possible_histories(past: History) -> Flags:
    """Return for each history whether it can be the history of a visit, (n,)."""
    is_wrong = (past.ago < 1) | (past.ago > past.step[past.rows]) | (past.arm < 1) | ~np.isfinite(past.slot_reward)
    n_entries = np.diff(past.start)
    return (
        (np.bincount(past.rows, weights=is_wrong, minlength=len(past)) == 0)
        & (np.minimum(past.n_shown, N_REMEMBERED) == n_entries)
        & (past.gap_s >= 0) & np.isfinite(past.reward)
    )  # fmt: skip


def _group_by_scores(scores: Scores, group: SlateGroup, rows: Index) -> Iterator[tuple[Index, Scores]]:
    """Yield groups of rows that were drawn from the same scores, each with these scores. If the scores are sampled for
    each decision, each row is a group; else all rows are one group."""
    if scores.samples:
        for row in rows.tolist():
            yield np.array([row]), scores.decision_scores(int(group.seeds[row]), int(group.ids[row]))
    elif rows.size:
        yield rows, scores


def _compare_lists(
    case: EligibleDistribution, lists: list[candidates.CandidateList], seeds: Words, decisions: Ids, findings: Findings
) -> None:
    """Draw and derive lists of candidates again, and add a finding for every stored list that differs. All lists share
    one distribution.

    case: the distribution; seeds, decisions: the seed and the id of each list's decision."""
    stored_lists = np.array([candidate_list.arms for candidate_list in lists])
    draws = case.slate_sampler(stored_lists.shape[1]).draw(seeds=seeds, decisions=decisions, with_marginals=False)
    chances = case.list_conditionals(stored_lists, seeds=seeds, decisions=decisions)
    for candidate_list, new_arms, conditionals in zip(lists, case.arms[draws.slates].tolist(), chances, strict=True):
        decision, propensity = candidate_list.decision_id, np.array(candidate_list.propensities)
        if candidate_list.arms != new_arms:
            findings.decision_error(DRAWS, decision, "its seed draws another list of candidates")
        derived_propensity = np.maximum(conditionals, slate_draws.MIN_PROBABILITY)
        for row in np.flatnonzero(~is_close(propensity, derived_propensity)).tolist():
            detail = f"candidate {row + 1} has propensity {propensity[row]:.12g}, not {derived_propensity[row]:.12g}"
            findings.decision_error(CHECK, decision, detail)
        log_propensity = np.log(derived_propensity).sum()
        if not np.isclose(candidate_list.log_propensity, log_propensity, rtol=1e-6, atol=1e-9):
            figures = f"{candidate_list.log_propensity:.12g}, not {log_propensity:.12g}"
            detail = f"the log propensity of its candidates is {figures}"
            findings.decision_error(CHECK, decision, detail)
