"""This module writes the script that grants rights to PostgreSQL roles: exactly the rights that a server, a trainer and
a reader need.

The owner of the tables needs no grant. Only the owner can run `init`, `db forget`, `db prune` and `db copy`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlrec.store.database import tables
from rlrec.store.database.schema import VERSION_TABLE
from rlrec.store.database.unit import quote_columns

# The tables to which serving, feedback and `settle` add rows.
_ADDED_BY_SERVER = (
    "assignment", "belief", "belief_delta", "candidate_list", "context", "decision", "eligible_set", "event",
    "feedback_key", "last_decision", "omission", "route_decision", "run", "session", "shadow_decision", "slot",
    "team_draft", "users", "visit",
)  # fmt: skip
# The columns that they change. For rows that they only lock, the right is for `id`, which foreign keys keep from
# changing.
_CHANGED_BY_SERVER: Mapping[str, Sequence[str]] = {
    "assignment": ("variant_id", "at"),  # of units moved by a ramp
    "belief": ("ordinal", "pulls", "reward_sum", "reward_squares", "extra"),
    "experiment": ("id",),
    "last_decision": ("decision_id",),
    "policy_head": ("seq", "ordinal"),
    "session": ("user_id",),
    "settings": ("catalogue_id", "catalogue_from", "catalogue_until"),
    "slot": ("censored",),
    "users": ("id",),
    "version": ("entered_to", "has_omissions"),
    "visit": ("started_at", "last_at", "steps", "recent", "ended_at", "history"),
}
# Of definitions, training, routes, merges of users and imports, which add rows to any table.
_CHANGED_BY_TRAINER: Mapping[str, Sequence[str]] = {
    **_CHANGED_BY_SERVER,
    "arm": ("features", "retired_at", "eligible_from", "eligible_until"),
    "assignment": ("user_id", "variant_id", "at"),
    "decision": ("state", "history"),  # of imported visits, derived from their rows
    "exclusion_unit": ("user_id",),
    "experiment": ("status", "stopped_at"),
    "lease": ("holder", "token", "taken_at", "expires_at"),
    "merged_user": ("person_id",),
    "policy_head": ("seq", "ordinal", "live_id"),
    "promotion": ("rolled_back_at",),
    "route": ("id",),
    "run": ("result",),
    "settings": ("catalogue_revision", "catalogue_id", "catalogue_from", "catalogue_until"),
    "shadow": ("stopped_at",),
    "version": ("status", "ordinal", "entered_to", "has_omissions"),
}


class Grant(NamedTuple):
    """This record is an SQL statement that grants rights to a role. role: the name of the role, without the prefix of
    the store."""

    role: str
    statement: str


def grants(prefix: str) -> list[Grant]:
    """Return statements that create the roles PREFIX_server, PREFIX_trainer and PREFIX_reader and grant rights to these
    roles. The statements may be run repeatedly, and should be run after each migration."""
    table_names = sorted(tables.metadata.tables)
    statements = []
    for role, insert_tables, update_columns in (
        ("reader", (), {}),
        ("server", _ADDED_BY_SERVER, _CHANGED_BY_SERVER),
        ("trainer", table_names, _CHANGED_BY_TRAINER),
    ):
        name = quote_columns([f"{prefix}_{role}"])
        role_query = f"SELECT FROM pg_roles WHERE rolname = '{prefix}_{role}'"
        lines = [
            f"DO $$ BEGIN IF NOT EXISTS ({role_query}) THEN CREATE ROLE {name}; END IF; END $$",
            _on_current("REVOKE ALL ON ALL TABLES IN SCHEMA %I FROM", "current_schema()", name),
            _on_current("GRANT CONNECT ON DATABASE %I TO", "current_database()", name),
            _on_current("GRANT USAGE ON SCHEMA %I TO", "current_schema()", name),
            f"GRANT SELECT ON {quote_columns([*table_names, *tables.VIEWS, VERSION_TABLE])} TO {name}",
        ]
        if insert_tables:
            lines.append(f"GRANT INSERT ON {quote_columns(insert_tables)} TO {name}")
            lines.append(_on_current("GRANT USAGE ON ALL SEQUENCES IN SCHEMA %I TO", "current_schema()", name))
        lines += [
            f"GRANT UPDATE ({quote_columns(columns)}) ON {quote_columns([table])} TO {name}"
            for table, columns in update_columns.items()
        ]
        if role == "trainer":
            lines.append(f'GRANT DELETE ON "lease", "exclusion", "exclusion_unit", "group_member" TO {name}')
        statements += [Grant(role, line + ";") for line in lines]
    return statements


def _on_current(command: str, name_function: str, role: str) -> str:
    """Return a statement that grants or revokes rights on the current database or schema. The statement finds the name
    of this database or schema when it runs.

    command: the statement, with %I in place of the name; name_function: the SQL function that returns the name;
    role: the quoted name of the role."""
    return f"DO $$ BEGIN EXECUTE format('{command} %I', {name_function}, '{role[1:-1]}'); END $$"
