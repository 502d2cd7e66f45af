"""A challenger in the shadow of a route: what is logged is the probability that it would have given, exactly."""

from math import log
from typing import Any

import pytest

from rlrec.app.experiments import route, shadow
from rlrec.app.policies import policy
from rlrec.app.requests.recommend import Request, recommend, recommend_group
from rlrec.errors import InputError
from rlrec.store import Store
from rlrec.store.policies import routes
from tests.app.shop import stocked
from tests.conftest import ON_BOTH


def routed(store: Store, *, challenger: str, kind: str, **parameters: str) -> None:
    stocked(store, home="uniform")
    policy.create(store, policy.Request(name=challenger, kind=kind, parameters=parameters))
    route.create(store, route.Request(name="front", to="home"))
    shadow.start(store, "front", challenger)


def ask(store: Store, session: str, size: int = 1, **more: Any) -> Any:
    return recommend(store, Request(policy="front", session=session, size=size, **more), seed=1)


def logged(store: Store) -> list[float | None]:
    with store.read() as unit:
        newest = max(row[0] for row in unit.ask("SELECT id FROM shadow"))
        return [probability for probability, _ in routes.log_probabilities(unit, newest)]


@pytest.mark.parametrize("size", [1, 3])
def test_a_challenger_that_serves_itself_has_weight_1(store: Store, size: int) -> None:
    stocked(store, home="thompson")
    route.create(store, route.Request(name="front", to="home"))
    shadow.start(store, "front", "home")
    answers = [ask(store, f"s{n}", size) for n in range(5)]
    assert logged(store) == pytest.approx([answer["log_propensity"] for answer in answers], rel=1e-9)
    (figures,) = route.show(store, "front")["shadows"]
    assert (figures["decisions"], figures["weighed"]) == (5, 5)
    assert (figures["mean_weight"], figures["ess"]) == (pytest.approx(1.0), pytest.approx(5.0))


@pytest.mark.parametrize("size", [1, 2])
def test_a_challenger_of_visits_is_asked_in_their_states(store: Store, size: int) -> None:
    routed(store, challenger="pg", kind="gradient", floor="0.1")
    answers = [ask(store, f"s{n % 2}", size) for n in range(6)]  # its version 1 is uniform, as what serves
    assert logged(store) == pytest.approx([answer["log_propensity"] for answer in answers], rel=1e-9)


def test_where_there_is_no_exact_probability_null_is_stored(store: Store) -> None:
    routed(store, challenger="lin", kind="lin-thompson", model="shared", floor="0.05")
    ask(store, "s")
    assert logged(store) == [None]


@ON_BOTH
def test_a_shadow_ends_and_another_one_follows(store: Store) -> None:
    routed(store, challenger="ts", kind="thompson", floor="0.1")
    ask(store, "a")
    assert not shadow.start(store, "front", "ts")["started"]
    with pytest.raises(InputError, match="another challenger"):
        shadow.start(store, "front", "home")
    assert shadow.stop(store, "front")["stopped"]
    assert not shadow.stop(store, "front")["stopped"]
    ask(store, "b")
    shadow.start(store, "front", "home")
    ask(store, "c")
    assert [row["decisions"] for row in route.show(store, "front")["shadows"]] == [1, 1]


@ON_BOTH
def test_a_group_is_weighed_at_once_and_a_direct_request_not(store: Store) -> None:
    routed(store, challenger="ts", kind="thompson", floor="0.1")
    names = ("front", "home") * 4
    recommend_group(store, [Request(policy=name, session=f"s{n}") for n, name in enumerate(names)])
    assert len(logged(store)) == 4
    assert all(value is not None and log(0.01) < value < 0 for value in logged(store))


def test_a_kind_reads_contexts_in_the_shadow_too(store: Store) -> None:
    routed(store, challenger="ucb", kind="linucb", floor="0.2")
    answers = [ask(store, f"s{n}", context={"hour": n}) for n in range(3)]
    assert len(answers) == len(logged(store)) == 3
    assert all(value is not None for value in logged(store))
