"""rlrec experiment."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import pytest

from tests.conftest import Run, filled, runner

LATER = "2099-01-01T00:00:00Z"


def prepared(db: str) -> None:
    run = runner(db)
    for words in (("arm", "add", "x"), ("arm", "add", "y")):
        run(*words)
    run("policy", "create", "home", "--kind", "thompson", "--param", "floor=0.1")
    run("policy", "create", "other", "--kind", "uniform")


@pytest.fixture
def ready(db: str) -> Any:
    return filled(db, prepared)


@pytest.fixture
def ready_sqlite(sqlite_db: str) -> Any:
    """For what does not depend on the database."""
    return filled(sqlite_db, prepared)


def create(run: Run, *words: Any) -> Any:
    return run("experiment", "create", "ab", "--variant", "a=home", "--variant", "b=other:3", *words)


def test_create_says_what_runs_and_again_changes_nothing(ready: Any) -> None:
    made, again = create(ready, "--json"), create(ready, "--json")
    assert (made.exit_code, again.exit_code) == (0, 0)
    assert made.json["variants"] == [
        {"variant": "a", "policy": "home", "version": 1, "learns": True, "weight": 0.25},
        {"variant": "b", "policy": "other", "version": 1, "learns": True, "weight": 0.75},
    ]
    assert again.json == made.json | {"created": False}


def test_another_definition_is_a_conflict(ready: Any) -> None:
    create(ready)
    refused = create(ready, "--unit", "session", "--json")
    assert (refused.exit_code, refused.error["code"]) == (6, 6)


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        (["a=home"], "at least two"),
        (["a=home", "b=hom"], "did you mean home?"),
        (["a=home", "b=home@1"], "rlrec policy freeze home"),
        (["a=home", "b=home@9"], "no version 9"),
        (["a=home", "b"], "LABEL=POLICY"),
        (["a=home", "b=other:0"], "above 0"),
        (["a=home", "b=other:-1"], "above 0"),
        (["a=home", "b=other:x"], "not a number"),
        (["a=home", "-b=other"], "not a name"),
        (["a=home", "a=other"], "another label"),
    ],
)
def test_impossible_variants_are_refused(ready_sqlite: Any, variants: Any, said: str) -> None:
    refused = ready_sqlite("experiment", "create", "ab", *(word for one in variants for word in ("--variant", one)))
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_show_has_the_keys_of_the_contract(ready: Any) -> None:
    create(ready, "--unit", "session")
    ready("recommend", "--experiment", "ab", "--session", "s1")
    found = ready("--now", LATER, "experiment", "show", "ab", "--json").json
    assert list(found) == ["experiment", "status", "unit", "variants", "differences", "sample_ratio", "holdout"]
    assert found["holdout"] is None
    keys = (
        "variant",
        "policy",
        "weight",
        "units",
        "sessions",
        "decisions",
        "reward_per_unit",
        "mean",
        "lower",
        "upper",
    )
    assert [list(row) for row in found["variants"]] == [list(keys)] * 2
    assert [list(row) for row in found["differences"]] == [["variant", "against", "value", "lower", "upper", "p_value"]]
    assert list(found["sample_ratio"]) == ["chi2", "p_value"]
    assert sum(row["decisions"] for row in found["variants"]) == 1


def served(run: Run, *words: Any, pages: int = 30) -> Any:
    """An experiment by session, and its pages, every third one with a click."""
    made = run("experiment", "create", "ab", "--variant", "a=home", "--unit", "session", *words, "--json")
    lines = "".join(f'{{"experiment": "ab", "session": "s{n}"}}\n' for n in range(pages))
    run("recommend", "--input", "-", "--seed", 3, stdin=lines)
    run(
        "feedback",
        "--input",
        "-",
        stdin="".join(f'{{"decision_id": {n}, "events": {{"click": 1}}}}\n' for n in range(1, pages, 3)),
    )
    return made


def test_one_variant_and_a_uniform_holdout_are_an_experiment(ready: Any) -> None:
    made = served(ready, "--holdout-uniform", "50%").json
    assert made["variants"] == [
        {"variant": "a", "policy": "home", "version": 1, "learns": True, "weight": 0.5},
        {"variant": "holdout", "policy": "uniform", "version": 1, "learns": True, "weight": 0.5},
    ]
    found = ready("--now", LATER, "experiment", "show", "ab", "--json").json["holdout"]
    assert list(found) == [
        "label", "share", "value", "lower", "upper", "estimate", "estimate_lower", "estimate_upper", "difference",
        "p_value", "verdict", "reasons",
    ]  # fmt: skip
    (truth,) = ready(
        "--now", LATER, "evaluate", "uniform", "--log", "variant=holdout", "--estimator", "snips", "--json"
    ).json
    assert (found["share"], found["value"], found["lower"]) == (0.5, truth["value"], truth["lower"])
    assert found["difference"] == pytest.approx(found["estimate"] - found["value"])
    said = ready("--now", LATER, "experiment", "show", "ab").stdout
    assert "holdout (0.5 of units): uniform earned" in said


@pytest.mark.parametrize("share", ["2%", "0.02"])
def test_the_same_share_in_other_words_is_the_same_experiment(ready_sqlite: Any, share: Any) -> None:
    served(ready_sqlite, "--holdout-uniform", "2%", pages=0)
    again = ["experiment", "create", "ab", "--variant", "a=home", "--unit", "session", "--holdout-uniform"]
    assert ready_sqlite(*again, share, "--json").json["created"] is False
    assert ready_sqlite(*again, "3%").exit_code == 6
    assert ready_sqlite(*again[:-1], "--variant", "b=other").exit_code == 6


@pytest.mark.parametrize("share", ["0", "0%", "-1%", "51%", "1", "%", "x", "nan", "1e400%", "1e-320"])
def test_what_is_no_share_is_refused(ready_sqlite: Any, share: Any) -> None:
    refused = ready_sqlite("experiment", "create", "ab", "--variant", "a=home", f"--holdout-uniform={share}")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert ready_sqlite("experiment", "list", "--json").json == []


def test_a_holdout_can_be_audited_exported_and_judged(ready_sqlite: Any) -> None:
    served(ready_sqlite, "--holdout-uniform", "0.3")
    assert ready_sqlite("--now", LATER, "doctor").exit_code == 0
    shown = [line["policy"] for line in ready_sqlite("export-log", "-").lines if line["variant"] == "holdout"]
    assert shown == ["uniform"] * len(shown) != []
    for log in ("variant=holdout", "policy=uniform"):
        judged = ready_sqlite("--now", LATER, "evaluate", "home", "--log", log, "--estimator", "ips", "--json").json
        assert judged[0]["n"] == len(shown)


def test_show_for_a_person_says_difference_and_split(ready_sqlite: Any) -> None:
    create(ready_sqlite)
    shown = ready_sqlite("experiment", "show", "ab").stdout
    assert "b - a: - [-, -] a decision, p -" in shown
    assert "sample ratio: chi2 -, p -" in shown


@pytest.mark.parametrize("words", [("--reward", "defualt"), ("--level", "1.5")])
def test_show_refuses_what_it_does_not_know(ready_sqlite: Any, words: list[str]) -> None:
    create(ready_sqlite)
    assert ready_sqlite("experiment", "show", "ab", *words).exit_code == 2


def test_another_reward_judges_old_decisions(ready: Any) -> None:
    create(ready, "--unit", "session")
    ready("reward", "define", "buys", "purchase=5", "--window", "1h")
    number = ready("recommend", "--experiment", "ab", "--session", "s1", "--json").json["decision_id"]
    ready("feedback", number, "purchase=2")
    found = ready("--now", LATER, "experiment", "show", "ab", "--reward", "buys", "--json").json
    assert sorted([row["mean"] for row in found["variants"]], key=lambda mean: mean is None) == [10.0, None]


def test_stopped_experiment_refuses_requests_with_exit_2(ready: Any) -> None:
    create(ready, "--unit", "session")
    stopped = ready("experiment", "stop", "ab", "--json").json
    assert (stopped["status"], stopped["already_stopped"]) == ("stopped", False)
    assert ready("experiment", "stop", "ab", "--json").json["already_stopped"]
    refused = ready("recommend", "--experiment", "ab", "--session", "s1")
    assert refused.exit_code == 2
    assert "stopped" in refused.stderr


def test_by_user_without_a_user_is_exit_2(ready: Any) -> None:
    create(ready)
    assert ready("recommend", "--experiment", "ab", "--session", "s1").exit_code == 2
    assert ready("recommend", "--experiment", "ab", "--session", "s1", "--user", "u1").exit_code == 0
    assert ready("recommend", "--experiment", "ab", "--session", "s1").exit_code == 0


@pytest.mark.parametrize("command", ["show", "stop"])
def test_unknown_experiment_names_the_near_one(ready_sqlite: Any, command: Sequence[str]) -> None:
    create(ready_sqlite)
    refused = ready_sqlite("experiment", command, "abb")
    assert refused.exit_code == 2
    assert "did you mean ab?" in refused.stderr


@pytest.mark.parametrize("form", ["table", "json", "ndjson", "csv"])
def test_every_format_lists_experiments(ready_sqlite: Any, form: Any) -> None:
    create(ready_sqlite)
    listed = ready_sqlite("experiment", "list", "--format", form)
    assert listed.exit_code == 0
    assert "ab" in listed.stdout


@pytest.mark.slow
def test_csv_compares_every_variant_with_the_first(ready_sqlite: Any) -> None:
    create(ready_sqlite, "--unit", "session")
    for number in range(20):
        ready_sqlite("recommend", "--experiment", "ab", "--session", f"s{number}")
        if number % 3:
            ready_sqlite("feedback", number + 1, "click")
    found = ready_sqlite("--now", LATER, "experiment", "show", "ab", "--json").json["differences"][0]
    said = ready_sqlite("--now", LATER, "experiment", "show", "ab", "--format", "csv").stdout
    first, second = csv.DictReader(io.StringIO(said, newline=""))
    columns = ("difference", "difference_lower", "difference_upper", "p_value")
    assert [first[name] for name in columns] == [""] * 4
    assert [float(second[name]) for name in columns] == [found[name] for name in ("value", "lower", "upper", "p_value")]
