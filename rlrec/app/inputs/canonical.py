"""Functions here write JSON in canonical form, in which equal values have equal texts: keys are sorted, numbers are
written by value, and lists keep their order. They also compute digests of such JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any

from rlrec.store.log.contents import digest

_encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def text(value: Any) -> str:
    """Return a value as canonical JSON. The text is equal for equal values, such as 1 and 1.0, or objects with their
    keys in any order."""
    return _encoder.encode(_normalize_numbers(value))


def _normalize_numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)
    if isinstance(value, dict):
        return {key: _normalize_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normalize_numbers(item) for item in value]
    return value


def number(value: float) -> str:
    """Return the text of a number in canonical form."""
    return repr(int(value)) if value.is_integer() and abs(value) < 2**63 else repr(value)


def texts(values: Iterable[str | None]) -> str:
    """Return a list of texts as canonical JSON, without the brackets."""
    return ",".join(["null" if value is None else encode_basestring(value) for value in values])


def digest_of(value: Any) -> bytes:
    """Return a digest of 16 bytes that is equal for equal values."""
    return digest(text(value))


def line_digest(decision_id: int, position: int | None, values: Mapping[str, float], censor: bool | None) -> bytes:
    """Return a digest of a line of feedback, which is stored with the key of the line. values: the value of each event,
    by kind; censor: whether the line censors the slot, or None if it does not say."""
    slot = "null" if position is None else position
    return digest(f"[{decision_id},{slot},{_end_of_line(tuple(values.items()), censor)}")


@lru_cache(maxsize=1024)  # most lines have the same end
def _end_of_line(values: tuple[tuple[str, float], ...], censor: bool | None) -> str:
    """Return the part of a line of feedback in canonical form that comes after the position."""
    events = {kind: float(value) for kind, value in values}
    return text([events] if censor is None else [events, censor])[1:]
