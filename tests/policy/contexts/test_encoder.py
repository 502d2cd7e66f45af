"""Contexts and arms as named vectors: declared, hashed and fitted."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from rlrec.errors import InputError
from rlrec.policy.beliefs.base import ALL_FIELDS
from rlrec.policy.contexts.encoder import Encoder, EncoderFit
from rlrec.policy.contexts.features import MAX_WIDTH, value_of

FULL = {
    "fields": {
        "hour": {"type": "number", "mean": 12, "scale": 6},
        "member": "flag",
        "device": {"values": ["ios", "android"], "hash": 4},
        "tags": {"list": ["a", "b"]},
        "embedding": {"vector": 2},
    }
}
VALUES = {"hour": 18, "member": True, "device": "android", "tags": ["b", "z", "b"], "embedding": [0.5, -2]}


def encoded(spec: dict[str, Any], values: dict[str, Any]) -> dict[str, float]:
    encoder = Encoder.parse(spec)
    return {name: x for name, x in zip(encoder.names, encoder.encode([values])[0], strict=True) if x}


def fitted(rows: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    fitting = EncoderFit()
    fitting.take(rows)
    return fitting.spec(**options)


def test_every_type_of_field_has_its_columns() -> None:
    expected = {"1": 1, "device=android": 1, "embedding[0]": 0.5, "embedding[1]": -2, "hour": 1, "member": 1}
    assert encoded(FULL, VALUES) == {**expected, "tags:b": 1}


@pytest.mark.parametrize("spec", [FULL, {}, {"hash": 16}, {"intercept": False, "fields": {"x": "number"}, "hash": 2}])
def test_names_and_width_agree(spec: dict[str, Any]) -> None:
    encoder = Encoder.parse(spec)
    assert encoder.encode([VALUES, {}]).shape == (2, len(encoder.names))
    assert encoder.encode([]).shape == (0, len(encoder.names))
    assert encoder.intercept == (encoder.names[0] == "1")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"other": 5},
        dict.fromkeys(VALUES),
        {"hour": "9", "member": 1, "device": 2.5, "tags": "a", "embedding": "no"},
        {"hour": True, "member": "yes", "device": ["ios"], "tags": ["a", 1], "embedding": [1, 2, 3]},
        {"hour": math.nan, "device": {"a": 1}, "tags": [["a"]], "embedding": [1, math.nan]},
        {"hour": 10**400, "embedding": [1, 10**400]},
        {"hour": math.inf, "embedding": [True, False]},
    ],
)
def test_what_is_unknown_or_of_another_type_counts_nothing(values: dict[str, Any]) -> None:
    assert encoded(FULL, values) == {"1": 1}


def test_a_number_is_cut_ten_scales_from_its_mean() -> None:
    encoder = Encoder.parse({"fields": {"x": {"type": "number", "mean": 1, "scale": 0.5}}})
    rows = [{"x": x} for x in (2, -1e308, 1e308, 6.5)]
    assert encoder.encode(rows)[:, 1].tolist() == [2, -10, 10, 10]


def test_a_category_that_is_not_listed_has_a_signed_column_that_never_changes() -> None:
    spec = {"fields": {"device": {"values": ["ios"], "hash": 4}, "tags": {"list": [], "hash": 8}}}
    assert encoded(spec, {"device": "tv", "tags": ["x", "y"]}) == {"1": 1, "device#3": 1, "tags#4": -1, "tags#5": -1}
    assert encoded({"fields": {"device": ["ios"]}}, {"device": "tv"}) == {"1": 1}


def test_a_text_is_read_word_by_word() -> None:
    words = Encoder.parse({"intercept": False, "fields": {"query": {"text": 1024}}})
    x = words.encode([{"query": "iced  tea iced"}, {"query": "tea"}, {"query": ["tea"]}])
    assert np.abs(x).sum(axis=1).tolist() == [2.0, 1.0, 0.0]
    assert (x[0] @ x[1], Encoder.parse(words.spec())) == (1.0, words)


def test_categories_go_by_their_names_in_json() -> None:
    encoder = Encoder.parse({"fields": {"x": [True, 3]}})
    assert encoder.names == ("1", "x=true", "x=3")
    assert encoder.encode([{"x": x} for x in (True, 3, 3.0, "3", 1)])[:, 1:].tolist() == [
        [1, 0],
        [0, 1],
        [0, 1],
        [0, 1],
        [0, 0],
    ]


def test_a_hashed_object_has_a_vector_that_never_changes() -> None:
    encoder = Encoder.by_hash(4)
    assert encoder.names == ("1", "#0", "#1", "#2", "#3")
    assert encoder.fields_read == ALL_FIELDS
    row = encoder.encode([{"hour": 9, "device": "phone", "tags": ["a", "b"], "geo": {"city": "Rome"}}])[0]
    np.testing.assert_allclose(row, [1, -1, 0, -1, 2 + math.asinh(9)], rtol=1e-12)


def test_what_is_read_is_what_is_declared() -> None:
    assert Encoder.parse(FULL).fields_read == ("device", "embedding", "hour", "member", "tags")
    assert Encoder.parse({}).fields_read == ()


@pytest.mark.parametrize("encoder", [Encoder.parse(FULL), Encoder.parse({}), Encoder.by_hash()])
def test_a_spec_is_written_in_full_and_taken_back(encoder: Encoder) -> None:
    shuffled = json.loads(json.dumps(encoder.spec(), sort_keys=True))
    again = Encoder.parse(shuffled)
    assert again == encoder
    assert again.names == encoder.names
    assert again.spec() == encoder.spec()
    assert again != Encoder.parse({"fields": {"hour": {"type": "number", "mean": 11}}})


def test_short_forms_are_written_in_full() -> None:
    short = {"a": "number", "b": "flag", "c": ["x"], "d": {"vector": 3}, "e": {"hash": 16}, "f": {"list": ["x"]}}
    assert Encoder.parse({"fields": short}).spec()["fields"] == {
        "a": {"type": "number", "mean": 0.0, "scale": 1.0},
        "b": {"type": "flag"},
        "c": {"type": "category", "values": ["x"], "hash": 0},
        "d": {"type": "vector", "length": 3},
        "e": {"type": "category", "values": [], "hash": 16},
        "f": {"type": "list", "values": ["x"], "hash": 0},
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hour", "9"),
        ("hour", True),
        ("hour", math.nan),
        ("hour", -math.inf),
        ("hour", 10**400),
        ("member", 1),
        ("device", 2.5),
        ("device", ["ios"]),
        ("tags", "a"),
        ("tags", ["a", 1]),
        ("embedding", "0.5,-2"),
        ("embedding", [1]),
        ("embedding", [1, "2"]),
        ("embedding", [1, math.nan]),
        ("embedding", [1, 1e300]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name) as caught:
        Encoder.parse(FULL).check({**VALUES, name: value}, subject="features")
    assert caught.value.field == f"features.{name}"
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_what_is_missing_unknown_or_not_read_is_fine() -> None:
    for values in ({}, VALUES, dict.fromkeys(VALUES), {"device": "tv", "tags": [], "other": math.nan}, {"device": 3}):
        Encoder.parse(FULL).check(values)


def test_a_hashed_object_may_hold_anything_but_nan() -> None:
    Encoder.by_hash().check({"a": {"b": [1, "x", None, True]}})
    with pytest.raises(InputError, match='"a" is') as caught:
        Encoder.by_hash().check({"a": {"b": [1, math.nan]}})
    assert caught.value.field == "context.a"


@pytest.mark.parametrize(
    "spec",
    [
        [],
        {"field": {}},
        {"fields": ["x"]},
        {"intercept": 1},
        {"intercept": False},
        {"hash": 3},
        {"hash": True},
        {"fields": {"": "number"}},
        {"fields": {"x" * 201: "number"}},
        {"fields": {"x": "numbr"}},
        {"fields": {"x": 5}},
        {"fields": {"x": {"type": "number", "scale": 0}}},
        {"fields": {"x": {"type": "number", "mean": "1"}}},
        {"fields": {"x": {"type": "number", "men": 1}}},
        {"fields": {"x": {"type": "flag", "kind": "flag"}}},
        {"fields": {"x": []}},
        {"fields": {"x": ["a", "a"]}},
        {"fields": {"x": [["a"]]}},
        {"fields": {"x": {"values": ["a"], "hash": 5}}},
        {"fields": {"x": {"type": ["a"]}}},
        {"fields": {"x": {"vector": 0}}},
        {"fields": {"x": "vector"}},
        {"fields": {"1": "number"}},
    ],
)
def test_a_spec_that_cannot_be_is_refused_with_a_way_out(spec: Any) -> None:
    with pytest.raises(InputError) as caught:
        Encoder.parse(spec)
    assert caught.value.hint


def test_an_encoder_of_more_than_128_columns_encodes_without_zeros() -> None:
    assert not Encoder.parse({"fields": {"x": {"vector": 127}}}).is_sparse
    assert Encoder.parse({"fields": {"x": {"vector": 127}, "y": "flag"}}).is_sparse


@pytest.mark.parametrize("columns", [1 << 19, 3, -1, 100_000])
def test_a_hash_is_a_power_of_two_up_to_262144(columns: int) -> None:
    with pytest.raises(InputError, match="hash of"):
        Encoder.parse({"hash": columns})


def test_sparse_rows_hold_what_dense_ones_do() -> None:
    encoder = Encoder.parse(
        {"fields": {"n": "number", "t": ["x"], "l": {"list": ["p"], "hash": 8}, "b": "flag"}, "hash": 16}
    )
    dense, sparse = encoder.encode(ROWS), encoder.encode_sparse(ROWS)
    filled = np.zeros_like(dense)
    filled[np.repeat(np.arange(len(ROWS)), np.diff(sparse.start)), sparse.column] = sparse.value
    filled[:, 0] = 1.0  # the intercept
    np.testing.assert_allclose(filled, dense, rtol=1e-14)


def test_a_shorter_hash_folds_a_longer_one() -> None:
    rows = [{"words": [f"w{number}" for number in range(50)], "price": 3.5, "new": True}]
    long = Encoder.parse({"hash": 1 << 18, "intercept": False}).encode_sparse(rows)
    short = Encoder.parse({"hash": 64, "intercept": False}).encode(rows)[0]
    np.testing.assert_allclose(np.bincount(long.column % 64, long.value, 64), short, atol=1e-12)


ROWS = [
    {"n": 1.0, "b": True, "t": "x", "l": ["p", "q"], "v": [1, 2], "o": {"z": 1}, "m": "text", "k": 7},
    {"n": 3.0, "b": False, "t": "y", "l": ["p"], "v": [3, 4], "o": {"z": 2}, "m": 5, "k": 7},
    {"n": 5.0, "b": None, "t": "y", "l": [], "v": [5, 6], "w": [1, 2], "k": 7},
    {"w": [1, 2, 3]},
]


def test_a_fitted_spec_has_the_type_of_every_field() -> None:
    assert fitted(ROWS)["fields"] == {
        "b": {"type": "flag"},
        "k": {"type": "number", "mean": 7.0, "scale": 1.0},
        "l": {"type": "list", "values": ["p", "q"], "hash": 0},
        "n": {"type": "number", "mean": 3.0, "scale": 1.63299},
        "o.z": {"type": "number", "mean": 1.5, "scale": 0.5},
        "t": {"type": "category", "values": ["y", "x"], "hash": 0},
        "v": {"type": "vector", "length": 2},
    }


def test_what_is_seldom_of_another_type_does_not_decide() -> None:
    rows = [{"t": "x", "n": 4.5}] * 3 + [{"t": 3, "n": "none"}]
    assert {name: field["type"] for name, field in fitted(rows)["fields"].items()} == {"t": "category", "n": "number"}


def test_an_empty_log_gives_the_intercept_alone() -> None:
    assert EncoderFit().spec() == {"intercept": True, "fields": {}}
    assert fitted([{}, {"x": None}]) == {"intercept": True, "fields": {}}


def test_no_room_for_a_field_leaves_the_intercept_alone() -> None:
    assert fitted([{"price": 1}, {"price": 2}], max_columns=0) == {"intercept": True, "fields": {}}


def test_parts_of_a_log_say_what_the_whole_says() -> None:
    rng = np.random.default_rng(5)
    draws = zip(
        rng.normal(1.7e9, 40, 900).tolist(), rng.geometric(0.05, 900), rng.integers(0, 9, (900, 3)), strict=True
    )
    rows = [{"at": at, "city": f"c{city}", "tags": [f"t{tag}" for tag in tags]} for at, city, tags in draws]
    parts = [EncoderFit(), EncoderFit()]
    parts[0].take(rows[:100])
    parts[1].take(rows[100:450])
    parts[1].take(iter(rows[450:]))
    assert (parts[0] + parts[1]).spec() == (parts[1] + parts[0]).spec() == fitted(rows)
    x = Encoder.parse(fitted(rows)).encode(rows)[:, 1]
    assert (abs(x.mean()) < 1e-4, abs(x.std() - 1) < 1e-4) == (True, True)


def test_the_most_frequent_texts_are_listed_and_the_rest_is_hashed() -> None:
    rows = [{"t": text} for text in "ccbbad"]
    assert fitted(rows, max_values=3)["fields"]["t"] == {"type": "category", "values": ["b", "c", "a"], "hash": 8}
    assert fitted(rows, max_values=4)["fields"]["t"] == {"type": "category", "values": ["b", "c", "a", "d"], "hash": 0}


def test_a_text_too_long_for_a_name_is_hashed() -> None:
    assert fitted([{"t": "x" * 201}, {"t": "y"}])["fields"]["t"] == {"type": "category", "values": ["y"], "hash": 8}


def test_a_fitted_encoder_fits_the_limit() -> None:
    many = {f"n{at}": at for at in range(40)} | {"v": [0.0] * 40}
    rows = [{**many, "t": f"t{at}", "u": f"u{at % 25}", "s": f"s{at % 3}"} for at in range(50)]
    fields = fitted(rows)["fields"]
    assert len(Encoder.parse(fitted(rows)).names) in (MAX_WIDTH - 1, MAX_WIDTH)
    assert fields["s"] == {"type": "category", "values": ["s0", "s1", "s2"], "hash": 0}
    assert len(fields["t"]["values"]) == len(fields["u"]["values"]) < 20
    broad = [{f"n{at:03}": 1.0 for at in range(300)} | {"v": [0.0] * 120}, {"n299": 2.0}]
    retained = fitted(broad)["fields"]
    assert (len(retained), "v" in retained, "n299" in retained, "n000" in retained) == (
        MAX_WIDTH - 1,
        False,
        True,
        True,
    )


def test_texts_without_end_take_a_bounded_memory() -> None:
    fitting = EncoderFit()
    for number in range(3):
        fitting.take([{"id": f"{number}-{at}", "same": "x"} for at in range(8_000)] + [{"id": "often"}] * 2)
    assert len(fitting.fields["id"].words) <= 10_001
    assert fitting.fields["id"].words.total() == 24_006
    assert fitting.spec(max_values=1)["fields"]["id"] == {"type": "category", "values": ["often"], "hash": 8}


def test_fields_whose_columns_share_a_name_are_not_both_fitted() -> None:
    spec = fitted([{"1": 5, "a": "b", "a=b": True}])
    assert list(spec["fields"]) == ["a"]


# -- objects inside objects, as the namespaces of Vowpal Wabbit --

NAMESPACES = [
    {"User": {"name": name, "age": age}, "From": [{"time": time}], "hour": 9}
    for name, age, time in (("Tom", 20, "noon"), ("Ann", 40, "night"), ("Tom", 30, "noon"))
]


def test_a_field_may_lie_inside_an_object() -> None:
    spec = {"fields": {"User.name": ["Tom", "Ann"], "From.time": ["night"], "User.height": "number"}}
    assert [encoded(spec, values) for values in NAMESPACES] == [
        {"1": 1, "User.name=Tom": 1},
        {"1": 1, "User.name=Ann": 1, "From.time=night": 1},
        {"1": 1, "User.name=Tom": 1},
    ]


def test_a_name_with_a_dot_goes_before_a_path() -> None:
    values = {"a.b": 1, "a": {"b": 2, "c.d": 3}}
    assert [value_of(values, name) for name in ("a.b", "a.c.d", "a.x", "x.a")] == [1, 3, None, None]


def test_a_fit_takes_fields_of_objects() -> None:
    assert list(fitted(NAMESPACES)["fields"]) == ["From.time", "User.age", "User.name", "hour"]


def test_a_value_inside_an_object_has_its_type() -> None:
    with pytest.raises(InputError, match=r'"User.name" is 5.5'):
        Encoder.parse({"fields": {"User.name": ["Tom"]}}).check({"User": {"name": 5.5}})
