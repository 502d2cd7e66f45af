"""This module handles users with several keys: it merges one user into another, and shows the keys of a user."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from typing import TypedDict

from rlrec.app.learning.ledger import Ledger
from rlrec.app.requests import session
from rlrec.app.requests.feedback import FeedbackTransaction, Line
from rlrec.errors import Conflict, InputError, quantity
from rlrec.store import Store, Unit
from rlrec.store.log import returns, selected, sessions, settings
from rlrec.store.log.events import RETURN
from rlrec.store.policies import policies, users

GROUP = 1_000  # events stored at a time

# user: the key that leads to `into` from now on; merged: whether this is new; created: keys that were not stored
# before; sessions: how many moved; returns: how many events `return` were added or taken back; excluded_by: exclusions
# that covered only one of the two, and now cover the whole person.
Merged = TypedDict("Merged", {
    "user": str, "into": str, "merged": bool, "created": list[str], "sessions": int, "returns": int,
    "excluded_by": list[str],
})  # fmt: skip
# the main key of the person, and all keys that lead to it
Person = TypedDict("Person", {"user": str, "keys": list[str]})


def merge(store: Store, user: str, into: str) -> Merged:
    """Merge a user into another user. Repeating the merge changes nothing. Raises InputError if both keys are the same,
    and Conflict if a key belongs to another person."""
    if user == into:
        raise InputError(f"user {user!r} cannot be merged into itself", hint="name another key of the same person")
    with store.read() as unit:  # without a lock, as when each login repeats it: nobody waits for this
        if (answer := _find_merge(unit, user, into)) is not None:
            return answer
    return store.write(lambda unit: _merge_users(unit, user, into), repeatable=True)


def _find_merge(unit: Unit, user: str, into: str) -> Merged | None:
    """If both keys already stand for the same person, return the answer of `merge`, else None. Raises Conflict if the
    keys cannot be merged, since one of them belongs to another person."""
    main_keys = users.main_keys(unit, [user, into])
    person = main_keys.get(into, into)
    if main_keys.get(user) == person:
        return {
            "user": user, "into": person, "merged": False, "created": [], "sessions": 0, "returns": 0,
            "excluded_by": [],
        }  # fmt: skip
    if user in main_keys:
        hint = f"`rlrec user merge {main_keys[user]} --into {into}`, if all of them are one person"
        raise Conflict(f"{user!r} is a key of user {main_keys[user]!r} already", hint=hint)
    if user == person:
        raise Conflict(f"{into!r} is a key of user {user!r} already", hint="both keys lead to that user")
    return None


def _merge_users(unit: Unit, user: str, into: str) -> Merged:
    settings.lock(unit)
    # with all policies locked nobody serves meanwhile
    ledger = Ledger(unit, [policy.id for policy in policies.all_policies(unit)])
    if (answer := _find_merge(unit, user, into)) is not None:
        return answer
    person = users.main_keys(unit, [into]).get(into, into)
    stored_users = sessions.user_ids(unit, [user, person])
    earlier_returns = returns.returns_of(unit, [*stored_users.values()])
    ids = sessions.intern_users(unit, [user, person])
    exclusion_names = selected.sole_names(unit, [ids[user], ids[person]])
    n_moved = users.merge(unit, ids[user], ids[person])
    n_returns = 0
    if settings.get(unit).weighs_returns:
        # events are never deleted: another event at the same time takes one back
        present_returns = returns.returns_of(unit, [ids[person]])
        obsolete_returns = (earlier_returns - present_returns) & returns.stored_returns(
            unit, {event.decision_id for event in earlier_returns - present_returns}
        )
        n_returns = record_returns(unit, ledger, obsolete_returns, value=-1.0)
        n_returns += record_returns(unit, ledger, present_returns - earlier_returns)
    ledger.close()
    return {
        "user": user, "into": person, "merged": True, "created": sorted({user, person} - stored_users.keys()),
        "sessions": n_moved, "returns": n_returns, "excluded_by": exclusion_names,
    }  # fmt: skip


def record_returns(unit: Unit, ledger: Ledger, events: Iterable[returns.Return], *, value: float = 1.0) -> int:
    """Store `return` events, those of the oldest decision first. Returns the number of events that are new. value: the
    value of each event, -1 to take an earlier event back."""
    lines = (Line(decision_id=event.decision_id, events={RETURN: value}, at=event.at) for event in sorted(events))
    count = 0
    while group := list(islice(lines, GROUP)):
        count += FeedbackTransaction(unit, ledger, group, returns=True).results.count(True)
    return count


def derive_returns(unit: Unit, user_ids: Collection[int] | None = None) -> int:
    """Store the missing `return` events of users, and return their number. An event is missing for a visit that was
    imported, or that began when no reward weighed `return`. user_ids: the users, None for all."""
    ledger = Ledger(unit, [policy.id for policy in policies.all_policies(unit)])  # so that nobody serves meanwhile
    returns.derive_last(unit, user_ids)
    if user_ids is None:
        missing_returns = returns.missing_returns(unit)
    else:
        expected_returns = returns.returns_of(unit, user_ids)
        stored_returns = returns.stored_returns(unit, {event.decision_id for event in expected_returns})
        credited_ids = {event.decision_id for event in stored_returns}
        missing_returns = [event for event in expected_returns if event.decision_id not in credited_ids]
    n_recorded = record_returns(unit, ledger, missing_returns)
    ledger.close()
    return n_recorded


def on_returns(count: int) -> str:
    """Return a sentence that says how many `return` events were added."""
    return f"users came back in {quantity(count, 'visit')}: these have got their event `{RETURN}`"


def show(store: Store, key: str) -> Person:
    """Return the person who has a key, with all keys of this person. Raises InputError for an unknown key."""
    with store.read() as unit:
        person, _ = session.find_user(unit, key)
        return {"user": person, "keys": [person, *sorted(users.all_keys(unit, [person]).get(person, set()) - {person})]}
