"""Functions here decode the contexts of the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlrec.arrays import Ids
from rlrec.store import Unit
from rlrec.store.database.unit import parse
from rlrec.store.log import contents


def distinct_contexts(unit: Unit, context_ids: Ids) -> tuple[list[dict[str, Any]], Ids]:
    """Return the distinct contexts of n rows, and the index of each row's context in them, (n,). context_ids (n,): the
    id of each row's context."""
    ids, context = np.unique(context_ids, return_inverse=True)
    bodies = contents.context_bodies(unit, ids.tolist())
    return decode_contexts(ids, [bodies[key] for key in ids.tolist()]), context.reshape(-1)


def decode_contexts(ids: Ids, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Decode contexts from JSON. Raises RlrecError for damaged JSON. ids (n,): the id of each context, which the error
    names."""
    import msgspec

    try:
        return list(map(msgspec.json.Decoder().decode, texts))
    except msgspec.MsgspecError:  # an infinite number, say, which rlrec never stores
        return [parse(text, f"body of context {key}") for key, text in zip(ids.tolist(), texts, strict=True)]
