"""This migration gives arms times and groups. An eligible set may then be stored as the arms that it lacks of a larger
set."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

BIG = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "arm_group",
        sa.Column("id", BIG, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_arm_group"),
        sa.UniqueConstraint("name", name="uq_arm_group_name"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "group_member",
        sa.Column("arm_group_id", BIG, autoincrement=False, nullable=False),
        sa.Column("arm_id", BIG, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["arm_group_id"], ["arm_group.id"], name="fk_group_member_arm_group_id"),
        sa.ForeignKeyConstraint(["arm_id"], ["arm.id"], name="fk_group_member_arm_id"),
        sa.PrimaryKeyConstraint("arm_group_id", "arm_id", name="pk_group_member"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_group_member_arm_id", "group_member", ["arm_id"], unique=False)
    kind = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    for table, names in (
        ("arm", ("eligible_from", "eligible_until")),
        ("arm_history", ("eligible_from", "eligible_until")),
        ("settings", ("catalogue_from", "catalogue_until")),
    ):
        for name in names:
            op.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
    reference = "CONSTRAINT fk_eligible_set_superset_id REFERENCES eligible_set (id)"
    op.execute(f"ALTER TABLE eligible_set ADD COLUMN superset_id {kind} {reference}")
    op.create_index("ix_eligible_set_superset_id", "eligible_set", ["superset_id"], unique=False)
