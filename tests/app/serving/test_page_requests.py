"""Rules of a page in requests: served, stored in the context, explained, derived again by the audit, replayed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rlrec.store import Store
from tests.app.learned import trained
from tests.conftest import ON_BOTH, Run, initialise, runner

SHELVES = {"a1": "x", "a2": "x", "a3": "y", "a4": "y", "a5": "z", "a6": "z"}
KINDS = {
    "thompson": "floor=0.1", "epsilon-greedy": "epsilon=0.3", "plackett-luce": "floor=0.1", "uniform": "floor=0",
    "ucb": "floor=0.2", "lin-thompson": "model=shared", "softmax": "floor=0.1", "exp3": "gamma=0.2",
}  # fmt: skip


@pytest.fixture
def shop(run_sqlite: Run) -> Run:
    return with_arms(run_sqlite)


def with_arms(run: Run) -> Run:
    run("arm", "import", "-", stdin=[{"arm": key, "features": {"shelf": shelf}} for key, shelf in SHELVES.items()])
    return run


def ask(number: int, **keys: Any) -> str:
    return json.dumps({"session": f"s{number}", "policy": "home", "k": 3, **keys}) + "\n"


def click_each(run: Run, answers: list[Any]) -> None:
    """Every answer gets a click on one of its three positions."""
    clicks = [
        {"decision_id": answer["decision_id"], "position": 1 + number % 3, "events": {"click": 1}}
        for number, answer in enumerate(answers)
    ]
    run("feedback", "--input", "-", stdin=clicks).done()


def smallest(answers: list[Any], arm: str) -> float:
    """The smallest propensity with which an arm was shown; it was shown at least once."""
    return float(min(slot["propensity"] for answer in answers for slot in answer["slate"] if slot["arm"] == arm))


@pytest.mark.parametrize("kind", KINDS)
def test_pages_keep_their_rules_and_are_derived_again(shop: Run, kind: str) -> None:
    shop("policy", "create", "home", "--kind", kind, "--param", KINDS[kind])
    page = {"pin": {"2": "a4"}, "most": {"shelf": 1}, "least": {"a1": 0.3}}
    lines = [ask(number, page=page if number % 2 else {}, context={"device": "phone"}) for number in range(8)]
    answers = shop("recommend", "--input", "-", "--seed", 1, "--json", stdin="".join(lines)).lines
    assert smallest(answers[1::2], "a1") >= 0.3
    for answer in answers[1::2]:
        arms = [slot["arm"] for slot in answer["slate"]]
        assert arms[1] == "a4"
        assert len({SHELVES[arm] for arm in arms}) == 3
        assert [slot["propensity"] == 1 for slot in answer["slate"]][1]
        shown = shop("decision", "show", answer["decision_id"], "--json").json
        assert shown["context"] == {"device": "phone", "@page": page}
        assert shown["rules"] == [
            "pin 2=a4 of the request",
            "most shelf=1 of the request",
            "least a1=0.3 of the request",
        ]
        assert shown["agrees"]
    assert "rules" not in shop("decision", "show", answers[0]["decision_id"], "--json").json
    click_each(shop, answers)
    more = shop("recommend", "--input", "-", "--seed", 5, "--json", stdin="".join(lines)).lines
    assert len(more) == 8
    assert shop("doctor", "--json").json["findings"] == []


def test_a_policy_that_hashes_contexts_reads_features_of_arms_once(shop: Run) -> None:
    shop("policy", "create", "home", "--kind", "lin-thompson", "--param", "floor=0.1")
    arms = [{"arm": f"a{number}", "features": {"price": number}} for number in (1, 2, 3)]
    lines = [ask(number, arms=arms, k=1, page={"least": {"a1": 0.2}}, context={"hour": 3}) for number in range(6)]
    answers = [shop("recommend", "--input", "-", "--seed", "1", stdin=line).lines[0] for line in lines]
    assert len({answer["propensity"] for answer in answers}) > 2  # it learns in between
    assert shop("decision", "show", answers[-1]["decision_id"], "--json").json["agrees"]
    assert shop("doctor").exit_code == 0


def test_a_retry_repeats_the_rules(shop: Run) -> None:
    shop("policy", "create", "home", "--kind", "uniform")
    words = ("recommend", "--policy", "home", "--session", "s", "-k", 2, "--request-id", "r", "--json")
    first = shop(*words, "--pin", "1=a2").json
    again = shop(*words, "--page", '{"pin": {"01": "a2"}}').json
    assert again == first | {"duplicate": True}
    assert shop(*words, "--pin", "1=a3").exit_code == 6


@pytest.mark.parametrize(("words", "option", "hint"), [
    (("--pin", "docs-03"), "'--pin'", "write 1=docs-03"),
    (("--most", "topic"), "'--most'", "write topic=2"),
    (("--pin", "x=a1"), "--pin: ", "positions are 1 to 500"),
    (("--most", "topic=x"), "--most: ", "write FIELD=2"),
    (("--page", '{"pin": {"x": "a1"}}'), "--page: ", "positions are 1 to 500"),
])  # fmt: skip
def test_an_error_names_the_option_that_was_typed(shop: Run, words: Sequence[str], option: str, hint: str) -> None:
    shop("policy", "create", "home", "--kind", "uniform")
    refused = shop("recommend", "--policy", "home", "--session", "s", *words)
    assert (refused.exit_code, option in refused.stderr, hint in refused.stderr) == (2, True, True)


@ON_BOTH
def test_rules_of_a_policy_hold_wherever_its_log_goes(db: str, tmp_path: Path) -> None:
    run = with_arms(runner(db))
    rules = ("--param", "pin=1=a1", "--param", "most=shelf=1", "--param", "least=a5=0.3")
    run("policy", "create", "home", "--kind", "thompson", "--param", "floor=0.1", *rules)
    lines = [ask(number, page={"pin": {"3": "a4"}} if number % 2 else {}) for number in range(12)]
    answers = run("recommend", "--input", "-", "--seed", 1, "--json", stdin="".join(lines)).lines
    for number, answer in enumerate(answers):
        arms = [slot["arm"] for slot in answer["slate"]]
        assert arms[0] == "a1"
        assert arms[2] == "a4" or not number % 2
        assert len({SHELVES[arm] for arm in arms}) == 3
    click_each(run, answers)
    shown = run("decision", "show", answers[1]["decision_id"], "--json").json
    declared = ["pin 1=a1 of the policy", "most shelf=1 of the policy", "least a5=0.3 of the policy"]
    assert shown["rules"] == [*declared, "pin 3=a4 of the request"]
    assert shown["agrees"]
    assert run("doctor", "--json").json["findings"] == []
    refused = run("recommend", "--policy", "home", "--session", "s", "-k", 3, "--pin", "1=a2").failed(2)
    assert "pin 1=a2 of the request contradicts pin 1=a1 of the policy" in refused

    path, folder, copy = tmp_path / "log.jsonl", tmp_path / "log", tmp_path / "copy.db"
    run("export-log", path)
    run("export-log", folder, "--layout", "parquet")
    initialise(f"sqlite:///{copy}")
    imported = runner(f"sqlite:///{copy}")
    assert imported("import-log", path, "--layout", "jsonl", "--policy", "old").exit_code == 0
    imported("export-log", tmp_path / "again.jsonl")
    first, again = (
        [json.loads(line) for line in file.read_text().splitlines()] for file in (path, tmp_path / "again.jsonl")
    )
    for name in ("slate", "context", "eligible", "propensity", "reward"):
        assert [line[name] for line in again] == [line[name] for line in first], name
    words = ("evaluate", "uniform", "--estimator", "ips,dr,sips,tis", "--json")
    stored = run("--now", "+3d", *words).json
    assert run("--now", "+3d", *words, "--log", f"parquet:{folder}").json == stored
    for row, other in zip(stored, imported("--now", "+3d", *words).json, strict=True):
        assert (other["n"], other["value"]) == (row["n"], pytest.approx(row["value"], rel=1e-12))


@ON_BOTH
def test_groups_in_rules_are_logged_as_they_were(db: str, tmp_path: Path) -> None:
    run = with_arms(runner(db))
    for arm in ("a1", "a3"):
        run("arm", "add", arm, "--group", "home")
    run("arm", "add", "a6", "--group", "mail")
    rules = ("--kind", "thompson", "--param", "floor=0.1", "--param", "least=@home=0.3@1,a5=0.1")
    assert run("policy", "create", "home", *rules).exit_code == 0
    page = {"pin": {"3": "a4"}, "most": {"shelf": 1}, "least": {"@mail": {"2": 0.2}}}
    lines = [ask(number, page=page if number % 2 else {}, context={"hour": 3}) for number in range(12)]
    answers = run("recommend", "--input", "-", "--seed", 1, "--json", stdin="".join(lines)).lines
    click_each(run, answers)
    run("arm", "add", "a1", "--group", "[]")
    run("arm", "add", "a2", "--group", "home")
    later = run("recommend", "--policy", "home", "--session", "t", "--least", "@mail=0.2@1", "--json").json
    contexts = [run("decision", "show", answer["decision_id"], "--json").json for answer in (*answers[:2], later)]
    assert all(shown["agrees"] for shown in contexts)
    assert contexts[0]["context"] == {"@groups": {"@home": ["a1", "a3"]}, "hour": 3}
    assert contexts[0]["rules"] == ["least @home=0.3@1 of the policy", "least a5=0.1 of the policy"]
    both = {"@home": ["a1", "a3"], "@mail": ["a6"]}
    assert contexts[1]["context"] == {"@groups": both, "@page": page, "hour": 3}
    assert contexts[1]["rules"][-1] == "least @mail=0.2@2 of the request"
    assert contexts[2]["context"]["@groups"]["@home"] == ["a2", "a3"]
    assert run("doctor", "--json").json["findings"] == []
    retried = ask(1, page=page, request_id="r")
    first, again = (run("recommend", "--input", "-", "--json", stdin=retried).lines[0] for _ in range(2))
    assert again == first | {"duplicate": True}
    path = tmp_path / "log.jsonl"
    run("export-log", path)
    logged = [json.loads(line) for line in path.read_text().splitlines()]
    assert logged[1]["context"] == contexts[1]["context"]


def test_a_log_is_replayed_with_the_groups_of_its_time(shop: Run) -> None:
    """A uniform policy, whose group changed in between: what served it is what it would serve."""
    shop("arm", "add", "a1", "--group", "home")
    shop("policy", "create", "home", "--kind", "uniform", "--param", "least=@home=0.5")
    for arm in ("a2", "a3"):
        lines = [ask(number, session=f"{arm} {number}") for number in range(20)]
        shop("recommend", "--input", "-", "--seed", 1, "--json", stdin="".join(lines))
        shop("arm", "add", "a1", "--group", "[]")
        shop("arm", "add", arm, "--group", "home")
    rows = shop("--now", "+3d", "evaluate", "home", "--estimator", "ips,sips,tis", "--json").json
    assert [row["ess"] for row in rows] == pytest.approx([40, 40, 40])


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_has_its_share(shop: Run, kind: str) -> None:
    """Uniform among the arms of the group that are left and allowed, whatever the kind says of them."""
    shop("policy", "create", "home", "--kind", kind, "--param", KINDS[kind])
    for arm in ("a1", "a2"):
        shop("arm", "add", arm, "--group", "home")
    page = {"pin": {"2": "a4"}, "most": {"shelf": 1}, "least": {"@home": 0.9}}
    lines = [ask(number, page=page, context={"device": "phone"}) for number in range(12)]
    answers = shop("recommend", "--input", "-", "--seed", 1, "--json", stdin="".join(lines)).lines
    assert smallest(answers, "a1") >= 0.45
    for answer in answers[::4]:
        assert shop("decision", "show", answer["decision_id"], "--json").json["agrees"]
    assert shop("doctor", "--json").json["findings"] == []


def test_the_best_arm_of_a_belief_follows_no_pin(shop: Run) -> None:
    shop("policy", "create", "home", "--kind", "thompson", "--param", "pin=1=a3")
    rows = {row["arm"]: row for row in shop("policy", "show", "home", "--json").json["arms"]}
    assert [rows[arm]["p_best"] for arm in SHELVES] == pytest.approx([1 / 6] * 6)
    assert [rows[arm]["probability"] for arm in SHELVES] == [0, 0, 1, 0, 0, 0]


def test_a_trained_policy_keeps_rules(shop: Run, sqlite_db: str) -> None:
    shop("policy", "create", "home", "--kind", "gradient", "--param", "pin=2=a3", "--param", "most=shelf=1")
    with closing(Store(sqlite_db)) as store:
        trained(store, "home")
    lines = [ask(number, page={"least": {"a1": 0.4}} if number % 2 else {}) for number in range(20)]
    answers = shop("recommend", "--input", "-", "--seed", 1, "--json", stdin="".join(lines)).lines
    for answer in answers:
        arms = [slot["arm"] for slot in answer["slate"]]
        assert (answer["version"], arms[1], answer["slate"][1]["propensity"]) == (2, "a3", 1)
        assert len({SHELVES[arm] for arm in arms}) == 3
    assert smallest(answers[1::2], "a1") >= 0.4
    for answer in answers[1::2]:
        assert shop("decision", "show", answer["decision_id"], "--json").json["agrees"]
    assert shop("doctor", "--json").json["findings"] == []


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["pin=1=a1", "block=a2,a1"], "pin 1=a1 of the policy contradicts block=a2,a1 of the policy"),
        (["least=a1=0.1", "block=a1"], "least a1=0.1 of the policy contradicts block=a1 of the policy"),
        (["pin=1=a1,2=a2", "most=shelf=1"], "and pin 2=a2 of the policy contradict most shelf=1 of the policy"),
        (["not_after=purchase/0d"], "not_after is 'purchase/0d'"),
        (["least=a1=0.6@1,a2=0.5"], "least a1=0.6@1 of the policy and least a2=0.5 of the policy add up to 1.1"),
        (["least=@none=0.1"], "a rule of the page names unknown group '@none'"),
        (["pin=1=@home"], "pin 1=@home pins a group"),
        (["least=@home=0.1", "block=@home"], "least @home=0.1 of the policy contradicts block=@home of the policy"),
        (["pin=2=a1", "block=@home"], "pin 2=a1 of the policy contradicts block=@home of the policy"),
        (["pin=1=a2", "arms=@home,a3"], "pin 1=a2 of the policy contradicts arms=@home,a3 of the policy"),
    ],
)
def test_rules_of_a_policy_that_cannot_hold_are_refused(shop: Run, rules: list[str], message: str) -> None:
    shop("arm", "add", "a1", "--group", "home")
    words = [word for rule in rules for word in ("--param", rule)]
    assert message in shop("policy", "create", "home", "--kind", "thompson", *words).failed(2)
    assert shop("policy", "list", "--json").json == []


def test_a_cap_on_a_field_that_no_arm_has_is_named(shop: Run) -> None:
    text = (
        "no arm has 'shelv': most shelv=1 of the policy caps nothing until an arm or a request brings it: did you mean"
    )
    created = shop("policy", "create", "home", "--kind", "thompson", "--param", "most=shelv=1")
    assert (created.exit_code, text in created.stderr) == (0, True)
    assert "caps nothing" not in shop("policy", "create", "p", "--kind", "thompson", "--param", "most=shelf=1").stderr


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"page": {"pin": {"1": "a9"}}}, "arm 'a9', which is not eligible"),
        ({"page": {"pin": {"1": "toaster"}}}, "arm 'toaster', which is not eligible: `rlrec arm list` shows all"),
        ({"page": {"pin": {"1": "a1"}}, "arms": ["a2", "a3", "a4"]}, "arm 'a1', which is not eligible"),
        ({"page": {"pin": {"4": "a1"}}}, "pin 4=a1 of the request, and the page has 3 positions"),
        ({"page": {"most": {"shelf": 1}}, "k": 4}, "most shelf=1 of the request may leave no arm for position 4 of 4"),
        ({"page": {"pin": {"1": "a1", "2": "a2"}, "most": {"shelf": 1}}},
         "pin 1=a1 of the request and pin 2=a2 of the request contradict most shelf=1 of the request"),
        ({"page": {"most": {"colour": 1}}}, "no eligible arm has 'colour'"),
        ({"page": {"pins": {}}}, "unknown rule 'pins'"),
        ({"page": {"least": {"@hom": 0.1}}}, "unknown group '@hom': did you mean @home?"),
        ({"page": {"least": {"@home": 0.1}}, "arms": ["a2", "a3", "a4"]}, "group '@home', of which no arm is eligible"),
        ({"page": {"pin": {"1": "@home"}}}, "arm '@home', which is not eligible"),
        ({"page": {"least": {"a1": {"4": 0.1}}}}, "least a1=0.1@4 of the request, and the page has 3 positions"),
        ({"context": {"@groups": {"@home": ["a2"]}}}, "context has a field '@groups'"),
        ({"page": {"pin": {"1": "a1"}}, "context": {"@page": {}}}, "page is given, and the context has @page, too"),
        ({"context": {"@page": {"pin": {"1": 3}}}}, "3 is no arm"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_keep_its_rules_is_refused_alone(shop: Run, keys: dict[str, Any], message: str) -> None:
    shop("policy", "create", "home", "--kind", "thompson")
    shop("arm", "add", "a1", "--group", "home")
    result = shop("recommend", "--input", "-", "--json", stdin=ask(1, **keys) + ask(2, page={"pin": {"1": "a1"}}))
    refused, answered = result.lines
    assert result.exit_code == 5
    assert message in refused["error"]
    assert answered["slate"][0]["arm"] == "a1"
    assert len(shop("session", "show", "s2", "--json").json["decisions"]) == 1
    assert shop("session", "show", "s1").exit_code == 2


def test_a_rule_rests_where_the_past_of_the_person_took_its_arm(shop: Run) -> None:
    shop("policy", "create", "home", "--kind", "thompson", "--param", "not_after=purchase")
    page = {"pin": {"1": "a1"}, "least": {"a1": 0.3}}
    lines = ask(1, user="u", page={"pin": {"1": "a1"}}) + ask(2, user="u", page=page)
    served = shop("recommend", "--input", "-", "--json", stdin=lines)
    first, second = served.lines
    assert [first["slate"][0]["arm"], second["slate"][0]["arm"], "no effect" in served.stderr] == ["a1", "a1", False]
    shop("feedback", first["decision_id"], "purchase", "--position", 1)
    lines = "".join(ask(number, user="u", page=page) for number in range(3, 9))
    served = shop("recommend", "--input", "-", "--json", stdin=lines)
    assert served.stderr.count("least a1=0.3 of the request has no effect: `not_after` or `not_shown` takes") == 1
    for answer in served.lines:
        assert "a1" not in {slot["arm"] for slot in answer["slate"]}
        shown = shop("decision", "show", answer["decision_id"], "--json").json
        effect = "of the request (no effect: no such arm was eligible)"
        assert (shown["agrees"], shown["rules"]) == (True, [f"pin 1=a1 {effect}", f"least a1=0.3 {effect}"])
    refused = shop("recommend", "--input", "-", "--json", stdin=ask(9, user="u", page=page, block=["a1"])).lines[0]
    assert "a1=0.3 of the request names arm 'a1', which is not eligible" in refused["error"]
    assert shop("doctor", "--json").json["findings"] == []


@pytest.mark.parametrize(
    ("param", "page", "arm", "cause"),
    [
        (
            "arms=a1,a2,@home",
            {"pin": {"1": "a4"}},
            "arm 'a4', which is not eligible",
            ": left out by arms of policy home",
        ),
        (
            "block=@home",
            {"pin": {"2": "a3"}},
            "arm 'a3', which is not eligible",
            ": left out by block of policy home",
        ),
        (
            "arms=a1,a2,a4",
            {"least": {"a5": 0.1}},
            "arm 'a5', which is not eligible",
            ": left out by arms of policy home",
        ),
        ("block=@home", {"least": {"@home": 0.1}}, "group '@home', of which no arm is eligible", "left out by block"),
    ],
)
def test_a_rule_of_a_request_is_refused_where_lists_of_the_policy_leave_out_its_arm(
    shop: Run, param: str, page: dict[str, Any], arm: str, cause: str
) -> None:
    shop("arm", "add", "a3", "--group", "home")
    shop("policy", "create", "home", "--kind", "thompson", "--param", param)
    lines = ask(1, page=page) + ask(2, page={"pin": {"1": "a1"}}, k=2)
    refused, answered = shop("recommend", "--input", "-", "--json", stdin=lines).lines
    assert f"of the request names {arm}" in refused["error"]
    assert cause in refused["error"]
    assert answered["slate"][0]["arm"] == "a1"
    shop("arm", "retire", "a1")
    refused = shop("recommend", "--input", "-", "--json", stdin=ask(3, page={"pin": {"1": "a1"}}, k=2)).lines[0]
    assert refused["error"].endswith("eligible: retired: a1; `rlrec arm restore` brings them back")


def test_options_that_repeat_a_rule_are_refused(shop: Run) -> None:
    words = ("recommend", "--policy", "home", "--session", "s")
    assert "1 has a pin already" in shop(*words, "--pin", "1=a1", "--pin", "1=a2").failed(2)
    result = shop("recommend", "--pin", "1=a1", "--input", "-")
    assert "--input and --pin do not go together" in result.stderr


def test_a_stream_goes_on_after_a_page_that_two_stages_cannot_keep(shop: Run) -> None:
    shop("policy", "create", "home", "--kind", "two-stage", "--param", "candidates=4")
    lines = [
        ask(number, op="recommend", **keys) for number, keys in enumerate([{}, {"page": {"pin": {"1": "a1"}}}, {}])
    ]
    answers = [json.loads(line) for line in shop("pipe", stdin="".join(lines)).stdout.splitlines()]
    assert [answer.get("field") for answer in answers] == [None, "page", None]
    reason = "it draws a list of candidates first"
    assert f"policy 'home' keeps no rules of a page: {reason}" in answers[1]["error"]
