"""The policies of kind `logged` that own imported decisions."""

from __future__ import annotations

from dataclasses import asdict

from rlrec import policy as kinds
from rlrec.app.inputs import canonical, lookup
from rlrec.errors import InputError
from rlrec.records import Version
from rlrec.store import Unit
from rlrec.store.policies import policies

KIND = "logged"


def find(unit: Unit, name: str) -> Version | None:
    """The version of a policy that may own a log, None if the name is new. Raises InputError for another kind."""
    live = policies.live(unit, [name]).get(name)
    if live is not None and live.version.policy.kind != KIND:
        raise InputError(
            f"policy {name!r} is of kind {live.version.policy.kind}, it did not log elsewhere",
            hint="give --policy the name of a new one, or of one of kind logged",
            field="policy",
        )
    return None if live is None else live.version


def create(unit: Unit, name: str) -> Version:
    """A new policy of kind logged: its version 1."""
    lookup.refuse_route_name(unit, name)
    parameters = asdict(kinds.make(KIND, {}))
    definition = {"kind": KIND, "params": parameters, "reward": "default", "prior": canonical.digest_of({}).hex()}
    policies.create(
        unit, name=name, kind=KIND, params=parameters, definition=canonical.text(definition | {"from_log": None}),
        status="frozen", reward_id=lookup.reward(unit, "default").id, learned_from={},
    )  # fmt: skip
    return lookup.version(unit, name)[0]
