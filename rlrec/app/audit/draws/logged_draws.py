"""This module checks the draws that estimates rest on. It compares how often arms were shown with logged propensities
in each kind of context. It also looks for propensities raised to a lower limit, and for repeated decisions."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from rlrec.app.audit.integrity.findings import Findings
from rlrec.app.evaluation.checks import MAX_ARMS as MAX_ARMS
from rlrec.app.evaluation.checks import CheckedLog, ClippedPropensities, PropensityBets, RepeatedRows, WrongPropensities
from rlrec.app.evaluation.rows import log_rows
from rlrec.app.evaluation.rows.contexts import ContextCache
from rlrec.arrays import run_starts
from rlrec.ope.checks.draws import context_cells
from rlrec.ope.checks.reasons import REASONS, hint
from rlrec.ope.intervals.betting import log_wealth
from rlrec.records import add_each
from rlrec.store import Unit
from rlrec.store.log import contents, imported_data, reader, selected
from rlrec.store.policies import arms, policies

SHOWN, CLIPPED, REPEATS = "shown", "clipped", "repeats"
CHECK_ORDER = (SHOWN, CLIPPED, REPEATS)
_REASONS = {CLIPPED: ClippedPropensities.reason, REPEATS: RepeatedRows.reason}
COLUMNS = (
    "policy_id", "session_digest", "visit", "step", "at", "context_id", "eligible_id", "arm_id", "propensity",
    "marginal", "min_propensity", "subsampled",
)  # fmt: skip


def check(unit: Unit, *, findings: Findings, sample: reader.Batch | None = None) -> None:
    """Check the draws of the log with the checks of `evaluate`. Repeated decisions are searched for in all policies
    together; every other check is of one policy.

    sample: a part of the log to check, or None for the entire log."""
    policy_names = {policy.id: policy.name for policy in policies.all_policies(unit)}
    catalogue = log_rows.ArmTable({arm.id: arm.key for arm in arms.all_arms(unit)})
    extent = selected.extent(unit, selected.Selection()) if sample is None else _sample_extent(sample)
    cache, has_slot_sets = ContextCache(unit, encode=True), bool(imported_data.used_tables(unit, ["slot_set"]))
    totals: dict[tuple[str, int], Any] = {}
    checked_log = None
    batches = reader.batches(unit, selected.Selection(), columns=COLUMNS) if sample is None else [sample]
    for log in chain.from_iterable(
        batch.cut(reader.set_cells(unit, batch.slots["eligible_id"]), reader.MAX_CELLS) for batch in batches
    ):
        contexts, context = cache.table(log.slots["context_id"], None)
        slots = log.slots | {"context": context}
        if has_slot_sets:
            sets = imported_data.slot_sets(unit, np.unique(slots["decision_id"]).tolist())
            slots[log_rows.SLOT_SET], _ = log_rows.slot_set_column(slots, sets)
        arms_by_set = contents.eligible_arms(unit, set(slots["eligible_id"].tolist()))
        logged_batch = log_rows.LoggedBatch(
            log=replace(log, slots=slots), contexts=contexts,
            eligible={key: np.array(members, np.int64) for key, members in arms_by_set.items()},
        )  # fmt: skip
        checked_log = CheckedLog(batch=logged_batch, arms=catalogue, extent=extent)
        partials: dict[tuple[str, int], Any] = {}
        for policy_id in np.unique(slots["policy_id"]).tolist():
            rows = np.flatnonzero(slots["policy_id"] == policy_id)
            policy_log = replace(checked_log, batch=replace(logged_batch, log=logged_batch.log.select_rows(rows)))
            partials[SHOWN, policy_id] = WrongPropensities().sums(policy_log)
            partials[CLIPPED, policy_id] = ClippedPropensities().sums(policy_log)
        partials[REPEATS, 0] = RepeatedRows().sums(checked_log)
        totals = add_each(totals, partials)
    for (check_name, policy_id), sums in sorted(totals.items(), key=lambda entry: CHECK_ORDER.index(entry[0][0])):
        subject = f"policy {policy_names[policy_id]}" if policy_id else "store"
        # the other checks rely on the propensities
        if checked_log is None or not sums.raises_alarm or findings.has_finding(SHOWN, subject if policy_id else ""):
            continue
        if check_name == SHOWN:
            findings.error(check_name, subject, _accusation(unit, sums, checked_log))
        else:
            text = REASONS[_REASONS[check_name]].text.removesuffix(" (weak)")
            findings.warning(check_name, subject, f"{text}; {hint(_REASONS[check_name])}")


def _sample_extent(sample: reader.Batch) -> selected.LogExtent:
    """Return the extent of a sample of the log. Fields that no check reads are 0."""
    slots, at = sample.slots, sample.slots["at"]
    return selected.LogExtent(
        positions=int(slots["size"].max()), steps=0, first_version=0, last_version=0,
        decisions=len(run_starts(slots["decision_id"])), first_at=int(at.min()), last_at=int(at.max()),
    )  # fmt: skip


def _accusation(unit: Unit, sums: PropensityBets, checked_log: CheckedLog) -> str:
    """Return a sentence that names the arm that was shown too often. If this happened in one kind of context only, the
    sentence says so, and quotes a context of this kind from the last batch, if the batch has any.

    sums: the bets on each arm, and on each arm in each kind of context; checked_log: the last batch."""
    arm_wealth, cell_wealth = (log_wealth(bets.log) for bets in (sums.arms, sums.cells))
    keys = sorted(checked_log.arms.keys.values())
    if arm_wealth.max() >= cell_wealth.max():
        return f"arm {keys[arm_wealth.argmax()]} was shown more often than its logged propensities allow"
    n_arms = min(len(keys), MAX_ARMS)
    cell, rank = divmod(int(cell_wealth.argmax()), n_arms)
    contexts, slots = checked_log.batch.contexts, checked_log.batch.log.slots
    context, cells = context_cells(*contexts.entries, contexts=contexts.size, cells=len(cell_wealth) // n_arms)
    sentence = f"arm {keys[rank]} was shown more often in one kind of context than its logged propensities allow"
    rows = np.flatnonzero(np.isin(slots["context"], context[cells == cell]))
    if not len(rows):
        return sentence
    context_id = int(slots["context_id"][rows[0]])
    return f"{sentence}, in such as {contents.context_bodies(unit, [context_id])[context_id]}"
