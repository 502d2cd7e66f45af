"""Targets of an evaluation: with which probability each would have shown what the log shows.

A row is scored with its own eligible arms and context, never with today's catalogue. Distinct cases are worked out
once; all rows then look up theirs by array indexing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rlrec.app import lineage, naming, serving
from rlrec.app.evaluation.contexts import Contexts
from rlrec.app.evaluation.loggers import Logged, Loggers
from rlrec.app.evaluation.modelling import Valued
from rlrec.app.evaluation.pages import Flags, Rows
from rlrec.app.lineage import Lesson
from rlrec.app.reward import find as reward_named
from rlrec.app.serving import Case, Ids, Serving
from rlrec.errors import InputError, suggest
from rlrec.ope.base import LogBatch, distinct
from rlrec.policy import slate
from rlrec.policy.scores import Array
from rlrec.records import Policy, Reward, Version
from rlrec.store import Unit, contents, policies

BUILT_IN = ("uniform",)
CASES = 100  # worked out at a time
CELLS = 4_000_000  # numbers held at a time, for cases and for their values under a reward model
KEPT = 8_000_000  # numbers of worked-out cases that are remembered from batch to batch


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """What is judged. number: the version, None for a built-in. serving: its distribution; None for the policy of an
    imported log, which is known by its own rows alone."""

    name: str
    number: int | None
    policy_id: int | None
    reward: Reward
    serving: Serving | None
    lessons: Sequence[Lesson]

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of the context that it depends on."""
        return () if self.serving is None else self.serving.policy.reads


def resolve(unit: Unit, names: Sequence[str], *, reward: str | None, greedy: bool) -> list[Target]:
    """The targets as they stand now. A policy wins over a built-in of its name. Raises InputError for an unknown
    one."""
    found = naming.resolve(unit, names)
    asked = None if reward is None else reward_named(unit, reward)
    return [_target(unit, name, found[name], asked, greedy=greedy) for name in dict.fromkeys(names)]


def _target(unit: Unit, name: str, found: object, reward: Reward | None, *, greedy: bool) -> Target:
    if isinstance(found, InputError):
        if name in BUILT_IN:
            return _built_in(name, reward or reward_named(unit, "default"), greedy=greedy)
        raise _unknown(unit, name, found)
    assert isinstance(found, tuple)
    version: Version = found[0]
    logged = version.policy.kind == "logged"
    if logged and greedy:
        raise InputError(f"target {name!r} is the policy of an imported log: it has no greedy form")
    return Target(
        name=version.policy.name,
        number=version.number,
        policy_id=version.policy.id,
        reward=reward or version.reward,
        serving=None if logged else serving.load(unit, version, greedy=greedy),
        lessons=lineage.learned(lineage.ancestry(unit, version)),
    )


def _unknown(unit: Unit, name: str, error: InputError) -> InputError:
    if error.message.startswith("unknown policy"):
        known = [*BUILT_IN, *(policy.name for policy in policies.all_policies(unit))]
        wanted = naming.split(name)[0]
        hint = suggest(wanted, known) or f"a target is a policy, NAME@V or {', '.join(BUILT_IN)}"
        return InputError(f"unknown target {wanted!r}", hint=hint)
    return InputError(error.message, hint=error.hint)


def _built_in(name: str, reward: Reward, *, greedy: bool) -> Target:
    policy = Policy(id=0, name=name, kind=name, params={}, base_id=None, base=None)
    version = Version(
        id=0, policy=policy, number=0, status="frozen", reward=reward, parent_id=None, seq=0, ordinal=0,
        entered_to=None, learned_from={}, parameters={}, created_at=0,
    )  # fmt: skip
    made = Serving(version, sums=(), prior=(), greedy=greedy)
    return Target(name=name, number=None, policy_id=None, reward=reward, serving=made, lessons=())


# -- the rows of a batch as a target sees them --


@dataclass(frozen=True, eq=False)
class Known:
    """What all targets share of a batch, beside its rows."""

    contexts: Contexts
    logged: Logged
    loggers: Loggers
    keys: Mapping[int, str]
    arms: Ids
    valued: Valued | None


@dataclass(frozen=True, eq=False)
class Block:
    """One case: arms (m,) ids; shares (k, m) of each arm at each position; greatest (k,) of them."""

    case: Case
    shares: Array
    greatest: Array

    @property
    def arms(self) -> Ids:
        return self.case.arms


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a target makes of a batch, (n,) each."""

    target: Array
    greatest: Array
    unsupported: Array
    expected: Array


@dataclass(eq=False)
class Scorer:
    """One target and the cases it has worked out."""

    target: Target
    _blocks: dict[tuple[int, str, int], Block] = field(default_factory=dict)
    _cells: int = 0

    def batch(self, unit: Unit, rows: Rows, known: Known) -> LogBatch:
        """The rows as one batch for the estimators.

        Both sides of a weight are marginals at the position shown; where the logger's is null, both are the
        probability of the page down to there."""
        marginal = rows.slots["marginal"]
        prefixed = np.isnan(marginal)
        propensity = np.where(prefixed, rows.prefix, marginal)
        if self.target.serving is None:
            return self._own(rows, propensity, known)
        seen = self._seen(unit, rows, prefixed & ~np.isnan(propensity), known)
        valued = known.valued
        return LogBatch(
            reward=rows.reward,
            propensity=propensity,
            target=np.minimum(seen.target, 1.0),
            cluster=rows.cluster,
            predicted=None if valued is None else valued.predicted,
            expected=None if valued is None else seen.expected,
            largest=seen.greatest / known.logged.lowest,
            unsupported=seen.unsupported,
            default=rows.default,
        )

    def rows(self, rows: Rows) -> Rows:
        """The rows that can say anything of the target: for the policy of an imported log its own."""
        if self.target.serving is not None:
            return rows
        return rows.take(rows.slots["policy_id"] == self.target.policy_id)

    def _own(self, rows: Rows, propensity: Array, known: Known) -> LogBatch:
        """Rows of the target itself: nothing is to be weighed, and what it showed is a sample of it."""
        sure = np.ones(len(rows))
        predicted = None if known.valued is None else known.valued.predicted
        return LogBatch(
            reward=rows.reward, propensity=sure, target=sure, cluster=rows.cluster, predicted=predicted,
            expected=predicted, largest=sure, unsupported=np.zeros(len(rows)), default=rows.default,
        )  # fmt: skip

    def _seen(self, unit: Unit, rows: Rows, prefixed: Flags, known: Known) -> _Seen:
        n, logged = len(rows), known.logged
        seen = _Seen(*(np.zeros(n) for _ in range(4)))
        reading, readings = known.contexts.reading(self.target.reads)
        columns = rows.slots["eligible_id"], reading, rows.slots["size"]
        kinds, case = distinct(*columns)
        cases = np.column_stack([column[kinds] for column in columns])
        order = np.argsort(case, kind="stable")
        ends = np.searchsorted(case[order], np.arange(len(cases) + 1))
        for first, last in self._portions(cases, known):
            blocks = self._worked_out(unit, cases[first:last], readings, known)
            mine = order[ends[first] : ends[last]]
            part = _Part(blocks, case[mine] - first, mine, rows)
            seen.target[mine], seen.greatest[mine] = part.target, part.greatest
            part.follow(seen.target, prefixed)
            part.value(seen.expected, known)
            part.unsupported(seen.unsupported, known)
        seen.unsupported[logged.alone] = 1 - np.minimum(seen.target[logged.alone], 1.0)
        seen.unsupported[~(logged.full | logged.alone | logged.unclear)] = np.nan
        return seen

    def _portions(self, cases: Ids, known: Known) -> Iterator[tuple[int, int]]:
        """Ranges of cases that are worked out together."""
        longest = int(cases[:, 2].max(initial=1)) if known.valued is not None else 1
        step = min(CASES, max(1, CELLS // (longest * max(1, len(known.arms)))))
        return ((first, min(first + step, len(cases))) for first in range(0, len(cases), step))

    def _worked_out(self, unit: Unit, cases: Ids, readings: list[dict[str, object]], known: Known) -> list[Block]:
        """The blocks of these cases (eligible set, reading, size)."""
        made = self.target.serving
        assert made is not None
        names = [(eligible, repr(readings[reading]), size) for eligible, reading, size in cases.tolist()]
        missing = {name[0] for name in names if name not in self._blocks}
        arms = contents.eligible_arms(unit, missing) if missing else {}
        if self._cells > KEPT:
            made.forget()
            kept = {name: self._blocks[name] for name in names if name in self._blocks}
            self._blocks, self._cells = kept, sum(block.shares.size for block in kept.values())
        for name, (_, reading, _) in zip(names, cases.tolist(), strict=True):
            if name not in self._blocks:
                eligible = np.array(arms[name[0]], np.int64)
                case = made.case(name[0], eligible, readings[reading], keys=known.keys)
                shares = slate.marginals(case.scores, size=min(name[2], len(eligible)), floor=case.floor)
                self._blocks[name] = Block(case, shares, shares.max(axis=1))
                self._cells += shares.size
        return [self._blocks[name] for name in names]


class _Part:
    """The rows of some cases: `mine` (p,) of the batch, `case` (p,) which of the blocks each has."""

    def __init__(self, blocks: list[Block], case: Ids, mine: Ids, rows: Rows) -> None:
        self.blocks, self.case, self.mine, self.rows = blocks, case, mine, rows
        self.arm, self.position = rows.slots["arm_id"][mine], rows.slots["position"][mine]
        arms = np.array([len(block.arms) for block in blocks])
        length = np.array([len(block.greatest) for block in blocks])
        inside = self.position <= length[case]
        at = np.where(inside, self.position, 1) - 1
        place, found = self._places(arms)
        shares = np.concatenate([block.shares.ravel() for block in blocks])
        greatest = np.concatenate([block.greatest for block in blocks])
        cell = _starts(arms * length)[case] + at * arms[case] + place
        self.target = np.where(inside & found, shares[cell], 0.0)
        self.greatest = np.where(inside, greatest[_starts(length)[case] + at], 0.0)
        self.inside = inside

    def _places(self, arms: Ids) -> tuple[Ids, Flags]:
        """Where each row's arm stands among the arms of its case, and whether it does."""
        stride = max(int(self.arm.max(initial=0)), *(int(block.arms[-1]) for block in self.blocks)) + 1
        keys = np.concatenate([place * stride + block.arms for place, block in enumerate(self.blocks)])
        wanted = self.case * stride + self.arm
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        found = keys[place] == wanted
        return np.where(found, place - _starts(arms)[self.case], 0), found

    def follow(self, target: Array, prefixed: Flags) -> None:
        """For rows weighed by their prefix: the target's probability of the page down to the row."""
        deep = np.flatnonzero(prefixed[self.mine] & (self.rows.depth[self.mine] > 0))
        if not len(deep):
            return
        depth = self.rows.depth[self.mine[deep]]
        for case, length in np.unique(np.column_stack([self.case[deep], depth]), axis=0).tolist():
            block = self.blocks[case]
            group = self.mine[deep[(self.case[deep] == case) & (depth == length)]]
            pages = self.rows.shown[self.rows.start[group][:, None] + np.arange(length + 1)]
            place = np.minimum(np.searchsorted(block.arms, pages), len(block.arms) - 1)
            ordered = np.sort(pages, axis=1)
            good = (block.arms[place] == pages).all(axis=1) & (ordered[:, 1:] != ordered[:, :-1]).all(axis=1)
            target[group] = 0.0
            if good.any():
                steps = slate.conditionals(block.case.scores, place[good], floor=block.case.floor)
                target[group[good]] = steps.prod(axis=1)

    def value(self, expected: Array, known: Known) -> None:
        """The mean of the reward model under the target, at the row's position."""
        if known.valued is None or not len(self.mine):
            return
        first, which = distinct(self.case, self.position)
        shares = np.zeros((len(first), len(known.arms)))
        for row, (case, position) in enumerate(zip(self.case[first], self.position[first], strict=True)):
            block = self.blocks[case]
            if position <= len(block.shares):
                shares[row, np.searchsorted(known.arms, block.arms)] = block.shares[position - 1]
        expected[self.mine] = known.valued.expected(shares, case=which, rows=self.mine)

    def unsupported(self, unsupported: Array, known: Known) -> None:
        """The target's probability on arms the logger gave 0, where it takes the logger's belief to tell."""
        unclear = self.mine[known.logged.unclear[self.mine] & self.inside]
        if not len(unclear):
            return
        case = np.empty(len(unsupported), np.int64)
        case[self.mine] = self.case
        examples, kind = known.loggers.alike(self.rows, unclear, known.contexts)
        for place, row in enumerate(examples.tolist()):
            group = unclear[kind == place]
            block = self.blocks[case[row]]
            zeros = known.loggers.zeros(row, self.rows, known.contexts, block.arms, known.keys)
            if zeros is None:
                unsupported[group] = np.nan
                continue
            for other in np.unique(case[group]).tolist():  # the target may read what the logger does not
                mass = (self.blocks[other].shares * zeros).sum(axis=1)
                mine = group[case[group] == other]
                unsupported[mine] = np.minimum(mass[self.rows.slots["position"][mine] - 1], 1.0)


def _starts(lengths: Ids) -> Ids:
    return np.cumsum(lengths) - lengths
