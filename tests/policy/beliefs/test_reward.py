"""What events are worth."""

from __future__ import annotations

from functools import partial
from itertools import permutations
from math import log, log1p
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlrec.errors import InputError
from rlrec.policy.beliefs import reward as rewards
from rlrec.records import Event, Reward, Transform

LOG, CAP, BOTH = Transform(log1p=True), Transform(cap=2.0), Transform(log1p=True, cap=600.0)


def definition(**changed: Any) -> Reward:
    belief: dict[str, Any] = {
        "id": 1, "name": "r", "weights": {"click": 1.0, "dwell_s": 0.01}, "window_us": 1000, "default": -0.5,
        "clip_low": None, "clip_high": None, "learn": "served", "late": "count",
    }  # fmt: skip
    return Reward(**belief | changed)


def event(kind: str, value: float = 1.0, *, at: int = 0, received_at: int = 10**9, position: int | None = 1) -> Event:
    return Event(decision_id=1, position=position, kind=kind, value=value, at=at, received_at=received_at)


def worth_of_page(item: Reward, events: list[Event]) -> float:
    return rewards.rewards_of(item, events, served_at=0, slots=())[None]


def worth(events: list[Event], *, settled_only: bool = False, **changed: Any) -> float:
    return rewards.slot_reward(definition(**changed), events, served_at=0, settled_only=settled_only)


def test_the_default_is_the_reward_where_no_weighed_event_came() -> None:
    assert worth([]) == -0.5
    assert worth([event("other")]) == -0.5
    assert worth([event("click"), event("other")]) == 1


def test_an_event_worth_nothing_is_not_silence() -> None:
    assert worth([event("click", 0)]) == 0
    assert worth([event("click"), event("click", -1)]) == 0


def test_the_order_of_events_does_not_matter() -> None:
    events = [event("click", 0.1), event("click", 1e15), event("dwell_s", 30.3), event("click", -1e15)]
    assert len({worth(list(order)) for order in permutations(events)}) == 1


def test_only_the_sum_is_clipped() -> None:
    events = [event("click", 3), event("click", -2.5)]
    assert worth(events, clip_low=0.0, clip_high=1.0) == 0.5
    assert worth(events[:1], clip_low=0.0, clip_high=1.0) == 1
    assert worth([], clip_low=0.0, clip_high=1.0) == -0.5  # the default is no sum


@pytest.mark.parametrize(("at", "counts"), [(0, True), (1000, True), (1001, False)])
def test_the_window_is_closed_and_goes_by_the_events_own_time(at: int, counts: bool) -> None:
    expected = 1.0 if counts else -0.5
    assert worth([event("click", at=at)], late="ignore") == expected
    assert worth([event("click", at=at)], settled_only=True) == expected
    assert worth([event("click", at=at, received_at=at)]) == 1


def test_a_page_has_no_default_and_no_clip() -> None:
    item = definition(clip_low=0.0, clip_high=1.0, late="ignore")
    assert worth_of_page(item, []) == 0
    at_page = partial(event, position=None)
    assert worth_of_page(item, [at_page("click", 3), at_page("dwell_s", 50), at_page("click", at=2000)]) == 3.5


@pytest.mark.parametrize(
    ("values", "cut"), [([1e100, 1e100], 1e100), ([-1e100] * 3, -1e100), ([1e100, -1e100, 2.0], 2.0)]
)
def test_a_reward_is_cut_where_its_square_would_overflow(values: list[float], cut: float) -> None:
    """The doors refuse larger values; their sum, stored once, can always be read."""
    assert worth([event("click", value) for value in values]) == cut


def test_values_beyond_the_bound_may_not_enter() -> None:
    assert [rewards.is_bounded(value) for value in (1e100, -1e100, 1.1e100, float("inf"), float("nan"))] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_bounds_hold_the_default_too() -> None:
    assert rewards.bounds(definition()) is None
    assert rewards.bounds(definition(clip_low=0.0, clip_high=1.0)) == (-0.5, 1)
    assert rewards.bounds(definition(clip_low=0.0, clip_high=1.0, default=2.0)) == (0, 2)


@pytest.mark.parametrize("bad", [{}, {"click": float("nan")}, {"click": float("inf")}])
def test_weights_are_finite_and_at_least_one(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        rewards.weights(bad)


def test_a_sum_is_capped_then_its_logarithm_is_weighed() -> None:
    changed: dict[str, Any] = {"weights": {"click": 3.0, "dwell_s": 0.5}, "transforms": {"dwell_s": BOTH}}
    events = [event("dwell_s", 400), event("click"), event("dwell_s", 500), event("click")]
    assert worth(events, **changed) == pytest.approx(6 + 0.5 * log(601))
    assert worth(events[:1], **changed) == pytest.approx(0.5 * log(401))
    assert worth([event("click", 3)], transforms={"click": CAP}) == 2


def test_a_logarithm_keeps_the_sign() -> None:
    assert worth([event("click", -3)], transforms={"click": LOG}) == -log1p(3)
    assert worth([event("click", 0)], transforms={"click": LOG}) == 0
    assert worth([event("click", -1e100)] * 2, transforms={"click": LOG}) == pytest.approx(-log(2e100))


def test_a_transform_does_not_make_order_matter() -> None:
    events = [event("click", 0.1), event("click", 1e15), event("dwell_s", 30.3), event("click", -1e15)]
    shaped = {"click": LOG, "dwell_s": CAP}
    assert len({worth(list(order), transforms=shaped) for order in permutations(events)}) == 1


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 4), st.sampled_from(["click", "dwell_s", "other"]), st.floats(-1e6, 1e6), st.integers(0, 2000)
    ),
    max_size=20,
)


TRANSFORMS = st.dictionaries(st.sampled_from(["click", "dwell_s"]), st.sampled_from([LOG, CAP, BOTH]))


def columns(item: Reward, drawn: list[tuple[int, str, float, int]]) -> dict[str, Any]:
    kinds = list(item.weights)
    return {
        "kind": np.array([kinds.index(row[1]) if row[1] in kinds else -1 for row in drawn], np.int64),
        "value": np.array([row[2] for row in drawn], np.float64),
        "age_us": np.array([row[3] for row in drawn], np.int64),
    }


# the same examples in every run, however long one takes
STEADY = settings(
    max_examples=50, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.slow
@STEADY
@given(EVENTS, TRANSFORMS, st.sampled_from(["count", "ignore"]), st.booleans(), st.booleans())
def test_arrays_say_what_single_slots_say(
    drawn: list[tuple[int, str, float, int]],
    transforms: dict[str, Transform],
    late: str,
    clip: bool,
    settled_only: bool,
) -> None:
    item = definition(late=late, transforms=transforms, **({"clip_low": 0.0, "clip_high": 1.0} if clip else {}))
    events = [[event(kind, value, at=at) for slot, kind, value, at in drawn if slot == n] for n in range(5)]
    single = [rewards.slot_reward(item, effect, served_at=0, settled_only=settled_only) for effect in events]
    result, default = rewards.slot_rewards(
        item, n=5, slot=np.array([row[0] for row in drawn], np.int64), settled_only=settled_only, **columns(item, drawn)
    )
    assert result == pytest.approx(single, abs=1e-9, rel=1e-9)
    assert result[default].tolist() == [-0.5] * int(default.sum())


@STEADY
@given(EVENTS, TRANSFORMS)
def test_arrays_say_what_single_pages_say(
    drawn: list[tuple[int, str, float, int]], transforms: dict[str, Transform]
) -> None:
    item = definition(transforms=transforms, late="ignore")
    at_page = partial(event, position=None)
    events = [[at_page(kind, value, at=at) for page, kind, value, at in drawn if page == n] for n in range(5)]
    single = [worth_of_page(item, effect) for effect in events]
    page = np.array([row[0] for row in drawn], np.int64)
    result = rewards.page_rewards(item, n=5, page=page, **columns(item, drawn))
    assert result == pytest.approx(single, abs=1e-9, rel=1e-9)


def test_the_way_into_the_unit_interval_speaks_of_values_above_1() -> None:
    """Of ratings, prices and seconds; a click is 1."""
    stars = Reward(id=2, name="stars", weights={"reward": 1.0}, window_us=1_800_000_000, default=0.0, clip_low=None,
                   clip_high=None, learn="served", late="count")  # fmt: skip
    assert "cuts what is above (where reward goes up to 5, divide by 5 again)" in rewards.within_unit_hint(stars)
    assert "where revenue goes" in rewards.within_unit_hint(stars._replace(weights={"click": 1.0, "revenue": 2.0}))
    assert "divide" not in rewards.within_unit_hint(stars._replace(weights={"click": 1.0}))
    assert "reward=0.2" in rewards.within_unit_hint(stars._replace(clip_low=0.0, clip_high=5.0))
