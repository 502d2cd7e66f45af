"""An audience before the store: the same log as a script's, on a clock of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rlrec.app.experiments import experiment, route
from rlrec.app.inputs import lookup
from rlrec.app.policies import policy
from rlrec.app.setup import arm as catalogue
from rlrec.app.setup import reward
from rlrec.app.setup.simulate import VISITS, Request, simulate, study
from rlrec.app.upkeep.doctor import Request as Audit
from rlrec.app.upkeep.doctor import doctor
from rlrec.errors import InputError
from rlrec.simulate.shop import Shop
from rlrec.store import Store
from rlrec.store.log import decisions, events, settings
from rlrec.store.policies import arms
from rlrec.times import DAY_US, SECOND, parse
from tests.app.shop import added_up, dump, sums

START = parse("2026-01-01")


@pytest.fixture
def shop(sqlite_db: str) -> Iterator[Store]:
    """On SQLite alone: what reads and writes is tested where it lies."""
    store = Store(sqlite_db)
    policy.create(store, policy.Request(name="home", kind="thompson"))
    yield store
    store.close()


def served(shop: Store, **options: Any) -> dict[str, Any]:
    params = {
        "environment": "bernoulli",
        "policy": "home",
        "sessions": 12,
        "parameters": {"rates": "0.9,0.1"},
        "seed": 1,
    }
    return {**simulate(shop, Request(**params | options))}


def times(store: Store) -> list[int]:
    with store.read() as unit:
        result = decisions.find(unit, [*range(1, decisions.peek(unit))])
    return [(result[number].at - START) // SECOND for number in sorted(result)]


def test_the_belief_is_what_the_audience_gave(shop: Store) -> None:
    result = served(shop, size=2, group=5, steps=2)
    assert (result["decisions"], result["optimum_per_session"], result["regret"]) == (24, pytest.approx(2), 0)
    assert sum(item[1] for item in sums(shop, "home").values()) == result["reward"]
    assert sums(shop, "home") == added_up(shop, "home")
    assert doctor(shop, Audit(sample=50)).ok


def test_the_clock_starts_in_2026_and_stands_a_second_later_after_every_decision(shop: Store) -> None:
    result = served(shop, sessions=3, group=2, steps=2)
    assert times(shop) == [0, 0, 2, 2, 4, 5]
    assert result["ended_at"] == "2026-01-01T00:00:06.000000Z"


def test_the_next_simulation_starts_at_the_newest_decision(shop: Store) -> None:
    served(shop, sessions=3)
    shop.now = None
    served(shop, sessions=2)
    assert times(shop) == [0, 1, 2, 2, 3]


def test_steps_of_a_session_are_one_visit(shop: Store) -> None:
    served(shop, sessions=2, group=2, steps=3)
    with shop.read() as unit:
        result = decisions.find(unit, [*range(1, 7)])
    assert [(result[number].visit, result[number].step) for number in sorted(result)] == [
        (1, 0), (1, 0), (1, 1), (1, 1), (1, 2), (1, 2),
    ]  # fmt: skip


def test_a_click_comes_when_its_time_has_come_and_the_last_ones_are_waited_for(shop: Store) -> None:
    params = {"rates": "1,1", "delay": "3", "shape": "fixed"}
    result = served(shop, environment="delayed", parameters=params, sessions=5)
    with shop.read() as unit:
        effect = [item for group in events.by_decision(unit, [*range(1, 6)]).values() for item in group]
    assert [(item.at - START) // SECOND for item in effect] == [3, 4, 5, 6, 7]
    assert [(item.received_at - START) // SECOND for item in effect] == [3, 4, 5, 6, 7]
    assert (result["reward"], result["ended_at"]) == (5, "2026-01-01T00:00:07.000000Z")


def test_contexts_are_logged(shop: Store) -> None:
    served(shop, environment="contextual", parameters={"arms": "2", "features": "3"}, sessions=4, group=2)
    with shop.read() as unit:
        rows = unit.ask("SELECT body FROM context ORDER BY id")
    assert len({row[0] for row in rows}) == 4


def test_one_seed_gives_one_log(sqlite_template: Path, tmp_path: Path) -> None:
    def played(name: str) -> object:
        shutil.copy(sqlite_template, tmp_path / name)
        with closing(Store(str(tmp_path / name), now=START)) as store:
            policy.create(store, policy.Request(name="home", kind="thompson"))
            return served(store, environment="contextual", parameters={"arms": "3"}), dump(store)

    assert played("one.db") == played("other.db")


def test_arms_of_an_audience_take_the_places_of_as_many_in_the_catalogue(shop: Store) -> None:
    catalogue.put(shop, lambda: [[(key, {}) for key in ("tea", "cocoa")]])
    served(shop, parameters={"rates": "1,0"}, sessions=30)
    with shop.read() as unit:
        keys: dict[int, str] = dict(unit.ask("SELECT id, key FROM arm"))
    assert {keys[arm]: bool(result[1]) for arm, result in sums(shop, "home").items()} == {"cocoa": True, "tea": False}


def test_an_audience_that_does_not_fit_the_catalogue_is_refused(shop: Store) -> None:
    catalogue.put(shop, lambda: [[(key, {}) for key in ("tea", "cocoa", "mate")]])
    with pytest.raises(InputError, match="has 2 arms"):
        served(shop)


def compared(shop: Store, by: str) -> None:
    """An experiment that compares the policy with a uniform one."""
    policy.create(shop, policy.Request(name="other", kind="uniform"))
    variants = [experiment.VariantSpec(label="a", policy="home"), experiment.VariantSpec(label="b", policy="other")]
    experiment.create(shop, experiment.Request(name="ab", variants=variants, by=by))


def test_the_clock_starts_behind_a_phase_of_the_wall_clock(shop: Store, capsys: pytest.CaptureFixture[str]) -> None:
    compared(shop, "user")
    visits: dict[str, Any] = {
        "environment": "shop", "parameters": {}, "policy": None, "experiment": "ab", "sessions": 6, "group": 3,
    }  # fmt: skip
    first = served(shop, **visits)
    for weight, on_wall_clock in ((3, True), (4, False)):
        if on_wall_clock:
            shop.now = None
        experiment.set_weights(shop, "ab", {"a": 1, "b": weight})
        with shop.read() as unit:
            phase_at, stored = lookup.experiment(unit, "ab").phase_at, decisions.peek(unit)
            newest = decisions.newest_time(unit)
        if on_wall_clock:
            shop.now = newest
            with pytest.raises(InputError, match=r"the newest phase of experiment ab began at .*: --now lies before"):
                served(shop, **visits)
            with shop.read() as unit:
                assert decisions.peek(unit) == stored
        shop.now = None
        notice = "days after the newest decision; to begin a phase in simulated time"
        capsys.readouterr()
        later = served(shop, **visits)
        assert parse(later["started_at"]) == phase_at > parse(first["started_at"])
        assert (notice in capsys.readouterr().out) is on_wall_clock
    with shop.read() as unit:
        clicks = unit.ask_value("SELECT count(*) FROM event WHERE kind = 'click'")
    assert clicks > later["events"]["click"] > 0


def test_an_experiment_by_user_refuses_an_audience_without_users(shop: Store) -> None:
    compared(shop, "user")
    for environment, message, hint in (
        ("news", "30% of visits of news have none", "give --env anonymous=0, or start"),
        ("bernoulli", "100% of visits of bernoulli have none", "start an experiment with --unit session"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            served(shop, environment=environment, parameters={}, policy=None, experiment="ab")
        assert raised.value.hint.startswith(hint)
    with shop.read() as unit:
        assert [unit.ask_value(f"SELECT count(*) FROM {table}") for table in ("arm", "session", "users")] == [0] * 3
    served(shop, environment="news", parameters={"anonymous": "0"}, policy=None, experiment="ab", sessions=3, size=2)


def test_an_experiment_and_a_route_are_served_like_a_policy(shop: Store) -> None:
    compared(shop, "session")
    figures = served(shop, policy=None, experiment="ab")
    assert (figures["policy"], figures["version"], figures["experiment"]) == (None, None, "ab")
    route.create(shop, route.Request(name="front", to="other"))
    figures = served(shop, policy="front")
    assert (figures["policy"], figures["experiment"]) == ("other", None)
    route.set_route(shop, route.Request(name="front", to="home", share=0.5))
    assert served(shop, policy="front")["experiment"] == "front-ramp-1"
    with shop.read() as unit:
        rows = decisions.find(unit, [*range(1, decisions.peek(unit))])
    variants_served = [rows[number].variant_id is not None for number in sorted(rows)]
    assert variants_served == [True] * 12 + [False] * 12 + [True] * 12


# -- visitors with memory --


def visited(shop: Store, environment: str = "barista", **options: Any) -> dict[str, Any]:
    return served(shop, environment=environment, parameters=options.pop("parameters", {}), **options)


@pytest.mark.slow
def test_visits_are_played_to_their_end_and_ended(shop: Store) -> None:
    result = visited(shop, sessions=25, group=4)
    with shop.read() as unit:
        steps, ends = zip(*unit.ask("SELECT steps, ended_at FROM visit"), strict=True)
        assert unit.ask_value("SELECT count(*) FROM decision") == result["decisions"] == sum(steps)
    assert (len(steps), max(steps) <= 8, None in ends) == (25, True, False)
    assert result["session_length"] == sum(steps) / 25
    assert (result["optimum_per_session"], result["context_free_per_session"]) == (
        pytest.approx(6.12),
        pytest.approx(4.733, abs=1e-3),
    )
    assert sums(shop, "home") == added_up(shop, "home")
    assert doctor(shop, Audit(sample=50)).ok


def test_groups_stay_full_while_visits_are_to_come(shop: Store) -> None:
    visited(shop, sessions=30, group=4)
    with shop.read() as unit:
        sizes = [row[0] for row in unit.ask("SELECT count(*) FROM decision GROUP BY at ORDER BY at")]
        ahead = unit.ask_value(
            "SELECT count(DISTINCT at) FROM decision WHERE at <= (SELECT max(started_at) FROM visit)"
        )
    assert set(sizes[:ahead]) == {4}


def test_every_decision_is_mature_when_a_simulation_with_memory_is_over(shop: Store) -> None:
    result = visited(shop, sessions=3)
    with shop.read() as unit:
        newest = decisions.newest_time(unit)
    assert newest is not None
    assert parse(result["ended_at"]) - newest > 30 * 60 * SECOND
    shop.now = None
    assert parse(visited(shop, sessions=1)["started_at"]) == newest


def test_a_visitor_who_comes_again_is_the_same_user_in_a_new_session_later(shop: Store) -> None:
    result = visited(shop, "choc-kale", sessions=60, group=3, parameters={"away": "20"})
    with shop.read() as unit:
        rows = unit.ask(
            "SELECT user_id, started_at, ended_at FROM visit JOIN session ON session.id = session_id"
            " ORDER BY user_id, started_at"
        )
    pairs = [(item, other) for item, other in pairwise(rows) if item[0] == other[0]]
    assert result["visitors"] == len({row[0] for row in rows}) < 60 == len(rows)
    assert all(other[1] - item[2] >= 20 * SECOND for item, other in pairs)
    assert result["retention"] == len({item[0] for item, _ in pairs}) / result["visitors"] > 0
    assert result["visits_per_visitor"] == 60 / result["visitors"]


def test_a_step_of_the_corridor_is_an_event_of_minus_1(store: Store) -> None:
    reward.define(store, reward.Request(name="steps", weights="reward=1", clip=(-1, 0)))
    policy.create(store, policy.Request(name="home", kind="uniform", reward="steps"))
    result = visited(store, "corridor", sessions=20, group=5)
    assert result["reward"] == -result["decisions"] == sum(item[1] for item in sums(store, "home").values())
    assert result["regret"] == pytest.approx(20 * result["optimum_per_session"] + result["decisions"])
    assert (result["visits_per_visitor"], result["retention"]) == (1, None)


def test_a_reward_that_does_not_see_what_is_given_is_told(shop: Store, capsys: pytest.CaptureFixture[str]) -> None:
    visited(shop, "corridor", sessions=1)
    assert "is worth 0 by reward 'default'" in capsys.readouterr().out


def test_audiences_without_memory_know_nobody_again(shop: Store) -> None:
    result = served(shop, steps=3)
    words = ("context_free_per_session", "visitors", "visits_per_visitor", "retention")
    assert (result["session_length"], [result[word] for word in words]) == (3, [None] * 4)


@pytest.mark.slow
def test_one_seed_gives_one_log_of_visits(sqlite_template: Path, tmp_path: Path) -> None:
    def played(name: str) -> object:
        shutil.copy(sqlite_template, tmp_path / name)
        with closing(Store(str(tmp_path / name), now=START)) as store:
            policy.create(store, policy.Request(name="home", kind="thompson"))
            return visited(store, "choc-kale", sessions=20, group=3), dump(store)

    assert played("one.db") == played("other.db")


@pytest.mark.parametrize(
    ("params", "result"),
    [
        ({"steps": 3}, "end by themselves"),
        ({"size": 2}, "one arm at a time"),
        ({"group": 2_000, "sessions": 2_000}, "a session ends after 1800"),
    ],
)
def test_what_visitors_with_memory_cannot_be_served_is_refused(
    shop: Store, params: dict[str, int], result: str
) -> None:
    with pytest.raises(InputError, match=result):
        visited(shop, **params)


@pytest.mark.slow
def test_a_page_is_clicked_as_a_page(shop: Store) -> None:
    """Its clicks are events without a position: worth something to the page, and nothing to a slot."""
    figures = served(
        shop, environment="page", parameters={"rates": "0.9,0.8,0.7,0.1", "topics": "2"}, size=2, sessions=20
    )
    assert 0 < figures["reward"] < 20
    assert sum(row[1] for row in sums(shop, "home").values()) == 0
    with shop.read() as unit:
        stored = [event for batch in events.by_decision(unit, [*range(1, 21)]).values() for event in batch]
        features = [arm.features for arm in arms.all_arms(unit)]
    assert [event.position for event in stored] == [None] * int(figures["reward"])
    assert features == ['{"topic":"t0"}', '{"topic":"t1"}'] * 2
    assert doctor(shop, Audit(sample=50)).ok


@pytest.mark.parametrize("environment", ["pbm", "cascade"])
def test_clicks_fall_with_the_position(shop: Store, environment: str) -> None:
    """Equal arms on pages of three, 300 pages: the first position has far more clicks than the last."""
    served(shop, environment=environment, parameters={"rates": "0.6,0.6,0.6"}, size=3, sessions=300, group=50)
    with shop.read() as unit:
        stored = [event for batch in events.by_decision(unit, [*range(1, 301)]).values() for event in batch]
    clicks = [sum(event.position == position for event in stored) for position in (1, 2, 3)]
    assert clicks[0] > 1.5 * clicks[1] > 1.5 * clicks[2] > 0


def test_what_was_shown_is_told_as_exposure(shop: Store) -> None:
    """Pages of all arms expose them alike."""
    figures = served(shop, environment="pbm", parameters={"rates": "0.9,0.5,0.1"}, size=3, sessions=20)
    assert (figures["coverage"], figures["gini"]) == (1.0, pytest.approx(0.0, abs=1e-12))
    assert figures["effective_arms"] == pytest.approx(3.0)


@pytest.mark.slow
def test_visitors_of_a_shop_come_again_days_later_and_buy(shop: Store) -> None:
    reward.define(shop, reward.Request(name="durable", weights="click=0.25, purchase=2"))
    policy.create(shop, policy.Request(name="honest", kind="epsilon-greedy", reward="durable"))
    figures = visited(shop, "shop", policy="honest", sessions=120, size=3, group=20, parameters={"daily": "20"})
    with shop.read() as unit:
        visits = unit.ask(
            "SELECT user_id, started_at, ended_at FROM visit JOIN session ON session.id = session_id"
            " ORDER BY user_id, started_at"
        )
        kinds: dict[str, int] = dict(unit.ask("SELECT kind, count(*) FROM event GROUP BY kind"))
    again = [later[1] - row[2] for row, later in pairwise(visits) if row[0] == later[0]]
    assert figures["visitors"] == len({row[0] for row in visits})
    assert len(again) == 120 - figures["visitors"] > 10
    assert all(abs(gap / (24 * 3600 * SECOND) % 1 - 0.5) < 0.01 for gap in again)  # but for minutes of a group
    assert kinds == figures["events"]
    assert figures["reward_per_visitor"] == figures["reward"] / figures["visitors"] < figures["optimum_per_visitor"]
    assert sums(shop, "honest") == added_up(shop, "honest")
    assert doctor(shop, Audit(sample=50)).ok


# -- from run to run --


def users_by_run(shop: Store, first: int) -> tuple[set[str], set[str]]:
    """The users of the decisions before an id, and of those from it on."""
    query = "SELECT u.key FROM decision d JOIN session s ON s.id = d.session_id JOIN users u ON u.id = s.user_id"
    with shop.read() as unit:
        before, after = ({row[0] for row in unit.ask(f"{query} WHERE d.id {sign} ?", first)} for sign in ("<", ">="))
    return before, after


def two_runs(shop: Store, *, second: dict[str, str] | None = None, days: int = 0) -> tuple[set[str], set[str]]:
    """The users of two simulations of a shop, the second so many days later. Its policy has no quadrature."""
    params = {"daily": "20"}
    policy.create(shop, policy.Request(name="honest", kind="epsilon-greedy"))
    visited(shop, "shop", policy="honest", sessions=60, size=2, group=15, parameters=params)
    with shop.read() as unit:
        first, newest = decisions.peek(unit), decisions.newest_time(unit)
    assert newest is not None
    shop.now = newest + days * DAY_US
    visited(shop, "shop", policy="honest", sessions=60, size=2, group=15, parameters=second or params)
    return users_by_run(shop, first)


@pytest.mark.slow
def test_visitors_come_again_in_the_next_simulation_of_their_audience(shop: Store) -> None:
    before, after = two_runs(shop)
    with shop.read() as unit:
        state = settings.state(unit, VISITS, {"environment": "shop", "parameters": {"daily": "20"}})
    assert state is not None
    assert 5 < len(before & after) < len(after)
    assert {key for key, *_ in state["visitors"]} <= before | after
    assert doctor(shop, Audit(sample=50)).ok


@pytest.mark.slow
@pytest.mark.parametrize("later", [{"days": 30}, {"second": {"daily": "21"}}])
def test_no_visitor_comes_again_long_after_or_in_another_audience(shop: Store, later: dict[str, Any]) -> None:
    before, after = two_runs(shop, **later)
    assert not before & after


@pytest.mark.slow
def test_the_trust_of_who_comes_again_is_what_they_bought_and_clicked(shop: Store) -> None:
    """Two runs with seats that stay free, in which nobody buys anything."""
    two_runs(shop)
    with shop.read() as unit:
        state = settings.state(unit, VISITS, {"environment": "shop", "parameters": {"daily": "20"}})
        rows = unit.ask(
            "SELECT u.key, a.key, max(e.kind) FROM event e JOIN decision d ON d.id = e.decision_id"
            " JOIN session s ON s.id = d.session_id JOIN users u ON u.id = s.user_id"
            " JOIN slot ON slot.decision_id = d.id AND slot.position = e.position JOIN arm a ON a.id = slot.arm_id"
            " GROUP BY d.id, e.position, u.key, a.key ORDER BY d.id, e.position"
        )
    assert state is not None
    trust = dict.fromkeys([row[0] for row in rows], Shop().start)
    for user, arm, kind in rows:  # `purchase` is the greater of the two
        change = -1 if int(arm.removeprefix("arm")) >= 40 else int(kind == "purchase")
        trust[user] = min(10, max(0, trust[user] + change))
    due = {key: trait for key, trait, _ in state["visitors"]}
    assert due == {key: trust.get(key, Shop().start) for key in due}
    assert len(set(due.values())) > 2


# -- articles that live a day --


@pytest.mark.slow
def test_articles_come_and_go_and_readers_subscribe_days_later(shop: Store) -> None:
    """`news` on a store that has an arm of its own, which its readers are not shown."""
    catalogue.put(shop, lambda: [[("tea", {})]])
    policy.create(shop, policy.Request(name="honest", kind="epsilon-greedy"))
    params = {"daily": "125", "purchase": "0.5"}
    figures = visited(shop, "news", policy="honest", sessions=200, size=5, group=25, parameters=params)
    with shop.read() as unit:
        shown = unit.ask(
            "SELECT a.key, a.added_at, a.retired_at, min(d.at), max(d.at) FROM slot JOIN arm a ON a.id = slot.arm_id"
            " JOIN decision d ON d.id = slot.decision_id GROUP BY a.id, a.key, a.added_at, a.retired_at"
        )
        delays = {
            row[0]
            for row in unit.ask(
                "SELECT e.at - d.at FROM event e JOIN decision d ON d.id = e.decision_id WHERE e.kind = 'purchase'"
            )
        }
        unknown = unit.ask_value("SELECT count(*) FROM session WHERE user_id IS NULL")
    assert figures["events"]["purchase"] > 10
    assert delays == {2 * DAY_US}
    assert abs(unknown / 200 - 0.3) < 4 * (0.3 * 0.7 / 200) ** 0.5  # false-alarm rate 6e-5, seeded
    assert "tea" not in {row[0] for row in shown}
    lives = [(row[2] - row[1]) / (DAY_US // 24) for row in shown if row[2] is not None and row[1] > shown[0][1]]
    assert len(lives) > 5
    assert all(abs(hours - 24) < 0.5 for hours in lives)  # but for the minutes of a group
    assert all(row[1] <= row[3] and (row[2] is None or row[4] <= row[2]) for row in shown)
    assert sums(shop, "honest") == added_up(shop, "honest")
    assert doctor(shop, Audit(sample=50)).ok


def test_articles_have_no_time_in_memory(shop: Store) -> None:
    with pytest.raises(InputError, match="come and go with the clock of a store"):
        study(shop, Request(environment="news", kind="thompson"))
