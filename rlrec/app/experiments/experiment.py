"""This module creates and changes experiments, which split users or sessions between policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from rlrec import policy as kinds
from rlrec.app.evaluation.comparisons import declared, holdout, interleaved
from rlrec.app.inputs import canonical, lookup
from rlrec.app.learning import belief_versions
from rlrec.errors import Conflict, InputError
from rlrec.records import Record, Version
from rlrec.store import Store, Unit
from rlrec.store.database.unit import StoredRows, damage_error, parse
from rlrec.store.log import settings
from rlrec.store.log.candidates import TEAMS
from rlrec.store.policies import experiments, policies
from rlrec.store.policies.experiments import Experiment
from rlrec.times import format_time

if TYPE_CHECKING:
    from rlrec.app.evaluation.comparisons.study_figures import DifferenceRow
    from rlrec.app.learning.slot_statistics import Totals

STOP = "experiment stop"
MIN_ROOM = 1e-9  # a smaller share of a layer, or change of one, counts as none
STEPS, HOLD = "steps", "hold_us"  # keys in the definition of a ramp that advances by steps


class VariantSpec(Record):
    """This record holds one variant as in `--variant`. policy: POLICY for the live version of a policy, or POLICY@V for
    version V; weight: the variant's share of the users is its weight divided by the sum of all weights."""

    label: str
    policy: str
    weight: float = 1.0


class Request(Record):
    """This record holds the options of `experiment create`."""

    name: str
    variants: Sequence[VariantSpec]
    by: str = "user"
    holdout: float | None = None  # share of all units, served by a uniform policy
    interleave: Sequence[str] = ()  # two versions that fill each slate in turns, in place of variants
    layer: str | None = None  # its running experiments share no unit
    layer_share: float | None = None  # of the units of the layer; None for all that are free
    route: str | None = None  # the route whose ramp it is
    holdout_of: str | None = None  # the route whose users the first variant keeps apart permanently
    metrics: Sequence[declared.MetricName] = ()  # the deciding ones; none: reward per unit
    guards: Sequence[declared.GuardName] = ()
    best_n: int | None = None  # units at which intervals are tightest; None: as many as came within 30 days
    steps: Sequence[float] = ()  # of a ramp that advances by itself: the shares of its last variant
    hold_us: int | None = None  # how long each step lasts at least

    def definition(self) -> str:
        """Return the options as JSON in canonical form. The order of variants counts, since the other variants are
        compared with the first one."""
        variants = [[variant.label, variant.policy, variant.weight] for variant in self.variants]
        options = {
            "unit": self.by, "variants": None if self.interleave else variants,
            interleaved.OPTION: self.interleave or None, holdout.LABEL: self.holdout, "route": self.route,
            lookup.HOLDOUT_OF: self.holdout_of, "layer": self.layer, "layer_share": self.layer_share,
            declared.METRIC: self.metrics or None, declared.GUARDS: self.guards or None, declared.BEST_N: self.best_n,
            STEPS: self.steps or None, HOLD: self.hold_us,
        }  # fmt: skip
        return canonical.text({name: value for name, value in options.items() if value is not None})

    def defines(self, experiment: Experiment) -> bool:
        """Tell whether an experiment was created with these options. A `best_n` of None fits any experiment."""
        definition = experiment.declaration
        best_n = definition.get(declared.BEST_N) if self.best_n is None else self.best_n
        return replace(self, best_n=best_n).definition() == canonical.text(definition)


# The version that a variant serves, and its share of the units.
VariantRow = TypedDict("VariantRow", {"variant": str, "policy": str, "version": int, "learns": bool, "weight": float})


# live: the version that went live where a variant was promoted; passed_by: routes that serve another one; routes: those
# that serve it, in a store with routes; remedy: where none does, the command that makes one.
ExperimentSummary = TypedDict("ExperimentSummary", {
    "experiment": str, "status": str, "unit": str, "variants": list[VariantRow], "created_at": str,
    "stopped_at": str | None, "created": NotRequired[bool], "already_stopped": NotRequired[bool],
    "interleave": NotRequired[list[str]], "route": NotRequired[str], "promoted": NotRequired[str],
    "live": NotRequired[str], "passed_by": NotRequired[list[str]], "routes": NotRequired[list[str]],
    "remedy": NotRequired[str | None],
    "unit_differences": NotRequired[list["DifferenceRow"]], "layer": NotRequired[str],
    "layer_share": NotRequired[float], "set": NotRequired[bool], "already_frozen": NotRequired[bool],
})  # fmt: skip


class Fork(Record):
    """A Fork is the state from which one variant begins.

    source: the version from which the variant is copied, or None for the built-in `uniform`; sums: the sums of this
    version's belief at that time; last_id: the id of the last decision in these sums; ordinal: the number of
    decisions to which the sums are discounted."""

    variant: VariantSpec
    source: Version | None
    sums: Totals
    last_id: int
    ordinal: int


def create(store: Store, request: Request) -> ExperimentSummary:
    """Create a running experiment. Repeating the request changes nothing. Raises Conflict if the name belongs to an
    experiment with other options.

    Beliefs are copied in one snapshot. Slots that are not mature at that time are not copied."""
    _check(request)
    with store.read() as unit:
        experiment = experiments.by_name(unit, [request.name]).get(request.name)
        if experiment is not None:
            return _existing_summary(unit, experiment, request)
        n_removals = settings.get(unit).removals
        forks = [fork(unit, variant) for variant in request.variants]
        rankers = interleaved.ranker_versions(unit, request.interleave) if request.interleave else []

    def work(unit: Unit) -> ExperimentSummary:
        settings.lock_removals(unit, n_removals)
        if start(unit, request, forks, rankers) is None:
            return _existing_summary(unit, experiments.by_name(unit, [request.name])[request.name], request)
        settings.add_run(unit, "experiment create", {"name": request.name, "definition": request.definition()})
        return {**summary(unit, experiments.by_name(unit, [request.name])[request.name]), "created": True}

    answer = store.write(work, repeatable=True)
    if answer["created"]:
        _notice_equal_rankers(store, forks)
    return answer


def _notice_equal_rankers(store: Store, forks: Sequence[Fork]) -> None:
    """Print a notice if two variants rank in the same way, since both rank by the same scores of a request."""
    labels = dict[str, str]()
    for fork in forks:
        if fork.source is None or not kinds.load(fork.source.policy.kind).takes_scores:
            continue
        label = fork.variant.label
        twin = labels.setdefault(canonical.text(fork.source.policy.params), label)
        if twin != label:
            store.notice(
                f"variants {twin} and {label} rank by the scores of a request, with the same parameters: they differ "
                "only if requests bring the scores of the ranker of their variant; policies with --param score=NAME "
                'rank by those of one name, {"scores": {"NAME": 1.7}}'
            )


def start(unit: Unit, request: Request, forks: Sequence[Fork], rankers: Sequence[Version] = ()) -> int | None:
    """Add a new experiment to the store. Returns its id, or None if an experiment of this name exists.

    forks: the states from which the variants begin, in order; rankers: the two versions of an interleaved
    experiment."""
    taken_names = lookup.experiment_names(unit)
    salt = sha256(f"{settings.get(unit).salt}/experiment/{request.name}".encode()).hexdigest()[:32]
    best_n = declared.expected_size(unit, request.by) if request.best_n is None else request.best_n
    definition = replace(request, best_n=best_n).definition()
    has_parts = request.layer is not None and experiments.by_name(unit, [request.name]) == {}
    experiment_id = experiments.add(
        unit, name=request.name, by=request.by, salt=salt, definition=definition, layer=request.layer,
        parts=_layer_parts(unit, request) if has_parts else None,
    )  # fmt: skip
    if experiment_id is None:
        return None
    if request.name in taken_names:
        message = f"an imported log has variants of an experiment {request.name!r}"
        raise Conflict(message, hint="give this one another name")
    models = [fork.source for fork in forks if fork.source is not None]  # a built-in `uniform` keeps their rules
    served_route = None if request.holdout_of is None else lookup.route(unit, request.holdout_of)
    if served_route is not None:
        models.append(lookup.version(unit, served_route.reference)[0])
    if forks and not models:
        hint = f"give one variant a policy, as `rlrec policy create NAME --kind {holdout.KIND}` makes"
        raise InputError("every variant is uniform, so that nothing says which reward counts", hint=hint)
    if models:
        declared.check(unit, request.metrics, request.guards, first_reward=models[0].reward.name)
    variants = [
        (fork.variant.label, _add_policy(unit, request.name, fork, models[0]), fork.variant.weight) for fork in forks
    ]
    if request.holdout is not None:
        weight = holdout.holdout_weight(request.holdout, [variant.weight for variant in request.variants])
        policy_id = holdout.add_policy(unit, request.name, models[0])
        variants.append((holdout.LABEL, policy_id, weight))
    if served_route is not None:
        variants.append((holdout.SERVED_LABEL, served_route.policy_id, 1 - request.variants[0].weight))
    if rankers:
        variants.append((interleaved.LABEL, interleaved.add_policy(unit, request.name, rankers), 1.0))
    for label, policy_id, weight in variants:
        experiments.add_variant(unit, experiment_id=experiment_id, label=label, policy_id=policy_id, weight=weight)
    return experiment_id


def _layer_parts(unit: Unit, request: Request) -> dict[str, Any]:
    """Return the intervals within [0, 1] that a new experiment gets of its layer, in JSON form with the salt of the
    layer. These are the lowest parts that no running experiment has. Raises InputError if too little is free."""
    layer = str(request.layer)
    neighbours = [row for row in experiments.all_experiments(unit) if row.layer == layer and row.status == "running"]
    if neighbours and neighbours[0].unit != request.by:
        hint = "a layer has one unit, since a user has several sessions"
        raise InputError(f"the experiments of layer {layer} assign by {neighbours[0].unit}", hint=hint)
    edges = [0.0, *sorted(edge for row in neighbours for pair in intervals_of(row) for edge in pair), 1.0]
    gaps = [(low, high) for low, high in zip(edges[::2], edges[1::2], strict=True) if high - low > MIN_ROOM]
    free_share = sum(high - low for low, high in gaps)
    share = free_share if request.layer_share is None else request.layer_share
    if not gaps or share > free_share + MIN_ROOM:
        names = " and ".join(row.name for row in neighbours)
        hint = "stop one of them, or name another layer; `--layer-share 50%` leaves room for a second experiment"
        raise InputError(f"layer {layer} has {100 * free_share:.4g} % left beside {names}", hint=hint)
    intervals = list[list[float]]()
    for low, high in gaps:
        intervals.append([low, min(high, low + share)])
        share -= high - low
        if share <= MIN_ROOM:
            break
    salt = sha256(f"{settings.get(unit).salt}/layer/{layer}".encode()).hexdigest()[:32]
    return {"salt": salt, "intervals": intervals}


def intervals_of(experiment: Experiment) -> list[tuple[float, float]]:
    """Return the parts that an experiment has of its layer, as intervals within [0, 1]."""
    return [*map(tuple, parse(str(experiment.parts), f"parts of experiment {experiment.name}")["intervals"])]


def _check(request: Request) -> None:
    if request.layer_share is not None and request.layer is None:
        raise InputError("--layer-share is a share of a layer", hint="give --layer NAME, too")
    declared.check_size(request.best_n)
    if request.interleave:
        if request.metrics or request.guards:
            hint = "leave out --metric and --guard"
            raise InputError("an interleaved experiment is decided by the credit of its rankers", hint=hint)
        if request.variants or request.holdout is not None:
            hint = "leave out --variant and --holdout-uniform"
            raise InputError("an interleaved experiment has no variants: both rankers fill every slate", hint=hint)
        return
    labels = [variant.label for variant in request.variants]
    if request.holdout is not None:
        holdout.check_share(request.holdout)
        labels.append(holdout.LABEL)
    if len(labels) < 2:
        hint = "give --variant twice: LABEL=POLICY"
        raise InputError(f"experiment {request.name} needs at least two variants", hint=hint)
    repeated_label = next((label for label in labels if labels.count(label) > 1), None)
    if repeated_label is not None:
        raise InputError(f"two variants are named {repeated_label}", hint="give each another label")
    for variant in request.variants:
        check_weight(variant.label, variant.weight)


def check_weight(label: str, weight: float) -> None:
    """Raise InputError if the weight of a variant is below 1e-9 or above 1e9."""
    if not 1e-9 <= weight <= 1e9:
        raise InputError(
            f"the weight of variant {label} is {weight:g}", hint="from 1e-9, for next to nobody new, to 1e9"
        )


def _existing_summary(unit: Unit, experiment: Experiment, request: Request) -> ExperimentSummary:
    """Return the summary of a stored experiment. Raises Conflict if it was not created with the options of the
    request."""
    if not request.defines(experiment):
        hint = "experiments never change: stop it and start another one under another name"
        raise Conflict(f"experiment {experiment.name!r} already has another definition", hint=hint)
    return {**summary(unit, experiment), "created": False}


def fork(unit: Unit, variant: VariantSpec) -> Fork:
    """Read the state from which a variant begins. The name `uniform` means a policy of this name, if there is one, else
    the built-in policy. Raises InputError if the variant's version cannot be served, or is pinned and still learns."""
    if variant.policy == holdout.KIND and policies.by_name(unit, variant.policy) is None:
        return Fork(variant=variant, source=None, sums={}, last_id=0, ordinal=0)
    source, head = lookup.version(unit, variant.policy)
    name, number = lookup.split_reference(variant.policy)
    if not kinds.load(source.policy.kind).can_serve:
        hint = f"give variant {variant.label} another policy"
        kind = source.policy.kind
        raise InputError(f"policy {source.policy.name!r} is of kind {kind} and cannot be served", hint=hint)
    if number is not None and source.learning:
        hint = f"`rlrec policy freeze {name}` makes one; {variant.label}={name} starts a variant that learns"
        raise InputError(f"version {number} of {name} still learns, and @V pins a frozen one", hint=hint)
    if source.status == "retired":
        raise InputError(f"version {source.number} of {name} is retired", hint="choose another version")
    sums, last_id = belief_versions.fork(unit, source)
    ordinal = head.ordinal if source.learning else source.ordinal
    return Fork(variant=variant, source=source, sums=sums, last_id=last_id, ordinal=ordinal)


def _add_policy(unit: Unit, experiment: str, fork: Fork, model: Version) -> int:
    """Add a policy for a variant, with one version, and return the id of the policy. The version is a copy of the
    version from which the variant begins. For the built-in `uniform`, the version has the reward and the rules of
    `model`."""
    source = fork.source
    if source is None:
        return holdout.add_policy(unit, experiment, model, label=fork.variant.label)
    policy_id = policies.add_policy(
        unit, name=f"{source.policy.base}@{experiment}/{fork.variant.label}", kind=source.policy.kind,
        params=source.policy.params, base_id=source.policy.base_id or source.policy.id,
        definition=canonical.text({"experiment": experiment, "variant": fork.variant.label}),
    )  # fmt: skip
    learns_at_once = not source.learning or source.reward.learn == "served"
    version_id = belief_versions.copy_version(
        unit, source, policy_id=policy_id, number=source.number, status=source.status, seq=0,
        ordinal=fork.ordinal, sums=fork.sums, entered_to=None if learns_at_once else 0,
        # the source keeps the record of what it learned from; a frozen one has not learned since
        learned_from={"policy_id": source.policy.id, "last_id": fork.last_id} if source.learning else {},
    )  # fmt: skip
    policies.add_head(unit, policy_id, live_id=version_id, ordinal=fork.ordinal)
    return policy_id


def list_experiments(store: Store) -> list[ExperimentSummary]:
    """Return the summaries of all experiments."""
    with store.read() as unit:
        return [summary(unit, experiment) for experiment in experiments.all_experiments(unit)]


def summary(unit: Unit, experiment: Experiment) -> ExperimentSummary:
    versions, shares = versions_of(unit, experiment), shares_of(experiment)
    rows = [(variant.label, versions[variant.id], shares[variant.id]) for variant in experiment.variants]
    references = interleaved.ranker_names(experiment)
    if references:
        rows = [(team, lookup.version(unit, name)[0], 0.5) for team, name in zip(TEAMS, references, strict=True)]
    row: ExperimentSummary = {
        "experiment": experiment.name, "status": experiment.state, "unit": experiment.unit,
        "variants": [
            {
                "variant": label, "policy": version.policy.name, "version": version.number,
                "learns": version.learning, "weight": weight,
            }
            for label, version, weight in rows
        ],
        "created_at": format_time(experiment.created_at),
        "stopped_at": None if experiment.stopped_at is None else format_time(experiment.stopped_at),
    }  # fmt: skip
    if experiment.layer is not None:
        row["layer"] = experiment.layer
        row["layer_share"] = sum(high - low for low, high in intervals_of(experiment))
    return {**row, "interleave": references} if references else row


def promotion(unit: Unit, experiment: Experiment) -> dict[str, str]:
    """Return the label of the variant that was promoted at the end of an experiment, and the version that went live, as
    fields `promoted` and `live`. The result is {} if no variant was promoted."""
    for variant in experiment.variants if experiment.stopped_at else ():
        if ending := settings.state(unit, STOP, {"name": experiment.name, "promote": variant.label}):
            return {"promoted": variant.label, "live": ending["live"]}
    return {}


def versions_of(unit: Unit, experiment: Experiment) -> dict[int, Version]:
    """Return the version that each variant serves, by the id of the variant. This is the live version of the variant's
    policy. In the holdout of a route, users who are not held out get the version that the route serves."""
    if not experiment.variants:
        raise damage_error(f"the variants of experiment {experiment.name} are gone")
    live = StoredRows("policy", policies.live(unit, {variant.policy for variant in experiment.variants}).items())
    versions = {variant.id: live[variant.policy][0] for variant in experiment.variants}
    if (route := lookup.route_of_holdout(unit, experiment)) is not None:
        versions[experiment.variants[1].id] = lookup.version(unit, route.reference)[0]
    return versions


def shares_of(experiment: Experiment) -> dict[int, float]:
    total = sum(variant.weight for variant in experiment.variants)
    return {variant.id: variant.weight / total for variant in experiment.variants}


# -- how an experiment takes units: with other weights from now on, or no longer --


def set_weights(store: Store, name: str, weights: Mapping[str, float]) -> ExperimentSummary:
    """Change the weights with which an experiment draws variants. The new weights hold for new users or sessions; in a
    ramp, they hold for all. A uniform holdout keeps its share. The same weights again change nothing. Raises InputError
    if the labels are not those of the experiment's variants. weights: the weight of each variant, by label."""

    def work(unit: Unit) -> ExperimentSummary:
        experiment = _lock_experiment(unit, name)
        _check_labels(experiment, weights)
        new_weights = dict(weights)
        if (held_share := holdout.stored_share(experiment)) is not None:
            new_weights[holdout.LABEL] = holdout.holdout_weight(held_share, list(weights.values()))
        shares, total = shares_of(experiment), sum(new_weights.values())
        changes = {row.label: new_weights[row.label] / total - shares[row.id] for row in experiment.variants}
        last_label = experiment.variants[-1].label
        is_ramp = "route" in experiment.declaration
        if is_ramp and changes[last_label] < -MIN_ROOM:
            hint = f"give {last_label} a larger share; `rlrec experiment stop {name}` ends the ramp"
            raise InputError(f"experiment {name} is a ramp, and {last_label} gives back none of its units", hint=hint)
        is_new = experiment.mode == experiments.FROZEN or any(abs(change) > MIN_ROOM for change in changes.values())
        if is_new:
            experiments.begin_phase(unit, experiment.id, new_weights, moves=is_ramp)
            settings.add_run(unit, "experiment set", {"name": name, "weights": new_weights})
        return {**summary(unit, lookup.experiment(unit, name)), "set": is_new}

    return store.write(work, repeatable=True)


def freeze(store: Store, name: str) -> ExperimentSummary:
    """Make an experiment take no new users or sessions. It goes on to serve and measure those that it has. Repeating
    the request changes nothing."""

    def work(unit: Unit) -> ExperimentSummary:
        experiment = _lock_experiment(unit, name)
        if lookup.is_holdout(experiment):
            hint = f"`rlrec experiment stop {name}` ends it for good"
            raise InputError(f"experiment {name} is the holdout of a route, and takes units while it runs", hint=hint)
        is_new = experiment.mode != experiments.FROZEN
        if is_new:
            experiments.freeze(unit, experiment)
            settings.add_run(unit, "experiment freeze", {"name": name})
        return {**summary(unit, lookup.experiment(unit, name)), "already_frozen": not is_new}

    return store.write(work, repeatable=True)


def _lock_experiment(unit: Unit, name: str) -> Experiment:
    """Return a running experiment, and lock it, so that nobody else changes its weights until the transaction ends.
    Raises InputError if the experiment is stopped."""
    settings.lock(unit)
    experiment = lookup.experiment(unit, name)
    if experiment.status != "running":
        raise InputError(f"experiment {name} is stopped", hint="start another one under another name")
    return experiment


def _check_labels(experiment: Experiment, weights: Mapping[str, float]) -> None:
    """Raise InputError if the weights of the experiment cannot change, or if `weights` does not name exactly the
    variants whose weights can."""
    labels = [variant.label for variant in experiment.variants]
    if holdout.stored_share(experiment) is not None:
        labels.remove(holdout.LABEL)  # keeps its share
    clause, hint = f" in experiment {experiment.name}", f"give a weight to each of {', '.join(labels)}"
    # with only one variant, a weight just makes a frozen experiment take units again
    if lookup.is_holdout(experiment) or (len(labels) < 2 and not experiment.phase_at):
        kind = "is the holdout of a route" if lookup.is_holdout(experiment) else "has one variant to draw"
        raise InputError(f"experiment {experiment.name} {kind}, and keeps its weights")
    for label, weight in weights.items():
        if label not in labels:
            raise lookup.unknown("variant", label, labels, clause=clause, hint=hint)
        check_weight(label, weight)
    if absent_labels := [label for label in labels if label not in weights]:
        raise InputError(f"no weight for variant {' and '.join(absent_labels)}{clause}", hint=hint)
