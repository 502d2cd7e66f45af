"""Days, weeks and dates in a time zone, also where a day has 23 or 25 hours."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from rlrec import times
from rlrec.app.evaluation.rows import groups
from rlrec.app.log import partitions
from rlrec.times import parse
from tests.conftest import Run

HOUR = 3_600_000_000
SPRING, AUTUMN = "2026-03-28T00:00:00Z", "2026-10-24T00:00:00Z"
AFTER = "2027-01-01T00:00:00Z"


def hourly(run: Run, folder: Path, start: str) -> None:
    """A log with a session an hour, for three days."""
    rows = [{"s": f"s{n}", "a": "ab"[n % 2], "t": times.format_time(parse(start) + n * HOUR)} for n in range(72)]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["s", "a", "t"])
    writer.writeheader()
    writer.writerows(rows)
    (folder / "log.csv").write_text(text.getvalue())
    (folder / "map.json").write_text(json.dumps({"session": "s", "arm": "a", "at": "t"}))
    words = ("import-log", folder / "log.csv", "--layout", "csv", "--map", folder / "map.json", "--policy", "old")
    run("--now", AFTER, "-q", *words).done()


def units(run: Run, *words: object, zone: str = "Europe/Berlin") -> dict[str, int]:
    rows = run("--now", AFTER, "-q", "--tz", zone, "outcomes", *words, "--json").done().json["outcomes"]
    return {row["group"]: row["units"] for row in rows if row["metric"] == "visits"}


@pytest.mark.parametrize(
    ("db", "start", "counts"),
    [
        ("sqlite", SPRING, {"2026-03-28": 23, "2026-03-29": 23, "2026-03-30": 24, "2026-03-31": 2}),
        ("postgres", AUTUMN, {"2026-10-24": 22, "2026-10-25": 25, "2026-10-26": 24, "2026-10-27": 1}),
    ],
    indirect=["db"],
)
def test_a_day_has_the_hours_that_clocks_show(run: Run, tmp_path: Path, start: str, counts: dict[str, int]) -> None:
    hourly(run, tmp_path, start)
    assert units(run, "--by", "day") == counts
    assert {*units(run, "--by", "day", zone="UTC").values()} == {24}
    second, third = [*counts][1:3]
    assert units(run, "--log", f"since={second},until={third}") == {None: counts[second]}
    page = tmp_path / "page.html"
    run("--now", AFTER, "-q", "--tz", "Europe/Berlin", "report", page, "--no-estimates").done()
    assert all(day in page.read_text() for day in [second, third])


def test_hours_and_weeks_are_named_as_clocks_show_them(run: Run, tmp_path: Path) -> None:
    hourly(run, tmp_path, AUTUMN)
    hours = [*units(run, "--by", "hour")]
    assert hours[:1] == ["2026-10-24T02:00+02:00"]
    assert hours[24:26] == ["2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00"]
    assert units(run, "--by", "week") == {"2026-10-19": 47, "2026-10-26": 25}
    assert next(iter(units(run, "--by", "hour", zone="UTC"))) == "2026-10-24T00:00Z"


def test_a_zone_that_does_not_exist_is_refused(run: Run) -> None:
    for name in ("Nowhere/City", "Europe", "../etc/passwd", ""):
        refused = run("--tz", name, "status")
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert "no time zone" in refused.stderr


def test_a_zone_comes_from_the_environment_and_ends_with_the_command(run: Run, tmp_path: Path) -> None:
    hourly(run, tmp_path, SPRING)
    words = ("--now", AFTER, "-q", "outcomes", "--by", "day", "--json")
    rows = run(*words, env={"RLREC_TZ": "Asia/Kolkata"}).done().json["outcomes"]
    assert [row["units"] for row in rows if row["metric"] == "visits"] == [19, 24, 24, 5]
    rows = run(*words).done().json["outcomes"]
    assert [row["units"] for row in rows if row["metric"] == "visits"] == [24, 24, 24]


def test_a_day_begins_where_no_midnight_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "zone", times.find_zone("Africa/Cairo"))  # from 00:00 to 01:00 on 2024-04-26
    day = times.day_of(parse("2024-04-26T12:00:00Z"))
    assert times.format_time(times.midnight(day)) == "2024-04-25T22:00:00.000000Z"
    assert [times.day_of(times.midnight(day) - before) for before in (0, 1)] == [day, day - 1]


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York", "Africa/Cairo"])
def test_days_of_many_times_are_those_of_each(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setattr(times, "zone", times.find_zone(zone))
    at = np.random.default_rng(1).integers(times.FIRST, times.LAST, 2_000)
    at = np.r_[at, [times.FIRST, times.LAST, times.midnight(19_839), times.midnight(19_839) - 1]]
    days = groups.day_numbers(at)
    assert days.tolist() == [times.day_of(micros) for micros in at.tolist()]
    assert {times.date(day) for day in days[-4:-2].tolist()} == {"0001-01-01", "9999-12-31"}


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("workers", [(), ("--jobs", 2)])
def test_estimates_and_exposure_have_the_days_of_the_zone(
    run_sqlite: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: tuple[object]
) -> None:
    """The zone reaches other processes, too."""
    hourly(run_sqlite, tmp_path, AUTUMN)
    monkeypatch.setattr(partitions, "count_partitions", lambda decisions: 3)
    words, counts = ("--now", AFTER, "-q", "--tz", "Europe/Berlin"), [22, 25, 24, 1]
    days = [*zip(["2026-10-24", "2026-10-25", "2026-10-26", "2026-10-27"], counts, strict=True)]
    rows = run_sqlite(*words, "exposure", "--by", "day", "--json", *workers).done().json["days"]
    assert [(row["day"], row["decisions"]) for row in rows] == days
    rows = run_sqlite(*words, "evaluate", "uniform", "--estimator", "dm", "--by", "day", "--json", *workers).done().json
    assert [(row["group"], row["n"]) for row in rows if row["by"] == "day"] == days
