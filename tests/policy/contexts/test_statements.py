"""What requests state in their contexts describes arms and pages, and no user: encoders do not see it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlrec.errors import InputError
from rlrec.policy.contexts import features
from rlrec.policy.contexts.encoder import Encoder, EncoderFit
from rlrec.policy.contexts.features import value_of
from rlrec.policy.contexts.statements import check_arms, check_names

PLAIN: dict[str, Any] = {"hour": 9, "likes": ["tea"]}
FULL = PLAIN | {
    "@arms": {"a": {"score": 1.5}, "b": {"features": {"price": 2}}},
    "@page": {"pin": {"1": "a"}},
    "@price": 0.5,
}


@pytest.mark.parametrize("spec", [{"hash": 16}, {"hash": 1024}, {"fields": {"hour": "number"}, "hash": 16}])
def test_an_encoder_reads_a_context_as_if_nothing_was_stated(spec: dict[str, Any]) -> None:
    encoder = Encoder.parse(spec)
    full, plain = (encoder.rows([context, {}, context]) for context in (FULL, PLAIN))
    if encoder.is_sparse:
        full, plain = (features.add_up(3, encoder.width, rows.row, rows.column, rows.value) for rows in (full, plain))
    assert np.array_equal(full, plain)


def test_a_fitted_encoder_has_no_field_of_a_statement() -> None:
    fits = EncoderFit(), EncoderFit()
    for fit, context in zip(fits, (FULL, PLAIN), strict=True):
        fit.take([context] * 10)
    assert fits[0].spec() == fits[1].spec()
    assert fits[0].spec()["fields"].keys() == {"hour", "likes"}


def test_a_field_of_a_statement_has_a_value_for_each_arm() -> None:
    assert value_of(FULL, "@arms.score") == {"a": 1.5}
    assert value_of(FULL, "@arms.features") == {"b": {"price": 2}}
    assert value_of(PLAIN, "@arms.score") is None
    assert value_of({"@arms": {"score": {"features": {}}}}, "@arms.score") is None  # an arm of that name


@pytest.mark.parametrize("name", ["@arms", "@page", "@arms.score"])
def test_a_declared_field_is_no_statement(name: str) -> None:
    with pytest.raises(InputError, match="a field is named"):
        Encoder.parse({"fields": {name: "number"}})


@pytest.mark.parametrize(("entries", "message", "field"), [
    ([1], "@arms is", "context.@arms"),
    ({"a": 1}, "arm 'a' is 1", "context.@arms.a"),
    ({"a": {"scor": 1}}, "arm 'a' has an unknown 'scor'", "context.@arms.a.scor"),
    ({"a": {"score": "1"}}, "the score of arm 'a' is \"1\"", "context.@arms.a.score"),
    ({"a": {"score": True}}, "the score of arm 'a' is true", "context.@arms.a.score"),
    ({"a": {"score": None}}, "the score of arm 'a' is null", "context.@arms.a.score"),
    ({"a": {"score": float("nan")}}, "the score of arm 'a' is NaN", "context.@arms.a.score"),
    ({"a": {"score": 1e101}}, "the score of arm 'a' is 1e+101", "context.@arms.a.score"),
    ({"a": {"score": 10**400}}, "the score of arm 'a' is 1000", "context.@arms.a.score"),
    ({"a": {"features": 5}}, "the features of arm 'a' are 5", "context.@arms.a.features"),
])  # fmt: skip
def test_a_statement_that_cannot_be_is_refused(entries: Any, message: str, field: str) -> None:
    with pytest.raises(InputError) as refused:
        check_arms(entries, field="context.@arms")
    assert refused.value.message.startswith(message)
    assert refused.value.field == field
    check_arms({"a": {"score": -3, "features": {}}, "b": {}}, field="context.@arms")


def test_other_names_that_begin_with_the_sign_are_refused() -> None:
    check_names({"@arms": {}, "@page": {}, "mail@home": 1})
    for name in ("@armz", "@price", "@"):
        with pytest.raises(InputError, match=f"'{name}'"):
            check_names({name: 1})
