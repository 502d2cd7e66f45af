"""The lines of imported logs into the tables: what is known is left out, what contradicts the store is refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import repeat
from typing import Any, cast

from rlrec import policy as kinds
from rlrec.app import canonical, naming
from rlrec.app import reward as reward_definitions
from rlrec.app.logs.layouts.base import Line, Refused
from rlrec.app.logs.placing import Moved, Visits
from rlrec.app.visiting import split
from rlrec.errors import Conflict, InputError
from rlrec.records import Version
from rlrec.store import Unit, arms, contents, decisions, events, loading, policies, sessions, settings
from rlrec.store import tables as t
from rlrec.store.sessions import Session

KIND = "logged"
CACHE = 50_000  # contexts whose ids are remembered
SAID = {"version": 1, "experiment": None, "variant": None, "belief_seq": 0}  # what a line need not say


class Owners:
    """The policies that imported decisions belong to."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit

    def find(self, name: str | None) -> Version | None:
        """The version of a policy of kind logged, None if the name is new. Raises InputError for another kind."""
        if name is None:
            return None
        found = policies.live(self.unit, [name]).get(name)
        if found is None:
            return None
        kind = found[0].policy.kind
        if kind != KIND:
            raise InputError(
                f"policy {name!r} is of kind {kind}, it did not log elsewhere",
                hint="give --policy the name of a new one, or of one of kind logged",
                field="policy",
            )
        return found[0]

    def create(self, name: str) -> Version:
        """A new policy of kind logged: its version 1."""
        parameters = asdict(cast(Any, kinds.make(KIND, {})))
        definition = {"kind": KIND, "params": parameters, "reward": "default", "prior": canonical.named({}).hex()}
        policy_id = policies.add_policy(
            self.unit, name=name, kind=KIND, params=parameters,
            definition=canonical.text(definition | {"from_log": None}),
        )  # fmt: skip
        version_id = policies.add_version(
            self.unit, policy_id=policy_id, number=1, status="frozen",
            reward_id=reward_definitions.find(self.unit, "default").id, seq=0, learned_from={},
        )  # fmt: skip
        policies.add_head(self.unit, policy_id, live_id=version_id)
        return naming.one(self.unit, name)[0]


class Importer:
    """Lines into the tables, within one transaction."""

    def __init__(
        self,
        unit: Unit,
        names: Collection[str],
        *,
        policy: str | None,
        options: Mapping[str, Any],
        run: int | None,
        moved: Moved,
    ) -> None:
        """names: the owners of the lines to come; policy: of all of them, None where each names its own; options: what
        the command was asked for, noted with its first line; run: that note, where an earlier group made it."""
        self.unit = unit
        self.policy = policy
        self.options = options
        self.run = run
        self.moved = moved
        self.accepted = self.duplicates = 0
        self.fresh: set[int] = set()  # policies without a line from before this file
        self.owners: dict[str, Version | InputError] = {}
        for name in sorted(names):
            self._own(name)
        policies.lock(unit, [owner.policy.id for owner in self.owners.values() if isinstance(owner, Version)])
        self.seq: dict[int, int] = {}
        self.settings = settings.get(unit)
        self._contexts: dict[str, int] = {}

    def _own(self, name: str) -> None:
        owners = Owners(self.unit)
        try:
            known = owners.find(name)
            self.owners[name] = version = known or owners.create(name)
        except InputError as error:
            self.owners[name] = error
        else:
            if known is None:
                self.fresh.add(version.policy.id)

    def _owners(self, lines: Sequence[Line]) -> list[Version]:
        """The owner of each of these lines, which all have one."""
        if self.policy is not None:
            return [cast(Version, self.owners[self.policy])] * len(lines)
        return [cast(Version, self.owners[cast(str, line.policy)]) for line in lines]

    def _owned(self, sieve: Sieve, lines: Sequence[Line]) -> list[Line]:
        """The lines whose policy can own an imported log."""
        if all(isinstance(owner, Version) for owner in self.owners.values()):
            return list(lines)

        def check(line: Line) -> None:
            found = self.owners[cast(str, self.policy or line.policy)]
            if isinstance(found, InputError):
                raise InputError(found.message, hint=found.hint, field=found.field)

        return sieve.each(lines, check)

    def take(self, lines: Sequence[Line]) -> list[Refused]:
        """Store what is new: the lines that were refused."""
        sieve = Sieve()
        lines = self._owned(sieve, lines)
        new = self._new(lines)
        self.duplicates += len(lines) - len(new)
        new = self._unasked(sieve, new)
        new, found = self._known_sessions(sieve, new)
        if new:
            self._store(new, found)
            self.accepted += len(new)
        return sieve.refused

    def _new(self, lines: Sequence[Line]) -> list[Line]:
        """Without the lines that their policy has taken in before."""
        by_owner: dict[int, list[bytes]] = defaultdict(list)
        owners = [owner.policy.id for owner in self._owners(lines)]
        if self.fresh.issuperset(owners):
            return list(lines)
        for owner, line in zip(owners, lines, strict=True):
            by_owner[owner].append(line.digest)
        known = {owner: loading.known_lines(self.unit, owner, digests) for owner, digests in by_owner.items()}
        return [line for owner, line in zip(owners, lines, strict=True) if line.digest not in known[owner]]

    def _unasked(self, sieve: Sieve, lines: Sequence[Line]) -> list[Line]:
        """Without the lines whose request id or feedback keys are known."""
        asked = {line.request_id for line in lines if line.request_id is not None}
        told = {event.key for line in lines for event in line.events if event.key is not None}
        if not asked and not told:
            return list(lines)
        requests = set(decisions.requests(self.unit, asked))
        keys = set(events.keys(self.unit, told))

        def check(line: Line) -> None:
            mine = {event.key for event in line.events if event.key is not None}
            if line.request_id in requests:
                raise Conflict(
                    f"request id {line.request_id!r} is known already",
                    hint="it names one decision of the store", field="request_id",
                )  # fmt: skip
            if taken := sorted(mine & keys):
                raise Conflict(
                    f"feedback key {taken[0]!r} is known already", hint="it names one line of feedback", field="events"
                )
            keys.update(mine)
            if line.request_id is not None:
                requests.add(line.request_id)

        return sieve.each(lines, check)

    def _known_sessions(self, sieve: Sieve, lines: Sequence[Line]) -> tuple[list[Line], dict[str, Session]]:
        """The lines whose session is nobody else's, and those sessions that the store has, locked."""
        keys = loading.known(self.unit, t.session, "key", {line.session for line in lines})
        found = sessions.find(self.unit, keys, lock=True) if keys else {}
        users = {key: session.user for key, session in found.items()}

        def check(line: Line) -> None:
            if line.user is None:
                return
            if (user := users.get(line.session) or line.user) != line.user:
                raise Conflict(
                    f"session {line.session[:80]!r} belongs to user {user!r}, not {line.user!r}", field="user"
                )
            users[line.session] = line.user

        return (sieve.each(lines, check) if any(line.user is not None for line in lines) else list(lines)), found

    # -- rows --

    def _store(self, lines: Sequence[Line], found: dict[str, Session]) -> None:
        unit = self.unit
        if self.run is None:
            self.run = settings.add_run(unit, "import-log", self.options)
        arm_ids = self._arms(lines)
        told = cast(Any, Line(*zip(*lines, strict=True)))  # the lines, column by column
        bodies = self._interned(told.context)
        sets = {id(keys): keys for keys in told.eligible}
        ids_of = {number: tuple(sorted(arm_ids[key] for key in keys)) for number, keys in sets.items()}
        stored = contents.eligible_sets(unit, set(ids_of.values()))
        eligible = {number: stored[arms_of] for number, arms_of in ids_of.items()}
        ats = [unit.now if at is None else at for at in told.at]
        session_ids, visits, steps = self._places(lines, ats, found)
        ids = loading.reserve(unit, t.decision, len(lines))
        owners = self._owners(lines)
        for policy_id in sorted({owner.policy.id for owner in owners} - self.seq.keys()):
            self.seq[policy_id] = policies.raise_seq(unit, policy_id)
        columns: dict[str, Iterable[Any]] = {
            "id": ids,
            "policy_id": [owner.policy.id for owner in owners],
            "version_id": [owner.id for owner in owners],
            "belief_seq": repeat(0),
            "seq": [self.seq[owner.policy.id] for owner in owners],
            "session_id": session_ids,
            "visit": visits,
            "step": steps,
            "context_id": [bodies[body] for body in told.context],
            "state": told.state,
            "eligible_id": [eligible[id(keys)] for keys in told.eligible],
            "catalogue_revision": repeat(self.settings.catalogue_revision),
            "size": told.size,
            "log_propensity": told.log_propensity,
            "seed": told.seed,
            "at": ats,
            "imported": repeat(1),
            "request_key": told.request_id,
            "run_id": repeat(self.run),
            "source": [line.said and _source(line.said, owner) for line, owner in zip(lines, owners, strict=True)],
        }
        loading.write(unit, t.decision, tuple(columns), zip(*columns.values()))  # noqa: B905 (some repeat for ever)
        self._attach(lines, ids, ats, owners, arm_ids)

    def _attach(
        self,
        lines: Sequence[Line],
        ids: Sequence[int],
        ats: Sequence[int],
        owners: Sequence[Version],
        arm_ids: dict[str, int],
    ) -> None:
        """Slots, identities, events and feedback keys of decisions."""
        unit = self.unit
        slots = (
            (number, position, arm_ids[arm], propensity, marginal, least, score, censored, rounded)
            for number, line in zip(ids, lines, strict=True)
            for position, arm, propensity, marginal, least, score, censored, rounded in line.slots
        )
        loading.write(unit, t.slot, decisions.SLOT, slots)
        taken = ((owner.policy.id, line.digest, n) for owner, line, n in zip(owners, lines, ids, strict=True))
        loading.write(unit, t.import_line, ("policy_id", "digest", "decision_id"), sorted(taken))
        happened = [
            (n, number, event.position, event.kind, event.value, at if event.at is None else event.at, unit.now,
             self.seq[owner.policy.id], event.key)
            for n, line, at, owner in zip(ids, lines, ats, owners, strict=True)
            if line.events
            for number, event in enumerate(line.events, 1)
        ]  # fmt: skip
        loading.write(unit, t.event, ("decision_id", "number", *events.EVENT[1:]), happened)
        keyed = (row for n, line in zip(ids, lines, strict=True) if line.events for row in _keys(n, line))
        events.add_keys(unit, keyed)

    def _interned(self, bodies: Collection[str]) -> dict[str, int]:
        """Ids of contexts, those of the groups before remembered."""
        if len(self._contexts) > CACHE:
            self._contexts.clear()
        if new := set(bodies) - self._contexts.keys():
            self._contexts |= contents.contexts(self.unit, new)
        return self._contexts

    def _arms(self, lines: Sequence[Line]) -> dict[str, int]:
        """Ids of the arms that were eligible; unknown ones are added."""
        wanted = {key for keys in {id(line.eligible): line.eligible for line in lines}.values() for key in keys}
        found = arms.ids(self.unit, wanted)
        if new := wanted - found.keys():
            arms.put(self.unit, dict.fromkeys(new, "{}"))
            self.settings = settings.get(self.unit)
            found |= arms.ids(self.unit, new)
        return found

    # -- sessions --

    def _places(
        self, lines: Sequence[Line], ats: Sequence[int], found: dict[str, Session]
    ) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        """Session, visit and step of each line."""
        users = {line.session: line.user for line in reversed(lines) if line.user is not None}
        ids = self._sessions(lines, users, found)
        session_ids = [ids[line.session] for line in lines]
        if not found and len(ids) == len(lines):  # each line is all there is of its session
            visits = [line.visit or 1 for line in lines]
            steps = [line.step or 0 for line in lines]
            rows = sorted(zip(session_ids, visits, ats, ats, (step + 1 for step in steps), repeat("[]"), ats))
            loading.write(self.unit, t.visit, loading.VISIT, rows)
            return session_ids, visits, steps
        guests = Visits(self.unit, {session.id for session in found.values()}, self.settings, self.moved)
        places = [guests.place(number, line, at) for number, line, at in zip(session_ids, lines, ats, strict=True)]
        guests.close()
        return session_ids, [visit for visit, _ in places], [step for _, step in places]

    def _sessions(self, lines: Sequence[Line], users: dict[str, str], found: dict[str, Session]) -> dict[str, int]:
        """Ids of the sessions; new ones are stored, in order of key, and known ones get their first user."""
        numbers = sessions.users(self.unit, set(users.values())) if users else {}
        owners = {key: numbers[user] for key, user in users.items()}
        new = sorted({line.session for line in lines} - found.keys())
        made = loading.reserve(self.unit, t.session, len(new)) if new else ()
        salt, now = self.settings.salt, self.unit.now
        rows = (
            (n, key, owners.get(key), split(salt, users.get(key) or key), now) for n, key in zip(made, new, strict=True)
        )
        loading.write(self.unit, t.session, ("id", "key", "user_id", "split", "created_at"), rows)
        named = {found[key].id: owner for key, owner in owners.items() if key in found and found[key].user is None}
        sessions.set_user(self.unit, named)
        return dict(zip(new, made, strict=True)) | {key: session.id for key, session in found.items()}


class Sieve:
    """Lines that pass, and those that were refused on the way."""

    def __init__(self) -> None:
        self.refused: list[Refused] = []

    def each(self, lines: Sequence[Line], check: Callable[[Line], object]) -> list[Line]:
        passed = []
        for line in lines:
            try:
                check(line)
            except InputError as error:
                error.line = line.number
                self.refused.append(Refused(error, line.text))
            else:
                passed.append(line)
        return passed


def _source(said: dict[str, Any], owner: Version) -> str | None:
    """What a line called its policy and belief, where the row would not say the same."""
    usual = {"policy": owner.policy.name} | SAID
    return None if usual | said == usual else canonical.text(said)


def _keys(decision_id: int, line: Line) -> list[tuple[str, bytes, int | None, int]]:
    """The feedback keys of a decision's events, each with the digest of the line it names."""
    told: dict[str, tuple[int | None, int | None, dict[str, float]]] = {}
    for event in line.events:
        if event.key is not None:
            told.setdefault(event.key, (event.position, event.at, {}))[2][event.kind] = event.value
    return [
        (key, canonical.named([decision_id, position, values]), at, decision_id)
        for key, (position, at, values) in told.items()
    ]
