"""Segments of experiments: `--by FIELD`."""

from typing import Any

import pytest

from tests.conftest import ON_BOTH, Run, click, runner, store_after

LATER = ("--now", "2030-02-01", "--allow-future")
UNITS = 600


def prepared(db: str) -> None:
    """Users with a phone click on b in nine of ten cases and on a in two, those without one on either in five; each
    comes twice, the second time with the other device."""
    run = runner(db)
    run("arm", "add", "x")
    for name in ("home", "other"):
        run("policy", "create", name, "--kind", "uniform")
    run("experiment", "create", "ab", "--variant", "a=home", "--variant", "b=other", "--best-n", UNITS)
    for day in (1, 2):
        devices = [("phone", "desk")[(n + day) % 2] for n in range(UNITS)]
        contexts = [f'{{"device": "{device}", "all": 1}}' for device in devices]
        lines = "".join(
            f'{{"experiment": "ab", "session": "s{n}", "user": "u{n}", "context": {context}}}\n'
            for n, context in enumerate(contexts)
            if day == 1 or n < 100
        )
        at = "--now", f"2030-01-0{day}", "--allow-future"
        rows = run(*at, "recommend", "--input", "-", stdin=lines).lines
        if day == 1:
            clicked = [
                row["decision_id"] for n, (row, device) in enumerate(zip(rows, devices, strict=True))
                if n // 2 % 10 < {("phone", "a"): 2, ("phone", "b"): 9}.get((device, row["variant"]), 5)
            ]  # fmt: skip
            click(run, clicked, *at)


ready = store_after(prepared)


def show(run: Run, *words: Any) -> Any:
    return run(*LATER, "experiment", "show", "ab", "--by", *words)


@ON_BOTH
def test_a_segment_is_that_of_the_first_decision(ready: Any) -> None:
    rows = show(ready, "device", "--json").json["segments"]
    assert [(row["by"], row["segment"], row["group"], row["units"]) for row in rows] == [
        ("device", "desk", "b", UNITS // 2), ("device", "phone", "b", UNITS // 2),
    ]  # fmt: skip
    assert [row["value"] for row in rows] == [pytest.approx(0, abs=0.15), pytest.approx(0.7, abs=0.1)]
    assert [row["answer"] for row in rows] == ["unknown", "better"]
    assert (
        "by device: phone: b better than a (corrected for 2 of them; decide by all units)"
        in show(ready, "device").stdout
    )


@pytest.mark.parametrize("is_excluded", [True, False])
def test_an_outage_of_the_first_day_moves_no_unit_to_another_segment(ready: Any, is_excluded: bool) -> None:
    """What is selected are second visits, of users who had no phone on the first day and have one on the second."""
    users = f"user={'+'.join(f'u{n}' for n in range(0, 100, 2))}"
    if is_excluded:
        ready(*LATER, "log", "exclude", "outage", "--where", "until=2030-01-02")
    rows = show(ready, "device", "--json", "--log", users if is_excluded else f"since=2030-01-02,{users}")
    assert [(row["segment"], row["units"]) for row in rows.json["segments"]] == [("desk", 50)]
    table = show(ready, "device", "--log", users if is_excluded else f"since=2030-01-02,{users}").stdout
    assert "by device: no segment surely differs; 1 of 1 comparison without a verdict so far (" in table


def test_outcomes_of_an_experiment_have_the_same_segments(ready: Any) -> None:
    by_outcomes = ready(*LATER, "outcomes", "--experiment", "ab", "--by", "device", "--json").json["segments"]
    assert by_outcomes == show(ready, "device", "--json").json["segments"]


@ON_BOTH
def test_a_filter_by_what_came_after_the_assignment_has_no_answer(ready: Any) -> None:
    """The second visits, and those with a phone, are of units that came again, or with another device."""
    words = (*LATER, "experiment", "show", "ab", "--json", "--log")
    figures = ("value", "lower", "upper", "p_value", "answer", "reasons")
    logs = ("until=2040-01-01", "since=2030-01-01", "since=2030-01-02", "field:device=phone", "version=1", "version=2")
    answers = {log: ready(*words, log).json["unit_differences"] for log in logs}
    rows = {
        log: next([row[name] for name in figures] for row in answer if row["metric"] == "reward_per_unit")
        for log, answer in answers.items()
    }  # fmt: skip
    # what leaves nothing out is no filter
    assert rows["until=2040-01-01"] == rows["since=2030-01-01"] == rows["version=1"]
    assert rows["until=2040-01-01"][4:] == ["better", []]
    *_, upper, p_value, answer, reasons = rows["field:device=phone"]
    assert (upper > 0.5, p_value, answer, reasons) == (True, None, "unknown", ["picked-decisions", "young-units"])
    for log in ("since=2030-01-02", "version=2"):
        assert all((row["p_value"], row["answer"]) == (None, "unknown") for row in answers[log])
    shown = ready(*LATER, "experiment", "show", "ab", "--log", "field:device=phone").stdout
    assert "picked-decisions" in shown.splitlines()[0]
    assert "picked-decisions: the log filter leaves out decisions by what came after" in shown
    rows_by_outcomes = ready(*LATER, "outcomes", "--experiment", "ab", "--log", "field:device=phone", "--json").json
    assert rows_by_outcomes["differences"] == answers["field:device=phone"]


def test_a_prune_after_the_assignment_leaves_no_answer(ready: Any) -> None:
    """Only those who came again have visits left; who entered since then is compared as before."""
    pruned = ready(*LATER, "db", "prune", "--before", "2030-01-02", "--yes").done().stderr
    assert "ab compares who came again, and gives no answer (picked-decisions)" in pruned
    rows = ready(*LATER, "experiment", "show", "ab", "--json").json["unit_differences"]
    assert all((row["p_value"], row["answer"]) == (None, "unknown") for row in rows)
    assert all("picked-decisions" in row["reasons"] for row in rows)
    words = ("outcomes", "--experiment", "ab", "--entered-since", "2030-01-02")
    day = "2030-01-02T00:00:00.000000Z"
    command = f"`rlrec {' '.join(words[:-1])} {day} --reward default` compares those who came since"
    named = f"what users earned before {day} was deleted by `rlrec db prune`: {command}"
    assert named in ready(*LATER, "experiment", "show", "ab").stdout.splitlines()
    since = ready(*LATER, *words, "--json").json
    assert all("picked-decisions" not in row["reasons"] for row in since["differences"])
    assert "whoever came before counts as new" in ready(*LATER, "outcomes").stderr


def test_what_leaves_out_more_of_one_variant_has_no_answer(ready: Any) -> None:
    """Users whom one variant served, or of both alike; by an exclusion and by a filter."""
    rows = ready(*LATER, "export-log", "-", "--log", "until=2030-01-02").lines
    sides = {side: [row["user"] for row in rows if row["variant"] == side] for side in "ab"}
    some = {"a": sides["a"][:90], "both": sides["a"][:45] + sides["b"][:45]}
    assert "selected_ratio" not in show(ready, "all", "--json").json
    for name, users in some.items():
        ready(*LATER, "log", "exclude", name, "--where", f"user={'+'.join(users)}")
        answer = show(ready, "all", "--json").json
        others = "+".join({f"u{n}" for n in range(UNITS)} - {*users})
        filtered = show(ready, "all", "--json", "--log", f"user={others},included=all").json
        assert answer["sample_ratio"] == filtered["sample_ratio"]
        assert answer["sample_ratio"]["p_value"] == 1
        assert (answer["selected_ratio"]["p_value"] < 0.001) == (name == "a")
        assert answer["selected_ratio"] == filtered["selected_ratio"]
        for (row,) in (
            [row for row in rows if row["metric"] == "reward_per_unit"]
            for rows in (answer["unit_differences"], filtered["unit_differences"], answer["segments"])
        ):
            assert (row["answer"], row["reasons"]) == (("unknown", ["sample-ratio"]) if name == "a" else ("better", []))
        shown = show(ready, "all").stdout
        assert ("leaves out more of one variant" in shown.splitlines()[0]) == (name == "a")
        assert "exclusions and filters against variants: p" in shown
        ready("log", "include", name)


def test_p_values_and_intervals_hold_for_all_segments_together(ready: Any) -> None:
    """A segment that holds everybody has the interval of the experiment."""
    answer = show(ready, "device", "--json").json
    (everybody,) = (row for row in answer["unit_differences"] if row["metric"] == "reward_per_unit")
    (phone,) = (row for row in answer["segments"] if row["segment"] == "phone")
    (together,) = show(ready, "all", "--json").json["segments"]
    names = ("value", "lower", "upper", "p_value")
    assert [together[name] for name in names] == pytest.approx([everybody[name] for name in names])
    assert phone["upper"] - phone["lower"] > 1.1 * (everybody["upper"] - everybody["lower"])


@pytest.mark.parametrize(
    ("words", "result"),
    [
        (["devise"], "no context of the log has the field 'devise'"),
        (["experiment"], "no context of the log has the field"),
    ],
)
def test_a_field_that_no_context_has_is_refused(ready: Any, words: list[str], result: str) -> None:
    assert result in show(ready, *words).failed(2)
    assert "contexts have all, device" in show(ready, "zzzz").stderr
    assert "--by takes no 'device'" in ready(*LATER, "outcomes", "--by", "device").stderr
