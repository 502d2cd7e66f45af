"""Users who come back: the event `return` of the last decision before a visit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from rlrec.app.learning.ledger import Ledger
from rlrec.app.requests.feedback import FeedbackTransaction, Line
from rlrec.app.serving.open_sessions import OpenSessions
from rlrec.app.serving.requests import Answer, PlannedRequest
from rlrec.store import Unit
from rlrec.store.log import returns
from rlrec.store.log.events import RETURN
from rlrec.store.log.returns import Return


def credited_policies(unit: Unit, planned: Collection[PlannedRequest]) -> set[int]:
    """The policies of the decisions that these requests may credit, by id."""
    users = {plan.request.user for plan in planned if plan.request.user is not None}
    return returns.policies_of_last(unit, users=users, sessions={plan.request.session for plan in planned})


def lock_users(sessions: OpenSessions) -> None:
    """Lock the users of a group."""
    user_ids = {session.user_id for session in sessions.by_key.values() if session.user_id is not None}
    returns.lock_users(sessions.unit, user_ids)


def credit(unit: Unit, ledger: Ledger, answers: Iterable[Answer], sessions: OpenSessions) -> None:
    """Record an event `return` for the last decision of each user who comes back with one of these."""
    events = _find_returns(answers, sessions)
    if not events:
        return
    ledger.require(events.values())
    repeatable = unit.repeatable  # these events are stored again where the requests are, and only there
    lines = [Line(decision_id=event.decision_id, events={RETURN: 1.0}, at=event.at) for event in events]
    FeedbackTransaction(unit, ledger, lines, set(), returns=True).store()
    unit.repeatable = repeatable


def _find_returns(answers: Iterable[Answer], sessions: OpenSessions) -> Mapping[Return, int]:
    """The returns that new decisions are, each with the policy of the decision that it credits. A user comes back with
    the first decision of a visit, if the visit of their last decision was over by then.
    The new decisions are stored as the last ones of their users, who are locked. answers: in order of decision."""
    # by user whose first decision here begins a visit, or names them in one: its beginning
    started_at: dict[int, int] = {}
    last: dict[int, int] = {}
    for answer in answers:
        session = sessions.by_key[answer["session"]]
        if session.user_id is not None:
            if session.user_id not in last and (answer["step"] == 0 or session.key in sessions.new_users):
                started_at[session.user_id] = session.started_at
            last[session.user_id] = answer["decision_id"]
    events = {
        Return(decision.decision_id, started_at[decision.user_id]): decision.policy_id
        for decision in (returns.last_decisions(sessions.unit, started_at) if started_at else ())
        if decision.ends_at(sessions.timeout_us) < started_at[decision.user_id]
    }
    returns.set_last(sessions.unit, last.items())
    return events
