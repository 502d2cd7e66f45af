"""rlrec evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.output.cells import Figures, cell
from rlrec.cli.output.output import Show, View
from rlrec.cli.program import app
from rlrec.cli.program.files import plot_option, save_plot
from rlrec.cli.program.shared import Store, conclude, reading
from rlrec.cli.program.workers import workers_options
from rlrec.cli.text.values import NUMBER, Integer
from rlrec.directions import LOG_PRECISION, direction
from rlrec.errors import quantity

if TYPE_CHECKING:
    from rlrec.app.judging.evaluate import Workers

MODEL = click.Path(exists=True, dir_okay=False)
SHOWN = {
    "target": "target", "version": "version", "group": "group", "estimator": "estimator", "unit": "unit",
    "value": "value", "lower": "lower", "upper": "upper", "lift": "lift over served", "ess": "ess", "n": "rows",
    "verdict": "verdict", "reasons": "reasons",
}  # fmt: skip
DROP = ("version", "rows", "unit", "reasons", "ess", "lift over served")
VERDICTS = ("insufficient", "weak", "ok")


class _Command(click.Command):
    """A command whose help ends with the estimators there are."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from rlrec.app.evaluation import descriptions

        for unit, described in descriptions().items():
            with formatter.section(f"Estimators per {unit}"):
                formatter.write_dl(described)


def _joined(_ctx: click.Context, _param: click.Parameter, lists: tuple[str, ...]) -> str | None:
    """All the lists as one list; None where there is none."""
    return ",".join(lists) or None


@click.command(cls=_Command)
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option(
    "--estimator", "estimators", multiple=True, metavar="LIST", callback=_joined,
    help="Names from the list below, or the groups impression, session, slate (what needs no curve), all (slate only "
    "where pages are complete and longer than one slot); repeatable [default: ips,snips,dr; with --by arm: snips].",
)  # fmt: skip
@click.option(
    "--interval", default="bootstrap-t", show_default=True, metavar="KIND",
    help="bootstrap-t (with a weight above 20 of ips, snips, tis, wis and those with dr in their names per impression: "
    "no narrower than cressie-read), normal, or cressie-read.",
)  # fmt: skip
@click.option("--level", type=NUMBER, default=0.95, show_default=True, help="Confidence of the interval.")
@click.option(
    "--cluster", metavar="user|session|row",
    help="The unit that was randomised [default: the user where one is known, else the session].",
)  # fmt: skip
@click.option(
    "--log", metavar="FILTER",
    help="Filter of the log, e.g. policy=home,since=2026-01-01; keys: policy, version, experiment, variant, route "
    "(that decisions were asked for by), since, until and split (train, tune or gate); or "
    "parquet:DIR[,FILTER], a folder of `export-log --layout parquet` [default: all].",
)  # fmt: skip
@click.option(
    "--reward", metavar="NAME",
    help="Reward definition [default: what each policy learns; `uniform`: what those beside it learn, else those that "
    "served].",
)  # fmt: skip
@click.option(
    "--gamma", type=NUMBER, default=1.0, show_default=True, help="Discount per step of a session, between 0 and 1."
)
@click.option(
    "--by", metavar="FIELD",
    help="One estimate a group: position, step, policy, version, variant, day, arm (snips alone), or a context field; "
    "a session or a page as it begins, and not by position, step or arm.",
)  # fmt: skip
@click.option("--greedy", is_flag=True, help="The target without its exploration (floor, epsilon, temperature).")
@click.option(
    "--reward-model", type=MODEL, metavar="FILE",
    help="CSV arm,reward (or value,arm,reward) for estimators with a model q [default: fitted on the log].",
)  # fmt: skip
@click.option(
    "--position", metavar="CURVE",
    help="Let the model q of dm and dr be attraction of the arm x examination of the position, by this curve.",
)  # fmt: skip
@click.option("--reward-model-by", metavar="FIELD", help="The field of the context that `value` in the file means.")
@click.option(
    "--reward-model-hash", type=Integer(0), default=0, metavar="COLUMNS",
    help="Let each arm have a weight of the contexts' words and values in the model q, hashed into so many columns: a "
    "power of two up to 262144 [default: one weight for all arms, 64 columns].",
)  # fmt: skip
@click.option(
    "--target-samples", type=Integer(0), default=1_000, show_default=True, metavar="N",
    help="Pages simulated in each context, where the probability of an arm at a position has no closed form (target "
    "of model=shared Thompson): unbiased. Per slate also 32 in each decision of a target that reads the session. "
    "Lists of candidates drawn in each context for a two-stage target, where the log has none. "
    "0: impressions are weighed by the slate down to them, iips, pbm and interpol leave such pages out, and two-stage "
    "targets are judged on logs with lists only.",
)  # fmt: skip
@click.option(
    "--seed", type=Integer(0), default=0, show_default=True, help="Seed of the bootstrap and of simulated pages."
)
@plot_option
@workers_options
@reading(
    "rlrec evaluate home uniform --plot home.svg",
    "rlrec evaluate home@2 --log policy=home,since=2026-01-01 --by position --json",
    "rlrec evaluate home uniform --estimator wdr,pdis --gamma 0.9 --log split=gate",
    "rlrec evaluate home uniform --estimator rips,sn-iips,pbm:home",
    "rlrec evaluate home uniform --jobs 2",
)
def evaluate(store: Store, show: Show, plot: str | None, workers: Workers, **request: Any) -> None:
    """Estimate from the log what policies would have earned.

    A target is a policy (as it stands now), NAME@V, a variant POLICY@EXPERIMENT/VARIANT, or the built-in `uniform`. All
    mature decisions of the store count, whoever served them. Every estimate carries an interval, an effective sample
    size (ess), a verdict (ok, weak, insufficient) and the reasons for it; a table explains those that occur.

    \b
    Units:
      impression    one slot shown: what the target would have earned there, in
                    the states that the logging policies brought about
      session       the discounted return of a visit that is over, its decisions
                    mature, whole and uncensored: weights are multiplied along
                    it, so what is shown now may change what comes later
      slate         the reward of a page: of its slots, and of events of the whole
                    page. Pages with a censored slot are left out and counted;
                    a log that shows only some positions of a page is refused.

    A target that reads the session (of kind gradient) is evaluated in the state recorded with each decision.

    \b
    Verdicts:
      insufficient  ess below 50; or fewer than 5 non-zero weighted rewards; or
                    k_hat above 0.7; or unsupported above 1 %; or no rows; or
                    ess_by_step below 50 or 5 % where the return comes; or
                    mean_weight 3 standard errors below 0.99; or arms shown more
                    often than their propensities allow
      weak          ess below 1,000 or below 5 % of the clusters; or ess x
                    reward_share below 30; or cluster_share above 20 %; or
                    mean_weight_z beyond 3; or the target learned from the log,
                    or was judged on candidates of another first stage;
                    or bias_bound above std_error; or no valid interval (dm)
      ok            none of these

    \b
    What --json has beside value, lower and upper (null: does not apply, or
    cannot be known):
      clusters, n    clusters and rows used;  ess is over clusters (of estimators
                     step by step: by the discounted mean of a visit's weights;
                     slot by slot: by the mean of a page's weights, or by
                     those of whole pages, where events of the whole page
                     brought a tenth of the reward: mean_weight, too)
      max_weight, mean_weight   of the importance weights; the mean is near 1
      top1_share     share of the top 1 % of rows in the sum of |weight x reward|
      unsupported    the target's probability on arms that the logger gave 0
      nonzero        rows whose weight x reward is not 0
      reward_share   weighted share of rows whose reward is not the default
      k_hat          shape of the tail of the weights, where they have no bound
      cluster_share  largest share of the estimate that one cluster carries
      mean_weight_z  standard errors between the mean weight and 1
      served         mean reward of the same rows as they were logged
      lift           by how much value is above served, as a share of it;
                     lift_lower, lift_upper and lift_std_error hold the doubt in
                     both, from the same clusters; null where the logged
                     average may be 0
      bias_bound     the largest bias that changed weights can cause
      safe_lower     lower minus bias_bound: what a gate should compare
      left_out       rows without a propensity, which weights cannot use; sessions
                     that are cut, censored or without one; pages that are
                     censored; all where a target needs a state that was not
                     recorded
      ess_by_step    per session: effective sample size over visits, step by step
      horizon        the first step at which that is below 5 % of the visits
      return_steps   number of the first steps that carry 90 % of the discounted
                     absolute return: the ess is the smallest of these steps
      supported_gamma   the largest --gamma whose return the log supports, where it
                     does not support this one (reason short-horizon)
      loggers        number of loggers that are weighed by the spread of their
                     weights, so that a log of heavy weights spoils no other: of
                     versions that learned nothing from the selected rows (at most
                     15; imported policies are taken to be such), each half of the
                     clusters by the other half; 1 where all rows count alike
      logger_weights how much a row of each counts, 1 on average (version null:
                     all others); with visitors that change over time these are
                     what the estimate is about
      simultaneous   by position: the intervals of all positions hold together
                     (max-t over the same bootstrap, else Bonferroni)
      curve, curve_age_days   the position curve that the estimate rests on (reason
                     position-model), and its age"""
    estimates = app.evaluate.evaluate(store, app.evaluate.Request(**request), workers)
    if plot is not None:
        save_plot(plot, app.figures.estimated(estimates, estimates[0].estimate.unit))
    rows = [row.to_json() for row in estimates]
    show(rows, table=view(rows, request["by"], app.evaluate.explained(estimates)))
    by = request["by"]
    conclude(show, *([_counts(rows, by)] if by else map(_sentence, _chosen(rows))))


def view(rows: Sequence[Mapping[str, Any]], by: str | None, notes: Sequence[str]) -> View:
    """A table for each unit."""
    views = []
    for unit in dict.fromkeys(row["unit"] for row in rows):
        of_unit = [row for row in rows if row["unit"] == unit]
        # a table rounds sample sizes, json and csv have every digit
        rounded = [
            {**row, "ess": None if row["ess"] is None else round(row["ess"]), "lift": _lift(row)} for row in of_unit
        ]
        table = View.of(rounded, [key for key in SHOWN if key != "group" or by], drop=DROP, fixed=True)
        headers = [f"by {by}" if key == "group" else SHOWN[key] for key in table.headers]
        views.append(table._replace(headers=headers, notes=_served(of_unit)))
    first, *others = views
    below = [item for view in others for item in ("", view._replace(notes=()), *view.notes)]
    return first._replace(notes=[*first.notes, *below, *([""] if others and notes else []), *notes])


def _served(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line with what the rows of these estimates earned as they were served, for each of the rewards."""
    by_reward: dict[str, list[float]] = {}
    for row in rows:
        if row["served"] is not None:
            by_reward.setdefault(row["reward"], []).append(row["served"])
    spans = {
        name: " to ".join(dict.fromkeys((cell(min(served)), cell(max(served))))) for name, served in by_reward.items()
    }
    several = len(by_reward) > 1
    texts = [f"{span} of reward {name}" if several else span for name, span in spans.items()]
    lines = [f"per {rows[0]['unit']}: the logged average is {', '.join(texts)}"] if texts else []
    return lines + ["the targets learn different rewards: --reward judges all by one"] * several


def _lift(row: Mapping[str, Any]) -> Figures | None:
    if row["lift"] is None:
        return None
    low, high = ("-" if bound is None else _percent(bound) for bound in (row["lift_lower"], row["lift_upper"]))
    return Figures(f"{_percent(row['lift'])} % [{low}, {high}]")


def _percent(share: float) -> str:
    """A share in percent: whole ones from 10 % on."""
    return f"{100 * share:+.{0 if abs(share) >= 0.1 else 1}f}".replace("-0.0", "+0.0")


def _chosen(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """For each target the estimate with the best verdict of those of the first unit; of equal ones the last, whose
    estimator does the most. One without a valid interval stands for no other."""
    chosen: dict[Any, Mapping[str, Any]] = {}
    of_unit = [row for row in rows if row["unit"] == rows[0]["unit"]]
    for row in [row for row in of_unit if row["std_error"] is not None] or of_unit:
        best = chosen.get(key := (row["target"], row["version"]))
        if best is None or VERDICTS.index(row["verdict"]) >= VERDICTS.index(best["verdict"]):
            chosen[key] = row
    return list(chosen.values())


def _counts(rows: Sequence[Mapping[str, Any]], by: str) -> str:
    """How much of the estimates by group can be relied on."""
    groups, verdicts = len({row["group"] for row in rows}), [row["verdict"] for row in rows]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in reversed(VERDICTS) if verdict in verdicts)
    return f"{quantity(len(rows), 'estimate')} by {by}, {quantity(groups, 'group')}: {counts}."


def _sentence(row: Mapping[str, Any]) -> str:
    """An estimate in plain words."""
    name = row["target"] if row["version"] is None else f"{row['target']}@{row['version']}"
    if row["verdict"] == "insufficient" or row["value"] is None:
        nothing = f"; no row earned anything by reward {row['reward']}" if row["served"] == 0 else ""
        return f"{name}: this log cannot tell ({', '.join(row['reasons'])}){nothing}"
    low, high = (f"{100 * row['level']:g} % {cell(row['lower'])}", cell(row["upper"]))
    text = f"{name} would earn {cell(row['value'])} per {row['unit']} ({low} to {high}, {row['estimator']})"
    if row["lift"] is not None and None not in (row["lift_lower"], row["lift_upper"]):
        sign = direction(row["lift_lower"], row["lift_upper"], within=LOG_PRECISION)
        words = {"equal": "equal to", "unsure": "not surely more or less than"}.get(sign, f"{sign} than")
        surely = "surely " if sign in ("more", "less") and row["verdict"] == "ok" else ""
        text += f": {surely}{words} the logged average ({_percent(row['lift'])} %)"
    return text + (f"; weak: {', '.join(row['reasons'])}" if row["verdict"] == "weak" else "")
