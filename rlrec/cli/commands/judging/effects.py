"""This module holds the command `rlrec effects`, which shows how much reward an arm adds now and in the long run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.files import plot_option, save_plot
from rlrec.cli.program.shared import GroupedCommand, Store, level_group, option_group, takes_read_store, workers_options
from rlrec.cli.text.text import View
from rlrec.cli.text.values import DURATION, NAME
from rlrec.errors import quantity
from rlrec.sentences import effect_sentence, pooled_sentence
from rlrec.times import format_duration

if TYPE_CHECKING:
    from rlrec.app.evaluation.passes.arm_effects import GroupEffects

ARM_COLUMNS = (
    "arm", "looks", "now", "later", "returning", "long_run", "lower", "upper", "shrunk", "shrunk_lower", "shrunk_upper",
    "rank_now", "rank",
)  # fmt: skip


@click.command(cls=GroupedCommand, epilog="`rlrec help visits` shows them at work, and a policy that learns them.")
@option_group(
    "What to tell",
    click.option("--reward", type=NAME, metavar="NAME", help="Reward definition [default: what all policies learn]."),
    click.option(
        "--horizon", "horizon_us", type=DURATION,
        help="Time within which people come back [default: the window of a reward that weighs `return`, else 7d].",
    ),
    click.option("--by", metavar="GROUPS", help="Effects by policy, version, variant, day or a FIELD of the context."),
)  # fmt: skip
@option_group(
    "Which log",
    click.option("--log", metavar="FILTER", help="Filter of the log, or parquet:DIR, as in `evaluate` [default: all]."),
    click.option("--position", metavar="CURVE", help="Examination of positions [default: as clicks of the log say]."),
)  # fmt: skip
@level_group
@workers_options
@plot_option
@takes_read_store(
    "rlrec effects --horizon 3d --plot effects.svg", "rlrec effects --log policy=home --by version --json"
)
def effects(store: Store, show: Show, plot: str | None, workers: app.evaluate.Workers, **request: Any) -> None:
    """An effect is what one full look at an arm adds, compared with the average of this log: to the reward of the page
    (now), of later pages of the visit (later), and to the probability that the person comes back in time (returning).
    long_run adds these; a return counts with its reward and what the person earned afterwards. looks counts the looks
    at the arm.

    In the log of a better policy, each arm has less to add. `shrunk` shrinks the three towards a prediction from the
    events per look (clicks, purchases; with 8 arms or more, if this predicts effects), else towards their means, and
    adds them: it may lie beyond long_run. With --by, a group is shrunk towards all groups together. Ranks are by
    `shrunk`, and `policy rebuild` of kind long-term learns it.

    Slots were drawn with known probabilities, so what was shown minus what was expected is random: no model of people
    is needed, and the logging policy may learn. Intervals are clustered by person."""
    result = app.effects.effects(store, app.effects.Request(**request), workers)
    save_plot(plot, lambda: app.figures.effects(result))
    show(result, table=effects_view(result, request["by"]))


def effects_view(result: app.effects.Result, by: str | None = None) -> View:
    """Return the effects of arms as a table, with sentences above it for each group of the log.

    `by` is the field that divides the log into groups, or None if the log is not divided."""
    groups, has_groups = result["groups"], len(result["groups"]) > 1 or by is not None
    title = []
    for group in groups:
        name = f"no {by}" if group["group"] is None else group["group"]
        label = f"{name}: " if has_groups else ""
        title += [
            label + effect_sentence(group["arms"], result["level"], has_groups=has_groups),
            label + _count_sentence(group),
        ]
    if result["left_out"]:
        text = quantity(result["left_out"], "page")
        title.append(f"{text} left out, whose logger has no probability of an arm at a position")
    title += [pooled_sentence(pooled_surfaces, result["log"])] if (pooled_surfaces := result["surfaces"]) else []
    horizon_note = ", as long as the log is" if result["horizon_s"] == result["log_s"] else ""
    if 2 * result["horizon_s"] > result["log_s"]:
        unit_s = 86_400 if result["log_s"] >= 3 * 86_400 else 3_600
        shorter_horizon = format_duration(max(1, int(result["log_s"] / 3 / unit_s)) * unit_s * 1_000_000)
        horizon_note += (
            f"; few visits of this log were watched for so long: `--horizon {shorter_horizon}` tells more surely"
        )
    title.append(
        f"reward {result['reward']}; back within {format_duration(int(result['horizon_s'] * 1e6))}{horizon_note}"
    )
    rows = [{"group": group["group"], **arm} for group in groups for arm in group["arms"]]
    return View.select(rows, ("group", *ARM_COLUMNS) if has_groups else ARM_COLUMNS, title=title)


def _count_sentence(group: GroupEffects) -> str:
    person_noun = "person" if group["returned"] is not None else "visitor"  # a user, or a session without one
    counts = ((group["pages"], "page"), (group["visits"], "visit"), (group["persons"], person_noun))
    count_texts = [quantity(number, noun) for number, noun in counts]
    if group["returned"] is not None and group["return_value"] is not None:
        count_texts.append(
            f"{group['returned']:.0%} of the visits were followed by another, worth {group['return_value']:.3g}"
        )
    return ", ".join(count_texts)
