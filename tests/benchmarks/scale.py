"""python -m tests.benchmarks.scale: what a decision costs on this machine, and what many a day would cost.

Commands work on stores that grow day by day. A cost is the slope of a straight line through CPU seconds or bytes, so
that the start of a command counts for nothing. CPU, since other work on a machine stretches every other clock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate, pairwise
from math import ceil, nan
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.measure import Setting, machine
from tests.benchmarks.serve import CLIENTS, http_client, server
from tests.benchmarks.shops import ARMS, Lite, Postgres, Shop, ndjson, postgres_server, tell

SIZE, FEW = 40_000, 400  # decisions of the first full day; of the day before it, which stands for the start-up
SLOTS, VISIT, VISITS, CLICKS = 5, 4, 3, 0.5  # of a page; decisions of a visit; visits of a user; clicks of a decision
SHORT, LONG = 2, 6  # epochs
DAYS = [f"2026-01-0{day}" for day in range(1, 5)]  # the last one is for `serve`
NOON, MATURE = "T12:00:00Z", "2026-02-01"
DAY_S, DAY_H, MONTH_D = 86_400, 24, 30
MICRO, GB = 1e-6, 1e9


class Cost(NamedTuple):
    """CPU seconds of rlrec and of the server of the database for a decision, or its bytes. bend: of the last day over
    those of the first full day, 1 where the line is straight."""

    program: float
    server: float = 0.0
    bend: float = nan


class Use(NamedTuple):
    """What a command used: as in Cost, but for so many decisions."""

    decisions: float
    program: float
    server: float = 0.0


def cost(uses: Sequence[Use]) -> Cost:
    """The straight line through totals by number of decisions."""
    sizes = [use.decisions for use in uses]
    slopes = [statistics.linear_regression(sizes, column).slope for column in [*zip(*uses, strict=True)][1:]]
    pieces = [(sum(b[1:]) - sum(a[1:])) / (b[0] - a[0]) for a, b in pairwise(uses)]
    return Cost(*slopes, bend=pieces[-1] / pieces[0] if pieces[0] > 0 else nan)


def totals(uses: Sequence[Use]) -> list[Use]:
    """Totals of days, without the start-up: the first day is hardly more."""
    beyond = [[value - start for value, start in zip(use, uses[0], strict=True)] for use in uses]
    return [Use(*row) for row in zip(*map(accumulate, zip(*beyond, strict=True)), strict=True)]


# -- measure --


class Clock:
    """CPU seconds of the processes that this one has waited for, and of a server of PostgreSQL."""

    def __init__(self, postmaster: int | None) -> None:
        self.postmaster = postmaster

    def __call__(self, work: Callable[[], object]) -> tuple[float, float]:
        before = self._now()
        work()
        program, of_server = (after - start for after, start in zip(self._now(), before, strict=True))
        return program, of_server

    def _now(self) -> tuple[float, float]:
        used = os.times()
        return used.children_user + used.children_system, sum(self._of_server()) / os.sysconf("SC_CLK_TCK")

    def _of_server(self) -> Iterator[int]:
        for path in Path("/proc").glob("[0-9]*/stat") if self.postmaster else ():
            try:
                parent, *numbers = path.read_text().rpartition(")")[2].split()[1:15]
            except FileNotFoundError:
                continue  # it has ended, and the postmaster has its time
            if self.postmaster in (int(parent), int(path.parent.name)):
                yield sum(map(int, numbers[-4:]))  # its own, and of processes that it waited for


DAILY = ("recommend", "feedback", "export", "serve", "prune", "stored", "wal", "parquet")


def costs(shop: Shop, setting: Setting, postmaster: int | None = None) -> dict[str, Cost]:
    """What a decision costs, by what is done with it."""
    clock, draw, size, folder = Clock(postmaster), random.Random(5), setting.size(SIZE), setting.path(".parquet")
    folder.unlink()
    uses: dict[str, list[Use]] = {}

    def note(name: str, decisions: int, *words: object, lines: Sequence[object] = (), now: str = MATURE) -> None:
        uses.setdefault(name, []).append(Use(decisions, *clock(lambda: tell(shop, *words, lines=lines, now=now))))

    def note_bytes(decisions: int, before: Mapping[str, int]) -> None:
        for name, after in _bytes(shop, folder).items():
            uses.setdefault(name, []).append(Use(decisions, after - before[name]))

    tell(shop, "init")
    tell(shop, "arm", "import", "-", lines=[{"arm": f"a{number}"} for number in range(1, ARMS + 1)])
    for name, kind in (("home", "thompson"), ("visits", "gradient")):
        tell(shop, "policy", "create", name, "--kind", kind, "--param", "floor=0.05")
    sizes, total = [min(FEW, size // 2), size, 2 * size], 0
    train = ("train-pg", "visits", "--dry-run", "--seed", 1, "--epochs")
    judge = ("evaluate", "uniform", "--estimator", "ips,snips,dr")
    for day, number in zip(DAYS, sizes, strict=False):
        before = _bytes(shop, folder)
        note("recommend", number, "recommend", "--input", "-", lines=requests(total, number), now=day + NOON)
        clicks = [click(n, draw) for n in range(total + 1, total + number + 1) if draw.random() < CLICKS]
        note("feedback", len(clicks), "feedback", "--input", "-", lines=clicks, now=day + NOON)
        total += number
        note("export", number, "export-log", folder, "--layout", "parquet")
        note_bytes(number, before)
        note("evaluate", total, *judge)
        note("evaluate-parquet", total, *judge, "--log", f"parquet:{folder}")
        if day != DAYS[0]:
            note("train", total, *train, SHORT)
    note("train-long", total, *train, LONG)
    for number in (sizes[0], size // 4):
        uses.setdefault("serve", []).append(Use(number, *clock(partial(_serve, shop, number))))
    for number, day in zip(sizes, DAYS[1:], strict=True):
        note("prune", number, "db", "prune", "--before", day, "--yes")
    [long] = uses.pop("train-long")
    epoch = Cost(*((a - b) / (LONG - SHORT) / total for a, b in zip(long[1:], uses["train"][-1][1:], strict=True)))
    result = {name: cost(totals(rows) if name in DAILY else rows) for name, rows in uses.items()}
    read = result.pop("train")
    result["train-read"] = read._replace(program=read.program - SHORT * epoch.program)
    return result | {"train-epoch": epoch}


def requests(start: int, number: int) -> list[dict[str, Any]]:
    """Requests of visits of some decisions each, of users who come some times; each visit has its context."""
    visits = [start + step % max(number // VISIT, 1) for step in range(number)]
    return [
        {"policy": "home", "session": f"s{visit}", "user": f"u{visit // VISITS}", "k": SLOTS,
         "context": {"device": f"d{visit % 3}", "hour": visit % 24, "segment": f"g{visit % 2_000}"}}
        for visit in visits
    ]  # fmt: skip


def click(decision: int, draw: random.Random) -> dict[str, Any]:
    """A click on some slot of a page, with a key."""
    position = draw.randint(1, SLOTS)
    return {"decision_id": decision, "position": position, "events": {"click": 1}, "key": f"k{decision}"}


def _bytes(shop: Shop, folder: Path) -> dict[str, int]:
    """What lies in the store, in the folder of Parquet, and what was written ahead of the store."""
    parquet = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    if not shop.postgres:
        return {"stored": Path(shop.db).stat().st_size, "wal": 0, "parquet": parquet}
    with closing(shop.connect()) as connection:
        sizes = "SELECT pg_database_size(current_database()), pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"
        stored, wal = map(int, connection.execute(sizes).fetchone())
    return {"stored": stored, "wal": wal, "parquet": parquet}


def _serve(shop: Shop, number: int) -> None:
    """Requests of many clients of one server, a line each, over connections that stay open."""

    def client(start: int) -> None:
        with http_client(address) as talk:
            for line in lines[start::CLIENTS]:
                if "decision_id" not in (answer := json.loads(talk(ndjson([line])))):
                    raise RuntimeError(f"{line} was refused: {answer}")

    lines = [line | {"op": "recommend", "session": f"{line['session']}-{number}"} for line in requests(0, number)]
    with server(shop.db, DAYS[-1] + NOON) as address, ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(client, range(CLIENTS)))


# -- extrapolate --


@dataclass(frozen=True)
class Plan:
    """What is wanted, and what it is bought for: the prices are assumptions."""

    decisions: float = 1e8
    events: float = CLICKS
    peak: float = 3.0
    busy: float = 0.5
    cores: int = 16
    copies: int = 2
    hot_days: float = 7
    cold_days: float = 400
    judged_days: float = 7
    trained: float = 0.05
    epochs: int = 20
    core_hour: float = 0.05
    disk: float = 0.10
    cold: float = 0.02


HELP = {
    "decisions": "a day", "events": "of a decision", "peak": "busiest second over the mean of the day",
    "busy": "share of a core that may be in use at the peak", "cores": "of a machine",
    "copies": "of the database: the primary and its replicas", "hot_days": "that stay in the database",
    "cold_days": "that stay in Parquet", "judged_days": "that a night's `evaluate` reads",
    "trained": "share of a day's decisions that a night's `train-pg` reads", "epochs": "of `train-pg`",
    "core_hour": "price of a core for an hour", "disk": "price of a GB of disk for a month",
    "cold": "price of a GB of files for a month",
}  # fmt: skip


class Need(NamedTuple):
    """A line of the plan."""

    what: str
    amount: float
    unit: str


def needs(plan: Plan, of: Mapping[str, Cost]) -> list[Need]:
    """What so many decisions a day need on PostgreSQL, from straight lines."""
    served, told = of["serve"], of["feedback"]
    at_peak = plan.decisions / DAY_S * plan.peak
    program, database = (
        ceil(at_peak * (a + plan.events * b) / plan.busy)
        for a, b in ((served.program, told.program), (served.server, told.server))
    )
    # Writers of one policy take turns, in groups: at worst with all that these cost.
    locked = at_peak * sum(of["recommend"][:2]) + at_peak * plan.events * sum(told[:2])

    def night(name: str, share: float = 1.0) -> float:
        return plan.decisions * share * (of[name].program + of[name].server) / 3600

    jobs = [
        Need("`export-log` of a day", night("export"), "core hours"),
        Need(f"`evaluate` of {plan.judged_days:g} days", night("evaluate", plan.judged_days), "core hours"),
        Need("`evaluate` of a day in Parquet", night("evaluate-parquet"), "core hours"),
        Need(f"`train-pg` on {plan.trained:.0%} of a day, {plan.epochs} epochs",
             night("train-read", plan.trained) + plan.epochs * night("train-epoch", plan.trained), "core hours"),
        Need("`db prune` of a day", night("prune"), "core hours"),
    ]  # fmt: skip
    hot = plan.decisions * of["stored"].program * plan.hot_days * plan.copies / GB
    cold = plan.decisions * of["parquet"].program * plan.cold_days / GB
    cores = program + database * plan.copies
    prices = [
        Need("cores that serve", cores * DAY_H * MONTH_D * plan.core_hour, "a month"),
        Need("cores at night", sum(job.amount for job in jobs) * MONTH_D * plan.core_hour, "a month"),
        Need("disks", hot * plan.disk, "a month"),
        Need("files of Parquet", cold * plan.cold, "a month"),
    ]
    return [
        Need("decisions a second at the peak", at_peak, ""),
        Need("`serve` at the peak", program, "cores"),
        Need("the primary at the peak", database, "cores"),
        Need("work under the lock of one policy, at most", locked, "s a second"),
        Need("stores", max(ceil(database / plan.cores), ceil(locked / plan.busy)), ""),
        Need("written ahead (WAL)", plan.decisions * of["wal"].program / GB, "GB a day"),
        Need("database", plan.decisions * of["stored"].program / GB, "GB a day"),
        Need(f"disks for {plan.hot_days:g} days, {plan.copies} copies", hot, "GB"),
        Need(f"Parquet for {plan.cold_days:g} days", cold, "GB"),
        *jobs, *prices, Need("all", sum(price.amount for price in prices), "a month"),
    ]  # fmt: skip


# -- show --

ROWS = {
    "recommend": "`recommend --input`, groups of 1,000", "serve": f"`serve`, {CLIENTS} clients that wait",
    "feedback": "`feedback --input`, an event with a key", "evaluate": "`evaluate`, `ips`, `snips`, `dr`",
    "evaluate-parquet": "the same from Parquet", "train-read": "`train-pg`, reading",
    "train-epoch": "`train-pg`, an epoch", "export": "`export-log --layout parquet`", "prune": "`db prune`",
    "stored": "stored", "wal": "written ahead (WAL)", "parquet": "stored in Parquet",
}  # fmt: skip
IN_BYTES = ("stored", "wal", "parquet")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table, numbers on the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for first, *others in (head, rules, *rows):
        cells = [first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]
        yield f"| {' | '.join(cells)} |"


def number(value: float) -> str:
    """Three digits."""
    return f"{float(f'{value:.3g}'):,.10g}"


def cost_table(lite: Mapping[str, Cost], postgres: Mapping[str, Cost]) -> Iterator[str]:
    """Costs of a decision in microseconds and bytes."""
    rows = []
    for name, what in ROWS.items():
        factor, unit = (1.0, "bytes") if name in IN_BYTES else (1 / MICRO, "us")
        cells = [lite[name].program, postgres[name].program, postgres[name].server]
        shown = [number(cell * factor) if cell > 0 else "" for cell in cells]
        bends = [f"{of[name].bend:.2f}" if of[name].bend == of[name].bend else "" for of in (lite, postgres)]
        rows.append([what, unit, *shown, " ".join(filter(None, bends))])
    return markdown(["a decision", "", "SQLite", "PostgreSQL: rlrec", "its server", "bend"], rows)


def plan_table(plan: Plan, postgres: Mapping[str, Cost]) -> Iterator[str]:
    """What a plan needs."""
    return markdown(
        [f"{plan.decisions:,.0f} decisions a day", "", ""],
        [[need.what, number(need.amount), need.unit] for need in needs(plan, postgres)],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print both tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help=f"times {3 * SIZE:,} decisions [default: 1]")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="for the stores, some GB")
    parser.add_argument("--costs", metavar="FILE", help="measured before (--json): extrapolate alone")
    parser.add_argument("--json", metavar="FILE", help="write the costs there too")
    parser.add_argument("--page", metavar="FILE", help="put the tables in the place of those in this page")
    for field in fields(Plan):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), default=field.default,
                            help=f"{HELP[field.name]} [default: {field.default:g}]".replace("%", "%%"))  # fmt: skip
    asked = vars(parser.parse_args(arguments))
    plan = Plan(**{field.name: asked[field.name] for field in fields(Plan)})
    if asked["costs"]:
        measured, *both = json.loads(Path(asked["costs"]).read_text())
        lite, postgres = ({name: Cost(*row) for name, row in part.items()} for part in both)
    else:
        measured = 3 * int(SIZE * asked["scale"])
        lite, postgres = measure(Path(asked["folder"]), asked["scale"])
    if asked["json"]:
        Path(asked["json"]).write_text(json.dumps([measured, lite, postgres], indent=1) + "\n")
    tables = ["\n".join(cost_table(lite, postgres)), "\n".join(plan_table(plan, postgres))]
    conditions = f"Measured on {datetime.now(UTC):%Y-%m-%d} with {measured:,} decisions; {machine()}"
    print(*tables, conditions, sep="\n\n")
    if asked["page"]:
        page = Path(asked["page"])
        page.write_text(replaced(page.read_text(), tables, conditions))
    return 0


def replaced(page: str, tables: Sequence[str], conditions: str) -> str:
    """A page with these tables in the place of those with the same first cell in their head, and these conditions."""
    for table in tables:
        head = re.escape(re.split(r" {2,}| \|", table)[0])
        page = re.sub(rf"^{head}.*\n(?:\|.*\n)+", lambda _, table=table: f"{table}\n", page, flags=re.MULTILINE)
    return re.sub(r"^Measured on \d.*$", conditions, page, flags=re.MULTILINE)


def measure(folder: Path, scale: float) -> list[dict[str, Cost]]:
    """Costs on SQLite and on PostgreSQL."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="rlrec-scale-") as name:
        setting = Setting(folder=Path(name), scale=scale)
        return [costs(Lite(setting), setting), server_costs(setting)]


def server_costs(setting: Setting) -> dict[str, Cost]:
    """Costs on a server of PostgreSQL that goes afterwards."""
    with postgres_server(setting) as url:
        data = Path(url.partition("?host=")[2]) / "data"
        postmaster = int((data / "postmaster.pid").read_text().splitlines()[0])
        return costs(Postgres(url), setting, postmaster)


if __name__ == "__main__":
    sys.exit(main())
