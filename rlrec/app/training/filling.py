"""From the log of the store to a spool: visits as the policy that is trained reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from rlrec.app import trained, visiting, visits
from rlrec.app.designs import Ids
from rlrec.app.trained import Trained
from rlrec.app.training.spool import Case, Rows, Spool
from rlrec.app.visits import Cutoff, Told, Visits
from rlrec.ope.base import distinct
from rlrec.policy.gradient import by_row
from rlrec.policy.scores import Array
from rlrec.records import Reward
from rlrec.store import Unit, arms, settings
from rlrec.store.bulk import Columns
from rlrec.store.reader import Batch, Selection

# What is read of every impression.
READ = (
    "at", "imported", "censored", "context_id", "eligible_id", "catalogue_revision", "size", "split", "visit", "step",
    "arm_id", "propensity", "marginal", "min_propensity", "log_propensity", "history", "recorded", "created_at",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What went into a spool. unnamed: visits whose split is not that of the user that their session got later;
    unrecorded: those whose states were not; endless: those too long to be judged. last_id: the newest decision; new:
    visits that could not be used before a time; rewarded: decisions to which something happened that counts; largest:
    reward of a page."""

    told: Told
    unnamed: int = 0
    unrecorded: int = 0
    endless: int = 0
    largest: float = 0.0
    last_id: int = 0
    visits: int = 0
    slots: int = 0
    new: int = 0
    rewarded: int = 0


class Filler:
    """Writes a log into a spool, batch by batch. seed: of the names of visits, so of the sets that they fall into."""

    def __init__(self, unit: Unit, reader: Trained, reward: Reward, *, seed: int, spool: Spool) -> None:
        self.unit, self.reader, self.reward, self.seed, self.spool = unit, reader, reward, seed, spool
        self.salt = settings.get(unit).salt
        ordered = sorted(arms.every(unit), key=lambda one: one.key)
        self.arms: Ids = np.array([arm.id for arm in ordered], np.int64)
        self._rank = np.argsort(self.arms)
        self._cases: dict[tuple[int, int], tuple[int, Ids]] = {}  # its number, and its arms in order of their keys

    def fill(
        self, selection: Selection, cutoff: Cutoff, *, since: int = -1, progress: Callable[[], None] | None = None
    ) -> Filled:
        """The selected log as it can be used; what was not ripe at `since` is new."""
        total = dict.fromkeys(("unnamed", "unrecorded", "endless", "last_id", "visits", "slots", "new", "rewarded"), 0)
        told, largest = Told(), 0.0
        for batch, found, more in visits.batches(self.unit, selection, self.reward, cutoff, columns=READ, keys=True):
            told += more
            if not len(found):
                continue
            known = np.logical_and.reduceat(found.once("recorded"), found.start[:-1])
            split, cluster, name = self._named(batch, found)
            same, short = split == found.each("split"), np.diff(found.start) <= visits.LONGEST
            total["unrecorded"] += int((~known).sum())
            total["unnamed"] += int((known & ~same).sum())
            total["endless"] += int((known & same & ~short).sum())
            kept = known & same & short
            found = found.take(kept)
            if len(found):
                self.spool.add(self._rows(found, split[kept], cluster[kept], name[kept]))
                total["visits"] += len(found)
                total["slots"] += int(found.first[-1])
                total["new"] += int((found.ripe > since).sum())
                total["rewarded"] += int((~found.default).sum())
                largest = max(largest, float(np.abs(found.reward).max()))
                total["last_id"] = max(total["last_id"], int(found.slots["decision_id"].max()))
            if progress is not None:
                progress()
        return Filled(told=told, largest=largest, **total)

    def _named(self, batch: Batch, found: Visits) -> tuple[Ids, Ids, Ids]:
        """Of each visit the split and a name of its cluster (the user where one is known), and a name of its own."""
        keys = batch.keys
        assert keys is not None
        session, number = found.each("session_id"), found.each("visit").tolist()
        place = np.searchsorted(keys["session_id"], session)
        sessions, users = keys["key"][place].tolist(), keys["user"][place].tolist()
        owners = [user or key for user, key in zip(users, sessions, strict=True)]
        named = [f"{self.seed}/{key}/{visit}" for key, visit in zip(sessions, number, strict=True)]
        kinds = [f"user/{user}" if user else f"session/{key}" for user, key in zip(users, sessions, strict=True)]
        return np.array(visiting.splits(self.salt, owners), np.int64), _hashed(kinds), _hashed(named)

    def _rows(self, found: Visits, split: Ids, cluster: Ids, name: Ids) -> Rows:
        slots, first, eligible, revision = found.slots, found.first, found.once("eligible_id"), found.once(
            "catalogue_revision"
        )  # fmt: skip
        contexts, which = trained.readings(self.unit, found.once("context_id"))
        state = self.reader.states(self.reader.encoded(contexts)[which], found.histories(), revision)
        case, places = np.empty(len(eligible), np.int64), np.empty(len(slots["arm_id"]), np.int64)
        place = np.full(len(state.arm), -1, np.int64)
        row_of_slot = np.repeat(np.arange(len(eligible)), np.diff(first))
        for number, mine, order in self._numbered(eligible, revision):
            case[mine] = number
            inside = np.zeros(len(eligible), np.bool_)
            inside[mine] = True
            places[inside[row_of_slot]] = _placed(order, slots["arm_id"][inside[row_of_slot]])
            remembered = inside[state.row]
            place[remembered] = _placed(order, state.arm[remembered])
        kept = np.flatnonzero(place >= 0)
        kept = kept[by_row(state.row[kept], place[kept])]
        return Rows(
            name=name.view(np.uint64), split=split, cluster=cluster, length=np.diff(found.start), case=case,
            size=np.diff(first), remembered=np.bincount(state.row[kept], minlength=len(eligible)),
            log_propensity=found.once("log_propensity"), reward=found.reward, default=found.default.astype(np.int64),
            lowest=found.lowest, x=state.x, shown=places, earned=slots["reward"], logged=_logged(slots),
            place=place[kept], own=state.own[kept],
        )  # fmt: skip

    def _numbered(self, eligible: Ids, revision: Ids) -> list[tuple[int, Ids, Ids]]:
        """The cases of decisions: their numbers, which decisions, and the ids of their arms in order of keys."""
        epochs = np.array([self.reader.described.epoch(one) for one in np.unique(revision).tolist()], np.int64)
        epoch = epochs[np.searchsorted(np.unique(revision), revision)]
        first, which = distinct(eligible, epoch)
        found = []
        for kind, row in enumerate(first.tolist()):
            key = int(eligible[row]), int(epoch[row])
            if key not in self._cases:
                self._cases[key] = len(self.spool.cases), self._case(key[0], int(revision[row]))
            number, order = self._cases[key]
            found.append((number, np.flatnonzero(which == kind), order))
        return found

    def _case(self, eligible: int, revision: int) -> Ids:
        """A new case: its arms in order of their keys."""
        ids = self.reader.eligible(eligible)
        places = np.sort(self._rank[np.searchsorted(self.arms[self._rank], ids)])
        order = self.arms[places]
        self.spool.cases.append(Case(places=places, described=self.reader.described.of(order, revision)))
        return order


def _placed(order: Ids, ids: Ids) -> Ids:
    """Where arms stand among others that are in any order; -1 where they do not."""
    rank = np.argsort(order)
    place = np.minimum(np.searchsorted(order[rank], ids), len(order) - 1)
    found: Ids = np.where(order[rank][place] == ids, rank[place], -1)
    return found


def _logged(slots: Columns) -> Array:
    """Log propensity of each slot by itself: its marginal, or where that is not known what it was given those above."""
    found: Array = np.log(np.where(np.isnan(slots["marginal"]), slots["propensity"], slots["marginal"]))
    return found


def _hashed(names: list[str]) -> Ids:
    digests = b"".join([blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names])
    return np.frombuffer(digests, "<i8")
