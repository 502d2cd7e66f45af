"""Beliefs: the sums that are served now, the change of every transaction, and the belief of any moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rlrec.store.unit import Row, Unit

SUMS = ("pulls", "reward_sum", "reward_squares")
Sums = tuple[float, float, float]
NOTHING: Sums = (0.0, 0.0, 0.0)

_SUMS = ", ".join(SUMS)
_REPLACED = ", ".join(f"{name} = excluded.{name}" for name in SUMS)
_DELTA = ("version_id", "arm_id", "bucket", "seq", "ordinal", *("d_" + name for name in SUMS), *SUMS)


def current(unit: Unit, version_id: int) -> list[Row]:
    """(arm_id, pulls, reward_sum, reward_squares) of every arm the belief knows, by arm."""
    return unit.ask(f"SELECT arm_id, {_SUMS} FROM belief WHERE version_id = ? ORDER BY arm_id", version_id)


def as_of(unit: Unit, version_id: int, seq: int) -> list[Row]:
    """The same rows as they stood after change `seq`: per arm the newest delta with seq at most that, bit for bit."""
    newest = (
        "SELECT arm_id, bucket, max(seq) AS seq FROM belief_delta WHERE version_id = ? AND seq <= ?"
        " GROUP BY arm_id, bucket"
    )
    joined = (
        f"belief_delta AS delta JOIN ({newest}) AS newest"
        " ON delta.arm_id = newest.arm_id AND delta.bucket = newest.bucket AND delta.seq = newest.seq"
    )
    columns = ", ".join(f"delta.{name}" for name in ("arm_id", *SUMS))
    chosen = f"SELECT {columns} FROM {joined} WHERE delta.version_id = ? ORDER BY delta.arm_id"
    return unit.ask(chosen, version_id, seq, version_id)


def add(unit: Unit, version_id: int, *, seq: int, changes: Mapping[int, Sums]) -> None:
    """Add a change per arm to the sums and write it down as delta `seq`; the caller holds the policy's lock."""
    known = f"SELECT arm_id, {_SUMS} FROM belief WHERE version_id = ? AND bucket = 0 AND arm_id IN (?*)"
    before = {row[0]: row[1:] for row in unit.ask(known, version_id, sorted(changes))}
    after = {
        arm: tuple(old + new for old, new in zip(before.get(arm, NOTHING), change, strict=True))
        for arm, change in sorted(changes.items())
    }
    unit.insert(
        "belief",
        ("version_id", "arm_id", "bucket", "ordinal", *SUMS),
        [(version_id, arm, 0, 0, *sums) for arm, sums in after.items()],
        known=f"(version_id, bucket, arm_id) DO UPDATE SET {_REPLACED}",
    )
    rows = [(version_id, arm, 0, seq, 0, *changes[arm], *sums) for arm, sums in after.items()]
    unit.insert("belief_delta", _DELTA, rows)


def prior(unit: Unit, version_id: int) -> list[Row]:
    """(arm_id, alpha, beta) of the arms whose prior is not the kind's default, by arm."""
    return unit.ask("SELECT arm_id, alpha, beta FROM prior WHERE version_id = ? ORDER BY arm_id", version_id)


def add_prior(unit: Unit, version_id: int, rows: Iterable[tuple[int, float, float]]) -> None:
    unit.insert("prior", ("version_id", "arm_id", "alpha", "beta"), [(version_id, *row) for row in rows])
