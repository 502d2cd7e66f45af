"""Digests of the keys of users and sessions: estimates follow them, and no longer the order in which keys came.

The digest is blake2b of the key in 8 bytes, little-endian, signed. Existing rows get theirs here, some at a time.
"""

from hashlib import blake2b

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

BIG = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")
PORTION = 10_000
FILL = {
    "sqlite": "UPDATE {table} SET digest = :digest WHERE id = :id",
    "postgresql": "UPDATE {table} SET digest = row.digest"
    " FROM unnest(CAST(:ids AS bigint[]), CAST(:digests AS bigint[])) AS row(id, digest) WHERE {table}.id = row.id",
}


def upgrade() -> None:
    for table in ("users", "session"):
        op.add_column(table, sa.Column("digest", BIG, nullable=True))
        _fill(op.get_bind(), table)


def _fill(connection: sa.Connection, table: str) -> None:
    """Give every row the digest of its key."""
    fill = sa.text(FILL[connection.dialect.name].format(table=table))
    ahead = sa.text(f"SELECT id, key FROM {table} WHERE id > :last ORDER BY id LIMIT {PORTION}")
    last = -1
    while rows := connection.execute(ahead, {"last": last}).all():
        ids, digests = [row[0] for row in rows], [_digest(row[1]) for row in rows]
        if connection.dialect.name == "postgresql":
            connection.execute(fill, {"ids": ids, "digests": digests})
        else:
            pairs = zip(ids, digests, strict=True)
            connection.execute(fill, [{"id": number, "digest": digest} for number, digest in pairs])
        last = ids[-1]


def _digest(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little", signed=True)
