"""This module holds the command `rlrec train-pg`, which trains a policy gradient on logged sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.output.tables import cell
from rlrec.cli.program import app
from rlrec.cli.program.files import plot_option, save_plot
from rlrec.cli.program.shared import (
    HOW_TO_RUN,
    NOTHING_STORED,
    GroupedCommand,
    Store,
    mapping_by_name,
    notice,
    option_group,
    print_sentences,
    suggest_next,
    takes_store,
    workers_options,
)
from rlrec.cli.text.text import View
from rlrec.cli.text.values import NUMBER, PAIR, TIME, Integer, ParsedType, parse_number
from rlrec.errors import CheckFailed, InputError, quantity
from rlrec.sentences import gate_against, gate_claim, is_weak

LEAST_USERS = 100  # of another policy, for a sentence that says that it earned more
CLIP = ParsedType("number|none", lambda text: None if text == "none" else parse_number(text))


@click.command(
    "train-pg",
    cls=GroupedCommand,
    epilog="`rlrec help train-pg` explains the gate, the splits and every option.",
)  # fmt: skip
@click.argument("reference", metavar="NAME")
@option_group(
    "Which log",
    click.option("--log", metavar="FILTER", help="As in `evaluate` [default: loggers with enough evidence]."),
    click.option("--since", type=TIME, metavar="TIME", help="Only sessions that began at this time or later."),
    click.option(
        "--min-new", type=Integer(0), default=0, show_default=True, metavar="N",
        help="If fewer sessions are new, do nothing.",
    ),
)  # fmt: skip
@option_group(
    "What to maximise",
    click.option("--gamma", type=NUMBER, default=1.0, show_default=True, help="Discount per step, 0 to 1."),
    click.option("--discounted/--undiscounted", default=True, show_default=True, help="Step t counts gamma^t."),
    click.option("--entropy", type=NUMBER, default=0.0, show_default=True, help="Bonus per nat of entropy."),
    click.option(
        "--shaping", "shapings", type=PAIR, multiple=True, metavar="FEATURE=WEIGHT",
        help="Shaping potential of a state; repeatable.",
    ),
)  # fmt: skip
@option_group(
    "Estimated gradient",
    click.option(
        "--baseline", default="value", metavar="KIND",
        help="Subtracted: none, mean, value (default), rloo.",
    ),
    click.option("--weights", default="auto", show_default=True, metavar="KIND", help="By slate, slot or auto."),
    click.option(
        "--clip-weight", type=CLIP, default="20", show_default=True, metavar="NUMBER",
        help="Largest importance weight, or none.",
    ),
    click.option("--no-correction", is_flag=True, help="No weights, as if the policy had logged everything."),
    click.option(
        "--top-k", type=Integer(0, 1_000), default=0, show_default=True, metavar="K",
        help="Each slot as one of K draws with replacement.",
    ),
    click.option("--position", metavar="CURVE", help="With --top-k [default: the policy's curve]."),
)  # fmt: skip
@option_group(
    HOW_TO_RUN,
    click.option("--from-version", type=Integer(1), metavar="V", help="Where to start [default: the live one]."),
    click.option(
        "--epochs", type=Integer(1, 10_000), default=60, show_default=True, metavar="N",
        help="Passes, at most.",
    ),
    click.option("--lr", type=NUMBER, default=0.005, show_default=True, help="First step size."),
    click.option(
        "--batch", type=Integer(1, 1_000_000), default=500, show_default=True, metavar="N",
        help="Visits per step.",
    ),
    click.option("--kl-stop", type=NUMBER, help="Stop beyond this mean KL from the start."),
    click.option(
        "--patience", type=Integer(1, 10_000), default=20, show_default=True, metavar="N",
        help="Stop after this many epochs without a better one.",
    ),
    click.option("--seed", type=Integer(0, 2**63 - 1), metavar="N", help="Order of visits [default: random]."),
)  # fmt: skip
@workers_options
@option_group(
    "Gate",
    click.option(
        "--promote", default="never", metavar="WHEN",
        help="Goes live never (default), if-better (else exit 3), always.",
    ),
    click.option("--bold", is_flag=True, help="Go beyond what the log supports: try it by a ramp."),
    click.option("--cluster", metavar="UNIT", help="Of the gate: user or session [default: user, else session]."),
    click.option("--dry-run", is_flag=True, help="Train and judge, and store nothing."),
)  # fmt: skip
@plot_option
@takes_store(
    'rlrec train-pg visits --promote if-better --min-new 1000 || echo "not better"',
    "rlrec train-pg visits --gamma 0.95 --entropy 0.01 --seed 1 --json",
)
def train_pg(
    store: Store, show: Show, reference: str, shapings: Sequence[tuple[str, str]], plot: str | None,
    workers: app.evaluate.Workers, **request: Any,
) -> None:  # fmt: skip
    """Makes a new version of a policy of kind gradient, from all visits that have ended, of any policy. 60 % of the
    users are trained on, 20 % choose the epoch, and 20 % are the gate that judges the result."""
    options = app.train.Request(name=reference, shaping=_shaping_weights(shapings), **request)
    result = app.train.train(store, options, workers, progress=notice)
    refusal_reason, training = result["why"], result.pop("training", None)
    is_refused = refusal_reason is not None and result["trained"] and options.promote == "if-better"
    reason_notes = [] if refusal_reason is None or is_refused else [refusal_reason]
    discount_clause = _discount_clause(result, options.gamma)
    view = _gain_view(result, discount_clause)
    show(result, table=view._replace(notes=[*view.notes, *reason_notes]), flat=[result])
    for text in reason_notes if show.format != "table" else []:
        notice(text)
    if result["trained"]:
        rival_sentence = [] if options.dry_run else _rival_sentence(result, discount_clause)
        print_sentences(show, _result_sentence(result), *rival_sentence)
        if show.format == "table" and (
            best_sentence := app.best_policy.find(store, by="train-pg", policy=result["policy"])
        ):
            print_sentences(show, best_sentence)
        policy_version, is_live = (result["policy"], result["version"]), result["promoted"]
        save_plot(
            None if training is None else plot, lambda: app.figures.training(*policy_version, training, live=is_live)
        )
        if not options.dry_run:
            _suggest_command(show, result)
    if options.dry_run:
        notice(NOTHING_STORED)
    if is_refused:
        wait_clause = "" if result["candidate"] is None else "; more sessions narrow the interval"
        hint = f"it is stored{wait_clause}, and `rlrec policy show` has the figures"
        message = f"version {result['version']} of {result['policy']} was not promoted: {refusal_reason}"
        raise CheckFailed(message, hint=hint)


def _gain_view(result: Mapping[str, Any], discount_clause: str) -> View:
    """Return a table of how much the new version gains over the live version. The first row is estimated on the visits
    that chose the epoch, and the second row on the visits of the gate (the test before a version goes live). If too few
    sessions are new, there is no new version, and a single row says so."""
    if not result["trained"]:
        return View.select(
            [{**result, "new sessions": result["sessions"]}], ("at", "policy", "trained", "new sessions")
        )
    best_clause = "none better than the start" if not result["best_epoch"] else f"the best {result['best_epoch']}"
    title = [
        f"{result['at']}: policy {result['policy']}, version {result['version']} from version {result['parent']}, "
        f"{_promotion_phrase(result)}: trained on "
        f"{quantity(result['sessions'], 'session')}, epochs {result['epochs']}, {best_clause}; "
        f"weights by {result['weights']}, seed {result['seed']}",
    ]
    gate_figures = ("sessions", "gain", "lower", "upper", "ess", "verdict", "reasons")
    tune_row = [None, result["tune_estimate"], result["tune_lower"], None, result["tune_ess"], None, None]
    gate = [result[name] for name in ("gate_sessions", "estimate", "lower", "upper", "ess", "verdict", "reasons")]
    unit = "session" if result["visits"] is None else "slot"
    reference_name = gate_against(result)
    value_text = f"value {cell(result['value'])} per {unit} against {cell(result['live_value'])} of {reference_name}"
    notes = [] if result["value"] is None else [f"{value_text}{discount_clause}"]
    rows = [["tune", *tune_row], *([] if result["candidate"] is None else [["gate", *gate]])]
    notes += result["passed_by"]
    return View(["split", *gate_figures], rows, title=title, notes=notes, drop=("reasons", "sessions"))


def _discount_clause(result: Mapping[str, Any], gamma: float) -> str:
    """Return a clause for values of visits that says how rewards of later steps are discounted."""
    is_by_slot = result["trained"] and result["weights"] == "slot"
    return "" if gamma == 1 or is_by_slot else f" (the reward of step t counts {gamma:g}^t)"


def _promotion_phrase(result: Mapping[str, Any]) -> str:
    if result["promoted"]:
        return "live, but not for all callers" if result["passed_by"] else "live now"
    return "kept, not live"


def _result_sentence(result: Mapping[str, Any]) -> str:
    """Return a sentence that says whether the new version was promoted, and why."""
    from rlrec.app.evaluation.comparisons.paired_gate import refusal_sentence

    new_version, promotion_phrase = f"{result['policy']}@{result['version']}", _promotion_phrase(result)
    if result["candidate"] is None:
        return f"{new_version} was not judged by the gate; {promotion_phrase}."
    rival = None if result["against"] is None else f"{result['policy']}@{result['against']}"
    if (reason := refusal_sentence(result, rival)) is not None:
        return f"{new_version}: {reason}; {promotion_phrase}."
    return f"{gate_claim(result, new_version, rival=rival).sentence}; {promotion_phrase}."


def _rival_sentence(result: Mapping[str, Any], discount_clause: str) -> list[str]:
    """Return a sentence about another policy of the log, if its visits earned surely more than the new version is
    estimated to earn. The list is empty without such a policy."""
    name, new_version, value = result["policy"], f"{result['policy']}@{result['version']}", result["value"]
    owners = [row["logger"].partition("@")[0] for row in result["loggers"]]
    clause = f"{new_version} is estimated to earn"
    if value is None and name in owners:
        logger_row = result["loggers"][owners.index(name)]
        value, clause = logger_row["value"], f"{logger_row['logger']} earned"
    for owner, row in zip(owners, result["loggers"], strict=True):
        is_sure = value is not None and row["value"] - 2 * row["std_error"] > value
        if owner != name and row["users"] >= LEAST_USERS and is_sure:
            unit = "slot" if result["weights"] == "slot" else "visit"
            command = f"rlrec experiment create {owner}-{name} --variant {owner}={owner} --variant {name}={new_version}"
            return [
                f"in this log, {row['logger']} earned {cell(row['value'])} a {unit}{discount_clause}, and {clause} "
                f"{cell(value)}; its users may be others, so `{command}` is the fair comparison."
            ]
    return []


def _suggest_command(show: Show, result: Mapping[str, Any]) -> None:
    from rlrec.app.evaluation.comparisons.paired_gate import refusal_sentence

    name, new_version = result["policy"], f"{result['policy']}@{result['version']}"
    if result["promoted"]:
        suggest_next(show, f"policy rollback {name}", "goes back, should it disappoint")
    elif result["candidate"] is not None and refusal_sentence(result) is None:
        if is_weak(result):
            suggest_next(show, "help experiments", "says how a few users try it first, since the evidence is weak")
        else:
            suggest_next(show, f"policy promote {new_version}", "makes it live")
    else:
        suggest_next(show, f"policy show {new_version} --curve", "shows what became of each epoch")


def _shaping_weights(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for key, value in mapping_by_name(pairs, "shaping by").items():
        try:
            weights[key] = parse_number(value)
        except InputError as error:
            raise InputError(f"shaping by {key!r}: {error.message}", hint="write FEATURE=NUMBER") from None
    return weights
