"""Decisions that are worked out together are what each is by itself."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from rlrec.app.training import dataset as blocking
from rlrec.app.training.ascent import group_slates, pack_mask, unpack_mask
from rlrec.app.training.dataset import ArrayFile, Catalogue, EligibleSet, VisitRows, blocks
from rlrec.policy.contexts.encoder import Design, Encoder
from rlrec.policy.gradients import reinforce
from rlrec.policy.gradients.gradient import Gradient
from rlrec.policy.gradients.reinforce import GradientSums, Objective

ARMS, NOBODY = 8, Encoder.parse({"fields": {}})
KIND = Gradient(design=Design(context=NOBODY, arm=NOBODY), floor=0.1)


def cases(number: int, rng: np.random.Generator) -> list[EligibleSet]:
    """Eligible sets of 3 to 8 arms, of two catalogues."""
    catalogues = [Catalogue(np.ones((ARMS, 1))), Catalogue(np.full((ARMS, 1), 2.0))]
    sizes = rng.integers(3, ARMS + 1, number)
    return [
        EligibleSet(catalogues[n % 2], np.sort(rng.choice(ARMS, size, replace=False))) for n, size in enumerate(sizes)
    ]


def rows(eligible_sets: list[EligibleSet], rng: np.random.Generator, *, n: int = 60) -> VisitRows:
    """One visit of n decisions, each of any case, with one or two slots and two arms remembered."""
    case, size = rng.integers(0, len(eligible_sets), n), rng.integers(1, 3, n)
    picked = [rng.choice(eligible_sets[item].arms, 2, replace=False) for item in case]
    shown = np.concatenate([two[:k] for two, k in zip(picked, size, strict=True)])
    ones = np.ones(n)
    return VisitRows(
        eligible_sets=eligible_sets, name=np.ones(1, np.uint64), split=np.zeros(1, np.int64),
        cluster=np.ones(1, np.int64), stratum=np.zeros(1, np.int64),
        length=np.array([n]), eligible=case, size=size, n_remembered=np.full(n, 2),
        log_propensity=-rng.uniform(1, 3, n), reward=rng.normal(size=n), default=np.zeros(n, np.int64),
        is_ruled=np.zeros(n, np.int64), lowest=-ones, shown_arm=shown,
        x=rng.normal(size=(n, len(KIND.names))),
        slot_reward=rng.normal(size=len(shown)), divided_reward=rng.normal(size=len(shown)),
        log_marginal=-rng.uniform(1, 3, len(shown)), log_conditional=-rng.uniform(1, 3, len(shown)),
        arm=np.concatenate([np.sort(two) for two in picked]), memory=rng.normal(size=(2 * n, 4)),
    )  # fmt: skip


def gradient(decision_rows: VisitRows, *, slots: bool = False) -> GradientSums:
    rng = np.random.default_rng(3)
    parameters = {name: rng.normal(size=values.shape) for name, values in KIND.zero_parameters(ARMS).items()}
    gain = rng.normal(size=len(decision_rows.eligible))
    groups = group_slates(decision_rows, gain, gain + 1, np.ones(len(gain)), is_by_slot=slots)
    objective = Objective(clip=5.0, entropy=0.1, top_k=2 if slots else 0)
    return reinforce.sums(KIND, parameters, groups, objective)


def test_decisions_with_page_rules_stand_in_no_block() -> None:
    rng = np.random.default_rng(4)
    decision_rows = replace(rows(cases(3, rng), rng), is_ruled=rng.integers(0, 2, 60))
    result = np.concatenate([block.rows for block in blocks(decision_rows)])
    assert sorted(result.tolist()) == np.flatnonzero(decision_rows.is_ruled == 0).tolist()
    assert not list(blocks(replace(decision_rows, is_ruled=np.ones(60, np.int64))))


@pytest.mark.parametrize("number", [1, 3, 40])
@pytest.mark.parametrize("mask", [0, 200, 8_000_000])
def test_every_decision_stands_in_one_block_with_its_own_arms(
    monkeypatch: pytest.MonkeyPatch, mask: int, number: int
) -> None:
    monkeypatch.setattr(blocking, "MAX_MASK_CELLS", mask)
    rng = np.random.default_rng(number)
    eligible_sets = cases(number, rng)
    decision_rows = rows(eligible_sets, rng)
    result = list(blocks(decision_rows))
    assert sorted(np.concatenate([row.rows for row in result]).tolist()) == list(range(60))
    for block in result:
        for index, row in enumerate(block.rows.tolist()):
            case, slots = (
                eligible_sets[decision_rows.eligible[row]],
                slice(decision_rows.first[row], decision_rows.first[row + 1]),
            )
            selected = slice(None) if block.eligible is None else block.eligible[index]
            assert block.arms[selected].tolist() == case.arms.tolist()
            assert (block.features == case.catalogue.features[0]).all()
            assert block.arms[block.slates[index]].tolist() == decision_rows.shown_arm[slots].tolist()
            arms = block.state.arm[block.state.row == index]
            assert block.arms[arms].tolist() == decision_rows.arm[2 * row : 2 * row + 2].tolist()


def test_few_calls_take_the_place_of_many() -> None:
    rng = np.random.default_rng(1)
    eligible_sets = cases(40, rng)
    assert len(list(blocks(rows(eligible_sets, rng)))) == 4  # two catalogues, two lengths of a page


@pytest.mark.parametrize(("arms", "together"), [(100, 2_000), (1_000, 2_000), (20_000, 32), (1_000_000, 32)])
def test_sets_of_many_arms_are_worked_out_some_at_a_time(arms: int, together: int) -> None:
    """The larger the catalogue, the less a union of candidates is worth."""
    rng = np.random.default_rng(6)
    item = Catalogue(np.ones((arms, 1)))
    eligible_sets = [EligibleSet(item, np.sort(rng.choice(arms, 50, replace=False))) for _ in range(2_000)]
    assert blocking._choose_set_count(eligible_sets, [2] * 2_000) == together


def test_a_mask_is_small_whatever_the_calls_cost() -> None:
    item = Catalogue(np.ones((10_000, 1)))
    eligible_sets = [EligibleSet(item, np.arange(number, number + 5_000)) for number in range(1_000)]
    together = blocking._choose_set_count(eligible_sets, [5] * 1_000)
    assert 1 < together * 5 * 5_999 <= blocking.MAX_MASK_CELLS


@pytest.mark.parametrize("mask", [0, 500])
@pytest.mark.parametrize("slots", [False, True])
def test_the_gradient_is_the_same_together_and_apart(monkeypatch: pytest.MonkeyPatch, slots: bool, mask: int) -> None:
    rng = np.random.default_rng(2)
    eligible_sets = cases(40, rng)
    decision_rows = rows(eligible_sets, rng)
    together = gradient(decision_rows, slots=slots)
    monkeypatch.setattr(blocking, "MAX_MASK_CELLS", mask)
    apart = gradient(decision_rows, slots=slots)
    for name, values in together.gradient.items():
        assert values == pytest.approx(apart.gradient[name], abs=1e-11), name
    assert (together.mass, together.square) == (pytest.approx(apart.mass), pytest.approx(apart.square))


def test_decisions_are_read_as_they_were_written() -> None:
    """All groups of a batch through one map."""
    rng = np.random.default_rng(5)
    eligible_sets = cases(6, rng)
    decision_rows = rows(eligible_sets, rng)
    gain, file = rng.normal(size=60), ArrayFile()
    written = list(group_slates(decision_rows, gain, gain, np.ones(60)))
    for batch in (written, written[:1]):
        file.add([pack_mask(slates) for slates in batch])
    first, second = ([unpack_mask(slates) for slates in file.read(number)] for number in range(len(file)))
    assert (len(first), len(second)) == (len(written), 1)
    for before, after in zip(written, first, strict=True):
        for name in ("arms", "shown_arms", "gain", "log_propensity", "scale"):
            assert (getattr(before, name) == getattr(after, name)).all()
        assert (before.state.x == after.state.x).all()
        assert (before.state.arm == after.state.arm).all()
        assert (before.eligible is None) == (after.eligible is None)
        assert before.eligible is None or after.eligible is None or (before.eligible == after.eligible).all()
    file.close()


def test_records_of_any_arrays_are_read_as_they_were_written() -> None:
    """Empty ones, too, and each of its own type; nobody writes to what was read."""
    records = [
        {"a": np.ones(2), "b": np.zeros((0, 3), np.int32)},
        {"a": np.ones(0, np.float32), "b": np.ones((1, 3), np.int32)},
    ]
    with closing(ArrayFile()) as file:
        for record in records:
            file.add(record)
        for number, record in enumerate(records):
            for name, values in file.read(number).items():
                np.testing.assert_array_equal(values, record[name], strict=True)
                assert not values.flags.writeable
