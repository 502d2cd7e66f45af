"""Routes: names that callers use, what they served when, the looks of their gates, and challengers in their shadow."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

BIG = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")
REAL = sa.Double().with_variant(sa.REAL(), "sqlite")


def _number(name: str, *, null: bool = False) -> sa.Column:
    return sa.Column(name, BIG, nullable=null, autoincrement=False)


def _text(name: str) -> sa.Column:
    return sa.Column(name, sa.Text(), nullable=False)


def _table(name: str, *parts: sa.Column | sa.Constraint, refs: dict[str, str], keys: tuple[str, ...] = ()) -> None:
    """A table whose columns refer to other tables. keys: its primary key, which is an `id` where there is none."""
    columns = parts if keys else (sa.Column("id", BIG, nullable=False), *parts)
    foreign = [
        sa.ForeignKeyConstraint([column], [f"{target}.id"], name=op.f(f"fk_{name}_{column}"))
        for column, target in refs.items()
    ]
    key = sa.PrimaryKeyConstraint(*(keys or ("id",)), name=op.f(f"pk_{name}"))
    op.create_table(name, *columns, *foreign, key, sqlite_strict=True, sqlite_with_rowid=len(keys) < 2)


def upgrade() -> None:
    _table(
        "route", _text("name"), _number("created_at"), sa.UniqueConstraint("name", name=op.f("uq_route_name")), refs={}
    )
    _table(
        "gate_look", _number("route_id"), _number("at"), _number("policy_id"), _number("version_id"), _text("report"),
        refs={"route_id": "route", "policy_id": "policy", "version_id": "version"},
    )  # fmt: skip
    op.create_index(op.f("ix_gate_look_route_id_at"), "gate_look", ["route_id", "at"])
    _table(
        "route_change", _number("route_id"), _number("at"), _number("policy_id"), _number("version_id", null=True),
        _number("experiment_id", null=True), _text("command"), _number("look_id", null=True),
        _number("restored_id", null=True),
        refs={
            "route_id": "route", "policy_id": "policy", "version_id": "version", "experiment_id": "experiment",
            "look_id": "gate_look", "restored_id": "route_change",
        },
    )  # fmt: skip
    op.create_index(op.f("ix_route_change_route_id_id"), "route_change", ["route_id", "id"])
    _table(
        "shadow", _number("route_id"), _number("policy_id"), _number("version_id", null=True), _number("started_at"),
        _number("stopped_at", null=True),
        refs={"route_id": "route", "policy_id": "policy", "version_id": "version"},
    )  # fmt: skip
    op.create_index(op.f("ix_shadow_route_id_id"), "shadow", ["route_id", "id"])
    _table(
        "route_decision", _number("decision_id"), _number("route_id"),
        refs={"decision_id": "decision", "route_id": "route"}, keys=("decision_id",),
    )  # fmt: skip
    _table(
        "shadow_decision", _number("shadow_id"), _number("decision_id"), sa.Column("log_probability", REAL),
        sa.CheckConstraint(
            "log_probability <= 0 AND log_probability >= -1e308",
            name=op.f("ck_shadow_decision_log_probability_range"),
        ),
        refs={"shadow_id": "shadow", "decision_id": "decision"}, keys=("shadow_id", "decision_id"),
    )  # fmt: skip
