"""This module defines batches of the log with all data of the store that evaluations need. It has the impressions of a
batch, and the clusters and slates of the impressions.

A two-stage policy first draws a list of candidates, then ranks it. In its log, the eligible set of a decision is the
list. A target with the same first stage is weighted given the list. For a target with another first stage, the
weight includes the probability of the list. A target without a first stage is evaluated on the lists that the logger
drew."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from rlrec.app.distributions import designs
from rlrec.app.distributions.exact import VersionDistribution
from rlrec.app.evaluation.rows.contexts import ContextTable
from rlrec.app.log import lineage, reward_log
from rlrec.arrays import Array, Flags, Ids, distinct, numbers_in_runs, products_in_runs, rows_by_kind, run_starts
from rlrec.ope.sums.base import hash_bits
from rlrec.policy.slates.slate_draws import MIN_PROBABILITY
from rlrec.records import Record, Reward, Version
from rlrec.store.database.bulk import Columns
from rlrec.store.database.unit import StoredRows, damage_error
from rlrec.store.log.reader import ABSENT, Batch

if TYPE_CHECKING:
    from rlrec.ope.sums.unit_visits import Visits
    from rlrec.policy.kinds.two_stage import TwoStage
    from rlrec.store.log.candidates import CandidateList

MAX_DERIVED = 100  # distributions of first stages from which inclusion probabilities are computed
MAX_CELLS = 50_000_000  # most arms times squared candidates in these; the first one is computed whatever its size


class Inclusion(Record, kw_only=False):
    """This record is about how likely arms became candidates in the first stage of two-stage policies. smallest: the
    smallest such probability of an arm that was shown; decisions: the number of decisions for which it was computed.
    The records of two batches can be added."""

    smallest: float = 1.0
    decisions: int = 0

    def __add__(self, other: Inclusion) -> Inclusion:
        return Inclusion(min(self.smallest, other.smallest), self.decisions + other.decisions)


class LoggedLists(Record, eq=False):
    """This record has the lists of candidates that two-stage policies drew in a batch.

    lists: the list of each decision, by id; first_stages: a name of the first stage of each version, by id;
    catalogues: the arms from which candidates were drawn, by the id of the set of these arms; inclusion: how likely
    the arms that were shown became candidates."""

    lists: Mapping[int, CandidateList] = field(default_factory=dict)
    first_stages: Mapping[int, Hashable] = field(default_factory=dict)
    catalogues: Mapping[int, Ids] = field(default_factory=dict)
    inclusion: Inclusion = field(default_factory=Inclusion)

    def has_list(self, slots: Columns) -> Flags:
        """Tell for each row whether its decision has a list of candidates, (n,)."""
        return np.isin(slots["decision_id"], list(self.lists))

    def weighable(self, slots: Columns) -> Flags:
        """Tell for each row whether its decision has a list of candidates drawn from known arms, (n,). The probability
        that another first stage draws the list is then known."""
        decisions = [key for key, candidates in self.lists.items() if candidates.catalogue_id is not None]
        return np.isin(slots["decision_id"], decisions)

    def catalogues_of(self, decision_id: Ids, eligible_id: Ids) -> Ids:
        """Return the id of the set of arms from which each decision drew, (n,). For a decision with a list of
        candidates, this is the set from which the candidates were drawn.

        eligible_id (n,): the id of the set from which each slate was drawn."""
        pairs = zip(map(self.lists.get, decision_id.tolist()), eligible_id.tolist(), strict=True)
        return np.array([set_id if row is None else row.catalogue_id or set_id for row, set_id in pairs])

    def log_ratio(
        self, serving: VersionDistribution, slots: Columns, contexts: ContextTable, *, keys: Mapping[int, str]
    ) -> Array | None:
        """Return for each row the logarithm of a ratio: the probability that the target draws the decision's list of
        candidates, divided by the probability that the logger draws it, (n,). The value is 0 if both have the same
        first stage, or if the decision has no list. The result is None if all values are 0.

        serving: the distribution of the target; keys: the key of each arm, by id."""
        generator = serving.generator
        if generator is None or not self.lists:
            return None
        stage = first_stage(serving.version)
        first_slots, decision = distinct(slots["decision_id"])
        ids, versions = (slots[column][first_slots].tolist() for column in ("decision_id", "version_id"))
        pairs = enumerate(zip(ids, versions, strict=True))
        rows = [row for row, (key, version) in pairs if key in self.lists and self.first_stages[version] != stage]
        if not rows:
            return None
        list_slots, lists = first_slots[rows], [self.lists[ids[row]] for row in rows]
        codes, values = contexts.reading(generator.policy.fields_read)
        revision, code = slots["catalogue_revision"][list_slots], codes[slots["context"][list_slots]]
        catalogue, length = np.array([(row.catalogue_id or -1, len(row.arms)) for row in lists]).T
        epoch = np.array(list(map(generator.epoch, revision.tolist())))
        # decisions that share a distribution of lists, and the length of each one's list
        ratio = np.zeros(len(first_slots))
        for members in rows_by_kind(catalogue, length, epoch, code):
            case_lists, catalogue_id = [lists[row] for row in members.tolist()], int(catalogue[members[0]])
            if catalogue_id < 0 or length[members[0]] != serving.learner.n_candidates:  # the target draws no such list
                ratio[np.array(rows)[members]] = -np.inf
                continue
            distribution = serving.candidates(
                catalogue_id, self.catalogues[catalogue_id], values[int(code[members[0]])], keys=keys,
                revision=int(revision[members[0]]),
            )  # fmt: skip
            arms, seeds = np.array([row.arms for row in case_lists]), np.zeros(len(members), np.uint64)
            draw_numbers = list_slots[members]
            if distribution.scores.samples:
                draw_numbers = slots["decision_digest"][draw_numbers]
            with np.errstate(divide="ignore"):
                probability = distribution.list_conditionals(arms, seeds=seeds, decisions=draw_numbers)
                log_probability = np.log(probability).sum(axis=1)
            ratio[np.array(rows)[members]] = log_probability - np.array([row.log_propensity for row in case_lists])
        return ratio[decision]


def first_stage(version: Version) -> Hashable:
    """Return a value that names the first stage of a version, or None for a version without a first stage. Versions
    with equal values draw lists from the same distribution at any moment."""
    policy = designs.policy_of(version)
    if not policy.stages:
        return None
    if lineage.depends_on_belief(policy.stages[0]):
        return version.id
    return json.dumps([policy.n_candidates, *cast("TwoStage", policy).definitions[0]], sort_keys=True)


def smallest_inclusion(
    lists: LoggedLists, slots: Columns, moments: Iterator[tuple[Ids, VersionDistribution]], contexts: ContextTable, *,
    keys: Mapping[int, str], budget: int,
) -> Inclusion:  # fmt: skip
    """Return the smallest probability with which an arm that was shown became a candidate in the first stage of its
    logger.

    moments: yields rows, and the distribution of the version at the moment when these rows were drawn; keys: the key
    of each arm, by id; budget: the largest number of distributions to compute."""
    total, n_cells = Inclusion(), 0
    for rows, serving in moments:
        if serving.generator is None:
            continue
        codes, values = contexts.reading(serving.generator.policy.fields_read)
        candidates = [lists.lists.get(key) for key in slots["decision_id"][rows].tolist()]
        catalogue = np.array([-1 if candidates is None else candidates.catalogue_id or -1 for candidates in candidates])
        revision = slots["catalogue_revision"][rows]
        code = codes[slots["context"][rows]]
        for members in rows_by_kind(catalogue, revision, code):
            catalogue_id = int(catalogue[members[0]])
            if (arms := lists.catalogues.get(catalogue_id)) is None:
                continue
            size = serving.learner.n_candidates
            n_cells += len(arms) * size * size
            if budget <= 0 or (total.decisions and n_cells > MAX_CELLS):
                return total
            budget -= 1
            distribution = serving.candidates(
                catalogue_id, arms, values[int(code[members[0]])], keys=keys, revision=int(revision[members[0]])
            )  # fmt: skip
            group = rows[members]
            shown_index = np.searchsorted(arms, slots["arm_id"][group])
            probability = distribution.slate_sampler(size).marginals.sum(axis=0)[shown_index]
            if not np.isnan(probability).any():  # correlated scores have no closed form
                n_decisions = len(np.unique(slots["decision_id"][group]))
                total += Inclusion(float(min(1.0, probability.min())), n_decisions)
    return total


# The units that can be clusters, with the columns of the log that identify them.
CLUSTERS = {
    "user": ("user_id", "user_digest", "session_digest"),
    "session": ("session_digest",),
    "row": ("session_digest", "visit", "step"),
}
# The columns that are read to fit a reward model and to evaluate a target, beside those of CLUSTERS.
FIT_COLUMNS = ("at", "context_id", "imported", "arm_id", "censored", "keep_probability")
JUDGE_COLUMNS = (
    *FIT_COLUMNS, "policy_id", "version_id", "belief_seq", "belief_ordinal", "eligible_id", "catalogue_revision",
    "size", "propensity", "marginal", "min_propensity", "visit", "step", "estimated", "subsampled",
)  # fmt: skip
# columns for targets that sample for each decision: see `decision_digests`
SAMPLE_COLUMNS = ("session_digest", "visit", "step")
STATE_COLUMNS = (*SAMPLE_COLUMNS, "recorded", "history")  # columns for targets that read the session, too
# The columns that `tabulate` and `pairs` of `LoggerMarginals` add.
MARGINALS, PAIRS = "logger_marginals", "logger_pairs"
DRAW = "draw"  # the column with the row of `LoggedBatch.shares`
SLOT_SET = "slot_set"  # a column of slots: the id of the slot's own set of arms, 0 without one


class ArmTable:
    """This table has the a arms of a store. ids (a,): the id of each arm, ascending; keys: the key of each arm, by id;
    rank (a,): the place of each arm in the order of the keys.

    Sums over arms are in the order of the keys, which is the same in every store."""

    def __init__(self, keys: Mapping[int, str]) -> None:
        self.keys = StoredRows("arm", keys.items())
        self.ids: Ids = np.array(sorted(keys), np.int64)
        self.rank: Ids = np.argsort(np.argsort([keys[arm] for arm in self.ids.tolist()]))
        self._index: Ids = np.searchsorted(self.ids, np.arange(self.ids.max(initial=0) + 2))

    def __len__(self) -> int:
        return len(self.ids)

    def check(self, arm_ids: Ids) -> None:
        """Raise RlrecError if any of these arms is missing. Without this check, `index` would return the index of
        another arm."""
        for arm in arm_ids[~np.isin(arm_ids, self.ids, assume_unique=True)][:1].tolist():
            raise damage_error(f"row {arm} of table arm is gone")

    def index(self, arm_id: Ids) -> Ids:
        """Return the index of each arm in `ids`, in the shape of `arm_id`."""
        return self._index[arm_id]

    def ranks(self, arm_id: Ids) -> Ids:
        """Return the rank of each arm in the order of the keys, in the shape of `arm_id`."""
        return self.rank[self._index[arm_id]]


class RowGroup(NamedTuple):
    """A RowGroup is a group of rows. name: a text that no other group has; label: the value that reports show."""

    name: str | None
    label: str | float | bool | None


class LoggedBatch(Record, eq=False):
    """This record has whole sessions of the log, with all data that an evaluation needs.

    log: the slots, with the columns of the reader, of `slate_places`, `loggers.unknown_support` and
    `Loggers.support`, and the columns `cluster`, `context` (an index in `contexts`), `group` and `draw` (an index in
    `shares`, or -1 where the distribution is not known); groups: the groups of `--by`; eligible: the arms of each
    eligible set, by id.

    zeros: for each case of a logger, a flag for each of m arms that the logger could not show at each position, (size,
    m), or None where these arms are not known; pairs: the probabilities of all slates in a distribution, by the number
    in the column `logger_pairs`, as `LoggerMarginals.pairs` returns them; lists: the lists of candidates of two-stage
    loggers; features: the features of arms, as JSON, that hold for only one decision, by the negative number in its
    column `catalogue_revision`; shares (c, k, a): the probability of each of a arms, in order of key, at each of k
    positions in each of c distributions of the loggers."""

    log: Batch
    contexts: ContextTable
    groups: Sequence[RowGroup] = ()
    eligible: Mapping[int, Ids]
    zeros: Sequence[Array | None] = ()
    pairs: Sequence[Array] = ()
    lists: LoggedLists = field(default_factory=LoggedLists)
    features: Mapping[int, Mapping[int, str]] = field(default_factory=dict)
    shares: Array | None = None


class ImpressionRows(reward_log.RewardedSlots, eq=False):
    """This record has the mature, uncensored impressions of a batch. slots: the columns of `LoggedBatch`; shown_arms:
    the arm of every impression of the batch, with those that were left out, since the column `start` counts all of
    them."""

    shown_arms: Ids

    @property
    def begins(self) -> Ids:
        """Return the index of the first slot of each row, (n,), which is the row's own index, since a row is one
        slot."""
        return np.arange(len(self))


def slate_places(slots: Columns) -> Columns:
    """Return columns (n,) that tell where each of n impressions stands on its slate. `slots` is in order of decision
    and position.

    start: the index of the first row of the slate; depth: the number of impressions above the row; complete: whether
    all positions above are present; prefix: the logger's probability of the slate down to the row; smallest_prefix:
    the product of the smallest conditional probabilities down to the row. The last two are NaN if a factor is
    unknown or the batch was read without propensities."""
    depth = _depths(slots)
    is_complete = slots["position"] == depth + 1
    propensities = (np.where(is_complete, slots.get(name, np.nan), np.nan) for name in ("propensity", "min_propensity"))
    prefix, smallest_prefix = (products_in_runs(column, depth, least=MIN_PROBABILITY) for column in propensities)
    start = np.arange(len(depth)) - depth
    return {
        "start": start,
        "depth": depth,
        "complete": is_complete,
        "prefix": prefix,
        "smallest_prefix": smallest_prefix,
    }


def visit_course(slots: Columns) -> Columns:
    """Return two columns (n,) about the visit of each slot. repeats: the number of earlier slates of the visit that
    showed the arm of the slot; length: the number of decisions of the visit."""
    step = slots["step"]
    if not step.any():
        return {"repeats": np.zeros_like(step), "length": np.ones_like(step)}
    first_rows, visit = distinct(slots["session_id"], slots["visit"])
    arms, arm = distinct(slots["arm_id"])
    n_steps = int(step.max()) + 1
    # one number per row, in order of visit, arm and step, sorts in a quarter of the time of a sort by three columns
    sort_key = (visit * len(arms) + arm) * n_steps + step
    order = np.argsort(sort_key, kind="stable")
    repeats, longest_page = np.empty_like(step), np.zeros(len(first_rows), np.int64)
    repeats[order] = numbers_in_runs(run_starts(sort_key[order] // n_steps), len(step))
    np.maximum.at(longest_page, visit, step + 1)
    return {"repeats": repeats, "length": longest_page[visit]}


def arms_of_sets(eligible_id: Ids, eligible: Mapping[int, Ids]) -> Ids:
    """Return the number of arms in the eligible set of each row, (n,).

    eligible_id (n,): the id of each row's eligible set; eligible: the arms of each set, by id."""
    first_rows, set_index = distinct(eligible_id)
    return np.array([len(eligible[key]) for key in eligible_id[first_rows].tolist()], np.int64)[set_index]


def _depths(slots: Columns) -> Ids:
    """Return the number of impressions above each row on the row's slate, (n,)."""
    return numbers_in_runs(run_starts(slots["decision_id"]), len(slots["decision_id"]))


def cluster_digests(slots: Columns, unit: str) -> Ids:
    """Return a digest of the cluster of each row, (n,).

    Digests depend on keys instead of ids, so that the same log in another order has the same clusters. The last bit
    of a digest tells a user from a session with the same key.

    slots: rows with the columns of the cluster in CLUSTERS; unit: `session`, `row` for the row itself, or `user`. With
    `user`, the cluster of a row is the user if the user is known, else the session."""
    session = slots["session_digest"]
    # a session's first row has the session's digest, so that sessions of one row have the same clusters as rows
    if unit == "row":
        session = _hash_digest(decision_digests(slots), _depths(slots), salt=2)
    session = session | 1
    return np.where(slots["user_id"] != ABSENT, slots["user_digest"] & ~1, session) if unit == "user" else session


def person_visits(
    columns: Columns, *, timeout_us: int, now: int, import_end: int = 0, by_session: bool = False, any_user: bool = True
) -> Visits:
    """Return the visits of persons. A visit that nobody ended is over when the timeout after its last decision has
    passed.

    columns: the stored columns of the visits; timeout_us: the timeout in microseconds; import_end: the time of the
    newest imported decision, after which an imported log would not show a return; by_session: whether sessions, not
    users, are counted; any_user: whether the store has any user."""
    from rlrec.ope.sums.unit_visits import FAR_FUTURE, Visits

    lapsed_at, has_ended = columns["last_at"] + timeout_us, columns["ended_at"] != ABSENT
    person = cluster_digests(columns, "user")
    return Visits(
        person=person, unit=cluster_digests(columns, "session") if by_session else person,
        started_at=columns["started_at"],
        ended_at=np.where(has_ended, columns["ended_at"], lapsed_at), is_over=has_ended | (now > lapsed_at),
        is_recognised=(columns["user_id"] != ABSENT) | (not any_user),
        horizon=np.where(columns["started_at"] <= import_end, import_end, FAR_FUTURE),
    )  # fmt: skip


def decision_digests(slots: Columns) -> Ids:
    """Return a digest of the session, visit and step of each row, (n,). With these digests as seeds, a target draws the
    same arms in every store."""
    return _hash_digest(_hash_digest(slots["session_digest"], slots["visit"] - 1, salt=0), slots["step"], salt=1)


def _hash_digest(digest: Ids, number: Ids, *, salt: int) -> Ids:
    return np.where(number == 0, digest, hash_bits(digest ^ number, salt=salt).view(np.int64))


def usable_rows(batch: Batch, definition: Reward, *, now: int) -> tuple[ImpressionRows, int]:
    """Return the rows of a batch that are used in estimates of a reward, and the number of rows whose reward window is
    still open. Other rows that are left out are censored.

    definition: the definition of the reward; now: the present time."""
    rewards, slots = reward_log.with_rewards(batch, definition), batch.slots
    is_mature = reward_log.is_mature(slots, definition, now=now)
    rows = ImpressionRows(slots=slots, reward=rewards.reward, default=rewards.default, shown_arms=slots["arm_id"])
    return rows.take(is_mature & ~slots["censored"]), int((~is_mature).sum())


# -- slots with sets of arms of their own (slates, ccb with `_inc`): each is evaluated as a decision of one slot --
#
# The set is the slot's own set without the arms above it. A target draws from that set independently of the arms above,
# so the probability of a slate is the product over its slots.


def slot_set_column(slots: Columns, sets: Mapping[int, Sequence[Sequence[int]]]) -> tuple[Ids, dict[int, Ids]]:
    """Return the column SLOT_SET, (n,), with the id of each slot's own set of arms to draw from, and the arms of each
    set, by id. An id is a negative digest, which no stored set has. Slots without a set of their own have the id 0.

    slots: the slots, in order of decision and position; sets: for each decision, the sets of its slots, from the
    top."""
    ids, arms, arms_above = np.zeros(len(slots["decision_id"]), np.int64), dict[int, Ids](), list[int]()
    slot_arms = zip(slots["decision_id"].tolist(), slots["arm_id"].tolist(), strict=True)
    last_decision, slot_number = 0, 0
    for row, (decision, arm) in enumerate(slot_arms):
        if decision not in sets:
            continue
        if decision != last_decision:
            last_decision, slot_number, arms_above = decision, 0, []
        if slot_number < len(sets[decision]):
            remaining_arms = np.array(sorted(set(sets[decision][slot_number]) - set(arms_above)), np.int64)
            ids[row] = -int.from_bytes(blake2b(remaining_arms.tobytes(), digest_size=7).digest(), "little") - 1
            arms[int(ids[row])] = remaining_arms
        slot_number, arms_above = slot_number + 1, [*arms_above, arm]
    return ids, arms


def slot_set_flags(slots: Columns) -> Flags | None:
    """Tell for each slot whether it has its own set of arms to draw from, (n,). The result is None if no slot has such
    a set."""
    has_set = slots[SLOT_SET] != 0 if SLOT_SET in slots else np.zeros(0, np.bool_)
    return has_set if has_set.any() else None


def as_decisions(rows: ImpressionRows) -> ImpressionRows:
    """Return the rows, where each slot with its own set of arms to draw from is changed to a decision of one slot."""
    slots, has_set = rows.slots, slot_set_flags(rows.slots)
    if has_set is None:
        return rows
    new_columns = {
        "eligible_id": np.where(has_set, slots[SLOT_SET], slots["eligible_id"]),
        **{name: np.where(has_set, 1, slots[name]) for name in ("size", "position")},
        "depth": np.where(has_set, 0, slots["depth"]), "start": slots["start"] + np.where(has_set, slots["depth"], 0),
    }  # fmt: skip
    return replace(rows, slots=slots | new_columns)


def multiply_down(slots: Columns, has_set: Flags, steps: Array) -> Array:
    """Return for each slot the product of `steps` over the slots from the top of the slate down to it, (n,). The
    product is NaN if a slot above is missing.

    has_set: whether each slot has its own set of arms to draw from. Only these slots are multiplied; any other slot
    keeps its value in `steps`. steps (n,): a factor for each slot."""
    rows, products = np.flatnonzero(has_set), steps.copy()
    depth = numbers_in_runs(run_starts(slots["decision_id"][rows]), len(rows))
    is_below_all = slots["depth"][rows] == depth
    products[rows] = products_in_runs(np.where(is_below_all, steps[rows], np.nan), depth)
    return products
