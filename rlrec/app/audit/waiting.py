"""What should have come: rewards of a policy that had some before, and slots that should have entered a belief."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, lgamma

import numpy as np

from rlrec.app import evidence
from rlrec.app.audit.findings import Findings
from rlrec.records import Policy, Version
from rlrec.store import Unit, audit
from rlrec.store.reader import Batch
from rlrec.times import written

OUTAGE, WAITING, ROUNDED = "reward-outage", "waiting", "rounded"
SILENT = 200  # mature decisions without a weighed event, at least
IMPROBABLE = 1e-6


class Outage:
    """The decisions of one policy since the last one that got a weighed event."""

    def __init__(self, version: Version, *, now: int) -> None:
        self.version = version
        self.now = now
        self.total = self.rewarded = self.silent = 0
        self.last: int | None = None
        self.since: int | None = None

    def take(self, batch: Batch) -> None:
        slots, events = batch.slots, batch.events
        old = evidence.mature(slots, self.version.reward, now=self.now) & ~slots["imported"]
        ids = np.unique(slots["decision_id"][old])
        weighed = {kind for kind, weight in self.version.reward.weights.items() if weight}
        counts = np.array([kind in weighed for kind in events["kind"].tolist()], np.bool_)
        counts &= events["age_us"] <= self.version.reward.window_us
        rewarded = np.intersect1d(ids, events["decision_id"][counts])
        self.total, self.rewarded = self.total + len(ids), self.rewarded + len(rewarded)
        if len(rewarded):
            self.last, self.silent = int(rewarded[-1]), int(np.count_nonzero(ids > rewarded[-1]))
            self.since = int(slots["at"][slots["decision_id"] == rewarded[-1]][0])
        else:
            self.silent += len(ids)

    def finish(self, found: Findings) -> None:
        before = self.total - self.silent
        if self.since is None or self.silent < SILENT:
            return
        if (chance := silence(self.silent, rewarded=self.rewarded, of=before)) < IMPROBABLE:
            found.warning(
                OUTAGE,
                f"policy {self.version.policy.name}",
                f"no event that reward {self.version.reward.name} weighs came to the last {self.silent} mature "
                f"decisions, since decision {self.last} of {written(self.since)}; {self.rewarded} of {before} before "
                f"had one: chance {chance:.1g}",
            )


def silence(n: int, *, rewarded: int, of: int) -> float:
    """The chance of n decisions without a reward after `rewarded` of `of` had one, the rate being uncertain:
    Beta-binomial, from a uniform prior."""
    a, b = 1 + rewarded, 1 + of - rewarded
    return exp(lgamma(a + b) + lgamma(b + n) - lgamma(b) - lgamma(a + b + n))


def overdue(unit: Unit, versions: Sequence[Version], *, found: Findings) -> None:
    """Slots whose window is over wait for `settle`."""
    for version in versions:
        if not version.learning or version.entered_to is None:
            continue
        before = unit.now - version.reward.window_us
        count, since = audit.overdue(unit, version.policy.id, first=version.entered_to + 1, before=before)
        if count and since is not None:
            detail = f"version {version.number}: {count} slots since {written(since)} wait to enter the belief"
            found.warning(WAITING, f"policy {version.policy.name}", f"{detail}; run `rlrec settle`")


class Rounded:
    """Slots of one policy whose propensity rounded to 0 and was stored as the smallest number above it."""

    def __init__(self) -> None:
        self.count = 0
        self.first = 0

    def take(self, batch: Batch) -> None:
        rows = batch.slots["rounded"]
        if rows.any():
            self.first = self.first or int(batch.slots["decision_id"][rows].min())
            self.count += int(np.count_nonzero(rows))

    def finish(self, policy: Policy, found: Findings) -> None:
        if self.count:
            detail = f"{self.count} slots have a propensity that rounded to 0, the first in decision {self.first}"
            found.warning(ROUNDED, f"policy {policy.name}", detail)
