"""Functions here train a policy for whole visits, estimate the gain of the new version on visits from which it did not
learn, and promote the version."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from functools import partial
from math import isfinite
from typing import Any, cast

from rlrec import policy as kinds
from rlrec.app.distributions.trained import TrainedModel
from rlrec.app.evaluation.comparisons import paired_gate
from rlrec.app.evaluation.comparisons.paired_gate import VISIT_ESTIMATOR, Gain
from rlrec.app.evaluation.passes import arm_effects
from rlrec.app.evaluation.passes.passes import IN_PROCESS, Workers
from rlrec.app.evaluation.rows.loggers import taken_loggers
from rlrec.app.evaluation.targets import targets
from rlrec.app.imports import log_stores
from rlrec.app.inputs import filters, lookup, parameters
from rlrec.app.inputs.seeds import seed_or_random
from rlrec.app.learning import graduation
from rlrec.app.log import lineage, reward_log
from rlrec.app.log.ended_visits import Cutoff
from rlrec.app.log.splits import GATE, TRAIN, TUNE
from rlrec.app.training import ascent, report
from rlrec.app.training.ascent import SLOT, Epoch, Trainer, TrainingOptions, TrainingResult
from rlrec.app.training.dataset import Dataset
from rlrec.app.training.dataset_writer import DatasetWriter
from rlrec.app.training.holdout_value import VISITS, HoldoutValue, LoggedValue, fit_values
from rlrec.app.training.lease import TrainingLease
from rlrec.app.training.report import GateReport, Result, TuneSplit
from rlrec.arrays import Array
from rlrec.compute import Engine
from rlrec.errors import InputError, StoreBusy, quantity, suggest
from rlrec.ope.comparisons.comparison import nightly_alpha
from rlrec.policy.gradients.gradient import Parameters
from rlrec.policy.gradients.returns import BASELINES
from rlrec.records import Record, Version
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.log import settings
from rlrec.store.log.selected import Selection, any_common, extent, version_counts
from rlrec.store.policies import beliefs, experiments, policies, routes
from rlrec.store.policies.beliefs import ArmWeights
from rlrec.store.upkeep import removals
from rlrec.times import DAY_US, format_time

KIND = "gradient"
EPOCHS_REPORTED = 10  # epochs between two reports
TUNE_VISITS = 20_000  # tuning visits that compare epochs, at most; the gate uses all of its visits
PROMOTE = ("never", "if-better", "always")
YEAR_US = 365 * DAY_US
HIGHEST = 1e9
LARGEST = 1e15  # reward of a slate


class Request(TrainingOptions, Record):
    """This record has the options of `train-pg`. log: the filter of the log; seed: the random seed, or None to choose
    one; position: the name of a curve, or None for the policy's curve; cluster: the cluster within which rows may
    depend on each other, for the gate."""

    name: str
    log: str | None = None
    since: int | None = None
    seed: int | None = None
    min_new: int = 0
    from_version: int | None = None
    promote: str = "never"
    position: str | None = None
    cluster: str | None = None
    weights: str = ascent.AUTO
    dry_run: bool = False


def check(request: Request) -> None:
    """Raise InputError if an option is out of range."""
    for name, value, low, high in (
        ("gamma", request.gamma, 0.0, 1.0), ("lr", request.lr, 1e-9, HIGHEST),
        ("entropy", request.entropy, 0.0, HIGHEST),
        ("clip-weight", request.clip_weight, 1e-9, HIGHEST), ("kl-stop", request.kl_stop, 0.0, HIGHEST),
        *((f"shaping {name}", value, -HIGHEST, HIGHEST) for name, value in request.shaping.items()),
    ):  # fmt: skip
        if value is not None and not (isfinite(value) and low <= value <= high):
            raise InputError(f"{name} is {value:g}", hint=f"it lies between {low:g} and {high:g}")
    for name, choice, names in (
        ("baseline", request.baseline, BASELINES), ("promote", request.promote, PROMOTE),
        ("weights", request.weights, ascent.WEIGHT_KINDS),
    ):  # fmt: skip
        if choice not in names:
            raise lookup.unknown(name, choice, names, hint=f"one of {', '.join(names)}")
    if request.bold and request.promote == "always":
        raise InputError("--bold does not go together with `--promote always`", hint="leave out --promote always")


def train(
    store: Store,
    request: Request,
    workers: Workers = IN_PROCESS,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> Result:
    """Train a new version, if there is enough to learn from, and return the result. Raises InputError if nothing can be
    learned from the log, and StoreBusy if another process is training the policy."""
    check(request)
    with store.read() as unit:
        parent, now = _parent(unit, request), unit.now
    seed = seed_or_random(request.seed, bits=63)
    with (
        TrainingLease(store, parent.policy, is_exclusive=not request.dry_run) as lease,
        log_stores.open_log(store, request.log) as (log_store, log),
        workers.open_engine(log_store, now) as engine,
        closing(Dataset()) as dataset,
    ):
        run = _TrainingRun(store, request, parent, seed, lease, dataset, progress, log_store, log, engine)
        return {**run.run(), "at": format_time(now)}


def _parent(unit: Unit, request: Request) -> Version:
    reference = request.name if request.from_version is None else f"{request.name}@{request.from_version}"
    if lookup.split_reference(request.name)[1] is not None:
        raise InputError(f"{request.name!r} names a version", hint="write the policy, and --from-version V")
    parent, _ = lookup.version(unit, reference)
    if parent.policy.kind != KIND:
        raise InputError(
            f"policy {parent.policy.name!r} is of kind {parent.policy.kind}, which train-pg does not train",
            hint=f"`rlrec policy create NAME --kind {KIND}` makes one that it does",
        )
    if shares := parent.policy.params.get("least"):
        message = f"policy {parent.policy.name!r} keeps least shares ({shares}), which no score changes"
        raise InputError(message, hint="create it without `least`, and state such shares in requests where needed")
    if request.promote != "never":
        lookup.refuse_running_variant(unit, parent)
    return parent


class _TrainingRun:
    """A _TrainingRun is one run of `train-pg`."""

    def __init__(
        self, store: Store, request: Request, parent: Version, seed: int, lease: TrainingLease,
        dataset: Dataset, progress: Callable[[str], None], log_store: Store, log: str | None, engine: Engine | None,
    ) -> None:  # fmt: skip
        """Prepare a run. parent: the version to start from; log_store, log: the store of the log, and the filter of the
        log."""
        self.store, self.request, self.parent, self.seed = store, request, parent, seed
        self.lease, self.dataset, self.progress = lease, dataset, progress
        self.log_store, self.log, self.engine = log_store, log, engine

    def run(self) -> Result:
        # make a dataset from the log, in one snapshot
        with self.log_store.read() as unit, bulk.alongside(unit):
            self.n_forgotten = removals.count_forgotten(unit)
            reader = TrainedModel(unit, self.parent)
            self.policy = reader.policy
            for name in self.request.shaping:
                if name not in self.policy.names:
                    suggestion = suggest(name, list(self.policy.names))
                    hint = suggestion or "such as session:reward, session:step or a feature of the context"
                    raise InputError(f"states have no feature {name!r} to shape by", hint=hint)
            self.live = policies.live(unit, [self.parent.policy.name])[self.parent.policy.name][0]
            selection = self._select_log(unit)
            judged_rows = paired_gate.rows_not_trained_on(unit, selection, self.live.reference)
            versions = policies.versions(unit, [self.parent.policy.id])
            # a version fitted to slates served has not learned from their rewards
            records = [version.learned_from for version in versions if "options" in version.learned_from]
            last_trained = max((int(record["now"]) for record in records), default=-1)
            cutoff = Cutoff.compute(unit, self.parent.reward)
            writer = DatasetWriter(
                unit, selection, reader, self.parent.reward, cutoff, seed=self.seed, examination=self._curve(unit),
                since=last_trained, judged_from=judged_rows.first_id or 0, log=self.log,
            )  # fmt: skip
            self.taken_log = partial(writer.evaluation.taken_log, max_loggers=writer.max_loggers)
            self.report = writer.write(self.dataset, engine=self.engine, progress=self.lease.renew)
            record = self._make_record(unit, selection)
            self.maturity = None
            mature_from = min(self.report.unused_visits.mature_from, default=None)
            if mature_from is not None or not self.report.visits:
                wait_us = cutoff.timeout_us + cutoff.window_us
                self.maturity = reward_log.maturity_sentence(unit, selection, wait_us=wait_us, mature_from=mature_from)
            stored_reports = policies.reports(unit, self.parent.policy.id, since=unit.now - YEAR_US)
            looks = [report.NO_LOOK | row["gate"] for row in stored_reports if row["gate"]["candidate"] is not None]
        n_new, min_new = self.report.new_visits, self.request.min_new
        if n_new < min_new:
            reason = f"nothing new: {quantity(n_new, 'session')} since the last training, and --min-new is {min_new:,}"
            if waiting := self.report.unused_visits.waiting:
                wait = f"{waiting:,} more count once they have ended and their reward windows are over"
                reason = "; ".join([reason, ", ".join(filter(None, (wait, self.maturity)))])
            return report.result(self.parent, self.live.number, n_new, None, seed=self.seed, why=reason)
        # the ascent on the training visits, then the look of the gate
        self.arms = writer.arms
        start_parameters = reader.parameters_of(self.arms)
        if self.policy.is_sparse:
            self.policy, start_parameters = self.policy.with_columns(self.dataset.columns, start_parameters)
        sizes = {TRAIN: self.dataset.batch(self.request.batch), TUNE: VISITS}
        self.dataset.arrange(sizes, columns=self.policy.design.columns)
        self.lease.renew()
        self._check_dataset()
        if unused_sessions := self.report.unused_sessions:
            self.store.notice(f"sessions that are not used: {unused_sessions}")
        if n_ruled := self.report.ruled_decisions:
            count = f"{n_ruled:,} of {quantity(self.report.decisions, 'page')} had caps, least shares or pins alone"
            self.store.notice(
                f"{count}: what they earned teaches the pages before them, their own slates teach nothing"
            )
        result = self._train(start_parameters)
        candidate, weights = self._candidate(result.parameters)
        gate = self._judge_candidate(candidate, weights, judged_rows, result, cast(list[GateReport], looks))
        with self.store.rehearsal() if self.request.dry_run else nullcontext():
            return self.store.write(lambda unit: self._store_version(unit, candidate, weights, result, gate, record))

    def _curve(self, unit: Unit) -> Sequence[float]:
        """Return the examination of each position, which weights slots, or an empty sequence if there is no curve."""
        if self.request.position is None:
            return self.policy.examination
        curve = lookup.curve(unit, self.request.position)
        parameters.check_curve({"position": curve.reference}, self.parent.reward)
        self.request = replace(self.request, position=curve.reference)
        if not self.request.top_k:
            self.store.notice("slates as a whole are paid with their positions: --position matters with --top-k")
        return curve.examination

    def _select_log(self, unit: Unit) -> Selection:
        log_selection = filters.selection(unit, self.log)
        bounds = [since for since in (self.request.since, log_selection.since) if since is not None]
        return replace(log_selection, since=max(bounds, default=None))

    def _make_record(self, unit: Unit, selection: Selection) -> dict[str, Any]:
        dataset_report, options = self.report, asdict(self.request) | {"seed": self.seed}
        del options["dry_run"]
        record = lineage.make_record(
            unit, self.log or "", selection, last_id=dataset_report.last_id, window_us=self.parent.reward.window_us,
            slots=dataset_report.slots,
        )  # fmt: skip
        n_sessions = dataset_report.visits
        return record | {"now": unit.now, "splits": [TRAIN, TUNE], "sessions": n_sessions, "options": options}

    def _check_dataset(self) -> None:
        name, dataset_report, visit_counts = self.parent.reward.name, self.report, self.report.unused_visits
        n_others = visit_counts.left_out - visit_counts.silent + dataset_report.unrecorded_visits + visit_counts.waiting
        if not dataset_report.visits and visit_counts.silent and not n_others:
            hint = "train on what `rlrec recommend` served, or on an import that says how likely each slate was"
            raise InputError(
                f"of {quantity(visit_counts.silent, 'session')}, none has propensities for whole slates", hint=hint
            )
        if len(dataset_report.keep_probabilities) > 1:
            hint = "leave them out by --log, or sample users (`rlrec help scale`); a bandit can learn from them"
            raise InputError("the log dropped lines at several rates (keep_probability): it teaches wrongly", hint=hint)
        if not self.dataset.splits[TRAIN].visits:
            reason = "no session has ended"
            if counts := dataset_report.unused_sessions:
                reason = f"sessions that are not used: {counts}"
            if dataset_report.visits:
                reason = f"of {quantity(dataset_report.visits, 'session')}, none is in the split that teaches"
            raise InputError(f"empty log to train on: {reason}", hint=self._way_out())
        if dataset_report.ruled_decisions == dataset_report.decisions:
            hint = "pages with `most` or `least`, or pinned at every position, teach nothing: serve some without"
            raise InputError("empty log to train on: every page has rules of its request", hint=hint)
        if dataset_report.max_reward > LARGEST:
            raise InputError(
                f"a slate earned {dataset_report.max_reward:g} by reward {name}, which is too large to compute with",
                hint="define a reward with --clip LO,HI, or with other weights",
            )
        if not dataset_report.rewarded_decisions:
            hint = "send `rlrec feedback`, or define another reward"
            raise InputError(f"no session has an event that reward {name} weighs", hint=hint)

    def _way_out(self) -> str:
        if self.report.unused_visits.waiting:
            hint = "a session counts once it has ended and its reward window is over"
            return "; ".join(filter(None, (hint, self.maturity)))
        if self.report.unrecorded_visits:
            return "train on what `rlrec recommend` served, or on an import that says what its states were"
        if self.request.log or self.request.since is not None:
            return "widen --log or --since"
        return "serve sessions with `rlrec recommend`, or import a log of them"

    def _train(self, start_parameters: Parameters) -> TrainingResult:
        splits, gamma = self.dataset.splits, self.request.gamma
        values = fit_values(splits[TRAIN], gamma=gamma, arms=len(self.arms))
        value_of_split = partial(
            HoldoutValue, policy=self.policy, reference=start_parameters, gamma=gamma, values=values
        )
        self.request = replace(self.request, weights=self._weights(value_of_split, start_parameters))
        self.lease.renew()
        self.log_taken = self.taken_log(())
        factors = self._logger_factors(value_of_split)
        with closing(Trainer(splits[TRAIN], self.policy, self.request, start_parameters, factors)) as trainer:
            splits[TRAIN].close()
            self.lease.renew()
            tune = None
            if splits[TUNE].visits:
                by_position, gate = trainer.by_position, self.report.gate_visits
                tune = value_of_split(splits[TUNE], max_visits=TUNE_VISITS, gate_visits=gate, by_position=by_position)
            result = trainer.train(tune, progress=self._report_epoch)
        self.logged_values = [] if tune is None else self._logged_values(tune)
        if tune is not None and result.best_epoch is not None and result.best_epoch.supported:
            result = self._train_on_both(result, tune, factors)
        self.tune = TuneSplit() if tune is None else TuneSplit(tune.clusters, tune.wanted_ess)
        if not result.is_supported:
            with self.log_store.read() as unit:
                counts = version_counts(unit, self._select_log(unit))
                [served_version] = policies.by_id(
                    unit, [max(counts, key=lambda version_id: counts[version_id])]
                ).values()
            self.tune = replace(self.tune, hint=graduation.way_to_copy(served_version))
        return result

    def _logged_values(self, tune: HoldoutValue) -> list[LoggedValue]:
        """Return what each logger of the tuning visits earned, for versions of the trained policy and of policies that
        could serve in its place. A policy could not if it is a variant, cannot serve at all, or serves the same users
        at the same time on another surface. Policies that a running experiment compares are left out, too."""
        values, trained_name = tune.logged_values(by_slot=self.request.weights == SLOT), self.parent.policy.name
        if len(values) < 2 or (self.request.log or "").startswith(log_stores.PREFIX):
            return []
        with self.store.read() as unit:
            surfaces = {
                text.removeprefix("policy=") for text in arm_effects.shared_surfaces(unit, self._select_log(unit))
            }
            left_out = surfaces if trained_name in surfaces else set[str]()
            for experiment in experiments.all_experiments(unit):
                names = {variant.policy.partition("@")[0] for variant in experiment.serving}
                left_out |= names if experiment.status == "running" and trained_name in names else set()
            rivals = {
                policy.name for policy in policies.all_policies(unit)
                if "@" not in policy.name and kinds.load(policy.kind).can_serve
            }  # fmt: skip
        serving_names = rivals - left_out | {trained_name}
        return [row for row in values if lookup.split_reference(row["logger"])[0] in serving_names]

    def _train_on_both(self, result: TrainingResult, tune: HoldoutValue, factors: Array | None) -> TrainingResult:
        """Train again on the training and the tuning visits, as many steps as led to the best epoch, and return the
        result. Return `result` unchanged if the new parameters are further from the log than an epoch may be. Do so,
        too, if the tuning visits, from which it has learned, show less gain than for the best epoch. Neither test uses
        rewards of the gate.

        tune: the value on the tuning visits; factors: the factor of each logger's decisions, or None."""
        start, rates = result.path
        n_batches, weighed_columns = len(self.dataset.splits[TRAIN]), self.policy.design.columns
        union = self.dataset.union([TRAIN, TUNE], n_batches, columns=weighed_columns)
        with closing(union), closing(Trainer(union, self.policy, self.request, start, factors)) as trainer:
            parameters = trainer.follow(rates, progress=self.lease.renew)
        point, best_epoch, kl_stop = tune.point(parameters, z=ascent.GAIN_Z), result.best_epoch, self.request.kl_stop
        is_too_far = (point["ess"] or 0.0) < tune.wanted_ess or (kl_stop is not None and (point["kl"] or 0.0) > kl_stop)
        highest_gain = (point["gain"] or 0.0) + (point["std_error"] or 0.0)
        is_lost = best_epoch is not None and highest_gain < (best_epoch.gain or 0.0)
        return result if is_too_far or is_lost else replace(result, parameters=parameters)

    def _weights(self, value_of_split: Callable[..., HoldoutValue], start_parameters: Parameters) -> str:
        """Return the name of the way in which slates are weighted: the requested way, or the way that suits the first
        visits of the log."""
        train, weights = self.dataset.splits[TRAIN], self.request.weights
        rows = next(train.batches())
        if self.request.top_k:
            return ascent.TOP_K
        if int(rows.size.max(initial=0)) < 2:
            return ascent.SLATE if weights == ascent.AUTO else weights
        log_joint = value_of_split(train, max_visits=1).log_slates(rows, start_parameters)
        page_weights = ascent.PageWeights.from_visits(rows, log_joint, clip=self.request.objective.clip)
        if weights == SLOT and page_weights.has_missing_propensities:
            raise InputError("some slots have no propensity given those above", hint="use --weights slate")
        weights = page_weights.auto_weights if weights == ascent.AUTO else weights
        self.progress(page_weights.sentence(weights))
        return weights

    def _logger_factors(self, value_of_split: Callable[..., HoldoutValue]) -> Array | None:
        """Return the factor by which each logger's decisions are multiplied in training, or None if there is only one
        logger."""
        train = self.dataset.splits[TRAIN]
        if len(train.strata) < 2:
            return None
        by_slot, clip = self.request.weights == SLOT, self.request.objective.clip
        factors, n_rows = value_of_split(train, max_visits=1).teaching_factors(by_slot=by_slot, clip=clip)
        self.lease.renew()
        weights: dict[str | None, list[float]] = {}
        for (logger, _), factor in zip(train.strata, factors.tolist(), strict=True):
            weights.setdefault(logger, []).append(factor)
        self.log_taken = self.taken_log([logger for logger, counts in weights.items() if not max(counts)])
        named_factors = {name or "all others": counts for name, counts in weights.items() if name or max(counts)}
        loggers_with_rows = {logger for (logger, _), n in zip(train.strata, n_rows.tolist(), strict=True) if n}
        absent_loggers = [name for name in named_factors if name not in loggers_with_rows]
        self.progress(f"log: {taken_loggers(self.parent.policy.name, named_factors, absent_loggers)}")
        return factors

    def _report_epoch(self, point: Epoch) -> None:
        self.lease.renew()
        if 1 < point.epoch < self.request.epochs and point.epoch % EPOCHS_REPORTED:
            return
        named_figures = {"gain": point.gain, "lower bound": point.lower, "entropy": point.entropy}
        named_figures |= {"KL": point.kl, "ESS": point.ess}
        figures = [f"{name} {value:.4g}" for name, value in named_figures.items() if value is not None]
        warnings = [] if point.supported else ["too few for the gate"]
        texts = ", ".join([*figures, *warnings, f"clipped {point.clipped:.1%}"])
        self.progress(f"epoch {point.epoch} of {self.request.epochs}: {texts}")

    def _candidate(self, parameters: Parameters) -> tuple[Version, list[ArmWeights]]:
        """Return the version to be stored, which has no id and number yet, and the weights of its arms by id."""
        weights, shared_weights = self.policy.pack(parameters, self.arms)
        stored_parameters = {**self.parent.parameters, **self.policy.design.to_json(), "shared": shared_weights}
        return replace(self.parent, status="frozen", parameters=stored_parameters), weights

    def _judge_candidate(
        self, candidate: Version, weights: Sequence[ArmWeights], selection: Selection, result: TrainingResult,
        looks: Sequence[GateReport],
    ) -> GateReport | None:  # fmt: skip
        """Compare the candidate on the visits of the gate split, once, with the figures of `evaluate`, and return the
        report. Return None if no visits of the gate split are selected, if the tuning visits promise no gain, or if
        `bold` allowed a candidate that no gate can judge.

        The candidate is compared with the live version. If the live version has never served these visits, and its
        value cannot be estimated from them, the candidate is compared with the logged rewards. A look with the same
        figures as an earlier look is the same look: it has no new information, and spends no error. looks: the
        gate's earlier looks of this year."""
        is_promising = self.request.promote != "if-better" or result.is_promising
        if not self.report.gate_visits or not is_promising or (self.request.bold and result.is_bold):
            return None
        # whether the tuning visits show that the candidate is near the log. That depends on no reward, and they demand
        # more than the gate does, so a few gate visits with large weights are no objection
        best_epoch = result.best_epoch
        is_near_log = self.tune.wanted_ess is not None and best_epoch is not None and best_epoch.supported
        live, gate_split = self.live.reference, replace(selection, splits=[GATE])
        with self.log_store.read() as unit, bulk.alongside(unit):
            live_targets = targets.resolve(unit, [live], reward=self.parent.reward.name, greedy=False)
            sides = [targets.trained_target(unit, candidate, weights), *live_targets]
            gamma, visits = self.request.gamma, None
            options: dict[str, Any] = {
                "gamma": gamma, "progress": self.lease.renew, "engine": self.engine, "log": self.log,
                "cluster": self.request.cluster,
            }  # fmt: skip
            if self.request.weights == SLOT and extent(unit, gate_split).positions > 1:
                gain, visits = paired_gate.page_gains(unit, sides, gate_split, **options)
            else:
                gain = Gain.estimate(
                    VISIT_ESTIMATOR, unit, sides, gate_split, supported_elsewhere=is_near_log, **options
                )
            live_log = Selection(policy_ids=[self.live.policy.id], version_ids=[self.live.id])
            is_served = any_common(unit, gate_split, live_log)
        candidate_verdict, live_verdict = (side.verdict for side in gain.estimates)
        over_live = is_served or candidate_verdict == "insufficient" or live_verdict != "insufficient"
        if not over_live:
            gain, visits = gain.over_served, None if visits is None else visits.over_served
        number = 1 + sum(not look["repeated"] for look in looks)
        look: GateReport = {
            **paired_gate.judge_gain(gain, visits, number, nightly_alpha(number), supported_elsewhere=is_near_log),
            "against": self.live.number if over_live else None, "sessions": (visits or gain).estimates[0].n,
            "repeated": False,
        }  # fmt: skip
        earlier_look = next(
            (earlier_look for earlier_look in looks if paired_gate.is_repeated(look, earlier_look)), None
        )
        return look if earlier_look is None else {**earlier_look, "repeated": True}

    def _store_version(
        self, unit: Unit, candidate: Version, weights: Sequence[ArmWeights], result: TrainingResult,
        gate: GateReport | None, record: Mapping[str, Any],
    ) -> Result:  # fmt: skip
        """Store the version, and promote it if request and gate allow this, in one transaction. The lease must still
        hold."""
        settings.lock(unit)
        # a user's rows were deleted, and the training used their visits
        if removals.count_forgotten(unit) != self.n_forgotten:
            raise StoreBusy("rows of a user were deleted meanwhile", hint="nothing was stored; train again")
        self.lease.check(unit)
        policy = self.parent.policy
        head = policies.lock(unit, [policy.id])[policy.id]
        # the version with its parameters
        number = policies.versions(unit, [policy.id])[-1].number + 1
        curve = [asdict(point) for point in result.curve]
        training = {"curve": curve, "best": result.best, "gate": gate or report.NO_LOOK}
        version_id = policies.add_version(
            unit, policy_id=policy.id, number=number, status="frozen", reward_id=self.parent.reward.id,
            seq=head.seq, ordinal=head.ordinal, parent_id=self.parent.id,
            learned_from={**record, "options": {**record["options"], "weights": self.request.weights}},
            parameters=candidate.parameters, report=training,
        )  # fmt: skip
        beliefs.add_weights(unit, version_id, weights)
        # the promotion
        is_live, choice = head.live_id == self.live.id, self.request.promote
        is_promoted = choice == "always" or (choice == "if-better" and is_live and gate is not None and gate["passed"])
        if is_promoted:
            policies.promote(unit, policy.id, version_id=version_id, previous_id=head.live_id)
        settings.add_run(unit, "train-pg", {"policy": policy.name, "version": number}, {"promoted": is_promoted})
        reason = report.copy_reason(result, self.tune, parent=self.parent)
        if choice == "if-better":
            reason = None if is_promoted else report.refusal_reason(gate, result, is_still_live=is_live, tune=self.tune)
        is_unjudged = result.is_bold or (gate is not None and gate["answer"] == "unknown")
        if self.request.bold and is_unjudged and not is_promoted:
            route_changes = routes.newest_changes(unit)
            names = [change.route for change in route_changes if change.policy == policy.name]
            names += [change.route for change in route_changes]
            reason = report.bold_reason(result, self.tune, f"{policy.name}@{number}", next(iter(names), None))
        passed_by = list[str]()
        if is_promoted:
            from rlrec.app.audit.integrity import live_versions

            passed_by = live_versions.describe_bypasses(unit, policy.name)
        return report.result(
            self.parent, number, self.report.visits, gate, seed=self.seed, ascent=result, promoted=is_promoted,
            log=self.log_taken, ess_wanted=self.tune.wanted_ess, weights=self.request.weights, training=training,
            why=reason, passed_by=passed_by, loggers=self.logged_values,
        )  # fmt: skip
