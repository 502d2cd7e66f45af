"""The history that each decision stored, against the decisions that came before it in its visit."""

from __future__ import annotations

import numpy as np

from rlrec.app.audit.findings import Findings
from rlrec.policy import history
from rlrec.policy.history import REMEMBERED, Ints
from rlrec.store import Unit, reader
from rlrec.store.bulk import Columns
from rlrec.store.reader import Selection

CHECK = "history"
COLUMNS = ("visit", "step", "arm_id", "recorded", "history")
SIZE = 20_000  # decisions in a batch, each with up to 0.8 kB
MOST = 100  # findings a batch


def check(unit: Unit, *, findings: Findings) -> None:
    """Of decisions made here. What slots had earned by then is not past again: events may since have been lost."""
    for batch in reader.batches(unit, Selection(imported=False), size=SIZE, columns=COLUMNS):
        order = np.lexsort([batch.slots[name] for name in ("position", "step", "visit", "session_id")])
        slots = {name: column[order] for name, column in batch.slots.items()}
        for decision in wrong(slots)[:MOST]:
            findings.error(CHECK, f"decision {decision}", "what it remembers is not what its visit showed before it")


def wrong(slots: Columns) -> list[int]:
    """The decisions whose remembered slots are not the last ones before them; slots in order of the visit."""
    first = _starts(slots["decision_id"])
    visit = _starts(slots["session_id"], slots["visit"])
    begins = visit[np.searchsorted(visit, first, side="right") - 1]
    recorded, step = slots["recorded"][first], slots["step"][first]
    first, begins, step = first[recorded], begins[recorded], step[recorded]
    blobs = slots["history"][first].tolist()
    sound = history.sound(blobs, step)
    past = history.unpack([blob if good else b"" for blob, good in zip(blobs, sound.tolist(), strict=True)], step)
    before = first - begins
    count = np.diff(past.start)
    sound &= (past.shown == before) & (count == np.minimum(before, REMEMBERED))
    rows = past.rows
    row = np.maximum(first[rows] - past.start[rows + 1] + np.arange(len(rows)), 0)
    same = (slots["arm_id"][row] == past.arm) & (step[rows] - slots["step"][row] == past.ago)
    sound &= np.bincount(rows[~same], minlength=len(first)) == 0
    decisions: list[int] = slots["decision_id"][first[~sound]].tolist()
    return decisions


def _starts(*columns: Ints) -> Ints:
    """Where in rows that belong together the values of these columns become others."""
    changes = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return np.flatnonzero(np.concatenate([[True], changes]))
