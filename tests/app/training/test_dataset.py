"""Visits on disk: what was written is read, in an order that hangs on names alone."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, replace

import numpy as np
import pytest

from rlrec.app.training import dataset as spooling
from rlrec.app.training.dataset import Catalogue, Dataset, EligibleSet, VisitRows
from rlrec.errors import RlrecError
from rlrec.policy.contexts.features import merge

SPLITS = (0, 1, 2)


CATALOGUES = [Catalogue(np.full((9, 1), value)) for value in (1.0, 2.0)]


def cases(rng: np.random.Generator) -> list[EligibleSet]:
    """Four eligible sets out of six, in any order."""
    six = [EligibleSet(item, np.array(places)) for item in CATALOGUES for places in ([0, 2, 5], [0, 8], list(range(9)))]
    return [six[number] for number in rng.permutation(6)[:4]]


def rows(n: int, *, seed: int = 1, width: int = 3) -> VisitRows:
    """Visits with 1 to 4 decisions of 1 to 2 slots, each of which remembers 0 to 3 arms."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 5, n)
    decisions = int(length.sum())
    size, remembered = rng.integers(1, 3, decisions), rng.integers(0, 4, decisions)
    slots, arms = int(size.sum()), int(remembered.sum())
    return VisitRows(
        eligible_sets=cases(rng), name=rng.integers(0, 2**63, n).astype(np.uint64) * np.uint64(2),
        split=rng.integers(0, 3, n), stratum=np.zeros(n, np.int64),
        cluster=rng.integers(-(2**60), 2**60, n), length=length, eligible=rng.integers(0, 4, decisions), size=size,
        n_remembered=remembered, log_propensity=rng.normal(size=decisions), reward=rng.normal(size=decisions),
        default=rng.integers(0, 2, decisions), is_ruled=rng.integers(0, 2, decisions),
        lowest=rng.normal(size=decisions), x=rng.integers(-9, 9, (decisions, width)) / 4,
        shown_arm=rng.integers(0, 9, slots), slot_reward=rng.normal(size=slots), divided_reward=rng.normal(size=slots),
        log_marginal=rng.normal(size=slots), log_conditional=rng.normal(size=slots),
        arm=rng.integers(0, 9, arms), memory=rng.integers(-9, 9, (arms, 4)) / 4,
    )  # fmt: skip


def visit(result: VisitRows, index: int) -> list[object]:
    """Everything that is known of one visit."""
    selected = slice(result.start[index], result.start[index + 1])
    slots = slice(result.first[selected.start], result.first[selected.stop])
    ends = np.r_[0, np.cumsum(result.n_remembered)]
    arms = slice(ends[selected.start], ends[selected.stop])
    flat: list[object] = [int(getattr(result, name)[index]) for name in spooling.VISIT_TYPES]
    flat += [named(result.eligible_sets[number]) for number in result.eligible[selected].tolist()]
    for names, piece in ((spooling.DECISION_TYPES, selected), (spooling.SLOT_TYPES, slots), (spooling.ARM_TYPES, arms)):
        flat += [getattr(result, name)[piece].tolist() for name in names]
    return flat


def named(case: EligibleSet) -> tuple[bytes, list[int]]:
    return case.catalogue.digest, case.arms.tolist()


def every(result: VisitRows) -> list[list[object]]:
    return [visit(result, number) for number in range(len(result))]


def read(spool: Dataset, split: int, *, size: int = 7) -> list[list[object]]:
    """The visits of a split, and the sets that they lie in."""
    spool.arrange(dict.fromkeys(SPLITS, size))
    return [item for batch in spool.splits[split].batches() for item in every(batch)]


@pytest.fixture
def spool() -> Iterator[Dataset]:
    with closing(Dataset()) as answers:
        yield answers


@pytest.mark.parametrize("size", [1, 7, 5_000])
def test_what_was_written_is_read(spool: Dataset, size: int) -> None:
    """Whole, by split and name, whatever the size of a set."""
    parts = [rows(20, seed=1), rows(1, seed=2), rows(30, seed=3)]
    for piece in parts:
        spool.add(piece)
    spool.arrange(dict.fromkeys(SPLITS, size))
    result = [visit for split in SPLITS for batch in spool.splits[split].batches() for visit in every(batch)]
    assert result == sorted((item for piece in parts for item in every(piece)), key=lambda visit: (visit[1], visit[0]))
    assert {field.name for field in fields(VisitRows)} == {
        name
        for names in (spooling.VISIT_TYPES, spooling.DECISION_TYPES, spooling.SLOT_TYPES, spooling.ARM_TYPES)
        for name in names
    } | {"eligible_sets", "eligible", "words"}


def test_words_that_are_weighed_are_read(spool: Dataset) -> None:
    """Each at its decision, by the index of its column among those that are weighed."""
    written, rng = rows(20, seed=1), np.random.default_rng(4)
    dense = rng.integers(-1, 2, (len(written.size), 30)) * rng.integers(0, 2, (len(written.size), 30))
    row, column = np.nonzero(dense)
    spool.add(replace(written, words=merge(len(dense), row, column, dense[row, column].astype(np.float64))))
    teaching = np.repeat(written.split == 0, written.length)
    assert spool.columns.tolist() == np.flatnonzero(dense[teaching].any(axis=0)).tolist()
    weighed = np.array([3, 7, 20])
    spool.arrange({0: 5}, columns=weighed)
    by_name = {name: dense[a:b] for name, a, b in zip(written.name, written.start, written.start[1:], strict=False)}
    for batch in spool.splits[0].batches():
        assert batch.words is not None
        filled = np.zeros((len(batch.words), 3))
        filled[batch.words.row, batch.words.column] = batch.words.value
        np.testing.assert_array_equal(filled, np.vstack([by_name[name] for name in batch.name])[:, weighed])


def test_a_union_has_the_visits_of_its_splits_by_name(spool: Dataset) -> None:
    parts = [rows(20, seed=1), rows(30, seed=2)]
    for piece in parts:
        spool.add(piece)
    with closing(spool.union([0, 1], 3)) as both:
        batches = [every(batch) for batch in both.batches()]
    expected = [item for piece in parts for item in every(piece) if item[1] in (0, 1)]
    assert [item for batch in batches for item in batch] == sorted(expected, key=lambda item: item[:1])
    assert len(batches) == 3
    assert both.visits == len(expected)


def test_the_order_of_writing_makes_no_difference(spool: Dataset) -> None:
    parts = [rows(20, seed=1), rows(30, seed=2)]
    with closing(Dataset()) as other:
        for piece in parts:
            spool.add(piece)
        for piece in parts[::-1]:
            other.add(piece)
        assert read(spool, 1) == read(other, 1)


def test_eligible_sets_are_numbered_by_what_they_are(spool: Dataset) -> None:
    """Each once in a set of visits, whatever the order in which they were written, and how often."""
    parts = [rows(20, seed=seed) for seed in range(1, 6)]
    with closing(Dataset()) as other:
        for piece in parts:
            spool.add(piece)
        for piece in parts[::-1]:
            other.add(piece)
        for item in (spool, other):
            item.arrange(dict.fromkeys(SPLITS, 40))
        sets, others = (
            [batch for split in SPLITS for batch in item.splits[split].batches()] for item in (spool, other)
        )
        for result, again in zip(sets, others, strict=True):
            flat = [named(case) for case in result.eligible_sets]
            assert flat == sorted(flat)
            assert len({name for name, _ in flat}) == 2
            assert len(flat) == 6 == len({str(line) for line in flat})
            assert flat == [named(case) for case in again.eligible_sets]
            assert (result.eligible == again.eligible).all()


@pytest.mark.parametrize(("size", "sizes"), [(100, [23]), (23, [23]), (12, [12, 11]), (10, [8, 8, 7]), (1, [1] * 23)])
def test_sets_are_of_about_one_size(spool: Dataset, size: int, sizes: list[int]) -> None:
    spool.add(replace(rows(23), split=np.zeros(23, np.int64)))
    spool.arrange({0: size})
    assert [len(batch) for batch in spool.splits[0].batches()] == sizes
    assert spool.splits[0].visits == 23


def test_the_first_sets_alone_are_read_on_demand(spool: Dataset) -> None:
    spool.add(rows(60))
    spool.arrange({0: 5})
    complete = [every(batch) for batch in spool.splits[0].batches()]
    sizes = np.cumsum([len(item) for item in complete])
    for most in (1, 5, 9, 11, 1_000):
        some = [every(batch) for batch in spool.splits[0].batches(most)]
        assert some == complete[: max(1, int((sizes <= most).sum()))]


def test_a_part_knows_its_longest_visit_and_whether_clusters_come_back(spool: Dataset) -> None:
    alone = rows(40)
    spool.add(alone)
    spool.arrange({0: 5})
    assert spool.splits[0].max_length == int(alone.length[alone.split == 0].max())
    assert not spool.splits[0].spans_batches
    with closing(Dataset()) as other:
        other.add(alone)
        other.add(alone)
        other.arrange({0: 5})
        assert other.splits[0].spans_batches


def test_nothing_written_is_nothing_read(spool: Dataset) -> None:
    assert read(spool, 0) == []
    assert [spool.splits[split].visits for split in SPLITS] == [0, 0, 0]


def test_states_without_features_or_memories(spool: Dataset) -> None:
    spool.add(rows(9, width=0))
    spool.arrange({0: 9})
    (batch,) = spool.splits[0].batches()
    assert batch.state().x.shape == (int(batch.length.sum()), 0)


def test_what_is_read_stays_as_it_was_written(spool: Dataset) -> None:
    spool.add(rows(9))
    spool.arrange({0: 9})
    (batch,) = spool.splits[0].batches()
    with pytest.raises(ValueError, match="read-only"):
        batch.x[:] = 0


def test_its_files_have_no_name_and_go_with_it() -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    with closing(Dataset()) as answers:
        answers.add(rows(9))
        assert read(answers, 0)
    after = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    assert after == before


def test_a_catalogue_is_named_by_what_it_says() -> None:
    features = np.arange(8.0).reshape(4, 2)
    assert Catalogue(features).digest == Catalogue(features.copy()).digest
    assert Catalogue(features).digest != Catalogue(features + 1).digest


def test_a_temporary_folder_without_room_is_named(spool: Dataset) -> None:
    """A limit on the size of files stands for a full disk."""
    spool.add(rows(9))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        with pytest.raises(RlrecError, match="cannot write to the temporary folder") as refused:
            spool.add(rows(500))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "TMPDIR" in str(refused.value.hint)


def test_no_temporary_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with pytest.raises(RlrecError, match="no temporary folder"):
        Dataset()
