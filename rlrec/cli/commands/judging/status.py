"""This module holds the command `rlrec status`, which shows the state of a store at a glance."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from rlrec.cli.output.output import Show, write
from rlrec.cli.output.tables import short_times, sparkline
from rlrec.cli.program import app
from rlrec.cli.program.shared import OUTPUT, GroupedCommand, Store, current_settings, option_group, takes_read_store
from rlrec.cli.text.text import View
from rlrec.cli.text.values import DURATION
from rlrec.errors import CheckFailed, StoreBusy, quantity

CLEAR_SCREEN = b"\x1b[H\x1b[J"  # moves a terminal to its first line, and clears it
POLICY_COLUMNS = ("policy", "kind", "live", "live_since", "versions", "decisions", "decisions_24h", "last_at")
ROUTE_COLUMNS = ("route", "policy", "version", "experiment", "since", "decisions_24h")
MIN_WATCH_US = 100_000  # continuous reading would keep the store busy
EXPERIMENT_COLUMNS = ("experiment", "unit", "units", "variants", "created_at")


@click.command(cls=GroupedCommand)
@option_group(
    OUTPUT,
    click.option(
        "--watch", "watch_us", is_flag=False, flag_value="5s", type=DURATION, metavar="[TIME]",
        help="Show it again and again, every 5s or TIME (at least 100ms), until Ctrl-C.",
    ),
)  # fmt: skip
@takes_read_store("rlrec status", "rlrec status --watch 10s", "rlrec status --json")
def status(store: Store, show: Show, watch_us: int | None) -> None:
    """It exits with 3 if it sees a problem: decisions ahead of the clock, slots that wait for `settle`, events that
    stopped coming or that teach a policy nothing, errors that the last `rlrec doctor` found, routes that an earlier
    release pinned at the end of a ramp. It also names other routes and experiments that serve another version than the
    live one (without exit 3). It does not read the whole log, so it is quick on a large store; `rlrec doctor` checks
    everything.

    decisions_24h counts what was served in the last 24 hours. An immature decision is within the reward window of its
    policy: estimates and training do not use it yet. Unsettled slots have not entered the beliefs that learn `settled`
    rewards. The answer of a policy is the newest result of a gate for its live version."""
    if watch_us is not None and watch_us < MIN_WATCH_US:
        raise click.UsageError("--watch waits for at least 100ms between two looks")
    result = _show_state(store, show)
    while watch_us is not None:
        time.sleep(watch_us / 1e6)
        try:
            result = _show_state(store, show, clear=show.screen.width is not None)
        except StoreBusy as error:  # it may be free at the next look
            store.notice(error.message)
    if warnings := [row for row in result["warnings"] if row["severity"] != "info"]:
        first_warning = warnings[0]
        more_text = f" ({len(warnings) - 1} more)" if len(warnings) > 1 else ""
        raise CheckFailed(
            f"{first_warning['check']}, {first_warning['subject']}: {first_warning['detail']}{more_text}",
            hint="`rlrec doctor` looks again",
        )


def _show_state(store: Store, show: Show, *, clear: bool = False) -> app.status.Status:
    """Print the state of a store, and return it.

    With `clear`, the terminal is cleared first."""
    result = app.status.status(store)
    result["warnings"] += _pinned_findings(result)
    if clear:
        write(CLEAR_SCREEN)
    show(result, table=status_view(result), flat=result["policies"])
    return result


def _pinned_findings(result: app.status.Status) -> list[dict[str, Any]]:
    """Return a finding if rlrec.toml makes `recommend` draw from a version that is not live. Otherwise the list is
    empty."""
    config = current_settings().config
    setting = None if config is None else config.values.get(("recommend", "policy"))
    name, _, version = str(getattr(setting, "value", "")).partition("@")
    live_version = next((row["live"] for row in result["policies"] if row["policy"] == name), None)
    if setting is None or live_version is None or not version.isdecimal() or int(version) == live_version:
        return []
    detail = f"{setting.path} has `recommend` draw from version {version}, and version {live_version} is live"
    return [{"check": "live", "severity": "info", "subject": f"policy {name}", "detail": detail}]


def status_view(result: app.status.Status) -> View:
    """Return the state of a store as a table of its policies, with lines and tables about the rest above and below."""
    counts_by_noun = {"arm": result["arms"], "user": result["users"], "session": result["sessions"]}
    counts_by_noun |= {"decision": result["decisions"], "event": result["events"]}
    size_text = ", ".join(quantity(number, noun) for noun, number in counts_by_noun.items())
    wait_counts, counts = result["waiting"], result["events_by_hour"]
    immature_text = quantity(wait_counts["immature"], "immature decision")
    title = [
        f"{result['at']}, schema {result['revision']}: {size_text}",
        f"events by hour, the last 24: {sparkline(counts)}  {sum(counts):,}, at most {max(counts):,} an hour",
        f"waiting: {immature_text}, {quantity(wait_counts['unsettled'], 'unsettled slot')}",
        f"last training: {_training_text(result['training'])}; last doctor: {doctor_text(result['doctor'])}",
    ]
    notes: list[str | View] = [row["answer"] for row in result["policies"] if row["answer"] is not None]
    notes += [_waiting_sentence(row) for policy in result["policies"] if (row := policy["waiting"]) is not None]
    notes += [row["ramp"]["why"] for row in result["routes"] if row["ramp"]]
    notes += [f"{row['experiment']}: {holdout_sentence(row)}" for row in result["ramps"] if row["sentence"]]
    notes += [holdout_sentence(row) for row in result["holdouts"]]
    notes += [_best_sentence(result["best"], result)] if result["best"] is not None else []
    for rows, columns in ((result["routes"], ROUTE_COLUMNS), (result["experiments"], EXPERIMENT_COLUMNS)):
        if rows:
            notes += [*([""] if notes else []), View.select(rows, columns, drop=columns[-2:1:-1])]
    warnings = [*map(finding_line, result["warnings"])]
    notes += ["", *warnings] if notes and warnings else warnings
    return View.select(
        result["policies"], POLICY_COLUMNS, title=title, notes=notes, drop=POLICY_COLUMNS[3:5] + POLICY_COLUMNS[1:2]
    )


def _waiting_sentence(row: app.status.WaitingVersion) -> str:
    """Return a sentence about a version that is not live. It names the command that makes the version live. If the gate
    (the test before a version goes live) refused the version, it names the command that shows the version instead."""
    name, start_text = row["version"], short_times(row["since"])[:16]
    if row["passed"] is False:
        return f"{row['answer']}; kept since {start_text}, not live: `rlrec policy show {name}` shows it"
    subject = f"{row['answer']}; it" if row["answer"] else name
    if row["rolled_back_at"] is not None:
        rolled_back_at = short_times(row["rolled_back_at"])[:16]
        return f"{subject} was rolled back on {rolled_back_at}: `rlrec policy promote {name}` makes it live again"
    return f"{subject} has waited since {start_text}: `rlrec policy promote {name}` makes it live"


def _best_sentence(record: dict[str, Any], result: app.status.Status) -> str:
    """Return the sentence about the best known policy, with the time of the evaluation. If a policy or a route has
    changed since that time, the sentence names the command that evaluates again, in place of a command that makes the
    policy serve."""
    changes = {row["live_since"] for row in result["policies"]} | {row["since"] for row in result["routes"]}
    changes |= {row["since"] for policy in result["policies"] if (row := policy["waiting"]) is not None}
    # changes of the same time, as a fixed --now gives them, count if they have done what the sentence advises
    done = [f"promote {row['policy']}@{row['live']}`" for row in result["policies"]]
    done += [f"route set {row['route']} --to {row['policy']}`" for row in result["routes"]]
    if max(changes) <= record["at"] and not any(command in record["sentence"] for command in done):
        return f"{record['sentence']} (as of {_minute_text(record)})"
    claim, end, _ = record["sentence"].partition("): ")
    stale_clause = f"policies changed since then: `rlrec evaluate uniform --reward {record['reward']}` looks again"
    return f"{claim}{end[:1]} (as of {_minute_text(record)}; {stale_clause})"


def finding_line(row: Mapping[str, Any]) -> str:
    """Return a finding (something that may be wrong in the store) as one line."""
    return f"{row['severity']} {row['check']}, {row['subject']}: {row['detail']}"


def holdout_sentence(row: app.status.HoldoutStatus) -> str:
    """Return a sentence about a holdout or a ramp of a route."""
    if row["sentence"] is None:
        return f"{row['route']} has a holdout: `rlrec experiment show {row['experiment']}` compares with it"
    source = f"as of {short_times(str(row['at']))[:16]}; `rlrec experiment show {row['experiment']}` looks again"
    return f"{row['sentence']} ({source})"


def _training_text(run: dict[str, Any] | None) -> str:
    if run is None:
        return "never"
    return (
        f"{run['policy']}@{run['version']} at {_minute_text(run)}, {'promoted' if run['promoted'] else 'not promoted'}"
    )


def doctor_text(run: dict[str, Any] | None) -> str:
    """Return a text on what the last run of `rlrec doctor` found, or "never" if there was no run (`run` is None)."""
    if run is None:
        return "never"
    return f"{quantity(run['errors'], 'error')}, {quantity(run['warnings'], 'warning')} at {_minute_text(run)}"


def _minute_text(run: dict[str, Any]) -> str:
    return short_times(run["at"])[:16]
