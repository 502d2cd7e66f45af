"""Lines of imported logs into the tables: what is known is left out, what contradicts the store is refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

from rlrec.app.imports.layouts.base import Line, Refused
from rlrec.app.imports.visit_numbers import Visits
from rlrec.app.imports.writer import Intake
from rlrec.app.inputs import canonical
from rlrec.app.log.splits import split
from rlrec.errors import Conflict, InputError
from rlrec.records import Version
from rlrec.store import contents, decisions, events, loading, sessions
from rlrec.store.contents import key_digest
from rlrec.store.loading import Column, Same
from rlrec.store.sessions import Session

SAID = {"version": 1, "experiment": None, "variant": None, "belief_seq": 0}  # what a line need not say


def take(intake: Intake, lines: Sequence[Line]) -> list[Refused]:
    """Store what is new: the lines that were refused."""
    return _Lines(intake).take(lines)


class _Lines:
    """A group of lines on its way into the tables."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.unit = intake.unit

    def take(self, lines: Sequence[Line]) -> list[Refused]:
        sieve = _Sieve()
        lines = self._owned(sieve, lines)
        new = self._new(lines)
        self.intake.duplicates += len(lines) - len(new)
        new = self._unasked(sieve, new)
        new, found = self._known_sessions(sieve, new)
        if new:
            self._store(new, found)
            self.intake.accepted += len(new)
        return sieve.refused

    # -- what is new --

    def _owned(self, sieve: _Sieve, lines: Sequence[Line]) -> list[Line]:
        """The lines whose policy can own an imported log."""
        if all(isinstance(owner, Version) for owner in self.intake.owners.values()):
            return list(lines)

        def check(line: Line) -> None:
            found = self.intake.owners[cast(str, self.intake.policy or line.policy)]
            if isinstance(found, InputError):
                raise InputError(found.message, hint=found.hint, field=found.field)

        return sieve.each(lines, check)

    def _owners(self, lines: Sequence[Line]) -> list[Version]:
        """The owner of each of these lines, which all have one."""
        owners, policy = cast(dict[str, Version], self.intake.owners), self.intake.policy
        if policy is not None:
            return [owners[policy]] * len(lines)
        return [owners[cast(str, line.policy)] for line in lines]

    def _new(self, lines: Sequence[Line]) -> list[Line]:
        """Without the lines that their policy has taken in before."""
        by_owner: dict[int, list[bytes]] = defaultdict(list)
        owners = [owner.policy.id for owner in self._owners(lines)]
        for owner, line in zip(owners, lines, strict=True):
            by_owner[owner].append(line.digest)
        known = {owner: self.intake.known_lines(owner, digests) for owner, digests in by_owner.items()}
        return [line for owner, line in zip(owners, lines, strict=True) if line.digest not in known[owner]]

    def _unasked(self, sieve: _Sieve, lines: Sequence[Line]) -> list[Line]:
        """Without the lines whose request id or feedback keys are known."""
        asked = {line.request_id for line in lines if line.request_id is not None}
        told = {event.key for line in lines for event in line.events if event.key is not None}
        if not asked and not told:
            return list(lines)
        requests = set(decisions.requests(self.unit, asked))
        keys = set(events.stored_keys(self.unit, told))

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

    def _known_sessions(self, sieve: _Sieve, lines: Sequence[Line]) -> tuple[list[Line], dict[str, Session]]:
        """The lines whose session is nobody else's, and those sessions that the store has, locked."""
        keys = loading.stored_sessions(self.unit, list({line.session for line in lines}))
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
        intake, unit = self.intake, self.unit
        intake.note()
        sets = {id(line.eligible): line.eligible for line in lines}
        told = cast(Any, Line(*zip(*lines, strict=True)))  # the lines, column by column
        remembered = {arm for known in told.history if known is not None for arm, *_ in known.entries}
        arm_ids = intake.arms(remembered.union(*sets.values()))
        contexts = intake.contexts(told.context)
        ids_of = {number: tuple(sorted(arm_ids[key] for key in keys)) for number, keys in sets.items()}
        stored = contents.eligible_sets(unit, set(ids_of.values()))
        eligible = {number: stored[arms_of] for number, arms_of in ids_of.items()}
        ats = [unit.now if at is None else at for at in told.at]
        session_ids, visits, steps = self._places(lines, ats, found)
        owners = self._owners(lines)
        seqs = [intake.seq(owner.policy.id) for owner in owners]
        ids = decisions.reserve(unit, len(lines))
        intake.decide({
            "id": ids, "policy_id": [owner.policy.id for owner in owners], "version_id": [owner.id for owner in owners],
            "seq": seqs, "session_id": session_ids, "visit": visits, "step": steps, "context_id": contexts,
            "state": told.state, "eligible_id": [eligible[id(keys)] for keys in told.eligible], "size": told.size,
            "log_propensity": told.log_propensity, "seed": told.seed, "at": ats, "request_key": told.request_id,
            "history": [known and known.packed(arm_ids) for known in told.history],
            "source": [line.said and _source(line.said, owner) for line, owner in zip(lines, owners, strict=True)],
        })  # fmt: skip
        self._slots(lines, ids, arm_ids)
        taken = ((owner.policy.id, line.digest, n) for owner, line, n in zip(owners, lines, ids, strict=True))
        self._write("import_line", ("policy_id", "digest", "decision_id"), sorted(taken))
        self._events(lines, ids, ats, seqs)

    def _slots(self, lines: Sequence[Line], ids: Sequence[int], arm_ids: dict[str, int]) -> None:
        slots = [
            (number, position, arm_ids[arm], *rest)
            for number, line in zip(ids, lines, strict=True)
            for position, arm, *rest in line.slots
        ]
        self._write("slot", decisions.SLOT, slots)

    def _events(self, lines: Sequence[Line], ids: Sequence[int], ats: Sequence[int], seqs: Sequence[int]) -> None:
        """Events and feedback keys of decisions."""
        happened = [
            (n, number, event.position, event.kind, event.value, at if event.at is None else event.at, self.unit.now,
             seq, event.key)
            for n, line, at, seq in zip(ids, lines, ats, seqs, strict=True)
            if line.events
            for number, event in enumerate(line.events, 1)
        ]  # fmt: skip
        self._write("event", ("decision_id", "number", *events.EVENT[1:]), happened)
        events.add_keys(
            self.unit, (row for n, line in zip(ids, lines, strict=True) if line.events for row in _keys(n, line))
        )

    def _write(self, table: str, names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            loading.write(self.unit, table, dict(zip(names, zip(*rows, strict=True), strict=True)))

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
            rows = sorted(zip(session_ids, visits, ats, (step + 1 for step in steps), strict=True))
            self._write_ended(rows)
            return session_ids, visits, steps
        intake = self.intake
        guests = Visits(self.unit, {session.id for session in found.values()}, intake.settings, intake.moved)
        places = [guests.place(number, line, at) for number, line, at in zip(session_ids, lines, ats, strict=True)]
        guests.close()
        return session_ids, [visit for visit, _ in places], [step for _, step in places]

    def _write_ended(self, rows: Sequence[tuple[int, int, int, int]]) -> None:
        numbers, visits, at, steps = zip(*rows, strict=True)
        columns: dict[str, Column] = {
            "session_id": numbers, "number": visits, "started_at": at, "last_at": at, "steps": steps,
            "recent": Same("[]"), "ended_at": at,
        }  # fmt: skip
        loading.write(self.unit, "visit", columns)

    def _sessions(self, lines: Sequence[Line], users: dict[str, str], found: dict[str, Session]) -> dict[str, int]:
        """Ids of the sessions; new ones are stored, in order of key, and known ones get their first user."""
        numbers = sessions.intern_users(self.unit, set(users.values())) if users else {}
        owners = {key: numbers[user] for key, user in users.items()}
        new = sorted({line.session for line in lines} - found.keys())
        made: Sequence[int] = ()
        if new:
            made, salt = self.unit.reserve("session", len(new)), self.intake.settings.split_salt
            columns: dict[str, Column] = {
                "id": made, "key": new, "user_id": [owners.get(key) for key in new],
                "split": [split(salt, users.get(key) or key) for key in new], "created_at": Same(self.unit.now),
                "digest": list(map(key_digest, new)),
            }  # fmt: skip
            loading.write(self.unit, "session", columns)
        named = {found[key].id: owner for key, owner in owners.items() if key in found and found[key].user is None}
        sessions.set_user(self.unit, named)
        return dict(zip(new, made, strict=True)) | {key: session.id for key, session in found.items()}


class _Sieve:
    """Lines that pass, and those that were refused on the way."""

    def __init__(self) -> None:
        self.refused: list[Refused] = []

    def each(self, lines: Collection[Line], check: Callable[[Line], object]) -> list[Line]:
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
