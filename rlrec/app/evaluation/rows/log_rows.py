"""This module defines the log as folds read it: batches with all data of the store that folds need. The module has the
impressions of a batch, and the clusters and slates of the impressions.

The module also says how a list of candidates changes the weight of a target in the log of a two-stage policy. The
eligible set of such a decision is the list. A target with the same first stage is weighed given the list. For a
target with another first stage, the weight includes the probability of the list. A target without a first stage is
evaluated on the lists that the logger drew."""

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
from rlrec.policy.slates.slate_draws import SMALLEST
from rlrec.records import Record, Reward, Version
from rlrec.store.database.bulk import Columns
from rlrec.store.database.unit import StoredRows, damage_error
from rlrec.store.log.reader import ABSENT, Batch

if TYPE_CHECKING:
    from rlrec.ope.sums.unit_visits import Visits
    from rlrec.policy.kinds.two_stage import TwoStage
    from rlrec.store.log.candidates import CandidateList

MAX_DERIVED = 100  # distributions of first stages from which inclusion probabilities are computed
CELLS = 50_000_000  # most arms times squared candidates in these; the first one is computed whatever its size


class Inclusion(Record, kw_only=False):
    """This record has the smallest probability with which an arm that was shown became a candidate, and the number of
    decisions for which the probability was computed. The records of two batches can be added."""

    smallest: float = 1.0
    decisions: int = 0

    def __add__(self, other: Inclusion) -> Inclusion:
        return Inclusion(min(self.smallest, other.smallest), self.decisions + other.decisions)


class LoggedLists(Record, eq=False):
    """This record has the lists of candidates of a batch.

    `lists` has the list of each decision, by id. `first_stages` has a name of the first stage of each version, by
    id. `catalogues` has the arms from which candidates were drawn, by the id of the set of these arms. `inclusion`
    tells how likely the arms that were shown were to become candidates."""

    lists: Mapping[int, CandidateList] = field(default_factory=dict)
    first_stages: Mapping[int, Hashable] = field(default_factory=dict)
    catalogues: Mapping[int, Ids] = field(default_factory=dict)
    inclusion: Inclusion = field(default_factory=Inclusion)

    def has_list(self, slots: Columns) -> Flags:
        """Tell for each row whether its decision has a list, (n,)."""
        return np.isin(slots["decision_id"], list(self.lists))

    def weighable(self, slots: Columns) -> Flags:
        """Tell for each row whether its decision has a list from a known catalogue, (n,). The first stage of a target
        then has a known probability of drawing the list."""
        decisions = [key for key, candidates in self.lists.items() if candidates.catalogue_id is not None]
        return np.isin(slots["decision_id"], decisions)

    def catalogues_of(self, decision_id: Ids, eligible_id: Ids) -> Ids:
        """Return the id of the eligible set of each decision, (n,). Where candidates were drawn, the result is the id
        of the catalogue from which they were drawn.

        eligible_id: the id of the set from which each slate was drawn, (n,)."""
        pairs = zip(map(self.lists.get, decision_id.tolist()), eligible_id.tolist(), strict=True)
        return np.array([set_id if row is None else row.catalogue_id or set_id for row, set_id in pairs])

    def log_ratio(
        self, serving: VersionDistribution, slots: Columns, contexts: ContextTable, *, keys: Mapping[int, str]
    ) -> Array | None:
        """Return for each row the logarithm of the target's probability of the decision's list divided by the logger's
        probability of the list, (n,). The value is 0 where the target and the logger have the same first stage, or
        where the decision has no list. The result is None where all values are 0.

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
        codes, values = contexts.reading(generator.policy.reads)
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
    """Return a name of the first stage of a version, or None for a version without a first stage. Versions with equal
    names draw lists from the same distribution at any moment."""
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
    """Return the smallest probability with which an arm that was shown became a candidate, from at most `budget`
    distributions.

    moments: yields rows, and the distribution of the version at the moment when these rows were drawn; keys: the key
    of each arm, by id."""
    total, cells = Inclusion(), 0
    for rows, serving in moments:
        if serving.generator is None:
            continue
        codes, values = contexts.reading(serving.generator.policy.reads)
        candidates = [lists.lists.get(key) for key in slots["decision_id"][rows].tolist()]
        catalogue = np.array([-1 if candidates is None else candidates.catalogue_id or -1 for candidates in candidates])
        revision = slots["catalogue_revision"][rows]
        code = codes[slots["context"][rows]]
        for members in rows_by_kind(catalogue, revision, code):
            catalogue_id = int(catalogue[members[0]])
            if (arms := lists.catalogues.get(catalogue_id)) is None:
                continue
            size = serving.learner.n_candidates
            cells += len(arms) * size * size
            if budget <= 0 or (total.decisions and cells > CELLS):
                return total
            budget -= 1
            distribution = serving.candidates(
                catalogue_id, arms, values[int(code[members[0]])], keys=keys, revision=int(revision[members[0]])
            )  # fmt: skip
            group = rows[members]
            shown_index = np.searchsorted(arms, slots["arm_id"][group])
            probability = distribution.slate_sampler(size).marginals.sum(axis=0)[shown_index]
            if not np.isnan(probability).any():  # correlated scores have no closed form
                decisions = len(np.unique(slots["decision_id"][group]))
                total += Inclusion(float(min(1.0, probability.min())), decisions)
    return total


# The units that can be clusters, with the columns of the log that identify them.
CLUSTERS = {
    "user": ("user_id", "user_digest", "session_digest"),
    "session": ("session_digest",),
    "row": ("session_digest", "visit", "step"),
}
# The columns that are read to fit a reward model and to evaluate a target, beside those of CLUSTERS.
FITTED = ("at", "context_id", "imported", "arm_id", "censored", "keep_probability")
JUDGED = (
    *FITTED, "policy_id", "version_id", "belief_seq", "belief_ordinal", "eligible_id", "catalogue_revision", "size",
    "propensity", "marginal", "min_propensity", "visit", "step", "estimated", "subsampled",
)  # fmt: skip
# columns for targets that sample for each decision: see `decision_digests`
SAMPLED = ("session_digest", "visit", "step")
STATES = (*SAMPLED, "recorded", "history")  # columns for targets that read the session, too
# The columns that `tabulate` and `pairs` of `LoggerMarginals` add.
MARGINALS, PAIRS = "logger_marginals", "logger_pairs"
DRAW = "draw"  # the column with the row of `LoggedBatch.shares`
SLOT_SET = "slot_set"  # a column of slots: the id of the slot's own set of arms, 0 without one


class ArmTable:
    """This table has the a arms of a store. `ids` (a,) has the id of each arm, ascending. `keys` has the key of each
    arm, by id. `rank` (a,) is the place of each arm in the order of the keys.

    Sums over arms are in the order of the keys, which is the same in every store."""

    def __init__(self, keys: Mapping[int, str]) -> None:
        self.keys = StoredRows("arm", keys.items())
        self.ids: Ids = np.array(sorted(keys), np.int64)
        self.rank: Ids = np.argsort(np.argsort([keys[arm] for arm in self.ids.tolist()]))
        self._index: Ids = np.searchsorted(self.ids, np.arange(self.ids.max(initial=0) + 2))

    def __len__(self) -> int:
        return len(self.ids)

    def check(self, arm_ids: Ids) -> None:
        """Raise RlrecError if any of these arms is missing, since `index` would return the index of another arm."""
        for arm in arm_ids[~np.isin(arm_ids, self.ids, assume_unique=True)][:1].tolist():
            raise damage_error(f"row {arm} of table arm is gone")

    def index(self, arm_id: Ids) -> Ids:
        """Return the index of each arm in `ids`, in the shape of `arm_id`."""
        return self._index[arm_id]

    def ranks(self, arm_id: Ids) -> Ids:
        """Return the rank of each arm in the order of the keys, in the shape of `arm_id`."""
        return self.rank[self._index[arm_id]]


class RowGroup(NamedTuple):
    """A RowGroup is a group of rows. `name` distinguishes the group from all other groups, and `label` is the value
    that reports show."""

    name: str | None
    label: str | float | bool | None


class LoggedBatch(Record, eq=False):
    """This record has whole sessions of the log with all data that a fold needs. A fold makes no further query for
    them.

    `log` has the slots, with the columns of the reader, the columns of `slate_places`, `loggers.unknown_support` and
    `Loggers.support`, and the columns `cluster`, `context` (an index in `contexts`), `group` and `draw`. `groups`
    has the groups of `--by`. `eligible` has the arms of each eligible set, by id.

    `zeros` has, for each case of a logger, a flag for each arm that the logger could not show at each position, (size,
    m), or None where these arms are not known. `pairs` has the probabilities of all slates in a distribution, by the
    number in the column `logger_pairs`, as `LoggerMarginals.pairs` returns them. `lists` has the lists of candidates.
    `features` has the JSON of features of arms that hold for one decision, by the negative number that the decision has
    as revision of the catalogue. `shares` (c, k, a) has the probability of each arm, in order of key, at each position
    in each distribution of the loggers. The column `draw` has the index of each row's distribution in `shares`, or -1
    where the distribution is not known."""

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
    """This record has the mature, uncensored impressions of a batch. `slots` has the columns of `LoggedBatch`.
    `shown_arms` has the arm of every impression of the batch, including the impressions that were left out, since the
    column `start` counts all impressions."""

    shown_arms: Ids

    @property
    def begins(self) -> Ids:
        """Return the index of the first slot of each row, (n,). Each row is one slot."""
        return np.arange(len(self))


def slate_places(slots: Columns) -> Columns:
    """Return columns that tell where each impression stands on its slate, (n,) each. The batch is in order of decision
    and position.

    `start` is the index of the first row of the slate. `depth` is the number of impressions above the row, and
    `complete` tells whether all positions above are present. `prefix` is the logger's probability of the slate down
    to the row. `smallest_prefix` is the product of the smallest conditional probabilities down to the row. Both are
    NaN where a factor is unknown or the batch was read without propensities."""
    depth = _depths(slots)
    is_complete = slots["position"] == depth + 1
    propensities = (np.where(is_complete, slots.get(name, np.nan), np.nan) for name in ("propensity", "min_propensity"))
    prefix, smallest_prefix = (products_in_runs(column, depth, least=SMALLEST) for column in propensities)
    start = np.arange(len(depth)) - depth
    return {
        "start": start,
        "depth": depth,
        "complete": is_complete,
        "prefix": prefix,
        "smallest_prefix": smallest_prefix,
    }


def visit_course(slots: Columns) -> Columns:
    """Return two columns that tell what the visit of each slot has shown, (n,) each. `repeats` is the number of earlier
    slates of the visit that showed the arm of the slot. `length` is the number of decisions of the visit."""
    step = slots["step"]
    if not step.any():
        return {"repeats": np.zeros_like(step), "length": np.ones_like(step)}
    first_rows, visit = distinct(slots["session_id"], slots["visit"])
    arms, arm = distinct(slots["arm_id"])
    steps = int(step.max()) + 1
    # one number per row, in order of visit, arm and step, sorts in a quarter of the time of a sort by three columns
    sort_key = (visit * len(arms) + arm) * steps + step
    order = np.argsort(sort_key, kind="stable")
    repeats, longest_page = np.empty_like(step), np.zeros(len(first_rows), np.int64)
    repeats[order] = numbers_in_runs(run_starts(sort_key[order] // steps), len(step))
    np.maximum.at(longest_page, visit, step + 1)
    return {"repeats": repeats, "length": longest_page[visit]}


def arms_of_sets(eligible_id: Ids, eligible: Mapping[int, Ids]) -> Ids:
    """Return the number of arms in the eligible set of each row, (n,).

    eligible_id: the id of each row's eligible set, (n,); eligible: the arms of each set, by id."""
    first_rows, set_index = distinct(eligible_id)
    return np.array([len(eligible[key]) for key in eligible_id[first_rows].tolist()], np.int64)[set_index]


def _depths(slots: Columns) -> Ids:
    """Return the number of impressions above each row on the row's slate, (n,)."""
    return numbers_in_runs(run_starts(slots["decision_id"]), len(slots["decision_id"]))


def cluster_digests(slots: Columns, unit: str) -> Ids:
    """Return a digest of the randomised unit of each row, (n,).

    Digests depend on keys instead of ids, so the same log in another order has the same clusters. The last bit of a
    digest distinguishes a user from a session with the same key.

    slots: rows with the columns of the unit in CLUSTERS; unit: `session`, `row` for the row itself, or `user`. With
    `user`, the unit of a row is the user where the user is known, and otherwise the session."""
    session = slots["session_digest"]
    # a session's first row has the session's digest, so that sessions of one row have the same clusters as rows
    if unit == "row":
        session = _hash_digest(decision_digests(slots), _depths(slots), salt=2)
    session = session | 1
    return np.where(slots["user_id"] != ABSENT, slots["user_digest"] & ~1, session) if unit == "user" else session


def person_visits(
    columns: Columns, *, timeout_us: int, now: int, import_end: int = 0, by_session: bool = False, any_user: bool = True
) -> Visits:
    """Return the visits of persons. A visit that nobody ended ends when the timeout after its last decision is over.

    columns: the stored columns of the visits; import_end: the time of the newest imported decision, after which an
    imported log would not show a return; by_session: whether the unit is the session; any_user: whether the store
    has any user."""
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
    """Return a digest of the session, visit and step of each row, (n,). A target that uses these digests as seeds draws
    the same arms in every store."""
    return _hash_digest(_hash_digest(slots["session_digest"], slots["visit"] - 1, salt=0), slots["step"], salt=1)


def _hash_digest(digest: Ids, number: Ids, *, salt: int) -> Ids:
    return np.where(number == 0, digest, hash_bits(digest ^ number, salt=salt).view(np.int64))


def usable_rows(batch: Batch, definition: Reward, *, now: int) -> tuple[ImpressionRows, int]:
    """Return the rows of a batch that count in estimates of a reward, and the number of rows that are not mature yet.

    definition: the definition of the reward."""
    rewards, slots = reward_log.with_rewards(batch, definition), batch.slots
    is_mature = reward_log.is_mature(slots, definition, now=now)
    rows = ImpressionRows(slots=slots, reward=rewards.reward, default=rewards.default, shown_arms=slots["arm_id"])
    return rows.take(is_mature & ~slots["censored"]), int((~is_mature).sum())


# -- slots with sets of arms of their own (slates, ccb with `_inc`): each is evaluated as a decision of one slot --
#
# The set is the slot's own set without the arms above it. A target draws from that set independently of the arms above,
# so the probability of a slate is the product over its slots.


def slot_set_column(slots: Columns, sets: Mapping[int, Sequence[Sequence[int]]]) -> tuple[Ids, dict[int, Ids]]:
    """Return the column SLOT_SET, (n,), and the arms of each set, by the id of the set. The id is a negative digest,
    which no stored set has.

    slots: the slots, in order of decision and position; sets: the sets of arms of the slots of each decision, from
    the top."""
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
    """Tell for each slot whether the slot has a set of arms of its own, (n,). The result is None where no slot has such
    a set."""
    has_set = slots[SLOT_SET] != 0 if SLOT_SET in slots else np.zeros(0, np.bool_)
    return has_set if has_set.any() else None


def as_decisions(rows: ImpressionRows) -> ImpressionRows:
    """Return the rows. Each slot with a set of arms of its own becomes a decision of one slot."""
    slots, has_set = rows.slots, slot_set_flags(rows.slots)
    if has_set is None:
        return rows
    new_columns = {
        "eligible_id": np.where(has_set, slots[SLOT_SET], slots["eligible_id"]),
        **{name: np.where(has_set, 1, slots[name]) for name in ("size", "position")},
        "depth": np.where(has_set, 0, slots["depth"]), "start": slots["start"] + np.where(has_set, slots["depth"], 0),
    }  # fmt: skip
    return replace(rows, slots=slots | new_columns)


def down_to_rows(slots: Columns, has_set: Flags, steps: Array) -> Array:
    """Return for each slot the product of `steps` over the slots from the top of the slate down to the slot, (n,). The
    product is NaN where a slot above is missing.

    has_set: whether each slot has a set of arms of its own (other slots keep their element of `steps`); steps: a
    factor for each slot, (n,)."""
    rows, products = np.flatnonzero(has_set), steps.copy()
    depth = numbers_in_runs(run_starts(slots["decision_id"][rows]), len(rows))
    is_below_all = slots["depth"][rows] == depth
    products[rows] = products_in_runs(np.where(is_below_all, steps[rows], np.nan), depth)
    return products
