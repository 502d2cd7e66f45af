"""This module computes the rewards of the slots and slates of the log, in arrays."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Self

import numpy as np

from rlrec.arrays import Array, Flags, Ids, look_up, numbers_in_runs, products_in_runs, run_starts, take
from rlrec.policy.beliefs import reward as rewards
from rlrec.policy.beliefs.statistics import MIN_PROPENSITY
from rlrec.records import Record, Reward, Sums
from rlrec.store import Store, Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import events, reader, selected
from rlrec.store.log.reader import Batch
from rlrec.store.log.selected import Selection
from rlrec.store.policies import policies
from rlrec.times import DAY_US, LAST, SECOND, format_duration, format_time

MATURITY_COLUMNS = ("at", "imported", "censored")  # columns that decide whether a slot counts
RECENT_EVENTS = 1_000  # from which the kinds and ages of the events that a store gets are read
SHOWN = "shown_propensity"  # the column that `weighable` adds


class RewardedSlots(Record):
    """This record holds n rows of a batch with their rewards. slots: the columns; reward (n,): the reward of each row;
    default (n,): whether the row has no event that the reward weighs."""

    slots: Columns
    reward: Array
    default: Flags

    def __len__(self) -> int:
        return len(self.reward)

    def take(self, rows: Flags) -> Self:
        return self if rows.all() else self.at(np.flatnonzero(rows))

    def at(self, rows: Ids) -> Self:
        """Return the rows with the indices `rows`, in that order."""
        return replace(self, slots=take(self.slots, rows), reward=self.reward[rows], default=self.default[rows])

    def weighable(self, rows: Flags | None = None) -> Self:
        """Return the slots whose propensity is known, with the propensity in the column SHOWN. rows (n,): whether each
        slot may be returned; None for all."""
        slots = self.slots if SHOWN in self.slots else {**self.slots, SHOWN: propensities_of(self.slots)}
        has_propensity = ~np.isnan(slots[SHOWN])
        return replace(self, slots=slots).take(has_propensity if rows is None else has_propensity & rows)


class UnusedVisits(Sums, eq=True):
    """This record counts the visits of a log that were not used. waiting: visits that have not ended or are too young;
    left_out: old visits that lack some decisions (because of a filter or an import), have a censored slot, or have a
    slate without a propensity; silent: the visits with such a slate; sampled: visits from which the log may have
    dropped decisions; mature_from: for each batch, the time when the first waiting visit will be usable, if known."""

    waiting: int = 0
    left_out: int = 0
    silent: int = 0
    sampled: int = 0
    mature_from: frozenset[int] = frozenset()


def with_rewards(batch: Batch, definition: Reward, *, settled_only: bool = True) -> RewardedSlots:
    """Return the slots of a batch with their rewards. definition: how rewards are computed; settled_only: whether only
    events inside the window count."""
    slot, has_slot = _slot_of_event(batch)
    reward, default = rewards.slot_rewards(
        definition, n=len(batch), slot=slot[has_slot], kind=kind_numbers(batch, definition.weights)[has_slot],
        value=batch.events["value"][has_slot], age_us=batch.events["age_us"][has_slot], settled_only=settled_only,
    )  # fmt: skip
    return RewardedSlots(slots=batch.slots, reward=reward, default=default)


def event_rewards(batch: Batch, definition: Reward) -> tuple[Columns, Array]:
    """Return the n events of a batch that a reward weighs and that came inside its window, in order of slot and age.
    Also return how much each event adds to the reward of its slot, before transforms, (n,)."""
    kind = kind_numbers(batch, definition.weights)
    counted_rows = np.flatnonzero((kind >= 0) & (batch.events["age_us"] <= definition.window_us))
    columns = (batch.events[name][counted_rows] for name in ("age_us", "position", "decision_id"))
    order = counted_rows[np.lexsort(tuple(columns))]
    events = take(batch.events, order)
    value = np.array([*definition.weights.values()])[kind[order]] * events["value"]
    # the reward of the slot after and before each event; the reward of a page is not clipped
    starts, running_total = run_starts(events["decision_id"], events["position"]), np.cumsum(value)
    running_total -= np.repeat((running_total - value)[starts], np.diff(starts, append=len(order)))
    low, high = definition.clip_low, definition.clip_high
    bounds = (-np.inf if low is None else min(low, 0.0), np.inf if high is None else max(high, 0.0))
    added_reward = np.clip(running_total, *bounds) - np.clip(running_total - value, *bounds)
    return events, np.where(events["position"] > 0, added_reward, value)


def event_sums(batch: Batch, *, max_kinds: int) -> dict[str, Array]:
    """Return, by kind of event, the sum of the values of the events of this kind at each of n slots, (n,). max_kinds:
    how many kinds are included at most, the most frequent first."""
    counts = Counter(batch.events["kind"].tolist())
    frequent = sorted(counts, key=lambda kind: (-counts[kind], kind))[:max_kinds]
    number = kind_numbers(batch, frequent)
    slot, has_slot = _slot_of_event(batch)
    sums: dict[str, Array] = {}
    for index, kind in enumerate(frequent):
        rows = has_slot & (number == index)
        weights = batch.events["value"][rows]
        sums[kind] = np.bincount(slot[rows], weights=weights, minlength=len(batch)).astype(np.float64)
    return sums


def kind_numbers(batch: Batch, chosen_kinds: Collection[str]) -> Ids:
    """Return, for each event of a batch, the index of its kind in `chosen_kinds`, or -1 if the kind is not among
    them."""
    kinds = batch.events["kind"].tolist()
    numbers = defaultdict(lambda: -1, zip(chosen_kinds, range(len(chosen_kinds)), strict=True))
    return np.fromiter(map(numbers.__getitem__, kinds), np.int64, len(kinds))


def _slot_of_event(batch: Batch) -> tuple[Ids, Flags]:
    """Return, for each event of a batch, the row of its slot, and whether it has a slot. An event on the whole slate
    has no slot; its row is -1."""
    # one number per decision and position
    n_positions = int(max(batch.slots["position"].max(initial=0), batch.events["position"].max(initial=0))) + 1
    slots = batch.slots["decision_id"] * n_positions + batch.slots["position"]
    events, event_index = np.unique(
        batch.events["decision_id"] * n_positions + batch.events["position"], return_inverse=True
    )
    # slots are looked up in the events, which are fewer
    slot = np.full(len(events), -1, np.int64)
    index, has_events = look_up(events, slots)
    slot[index[has_events]] = np.flatnonzero(has_events)
    return slot[event_index], slot[event_index] >= 0


def propensities_of(slots: Columns) -> Array:
    """Return the propensity by which each of n slots is weighed, (n,). It is the marginal probability of the arm at its
    position or, if this is unknown, the probability of all arms down to this position; NaN if both are unknown. slots:
    the columns of whole slates, in order of decision and position."""
    marginal = slots["marginal"]
    is_missing = np.isnan(marginal)
    if not is_missing.any():
        return marginal
    depth = numbers_in_runs(run_starts(slots["decision_id"]), len(marginal))
    propensity = np.where(slots["position"] == depth + 1, slots["propensity"], np.nan)
    return np.where(is_missing, products_in_runs(propensity, depth, least=MIN_PROPENSITY), marginal)


def sampling_counts(slots: Columns) -> Array | None:
    """Return how many rows of the full log each of n rows stands for, (n,), which is 1 / the probability that the log
    kept the row. The result is None if the log kept all rows."""
    keep_probability = slots["keep_probability"]
    return None if (keep_probability == 1).all() else 1 / keep_probability


def impressions(
    unit: Unit, selection: Selection, definition: Reward, *, columns: Sequence[str] = (), is_weighed: bool = False
) -> Iterator[RewardedSlots]:
    """Yield the slots of the selected log that are mature and not censored, in batches of whole sessions, with their
    rewards. columns: the columns to read besides the arms; is_weighed: whether only slots with a propensity are
    yielded, with the propensity in the column SHOWN."""
    arm_columns = (*MATURITY_COLUMNS, "arm_id", "keep_probability")
    columns = (*arm_columns, *columns, *(("position", "propensity", "marginal") if is_weighed else ()))
    for batch in reader.batches(unit, selection, columns=columns):
        rows = with_rewards(batch, definition)
        is_counted = is_mature(batch.slots, definition, now=unit.now) & ~batch.slots["censored"]
        yield rows.weighable(is_counted) if is_weighed else rows.take(is_counted)


def with_page_rewards(batch: Batch, rows: RewardedSlots, definition: Reward) -> RewardedSlots:
    """Return a row for each decision, with the sum of the rewards of its uncensored slots and of events on the whole
    slate. The row copies the first slot of the decision, except for three fields: `censored` is true if any slot is
    censored, `all_censored` if all slots are, and `default` if the decision has no event that the reward weighs. rows:
    the slots; the slots of a decision must be adjacent."""
    decision_id, is_censored = rows.slots["decision_id"], rows.slots["censored"]
    first_rows = run_starts(decision_id)
    page_reward = page_events(batch, definition, decision_id[first_rows])
    flags = {
        "censored": np.logical_or.reduceat(is_censored, first_rows),
        "all_censored": np.logical_and.reduceat(is_censored, first_rows),
    }
    return RewardedSlots(
        slots=take(rows.slots, first_rows) | flags,
        reward=np.add.reduceat(np.where(is_censored, 0.0, rows.reward), first_rows) + page_reward,
        default=np.logical_and.reduceat(rows.default, first_rows) & (page_reward == 0),
    )


def page_events(batch: Batch, definition: Reward, decision_ids: Ids) -> Array:
    """Return, for each of n decisions, the reward from events on the whole slate that came inside the window, (n,). The
    default reward and clipping are not applied."""
    events, order = batch.events, np.argsort(decision_ids)
    index, on_page = look_up(decision_ids[order], events["decision_id"])
    on_page &= events["position"] == 0
    kind, page = kind_numbers(batch, definition.weights)[on_page], order[index[on_page]]
    value, age_us = events["value"][on_page], events["age_us"][on_page]
    return rewards.page_rewards(definition, n=len(decision_ids), page=page, kind=kind, value=value, age_us=age_us)


def is_mature(slots: Columns, definition: Reward, *, now: int) -> Flags:
    """Tell whether each of n decisions is older than the window of the reward, (n,). Imported decisions count as older.
    now: the present time, in microseconds."""
    return slots["imported"] | (now - slots["at"] > definition.window_us)


# -- sentences on when the rewards of decisions will be complete: until then no estimate uses them --

MINUTE_US, HOUR_US = 60 * SECOND, 3_600 * SECOND


def time_of_maturity(at: int, now: int) -> str:
    """Return a text with a future time, to the minute, and the wait until then, such as "21:13Z, in 29 min". at, now:
    the future and the present time, in microseconds."""
    minute = format_time(-(-at // MINUTE_US) * MINUTE_US)[:16].replace("T", " ") + "Z"
    wait = at - now
    units = ((MINUTE_US, "min", 90 * MINUTE_US), (HOUR_US, "h", 2 * DAY_US), (DAY_US, "days", wait + 1))
    size, word = next((size, word) for size, word, limit in units if wait < limit)
    return f"{minute[11:] if minute[:10] == format_time(now)[:10] else minute}, in {-(-wait // size)} {word}"


def maturity_sentence(unit: Unit, selection: Selection, *, wait_us: int, mature_from: int | None = None) -> str | None:
    """Return a sentence that says when the first of the selected decisions will be mature, and with which `--now` all
    of them can be evaluated already. Returns None if this time is not known. wait_us: the time from a decision until it
    is mature; mature_from: the time when the first decision will be mature, None to compute it from `wait_us`."""
    first_at, last_at = selected.times(unit, selection)
    mature_from = first_at + wait_us if mature_from is None else mature_from
    if mature_from < unit.now or last_at + wait_us + SECOND > LAST:
        return None
    clock = format_time(last_at + wait_us + SECOND)[:19] + "Z"
    return f"the first at {time_of_maturity(mature_from, unit.now)}; to look now, add `--now {clock}`"


def notice_uncounted(unit: Unit, store: Store, definitions: Iterable[Reward]) -> None:
    """Print a notice for each reward that counts none of the newest events, since it does not weigh their kinds, or
    since they came after its window."""
    for reward in definitions:
        event_kinds, names = find_uncounted(unit, reward)
        if event_kinds:
            earning_kinds, newest_kinds = (", ".join(sorted(kinds)) for kinds in (reward.weights, event_kinds))
            way_out = f"--reward {names[0]} counts some" if names else "--reward names another"
            store.notice(
                f"reward {reward.name} counts {earning_kinds}; the newest events are {newest_kinds}: {way_out}"
            )
            continue
        age_us = events.smallest_age(unit, reward.weights, RECENT_EVENTS)
        if age_us is not None and age_us > reward.window_us:
            window, age = map(format_duration, (reward.window_us, age_us - age_us % SECOND))
            text = f"counts events within {window} of their decision, and the newest came after {age} or more"
            store.notice(f"reward {reward.name} {text}: `rlrec reward delays {reward.name}` shows what windows count")


def find_uncounted(unit: Unit, reward: Reward) -> tuple[frozenset[str], list[str]]:
    """If a reward weighs none of the newest events, return the kinds of these events and the names of the rewards that
    weigh some of them. Otherwise return two empty collections."""
    event_kinds = frozenset(events.newest_kinds(unit, RECENT_EVENTS) - {events.CENSOR})
    if not event_kinds.isdisjoint(reward.weights):
        return frozenset(), []
    return event_kinds, [other.name for other in policies.rewards(unit) if not event_kinds.isdisjoint(other.weights)]
