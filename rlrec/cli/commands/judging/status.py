"""rlrec status: a store at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.output.tables import short_times, sparkline
from rlrec.cli.program import app
from rlrec.cli.program.shared import GroupedCommand, Store, reading, settings
from rlrec.cli.text.text import View
from rlrec.errors import CheckFailed, quantity

if TYPE_CHECKING:
    from rlrec.app.judging.status import HoldoutStatus, Status

POLICIES = ("policy", "kind", "live", "live_since", "versions", "decisions", "decisions_24h", "last_at")
ROUTES = ("route", "policy", "version", "experiment", "since", "decisions_24h")
EXPERIMENTS = ("experiment", "unit", "units", "variants", "created_at")


@click.command(cls=GroupedCommand)
@reading("rlrec status", "rlrec status --json")
def status(store: Store, show: Show) -> None:
    """Exit code 3 where something is wrong at a glance: decisions ahead of the clock, slots that wait to be settled,
    events that stopped coming, errors that the last `rlrec doctor` found, routes that an earlier release pinned at the
    end of a ramp. Other routes and experiments that serve another version than the live one are named alone. It does
    not read the log from end to end, so that it is quick on a large store; `rlrec doctor` looks into everything.

    decisions_24h counts what was served in the last 24 hours. An immature decision is within the reward window of its
    policy: estimates and training do not use it yet. Unsettled slots have not entered the beliefs of rewards that are
    learned when they are `settled`. The answer of a policy is that of the newest look of a gate at its live version."""
    result = app.status.status(store)
    result["warnings"] += _pinned(result)
    show(result, table=_view(result), flat=result["policies"])
    if warnings := [row for row in result["warnings"] if row["severity"] != "info"]:
        first = warnings[0]
        remainder = f" ({len(warnings) - 1} more)" if len(warnings) > 1 else ""
        raise CheckFailed(
            f"{first['check']}, {first['subject']}: {first['detail']}{remainder}", hint="`rlrec doctor` looks closer"
        )


def _pinned(result: Status) -> list[dict[str, Any]]:
    """A finding where rlrec.toml has `recommend` draw from another version than the live one."""
    config = settings().config
    setting = None if config is None else config.values.get(("recommend", "policy"))
    name, _, version = str(getattr(setting, "value", "")).partition("@")
    live = next((row["live"] for row in result["policies"] if row["policy"] == name), None)
    if setting is None or live is None or not version.isdecimal() or int(version) == live:
        return []
    detail = f"{setting.path} has `recommend` draw from version {version}, and version {live} is live"
    return [{"check": "live", "severity": "info", "subject": f"policy {name}", "detail": detail}]


def _view(result: Status) -> View:
    numbers = {"arm": result["arms"], "user": result["users"], "session": result["sessions"]}
    numbers |= {"decision": result["decisions"], "event": result["events"]}
    sizes = ", ".join(quantity(number, noun) for noun, number in numbers.items())
    waiting, hours = result["waiting"], result["events_by_hour"]
    immature = quantity(waiting["immature"], "immature decision")
    title = [
        f"{result['at']}, schema {result['revision']}: {sizes}",
        f"events by hour, the last 24: {sparkline(hours)}  {sum(hours):,}, at most {max(hours):,} an hour",
        f"waiting: {immature}, {quantity(waiting['unsettled'], 'unsettled slot')}",
        f"last training: {_training(result['training'])}; last doctor: {_doctor(result['doctor'])}",
    ]
    notes: list[str | View] = [row["answer"] for row in result["policies"] if row["answer"] is not None]
    notes += [
        f"{row['version']} waits since {short_times(row['since'])[:16]}: "
        f"`rlrec policy promote {row['version']}` makes it live"
        for row in (policy["waiting"] for policy in result["policies"]) if row is not None
    ]  # fmt: skip
    notes += [row["ramp"]["why"] for row in result["routes"] if row["ramp"]]
    notes += [_holdout(row) for row in result["holdouts"]]
    notes += [f"{best['sentence']} (as of {_minute(best)})"] if (best := result["best"]) is not None else []
    for rows, columns in ((result["routes"], ROUTES), (result["experiments"], EXPERIMENTS)):
        if rows:
            notes += [*([""] if notes else []), View.select(rows, columns, drop=columns[-2:1:-1])]
    warnings = [f"{row['severity']} {row['check']}, {row['subject']}: {row['detail']}" for row in result["warnings"]]
    notes += ["", *warnings] if notes and warnings else warnings
    return View.select(result["policies"], POLICIES, title=title, notes=notes, drop=POLICIES[3:5] + POLICIES[1:2])


def _holdout(row: HoldoutStatus) -> str:
    if row["sentence"] is None:
        return f"{row['route']} has a holdout: `rlrec experiment show {row['experiment']}` compares with it"
    return f"{row['sentence']} (as of {short_times(str(row['at']))[:16]})"


def _training(run: dict[str, Any] | None) -> str:
    if run is None:
        return "never"
    return f"{run['policy']}@{run['version']} at {_minute(run)}, {'promoted' if run['promoted'] else 'not promoted'}"


def _doctor(run: dict[str, Any] | None) -> str:
    return (
        "never"
        if run is None
        else f"{quantity(run['errors'], 'error')}, {quantity(run['warnings'], 'warning')} at {_minute(run)}"
    )


def _minute(run: dict[str, Any]) -> str:
    return short_times(run["at"])[:16]
