"""Team drafts: which of two rankers picked each slot of an interleaved slate."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

BIG = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "team_draft",
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        sa.Column("teams", sa.Text(), nullable=False),
        sa.CheckConstraint("length(teams) > 0", name=op.f("ck_team_draft_teams_named")),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name=op.f("fk_team_draft_decision_id")),
        sa.PrimaryKeyConstraint("decision_id", name=op.f("pk_team_draft")),
        sqlite_strict=True,
    )
