"""Users who come back: which decisions are credited with the visits that a group begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rlrec.app.serving.decision_json import Answer
from rlrec.app.serving.open_sessions import OpenSessions
from rlrec.app.serving.requests import Request
from rlrec.store import Unit, returns
from rlrec.store.returns import Return


def policies_of_last(unit: Unit, requests: Iterable[Request]) -> set[int]:
    """Ids of the policies whose decisions may be credited with the visits that these requests begin: they are locked
    before sessions are. SQLite has one lock."""
    if not unit.postgres:
        return set()
    users = {request.user for request in requests if request.user is not None}
    return returns.policies_of_last(unit, users=users, sessions={request.session for request in requests})


def returned(unit: Unit, sessions: OpenSessions, drawn: Mapping[int, Answer]) -> dict[Return, int]:
    """The returns that these new decisions are, each with the policy of the decision that it credits. A user comes back
    with the first decision of a visit, if the visit of their last decision was over by then.
    The new decisions are stored as the last ones of their users, who are locked."""
    begins: dict[int, int | None] = {}  # by user, of their first decision in the group
    last: dict[int, int] = {}
    for answer in drawn.values():  # in order of id
        user_id = sessions.by_key[answer["session"]].user_id
        if user_id is not None and answer["decision_id"] is not None and answer["step"] is not None:
            begins.setdefault(user_id, sessions.begins(answer["session"], answer["step"]))
            last[user_id] = answer["decision_id"]
    before = {user_id: at for user_id, at in begins.items() if at is not None}
    events = {
        Return(decision.decision_id, before[decision.user_id]): decision.policy_id
        for decision in (returns.last_decisions(unit, before) if before else ())
        if decision.ends_at(sessions.timeout_us) < before[decision.user_id]
    }
    returns.set_last(unit, last.items())
    return events
