"""What the processes of the concurrency tests do: each has a store of its own, and says what became of its commands."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from typing import Any

from rlrec.app.experiments import experiment
from rlrec.app.requests.feedback import Line, feedback_stream
from rlrec.app.requests.recommend import Request, recommend
from rlrec.app.requests.session import end
from rlrec.app.serving.cache import ServingCache
from rlrec.app.setup.reward import Request as Definition
from rlrec.app.setup.reward import define
from rlrec.errors import Conflict, InputError
from rlrec.store import Store
from tests import PATIENCE_S
from tests.app.shop import ask, stocked, tell

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([__name__, "psycopg", "alembic.command", "rlrec.app.upkeep.doctor"])  # imported late


def together(work: Callable[..., Any], db: str, many: Sequence[Any]) -> list[Any]:
    """What `work(store, one)` returns for each of many, in a process each, all at once; raises where one failed."""
    barrier, ends, started = processes.Barrier(len(many)), [], []
    for item in many:
        selected, its = processes.Pipe()
        process = processes.Process(target=_run, args=(work, db, item, barrier, its))
        process.start()
        its.close()
        ends.append(selected)
        started.append(process)
    result = [end.recv() for end in ends]
    for process in started:
        process.join()
    failed = [what for ok, what in result if not ok]
    assert not failed, failed[0]
    return [what for _, what in result]


def _run(work: Callable[..., Any], db: str, item: Any, barrier: Any, pipe: Connection) -> None:
    import traceback

    try:
        with closing(Store(db)) as store:
            barrier.wait(PATIENCE_S)
            pipe.send((True, work(store, item)))
    except Exception:
        pipe.send((False, traceback.format_exc()))


def tells(store: Store, item: tuple[int, int, Sequence[tuple[int, int]]]) -> int:
    """Send events, each under a key of its own, to random ones of (decision, position)."""
    number, count, slots = item
    chance = random.Random(number)
    for i in range(count):
        decision, position = chance.choice(slots)
        tell(store, decision, position, click=1, key=f"{number}-{i}")
    return count


def shows(store: Store, item: tuple[str, int]) -> list[tuple[float, list[str]]]:
    """Draw pages for a user, without what this user bought, until so many purchases are stored, and one more: when each
    was asked for, and its arms."""
    session, purchases = item
    cache, pages, stored = ServingCache(), list[tuple[float, list[str]]](), -1
    while stored < purchases:
        with store.read() as unit:
            stored = unit.ask_value("SELECT COUNT(*) FROM event")
        start = time.monotonic()
        request = Request(policy="home", session=session, user="u", size=2, not_after=["purchase"])
        answer = recommend(store, request, cache=cache)
        pages.append((start, [slot["arm"] for slot in answer["slate"]]))
    return pages


def buys(store: Store, decisions: Mapping[str, int]) -> dict[str, float]:
    """Record a purchase of each arm, by a decision that showed it: when each was acknowledged."""
    bought_at = {}
    for arm, decision in decisions.items():
        tell(store, decision, purchase=1.0, key=arm)
        bought_at[arm] = time.monotonic()
        time.sleep(0.02)
    return bought_at


def buys_on_demand(db: str, decisions: Connection) -> None:
    """Record a purchase for each decision that comes, and say so, until None comes."""
    with closing(Store(db)) as store:
        while (decision := decisions.recv()) is not None:
            tell(store, decision, purchase=1.0)
            decisions.send(decision)


def shops(store: Store, item: Any) -> Any:
    """`buys` for a mapping, else `shows`."""
    return buys(store, item) if isinstance(item, Mapping) else shows(store, item)


def files(store: Store, item: tuple[int, int, Sequence[int]]) -> int:
    """Send files of several groups, each group about another decision, under the one clock of all."""
    number, count, decisions = item
    for i in range(count):
        groups = [
            [Line(decision_id=decision, position=1, events={"click": 1.0}, key=f"{number}-{i}-{decision}")] * 2
            for decision in decisions
        ]
        feedback_stream(store, lambda groups=groups: groups, quarantine=False, reject=print)
    return count * len(decisions)


def asks(store: Store, item: tuple[int, int, Sequence[str]]) -> dict[str, int]:
    """Draw for a few sessions; every third request has an id that all processes use: the decision each id got."""
    number, count, names = item
    chance, result = random.Random(number), dict[str, int]()
    for i in range(count):
        if i % 3 == 0:
            name = names[i % len(names)]
            result[f"r{i}"] = ask(store, name, f"s{i % 4}", 2, request_id=f"r{i}")["decision_id"]
        else:
            ask(store, chance.choice(names), f"s{chance.randint(0, 3)}", chance.randint(1, 3), user=None)
    return result


def claims(store: Store, item: tuple[str, int, int]) -> int:
    """Use request ids and feedback keys that others use for another policy at the same time: how many it got."""
    name, decision, count = item
    won = 0
    for i in range(count):
        for work in (
            lambda i=i: ask(store, name, "s", request_id=f"r{i}"),
            lambda i=i: tell(store, decision, click=1, key=f"k{i}"),
        ):
            try:
                work()
                won += 1
            except Conflict:
                pass
    return won


def defines(store: Store, number: int) -> None:
    """The same arms, rewards and policies as everybody."""
    for i in range(4):
        stocked(store, arms=[f"{i}{letter}" for letter in "abcde"], **{f"p{i}": "thompson"})


def mixes(store: Store, item: tuple[int, int]) -> None:
    """Arms come and go, beliefs are frozen and promoted, slots settle, while slates are drawn and told about."""
    from rlrec.app.policies import versions
    from rlrec.app.requests import settle
    from rlrec.app.setup import arm

    number, count = item
    chance = random.Random(number)
    for i in range(count):
        shown = ask(store, chance.choice(["home", "late"]), f"s{chance.randint(0, 3)}", 2)
        tell(store, shown, chance.randint(1, 2), click=chance.choice([1, -1]), key=f"{number}-{i}")
        if i % 5 == number % 5:
            arm.retire(store, ["a"], is_retired=i % 2 == 0)
            answers = versions.freeze(store, "home")
            versions.promote(store, f"home@{answers['version']}")
            versions.rollback(store, "home")
            settle.settle(store)


def remembers(store: Store, each: tuple[int, int, Sequence[str]]) -> None:
    """Draw in contexts and tell, one by one, in groups and as a stream; rebuild and freeze: all on the same few."""
    from rlrec.app.policies import rebuild, versions
    from rlrec.app.requests.pipe import Pipe, Request

    number, count, names = each
    chance, stream = random.Random(number), Pipe(store)
    for i in range(count):
        context = {"hour": chance.random(), "device": chance.choice("xyz")}
        shown = ask(store, chance.choice(names), f"s{number}", 3, context=context)
        tell(store, shown, chance.randint(1, 3), click=chance.choice([1, -1]), censor=chance.choice([None, True]))
        options: list[Any] = []
        for name in names:
            key = f"{number}-{i}-{name}"
            options.append(Request(policy=name, session=f"s{number}", size=2, request_id=key, context=context))
            options.append(Line(request_id=key, position=2, events={"click": 1.0}, key=key))
        stream.group(options)
        printed = [Line(request_id=item.request_id, position=1, events={"click": 0.5}) for item in options[::2]]
        feedback_stream(store, lambda reported=printed: [reported], quarantine=False, reject=print)
        if i == number % count:
            rebuild.rebuild(store, rebuild.Request(reference=f"{names[number % len(names)]}@1"))
            versions.freeze(store, names[number % len(names)])


def rebuilds(db: str, prefix: str, pipe: Connection) -> None:
    """Rebuild a policy for ever, a few slots a transaction: until killed."""
    from rlrec.app.policies import rebuild

    rebuild.PORTION = 5
    with closing(Store(db)) as store:
        for i in range(1_000_000):
            pipe.send(("rebuild", prefix, i))
            rebuild.rebuild(store, rebuild.Request(reference=f"{prefix}@1"))


def loops(db: str, prefix: str, pipe: Connection) -> None:
    """Draw and tell for ever, saying after each command that it is done: until killed."""
    with closing(Store(db)) as store:
        for i in range(1_000_000):
            shown = ask(store, "home", f"s{i % 3}", 2, request_id=f"{prefix}-{i}")
            pipe.send(("decision", f"{prefix}-{i}", shown["decision_id"]))
            tell(store, shown, 1 + i % 2, click=1, seen=1, key=f"{prefix}-{i}")
            pipe.send(("event", f"{prefix}-{i}", shown["decision_id"]))


def pipes(db: str, prefix: str, pipe: Connection) -> None:
    """The same, both in one group of a stream."""
    from rlrec.app.requests.feedback import Line
    from rlrec.app.requests.pipe import Pipe, Request

    with closing(Store(db)) as store:
        stream = Pipe(store)
        for i in range(1_000_000):
            key = f"{prefix}-{i}"
            reported = Line(request_id=key, position=1 + i % 2, events={"click": 1.0, "seen": 1.0}, key=key)
            shown, _ = stream.group([Request(policy="home", session=f"s{i % 3}", size=2, request_id=key), reported])
            pipe.send(("decision", key, shown["decision_id"]))
            pipe.send(("event", key, shown["decision_id"]))


def logs_in(db: str, prefix: str, pipe: Connection) -> None:
    """Draw for people under a key of a cookie, merge it into theirs, and tell what they did, over all that they saw."""
    from rlrec.app.requests import user
    from rlrec.app.requests.feedback import feedback

    with closing(Store(db)) as store:
        for i in range(1_000_000):
            cookie, key = f"{prefix}-{i}", f"u{i % 3}"
            ask(store, "home", cookie, user=cookie)
            user.merge(store, cookie, key)
            pipe.send(("merge", cookie, i % 3))
            credit = {"user": cookie, "is_spread": True, "window_us": 10**12}
            answer = feedback(store, Line(events={"click": 1.0}, key=cookie, **credit))
            pipe.send(("event", cookie, answer.events))


def calls_route(store: Store, item: tuple[int, int]) -> list[Any]:
    """Ask a route, alone and in groups of a stream, until so many of its ramps have ended: all answers."""
    from rlrec.app.requests.pipe import Pipe, Request
    from rlrec.store.policies import experiments

    number, rounds = item
    stream, answers, ended = Pipe(store), list[Any](), 0
    while ended < rounds:
        with store.read() as unit:
            ended = sum(experiment.status == "stopped" for experiment in experiments.all_experiments(unit))
        i = len(answers)
        user = f"u{number}-{i}" if i % 8 else None
        answers.append(ask(store, "front", f"s{number}-{i}", user=user))
        answers += stream.group([Request(policy="front", session=f"g{number}-{i}-{j}") for j in range(3)])
    return answers


def ramps_route(store: Store, rounds: int) -> list[Any]:
    """Begin ramps, let them take a step once they have served, and end them in every way there is."""
    from rlrec.app.experiments import ending, route
    from rlrec.app.inputs import lookup
    from rlrec.store.policies import experiments

    def serves(name: str) -> bool:
        with store.read() as unit:
            return sum(experiments.count_units(unit, lookup.experiment(unit, name).id).values()) > 5

    for number in range(rounds):
        steps = [0.3, 0.6, 1.0]
        request = route.Request(name="front", to="other", share=steps[0], steps=steps, hold_us=1)
        started = route.set_route(store, request)
        name = str(started["experiment"])
        while not serves(name):
            time.sleep(0.02)
        assert _changed(store, [])["did"] == "advanced"
        if number % 3 == 2:
            assert _changed(store, ["it lost"])["did"] == "rolled-back"
        else:
            ending.stop(store, name, promote="candidate" if number % 3 else None, anyway=True)
        route.set_route(store, route.Request(name="front", to="home"))
    return []


def _changed(store: Store, losses: list[str]) -> Any:
    """What became of the ramp of `front` after a look that found these losses."""
    from rlrec.app.experiments import ramp, route
    from rlrec.app.inputs import lookup

    with store.read() as unit:
        stage = route.find_stage(unit, lookup.route(unit, "front"))
    assert stage is not None
    return ramp._change(store, "front", stage, losses)


def names_route(store: Store, item: tuple[int, int]) -> list[str]:
    """Give names to policies or to routes, which others do at the same time: those that it got."""
    from rlrec.app.experiments import route
    from rlrec.app.policies import policy

    number, count = item
    won = []
    for name in (f"name{i}" for i in range(count)):
        try:
            if number % 2:
                policy.create(store, policy.Request(name=name, kind="uniform"))
            else:
                route.create(store, route.Request(name=name, to="home"))
            won.append(name)
        except Conflict:
            pass
    return won


def returns_by_hand(store: Store, item: tuple[int, int]) -> dict[int, bool]:
    """Begin visits of one user and record each return by hand: for each decision but the last whether it was accepted.
    In the middle the first process defines a reward by which returns record themselves."""
    number, count = item
    accepted, before = dict[int, bool](), None
    for i in range(count):
        if number == 0 and i == count // 2:
            define(store, Definition(name="durable", weights="click=0.25, return=1"))
        key = f"{number}-{i}"
        answer = ask(store, "home", key, 1, user=f"u{number}")
        if before is not None:
            try:
                tell(store, before, 1, **{"return": 1})
                accepted[before["decision_id"]] = True
            except InputError:
                accepted[before["decision_id"]] = False
        end(store, key)
        before = answer
    return accepted


def visits(store: Store, item: tuple[int, int, Sequence[str]]) -> int:
    """Begin visits of a few users in sessions that others do not know, and end most of them; each request is sent twice
    under its id. The policies take turns."""
    number, count, names = item
    chance = random.Random(number)
    for i in range(count):
        key, user, size = f"{number}-{i}", f"u{chance.randrange(3)}", chance.randint(1, 2)
        for _ in range(2):
            ask(store, names[i % len(names)], key, size, user=user, request_id=key)
        if chance.random() < 0.8:
            end(store, key)
    return count


def draws_new_users(store: Store, number: int) -> dict[str, str | None]:
    """Draw for users whom nobody knows, in experiment `ab`, until three have no variant: the variant of each. The
    process of number 0 freezes the experiment meanwhile, and answers with those who have a variant then."""
    if number == 0:
        while len(users_of_experiment(store)) < 20:
            time.sleep(0.01)
        experiment.freeze(store, "ab")
        return dict.fromkeys(users_of_experiment(store))
    variants, until = dict[str, str | None](), time.monotonic() + PATIENCE_S
    while list(variants.values()).count(None) < 3:
        assert time.monotonic() < until, f"the experiment still takes users after {len(variants)}"
        key = f"{number}-{len(variants)}"
        variants[key] = recommend(store, Request(session=key, user=key, experiment="ab"))["variant"]
    return variants


def users_of_experiment(store: Store) -> set[str]:
    """The users who have a variant."""
    with store.read() as unit:
        return {row[0] for row in unit.ask("SELECT u.key FROM assignment a JOIN users u ON u.id = a.user_id")}


def promotes(store: Store, label: str) -> str:
    """Promote a variant of `ab`, as others do at the same time: the version that is live."""
    from rlrec.app.experiments import ending

    return str(ending.stop(store, "ab", promote=label, anyway=True)["live"])
