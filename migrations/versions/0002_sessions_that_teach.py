"""Sessions that teach: what a decision remembers of its visit, what training finds, and who trains.

Nothing is rewritten: a column that may be null costs a moment, however long the log.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

BIG = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")
BYTES = sa.LargeBinary().with_variant(sa.BLOB(), "sqlite")
TEXT = sa.Text()


def upgrade() -> None:
    op.add_column("decision", sa.Column("history", BYTES, nullable=True))
    op.add_column("visit", sa.Column("history", BYTES, nullable=True))
    op.create_table(
        "arm_weights",
        sa.Column("version_id", BIG, autoincrement=False, nullable=False),
        sa.Column("arm_id", BIG, autoincrement=False, nullable=False),
        sa.Column("weights", BYTES, nullable=False),
        sa.ForeignKeyConstraint(["arm_id"], ["arm.id"], name="fk_arm_weights_arm_id"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_arm_weights_version_id"),
        sa.PrimaryKeyConstraint("version_id", "arm_id", name="pk_arm_weights"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "lease",
        sa.Column("policy_id", BIG, autoincrement=False, nullable=False),
        sa.Column("holder", TEXT, nullable=False),
        sa.Column("token", TEXT, nullable=False),
        sa.Column("taken_at", BIG, nullable=False),
        sa.Column("expires_at", BIG, nullable=False),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name="fk_lease_policy_id"),
        sa.PrimaryKeyConstraint("policy_id", name="pk_lease"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
