"""This module reads the rules by which requests and policies exclude arms, in the form in which users write them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from rlrec.errors import InputError, quantity, suggest
from rlrec.policy import NARROWING
from rlrec.policy.slates.page_rules import parse_texts
from rlrec.store import Store, Unit
from rlrec.store.log import events
from rlrec.store.log.contents import Eligible
from rlrec.store.policies import arms, policies
from rlrec.times import DAY_US, duration

NO_WINDOW = 2**61  # microseconds: longer than any time span
LONGEST_US = 36_500 * DAY_US
N_EVENTS = 10_000  # newest events, in which a kind is searched


class PastRule(NamedTuple):
    """A PastRule excludes arms that a person has seen or acted on, within a window before the request. With a kind, it
    excludes arms for which the person has events of this kind. Without a kind, it excludes arms that were shown to the
    person `times` times.

    name: the name of the parameter; text: the rule as the user wrote it; group: the group, as @NAME, whose arms are
    counted and excluded together, or "" to count each arm by itself."""

    name: str
    text: str
    kind: str | None
    times: int
    window_us: int
    group: str

    def excludes_at(self, amount: float) -> bool:
        return amount >= self.times if self.kind is None else amount != 0


@dataclass(slots=True, kw_only=True, eq=False)
class Narrowing:
    """This record holds the arms left to a request after rules: `superset` without `lacking` and `past_arms`.

    excluded_counts: for each rule, the number of arms that it excluded among the arms left by earlier rules; total:
    the number of all arms that may be served; past_rules: the rules on what the person was shown or did, which
    excluded `past_arms`."""

    eligible: Eligible
    superset: tuple[int, ...]
    total: int
    lacking: frozenset[int] = frozenset()
    excluded_counts: tuple[tuple[str, int], ...] = ()
    past_rules: tuple[PastRule, ...] = ()
    past_arms: frozenset[int] = frozenset()

    @property
    def lists(self) -> str:
        """Return the names of the rules that excluded an arm, other than rules on what the person was shown or did, for
        a message."""
        return " or ".join(
            rule for rule, count in self.excluded_counts[: len(self.excluded_counts) - len(self.past_rules)] if count
        )

    def hint(self) -> str | None:
        """Return a text that says how many arms each rule excluded, or None if no rule excluded an arm."""
        texts = [f"{rule} takes {count}" for rule, count in self.excluded_counts if count]
        return f"of {quantity(self.total, 'arm')}, {', '.join(texts)}" if texts else None


class Rules(NamedTuple):
    """This record holds the rules of a request or a policy. chosen_names: the arms and groups to which it is restricted
    (None for all arms); blocked_names: the arms and groups that it never shows; past_rules: rules on what a person was
    shown or did."""

    chosen_names: tuple[str, ...] | None
    blocked_names: tuple[str, ...]
    past_rules: tuple[PastRule, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all arms and groups in the rules."""
        groups = (rule.group for rule in self.past_rules if rule.group)
        return (*(self.chosen_names or ()), *self.blocked_names, *groups)

    @property
    def kinds(self) -> set[str]:
        """Return the kinds of events that the rules name."""
        return {rule.kind for rule in self.past_rules if rule.kind is not None}


def request_rules(
    arms: Sequence[str] | None, block: Sequence[str] | None, not_after: Sequence[str] | None,
    not_shown: str | int | None,
) -> Rules:  # fmt: skip
    """Parse the rules of a request. Raises InputError for an invalid rule."""
    past_rules = [_parse_past_rule("not_after", text) for text in not_after or ()]
    past_rules += [
        _parse_past_rule("not_shown", text)
        for text in ([] if not_shown is None else _split_words(str(not_shown), "not_shown"))
    ]
    return Rules(None if arms is None else tuple(arms), tuple(block or ()), tuple(past_rules))


def policy_rules(params: Mapping[str, Any]) -> Rules:
    """Parse the rules among the parameters of a policy. Raises InputError for an invalid rule."""
    words = {name: _split_words(str(params[name]), name) for name in NARROWING if params.get(name)}
    past_rules = [_parse_past_rule(name, text) for name in ("not_after", "not_shown") for text in words.get(name, ())]
    return Rules(words.get("arms"), words.get("block", ()), tuple(past_rules))


def ruled_kinds(unit: Unit) -> set[str]:
    """Return the kinds of events that a rule of any policy names."""
    return {kind for policy in policies.all_policies(unit) for kind in policy_rules(policy.params).kinds}


class ArmLists(NamedTuple):
    """This record holds the ids of the arms to which a policy is restricted (None for all), and the ids of arms that
    the policy never shows."""

    chosen_ids: frozenset[int] | None
    blocked_ids: frozenset[int]

    def keep_allowed(self, arm_ids: Iterable[int]) -> list[int]:
        """Return those of the given arms that the policy may show, in the same order."""
        chosen_ids, blocked_ids = self.chosen_ids, self.blocked_ids
        return [arm for arm in arm_ids if arm not in blocked_ids and (chosen_ids is None or arm in chosen_ids)]


def arm_lists(unit: Unit, params: Mapping[str, Any]) -> ArmLists | None:
    """Return the arms to which a policy is restricted, and the arms that it never shows, with the present members of
    groups. Returns None if the policy has no such rule. params: the parameters of the policy."""
    rules = policy_rules(params)
    if rules.chosen_names is None and not rules.blocked_names:
        return None
    from rlrec.app.inputs.arm_names import ArmNames

    names = ArmNames(unit, rules.names)
    chosen_ids = None if rules.chosen_names is None else names.find(rules.chosen_names)
    return ArmLists(chosen_ids, names.find(rules.blocked_names))


def allowed_arms(unit: Unit, params: Mapping[str, Any]) -> list[int]:
    """Return the ids, ascending, of the arms that a policy may show now to a person who was shown nothing before.
    params: the parameters of the policy."""
    lists, (active_ids, _, _) = arm_lists(unit, params), arms.active_arms(unit)
    return list(active_ids) if lists is None else lists.keep_allowed(active_ids)


def idle_page_rules(unit: Unit, texts: Mapping[str, str]) -> list[str]:
    """Return those page rules of a policy that have no effect now, since the policy may show none of the arms that they
    name."""
    from rlrec.app.inputs.arm_names import ArmNames

    if (rules := parse_texts(texts)) is None:
        return []
    names, allowed_ids = ArmNames(unit, rules.names), set(allowed_arms(unit, texts))
    return [text for name, text in rules.names.items() if allowed_ids.isdisjoint(names.find([name]))]


def notice_unseen_kinds(store: Store, unit: Unit, kinds: Collection[str]) -> None:
    """Print a notice if rules name kinds of events that do not seem to be recorded."""
    expected_kinds = {kind for reward in policies.rewards(unit) for kind in reward.weights}
    expected_kinds |= events.newest_kinds(unit, N_EVENTS) if {*kinds} - expected_kinds else set()
    for kind in sorted({*kinds} - expected_kinds):
        message = f"no reward definition weighs {kind!r}, and none of the {N_EVENTS:,} newest events is one"
        hint = suggest(kind, sorted(expected_kinds)) or "it takes arms once one comes"
        store.notice(f"not_after {kind}: {message}: {hint}")


@lru_cache(maxsize=1_000)
def _split_words(text: str, name: str) -> tuple[str, ...]:
    """Split a comma-separated list, or a JSON array of texts, into its words. Raises InputError for an empty word.
    name: the parameter, for the error."""
    words: list[Any] = [word.strip() for word in text.split(",")]
    if text.lstrip().startswith("["):
        try:
            words = json.loads(text)
        except ValueError:
            words = [None]
    if not all(isinstance(word, str) and word for word in words):
        raise InputError(f"{name} is {text[:60]!r}", hint='write a,b or ["a", "b"]', field=name)
    return tuple(words)


@lru_cache(maxsize=1_000)
def _parse_past_rule(name: str, text: str) -> PastRule:
    """Parse a rule on what a person was shown or did. The text is KIND or KIND/WINDOW for `not_after`, and N or
    N/WINDOW for `not_shown`; it may begin with @GROUP=. Raises InputError for any other text."""
    group, _, rule = text.partition("=") if text.startswith("@") else ("", "", text)
    criterion, slash, window = rule.rpartition("/") if "/" in rule else (rule, "", "")
    window_us = (duration(window) or 0) if slash else NO_WINDOW
    is_count = re.fullmatch("[1-9][0-9]{0,8}", criterion) is not None
    is_window = not slash or 0 < window_us <= LONGEST_US
    if not criterion or not is_window or not (is_count or name == "not_after"):
        hint = "write purchase or purchase/30d" if name == "not_after" else "write 3 or 3/7d: so many times, in 7 days"
        raise InputError(
            f"{name} is {text[:60]!r}", hint=f"{hint}; @GROUP= before it counts its arms together", field=name
        )
    kind, times = (criterion, 1) if name == "not_after" else (None, int(criterion))
    return PastRule(name, text, kind, times, window_us, group)
