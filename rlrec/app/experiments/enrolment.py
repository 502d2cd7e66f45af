"""How an experiment takes units: by other weights from now on, or none any more."""

from __future__ import annotations

from collections.abc import Mapping

from rlrec.app.evaluation.comparisons import holdout
from rlrec.app.experiments.experiment import MIN_ROOM, ExperimentSummary, check_weight, shares_of, summary
from rlrec.app.inputs import lookup
from rlrec.errors import InputError
from rlrec.store import Store, Unit
from rlrec.store.database.unit import parse
from rlrec.store.log import settings
from rlrec.store.policies import experiments
from rlrec.store.policies.experiments import Experiment


def set_weights(store: Store, name: str, weights: Mapping[str, float]) -> ExperimentSummary:
    """Draw the units of an experiment by these weights from now on: new ones, and those of a ramp, too. A uniform
    holdout keeps its share. The same shares again change nothing. Raises InputError where they are not those of its
    variants."""

    def work(unit: Unit) -> ExperimentSummary:
        experiment = _running(unit, name)
        _check_labels(experiment, weights)
        new_weights = dict(weights)
        if (held_share := holdout.share(experiment)) is not None:
            new_weights[holdout.LABEL] = holdout.weight(held_share, list(weights.values()))
        shares, total = shares_of(experiment), sum(new_weights.values())
        changes = {row.label: new_weights[row.label] / total - shares[row.id] for row in experiment.variants}
        last = experiment.variants[-1].label
        is_ramp = "route" in parse(experiment.definition, f"definition of experiment {name}")
        if is_ramp and changes[last] < -MIN_ROOM:
            hint = f"give {last} a larger share; `rlrec experiment stop {name}` ends the ramp"
            raise InputError(f"experiment {name} is a ramp, and {last} gives back none of its units", hint=hint)
        is_new = experiment.mode == experiments.FROZEN or any(abs(change) > MIN_ROOM for change in changes.values())
        if is_new:
            experiments.begin_phase(unit, experiment.id, new_weights, moves=is_ramp)
            settings.add_run(unit, "experiment set", {"name": name, "weights": new_weights})
        return {**summary(unit, lookup.experiment(unit, name)), "set": is_new}

    return store.write(work, repeatable=True)


def freeze(store: Store, name: str) -> ExperimentSummary:
    """Let an experiment take no new unit, and serve and measure those that it has. Twice changes nothing."""

    def work(unit: Unit) -> ExperimentSummary:
        experiment = _running(unit, name)
        if lookup.is_holdout(experiment):
            hint = f"`rlrec experiment stop {name}` ends it for good"
            raise InputError(f"experiment {name} is the holdout of a route, and takes units while it runs", hint=hint)
        is_new = experiment.mode != experiments.FROZEN
        if is_new:
            experiments.freeze(unit, experiment)
            settings.add_run(unit, "experiment freeze", {"name": name})
        return {**summary(unit, lookup.experiment(unit, name)), "already_frozen": not is_new}

    return store.write(work, repeatable=True)


def _running(unit: Unit, name: str) -> Experiment:
    """An experiment whose weights nobody else changes until the transaction ends. Raises InputError where it is
    stopped."""
    settings.lock(unit)
    experiment = lookup.experiment(unit, name)
    if experiment.status != "running":
        raise InputError(f"experiment {name} is stopped", hint="start another one under another name")
    return experiment


def _check_labels(experiment: Experiment, weights: Mapping[str, float]) -> None:
    """Raises InputError unless these are weights of all variants of an experiment that can have others."""
    labels = [variant.label for variant in experiment.variants]
    if holdout.share(experiment) is not None:
        labels.remove(holdout.LABEL)  # which keeps its share
    clause, hint = f" in experiment {experiment.name}", f"give a weight to each of {', '.join(labels)}"
    # with one variant to draw, a weight says only that an experiment takes units again, once it was frozen
    if lookup.is_holdout(experiment) or (len(labels) < 2 and not experiment.phase_at):
        kind = "is the holdout of a route" if lookup.is_holdout(experiment) else "has one variant to draw"
        raise InputError(f"experiment {experiment.name} {kind}, and keeps its weights")
    for label, weight in weights.items():
        if label not in labels:
            raise lookup.unknown("variant", label, labels, clause=clause, hint=hint)
        check_weight(label, weight)
    if absent_labels := [label for label in labels if label not in weights]:
        raise InputError(f"no weight for variant {' and '.join(absent_labels)}{clause}", hint=hint)
