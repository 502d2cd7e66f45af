"""Rules of a page as people write them: what is taken, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from rlrec.errors import InputError
from rlrec.policy.slates.page_rules import parse, parse_texts


def test_rules_have_one_normal_form() -> None:
    page = parse({"least": {"b": 0.5}, "pin": {"02": "a"}, "most": None})
    assert page.to_json() == {"pin": {"2": "a"}, "least": {"b": 0.5}}
    assert parse(page.to_json()) == page
    assert parse({}).to_json() == {}


def test_shares_may_have_positions() -> None:
    page = parse({"least": {"b": {"01": 0.5, "3": 1}, "@home": {"2": 0.5}}})
    assert page.to_json() == {"least": {"b": {"1": 0.5, "3": 1}, "@home": {"2": 0.5}}}
    assert page.text("least", "b") == "least b=0.5@1,b=1@3 of the request"
    typed = parse_texts({"least": "b=0.5@1, b=1@3, @home=0.5@2"})
    assert typed is not None
    assert typed.to_json() == {"least": {"b": {"1": 0.5, "3": 1}, "@home": {"2": 0.5}}}


def test_rules_of_a_policy_are_texts() -> None:
    page = parse_texts({"pin": "1=a, 3=b=c", "most": "shelf=2", "least": "a=0.05,b=.1", "block": "x"})
    assert page is not None
    assert page.to_json() == {"pin": {"1": "a", "3": "b=c"}, "most": {"shelf": 2}, "least": {"a": 0.05, "b": 0.1}}
    assert parse_texts({"block": "x"}) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "the page is 3"),
        ({"pins": {}}, "unknown rule 'pins'"),
        ({"pin": ["a"]}, "pin is ['a']"),
        ({"pin": {"0": "a"}}, "'0' is no position"),
        ({"pin": {"501": "a"}}, "'501' is no position"),
        ({"pin": {"first": "a"}}, "'first' is no position"),
        ({"pin": {"1": 7}}, "7 is no arm"),
        ({"pin": {"1": "a", "2": "a"}}, "pin 2=a contradicts pin 1=a"),
        ({"pin": {"1": "a", "01": "b"}}, "pin 01=b contradicts pin 1=a"),
        ({"most": {"shelf": 0}}, "most shelf=0"),
        ({"most": {"shelf": True}}, "most shelf=True"),
        ({"most": {"shelf": 1.5}}, "most shelf=1.5"),
        ({"least": {"a": 0}}, "least a=0"),
        ({"least": {"a": float("nan")}}, "least a=nan"),
        ({"least": {"a": "0.1"}}, "least a=0.1"),
        ({"least": {"a": {}}}, "least a={}: a share"),
        ({"least": {"a": {"x": 0.6}}}, "least a=0.6@x: 'x' is no position"),
        ({"least": {"a": {"1": 1.5}}}, "least a=1.5@1: a share"),
        ({"groups": {"@b": ["a"]}}, "unknown rule 'groups'"),
    ],
)
def test_what_is_no_rule_is_refused(value: Any, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        parse(value)
    assert message in refusal.value.message
    assert refusal.value.field == "page"


@pytest.mark.parametrize("text", ["a", "1=", "=a", "1=a,,2=b"])
def test_a_text_that_is_no_list_of_pairs_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="pin is"):
        parse_texts({"pin": text})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"most": "shelf=two"}, "'two' is no number"),
        ({"least": "a=@1"}, "'' is no number"),
        ({"pin": "1=a,1=b"}, "1 has a pin already"),
        ({"least": "a=0.1,a=0.2@1"}, "a has a least already"),
        ({"least": "a=0.2@1,a=0.1@1"}, "a has a least already"),
        ({"least": "a=0.2@1,a=0.1"}, "a has a least already"),
        ({"least": "a=0.2@"}, "least a=0.2@: '' is no position"),
    ],
)
def test_a_typed_rule_that_is_none_is_refused(texts: dict[str, str], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        parse_texts(texts)
    assert message in refusal.value.message
