"""Queries here read the log as rows of the store's tables, for exports to files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from rlrec.store.database import tables as t
from rlrec.store.database.unit import Row, Unit, quote_columns

# Tables whose rows each belong to one decision.
CHILDREN = (t.slot, t.candidate_list, t.route_decision, t.decision_features, t.slot_set, t.logged_support, t.team_draft)


def column_names(table: sa.Table) -> list[str]:
    """Return the names of the columns of a table."""
    return [column.name for column in table.columns]


def find_rows(unit: Unit, table: sa.Table, column: str, values: Collection[int]) -> list[Row]:
    """Return the rows of a table whose value in the named column is one of these values. Rows have all columns and are
    in order of primary key."""
    order = quote_columns(column.name for column in table.primary_key)
    text = f'SELECT {quote_columns(column_names(table))} FROM "{table.name}" WHERE "{column}" IN (?*) ORDER BY {order}'
    return unit.ask(text, values)


def event_keys(unit: Unit) -> Iterator[Sequence[Sequence[Any]]]:
    """Yield portions of rows. There is a row for each event, with the decision id and the number of the event."""
    return unit.portions("SELECT decision_id, number FROM event ORDER BY decision_id, number")


_SESSION_SOURCE = "FROM session v LEFT JOIN users u ON u.id = v.user_id WHERE v.id IN (?*)"


def person_digests(unit: Unit, sessions: Collection[int]) -> dict[int, tuple[int | None, int | None]]:
    """Return two digests for each session, by session id: the digest of the user's key (None where the user is not
    known), and the digest of the session's key."""
    rows = unit.ask(f"SELECT v.id, u.digest, v.digest {_SESSION_SOURCE}", sessions)
    return {session_id: (user_digest, session_digest) for session_id, user_digest, session_digest in rows}


def person_keys(unit: Unit, sessions: Collection[int]) -> dict[int, tuple[str, str | None]]:
    """Return two keys for each session, by session id: the key of the session, and the key of its user (None where the
    user is not known)."""
    return {row[0]: (row[1], row[2]) for row in unit.ask(f"SELECT v.id, v.key, u.key {_SESSION_SOURCE}", sessions)}


def visits(unit: Unit) -> Iterator[Sequence[Sequence[Any]]]:
    """Yield portions of rows. There is a row for each visit, with all columns of the visit, then the key, user id,
    split, time of creation and digest of its session, and then the key and digest of its user."""
    columns = ", ".join(f"w.{name}" for name in column_names(t.visit))
    text = (
        f"SELECT {columns}, v.key, v.user_id, v.split, v.created_at, v.digest, u.key, u.digest FROM visit w"
        " JOIN session v ON v.id = w.session_id LEFT JOIN users u ON u.id = v.user_id ORDER BY w.session_id, w.number"
    )
    return unit.portions(text)
