"""What an evaluation reads of the contexts of a batch: each distinct one is decoded once, in portions."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import numpy as np

from rlrec.app.serving import Ids
from rlrec.policy import features
from rlrec.policy.scores import Array
from rlrec.store import Unit, contents

PORTION = 2_000


class Contexts:
    """The distinct contexts of a batch: the fields asked for, and if asked all of each as numbers.

    code (n,): which context each row has. values: field -> its value in every context, None where it is missing.
    encoded (m, width): features of every context. seen: names of all fields, where any field was asked for."""

    def __init__(self, unit: Unit, context_id: Ids, *, fields: Collection[str], encode: bool) -> None:
        ids, code = np.unique(context_id, return_inverse=True)
        self.code: Ids = code.astype(np.int64)
        self.values: dict[str, list[Any]] = {field: [] for field in fields}
        self.seen: set[str] = set()
        encoded: list[Array] = []
        wanted = ids.tolist() if fields or encode else []
        for start in range(0, len(wanted), PORTION):
            portion = wanted[start : start + PORTION]
            bodies = contents.context_bodies(unit, portion)
            decoded = [json.loads(bodies[key]) for key in portion]
            for field, values in self.values.items():
                values.extend(context.get(field) for context in decoded)
            if fields:
                self.seen.update(*decoded)
            if encode:
                encoded.append(features.encode(decoded))
        self.encoded: Array = np.concatenate(encoded) if encoded else np.zeros((len(ids), 0))

    def coded(self, field: str, name: Any = repr) -> tuple[Ids, list[Any]]:
        """Per row which distinct value of a field it has, (n,), and those values; `name` says which are the same."""
        values = self.values[field]
        places: dict[Any, int] = {}
        firsts: list[Any] = []
        codes = np.empty(len(values), np.int64)
        for row, value in enumerate(values):
            key = name(value)
            if key not in places:
                places[key] = len(firsts)
                firsts.append(value)
            codes[row] = places[key]
        return codes[self.code], firsts
