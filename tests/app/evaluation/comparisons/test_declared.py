"""Declared experiments: what decides them, what must not fall, and looks at both."""

from __future__ import annotations

import re
from contextlib import closing
from typing import Any

import pytest

from rlrec.app.evaluation.comparisons import unit_outcomes
from rlrec.app.inputs import lookup
from rlrec.store import Store
from tests.conftest import Run, click, filled, runner, store_after

LATER = "2099-01-01T00:00:00Z"
USERS = 600


def prepared(db: str) -> None:
    """A fair half gets each of two arms. Every user comes once, and clicks at rates of .1 and .5; those who got the
    second arm come again half as often as the others."""
    run = runner(db)
    run("arm", "import", "-", stdin=[{"arm": arm} for arm in "xy"])
    run("reward", "define", "costly", "click=1", "--default", "-3")
    run("policy", "create", "home", "--kind", "uniform")
    guards = ("reward_per_unit:costly>=-20%", "reward_per_unit>=-5%", "active_days>=-5%", "retention>=-5%")
    create(run, "--metric", "visits", *(word for guard in guards for word in ("--guard", guard)), "--best-n", 600)
    answers = serve(run, [f"u{n}" for n in range(USERS)], "1")
    of = {
        "a": [row for row in answers if row["variant"] == "a"],
        "b": [row for row in answers if row["variant"] == "b"],
    }
    again = [row["user"] for row in [*of["a"][::2], *of["b"][::4]]]
    click(run, [row["decision_id"] for row in (*of["a"][::10], *of["b"][::2])])
    serve(run, again, "2")


def create(run: Run, *words: Any, name: str = "ab") -> Any:
    return run("experiment", "create", name, "--variant", "a=home", "--variant", "b=home", *words)


def serve(run: Run, users: list[str], visit: str) -> list[Any]:
    lines = [{"experiment": "ab", "session": f"{user}-{visit}", "user": user} for user in users]
    answers: list[Any] = run("recommend", "--input", "-", stdin=lines).lines
    return [{**answer, "user": user} for answer, user in zip(answers, users, strict=True)]


ready = store_after(prepared)


def test_what_was_declared_decides_and_guards_speak_up(ready: Run, db: str) -> None:
    answer = ready("--now", LATER, "experiment", "show", "ab", "--json").json
    assert answer["metric"] == [{"metric": "visits", "reward": None}]
    rows = {(row["metric"], row["reward"]): row for row in answer["unit_differences"]}
    assert [name for name, row in rows.items() if row["p_value"] is not None] == [("visits", None)]
    assert rows["visits", None]["answer"] == "worse"
    # five times the clicks is no chance, whatever decides
    assert rows["reward_per_unit", "default"]["answer"] == "better"
    costly, gain, _, lost = answer["guards"]
    assert (costly["reward"], costly["least"], gain["reward"], gain["least"]) == ("costly", -0.2, "default", -0.05)
    assert [gain["answer"], gain["lower"] > 0, gain["reasons"]] == ["holds", True, []]
    assert costly["answer"] == "holds"
    assert (lost["answer"], lost["upper"] < -0.05, lost["against"]) == ("lost", True, "a")
    sequence = answer["sequence"]
    assert (sequence["best_n"], sequence["tests"], sequence["fixed"]) == (600, 1, False)
    (interval,) = sequence["intervals"]
    assert interval["lower"] < interval["fixed_lower"] < interval["fixed_upper"] < interval["upper"] < 0
    assert [interval[name] for name in ("lower", "upper")] == [
        rows["visits", None][name] for name in ("lower", "upper")
    ]
    text = ready("--now", LATER, "experiment", "show", "ab").stdout
    lost_guard, worse, *_ = text.splitlines()
    assert re.fullmatch(r"b is worse than a: -[0-9]+ % \[.*\] visits per user", worse)
    assert "decided by visits; intervals are tightest at 600 units" in text
    assert "b keeps to a guard: +" in text
    pattern = r"b breaks a guard: -[0-9]+ % retention, at best -[0-9.]+ %, where -5 % is allowed"
    assert re.fullmatch(pattern, lost_guard)
    fixed = ready("--now", LATER, "experiment", "show", "ab", "--fixed", "--json").json
    assert fixed["sequence"]["fixed"]
    (row,) = [row for row in fixed["unit_differences"] if row["metric"] == "visits"]
    assert [row["lower"], row["upper"]] == pytest.approx([interval["fixed_lower"], interval["fixed_upper"]])


def test_a_look_has_what_decides_and_the_guards(sqlite_db: str) -> None:
    run = filled(sqlite_db, prepared)
    with closing(Store(sqlite_db, now=4_070_908_800_000_000)) as store, store.read() as unit:
        look = unit_outcomes.look_at_experiment(unit, lookup.experiment(unit, "ab"))
        assert [(row["metric"], row["answer"]) for row in look.differences] == [("visits", "worse")]
        assert [row["answer"] for row in look.guards] == ["holds", "holds", "unknown", "lost"]
    create(run, "--guard", "visits>=-1%", "--guard", "active_days>=-90%", name="other")
    again = run("experiment", "show", "other", "--json").json["guards"]
    assert [(row["answer"], row["reasons"]) for row in again] == [("unknown", ["no-units"])] * 2


def test_the_default_is_reward_per_unit_and_the_traffic_of_a_month(sqlite_db: str) -> None:
    run = filled(sqlite_db, prepared)
    assert create(run, name="plain").exit_code == 0
    answer = run("experiment", "show", "plain", "--json").json
    assert answer["metric"] == [{"metric": "reward_per_unit", "reward": "default"}]
    assert (answer["sequence"]["best_n"], answer["guards"]) == (USERS, [])
    # the same again is no other experiment, though the traffic has changed
    serve(run, ["new-1", "new-2"], "1")
    assert create(run, name="plain").exit_code == 0
    assert create(run, "--best-n", USERS, name="plain").exit_code == 0
    assert create(run, "--best-n", USERS + 1, name="plain").exit_code == 6
    assert create(run, "--metric", "visits", name="plain").exit_code == 6


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--metric", "visit"], "unknown metric 'visit'"),
        (["--metric", "visits:default"], "visits has no reward"),
        (["--metric", "reward_per_unit:gold"], "unknown reward 'gold'"),
        (["--metric", "reward_per_unit:"], "is not a metric"),
        (["--metric", "visits", "--guard", "visits>=-5%"], "visits is the metric that decides, and no guard of it"),
        (["--metric", "reward_per_unit", "--guard", "reward_per_unit:default>=-5%"], "is the metric that"),
        (["--metric", "visits", "--metric", "visits"], "visits is a metric twice"),
        (["--guard", "visits>=-5%", "--guard", "visits>=-6%"], "visits is a guard twice"),
        (["--guard", "reward_per_unit>=-5%"], "reward_per_unit:default is the metric that decides"),
        (["--guard", "visits>=5%"], "between -100% and 0%"),
        (["--guard", "visits>=-100%"], "between -100% and 0%"),
        (["--guard", "visits"], "is not a guard"),
        (["--guard", "visits>=some"], "is not a share"),
        (["--best-n", "99"], "--best-n is 99"),
    ],
)  # fmt: skip
def test_bad_declarations_are_refused_and_store_nothing(sqlite_db: str, words: list[str], text: str) -> None:
    run = filled(sqlite_db, prepared)
    refused = create(run, *words, name="bad")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert text in refused.stderr
    assert [row["experiment"] for row in run("experiment", "list", "--json").json] == ["ab"]


def test_an_interleaved_experiment_declares_nothing(sqlite_db: str) -> None:
    run = filled(sqlite_db, prepared)
    refused = run("experiment", "create", "mixed", "--interleave", "home@1,home@2", "--metric", "visits").failed(2)
    assert "decided by the credit of its rankers" in refused
