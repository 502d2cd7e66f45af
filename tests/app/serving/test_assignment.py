"""Assignment: units keep their variants through phases, or move as a ramp wants it."""

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import pytest

from rlrec.app.experiments import ending, experiment, route
from rlrec.app.experiments.experiment import VariantSpec
from rlrec.app.requests import recommend, user
from rlrec.app.serving.planned_requests import plan_group
from rlrec.app.upkeep import doctor
from rlrec.errors import InputError
from rlrec.store import Store
from rlrec.store.policies import experiments
from tests.app.conftest import Clocked
from tests.app.workers import draws_new_users, together, users_of_experiment
from tests.conftest import ON_BOTH


def split(store: Store, *, b: float = 1.0, name: str = "ab", **options: Any) -> None:
    variants = VariantSpec(label="a", policy="ts"), VariantSpec(label="b", policy="u", weight=b)
    experiment.create(store, experiment.Request(name=name, variants=variants, **options))


def served(store: Store, first: int, last: int, **target: Any) -> dict[str, str | None]:
    """The variant of each of some users."""
    users = [f"u{number}" for number in range(first, last)]
    lines = [recommend.Request(session=key, user=key, **(target or {"experiment": "ab"})) for key in users]
    return {line["user"]: line["variant"] for line in recommend.recommend_group(store, lines)}


def begin(store: Store, weights: Mapping[str, float], **options: Any) -> None:
    def work(unit: Any) -> None:
        experiments.begin_phase(unit, experiments.by_name(unit, ["ab"])["ab"].id, weights, **options)

    store.write(work)


def findings(store: Store) -> list[Any]:
    return doctor.doctor(store, doctor.Request()).findings


@ON_BOTH
def test_units_keep_their_variants_and_new_ones_are_drawn_by_the_new_weights(at: Clocked) -> None:
    split(at(0))
    before = served(at(1), 0, 200)
    begin(at(2), {"a": 1, "b": 19})
    assert served(at(3), 0, 200) == before
    assert 175 <= Counter(served(at(3), 200, 400).values())["b"] <= 200  # 190 +- 3: one in 10,000
    assert findings(at(4)) == []


@ON_BOTH
def test_a_larger_share_of_a_ramp_moves_units_to_the_last_variant_and_gives_none_back(at: Clocked) -> None:
    split(at(0), b=0.1)
    steps = [served(at(1), 0, 300)]
    for step, share in enumerate((0.2, 0.5, 0.9), start=2):
        begin(at(2 * step), {"a": 1 - share, "b": share}, moves=True)
        steps.append(served(at(2 * step + 1), 0, 300))
        assert {user for user, label in steps[-2].items() if label == "b"} <= {
            user for user, label in steps[-1].items() if label == "b"
        }
        count = Counter(steps[-1].values())["b"]
        assert abs(count - 300 * share) < 4 * (300 * share * (1 - share)) ** 0.5
    assert findings(at(20)) == []


@ON_BOTH
def test_a_unit_belongs_to_its_phase_where_the_clock_stands_still(at: Clocked) -> None:
    split(at(0))
    served(at(9), 0, 20)
    begin(at(9), {"a": 1, "b": 9})
    served(at(9), 20, 40)
    with at(10).read() as unit:
        ab = experiments.by_name(unit, ["ab"])["ab"]
        phases = experiments.phases(unit, ab)
        rows = unit.ask("SELECT at FROM assignment ORDER BY id")
    numbers = [phases.index(experiments.phase_of_time(phases, row[0])) for row in rows]
    assert numbers == [0] * 20 + [1] * 20


# -- units that an experiment does not take --


def test_a_clock_before_the_phase_is_told_that_decisions_have_its_time(at: Clocked) -> None:
    split(at(0))
    begin(at(9), {"a": 1, "b": 9})
    store, notices = at(5), list[str]()
    store.notice = notices.append
    answer = recommend.recommend(store, recommend.Request(session="new", user="new", experiment="ab"))
    assert [answer["at"] in text for text in notices] == [True]
    assert findings(at(10)) == []


def test_a_frozen_experiment_takes_no_unit_and_serves_those_that_it_has(at: Clocked) -> None:
    split(at(0))
    before = served(at(1), 0, 40)
    assert experiment.freeze(at(2), "ab")["status"] == "frozen"
    assert served(at(3), 0, 40) == before
    answer = recommend.recommend(at(3), recommend.Request(session="new", user="new", experiment="ab", request_id="r1"))
    assert (answer["experiment"], answer["variant"], answer["policy"]) == (None, None, "ts")
    assert experiment.freeze(at(4), "ab")["already_frozen"]
    assert findings(at(4)) == []
    experiment.set_weights(at(5), "ab", {"a": 1, "b": 1})
    assert set(served(at(6), 40, 80).values()) == {"a", "b"}
    assert findings(at(7)) == []


def test_a_unit_that_was_planned_before_a_phase_is_planned_anew(at: Clocked, monkeypatch: pytest.MonkeyPatch) -> None:
    split(at(0))
    waiting = [at(1)]
    monkeypatch.setattr(recommend, "MAX_QUICK_CELLS", 0)  # else nobody comes between

    def freeze_behind(*args: Any, **options: Any) -> Any:
        planned = plan_group(*args, **options)
        while waiting:
            experiment.freeze(waiting.pop(), "ab")
        return planned

    monkeypatch.setattr(recommend, "plan_group", freeze_behind)
    assert set(served(at(1), 0, 10).values()) == {None}
    assert findings(at(7)) == []


@ON_BOTH
@pytest.mark.slow
def test_a_frozen_experiment_takes_no_unit_of_many_processes(at: Clocked, db: str) -> None:
    split(at(0))
    held, *drawn = together(draws_new_users, db, range(5))
    variants = {key: label for users in drawn for key, label in users.items()}
    assert 20 <= len(held) == len(variants) - 4 * 3
    assert {key for key, label in variants.items() if label is not None} == set(held)
    with closing(Store(db)) as store:
        assert users_of_experiment(store) == set(held)
        assert findings(store) == []


def members(store: Store) -> dict[str, set[str]]:
    """The users of each experiment."""
    with store.read() as unit:
        rows = unit.ask(
            "SELECT e.name, u.key FROM assignment a JOIN experiment e ON e.id = a.experiment_id"
            " JOIN users u ON u.id = a.user_id"
        )
    users: dict[str, set[str]] = {}
    for name, key in rows:
        users.setdefault(name, set()).add(key)
    return users


@ON_BOTH
def test_two_experiments_of_a_layer_share_no_unit_and_a_third_gets_what_is_left(at: Clocked) -> None:
    split(at(0), layer="page", layer_share=0.3)
    split(at(0), layer="page", layer_share=0.5, name="second")
    split(at(0), layer="page", name="third")
    split(at(0), name="other")
    for name in ("ab", "second", "third", "other"):
        served(at(1), 0, 400, experiment=name)
    users = members(at(2))
    assert sum(len(users[name]) for name in ("ab", "second", "third")) == len(users["other"]) == 400
    assert users["ab"] | users["second"] | users["third"] == users["other"]
    assert abs(len(users["ab"]) - 120) < 4 * 84**0.5
    assert abs(len(users["third"]) - 80) < 4 * 64**0.5
    assert findings(at(3)) == []


def test_what_a_stopped_experiment_had_of_its_layer_is_free(at: Clocked) -> None:
    split(at(0), layer="page", layer_share=0.3)
    split(at(0), layer="page", layer_share=0.3, name="second")
    split(at(0), layer="page", name="third")
    for refused in ({}, {"layer_share": 0.1}):
        with pytest.raises(InputError, match="0 % left beside ab and second and third"):
            split(at(0), layer="page", name="fourth", **refused)
    with pytest.raises(InputError, match="assign by user"):
        split(at(0), layer="page", name="fourth", by="session")
    for name in ("ab", "third"):
        ending.stop(at(1), name)
    split(at(2), layer="page", layer_share=0.6, name="fourth")
    with at(2).read() as unit:
        parts = json.loads(str(experiments.by_name(unit, ["fourth"])["fourth"].parts))["intervals"]
    assert parts == [[0.0, 0.3], [0.6, pytest.approx(0.9)]]


@ON_BOTH
def test_users_of_two_experiments_of_a_layer_who_are_merged_stay_in_the_first(at: Clocked) -> None:
    split(at(0), layer="page", layer_share=0.5)
    split(at(0), layer="page", name="second")
    served(at(1), 0, 20)
    served(at(2), 0, 20, experiment="second")
    users = members(at(2))
    first, second = min(users["ab"]), min(users["second"])
    user.merge(at(3), first, second)
    assert recommend.recommend(at(4), recommend.Request(session="n", user=first, experiment="ab"))["variant"]
    answer = recommend.recommend(at(4), recommend.Request(session="m", user=second, experiment="second"))
    assert (answer["variant"], answer["policy"]) == (None, "ts")
    assert findings(at(5)) == []


def test_the_holdout_of_a_route_stays_out_of_experiments_that_are_named(at: Clocked) -> None:
    split(at(0))
    route.create(at(0), route.Request(name="home", to="ts", holdout=0.3))
    route.create(at(0), route.Request(name="cart", to="ts"))
    route.set_route(at(0), route.Request(name="cart", to="u", share=0.5))
    first = served(at(1), 0, 100)  # before they come to the route
    by_route = served(at(2), 0, 200, policy="home")
    later = served(at(3), 0, 200)
    held_out = {user for user, label in by_route.items() if label == "holdout"}
    assert 30 < len(held_out) < 90
    assert {user for user, label in (first | later).items() if label is None} == held_out
    assert {user for user, label in served(at(4), 0, 200, policy="cart").items() if label is None} == held_out
    assert findings(at(5)) == []


@pytest.mark.parametrize(
    "damage",
    ["UPDATE assignment SET at = at + 600000000", "UPDATE experiment SET parts = replace(parts, '0.0', '0.4')"],
)
def test_doctor_finds_units_that_their_phase_or_layer_cannot_have_given(at: Clocked, damage: str) -> None:
    split(at(0), layer="page", layer_share=0.5)
    served(at(1), 0, 60)
    experiment.freeze(at(2), "ab")
    assert findings(at(3)) == []
    at(3).write(lambda unit: unit.tell(damage))
    assert [row.subject for row in findings(at(20))] == ["experiment ab"]
