"""This module computes rewards from events by the definition of a reward. One slot is handled in plain Python, and a
batch of slots in arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import copysign, fsum, log1p
from typing import TYPE_CHECKING

from rlrec.errors import InputError
from rlrec.records import Event, Reward, Transform
from rlrec.times import format_duration

if TYPE_CHECKING:
    from rlrec.arrays import Array, Flags, Ids

KIND = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,63}")  # of events
LIMIT = 1e100  # for event values, weights, defaults and rewards; squares and sums of larger ones would overflow


def slot_reward(definition: Reward, events: Iterable[Event], *, served_at: int, settled_only: bool = False) -> float:
    """Return the reward of one slot from its events, in the definition's unit. The order of the events does not matter.

    served_at: the time of the decision; settled_only: whether only events inside the window count, as in estimates.
    If settled_only is False, late events count as the definition says. The reward is cut at +-1e100, the limit of
    values and weights, so that all stored data can be read again."""
    terms = _weighted_values(definition, events, served_at=served_at, settled_only=settled_only)
    return clip(definition, fsum(terms)) if terms else definition.default


def rewards_of(
    definition: Reward, events: Iterable[Event], *, served_at: int, slots: Iterable[int]
) -> dict[int | None, float]:
    """Return the reward of each slot of a decision, by position. The key None has the reward of the page, which comes
    from events that belong to no slot.

    The reward of the page has no default and no clip. Only events inside the window count, as in estimates. events:
    all events of the decision; served_at: the time of the decision; slots: the positions that were shown."""
    by_slot = by_position(events)
    reward_by_slot: dict[int | None, float] = {
        slot: slot_reward(definition, by_slot.get(slot, ()), served_at=served_at, settled_only=True) for slot in slots
    }
    page_values = _weighted_values(definition, by_slot.get(None, ()), served_at=served_at, settled_only=True)
    return reward_by_slot | {None: fsum(page_values)}


def by_position(events: Iterable[Event]) -> dict[int | None, list[Event]]:
    """Return the events of one decision, grouped by position. Events that belong to the page, not to a slot, are under
    the key None."""
    by_slot: dict[int | None, list[Event]] = {}
    for event in events:
        by_slot.setdefault(event.position, []).append(event)
    return by_slot


def _weighted_values(definition: Reward, events: Iterable[Event], *, served_at: int, settled_only: bool) -> list[float]:
    """Return weight x value of the events that count: all events inside the window and, if the definition counts late
    events and `settled_only` is False, the late ones. An event is late by the time at which it happened, not by its
    arrival.

    If the definition has transforms, there is one value for each kind of event. The values of a kind are summed
    before the transform, so that the order of events cannot matter."""
    weights, transforms = definition.weights, definition.transforms
    if settled_only or definition.late == "ignore":
        last_counted_time = served_at + definition.window_us
        events = (event for event in events if event.at <= last_counted_time)
    if not transforms:
        return [weights[event.kind] * event.value for event in events if event.kind in weights]
    by_kind: dict[str, list[float]] = {}
    for event in events:
        if event.kind in weights:
            by_kind.setdefault(event.kind, []).append(event.value)
    return [weights[kind] * _transform(transforms.get(kind), fsum(values)) for kind, values in by_kind.items()]


def _transform(transform: Transform | None, total: float) -> float:
    """Return the transformed sum of the values of one kind of event. With `log1p`, the result is ln(1 + |sum|) with the
    sign of the sum."""
    if transform is None:
        return total
    if transform.cap is not None:
        total = min(total, transform.cap)
    return copysign(log1p(abs(total)), total) if transform.log1p else total


def clip(definition: Reward, total: float) -> float:
    """Return the reward of a slot, cut to the range of the definition and to +-LIMIT."""
    lowest_reward = -LIMIT if definition.clip_low is None else definition.clip_low
    highest_reward = LIMIT if definition.clip_high is None else definition.clip_high
    return min(max(total, lowest_reward), highest_reward)


def is_bounded(value: float) -> bool:
    """Tell whether a number is so small that rewards computed from the number can be squared and summed."""
    return abs(value) <= LIMIT


def slot_rewards(
    definition: Reward, *, n: int, slot: Ids, kind: Ids, value: Array, age_us: Ids, settled_only: bool = True
) -> tuple[Array, Flags]:
    """Compute `slot_reward` for n slots. Return two arrays (n,): the rewards, and whether each reward is the default
    because the slot has no event that counts.

    slot (m,): the slot of each event; kind (m,): the index of the event's kind in the definition's `weights` (-1 if
    the kind has no weight); value (m,): the value of each event; age_us (m,): the time from the decision to the
    event in microseconds; settled_only: whether only events inside the window count."""
    import numpy as np

    is_counted = kind >= 0
    if settled_only or definition.late == "ignore":
        is_counted &= age_us <= definition.window_us
    total = _sum_events(definition, n=n, row=slot[is_counted], kind=kind[is_counted], value=value[is_counted])
    is_default = np.bincount(slot[is_counted], minlength=n) == 0
    lowest_reward = -LIMIT if definition.clip_low is None else definition.clip_low
    total = np.clip(total, lowest_reward, LIMIT if definition.clip_high is None else definition.clip_high)
    return np.where(is_default, definition.default, total), is_default


def page_rewards(definition: Reward, *, n: int, page: Ids, kind: Ids, value: Array, age_us: Ids) -> Array:
    """Return the reward of each of n pages, (n,), from events inside the window that belong to the page and not to a
    slot.

    page (m,): the page of each event; kind, value, age_us (m,): the index of the event's kind, its value, and the
    microseconds since the decision, as in `slot_rewards`."""
    is_counted = (kind >= 0) & (age_us <= definition.window_us)
    return _sum_events(definition, n=n, row=page[is_counted], kind=kind[is_counted], value=value[is_counted])


def _sum_events(definition: Reward, *, n: int, row: Ids, kind: Ids, value: Array) -> Array:
    """Return the weighted sum of the events of each row (slot or page), (n,).

    row, kind, value (m,): the row of each event, the index of its kind, and its value."""
    import numpy as np

    if not definition.transforms:
        weight_by_kind = np.fromiter(definition.weights.values(), np.float64)
        return np.bincount(row, weights=weight_by_kind[kind] * value, minlength=n).astype(np.float64)
    sums = np.zeros(n)
    for index, (name, weight_of_kind) in enumerate(definition.weights.items()):
        is_of_kind = kind == index
        total = np.bincount(row[is_of_kind], weights=value[is_of_kind], minlength=n)
        transform = definition.transforms.get(name, Transform())
        if transform.cap is not None:
            total = np.minimum(total, transform.cap)
        sums += weight_of_kind * (np.copysign(np.log1p(np.abs(total)), total) if transform.log1p else total)
    return sums


def bounds(definition: Reward) -> tuple[float, float] | None:
    """Return the lowest and the highest possible reward of a slot. The result is None if the definition does not limit
    the reward on both sides."""
    if definition.clip_low is None or definition.clip_high is None:
        return None
    return min(definition.clip_low, definition.default), max(definition.clip_high, definition.default)


def term_text(kind: str, transform: Transform) -> str:
    """Return the term of one kind of event as the command `reward define` takes it, such as log1p(min(dwell_s,60))."""
    capped_kind = kind if transform.cap is None else f"min({kind},{repr(transform.cap).removesuffix('.0')})"
    return f"log1p({capped_kind})" if transform.log1p else capped_kind


def largest_reward(definition: Reward) -> float:
    """Return the largest reward of a slot. If the definition has no clip, the result is the reward of a slot with one
    event of each kind, at the cap of the kind or, without a cap, at the value 1."""
    if definition.clip_high is not None:
        return max(definition.default, definition.clip_high)
    transforms = ((definition.transforms.get(kind, Transform()), weight) for kind, weight in definition.weights.items())
    terms = [weight * _transform(transform, transform.cap or 1.0) for transform, weight in transforms if weight > 0]
    return max(definition.default, fsum(terms))


def within_unit_hint(definition: Reward) -> str:
    """Return a hint on how to bring a reward into [0, 1].

    If the reward is never negative, the hint is the command that defines the reward again in units of its largest
    value."""
    is_clipped, lowest_reward = definition.clip_low is not None, definition.clip_low or 0.0
    cost_kinds = ", ".join(kind for kind, weight in definition.weights.items() if weight < 0)
    if cost_kinds and not (is_clipped and lowest_reward >= 0):
        return f"take a kind for any reward, as epsilon-greedy: --clip 0,1 would hide what {cost_kinds} takes away"
    if min(lowest_reward, definition.default) < 0:
        return (
            "define another one with --clip 0,1 and a default inside it, or take a kind for any reward: epsilon-greedy"
        )
    unit = max(1.0, largest_reward(definition))
    transforms = {kind: definition.transforms.get(kind, Transform()) for kind in definition.weights}
    terms = (f"{term_text(kind, transforms[kind])}={weight / unit:.12g}" for kind, weight in definition.weights.items())
    options = [
        f"--window {format_duration(definition.window_us)} --clip {lowest_reward / unit:.12g},1",
        *([f"--default {definition.default / unit:.12g}"] if definition.default else []),
        *([f"--learn {definition.learn}"] if definition.learn != "served" else []),
        *([f"--late {definition.late}"] if definition.late != "count" else []),
    ]
    command = f"rlrec reward define {definition.name[:59]}-unit '{', '.join(terms)}' {' '.join(options)}"
    unit_text = f"the most that a slot earns{'' if is_clipped else ' with one event of each kind'}"
    kinds = [kind for kind in transforms if kind not in ("click", "return") and transforms[kind].cap is None]
    if kinds and not is_clipped:
        unit_text += f" of at most 1, and cuts what is above (where {', '.join(kinds)} goes up to 5, divide by 5 again)"
    return f"`{command}` counts in units of {unit:g}, {unit_text}; --reward {definition.name} still judges in its own"


def weights(weight_by_kind: Mapping[str, float]) -> dict[str, float]:
    """Return the weights of a reward as a dictionary, after a check. Raises InputError if a weight is not finite, or if
    there is no weight.

    weight_by_kind: the weight of each kind of event."""
    if not weight_by_kind:
        raise InputError("a reward weighs at least one kind of event", hint="for example 'click=1, dwell_s=0.01'")
    for kind, weight in weight_by_kind.items():
        if not is_bounded(weight):
            raise InputError(f"the weight of {kind!r} is not a finite number within {LIMIT:g}")
    return dict(weight_by_kind)
