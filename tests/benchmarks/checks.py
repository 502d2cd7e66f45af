"""How often checks of the log alarm: on logs in which something is wrong, and on honest ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlrec.app.evaluation.checks import CHECKS
from rlrec.ope.checks.dependence import is_rejected, slots_above_p_value
from tests.app.evaluation import worlds
from tests.benchmarks.measure import Figure, Setting
from tests.ope import paging
from tests.ope.checks import test_arrivals as arriving
from tests.ope.checks import test_slots_above as above
from tests.ope.estimators import test_doubly_robust as modelled
from tests.ope.units import test_strata as logged

BAD, HONEST = 100, 1_000  # logs of each world
FALSE_ALARMS = 0.01


def dependent(seed: int, **readers: Any) -> bool:
    """Whether slots of a log of pages look as if they depended on those above."""
    return is_rejected(slots_above_p_value(above.pages(seed, **readers)))


def refuted(rewards: paging.Rewards, seed: int, *, name: str = "iips", pages: int = 3_000) -> bool:
    """Whether a log of pages refutes an estimator that takes slots to be independent."""
    rows = paging.judged(paging.drawn(rewards, seed, pages=pages), f"{name},rips", interval="normal")
    return any("refuted" in row.reasons for row in rows)


def checks(setting: Setting) -> Iterator[Figure]:
    """Alarms of each check in the logs that it is for, and in honest ones of every shape."""
    bad, honest = setting.size(BAD), setting.size(HONEST)
    for name, is_alarm, of_bad in (
        ("a young import", lambda seed: arriving.sums(seed=seed, days=3.0).raises_alarm, True),
        ("a complete import", lambda seed: arriving.sums(seed=seed, days=3.0, delay=0.01).raises_alarm, False),
        ("loggers at two levels", lambda seed: bool(logged.unlike_of("ips,snips", [1.0, 0.5], seed, n=4_000)), True),
        ("two loggers alike", lambda seed: bool(logged.unlike_of("ips,snips", [1.0, 1.0], seed)), False),
        ("six loggers alike", lambda seed: bool(logged.unlike_of("ips,snips", [1.0] * 6, seed)), False),
        ("readers who stop at a click, dependent-slots", lambda seed: dependent(seed, stops=True, eager=0.5), True),
        ("random pages, dependent-slots", dependent, False),
        ("pages fitted to readers, dependent-slots", lambda seed: dependent(seed, fitted=True), False),
        ("readers who stop at a click, refuted", lambda seed: refuted(paging.cascade, seed, pages=30_000), True),
        ("independent slots, iips refuted", lambda seed: refuted(paging.by_position, seed), False),
        ("independent slots, pbm refuted", lambda seed: refuted(paging.by_position, seed, name="pbm:home"), False),
        ("independent slots, pi refuted", lambda seed: refuted(paging.by_position, seed, name="pi"), False),
        ("dr and snips, wrong propensities", lambda seed: modelled.models_differ(seed, is_wrong=True), True),
        ("dr and snips, right ones", lambda seed: modelled.models_differ(seed, is_wrong=False), False),
    ):
        logs = bad if of_bad else honest
        goal = {"at_least": logs} if of_bad else {"at_most": FALSE_ALARMS * logs}
        yield Figure(name=f"{name}: alarms in {logs}", value=sum(map(is_alarm, range(logs))), unit="", **goal)
    by_reason = {check.reason: check for check in CHECKS if not check.needs_model}
    for reason, makers in worlds.WRONG.items():
        for name, make in makers.items():
            for shape in worlds.SHAPES:
                alarms = sum(worlds.fails(by_reason[reason], make(shape, seed)) for seed in range(bad))
                yield Figure(name=f"{name}, {shape}: alarms in {bad}", value=alarms, unit="", at_least=bad)
    for shape in worlds.SHAPES:
        counts = dict.fromkeys(by_reason, 0)
        for seed in range(honest):
            checked = worlds.checked_rows(worlds.honest(shape, seed))
            for reason, check in by_reason.items():
                sums = check.sums(checked)
                counts[reason] += int(sums is not None and check.fails(sums))
        for reason, count in counts.items():
            name = f"{reason}, honest {shape}: alarms in {honest}"
            yield Figure(name=name, value=count, unit="", at_most=FALSE_ALARMS * honest)
