"""People and sessions that click nearly all that they are shown, by the log of all policies: machines."""

from __future__ import annotations

from itertools import count

import numpy as np

from rlrec.app.audit.integrity.findings import Findings
from rlrec.app.inputs import filters
from rlrec.app.log import reward_log
from rlrec.arrays import Ids
from rlrec.errors import quantity
from rlrec.ope.checks.machines import SessionSums, cells_of, machines
from rlrec.store import Unit
from rlrec.store.log import exclusions, reader, sessions
from rlrec.store.log.exclusions import UnitIds
from rlrec.store.log.reader import ABSENT
from rlrec.store.log.selected import Selection
from rlrec.store.policies import policies

CHECK = "machines"
_COLUMNS = (*reward_log.MATURITY, "user_id")
_MANY_WAYS = 0.5  # probability that a session is a machine's, from which on it is taken for one
_NAMED = 5  # in a finding


def find(unit: Unit, *, included: str | None = None) -> list[UnitIds]:
    """The units that click like machines, by some reward that a policy learns; those that are excluded are left out,
    but for those of the exclusions named."""
    live = policies.live(unit, [policy.name for policy in policies.all_policies(unit)])
    rewards = list({policy.version.reward.id: policy.version.reward for policy in live.values()}.values())
    selection = Selection(without=filters.exclusion_tests(unit, included=included))
    # by person (a user below 0): slots, and those with an event of each reward
    counts = np.zeros((0, 2 + len(rewards)), np.int64)
    for batch in reader.batches(unit, selection, columns=_COLUMNS):
        user = batch.slots["user_id"]
        person, row = np.unique(np.where(user == ABSENT, batch.slots["session_id"], -user), return_inverse=True)
        clicks = [~reward_log.with_rewards(batch, reward).default for reward in rewards]
        columns = [np.bincount(row, weights=flags) for flags in (np.ones(len(row)), *clicks)]
        counts = _added(np.vstack([counts, np.column_stack([person, *columns]).astype(np.int64)]))
    persons = set[int]()
    for column in range(2, counts.shape[1]):
        slots, clicks_of = counts[:, 1], counts[:, column]
        sums = SessionSums.from_sessions(slots, clicks_of)
        if sums.alarms:
            shares = machines(sums.counts)[1]
            persons |= {*counts[shares[cells_of(slots, clicks_of)] > _MANY_WAYS, 0].tolist()}
    return [(-key, None) if key < 0 else (None, key) for key in sorted(persons)]


def _added(counts: Ids) -> Ids:
    """The rows of each person added up; the first column names the person."""
    person, row = np.unique(counts[:, 0], return_inverse=True)
    sums = [np.bincount(row, weights=column) for column in counts[:, 1:].T]
    return np.column_stack([person, *sums]).astype(np.int64)


def check(unit: Unit, *, findings: Findings) -> None:
    """A warning that names the units which click like machines, and how they are left out."""
    units = find(unit)
    users = {user for user, _ in units if user is not None}
    session_ids = {session for _, session in units if session is not None}
    names = [row[0] for row in unit.ask("SELECT key FROM users WHERE id IN (?*)", users)]
    names = sorted([*names, *(session.key for session in sessions.by_id(unit, session_ids).values())])
    stored = {exclusion.name for exclusion in exclusions.all_exclusions(unit)}
    free_name = next(name for number in count(1) if (name := f"bots{number if number > 1 else ''}") not in stored)
    counts = [quantity(len(ids), noun) for ids, noun in ((users, "user"), (session_ids, "session")) if ids]
    named = f"{', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"
    detail = f"{' and '.join(counts)} click nearly all that they are shown ({named}): "
    if units:
        command = f"`rlrec log exclude {free_name} --machines`"
        findings.warning(CHECK, "store", f"{detail}{command} leaves them out; with --dry-run --json it names them")
