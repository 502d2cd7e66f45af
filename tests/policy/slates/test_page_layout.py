"""Rules of a page over its arms: contradictions, and room for every position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rlrec.errors import InputError
from rlrec.policy.slates import page_layout, page_rules

KEYS = [f"a{number}" for number in range(6)]
FIELDS: dict[str, list[Any]] = {
    "shelf": ["x", "x", "y", "y", None, None],
    "brand": ["p", "q", "p", "q", "p", "q"],
    "tags": [("t", "u"), ("u",), None, ("t",), None, None],
}
GROUPS = {"@odd": ["a1", "a3", "a5"], "@low": ["a0", "a1", "a2", "gone"], "@none": ["gone"]}


def laid_out(request: Any, policy: Any = None) -> page_layout.PageLayout:
    pages = [page_rules.parse(policy, owner="policy")] if policy is not None else []
    pages += [page_rules.parse(request)] if request is not None else []
    return page_layout.lay_out(pages, KEYS, FIELDS.get, GROUPS)


@pytest.mark.parametrize(
    ("request_rules", "policy", "message"),
    [
        ({"pin": {"1": "a0"}}, {"pin": {"1": "a1"}}, "pin 1=a0 of the request contradicts pin 1=a1 of the policy"),
        ({"pin": {"1": "a0"}}, {"pin": {"2": "a0"}}, "pin 1=a0 of the request contradicts pin 2=a0 of the policy"),
        ({"pin": {"1": "a0", "2": "a1"}}, {"most": {"shelf": 1}}, "contradict most shelf=1 of the policy"),
        ({"least": {"a0": 0.6}}, {"least": {"a1": 0.6}}, "of the policy and least a0=0.6 of the request add up to 1.2"),
        ({"least": {"a0": 0.6, "a1": 0.5}}, None, "least a0=0.6 of the request and least a1=0.5 of the request add up"),
        ({"pin": {"1": "a0"}, "least": {"a1": 0.1}}, {"most": {"shelf": 1}}, "least a1=0.1 of the request contradicts"),
        ({"most": {"shelf.x": 1}}, None, "no eligible arm has 'shelf.x'"),
        ({"least": {"@odd": {"2": 0.5}, "a0": 0.3}}, {"least": {"@low": 0.3}}, "least @low=0.3 of the policy and"),
        ({"pin": {"2": "a0"}, "least": {"a1": {"2": 0.1}}}, None, "least a1=0.1@2 of the request contradicts pin 2=a0"),
        ({"pin": {"1": "a1"}, "least": {"a1": {"2": 0.1}}}, None, "least a1=0.1@2 of the request contradicts pin 1=a1"),
        ({"pin": {"2": "a0"}, "least": {"@odd": {"2": 0.1}}}, None, "least @odd=0.1@2 of the request contradicts pin"),
        (
            {"pin": {"1": "a1", "2": "a2", "3": "a4"}, "least": {"@low": 0.1}},
            {"most": {"brand": 2}},
            "least @low=0.1 of the request contradicts most brand=2 of the policy, which pins use up",
        ),
    ],
)
def test_rules_that_contradict_each_other_are_refused(request_rules: Any, policy: Any, message: str) -> None:
    fields = FIELDS | {"shelf.x": [None] * 6}
    pages = [page_rules.parse(policy, owner="policy")] if policy else []
    with pytest.raises(InputError) as refusal:
        page_layout.lay_out([*pages, page_rules.parse(request_rules)], KEYS, lambda field: fields[field], GROUPS)
    assert message in refusal.value.message


@pytest.mark.parametrize(
    ("request_rules", "size", "position"),
    [
        ({"most": {"shelf": 1}}, 4, 0),
        ({"most": {"shelf": 1}}, 5, 5),
        ({"most": {"brand": 1}}, 2, 0),
        ({"most": {"brand": 1}}, 3, 3),
        ({"most": {"brand": 1, "shelf": 1}}, 2, 0),
        ({"most": {"tags": 1}}, 5, 5),  # t and u are used up by the first arm alone
        ({"most": {"brand": 1}, "pin": {"1": "a0", "2": "a1"}}, 3, 3),
    ],
)
def test_rules_that_may_leave_no_arm_are_refused(request_rules: Any, size: int, position: int) -> None:
    layout = laid_out(request_rules)
    if not position:
        layout.check(size)
        return
    with pytest.raises(InputError, match=f"may leave no arm for position {position} of {size}"):
        layout.check(size)


def shelved(shelves: Sequence[Any], **request: Any) -> page_layout.PageLayout:
    """The rules of a request over arms on these shelves, by number."""
    keys = [str(number) for number in range(len(shelves))]
    return page_layout.lay_out([page_rules.parse(request)], keys, lambda field: [row[int(field)] for row in shelves])


@pytest.mark.parametrize(
    ("shelves", "limit", "pins", "room"),
    [
        ([(number % 12,) for number in range(60)], 2, {}, 24),
        ([(number % 12,) for number in range(60)], 2, {"1": "0", "2": "12", "7": "1"}, 24),
        ([(number % 40 if number % 41 else None,) for number in range(400)], 2, {"3": "0"}, 90),
    ],
)
def test_a_cap_has_room_up_to_its_limits(shelves: Any, limit: int, pins: Any, room: int) -> None:
    """Ten arms of the last row have no shelf."""
    layout = shelved(shelves, most={"0": limit}, pin=pins)
    layout.check(room)
    with pytest.raises(InputError, match=f"may leave no arm for position {room + 1} of {room + 9}"):
        layout.check(room + 9)


def test_room_under_two_caps_is_that_of_all_ways_or_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        shelves = [(int(a), tuple(range(int(b)))) for a, b in rng.integers(0, 4, (8, 2))]
        layout = shelved(shelves, most={"0": int(rng.integers(1, 3)), "1": int(rng.integers(1, 5))})
        members = np.bincount(layout.cell, minlength=len(layout.cell_counters))
        room, is_exact = layout._count_fillable(members, range(8))
        assert is_exact
        assert layout._count_sure(8) == (room, True)
        with monkeypatch.context() as patched:
            patched.setattr(page_layout, "_MAX_STATES", 0)
            n_sure, is_exact = layout._count_sure(8)
        assert n_sure == room if is_exact else n_sure <= room


def test_room_that_is_not_known_is_called_so() -> None:
    layout = shelved([(number % 12, number % 7) for number in range(84)], most={"0": 2, "1": 3})
    with pytest.raises(InputError, match=r"leave an arm for 1\d positions; whether for all 21 is not known"):
        layout.check(21)


@pytest.mark.parametrize("rule", [{"pin": {"4": "a0"}}, {"least": {"@odd": {"2": 0.1, "4": 0.2}}}])
def test_a_rule_below_the_page_is_refused(rule: Any) -> None:
    with pytest.raises(InputError, match=r"4.* of the request, and the page has 3 positions"):
        laid_out(rule).check(3)
    with pytest.raises(InputError, match=r"the page has 1 position\n"):
        laid_out(rule).check(1)
    if "least" in rule:
        laid_out({}, rule).check(3)  # that of a policy rests


def test_shares_that_hold_a_page_apart_need_no_room_beside_each_other() -> None:
    laid_out({"least": {"a0": {"1": 0.9}, "@odd": {"2": 0.9}}, "pin": {"3": "a1"}}, {"least": {"@none": 0.5}}).check(3)
    pinned = laid_out({"pin": {"1": "a1"}, "least": {"@odd": {"1": 0.5}}})  # the pin keeps it
    assert [(arms.tolist(), shares.tolist()) for arms, shares in pinned.least] == [([1, 3, 5], [0.5, 0.0])]
