"""A store with a clock that tests set."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from rlrec.app.policies import policy
from rlrec.store import Store
from rlrec.store.policies import arms

Clocked = Callable[[float], Store]
START, MINUTE = 1_767_225_600_000_000, 60_000_000


@pytest.fixture
def at(db: str) -> Iterator[Clocked]:
    """A store with two policies, whose clock stands so many minutes after the start."""
    opened = []

    def store(minutes: float) -> Store:
        opened.append(Store(db, now=START + round(minutes * MINUTE), notice=lambda line: None))
        return opened[-1]

    first = store(0)
    first.write(lambda unit: arms.put(unit, dict.fromkeys(("a", "b", "c"), "{}")))
    policy.create(first, policy.Request(name="ts", kind="thompson", parameters={"floor": "0.1"}))
    policy.create(first, policy.Request(name="u", kind="uniform"))
    yield store
    for item in opened:
        item.close()
