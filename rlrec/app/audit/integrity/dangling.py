"""This module finds rows that refer to missing rows, and rows that contradict the rows to which they refer. The module
also finds decisions that do not match the request that they answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from itertools import compress, groupby, product
from operator import itemgetter
from typing import Any

from rlrec.app.audit.integrity.findings import UNREADABLE, Findings, row_subject
from rlrec.app.inputs import canonical
from rlrec.app.serving.assignment import fallback, hash_variant, is_in_layer
from rlrec.app.serving.requests import arms_text, digest_of_texts
from rlrec.arrays import Ids
from rlrec.policy.beliefs.base import PRICE
from rlrec.policy.contexts.statements import GROUPS, LOGGED_RULES
from rlrec.store import Unit
from rlrec.store.database.unit import parse, slices, to_text
from rlrec.store.log import contents, settings
from rlrec.store.log.events import CENSOR
from rlrec.store.policies import arms, experiments, users
from rlrec.store.upkeep import audit
from rlrec.times import DAY_US

CHECK = "dangling"
LONGEST_TIMEOUT_US = 3_660 * DAY_US
SET_PORTION = 100  # eligible sets at a time, of those that are stored as a difference from a larger set


def check(unit: Unit, *, findings: Findings) -> None:
    for reference, key in audit.dangling_rows(unit):
        table, parent = reference.table.name, reference.referred_table.name
        detail = f"{' and '.join(reference.column_keys)} of its {table} row refers to no {parent}"
        findings.error(CHECK, row_subject(table, key), detail)
    check_contradictions(unit, findings=findings)
    _check_contents(unit, findings)
    _check_feedback_keys(unit, findings)
    _check_assignments(unit, findings)
    _check_catalogue(unit, findings)
    _check_json(unit, findings)
    if (timeout := settings.get(unit).session_timeout_us) > LONGEST_TIMEOUT_US:
        findings.error(CHECK, "settings", f"no visit ends: its timeout is {timeout / DAY_US:,.0f} days")


def check_contradictions(unit: Unit, *, findings: Findings, sessions: Collection[int] | None = None) -> None:
    """Check that rows do not contradict the rows to which they refer.

    sessions: the ids of the sessions whose decisions are checked, or None for all rows."""
    for finding, rows in audit.contradictions(unit, sessions):
        subject, _, detail = finding.rpartition(": ")
        for row in rows:
            findings.error(CHECK, (subject or "decision {0}").format(*row), detail.format(*row))


def _check_contents(unit: Unit, findings: Findings) -> None:
    """Check that the digest of each context and each eligible set is the digest of its content, and that the digest of
    each user and each session is the digest of its key."""
    for table, columns in (("context", ("body",)), ("eligible_set", ("arms", "superset_id"))):
        for ids, digests, texts, *superset_ids in audit.columns(unit, table, "id", "digest", *columns):
            by_id = dict(zip(ids, texts, strict=True))
            smaller_sets = list(compress(ids, *superset_ids)) if superset_ids else []
            for portion in slices(smaller_sets, SET_PORTION):
                with findings.report_unreadable(CHECK, f"eligible_set {portion[0]}"):
                    by_id |= {key: to_text(members) for key, members in contents.eligible_arms(unit, portion).items()}
            for row_id, digest in zip(ids, digests, strict=True):
                if contents.digest(by_id[row_id]) != digest:
                    findings.error(CHECK, f"{table} {row_id}", "what it holds is not what its digest names")
    for owner, table in (("user", "users"), ("session", "session")):
        for keys, digests in audit.columns(unit, table, "key", "digest"):
            for key, digest, key_digest in zip(keys, digests, contents.key_digests(keys), strict=True):
                if digest != key_digest:
                    findings.error(CHECK, f"{owner} {key}", "its digest is not that of its key")


def _check_feedback_keys(unit: Unit, findings: Findings) -> None:
    """Check that the digest stored with each feedback key is the digest of the line of feedback that had this key. The
    line is rebuilt from its stored events."""
    for key, line in groupby(audit.keyed_events(unit), itemgetter(0)):
        events = list(line)
        first_event, value_by_kind = events[0], {event.kind: event.value for event in events}
        digest = canonical.line_digest(first_event.decision_id, first_event.position, value_by_kind, None)
        if digest == first_event.digest:
            continue  # a line that censors nothing; or an imported one, in which censoring is one event among others
        if first_event.digest not in _censoring_digests(events, value_by_kind):
            detail = f"the digest of feedback key {key!r} is not that of its events"
            findings.decision_error(CHECK, first_event.decision_id, detail)


def _censoring_digests(events: Sequence[audit.KeyedEvent], value_by_kind: dict[str, float]) -> Iterator[bytes]:
    """Yield the possible digests of a line of feedback that censors slots, or ends their censoring. If the line has no
    other event, its position is not stored: it may have named one slot or all slots, so two digests are possible.

    events: the events of the line; value_by_kind: the value of each kind of event in the line."""
    first_event, weighed_kinds = events[0], {kind: value for kind, value in value_by_kind.items() if kind != CENSOR}
    censor = value_by_kind[CENSOR] == 1.0 if CENSOR in value_by_kind else None
    for position in {event.position for event in events if event.kind != CENSOR} or {first_event.position, None}:
        yield canonical.line_digest(first_event.decision_id, position, weighed_kinds, censor)


def _check_assignments(unit: Unit, findings: Findings) -> None:
    """Check that each user and each session has the variant that the salt and the weights of the experiment gave at the
    time of the assignment."""
    by_id = {experiment.id: experiment for experiment in experiments.all_experiments(unit) if experiment.variants}
    phases = {experiment_id: experiments.phases(unit, experiment) for experiment_id, experiment in by_id.items()}
    has_merges = settings.get(unit).has_merges

    def is_wrong_variant(experiment_id: int, key: str, variant_id: int, at: int) -> bool:
        if experiment_id not in by_id:
            return False
        experiment, phase = by_id[experiment_id], experiments.phase_of_time(phases[experiment_id], at)
        if phase.mode == experiments.FROZEN:
            return True

        def matches(key: str) -> bool:
            return hash_variant(experiment, key, phase.weights).id == variant_id and is_in_layer(experiment, key)

        return not matches(key) and not (has_merges and any(map(matches, users.all_keys(unit, [key]).get(key, ()))))

    wrong_units = Counter(by_id[row[0]].name for row in audit.assigned_units(unit) if is_wrong_variant(*row))
    for name, count in wrong_units.items():
        detail = f"{count} of its units have another variant than its salt and weights give them"
        findings.error(CHECK, f"experiment {name}", detail)


def _check_json(unit: Unit, findings: Findings) -> None:
    """Check that the features of arms and the states of decisions are JSON objects."""
    for table, key, column in (
        ("arm", "id", "features"),
        ("arm_history", "arm_id", "features"),
        ("decision", "id", "state"),
    ):
        for ids, texts in audit.columns(unit, table, key, column):
            invalid = {text for text in set(texts) if not _is_object(text)}
            wrong_rows = [row_id for row_id, text in zip(ids, texts, strict=True) if text in invalid] if invalid else []
            for row_id in wrong_rows:
                findings.error(CHECK, f"{table.removesuffix('_history')} {row_id}", f"its {column} is no JSON object")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _check_catalogue(unit: Unit, findings: Findings) -> None:
    """Check that the eligible set stored for the current catalogue holds exactly the active arms, and that the stored
    period of the catalogue is right."""
    row = settings.get(unit)
    catalogue_id = row.catalogue_id
    if catalogue_id is None:
        return
    try:
        stored_arms = contents.eligible_arms(unit, [catalogue_id]).get(catalogue_id, ())
    except UNREADABLE:
        stored_arms = ()
    if (stored_arms, row.catalogue_from, row.catalogue_until) != arms.active_arms(unit, at=row.catalogue_from):
        findings.error(CHECK, "catalogue", "the eligible set kept for it is not the arms that are active")


REQUESTS = "requests"
PORTION = 5_000  # decisions at a time


def check_requests(unit: Unit, decision_ids: Ids, *, findings: Findings) -> None:
    """Check that the stored digest of each decision is the digest of a request that the decision answers.

    The same request can be written in several forms: with or without its user, with any key of the user, with or
    without its arms, and with the name of the route, the policy or the version. All forms are tried."""
    parse_context = lru_cache(PORTION)(_parse_context)
    no_arms, has_merges = arms_text(None), settings.get(unit).has_merges
    fallbacks = [(fallback(row), row.name) for row in experiments.all_experiments(unit) if row.variants]
    for start in range(0, len(decision_ids), PORTION):
        unit.progress("requests", start, start / len(decision_ids))
        rows = audit.answered_requests(unit, decision_ids[start : start + PORTION].tolist())
        arms_by_set = contents.eligible_arms(unit, {row[6] for row in rows})
        key_by_arm = arms.keys(unit, {arm for members in arms_by_set.values() for arm in members})
        merged_keys = users.all_keys(unit, {row[4] for row in rows} - {None}) if has_merges else {}
        set_texts = {set_id: arms_text([key_by_arm[arm] for arm in members]) for set_id, members in arms_by_set.items()}
        for decision_id, digest, size, session, user, text, set_id, *policy_names in rows:
            with findings.report_unreadable(REQUESTS, f"decision {decision_id}"):
                keys_of_user = dict.fromkeys((user, None, *merged_keys.get(user, ())))
                context, arm_rules, stated_arms = parse_context(text)
                forms_of_arms = (no_arms, set_texts[set_id]) if stated_arms is None else (stated_arms,)
                forms = product(_possible_names(fallbacks, *policy_names), keys_of_user, forms_of_arms)
                if not any(
                    digest_of_texts((*names, session, form_user), context, size, form_arms, arm_rules) == digest
                    for names, form_user, form_arms in forms
                ):
                    detail = "its session, user, context, length or arms are not those of its request"
                    findings.decision_error(REQUESTS, decision_id, detail)


def _parse_context(text: str) -> tuple[str, dict[str, Any], str | None]:
    """Return three parts of a logged context: the context as the request stated it, the rules on arms, and the arms
    that the request listed, as text (None if the log does not have these arms).

    text: the logged context."""
    context = parse(text, "its context")
    arm_rules = context.pop(LOGGED_RULES, {})
    for name in (PRICE, GROUPS):  # added by rlrec, not by the request
        context.pop(name, None)
    listed_arms = arm_rules.pop("arms", None)
    return canonical.text(context), arm_rules, None if listed_arms is None else arms_text(listed_arms)


def _possible_names(
    fallbacks: Sequence[tuple[str, str]], policy: str, version: int, experiment: str | None, route: str | None
) -> list[tuple[str | None, str | None]]:
    """Return the names that a request may have used, as pairs of a policy or route and an experiment. In each pair, one
    is None. Most requests name the policy.

    fallbacks: for each experiment, a pair: the policy that serves users outside the experiment, and the name of the
    experiment; policy, version, experiment, route: what served the decision."""
    if route is not None:
        return [(route, None)]
    references = (policy, f"{policy}@{version}")
    names = [(None, name) for fallback, name in fallbacks if fallback in references]
    return [*((reference, None) for reference in references), *names] if experiment is None else [(None, experiment)]
