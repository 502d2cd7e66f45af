"""Many processes on one store: nothing is lost, nothing is counted twice, and a killed one leaves no half."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa

from rlrec.app.audit.integrity.findings import Findings
from rlrec.app.audit.integrity.visits import check_histories
from rlrec.app.learning.belief_versions import is_complete
from rlrec.app.learning.ledger import Ledger
from rlrec.app.policies import rebuild
from rlrec.app.requests import recommend
from rlrec.app.requests.feedback import FeedbackTransaction, Line
from rlrec.app.serving import draws
from rlrec.app.setup import arm
from rlrec.app.upkeep.doctor import Request, doctor
from rlrec.store import Store, Unit
from rlrec.store.database import tables
from rlrec.store.log import decisions
from rlrec.store.policies import policies
from tests.app.defined import remembering, wrong
from tests.app.shop import added_up, apart, ask, dump, stocked, sums, tell, version
from tests.app.workers import (
    asks,
    buys_on_demand,
    claims,
    defines,
    files,
    logs_in,
    loops,
    mixes,
    pipes,
    processes,
    rebuilds,
    remembers,
    shops,
    tells,
    together,
)  # fmt: skip
from tests.conftest import ON_BOTH

pytestmark = ON_BOTH

WRITERS = 4  # was run with 8
EVENTS = 40  # a process; was run with 500
KILLS = 4  # was run with 60
TURNS = 2  # of policies that forget or see contexts; was run with 4
GOODS = 16  # that one person buys within a second; was run with 200
COMMANDS = 4  # real commands at once


def everything(store: Store, table: sa.Table, *names: str) -> list[tuple[Any, ...]]:
    with store.read() as unit:
        return unit.rows(sa.select(*(table.c[name] for name in names)).order_by(*table.primary_key))


def consistent(store: Store, name: str) -> None:
    """Beliefs are what slots and events add up to; sessions count their steps, and each step remembers those before it;
    every page is whole."""
    assert apart(sums(store, name), added_up(store, name)) == 0.0
    with store.read() as unit:
        visits = unit.rows(sa.select(tables.visit.c.session_id, tables.visit.c.number, tables.visit.c.steps))
        rows = unit.rows(
            sa.select(*(tables.decision.c[item] for item in ("session_id", "visit", "step", "at", "id", "policy_id")))
        )
        result = decisions.find(unit, [row[4] for row in rows])
        forgot = Findings()
        check_histories(unit, findings=forgot)
    assert forgot.in_order() == []
    assert all(row.history is not None for row in result.values())
    for session, number, steps in visits:
        selected = sorted(row[2:4] for row in rows if row[:2] == (session, number))
        assert [step for step, _ in selected] == list(range(steps))
        assert all(before[1] <= after[1] for before, after in pairwise(selected))
    for policy in {row[5] for row in rows}:
        times = [row[3] for row in sorted(rows, key=lambda row: row[4]) if row[5] == policy]
        assert times == sorted(times)
    assert all(len(row.slots) == row.size for row in result.values())


@pytest.mark.slow
def test_no_event_of_many_processes_is_lost(store: Store, db: str) -> None:
    stocked(store, home="uniform/plain", other="uniform/plain")
    answers = [ask(store, name, f"s{i}", 2) for name in ("home", "other") for i in range(4)]
    slots = [(answer["decision_id"], position) for answer in answers for position in (1, 2)]
    together(tells, db, [(number, EVENTS, slots) for number in range(WRITERS)])
    for name in ("home", "other"):
        consistent(store, name)
    clicks = sum(row[1] for name in ("home", "other") for row in sums(store, name).values())
    assert clicks == WRITERS * EVENTS == len(everything(store, tables.event, "key"))
    received = sorted(everything(store, tables.event, "decision_id", "number", "received_at"))
    assert all(before[2] <= after[2] for before, after in pairwise(received) if before[0] == after[0])


@pytest.mark.parametrize("db", ["postgres"], indirect=True)
def test_an_event_has_the_time_at_which_its_policy_was_locked(store: Store, db: str) -> None:
    """A transaction that begins first may get the lock last."""
    stocked(store, home="uniform/plain")
    shown = ask(store)

    def last(unit: Unit) -> None:
        with closing(Store(db)) as other:
            tell(other, shown, click=1)
        ledger = Ledger(unit, ())
        line = Line(decision_id=shown["decision_id"], position=1, events={"click": 1.0})
        assert FeedbackTransaction(unit, ledger, [line]).results == [True]
        ledger.close()

    store.write(last)
    first, second = sorted(everything(store, tables.event, "number", "at", "received_at"))
    assert first[1:] < second[1:]


def test_files_about_policies_in_any_order_wait_for_each_other_in_one(store: Store, db: str) -> None:
    names = ("a", "b", "c")
    stocked(store, **dict.fromkeys(names, "uniform/plain"))
    answers = [ask(store, name)["decision_id"] for name in names]
    orders = [answers if number % 2 else answers[::-1] for number in range(WRITERS)]
    result = together(files, db, [(number, EVENTS // 4, order) for number, order in enumerate(orders)])
    assert sum(result) == len(everything(store, tables.event, "key")) == WRITERS * (EVENTS // 4) * len(names)
    for name in names:
        consistent(store, name)


@pytest.mark.slow
def test_draws_of_many_processes_keep_their_order(store: Store, db: str) -> None:
    stocked(store, home="thompson", other="uniform")
    result = together(asks, db, [(number, EVENTS // 2, ("home", "other")) for number in range(WRITERS)])
    assert all(row == result[0] for row in result)
    for name in ("home", "other"):
        consistent(store, name)
    shared = len(result[0])
    assert len(everything(store, tables.decision, "id")) == shared + WRITERS * (EVENTS // 2 - shared)


@pytest.mark.slow
@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_what_was_bought_is_never_shown_again(store: Store, db: str) -> None:
    """Two processes draw pages for one person, while two record purchases: no page that is asked for once a purchase is
    acknowledged has what was bought."""
    goods = [f"good-{number:02}" for number in range(GOODS)]
    stocked(store, home="uniform")
    arm.put(store, lambda: [[(key, None, [], {}) for key in goods]])
    shown = {key: ask(store, "home", "s", user="u", arms=[key])["decision_id"] for key in goods}
    buyers = [{key: shown[key] for key in goods[number::2]} for number in range(2)]
    *pages_of_each, first, second = together(shops, db, [("s", GOODS), ("t", GOODS), *buyers])
    pages, bought_at = [page for pages in pages_of_each for page in pages], first | second
    assert [(at, key) for at, keys in pages for key in keys if bought_at.get(key, at) < at] == []
    assert any(key in bought_at for _, keys in pages for key in keys)  # the others were shown meanwhile
    assert any(min(bought_at.values()) < at < max(bought_at.values()) for at, _ in pages)
    assert [row for row in doctor(store, Request()).findings if row.severity == "error"] == []


def test_a_request_ends_while_its_person_buys_between_all_its_tries(
    store: Store, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process records a purchase between each plan and its transaction: the last plan is made under the locks,
    and has taken away what was bought until then."""
    monkeypatch.setattr(recommend, "TRIES", 4)
    monkeypatch.setattr(recommend, "MAX_QUICK_CELLS", 0)  # no other plan is
    goods = [f"good-{number}" for number in range(6)]
    stocked(store, home="uniform")
    arm.put(store, lambda: [[(key, None, [], {}) for key in goods]])
    left = {key: ask(store, "home", "s", user="u", arms=[key])["decision_id"] for key in goods}
    here, there = processes.Pipe()
    buyer = processes.Process(target=buys_on_demand, args=(db, there))
    buyer.start()
    prepare = draws.prepare

    def prepare_late(distributions: Any) -> None:
        here.send(left.popitem()[1])
        here.recv()
        prepare(distributions)

    monkeypatch.setattr(recommend, "prepare", prepare_late)
    answer = ask(store, "home", "t", len(goods) - 3, user="u", not_after=["purchase"], arms=goods)
    here.send(None)
    buyer.join()
    assert (len(left), {slot["arm"] for slot in answer["slate"]}) == (len(goods) - 3, {*left})
    assert [row for row in doctor(store, Request()).findings if row.severity == "error"] == []


def test_a_key_wanted_by_many_goes_to_one(store: Store, db: str) -> None:
    stocked(store, home="uniform", other="uniform")
    owned = [(name, ask(store, name, "first")["decision_id"], 10) for name in ("home", "other")]
    won = together(claims, db, owned)
    assert sum(won) == 2 * 10
    assert len(everything(store, tables.decision, "id")) == 2 + 10
    for name in ("home", "other"):
        consistent(store, name)


def test_the_same_definitions_by_many_are_made_once(store: Store, db: str) -> None:
    together(defines, db, range(WRITERS))
    assert [name for (name,) in everything(store, tables.policy, "name")] == [f"p{i}" for i in range(4)]
    assert len(everything(store, tables.arm, "key")) == 20


@pytest.mark.slow
def test_catalogue_and_versions_change_while_slates_are_drawn(store: Store, db: str) -> None:
    stocked(store, home="thompson", late="thompson/settled")
    together(mixes, db, [(number, EVENTS // 4) for number in range(WRITERS)])
    for name in ("home", "late"):
        consistent(store, name)
    numbers = [number for (number,) in everything(store, tables.version, "number")]
    assert sorted(numbers)[1:] == list(range(1, len(numbers)))


@pytest.mark.slow
def test_real_commands_at_once(store: Store, db: str) -> None:
    stocked(store, home="thompson")
    number = ask(store)["decision_id"]
    words = [
        ["feedback", str(number), "click", "--json"],
        ["recommend", "--policy", "home", "--session", "s", "--json"],
    ]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "rlrec", "--db", db, *words[i % 2]], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for i in range(COMMANDS)
    ]
    ended = [(*process.communicate(), process.returncode) for process in started]
    assert [(err, code) for _, err, code in ended] == [(b"", 0)] * COMMANDS
    assert len(everything(store, tables.event, "value")) == (COMMANDS + 1) // 2
    consistent(store, "home")


REMEMBERING = ("fades", "ends", "sees-fading", "shares")


def audited(store: Store) -> None:
    """Every learning belief of policies that forget or see contexts is what its definition says."""
    for name in REMEMBERING:
        with store.read() as unit:
            versions = policies.versions(unit, [version(unit, name).policy.id])
        assert max(wrong(store, name, item.number) for item in versions if item.learning) < 1e-9
    assert [finding for finding in doctor(store, Request()).findings if finding.severity == "error"] == []


@pytest.mark.slow
def test_beliefs_that_forget_or_see_contexts_lose_nothing_to_many_processes(store: Store, db: str) -> None:
    stocked(store)
    remembering(store, *REMEMBERING)
    together(remembers, db, [(number, TURNS, REMEMBERING) for number in range(WRITERS)])
    audited(store)
    assert len(everything(store, tables.decision, "id")) == WRITERS * TURNS * (1 + len(REMEMBERING))


# -- killed --


def killed(work: Callable[..., None], db: str, prefix: str, after_s: float) -> list[tuple[str, str, int]]:
    """What a process said was done before a SIGKILL ended it, some time after it had begun."""
    selected, its = processes.Pipe(duplex=False)
    process = processes.Process(target=work, args=(db, prefix, its))
    process.start()
    its.close()
    result = [selected.recv()]
    until = time.monotonic() + after_s
    try:
        while (left := until - time.monotonic()) > 0:
            if selected.poll(left):
                result.append(selected.recv())
        process.kill()
        while True:
            result.append(selected.recv())
    except EOFError:
        process.join()
    assert process.exitcode == -9
    return result


@pytest.mark.slow
def test_a_killed_rebuild_is_gone_on_with(store: Store, db: str) -> None:
    """Under the number it had; others draw and tell meanwhile."""
    stocked(store)
    remembering(store, *REMEMBERING)
    remembers(store, (9, 2, REMEMBERING))
    for after, name in enumerate(REMEMBERING):
        killed(rebuilds, db, name, 0.05 * after)
        with store.read() as unit:
            newest = policies.versions(unit, [version(unit, name).policy.id])[-1]
            begun = newest.number > 1 and not is_complete(newest)
        remembers(store, (10 + after, 1, REMEMBERING))
        answers = rebuild.rebuild(store, rebuild.Request(reference=f"{name}@1"))
        assert answers["version"] == newest.number + (not begun)
    audited(store)


@pytest.mark.slow
def test_merges_and_feedback_of_users_survive_a_kill(store: Store, db: str) -> None:
    """A line that is spread is stored whole or not at all, and a merge has moved every session."""
    stocked(store, home="epsilon-greedy/plain")
    result = [row for kill in range(KILLS) for row in killed(logs_in, db, f"c{kill}", 0.05 + 0.05 * kill)]
    with store.read() as unit:
        merged: dict[str, str] = dict(unit.ask("SELECT u.key, p.key FROM merged_user m, users u, users p"
                               " WHERE u.id = m.user_id AND p.id = m.person_id"))  # fmt: skip
        left = unit.ask("SELECT s.id FROM session s JOIN merged_user m ON m.user_id = s.user_id")
        totals = dict[str, tuple[int, float]]()
        for key, value in unit.ask("SELECT key, value FROM event"):
            count, total = totals.get(key.partition("/")[0], (0, 0.0))
            totals[key.partition("/")[0]] = count + 1, total + value
    assert left == []
    assert {(key, f"u{person}") for what, key, person in result if what == "merge"} <= set(merged.items())
    assert {(key, count) for what, key, count in result if what == "event"} <= {
        (key, count) for key, (count, _) in totals.items()
    }
    assert [total for _, total in totals.values()] == pytest.approx([1.0] * len(totals))
    assert apart(sums(store, "home"), added_up(store, "home")) < 1e-9
    assert [row for row in doctor(store, Request()).findings if row.severity == "error"] == []


@pytest.mark.slow
@pytest.mark.parametrize("work", [loops, pipes])
def test_what_was_acknowledged_survives_a_kill(store: Store, db: str, work: Callable[..., None]) -> None:
    stocked(store, home="thompson")
    chance, result = random.Random(7), list[tuple[str, str, int]]()
    for kill in range(KILLS):
        result += killed(work, db, str(kill), chance.uniform(0, 0.15))
        dump(store)
    requests = everything(store, tables.decision, "request_key", "id")
    events = everything(store, tables.event, "key", "kind", "decision_id")
    keys = everything(store, tables.feedback_key, "key", "decision_id")
    assert {(key, number) for what, key, number in result if what == "decision"} <= set(requests)
    assert {(key, number) for what, key, number in result if what == "event"} <= set(keys)
    assert sorted(events) == sorted((key, kind, number) for key, number in keys for kind in ("click", "seen"))
    consistent(store, "home")
    if not db.startswith("postgresql"):
        with store.read() as unit:
            assert unit.ask_value("PRAGMA integrity_check") == "ok"
