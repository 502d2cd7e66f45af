"""Time: the clock of a command, visits, windows, and what a group and a seed see of the past."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from rlrec.app.policies import versions
from rlrec.app.requests import settle
from rlrec.app.requests.recommend import Answer, Request, recommend_group
from rlrec.errors import InputError
from rlrec.store import Store
from rlrec.store.database import engine as engines
from rlrec.store.database import tables
from rlrec.store.log import decisions
from rlrec.times import format_time
from tests.app.shop import MINUTE, SECOND, START, ask, clock, stocked, sums, tell, version
from tests.conftest import ON_BOTH, Run

WINDOW = 10 * MINUTE  # of every reward in the shop


def answers(store: Store, requests: list[Request], **options: Any) -> list[Answer]:
    result = recommend_group(store, requests, **options)
    assert not [row for row in result if isinstance(row, InputError)]
    return result  # type: ignore[return-value]


def pulls(store: Store, name: str, number: int | None = None) -> float:
    return sum(row[0] for row in sums(store, name, number).values())


# -- the clock of a command --


@ON_BOTH
def test_now_is_the_clock_of_a_command(run: Run) -> None:
    run("arm", "add", "a")
    run("--now", "2026-01-01T00:00:00Z", "policy", "create", "home", "--kind", "uniform")
    words = ["recommend", "--policy", "home", "--session", "s", "--json"]
    assert run("--now", "2026-01-01T00:00:05Z", *words).json["at"] == "2026-01-01T00:00:05.000000Z"
    assert run(*words, env={"RLREC_NOW": "2026-01-02"}).json["at"] == "2026-01-02T00:00:00.000000Z"


def test_now_lies_not_before_the_newest_decision(store: Store) -> None:
    stocked(clock(store, START), home="uniform")
    ask(store)
    assert ask(store)["at"] == format_time(START)
    with pytest.raises(InputError, match=f"before the newest decision of .*, {format_time(START)}"):
        ask(clock(store, START - 1))


def test_a_clock_that_went_back_stands_still(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stocked(clock(store, START), home="uniform")
    first = ask(store)
    reported: list[str] = []
    clock(store, None).notice = reported.append
    monkeypatch.setattr(engines, "clock", lambda _: START - 5 * SECOND)
    assert ask(store)["at"] == format_time(START)
    assert tell(store, first, click=1).events == 1
    assert reported
    assert "lies ahead of the clock" in reported[0]


@ON_BOTH
def test_an_imported_decision_does_not_move_the_clock(store: Store) -> None:
    stocked(clock(store, START), home="uniform")
    ask(store)
    store.write(lambda unit: unit.tell(f"UPDATE decision SET imported = 1, at = {START + MINUTE}"))
    assert ask(clock(store, START + 1))["at"] == format_time(START + 1)


def test_an_event_lies_between_its_decision_and_now(store: Store) -> None:
    stocked(clock(store, START), home="uniform")
    shown = ask(store)
    clock(store, START + MINUTE)
    for at in (START, START + MINUTE):
        assert tell(store, shown, click=1, at=at).events == 1
    for at in (START - 1, START + MINUTE + 1):
        with pytest.raises(InputError, match=r"before decision|in the future"):
            tell(store, shown, click=1, at=at)


# -- visits --


def test_a_visit_ends_after_half_an_hour_without_a_decision(store: Store) -> None:
    stocked(clock(store, START), home="uniform")
    times = [0, 30, 60, 90]  # minutes: each within half an hour of the one before
    observed = [ask(clock(store, START + t * MINUTE)) for t in times]
    observed.append(ask(clock(store, START + 120 * MINUTE + 1)))
    assert [(answer["visit"], answer["step"]) for answer in observed] == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]


def test_another_timeout_holds_for_the_whole_store(run_sqlite: Run, tmp_path: Any) -> None:
    from tests.conftest import runner

    run = runner(str(tmp_path / "quick.db"))
    run("init", "--session-timeout", "10s")
    run("arm", "add", "a")
    run("--now", "2026-01-01", "policy", "create", "home", "--kind", "uniform")
    words = ["recommend", "--policy", "home", "--session", "s", "--json"]
    times = ["2026-01-01T00:00:00Z", "2026-01-01T00:00:10Z", "2026-01-01T00:00:20.000001Z"]
    assert [run("--now", time, *words).json["visit"] for time in times] == [1, 1, 2]


def test_steps_count_a_visit_over_all_policies(store: Store) -> None:
    stocked(clock(store, START), home="uniform", other="thompson")
    observed = [ask(store, name, "s") for name in ("home", "other", "home")]
    assert [answer["step"] for answer in observed] == [0, 1, 2]


# -- maturity --


def test_maturity_is_by_age_alone(store: Store) -> None:
    stocked(clock(store, START), home="uniform/plain")
    clicked, silent = ask(store), ask(store)
    tell(store, clicked, click=1)
    versions.freeze(clock(store, START + WINDOW), "home")
    versions.freeze(clock(store, START + WINDOW + 1), "home")
    assert (pulls(store, "home", 2), pulls(store, "home", 3)) == (0, 2)
    assert clicked["decision_id"] != silent["decision_id"]


def test_a_served_decision_counts_at_once_and_a_settled_one_after_its_window(store: Store) -> None:
    stocked(clock(store, START), counted="uniform/counted", settled="uniform/settled")
    shown = [ask(store, name, size=2) for name in ("counted", "settled")]
    assert (pulls(store, "counted"), pulls(store, "settled")) == (2, 0)
    for slot in shown:
        tell(store, slot, 1, click=1)
    assert (pulls(store, "counted"), pulls(store, "settled")) == (2, 0)
    assert settle.settle(clock(store, START + WINDOW)) == settle.Result(settled=0, open=2)
    assert settle.settle(clock(store, START + WINDOW + 1)) == settle.Result(settled=2, open=0)
    assert sorted(row[:2] for row in sums(store, "settled").values()) == [(1, 0), (1, 1)]


def test_an_event_inside_the_window_that_comes_after_settling_corrects(store: Store) -> None:
    stocked(clock(store, START), settled="uniform/settled")
    shown = ask(store, "settled")
    settle.settle(clock(store, START + WINDOW + 1))
    tell(store, shown, click=1, at=START + MINUTE)
    assert list(sums(store, "settled").values()) == [(1, 1, 1)]


def test_a_line_that_is_refused_settles_nothing(store: Store) -> None:
    stocked(clock(store, START), settled="uniform/settled")
    shown = ask(store, "settled")
    with pytest.raises(InputError, match="before decision"):
        tell(clock(store, START + WINDOW + 1), shown, click=1, at=START - 1)
    assert pulls(store, "settled") == 0


@pytest.mark.parametrize("size", [1, 3])
def test_a_command_settles_at_most_a_thousand_slots(store: Store, size: int) -> None:
    stocked(clock(store, START), settled="uniform/settled", home="uniform")
    answers(store, [Request(policy="settled", session=f"s{i}", size=size) for i in range(1003)])
    ask(clock(store, START + WINDOW + 1), "home")
    assert pulls(store, "settled") == 0
    shown = ask(store, "settled", "s0")
    assert pulls(store, "settled") == 1000 // size * size
    before = pulls(store, "settled")
    tell(store, shown, click=1)
    assert pulls(store, "settled") == min(1003 * size, before + 1000 // size * size)


@ON_BOTH
def test_looking_never_settles(store: Store) -> None:
    from rlrec.app.policies import policy_beliefs

    stocked(clock(store, START), settled="uniform/settled")
    ask(store, "settled")
    policy_beliefs.show(clock(store, START + WINDOW + 1), "settled")
    recommend_group(store, [Request(policy="settled", session="s")], dry_run=True)
    assert pulls(store, "settled") == 0
    ask(store, "settled")
    assert pulls(store, "settled") == 1


# -- groups and seeds --


def test_a_group_is_drawn_from_the_belief_before_it(store: Store) -> None:
    stocked(clock(store, START), home="thompson")
    group = [Request(policy="home", session=f"s{i % 2}") for i in range(6)]
    first, second = answers(store, group, seed=1), answers(store, group, seed=2)
    assert [answer["slate"][0]["propensity"] for answer in first] == pytest.approx([0.2] * 6, abs=1e-12)
    with store.read() as unit:
        result = decisions.find(unit, [answer["decision_id"] for answer in [*first, *second]])
    assert [(row.belief_seq, row.seq) for row in result.values()] == [(0, 1)] * 6 + [(1, 2)] * 6
    assert pulls(store, "home") == 12
    assert len({answer["slate"][0]["propensity"] for answer in second}) > 1


def test_a_second_line_of_a_session_sees_the_first(store: Store) -> None:
    stocked(clock(store, START), home="uniform")
    first, other, second = answers(store, [Request(policy="home", session=key) for key in ("s", "t", "s")])
    assert [answer["step"] for answer in (first, other, second)] == [0, 0, 1]
    with store.read() as unit:
        states = [row[0] for row in unit.rows(sa.select(tables.decision.c.state).order_by(tables.decision.c.id))]
    assert states[0] == states[1] == '{"step":0}'
    assert f'"recent":["{first["slate"][0]["arm"]}"]' in states[2]


def test_a_repeated_request_id_in_a_group_is_a_duplicate(store: Store) -> None:
    stocked(clock(store, START), home="uniform")
    first, again = answers(store, [Request(policy="home", session="s", request_id="r")] * 2)
    assert again == first | {"duplicate": True}
    assert pulls(store, "home") == 1


def test_the_same_store_and_seed_draw_the_same(store: Store) -> None:
    stocked(clock(store, START), home="thompson")
    request = Request(policy="home", session="s", size=3)
    dry = answers(store, [request], seed=7, dry_run=True)
    assert answers(store, [request], seed=7, dry_run=True) == dry
    assert answers(store, [request], seed=7)[0]["slate"] == dry[0]["slate"]


def test_the_next_decision_under_a_seed_is_another_draw(store: Store) -> None:
    stocked(clock(store, START), home="uniform")
    result = answers(store, [Request(policy="home", session="s") for _ in range(40)], seed=7)
    assert {answer["slate"][0]["arm"] for answer in result} == set("abcde")  # false alarm: 5 * 0.8**40 = 7e-4, seeded


@ON_BOTH
def test_changes_of_the_catalogue_are_seen_by_the_next_draw_alone(store: Store) -> None:
    from rlrec.app.setup import arm

    stocked(clock(store, START), home="uniform")
    ask(store)
    arm.retire(store, ["a", "b", "c"], is_retired=True)
    assert ask(store)["slate"][0]["propensity"] == 0.5
    arm.retire(store, ["c"], is_retired=False)
    assert ask(store)["slate"][0]["propensity"] == pytest.approx(1 / 3, abs=1e-15)
    with store.read() as unit:
        revisions = [row[0] for row in unit.rows(sa.select(tables.decision.c.catalogue_revision))]
        assert version(unit, "home").number == 1
    assert revisions == [1, 2, 3]
