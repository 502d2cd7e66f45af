"""This module describes the loggers of a log: how small the propensities of a logger can be, and which arms the logger
could not show."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import field
from functools import cache, lru_cache
from typing import Any

import numpy as np

from rlrec.app.distributions import designs, exact
from rlrec.app.evaluation.rows.contexts import ContextTable
from rlrec.app.evaluation.rows.log_rows import SLOT_SET, ArmTable, arms_of_sets
from rlrec.app.log import lineage
from rlrec.arrays import Array, Flags, Ids, distinct, look_up, rows_by_kind, run_starts
from rlrec.ope.units import strata
from rlrec.ope.units.strata import NO_LOGGER, Stratum
from rlrec.policy.contexts.statements import PAGE
from rlrec.policy.scores.floors import Floor
from rlrec.policy.slates import slate
from rlrec.records import Record, Version
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.database.unit import StoredRows
from rlrec.store.log import selected
from rlrec.store.log.selected import LogExtent, Selection
from rlrec.store.policies import policies

MAX_DERIVED = 1_000  # distributions of loggers that one evaluation computes; further rows stay unknown
MAX_EXACT_POSITIONS = 256  # positions of a slate whose floor is computed exactly
CERTAIN_PROPENSITY = 1 - 1e-12  # of an arm that had no alternative, but for rounding
# The columns that a logger's distribution depends on, beside the context.
_DISTRIBUTION_COLUMNS = ("version_id", "belief_seq", "belief_ordinal", "eligible_id", "catalogue_revision", "size")


class Loggers:
    """This cache has the versions that served the decisions of the log, and their distributions. Each version is looked
    up once."""

    def __init__(self, unit: Unit, arms: ArmTable) -> None:
        self.unit, self.arms = unit, arms
        self._versions: dict[int, Version] = StoredRows("version")
        self.zeros: dict[tuple[object, ...], Array] = {}  # by distribution of a logger: the arms that it could not show
        self.policy = cache(lambda version_id: designs.policy_of(self._versions[version_id]))
        self._distribution = lru_cache(maxsize=8)(
            lambda key, seq, ordinal: exact.load(unit, self._versions[key], seq=seq, ordinal=ordinal)
        )

    def versions(self, version_ids: Ids) -> dict[int, Version]:
        ids = set(version_ids[distinct(version_ids)[0]].tolist())
        if unread := ids - self._versions.keys():
            self._versions |= policies.by_id(self.unit, unread)
        return {key: self._versions[key] for key in ids}

    def reads(self, slots: Columns, selected_rows: Flags) -> set[str]:
        """Return the context fields that the loggers of the selected rows depend on.

        selected_rows (n,): a flag for each row."""
        return {
            field for key in self.versions(slots["version_id"][selected_rows]) for field in self.policy(key).fields_read
        }

    def support(
        self, slots: Columns, contexts: ContextTable, eligible: Mapping[int, Ids]
    ) -> tuple[Columns, list[Array | None]]:
        """Return columns (n,) about what the logger of each row could show, and a list with an array for each case
        (rows that share a distribution). An array has a flag for each of m arms that the logger could not show at each
        position, (size, m). It is None if the limit of derived distributions was reached, or if the logger read the
        session.

        Columns: smallest: a lower bound of the probability that any arm could have had in the row, or NaN if no
        bound is known; full: whether every arm could be shown; logger_case: the index of the row's case in the list,
        or -1 if no case is needed.

        slots: the slots, with the column `context` and the columns of `log_rows.slate_places` and `unknown_support`."""
        self.versions(slots["version_id"])
        is_unknown, smallest = slots["unknown_support"], slots["smallest_prefix"]
        smallest = np.where(smallest > 0, smallest, np.nan)
        is_lower = ~slots["imported"] & (slots["depth"] > 0)
        deeper_rows = np.flatnonzero(is_lower & ~np.isnan(smallest) & ~np.isnan(slots["marginal"]))
        if len(deeper_rows):
            smallest[deeper_rows] = self._floors(slots, deeper_rows, eligible, smallest[deeper_rows])
        case, zeros = np.full(len(smallest), -1, np.int64), list[Array | None]()
        for rows, case_values, context in self._cases(slots, np.flatnonzero(is_unknown), contexts):
            case[rows] = len(zeros)
            zeros.append(self._zeros_of(case_values, context, eligible))
        return {"smallest": smallest, "full": slots["min_propensity"] > 0, "logger_case": case}, zeros

    def _floors(self, slots: Columns, deeper_rows: Ids, eligible: Mapping[int, Ids], smallest: Array) -> Array:
        """Return lower bounds of the marginals at positions below the first, which a floor guarantees whatever the
        scores are. The smallest conditional probability of a row is no such bound: an arm that mostly stands higher on
        the slate is rare at this position.

        deeper_rows: the indices of the rows; smallest: the lower bound known so far for each of these rows."""
        version, size = slots["version_id"][deeper_rows], slots["size"][deeper_rows]
        sets, position = slots["eligible_id"][deeper_rows], slots["position"][deeper_rows]
        arms = arms_of_sets(sets, eligible)
        for rows in rows_by_kind(version, size, arms):
            k, m, floor = int(size[rows[0]]), int(arms[rows[0]]), self.policy(int(version[rows[0]])).exploration
            if floor and k <= min(m, MAX_EXACT_POSITIONS):
                lower_bound = least_propensities(k, m, floor=floor)[position[rows] - 1]
                smallest[rows[lower_bound > 0]] = lower_bound[lower_bound > 0]
        return smallest

    def _cases(
        self, slots: Columns, unknown_rows: Ids, contexts: ContextTable
    ) -> Iterator[tuple[Ids, tuple[int, ...], Mapping[str, Any]]]:
        """Group rows whose logger has the same distribution. For each group, yield the indices of the rows, the values
        of the _DISTRIBUTION_COLUMNS, and the context as the logger reads it. A column on which the distribution does
        not depend has the value 0."""
        columns = {name: slots[name][unknown_rows] for name in _DISTRIBUTION_COLUMNS}
        reading, values_read = np.zeros(len(unknown_rows), np.int64), dict[int, list[dict[str, Any]]]()
        for rows in rows_by_kind(columns["version_id"]):
            version_id = int(columns["version_id"][rows[0]])
            policy = self.policy(version_id)
            needs = {
                "belief_seq": lineage.depends_on_belief(policy),
                "belief_ordinal": policy.forgetting.forgets,
                "catalogue_revision": policy.is_contextual or PAGE in contexts.values,
            }
            for name in (name for name, is_needed in needs.items() if not is_needed):
                columns[name][rows] = 0
            codes, values_read[version_id] = contexts.reading(policy.fields_read)
            reading[rows] = codes[slots["context"][unknown_rows[rows]]]
        for rows in rows_by_kind(*columns.values(), reading):
            values = tuple(int(column[rows[0]]) for column in columns.values())
            yield unknown_rows[rows], values, values_read[values[0]][int(reading[rows[0]])]

    def _zeros_of(
        self, values: tuple[int, ...], context: Mapping[str, Any], eligible: Mapping[int, Ids]
    ) -> Array | None:
        """Return a flag for each of m arms that the logger of a case (rows that share a distribution) could not show at
        each position, (size, m). The result is None if these arms cannot be derived.

        values: the values of the columns _DISTRIBUTION_COLUMNS; context: the context as the logger reads it."""
        version_id, seq, ordinal, set_id, revision, size = values
        policy, arms, case_name = self.policy(version_id), eligible[set_id], (values, repr(context))
        if policy.is_stateful or policy.is_draft:
            return None
        if case_name not in self.zeros and len(self.zeros) < MAX_DERIVED:
            serving = self._distribution(version_id, seq, ordinal)
            case = serving.case(set_id, arms, context, keys=self.arms.keys, revision=revision)
            marginals = slate.marginals(case.scores, size=min(size, len(arms)), floor=case.floor)
            # under rules of a page, some marginals have no closed form
            self.zeros[case_name] = np.where(np.isnan(marginals), np.nan, marginals == 0)
        return self.zeros.get(case_name)


def logged_zeros(
    slots: Columns, supports: Mapping[int, Sequence[float]], eligible: Mapping[int, Ids], zeros: list[Array | None]
) -> Columns:
    """Use the probabilities that imported decisions state for all arms at position 1. Return the columns
    `unknown_support` and `logger_case`, updated for these slots. For each distinct case, flags for the arms with
    probability 0, (1, m), are appended to `zeros`.

    supports: the stored probabilities of the arms, by the id of the decision."""
    case_by_name: dict[tuple[int, bytes], int] = {}
    is_unknown, case = slots["unknown_support"].copy(), slots["logger_case"].copy()
    sets, slot_sets = slots["eligible_id"], slots.get(SLOT_SET, np.zeros(len(case), np.int64))
    top_rows = np.flatnonzero((slots["position"] == 1) & np.isin(slots["decision_id"], list(supports)))
    for row, decision in zip(top_rows.tolist(), slots["decision_id"][top_rows].tolist(), strict=True):
        has_zero, set_id = np.array(supports[decision]) == 0, int(slot_sets[row] or sets[row])
        arms = np.searchsorted(eligible[int(sets[row])], eligible[set_id])
        case_name = set_id, has_zero[arms].tobytes()
        if case_name not in case_by_name:
            case_by_name[case_name] = len(zeros)
            zeros.append(has_zero[None, arms])
        is_unknown[row], case[row] = True, case_by_name[case_name]
    return {"unknown_support": is_unknown, "logger_case": case}


def unknown_support(slots: Columns) -> Columns:
    """Return two columns of flags, (n,). alone: whether the arm shown was the only arm that could be shown;
    unknown_support: whether only the logger's belief can tell which arms could be shown."""
    probability = np.where(slots["position"] == 1, slots["propensity"], slots["marginal"])
    is_alone = (probability >= CERTAIN_PROPENSITY) & ~(slots["min_propensity"] > 0)
    return {"alone": is_alone, "unknown_support": ~slots["imported"] & (slots["min_propensity"] == 0) & ~is_alone}


@lru_cache(maxsize=1_000)
def least_propensities(size: int, m: int, *, floor: Floor) -> Array:
    """Return the smallest probability that any arm can have at each position, (size,), if only the floor is known.

    The probability of an arm is a mean of `slate.placement_probabilities` over the possible ranks of its score, and
    therefore at least the smallest of them.

    size: the number of positions; m: the number of arms."""
    probability, unranked_share = slate.placement_probabilities(size, m, floor=floor)
    return np.minimum([probability[index, : index + 1].min() for index in range(size)], unranked_share)


class LoggingVersions(Record, eq=False):
    """This record has the versions that served the selected decisions. names: the reference POLICY@VERSION of each
    version, by id, with the most frequent version first."""

    names: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def from_log(cls, unit: Unit, selection: Selection, extent: LogExtent) -> LoggingVersions:
        """Return the versions that served a selection of decisions, the version with most decisions first.

        extent: the first and last times and versions of the selection, and the number of its decisions."""
        decisions = {extent.last_version: extent.decisions} if extent.decisions else {}
        if extent.first_version != extent.last_version:
            decisions = selected.version_counts(unit, selection)
        names = {key: version.reference for key, version in policies.by_id(unit, decisions).items()}
        return cls(names={key: names[key] for key in sorted(names, key=lambda key: (-decisions[key], names[key]))})

    def count_named(self, max_loggers: int) -> int:
        """Return the number of loggers that have a separate weight. If there are more than `max_loggers` loggers, the
        less frequent loggers share the last weight."""
        return len(self.names) if len(self.names) <= max_loggers else max_loggers - 1

    def strata(self, max_loggers: int) -> list[Stratum]:
        """Return the strata of rows. The rows of each named logger (see `count_named`) form two strata, each with half
        of its clusters. The rows of all other loggers together form two strata.

        max_loggers: the largest number of named loggers, where the others count as one."""
        if min(len(self.names), max_loggers) < 2:
            return [NO_LOGGER]
        names = [*list(self.names.values())[: self.count_named(max_loggers)], None]
        return [Stratum(name, half) for name in names for half in (0, 1)]

    def stratum_codes(self, slots: Columns, begins: Ids, *, spans_batches: bool, max_loggers: int) -> Ids:
        """Return the index of the stratum of each row, in the order of `strata`.

        begins: the index of the first slot of each row; spans_batches: whether a cluster may have rows in several
        batches. If not, all rows of a cluster belong to the logger of the first row. max_loggers: as in `strata`."""
        if min(len(self.names), max_loggers) < 2:
            return np.zeros(len(begins), np.int64)
        ids = np.array(list(self.names)[: self.count_named(max_loggers)], np.int64)
        order = np.argsort(ids)
        starts = begins if spans_batches else begins[run_starts(slots["cluster"][begins])]
        index, has_name = look_up(ids[order], slots["version_id"][starts])
        logger = np.where(has_name, order[index], len(ids))
        start_index = np.searchsorted(starts, begins, side="right") - 1
        return 2 * logger[start_index] + strata.halves(slots["cluster"][begins])


def taken_loggers(target: str, weights: Mapping[str, Sequence[float]], absent_loggers: Collection[str] = ()) -> str:
    """Return a sentence that names the loggers whose rows are used for a target, with the weights of these rows.

    target: the name of the target; weights: the weights of each logger's rows, which are 0 if the rows are left out;
    absent_loggers: the loggers without any row that counts."""
    spans = {name: [f"{extreme(values):.3g}" for extreme in (min, max)] for name, values in weights.items()}
    taken_texts = [f"{name} {' to '.join(dict.fromkeys(span))}" for name, span in spans.items() if max(weights[name])]
    left_out_names = [name for name in spans if not max(weights[name]) and name not in absent_loggers]
    ending = (
        f"; left out, as they tell next to nothing of {target}: {', '.join(left_out_names)}" if left_out_names else ""
    )
    if absent_names := [name for name in spans if name in absent_loggers]:
        ending += f"; without rows that count, as their visits or rewards are not complete: {', '.join(absent_names)}"
    return f"rows count more where weights vary less: {', '.join(taken_texts)}{ending}; --log all counts each once"
