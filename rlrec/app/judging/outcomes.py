"""This module computes how often users or sessions came, whether they came again, and their rewards, by group."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from rlrec.app.evaluation.comparisons import interleaved, study_figures, unit_outcomes
from rlrec.app.evaluation.comparisons.study_figures import GROUPINGS, Study, StudyFigures
from rlrec.app.evaluation.passes.request import EmptyLog
from rlrec.app.experiments.plan import NewUnits
from rlrec.app.inputs import filters, lookup
from rlrec.app.log import reward_log
from rlrec.errors import InputError, quantity
from rlrec.ope.checks.reasons import REASONS, in_order
from rlrec.ope.intervals import intervals
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.upkeep import removals
from rlrec.times import format_time

MAX_NAMES = 2  # metrics that the explanation of a reason names at most


@dataclass(frozen=True, kw_only=True)
class Request:
    """This record holds the options of `outcomes`.

    by: one of BY, where None means variants if the request names an experiment, and no groups otherwise; rewards:
    names of rewards, where an empty list means the rewards that the variants learn, or the only reward that all
    policies learn, or `default`; adjust: whether to adjust by the time before the experiment; users: `new`,
    `returning` or `named` users, or None for all; age_us: how long after its beginning a user or session counts;
    entered_us: the time since which users or sessions must have come; metrics: the metrics to compute, or None for
    all; rival: the variant to compare with, where None means the first variant."""

    by: str | None = None
    experiment: str | None = None
    log: str | None = None
    rewards: Sequence[str] = ()
    level: float = 0.95
    adjust: bool = False
    users: str | None = None
    age_us: int | None = None
    entered_us: int | None = None
    metrics: Collection[str] | None = None
    rival: str | None = None


# The outcomes of a log. unit: user or session; new, returning: the numbers of units without and with a visit before the
# one in which they entered; anonymous: the number of units that are sessions without a user, where some user is known;
# metric: the deciding ones; new_units_per_day: as in `VariantComparison`.
Result = TypedDict("Result", {
    "unit": str, "outcomes": list[study_figures.OutcomeRow], "differences": list[study_figures.DifferenceRow],
    "by": str | None, "experiment": str | None, "level": float, "new": int, "returning": int, "reasons": list[str],
    "anonymous": int, "metric": list[dict[str, str | None]], "segments": list[study_figures.SegmentRow],
    "new_units_per_day": NotRequired[float | None],
})  # fmt: skip


def outcomes(store: Store, request: Request) -> Result:
    """Return the visits, returns and rewards of users or sessions in the selected log, by group. Raises InputError for
    unknown names, and an empty log."""
    return answer_requests(store, [request])[0]


def answer_requests(store: Store, requests: Sequence[Request]) -> list[Result]:
    """Return a result of `outcomes` for each request, from one snapshot. The requests may differ only in their groups
    and in the start of their log, which is earliest in the first request."""
    for request in requests:
        _check(request)
    with store.read() as unit, bulk.alongside(unit):
        studies = [_study(unit, request) for request in requests]
        figures = unit_outcomes.collect_figures(unit, studies, level=requests[0].level)
        reward_log.notice_uncounted(unit, store, studies[0].rewards)
        if studies[0].experiment is None and (until := removals.pruned_until(unit)):
            store.notice(f"visits up to {format_time(until)} were deleted: whoever came before counts as new")
        pairs = zip(requests, studies, strict=True)
        arrivals = [None if request.log else _arrivals(unit, study) for request, study in pairs]
    results = [_answer(store, *pair) for pair in zip(requests, figures, strict=True)]
    for result, units in zip(results, arrivals, strict=True):
        result["new_units_per_day"] = None if units is None else units.pace
        if units is not None:
            units.add_days(result["differences"])
    return results


def _arrivals(unit: Unit, study: Study) -> NewUnits | None:
    """Return how many new users or sessions come, for the study of a running experiment. For any other study, return
    None."""
    is_running = study.experiment is not None and study.experiment.status == "running" and study.by == "variant"
    return NewUnits.count(unit, study) if is_running else None


def _answer(store: Store, request: Request, figures: StudyFigures) -> Result:
    study, sums = figures.study, figures.sums
    if study.experiment is None and not sums.n_new + sums.n_returning:
        is_narrowed = request.log or request.users or {request.age_us, request.entered_us} != {None}
        widen = "widen --log, or leave out --users, --entered-since and --age"
        hint = widen if is_narrowed else "serve with `rlrec recommend`"
        raise EmptyLog("no unit is selected", hint=hint)
    if sums.n_censored:
        store.notice(f"left out: the rewards of censored slots, in {quantity(sums.n_censored, 'decision')}")
    rows, differences = unit_outcomes.rows_of_figures(figures)
    return {
        "unit": study.experiment.unit if study.experiment else "user" if figures.any_user else "session",
        "outcomes": rows, "differences": differences, "by": study.by, "experiment": request.experiment,
        "level": request.level, "new": sums.n_new, "returning": sums.n_returning,
        "reasons": [
            *([] if figures.any_user else ["no-users"]), *([study_figures.ANONYMOUS_UNITS] if sums.n_anonymous else []),
            *(["not-randomised"] if differences and study.by != "variant" else []),
        ],
        "anonymous": sums.n_anonymous, "metric": figures.metric_names(),
        "segments": figures.segments(),
    }  # fmt: skip


def _check(request: Request) -> None:
    intervals.check_level(request.level)
    groups = GROUPINGS if request.experiment is None else (*GROUPINGS, request.by or "")  # or a field of the context
    if request.by is not None and request.by not in groups:
        raise InputError(f"--by takes no {request.by!r}", hint=f"one of {', '.join(groups)}")
    if request.by == "variant" and request.experiment is None:
        raise InputError("--by variant needs an experiment", hint="add --experiment NAME")
    if request.adjust and (request.experiment is None or request.by not in (None, "variant")):
        hint = "give --experiment, without another --by" if request.experiment is None else "leave out --by"
        raise InputError("--adjust compares the variants of an experiment by the time before it", hint=hint)
    if request.rival is not None and (request.experiment is None or request.by not in (None, "variant")):
        raise InputError("--against names a variant of an experiment", hint="give --experiment, without another --by")
    if request.age_us == 0:
        raise InputError("--age is no time at all", hint="7d is the first week of every unit")


def _study(unit: Unit, request: Request) -> Study:
    experiment = None if request.experiment is None else lookup.experiment(unit, request.experiment)
    segment = None if request.by is None or request.by in GROUPINGS else request.by
    by = "variant" if segment else request.by or ("variant" if experiment else None)
    if experiment is not None and by == "variant" and interleaved.ranker_names(experiment):
        hint = f"`rlrec experiment show {experiment.name}` compares them"
        raise InputError(f"experiment {experiment.name} is interleaved: every unit sees both versions", hint=hint)
    log = filters.join_filters(experiment and f"experiment={experiment.name}", request.log)
    return Study(
        selection=filters.selection(unit, log),
        rewards=unit_outcomes.rewards_of(unit, request.rewards, experiment),
        experiment=experiment and lookup.compared_with(experiment, request.rival),
        by=by, adjust=request.adjust, users=request.users,
        age_us=request.age_us, entered_us=request.entered_us, segment=segment, metrics=request.metrics,
    )  # fmt: skip


def explanations(rows: Iterable[Mapping[str, Any]], reasons: Sequence[str] = ()) -> list[str]:
    """Return a line for each reason of doubt of these rows, and for each of the further `reasons`, that explains it. If
    only a few metrics have the reason, the line names them."""
    metrics: dict[str, dict[str, None]] = {reason: {} for reason in reasons}
    rows = [*rows]
    for row in rows:
        for reason in row["reasons"]:
            metrics.setdefault(reason, {})[row.get("metric", "")] = None
    n_metrics = len({row.get("metric", "") for row in rows})
    clauses = {
        reason: f" ({', '.join(filter(None, names))})" for reason, names in metrics.items()
        if reason not in reasons and any(names) and len(names) <= MAX_NAMES and len(names) < n_metrics
    }  # fmt: skip
    return [f"{reason}{clauses.get(reason, '')}: {REASONS[reason].text}" for reason in in_order([*metrics])]
