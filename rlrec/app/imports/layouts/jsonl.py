"""This module reads one decision per line, the format of `export-log`. A line of another system needs no more than a
session, a slate and the eligible arms. A decision with neither a propensity nor a marginal is stored, but estimates
that weigh decisions leave it out."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from math import log
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple, cast

from msgspec import UNSET, Struct, UnsetType, defstruct, field

from rlrec import times
from rlrec.app.imports.columns import LogColumns, LoggedCandidates, LoggedEvents, LoggedSlots, transpose_rows, values
from rlrec.app.imports.layouts.base import Decoded, Layout, RefusedLine, refused_line
from rlrec.app.imports.layouts.checks import CHECKS, FLOAT32, check_value, is_distribution
from rlrec.app.inputs import canonical
from rlrec.errors import InputError
from rlrec.log_fields import KEY, LOG_PROBABILITY, PROBABILITY, STATED_FIELDS, LogField
from rlrec.policy.gradients import history
from rlrec.store.database.loading import Same
from rlrec.store.log.events import CENSOR

AT_ONCE = 1_000  # lines that are decoded at once
DEFAULT_POLICY, REWARD = "imported", "reward"
CACHE = 10_000  # eligible sets remembered
USUAL = {"version": 1, "experiment": None, "variant": None, "route": None, "belief_seq": 0}  # of imported decisions
ROW = (
    "policy", "session", "user", "visit", "step", "at", "context", "state", "size",
    "log_propensity", "seed", "request_id", "source", "history", "reward", "candidates",
    *(entry.name for entry in STATED_FIELDS), "action_features", "slot_sets", "support",
)  # fmt: skip


class EventEntry(Struct, forbid_unknown_fields=True):
    """This record holds an event of a line. position: the position of the slot, None for an event on the whole slate,
    UNSET if the line does not say."""

    kind: str
    position: int | UnsetType | None = UNSET
    value: float = 1.0
    at: str | None = None
    key: str | None = None


class LineSlot(NamedTuple):
    """This record holds a slot of a line, with the fields of LoggedSlots."""

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
    """This record holds an event of a line, with the fields of LoggedEvents."""

    position: int | None
    kind: str
    value: float
    at: int | None = None
    key: str | None = None


Row = tuple[tuple[str, ...], Sequence[Any], Sequence[LineSlot], Sequence[LineEvent]]


class LineLayout(Layout):
    """A LineLayout reads one JSON object per line, which is a decision, and gathers decisions into columns. kind: the
    type to which a line decodes; columns: the names of the columns of decisions."""

    kind: ClassVar[type[Struct]]
    columns: ClassVar[Sequence[str]]

    @abstractmethod
    def row(self, line: Any, text: bytes) -> Row | None:
        """Return four parts of a line: the eligible arms, the values in the order of `columns`, the slots and the
        events; return None for a line that is no decision. Lines with equal eligible arms mostly share one tuple, which
        saves memory."""

    def decode(self, numbers: Sequence[int], texts: list[bytes]) -> Decoded:
        rows, slots, events, sets = list[Any](), list[Any](), list[Any](), dict[int, tuple[int, tuple[str, ...]]]()
        refused_lines, zoneless = list[RefusedLine](), 0
        for start in range(0, len(texts), AT_ONCE):
            group = list(zip(numbers[start : start + AT_ONCE], texts[start : start + AT_ONCE], strict=True))
            for (number, text), line in zip(group, self.source.decode(group, self.kind), strict=True):
                try:
                    if isinstance(line, InputError):
                        raise line
                    if (row := self.row(line, text)) is not None:
                        eligible, row_values, row_slots, row_events = row
                        index, _ = sets.setdefault(id(eligible), (len(sets), eligible))
                        slots += [(len(rows), *slot) for slot in row_slots]
                        events += [(len(rows), *event) for event in row_events]
                        rows.append((number, index, *row_values))
                except InputError as error:
                    refused_lines.append(refused_line(error, number, text))
                if times.zoneless:
                    zoneless += 1
                    times.zoneless.clear()
        columns = transpose_rows(("number", "eligible", *self.columns), rows)
        if self.policy is not None:
            columns["policy"] = Same(self.policy)
        decisions = LogColumns(
            eligible_sets=[arms for _, arms in sets.values()],
            slots=LoggedSlots(**transpose_rows(("row", *LineSlot._fields), slots)),
            events=LoggedEvents(**transpose_rows(("row", *LineEvent._fields), events)), **columns,
        )  # fmt: skip
        return Decoded(decisions, refused_lines, n_zoneless=zoneless)


def time(text: str | None, field: str) -> int | None:
    """Return a time in microseconds since 1970 UTC, or None if the text is None. Raises InputError if the text is no
    time. field: the name of the field in the error."""
    try:
        return None if text is None else times.parse(text)
    except InputError as error:
        error.field = field
        raise


# -- jsonl --


class SlateEntry(Struct, forbid_unknown_fields=True):
    """This record holds one entry of a slate. position: by default the place of the entry in the list, from 1."""

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
    """This record holds a line that is a decision. decision_id, propensity, duplicate: allowed but not used; k: the
    length of the shown slate, if the line does not have all its slots."""

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


# with the further fields that a line may state and that no code here reads by name
LINE = cast(type[DecisionLine], defstruct(
    "DecisionLine",
    [
        (entry.key, bool, False) if entry.kind is bool else (entry.key, entry.kind | None, None)
        for entry in STATED_FIELDS
    ],
    bases=(DecisionLine,),
))  # fmt: skip


class Jsonl(LineLayout):
    """This layout reads one decision per line, with the keys of `recommend --json` and of `export-log`."""

    kind, columns = LINE, ROW

    def row(self, line: DecisionLine, text: bytes) -> Row:
        if not line.slate:
            raise InputError("no arm was shown", field="slate")
        slots = [
            LineSlot(
                number if entry.position is None else entry.position, entry.arm, entry.propensity, entry.marginal,
                entry.min_propensity, entry.score, int(entry.censored), int(entry.rounded),
            )
            for number, entry in enumerate(line.slate, 1)
        ]  # fmt: skip
        slots.sort(key=itemgetter(0))
        eligible = _sorted_set(tuple(line.eligible))
        check_value(line.propensity or None, CHECKS[PROBABILITY], "propensity")
        state, past = history.from_json(line.state) if line.state else (line.state, None)
        policy = self.policy or (DEFAULT_POLICY if line.policy is None else line.policy)
        row = (
            policy, line.session, line.user, line.visit, line.step, time(line.at, "at"), canonical.text(line.context),
            canonical.text(state) if state else "{}", line.k, line.log_propensity, line.seed, line.request_id,
            _source(line, policy), past, None if line.events is None else line.reward, _candidates(line, eligible),
            *(_stated_value(line, entry) for entry in STATED_FIELDS),
            _features(line, eligible), _slot_sets(line, slots, eligible), _support(line, slots, eligible),
        )  # fmt: skip
        position = slots[0].position if len(slots) == 1 else None  # the position of events without one, as in feedback
        events = [
            LineEvent(
                position if entry.position in (None, UNSET) else entry.position, entry.kind, entry.value,
                time(entry.at, f"events[{n}].at"), entry.key,
            )
            for n, entry in enumerate(line.events or ())
        ]  # fmt: skip
        if line.events is None and line.reward is not None:  # a reward without events becomes an event
            events = [LineEvent(position, REWARD, line.reward)]
        return eligible, row, slots, events

    def complete(self, rows: LogColumns) -> LogColumns:
        return with_censor_events(rows)

    def path(self, table: str, field: str, number: int, text: bytes) -> str:
        line = json.loads(text)
        if table == "slots" and field:
            order = sorted(
                range(len(line["slate"])), key=lambda index: line["slate"][index].get("position") or index + 1
            )
            return f"slate[{order[number]}].{field}"
        if table == "events":
            return f"events[{number}].{field}" if line.get("events") else "reward"
        return "slate" if table else {"size": "k"}.get(field, field)


@lru_cache(CACHE)
def _sorted_set(arms: tuple[str, ...]) -> tuple[str, ...]:
    """Return arms in order, without repetition. Equal arguments give the same object."""
    return tuple(sorted(set(arms)))


def with_censor_events(rows: LogColumns) -> LogColumns:
    """Return the rows with an event that censors each slot which is marked as censored."""
    n = len(rows.slots.row)
    slot_values = zip(rows.slots.row, values(rows.slots.position, n), values(rows.slots.censored, n), strict=True)
    marks = [(row, LineEvent(position, CENSOR, 1.0)) for row, position, is_censored in slot_values if is_censored]
    return rows.with_events(marks) if marks else rows


def _stated_value(line: DecisionLine, field: LogField) -> Any:
    value = getattr(line, field.key)
    return value if field.kind is not bool else 1 if value else None


def _candidates(decision: DecisionLine, eligible: Sequence[str]) -> LoggedCandidates | None:
    """Return the candidates from which the slate was ranked, or None if the line has none. Raises InputError unless
    they are the eligible arms, each once."""
    if decision.candidates is None:
        return None
    arm_keys = [entry.arm for entry in decision.candidates]
    if sorted(arm_keys) != list(eligible):
        hint = "`eligible` has the arms that the slate was drawn from, `catalogue` those that the candidates were"
        raise InputError("the candidates are not the eligible arms, each once", hint=hint, field="candidates")
    propensities = tuple(
        check_value(entry.propensity, CHECKS[PROBABILITY], f"candidates[{index}].propensity")
        for index, entry in enumerate(decision.candidates)
    )
    log_p = check_value(decision.candidates_log_propensity, CHECKS[LOG_PROBABILITY], "candidates_log_propensity")
    arms = {check_value(arm, CHECKS[KEY], "catalogue") for arm in decision.catalogue or ()}
    catalogue = None if decision.catalogue is None else tuple(sorted(arms))
    if catalogue is not None and not set(arm_keys) <= arms:
        raise InputError("a candidate is not in the catalogue that it was drawn from", field="catalogue")
    product = min(0.0, sum(map(log, propensities)))
    return LoggedCandidates(
        tuple(arm_keys), propensities, product if log_p is None else log_p, catalogue
    )  # fmt: skip


def _features(decision: DecisionLine, eligible: Sequence[str]) -> str | None:
    if decision.features is None:
        return None
    if unknown_arms := decision.features.keys() - set(eligible):
        raise InputError(f"arm {min(unknown_arms)[:80]!r} has features, but was not eligible", field="features")
    return canonical.text(decision.features)


def _slot_sets(
    decision: DecisionLine, slots: Sequence[LineSlot], eligible: Sequence[str]
) -> tuple[tuple[str, ...], ...] | None:
    """Return the arms that each slot of the slate could show, or None if the line does not say so."""
    if decision.slot_sets is None:
        return None
    sets = tuple(tuple(sorted(set(arms))) for arms in decision.slot_sets)
    if len(sets) != len(slots) or any(slot.arm not in arms for slot, arms in zip(slots, sets, strict=False)):
        raise InputError("each slot has a list of arms, with the one that was shown", field="slot_sets")
    if not set().union(*sets) <= set(eligible):
        raise InputError("a slot lists an arm that was not eligible", field="slot_sets")
    return sets


def _support(decision: DecisionLine, slots: Sequence[LineSlot], eligible: Sequence[str]) -> dict[str, float] | None:
    """Return the probability of each eligible arm at position 1, or None if the line does not have them."""
    if decision.support is None:
        return None
    probabilities = decision.support.values()
    if decision.support.keys() != set(eligible) or not is_distribution(probabilities) or min(probabilities) < 0:
        raise InputError("no probabilities of the eligible arms that sum to 1", field="support")
    top = slots[0]
    propensity = decision.support.get(top.arm, 0.0) if top.propensity is None else top.propensity
    if top.position == 1 and abs(decision.support.get(top.arm, 0.0) - propensity) > FLOAT32:
        raise InputError(f"it is not {propensity!r} for the arm at position 1", field="support")
    return decision.support


def _source(decision: DecisionLine, policy: str) -> str | None:
    """Return JSON of the policy and belief that a line names, or None if the line names nothing but the policy and
    belief of every imported decision. policy: the policy to which the decision belongs."""
    usual_fields = {"policy": policy} | USUAL
    stated_fields = {name: value for name in usual_fields if (value := getattr(decision, name)) is not None}
    return None if usual_fields | stated_fields == usual_fields else canonical.text(stated_fields)
