"""rlrec reward: definitions never change."""

from __future__ import annotations

import csv
import io

import pytest

from tests.conftest import Run

BASKET = ["reward", "define", "basket", "click=0.1, purchase=1", "--window", "1d", "--clip", "0,1", "--json"]


def test_the_same_definition_again_is_fine_and_another_one_a_conflict(run: Run) -> None:
    first = run(*BASKET).json
    assert first == {
        "reward": "basket", "weights": {"click": 0.1, "purchase": 1.0}, "window_s": 86400.0, "default": 0.0,
        "clip": [0.0, 1.0], "learn": "served", "late": "count", "created": True,
    }  # fmt: skip
    again = ["reward", "define", "basket", "purchase=1.0,click=.1", "--window", "24h", "--clip", "0,1", "--json"]
    assert run(*again).json == first | {"created": False}
    for other in (["--learn", "settled"], ["--late", "ignore"], ["--default", "0.5"], ["--window", "2d"]):
        said = run(*BASKET, *other)
        assert (said.exit_code, said.error["code"]) == (6, 6)
    assert len(run("reward", "list", "--json").json) == 2


def test_a_new_store_has_the_definition_default(run_sqlite: Run) -> None:
    assert run_sqlite("reward", "list", "--json").json == [
        {
            "reward": "default", "weights": {"click": 1.0, "reward": 1.0}, "window_s": 1800.0, "default": 0.0,
            "clip": [0.0, 1.0], "learn": "served", "late": "count",
        }
    ]  # fmt: skip
    assert run_sqlite("reward", "define", "default", "click=2").exit_code == 6


def test_every_format_lists_the_same_rewards(run_sqlite: Run) -> None:
    run_sqlite(*BASKET)
    rows = run_sqlite("reward", "list", "--json").json
    assert run_sqlite("reward", "list", "--format", "ndjson").lines == rows
    read = csv.DictReader(io.StringIO(run_sqlite("reward", "list", "--format", "csv").stdout))
    assert [row["reward"] for row in read] == ["default", "basket"]
    assert "click=0.1, purchase=1" in run_sqlite("reward", "list").stdout


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["click"], "'click' is no weight"),
        (["click=x"], "the weight of 'click' is 'x'"),
        (["click=nan"], "the weight of 'click' is 'nan'"),
        (["click=1e999"], "not a finite number"),
        (["click=1_0"], "the weight of 'click' is '1_0'"),
        (["click=1,click=2"], "weighed twice"),
        (["1click=1"], "is no weight"),
        (["!censor=1"], "is no weight"),
        (["  "], "at least one kind"),
        (["click=1", "--window", "-1h"], "not a duration"),
        (["click=1", "--window", "soon"], "not a duration"),
        (["click=1", "--clip", "1,0"], "is empty"),
        (["click=1", "--clip", "1"], "is no range"),
        (["click=1", "--default", "nan"], "not a number"),
        (["click=1", "--learn", "later"], "'later' is not one of"),
    ],
)
def test_what_is_no_definition_is_refused(run_sqlite: Run, words: list[str], what: str) -> None:
    said = run_sqlite("reward", "define", "bad", *words, "--json")
    assert (said.exit_code, said.error["code"]) == (2, 2)
    assert what in said.error["error"]
    assert len(run_sqlite("reward", "list", "--json").json) == 1


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "a" * 65])
def test_what_is_no_name_is_refused(run_sqlite: Run, name: str) -> None:
    assert run_sqlite("reward", "define", "--", name, "click=1").exit_code == 2
