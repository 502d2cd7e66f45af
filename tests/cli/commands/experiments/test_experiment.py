"""rlrec experiment."""

import csv
import io
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from rlrec.cli.commands.experiments.experiment import comparison_view
from rlrec.sentences import approximate
from tests.conftest import ON_BOTH, Run, begin, click, filled, runner, store_after

LATER = "2099-01-01T00:00:00Z"


def prepared(db: str) -> None:
    run = runner(db)
    begin(run, "xy", "home", "thompson", "--param", "floor=0.1")
    run("policy", "create", "other", "--kind", "uniform")


ready = store_after(prepared)


def create(run: Run, *words: Any) -> Any:
    return run("experiment", "create", "ab", "--variant", "a=home", "--variant", "b=other:3", *words)


def test_create_says_what_runs_and_again_changes_nothing(ready: Any) -> None:
    answers, again = create(ready, "--json"), create(ready, "--json")
    assert (answers.exit_code, again.exit_code) == (0, 0)
    assert answers.json["variants"] == [
        {"variant": "a", "policy": "home@ab/a", "version": 1, "learns": True, "weight": 0.25},
        {"variant": "b", "policy": "other@ab/b", "version": 1, "learns": True, "weight": 0.75},
    ]
    assert again.json == answers.json | {"created": False}


def test_another_definition_is_a_conflict(ready: Any) -> None:
    create(ready)
    refused = create(ready, "--unit", "session", "--json")
    assert (refused.exit_code, refused.error["code"]) == (6, 6)


@pytest.mark.parametrize(
    ("variants", "result"),
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
def test_impossible_variants_are_refused(ready: Any, variants: Any, result: str) -> None:
    refused = ready(
        "experiment", "create", "ab", *(word for variant in variants for word in ("--variant", variant))
    ).failed(2)
    assert result in refused
    assert refused.count("\n") == 1
    assert ready("experiment", "list", "--json").json == []


def test_show_has_the_keys_of_the_contract(ready: Any) -> None:
    create(ready, "--unit", "session")
    ready("recommend", "--experiment", "ab", "--session", "s1")
    answer = ready("--now", LATER, "experiment", "show", "ab", "--json").json
    assert list(answer) == [
        "experiment", "status", "unit", "variants", "differences", "sample_ratio", "holdout", "outcomes",
        "unit_differences", "reasons", "decisions_per_unit", "guards", "metric", "sequence", "phases", "created_at",
        "stopped_at", "anonymous", "equal_age_days", "units_per_day", "new_units_per_day", "plan", "segments",
        "first_at", "last_at",
    ]  # fmt: skip
    assert answer["holdout"] is None
    keys = ["variant", "policy", "weight", "units", "sessions", "decisions", "reward_per_unit", "mean", "lower"]
    assert [list(row) for row in answer["variants"]] == [[*keys, "upper", "learns"]] * 2
    figures = ("value", "relative", "lower", "upper", "p_value", "reasons", "answer", "needed", "shortage")
    assert [list(row) for row in answer["differences"]] == [["variant", "against", *figures]]
    assert list(answer["sample_ratio"]) == ["chi2", "p_value"]
    assert sum(row["decisions"] for row in answer["variants"]) == 1


def test_a_table_says_which_reward_a_row_is_of_and_which_variants_learned(ready: Any) -> None:
    ready("reward", "define", "money", "purchase=1")
    ready("policy", "freeze", "home")
    ready("experiment", "create", "ab", "--variant", "still=home@2", "--variant", "moving=home",
          "--guard", "reward_per_unit:money>=-5%")  # fmt: skip
    for number in range(4):
        ready("recommend", "--experiment", "ab", "--session", f"s{number}", "--user", f"u{number}")
    ready("feedback", "1", "click")
    ready("feedback", "2", "purchase")
    table = ready("--now", LATER, "experiment", "show", "ab").stdout
    assert sorted(re.findall("^reward_per_unit ([a-z]*)", table, re.M)) == ["default", "money"]
    steps = table.partition("\n\n")[0]  # whoever reads the answer alone learns that it is one on the past
    assert "moving learned meanwhile, so that this is an average over what was known at times: `rlrec outcomes" in steps
    table = ready("--now", LATER, "experiment", "show", "ab", "--reward", "money").stdout
    assert re.search("`rlrec outcomes --experiment ab --entered-since [^ ]* --reward money` compares", table)


def served(run: Run, *words: Any, pages: int = 30) -> Any:
    """An experiment by session, and its pages, every third one with a click."""
    answer = run("experiment", "create", "ab", "--variant", "a=home", "--unit", "session", *words, "--json")
    lines = "".join(f'{{"experiment": "ab", "session": "s{n}"}}\n' for n in range(pages))
    run("recommend", "--input", "-", "--seed", 3, stdin=lines)
    click(run, range(1, pages, 3))
    return answer


def test_one_variant_and_a_uniform_holdout_are_an_experiment(ready: Any) -> None:
    answer = served(ready, "--holdout-uniform", "50%").json
    assert answer["variants"] == [
        {"variant": "a", "policy": "home@ab/a", "version": 1, "learns": True, "weight": 0.5},
        {"variant": "holdout", "policy": "uniform@ab/holdout", "version": 1, "learns": True, "weight": 0.5},
    ]
    result = ready("--now", LATER, "experiment", "show", "ab", "--json").json["holdout"]
    assert list(result) == [
        "label", "share", "value", "lower", "upper", "estimate", "estimate_lower", "estimate_upper", "difference",
        "p_value", "verdict", "reasons",
    ]  # fmt: skip
    (truth,) = ready(
        "--now", LATER, "evaluate", "uniform", "--log", "variant=holdout", "--estimator", "snips", "--json"
    ).json
    assert (result["share"], result["value"], result["lower"]) == (0.5, truth["value"], truth["lower"])
    assert result["difference"] == pytest.approx(result["estimate"] - result["value"])
    output = ready("--now", LATER, "experiment", "show", "ab").stdout
    assert "holdout (0.5 of units): uniform earned" in output


# -- phases and layers --


def test_set_and_freeze_say_what_units_get_from_now_on(ready: Any) -> None:
    create(ready)
    answer = ready("experiment", "set", "ab", "--weight", "a=40%", "--weight", "b=0.6", "--json").json
    assert [row["weight"] for row in answer["variants"]] == [0.4, 0.6]
    again = ready("experiment", "set", "ab", "--weight", "a=2", "--weight", "b=3", "--json").json
    assert (answer["set"], again["set"]) == (True, False)
    refused = ready("experiment", "set", "ab", "--weight", "a=50%", "--weight", "b=60%")
    assert (refused.exit_code, "the weights add up to 110 %" in refused.stderr) == (2, True)
    assert ready("experiment", "freeze", "ab", "--json").json["status"] == "frozen"
    assert ready("experiment", "list", "--json").json[0]["status"] == "frozen"
    thawed = ready("experiment", "set", "ab", "--weight", "a=2", "--weight", "b=3", "--json").json
    assert (thawed["set"], thawed["status"]) == (True, "running")


@pytest.mark.parametrize(
    ("words", "label"),
    [(("--variant", "a=home", "--holdout-uniform", "20%"), "a"), (("--interleave", "home@2,other@2"), "interleaved")],
)
def test_an_experiment_of_one_draw_takes_units_again(ready: Any, words: tuple[str, ...], label: str) -> None:
    for policy in ("home", "other"):
        ready("policy", "freeze", policy)
    assert ready("experiment", "create", "one", *words).exit_code == 0
    weights = ("experiment", "set", "one", "--weight", f"{label}=1", "--json")
    assert "has one variant to draw" in ready(*weights).stderr
    ready("experiment", "freeze", "one")
    thawed, again = ready(*weights).json, ready(*weights).json
    assert (thawed["status"], thawed["set"], again["set"]) == ("running", True, False)
    ask = ("recommend", "--experiment", "one", "--session", "s1", "--user", "u1", "--json")
    assert ready(*ask).json["experiment"] == "one"


def test_a_uniform_holdout_keeps_its_share_whatever_the_weights_are(ready: Any) -> None:
    create(ready, "--holdout-uniform", "20%")
    answer = ready("experiment", "set", "ab", "--weight", "a=1", "--weight", "b=7", "--json").json
    assert [row["weight"] for row in answer["variants"]] == pytest.approx([0.1, 0.7, 0.2])
    refused = ready("experiment", "set", "ab", "--weight", "a=1", "--weight", "b=1", "--weight", "holdout=1")
    assert (refused.exit_code, "unknown variant 'holdout'" in refused.stderr) == (2, True)


def test_a_layer_is_named_at_creation_and_a_repeat_changes_nothing(ready: Any) -> None:
    answer = create(ready, "--layer", "page", "--layer-share", "25%", "--json").json
    assert (answer["layer"], answer["layer_share"]) == ("page", 0.25)
    assert create(ready, "--layer", "page", "--layer-share", "0.25", "--json").json == answer | {"created": False}
    assert create(ready, "--layer", "page", "--json").error["code"] == 6


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("set ab --weight a=0 --weight b=1", 2, "the weight of variant a is 0. from 1e-9, for next to nobody new"),
        ("set ab --weight a=-1 --weight b=1", 2, "the weight of variant a is -1"),
        ("set ab --weight a=nan --weight b=1", 2, "not a share"),
        ("set ab --weight a --weight b=1", 2, "write LABEL=0.2"),
        ("set ab --weight a=1", 2, "no weight for variant b"),
        ("set ab --weight a=1 --weight a=2 --weight b=1", 2, "two weights"),
        ("set ab --weight a=1 --weight B=1", 2, "unknown variant 'B'"),
        ("set ab", 2, "--weight"),
        ("set nope --weight a=1", 2, "unknown experiment 'nope'"),
        ("set front-holdout --weight holdout=1 --weight served=1", 2, "keeps its weights"),
        ("set old --weight a=1 --weight b=1", 2, "experiment old is stopped"),
        ("freeze old", 2, "experiment old is stopped"),
        ("freeze nope", 2, "unknown experiment 'nope'"),
        ("freeze front-holdout", 2, "is the holdout of a route, and takes units while it runs"),
        ("create new --variant a=home --variant b=other --layer page", 2, "0 % left beside ab"),
        ("create new --variant a=home --variant b=other --layer-share 5%", 2, "--layer NAME"),
        ("create new --variant a=home --variant b=other --layer x --layer-share 0", 2, "above 0 and below 100 %"),
        ("create new --variant a=home --variant b=other --layer x --layer-share 100%", 2, "and below 100 %"),
    ],
)
def test_bad_weights_and_layers_are_one_line_and_store_nothing(ready: Any, words: str, code: int, message: str) -> None:
    create(ready, "--layer", "page")
    ready("experiment", "create", "old", "--variant", "a=home", "--variant", "b=other")
    ready("experiment", "stop", "old")
    ready("route", "create", "front", "--to", "other", "--holdout", "5%", "--holdout-policy", "home")
    before = ready("experiment", "list", "--json").json
    refused = ready("experiment", *words.split())
    assert (refused.exit_code, refused.stderr.count("\n")) == (code, 1)
    assert message in refused.stderr
    assert ready("experiment", "list", "--json").json == before


@pytest.mark.parametrize("share", ["2%", "0.02"])
def test_the_same_share_in_other_words_is_the_same_experiment(ready: Any, share: Any) -> None:
    served(ready, "--holdout-uniform", "2%", pages=0)
    again = ["experiment", "create", "ab", "--variant", "a=home", "--unit", "session", "--holdout-uniform"]
    assert ready(*again, share, "--json").json["created"] is False
    assert ready(*again, "3%").exit_code == 6
    assert ready(*again[:-1], "--variant", "b=other").exit_code == 6


@pytest.mark.parametrize("share", ["0", "0%", "-1%", "51%", "1", "%", "x", "nan", "1e400%", "1e-320"])
def test_what_is_no_share_is_refused(ready: Any, share: Any) -> None:
    refused = ready("experiment", "create", "ab", "--variant", "a=home", f"--holdout-uniform={share}")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert ready("experiment", "list", "--json").json == []


def test_a_holdout_can_be_audited_exported_and_judged(ready: Any) -> None:
    served(ready, "--holdout-uniform", "0.3")
    assert ready("--now", LATER, "doctor").exit_code == 0
    shown = [line["policy"] for line in ready("export-log", "-").lines if line["variant"] == "holdout"]
    assert shown == ["uniform@ab/holdout"] * len(shown) != []
    for log in ("variant=holdout", "policy=uniform"):
        judged = ready("--now", LATER, "evaluate", "home", "--log", log, "--estimator", "ips", "--json").json
        assert judged[0]["n"] == len(shown)


def test_show_for_a_person_says_difference_and_split(ready: Any) -> None:
    create(ready)
    shown = ready("experiment", "show", "ab", "--details").stdout
    assert "b - a: not known yet (no-units)\n" in shown
    assert "sample ratio: not known yet\n" in shown
    lines = "".join(f'{{"experiment": "ab", "session": "s{n}", "user": "u{n}"}}\n' for n in range(30))
    ready("recommend", "--input", "-", stdin=lines)
    assert "sample ratio: the split is as defined\n" in ready("experiment", "show", "ab").stdout
    assert "'device'. no context has a field\n" in ready("experiment", "show", "ab", "--by", "device").stderr


@pytest.mark.parametrize("words", [("--reward", "defualt"), ("--level", "1.5")])
def test_show_refuses_what_it_does_not_know(ready: Any, words: list[str]) -> None:
    create(ready)
    assert ready("experiment", "show", "ab", *words).exit_code == 2


def test_a_metric_that_no_variant_has_yet_takes_one_line(ready: Any) -> None:
    create(ready)
    lines = "".join(f'{{"experiment": "ab", "session": "s{n}", "user": "u{n}"}}\n' for n in range(20))
    ready("recommend", "--input", "-", stdin=lines)
    rows = [line.split() for line in ready("experiment", "show", "ab", "--details").stdout.splitlines()]
    after = {row[0]: below for row, below in pairwise(rows) if row}
    assert after["visits"][0] == "b"
    assert after["returned_1d"][0] == "returned_7d"


def test_another_reward_judges_old_decisions(ready: Any) -> None:
    create(ready, "--unit", "session")
    ready("reward", "define", "buys", "purchase=5", "--window", "1h")
    number = ready("recommend", "--experiment", "ab", "--session", "s1", "--json").json["decision_id"]
    ready("feedback", number, "purchase=2")
    answer = ready("--now", LATER, "experiment", "show", "ab", "--reward", "buys", "--json").json
    assert sorted([row["mean"] for row in answer["variants"]], key=lambda mean: mean is None) == [10.0, None]


def test_stopped_experiment_refuses_requests_with_exit_2(ready: Any) -> None:
    create(ready, "--unit", "session")
    stopped = ready("experiment", "stop", "ab", "--json").json
    assert (stopped["status"], stopped["already_stopped"]) == ("stopped", False)
    assert ready("experiment", "stop", "ab", "--json").json["already_stopped"]
    assert "stopped" in ready("recommend", "--experiment", "ab", "--session", "s1").failed(2)


@pytest.mark.parametrize("command", ["show", "stop"])
def test_unknown_experiment_names_the_near_one(ready: Any, command: Sequence[str]) -> None:
    create(ready)
    assert "did you mean ab?" in ready("experiment", command, "abb").failed(2)


@pytest.mark.parametrize("form", ["table", "json", "ndjson", "csv"])
def test_every_format_lists_experiments(ready: Any, form: Any) -> None:
    create(ready)
    listed = ready("experiment", "list", "--format", form).done()
    assert "ab" in listed.stdout


@pytest.mark.slow
def test_csv_compares_every_variant_with_the_first(ready: Any) -> None:
    create(ready, "--unit", "session")
    ready("recommend", "--input", "-", stdin=[{"experiment": "ab", "session": f"s{n}"} for n in range(20)])
    click(ready, [n + 1 for n in range(20) if n % 3])
    words = ("--now", LATER, "experiment", "show", "ab", "--fixed")
    answer, output = ready(*words, "--json").json["differences"][0], ready(*words, "--format", "csv").stdout
    first, second = csv.DictReader(io.StringIO(output, newline=""))
    columns = ("difference", "difference_lower", "difference_upper")
    assert [*second].index("unit_difference") < [*second].index("difference")
    assert [first[name] for name in columns] == [""] * 3
    assert [float(second[name]) for name in columns] == [answer[name] for name in ("value", "lower", "upper")]
    assert (second["p_value"], float(second["unit_p_value"]) <= 1) == ("", True)


def test_any_variant_can_be_the_one_to_compare_with(ready: Any) -> None:
    """The figures of a pair are the same, with the other sign; no command follows, since these take the first one."""
    served(ready, "--variant", "b=other", "--variant", "c=other")
    words = ("--now", LATER, "experiment", "show", "ab", "--against")
    pairs = [ready(*words, label, "--json").json["unit_differences"] for label in "abc"]
    values = {
        (row["group"], row["against"]): row["value"]
        for rows in pairs for row in rows if row["metric"] == "reward_per_unit"
    }  # fmt: skip
    assert values["b", "a"] == pytest.approx(-values["a", "b"])
    assert values["c", "b"] == pytest.approx(-values["b", "c"])
    assert len(values) == 6
    more = ready("--now", LATER, "outcomes", "--experiment", "ab", "--against", "b", "--json").json["differences"]
    assert [row["value"] for row in more] == [row["value"] for row in pairs[1]]
    assert "has no variant 'd' to compare with. it has a, b, c" in ready(*words, "d").failed(2)
    assert "names a variant of an experiment" in ready("outcomes", "--against", "b").failed(2)


def bring_back(db: str) -> None:
    """80 users, a visit with one decision a day: `a` has one visit and mostly a click, `b` more, with fewer clicks."""
    run = runner(db)
    begin(run, "x", "home", "uniform")
    run("policy", "create", "other", "--kind", "uniform")
    run("experiment", "create", "ab", "--variant", "a=home", "--variant", "b=other")
    back = [f"u{n}" for n in range(80)]
    for day in range(1, 6):
        now = f"2030-01-0{day}T00:00:00Z"
        lines = "".join(f'{{"experiment": "ab", "session": "{user}-{day}", "user": "{user}"}}\n' for user in back)
        answers = run("--now", now, "--allow-future", "recommend", "--input", "-", stdin=lines).lines
        rates = {"a": 8, "b": 5}
        clicked = [row["decision_id"] for n, row in enumerate(answers) if n % 10 < rates[row["variant"]]]
        click(run, clicked, "--now", now)
        back = [
            answer["user"] for answer in answers if answer["variant"] == "b" and int(answer["user"][1:]) % 5 >= day - 2
        ]


def test_a_variant_that_brings_users_back_but_earns_less_per_decision_is_said_to(sqlite_db: str) -> None:
    run = filled(sqlite_db, bring_back)
    answer = run("--now", LATER, "experiment", "show", "ab", "--fixed", "--json").json
    per_unit = {row["metric"]: row for row in answer["unit_differences"]}
    assert answer["differences"][0]["upper"] < 0 < per_unit["reward_per_unit"]["lower"]
    assert per_unit["visits"]["lower"] > 0
    assert answer["reasons"] == ["decisions-differ"]
    assert (per_unit["reward_per_unit"]["answer"], answer["differences"][0]["answer"]) == ("better", "unknown")
    text = run("--now", LATER, "experiment", "show", "ab", "--fixed", "--details").stdout
    assert re.search(r"^b is better than a: \+[0-9.]+ % \[.*\] per user\n", text, re.M)
    assert text.index("reward_per_unit") < text.index("decisions-differ: ") < text.index(" a decision")
    assert re.search(r"b - a: [0-9.]+ \[.*\] decisions per user", text)
    assert re.search(r"b - a: -[0-9.]+ a decision \(decisions-differ\)\n", text)


def test_a_mean_per_visit_of_people_who_come_once_has_the_answer_per_person(ready: Any) -> None:
    """The same figures never stand beside two answers."""
    create(ready)
    lines = "".join(f'{{"experiment": "ab", "session": "{n}", "user": "{n}"}}\n' for n in range(240))
    answers = ready("recommend", "--input", "-", stdin=lines).lines
    click(ready, [row["decision_id"] for n, row in enumerate(answers) if n % 5 == 0 or row["variant"] == "b"])
    rows = ready("--now", LATER, "experiment", "show", "ab", "--json").json["unit_differences"]
    answered = {row["metric"]: (row["value"], row["lower"], row["answer"], row["reasons"]) for row in rows}
    assert answered["reward_per_visit"] == answered["reward_per_unit"]
    assert answered["reward_per_unit"][2:] == ("better", [])
    text = ready("--now", LATER, "experiment", "show", "ab").stdout
    assert "reward_per_visit" not in text  # which would say it twice


def test_a_policy_whose_variant_serves_has_no_answer_of_its_own(ready: Any) -> None:
    """It never served, and has learned nothing: what it draws at random is no answer about its name."""
    create(ready)
    lines = "".join(f'{{"experiment": "ab", "session": "{n}", "user": "{n}"}}\n' for n in range(40))
    ready("recommend", "--input", "-", stdin=lines).done()
    lines = ready("--now", LATER, "evaluate", "home").done().stdout.splitlines()
    assert lines[0] == "home@1 served nobody; its variant home@ab/a serves: judge it"


def test_days_count_the_time_in_which_nobody_new_comes(sqlite_db: str) -> None:
    """All 80 users come on the first of five days, and again later: the traffic is that of five days, not of one."""
    run = filled(sqlite_db, bring_back)
    answer = run("--now", LATER, "experiment", "show", "ab", "--json").json
    assert answer["units_per_day"] == pytest.approx(80 / 5, rel=0.01)


def test_every_reward_leads_with_its_difference_per_unit(sqlite_db: str) -> None:
    """Variants that learn different rewards are compared by both; means per decision by the first one alone."""
    run = filled(sqlite_db, bring_back)
    run("reward", "define", "loyal", "click=1, buy=9")
    run("policy", "create", "loyal", "--kind", "uniform", "--reward", "loyal")
    run("experiment", "create", "learn", "--variant", "a=home", "--variant", "b=loyal", "--unit", "session")
    text = run("--now", LATER, "experiment", "show", "learn").stdout
    assert re.findall("than a by (reward default|loyal)", "".join(text.splitlines()[:2])) == ["reward default", "loyal"]
    words = ("--now", LATER, "experiment", "show", "ab", "--reward", "loyal", "--reward", "default")
    shown = run(*words, "--json").json["unit_differences"]
    assert [row["reward"] for row in shown if row["metric"] == "reward_per_unit"] == ["loyal", "default"]
    assert run(*words, "--reward", "loyal").exit_code == 2


def test_the_conclusion_says_how_many_more_units_would_tell(ready: Run) -> None:
    """Every third session of either variant has a click: nothing differs so far."""
    served(ready, "--variant", "b=other", pages=160)
    answer = ready("--now", LATER, "experiment", "show", "ab", "--json").json
    (row,) = [row for row in answer["unit_differences"] if row["metric"] == "reward_per_unit"]
    assert (row["answer"], answer["units_per_day"]) == ("unknown", None)
    sentence, *lines = ready("--now", LATER, "experiment", "show", "ab", "--details").stdout.split("\n")
    assert f"about a 50 % chance of an answer after {approximate(row['needed']):,} more visits" in sentence
    # every session is one visit of one decision: there is nothing to compare
    assert any(line.startswith("left out, as nothing varies there yet: visits, ") for line in lines)
    assert [line for line in lines if line.startswith("visits ")] == []
    assert {"visits", "reward_per_unit"} <= {row["metric"] for row in answer["outcomes"]}
    # a difference that is sure so far waits for the age of its units, not for more of them
    young = row | {"value": 0.2, "lower": 0.1, "upper": 0.3, "reasons": ["young-units"]}
    for each in (row, young):
        rows = [other for other in answer["unit_differences"] if other is not row]
        notes = comparison_view(answer | {"unit_differences": [each, *rows]}, 0.95, details=False).notes
        assert any("to tell +10 % of reward_per_unit" in str(note) for note in notes) == (each is row)


def test_the_conclusion_speaks_of_every_reward_per_unit(sqlite_db: str) -> None:
    """`b` brings users back and has fewer clicks a decision; decisions that cost 3 each turn the comparison."""
    run = filled(sqlite_db, bring_back)
    run("reward", "define", "costly", "click=1", "--default", "-3")
    words = ("--now", LATER, "experiment", "show", "ab", "--fixed", "--reward", "default")
    single, both = run(*words).stdout, run(*words, "--reward", "costly").stdout
    assert single.splitlines()[1].startswith("b is better than a: +")
    assert "disagree" not in single
    scope, better, worse, disagreement, *_ = both.split("\n")
    assert (better.startswith("b is better than a: +"), better.endswith(" per user by reward default")) == (True, True)
    assert (worse.startswith("b is worse than a: -"), worse.endswith(" per user by costly")) == (True, True)
    assert disagreement == "b: the rewards disagree, decide by the one that you want"
    assert scope == "--fixed, at one look that was planned beforehand; at the best of several looks this does not hold:"
    shown = run("--now", LATER, "experiment", "show", "ab", "--reward", "default").stdout
    compared = run("--now", LATER, "outcomes", "--experiment", "ab", "--reward", "default").stdout
    assert compared.splitlines()[0] == shown.splitlines()[0] != single.splitlines()[0]


def test_an_interleaved_experiment_has_no_outcomes_per_unit(ready: Any) -> None:
    for name in ("other", "third"):
        ready("policy", "create", name, "--kind", "uniform")
    ready("experiment", "create", "rank", "--interleave", "other@1,third@1", "--unit", "session")
    ready("recommend", "--experiment", "rank", "--session", "s1", "-k", 2)
    answer = ready("--now", LATER, "experiment", "show", "rank", "--json").json
    assert (answer["outcomes"], answer["unit_differences"], answer["reasons"]) == ([], [], ["interleaved"])
    assert "no outcomes per session" in ready("--now", LATER, "experiment", "show", "rank").stdout


def test_show_leads_with_rewards_per_unit_and_has_all_else_under_details(ready: Run) -> None:
    served(ready, "--variant", "b=other", pages=60)
    options: list[list[str]] = [[], ["--details"]]
    short, full = (ready("--now", LATER, "experiment", "show", "ab", *words).stdout for words in options)
    assert "--details has every metric" in short
    assert [text.count("means per decision (") for text in (short, full)] == [0, 1]
    assert [text.count("\nreward_per_unit ") for text in (short, full)] == [1, 1]


def test_the_built_in_uniform_is_a_variant(ready: Run) -> None:
    answer = served(ready, "--variant", "b=uniform").json
    assert [row["policy"] for row in answer["variants"]] == ["home@ab/a", "uniform@ab/b"]
    result = ready("--now", LATER, "experiment", "show", "ab", "--json").json
    assert [row["variant"] for row in result["differences"]] == ["b"]
    assert min(row["decisions"] for row in result["variants"]) > 0
    assert ready("--now", LATER, "doctor").exit_code == 0


def test_a_policy_wins_over_the_built_in_of_its_name(ready: Run) -> None:
    ready("policy", "create", "uniform", "--kind", "thompson")
    served(ready, "--variant", "b=uniform", pages=0)
    kinds = {row["policy"]: row["kind"] for row in ready("policy", "list", "--json").json}
    assert kinds["uniform@ab/b"] == "thompson"


def test_an_experiment_of_uniform_variants_alone_has_no_reward(ready: Run) -> None:
    refused = ready("experiment", "create", "ab", "--variant", "a=uniform", "--variant", "b=uniform")
    assert (refused.exit_code, "which reward counts" in refused.stderr) == (2, True)
    assert ready("experiment", "list", "--json").json == []


def visited(run: Run, now: str, users: range, clicks: int) -> None:
    """One visit of each of some users, of whom so many in ten click, whatever they are served."""
    lines = "".join(f'{{"experiment": "ab", "session": "s{n}", "user": "u{n}"}}\n' for n in users)
    answers = run("--now", now, "recommend", "--input", "-", stdin=lines).lines
    clicked = [row["decision_id"] for row, n in zip(answers, users, strict=True) if n * 7 % 10 < clicks]
    click(run, clicked, "--now", now)


def test_weights_that_change_while_rates_drift_make_no_difference(ready: Any) -> None:
    ready("--now", "2026-05-01", "experiment", "create", "ab", "--variant", "a=other", "--variant", "b=other")
    visited(ready, "2026-05-02", range(300), 8)
    ready("--now", "2026-05-03", "experiment", "set", "ab", "--weight", "a=1", "--weight", "b=9")
    visited(ready, "2026-05-04", range(300, 900), 2)
    ready("--now", "2026-05-05", "experiment", "freeze", "ab")
    visited(ready, "2026-05-06", range(900, 950), 9)
    done = ready("--now", "2026-06-01", "experiment", "show", "ab", "--json").json
    (difference,) = (row for row in done["unit_differences"] if row["metric"] == "reward_per_unit")
    assert abs(difference["value"]) < 0.15
    assert difference["p_value"] > 1e-4  # of all units together it is below 1e-20
    assert [(row["begun"], row["mode"]) for row in done["phases"][1:]] == [
        ("2026-05-03T00:00:00.000000Z", "draws"), ("2026-05-05T00:00:00.000000Z", "frozen"),
    ]  # fmt: skip
    assert done["phases"][1]["weights"] == {"a": 0.1, "b": 0.9}
    assert [sum(row["units"].values()) for row in done["phases"]] == [300, 600, 0]
    assert sum(row["units"] for row in done["variants"]) == 900
    assert done["sample_ratio"]["p_value"] > 1e-4
    values = {row["group"]: row["value"] for row in done["outcomes"] if row["metric"] == "reward_per_unit"}
    assert values["b"] - values["a"] == pytest.approx(difference["value"])
    text = ready("--now", "2026-06-01", "experiment", "show", "ab").stdout
    assert "since 2026-05-03T00:00:00.000000Z: a=0.1 b=0.9, 600 units" in text
    assert "since 2026-05-05T00:00:00.000000Z: frozen, no new unit" in text


@ON_BOTH
def test_units_of_a_ramp_count_in_the_phase_that_served_them(ready: Any) -> None:
    """Equal candidates, whose users come back in each step, at other rates."""
    ready("--now", "2026-05-01", "route", "create", "front", "--to", "other")
    ready("--now", "2026-05-01", "route", "set", "front", "--to", "home", "--share", "30%")
    lines = "".join(f'{{"policy": "front", "session": "s{n}", "user": "u{n}"}}\n' for n in range(400))
    steps, variants = {"2026-05-02": 8, "2026-05-12": 2, "2026-05-22": 5}, []
    for day, clicks in steps.items():
        answers = ready("--now", day, "recommend", "--input", "-", stdin=lines).lines
        click(ready, (row["decision_id"] for n, row in enumerate(answers) if n * 7 % 10 < clicks), "--now", day)
        variants.append([row["variant"] == "candidate" for row in answers])
        share = 0.3 + 0.2 * len(variants)
        step = [f"--weight=current={1 - share}", f"--weight=candidate={share}"]
        assert ready("--now", day, "experiment", "set", "front-ramp-1", *step).exit_code == 0
    less = ready(
        "--now", "2026-05-23", "experiment", "set", "front-ramp-1", "--weight=current=9", "--weight=candidate=1"
    )
    assert (less.exit_code, "gives back none of its units" in less.stderr) == (2, True)
    done = ready("--now", "2026-07-01", "experiment", "show", "front-ramp-1", "--json").json
    counted = [400, *(variants[step].count(False) for step in (0, 1)), 0]
    assert [sum(row["units"].values()) for row in done["phases"]] == counted
    assert [row["mode"] for row in done["phases"]] == ["draws", "moves", "moves", "moves"]
    assert done["sample_ratio"]["p_value"] > 1e-3
    (difference,) = (row for row in done["unit_differences"] if row["metric"] == "reward_per_unit")
    assert abs(difference["value"]) < 0.15
    assert done["phases"][1]["differences"][0]["lower"] < 0 < done["phases"][1]["differences"][0]["upper"]
    assert ready("--now", "2026-07-01", "doctor", "--json").exit_code == 0
