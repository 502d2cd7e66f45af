"""Text of Vowpal Wabbit: what becomes of labels, tags and features, in and out, and of lines that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.app.logs import summary
from tests.app.shop import fixed
from tests.conftest import CommandResult, Run, empty_store

ADF = """shared 'e1 |User:2 hour:9 city=Bonn |w sun rain:0.5 sun
0:-1:0.5 'soup|i id=soup
 'tea| price:3 topping=x topping=y
'milk |

 | b_1 c_1
0:0.25:0.25 | b_2 c_2

 | b_1
 | b_2
"""


pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def other(tmp_path: Path) -> Run:
    """Commands on an empty store of their own."""
    run = empty_store(tmp_path / "other.db")
    run("reward", "define", "any", "reward=1")
    return run


def imported(run: Run, text: str, *options: object) -> CommandResult:
    Path("log.vw").write_text(text)
    return run("import-log", "log.vw", "--layout", "vw", "--policy", "vw", "--json", *options)


def test_examples_of_several_lines(run_sqlite: Run) -> None:
    """Shared features are the context, the cost with its sign turned is the reward; tags name the request and arms."""
    assert imported(run_sqlite, ADF).json == summary(accepted=2, skipped=1, clipped=1, clipped_share=0.5)
    read = run_sqlite("evaluate", "uniform").stdout
    assert "2 decisions with one and the same time on " in read
    assert "of this traffic" not in read
    first, second = run_sqlite("export-log", "-").lines
    assert first["context"] == {"User": {"hour": 18, "city=Bonn": 2}, "w": {"sun": 2, "rain": 0.5}}
    assert (first["request_id"], first["eligible"], first["reward"]) == ("e1", ["milk", "soup", "tea"], 1.0)
    assert first["features"] == {"milk": {}, "soup": {}, "tea": {"price": 3, "topping=x": 1, "topping=y": 1}}
    assert [(slot["arm"], slot["propensity"]) for slot in first["slate"]] == [("soup", 0.5)]
    assert (second["context"], second["request_id"], len(second["eligible"])) == ({}, None, 2)
    assert [event["value"] for event in second["events"]] == [-0.25]
    assert second["features"][second["slate"][0]["arm"]] == {"b_2": 1, "c_2": 1}


def test_examples_of_one_line(run_sqlite: Run) -> None:
    """They have all actions, or those that they list; one without a cost is there to be predicted."""
    text = "2:-1:0.5 | a:.5 city=New%20York\n1 3:0:0.25 'r7 |u b\n| c\n2:-1:0.5 | a:.5 city=New%20York\n"
    assert imported(run_sqlite, text, "--actions", 4).json == summary(accepted=3, skipped=1)
    first, second, third = run_sqlite("export-log", "-").lines
    assert (first["context"], first["eligible"]) == ({"a": 0.5, "city": "New York"}, ["1", "2", "3", "4"])
    assert (second["context"], second["eligible"], second["request_id"]) == ({"u": {"b": 1}}, ["1", "3"], "r7")
    assert [line["slate"][0]["arm"] for line in (first, second, third)] == ["2", "3", "2"]


def test_counts_and_estimates_are_those_of_a_plain_script(run_sqlite: Run) -> None:
    """A log of words under two actions that were drawn alike, with costs of 0 and 1."""
    random = np.random.default_rng(4)
    words, lines, earned = [f"w{n}" for n in range(40)], list[str](), list[float]()
    for _ in range(300):
        action, cost = int(random.integers(1, 3)), int(random.random() < 0.4)
        lines.append(f"{action}:{cost}:0.5 | {' '.join(random.choice(words, 5, replace=False))}\n")
        earned.append(-cost / 0.5 * (1.0 if action == 1 else 0.0))
    run_sqlite("reward", "define", "cost", "reward=1")
    result = imported(run_sqlite, "".join(lines), "--actions", 2)
    assert (result.json["accepted"], result.json["duplicates"]) == (300, 0)
    fixed(run_sqlite, "first", {"1": 1, "2": 0})
    command = ("evaluate", "first", "--estimator", "ips", "--reward", "cost", "--json")
    (row,) = run_sqlite(*command, "--log", "policy=vw").json
    assert (row["n"], row["value"]) == (300, pytest.approx(np.mean(earned), rel=1e-12))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1:1:0.5| a", "no space before the bar"),
        ("shared| a", "no space before the bar"),
        ("1:1:0.5", "no `|`"),
        ("1:1:0.5 2:1:0.5 | a", "several actions"),
        ("7:1:0.5 | a", "none of the 4 actions"),
        ("1:x:0.5 | a", "'x' is no number"),
        ("1:0:0 | a", "no probability of something shown"),
        ("1:0:1.5 | a", "no probability of something shown"),
        ("1:0 | a", "is no label"),
        ("shared | a", "leave --actions out"),
        ("1:0:0.5 | a:nan", "is no number"),
        ("1:0:0.5 | :2", "has no name"),
        ("1:0:0.5 |u:x a", "'x' is no number"),
        ("ccb shared | a", "dsjson"),
        ("1:0:0.5 |_multi a", "cannot be the name"),
        ("1:0:0.5 | _tag:2", "cannot be the name"),
        ("1:0:0.5 | u u.a |u a", "is a feature twice: by itself, and in a namespace"),
        ("shared 0:-1:.5 'd3 | a", "behind `shared`"),
        ("1:1e300:0.5 | a", "too large"),
        (b"1:0:0.5 | \xff", "not UTF-8"),
    ],
)
def test_a_line_that_cannot_be_is_named(run_sqlite: Run, text: str | bytes, reason: str) -> None:
    Path("log.vw").write_bytes(b"1:0:0.5 | a\n" + (text if isinstance(text, bytes) else text.encode()) + b"\n")
    result = run_sqlite("import-log", "log.vw", "--layout", "vw", "--actions", 4, "--json")
    assert (result.exit_code, "log.vw line 2" in result.error["error"]) == (2, True)
    assert reason in result.error["error"] + str(result.error["hint"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0:1:0.5 | a\n", "of one action"),
        ("shared | a\n", "without actions"),
        ("0:1:0.5 | a\nshared | b\n", "not first"),
        ("0:1:0.5 | a\n0:0:0.5 | b\n", "several actions"),
    ],
)
def test_an_example_that_cannot_be_is_named(run_sqlite: Run, text: str, reason: str) -> None:
    result = imported(run_sqlite, f"0:0:0.5 | a\n | b\n\n{text}")
    assert (result.exit_code, "log.vw line 4" in result.error["error"]) == (2, True)
    assert reason in result.error["error"]


def test_the_bad_line_of_an_example_is_named(run_sqlite: Run) -> None:
    result = imported(run_sqlite, "0:0:0.5 | a\n | b\n\nshared | c\n0:0:0.5 | a\n | b:inf\n")
    assert "log.vw line 6" in result.error["error"]


def test_an_example_of_another_file_is_the_same_decision_unless_a_tag_tells_them_apart(run_sqlite: Run) -> None:
    """Within a file equal examples are decisions of their own."""
    example = "shared {}| b\n0:-1:0.5 | a=1\n | a=2\n\n"
    assert imported(run_sqlite, example.format("") * 2).json["accepted"] == 2
    other_file = example.format("") + example.format("'e1 ") + example.format("'e2 ")
    answer = imported(run_sqlite, other_file).json
    assert (answer["accepted"], answer["duplicates"]) == (2, 1)


def test_a_namespace_may_be_called_as_a_feature_is(run_sqlite: Run) -> None:
    imported(run_sqlite, "shared | x |x a:2\n0:0:0.5 | a\n | b\n")
    assert run_sqlite("export-log", "-").lines[0]["context"] == {"x": 1, "x.a": 2}


def test_an_example_has_many_actions(run_sqlite: Run) -> None:
    actions = "".join(f" | n:{n}\n" for n in range(3_000))
    assert imported(run_sqlite, f"shared | a\n0:0:0.5 | b\n{actions}").json == summary(accepted=1)
    assert len(run_sqlite("export-log", "-").lines[0]["eligible"]) == 3_001


def test_examples_that_a_group_of_lines_cuts_are_complete(run_sqlite: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlrec.app.imports.layouts.base.GROUP", 7)
    examples = [f"shared | n:{n}\n0:0:0.5 'x|\n'y|\n" for n in range(30)]
    assert imported(run_sqlite, "\n".join(examples)).json == summary(accepted=30)
    assert [line["context"]["n"] for line in run_sqlite("export-log", "-").lines] == list(range(30))


# -- out --


def decision(n: int, **more: Any) -> dict[str, Any]:
    slate = [{"arm": "a b", "propensity": 0.25}]
    return {"session": f"s{n}", "slate": slate, "eligible": ["a b", "c"], "events": [], **more}


def test_an_export_comes_back(run_sqlite: Run, other: Run) -> None:
    """Arms, propensities, rewards, features and contexts, with names that words separate."""
    context = {"a:b": 1.5, "city": "New York", "n": -3, "User": {"tab\tbed": 2, "deep": {"x": 1}, "tags": ["p", "q"]}}
    features = {"a b": {"price": 3, "i": {"id": "a b"}}, "c": {"kind": "50%"}}
    written = [
        decision(1, request_id="r 1", context=context, features=features, events=[{"kind": "reward", "value": 1}]),
        decision(2, features={}, context={"flag": True, "nothing": None}),
    ]
    run_sqlite("import-log", "-", "--layout", "jsonl", "--policy", "shop", stdin=written)
    result = run_sqlite("export-log", "-", "--layout", "vw")
    assert result.stdout.splitlines() == [
        "shared 'r%201 | a%3Ab:1.5 city=New%20York n:-3 |User deep.x tab%09bed:2 tags=p tags=q",
        "0:-1.0:0.25 'a%20b| price:3 |i id=a%20b", "'c| kind=50%25", "",
        "shared | flag=true", "0:0.0:0.25 'a%20b| price:3 |i id=a%20b", "'c| kind=50%25", "",
    ]  # fmt: skip
    other("import-log", "-", "--layout", "vw", "--policy", "shop", stdin=result.stdout)
    first, second = other("export-log", "-").lines
    assert first["context"] == {
        "a:b": 1.5, "city": "New York", "n": -3, "User": {"tab\tbed": 2, "deep.x": 1, "tags=p": 1, "tags=q": 1}
    }  # fmt: skip
    assert first["features"] == features
    assert (first["request_id"], first["reward"], first["eligible"]) == ("r 1", 1.0, ["a b", "c"])
    assert second["slate"][0]["propensity"] == 0.25
    again = other("export-log", "-", "--layout", "vw").stdout
    assert again == result.stdout


def test_names_come_back_or_are_counted(run_sqlite: Run, other: Run) -> None:
    context = {"a=b": 1, "c=d": 2, "e=f": 1, "e": "g", "h=i": 1, "h=j": 1, "k": 1, "k=l": 1, "m=n": "o=p", "_multi": 3}
    features = {"a b": {"_tag": "x", "n": 1}, "c": {"q=r": 1}}
    text = json.dumps(decision(1, context=context, features=features))
    run_sqlite("import-log", "-", "--layout", "jsonl", "--policy", "shop", stdin=text)
    exported = run_sqlite("export-log", "-", "--layout", "vw")
    assert "fields of the names _multi" in exported.stderr
    other("import-log", "-", "--layout", "vw", "--policy", "shop", stdin=exported.stdout)
    (line,) = other("export-log", "-").lines
    assert line["context"] == {name: value for name, value in context.items() if name != "_multi"}
    assert line["features"] == {"a b": {"n": 1}, "c": {"q=r": 1}}


def test_what_the_text_cannot_hold_is_counted(run_sqlite: Run) -> None:
    slots = [{"arm": "a b", "propensity": 0.25}, {"arm": "c", "propensity": 1.0}]
    lines = [
        decision(1, slate=slots), decision(2, slate=[{"arm": "c"}]), decision(3, keep_probability=0.5),
        decision(4, slate=[{"arm": "c", "propensity": 0.5, "censored": True}]),
        decision(5, events=[{"kind": "reward", "value": 7}]), decision(6, support={"a b": 0.25, "c": 0.75}),
    ]  # fmt: skip
    run_sqlite("import-log", "-", "--layout", "jsonl", "--policy", "shop", stdin=lines)
    result = run_sqlite("export-log", "-", "--layout", "vw")
    assert result.stdout.count("shared |") == 3
    for reason in (
        "pages of several slots (1)", "without propensities (1)", "keep_probability (1)", "censored (1)",
        "rewards beyond the range of their definition, without --reward (1)", "support (1)",
    ):  # fmt: skip
        assert reason in result.stderr


def test_features_that_a_request_states_are_those_of_its_actions(run_sqlite: Run) -> None:
    run_sqlite("policy", "create", "home", "--kind", "uniform")
    run_sqlite("arm", "add", "a"), run_sqlite("arm", "add", "c")
    arms = [{"arm": "a", "features": {"price": 3}}, {"arm": "c", "features": {"price": 4}}]
    request = {"policy": "home", "session": "s", "context": {"hour": 9}, "arms": arms}
    run_sqlite("recommend", "--input", "-", stdin=f"{json.dumps(request)}\n")
    lines = run_sqlite("export-log", "-", "--layout", "vw").stdout.splitlines()
    assert lines[0] == "shared | hour:9"
    assert [line[line.index("'") :] for line in lines[1:3]] == ["'a| price:3", "'c| price:4"]
