"""This module reads the log for evaluations. Each batch comes with all data of the store that an evaluation needs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from rlrec.app.evaluation.passes.request import Evaluation
from rlrec.app.evaluation.rows import log_rows
from rlrec.app.evaluation.rows.contexts import ContextCache, ContextTable
from rlrec.app.evaluation.rows.groups import group_rows
from rlrec.app.evaluation.rows.log_rows import CLUSTERS, LoggedBatch
from rlrec.app.evaluation.rows.loggers import Loggers, logged_zeros, unknown_support
from rlrec.app.log import partitions
from rlrec.app.log.splits import owner_splits
from rlrec.arrays import Array, Ids, distinct
from rlrec.policy.contexts.features import N_COLUMNS
from rlrec.records import Record
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.database.unit import StoredRows
from rlrec.store.log import contents, imported_data, reader, settings
from rlrec.store.log.reader import Batch

if TYPE_CHECKING:
    from rlrec.app.evaluation.targets.logger_marginals import LoggerMarginals


class Reading(Record):
    """This record says which part of the log a pass reads.

    columns: the columns of the log; visits: whether to read the visits of the sessions; keys: whether to read the
    keys of sessions; targets: whether to read what probabilities of targets need: eligible sets, lists of
    candidates, and groups; support: whether to add the place of each slot on its slate, and which arms the loggers
    could show.

    marginals: the number of positions for which slots get the column `logger_marginals` (n, marginals), by
    `LoggerMarginals`. With 0, only the contexts that marginals depend on are read; with None, nothing. pairs: whether
    to add the column `logger_pairs`; shares: the number of positions for which the batch gets the loggers'
    probabilities of all arms."""

    columns: Collection[str]
    visits: bool = False
    targets: bool = True
    support: bool = True
    marginals: int | None = None
    pairs: bool = False
    shares: int = 0
    keys: bool = False

    @classmethod
    def union(cls, readings: Iterable[Reading]) -> Reading:
        """Return a reading with all columns of these readings, and with visits if any of them has visits."""
        columns, visits = zip(*((reading.columns, reading.visits) for reading in readings), strict=True)
        return cls(columns=frozenset[str]().union(*columns), visits=any(visits))


class LogReader:
    """A LogReader reads the log of one evaluation, batch by batch, as often as needed. It makes all queries to the
    store, and caches what later batches need again.

    progress: a function that is called before each batch; rows: the batches of one partition to read in place of the
    log, or None; number: the number of this partition; contexts: a cache of contexts to use."""

    def __init__(
        self, unit: Unit, evaluation: Evaluation, *, progress: Callable[[], None] = lambda: None,
        rows: Iterable[Batch] | None = None, number: int = 0, contexts: ContextCache | None = None,
    ) -> None:  # fmt: skip
        self.unit, self.evaluation, self.progress, self.number, self._rows = unit, evaluation, progress, number, rows
        n_columns = evaluation.request.reward_model_hash or N_COLUMNS
        self.contexts = contexts or ContextCache(
            unit, fields=evaluation.fields, encode=evaluation.encode, columns=n_columns
        )
        self.loggers = Loggers(unit, evaluation.arms)
        self._eligible: dict[int, Ids] = {}
        serving = [target.serving for target in evaluation.targets if target.serving is not None]
        self._describes = any(distribution.arm_features or distribution.trained_model for distribution in serving)
        self._inclusions = log_rows.MAX_DERIVED  # distributions that may still be derived in this partition

    @cached_property
    def marginals(self) -> LoggerMarginals:
        """Return the object that computes the marginals of the loggers."""
        from rlrec.app.evaluation.targets.logger_marginals import LoggerMarginals

        return LoggerMarginals(self.loggers)

    def clone(self) -> LogReader:
        """Return another reader of the same rows. Both readers share only the cache of contexts."""
        return LogReader(
            self.unit, self.evaluation, progress=self.progress, rows=self._rows, number=self.number,
            contexts=self.contexts,
        )  # fmt: skip

    def read(self, reading: Reading) -> Iterator[LoggedBatch]:
        """Yield the batches of the log with all data of the store that an evaluation needs."""
        for batch in self.batches(reading):
            if reading.targets:
                for log, eligible in self._portions(batch, reading):
                    yield self._add_data(log, eligible, reading)
                continue
            contexts, context = self.contexts.table(batch.slots["context_id"], batch.contexts)
            cluster = log_rows.cluster_digests(batch.slots, self.evaluation.cluster)
            slots = batch.slots | {"context": context, "cluster": cluster}
            yield LoggedBatch(log=replace(batch, slots=slots), contexts=contexts, eligible={})

    def partitions(self, reading: Reading, *, times: int = 1) -> Iterator[Iterable[Batch]]:
        """Yield the partitions of the log one after another, as their stored batches. After the last partition, all are
        yielded again, `times` times in all. A partition can be read several times until the next partition begins."""
        needed_columns, selection = {*reading.columns, *CLUSTERS[self.evaluation.cluster]}, self.evaluation.selection
        return partitions.read(
            self.unit, selection, self.evaluation.partitions, columns=needed_columns,
            pick_contexts=self.contexts.unread,
            visits=reading.visits, keys=reading.keys or selection.splits is not None, times=times,
        )  # fmt: skip

    def batches(self, reading: Reading) -> Iterator[Batch]:
        """Yield the batches of the log as stored, without further data."""
        splits = self.evaluation.selection.splits
        columns = {"decision_id", "session_id", "position", *partitions.PERSON_COLUMNS, *reading.columns}
        columns |= {*CLUSTERS[self.evaluation.cluster]}
        for batches in self.partitions(reading) if self._rows is None else (self._rows,):
            # the budget of derived distributions is per partition, whoever reads it
            self.loggers.zeros.clear()
            self._inclusions = log_rows.MAX_DERIVED
            for batch in batches:
                self.progress()
                if self._rows is not None:  # these rows have the columns of other passes, too
                    slots = {name: values for name, values in batch.slots.items() if name in columns}
                    batch = replace(batch, slots=slots, visits=batch.visits if reading.visits else None)
                if splits is not None and batch.keys is not None:
                    # leave out sessions whose user was named later and belongs to another split
                    in_split = np.isin(owner_splits(settings.get(self.unit).split_salt, batch.keys), list(splits))
                    moved_sessions = batch.keys["session_id"][~in_split]
                    batch = batch.select_rows(np.flatnonzero(~np.isin(batch.slots["session_id"], moved_sessions)))
                yield batch

    def _portions(self, batch: Batch, reading: Reading) -> Iterator[tuple[Batch, Mapping[int, Ids]]]:
        """Cut a batch into portions of whole sessions. Yield each portion with the arms of its eligible sets, by the id
        of the set. A portion is so small that these arms, the marginals of the slots and the loggers' probabilities of
        all arms fit into memory."""
        # a set or draw is counted where it first occurs
        cells = reader.set_cells(self.unit, batch.slots["eligible_id"]) + (reading.marginals or 0)
        if reading.shares:
            cells[self._draws(batch.slots)] += reading.shares * len(self.evaluation.arms)
        for portion in batch.cut(cells, reader.MAX_CELLS):
            sets = portion.slots["eligible_id"]
            yield portion, self._eligible_sets({*sets[distinct(sets)[0]].tolist()})

    def _add_data(self, log: Batch, eligible: Mapping[int, Ids], reading: Reading) -> LoggedBatch:
        """Return the batch with the data that probabilities of targets need.

        log: the batch; eligible: the arms of each eligible set, by the id of the set."""
        slots, fields, zeros, slate_probabilities = log.slots, set[str](), list[Array | None](), list[Array]()
        if reading.support:
            slots = slots | log_rows.slate_places(slots) | log_rows.visit_course(slots) | unknown_support(slots)
            fields = self.loggers.reads(slots, slots["unknown_support"])
        if reading.marginals is not None or reading.pairs:
            fields |= self.loggers.reads(slots, ~slots["imported"])
        has_lists = "candidate_list" in self.evaluation.side_tables
        lists = self._logged_lists(slots) if has_lists else log_rows.LoggedLists()
        if lists.lists:
            fields |= self.loggers.reads(slots, ~slots["imported"])
        contexts, context = self.contexts.table(slots["context_id"], log.contexts, fields=fields)
        features: Mapping[int, Mapping[int, str]] = {}
        if self._describes and "decision_features" in self.evaluation.side_tables:
            slots, features = self._with_features(slots)
        if "slot_set" in self.evaluation.side_tables:
            sets = imported_data.slot_sets(self.unit, np.unique(slots["decision_id"]).tolist())
            column, slot_arms = log_rows.slot_set_column(slots, sets)
            slots, eligible = slots | {log_rows.SLOT_SET: column}, {**eligible, **slot_arms}
        group_field, keys = self.evaluation.request.by, self.evaluation.arms.keys
        groups, group = group_rows(group_field, slots, contexts, context, keys=keys, loggers=self.loggers)
        cluster = log_rows.cluster_digests(log.slots, self.evaluation.cluster)
        slots = slots | {"context": context, "group": group, "cluster": cluster}
        if slots.keys() >= {*log_rows.SAMPLE_COLUMNS}:
            slots["decision_digest"] = log_rows.decision_digests(slots)
        if reading.support:
            support, zeros = self.loggers.support(slots, contexts, eligible)
            slots |= support
            if "logged_support" in self.evaluation.side_tables:
                unsure_ids = slots["decision_id"][slots["imported"] & ~slots["full"]]
                supports = imported_data.supports(self.unit, np.unique(unsure_ids).tolist())
                slots |= logged_zeros(slots, supports, eligible, zeros)
        if reading.marginals:
            marginal_table = self.marginals.tabulate(slots, contexts, eligible, positions=reading.marginals)
            slots = {**slots, log_rows.MARGINALS: marginal_table}
        if reading.pairs:
            pairs_case, slate_probabilities = self.marginals.pairs(slots, contexts, eligible)
            slots = {**slots, log_rows.PAIRS: pairs_case}
        shares = None
        if reading.shares:
            shares, slots = self._shares(slots, contexts, eligible, reading.shares)
        return LoggedBatch(
            log=replace(log, slots=slots), contexts=contexts, groups=groups, eligible=eligible, zeros=zeros,
            pairs=slate_probabilities, lists=self._with_inclusion(lists, slots, contexts), features=features,
            shares=shares,
        )  # fmt: skip

    def _shares(
        self, slots: Columns, contexts: ContextTable, eligible: Mapping[int, Ids], positions: int
    ) -> tuple[Array, Columns]:  # fmt: skip
        """Return the loggers' probabilities of all arms in each distribution of the batch, (distributions, positions,
        arms), and the slots with the column `draw`. This column has the index of the distribution that drew each slot's
        slate, or -1 if it is not known. positions: the number of positions for which probabilities are computed."""
        arms, draw, tables = self.evaluation.arms, np.full(len(slots["decision_id"]), -1), list[Array]()
        for case in self.marginals.cases(slots, contexts, eligible, positions=positions, per_decision_samples=True):
            if np.isnan(case.marginals).any():  # under rules of a page they have no closed form
                continue
            table = np.zeros((positions, len(arms)))
            table[: len(case.marginals), arms.ranks(case.arms)] = case.marginals
            draw[case.rows] = len(tables)
            tables.append(table)
        shares = np.array(tables) if tables else np.empty((0, positions, len(arms)))
        return shares, {**slots, log_rows.DRAW: draw}

    def _draws(self, slots: Columns) -> Ids:
        """Return the index of one slot, the first, for each distinct combination of belief, eligible set and context.
        Several combinations may have the same distribution of slates."""
        names = ["version_id", "belief_seq", "belief_ordinal", "eligible_id", "catalogue_revision", "size"]
        if self.loggers.reads(slots, ~slots["imported"]):
            names.append("context_id")
        if any(hasattr(self.loggers.policy(key), "samples") for key in self.loggers.versions(slots["version_id"])):
            names.append("decision_id")
        return distinct(*(slots[name] for name in names))[0]

    def _with_features(self, slots: Columns) -> tuple[Columns, Mapping[int, Mapping[int, str]]]:
        """Return the slots, and features of arms that hold only for single decisions. A decision with such features
        gets a negative number in the column `catalogue_revision`. The features are a mapping from this number to the
        JSON of each arm, by the id of the arm."""
        decision_id = slots["decision_id"]
        contexts = imported_data.feature_contexts(self.unit, np.unique(decision_id).tolist())
        if not contexts:
            return slots, {}
        revision = np.array([-contexts.get(number, 0) for number in decision_id.tolist()], np.int64)
        ids = {key: arm for arm, key in self.evaluation.arms.keys.items()}
        features = imported_data.features(self.unit, set(contexts.values()))
        by_arm = {
            -context: {ids[key]: text for key, text in features_by_key.items() if key in ids}
            for context, features_by_key in features.items()
        }
        return slots | {"catalogue_revision": np.where(revision < 0, revision, slots["catalogue_revision"])}, by_arm

    def _logged_lists(self, slots: Columns) -> log_rows.LoggedLists:
        """Return the lists of candidates of the decisions in a batch."""
        from rlrec.store.log import candidates  # few logs have any

        lists = candidates.find_lists(self.unit, np.unique(slots["decision_id"]).tolist())
        catalogues = {row.catalogue_id for row in lists.values() if row.catalogue_id is not None}
        arms = contents.eligible_arms(self.unit, catalogues)
        versions = self.loggers.versions(slots["version_id"]) if lists else {}
        return log_rows.LoggedLists(
            lists=lists, first_stages={key: log_rows.first_stage(version) for key, version in versions.items()},
            catalogues={key: np.array(arm_ids, np.int64) for key, arm_ids in arms.items()},
        )  # fmt: skip

    def _with_inclusion(
        self, lists: log_rows.LoggedLists, slots: Columns, contexts: ContextTable
    ) -> log_rows.LoggedLists:
        """Return the lists of candidates. If any target has another first stage than the loggers, add how likely the
        arms shown became candidates."""
        target_stages = {
            target.serving and log_rows.first_stage(target.serving.version) for target in self.evaluation.targets
        }
        logged_stages = {name for name in lists.first_stages.values() if name is not None}
        if not logged_stages or target_stages == logged_stages:
            return lists
        inclusion = log_rows.Inclusion()
        for version, version_rows in self.marginals.by_version(slots, ~slots["imported"] & lists.has_list(slots)):
            moments, budget = self.marginals.moments(version, slots, version_rows), self._inclusions
            version_inclusion = log_rows.smallest_inclusion(
                lists, slots, moments, contexts, keys=self.evaluation.arms.keys, budget=budget
            )  # fmt: skip
            inclusion, self._inclusions = inclusion + version_inclusion, budget - version_inclusion.decisions
        return replace(lists, inclusion=inclusion)

    def _eligible_sets(self, set_ids: AbstractSet[int]) -> Mapping[int, Ids]:
        """Return the arms of each eligible set, by the id of the set. Sets that occurred in the previous batch are not
        read again."""
        unread_sets = contents.eligible_arms(self.unit, set_ids - self._eligible.keys())
        cached_sets = ((key, arms) for key, arms in self._eligible.items() if key in set_ids)
        self._eligible = StoredRows("eligible_set", cached_sets)
        self._eligible |= {key: np.array(arms, np.int64) for key, arms in unread_sets.items()}
        for key in unread_sets:
            self.evaluation.arms.check(self._eligible[key])
        return self._eligible
