"""The log as lines of Vowpal Wabbit's decision service: pages of one slot as cb, longer ones as ccb.

`session` and `user` stand beside the keys of the format, whose readers pass over what they do not know; `import-log`
brings them back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlrec.app.imports.layouts.writing import LayoutWriter, Record


class DsJsonWriter(LayoutWriter):
    """An action has its arm in `_tag`, beside the features of the arm for the decision, else of the catalogue; one
    without any has the feature `i.id`."""

    holds = frozenset({"features", "slot_sets", "support"})

    def decision(self, record: Record) -> bytes:
        slate, arms = record["slate"], record["eligible"]
        silent = any(slot["propensity"] is None for slot in slate) or slate[-1]["position"] != len(slate)
        if silent or any(slot.get("censored") for slot in slate):
            self.left_out["without propensities" if silent else "censored"] += 1
            return b""
        features: Mapping[str, Any] = record.get("features") or record["catalogue_features"]
        actions = [{"_tag": arm, **(features.get(arm) or {"i": {"id": arm}})} for arm in arms]
        event_id = record["request_id"] or f"decision-{record['decision_id']}"
        line: Record = {
            "Timestamp": record["at"], "Version": "1", "EventId": event_id,
            "c": {**record["context"], "_multi": actions},
        }  # fmt: skip
        self._note(record)
        if len(slate) == 1 and "slot_sets" not in record:
            line = _cb(record, arms) | line
        else:
            line |= _ccb(record, arms)
            line["c"]["_slots"] = _slots(record, arms)
        keep = record.get("keep_probability")
        line |= {} if keep is None else {"pdrop": 1 - keep}
        line |= {name: record[name] for name in ("session", "user") if record[name] is not None}
        return f"{json.dumps(line, ensure_ascii=False, allow_nan=False)}\n".encode()

    def _note(self, record: Record) -> None:
        """Count what the line cannot hold."""
        by_slot = any(event["position"] is not None for event in record["events"])
        lost = {
            "rewards beyond the range of their definition, without --reward": record["clipped"],
            "page rewards beside those of slots": by_slot and record["rewards"][None],
            "marginals": any(slot["marginal"] is not None for slot in record["slate"]) and len(record["slate"]) > 1,
            "min_propensity": any("min_propensity" in slot for slot in record["slate"]["support" in record :]),
            "estimated": record.get("estimated"),
        }
        self.left_out.update(name for name, is_lost in lost.items() if is_lost)


def _cb(record: Record, arms: Sequence[str]) -> Record:
    (slot,) = record["slate"]
    a, p = _ranked(slot, arms, record.get("support"), first=1)
    value = record["reward"]
    return {
        "_label_cost": 0.0 - value, "_label_probability": p[0], "_label_Action": a[0], "_labelIndex": a[0] - 1,
        "o": _observed(record, value), "a": a, "p": p,
    }  # fmt: skip


def _ccb(record: Record, arms: Sequence[str]) -> Record:
    """The outcome of each slot. Rewards are those of slots; where only the page has events, that of the page."""
    outcomes, observed = list[Record](), {event["position"] for event in record["events"]}
    support, sets = record.get("support"), record.get("slot_sets") or [arms]
    support = None if support is None else {arm: support[arm] for arm in sets[0]}
    for slot in record["slate"]:
        position = slot["position"]
        a, p = _ranked(slot, arms, support if position == 1 else None, first=0)
        value = record["rewards"][position]
        cost = {"_label_cost": 0.0 - value, "_o": [{"v": value}] if position in observed else []}
        shown = {"_id": f"{record['decision_id']}-{position}", "_a": a, "_p": p}
        outcomes.append(shown if observed == {None} else cost | shown)
    value = record["rewards"][None]
    of_page = {"_label_cost": 0.0 - value, "o": _observed(record, value)} if observed == {None} else {}
    return {"_outcomes": outcomes, **of_page}


def _observed(record: Record, value: float) -> list[Record]:
    return [{"v": value}] if record["events"] else []


def _slots(record: Record, arms: Sequence[str]) -> list[Record]:
    """The slots as the context describes them, and the actions that each could show, where these are not all that was
    left."""
    described, sets = record["context"].get("_slots"), record.get("slot_sets")
    if not isinstance(described, list) or len(described) != len(record["slate"]):
        described = [{} for _ in record["slate"]]
    slots = [{key: slot[key] for key in slot if key != "_inc"} if isinstance(slot, dict) else {} for slot in described]
    if sets is None:
        return slots
    number = {arm: index for index, arm in enumerate(arms)}
    return [slot | {"_inc": [number[arm] for arm in of_slot]} for slot, of_slot in zip(slots, sets, strict=True)]


def _ranked(
    slot: Mapping[str, Any], arms: Sequence[str], support: Mapping[str, float] | None, *, first: int
) -> tuple[list[int], list[float]]:
    """The numbers of actions, that of the slot's arm first, and their probabilities."""
    shown, propensity = slot["arm"], slot["propensity"]
    order = [shown] if support is None else [shown, *(arm for arm in arms if arm != shown and arm in support)]
    number = {arm: index for index, arm in enumerate(arms, first)}
    p = [propensity] if support is None else [propensity, *(support[arm] for arm in order[1:])]
    return [number[arm] for arm in order], p
