"""This migration gives experiments phases, and layers whose experiments share no unit."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

BIG = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "phase",
        sa.Column("id", BIG, nullable=False),
        sa.Column("experiment_id", BIG, autoincrement=False, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("weights", sa.Text(), nullable=False),
        sa.CheckConstraint("mode IN ('draws', 'moves', 'frozen')", name="ck_phase_mode"),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiment.id"], name="fk_phase_experiment_id"),
        sa.PrimaryKeyConstraint("id", name="pk_phase"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_index("ix_phase_experiment_id", "phase", ["experiment_id"], unique=False)
    for name in ("layer", "parts"):
        op.execute(f"ALTER TABLE experiment ADD COLUMN {name} TEXT")
