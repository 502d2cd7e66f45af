"""rlrec train-pg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.output.cells import cell
from rlrec.cli.output.output import Show, View
from rlrec.cli.program import app
from rlrec.cli.program.files import plot_option, save_plot
from rlrec.cli.program.shared import NOTHING_STORED, Store, by_name, conclude, notice, stored, suggest_next
from rlrec.cli.program.workers import workers_options
from rlrec.cli.text.values import NUMBER, PAIR, TIME, Integer, Parsed, parse_number
from rlrec.directions import gate_against
from rlrec.errors import CheckFailed, InputError, quantity

if TYPE_CHECKING:
    from rlrec.app.judging.evaluate import Workers

CLIP = Parsed("number|none", lambda text: None if text == "none" else parse_number(text))


@click.command("train-pg")
@click.argument("reference", metavar="NAME")
@click.option(
    "--log", metavar="FILTER",
    help="Filter of the log, e.g. policy=home, or parquet:DIR[,FILTER] [default: sessions of all policies].",
)  # fmt: skip
@click.option("--since", type=TIME, metavar="TIME", help="Sessions that began at this time or later.")
@click.option("--gamma", type=NUMBER, default=1.0, show_default=True, help="Discount of the return per step, 0 to 1.")
@click.option(
    "--discounted/--undiscounted", default=True, show_default=True,
    help="Whether step t counts gamma^t in the gradient. With it the discounted return of a visit from its start is "
    "maximised, which is what estimates estimate; without it later steps count as much as the first, and no such "
    "quantity is maximised exactly.",
)  # fmt: skip
@click.option(
    "--baseline", default="value", show_default=True, metavar="none|mean|value|rloo",
    help="What is subtracted from a return: nothing; the mean; a ridge regression on the state, cross-fitted; the mean "
    "of the other visits of the set at that step.",
)  # fmt: skip
@click.option("--epochs", type=Integer(1, 10_000), default=60, show_default=True, help="Passes over the log, at most.")
@click.option(
    "--lr",
    type=NUMBER,
    default=0.005,
    show_default=True,
    help="Size of a natural step, at first: how much it changes the log probability of what was shown.",
)
@click.option(
    "--batch", type=Integer(1, 1_000_000), default=500, show_default=True, help="Visits of one step, at most."
)
@click.option("--entropy", type=NUMBER, default=0.0, show_default=True, help="Reward of a nat of entropy.")
@click.option(
    "--clip-weight", type=CLIP, default="20", show_default=True,
    help="Largest importance weight, or none. Clipping moves the optimum: the share of the gradient that it removes is "
    "reported.",
)  # fmt: skip
@click.option(
    "--weights", default="auto", show_default=True, metavar="auto|slot|slate",
    help="How slates of several positions are weighed: by their joint probability (slate), or slot by slot, each given "
    "those above (slot). A slot earns its own reward, and of what follows it as much as batches of visits agree on. "
    "auto: by slot where slots earn at least a tenth of the rewards, or the log leaves less than half of the joint "
    "weights effective; else by slate.",
)  # fmt: skip
@click.option(
    "--top-k", type=Integer(0, 1_000), default=0, show_default=True, metavar="K",
    help="Treat every slot of a slate on its own, as one of K drawn with replacement [0: as --weights says].",
)  # fmt: skip
@click.option(
    "--position", metavar="CURVE",
    help="With --top-k: divide what a slot earned by the examination of its position [default: the policy's curve].",
)  # fmt: skip
@click.option("--kl-stop", type=NUMBER, help="End when the mean KL from the version it started from exceeds this.")
@click.option(
    "--patience", type=Integer(1, 10_000), default=20, show_default=True,
    help="End after this many epochs without a better one.",
)  # fmt: skip
@click.option(
    "--shaping", "shapings", type=PAIR, multiple=True, metavar="FEATURE=WEIGHT",
    help="Potential of a state: a weight on one of its features, such as session:reward; repeatable. Estimates use "
    "the unshaped reward.",
)  # fmt: skip
@click.option("--seed", type=Integer(0, 2**63 - 1), help="Seed of the order of visits [default: random].")
@click.option(
    "--min-new", type=Integer(0), default=0, show_default=True,
    help="Do nothing, and exit 0, with fewer new sessions since the policy was trained last.",
)  # fmt: skip
@click.option("--from-version", type=Integer(1), metavar="V", help="Where to start [default: the live version].")
@click.option(
    "--promote", default="never", show_default=True, metavar="never|if-better|always",
    help="Let the new version go live: if-better if the gate says so, else exit 3.",
)  # fmt: skip
@click.option(
    "--dry-run", is_flag=True, help="Train and judge, and store nothing: no version, and no look of the gate."
)
@plot_option
@workers_options
@stored(
    'rlrec train-pg visits --promote if-better --min-new 1000 || echo "not better"',
    "rlrec train-pg visits --gamma 0.95 --entropy 0.01 --seed 1 --json",
    "rlrec train-pg visits --plot curve.svg",
)
def train_pg(
    store: Store,
    show: Show,
    reference: str,
    shapings: Sequence[tuple[str, str]],
    plot: str | None,
    workers: Workers,
    **request: Any,
) -> None:
    """Train a policy gradient on logged sessions, and judge it.

    Makes a new version of a policy of kind gradient, by REINFORCE with a baseline: gains are weighted by the policy's
    probability over the logged propensity, of slates, or of slots given those above (--weights). It uses all visits
    that have ended and whose reward windows are over, whichever policy served them. 60 % of the users train, 20 %
    choose the epoch (by the lower bound of its gain, among those whose effective sample size is large enough for the
    gate), and 20 % are the gate: they judge the result once, and were not trained on. An epoch that goes beyond what
    the 20 % support is taken back, and steps are halved.

    One run is one step of policy improvement over the policies that logged, since later rewards in the log depend on
    THEIR later decisions. Log, train, promote, and log again to get further.

    The gate's `estimate` is the new version's value above that of the live one, as `evaluate --log split=gate` has
    them: of a visit (estimator wdr), or where slots are weighed of a slot, in the states of the log (dr). The
    20 % that choose the epoch tell whether the new version is near what was logged: 5 % of them must be effective, and
    some more for chance. Then 50 effective visits of the gate are enough. Where slots are weighed, whole visits of the
    gate must not say that it is worse (`visits`). The visits of the bandit that the live version is a copy of teach,
    but neither choose nor judge, once it has enough of its own.
    `lower` is a bound that is wrong with probability `alpha`. All runs of a year together are wrong with 5 %: the j-th
    has alpha = 0.05 x 6 / (pi^2 j^2). Every run uses the gate; if-better does only where the 20 % for tuning show a
    gain. Where every epoch is worse than the start, the best one still makes a version, which `--promote always` makes
    live."""
    options = app.train.Request(name=reference, shaping=_shaping(shapings), **request)
    result = app.train.train(store, options, workers, progress=notice)
    why, training = result["why"], result.pop("training", None)
    refused = why is not None and result["trained"] and options.promote == "if-better"
    noted = [] if why is None or refused else [why]
    view = _view(result) if result["trained"] else _untrained(result)
    show(result, table=view._replace(notes=[*view.notes, *noted]), flat=[result])
    for text in noted if show.format != "table" else []:
        notice(text)
    if result["trained"]:
        conclude(show, _sentence(result))
        if plot is not None and training is not None:
            live = result["promoted"]
            save_plot(plot, app.curves.learned(result["policy"], result["version"], training, live=live))
        if not options.dry_run:
            _suggest_next(show, result)
    if options.dry_run:
        notice(NOTHING_STORED)
    if refused:
        hint = "it is stored; more sessions narrow the interval, and `rlrec policy show` has the figures"
        raise CheckFailed(f"version {result['version']} of {result['policy']} was not promoted: {why}", hint=hint)


def _view(result: Mapping[str, Any]) -> View:
    """The gain of the new version over the live one on the visits that chose its epoch, and on those of the gate."""
    best = "none better than the start" if not result["best_epoch"] else f"the best {result['best_epoch']}"
    title = [
        f"{result['at']}: policy {result['policy']}, version {result['version']} from version {result['parent']}, "
        f"{_fate(result)}: trained on "
        f"{quantity(result['sessions'], 'session')}, epochs {result['epochs']}, {best}; "
        f"weights by {result['weights']}, seed {result['seed']}",
    ]
    names = ("sessions", "gain", "lower", "upper", "ess", "verdict", "reasons")
    tune = [None, result["tune_estimate"], result["tune_lower"], None, result["tune_ess"], None, None]
    gate = [result[name] for name in ("gate_sessions", "estimate", "lower", "upper", "ess", "verdict", "reasons")]
    unit = "session" if result["visits"] is None else "slot"
    against = gate_against(result)
    values = f"value {cell(result['value'])} per {unit} against {cell(result['live_value'])} of {against}"
    notes = [values] if result["candidate"] else []
    rows = [["tune", *tune], *([] if result["candidate"] is None else [["gate", *gate]])]
    notes += result["passed_by"]
    return View(["split", *names], rows, title=title, notes=notes, drop=("reasons", "sessions"))


def _fate(result: Mapping[str, Any]) -> str:
    if result["promoted"]:
        return "live, but not for all callers" if result["passed_by"] else "live now"
    return "kept, not live"


def _untrained(result: Mapping[str, Any]) -> View:
    """The answer where too few sessions are new, in a line."""
    return View.of([{**result, "new sessions": result["sessions"]}], ("at", "policy", "trained", "new sessions"))


def _sentence(result: Mapping[str, Any]) -> str:
    """The fate of the new version, in plain words: first what decided it."""
    from rlrec.app.evaluation.comparisons.paired_gate import refusal

    new, fate = f"{result['policy']}@{result['version']}", _fate(result)
    if result["candidate"] is None:
        return f"{new} was not judged by the gate; {fate}."
    lower, why = result["lower"], refusal(result)
    of_slot = "" if result["visits"] is None else " a slot"
    bound = "" if lower is None else f", {100 * (1 - result['alpha']):.3g} % above {cell(lower)}"
    against = gate_against(result) if result["against"] is None else f"{result['policy']}@{result['against']}"
    verdict = "is surely better" if why is None else "is not surely better"
    if why is None and result["verdict"] == "weak":
        verdict = f"is better, on weak evidence ({', '.join(result['reasons'])}),"
    reason = "" if why is None else f"{why}; "
    return f"{new} {verdict} than {against}: {reason}gain {cell(result['estimate'])}{of_slot}{bound}; {fate}."


def _suggest_next(show: Show, result: Mapping[str, Any]) -> None:
    from rlrec.app.evaluation.comparisons.paired_gate import refusal

    name, new = result["policy"], f"{result['policy']}@{result['version']}"
    if result["promoted"]:
        suggest_next(show, f"policy rollback {name}", "goes back, should it disappoint")
    elif result["candidate"] is not None and refusal(result) is None:
        suggest_next(show, f"policy promote {new}", "lets it serve")
    else:
        suggest_next(show, f"policy show {new} --curve", "shows what became of each epoch")


def _shaping(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for key, value in by_name(pairs, "shaping by").items():
        try:
            weights[key] = parse_number(value)
        except InputError as error:
            raise InputError(f"shaping by {key!r}: {error.message}", hint="write FEATURE=NUMBER") from None
    return weights
