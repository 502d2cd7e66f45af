"""This module reads the lines of Vowpal Wabbit's decision service (`dsjson`), which Azure Personalizer logs too. Lines
may be of the kinds cb, ccb and slates of this format.

A line is a decision with its reward, or the reward of a decision in another line with the same event id. In cb, `a`
has the actions in order of rank, counted from 1, and the first action was shown. In `_outcomes` of ccb and slates,
`_a` counts actions from 0; in slates it counts only the actions of the slot. A cost is a negative reward.

Source: the pages DSJSON, Conditional Contextual Bandit and Slates of Vowpal Wabbit's wiki."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import chain, compress
from typing import Any, NamedTuple, cast

from msgspec import UNSET, Struct, UnsetType, field

from rlrec.app.imports.columns import EMPTY, FIRST_STATE, NULL, LogColumns, value_set, values
from rlrec.app.imports.layouts import jsonl
from rlrec.app.imports.layouts.base import Decoded, Layout, Note, Observation, Source
from rlrec.app.imports.layouts.checks import AMOUNT, CHECKS, FLOAT32, ValueCheck, check_value, is_distribution, until
from rlrec.app.inputs import canonical
from rlrec.errors import InputError, quantity, suggest
from rlrec.log_fields import KEY, PROBABILITY
from rlrec.policy.gradients import history


class SlotOutcome(Struct):
    """This record holds the outcome of a slot of ccb or slates. a: the actions in order of rank, with the shown action
    first; p: the probabilities of these actions."""

    a: list[int] | int = field(name="_a")
    p: list[float] | float = field(name="_p")
    cost: float | None = field(name="_label_cost", default=None)
    original_cost: float | None = field(name="_original_label_cost", default=None)
    observations: list[Any] = field(name="_o", default_factory=list)
    id: str | None = field(name="_id", default=None)


class DsJsonLine(Struct):
    """This record holds those keys of a line that this module reads. A line may have further keys."""

    c: dict[str, Any] | None = None
    a: list[int] | None = None
    p: list[float] | None = None
    o: list[Any] = field(default_factory=list)
    outcomes: list[SlotOutcome] | None = field(name="_outcomes", default=None)
    event_id: str | None = field(name="EventId", default=None)
    timestamp: str | None = field(name="Timestamp", default=None)
    cost: float | None = field(name="_label_cost", default=None)
    probability: float | None = field(name="_label_probability", default=None)
    action: int | None = field(name="_label_Action", default=None)
    original_cost: float | None = field(name="_original_label_cost", default=None)
    skip_learn: bool = field(name="_skipLearn", default=False)
    is_deferred: bool | None = field(name="DeferredAction", default=None)
    not_activated: bool = field(name="_deferred", default=False)
    pdrop: float = 0.0
    session: str | None = None  # this and `user` are not part of the format: `export-log` writes them
    user: str | None = None
    baseline: list[int] | None = field(name="_ba", default=None)
    reward: float | None = field(name="RewardValue", default=None)
    enqueued_at: str | None = field(name="EnqueuedTimeUtc", default=None)
    observations: list[Any] = field(name="Observations", default_factory=list)
    action_taken: bool = field(name="ActionTaken", default=False)
    label_ca: Any | UnsetType = field(name="_label_ca", default=UNSET)
    ca: Any | UnsetType = field(name="_ca", default=UNSET)
    pdf: Any | UnsetType = UNSET


class Actions(NamedTuple):
    """This record holds the actions of a line. arms: the arm key of each action; eligible: the same keys in ascending
    order; slots: in a line of slates, the slot of each action, else None; features: JSON of the features by arm, or
    None if no arm has features."""

    arms: Sequence[str]
    eligible: tuple[str, ...]
    slots: Sequence[int] | None
    features: str | None


class ShownAction(NamedTuple):
    """This record holds a slot and the arm that it showed. arms: the arms that the slot could show; probabilities:
    their probabilities if the line has all of them, else empty."""

    arm: str
    propensity: float
    arms: Sequence[str]
    probabilities: Sequence[float]
    outcome: SlotOutcome


def page_outcome(line: DsJsonLine) -> SlotOutcome:
    """Return the outcome that a line has outside its slots. In cb it belongs to the only slot, in ccb and slates to the
    slate as a whole."""
    numbers = line.a if line.a is not None else [] if line.action is None else [line.action]
    p = line.p if line.p is not None else [] if line.probability is None else [line.probability]
    if 0 in numbers and line.action and line.action - 1 in numbers and len(p) == len(numbers):
        # in order of the actions, counted from 0: the label, counted from 1, says which was shown
        at = numbers.index(line.action - 1)
        numbers = [action + 1 for action in numbers[at : at + 1] + numbers[:at] + numbers[at + 1 :]]
        p = p[at : at + 1] + p[:at] + p[at + 1 :]
    return SlotOutcome(a=numbers, p=p, cost=line.cost, original_cost=line.original_cost, observations=line.o)


def shown_actions(line: DsJsonLine, actions: Actions) -> list[ShownAction]:
    """Return the slots of a line with the actions that they showed. A line of cb has one slot, which showed the first
    action of `a`."""
    outcomes, slots = line.outcomes, list[ShownAction]()
    if is_cb := outcomes is None:
        outcomes = [page_outcome(line)]
        if not outcomes[0].a or not outcomes[0].p:
            hint = "`a` ranks the actions, `p` has their probabilities"
            raise InputError("it does not say which action was shown with which probability", hint=hint, field="a")
    if not outcomes:
        raise InputError("no outcome", field="_outcomes")
    slot_entries = (line.c or {}).get("_slots")
    for index, outcome in enumerate(outcomes):
        at_a, at_p = ("a", "p") if is_cb else (f"_outcomes[{index}]._a", f"_outcomes[{index}]._p")
        slot = slot_entries[index] if isinstance(slot_entries, list) and index < len(slot_entries) else None
        could_show = [(arm, True) for arm in actions.arms]
        if not is_cb:
            could_show = available_arms(actions, index, slot, {entry.arm for entry in slots})
        numbers = outcome.a if isinstance(outcome.a, list) else [outcome.a]
        p = outcome.p if isinstance(outcome.p, list) else [outcome.p]
        arms = [arm for arm, _ in could_show] if actions.slots else actions.arms
        ranking = ranked_arms(numbers, p, arms, first=int(is_cb), at_a=at_a, at_p=at_p)
        eligible = [arm for arm, is_left in could_show if is_left]
        if not set(ranking) <= set(eligible):
            raise InputError("it ranks an action that its slot could not show", field=at_a)
        is_complete = len(numbers) == len(arms) if is_cb else len(numbers) > 1 or len(eligible) == 1
        propensity = check_value(p[0], CHECKS[PROBABILITY], at_p)
        arms, probabilities = (ranking, p) if is_complete else (eligible, ())
        slots.append(ShownAction(ranking[0], propensity, arms, probabilities, outcome))
        if is_cb:
            _check_label(line, numbers[0], p[0])
    return slots


def _check_label(line: DsJsonLine, action: int, p: float) -> None:
    """Raise InputError unless the label of a cb line names the action that was shown and its probability. action: the
    shown action; p: its probability."""
    if line.action is not None and line.action != action:
        raise InputError(f"action {line.action} is not the first of `a`, {action}", field="_label_Action")
    joint_p = p * (1 - line.pdrop)  # this is the label probability in joined logs of Personalizer
    if line.probability is not None and min(abs(line.probability - entry) for entry in (p, joint_p)) > FLOAT32:
        raise InputError(f"{line.probability!r} is not the first of `p`, {p!r}", field="_label_probability")


def ranked_arms(
    numbers: Sequence[int], p: Sequence[float], arms: Sequence[str], *, first: int, at_a: str, at_p: str
) -> list[str]:  # fmt: skip
    """Return the arms of ranked actions. Raises InputError if the actions or their probabilities are impossible.
    numbers: the number of each action, counted from `first`; p: the probability of each action; arms: the arm of each
    number; at_a, at_p: the names of the two fields in messages."""
    if len(numbers) != len(p):
        raise InputError(f"{len(p)} probabilities of {len(numbers)} actions", field=at_p)
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError("an action is ranked twice, or none", field=at_a)
    for number in numbers:
        if not first <= number < len(arms) + first:
            raise InputError(f"{number} is none of the {len(arms)} actions", hint=f"counted from {first}", field=at_a)
    if not all(0 <= entry <= 1 for entry in p):
        raise InputError("a probability outside [0, 1]", field=at_p)
    if len(p) > 1 and not is_distribution(p):
        raise InputError(f"probabilities that sum to {sum(p)!r}", field=at_p)
    return [arms[number - first] for number in numbers]


def withholds(line: DsJsonLine, slots: Sequence[ShownAction], actions: Actions) -> bool:
    """Tell whether the reward of a slot is withheld. This happens in apprentice mode, where the choices of the learner
    are not shown: if the learner chose another action than the baseline (`_ba`, in cb the first action), the action of
    the baseline was shown, and the learner got no reward."""
    if actions.slots is not None:
        return False
    first = 0 if line.outcomes is not None else 1
    return any(
        slot.outcome.original_cost and not slot.outcome.cost and number - first != actions.arms.index(slot.arm)
        for number, slot in zip(line.baseline or [1] * first, slots, strict=False)
    )


def available_arms(actions: Actions, index: int, slot: Any, shown_arms: set[str]) -> list[tuple[str, bool]]:
    """Return the arms of a slot's actions, each with a flag that says whether the slot could show it. In slates, a slot
    can show its own actions. In ccb, it can show the actions of `_inc` (by default all), without those that earlier
    slots showed. index: the index of the slot; slot: its entry in the context; shown_arms: the arms that earlier slots
    showed."""
    if actions.slots is not None:
        return [
            (arm, True) for arm, slot_number in zip(actions.arms, actions.slots, strict=True) if slot_number == index
        ]
    numbers = slot.get("_inc") if isinstance(slot, dict) else None
    if numbers is not None and not (isinstance(numbers, list) and all(isinstance(entry, int) for entry in numbers)):
        raise InputError("`_inc` is no list of actions", field=f"c._slots[{index}]._inc")
    ranking = range(len(actions.arms)) if numbers is None else set(numbers)
    return [(arm, number in ranking and arm not in shown_arms) for number, arm in enumerate(actions.arms)]


def slot_sets(slots: Sequence[ShownAction], actions: Actions) -> tuple[tuple[str, ...], ...] | None:
    """Return the arms that each slot could show, or None if each could show all arms that earlier slots had not
    shown."""
    left_arms = set(actions.eligible)
    differs = False
    for slot in slots:
        differs |= set(slot.arms) != left_arms
        left_arms.discard(slot.arm)
    return tuple(tuple(sorted(slot.arms)) for slot in slots) if differs else None


def support(top: ShownAction, actions: Actions) -> dict[str, float] | None:
    """Return the probability of each eligible arm at the first position, or None if the line does not have all of them.
    top: the first slot."""
    by_arm = dict(zip(top.arms, top.probabilities, strict=False))
    return {arm: by_arm.get(arm, 0.0) for arm in actions.eligible} if top.probabilities else None


CACHE = 2_000  # lists of actions remembered
ARM_IDS = ("id", "i.id", "_tag")  # where the id of an action is
APPRENTICE = "rewards are withheld, as in apprentice mode: the chosen action was not shown, so no line has a propensity"
REWARDS = ("_label_cost", "_original_label_cost", "o")  # keys that hold a reward; o.KEY, too
ROW = ("session", "user", "at", "context", "request_id", "keep_probability", "action_features", "slot_sets", "support")
PATHS = {"at": "Timestamp", "request_id": "EventId", "keep_probability": "pdrop", "eligible": "c._multi"}
DROPPED = ValueCheck(lambda p: 0 <= p <= 1, "{!r} is no probability of a line that was dropped".format, "[0, 1]")


class DsJson(jsonl.LineLayout):
    """This layout reads lines of Vowpal Wabbit's decision service."""

    reads = frozenset({"reward_from", "arm_id"})
    rounding, kind, columns = FLOAT32, DsJsonLine, ROW

    def __init__(self, source: Source, *, policy: str | None, now: int, options: Mapping[str, Any]) -> None:
        name = options.get("reward_from")
        if name is not None and name not in REWARDS and not name.startswith("o."):
            hint = suggest(name, list(REWARDS)) or f"one of {', '.join(REWARDS)}, o.KEY"
            raise InputError(f"--reward-from {name[:80]!r} is no key of a reward", hint=hint)
        super().__init__(source, policy=policy or jsonl.DEFAULT_POLICY, now=now, options=options)
        self._reward_from, self._arm_id = name, options.get("arm_id")
        self._observed_events: dict[str, list[tuple[str, float, int | None]]] = defaultdict(list)
        self._activated_names: set[str] = set()
        self._inactive_ids: set[str] = set()
        self._actions: dict[str, Actions] = {}

    # -- lines --

    def decode(self, numbers: Sequence[int], texts: list[bytes]) -> Decoded:
        is_object = [not text.startswith(b"[") for text in texts]  # lines of checkpoints do
        self._n_skipped, self._observations = is_object.count(False), list[Observation]()
        group = super().decode(list(compress(numbers, is_object)), list(compress(texts, is_object)))
        return group._replace(n_skipped=self._n_skipped, observations=self._observations)

    def _observation(self, line: DsJsonLine) -> Observation:
        """Return the events that a line states on a decision in another line."""
        at = check_value(jsonl.time(line.enqueued_at, "EnqueuedTimeUtc"), until(self.now), "EnqueuedTimeUtc")
        name = self._reward_from or ""
        if name.startswith("o.") or line.reward is None:
            value = _observed_sum(line.observations, name[2:] or None)
        else:
            value = line.reward
        events = () if value is None else ((jsonl.REWARD, check_value(value, CHECKS[AMOUNT], "RewardValue"), at),)
        event_id = check_value(line.event_id, CHECKS[KEY], "EventId")
        return Observation(event_id, events, _activates(line, line.observations))

    def row(self, line: DsJsonLine, text: bytes) -> jsonl.Row | None:
        if _is_skipped(line, text):
            self._n_skipped += 1
            return None
        if _is_observation(line):
            self._observations.append(self._observation(line))
            return None
        if line.c is None:
            raise InputError("a decision without its actions", hint="`c` holds them in `_multi`", field="c")
        actions = self._actions_of(line.c)
        slots = shown_actions(line, actions)
        is_blind = withholds(line, slots, actions)
        is_inactive = (line.is_deferred or line.not_activated) and not _activates(line, line.o)
        line_slots = [
            jsonl.LineSlot(
                position, slot.arm, None if is_blind else slot.propensity, slot.propensity if actions.slots else None,
                min(slot.probabilities, default=None), censored=int(is_inactive), id=slot.outcome.id,
            )
            for position, slot in enumerate(slots, 1)
        ]  # fmt: skip
        context = {name: value for name, value in line.c.items() if name != "_multi" and not _is_bare(name, value)}
        check_value(line.pdrop, DROPPED, "pdrop")
        row = (
            line.event_id if line.session is None else line.session, line.user, jsonl.time(line.timestamp, "Timestamp"),
            canonical.text(context), line.event_id, 1 - line.pdrop if line.pdrop else None, actions.features,
            slot_sets(slots, actions), support(slots[0], actions),
        )  # fmt: skip
        return actions.eligible, row, line_slots, list(self._rewards(line, actions, slots))

    def path(self, table: str, field: str, number: int, text: bytes) -> str:
        if table == "events":
            return self._reward_from or "_label_cost"
        if table == "slots":
            path = f"_outcomes[{number}]._p" if b'"_outcomes"' in text else "p"
            return path if field in ("propensity", "min_propensity") else "_outcomes"
        return PATHS.get(field, field)

    # -- actions --

    def _actions_of(self, context: Mapping[str, Any]) -> Actions:
        entries = context.get("_multi")
        if not isinstance(entries, list) or not entries or not all(isinstance(action, dict) for action in entries):
            raise InputError("it lists no actions", field="c._multi")
        text = canonical.text(entries)
        actions = self._actions.get(text)
        if actions is None:
            if len(self._actions) >= CACHE:
                self._actions.clear()
            actions = self._actions[text] = self._make_actions(entries)
        return actions

    def _make_actions(self, entries: Sequence[Mapping[str, Any]]) -> Actions:
        """Return actions with their arms. The arm of an action is its id or, without an id, a digest of its features.
        If several actions have the same arm, a number is added."""
        arms, count = list[str](), Counter[str]()
        for action in entries:
            arm = self._arm(action)
            count[arm] += 1
            arms.append(arm if count[arm] == 1 else f"{arm}#{count[arm]}")
        slots = [action.get("_slot_id") for action in entries]
        if any(slot is not None for slot in slots) and not all(isinstance(slot, int) for slot in slots):
            raise InputError("some actions have a slot, others have none", field="c._multi._slot_id")
        features = {arm: _features(action, arm) for arm, action in zip(arms, entries, strict=True)}
        text = canonical.text(features) if any(features.values()) else None
        return Actions(arms, tuple(sorted(arms)), None if slots[0] is None else cast(list[int], slots), text)

    def _arm(self, action: Mapping[str, Any]) -> str:
        paths = (self._arm_id,) if self._arm_id else ARM_IDS
        for path in paths:
            value: Any = action
            for name in path.split("."):
                value = value.get(name) if isinstance(value, dict) else None
            if isinstance(value, str | int) and not isinstance(value, bool):
                return str(value)
        if self._arm_id:
            raise InputError(f"an action has no {self._arm_id!r}", field="c._multi")
        return blake2b(canonical.text(action).encode(), digest_size=8).hexdigest()

    # -- rewards --

    def _rewards(self, line: DsJsonLine, actions: Actions, slots: Sequence[ShownAction]) -> Iterator[jsonl.LineEvent]:
        """Yield the reward of each slot of which something was observed. If no slot has a reward (as in slates), yield
        the reward of the whole slate. A cost of 0 counts only if an observation goes with it."""
        outcomes: dict[int | None, SlotOutcome] = {n: slot.outcome for n, slot in enumerate(slots, 1)}
        has_costs = actions.slots is None and any(outcome.cost is not None for outcome in outcomes.values())
        if line.outcomes is not None and not has_costs:
            outcomes = {1 if len(slots) == 1 else None: page_outcome(line)}
        name = self._reward_from
        for position, outcome in outcomes.items():
            if name is None or name == "_label_cost":
                is_silent = outcome.cost is None or (outcome.cost == 0 and not outcome.observations)
                value = None if is_silent else -cast(float, outcome.cost)
            elif name == "_original_label_cost":
                value = None if outcome.original_cost is None else -outcome.original_cost
            else:  # o, or o.KEY
                value = _observed_sum(outcome.observations, name.partition(".")[2] or None)
            if value is not None:
                yield jsonl.LineEvent(position, jsonl.REWARD, value + 0.0)  # no -0.0

    # -- what is known at the end --

    def note(self, rows: LogColumns, group: Decoded) -> Note:
        names, slots = values(rows.request_id, len(rows)), rows.slots
        inactive_rows = set(compress(slots.row, values(slots.censored, len(slots.row))))
        return replace(super().note(rows, group), inactive_ids=[names[row] for row in inactive_rows])

    def remember(self, note: Note) -> None:
        super().remember(note)
        for observation in note.observations:
            self._observed_events[observation.key] += observation.events
            if observation.activates:
                self._activated_names.add(observation.key)
        self._inactive_ids.update(name for name in note.inactive_ids if name is not None)
        self.sums.n_skipped += note.inactive_ids.count(None)

    def finish_decoding(self) -> None:
        """Count all decisions as decisions without propensity if the log was written in apprentice mode, which shows in
        a withheld reward. In this mode the shown actions are not the choices of the learner, so that no logged action
        was drawn at random. `complete` then removes all propensities. Raises InputError for such a log if the log
        grows."""
        if self.sums.without_propensity:
            if self.source.grows:
                raise InputError(APPRENTICE, hint="import the whole log without --follow")
            self.sums.without_propensity = self.sums.decisions

    def join(self, files: Sequence[Layout]) -> list[str]:
        """Give every file the events that any file states on decisions in other lines, and count the decisions that
        were never shown. Returns messages for the user."""
        logs = [file for file in files if isinstance(file, DsJson)]
        events, activated_names = defaultdict[str, list[tuple[str, float, int | None]]](list), set[str]()
        for file in logs:
            activated_names |= file._activated_names
            for name, file_events in file._observed_events.items():
                events[name] += file_events
        for file in logs:
            file._observed_events, file._activated_names, file.sums.observes = events, activated_names, bool(events)
            file.sums.n_skipped += 0 if self.source.grows else len(file._inactive_ids - activated_names)
        lines = [f"{file.source.name}: {APPRENTICE}" for file in logs if file.sums.without_propensity]
        stray_names = events.keys() | (activated_names if self.source.grows else set())
        for rows in (rows for file in logs for rows in file.read_spool()) if stray_names else ():
            stray_names -= value_set(rows.request_id) | value_set(rows.slots.id)
        if self.source.grows:
            self.strays = {key: Observation(key, events[key], key in activated_names) for key in sorted(stray_names)}
            return []
        missing_text = f"{quantity(len(stray_names), 'observation')} without a decision in these files"
        return lines + [f"{missing_text}: `rlrec feedback --input` takes them, by request_id"] * bool(stray_names)

    def complete(self, rows: LogColumns) -> LogColumns:
        """Return the rows with the events that other lines state. Decisions that were never activated (shown) are left
        out or, in a log that grows, censored. A decision without a session gets a session of its own. If the log was
        written in apprentice mode, all propensities are removed."""
        if self.sums.without_propensity:
            slots = replace(rows.slots, propensity=NULL, marginal=NULL, min_propensity=NULL)
            rows = replace(rows, log_propensity=NULL, support=NULL, slots=slots)
        names, n_slots = values(rows.request_id, len(rows)), len(rows.slots.row)
        is_censored = values(rows.slots.censored, n_slots)
        if any(is_censored):
            marked_rows = {row for row, mark in zip(rows.slots.row, is_censored, strict=True) if mark}
            inactive_rows = {row for row in marked_rows if names[row] not in self._activated_names}
            marks = [int(row in inactive_rows) for row in rows.slots.row]
            rows = replace(rows, slots=replace(rows.slots, censored=marks))
            if self.source.grows:  # an activation may follow
                rows = jsonl.with_censor_events(rows)
            else:
                rows = rows.select([row not in inactive_rows for row in range(len(rows))])
        return _add_states(self._with_observations(rows).in_sessions())

    def _with_observations(self, rows: LogColumns) -> LogColumns:
        """Return the rows with the events that other lines state for these decisions or their slots."""
        if not self._observed_events:
            return rows
        page_entries = ((row, None, name) for row, name in enumerate(values(rows.request_id, len(rows))))
        slots, n_slots = rows.slots, len(rows.slots.row)
        entries = zip(slots.row, values(slots.position, n_slots), values(slots.id, n_slots), strict=True)
        served_at, sizes = values(rows.at, len(rows)), values(rows.size, len(rows))
        late_events = list[tuple[int, jsonl.LineEvent]]()
        for row, position, name in chain(page_entries, entries):
            for kind, value, at in self._observed_events.get(name, ()) if name is not None else ():
                event_at = None if at is None else max(at, self.now if served_at[row] is None else served_at[row])
                late_events.append((row, jsonl.LineEvent(1 if sizes[row] == 1 else position, kind, value, event_at)))
        return rows.with_events(late_events) if late_events else rows


def _add_states(rows: LogColumns) -> LogColumns:
    """Return the rows. If the log dropped lines, a decision that is a session by itself gets the state of a first
    decision, because the log cannot have dropped an earlier decision of this session."""
    if rows.keep_probability == NULL:
        return rows
    is_alone = [name == session for name, session in zip(values(rows.request_id, len(rows)), rows.session, strict=True)]
    states = [FIRST_STATE if flag else EMPTY.value for flag in is_alone]
    return replace(rows, state=states, history=[history.NO_HISTORY if flag else None for flag in is_alone])


# -- lines --


def _is_skipped(line: DsJsonLine, text: bytes) -> bool:
    """Tell whether the format marks a line as one to skip: it is not to be learned from, is a checkpoint, or comes from
    a log that drops all lines."""
    if line.c is None and line.event_id is None and line.outcomes is None:
        return b"checkpoint" in text[:100]
    return line.skip_learn or line.pdrop == 1


def _is_bare(name: str, value: Any) -> bool:
    """Tell whether a key of a ccb context only says which actions each slot could show. Such a key is no feature."""
    slots = value if name == "_slots" and isinstance(value, list) else [None]
    return all(isinstance(slot, dict) and slot.keys() <= {"_inc"} for slot in slots)


def _features(action: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """Return the features of an action. An action that has only its arm, as in lines of `export-log`, has none."""
    features = {name: value for name, value in action.items() if name not in ("_tag", "_slot_id")}
    return {} if action.get("_tag") == arm and features == {"i": {"id": arm}} else features


def _is_observation(line: DsJsonLine) -> bool:
    if UNSET is not line.label_ca or UNSET is not line.ca or UNSET is not line.pdf:
        hint = "rlrec chooses among arms that can be listed; cut the range into a few of them"
        raise InputError("a log of continuous actions", hint=hint, field="_label_ca")
    observes = line.reward is not None or line.observations or line.action_taken or line.is_deferred is not None
    return line.c is None and line.event_id is not None and bool(observes)


def _activates(line: DsJsonLine, observations: Sequence[Any]) -> bool:
    """Tell whether a line, or one of its observations, says that a decision was shown."""
    marks = [entry for entry in observations if isinstance(entry, dict)]
    return (
        line.action_taken
        or (line.c is None and line.is_deferred is False)
        or any(entry.get("ActionTaken") is True or entry.get("DeferredAction") is False for entry in marks)
    )


def _observed_sum(observations: Sequence[Any], name: str | None) -> float | None:
    """Return the sum of the observed numbers, or None if there is none. name: the key under which an observation has
    its number, None if the observation is the number itself."""
    items = [entry.get("v") if isinstance(entry, dict) else entry for entry in observations]
    if name is not None:
        items = [entry.get(name) if isinstance(entry, dict) else None for entry in items]
    numbers = [entry for entry in items if isinstance(entry, int | float) and not isinstance(entry, bool)]
    return float(sum(numbers)) if numbers else None
