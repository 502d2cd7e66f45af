"""This module compares how often each arm was shown with the logged propensities of the arm, which exposes a wrong
logger. The module also finds arms that a policy no longer shows, about which nothing can be learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from rlrec.app.audit.integrity.findings import UNREADABLE, Findings
from rlrec.arrays import Array, Ids, Index, run_starts, take
from rlrec.errors import quantity
from rlrec.ope.intervals import betting
from rlrec.records import StoredPolicy
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import contents
from rlrec.store.log.reader import Batch
from rlrec.times import format_time

CHECK = "shown"
ALARM = 1e-4  # chance that an honest store is ever accused, over all its policies, arms and nights
SETS_AT_A_TIME = 200  # eligible sets at a time, or fewer
N_TALLY_SUMS = 4  # sums of a tally besides its bets
STARVING_ARMS, ENTROPY = "starving", "entropy"
MIN_DECISIONS = 1_000  # decisions before a policy is judged, at least
MIN_EXPECTED = 20.0  # times that a policy without preferences would have shown the arm
MAX_NAMED = 3  # arms in one finding
MIN_EFFECTIVE = 1.05  # arms


class SumsByArm:
    """This table holds k sums for each of m arms, (k, m). Arms may be added to the table at any time."""

    def __init__(self, n_sums: int) -> None:
        self.arms: Ids = np.empty(0, np.int64)
        self.sums: Array = np.zeros((n_sums, 0))

    def include(self, arms: Ids) -> Index:
        """Return the column of each of these arms, after adding a column for each new arm."""
        all_arms = np.union1d(self.arms, arms)
        sums = np.zeros((len(self.sums), len(all_arms)))
        sums[:, np.searchsorted(all_arms, self.arms)] = self.sums
        self.arms, self.sums = all_arms, sums
        return np.searchsorted(all_arms, arms)

    def add(self, arms: Ids, value_arrays: Iterable[Array]) -> None:
        """Add values to the sums of arms.

        arms: the arm of each value, (n,); value_arrays: for each of the k sums, the values to add, (n,)."""
        column = self.include(arms)
        for total, values in zip(self.sums, value_arrays, strict=True):
            total += np.bincount(column, weights=values, minlength=len(self.arms))


class ArmCounts:
    """This check tests whether a policy shows its arms as often as the logged propensities of the arms say. The check
    follows the order of the log, so that every audit sees the same batches again.

    The totals of an arm cover the decisions in which the arm was eligible and whose propensity is known. For a
    probability p, they are the number of these decisions, the number that showed the arm, the sum of 1/p and the sum
    of (1 - p)/p^2 over the decisions that showed the arm, and the logarithm of the wealth of each bet against the
    logger. Only the first observed position of a decision counts."""

    def __init__(self, unit: Unit, findings: Findings, *, ruled_ids: Sequence[int]) -> None:
        """Begin without counts.

        ruled_ids: the ids of the contexts with page rules (such as an arm pinned to a position). Under page rules an
        eligible arm may have no chance."""
        self.unit, self.findings, self.ruled_ids = unit, findings, ruled_ids
        self._totals = SumsByArm(N_TALLY_SUMS + betting.N_BETS)

    def take(self, batch: Batch) -> None:
        slots = batch.slots
        first_slots = run_starts(batch.slots["decision_id"])  # the first observed slot of each decision
        self._check_eligible(slots["eligible_id"], slots["arm_id"], slots["decision_id"])
        self._totals.sums[N_TALLY_SUMS:] = betting.spread_wealth(self._totals.sums[N_TALLY_SUMS:])
        position, p, marginal = (slots[name][first_slots] for name in ("position", "propensity", "marginal"))
        p = np.where(np.isnan(p), marginal, p)
        # below the first position, a conditional propensity means nothing without the arms above
        p = np.where(position == 1, p, marginal)
        is_usable = ~np.isnan(p) & ~slots["rounded"][first_slots]
        rows, p = first_slots[is_usable], p[is_usable]
        is_promised = (position[is_usable] == 1) & ~np.isin(slots["context_id"][rows], self.ruled_ids)
        min_propensity = np.where(is_promised, np.nan_to_num(slots["min_propensity"][rows]), 0.0)
        factors = betting.log_factors_not_shown(min_propensity)
        self._count(slots["eligible_id"][rows], factors)
        weight = np.minimum(1 / p, betting.MAX_WEIGHT)
        counts = np.zeros_like(p), np.ones_like(p), weight, (1 - p) * weight * weight
        self._totals.add(slots["arm_id"][rows], [*counts, *(betting.log_factors_shown(p, min_propensity) - factors)])

    def _count(self, eligible_ids: Ids, factors: Array) -> None:
        """Count the given decisions for every arm that was eligible, as if the arm had not been shown.

        eligible_ids: the eligible set of each of n decisions, (n,); factors: the logarithm of the factor by which a
        decision changes the wealth of a bet if the arm is not shown, for each bet and decision (bets, n)."""
        distinct_sets, set_index = np.unique(eligible_ids, return_inverse=True)
        sums = np.zeros((N_TALLY_SUMS + betting.N_BETS, len(distinct_sets)))
        sums[0] = np.bincount(set_index.ravel(), minlength=len(distinct_sets))
        for total, factor in zip(sums[N_TALLY_SUMS:], factors, strict=True):
            total += np.bincount(set_index.ravel(), weights=factor, minlength=len(distinct_sets))
        for portion, arms, set_sizes in eligible_arms(self.unit, distinct_sets):
            self._totals.add(arms, (np.repeat(row, set_sizes) for row in sums[:, portion]))

    def _check_eligible(self, eligible_ids: Ids, arms: Ids, decisions: Ids) -> None:
        """Add a finding for every decision that showed an arm that was not eligible.

        eligible_ids, arms, decisions: the eligible set, the arm and the decision of each slot."""
        distinct_sets = np.unique(eligible_ids)
        for portion, set_arms, set_sizes in eligible_arms(self.unit, distinct_sets):
            set_ids = distinct_sets[portion]
            portion_slots = np.flatnonzero(np.isin(eligible_ids, set_ids))
            stride = int(max(set_arms.max(initial=0), arms.max(initial=0))) + 1
            eligible_codes = np.repeat(np.arange(len(set_ids)), set_sizes) * stride + set_arms
            shown_codes = np.searchsorted(set_ids, eligible_ids[portion_slots]) * stride + arms[portion_slots]
            for decision in np.unique(decisions[portion_slots[~np.isin(shown_codes, eligible_codes)]]).tolist():
                self.findings.decision_error("dangling", decision, "an arm was shown that was not eligible")

    def finish(self, policy: StoredPolicy, names: Mapping[int, str]) -> int:
        """Add the findings on the arms of the policy, and return the number of these arms.

        names: the key of each arm, by id."""
        for arm, reason in accused_arms(self._totals, policy=policy.id):
            self.findings.error(CHECK, f"policy {policy.name} arm {names.get(arm, f'id {arm}')}", reason)
        return len(self._totals.arms)


def eligible_arms(unit: Unit, set_ids: Ids) -> Iterator[tuple[slice, Ids, Ids]]:
    """Read eligible sets in portions that bound the memory. Each portion is yielded as the slice of `set_ids` that
    it covers, the arms of all its sets in one array, and the number of arms of each set (0 for a set that cannot be
    read)."""
    set_sizes = contents.set_sizes(unit, set_ids.tolist())
    cells_so_far = np.cumsum(
        [max(set_sizes.get(key, 0), contents.MAX_ARMS // SETS_AT_A_TIME) for key in set_ids.tolist()]
    )
    starts = run_starts(cells_so_far // contents.MAX_ARMS)
    for portion in map(slice, starts.tolist(), [*starts[1:].tolist(), len(set_ids)]):
        arms_by_set = _arms_by_set(unit, set_ids[portion].tolist())
        arm_arrays = [np.array(arms_by_set.get(key, ()), np.int64) for key in set_ids[portion].tolist()]
        yield portion, np.concatenate(arm_arrays), np.array([len(arms) for arms in arm_arrays], np.int64)


def _arms_by_set(unit: Unit, set_ids: Sequence[int]) -> Mapping[int, Sequence[int]]:
    """Return the arms of each eligible set, by the id of the set. Sets that cannot be read are left out."""
    try:
        return contents.eligible_arms(unit, set_ids)
    except UNREADABLE:
        portions = ([set_id] for set_id in set_ids) if len(set_ids) > 1 else ()
        return {key: arms for portion in portions for key, arms in _arms_by_set(unit, portion).items()}


def accused_arms(totals: SumsByArm, *, policy: int) -> Iterator[tuple[int, str]]:
    """Yield each arm whose counts contradict the logged propensities, with the reason.

    The evidence against an arm is the wealth of the bets on the arm, times the part of the stake that the arm gets.
    An arm is yielded if its evidence reaches 1 / ALARM. The part is the product of 1 / (i (i + 1)) and 1 / (j (j +
    1)), where i is the id of the policy and j is the id of the arm. Ids never change, and the parts of all arms of
    all policies sum to at most 1.

    The reason also shows z, the standardised difference between the weighted count and the number of decisions. z is
    for the reader only; no test uses it. It is about normal only if the log is looked at once. A low z proves nothing,
    since its variance leaves out the decisions that did not show the arm. z is 0 for an arm that was never shown or
    always certain.

    totals: the sums of each arm, as in `ArmCounts`; policy: the id of the policy."""
    negative_log_share = np.log(policy) + np.log(policy + 1) + np.log(totals.arms) + np.log(totals.arms + 1)
    log_wealth = betting.log_wealth(totals.sums[N_TALLY_SUMS:]) - negative_log_share
    for column in np.flatnonzero(log_wealth >= -np.log(ALARM)).tolist():
        n, n_shown, weight, variance = totals.sums[:N_TALLY_SUMS, column]
        z = (weight - n) / np.sqrt(variance) if variance > 0 else 0.0
        detail = f"shown {quantity(round(n_shown), 'time')} in {quantity(round(n), 'decision')}"
        detail += f", which the logged propensities weigh as {weight:.6g} (z {z:.1f})"
        chance = max(float(np.exp(-log_wealth[column])), 1e-300)
        reason = f"{detail}: the chance of this at any time of an honest log is below {chance:.1g}"
        yield int(totals.arms[column]), reason


class StarvingArms:
    """This check finds arms that the policy has not shown for long. For each arm, it counts decisions since the last
    decision that showed the arm. Only decisions that the policy itself drew, and in which the arm was eligible,
    count."""

    def __init__(self, unit: Unit, policy: StoredPolicy, *, keys: Mapping[int, str], ruled_ids: Sequence[int]) -> None:
        """Begin without counts.

        keys: the key of each arm that is not retired, by id; ruled_ids: the ids of the contexts with page rules
        (such as an arm pinned to a position). Under page rules no arm is sure to have a chance."""
        self.unit = unit
        self.policy = policy
        self.ruled_ids = ruled_ids
        self.keys = keys
        # decisions; expected times shown under uniform choice; expected times shown under their smallest propensities
        self._since = SumsByArm(3)
        self._shown_at: dict[int, int] = {}

    def take(self, batch: Batch) -> None:
        drawn_slots = take(batch.slots, ~batch.slots["imported"])
        ids, first_slots, slot_decision = np.unique(drawn_slots["decision_id"], return_index=True, return_inverse=True)
        if len(ids):
            # the count of every arm that this batch shows starts again
            shown_columns = self._since.include(drawn_slots["arm_id"])
            self._since.sums[:, shown_columns] = 0.0
            order = np.argsort(drawn_slots["at"], kind="stable")
            arms, times = (drawn_slots[name][order].tolist() for name in ("arm_id", "at"))
            self._shown_at.update(zip(arms, times, strict=True))
            self._count(drawn_slots, first_slots, slot_decision)

    def _count(self, drawn_slots: Columns, first_slots: Ids, slot_decision: Ids) -> None:
        """Count, for each arm, the decisions of a batch in which the arm was eligible and that came after the last
        decision with the arm. If no decision of the batch showed the arm, all of them come after it.

        drawn_slots: the slots of the batch that the policy drew; first_slots: the index of the first slot of each
        decision; slot_decision: the index of the decision of each slot."""
        set_ids, set_index = np.unique(drawn_slots["eligible_id"][first_slots], return_inverse=True)
        n = len(first_slots)
        sorted_decisions = np.sort(set_index * n + np.arange(n))  # decisions by eligible set, in order within each
        is_ruled = np.isin(drawn_slots["context_id"], self.ruled_ids)
        min_propensity = np.where(is_ruled, 0.0, drawn_slots["min_propensity"])[first_slots]
        promised_shows = np.r_[0.0, min_propensity[sorted_decisions % n].cumsum()]
        for portion, arms, set_sizes in eligible_arms(self.unit, set_ids):
            # for each arm and set, the decisions after the last one that showed the arm
            column, shown_columns = self._since.include(arms), self._since.include(drawn_slots["arm_id"])
            last_decision = np.full(len(self._since.arms), -1)
            np.maximum.at(last_decision, shown_columns, slot_decision)
            set_begin = np.repeat(np.arange(len(set_ids))[portion] * n, set_sizes)
            start = np.searchsorted(sorted_decisions, set_begin + last_decision[column] + 1)
            end = np.searchsorted(sorted_decisions, set_begin + n)
            counts = (
                end - start,
                (end - start) / np.repeat(set_sizes, set_sizes),
                promised_shows[end] - promised_shows[start],
            )
            self._since.add(arms, counts)

    def finish(self, findings: Findings) -> None:
        n_decisions, mean_shows, promised_shows = self._since.sums
        columns = np.flatnonzero((n_decisions >= MIN_DECISIONS) & (mean_shows >= MIN_EXPECTED) & (promised_shows < 1))
        columns = columns[np.isin(self._since.arms[columns], list(self.keys))]
        if len(columns):
            longest_first = columns[np.argsort(-n_decisions[columns], kind="stable")]
            arms = ", ".join(map(self._describe, longest_first[:MAX_NAMED].tolist()))
            ellipsis = ", ..." if len(columns) > MAX_NAMED else ""
            detail = f"{quantity(len(columns), 'active arm')} not shown for long: {arms}{ellipsis}"
            findings.warning(
                STARVING_ARMS, f"policy {self.policy.name}", f"{detail}; a floor would keep them in the log"
            )

    def _describe(self, column: int) -> str:
        arm = int(self._since.arms[column])
        last_shown = f"since {format_time(self._shown_at[arm])}" if arm in self._shown_at else "ever"
        return f"{self.keys[arm]} (in {quantity(round(self._since.sums[0, column]), 'decision')}, not {last_shown})"


class Entropy:
    """This check measures the effective number of arms among which the policy chooses: exp of the mean of
    -log(propensity). It uses the last decisions that the policy drew itself, without decisions that had no choice."""

    def __init__(self, policy: StoredPolicy) -> None:
        self.policy = policy
        self._surprise: Array = np.empty(0)

    def take(self, batch: Batch) -> None:
        slots = batch.slots
        # an arm without alternatives has the smallest propensity 1
        has_choice = ~slots["imported"] & (slots["position"] == 1) & (slots["min_propensity"] < 1)
        self._surprise = np.r_[self._surprise, -np.log(slots["propensity"][has_choice])][-MIN_DECISIONS:]

    def finish(self, findings: Findings) -> None:
        if len(self._surprise) == MIN_DECISIONS and (arms := float(np.exp(self._surprise.mean()))) < MIN_EFFECTIVE:
            detail = f"the last {MIN_DECISIONS:,} decisions chose among {arms:.3f} arms in effect"
            findings.warning(ENTROPY, f"policy {self.policy.name}", f"{detail}: the log can judge no other policy")
