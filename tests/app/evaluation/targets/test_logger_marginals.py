"""Logging marginals at every position: those that were logged, and the sums that they must have."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from rlrec.app.distributions.exact import VersionDistribution
from rlrec.app.evaluation.passes.log_reader import LogReader, Reading
from rlrec.app.evaluation.passes.request import Evaluation, Request
from rlrec.app.evaluation.rows import log_rows
from rlrec.app.evaluation.targets import logger_marginals
from rlrec.app.evaluation.targets.cases import CASE_OVERHEAD
from rlrec.app.policies import versions
from rlrec.arrays import Array
from rlrec.store.database.bulk import Columns
from rlrec.store.log.selected import Selection
from tests.app import logs
from tests.conftest import Run

RATES = [0.5, 0.1, 0.3, 0.2, 0.4]


def derived(db: str, *, positions: int, hide: bool = True) -> tuple[Columns, Array]:
    """The slots of the log and their marginals; hide: those that were logged are not looked at."""
    with closing(logs.at(db, 1e6)) as store, store.read() as unit:
        evaluation = Evaluation.resolve(unit, Request(targets=[]), Selection())
        reader = LogReader(unit, evaluation)
        slots, tables = [], []
        for batch in reader.read(Reading(columns=log_rows.JUDGE_COLUMNS, support=False, marginals=positions)):
            observed = batch.log.slots
            nothing = {"marginal": np.full(len(observed["arm_id"]), np.nan)} if hide else {}
            tables.append(
                reader.marginals.tabulate(observed | nothing, batch.contexts, batch.eligible, positions=positions)
            )
            slots.append(observed)
        return {name: np.concatenate([some[name] for some in slots]) for name in slots[0]}, np.concatenate(tables)


def at_position(slots: Columns, table: Array) -> Array:
    return table[np.arange(len(table)), slots["position"] - 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("thompson", {"floor": "0.1"}),
        ("thompson", {"floor": "0.1", "discount": "0.9"}),
        ("thompson", {"window": "10"}),
        ("epsilon-greedy", {"epsilon": "0.2"}),
        ("ucb", {"floor": "0.3"}),
        ("uniform", {}),
    ],
)
def test_they_are_the_logged_ones_of_every_belief(sqlite_db: str, kind: str, parameters: dict[str, str]) -> None:
    logs.begin(sqlite_db, 5, "home", kind, **parameters)
    logs.serve(sqlite_db, "home", pages=15, rates=RATES, size=3, group=1)
    slots, table = derived(sqlite_db, positions=4)
    assert np.allclose(at_position(slots, table), slots["marginal"], rtol=1e-9, atol=1e-12)
    assert (table[:, 3] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "distributions"), [("thompson", 20), ("lin-thompson", 20 * 3)])
def test_passes_of_a_transaction_share_them(
    sqlite_db: str, kind: str, distributions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.begin(sqlite_db, 5, "home", kind, floor="0.1")
    contexts = [{"x": 0.0}, {"x": 1.0}, {"x": 2.0}]
    logs.serve(sqlite_db, "home", pages=120, rates=RATES, size=3, group=6, contexts=contexts)
    reading = Reading(columns=log_rows.JUDGE_COLUMNS, support=False, marginals=3)
    with closing(logs.at(sqlite_db, 1e6)) as store, store.read() as unit:
        evaluation = Evaluation.resolve(unit, Request(targets=[]), Selection())

        def read() -> list[Array]:
            batches = LogReader(unit, evaluation).read(reading)
            return [batch.log.slots[log_rows.MARGINALS] for batch in batches]

        tables = read()
        assert len(unit.marginals) == distributions
        with monkeypatch.context() as patched:  # nothing is derived again
            patched.setattr(VersionDistribution, "scores", None)
            patched.setattr(VersionDistribution, "case", None)
            assert np.array_equal(read(), tables)
        unit.marginals = {draw: np.full_like(table, 0.25) for draw, table in unit.marginals.items()}
        assert (read()[0] == 0.25).any()
        unit.marginals.clear()
        monkeypatch.setattr(
            logger_marginals, "MOST_PROBABILITIES", 10 * (CASE_OVERHEAD + 15)
        )  # some of them are cached
        assert np.allclose([*read(), *read()], [*tables, *tables], rtol=1e-12)
        assert len(unit.marginals) == 10
        unit.marginals.clear()
        monkeypatch.setattr(logger_marginals, "MOST_PROBABILITIES", 0)
        assert np.array_equal(read(), tables)
        assert not unit.marginals


def test_a_frozen_version_has_them_while_others_learn(db: str) -> None:
    logs.begin(db, 5, "home", "thompson", floor="0.1")
    logs.serve(db, "home", pages=20, rates=RATES, size=3, group=5)
    with closing(logs.at(db, 50)) as store:
        versions.freeze(store, "home")
    logs.serve(db, "home@2", pages=20, rates=RATES, size=2, group=5, start=60, seed=2)
    slots, table = derived(db, positions=2)
    inside = slots["position"] <= 2
    separate = at_position({"position": slots["position"][inside]}, table[inside])
    assert np.allclose(separate, slots["marginal"][inside], rtol=1e-9)


def test_contextual_kinds_have_them_by_context(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 4, "home", "lin-thompson", floor="0.1")
    contexts = [{"x": 0.0}, {"x": 1.0}, {"x": 2.0}]
    logs.serve(sqlite_db, "home", pages=30, rates=RATES, size=2, group=4, contexts=contexts)
    slots, table = derived(sqlite_db, positions=2)
    assert np.allclose(at_position(slots, table), slots["marginal"], rtol=1e-9)


def test_a_page_of_one_slot_has_the_samples_of_its_decision(sqlite_db: str) -> None:
    """Where all arms share a posterior, each decision has samples of its own, which give exact probabilities."""
    logs.begin(sqlite_db, 4, "home", "lin-thompson", floor="0.1", model="shared", samples="50")
    contexts = [{"x": 0.0}, {"x": 1.0}]
    for size in (1, 2):
        options = {"size": size, "seed": size, "start": 10.0 * size}
        logs.serve(sqlite_db, "home", pages=20, rates=RATES[:4], group=10, contexts=contexts, **options)
    with closing(logs.at(sqlite_db, 1e6)) as store, store.read() as unit:
        reader = LogReader(unit, evaluation := Evaluation.resolve(unit, Request(targets=[]), Selection()))
        (batch,) = reader.read(Reading(columns={*log_rows.JUDGE_COLUMNS, "seed"}, support=False, marginals=0, shares=2))
        slots, shares = batch.log.slots, batch.shares
        assert shares is not None
        draw, is_alone = slots[log_rows.DRAW], slots["size"] == 1
        assert np.array_equal(draw >= 0, is_alone)
        shown = shares[draw[is_alone], 0, evaluation.arms.ranks(slots["arm_id"][is_alone])]
        assert np.array_equal(shown, slots["propensity"][is_alone])
        assert np.allclose(shares.sum(axis=2), [1.0, 0.0])


def test_what_cannot_be_derived_is_unknown_but_for_what_was_logged(run_sqlite: Run, sqlite_db: str) -> None:
    line = (
        '{"session": "s", "eligible": ["a", "b", "c"], "at": "2026-01-01T00:00:00Z", "slate":'
        ' [{"arm": "a", "propensity": 0.4}, {"arm": "b", "propensity": 0.5, "marginal": 0.3}]}'
    )
    assert run_sqlite("import-log", "-", "--layout", "jsonl", stdin=line).exit_code == 0
    _, table = derived(sqlite_db, positions=2, hide=False)
    assert np.array_equal(table, [[0.4, np.nan], [np.nan, 0.3]], equal_nan=True)


def test_an_imported_uniform_logger_has_them_in_closed_form(run_sqlite: Run, sqlite_db: str) -> None:
    line = (
        '{"session": "s", "eligible": ["a", "b", "c"], "at": "2026-01-01T00:00:00Z", "slate":'
        ' [{"arm": "a", "propensity": 0.3333333333333333}, {"arm": "b", "propensity": 0.5}]}'
    )
    assert run_sqlite("import-log", "-", "--layout", "jsonl", stdin=line).exit_code == 0
    assert derived(sqlite_db, positions=3)[1].tolist() == [[1 / 3, 1 / 3, 0.0]] * 2


def test_they_sum_to_one_over_arms_at_every_position(sqlite_db: str) -> None:
    """All pages of 2 of 3 arms that one belief may draw: the marginals of the shown arms, each arm once."""
    logs.begin(sqlite_db, 3, "home", "thompson", floor="0.5")
    logs.serve(sqlite_db, "home", pages=40, rates=RATES, size=2, group=40)
    slots, table = derived(sqlite_db, positions=2)
    _, first = np.unique(slots["arm_id"], return_index=True)
    assert np.allclose(table[first].sum(axis=0), 1)
