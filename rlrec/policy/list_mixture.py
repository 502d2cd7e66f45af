"""Slates of a policy that ranks one of many lists of arms, with what is exact given a list averaged over the lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rlrec.arrays import Array, Ids, Index, distinct_rows, piece_rows, run_starts
from rlrec.policy import slate
from rlrec.policy.families.correlated import Correlated, Sampled
from rlrec.policy.floors import Floor
from rlrec.policy.sampler import uniforms
from rlrec.policy.scores import Scores, subset, unstack

_PAIRS = 1 << 20  # pairs of a list and a slate at a time
_ENTRIES = 1 << 22  # numbers in a working array


@dataclass(frozen=True, eq=False)
class ListMixture:
    """u lists of s arms of 0 .. arms - 1, and the scores that rank each list.

    lists (u, s): ascending in each row. weight (r, u): share of each list among the draws of each of r replicas;
    rows sum to 1."""

    arms: int
    lists: Index
    weight: Array
    scores: Sequence[Scores]
    floor: Floor

    @cached_property
    def first(self) -> Array:
        """Probability of each arm of a list at position 1, (u, s)."""
        return self._each(1)[:, 0]

    def marginals(self, size: int) -> Array:
        """Probability that each arm stands at position 1..size, by each replica, (r, size, arms).

        Given a list it is exact, or of one simulated page where scores are samples; the mean over lists is unbiased."""
        each = self.first[:, None] if size == 1 else self._each(size)
        marginals, cells = np.empty((len(self.weight), size, self.arms)), self.lists.ravel()
        for of_replica, weight in zip(marginals, self.weight, strict=True):
            for position in range(size):
                shares = (weight[:, None] * each[:, position]).ravel()
                of_replica[position] = np.bincount(cells, weights=shares, minlength=self.arms)
        return marginals

    def _each(self, size: int) -> Array:
        """Probability that each arm stands at position 1..size of its list, (u, size, s)."""
        if isinstance(self.scores, SampledLists):
            return np.array([self._simulated(number, size) for number in range(len(self.lists))])
        return np.array(slate.marginals_each(self.scores, size=size, floor=self.floor, shared=True))

    def _simulated(self, number: int, size: int) -> Array:
        """The probabilities at each position of one page that is drawn from the samples of a list, (size, s)."""
        assert isinstance(self.scores, SampledLists)
        scores, (words,) = self.scores[number], self.scores.uniforms(number, size)
        shares, above = np.empty((size, len(scores))), np.empty(0, np.intp)
        for position in range(size):
            shares[position] = slate.remaining(scores, above, floor=self.floor)
            above = np.append(above, slate.invert_rows(shares[position : position + 1], words[position : position + 1]))
        return shares

    def each_position(self, slates: Index, weight: Array) -> Iterator[tuple[Index, int, Array, Index]]:
        """The rows of slates (n, k), some at a time; a position from 0; the probability of each arm below each distinct
        slate above, (v, arms), and which of these a row has. weight (u,): of each list. 0 below what no list makes.

        A probability is the mean over lists of that of the slate down to it, over the mean down to the one above."""
        used = np.flatnonzero(weight)
        order = np.lexsort(slates.T[::-1])
        step = max(1, min(_PAIRS // len(used), _ENTRIES // self.arms))
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            for position, (below, above) in enumerate(self._descend(slates[rows], used, weight)):
                yield rows, position, below, above

    def _descend(self, slates: Index, used: Index, weight: Array) -> Iterator[tuple[Array, Index]]:
        """`each_position` of slates in order of their arms."""
        # pairs of a list and of a distinct slate above that is made of the list; ranks: of its arms in the list
        lists, node, ranks = used, np.zeros(len(used), np.intp), np.empty((len(used), 0), np.intp)
        starts, above = np.zeros(1, np.intp), np.zeros(len(slates), np.intp)
        for position in range(slates.shape[1]):
            # joint probability of each pair, and of each arm of the list below it
            joint, below = self._below(lists, ranks)
            joint *= weight[lists]
            cells = (node[:, None] * self.arms + self.lists[lists]).ravel()
            shares = np.bincount(cells, weights=(joint[:, None] * below).ravel(), minlength=len(starts) * self.arms)
            total = np.bincount(node, weights=joint, minlength=len(starts))[:, None]
            shares = shares.reshape(-1, self.arms)
            yield np.divide(shares, total, out=np.zeros_like(shares), where=total > 0), above
            # pairs one position further down
            starts = run_starts(*slates[:, : position + 1].T)
            parent, number = above[starts], np.zeros(len(slates), np.intp)
            number[starts[1:]] = 1
            above = np.cumsum(number)
            lists, node, ranks = self._longer(lists, node, ranks, parent, slates[starts, position])

    def _longer(self, lists: Index, node: Index, ranks: Index, parent: Index, arm: Index) -> tuple[Index, Index, Index]:
        """The pairs whose list has the next arm, too. parent, arm (v,): of each longer slate."""
        counts = np.bincount(parent, minlength=int(node.max(initial=0)) + 1)
        first = np.cumsum(counts) - counts
        pair = np.repeat(np.arange(len(lists)), counts[node])
        longer = piece_rows(first[node], counts[node])
        # where the arm stands in the list
        wanted = lists[pair] * self.arms + arm[longer]
        cell = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        has = np.flatnonzero(self._keys[cell] == wanted)
        pair, rank = pair[has], cell[has] % self.lists.shape[1]
        return lists[pair], longer[has], np.column_stack([ranks[pair], rank])

    @cached_property
    def _keys(self) -> Ids:
        """A number for each list and arm of it, ascending."""
        return (np.arange(len(self.lists))[:, None] * self.arms + self.lists).ravel()

    def _below(self, lists: Index, ranks: Index) -> tuple[Array, Array]:
        """The probability of each slate above, (p,), and of each arm of its list below it, (p, s). ranks (p, d): where
        the arms of the slate stand in lists (p,)."""
        (pairs, depth), s = ranks.shape, self.lists.shape[1]
        if not depth:
            return np.ones(pairs), self.first[lists]
        joint, below = np.ones(pairs), np.empty((pairs, s))
        if isinstance(self.scores, SampledLists):
            order = np.argsort(lists, kind="stable")
            for rows in np.split(order, run_starts(lists[order])[1:]) if pairs else []:
                scores = self.scores[int(lists[rows[0]])]
                joint[rows] = slate.conditionals(scores, ranks[rows], floor=self.floor).prod(axis=1)
                for row in rows.tolist():
                    below[row] = slate.remaining(scores, ranks[row], floor=self.floor)
            return joint, below
        # any arm left, to ask about the position below
        left = np.ones((pairs, s), np.bool_)
        left[np.arange(pairs)[:, None], ranks] = False
        slates = np.column_stack([ranks, left.argmax(axis=1)])
        swept = slate.each_position(self.scores, lists, slates, floor=self.floor) if pairs else ()
        for rows, position, probability, above in swept:
            if position < depth:
                joint[rows] *= probability[above, ranks[rows, position]]
            else:
                below[rows] = probability[above]
        return joint, below


class SampledLists(Sequence[Scores]):
    """The scores of lists (u, s) whose arms share one posterior: each list is ranked by samples of its own, those that
    the words of a seed and its number give. They are drawn when they are asked for."""

    def __init__(self, scores: Correlated, lists: Index, *, seed: int) -> None:
        self._scores, self._lists, self._seed = scores, lists, seed

    def __len__(self) -> int:
        return len(self._lists)

    def __getitem__(self, number: int) -> Sampled:  # type: ignore[override]  # no slices
        return Sampled(self._scores.of_decision(self._seed, number).values[:, self._lists[number]])

    def uniforms(self, number: int, size: int) -> Array:
        """The uniforms by which a page of so many positions is drawn, (1, size)."""
        seeds, numbers = np.array([self._seed], np.uint64), np.array([number], np.int64)
        return uniforms(seeds, numbers, words=2 * size - 1)[:, ::2]


def distinct_lists(lists: Index, replica: Index, replicas: int) -> tuple[Index, Array]:
    """The distinct sets among lists (n, s), ascending, (u, s), and the share of each in every replica, (replicas, u).

    replica (n,): of each list; equally many have each."""
    different, which = distinct_rows(np.sort(lists, axis=1))
    counts = np.bincount(replica * len(different) + which, minlength=replicas * len(different))
    return different.astype(np.intp), counts.reshape(replicas, -1) / (len(lists) / replicas)


def scores_of_lists(scores: Scores, lists: Index) -> list[Scores]:
    """The scores of each of many lists (u, s), where those of an arm do not depend on the other arms."""
    return unstack(subset(scores, lists))
