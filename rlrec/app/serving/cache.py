"""This module caches what a process has read from a store: data that never change, and beliefs until they change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from rlrec.app.distributions import exact
from rlrec.app.inputs import canonical
from rlrec.arrays import Ids
from rlrec.records import Head, Version
from rlrec.store import Unit
from rlrec.store.database.unit import StoredRows
from rlrec.store.log import contents
from rlrec.store.log.contents import Eligible
from rlrec.store.log.settings import StoreSettings
from rlrec.store.policies import arms
from rlrec.store.policies.beliefs import Sums

CONTEXT_CHARS = 10_000_000  # of cached contexts; each counts ENTRY_CHARS more
ENTRY_CHARS = 100
SETS, SET_ARMS = 1_000, 10_000_000  # cached eligible sets, and the arms in all of them
FINAL = -1  # stands for the seq of a version that no longer learns


class ServingCache:
    """A ServingCache keeps what was read for one group of requests, for the next group of a stream. A single command
    starts with an empty cache.

    contexts, sets: the ids of stored contexts and eligible sets; keys: the key of each arm, by id; active: the arms
    that may be served from time `start` until time `end`; lacks_id: whether the eligible set of these arms has no id
    yet; weighs_returns: whether any reward weighs the event `return`; policies: names that are known not to be
    routes; groups, members: the ids and the keys of the arms in each group of arms; narrowings: the arms that remain
    after rules that do not depend on the person; narrows: whether any rule may take arms from a request; kinds: the
    kinds of events in rules that were checked.

    Some notices are given only once. contextless_policies, inactive_keys: the policies without contexts and the
    inactive arms with a notice; has_resting: whether there was a notice of page rules without effect."""

    def __init__(self) -> None:
        self.contexts: dict[str, int] = {}
        self.sets: dict[Eligible, int] = {}
        self._texts: dict[str, str] = {}
        self._n_chars = 0  # characters in `_texts`
        self.keys: dict[int, str] = StoredRows("arm")
        self._last_eligible: tuple[int, ...] = ()
        self.active: tuple[int, ...] = ()
        self.lacks_id = True
        self.weighs_returns = 0
        self.contextless_policies: set[str] = set()
        self.inactive_keys: dict[str, bool] = {}
        self.has_resting = False
        self.groups: dict[str, frozenset[int]] = {}
        self.members: dict[str, list[str]] = {}
        self.narrowings: dict[tuple[Any, ...], Any] = {}
        self.start = self.end = 0
        self.narrows = False
        self.kinds: set[str] = set()
        self.policies: set[str] = set()
        self.revision = -1  # of the catalogue; -1: none read yet
        self.removals: int | None = None
        # by version: the last change up to which this process made all changes, and the new sums of the arms they
        # changed
        self._changes: dict[int, tuple[int, dict[int, Sums | None]]] = {}
        # by version: its seq, the revision of the catalogue with the time its arms began, and the version
        self._servings: dict[int, tuple[int, tuple[int, int], exact.VersionDistribution]] = {}

    def text(self, context: Mapping[str, Any]) -> str:
        """Return a context as canonical JSON."""
        if not context:
            return "{}"
        cache_key = repr(context)
        text = self._texts.get(cache_key)
        if text is None:
            self._n_chars += len(cache_key) + ENTRY_CHARS
            if self._n_chars > CONTEXT_CHARS:
                self._texts.clear()
                self.contexts.clear()  # the ids of the same contexts, which are read again
                self._n_chars = len(cache_key) + ENTRY_CHARS
            text = self._texts[cache_key] = canonical.text(dict(context))
        return text

    def catalogue(self, unit: Unit, settings: StoreSettings) -> tuple[int, ...]:
        """Return the ids of the arms that may be served now. If decisions were deleted since the last read, the cached
        ids and beliefs are dropped. settings: the settings as stored now."""
        if self.removals != settings.removals:
            for mapping in (self.contexts, self.sets, self._servings, self._changes):
                mapping.clear()
            self.removals, self.revision = settings.removals, -1
        if len(self.sets) >= SETS or sum(map(len, self.sets)) >= SET_ARMS:
            self.sets.clear()
        self.weighs_returns, start, end = settings.weighs_returns, settings.catalogue_from, settings.catalogue_until
        set_id = settings.catalogue_id if start <= unit.now < end else None
        self.lacks_id = set_id is None
        if self.revision != settings.catalogue_revision or not self.start <= unit.now < self.end:
            if set_id is None:
                self.active, self.start, self.end = arms.active_arms(unit)
            else:
                self.active, self.start, self.end = contents.eligible_arms(unit, [set_id])[set_id], start, end
            self.revision = settings.catalogue_revision
            self.groups.clear()
            self.members.clear()
            self.narrowings.clear()
        if set_id is not None:
            self.sets[self.active] = set_id
        return self.active

    def complete_keys(self, unit: Unit, eligible: tuple[int, ...]) -> Mapping[int, str]:
        """Return the cached keys of arms, by id. Missing keys are read first. eligible: the ids of the arms that are
        needed."""
        if eligible is not self._last_eligible:
            if new_arms := set(eligible).difference(self.keys):
                self.keys |= arms.keys(unit, new_arms)
            self._last_eligible = eligible
        return self.keys

    def serving(self, unit: Unit, version: Version, head: Head) -> exact.VersionDistribution:
        """Return a version with its belief after the newest change of its policy, and with the present catalogue. head:
        the head of the policy, which has the number of the newest change."""
        seq = head.seq if version.learning else FINAL  # also for one that was learning when it was cached
        cached_serving, catalogue = self._servings.get(version.id), (self.revision, self.start)
        if cached_serving is None:
            serving = exact.load(unit, version)
        elif cached_serving[:2] == (seq, catalogue):
            cached_serving[2].unit = unit  # later reads then use this snapshot
            if cached_serving[2].columns is not None:
                cached_serving[2].columns.unit = unit
            return cached_serving[2]
        else:
            last_seq, changed_arms = self._changes.get(version.id, (cached_serving[0], {}))
            changed_sums = changed_arms if last_seq == seq else None  # None where others made some of the changes
            has_changed = cached_serving[1] != catalogue
            serving = exact.renew(
                unit, version, cached_serving[2], catalogue_changed=has_changed, changed_arms=changed_sums
            )
        self._changes.pop(version.id, None)
        self._servings[version.id] = seq, catalogue, serving
        return serving

    def note_changes(self, changes: Mapping[int, tuple[int, Mapping[int, Sums | None]]]) -> None:
        """Remember which beliefs a committed transaction changed. changes: for each version, the number of the change
        and the new sums of the changed arms, from `Ledger.changes`."""
        for version_id, (seq, changed_arms) in changes.items():
            if version_id in self._servings:
                last_seq, earlier_changes = self._changes.get(version_id, (self._servings[version_id][0], {}))
                if seq == last_seq + 1:
                    self._changes[version_id] = seq, {**earlier_changes, **changed_arms}

    def find_new(self, contexts: Collection[str], sets: Collection[Eligible]) -> tuple[list[str], list[Eligible]]:
        """Return the contexts and the eligible sets whose ids are not cached."""
        return [text for text in contexts if text not in self.contexts], [
            arms for arms in sets if arms not in self.sets
        ]

    def add(self, contexts: Mapping[str, int], sets: Mapping[Eligible, int]) -> None:
        """Cache the ids of stored contexts and eligible sets."""
        self.contexts |= contexts
        self.sets |= sets

    def forget_contents(self) -> None:
        """Forget the ids of contexts and eligible sets, since the transaction that stored them may have been rolled
        back."""
        self.contexts.clear()
        self.sets.clear()


@lru_cache(maxsize=20)
def arm_array(eligible: Eligible) -> Ids:
    """Return the ids of the arms of an eligible set as an array."""
    if isinstance(eligible, contents.NarrowedSet):
        arms = arm_array(eligible.superset)
        return np.delete(arms, arms.searchsorted(eligible.lacking))
    return np.array(eligible, np.int64)
