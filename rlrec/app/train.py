"""Train a policy for whole visits, judge what came of it on visits that did not teach it, and let it go live."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

from rlrec.app.distributions.trained import Trained
from rlrec.app.inputs import filters, lookup
from rlrec.app.log import ended_visits, lineage
from rlrec.app.log.ended_visits import Cutoff
from rlrec.app.training import gate as gates
from rlrec.app.training.ascent import GATE, LEAST, TRAIN, TUNE, Climbed, Climber, Epoch, Options
from rlrec.app.training.dataset import Part, Spool
from rlrec.app.training.dataset_writer import Filled, Filler
from rlrec.app.training.holdout_value import ESTIMATOR, VISITS, Judge, fitted
from rlrec.app.training.lease import Lease
from rlrec.errors import InputError, suggest
from rlrec.ope.estimate import Estimate
from rlrec.ope.paired import PairedDifference
from rlrec.policy.baseline import BASELINES
from rlrec.policy.gradient import Gradient, Parameters
from rlrec.records import Version
from rlrec.store import Store, Unit, bulk, policies, settings, weights
from rlrec.store.reader import Selection

KIND = "gradient"
CHOOSING = 5_000  # visits for tuning by which epochs are compared, at most: the gate looks at all of its own
PROMOTE = ("never", "if-better", "always")
YEAR_US = 365 * 86_400_000_000
HIGHEST = 1e9
LARGEST = 1e15  # reward of a page


@dataclass(frozen=True, kw_only=True)
class Request(Options):
    """What `train-pg` is asked for. log: a filter; seed None: random."""

    name: str
    log: str | None = None
    since: int | None = None
    seed: int | None = None
    min_new: int = 0
    from_version: int | None = None
    promote: str = "never"


def check(request: Request) -> None:
    """Raises InputError for an option that cannot be."""
    for name, value, low, high in (
        ("gamma", request.gamma, 0.0, 1.0), ("lr", request.lr, 1e-9, HIGHEST),
        ("entropy", request.entropy, 0.0, HIGHEST),
        ("clip-weight", request.clip_weight, 1e-9, HIGHEST), ("kl-stop", request.kl_stop, 0.0, HIGHEST),
        *((f"shaping {name}", value, -HIGHEST, HIGHEST) for name, value in request.shaping.items()),
    ):  # fmt: skip
        if value is not None and not (isfinite(value) and low <= value <= high):
            raise InputError(f"{name} is {value:g}", hint=f"it lies between {low:g} and {high:g}")
    for name, chosen, known in (("baseline", request.baseline, BASELINES), ("promote", request.promote, PROMOTE)):
        if chosen not in known:
            raise InputError(
                f"unknown {name} {chosen!r}", hint=suggest(chosen, list(known)) or f"one of {', '.join(known)}"
            )


def train(store: Store, request: Request, *, progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """A new version, if there is enough to learn from. Raises InputError for a log that teaches nothing, StoreBusy
    where somebody else trains the policy."""
    check(request)
    with store.read() as unit:
        plan = _Plan.of(unit, request)
    with Lease(store, plan.parent.policy) as lease:
        return _Training(store, plan, lease, progress).run()


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """From which version, by what."""

    request: Request
    parent: Version
    seed: int

    @classmethod
    def of(cls, unit: Unit, request: Request) -> _Plan:
        reference = request.name if request.from_version is None else f"{request.name}@{request.from_version}"
        if lookup.split(request.name)[1] is not None:
            raise InputError(f"{request.name!r} names a version", hint="write the policy, and --from-version V")
        parent, _ = lookup.version(unit, reference)
        if parent.policy.kind != KIND:
            raise InputError(
                f"policy {parent.policy.name!r} is of kind {parent.policy.kind}, which train-pg does not train",
                hint=f"`rlrec policy create NAME --kind {KIND}` makes one that it does",
            )
        if request.promote != "never":
            lookup.refuse_running_variant(unit, parent)
        return cls(request=request, parent=parent, seed=_seed(request.seed))


def _seed(given: int | None) -> int:
    return int.from_bytes(os.urandom(8)) >> 1 if given is None else given


@dataclass(frozen=True, kw_only=True)
class _Gate:
    """What the gate saw. candidate: the number of the look in this year; alpha: what it may err."""

    candidate: int
    alpha: float
    live: Version
    value: Estimate
    live_value: Estimate
    gain: PairedDifference

    @property
    def passed(self) -> bool:
        return gates.passed(self.gain)

    def told(self) -> dict[str, Any]:
        """As it is stored and shown."""
        return {
            "estimator": ESTIMATOR, "against": self.live.number, "candidate": self.candidate, "alpha": self.alpha,
            "value": self.value.value, "live_value": self.live_value.value, "estimate": self.gain.value,
            "std_error": self.gain.std_error, "lower": self.gain.lower, "upper": self.gain.upper,
            "ess": self.gain.ess, "sessions": self.value.n, "verdict": self.gain.verdict,
            "reasons": list(self.gain.reasons), "passed": self.passed,
        }  # fmt: skip


NO_GATE: dict[str, Any] = dict.fromkeys(
    (
        "estimator", "against", "candidate", "alpha", "value", "live_value", "estimate", "std_error", "lower", "upper",
        "ess", "sessions", "verdict", "reasons", "passed",
    )
)  # fmt: skip


class _Training:
    """One run."""

    def __init__(self, store: Store, plan: _Plan, lease: Lease, progress: Callable[[str], None]) -> None:
        self.store, self.plan, self.lease, self.progress = store, plan, lease, progress
        self.request, self.parent = plan.request, plan.parent

    def run(self) -> dict[str, Any]:
        with closing(Spool()) as spool:
            return self._run(spool)

    def _run(self, spool: Spool) -> dict[str, Any]:
        with self.store.read() as unit, bulk.alongside(unit):
            reader = Trained(unit, self.parent)
            self._check_shaping(reader.policy)
            live = policies.live(unit, [self.parent.policy.name])[self.parent.policy.name][0]
            held = Trained(unit, live)
            selection, now = self._selection(unit), unit.now
            filler = Filler(unit, reader, self.parent.reward, seed=self.plan.seed, spool=spool)
            cutoff, since = Cutoff.of(unit, self.parent.reward), _trained_at(unit, self.parent)
            filled = filler.fill(selection, cutoff, since=since, progress=self.lease.renew)
            record = self._record(unit, selection, filled, now)
            looks = _looks(unit, self.parent, now)
        if filled.new < self.request.min_new:
            return self._nothing_new(live, filled)
        spool.arrange({TRAIN: self.request.batch, TUNE: VISITS, GATE: VISITS})
        self.lease.renew()
        self._check(spool, filled)
        if unused := _unused(filled):
            self.store.notice(f"sessions that are not used: {unused}")
        climbed = self._climb(spool, reader, filler)
        gate = self._judge(spool, reader.policy, climbed, live, held.parameters_of(filler.arms), looks)
        return self.store.write(
            lambda unit: self._store(unit, reader.policy, filler, climbed, gate, live, record, filled)
        )

    def _selection(self, unit: Unit) -> Selection:
        selected = filters.selection(unit, self.request.log)
        since = self.request.since
        if since is None:
            return selected
        return replace(selected, since=since if selected.since is None else max(since, selected.since))

    def _record(self, unit: Unit, selection: Selection, filled: Filled, now: int) -> dict[str, Any]:
        """What the version remembers of its log."""
        made = lineage.record(
            unit, self.request.log or "", selection, last_id=filled.last_id, window_us=self.parent.reward.window_us,
            slots=filled.slots,
        )  # fmt: skip
        options = asdict(self.request) | {"seed": self.plan.seed}
        return made | {"now": now, "splits": [TRAIN, TUNE], "sessions": filled.visits, "options": options}

    def _check_shaping(self, policy: Gradient) -> None:
        for name in self.request.shaping:
            if name not in policy.names:
                near = suggest(name, list(policy.names))
                raise InputError(
                    f"states have no feature {name!r} to shape by",
                    hint=near or "such as session:reward, session:step or a feature of the context",
                )

    def _nothing_new(self, live: Version, filled: Filled) -> dict[str, Any]:
        least = self.request.min_new
        self.store.notice(f"nothing new: {filled.new} sessions since the last training, and --min-new is {least}")
        return _answer(
            self.parent.policy.name, live.number, self.parent.number, filled.new, NO_GATE, promoted=False
        ) | {"trained": False, "epochs": 0, "best_epoch": None, "seed": self.plan.seed}

    def _check(self, spool: Spool, filled: Filled) -> None:
        """Raises InputError where the log teaches nothing."""
        name = self.parent.reward.name
        others = filled.told.left_out - filled.told.silent + filled.unrecorded + filled.told.waiting
        if not filled.visits and filled.told.silent and not others:
            raise InputError(
                f"none of the {filled.told.silent} sessions has propensities for whole pages",
                hint="train on what `rlrec recommend` served, or on an import that says how likely each page was",
            )
        if not spool.parts[TRAIN].visits:
            seen = f"none of {filled.visits} sessions is in the split that teaches" if filled.visits else ""
            why = seen or _unused(filled) or "no session has ended"
            raise InputError(f"empty log to train on: {why}", hint=self._way_out(filled))
        if filled.largest > LARGEST:
            raise InputError(
                f"a page earned {filled.largest:g} by reward {name}, which is too much to reckon with",
                hint="define a reward with --clip LO,HI, or with other weights",
            )
        if not filled.rewarded:
            raise InputError(
                f"no session has an event that reward {name} weighs",
                hint="send `rlrec feedback`, or define another reward",
            )

    def _way_out(self, filled: Filled) -> str:
        """What to do where no session teaches."""
        if filled.told.waiting:
            return "a session counts once it has ended and its reward window is over"
        if filled.unrecorded:
            return "train on what `rlrec recommend` served, or on an import that says what its states were"
        if self.request.log or self.request.since is not None:
            return "widen --log or --since"
        return "serve sessions with `rlrec recommend`, or import a log of them"

    def _climb(self, spool: Spool, reader: Trained, filler: Filler) -> Climbed:
        start = reader.parameters_of(filler.arms)
        self.values = fitted(spool.parts[TRAIN], gamma=self.request.gamma, arms=len(filler.arms))
        judge = self._judge_of(spool.parts[TUNE], reader.policy, start, most=CHOOSING)
        self.lease.renew()
        with closing(Climber(spool.parts[TRAIN], reader.policy, self.request)) as climber:
            spool.parts[TRAIN].close()
            self.lease.renew()
            climbed = climber.climb(start, judge, progress=self._epoch)
        if self.request.promote != "if-better" and not climbed.best:
            self.store.notice(f"no epoch was better: the new version is a copy of version {self.parent.number}")
        return climbed

    def _judge_of(self, part: Part, policy: Gradient, against: Parameters, most: int | None = None) -> Judge | None:
        if not part.visits:
            return None
        return Judge(part, policy, against, gamma=self.request.gamma, values=self.values, most=most)

    def _epoch(self, point: Epoch) -> None:
        self.lease.renew()
        shown = {"gain": point.gain, "above": point.lower, "entropy": point.entropy, "KL": point.kl, "ESS": point.ess}
        figures = ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if value is not None)
        few = f" (below {LEAST}: others come first)" if point.ess is not None and point.ess < LEAST else ""
        self.progress(f"epoch {point.epoch} of {self.request.epochs}: {figures}{few}, clipped {point.clipped:.1%}")

    def _judge(
        self, spool: Spool, policy: Gradient, climbed: Climbed, live: Version, held: Parameters, looks: int
    ) -> _Gate | None:
        """The gate's one look at this candidate; none where nothing speaks for it, or there is nothing to look at."""
        judge = self._judge_of(spool.parts[GATE], policy, held)
        if judge is None or (self.request.promote == "if-better" and not climbed.promising):
            return None
        alpha = gates.alpha(looks + 1)
        value, live_value, gain = judge.judged(climbed.parameters, alpha=alpha)
        return _Gate(candidate=looks + 1, alpha=alpha, live=live, value=value, live_value=live_value, gain=gain)

    def _store(
        self, unit: Unit, policy: Gradient, filler: Filler, climbed: Climbed, gate: _Gate | None, live: Version,
        record: Mapping[str, Any], filled: Filled,
    ) -> dict[str, Any]:  # fmt: skip
        """The version, and what became of it: in one transaction, while the lease is ours."""
        self.lease.check(unit)
        mine = self.parent.policy
        head = policies.lock(unit, [mine.id])[mine.id]
        rows, shared = policy.packed(climbed.parameters)
        told = NO_GATE if gate is None else gate.told()
        number = policies.versions(unit, [mine.id])[-1].number + 1
        report = {"curve": [asdict(point) for point in climbed.curve], "best": climbed.best, "gate": told}
        made = policies.add_version(
            unit, policy_id=mine.id, number=number, status="frozen", reward_id=self.parent.reward.id, seq=head.seq,
            ordinal=head.ordinal, parent_id=self.parent.id, learned_from=record,
            parameters={**self.parent.parameters, "shared": shared}, report=report,
        )  # fmt: skip
        weights.add(unit, made, zip(filler.arms.tolist(), (row.astype("<f8").tobytes() for row in rows), strict=True))
        same = head.live_id == live.id
        promoted = self.request.promote == "always" or (
            self.request.promote == "if-better" and same and gate is not None and gate.passed
        )
        if promoted:
            policies.promote(unit, mine.id, version_id=made, previous_id=head.live_id)
        settings.add_run(unit, "train-pg", {"policy": mine.name, "version": number}, {"promoted": promoted})
        answer = _answer(
            mine.name, number, self.parent.number, filled.visits, told, promoted=promoted, tuned=climbed.chosen
        )
        return answer | {
            "trained": True, "epochs": len(climbed.curve), "best_epoch": climbed.best, "seed": self.plan.seed,
            "why": None if promoted or self.request.promote != "if-better" else _why(gate, climbed, same=same),
        }  # fmt: skip


def _unused(filled: Filled) -> str:
    """How many sessions do not teach, and why."""
    told = filled.told
    counts = (
        (told.waiting, "that go on, or their reward windows do"),
        (told.left_out, "cut by the filter, with a censored slot, or without propensities"),
        (filled.unrecorded, "whose states at the time of their decisions are not recorded"),
        (filled.unnamed, "whose user came later and belongs to another split"),
        (filled.endless, f"of more than {ended_visits.LONGEST:,} decisions"),
    )
    return "; ".join(f"{count:,} {what}" for count, what in counts if count)


def _answer(
    name: str, version: int, parent: int, sessions: int, told: Mapping[str, Any], *, promoted: bool,
    tuned: Epoch | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What the command shows. told: of the gate; tuned: the epoch that was chosen."""
    gain, lower, ess = (None, None, None) if tuned is None else (tuned.gain, tuned.lower, tuned.ess)
    return {
        "policy": name, "version": version, "parent": parent, "sessions": sessions, "estimate": told["estimate"],
        "lower": told["lower"], "promoted": promoted, "upper": told["upper"], "value": told["value"],
        "live_value": told["live_value"], "against": told["against"], "estimator": told["estimator"],
        "ess": told["ess"], "verdict": told["verdict"], "reasons": told["reasons"] or [],
        "candidate": told["candidate"], "alpha": told["alpha"], "gate_sessions": told["sessions"],
        "tune_estimate": gain, "tune_lower": lower, "tune_ess": ess,
    }  # fmt: skip


def _why(gate: _Gate | None, climbed: Climbed, *, same: bool) -> str:
    """Why a candidate was not promoted."""
    if not same:
        return "another version went live meanwhile"
    if gate is None:
        return _unpromising(climbed.chosen) if not climbed.promising else "no session of the gate split has ended"
    if gate.gain.verdict == "insufficient":
        return f"the gate split does not tell: {', '.join(gate.gain.reasons)}"
    lower = "unknown" if gate.gain.lower is None else f"{gate.gain.lower:.4g}"
    return f"the lower bound of its gain over version {gate.live.number}, {lower}, is not above 0"


def _unpromising(tuned: Epoch | None) -> str:
    """Why the gate was not asked."""
    if tuned is not None and (tuned.ess or 0.0) < LEAST:
        return f"the tune split does not tell: {tuned.ess or 0.0:.0f} effective sessions, where {LEAST} are wanted"
    return "nothing on the tune split says that it is better"


def _trained_at(unit: Unit, parent: Version) -> int:
    """When the policy was trained last, whether what came of it went live or not; -1: never."""
    made = policies.versions(unit, [parent.policy.id])
    return max(int(one.learned_from.get("now", -1)) for one in made)


def _looks(unit: Unit, parent: Version, now: int) -> int:
    """How many candidates the gate has looked at within a year."""
    reports = policies.reports(unit, parent.policy.id, since=now - YEAR_US)
    return sum(one["gate"]["candidate"] is not None for one in reports)
