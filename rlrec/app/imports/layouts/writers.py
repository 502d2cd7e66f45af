"""Classes here write decisions of the log as lines of several layouts, and count what these lines cannot hold."""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from rlrec.app.inputs import canonical
from rlrec.errors import InputError
from rlrec.log_fields import SLOT, STATED_FIELDS

LogLine = dict[str, Any]  # of `export_log`


DECISION_COLUMNS = (
    "decision", "request_id", "session", "visit", "step", "user", "at", "policy", "size", "log_propensity",
    *(field.key for field in STATED_FIELDS if field.in_csv), "eligible", "context", "state",
)  # fmt: skip
SLOT_COLUMNS = (*(field.key for field in SLOT if field.in_csv), "reward", "events")
COLUMNS = (*DECISION_COLUMNS, *SLOT_COLUMNS)
ADDED = {"censored", "rounded"}  # columns that tables of earlier releases lack
HEADERS = COLUMNS, tuple(name for name in COLUMNS if name not in ADDED)
MAPS = [{name: name for name in names if name != "reward"} for names in HEADERS]  # the reward follows from the events


class LayoutWriter(ABC):
    """A LayoutWriter writes decisions of the log as lines of one layout. needs_details: whether it needs the rewards of
    slots and the features of the catalogue; held_keys: the keys of OPTIONAL that its lines can hold; left_out: for each
    thing that lines cannot hold, by name, the number of decisions that have it."""

    OPTIONAL: ClassVar[tuple[str, ...]] = ("candidates", "features", "slot_sets", "support")  # keys of some records
    needs_details: ClassVar[bool] = True
    held_keys: ClassVar[frozenset[str]] = frozenset()
    header: ClassVar[bytes] = b""

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()

    def lines(self, records: Iterable[LogLine]) -> Iterator[bytes]:
        """Yield the lines of all decisions that can be written."""
        header = self.header
        for record in records:
            if data := self.decision(record):
                self.left_out.update(name for name in self.OPTIONAL if name not in self.held_keys and record.get(name))
                yield header + data
                header = b""

    @abstractmethod
    def decision(self, record: LogLine) -> bytes:
        """Return the lines of a decision, or no bytes if this layout cannot hold the decision."""


class JsonLines(LayoutWriter):
    """This class writes each decision as one line, a JSON object with the whole record of the decision."""

    needs_details, held_keys = False, frozenset(LayoutWriter.OPTIONAL)

    def decision(self, record: LogLine) -> bytes:
        return f"{json.dumps(record, ensure_ascii=False, allow_nan=False)}\n".encode()


class CsvWriter(LayoutWriter):
    """This class writes a table with one row per slot, which `import-log` reads without a map. The cell `eligible` is a
    list in JSON, `context` is an object, and `events` is a list of the events of the slot. Events on the whole slate
    are in its first row, with `"position": null`."""

    header = f"{','.join(COLUMNS)}\n".encode()

    def decision(self, record: LogLine) -> bytes:
        last_position = record["slate"][-1]["position"]
        cells = record | {
            "decision": record["decision_id"], "size": record.get("k", last_position),
            "eligible": canonical.text(record["eligible"]), "context": canonical.text(record["context"]),
            "state": canonical.text(record["state"]) if record["state"] else None,
        }  # fmt: skip
        head = [_cell(cells.get(name)) for name in DECISION_COLUMNS]
        events: dict[int | None, list[Any]] = {}
        for event in record["events"]:
            events.setdefault(event["position"], []).append({name: event[name] for name in ("kind", "value", "at")})
            if event["key"] is not None:
                events[event["position"]][-1]["key"] = event["key"]
        page_events = [event | {"position": None} for event in events.get(None, ())]
        buffer = io.StringIO()
        rows = csv.writer(buffer, lineterminator="\n")
        for slot in record["slate"]:
            slot_events = events.get(slot["position"], []) + page_events
            self.left_out.update(name for name in ("team",) if slot.get(name))
            rows.writerow([
                *head, *(_cell(slot.get(name)) for name in SLOT_COLUMNS[:-2]), record["rewards"][slot["position"]],
                canonical.text(slot_events) if slot_events else None,
            ])  # fmt: skip
            page_events = []
        text = buffer.getvalue()
        if text.count("\n") > len(record["slate"]) or "\r" in text:
            reason = f"a key of decision {record['decision_id']} has a line break, which no cell can hold"
            raise InputError(reason, hint="--layout jsonl")
        return text.encode()


def _cell(value: Any) -> Any:
    """Return a value in the form in which a cell holds it; True becomes 1."""
    return 1 if value is True else value


def _stated_flags(record: LogLine, exclusions: Sequence[str] = ()) -> dict[str, bool]:
    """Tell, for each field that a line may state, whether a record has it. exclusions: fields to leave out of the
    result."""
    keys = [field.key for field in STATED_FIELDS if field.key not in exclusions]
    return {key: record.get(key) not in (None, False) for key in keys}


class DsJsonWriter(LayoutWriter):
    """This class writes lines of Vowpal Wabbit's decision service. A slate of one slot becomes a line of the kind cb,
    and a longer slate a line of the kind ccb.

    `session` and `user` are extra keys. Other readers of the format ignore unknown keys, but `import-log` reads
    these two. An action has its arm in `_tag`, and its features: those that the decision states or, if it states
    none, those in the catalogue. An action without features has `i.id`."""

    held_keys = frozenset({"features", "slot_sets", "support"})

    def decision(self, record: LogLine) -> bytes:
        slate, arms = record["slate"], record["eligible"]
        is_silent = any(slot["propensity"] is None for slot in slate) or slate[-1]["position"] != len(slate)
        if is_silent or any(slot.get("censored") for slot in slate):
            self.left_out["without propensities" if is_silent else "censored"] += 1
            return b""
        features: Mapping[str, Any] = record.get("features") or record["catalogue_features"]
        actions = [{"_tag": arm, **(features.get(arm) or {"i": {"id": arm}})} for arm in arms]
        event_id = record["request_id"] or f"decision-{record['decision_id']}"
        line: LogLine = {
            "Timestamp": record["at"], "Version": "1", "EventId": event_id,
            "c": {**record["context"], "_multi": actions},
        }  # fmt: skip
        self._count_losses(record)
        if len(slate) == 1 and "slot_sets" not in record:
            line = _cb(record, arms) | line
        else:
            line |= _ccb(record, arms)
            line["c"]["_slots"] = _slots(record, arms)
        keep = record.get("keep_probability")
        line |= {} if keep is None else {"pdrop": 1 - keep}
        line |= {name: record[name] for name in ("session", "user") if record[name] is not None}
        return f"{json.dumps(line, ensure_ascii=False, allow_nan=False)}\n".encode()

    def _count_losses(self, record: LogLine) -> None:
        """Count those values of a decision that its line cannot hold."""
        has_slot_events = any(event["position"] is not None for event in record["events"])
        losses = {
            "rewards beyond the range of their definition, without --reward": record["clipped"],
            "page rewards beside those of slots": has_slot_events and record["rewards"][None],
            "marginals": any(slot["marginal"] is not None for slot in record["slate"]) and len(record["slate"]) > 1,
            "min_propensity": any("min_propensity" in slot for slot in record["slate"]["support" in record :]),
            **_stated_flags(record, exclusions=("keep_probability",)),
        }
        self.left_out.update(name for name, is_lost in losses.items() if is_lost)


def _cb(record: LogLine, arms: Sequence[str]) -> LogLine:
    (slot,) = record["slate"]
    a, p = _ranking(slot, arms, record.get("support"), first=1)
    value = record["reward"]
    return {
        "_label_cost": 0.0 - value, "_label_probability": p[0], "_label_Action": a[0], "_labelIndex": a[0] - 1,
        "o": _observations(record, value), "a": a, "p": p,
    }  # fmt: skip


def _ccb(record: LogLine, arms: Sequence[str]) -> LogLine:
    """Return the keys of a ccb line that state outcomes. Each slot has its reward or, if only the whole slate has
    events, the line has the reward of the slate."""
    outcomes, positions = list[LogLine](), {event["position"] for event in record["events"]}
    support, sets = record.get("support"), record.get("slot_sets") or [arms]
    support = None if support is None else {arm: support[arm] for arm in sets[0]}
    for slot in record["slate"]:
        position = slot["position"]
        a, p = _ranking(slot, arms, support if position == 1 else None, first=0)
        value = record["rewards"][position]
        cost = {"_label_cost": 0.0 - value, "_o": [{"v": value}] if position in positions else []}
        choice = {"_id": f"{record['decision_id']}-{position}", "_a": a, "_p": p}
        outcomes.append(choice if positions == {None} else cost | choice)
    value = record["rewards"][None]
    page_events = {"_label_cost": 0.0 - value, "o": _observations(record, value)} if positions == {None} else {}
    return {"_outcomes": outcomes, **page_events}


def _observations(record: LogLine, value: float) -> list[LogLine]:
    return [{"v": value}] if record["events"] else []


def _slots(record: LogLine, arms: Sequence[str]) -> list[LogLine]:
    """Return the slots as `_slots` in the context of a line. A slot also lists the actions that it could show, unless
    each slot could show all arms that earlier slots had not shown."""
    entries, sets = record["context"].get("_slots"), record.get("slot_sets")
    if not isinstance(entries, list) or len(entries) != len(record["slate"]):
        entries = [{} for _ in record["slate"]]
    slots = [{key: slot[key] for key in slot if key != "_inc"} if isinstance(slot, dict) else {} for slot in entries]
    if sets is None:
        return slots
    number = {arm: index for index, arm in enumerate(arms)}
    return [slot | {"_inc": [number[arm] for arm in slot_arms]} for slot, slot_arms in zip(slots, sets, strict=True)]


def _ranking(
    slot: Mapping[str, Any], arms: Sequence[str], support: Mapping[str, float] | None, *, first: int
) -> tuple[list[int], list[float]]:
    """Return the actions of a slot as numbers counted from `first`, with the shown action in front, and their
    probabilities. support: the probability of each arm of the slot, or None to return the shown action alone."""
    top_arm, propensity = slot["arm"], slot["propensity"]
    order = [top_arm] if support is None else [top_arm, *(arm for arm in arms if arm != top_arm and arm in support)]
    number = {arm: index for index, arm in enumerate(arms, first)}
    p = [propensity] if support is None else [propensity, *(support[arm] for arm in order[1:])]
    return [number[arm] for arm in order], p


RESERVED = {"_multi", "_slots", "_tag", "_slot_id"}
ESCAPES = {ord(character): f"%{ord(character):02X}" for character in "%\t\n\v\f\r :|"}
EQUALS = "%3D"  # in a name


class VwWriter(LayoutWriter):
    """This class writes examples of `--cb_adf`. An example has a line of shared features with the request id as its
    tag, a line for each eligible arm with the arm as its tag, and a blank line. The line of the shown arm has a cost,
    which is the negative reward.

    Objects in the context become namespaces; other fields are outside namespaces. Texts become NAME=VALUE, and
    separators in a name are escaped as in a URL (%20)."""

    held_keys = frozenset({"features"})

    def decision(self, record: LogLine) -> bytes:
        (slot, *other_slots), arms = record["slate"], record["eligible"]
        losses = {
            "pages of several slots": other_slots or record.get("k", 1) > 1,
            "without propensities": slot["propensity"] is None,
            "censored": slot.get("censored"),
        }
        if any(losses.values()):
            self.left_out[next(name for name, is_lost in losses.items() if is_lost)] += 1
            return b""
        context, entries = record["context"], record["context"].get("@arms", {})
        stated_features = {arm: entry["features"] for arm, entry in entries.items() if entry.get("features")}
        features: Mapping[str, Any] = record.get("features") or stated_features or record["catalogue_features"]
        names = {name for fields in (context, *(features.get(arm) or {} for arm in arms)) for name in fields}
        alterations = {
            f"fields of the names {', '.join(sorted(RESERVED))}": names & RESERVED,
            "rewards beyond the range of their definition, without --reward": record["clipped"],
            **_stated_flags(record),
        }
        self.left_out.update(name for name, is_altered in alterations.items() if is_altered)
        tag = f"'{_escape_name(record['request_id'])} " if record["request_id"] else ""
        lines = [f"shared {tag}{_namespaces({name: context[name] for name in context if name[:1] != '@'})}"]
        for arm in arms:
            label = f"0:{0.0 - record['reward']!r}:{slot['propensity']!r} " if arm == slot["arm"] else ""
            lines.append(f"{label}'{_escape_name(arm)}{_namespaces(features.get(arm) or {'i': {'id': arm}})}")
        return "".join(f"{line}\n" for line in [*lines, ""]).encode()


def _escape_name(name: str) -> str:
    return name.translate(ESCAPES)


def _namespaces(fields: Mapping[str, Any]) -> str:
    """Return the fields of an object as text. Objects, and lists of objects, become namespaces, each after a bar."""
    fields = {name: value for name, value in fields.items() if name not in RESERVED}
    inner = {name: list(_words("", value)) for name, value in fields.items() if _is_nested(value)}
    top = [word for name, value in fields.items() if name not in inner for word in _words(name, value)]
    spaces = [f"|{_escape_name(name)} {_join_words(words)}" for name, words in inner.items() if words]
    return " ".join([f"| {_join_words(top)}"] * bool(top) + spaces) or "|"


def _join_words(words: Sequence[str]) -> str:
    """Return the features of a namespace as text. A `=` in a name is escaped, unless several names and no text feature
    begin with the same part before `=`. A reader then takes the whole word for a name."""
    names = [word.replace(EQUALS, "=") for word in words]
    heads = [name.partition("=")[0].partition(":")[0] for name in names]
    count, texts = Counter(heads), {word.partition("=")[0] for word in words if "=" in word}
    return " ".join(
        word if count[head] == 1 or head in texts else name
        for word, name, head in zip(words, names, heads, strict=True)
    )  # fmt: skip


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(entry, dict) for entry in value))


def _words(name: str, value: Any) -> Iterator[str]:
    """Yield the features of a value as words. A number has its name before it, a text becomes NAME=VALUE, and the names
    of nested values are joined by dots."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _words(f"{name}.{key}" if name else key, entry)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            is_number = isinstance(entry, int | float) and not isinstance(entry, bool)
            yield from _words(f"{name}.{index}" if is_number else name, entry)
    elif isinstance(value, str | bool):
        text = value if isinstance(value, str) else json.dumps(value)
        yield f"{_escape_name(name).replace('=', EQUALS)}={_escape_name(text)}"
    elif value is not None:
        yield _escape_name(name).replace("=", EQUALS) if value == 1 else f"{_escape_name(name)}:{value!r}"
