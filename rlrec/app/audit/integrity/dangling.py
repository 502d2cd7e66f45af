"""Rows that refer to nothing, or contradict the rows that they refer to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from rlrec.app.audit.integrity.findings import UNREADABLE, Findings, row_subject
from rlrec.app.inputs import canonical
from rlrec.app.serving.assignment import hashed
from rlrec.store import Unit
from rlrec.store.log import contents, settings
from rlrec.store.log.events import CENSOR
from rlrec.store.policies import arms, experiments
from rlrec.store.upkeep import audit
from rlrec.times import DAY_US

CHECK = "dangling"
DETAILS = {
    "decision without slots": "not every position of its page has a slot",
    "decision of another policy's version": "the version it names belongs to another policy",
    "decision of another policy's variant": "the variant it names belongs to another policy",
    "decision of an unassigned unit": "its unit is not assigned to its variant",
    "decision ahead of its policy": "its change lies beyond the policy's counter, or before its belief",
    "decision beside other beliefs": "a decision of the same change was drawn from another belief",
    "decision from an old belief": "the belief it names was changed more than an hour before it was drawn",
    "request without digest": "its request id and the digest of what was asked do not go together",
    "events not numbered on": "its events are not numbered from 1 without a gap",
    "event before its decision": "an event lies before it, or was received before it happened",
    "event ahead of its policy": "an event's change lies beyond the policy's counter",
    "events out of order": "one of its events was stored before the one that it follows",
    "feedback key without events": "no event of feedback key {1!r} is there",
    "decision without visit": "the visit it belongs to is not there",
    "visit with other steps": "it says {2} steps and has {3} decisions",
    "visit without decisions": "it says {2} steps and has no decision",
    "decision out of time": "it lies before the decision of its policy that it follows",
    "visit at other times": "it does not begin and end with its decisions",
    "decision out of ordinals": "its ordinal does not follow the one before it",
    "policy at another ordinal": "its ordinal is not that of its newest decision",
    "policy without head": "no live version of its own",
    "assignment of another experiment": "a unit is assigned to a variant that it does not have",
}
LONGEST_TIMEOUT_US = 3_660 * DAY_US
SUBJECTS = {"visit": "session {0} visit {1}", "policy": "policy {0}", "assignment": "experiment {0}"}


def check(unit: Unit, *, findings: Findings) -> None:
    for lost in audit.dangling_rows(unit):
        for row in lost.rows:
            detail = f"{' and '.join(lost.columns)} of its {lost.table} row refers to no {lost.parent}"
            findings.error(CHECK, row_subject(lost.table, dict(zip(lost.key, row, strict=True))), detail)
    for name, rows in audit.contradictions(unit):
        subject = SUBJECTS.get(name.partition(" ")[0], "decision {0}")
        for row in rows:
            findings.error(CHECK, subject.format(*row), DETAILS[name].format(*row))
    _contents(unit, findings)
    _feedback_keys(unit, findings)
    _assignments(unit, findings)
    _catalogue(unit, findings)
    _json(unit, findings)
    if (timeout := settings.get(unit).session_timeout_us) > LONGEST_TIMEOUT_US:
        findings.error(CHECK, "settings", f"no visit ends: its timeout is {timeout / DAY_US:,.0f} days")


def _contents(unit: Unit, findings: Findings) -> None:
    """Contexts and eligible sets have the digest of what they hold, users and sessions that of their key."""
    for content in audit.contents(unit):
        if contents.digest(content.text) != content.digest:
            findings.error(CHECK, f"{content.table} {content.id}", "what it holds is not what its digest names")
    for owner, keys, stored in audit.keys(unit):
        for key, digest, right in zip(keys, stored, contents.key_digests(keys), strict=True):
            if digest != right:
                findings.error(CHECK, f"{owner} {key}", "its digest is not that of its key")


def _feedback_keys(unit: Unit, findings: Findings) -> None:
    """Feedback keys have the digest of their line, as their events give it."""
    for key, line in groupby(audit.keyed_events(unit), itemgetter(0)):
        events = list(line)
        first, values = events[0], {event.kind: event.value for event in events}
        if canonical.line_digest(first.decision_id, first.position, values, None) == first.digest:
            continue  # a line without censoring, or an imported one, which censors by an event among others
        if first.digest not in _censoring_digests(events, values):
            detail = f"the digest of feedback key {key!r} is not that of its events"
            findings.error(CHECK, f"decision {first.decision_id}", detail)


def _censoring_digests(events: Sequence[audit.KeyedEvent], values: dict[str, float]) -> Iterator[bytes]:
    """The digests that a line can have which censors or puts back. One that does nothing else stored no events of its
    position: it named a slot, or all of them."""
    first, weighed = events[0], {kind: value for kind, value in values.items() if kind != CENSOR}
    censor = values[CENSOR] == 1.0 if CENSOR in values else None
    for position in {event.position for event in events if event.kind != CENSOR} or {first.position, None}:
        yield canonical.line_digest(first.decision_id, position, weighed, censor)


def _assignments(unit: Unit, findings: Findings) -> None:
    """Units have the variants that the salts and weights of their experiments give them."""
    by_id = {experiment.id: experiment for experiment in experiments.all_experiments(unit) if experiment.variants}
    others = Counter(
        by_id[assigned.experiment_id].name
        for assigned in audit.assigned_units(unit)
        if assigned.experiment_id in by_id
        and hashed(by_id[assigned.experiment_id], assigned.key).id != assigned.variant_id
    )
    for name, count in others.items():
        detail = f"{count} of its units have another variant than its salt and weights give them"
        findings.error(CHECK, f"experiment {name}", detail)


def _json(unit: Unit, findings: Findings) -> None:
    """Features of arms and states of decisions are JSON objects."""
    for owner, column, ids, texts in audit.stored_json(unit):
        distinct = list(set(texts))
        try:
            objects = json.loads(f"[{','.join(distinct)}]")
        except ValueError:
            objects = [_object(text) for text in distinct]
        wrong = {text for text, value in zip(distinct, objects, strict=True) if not isinstance(value, dict)}
        for number in [number for number, text in zip(ids, texts, strict=True) if text in wrong] if wrong else ():
            findings.error(CHECK, f"{owner} {number}", f"its {column} is no JSON object")


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _catalogue(unit: Unit, findings: Findings) -> None:
    """The eligible set kept for today's catalogue is the arms that are active."""
    catalogue_id = settings.get(unit).catalogue_id
    if catalogue_id is None:
        return
    try:
        stored = contents.eligible_arms(unit, [catalogue_id]).get(catalogue_id, ())
    except UNREADABLE:
        stored = ()
    if list(stored) != arms.active(unit):
        findings.error(CHECK, "catalogue", "the eligible set kept for it is not the arms that are active")
