"""The fields of a line from elsewhere, checked, and decisions of lines as columns: for every layout of lines."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from math import isfinite
from typing import Any, NamedTuple

from msgspec import UNSET, Struct, UnsetType

from rlrec import times
from rlrec.app.imports.columns import LogColumns, LoggedEvents, LoggedSlots, transposed
from rlrec.errors import InputError, suggest
from rlrec.log_fields import LOG_PROBABILITY, PROBABILITY, SHARE, LogField
from rlrec.policy.beliefs import reward as rewards
from rlrec.policy.beliefs.base import sum_tolerance
from rlrec.store.database.loading import Column

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
KEY_LENGTH = 200
DEFAULT_POLICY = "imported"
LOOSE = 1e-6  # how far probabilities that were computed apart may be
FLOAT32 = 1e-4  # how far those in float32, some printed with six digits, may be


class EventEntry(Struct, forbid_unknown_fields=True):
    """An event of a line. position: None for the page; UNSET where the line leaves it to its reader."""

    kind: str
    position: int | UnsetType | None = UNSET
    value: float = 1.0
    at: str | None = None
    key: str | None = None


class LineSlot(NamedTuple):
    """A slot of a line, as LoggedSlots names its fields."""

    position: int
    arm: str
    propensity: float | None
    marginal: float | None
    min_propensity: float | None
    score: float | None = None
    censored: int = 0
    rounded: int = 0
    id: str | None = None


class LineEvent(NamedTuple):
    """An event of a line, as LoggedEvents names its fields."""

    position: int | None
    kind: str
    value: float
    at: int | None = None
    key: str | None = None


class GatheredLines:
    """GatheredLines of lines, gathered one by one. names: of the columns that `add` is handed."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = ("number", "eligible", *names)
        self._rows, self._slots, self._events = list[Any](), list[Any](), list[Any]()
        self._sets, self._index = list[tuple[str, ...]](), dict[int, int]()

    def add(
        self, number: int, eligible: tuple[str, ...], row: Sequence[Any], slots: Sequence[LineSlot],
        events: Sequence[LineEvent],
    ) -> None:  # fmt: skip
        """Add the decision of a line. eligible: the same object for decisions that have the same arms, mostly."""
        index = self._index.setdefault(id(eligible), len(self._sets))
        if index == len(self._sets):
            self._sets.append(eligible)
        self._slots += [(len(self._rows), *slot) for slot in slots]
        self._events += [(len(self._rows), *event) for event in events]
        self._rows.append((number, index, *row))

    def columns(self, **same: Column) -> LogColumns:
        """The decisions. same: columns that are no names of rows."""
        return LogColumns(
            eligible_sets=self._sets, slots=LoggedSlots(**transposed(("row", *LineSlot._fields), self._slots)),
            events=LoggedEvents(**transposed(("row", *LineEvent._fields), self._events)),
            **(transposed(self._names, self._rows) | same),
        )  # fmt: skip


def check_columns(source: str, names: Sequence[str], wanted: Iterable[str]) -> None:
    """Raises InputError unless every wanted column is among the names, once. source: what has these, for people."""
    for name in wanted:
        if name not in names:
            raise InputError(f"{source} has no column {name!r}", hint=suggest(name, list(names), cutoff=0.5))
        if names.count(name) > 1:
            raise InputError(f"{source} names twice the column {name!r}", hint="rename all but the one to take")


def key(text: str, field: str) -> str:
    """A key of an arm, a session, a user, a request or a line. Raises InputError unless it can be stored."""
    if not 0 < len(text) <= KEY_LENGTH:
        raise InputError(f"a key has 1 to {KEY_LENGTH} characters, this one {len(text)}", field=field)
    if "\x00" in text:
        raise InputError("a key holds no NUL", field=field)
    return text


def probability(value: float | None, field: str) -> float | None:
    """The value, checked. Raises InputError unless it lies above 0 and is at most 1, or is None."""
    if value is not None and not 0 < value <= 1:
        raise InputError(f"{value!r} is no probability of something shown", hint="it lies in (0, 1]", field=field)
    return value


def is_distribution(probabilities: Collection[float]) -> bool:
    """Whether probabilities sum to 1, as far as float32 or six decimals tell."""
    return abs(sum(probabilities) - 1) <= max(FLOAT32, sum_tolerance(len(probabilities)))


def is_certain(value: float | None, n_arms: int) -> bool:
    """Whether a probability is 1 up to the rounding of those of so many arms; one that is not known may be."""
    return value is None or value >= 1 - sum_tolerance(n_arms)


def share(value: float | None, field: str) -> float | None:
    """The value, checked. Raises InputError unless it lies between 0 and 1, or is None."""
    if value is not None and not 0 <= value <= 1:
        raise InputError(f"{value!r} is no probability", field=field)
    return value


def log_probability(value: float | None, field: str) -> float | None:
    """The value, checked. Raises InputError where it lies above 0."""
    if value is not None and value > 0:
        raise InputError(f"{value!r} is the log of no probability", field=field)
    return value


def checked(value: Any, field: LogField, path: str) -> Any:
    """The value of a field as its column takes it. Raises InputError where that does not. path: of the value in its
    line."""
    if field.kind is bool:
        return 1 if value else None
    checks = {None: None, PROBABILITY: probability, SHARE: share, LOG_PROBABILITY: log_probability}
    check = checks.get(field.check)
    return value if check is None else check(value, path)


def bounded(value: float, field: str) -> float:
    """The value, checked. Raises InputError where it is so large that rewards could not be summed."""
    if not (isfinite(value) and rewards.is_bounded(value)):
        raise InputError(f"{value!r} is too large", hint=f"values stay within {rewards.LIMIT:g}", field=field)
    return value


def finite(text: str, field: str) -> float:
    """The number in some text. Raises InputError where it is none, or infinite."""
    try:
        value = float(text) if "_" not in text else float("nan")
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise InputError(f"{text[:40]!r} is no finite number", field=field)
    return value


def at_least(value: int | None, least: int, field: str) -> int | None:
    """The value, checked. Raises InputError where it is too small, or no 32 bits hold it."""
    if value is not None and not least <= value < 2**31:
        raise InputError(f"{value} is out of range", hint=f"it counts from {least}", field=field)
    return value


def policy_name(name: str, field: str) -> str:
    """The name, checked. Raises InputError for what is no name of a policy."""
    if not NAME.fullmatch(name):
        hint = "letters, digits, _ . -, at most 64; or give --policy"
        raise InputError(f"{name[:80]!r} is no name of a policy", hint=hint, field=field)
    return name


def time(text: str, field: str, *, now: int) -> int:
    """Microseconds since 1970 UTC. Raises InputError for what is no time, or lies in the future."""
    try:
        at = times.parse(text)
    except InputError as error:
        error.field = field
        raise
    if at > now:
        raise InputError(f"{text[:40]} lies in the future", hint="check it and the clock", field=field)
    return at


def event(entry: EventEntry, *, position: int | None, served_at: int | None, now: int, path: str) -> LineEvent:
    """The event at this position. Raises InputError where it cannot be. path: of the event in its line."""
    if not rewards.KIND.fullmatch(entry.kind):
        hint = "letters, digits, _ and ., at most 64"
        raise InputError(f"{entry.kind[:80]!r} is no kind of event", hint=hint, field=f"{path}.kind")
    at = None if entry.at is None else time(entry.at, f"{path}.at", now=now)
    if at is not None and (now if served_at is None else served_at) > at:
        raise InputError("the event lies before its decision", field=f"{path}.at")
    feedback_key = None if entry.key is None else key(entry.key, f"{path}.key")
    return LineEvent(position, entry.kind, bounded(entry.value, f"{path}.value"), at, feedback_key)


def check_keys(events: Sequence[LineEvent]) -> None:
    """Raises InputError unless a feedback key names one line: one position, one time, each kind once."""
    first: dict[str, tuple[int | None, int | None]] = {}
    kinds: set[tuple[str, str]] = set()
    for index, each in enumerate(events):
        if each.key is not None:
            same = first.setdefault(each.key, (each.position, each.at)) == (each.position, each.at)
            if not same or (each.key, each.kind) in kinds:
                raise InputError(f"feedback key {each.key!r} names two lines", field=f"events[{index}].key")
            kinds.add((each.key, each.kind))
