"""Logs to evaluate on: decisions drawn and answered through the store, on a clock of their own."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from rlrec.app.judging import evaluate
from rlrec.app.log import partitions
from rlrec.app.policies import policy
from rlrec.app.requests import feedback, recommend
from rlrec.arrays import Array
from rlrec.store import Store
from rlrec.store.log import reader
from rlrec.store.policies import arms

START = 1_769_904_000_000_000  # 2026-02-01
MINUTE = 60_000_000


def summary(**counts: Any) -> dict[str, Any]:
    """The answer of `import-log`: what is not named is 0, or none."""
    nothing = dict.fromkeys(("accepted", "duplicates", "rejected", "clipped", "ignored", "skipped"), 0)
    return nothing | {"clipped_share": 0.0, "ignored_kinds": [], "without_propensity": 0} | counts


def at(db: str, minutes: float) -> Store:
    """The store, some minutes after the start."""
    store = Store(db, now=START + int(minutes * MINUTE))
    store.allow_future = True
    return store


def catalogue(db: str, number: int) -> None:
    """Arms a0, a1, ..."""
    with closing(at(db, 0)) as store:
        store.write(lambda unit: arms.put(unit, {f"a{index}": "{}" for index in range(number)}))


def create(db: str, name: str, kind: str, *, minutes: float = 0, **parameters: str) -> None:
    with closing(at(db, minutes)) as store:
        policy.create(store, policy.Request(name=name, kind=kind, parameters=parameters))


def begin(db: str, number: int, name: str, kind: str, **parameters: str) -> None:
    """A catalogue, and the first policy over it."""
    catalogue(db, number)
    create(db, name, kind, **parameters)


def serve(
    db: str,
    name: str,
    *,
    pages: int,
    rates: Sequence[float] | Array,
    size: int = 1,
    group: int = 500,
    start: float = 1.0,
    minutes: float = 1.0,
    users: int | None = None,
    contexts: Sequence[Mapping[str, Any]] = ({},),
    seed: int = 1,
    together: int = 2,
    curve: Sequence[float] = (1.0,) * 100,
) -> int:
    """`pages` decisions of a policy, `group` at a time every `minutes`, `together` a session; arm i is clicked with
    rates[i], or on a page of its own with rates[page, i], where it is examined, by its position: the clicks."""
    generator, clicks = np.random.default_rng(seed), 0
    by_page = np.broadcast_to(rates, (pages, np.shape(rates)[-1]))
    for number, first in enumerate(range(0, pages, group)):
        with closing(at(db, start + number * minutes)) as store:
            options = [
                recommend.Request(
                    policy=name,
                    session=f"{name}-{seed}-{page // together}",
                    user=None if users is None else f"u{page // together % users}",
                    size=size,
                    context=contexts[page % len(contexts)],
                )
                for page in range(first, min(first + group, pages))
            ]
            answers = [
                answer
                for answer in recommend.recommend_group(store, options, seed=seed + number)
                if isinstance(answer, dict)
            ]
            lines = [
                feedback.Line(decision_id=answer["decision_id"], position=slot["position"], events={"click": 1.0})
                for page, answer in enumerate(answers, first)
                for slot in answer["slate"]
                if generator.random() < by_page[page, int(slot["arm"][1:])] * curve[slot["position"] - 1]
            ]
            clicks += len(lines)
            feedback.feedback_stream(store, lambda reported=lines: [reported], quarantine=False, reject=print)
    return clicks


def judged(db: str, *targets: str, minutes: float = 1e6, **options: Any) -> list[dict[str, Any]]:
    """What `evaluate` says of the log, long after it by default."""
    with closing(at(db, minutes)) as store:
        return [row.record for row in evaluate.evaluate(store, evaluate.Request(targets=targets, **options))]


def estimate(db: str, target: str, estimator: str, **options: Any) -> dict[str, Any]:
    """One estimate."""
    (row,) = judged(db, target, estimators=estimator, **options)
    return row


def in_batches(patch: pytest.MonkeyPatch, size: int) -> None:
    """Let logs be read in batches of so many decisions, and partitions hold as many; few rows wait in memory."""
    real = reader.batches
    patch.setattr(reader, "batches", lambda unit, selection, **named: real(unit, selection, **named | {"size": size}))
    patch.setattr(partitions, "BATCH", size)
    patch.setattr(partitions, "MAX_WAITING_BYTES", 1_000)


def traced_peak(work: Callable[[], object]) -> int:
    """The most bytes that some work holds at once. The collector passes over all that the process made before: else how
    long garbage lies around, which adds to the peak, would depend on it."""
    gc.collect()
    gc.freeze()
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
