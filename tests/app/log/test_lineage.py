"""What a version learned from, on arrays."""

from typing import Any

import numpy as np

from rlrec.app.log import lineage
from rlrec.records import Reward, StoredPolicy, Version

MINUTE = 60_000_000
SLOTS = {
    "decision_id": np.arange(1, 7),
    "policy_id": np.array([1, 1, 1, 2, 2, 2]),
    "version_id": np.array([1, 1, 2, 3, 3, 3]),
    "variant_id": np.full(6, -1),
    "at": np.arange(1, 7) * 10 * MINUTE,
    "imported": np.array([False, False, False, False, True, True]),
    "split": np.array([0, 1, 2, 0, 1, 2]),
}
CLICK = Reward(
    id=1, name="default", weights={"click": 1.0}, window_us=30 * MINUTE, default=0.0, clip_low=0.0, clip_high=1.0,
    learn="served", late="count",
)  # fmt: skip


def version(
    kind: str = "thompson",
    *,
    policy_id: int = 1,
    status: str = "learning",
    entered_to: Any = None,
    learned_from: Any = None,
    created_at: int = 0,
) -> Any:
    policy = StoredPolicy(id=policy_id, name=kind, kind=kind, params={}, base_id=None)
    return Version(
        id=policy_id, policy=policy, number=1, status=status, reward=CLICK, parent_id=None, seq=0, ordinal=0,
        entered_to=entered_to, learned_from=learned_from or {}, parameters={}, created_at=created_at,
    )  # fmt: skip


def rows(*chain: Any) -> Any:
    result = [lesson.rows(SLOTS) for lesson in lineage.learned_from(chain)]
    return np.flatnonzero(np.logical_or.reduce([np.zeros(6, bool), *result])).tolist()


def test_a_learner_learned_from_its_own_decisions_and_never_from_imported_ones() -> None:
    assert rows(version()) == [0, 1, 2]
    assert rows(version(policy_id=2)) == [3]


def test_a_learner_that_waits_holds_what_has_entered() -> None:
    assert rows(version(entered_to=2)) == [0, 1]


def test_a_kind_that_learns_nothing_is_never_in_sample() -> None:
    assert rows(version("uniform")) == []
    assert rows(version("uniform", status="frozen", learned_from={"policy_id": 1, "last_id": 3})) == []


def test_a_frozen_belief_holds_what_was_mature_when_it_was_made() -> None:
    record = {"policy_id": 1, "last_id": 3}
    assert rows(version(status="frozen", learned_from=record, created_at=100 * MINUTE)) == [0, 1, 2]
    assert rows(version(status="frozen", learned_from=record, created_at=51 * MINUTE)) == [0, 1]
    assert rows(version(status="frozen", learned_from={**record, "last_id": 1}, created_at=100 * MINUTE)) == [0]


def test_a_belief_handed_over_by_a_variant_holds_what_was_young_then() -> None:
    record = {"policy_id": 1, "last_id": 2, "variant": "thompson@ab/b", "ordinal": 0}
    assert rows(version(policy_id=9, learned_from=record, created_at=21 * MINUTE)) == [0, 1]


def test_a_log_taught_what_was_selected_and_mature() -> None:
    record = {"selection": {"policy_ids": [1, 2], "since": 20 * MINUTE}, "last_id": 5, "now": 61 * MINUTE}
    taught = version(policy_id=9, learned_from={**record, "window_us": 30 * MINUTE})
    assert rows(taught) == [1, 2, 4]
    assert rows(version(policy_id=9, status="frozen", learned_from=taught.learned_from)) == [1, 2, 4]


def test_a_copy_learned_what_its_ancestors_were_taught() -> None:
    taught = version(policy_id=2, learned_from={"selection": {"version_ids": [1]}, "last_id": 2, "now": 10**12})
    copy = version(policy_id=9, status="frozen", learned_from={"policy_id": 2, "last_id": 4}, created_at=10**12)
    assert rows(copy, taught) == [0, 1, 3]


def test_a_trained_version_learned_from_two_splits_of_three() -> None:
    record = {"selection": {"policy_ids": [1]}, "last_id": 6, "now": 10**12, "splits": [0, 1]}
    assert rows(version("gradient", status="frozen", learned_from=record)) == [0, 1]
    assert rows(version("gradient", status="frozen", learned_from={**record, "selection": {"splits": [2]}})) == []


def test_only_a_lesson_of_splits_and_routes_has_to_read_them() -> None:
    record = {"selection": {}, "last_id": 6}
    result = [
        lineage.learned_from([version("gradient", status="frozen", learned_from=item)])[0].columns
        for item in (record, {**record, "splits": [0, 1]}, {"selection": {"splits": [0], "route_ids": [1]}})
    ]
    assert result == [set(), {"split"}, {"split", "route_id"}]
