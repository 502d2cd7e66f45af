"""Returns: the last decision of every user, which is credited when they come back."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

BIG = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "last_decision",
        sa.Column("user_id", BIG, autoincrement=False, nullable=False),
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_last_decision_user_id")),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name=op.f("fk_last_decision_decision_id")),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_last_decision")),
        sqlite_strict=True,
    )
