"""The suite still works: one row of it, at a size that says nothing about speed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlrec.cli import program
from tests.benchmarks import epochs, shops
from tests.benchmarks.__main__ import main
from tests.benchmarks.measure import Figure, Setting, growth, table
from tests.benchmarks.returns import answer
from tests.benchmarks.scale import Clock, _bytes
from tests.benchmarks.shops import CONTEXTS, LATER, Lite, logged


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What prepares a store starts no processes."""

    def prepare(command: Sequence[str], *, stdin: bytes = b"", added: Mapping[str, str] | None = None) -> bytes:
        done = CliRunner().invoke(program, command[1:], input=stdin, env=added)
        assert done.exit_code == 0, done.stderr
        return done.stdout_bytes

    monkeypatch.setattr(shops, "said", prepare)


@pytest.mark.slow
def test_a_row_is_measured_against_its_reference(
    in_process: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "found.json"
    main(
        ["-k", "recommend-new", "--scale", "0.001", "--repeats", "1", "--folder", str(tmp_path), "--json", str(result)]
    )
    assert "BROKE" not in capsys.readouterr().out
    first, *_ = json.loads(result.read_text())["figures"]
    assert first["reference"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


@pytest.mark.slow
def test_the_prepared_log_is_sound(in_process: None, tmp_path: Path) -> None:
    setting = Setting(folder=tmp_path, scale=0.01)
    shop = logged(Lite(setting), setting, 400, visit=4)
    audit = CliRunner().invoke(program, ["--db", shop.db, "doctor", "--json"])
    checks = {finding["check"] for finding in json.loads(audit.stdout)["findings"]}
    assert checks == {"draws"}  # its arms were not drawn from its seeds
    sizes = _bytes(shop, tmp_path / "none")
    assert sizes["stored"] > 400 * 200  # more than 200 bytes a decision
    assert (sizes["wal"], sizes["parquet"]) == (0, 0)
    assert Clock(None)(lambda: None)[1] == 0  # seconds of a server, which SQLite has none of


@pytest.mark.slow
def test_every_visit_of_the_log_to_train_on_is_used(in_process: None, tmp_path: Path) -> None:
    setting = Setting(folder=tmp_path, scale=0.01)
    shop = epochs.remembering(setting, 150)
    train = ["train-pg", "visits", "--epochs", "3", "--patience", "3", "--seed", "1", "--log", "policy=log", "--json"]
    trained = CliRunner().invoke(program, ["--db", shop.db, *train], env=LATER)
    assert "left out" not in trained.stderr
    answer = json.loads(trained.stdout)
    sessions = 150 + setting.size(CONTEXTS)  # those of the log, and one for each context
    assert (answer["sessions"], epochs.epochs_of(shop)) == (sessions, answer["epochs"])


def test_a_goal_is_of_the_ratio_where_there_is_a_reference() -> None:
    assert Figure(name="x", value=130, unit="ms", reference=100, at_most=1.35).passed is True
    assert Figure(name="x", value=130, unit="ms", at_most=100).passed is False
    assert Figure(name="x", value=130, unit="ms", reference=100).passed is None


def test_what_drowned_in_noise_passes_no_goal() -> None:
    assert Figure(name="x", value=math.nan, unit="/s", at_least=1).passed is False
    assert growth("x", {10: 1.0, 30: math.nan, 100: 10.0}).passed is False


def test_growth_of_a_linear_time_is_one() -> None:
    assert growth("x", {10: 1.0, 30: 3.0, 100: 10.0}).value == pytest.approx(1)


def test_the_table_says_pass_or_fail() -> None:
    *_, line = table([Figure(name="x", value=2, unit="s", reference=1, at_most=1.5)])
    assert line.split() == ["x", "2", "s", "1", "s", "2.000", "<=", "1.5", "FAIL"]


@pytest.mark.simulation
def test_a_log_of_clicks_says_that_uniform_earns_more_returns(tmp_path: Path) -> None:
    """Seeded: .24 is what fresh users of uniform earn on a page (`-k returns`)."""
    row = answer(Setting(folder=tmp_path), 1, 1_200)
    assert (row["estimator"], row["unit"], row["verdict"]) == ("effects", "slate", "weak")
    assert row["served"] < row["value"]
    assert row["lower"] < 0.24 < row["upper"]
    assert row["answer"] in ("better", "unknown")
