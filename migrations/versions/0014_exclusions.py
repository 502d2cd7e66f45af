"""This migration adds exclusions, which are decisions that every reader leaves out, and records those that beliefs have
left out."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

BIG = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")
SMALL = sa.SmallInteger().with_variant(sa.INTEGER(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "exclusion",
        sa.Column("id", BIG, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("filter", sa.Text(), nullable=False),
        sa.Column("by_unit", SMALL, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.CheckConstraint("by_unit IN (0, 1)", name="ck_exclusion_by_unit_flag"),
        sa.PrimaryKeyConstraint("id", name="pk_exclusion"),
        sa.UniqueConstraint("name", name="uq_exclusion_name"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "exclusion_unit",
        sa.Column("id", BIG, nullable=False),
        sa.Column("exclusion_id", BIG, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG, autoincrement=False, nullable=True),
        sa.Column("session_id", BIG, autoincrement=False, nullable=True),
        sa.CheckConstraint("(user_id IS NULL) <> (session_id IS NULL)", name="ck_exclusion_unit_one_unit"),
        sa.ForeignKeyConstraint(["exclusion_id"], ["exclusion.id"], name="fk_exclusion_unit_exclusion_id"),
        sa.ForeignKeyConstraint(["session_id"], ["session.id"], name="fk_exclusion_unit_session_id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_exclusion_unit_user_id"),
        sa.PrimaryKeyConstraint("id", name="pk_exclusion_unit"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    for column in ("exclusion_id", "session_id", "user_id"):
        op.create_index(f"ix_exclusion_unit_{column}", "exclusion_unit", [column], unique=False)
    op.create_table(
        "omission",
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        sa.Column("version_id", BIG, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_omission_decision_id"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_omission_version_id"),
        sa.PrimaryKeyConstraint("decision_id", "version_id", name="pk_omission"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    kind = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "SMALLINT"
    check = "CONSTRAINT ck_version_has_omissions_flag CHECK (has_omissions IN (0, 1))"
    op.execute(f"ALTER TABLE version ADD COLUMN has_omissions {kind} {check}")
