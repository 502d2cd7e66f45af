"""What a process has read of a store and may use again: what never changes, and beliefs as long as they stand."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from rlrec.app.distributions import exact
from rlrec.app.distributions.exact import VersionDistribution
from rlrec.app.inputs import canonical
from rlrec.arrays import Ids
from rlrec.records import Head, Version
from rlrec.store import Unit, arms, contents
from rlrec.store.settings import Settings

CACHE = 50_000  # contexts that are remembered
SETS = 1_000  # eligible sets that are remembered
Eligible = tuple[int, ...]


class Warm:
    """Kept from one group of a stream to the next; a single command starts with an empty one.

    contexts, sets: ids of contexts and eligible sets that are stored for good. keys: of arms. active: the arms of
    today's catalogue; unnamed: it has no id yet. unread: policies of which was said that they read no context."""

    def __init__(self) -> None:
        self.contexts: dict[str, int] = {}
        self.sets: dict[Eligible, int] = {}
        self._texts: dict[str, str] = {}
        self.keys: dict[int, str] = {}
        self._known: Eligible = ()
        self._arrays: dict[Eligible, Ids] = {}
        self.active: Eligible = ()
        self.unnamed = True
        self.unread: set[str] = set()
        self._revision: int | None = None
        self._servings: dict[int, tuple[int, int | None, VersionDistribution]] = {}  # at which change, and catalogue

    def text(self, context: Mapping[str, Any]) -> str:
        """The canonical text of a context."""
        if not context:
            return "{}"
        name = repr(context)
        found = self._texts.get(name)
        if found is None:
            if len(self._texts) >= CACHE:
                self._texts.clear()
            found = self._texts[name] = canonical.text(dict(context))
        return found

    def catalogue(self, unit: Unit, settings: Settings) -> Eligible:
        """The arms that may be served now."""
        known = settings.catalogue_id
        self.unnamed = known is None
        if self._revision != settings.catalogue_revision:
            self.active = tuple(arms.active(unit)) if known is None else contents.eligible_arms(unit, [known])[known]
            self._revision = settings.catalogue_revision
        if known is not None:
            self.sets[self.active] = known
        return self.active

    def know(self, unit: Unit, eligible: Eligible) -> Mapping[int, str]:
        """Keys of arms, these among them from now on."""
        if eligible is not self._known:
            if new := [arm for arm in eligible if arm not in self.keys]:
                self.keys |= arms.keys(unit, new)
            self._known = eligible
        return self.keys

    def array(self, eligible: Eligible) -> Ids:
        if eligible not in self._arrays:
            if len(self._arrays) >= SETS:
                self._arrays.clear()
            self._arrays[eligible] = np.array(eligible, np.int64)
        return self._arrays[eligible]

    def serving(self, unit: Unit, version: Version, head: Head) -> VersionDistribution:
        """A version as it stands at the head's change, in today's catalogue."""
        seq = head.seq if version.learning else version.seq
        before = self._servings.get(version.id)
        if before is None:
            found = exact.load(unit, version)
        elif before[:2] == (seq, self._revision):
            return before[2]
        else:
            found = exact.renewed(unit, version, before[2], described_anew=before[1] != self._revision)
        self._servings[version.id] = seq, self._revision, found
        return found

    def look_up(self, unit: Unit, bodies: Collection[str], sets: Collection[Eligible]) -> bool:
        """Learn the ids of these contexts and eligible sets: whether all of them are stored."""
        if len(self.contexts) >= CACHE:
            self.contexts.clear()
        if len(self.sets) >= SETS:
            self.sets.clear()
        new = [body for body in bodies if body not in self.contexts], [one for one in sets if one not in self.sets]
        if any(new):
            found = contents.find(unit, *new)
            self.contexts |= found[0]
            self.sets |= found[1]
        return self.contexts.keys() >= set(bodies) and self.sets.keys() >= set(sets)

    def learn(self, contexts: Mapping[str, int], sets: Mapping[Eligible, int]) -> None:
        """Ids that are stored since."""
        self.contexts |= contexts
        self.sets |= sets
