"""Outcomes of units are those of a census, whatever the order of the log, and say how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.experiments import compare, experiment, route
from rlrec.app.experiments.experiment import Request as Split
from rlrec.app.experiments.experiment import VariantSpec
from rlrec.app.inputs import filters, lookup
from rlrec.app.judging.outcomes import Request, Result, explanations, outcomes
from rlrec.app.policies import policy, versions
from rlrec.app.requests import feedback, recommend, session
from rlrec.app.setup import arm, reward
from rlrec.app.setup.simulate import Request as Simulation
from rlrec.app.setup.simulate import simulate
from rlrec.store import Store
from rlrec.store.log import reader, selected
from rlrec.store.policies import people
from tests.app import census
from tests.app.shop import MINUTE, START, clock
from tests.conftest import empty_store, filled, runner

DAY = 24 * 60 * MINUTE
LATER = "2099-01-01T00:00:00Z"
REWARDS = ("default", "durable")


def stocked(store: Store) -> Store:
    store.notice = lambda line: None
    arm.put(clock(store, START), lambda: [[(key, {}) for key in "abcd"]])
    reward.define(store, reward.Request(name="durable", weights="click=0.5, buy=2", window_us=3 * DAY))
    for name in ("home", "side"):
        policy.create(store, policy.Request(name=name, kind="thompson", parameters={"floor": "0.1"}))
    return store


def split(store: Store, by: str = "user") -> None:
    variants = [VariantSpec(label="a", policy="home"), VariantSpec(label="b", policy="side")]
    experiment.create(store, Split(name="ab", variants=variants, by=by))


def serve(store: Store, rng: np.random.Generator, *, days: float, named: str | None, users: int = 9) -> None:
    """Some decisions of random users and sessions at one moment, with events; some visits end."""
    lines = []
    for _ in range(int(rng.integers(1, 6))):
        user = int(rng.integers(users))
        key = f"u{user}-{rng.integers(3)}" if user else f"nobody{rng.integers(4)}"
        owner = f"u{user}" if user else None
        served = {"experiment": named} if named and owner else {"policy": str(rng.choice(["home", "side"]))}
        lines.append(recommend.Request(session=key, user=owner, size=int(rng.integers(1, 3)), **served))
    answers = recommend.recommend_group(clock(store, START + round(days * DAY)), lines)
    for answer in answers:
        for kind in ("click", "buy", "skip"):
            if rng.random() < 0.3:
                position = None if rng.random() < 0.2 else 1
                store.now = START + round(days * DAY) + int(rng.integers(0, 50 * MINUTE))
                line = feedback.Line(decision_id=answer["decision_id"], events={kind: 1.5}, position=position)
                feedback.feedback(store, line)
        if rng.random() < 0.04:
            feedback.feedback(store, feedback.Line(decision_id=answer["decision_id"], position=1, censor=True))
        if rng.random() < 0.3:
            session.end_all(store, [answer["session"]])


def story(store: Store, *, by: str = "user", moments: int = 40) -> None:
    """Forty moments over four weeks; an experiment from the fourth on, a new version from the third on."""
    stocked(store)
    rng, days = np.random.default_rng(3), 0.0
    for number in range(moments):
        days += float(rng.choice([0.01, 0.2, 1.0, 5.0], p=[0.4, 0.3, 0.2, 0.1]))
        if number == moments // 3:
            versions.freeze(clock(store, START + round(days * DAY)), "home")
            versions.promote(store, "home@2")
        if number == moments // 2:
            split(clock(store, START + round(days * DAY)), by)
        serve(store, rng, days=days, named="ab" if number >= moments // 2 else None)
    clock(store, START + round((days + 0.1) * DAY))


Story = Callable[..., Store]


def written(db: str, by: str, moments: int) -> None:
    with closing(Store(db)) as store:
        story(store, by=by, moments=moments)


@pytest.fixture
def shop_after(db: str) -> Iterator[Story]:
    """The store after a story, a tenth of a day after its last decision."""
    opened = list[Store]()

    def begin(*, by: str = "user", moments: int = 40) -> Store:
        filled(db, written, by, moments)
        opened.append(Store(db, notice=lambda line: None))
        with opened[0].read() as unit:
            last_at = unit.ask_value("SELECT max(at) FROM decision")
        return clock(opened[0], last_at + DAY // 10)

    yield begin
    for store in opened:
        store.close()


def figures(result: Result) -> dict[Any, tuple[Any, int]]:
    named = {
        (row["group"], " ".join(filter(None, [row["metric"], row["reward"]]))): (row["value"], row["units"])
        for row in result["outcomes"]
    }
    return {key: value for key, value in named.items() if value[1]}


def totals(sums: census.Sums) -> dict[Any, tuple[Any, int]]:
    counted = {key: [unit for unit in units.values() if unit[1]] for key, units in sums.items()}
    return {
        key: (pytest.approx(sum(n for n, _ in units) / sum(d for _, d in units), rel=1e-9, abs=1e-12), len(units))
        for key, units in counted.items()
        if units
    }


@pytest.mark.slow
def test_outcomes_are_those_of_a_census(shop_after: Story) -> None:
    store = shop_after()
    with store.read() as unit:
        rewards = {name: lookup.reward(unit, name) for name in REWARDS}
        counts = {by: census.count(unit, rewards, by=by) for by in (None, "policy", "version", "week", "day")}
        of_experiment = {
            by: census.count(unit, rewards, by=by, chosen=lambda row: row.variant is not None)
            for by in ("variant", "users")
        }
    for by, counted in counts.items():
        assert figures(outcomes(store, Request(by=by, rewards=REWARDS))) == totals(counted)
    for by, counted in of_experiment.items():
        assert figures(outcomes(store, Request(experiment="ab", by=by, rewards=REWARDS))) == totals(counted)


@pytest.mark.slow
def test_the_first_days_of_units_are_those_of_a_census(shop_after: Story) -> None:
    """Three days of every unit, of units that came at least three days, and then a window, before the end."""
    store = shop_after()
    with store.read() as unit:
        rewards, now = {"default": lookup.reward(unit, "default")}, unit.now
        entry: dict[int, int] = dict(unit.ask("SELECT user_id, at FROM assignment"))
        (last,) = unit.ask("SELECT max(at) FROM decision WHERE variant_id IS NOT NULL")[0]

        def chosen(row: census.Row) -> bool:
            end = entry.get(row.user or 0, now) + 3 * DAY
            return row.variant is not None and row.at < end <= last and end + 30 * MINUTE < now

        counted = census.count(unit, rewards, by="variant", chosen=chosen)
    assert totals(counted)
    assert figures(outcomes(store, Request(experiment="ab", age_us=3 * DAY))) == totals(counted)


@pytest.mark.slow
def test_units_of_an_experiment_by_session_are_sessions(shop_after: Story) -> None:
    store = shop_after(by="session")
    with store.read() as unit:
        rewards = {"default": lookup.reward(unit, "default")}
        counted = census.count(unit, rewards, by="variant", chosen=lambda row: row.variant is not None, by_session=True)
    result = outcomes(store, Request(experiment="ab"))
    assert (result["unit"], figures(result)) == ("session", totals(counted))


def rows(result: Result) -> list[Any]:
    return [*result["outcomes"], *result["differences"]]


@pytest.mark.slow
def test_portions_of_persons_add_up(shop_after: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    store = shop_after(moments=30)
    requests = [Request(experiment="ab", adjust=True), Request(by="version"), Request(by="week", rewards=REWARDS)]
    entire = [outcomes(store, request) for request in requests]
    defaults = {**(people.portions.__kwdefaults__ or {}), "size": 3}
    monkeypatch.setattr(people.portions, "__kwdefaults__", defaults)
    for request, expected in zip(requests, entire, strict=True):
        for row, other in zip(rows(outcomes(store, request)), rows(expected), strict=True):
            assert row == {name: figure(value) for name, value in other.items()}


@pytest.mark.slow
def test_an_experiment_is_read_from_its_own_persons_and_from_all_alike(
    shop_after: Story, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """What a batch holds is found by the policies of the variants; where there is more, the log is read."""
    store = shop_after(moments=30)
    requests = [Request(experiment="ab", adjust=True, rewards=REWARDS), Request(experiment="ab", by="users")]
    with store.read() as unit:
        n_sessions = sum(map(len, people.portions(unit)))
        selection = filters.selection(unit, "experiment=ab")
        few_test = selected.few_test(unit, selection)
        (batch,) = reader.batches(unit, selection, columns=("session_id",), few_test=few_test, by_id=True)
        theirs = people.portions(unit, np.unique(batch.slots["session_id"]))
    assert 0 < sum(map(len, theirs)) < n_sessions
    from_persons = [rows(outcomes(store, request)) for request in requests]
    monkeypatch.setattr(reader, "BATCH", 1)
    assert from_persons == [rows(outcomes(store, request)) for request in requests]


def figure(value: Any) -> Any:
    return pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value


def test_portions_are_whole_persons(store: Store) -> None:
    stocked(store)
    rng = np.random.default_rng(5)
    for number in range(12):
        serve(store, rng, days=number / 10, named=None)
    with store.read() as unit:
        owners: dict[int, int] = dict(unit.ask("SELECT id, coalesce(user_id, -id) FROM session"))
        portions = [portion.tolist() for portion in people.portions(unit, size=4)]
    assert sorted(number for portion in portions for number in portion) == sorted(owners)
    persons = [{owners[number] for number in portion} for portion in portions]
    assert len(persons) > 2
    assert sum(map(len, persons)) == len(set().union(*persons))


@pytest.mark.slow
def test_the_same_log_in_another_order_has_the_same_figures(shop_after: Story, sqlite_db: str, tmp_path: Path) -> None:
    shop_after(moments=30)
    exported = runner(sqlite_db)("export-log", "-").stdout.splitlines()
    figures = []
    for name, lines in (("forth", exported), ("back", exported[::-1])):
        run = empty_store(tmp_path / name)
        assert run("--now", LATER, "import-log", "-", "--layout", "jsonl", stdin="\n".join(lines)).exit_code == 0
        figures.append(run("--now", LATER, "outcomes", "--by", "week", "--json").json)
    for row, other in zip(rows(figures[0]), rows(figures[1]), strict=True):
        assert row == {name: figure(value) for name, value in other.items()}


@pytest.mark.slow
def test_an_audience_has_its_own_retention(sqlite_db: str) -> None:
    """A visitor who comes again is there 100 seconds later."""
    with closing(Store(sqlite_db, notice=lambda line: None)) as store:
        policy.create(store, policy.Request(name="u", kind="uniform"))
        played = simulate(store, Simulation(environment="choc-kale", policy="u", sessions=300, group=60, seed=1))
        store.now = None
        values = {row["metric"]: row["value"] for row in outcomes(store, Request())["outcomes"]}
    visitors = played["visitors"]
    assert values["retention"] == pytest.approx(played["retention"], rel=1e-12)
    assert values["visits"] == pytest.approx(played["visits_per_visitor"], rel=1e-12)
    assert values["returned_1d"] == pytest.approx((300 - visitors) / 300, rel=1e-12)
    assert values["decisions_per_visit"] == pytest.approx(played["session_length"], rel=1e-12)
    assert values["reward_per_visit"] == pytest.approx(played["reward_per_session"], rel=1e-12)


@pytest.mark.slow
def test_the_past_is_what_a_census_counts_at_the_assignment(shop_after: Story) -> None:
    """theta of visits by hand: the slope of visits on visits before, within variants."""
    store = shop_after()
    with store.read() as unit:
        rewards = {"default": lookup.reward(unit, "default")}
        chosen = lambda row: row.variant is not None  # noqa: E731
        after = census.count(unit, rewards, by="variant", chosen=chosen)
        entry: dict[int, int] = dict(unit.ask("SELECT user_id, at FROM assignment"))
        before = census.count(unit, rewards, by=None, chosen=lambda row: row.at < entry.get(row.user, 0))
    past = before[None, "visits"]
    pairs = [
        np.array([(count, past.get(key, (0.0, 0.0))[0]) for key, (count, _) in after[label, "visits"].items()])
        for label in "ab"
    ]
    covariance = sum(np.cov(sides.T, ddof=0) * len(sides) for sides in pairs)
    result = outcomes(store, Request(experiment="ab", adjust=True))
    row = next(row for row in result["differences"] if row["metric"] == "visits")
    assert row["theta"] == pytest.approx(covariance[0, 1] / covariance[1, 1], rel=1e-9)
    assert past


def test_units_with_earlier_visits_can_be_left_out(shop_after: Story) -> None:
    store = shop_after(moments=30)
    sides = [outcomes(store, Request(experiment="ab", users=users)) for users in ("new", "returning")]
    both = outcomes(store, Request(experiment="ab"))
    assert [side["new"] for side in sides] == [both["new"], 0]
    assert [side["returning"] for side in sides] == [0, both["returning"]]


def test_a_session_without_a_user_is_a_unit(store: Store) -> None:
    stocked(store)
    lines = [recommend.Request(session=key, policy="home") for key in "xyz"]
    recommend.recommend_group(clock(store, START), lines)
    result = outcomes(clock(store, START + 2 * DAY), Request())
    assert (result["unit"], result["new"], result["reasons"]) == ("session", 3, ["no-users"])


@pytest.mark.parametrize("by", [None, "policy"])
def test_sessions_without_a_user_do_not_dilute_returns(store: Store, by: str | None) -> None:
    """Five users who all come back after two days, beside a hundred sessions of nobody."""
    stocked(store)
    users = [recommend.Request(session=f"u{n}", user=f"u{n}", policy="home") for n in range(5)]
    nobody = [recommend.Request(session=f"s{n}", policy="home") for n in range(100)]
    recommend.recommend_group(clock(store, START), [*users, *nobody])
    recommend.recommend_group(clock(store, START + 2 * DAY), users)
    result = outcomes(clock(store, START + 20 * DAY), Request(by=by))
    values = {row["metric"]: (row["value"], row["units"], row["reasons"]) for row in result["outcomes"]}
    assert (result["anonymous"], result["reasons"]) == (100, ["anonymous-units"])
    assert values["retention"] == (1, 5, ["no-variation", "anonymous-units"])
    assert values["returned_7d"][:2] == (0.5, 5)
    assert values["visits"] == (pytest.approx(110 / 105), 105, [])
    named = outcomes(store, Request(by=by, users="named"))
    assert (named["new"], named["anonymous"], named["reasons"]) == (5, 0, [])
    assert next(row["value"] for row in named["outcomes"] if row["metric"] == "visits") == 2


def test_a_week_that_the_log_covers_in_part_says_so(store: Store) -> None:
    """From Friday, the 15th of January 2027, to the Sunday of the week after the next one."""
    stocked(store)
    for day in (0, 4, 9, 16):
        line = recommend.Request(session=f"s{day}", policy="home")
        recommend.recommend_group(clock(store, START + day * DAY), [line])
    result = outcomes(clock(store, START + 60 * DAY), Request(by="week"))
    visits = {row["group"]: row["reasons"] for row in result["outcomes"] if row["metric"] == "visits"}
    assert [*visits] == ["2027-01-11", "2027-01-18", "2027-01-25"]
    assert [label for label, reasons in visits.items() if "partial-week" in reasons] == ["2027-01-11"]
    assert all("partial-week" in row["reasons"] for row in result["differences"])


def test_hours_are_named_by_their_start_and_those_without_a_unit_left_out(store: Store) -> None:
    """START is 08:00 UTC; the visits begin at 08:00, 08:50 and 11:59."""
    stocked(store)
    for minutes in (0, 50, 239):
        line = recommend.Request(session=f"s{minutes}", policy="home")
        recommend.recommend_group(clock(store, START + minutes * MINUTE), [line])
    result = outcomes(clock(store, START + DAY), Request(by="hour"))
    units = {row["group"][11:]: row["units"] for row in result["outcomes"] if row["metric"] == "visits"}
    assert units == {"08:00Z": 2, "11:00Z": 1}


def test_a_visit_counts_for_every_policy_that_served_it(store: Store) -> None:
    stocked(store)
    lines = [recommend.Request(session="s", policy=name) for name in ("home", "home", "side")]
    recommend.recommend_group(clock(store, START), lines)
    result = outcomes(clock(store, START + DAY), Request(by="policy"))
    values = {(row["group"], row["metric"]): row["value"] for row in result["outcomes"]}
    assert [values[name, "visits"] for name in ("home", "side")] == [1, 1]
    assert [values[name, "decisions_per_visit"] for name in ("home", "side")] == [2, 1]


@pytest.mark.parametrize("by", ["policy", "version"])
def test_groups_are_compared_with_what_served_most_or_what_a_route_leads_to(store: Store, by: str) -> None:
    stocked(store)
    lines = [recommend.Request(session=f"s{n}", policy="side" if n else "home") for n in range(3)]
    recommend.recommend_group(clock(store, START), lines)
    for leading in ("side", "home"):
        result = outcomes(clock(store, START + DAY), Request(by=by))
        assert {str(row["against"]).split("@")[0] for row in result["differences"]} == {leading}
        route.create(store, route.Request(name="front", to="home"))


def test_sessions_without_a_user_are_units_of_a_ramp(sqlite_db: str) -> None:
    run = runner(sqlite_db)
    run("arm", "add", "x")
    for name in ("ts", "flat"):
        run("policy", "create", name, "--kind", "uniform")
    run("route", "create", "home", "--to", "ts")
    ramp = run("route", "set", "home", "--to", "flat", "--share", "50%", "--json").json["experiment"]
    users = ['"user": "u1"', '"user": "u1"', '"context": {}', '"context": {}']
    lines = "".join(f'{{"policy": "home", "session": "s{n}", {owner}}}\n' for n, owner in enumerate(users))
    run("recommend", "--input", "-", stdin=lines)
    result = run("--now", LATER, "outcomes", "--experiment", ramp, "--json").json
    assert sum(row["units"] for row in result["outcomes"] if row["metric"] == "visits") == 3
    shown = run("--now", LATER, "experiment", "show", ramp, "--json").json
    assert (result["anonymous"], shown["anonymous"], shown["reasons"]) == (2, 2, ["anonymous-units"])
    assert "3 units (2 of them sessions without a user: 66.7 %)" in run("experiment", "show", ramp).stdout
    assert sum(row["units"] for row in shown["variants"]) == 3


@pytest.mark.parametrize("late", [0, 30])
def test_an_experiment_whose_units_are_young_says_so(store: Store, late: int) -> None:
    """20 users come daily for ten days; others come on the last day for the first time."""
    stocked(store)
    split(store)
    for day in range(10):
        coming = range(20 + (late if day == 9 else 0))
        lines = [recommend.Request(session=f"{n}-{day}", user=f"u{n}", experiment="ab") for n in coming]
        recommend.recommend_group(clock(store, START + day * DAY), lines)
    clock(store, START + 11 * DAY)
    young = ["young-units"] if late else []
    assert compare.show(store, "ab")["reasons"] == young
    for users in (None, "new"):
        result = outcomes(store, Request(experiment="ab", users=users))
        reasons = [row["reasons"] for row in result["differences"] if row["metric"] == "visits"]
        assert [reason for reason in reasons[0] if reason == "young-units"] == young
    same_age = outcomes(store, Request(experiment="ab", age_us=5 * DAY))
    assert all("young-units" not in row["reasons"] for row in same_age["differences"])
    assert same_age["new"] == 20


@pytest.mark.parametrize("novel", [False, True])
def test_a_variant_that_was_better_for_those_who_came_first_alone_is_not_better(store: Store, novel: bool) -> None:
    """60 new users a day for eight days, each once. Half of those of `a` click; of those of `b` all do, or if it is
    only novel, all in the first four days and then a fifth: over all days it earns more, too."""
    stocked(store)
    split(store)
    for day in range(8):
        lines = [recommend.Request(session=f"{day}-{n}", user=f"{day}-{n}", experiment="ab") for n in range(60)]
        n_units = {"a": 0, "b": 0}
        for answer in recommend.recommend_group(clock(store, START + day * DAY), lines):
            n_units[answer["variant"]] += 1
            period = 2 if answer["variant"] == "a" else 5 if novel and day > 3 else 1
            if not n_units[answer["variant"]] % period:
                feedback.feedback(store, feedback.Line(decision_id=answer["decision_id"], events={"click": 1}))
    clock(store, START + 9 * DAY)
    request = Request(experiment="ab", age_us=DAY, metrics=("reward_per_unit",))
    (row,) = outcomes(store, request)["differences"]
    assert (row["answer"], row["reasons"]) == (("unknown", ["turned"]) if novel else ("better", []))
    assert row["value"] > 0.05
    assert ("turned_at" in row) == novel
    if novel:
        (newer,) = outcomes(store, replace(request, entered_us=START + 4 * DAY))["differences"]
        assert newer["value"] < -0.2


def test_units_are_young_in_the_first_week_though_nobody_came_again_yet(store: Store) -> None:
    """10 users a day come, and stay away for two days; after a week they are old enough, as most came once."""
    stocked(store)
    split(store)
    young = list[bool]()
    for day in range(10):
        coming = [*range(10 * day, 10 * day + 10), *([10 * day - 20] if day > 1 else [])]
        lines = [recommend.Request(session=f"{n}-{day}", user=f"u{n}", experiment="ab") for n in coming]
        recommend.recommend_group(clock(store, START + day * DAY), lines)
        clock(store, START + day * DAY + DAY // 2)
        young.append("young-units" in compare.show(store, "ab")["reasons"])
    assert young == [0 < day < 7 for day in range(10)]


def test_units_of_a_policy_that_began_late_are_young(store: Store) -> None:
    """20 users come daily for ten days to one policy; others come on the last day for the first time, to another."""
    stocked(store)
    for day in range(10):
        lines = [recommend.Request(session=f"{n}-{day}", user=f"u{n}", policy="home") for n in range(20)]
        late = [recommend.Request(session=f"late{n}", user=f"late{n}", policy="side") for n in range(30)]
        recommend.recommend_group(clock(store, START + day * DAY), lines + (late if day == 9 else []))
    clock(store, START + 11 * DAY)
    for by, names in (("policy", ("home", "side")), ("version", ("home@1", "side@1"))):
        rows = {(row["group"], row["metric"]): row["reasons"] for row in outcomes(store, Request(by=by))["outcomes"]}
        assert [("young-units" in rows[name, "visits"]) for name in names] == [False, True]
        assert "young-units" not in rows[names[1], "decisions_per_visit"]
    same_age = outcomes(store, Request(by="policy", age_us=5 * DAY))
    assert all("young-units" not in row["reasons"] for row in same_age["outcomes"])


def test_units_of_a_policy_that_stopped_before_they_came_again_are_young(store: Store) -> None:
    """Ten users a day come for the first time, and then daily: to one policy until day 4, then to another, which keeps
    them for ten days more. A policy that served them all from the beginning has had their visits."""
    stocked(store)
    for day in range(15):
        served = [("side" if day < 5 else "home", f"u{n}") for n in range(10 * min(day + 1, 5))]
        lines = [recommend.Request(session=f"{user}-{day}", user=user, policy=name) for name, user in served]
        recommend.recommend_group(clock(store, START + day * DAY), lines)
    clock(store, START + 16 * DAY)
    rows = {(row["group"], row["metric"]): row["reasons"] for row in outcomes(store, Request(by="policy"))["outcomes"]}
    assert [("young-units" in rows[name, "visits"]) for name in ("home", "side")] == [False, True]


def test_the_explanation_of_a_reason_names_the_few_metrics_that_have_it() -> None:
    metrics = {"visits": ["young-units"], "retention": ["young-units"], "returned_28d": ["few-clusters", "young-units"]}
    rows: list[dict[str, Any]] = [{"metric": name, "reasons": reasons} for name, reasons in metrics.items()]
    lines = explanations([*rows, {"variant": "b", "reasons": ["few-clusters"]}])  # of means per decision
    assert sorted(line.split(":")[0] for line in lines) == ["few-clusters (returned_28d)", "young-units"]
