"""Beliefs that count pulls by the examination of their position: the same sums on every way to them."""

from __future__ import annotations

import json
import re
from contextlib import closing
from typing import Any

import pytest

from rlrec.app.inputs import canonical
from rlrec.app.policies import policy, policy_beliefs, rebuild, train, versions
from rlrec.app.requests import settle
from rlrec.app.upkeep import doctor
from rlrec.errors import InputError
from rlrec.store import Store, Unit
from rlrec.store.policies import beliefs, curves, policies
from rlrec.times import format_time
from tests.app import logs
from tests.conftest import ON_BOTH, Run

CURVE = [1.0, 0.5, 0.25]
RATES = [0.6, 0.5, 0.4, 0.3]


def curve(db: str, *values: float, name: str = "home", minutes: float = 0) -> None:
    """A stored curve with these values."""
    rows = [{"position": index, "examination": value, "lower": None, "upper": None, "rewards": 9, "slots": 9}
            for index, value in enumerate(values or CURVE, 1)]  # fmt: skip
    report = {"clusters": 1, "reasons": [], "preferred": None, "log_likelihood": {}}

    def work(unit: Unit) -> None:
        before = curves.by_name(unit, name)
        curves.add(
            unit, name=name, number=1 if before is None else before.number + 1, reward_id=1, model="pbm",
            method="overlap", options=canonical.text({"log": None}), positions=canonical.text(rows),
            report=canonical.text(report),
        )  # fmt: skip

    with closing(logs.at(db, minutes)) as store:
        store.write(work)


def served(db: str, kind: str = "thompson", *, size: int = 3, **parameters: str) -> None:
    logs.catalogue(db, 4)
    curve(db)
    logs.create(db, "home", kind, floor="0.2", **{"position": "home"} | parameters)
    logs.serve(db, "home", pages=30, rates=RATES, size=size, curve=[*CURVE, 0.1], group=7)


def expected(db: str, values: list[float]) -> dict[str, tuple[float, float]]:
    """Pulls and rewards of each arm, from the log itself."""
    with closing(logs.at(db, 1e6)) as store, store.read() as unit:
        rows = unit.ask(
            "SELECT arm.key, s.position, count(*), coalesce(sum((SELECT count(*) FROM event e"
            " WHERE e.decision_id = s.decision_id AND e.position = s.position)), 0)"
            " FROM slot s JOIN arm ON arm.id = s.arm_id GROUP BY arm.key, s.position"
        )
    sums: dict[str, tuple[float, float]] = {}
    for arm, position, slots, clicks in rows:
        pulls, rewards = sums.get(arm, (0.0, 0.0))
        value = values[position - 1] if position <= len(values) else 0.0
        sums[arm] = pulls + float(slots) * value, rewards + (float(clicks) if value else 0.0)
    return sums


def shown(store: Store, reference: str = "home") -> Any:
    return policy_beliefs.show(store, reference)


def believed(db: str, reference: str = "home") -> dict[str, tuple[float, float]]:
    with closing(logs.at(db, 1e6)) as store:
        return {row["arm"]: (row["pulls"], row["reward_sum"]) for row in shown(store, reference)["arms"]}


def errors(store: Store) -> list[Any]:
    report = doctor.doctor(store, doctor.Request())
    return [finding for finding in report.findings if finding.severity == "error"]


def close(sums: dict[str, tuple[float, float]]) -> Any:
    return {arm: pytest.approx(both, abs=1e-9) for arm, both in sums.items()}


KINDS = [
    ("thompson", {}), ("ucb", {}), ("epsilon-greedy", {}), ("exp3", {}), ("lin-thompson", {}),
    ("logistic-thompson", {}), ("plackett-luce", {}), ("plackett-luce", {"model": "features"}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "parameters"), KINDS)
def test_every_kind_that_learns_counts_examined_pulls_once_and_for_all(
    sqlite_db: str, kind: str, parameters: dict[str, str]
) -> None:
    """Served and corrected by events, computed anew, frozen; and audited."""
    served(sqlite_db, kind, **parameters)
    sums = expected(sqlite_db, CURVE)
    assert believed(sqlite_db) == close(sums)
    with closing(logs.at(sqlite_db, 1e6)) as store:
        rebuild.rebuild(store, rebuild.Request(reference="home"))
        versions.freeze(store, "home")
        assert errors(store) == []
    assert believed(sqlite_db, "home@2") == close(sums)
    assert believed(sqlite_db, "home@3") == close(sums)


def test_settled_slots_count_as_much(db: str, run: Run) -> None:
    logs.catalogue(db, 4)
    curve(db)
    assert run("reward", "define", "late", "click=1", "--clip", "0,1", "--learn", "settled").exit_code == 0
    with closing(logs.at(db, 0)) as store:
        policy.create(store, policy.Request(
            name="home", kind="thompson", parameters={"floor": "0.2", "position": "home"}, reward="late"))  # fmt: skip
    logs.serve(db, "home", pages=30, rates=RATES, size=3, curve=CURVE, group=7)
    with closing(logs.at(db, 1e6)) as store:
        settle.settle(store)
    assert believed(db) == close(expected(db, CURVE))


def test_fading_sums_are_those_of_the_log(sqlite_db: str) -> None:
    served(sqlite_db, discount="0.95")
    with closing(logs.at(sqlite_db, 1e6)) as store:
        assert errors(store) == []


def test_a_slot_below_the_end_of_the_curve_adds_nothing(sqlite_db: str) -> None:
    logs.catalogue(sqlite_db, 4)
    curve(sqlite_db, 1.0, 0.5)
    logs.create(sqlite_db, "home", "thompson", position="home")
    logs.serve(sqlite_db, "home", pages=40, rates=RATES, size=4, curve=[*CURVE, 0.2], group=7)
    assert believed(sqlite_db) == close(expected(sqlite_db, [1.0, 0.5]))


def test_a_warm_start_counts_by_the_curve_too(sqlite_db: str) -> None:
    served(sqlite_db)
    logs.create(sqlite_db, "next", "thompson", minutes=1e5, position="home")
    with closing(logs.at(sqlite_db, 1e6)) as store:
        policy.create(store, policy.Request(
            name="warm", kind="thompson", parameters={"position": "home"}, from_log="policy=home"))  # fmt: skip
        rows = {row["arm"]: (row["pulls"], row["reward_sum"]) for row in shown(store, "warm")["arms"]}
    assert rows == close(expected(sqlite_db, CURVE))


@ON_BOTH
def test_a_rebuild_by_a_curve_makes_a_version_that_goes_on_counting_by_it(db: str) -> None:
    served(db, position="")
    plain = believed(db)
    with closing(logs.at(db, 1e3)) as store:
        answer = rebuild.rebuild(store, rebuild.Request(reference="home", position="home"))
        assert (answer["version"], answer["params"]["position"]) == (2, "home@1")
    assert believed(db, "home@2") == close(expected(db, CURVE))
    assert believed(db) == plain
    logs.serve(db, "home", pages=20, rates=RATES, size=3, curve=CURVE, group=7, start=2e3, seed=2)
    assert believed(db, "home@2") == close(expected(db, CURVE))
    with closing(logs.at(db, 1e6)) as store:
        versions.promote(store, "home@2")
        assert shown(store)["params"]["examination"] == CURVE
        assert errors(store) == []


def test_more_clicks_than_examined_pulls_leave_a_proper_belief(sqlite_db: str) -> None:
    logs.catalogue(sqlite_db, 3)
    curve(sqlite_db, 1.0, 0.1)
    logs.create(sqlite_db, "home", "thompson", position="home")
    logs.serve(sqlite_db, "home", pages=40, rates=[1.0] * 3, size=2, group=5)
    with closing(logs.at(sqlite_db, 1e6)) as store:
        rows = shown(store)["arms"]
    assert any(row["reward_sum"] > row["pulls"] for row in rows)
    assert all(0 <= row["lower"] <= row["upper"] <= 1 and 0 <= row["probability"] <= 1 for row in rows)


# -- names --


def test_a_policy_keeps_the_curve_that_its_name_meant(sqlite_db: str) -> None:
    served(sqlite_db)
    curve(sqlite_db, 1.0, 0.9, minutes=1e3)
    logs.create(sqlite_db, "home", "thompson", minutes=1e3, floor="0.2", position="home")  # the same again
    logs.create(sqlite_db, "other", "thompson", minutes=1e3, position="home")
    with closing(logs.at(sqlite_db, 1e6)) as store:
        assert shown(store)["params"]["position"] == "home@1"
        assert shown(store, "other")["params"]["position"] == "home@2"
        with pytest.raises(InputError, match="another definition"):
            logs.create(sqlite_db, "home", "thompson", minutes=1e6, floor="0.2", position="home@2")


def refused(db: str, kind: str, **parameters: str) -> str:
    with pytest.raises(InputError) as caught:
        logs.create(db, "p", kind, **parameters)
    with closing(logs.at(db, 1)) as store:
        assert versions.list_versions(store) == []
    return caught.value.message


def test_bad_curves_are_refused(run_sqlite: Run, sqlite_db: str) -> None:
    curve(sqlite_db)
    assert refused(sqlite_db, "thompson", position="hom") == "unknown position curve 'hom'"
    assert "no parameter 'position'" in refused(sqlite_db, "uniform", position="home")
    assert "no parameter 'examination'" in refused(sqlite_db, "thompson", examination="1,2")
    run_sqlite("reward", "define", "base", "click=1", "--default", "0.1", "--clip", "0,1")
    result = run_sqlite("policy", "create", "p", "--kind", "thompson", "--param", "position=home", "--reward", "base")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "takes a slot that nobody looked at to be worth 0" in result.stderr


def test_a_curve_of_another_reward_is_named_when_a_belief_counts_by_it(run_sqlite: Run, sqlite_db: str) -> None:
    served(sqlite_db)
    run_sqlite("reward", "define", "seconds", "dwell_s=0.01", "--clip", "0,1")
    create = ["policy", "create", "--kind", "thompson", "--param", "position=home"]
    created = run_sqlite(*create, "p", "--reward", "seconds")
    rebuilt = run_sqlite("--now", "2026-06-01", "policy", "rebuild", "home", "--reward", "seconds")
    for result in (created, rebuilt):
        assert result.exit_code == 0
        assert result.stderr.startswith(
            "curve home@1 was estimated for another reward than seconds: `rlrec position fit"
        )
    assert "another reward" not in run_sqlite(*create, "q").stderr


def test_show_names_the_curve(run_sqlite: Run, sqlite_db: str) -> None:
    served(sqlite_db)
    assert "position=home@1" in run_sqlite("policy", "show", "home").stdout
    answer = json.loads(run_sqlite("policy", "show", "home", "--json").stdout)
    assert (answer["params"]["position"], answer["params"]["examination"]) == ("home@1", CURVE)
    assert answer["counting"] == {"curve": "home@1", "in_bounds": False}
    logs.create(sqlite_db, "plain", "thompson", minutes=1e4)
    sides = run_sqlite("policy", "diff", "home", "plain").stdout.splitlines()[:2]
    assert ["curve home@1" in side for side in sides] == [True, False]


def test_means_are_those_of_the_posterior_wherever_they_are_shown(run_sqlite: Run, sqlite_db: str) -> None:
    served(sqlite_db)
    means = {row["arm"]: row["mean"] for row in run_sqlite("policy", "show", "home", "--json").json["arms"]}
    words = ["recommend", "--policy", "home", "--session", "z", "-k", 2, "--json"]
    answer = run_sqlite("--now", "2026-06-01", *words).json
    arms = run_sqlite("decision", "show", answer["decision_id"], "--json").json["arms"]
    assert {arm["arm"]: arm["mean"] for arm in arms} == {arm["arm"]: arm["score"] for arm in arms} == means


def test_bounds_hold_the_error_of_the_curve(sqlite_db: str) -> None:
    served(sqlite_db)
    with closing(logs.at(sqlite_db, 1e6)) as store:
        exact = shown(store)["arms"]
        bounds = json.dumps([{"position": index, "examination": value, "lower": value / 1.5, "upper": value * 1.5,
                              "rewards": 9, "slots": 9} for index, value in enumerate(CURVE, 1)])  # fmt: skip
        store.write(lambda unit: unit.tell("UPDATE position_curve SET positions = ?", bounds))
        unsure = shown(store)["arms"]
    for before, after in zip(exact, unsure, strict=True):
        assert after["mean"] == before["mean"]
        assert 0 <= after["lower"] < before["lower"]
        assert before["upper"] < after["upper"] <= 1


def test_a_belief_without_misses_by_position_is_damaged(sqlite_db: str, run_sqlite: Run) -> None:
    served(sqlite_db)
    with closing(Store(sqlite_db)) as store:
        store.write(lambda unit: unit.tell("UPDATE belief SET extra = ?", bytes(8)))
    result = run_sqlite("policy", "show", "home").failed(1)
    assert "the belief of home@1 has 4 sums of an arm, where its kind counts 6" in result


# -- doctor --


def warned(db: str, check: str = "positions", *, minutes: float = 1e6) -> list[str]:
    with closing(logs.at(db, minutes)) as store:
        return [finding.detail for finding in doctor.doctor(store, doctor.Request()).findings if finding.check == check]


@pytest.mark.slow
def test_doctor_warns_where_clicks_fall_with_the_position_and_no_curve_is_used(sqlite_db: str) -> None:
    served(sqlite_db, position="")
    logs.serve(sqlite_db, "home", pages=600, rates=RATES, size=3, curve=CURVE, group=50, start=100)
    (detail,) = warned(sqlite_db)
    assert "of those at position 1, and the belief uses no curve" in detail
    assert "rlrec policy rebuild home --position home" in detail


@pytest.mark.slow
def test_doctor_names_no_curve_for_a_kind_that_cannot_use_one(run_sqlite: Run) -> None:
    """A gradient has no belief to rebuild, and its log no marginals for `position fit`."""
    run_sqlite("policy", "create", "home", "--kind", "gradient", "--param", "floor=0.2").done()
    rates = "--env", "rates=0.6,0.5,0.4,0.3", "--env", "power=2"
    run_sqlite("simulate", "pbm", "--policy", "home", "--sessions", 800, "--group", 50, "-k", 3, *rates, "--seed", 1)
    assert "position fit" not in run_sqlite("doctor").stdout


@pytest.mark.slow
def test_doctor_names_a_curve_for_a_variant_that_position_fit_takes(run_sqlite: Run) -> None:
    run_sqlite("policy", "create", "home", "--kind", "thompson", "--param", "floor=0.2")
    run_sqlite("experiment", "create", "ab", "--variant", "a=home", "--holdout-uniform", "1%", "--unit", "session")
    rates = "--env", "rates=0.6,0.5,0.4,0.3", "--env", "power=2"
    run_sqlite("simulate", "pbm", "--experiment", "ab", "--sessions", 800, "--group", 50, "-k", 3, *rates, "--seed", 1)
    (finding,) = (line for line in run_sqlite("doctor").stdout.splitlines() if "position fit" in line)
    commands = [command.removeprefix("rlrec ").split() for command in re.findall(r"`(rlrec [^`]+)`", finding)]
    assert [run_sqlite(*command).exit_code for command in commands] == [0, 0]
    assert "once its experiment has ended, `rlrec policy rebuild home --position home`" in finding


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["thompson", "ucb"])
def test_doctor_has_the_figure_of_position_fit_or_none(kind: str, run_sqlite: Run) -> None:
    """Readers look at positions 2 to 4 with .62, .46 and .38. `ucb` draws nothing, so that no curve can be fitted."""
    run_sqlite("policy", "create", "home", "--kind", kind)
    rates = "--env", "rates=0.3,0.25,0.25" + ",0.2" * 9, "--env", "power=0.7"
    run_sqlite("simulate", "pbm", "--policy", "home", "--sessions", 700, "--group", 35, "-k", 4, *rates, "--seed", 1)
    (finding,) = (line for line in run_sqlite("doctor").stdout.splitlines() if "position fit" in line)
    fitted = run_sqlite("position", "fit", "home", "--log", "policy=home", "--json")
    earn = "below position 1 earn less than"
    if kind == "thompson":
        below = fitted.json["positions"][1:]
        share = sum(row["examination"] * row["slots"] for row in below) / sum(row["slots"] for row in below)
        earn = f"at positions 2 to 4 earn {share:.0%} of"
    assert fitted.exit_code == (0 if kind == "thompson" else 3)
    assert f"at equal arms, slots {earn} those at position 1" in finding
    log = "home`, then" if kind == "thompson" else "OTHER` on the log of a policy with marginals"
    assert f"`rlrec position fit home --log policy={log}" in finding


@pytest.mark.slow
def test_doctor_is_content_where_clicks_do_not_fall_or_a_curve_is_used(sqlite_db: str) -> None:
    served(sqlite_db)
    logs.create(sqlite_db, "flat", "thompson", minutes=100, floor="0.2")
    logs.serve(sqlite_db, "flat", pages=600, rates=RATES, size=3, group=50, start=100)
    assert warned(sqlite_db) == []


def test_doctor_warns_where_slates_are_longer_than_the_curve(sqlite_db: str) -> None:
    served(sqlite_db, size=4)
    assert warned(sqlite_db) == [
        "slates have up to 4 positions, and curve home@1 ends at 3: slots below it teach nothing"
    ]


def test_doctor_warns_where_all_events_are_of_pages_and_no_slot_learns(sqlite_db: str, run_sqlite: Run) -> None:
    served(sqlite_db, size=2, position="")
    with closing(logs.at(sqlite_db, 1e5)) as store:
        store.write(lambda unit: unit.tell("DELETE FROM event"))
    clock = "--allow-future", "--now", format_time(logs.START + 100 * logs.MINUTE)
    run_sqlite(*clock, "feedback", "1", "click")
    assert warned(sqlite_db, "feedback", minutes=200) == [
        "whatever reward default weighs came for pages (1 event), and the belief learns from slots alone: "
        "`rlrec feedback --position P` says which slot an event is of"
    ]
    run_sqlite(*clock, "feedback", "1", "click", "--position", "2")
    assert warned(sqlite_db, "feedback", minutes=200) == []


# -- train-pg --


def weights(db: str, **options: Any) -> list[bytes]:
    """Weights of the arms after a training of slots by themselves."""
    with closing(logs.at(db, 1e6)) as store:
        answer = train.train(store, train.Request(name="visits", seed=2, epochs=1, top_k=3, **options))
        with store.read() as unit:
            (version,) = (version for version in policies.versions(unit, [2]) if version.number == answer["version"])
            return [row for _, row in beliefs.weights(unit, version.id)]


@pytest.mark.slow
def test_slots_that_train_by_themselves_are_paid_by_their_examination(sqlite_db: str) -> None:
    """A flat curve changes nothing; the policy's own is the default."""
    logs.catalogue(sqlite_db, 4)
    curve(sqlite_db)
    curve(sqlite_db, 1.0, 1.0, 1.0, name="flat")
    logs.create(sqlite_db, "home", "uniform")
    logs.create(sqlite_db, "visits", "gradient", position="home")
    logs.serve(sqlite_db, "home", pages=300, rates=RATES, size=3, curve=CURVE, group=100)
    separate, named, flat = weights(sqlite_db), weights(sqlite_db, position="home"), weights(sqlite_db, position="flat")
    assert separate == named != flat
    with pytest.raises(InputError, match="unknown position curve"):
        weights(sqlite_db, position="hom")


# -- evaluate --


def estimated(db: str, estimator: str, **options: Any) -> dict[str, Any]:
    return logs.estimate(db, "uniform", estimator, log="policy=home", **options)


@pytest.mark.simulation
def test_a_reward_model_by_a_curve_separates_attraction_from_examination(sqlite_db: str) -> None:
    """The logger shows good arms above, so that effects of arms and positions do not add up."""
    served(sqlite_db)
    logs.serve(sqlite_db, "home", pages=9_000, rates=RATES, size=3, curve=CURVE, group=750, start=100)
    truth = sum(RATES) / 4 * sum(CURVE) / 3
    curved, additive = estimated(sqlite_db, "dm", position="home"), estimated(sqlite_db, "dm")
    assert abs(curved["value"] - truth) < min(0.01, abs(additive["value"] - truth))
    assert "position-model" in curved["reasons"]
    assert (curved["curve"], additive["curve"]) == ("home@1", None)
    robust = estimated(sqlite_db, "dr", position="home")
    assert robust["lower"] < truth < robust["upper"]


def test_a_table_of_rewards_is_that_of_the_first_position(sqlite_db: str, tmp_path: Any) -> None:
    served(sqlite_db)
    table = tmp_path / "model.csv"
    table.write_text("arm,reward\n*,0.4\n")
    flat = estimated(sqlite_db, "dm", reward_model=str(table))["value"]
    curved = estimated(sqlite_db, "dm", reward_model=str(table), position="home")["value"]
    assert (flat, curved) == pytest.approx((0.4, 0.4 * sum(CURVE) / 3))


def test_a_curve_for_no_reward_model_is_refused(sqlite_db: str) -> None:
    served(sqlite_db)
    for estimator, name in (("snips", "home"), ("dm", "hom")):
        with pytest.raises(InputError, match=r"no estimator has a reward model|unknown position curve"):
            estimated(sqlite_db, estimator, position=name)
