"""This module looks for drift (lasting changes) of rewards, for each arm and for a policy as a whole. It also runs the
cheap checks that read only the newest decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlrec.app.audit.draws.arm_counts import Entropy
from rlrec.app.audit.integrity import clock, uncounted
from rlrec.app.audit.integrity.findings import Finding, Findings
from rlrec.app.audit.integrity.overdue import Outage, check_overdue
from rlrec.app.inputs import filters
from rlrec.app.log import reward_log
from rlrec.arrays import Array, Ids, distinct, run_starts
from rlrec.policy.beliefs.drift import Adwin, Change
from rlrec.policy.beliefs.statistics import Forgetting
from rlrec.records import StoredPolicy, Version
from rlrec.store import Unit
from rlrec.store.log import activity, decisions, reader
from rlrec.store.policies import arms, policies
from rlrec.store.upkeep import audit
from rlrec.times import format_time

DRIFT = "drift"
# Confidence of ADWIN for all streams of a policy together. For independent values 0.002 would do; users have several
# visits.
DELTA = 1e-4
MAX_DECISIONS = 50_000  # newest decisions of a policy that are read
WATCHED_COLUMNS = ("decision_id", "session_id", "visit", "at", "arm_id", "censored")
ALL_ARMS = "policy"  # the stream of all arms


class RewardDrift:
    """This check lets the detector ADWIN watch the rewards of a policy at position 1. There is one stream of rewards
    for each arm, and one stream for all arms together.

    Rewards within a visit are correlated, so a visit adds one value to a stream: the mean of its rewards, at the
    time of its first decision. A visit that goes on in another batch adds one more value. Lower positions are left
    out, because the position of an arm depends on what the policy has learned, which would change the mean.

    Two changes are worth no warning: the mean of the whole policy changes as the policy learns, and so does the mean of
    an arm if the policy reads contexts."""

    def __init__(self, unit: Unit, version: Version, arm_names: Mapping[int, str]) -> None:
        self.unit, self.version, self.arm_names = unit, version, arm_names
        self._delta = DELTA / (1 + len(arm_names))
        self._streams: dict[int | str, Adwin] = {}
        self.newest_changes: dict[int | str, Change] = {}

    def take(self, batch: reader.Batch) -> None:
        slots, definition = batch.slots, self.version.reward
        is_counted = (
            reward_log.is_mature(slots, definition, now=self.unit.now) & ~slots["imported"] & ~slots["censored"]
        )
        slots_at_top = reward_log.with_rewards(batch, definition).take(is_counted & (slots["position"] == 1))
        if not len(slots_at_top):
            return
        arm, decision = slots_at_top.slots["arm_id"], slots_at_top.slots["decision_id"]
        visit = slots_at_top.slots["session_id"], slots_at_top.slots["visit"]
        # one value per visit, and one per arm of a visit
        first_rows, reward = _means(slots_at_top.reward, *visit)
        order = np.argsort(decision[first_rows])
        self._watch(ALL_ARMS, reward[order], decision[first_rows[order]])
        first_rows, reward = _means(slots_at_top.reward, arm, *visit)
        order = np.lexsort([decision[first_rows], arm[first_rows]])
        for rows in np.split(order, run_starts(arm[first_rows[order]])[1:]):
            self._watch(int(arm[first_rows[rows[0]]]), reward[rows], decision[first_rows[rows]])

    def _watch(self, stream: int | str, rewards: Array, decision: Ids) -> None:
        if stream not in self._streams:
            self._streams[stream] = Adwin(delta=self._delta)
        if changes := self._streams[stream].take(rewards, marks=decision):
            self.newest_changes[stream] = changes[-1]

    def finish(self, findings: Findings) -> None:
        times = self.change_times()
        subject = f"policy {self.version.policy.name}"
        for stream, change in self.newest_changes.items():
            begin_text = f"{format_time(times[change.start])[:19]}Z"
            detail = (
                f"the mean reward at position 1 went from {change.mean_before:.4g} to {change.mean_after:.4g} at about "
                f"decision {change.start} of {begin_text}; the drift test (ADWIN) noticed it at decision {change.alarm}"
            )
            if stream == ALL_ARMS:
                findings.add(DRIFT, "info", subject, f"{detail}; a policy that learns causes that, too")
            else:
                severity, remark = self._judge_severity()
                arm_name = self.arm_names.get(int(stream), stream)
                findings.add(DRIFT, severity, f"{subject} arm {arm_name}", detail + remark)

    def _judge_severity(self) -> tuple[str, str]:
        """Return two texts for a finding on the drift of an arm: its severity, and the end of its message."""
        if self.version.is_contextual:
            return "info", "; a policy that learns from contexts shows it to others by and by"
        if Forgetting.parse(self.version.policy.params).forgets:
            return "info", "; the policy forgets what came before"
        if not self.version.learning:
            return "warning", "; this version is frozen, and learns nothing of it"
        command = f"`rlrec policy rebuild {self.version.policy.name} --after-drift adwin`"
        return "warning", f"; beliefs still count what came before: {command} leaves that out"

    def change_times(self) -> dict[int, int]:
        """Return the time of the first decision after each stream's newest change, by decision id."""
        return activity.decision_times(self.unit, [change.start for change in self.newest_changes.values()])


def _means(rewards: Array, *columns: Ids) -> tuple[Ids, Array]:
    """Return the index of the first row of each of m groups, (m,), and the mean reward of each group, (m,). Two rows
    are in the same group if all columns have equal values.

    rewards: the reward of each of n rows, (n,); columns: the columns that define the groups, each an array (n,)."""
    first_rows, group = distinct(*columns)
    return first_rows, np.bincount(group, weights=rewards) / np.bincount(group)


def recent_changes(unit: Unit, version: Version) -> dict[int | str, dict[str, Any]]:
    """Return the newest change of the mean reward in each stream, by arm id. The key "policy" stands for the stream of
    all arms. The streams cover the last 50,000 decisions of the version's policy, without excluded decisions. A stream
    without a change is left out.

    Each change has five fields. `decision_id` and `at` are the id and the time of the first decision after the
    change, which are estimates. `noticed` is the id of the decision at which the change was detected. `before` and
    `after` are the mean rewards."""
    policy_id = version.policy.id
    drift = RewardDrift(unit, version, {arm.id: arm.key for arm in arms.all_arms(unit)})
    first_id, last_id = decisions.newest_id(unit, policy_id, MAX_DECISIONS), decisions.newest_id(unit, policy_id)
    tests, slot_tests = filters.unexcluded_tests(unit), ["s.position = 1"]
    for batch in reader.ranges(
        unit, policy_id, first=first_id, last=last_id, tests=tests, columns=WATCHED_COLUMNS, slot_tests=slot_tests
    ):  # fmt: skip
        constants = {"imported": np.zeros(len(batch), np.bool_), "position": np.ones(len(batch), np.int64)}
        drift.take(replace(batch, slots=batch.slots | constants))
    times = drift.change_times()
    return {
        stream: {
            "decision_id": change.start, "at": format_time(times[change.start]), "noticed": change.alarm,
            "before": change.mean_before, "after": change.mean_after,
        }
        for stream, change in drift.newest_changes.items()
    }  # fmt: skip


def check(
    unit: Unit, policy_rows: Sequence[StoredPolicy], *, on_its_clock: bool, limit: int = MAX_DECISIONS
) -> list[Finding]:
    """Return the findings on the newest decisions of these policies. Rewards are computed as the live version of each
    policy defines them.

    on_its_clock: whether the unit uses the time of the clock, so that decisions later than the clock are an error;
    limit: the number of newest decisions of each policy that are considered, from which excluded decisions are then
    left out."""
    findings, arm_names = Findings(), {arm.id: arm.key for arm in arms.all_arms(unit)}
    if on_its_clock:
        clock.check(unit, findings=findings)
    live_policies = policies.live(unit, [policy.name for policy in policy_rows])
    for policy in policy_rows:
        with findings.report_unreadable("beliefs", f"policy {policy.name}"):
            check_overdue(unit, policies.versions(unit, [policy.id]), findings=findings)
            tests = filters.unexcluded_tests(unit)
            version = live_policies[policy.name].version
            drift, uncounted_events = RewardDrift(unit, version, arm_names), uncounted.UncountedEvents(unit, version)
            watchers = (Outage(version, now=unit.now), uncounted_events, drift, Entropy(policy))
            first_id = decisions.newest_id(unit, policy.id, limit)
            for batch in audit.ranges(unit, policy.id, first=first_id, tests=tests):
                for watcher in watchers:
                    watcher.take(batch)
            for watcher in watchers:
                watcher.finish(findings)
    return findings.in_order()
