"""Assignment: units keep their variants through phases, or move as a ramp wants it."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from rlrec.app.experiments import experiment
from rlrec.app.experiments.experiment import VariantSpec
from rlrec.app.policies import policy
from rlrec.app.requests import recommend
from rlrec.app.upkeep import doctor
from rlrec.store import Store
from rlrec.store.policies import arms, experiments
from tests.conftest import ON_BOTH

Clocked = Callable[[int], Store]
START, MINUTE = 1_767_225_600_000_000, 60_000_000


@pytest.fixture
def at(db: str) -> Iterator[Clocked]:
    """A store whose clock stands so many minutes after the start."""
    opened = []

    def store(minutes: int) -> Store:
        opened.append(Store(db, now=START + minutes * MINUTE, notice=lambda line: None))
        return opened[-1]

    first = store(0)
    first.write(lambda unit: arms.put(unit, dict.fromkeys(("a", "b", "c"), "{}")))
    policy.create(first, policy.Request(name="ts", kind="thompson", parameters={"floor": "0.1"}))
    policy.create(first, policy.Request(name="u", kind="uniform"))
    yield store
    for item in opened:
        item.close()


def split(store: Store, *, b: float = 1.0, **options: Any) -> None:
    variants = VariantSpec(label="a", policy="ts"), VariantSpec(label="b", policy="u", weight=b)
    experiment.create(store, experiment.Request(name="ab", variants=variants, **options))


def served(store: Store, first: int, last: int, **target: Any) -> dict[str, str | None]:
    """The variant of each of some users."""
    users = [f"u{number}" for number in range(first, last)]
    lines = [recommend.Request(session=key, user=key, **(target or {"experiment": "ab"})) for key in users]
    return {line["user"]: line["variant"] for line in recommend.recommend_group(store, lines)}


def begin(store: Store, weights: Mapping[str, float], **options: Any) -> None:
    def work(unit: Any) -> None:
        experiments.begin_phase(unit, experiments.by_name(unit, ["ab"])["ab"].id, weights, **options)

    store.write(work)


def findings(store: Store) -> list[Any]:
    return doctor.doctor(store, doctor.Request()).findings


@ON_BOTH
def test_units_keep_their_variants_and_new_ones_are_drawn_by_the_new_weights(at: Clocked) -> None:
    split(at(0))
    before = served(at(1), 0, 200)
    begin(at(2), {"a": 1, "b": 19})
    assert served(at(3), 0, 200) == before
    assert 175 <= Counter(served(at(3), 200, 400).values())["b"] <= 200  # 190 +- 3: one in 10,000
    assert findings(at(4)) == []


@ON_BOTH
def test_a_larger_share_of_a_ramp_moves_units_to_the_last_variant_and_gives_none_back(at: Clocked) -> None:
    split(at(0), b=0.1)
    steps = [served(at(1), 0, 300)]
    for step, share in enumerate((0.2, 0.5, 0.9), start=2):
        begin(at(2 * step), {"a": 1 - share, "b": share}, moves=True)
        steps.append(served(at(2 * step + 1), 0, 300))
        assert {user for user, label in steps[-2].items() if label == "b"} <= {
            user for user, label in steps[-1].items() if label == "b"
        }
        count = Counter(steps[-1].values())["b"]
        assert abs(count - 300 * share) < 4 * (300 * share * (1 - share)) ** 0.5
    assert findings(at(20)) == []


@ON_BOTH
def test_a_unit_belongs_to_its_phase_where_the_clock_stands_still(at: Clocked) -> None:
    split(at(0))
    served(at(9), 0, 20)
    begin(at(9), {"a": 1, "b": 9})
    served(at(9), 20, 40)
    with at(10).read() as unit:
        ab = experiments.by_name(unit, ["ab"])["ab"]
        phases = experiments.phases(unit, ab)
        rows = unit.ask("SELECT at FROM assignment ORDER BY id")
    numbers = [phases.index(experiments.phase_of_time(phases, row[0])) for row in rows]
    assert numbers == [0] * 20 + [1] * 20
