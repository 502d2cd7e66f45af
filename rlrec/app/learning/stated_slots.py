"""Features of arms that requests and imported lines state: those that stood at each slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlrec.arrays import Array, Flags, Ids, Index, distinct
from rlrec.policy.contexts.encoder import Encoder
from rlrec.policy.contexts.statements import FEATURES, by_arm
from rlrec.store import Unit
from rlrec.store.database.unit import parse
from rlrec.store.log import contents, imported_data
from rlrec.store.policies import arms as catalogue


def features(
    unit: Unit, encoder: Encoder, arm: Ids, contexts: Sequence[Mapping[str, Any]], context: Index,
    decision_ids: Ids | None,
) -> tuple[Array, Flags] | None:  # fmt: skip
    """Features z (n, p) of the arms of n slots, and of which slots they are stated, (n,); None where they are of none.

    contexts, context (n,): of the requests; decision_ids (n,): where some were imported. What a request states goes
    before what a line states; without a line, a field that it leaves out is as the catalogue had it first: so what a
    slot adds to a belief never changes."""
    stated = [by_arm(values, FEATURES) or {} for values in contexts]
    line, lines = np.zeros(len(arm), np.int64), {0: dict[str, Any]()}
    if decision_ids is not None:
        by_decision = imported_data.feature_contexts(unit, np.unique(decision_ids).tolist())
        line = np.array([by_decision.get(number, 0) for number in decision_ids.tolist()], np.int64)
        bodies = contents.context_bodies(unit, set(by_decision.values()))
        lines |= {number: parse(body, f"body of context {number}") for number, body in bodies.items()}
    if not any(stated) and len(lines) == 1:
        return None
    arm_ids = np.unique(arm).tolist()
    keys, first_features = catalogue.keys(unit, arm_ids), catalogue.first_features(unit, arm_ids)
    first, kind = distinct(arm, context, line)
    described = list[dict[str, Any] | None]()
    for row in first.tolist():
        key = keys[int(arm[row])]
        by_request, by_line = stated[context[row]].get(key), lines[int(line[row])].get(key)
        if by_request and by_line is None:
            by_line = parse(first_features[int(arm[row])], f"features of arm {key}")
        described.append(None if by_line is None else by_line | dict(by_request or {}))
    is_stated = np.array([values is not None for values in described], np.bool_)
    return encoder.encode([values or {} for values in described])[kind], is_stated[kind]
