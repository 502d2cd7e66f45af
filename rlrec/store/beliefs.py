"""Beliefs: the sums that are served now, the change of every transaction, and the belief of any moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlrec.store.unit import Row, Unit

SUMS = ("pulls", "reward_sum", "reward_squares")
Sums = tuple[float, float, float]
NOTHING: Sums = (0.0, 0.0, 0.0)
Place = tuple[int, int]  # bucket and arm: of what does not forget by a window, all buckets are 0

_SUMS = ", ".join(SUMS)
_HELD = ("bucket", "arm_id", "ordinal", *SUMS, "extra")
_BELIEF = ("version_id", "arm_id", "bucket", "ordinal", *SUMS, "extra")
_REPLACED = ", ".join(f"{name} = excluded.{name}" for name in _BELIEF[3:])
_DELTA = ("version_id", "arm_id", "bucket", "seq", "ordinal", *("d_" + name for name in SUMS), *SUMS, "extra")


def current(unit: Unit, version_id: int) -> list[Row]:
    """(arm_id, pulls, reward_sum, reward_squares) of every arm that a belief knows which forgets nothing, by arm."""
    return unit.ask(f"SELECT arm_id, {_SUMS} FROM belief WHERE version_id = ? ORDER BY arm_id", version_id)


def as_of(unit: Unit, version_id: int, seq: int) -> list[Row]:
    """The same rows as they stood after change `seq`: per arm the newest delta with seq at most that, bit for bit."""
    return _at(unit, ("arm_id", *SUMS), version_id, seq, oldest=0)


def held(unit: Unit, version_id: int, *, oldest: int = 0) -> list[Row]:
    """(bucket, arm_id, ordinal, pulls, reward_sum, reward_squares, extra) from a bucket on, by bucket and arm.

    ordinal: how many decisions the policy had made when the sums were last written; extra: further sums, packed."""
    mine = "version_id = ? AND bucket >= ? ORDER BY bucket, arm_id"
    return unit.ask(f"SELECT {', '.join(_HELD)} FROM belief WHERE {mine}", version_id, oldest)


def held_at(unit: Unit, version_id: int, seq: int, *, oldest: int = 0) -> list[Row]:
    """The same rows as they stood after change `seq`."""
    return _at(unit, _HELD, version_id, seq, oldest=oldest)


def _at(unit: Unit, columns: Sequence[str], version_id: int, seq: int, *, oldest: int) -> list[Row]:
    newest = (
        "SELECT arm_id, bucket, max(seq) AS seq FROM belief_delta WHERE version_id = ? AND bucket >= ? AND seq <= ?"
        " GROUP BY arm_id, bucket"
    )
    joined = (
        f"belief_delta AS delta JOIN ({newest}) AS newest"
        " ON delta.arm_id = newest.arm_id AND delta.bucket = newest.bucket AND delta.seq = newest.seq"
    )
    names = ", ".join(f"delta.{name}" for name in columns)
    chosen = f"SELECT {names} FROM {joined} WHERE delta.version_id = ? ORDER BY delta.bucket, delta.arm_id"
    return unit.ask(chosen, version_id, oldest, seq, version_id)


def add(
    unit: Unit,
    version_id: int,
    *,
    seq: int,
    changes: Mapping[Place, Any],
    ordinal: int = 0,
    discount: float = 1.0,
) -> None:
    """Add a change per place to the sums and write it down as delta `seq`; the caller holds the policy's lock.

    changes: sequences of the three sums, and the further ones of kinds that have any. ordinal, discount: of a belief
    that fades: its sums are brought forward to the policy's `ordinal`, which is what the changes refer to."""
    wanted = "version_id = ? AND bucket IN (?*) AND arm_id IN (?*)"
    buckets, arms = sorted({place[0] for place in changes}), sorted({place[1] for place in changes})
    known = unit.ask(f"SELECT {', '.join(_HELD)} FROM belief WHERE {wanted}", version_id, buckets, arms)
    before = {row[:2]: row[2:] for row in known}
    rows, deltas = [], []
    for place, change in sorted(changes.items(), key=lambda one: one[0]):
        old = before.get(place, (ordinal, *NOTHING, None))
        kept = discount ** (ordinal - old[0])
        sums = [kept * was + float(new) for was, new in zip(old[1:4], change[:3], strict=True)]
        extra = _extra(old[4], kept, change[3:]) if len(change) > 3 else None
        bucket, arm = place
        rows.append((version_id, arm, bucket, ordinal, *sums, extra))
        deltas.append((version_id, arm, bucket, seq, ordinal, *map(float, change[:3]), *sums, extra))
    unit.insert("belief", _BELIEF, rows, known=f"(version_id, bucket, arm_id) DO UPDATE SET {_REPLACED}")
    unit.insert("belief_delta", _DELTA, deltas)


def _extra(before: bytes | None, kept: float, change: Any) -> bytes:
    import numpy as np

    sums = np.array(change, "<f8")
    if before is not None:
        sums += kept * np.frombuffer(before, "<f8")
    return sums.tobytes()


def prior(unit: Unit, version_id: int) -> list[Row]:
    """(arm_id, alpha, beta) of the arms whose prior is not the kind's default, by arm."""
    return unit.ask("SELECT arm_id, alpha, beta FROM prior WHERE version_id = ? ORDER BY arm_id", version_id)


def add_prior(unit: Unit, version_id: int, rows: Iterable[tuple[int, float, float]]) -> None:
    unit.insert("prior", ("version_id", "arm_id", "alpha", "beta"), [(version_id, *row) for row in rows])
