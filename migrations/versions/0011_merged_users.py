"""This migration lets one person have several keys, and adds an index by which the sessions of a user are found."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

BIG = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "merged_user",
        sa.Column("user_id", BIG, autoincrement=False, nullable=False),
        sa.Column("person_id", BIG, autoincrement=False, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.CheckConstraint("user_id <> person_id", name="ck_merged_user_another"),
        sa.ForeignKeyConstraint(["person_id"], ["users.id"], name="fk_merged_user_person_id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_merged_user_user_id"),
        sa.PrimaryKeyConstraint("user_id", name="pk_merged_user"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_index("ix_merged_user_person_id", "merged_user", ["person_id"], unique=False)
    op.create_index(
        "ix_session_user_id",
        "session",
        ["user_id"],
        unique=False,
        sqlite_where=sa.text("user_id IS NOT NULL"),
        postgresql_where=sa.text("user_id IS NOT NULL"),
    )
