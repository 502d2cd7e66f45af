"""`recommend --input` and `feedback --input`: lines a second, against the driver's bulk calls for the same rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from rlrec.policy.gradients.history import N_REMEMBERED
from tests.benchmarks import replay
from tests.benchmarks.measure import Figure, Sample, Setting, beyond, growth, medians, process, rlrec, three
from tests.benchmarks.shops import (
    FIRST,
    SOON,
    Lite,
    Postgres,
    Shop,
    copied,
    logged,
    ndjson,
    postgres_server,
    reminded,
    stocked,
    tell,
)

FEW = 10  # lines of the run that stands for the start-up
LINES = 100_000
NOW = SOON["RLREC_NOW"]
Line = dict[str, Any]


def recommend(setting: Setting) -> Iterator[Figure]:
    """Sessions exist, no request ids."""
    size = setting.size(LINES)
    base = reminded(logged(Lite(setting), setting, size))
    tell(base, "recommend", "--input", "-", lines=_visitors(200), now=NOW)
    stream = Stream(setting, base, _visitors(size), replay.DECIDED, ["recommend"])
    yield from stream.figures("recommend --input", at_least=1 / 3, rate=40_000)


def recommend_new(setting: Setting) -> Iterator[Figure]:
    """A new session and a request id a line."""
    base = stocked(Lite(setting), setting)
    stream = Stream(setting, base, _newcomers(setting.size(LINES)), replay.DECIDED, ["recommend"])
    yield from stream.figures("recommend --input, new session and request id", at_least=1 / 3)


def recommend_long(setting: Setting) -> Iterator[Figure]:
    """Visits that remember all they can: each line reads and writes 64 slots."""
    size, visits = setting.size(LINES // 5), 1_000
    base = stocked(Lite(setting), setting)
    lines: list[Line] = [
        {"policy": "home", "session": f"l{number % visits}"} for number in range(N_REMEMBERED * visits)
    ]
    tell(base, "recommend", "--input", "-", lines=lines, now=NOW)
    stream = Stream(setting, base, lines[:size], replay.DECIDED, ["recommend"])
    yield from stream.figures("recommend --input, visits of 64 slots and more", at_least=1 / 3)


def feedback(setting: Setting) -> Iterator[Figure]:
    """Events with keys and without, in one transaction (the default) and group by group."""
    size = setting.size(LINES)
    base = served(Lite(setting), setting, size)
    by_group = ["feedback", "--on-error", "quarantine", "--rejects", str(setting.path(".rejects"))]
    for name, lines, rate in (("with keys", _keyed(_clicks(size)), 40_000), ("without keys", _clicks(size), 80_000)):
        stream = Stream(setting, base, lines, replay.HEARD, ["feedback"], complete=True)
        yield from stream.figures(f"feedback --input, {name}", at_least=1 / 3, rate=rate)
        stream = Stream(setting, base, lines, replay.HEARD, by_group)
        yield from stream.figures(f"feedback --input by groups, {name}", at_least=1 / 3, rate=rate)


def feedback_mixed(setting: Setting) -> Iterator[Figure]:
    """Several events of a decision, spread over the input."""
    size = setting.size(LINES)
    base = served(Lite(setting), setting, size // 4)
    draw = random.Random(9)
    kinds = [{"dwell_s": 12.5}, {"click": 1.0}, {"click": 1.0, "dwell_s": 40.0}]
    lines = [{"decision_id": FIRST + draw.randrange(size // 4), "events": draw.choice(kinds)} for _ in range(size)]
    stream = Stream(setting, base, _keyed(lines), replay.HEARD, ["feedback"], complete=True)
    yield from stream.figures("feedback --input, many events a decision", at_least=1 / 3)


def on_postgres(setting: Setting) -> Iterator[Figure]:
    """Both on PostgreSQL against COPY."""
    size = setting.size(LINES // 2)
    with postgres_server(setting) as server:
        base = reminded(logged(Postgres(server), setting, size))
        tell(base, "recommend", "--input", "-", lines=_visitors(200), now=NOW)
        stream = Stream(setting, base, _visitors(size), replay.DECIDED, ["recommend"])
        yield from stream.figures("PostgreSQL: recommend --input", at_least=1 / 4)
        base.drop()
        base = served(Postgres(server), setting, size)
        for name, lines in (("with keys", _keyed(_clicks(size))), ("without keys", _clicks(size))):
            stream = Stream(setting, base, lines, replay.HEARD, ["feedback"], complete=True)
            yield from stream.figures(f"PostgreSQL: feedback --input, {name}", at_least=1 / 4)
        base.drop()


RULED_ARMS, PERSONS = 100_000, 40
RULES: dict[str, Line] = {
    "a pin": {"page": {"pin": {"2": "a17"}}},
    "a cap": {"page": {"most": {"shelf": 2}}},
    "two caps": {"page": {"most": {"shelf": 2, "brand": 1}}},
    "a least share": {"page": {"least": {"a17": 0.05}}},
    "arms gone for each person": {"not_after": ["click"]},
}


def ruled(setting: Setting) -> Iterator[Figure]:
    """Requests of persons who clicked on arms of their own, among very many arms, with a rule and without one."""
    base, arms = Lite(setting), setting.size(RULED_ARMS)
    tell(base, "init")
    features = [{"shelf": number % 500, "brand": number * 7919 % 3_000} for number in range(arms)]
    tell(base, "arm", "import", "-", lines=[{"arm": f"a{n}", "features": row} for n, row in enumerate(features)])
    tell(base, "policy", "create", "home", "--kind", "thompson")
    lines: list[Line] = [{"policy": "home", "session": f"s{number}", "k": 5} for number in range(PERSONS)]
    tell(base, "recommend", "--input", "-", lines=lines, now=NOW)
    clicks = [{"decision_id": row + 1, "position": 2, "events": {"click": 1}} for row in range(PERSONS)]
    tell(base, "feedback", "--input", "-", lines=clicks, now=NOW)
    streams = {
        name: Stream(setting, base, [line | rule for line in lines], replay.DECIDED, ["recommend"])
        for name, rule in {"none": {}, **RULES}.items()
    }
    result = medians(setting.times(5), {name: partial(stream.run, PERSONS) for name, stream in streams.items()})
    seconds = {name: 1000 * setting.seconds(sample) for name, sample in result.items()}
    for name in RULES:
        what = f"{PERSONS} requests at {arms:,} arms, {name}"
        yield Figure(name=what, value=seconds[name], unit="ms", reference=seconds["none"], at_most=1.5)


class Stream:
    """A command that reads lines, on copies of `base`. complete: all of its groups are one transaction."""

    def __init__(
        self, setting: Setting, base: Shop, lines: Sequence[Line], queries: Sequence[tuple[str, str, str]],
        command: Sequence[str], *, complete: bool = False,
    ) -> None:  # fmt: skip
        self.setting, self.base, self.lines, self.queries = setting, base, lines, queries
        self.command, self.complete = command, complete

    def figures(self, name: str, *, at_least: float, rate: float | None = None) -> Iterator[Figure]:
        """Lines a second without the start-up, against the reference, against `rate`; and how the time grows."""
        *_, size = sizes = three(len(self.lines))
        calls: dict[str, Callable[[], Sample]] = {str(n): partial(self.run, n) for n in (FEW, *sizes)}
        calls["reference"] = partial(self._reference, self._groups())
        result = medians(self.setting.times(5), calls)
        # The server of PostgreSQL works in other processes: only the wall clock sees it.
        seconds = {n: s.wall if self.base.postgres else self.setting.seconds(s) for n, s in result.items()}
        spent = beyond(seconds, FEW, sizes)
        lines = (size - FEW) / spent[size]
        yield Figure(name=name, value=lines, unit="/s", reference=size / seconds["reference"], at_least=at_least)
        if rate is not None:
            yield Figure(name=f"{name}: lines a second", value=lines, unit="/s", at_least=rate)
        yield growth(name, spent)

    def run(self, size: int) -> Sample:
        with copied(self.base) as shop:
            return self._run(shop, size)

    def _run(self, shop: Shop, size: int) -> Sample:
        source = self.setting.path(".ndjson")
        source.write_bytes(ndjson(self.lines[:size]))
        name, *options = self.command
        used = process(rlrec("--db", shop.db, name, "--input", source, *options), added=SOON)
        source.unlink()
        return used

    def _groups(self) -> list[replay.Group]:
        """What the command writes for all lines."""
        before = replay.marks(self.base, "home")
        with copied(self.base) as shop:
            self._run(shop, len(self.lines))
            groups = replay.groups(shop, before, self.queries)
        if not self.complete:
            return groups
        places = {line.get("key", line["decision_id"]): number for number, line in enumerate(self.lines)}
        return [portion for group in groups for portion in replay.portions(group, places)]

    def _reference(self, groups: Sequence[replay.Group]) -> Sample:
        with copied(self.base) as shop:
            return replay.written(shop, [groups] if self.complete else [[group] for group in groups])


def _visitors(size: int) -> list[Line]:
    """One line of each of the prepared sessions, in no order."""
    order = list(range(1, size + 1))
    random.Random(7).shuffle(order)
    return [{"policy": "home", "session": f"s{number}"} for number in order]


def _newcomers(size: int) -> list[Line]:
    return [{"policy": "home", "session": f"n{number}", "request_id": f"r{number}"} for number in range(size)]


def served(shop: Shop, setting: Setting, size: int) -> Shop:
    """A store with decisions FIRST, FIRST + 1, ... of `home`, a visit each."""
    tell(stocked(shop, setting), "recommend", "--input", "-", lines=_newcomers(size), now=NOW)
    return shop


def _clicks(size: int) -> list[Line]:
    """A click on every decision, in no order."""
    order = list(range(FIRST, FIRST + size))
    random.Random(8).shuffle(order)
    return [{"decision_id": number, "events": {"click": 1}} for number in order]


def _keyed(lines: Sequence[Line]) -> list[Line]:
    return [line | {"key": f"k{number}"} for number, line in enumerate(lines)]
