"""Users who come back: which decisions are credited with the visits that a group begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rlrec.app.serving.decision_json import Answer
from rlrec.app.serving.open_sessions import OpenSessions
from rlrec.app.serving.requests import Request
from rlrec.store import Unit
from rlrec.store.log import returns
from rlrec.store.log.returns import Return


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
    begins: dict[int, int] = {}  # by user whose first decision here begins a visit, or names them in one: its beginning
    last: dict[int, int] = {}
    named = sessions.named()
    for answer in drawn.values():  # in order of id
        session, decision_id = sessions.by_key[answer["session"]], answer["decision_id"]
        if session.user_id is not None and decision_id is not None:
            if session.user_id not in last and (answer["step"] == 0 or session.key in named):
                begins[session.user_id] = session.started_at
            last[session.user_id] = decision_id
    events = {
        Return(before.decision_id, begins[before.user_id]): before.policy_id
        for before in (returns.last_decisions(unit, begins) if begins else ())
        if before.ends_at(sessions.timeout_us) < begins[before.user_id]
    }
    returns.set_last(unit, last.items())
    return events
