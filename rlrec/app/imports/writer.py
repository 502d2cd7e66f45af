"""What every line of an import needs in the store, within one transaction: its owner, its contents, its decision."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rlrec.app.imports.policies import Owners
from rlrec.app.imports.visit_numbers import Moved
from rlrec.errors import InputError
from rlrec.records import Version
from rlrec.store import Unit, arms, contents, loading, policies, settings
from rlrec.store.loading import Column, Same

CACHE = 50_000  # contexts whose ids are remembered


class Intake:
    """An import in one transaction."""

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
        self.owners: dict[str, Version | InputError] = {}
        for name in sorted(names):
            self._own(name)
        policies.lock(unit, [owner.policy.id for owner in self.owners.values() if isinstance(owner, Version)])
        self.settings = settings.get(unit)
        self._seq: dict[int, int] = {}
        self._contexts: dict[str, int] = {}
        self._few_lines: dict[int, set[bytes] | None] = {}
        self._few_sessions: dict[str, set[str] | None] = {}

    def _own(self, name: str) -> None:
        owners = Owners(self.unit)
        try:
            self.owners[name] = owners.find(name) or owners.create(name)
        except InputError as error:
            self.owners[name] = error

    def next_file(self) -> None:
        """What was taken in so far is known from now on."""
        self._few_lines.clear()
        self._few_sessions.clear()

    # -- what the store has --

    def known_lines(self, policy_id: int, digests: Sequence[bytes]) -> set[bytes]:
        """A set that has those of these identities which the policy took in before this file."""
        if policy_id not in self._few_lines:
            self._few_lines[policy_id] = loading.few_lines(self.unit, policy_id)
        few = self._few_lines[policy_id]
        return loading.stored_lines(self.unit, policy_id, digests) if few is None else few

    def known_sessions(self, prefix: str, keys: Sequence[str]) -> set[str]:
        """A set that has those of these keys, which all begin so, whose sessions are older than this file."""
        if prefix not in self._few_sessions:
            self._few_sessions[prefix] = loading.few_sessions(self.unit, prefix)
        few = self._few_sessions[prefix]
        return loading.stored_sessions(self.unit, keys) if few is None else few

    def arms(self, wanted: Collection[str]) -> dict[str, int]:
        """Ids of arms; unknown ones are added."""
        found = arms.ids(self.unit, wanted)
        if new := set(wanted) - found.keys():
            arms.put(self.unit, dict.fromkeys(new, "{}"))
            self.settings = settings.get(self.unit)
            found |= arms.ids(self.unit, new)
        return found

    def contexts(self, bodies: Sequence[str]) -> list[int]:
        """The id of each context, those of the groups before remembered."""
        if len(self._contexts) > CACHE:
            self._contexts.clear()
        if new := set(bodies).difference(self._contexts):
            self._contexts |= contents.contexts(self.unit, new)
        return list(map(self._contexts.__getitem__, bodies))

    # -- decisions --

    def seq(self, policy_id: int) -> int:
        """The change of the policy by which all of this is stored."""
        if policy_id not in self._seq:
            self._seq[policy_id] = policies.raise_seq(self.unit, policy_id)
        return self._seq[policy_id]

    def note(self) -> None:
        """Write down, once, that the command takes in a log."""
        if self.run is None:
            self.run = settings.add_run(self.unit, "import-log", self.options)

    def decide(self, columns: Mapping[str, Column]) -> None:
        """Store decisions: `columns` and what all those of an import have in common."""
        common = {
            "belief_seq": Same(0),
            "catalogue_revision": Same(self.settings.catalogue_revision),
            "imported": Same(1),
            "run_id": Same(self.run),
        }
        loading.write(self.unit, "decision", {**columns, **common})
