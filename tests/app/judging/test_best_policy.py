"""The best known policy: one regression of effects judges what is there, and what the log can teach."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from rlrec.app.evaluation.passes import arm_effects
from rlrec.app.judging import best_policy
from rlrec.app.judging.best_policy import ArmEffects, Candidate, Result
from rlrec.ope.intervals.tails import t_quantile
from rlrec.store import Store
from rlrec.store.database import bulk
from rlrec.times import parse
from tests.cli.commands.judging.test_effects import estimates_of_equal_arms
from tests.conftest import Run, runner, store_after

LATER = "2026-06-01T00:00:00Z"
CANDIDATES = {"uniform", "clicks", "clicks re-priced", "long-term"}


def prepared(db: str) -> None:
    """A shop whose bandit learns clicks, in which purchases and returns count."""
    run, early = runner(db), ("--now", "2025-12-31T00:00:00Z")
    run("reward", "define", "durable", "click=0.05, purchase=2, return=1", "--window", "7d")
    run(*early, "policy", "create", "clicks", "--kind", "thompson", "--param", "floor=0.05")
    run(*early, "route", "create", "home", "--to", "clicks")
    run("simulate", "shop", "--policy", "home", "-k", 5, "--sessions", 150, "--group", 50, "--seed", 3)


shop = store_after(prepared)


def answer(db: str, reward: str = "durable", *, now: str = LATER) -> Result:
    with closing(Store(db, now=parse(now))) as store, store.read() as unit, bulk.alongside(unit):
        return best_policy.answer(unit, reward, None)


@pytest.mark.slow
def test_every_candidate_is_judged_by_the_effects_of_its_log(shop: Run, sqlite_db: str) -> None:
    candidates = {row["name"]: row for row in answer(sqlite_db)["candidates"]}
    assert set(candidates) == CANDIDATES
    assert [row["name"] for row in candidates.values() if row["serves"]] == ["clicks"]
    # uniform: what all arms add, at equal looks instead of those of the log
    with closing(Store(sqlite_db, now=1_780_000_000_000_000)) as store, store.read() as unit:
        effect_pass, by_group, _ = arm_effects.sum_log(unit, arm_effects.Request(reward="durable"))
    (sums,), looks_of_a_page = by_group.values(), sum(effect_pass.examination or ())
    effects = effect_pass.estimate(sums)
    change = looks_of_a_page * (1 / len(sums.looks) - sums.looks / sums.looks.sum())
    factors = np.array([1, 1, effects.worth])
    # what each block of people adds to it: effects of arms are told by the same pages, and go together
    blocks = effects.influence @ factors @ change + effects.worth_influence * (effects.effect[:, 2] @ change)
    present, columns = np.count_nonzero(blocks), effects.columns
    error = np.sqrt(np.square(blocks).sum() * present / (present - columns))
    # one of four candidates, which are bounded together
    reach = error * t_quantile(1 - 0.05 / 2 / len(candidates), min(int(sums.counts[3]), len(blocks)) - 1)
    uniform, gain = candidates["uniform"], effects.effect @ factors @ change
    np.testing.assert_allclose([uniform["gain"], uniform["upper"] - uniform["gain"]], [gain, reach], rtol=1e-9)
    # what served differs from its log only as far as it has learned since
    assert abs(candidates["clicks"]["gain"]) < reach


@pytest.mark.slow
def test_a_policy_whose_rules_leave_no_closed_form_is_no_candidate(shop: Run, sqlite_db: str) -> None:
    arm = shop("arm", "list", "--json").json[0]["arm"]
    shop("policy", "create", "ruled", "--kind", "thompson", "--param", f"least={arm}=0.1")
    assert {row["name"] for row in answer(sqlite_db)["candidates"]} == CANDIDATES


@pytest.mark.slow
def test_the_commands_make_what_they_say(shop: Run, sqlite_db: str) -> None:
    for row in answer(sqlite_db)["candidates"]:
        for command in row["command"].split("`")[1::2]:
            done = shop("--now", LATER, *command.replace("ROUTE", "home").split()[1:])
            assert done.exit_code == 0, (command, done.stderr)
    judged = {row["name"]: row["command"] for row in answer(sqlite_db)["candidates"]}
    created = {"durable-uniform", "clicks-durable", "durable-long-term"}
    assert judged.keys() >= CANDIDATES - {"clicks re-priced", "long-term"} | created
    # a policy that learns what keeps people waits now: neither a second one nor another rebuild is asked for
    promotion = "`rlrec policy promote durable-long-term@2` makes it live"
    way = "`rlrec route set home --to durable-long-term` lets a route lead to it"
    assert judged["durable-long-term@2"] == f"{promotion}, then {way}"
    assert "durable-long-term rebuilt" not in judged
    # the last of the commands led the route there
    assert [command for command in judged.values() if "already" in command] == ["route home leads to it already"]
    shop("--now", LATER, "policy", "promote", "durable-long-term@2")
    shop("--now", LATER, "route", "set", "home", "--to", "clicks")
    shop("--now", LATER, "route", "set", "home", "--to", "durable-long-term", "--share", "20%")
    # another rebuild is a candidate once it may differ from what serves
    assert "durable-long-term rebuilt" not in {row["name"] for row in answer(sqlite_db)["candidates"]}
    judged = {row["name"]: row["command"] for row in answer(sqlite_db, now="2026-06-03T00:00:00Z")["candidates"]}
    assert judged["durable-long-term rebuilt"] == "`rlrec policy rebuild durable-long-term` makes it"
    shown = "some users have it already: `rlrec experiment show home-ramp-1` compares"
    assert judged["durable-long-term"] == shown
    assert judged["clicks"] == "route home leads to it already"
    assert (
        judged["durable-uniform"] == "it is live: `rlrec route set home --to durable-uniform` lets a route lead to it"
    )


@pytest.mark.slow
def test_commands_name_the_best_and_status_repeats_it(shop: Run, sqlite_db: str, tmp_path: Path) -> None:
    sentence = answer(sqlite_db)["sentence"]
    assert sentence.startswith("best known for durable in the long run: ")
    assert shop("--now", LATER, "status", "--json").json["best"] is None
    judged = shop("--now", LATER, "evaluate", "uniform", "--reward", "durable")
    assert sentence in judged.stdout
    assert shop("--now", LATER, "status", "--json").json["best"]["sentence"] == sentence
    assert sentence in shop("--now", LATER, "status").stdout
    shop("--now", "2026-06-02", "policy", "create", "lasting", "--kind", "long-term", "--reward", "durable")
    stale = "(as of 2026-06-01 00:00; policies changed since then: `rlrec evaluate uniform --reward durable`"
    claim = sentence.partition("): ")[0]  # without the command, which may be out of date
    assert f"{claim}) {stale}" in shop("--now", "2026-06-02", "status").stdout
    shop("--now", LATER, "policy", "create", "even", "--kind", "uniform").done()
    copied = shop(
        "--now", LATER, "policy", "create", "pg", "--kind", "gradient", "--from-policy", "even", "--reward", "durable"
    )
    assert "best known for durable in the long run: " in copied.stdout + copied.stderr
    page = tmp_path / "page.html"
    assert shop("--now", LATER, "report", page, "--no-estimates").exit_code == 0  # by the reward that `status` shows
    assert "best known for durable in the long run: " in page.read_text(encoding="utf-8")
    trained = shop("--now", LATER, "train-pg", "pg", "--epochs", "1")
    assert "best known for durable in the long run: " in trained.stdout + trained.stderr


@pytest.mark.slow
def test_nothing_is_said_where_a_reward_ends_with_the_visit_or_the_log_cannot_tell(shop: Run, sqlite_db: str) -> None:
    assert "best known" not in shop("--now", LATER, "evaluate", "uniform").stdout
    assert (
        "best known"
        not in shop(
            "--now", LATER, "evaluate", "uniform", "--reward", "durable", "--log", "until=2026-01-01T00:01:00Z"
        ).stdout
    )
    assert shop("--now", LATER, "status", "--json").json["best"] is None


def test_a_candidate_that_chose_by_the_chance_of_its_log_is_not_believed() -> None:
    """Twelve equal arms, each bought by one look in 20; the candidate shows the one that was bought most often and
    gains nothing: fewer than 25 of 30 intervals of 95 % that hold it are a false alarm of 1 in 300."""
    rng, even, held = np.random.default_rng(1), np.full(12, 1 / 12), 0
    for _ in range(30):
        effects, looks, purchases = estimates_of_equal_arms(rng, even, pages=1_200)
        best = 1.0 * (np.arange(12) == np.argmax(purchases / looks))
        gain, error = ArmEffects(raw=effects, log_looks=looks / looks.sum(), even_looks=even).gain(
            best, has_learned=True
        )
        held += abs(gain) <= 1.96 * error
    assert held >= 25


def candidate(name: str, gain: float, lower: float, *, serves: bool = False) -> Candidate:
    return {
        "name": name, "gain": gain, "lower": lower, "upper": 2 * gain - lower, "serves": serves,
        "command": f"`make {name}` makes it",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("first", "text"),
    [
        (
            candidate("uniform", 0.2, 0.1),
            "best known for durable in the long run: uniform (+0.2 durable a page [+0.1, +0.3] above what this log "
            "shows, to first order): `make uniform` makes it",
        ),
        (
            candidate("uniform", 0.2, -0.1),
            "best known for durable in the long run: uniform (+0.2 durable a page [-0.1, +0.5] above what this log "
            "shows, to first order, which this log alone cannot be sure of): `make uniform` makes it",
        ),
        (
            candidate("clicks", 0.0, -0.1, serves=True),
            "best known for durable in the long run: clicks, which serves, by this log as good as any",
        ),
    ],
)
def test_the_sentence_says_how_sure_it_is(first: Candidate, text: str) -> None:
    assert best_policy.sentence_of("durable", [first, candidate("other", -1.0, -2.0)]) == text


def test_what_may_be_better_than_what_serves_is_named_with_its_doubt() -> None:
    """First, where its gain less a standard error is larger: a reader who stops at the first name would keep the
    policy that is probably worse. What surely gains stands alone."""
    serving, rival = candidate("clicks", 0.0, 0.0, serves=True), candidate("uniform", 0.2, -0.1)
    figures = (
        "uniform (+0.2 durable a page [-0.1, +0.5] above what this log shows, to first order, which this log alone "
        "cannot be sure of; clicks{} +0): `make uniform` makes it"
    )
    for pair, text in (
        ([serving, rival], "best known for durable in the long run: clicks, which serves; perhaps better: " + figures),
        ([rival, serving], "perhaps best for durable in the long run: " + figures.replace("{}", ", which serves,")),
    ):
        assert best_policy.sentence_of("durable", pair) == text.replace("{}", "")
    sure = best_policy.sentence_of("durable", [candidate("uniform", 0.2, 0.1), serving])
    assert sure.startswith("best known for durable in the long run: uniform (+0.2")
