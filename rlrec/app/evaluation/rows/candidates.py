"""Logs of two-stage policies: what lists of candidates mean for the weight of a target.

The eligible set of such a decision is its list. A target with the same first stage is weighed given the list; for a
target with another first stage, the weight includes the probability of the list; a target without a first stage is
evaluated on the lists that the logger drew."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np

from rlrec.app.distributions import designs
from rlrec.app.distributions.exact import VersionDistribution
from rlrec.app.evaluation.rows.contexts import ContextTable
from rlrec.app.log import lineage
from rlrec.arrays import Array, Flags, Ids, distinct, rows_by_kind
from rlrec.records import Version
from rlrec.store.database.bulk import Columns
from rlrec.store.log.candidates import CandidateList

if TYPE_CHECKING:
    from rlrec.policy.kinds.two_stage import TwoStage

MAX_DERIVED = 100  # distributions of first stages from which inclusion probabilities are computed
CELLS = 50_000_000  # most arms times squared candidates in these; the first one is computed whatever its size


@dataclass(frozen=True)
class Inclusion:
    """The smallest probability with which an arm that was shown became a candidate, and the number of decisions that it
    was computed for. Batches add up."""

    smallest: float = 1.0
    decisions: int = 0

    def __add__(self, other: Inclusion) -> Inclusion:
        return Inclusion(min(self.smallest, other.smallest), self.decisions + other.decisions)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoggedLists:
    """The lists of candidates of a batch, by decision.

    first_stages: a name of the first stage of each version; catalogues: the arms of each; inclusion: of the arms that
    were shown."""

    lists: Mapping[int, CandidateList] = field(default_factory=dict)
    first_stages: Mapping[int, Hashable] = field(default_factory=dict)
    catalogues: Mapping[int, Ids] = field(default_factory=dict)
    inclusion: Inclusion = field(default_factory=Inclusion)

    def has_list(self, slots: Columns) -> Flags:
        """The rows whose decision has a list, (n,)."""
        return np.isin(slots["decision_id"], list(self.lists)) if self.lists else np.zeros(len(slots["at"]), np.bool_)

    def weighable(self, slots: Columns) -> Flags:
        """The rows whose decision has a list from a known catalogue, so that a first stage can give its probability,
        (n,)."""
        decisions = [key for key, candidates in self.lists.items() if candidates.catalogue_id is not None]
        return np.isin(slots["decision_id"], decisions)

    def catalogues_of(self, decision_id: Ids, eligible_id: Ids) -> Ids:
        """The eligible sets of decisions, (n,); where candidates were drawn, the catalogues that they were drawn
        from."""
        pairs = zip(map(self.lists.get, decision_id.tolist()), eligible_id.tolist(), strict=True)
        return np.array([set_id if row is None else row.catalogue_id or set_id for row, set_id in pairs])

    def log_ratio(
        self, serving: VersionDistribution, slots: Columns, contexts: ContextTable, *, keys: Mapping[int, str]
    ) -> Array | None:
        """The log of the target's probability of each row's list over the logger's, (n,): 0 where both have the same
        first stage, or there is no list. None where it is 0 everywhere."""
        generator = serving.generator
        if generator is None or not self.lists:
            return None
        name = first_stage(serving.version)
        first, decision = distinct(slots["decision_id"])
        ids, versions = (slots[column][first].tolist() for column in ("decision_id", "version_id"))
        pairs = enumerate(zip(ids, versions, strict=True))
        rows = [row for row, (key, version) in pairs if key in self.lists and self.first_stages[version] != name]
        if not rows:
            return None
        reweighed, lists = first[rows], [self.lists[ids[row]] for row in rows]
        codes, values = contexts.reading(generator.policy.reads)
        revision, code = slots["catalogue_revision"][reweighed], codes[slots["context"][reweighed]]
        catalogue, length = np.array([(row.catalogue_id or -1, len(row.arms)) for row in lists]).T
        epoch = np.array(list(map(generator.epoch, revision.tolist())))
        # decisions that share a distribution of lists, and the length of each one's list
        ratio = np.zeros(len(first))
        for case in rows_by_kind(catalogue, length, epoch, code):
            case_lists, catalogue_id = [lists[row] for row in case.tolist()], int(catalogue[case[0]])
            if catalogue_id < 0 or length[case[0]] != serving.learner.n_candidates:  # the target draws no such list
                ratio[np.array(rows)[case]] = -np.inf
                continue
            distribution = serving.candidates(
                catalogue_id, self.catalogues[catalogue_id], values[int(code[case[0]])], keys=keys,
                revision=int(revision[case[0]]),
            )  # fmt: skip
            arms, seeds = np.array([row.arms for row in case_lists]), np.zeros(len(case), np.uint64)
            numbers = reweighed[case]
            if distribution.scores.samples:
                numbers = slots["decision_digest"][numbers]
            with np.errstate(divide="ignore"):
                chance = distribution.list_conditionals(arms, seeds=seeds, decisions=numbers)
                log_chance = np.log(chance).sum(axis=1)
            ratio[np.array(rows)[case]] = log_chance - np.array([row.log_propensity for row in case_lists])
        return ratio[decision]


def first_stage(version: Version) -> Hashable:
    """A name of the first stage of a version, None without one. Versions with equal names draw lists from the same
    distribution at any moment."""
    policy = designs.policy_of(version)
    if not policy.stages:
        return None
    if lineage.depends_on_belief(policy.stages[0]):
        return version.id
    return json.dumps([policy.n_candidates, *cast("TwoStage", policy).definitions[0]], sort_keys=True)


def smallest_inclusion(
    lists: LoggedLists, slots: Columns, moments: Iterator[tuple[Ids, VersionDistribution]], contexts: ContextTable, *,
    keys: Mapping[int, str], budget: int,
) -> Inclusion:  # fmt: skip
    """The smallest probability with which an arm that was shown became a candidate, from at most `budget`
    distributions.

    moments: rows, with the distribution of the version at the moment when they were drawn."""
    total, cells = Inclusion(), 0
    for rows, served in moments:
        if served.generator is None:
            continue
        codes, values = contexts.reading(served.generator.policy.reads)
        candidates = [lists.lists.get(key) for key in slots["decision_id"][rows].tolist()]
        catalogue = np.array([-1 if candidates is None else candidates.catalogue_id or -1 for candidates in candidates])
        revision = slots["catalogue_revision"][rows]
        code = codes[slots["context"][rows]]
        for case in rows_by_kind(catalogue, revision, code):
            catalogue_id = int(catalogue[case[0]])
            if (arms := lists.catalogues.get(catalogue_id)) is None:
                continue
            size = served.learner.n_candidates
            cells += len(arms) * size * size
            if budget <= 0 or (total.decisions and cells > CELLS):
                return total
            budget -= 1
            distribution = served.candidates(
                catalogue_id, arms, values[int(code[case[0]])], keys=keys, revision=int(revision[case[0]])
            )  # fmt: skip
            group = rows[case]
            shown = np.searchsorted(arms, slots["arm_id"][group])
            included = distribution.pages(size).marginals.sum(axis=0)[shown]
            if not np.isnan(included).any():  # correlated scores have no closed form
                decisions = len(np.unique(slots["decision_id"][group]))
                total += Inclusion(float(min(1.0, included.min())), decisions)
    return total
