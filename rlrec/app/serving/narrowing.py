"""This module applies rules that take away arms from a request before its slate is drawn. A rule names the arms to keep
or to block, or takes away arms because of what the person of the request was shown or did. The arms that remain are the
eligible set of the decision, and are logged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from rlrec.app.inputs.arm_names import ArmNames
from rlrec.app.inputs.arm_rules import Narrowing, PastRule, policy_rules, request_rules
from rlrec.app.serving.cache import arm_array
from rlrec.arrays import look_up
from rlrec.errors import InputError
from rlrec.policy.contexts.statements import ARMS
from rlrec.store import Unit
from rlrec.store.log import sessions
from rlrec.store.log.contents import Eligible, NarrowedSet
from rlrec.store.policies import person_arms

if TYPE_CHECKING:
    from rlrec.app.serving.cache import ServingCache
    from rlrec.app.serving.requests import Request

MAX_SETS = 100  # results of lists and groups that a process keeps
Owner = tuple[int | None, int | None]  # ids of a user and of a session, whose history a rule reads


class Narrower:
    """A Narrower applies the rules that take away arms from the requests of a group. The rules are those of the
    requests and of the policies that serve them. What the rules need is read in one snapshot of the store."""

    def __init__(
        self, unit: Unit, requests: Sequence[Request], cache: ServingCache, names: Collection[str],
        main_keys: Mapping[str, str],
    ) -> None:  # fmt: skip
        """Read what the rules of a group of requests name. names: the arms and groups of arms in these rules;
        main_keys: for each user key that was merged into another one, the main key of the person."""
        self.unit, self.requests, self.cache, self._main_keys = unit, requests, cache, main_keys
        self.names = ArmNames(unit, names, cache.groups)
        self._owners: dict[tuple[str | None, str], Owner] = {}
        self._persons: dict[str, str] = {}  # by session: its stored user
        self._past_arms: dict[PastRule, Mapping[Owner, frozenset[int]]] = {}
        self._narrowings: dict[tuple[Any, ...], Narrowing] = {}
        self._lost_arms = lru_cache(maxsize=MAX_SETS)(
            _remaining_arms
        )  # of a full group, the same object for many persons

    def check_statements(self, request: Request) -> None:
        """Raise InputError if a request states a score or features of a group of arms. If the request has no list of
        arms, also raise it for statements about an unknown arm."""
        stated_names = request.context[ARMS]
        for name in stated_names:
            if name.startswith("@") and name[1:] in self.names.groups:
                hint = "state a score or features of each of its arms"
                raise InputError(f"{name!r} is a group, which has no score and no features", hint=hint, field="arms")
        if request.arms is None:
            self.names.find(stated_names)

    def narrow(self, request: Request, policy: str, params: Mapping[str, Any]) -> Narrowing | None:
        """Return the arms that remain for a request, or None if no rule applies. Raises InputError for a rule that
        cannot be parsed, and for unknown arms. policy, params: the name and the parameters of the policy that serves
        the request."""
        rules = request_rules(request.arms, request.block, request.not_after, request.not_shown)
        defaults = policy_rules(params)
        has_group = any(name not in self.names.ids for name in rules.chosen_names or ())
        if not (has_group or rules.blocked_names or rules.past_rules or any(defaults)):
            return None
        steps = [
            (f"arms of policy {policy}", defaults.chosen_names, True), ("arms", rules.chosen_names, True),
            (f"block of policy {policy}", defaults.blocked_names or None, False),
            ("block", rules.blocked_names or None, False),
        ]  # fmt: skip
        narrowing = self._without_past(
            [(rule, names, is_allowed) for rule, names, is_allowed in steps if names is not None]
        )
        past_rules = (*defaults.past_rules, *rules.past_rules)
        if not past_rules:
            return narrowing
        if not self._owners:
            self._read_owners()
        owner = self._owners[request.user, request.session]
        excluded_counts, excluded_arms = [*narrowing.excluded_counts], frozenset[int]()
        for rule in past_rules:
            if rule not in self._past_arms:
                self._past_arms[rule] = past_arms(self.unit, rule, set(self._owners.values()), self.cache.groups)
            lost_arms = self._lost_arms(narrowing, self._past_arms[rule][owner])
            if excluded_arms:
                lost_arms = lost_arms - excluded_arms
            excluded_arms = excluded_arms | lost_arms if excluded_arms else lost_arms
            excluded_counts.append((f"{rule.name} {rule.text}", len(lost_arms)))
        cache_key = narrowing, past_rules, excluded_arms
        if cache_key not in self._narrowings:
            eligible = _eligible_set(narrowing.superset, narrowing.lacking | excluded_arms)
            self._narrowings[cache_key] = replace(
                narrowing,
                eligible=eligible,
                excluded_counts=tuple(excluded_counts),
                past_rules=past_rules,
                past_arms=excluded_arms,
            )
        return self._narrowings[cache_key]

    def _without_past(self, steps: Sequence[tuple[str, tuple[str, ...], bool]]) -> Narrowing:
        """Return the arms that remain after the rules that do not depend on the person. steps: for each rule, its name,
        its arms and groups of arms, and True if these are kept, False if they are taken away."""
        cache_key = tuple(steps)
        if cache_key not in self.cache.narrowings:
            active = self.cache.active
            narrowing = Narrowing(eligible=active, superset=active, total=len(active))
            for rule, names, is_allowed in steps:
                arm_names = self.names if self.names.has_all(names) else ArmNames(self.unit, names)
                group = _remaining_arms(narrowing, arm_names.find(names, field="block" if rule == "block" else "arms"))
                n_excluded = len(narrowing.superset) - len(narrowing.lacking) - len(group) if is_allowed else len(group)
                if not is_allowed:
                    narrowing.lacking |= group
                elif n_excluded:
                    narrowing.superset, narrowing.lacking = tuple(sorted(group)), frozenset()
                narrowing.excluded_counts = (*narrowing.excluded_counts, (rule, n_excluded))
            narrowing.eligible = _eligible_set(narrowing.superset, narrowing.lacking)
            if len(self.cache.narrowings) >= MAX_SETS:
                self.cache.narrowings.clear()
            self.cache.narrowings[cache_key] = narrowing
        return self.cache.narrowings[cache_key]

    def _read_owners(self) -> None:
        keys = {request.user for request in self.requests if request.user is not None}
        ids = sessions.user_ids(self.unit, {self._main_keys.get(key, key) for key in keys})
        stored_sessions = sessions.find(self.unit, {request.session for request in self.requests})
        for request in self.requests:
            row = stored_sessions.get(request.session)
            user = None if request.user is None else self._main_keys.get(request.user, request.user)
            if row is not None and row.user is not None:
                self._persons[request.session] = row.user
            user_id = ids.get(user or "") if row is None or row.user_id is None else row.user_id
            self._owners[request.user, request.session] = user_id, None if row is None else row.id

    def person(self, request: Request) -> set[str]:
        """Return names for the person of a request, such as `session S` and, if there is a user, `user U`."""
        user = self._persons.get(request.session) or self._main_keys.get(request.user or "", request.user)
        return {f"session {request.session}", *(() if user is None else (f"user {user}",))}


def _remaining_arms(narrowing: Narrowing, arms: frozenset[int]) -> frozenset[int]:
    """Return those of `arms` that remain after the rules of a narrowing that do not depend on the person."""
    ids = np.fromiter(arms, np.int64, len(arms))
    return frozenset(ids[look_up(arm_array(narrowing.superset), ids)[1]].tolist()) - narrowing.lacking


def _eligible_set(superset: tuple[int, ...], lacking: frozenset[int]) -> Eligible:
    """Return the eligible set of the arms of `superset` that are not in `lacking`. To be short, it lists either the
    arms that it has or the arms that it lacks."""
    if 2 * len(lacking) > len(superset):
        return tuple(arm for arm in superset if arm not in lacking)
    return NarrowedSet(superset, tuple(sorted(lacking))) if lacking else superset


def past_arms(
    unit: Unit, rule: PastRule, owners: Collection[Owner], groups: dict[str, frozenset[int]]
) -> dict[Owner, frozenset[int]]:
    """Return the arms that a rule takes away from each person, because of what the person was shown or did. owners: the
    persons, each as the ids of a user and a session; groups: the arms of each group of arms that was read, by name."""
    names = [rule.group] if rule.group else []
    members = ArmNames(unit, names, groups).find(names, field=rule.name)
    user_ids = {user_id for user_id, _ in owners if user_id is not None}
    session_ids = {session_id for _, session_id in owners if session_id is not None}
    amounts: dict[tuple[str, int | None], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for row in person_arms.read(unit, user_ids, session_ids, kind=rule.kind, window_us=rule.window_us):
        name = ("session", row.session_id) if row.user_id is None else ("user", row.user_id)
        amounts[name][row.arm_id] += row.amount
    excluded_arms = dict[Owner, frozenset[int]]()
    for user_id, session_id in owners:
        by_arm = dict(amounts.get(("session", session_id), {}))  # amounts of a session without a user
        for arm, amount in amounts.get(("user", user_id), {}).items():
            by_arm[arm] = by_arm.get(arm, 0.0) + amount
        person_arms_excluded = frozenset(arm for arm, amount in by_arm.items() if rule.excludes_at(amount))
        if rule.group:
            is_full = rule.excludes_at(sum(amount for arm, amount in by_arm.items() if arm in members))
            person_arms_excluded = members if is_full else frozenset()
        excluded_arms[user_id, session_id] = person_arms_excluded
    return excluded_arms


def rules_hold(unit: Unit, pairs: Collection[tuple[Narrowing, Owner]], groups: dict[str, frozenset[int]]) -> bool:
    """Some rules take away arms because of what a person was shown or did. Tell whether they take away the same arms
    now as when the requests were planned. pairs: the arms left to each request, and its person; groups: the arms of
    each group of arms that was read, by name."""
    by_rule: dict[PastRule, set[Owner]] = defaultdict(set)
    for narrowing, owner in pairs:
        for rule in narrowing.past_rules:
            by_rule[rule].add(owner)
    lost_arms = {rule: past_arms(unit, rule, owners, groups) for rule, owners in by_rule.items()}
    sets = {(narrowing, tuple(lost_arms[rule][owner] for rule in narrowing.past_rules)) for narrowing, owner in pairs}
    return all(_remaining_arms(narrowing, frozenset().union(*arms)) == narrowing.past_arms for narrowing, arms in sets)
