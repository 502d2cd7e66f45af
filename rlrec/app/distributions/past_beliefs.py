"""This module finds the beliefs that a version had in the past, in one pass over the stored changes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from operator import itemgetter

import numpy as np

from rlrec.app.distributions import designs, exact
from rlrec.app.inputs.arm_rules import allowed_arms
from rlrec.app.log import lineage
from rlrec.arrays import Ids, run_starts
from rlrec.policy import learns_by_column
from rlrec.policy.beliefs.base import Policy
from rlrec.records import Version
from rlrec.store import Unit
from rlrec.store.policies import belief_deltas, beliefs


def moments(
    unit: Unit, version: Version, seq: Ids, ordinal: Ids, *, greedy: bool = False
) -> Iterator[tuple[Ids, exact.VersionDistribution]]:
    """Yield the beliefs from which a version drew n decisions, each with the indices of its decisions.

    seq (n,), ascending: the change after which each decision was drawn; ordinal (n,): the number of decisions of the
    policy at that moment; greedy: whether to leave out the version's exploration."""
    policy, rows = designs.policy_of(version), np.arange(len(seq))
    learner = policy.greedy() if greedy else policy
    if policy.is_stateful or not lineage.depends_on_belief(policy):
        yield rows, exact.from_sums(unit, version, learner, (), ordinal=0)
        return
    distribution: exact.VersionDistribution | None = None
    catalogue = allowed_arms(unit, version.policy.params) if policy.parsed_budget is not None else ()
    for changes, sums, spend in _beliefs_between(unit, version, policy, seq[run_starts(seq)]):
        group_rows = rows[np.searchsorted(seq, changes[0], "left") : np.searchsorted(seq, changes[-1], "right")]
        ordinals = ordinal[group_rows] if policy.forgetting.forgets else np.zeros(len(group_rows), np.int64)
        if version.status == "frozen":  # served unchanged
            ordinals = np.full(len(group_rows), version.ordinal)
        for group_ordinal in np.unique(ordinals).tolist():
            if distribution is None:
                distribution = exact.from_sums(unit, version, learner, sums, seq=int(changes[0]), ordinal=group_ordinal)
            else:
                columns = exact.column_sums(
                    unit,
                    version,
                    distribution.learner,
                    seq=int(changes[0]),
                    ordinal=group_ordinal,
                    earlier=distribution.columns,
                )
                distribution = distribution.at_moment(sums, ordinal=group_ordinal, columns=columns)
            if policy.parsed_budget is not None:
                exact.set_spend(distribution, spend, catalogue)
            yield group_rows[ordinals == group_ordinal], distribution


def _beliefs_between(
    unit: Unit, version: Version, policy: Policy, seqs: Ids
) -> Iterator[tuple[Ids, beliefs.BeliefRows, list[beliefs.BeliefRow]]]:
    """Yield the beliefs that a version had after the changes in `seqs` (ascending). Each item has the changes that
    share one belief, the rows of this belief, and the rows that store what a policy with a budget has spent."""
    by_column = learns_by_column(policy)  # sums on columns are read on demand
    if not len(seqs):
        return
    first_seq, last_seq, seq_index = int(seqs[0]), int(seqs[-1]), 0
    rows = (
        beliefs.counts(unit, version.id, seq=first_seq) if by_column else beliefs.rows(unit, version.id, seq=first_seq)
    )
    if policy.parsed_budget is not None:
        rows = [*rows, *beliefs.spend(unit, version.id, seq=first_seq)]
    newest_rows = {row[:2]: row for row in rows}  # the newest row of each bucket and arm
    for chunk in belief_deltas.read_range(unit, version.id, first_seq, last_seq, counts_alone=by_column):
        seq, changes = chunk["seq"], zip(*(chunk[name].tolist() for name in beliefs.BeliefRow._fields), strict=True)
        n_applied = 0
        # the last change of a chunk may continue in the next one
        while seq_index < len(seqs) and seqs[seq_index] < seq[-1]:
            end_row = int(np.searchsorted(seq, seqs[seq_index], "right"))
            newest_rows.update(
                (row[:2], row) for row in map(beliefs.BeliefRow._make, islice(changes, end_row - n_applied))
            )
            n_applied, end = end_row, int(np.searchsorted(seqs, seq[end_row], "left"))
            yield seqs[seq_index:end], *_sorted_rows(newest_rows, policy)
            seq_index = end
        newest_rows.update((row[:2], row) for row in map(beliefs.BeliefRow._make, changes))
    if seq_index < len(seqs):
        yield seqs[seq_index:], *_sorted_rows(newest_rows, policy)


def _sorted_rows(
    newest_rows: dict[beliefs.BeliefKey, beliefs.BeliefRow], policy: Policy
) -> tuple[beliefs.BeliefRows, list[beliefs.BeliefRow]]:
    """Return the rows of a belief in order: as `ArmSums` if the belief is three sums per arm, else as `BeliefRow`.
    Returns also the rows that store the spend of a budget, and deletes expired ones from `newest_rows`."""
    rows = [row for _, row in sorted(newest_rows.items(), key=itemgetter(0))]
    n_spend = 0 if policy.parsed_budget is None else sum(row.bucket < 0 for row in rows)
    spend, rows = rows[:n_spend], rows[n_spend:]
    if spend:
        from rlrec.policy.beliefs.spend import N_RECENT_SLICES

        for row in spend[::-1]:
            if row.bucket < spend[0].bucket + N_RECENT_SLICES:
                break
            del newest_rows[row[:2]]
    return [beliefs.ArmSums(*row[1:2], *row[3:6]) for row in rows] if exact.has_three_sums(policy) else rows, spend
