"""rlrec policy: kinds, creation, beliefs as people see them, versions."""

from __future__ import annotations

import csv
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rlrec.policy import KINDS, make
from tests.conftest import ON_BOTH, Run, filled, runner

SHOWN = [
    "arm", "status", "served", "pending", "pulls", "reward_sum", "mean", "lower", "upper", "p_best", "probability",
    "ipw_mean", "ipw_lower", "ipw_upper",
]  # fmt: skip


def arms(run: Run, *keys: str) -> None:
    run("arm", "import", "-", stdin=[{"arm": key} for key in keys])


def shown(run: Run, reference: str) -> dict[str, Any]:
    return {row["arm"]: row for row in run("policy", "show", reference, "--json").json["arms"]}


@pytest.fixture
def shop(sqlite_db: str) -> Run:
    """Arms a1, a2, a3 and a Thompson policy `home` with one click in two decisions."""
    return filled(sqlite_db, stocked)


def stocked(db: str) -> None:
    run = runner(db)
    arms(run, "a1", "a2", "a3")
    run("policy", "create", "home", "--kind", "thompson", "--param", "floor=0.3")
    for arm, session in (("a1", "s1"), ("a2", "s2")):
        run("recommend", "--policy", "home", "--session", session, "--arms", arm)
    run("feedback", "1", "click")


# -- kinds --


def test_every_kind_says_its_parameters_and_when_to_use_it(run_sqlite: Run) -> None:
    answer = run_sqlite("policy", "kinds", "--json").json
    assert [policy["kind"] for policy in answer] == list(KINDS)
    assert list(answer[0]) == ["kind", "parameters", "when", "what"]
    by_kind = {policy["kind"]: policy["parameters"] for policy in answer}
    assert by_kind["epsilon-greedy"] == {
        "epsilon": 0.1,
        "floor": 0.0,
        "explore_slots": "",
        "discount": 1.0,
        "window": 0.0,
        "position": "",
        "budget": "",
    }
    assert list(by_kind["ucb"]) == ["c", "floor", "explore_slots", "discount", "window", "position", "budget"]
    assert all(row["when"] and row["what"] for row in answer)


def test_kinds_need_no_store(tmp_path: Path) -> None:
    from tests.conftest import runner

    run = runner(str(tmp_path / "none.db"))
    assert run("policy", "kinds").exit_code == 0
    assert list(tmp_path.iterdir()) == []


# -- create --


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fixed"])
def test_every_kind_can_be_created_listed_and_shown(run: Run, kind: str) -> None:
    arms(run, "a1", "a2")
    answer = run("policy", "create", "p", "--kind", kind, "--json").json
    assert list(answer) == ["policy", "version", "kind", "params", "reward", "status", "versions", "created"]
    assert run("policy", "list", "--json").json == [{key: answer[key] for key in answer if key != "created"}]
    result = run("policy", "show", "p", "--json").json
    assert [key for key in result if key in ("policy", "version", "kind", "params", "reward", "arms")] == [
        "policy", "version", "kind", "params", "reward", "arms",
    ]  # fmt: skip
    assert [[key for key in row if key != "weights"] for row in result["arms"]] == [SHOWN, SHOWN]
    assert all(("weights" in row) == make(kind, {}).is_contextual for row in result["arms"])
    probabilities = [row["probability"] for row in result["arms"]]
    unknown = kind in ("logged", "scored", "two-stage")  # only a request has their scores
    assert probabilities == ([None, None] if unknown else pytest.approx([0.5, 0.5]))


def test_the_same_definition_again_is_fine_and_another_one_a_conflict(run: Run) -> None:
    create, kind = ["policy", "create", "p", "--json", "--kind"], "epsilon-greedy"
    assert run(*create, kind).json["created"] is True
    assert run(*create, kind, "--param", "epsilon=0.10", "--param", "floor=0").json["created"] is False
    for other in ([kind, "--param", "epsilon=0.2"], ["ucb"]):
        result = run(*create, *other)
        assert (result.exit_code, result.error["code"]) == (6, 6)
    assert run("policy", "list", "--json").json[0]["params"] == {
        "epsilon": 0.1, "floor": 0.0, "explore_slots": "", "discount": 1.0, "window": 0.0, "position": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        (["--kind", "tompson"], "unknown kind 'tompson'", "did you mean thompson"),
        (["--kind", "ucb", "--param", "C=1"], "no parameter 'C'", "c, floor"),
        (["--kind", "ucb", "--param", "c=x"], "parameter c is 'x'", "finite number"),
        (["--kind", "ucb", "--param", "c=nan"], "parameter c is 'nan'", "finite number"),
        (["--kind", "ucb", "--param", "c=1_0"], "parameter c is '1_0'", "finite number"),
        (["--kind", "ucb", "--param", "c=-1"], "c is -1", "between 0 and"),
        (["--kind", "thompson", "--param", "floor=1.5"], "floor is 1.5", "between 0 and 1"),
        (["--kind", "thompson", "--param", "floor"], "has no '='", "NAME=VALUE"),
        (["--kind", "ucb", "--param", "c=1", "--param", "c=2"], "'c' is given twice", None),
        (["--kind", "ucb", "--reward", "defult"], "unknown reward 'defult'", "did you mean default?"),
        (["--kind", "thompson", "--reward", "open"], "may leave [0, 1]", "--clip 0,1"),
        (["--kind", "fixed"], "needs probabilities", "probabilities=FILE"),
        (["--kind", "ucb", "--from-log", "polcy=x"], "not a log filter", "policy"),
        (["--kind", "ucb", "--from-log", "policy=x"], "unknown policy 'x'", "policy list"),
        (["--kind", "ucb", "--from-log", ""], "no mature decision", "import a log"),
        (
            ["--kind", "ucb", "--prior-from", "", "--prior-weight", "0"],
            "--prior-weight is 0",
            "between 1e-06 and 1e+09",
        ),
        (["--kind", "ucb", "--prior-weight", "3"], "needs a log", "--prior-from"),
        ([], "Missing option '--kind'", None),
    ],
)
def test_what_cannot_be_created_is_refused(run_sqlite: Run, words: list[str], what: str, hint: str | None) -> None:
    run_sqlite("reward", "define", "open", "dwell_s=1")
    result = run_sqlite("policy", "create", "p", *words, "--json")
    assert (result.exit_code, result.error["code"]) == (2, 2)
    assert what in result.error["error"]
    assert hint is None or hint in result.error["hint"]
    assert run_sqlite("policy", "list", "--json").json == []


@pytest.mark.parametrize(
    ("words", "unit"),
    [
        (("click=0.05, purchase=2, return=1", "--window", "7d"), 3.05),
        (("click=1, purchase=9", "--clip", "0.5,4", "--default", "1", "--late", "ignore"), 4),
        (("min(dwell_s,600)=0.01, click=1", "--learn", "settled"), 7),
        (("click=0.25",), 1),
    ],
)
def test_a_reward_outside_of_0_and_1_is_refused_with_the_command_that_scales_it(
    run_sqlite: Run, words: tuple[str, ...], unit: float
) -> None:
    run_sqlite("reward", "define", "durable", *words)
    refused = run_sqlite("policy", "create", "ts", "--kind", "thompson", "--reward", "durable")
    _, *command = shlex.split(refused.stderr.split("`")[1])
    assert run_sqlite(*command).exit_code == 0
    assert run_sqlite("policy", "create", "ts", "--kind", "thompson", "--reward", "durable-unit").exit_code == 0
    durable, scaled = run_sqlite("reward", "list", "--json").json[-2:]
    assert durable["weights"] == pytest.approx({kind: weight * unit for kind, weight in scaled["weights"].items()})
    same = ("window_s", "learn", "late", "transforms")
    assert [durable[name] for name in same] == [scaled[name] for name in same]
    assert durable["default"] == scaled["default"] * unit


def test_a_negative_reward_is_refused_with_another_kind(run_sqlite: Run) -> None:
    run_sqlite("reward", "define", "costs", "click=1, refund=-1")
    refused = run_sqlite("policy", "create", "ts", "--kind", "thompson", "--reward", "costs")
    assert "epsilon-greedy" in refused.stderr
    assert run_sqlite("policy", "create", "any", "--kind", "epsilon-greedy", "--reward", "costs").exit_code == 0


def test_ucb_without_a_floor_is_told_what_its_log_is_worth(run_sqlite: Run) -> None:
    assert "cannot judge other policies" in run_sqlite("policy", "create", "u", "--kind", "ucb").stderr
    assert run_sqlite("policy", "create", "u", "--kind", "ucb").stderr == ""
    assert "judge" not in run_sqlite("policy", "create", "v", "--kind", "ucb", "--param", "floor=0.05").stderr


# -- priors and probabilities --


def test_a_prior_that_a_kind_never_reads_is_refused(run_sqlite: Run, tmp_path: Path) -> None:
    arms(run_sqlite, "a1", "a2")
    (tmp_path / "prior.csv").write_text("arm,alpha,beta\na1,2,6\n")
    for words in (["--prior", tmp_path / "prior.csv"], ["--prior-from", "policy=u", "--prior-weight", "2"]):
        refused = run_sqlite("policy", "create", "p", "--kind", "exp3", *words, "--json")
        assert (refused.exit_code, refused.error["code"]) == (2, 2)
        assert refused.error["error"] == "kind exp3 has no prior: it weighs gains, which all begin at 0"
    assert run_sqlite("policy", "list", "--json").json == []


@pytest.mark.parametrize("text", ["arm,alpha,beta\na1,2,6\n", "arm,mean,variance\na1,0.25,0.020833333333333332\n"])
def test_a_prior_replaces_the_default_of_the_arms_it_names(run_sqlite: Run, tmp_path: Path, text: str) -> None:
    arms(run_sqlite, "a1", "a2")
    (tmp_path / "prior.csv").write_text("\ufeff" + text)
    run_sqlite("policy", "create", "p", "--kind", "thompson", "--prior", tmp_path / "prior.csv")
    result = shown(run_sqlite, "p")
    assert result["a1"]["mean"] == pytest.approx(0.25)
    assert result["a2"]["mean"] == 0.5
    assert (result["a1"]["pulls"], result["a1"]["reward_sum"]) == (0, 0)
    unlearned = "nothing was learned yet: mean, lower and upper are those of the prior that was given"
    assert unlearned in run_sqlite("policy", "show", "p").done().stdout.splitlines()
    # P(Beta(2, 6) > U) is the mean of Beta(2, 6)
    assert result["a1"]["p_best"] == pytest.approx(0.25, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("arm,alpha,beta\na9,1,1\n", "arm 'a9', which the catalogue lacks"),
        ("arm,alpha\na1,1\n", "begins with 'arm,alpha'"),
        ("", "begins with ''"),
        ("arm,alpha,beta\na1,1\n", "line 2 has not as many cells"),
        ("arm,alpha,beta\na1,x,1\n", "line 2, alpha is 'x'"),
        ("arm,alpha,beta\na1,0,1\n", "line 2 is no prior"),
        ("arm,alpha,beta\na1,1e-300,1\n", "line 2 is no prior"),
        ("arm,alpha,beta\na1,1,1e100\n", "between 1e-06 and 1e+09"),
        ("arm,alpha,beta\na1,inf,1\n", "line 2, alpha is 'inf'"),
        ("arm,mean,variance\na1,0.5,0.25\n", "line 2 is no prior"),
        ("arm,alpha,beta\na1,1,1\na1,2,2\n", "line 3 names arm 'a1' twice"),
    ],
)
def test_what_is_no_prior_is_refused(run_sqlite: Run, tmp_path: Path, text: str, what: str) -> None:
    arms(run_sqlite, "a1")
    (tmp_path / "prior.csv").write_text(text)
    result = run_sqlite("policy", "create", "p", "--kind", "thompson", "--prior", tmp_path / "prior.csv").failed(2)
    assert what in result
    assert run_sqlite("policy", "list", "--json").json == []


@ON_BOTH
def test_a_prior_from_a_log_is_shown_as_pulls_that_no_belief_counts(run: Run) -> None:
    arms(run, "a1", "a2")
    run("--now", "2026-01-01T12:00:00Z", "policy", "create", "u", "--kind", "uniform")
    for arm in ("a1", "a2", "a1", "a2"):
        run("--now", "2026-01-01T12:00:00Z", "recommend", "--policy", "u", "--session", "s", "--arms", arm)
    run("--now", "2026-01-01T12:00:00Z", "feedback", "1", "click")
    create = ["policy", "create", "p", "--kind", "uniform", "--prior-from", "policy=u", "--prior-weight", "2"]
    assert "ignores the prior when it draws" in run("--now", "2026-01-01T13:00:00Z", *create).stderr
    result = shown(run, "p")
    assert {key: (row["pulls"], row["mean"]) for key, row in result.items()} == {"a1": (0, 0.375), "a2": (0, 0.125)}


def test_another_prior_is_another_policy(run_sqlite: Run, tmp_path: Path) -> None:
    arms(run_sqlite, "a1")
    prior = tmp_path / "prior.csv"
    create = ["policy", "create", "p", "--kind", "thompson", "--prior", prior]
    prior.write_text("arm,alpha,beta\na1,1,3\n")
    assert [run_sqlite(*create).exit_code for _ in range(2)] == [0, 0]
    prior.write_text("arm,alpha,beta\na1,1,4\n")
    assert run_sqlite(*create).exit_code == 6


def test_fixed_probabilities_may_depend_on_a_field_of_the_context(run: Run, tmp_path: Path) -> None:
    arms(run, "a1", "a2")
    table = tmp_path / "table.csv"
    table.write_text("value,arm,probability\n9,a1,1\ntrue,a2,1\n*,a1,0.25\n*,a2,0.75\n")
    words = ["--kind", "fixed", "--param", f"probabilities={table}", "--param", "by=hour"]
    assert run("policy", "create", "f", *words).exit_code == 0
    draw = ["recommend", "--policy", "f", "--session", "s", "--seed", "1", "--json"]
    for context, propensities in (
        ('{"hour": 9}', {"a1": 1.0}), ('{"hour": true}', {"a2": 1.0}), ("{}", {"a1": 0.25, "a2": 0.75}),
    ):  # fmt: skip
        slot = run(*draw, "--context", context).json["slate"][0]
        assert slot["propensity"] == pytest.approx(propensities[slot["arm"]])
        assert slot["score"] is None
    assert "by=hour" in run("policy", "list").stdout
    run(*draw, "--context", '{"hour": 9, "device": "web"}')  # the newest: policy show has its probabilities
    newest = run("policy", "show", "f")
    assert 'reads hour; shown for the context {"hour": 9}, the newest unless --context names one' in newest.stdout
    shown = {row["arm"]: row["probability"] for row in run("policy", "show", "f", "--json").json["arms"]}
    assert shown == {"a1": 1.0, "a2": 0.0}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("arm,probability\na1,0.5\n", "add up to 0.5"),
        ("arm,probability\na1,0.5\na1,0.5\n", "names arm 'a1' twice"),
        ("arm,probability\na1,-1\na2,2\n", "is -1"),
        ("value,arm,probability\n9,a1,1\n", "it needs arm,probability"),
    ],
)
def test_what_are_no_probabilities_is_refused(run_sqlite: Run, tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    result = run_sqlite(
        "policy", "create", "f", "--kind", "fixed", "--param", f"probabilities={tmp_path / 'p.csv'}"
    ).failed(2)
    assert what in result


# -- look --


def test_show_has_what_the_belief_counts_and_what_would_be_served(shop: Run) -> None:
    result = shown(shop, "home")
    assert [(row["served"], row["pulls"], row["reward_sum"]) for row in result.values()] == [
        (1, 1, 1), (1, 1, 0), (0, 0, 0),
    ]  # fmt: skip
    assert [row["mean"] for row in result.values()] == pytest.approx([2 / 3, 1 / 3, 1 / 2])
    assert result["a1"]["lower"] == pytest.approx(0.025**0.5)  # of Beta(2, 1)
    assert sum(row["p_best"] for row in result.values()) == pytest.approx(1)
    for row in result.values():
        assert row["probability"] == pytest.approx(0.1 + 0.7 * row["p_best"])


@pytest.mark.parametrize("learn", ["served", "settled"])
def test_show_tells_what_is_pending_from_what_earned_nothing(run: Run, learn: str) -> None:
    """A settled slot is pending until it has entered the belief."""
    arms(run, "a1")
    defined = "reward", "define", "clicks", "click=1", "--clip", "0,1", "--window", "1h", "--learn", learn
    for words in (defined, ("policy", "create", "home", "--kind", "thompson", "--reward", "clicks")):
        assert run("--now", "2026-01-01T00:00:00Z", *words).exit_code == 0
    for at in ("00:00", "00:30"):
        assert run("--now", f"2026-01-01T{at}:00Z", "recommend", "--policy", "home", "--session", at).exit_code == 0
    show = "--now", "2026-01-01T01:20:00Z", "policy", "show", "home", "--json"
    (row,) = run(*show).json["arms"]
    assert (row["served"], row["pending"]) == (2, 2 if learn == "settled" else 1)
    run("--now", "2026-01-01T01:20:00Z", "settle")
    assert run(*show).json["arms"][0]["pending"] == 1


def test_a_retired_arm_is_shown_and_not_served(shop: Run) -> None:
    shop("arm", "retire", "a1")
    result = shown(shop, "home")
    assert (result["a1"]["status"], result["a1"]["p_best"], result["a1"]["probability"]) == ("retired", None, 0)
    assert result["a2"]["probability"] + result["a3"]["probability"] == pytest.approx(1)


def test_a_retired_version_does_not_come_back(shop: Run) -> None:
    for words in (["rebuild", "home"], ["promote", "home@2"], ["retire", "home@1"]):
        assert shop("policy", *words).exit_code == 0
    back = shop("policy", "rollback", "home", "--json")
    assert (back.exit_code, "version 1 of home" in back.error["error"]) == (3, True)
    assert shop("policy", "promote", "home@1").exit_code == 2
    assert shop("policy", "show", "home", "--json").json["version"] == 2


def test_a_rollback_without_a_promotion_names_the_version_that_can_go_live(shop: Run) -> None:
    shop("policy", "freeze", "home")
    command = shop("policy", "rollback", "home", "--json").error["hint"].split("`")[1].split()
    assert shop(*command[1:], "--json").json["version"] == 2


def test_a_pipe_has_the_arms_in_the_order_of_a_terminal(shop: Run) -> None:
    """The likeliest first; csv and json have the order of the catalogue."""
    answer = shop("policy", "show", "home", "--json").json["arms"]
    ranked = sorted(answer, key=lambda arm: -arm["probability"])
    assert ranked != answer
    table = [line.split()[0] for line in shop("policy", "show", "home").stdout.splitlines() if line[:1] == "a"]
    assert table == ["arm", *(arm["arm"] for arm in ranked)]


def test_the_label_of_a_log_has_the_counts_of_its_exposure_and_points_there(run_sqlite: Run) -> None:
    line = {"slate": [{"arm": "a", "propensity": 0.5}], "eligible": ["a", "b"], "reward": 1}
    rows = [{**line, "session": f"s{number}"} for number in range(3)]
    run_sqlite("import-log", "-", "--layout", "jsonl", "--policy", "old", stdin=rows)
    arms = run_sqlite("policy", "show", "old", "--json").json["arms"]
    assert [(arm["served"], arm["pulls"], arm["reward_sum"]) for arm in arms] == [(3, None, None), (0, None, None)]
    (command,) = re.findall("`rlrec ([^`]*)`", run_sqlite("policy", "show", "old").stdout)
    assert {row["arm"]: row["realised"] for row in run_sqlite(*command.split(), "--json").json["arms"]} == {
        arm["arm"]: arm["served"] for arm in arms
    }


def test_every_format_shows_the_same_policy(shop: Run) -> None:
    answer = shop("policy", "show", "home", "--json").json
    version = {"policy": "home", "version": answer["version"]}
    assert shop("policy", "show", "home", "--format", "ndjson").lines == [version | arm for arm in answer["arms"]]
    read = list(csv.DictReader(io.StringIO(shop("policy", "show", "home", "--format", "csv").stdout)))
    assert [row["arm"] for row in read] == ["a1", "a2", "a3"]
    assert float(read[0]["p_best"]) == answer["arms"][0]["p_best"]
    table = shop("policy", "show", "home").stdout
    assert table.startswith("home version 1 (learning; live: 1), kind thompson floor=0.3\nlearns reward default\n")


@pytest.mark.parametrize("command", ["show", "freeze", "promote", "rollback"])
def test_an_unknown_policy_is_named_with_near_ones(shop: Run, command: str) -> None:
    result = shop("policy", command, "hme@1" if command == "promote" else "hme", "--json")
    assert (result.exit_code, result.error["hint"]) == (2, "did you mean home?")
    if command not in ("rollback",):
        assert "no version 7" in shop("policy", command, "home@7", "--json").error["error"]


def test_a_belief_is_taught_from_a_log_and_says_which(run: Run) -> None:
    arms(run, "a1", "a2")
    before = ["--now", "2026-01-01T12:00:00Z"]
    run(*before, "policy", "create", "u", "--kind", "uniform")
    for session in ("s1", "s2", "s3"):
        run(*before, "recommend", "--policy", "u", "--session", session, "--arms", "a2")
    run(*before, "feedback", "1", "click")
    create = ["policy", "create", "g", "--kind", "epsilon-greedy", "--from-log", "policy=u", "--json"]
    assert run("--now", "2026-01-01T12:30:00Z", *create).exit_code == 2  # nothing is mature yet
    assert run("--now", "2026-01-01T12:31:00Z", *create).json["created"] is True
    assert run(*create).json["created"] is False
    answer = run("policy", "show", "g", "--json").json
    assert {row["arm"]: (row["pulls"], row["reward_sum"]) for row in answer["arms"]} == {"a1": (0, 0), "a2": (3, 1)}
    assert (answer["learned_from"]["filter"], answer["learned_from"]["last_id"]) == ("policy=u", 3)


# -- compare --


def test_diff_puts_two_versions_beside_each_other(shop: Run) -> None:
    shop("policy", "create", "even", "--kind", "uniform")
    rows = shop("policy", "diff", "even", "home", "--json").json
    assert list(rows[0]) == [
        "arm", "status", "pulls_a", "pulls_b", "pulls_difference", "mean_a", "mean_b", "mean_difference",
        "probability_a", "probability_b", "probability_difference",
    ]  # fmt: skip
    assert [row["pulls_difference"] for row in rows] == [1, 1, 0]
    assert [row["mean_difference"] for row in rows] == [None] * 3  # uniform knows no mean without pulls
    assert sum(row["probability_difference"] for row in rows) == pytest.approx(0)
    assert all(row["probability_a"] == pytest.approx(1 / 3) for row in rows)
    same = shop("policy", "diff", "home", "home@1", "--json").json
    assert {row["mean_difference"] for row in same} == {0}
    assert shop("policy", "diff", "home", "nobody").exit_code == 2
    assert shop("policy", "diff", "even", "home").stdout.startswith("a: even\nb: home\n")
    read = csv.DictReader(io.StringIO(shop("policy", "diff", "even", "home", "--format", "csv").stdout))
    assert [row["arm"] for row in read] == ["a1", "a2", "a3"]


def test_a_policy_that_needs_a_context_has_no_probability_to_compare(shop: Run, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("value,arm,probability\n9,a1,1\n")
    shop("policy", "create", "f", "--kind", "fixed", "--param", f"probabilities={tmp_path / 't.csv'}",
         "--param", "by=hour")  # fmt: skip
    rows = shop("policy", "diff", "home", "f", "--json").json
    assert {row["probability_b"] for row in rows} == {None}
    assert {row["probability_difference"] for row in rows} == {None}


# -- versions --


ONLY = {"policy": "home", "passed_by": []}  # what is live there serves all its callers


def test_a_frozen_version_is_served_as_it_stands_once_promoted(shop: Run) -> None:
    later = ["--allow-future", "--now", "2099-01-01T00:00:00Z"]
    frozen = shop(*later, "policy", "freeze", "home", "--json").json
    assert (frozen["version"], frozen["status"], frozen["parent"], frozen["versions"]) == (2, "frozen", 1, [1, 2])
    assert shop(*later, "policy", "promote", "home@2", "--json").json == ONLY | {"version": 2, "previous": 1}
    drawn = shop(*later, "recommend", "--policy", "home", "--session", "s9", "--arms", "a3", "--json").json
    assert drawn["version"] == 2
    shop(*later, "feedback", drawn["decision_id"], "click")
    assert shown(shop, "home")["a3"]["pulls"] == 0
    assert shown(shop, "home@1")["a3"]["pulls"] == 1
    assert shown(shop, "home")["a3"]["served"] == 1


def test_freeze_leaves_out_what_is_not_mature(run: Run) -> None:
    arms(run, "a1", "a2")
    run("--now", "2026-01-01T12:00:00Z", "policy", "create", "home", "--kind", "thompson")
    for minute, arm in ((0, "a1"), (20, "a2")):
        clock = ["--now", f"2026-01-01T12:{minute:02}:00Z"]
        decision = run(*clock, "recommend", "--policy", "home", "--session", arm, "--arms", arm, "--json").json
        run(*clock, "feedback", decision["decision_id"], "click")
    run("--now", "2026-01-01T12:30:01Z", "policy", "freeze", "home")
    assert {arm: (row["pulls"], row["reward_sum"]) for arm, row in shown(run, "home@2").items()} == {
        "a1": (1, 1), "a2": (0, 0),
    }  # fmt: skip
    answer = run("policy", "show", "home@2", "--json").json
    assert answer["learned_from"]["last_id"] == 1
    assert shown(run, "home")["a2"]["pulls"] == 1


def test_promotions_are_rolled_back_one_by_one(run: Run) -> None:
    run("policy", "create", "home", "--kind", "thompson")
    for _ in range(2):
        run("policy", "freeze", "home")
    for version in (2, 3, 3):  # the second time changes nothing
        assert run("policy", "promote", f"home@{version}").exit_code == 0
    assert run("policy", "rollback", "home", "--json").json == ONLY | {"version": 2, "previous": 3}
    assert run("policy", "rollback", "home", "--json").json == ONLY | {"version": 1, "previous": 2}
    result = run("policy", "rollback", "home", "--json")
    assert (result.exit_code, result.error["code"]) == (3, 3)


def test_promote_names_a_version_and_rollback_none(shop: Run) -> None:
    assert "names no version" in shop("policy", "promote", "home", "--json").error["error"]
    assert "names a version" in shop("policy", "rollback", "home@1", "--json").error["error"]


def test_the_label_of_a_log_has_nothing_to_freeze_or_to_draw(run_sqlite: Run) -> None:
    arms(run_sqlite, "a1")
    run_sqlite("policy", "create", "log", "--kind", "logged")
    assert run_sqlite("policy", "freeze", "log").exit_code == 2
    assert run_sqlite("recommend", "--policy", "log", "--session", "s").exit_code == 2


def test_a_table_of_policies_shows_what_each_was_given(run_sqlite: Run, tmp_path: Path) -> None:
    (tmp_path / "flat.csv").write_text("arm,probability\na,1\n")
    (tmp_path / "by.csv").write_text("value,arm,probability\nx,a,1\n")
    run_sqlite("arm", "add", "a")
    for name, *more in (("flat",), ("by", "--param", "by=hour")):
        table = f"probabilities={tmp_path / name}.csv"
        assert run_sqlite("policy", "create", name, "--kind", "fixed", "--param", table, *more).exit_code == 0
    shown = {line.split()[0]: " ".join(line.split()) for line in run_sqlite("policy", "list").stdout.splitlines()}
    assert shown["flat"] == "flat 1 fixed floor=0 probabilities=... default learning"
    assert shown["by"] == "by 1 fixed by=hour floor=0 probabilities=... default learning"


def test_show_lists_the_versions_with_their_status(shop: Run) -> None:
    shop("policy", "freeze", "home")
    shop("policy", "promote", "home@2")
    versions = shop("policy", "show", "home", "--json").json["version_list"]
    assert [(row["version"], row["status"], row["live"]) for row in versions] == [
        (1, "learning", False), (2, "frozen", True),
    ]  # fmt: skip
    assert "versions: 1 learning, 2 frozen (live)" in shop("policy", "show", "home").stdout


def test_arms_that_rules_leave_out_are_no_part_of_what_is_shown_evenly(run_sqlite: Run) -> None:
    run_sqlite("init")
    run_sqlite("arm", "add", "x", "y", "--group", "page")
    run_sqlite("arm", "add", "mail", "letter")
    run_sqlite("policy", "create", "home", "--kind", "uniform", "--param", "arms=@page")
    for number in range(2):
        run_sqlite("recommend", "--policy", "home", "--session", f"s{number}", "-k", 2)
    shown = run_sqlite("policy", "show", "home", "--json").json
    assert {arm["arm"]: arm["status"] for arm in shown["arms"]} == {
        "x": "active", "y": "active", "mail": "ruled-out", "letter": "ruled-out",
    }  # fmt: skip
    assert (shown["exposure"]["served"]["gini"], shown["exposure"]["now"]["coverage"]) == (0, 1)
    assert "as if 2 of 2 arms were shown equally often" in run_sqlite("policy", "show", "home").stdout
