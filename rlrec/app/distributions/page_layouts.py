"""This module applies page rules to the eligible sets of one version, and keeps the resulting layouts in a cache."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from rlrec.app.distributions.designs import CatalogueFeatures
from rlrec.app.inputs import arm_names
from rlrec.arrays import Ids, Index
from rlrec.policy.contexts.features import value_of
from rlrec.policy.contexts.statements import ARM_FEATURES, GROUPS, PAGE, PAGE_FIELDS
from rlrec.policy.slates.page_layout import PageLayout, lay_out
from rlrec.policy.slates.page_rules import PageRules
from rlrec.store import Unit

ARMS = 10_000  # in all cached layouts


def page_codes(contexts: Sequence[Mapping[str, Any]]) -> Index:
    """Return a number for each of n contexts, (n,). Contexts that state the same page rules have the same number."""
    texts = [repr([context.get(field) for field in PAGE_FIELDS]) for context in contexts]
    return np.unique(texts, return_inverse=True)[1].reshape(-1)


class PageLayouts:
    """This class caches the page layouts of one version. The cache is valid for one state of the catalogue."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[Hashable, ...], PageLayout] = {}
        self._cached_arms = 0
        self._features: CatalogueFeatures | None = None  # read when a cap first needs them
        self._groups: dict[str, list[str]] = {}  # their present members, for contexts that do not state them

    def find(
        self, unit: Unit, rules: Sequence[PageRules], eligible: Hashable, arms: Ids, context: Mapping[str, Any], *,
        keys: Mapping[int, str], revision: int,
    ) -> PageLayout:  # fmt: skip
        """Return the layout that page rules give to an eligible set. Raises InputError if the rules contradict each
        other, or name an unknown group. rules: the rules of the version and of the context; eligible: an identifier of
        the eligible set; keys: the key of each arm, by id."""
        has_caps = any(page.most for page in rules)
        stated_features: Mapping[str, Any] = (value_of(context, ARM_FEATURES) or {}) if has_caps else {}
        groups: Mapping[str, Collection[str]] = context.get(GROUPS) or {}
        cache_key = eligible, revision * has_caps, repr(context.get(PAGE)), repr(groups), repr(stated_features)
        if cache_key not in self._layouts:
            if self._cached_arms > ARMS:
                self._layouts.clear()
                self._cached_arms = 0
            self._cached_arms += len(arms)
            arm_keys = [keys[arm] for arm in arms.tolist()]

            def values(field: str) -> Sequence[Hashable]:
                if self._features is None:
                    self._features = CatalogueFeatures(unit)
                stated_by_arm = [stated_features.get(key, {}) for key in arm_keys] if stated_features else None
                return self._features.values(arms, revision, field, stated_by_arm)

            group_names = frozenset[str]().union(*(page.groups for page in rules))
            if unread_groups := group_names - groups.keys() - self._groups.keys():
                self._groups |= arm_names.members(unit, sorted(unread_groups))
            self._layouts[cache_key] = lay_out(rules, arm_keys, values, {**self._groups, **groups})
        return self._layouts[cache_key]
