"""`experiment create --interleave`: two rankers fill each slate, and rewards are credited to their teams."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from rlrec.store import Store
from tests.conftest import ON_BOTH, Run, click_events, runner, store_after


def freeze(run: Run, folder: Any, name: str, order: str) -> None:
    """A frozen version 2 that ranks these arms in this order."""
    prior = folder / f"{name}.csv"
    rows = [f"{arm},{10 - index},{1 + index}" for index, arm in enumerate(order)]
    prior.write_text("arm,alpha,beta\n" + "\n".join(rows) + "\n")
    create = ["policy", "create", name, "--kind", "epsilon-greedy", "--param", "epsilon=0", "--prior", prior]
    assert run(*create).exit_code == 0
    assert run("policy", "freeze", name).exit_code == 0


def stocked(db: str) -> None:
    run = runner(db)
    run("arm", "import", "-", stdin=[{"arm": arm} for arm in "abcd"])
    with TemporaryDirectory() as folder:
        freeze(run, Path(folder), "left", "abcd")
        freeze(run, Path(folder), "right", "cdab")
    assert run("experiment", "create", "rank", "--interleave", "left@2,right@2").exit_code == 0


# Two rankers that order four arms the other way round, interleaved.
shop = store_after(stocked)


def serve(run: Run, n: int, k: int = 2, name: str = "rank", users: int = 50) -> list[Any]:
    requests = [{"experiment": name, "session": f"s{i}", "user": f"u{i % users}", "k": k} for i in range(n)]
    return run("recommend", "--input", "-", "--seed", 4, stdin=requests).lines


def test_lists_of_two_make_two_slates(shop: Run) -> None:
    """Lists (a, b) and (c, d): only (a, c) and (c, a), half each; 400 coins leave 140..260 once in a million."""
    answers = serve(shop, 400)
    slates = [tuple(slot["arm"] for slot in answer["slate"]) for answer in answers]
    teams = ["".join(slot["team"] for slot in answer["slate"]) for answer in answers]
    assert {*zip(slates, teams, strict=True)} == {(("a", "c"), "AB"), (("c", "a"), "BA")}
    assert 140 < slates.count(("a", "c")) < 260
    assert all(slot["propensity"] == 1.0 and slot["marginal"] is None for slot in answers[0]["slate"])
    assert answers[0]["variant"] == "interleaved"


def test_what_is_logged_is_what_is_derived_again(shop: Run, tmp_path: Any) -> None:
    """With floors, by `doctor` and `decision show`; a team that is changed by hand is a finding."""
    shop("policy", "create", "noisy", "--kind", "thompson", "--param", "floor=0.2")
    shop("policy", "freeze", "noisy")
    assert shop("experiment", "create", "mixed", "--interleave", "noisy@2,right@2").exit_code == 0
    answers = serve(shop, 30, k=3, name="mixed")
    assert shop("doctor", "--json").json["ok"]
    for answer in answers[:5]:
        shown = shop("decision", "show", answer["decision_id"], "--json").json
        assert shown["agrees"]
        assert [slot["team"] for slot in shown["slate"]] == [slot["team"] for slot in answer["slate"]]
        for position in range(3):
            assert sum(arm["probabilities"][position] for arm in shown["arms"]) == pytest.approx(1.0)


def test_a_retry_answers_the_same(shop: Run) -> None:
    words = ["recommend", "--experiment", "rank", "--session", "x", "--user", "u", "-k", 2, "--request-id", "r"]
    first, again = (shop(*words, "--json").json for _ in range(2))
    assert again == {**first, "duplicate": True}


@ON_BOTH
def test_rewards_are_credited_to_the_team_of_their_slot(shop: Run) -> None:
    """Clicks on what `right` picked, in every fourth decision also on what `left` picked."""
    events = [
        {"decision_id": answer["decision_id"], "position": slot["position"], "events": {"click": 1}}
        for number, answer in enumerate(serve(shop, 408, users=102))
        for slot in answer["slate"]
        if slot["team"] == "B" or number % 4 == 0
    ]
    assert shop("feedback", "--input", "-", stdin=events).exit_code == 0
    result = shop("--now", "2099-01-01", "experiment", "show", "rank", "--json").json
    left, right = result["variants"]
    assert (left["variant"], left["policy"], right["variant"], right["policy"]) == ("A", "left@2", "B", "right@2")
    assert (left["mean"], right["mean"]) == (pytest.approx(0.25), pytest.approx(1.0))
    assert (left["units"], left["decisions"]) == (102, 408)
    (difference,) = result["differences"]
    assert (difference["variant"], difference["against"]) == ("B", "A")
    assert difference["value"] == pytest.approx(0.75)
    (interval,) = result["sequence"]["intervals"]
    assert interval["fixed_lower"] > interval["lower"] == difference["lower"] > 0.5
    assert difference["p_value"] < 1e-6
    assert (left["wins"], right["wins"], result["ties"]) == (0, 102, 0)
    assert result["sample_ratio"]["p_value"] > 1e-4


def test_an_interleaved_log_judges_other_policies(shop: Run) -> None:
    """Half of the pages begin with each list's first arm: that of `right` earns what it did there."""
    events = click_events(serve(shop, 400, k=1), lambda slot: slot["arm"] == "c")
    assert shop("feedback", "--input", "-", stdin=events).exit_code == 0
    row = shop("--now", "2099-01-01", "evaluate", "right@2", "--estimator", "snips", "--json").json[0]
    assert row["value"] == pytest.approx(1.0)


def test_experiments_list_names_the_rankers(shop: Run) -> None:
    assert "interleaved left@2 with right@2" in shop("experiment", "list").stdout
    assert "every slate" in shop("experiment", "show", "rank").stdout
    (row,) = shop("experiment", "list", "--json").json
    assert row["interleave"] == ["left@2", "right@2"]
    assert [(variant["variant"], variant["policy"], variant["version"]) for variant in row["variants"]] == [
        ("A", "left", 2), ("B", "right", 2),
    ]  # fmt: skip
    assert shop("experiment", "stop", "rank").exit_code == 0


@ON_BOTH
def test_what_exploration_costs_leaves_it_out(shop: Run) -> None:
    serve(shop, 3)
    shop("recommend", "--policy", "left", "--session", "x")
    figures = shop("--now", "2099-01-01", "exploration", "--policy", "left", "--json").json
    assert [row["target"] for row in figures["ess"]] == ["uniform", "right"]


def test_an_exported_log_comes_back(shop: Run, tmp_path: Any) -> None:
    serve(shop, 5)
    shop("export-log", tmp_path / "log.jsonl")
    again = shop("import-log", tmp_path / "log.jsonl", "--layout", "jsonl", "--policy", "copy", "--json").done()
    assert again.json["accepted"] == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--interleave", "left@2"], "names 1 rankers"),
        (["--interleave", "left@2,left@2"], "with itself"),
        (["--interleave", "left@2,rigth@2"], "right"),
        (["--interleave", "left@2,right"], "policy freeze right"),
        (["--interleave", "left@2,right@2", "--variant", "a=left"], "no variants"),
        ([], "at least two variants"),
    ],
)
def test_what_cannot_be_interleaved_is_refused(shop: Run, options: list[str], words: str) -> None:
    assert words in shop("experiment", "create", "other", *options).failed(2)
    assert len(shop("experiment", "list", "--json").json) == 1


@pytest.mark.parametrize("rule", ["block=a", "not_shown=3/7d", "most=shelf=1", "pin=1=a"])
def test_a_ranker_with_rules_is_refused(shop: Run, rule: str) -> None:
    assert shop("policy", "create", "ruled", "--kind", "uniform", "--param", rule).exit_code == 0
    refused = shop("experiment", "create", "other", "--interleave", "left@2,ruled").failed(2)
    assert f"ruled cannot be interleaved: its rule {rule} would not hold" in refused
    assert refused.count("\n") == 1
    assert len(shop("experiment", "list", "--json").json) == 1


def test_the_same_again_is_fine_and_another_is_a_conflict(shop: Run) -> None:
    assert shop("experiment", "create", "rank", "--interleave", "left@2,right@2", "--json").json["created"] is False
    assert shop("experiment", "create", "rank", "--interleave", "right@2,left@2").exit_code == 6


@pytest.mark.parametrize(("words", "message"), [(["evaluate"], "interleaving"), (["policy", "show"], "two rankers")])
def test_what_is_drafted_has_no_belief_of_its_own(shop: Run, words: list[str], message: str) -> None:
    serve(shop, 3)
    assert message in shop("--now", "2099-01-01", *words, "team-draft@rank/interleaved").failed(2)


def test_no_person_makes_such_a_policy(shop: Run) -> None:
    assert "--interleave" in shop("policy", "create", "mine", "--kind", "team-draft").failed(2)
    assert "team-draft" not in shop("policy", "kinds").stdout


@pytest.mark.parametrize(
    "damage", ["DELETE FROM team_draft", "UPDATE team_draft SET teams = 'AA'", "UPDATE slot SET score = 0.5"]
)
def test_teams_that_were_changed_are_found(shop: Run, db: str, damage: str) -> None:
    serve(shop, 4)
    with closing(Store(db)) as store:
        store.write(lambda unit: unit.tell(damage), repeatable=False)
    result = shop("doctor", "--json")
    assert result.exit_code == 3
    assert {finding["check"] for finding in result.json["findings"]} & {"propensities", "draws"}


def test_a_store_of_interleaved_slates_alone_has_no_policy_to_compare(shop: Run) -> None:
    serve(shop, 3)
    assert "no policy has served yet" in shop("exploration").failed(2)
