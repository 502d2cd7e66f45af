"""Version 1 of a trained policy that starts from a bandit."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.distributions import exact
from rlrec.app.inputs import lookup
from rlrec.simulate.shop import Shop
from rlrec.store import Store, Unit
from tests.conftest import Run, begin, filled, runner
from tests.simulate import shops


def served(run: Run, name: str) -> dict[str, float]:
    """Probability of each arm at position 1."""
    return {row["arm"]: row["probability"] for row in run("policy", "show", name, "--json").json["arms"]}


def served_by(db: str, kind: str, audience: str = "bernoulli") -> None:
    """A bandit `ts` of a kind that has served an audience."""
    run = runner(db)
    run("policy", "create", "ts", "--kind", kind, "--param", "floor=0.05")
    run("simulate", audience, "--policy", "ts", "--sessions", "300", "--group", "20", "--seed", "1")


def graduated(run: Run, *options: str) -> Any:
    return run("policy", "create", "pg", "--kind", "gradient", "--from-policy", "ts", *options, "--json").json


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["thompson", "ucb"])
def test_version_1_serves_what_the_bandit_serves(sqlite_db: str, run_sqlite: Run, kind: str) -> None:
    filled(sqlite_db, served_by, kind)
    answer = graduated(run_sqlite)
    assert answer["kl"] < 1e-9
    assert served(run_sqlite, "pg") == pytest.approx(served(run_sqlite, "ts"), abs=1e-6)
    assert graduated(run_sqlite) == answer | {"created": False}


def test_rules_that_are_not_copied_are_named(run_sqlite: Run) -> None:
    run, copied = run_sqlite, ("policy", "create", "--kind", "gradient", "--from-policy", "ts")
    for arm in "abc":
        run("arm", "add", arm, "--features", '{"shelf": "x"}')
    rules = ("--param", "block=c", "--param", "most=shelf=2", "--param", "not_shown=3/7d")
    assert run("policy", "create", "ts", "--kind", "thompson", "--param", "floor=0.05", *rules).exit_code == 0
    options = "--param block=c --param not_shown=3/7d --param most=shelf=2"
    notice = f"rules of ts are not copied; under another name, `policy create` takes {options}"
    assert notice in run(*copied, "pg").stderr
    answer = run(*copied, "pg2", *options.split())
    assert (answer.exit_code, "not copied" in answer.stderr) == (0, False)


@pytest.mark.slow
def test_an_arm_that_is_new_to_it_counts_as_a_mean_one(sqlite_db: str, run_sqlite: Run) -> None:
    filled(sqlite_db, served_by, "thompson")
    graduated(run_sqlite)
    run_sqlite("arm", "add", "new")
    assert served(run_sqlite, "pg")["new"] == pytest.approx(1 / 11, abs=1e-6)


@pytest.mark.slow
def test_a_floor_that_is_given_counts_and_the_kl_says_what_it_costs(sqlite_db: str, run_sqlite: Run) -> None:
    filled(sqlite_db, served_by, "thompson")
    answer = graduated(run_sqlite, "--param", "floor=0.5")
    assert answer["params"]["floor"] == 0.5
    before, after = (np.array(list(served(run_sqlite, name).values())) for name in ("ts", "pg"))
    assert answer["kl"] == pytest.approx(float(before @ np.log(before / after)), rel=1e-6)
    assert answer["kl"] > 0.01


def test_a_copy_explores_where_its_bandit_does_not(run_sqlite: Run) -> None:
    run_sqlite("policy", "create", "ts", "--kind", "thompson")
    run_sqlite("simulate", "bernoulli", "--policy", "ts", "--sessions", "100", "--group", "20", "--seed", "1")
    assert graduated(run_sqlite)["params"]["floor"] == 0.02


@pytest.mark.slow
def test_a_bandit_that_reads_contexts_is_copied_with_its_features(sqlite_db: str, run_sqlite: Run) -> None:
    filled(sqlite_db, served_by, "softmax", "contextual")
    assert graduated(run_sqlite)["kl"] < 1e-4
    features = [run_sqlite("policy", "show", name, "--json").json["features"] for name in ("ts", "pg")]
    assert features[0] == features[1]


def test_a_bandit_that_served_nothing_is_copied_on_the_contexts_of_the_log(run_sqlite: Run) -> None:
    """In an empty context it would serve all arms alike: a copy of that would earn what the log earned."""
    run_sqlite("policy", "create", "log", "--kind", "uniform")
    run_sqlite("simulate", "contextual", "--policy", "log", "--sessions", "1000", "--group", "500", "--seed", "1")
    run_sqlite("policy", "create", "ts", "--kind", "softmax", "--from-log", "policy=log", "--param", "floor=0.02")
    answer = graduated(run_sqlite)
    assert 1e-9 < answer["kl"] < 0.01
    estimates = run_sqlite("evaluate", "ts", "pg", "--log", "policy=log", "--estimator", "dr", "--json").json
    bandit, copy = (estimate["value"] for estimate in estimates)
    assert copy == pytest.approx(bandit, abs=0.01)
    assert (
        bandit
        > 1.1 * run_sqlite("evaluate", "log", "--log", "policy=log", "--estimator", "ips", "--json").json[0]["value"]
    )


def test_a_request_without_a_context_does_not_stand_for_the_log(run_sqlite: Run) -> None:
    """One look at a new bandit, typed by hand: in that context alone a copy would be exact, and elsewhere uniform."""
    run_sqlite("policy", "create", "log", "--kind", "uniform")
    run_sqlite("simulate", "contextual", "--policy", "log", "--sessions", "1000", "--group", "500", "--seed", "1")
    run_sqlite("policy", "create", "ts", "--kind", "softmax", "--from-log", "policy=log", "--param", "floor=0.02")
    run_sqlite("recommend", "--policy", "ts", "--session", "s1")
    assert 1e-9 < graduated(run_sqlite)["kl"] < 0.01
    estimates = run_sqlite("evaluate", "ts", "pg", "--log", "policy=log", "--estimator", "dr", "--json").json
    bandit, copy = (estimate["value"] for estimate in estimates)
    assert copy == pytest.approx(bandit, abs=0.01)


def test_a_bandit_that_reads_contexts_is_not_copied_without_any(run_sqlite: Run) -> None:
    begin(run_sqlite, "a", "log", "uniform")
    run_sqlite("recommend", "--policy", "log", "--session", "s1")
    run_sqlite("policy", "create", "ts", "--kind", "softmax")
    answer = run_sqlite("policy", "create", "pg", "--kind", "gradient", "--from-policy", "ts").failed(2)
    assert answer.endswith(
        "Error: ts cannot be copied: it served nothing, and the log has no contexts. "
        "`rlrec recommend --policy ts --context JSON` logs requests to copy it on\n"
    )
    run_sqlite("recommend", "--policy", "ts", "--session", "s2", "--context", '{"x": 1}')
    assert graduated(run_sqlite)["created"]


def test_a_bandit_that_served_nothing_is_copied_where_nothing_was_logged(run_sqlite: Run) -> None:
    begin(run_sqlite, "a", "ts", "thompson")
    assert graduated(run_sqlite)["kl"] == 0


@pytest.mark.slow
def test_what_the_bandit_learned_from_is_in_the_sample_of_version_1(sqlite_db: str, run_sqlite: Run) -> None:
    filled(sqlite_db, served_by, "thompson")
    graduated(run_sqlite)
    assert "in-sample" in run_sqlite("evaluate", "pg", "--json").json[0]["reasons"]


@pytest.mark.parametrize("kind", ["gradient", "two-stage"])
def test_a_policy_that_cannot_be_copied_is_refused(run_sqlite: Run, kind: str) -> None:
    run_sqlite("policy", "create", "ts", "--kind", kind)
    answer = run_sqlite("policy", "create", "pg", "--kind", "gradient", "--from-policy", "ts").failed(2)
    assert "cannot be copied" in answer


def test_a_bandit_of_sampled_probabilities_is_copied_from_its_log(run_sqlite: Run) -> None:
    run_sqlite("arm", "import", "-", stdin='{"arm": "a", "features": {"x": 1}}\n{"arm": "b", "features": {"x": 0}}\n')
    run_sqlite("policy", "create", "ts", "--kind", "lin-thompson", "--param", "model=shared")
    for n in range(30):
        run_sqlite("recommend", "--policy", "ts", "--session", f"s{n}", "--context", '{"hour": 9}', "--seed", n)
    create = ("policy", "create", "pg", "--kind", "gradient")
    refused = run_sqlite(*create, "--from-policy", "ts").failed(2)
    assert "`--from-log policy=ts` in place of --from-policy" in refused
    assert run_sqlite(*create, "--from-log", "policy=ts", "--json").json["created"]


@pytest.mark.simulation
def test_version_1_earns_on_pages_what_the_bandit_earns(sqlite_db: str) -> None:
    run = runner(sqlite_db)
    run("policy", "create", "ts", "--kind", "thompson")
    run("simulate", "shop", "--policy", "ts", "--sessions", "600", "--group", "100", "-k", "5", "--seed", "1")
    assert graduated(run, "--param", "floor=0")["kl"] < 0.3
    with closing(Store(sqlite_db)) as store, store.read() as unit:
        policies = [played(unit, name) for name in ("ts", "pg")]
    bandit, copy = (shops.play(Shop(), policy, positions=5, visitors=3_000, seed=2).clicks for policy in policies)
    error = np.sqrt(bandit.var() / len(bandit) + copy.var() / len(copy))
    assert copy.mean() > bandit.mean() - error


def played(unit: Unit, name: str) -> shops.Pages:
    """The noisy scores of a version without a floor."""
    distribution = exact.load(unit, lookup.version(unit, name)[0])
    assert distribution.policy.exploration == 0
    ids = np.arange(1, Shop().arms + 1)
    case = distribution.case("all", ids, {}, keys={int(arm): f"arm{arm - 1}" for arm in ids})
    return lambda shop, rng: case.scores.noise((len(shop.looks), shop.arms), rng)


def test_a_copy_of_pages_leaves_its_upper_positions_room_to_change(sqlite_db: str, tmp_path: Path) -> None:
    """A bandit that is sure has one order of pages: without a floor its copy shows others at position 1, too, so that
    training can learn of them; where an arm is all of a page, the copy shows what the bandit does."""
    run, prior = runner(sqlite_db), tmp_path / "prior.csv"
    prior.write_text("arm,alpha,beta\narm0,900000,100000\narm1,500000,500000\narm2,100000,900000\n")
    for number in range(3):
        run("arm", "add", f"arm{number}")
    for size in (1, 3):
        run("policy", "create", f"ts{size}", "--kind", "thompson", "--prior", prior)
        run("recommend", "--policy", f"ts{size}", "-k", size, "--session", f"s{size}")
        copy = ("--kind", "gradient", "--from-policy", f"ts{size}", "--param", "floor=0")
        run("policy", "create", f"copy{size}", *copy)
    assert served(run, "copy1")["arm0"] > 1 - 1e-9
    assert 0.9 < served(run, "copy3")["arm0"] < 0.99
