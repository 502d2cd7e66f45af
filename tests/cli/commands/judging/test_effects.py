"""`effects`, and kind long-term: a shop whose bait is clicked most and keeps people from coming back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.evaluation.passes.arm_effects import EffectEstimates, EffectSums
from rlrec.arrays import Array
from rlrec.ope.sums.exposures import Exposures
from tests.conftest import Run, begin, click, click_events, runner, store_after

ARMS = ("bait", "good", "mild", "plain", "weak")
CLICKS = dict(zip(ARMS, (0.7, 0.5, 0.4, 0.3, 0.2), strict=True))
DAYS = 4
AFTERWARDS = f"2026-02-0{DAYS + 4}"  # when all rewards are there


def serve(run: Run, policy: str, *, users: int, seed: int = 1, prefix: str = "u", month: str = "2026-02") -> None:
    """Pages of 2 of 5 arms on some days. Who saw bait comes again the next day with probability .2, others with .9."""
    rng, here = np.random.default_rng(seed), [f"{prefix}{number}" for number in range(users)]
    for day in range(1, DAYS + 1):
        time = ("--now", f"{month}-0{day}T12:00:00Z")
        lines = [
            {"policy": policy, "session": f"{user}.{day}", "user": user, "k": 2, "context": {"device": user[-1] < "5"}}
            for user in here
        ]
        answers = run("recommend", "--input", "-", *time, stdin=lines).lines
        events = click_events(answers, lambda slot: rng.random() < CLICKS[slot["arm"]] / slot["position"])
        assert run("feedback", "--input", "-", *time, stdin=events).exit_code == 0
        shown = ({slot["arm"] for slot in answer["slate"]} for answer in answers)
        here = [user for user, arms in zip(here, shown, strict=True) if rng.random() < (0.2 if "bait" in arms else 0.9)]


def stocked(db: str) -> None:
    run = runner(db)
    assert run("arm", "import", "-", stdin=[{"arm": arm} for arm in ARMS]).exit_code == 0
    assert run("reward", "define", "durable", "click=0.2, return=1", "--window", "1d").exit_code == 0
    assert run("policy", "create", "draw", "--kind", "thompson", "--param", "floor=0.3").exit_code == 0
    serve(run, "draw", users=250)


shop = store_after(stocked)


def effects(run: Run, *options: str) -> Any:
    return run("effects", "--reward", "durable", "--now", AFTERWARDS, *options, "--json").json


def by_arm(answer: Any) -> dict[str, Any]:
    (group,) = answer["groups"]
    return {row["arm"]: row for row in group["arms"]}


def test_bait_earns_most_now_and_costs_in_the_long_run(shop: Run) -> None:
    rows = by_arm(effects(shop))
    assert (rows["bait"]["rank_now"], rows["bait"]["rank"]) == (1, 5)
    assert rows["bait"]["upper"] < 0
    assert rows["bait"]["shrunk_upper"] < 0
    assert rows["bait"]["returning"] == pytest.approx(-0.7 * 0.8, abs=0.25)  # in place of what was shown on average
    assert sum(row["looks"] * row["now"] for row in rows.values()) == pytest.approx(0, abs=15)
    assert {row["later"] for row in rows.values()} == {0.0}  # visits have one page
    text = shop("effects", "--reward", "durable", "--now", AFTERWARDS).stdout
    assert text.startswith("bait earns much now (rank 1 of 5) and costs in the long run (-")


def test_a_return_is_worth_its_reward_and_what_follows(shop: Run) -> None:
    answer = effects(shop)
    (group,) = answer["groups"]
    exported = shop("export-log", "-").lines
    visits = [line["session"] for line in exported]
    assert (group["pages"], group["visits"], group["persons"]) == (len(exported), len(set(visits)), 250)
    assert group["return_value"] > 1  # the reward of a return, and the clicks of the visits after it
    rows = by_arm(answer)
    for row in rows.values():
        total = row["now"] + row["later"] + group["return_value"] * row["returning"]
        assert row["long_run"] == pytest.approx(total, abs=1e-12)


def test_nobody_was_seen_to_come_back_later_than_the_log_is_long(shop: Run) -> None:
    """Pages were drawn on four days at noon."""
    longest, longer, shorter = (effects(shop, "--horizon", horizon) for horizon in ("3d", "9d", "2d"))
    assert longer == longest
    assert (longer["horizon_s"], longer["log_s"], shorter["horizon_s"]) == (3 * 86_400, 3 * 86_400, 2 * 86_400)
    assert 0 < longer["groups"][0]["returned"] <= 1
    text = shop("effects", "--reward", "durable", "--horizon", "9d", "--now", AFTERWARDS).stdout
    assert "back within 3d, as long as the log is; few visits of this log were watched for so long" in text
    assert "`--horizon 1d` tells more surely" in text


def test_wrong_propensities_give_no_effects_and_the_report_says_so(run_sqlite: Run, tmp_path: Path) -> None:
    """A rule by device, with the share of each arm over all as its propensity."""
    run, (log, names) = run_sqlite, (tmp_path / name for name in ("log.csv", "map.json"))
    pairs = [(number, "xy"[number % 2 ^ (number % 10 < 1)], "ab"[number % 2]) for number in range(600)]
    log.write_text("s,arm,device,p,click\n" + "".join(f"{n},{arm},{on},0.5,{n % 3 // 2}\n" for n, arm, on in pairs))
    names.write_text(json.dumps({"session": "s", "user": "s", "context": ["device"], "arm": "arm", "propensity": "p",
                                 "events": {"click": "click"}}))  # fmt: skip
    assert run("import-log", str(log), "--layout", "csv", "--map", str(names), "--policy", "shop").exit_code == 0
    assert "some arm was shown more often than its logged propensities allow" in run("effects").failed(3)
    assert "0 errors and 1 warning" in run("report", "-").stdout


def test_without_a_key_nobody_comes_back(db: str) -> None:
    run = runner(db)
    begin(run, ARMS, "draw", "uniform")
    lines = [{"policy": "draw", "session": f"s{number}", "k": 2} for number in range(60)]
    answers = run("recommend", "--input", "-", "--now", "2026-02-01", stdin=lines).lines
    click(run, [answer["decision_id"] for answer in answers[::2]], "--now", "2026-02-01")
    (group,) = run("effects", "--now", "2026-02-02", "--json").json["groups"]
    assert (group["returned"], group["return_value"]) == (None, None)
    assert {row["returning"] for row in group["arms"]} == {None}


def test_groups_have_effects_of_their_own(shop: Run) -> None:
    answer = effects(shop, "--by", "device")
    assert [group["group"] for group in answer["groups"]] == [False, True]
    (ungrouped,) = effects(shop)["groups"]
    for name in ("pages", "visits", "persons"):
        assert sum(group[name] for group in answer["groups"]) == ungrouped[name]
    table = shop("effects", "--by", "device", "--now", AFTERWARDS).stdout
    assert "True: " in table


def test_effects_of_groups_are_drawn_towards_those_of_all(shop: Run) -> None:
    answer = effects(shop, "--by", "device")
    (ungrouped,) = effects(shop)["groups"]
    assert answer["overall"] == ungrouped | {"by": "device"}
    assert effects(shop)["overall"] is None
    overall = by_arm({"groups": [answer["overall"]]})
    for group in answer["groups"]:
        for row in group["arms"]:
            usual = overall[row["arm"]]
            assert row["shrunk_sd"] >= usual["shrunk_sd"]
            assert abs(row["shrunk"] - usual["shrunk"]) <= abs(row["long_run"] - usual["long_run"]) + 0.1


def test_pages_without_a_variant_are_called_so(shop: Run) -> None:
    title = shop("effects", "--by", "variant", "--now", AFTERWARDS).stdout.splitlines()
    assert title[0].startswith("no variant: ")
    assert title[1].startswith("no variant: ")


@pytest.mark.parametrize("by", ["policy", "version", "variant", "day"])
def test_each_group_that_the_log_has_can_be_asked_for(shop: Run, by: str) -> None:
    answer = effects(shop, "--by", by)
    (ungrouped,) = effects(shop)["groups"]
    assert sum(group["pages"] for group in answer["groups"]) == ungrouped["pages"]


def test_processes_give_the_same_figures(shop: Run) -> None:
    assert effects(shop, "--jobs", "2") == effects(shop)


def test_a_plot_is_written(shop: Run, tmp_path: Any) -> None:
    path = tmp_path / "effects.svg"
    assert shop("effects", "--reward", "durable", "--now", AFTERWARDS, "--plot", str(path)).exit_code == 0
    assert "bait" in path.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--horizon", "0s"], "the horizon is 0"),
        (["--level", "1"], "level is 1"),
        (["--by", "position"], "effects are those of pages, which have no one position"),
        (["--by", "browser"], "no context of the log has the field 'browser'"),
        (["--position", "none"], "unknown position curve 'none'"),
        (["--reward", "none"], "unknown reward 'none'"),
        (["--log", "policy=none"], "unknown policy 'none'"),
        (["--log", "since=2027-01-01"], "empty log"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(shop: Run, options: list[str], message: str) -> None:
    result = shop("effects", "--now", AFTERWARDS, *options)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


def test_groups_that_pages_have_several_of_are_not_offered(shop: Run) -> None:
    result = shop("effects", "--by", "browser", "--now", AFTERWARDS)
    assert "--by takes policy, version, " in result.stderr
    assert "position" not in result.stderr


def test_a_log_that_cannot_tell_is_refused(db: str) -> None:
    run = runner(db)
    begin(run, ("alone",), "draw", "uniform")
    run("recommend", "--policy", "draw", "--session", "s0", "--now", "2026-02-01")
    assert "1 person cannot tell 1 arm apart" in run("effects", "--now", "2026-02-02").failed(3)
    lines = [{"policy": "draw", "session": f"s{number}"} for number in range(50)]
    run("recommend", "--input", "-", "--now", "2026-02-01", stdin=lines)
    assert "never differed" in run("effects", "--now", "2026-02-02").failed(3)


def test_users_whose_return_nobody_awaited_are_no_unnamed_sessions(run_sqlite: Run) -> None:
    run_sqlite("arm", "import", "-", stdin='{"arm": "x"}\n{"arm": "y"}\n{"arm": "z"}')
    run_sqlite("policy", "create", "draw", "--kind", "uniform")
    lines = [{"policy": "draw", "session": f"s{n}", "user": f"u{n}"} for n in range(50)]
    run_sqlite("recommend", "--input", "-", "--seed", 1, "--now", "2026-02-01", stdin=lines)
    assert "50 pages, 50 visits, 50 visitors" in run_sqlite("effects", "--now", "2026-02-02").stdout


def test_a_log_of_today_says_when_it_can_tell(run_sqlite: Run) -> None:
    begin(run_sqlite, ARMS, "even", "uniform")
    for number in range(12):
        run_sqlite("recommend", "--policy", "even", "--session", f"s{number}", "-k", "2")
    refused = run_sqlite("effects", "--json")
    assert (refused.exit_code, refused.error["error"]) == (2, "empty log: no page has waited for its reward")
    assert "to look now, add `--now " in refused.error["hint"]


def test_a_log_without_propensities_is_refused(db: str, tmp_path: Any) -> None:
    lines = [
        {
            "session": f"s{number}",
            "slate": [{"arm": ARMS[number % 5], "propensity": 0.5}],
            "eligible": list(ARMS),
            "reward": 1,
        }
        for number in range(40)
    ]
    path = tmp_path / "old.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    run = runner(db)
    run("import-log", str(path), "--layout", "jsonl", "--policy", "old").done()
    assert "probabilities of all arms" in run("effects").failed(3)


# -- the policy that learns them --


def test_a_policy_learns_effects_and_shows_no_bait(shop: Run) -> None:
    assert shop("policy", "create", "home", "--kind", "long-term", "--reward", "durable").exit_code == 0
    before = {row["arm"]: row["probability"] for row in shop("policy", "show", "home", "--json").json["arms"]}
    assert before == pytest.approx(dict.fromkeys(ARMS, 0.2))
    learned = shop("policy", "rebuild", "home", "--log", "policy=draw", "--now", AFTERWARDS, "--json").json
    assert (learned["version"], learned["status"], learned["parent"]) == (2, "frozen", 1)
    rows = {row["arm"]: row for row in shop("policy", "show", "home@2", "--json").json["arms"]}
    assert {row["pulls"] for row in rows.values()} == {None}  # effects are no pulls
    assert rows["bait"]["probability"] == pytest.approx(0.05 / 5, abs=0.005)
    expected = by_arm(effects(shop))
    for arm, row in rows.items():
        assert row["mean"] == pytest.approx(expected[arm]["shrunk"], abs=1e-12)
        assert row["upper"] == pytest.approx(expected[arm]["shrunk_upper"], abs=1e-9)
    assert shop("policy", "promote", "home@2").exit_code == 0
    serve(shop, "home", users=20, seed=2, prefix="v", month="2026-03")
    assert shop("doctor").exit_code == 0
    assert shop("policy", "rebuild", "home", "--now", "2026-03-09", "--json").json["version"] == 3


def test_an_estimate_on_the_rows_that_it_learned_from_says_so(shop: Run) -> None:
    shop("policy", "create", "home", "--kind", "long-term", "--reward", "durable")
    shop("policy", "rebuild", "home", "--log", "policy=draw", "--now", AFTERWARDS)
    (row, *_) = shop("evaluate", "home@2", "--reward", "durable", "--now", AFTERWARDS, "--json").json
    assert "in-sample" in row["reasons"]
    assert row["answer"] == "unknown"
    serve(shop, "draw", users=200, seed=3, prefix="w", month="2026-03")
    words = ["evaluate", "home@2", "--reward", "durable", "--log", "policy=draw,since=2026-02-20"]
    (row, *_) = shop(*words, "--now", "2026-03-09", "--json").json
    assert "in-sample" not in row["reasons"]


def test_a_log_when_it_is_made_teaches_nothing(shop: Run) -> None:
    result = shop("policy", "create", "home", "--kind", "long-term", "--from-log", "policy=draw")
    assert (result.exit_code, "policy rebuild home --log" in result.stderr) == (2, True)


def test_a_new_arm_has_the_prior_of_the_others(shop: Run) -> None:
    shop("policy", "create", "home", "--kind", "long-term", "--reward", "durable")
    shop("policy", "rebuild", "home", "--now", AFTERWARDS)
    (group,) = effects(shop)["groups"]
    shop("arm", "add", "new")
    rows = {row["arm"]: row for row in shop("policy", "show", "home@2", "--json").json["arms"]}
    assert rows["new"]["mean"] == pytest.approx(group["prior_mean"])
    assert rows["new"]["probability"] > rows["bait"]["probability"]


def test_a_version_that_a_ramp_tries_neither_waits_nor_lags_behind_the_live_one(shop: Run) -> None:
    now = "--now", AFTERWARDS
    shop("policy", "create", "home", "--kind", "long-term", "--reward", "durable", *now)
    shop("policy", "rebuild", "home", *now)
    shop("route", "create", "front", "--to", "draw", *now).done()
    assert "home@2 has waited" in shop("status", *now).stdout
    shop("route", "set", "front", "--to", "home@2", "--share", "50%", "--now", "2026-03-09").done()
    text = shop("status", "--now", "2026-03-09").stdout
    assert ("front-ramp-1" in text, "has waited" in text, "nobody there gets" in text) == (True, False, False)


def test_a_catalogue_that_comes_and_goes_is_named(shop: Run) -> None:
    shop("policy", "create", "home", "--kind", "long-term", "--reward", "durable")
    rebuild, text = ("policy", "rebuild", "home", "--now", AFTERWARDS), "of the 5 arms that it has learned are retired"
    assert text not in shop(*rebuild).stderr
    for arm in ARMS[:3]:
        shop("arm", "retire", arm)
    assert f"3 {text}" in shop(*rebuild).stderr


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        ("home", ["--after-drift", "adwin"], "learns the effects of arms"),
        ("home", ["--log", "since=2027-01-01"], "empty log"),
        ("home", ["--horizon", "0s"], "the horizon is 0"),
        ("draw", ["--log", "policy=draw"], "learns from its own decisions"),
        ("draw", ["--horizon", "3d"], "learns from its own decisions"),
    ],
)  # fmt: skip
def test_a_rebuild_that_cannot_be_stores_nothing(shop: Run, policy: str, options: list[str], message: str) -> None:
    shop("policy", "create", "home", "--kind", "long-term", "--reward", "durable")
    result = shop("policy", "rebuild", policy, "--now", AFTERWARDS, *options)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert shop("policy", "show", policy, "--json").json["versions"] == [1]


def estimates_of_equal_arms(
    rng: np.random.Generator, chance: Array, *, pages: int
) -> tuple[EffectEstimates, Array, Array]:
    """Effects of arms in pages of one that draw each with its chance, its looks, and its purchases: one look in 20
    brings one, which earns 2; people see three pages."""
    arms, arm, bought = len(chance), rng.choice(len(chance), pages, p=chance), rng.random(pages) < 0.05
    exposures = Exposures(np.arange(pages), arm, np.ones(pages), chance[None], np.zeros(pages, np.int64))
    sums, constant = EffectSums.zeros(arms, outcomes=2), np.tile([1.0, 0, 0], (pages, 1))
    people = rng.integers(-(2**62), 2**62, pages // 3)[np.arange(pages) // 3]
    outcomes = np.column_stack([2.0 * bought, np.zeros(pages)])
    sums.pages.add_rows(constant, exposures, outcomes, factor=np.ones(pages), cluster=people)
    looks, purchases = (
        np.bincount(arm, weights=flags, minlength=arms).astype(np.float64) for flags in (arm >= 0, bought)
    )
    events = {"purchase": np.column_stack([purchases, purchases])}
    sums = replace(sums, events=events)
    return sums.estimate(return_weight=0.0), looks, purchases


def test_arms_that_nobody_bought_yet_do_not_pull_the_others_down() -> None:
    """20 equal arms, some of which are shown 30 times as often as others: what was hardly shown has no purchase, and by
    itself no error. The mean of 30 logs lies more than .01 from 0, ten standard errors, by no chance."""
    rng, chance = np.random.default_rng(2), np.geomspace(1, 30, 20)
    logs = [estimates_of_equal_arms(rng, chance / chance.sum(), pages=1_500)[0] for _ in range(30)]
    assert abs(np.mean([effects.posteriors[0].mean for effects in logs])) < 0.01


def test_errors_of_arms_with_few_looks_are_no_smaller_than_noise() -> None:
    """60 equal arms, with 5 to 120 looks: of all intervals of 95 %, at most 5 % miss 0. By the arms' own errors alone,
    which are 0 without a purchase, 31 % did. The logs are fixed."""
    rng, chance = np.random.default_rng(3), np.geomspace(1, 24, 60)
    logs = [estimates_of_equal_arms(rng, chance / chance.sum(), pages=2_400)[0].arm_totals for _ in range(20)]
    effect, error = np.concatenate(logs, axis=1)
    assert 0 < np.mean(np.abs(effect) > 1.96 * error) < 0.05


def test_arms_that_a_logger_hardly_shows_are_not_said_to_do_something() -> None:
    """200 arms that do nothing, of which a logger shows a few to people of each of three languages, who come back more
    or less often: most arms are hardly shown, so that what is left of them is the logger's expectation, which follows
    the language. In 4 logs, at most 5 % of intervals miss 0, and of shrunk ones at most 1 %: 47 % and 55 %
    did where such arms were judged, too. The logs are fixed."""
    rng, arms, pages, missed = np.random.default_rng(4), 200, 1_500, list[tuple[float, float]]()
    for _ in range(4):
        expected, draw = rng.dirichlet(np.full(arms, 0.05), 3), rng.integers(3, size=pages)
        arm = (rng.random(pages)[:, None] > expected[draw].cumsum(axis=1)).sum(axis=1)
        exposures = Exposures(np.arange(pages), arm, np.ones(pages), expected, draw)
        returned = 4.0 * (rng.random(pages) < np.array([0.2, 0.5, 0.65])[draw])
        sums, people = EffectSums.zeros(arms, outcomes=2), rng.integers(-(2**62), 2**62, pages)
        outcomes = np.column_stack([returned, np.zeros(pages)])
        sums.pages.add_rows(
            np.tile([1.0, 0, 0], (pages, 1)), exposures, outcomes, factor=np.ones(pages), cluster=people
        )
        effects = sums.estimate(return_weight=0.0)
        assert 20 < effects.varies.sum() < arms / 2
        effect, error = (column[effects.varies] for column in effects.arm_totals)
        shrunk = effects.posteriors[0]
        missed.append((np.mean(np.abs(effect) > 1.96 * error), np.mean(np.abs(shrunk.mean) > 1.96 * shrunk.sd)))
    raw, shrunk_share = np.mean(missed, axis=0)
    assert raw < 0.05
    assert shrunk_share < 0.01


@pytest.mark.simulation
def test_of_arms_that_come_and_go_and_do_nothing_none_is_said_to_do_something(run_sqlite: Run) -> None:
    """Ten new arms a day go after three days; whatever is shown, a slot in five is clicked. What arms of two days have
    in common is told by those that both days had alone, so that all arms of a day share an error. The log is fixed."""
    rng = np.random.default_rng(6)
    popular = rng.normal(0, 0.7, 120).round(2).tolist()
    setup = "2026-09-01"
    run_sqlite("--now", setup, "arm", "import", "-", stdin="".join(f'{{"arm": "e{arm}"}}\n' for arm in range(120)))
    run_sqlite("--now", setup, "policy", "create", "mine", "--kind", "scored", "--param", "temperature=0.3")
    for day in range(10):
        now = ("--now", f"2026-09-{day + 2:02}T08:00:00Z", "-q")
        arms = [{"arm": f"e{arm}", "score": popular[arm]} for arm in range(10 * day, 10 * day + 30)]
        come = [user for user in range(400) if not day or rng.random() < 0.4]
        lines = [
            {"policy": "mine", "session": f"{user}-{day}", "user": f"u{user}", "k": 3, "arms": arms} for user in come
        ]
        pages = run_sqlite(*now, "recommend", "--input", "-", "--seed", day, stdin=lines).lines
        clicks = click_events(pages, lambda _: rng.random() < 0.2)
        run_sqlite(*now, "feedback", "--input", "-", stdin=clicks)
    for options in ((), ("--horizon", "1d")):
        answer = run_sqlite("--now", "2026-09-11T20:00Z", "effects", *options)
        assert "none surely adds to the average of this log" in answer.stdout


# -- cells: effects by a field of the context --


def celled(db: str) -> None:
    """A policy that has effects of its own for each device, live and with some decisions."""
    stocked(db)
    run = runner(db)
    words = ("policy", "create", "home", "--kind", "long-term", "--reward", "durable", "--param", "by=device")
    assert run(*words).exit_code == 0
    assert run("policy", "rebuild", "home", "--log", "policy=draw", "--now", AFTERWARDS).exit_code == 0
    assert run("policy", "promote", "home@2").exit_code == 0
    serve(run, "home", users=40, seed=2, prefix="v", month="2026-03")


cells = store_after(celled)


def believed(run: Run, context: dict[str, Any]) -> dict[str, Any]:
    answer = run("policy", "show", "home@2", "--context", json.dumps(context), "--json")
    return {row["arm"]: row for row in answer.json["arms"]}


def test_each_device_has_the_effects_of_its_cell(cells: Run) -> None:
    answer = cells("effects", "--reward", "durable", "--log", "policy=draw", "--by", "device", "--json").json
    groups = {group["group"]: group["arms"] for group in answer["groups"]}
    for device in (False, True):
        rows = believed(cells, {"device": device})
        for arm in groups[device]:
            assert rows[arm["arm"]]["mean"] == pytest.approx(arm["shrunk"], abs=1e-9)
            assert rows[arm["arm"]]["upper"] == pytest.approx(arm["shrunk_upper"], abs=1e-9)
    overall = {row["arm"]: row["shrunk"] for row in answer["overall"]["arms"]}
    for context in ({}, {"device": "watch"}, {"device": None}, {"device": "true"}):  # a text is no flag
        assert {arm: row["mean"] for arm, row in believed(cells, context).items()} == pytest.approx(overall)


def test_decisions_by_cells_are_exact_wherever_they_are_read(cells: Run, tmp_path: Any) -> None:
    lines = cells("export-log", "-", "--log", "policy=home").lines
    probabilities: dict[bool, Any] = {}
    for line in lines[:10]:
        shown = cells("decision", "show", str(line["decision_id"]), "--json").json
        assert shown["agrees"] is True
        device = line["context"]["device"]
        row = {arm["arm"]: (arm["mean"], arm["probabilities"][0]) for arm in shown["arms"]}
        assert row == probabilities.setdefault(device, row)
    assert probabilities[True] != probabilities[False]
    assert cells("doctor").exit_code == 0
    copied = tmp_path / "copy.db"
    assert cells("db", "copy", "--to", str(copied)).exit_code == 0
    estimate = ("evaluate", "home@2", "draw", "--log", "policy=home", "--now", "2026-03-09", "--json")
    assert cells(*estimate).json == runner(str(copied))(*estimate).json
    assert cells("policy", "rebuild", "home", "--now", "2026-03-09", "--json").json["version"] == 3


def test_cells_of_groups_of_the_log_are_refused_at_creation(run_sqlite: Run) -> None:
    result = run_sqlite("policy", "create", "home", "--kind", "long-term", "--param", "by=policy")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "by=policy is a group of the log, not a field of the context" in result.stderr
    assert run_sqlite("policy", "list", "--json").json == []


def test_cells_that_the_log_does_not_have_are_refused(shop: Run) -> None:
    shop("policy", "create", "home", "--kind", "long-term", "--reward", "durable", "--param", "by=browser")
    result = shop("policy", "rebuild", "home", "--now", AFTERWARDS)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "no context of the log has the field 'browser'" in result.stderr
    assert shop("policy", "show", "home", "--json").json["versions"] == [1]


def test_a_gradient_begins_as_each_cell_is_drawn(cells: Run) -> None:
    words = ("policy", "create", "pg", "--kind", "gradient", "--from-policy", "home", "--reward", "durable", "--json")
    copied = cells(*words).done()
    assert copied.json["kl"] < 0.02
    for device in (False, True):
        context = ("--context", json.dumps({"device": device}), "--json")
        first, second = (cells("policy", "show", name, *context).json["arms"] for name in ("home", "pg"))
        probabilities = {row["arm"]: row["probability"] for row in second}
        assert probabilities == pytest.approx({row["arm"]: row["probability"] for row in first}, abs=0.05)


def test_pages_whose_rules_leave_no_marginals_are_left_out(run_sqlite: Run) -> None:
    """Without one other page this is said; no reward at all is no error."""
    run, early, created = run_sqlite, ("--now", "2026-02-01T12:00:00Z"), ("policy", "create")
    for arm in ARMS:
        assert run("arm", "add", arm, "--features", '{"shelf": "x"}').exit_code == 0
    assert run(*created, "capped", "--kind", "uniform", "--param", "most=shelf=2").exit_code == 0
    assert run(*created, "plain", "--kind", "uniform").exit_code == 0
    assert run(*created, "long", "--kind", "long-term").exit_code == 0

    def draw(policy: str) -> None:
        lines = [json.dumps({"policy": policy, "session": f"{policy}{number}", "k": 2}) for number in range(60)]
        assert run("recommend", "--input", "-", *early, stdin="\n".join(lines)).exit_code == 0

    draw("capped")
    for command in (("effects",), ("policy", "rebuild", "long")):
        refused = run(*command, "--now", AFTERWARDS).failed(3)
        assert "log by a policy of the store with a floor" in refused
        assert "rules of a page (`most`, `least`) leave no marginals" in refused
    draw("plain")
    answer = run("effects", "--now", AFTERWARDS, "--json").json
    assert (answer["left_out"], answer["groups"][0]["pages"]) == (60, 60)
    assert "60 pages left out" in run("effects", "--now", AFTERWARDS).stdout
    assert run("policy", "rebuild", "long", "--now", AFTERWARDS).exit_code == 0


def test_without_a_reward_what_all_policies_learn_counts(run_sqlite: Run) -> None:
    """As in `outcomes`; `default` where two policies learn different ones."""
    assert run_sqlite("reward", "define", "value", "click=2").exit_code == 0
    run_sqlite("policy", "create", "draw", "--kind", "uniform", "--reward", "value").done()
    run_sqlite("simulate", "shop", "--policy", "draw", "--sessions", 150, "--group", 50, "--seed", 1).done()

    def rewards() -> set[str]:
        commands = ("effects",), ("exposure",), ("sweep", "--kinds", "ucb")
        return {run_sqlite("--now", AFTERWARDS, *words, "--json").json["reward"] for words in commands}

    assert rewards() == {"value"}
    run_sqlite("policy", "create", "other", "--kind", "uniform").done()
    assert rewards() == {"value"}  # it has not served
    run_sqlite("--now", AFTERWARDS, "--allow-future", "recommend", "--policy", "other", "--session", "s").done()
    assert rewards() == {"default"}
