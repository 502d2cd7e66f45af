"""This module holds the commands of `rlrec route`. A route is a name that callers use in place of a policy. It stays
the same when another policy serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import click

from rlrec.cli.commands.experiments import experiment
from rlrec.cli.commands.experiments.plan import METRIC
from rlrec.cli.output.output import Show
from rlrec.cli.output.tables import cell
from rlrec.cli.program import app
from rlrec.cli.program.shared import CommandGroup, Store, suggest_next, takes_read_store, takes_write_store
from rlrec.cli.text.text import View, truncate
from rlrec.cli.text.values import DURATION, NAME, NUMBER, ParsedType, parse_name, parse_percent
from rlrec.errors import CheckFailed, InputError, quantity
from rlrec.sentences import gate_claim
from rlrec.times import format_duration

if TYPE_CHECKING:
    from rlrec.app.evaluation.comparisons.declared import MetricName
    from rlrec.app.evaluation.comparisons.paired_gate import GateOptions, Guard, RouteGate

ROUTE_COLUMNS = ("route", "policy", "version", "experiment", "since", "live", "reference")
GATE_COLUMNS = (
    "estimator", "reward", "against", "estimate", "lower", "upper", "alpha", "n", "ess", "verdict", "reasons",
)  # fmt: skip
DROPPED_GATE_COLUMNS = ("alpha", "n", "reward", "against", "estimator")
GUARD_FIGURES = ("guard", "least", "estimator", "value", "lower", "verdict", "passed")
HISTORY_COLUMNS = ("at", "reference", "experiment", "by")

LATER_ROWS_HINT = "also counts what becomes mature after this, so that its figures can differ"
TO_HELP = "The policy to serve. POLICY follows its live version, POLICY@V stays with one."


def holdout_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about a holdout to a command. A holdout is a share of users that is kept apart for comparison."""
    share_option = click.option(
        "--holdout", type=experiment.SHARE, metavar="SHARE",
        help="Keep this share of its users apart permanently, 5% or 0.05, to measure what the route is worth.",
    )  # fmt: skip
    policy_option = click.option(
        "--holdout-policy", default="uniform", show_default=True, metavar="POLICY[@V]",
        help="The holdout gets a copy of this policy.",
    )  # fmt: skip
    return share_option(policy_option(command))


def parse_guard(text: str) -> Guard:
    """Return the guard that REWARD:-N% describes. At a gate (the test before a version goes live), it limits how far a
    reward may fall."""
    from rlrec.app.evaluation.comparisons.paired_gate import Guard

    name, colon, limit = text.rpartition(":")
    try:
        least = parse_percent(limit) if colon else 0.0
    except InputError:
        colon = ""
    if not colon or not name.strip() or not -1 < least < 1:
        hint = "write REWARD:-2%, between -100% and 100%; METRIC>=-2% guards a ramp (`rlrec route ramp`)"
        raise InputError(f"'{truncate(text)}' is not a guard", hint=hint)
    return Guard(name=parse_name(name.strip()), least=least)


def parse_steps(text: str) -> list[float]:
    """Return the shares of users in the steps of a ramp, from a text such as 5%,20%,100%. The shares must rise."""
    steps = [parse_percent(step.strip()) for step in text.split(",")]
    if not 0 < steps[0] < 1 or steps[-1] > 1 or sorted({*steps}) != steps:
        hint = "write shares that rise from above 0 up to 100 % at most, 5%,20%,100%; `route set` gives all at once"
        raise InputError(f"'{truncate(text)}' is no list of steps", hint=hint)
    return steps


STEPS = ParsedType("a%,b%,...", parse_steps)
GATE_OPTION_NAMES = ("guards", "reward", "log", "gamma", "cluster")  # options of the gate
GUARD = ParsedType("reward:-n%", parse_guard)
METRIC_OPTION = click.option(
    "--metric", "metrics", type=METRIC, multiple=True, metavar="METRIC[:REWARD]",
    help="What decides the ramp (`rlrec help outcomes`); repeatable [default: reward_per_unit as its policy learns].",
)  # fmt: skip


@click.group(cls=CommandGroup)
def route() -> None:
    """Callers write `rlrec recommend --policy ROUTE`."""


def _refuse_lone_policy(request: Mapping[str, Any]) -> None:
    if request["holdout"] is None and request["holdout_policy"] != "uniform":
        raise click.UsageError("--holdout-policy is for a holdout: give --holdout 5%, too")


@route.command()
@click.argument("name", type=NAME)
@click.option("--to", required=True, metavar="POLICY[@V]", help=TO_HELP)
@holdout_options
@takes_write_store("rlrec route create front --to home", "rlrec route create shop --to home --holdout 5%")
def create(store: Store, show: Show, **request: Any) -> None:
    """Create a route. Routes and policies share one namespace.

    With --holdout, an experiment `front-holdout` draws a share of the users once, by a digest of their keys (sessions
    without a user by that of the session). They always get `uniform`, or a copy of another policy, through every change
    of the route, and take part in no ramp. `rlrec experiment show front-holdout` compares the other users with them;
    `report` begins with this, and `status` repeats the last result."""
    _refuse_lone_policy(request)
    result = app.route.create(store, app.route.Request(**request))
    show(result)
    if result.get("created"):
        suggest_next(show, f"recommend --policy {result['route']} --session s1", "draws and logs a slate")


@route.command("set")
@click.argument("name", type=NAME)
@click.option("--to", metavar="POLICY[@V]", help=f"{TO_HELP} Without it, only a holdout begins.")
@holdout_options
@click.option(
    "--share", type=experiment.SHARE, metavar="SHARE",
    help="Begin a ramp: an experiment on this share of the route's users, 5% or 0.05.",
)  # fmt: skip
@METRIC_OPTION
@click.option(
    "--require", type=click.Choice(["if-better"]),
    help="Do it only if the gate finds it better than what the route serves, else exit 3.",
)  # fmt: skip
@click.option(
    "--guard", "guards", type=GUARD, multiple=True, metavar="REWARD:-N%",
    help="A reward that surely does not fall by more (relative difference); repeatable.",
)  # fmt: skip
@click.option("--reward", metavar="NAME", help="What better means.  [default: as served now]")
@click.option("--log", metavar="FILTER", help="Log for the gate.  [default: all of it]")
@click.option("--gamma", type=NUMBER, help="Discount per step, for the gate.  [default: 1]")
@click.option("--cluster", metavar="UNIT", help="user, session or row, for the gate.  [default: user, else session]")
@takes_write_store("rlrec route set front --to home@2", "rlrec route set front --to home@2 --share 5%")
def set_(store: Store, show: Show, require: str | None, **request: Any) -> None:
    """Switch a route to another policy or version, from the next decision on.

    With --share, the route keeps its policy, and an experiment gives the other one to a share of its users (sessions
    without a user are split by session): variants `current` and `candidate`, each with a copy of its belief that learns
    from its own decisions. `rlrec experiment show` compares them; `rlrec experiment stop NAME --promote candidate` ends
    it, and the route serves the belief that this variant has learned. Callers change nothing.

    The gate of --require (with guards, say --guard return:-2%) compares the two on the 20 % of users that training
    never uses, by a paired difference on the same visits. It uses `wdr` (whole visits) if one policy reads the session
    state, if rewards depend on what was shown earlier in the visit, or if they weigh returns; else `dr` (impressions).
    Pages are judged slot by slot, by `dr` in the states of the log; in the cases above, whole visits must also support
    the candidate, and must not say that it is worse (`visits`). You may look every night: all looks at one pair of
    versions (`pair`) err with probability `alpha`, the j-th pair of a year with 0.05 x 6 / (pi^2 j^2), all pairs with 5
    %; guards have 5 % per pair. The gate refuses if the log has too little evidence or lacks propensities, or if the
    candidate has learned from these visits. A guard holds if the lower bound of its relative difference is above the
    limit. `return` needs no definition: it is the share of visits after which the user begins another one within 7
    days.
    """
    _refuse_lone_policy(request)
    other_options = [name for name, value in {"--share": request["share"], "--require": require}.items() if value]
    if (request["to"] is None) == (request["holdout"] is None) or (request["to"] is None and other_options):
        raise click.UsageError("give either --to, with what the route is to serve, or --holdout without other options")
    if request["metrics"] and not request["share"]:
        raise click.UsageError("--metric is for a ramp: give --share, too")
    gate = _gate_options(require, {name: request.pop(name) for name in GATE_OPTION_NAMES})
    result = app.route.set_route(store, app.route.Request(gate=gate, **request))
    refusal = result.pop("why", None)
    show(result, table=_gate_view(result) if "gate" in result else None)
    if refusal is not None:
        hint = f"`rlrec route show {result['route']}` says what it goes on serving; a ramp (--share) tells more"
        raise CheckFailed(f"{request['to']} was not set: {refusal}", hint=hint)


@route.command()
@click.argument("name", type=NAME)
@click.option("--to", required=True, metavar="POLICY[@V]", help=TO_HELP)
@click.option("--steps", type=STEPS, required=True, metavar="A%,B%,...", help="Shares of the users, which rise.")
@click.option(
    "--hold", "hold_us", type=DURATION, default="2d", show_default=True, metavar="TIME",
    help="How long each step lasts at least.",
)  # fmt: skip
@METRIC_OPTION
@experiment.GUARD_OPTION
@takes_write_store("rlrec route ramp front --to home@2 --steps 5%,20%,50%,100% --guard 'visits>=-5%'")
def ramp(store: Store, show: Show, name: str, to: str, metrics: Sequence[MetricName], **schedule: Any) -> None:
    """Begin an automatic ramp: an experiment as of `route set --share`, whose share rises step by step.

    `rlrec route advance` takes the steps. A step lasts at least for --hold, and until `rlrec experiment show` has an
    answer and every guard is known to hold; until then the ramp waits, and says why. It takes the candidate back if a
    guard breaks, or if its reward per user is significantly less than that of `current`. The intervals are valid at
    every look: an equal candidate is taken back in 2.5 % of ramps (and in 5 % for each guard). A candidate need not be
    better to go on. The step 100% promotes it, like `rlrec experiment stop --promote`; without this step, the ramp
    stays at its last share. A larger share takes users only from `current`. If the candidate is taken back, what
    `current` has learned becomes the next version of its policy. `route rollback` and `experiment stop` end the ramp
    sooner.
    """
    if not schedule["hold_us"]:
        raise InputError("--hold is 0", hint="write how long each step lasts at least, 2d")
    request = app.route.Request(name=name, to=to, share=schedule["steps"][0], metrics=metrics, **schedule)
    result = app.route.set_route(store, request)
    flat = {key: value for key, value in result.items() if key != "ramp"}
    show(result, table=View([], [], title=_ramp_lines(result, request, schedule["hold_us"])), flat=[flat])


def _ramp_lines(result: app.route.RouteSummary, request: app.route.Request, hold_us: int) -> list[str]:
    """Return lines about a ramp that has started. A ramp serves a policy to more and more users, step by step.

    `hold_us` is the shortest time of a step, in microseconds."""
    ramp_state = result["ramp"]
    assert ramp_state is not None
    guards = " and ".join(ramp_state["guards"])
    steps = ", ".join(f"{100 * step:.12g}" for step in ramp_state["steps"])
    return [
        ramp_state["why"],
        f"candidate {request.to} against current {result['reference']}; steps of {steps} %, each for "
        f"{format_duration(hold_us)} at least",
        f"decided by {' and '.join(ramp_state['metric'])}; {f'guarded by {guards}' if guards else 'without a guard'}",
        f"`rlrec route advance {result['route']}`, from cron, takes the steps, or takes the candidate back",
    ]


@route.command()
@click.argument("name", type=NAME)
@takes_write_store("rlrec route advance front")
def advance(store: Store, show: Show, name: str) -> None:
    """Let the ramp of a route take its next step, or take its candidate back: for cron, as often as you like.

    It prints what it did, and when the next step may come. Every call also looks for losses. Exit 0 if the ramp goes
    on, waits or is over. Exit 3 once when the candidate is taken back, and at every call while its users are not split
    as defined: the ramp then stays as it is, and somebody must look into it."""
    result = app.ramp.advance(store, name)
    show(result, table=View([], [], title=[result["why"]]), flat=[result])
    if result["did"] in ("rolled-back", "blocked"):
        hint = LATER_ROWS_HINT if result["did"] == "rolled-back" else "has the figures"
        raise CheckFailed(result["why"], hint=f"`rlrec experiment show {result['experiment']}` {hint}")


def _gate_options(require: str | None, options: Mapping[str, Any]) -> GateOptions | None:
    """Return the options of the gate (the test before a version goes live), or None if there is no gate. Raises
    UsageError if such options are given without a gate.

    `require` is the value of --require, and `options` are the values of the other options, by name."""
    if require is None:
        typed_option = next((name for name, value in options.items() if value), None)
        if typed_option is not None:
            raise click.UsageError(f"--{typed_option.removesuffix('s')} is for the gate: give --require if-better, too")
        return None
    from rlrec.app.evaluation.comparisons.paired_gate import GateOptions

    return GateOptions(**{name: value for name, value in options.items() if value is not None})


@route.command("show")
@click.argument("name", type=NAME)
@takes_read_store("rlrec route show front")
def show_(store: Store, show: Show, name: str) -> None:
    """Show what a route serves, since when and why, and what it served before, newest first."""
    result = app.route.show(store, name)
    show(result, table=route_view(result))


def route_view(result: app.route.RouteSummary) -> View:
    """Return a table of the versions that a route has served. Lines above the table say which version the route serves
    now, and why."""
    history = result["history"]
    version_phrase = "the live version, now" if result["live"] else "version"
    served_text = f"{result['policy']}, {version_phrase} {result['version']}"
    if ramp_name := result["experiment"]:
        stop_command = f"`rlrec experiment stop {ramp_name}`"
        served_text = f"the variants of the ramp {ramp_name}, whichever version is live, until {stop_command}"
    title = [
        f"route {result['route']} serves {served_text}",
        f"since {result['since']}, by `{history[0]['by']}`",
        *([_gate_sentence(history[0]["gate"])] if history[0]["gate"] else []),
    ]
    if ramp_state := result["ramp"]:
        title.append(ramp_state["why"])
    if "holdout" in result:
        title.append(f"its holdout keeps users apart: `rlrec experiment show {result['holdout']}` compares with it")
    title += [
        f"in its shadow {row['shadow']} since {row['since']}: {quantity(row['decisions'], 'decision')}, "
        f"{row['weighed']:,} weighed, mean weight {cell(row['mean_weight'])}, ESS {cell(row['ess'])}"
        for row in result["shadows"]
        if row["until"] is None
    ]
    return View.select(history, HISTORY_COLUMNS, title=title)


def _gate_view(result: app.route.RouteSummary) -> View:
    """Return a table of what the gate (the test before a version goes live) found when it last looked at the log. A
    table of the guards stands below."""
    change_text = "was set" if result["set"] else "was not set"
    guards = [[cast(Mapping[str, Any], guard)[name] for name in GUARD_FIGURES] for guard in result["guards"]]
    notes = [View(GUARD_FIGURES, guards)] if guards else []
    title = [f"route {result['route']} {change_text}: it serves {result['reference']}"]
    if result["repeated"]:
        title.append("the gate has had the same look at the same rows before: it spends no error")
    if (visits := result["gate"]["visits"]) is not None:
        figures = {name: cell(value) for name, value in visits.items()}
        support_verb = "support" if visits["passed"] else "do not support"
        title.append(
            f"the gain is that of a slot; whole visits {support_verb} it: "
            "{estimate} a visit, {lower} to {upper}, by {estimator}, ess {ess}".format(**figures)
        )
    gate: dict[str, Any] = {**result["gate"]}
    if gate["verdict"] == "insufficient" and not gate["passed"]:  # a figure without support is not shown
        gate |= dict.fromkeys(("estimate", "lower", "upper"))
    return View.select([gate], GATE_COLUMNS, title=title, notes=notes, drop=DROPPED_GATE_COLUMNS)


def _gate_sentence(gate: RouteGate) -> str:
    rows_text = quantity(gate["n"] or 0, "row")
    guards_text = "".join(
        f", guard {guard['guard']} {100 * (guard['lower'] or 0):+.3g} % at least" for guard in gate["guards"]
    )
    figures = f"by {gate['estimator']} on {rows_text}, look {gate['candidate']} of the year{guards_text}"
    return f"gate: {gate_claim(gate).sentence}, {figures}"


@route.command("list")
@takes_read_store("rlrec route list")
def list_(store: Store, show: Show) -> None:
    """List routes with what they serve."""
    show(app.route.list_routes(store), columns=ROUTE_COLUMNS)


@route.command()
@click.argument("name", type=NAME)
@takes_write_store("rlrec route rollback front")
def rollback(store: Store, show: Show, name: str) -> None:
    """Serve again what the route served before its last change; each further call undoes one more. A ramp ends with it.
    A promotion by `experiment stop` is undone with it; one by `policy promote` only by `policy rollback`."""
    show(app.route.rollback(store, name))
