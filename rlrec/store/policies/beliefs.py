"""Queries here store beliefs: the present sums, the change that each transaction made to the sums, and the sums after
each past change.

The rows of a belief are divided into buckets, which have numbers. If the belief forgets what is older than a window,
a bucket is a span of time. If contexts are sparse, a bucket is a column of the contexts. A negative number is a
slice of time in which the policy spent its budget. Sums by the features of arms that requests state have buckets in
number ranges of their own (see SECTION). All other sums are in bucket 0."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from rlrec.store.database.unit import FEW, Record, Row, Unit

SUMS = ("pulls", "reward_sum", "reward_squares")
Sums = tuple[float, float, float]
NOTHING: Sums = (0.0, 0.0, 0.0)
BeliefKey = tuple[int, int]  # bucket and arm; counts have bucket 0, unless a window forgets
EARLIEST = -(2**62)  # below the buckets of spend, which are negative
FIRST_COLUMN = 1  # the bucket of column 0 of sparse contexts, whose beliefs have no window
# Sums by features of arms that requests state have buckets in a SECTION of their own: TOGETHER for all arms, stored
# under the first arm of the store, and BY_ARM for each arm. The lowest bits of such a bucket mean what they mean
# elsewhere.
SECTION, TOGETHER, BY_ARM = 2**40, 1, 2


class ArmSums(NamedTuple):
    """This record has the sums of one arm in a belief that forgets nothing."""

    arm_id: int
    pulls: float
    reward_sum: float
    reward_squares: float


class BeliefRow(NamedTuple):
    """This record has the sums of one arm in one bucket of a belief. ordinal: how many decisions had been drawn from
    the policy when the row was last written; extra: further sums, as packed bytes."""

    bucket: int
    arm_id: int
    ordinal: int
    pulls: float
    reward_sum: float
    reward_squares: float
    extra: bytes | None


# the first for a belief that forgets nothing, the second for any other
BeliefRows = Sequence[ArmSums] | Sequence[BeliefRow]
ArmWeights = tuple[int, bytes]  # an arm and its trained weights, packed: written once with a version, never changed
_BELIEF = ("version_id", "arm_id", "bucket", "ordinal", *SUMS, "extra")
_REPLACED = ", ".join(f"{name} = excluded.{name}" for name in _BELIEF[3:])
_DELTA = ("version_id", "arm_id", "bucket", "seq", "ordinal", *("d_" + name for name in SUMS), *SUMS, "extra")


def sums(unit: Unit, version_id: int, *, seq: int | None = None) -> list[ArmSums]:
    """Return the sums of each arm in a belief that forgets nothing, in order of arm.

    seq: the number of a past change, to return exactly the sums that the belief had after this change (they are
    stored with the newest change of each arm up to `seq`); None: the present sums."""
    return _read_rows(unit, ArmSums, version_id, seq, "bucket = ?", 0)


def rows(unit: Unit, version_id: int, *, start: int = 0, seq: int | None = None) -> list[BeliefRow]:
    """Return the rows of a belief, in order of bucket and arm. start: the first bucket that is read; seq: the number of
    a past change whose sums are read, or None for the present sums."""
    test = "bucket >= ?" if start <= 0 else f"bucket >= ? AND (bucket & {SECTION - 1}) >= {start}"
    return _read_rows(unit, BeliefRow, version_id, seq, test, start)


def spend(unit: Unit, version_id: int, *, newest_slices: int | None = None, seq: int | None = None) -> list[BeliefRow]:
    """Return the rows with the spend of a policy that has a budget, newest first.

    In these rows, `pulls` is the number of slots shown, `reward_sum` is the cost of these slots, and
    `reward_squares` is the number of slots whose cost is known. newest_slices: how many of the newest slices of time
    are read (None: all slices); seq: the number of a past change whose sums are read, or None for the present sums."""
    first_bucket, last_bucket = EARLIEST, -1
    if newest_slices is not None:
        query = "SELECT min(bucket) FROM belief WHERE version_id = ? AND bucket < 0"
        last_bucket = min(last_bucket, int(unit.ask_value(query, version_id) or 0) + newest_slices)
    return _read_rows(unit, BeliefRow, version_id, seq, "bucket BETWEEN ? AND ?", first_bucket, last_bucket)


def counts(unit: Unit, version_id: int, *, seq: int | None = None) -> list[BeliefRow]:
    """Return the rows of a belief in bucket 0, in order of arm. The rows of columns of contexts, which have other
    buckets, are left out. seq: the number of a past change whose sums are read, or None for the present sums."""
    return _read_rows(unit, BeliefRow, version_id, seq, "bucket = ?", 0)


def totals(unit: Unit, version_ids: Collection[int]) -> dict[int, tuple[float, float]]:
    """Return the sum of pulls and the sum of rewards over all arms, by version id. Versions that have learned nothing
    are left out."""
    tests = f"version_id IN (?*) AND bucket >= 0 AND bucket < {SECTION}"
    query = f"SELECT version_id, sum(pulls), sum(reward_sum) FROM belief WHERE {tests} GROUP BY version_id"
    return {version_id: (pulls, reward) for version_id, pulls, reward in unit.ask(query, version_ids)}


def column_rows(unit: Unit, version_id: int, columns: Collection[int] | None, *, seq: int | None = None) -> list[Row]:
    """Return the rows of a belief for columns of sparse contexts. Each row has the column, the arm, the ordinal and the
    three sums. columns: the columns that are read (None: all columns); seq: the number of a past change whose sums are
    read, or None for the present sums."""
    test = "bucket >= ?" if columns is None else "bucket IN (?*)"
    buckets: Any = FIRST_COLUMN if columns is None else [column + FIRST_COLUMN for column in columns]
    belief_rows = _read_rows(unit, BeliefRow, version_id, seq, test, buckets)
    return [(row.bucket - FIRST_COLUMN, *row[1:6]) for row in belief_rows]


def arm_rows(unit: Unit, record_type: type[Any], version_id: int, arm_ids: Collection[int]) -> list[Any]:
    """Return the rows of these arms in a belief, in order of bucket and arm. With ArmSums, only bucket 0 is read. With
    BeliefRow, the sums by the features of arms that requests state are read, too. record_type: the type of the rows,
    ArmSums or BeliefRow."""
    test = "bucket = 0" if record_type is ArmSums else f"bucket IN (0, {TOGETHER * SECTION}, {BY_ARM * SECTION})"
    source = f"belief WHERE version_id = ? AND {test} AND arm_id IN (?*) ORDER BY bucket, arm_id"
    return unit.select(record_type, source, version_id, list(arm_ids)) if arm_ids else []


def _read_rows(
    unit: Unit, record_type: type[Record], version_id: int, seq: int | None, bucket_test: str, *buckets: Any
) -> list[Record]:
    """Return the rows of a belief whose bucket passes a test, in order of bucket and arm.

    record_type: the type of the rows; seq: the number of a past change whose sums are read, or None for the present
    sums; bucket_test: the test in SQL; buckets: the values in this test."""
    if seq is None:
        in_order = f"belief WHERE version_id = ? AND {bucket_test} ORDER BY bucket, arm_id"
        return unit.select(record_type, in_order, version_id, *buckets)
    newest = (
        f"SELECT arm_id, bucket, max(seq) AS seq FROM belief_delta WHERE version_id = ? AND {bucket_test} AND seq <= ?"
        " GROUP BY arm_id, bucket"
    )
    tables = (
        f"belief_delta AS delta JOIN ({newest}) AS newest"
        " ON delta.arm_id = newest.arm_id AND delta.bucket = newest.bucket AND delta.seq = newest.seq"
    )
    names = ", ".join(f"delta.{name}" for name in record_type._fields)
    in_order = f"SELECT {names} FROM {tables} WHERE delta.version_id = ? ORDER BY delta.bucket, delta.arm_id"
    return unit.records(record_type, in_order, version_id, *buckets, seq, version_id)


def add(
    unit: Unit, version_id: int, *, seq: int, changes: Mapping[BeliefKey, Any], ordinal: int = 0, discount: float = 1.0
) -> dict[BeliefKey, Sums]:
    """Add changes to the sums of a belief, and store the changes under the number `seq`. If SQLite stores few changes
    at once, return the new sums of each bucket and arm; else return an empty dictionary. The caller must hold the lock
    of the policy.

    changes: for each bucket and arm, the amounts to add to the three sums, and to further sums for kinds of policies
    that have further sums. ordinal, discount: the policy's number of decisions, and the factor by which sums fade
    with each decision; the old sums are discounted up to `ordinal` before the changes are added."""
    if discount == 1.0 and len(changes) <= FEW and all(len(sums) == 3 for sums in changes.values()):
        added_rows = [(*key, *map(float, changes[key])) for key in sorted(changes)]
        if unit.postgres:
            columns = map(list, zip(*added_rows, strict=True))
            unit.note(_ADD_FEW, *columns, version_id, ordinal, version_id, seq, ordinal)
            return {}
        values = [value for row in added_rows for value in (version_id, ordinal, *row)]
        new_sums: dict[Any, Any] = {row[:2]: row[2:] for row in unit.ask(_upsert_statement(len(added_rows)), *values)}
        names = ("version_id", "seq", "ordinal", "bucket", "arm_id", *_DELTA[5:-1])
        rows = [(version_id, seq, ordinal, *row, *new_sums[row[:2]]) for row in added_rows]
        unit.insert("belief_delta", names, rows)
        return new_sums
    test = "version_id = ? AND bucket IN (?*) AND arm_id IN (?*)"
    buckets, arms = sorted({bucket for bucket, _ in changes}), sorted({arm for _, arm in changes})
    belief_rows = unit.select(BeliefRow, f"belief WHERE {test}", version_id, buckets, arms)
    stored_rows = {row[:2]: row[2:] for row in belief_rows}
    rows, deltas = [], []
    for key, change in sorted(changes.items(), key=itemgetter(0)):
        old_row = stored_rows.get(key, (ordinal, *NOTHING, None))
        fade = discount ** (ordinal - old_row[0])
        sums = [fade * old_sum + float(amount) for old_sum, amount in zip(old_row[1:4], change[:3], strict=True)]
        extra = _add_extra_sums(old_row[4], fade, change[3:]) if len(change) > 3 else None
        bucket, arm = key
        rows.append((version_id, arm, bucket, ordinal, *sums, extra))
        deltas.append((version_id, arm, bucket, seq, ordinal, *map(float, change[:3]), *sums, extra))
    unit.insert("belief", _BELIEF, rows, on_conflict=f"(version_id, bucket, arm_id) DO UPDATE SET {_REPLACED}")
    unit.insert("belief_delta", _DELTA, deltas)
    return {}


@lru_cache(maxsize=FEW)
def _upsert_statement(n: int) -> str:
    """Return an SQL statement that adds to the sums in n rows of a belief, and stores rows that are missing. The
    resulting sums equal the sums of `add` bit for bit."""
    placeholders, sums = ", ".join(["(?, ?, ?, ?, 0.0 + ?, 0.0 + ?, 0.0 + ?)"] * n), ", ".join(SUMS)
    columns = f"version_id, ordinal, bucket, arm_id, {sums}"
    return f"INSERT INTO belief ({columns}) VALUES {placeholders} {_ADDED} RETURNING bucket, arm_id, {sums}"


_ADDED = (
    "ON CONFLICT (version_id, bucket, arm_id) DO UPDATE SET ordinal = excluded.ordinal, extra = NULL, "
    + ", ".join(f"{name} = belief.{name} + excluded.{name}" for name in SUMS)
)
# One statement of PostgreSQL for both tables, where nothing fades; its sums equal those of `add` bit for bit.
_ADD_FEW = f"""
WITH change AS (
    SELECT * FROM unnest(?::bigint[], ?::bigint[], ?::float8[], ?::float8[], ?::float8[])
        AS listed (bucket, arm_id, d_pulls, d_reward_sum, d_reward_squares)
), stored AS (
    INSERT INTO belief (version_id, bucket, arm_id, ordinal, {", ".join(SUMS)})
    SELECT ?, bucket, arm_id, ?, {", ".join(f"0.0::float8 + d_{name}" for name in SUMS)} FROM change
    {_ADDED}
    RETURNING bucket, arm_id, {", ".join(SUMS)}
)
INSERT INTO belief_delta (version_id, seq, ordinal, bucket, arm_id, {", ".join(f"d_{n}, {n}" for n in SUMS)})
SELECT ?, ?, ?, bucket, arm_id, {", ".join(f"d_{n}, {n}" for n in SUMS)} FROM stored JOIN change USING (bucket, arm_id)
"""


def _add_extra_sums(blob: bytes | None, fade: float, change: Any) -> bytes:
    """Return the further sums after a change, packed as doubles. A change that is a list is added in plain Python,
    since lists are short.

    blob: the further sums before the change, or None; fade: the factor by which these sums have faded."""
    if isinstance(change, list):
        layout = f"<{len(change)}d"
        old_sums = (0.0,) * len(change) if blob is None else struct.unpack(layout, blob)
        return struct.pack(layout, *(fade * old_sum + amount for old_sum, amount in zip(old_sums, change, strict=True)))
    import numpy as np

    sums = np.array(change, "<f8")
    if blob is not None:
        sums += fade * np.frombuffer(blob, "<f8")
    return sums.tobytes()


def pruned_sums(unit: Unit, version_id: int) -> list[BeliefRow]:
    """Return the part of a belief's sums that comes from slots pruned (deleted as old) from the log."""
    return unit.select(BeliefRow, "pruned_sums WHERE version_id = ?", version_id)


def set_pruned(unit: Unit, version_id: int, sums: Mapping[BeliefKey, Any], *, ordinal: int) -> None:
    """Store the part of a belief's sums that comes from slots pruned (deleted as old) from the log. ordinal: the
    policy's number of decisions up to which the sums are discounted."""
    rows = [
        (
            version_id,
            arm,
            bucket,
            ordinal,
            *map(float, slot_sums[:3]),
            _add_extra_sums(None, 1.0, slot_sums[3:]) or None,
        )
        for (bucket, arm), slot_sums in sorted(sums.items(), key=itemgetter(0))
    ]
    unit.insert("pruned_sums", _BELIEF, rows, on_conflict=f"(version_id, bucket, arm_id) DO UPDATE SET {_REPLACED}")


def copy_pruned(unit: Unit, version_id: int, copy_id: int) -> None:
    """Copy the sums of pruned (deleted) slots from the belief of one version to the belief of the version `copy_id`."""
    names = ", ".join(_BELIEF[1:])
    copied_rows = f"SELECT ?, {names} FROM pruned_sums WHERE version_id = ?"
    unit.tell(f"INSERT INTO pruned_sums (version_id, {names}) {copied_rows}", copy_id, version_id)


def prior(unit: Unit, version_id: int) -> list[tuple[int, float, float]]:
    """Return triples (arm id, alpha, beta), in order of arm, for the arms whose prior differs from the default prior of
    the policy's kind."""
    query = "SELECT arm_id, alpha, beta FROM prior WHERE version_id = ? ORDER BY arm_id"
    return [(arm, alpha, beta) for arm, alpha, beta in unit.ask(query, version_id)]


def add_prior(unit: Unit, version_id: int, rows: Iterable[tuple[int, float, float]]) -> None:
    unit.insert("prior", ("version_id", "arm_id", "alpha", "beta"), [(version_id, *row) for row in rows])


def weights(unit: Unit, version_id: int) -> list[ArmWeights]:
    """Return the trained weights of a version, in order of arm id."""
    return unit.ask("SELECT arm_id, weights FROM arm_weights WHERE version_id = ? ORDER BY arm_id", version_id)


def add_weights(unit: Unit, version_id: int, rows: Iterable[ArmWeights]) -> None:
    unit.insert("arm_weights", ("version_id", "arm_id", "weights"), [(version_id, *row) for row in sorted(rows)])
