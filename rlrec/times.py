"""Time as people read and write it. Inside, a time is microseconds since 1970 UTC."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from rlrec.errors import InputError

SECOND = 1_000_000
DAY_US = 86_400 * SECOND
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST, LAST = -62_135_596_800 * SECOND, 253_402_300_800 * SECOND - 1  # years 1 to 9999

zoneless: list[str] = []  # the first time of day without a zone that was read: whoever reads it clears the list

# A date, and a time of day, which may be without its seconds and without a zone.
_FORM = r"\d{4}-\d\d-\d\d(?P<time>[Tt ]\d\d:\d\d(?::\d\d(?:\.\d{1,18})?)?(?P<zone>[Zz]|[+-]\d\d:\d\d)?)?"
_OFFSET = r"[+-](?:[01]\d|2[0-3]):[0-5]\d"


def format_time(micros: int) -> str:
    """RFC 3339 in UTC with microseconds: 2026-01-31T12:00:00.123456Z; of a time beyond the calendar its first or last
    moment."""
    moment = EPOCH + timedelta(microseconds=min(max(micros, FIRST), LAST))
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse(text: str) -> int:
    """Microseconds since 1970 UTC of an RFC 3339 time. Without an offset it is UTC; a date alone is midnight.

    Digits beyond the microsecond are dropped."""
    if text[19:20] == "." and text[7] == "-" and text[10] in "T " and text[26:] in ("Z", "+00:00"):  # most; and fast
        with suppress(ValueError):
            return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)
    shown = repr(text[:60])
    match = re.fullmatch(_FORM, text, re.ASCII)
    if match is None:
        raise InputError(f"{shown} is not a time", hint="write 2026-01-31T12:00:00Z, or a date")
    if match["time"] and not match["zone"] and not zoneless:
        zoneless.append(text)
    if (match["zone"] or "Z") not in "Zz" and not re.fullmatch(_OFFSET, match["zone"], re.ASCII):
        raise InputError(f"{shown} is not a time: no such offset")
    leap = text[17:19] == "60"  # seconds: the one after the last
    try:
        moment = datetime.fromisoformat((text[:17] + "59" + text[19:] if leap else text).upper())
    except ValueError as error:
        raise InputError(f"{shown} is not a time: {error}") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    result = (moment - EPOCH) // timedelta(microseconds=1) + leap * SECOND
    if not FIRST <= result <= LAST:
        raise InputError(f"{shown} is outside the years 1 to 9999 in UTC")
    return result
