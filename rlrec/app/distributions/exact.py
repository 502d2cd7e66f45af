"""A version's belief, and the distributions it makes for the arms and contexts that are asked about."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from rlrec import policy as kinds
from rlrec.app.distributions.designs import Described, described, policy_of
from rlrec.app.distributions.trained import Trained
from rlrec.arrays import Array, Ids
from rlrec.policy.base import EVERYTHING, Belief, Policy
from rlrec.policy.contextual import is_contextual, learns_from_contexts
from rlrec.policy.forgetting import Forgetting
from rlrec.policy.moments import ArmMoments, unpack
from rlrec.policy.scores import Scores, unstack
from rlrec.policy.slate import SlateSampler
from rlrec.records import Version
from rlrec.store import Unit, beliefs, policies
from rlrec.store.beliefs import SUMS, ArmPrior, BeliefRow, BeliefRows
from rlrec.store.damage import damaged
from rlrec.store.unit import Row

ARMS = 10_000  # in all distributions that are kept of one belief: 30 MB
CELLS = 1_000_000  # numbers that scores of several contexts are made of at a time


@dataclass(frozen=True, eq=False, kw_only=True)
class EligibleDistribution:
    """The distribution over one eligible set: arms (m,) ids; scores and, where the kind has one, index (m,).

    reads: the fields of the context that it depends on. known: its pages by their length."""

    arms: Ids
    scores: Scores
    index: Array | None
    floor: float
    reads: tuple[str, ...]
    known: dict[int, SlateSampler]
    before: Mapping[int, SlateSampler]

    def pages(self, size: int) -> SlateSampler:
        """Pages of so many positions, worked out once; from those of an earlier belief where there are any."""
        if size not in self.known:
            before = self.before.get(size)
            self.known[size] = SlateSampler(self.scores, size=size, floor=self.floor, before=before)
        return self.known[size]

    def noiseless(self, places: npt.NDArray[np.intp]) -> npt.NDArray[np.object_]:
        """The noiseless score of arms, same shape; None where there is none, or it is not finite (never tried)."""
        shown = np.full(places.shape, None, np.object_)
        if self.index is not None:
            found = self.index[places]
            known = np.isfinite(found)
            shown[known] = found[known]
        return shown


class VersionDistribution:
    """One version at one moment: its policy, its sums per arm, and a cache of the distributions asked for.

    ordinal: how many decisions its policy had made. sums: rows of `beliefs.sums`, or of `beliefs.rows` where it
    forgets or learns from contexts. described: what is known of the arms by their features; trained: of a trained
    kind, the parameters."""

    def __init__(
        self,
        version: Version,
        *,
        sums: BeliefRows,
        prior: Sequence[ArmPrior],
        greedy: bool = False,
        ordinal: int = 0,
        described: Described | None = None,
        trained: Trained | None = None,
    ) -> None:
        self.version, self.ordinal, self.trained = version, ordinal, trained
        made = policy_of(version)
        self.policy: Policy = made.greedy() if greedy else made
        self.described = described
        self._prior_arms, self._prior = _table(prior, 2)
        self._rows: dict[str, Array] = {}
        self._know(sums)

    def _know(self, sums: BeliefRows) -> None:
        if has_plain_sums(self.policy):
            self._arms, self._sums = _table(sums, 3)
        else:
            self._arms, self._sums = _brought(cast("Sequence[BeliefRow]", sums), self.policy.forgetting, self.ordinal)
        self._cases: dict[tuple[Hashable, ...], EligibleDistribution] = {}
        self._before: Mapping[tuple[Hashable, ...], Mapping[int, SlateSampler]] = {}
        self._beliefs: dict[tuple[Hashable, int], Belief] = {}
        self._pools: dict[int, ArmMoments] = {}
        self._kept = 0

    def see(self, contexts: Iterable[Mapping[str, Any]]) -> None:
        """Encode contexts that are about to be asked for, all at once."""
        if is_contextual(self.policy):
            told = {self.reading(context): context for context in contexts}
            rows = self.policy.design.context.encode(list(told.values()))
            self._rows = dict(zip(told, rows, strict=True))

    @cached_property
    def known(self) -> Ids:
        """Arms that the belief or its prior knows, ascending."""
        return np.union1d(self._arms, self._prior_arms)

    def belief(self, arms: Ids, *, revision: int = 0) -> Belief:
        """Sums and prior of these arms; an arm the belief does not know has none, and the kind's default prior.

        revision: of the catalogue that describes the arms, where a model reads their features."""
        sums = _aligned(self._arms, self._sums, arms, (0.0,) * self.policy.width)
        prior = _aligned(self._prior_arms, self._prior, arms, self.policy.prior)
        return Belief(
            pulls=sums[:, 0],
            reward_sum=sums[:, 1],
            reward_squares=sums[:, 2],
            alpha=prior[:, 0],
            beta=prior[:, 1],
            total=float(self._sums[:, 0].sum()),
            extra=sums[:, 3:],
            moments=self._moments(sums[:, 3:], arms, revision),
            trained=None if self.trained is None else self.trained.of(arms, revision),
        )

    def _moments(self, packed: Array, arms: Ids, revision: int) -> ArmMoments | None:
        """ArmMoments of the contexts that the belief learned from; None for kinds that learn from none."""
        if not learns_from_contexts(self.policy):
            return None
        q = len(self.policy.design.context.names)
        found = unpack(packed, q)
        if self.described is None:
            return found
        described = self.described.of(arms, revision)
        epoch = self.described.epoch(revision)
        if epoch not in self._pools:  # solved once, whoever is eligible
            known = len(self._arms) > 0
            everyone, its = (unpack(self._sums[:, 3:], q), self._arms) if known else (found, arms)
            self._pools[epoch] = replace(everyone, arm_features=self.described.of(its, revision))
        return replace(found, arm_features=described, pool=self._pools[epoch])

    def reading(self, context: Mapping[str, Any]) -> str:
        """What of a context the distribution depends on: equal for contexts that make the same one."""
        reads = self.policy.reads
        if reads == EVERYTHING:
            return repr(context)
        return repr([context.get(field) for field in reads]) if reads else ""

    def check(self, context: Mapping[str, Any]) -> None:
        """Raises InputError where a context is not what the policy was told to expect."""
        if is_contextual(self.policy):
            self.policy.design.context.check(context)

    def case(
        self, eligible: Hashable, arms: Ids, context: Mapping[str, Any], *, keys: Mapping[int, str], revision: int = 0
    ) -> EligibleDistribution:
        """The distribution over an eligible set (named by `eligible`) and a context, made once.

        keys: of the arms; revision: as for `belief`. Raises InputError where the policy has no distribution for the
        context.
        """
        reading = self.reading(context)
        name = eligible, self.epoch(revision), reading
        if name not in self._cases:
            if self._kept > ARMS:
                self.forget()
            self._kept += len(arms)
            belief, policy = self._asked(eligible, arms, revision), self.policy
            index: Array | None
            if is_contextual(policy):
                x = self._rows[reading] if reading in self._rows else policy.encode(context)
                scores, index = policy.scores_at(belief, x), policy.index_at(belief, x)
            else:
                scores = policy.scores(belief, arms=[keys[arm] for arm in arms.tolist()], context=context)
                index = policy.index(belief, context=context)
            self._cases[name] = EligibleDistribution(
                arms=arms, scores=scores, index=index,
                floor=self.policy.exploration, reads=self.policy.reads, known={}, before=self._before.get(name, {}),
            )  # fmt: skip
        return self._cases[name]

    def scores(
        self,
        eligible: Hashable,
        arms: Ids,
        contexts: Sequence[Mapping[str, Any]],
        *,
        keys: Mapping[int, str],
        revision: int = 0,
    ) -> list[Scores]:
        """The scores of `case` in each of some contexts: a kind that sees contexts is asked about them together."""
        policy = self.policy
        if not is_contextual(policy):
            return [self.case(eligible, arms, one, keys=keys, revision=revision).scores for one in contexts]
        belief = self._asked(eligible, arms, revision)
        x = policy.design.context.encode(contexts)
        step = max(1, CELLS // (len(arms) * x.shape[1] ** 2))
        parts = (policy.scores_at(belief, x[start : start + step]) for start in range(0, len(x), step))
        return [one for part in parts for one in unstack(part)]

    def _asked(self, eligible: Hashable, arms: Ids, revision: int) -> Belief:
        """The belief of an eligible set, with what is worked out of it; it outlives the distributions."""
        name = eligible, self.epoch(revision)
        if name not in self._beliefs:
            if sum(len(one.pulls) for one in self._beliefs.values()) > ARMS:
                self._beliefs.clear()
                self._pools.clear()
            self._beliefs[name] = self.belief(arms, revision=revision)
        return self._beliefs[name]

    def epoch(self, revision: int) -> int:
        """What of a revision of the catalogue the distribution depends on: equal for those that describe arms alike."""
        return 0 if self.described is None else self.described.epoch(revision)

    def forget(self) -> None:
        """Drop the distributions made so far: they would fill the memory where no two rows share one."""
        self._cases.clear()
        self._before = {}
        self._kept = 0


def has_plain_sums(policy: Policy) -> bool:
    """Whether its beliefs are three sums an arm, and forget nothing: rows of `ArmSums`."""
    return policy.width == len(SUMS) and not policy.forgetting


def load(
    unit: Unit, version: Version, *, seq: int | None = None, ordinal: int | None = None, greedy: bool = False
) -> VersionDistribution:
    """A version as it stands, or as it stood after change `seq` of its policy.

    ordinal: how many decisions the policy had made by then; None for now."""
    trained = Trained(unit, version, greedy=greedy) if kinds.load(version.policy.kind).stateful else None
    made = VersionDistribution(
        version, sums=(), prior=beliefs.prior(unit, version.id), greedy=greedy, described=described(unit, version),
        trained=trained,
    )  # fmt: skip
    _read(unit, made, seq, ordinal)
    return made


def _read(unit: Unit, made: VersionDistribution, seq: int | None, ordinal: int | None) -> None:
    """Read the belief of a version into it."""
    version = made.version
    if has_plain_sums(made.policy):
        made._know(beliefs.sums(unit, version.id) if seq is None else beliefs.sums_at(unit, version.id, seq))
        return
    if version.status == "frozen":  # it is served as it stands
        ordinal = version.ordinal
    elif ordinal is None:
        ordinal = policies.ordinal(unit, version.policy.id) if version.learning else version.ordinal
    made.ordinal = ordinal
    oldest = made.policy.forgetting.oldest(ordinal)
    if seq is None:
        made._know(beliefs.rows(unit, version.id, oldest=oldest))
    else:
        made._know(beliefs.rows_at(unit, version.id, seq, oldest=oldest))


def renewed(unit: Unit, version: Version, before: VersionDistribution, *, described_anew: bool) -> VersionDistribution:
    """A version that was served before, as it stands now: what it knew of its pages is brought up to date.

    described_anew: the catalogue has changed since."""
    made = copy(before)  # policy and prior are the same; whether it still learns may not be
    made.version = version
    made.__dict__.pop("known", None)
    if described_anew:
        made.described = described(unit, version)
        if made.trained is not None:
            made.trained = Trained(unit, version)
    _read(unit, made, None, None)
    made._before = {name: {**case.before, **case.known} for name, case in before._cases.items()}
    return made


def _table(rows: Sequence[Row], width: int) -> tuple[Ids, Array]:
    whole = np.array(rows, np.float64).reshape(len(rows), 1 + width)
    return whole[:, 0].astype(np.int64), whole[:, 1:]


_NEGLIGIBLE = 1e-9  # pulls: what is left of less is rounding


def _brought(rows: Sequence[BeliefRow], forgetting: Forgetting, ordinal: int) -> tuple[Ids, Array]:
    """Rows of `beliefs.rows` brought forward to the policy's ordinal, and their buckets added up: arms, sums."""
    oldest = forgetting.oldest(ordinal)
    rows = [row for row in rows if row.bucket >= oldest]
    if not rows:
        return np.empty(0, np.int64), np.zeros((0, 3))
    sums = np.array([(row.pulls, row.reward_sum, row.reward_squares) for row in rows])
    if rows[0].extra is not None:
        extras = [row.extra or b"" for row in rows]
        if len(extras[0]) % 8 or len(set(map(len, extras))) > 1:
            raise damaged("the sums of a belief are not as long as each other")
        sums = np.hstack([sums, np.array([np.frombuffer(extra, "<f8") for extra in extras])])
    sums = sums * (forgetting.discount ** (ordinal - np.array([row.ordinal for row in rows], np.float64)))[:, None]
    arms, place = np.unique(np.array([row.arm_id for row in rows], np.int64), return_inverse=True)
    total = np.zeros((len(arms), sums.shape[1]))
    np.add.at(total, place.reshape(-1), sums)
    total[total[:, 0] < _NEGLIGIBLE] = 0.0
    return arms, total


def _aligned(known: Ids, values: Array, arms: Ids, missing: tuple[float, ...]) -> Array:
    if not len(known):
        return np.tile(np.array(missing), (len(arms), 1))
    if np.array_equal(known, arms):
        return values
    place = np.minimum(np.searchsorted(known, arms), len(known) - 1)
    return np.where((known[place] == arms)[:, None], values[place], np.array(missing))
