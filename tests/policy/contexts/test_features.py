"""Contexts as hashed vectors."""

from typing import Any

import numpy as np

from rlrec.policy.contexts import features


def test_equal_contexts_have_equal_vectors_whatever_the_order_of_their_keys() -> None:
    item, other = features.encode([{"hour": 9, "device": "phone"}, {"device": "phone", "hour": 9.0}])
    assert np.array_equal(item, other)


def test_other_values_and_other_kinds_of_value_have_other_vectors() -> None:
    contexts = [
        {"a": "1"},
        {"a": "2"},
        {"a": 2},
        {"a": True},
        {"a": None},
        {"b": "1"},
        {"a": {"b": "1"}},
        {"a": ["1"]},
        {},
    ]
    assert len(np.unique(features.encode(contexts), axis=0)) == len(contexts)


def test_numbers_grow_slowly_and_never_overflow() -> None:
    encoded = features.encode([{"x": 10**400}, {"x": 1e308}, {"x": 1.0}, {"x": -1.0}])
    assert np.isfinite(encoded).all()
    assert abs(encoded[1]).max() < 1000
    assert np.array_equal(encoded[2], -encoded[3])


def test_a_context_has_the_same_vector_in_any_company() -> None:
    contexts: list[dict[str, Any]] = [{"x": 1e308}, {"x": 10**400}, {"x": [10**400, 1e308]}]
    assert np.array_equal(features.encode(contexts), np.vstack([features.encode([context]) for context in contexts]))


def test_no_context_is_no_row() -> None:
    assert features.encode([]).shape == (0, features.N_COLUMNS)


def test_a_table_names_whole_numbers_without_a_point() -> None:
    assert [features.text_of(value) for value in (3.0, 3, "3", 2.5, None)] == ["3", "3", "3", "2.5", "null"]
