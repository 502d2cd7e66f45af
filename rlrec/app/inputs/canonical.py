"""JSON in canonical form: keys sorted, numbers by value, lists in order; and digests of it."""

from __future__ import annotations

import json
from typing import Any

from rlrec.store.contents import digest


def text(value: Any) -> str:
    """JSON that is equal for values that mean the same: 1 and 1.0, keys in any order."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def number(value: float) -> str:
    """The canonical text of a number."""
    return repr(int(value)) if value.is_integer() and abs(value) < 2**63 else repr(value)


def digest_of(value: Any) -> bytes:
    """16 bytes, equal for values that mean the same."""
    return digest(text(value))
