"""What a version learned from, as tests on rows of the log: nothing is judged unnoticed on what taught it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlrec import policy as kinds
from rlrec.arrays import Flags
from rlrec.policy.base import Belief, Policy
from rlrec.records import Version
from rlrec.store import Unit, policies
from rlrec.store.bulk import Columns
from rlrec.store.reader import Selection


@dataclass(frozen=True, kw_only=True)
class LearnedFrom:
    """Decisions that a version learned from: the selected ones that were mature at a time (None: mature or not), of
    some splits (None: of all)."""

    selection: Selection
    mature_at: int | None = None
    window_us: int = 0
    splits: tuple[int, ...] | None = None

    @property
    def split(self) -> bool:
        """Whether it takes the column `split` to tell."""
        return self.splits is not None or self.selection.splits is not None

    def rows(self, slots: Columns) -> Flags:
        """Which rows of the log are among them, (n,)."""
        found = matching(slots, self.selection)
        if self.splits is not None:
            found &= np.isin(slots["split"], self.splits)
        if self.mature_at is not None:
            found &= slots["imported"] | (self.mature_at - slots["at"] > self.window_us)
        return found


def matching(slots: Columns, selection: Selection) -> Flags:
    """Which rows of the log a selection means, (n,): `Selection.conditions` on arrays."""
    found = np.ones(len(slots["decision_id"]), np.bool_)
    for name in ("policy", "version", "variant"):
        wanted = getattr(selection, f"{name}_ids")
        if wanted is not None:
            found &= np.isin(slots[f"{name}_id"], list(wanted))
    if selection.since is not None:
        found &= slots["at"] >= selection.since
    if selection.until is not None:
        found &= slots["at"] < selection.until
    if selection.first_id is not None:
        found &= slots["decision_id"] >= selection.first_id
    if selection.last_id is not None:
        found &= slots["decision_id"] <= selection.last_id
    if selection.imported is not None:
        found &= slots["imported"] == selection.imported
    if selection.splits is not None:
        found &= np.isin(slots["split"], list(selection.splits))
    return found


def ancestry(unit: Unit, version: Version) -> list[Version]:
    """The version, the one it was copied from, and so on to the first."""
    chain = [version]
    while (parent := chain[-1].parent_id) is not None:
        chain.append(policies.by_id(unit, [parent])[parent])
    return chain


def learned(chain: Sequence[Version]) -> list[LearnedFrom]:
    """What the first version of an `ancestry` learned from: its own decisions if it learns online, what it was taught
    when it was made, and what those it was copied from were taught."""
    version = chain[0]
    taught = [lesson for one in chain for lesson in _taught(one)]
    if version.status == "frozen" or not learns(version):
        return taught
    first = version.since or None
    own = Selection(policy_ids=[version.policy.id], first_id=first, last_id=version.entered_to, imported=False)
    return [LearnedFrom(selection=own), *taught]


def record(unit: Unit, text: str, selected: Selection, *, last_id: int, window_us: int, slots: int) -> dict[str, Any]:
    """What a version remembers of a log that taught it: the filter and what it meant, and how much was mature then."""
    selection = {name: value for name, value in asdict(selected).items() if value is not None}
    return {
        "filter": text, "selection": selection, "last_id": last_id, "now": unit.now, "window_us": window_us,
        "slots": slots,
    }  # fmt: skip


def _taught(version: Version) -> list[LearnedFrom]:
    """What stands in the record of a version: the log it was taught by, that of its prior, the policy whose belief it
    is a copy of."""
    record = version.learned_from
    lessons = [_lesson(version, log) for log in (record, record.get("prior", {})) if "selection" in log]
    if "policy_id" in record and learns(version):
        last = None if "selection" in record else record.get("last_id")
        own = Selection(policy_ids=[record["policy_id"]], last_id=last, imported=False)
        lessons.append(LearnedFrom(selection=own, mature_at=version.created_at, window_us=version.reward.window_us))
    return lessons


def _lesson(version: Version, record: Mapping[str, Any]) -> LearnedFrom:
    selection = Selection(**{"last_id": record.get("last_id"), **record["selection"]})
    window = int(record.get("window_us", version.reward.window_us))
    splits = tuple(record["splits"]) if "splits" in record else None
    return LearnedFrom(selection=selection, mature_at=record.get("now"), window_us=window, splits=splits)


def learns(version: Version) -> bool:
    """Whether what the version serves depends on its belief: `uniform` and `fixed` keep counts, and learn nothing."""
    return informed(kinds.make(version.policy.kind, version.policy.params))


def informed(policy: Policy) -> bool:
    """Whether the distribution of a policy depends on a belief."""
    if policy.contextual:
        return True
    nothing: Any = np.zeros(0)
    empty = Belief(pulls=nothing, reward_sum=nothing, reward_squares=nothing, alpha=nothing, beta=nothing, total=0.0)
    return policy.index(empty, context={}) is not None
