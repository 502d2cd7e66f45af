"""Visits on disk: what was written is read, in an order that hangs on names alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields

import numpy as np
import pytest

from rlrec.app.training import spool as spooling
from rlrec.app.training.spool import Case, Rows, Spool

RAGGED = ("decision", "slot", "arm")


def rows(n: int, *, seed: int = 1, width: int = 3) -> Rows:
    """Visits with 1 to 4 decisions of 1 to 2 slots, each of which remembers 0 to 3 arms."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 5, n)
    decisions = int(length.sum())
    size, remembered = rng.integers(1, 3, decisions), rng.integers(0, 4, decisions)
    slots, arms = int(size.sum()), int(remembered.sum())
    return Rows(
        name=rng.integers(0, 2**63, n).astype(np.uint64) * np.uint64(2), split=rng.integers(0, 3, n),
        cluster=rng.integers(-(2**60), 2**60, n), length=length, case=rng.integers(0, 2, decisions), size=size,
        remembered=remembered, log_propensity=rng.normal(size=decisions), reward=rng.normal(size=decisions),
        default=rng.integers(0, 2, decisions), lowest=rng.normal(size=decisions),
        x=rng.integers(-9, 9, (decisions, width)) / 4, shown=rng.integers(0, 9, slots), earned=rng.normal(size=slots),
        logged=rng.normal(size=slots), place=rng.integers(0, 9, arms), own=rng.integers(-9, 9, (arms, 4)) / 4,
    )  # fmt: skip


def visit(found: Rows, place: int) -> list[object]:
    """Everything that is known of one visit."""
    mine = slice(found.start[place], found.start[place + 1])
    slots = slice(found.first[mine.start], found.first[mine.stop])
    ends = np.r_[0, np.cumsum(found.remembered)]
    arms = slice(ends[mine.start], ends[mine.stop])
    told: list[object] = [int(getattr(found, name)[place]) for name in spooling.VISIT]
    for names, part in ((spooling.DECISION, mine), (spooling.SLOT, slots), (spooling.ARM, arms)):
        told += [getattr(found, name)[part].tolist() for name in names]
    return told


def every(found: Rows) -> list[list[object]]:
    return [visit(found, place) for place in range(len(found))]


@pytest.fixture
def spool() -> Iterator[Spool]:
    with closing(Spool()) as made:
        yield made


@pytest.mark.parametrize("moved", [1, 7, 5_000])
def test_what_was_written_is_read(spool: Spool, monkeypatch: pytest.MonkeyPatch, moved: int) -> None:
    """Whole, whatever number of visits is moved at a time."""
    monkeypatch.setattr(spooling, "MOVED", moved)
    parts = [rows(20, seed=1), rows(1, seed=2), rows(30, seed=3)]
    for part in parts:
        spool.add(part)
    found = spool.read(np.arange(51))
    assert sorted(every(found), key=str) == sorted((one for part in parts for one in every(part)), key=str)
    assert {one.name for one in fields(Rows)} == {
        name for names in (spooling.VISIT, spooling.DECISION, spooling.SLOT, spooling.ARM) for name in names
    }


def test_visits_lie_by_split_and_name(spool: Spool) -> None:
    spool.add(rows(50))
    name, split = spool.index()[:2]
    order = list(zip(split.tolist(), name.view(np.uint64).tolist(), strict=True))
    assert order == sorted(order)
    assert (spool.read(spool.of(1)).split == 1).all()
    assert len(spool.of(0, 2)) == len(spool.of(0)) + len(spool.of(2))
    assert spool.decisions(spool.of(0, 1, 2)) == int(rows(50).length.sum())


def test_the_order_of_writing_makes_no_difference(spool: Spool) -> None:
    parts = [rows(20, seed=1), rows(30, seed=2)]
    with closing(Spool()) as other:
        for part in parts:
            spool.add(part)
        for part in parts[::-1]:
            other.add(part)
        assert every(spool.read(np.arange(50))) == every(other.read(np.arange(50)))


def test_some_visits_are_read_in_the_order_given(spool: Spool) -> None:
    spool.add(rows(30))
    whole = every(spool.read(np.arange(30)))
    for wanted in ([7], [3, 4, 5], [29, 0, 12], [5, 5]):
        assert every(spool.read(np.array(wanted))) == [whole[place] for place in wanted]


def test_more_can_be_written_after_reading(spool: Spool) -> None:
    spool.add(rows(10, seed=1))
    before = every(spool.read(np.arange(10)))
    spool.add(rows(10, seed=2))
    after = every(spool.read(np.arange(20)))
    assert len(after) == 20
    assert all(one in after for one in before)


@pytest.mark.parametrize(("size", "sizes"), [(100, [23]), (23, [23]), (12, [12, 11]), (10, [8, 8, 7]), (1, [1] * 23)])
def test_sets_are_of_about_one_size(spool: Spool, size: int, sizes: list[int]) -> None:
    spool.add(rows(23))
    found = list(spool.sets(np.arange(23), size=size))
    assert [len(one) for one in found] == sizes
    assert np.concatenate(found).tolist() == list(range(23))


def test_nothing_written_is_nothing_read(spool: Spool) -> None:
    assert len(spool.of(0, 1, 2)) == 0
    assert list(spool.sets(spool.of(0), size=5)) == []


def test_states_without_features_or_memories(spool: Spool) -> None:
    spool.add(rows(9, width=0))
    assert spool.read(np.arange(9)).state().x.shape == (int(rows(9).length.sum()), 0)


def test_its_files_have_no_name_and_go_with_it() -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    with closing(Spool()) as made:
        made.add(rows(9))
        made.read(np.arange(9))
    after = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    assert after == before


def test_a_case_is_named_by_what_it_is() -> None:
    places, described = np.array([0, 2]), np.array([[1.0], [2.0]])
    one = Case(places=places, described=described)
    assert one.name == Case(places=places.copy(), described=described.copy()).name
    assert one.name != Case(places=np.array([0, 3]), described=described).name
    assert one.name != Case(places=places, described=described + 1).name
