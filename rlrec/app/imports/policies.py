"""The policies that imported decisions belong to."""

from __future__ import annotations

from dataclasses import asdict

from rlrec import policy as kinds
from rlrec.app.inputs import canonical, lookup
from rlrec.errors import InputError
from rlrec.records import Version
from rlrec.store import Unit, policies

KIND = "logged"


class Owners:
    """Policies of kind logged: found, or created."""

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
        parameters = asdict(kinds.make(KIND, {}))
        definition = {"kind": KIND, "params": parameters, "reward": "default", "prior": canonical.named({}).hex()}
        policy_id = policies.add_policy(
            self.unit, name=name, kind=KIND, params=parameters,
            definition=canonical.text(definition | {"from_log": None}),
        )  # fmt: skip
        version_id = policies.add_version(
            self.unit, policy_id=policy_id, number=1, status="frozen",
            reward_id=lookup.reward(self.unit, "default").id, seq=0, learned_from={},
        )  # fmt: skip
        policies.add_head(self.unit, policy_id, live_id=version_id)
        return lookup.version(self.unit, name)[0]
