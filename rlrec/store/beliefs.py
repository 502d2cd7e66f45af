"""Beliefs: the sums that are served now, the change of every transaction, and the belief of any moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import sqlalchemy as sa

from rlrec.store import tables as t
from rlrec.store.unit import Row, Unit

SUMS = ("pulls", "reward_sum", "reward_squares")
Sums = tuple[float, float, float]
NOTHING: Sums = (0.0, 0.0, 0.0)


def current(unit: Unit, version_id: int) -> list[Row]:
    """(arm_id, pulls, reward_sum, reward_squares) of every arm the belief knows, by arm."""
    belief = t.belief.c
    statement = sa.select(belief.arm_id, *(belief[name] for name in SUMS)).where(belief.version_id == version_id)
    return unit.rows(statement.order_by(belief.arm_id))


def as_of(unit: Unit, version_id: int, seq: int) -> list[Row]:
    """The same rows as they stood after change `seq`: per arm the newest delta with seq at most that, bit for bit."""
    delta = t.belief_delta.c
    newest = (
        sa.select(delta.arm_id, delta.bucket, sa.func.max(delta.seq).label("seq"))
        .where(delta.version_id == version_id, delta.seq <= seq)
        .group_by(delta.arm_id, delta.bucket)
        .subquery()
    )
    same = sa.and_(
        delta.version_id == version_id,
        delta.arm_id == newest.c.arm_id,
        delta.bucket == newest.c.bucket,
        delta.seq == newest.c.seq,
    )
    return unit.rows(sa.select(delta.arm_id, *(delta[name] for name in SUMS)).join(newest, same).order_by(delta.arm_id))


def deltas(unit: Unit, version_id: int) -> Iterable[Row]:
    """Every change in the order it was made: (seq, arm_id, the change of each sum, each sum after it)."""
    delta = t.belief_delta.c
    columns = (
        delta.seq,
        delta.arm_id,
        *(delta["d_" + name] for name in SUMS),
        *(delta[name] for name in SUMS),
    )
    statement = sa.select(*columns).where(delta.version_id == version_id).order_by(delta.seq, delta.arm_id)
    return (tuple(row) for row in unit.connection.execution_options(yield_per=10_000).execute(statement))


def add(unit: Unit, version_id: int, *, seq: int, changes: Mapping[int, Sums]) -> None:
    """Add a change per arm to the sums and write it down as delta `seq`; the caller holds the policy's lock."""
    belief = t.belief.c
    statement = sa.select(belief.arm_id, *(belief[name] for name in SUMS)).where(belief.version_id == version_id)
    before = {row[0]: row[1:] for row in unit.many(statement, belief.arm_id, changes)}
    after = {
        arm: tuple(old + new for old, new in zip(before.get(arm, NOTHING), change, strict=True))
        for arm, change in sorted(changes.items())
    }
    replace = "(version_id, bucket, arm_id) DO UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in SUMS)
    rows = [(version_id, arm, 0, 0, *sums) for arm, sums in after.items()]
    unit.insert(t.belief, ("version_id", "arm_id", "bucket", "ordinal", *SUMS), rows, known=replace)
    columns = ("version_id", "arm_id", "bucket", "seq", "ordinal", *("d_" + name for name in SUMS), *SUMS)
    unit.insert(
        t.belief_delta,
        columns,
        [(version_id, arm, 0, seq, 0, *changes[arm], *sums) for arm, sums in after.items()],
    )


def prior(unit: Unit, version_id: int) -> list[Row]:
    """(arm_id, alpha, beta) of the arms whose prior is not the kind's default, by arm."""
    statement = sa.select(t.prior.c.arm_id, t.prior.c.alpha, t.prior.c.beta)
    return unit.rows(statement.where(t.prior.c.version_id == version_id).order_by(t.prior.c.arm_id))


def add_prior(unit: Unit, version_id: int, rows: Iterable[tuple[int, float, float]]) -> None:
    unit.insert(t.prior, ("version_id", "arm_id", "alpha", "beta"), [(version_id, *row) for row in rows])
