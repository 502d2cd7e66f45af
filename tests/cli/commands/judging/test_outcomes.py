"""rlrec outcomes."""

from typing import Any

import pytest

from tests.conftest import ON_BOTH, Run, begin, click, jsonl, runner, store_after

LATER = "2099-01-01T00:00:00Z"


def prepared(db: str) -> None:
    """An experiment by user: twelve users with two visits, an hour apart, of two decisions; every third has a click."""
    run = runner(db)
    begin(run, "xy", "home", "uniform")
    run("policy", "create", "other", "--kind", "uniform")
    run("experiment", "create", "ab", "--variant", "a=home", "--variant", "b=other")
    users = [n for n in range(12) for _ in range(2)]
    for moment in ("2030-01-01T00:00:00Z", "2030-01-03T12:00:00Z"):
        lines = "".join(f'{{"experiment": "ab", "session": "s{n}", "user": "u{n}"}}\n' for n in users)
        run("--now", moment, "--allow-future", "recommend", "--input", "-", "--seed", 3, stdin=lines)
    clicks = "".join(
        f'{{"decision_id": {n}, "events": {{"click": 1}}, "at": "2030-01-03T12:00:00Z"}}\n' for n in range(25, 49, 3)
    )
    run("--now", "2030-01-03T12:10:00Z", "feedback", "--input", "-", stdin=clicks)


ready = store_after(prepared)


def test_json_has_the_keys_of_the_contract(ready: Any) -> None:
    result = ready("--now", LATER, "outcomes", "--experiment", "ab", "--reward", "default", "--json").json
    assert [*result][:3] == ["unit", "outcomes", "differences"]
    assert {*result["outcomes"][0]} >= {"by", "group", "metric", "reward", "value", "lower", "upper", "units"}
    keys = {"group", "against", "metric", "reward", "value", "relative", "lower", "upper", "p_value"}
    assert {*result["differences"][0]} >= keys
    assert {row["metric"] for row in result["outcomes"]} >= {
        "visits", "active_days", "returned_1d", "returned_7d", "returned_28d", "decisions_per_visit",
        "minutes_per_visit", "reward_per_visit", "reward_per_unit",
    }  # fmt: skip
    assert {(row["group"], row["against"]) for row in result["differences"]} == {("b", "a")}


@ON_BOTH
def test_figures_are_those_of_the_story(ready: Any) -> None:
    result = ready("--now", LATER, "outcomes", "--json").json
    values = {row["metric"]: row["value"] for row in result["outcomes"]}
    assert (result["unit"], result["new"], result["returning"]) == ("user", 12, 0)
    assert values == {
        "visits": 2, "active_days": 2, "retention": 1, "returned_1d": 0, "returned_7d": 0.5, "returned_28d": 0.5,
        "decisions_per_visit": 2, "minutes_per_visit": 0, "reward_per_visit": pytest.approx(8 / 24),
        "reward_per_unit": pytest.approx(8 / 12),
    }  # fmt: skip


def test_active_days_are_those_of_the_time_zone(run_sqlite: Run) -> None:
    run = run_sqlite
    run("--now", "2026-03-01T22:00Z", "arm", "add", "a")
    run("--now", "2026-03-01T22:00Z", "policy", "create", "home", "--kind", "uniform")
    for time in ("2026-03-01T23:30Z", "2026-03-02T00:10Z", "2026-03-02T08:00Z"):
        run("--now", time, "recommend", "--policy", "home", "--session", "s", "--user", "u")

    def active_days(*zone: str) -> list[float]:
        rows = run("--now", "2026-03-09", *zone, "outcomes", "--json").json["outcomes"]
        return [row["value"] for row in rows if row["metric"] == "active_days"]

    assert (active_days(), active_days("--tz", "Europe/Berlin")) == ([2.0], [1.0])


def test_every_reward_has_its_rows(ready: Any) -> None:
    ready("reward", "define", "double", "click=2")
    words = ("outcomes", "--reward", "default", "--reward", "double", "--json")
    rows = [row for row in ready("--now", LATER, *words).json["outcomes"] if row["metric"] == "reward_per_unit"]
    assert [(row["reward"], row["value"]) for row in rows] == [("default", 8 / 12), ("double", 16 / 12)]


def test_the_reward_is_what_all_policies_learn_and_one_without_events_is_named(run_sqlite: Run) -> None:
    run_sqlite("arm", "add", "x")
    run_sqlite("reward", "define", "listening", "play=1")
    for name in ("home", "mail"):
        run_sqlite("policy", "create", name, "--kind", "uniform", "--reward", "listening")
    run_sqlite("--now", "2030-01-01", "--allow-future", "recommend", "--policy", "home", "--session", "s")
    run_sqlite("--now", "2030-01-01", "--allow-future", "feedback", "1", "play=2")
    usual = run_sqlite("--now", LATER, "outcomes")
    assert "; reward listening of mature decisions" in usual.stdout
    rows = run_sqlite("--now", LATER, "outcomes", "--json").json["outcomes"]
    assert [row["value"] for row in rows if row["reward"] == "listening"] == [2, 2]
    other = run_sqlite("--now", LATER, "outcomes", "--reward", "default")
    named = "reward default counts click, reward; the newest events are play: --reward listening counts some\n"
    assert other.stderr == named
    for words in ("exposure", "evaluate uniform"):
        assert run_sqlite("--now", LATER, *words.split(), "--reward", "default").stderr == named
    assert "`rlrec reward delays listening`" in run_sqlite("--now", LATER, "reward", "delays", "default").failed(2)
    run_sqlite("policy", "create", "clicks", "--kind", "uniform")
    assert run_sqlite("--now", LATER, "outcomes").stdout == usual.stdout  # a policy that has not served has no say
    run_sqlite("--now", "2030-01-01", "--allow-future", "recommend", "--policy", "clicks", "--session", "t")
    assert "; rewards of mature" in run_sqlite("--now", LATER, "outcomes").stdout  # policies that differ: the default


def test_a_reward_whose_window_all_events_miss_is_named(run_sqlite: Run) -> None:
    def at(time: str, *words: str) -> str:
        return run_sqlite("--now", time, "--allow-future", *words).done().stderr

    run_sqlite("arm", "add", "x")
    run_sqlite("policy", "create", "home", "--kind", "uniform")
    run_sqlite("experiment", "create", "ab", "--variant", "a=home", "--variant", "b=uniform").done()
    at("2030-01-01", "recommend", "--experiment", "ab", "--session", "s", "--user", "u")
    late = (
        "reward default counts events within 30m of their decision, and the newest came after 1h30m or more: "
        "`rlrec reward delays default` shows what windows count"
    )
    for time, is_late in (("2030-01-01T01:30", True), ("2030-01-01T00:20", False)):
        at("2030-01-02", "feedback", "1", "click", "--at", time)
        for words in ("outcomes", "exposure", "evaluate uniform", "experiment show ab"):
            assert (late in at("2030-01-03", *words.split())) is is_late, words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--reward", "defualt"), "did you mean default?"),
        (("--reward", "default", "--reward", "default"), "named twice"),
        (("--experiment", "abc"), "did you mean ab?"),
        (("--by", "variant"), "--experiment"),
        (("--by", "month"), "'month'"),
        (("--adjust",), "--experiment"),
        (("--adjust", "--experiment", "ab", "--by", "week"), "leave out --by"),
        (("--level", "1.5"), "between 0 and 1"),
        (("--age", "0s"), "7d"),
        (("--age", "soon"), "not a duration"),
        (("--age", "90d"), "--age"),
        (("--log", "policy=nobody"), "unknown policy"),
        (("--log", "since=2031-01-01"), "widen --log"),
        (("--users", "returning"), "widen --log"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(ready: Run, words: tuple[str, ...], message: str) -> None:
    refused = ready("--now", LATER, "outcomes", *words)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.count("\n") == 1 or "Usage" in refused.stderr
    assert message in refused.stderr


def test_a_store_without_a_decision_says_so(run_sqlite: Run) -> None:
    refused = run_sqlite("outcomes", "--json")
    assert (refused.exit_code, refused.error["code"]) == (2, 2)


def test_an_interleaved_experiment_has_no_variants_to_compare(ready: Run) -> None:
    ready("policy", "create", "third", "--kind", "uniform")
    ready("experiment", "create", "rank", "--interleave", "home@1,third@1")
    assert "every unit sees both" in ready("--now", LATER, "outcomes", "--experiment", "rank").failed(2)


def test_too_little_is_null_with_its_reason(ready: Run) -> None:
    words = ("--now", "2030-01-05T00:00:00Z", "outcomes", "--experiment", "ab", "--json")
    result = ready(*words)
    rows = {(row["group"], row["metric"]): row for row in result.json["outcomes"]}
    assert "NaN" not in result.stdout
    week = rows["a", "returned_7d"]
    assert (week["value"], week["lower"], week["units"], week["reasons"]) == (None, None, 0, ["none-at-risk"])
    visits = rows["a", "visits"]
    assert (visits["value"], visits["lower"], visits["reasons"]) == (2, None, ["no-variation"])


def test_a_table_explains_what_is_missing(ready: Run) -> None:
    text = ready("--now", LATER, "outcomes", "--experiment", "ab").stdout
    assert "outcomes of experiment ab by variant: 12 users, 12 new, 0 with visits before it" in text
    assert "minus a" in text
    assert "no-variation: all values are the same so far" in text


def test_csv_has_a_line_for_each_outcome(ready: Run) -> None:
    lines = ready("--now", LATER, "outcomes", "--experiment", "ab", "--format", "csv").stdout.splitlines()
    assert lines[0].startswith("by,group,metric,reward,value,lower,upper,units,against,difference")
    assert len(lines) == 1 + 2 * 10


def test_an_experiment_is_shown_on_a_part_of_its_log(ready: Run) -> None:
    narrowed = "since=2030-01-02"
    shown = ready("--now", LATER, "experiment", "show", "ab", "--log", narrowed, "--json").json
    counted = ready("--now", LATER, "outcomes", "--experiment", "ab", "--log", narrowed, "--json").json
    assert shown["outcomes"] == counted["outcomes"]
    assert shown["outcomes"] != ready("--now", LATER, "experiment", "show", "ab", "--json").json["outcomes"]


@pytest.mark.parametrize("by", ["policy", "version", "day", "users"])
def test_groups_that_nobody_randomised_have_no_p_values_and_no_answer(by: str, ready: Any) -> None:
    words = ("--now", LATER, "outcomes", "--by", by)
    result = ready(*words, "--json").json
    assert {(row["p_value"], row["answer"], row["needed"]) for row in result["differences"]} == {
        (None, "unknown", None)
    }
    assert by == "users" or any(row["lower"] is not None for row in result["differences"])
    assert "not-randomised" in result["reasons"]
    assert ready(*words).stdout.count("not-randomised: no p-values: nobody assigned units to these groups") == 1


def test_variants_are_compared_as_by_experiment_show(ready: Any) -> None:
    result = ready("--now", LATER, "outcomes", "--experiment", "ab", "--json").json
    shown = ready("--now", LATER, "experiment", "show", "ab", "--json").json
    assert result["differences"] == shown["unit_differences"]
    assert result["metric"] == [{"metric": "reward_per_unit", "reward": "default"}]
    assert any("few-clusters" in row["reasons"] for row in result["differences"])
    assert "not-randomised" not in result["reasons"]


def test_versions_that_served_at_other_times_have_no_bounds(db: str) -> None:
    """The same frozen parameters under two names: on the same day they are compared, on other days they are not."""
    run = runner(db)
    run("init")
    run("arm", "add", "x")
    for name in ("first", "second", "third"):
        run("policy", "create", name, "--kind", "uniform")
    for day, names in (("2030-01-01", ("first", "third")), ("2030-01-03", ("second",))):
        lines = "".join(f'{{"policy": "{name}", "session": "{name}{n}"}}\n' for name in names for n in range(40))
        at = "--now", day, "--allow-future"
        served = run(*at, "recommend", "--input", "-", stdin=lines).lines
        clicked = [row["decision_id"] for row in served if row["decision_id"] % (2 if day == "2030-01-01" else 5) == 0]
        click(run, clicked, *at)
    answer = run("--now", LATER, "outcomes", "--by", "policy", "--json").json
    rows = {row["group"]: row for row in answer["differences"] if row["metric"] == "reward_per_unit"}
    assert [rows["second"][name] for name in ("lower", "upper", "p_value", "answer")] == [None, None, None, "unknown"]
    assert "unequal-time" in rows["second"]["reasons"]
    assert "unequal-time" not in rows["third"]["reasons"]
    assert rows["third"]["lower"] is not None
    assert rows["third"]["answer"] == "unknown"


def test_nobody_stays_away_after_the_end_of_an_imported_log(run: Run) -> None:
    """A user who comes once a day for ten days comes back within a week, and nobody sees whether the last visits do."""
    slate = {"eligible": ["x", "y"], "slate": [{"arm": "x", "propensity": 0.5}]}
    lines = jsonl(
        {"session": f"s{day}", "user": "u", "at": f"2026-01-{day + 1:02}T12:00:00Z", **slate} for day in range(10)
    )
    run("import-log", "-", "--layout", "jsonl", stdin=lines)
    rows = {row["metric"]: row["value"] for row in run("outcomes", "--json").json["outcomes"]}
    assert (rows["returned_1d"], rows["returned_7d"], rows["returned_28d"]) == (1, 1, None)
