"""This module reads the rules of a page as users declare them, in a request or in a policy."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from rlrec.errors import InputError, suggest
from rlrec.policy.scores.floors import MAX_POSITIONS
from rlrec.records import Record

RULES = ("pin", "most", "least")
EXAMPLES = {"pin": "1=KEY,3=KEY", "most": "FIELD=2", "least": "KEY=0.05,@GROUP=0.2@1"}
REQUEST = "request"
EVERYWHERE = 0  # stands for every position in a share
NO_EFFECT = " (no effect: no such arm was eligible)"


class PageRules(Record):
    """A PageRules object holds the rules of one page that a request or a policy declares.

    pin: the arm of each pinned position, from 1; most: the largest number of arms with the same value of a field, by
    field; least: the smallest probability of an arm, or of a group, by name and position; owner: `request` or
    `policy`, for errors."""

    pin: Mapping[int, str]
    most: Mapping[str, int]
    least: Mapping[str, Mapping[int, float]]
    owner: str

    @property
    def is_request(self) -> bool:
        return self.owner == REQUEST

    @property
    def names(self) -> dict[str, str]:
        """Return the arms and groups that the rules name. The value of each name is the text of a rule with this
        name."""
        shares = {name: f"least {share_text(name, by_position)}" for name, by_position in self.least.items()}
        return {key: f"pin {position}={key}" for position, key in self.pin.items()} | shares

    @property
    def groups(self) -> frozenset[str]:
        """Return the names of groups that the rules name, which begin with `@`. The key of an arm may begin with `@`,
        too."""
        return frozenset(name for name in self.least if name.startswith("@"))

    def text(self, rule: str, name: Any) -> str:
        """Return the text of a rule for errors, such as pin 1=KEY of the request.

        rule: pin, most or least; name: the position, the field, or the arm or group of the rule."""
        pair = share_text(name, self.least[name]) if rule == "least" else f"{name}={getattr(self, rule)[name]}"
        return f"{rule} {pair} of the {self.owner}"

    def texts(self, keys: Container[str], groups: Mapping[str, Iterable[str]]) -> list[str]:
        """Return the texts of all rules. The text of a rule that names no eligible arm says that the rule has no
        effect.

        keys: the keys of the eligible arms; groups: the keys of the members of each group."""
        arms: dict[str, dict[Any, Iterable[str]]] = {
            "pin": {position: (key,) for position, key in self.pin.items()},
            "least": {name: groups.get(name, (name,)) for name in self.least},
        }
        return [
            self.text(rule, name)
            + ("" if rule not in arms or any(key in keys for key in arms[rule][name]) else NO_EFFECT)
            for rule in RULES for name in getattr(self, rule)
        ]  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return the rules as a JSON object, in the form in which a context states them."""
        shares = {
            name: by_position.get(EVERYWHERE) or {str(position): share for position, share in by_position.items()}
            for name, by_position in self.least.items()
        }
        pins = {str(position): key for position, key in self.pin.items()}
        return {name: value for name, value in (("pin", pins), ("most", dict(self.most)), ("least", shares)) if value}


def share_text(name: str, by_position: Mapping[int, float]) -> str:
    """Return the least shares (smallest probabilities) of an arm or a group in the form in which users type them, such
    as KEY=0.05@1.

    by_position: the least share by position."""
    return ",".join(
        f"{name}={share}" if position == EVERYWHERE else f"{name}={share}@{position}"
        for position, share in by_position.items()
    )


def parse(value: Any, *, owner: str = REQUEST) -> PageRules:
    """Return the rules that a JSON object declares. Raises InputError for any other value.

    owner: `request` or `policy`, for errors."""
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
    for text, key in by_rule.get("pin", {}).items():
        position = _parse_position(text, f"pin {text}={key}")
        if not isinstance(key, str):
            raise _error(f"pin {text}={key}: {key!r} is no arm", "give the key of an arm")
        if position in pins or key in pins.values():
            pin = next(number for number, other_key in pins.items() if number == position or other_key == key)
            raise _error(f"pin {text}={key} contradicts pin {pin}={pins[pin]}", "leave one of them out")
        pins[position] = key
    for field, limit in by_rule.get("most", {}).items():
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise _error(f"most {field}={limit}: a cap is a whole number from 1", "to leave out arms, block them")
    least = {name: _parse_shares(name, shares) for name, shares in by_rule.get("least", {}).items()}
    return PageRules(pin=pins, most=by_rule.get("most", {}), least=least, owner=owner)


def _parse_shares(name: str, shares: Any) -> Mapping[int, float]:
    """Return the least shares of an arm or a group by position. Raises InputError for a share that is not a
    probability.

    name: the arm or group; shares: one share for all positions, or an object with a share for each position."""
    is_everywhere = not isinstance(shares, Mapping) or not shares
    for text, share in ((EVERYWHERE, shares),) if is_everywhere else shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not (isfinite(share) and 0 < share <= 1):
            suffix = "" if is_everywhere else f"@{text}"
            raise _error(f"least {name}={share}{suffix}: a share lies above 0, and is at most 1", "0.05 is 5 %")
    if is_everywhere:
        return {EVERYWHERE: shares}
    return {_parse_position(text, f"least {name}={share}@{text}"): share for text, share in shares.items()}


def _parse_position(text: Any, rule: str) -> int:
    """Return the position that a text states, from 1. Raises InputError for any other text.

    rule: the text of the rule that contains the position."""
    text = str(text)
    if not (text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= MAX_POSITIONS):
        raise _error(f"{rule}: {text!r} is no position", f"positions are 1 to {MAX_POSITIONS}")
    return int(text)


def parse_texts(text_by_rule: Mapping[str, str]) -> PageRules | None:
    """Return the rules of a page that the parameters of a policy declare. The result is None if there are no rules.
    Raises InputError for a text that declares no rule.

    text_by_rule: the text of each rule, such as 1=KEY,2=KEY, by the name of the rule."""
    page_json = dict[str, Any]()
    for rule in RULES:
        if text := text_by_rule.get(rule):
            pairs = [[word.strip() for word in pair.partition("=")] for pair in text.split(",")]
            if not all(map(all, pairs)):
                raise _error(f"{rule} is {text!r}", f"write {EXAMPLES[rule]}, each name once")
            add_typed(page_json, rule, [(name, value) for name, _, value in pairs])
    return parse(page_json, owner="policy") if page_json else None


def add_typed(page: dict[str, Any], rule: str, pairs: Iterable[Sequence[str]]) -> None:
    """Add a rule that a user typed to the JSON object that `parse` takes.

    page: the JSON object; rule: the name of the rule; pairs: pairs of a name and a value, where the value of a least
    share may be followed by `@` and a position. Raises InputError for a name that already has such a rule, and for a
    value that is not a number."""
    rules = page.setdefault(rule, {})
    for name, text in pairs if isinstance(rules, dict) else ():
        value, separator, position = text.partition("@") if rule == "least" else (text, "", "")
        try:
            number = value if rule == "pin" else int(value) if value.isdecimal() else float(value)
        except ValueError:
            raise _error(f"{rule} {name}={text}: {value!r} is no number", f"write {EXAMPLES[rule]}") from None
        by_position = rules.setdefault(name, {}) if separator else rules
        last_name = position if separator else name
        if not isinstance(by_position, dict) or last_name in by_position:
            raise _error(f"{rule} {name}={text}: {name} has a {rule} already", "give it once")
        by_position[last_name] = number


def _error(message: str, hint: str) -> InputError:
    return InputError(message, hint=hint, field="page")
