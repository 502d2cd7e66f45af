"""This module draws slates for groups of requests, and logs the slates with exact propensities."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from rlrec.app.inputs.seeds import seed_or_random
from rlrec.app.learning.ledger import Ledger, Unordered
from rlrec.app.serving.cache import ServingCache
from rlrec.app.serving.draws import DrawnSlate, draw, prepare, to_signed
from rlrec.app.serving.open_sessions import HistoryReader, OpenSessions, turns
from rlrec.app.serving.planned_requests import plan_group
from rlrec.app.serving.requests import (
    Answer,
    DrawnAnswer,
    Duplicate,
    Outdated,
    Plan,
    PlannedRequest,
    Request,
    SharedDistribution,
    answer_fields,
)
from rlrec.errors import InputError, RlrecError, StoreBusy
from rlrec.policy.contexts.statements import STATEMENTS
from rlrec.records import Slot
from rlrec.store import Store, Unit
from rlrec.store.database import loading
from rlrec.store.database.database_errors import NotUnique
from rlrec.store.database.loading import Same
from rlrec.store.log import contents, decisions, settings
from rlrec.store.log.contents import Eligible
from rlrec.store.log.sessions import check_steps
from rlrec.store.policies import policies
from rlrec.times import format_time

if TYPE_CHECKING:
    from rlrec.app.requests.feedback import FeedbackTransaction, Line

__all__ = ["Answer", "Request", "recommend", "recommend_group"]

TRIES = 20  # others may record many events of one person at once, each of which takes away an arm
MAX_QUICK_CELLS = 4_000  # positions times arms up to which a group is planned while it holds SQLite's one lock
MAX_KINDS = 1_000  # kinds of events that rules name, after which no further notice is given


def recommend(
    store: Store, request: Request, *, seed: int | None = None, dry_run: bool = False, cache: ServingCache | None = None
) -> Answer:
    """Draw and log a slate for one request, and return the answer. Raises InputError for an invalid request, or
    Conflict if an earlier request has the same request id and other content. cache: what this process has read
    before."""
    answer = recommend_group(store, [request], seed=seed, dry_run=dry_run, cache=cache)[0]
    if isinstance(answer, InputError):
        raise answer
    return answer


def recommend_group(
    store: Store, requests: Sequence[Request | InputError], *, seed: int | None = None, dry_run: bool = False,
    cache: ServingCache | None = None,
) -> list[Answer | InputError]:  # fmt: skip
    """Answer requests, in order, all in one transaction. The answer to a refused request is its error. cache: what this
    process has read before; dry_run: whether to store nothing."""
    answers = RequestGroup(store, requests, seed=seed, dry_run=dry_run, cache=cache).answer()
    return [answer.to_json() if isinstance(answer, DrawnAnswer) else answer for answer in answers]


Answered = Answer | DrawnAnswer | InputError


class GroupPlan(NamedTuple):
    """This record is a group of requests before slates are drawn. group: each request with its distribution, or the
    error, Duplicate or None in its place; requests: the requests whose slates are to be drawn, by index;
    stored_answers: the answers to repeated requests, by decision id; is_interned: whether all contexts and eligible
    sets are stored; policy_ids: the policies to lock."""

    group: Sequence[Plan]
    requests: Mapping[int, PlannedRequest]
    stored_answers: Mapping[int, Answer]
    is_interned: bool
    policy_ids: Collection[int]


class RequestGroup:
    """A RequestGroup answers requests and stores feedback in one transaction. All slates are drawn from the beliefs
    before the transaction; feedback is stored after the decisions.

    requests: objects with the fields of Request, or errors; seed: a seed of 64 bits, None for a random seed; cache:
    what this process has read for earlier groups; transaction: the result of the feedback."""

    def __init__(
        self, store: Store, requests: Sequence[Request | InputError], *, seed: int | None = None, dry_run: bool = False,
        cache: ServingCache | None = None, feedback: Sequence[Line] = (),
    ) -> None:  # fmt: skip
        self.store, self.requests, self.feedback = store, requests, feedback
        self._positions = sum(request.size for request in requests if not isinstance(request, InputError))
        self.seed, self.dry_run = seed_or_random(seed), dry_run
        self.cache = ServingCache() if cache is None else cache
        self.transaction: FeedbackTransaction | None = None
        self._earliest = 0  # the earliest clock time at which the eligible arms are looked up
        self._is_dated_later = False
        self._is_planned_alone = False  # whether no other transaction can store anything between plan and draw
        self._is_first = False  # whether the process has read nothing yet, so that the plan takes long
        for request in requests:
            if isinstance(request, InputError) or not (request.page or request.context or request.arms):
                continue
            if request.page or "@" in "".join(request.context) or {*map(type, request.arms or ())} - {str}:
                from rlrec.app.serving.statements import take_statements  # few requests state anything

                self.requests = take_statements(requests)
                break

    def answer(self) -> list[Answered]:
        """Return the answers to the requests, in order. The answer to a refused request is its error."""
        answers = self.store.retry_until_reached(self._answer)
        waiting_indices = [index for index, answer in enumerate(answers) if answer is None]
        if not waiting_indices:
            return cast("list[Answered]", answers)
        # these requests waited for the others of the group, which are stored now; so did feedback that names them
        rows, outcomes = self._waiting_rows(waiting_indices), list[Any]()
        try:
            while waiting_indices:
                group = RequestGroup(
                    self.store, [self.requests[index] for index in waiting_indices], seed=self.seed, cache=self.cache
                )
                for index, answer in zip(waiting_indices, self.store.retry_until_reached(group._answer), strict=True):
                    answers[index] = answer
                waiting_indices = [index for index in waiting_indices if answers[index] is None]
            if rows:
                from rlrec.app.requests.feedback import feedback_group

                transaction = feedback_group(self.store, [self.feedback[row] for row in rows])
                cast("FeedbackTransaction", self.transaction).later_transaction = transaction
                outcomes += transaction.outcomes
        except RlrecError as error:  # the stored part of the group must not be stored twice
            hint = error.hint or "give lines a request_id or a key: these are safe to send again"
            for index in waiting_indices:
                answers[index] = InputError(error.message, hint=hint)
            outcomes = [InputError(error.message, hint=hint) for _ in rows]
        for row, outcome in zip(rows, outcomes, strict=True):
            cast("FeedbackTransaction", self.transaction).outcomes[row] = outcome
        return cast("list[Answered]", answers)

    def _waiting_rows(self, indices: Sequence[int]) -> list[int]:
        """Return the indices of the lines of feedback that name any of the given requests by request id. indices: the
        indices of the requests."""
        request_ids = {cast("Request", self.requests[index]).request_id for index in indices} - {None}
        return [row for row, line in enumerate(self.feedback) if line.request_id in request_ids]

    def _answer(self) -> list[Answered | None]:
        lock_all = False
        for tries_left in reversed(range(TRIES)):
            try:
                return self._try_group(lock_all=lock_all, is_last=not tries_left)
            except Outdated:
                continue
            except Unordered:  # a policy was created after the snapshot
                lock_all = True
        message = "other writers keep using the same request ids, changing the same route, or recording what takes arms"
        raise StoreBusy(message, hint="a retry is safe")

    def _try_group(self, *, lock_all: bool, is_last: bool) -> list[Answered | None]:
        store, cache, plan = self.store, self.cache, None
        is_quick = (
            0 < self._positions * max(1, len(cache.active)) <= MAX_QUICK_CELLS and store.engine.dialect.name == "sqlite"
        )
        self._is_planned_alone = not self.dry_run and (is_last or is_quick)
        self._is_first = is_quick and not (is_last or cache.active)
        if not self._is_planned_alone:
            with store.read() as unit:
                plan = self._plan(unit, lock_all=lock_all)
                if self.dry_run:
                    return _order_answers(plan.group, self._dry_run(unit, plan.requests), plan.stored_answers)
            if plan.stored_answers:
                store.flush()
            if not plan.is_interned:  # in the cache belongs only what was committed
                cache.add(*store.write(partial(_intern, plan.requests, cache), repeatable=True))
            # before locks are taken, for which others would wait
            prepare({request.distribution for request in plan.requests.values()})
            if not plan.requests and not self.feedback:
                return _order_answers(plan.group, {}, plan.stored_answers)
        try:
            answers, ledger = store.write(partial(self._write, plan), repeatable=True, lazy=self._is_first)
        except BaseException as error:
            cache.forget_contents()
            if self._is_first and isinstance(error, StoreBusy):
                raise Outdated from error
            if isinstance(error, NotUnique):
                keys = {request.session for request in self.requests if not isinstance(request, InputError)}
                with store.read() as unit:
                    check_steps(unit, keys)
            raise
        cache.note_changes(ledger.changes())
        return answers

    def _plan(self, unit: Unit, *, lock_all: bool) -> GroupPlan:
        """Read what the requests need, and find the distribution from which the slate of each request is drawn.
        lock_all: whether the plan names all policies of the store as policies to lock, and not only those that will
        change."""
        cache = self.cache
        unit.now = max(unit.now, self._earliest)
        has_feedback = bool(self.feedback)
        group = plan_group(unit, self.requests, cache, waits=not self.dry_run, has_feedback=has_feedback)
        plans = {index: plan for index, plan in enumerate(group) if isinstance(plan, PlannedRequest)}
        distributions = {plan.distribution for plan in plans.values()}
        _notice_ignored(self, unit, plans)
        duplicates = [plan for plan in group if isinstance(plan, Duplicate)] if len(plans) < len(group) else ()
        repeated_ids = {plan.decision_id for plan in duplicates if plan.decision_id is not None}
        stored_answers: Mapping[int, Answer] = {}
        if repeated_ids:  # now, since nothing is read after the commit
            from rlrec.app.serving import decision_json

            stored_answers = decision_json.answers(unit, decisions.find(unit, repeated_ids))
        contexts = {plan.context for plan in plans.values()}
        eligible_sets = {source.eligible for source in distributions}
        new_contents = cache.find_new(contexts, eligible_sets)
        if any(new_contents) and not (self._is_planned_alone or self.dry_run):
            cache.add(*contents.find(unit, *new_contents))
            new_contents = cache.find_new(contexts, eligible_sets)
        is_interned = self.dry_run or not (any(new_contents) or (cache.lacks_id and cache.active in eligible_sets))
        policy_ids = {source.version.policy.id for source in distributions}
        if self.feedback:
            from rlrec.app.requests.feedback import policies_of

            policy_ids |= policies_of(unit, self.feedback)
        # the last decisions of these users may be credited; SQLite has one lock for all
        if cache.weighs_returns and unit.postgres:
            from rlrec.store.log import returns

            users = {plan.request.user for plan in plans.values() if plan.request.user is not None}
            keys = {plan.request.session for plan in plans.values()}
            policy_ids |= returns.policies_of_last(unit, users=users, sessions=keys)
        policy_ids |= {policy.id for policy in policies.all_policies(unit)} if lock_all else set()
        return GroupPlan(group, plans, stored_answers, is_interned, policy_ids)

    def _write(self, plan: GroupPlan | None, unit: Unit) -> tuple[list[Answered | None], Ledger]:
        """Draw and store the group in one transaction. Returns the answers, in order, and the ledger. plan: the plan of
        the group. If it is None, it is made in this transaction, so that nobody can change a belief between plan and
        draw."""
        if plan is None:
            if unit.postgres:
                self.cache.forget_contents()  # they may be from a try that was rolled back
                policies.lock(unit, {policy.id for policy in policies.all_policies(unit)})
            else:
                unit.heads = {}
            plan = self._plan(unit, lock_all=unit.postgres)
            if (
                self._is_first and self._positions * len(self.cache.active) > MAX_QUICK_CELLS
            ):  # SQLite takes its lock after this
                prepare({request.distribution for request in plan.requests.values()})
            if not plan.is_interned:
                self.cache.add(*_intern(plan.requests, self.cache, unit))
        ledger = Ledger(unit, plan.policy_ids)
        ledger.settle()
        answers = self._decide(unit, ledger, plan.requests) if plan.requests else {}
        if self.feedback:
            from rlrec.app.requests.feedback import FeedbackTransaction

            lines: list[Line | InputError] = list(self.feedback)
            for row in self._waiting_rows([index for index, plan in enumerate(plan.group) if plan is None]):
                lines[row] = InputError("it waits for its request")
            self.transaction = FeedbackTransaction(unit, ledger, lines, answers=True)
        ledger.close()
        return _order_answers(plan.group, answers, plan.stored_answers), ledger

    def _decide(
        self, unit: Unit, ledger: Ledger, plans: Mapping[int, PlannedRequest]
    ) -> dict[int, DrawnAnswer | InputError]:
        """Draw and store decisions while the policies are locked. Returns the answers by the index of the request.
        Raises Outdated if another transaction has made the plans invalid."""
        request_ids = {key for plan in plans.values() if (key := plan.request.request_id) is not None}
        unit.repeatable &= len(request_ids) == len(plans)
        if request_ids and not self._is_planned_alone and decisions.requests(unit, request_ids):
            raise Outdated
        answers: dict[int, DrawnAnswer | InputError] = {}
        has_experiments = any(plan.distribution.variants for plan in plans.values())
        if has_experiments:
            from rlrec.app.serving import assignment

            started_at, has_clock = unit.now, self.store.now is not None
            may_have_changed = unit.postgres or not self._is_planned_alone
            answers |= assignment.stopped_errors(unit, plans, reread=may_have_changed)
            if has_clock and unit.now > started_at and not self._is_dated_later:
                self._is_dated_later = True
                time_text = format_time(unit.now)
                self.store.notice(
                    f"--now lies before the newest phase of an experiment; decisions are dated {time_text}"
                )
            plans = {index: plan for index, plan in plans.items() if index not in answers}
        owners = [(plan.request.session, plan.request.user) for plan in plans.values()]
        stored_settings = settings.get(unit)
        if stored_settings.removals != self.cache.removals:
            raise Outdated
        sessions = OpenSessions(unit, stored_settings, owners)
        if unit.postgres:  # others may have decided while this transaction waited for the sessions
            unit.now = max(unit.now, decisions.newest_time(unit) or 0)
        for index, (session, user) in zip(plans, owners, strict=True):
            if user is not None:
                try:
                    sessions.set_user(session, user)
                except InputError as error:  # the session belongs to another user
                    answers[index] = error
        if answers:
            plans = {index: plan for index, plan in plans.items() if index not in answers}
        if plans:
            sessions.store_users()
            is_over = not self.cache.start <= unit.now < self.cache.end
            if is_over or (self.cache.narrows and not _rules_hold(unit, plans.values(), sessions, self.cache)):
                self._earliest = unit.now
                raise Outdated
            if stored_settings.weighs_returns:
                from rlrec.store.log import returns

                returns.lock_users(unit, {user_id for user_id in sessions.user_id if user_id is not None})
            new_answers = self._store(unit, ledger, list(plans.values()), sessions)
            answers |= dict(zip(plans, new_answers, strict=True))
            if has_experiments:
                assignment.store(unit, plans, sessions, verify=bool(stored_settings.has_merges))
            sessions.store_visits()
        return answers

    def _store(
        self, unit: Unit, ledger: Ledger, plans: Sequence[PlannedRequest], sessions: OpenSessions
    ) -> Iterable[DrawnAnswer]:
        """Store decisions with their slots, add the slots to the beliefs, and return the answers in order."""
        ids, contexts = decisions.reserve(unit, len(plans)), self.cache.contexts
        visit_rows, step, state, history, slates = self._serve(plans, ids, sessions)
        shared_columns = {
            source: _decision_columns(source, ledger, self.cache) for source in {plan.distribution for plan in plans}
        }
        rows = [shared_columns[plan.distribution].values() for plan in plans]
        columns: dict[str, Sequence[Any]] = dict(
            zip(shared_columns[plans[0].distribution], zip(*rows, strict=True), strict=True)
        )
        catalogue_ids, has_lists = columns["eligible_id"], any(slate.candidates or slate.teams for slate in slates)
        if has_lists:
            set_ids = contents.eligible_sets(unit, {slate.candidates.eligible for slate in slates if slate.candidates})
            pairs = zip(slates, catalogue_ids, strict=True)
            columns["eligible_id"] = [
                set_ids[slate.candidates.eligible] if slate.candidates else set_id for slate, set_id in pairs
            ]
        columns |= {
            "ordinal": _ordinals(ledger, plans), "visit": [sessions.number[row] for row in visit_rows], "step": step,
            "context_id": [contexts[plan.context] for plan in plans], "state": state, "history": history,
            "request_digest": [plan.digest for plan in plans],
            "request_key": [plan.request.request_id for plan in plans],
        }  # fmt: skip
        loading.write(unit, "decision", {name: loading.column(values) for name, values in columns.items()} | {
            "id": ids, "session_id": [sessions.id[row] for row in visit_rows], "seed": Same(to_signed(self.seed)),
            "log_propensity": [slate.log_propensity for slate in slates], "at": Same(unit.now), "imported": Same(0),
        })  # fmt: skip
        slots = zip(*[slot for slate in slates for slot in slate.slots], strict=True)
        slot_columns = {name: loading.column(values) for name, values in zip(Slot._fields, slots, strict=True)}
        slot_ids = [key for key, slate in zip(ids, slates, strict=True) for _ in slate.slots]
        loading.write(unit, "slot", slot_columns | {"decision_id": slot_ids})
        if has_lists:
            _store_lists(unit, ids, slates, catalogue_ids)
        if routed_plans := {index: plan for index, plan in enumerate(plans) if plan.distribution.route is not None}:
            from rlrec.app.serving import shadows

            shadows.store(unit, routed_plans, ids, slates, step, history, self.cache.keys)
        _enter_slots(ledger, ids, slates, columns, has_exclusions=bool(sessions.settings.has_exclusions))
        if sessions.settings.weighs_returns:
            _credit_returns(unit, ledger, list(zip(ids, visit_rows, step, strict=True)), sessions)
        keys, users = ([column[row] for row in visit_rows] for column in (sessions.key, sessions.user))
        fields = _drawn_fields(plans, slates, unit.now)
        answer_columns = ids, columns["request_key"], keys, columns["visit"], step, users, fields
        return map(partial(tuple.__new__, DrawnAnswer), zip(*answer_columns, strict=True))

    def _serve(
        self, plans: Sequence[PlannedRequest], decision_ids: Sequence[int], sessions: OpenSessions
    ) -> tuple[list[int], list[int], list[str], list[bytes], list[DrawnSlate]]:
        """Draw the slates of requests. The requests of one session are served one after another, so that each sees the
        decisions before it. Returns five lists with an item for each request: the row of its session in `sessions`, and
        the step, the state, the packed history and the slate of its decision."""
        stateless_plans = {index: plan for index, plan in enumerate(plans) if not plan.distribution.is_stateful}
        slates = draw(stateless_plans, decision_ids, self.seed, self.cache.keys)
        rows, any_stateful = sessions.arrive(plan.request.session for plan in plans), len(slates) < len(plans)
        definitions = [plan.distribution.version.reward for plan in plans]
        reader = HistoryReader(sessions, [source.version.reward for source in {plan.distribution for plan in plans}])
        states = dict[int, tuple[int, str, bytes]]()  # step, state and history
        for turn in turns(rows):
            turn_rows = [rows[index] for index in turn]
            histories = reader.histories(turn_rows, [definitions[index] for index in turn])
            if any_stateful:
                is_stateful = np.array([index not in stateless_plans for index in turn])
                stateful_plans = {index: plans[index] for index in turn if index not in stateless_plans}
                slates |= draw(
                    stateful_plans, decision_ids, self.seed, self.cache.keys, histories=histories.take(is_stateful)
                )
            steps = [sessions.steps[row] for row in turn_rows]
            states |= zip(turn, zip(steps, sessions.states(turn_rows), histories.to_bytes(), strict=True), strict=True)
            sessions.add_slates(turn_rows, [decision_ids[index] for index in turn], [slates[index] for index in turn])
        step, state, history = map(list, zip(*(states[index] for index in range(len(plans))), strict=True))
        return rows, step, state, history, [slates[index] for index in range(len(plans))]

    def _dry_run(self, unit: Unit, plans: Mapping[int, PlannedRequest]) -> dict[int, DrawnAnswer]:
        """Return, by the index of the request, the answers that requests would get if no other transaction came first.
        Nothing is stored."""
        first_id = decisions.peek(unit)
        if not plans:
            return {}
        owners = [(plan.request.session, plan.request.user) for plan in plans.values()]
        sessions = OpenSessions(unit, settings.get(unit), owners, read_only=True)
        requests = list(plans.values())
        *_, slates = self._serve(requests, range(first_id, first_id + len(plans)), sessions)
        return {
            index: DrawnAnswer(
                None, plan.request.request_id, plan.request.session, None, None,
                sessions.main_keys.get(plan.request.user, plan.request.user), fields,
            )
            for (index, plan), fields in zip(plans.items(), _drawn_fields(requests, slates, unit.now), strict=True)
        }  # fmt: skip


def _notice_ignored(group: RequestGroup, unit: Unit, plans: Mapping[int, PlannedRequest]) -> None:
    """Print a notice, once, about each part of the requests that has no effect: contexts for policies that read none,
    listed arms that may not be shown now, page rules without effect, and rules on kinds of events that do not seem to
    be recorded."""
    store, cache = group.store, group.cache
    sources = (plan.distribution for plan in plans.values() if plan.request.context.keys() - STATEMENTS)
    for source in dict.fromkeys(sources):
        name = source.version.policy.name
        if name not in cache.contextless_policies and all(field.startswith("@") for field in source.case.reads):
            cache.contextless_policies.add(name)
            suffix = "" if group.dry_run else "; the context is stored all the same"
            store.notice(f"policy {name} reads no context{suffix}")
    if plans and (new_keys := [key for key, is_noticed in cache.inactive_keys.items() if not is_noticed]):
        cache.inactive_keys |= dict.fromkeys(new_keys, True)
        from rlrec.app.inputs import arm_names

        for status, names in arm_names.inactive_texts(unit, new_keys).items():
            store.notice(f"{status} arms are left out: {names}")
    if not cache.has_resting and (texts := [rule for plan in plans.values() for rule in plan.distribution.resting]):
        cache.has_resting = True
        store.notice(f"{texts[0]} of the request has no effect: `not_after` or `not_shown` takes what it names")
    if cache.narrows:
        rules = [rule for plan in plans.values() if plan.narrowing for rule in plan.narrowing.past_rules]
        kinds = {rule.kind for rule in rules if rule.kind is not None} - cache.kinds
        if kinds and len(cache.kinds) < MAX_KINDS:
            from rlrec.app.inputs import arm_rules

            arm_rules.notice_unseen_kinds(store, unit, kinds)
            cache.kinds |= kinds


def _intern(
    plans: Mapping[int, PlannedRequest], cache: ServingCache, unit: Unit
) -> tuple[dict[str, int], dict[Eligible, int]]:
    """Store those contexts and eligible sets of a group that have no ids yet. Returns two mappings with the ids, by
    context and by eligible set."""
    sets = {plan.distribution.eligible for plan in plans.values()}
    new_contexts, new_sets = cache.find_new({plan.context for plan in plans.values()}, sets)
    if cache.lacks_id and cache.active in sets.difference(new_sets):
        new_sets.append(cache.active)
    context_ids = contents.contexts(unit, contents.by_digest(new_contexts))
    set_ids = contents.eligible_sets(unit, new_sets)
    if cache.lacks_id and (key := set_ids.get(cache.active)) is not None:
        settings.set_catalogue(unit, revision=cache.revision, eligible_id=key, span=(cache.start, cache.end))
    return context_ids, set_ids


def _rules_hold(unit: Unit, plans: Iterable[PlannedRequest], sessions: OpenSessions, cache: ServingCache) -> bool:
    """Some rules take away arms because of what a person saw and did. Tell whether they take away the same arms now as
    when the requests were planned."""
    from rlrec.app.serving import narrowing

    owners = [(plan.narrowing, sessions.row[plan.request.session]) for plan in plans]
    pairs = [
        (rules, (sessions.user_id[row], sessions.id[row]))
        for rules, row in owners
        if rules is not None and rules.past_rules
    ]
    return not pairs or narrowing.rules_hold(unit, pairs, cache.groups)


def _store_lists(unit: Unit, ids: Sequence[int], slates: Sequence[DrawnSlate], catalogue_ids: Sequence[int]) -> None:
    """Store the letters of the rankers that picked the slots, for slates of two rankers, and the lists of candidates,
    for policies with two stages. catalogue_ids: for each decision, the id of the eligible set from which candidates
    were drawn."""
    from rlrec.store.log import candidates

    candidates.add_teams(unit, [(key, slate.teams) for key, slate in zip(ids, slates, strict=True) if slate.teams])
    candidates.add(unit, [
        (key, set_id, json.dumps(drawn_list.arms), json.dumps(drawn_list.propensities), drawn_list.log_propensity)
        for key, slate, set_id in zip(ids, slates, catalogue_ids, strict=True) if (drawn_list := slate.candidates)
    ])  # fmt: skip


def _enter_slots(
    ledger: Ledger, ids: Sequence[int], slates: Sequence[DrawnSlate], columns: Mapping[str, Sequence[Any]], *,
    has_exclusions: bool,
) -> None:  # fmt: skip
    """Add the slots of new decisions to the beliefs of their policies. Decisions that a stored exclusion covers are not
    added. ids: the ids of the decisions; columns: the columns of the decisions; has_exclusions: whether the store has
    exclusions."""
    slots, ordinals = [slate.slots for slate in slates], [number or 0 for number in columns["ordinal"]]
    served_slots = list(zip(slots, ordinals, columns["context_id"], strict=True))
    for policy_id in dict.fromkeys(columns["policy_id"]):
        indices = [index for index, row_policy_id in enumerate(columns["policy_id"]) if row_policy_id == policy_id]
        charged_slots = entering_slots = [served_slots[index] for index in indices]
        if has_exclusions:
            learning_versions = [version for version in ledger.learners[policy_id] if version.entered_to is None]
            left_out = ledger.omit(learning_versions, first_id=ids[indices[0]], last_id=ids[indices[-1]])
            entering_slots = [served_slots[index] for index in indices if ids[index] not in left_out]
        ledger.serve(policy_id, entering_slots, charges=charged_slots)


def _credit_returns(unit: Unit, ledger: Ledger, steps: Iterable[tuple[int, int, int]], sessions: OpenSessions) -> None:
    """Record an event `return` for the last decision of each user who comes back. A user comes back if a new
    decision begins a visit, and the visit of the last decision was over. Then store the new decisions as the last
    decisions of their users, whose rows must be locked. steps: for each new decision, its id, the row of its
    session, and its step."""
    from rlrec.app.requests.feedback import FeedbackTransaction, Line
    from rlrec.store.log import returns
    from rlrec.store.log.events import RETURN

    # for each user whose first decision here begins a visit, or names the user in one: when the visit began
    started_at: dict[int, int] = {}
    last_decisions: dict[int, int] = {}
    for decision_id, row, step in steps:
        if (user_id := sessions.user_id[row]) is not None:
            if user_id not in last_decisions and (step == 0 or sessions.key[row] in sessions.new_users):
                started_at[user_id] = sessions.started_at[row]
            last_decisions[user_id] = decision_id
    earlier_decisions, timeout_us = returns.last_decisions(unit, started_at) if started_at else (), sessions.timeout_us
    credited_decisions = [
        decision for decision in earlier_decisions if decision.ends_at(timeout_us) < started_at[decision.user_id]
    ]
    returns.set_last(unit, last_decisions.items())
    if not credited_decisions:
        return
    ledger.require({decision.policy_id for decision in credited_decisions})
    was_repeatable = unit.repeatable  # these events are stored again whenever the requests are, and only then
    times = [(decision.decision_id, started_at[decision.user_id]) for decision in credited_decisions]
    lines = [Line(decision_id=decision_id, events={RETURN: 1.0}, at=at) for decision_id, at in times]
    FeedbackTransaction(unit, ledger, lines, returns=True)
    unit.repeatable = was_repeatable


def _drawn_fields(plans: Sequence[PlannedRequest], slates: Sequence[DrawnSlate], now: int) -> list[dict[str, Any]]:
    """Return, for each request, the fields of its answer that depend on the drawn slate, such as arms and propensities.
    Requests with the same distribution and slate share one object."""
    at, fields = format_time(now), dict[tuple[SharedDistribution, DrawnSlate], dict[str, Any]]()
    pairs = list(zip([plan.distribution for plan in plans], slates, strict=True))
    for source, slate in set(pairs):
        names = [
            source.experiment and source.experiment.name, source.variant and source.variant.label,
            source.route and source.route.route,
        ]  # fmt: skip
        probability = slate.propensity, slate.log_propensity
        fields[source, slate] = answer_fields(
            source.version, names, probability, slate.answer, at, **slate.candidate_fields
        )
    return list(map(fields.__getitem__, pairs))


def _ordinals(ledger: Ledger, plans: Sequence[PlannedRequest]) -> list[int | None]:
    """Return, for each new decision, how many decisions its policy had made before it. The result is None if the
    beliefs of the policy do not fade."""
    learners = {plan.distribution.version.policy.id: plan.distribution.serving.learner for plan in plans}
    policy_ids = [plan.distribution.version.policy.id for plan in plans]
    ordinals = {
        policy_id: iter(ledger.ordinals(policy_id, policy_ids.count(policy_id), forgetting=learner.forgetting))
        for policy_id, learner in learners.items()
        if learner.forgetting.forgets
    }
    return [next(ordinals[policy_id]) if policy_id in ordinals else None for policy_id in policy_ids]


def _decision_columns(source: SharedDistribution, ledger: Ledger, cache: ServingCache) -> dict[str, int | None]:
    """Return, by name of column, the stored values that are equal for all decisions drawn from one distribution."""
    version, policy_id, head = source.version, source.version.policy.id, source.head
    belief_ordinal = None
    if source.serving.learner.forgetting.forgets:  # a version that no longer learns does not forget
        belief_ordinal = head.ordinal if version.learning else version.ordinal
    return {
        "policy_id": policy_id, "version_id": version.id, "belief_seq": head.seq, "belief_ordinal": belief_ordinal,
        "seq": ledger.seq(policy_id), "eligible_id": cache.sets[source.eligible], "size": source.size,
        "catalogue_revision": source.revision, "variant_id": None if source.variant is None else source.variant.id,
    }  # fmt: skip


def _order_answers(
    group: Sequence[Plan], draws: Mapping[int, DrawnAnswer | InputError], stored_answers: Mapping[int, Answer]
) -> list[Answered | None]:
    """Return the answers in the order of the requests. A request that repeats an earlier request has the same answer; a
    request that must wait has None. draws: the answers to drawn requests, by index; stored_answers: the answers of
    stored decisions, by id."""
    if len(draws) == len(group):
        return list(map(draws.__getitem__, range(len(group))))
    answers: list[Answered | None] = []
    for index, plan in enumerate(group):
        if isinstance(plan, PlannedRequest):
            answers.append(draws[index])
        elif isinstance(plan, InputError):
            answers.append(plan)
        elif plan is None:
            answers.append(None)
        elif plan.decision_id is not None:
            answers.append({**stored_answers[plan.decision_id], "duplicate": True})
        else:
            assert plan.earlier_index is not None
            first_answer = answers[plan.earlier_index]
            assert first_answer is not None
            assert not isinstance(first_answer, dict)
            answers.append(
                copy(first_answer)
                if isinstance(first_answer, InputError)
                else {**first_answer.to_json(), "duplicate": True}
            )
    return answers
