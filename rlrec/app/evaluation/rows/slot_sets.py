"""Slots that have sets of arms of their own (slates, ccb with `_inc`): each is judged as a decision of one slot.

Its set is that of the slot less the arms above it. What a target shows there is drawn from that set, whatever stands
above: so the probability of a slate is the product over its slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np

from rlrec.app.evaluation.rows.log_rows import ImpressionRows
from rlrec.arrays import Array, Flags, Ids, numbers_in_runs, products_in_runs, run_starts
from rlrec.store.database.bulk import Columns

SLOT_SET = "slot_set"  # a column of slots: the id of the set of each, 0 where it has none of its own


def column(slots: Columns, sets: Mapping[int, Sequence[Sequence[int]]]) -> tuple[Ids, dict[int, Ids]]:
    """The column SLOT_SET, (n,), and the arms of each set by its id: a digest below 0, no id of the store.

    sets: of the slots of decisions, from the top; slots in order of decision and position."""
    ids, arms, arms_above = np.zeros(len(slots["decision_id"]), np.int64), dict[int, Ids](), list[int]()
    slot_arms = zip(slots["decision_id"].tolist(), slots["arm_id"].tolist(), strict=True)
    last, number = 0, 0
    for row, (decision, arm) in enumerate(slot_arms):
        if decision not in sets:
            continue
        if decision != last:
            last, number, arms_above = decision, 0, []
        if number < len(sets[decision]):
            remaining_arms = np.array(sorted(set(sets[decision][number]) - set(arms_above)), np.int64)
            ids[row] = -int.from_bytes(blake2b(remaining_arms.tobytes(), digest_size=7).digest(), "little") - 1
            arms[int(ids[row])] = remaining_arms
        number, arms_above = number + 1, [*arms_above, arm]
    return ids, arms


def flags(slots: Columns) -> Flags | None:
    """The slots that have a set of their own, (n,); None where none has."""
    has = slots[SLOT_SET] != 0 if SLOT_SET in slots else np.zeros(0, np.bool_)
    return has if has.any() else None


def as_decisions(rows: ImpressionRows) -> ImpressionRows:
    """The rows, those with sets of their own as decisions of one slot."""
    slots, has = rows.slots, flags(rows.slots)
    if has is None:
        return rows
    changed = {
        "eligible_id": np.where(has, slots[SLOT_SET], slots["eligible_id"]),
        **{name: np.where(has, 1, slots[name]) for name in ("size", "position")},
        "depth": np.where(has, 0, slots["depth"]), "start": slots["start"] + np.where(has, slots["depth"], 0),
    }  # fmt: skip
    return replace(rows, slots=slots | changed)


def down_to_rows(slots: Columns, has: Flags, steps: Array) -> Array:
    """The product of steps from the top of each slate down to its slots, (n,), of rows with sets; NaN where a row above
    is missing."""
    rows, products = np.flatnonzero(has), steps.copy()
    number = numbers_in_runs(run_starts(slots["decision_id"][rows]), len(rows))
    is_below_all = slots["depth"][rows] == number
    products[rows] = products_in_runs(np.where(is_below_all, steps[rows], np.nan), number)
    return products
