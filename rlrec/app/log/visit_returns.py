"""Returns to visits in which several surfaces made decisions, in a log of one of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlrec.arrays import look_up, run_starts, take
from rlrec.store import Unit
from rlrec.store.log import reader, settings
from rlrec.store.log.reader import Batch
from rlrec.store.log.selected import Selection
from rlrec.store.policies import people

COLUMNS = ("visit", "at", "position")  # that `move` needs
# the fields of a selection that leave out decisions of other surfaces
SURFACES = ("policy_ids", "version_ids", "variant_ids", "route_ids", "context_ids")


def are_elsewhere(unit: Unit, selection: Selection) -> bool:
    """Whether decisions that are not selected may have the events `return` of visits with selected ones."""
    is_narrow = any(getattr(selection, name) is not None for name in SURFACES)
    return is_narrow and bool(settings.get(unit).weighs_returns)


def move(unit: Unit, batch: Batch) -> Batch:
    """The batch with the returns of its visits that are events of later decisions in them, of other surfaces: that the
    person came back is credited to the last decision of the visit here."""
    slots, sessions_read = batch.slots, np.unique(batch.slots["session_id"])
    events = reader.ask_returns(unit, [people.session_test("d.session_id", sessions_read)]).columns()
    width = int(max(slots["visit"].max(), events["visit"].max(initial=0))) + 1
    visit, visit_of_return = (rows["session_id"] * width + rows["visit"] for rows in (slots, events))
    order = np.lexsort((slots["position"], slots["decision_id"], visit))
    last = order[np.append(run_starts(visit[order])[1:], len(order)) - 1]
    index, is_later = look_up(visit[last], visit_of_return)
    is_later &= events["decision_id"] > slots["decision_id"][last[index]]
    row, events = last[index[is_later]], take(events, np.flatnonzero(is_later))
    added = {
        "decision_id": slots["decision_id"][row], "age_us": events["at"] - slots["at"][row], "kind": events["kind"],
        "position": np.where(slots["position"][row] > 1, 0, 1), "value": events["value"],
    }  # fmt: skip
    return replace(batch, events={name: np.append(column, added[name]) for name, column in batch.events.items()})
