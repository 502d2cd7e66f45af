"""This module audits a store. It checks that rows agree with each other, and that the program computes the stored
values again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from typing import Any

import numpy as np

from rlrec.app import opening
from rlrec.app.audit.draws import logged_draws, machine_sessions, newest, propensities
from rlrec.app.audit.draws.arm_counts import ArmCounts, Entropy, StarvingArms
from rlrec.app.audit.draws.examination import Examination
from rlrec.app.audit.integrity import beliefs, clock, dangling, live_versions, uncounted, visits
from rlrec.app.audit.integrity.findings import UNREADABLE, Finding, Findings
from rlrec.app.audit.integrity.overdue import Outage, Rounded, check_overdue
from rlrec.app.inputs import filters
from rlrec.app.judging import positions
from rlrec.arrays import run_starts
from rlrec.policy.contexts.statements import PAGE
from rlrec.records import Arm, Record, StoredPolicy
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.log import contents, decisions
from rlrec.store.policies import arms, policies
from rlrec.store.upkeep import audit, removals
from rlrec.times import format_time

# check: (its subject, the count of what it checked)
CHECKS = {
    "clock": ("times against the clock", "decisions"),
    "beliefs": ("changes of beliefs", "deltas"),
    "slots": ("slots that taught them", "slots"),
    "propensities": ("decisions derived again", "propensities"),
    "draws": ("slates drawn again", "propensities"),
    "requests": ("requests of these decisions", "propensities"),
    "shown": ("arms against their propensities", "shown"),
    "clipped": ("policies", "policies"),
    "repeats": ("decisions against each other", "decisions"),
    "dangling": ("decisions and their events", "decisions"),
    "history": ("decisions against their visits", "decisions"),
    "returns": ("visits of users who came back", "decisions"),
    "rounded": ("slots", "slots"),
    "reward-outage": ("policies", "policies"),
    uncounted.CHECK: ("events that rewards count", "policies"),
    "drift": ("policies", "policies"),
    "starving": ("policies", "policies"),
    "entropy": ("policies", "policies"),
    "positions": ("policies", "policies"),
    "waiting": ("policies", "policies"),
    machine_sessions.CHECK: ("clicks of users and sessions", "decisions"),
    "live": ("routes and experiments against live versions", "policies"),
    "removals": ("transactions of db forget and db prune", "removals"),
}
NEWEST = 5_000  # decisions of each policy that are audited besides a sample of a long log
RUN = 10  # adjacent decisions in such a sample: most share a belief, and a belief costs more than its decisions
CONFIDENCE = 0.95  # of statements about faults that the sample does not show
SAMPLE_COLUMNS = (*{*audit.SLOTS, *visits.COLUMNS, *logged_draws.COLUMNS},)
# checks that such an audit leaves out
LEFT_OUT = ("beliefs", "slots", "returns", "starving", "positions", machine_sessions.CHECK)

UNERASED = (
    "a `db forget` or `db prune` was interrupted, and bytes of the rows that it deleted may still be in the file: "
    "repeat the command (`db forget` takes the same user again, although the user is gone)"
)
PARTS = "of 5 parts of the audit"
COUNTED = {"policy": "policies", "belief_delta": "deltas"}  # plural nouns for the counts of tables; others add an s


class Request(Record):
    """This record has the options of an audit. sample: the number of random decisions whose slates are derived again,
    or None for all decisions (10,000 if there are more); if a number is given and the log is long, only the sessions of
    these decisions are audited; seed: the seed of the random choice."""

    sample: int | None = None
    seed: int = 0


class Report(Record):
    """This record is the result of an audit. ok: whether no finding is an error; checked: counts of what was checked,
    by name; at: the time of the audit, None in a damaged store; left_out: the checks that are left out when only a
    sample is audited."""

    ok: bool
    findings: list[Finding]
    checked: Mapping[str, int]
    at: str | None = field(default=None, compare=False)
    left_out: Sequence[str] = ()


def doctor(store: Store, request: Request) -> Report:
    """Audit a store without changing it, and return the report. If a damaged file ends the audit early, the damage is a
    finding."""
    findings, checked_counts, at = Findings(), {name: 0 for _, name in CHECKS.values()}, None
    omitted_checks: Sequence[str] = ()
    if request.sample is not None:
        with store.read() as unit:
            if bulk.is_long(unit):
                checked_counts |= _audit_sample(store, unit, request, findings)
                at, omitted_checks = format_time(unit.now), LEFT_OUT
    if not omitted_checks:
        for error in store.integrity_errors():
            findings.error("dangling", "file", f"SQLite says: {error}")
        try:
            with store.read() as unit:
                at = format_time(unit.now)
            checked_counts |= _audit_store(store, request, findings)
        except UNREADABLE as error:
            if not findings.count("error"):
                raise
            findings.error("dangling", "file", f"the audit could not go on: {error}")
    is_ok = findings.count("error") == 0
    return Report(ok=is_ok, findings=findings.in_order(), checked=checked_counts, at=at, left_out=omitted_checks)


def note(store: Store, request: Request, report: Report) -> None:
    """Record that the store was audited, with the numbers of errors and warnings. The command `status` shows this
    record. If the audit found the file of the store damaged, nothing is written."""
    if any(finding.subject == "file" for finding in report.findings):
        return
    counts = Counter(f"{finding.severity}s" for finding in report.findings)
    numbers = {name: counts[name] for name in ("errors", "warnings")}
    opening.note(store, "doctor", asdict(request), numbers, noun="audit")


def _audit_store(store: Store, request: Request, findings: Findings) -> dict[str, int]:
    """Audit the whole store, and return counts of what was checked, by name."""
    with store.read() as unit, bulk.alongside(unit):
        counts = audit.counts(unit)
        counts["removal"], n_unfinished = removals.count_removals(unit)
        if n_unfinished:
            findings.warning("removals", "store", UNERASED)
        catalogue = arms.all_arms(unit)
        if store.now is None:
            clock.check(unit, findings=findings)
            with findings.report_unreadable(clock.CHECK, "store"):
                clock.check_rows(unit, findings=findings)
        n_tested = n_derived = 0
        row_checks = {dangling.CHECK: dangling.check, visits.HISTORY: visits.check_histories}
        row_checks[visits.RETURNS] = visits.check_returns
        for number, (name, check) in enumerate(row_checks.items(), 1):
            unit.progress(PARTS, number, None)
            with findings.report_unreadable(name, "store"):
                check(unit, findings=findings)
        with findings.report_unreadable(live_versions.CHECK, "store"):
            live_versions.check(unit, findings=findings)
        unit.progress(PARTS, 4, None)
        with findings.report_unreadable("beliefs", "store"):
            for policy in policies.all_policies(unit):
                with findings.report_unreadable("beliefs", f"policy {policy.name}"):
                    n_tested += _audit_policy(unit, policy, findings, catalogue)
        if not findings.has_finding(dangling.CHECK, ""):  # otherwise arms or contexts may be missing
            with findings.report_unreadable(logged_draws.SHOWN, "store"):
                logged_draws.check(unit, findings=findings)
            with findings.report_unreadable(machine_sessions.CHECK, "store"):
                machine_sessions.check(unit, findings=findings)
        unit.progress(PARTS, 5, None)
        with findings.report_unreadable("propensities", "store"):
            size = propensities.MAX_DERIVED if request.sample is None else request.sample
            ids, total = audit.random_ids(unit, size, seed=request.seed)
            if len(ids) < total:
                detail = f"a random sample of {len(ids):,} of {total:,} decisions; --sample {total} takes all"
                findings.add("propensities", "info", "store", detail)
            dangling.check_requests(unit, ids, findings=findings)
            n_derived = propensities.check(unit, ids, findings=findings)
    checked_counts = {COUNTED.get(table, f"{table}s"): count for table, count in counts.items()}
    return checked_counts | {"propensities": n_derived, "shown": n_tested}


def _audit_sample(store: Store, unit: Unit, request: Request, findings: Findings) -> dict[str, int]:
    """Audit the sessions of random decisions and the newest decisions of each policy. Return counts of what was
    checked."""
    ids, total = audit.random_ids(unit, request.sample or 0, seed=request.seed, run=RUN)
    session_ids = decisions.sessions_of(unit, ids.tolist())
    batch = audit.session_rows(unit, session_ids, SAMPLE_COLUMNS)
    stored_policies = policies.all_policies(unit)
    if len(batch):
        dangling.check_contradictions(unit, findings=findings, sessions=session_ids)
        visits.check_batch(batch.select_rows(np.flatnonzero(~batch.slots["imported"])), findings=findings)
        propensities.check_joint(batch, findings=findings)
        logged_draws.check(unit, findings=findings, sample=batch)
        dangling.check_requests(unit, ids, findings=findings)
    live_versions.check(unit, findings=findings)
    for finding in newest.check(unit, stored_policies, on_its_clock=store.now is None, limit=NEWEST):
        findings.add(finding.check, finding.severity, finding.subject, finding.detail)
    n_derived, n_sampled = propensities.check(unit, ids, findings=findings), len(run_starts(batch.slots["decision_id"]))
    detail = (
        f"{n_sampled:,} of {total:,} decisions, of the sessions of a random sample, and the newest {NEWEST:,} of each"
        f" policy were looked at; without --sample the file, {', '.join(LEFT_OUT)} and all rows are audited"
    )
    if len(ids):
        n_runs = len(np.unique(ids // RUN))
        belief_share, decision_share = (f"{1 - (1 - CONFIDENCE) ** (1 / number):.2%}" for number in (n_runs, len(ids)))
        detail += (
            f"; {len(ids):,} decisions in {n_runs:,} runs of neighbours, which mostly share a belief, were derived"
            f" again: a fault in {belief_share} of the beliefs, or in {decision_share} of the decisions, each by"
            f" itself, would have shown with a chance of {CONFIDENCE:.0%}"
        )
    findings.add("propensities", "info", "store", detail)
    counts = {"decisions": n_sampled, "slots": len(batch), "shown": n_sampled, "policies": len(stored_policies)}
    return counts | {"propensities": n_derived}


def _audit_policy(unit: Unit, policy: StoredPolicy, findings: Findings, catalogue: Sequence[Arm]) -> int:
    """Run all checks that read the changes or the log of one policy. Changes are read once, and the log is read once
    or, if decisions are excluded, twice. Returns the number of arms whose slots were counted."""
    names = {arm.id: arm.key for arm in catalogue}
    active_names = {arm.id: arm.key for arm in catalogue if arm.status(unit.now) == "active"}
    versions = policies.versions(unit, [policy.id])
    live_version = policies.live(unit, [policy.name]).get(policy.name)
    seq = live_version[1].seq if live_version is not None else 0
    histories = {version.id: beliefs.check(unit, version, seq, findings=findings, names=names) for version in versions}
    ruled_contexts = contents.contexts_with(unit, PAGE)
    counts = ArmCounts(unit, findings, ruled_ids=ruled_contexts)
    watches: list[beliefs.RebuiltBeliefs | Rounded | Outage | newest.RewardDrift | StarvingArms | Entropy | Examination
                  | uncounted.UncountedEvents]  # fmt: skip
    watches = [beliefs.RebuiltBeliefs(unit, versions, histories, names), Rounded(policy)]
    if live_version is not None:
        watches += [Outage(live_version[0], now=unit.now), newest.RewardDrift(unit, live_version[0], names)]
        watches += [uncounted.UncountedEvents(unit, live_version[0])]
        watches += [StarvingArms(unit, policy, keys=active_names, ruled_ids=ruled_contexts), Entropy(policy)]
        watches += [Examination(live_version[0], lambda version: positions.fit_positions(unit, version))]
    # excluded decisions are checked like others, but do not count in how policies behave
    tests = filters.unexcluded_tests(unit)
    behaviour_watches = (Outage, uncounted.UncountedEvents, newest.RewardDrift, StarvingArms, Entropy)
    later_watches = [watch for watch in watches if tests and isinstance(watch, behaviour_watches)]
    for batch in audit.ranges(unit, policy.id):
        propensities.check_joint(batch, findings=findings)
        for watch in (counts, *(watch for watch in watches if watch not in later_watches)):
            watch.take(batch)
    for batch in audit.ranges(unit, policy.id, tests=tests) if later_watches else ():
        for watch in later_watches:
            watch.take(batch)
    for watch in watches:
        watch.finish(findings)
    check_overdue(unit, versions, findings=findings)
    return counts.finish(policy, names)


def overview(report: Report) -> list[dict[str, Any]]:
    """Return a row for each check: the subject of the check, the amount checked, and the number of findings."""
    counts = Counter((finding.check, finding.severity) for finding in report.findings)
    checks = {check: row for check, row in CHECKS.items() if check not in report.left_out}
    return [
        {
            "check": check, "looked_at": objects, "count": report.checked[name], "errors": counts[check, "error"],
            "warnings": counts[check, "warning"],
        }
        for check, (objects, name) in checks.items()
    ]  # fmt: skip
