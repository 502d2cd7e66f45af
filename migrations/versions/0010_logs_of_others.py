"""Logs of others: how likely the log kept a row, whether propensities were estimated, features of the arms of one
decision, the arms that each position could show, and the full vector of probabilities."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

BIG = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")
SMALL = sa.SmallInteger().with_variant(sa.INTEGER(), "sqlite")
REAL = sa.Double().with_variant(sa.REAL(), "sqlite")
BYTES = sa.LargeBinary().with_variant(sa.BLOB(), "sqlite")


def upgrade() -> None:
    # One statement a column: to add one that is null rewrites no row.
    op.execute(
        f"ALTER TABLE decision ADD COLUMN keep_probability {_type(REAL)} CONSTRAINT"
        " ck_decision_keep_probability_probability CHECK (keep_probability > 0 AND keep_probability <= 1)"
    )
    op.execute(
        f"ALTER TABLE decision ADD COLUMN estimated {_type(SMALL)} CONSTRAINT"
        " ck_decision_estimated_flag CHECK (estimated IN (0, 1))"
    )
    _create("decision_features", sa.Column("context_id", BIG, nullable=False), names_context=True)
    _create("slot_set", sa.Column("arms", sa.Text(), nullable=False))
    _create("logged_support", sa.Column("probabilities", BYTES, nullable=False))


def _type(column: sa.types.TypeEngine) -> str:
    return column.compile(dialect=op.get_bind().dialect)


def _create(name: str, column: sa.Column, names_context: bool = False) -> None:
    keys = [sa.ForeignKeyConstraint(["context_id"], ["context.id"], name=op.f(f"fk_{name}_context_id"))]
    op.create_table(
        name,
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        column,
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name=op.f(f"fk_{name}_decision_id")),
        *(keys if names_context else ()),
        sa.PrimaryKeyConstraint("decision_id", name=op.f(f"pk_{name}")),
        sqlite_strict=True,
    )
