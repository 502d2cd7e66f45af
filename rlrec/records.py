"""This module defines frozen records that several layers share. It uses only the standard library. Most records are
NamedTuples, since every command waits for this module, and a NamedTuple loads five times as fast as a dataclass."""

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
    """Record is the base class of records. A subclass is a frozen dataclass whose fields are given by name. Options in
    the class statement of a subclass can change this: with `eq=False`, records are compared by identity, which is
    necessary for arrays."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    if TYPE_CHECKING:

        def __init_subclass__(cls, **options: bool) -> None: ...

    else:  # no function of this package, through which each import of a record would go
        __init_subclass__ = classmethod(partial(dataclass, frozen=True, kw_only=True))


@dataclass_transform(frozen_default=True, eq_default=False)
class Sums:
    """Sums is the base class of records that can be added. Records are added field by field: mappings are added key by
    key, flags are joined by `or`, sets by union, and None adds nothing. A subclass is a frozen dataclass. Its objects
    are compared by identity, unless options in its class statement say otherwise."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    if TYPE_CHECKING:

        def __init_subclass__(cls, **options: bool) -> None: ...

    else:
        __init_subclass__ = classmethod(partial(dataclass, frozen=True, eq=False))

    def __add__(self, other: Self) -> Self:
        return type(self)(**{name: _add(value, getattr(other, name)) for name, value in vars(self).items()})

    def __iadd__(self, other: Self) -> Self:
        """Add like +, but write the result into the arrays of the left side. No other code may use these arrays."""
        return type(self)(**{name: _add(value, getattr(other, name), iadd) for name, value in vars(self).items()})

    def close(self) -> Self:
        """Return these sums in their final form, once all rows of a partition of the log are added. A field may then
        drop what it needs only while rows are added, such as the ids of people. No other partition may have rows of the
        same people."""
        return type(self)(**{name: _close(value) for name, value in vars(self).items()})


def _add(left: Any, right: Any, plus: Callable[[Any, Any], Any] = add) -> Any:
    if left is None or right is None:
        return right if left is None else left
    if isinstance(left, Mapping):
        return {**left, **{key: _add(left[key], sums, plus) if key in left else sums for key, sums in right.items()}}
    return left | right if isinstance(left, bool | frozenset) else plus(left, right)


def _close(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _close(entry) for key, entry in value.items()}
    return value.close() if isinstance(value, Sums) else value


def add_each(left: Mapping[K, Any], right: Mapping[K, Any]) -> dict[K, Any]:
    """Return a mapping with the keys of both mappings, where the values of a key that both have are added."""
    sums: dict[K, Any] = _add(left, right)
    return sums


def add_up(partials: Iterable[Any]) -> Any:
    """Return the sum of all partials, or None if there are no partials. A partial that is None adds nothing."""
    return reduce(_add, partials, None)


class Arm(NamedTuple):
    """This record is an arm in its present state. features: the features as JSON; retired_at: the time at which the arm
    was retired, or None while the arm may be served; eligible_from, eligible_until: the times between which the arm may
    be served, or None for no limit."""

    id: int
    key: str
    features: str
    added_at: int
    retired_at: int | None
    eligible_from: int | None
    eligible_until: int | None

    def status(self, now: int) -> str:
        """Return the status of the arm at a time: `active`, `retired`, `upcoming` or `ended`. Only an active arm may be
        served."""
        if self.retired_at is not None:
            return "retired"
        if self.eligible_from is not None and now < self.eligible_from:
            return "upcoming"
        return "active" if self.eligible_until is None or now < self.eligible_until else "ended"


class Transform(NamedTuple):
    """This record says how the sum of the values of one kind of event is changed before it is multiplied by its weight.
    A sum above `cap` is replaced by `cap`. If `log1p` is set, the sum is then replaced by the logarithm of 1 plus its
    absolute value, with the sign of the sum."""

    log1p: bool = False
    cap: float | None = None


class Reward(NamedTuple):
    """This record defines a reward: a number computed from the events of a slot.

    weights: the weight of each kind of event that counts; transforms: the changes to sums of values before they are
    weighted, by kind of event; window_us: how long after a decision events count, in microseconds; default: the
    reward of a slot without such events; clip_low, clip_high: bounds of the reward; learn: when a belief learns from
    a slot, `served` (at once) or `settled` (when the window is over); late: whether events after the window still
    correct a belief, `count` or `ignore`."""

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
    """This record is a policy, which never changes. A variant of an experiment has a belief of its own, and is
    therefore a policy of its own, with the name POLICY@EXPERIMENT/VARIANT. base_id: the id of the policy that a variant
    copies, or None for a policy that is no copy, such as a uniform holdout."""

    id: int
    name: str
    kind: str
    params: Mapping[str, Any]
    base_id: int | None

    @property
    def base(self) -> str:
        """Return the name that a user gave to the policy. For a variant, return the name of the policy that the variant
        copies."""
        return self.name.partition("@")[0]


class Version(Record):
    """This record is a version: a numbered belief of a policy.

    seq, ordinal: the numbers of changes and of decisions that the policy had when the version was created;
    entered_to: the id of the policy's last decision that has entered the belief, or None if all have entered;
    learned_from: how the belief came about, such as from a rebuild; parameters: the design of a contextual policy,
    the position curve and the prior of a rebuilt version, and `since`, the first decision in the belief;
    has_omissions: whether the belief left out any decisions."""

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
        """Return the parameters of the policy. If the version was rebuilt, its own position curve and prior replace the
        policy's."""
        return {**self.policy.params, **{name: self.parameters[name] for name in LEARNED if name in self.parameters}}

    @property
    def reference(self) -> str:
        """Return the reference POLICY@V, the form in which commands take a version."""
        return f"{self.policy.name}@{self.number}"

    @property
    def learning(self) -> bool:
        return self.status == "learning"

    @property
    def is_contextual(self) -> bool:
        """Tell whether the belief of the version holds sums over contexts."""
        return "context" in self.parameters

    @property
    def since(self) -> int:
        return int(self.parameters.get("since", 0))


class Head(NamedTuple):
    """This record is the changing state of a policy. seq: the number of the policy's last change; ordinal: the number
    of its decisions, counted only if the policy forgets; live_id: the id of the version that serves."""

    policy_id: int
    seq: int
    ordinal: int
    live_id: int


class Event(NamedTuple):
    """This record is an event of a slot or, if `position` is None, of a whole slate. number: the number of the event
    within the decision; seq: the number of the policy's change that stored the event; key: the key of its feedback
    line."""

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
    """This record is one line of feedback. number: the number of the line in the input, for errors; at: a time in
    microseconds since 1970 UTC.

    user: the key of a user, in place of a decision. The events then belong to the last slate that the user saw in
    the time `window_us` or, if `arm` (the key of an arm) is given, to the last such slate with this arm. is_spread:
    whether to divide the values equally among all such slates instead."""

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
    """This record is one position of a logged slate. propensity: the probability of the arm given the arms above, or
    None if an imported log does not have it; marginal: the probability of the arm at this position; min_propensity: the
    smallest propensity of any arm left at this position; rounded: whether a probability was too small to be stored
    exactly."""

    position: int
    arm_id: int
    propensity: float | None
    marginal: float | None
    min_propensity: float | None
    score: float | None
    censored: bool = False
    rounded: bool = False


class Decision(NamedTuple):
    """This record is a logged slate with everything that is needed to score another policy on the slate. The list
    DECISION in the module log_fields describes the fields."""

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
