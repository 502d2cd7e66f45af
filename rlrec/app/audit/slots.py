"""Beliefs against the log: rebuilt from the slots and events that they claim to hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rlrec.app import evidence
from rlrec.app.audit.beliefs import TOLERANCE, History, shown
from rlrec.app.audit.findings import Findings
from rlrec.app.evidence import Flags
from rlrec.policy.scores import Index
from rlrec.records import Version
from rlrec.store import Unit, beliefs
from rlrec.store.beliefs import NOTHING, Sums
from rlrec.store.bulk import Columns
from rlrec.store.events import CENSOR
from rlrec.store.reader import Batch

CHECK = "slots"
Cut = tuple[int, int | None, int | None]  # reward, last decision, last change; None: as it stands


class Slots:
    """The versions of one policy that can be rebuilt: those that learn, and those that were frozen from them.

    A frozen belief holds the decisions up to the newest one that was mature, with the events stored until then.
    """

    def __init__(self, versions: Sequence[Version], histories: Mapping[int, History]) -> None:
        self.histories = histories
        self._cuts: dict[int, Cut] = {}
        self._root: dict[int, Version] = {}
        self._total: dict[Cut, dict[int, Sums]] = {}
        mine = {version.id: version for version in versions}
        for version in versions:
            if (found := _provenance(version, mine)) is not None:
                self._root[version.id], self._cuts[version.id] = found
        self._total = {cut: {} for cut in self._cuts.values()}
        self._censored = _Censored()

    def take(self, batch: Batch) -> None:
        """Add the rows of a batch to every belief that holds them."""
        batch = _own(batch)
        if not len(batch):
            return
        self._censored.take(batch)
        rewards = {version.reward.id: version.reward for version in self._root.values()}
        whole: dict[int, dict[int, Sums]] = {}
        for cut, total in self._total.items():
            reward, last, seq = cut
            if last is not None and int(batch.slots["decision_id"].min()) > last:
                continue
            if _within(batch, last, seq):
                if reward not in whole:
                    found = evidence.rewarded(batch, rewards[reward], settled_only=False)
                    whole[reward] = evidence.sums(found, rows=~batch.slots["censored"])
                change = whole[reward]
            else:
                then = _until(batch, seq)
                found = evidence.rewarded(then, rewards[reward], settled_only=False)
                rows = ~then.slots["censored"]
                change = evidence.sums(found, rows=rows if last is None else rows & (then.slots["decision_id"] <= last))
            self._total[cut] = evidence.added(total, change)

    def finish(self, unit: Unit, versions: Sequence[Version], *, found: Findings, names: Mapping[int, str]) -> None:
        for decision_id, position in self._censored.wrong:
            detail = f"position {position}: whether it is censored is not what its events say"
            found.error(CHECK, f"decision {decision_id}", detail)
        for version in versions:
            if version.id not in self._root:
                continue
            root = self._root[version.id]
            expected = evidence.added(self.histories[root.id].taught, self._total[self._cuts[version.id]])
            stored: dict[int, Sums] = {row[0]: row[1:] for row in beliefs.current(unit, version.id)}
            scale = evidence.added(self.histories[root.id].moved, self.histories[version.id].moved)
            for arm in _differing(stored, expected, scale):
                said = f"the belief holds {shown(stored.get(arm, NOTHING))}, its slots and events give "
                found.error(
                    CHECK,
                    f"policy {version.policy.name} arm {names.get(arm, f'id {arm}')}",
                    f"version {version.number}: {said}{shown(expected.get(arm, NOTHING))}",
                )


def _provenance(version: Version, mine: Mapping[int, Version]) -> tuple[Version, Cut] | None:
    """The learning belief that a version is or was frozen from, and what it held; None where it is not known."""
    if version.learning:
        return version, (version.reward.id, version.entered_to, None)
    if version.status != "frozen":
        return None
    base = version
    while (parent := mine.get(base.parent_id or 0)) is not None and not parent.learning:
        base = parent
    record = base.learned_from
    if parent is None or record.get("policy_id") != version.policy.id or "selection" in record:
        return None
    return parent, (parent.reward.id, int(record["last_id"]), base.seq)


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


def _differing(stored: Mapping[int, Sums], expected: Mapping[int, Sums], scale: Mapping[int, Sums]) -> Iterator[int]:
    """Arms whose sums differ by more than what adding up in another order explains."""
    arms = sorted(stored.keys() | expected.keys())
    table = [
        np.array([part.get(arm, NOTHING) for arm in arms]).reshape(len(arms), 3) for part in (stored, expected, scale)
    ]
    wrong = (np.abs(table[0] - table[1]) > TOLERANCE * (1 + table[2])).any(axis=1)
    return (arms[place] for place in np.flatnonzero(wrong).tolist())
