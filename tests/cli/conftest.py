"""The store of a test as rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from rlrec.store import Store
from tests.app.shop import START, dump

Rows = Callable[[], dict[str, list[Any]]]


@pytest.fixture
def rows(db: str) -> Rows:
    """The whole store of this test."""

    def read() -> dict[str, list[Any]]:
        with closing(Store(db)) as store:
            store.now = START + 3_600_000_000
            return dump(store)

    return read
