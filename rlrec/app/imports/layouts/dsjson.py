"""The lines of Vowpal Wabbit's decision service (`dsjson`), which Azure Personalizer logs too: cb, ccb and slates.

A line is a decision with its reward, or the reward of a decision in another line, joined by the event id. In cb, `a`
ranks actions counted from 1, and the first one was shown. In `_outcomes` of ccb and slates, `_a` counts them from 0, in
slates within the actions of the slot. A cost is a negative reward.
Source: the pages DSJSON, Conditional Contextual Bandit and Slates of Vowpal Wabbit's wiki.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import chain, compress
from typing import Any, cast

from msgspec import UNSET

from rlrec.app.imports.columns import EMPTY, FIRST_STATE, NULL, LogColumns, distinct, values
from rlrec.app.imports.layouts import dsjson_slots, jsonl
from rlrec.app.imports.layouts.base import Decoded, LateObservation, Layout, Note, Observation, Source
from rlrec.app.imports.layouts.checks import AMOUNT, CHECKS, FLOAT32, ValueCheck, checked, until
from rlrec.app.imports.layouts.dsjson_slots import Actions, DsJsonLine, ShownAction, SlotOutcome
from rlrec.app.inputs import canonical
from rlrec.errors import InputError, quantity, suggest
from rlrec.log_fields import KEY
from rlrec.policy.gradients import history

CACHE = 2_000  # lists of actions remembered
ARM_IDS = ("id", "i.id", "_tag")  # where the id of an action is
APPRENTICE = "rewards are withheld, as from an apprentice: what it chose was not shown, so no line has a propensity"
REWARDS = ("_label_cost", "_original_label_cost", "o")  # keys that hold a reward; o.KEY, too
ROW = ("session", "user", "at", "context", "request_id", "keep_probability", "action_features", "slot_sets", "support")
PATHS = {"at": "Timestamp", "request_id": "EventId", "keep_probability": "pdrop", "eligible": "c._multi"}
DROPPED = ValueCheck(lambda p: 0 <= p <= 1, "{!r} is no probability of a line that was dropped".format, "[0, 1]")


class DsJson(jsonl.LineLayout):
    """Lines of a decision service."""

    reads = frozenset({"reward_from", "arm_id"})
    rounding, kind, columns = FLOAT32, DsJsonLine, ROW

    def __init__(self, source: Source, *, policy: str | None, now: int, options: Mapping[str, Any]) -> None:
        name = options.get("reward_from")
        if name is not None and name not in REWARDS and not name.startswith("o."):
            hint = suggest(name, list(REWARDS)) or f"one of {', '.join(REWARDS)}, o.KEY"
            raise InputError(f"--reward-from {name[:80]!r} is no key of a reward", hint=hint)
        super().__init__(source, policy=policy or jsonl.DEFAULT_POLICY, now=now, options=options)
        self._reward_from, self._arm_id = name, options.get("arm_id")
        self._observed: dict[str, list[tuple[str, float, int | None]]] = defaultdict(list)
        self._activated: set[str] = set()
        self._inactive: set[str] = set()
        self._actions: dict[str, Actions] = {}

    # -- lines --

    def decode(self, numbers: Sequence[int], texts: list[bytes]) -> Decoded:
        objects = [not text.startswith(b"[") for text in texts]  # lines of checkpoints do
        self._passed, self._observations = objects.count(False), list[Observation]()
        group = super().decode(list(compress(numbers, objects)), list(compress(texts, objects)))
        return group._replace(skipped=self._passed, observations=self._observations)

    def _observation(self, line: DsJsonLine) -> Observation:
        """The observation that a line makes of a decision in another line."""
        at = checked(jsonl.time(line.enqueued, "EnqueuedTimeUtc"), until(self.now), "EnqueuedTimeUtc")
        name = self._reward_from or ""
        if name.startswith("o.") or line.reward is None:
            value = _observed_sum(line.observations, name[2:] or None)
        else:
            value = line.reward
        events = () if value is None else ((jsonl.REWARD, checked(value, CHECKS[AMOUNT], "RewardValue"), at),)
        event_id = checked(line.event_id, CHECKS[KEY], "EventId")
        return Observation(event_id, events, _activates(line, line.observations))

    def row(self, line: DsJsonLine, text: bytes) -> jsonl.Row | None:
        if _is_skipped(line, text):
            self._passed += 1
            return None
        if _is_observation(line):
            self._observations.append(self._observation(line))
            return None
        if line.c is None:
            raise InputError("a decision without its actions", hint="`c` holds them in `_multi`", field="c")
        actions = self._actions_of(line.c)
        shown = dsjson_slots.shown_actions(line, actions)
        withholds = dsjson_slots.withholds(line, shown, actions)
        is_inactive = (line.deferred or line.not_activated) and not _activates(line, line.o)
        slots = [
            jsonl.LineSlot(
                position, slot.arm, None if withholds else slot.propensity, slot.propensity if actions.slots else None,
                min(slot.probabilities, default=None), censored=int(is_inactive), id=slot.outcome.id,
            )
            for position, slot in enumerate(shown, 1)
        ]  # fmt: skip
        context = {name: value for name, value in line.c.items() if name != "_multi" and not _is_bare(name, value)}
        checked(line.pdrop, DROPPED, "pdrop")
        row = (
            line.event_id if line.session is None else line.session, line.user, jsonl.time(line.timestamp, "Timestamp"),
            canonical.text(context), line.event_id, 1 - line.pdrop if line.pdrop else None, actions.features,
            dsjson_slots.slot_sets(shown, actions), dsjson_slots.support(shown[0], actions),
        )  # fmt: skip
        return actions.eligible, row, slots, list(self._rewards(line, actions, shown))

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
            actions = self._actions[text] = self._keyed(entries)
        return actions

    def _keyed(self, entries: Sequence[Mapping[str, Any]]) -> Actions:
        """Actions with their arms: the id where there is one, else a digest of the features, numbered where several are
        equal."""
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
        named = (self._arm_id,) if self._arm_id else ARM_IDS
        for path in named:
            value: Any = action
            for name in path.split("."):
                value = value.get(name) if isinstance(value, dict) else None
            if isinstance(value, str | int) and not isinstance(value, bool):
                return str(value)
        if self._arm_id:
            raise InputError(f"an action has no {self._arm_id!r}", field="c._multi")
        return blake2b(canonical.text(action).encode(), digest_size=8).hexdigest()

    # -- rewards --

    def _rewards(self, line: DsJsonLine, actions: Actions, shown: Sequence[ShownAction]) -> Iterator[jsonl.LineEvent]:
        """The reward of each slot, or of the page where no slot has one (as in slates), where something was observed. A
        cost of 0 without an observation does not count as observed."""
        outcomes: dict[int | None, SlotOutcome] = {n: slot.outcome for n, slot in enumerate(shown, 1)}
        has_costs = actions.slots is None and any(outcome.cost is not None for outcome in outcomes.values())
        if line.outcomes is not None and not has_costs:
            outcomes = {1 if len(shown) == 1 else None: dsjson_slots.page_outcome(line)}
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
        is_inactive = set(compress(slots.row, values(slots.censored, len(slots.row))))
        return replace(super().note(rows, group), inactive=[names[row] for row in is_inactive])

    def remember(self, note: Note) -> None:
        super().remember(note)
        for observation in note.observations:
            self._observed[observation.key] += observation.events
            if observation.activates:
                self._activated.add(observation.key)
        self._inactive.update(name for name in note.inactive if name is not None)
        self.sums.skipped += note.inactive.count(None)

    def finish_decoding(self) -> None:
        """Where some reward was withheld, the whole log is that of an apprentice: none of its decisions was drawn."""
        if self.sums.without_propensity:
            if self.source.grows:
                raise InputError(APPRENTICE, hint="import the whole log without --follow")
            self.sums.without_propensity = self.sums.decisions

    def join(self, files: Sequence[Layout]) -> list[str]:
        """Give every file the observations of all files, and count the decisions that were never activated. Returns
        lines for the user."""
        logs = [file for file in files if isinstance(file, DsJson)]
        observed, activated_names = defaultdict[str, list[tuple[str, float, int | None]]](list), set[str]()
        for file in logs:
            activated_names |= file._activated
            for name, events in file._observed.items():
                observed[name] += events
        for file in logs:
            file._observed, file._activated, file.sums.observes = observed, activated_names, bool(observed)
            file.sums.skipped += 0 if self.source.grows else len(file._inactive - activated_names)
        lines = [f"{file.source.name}: {APPRENTICE}" for file in logs if file.sums.without_propensity]
        unmatched = observed.keys() | (activated_names if self.source.grows else set())
        for rows in (rows for file in logs for rows in file.spooled()) if unmatched else ():
            unmatched -= distinct(rows.request_id) | distinct(rows.slots.id)
        if self.source.grows:
            self.late = {name: LateObservation(observed[name], name in activated_names) for name in sorted(unmatched)}
            return []
        missing_text = f"{quantity(len(unmatched), 'observation')} without a decision in these files"
        return lines + [f"{missing_text}: `rlrec feedback --input` takes them, by request_id"] * bool(unmatched)

    def complete(self, rows: LogColumns) -> LogColumns:
        """The rows with the observations from other lines, without decisions that were never activated, and with one
        session per decision."""
        if self.sums.without_propensity:
            slots = replace(rows.slots, propensity=NULL, marginal=NULL, min_propensity=NULL)
            rows = replace(rows, log_propensity=NULL, support=NULL, slots=slots)
        names, n_slots = values(rows.request_id, len(rows)), len(rows.slots.row)
        censored = values(rows.slots.censored, n_slots)
        if any(censored):
            marked = {row for row, mark in zip(rows.slots.row, censored, strict=True) if mark}
            is_inactive = {row for row in marked if names[row] not in self._activated}
            marks = [int(row in is_inactive) for row in rows.slots.row]
            rows = replace(rows, slots=replace(rows.slots, censored=marks))
            if self.source.grows:  # an activation may follow
                rows = jsonl.with_censor_events(rows)
            else:
                rows = rows.select([row not in is_inactive for row in range(len(rows))])
        return _with_states(self._with_observations(rows).in_sessions())

    def _with_observations(self, rows: LogColumns) -> LogColumns:
        """The rows with the observations that name a decision, or a slot of it."""
        if not self._observed:
            return rows
        named = ((row, None, name) for row, name in enumerate(values(rows.request_id, len(rows))))
        slots, n_slots = rows.slots, len(rows.slots.row)
        entries = zip(slots.row, values(slots.position, n_slots), values(slots.id, n_slots), strict=True)
        served_at, sizes = values(rows.at, len(rows)), values(rows.size, len(rows))
        late_events = list[tuple[int, jsonl.LineEvent]]()
        for row, position, name in chain(named, entries):
            for kind, value, at in self._observed.get(name, ()) if name is not None else ():
                event_at = None if at is None else max(at, self.now if served_at[row] is None else served_at[row])
                late_events.append((row, jsonl.LineEvent(1 if sizes[row] == 1 else position, kind, value, event_at)))
        return rows.with_events(late_events) if late_events else rows


def _with_states(rows: LogColumns) -> LogColumns:
    """The rows, with states where each decision is a session by itself: even a log that dropped lines dropped none
    before it in its session."""
    if rows.keep_probability == NULL:
        return rows
    alone = [name == session for name, session in zip(values(rows.request_id, len(rows)), rows.session, strict=True)]
    states = [FIRST_STATE if is_alone else EMPTY.value for is_alone in alone]
    return replace(rows, state=states, history=[history.FIRST if is_alone else None for is_alone in alone])


# -- lines --


def _is_skipped(line: DsJsonLine, text: bytes) -> bool:
    """Whether the format marks the line as one to skip: not to be learned from, a checkpoint, or from a log that drops
    all."""
    if line.c is None and line.event_id is None and line.outcomes is None:
        return b"checkpoint" in text[:100]
    return line.skip_learn or line.pdrop == 1


def _is_bare(name: str, value: Any) -> bool:
    """Whether a key of a ccb context says no more than which actions each slot could show."""
    slots = value if name == "_slots" and isinstance(value, list) else [None]
    return all(isinstance(slot, dict) and slot.keys() <= {"_inc"} for slot in slots)


def _features(action: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """The features of an action; none where the action holds only its arm, as in lines of `export-log`."""
    features = {name: value for name, value in action.items() if name not in ("_tag", "_slot_id")}
    return {} if action.get("_tag") == arm and features == {"i": {"id": arm}} else features


def _is_observation(line: DsJsonLine) -> bool:
    if UNSET is not line.label_ca or UNSET is not line.ca or UNSET is not line.pdf:
        hint = "rlrec chooses among arms that can be listed; cut the range into a few of them"
        raise InputError("a log of continuous actions", hint=hint, field="_label_ca")
    observes = line.reward is not None or line.observations or line.action_taken or line.deferred is not None
    return line.c is None and line.event_id is not None and bool(observes)


def _activates(line: DsJsonLine, observations: Sequence[Any]) -> bool:
    """Whether a line says that the decision was shown."""
    marks = [entry for entry in observations if isinstance(entry, dict)]
    return (
        line.action_taken
        or (line.c is None and line.deferred is False)
        or any(entry.get("ActionTaken") is True or entry.get("DeferredAction") is False for entry in marks)
    )


def _observed_sum(observations: Sequence[Any], name: str | None) -> float | None:
    """The sum of the observed numbers, or of those under the key `name`; None where there are none."""
    observed = [entry.get("v") if isinstance(entry, dict) else entry for entry in observations]
    if name is not None:
        observed = [entry.get(name) if isinstance(entry, dict) else None for entry in observed]
    numbers = [entry for entry in observed if isinstance(entry, int | float) and not isinstance(entry, bool)]
    return float(sum(numbers)) if numbers else None
