"""One decision a line: what `export-log` writes, and from elsewhere as little as a session, a slate, the eligible arms.

Neither a propensity nor a marginal has to be there: such a row is stored, and left out where a weight is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any, ClassVar, cast

from msgspec import UNSET, Struct, defstruct, field

from rlrec.app.imports.columns import LoggedCandidates
from rlrec.app.imports.layouts.base import Decoded, Layout, Options, RefusedLine, Source, refused
from rlrec.app.imports.layouts.fields import (
    DEFAULT_POLICY,
    FLOAT32,
    LOOSE,
    EventEntry,
    GatheredLines,
    LineEvent,
    LineSlot,
    at_least,
    bounded,
    check_keys,
    checked,
    event,
    is_certain,
    is_distribution,
    key,
    log_probability,
    policy_name,
    probability,
    share,
)
from rlrec.app.inputs import canonical
from rlrec.errors import InputError
from rlrec.log_fields import STATED
from rlrec.policy.beliefs.base import sum_tolerance
from rlrec.policy.gradients import history
from rlrec.store.log.events import CENSOR

CACHE = 10_000  # eligible sets remembered
USUAL = {"version": 1, "experiment": None, "variant": None, "route": None, "belief_seq": 0}  # of imported decisions
ROW = (
    "policy", "session", "user", "visit", "step", "at", "context", "state", "size",
    "log_propensity", "seed", "request_id", "source", "history", "reward", "candidates",
    *(each.name for each in STATED), "action_features", "slot_sets", "support",
)  # fmt: skip


class SlateEntry(Struct, forbid_unknown_fields=True):
    """A position of a slate; without `position` its place in the list."""

    arm: str
    position: int | None = None
    propensity: float | None = None
    marginal: float | None = None
    score: float | None = None
    min_propensity: float | None = None
    censored: bool = False
    rounded: bool = False
    team: str | None = None  # of an interleaved slate; an imported one has none


class CandidateEntry(Struct, forbid_unknown_fields=True):
    arm: str
    propensity: float


class DecisionLine(Struct, forbid_unknown_fields=True):
    """A line. `decision_id`, `propensity` and `duplicate` are read and not needed; `k` is the length of the page where
    the slate does not show all of it."""

    EXAMPLE: ClassVar[str] = (
        '{"session": "s1", "slate": [{"arm": "a1", "propensity": 0.5}], "eligible": ["a1", "a2"], "reward": 1}'
    )

    session: str
    slate: list[SlateEntry]
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
    route: str | None = None
    propensity: float | None = None
    log_propensity: float | None = None
    at: str | None = None
    duplicate: bool = False
    context: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    reward: float | None = None
    seed: int | None = None
    belief_seq: int | None = None
    events: list[EventEntry] | None = None
    k: int | None = None
    candidates: list[CandidateEntry] | None = None
    candidates_log_propensity: float | None = None
    catalogue: list[str] | None = None
    features: dict[str, dict[str, Any]] | None = None  # of arms, for this decision
    slot_sets: list[list[str]] | None = None
    support: dict[str, float] | None = None


# with the fields that a line may state and nobody here reads by name
LINE = cast(type[DecisionLine], defstruct(
    "DecisionLine",
    [(each.key, bool, False) if each.kind is bool else (each.key, each.kind | None, None) for each in STATED],
    bases=(DecisionLine,),
))  # fmt: skip


class Jsonl(Layout):
    """One decision a line; the keys of `recommend --json` and what `export-log` adds."""

    def __init__(self, source: Source, *, policy: str | None, now: int, options: Options | None = None) -> None:
        super().__init__(source, policy=policy, now=now, options=options)
        self._sets: dict[tuple[str, ...], tuple[str, ...]] = {}

    def decode(self, numbers: Sequence[int], texts: list[bytes]) -> Decoded:
        decisions, bad = GatheredLines(ROW), list[RefusedLine]()
        for number, text, line in self.source.lines(numbers, texts, LINE):
            try:
                decisions.add(number, *self._row(line))
            except InputError as error:
                bad.append(refused(error, number, text))
        return Decoded(decisions.columns(), bad)

    def _row(
        self, decision: DecisionLine | InputError
    ) -> tuple[tuple[str, ...], Any, Sequence[LineSlot], Sequence[LineEvent]]:
        """The eligible arms of a line, its values in the order of ROW, its slots, and its events."""
        if isinstance(decision, InputError):
            raise decision
        slots = _slots(decision)
        eligible = self._eligible(decision, slots)
        size = _size(decision, slots, eligible)
        _check_probabilities(decision, len(eligible))
        at = None if decision.at is None else self.time(decision.at, "at")
        log_propensity = _log_propensity(decision, slots, size)
        state, shown = history.from_json(decision.state) if decision.state else (decision.state, None)
        policy = self.policy or policy_name(DEFAULT_POLICY if decision.policy is None else decision.policy, "policy")
        row = (
            policy, key(decision.session, "session"), None if decision.user is None else key(decision.user, "user"),
            at_least(decision.visit, 1, "visit"), at_least(decision.step, 0, "step"), at,
            canonical.text(decision.context), canonical.text(state) if state else "{}", size, log_propensity,
            decision.seed, None if decision.request_id is None else key(decision.request_id, "request_id"),
            _source(decision, policy), shown, None if decision.events is None else decision.reward,
            _candidates(decision, eligible),
            *(checked(getattr(decision, each.key), each, each.key) for each in STATED),
            _features(decision, eligible), _slot_sets(decision, slots, eligible), _support(decision, slots, eligible),
        )  # fmt: skip
        return eligible, row, slots, self._events(decision, slots, at)

    def _eligible(self, decision: DecisionLine, slots: Sequence[LineSlot]) -> tuple[str, ...]:
        """The keys of the eligible arms in order; the same object for lines that list the same."""
        texts = tuple(decision.eligible)
        eligible = self._sets.get(texts)
        if eligible is None:
            if len(self._sets) >= CACHE:
                self._sets.clear()
            eligible = self._sets[texts] = tuple(sorted({key(arm, "eligible") for arm in texts}))
        for index, slot in enumerate(slots):
            if slot.arm not in texts:
                raise InputError(f"arm {slot.arm[:80]!r} was shown, but not eligible", field=f"slate[{index}].arm")
        return eligible

    def _events(self, decision: DecisionLine, slots: Sequence[LineSlot], at: int | None) -> Sequence[LineEvent]:
        """The events of a line; a reward without events is one itself, and so is the mark of a censored slot."""
        if decision.events is not None:
            events = [self._event(entry, slots, at, f"events[{n}]") for n, entry in enumerate(decision.events)]
        elif decision.reward is not None:
            bounded(decision.reward, "reward")
            events = [LineEvent(_only_position(slots), "reward", decision.reward)]
        else:
            events = []
        check_keys(events)
        return events + [LineEvent(slot.position, CENSOR, 1.0) for slot in slots if slot.censored]

    def _event(self, entry: EventEntry, slots: Sequence[LineSlot], served_at: int | None, path: str) -> LineEvent:
        position = None if entry.position is UNSET else entry.position
        if position is not None and all(position != slot.position for slot in slots):
            raise InputError(f"position {position} was not shown", field=f"{path}.position")
        position = _only_position(slots) if position is None else position
        return event(entry, position=position, served_at=served_at, now=self.now, path=path)


def _only_position(slots: Sequence[LineSlot]) -> int | None:
    """The position of the slot of a page of one: an event without a position belongs to it, as in feedback."""
    return slots[0].position if len(slots) == 1 else None


def _slots(decision: DecisionLine) -> Sequence[LineSlot]:
    """The slots of a page in order of position."""
    if not decision.slate:
        raise InputError("no arm was shown", field="slate")
    slots = []
    for index, entry in enumerate(decision.slate):
        path = f"slate[{index}]"
        position = index + 1 if entry.position is None else entry.position
        at_least(position, 1, f"{path}.position")
        propensity = probability(entry.propensity, f"{path}.propensity")
        marginal = probability(entry.marginal, f"{path}.marginal")
        smallest = share(entry.min_propensity, f"{path}.min_propensity")
        arm, marks = key(entry.arm, f"{path}.arm"), (int(entry.censored), int(entry.rounded))
        slots.append(LineSlot(position, arm, propensity, marginal, smallest, entry.score, *marks))
    if len({slot.position for slot in slots}) < len(slots):
        raise InputError("a position is filled twice", field="slate")
    if len({slot.arm for slot in slots}) < len(slots):
        raise InputError("an arm is shown twice", field="slate")
    return sorted(slots)


def _candidates(decision: DecisionLine, eligible: Sequence[str]) -> LoggedCandidates | None:
    """The candidates that the slate was ranked from, which are its eligible arms."""
    if decision.candidates is None:
        return None
    listed = [key(entry.arm, f"candidates[{index}].arm") for index, entry in enumerate(decision.candidates)]
    if sorted(listed) != list(eligible):
        hint = "`eligible` has the arms that the slate was drawn from, `catalogue` those that the candidates were"
        raise InputError("the candidates are not the eligible arms, each once", hint=hint, field="candidates")
    for index, entry in enumerate(decision.candidates):
        probability(entry.propensity, f"candidates[{index}].propensity")
    propensities = tuple(entry.propensity for entry in decision.candidates)
    log_propensity = log_probability(decision.candidates_log_propensity, "candidates_log_propensity")
    catalogue = (
        None if decision.catalogue is None else tuple(sorted({key(arm, "catalogue") for arm in decision.catalogue}))
    )
    if catalogue is not None and not set(listed) <= set(catalogue):
        raise InputError("a candidate is not in the catalogue that it was drawn from", field="catalogue")
    product = min(0.0, sum(map(log, propensities)))
    return LoggedCandidates(
        tuple(listed), propensities, product if log_propensity is None else log_propensity, catalogue
    )  # fmt: skip


def _features(decision: DecisionLine, eligible: Sequence[str]) -> str | None:
    if decision.features is None:
        return None
    if unknown := decision.features.keys() - set(eligible):
        raise InputError(f"arm {min(unknown)[:80]!r} has features, but was not eligible", field="features")
    return canonical.text(decision.features)


def _slot_sets(
    decision: DecisionLine, slots: Sequence[LineSlot], eligible: Sequence[str]
) -> tuple[tuple[str, ...], ...] | None:
    """The arms that each position of the slate could show, where a line says so."""
    if decision.slot_sets is None:
        return None
    sets = tuple(tuple(sorted(set(arms))) for arms in decision.slot_sets)
    if len(sets) != len(slots) or any(slot.arm not in arms for slot, arms in zip(slots, sets, strict=False)):
        raise InputError("each slot has a list of arms, with the one that was shown", field="slot_sets")
    if not set().union(*sets) <= set(eligible):
        raise InputError("a slot lists an arm that was not eligible", field="slot_sets")
    return sets


def _support(decision: DecisionLine, slots: Sequence[LineSlot], eligible: Sequence[str]) -> dict[str, float] | None:
    """The probability of each eligible arm at position 1, where a line has them."""
    if decision.support is None:
        return None
    probabilities = decision.support.values()
    if decision.support.keys() != set(eligible) or not is_distribution(probabilities) or min(probabilities) < 0:
        raise InputError("no probabilities of the eligible arms that sum to 1", field="support")
    top = slots[0]
    if top.position == 1 and top.propensity is not None and abs(decision.support[top.arm] - top.propensity) > FLOAT32:
        raise InputError(f"it is not {top.propensity!r} for the arm at position 1", field="support")
    return decision.support


def _size(decision: DecisionLine, slots: Sequence[LineSlot], eligible: Sequence[str]) -> int:
    """The length of the page: `k`, or up to the last position shown."""
    last = slots[-1].position
    size = last if decision.k is None else decision.k
    if size < last:
        raise InputError(f"k is {size}, but position {last} was shown", field="k")
    if size > len(eligible):
        raise InputError(f"a page of {size}, but only {len(eligible)} arms were eligible", field="eligible")
    return size


def _check_probabilities(decision: DecisionLine, n_eligible: int) -> None:
    """Raises InputError where no policy can have such probabilities: the last arm left is shown for sure, and those of
    all arms left at a position sum to 1."""
    for index, entry in enumerate(decision.slate):
        n_left = n_eligible + 1 - (index + 1 if entry.position is None else entry.position)
        if decision.slot_sets is not None and index < len(decision.slot_sets):
            above = {each.arm for each in decision.slate[:index]}
            n_left = len(set(decision.slot_sets[index]) - above)
        path = f"slate[{index}]"
        if n_left == 1:
            why = "no other eligible arm was left at its position"
            _check_certain(entry.propensity, n_eligible, f"{path}.propensity", why)
        if n_eligible == 1:
            _check_certain(entry.marginal, 1, f"{path}.marginal", "no other arm was eligible")
        if entry.propensity is not None and entry.min_propensity is not None:
            least = entry.min_propensity
            if least > entry.propensity + LOOSE or entry.propensity + (n_left - 1) * least > 1 + sum_tolerance(n_left):
                raise InputError(
                    f"{least!r} is not the smallest probability of {n_left} arms of which one has {entry.propensity!r}",
                    field=f"{path}.min_propensity",
                )


def _check_certain(value: float | None, n_arms: int, field: str, why: str) -> None:
    if not is_certain(value, n_arms):
        hint = "list every arm that could have been shown in `eligible`; leave out a probability that is not known"
        raise InputError(f"{value!r} must be 1: {why}", hint=hint, field=field)


def _log_propensity(decision: DecisionLine, slots: Sequence[LineSlot], size: int) -> float | None:
    """The line's own, or that of the product of all conditionals."""
    probability(decision.propensity or None, "propensity")
    if decision.log_propensity is not None:
        return log_probability(decision.log_propensity, "log_propensity")
    conditionals = [slot.propensity for slot in slots if slot.propensity is not None]
    return min(0.0, sum(map(log, conditionals))) if len(conditionals) == size else None


def _source(decision: DecisionLine, policy: str) -> str | None:
    """JSON of what a line calls its policy and its belief; None where the imported decision says the same."""
    usual = {"policy": policy} | USUAL
    stated = {name: value for name in usual if (value := getattr(decision, name)) is not None}
    return None if usual | stated == usual else canonical.text(stated)
