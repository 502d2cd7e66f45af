"""Visits of persons, against a census in plain Python."""

from __future__ import annotations

from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest

from rlrec.app.evaluation.passes import sessions
from rlrec.app.log.ended_visits import PersonPortions, PersonVisits
from rlrec.arrays import Ids
from rlrec.records import Reward
from rlrec.store import Store, Unit
from rlrec.store.database.bulk import PendingQuery
from rlrec.store.log.reader import ABSENT, Batch
from rlrec.store.policies import people
from rlrec.store.policies.experiments import Experiment
from tests.conftest import Run, begin

HOUR_US = 3_600_000_000
WINDOW_US = 10 * HOUR_US


def log(rng: np.random.Generator) -> tuple[Batch, list[tuple[int, int, int, float]]]:
    """300 pages of one slot in 120 sessions of 15 persons and nobody; the session, person, time and clicks of each."""
    persons = rng.integers(-3, 15, 120)
    session = np.sort(rng.integers(120, size=300))
    began = rng.permutation(120) * HOUR_US
    step = np.arange(300) - np.searchsorted(session, session)
    at, clicks = began[session] + step * 60_000_000, rng.integers(0, 3, 300).astype(np.float64)
    person = persons[session]
    slots = {
        "decision_id": np.arange(300) + 1, "session_id": session + 1, "visit": np.ones(300, np.int64),
        "position": np.ones(300, np.int64), "at": at, "imported": np.zeros(300, np.bool_),
        "censored": np.zeros(300, np.bool_), "keep_probability": np.ones(300), "arm_id": np.ones(300, np.int64),
        "user_id": np.where(person < 0, ABSENT, person), "user_digest": person * 1_000 + 7,
        "session_digest": session * 1_000 + 5_000_000,
    }  # fmt: skip
    events = {
        "decision_id": slots["decision_id"], "position": slots["position"], "kind": np.full(300, "click", object),
        "value": clicks, "age_us": np.ones(300, np.int64),
    }  # fmt: skip
    rows = list(zip(session.tolist(), person.tolist(), at.tolist(), clicks.tolist(), strict=True))
    return Batch(slots=slots, events=events), rows


def census(rows: list[tuple[int, int, int, float]]) -> list[tuple[int, float, float, int, int]]:
    """Number, gap, later reward, later returns and pages of each visit, in the order of sessions."""
    visits = {session: [row for row in rows if row[0] == session] for session in {row[0] for row in rows}}
    answer = []
    for session in sorted(visits):
        person, pages = visits[session][0][1], visits[session]
        visits_of_person = [session] if person < 0 else [key for key in visits if visits[key][0][1] == person]
        visits_of_person.sort(key=lambda key: visits[key][0][2])
        later = visits_of_person[visits_of_person.index(session) + 1 :]
        gap = float(visits[later[0]][0][2] - pages[-1][2]) if later else float("inf")
        gaps = [visits[after][0][2] - visits[key][-1][2] for key, after in pairwise(later)]
        earned = sum(row[3] for key in later for row in visits[key])
        returns = sum(apart <= WINDOW_US for apart in gaps)
        answer.append((visits_of_person.index(session) + 1, gap, earned, returns, len(pages)))
    return answer


def test_visits_are_those_of_a_census() -> None:
    batch, rows = log(np.random.default_rng(0))
    reward = Reward(
        id=1, name="clicks", weights={"click": 1.0}, transforms={}, default=0.0, clip_low=None, clip_high=None,
        window_us=WINDOW_US, learn="served", late="count",
    )  # fmt: skip
    for batches in (
        [batch],
        [rows_of_half for _, rows_of_half in batch.split((batch.slots["session_id"] > 60).astype(np.int64))],
    ):
        visits = PersonVisits.from_batches(batches, reward)
        columns = zip(visits.number, visits.gap, visits.later_reward, visits.returns_after, visits.pages, strict=True)
        assert [tuple(row) for row in columns] == census(rows)
        assert visits.has_user.sum() == len({row[0] for row in rows if row[1] >= 0})


def test_no_batch_has_no_visit() -> None:
    batch, _ = log(np.random.default_rng(0))
    assert len(PersonVisits.from_batches([], None)) == 0
    assert len(batch) == 300


def test_visits_are_read_once_whatever_the_portions(run_sqlite: Run, sqlite_db: str) -> None:
    """Sessions of a portion lie apart from each other: to look each portion up would read most pages many times."""
    begin(run_sqlite, "a", "home", "uniform")
    requests = "".join(f'{{"policy": "home", "session": "s{n}", "user": "u{n % 7}"}}\n' for n in range(30))
    run_sqlite("recommend", "--input", "-", stdin=requests)
    with closing(Store(sqlite_db)) as store, store.read() as unit, pytest.MonkeyPatch.context() as patch:
        portions, counts = people.portions(unit, size=5), list[int]()
        patch.setattr(people, "portions", lambda *_: portions)
        ask = people.ask_visits

        def counted(unit: Unit, ids: Ids, *more: Experiment | None) -> PendingQuery:
            counts.append(len(ids))
            return ask(unit, ids, *more)

        patch.setattr(people, "ask_visits", counted)
        tables = {key: table for tables in PersonPortions.read(unit).visits(unit) for key, table in tables.items()}
        followed = sessions.followed_visits(unit)
    assert counts == [30, 30]
    assert [tables[number]["session_id"].tolist() for number in range(len(portions))] == [*map(list, portions)]
    assert len(portions) > 3
    assert not len(followed)  # no visit is over
