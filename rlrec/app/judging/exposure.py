"""This module computes how often a log shows each arm (its exposure), in expectation and in fact, and how evenly the
exposure is spread over arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

import numpy as np

from rlrec import times
from rlrec.app.evaluation.passes import passes
from rlrec.app.evaluation.passes.log_reader import LogReader, Reading
from rlrec.app.evaluation.passes.passes import IN_PROCESS, Workers
from rlrec.app.evaluation.passes.request import EmptyLog, Evaluation
from rlrec.app.evaluation.passes.request import Request as EvaluationRequest
from rlrec.app.evaluation.rows import log_rows
from rlrec.app.evaluation.rows.groups import day_numbers
from rlrec.app.evaluation.rows.log_rows import LoggedBatch
from rlrec.app.evaluation.targets.logger_marginals import WITHOUT_MARGINALS
from rlrec.app.imports import log_stores
from rlrec.app.inputs import filters, lookup
from rlrec.app.log import reward_log
from rlrec.arrays import Array, Ids, finite_or_none, offsets, piece_rows, run_starts, take
from rlrec.ope.checks.exposure import RateSums, rates, spread
from rlrec.policy.beliefs.base import rewards_and_pulls
from rlrec.policy.beliefs.means import widen
from rlrec.policy.beliefs.reward import bounds
from rlrec.policy.contexts import features
from rlrec.records import Arm, Reward, Sums
from rlrec.store import Store, Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.database.unit import parse
from rlrec.store.policies import arms
from rlrec.store.policies.curves import Curve
from rlrec.times import DAY_US

if TYPE_CHECKING:
    from scipy.sparse import csr_array

MAX_YOUNG_US = 7 * DAY_US
ARM_FIGURES = ("realised", "expected", "rate")  # figures that `arm list` shows
PORTION = 100_000  # slots whose features are summed at a time


@dataclass(frozen=True, kw_only=True)
class Request:
    """This record holds the arguments of `exposure`.

    policy: the name of a policy, to read only its decisions; log: a filter; by: None or `day`; reward: the reward of
    the rates, where None means the reward that the policy learns, or the default; position: a position curve, where
    None means the curve of the policy if it has one; expected: whether to compute expected exposure from the beliefs
    that served, which takes long for slates of several arms."""

    policy: str | None = None
    log: str | None = None
    by: str | None = None
    reward: str | None = None
    position: str | None = None
    expected: bool = True


# Figures of the catalogue; None: not known. `expected_*` are for expected exposure, the others for realised.
CatalogueFigures = TypedDict("CatalogueFigures", {
    "arms": int, "coverage": float | None, "gini": float | None, "entropy": float | None,
    "effective_arms": float | None, "expected_coverage": float | None, "expected_gini": float | None,
    "expected_entropy": float | None, "expected_effective_arms": float | None, "floor_share": float | None,
    "popularity_lift": float | None, "young_share": float | None, "variety": float | None,
})  # fmt: skip
ArmFigures = TypedDict("ArmFigures", {
    "arm": str, "expected": float | None, "realised": int, "rate": float | None, "lower": float | None,
    "upper": float | None, "age_days": float | None,
})  # fmt: skip


class DayFigures(CatalogueFigures):
    day: str
    decisions: int
    slots: int


# underived: decisions whose probabilities cannot be derived; expected exposure is then unknown.
Result = TypedDict("Result", {
    "decisions": int, "slots": int, "reward": str, "curve": str | None, "underived": int,
    "underived_reason": str | None, "arms": list[ArmFigures],
    "catalogue": CatalogueFigures, "days": NotRequired[list[DayFigures]],
})  # fmt: skip


class ExposureSums(Sums, kw_only=True):
    """This record holds sums over decisions, which can be added. Each array has the shape (a,), for the arms of the
    store.

    shown_counts, expected_exposures: the realised and the expected exposure of each arm, where each decision also
    counts for the decisions that the log dropped; expected_exposures is NaN if the probabilities of any decision
    cannot be derived; n_underived: the number of such decisions; eligible_counts: the number of decisions in which
    each arm was eligible.

    drawn_slots: the number of slots that the store drew itself; uniform_slots: the expected number of drawn slots
    filled by uniform exploration; young_slots: the number of drawn slots with a young arm; slates: the number of slates
    with several arms that all have features; variety: the sum over these slates of the mean distance between two arms.
    """

    decisions: int
    slots: int
    shown_counts: Array
    expected_exposures: Array
    eligible_counts: Array
    n_underived: int
    drawn_slots: int
    uniform_slots: float
    young_slots: int
    slates: float
    variety: float


class ExposurePartial(Sums, kw_only=True):
    """This record holds the sums of a part of the log. For an empty part both fields are empty.

    days: the sums of exposure by day, or under None for all days; rates: the sums for the rates of arms."""

    days: Mapping[int | None, ExposureSums] = field(default_factory=dict)
    rates: RateSums | None = None


def exposure(store: Store, request: Request, workers: Workers = IN_PROCESS) -> Result:
    """Return the exposure of every arm that was eligible in the selected log, from one snapshot.

    Raises InputError for unknown names, and an empty log."""
    with log_stores.reading(store, request.log, workers) as (unit, log, engine):
        census = Census.resolve(unit, replace(request, log=log))
        reward_log.notice_uncounted(unit, store, [census.reward])
        partials = passes.results(LogReader(unit, census.evaluation), census, engine)
        total = reduce(add, partials, ExposurePartial())
        if total.rates is None:
            raise census.evaluation.nothing_selected("decision")
        return census.answer(total.days, total.rates)


def add_figures(store: Store, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of arms, each with the exposure and rate of the arm in the whole log (ARM_FIGURES). The
    figures are None for an arm that was never eligible."""
    figures: dict[str, ArmFigures] = {}
    with suppress(EmptyLog):
        figures = {row["arm"]: row for row in exposure(store, Request())["arms"]}
    rows: list[Mapping[str, Any]] = [figures.get(arm["arm"], {}) for arm in records]
    return [arm | {name: row.get(name) for name in ARM_FIGURES} for arm, row in zip(records, rows, strict=True)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Census:
    """A Census sums the exposure of arms over the log, for a request whose names are looked up.

    derives: whether to compute expected exposure; added_at (a,): the time at which each arm of `evaluation.arms` was
    added; arm_vectors (a, v): a unit vector of the features of each arm, which is zero for an arm without features,
    or None if no arm has features; curve: the position curve that weights slots in the rates, or None if every slot
    counts fully."""

    evaluation: Evaluation
    reward: Reward
    by_day: bool
    derives: bool
    added_at: Ids
    arm_vectors: csr_array | None
    curve: Curve | None

    @classmethod
    def resolve(cls, unit: Unit, request: Request) -> Census:
        """Look up the names of a request, and return the census. Raises InputError for unknown names."""
        log = filters.join_filters(request.policy and f"policy={request.policy}", request.log) or None
        evaluation = Evaluation.resolve(unit, EvaluationRequest(targets=(), log=log))
        version = None if request.policy is None else lookup.version(unit, request.policy)[0]
        reward = version.reward if version and not request.reward else lookup.reward(unit, request.reward)
        position = request.position or (version and version.params.get("position"))
        catalogue = arms.all_arms(unit)
        return cls(
            evaluation=evaluation, reward=reward, by_day=request.by == "day", derives=request.expected,
            added_at=np.array([arm.added_at for arm in catalogue], np.int64), arm_vectors=feature_vectors(catalogue),
            curve=lookup.curve(unit, position) if position else None,
        )  # fmt: skip

    # -- sums --

    @property
    def reading(self) -> Reading:
        return Reading(columns=log_rows.JUDGE_COLUMNS, support=False, marginals=0)

    def __call__(self, reader: LogReader, /) -> ExposurePartial:
        """Return the sums of the partition that the reader reads."""
        return reduce(add, (self._partial(batch, reader) for batch in reader.read(self.reading)), ExposurePartial())

    def _partial(self, batch: LoggedBatch, reader: LogReader) -> ExposurePartial:
        rows, _ = log_rows.usable_rows(batch.log, self.reward, now=self.evaluation.now)
        position = rows.slots["position"]
        reward, pulls = rewards_and_pulls(rows.reward, position, self.curve.examination if self.curve else ())
        if (count := reward_log.sampling_counts(rows.slots)) is not None:
            reward, pulls = reward * count, pulls * count
        errors = np.array(self.curve.errors if self.curve else [0.0])
        rate_sums = RateSums.from_slots(
            arm=self.evaluation.arms.index(rows.slots["arm_id"]), cluster=rows.slots["cluster"],
            examination=pulls, reward=reward, arms=len(self.added_at),
            doubt=errors[np.minimum(position, len(errors)) - 1],
        )  # fmt: skip
        slots = batch.log.slots
        day = day_numbers(slots["at"]) if self.by_day else np.zeros(len(batch.log), np.int64)
        days: dict[int | None, ExposureSums] = {}
        for number in np.unique(day).tolist():
            days[number if self.by_day else None] = self._sums(take(slots, day == number), batch, reader)
        return ExposurePartial(days=days, rates=rate_sums)

    def _sums(self, slots: Columns, batch: LoggedBatch, reader: LogReader) -> ExposureSums:
        starts = run_starts(slots["decision_id"])
        arm, live = self.evaluation.arms.index(slots["arm_id"]), ~slots["imported"]
        count = 1 / slots["keep_probability"]
        slates, variety = self._variety(arm, starts, count[starts])
        exposures, n_underived = self._exposures(slots, starts, batch, reader)
        sets = batch.lists.catalogues_of(slots["decision_id"][starts], slots["eligible_id"][starts])
        return ExposureSums(
            decisions=len(starts), slots=len(arm), expected_exposures=exposures, n_underived=n_underived,
            shown_counts=np.bincount(arm, weights=count, minlength=len(self.added_at)).astype(np.float64),
            eligible_counts=self._eligible(sets, batch), drawn_slots=int(live.sum()),
            uniform_slots=_count_uniform_picks(take(slots, live), reader),
            young_slots=int((slots["at"] - self.added_at[arm] < MAX_YOUNG_US)[live].sum()),
            slates=slates, variety=variety,
        )  # fmt: skip

    def _exposures(self, slots: Columns, starts: Ids, batch: LoggedBatch, reader: LogReader) -> tuple[Array, int]:
        """Return the expected exposure of each arm, (a,), and the number of decisions whose probabilities cannot be
        derived. The expected exposure of an arm is the sum of its probabilities over the positions of all decisions of
        the slots. starts: the index of each decision's first slot."""
        exposures = np.zeros(len(self.added_at))
        if not self.derives:
            return np.full(len(exposures), np.nan), 0
        decisions = take(slots, starts)
        n_derived, max_slots = 0, int(decisions["size"].max())
        for case in reader.marginals.cases(decisions, batch.contexts, batch.eligible, positions=max_slots):
            if np.isnan(case.marginals).any():
                continue
            n_decisions = (1 / decisions["keep_probability"][case.rows]).sum()
            exposures[self.evaluation.arms.index(case.arms)] += n_decisions * case.marginals.sum(axis=0)
            n_derived += len(case.rows)
        n_underived = len(starts) - n_derived
        return np.full(len(exposures), np.nan) if n_underived else exposures, n_underived

    def _eligible(self, sets: Ids, batch: LoggedBatch) -> Array:
        """Return the number of decisions in which each arm was eligible, (a,). sets: the id of each decision's eligible
        set."""
        decisions = np.zeros(len(self.added_at))
        for key, n in zip(*(column.tolist() for column in np.unique(sets, return_counts=True)), strict=True):
            arms = batch.lists.catalogues[key] if key in batch.lists.catalogues else batch.eligible[key]
            decisions[self.evaluation.arms.index(arms)] += n
        return decisions

    def _variety(self, arm: Ids, starts: Ids, count: Array) -> tuple[float, float]:
        """Return the number of slates with several arms that all have features, and the sum over these slates of the
        mean distance between two arms. In both, each slate counts `count` times.

        arm: the arm of each slot; starts: the index of each slate's first slot; count: the weight of each slate."""
        if self.arm_vectors is None:
            return 0.0, 0.0
        from scipy.sparse import csr_array

        n = np.diff(np.r_[starts, len(arm)])
        has_features = np.diff(self.arm_vectors.indptr)[arm] > 0
        slates = np.flatnonzero((n > 1) & (np.add.reduceat(has_features.astype(np.int64), starts) == n))
        total, step = 0.0, max(1, PORTION // max(1, int(n.max(initial=1))))
        for start in range(0, len(slates), step):
            portion = slates[start : start + step]
            # the sum of the vectors of each slate; its square is twice the sum of all similarities of two arms, plus n
            slots = piece_rows(starts[portion], n[portion])
            slate_arms = csr_array(
                (np.ones(len(slots)), arm[slots], offsets(n[portion])), shape=(len(portion), len(self.added_at))
            )
            sums = slate_arms @ self.arm_vectors
            squares = sums.multiply(sums).sum(axis=1)
            total += float((count[portion] * (1 - (squares - n[portion]) / (n[portion] * (n[portion] - 1)))).sum())
        return float(count[slates].sum()), total

    # -- figures --

    def answer(self, by_day: Mapping[int | None, ExposureSums], rate_sums: RateSums) -> Result:
        """Return the exposure of every arm and of the catalogue, computed from the sums of the selected log.

        by_day: the sums of exposure by day, or under None for all days; rate_sums: the sums for the rates of arms."""
        total = reduce(add, by_day.values())
        limits = bounds(self.reward)
        is_share = limits is not None and limits[0] >= 0 and limits[1] <= 1
        rate, lower, upper = widen(*rates(rate_sums, is_bounded=is_share), rate_sums.error)
        popularity = rate_sums.reward.sum(axis=0)
        table = self.evaluation.arms
        arm_indexes = np.flatnonzero(total.eligible_counts).tolist()
        arm_rows = sorted(arm_indexes, key=lambda row: (-total.shown_counts[row], table.rank[row]))
        result: Result = {
            "decisions": total.decisions, "slots": total.slots, "reward": self.reward.name,
            "curve": self.curve and self.curve.reference,
            "underived": total.n_underived, "underived_reason": WITHOUT_MARGINALS if total.n_underived else None,
            "arms": [
                {
                    "arm": table.keys[int(table.ids[row])], "expected": finite_or_none(total.expected_exposures[row]),
                    "realised": round(total.shown_counts[row]), "rate": finite_or_none(rate[row]),
                    "lower": finite_or_none(lower[row]), "upper": finite_or_none(upper[row]),
                    "age_days": self._age_days(int(self.added_at[row])),
                }
                for row in arm_rows
            ],
            "catalogue": _figures(total, popularity),
        }  # fmt: skip
        if self.by_day:
            result["days"] = [
                {
                    "day": times.date(int(day)), "decisions": sums.decisions, "slots": sums.slots,
                    **_figures(sums, popularity),
                }
                for day, sums in sorted(by_day.items())
                if day is not None
            ]  # fmt: skip
        return result

    def _age_days(self, added_at: int) -> float | None:
        """Return the age of an arm in days. The result is None if the arm was added after the end of the log, as an
        import does."""
        return None if added_at > self.evaluation.extent.last_at else (self.evaluation.now - added_at) / DAY_US


def _count_uniform_picks(slots: Columns, reader: LogReader) -> float:
    """Return the expected number of the slots that were filled by uniform exploration."""
    ids, version = np.unique(slots["version_id"], return_inverse=True)
    reader.loggers.versions(ids)
    n_uniform = 0.0
    for number, key in enumerate(ids.tolist()):
        floor = np.atleast_1d(reader.loggers.policy(key).exploration)
        position = slots["position"][version == number]
        n_uniform += float(floor[np.minimum(position, len(floor)) - 1].sum())
    return n_uniform


def _figures(sums: ExposureSums, popularity: Array) -> CatalogueFigures:
    """Return how evenly the sums spread exposure over the arms that were eligible in at least one decision, and other
    figures of the catalogue. popularity (a,): the sum of rewards of each arm."""
    arm_mask = sums.eligible_counts > 0
    shown_spread, expectations = (spread(counts[arm_mask]) for counts in (sums.shown_counts, sums.expected_exposures))
    mean = popularity[arm_mask].mean()
    lift = float(sums.shown_counts @ popularity) / float(sums.shown_counts.sum()) / mean if mean > 0 else None
    figures = {
        "arms": int(arm_mask.sum()), **shown_spread, **{f"expected_{key}": x for key, x in expectations.items()},
        "floor_share": sums.uniform_slots / sums.drawn_slots if sums.drawn_slots else None, "popularity_lift": lift,
        "young_share": sums.young_slots / sums.drawn_slots if sums.drawn_slots else None,
        "variety": sums.variety / sums.slates if sums.slates else None,
    }  # fmt: skip
    return cast(CatalogueFigures, figures)


def feature_vectors(catalogue: Sequence[Arm]) -> csr_array | None:
    """Return a unit vector of the features of each arm, (a, v), or None if no arm has features. Each text, each flag
    and each item of a list gives 1, and each number is divided by the largest number of its field. The vector is then
    scaled to length 1."""
    entries = [
        (row, path if number is None else f"{path}\x1e", 1.0 if number is None else float(number))
        for row, arm in enumerate(catalogue)
        for path, number in features.items("", parse(arm.features, f"arm {arm.key}"))
    ]
    if not entries:
        return None
    from scipy.sparse import csr_array

    columns = {path: column for column, path in enumerate(dict.fromkeys(path for _, path, _ in entries))}
    row = np.array([row for row, _, _ in entries], np.int64)
    column = np.array([columns[path] for _, path, _ in entries], np.int64)
    value = np.array([value for _, _, value in entries], np.float64)
    # divide numbers by the largest of their field, then rows by their length
    max_weight = np.zeros(len(columns))
    np.maximum.at(max_weight, column, np.abs(value))
    vectors = csr_array(
        (value / np.where(max_weight > 0, max_weight, 1.0)[column], (row, column)),
        shape=(len(catalogue), max(1, len(columns))),
    )
    length = np.sqrt(vectors.multiply(vectors).sum(axis=1))
    vectors.data /= np.repeat(np.where(length > 0, length, 1.0), np.diff(vectors.indptr))
    return vectors
