"""Time as people read it. Inside, a time is microseconds since 1970 UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def written(micros: int) -> str:
    """RFC 3339 in UTC with microseconds: 2026-01-31T12:00:00.123456Z."""
    moment = EPOCH + timedelta(microseconds=micros)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
