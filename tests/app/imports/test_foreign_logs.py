"""Logs of other systems, written anew from the documented formats: counts, refused lines and estimates of `uniform` are
those of a plain script, as they come and after a trip through every layout that the log can leave in."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.app.logs import summary
from tests.app.plain_script import Log, estimates, read_dsjson, read_table
from tests.conftest import CommandResult, Run, empty_store

Line = dict[str, Any]
DISHES = [
    {"_tag": name, "i": {"id": name}, "j": [{"price": price}]} for price, name in enumerate(("soup", "rice", "tea"))
]
COUNTS = ("accepted", "duplicates", "rejected", "skipped", "clipped")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlrec.app.imports.layouts.base.GROUP", 50)


# -- the formats --


def float32(p: Any) -> list[float]:
    """Probabilities as a service prints them."""
    return [float(each) for each in np.asarray(p, np.float32)]


def header(n: int) -> Line:
    return {"Timestamp": f"2026-01-31T12:{n // 60 % 60:02}:{n % 60:02}.0000000Z", "Version": "1", "EventId": f"e{n}"}


def cb(n: int, random: np.random.Generator, value: float | None = None, *, keep: float = 1.0, **more: Any) -> Line:
    """A ranking of three dishes, the first of which was shown, and what it earned."""
    p = float32(random.dirichlet([3, 2, 1]))
    order = random.permutation(3).tolist()
    value = float(random.random() < 0.5) if value is None else value
    label = p[order[0]] * keep  # of joined logs, where some lines were dropped
    return {
        "_label_cost": -value, "_label_probability": label, "_label_Action": order[0] + 1, "_labelIndex": order[0],
        "o": [{"v": value, "EventId": f"e{n}", "ActionTaken": False}], **header(n), "a": [each + 1 for each in order],
        "c": {"GUser": {"major": ("eng", "art")[n % 2]}, "_multi": DISHES}, "p": [p[each] for each in order],
        "VWState": {"m": "N/A"}, **({} if keep == 1 else {"pdrop": 1 - keep}), "_original_label_cost": -value, **more,
    }  # fmt: skip


def rankings(random: np.random.Generator) -> list[Line | str]:
    return [cb(n, random) for n in range(120)]


def ratings(random: np.random.Generator) -> list[Line | str]:
    """Rewards of 1 to 5, which the default reward clips."""
    return [cb(n, random, float(random.integers(1, 6))) for n in range(120)]


def subsampled(random: np.random.Generator) -> list[Line | str]:
    """Every line with a reward, and a quarter of the others."""
    values = (random.random(240) < 0.5).astype(float)
    logged = [(n, value, 1.0 if value else 0.25) for n, value in enumerate(values) if value or n % 4 == 0]
    return [cb(n, random, value, keep=keep) for n, value, keep in logged]


def marked(random: np.random.Generator) -> list[Line | str]:
    """Lines to be passed over: marked, of checkpoints, deferred and never activated; and such as came twice."""
    lines: list[Line | str] = ["[checkpoint 1]"]
    for n in range(120):
        lines.append(cb(n, random, **({"_skipLearn": True} if n % 7 == 0 else {}), DeferredAction=n % 3 == 0))
        if n % 6 == 0:
            lines.append({"EventId": f"e{n}", "ActionTaken": True, "EnqueuedTimeUtc": "2026-01-31T13:00:00Z"})
    return [*lines, lines[2], lines[3]]


def observed(random: np.random.Generator) -> list[Line | str]:
    """Rewards that came in lines of their own, before or after their decision, or without any."""
    lines: list[Line | str] = []
    for n in range(120):
        decision = cb(n, random, 0.0, o=[])
        late = {"RewardValue": 0.25 + n % 4, "EnqueuedTimeUtc": "2026-01-31T12:20:00Z",
                "EventId": f"e{n}" if n % 5 else f"other{n}",
                "Observations": [{"v": 1.0, "EventId": f"e{n}", "ActionId": None}]}  # fmt: skip
        lines += [decision] if n % 2 else [decision, late] if n % 4 else [late, decision]
    return lines


def outcome(random: np.random.Generator, ranked: list[int], **more: Any) -> Line:
    return {"_a": ranked, "_p": float32(random.dirichlet(np.full(len(ranked), 5.0))), **more}


def ccb(random: np.random.Generator) -> list[Line | str]:
    """Pages of two slots, the second of which may show two of the dishes, whatever the caller's baseline."""
    lines: list[Line | str] = []
    for n in range(120):
        first = random.permutation(3).tolist()
        second = [number for number in (0, 2) if number != first[0]]
        outcomes = []
        for name, ranked in (("Main", first), ("Side", second)):
            value = float(random.choice([0, 0.25, 1]))
            outcomes.append({"_label_cost": -value, "_id": name, **outcome(random, ranked),
                             "_o": [{"v": value, "EventId": f"e{n}", "Index": name, "ActionTaken": False}],
                             "_original_label_cost": -value})  # fmt: skip
        slots = [{"_id": "Main", "sj": [{"size": "L"}]}, {"_id": "Side", "_inc": [0, 2]}]
        context = {"FromUrl": [{"weather": "sunny"}], "_multi": DISHES, "_slots": slots}
        lines.append({**header(n), "c": context, "_outcomes": outcomes, "_ba": [0, 2], "VWState": {"m": "N/A"}})
    return lines


def slates(random: np.random.Generator) -> list[Line | str]:
    """Pages of two slots, each with actions of its own, and a reward for the page; some lines were dropped."""
    names = [("TAction", slot, f"f{slot}{number}") for slot in range(2) for number in range(2 + slot)]
    actions = [{key: {"a": value}, "_slot_id": slot} for key, slot, value in names]
    lines: list[Line | str] = []
    for n in range(120):
        value = float(random.integers(0, 6))
        outcomes = [outcome(random, random.permutation(2 + slot).tolist()) for slot in range(2)]
        lines.append({
            **header(n), "_label_cost": -value, "o": [{"v": value, "EventId": f"e{n}", "ActionTaken": False}],
            "_outcomes": outcomes, "c": {"GUser": {"id": "a"}, "_multi": actions, "_slots": [{"a": 1}, {"a": 2}]},
            "VWState": {"m": ""}, **({"pdrop": 0.5} if n % 3 else {}),
        })  # fmt: skip
    return lines


def published(random: np.random.Generator) -> list[Line | str]:
    """As in the files that Vowpal Wabbit is tested with: actions that are counted from 0, features that are all 0, or
    none, costs that other costs replaced, a log that dropped every line, pages whose slots earned without a word."""
    lines: list[Line | str] = []
    topics = [{"Action": {f"action={topic}": 1}} for topic in ("politics", "sports", "music", "food")]
    for n in range(90):
        p, shown = float32(random.dirichlet([4, 2, 1, 1])), n % 4
        label = {"_label_probability": p[shown], "_label_Action": shown + 1, "_labelIndex": shown}
        cost, original = ((0, 0), (-1.0, -0.5), (-1.0, 0.0))[n % 3]
        observation = {"v": {f"v={('none', 'click', 'like')[n % 3]}": 1}, "_definitely_bad": False}
        context = {"User": {f"user={('Anna', 'Tom')[n % 2]}": 1}, "_multi": topics}
        lines.append({"_label_cost": cost, **label, "o": [observation], "a": [0, 1, 2, 3], "c": context, "p": p,
                      "_original_label_cost": original})  # fmt: skip
    halves = {"_label_probability": 0.5, "p": [0.5, 0.5], "_label_cost": -1.0}
    empty = {"_label_Action": 1, "event_id": "12", "a": [0, 1], "c": {"A": {"F": 0.0}, "_multi": [{}, {}]}}
    actions = [{"action": {"f": str(number)}} for number in range(1, 4)]
    context = {"shared": {"f": "1"}, "_multi": actions}
    lines.append({**halves, **empty, "_original_label_cost": -0.0})
    lines.append({**halves, "_label_Action": 2, "a": [2, 1], "c": {"_multi": actions[:2]}, "pdrop": 1})
    slots = [{"_id": f"slot{number}", "sj": {"f": str(number)}} for number in (1, 2)]
    ranked = [([2, 1, 0], [0.5, 0.25, 0.25]), ([1, 0], [0.5, 0.5])]
    outcomes = [{"_label_cost": -1.0, "_id": slot["_id"], "_a": a, "_p": p, "_o": [], "_original_label_cost": 0.0}
                for slot, (a, p) in zip(slots, ranked, strict=True)]  # fmt: skip
    lines.append({"c": {**context, "_slots": slots}, "_outcomes": outcomes, "_ba": [1, 2]})
    return lines


FORMATS = [rankings, ratings, subsampled, marked, observed, ccb, slates, published]
Format = Callable[[np.random.Generator], list[Line | str]]


# -- as they come --


def text_of(lines: Iterable[Line | str]) -> str:
    return "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)


def imported(run: Run, lines: Format, *options: str) -> tuple[Log, CommandResult]:
    """What the plain script says of a log, and what its import answers. Ratings are judged as they are."""
    text = text_of(lines(np.random.default_rng(5)))
    Path("log.json").write_text(text)
    run("reward", "define", "stars", "reward=1")
    result = run("import-log", "log.json", "--layout", "dsjson", "--policy", "shop", "--json", *options)
    return read_dsjson({"log.json": text}, clip=lines not in (ratings, observed)), result


def judged(run: Run, lines: Format, log: str = "policy=shop", *, pi: bool = True) -> dict[str, float]:
    """Estimates of `uniform`. `pi` needs the marginals of each slot, which follow from a line of slates alone."""
    names = "sips,sn-sips,ips,snips" + (",pi" if pi and lines is slates else "")
    reward = ("--reward", "stars") if lines in (ratings, observed) else ()
    rows = run("evaluate", "uniform", "--log", log, "--estimator", names, "--json", *reward).json
    assert [row["left_out"] for row in rows] == [0] * len(rows)
    return {row["estimator"]: row["value"] for row in rows}


@pytest.mark.parametrize("lines", FORMATS)
def test_counts_and_estimates_are_those_of_a_plain_script(run: Run, lines: Format) -> None:
    plain, result = imported(run, lines)
    share = plain.counts["clipped"] / plain.counts["accepted"]
    counts = {name: plain.counts[name] for name in COUNTS}
    assert result.json == summary(**counts, clipped_share=pytest.approx(share, abs=1e-12)), result.stderr
    dangling = plain.counts["dangling"]
    assert (f"{dangling} observations without a decision" in result.stderr) == (dangling > 0)
    values = judged(run, lines)
    assert values == pytest.approx({name: estimates(plain.pages)[name] for name in values}, abs=1e-9)
    again = imported(run, lines)[1].json
    assert (again["accepted"], again["duplicates"]) == (0, plain.counts["accepted"] + plain.counts["duplicates"])
    assert judged(run, lines) == values


@pytest.mark.slow
@pytest.mark.parametrize("lines", FORMATS)
def test_estimates_outlive_every_layout_that_holds_the_log(run_sqlite: Run, lines: Format) -> None:
    """Propensities, sets of slots, page rewards, and how likely the log kept a line, leave and come back."""
    plain, _ = imported(run_sqlite, lines)
    expected = {name: pytest.approx(value, abs=1e-9) for name, value in estimates(plain.pages).items()}
    for layout in ("jsonl", "csv", "dsjson"):
        reward = ("--reward", "stars") if layout == "dsjson" and lines in (ratings, observed) else ()
        result = run_sqlite("export-log", "-", "--layout", layout, *reward)
        if layout == "csv" and lines in (ccb, slates):
            assert "slot_sets (" in result.stderr
            continue
        other = empty_store(Path(f"{layout}.db").absolute())
        other("reward", "define", "stars", "reward=1")
        result = other("import-log", "-", "--layout", layout, "--policy", "shop", "--json", stdin=result.stdout)
        assert result.json["accepted"] == plain.counts["accepted"], (layout, result.stderr)
        values = judged(other, lines, pi=layout != "dsjson")
        assert values == {name: expected[name] for name in values}, layout
    if lines in (ratings, subsampled, ccb, slates):  # whose rows are those of every other format
        run_sqlite("export-log", "files", "--layout", "parquet").done()
        values = judged(run_sqlite, lines, "parquet:files")
        assert values == {name: expected[name] for name in values}


# -- tables --


def table(random: np.random.Generator) -> list[dict[str, str]]:
    """Pages of one to three slots, a row each, some of which stand for others that were dropped."""
    rows = []
    for page in range(90):
        arms, keep = list("abcd"), ("", "0.5", "0.125")[page % 3]
        for _ in range(1 + page % 3):
            p = random.dirichlet(np.full(len(arms), 4.0))
            index = int(random.integers(len(arms)))
            rows.append({
                "page": f"p{page}", "visit": f"v{page}", "item": arms.pop(index), "p": repr(float(p[index])),
                "keep": keep, "clicked": str(int(random.random() < 0.4)), "items": "a|b|c|d",
            })  # fmt: skip
    return rows


def written(rows: list[dict[str, str]], layout: str) -> None:
    if layout == "parquet":
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
        columns |= {name: [float(each) if each else None for each in columns[name]] for name in ("p", "keep")}
        columns |= {"clicked": [each == "1" for each in columns["clicked"]], "items": [[*"abcd"]] * len(rows)}
        parquet.write_table(pa.table(columns), "log.parquet")
    else:
        with Path("log.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    columns_of = {"decision": "page", "session": "visit", "arm": "item", "propensity": "p", "eligible": "items"}
    more = {"keep_probability": "keep", "events": {"click": "clicked"}}
    Path("map.json").write_text(json.dumps(columns_of | more))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["csv", "parquet"])
def test_a_table_with_several_rows_a_decision_is_weighed_page_by_page(run: Run, layout: str) -> None:
    rows = table(np.random.default_rng(6))
    written(rows, layout)
    command = ("import-log", f"log.{layout}", "--layout", layout, "--map", "map.json", "--policy", "shop", "--json")
    assert run(*command).json == summary(accepted=90)
    values = judged(run, rankings)
    assert values == pytest.approx({name: estimates(read_table(rows))[name] for name in values}, abs=1e-9)
    assert run(*command).json == summary(duplicates=90)


# -- lines that cannot be taken --


def damaged(line: Line, number: int) -> Line | str:
    """A line in which something is wrong, every time something else."""
    text, p = json.dumps(line), line["p"]
    changed: list[Line | str] = [
        text[: len(text) // 2], text.replace('"Version": "1"', '"Version: "1"'), line | {"p": [0.0, 0.5, 0.5]},
        line | {"p": [1.5, *p[1:]]}, line | {"p": [p[0] - 0.1, *p[1:]]}, line | {"EventId": "e1"},
        {name: value for name, value in line.items() if name in ("EventId", "c")}, line | {"c": {"_multi": []}},
    ]  # fmt: skip
    return changed[number % len(changed)]


def test_refused_lines_are_those_of_a_plain_script(run: Run) -> None:
    """Named by file and number; the good ones are stored."""
    random = np.random.default_rng(7)
    every = [cb(n, random) for n in range(200)]
    mixed = [damaged(line, n // 5) if n % 5 == 4 else line for n, line in enumerate(every)]
    files = {"one.json": text_of(mixed[:110]), "two.json": f"\ufeff{text_of(mixed[110:])}".replace("\n", "\r\n")}
    for name, text in files.items():
        Path(name).write_bytes(text.encode())
    plain = read_dsjson(files)
    command = ("import-log", *files, "--layout", "dsjson", "--policy", "shop", "--json")
    result = run(*command)
    assert (result.exit_code, run("arm", "list", "--json").json) == (2, [])
    assert f"one.json line {plain.refused[0][1]}" in result.error["error"]
    result = run(*command, "--on-error", "quarantine", "--rejects", "rejects.json")
    assert result.exit_code == 5
    assert result.json == summary(accepted=plain.counts["accepted"], rejected=len(plain.refused))
    rejects = [json.loads(line) for line in Path("rejects.json").read_text().splitlines()]
    assert sorted((each["file"], each["line"]) for each in rejects) == plain.refused
    values = judged(run, rankings)
    assert values == pytest.approx({name: estimates(plain.pages)[name] for name in values}, abs=1e-9)


JUNK: tuple[Any, ...] = (None, True, -1, 0, 1.5, 1e308, "", "x", [], {}, [None], [[1]], {"a": 1}, [1, 1], [0.5, 0.5])


def changed(line: Line, random: np.random.Generator) -> Line:
    """A line in which some value, at whatever depth, is another, or gone."""
    line = json.loads(json.dumps(line))
    holder: Any = line
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = keys[random.integers(len(keys))]
        if not isinstance(holder[key], dict | list) or not holder[key] or random.random() < 0.3:
            break
        holder = holder[key]
    holder[key] = JUNK[random.integers(len(JUNK))]
    if random.random() < 0.2:
        del holder[key]
    return line


@pytest.mark.slow
def test_a_line_that_is_changed_anywhere_is_taken_or_refused(run_sqlite: Run) -> None:
    random = np.random.default_rng(8)
    good = [line for lines in FORMATS for line in lines(random) if isinstance(line, dict)]
    Path("log.json").write_text(text_of(changed(line, random) for line in good))
    options = ("--policy", "shop", "--on-error", "quarantine", "--rejects", "rejects.json", "--json")
    result = run_sqlite("import-log", "log.json", "--layout", "dsjson", *options)
    assert (result.exit_code, result.json["accepted"] > 50, result.json["rejected"] > 50) == (5, True, True)
    assert run_sqlite("export-log", "-", "--layout", "dsjson").exit_code == 0
