"""This module makes the policy of a version from its kind, parameters and design, and reads the features of arms."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from rlrec import policy as kinds
from rlrec.arrays import Array, Ids
from rlrec.policy.beliefs.base import Policy
from rlrec.policy.contexts.statements import FEATURES, by_arm
from rlrec.records import Reward, StoredPolicy, Version
from rlrec.store import Unit
from rlrec.store.database.unit import parse
from rlrec.store.policies import arms as catalogue

if TYPE_CHECKING:
    from rlrec.policy.contexts.encoder import Encoder

MAX_REQUESTS = 10_000  # requests whose stated features of arms are remembered
NO_HISTORY = ((0, "{}"),)  # the history of an arm that has none
NOW = 2**62  # a revision later than all others


def policy_of(version: Version) -> Policy:
    """Return the policy of a version, made from its kind and parameters. A policy that reads contexts also gets the
    version's design, which says how contexts and features of arms are encoded."""
    design = None
    if version.is_contextual:
        from rlrec.policy.contexts.encoder import Design  # others need none of it

        design = Design.from_json(version.parameters)
    return kinds.make(version.policy.kind, version.params, design=design)


def make_draft(
    kind: str, params: Mapping[str, Any], reward: Reward, *, name: str = "", status: str = "learning"
) -> Version:
    """Make a version that is not in the store. The caller may store it later. params: the parameters of the kind."""
    policy = StoredPolicy(id=0, name=name, kind=kind, params=params, base_id=None)
    return Version(
        id=0, policy=policy, number=1, status=status, reward=reward, parent_id=None, seq=0, ordinal=0,
        entered_to=None, learned_from={}, parameters={}, created_at=0,
    )  # fmt: skip


def arm_features(unit: Unit, policy: Policy) -> CatalogueFeatures | None:
    """Read the features of arms in the form that the policy reads; return None if the policy reads no features."""
    if not kinds.is_contextual(policy) or not policy.uses_arm_features:
        return None
    return CatalogueFeatures(unit, policy.design.arm)


class CatalogueFeatures:
    """This class gives the features of arms at any revision of the catalogue. A negative revision stands for features
    that are not in the catalogue: those that the log has for one decision, or that one request states."""

    def __init__(self, unit: Unit, encoder: Encoder | None = None) -> None:
        """Read all revisions of the catalogue. encoder: the encoder of arm features, if a model reads features."""
        self._encoder = encoder
        # tuples, which the garbage collector untracks, unlike lists
        self._history: dict[int, tuple[tuple[int, str], ...]] = {}
        self.logged_features: Mapping[int, Mapping[int, str]] = {}  # by negative revision: the features of arms
        # by negative revision: the catalogue's revision, and the features of arms with stated ones
        self._requests: dict[int, tuple[int, dict[int, str]]] = {}
        self._numbers: dict[tuple[int, str], int] = {}
        self._next_number = -(2**61)
        for arm, revision, features in catalogue.revisions(unit):
            past_features = self._history.get(arm)
            if past_features is None:
                self._history[arm] = ((revision, features),)
            elif past_features[-1][1] != features:
                self._history[arm] = *past_features, (revision, features)
        self._changes = sorted({revision for changes in self._history.values() for revision, _ in changes})
        self._rows = lru_cache(maxsize=10_000)(self._row)

    def epoch(self, revision: int) -> int:
        """Return a number that is equal for two revisions if no description of an arm changed between them."""
        return revision if revision < 0 else bisect_right(self._changes, revision)

    def epochs(self, revisions: Ids) -> Ids:
        """Return a number for each of n revisions, (n,). Two revisions have the same number if no description of an arm
        changed between them."""
        return np.where(revisions < 0, revisions, np.searchsorted(self._changes, revisions, side="right"))

    def at_request(self, context: Mapping[str, Any], arms: Ids, keys: Mapping[int, str], revision: int) -> int:
        """Return a new negative revision that stands for the features of arms at a request: those that its context
        states, on top of those in the catalogue at `revision`. If the context states no features, return `revision`
        itself. keys: the key of each arm, by id."""
        by_key = by_arm(context, FEATURES) or {}
        features_by_arm = {arm: by_key[keys[arm]] for arm in arms.tolist() if keys[arm] in by_key} if by_key else {}
        if not features_by_arm:
            return revision
        cache_key = self.epoch(revision), repr(features_by_arm)
        number = self._numbers.pop(cache_key, None)
        if number is None:
            if len(self._numbers) >= MAX_REQUESTS:  # the oldest are dropped; their numbers are never used again
                for old_key in [*self._numbers][: MAX_REQUESTS // 2]:
                    del self._requests[self._numbers.pop(old_key)]
            number = self._next_number = self._next_number - 1
            catalogue_features = {
                arm: parse(self._description(arm, revision), "the features of an arm") for arm in features_by_arm
            }
            feature_texts = {
                arm: json.dumps(catalogue_features[arm] | dict(features)) for arm, features in features_by_arm.items()
            }
            self._requests[number] = revision, feature_texts
        self._numbers[cache_key] = number
        return number

    def learned_revision(self, revision: int) -> int:
        """Return the revision of the catalogue whose features a belief uses when it learns. If `revision` stands for
        features that a request states, this is the catalogue's revision at the request. If it stands for features in
        the log, this is the newest revision."""
        if revision in self._requests:
            return self.learned_revision(self._requests[revision][0])
        return NOW if revision < 0 else revision

    def encode(self, arms: Ids, revision: int) -> Array:
        """Return the encoded features of m arms at a revision, (m, p), where p is the number of encoded features."""
        return np.array([self._rows(self._description(arm, revision)) for arm in arms.tolist()])

    def values(
        self, arms: Ids, revision: int, field: str, stated_features: Sequence[Mapping[str, Any]] | None = None
    ) -> list[Hashable]:
        """Return each arm's value of a field: None if the arm has no value, a tuple if the value is a list.
        stated_features: the features of each arm that a request states; they take precedence over the catalogue."""
        from msgspec.json import decode  # for a hundred thousand arms json takes too long

        from rlrec.policy.contexts.features import value_of

        descriptions = [self._description(arm, revision) for arm in arms.tolist()]
        value_by_text = {text: _hashable(value_of(decode(text), field)) for text in set(descriptions)}
        values = list(map(value_by_text.__getitem__, descriptions))
        for number, features in enumerate(stated_features or ()):
            if (stated_value := value_of(features, field)) is not None:
                values[number] = _hashable(stated_value)
        return values

    def _description(self, arm: int, revision: int) -> str:
        """Return the features of an arm at a revision, as JSON. An arm that had none at that time has the first
        features that it got later."""
        if revision in self._requests:
            revision, stated_features = self._requests[revision]
            return stated_features.get(arm) or self._description(arm, revision)
        if revision < 0:
            features = self.logged_features[revision].get(arm)
            return self._description(arm, NOW) if features is None else features
        past_features = self._history.get(arm, NO_HISTORY)
        if len(past_features) == 1:
            return past_features[0][1]
        return past_features[max(0, bisect_right(past_features, revision, key=itemgetter(0)) - 1)][1]

    def _row(self, features: str) -> Array:
        assert self._encoder is not None
        return self._encoder.encode([parse(features, "the features of an arm")])[0]


def _hashable(value: Any) -> Hashable:
    """Return the value of a feature in a hashable form. A list becomes a tuple of its distinct items."""
    if isinstance(value, list):
        return tuple(dict.fromkeys(map(_hashable, value)))
    return repr(value) if isinstance(value, dict) else value
