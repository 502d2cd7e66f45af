"""This module finds users and sessions that click nearly all slots they are shown, and so are probably machines. The
module reads the log of all policies."""

from __future__ import annotations

from itertools import count

from rlrec.app.audit.integrity.findings import Findings
from rlrec.app.inputs import filters
from rlrec.errors import quantity
from rlrec.ope.checks.machines import SessionSums, cells_of, machines
from rlrec.store import Unit
from rlrec.store.log import selected, sessions
from rlrec.store.log.selected import Selection, UnitIds
from rlrec.store.policies import people, policies

CHECK = "machines"
# from this share of machines among sessions with the same slots and clicks, all of them are named
_MACHINE_SHARE = 1 / 3
_MAX_NAMED, _MAX_IN_COMMAND = 5, 20  # names in a finding; in a command


def find_machines(unit: Unit, *, ignored_names: str | None = None, selection: Selection | None = None) -> list[UnitIds]:
    """Return the users and sessions that click nearly all slots they are shown, as machines do. A click is an event
    that the reward of any policy weighs.

    ignored_names: the names of exclusions whose decisions count nevertheless; selection: the decisions that count,
    or None for all decisions except the excluded ones."""
    live_policies = policies.live(unit, [policy.name for policy in policies.all_policies(unit)])
    selection = selection or Selection(without=filters.exclusion_tests(unit, ignored_names=ignored_names))
    persons = set[int]()
    for event_kinds in {frozenset(policy.version.reward.weights) for policy in live_policies.values()}:
        person, slots, clicks = people.count_clicks(unit, selection, event_kinds)
        sums = SessionSums.from_sessions(slots, clicks)
        if sums.raises_alarm:
            persons |= {*person[machines(sums.counts)[1][cells_of(slots, clicks)] > _MACHINE_SHARE].tolist()}
    return [(-person_id, None) if person_id < 0 else (None, person_id) for person_id in sorted(persons)]


def check(unit: Unit, *, findings: Findings) -> None:
    """Add a warning that names the users and sessions that click like machines, and says how to exclude their
    decisions."""
    if (detail := machines_sentence(unit)) is not None:
        findings.warning(CHECK, "store", f"{detail}; with --dry-run --json it names them")


def machines_sentence(unit: Unit, *, selection: Selection | None = None) -> str | None:
    """Return a sentence that names the users and sessions from `find_machines`, and says how to exclude their
    decisions. Return None if there are none.

    selection: the decisions that count, or None for all decisions except the excluded ones."""
    if not (units := find_machines(unit, selection=selection)):
        return None
    users = {user for user, _ in units if user is not None}
    session_ids = {session for _, session in units if session is not None}
    names = [row[0] for row in unit.ask("SELECT key FROM users WHERE id IN (?*)", users)]
    names = sorted([*names, *(session.key for session in sessions.by_id(unit, session_ids).values())])
    stored_names = {exclusion.name for exclusion in selected.all_exclusions(unit)}
    free_name = next(name for number in count(1) if (name := f"bots{number if number > 1 else ''}") not in stored_names)
    count_texts = [quantity(len(ids), noun) for ids, noun in ((users, "user"), (session_ids, "session")) if ids]
    names_text = f"{', '.join(names[:_MAX_NAMED])}{', ...' if len(names) > _MAX_NAMED else ''}"
    option = "--machines"
    fits_in_command = len(names) <= _MAX_IN_COMMAND and not (users and session_ids)
    # those that do not stand out in the whole log are named
    if selection is not None and fits_in_command and not {*units} <= {*find_machines(unit)}:
        option = f"--where {'user' if users else 'session'}={'+'.join(names)}"
    command = f"`rlrec log exclude {free_name} {option}`"
    return f"{' and '.join(count_texts)} click nearly all that they are shown ({names_text}): {command} leaves them out"
