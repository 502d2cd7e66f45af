"""Digests of requests: what a decision answers, and for whom, is what its request asked for."""

from __future__ import annotations

from itertools import product

from rlrec.app.audit.findings import Findings
from rlrec.app.serving.requests import Request, digest
from rlrec.arrays import Ids
from rlrec.store import Unit, arms, audit, contents
from rlrec.store.unit import parse

CHECK = "requests"
PORTION = 5_000  # decisions at a time


def check(unit: Unit, decision_ids: Ids, *, findings: Findings) -> None:
    """Compare the digests stored with those of every form that a request for the decision can have had: with or without
    its user and its arms, and by the name of the policy or of the version."""
    for start in range(0, len(decision_ids), PORTION):
        answered = audit.answered(unit, decision_ids[start : start + PORTION].tolist())
        sets = contents.eligible_arms(unit, {request.eligible_id for request in answered})
        keys = arms.keys(unit, {arm for members in sets.values() for arm in members})
        for request in answered:
            with findings.unreadable(CHECK, f"decision {request.decision_id}"):
                if request.digest not in _digests(request, [keys[arm] for arm in sets[request.eligible_id]]):
                    detail = "its session, user, context, length or arms are not those of its request"
                    findings.error(CHECK, f"decision {request.decision_id}", detail)


def _digests(answered: audit.AnsweredRequest, eligible: list[str]) -> set[bytes]:
    context = parse(answered.context, "its context")
    names = [answered.policy, f"{answered.policy}@{answered.version}"] if answered.experiment is None else [None]
    return {
        digest(
            Request(
                policy=policy, experiment=answered.experiment, session=answered.session, user=user, context=context,
                size=answered.size, arms=candidates,
            )
        )
        for policy, user, candidates in product(names, {answered.user, None}, (None, eligible))
    }  # fmt: skip
