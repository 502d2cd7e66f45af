"""Tables by decision and arm: targets and rewards that the store does not know, judged as what it knows."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
from pyarrow import parquet

import rlrec
from rlrec import ope
from rlrec.app.evaluation.passes import estimates
from rlrec.app.evaluation.passes.request import Request
from rlrec.app.evaluation.targets.cases import CaseRows
from rlrec.app.inputs import decision_tables
from rlrec.errors import InputError
from rlrec.store.log.selected import Selection
from tests.app import logs, trained
from tests.conftest import ON_BOTH, Run, filled, jsonl

Row = tuple[Any, ...]  # decision, arm, value
NOW = "2026-03-01"
LATER = ("--now", NOW)
FEW = "ips,snips,dr,wis"
RATES = (0.1, 0.2, 0.3, 0.4)
FIGURES = ("value", "std_error", "lower", "upper", "ess", "max_weight", "mean_weight", "unsupported", "lift", "n")


def table_of(db: str, name: str, *, scores: bool = False, by_position: bool = False) -> list[Row]:
    """The probabilities of a target for the first slot of each decision, or at each position, or the scores of one that
    reads states."""
    table = list[Row]()
    with closing(logs.at(db, 1e6)) as store, store.read() as unit:
        evaluation, (impressions, *_), reader = estimates.prepare(
            unit, Request(targets=[name]), ope.parse("ips"), Selection()
        )
        ((_, scorer),) = evaluation.shared_rows[0].members
        for logged in reader.read(impressions.judge_reading):
            rows, _ = impressions.usable_rows(logged, evaluation.shared_rows[0].reward)
            top = rows.take(rows.slots["position"] == 1)
            for case_rows in scorer.case_rows(top, logged):
                if isinstance(case_rows, CaseRows):
                    blocks = [
                        (block.arms, block.shares if by_position else block.shares[0]) for block in case_rows.blocks
                    ]
                else:
                    by_decision = case_rows.score if scores else case_rows.probability
                    blocks = [(case_rows.arms, values) for values in by_decision]
                for index, case in zip(case_rows.indices, case_rows.case, strict=True):
                    decision, (arms, values) = int(top.slots["decision_id"][index]), blocks[case]
                    keys = [evaluation.arms.keys[arm] for arm in arms.tolist()]
                    if by_position:
                        at_positions = enumerate(values, start=1)
                        cells = ((at, *cell) for at, row in at_positions for cell in zip(keys, row, strict=True))
                        table += [(decision, key, at, float(value)) for at, key, value in cells]
                        continue
                    table += [(decision, key, float(value)) for key, value in zip(keys, values, strict=True)]
    return table


def write(path: Path, rows: Sequence[Row], header: str = "decision_id,arm,probability") -> str:
    """The rows as a file, in the format that its ending says."""
    names = header.split(",")
    if path.suffix == ".parquet":
        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        parquet.write_table(pyarrow.table(columns), path, row_group_size=97)
    elif path.suffix == ".ndjson":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([names, *rows])
    return str(path)


def logged(db: str) -> None:
    """Two loggers, one of which reads the context; a log of two months ago; requests have ids."""
    logs.begin(db, 4, "log", "epsilon-greedy", epsilon="0.5")
    logs.create(db, "home", "thompson", floor="0.1")
    logs.serve(db, "log", pages=300, rates=RATES)
    logs.serve(db, "home", pages=100, rates=RATES, seed=2, start=5)


def paged(db: str) -> None:
    """Pages of two slots, and a target that reads the session."""
    logs.begin(db, 4, "log", "uniform")
    logs.create(db, "home", "gradient")
    trained.version(db, "home", bias=[0.5, 0.0, -0.4, 0.2], last=0.0)
    logs.serve(db, "log", pages=200, rates=RATES, size=2, start=3.0)


class Exporting:
    """A frame that has the Arrow stream alone, as one of Polars. Its comparisons are frames, which are no truth."""

    def __init__(self, table: pyarrow.Table) -> None:
        self.__arrow_c_stream__ = table.__arrow_c_stream__

    def __eq__(self, other: object) -> Any:
        return pandas.DataFrame({"equal": [False, False]})

    __hash__ = object.__hash__


def mixed_pages(db: str) -> None:
    """Pages of one and of three slots by two loggers, and a curve of their positions."""
    logs.begin(db, 4, "log", "uniform")
    logs.create(db, "home", "thompson", floor="0.1")
    logs.create(db, "greedy", "epsilon-greedy", epsilon="0.2")
    logs.serve(db, "log", pages=200, rates=RATES, size=3, start=3.0, curve=(1.0, 0.7, 0.5))
    logs.serve(db, "greedy", pages=100, rates=RATES, size=1, seed=2, start=5.0)
    logs.serve(db, "home", pages=200, rates=RATES, size=3, seed=3, start=9.0, curve=(1.0, 0.7, 0.5))


def three_slots(db: str) -> None:
    """Pages of three slots."""
    logs.begin(db, 4, "log", "uniform")
    logs.serve(db, "log", pages=200, rates=RATES, size=3)


def evaluated(run: Run, *words: str, estimators: str = "impression,session") -> list[dict[str, Any]]:
    return run(*LATER, "evaluate", *words, "--estimator", estimators, "--json").done().json


def figures(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    return [[row["estimator"], *(row[name] for name in FIGURES)] for row in rows]


def assert_equal(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> None:
    """To 1e-12."""
    assert len(rows) == len(others) > 3
    for (name, *values), (other_name, *other_values) in zip(figures(rows), figures(others), strict=True):
        assert [value is None for value in values] == [value is None for value in other_values]
        assert name == other_name
        assert [value or 0 for value in values] == pytest.approx([v or 0 for v in other_values], rel=1e-12, abs=1e-12)


@pytest.mark.slow
def test_a_table_of_what_the_store_has_gives_its_estimates(sqlite_db: str, tmp_path: Path) -> None:
    run = filled(sqlite_db, logged)
    rows = table_of(sqlite_db, "home")
    stored = evaluated(run, "home")
    generator = np.random.default_rng(3)
    shuffled = [rows[index] for index in generator.permutation(len(rows))]
    answers = [
        evaluated(run, "--target", write(tmp_path / f"tabled.{ending}", order))
        for ending, order in (("csv", rows), ("parquet", shuffled), ("ndjson", rows[::-1]))
    ]
    assert_equal(answers[0], stored)
    # neither the format nor the order changes a bit
    assert figures(answers[0]) == figures(answers[1]) == figures(answers[2])
    assert {row["target"] for row in answers[0]} == {"tabled"}
    assert {row["origin"] for row in answers[0]} == {f"{tmp_path}/tabled.csv, probability at temperature 1"}
    assert all("unknown-fit" in row["reasons"] and row["verdict"] != "ok" for row in answers[0])


@pytest.mark.slow
def test_a_frame_of_any_library_is_a_table(sqlite_db: str) -> None:
    filled(sqlite_db, logged)
    columns = dict(
        zip(("decision_id", "arm", "probability"), zip(*table_of(sqlite_db, "home"), strict=True), strict=True)
    )
    table = pyarrow.table(columns)
    frame = pandas.DataFrame(columns).astype({"arm": "category"}).sample(frac=1, random_state=1)
    with rlrec.open(sqlite_db, now=NOW) as store:
        stored = store.evaluate("home", estimators="impression")
        for targets in (table, frame, {"frame": table.to_reader(max_chunksize=100)}, {"frame": Exporting(table)}):
            answer = store.evaluate(targets=targets, estimators="impression", fitted_on="none")
            assert_equal(answer, stored)
            assert (answer[0].target, answer[0].origin) == ("frame", "frame frame, probability at temperature 1")
        rewards = table.drop_columns("probability").append_column("reward", table["probability"])
        sources = (rewards, rewards.to_pandas(), Exporting(rewards))
        models = [store.evaluate("home", estimators="dr", reward_model=source)[0] for source in sources]
        assert len({row.value for row in models}) == 1
        answers = store.evaluate("home", targets={"a": table, "b": frame}, estimators="ips")
        assert [row.target for row in answers] == ["home", "a", "b"]
        with pytest.raises(InputError, match="cannot read frame frame: "):
            store.evaluate(targets=object())


def test_a_frame_has_rewards_by_arm_as_a_csv_has(sqlite_db: str, tmp_path: Path) -> None:
    filled(sqlite_db, logged)
    with rlrec.open(sqlite_db, now=NOW) as store:
        arms = [arm.arm for arm in store.arm.list()]
        frame = pandas.DataFrame({"reward": [number / 8 for number in range(len(arms))], "arm": arms})
        path = tmp_path / "rewards.csv"
        frame[["arm", "reward"]].to_csv(path, index=False)
        values = [store.evaluate("home", estimators="dm,dr", reward_model=model).to_json() for model in (path, frame)]
        assert values[0] == values[1]
        with pytest.raises(InputError, match="frame reward_model begins with 'arm,worth'"):
            store.evaluate("home", reward_model=frame.rename(columns={"reward": "worth"}))


@ON_BOTH
def test_requests_name_decisions(db: str, run: Run, tmp_path: Path) -> None:
    logs.begin(db, 2, "log", "uniform")
    lines = [{"policy": "log", "request_id": f"r,{number}", "session": f"s{number}"} for number in range(60)]
    path = tmp_path / "requests.ndjson"
    path.write_text(jsonl(lines))
    run("--now", "2026-02-01T00:00:00Z", "recommend", "--input", str(path))
    rows = [(line["request_id"], arm, 0.5) for line in lines for arm in ("a0", "a1")]
    file = write(tmp_path / "half.csv", rows, "request_id,arm,probability")
    assert_equal(evaluated(run, "--target", file), evaluated(run, "uniform"))
    file = write(tmp_path / "half.csv", [("r,99", "a0", 1.0)], "request_id,arm,probability")
    result = run(*LATER, "evaluate", "--target", file)
    assert result.stderr.startswith(f"Error: {file} row 1: 'r,99' is no request_id of the log")


@pytest.mark.slow
def test_scores_rank_pages_as_a_policy_that_reads_states_does(sqlite_db: str, tmp_path: Path) -> None:
    run = filled(sqlite_db, paged)
    scores = table_of(sqlite_db, "home", scores=True)
    path = write(
        tmp_path / "tabled.csv",
        [(decision, arm, 3 * score) for decision, arm, score in scores],
        "decision_id,arm,score",
    )
    for estimators in ("impression,session", "slate"):
        tabled = evaluated(run, "--target", path, "--temperature", "3", estimators=estimators)
        assert_equal(tabled, evaluated(run, "home", estimators=estimators))
    # the best arms, equal bests share
    best = [(decision, arm, float(arm in ("a1", "a2"))) for decision, arm, _ in scores]
    path = write(tmp_path / "best.csv", best, "decision_id,arm,score")
    rows = evaluated(run, "--target", path, "--greedy", estimators="sips")
    assert rows[0]["max_weight"] == pytest.approx(6) == 12 * 0.5
    assert rows[0]["origin"] == f"{path}, score of the best arm"
    # probabilities of one slot say nothing of a page
    path = write(tmp_path / "share.csv", [(decision, arm, 0.25) for decision, arm, _ in scores])
    result = run(*LATER, "evaluate", "--target", path)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "has probabilities, and the log has several slots of decision 1. give scores" in result.stderr
    assert "or a `marginal` for each `position`" in result.stderr


@pytest.mark.slow
def test_probabilities_at_positions_weigh_pages_as_the_policy_does(sqlite_db: str, tmp_path: Path) -> None:
    run = filled(sqlite_db, mixed_pages)
    run(*LATER, "position", "fit", "curve")
    # all that weigh slots by themselves
    every = "impression", "iips,sn-iips,pi,sn-pi,pbm:curve,sn-pbm:curve,interpol:1:curve,sn-interpol:1:curve"
    for target in ("greedy", "home"):
        rows = table_of(sqlite_db, target, by_position=True)
        path = write(tmp_path / "tabled.csv", rows, "decision_id,arm,position,marginal")
        for names in every:
            tabled = evaluated(run, "--target", path, estimators=names)
            assert_equal(tabled, evaluated(run, target, estimators=names))
    assert tabled[0]["origin"] == f"{path}, marginal at each position"
    other = write(tmp_path / "tabled.parquet", rows[::-1], "decision_id,arm,position,marginal")
    assert figures(evaluated(run, "--target", other, estimators=names)) == figures(tabled)
    with rlrec.open(sqlite_db, now=NOW) as store:
        frame = pandas.DataFrame(rows, columns=["decision_id", "arm", "position", "marginal"])
        assert_equal(store.evaluate(targets={"tabled": frame}, estimators=names), tabled)
    # whole pages and visits are weighed where they are one slot
    for row in evaluated(run, "--target", path, estimators="sn-sips,sn-rips,cascade-dr"):
        assert (row["left_out"], "no-propensity" in row["reasons"]) == (400, True)
    assert evaluated(run, "--target", path, estimators="wis")[0]["left_out"] > 0
    run(*LATER, "evaluate", "--target", path).done()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:7] + rows[8:], " has no row of decision 1, position 2 and arm 'a3'. it needs a marg"),
        (lambda rows: [*rows, (1, "a0", 4, 0.25)], "row 2401, decision 1: its page ends at position 3"),
        (lambda rows: [(1, "a0", 1.5, 0.25), *rows[1:]], "row 1, decision 1: '1.5' is no position"),
        (lambda rows: [(1, "a0", 1, 0.26), *rows[1:]], "decision 1: its probabilities add up to 1.01, not to 1"),
        (lambda rows: [(1, arm, at, float(arm == "a0")) for _, arm, at, _ in rows[:12]] + rows[12:], "is 3 times on"),
        (lambda rows: [*rows, rows[0]], "row 2401, decision 1: its arm has another row there"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_probabilities_at_positions_is_one_line(
    sqlite_db: str, tmp_path: Path, change: Callable[[list[Row]], list[Row]], message: str
) -> None:
    run = filled(sqlite_db, three_slots)
    rows = [(row, f"a{arm}", at, 0.25) for row in range(1, 201) for at in (1, 2, 3) for arm in range(4)]
    path = write(tmp_path / "tabled.csv", change(rows), "decision_id,arm,position,marginal")
    result = run(*LATER, "evaluate", "--target", path, "--estimator", "ips")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert message in result.stderr
    good = write(tmp_path / "good.csv", rows, "decision_id,arm,position,marginal")
    for words in (("--temperature", "2"), ("--greedy",)):
        result = run(*LATER, "evaluate", "--target", good, *words)
        assert f"{good} has marginals. leave out --temperature" in result.stderr


def test_scores_need_a_way_to_probabilities(sqlite_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = filled(sqlite_db, logged)
    rows = table_of(sqlite_db, "uniform")
    scores = write(tmp_path / "tabled.csv", rows, "decision_id,arm,score")
    for words, message in (
        (("--target", scores), f"{scores} has scores. --temperature T makes"),
        (
            ("--target", scores, "--greedy", "--temperature", "1"),
            "--temperature is 1. it is above 0, for a --target, without",
        ),
        (("--target", scores, "--temperature", "0"), "--temperature is 0. it is above 0"),
        (("--target", scores, "--temperature", "1e-300"), "--temperature is 1e-300. it is above 0"),
        (("uniform", "--temperature", "1"), "--temperature is 1. it is above 0, for a --target"),
        (("uniform", "--fitted-on", "until=2026-01-01"), "--fitted-on is given, and no table by decision"),
        (("--target", scores, "--temperature", "1", "--fitted-on", "policy=nobody"), "unknown policy 'nobody'"),
        ((), "Missing argument 'TARGET...', or --target FILE."),
        (("--target", scores, "--target", scores, "--temperature", "1"), "two --target have the name tabled. write"),
        (
            ("--target", f"home={scores}", "--greedy"),
            "--target home has the name of another target. write --target NAME=FILE",
        ),
        (("--target", f"uniform={scores}", "--greedy"), "--target uniform has the name of another target"),
    ):
        result = run(*LATER, "evaluate", *words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr, result.stderr
    (row,) = evaluated(run, "--target", f"b={scores}", "--temperature", "0.5", estimators="ips")
    assert (row["target"], row["origin"]) == ("b", f"{scores}, score at temperature 0.5")
    text = run(*LATER, "evaluate", "--target", f"b={scores}", "--temperature", "0.5").stdout
    assert f"b: {scores}, score at temperature 0.5\n" in text
    folder = tmp_path / "share=1"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    write(folder / "scores.csv", rows, "decision_id,arm,score")
    (row,) = evaluated(run, "--target", "share=1/scores.csv", "--temperature", "1", estimators="ips")
    assert (row["target"], row["origin"]) == ("scores", "share=1/scores.csv, score at temperature 1")


def changed(number: int, *cells: object) -> Callable[[list[Row]], list[Row]]:
    """The rows with another one in place of one."""
    return lambda rows: [*rows[:number], cells, *rows[number + 1 :]]


WRONG: dict[str, tuple[Callable[[list[Row]], list[Row]], str]] = {
    "a row missing": (lambda rows: rows[:6] + rows[7:], "has no row of decision 2 and arm 'a2'. it needs a prob"),
    "a decision missing": (lambda rows: rows[4:], "has no row of decision 1 and arm 'a0'"),
    "an unknown decision": (lambda rows: [*rows, (999, "a0", 1.0)], "row 1601, decision 999: the log has no such"),
    "no decision": (changed(5, "x", "a1", 0.25), "row 6: 'x' is no decision_id of the log"),
    "half a decision": (changed(5, 1.5, "a1", 0.25), "row 6: '1.5' is no decision_id of the log"),
    "an unknown arm": (changed(5, 2, "tea", 0.25), "row 6, decision 2: 'tea' is no arm of the catalogue"),
    "another sum": (changed(5, 2, "a1", 0.2501), "row 5, decision 2: its probabilities add up to 1.0001, not to 1"),
    "a NaN": (changed(5, 2, "a1", "nan"), "row 6, decision 2: 'nan' is no probability"),
    "a word": (changed(5, 2, "a1", "?"), "row 6, decision 2: '?' is no probability"),
    "too large a one": (changed(5, 2, "a1", 1e308), "row 6, decision 2: '1e+308' is no probability"),
    "a negative one": (changed(5, 2, "a1", -0.25), "row 6, decision 2: '-0.25' is no probability"),
    "two rows of an arm": (changed(5, 2, "a0", 0.25), "row 6, decision 2: its arm has another row there"),
    "a short row": (changed(5, 2, "a1"), "row 6, decision 2: 'None' is no probability"),
    "a long row": (changed(5, 2, "a1", 0.25, 1), "has the columns decision_id, arm, probability, None"),
    "no row": (lambda rows: [], "has no row. its columns are decision_id or request_id, arm, and probability or score"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_table_is_one_line(sqlite_db: str, tmp_path: Path, case: str) -> None:
    run = filled(sqlite_db, logged)
    rows = [(decision, f"a{arm}", 0.25) for decision in range(1, 401) for arm in range(4)]
    change, message = WRONG[case]
    path = write(tmp_path / "tabled.csv", change(rows))
    result = run(*LATER, "evaluate", "--target", path)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert f"Error: {path} {message}" in result.stderr


def test_a_table_of_newer_decisions_names_the_log_that_it_covers(sqlite_db: str, tmp_path: Path) -> None:
    run = filled(sqlite_db, logged)
    requests = [{"policy": "log", "session": f"late{number}"} for number in range(40)]
    run("--now", "2026-02-25", "recommend", "--input", "-", stdin=requests)
    rows = [(decision, f"a{arm}", 0.25) for decision in range(401, 441) for arm in range(4)]
    path = write(tmp_path / "tabled.csv", rows)
    error = run(*LATER, "evaluate", "--target", path).stderr
    log = error.split("`")[1]
    assert error.endswith("` begins with its first decision, 401\n")
    assert log == "--log since=2026-02-25T00:00:00.000000Z"
    assert_equal(*(evaluated(run, *target, *log.split()) for target in (["--target", path], ["uniform"])))


@pytest.mark.slow
def test_an_arm_that_could_not_be_shown_is_refused(sqlite_db: str, tmp_path: Path) -> None:
    run = filled(sqlite_db, logged)
    run("--now", "2026-02-25", "arm", "retire", "a3")
    run("--now", "2026-02-25", "recommend", "--policy", "log", "--session", "late")
    rows = [(decision, f"a{arm}", 0.25) for decision in range(1, 402) for arm in range(4)]
    result = run(*LATER, "evaluate", "--target", write(tmp_path / "tabled.csv", rows))
    assert "row 1604, decision 401: its arm is not eligible there" in result.stderr
    tabled = evaluated(run, "--target", str(tmp_path / "tabled.csv"), "--log", "until=2026-02-20")
    assert_equal(tabled, evaluated(run, "uniform", "--log", "until=2026-02-20"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, "cannot read {}: No such file or directory"),
        ("empty.csv", b"", "{} has no row"),
        ("columns.csv", b"decision_id,arm,chance\n1,a0,1\n", "{} has the columns decision_id, arm, chance. its"),
        ("more.csv", b"decision_id,arm,probability,score\n1,a0,1,1\n", "{} has the columns decision_id, arm, prob"),
        ("latin.csv", b"decision_id,arm,probability\n1,\xe9,1\n", "cannot read {}: 'utf-8' codec"),
        ("cut.parquet", b"PAR1 and no more", "cannot read {}: "),
        ("cut.ndjson", b'{"decision_id": 1', "cannot read {}: Input data was truncated"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_table_is_refused(
    sqlite_db: str, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    run = filled(sqlite_db, logged)
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    result = run(*LATER, "evaluate", "--target", str(path))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert f"Error: {message.format(path)}" in result.stderr


@pytest.mark.slow
def test_portions_and_partitions_change_nothing(
    sqlite_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked_workers: None
) -> None:
    run = filled(sqlite_db, logged)
    path = write(tmp_path / "tabled.parquet", table_of(sqlite_db, "home")[::-1])
    rewards = write(tmp_path / "reward.csv", table_of(sqlite_db, "uniform"), "decision_id,arm,reward")
    words = ("--target", path, "--reward-model", rewards, "--interval", "normal")
    entire = evaluated(run, *words, estimators=FEW)
    monkeypatch.setattr(decision_tables, "PORTION", 101)
    monkeypatch.setattr("rlrec.app.evaluation.targets.state_probabilities.MAX_CELLS", 500)
    monkeypatch.setattr("rlrec.app.evaluation.models.reward_models.MAX_SPARSE_CELLS", 500)
    assert figures(evaluated(run, *words, estimators=FEW)) == figures(entire)
    logs.in_batches(monkeypatch, 60)
    assert_equal(evaluated(run, *words, estimators=FEW), entire)
    assert_equal(evaluated(run, *words, "--jobs", "2", estimators=FEW), entire)


@pytest.mark.slow
def test_a_table_of_rewards_is_a_model(sqlite_db: str, tmp_path: Path) -> None:
    run = filled(sqlite_db, logged)
    by_arm = write(tmp_path / "arm.csv", [(f"a{arm}", rate) for arm, rate in enumerate(RATES)], "arm,reward")
    rows = [(decision, f"a{arm}", RATES[arm]) for decision in range(400, 0, -1) for arm in range(4)]
    model = "dm,dr,sndr,switch-dr,dros"
    stored = evaluated(run, "home", "uniform", "--reward-model", by_arm, estimators=model)
    for ending in ("csv", "parquet"):
        path = write(tmp_path / f"reward.{ending}", rows, "decision_id,arm,reward")
        answer = evaluated(run, "home", "uniform", "--reward-model", path, estimators=model)
        assert_equal(answer, stored)
        assert all("unknown-fit" in row["reasons"] for row in answer)
    # an estimator that uses no model is not in doubt, and what the model was fitted on can be said
    ips, dr = evaluated(run, "uniform", "--reward-model", path, estimators="ips,dr")
    assert ("unknown-fit" in ips["reasons"], "unknown-fit" in dr["reasons"]) == (False, True)
    for fitted_on, reason in (("none", None), ("until=2026-01-01", None), ("policy=log", "in-sample")):
        ips, dr = evaluated(run, "uniform", "--reward-model", path, "--fitted-on", fitted_on, estimators="ips,dr")
        assert not {"unknown-fit", "in-sample"} & {*ips["reasons"]}
        assert {"unknown-fit", "in-sample"} & {*dr["reasons"]} == ({reason} if reason else set())
    # a good model takes noise out, and a bad one, which puts some in, leaves the estimate where it was
    wrong = write(tmp_path / "wrong.csv", [(row, arm, 9 - 5 * q) for row, arm, q in rows], "decision_id,arm,reward")
    ips, good = evaluated(run, "home", "--reward-model", path, estimators="ips,dr")
    _, bad = evaluated(run, "home", "--reward-model", wrong, estimators="ips,dr")
    assert good["std_error"] < ips["std_error"] < bad["std_error"]
    assert abs(good["value"] - bad["value"]) < 3 * bad["std_error"]
    large = write(tmp_path / "large.csv", [(f"a{arm}", 1e308) for arm in range(4)], "arm,reward")
    result = run(*LATER, "evaluate", "uniform", "--reward-model", large)
    assert f"{large} line 2, the reward is '1e+308'. give a finite number within 1e+100" in result.stderr
    lacking = write(tmp_path / "lacking.csv", rows[:-1], "decision_id,arm,reward")
    result = run(*LATER, "evaluate", "uniform", "--reward-model", lacking)
    assert f"{lacking} has no row of decision 1 and arm 'a3'. it needs a reward" in result.stderr
    result = run(*LATER, "evaluate", "uniform", "--reward-model", path, "--reward-model-by", "hour")
    assert "has rewards by decision, and --reward-model-by names a field" in result.stderr


@pytest.mark.slow
def test_rows_that_a_policy_was_fitted_on_are_in_sample(sqlite_db: str, tmp_path: Path) -> None:
    run = filled(sqlite_db, logged)
    path = write(tmp_path / "tabled.csv", table_of(sqlite_db, "uniform"))
    for fitted_on, reason in (("policy=log", "in-sample"), ("until=2026-01-01", None), ("none", None)):
        tabled, other = evaluated(run, "home", "--target", path, "--fitted-on", fitted_on, estimators="ips")[::-1]
        assert {"in-sample", "unknown-fit"} & {*tabled["reasons"]} == ({reason} if reason else set())
        assert "unknown-fit" not in other["reasons"]


def test_scores_are_not_weighed_on_pages_with_rules_of_a_policy(run_sqlite: Run, tmp_path: Path) -> None:
    """A file of scores knows no cap: the pages of a policy that has one are left out, and counted."""
    run, path = run_sqlite, tmp_path / "scores.csv"
    run("arm", "import", "-", stdin=[{"arm": arm, "features": {"shelf": arm > "b"}} for arm in "abcd"])
    run("policy", "create", "even", "--kind", "uniform")
    run("policy", "create", "capped", "--kind", "uniform", "--param", "most=shelf=1")
    requests = [{"policy": ("even", "capped")[n % 2], "session": f"s{n}", "k": 2} for n in range(80)]
    answers = run("--now", "2026-01-01", "recommend", "--input", "-", "--seed", "5", stdin=requests).lines
    lines = [{"decision_id": row["decision_id"], "position": 1, "events": {"click": 1}} for row in answers[::3]]
    run("--now", "2026-01-01", "feedback", "--input", "-", stdin=lines)
    rows = [(row["decision_id"], arm, number / 3) for row in answers for number, arm in enumerate("abcd")]
    write(path, rows, "decision_id,arm,score")
    words = ("--target", str(path), "--temperature", "1", "--estimator", "rips,pdis", "--json")
    both, alone = (run(*LATER, "evaluate", *words, *log).json for log in ((), ("--log", "policy=even")))
    assert [row["value"] for row in both] == [row["value"] for row in alone]
    assert {(row["left_out"], "page-rules" in row["reasons"]) for row in both} == {(40, True)}
    assert not any("mean-weight" in row["reasons"] for row in both)
