"""Versions of policies as the command contract shows them."""

from __future__ import annotations

from typing import Any, TypedDict

from rlrec.records import Version
from rlrec.store import Unit, policies

# One version; `versions` are the numbers of all that its policy has.
VersionSummary = TypedDict("VersionSummary", {
    "policy": str, "version": int, "kind": str, "params": dict[str, Any], "reward": str, "status": str,
    "versions": list[int],
})  # fmt: skip


def summary(unit: Unit, version: Version) -> VersionSummary:
    """The summary of a version."""
    policy = version.policy
    return {
        "policy": policy.name,
        "version": version.number,
        "kind": policy.kind,
        "params": dict(policy.params),
        "reward": version.reward.name,
        "status": version.status,
        "versions": [other.number for other in policies.versions(unit, [policy.id])],
    }
