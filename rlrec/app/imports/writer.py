"""This module writes one group of an imported log into the tables, in columns, in one transaction.

Lines that the store has already are left out, and lines that contradict the store are refused. The user is told
which rewards of the log are clipped or ignored by the reward of the policy, and if the log seems to lack the
decisions without reward."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, field, replace
from itertools import compress
from typing import Any, NamedTuple

import numpy as np

from rlrec import policy as kinds
from rlrec.app.imports import conflicts, visits
from rlrec.app.imports.columns import NULL, LogColumns, fill_column, map_column, pick_values, value_set, values
from rlrec.app.imports.layouts.base import RefusedLine, drop_rows
from rlrec.app.inputs import canonical, lookup
from rlrec.app.log import reward_log
from rlrec.app.log.splits import splits
from rlrec.arrays import numbers_in_runs, run_starts
from rlrec.errors import InputError, quantity
from rlrec.log_fields import SLOT, STATED_FIELDS
from rlrec.records import Record, Reward, Sums, Version
from rlrec.store import Unit
from rlrec.store.database import loading
from rlrec.store.database.loading import Column, Same
from rlrec.store.log import candidates, contents, decisions, events, sessions, settings
from rlrec.store.policies import arms, policies

TOLERANCE = 1e-6  # relative, for rewards that lines state
MIN_DECISIONS = 100  # decisions from which on equal rewards suggest that the others were lost


class AlteredRewards(Record, kw_only=False):
    """This record counts the rewards of a log that a reward definition changes.

    n_clipped: the number of decisions whose reward is outside the range of the definition; n_ignored: the number of
    decisions with a reward that the definition ignores; decisions: the number of all decisions; kinds: the kinds of
    events that the definition does not weigh; rewards: up to two distinct rewards of slots, before clipping."""

    n_clipped: int = 0
    n_ignored: int = 0
    decisions: int = 0
    kinds: frozenset[str] = frozenset()
    rewards: frozenset[float] = frozenset()
    definition: Reward | None = None

    def __add__(self, other: AlteredRewards) -> AlteredRewards:
        counts = self.n_clipped + other.n_clipped, self.n_ignored + other.n_ignored, self.decisions + other.decisions
        texts = self.kinds | other.kinds, self.rewards | other.rewards
        return AlteredRewards(*counts, *texts, self.definition or other.definition)

    def notices(self, rewards: Iterable[Reward]) -> list[str]:
        """Return messages for the user about these rewards. rewards: the reward definitions of the store, one of which
        may count what this definition ignores."""
        lines: list[str] = []
        if self.definition is None:
            return lines
        name, low, high = self.definition.name, self.definition.clip_low, self.definition.clip_high
        if self.n_clipped:
            span = f"{-np.inf if low is None else low:g} to {np.inf if high is None else high:g}"
            subject = f"rewards of {quantity(self.n_clipped, 'decision')}"
            lines.append(f"{subject}: {name!r} clips them to {span}; {_way_out(['reward'])}")
        if self.n_ignored:
            kinds = sorted(self.kinds)[:5]
            remark = f" (it does not weigh {', '.join(kinds)})" if kinds else ""
            subject = f"events or rewards of {quantity(self.n_ignored, 'decision')}"
            reward_name = next((reward.name for reward in rewards if not self.kinds.isdisjoint(reward.weights)), None)
            way_out = _way_out(kinds) if reward_name is None else f"`evaluate --reward {reward_name}` counts some"
            lines.append(f"{subject}: {name!r} ignores them{remark}; {way_out}")
        if self.decisions >= MIN_DECISIONS and len(self.rewards) == 1 and self.definition.default not in self.rewards:
            lines.append(
                f"each of {quantity(self.decisions, 'decision')} earned {max(self.rewards):g}: a log of decisions with "
                "a click alone, say, judges no policy; import those that earned nothing, too"
            )
        return lines


def _way_out(kinds: Sequence[str]) -> str:
    terms = ",".join(f"{kind}=1" for kind in kinds) or "..."
    weights = ", with weights of your own (below 0 for what costs)" if len(kinds) > 1 else ""
    return f"`rlrec reward define NAME {terms}` counts them{weights}, and `evaluate --reward NAME` judges by that"


def find_alterations(definition: Reward, rows: LogColumns, served_at: Sequence[int]) -> AlteredRewards:
    """Count how many rewards of imported decisions a reward definition clips or ignores. served_at: the time of each
    decision."""
    n = len(rows)
    if not rows.events.row and rows.reward == NULL:
        return AlteredRewards(decisions=n, rewards=frozenset({definition.default}), definition=definition)
    batch = rows.batch(served_at)
    slot_row, event_row, kinds = batch.slots["decision_id"], batch.events["decision_id"], batch.events["kind"]
    # slots whose reward is clipped
    is_clipped, is_ignored = np.zeros((2, n), np.bool_)
    reward = reward_log.with_rewards(batch, definition).reward
    raw_reward = reward_log.with_rewards(batch, definition._replace(clip_low=None, clip_high=None)).reward
    is_clipped[slot_row[reward != raw_reward]] = True
    # events without weight, and stated rewards that differ from the sum over events
    is_weighed = reward_log.kind_numbers(batch, definition.weights) >= 0
    is_weighed &= batch.events["age_us"] <= definition.window_us
    is_ignored[event_row[(kinds != events.CENSOR) & ~is_weighed]] = True
    if rows.reward != NULL:
        worth = np.bincount(slot_row, reward, n) + reward_log.page_events(batch, definition, np.arange(n))
        stated_reward = np.array(values(rows.reward, n), np.float64)  # NaN: none
        is_ignored |= np.abs(stated_reward - worth) > TOLERANCE * np.maximum(1.0, np.abs(worth))
    unweighed_kinds = value_set(rows.events.kind) - definition.weights.keys() - {events.CENSOR}
    return AlteredRewards(
        n_clipped=int(is_clipped.sum()), n_ignored=int((is_ignored & ~is_clipped).sum()), decisions=n,
        kinds=frozenset(unweighed_kinds), rewards=frozenset(np.unique(raw_reward)[:2].tolist()), definition=definition,
    )  # fmt: skip


CONTEXTS = 50_000  # contexts whose ids are remembered
KIND = "logged"  # the kind of policies that own imported decisions


class ImportCounts(Sums, eq=True):
    """This record counts the decisions of an import. n_accepted: stored decisions; duplicates: decisions that the store
    had already; n_estimated: stored decisions with estimated propensities; altered_rewards: the rewards that
    definitions change; n_changed: stored decisions for which the store already had a decision of the same policy,
    session and time."""

    n_accepted: int = 0
    duplicates: int = 0
    n_estimated: int = 0
    altered_rewards: AlteredRewards = field(default_factory=AlteredRewards)
    n_changed: int = 0


class ImportState(Record, kw_only=False):
    """This record holds the state of an import between two transactions.

    policies: the names of the policies to which decisions belong; options: the options of the command, which are
    stored with its first decisions; run: the id of the row that stores them; moves: the visits that got a new
    number; lines_agree: whether no two lines contradict each other; follows: whether the import waits for new lines
    of a growing log; contexts: the ids of known contexts, by JSON.

    lines: for each policy id, the digests of the lines that the store had before this file, or None if they are too
    many or the log grows; marks: numbers that change when other processes change these policies or delete decisions,
    after which `lines` must be read again."""

    policies: Collection[str]
    options: Mapping[str, Any]
    moves: visits.VisitMoves
    lines_agree: bool
    counts: ImportCounts = field(default_factory=ImportCounts)
    run: int | None = None
    follows: bool = False
    marks: Sequence[Any] = ()
    lines: Mapping[int, set[bytes] | None] = field(default_factory=dict)
    contexts: Mapping[str, int] = field(default_factory=dict)


class PreparedRows(NamedTuple):
    """This record holds a group of rows, and what can be computed from them before they are stored.

    sessions: the keys of the sessions, in order; digests, splits, user: the digest, split and user (or None) of each
    session; session: the index in `sessions` of each row's session; users: the digest of each user, by key;
    contexts: the contexts by digest; order: the indexes of the rows in order of policy and digest."""

    rows: LogColumns
    sessions: list[str]
    digests: list[int]
    splits: list[int]
    user: Sequence[str | None]
    users: dict[str, int]
    session: Sequence[int]
    contexts: dict[bytes, str]
    order: list[int]

    @classmethod
    def prepare(cls, rows: LogColumns, *, salt: str) -> PreparedRows:
        """Compute the order, sessions, users and contexts that are needed to store the rows, and return them with the
        rows. salt: the setting `Settings.split_salt`."""
        keys = sorted(dict.fromkeys(rows.session))  # ascending: sorting an ordered list costs little
        halves = np.frombuffer(b"".join(rows.digest), ">u8").astype(np.uint64).reshape(-1, 2)
        policy = () if isinstance(rows.policy, Same) else (np.array(rows.policy),)
        order = np.lexsort((halves[:, 1], halves[:, 0], *policy)).tolist()
        user = list(map(_users(rows).get, keys))
        split = splits(salt, [key if name is None else name for name, key in zip(user, keys, strict=True)])
        users = sorted({name for name in user if name is not None})
        session: Sequence[int] = range(len(keys))  # in most logs sessions come in order
        if keys != list(rows.session):
            index = dict(zip(keys, session, strict=True))
            session = [index[key] for key in rows.session]
        return cls(
            rows=rows, sessions=keys, digests=contents.key_digests(keys), splits=split, user=user,
            users=dict(zip(users, contents.key_digests(users), strict=True)), session=session,
            contexts=contents.by_digest(set(rows.context)), order=order,
        )  # fmt: skip


class GroupWriter:
    """A GroupWriter imports a group of rows in one transaction."""

    def __init__(self, unit: Unit, state: ImportState) -> None:
        self.unit = unit
        loading.copy_rarely(unit)
        self.owners: dict[str, Version | InputError] = {}
        for name in sorted(state.policies):
            try:
                self.owners[name] = find_owner(unit, name) or create_owner(unit, name)
            except InputError as error:
                self.owners[name] = error
        self.ids = {name: owner.policy.id for name, owner in self.owners.items() if isinstance(owner, Version)}
        self.policy_heads = policies.lock(unit, list(self.ids.values()))
        self.settings = settings.get(unit)
        if state.marks != loading.marks(unit, self.ids.values()):
            lines = {
                number: None if state.follows else loading.few_digests(unit, number) for number in self.ids.values()
            }
            state = replace(state, lines=lines, contexts={})
        self.state = state
        self.refusals: list[RefusedLine] = []

    def write(self, group: PreparedRows) -> tuple[ImportState, list[RefusedLine]]:
        """Store the rows that the store does not have. Returns the state of the import after this group, and the
        refused lines."""
        with_main_users = conflicts.with_main_users(self.unit, group.rows)
        if with_main_users is not group.rows:
            group = PreparedRows.prepare(with_main_users, salt=self.settings.split_salt)
        new = rows = drop_rows(group.rows, self._owner_errors(group.rows), self.refusals)
        for name in value_set(rows.policy) & self.ids.keys():  # no row is left of a refused name
            imported_digests, number = self.state.lines[self.ids[name]], self.ids[name]
            stored_digests = (
                loading.stored_digests(self.unit, number, rows.digest) if imported_digests is None else imported_digests
            )
            new = new.without_lines(name, stored_digests)
        n_duplicates = len(rows) - len(new)
        is_intact = new is group.rows
        keys = loading.stored_sessions(self.unit, group.sessions if is_intact else set(new.session))
        old_sessions = sessions.find(self.unit, keys, lock=True) if keys else {}
        users = {key: session.user for key, session in old_sessions.items()}
        hashes = np.empty(0, np.int64) if self.state.lines_agree else None
        new = drop_rows(new, conflicts.find(self.unit, new, users, disputed_hashes=hashes, meanings={}), self.refusals)
        if len(new):
            is_intact = new is group.rows
            self._store(group if is_intact else PreparedRows.prepare(new, salt=self.settings.split_salt), old_sessions)
        counts = ImportCounts(len(new), n_duplicates, values(new.estimated, len(new)).count(1))
        marks = loading.marks(self.unit, self.ids.values())
        state = replace(self.state, counts=self.state.counts + counts, marks=marks)
        return state, self.refusals

    def _owner_errors(self, rows: LogColumns) -> dict[int, InputError]:
        """Return an error for each row that names a policy to which no imported log can belong, by the index of the
        row."""
        if len(self.ids) == len(self.owners):
            return {}
        return {
            row: InputError(owner.message, hint=owner.hint, field=owner.field)
            for row, name in enumerate(values(rows.policy, len(rows)))
            if isinstance(owner := self.owners[name], InputError)
        }

    # -- rows of tables --

    def _store(self, group: PreparedRows, old_sessions: dict[str, sessions.Session]) -> None:
        """Insert decisions and everything that belongs to them. If a table has a unique key, its rows are inserted in
        order of this key. old_sessions: the sessions that the store has already, by key."""
        unit, rows, n = self.unit, group.rows, len(group.rows)
        if self.state.run is None:
            run = settings.add_run(unit, "import-log", self.state.options)
            self.state = replace(self.state, run=run)
        at = fill_column(rows.at, [unit.now] * n)
        arm_ids = self._arm_ids(rows)
        contexts = self._context_ids(group.contexts)
        session_ids = self._session_ids(group, old_sessions)
        old_ids = {session.id for session in old_sessions.values()}
        visit, step, grown_rows = visits.assign(
            unit, rows, session_ids, at, stored_ids=old_ids, settings=self.settings, moves=self.state.moves
        )
        names = values(rows.policy, n)
        owners = {name: owner for name in value_set(rows.policy) if isinstance(owner := self.owners[name], Version)}
        states, histories = visits.derive_states(
            unit, rows, {name: owner.reward for name, owner in owners.items()}, arm_ids=arm_ids,
            session_id=session_ids, visit=visit, step=step, at=at, grown_rows=grown_rows,
        )  # fmt: skip
        seq = map_column(
            rows.policy, {name: policies.raise_seq(unit, self.policy_heads[self.ids[name]]) for name in owners}
        )
        policy_id = map_column(rows.policy, self.ids)
        if old_sessions and rows.at != NULL:
            moments = decisions.moments(unit, old_ids, but_of_run=self.state.run)
            n_changed = sum(map(moments.__contains__, zip(values(policy_id, n), session_ids, at, strict=True)))
            self.state = replace(self.state, counts=self.state.counts + ImportCounts(n_changed=n_changed))
        ids = decisions.reserve(unit, n)
        self._write("decision", {
            "id": ids, "policy_id": policy_id, "seq": seq,
            "version_id": map_column(rows.policy, {name: owner.id for name, owner in owners.items()}),
            "session_id": session_ids, "visit": visit, "step": step, "context_id": map_column(rows.context, contexts),
            "state": states, "eligible_id": self._eligible_ids(rows, arm_ids), "size": rows.size, "at": at,
            "log_propensity": rows.log_propensity, "seed": rows.seed, "request_key": rows.request_id,
            "history": histories,
            "source": rows.source, "belief_seq": Same(0), "imported": Same(1), "run_id": Same(self.state.run),
            **{field.name: getattr(rows, field.name) for field in STATED_FIELDS},
            "catalogue_revision": Same(self.settings.catalogue_revision),
        })  # fmt: skip
        slots = rows.slots
        self._write("slot", {
            "decision_id": pick_values(ids, slots.row), "position": slots.position,
            "arm_id": map_column(slots.arm, arm_ids), **{field.name: getattr(slots, field.name) for field in SLOT[3:]},
        })  # fmt: skip
        self._candidates(rows, ids, arm_ids)
        self._action_data(rows, ids, arm_ids)
        self._write("import_line", {
            "policy_id": policy_id if isinstance(policy_id, Same) else pick_values(policy_id, group.order),
            "digest": pick_values(rows.digest, group.order), "decision_id": pick_values(ids, group.order),
        })  # fmt: skip
        self._events(rows, ids, at, seq)
        for name, owner in owners.items():
            is_of_owner = [name == other for other in names]
            altered_rewards = find_alterations(owner.reward, rows.select(is_of_owner), list(compress(at, is_of_owner)))
            self.state = replace(self.state, counts=self.state.counts + ImportCounts(altered_rewards=altered_rewards))

    def _write(self, table: str, columns: Mapping[str, Column]) -> None:
        loading.write(self.unit, table, {name: column for name, column in columns.items() if column != NULL})

    def _arm_ids(self, rows: LogColumns) -> dict[str, int]:
        """Return the id of each arm in these rows, by key. Unknown arms are added to the store."""
        keys = set().union(*(rows.eligible_sets[index] for index in value_set(rows.eligible)))
        for past in () if rows.history == NULL else values(rows.history, len(rows)):
            keys |= set() if past is None else {arm for arm, *_ in past.entries}
        for entries in () if rows.candidates == NULL else values(rows.candidates, len(rows)):
            keys |= set() if entries is None else set(entries.catalogue or ())
        ids = arms.ids(self.unit, keys)
        if new_keys := keys - ids.keys():
            arms.put(self.unit, dict.fromkeys(new_keys, "{}") | _first_features(rows, new_keys))
            self.settings = settings.get(self.unit)
            ids |= arms.ids(self.unit, new_keys)
        return ids

    def _candidates(self, rows: LogColumns, ids: Sequence[int], arm_ids: Mapping[str, int]) -> None:
        """Store the candidates (the arms from which a slate was ranked) of decisions that have them. ids: the id of
        each row's decision."""
        numbers, lists = _find_values(rows.candidates, ids)
        if not numbers:
            return
        sets = {entry.catalogue: tuple(sorted(map(arm_ids.__getitem__, entry.catalogue or ()))) for entry in lists}
        set_ids = contents.eligible_sets(self.unit, {arms_of for catalogue, arms_of in sets.items() if catalogue})
        candidates.add(self.unit, [
            (number, set_ids.get(sets[entry.catalogue]), json.dumps([arm_ids[arm] for arm in entry.arms]),
             json.dumps(entry.propensities), entry.log_propensity)
            for number, entry in zip(numbers, lists, strict=True)
        ])  # fmt: skip

    def _action_data(self, rows: LogColumns, ids: Sequence[int], arm_ids: Mapping[str, int]) -> None:
        """Store what lines state about arms: their features, the arms that each position could show, and the
        probabilities of all arms. ids: the id of each row's decision."""
        numbers, bodies = _find_values(rows.action_features, ids)
        if numbers:
            contexts = contents.contexts(self.unit, contents.by_digest(set(bodies)))
            self._write("decision_features", {
                "decision_id": numbers, "context_id": [contexts[body] for body in bodies],
            })  # fmt: skip
        numbers, sets = _find_values(rows.slot_sets, ids)
        if numbers:
            texts = [json.dumps([sorted(map(arm_ids.__getitem__, arms)) for arms in entries]) for entries in sets]
            self._write("slot_set", {"decision_id": numbers, "arms": texts})
        numbers, supports = _find_values(rows.support, ids)
        if numbers:
            p_lists = ([p for _, p in sorted((arm_ids[arm], p) for arm, p in entry.items())] for entry in supports)
            blobs = [np.array(entries, "<f8").tobytes() for entries in p_lists]
            self._write("logged_support", {"decision_id": numbers, "probabilities": blobs})

    def _context_ids(self, bodies: Mapping[bytes, str]) -> Mapping[str, int]:
        """Return the ids of contexts, by the JSON of the context. Ids of earlier groups are remembered. bodies: the
        JSON of each context, by digest."""
        old_ids = self.state.contexts if len(self.state.contexts) <= CONTEXTS else {}
        new_bodies = {digest: body for digest, body in bodies.items() if body not in old_ids} if old_ids else bodies
        ids = {**old_ids, **contents.contexts(self.unit, new_bodies)}
        self.state = replace(self.state, contexts=ids)
        return ids

    def _eligible_ids(self, rows: LogColumns, arm_ids: Mapping[str, int]) -> Column:
        sets = {
            index: tuple(sorted(map(arm_ids.__getitem__, rows.eligible_sets[index])))
            for index in value_set(rows.eligible)
        }
        ids = contents.eligible_sets(self.unit, set(sets.values()))
        return map_column(rows.eligible, {index: ids[arms_of] for index, arms_of in sets.items()})

    def _events(self, rows: LogColumns, ids: Sequence[int], served_at: Sequence[int], seq: Column) -> None:
        """Store the events, numbered from 1 within their decision, and their feedback keys. ids: the id of each
        row's decision; served_at: the time of each row's decision; seq: the number of the policy's change that adds
        the row."""
        if not (record := rows.events).row:
            return
        event_rows = np.array(record.row, np.int64)
        number = numbers_in_runs(run_starts(event_rows), len(event_rows)) + 1
        decision_id, at = pick_values(ids, record.row), fill_column(record.at, pick_values(served_at, record.row))
        self._write("event", {
            "decision_id": decision_id, "number": number.tolist(), "position": record.position, "kind": record.kind,
            "value": record.value, "at": at, "received_at": Same(self.unit.now),
            "seq": seq if isinstance(seq, Same) else pick_values(seq, record.row), "key": record.key,
        })  # fmt: skip
        if record.key != NULL:
            columns = (record.key, record.position, record.at, record.kind, record.value)
            entries = zip(decision_id, *(values(column, len(at)) for column in columns), strict=True)
            events.add_keys(self.unit, _feedback_keys(entries))

    # -- sessions --

    def _session_ids(self, group: PreparedRows, old_sessions: Mapping[str, sessions.Session]) -> Sequence[int]:
        """Return the id of each row's session. New sessions are stored in order of their keys. A stored session without
        a user gets the first user that a row names for it."""
        user_ids = sessions.intern_users(self.unit, group.users.keys(), group.users)
        keys, digests, split, user = group.sessions, group.digests, group.splits, group.user
        if old_sessions:
            is_new = [key not in old_sessions for key in keys]
            keys, user = list(compress(keys, is_new)), list(compress(user, is_new))
            digests, split = list(compress(digests, is_new)), list(compress(split, is_new))
        new_ids = self.unit.reserve("session", len(keys)) if keys else ()
        if keys:
            with loading.without_checks(self.unit):
                self._write("session", {
                    "id": new_ids, "key": keys, "digest": digests, "split": split,
                    "user_id": [user_ids.get(name or "") for name in user] if user_ids else NULL,
                    "created_at": Same(self.unit.now),
                })  # fmt: skip
        if not old_sessions:
            return pick_values(new_ids, group.session)
        ids = dict(zip(keys, new_ids, strict=True)) | {key: session.id for key, session in old_sessions.items()}
        users = {key: user for key, user in zip(group.sessions, group.user, strict=True) if user is not None}
        userless_keys = [key for key in users.keys() & old_sessions.keys() if old_sessions[key].user is None]
        sessions.set_user(self.unit, {ids[key]: user_ids[users[key]] for key in userless_keys})
        return pick_values(ids, group.rows.session)


def _users(rows: LogColumns) -> dict[str, str]:
    """Return the first user that rows name for each session, by the key of the session, for sessions that have one."""
    entries = list(zip(rows.session, values(rows.user, len(rows)), strict=True))
    return {} if rows.user == NULL else {key: user for key, user in reversed(entries) if user is not None}


def _find_values(column: Column, ids: Sequence[int]) -> tuple[Sequence[int], Sequence[Any]]:
    """Return the ids of the decisions that have a value in a column, and these values. ids: the id of each row's
    decision."""
    entries = (
        [] if isinstance(column, Same) else [pair for pair in zip(ids, column, strict=True) if pair[1] is not None]
    )
    return [number for number, _ in entries], [value for _, value in entries]


def _first_features(rows: LogColumns, new_keys: Set[str]) -> dict[str, str]:
    """Return the features of new arms, by key, as the first decision with features of the arm states them."""
    features: dict[str, str] = {}
    for text in () if isinstance(rows.action_features, Same) else dict.fromkeys(rows.action_features):
        by_arm = json.loads(text) if text is not None and len(features) < len(new_keys) else {}
        for arm in new_keys & by_arm.keys() - features.keys():
            features[arm] = canonical.text(by_arm[arm])
    return features


def _feedback_keys(entries: Any) -> list[tuple[str, bytes, int | None, int]]:
    """Return an entry for each feedback key: the key, the digest of its line of feedback, the time and the decision.
    entries: the decision, key, position, time, kind and value of each event."""
    lines: dict[tuple[int, str], tuple[int | None, int | None, dict[str, float]]] = {}
    for decision_id, key, position, at, kind, value in entries:
        if key is not None:
            lines.setdefault((decision_id, key), (position, at, {}))[2][kind] = value
    return [
        (key, canonical.digest_of([decision_id, position, kinds]), at, decision_id)
        for (decision_id, key), (position, at, kinds) in lines.items()
    ]


# -- owners --


def find_owner(unit: Unit, name: str) -> Version | None:
    """Return the live version of the policy with a name, or None if no policy has this name. Raises InputError unless
    the policy is of kind logged, since only such a policy can hold an imported log."""
    live = policies.live(unit, [name]).get(name)
    if live is not None and live.version.policy.kind != KIND:
        raise InputError(
            f"policy {name!r} is of kind {live.version.policy.kind}, it did not log elsewhere",
            hint="give --policy the name of a new one, or of one of kind logged",
            field="policy",
        )
    return None if live is None else live.version


def create_owner(unit: Unit, name: str) -> Version:
    """Create a policy of kind logged, and return its version 1."""
    lookup.refuse_route_name(unit, name)
    parameters = asdict(kinds.make(KIND, {}))
    definition = {"kind": KIND, "params": parameters, "reward": "default", "prior": canonical.digest_of({}).hex()}
    policies.create(
        unit, name=name, kind=KIND, params=parameters, definition=canonical.text(definition | {"from_log": None}),
        status="frozen", reward_id=lookup.reward(unit, "default").id, learned_from={},
    )  # fmt: skip
    return lookup.version(unit, name)[0]
