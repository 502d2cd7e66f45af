"""What a decision remembers of its visit: the slots before it, and what was known of them at that moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rlrec.app.requests import recommend, session
from rlrec.app.requests.pipe import Line, Pipe, Request
from rlrec.app.serving import draws, open_sessions, requests
from rlrec.app.serving.open_sessions import HistoryReader, OpenSessions
from rlrec.errors import RlrecError
from rlrec.policy.gradients import history
from rlrec.policy.gradients.history import History
from rlrec.store import Store
from rlrec.store.log import decisions, settings
from tests.app.shop import MINUTE, SECOND, START, ask, clock, stocked, tell, version
from tests.conftest import ON_BOTH
from tests.policy import histories

KEYS = "abcde"  # of arms 1 to 5


@pytest.fixture
def shop(store: Store) -> Store:
    return stocked(clock(store, START), arms=KEYS, home="uniform/plain", dwell="uniform/dwell", other="uniform/plain")


def blob(store: Store, answer: Any) -> bytes:
    with store.read() as unit:
        result = decisions.find(unit, [answer["decision_id"]])[answer["decision_id"]].history
    assert result is not None
    return bytes(result)


def remembered(store: Store, answer: Any) -> tuple[float, int, float, list[tuple[str, int, float]]]:
    """Gap in seconds, slots shown before, their reward so far, and (arm, ago, reward) of those remembered."""
    packed = blob(store, answer)
    result = history.unpack([packed], [answer["step"]])
    entries = [(KEYS[arm - 1], ago, earned) for arm, ago, earned in histories.entries(packed)]
    return result.gap_s.item(), result.n_shown.item(), result.reward.item(), entries


def arms(answer: Any) -> list[str]:
    return [slot["arm"] for slot in answer["slate"]]


def test_a_decision_remembers_every_slot_before_it(shop: Store) -> None:
    first, second = ask(shop, size=2), ask(clock(shop, START + 3 * SECOND), "other")
    third = ask(clock(shop, START + 5 * SECOND))
    (a, b), (c,) = arms(first), arms(second)
    assert blob(shop, first) == b""
    assert remembered(shop, second) == (3, 2, 0, [(a, 1, 0), (b, 1, 0)])
    assert remembered(shop, third) == (2, 3, 0, [(a, 2, 0), (b, 2, 0), (c, 1, 0)])


def test_a_reward_that_came_later_is_not_in_the_state(shop: Store) -> None:
    first = ask(shop)
    second = ask(shop)
    tell(shop, first, click=1)
    third = ask(shop)
    tell(shop, second, click=3)
    assert [earned for *_, earned in remembered(shop, second)[3]] == [0]
    assert [earned for *_, earned in remembered(shop, third)[3]] == [1, 0]
    assert remembered(shop, third)[2] == 1


def test_only_events_inside_the_window_count(shop: Store) -> None:
    """By their own time, whenever they were received; the definition may count late ones in beliefs."""
    shown = [ask(shop) for _ in range(2)]
    clock(shop, START + 20 * MINUTE)
    tell(shop, shown[0], click=1, at=START + 10 * MINUTE)
    tell(shop, shown[1], click=1, at=START + 10 * MINUTE + 1)
    assert [earned for *_, earned in remembered(shop, ask(shop))[3]] == [1, 0]


def test_nothing_known_and_censored_are_the_default_reward(shop: Store) -> None:
    shown = [ask(shop, "dwell") for _ in range(4)]
    for slot in shown[1:3]:
        tell(shop, slot, dwell_s=100, unweighed=3)
        tell(shop, slot, censor=True)
    tell(shop, shown[2], censor=False)
    tell(shop, shown[3], unweighed=3)
    *_, reward, entries = remembered(shop, ask(shop, "dwell"))
    assert [earned for *_, earned in entries] == pytest.approx([0.1, 0.1, 1.3, 0.1])
    assert reward == pytest.approx(1.6)


def test_rewards_are_those_of_the_definition_that_decides(shop: Store) -> None:
    tell(shop, ask(shop), click=1, dwell_s=10)
    ask(shop, "dwell")
    assert [earned for *_, earned in remembered(shop, ask(shop, "dwell"))[3]] == pytest.approx([1.13, 0.1])
    assert [earned for *_, earned in remembered(shop, ask(shop, "home"))[3]] == [1, 0, 0]


def test_what_pages_earned_is_in_the_reward_so_far(shop: Store) -> None:
    first = ask(shop, size=2)
    tell(shop, first, 2, click=1)
    tell(shop, first, None, click=5)
    *_, reward, entries = remembered(shop, ask(shop))
    assert (reward, [earned for *_, earned in entries]) == (6, [0, 1])


def test_the_last_64_slots_are_remembered(shop: Store) -> None:
    shown = [ask(shop, size=5) for _ in range(14)]
    tell(shop, shown[0], 5, click=1)
    tell(shop, shown[0], None, click=1)
    tell(shop, shown[1], 1, click=9)
    tell(shop, shown[1], 2, click=1)
    _, count, reward, entries = remembered(shop, ask(shop))
    assert (count, len(entries), reward) == (70, history.N_REMEMBERED, 1)
    assert [(arm, ago) for arm, ago, _ in entries] == [
        (arm, 14 - step) for step, slot in enumerate(shown) for arm in arms(slot)
    ][-64:]


def test_a_long_visit_remembers_how_long_ago(shop: Store) -> None:
    """Past the steps that a memory tells apart."""
    shown = group(shop, *[request()] * 140)
    *_, entries = remembered(shop, ask(shop))
    assert [(arm, ago) for arm, ago, _ in entries] == [(arms(shown[140 - ago])[0], ago) for ago in range(64, 0, -1)]


def test_of_a_long_page_the_last_slots_are_remembered(store: Store) -> None:
    """With the positions that they had: an event about one of them is found."""
    keys = [f"k{number:02}" for number in range(80)]
    shop = stocked(clock(store, START), arms=keys, home="uniform/plain")
    first = ask(shop, size=70)
    for position, worth in ((6, 1), (7, 2), (70, 3)):
        tell(shop, first, position, click=worth)
    entries = histories.entries(blob(shop, ask(shop)))
    assert [keys[arm - 1] for arm, *_ in entries] == arms(first)[6:]
    assert [earned for *_, earned in entries] == [2, *[0] * 62, 3]


@pytest.mark.parametrize(("position", "retained"), [(1, 1), (2**17 - 1, 2**17 - 1), (2**17 + 5, 2**17 - 1)])
def test_a_memory_holds_numbers_of_any_size(position: int, retained: int) -> None:
    slot = (np.array([number]) for number in (2**40 - 1, 2**20 + 3, position, 2**32 - 1))
    columns = open_sessions.unpack_slots([open_sessions.pack(*slot).tobytes()])
    assert [column.item() for column in columns] == [2**40 - 1, retained, 3, 2**32 - 1]


def test_visit_2_starts_with_nothing(shop: Store) -> None:
    ask(shop)
    ask(shop, session="t")
    session.end(shop, "s")
    assert blob(shop, ask(shop)) == b""
    clock(shop, START + 31 * MINUTE)
    again = ask(shop, session="t")
    assert (blob(shop, again), again["visit"]) == (b"", 2)
    assert remembered(shop, ask(shop, session="t"))[1] == 1


def test_only_a_visit_that_goes_on_stores_what_it_has_shown(shop: Store) -> None:
    """Of up to 64 slots without their number, which follows from the bytes."""

    def stored(name: str) -> list[tuple[str, int]]:
        query = "SELECT recent, length(history) FROM visit v JOIN session s ON s.id = session_id WHERE key = ?"
        with shop.read() as unit:
            return [(recent, size or 0) for recent, size in unit.ask(f"{query} ORDER BY number", name)]

    shown = arms(ask(shop, size=2)), arms(ask(shop, session="t"))
    assert stored("s") == [(str(shown[0]).replace("'", '"').replace(" ", ""), 24)]
    session.end(shop, "s")
    clock(shop, START + 31 * MINUTE)
    for _ in range(13):
        ask(shop, session="t", size=5)
    assert stored("s") == [("[]", 0)]
    assert [size for _, size in stored("t")] == [0, open_sessions.COUNT_BYTES + 64 * open_sessions.SLOT_BYTES]
    assert stored("t")[0][0] == "[]"


# -- groups --


def group(store: Store, *lines: Any) -> list[Any]:
    return Pipe(store).group(lines)


def request(name: str = "s", **options: Any) -> Request:
    return Request(policy="home", session=name, **options)


def test_a_second_line_of_one_session_in_a_group_sees_the_first(shop: Store) -> None:
    first, strange, second, third = group(shop, request(size=2), request("t"), request(), request())
    (a, b), (c,) = arms(first), arms(second)
    assert blob(shop, strange) == b""
    assert remembered(shop, second) == (0, 2, 0, [(a, 1, 0), (b, 1, 0)])
    assert remembered(shop, third)[3] == [(a, 2, 0), (b, 2, 0), (c, 1, 0)]


def test_events_of_the_same_group_are_not_known(shop: Store) -> None:
    before = ask(shop)
    reported = Line(decision_id=before["decision_id"], events={"click": 1.0})
    _, second, _, third = group(shop, reported, request(), reported, request())
    assert [earned for *_, earned in remembered(shop, second)[3] + remembered(shop, third)[3]] == [0, 0, 0]
    assert [earned for *_, earned in remembered(shop, ask(shop))[3]] == [2, 0, 0]


@ON_BOTH
def test_events_of_others_between_ones_own_do_not_mix(shop: Store) -> None:
    """Whether decisions lie close together, where a range of events is read, or far apart."""
    early = [ask(shop, session=name) for name in "st"]
    for number in range(20):
        tell(shop, ask(shop, session=f"x{number}"), click=7)
    late = [ask(shop, session=name) for name in "st"]
    for worth, item in enumerate(early + late):
        tell(shop, item, click=worth)
    result = group(shop, *(request(name) for name in "st"))
    assert [[earned for *_, earned in remembered(shop, row)[3]] for row in result] == [[0, 2], [1, 3]]


@ON_BOTH
def test_an_open_visit_from_before_histories_were_kept_is_remembered(shop: Store) -> None:
    expected = [(arm, 3 - step, 0.0) for step in range(3) for arm in arms(ask(shop, size=2))]
    shop.write(lambda unit: unit.tell("UPDATE visit SET history = NULL"))
    assert remembered(shop, ask(shop))[3] == expected
    assert remembered(shop, ask(shop))[1] == 7


# -- for those who only look, and for kinds that read the visit --


@ON_BOTH
def test_a_broken_memory_is_told_in_one_line(shop: Store) -> None:
    ask(shop)
    broken = b"\0" * 21
    shop.write(lambda unit: unit.tell("UPDATE visit SET history = ?", broken))
    with pytest.raises(RlrecError, match="is damaged") as refused:
        ask(shop)
    assert "session end s" in str(refused.value.hint)
    session.end(shop, "s")
    assert blob(shop, ask(shop)) == b""


def test_of_a_long_visit_from_before_the_last_slots_are_remembered(shop: Store) -> None:
    shown = [arm for _ in range(15) for arm in arms(ask(shop, size=5))]
    shop.write(lambda unit: unit.tell("UPDATE visit SET history = NULL"))
    _, count, _, entries = remembered(shop, ask(shop))
    assert (count, [arm for arm, *_ in entries]) == (75, shown[-64:])


def test_what_a_session_would_be_can_be_looked_at(shop: Store) -> None:
    ask(shop, size=2)
    tell(shop, ask(shop), click=1)
    clock(shop, START + SECOND)
    with shop.read() as unit:
        opened = OpenSessions(unit, settings.get(unit), [("s", None), ("new", "u")], read_only=True)
        arrived = opened.arrive(["s", "new"])
        definition = version(unit, "home").reward
        observed = HistoryReader(opened, [definition]).histories(arrived, [definition] * 2)
        steps, names = [opened.steps[row] for row in arrived], unit.ask_value("SELECT count(*) FROM session")
    assert (steps, names) == ([2, 0], 1)
    assert observed.to_bytes() == [blob(shop, ask(shop)), b""]


def test_what_reads_the_visit_is_drawn_in_its_turn(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a session its second line is drawn when the first one has been shown."""
    turns: list[tuple[Sequence[int], list[int], list[bytes]]] = []

    def spy(plans: Any, ids: Any, *options: Any, histories: History | None = None) -> Any:
        if histories is not None:
            turns.append((list(plans), histories.step.tolist(), histories.to_bytes()))
        return draws.draw(plans, ids, *options)

    reads_visits = property(lambda shared: shared.version.policy.name == "home")
    monkeypatch.setattr(requests.SharedDistribution, "is_stateful", reads_visits)
    monkeypatch.setattr(recommend, "draw", spy)
    result = group(shop, request(), request("t"), Request(policy="other", session="s"), request(), request("t"))
    assert [(places, steps) for places, steps, _ in turns] == [([0, 1], [0, 0]), ([4], [1]), ([3], [2])]
    assert turns[1][2] + turns[2][2] == [blob(shop, result[4]), blob(shop, result[3])]
