"""This module computes the logger's probability of showing each logged arm at every position of the slate. The
probabilities are computed again from the belief that the logger used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from rlrec.app.distributions import past_beliefs
from rlrec.app.distributions.exact import VersionDistribution
from rlrec.app.evaluation.rows.contexts import ContextTable
from rlrec.app.evaluation.rows.log_rows import arms_of_sets
from rlrec.app.evaluation.rows.loggers import Loggers
from rlrec.app.evaluation.targets.cases import CASE_OVERHEAD
from rlrec.arrays import Array, Flags, Ids, distinct, rows_by_kind, run_starts
from rlrec.ope.estimators import pseudo_inverse
from rlrec.policy import is_contextual
from rlrec.policy.scores.floors import Floor
from rlrec.policy.scores.scores import Scores
from rlrec.policy.slates import slate
from rlrec.records import Version
from rlrec.store.database.bulk import Columns

UNIFORM, UNKNOWN = -2, -1  # values in the column PAIRS
CASES_AT_A_TIME = 200  # cases whose marginals are computed together
MAX_LISTED_CASES = 1_000  # most cases of a batch whose slates are listed
MAX_CELLS = 1_000_000  # arms of contexts that are scored at a time
MOST_PROBABILITIES = 8_000_000  # that a transaction caches, overhead included
DRAW_COLUMNS = ("version_id", "belief_seq", "belief_ordinal", "eligible_id", "context_id")
# the cases that `cases` leaves out, or that have no closed form, in words
WITHOUT_MARGINALS = (
    "imports, two rankers, samples of correlated scores, kinds that read the session, and positions below the first "
    "under rules of the page such as a cap"
)
_AGREEING = 1e-9  # relative difference below which probabilities count as equal


class LoggerCase(NamedTuple):
    """This record has the rows of a batch whose slates were drawn from one distribution.

    rows (r,): the index of each row in the batch; arms (m,): the id of each arm, ascending; size: the length of a
    slate; scores, floor: the scores and the floor of the logger, where the scores are None if the marginals were
    cached or if only the uniform draw of the logger is known; marginals (size, m): the probability of each arm at
    each position, (0, m) until it is computed; draw: numbers that identify the distribution within this transaction."""

    rows: Ids
    arms: Ids
    size: int
    scores: Scores | None
    floor: Floor
    marginals: Array
    draw: tuple[int, ...] = ()


class LoggerMarginals:
    """A LoggerMarginals object computes the marginals of loggers, once per batch for each belief, eligible set and
    context from which loggers drew. Up to MOST_PROBABILITIES probabilities are cached for all passes of a transaction.

    greedy: whether to compute what the same beliefs would have shown without exploration."""

    def __init__(self, loggers: Loggers, *, greedy: bool = False) -> None:
        self.loggers, self.greedy = loggers, greedy

    def tabulate(self, slots: Columns, contexts: ContextTable, eligible: Mapping[int, Ids], *, positions: int) -> Array:
        """Return the logger's probability of showing the row's arm at each position of the slate, (n, positions). The
        value is 0 below the end of the slate, and NaN if the marginals cannot be derived. At the position where the arm
        was shown, the value is the logged marginal, if there is one.

        slots: the slots of a batch, with the column `context`; contexts: a table with the fields that
        `Loggers.reads` names; eligible: the arms of each eligible set, by id."""
        table = np.full((len(slots["arm_id"]), positions), np.nan)
        for case in self.cases(slots, contexts, eligible, positions=positions):
            size, shown_arms = len(case.marginals), slots["arm_id"][case.rows]
            index = np.minimum(np.searchsorted(case.arms, shown_arms), len(case.arms) - 1)
            table[case.rows, :size] = case.marginals[:, index].T
            table[case.rows, size:] = 0.0
        is_unknown = np.isnan(slots["marginal"]) & (slots["position"] == 1)
        marginal = np.where(is_unknown, slots["propensity"], slots["marginal"])
        rows = np.flatnonzero((slots["position"] <= positions) & ~np.isnan(marginal))
        table[rows, slots["position"][rows] - 1] = marginal[rows]
        return table

    def pairs(self, slots: Columns, contexts: ContextTable, eligible: Mapping[int, Ids]) -> tuple[Ids, list[Array]]:
        """Return a number for each row that says how its logger drew pairs of slots, (n,), and a list with the
        probabilities of all slates in some distributions.

        The number is UNIFORM if the logger drew uniformly among the arms left. If the row's distribution has few
        enough slates, the number is the index of the distribution in the list. Otherwise it is UNKNOWN. An item of
        the list has the probability of each slate of `pseudo_inverse.slates`.

        slots: the slots of a batch, with the column `context`; contexts: their contexts; eligible: the arms of each
        eligible set, by id."""
        case_number, slate_probabilities = np.full(len(slots["arm_id"]), UNKNOWN), list[Array]()
        start = run_starts(slots["decision_id"])
        is_uniform = (
            np.logical_and.reduceat(_is_drawn_evenly(slots, eligible), start) if len(start) else np.zeros(0, np.bool_)
        )
        case_number[np.repeat(is_uniform, np.diff(np.r_[start, len(case_number)]))] = UNIFORM
        if (case_number == UNIFORM).all():
            return case_number, slate_probabilities
        for case in self.cases(slots, contexts, eligible, positions=int(slots["size"].max()), needs_scores=True):
            size, m = case.marginals.shape
            is_listed = pseudo_inverse.can_list(size, m) and len(slate_probabilities) < MAX_LISTED_CASES
            if case.scores is None:
                case_number[case.rows] = UNIFORM
            elif is_listed and (case_number[case.rows] == UNKNOWN).any():
                case_number[case.rows] = len(slate_probabilities)
                steps = slate.conditionals(case.scores, pseudo_inverse.slates(size, m), floor=case.floor)
                slate_probabilities.append(steps.prod(axis=1))
        return case_number, slate_probabilities

    def cases(
        self, slots: Columns, contexts: ContextTable, eligible: Mapping[int, Ids], *, positions: int,
        per_decision_samples: bool = False, needs_scores: bool = False,
    ) -> Iterator[LoggerCase]:  # fmt: skip
        """Yield the rows grouped by the distribution that drew their slates, one group (case) at a time.

        Rows whose marginals cannot be derived are left out: rows of imports whose logger is not uniform, of kinds
        that read the session, of correlated scores, and of slates by two rankers, whose coins are not logged.

        slots, contexts, eligible: as in `tabulate`; positions: the largest number of positions of a case;
        per_decision_samples: whether to yield slates of one slot that were drawn from correlated scores, each as a case
        of its own with the decision's samples (the slots then have the column `seed`); needs_scores: whether cases with
        cached marginals have scores, too."""
        for version, rows in self.by_version(slots, ~slots["imported"]):
            arguments = slots, contexts, eligible, positions, per_decision_samples, needs_scores
            moments = self.moments(version, slots, rows)
            cases = (self._belief_cases(serving, belief_rows, *arguments) for belief_rows, serving in moments)
            yield from self._compute_marginals(chain.from_iterable(cases))
        if not self.greedy:
            yield from _uniform_cases(slots, eligible, positions)

    def by_version(self, slots: Columns, flags: Flags) -> Iterator[tuple[Version, Ids]]:
        """Yield each version with the indices of its flagged rows, in order of `belief_seq`."""
        versions = self.loggers.versions(slots["version_id"])
        order = np.lexsort((slots["belief_seq"], slots["version_id"]))
        order = order[flags[order]]
        for rows in np.split(order, run_starts(slots["version_id"][order])[1:]) if len(order) else ():
            yield versions[int(slots["version_id"][rows[0]])], rows

    def moments(self, version: Version, slots: Columns, rows: Ids) -> Iterator[tuple[Ids, VersionDistribution]]:
        """Group the rows of a version by the belief that drew them, in order of `belief_seq`. For each group, yield the
        rows and the version's distribution with this belief. rows: the indices of the rows."""
        policy, unit = self.loggers.policy(version.id), self.loggers.unit
        if not policy.is_stateful and not policy.is_draft:
            seq, ordinal = slots["belief_seq"][rows], slots["belief_ordinal"][rows]
            for belief_rows, serving in past_beliefs.moments(unit, version, seq, ordinal, greedy=self.greedy):
                yield rows[belief_rows], serving

    def _belief_cases(
        self, serving: VersionDistribution, rows: Ids, slots: Columns, contexts: ContextTable,
        eligible: Mapping[int, Ids], positions: int, per_decision_samples: bool, needs_scores: bool,
    ) -> Iterator[LoggerCase]:  # fmt: skip
        """Yield the cases of rows that were drawn with one belief. If the kind reads contexts or first draws a list of
        candidates, the cases still lack marginals.

        serving: the distribution with this belief; rows: the indices of the rows; the other arguments are as in
        `cases`."""
        policy, keys = serving.policy, self.loggers.arms.keys
        codes, values = contexts.reading(policy.fields_read)
        size = np.minimum(slots["size"][rows], positions)
        revision = slots["catalogue_revision"][rows] * serving.reads_catalogue(values)
        for group_rows in rows_by_kind(slots["eligible_id"][rows], size, revision):
            group, key = rows[group_rows], int(slots["eligible_id"][rows[group_rows[0]]])
            arms, case_options = eligible[key], dict[str, Any](keys=keys, revision=int(revision[group_rows[0]]))
            k, context_code = min(int(size[group_rows[0]]), len(arms)), codes[slots["context"][group]]
            # contexts with distributions of their own, in portions
            reading, step = rows_by_kind(context_code), max(1, MAX_CELLS // len(arms))
            for start in range(0, len(reading), step):
                portion = reading[start : start + step]
                first_rows = group[[context_rows[0] for context_rows in portion]]
                names = np.column_stack([slots[words][first_rows] for words in DRAW_COLUMNS]).tolist()
                draws = [(self.greedy, case_options["revision"], k, *words) for words in names]
                tables = [self.loggers.unit.marginals.get(draw, np.empty((0, len(arms)))) for draw in draws]
                if not needs_scores and all(map(len, tables)):
                    for context_rows, marginals, draw in zip(portion, tables, draws, strict=True):
                        yield LoggerCase(group[context_rows], arms, k, None, 0.0, marginals, draw)
                    continue
                contexts_read = [values[int(context_code[context_rows[0]])] for context_rows in portion]
                if is_contextual(policy) or serving.generator is not None:
                    all_scores = serving.scores(key, arms, contexts_read, **case_options)
                else:
                    cases = [serving.case(key, arms, context, **case_options) for context in contexts_read]
                    all_scores = [case.scores for case in cases]
                    tables = [
                        table if len(table) else case.slate_sampler(k).marginals
                        for case, table in zip(cases, tables, strict=True)
                    ]
                for context_rows, scores, marginals, draw in zip(portion, all_scores, tables, draws, strict=True):
                    floor = 0.0 if scores.is_ruled else policy.exploration  # scores under rules include it
                    if not scores.samples:
                        yield LoggerCase(group[context_rows], arms, k, scores, floor, marginals, draw)
                    elif per_decision_samples and k == 1 and serving.generator is None:
                        for row in group[context_rows].tolist():
                            words = int(slots["seed"][row]) % 2**64, int(slots["decision_id"][row])
                            marginals = slate.marginals(scores.decision_scores(*words), size=1, floor=floor)
                            yield LoggerCase(np.array([row]), arms, k, scores, floor, marginals, (*draw, *words))

    def _compute_marginals(self, cases: Iterator[LoggerCase]) -> Iterator[LoggerCase]:
        """Compute the marginals of cases that lack them, and yield all cases in the same order."""
        tables = self.loggers.unit.marginals
        while portion := list(islice(cases, CASES_AT_A_TIME)):
            by_shape: dict[tuple[int, int, Floor], list[int]] = {}
            for number, case in enumerate(portion):
                if not len(case.marginals):
                    by_shape.setdefault((case.size, len(case.arms), case.floor), []).append(number)
            for (size, _, floor), numbers in by_shape.items():
                scores = [case_scores for number in numbers if (case_scores := portion[number].scores) is not None]
                marginals = slate.marginals_each(scores, size=size, floor=floor)
                for number, case_marginals in zip(numbers, marginals, strict=True):
                    portion[number] = portion[number]._replace(marginals=case_marginals)
            for case in portion:
                if len(tables) * (CASE_OVERHEAD + case.marginals.size) < MOST_PROBABILITIES:
                    tables[case.draw] = case.marginals
            yield from portion


def _uniform_cases(slots: Columns, eligible: Mapping[int, Ids], positions: int) -> Iterator[LoggerCase]:
    """Yield the cases of imported versions that drew uniformly. A version drew uniformly if all its probabilities in
    this batch are the probabilities of uniform slates. positions: the largest number of positions of a case."""
    import_rows = np.flatnonzero(slots["imported"])
    if not len(import_rows):
        return
    arms = arms_of_sets(slots["eligible_id"][import_rows], eligible)
    first_rows, version_index = distinct(slots["version_id"][import_rows])
    marginal, propensity = slots["marginal"][import_rows], slots["propensity"][import_rows]
    n_left = np.maximum(arms - slots["position"][import_rows] + 1, 1)
    relative = np.where(np.isnan(marginal), propensity * n_left, marginal * arms)
    n_other = np.bincount(version_index, weights=~(np.abs(relative - 1) <= _AGREEING), minlength=len(first_rows))
    rows = import_rows[n_other[version_index] == 0]
    size = np.minimum(slots["size"][rows], positions)
    for group_rows in rows_by_kind(slots["eligible_id"][rows], size):
        group, k = rows[group_rows], int(size[group_rows[0]])
        set_arms = eligible[int(slots["eligible_id"][group[0]])]
        yield LoggerCase(group, set_arms, k, None, 0.0, np.full((k, len(set_arms)), 1 / len(set_arms)))


def _is_drawn_evenly(slots: Columns, eligible: Mapping[int, Ids]) -> Flags:
    """Tell for each row whether its arm was drawn uniformly among the arms left, (n,). The propensity of the arm and
    the smallest propensity are then both 1 / (number of arms left)."""
    n_left = np.maximum(arms_of_sets(slots["eligible_id"], eligible) - slots["position"] + 1, 1)
    smallest = np.where(np.isnan(slots["min_propensity"]), slots["propensity"], slots["min_propensity"])
    is_even: Flags = (np.abs(slots["propensity"] * n_left - 1) <= _AGREEING) & (
        np.abs(smallest * n_left - 1) <= _AGREEING
    )
    return is_even
