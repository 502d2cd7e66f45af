"""Digests of requests: what a decision answers, and for whom, is what its request asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

from rlrec.app.audit.integrity.findings import Findings
from rlrec.app.inputs import canonical
from rlrec.app.serving.requests import arms_text, digest_of_texts
from rlrec.arrays import Ids
from rlrec.store import Unit
from rlrec.store.database.unit import parse
from rlrec.store.log import contents
from rlrec.store.policies import arms
from rlrec.store.upkeep import audit
from rlrec.store.upkeep.audit import AnsweredRequest

CHECK = "requests"
PORTION = 5_000  # decisions at a time


def check(unit: Unit, decision_ids: Ids, *, findings: Findings) -> None:
    """Compare the digests stored with those of every form that a request for the decision can have had: with or without
    its user and its arms, and by the name of the route, the policy or the version."""
    context = lru_cache(PORTION)(lambda text: canonical.text(parse(text, "its context")))
    no_arms = arms_text(None)
    for start in range(0, len(decision_ids), PORTION):
        unit.progress("requests", start, start / len(decision_ids))
        answered = audit.answered(unit, decision_ids[start : start + PORTION].tolist())
        sets = contents.eligible_arms(unit, {request.eligible_id for request in answered})
        keys = arms.keys(unit, {arm for members in sets.values() for arm in members})
        set_texts = {set_id: arms_text([keys[arm] for arm in members]) for set_id, members in sets.items()}
        for request in answered:
            with findings.unreadable(CHECK, f"decision {request.decision_id}"):
                texts = no_arms, set_texts[request.eligible_id]
                if not _is_answer(request, context(request.context), texts):
                    detail = "its session, user, context, length or arms are not those of its request"
                    findings.decision_error(CHECK, request.decision_id, detail)


def _is_answer(answered: AnsweredRequest, context: str, arms_texts: Sequence[str]) -> bool:
    """Whether one of the forms of a request has the digest; most name the policy and no arms."""
    by_policy = answered.policy, f"{answered.policy}@{answered.version}"
    named: list[tuple[str | None, str | None]] = [(name, None) for name in by_policy]
    if answered.route is not None:
        named = [(answered.route, None)]
    elif answered.experiment is not None:
        named = [(None, answered.experiment)]
    users = {answered.user: None, None: None}
    return any(
        digest_of_texts((*names, answered.session, user), context, answered.size, text) == answered.digest
        for names, user, text in product(named, users, arms_texts)
    )
