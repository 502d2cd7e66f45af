"""The arithmetic of the plan, by hand; and the whole of it once, at a size that says nothing about costs."""

from __future__ import annotations

import json
import re
import tempfile
from math import isnan
from pathlib import Path

import pytest

from tests.benchmarks import scale, shops
from tests.benchmarks.measure import Setting
from tests.benchmarks.scale import ROWS, Cost, Plan, Use, cost, main, needs, number, replaced, totals
from tests.docs.pages import ROOT

LINE = [Use(100, 5.2, 1.1), Use(1_000, 7.0, 2.0), Use(2_000, 9.0, 3.0), Use(4_000, 13.0, 5.0)]
EACH = {name: Cost(0.0) for name in ROWS}
ROWS_SHOWN = [*ROWS.values(), *(need.what for need in needs(Plan(), EACH))]


def test_a_cost_is_the_slope_of_the_line() -> None:
    assert cost(LINE) == pytest.approx((0.002, 0.001, 1.0))


def test_a_cost_that_grows_bends() -> None:
    assert cost([Use(0, 0.0), Use(10, 1.0), Use(20, 2.0), Use(40, 6.0)]).bend == pytest.approx(2.0)


def test_where_nothing_was_used_nothing_bends() -> None:
    assert isnan(cost([Use(0, 0.0), Use(10, 0.0), Use(20, 0.0)]).bend)


def test_totals_of_days_leave_out_the_start_up() -> None:
    assert totals([Use(10, 1.0, 0.5), Use(110, 3.0, 1.5), Use(210, 5.0, 0.5)]) == [(0, 0, 0), (100, 2, 1), (300, 6, 1)]


def amounts(plan: Plan, **costs: Cost) -> dict[str, float]:
    """Amounts by what they are, where all but these costs are nothing."""
    return {need.what: need.amount for need in needs(plan, EACH | costs)}


def test_cores_are_for_the_peak() -> None:
    plan = Plan(decisions=86_400e3, peak=2, busy=0.5, events=0.5, cores=4, copies=2, core_hour=0.01)
    of = amounts(plan, serve=Cost(0.002, 0.001), feedback=Cost(0.0002, 0.0004))
    assert of["decisions a second at the peak"] == 2_000
    # 2,000 x (2 ms + half of 0.2 ms), and x (1 ms + half of 0.4 ms), on cores that are half busy
    assert (of["`serve` at the peak"], of["the primary at the peak"]) == (9, 5)
    assert of["stores"] == 2  # of 4 cores each
    assert of["cores that serve"] == of["all"] == pytest.approx((9 + 2 * 5) * 24 * 30 * 0.01)


def test_writers_of_a_policy_take_turns() -> None:
    plan = Plan(decisions=86_400e3, peak=2, busy=0.5, events=0.5)
    of = amounts(plan, recommend=Cost(0.0001, 0.0002), feedback=Cost(0.0001, 0.0003))
    # 2,000 times 0.3 ms and half of 0.4 ms make a second of work each second, which one lock may do half of
    assert of["work under the lock of one policy, at most"] == pytest.approx(1)
    assert of["stores"] == 2


def test_disks_hold_days_and_copies() -> None:
    plan = Plan(decisions=1e6, hot_days=7, copies=3, cold_days=100, disk=0.5, cold=0.25)
    of = amounts(plan, stored=Cost(1_000), wal=Cost(2_000), parquet=Cost(500))
    assert (of["database"], of["written ahead (WAL)"]) == (1, 2)  # GB a day
    assert (of["disks for 7 days, 3 copies"], of["Parquet for 100 days"]) == (21, 50)
    assert (of["disks"], of["files of Parquet"], of["all"]) == (10.5, 12.5, 23)


def test_nights_are_core_hours() -> None:
    plan = Plan(decisions=3.6e6, judged_days=7, trained=0.5, epochs=10, core_hour=0.1)
    of = amounts(
        plan, export=Cost(0.001, 0.002), evaluate=Cost(0.001), prune=Cost(0.0, 0.001),
        **{"train-read": Cost(0.002), "train-epoch": Cost(0.0004), "evaluate-parquet": Cost(0.004)},
    )  # fmt: skip
    assert of["`export-log` of a day"] == pytest.approx(3)
    assert of["`evaluate` of 7 days"] == pytest.approx(7)
    assert of["`evaluate` of a day in Parquet"] == pytest.approx(4)
    assert of["`train-pg` on 50% of a day, 10 epochs"] == pytest.approx(0.5 * (2 + 10 * 0.4))
    assert of["`db prune` of a day"] == pytest.approx(1)
    assert of["all"] == pytest.approx(30 * (3 + 7 + 4 + 3 + 1) * 0.1)


def test_ten_times_the_decisions_are_ten_times_the_disks() -> None:
    costs = {name: Cost(1e-4, 1e-4) for name in ROWS}
    once, tenfold = (amounts(Plan(decisions=decisions), **costs) for decisions in (1e8, 1e9))
    for what in ("database", "files of Parquet", "cores at night"):
        assert tenfold[what] == pytest.approx(10 * once[what])


@pytest.mark.parametrize(("value", "shown"), [(1234.5, "1,230"), (12.345, "12.3"), (0.012345, "0.0123"), (9, "9")])
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_tables_of_a_page_are_replaced() -> None:
    page = "# T\n\n| a  |  b |\n| -- | -: |\n| x  |  1 |\n\nMeasured on 2026-01-01.\n\n| c |\n| - |\n| 2 |\n\nEnd\n"
    tables = ["| a   | b |\n| --- | -: |\n| yy  | 3 |", "| d |\n| - |\n| 4 |"]
    assert replaced(page, tables, "Measured on 2026-02-02") == (
        "# T\n\n| a   | b |\n| --- | -: |\n| yy  | 3 |\n\nMeasured on 2026-02-02\n\n| c |\n| - |\n| 2 |\n\nEnd\n"
    )


def test_the_page_has_the_tables_of_the_script() -> None:
    page = (ROOT / "rlrec" / "help" / "scale.md").read_text(encoding="utf-8")
    assert [what for what in ROWS_SHOWN if f"| {what}" not in page] == []
    assert re.search(r"^Measured on \d{4}-\d\d-\d\d with [\d,]+ decisions", page, re.MULTILINE)


def test_measured_costs_are_extrapolated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, wanted = tmp_path / "costs.json", (tmp_path, 0.01)
    costs = [{name: Cost(float(number), 0.5, 1.0) for number, name in enumerate(ROWS)} for _ in range(2)]
    monkeypatch.setattr(scale, "measure", lambda *words: costs if words == wanted else None)
    assert main(["--scale", "0.01", "--folder", str(tmp_path), "--json", str(path)]) == 0
    measured = capsys.readouterr().out
    assert json.loads(path.read_text())[0] == 1_200
    assert main(["--costs", str(path)]) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[:-1] == measured.splitlines()[:-1]  # the load of the machine differs


@pytest.mark.simulation
def test_costs_are_measured(monkeypatch: pytest.MonkeyPatch, forked_rlrec: Path) -> None:
    """Without the start of each process, which is all that so few decisions cost. The folder is one that any other
    pytest leaves open to the user of the server. A server shows all that SQLite does, and seconds of its own."""
    monkeypatch.setattr(shops, "rlrec", lambda *words: [str(forked_rlrec), *map(str, words)])
    with tempfile.TemporaryDirectory(prefix="rlrec-plan-") as folder:
        Path(folder).chmod(0o755)
        costs = scale.server_costs(Setting(folder=Path(folder), scale=0.01))
    assert set(costs) == set(ROWS)
    # A decision has a page of five, and half an event: more than 200 bytes in a store, 150 in few files of Parquet.
    assert min(costs[name].program for name in ("stored", "wal")) > 200
    assert costs["parquet"].program > 150
    # seconds of the server; the slope of a single row may be noise
    assert max(cost.server for cost in costs.values()) > 0
