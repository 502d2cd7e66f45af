"""This module finds rewards that stopped arriving, and slots that should have entered a belief by now."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import lgamma, log, sqrt

import numpy as np

from rlrec.app.audit.integrity.findings import Findings
from rlrec.arrays import Array, Ids
from rlrec.errors import quantity
from rlrec.records import StoredPolicy, Version
from rlrec.store import Unit
from rlrec.store.log.events import RETURN
from rlrec.store.log.reader import Batch
from rlrec.store.upkeep import audit
from rlrec.times import format_time

OUTAGE, WAITING, ROUNDED = "reward-outage", "waiting", "rounded"
MIN_SILENT = 200  # decisions without a weighed event although one was due, at least
MAX_CHANCE = 1e-6
MIN_LEARNED_FROM = 20_000  # rewarded decisions that the usual delay is learned from, where there are as many
MAX_DECISIONS = 1_000_000  # decisions kept in memory for it
NOT_RECEIVED = np.iinfo(np.int64).max


class Outage:
    """This check looks for a silence: no decision has got an event since a certain decision, although events usually
    arrive sooner. It looks at all kinds of events that the policy's reward weighs together, and at each kind by itself.

    The delay of a decision is the time until its first event was received, which may be long after the event
    happened."""

    def __init__(self, version: Version, *, now: int) -> None:
        self.version = version
        self.now = now
        weighed_kinds = [kind for kind, weight in version.reward.weights.items() if weight]
        # all kinds together, then each that a caller sends
        self._kinds = [weighed_kinds, *([kind] for kind in weighed_kinds if kind != RETURN and len(weighed_kinds) > 1)]
        self._n_rewarded, self._n_decisions = np.zeros(len(self._kinds), np.int64), 0
        # decision ids, when they were made; by kinds, when their events were received, and how many decisions had one
        self._batches: deque[tuple[Ids, Ids, Ids, Ids]] = deque()

    def take(self, batch: Batch) -> None:
        is_live, events = ~batch.slots["imported"], batch.events
        ids, first_slots = np.unique(batch.slots["decision_id"][is_live], return_index=True)
        if not len(ids):
            return
        in_window = (events["age_us"] <= self.version.reward.window_us) & np.isin(events["decision_id"], ids)
        received_at = np.full((len(self._kinds), len(ids)), NOT_RECEIVED)
        for first_at, kinds in zip(received_at, self._kinds, strict=True):
            is_counted = in_window & np.isin(events["kind"], kinds)
            row = np.searchsorted(ids, events["decision_id"][is_counted])
            np.minimum.at(first_at, row, events["received_at"][is_counted])
        n_rewarded = np.count_nonzero(received_at < NOT_RECEIVED, axis=1)
        self._batches.append((ids, batch.slots["at"][is_live][first_slots], received_at, n_rewarded))
        self._n_rewarded += n_rewarded
        self._n_decisions += len(ids)
        while self._batches and self._has_surplus():
            dropped_ids, *_, n_rewarded = self._batches.popleft()
            self._n_rewarded, self._n_decisions = self._n_rewarded - n_rewarded, self._n_decisions - len(dropped_ids)

    def _has_surplus(self) -> bool:
        """Tell whether the oldest batch can be dropped, since newer batches suffice. A batch is never dropped if newer
        batches have no decision with an event."""
        rewarded_left = self._n_rewarded - self._batches[0][-1]
        is_sufficient = (self._n_rewarded == 0) | (rewarded_left >= MIN_LEARNED_FROM)
        return bool(is_sufficient.all() or (rewarded_left[0] and self._n_decisions > MAX_DECISIONS))

    def finish(self, findings: Findings) -> None:
        if not self._batches:
            return
        columns = list(zip(*self._batches, strict=True))[:3]
        ids, at, received_at = (np.concatenate(column, axis=-1) for column in columns)
        reward, subject = self.version.reward.name, f"policy {self.version.policy.name}"
        for kinds, first_at in zip(self._kinds, received_at, strict=True):
            if (silence := self._silence(ids, at, first_at)) is not None:
                if kinds is self._kinds[0]:
                    findings.warning(OUTAGE, subject, f"no event that reward {reward} weighs came to {silence}")
                    return
                findings.warning(OUTAGE, subject, f"no event {kinds[0]} of reward {reward} came to {silence}")

    def _silence(self, ids: Ids, at: Ids, received_at: Ids) -> str | None:
        """Return words about the last decisions without an event, and about the decisions before them. Return None if
        such a silence is usual, or may be chance.

        ids, at: the id and the time of each decision; received_at: the time at which the first event of each
        decision was received, or NOT_RECEIVED."""
        is_received = received_at < NOT_RECEIVED
        if not is_received.any():
            return None
        last_rewarded = int(np.flatnonzero(is_received)[-1])
        mature_rows = np.flatnonzero(self.now - at[: last_rewarded + 1] > self.version.reward.window_us)
        delays = np.sort((received_at - at)[mature_rows[is_received[mature_rows]]])
        due_chance = np.searchsorted(delays, self.now - at[last_rewarded + 1 :], side="right") / (len(delays) + 1)
        if due_chance.sum() < MIN_SILENT or not has_paused(at, np.sort(received_at[is_received])):
            return None
        if (chance := silence_chance(due_chance, n_rewarded=len(delays), n_decisions=len(mature_rows))) >= MAX_CHANCE:
            return None
        return (
            f"the last {quantity(len(due_chance), 'decision')}, since decision {ids[last_rewarded]} "
            f"of {format_time(int(at[last_rewarded]))}; "
            f"{len(delays)} of {len(mature_rows)} before had one, "
            f"{due_chance.mean():.0%} of them in the time that has passed by now: chance {chance:.1g}"
        )


def has_paused(at: Ids, received_at: Ids) -> bool:
    """Tell whether the present pause (the decisions served since the last event was received) has at least twice as
    many decisions as a usual pause between events. Nine in ten decisions were served in a pause of the usual size or a
    smaller one. If feedback arrives once a night, a day without events is therefore no outage.

    at: the time of each decision, ascending, (n,); received_at: the time at which each event was received,
    ascending, (m,)."""
    pauses = np.bincount(np.searchsorted(received_at, at, side="right"), minlength=len(received_at) + 1)
    sizes = np.sort(pauses[:-1])
    usual_pause = sizes[np.searchsorted(sizes.cumsum(), 0.9 * sizes.sum())] if sizes.any() else 0
    return bool(pauses[-1] >= 2 * usual_pause)


def silence_chance(due_chance: Array, *, n_rewarded: int, n_decisions: int) -> float:
    """Return the probability that none of n decisions has an event yet. A decision has an event by now with the
    probability `due_chance` times the reward rate.

    The reward rate is uncertain, and has a Beta distribution that follows from a uniform prior and the earlier
    decisions. The integral is computed over the logit of the rate, where the integrand has a single peak, between
    the peaks of its two factors.

    due_chance (n,): for each decision, the probability that an event has come by now, if any comes at all; n_rewarded:
    the number of earlier decisions with an event; n_decisions: the number of all earlier decisions."""
    a, b = 1.0 + n_rewarded, 1.0 + n_decisions - n_rewarded
    due_levels, count = np.unique(np.floor(due_chance * 256) / 256, return_counts=True)
    width = 12 / sqrt(min(a, b))
    logit = np.linspace(log(a / (b + due_chance.sum())) - width, log(a / b) + width, 4_001)
    rate = 1 / (1 + np.exp(-logit))
    exponent = a * np.log(rate) + b * np.log1p(-rate) + count @ np.log1p(-due_levels[:, None] * rate)
    exponent -= lgamma(a) + lgamma(b) - lgamma(a + b)
    return float(np.exp(exponent).sum() * (logit[1] - logit[0]))


def check_overdue(unit: Unit, versions: Sequence[Version], *, findings: Findings) -> None:
    """Add a warning for each version whose belief lacks mature slots. Such slots enter the belief with the command
    `settle`."""
    for version in versions:
        if not version.learning or version.entered_to is None:
            continue
        first_id, mature_before = version.entered_to + 1, unit.now - version.reward.window_us
        count, waiting_since = audit.count_overdue(unit, version.policy.id, first=first_id, before=mature_before)
        if count:
            waiting_text = f"waiting to enter the belief since {format_time(waiting_since)}: {quantity(count, 'slot')}"
            detail = f"version {version.number}: {waiting_text}; run `rlrec settle`"
            findings.warning(WAITING, f"policy {version.policy.name}", detail)


class Rounded:
    """This check counts the slots of one policy whose propensity was so small that it was rounded to 0. Such a
    propensity is stored as the smallest positive number."""

    def __init__(self, policy: StoredPolicy) -> None:
        self.policy = policy
        self.count = self.first_decision = 0

    def take(self, batch: Batch) -> None:
        rows = batch.slots["rounded"]
        if rows.any():
            self.first_decision = self.first_decision or int(batch.slots["decision_id"][rows].min())
            self.count += int(np.count_nonzero(rows))

    def finish(self, findings: Findings) -> None:
        if self.count:
            slots = quantity(self.count, "slot")
            detail = f"{slots} with a propensity that rounded to 0, the first in decision {self.first_decision}"
            findings.warning(ROUNDED, f"policy {self.policy.name}", detail)
