"""This module stores visits on disk. Visits are written in any order, then read in batches, sorted by digests of their
names.

The data that are read, and their order, depend only on the keys of visits and arms, never on ids, so that the same
log in another order trains the same parameters. Files have no name, and end with the process. Where possible, a read
returns a view of the file. Nothing is copied then, and memory counts only while it is in use.

Decisions can be processed together in a block if their slates have one length, and one catalogue describes their arms.
Requests that name their candidates have separate eligible sets. A block takes the union of several sets, with a mask of
the arms that each decision may show. Matrix products that include needless arms cost less than a call for every
decision."""

from __future__ import annotations

import mmap
import pickle
import tempfile
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rlrec.app.log.splits import TRAIN
from rlrec.arrays import Array, Flags, Ids, Index, distinct, offsets, piece_rows, rows_by_kind
from rlrec.errors import RlrecError
from rlrec.ope.units.strata import NO_LOGGER, Stratum
from rlrec.policy.contexts.features import Sparse
from rlrec.policy.gradients.gradient import State
from rlrec.policy.gradients.natural import N_FOLDS

ALIGNMENT = 64  # bytes; arrays begin at multiples of it
PADDING = memoryview(bytes(ALIGNMENT))

_ROOM = "set TMPDIR to a folder with room: a kB for each decision of the log, half as much more for pages of three"


# -- files --


class ArrayFile:
    """An ArrayFile holds numbered records in a temporary file. Records are objects whose arrays stay in the file.
    Raises RlrecError where the system has no temporary folder, or no space for the file."""

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="rlrec-", buffering=0)  # noqa: SIM115 (closed by `close`)
        except FileNotFoundError as error:
            raise RlrecError("no temporary folder can be written to", hint=_ROOM) from error
        self._begins = array("q", [0])
        self._lengths: list[array[int]] = []  # of the pickle of each record, and of its arrays

    def close(self) -> None:
        """Close the file, which also deletes it."""
        self._file.close()

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, record: object) -> None:
        """Append a record to the file: first the pickle of the record, then its arrays."""
        buffers: list[pickle.PickleBuffer] = []
        content = pickle.dumps(record, protocol=5, buffer_callback=buffers.append)
        blocks = [memoryview(content), *(buffer.raw() for buffer in buffers)]
        self._lengths.append(array("q", map(len, blocks)))
        end = self._begins[-1]
        try:
            for block in blocks:
                for piece in (block, PADDING[: -len(block) % ALIGNMENT]):
                    end += len(piece)
                    while piece:
                        piece = piece[self._file.write(piece) :]
        except OSError as error:
            folder = tempfile.gettempdir()
            raise RlrecError(f"cannot write to the temporary folder {folder}: {error.strerror}", hint=_ROOM) from error
        self._begins.append(end)

    def read(self, number: int) -> Any:
        """Return the record with this number. The arrays of the record are read-only."""
        begin, end = self._begins[number : number + 2]
        at = begin % mmap.ALLOCATIONGRANULARITY
        view = memoryview(mmap.mmap(self._file.fileno(), end - begin + at, access=mmap.ACCESS_READ, offset=begin - at))
        blocks = []
        for length in self._lengths[number]:
            blocks.append(view[at : at + length])
            at += length + -length % ALIGNMENT
        return pickle.loads(blocks[0], buffers=blocks[1:])


# -- visits --


@dataclass(frozen=True, eq=False)
class Catalogue:
    """A Catalogue holds the features (m, p) that the trained arms had at a time. The arms are in order of their
    keys."""

    features: Array

    @cached_property
    def digest(self) -> bytes:
        """Return a digest of the features. Equal features have equal digests, at whatever time the arms had them."""
        return blake2b(self.features.astype("<f8").tobytes(), digest_size=16).digest()


@dataclass(frozen=True, eq=False)
class EligibleSet:
    """An EligibleSet holds the eligible arms of decisions.

    catalogue: the features of arms at the time of the decisions; arms (m,): the index of each eligible arm among the
    trained arms, ascending."""

    catalogue: Catalogue
    arms: Index

    @cached_property
    def contents(self) -> tuple[bytes, bytes]:
        """Return the digest of the catalogue, and the bytes of the arms. Equal sets have equal contents."""
        return self.catalogue.digest, self.arms.astype("i4").tobytes()


@dataclass(frozen=True, kw_only=True, eq=False)
class VisitRows:
    """This record holds s visits, one after another, with their n decisions. Indexes of arms count the trained arms.

    eligible_sets: the distinct eligible sets of the decisions; words: the other features of the decisions' contexts,
    where contexts are sparse.

    For each visit, (s,): name, a digest of session and visit; split, the number of its split; cluster, a digest of the
    user or session; stratum, the index of its stratum (a logger and a half of the clusters); length, the
    number of its decisions.

    For each decision, (n,): eligible, the index of its eligible set; size, the number of its positions; n_remembered,
    the number of arms that its state remembers; log_propensity, the logarithm of the probability of its slate; reward,
    the reward of its slate; default, 1 where no event counted; is_ruled, 1 where the page had rules with which the
    policy is not trained; lowest, the logarithm of the smallest probability that any slate could have had (NaN where
    this is not known); x (n, d), the features of its state.

    For each slot, (i,): shown_arm, the index of its arm; slot_reward, its reward; divided_reward, its reward divided by
    the examination of its position; log_marginal, the logarithm of its propensity whatever the slots above show;
    log_conditional, the logarithm of its propensity given the slots above.

    For each remembered arm that is eligible, (e,): arm, the index of the arm; memory (e, 4), the features MEMORY of the
    arm."""

    eligible_sets: Sequence[EligibleSet]
    name: npt.NDArray[np.uint64]
    split: Ids
    cluster: Ids
    stratum: Ids
    length: Ids
    eligible: Ids
    size: Ids
    n_remembered: Ids
    log_propensity: Array
    reward: Array
    default: Ids
    is_ruled: Ids
    lowest: Array
    x: Array
    shown_arm: Ids
    slot_reward: Array
    divided_reward: Array
    log_marginal: Array
    log_conditional: Array
    arm: Ids
    memory: Array
    words: Sparse | None = None

    def __len__(self) -> int:
        return len(self.name)

    def take(self, visits: Ids) -> Self:
        """Return the selected visits, in the order of `visits`, with the eligible sets of their decisions."""
        decisions = piece_rows(self.start[visits], self.length[visits])
        slots = piece_rows(self.first[decisions], self.size[decisions])
        arms = piece_rows(offsets(self.n_remembered)[decisions], self.n_remembered[decisions])
        numbers, eligible = np.unique(self.eligible[decisions], return_inverse=True)
        sets = [self.eligible_sets[number] for number in numbers.tolist()]
        tables = ((VISIT_TYPES, visits), (DECISION_TYPES, decisions), (SLOT_TYPES, slots), (ARM_TYPES, arms))
        columns: dict[str, Any] = {name: getattr(self, name).take(rows, 0) for names, rows in tables for name in names}
        words = None if self.words is None else self.words[decisions]
        return replace(self, eligible_sets=sets, eligible=eligible.reshape(-1), words=words, **columns)

    @classmethod
    def concatenate(cls, pieces: Sequence[Self]) -> Self:
        """Return the visits of all pieces in one record. The eligible sets of the record are in the order of their
        contents."""
        set_by_contents = {
            eligible_set.contents: eligible_set for piece in pieces for eligible_set in piece.eligible_sets
        }
        rank = {contents: number for number, contents in enumerate(sorted(set_by_contents))}
        numbers = [[rank[eligible_set.contents] for eligible_set in piece.eligible_sets] for piece in pieces]
        eligible = [np.array(ranks, np.int64)[piece.eligible] for ranks, piece in zip(numbers, pieces, strict=True)]
        words = None
        if any(piece.words is not None for piece in pieces):
            words = Sparse.concatenate([piece.words or Sparse.empty(len(piece.eligible)) for piece in pieces])
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(piece, name) for piece in pieces])
            for name in (*VISIT_TYPES, *DECISION_TYPES, *SLOT_TYPES, *ARM_TYPES)
        }
        sets = [set_by_contents[contents] for contents in rank]
        return cls(eligible_sets=sets, eligible=np.concatenate(eligible), words=words, **columns)

    @property
    def start(self) -> Ids:
        """Return the index of the first decision of each visit, followed by the number of decisions, (s + 1,)."""
        return offsets(self.length)

    @property
    def first(self) -> Ids:
        """Return the index of the first slot of each decision, followed by the number of slots, (n + 1,)."""
        return offsets(self.size)

    def state(self) -> State:
        """Return the states of the decisions as one record of arrays."""
        row = np.repeat(np.arange(len(self.eligible)), self.n_remembered)
        return State(self.x, row, self.arm, self.memory, self.words)


# Columns and their stored types: features are of size about 1, and indices are small.
DECISION_TYPES = {"size": "i4", "n_remembered": "i4", "log_propensity": "f8", "reward": "f8", "default": "i1",
            "is_ruled": "i1", "lowest": "f8", "x": "f4"}  # fmt: skip
SLOT_TYPES = {
    "shown_arm": "i4", "slot_reward": "f8", "divided_reward": "f8", "log_marginal": "f8", "log_conditional": "f8",
}  # fmt: skip
ARM_TYPES = {"arm": "i4", "memory": "f4"}
VISIT_TYPES = {"name": "u8", "split": "i1", "cluster": "i8", "stratum": "i1", "length": "i4"}
SET_COLUMNS = ("catalogue", "count", "eligible_arms")  # for each eligible set of a portion; then all their arms
N_UNSORTED_DECISIONS = 100_000  # decisions in memory until they are sorted, about


class VisitFile(ArrayFile):
    """A VisitFile holds portions of visits in a temporary file.

    catalogues: the catalogues by digest, which all files of a dataset share."""

    def __init__(self, catalogues: dict[bytes, Catalogue]) -> None:
        super().__init__()
        self._catalogues = catalogues

    def write(self, rows: VisitRows) -> None:
        """Append a portion of visits to the file."""
        sets, words = rows.eligible_sets, None
        for eligible_set in sets:
            self._catalogues.setdefault(eligible_set.catalogue.digest, eligible_set.catalogue)
        numbers = {digest: number for number, digest in enumerate(self._catalogues)}
        catalogue = np.array([numbers[eligible_set.catalogue.digest] for eligible_set in sets], "i4")
        count = np.array([len(eligible_set.arms) for eligible_set in sets], "i4")
        arms = np.concatenate([eligible_set.arms for eligible_set in sets]).astype("i4")
        types = {**VISIT_TYPES, **DECISION_TYPES, "eligible": "i4", **SLOT_TYPES, **ARM_TYPES}
        columns = {name: np.asarray(getattr(rows, name), dtype) for name, dtype in types.items()}
        if rows.words is not None and len(rows.words.column):
            words = replace(rows.words, column=rows.words.column.astype("i4"), value=rows.words.value.astype("f4"))
        self.add((columns | dict(zip(SET_COLUMNS, (catalogue, count, arms), strict=True)), words))

    def portion(self, number: int) -> VisitRows:
        """Return the visits of the portion with this number."""
        arrays, words = self.read(number)
        columns: dict[str, Any] = {
            name: values.astype(np.int64) if values.dtype.kind == "i" else values for name, values in arrays.items()
        }
        catalogue, count, arms = (columns.pop(name) for name in SET_COLUMNS)
        pieces, catalogues = np.split(arms, np.cumsum(count)[:-1]), list(self._catalogues.values())
        sets = [EligibleSet(catalogues[at], piece) for at, piece in zip(catalogue.tolist(), pieces, strict=True)]
        return VisitRows(eligible_sets=sets, words=words, **columns)


class DatasetSplit(VisitFile):
    """A DatasetSplit holds the visits of one split in batches of about equal size, in order of their names.

    strata: the strata of all visits, by index; visits: the number of visits; max_length: the number of decisions of the
    longest visit; spans_batches: whether at least one cluster has several visits."""

    def __init__(
        self, catalogues: dict[bytes, Catalogue], cluster: Ids, strata: Sequence[Stratum] = (NO_LOGGER,)
    ) -> None:
        super().__init__(catalogues)
        self.strata, self.visits, self.max_length = strata, len(cluster), 1
        self.spans_batches = len(np.unique(cluster)) < len(cluster)

    def batches(self, max_visits: int | None = None) -> Iterator[VisitRows]:
        """Yield the batches in order.

        max_visits: the number of visits at which to stop; a batch that would exceed it is not yielded, unless it is
        the first batch."""
        total = 0
        for number in range(len(self)):
            rows = self.portion(number)
            total += len(rows)
            if number and max_visits is not None and total > max_visits:
                return
            yield rows


class Dataset:
    """A Dataset holds visits on disk. Visits are written in any order, and `arrange` then sorts them into splits.

    strata: the strata, by the index that visits have; decisions: the approximate number of decisions; splits: the
    arranged splits, by number; columns: the columns of sparse contexts that occur in training visits, ascending."""

    def __init__(self) -> None:
        self.strata: Sequence[Stratum] = (NO_LOGGER,)
        self.decisions = 0
        self.splits: dict[int, DatasetSplit] = {}
        self._catalogues: dict[bytes, Catalogue] = {}
        self._file = VisitFile(self._catalogues)
        self._portions = defaultdict[tuple[int, int], list[int]](list)  # by split and by the first bits of names
        self._clusters = defaultdict[int, list[Ids]](list)
        self.columns: Ids = np.empty(0, np.int64)

    def close(self) -> None:
        """Close all files of the dataset."""
        for file in (self._file, *self.splits.values()):
            file.close()

    def add(self, rows: VisitRows) -> None:
        """Write visits to the dataset, in any order."""
        if rows.words is not None:
            is_taught = np.repeat(rows.split == TRAIN, rows.length)[rows.words.row]
            self.columns = np.union1d(self.columns, rows.words.column[is_taught])
        # visits by split, and by so many bits of their names that each portion can be sorted in memory
        bits = (self.decisions // N_UNSORTED_DECISIONS).bit_length()
        bucket = (rows.name >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(rows), np.int64)
        for visits in rows_by_kind(rows.split, bucket):
            split = int(rows.split[visits[0]])
            self._clusters[split].append(rows.cluster[visits])
            self._portions[split, int(bucket[visits[0]])].append(len(self._file))
            self._file.write(rows.take(visits))

    def batch(self, max_visits: int) -> int:
        """Return the number of visits in a training batch. The number is at most max_visits, and so small that there
        are several batches, whose gradients can be compared."""
        count = sum(map(len, self._clusters[TRAIN]))
        return max(1, min(max_visits, -(-count // N_FOLDS)))

    def arrange(self, sizes: Mapping[int, int], *, columns: Ids | None = None) -> None:
        """Arrange the written visits into splits.

        sizes: for each split to arrange, by number, the largest number of visits in a batch; columns: the columns of
        sparse contexts to keep, each renumbered to its index in this array."""
        for number, max_visits in sizes.items():
            n_visits = sum(map(len, self._clusters[number]))
            self.splits[number] = self.union([number], -(-n_visits // max_visits), columns=columns)

    def union(self, numbers: Sequence[int], n_batches: int, *, columns: Ids | None = None) -> DatasetSplit:
        """Return the visits of several splits together, in n_batches batches.

        numbers: the numbers of the splits; columns: the columns of sparse contexts to keep, each renumbered to its
        index in this array."""
        columns = np.empty(0, np.int64) if columns is None else columns
        clusters = np.concatenate([np.empty(0, np.int64), *chain(*(self._clusters[number] for number in numbers))])
        split = DatasetSplit(self._catalogues, clusters, self.strata)
        ends = [len(batch) for batch in np.array_split(np.arange(len(clusters)), n_batches)] if n_batches else []
        waiting_rows, lengths = list[VisitRows](), iter(ends)
        length = next(lengths, 0)
        for bucket in sorted({bucket for number, bucket in self._portions if number in numbers}):
            portions = chain(*(self._portions.get((number, bucket), ()) for number in numbers))
            rows = VisitRows.concatenate([self._file.portion(portion) for portion in portions])
            order, start = np.argsort(rows.name, kind="stable"), 0
            while start < len(order):
                end = start + length - sum(map(len, waiting_rows))
                waiting_rows.append(rows.take(order[start:end]))
                start = end
                if end <= len(order):
                    batch = waiting_rows[0] if len(waiting_rows) == 1 else VisitRows.concatenate(waiting_rows)
                    words = None if batch.words is None else batch.words.select_columns(columns)
                    split.max_length = max(split.max_length, int(batch.length.max()))
                    split.write(replace(batch, words=words))
                    waiting_rows, length = [], next(lengths, 0)
        return split


CALL_COST = 100_000  # scores that take as long as the fixed cost of a call
MAX_MASK_CELLS = 8_000_000  # most cells in the mask of a block


@dataclass(frozen=True, kw_only=True, eq=False)
class DecisionBlock:
    """This record holds n decisions, for which m arms are eligible in total.

    rows (n,): the index of each decision, ascending; arms (m,): the index of each arm among the trained arms,
    ascending; features (m, p): the features of these arms; slates (n, k): the arm at each position, as an index into
    `arms`; state: the states of the decisions, where arms are also indexes into `arms`; eligible (n, m): whether
    each decision may show each arm, or None where all decisions may show all arms."""

    rows: Ids
    arms: Index
    features: Array
    state: State
    slates: Ids
    eligible: Flags | None

    def slice_rows(self, start: int, end: int) -> DecisionBlock:
        """Return the block of the decisions from index `start` up to but not including `end`."""
        rows = slice(start, end)
        return DecisionBlock(
            rows=self.rows[rows], arms=self.arms, features=self.features, state=self.state.slice_rows(start, end),
            slates=self.slates[rows], eligible=None if self.eligible is None else self.eligible[rows],
        )  # fmt: skip


def blocks(rows: VisitRows) -> Iterator[DecisionBlock]:
    """Yield the decisions in blocks, in order of slate size and of the number of the eligible set. Decisions whose page
    had rules are left out."""
    # groups of decisions with the same size and eligible set
    first, group_index = distinct(rows.size, rows.eligible, rows.is_ruled)
    sizes, counts = rows.size[first].tolist(), np.bincount(group_index).tolist()
    sets = [rows.eligible_sets[number] for number in rows.eligible[first].tolist()]
    # groups that may share a block
    by_kind = defaultdict[tuple[int, bytes], list[int]](list)
    for group, eligible in enumerate(sets):
        if rows.is_ruled[first[group]]:
            continue
        by_kind[sizes[group], eligible.catalogue.digest].append(group)
    state = rows.state()
    for groups in by_kind.values():
        step = _choose_set_count([sets[group] for group in groups], [counts[group] for group in groups])
        for start in range(0, len(groups), step):
            members = groups[start : start + step]
            local = np.full(len(first), -1)
            local[members] = np.arange(len(members))
            yield _make_block(rows, state, [sets[group] for group in members], local[group_index])


def _choose_set_count(sets: Sequence[EligibleSet], counts: Sequence[int]) -> int:
    """Return the number of eligible sets to process together. The union of more sets has more needless arms, but takes
    fewer calls. The size of the union is estimated as if the sets were random.

    counts: the number of decisions of each set."""
    if len(sets) == 1:
        return 1
    sizes, n_arms, n = np.array([len(eligible.arms) for eligible in sets]), len(_join_sets(sets)), sum(counts)
    inclusion = float(np.average(sizes, weights=counts)) / n_arms
    steps = np.unique(np.minimum(1 << np.arange(len(sets).bit_length() + 1), len(sets)))
    union = n_arms * -np.expm1(steps * np.log1p(-min(inclusion, 1 - 1e-9)))
    cost = n * union + CALL_COST * len(sets) / steps
    cost[(steps > 1) & (n / len(sets) * steps * union > MAX_MASK_CELLS)] = np.inf
    return int(steps[np.argmin(cost)])


def _join_sets(sets: Sequence[EligibleSet]) -> Ids:
    is_eligible = np.zeros(len(sets[0].catalogue.features), np.bool_)
    for eligible in sets:
        is_eligible[eligible.arms] = True
    return np.flatnonzero(is_eligible)


def _make_block(rows: VisitRows, state: State, sets: Sequence[EligibleSet], local: Ids) -> DecisionBlock:
    """Return the block of the decisions that have one of these eligible sets.

    local (all rows,): the index of each decision's set in `sets`, or -1 where the set is not among them."""
    members = np.flatnonzero(local >= 0)
    if len(members) < len(local):
        state, local = state.take(members), local[members]
    slates = rows.shown_arm[rows.first[members][:, None] + np.arange(int(rows.size[members[0]]))]
    # the arms of the block, and their indices in it
    features = sets[0].catalogue.features
    arms, index, flags = sets[0].arms if len(sets) == 1 else _join_sets(sets), np.zeros(len(features), np.int64), None
    index[arms] = np.arange(len(arms))
    if len(sets) > 1:  # the arms that each decision may show
        mask, lengths = np.zeros((len(sets), len(arms)), np.bool_), [len(eligible_set.arms) for eligible_set in sets]
        members_of = index[np.concatenate([eligible_set.arms for eligible_set in sets])]
        mask[np.repeat(np.arange(len(sets)), lengths), members_of] = True
        flags = mask[local]
    return DecisionBlock(
        rows=members, arms=arms, features=features[arms], slates=index[slates], eligible=flags,
        state=State(state.x, state.row, index[state.arm], state.memory, state.words),
    )  # fmt: skip
