"""With which probability a target would have shown what the log shows.

A row is scored with its own eligible arms and context, never with today's catalogue. Distinct cases are worked out
once; all rows then look up theirs by array indexing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from rlrec.app.evaluation.contexts import Contexts
from rlrec.app.evaluation.log_rows import Rows
from rlrec.app.evaluation.loggers import Logged, Loggers
from rlrec.app.evaluation.reward_models import Valued
from rlrec.app.evaluation.targets import Target
from rlrec.app.evaluation.visit_values import Shown
from rlrec.arrays import Array, Flags, Ids, Index, distinct
from rlrec.ope.base import LogBatch
from rlrec.policy import slate
from rlrec.policy.scores import Scores, cells
from rlrec.store import Unit, contents
from rlrec.store.bulk import Columns

CASES = 100  # worked out at a time
CELLS = 4_000_000  # numbers held at a time, for cases and for their values under a reward model
KEPT = 8_000_000  # numbers of worked-out cases that are remembered from batch to batch
OVERHEAD = 200  # numbers that a case takes beside its own, about


@dataclass(frozen=True, eq=False)
class Known:
    """What all targets share of a batch, beside its rows."""

    contexts: Contexts
    logged: Logged
    loggers: Loggers
    keys: Mapping[int, str]
    arms: Ids
    rank: Ids
    valued: Valued | None


@dataclass(frozen=True, eq=False)
class Block:
    """One case: arms (m,) ids; shares (k, m) of each arm at each position; greatest (k,) of them.

    Where scores are correlated, every decision is a case with samples of its own. Below position 1 its shares are then
    those given the page above as it was shown, and `greatest` bounds the chance of any page down to there."""

    arms: Ids
    scores: Scores
    floor: float
    shares: Array
    greatest: Array

    @property
    def cells(self) -> int:
        return OVERHEAD + len(self.arms) + self.shares.size + cells(self.scores)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a target makes of a batch, (n,) each. prefixed: whether both sides of a weight are the page down to the
    row."""

    prefixed: Flags
    target: Array
    greatest: Array
    unsupported: Array
    expected: Array

    @classmethod
    def nothing(cls, prefixed: Flags) -> Seen:
        """To be filled."""
        return cls(prefixed, *(np.zeros(len(prefixed)) for _ in range(4)))

    def settle(self, logged: Logged) -> None:
        """What is unsupported where the row itself tells: once the others are filled."""
        self.unsupported[logged.alone] = 1 - np.minimum(self.target[logged.alone], 1.0)
        self.unsupported[~(logged.full | logged.alone | logged.unclear)] = np.nan


@dataclass(eq=False)
class Scorer:
    """One target and the cases it has worked out."""

    target: Target
    _blocks: dict[tuple[int, int, int, str], Block] = field(default_factory=dict)
    _cells: int = 0

    def batch(self, unit: Unit, rows: Rows, known: Known) -> LogBatch:
        """The rows as one batch for the estimators per impression.

        Both sides of a weight are marginals at the position shown; where either side has none, both are the
        probability of the page down to there."""
        if self.target.serving is None:
            return self._own(rows, known)
        seen, valued = self.seen(unit, rows, known), known.valued
        product = np.where(rows.lowest > 0, rows.lowest, np.nan)
        return LogBatch(
            reward=rows.reward,
            propensity=np.where(seen.prefixed, rows.prefix, rows.slots["marginal"]),
            target=np.minimum(seen.target, 1.0),
            cluster=rows.cluster,
            predicted=None if valued is None else valued.predicted,
            expected=None if valued is None else seen.expected,
            largest=seen.greatest / np.where(seen.prefixed, product, known.logged.lowest),
            unsupported=seen.unsupported,
            default=rows.default,
        )

    def rows(self, rows: Rows) -> Rows:
        """The rows that can say anything of the target: for the policy of an imported log its own."""
        if self.target.serving is not None:
            return rows
        return rows.take(rows.slots["policy_id"] == self.target.policy_id)

    def blind(self, slots: Columns) -> Flags | None:
        """The rows that it cannot be asked about, since what it reads of them is not known; None: there is none."""
        return None

    def _own(self, rows: Rows, known: Known) -> LogBatch:
        """Rows of the target itself: nothing is to be weighed, and what it showed is a sample of it."""
        sure = np.ones(len(rows))
        predicted = None if known.valued is None else known.valued.predicted
        return LogBatch(
            reward=rows.reward, propensity=sure, target=sure, cluster=rows.cluster, predicted=predicted,
            expected=predicted, largest=sure, unsupported=np.zeros(len(rows)), default=rows.default,
        )  # fmt: skip

    def seen(self, unit: Unit, rows: Rows, known: Known) -> Seen:
        seen = Seen.nothing(np.isnan(rows.slots["marginal"]))
        for part in self._each(unit, rows, known):
            seen.target[part.mine], seen.greatest[part.mine] = part.target, part.greatest
            part.follow(seen.target, seen.prefixed)
            part.value(seen.expected, known)
            part.unsupported(seen.unsupported, known)
        seen.settle(known.logged)
        return seen

    def pages(self, unit: Unit, rows: Rows, known: Known, *, shares: bool) -> Iterator[Shown]:
        """What it makes of whole pages, of which each row is the lowest slot, some at a time. shares: whether these are
        wanted."""
        for part in self._each(unit, rows, known):
            share = part.shares(known.arms) if shares else np.zeros((len(part.blocks), len(known.arms)))
            yield Shown(rows=part.mine, log_page=part.log_pages(), places=known.rank, share=share, case=part.case)

    def _each(self, unit: Unit, rows: Rows, known: Known) -> Iterator[_Part]:
        """The rows by their cases, some at a time."""
        reading, readings = known.contexts.reading(self.target.reads)
        columns = rows.slots["eligible_id"], self._revision(rows.slots), rows.slots["size"], reading
        kinds, case = distinct(*columns)
        cases = np.column_stack([column[kinds] for column in columns])
        order = np.argsort(case, kind="stable")
        ends = np.searchsorted(case[order], np.arange(len(cases) + 1))
        for first, last in self._portions(cases, known):
            blocks = self._worked_out(unit, cases[first:last], readings, known)
            mine = order[ends[first] : ends[last]]
            yield from self._parts(blocks, case[mine] - first, mine, rows)

    def _revision(self, slots: Columns) -> Ids:
        """The catalogue of each row, (n,), where the target looks at what it says of the arms."""
        assert self.target.serving is not None
        revision: Ids = slots["catalogue_revision"]
        return revision if self.target.serving.described is not None else np.zeros_like(revision)

    def _portions(self, cases: Ids, known: Known) -> Iterator[tuple[int, int]]:
        """Ranges of cases that are worked out together."""
        longest = int(cases[:, 2].max(initial=1)) if known.valued is not None else 1
        step = min(CASES, max(1, CELLS // (longest * max(1, len(known.arms)))))
        return ((first, min(first + step, len(cases))) for first in range(0, len(cases), step))

    def _worked_out(self, unit: Unit, cases: Ids, readings: list[dict[str, object]], known: Known) -> list[Block]:
        """The blocks of these cases (eligible set, revision, size, reading)."""
        made = self.target.serving
        assert made is not None
        names = [(*rest, repr(readings[reading])) for *rest, reading in cases.tolist()]
        if self._cells > KEPT:
            made.forget()
            self._blocks = {name: self._blocks[name] for name in names if name in self._blocks}
            self._cells = sum(block.cells for block in self._blocks.values())
        missing: dict[tuple[int, int], dict[tuple[int, int, int, str], int]] = {}
        for name, reading in zip(names, cases[:, 3].tolist(), strict=True):
            if name not in self._blocks:
                missing.setdefault(name[:2], {})[name] = reading
        sets = contents.eligible_arms(unit, {eligible for eligible, _ in missing}) if missing else {}
        for (eligible, revision), new in missing.items():
            arms = np.array(sets[eligible], np.int64)
            contexts = [readings[reading] for reading in new.values()]
            found = made.scores(eligible, arms, contexts, keys=known.keys, revision=revision)
            for name, scores in zip(new, found, strict=True):
                size = min(name[2], len(arms))
                self._blocks[name] = block = _block(arms, scores, size, floor=made.policy.exploration)
                self._cells += block.cells
        return [self._blocks[name] for name in names]

    def _parts(self, blocks: list[Block], case: Ids, mine: Ids, rows: Rows) -> Iterator[_Part]:
        """These rows and their cases; where scores are correlated, some decisions at a time."""
        scores = blocks[0].scores
        if not scores.samples:
            yield _Part(blocks, case, mine, rows)
            return
        below = np.argsort(-rows.depth[mine], kind="stable")  # the lowest row of a decision tells of it
        mine, case = mine[below], case[below]
        seeds, numbers = self.target.samples(rows.slots)
        first, which = distinct(rows.slots["decision_id"][mine])
        step = max(1, CELLS // (scores.samples * max(len(block.arms) for block in blocks)))
        for start in range(0, len(first), step):
            lowest = first[start : start + step]
            cases = zip(case[lowest].tolist(), mine[lowest].tolist(), strict=True)
            own = [_drawn(blocks[place], rows, row, int(seeds[row]), int(numbers[row])) for place, row in cases]
            inside = (which >= start) & (which < start + step)
            yield _Part(own, which[inside] - start, mine[inside], rows)


def _block(arms: Ids, scores: Scores, size: int, *, floor: float) -> Block:
    if scores.samples:
        return Block(arms, scores, floor, np.empty((size, 0)), np.ones(size))
    shares = slate.marginals(scores, size=size, floor=floor)
    return Block(arms, scores, floor, shares, shares.max(axis=1))


def _drawn(block: Block, rows: Rows, row: int, seed: int, number: int) -> Block:
    """The case of one decision, whose lowest row is given, with the samples of `Target.samples`. Where the page above
    is not known, its shares are those of position 1."""
    floor, size = block.floor, len(block.shares)
    scores = block.scores.of_decision(seed, number)
    page = rows.shown[rows.start[row] : rows.start[row] + rows.depth[row]]
    place, good = places(block.arms, page[None])
    above = place[0] if good[0] and rows.whole[row] else place[0, :0]
    given = [slate.remaining(scores, above[:depth], floor=floor) for depth in range(len(above) + 1)]
    shares = np.array([*given, *[given[-1]] * (size - len(given))])
    return Block(block.arms, scores, floor, shares, np.full(size, shares[0].max()))


def places(arms: Ids, pages: Ids) -> tuple[Index, Flags]:
    """Where the arms of pages (n, k) stand among others, (n, k), and which pages can be made of these, (n,)."""
    place = np.minimum(np.searchsorted(arms, pages), len(arms) - 1)
    ordered = np.sort(pages, axis=1)
    return place, (arms[place] == pages).all(axis=1) & (ordered[:, 1:] != ordered[:, :-1]).all(axis=1)


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
        """For rows weighed by their prefix: the target's probability of the page down to the row.

        Samples have no marginal below position 1."""
        if self.blocks[0].scores.samples:
            prefixed[self.mine] |= self.position > 1
        known = prefixed[self.mine] & ~np.isnan(self.rows.prefix[self.mine])
        for group, steps in self._down(np.flatnonzero(known & self._deep)):
            target[self.mine[group]] = steps.prod(axis=1)

    @property
    def _deep(self) -> Flags:
        """The rows that stand below others."""
        found: Flags = self.rows.depth[self.mine] > 0
        return found

    def log_pages(self) -> Array:
        """Log of the target's probability of the page down to each row, (p,)."""
        with np.errstate(divide="ignore"):
            found: Array = np.log(np.minimum(self.target, 1.0))
            for group, steps in self._down(np.flatnonzero(self._deep)):
                found[group] = np.log(steps).sum(axis=1)
        return found

    def _down(self, deep: Ids) -> Iterator[tuple[Ids, Array]]:
        """Of these rows by case and depth: the target's probability of each arm down to there given those above it; 0
        for what is no page of its arms."""
        depth = self.rows.depth[self.mine[deep]]
        for case, length in np.unique(np.column_stack([self.case[deep], depth]), axis=0).tolist():
            block = self.blocks[case]
            group = deep[(self.case[deep] == case) & (depth == length)]
            start = self.rows.start[self.mine[group]]
            place, good = places(block.arms, self.rows.shown[start[:, None] + np.arange(length + 1)])
            steps = np.zeros(place.shape)
            if good.any():
                steps[good] = slate.conditionals(block.scores, place[good], floor=block.floor)
            yield group, steps

    def shares(self, arms: Ids) -> Array:
        """Probabilities of position 1 in each case, among all arms: (blocks, a)."""
        found = np.zeros((len(self.blocks), len(arms)))
        for row, block in enumerate(self.blocks):
            found[row, np.searchsorted(arms, block.arms)] = block.shares[0]
        return found

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
