"""A request on its way to a slate: as it came in, and with what it will be drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlrec.app.distributions.exact import EligibleDistribution, VersionDistribution
from rlrec.app.distributions.trained import Trained
from rlrec.app.inputs import canonical
from rlrec.app.serving.cache import Eligible
from rlrec.errors import InputError
from rlrec.records import Head, Version
from rlrec.store.experiments import Experiment, Variant


@dataclass(slots=True, kw_only=True)
class Request:
    """One page to fill."""

    policy: str | None = None
    experiment: str | None = None
    session: str
    user: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    size: int = 1
    arms: Sequence[str] | None = None
    request_id: str | None = None


def digest(request: Request) -> bytes:
    """What was asked, for retries: arms as a set."""
    wanted = None if request.arms is None else sorted(set(request.arms))
    asked = [
        request.policy, request.experiment, request.session, request.user, request.context, request.size, wanted
    ]  # fmt: skip
    return canonical.named(asked)


@dataclass(frozen=True, kw_only=True, eq=False)
class Lane:
    """What requests of a group that share a distribution and a length are drawn from."""

    version: Version
    head: Head
    experiment: Experiment | None
    variant: Variant | None
    eligible: Eligible
    revision: int
    case: EligibleDistribution
    size: int
    trained: Trained | None

    @property
    def stateful(self) -> bool:
        """Whether the distribution depends on the visit so far; then it is drawn in the visit's turn."""
        return self.trained is not None


class Plan(NamedTuple):
    """A request with what it will be drawn from. context: canonical; digest: of a request with an id."""

    request: Request
    lane: Lane
    context: str
    digest: bytes | None


class Duplicate(NamedTuple):
    """The request was answered before (or by an earlier one of the group): the stored decision, or that place."""

    decision_id: int | None
    place: int | None


Planned = Plan | InputError | Duplicate
Desk = tuple[Version, Head, VersionDistribution, Experiment | None, Variant | None]
