"""This module makes the report of a run of `train-pg`, with figures, and sentences on why nothing went live."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, cast

from rlrec.app.evaluation.comparisons import paired_gate
from rlrec.app.training.ascent import MIN_BOLD_ESS, TrainingResult
from rlrec.app.training.holdout_value import LoggedValue
from rlrec.errors import quantity
from rlrec.records import Version


class GateReport(paired_gate.Judgement):
    """This record holds the gate's test of a candidate, as the store keeps it.

    against: the live version that the candidate was compared with, or None where it was compared with the log;
    sessions: the number of sessions; repeated: whether the result was copied from the same test of an earlier
    version."""

    against: int | None
    sessions: int
    repeated: bool


NO_LOOK = dict.fromkeys(GateReport.__annotations__)  # the fields in a report where the gate did not run


# log: the filter of the training log. trained: whether there is a new version; why: there is none, or it is no better,
# or was not promoted; training: the part that the version stores, epochs and the gate; loggers: what each logger earned
# on the visits by which the epoch was chosen, of policies that could serve in place of the trained one.
RunFigures = TypedDict("RunFigures", {
    "policy": str, "version": int, "parent": int, "promoted": bool, "gate_sessions": int | None,
    "tune_estimate": float | None, "tune_lower": float | None, "tune_ess": float | None, "ess_wanted": float | None,
    "weights": str | None, "log": str | None, "trained": bool, "epochs": int, "best_epoch": int | None, "seed": int,
    "why": str | None, "training": NotRequired[Mapping[str, Any] | None], "at": NotRequired[str],
    "passed_by": list[str], "loggers": list[LoggedValue],
})  # fmt: skip


class Result(RunFigures, GateReport):
    """This record holds the figures of a training run, and of the gate's test of the version that the run made."""


def result(
    parent: Version, version: int, sessions: int, gate: GateReport | None, *, seed: int,
    ascent: TrainingResult | None = None, **figures: Any,
) -> Result:  # fmt: skip
    """Return the result of a training run.

    parent: the version from which the run started; version: the number of the new version; sessions: the number of
    sessions; gate: the test of the gate, or None without a test; ascent: the result of the ascent, or None where
    the log had no new visits; figures: further fields of `Result`."""
    best = None if ascent is None else ascent.best_epoch
    gain, lower, ess = (None, None, None) if best is None else (best.gain, best.lower, best.ess)
    fields = {
        **(gate or NO_LOOK), "policy": parent.policy.name, "version": version, "parent": parent.number,
        "sessions": sessions, "promoted": False, "reasons": gate["reasons"] if gate else [],
        "gate_sessions": gate and gate["sessions"],
        "tune_estimate": gain, "tune_lower": lower, "tune_ess": ess, "trained": ascent is not None,
        "epochs": 0 if ascent is None else len(ascent.curve), "best_epoch": None if ascent is None else ascent.best,
        "seed": seed, "passed_by": [], "loggers": [], **figures,
    }  # fmt: skip
    return cast(Result, {name: fields.get(name) for name in Result.__annotations__ if name != "at"})


STILL_KL = 1e-12  # nats per decision: a rounding error
NO_DIRECTION = (
    "the sessions that train do not agree on what earns more, so that no epoch changed the policy; collect more "
    "sessions"
)


@dataclass(frozen=True)
class TuneSplit:
    """This record describes the tuning visits.

    clusters: the number of users, and of sessions without a user; wanted_ess: the number of clusters that must be
    effective; hint: a text on how a policy could start closer to these visits, or "" where it could not."""

    clusters: int = 0
    wanted_ess: float | None = None
    hint: str = ""


def no_step_reason(ascent: TrainingResult, tune: TuneSplit) -> str:
    """Return a sentence which says that the log has too few effective visits for training, and how to log instead."""
    wanted_ess = tune.wanted_ess or 0.0
    if tune.clusters < wanted_ess:
        return (
            f"the log supports no step: the tune split has {quantity(tune.clusters, 'user')}, or sessions without "
            f"one, where {wanted_ess:.0f} are wanted; collect sessions of more users"
        )
    ess = max((point.ess or 0.0 for point in ascent.curve), default=0.0)
    collect = f"collect more sessions, or start from {tune.hint}" if tune.hint else "or collect more sessions"
    return (
        f"the log supports no step: of {quantity(tune.clusters, 'user')} of the tune split, or sessions without "
        f"one, {ess:.0f} are effective, where {wanted_ess:.0f} are wanted; log with a larger floor, train on the log "
        f"of newer versions (--log), {collect}"
    )


def bold_reason(ascent: TrainingResult, tune: TuneSplit, reference: str, route: str | None) -> str:
    """Return a sentence on how to try a version that no gate could judge, or that says why it is not worth a try.

    reference: the reference of this version; route: a route on which the version could be ramped, or None where no
    such route exists."""
    best = ascent.best_epoch
    if best is None or not best.is_accepted(bold=True):
        effective = f"{0.0 if best is None else best.ess or 0.0:.1g} of {tune.clusters:,} users of the tune split"
        return (
            f"bold: not worth a try: {effective}, or sessions without one, are effective, and a bold step needs "
            f"{MIN_BOLD_ESS}; log with a larger floor, or collect more sessions"
        )
    create = "" if route else f"`rlrec route create home --to {reference.partition('@')[0]}`, then "
    ramp = f"`rlrec route set {route or 'home'} --to {reference} --share 5%`"
    return f"bold: this log cannot judge it; try it on 5 % of users: {create}{ramp}"


def _has_not_moved(ascent: TrainingResult) -> bool:
    """Tell whether no epoch changed the policy, since the gradients of the batches cancel out."""
    return all(point.kl is not None and point.kl < STILL_KL for point in ascent.curve)


def copy_reason(ascent: TrainingResult, tune: TuneSplit, *, parent: Version) -> str | None:
    """Return the reason why the new version is no better than its parent on the tuning visits, or None where the new
    version is better."""
    best, reasons = ascent.best_epoch, list[str]()
    if best is None:
        reasons.append(f"the new version is a copy of version {parent.number}: the first epoch went too far")
    elif _has_not_moved(ascent):
        reasons.append(NO_DIRECTION)
    elif best.supported and (best.gain or 0.0) < 0:
        reasons.append(f"every epoch earned less than version {parent.number} on the tune split; the best one is kept")
    if not ascent.is_supported:
        reasons.append(no_step_reason(ascent, tune))
    return "; ".join(reasons) or None


def refusal_reason(gate: GateReport | None, ascent: TrainingResult, *, is_still_live: bool, tune: TuneSplit) -> str:
    """Return the reason why a candidate was not promoted.

    is_still_live: whether the version that the candidate was compared with is still live."""
    if not is_still_live:
        return "another version went live meanwhile"
    if gate is None:
        if ascent.is_promising:
            return "no session of the gate split has ended"
        if not ascent.is_supported:
            return no_step_reason(ascent, tune)
        return NO_DIRECTION if _has_not_moved(ascent) else "nothing on the tune split says that it is better"
    return paired_gate.refusal_sentence(gate) or "the gate did not let it pass"
