"""Functions here read and write times in the forms that people use. Inside the program, a time is a number of
microseconds since 1970 UTC."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo
from math import isfinite

from rlrec.errors import InputError

SECOND = 1_000_000
DAY_US = 86_400 * SECOND
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UNITS = {"w": 604_800 * SECOND, "d": DAY_US, "h": 3_600 * SECOND, "m": 60 * SECOND, "s": SECOND}
UNIT_SIZES = (*UNITS.values(), 1_000)
DURATION_FORM = "".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in (*UNITS, "ms"))
FIRST, LAST = -62_135_596_800 * SECOND, 253_402_300_800 * SECOND - 1  # years 1 to 9999

zone: tzinfo | None = None  # of days, and of dates in filters, for the running command; None: UTC
zoneless: list[str] = []  # the first time of day without a zone that was read; whoever reports it clears the list

# A date, possibly with a time of day, of which seconds and zone are optional.
_FORM = r"\d{4}-\d\d-\d\d(?P<time>[Tt ]\d\d:\d\d(?::\d\d(?:\.\d{1,18})?)?(?P<zone>[Zz]|[+-]\d\d:\d\d)?)?"
_OFFSET = r"[+-](?:[01]\d|2[0-3]):[0-5]\d"


def duration(text: str) -> int | None:
    """Return the microseconds of a text such as 90s, 30m, 7d, 1h30m or 250ms, in which larger units come first. Return
    None for a text in any other form."""
    match = re.fullmatch(DURATION_FORM, text, re.ASCII)
    if not text or match is None:
        return None
    parts = zip(match.groups(), UNIT_SIZES, strict=True)
    micros = sum(float(number) * unit for number, unit in parts if number)
    return round(micros) if isfinite(micros) else None


def format_duration(micros: int) -> str:
    """Return the text of a duration in its shortest exact form, such as 1h30m, 1m30s (for 90 s), or 0s."""
    parts = []
    for unit, size in UNITS.items():
        count, micros = divmod(micros, size)
        parts += [f"{count}{unit}"] if count else []
    return "".join(parts + ([f"{micros / 1000:g}ms"] if micros else [])) or "0s"


def format_time(micros: int) -> str:
    """Return the text of a time as RFC 3339 in UTC with microseconds: 2026-01-31T12:00:00.123456Z. For a time before or
    after the calendar, return the first or the last moment of the calendar."""
    moment = EPOCH + timedelta(microseconds=min(max(micros, FIRST), LAST))
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def find_zone(name: str, *, prefix: str = "") -> tzinfo | None:
    """Return the time zone with a name such as Europe/Berlin, or None for UTC. Raise InputError if there is no such
    zone. prefix: the beginning of the error's text."""
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name) if name != "UTC" else None
    except (KeyError, ValueError, OSError):
        hint = "such as Europe/Berlin, of the IANA database; `pip install tzdata` where the system has none"
        raise InputError(f"{prefix}{name[:60]!r} is no time zone", hint=hint) from None


def local(micros: int) -> datetime:
    """Return a time as a datetime in the configured time zone. The datetime is in UTC if its year in the time zone
    would not be from 1 to 9999."""
    moment = EPOCH + timedelta(microseconds=micros)
    try:
        return moment.astimezone(zone or UTC)
    except OverflowError:
        return moment


def day_of(micros: int) -> int:
    """Return the number of the day to which a time belongs in the configured time zone. 1970-01-01 is day 0."""
    return micros // DAY_US if zone is None else local(micros).toordinal() - EPOCH.toordinal()


def midnight(day: int) -> int:
    """Return the time at which a day begins in the configured time zone. day: the number of the day, as from
    `day_of`."""
    if zone is None:
        return day * DAY_US
    calendar_day = min(max(day, FIRST // DAY_US), LAST // DAY_US)
    begin = datetime.fromordinal(EPOCH.toordinal() + calendar_day).replace(tzinfo=zone)
    return (begin - EPOCH) // timedelta(microseconds=1) + (day - calendar_day) * DAY_US


def date(day: int) -> str:
    """Return the date of a day as text. day: the number of the day, as from `day_of`."""
    return format_time(day * DAY_US)[:10]


def middle(first_at: int, last_at: int) -> str:
    """Return the text of the time halfway between two times. If this time is on a later day than the first time, the
    text is only a date."""
    text = format_time((first_at + last_at) // 2)
    return text[:10] if text[:10] != format_time(first_at)[:10] else f"{text[:19]}Z"


def parse_local(text: str) -> int:
    """Return the time of a text as `parse` does. If the text has no offset, it is a time in the configured time
    zone."""
    return parse(text, default=zone or UTC)


def parse(text: str, *, default: tzinfo = UTC) -> int:
    """Return the time of a text in the form RFC 3339, in microseconds since 1970 UTC. Digits beyond microseconds are
    dropped, and a date without a time of day is the midnight at which this day begins. Raise InputError for any other
    text.

    default: the time zone of a text without an offset."""
    # the most frequent form, parsed fast
    if text[19:20] == "." and text[7] == "-" and text[10] in "T " and text[26:] in ("Z", "+00:00"):
        with suppress(ValueError):
            return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)
    quoted_text = repr(text[:60])
    match = re.fullmatch(_FORM, text, re.ASCII)
    if match is None:
        raise InputError(f"{quoted_text} is not a time", hint="write 2026-01-31T12:00:00Z, or a date")
    if match["time"] and not match["zone"] and not zoneless and default is UTC:
        zoneless.append(text)
    if (match["zone"] or "Z") not in "Zz" and not re.fullmatch(_OFFSET, match["zone"], re.ASCII):
        raise InputError(f"{quoted_text} is not a time: no such offset")
    is_leap_second = text[17:19] == "60"  # a leap second
    try:
        moment = datetime.fromisoformat((text[:17] + "59" + text[19:] if is_leap_second else text).upper())
    except ValueError as error:
        raise InputError(f"{quoted_text} is not a time: {error}") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=default)
    result = (moment - EPOCH) // timedelta(microseconds=1) + is_leap_second * SECOND
    if not FIRST <= result <= LAST:
        raise InputError(f"{quoted_text} is outside the years 1 to 9999 in UTC")
    return result
