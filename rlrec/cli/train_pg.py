"""rlrec train-pg."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from rlrec.cli.output import Show
from rlrec.cli.shared import notice, printed, stored
from rlrec.cli.values import NUMBER, PAIR, TIME, AnyType, Integer, parse_number
from rlrec.errors import CheckFailed, InputError


class Clip(AnyType):
    """A number, or `none`."""

    name = "number|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        if value is None or isinstance(value, float):
            return value
        return None if value == "none" else NUMBER.convert(value, param, ctx)


@click.command("train-pg")
@click.argument("reference", metavar="NAME")
@click.option("--log", metavar="FILTER", help="Part of the log, e.g. policy=home [default: sessions of all policies].")
@click.option("--since", type=TIME, metavar="TIME", help="Sessions that began at this time or later.")
@click.option("--gamma", type=NUMBER, default=1.0, show_default=True, help="Discount of the return per step, 0 to 1.")
@click.option(
    "--discounted/--undiscounted", default=True, show_default=True,
    help="Whether step t counts gamma^t in the gradient. With it the discounted return of a visit from its start is "
    "climbed, of which estimates speak; without it later steps count as much as the first, and no such quantity is "
    "climbed exactly.",
)  # fmt: skip
@click.option(
    "--baseline", default="value", show_default=True, metavar="none|mean|value|rloo",
    help="What is subtracted from a return: nothing; the mean; a ridge regression on the state, cross-fitted; the mean "
    "of the other visits of the set at that step.",
)  # fmt: skip
@click.option("--epochs", type=Integer(1, 10_000), default=60, show_default=True, help="Passes over the log, at most.")
@click.option("--lr", type=NUMBER, default=0.005, show_default=True, help="Step size of Adam.")
@click.option("--batch", type=Integer(1, 1_000_000), default=500, show_default=True, help="Visits of one step.")
@click.option("--entropy", type=NUMBER, default=0.0, show_default=True, help="What a nat of entropy is worth.")
@click.option(
    "--clip-weight", type=Clip(), default="20", show_default=True,
    help="Largest importance weight, or none. Clipping moves the optimum: the share of the gradient that it takes is "
    "told.",
)  # fmt: skip
@click.option(
    "--top-k", type=Integer(0, 1_000), default=0, show_default=True, metavar="K",
    help="Take every slot of a page by itself, as one of K drawn with replacement [0: pages by their exact joint "
    "probability].",
)  # fmt: skip
@click.option("--kl-stop", type=NUMBER, help="End when the mean KL from the version it started from exceeds this.")
@click.option("--patience", type=Integer(1, 10_000), default=20, show_default=True, help="Epochs without a better one.")
@click.option(
    "--shaping", "shapings", type=PAIR, multiple=True, metavar="FEATURE=WEIGHT",
    help="Potential of a state, a weight on one of its features such as session:reward; repeatable. Estimates are of "
    "the unshaped reward.",
)  # fmt: skip
@click.option("--seed", type=Integer(0, 2**63 - 1), help="Seed of the sets of visits [default: random].")
@click.option(
    "--min-new", type=Integer(0), default=0, show_default=True,
    help="With fewer new sessions since the policy was trained last: do nothing, exit 0.",
)  # fmt: skip
@click.option("--from-version", type=Integer(1), metavar="V", help="Where to start [default: the live version].")
@click.option(
    "--promote", default="never", show_default=True, metavar="never|if-better|always",
    help="Let the new version go live: if-better if the gate says so, else exit 3.",
)  # fmt: skip
@printed
@stored
def train_pg(store: Any, show: Show, reference: str, shapings: Sequence[tuple[str, str]], **request: Any) -> None:
    """Train a policy gradient on logged sessions, and judge it.

    Makes a new version of a policy of kind gradient, by REINFORCE with a baseline: gains weighed by the policy's
    probability over the logged propensity. All visits that have ended and whose reward windows are over teach, whoever
    served them; 60 % of the users train, 20 % choose the epoch (by the lower bound of its gain, among those with an
    effective sample size of 100 or more), and 20 % are the gate: they judge the result once, and have taught nothing.

    One run is one step of policy improvement from the policies that logged: what came after a decision is what THEY
    brought about. Log, train, promote, and log again to get further.

    The gate's `estimate` is the new version's return of a session above that of the live one (estimator wdr, on the
    same visits, with a model of returns fitted on those that train: `evaluate` fits its own, and differs a little);
    `lower` is a bound that errs with probability `alpha`. All looks of a year together err with 5 %: the j-th has
    alpha = 0.05 x 6 / (pi^2 j^2). Every run looks, but if-better only where the 20 % for tuning promise a gain. Where
    every epoch is worse than the start, the best one still makes a version, and `--promote always` takes it.

    \b
    Examples:
      rlrec train-pg visits --promote if-better --min-new 1000 || echo "not better"
      rlrec train-pg visits --gamma 0.95 --entropy 0.01 --seed 1 --json
    """
    from rlrec.app import train as use_case

    asked = use_case.Request(name=reference, shaping=_shaping(shapings), **request)
    found = use_case.train(store, asked, progress=notice)
    why = found.pop("why", None)
    show(found)
    if why is not None:
        raise CheckFailed(
            f"version {found['version']} of {found['policy']} was not promoted: {why}",
            hint="it is stored; more sessions tell more, and `rlrec policy show` has the figures",
        )


def _shaping(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in pairs:
        if key in found:
            raise InputError(f"shaping by {key!r} is given twice")
        try:
            found[key] = parse_number(value)
        except InputError as error:
            raise InputError(f"shaping by {key!r}: {error.message}", hint="write FEATURE=NUMBER") from None
    return found
