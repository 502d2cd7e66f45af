"""From the log of the store to a spool: visits as the policy that is trained reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from rlrec.app.distributions import trained
from rlrec.app.distributions.trained import Trained
from rlrec.app.log import ended_visits
from rlrec.app.log.ended_visits import Cutoff, Told, Visits
from rlrec.app.log.splits import splits
from rlrec.app.training.dataset import Case, Catalogue, Rows, Spool
from rlrec.arrays import Array, Flags, Ids, distinct
from rlrec.policy.gradient import by_row
from rlrec.records import Reward
from rlrec.store import Unit, arms, contents, settings
from rlrec.store.bulk import Columns
from rlrec.store.reader import Batch, Selection

# What is read of every impression.
READ = (
    "at", "imported", "censored", "context_id", "eligible_id", "catalogue_revision", "size", "split", "visit", "step",
    "arm_id", "propensity", "marginal", "min_propensity", "log_propensity", "history", "recorded", "created_at",
)  # fmt: skip

CELLS = 1_000_000  # arms of eligible sets that are held at a time


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
        self.salt = settings.get(unit).split_salt
        ordered = sorted(arms.every(unit), key=lambda one: one.key)
        self.arms: Ids = np.array([arm.id for arm in ordered], np.int64)
        self._rank = np.argsort(self.arms)
        self._catalogues: dict[int, Catalogue] = {}  # by epoch

    def fill(
        self, selection: Selection, cutoff: Cutoff, *, since: int = -1, progress: Callable[[], None] | None = None
    ) -> Filled:
        """The selected log as it can be used; what was not ripe at `since` is new."""
        total = dict.fromkeys(("unnamed", "unrecorded", "endless", "last_id", "visits", "slots", "new", "rewarded"), 0)
        told, largest = Told(), 0.0
        for batch, found, more in ended_visits.batches(
            self.unit, selection, self.reward, cutoff, columns=READ, keys=True
        ):
            told += more
            if not len(found):
                continue
            known = np.logical_and.reduceat(found.once("recorded"), found.start[:-1])
            split, cluster, name = self._named(batch, found)
            same, short = split == found.each("split"), np.diff(found.start) <= ended_visits.LONGEST
            total["unrecorded"] += int((~known).sum())
            total["unnamed"] += int((known & ~same).sum())
            total["endless"] += int((known & same & ~short).sum())
            kept = known & same & short
            found, split, cluster, name = found.take(kept), split[kept], cluster[kept], name[kept]
            if len(found):
                for some in self._portions(found):
                    self.spool.add(self._rows(found.take(some), split[some], cluster[some], name[some]))
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
        return np.array(splits(self.salt, owners), np.int64), _hashed(kinds), _hashed(named)

    def _portions(self, found: Visits) -> Iterator[Flags]:
        """The visits, few enough at a time for their eligible sets to be held."""
        sizes = contents.set_sizes(self.unit, set(found.once("eligible_id").tolist()))
        portions = min(-(-sum(sizes.values()) // CELLS), len(found))
        number = np.arange(len(found)) * portions // len(found)
        return (number == one for one in range(portions))

    def _rows(self, found: Visits, split: Ids, cluster: Ids, name: Ids) -> Rows:
        slots, first, eligible, revision = found.slots, found.first, found.once("eligible_id"), found.once(
            "catalogue_revision"
        )  # fmt: skip
        contexts, which = trained.readings(self.unit, found.once("context_id"))
        state = self.reader.states(self.reader.encoded(contexts)[which], found.histories(), revision)
        cases, which = self._cases(eligible, revision)
        among = _Places([case.places for case in cases], len(self.arms))
        places = among.of(np.repeat(which, np.diff(first)), self._place(slots["arm_id"]))
        place = among.of(which[state.row], self._place(state.arm))
        kept = np.flatnonzero(place >= 0)
        kept = kept[by_row(state.row[kept], place[kept])]
        return Rows(
            cases=cases, name=name.view(np.uint64), split=split, cluster=cluster, length=np.diff(found.start),
            case=which, size=np.diff(first), remembered=np.bincount(state.row[kept], minlength=len(eligible)),
            log_propensity=found.once("log_propensity"), reward=found.reward, default=found.default.astype(np.int64),
            lowest=found.lowest, x=state.x, shown=places, earned=slots["reward"], logged=_logged(slots),
            place=place[kept], own=state.own[kept],
        )  # fmt: skip

    def _place(self, ids: Ids) -> Ids:
        """Where arms stand among all that are trained."""
        found: Ids = self._rank[np.searchsorted(self.arms[self._rank], ids)]
        return found

    def _cases(self, eligible: Ids, revision: Ids) -> tuple[list[Case], Ids]:
        """The eligible sets of decisions as they were described then, and which of them each has, (n,)."""
        revisions, at = np.unique(revision, return_inverse=True)
        epoch = np.array([self.reader.described.epoch(one) for one in revisions.tolist()], np.int64)[at]
        first, which = distinct(eligible, epoch)
        sets = contents.eligible_arms(self.unit, set(eligible[first].tolist()))
        rows = zip(eligible[first].tolist(), epoch[first].tolist(), revision[first].tolist(), strict=True)
        return [self._case(sets[key], *told) for key, *told in rows], which

    def _case(self, ids: Sequence[int], epoch: int, revision: int) -> Case:
        if epoch not in self._catalogues:
            new = Catalogue(self.reader.described.of(self.arms, revision))
            self._catalogues[epoch] = next((one for one in self._catalogues.values() if one.name == new.name), new)
        return Case(self._catalogues[epoch], np.sort(self._place(np.array(ids, np.int64))))


class _Places:
    """Where arms stand in eligible sets, by where they stand among all."""

    def __init__(self, sets: Sequence[Ids], arms: int) -> None:
        lengths = np.array([len(one) for one in sets], np.int64)
        self._base, self._arms = np.cumsum(lengths) - lengths, arms
        self._table = np.concatenate([one + arms * number for number, one in enumerate(sets)])

    def of(self, which: Ids, places: Ids) -> Ids:
        """Of arms (n,), each in one of the sets; -1 where it is not in it."""
        wanted = which * self._arms + places
        at = np.minimum(np.searchsorted(self._table, wanted), len(self._table) - 1)
        found: Ids = np.where(self._table[at] == wanted, at - self._base[which], -1)
        return found


def _logged(slots: Columns) -> Array:
    """Log propensity of each slot by itself: its marginal, or where that is not known what it was given those above."""
    found: Array = np.log(np.where(np.isnan(slots["marginal"]), slots["propensity"], slots["marginal"]))
    return found


def _hashed(names: list[str]) -> Ids:
    digests = b"".join([blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names])
    return np.frombuffer(digests, "<i8")
