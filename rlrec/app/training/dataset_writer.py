"""This module turns the log of the store into a dataset of visits, with the states that the policy in training
reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import field, replace
from typing import Self

import numpy as np

from rlrec import ope
from rlrec.app.distributions.trained import TrainedModel
from rlrec.app.evaluation.passes import passes
from rlrec.app.evaluation.passes.log_reader import LogReader, Reading
from rlrec.app.evaluation.passes.request import Evaluation, Request
from rlrec.app.evaluation.rows.log_rows import cluster_digests
from rlrec.app.log import ended_visits, stored_contexts
from rlrec.app.log.ended_visits import Cutoff, EndedVisits
from rlrec.app.log.reward_log import UnusedVisits
from rlrec.app.log.splits import GATE, TRAIN, TUNE, owner_splits
from rlrec.app.training.dataset import Catalogue, Dataset, EligibleSet, VisitRows
from rlrec.app.training.holdout_value import ESTIMATOR
from rlrec.arrays import Ids, distinct, look_up, offsets, take
from rlrec.compute import Engine
from rlrec.ope.units.sessions import SessionFold
from rlrec.policy.contexts.encoder import EncodedRows
from rlrec.policy.contexts.features import Sparse
from rlrec.policy.contexts.statements import PAGE
from rlrec.policy.gradients.gradient import order_by_row
from rlrec.policy.slates.page_rules import parse, parse_texts
from rlrec.records import Reward, Sums
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import contents, reader, sessions, settings
from rlrec.store.log.selected import Selection, session_bounds
from rlrec.store.policies import arms

# The columns that are read for each impression.
COLUMNS = (
    "at", "imported", "censored", "context_id", "eligible_id", "catalogue_revision", "size", "split", "visit", "step",
    "arm_id", "propensity", "marginal", "min_propensity", "log_propensity", "history", "recorded", "created_at",
    "policy_id", "version_id", "variant_id", "user_id", "user_digest", "session_digest", "keep_probability",
)  # fmt: skip
UNWEIGHED_LOG = 700.0  # minus a log propensity that makes every weight almost 0
OWNER = "owner"  # a column of visits: the row of their session in the keys of a batch
# Columns of visits: slots that a pin fills, and those of pages that have other rules, or are pinned altogether.
PINNED, RULED = "pinned", "ruled"
MAX_CELLS = 1_000_000  # arms of eligible sets that are in memory at a time


class WriteReport(Sums, kw_only=True, eq=True):
    """This record tells which visits of a log went into a dataset, and why other visits did not.

    unused_visits: the counts of visits that are not over, incomplete, or without propensities; moved_visits: the number
    of visits of a session that later got a user of another split; unrecorded_visits: the number of visits without
    stored states; long_visits: the number of visits too long to be evaluated.

    visits, decisions, slots: the numbers of usable visits, of their decisions and of their slots; ruled_decisions:
    the number of decisions whose pages have rules that keep them from teaching; gate_visits: the number of usable
    visits in the split of the gate, which are not written; new_visits: the number of visits that were not usable
    before the time `since`; rewarded_decisions: the number of decisions with an event that counts; max_reward: the
    largest absolute reward of a slate; last_id: the id of the newest decision; keep_probabilities: the smallest and
    the largest probability with which the log kept its decisions."""

    unused_visits: UnusedVisits = field(default_factory=UnusedVisits)
    moved_visits: int = 0
    unrecorded_visits: int = 0
    long_visits: int = 0
    max_reward: float = 0.0
    last_id: int = 0
    visits: int = 0
    gate_visits: int = 0
    decisions: int = 0
    ruled_decisions: int = 0
    slots: int = 0
    new_visits: int = 0
    rewarded_decisions: int = 0
    keep_probabilities: frozenset[float] = frozenset()

    def __add__(self, other: Self) -> Self:
        max_reward, last_id = max(self.max_reward, other.max_reward), max(self.last_id, other.last_id)
        return replace(super().__add__(other), max_reward=max_reward, last_id=last_id)

    @property
    def unused_sessions(self) -> str:
        """Return a text that says how many sessions are not used for training, for each reason."""
        counts = (
            (self.unused_visits.waiting, "not over, or still within their reward windows"),
            (self.unused_visits.left_out, "cut by the filter, with a censored slot, or without propensities"),
            (self.unrecorded_visits, "whose states at the time of their decisions are not recorded"),
            (self.moved_visits, "whose user came later and belongs to another split"),
            (self.long_visits, f"of more than {ended_visits.MAX_VISIT_DECISIONS:,} decisions"),
        )
        return "; ".join(f"{count:,} {reason}" for count, reason in counts if count)


WriteResult = tuple[WriteReport, list[VisitRows]]  # the report on a part of the log, and its visits


class DatasetWriter:
    """A DatasetWriter reads a log once and turns it into visits for a dataset.

    model: the model that reads states and features of arms; cutoff: the time until which visits count as over; seed:
    the seed of the digests that name visits, and so of the order of visits; examination: the examination of
    positions, by which the rewards of slots are divided; since: a time (visits that were not usable at that time
    count as new); judged_from: the id of a decision (visits that begin before it are used for training alone, not to
    choose the epoch or in the gate); log: the filter of the log."""

    def __init__(
        self, unit: Unit, selection: Selection, model: TrainedModel, reward: Reward, cutoff: Cutoff, *, seed: int,
        examination: Sequence[float] = (), since: int = -1, judged_from: int = 0, log: str | None = None,
    ) -> None:  # fmt: skip
        self.unit, self.model, self.reward, self.cutoff, self.seed = unit, model, reward, cutoff, seed
        self.examination, self.since, self.judged_from = examination, since, judged_from
        self.evaluation = Evaluation.resolve(unit, Request(targets=(), log=log), selection)
        self.salt = settings.get(unit).split_salt
        sorted_arms = sorted(arms.all_arms(unit), key=lambda arm: arm.key)
        self.arms: Ids = np.array([arm.id for arm in sorted_arms], np.int64)
        self._order = np.argsort(self.arms)
        self._catalogues: dict[int, Catalogue] = {}  # by epoch
        # the number of loggers that can have weights, as in `evaluate`, for visits of this length
        horizon = min(max(1, self.evaluation.extent.steps), ended_visits.MAX_VISIT_DECISIONS)
        self._spans_batches, estimators = sessions.any_user(unit), ope.parse(ESTIMATOR).sessions
        fold = SessionFold(estimators=estimators, gamma=1.0, horizon=horizon, spans_batches=self._spans_batches)
        self.max_loggers = fold.max_loggers
        self._ruled_contexts = np.array(contents.contexts_with(unit, PAGE), np.int64)
        self._context_ids: Ids = np.empty(0, np.int64)
        self._encoded_contexts: EncodedRows = None
        self.reading = Reading(columns=COLUMNS, visits=True, keys=True)

    def write(self, dataset: Dataset, *, engine: Engine | None, progress: Callable[[], None]) -> WriteReport:
        """Write the usable visits of the selected log to the dataset. Returns the report on all visits.

        engine: the engine whose processes read partitions of the log, or None to read in this process; progress: a
        function called after each portion."""
        report, dataset.decisions = WriteReport(), self.evaluation.extent.decisions
        dataset.strata = self.evaluation.loggers.strata(self.max_loggers)
        if engine is None and self.unit.folder is None:  # in the order of the store, since the dataset sorts anyway
            selection = self.evaluation.selection
            bounds = session_bounds(self.unit, selection)
            batches = reader.batches(self.unit, selection, columns=COLUMNS, visits=True, keys=True, bounds=bounds)
            log_reader = LogReader(self.unit, self.evaluation, progress=progress, rows=batches)
            portions: Iterator[WriteResult] = map(self._read_batch, log_reader.batches(self.reading))
        else:
            portions = passes.results(LogReader(self.unit, self.evaluation, progress=progress), self, engine)
        for counts, pieces in portions:
            for rows in pieces:
                dataset.add(rows)
            report += counts
            progress()
        return report

    def __call__(self, log_reader: LogReader, /) -> WriteResult:
        """Return a report on the visits of a partition, and the usable visits."""
        report, rows = WriteReport(), list[VisitRows]()
        for counts, pieces in map(self._read_batch, log_reader.batches(self.reading)):
            report, rows = report + counts, rows + pieces
        return report, rows

    def _read_batch(self, batch: reader.Batch) -> WriteResult:
        """Return a report on the visits of a batch, and the usable visits."""
        visits, counts = ended_visits.usable_visits(batch, self.reward, self.cutoff)
        p_keep = batch.slots["keep_probability"]
        keep_probabilities = frozenset((float(p_keep.min()), float(p_keep.max())))
        report = WriteReport(unused_visits=counts, keep_probabilities=keep_probabilities)
        if not len(visits):
            return report, []
        # which visits have states, a split that is still right, and an end
        keys = batch.keys
        assert keys is not None
        owner, _ = look_up(keys["session_id"], visits.slots["session_id"])
        visits = replace(visits, slots=visits.slots | {OWNER: owner})
        is_recorded = np.logical_and.reduceat(visits.per_decision("recorded"), visits.start[:-1])
        split_holds = owner_splits(self.salt, keys)[visits.per_visit(OWNER)] == visits.per_visit("split")
        is_short = np.diff(visits.start) <= ended_visits.MAX_VISIT_DECISIONS
        is_usable = is_recorded & split_holds & is_short
        report += WriteReport(
            unrecorded_visits=int((~is_recorded).sum()),
            moved_visits=int((is_recorded & ~split_holds).sum()),
            long_visits=int((is_recorded & split_holds & ~is_short).sum()),
        )
        visits = self._mark_rules(visits.take(is_usable))
        if not len(visits):
            return report, []
        is_judged = visits.slots["decision_id"][visits.begins] >= self.judged_from
        split = visits.per_visit("split")
        is_written = (split == TRAIN) | (split == TUNE) & is_judged
        report += WriteReport(
            visits=len(visits), decisions=int(visits.start[-1]), slots=int(visits.first[-1]),
            ruled_decisions=int(visits.per_decision(RULED).sum()),
            gate_visits=int(((split == GATE) & is_judged).sum()),
            new_visits=int((visits.mature_from > self.since).sum()),
            rewarded_decisions=int((~visits.default).sum()), max_reward=float(np.abs(visits.reward).max()),
            last_id=int(visits.slots["decision_id"].max()),
        )  # fmt: skip
        return report, list(self._portions(visits.take(is_written), keys))

    def _portions(self, visits: EndedVisits, keys: Columns) -> Iterator[VisitRows]:
        """Yield the rows of visits, in portions. The number of arms in the eligible sets of a portion is limited.

        keys: the keys of sessions and users in the batch."""
        if not len(visits):
            return
        sizes = contents.set_sizes(self.unit, set(visits.per_decision("eligible_id").tolist()))
        n_portions = min(-(-sum(sizes.values()) // MAX_CELLS), len(visits))
        number = np.arange(len(visits)) * n_portions // len(visits)
        for portion in range(n_portions):
            yield self._make_rows(visits.take(number == portion), keys)

    def _make_rows(self, visits: EndedVisits, keys: Columns) -> VisitRows:
        slots, first = visits.slots, visits.first
        owner, numbers = visits.per_visit(OWNER), visits.per_visit("visit").tolist()
        sessions, users = keys["key"][owner].tolist(), keys["user"][owner].tolist()
        names = [f"{self.seed}/{key}/{visit}" for key, visit in zip(sessions, numbers, strict=True)]
        pairs = zip(users, sessions, strict=True)
        names_of_clusters = [f"user/{user}" if user else f"session/{key}" for user, key in pairs]
        stratum = self.evaluation.loggers.stratum_codes(
            slots | {"cluster": cluster_digests(slots, "user")}, visits.begins, spans_batches=self._spans_batches,
            max_loggers=self.max_loggers,
        )  # fmt: skip
        eligible, revision = visits.per_decision("eligible_id"), visits.per_decision("catalogue_revision")
        # a page is one of its other positions, and of the arms that no pin shows
        is_free = ~slots[PINNED]
        slots = slots if is_free.all() else take(slots, is_free)
        # the states
        encoded_contexts = self._encode_contexts(visits.per_decision("context_id"))
        state = self.model.states(encoded_contexts, visits.histories(), revision)
        # remembered arms that are eligible
        sets, set_index = self._find_sets(eligible, revision, self._pinned_arms(visits))
        arm, n_arms = self._find_arms(state.arm), len(self.arms)
        codes = np.concatenate([eligible_set.arms + n_arms * number for number, eligible_set in enumerate(sets)])
        code = set_index[state.row] * n_arms + arm
        in_set = np.flatnonzero(look_up(codes, code)[1])
        in_set = in_set[order_by_row(state.row[in_set], arm[in_set])]
        # the propensity of a separate slot is its marginal or, where that is unknown, its conditional probability
        slot_probability = np.where(np.isnan(slots["marginal"]), slots["propensity"], slots["marginal"])
        slot_reward, log_marginal, divided_reward = slots["reward"], np.log(slot_probability), slots["reward"]
        if self.examination:
            examination = np.append(self.examination, np.inf)[np.minimum(slots["position"] - 1, len(self.examination))]
            divided_reward = slot_reward / examination
            log_marginal = np.where(np.isinf(examination), UNWEIGHED_LOG, log_marginal)  # below the end of the curve
        return VisitRows(
            eligible_sets=sets, name=np.array(contents.key_digests(names), np.int64).view(np.uint64),
            split=visits.per_visit("split"), cluster=np.array(contents.key_digests(names_of_clusters), np.int64),
            stratum=stratum, length=np.diff(visits.start),
            eligible=set_index, size=np.add.reduceat(is_free, first[:-1], dtype=np.int64),
            n_remembered=np.bincount(state.row[in_set], minlength=len(eligible)),
            log_propensity=visits.per_decision("log_propensity"), reward=visits.reward, lowest=visits.lowest,
            default=visits.default.astype(np.int64), x=state.x.astype(np.float32),
            is_ruled=visits.per_decision(RULED).astype(np.int64), shown_arm=self._find_arms(slots["arm_id"]),
            slot_reward=slot_reward, divided_reward=divided_reward, log_marginal=log_marginal,
            log_conditional=np.log(slots["propensity"]), arm=arm[in_set], memory=state.memory[in_set],
            words=encoded_contexts if isinstance(encoded_contexts, Sparse) else None,
        )  # fmt: skip

    def _mark_rules(self, visits: EndedVisits) -> EndedVisits:
        """Return the visits with two more columns of slots. RULED marks all slots of a page that has rules other than
        pins, or whose slots are all pinned. PINNED marks the slots of other pages that a pin of the request or of the
        policy fills."""
        if not len(visits):
            return visits
        context_id, position = visits.per_decision("context_id"), visits.slots["position"]
        has_page = np.isin(context_id, self._ruled_contexts)
        has_even_floor = not isinstance(self.model.policy.exploration, tuple)
        ids = np.unique(context_id[has_page])
        pages = [parse(context.get(PAGE) or {}) for context in stored_contexts.distinct_contexts(self.unit, ids)[0]]
        policy_page = parse_texts(self.model.policy.rules)
        pins = [{} if policy_page is None else policy_page.pin]
        pins += [{**pins[0], **page.pin} for page in pages]
        # the arm that is pinned at each position, for each kind of page
        arm_ids = arms.ids(self.unit, {key for by_position in pins for key in by_position.values()})
        pinned_arms = np.full((len(pins), int(position.max()) + 1), -1)
        for row, by_position in enumerate(pins if has_even_floor else []):
            for at, key in by_position.items():
                if at < pinned_arms.shape[1]:
                    pinned_arms[row, at] = arm_ids.get(key, -1)
        kind: Ids = np.where(has_page, np.searchsorted(ids, context_id) + 1, 0)
        decision = np.repeat(np.arange(len(kind)), np.diff(visits.first))
        is_pinned = pinned_arms[kind[decision], position] == visits.slots["arm_id"]
        has_others = np.array([False, *(bool(page.least) or not has_even_floor for page in pages)])[kind]
        # a cap of as many arms as the page has takes none away
        caps = np.array([np.inf, *(min(page.most.values(), default=np.inf) for page in pages)])[kind]
        has_others |= caps < visits.per_decision("size")
        is_ruled = (has_others | np.logical_and.reduceat(is_pinned, visits.first[:-1]))[decision]
        return replace(visits, slots=visits.slots | {PINNED: is_pinned & ~is_ruled, RULED: is_ruled})

    def _pinned_arms(self, visits: EndedVisits) -> Ids:
        """Return the indexes of the arms that pins show in each decision, (n, p), where -1 fills rows with fewer than p
        pins."""
        pinned_rows, n = np.flatnonzero(visits.slots[PINNED]), len(visits.first) - 1
        decision = np.searchsorted(visits.first, pinned_rows, side="right") - 1
        column = np.arange(len(pinned_rows)) - offsets(np.bincount(decision, minlength=n))[decision]
        arms = np.full((n, int(column.max(initial=-1)) + 1), -1)
        arms[decision, column] = self._find_arms(visits.slots["arm_id"][pinned_rows])
        return arms

    def _encode_contexts(self, context_id: Ids) -> EncodedRows:
        """Return the encoded context of each decision. Contexts of the previous portion are not read again.

        context_id: the id of each decision's context."""
        first, code = distinct(context_id)
        ids = context_id[first]
        index, is_cached = look_up(self._context_ids, ids)
        new_rows, cached_rows, pieces = np.flatnonzero(~is_cached), np.flatnonzero(is_cached), list[EncodedRows]()
        if len(new_rows):
            pieces.append(self.model.encode_contexts(stored_contexts.distinct_contexts(self.unit, ids[new_rows])[0]))
        if len(cached_rows):
            pieces.append(self._encoded_contexts[index[cached_rows]])
        concatenate = Sparse.concatenate if isinstance(pieces[0], Sparse) else np.concatenate
        order = np.argsort(np.concatenate([new_rows, cached_rows]))
        self._context_ids, self._encoded_contexts = ids, concatenate(pieces)[order]
        return self._encoded_contexts[code]

    def _find_arms(self, ids: Ids) -> Ids:
        """Return the index of each of these arms among the trained arms."""
        return self._order[look_up(self.arms[self._order], ids)[0]]

    def _find_sets(self, eligible: Ids, revision: Ids, pinned_arms: Ids) -> tuple[list[EligibleSet], Ids]:
        """Return the distinct eligible sets of decisions, and the index of each decision's set, (n,). A set has the
        features that its arms had at the time, and lacks the pinned arms of its decisions.

        eligible: the id of each decision's eligible set; revision: the revision of the catalogue for each decision;
        pinned_arms: the pinned arms of each decision, (n, p)."""
        epoch = self.model.arm_features.epochs(revision)
        first, index = distinct(eligible, epoch, *pinned_arms.T)
        members, sets = contents.eligible_arms(self.unit, set(eligible[first].tolist())), list[EligibleSet]()
        for row, set_id, number, at in np.column_stack(
            [first, eligible[first], epoch[first], revision[first]]
        ).tolist():
            if number not in self._catalogues:
                catalogue = Catalogue(self.model.arm_features.encode(self.arms, at))
                duplicates = (earlier for earlier in self._catalogues.values() if earlier.digest == catalogue.digest)
                self._catalogues[number] = next(duplicates, catalogue)
            arms = np.setdiff1d(self._find_arms(np.array(members[set_id], np.int64)), pinned_arms[row])
            sets.append(EligibleSet(self._catalogues[number], arms))
        return sets, index
