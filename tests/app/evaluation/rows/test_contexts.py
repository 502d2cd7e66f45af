"""Contexts of an evaluation: decoded once while there is room, and the same whether they are or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from rlrec.app.evaluation.rows import contexts
from rlrec.app.evaluation.rows.contexts import ContextCache
from rlrec.policy.contexts import features
from rlrec.store import Store, Unit
from rlrec.store.log import reader

BODIES = [{"n": i / 7, "device": "pc" if i % 3 else "phone"} | ({"tags": ["a", i]} if i % 5 else {}) for i in range(60)]


@pytest.fixture
def filled(sqlite_db: str) -> Iterator[Any]:
    with closing(Store(sqlite_db)) as store:
        rows = [(i + 1, i.to_bytes(16), json.dumps(body)) for i, body in enumerate(BODIES)]
        store.write(lambda unit: unit.insert("context", ("id", "digest", "body"), rows))
        yield store


def batches(count: int = 12) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(1, len(BODIES) + 1, size=generator.integers(1, 25)) for _ in range(count)]


def read(unit: Unit, cache: ContextCache, ids: np.ndarray) -> reader.ContextTexts:
    return reader.PendingContexts(unit, cache.unread(ids)).texts()


@pytest.mark.parametrize(("room", "values"), [(10**9, 10**9), (700, 10**9), (10**9, 20), (0, 0)])
def test_features_and_fields_are_those_of_the_text_however_much_is_kept(
    filled: Any, monkeypatch: pytest.MonkeyPatch, room: Any, values: Any
) -> None:
    for name, value in {"MAX_FEATURE_BYTES": room, "MAX_CACHED_VALUES": values, "PORTION": 4}.items():
        monkeypatch.setattr(contexts, name, value)
    with filled.read() as unit:
        cache = ContextCache(unit, fields=["device"], encode=True)
        for number, ids in enumerate(2 * batches()):
            more = ["n"] if number % 4 == 3 else []
            result, code = cache.table(ids, read(unit, cache, ids), fields=more)
            selected = [BODIES[key - 1] for key in ids.tolist()]
            np.testing.assert_allclose(result.hashed_features[code], features.encode(selected), rtol=1e-12)
            for field in ["device", *more]:
                assert [result.values[field][index] for index in code] == [body.get(field) for body in selected]
        assert result.names == {"n", "device", "tags"}


def test_a_reading_is_what_a_policy_sees_of_a_row(filled: Any) -> None:
    ids = np.random.default_rng(5).integers(1, len(BODIES) + 1, size=300)
    observed: dict[tuple[str, ...], Callable[[Any], Any]] = {
        (): lambda body: {},
        ("device",): lambda body: {"device": body["device"]},
        ("tags", "device"): lambda body: {"tags": body.get("tags"), "device": body["device"]},
        ("*",): lambda body: body,
    }
    with filled.read() as unit:
        cache = ContextCache(unit, fields={name for fields in observed for name in fields})
        for _ in range(2):
            result, context = cache.table(ids, read(unit, cache, ids))
            for fields, sees in observed.items():
                expected = [sees(BODIES[key - 1]) for key in ids.tolist()]
                code, readings = result.reading(fields)
                assert [readings[number] for number in code[context]] == expected
                assert len({repr(reading) for reading in readings}) == len(readings)


def test_a_context_is_read_once(filled: Any) -> None:
    with filled.read() as unit:
        cache, options = ContextCache(unit, encode=True), []
        for ids in 2 * batches():
            texts = read(unit, cache, ids)
            options += texts.ids.tolist()
            cache.table(ids, texts)
    assert len(options) == len(set(options))


def test_nothing_is_read_where_nothing_is_wanted(filled: Any) -> None:
    with filled.read() as unit:
        cache = ContextCache(unit)
        assert read(unit, cache, np.array([3, 1, 3])).ids.tolist() == []
        assert cache.table(np.array([3, 1, 3]), None)[1].tolist() == [1, 0, 1]
