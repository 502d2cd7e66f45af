"""Lists of candidates: what the first stage of a decision drew, in order, with its propensities."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

BIG = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")
REAL = sa.Double().with_variant(sa.REAL(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "candidate_list",
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        sa.Column("catalogue_id", BIG, nullable=True),
        sa.Column("arms", sa.Text(), nullable=False),
        sa.Column("propensities", sa.Text(), nullable=False),
        sa.Column("log_propensity", REAL, nullable=False),
        sa.CheckConstraint(
            "log_propensity <= 0 AND log_propensity >= -1e308", name=op.f("ck_candidate_list_log_propensity_range")
        ),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name=op.f("fk_candidate_list_decision_id")),
        sa.ForeignKeyConstraint(["catalogue_id"], ["eligible_set.id"], name=op.f("fk_candidate_list_catalogue_id")),
        sa.PrimaryKeyConstraint("decision_id", name=op.f("pk_candidate_list")),
        sqlite_strict=True,
    )
