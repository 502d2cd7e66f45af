"""Training for whole visits: what teaches, what comes of it, and that nothing else makes a difference."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.experiments import experiment
from rlrec.app.judging.status import status
from rlrec.app.log import ended_visits
from rlrec.app.log.splits import GATE, TUNE, splits
from rlrec.app.policies import policy, policy_beliefs, train, versions
from rlrec.app.requests import feedback, recommend, session
from rlrec.app.setup import arm, reward
from rlrec.app.training import dataset_writer
from rlrec.app.training.ascent import PageWeights
from rlrec.errors import CheckFailed, InputError
from rlrec.sentences import gate_claim
from rlrec.store import Store
from rlrec.store.log import sessions, settings
from rlrec.store.log.selected import Selection, any_common
from rlrec.store.log.sessions import Session
from rlrec.store.policies import policies
from tests.app.shop import MINUTE, START, clock, dump, tell_all, version
from tests.app.visitors import (
    ARMS,
    FEATURES,
    LATER,
    QUICK,
    SHAPES,
    apart,
    ignored,
    opened,
    parameters,
    serve,
    trained,
    twin,
)  # fmt: skip
from tests.conftest import ON_BOTH, filled, runner

AB = experiment.Request(
    name="ab", by="session",
    variants=[experiment.VariantSpec(label="a", policy="visits"), experiment.VariantSpec(label="b", policy="base")],
)  # fmt: skip
SETS = (ARMS, ARMS[:3], ARMS[1:], ARMS[:2], ARMS[2:], ARMS[1:3])


@pytest.fixture
def sqlite(sqlite_db: str) -> Iterator[Store]:
    with closing(Store(sqlite_db, notice=ignored)) as store:
        yield store


def logged(db: str) -> None:
    """120 visits of 60 users on pages of one arm, logged by a uniform policy."""
    with closing(Store(db)) as store:
        serve(opened(store), users=60)


@pytest.fixture
def shop(sqlite_db: str) -> Iterator[Store]:
    filled(sqlite_db, logged)
    with closing(Store(sqlite_db, now=LATER, notice=ignored)) as store:
        yield store


def notices_of(store: Store) -> list[str]:
    """What the store notices from now on."""
    result: list[str] = []
    store.notice = result.append
    return result


def learned(store: Store, number: int) -> dict[str, Any]:
    """What a version remembers of its log."""
    with store.read() as unit:
        return dict(version(unit, "visits", number).learned_from)


def live(store: Store) -> int:
    with store.read() as unit:
        return version(unit, "visits").number


# -- the same again --


def imported(template: Path, path: Path, groups: list[list[str]], keys: list[str]) -> Store:
    """A store in which the same log came in another order."""
    shutil.copy(template, path)
    return taken_in(str(path), groups, keys)


def taken_in(db: str, groups: list[list[str]], keys: list[str]) -> Store:
    store = Store(db, now=LATER, notice=ignored)
    arm.put(store, lambda: [[(key, {"heat": SHAPES[key]}) for key in keys]])
    policy.create(store, policy.Request(name="visits", kind="gradient", features=FEATURES))
    run = runner(db)
    for lines in groups:
        run("--now", "2027-01-16T08:00:00Z", "import-log", "-", "--layout", "jsonl", stdin="\n".join(lines)).done()
    return store


@pytest.mark.slow
def test_the_order_of_a_log_makes_no_difference(sqlite_template: Path, tmp_path: Path) -> None:
    """Nor that of arms and of eligible sets: lines come in any order, under other ids, after their own export."""
    shutil.copy(sqlite_template, tmp_path / "first.db")
    with closing(Store(str(tmp_path / "first.db"))) as first:
        serve(opened(first), users=50, eligible=lambda number: SETS[number % 6])
        trained(first, gamma=0.9, entropy=0.01)
        result = [parameters(first)]
    run = runner(str(tmp_path / "first.db"))
    lines = run("--now", "2027-01-16T08:00:00Z", "export-log", "-").stdout.splitlines()
    for turn in (1, 2):
        random.Random(turn).shuffle(lines)
        groups = [lines[:50], lines[50:]]
        keys = random.Random(turn).sample(ARMS, len(ARMS))
        with closing(imported(sqlite_template, tmp_path / f"{turn}.db", groups, keys)) as other:
            trained(other, gamma=0.9, entropy=0.01)
            result.append(parameters(other))
    assert max(apart(result[0], other) for other in result[1:]) <= 1e-12


def salted(db: str, salt: str) -> str:
    """The store as `init` makes it: splits follow keys, whatever the salt."""
    with closing(Store(db)) as store:
        store.write(lambda unit: unit.tell("UPDATE settings SET salt = ?", settings.BY_KEY + salt))
    return db


@ON_BOTH
@pytest.mark.slow
def test_a_log_trains_the_same_in_any_store(db: str, sqlite_template: Path, tmp_path: Path) -> None:
    """In another database, under another salt, with its lines reversed: parameters, gate and splits."""
    other = str(shutil.copy(sqlite_template, tmp_path / "other.db"))
    with closing(Store(salted(db, "one"))) as store:
        serve(opened(store), size=2, users=60, eligible=lambda number: SETS[number % 6])
        answers, learned = [trained(store, gamma=0.9)], [parameters(store)]
        splits = [{key: row.split for key, row in stored_sessions(store).items()}]
    lines = runner(db)("--now", "2027-01-16T08:00:00Z", "export-log", "-").stdout.splitlines()
    with closing(taken_in(salted(other, "two"), [lines[::-1]], ARMS[::-1])) as store:
        answers, learned = [*answers, trained(store, gamma=0.9)], [*learned, parameters(store)]
        splits.append({key: row.split for key, row in stored_sessions(store).items()})
    assert splits[0] == splits[1]
    assert len(set(splits[0].values())) == 3
    assert apart(*learned) <= 1e-12
    for name in ("estimate", "lower", "upper", "value", "live_value", "ess", "tune_estimate", "tune_lower"):
        assert answers[0][name] == pytest.approx(answers[1][name], rel=1e-12)


def stored_sessions(store: Store) -> dict[str, Session]:
    with store.read() as unit:
        return sessions.find(unit, [row[0] for row in unit.ask("SELECT key FROM session")])


def test_a_store_keeps_the_salt_that_its_splits_were_drawn_with(sqlite: Store) -> None:
    serve(opened(sqlite), users=20)
    rows = stored_sessions(sqlite)
    assert [row.split for row in rows.values()] == splits("salt", [row.user or key for key, row in rows.items()])


def test_the_same_seed_trains_the_same_and_another_one_does_not(shop: Store) -> None:
    for seed in (1, 1, 2):
        trained(shop, seed=seed)
    assert apart(parameters(shop, 2), parameters(shop, 3)) == 0.0
    assert apart(parameters(shop, 2), parameters(shop, 4)) > 1e-6


def test_how_much_is_read_at_a_time_makes_no_difference(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(shop)
    for number, cells in enumerate((1, 50), start=3):
        monkeypatch.setattr(dataset_writer, "MAX_CELLS", cells)
        trained(shop)
        assert apart(parameters(shop, 2), parameters(shop, number)) == 0.0


def test_without_a_seed_the_one_drawn_trains_the_same_again(shop: Store) -> None:
    result = trained(shop, seed=None)
    trained(shop, seed=result["seed"])
    assert learned(shop, 2)["options"]["seed"] == result["seed"]
    assert apart(parameters(shop, 2), parameters(shop, 3)) == 0.0


@ON_BOTH
def test_either_database_trains(store: Store) -> None:
    opened(store)
    serve(store, size=2, users=60)
    result = trained(store, promote="always")
    assert (result["version"], result["promoted"], result["sessions"], live(store)) == (2, True, 120, 2)
    assert set(parameters(store)) == {*ARMS, "cross", "history", "similar"}
    serve(store, name="visits", visits=20, start=LATER, prefix="n", size=2)


# -- what teaches --


@pytest.mark.slow
def test_a_policy_learns_what_pleases_later(shop: Store) -> None:
    """Tea, but not twice in a row, as the arm's own history says."""
    trained(shop, epochs=20, lr=0.02, patience=20, promote="always")
    result = serve(shop, name="visits", visits=400, start=LATER + MINUTE, prefix="n", seed=7)
    tea = np.mean([page["slate"][0]["arm"] == "tea" for page in result[0]])
    again = np.mean([
        after["slate"][0]["arm"] == "tea"
        for before, after in zip(result[0], result[1], strict=True) if before["slate"][0]["arm"] == "tea"
    ])  # fmt: skip
    assert tea > 0.35
    assert again < tea - 0.1


def test_visits_that_go_on_or_are_young_do_not_teach(shop: Store) -> None:
    serve(shop, visits=30, start=LATER - 40 * MINUTE, prefix="young")
    notices = notices_of(clock(shop, LATER - 12 * MINUTE))  # more than the reward window, less than both
    assert trained(shop)["sessions"] == 120
    assert any("30 not over, or still within their reward windows" in line for line in notices)


def test_a_visit_that_was_ended_teaches_once_its_windows_are_over(shop: Store) -> None:
    serve(shop, visits=3, start=LATER, prefix="n")
    clock(shop, LATER + MINUTE)
    for number in range(3):
        session.end(shop, f"n{number}")
    assert trained(clock(shop, LATER + 30 * MINUTE))["sessions"] == 120
    assert trained(clock(shop, LATER + 31 * MINUTE))["sessions"] == 123


def test_a_visit_with_a_censored_slot_does_not_teach(shop: Store) -> None:
    feedback.feedback(shop, feedback.Line(decision_id=5, position=1, censor=True))
    notices = notices_of(shop)
    assert trained(shop)["sessions"] == 119
    assert any("1 cut by the filter, with a censored slot" in line for line in notices)


def test_visits_that_a_filter_cuts_are_left_out(shop: Store) -> None:
    serve(shop, visits=40, steps=1, start=LATER, prefix="x")  # begun by base, gone on with by another policy
    policy.create(shop, policy.Request(name="other", kind="uniform"))
    mixed = [recommend.Request(policy="other", session=f"x{number}") for number in range(20)]
    recommend.recommend_group(clock(shop, LATER + MINUTE), mixed)
    clock(shop, LATER + 300 * MINUTE)
    assert trained(shop)["sessions"] == 160
    assert trained(shop, log="policy=base")["sessions"] == 140
    with pytest.raises(InputError, match="empty log"):
        trained(shop, log="policy=other")


@pytest.mark.slow
def test_since_means_visits_that_began_then_or_later(shop: Store) -> None:
    serve(shop, visits=50, start=LATER, prefix="n")
    clock(shop, LATER + 300 * MINUTE)
    assert trained(shop, since=START)["sessions"] == 170
    assert trained(shop, since=START + 1)["sessions"] == 50
    assert trained(shop, since=LATER, log="policy=base")["sessions"] == 50
    with pytest.raises(InputError, match="empty log"):
        trained(shop, since=LATER + MINUTE)


def test_visits_without_an_end_are_left_out(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a robot asked is no visit, and judging one takes memory by its length."""
    serve(shop, visits=2, steps=5, start=LATER, prefix="robot")
    notices = notices_of(clock(shop, LATER + 300 * MINUTE))
    monkeypatch.setattr(ended_visits, "MAX_VISIT_DECISIONS", 4)
    assert trained(shop)["sessions"] == 120
    assert "sessions that are not used: 2 of more than 4 decisions" in notices


def test_a_reward_that_cannot_be_reckoned_with_is_named(shop: Store) -> None:
    at = START + MINUTE
    feedback.feedback(shop, feedback.Line(decision_id=7, position=1, events={"pay": 1e40}, at=at))
    reward.define(shop, reward.Request(name="rich", weights="pay=1", window_us=30 * MINUTE))
    policy.create(shop, policy.Request(name="greedy", kind="gradient", reward="rich"))
    with pytest.raises(InputError, match="a slate earned 1e\\+40 by reward rich"):
        trained(shop, name="greedy")


def split_of(store: Store, split: int) -> list[str]:
    """Keys of the sessions of a part."""
    with store.read() as unit:
        return [key for (key,) in unit.ask("SELECT key FROM session WHERE split = ? ORDER BY key", split)]


def clicked(store: Store, split: int) -> Store:
    """Every page of a part is clicked ten times more."""
    options = "SELECT decision.id FROM decision JOIN session ON session.id = session_id WHERE split = ?"
    with store.read() as unit:
        ids = [number for (number,) in unit.ask(options, split)]
    at = START + 2 * MINUTE
    lines = [feedback.Line(decision_id=number, events={"reward": 10.0 + number % 3}, at=at) for number in ids]
    tell_all(store, lines)
    return store


def test_what_the_gate_sees_does_not_teach(shop: Store, tmp_path: Path) -> None:
    with closing(clicked(twin(shop, tmp_path), 2)) as other:
        item, two = trained(shop), trained(other)
        assert apart(parameters(shop), parameters(other)) == 0.0
    assert (item["version"], item["gate_sessions"]) == (two["version"], two["gate_sessions"])
    assert item["value"] != two["value"]


@pytest.mark.slow
@pytest.mark.parametrize(("db", "size"), [("postgres", 1), ("sqlite", 2)], indirect=["db"])
def test_the_gate_says_what_evaluate_and_the_gate_of_a_route_say(db: str, size: int) -> None:
    """By the same rows, reward and discount: users have several visits, and one came late."""
    with closing(Store(db, notice=ignored)) as store:
        serve(opened(store), visits=300, users=120, size=size)
        serve(store, visits=12, steps=1, start=START + MINUTE, prefix="late")
        serve(store, visits=12, users=1, steps=2, start=START + 2 * MINUTE, prefix="late")
        trained(store, gamma=0.9, epochs=3)
        with store.read() as unit:
            gate = policies.reports(unit, version(unit, "visits").policy.id, since=0)[-1]["gate"]
    run = runner(db)
    now, options = ("--now", "2027-01-16T08:00:00Z"), ("--gamma", 0.9, "--json")
    targets = ("visits@2", "visits@1", "--estimator", gate["estimator"])
    ours, theirs = run(*now, "evaluate", *targets, "--log", "split=gate", *options).json
    assert gate["value"] == pytest.approx(ours["value"], rel=1e-9)
    assert gate["live_value"] == pytest.approx(theirs["value"], rel=1e-9)
    assert gate["ess"] == pytest.approx(min(ours["ess"], theirs["ess"]), rel=1e-9)
    (visits,) = run(*now, "evaluate", "visits@2", "--estimator", "wdr", "--log", "split=gate", *options).json
    assert (gate["estimator"], gate["sessions"]) == ("wdr" if size == 1 else "dr", visits["n"])
    (waiting,) = filter(None, (row["waiting"] for row in run(*now, "status", "--json").json["policies"]))
    assert (waiting["answer"], waiting["passed"]) == (gate_claim(gate, "visits@2").sentence, gate["passed"])
    assert run(*now, "route", "create", "home", "--to", "visits@1").exit_code == 0
    route = run(*now, "route", "set", "home", "--to", "visits@2", "--require", "if-better", *options).json["gate"]
    for name in ("value", "live_value", "estimate", "std_error", "ess"):
        assert gate[name] == pytest.approx(route[name], rel=1e-9)
    assert gate["lower"] > route["lower"]  # a route keeps most of its error for later looks at the same versions
    for look in (gate, route):
        for report in (look, look["visits"] or {}):
            report.pop("lower", None)
            report.pop("upper", None)
    assert [gate[name] for name in ("verdict", "reasons", "visits")] == [
        route[name] for name in ("verdict", "reasons", "visits")
    ]


def test_what_tunes_chooses_the_epoch_and_teaches_nothing(shop: Store, tmp_path: Path) -> None:
    with closing(clicked(twin(shop, tmp_path), 1)) as other:
        for store in (shop, other):
            trained(store, epochs=1)
        assert apart(parameters(shop), parameters(other)) == 0.0


def test_epochs_that_all_earn_less_than_the_start_are_said_to(sqlite: Store) -> None:
    """Which arms please is the other way round in the part that tunes."""
    serve(opened(sqlite), visits=400, steps=2)
    trained(sqlite)
    biases = {key: weights[0] for key, weights in parameters(sqlite, 2).items() if key in ARMS}
    joined = "decision d JOIN session v ON v.id = d.session_id JOIN slot s ON s.decision_id = d.id JOIN arm a"
    with sqlite.read() as unit:
        rows = unit.ask(f"SELECT d.id, a.key FROM {joined} ON a.id = s.arm_id WHERE v.split = ?", TUNE)
        rewards = {number: {"reward": -100.0 * float(biases[key])} for number, key in rows}
    at = START + 2 * MINUTE
    tell_all(sqlite, [feedback.Line(decision_id=number, events=events, at=at) for number, events in rewards.items()])
    result = trained(sqlite)
    assert max(point["gain"] for point in policy_beliefs.show(sqlite, "visits@3")["training"]["curve"]) < 0
    assert result["why"] == "every epoch earned less than version 1 on the tune split; the best one is kept"


def test_a_log_that_shows_no_direction_is_said_to(sqlite: Store) -> None:
    """Clicks are those of a coin: the gradients of the batches cancel out."""
    coin = random.Random(5)
    serve(opened(sqlite), visits=200, liked=lambda *_: coin.random() < 0.5)
    result = trained(sqlite)
    assert {point["kl"] for point in policy_beliefs.show(sqlite, "visits@2")["training"]["curve"]} == {0.0}
    assert result["why"].startswith("the sessions that train do not agree on what earns more, so that no epoch changed")


def test_the_visits_of_a_user_stay_in_one_part(shop: Store) -> None:
    result = [{f"u{int(key[1:]) % 60}" for key in split_of(shop, number)} for number in range(3)]
    assert all(result)
    assert len(set.union(*result)) == sum(map(len, result)) == 60


def test_a_session_whose_user_came_later_is_left_out_where_the_part_would_change(sqlite: Store) -> None:
    opened(sqlite)
    serve(sqlite, visits=60, steps=1)
    serve(sqlite, visits=60, steps=2, users=1, start=START + MINUTE)  # all of them are one user's
    with sqlite.read() as unit:
        separate = [split for (split,) in unit.ask("SELECT split FROM session")]
    notices = notices_of(sqlite)
    retained = max(separate.count(number) for number in range(3))
    try:
        sessions = trained(sqlite)["sessions"]
    except InputError:
        return  # the user belongs to a part that does not teach
    assert sessions <= retained
    assert any("belongs to another split" in line for line in notices)


def test_a_session_whose_user_came_later_is_judged_in_no_split_but_the_users(sqlite: Store, sqlite_db: str) -> None:
    opened(sqlite)
    serve(sqlite, visits=60, steps=1)
    serve(sqlite, visits=60, steps=2, users=1, start=START + MINUTE)
    with sqlite.read() as unit:
        stored = [split for (split,) in unit.ask("SELECT split FROM session")]
        (split_of_user,) = splits(settings.get(unit).split_salt, ["u0"])
    judged = []
    for number, name in enumerate(("train", "tune", "gate")):
        words = ("evaluate", "uniform", "--estimator", "pdis", "--log", f"split={name}", "--json")
        answer = runner(sqlite_db)("--now", "2027-01-16T08:00:00Z", *words)
        judged.append(answer.json[0]["n"] if answer.exit_code == 0 else 0)
        assert judged[number] == (stored.count(number) if number == split_of_user else 0)
    assert 0 < sum(judged) < 60


# -- how pages are weighed --


@pytest.mark.parametrize(
    ("changed", "weights"),
    [({}, "slate"), ({"ess_share": 0.4}, "slot"), ({"clipped_share": 0.1}, "slot"), ({"earned_by_slots": 0.2}, "slot"),
     ({"ess_share": 0.4, "max_positions": 1}, "slate"),
     ({"earned_by_slots": 1.0, "has_missing_propensities": True}, "slate")],
)  # fmt: skip
def test_slots_are_weighed_where_they_earn_or_joint_weights_are_hopeless(changed: dict[str, Any], weights: str) -> None:
    page_weights = PageWeights(
        ess_share=0.9, clipped_share=0.0, max_positions=5, has_missing_propensities=False, earned_by_slots=0.05
    )
    assert replace(page_weights, **changed).auto_weights == weights


@pytest.mark.slow
def test_the_answer_says_how_pages_were_weighed(sqlite: Store) -> None:
    serve(opened(sqlite), size=2)
    lines: list[str] = []
    answers = [
        train.train(sqlite, train.Request(**QUICK, weights=weights), progress=lines.append)
        for weights in ("auto", "slate", "slot")
    ]
    assert [answer["weights"] for answer in answers] == ["slot", "slate", "slot"]
    assert apart(parameters(sqlite, 2), parameters(sqlite, 4)) == 0.0
    assert apart(parameters(sqlite, 2), parameters(sqlite, 3)) > 1e-3
    earned = "slots earn 100% of the rewards, pages as a whole the rest"
    assert lines[0] == f"weights: by slot ({earned}; weights of whole slates: 100.0% effective, 0.0% clipped)"
    assert learned(sqlite, 2)["options"]["weights"] == "slot"


# -- what is kept --


def test_a_version_records_what_made_it(shop: Store) -> None:
    options = {"gamma": 0.9, "log": "policy=base", "shaping": {"session:reward": 0.5}, "clip_weight": None}
    trained(shop, **options)
    with shop.read() as unit:
        answers, report = version(unit, "visits", 2), policies.report(unit, version(unit, "visits", 2).id)
        parent = version(unit, "visits", 1)
    retained = answers.learned_from
    assert (answers.parent_id, answers.status, answers.reward.name) == (parent.id, "frozen", "default")
    assert (retained["filter"], retained["last_id"], retained["now"]) == ("policy=base", 360, LATER)
    assert (retained["splits"], retained["sessions"], retained["slots"]) == ([0, 1], 120, 360)
    assert retained["options"].items() >= {"seed": 1, "epochs": 2, "batch": 40, "baseline": "value", **options}.items()
    assert report is not None
    assert [point["epoch"] for point in report["curve"]] == [1, 2]
    assert report["gate"]["estimator"] == "wdr"


def test_the_learning_curve_is_shown(shop: Store) -> None:
    answer = trained(shop)
    with shop.read() as unit:
        name = version(unit, "visits", 2).policy.name
    shown = policy_beliefs.show(shop, f"{name}@2")["training"]
    assert len(shown["curve"]) == answer["epochs"]
    for point in shown["curve"]:
        assert point["lower"] <= point["gain"] <= point["upper"]
        assert 0 < point["entropy"] <= np.log(4) + 1e-9
        assert point["kl"] >= 0
        assert point["variance"] < point["variance_without_baseline"]
    assert shown["gate"]["estimate"] == answer["estimate"]


def test_versions_start_from_the_live_one_or_the_one_named(shop: Store) -> None:
    assert trained(shop, promote="always")["parent"] == 1
    assert trained(shop)["parent"] == 2
    assert trained(shop, from_version=1)["parent"] == 1
    assert apart(parameters(shop, 2), parameters(shop, 4)) == 0.0
    assert apart(parameters(shop, 2), parameters(shop, 3)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("promote", ["never", "always"])
def test_new_is_what_came_since_the_last_training(shop: Store, promote: str) -> None:
    """Promoted or not: to train again on the same log is one more look of the gate, and tells nothing."""
    assert trained(shop, min_new=120, promote=promote)["trained"]
    assert not trained(shop, min_new=1)["trained"]
    serve(shop, visits=30, start=LATER, prefix="n")
    clock(shop, LATER + 300 * MINUTE)
    assert not trained(shop, min_new=31)["trained"]
    assert trained(shop, min_new=30)["sessions"] == 150


def test_the_answer_has_the_same_keys_with_and_without_a_version(shop: Store) -> None:
    result = [set(trained(shop, min_new=number)) - {"why"} for number in (1, 10_000)]
    assert result[0] == result[1]


# -- promotion --


@pytest.mark.slow
def test_a_candidate_whose_start_never_served_is_compared_with_what_did(sqlite: Store, tmp_path: Path) -> None:
    """The log shows tea nine times out of ten, and tea alone pleases, four times out of five: a visit of two earned
    1.44, and can earn 1.6. Of the uniform version it tells next to nothing."""
    opened(sqlite)
    lines = ["arm,probability", "tea,0.9", *(f"{key},{0.1 / 3}" for key in ARMS[1:])]
    (tmp_path / "narrow.csv").write_text("\n".join(lines))
    options = {"probabilities": str(tmp_path / "narrow.csv")}
    policy.create(sqlite, policy.Request(name="narrow", kind="fixed", parameters=options))
    rng = np.random.default_rng(1)
    serve(sqlite, name="narrow", visits=1_500, steps=2, liked=lambda key, *_: key == "tea" and rng.random() < 0.8)
    result = trained(sqlite, lr=0.05, epochs=40, batch=200, promote="if-better", cluster="session")
    assert (result["promoted"], result["against"]) == (True, None)
    assert result["live_value"] == pytest.approx(1.44, abs=0.12)  # 3 standard errors of 300 visits
    assert result["lower"] < 0.16 < result["upper"]


def test_a_version_served_the_visits_of_a_split_where_one_of_them_is_its_own(shop: Store) -> None:
    with shop.read() as unit:
        logs = [Selection(version_ids=[version(unit, name).id]) for name in ("base", "visits")]
        assert [any_common(unit, Selection(splits=[GATE]), log) for log in logs] == [True, False]
        assert not any_common(unit, Selection(splits=[3]), logs[0])


def test_a_candidate_that_nothing_speaks_for_is_kept_and_not_promoted(sqlite: Store) -> None:
    opened(sqlite)
    serve(sqlite, visits=300, steps=2, liked=lambda key, step, before: bool(hash((step, len(before))) % 2))
    result = trained(sqlite, promote="if-better")
    assert (result["promoted"], live(sqlite), result["version"]) == (False, 1, 2)
    assert result["why"]
    (waiting,) = filter(None, (row["waiting"] for row in status(sqlite)["policies"]))
    assert (waiting["answer"], waiting["passed"]) == ("visits@2: no gate has looked at it", False)


def test_a_version_that_went_live_meanwhile_stays(shop: Store) -> None:
    trained(shop)
    rival = Store(str(shop.url.database), now=LATER, notice=ignored)
    from rlrec.app.policies import train

    def meanwhile(text: str) -> None:
        if text.startswith("epoch 2"):
            versions.promote(rival, "visits@2")

    options = {"name": "visits", "seed": 2, "epochs": 2, "batch": 40, "promote": "if-better"}
    result = train.train(shop, train.Request(**options), progress=meanwhile)
    rival.close()
    assert (result["promoted"], result["why"], live(shop)) == (False, "another version went live meanwhile", 2)


@pytest.mark.slow
def test_each_look_of_the_gate_costs(shop: Store) -> None:
    looks = [trained(shop, seed=seed) for seed in (1, 2, 3)]
    assert [look["candidate"] for look in looks] == [1, 2, 3]
    assert [look["alpha"] for look in looks] == pytest.approx(
        [0.15 / (np.pi * j) ** 2 + 0.025 / 365 for j in (1, 2, 3)], rel=1e-12
    )
    again, another = trained(shop, seed=2), trained(shop, seed=4)
    figures = ("candidate", "alpha", "estimate", "lower")
    assert [again[name] for name in figures] == [looks[1][name] for name in figures]
    assert (again["repeated"], another["repeated"], another["candidate"]) == (True, False, 4)
    clock(shop, LATER + 366 * 24 * 60 * MINUTE)
    assert trained(shop)["candidate"] == 1


def test_a_variant_of_a_running_experiment_is_not_promoted(shop: Store) -> None:
    """Experiments never change: the same refusal as that of `policy promote`, before anything is trained."""
    experiment.create(shop, AB)
    before = dump(shop)
    with pytest.raises(InputError, match="running experiment"):
        trained(shop, name="visits@ab/a", promote="always")
    assert dump(shop) == before
    assert trained(shop, name="visits@ab/a")["version"] == 2


# -- every option changes something --

OPTIONS: dict[str, dict[str, Any]] = {
    "gamma": {"gamma": 0.5},
    "no baseline": {"baseline": "none"},
    "mean": {"baseline": "mean"},
    "rloo": {"baseline": "rloo"},
    "undiscounted": {"gamma": 0.5, "discounted": False},
    "entropy": {"entropy": 0.3},
    "clip-weight": {"clip_weight": 0.5},
    "top-k": {"top_k": 2},
    "lr": {"lr": 0.001},
    "batch": {"batch": 5},
    "epochs": {"epochs": 4},
    "shaping": {"shaping": {"session:step": 1.0}},
}


@pytest.mark.slow
def test_every_option_changes_what_is_learned(shop: Store) -> None:
    answers = {
        name: trained(shop, patience=9, **options)["version"] for name, options in {"plain": {}, **OPTIONS}.items()
    }
    result = {name: parameters(shop, number) for name, number in answers.items()}
    names = list(result)
    equal = [
        (name, other) for index, name in enumerate(names) for other in names[index + 1 :]
        if apart(result[name], result[other]) < 1e-6
    ]  # fmt: skip
    assert equal == []


@pytest.mark.slow
def test_without_discounting_gamma_still_shapes_the_return(shop: Store) -> None:
    for options in ({"gamma": 1.0}, {"gamma": 1.0, "discounted": False}, {"gamma": 0.5}, {"gamma": 0.0}):
        trained(shop, **options)
    assert apart(parameters(shop, 2), parameters(shop, 3)) == 0.0
    assert apart(parameters(shop, 4), parameters(shop, 5)) > 1e-4


def test_patience_ends_the_climb(shop: Store) -> None:
    result = trained(shop, epochs=50, lr=0.3, patience=2)
    assert result["epochs"] == result["best_epoch"] + 2 < 50


def test_a_kl_limit_ends_the_climb_and_its_last_epoch_does_not_count(shop: Store) -> None:
    result = trained(shop, epochs=50, lr=0.005, kl_stop=0.05, patience=50)
    curve = policy_beliefs.show(shop, "visits@2")["training"]["curve"]
    assert curve[-1]["kl"] > 0.05 >= curve[-2]["kl"]
    assert result["best_epoch"] < result["epochs"] == len(curve)


def test_clipping_takes_a_share_and_says_so(shop: Store) -> None:
    for clip in (None, 20.0, 0.5):
        trained(shop, clip_weight=clip)
    shares = [policy_beliefs.show(shop, f"visits@{number}")["training"]["curve"][0]["clipped"] for number in (2, 3, 4)]
    assert shares[:2] == [0.0, 0.0]
    assert 0.3 < shares[2] < 1


def test_estimates_are_of_the_unshaped_reward(shop: Store) -> None:
    for weight in (0.0, 1e-9):
        trained(shop, shaping={"session:reward": weight} if weight else {})
    first, second = (policy_beliefs.show(shop, f"visits@{number}")["training"]["gate"] for number in (2, 3))
    assert first["value"] == pytest.approx(second["value"], abs=1e-6)
    trained(shop, shaping={"session:reward": 100.0})
    third = policy_beliefs.show(shop, "visits@4")["training"]["gate"]
    assert third["live_value"] == first["live_value"]


# -- arms, slates, loggers --


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_pages_teach_by_their_joint_probability(sqlite: Store, size: int) -> None:
    opened(sqlite, parameters={"floor": "0.05"})
    serve(sqlite, size=size, eligible=lambda number: SETS[number % 3])
    result = trained(sqlite, promote="always")
    assert result["sessions"] == 120
    pages = serve(sqlite, name="visits", size=size, visits=40, start=LATER, prefix="n")
    joint = [np.prod([slot["propensity"] for slot in page["slate"]]) for page in pages[0]]
    assert joint == pytest.approx([page["propensity"] for page in pages[0]])
    clock(sqlite, LATER + 300 * MINUTE)
    again = trained(sqlite, log="policy=visits", epochs=1, lr=1e-9)  # judged on its own log: weights are 1
    assert again["value"] == pytest.approx(again["live_value"], abs=1e-6)


@pytest.mark.slow
def test_arms_come_and_go(sqlite: Store) -> None:
    """What is retired keeps what it taught, and an arm never seen is scored by its features."""
    opened(sqlite)
    serve(sqlite, liked=lambda key, step, before: SHAPES[key] > 0.4)
    arm.retire(clock(sqlite, LATER), ["mate"], is_retired=True)
    arm.put(
        sqlite,
        lambda: [[("fire", {"heat": 2.0}), ("ice", {"heat": -2.0})]],
    )
    trained(sqlite, epochs=10, lr=0.05, patience=10, promote="always")
    arm.put(sqlite, lambda: [[("lava", {"heat": 2.0})]])
    shown = {row["arm"]: row["probability"] for row in policy_beliefs.show(sqlite, "visits")["arms"]}
    assert shown["fire"] == pytest.approx(shown["lava"], rel=1e-9)
    assert shown["lava"] > shown["ice"]
    serve(
        sqlite, name="visits", visits=20, start=LATER + MINUTE, prefix="n", eligible=lambda number: ["lava", "mate"][:1]
    )
    clock(sqlite, LATER + 300 * MINUTE)
    assert trained(sqlite)["sessions"] == 140
    assert {"lava", "mate"} <= set(parameters(sqlite))


@pytest.mark.slow
def test_a_visit_teaches_with_arms_as_they_were_described(sqlite: Store, tmp_path: Path) -> None:
    opened(sqlite)
    serve(sqlite)
    with closing(twin(sqlite, tmp_path)) as other:
        line = ("tea", {"heat": -3.0})
        arm.put(other, lambda: [[line]])
        for store in (sqlite, other):
            trained(store)
        assert apart(parameters(sqlite), parameters(other)) == 0.0
        serve(other, visits=30, start=LATER, prefix="n")
        assert trained(clock(other, LATER + 300 * MINUTE))["sessions"] == 150


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["thompson", "epsilon-greedy", "softmax"])
def test_any_kind_may_have_logged(sqlite: Store, logger: str) -> None:
    opened(sqlite, logger=logger)
    serve(sqlite, size=2)
    result = trained(sqlite)
    assert result["sessions"] == 120
    assert 0 < result["ess"] <= result["gate_sessions"]


def test_variants_of_an_experiment_teach(shop: Store) -> None:
    experiment.create(shop, AB)
    serve(shop, name="", experiment="ab", visits=60, start=LATER, prefix="e")
    clock(shop, LATER + 300 * MINUTE)
    assert trained(shop)["sessions"] == 180
    assert trained(shop, log="experiment=ab")["sessions"] == 60


def test_another_reward_teaches_otherwise(shop: Store) -> None:
    reward.define(shop, reward.Request(name="bad", weights="click=-1", window_us=30 * MINUTE))
    policy.create(shop, policy.Request(name="averse", kind="gradient", reward="bad", features=FEATURES))
    for name in ("visits", "averse"):
        trained(shop, name=name)
    item, two = parameters(shop), parameters(shop, name="averse")
    assert item["tea"][0] > 0 > two["tea"][0]
    assert json.loads(json.dumps(learned(shop, 2))) == learned(shop, 2)


def test_a_run_is_written_down_and_promotes_nothing_by_itself(shop: Store) -> None:
    assert not trained(shop)["promoted"]
    assert live(shop) == 1
    with shop.read() as unit:
        assert unit.ask_value("SELECT count(*) FROM run WHERE command = 'train-pg'") == 1
    with pytest.raises(CheckFailed, match="no promotion"):
        versions.rollback(shop, "visits")
