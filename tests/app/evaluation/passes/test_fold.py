"""The fold of an evaluation: partials of batches add up to that of the log, and none of them needs the store."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec import ope
from rlrec.app.evaluation.passes import estimates, fold, passes
from rlrec.app.evaluation.passes.fold import LogPartial
from rlrec.app.evaluation.passes.log_reader import LogReader
from rlrec.app.evaluation.passes.request import Evaluation, Request
from rlrec.app.evaluation.rows import groups
from rlrec.app.evaluation.rows.log_rows import LoggedBatch
from rlrec.app.log import partitions
from rlrec.ope.units.estimate import Estimate
from rlrec.store import Store, Unit
from rlrec.store.log import reader
from rlrec.store.log.selected import Selection
from rlrec.store.policies import arms
from tests.app import logs

Partials = list[LogPartial]


@pytest.fixture(scope="module")
def slates(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> str:
    """A log of slates for users, one of whom comes back in several sessions."""
    path = tmp_path_factory.mktemp("fold") / "fold.db"
    path.write_bytes(sqlite_template.read_bytes())
    logs.begin(str(path), 5, "log", "thompson", floor="0.2")
    logs.create(str(path), "other", "epsilon-greedy", epsilon="0.3")
    contexts = [{"hour": hour} for hour in range(3)]
    logs.serve(str(path), "log", pages=300, rates=(0.1, 0.2, 0.3, 0.4, 0.5), size=2, users=30, contexts=contexts)
    return str(path)


@pytest.fixture(scope="module", params=["impression", "session", "slate"])
def folded(slates: str, request: pytest.FixtureRequest) -> tuple[Partials, Callable[[LogPartial], list[Estimate]]]:
    """Partials of small batches, folded after the store was closed; and a function from their sum to estimates."""
    options = Request(targets=["uniform", "other"], estimators=request.param, by="hour", gamma=0.9)
    with pytest.MonkeyPatch.context() as patch, closing(logs.at(slates, 1e6)) as store, store.read() as unit:
        patch.setattr(partitions, "BATCH", 40)
        _, (of_rows, *_), log = estimates.prepare(unit, options, estimates.estimators(options), Selection())
        (of_rows,) = passes.with_models([of_rows], log)
        batches = list(log.read(of_rows.judge_reading))
    partials = [fold.fold_batch(of_rows, batch) for batch in batches]

    def finish(complete: LogPartial) -> list[Estimate]:
        rows = fold.estimates(of_rows, complete, failures={}, cluster="user")
        names = groups.sort_groups({group for _, group in rows})
        return [estimate for number in (0, 1) for group in names for estimate in rows[number, group]]

    return partials, finish


def check_equal(left: Sequence[Estimate], right: Sequence[Estimate]) -> None:
    for before, after in zip(left, right, strict=True):
        for name, value in vars(before).items():
            figure = isinstance(value, float | tuple) and name != "reasons"
            assert getattr(after, name) == (pytest.approx(value, rel=1e-12) if figure else value), name


@pytest.mark.slow
def test_partials_add_up_in_any_order_and_grouping(folded: Any) -> None:
    partials, finish = folded
    assert len(partials) > 5
    expected, generator = finish(reduce(add, partials)), np.random.default_rng(3)
    for _ in range(3):
        order = [partials[number] for number in generator.permutation(len(partials))]
        cut = int(generator.integers(1, len(order)))
        check_equal(finish(reduce(add, order[:cut]) + reduce(add, order[cut:])), expected)


@pytest.mark.slow
def test_an_empty_partial_is_the_zero_of_the_sum(folded: Any) -> None:
    partials, finish = folded
    complete = reduce(add, partials)
    check_equal(finish(LogPartial() + complete + LogPartial()), finish(complete))


def test_a_partial_is_not_changed_by_what_is_added_to_it(folded: Any) -> None:
    partials, finish = folded
    alone = finish(partials[0])
    _ = reduce(add, partials)
    check_equal(finish(partials[0]), alone)


def test_a_partial_holds_no_handle(folded: Any) -> None:
    """Nothing that can be reached from it belongs to a store."""
    partials, _ = folded
    reached, waiting = set[int](), [partials[0]]
    while waiting:
        item = waiting.pop()
        if id(item) in reached or isinstance(item, type):
            continue
        reached.add(id(item))
        assert not isinstance(item, Store | Unit | LogReader | LoggedBatch | Evaluation), item
        waiting += gc.get_referents(item)


def test_folding_twice_gives_the_same(slates: str) -> None:
    options = Request(targets=["uniform"], estimators=",".join(ope.GROUPS["impression"]))
    with closing(logs.at(slates, 1e6)) as store, store.read() as unit:
        _, (of_rows, *_), log = estimates.prepare(unit, options, estimates.estimators(options), Selection())
        (of_rows,) = passes.with_models([of_rows], log)
        (batch,) = log.read(of_rows.judge_reading)
    once, again = (fold.fold_batch(of_rows, batch) for _ in range(2))
    first, second = (fold.estimates(of_rows, partial, failures={}, cluster="user") for partial in (once, again))
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["impression", "session"])
def test_batches_are_cut_where_eligible_sets_are_large(
    sqlite_db: str, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    logs.begin(sqlite_db, 3, "log", "epsilon-greedy", epsilon="0.5")
    for size in (3, 4, 5):  # each third of the log has an eligible set of its own
        with closing(logs.at(sqlite_db, size * 10)) as store:
            store.write(lambda unit, size=size: arms.put(unit, {f"a{size - 1}": "{}"}))
        logs.serve(sqlite_db, "log", pages=30, rates=(0.1, 0.2, 0.3, 0.4, 0.5), seed=size, start=size * 10 + 1)
    expected = logs.judged(sqlite_db, "uniform", estimators=unit)
    monkeypatch.setattr(reader, "MAX_CELLS", 4)
    for before, after in zip(expected, logs.judged(sqlite_db, "uniform", estimators=unit), strict=True):
        figures = [(row["value"], row["ess"] or 0.0, row["n"]) for row in (before, after)]
        assert figures[0] == pytest.approx(figures[1], rel=1e-12)
    options = Request(targets=["uniform"], estimators=unit)
    with closing(logs.at(sqlite_db, 1e6)) as store, store.read() as opened:
        _, (of_rows, *_), log = estimates.prepare(opened, options, estimates.estimators(options), Selection())
        assert [len(batch.eligible) for batch in log.read(of_rows.judge_reading)] == [1, 1, 1]
