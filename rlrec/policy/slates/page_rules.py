"""Rules of a page as people declare them, in a request or in a policy."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from rlrec.errors import InputError, suggest
from rlrec.policy.scores.floors import LONGEST

RULES = ("pin", "most", "least")
EXAMPLES = {"pin": "1=KEY,3=KEY", "most": "FIELD=2", "least": "KEY=0.05"}
REQUEST = "request"


@dataclass(frozen=True, kw_only=True)
class PageRules:
    """Rules of one page. pin: the arm of a position from 1; most: how many arms with the same value of a field; least:
    the smallest probability of an arm at a position. owner: who declares them, as errors say it."""

    pin: Mapping[int, str]
    most: Mapping[str, int]
    least: Mapping[str, float]
    owner: str

    @property
    def is_request(self) -> bool:
        return self.owner == REQUEST

    def text(self, rule: str, name: Any) -> str:
        """One of the rules, as errors name it."""
        return f"{rule} {name}={getattr(self, rule)[name]} of the {self.owner}"

    def texts(self, keys: Container[str] | None = None) -> list[str]:
        """All of them. keys: of the eligible arms; a rule that names another one is left out."""
        named: dict[str, Mapping[Any, str]] = {"pin": self.pin, "least": {key: key for key in self.least}, "most": {}}
        return [
            self.text(rule, name) for rule in RULES for name in getattr(self, rule)
            if keys is None or name not in named[rule] or named[rule][name] in keys
        ]  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The rules as a context has them: those that are declared."""
        declared = {"pin": {str(position): key for position, key in self.pin.items()}, "most": self.most}
        return {name: dict(value) for name, value in {**declared, "least": self.least}.items() if value}


def parse(value: Any, *, owner: str = REQUEST) -> PageRules:
    """The rules that a JSON object declares. Raises InputError for anything else."""
    if not isinstance(value, Mapping):
        raise _error(
            f"the page is {value!r}", 'write {"pin": {"1": "KEY"}, "most": {"FIELD": 2}, "least": {"KEY": 0.05}}'
        )
    for name in value:
        if name not in RULES:
            raise _error(f"unknown rule {name!r}", suggest(str(name), list(RULES)) or f"rules are {', '.join(RULES)}")
    by_rule = {name: value[name] if value.get(name) is not None else {} for name in RULES if name in value}
    for name, pairs in by_rule.items():
        if not isinstance(pairs, Mapping):
            raise _error(f"{name} is {pairs!r}", f'write {{"{name}": {{"NAME": VALUE}}}}')
    pins: dict[int, str] = {}
    for position, key in by_rule.get("pin", {}).items():
        text = str(position)
        if not (text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= LONGEST):
            raise _error(f"pin {text}={key}: {text!r} is no position", f"positions are 1 to {LONGEST}")
        if not isinstance(key, str):
            raise _error(f"pin {text}={key}: {key!r} is no arm", "give the key of an arm")
        if int(text) in pins or key in pins.values():
            first = next(number for number, other in pins.items() if number == int(text) or other == key)
            raise _error(f"pin {text}={key} contradicts pin {first}={pins[first]}", "leave one of them out")
        pins[int(text)] = key
    for field, limit in by_rule.get("most", {}).items():
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise _error(f"most {field}={limit}: a cap is a whole number from 1", "to leave out arms, block them")
    for key, share in by_rule.get("least", {}).items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not (isfinite(share) and 0 < share <= 1):
            raise _error(f"least {key}={share}: a share lies above 0, and is at most 1", "0.05 is 5 %")
    total = sum(by_rule.get("least", {}).values())
    if total > 1 + 1e-12:
        names = " and ".join(f"least {key}={share:g}" for key, share in by_rule["least"].items())
        raise _error(f"{names} add up to {total:g}", "they add up to 1 at most")
    return PageRules(pin=pins, most=by_rule.get("most", {}), least=by_rule.get("least", {}), owner=owner)


def declared(texts: Mapping[str, str]) -> PageRules | None:
    """The rules of a policy, from its parameters: texts such as 1=KEY,2=KEY by the name of the rule; None without any.

    Raises InputError for any other text."""
    pairs = {name: _pairs(name, texts[name]) for name in RULES if texts.get(name)}
    return parse(pairs, owner="policy") if pairs else None


def _pairs(rule: str, text: str) -> dict[str, Any]:
    """The pairs of a rule that is typed as NAME=VALUE,NAME=VALUE."""
    pairs = dict[str, Any]()
    for pair in text.split(","):
        name, equals, value = (pairs.strip() for pairs in pair.partition("="))
        if not (name and equals and value) or name in pairs:
            raise _error(f"{rule} is {text!r}", f"write {EXAMPLES[rule]}, each name once")
        try:
            pairs[name] = value if rule == "pin" else int(value) if rule == "most" else float(value)
        except ValueError:
            raise _error(f"{rule} {pair}: {value!r} is no number", f"write {EXAMPLES[rule]}") from None
    return pairs


def _error(message: str, hint: str) -> InputError:
    return InputError(message, hint=hint, field="page")
