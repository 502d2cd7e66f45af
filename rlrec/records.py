"""This module defines frozen records that several layers share, with the standard library only. A NamedTuple loads five
times as fast as a dataclass, and every command would wait for that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field
from functools import partial, reduce
from operator import add, iadd
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar, dataclass_transform

K = TypeVar("K")
CURVE = ("position", "examination")  # parameters with the name of a curve, and its values
LEARNED = (*CURVE, "prior_mean", "prior_sd", "cells")  # the parameters that a version may have instead of its policy


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class Record:
    """Record is the base of records: a subclass is a frozen dataclass whose fields are given by name. Options of its
    class statement, those of a dataclass, change that. `eq=False` is for records that are compared by identity, such as
    those with arrays."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    if TYPE_CHECKING:

        def __init_subclass__(cls, **options: bool) -> None: ...

    else:  # no function of this package, through which each import of a record would go
        __init_subclass__ = classmethod(partial(dataclass, frozen=True, kw_only=True))


@dataclass_transform(frozen_default=True, eq_default=False)
class Sums:
    """Sums is the base of sums that are added field by field: mappings key by key, flags by `or`, sets by union. None
    adds nothing. A subclass is a frozen dataclass, compared by identity; options of its class statement change that."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    if TYPE_CHECKING:

        def __init_subclass__(cls, **options: bool) -> None: ...

    else:
        __init_subclass__ = classmethod(partial(dataclass, frozen=True, eq=False))

    def __add__(self, other: Self) -> Self:
        return type(self)(**{name: _add(value, getattr(other, name)) for name, value in vars(self).items()})

    def __iadd__(self, other: Self) -> Self:
        """Add like +, but in place in the arrays of this side, which nobody else may use."""
        return type(self)(**{name: _add(value, getattr(other, name), iadd) for name, value in vars(self).items()})

    def closed(self) -> Self:
        """Return the sums of a partition of the log, given that no other partition adds to the same units."""
        return type(self)(**{name: _closed(value) for name, value in vars(self).items()})


def _add(left: Any, right: Any, plus: Callable[[Any, Any], Any] = add) -> Any:
    if left is None or right is None:
        return right if left is None else left
    if isinstance(left, Mapping):
        return {**left, **{key: _add(left[key], sums, plus) if key in left else sums for key, sums in right.items()}}
    return left | right if isinstance(left, bool | frozenset) else plus(left, right)


def _closed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _closed(entry) for key, entry in value.items()}
    return value.closed() if isinstance(value, Sums) else value


def add_each(left: Mapping[K, Any], right: Mapping[K, Any]) -> dict[K, Any]:
    """Add the values of both mappings key by key."""
    added: dict[K, Any] = _add(left, right)
    return added


def add_up(partials: Iterable[Any]) -> Any:
    """Return the sum of partials, or None if there are no partials. None adds nothing."""
    return reduce(_add, partials, None)


class Arm(NamedTuple):
    """This record is an arm in its present state. `features` is JSON; `retired_at` is None while the arm may be served,
    within its times of eligibility if it has these."""

    id: int
    key: str
    features: str
    added_at: int
    retired_at: int | None
    eligible_from: int | None
    eligible_until: int | None

    def status(self, now: int) -> str:
        """Return the status of the arm at a time: active (only then it may be served), retired, upcoming or ended."""
        if self.retired_at is not None:
            return "retired"
        if self.eligible_from is not None and now < self.eligible_from:
            return "upcoming"
        return "active" if self.eligible_until is None or now < self.eligible_until else "ended"


class Transform(NamedTuple):
    """This record changes the sum of a kind's values before it is weighed. The sum is cut at `cap`, then replaced by
    log1p of its absolute value with its sign."""

    log1p: bool = False
    cap: float | None = None


class Reward(NamedTuple):
    """This record defines a reward: how the reward of a slot follows from its events, and when a belief learns it.
    `weights` has every kind that counts; `transforms` those kinds whose sum is transformed first."""

    id: int
    name: str
    weights: Mapping[str, float]
    window_us: int
    default: float
    clip_low: float | None
    clip_high: float | None
    learn: str
    late: str
    transforms: Mapping[str, Transform] = {}


class StoredPolicy(NamedTuple):
    """This record is a policy, which never changes. A variant of an experiment has its own belief, and therefore its
    own name, POLICY@EXPERIMENT/VARIANT. `base_id` is the policy of which it is a copy; a uniform holdout has none."""

    id: int
    name: str
    kind: str
    params: Mapping[str, Any]
    base_id: int | None

    @property
    def base(self) -> str:
        """Return the name that a user gave. For a variant, return the name of the policy of which it is a copy."""
        return self.name.partition("@")[0]


class Version(Record):
    """This record is a numbered belief of a policy; `seq` and `ordinal` are the policy's counters at its creation.

    `entered_to` is the last decision of the policy that has entered the belief; None: all have. `parameters`: the
    design of a contextual policy, and `since`, the first decision in the belief. has_omissions: whether the belief
    left some decisions out."""

    id: int
    policy: StoredPolicy
    number: int
    status: str
    reward: Reward
    parent_id: int | None
    seq: int
    ordinal: int
    entered_to: int | None
    learned_from: Mapping[str, Any]
    parameters: Mapping[str, Any]
    created_at: int
    has_omissions: bool = False

    @property
    def params(self) -> Mapping[str, Any]:
        """Return the parameters of the version's policy, with the curve and the prior of this version if it was
        rebuilt."""
        return {**self.policy.params, **{name: self.parameters[name] for name in LEARNED if name in self.parameters}}

    @property
    def reference(self) -> str:
        """Return POLICY@V, the form that commands take."""
        return f"{self.policy.name}@{self.number}"

    @property
    def learning(self) -> bool:
        return self.status == "learning"

    @property
    def contextual(self) -> bool:
        """Tell whether the belief holds sums over contexts."""
        return "context" in self.parameters

    @property
    def since(self) -> int:
        return int(self.parameters.get("since", 0))


class Head(NamedTuple):
    """This record is the mutable row of a policy: counters of changes and decisions, and the live version."""

    policy_id: int
    seq: int
    ordinal: int
    live_id: int


class Event(NamedTuple):
    """This record is an event of a slot, or of the page if it has no position. `number` counts within the decision."""

    decision_id: int
    position: int | None
    kind: str
    value: float
    at: int
    received_at: int
    seq: int = 0
    key: str | None = None
    number: int = 0


class Line(NamedTuple):
    """This record is one line of feedback. `number` is its line in the input, for errors; `at` is in microseconds since
    1970 UTC.

    user: named in place of a decision. The last page that the user saw in the window is credited; arm: credit the
    last showing of this arm; is_spread: credit all showings, each with an equal share of the values."""

    decision_id: int | None = None
    request_id: str | None = None
    position: int | None = None
    events: Mapping[str, float] = MappingProxyType({})
    at: int | None = None
    key: str | None = None
    censor: bool | None = None
    number: int | None = None
    user: str | None = None
    arm: str | None = None
    is_spread: bool = False
    window_us: int = 0


class Slot(NamedTuple):
    """This record is one position of a logged slate. Propensities that an imported log lacks are None."""

    position: int
    arm_id: int
    propensity: float | None
    marginal: float | None
    min_propensity: float | None
    score: float | None
    censored: bool = False
    rounded: bool = False


class Decision(NamedTuple):
    """This record is a logged slate, with everything needed to score another policy on it."""

    id: int
    policy_id: int
    version_id: int
    belief_seq: int
    belief_ordinal: int | None
    seq: int
    ordinal: int | None
    session_id: int
    visit: int
    step: int
    context_id: int
    state: str
    eligible_id: int
    catalogue_revision: int
    size: int
    log_propensity: float | None
    seed: int | None
    variant_id: int | None
    at: int
    imported: int
    request_key: str | None
    request_digest: bytes | None
    run_id: int | None
    source: str | None
    history: bytes | None = None
    slots: tuple[Slot, ...] = ()
