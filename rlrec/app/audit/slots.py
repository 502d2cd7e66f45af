"""Beliefs against the log: rebuilt from the slots and events that they claim to hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rlrec.app.audit.beliefs import TOLERANCE, History, shown
from rlrec.app.audit.findings import UNREADABLE, Findings
from rlrec.app.learning import slot_statistics
from rlrec.app.learning.slot_statistics import BeliefFold, Totals
from rlrec.app.log import reward_log
from rlrec.arrays import Flags, Index
from rlrec.policy.forgetting import Forgetting
from rlrec.records import Version
from rlrec.store import Unit, policies
from rlrec.store.beliefs import NOTHING, BeliefKey, Sums
from rlrec.store.bulk import Columns
from rlrec.store.events import CENSOR
from rlrec.store.reader import Batch

CHECK = "slots"
# version (0 where the reward says all), reward, last decision, last change (None: as it stands), ordinal
Cut = tuple[int, int, int | None, int | None, int]


class Slots:
    """The versions of one policy that can be rebuilt: those that learn, and those that were frozen from them.

    A frozen belief holds the decisions up to the newest one that was mature, with the events stored until then.
    """

    def __init__(self, unit: Unit, versions: Sequence[Version], histories: Mapping[int, History]) -> None:
        self.histories = histories
        self._cuts: dict[int, Cut] = {}
        self._root: dict[int, Version] = {}
        self._folds: dict[Cut, BeliefFold] = {}
        mine = {version.id: version for version in versions}
        for version in versions:
            now = policies.ordinal(unit, version.policy.id)
            if (found := _provenance(version, mine, now)) is not None:
                root, cut = self._root[version.id], self._cuts[version.id] = found
                self._folds[cut] = BeliefFold(unit, root, ordinal=cut[4])
        self._total: dict[Cut, Totals] = {cut: {} for cut in self._cuts.values()}
        self._unreadable: dict[Cut, str] = {}  # why
        self._censored = _Censored()

    def take(self, batch: Batch) -> None:
        """Add the rows of a batch to every belief that holds them."""
        batch = _own(batch)
        if not len(batch):
            return
        self._censored.take(batch)
        whole: dict[tuple[int, ...], Totals] = {}
        for cut, total in self._total.items():
            version_id, reward, last, seq, ordinal = cut
            if last is not None and int(batch.slots["decision_id"].min()) > last:
                continue
            if cut in self._unreadable:
                continue
            fold, same = self._folds[cut], (version_id, reward, ordinal)
            try:
                if not _within(batch, last, seq):
                    change = _held(fold, _until(batch, seq), last)
                else:
                    change = whole[same] if same in whole else _held(fold, batch, None)
                    whole[same] = change
                self._total[cut] = slot_statistics.add(total, change)
            except UNREADABLE as error:
                self._unreadable[cut] = str(error)

    def finish(self, unit: Unit, versions: Sequence[Version], *, findings: Findings, names: Mapping[int, str]) -> None:
        for decision_id, position in self._censored.wrong:
            detail = f"position {position}: whether it is censored is not what its events say"
            findings.error(CHECK, f"decision {decision_id}", detail)
        for version in versions:
            if version.id not in self._root:
                continue
            why = self._unreadable.get(self._cuts[version.id])
            try:
                if why is None:
                    self._compare(unit, version, findings, names)
            except UNREADABLE as error:
                why = str(error)
            if why is not None:
                detail = f"version {version.number}: it cannot be told what its slots add up to: {why}"
                findings.error(CHECK, f"policy {version.policy.name}", detail)

    def _compare(self, unit: Unit, version: Version, findings: Findings, names: Mapping[int, str]) -> None:
        """A version's belief with what its slots and events add up to: at most one finding an arm."""
        root, cut = self._root[version.id], self._cuts[version.id]
        taught, forgetting = self.histories[root.id].taught, self._folds[cut].forgetting
        kept = forgetting.discount ** (cut[4] - root.ordinal)
        expected = slot_statistics.add({place: kept * sums for place, sums in taught.items()}, self._total[cut])
        expected = slot_statistics.without_zeros(expected, oldest=forgetting.oldest(cut[4]))
        stored = slot_statistics.stored_sums(unit, version, ordinal=cut[4])
        scale = reward_log.add_sums(self.histories[root.id].moved, self.histories[version.id].moved)
        for arm, place in {place[1]: place for place in _differing(stored, expected, scale)}.items():
            said = f"the belief holds {_shown(stored, place)}, its slots and events give {_shown(expected, place)}"
            subject = f"policy {version.policy.name} arm {names.get(arm, f'id {arm}')}"
            findings.error(CHECK, subject, f"version {version.number}: {said}")


def _held(fold: BeliefFold, batch: Batch, last: int | None) -> Totals:
    """What a belief holds of a batch, up to a decision."""
    found = reward_log.with_rewards(batch, fold.version.reward, settled_only=False)
    rows = ~batch.slots["censored"] & (batch.slots["decision_id"] >= fold.version.since)
    return fold.sums(found, rows=rows if last is None else rows & (batch.slots["decision_id"] <= last))


def _shown(totals: Totals, place: BeliefKey) -> str:
    return shown(totals.get(place, NOTHING))


def _provenance(version: Version, mine: Mapping[int, Version], now: int) -> tuple[Version, Cut] | None:
    """The learning belief that a version is or was frozen from, and what it held; None where it is not known.

    now: the policy's ordinal."""
    if version.learning:
        return version, (_distinct(version), version.reward.id, version.entered_to, None, now)
    if version.status != "frozen":
        return None
    base = version
    while (parent := mine.get(base.parent_id or 0)) is not None and not parent.learning:
        base = parent
    record = base.learned_from
    if parent is None or record.get("policy_id") != version.policy.id or "selection" in record:
        return None
    return parent, (_distinct(parent), parent.reward.id, int(record["last_id"]), base.seq, version.ordinal)


def _distinct(version: Version) -> int:
    """0 where all beliefs of its policy that learn the same reward are equal."""
    same = not (version.contextual or version.since or Forgetting.of(version.policy.params))
    return 0 if same else version.id


def _own(batch: Batch) -> Batch:
    """Without the imported decisions: they teach no belief."""
    imported = batch.slots["imported"]
    return batch if not imported.any() else Batch(slots=_taken(batch.slots, ~imported), events=batch.events)


def _taken(columns: Columns, rows: Flags | Index) -> Columns:
    return {name: column[rows] for name, column in columns.items()}


def _within(batch: Batch, last: int | None, seq: int | None) -> bool:
    """Whether a belief that holds decisions up to `last` and events up to `seq` holds the whole batch as it stands."""
    return (last is None or int(batch.slots["decision_id"].max()) <= last) and (
        seq is None or int(batch.events["seq"].max(initial=0)) <= seq
    )


def _until(batch: Batch, seq: int | None) -> Batch:
    """The batch as it stood after change `seq`."""
    if seq is None:
        return batch
    then = Batch(slots=batch.slots, events=_taken(batch.events, batch.events["seq"] <= seq))
    return Batch(slots=batch.slots | {"censored": censored(then)}, events=then.events)


def censored(batch: Batch) -> Flags:
    """Which slots the last word of their `!censor` events takes out, (n,)."""
    words = _taken(batch.events, batch.events["kind"] == CENSOR)
    words = _taken(words, np.argsort(words["number"], kind="stable"))
    width = int(max(batch.slots["position"].max(initial=0), words["position"].max(initial=0))) + 1
    rows = batch.slots["decision_id"] * width + batch.slots["position"]  # ascending, as they were read
    wanted = words["decision_id"] * width + words["position"]
    place = np.minimum(np.searchsorted(rows, wanted), max(0, len(rows) - 1))
    known = rows[place] == wanted if len(rows) else np.zeros(len(wanted), np.bool_)
    flags = np.zeros(len(rows), np.bool_)
    flags[place[known]] = words["value"][known] == 1.0  # of several words of one slot the last one stays
    return flags


class _Censored:
    """Slots whose mark is not the last word of their events."""

    def __init__(self) -> None:
        self.wrong: list[tuple[int, int]] = []

    def take(self, batch: Batch) -> None:
        rows = np.flatnonzero(censored(batch) != batch.slots["censored"])[:100]
        pairs = zip(batch.slots["decision_id"][rows].tolist(), batch.slots["position"][rows].tolist(), strict=True)
        self.wrong.extend(pairs)


def _differing(stored: Totals, expected: Totals, scale: Mapping[int, Sums]) -> Iterator[BeliefKey]:
    """Places whose sums differ by more than what adding up in another order explains."""
    for place in sorted(stored.keys() | expected.keys()):
        both = [sums for sums in (stored.get(place), expected.get(place)) if sums is not None]
        if len({len(sums) for sums in both}) > 1:
            yield place
            continue
        size = np.max(np.abs(both), axis=0)
        size[: len(NOTHING)] = scale.get(place[1], NOTHING)
        size[len(NOTHING) :] = size.max(initial=0.0)
        apart = np.abs(both[0] - both[1]) if len(both) > 1 else np.abs(both[0])
        if not (apart <= TOLERANCE * (1 + size)).all():  # what is no number is not equal
            yield place
