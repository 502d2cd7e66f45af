"""This migration lets routes keep some of their users apart for good, by an experiment."""

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    kind = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    reference = "CONSTRAINT fk_route_holdout_id REFERENCES experiment (id)"
    op.execute(f"ALTER TABLE route ADD COLUMN holdout_id {kind} {reference}")
