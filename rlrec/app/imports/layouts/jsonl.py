"""One decision a line: what `export-log` writes, and from elsewhere as little as a session, a slate, the eligible arms.

Neither a propensity nor a marginal has to be there: such a row is stored, and left out where a weight is wanted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import log
from typing import Any, ClassVar

from msgspec import Struct, field

from rlrec import times
from rlrec.app.imports.layouts.base import (
    Happened,
    Layout,
    Line,
    Refused,
    Shown,
    Source,
    Surprise,
    Taken,
    key,
    probability,
)
from rlrec.app.inputs import canonical
from rlrec.errors import InputError
from rlrec.policy import history
from rlrec.policy import reward as rewards

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
DEFAULT_POLICY = "imported"
CACHE = 10_000  # eligible sets remembered
AT_ONCE = 1_000  # lines decoded at once
TIGHT = 1e-9  # how far a probability that is 1 may be off
LOOSE = 1e-6  # how far probabilities that were computed apart may be


class Entry(Struct, forbid_unknown_fields=True):
    """A position of a slate; without `position` its place in the list."""

    arm: str
    position: int | None = None
    propensity: float | None = None
    marginal: float | None = None
    score: float | None = None
    min_propensity: float | None = None
    censored: bool = False
    rounded: bool = False


class Event(Struct, forbid_unknown_fields=True):
    kind: str
    position: int | None = None
    value: float = 1.0
    at: str | None = None
    key: str | None = None


class Decision(Struct, forbid_unknown_fields=True):
    """A line. `decision_id`, `propensity` and `duplicate` are read and not needed; `k` is the length of the page where
    the slate does not show all of it."""

    EXAMPLE: ClassVar[str] = (
        '{"session": "s1", "slate": [{"arm": "a1", "propensity": 0.5}], "eligible": ["a1", "a2"], "reward": 1}'
    )

    session: str
    slate: list[Entry]
    eligible: list[str]
    decision_id: int | None = None
    request_id: str | None = None
    visit: int | None = None
    step: int | None = None
    user: str | None = None
    policy: str | None = None
    version: int | None = None
    experiment: str | None = None
    variant: str | None = None
    propensity: float | None = None
    log_propensity: float | None = None
    at: str | None = None
    duplicate: bool = False
    context: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    reward: float | None = None
    seed: int | None = None
    belief_seq: int | None = None
    events: list[Event] | None = None
    k: int | None = None


class Jsonl(Layout):
    """One decision a line; the keys of `recommend --json` and what `export-log` adds."""

    def __init__(self, source: Source, *, policy: str | None, now: int) -> None:
        super().__init__(source, policy=policy, now=now)
        self._sets: dict[tuple[str, ...], tuple[str, ...]] = {}

    def look(self, numbers: Sequence[int], texts: list[bytes]) -> Iterable[Refused]:
        good, bad = self._lines(numbers, texts, texts)
        self.policies.update(line.policy for line in good if line.policy is not None)
        return bad

    def taken(self, numbers: Sequence[int], texts: list[bytes], digests: list[bytes]) -> Taken:
        good, bad = self._lines(numbers, texts, digests)
        if self.policy is None and not self.policies.issuperset(line.policy for line in good):
            raise Surprise
        return good, bad

    def _lines(
        self, numbers: Sequence[int], texts: list[bytes], digests: list[bytes]
    ) -> tuple[list[Line], list[Refused]]:
        good, bad = list[Line](), list[Refused]()
        for start in range(0, len(texts), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            told = self.source.decode(list(zip(numbers[part], texts[part], strict=True)), Decision)
            for one, number, text, digest in zip(told, numbers[part], texts[part], digests[part], strict=True):
                try:
                    good.append(self._line(one, number, text, digest))
                except InputError as error:
                    error.line = number
                    bad.append(Refused(error, text))
        return good, bad

    def _line(self, told: Decision | InputError, number: int, text: bytes, digest: bytes) -> Line:
        if isinstance(told, InputError):
            raise told
        slots = _slots(told)
        eligible = self._eligible(told, slots)
        size = _size(told, slots, eligible)
        _check_shares(told, len(eligible))
        at = None if told.at is None else self._time(told.at, "at")
        log_propensity = _log_propensity(told, slots, size)
        state, known = history.from_json(told.state) if told.state else (told.state, None)
        return Line(
            number, text, digest, None if self.policy else _owner(told), key(told.session, "session"),
            None if told.user is None else key(told.user, "user"),
            _least(told.visit, 1, "visit"), _least(told.step, 0, "step"), at,
            canonical.text(told.context), canonical.text(state) if state else "{}", eligible, size,
            log_propensity, told.seed, None if told.request_id is None else key(told.request_id, "request_id"),
            _said(told), slots, self._events(told, slots, at), known,
        )  # fmt: skip

    def _eligible(self, told: Decision, slots: Sequence[Shown]) -> tuple[str, ...]:
        texts = tuple(told.eligible)
        found = self._sets.get(texts)
        if found is None:
            if len(self._sets) >= CACHE:
                self._sets.clear()
            found = self._sets[texts] = tuple(sorted({key(arm, "eligible") for arm in texts}))
        for index, slot in enumerate(slots):
            if slot.arm not in texts:
                raise InputError(f"arm {slot.arm[:80]!r} was shown, but not eligible", field=f"slate[{index}].arm")
        return found

    def _time(self, text: str, field: str) -> int:
        try:
            at = times.parse(text)
        except InputError as error:
            error.field = field
            raise
        if at > self.now:
            raise InputError(f"{text[:40]} lies in the future", hint="check it and the clock", field=field)
        return at

    def _events(self, told: Decision, slots: Sequence[Shown], at: int | None) -> tuple[Happened, ...]:
        """What happened; a reward that no events explain is an event itself, and so is the mark of a censored slot."""
        if told.events is None:
            _bounded(told.reward, "reward")
            mine = [] if told.reward is None else [Happened(_where(slots), "reward", told.reward)]
        else:
            mine = [self._event(event, slots, at, f"events[{place}]") for place, event in enumerate(told.events)]
        _check_keys(mine)
        return (*mine, *(Happened(slot.position, "!censor", 1.0) for slot in slots if slot.censored))

    def _event(self, event: Event, slots: Sequence[Shown], served: int | None, where: str) -> Happened:
        if not rewards.KIND.fullmatch(event.kind):
            hint = "letters, digits, _ and ., at most 64"
            raise InputError(f"{event.kind[:80]!r} is no kind of event", hint=hint, field=f"{where}.kind")
        if event.position is not None and all(event.position != slot.position for slot in slots):
            raise InputError(f"position {event.position} was not shown", field=f"{where}.position")
        at = None if event.at is None else self._time(event.at, f"{where}.at")
        if at is not None and (self.now if served is None else served) > at:
            raise InputError("the event lies before its decision", field=f"{where}.at")
        _bounded(event.value, f"{where}.value")
        named = None if event.key is None else key(event.key, f"{where}.key")
        return Happened(event.position, event.kind, event.value, at, named)


def _slots(told: Decision) -> tuple[Shown, ...]:
    if not told.slate:
        raise InputError("no arm was shown", field="slate")
    slots = []
    for place, one in enumerate(told.slate):
        where = f"slate[{place}]"
        position = place + 1 if one.position is None else one.position
        _least(position, 1, f"{where}.position")
        if one.min_propensity is not None and not 0 <= one.min_propensity <= 1:
            raise InputError(f"{one.min_propensity!r} is no probability", field=f"{where}.min_propensity")
        slots.append(
            Shown(
                position,
                key(one.arm, f"{where}.arm"),
                probability(one.propensity, f"{where}.propensity"),
                probability(one.marginal, f"{where}.marginal"),
                one.min_propensity,
                one.score,
                int(one.censored),
                int(one.rounded),
            )
        )
    if len({slot.position for slot in slots}) < len(slots):
        raise InputError("a position is filled twice", field="slate")
    if len({slot.arm for slot in slots}) < len(slots):
        raise InputError("an arm is shown twice", field="slate")
    return tuple(sorted(slots))


def _size(told: Decision, slots: Sequence[Shown], eligible: Sequence[str]) -> int:
    """The length of the page: as told, or up to the last position shown."""
    last = slots[-1].position
    size = last if told.k is None else told.k
    if size < last:
        raise InputError(f"k is {size}, but position {last} was shown", field="k")
    if size > len(eligible):
        raise InputError(f"a page of {size}, but only {len(eligible)} arms were eligible", field="eligible")
    return size


def _check_shares(told: Decision, eligible: int) -> None:
    """Raises InputError where no policy can have such probabilities: the last arm left is shown for sure, and all arms
    left at a position share 1."""
    for place, one in enumerate(told.slate):
        left = eligible + 1 - (place + 1 if one.position is None else one.position)
        where = f"slate[{place}]"
        if left == 1:
            _sure(one.propensity, f"{where}.propensity", "no other eligible arm was left at its position")
        if eligible == 1:
            _sure(one.marginal, f"{where}.marginal", "no other arm was eligible")
        if one.propensity is not None and one.min_propensity is not None:
            least = one.min_propensity
            if least > one.propensity + LOOSE or one.propensity + (left - 1) * least > 1 + LOOSE:
                raise InputError(
                    f"{least!r} is not the smallest probability of {left} arms of which one has {one.propensity!r}",
                    field=f"{where}.min_propensity",
                )


def _sure(share: float | None, field: str, why: str) -> None:
    if share is not None and share < 1 - TIGHT:
        hint = "list every arm that could have been shown in `eligible`; leave out a probability that is not known"
        raise InputError(f"{share!r} must be 1: {why}", hint=hint, field=field)


def _log_propensity(told: Decision, slots: Sequence[Shown], size: int) -> float | None:
    """As told, or of the product of all conditionals."""
    probability(told.propensity or None, "propensity")
    if told.log_propensity is not None:
        if told.log_propensity > 0:
            raise InputError(f"{told.log_propensity!r} is the log of no probability", field="log_propensity")
        return told.log_propensity
    shares = [slot.propensity for slot in slots if slot.propensity is not None]
    return min(0.0, sum(map(log, shares))) if len(shares) == size else None


def _owner(told: Decision) -> str:
    name = DEFAULT_POLICY if told.policy is None else told.policy
    if not NAME.fullmatch(name):
        hint = "letters, digits, _ . -, at most 64; or give --policy"
        raise InputError(f"{name[:80]!r} is no name of a policy", hint=hint, field="policy")
    return name


def _said(told: Decision) -> dict[str, Any] | None:
    """What the line calls its policy and its belief."""
    names = ("policy", "version", "experiment", "variant", "belief_seq")
    found = {name: value for name in names if (value := getattr(told, name)) is not None}
    return found or None


def _where(slots: Sequence[Shown]) -> int | None:
    return slots[0].position if len(slots) == 1 else None


def _least(value: int | None, least: int, field: str) -> int | None:
    if value is not None and not least <= value < 2**31:
        raise InputError(f"{value} is out of range", hint=f"it counts from {least}", field=field)
    return value


def _check_keys(events: Sequence[Happened]) -> None:
    """A feedback key names one line: one position, one time, each kind once."""
    first: dict[str, tuple[int | None, int | None]] = {}
    kinds: set[tuple[str, str]] = set()
    for place, event in enumerate(events):
        if event.key is not None:
            known = first.setdefault(event.key, (event.position, event.at)) == (event.position, event.at)
            if not known or (event.key, event.kind) in kinds:
                raise InputError(f"feedback key {event.key!r} names two lines", field=f"events[{place}].key")
            kinds.add((event.key, event.kind))


def _bounded(value: float | None, field: str) -> None:
    """Raises InputError where a value is so large that rewards could not be summed."""
    if value is not None and not rewards.bounded(value):
        raise InputError(f"{value!r} is too large", hint=f"values stay within {rewards.LIMIT:g}", field=field)
