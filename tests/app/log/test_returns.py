"""Users who come back: the last decision of their visit before gets the event `return`, once."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from rlrec.app.policies import policy, rebuild, train
from rlrec.app.requests import session, settle
from rlrec.app.requests.pipe import Pipe, Request
from rlrec.app.serving.requests import Answer
from rlrec.app.setup import reward, simulate
from rlrec.app.upkeep.doctor import Request as Audit
from rlrec.app.upkeep.doctor import doctor
from rlrec.errors import InputError
from rlrec.store import Store, Unit
from rlrec.store.log import events, selected
from rlrec.store.log.selected import Selection
from rlrec.times import format_time, parse
from tests.app import workers
from tests.app.shop import MINUTE, START, added_up, apart, ask, clock, stocked, sums, tell
from tests.conftest import runner

DAY = 24 * 60 * MINUTE
VISITS = 8  # a process; was run with 60
DURABLE = reward.Request(name="durable", weights="click=0.25, return=1", window_us=7 * DAY)


@pytest.fixture
def shop(store: Store) -> Store:
    """Policies that learn from returns, at START."""
    clock(store, START)
    reward.define(store, DURABLE)
    return stocked(store, home="epsilon-greedy/durable", other="epsilon-greedy/durable", plain="uniform")


def visit(store: Store, at: int, *, user: str | None = "u", session: str | None = None, **options: Any) -> Answer:
    """A decision at a time, in a session of its own unless one is named."""
    return ask(clock(store, at), session=session or f"{user} at {at}", user=user, **options)


def returns(store: Store) -> dict[int, list[tuple[int | None, int]]]:
    """Position and time of the events `return` of each decision."""
    with store.read() as unit:
        stored = events.by_decision(unit, [*range(1, 2_000)], ["return"])
    return {
        decision: [(event.position, event.at) for event in of_decision if event.kind == "return"]
        for decision, of_decision in stored.items()
    }


def sound(store: Store, *names: str) -> bool:
    """Whether beliefs are what the log adds up to, and no finding is worse than info."""
    findings = doctor(store, Audit()).findings
    assert [finding for finding in findings if finding.severity == "error" or finding.check == "returns"] == []
    return all(apart(sums(store, name), added_up(store, name)) < 1e-9 for name in names)


def test_the_last_decision_of_the_visit_before_is_credited_in_the_transaction_of_the_next(shop: Store) -> None:
    visit(shop, START, session="a")
    last = visit(shop, START + MINUTE, session="a")
    assert returns(shop) == {}
    visit(shop, START + DAY)
    assert returns(shop) == {last["decision_id"]: [(1, START + DAY)]}
    assert sum(row[1] for row in sums(shop, "home").values()) == 1
    assert sound(shop, "home")


def test_each_visit_credits_the_one_before_across_sessions_and_policies(shop: Store) -> None:
    answers = [
        visit(shop, START, session="a"), visit(shop, START + DAY, name="other"),
        visit(shop, START + 2 * DAY, session="a", name="plain"), visit(shop, START + 3 * DAY, name="other"),
    ]  # fmt: skip
    assert list(returns(shop)) == [answer["decision_id"] for answer in answers[:3]]
    assert sound(shop, "home", "other", "plain")


def test_a_visit_that_goes_on_elsewhere_is_no_return(shop: Store) -> None:
    visit(shop, START, session="phone")
    visit(shop, START + MINUTE, session="desk")
    visit(
        shop, START + 31 * MINUTE, session="phone"
    )  # 31 minutes after the visit on the phone, 30 after that at the desk
    assert returns(shop) == {}
    session.end(clock(shop, START + 32 * MINUTE), "phone")
    visit(shop, START + 32 * MINUTE, session="train")
    assert returns(shop) == {}
    assert sound(shop)


def test_an_ended_visit_is_over(shop: Store) -> None:
    last = visit(shop, START, session="a")
    session.end(clock(shop, START + MINUTE), "a")
    visit(shop, START + 2 * MINUTE, session="a")
    assert list(returns(shop)) == [last["decision_id"]]
    assert sound(shop)


def test_nobody_returns_without_a_name(shop: Store) -> None:
    visit(shop, START, user=None, session="a")
    visit(shop, START + DAY, user=None, session="a")
    visit(shop, START + 2 * DAY, user="u")
    visit(shop, START + 2 * DAY, user="v")
    assert returns(shop) == {}
    assert sound(shop)


def test_a_visit_whose_user_is_named_later_counts_from_its_beginning(shop: Store) -> None:
    last = visit(shop, START)
    visit(shop, START + DAY, user=None, session="b")
    visit(shop, START + DAY + MINUTE, session="b")
    visit(shop, START + DAY + 2 * MINUTE, session="b")
    assert returns(shop) == {last["decision_id"]: [(1, START + DAY)]}
    assert sound(shop)


def test_a_page_is_credited_as_a_page(shop: Store) -> None:
    last = visit(shop, START, size=3)
    visit(shop, START + DAY, size=3)
    assert returns(shop) == {last["decision_id"]: [(None, START + DAY)]}
    assert sum(row[1] for row in sums(shop, "home").values()) == 0
    assert sound(shop, "home")


def test_a_retry_returns_once(shop: Store) -> None:
    last = visit(shop, START)
    for _ in range(3):
        visit(shop, START + DAY, request_id="r")
    assert returns(shop) == {last["decision_id"]: [(1, START + DAY)]}


def test_nothing_is_recorded_where_no_reward_weighs_it(store: Store) -> None:
    stocked(clock(store, START), home="uniform")
    visit(store, START)
    visit(store, START + DAY)
    with store.read() as unit:
        assert unit.ask("SELECT * FROM last_decision") == []
    assert returns(store) == {}


def test_a_definition_credits_the_visits_before_it(store: Store) -> None:
    stocked(clock(store, START), home="epsilon-greedy", other="uniform")
    answers = [visit(store, START + day * DAY, name=("home", "other")[day % 2]) for day in range(4)]
    visit(store, START + 3 * DAY, user="v")
    for _ in range(2):
        reward.define(store, DURABLE)
    reward.define(store, reward.Request(name="again", weights="return=2"))
    assert list(returns(store)) == [answer["decision_id"] for answer in answers[:3]]
    visit(store, START + 4 * DAY)
    assert returns(store)[answers[3]["decision_id"]] == [(1, START + 4 * DAY)]
    rebuild.rebuild(store, rebuild.Request(reference="home", reward="durable"))
    assert sound(store, "home")


def test_a_belief_with_returns_is_rebuilt_exactly(shop: Store) -> None:
    for day, user in enumerate("uvuuvvu"):
        answer = visit(shop, START + day * DAY, user=user)
        tell(shop, answer, 1, click=1)
    rebuild.rebuild(shop, rebuild.Request(reference="home", reward="durable"))
    assert sums(shop, "home", 2) == sums(shop, "home", 1)
    assert sound(shop, "home")


@pytest.mark.parametrize("order", [*permutations(range(3))])
def test_events_come_in_any_order(shop: Store, order: tuple[int, ...]) -> None:
    """A click, a return and a censored slot put back: the belief is the same, whichever comes first."""
    last = visit(shop, START)
    steps: list[Callable[[], object]] = [
        lambda: tell(shop, last, 1, click=1),
        lambda: visit(shop, START + DAY, name="other"),
        lambda: [tell(shop, last, 1, censor=censor) for censor in (True, False)],
    ]
    clock(shop, START + DAY)
    for index in order:
        steps[index]()
    assert [row[:2] for row in sums(shop, "home").values()] == [(1, 1.25)]
    assert sound(shop, "home")


@pytest.mark.slow
def test_returns_are_recorded_once_by_many_processes(store: Store, db: str) -> None:
    """Visits of three users by five processes, policy by policy: every return has its one event, however close others
    are; the beliefs of all policies are what the log adds up to."""
    reward.define(store, DURABLE)
    names = ("home", "other", "third")
    stocked(store, **dict.fromkeys(names, "epsilon-greedy/durable"))
    workers.together(workers.visits, db, [(number, VISITS, names) for number in range(5)])
    assert 0 < sum(map(len, returns(store).values())) < 5 * VISITS
    with store.read() as unit:
        assert unit.ask_value("SELECT count(*) FROM last_decision") == 3
    assert sound(store, *names)


@pytest.mark.slow
def test_a_return_counts_once_by_hand_or_by_itself(store: Store, db: str) -> None:
    """Five users, whose returns are recorded by hand until a definition weighs them: whichever comes first, a visit has
    one event."""
    store.notice = lambda line: None
    stocked(store, home="epsilon-greedy")
    by_hand = workers.together(workers.returns_by_hand, db, [(number, VISITS) for number in range(5)])
    accepted = {decision: hand for of_user in by_hand for decision, hand in of_user.items()}
    assert {True, False} == {*accepted.values()}
    assert {decision: len(events) for decision, events in returns(store).items()} == dict.fromkeys(accepted, 1)
    rebuild.rebuild(store, rebuild.Request(reference="home", reward="durable"))
    assert sound(store, "home")


def test_a_return_by_hand_is_refused_where_it_records_itself(shop: Store) -> None:
    """Also in a line that tells more, and before the user comes back; imported visits have no other one."""
    last = visit(shop, START)
    for at in (START, START + DAY):
        clock(shop, at)
        for values in ({"return": 1}, {"click": 1, "return": 1}):
            with pytest.raises(InputError, match="recorded automatically"):
                tell(shop, last, 1, **values)
        visit(shop, START + DAY)
    assert returns(shop) == {last["decision_id"]: [(1, START + DAY)]}
    assert sound(shop, "home")


def test_a_return_by_hand_from_before_the_definition_stands_for_the_visit(store: Store) -> None:
    """A retry of its line is a duplicate, whatever weighs the event by now."""
    stocked(clock(store, START), home="epsilon-greedy")
    store.notice = lambda line: None
    last = visit(store, START)
    clock(store, START + MINUTE)
    tell(store, last, 1, key="by hand", **{"return": 1})
    reward.define(store, DURABLE)
    visit(store, START + DAY)
    assert returns(store) == {last["decision_id"]: [(1, START + MINUTE)]}
    assert tell(store, last, 1, key="by hand", **{"return": 1}).duplicates == 1
    assert sound(store, "home")


def test_a_belief_that_waits_for_the_window_learns_the_returns_inside_it(store: Store) -> None:
    """A user who comes back after two days, and one after three weeks, which is late."""
    clock(store, START)
    waiting = reward.Request(name="waiting", weights="return=1", window_us=7 * DAY, learn="settled", late="ignore")
    reward.define(store, waiting)
    stocked(store, arms="a", home="epsilon-greedy/waiting")
    for user, day in (("u", 0), ("v", 0), ("u", 2), ("v", 21)):
        visit(store, START + day * DAY, user=user)
    settle.settle(clock(store, START + 30 * DAY))
    assert [row[:2] for row in sums(store, "home").values()] == [(4, 1)]
    assert sound(store, "home")


def test_a_group_of_a_stream_credits_each_user_once(shop: Store) -> None:
    """Two users come back in two sessions each within one group, one of them in a visit that goes on besides."""
    for user in "uv":
        visit(shop, START, user=user)
    visit(shop, START + DAY, user="v", session="open")
    sessions = [("u", "a"), ("u", "b"), ("v", "open"), ("v", "c")]
    requests = [Request(policy="other", session=session, user=user) for user, session in sessions]
    Pipe(clock(shop, START + DAY + MINUTE)).group(requests)
    assert returns(shop) == {1: [(1, START + DAY + MINUTE)], 2: [(1, START + DAY)]}
    assert sound(shop, "home", "other")


def test_times_are_those_of_all_decisions_before_an_import_and_after_it(shop: Store, tmp_path: Path) -> None:
    for number in range(4):
        visit(shop, START + number * DAY)
    selections = [Selection(), Selection(since=START + 1, until=START + 3 * DAY), Selection(since=START + 5 * DAY)]

    def times() -> list[tuple[int, int]]:
        with shop.read() as unit:
            assert [selected.times(unit, selection) for selection in selections] == [
                selected.extent(unit, selection)[-2:] for selection in selections
            ]
            return [selected.times(unit, selection) for selection in selections]

    assert times() == [(START, START + 3 * DAY), (START + DAY, START + 2 * DAY), (0, 0)]
    lines = tmp_path / "log.ndjson"
    line = {"policy": "old", "session": "x", "at": "2020-01-01T00:00:00Z", "slate": [{"arm": "a", "propensity": 1}]}
    lines.write_text(json.dumps(line | {"eligible": ["a"]}))
    run = runner(shop.address)
    assert run("--now", "2027-02-01", "import-log", lines, "--layout", "jsonl").exit_code == 0
    assert times()[0] == (parse("2020-01-01T00:00:00Z"), START + 3 * DAY)


def test_an_import_brings_its_returns(shop: Store, sqlite_template: Path, tmp_path: Path) -> None:
    for day in range(3):
        visit(shop, START + day * DAY)
    path = tmp_path / "log.jsonl"
    run = runner(shop.address)
    run("export-log", path)
    copy = tmp_path / "copy.db"
    copy.write_bytes(sqlite_template.read_bytes())
    with closing(Store(str(copy), now=START + 5 * DAY)) as other:
        run = runner(str(copy))
        for _ in range(2):
            assert run("--now", "2027-02-01", "import-log", path, "--layout", "jsonl").exit_code == 0
        reward.define(other, DURABLE)
        assert list(map(len, returns(other).values())) == [1, 1]
        stocked(other, live="uniform/durable")
        visit(clock(other, START + 30 * DAY), START + 30 * DAY, name="live")
        assert list(map(len, returns(other).values())) == [1, 1, 1]
        assert sound(other)


@pytest.mark.parametrize("size", [1, 2])
def test_the_log_of_one_surface_has_the_returns_to_visits_that_another_one_ended(
    shop: Store, size: int, tmp_path: Path
) -> None:
    """A person comes three times; what `other` shows last has the event, and both have the reward of the visit."""
    for day in range(3):
        visit(shop, START + day * DAY, session=f"s{day}", size=size)
        visit(shop, START + day * DAY + MINUTE, session=f"s{day}", name="other")
    assert list(returns(shop)) == [2, 4]
    run = partial(runner(shop.address), "--now", "2027-03-01")
    by_durable = ("--reward", "durable", "--json")
    for name in ("home", "other"):
        answer = run("outcomes", "--log", f"policy={name}", *by_durable).json
        (row,) = [row for row in answer["outcomes"] if row["metric"] == "reward_per_unit"]
        assert row["value"] == 2.0
        exported = [f"parquet:{tmp_path / 'log'},policy={name}"] * (size == 2 and name == "home")
        if exported:
            run("export-log", tmp_path / "log", "--layout", "parquet").done()
        for log in (f"policy={name}", *exported):
            (judged,) = run("evaluate", "uniform", "--estimator", "sips", "--log", log, *by_durable).json
            assert judged["served"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("is_defined", [True, False])
def test_visits_of_an_imported_log_are_credited(is_defined: bool, sqlite_template: Path, tmp_path: Path) -> None:
    """One user comes back twice, another once; the file has later visits first. Then one comes to this store."""
    copy, log = tmp_path / "copy.db", tmp_path / "log.jsonl"
    copy.write_bytes(sqlite_template.read_bytes())
    visits = [("u", 2), ("v", 3), ("u", 0), ("u", 1), ("v", 0)]
    slate = [{"arm": "a", "propensity": 0.5}]
    times = {(user, day): START + day * DAY for user, day in visits}
    log.write_text("".join(
        json.dumps({
            "policy": "old", "session": f"{user}{day}", "user": user, "at": format_time(at), "eligible": ["a", "b"],
            "slate": slate,
        }) + "\n"
        for (user, day), at in times.items()
    ))  # fmt: skip
    with closing(Store(str(copy), now=START + 5 * DAY)) as other:
        if is_defined:
            reward.define(other, DURABLE)
        runner(str(copy))("--now", "2027-02-01", "import-log", log, "--layout", "jsonl").done()
        reward.define(other, DURABLE)
        assert returns(other) == {
            number: [(1, times[followed])] for number, followed in ((3, ("u", 1)), (4, ("u", 2)), (5, ("v", 3)))
        }
        stocked(other, live="uniform/durable")
        visit(clock(other, START + 30 * DAY), START + 30 * DAY, name="live")
        assert returns(other)[1] == [(1, START + 30 * DAY)]
        assert sound(other)


def test_the_doctor_notices_a_return_that_is_missing_or_there_twice(shop: Store) -> None:
    for day in range(3):
        visit(shop, START + day * DAY)

    def bend(unit: Unit) -> None:
        unit.tell("DELETE FROM event WHERE decision_id = 1")
        unit.tell(
            "INSERT INTO event SELECT decision_id, 2, position, kind, value, at, received_at, seq, key FROM event"
        )
        unit.tell("UPDATE last_decision SET decision_id = 1")

    shop.write(bend)
    findings = [finding for finding in doctor(shop, Audit()).findings if finding.check == "returns"]
    assert [(finding.severity, finding.subject) for finding in findings] == [
        ("error", "decision 2"), ("error", "user u"), ("warning", "decision 1"),
    ]  # fmt: skip


@pytest.mark.simulation
def test_training_on_returns_brings_more_users_back(sqlite_db: str) -> None:
    """A small shop: of what a uniform log teaches, returns make more users come back than the log had, and clicks make
    fewer. The first difference is three standard errors of 1,700 users and more, seeded; all are new to the shop, and
    have the same time to come back."""
    shares = {}
    with closing(Store(sqlite_db, now=START)) as store:
        reward.define(store, reward.Request(name="comes", weights="return=1", window_us=7 * DAY))
        policy.create(store, policy.Request(name="uniform", kind="uniform", reward="comes"))
        play(store, "uniform", visits=3_000, seed=1)
        for name in ("comes", "default"):
            policy.create(store, policy.Request(name=f"pg-{name}", kind="gradient", reward=name))
            assert store.now is not None
            store.now += 8 * DAY
            train.train(store, train.Request(name=f"pg-{name}", log="policy=uniform", seed=1, promote="always"))
        for name in ("uniform", "pg-comes", "pg-default"):
            assert store.now is not None
            store.now += 8 * DAY
            shares[name] = play(store, name, visits=3_000, seed=20)
    assert shares["pg-comes"] - shares["uniform"] > 0.06
    assert shares["uniform"] > shares["pg-default"]


def play(store: Store, name: str, *, visits: int, seed: int) -> float:
    """The share of the users of a small shop, where clickbait is plenty, who come back."""
    shop = {"arms": "10", "bait": "5", "levels": "1", "purchase": "0.1"}
    played = simulate.simulate(
        store, simulate.Request(environment="shop", parameters=shop, policy=name, sessions=visits, group=100, seed=seed)
    )
    assert played["retention"] is not None
    return played["retention"]


def test_decisions_since_a_time_are_those_drawn_and_those_imported(shop: Store, tmp_path: Path) -> None:
    for day in range(4):
        visit(shop, START + day * DAY)
    late = Selection(since=START + 2 * DAY)  # the imported one has a later id

    def counts() -> tuple[int, int | None]:
        with shop.read() as unit:
            n_by_version = selected.version_counts(unit, late)
            n_by_day = [row.decisions for row in selected.day_counts(unit, late)]
            assert sum(n_by_version.values()) == selected.extent(unit, late).decisions == sum(n_by_day)
            return sum(n_by_day), selected.newest_at(unit, Selection(), 2)

    assert counts() == (2, START + 2 * DAY)
    lines = tmp_path / "log.ndjson"
    line = {"policy": "old", "session": "x", "slate": [{"arm": "a", "propensity": 1}], "eligible": ["a"]}
    lines.write_text(json.dumps(line | {"at": format_time(START + 2 * DAY + MINUTE)}))
    run = runner(shop.address)
    assert run("--now", "2027-02-01", "import-log", lines, "--layout", "jsonl").exit_code == 0
    assert counts() == (3, START + 2 * DAY + MINUTE)
