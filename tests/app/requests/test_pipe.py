"""Groups of requests and feedback: one transaction each, answered in order."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from threading import Timer
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from rlrec.app.distributions import exact
from rlrec.app.experiments import experiment, route
from rlrec.app.experiments.experiment import VariantSpec
from rlrec.app.inputs import lookup
from rlrec.app.requests import recommend
from rlrec.app.requests.feedback import Line, Result
from rlrec.app.requests.pipe import Pipe, Request
from rlrec.app.serving.requests import DrawnAnswer
from rlrec.errors import Conflict, InputError, StoreBusy
from rlrec.store import Store, Unit
from rlrec.store.database import database_errors
from rlrec.store.log import decisions
from tests.app.shop import START, added_up, clock, stocked, sums
from tests.app.workers import together
from tests.conftest import ON_BOTH


def request(session: str = "s", **options: Any) -> Request:
    return Request(**{"policy": "home", "session": session} | options)


def click(**options: Any) -> Line:
    return Line(**{"events": {"click": 1.0}} | options)


@pytest.fixture
def pipe(store: Store) -> Pipe:
    return Pipe(stocked(clock(store, START), home="thompson", other="epsilon-greedy"), seed=1)


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("kind", "options", "most"),
    [
        ("thompson", {"session": "known"}, 10),
        ("epsilon-greedy", {"session": "known"}, 10),
        ("thompson", {"session": "new"}, 10),
        ("thompson", {"session": "new", "user": "v"}, 12),
        ("thompson", {"session": "known", "user": "u", "request_id": "r"}, 11),
        ("thompson", {"session": "known", "policy": "front"}, 12),
        ("thompson", {"session": "known", "policy": None, "experiment": "ab"}, 17),
    ],
)
def test_a_line_of_a_warm_stream_is_one_transaction_of_few_statements(
    store: Store, kind: str, options: dict[str, Any], most: int
) -> None:
    pipe, statements = Pipe(stocked(store, home=kind)), list[str]()
    route.create(store, route.Request(name="front", to="home"))
    variants = VariantSpec(label="a", policy="home"), VariantSpec(label="b", policy="home")
    experiment.create(store, experiment.Request(name="ab", variants=variants))
    store.close()

    @sa.event.listens_for(store.engine, "connect")
    def trace(connection: sqlite3.Connection, _: object) -> None:
        connection.set_trace_callback(statements.append)

    pipe.answer([request("known", user="u")])
    pipe.answer([request("known"), request(policy=None, experiment="ab", user="v")])
    statements.clear()
    assert isinstance(pipe.answer([request(**options)])[0], DrawnAnswer)
    assert (statements[0], statements[-1]) == ("BEGIN IMMEDIATE", "COMMIT")
    assert [text for text in statements[1:-1] if text.startswith(("BEGIN", "COMMIT"))] == []
    assert len(statements) - 2 <= most, statements


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_others_do_not_wait_while_the_first_plan_of_a_process_is_made(store: Store) -> None:
    pipe, statements = Pipe(stocked(store, home="thompson")), list[str]()
    store.close()

    @sa.event.listens_for(store.engine, "connect")
    def trace(connection: sqlite3.Connection, _: object) -> None:
        connection.set_trace_callback(statements.append)

    assert isinstance(pipe.answer([request()])[0], DrawnAnswer)
    ends = [text for text in statements if text.startswith(("BEGIN", "COMMIT", "ROLLBACK"))]
    assert ends == ["BEGIN", "COMMIT"]  # the first change takes the lock
    assert len(statements) - 2 <= 25, len(statements)


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_a_single_request_is_refused_while_others_hold_the_lock(store: Store) -> None:
    stocked(store)
    with closing(sqlite3.connect(store.address)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(InputError, match="unknown policy"):
            recommend.recommend(store, request(policy="nobody"))


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_a_first_request_waits_for_the_lock_to_be_stored(store: Store) -> None:
    stocked(store, home="thompson")
    with closing(sqlite3.connect(store.address, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = Timer(0.1, other.execute, ["COMMIT"])
        timer.start()
        assert recommend.recommend(store, request())["decision_id"] == 1
        timer.join()


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_a_first_request_is_planned_anew_where_others_served_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stocked(store, home="thompson")
    plan, answers = recommend.RequestGroup._plan, list[Any]()

    def served_meanwhile(group: recommend.RequestGroup, unit: Unit, **options: bool) -> Any:
        planned = plan(group, unit, **options)
        monkeypatch.setattr(recommend.RequestGroup, "_plan", plan)
        if not answers:
            with closing(Store(store.address)) as other:
                answers.append(recommend.recommend(clock(other, START), request()))
        return planned

    monkeypatch.setattr(recommend.RequestGroup, "_plan", served_meanwhile)
    answers.append(recommend.recommend(store, request()))
    assert [(answer["decision_id"], answer["step"]) for answer in answers] == [(1, 0), (2, 1)]


@ON_BOTH
def test_a_line_of_feedback_takes_few_statements(pipe: Pipe, store: Store) -> None:
    decision_id, statements = pipe.group([request()])[0]["decision_id"], list[str]()
    store.close()

    @sa.event.listens_for(store.engine, "connect")
    def trace(connection: Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.set_trace_callback(statements.append)
        else:
            connection.cursor_factory = tracing_cursor(statements)

    pipe.group([click(decision_id=decision_id, key="k1")])
    other_id = pipe.group([request("t")])[0]["decision_id"]
    statements.clear()
    assert pipe.group([click(decision_id=other_id, key="k2")])[0].events == 1
    counted = [text for text in statements if not text.startswith(("BEGIN", "COMMIT"))]
    assert len(counted) <= (9 if "sqlite" in store.url.drivername else 11), statements


def tracing_cursor(statements: list[str]) -> Any:
    """A class of cursors of PostgreSQL's driver that note what they carry out."""
    import psycopg

    class TracingCursor(psycopg.Cursor[Any]):
        def execute(self, query: Any, *values: Any, **options: Any) -> Any:
            statements.append(str(query))
            return super().execute(query, *values, **options)

    return TracingCursor


def test_each_line_is_answered_in_its_place(pipe: Pipe) -> None:
    first = pipe.group([request()])[0]
    result = pipe.group([click(decision_id=1), request("t"), InputError("bad"), click(decision_id=99), request("u")])
    assert result[0] == Result(decision_id=first["decision_id"], events=1, duplicates=0, reward=1.0)
    assert [result[index]["session"] for index in (1, 4)] == ["t", "u"]
    assert [str(result[index]) for index in (2, 3)] == ["bad", "unknown decision 99"]


def test_a_refused_user_leaves_the_other_answers_in_their_places(pipe: Pipe) -> None:
    result = pipe.group([request(user="u"), request(user="v"), request("t"), request(user="u")])
    shown = [(result[index]["session"], result[index]["step"]) for index in (0, 2, 3)]
    assert shown == [("s", 0), ("t", 0), ("s", 1)]
    assert "belongs to user 'u'" in str(result[1])


@pytest.mark.parametrize("n", [1, 3, 700])
def test_a_group_of_any_size_stores_a_row_for_each_line(pipe: Pipe, n: int) -> None:
    """Statements have 512 rows, and half of them, and so on."""
    answers = pipe.group([request(f"s{line}", request_id=f"r{line}") for line in range(n)])
    with pipe.store.read() as unit:
        rows = unit.ask("SELECT s.key, d.request_key, d.id FROM decision d JOIN session s ON s.id = d.session_id")
        slots = unit.ask_value("SELECT count(*) FROM slot")
    assert (sorted(rows), slots) == (sorted((a["session"], a["request_id"], a["decision_id"]) for a in answers), n)


def test_a_belief_that_feedback_of_the_stream_moved_is_not_read_anew(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = pipe.group([request()])[0]
    monkeypatch.setattr(exact, "_stored_sums", None)  # it reads all arms
    pipe.group([click(decision_id=shown["decision_id"])])
    answer = pipe.group([request("t")])[0]
    monkeypatch.undo()
    with pipe.store.read() as unit:
        version, head = lookup.version(unit, "home")
        loaded = exact.load(unit, version)
        arms = np.array(pipe._cache.active)
        held = pipe._cache.serving(unit, version, head)
        assert isinstance(answer, dict)
        assert np.array_equal(held.belief(arms).pulls, loaded.belief(arms).pulls)
        assert np.array_equal(held.belief(arms).reward_sum, loaded.belief(arms).reward_sum)


def test_feedback_of_a_group_is_seen_by_the_next_one(pipe: Pipe) -> None:
    shown = pipe.group([request()])[0]["slate"][0]["arm"]
    same, stored = pipe.group([click(decision_id=1), request(size=5)])[1], pipe.group([request(size=5)])[0]
    scores = [{slot["arm"]: slot["score"] for slot in answer["slate"]}[shown] for answer in (same, stored)]
    assert scores == pytest.approx([1 / 3, 2 / 4])  # Beta(1, 2), then a click and one more silent slot: Beta(2, 2)


def test_feedback_may_name_a_request_of_its_own_group(pipe: Pipe, store: Store) -> None:
    options, reported, again = pipe.group(
        [request(request_id="r"), click(request_id="r", key="k"), request(request_id="r")]
    )
    assert reported == Result(decision_id=options["decision_id"], events=1, duplicates=0, reward=1.0)
    assert again == options | {"duplicate": True}
    arm = options["slate"][0]["arm"]
    with store.read() as unit:
        result = decisions.find(unit, [1])[1]
    assert sums(store, "home") == added_up(store, "home")
    assert sums(store, "home")[result.slots[0].arm_id] == (1.0, 1.0, 1.0), arm
    assert result.seq == 1


def test_feedback_waits_with_the_request_that_it_names(pipe: Pipe, store: Store) -> None:
    """A rule on events makes a request wait for the feedback of its group: what names it comes behind it."""
    first = pipe.group([request("a", user="u")])[0]
    ruled = request("b", user="u", request_id="r", not_after=["click"])
    lines = [click(request_id="r", key="k"), ruled, click(decision_id=1, key="l"), click(request_id="r")]
    keyed, answer, other, _ = pipe.group(lines)
    assert isinstance(answer, dict)
    assert answer["slate"][0]["arm"] != first["slate"][0]["arm"]
    assert [keyed, other] == [
        Result(decision_id=n, events=1, duplicates=0, reward=1.0) for n in (answer["decision_id"], 1)
    ]
    assert sums(store, "home") == added_up(store, "home")
    assert pipe.transaction is not None
    assert pipe.transaction.policy_sums() == {"home": (3, 2.0)}  # by which a server counts events
    assert pipe.group(lines[:3])[0] == Result(decision_id=answer["decision_id"], events=0, duplicates=1, reward=1.0)


def test_a_group_teaches_every_policy_that_it_speaks_of(pipe: Pipe, store: Store) -> None:
    pipe.group([request(), request("o", policy="other")])
    pipe.group([click(decision_id=2), request(), click(decision_id=1)])
    for name in ("home", "other"):
        assert sums(store, name) == added_up(store, name)
    assert sum(row[1] for row in sums(store, "other").values()) == 1


def test_a_retried_group_changes_nothing(pipe: Pipe, store: Store) -> None:
    group = [request(request_id="r"), click(request_id="r", key="k"), click(request_id="r", key="k", events={"x": 1.0})]
    first = pipe.group(group)
    before = sums(store, "home")
    again = pipe.group(group)
    assert isinstance(first[2], Conflict)
    assert isinstance(again[2], Conflict)
    assert again[0] == first[0] | {"duplicate": True}
    assert again[1] == Result(decision_id=1, events=0, duplicates=1, reward=1.0)
    assert sums(store, "home") == before


def test_an_error_of_the_database_undoes_the_whole_group(
    pipe: Pipe, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlrec.app.requests import feedback as use_case

    def fail(*_: Any, **__: Any) -> None:
        raise database_errors.Retry

    pipe.group([request()])
    with monkeypatch.context() as patch:
        patch.setattr(use_case, "FeedbackTransaction", fail)
        with pytest.raises(StoreBusy):
            pipe.group([request(), click(decision_id=1)])
    assert pipe.group([request()])[0]["decision_id"] > 1
    assert sum(row[0] for row in sums(store, "home").values()) == 2
    assert pipe.group([request("new")])[0]["step"] == 0


def test_a_kind_that_nobody_weighs_is_told_once(pipe: Pipe, store: Store) -> None:
    result: list[str] = []
    store.notice = result.append
    pipe.group([request()])
    for _ in range(2):
        pipe.group([click(decision_id=1, events={"wink": 1.0})])
    assert len(result) == 1
    assert "'wink'" in result[0]


def test_a_warm_pipe_sees_what_others_change(pipe: Pipe, store: Store) -> None:
    from rlrec.app.policies import versions
    from rlrec.app.setup import arm

    pipe.group([request()])
    arm.put(store, lambda: [[("f", {})]])
    assert len(pipe.group([request(size=6)])[0]["slate"]) == 6
    arm.retire(store, ["f"], is_retired=True)
    assert isinstance(pipe.group([request(size=6)])[0], InputError)
    versions.freeze(store, "home")
    versions.promote(store, "home@2")
    assert pipe.group([request()])[0]["version"] == 2


def chatter(store: Store, number: int) -> int:
    """Draw and click in groups, for both policies by turns: how many clicks."""
    pipe, last = Pipe(store), 0
    for i in range(20):
        names = ["home", "other"] if (i + number) % 2 else ["other", "home"]
        lines: list[Any] = [
            request(f"{number}-{name}", policy=name, request_id=f"{number}-{i}-{name}") for name in names
        ]
        lines += [click(request_id=f"{number}-{last}-{name}") for name in names]
        assert not [item for item in pipe.group(lines) if isinstance(item, InputError) and i]
        last = i
    return 2 * 20


@pytest.mark.slow
def test_pipes_of_many_processes_lose_nothing(pipe: Pipe, store: Store, db: str) -> None:
    clock(store, None)
    assert together(chatter, db, range(3)) == [40] * 3
    for name in ("home", "other"):
        assert sums(store, name) == added_up(store, name)
        assert [sum(column) for column in zip(*sums(store, name).values(), strict=True)][:2] == [
            60.0,
            57.0,
        ]  # the last decision of each stream stays silent
