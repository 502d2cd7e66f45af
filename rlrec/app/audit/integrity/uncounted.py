"""This module finds policies that learn nothing, although events arrive: their reward counts none of the events, or it
counts them with the wrong sign."""

from __future__ import annotations

from collections import Counter

import numpy as np

from rlrec import policy as kinds
from rlrec.app.audit.integrity.findings import Findings
from rlrec.app.inputs import arm_rules
from rlrec.app.log import reward_log
from rlrec.errors import quantity
from rlrec.records import Version
from rlrec.store import Unit
from rlrec.store.log.events import CENSOR, RETURN
from rlrec.store.log.reader import Batch
from rlrec.store.policies import policies
from rlrec.times import DAY_US, format_duration

CHECK = "feedback"
MIN_DECISIONS, MIN_ERROR_DECISIONS = 200, 1_000  # mature decisions: for a warning, for an error
MAX_AGE_US = 30 * DAY_US  # decisions that have been mature for longer do not count
MAX_KINDS = 3  # kinds of events that a finding names


class UncountedEvents:
    """This check looks at the recent events of a live version that learns. It reports if the version's reward weighs
    none of these events, if none of the weighed events belongs to a slot, or if all values are negative or 0 although
    they have positive weights.

    Only decisions whose reward window is over count. Events of kinds that a rule names, and the event `return` which
    the store itself records, need no weight."""

    def __init__(self, unit: Unit, version: Version) -> None:
        self.unit, self.version = unit, version
        self._weights = {kind: weight for kind, weight in version.reward.weights.items() if weight}
        self._n_decisions = self._n_gains = 0  # gains: events at slots whose kind has a positive weight
        self._lowest, self._highest = np.inf, -np.inf  # values of gains
        # by kind: weighed events that belong to a slot, or to a page; events that are not weighed
        self._slot_events, self._page_events, self._unweighed = Counter[str](), Counter[str](), Counter[str]()

    def take(self, batch: Batch) -> None:
        slots, events, version = batch.slots, batch.events, self.version
        is_recent = self.unit.now - slots["at"] <= version.reward.window_us + MAX_AGE_US
        is_recent &= ~slots["imported"] & (slots["at"] >= version.created_at)
        is_mature = is_recent & reward_log.is_mature(slots, version.reward, now=self.unit.now)
        self._n_decisions += len(np.unique(slots["decision_id"][is_mature]))
        kind, at_slot = reward_log.kind_numbers(batch, self._weights), events["position"] > 0
        is_weighed = (kind >= 0) & np.isin(events["decision_id"], slots["decision_id"][is_recent])
        is_unweighed = (kind < 0) & np.isin(events["decision_id"], slots["decision_id"][is_mature])
        rows = (is_weighed & at_slot, self._slot_events), (is_weighed & ~at_slot, self._page_events)
        for chosen, counts in (*rows, (is_unweighed, self._unweighed)):
            counts.update(events["kind"][chosen].tolist())
        is_gain = is_weighed & at_slot & (np.array([0.0, *self._weights.values()])[kind + 1] > 0)
        self._n_gains += int(np.count_nonzero(is_gain))
        self._lowest = events["value"][is_gain].min(initial=self._lowest)
        self._highest = events["value"][is_gain].max(initial=self._highest)

    def finish(self, findings: Findings) -> None:
        policy, reward = self.version.policy, self.version.reward.name
        severity, detail, is_long = "warning", None, self._n_decisions >= MIN_ERROR_DECISIONS
        learns_returns_alone = self._weights.keys() <= {RETURN}
        if not self.version.learning or not kinds.learns_from_slots(policy.kind):
            return
        if self._slot_events:
            has_losses = self._highest <= 0 and self._n_gains == self._slot_events.total()
            if has_losses and (is_long or (self._lowest < 0 and self._n_decisions >= MIN_DECISIONS)):
                detail = (
                    f"all {quantity(self._n_gains, 'event')} that reward {reward} weighs are negative or 0: if they "
                    "tell of what users like, send positive values"
                )
        elif self._page_events and (learns_returns_alone or self._page_events.keys() - {RETURN}):
            severity = "error" if is_long and not learns_returns_alone else "warning"
            detail = (
                f"whatever reward {reward} weighs came for pages ({quantity(self._page_events.total(), 'event')}), and "
                "the belief learns from slots alone: `rlrec feedback --position P` says which slot an event is of"
            )
        elif self._n_decisions >= MIN_DECISIONS and not learns_returns_alone:
            severity, detail = self._judge_unweighed()
        if detail is not None:
            findings.add(CHECK, severity, f"policy {policy.name}", detail)

    def _judge_unweighed(self) -> tuple[str, str | None]:
        """Return the severity and the text of a finding on events that the reward does not weigh. The text is None if
        all events have another use."""
        ruled_kinds = arm_rules.ruled_kinds(self.unit)
        counts = Counter({kind: n for kind, n in self._unweighed.items() if kind not in {RETURN, CENSOR, *ruled_kinds}})
        if not counts or max(self._weights.values(), default=1) < 0:  # costs and complaints may be rare
            return "warning", None
        reward, names = self.version.reward, ", ".join(kind for kind, _ in counts.most_common(MAX_KINDS))
        detail = (
            f"{quantity(counts.total(), 'event')} of the newest {self._n_decisions:,} decisions ({names}), and reward "
            f"{reward.name} counts none of them, only {' or '.join(self._weights)}: the policy learns nothing"
        )
        for other in reversed(policies.rewards(self.unit)):  # the newest first
            if not counts.keys().isdisjoint(other.weights):
                rebuild = f"`rlrec policy rebuild {self.version.policy.name} --reward {other.name}`"
                return "warning", f"{detail}; {rebuild} learns from them"
        options = f" --window {format_duration(reward.window_us)}"
        if reward.clip_low is not None:
            options += f" --clip={reward.clip_low:g},{reward.clip_high:g}"
        command = f"`rlrec reward define NAME {counts.most_common(1)[0][0]}=1{options}`"
        return (
            "error" if self._n_decisions >= MIN_ERROR_DECISIONS else "warning",
            f"{detail}; send what it counts, or {command} makes a reward of them",
        )
