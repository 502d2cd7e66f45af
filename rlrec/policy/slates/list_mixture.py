"""This module computes the slates of a policy that first draws a list of arms, and then ranks this list.

Probabilities are exact given a list, and averaged over many drawn lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from rlrec.arrays import Array, Ids, Index, distinct_rows, look_up, piece_rows, run_starts
from rlrec.policy.scores.families.correlated import Correlated, Sampled
from rlrec.policy.scores.floors import Floor
from rlrec.policy.scores.sampler import uniforms
from rlrec.policy.scores.scores import Scores, split_runs, subset
from rlrec.policy.slates import slate
from rlrec.records import Record

_PAIRS_PER_CHUNK = 1 << 20  # pairs of a list and a slate at a time
_LISTS_PER_CHUNK = 64  # lists whose tables are in memory at a time
_MAX_ENTRIES = 1 << 22  # numbers in a working array


class ListMixture(Record, kw_only=False, eq=False):
    """A ListMixture holds u lists of s arms out of 0 .. arms - 1, and the scores that rank each list.

    lists (u, s): the arms of each list, ascending. weight (r, u): in each of r replicas (repetitions of the draw of
    lists), the fraction of the draws that gave each list; rows sum to 1. scores: the scores of the arms of each
    list."""

    arms: int
    lists: Index
    weight: Array
    scores: Sequence[Scores]
    floor: Floor

    def marginals(self, size: int) -> Array:
        """Return the probability that each arm stands at position 1..size, for each replica, (r, size, arms).

        Given a list, the probability is exact. If scores are samples, the probability given a list is instead that
        of one simulated page, and the mean over lists is unbiased."""
        if isinstance(self.scores, SampledLists):
            list_marginals = np.array([self._simulate_marginals(number, size) for number in range(len(self.lists))])
        else:
            list_marginals = np.array(slate.marginals_each(self.scores, size=size, floor=self.floor, is_shared=True))
        marginals, arm_cells = np.empty((len(self.weight), size, self.arms)), self.lists.ravel()
        for replica_marginals, weight in zip(marginals, self.weight, strict=True):
            for position in range(size):
                shares = (weight[:, None] * list_marginals[:, position]).ravel()
                replica_marginals[position] = np.bincount(arm_cells, weights=shares, minlength=self.arms)
        return marginals

    def _simulate_marginals(self, number: int, size: int) -> Array:
        """Return the probability of each arm of a list at each position of a simulated page, given the arms above,
        (size, s).

        number: the index of the list, whose samples draw the page."""
        assert isinstance(self.scores, SampledLists)
        scores, (words,) = self.scores[number], self.scores.uniforms(number, size)
        shares, prefix = np.empty((size, len(scores))), np.empty(0, np.intp)
        for position in range(size):
            shares[position] = slate.remaining(scores, prefix, floor=self.floor)
            row = slice(position, position + 1)
            prefix = np.append(prefix, slate.invert_rows(shares[row], words[row]))
        return shares

    def joint_probabilities(self, slates: Index, weight: Array) -> Array:
        """Return, for each position, the probability of the arms of a slate down to this position, (n, k). The
        probability is the mean over lists.

        slates (n, k): the arms; weight (u,): the weight of each list."""
        p_joint = np.empty(slates.shape)
        for rows, tree in self._prefix_trees(slates, _PAIRS_PER_CHUNK // _LISTS_PER_CHUNK):
            totals, _ = self._sum_over_lists(tree, weight)
            for position, total in enumerate(totals[1:]):
                p_joint[rows, position] = total[tree.node[position + 1]]
        return p_joint

    def each_position(self, slates: Index, weight: Array) -> Iterator[tuple[Index, int, Array, Index]]:
        """Yield the probability of each arm at each position of slates, position by position. The slates are processed
        in portions.

        Four values are yielded: the indices of the slates of the portion, the position from 0, the probability of
        each arm after each distinct prefix, (v, arms), and the index of each slate's prefix. The probability is the
        mean over lists of the probability of prefix and arm, divided by the mean over lists of the probability of
        the prefix. After a prefix that no list can produce, the probability is 0.

        slates (n, k): the arms; weight (u,): the weight of each list."""
        max_rows = min(_PAIRS_PER_CHUNK // _LISTS_PER_CHUNK, _MAX_ENTRIES // (self.arms * slates.shape[1]))
        for rows, tree in self._prefix_trees(slates, max_rows):
            totals, shares = self._sum_over_lists(tree, weight, with_next_arms=True)
            for position, (total, p_joint) in enumerate(zip(totals, shares, strict=False)):
                total = np.broadcast_to(total[:, None], p_joint.shape)
                yield rows, position, np.divide(p_joint, total, out=p_joint, where=total > 0), tree.node[position]

    def _prefix_trees(self, slates: Index, max_rows: int) -> Iterator[tuple[Index, _PrefixTree]]:
        """Yield portions of the slates: the indices of the slates, sorted by arms, and the tree of their distinct
        prefixes."""
        order = np.lexsort(slates.T[::-1])
        for rows in np.split(order, range(max(1, max_rows), len(order), max(1, max_rows))):
            yield rows, _PrefixTree(slates[rows])

    def _sum_over_lists(
        self, tree: _PrefixTree, weight: Array, *, with_next_arms: bool = False
    ) -> tuple[list[Array], list[Array]]:
        """Return two lists of arrays, each with an array for every length of prefixes from 0. The first list has the
        sum over lists of the probability of each distinct prefix, (v,). The second list has the sum over lists of the
        probability of each prefix followed by each arm, (v, arms); it is empty unless `with_next_arms`.

        tree: the distinct prefixes of slates; weight (u,): the weight of each list."""
        totals = [np.zeros(len(arm)) for arm in tree.arm]
        shares = [np.zeros(len(arm) * self.arms) for arm in tree.arm[:-1]] if with_next_arms else []
        used_lists = np.flatnonzero(weight)
        for lists in np.split(used_lists, range(_LISTS_PER_CHUNK, len(used_lists), _LISTS_PER_CHUNK)):
            scores = [self.scores[number] for number in lists.tolist()]
            is_sampled, n_positions = isinstance(self.scores, SampledLists), len(tree.arm) - 1
            rankings = (
                scores if is_sampled else [item.order(n_positions) for item in scores]
            )  # orders cache their tables
            # pairs of a list and a top that consists of its arms; ranks: of these arms in the list
            list_index, top_nodes = np.arange(len(lists)), np.zeros(len(lists), np.intp)
            ranks = np.empty((len(lists), 0), np.intp)
            p_joint = weight[lists]
            totals[0] += p_joint.sum()
            for depth in range(len(tree.arm) - 1):
                probability = self._next_arms(rankings, list_index, ranks)
                if with_next_arms:
                    arm_cells = (top_nodes[:, None] * self.arms + self.lists[lists[list_index]]).ravel()
                    values = (p_joint[:, None] * probability).ravel()
                    shares[depth] += np.bincount(arm_cells, weights=values, minlength=len(shares[depth]))
                # the pairs whose list also has the next arm
                pair, top_nodes, rank = self._lengthen_tops(lists[list_index], top_nodes, tree, depth)
                list_index, ranks = list_index[pair], np.column_stack([ranks[pair], rank])
                p_joint = p_joint[pair] * probability[pair, rank]
                totals[depth + 1] += np.bincount(top_nodes, weights=p_joint, minlength=len(totals[depth + 1]))
        return totals, [share.reshape(-1, self.arms) for share in shares]

    def _lengthen_tops(self, lists: Index, node: Index, tree: _PrefixTree, depth: int) -> tuple[Index, Index, Index]:
        """Add one arm to the prefix of each pair of a list and a prefix, in every way that a slate continues the prefix
        and the list has the arm.

        Return three arrays, with an entry for each new pair: the index of the old pair, the longer prefix, and the
        rank of the added arm in the list. lists, node: the list and the prefix of each old pair; depth: the length
        of the prefixes."""
        first_child, counts = tree.children[depth]
        pair, longer_top = np.repeat(np.arange(len(lists)), counts[node]), piece_rows(first_child[node], counts[node])
        key = lists[pair] * self.arms + tree.arm[depth + 1][longer_top]
        cell_index, is_in_list = look_up(self._pair_keys, key)
        return pair[is_in_list], longer_top[is_in_list], cell_index[is_in_list] % self.lists.shape[1]

    @cached_property
    def _pair_keys(self) -> Ids:
        """Return a number for each pair of a list and an arm of this list, ascending, (u s,)."""
        return (np.arange(len(self.lists))[:, None] * self.arms + self.lists).ravel()

    def _next_arms(self, rankings: Any, list_index: Index, ranks: Index) -> Array:
        """Return the probability of each arm of a list at the position below d arms, (p, s).

        rankings: the orders of the lists, or their scores if these are samples; list_index (p,): the list of each row;
        ranks (p, d): the ranks of the d arms above in this list."""
        (pairs, depth), s = ranks.shape, self.lists.shape[1]
        next_arms = np.empty((pairs, s))
        if isinstance(self.scores, SampledLists):
            for row, number in enumerate(list_index.tolist()):
                next_arms[row] = slate.remaining(rankings[number], ranks[row], floor=self.floor)
            return next_arms
        if not pairs:
            return next_arms
        # any arm left serves to ask about the position below
        is_left = np.ones((pairs, s), np.bool_)
        is_left[np.arange(pairs)[:, None], ranks] = False
        slates = np.column_stack([ranks, is_left.argmax(axis=1)])
        steps = slate.each_position_of(rankings, list_index, slates, arms=s, floor=self.floor)
        for rows, position, probability, prefix in steps:
            if position == depth:
                next_arms[rows] = probability[prefix]
        return next_arms


class _PrefixTree:
    """A _PrefixTree holds the distinct prefixes of sorted slates, by length from 0 to k. A prefix is the arms of the
    first positions.

    slates (n, k): the arms, sorted. node (k + 1 arrays (n,)): the prefix of each slate; arm (k + 1 arrays (v,)): the
    last arm of each prefix, 0 for the empty prefix; children (k pairs of arrays (v,)): the first longer prefix of
    each prefix, and the number of longer prefixes."""

    def __init__(self, slates: Index) -> None:
        self.node, self.arm = [np.zeros(len(slates), np.intp)], [np.zeros(1, np.intp)]
        self.children: list[tuple[Index, Index]] = []
        for depth in range(slates.shape[1]):
            starts, begins_top = run_starts(*slates[:, : depth + 1].T), np.zeros(len(slates), np.intp)
            begins_top[starts[1:]] = 1
            counts = np.bincount(self.node[depth][starts], minlength=len(self.arm[depth]))
            self.children.append((np.cumsum(counts) - counts, counts))
            self.node.append(np.cumsum(begins_top))
            self.arm.append(slates[starts, depth])


class SampledLists(Sequence[Scores]):
    """A SampledLists object is a sequence of the scores of u lists, for arms that share one posterior.

    Each list is ranked by separate samples. The samples are drawn when needed, from a seed and the number of the
    list."""

    def __init__(self, scores: Correlated, lists: Index, *, seed: int) -> None:
        self._scores, self._lists, self._seed = scores, lists, seed

    def __len__(self) -> int:
        return len(self._lists)

    def __getitem__(self, number: int) -> Sampled:  # type: ignore[override]  # no slices
        values = self._scores.decision_scores(self._seed, number).values[:, self._lists[number]]
        return Sampled(values, np.arange(values.shape[1]))

    def uniforms(self, number: int, size: int) -> Array:
        """Return the uniforms with which a slate of `size` positions is drawn from a list, (1, size).

        number: the index of the list."""
        seeds, numbers = np.array([self._seed], np.uint64), np.array([number], np.int64)
        return uniforms(seeds, numbers, words=2 * size - 1)[:, ::2]


def distinct_lists(lists: Index, replica: Index, replicas: int) -> tuple[Index, Array]:
    """Return the distinct sets of arms among the lists, (u, s), and the fraction of the lists of each replica that have
    each set, (replicas, u). The arms of a set are in ascending order.

    lists (n, s): the arms of each list; replica (n,): the replica of each list. All replicas have the same number of
    lists."""
    distinct_sets, set_index = distinct_rows(np.sort(lists, axis=1))
    counts = np.bincount(replica * len(distinct_sets) + set_index, minlength=replicas * len(distinct_sets))
    return distinct_sets.astype(np.intp), counts.reshape(replicas, -1) / (len(lists) / replicas)


def scores_of_lists(scores: Scores, lists: Index) -> list[Scores]:
    """Return the scores of each list, given scores that do not depend on the other arms.

    scores: the scores of all arms; lists (u, s): the arms of each list."""
    return split_runs(subset(scores, lists))
