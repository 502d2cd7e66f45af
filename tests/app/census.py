"""Outcomes counted by plain loops over the rows of a store, to hold `outcomes` against."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rlrec.records import Reward
from rlrec.store import Unit

DAY = 86_400_000_000
Sums = dict[tuple[Any, str], dict[Any, tuple[float, float]]]  # by group and metric: numerator and denominator of a unit


class Row(NamedTuple):
    """A decision, with what is known of its visit. has_reward: whether some slot of it is not censored."""

    id: int
    session: int
    visit: int
    at: int
    user: int | None
    policy: str
    number: int
    variant: str | None
    imported: int
    has_reward: int


ROWS = """
    SELECT d.id, d.session_id, d.visit, d.at, s.user_id, p.name, v.number, x.label, d.imported,
        EXISTS (SELECT 1 FROM slot WHERE slot.decision_id = d.id AND censored = 0)
    FROM decision d JOIN session s ON s.id = d.session_id JOIN version v ON v.id = d.version_id
    JOIN policy p ON p.id = d.policy_id LEFT JOIN variant x ON x.id = d.variant_id
"""


def labels(by: str | None) -> Callable[[Row], Any]:
    return {
        None: lambda row: None,
        "variant": lambda row: row.variant,
        "policy": lambda row: row.policy,
        "version": lambda row: f"{row.policy}@{row.number}",
        "week": lambda row: monday(row.at),
        "day": lambda row: str((datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=row.at)).date()),
        "users": lambda row: None,
    }[by]


def monday(at: int) -> str:
    day = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=at)
    return str((day - datetime.timedelta(days=day.weekday())).date())


def reward_of(unit: Unit, row: Row, reward: Reward) -> float:
    """The reward of a page, event by event, without its censored slots."""
    events = unit.ask("SELECT position, kind, value, at FROM event WHERE decision_id = ?", row.id)
    weighed = [
        (p, kind, value) for p, kind, value, at in events if kind in reward.weights and at - row.at <= reward.window_us
    ]
    total = sum(reward.weights[kind] * value for position, kind, value in weighed if position is None)
    for (position,) in unit.ask("SELECT position FROM slot WHERE decision_id = ? AND censored = 0", row.id):
        of_slot = [reward.weights[kind] * value for p, kind, value in weighed if p == position]
        value = sum(of_slot)
        if of_slot and reward.clip_low is not None and reward.clip_high is not None:
            value = min(max(value, reward.clip_low), reward.clip_high)
        total += value if of_slot else reward.default
    return float(total)


def count(
    unit: Unit, rewards: Mapping[str, Reward], *, by: str | None, chosen: Callable[[Row], bool] = lambda row: True,
    by_session: bool = False, of_users: bool = True, timeout: int = 30 * 60_000_000,
) -> Sums:  # fmt: skip
    """Numerator and denominator of every metric, group and unit. chosen: which decisions count; of_users: whether
    some user is known, so that returns are of users alone."""
    now, label = unit.now, labels(by)
    stays: dict[Any, list[Row]] = defaultdict(list)
    sums: Sums = defaultdict(lambda: defaultdict(lambda: (0.0, 0.0)))
    visits = unit.ask(
        "SELECT session_id, number, started_at, last_at, ended_at, user_id"
        " FROM visit JOIN session ON session.id = session_id"
    )
    starts: dict[Any, list[int]] = defaultdict(list)
    for session, _, started, _, _, user in visits:
        starts[person(session, user)].append(started)
    assigned: dict[int, int] = dict(unit.ask("SELECT user_id, at FROM assignment WHERE user_id IS NOT NULL"))
    of_visit = {(visit[0], visit[1]): visit for visit in visits}
    rows = [row for values in unit.ask(ROWS) if chosen(row := Row(*values))]
    entries: dict[Any, tuple[int, int]] = {}  # the first decision, and when its visit began
    for row in rows:
        key = person(row.session, row.user)
        entries[key] = min(entries.get(key, (now, now)), (row.at, of_visit[row.session, row.visit][2]))
    for user, at in assigned.items():
        if by == "users" and ("user", user) in entries and at < entries["user", user][0]:
            entries["user", user] = at, at
    for row in rows:
        key = person(row.session, row.user)
        before = any(start < entries[key][1] for start in starts[key])
        group = ("returning" if before else "new") if by == "users" else label(row)
        stays[group, ("session", row.session) if by_session else key, row.session, row.visit].append(row)

    def add(group: Any, metric: str, key: Any, numerator: float, denominator: float) -> None:
        before = sums[group, metric][key]
        sums[group, metric][key] = before[0] + numerator, before[1] + denominator

    days: dict[Any, set[int]] = defaultdict(set)
    for (group, key, session, number), rows in stays.items():
        _, _, _, last, ended, user = of_visit[session, number]
        over, end = ended is not None or now > last + timeout, last + timeout if ended is None else ended
        add(group, "visits", key, 1, 0)
        days[group, key] |= {row.at // DAY for row in rows}
        if over:
            add(group, "decisions_per_visit", key, len(rows), 1)
            minutes = (max(row.at for row in rows) - min(row.at for row in rows)) / 60e6
            add(group, "minutes_per_visit", key, minutes, 1)
        for n in (1, 7, 28):
            if over and end + n * DAY < now and (user is not None or not of_users):
                came = any(end < start <= end + n * DAY for start in starts[person(session, user)])
                add(group, f"returned_{n}d", key, came, 1)
        for name, reward in rewards.items():
            counted = [row for row in rows if row.has_reward and (row.imported or now - row.at > reward.window_us)]
            values = [reward_of(unit, row, reward) for row in counted]
            if values:
                add(group, f"reward_per_visit {name}", key, sum(values), 1)
                add(group, f"reward_per_unit {name}", key, sum(values), 0)
    for group, key in {(group, key) for group, key, *_ in stays}:
        observed = sums[group, "visits"][key][0]
        sums[group, "visits"][key] = observed, 1
        if key[0] == "user" or by_session or not of_users:
            sums[group, "retention"][key] = float(observed > 1), 1
        sums[group, "active_days"][key] = len(days[group, key]), 1
        for name in rewards:
            if key in sums[group, f"reward_per_unit {name}"]:
                sums[group, f"reward_per_unit {name}"][key] = sums[group, f"reward_per_unit {name}"][key][0], 1
    return sums


def person(session: int, user: int | None) -> Any:
    return ("session", session) if user is None else ("user", user)
