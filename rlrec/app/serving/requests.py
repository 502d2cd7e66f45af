"""Records here hold a request before its slate is drawn: as it came in, and with its distribution, which is read from
the store in one snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, TypedDict, cast

from rlrec.app.inputs import canonical
from rlrec.errors import InputError
from rlrec.records import Head, Version
from rlrec.store.log import contents
from rlrec.store.policies.routes import RouteChange

if TYPE_CHECKING:
    from rlrec.app.distributions.exact import EligibleDistribution, VersionDistribution
    from rlrec.app.inputs.arm_rules import Narrowing
    from rlrec.store.log.contents import Eligible
    from rlrec.store.policies.experiments import Experiment, Variant
    from rlrec.store.policies.routes import Shadow

AnswerSlot = TypedDict("AnswerSlot", {
    "position": int, "arm": str, "propensity": float | None, "marginal": float | None, "score": float | None,
    "team": NotRequired[str],
})  # fmt: skip
AnswerCandidate = TypedDict("AnswerCandidate", {"arm": str, "propensity": float})
# A decision as commands answer it.
Answer = TypedDict("Answer", {
    "decision_id": Any,  # an int; None in a dry run, as visit and step are
    "request_id": str | None, "session": str, "visit": int | None, "step": int | None, "user": str | None,
    "policy": str, "version": int, "experiment": str | None, "variant": str | None, "propensity": float | None,
    "log_propensity": float | None, "slate": list[AnswerSlot], "at": str, "duplicate": NotRequired[bool],
    "route": str | None,
    "candidates": NotRequired[list[AnswerCandidate]], "candidates_log_propensity": NotRequired[float],
})  # fmt: skip


class DrawnAnswer(NamedTuple):
    """This record is the answer to a request whose slate was just drawn. fields: the fields of the answer that depend
    on the drawn slate, in an object that several answers may share."""

    decision_id: int | None
    request_id: str | None
    session: str
    visit: int | None
    step: int | None
    user: str | None
    fields: Mapping[str, Any]

    def to_json(self) -> Answer:
        """Return the answer as an object in the form that commands print."""
        return cast(Answer, dict(zip(self._fields[:-1], self, strict=False)) | dict(self.fields))

    @staticmethod
    def lines(answers: Iterable[DrawnAnswer], texts: Mapping[int, str]) -> Iterator[str]:
        """Yield answers as lines of JSON. texts: the JSON of each `fields` object, without the opening bracket, by the
        `id()` of the object."""
        null, quote = "null", encode_basestring
        return (
            f'{{"decision_id":{null if key is None else key},'
            f'"request_id":{null if request is None else quote(request)},"session":{quote(session)},'
            f'"visit":{null if visit is None else visit},"step":{null if step is None else step},'
            f'"user":{null if user is None else quote(user)},{texts[id(fields)]}'
            for key, request, session, visit, step, user, fields in answers
        )


def answer_fields(
    version: Version, names: Sequence[str | None], probability: tuple[float | None, float | None],
    slate: list[AnswerSlot], at: str, **candidates: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return the fields of an answer that depend on the version and the drawn slate. names: the names of experiment,
    variant and route; probability: the propensity and its logarithm; at: the time; candidates: the fields that show the
    list of candidates."""
    (experiment, variant, route), (propensity, log_propensity) = names, probability
    return {
        "policy": version.policy.name, "version": version.number, "experiment": experiment, "variant": variant,
        "propensity": propensity, "log_propensity": log_propensity, "slate": slate, "at": at, "duplicate": False,
        "route": route, **candidates,
    }  # fmt: skip


def slot_fields(
    position: int, arm: str, propensity: float | None, marginal: float | None, score: float | None
) -> AnswerSlot:  # fmt: skip
    """Return a slot in the form that commands print."""
    return {"position": position, "arm": arm, "propensity": propensity, "marginal": marginal, "score": score}


def add_teams(answer: Sequence[AnswerSlot], teams: str | None) -> None:
    """If two rankers made a slate, add to each slot of the answer which ranker picked it. teams: a letter for each
    slot, None without rankers."""
    for slot, team in zip(answer, teams or "", strict=False):
        slot["team"] = team


def candidate_fields(
    arms: Sequence[int], propensities: Sequence[float], log_propensity: float, keys: Mapping[int, str]
) -> dict[str, Any]:
    """Return the fields of an answer that show a list of candidates. keys: the key of each arm, by id."""
    pairs = zip(arms, propensities, strict=True)
    return {
        "candidates": [{"arm": keys[arm], "propensity": propensity} for arm, propensity in pairs],
        "candidates_log_propensity": log_propensity,
    }


@dataclass(slots=True, kw_only=True)
class Request:
    """A request asks for one slate. size: the number of positions; arms: keys, or objects with `arm` (the key) and
    perhaps `score`, `scores` and `features`, which `statements.py` moves into the context; block, not_after, not_shown:
    rules that take away arms; page: rules for the slate as a whole."""

    policy: str | None = None
    experiment: str | None = None
    session: str
    user: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    size: int = 1
    arms: Sequence[Any] | None = None
    block: Sequence[str] | None = None
    not_after: Sequence[str] | None = None
    not_shown: str | int | None = None
    page: Mapping[str, Any] = field(default_factory=dict)
    request_id: str | None = None


def digest(request: Request) -> bytes:
    """Return a digest of the content of a request. A retry has the same digest, even if its person or arms have changed
    meanwhile. The order of the arms does not matter."""
    names = request.policy, request.experiment, request.session, request.user
    context = canonical.text(request.context) if request.context else "{}"
    return digest_of_texts(names, context, request.size, arms_text(request.arms), narrowing_words(request))


def narrowing_words(request: Request) -> dict[str, Any]:
    """Return the rules of a request that take away arms: its fields `block`, `not_after` and `not_shown`, if given.
    Lists are sorted."""
    words: dict[str, Any] = {}
    if request.block:
        words["block"] = sorted(set(request.block))
    if request.not_after:
        words["not_after"] = sorted(set(request.not_after))
    if request.not_shown is not None:
        words["not_shown"] = str(request.not_shown)
    return words


def arms_text(arms: Sequence[str] | None) -> str:
    return "null" if arms is None else f"[{canonical.texts(sorted(set(arms)))}]"


def digest_of_texts(names: Sequence[str | None], context: str, size: int, arms: str, words: Mapping[str, Any]) -> bytes:
    """Return the digest of a request from its parts. names: policy, experiment, session and user; context, arms: as
    canonical JSON; words: the fields that `narrowing_words` returns."""
    words_text = f",{canonical.text(dict(words))}" if words else ""
    return contents.digest(f"[{canonical.texts(names)},{context},{size},{arms}{words_text}]")


@dataclass(kw_only=True, eq=False)
class ServingVersion:
    """This record is the version that serves a policy, a route or a variant.

    serving: the version with its belief; variants: the variants that are assigned to a user or session, each with
    its experiment; by: what is assigned, `user` or `session`; route: the newest change of the route that the request
    named, if any; shadow: a policy that is compared with the route, and never serves; challenger: the version of the
    shadow with its belief; price: the price of cost, for a policy with a budget, which is logged in the context."""

    version: Version
    head: Head
    serving: VersionDistribution
    experiment: Experiment | None
    variant: Variant | None
    variants: tuple[tuple[Experiment, Variant], ...]
    by: str | None
    route: RouteChange | None
    shadow: Shadow | None
    challenger: VersionDistribution | None
    price: float | None


@dataclass(kw_only=True, eq=False)
class SharedDistribution(ServingVersion):
    """This record is a distribution of slates that several requests of a group share. These requests have the same
    version, eligible set, length, and values of the context fields that the version reads.

    candidates: how many candidates are drawn from `case` and then ranked by the version, 0 if the policy has one
    stage; revision: the revision of the catalogue; context: the context of one of the requests; added_fields: the
    fields that the program adds to each context; resting: page rules that have no effect."""

    eligible: Eligible
    revision: int
    case: EligibleDistribution
    size: int
    context: Mapping[str, Any]
    added_fields: Mapping[str, Any]
    candidates: int
    resting: Sequence[str]

    @property
    def is_stateful(self) -> bool:
        """Tell whether the distribution depends on the earlier decisions of the visit. If it does, the requests of a
        visit are drawn one after another."""
        return self.serving.trained_model is not None


@dataclass(slots=True, eq=False)
class PlannedRequest:
    """This record is a request with its distribution. context: the context as canonical JSON; digest: the digest of the
    request, None without a request id; narrowing: the arms that rules leave, None without rules."""

    request: Request
    distribution: SharedDistribution
    context: str
    digest: bytes | None
    narrowing: Narrowing | None = None


class Duplicate(NamedTuple):
    """This record is a request that repeats an earlier one. decision_id: the stored decision that answers it, or None;
    earlier_index: the index of the request of the group that it repeats, or None."""

    decision_id: int | None
    earlier_index: int | None


# None: planned once the others of its group are stored, since its arms depend on them.
Plan = PlannedRequest | InputError | Duplicate | None


class Outdated(Exception):
    """This exception says that the plan of a group of requests is no longer valid, since another transaction has
    changed the store. It may have stored a request with the same request id, deleted decisions and contexts, stopped
    the ramp of a route, merged users, or changed which arms may be shown."""
