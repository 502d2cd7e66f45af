"""This module estimates position curves from the log, stores curves and compares them. A curve says how likely each
position is examined, relative to the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import zip_longest
from operator import add
from typing import Any, TypedDict

import numpy as np

from rlrec.app.evaluation.passes import passes
from rlrec.app.evaluation.passes.log_reader import LogReader, Reading
from rlrec.app.evaluation.passes.pages import position_rows
from rlrec.app.evaluation.passes.passes import IN_PROCESS, Workers
from rlrec.app.evaluation.passes.request import Evaluation
from rlrec.app.evaluation.passes.request import Request as EvaluationRequest
from rlrec.app.evaluation.rows import log_rows
from rlrec.app.evaluation.rows.log_rows import FIT_COLUMNS, ImpressionRows
from rlrec.app.imports import log_stores
from rlrec.app.inputs import canonical, filters, lookup
from rlrec.arrays import finite_or_none, run_starts
from rlrec.compute import Engine
from rlrec.errors import CheckFailed, InputError, quantity
from rlrec.ope.checks import positions
from rlrec.ope.checks.positions import Cells, ClickSums, EstimatedCurve, ExaminedPosition, OverlapSums
from rlrec.records import Reward, Sums, Version
from rlrec.store import Store, Unit
from rlrec.store.log import selected, settings
from rlrec.store.log.selected import Selection
from rlrec.store.policies import curves, policies
from rlrec.store.policies.curves import Curve
from rlrec.times import format_time

MAX_POSITIONS = 50  # default positions of a curve
MAX_CELLS = 2_000_000  # contexts and arms of an import that are compared at most
_SLOT_COLUMNS = (
    *FIT_COLUMNS, "version_id", "belief_seq", "belief_ordinal", "eligible_id", "catalogue_revision", "size",
    "propensity", "marginal",
)  # fmt: skip
EXPLAINED_REASONS = {
    "no-overlap": "no arm was likely enough at this position and at the one above in one page; the curve ends above it",
    "no-variation": "no arm with a reward connects this position with the first one in equal contexts; "
    "the curve ends above it",
    "few-rewards": "too few rewards at this position to compare it; the curve ends above it",
    "no-propensity": "slots whose logging probabilities at other positions are not known were left out",
    "wide": "from this position on the interval is wide, and so are the beliefs that rest on it: collect more",
    "partial-pages": "pages of which a slot is missing or censored were left out",
    "no-interval": "expectation-maximisation gives no interval",
    "unchecked": "the log tells no position-based curve, so that nothing says whether this model is right",
    "prefers": "another click model explains the log better: see --model",
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """This record holds the options of `position fit`.

    positions: the number of positions, where None means the length of the longest slate, up to MAX_POSITIONS; model:
    the click model, one of `positions.MODELS`."""

    name: str
    log: str | None = None
    reward: str = "default"
    positions: int | None = None
    model: str = "pbm"


CurveRow = TypedDict("CurveRow", {"curve": str, "number": int, "model": str, "method": str, "reward": str,
                                  "positions": int, "created_at": str})  # fmt: skip


# A curve; log_likelihood: by model, per slot of held-out pages; preferred: the model that fits the log best.
CurveAnswer = TypedDict("CurveAnswer", {
    "curve": str, "model": str, "method": str, "reward": str, "clusters": int, "positions": list[dict[str, Any]],
    "reasons": list[str], "number": int, "log": str | None, "log_likelihood": dict[str, float], "preferred": str | None,
    "created_at": str,
})  # fmt: skip


def fit(store: Store, request: Request, workers: Workers = IN_PROCESS) -> CurveAnswer:
    """Estimate a position curve and store it under the next number of its name.

    Raises CheckFailed, without storing a curve, if not even positions 1 and 2 can be compared."""
    if request.positions is not None and request.positions < 2:
        raise InputError(f"--positions is {request.positions}", hint="a curve compares two positions or more")
    with store.read() as unit:
        n_removals = settings.get(unit).removals
    with log_stores.reading(store, request.log, workers) as (unit, log, engine):
        definition = lookup.reward(unit, request.reward)
        estimation = _estimate(unit, replace(request, log=log), definition, filters.selection(unit, log), engine)

    def work(unit: Unit) -> CurveAnswer:
        settings.lock_removals(unit, n_removals)
        return _store(unit, request, definition, estimation)

    return store.write(work)


@dataclass(frozen=True, kw_only=True)
class _Estimation:
    """This record holds one curve, the method that estimated it, and the comparison of all click models."""

    curve: EstimatedCurve
    method: str
    comparison: positions.ModelComparison = positions.NO_COMPARISON


class _LogSums(Sums, kw_only=True):
    """This record holds sums over batches of the log.

    overlap: the sums for the position-based curve; clicks: the sums for click models; cells: the sums by context,
    arm and position of imported slots with unknown marginals; partial: the number of slates with a missing or
    censored slot, which `overlap` and `clicks` leave out."""

    overlap: OverlapSums
    clicks: ClickSums
    cells: Cells
    partial: int

    def __post_init__(self) -> None:
        """Raise InputError if the log has more cells (contexts with arms) than can be compared."""
        if len(self.cells.slots) > MAX_CELLS:
            raise InputError(f"the log has more than {MAX_CELLS} contexts and arms", hint="narrow --log")


class _PassSums(Sums):
    """This record holds the sums of usable rows, or None if there are none, and the number of rows whose reward window
    is still open."""

    usable_sums: _LogSums | None = None
    n_waiting: int = 0


@dataclass(frozen=True, kw_only=True)
class _CurvePass:
    """A _CurvePass reads the log once, to estimate a curve with the first `size` positions."""

    evaluation: Evaluation
    definition: Reward
    model: str
    size: int

    @property
    def reading(self) -> Reading:
        return Reading(columns=_SLOT_COLUMNS, support=False, marginals=max(self.size, 2))

    def __call__(self, log_reader: LogReader, /) -> _PassSums:
        """Return the sums of the partition that the reader reads."""
        total = _PassSums()
        for batch in log_reader.read(self.reading):
            rows, n_immature = log_rows.usable_rows(batch.log, self.definition, now=self.evaluation.now)
            sums = _sums(rows, self.evaluation, self.definition, self.model) if len(rows) else None
            total += _PassSums(sums, n_immature)
        return total.close()


def _estimate(
    unit: Unit, request: Request, definition: Reward, selection: Selection, engine: Engine | None = None
) -> _Estimation:
    size = min(request.positions or MAX_POSITIONS, selected.extent(unit, selection).positions)
    evaluation = Evaluation.resolve(unit, EvaluationRequest(targets=[], log=request.log), selection)
    work = _CurvePass(evaluation=evaluation, definition=definition, model=request.model, size=size)
    total = reduce(add, passes.results(LogReader(unit, evaluation), work, engine), _PassSums())
    sums = total.usable_sums
    if sums is None and total.n_waiting:
        message = f"empty log: of {quantity(total.n_waiting, 'impression')} selected, none is mature"
        raise InputError(message, hint="wait, or widen --log")
    if sums is None:
        raise evaluation.nothing_selected("impression")
    if size < 2:
        raise CheckFailed("the log shows one position alone: there is nothing to compare it with")
    estimation = _curve(sums, request.model, size)
    by_position = estimation if request.model == "pbm" else _curve_by_position(sums, size)
    examination = np.array([position.examination for position in by_position.curve.positions])
    comparison = positions.compare_models(sums.clicks, examination, model=request.model)
    return replace(estimation, comparison=comparison)


def _sums(rows: ImpressionRows, evaluation: Evaluation, definition: Reward, model: str) -> _LogSums:
    slots, marginals = rows.slots, rows.slots[log_rows.MARGINALS]
    size = marginals.shape[1]
    slot_rows = position_rows(slots, rows.reward - definition.default, evaluation.arms)
    # a page that lacks a slot would count at only one of two neighbours
    starts = run_starts(slots["decision_id"])
    counts = np.diff(np.r_[starts, len(rows)])
    is_complete = np.repeat(counts == slots["size"][starts], counts)
    pages = slot_rows.take(is_complete)
    is_hidden = slots["imported"] & (np.isnan(marginals).sum(axis=1) > 0) & (slot_rows.position <= size)
    count, clicks = slot_rows.count[is_hidden], (slot_rows.reward[is_hidden] != 0).astype(np.float64)
    columns = slots["context_id"][is_hidden], slot_rows.arm[is_hidden], slot_rows.position[is_hidden]
    return _LogSums(
        overlap=positions.overlap_sums(pages, spans_batches=evaluation.spans_batches),
        clicks=positions.click_sums(
            pages, arms=len(evaluation.arms), model=model, spans_batches=evaluation.spans_batches
        ),
        cells=positions.merge_cells(*columns, count, count * clicks, np.ones(len(clicks)), clicks),
        partial=int((counts != slots["size"][starts]).sum()),
    )


def _curve(sums: _LogSums, model: str, size: int) -> _Estimation:
    """Return the curve of a click model, and the method that estimated it. Raises CheckFailed if the curve ends at
    position 1. size: the largest number of positions."""
    if model == "pbm":
        estimation = _curve_by_position(sums, size)
    else:
        estimation = _Estimation(curve=positions.model_curve(sums.clicks, model=model), method="likelihood")
    if len(estimation.curve.positions) == 1:
        raise _identification_error(estimation.curve.reasons[-1], sums)
    return estimation


def _curve_by_position(sums: _LogSums, size: int) -> _Estimation:
    """Return the curve of the position-based model. It is estimated from arms that were likely at neighbouring
    positions (overlap) or, if there are no such arms, by expectation-maximisation. size: the largest number of
    positions."""
    curve = positions.chained_curve(sums.overlap)
    if len(curve.positions) == 1 and len(sums.cells.slots):
        curve = positions.expectation_maximisation(sums.cells, size=size, clusters=curve.clusters)
        interval_reason = ("no-interval",) if len(curve.positions) > 1 else ()
        return _Estimation(curve=replace(curve, reasons=(*curve.reasons, *interval_reason)), method="em")
    reasons = list(curve.reasons)
    if len(curve.positions) > 1:
        reasons += ["no-propensity"] if sums.overlap.n_unknown else []
        reasons += ["partial-pages"] if sums.partial else []
    return _Estimation(curve=replace(curve, reasons=tuple(reasons)), method="overlap")


def _identification_error(reason: str, sums: _LogSums) -> CheckFailed:
    code = reason.partition(":")[0]
    cause = (
        "too few slots of complete pages show an arm that was likely at both of positions 1 and 2: so it is where "
        "positions vary only with the context"
    )
    hint = "collect more pages, served with a floor or by a policy that draws at both: a pin leaves nothing to compare"
    if code == "few-rewards":
        cause, hint = "too few rewards at positions 1 and 2", "collect more, or widen --log"
    elif code == "no-variation":
        cause = "the positions of this import vary only with the context"
        hint = "log marginals, or pages of a policy that draws: rankings that vary within equal contexts"
    elif not sums.overlap.slots.any():
        cause = "the logging probabilities at other positions are not known"
        hint = "use decisions of a kind with marginals (independent scores that do not read the session)"
    return CheckFailed(f"the curve cannot be estimated: {cause}", hint=hint)


def _store(unit: Unit, request: Request, definition: Reward, estimation: _Estimation) -> CurveAnswer:
    comparison, curve = estimation.comparison, estimation.curve
    doubts = [] if comparison.best_model in (None, request.model) else [f"prefers:{comparison.best_model}"]
    if comparison.log_likelihood and "pbm" not in comparison.log_likelihood:
        doubts.append("unchecked")
    rows = [
        {**vars(position), "lower": finite_or_none(position.lower), "upper": finite_or_none(position.upper)}
        for position in curve.positions
    ]
    report = {
        "clusters": curve.clusters, "reasons": [*curve.reasons, *doubts], "preferred": comparison.best_model,
        "log_likelihood": comparison.log_likelihood,
    }  # fmt: skip
    options = {"log": request.log, "reward": request.reward, "positions": request.positions, "model": request.model}
    stored_curve = curves.by_name(unit, request.name)
    number = 1 if stored_curve is None else stored_curve.number + 1
    curves.add(
        unit, name=request.name, number=number, reward_id=definition.id, model=request.model, method=estimation.method,
        options=canonical.text(options), positions=canonical.text(rows), report=canonical.text(report),
    )  # fmt: skip
    settings.add_run(unit, "position fit", {"name": request.name, "number": number, **options})
    return _answer(unit, lookup.curve(unit, f"{request.name}@{number}"))


# -- look --


def fit_positions(unit: Unit, version: Version) -> Sequence[ExaminedPosition]:
    """Return the positions of the curve that `fit` would estimate from the log of a version's policy. The list is empty
    if this curve cannot be estimated."""
    request = Request(name=version.policy.name, log=f"policy={version.policy.name}", reward=version.reward.name)
    try:
        return _estimate(unit, request, version.reward, filters.selection(unit, request.log)).curve.positions
    except (CheckFailed, InputError):
        return ()


def list_curves(store: Store) -> list[CurveRow]:
    """Return a row for every stored curve, in order of name and number."""
    with store.read() as unit:
        names = {reward.id: reward.name for reward in policies.rewards(unit)}
        return [
            {
                "curve": curve.name, "number": curve.number, "model": curve.model, "method": curve.method,
                "reward": names[curve.reward_id], "positions": len(curve.positions),
                "created_at": format_time(curve.created_at),
            }
            for curve in curves.all_curves(unit)
        ]  # fmt: skip


def show(store: Store, reference: str) -> CurveAnswer:
    """Return a stored curve. reference: NAME@NUMBER, or NAME for the newest curve of this name. Raises InputError if
    there is no such curve."""
    with store.read() as unit:
        return _answer(unit, lookup.curve(unit, reference))


def diff(store: Store, first: str, second: str) -> list[dict[str, Any]]:
    """Compare two stored curves. Return a row for each position, with the examination in both curves, and the second
    minus the first."""
    with store.read() as unit:
        sides = [lookup.curve(unit, reference).examination for reference in (first, second)]
    return [
        {
            "position": position, "examination_a": left, "examination_b": right,
            "difference": None if left is None or right is None else right - left,
        }
        for position, (left, right) in enumerate(zip_longest(*sides), 1)
    ]  # fmt: skip


def explain_curve(answer: CurveAnswer) -> list[str]:
    """Return a line for each reason of doubt about a curve, which explains it."""
    return [f"{reason}: {EXPLAINED_REASONS[reason.partition(':')[0]]}" for reason in answer["reasons"]]


def _answer(unit: Unit, curve: Curve) -> CurveAnswer:
    names = {reward.id: reward.name for reward in policies.rewards(unit)}
    report = curve.report
    return {
        "curve": curve.name, "model": curve.model, "method": curve.method, "reward": names[curve.reward_id],
        "clusters": report["clusters"], "positions": [_position(row) for row in curve.positions],
        "reasons": report["reasons"], "number": curve.number, "log": curve.options["log"],
        "log_likelihood": report["log_likelihood"], "preferred": report["preferred"],
        "created_at": format_time(curve.created_at),
    }  # fmt: skip


def _position(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a position of a stored curve as JSON. Figures that the store may have read as integers become floats."""
    bounds = {name: None if row[name] is None else float(row[name]) for name in ("examination", "lower", "upper")}
    return {"position": row["position"], **bounds, "rewards": row["rewards"], "slots": row["slots"]}
