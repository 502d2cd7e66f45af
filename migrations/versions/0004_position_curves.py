"""Curves of examination by position: numbered under a name, and never changed."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

BIG = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "position_curve",
        sa.Column("id", BIG, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("reward_id", BIG, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("options", sa.Text(), nullable=False),
        sa.Column("positions", sa.Text(), nullable=False),
        sa.Column("report", sa.Text(), nullable=False),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 200", name=op.f("ck_position_curve_name_length")),
        sa.CheckConstraint("number > 0", name=op.f("ck_position_curve_number_positive")),
        sa.CheckConstraint("model IN ('pbm', 'cascade', 'dcm')", name=op.f("ck_position_curve_model_known")),
        sa.ForeignKeyConstraint(["reward_id"], ["reward.id"], name=op.f("fk_position_curve_reward_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_position_curve")),
        sa.UniqueConstraint("name", "number", name=op.f("uq_position_curve_name_number")),
        sqlite_strict=True,
    )
