"""This module compares the stored history of each decision with the slots that were shown before. The module also
compares the visits in which users came back with the events that record these returns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rlrec.app.audit.integrity.findings import MAX_FINDINGS, Findings
from rlrec.app.inputs import canonical
from rlrec.app.serving import open_sessions
from rlrec.app.serving.open_sessions import SLOT_BYTES
from rlrec.arrays import run_starts, take
from rlrec.policy.gradients import history
from rlrec.policy.gradients.history import N_RECENT, N_REMEMBERED
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import reader, returns, settings
from rlrec.store.log.reader import Batch
from rlrec.store.log.selected import Selection
from rlrec.store.policies import arms
from rlrec.store.upkeep import audit
from rlrec.times import format_time

HISTORY, RETURNS = "history", "returns"
COLUMNS = ("visit", "step", "at", "arm_id", "recorded", "history")
BATCH_DECISIONS = 20_000  # decisions in a batch, each with up to 0.8 kB
MAX_WRONG = 100  # findings per batch


def check_histories(unit: Unit, *, findings: Findings) -> None:
    """Compare the stored history of drawn decisions, and of open visits, with the slots that were shown before.
    Imported decisions are left out. Rewards are not compared, since events may have been lost in the meantime."""
    keys = {arm.id: canonical.text(arm.key) for arm in arms.all_arms(unit)}
    for batch in reader.batches(unit, Selection(imported=False), size=BATCH_DECISIONS, columns=COLUMNS):
        slots = check_batch(batch, findings=findings)
        for session, visit in _wrong_visits(unit, slots, keys)[:MAX_WRONG]:
            detail = "what its next decision would remember is not what it has shown"
            findings.error(HISTORY, f"session id {session} visit {visit}", detail)


def check_batch(batch: Batch, *, findings: Findings) -> Columns:
    """Compare the stored history of each decision with the slots that were shown before it. The batch has whole
    sessions. Return the slots in the order of the visits."""
    order = np.lexsort([batch.slots[name] for name in ("position", "step", "visit", "session_id")])
    slots = take(batch.slots, order)
    for decision in wrong_histories(slots)[:MAX_WRONG]:
        findings.decision_error(HISTORY, decision, "what it remembers is not what its visit showed before it")
    return slots


def _wrong_visits(unit: Unit, slots: Columns, keys: Mapping[int, str]) -> list[tuple[int, int]]:
    """Return the session id and the number of each open visit whose stored history, or list of recent arms, differs
    from the visit's last slots.

    slots: the slots, in the order of the visits; keys: the key of each arm as JSON, by id."""
    starts = run_starts(slots["session_id"], slots["visit"])
    if not len(starts):
        return []
    sessions, numbers = slots["session_id"][starts].tolist(), slots["visit"][starts].tolist()
    ends = np.append(starts[1:], len(slots["visit"]))
    steps = slots["step"][ends - 1] + 1
    bounds = zip(starts.tolist(), ends.tolist(), steps.tolist(), strict=True)
    bounds_by_visit = dict(zip(zip(sessions, numbers, strict=True), bounds, strict=True))
    slot_bytes = open_sessions.pack(slots["decision_id"], slots["step"], slots["position"], slots["arm_id"]).tobytes()
    names = [keys.get(arm, "") for arm in slots["arm_id"].tolist()]
    wrong_visits = []
    for session, number, steps_of_visit, recent_names, blob in audit.open_visits(unit, min(sessions), max(sessions)):
        begin, end, last_step = bounds_by_visit.get((session, number), (0, 0, None))
        if last_step != steps_of_visit:
            continue  # imported decisions are not compared
        first_slot = begin if end - begin <= N_REMEMBERED else end - N_REMEMBERED
        last_slots = end - begin, slot_bytes[first_slot * SLOT_BYTES : end * SLOT_BYTES]
        last_names = f"[{','.join(names[max(begin, end - N_RECENT) : end])}]"
        if (open_sessions.from_bytes(blob), recent_names) != (last_slots, last_names):
            wrong_visits.append((session, number))
    return wrong_visits


def wrong_histories(slots: Columns) -> list[int]:
    """Return the ids of the decisions whose stored history differs from the last slots before the decision.

    slots: the slots, in the order of the visits."""
    first_slots = run_starts(slots["decision_id"])
    visit_starts = run_starts(slots["session_id"], slots["visit"])
    visit_begins = visit_starts[np.searchsorted(visit_starts, first_slots, side="right") - 1]
    is_recorded, step = slots["recorded"][first_slots], slots["step"][first_slots]
    first_slots, visit_begins, step = first_slots[is_recorded], visit_begins[is_recorded], step[is_recorded]
    blobs = slots["history"][first_slots].tolist()
    is_sound = history.match_steps(blobs, step)
    sound_blobs = [blob if matches else b"" for blob, matches in zip(blobs, is_sound.tolist(), strict=True)]
    past = history.unpack(sound_blobs, step)
    n_before = first_slots - visit_begins
    count = np.diff(past.start)
    is_sound &= (past.n_shown == n_before) & (count == np.minimum(n_before, N_REMEMBERED))
    previous_at = slots["at"][np.maximum(first_slots - 1, 0)]
    gap_us = np.where(step > 0, slots["at"][first_slots] - previous_at, 0)
    is_sound &= np.abs(past.gap_s * 1e6 - gap_us) < 1
    rows = past.rows
    past_slot = np.maximum(first_slots[rows] - past.start[rows + 1] + np.arange(len(rows)), 0)
    is_same = (slots["arm_id"][past_slot] == past.arm) & (step[rows] - slots["step"][past_slot] == past.ago)
    is_sound &= np.bincount(rows[~is_same], minlength=len(first_slots)) == 0
    return slots["decision_id"][first_slots[~is_sound]].tolist()


# -- users who came back --


def check_returns(unit: Unit, *, findings: Findings) -> None:
    """Check that each return of a user has exactly one event, and that the stored last decision of each user is right.
    (The user's next return credits this decision.) The check runs only if any reward weighs returns."""
    if not settings.get(unit).weighs_returns:
        return
    for decision, at, n_extra in returns.wrong_returns(unit, limit=MAX_FINDINGS):
        subject, came_text = f"decision {decision}", f"its user came back at {format_time(at)}, and it has"
        if n_extra is None:
            detail = f"{came_text} no event `return`, as where the user was named only after that visit"
            findings.warning(RETURNS, subject, detail)
        else:
            findings.error(RETURNS, subject, f"{came_text} the event `return` more than once")
    for user, decision_id in returns.wrong_last_decisions(unit, limit=MAX_FINDINGS):
        detail = f"when the user comes back decision {decision_id} is credited, which is not their last one"
        findings.error(RETURNS, f"user {user}", detail)
