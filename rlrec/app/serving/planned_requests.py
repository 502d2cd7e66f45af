"""This module plans a group of requests: it finds the distribution from which the slate of each request is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rlrec.app.inputs import lookup
from rlrec.app.serving.cache import ServingCache, arm_array
from rlrec.app.serving.requests import (
    Duplicate,
    Plan,
    PlannedRequest,
    Request,
    ServingVersion,
    SharedDistribution,
    digest,
    narrowing_words,
)  # fmt: skip
from rlrec.errors import Conflict, InputError, quantity
from rlrec.policy import NARROWING
from rlrec.policy.beliefs.base import PRICE
from rlrec.policy.contexts.statements import ARMS, GROUPS, LOGGED_RULES, PAGE
from rlrec.policy.scores.floors import MAX_POSITIONS
from rlrec.store import Unit
from rlrec.store.log import contents, decisions, settings
from rlrec.store.policies import arms, routes

if TYPE_CHECKING:
    from rlrec.app.inputs.arm_rules import Narrowing
    from rlrec.app.serving.assignment import Assigner, Assignment
    from rlrec.app.serving.narrowing import Narrower

NARROWED = frozenset(NARROWING)


def plan_group(
    unit: Unit, requests: Sequence[Request | InputError], cache: ServingCache, *, waits: bool = False,
    has_feedback: bool = False,
) -> list[Plan]:  # fmt: skip
    """Return a plan for each request, in order: the request with its distribution, a Duplicate, or the error for which
    it is refused. With `waits`, the plan is None for a request that must wait, since its arms depend on other requests
    or feedback of the group, or since the group has too many arms for the memory. waits: whether requests may have to
    wait; has_feedback: whether the group has feedback."""
    group = _Group(unit, [request for request in requests if not isinstance(request, InputError)], cache)
    plans = list[Plan]()
    for index, request in enumerate(requests):
        if isinstance(request, InputError):
            plans.append(request)
        else:
            plans.append(None if waits and group.n_arms >= contents.MAX_ARMS else group.plan(request, index))
    if waits and group.narrower is not None:
        return _defer_requests(plans, group.narrower, has_feedback=has_feedback)
    return plans


def _defer_requests(plans: Sequence[Plan], narrower: Narrower, *, has_feedback: bool) -> list[Plan]:
    """Return the plans, with None for each request that must wait until the other requests and the feedback of the
    group are stored.

    A request waits in three cases: one of its rules depends on what other requests show to its person, or on
    feedback; an earlier request of its person waits; or it names a user for its session, and an earlier request of
    the session had such a rule and no user."""
    result, earlier_persons, waiting_persons, userless_sessions = list[Plan](), set[str](), set[str](), set[str]()
    for plan in plans:
        if isinstance(plan, PlannedRequest):
            person, rules = narrower.person(plan.request), () if plan.narrowing is None else plan.narrowing.past_rules
            reads_feedback = has_feedback and any(rule.kind is not None for rule in rules)
            names_user = len(person) > 1 and plan.request.session in userless_sessions
            if reads_feedback or names_user or person & (earlier_persons if rules else waiting_persons):
                plan = None
                waiting_persons |= person
            elif rules and len(person) == 1:
                userless_sessions.add(plan.request.session)
            earlier_persons |= person
        elif isinstance(plan, Duplicate) and plan.earlier_index is not None and result[plan.earlier_index] is None:
            plan = None
        result.append(plan)
    return result


class _Group:
    """A _Group plans the requests of a group in one snapshot of the store."""

    def __init__(self, unit: Unit, requests: Sequence[Request], cache: ServingCache) -> None:
        self.unit, self.requests, self.cache = unit, requests, cache
        self.settings, main_keys = settings.get(unit), dict[str, str]()
        if self.settings.has_merges:
            from rlrec.store.policies import users

            main_keys = users.main_keys(unit, {request.user for request in requests if request.user is not None})
        names = {request.policy for request in requests if request.policy is not None}
        new_names = names - cache.policies
        self.routes = routes.by_name(unit, new_names) if new_names else {}
        self.shadows: dict[int, routes.Shadow] = {}
        self.assigner: Assigner | None = None
        references = names
        if self.routes:
            challenged_routes = {route.route_id for route in self.routes.values() if route.has_shadow}
            self.shadows = routes.running_shadows(unit, challenged_routes) if challenged_routes else {}
            references = names - self.routes.keys() | {route.reference for route in self.routes.values()}
            references |= {shadow.reference for shadow in self.shadows.values()}
        if self.routes or any(request.policy is None for request in requests):
            from rlrec.app.serving.assignment import Assigner  # few requests need it

            self.assigner = Assigner(unit, requests, self.routes, main_keys)
            references = references | self.assigner.policies()
        self.versions = lookup.resolve(unit, references)
        cache.policies |= {name for name in new_names if not isinstance(self.versions.get(name), InputError | None)}
        self.catalogue = cache.catalogue(unit, self.settings)
        arm_keys, cache.narrows = set[str](), False
        for request in requests:
            if request.arms or request.context:
                arm_keys.update(request.arms or request.context.get(ARMS, ()))
            if request.block or request.not_after or request.not_shown is not None:
                arm_keys.update(request.block or ())
                cache.narrows = True
        for resolution in self.versions.values():
            if not isinstance(resolution, InputError):
                cache.narrows |= not NARROWED.isdisjoint(resolution[0].policy.params)
        self.ids = arms.ids(unit, arm_keys) if arm_keys else {}
        self.narrower: Narrower | None = None
        cache.narrows |= len(self.ids) < len(arm_keys)  # some names are groups, or unknown
        if cache.narrows:
            from rlrec.app.serving.narrowing import Narrower

            self.narrower = Narrower(unit, requests, cache, arm_keys, main_keys)
        request_ids = {request.request_id for request in requests if request.request_id is not None}
        self.stored_requests = decisions.requests(unit, request_ids) if request_ids else {}
        # by request id: digest and index of the first request that has it
        self._first_requests: dict[str, tuple[bytes, int]] = {}
        self._distributions: dict[tuple[Any, ...], SharedDistribution] = {}
        self.n_arms = 0  # in all of these
        self._versions: dict[tuple[str | None, tuple[Any, ...] | None], ServingVersion] = {}

    @cached_property
    def _active(self) -> frozenset[int]:
        return frozenset(self.catalogue)

    def plan(self, request: Request, index: int) -> Plan:
        """Return the request with its distribution, or an error. If an earlier request has the same request id, return
        a Duplicate. index: the index of the request in the group."""
        request_id = request.request_id
        try:
            if request.size < 1:
                raise InputError(f"k is {request.size}", hint="it is 1 or more", field="k")
            if ARMS in request.context and self.narrower is not None:
                self.narrower.check_statements(request)
            if request_id is None:
                return self._planned_request(request, None)
            content = digest(request)
            if request_id in self.stored_requests:
                return Duplicate(_same_content(request_id, content, self.stored_requests[request_id]), None)
            if request_id in self._first_requests:
                return Duplicate(None, _same_content(request_id, content, self._first_requests[request_id]))
            plan = self._planned_request(request, content)
            self._first_requests[request_id] = content, index
            return plan
        except InputError as error:
            return error

    def _planned_request(self, request: Request, content: bytes | None) -> PlannedRequest:
        """Return a request with its distribution, which is built once for all requests that share it. Rules that take
        away arms are added to the logged context. Raises InputError if no slate can be drawn for the request. content:
        the digest of the request, None without a request id."""
        if (request.experiment is None) == (request.policy is None):
            hint = "--policy or --experiment"
            raise InputError("name a policy or an experiment, one of them", hint=hint, field="policy")
        assignment = None if self.assigner is None else self.assigner.choose(request)
        arm_keys = None if request.arms is None else tuple(request.arms)
        page, narrowing = request.context.get(PAGE), None
        if self.narrower is not None:
            policy = self._serving_version(request, assignment).version.policy
            narrowing = self.narrower.narrow(request, policy.name, policy.params)
        target = request.policy, assignment and assignment.key
        cache_key: tuple[Any, ...] = (*target, narrowing or arm_keys, request.size, page and repr(page))
        distribution = self._distributions.get(cache_key)
        if distribution is None or distribution.case.reads or distribution.case.layout is not None:
            version = self._serving_version(request, assignment)
            version.serving.check(request.context)
            context_key = (*cache_key, version.serving.reading(request.context))
            distribution = self._distributions.get(context_key) or self._build_distribution(request, version, narrowing)
            self._distributions[context_key] = self._distributions[cache_key] = distribution
        if assignment is not None and self.assigner is not None:
            self.assigner.remember_user(request)
        context: Mapping[str, Any] = {**request.context, **distribution.added_fields}
        if narrowing is None and (request.arms is None or len(request.arms) == len(distribution.eligible)):
            return PlannedRequest(request, distribution, self.cache.text(context), content)
        words = narrowing_words(request)
        if request.arms is not None:
            words["arms"] = sorted(set(request.arms))
        context = {**context, LOGGED_RULES: words} if words else context
        return PlannedRequest(request, distribution, self.cache.text(context), content, narrowing)

    def _serving_version(self, request: Request, assignment: Assignment | None) -> ServingVersion:
        """Return the version that serves a request. assignment: the variants of the request, None if it takes part in
        no experiment."""
        route = self.routes.get(request.policy or "")
        reference = request.policy if route is None else route.reference
        variants, by, fallback = assignment or ((), None, None)
        experiment, variant = (assignment and assignment.serving) or (None, None)
        reference = fallback or reference if variant is None else variant.policy
        assert reference is not None
        cache_key = request.policy, assignment and assignment.key
        if cache_key not in self._versions:
            resolution = self.versions[reference]
            if isinstance(resolution, InputError):
                raise copy(resolution)
            version, head = resolution
            serving = self.cache.serving(self.unit, version, head)
            request_target = request.policy, request.experiment
            contexts = [
                same_target.context
                for same_target in self.requests
                if (same_target.policy, same_target.experiment) == request_target
            ]
            serving.encode_contexts(contexts)
            if not serving.policy.can_serve:
                message = f"policy {version.policy.name!r} only holds an imported log"
                raise InputError(message, hint="recommend from another policy", field="policy")
            shadow = None if route is None else self.shadows.get(route.route_id)
            challenger = None
            if shadow is not None:
                resolution = self.versions[shadow.reference]
                assert not isinstance(resolution, InputError)
                challenger = self.cache.serving(self.unit, *resolution)
                with suppress(InputError):  # in a context that it cannot read, the challenger gives no probability
                    challenger.encode_contexts(contexts)
            self._versions[cache_key] = ServingVersion(
                version=version, head=head, serving=serving, experiment=experiment, variant=variant, variants=variants,
                by=by, route=route, shadow=shadow, challenger=challenger,
                price=None if serving.spend is None else serving.price_at(self.unit.now),
            )  # fmt: skip
        return self._versions[cache_key]

    def _members(self, names: frozenset[str]) -> dict[str, list[str]]:
        """Return the keys of the arms of each group of arms, by name of the group. Raises InputError for an unknown
        name. names: names of groups of arms and of single arms; single arms are not in the result."""
        if unread_names := names - self.cache.members.keys():
            from rlrec.app.inputs.arm_names import members

            self.cache.members |= members(self.unit, sorted(unread_names), self.cache.groups)
        return {name: self.cache.members[name] for name in sorted(names & self.cache.members.keys())}

    def _build_distribution(
        self, request: Request, version: ServingVersion, narrowing: Narrowing | None
    ) -> SharedDistribution:
        eligible, serving = self._eligible_arms(request, narrowing), version.serving
        # the superset, which many persons share
        superset = eligible.superset if isinstance(eligible, contents.NarrowedSet) else eligible
        added_fields: dict[str, Any] = {} if version.price is None else {PRICE: version.price}
        if PAGE in request.context or serving.learner.rules:
            names = frozenset[str]().union(*(page.groups for page in serving.page_rules(request.context)))
            if groups := self._members(names):
                added_fields[GROUPS] = groups
        context, resting_rules = {**request.context, **added_fields}, list[str]()
        if PAGE in context:
            from rlrec.app.serving.statements import check_named_arms

            resting_rules = check_named_arms(self.unit, request, superset, context.get(GROUPS, {}), narrowing)
        keys, revision = self.cache.complete_keys(self.unit, superset), self.settings.catalogue_revision
        arm_ids, n_candidates = arm_array(eligible), serving.learner.n_candidates
        if n_candidates > len(eligible):
            message = f"{n_candidates} candidates are wanted, with only {quantity(len(eligible), 'arm')} eligible"
            field = "policy" if request.arms is None else "arms"
            raise InputError(message, hint="add arms, or use a policy with fewer candidates", field=field)
        if n_candidates and request.size > n_candidates:
            raise InputError(f"k is {request.size}, but there are only {n_candidates} candidates", field="k")
        make_case = serving.candidates if n_candidates else serving.case
        case = make_case(eligible, arm_ids, context, keys=keys, revision=revision)
        if case.layout is not None:
            case.layout.check(request.size)
        self.n_arms += len(eligible)
        return SharedDistribution(
            **vars(version), eligible=eligible, revision=revision, size=request.size, context=request.context,
            added_fields=added_fields, candidates=n_candidates, case=case, resting=resting_rules,
        )  # fmt: skip

    def _eligible_arms(self, request: Request, narrowing: Narrowing | None) -> contents.Eligible:
        """Return the ids of the arms that a request may show, ascending. Raises InputError if there are fewer arms than
        positions. narrowing: the arms that rules leave, None without rules."""
        hint = None
        if request.arms is not None and len(set(request.arms)) < len(request.arms):
            repeated_arm = next(key for key, times in Counter(request.arms).items() if times > 1)
            raise InputError(f"arm {repeated_arm!r} is listed twice", hint="list each arm once", field="arms")
        if narrowing is not None:
            eligible, hint = narrowing.eligible, narrowing.hint()
        elif request.arms is None:
            eligible = self.catalogue
        else:
            eligible = tuple(sorted({self.ids[key] for key in request.arms} & self._active))
        listed_keys = [key for key in request.arms or () if key in self.ids]
        if inactive_keys := [key for key in listed_keys if self.ids[key] not in self._active]:
            for key in inactive_keys:
                self.cache.inactive_keys.setdefault(key, False)
            from rlrec.app.inputs import arm_names

            texts = [
                f"{status}: {names}" for status, names in arm_names.inactive_texts(self.unit, inactive_keys).items()
            ]
            hint = "; ".join(filter(None, [hint, *texts]))
        if not eligible:
            if request.arms is not None and not request.arms:
                hint = "the list of arms is empty; without one, all arms are eligible"
            hint = hint or "add arms with `rlrec arm add`, or restore some"
            raise InputError("no arm is eligible", hint=hint, field="arms")
        if request.size > MAX_POSITIONS:
            raise InputError(f"k is {request.size}", hint=f"a slate has at most {MAX_POSITIONS} positions", field="k")
        if request.size > len(eligible):
            message = f"k is {request.size}, with only {quantity(len(eligible), 'arm')} eligible"
            raise InputError(message, hint=hint, field="k")
        return eligible


def _same_content(request_id: str, content_digest: bytes, first_request: tuple[bytes | None, int]) -> int:
    """Return the decision id of the earlier request with a request id or, if it has none yet, the index of this request
    in the group. Raises Conflict if the earlier request had other content. content_digest: the digest of the present
    request; first_request: the digest of the earlier request, and the result."""
    if first_request[0] is not None and bytes(first_request[0]) != content_digest:
        message = f"request id {request_id!r} is known with other content"
        raise Conflict(message, hint="a retry repeats the request", field="request_id")
    return first_request[1]
