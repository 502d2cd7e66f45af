"""This module detects whether and when the mean of a stream of rewards has changed. The methods are ADWIN and
Page-Hinkley.

Both methods process the stream in chunks with bounded memory, and assume that rewards are independent."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.errors import InputError, suggest
from rlrec.policy.beliefs.base import check_number
from rlrec.records import Record


class Change(Record):
    """A Change describes a detected change of the mean. A mark is the number that the caller of `take` gave to a
    reward, such as the id of its decision.

    start: the mark of the first reward after the change (an estimate); alarm: the mark of the reward at which the
    change was detected; mean_before, mean_after: the means of the rewards before and after the change."""

    start: int
    alarm: int
    mean_before: float
    mean_after: float


def detector(method: str) -> Adwin | PageHinkley:
    """Return a detector for a new stream.

    method: adwin or page-hinkley; any other text raises InputError."""
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}", hint=suggest(method, list(METHODS)) or "adwin or page-hinkley")
    return METHODS[method]()


# -- ADWIN --

CHECK_INTERVAL = 32  # rewards between two checks
MAX_BUCKETS = 5  # buckets of one size
MIN_SIDE_REWARDS = 5  # rewards that each side of a cut needs


class Adwin:
    """An Adwin object detects changes by a window of recent rewards. The window grows while its mean stays the same. If
    the mean before some point of the window differs from the mean after it, the window is cut there. Rewards may have
    any range.

    delta: a bound on the probability of a false alarm. The true probability is close to the bound only if a window
    is checked once; on click rates false alarms are far rarer. The bound depends on the width of the range of
    rewards, which is taken from the rewards seen so far. The window is an exponential histogram of at most 5 buckets
    of each power of two.

    Source: Bifet and Gavalda 2007, ADWIN2. At an alarm, all rewards before the clearest cut are dropped at once, so
    that one change is reported once."""

    def __init__(self, *, delta: float = 0.002) -> None:
        check_number("delta", delta, 1e-100, 1)
        self.delta = delta
        self._minimum, self._maximum = np.inf, -np.inf
        # columns for each edge of a bucket: number, sum and sum of squares of the rewards before it
        self._sums = np.zeros((3, 1))
        self._marks = np.empty(0, np.int64)  # of the first reward of each bucket
        self._bucket_counts = [0]  # buckets of 1, 2, 4, ... rewards; the smallest are the newest
        self._remainder: list[tuple[Array, Ids]] = []  # rewards of an incomplete tick
        self._n_waiting = 0

    def take(self, rewards: Array, *, marks: Ids) -> list[Change]:
        """Return the changes that are detected in the next rewards of the stream.

        rewards (n,): the next rewards; marks (n,): a mark for each reward, such as the id of its decision."""
        self._remainder.append((np.array(rewards), np.array(marks)))
        self._n_waiting += len(rewards)
        if self._n_waiting < CHECK_INTERVAL:
            return []
        rewards, marks = (np.concatenate(parts) for parts in zip(*self._remainder, strict=True))
        self._n_waiting = len(rewards) % CHECK_INTERVAL
        n_in_ticks = len(rewards) - self._n_waiting
        self._remainder = [(rewards[n_in_ticks:].copy(), marks[n_in_ticks:].copy())]
        return self._take_ticks(rewards[:n_in_ticks], marks[:n_in_ticks])

    def _take_ticks(self, rewards: Array, marks: Ids) -> list[Change]:
        # running sums over window and rewards; `edges` are columns of them, so to merge buckets is to drop an edge
        n_old_edges = self._sums.shape[1]
        new_sums = np.cumsum([np.ones(len(rewards)), rewards, rewards**2], axis=1)
        sums = np.hstack([self._sums, self._sums[:, -1:] + new_sums])
        marks = np.r_[self._marks, marks]
        # the smallest and the largest reward of the stream, at the end of each tick
        rewards_by_tick = rewards.reshape(-1, CHECK_INTERVAL)
        minima = np.minimum.accumulate(np.minimum(rewards_by_tick.min(axis=1), self._minimum))
        maxima = np.maximum.accumulate(np.maximum(rewards_by_tick.max(axis=1), self._maximum))
        self._minimum, self._maximum, width = minima[-1], maxima[-1], (maxima - minima).tolist()
        edges, changes = list(range(n_old_edges)), []
        # tick by tick, with cuts as long as two sides differ
        for tick, start in enumerate(range(n_old_edges, sums.shape[1], CHECK_INTERVAL)):
            end = start + CHECK_INTERVAL
            edges.extend(range(start, end))
            self._merge_buckets(edges)
            if not width[tick]:
                continue
            change = None
            while cut := self._find_cut(sums[:, edges], width[tick]):
                change = change or _describe_change(
                    sums[:, [edges[0], edges[cut], edges[-1]]], marks[[edges[cut], end - 2]]
                )
                del edges[:cut]
                for size in reversed(range(len(self._bucket_counts))):
                    n_dropped = min(cut, self._bucket_counts[size])
                    self._bucket_counts[size] -= n_dropped
                    cut -= n_dropped
            changes += [change] if change else []
        self._sums, self._marks = sums[:, edges] - sums[:, edges[:1]], marks[edges[:-1]]
        return changes

    def _merge_buckets(self, edges: list[int]) -> None:
        """Add 32 new buckets of one reward. While there are more than 5 buckets of a size, merge the two oldest of them
        into a bucket of twice the size.

        edges: the columns of the running sums at which buckets begin and end. The edges inside merged buckets are
        deleted."""
        bucket_counts, last_edge, size = self._bucket_counts, len(edges) - 1, 0
        bucket_counts[0] += CHECK_INTERVAL
        while (n_pairs := (bucket_counts[size] - MAX_BUCKETS + 1) // 2) > 0:
            first_edge = last_edge - bucket_counts[size]
            del edges[first_edge + 1 : first_edge + 2 * n_pairs : 2]
            if size + 1 == len(bucket_counts):
                bucket_counts.append(0)
            bucket_counts[size] -= 2 * n_pairs
            bucket_counts[size + 1] += n_pairs
            last_edge, size = first_edge + n_pairs, size + 1

    def _find_cut(self, sums: Array, width: float) -> int:
        """Return the index of the edge at which the mean before and the mean after differ most clearly. The result is 0
        if no difference is significant.

        sums (3, e): the number, the sum and the sum of squares of the rewards before each edge; width: the width of
        the range of rewards."""
        count, reward_sum, square_sum = sums - sums[:, :1]
        n = count[-1]
        n_left = count[1:-1]
        inverse_count = 1 / n_left + 1 / (n - n_left)
        difference = np.abs(reward_sum[1:-1] / n_left - (reward_sum[-1] - reward_sum[1:-1]) / (n - n_left))
        confidence_term = np.log(2 * max(np.log(n), 1.0) / self.delta) * inverse_count
        variance = max(square_sum[-1] / n - (reward_sum[-1] / n) ** 2, 0.0)
        bound = np.sqrt(2 * variance * confidence_term) + 2 / 3 * width * confidence_term
        is_clear = (difference >= bound) & (np.minimum(n_left, n - n_left) >= MIN_SIDE_REWARDS)
        return int(np.argmax(np.where(is_clear, difference**2 / inverse_count, -1.0))) + 1 if is_clear.any() else 0


def _describe_change(sums: Array, marks: Ids) -> Change:
    """Return the change at a cut of the window.

    sums (3, 3): the number, the sum and the sum of squares of rewards (rows) before the start of the window, before
    the cut and before the end (columns); marks: the marks of the first reward after the cut and of the last reward."""
    count, reward_sum, _ = np.diff(sums, axis=1)
    mean_before, mean_after = (reward_sum / count).tolist()
    return Change(start=int(marks[0]), alarm=int(marks[1]), mean_before=mean_before, mean_after=mean_after)


# -- Page-Hinkley --

BLOCK_SIZE = 4096  # rewards taken together
MIN_REWARDS = 30  # before the first alarm
DELTA = 0.01  # excess of a reward over the mean that does not count
THRESHOLD = 50.0


class PageHinkley:
    """A PageHinkley object raises an alarm when a running sum exceeds its minimum by more than THRESHOLD. The sum adds
    each reward minus the running mean of rewards minus DELTA. A second test does the same with the negative rewards.

    For rewards x_t, the sum is m_t = m_(t-1) + x_t - mean_t - DELTA. After an alarm, the test starts again. The test
    suits steps of a known size. Where rewards have variance v, each direction has one false alarm in about (exp(a) -
    1 - a) v / 2 DELTA^2 rewards, where a = 2 DELTA THRESHOLD / v. A step s is detected after about THRESHOLD / (s -
    DELTA) rewards. These constants suit click rates up to 10 %: with v = 0.09 a false alarm comes once in 3e7
    rewards, and a step of 0.1 is detected after about 600 rewards. Rewards with more variance raise false alarms
    more often.

    Source: the test of Page and Hinkley as it is commonly written. We derived the rate of false alarms."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._count, self._total = 0, 0.0
        self._directions = _Direction(1.0), _Direction(-1.0)

    def take(self, rewards: Array, *, marks: Ids) -> list[Change]:
        """Return the changes that are detected in the next rewards of the stream, as `Adwin.take` does.

        rewards, marks (n,): the next rewards, and a mark for each reward."""
        changes, block_start = [], 0
        while block_start < len(rewards):
            block = slice(block_start, block_start + BLOCK_SIZE)
            change, n_used = self._take_block(rewards[block], marks[block])
            changes += [change] if change else []
            block_start += n_used
        return changes

    def _take_block(self, rewards: Array, marks: Ids) -> tuple[Change | None, int]:
        """Return the first change in a block of rewards (None if there is no change), and the number of rewards of the
        block that were processed."""
        # excess of each reward over the running mean
        count, total = self._count + np.arange(1.0, len(rewards) + 1), self._total + np.cumsum(rewards)
        excess = rewards - total / count
        is_judged = count >= MIN_REWARDS
        # the first alarm, in either direction
        first_alarm, changed_side = len(rewards), None
        for direction in self._directions:
            alarms = (direction.rise_above_minimum(excess) > THRESHOLD) & is_judged
            if alarms[:first_alarm].any():
                first_alarm, changed_side = int(np.argmax(alarms)), direction
        last_reward = min(first_alarm, len(rewards) - 1)
        for direction in self._directions:
            direction.advance(last_reward, count=count, total=total, marks=marks)
        if changed_side is None:
            self._count, self._total = int(count[-1]), float(total[-1])
            return None, len(rewards)
        old_mean = changed_side.total / changed_side.count
        new_mean = float((total[first_alarm] - changed_side.total) / (count[first_alarm] - changed_side.count))
        change = Change(
            start=changed_side.start, alarm=int(marks[first_alarm]), mean_before=old_mean, mean_after=new_mean
        )
        self._reset()
        return change, first_alarm + 1


class _Direction:
    """A _Direction runs the Page-Hinkley test in one direction, up or down. It holds the running sum, the minimum of
    the sum, and the place of the minimum in the stream.

    sign: 1 for a test of rising rewards, -1 for falling rewards."""

    def __init__(self, sign: float) -> None:
        self.sign = sign
        self.sum, self.minimum = 0.0, np.inf
        self.count, self.total = 0, 0.0  # number of rewards until the minimum, and their sum
        self.start = 0  # mark of the first reward after it
        self._sums = self._minima = np.empty(0)

    def rise_above_minimum(self, excess: Array) -> Array:
        """Return how far the running sum is above its minimum at each reward of the block, (n,).

        excess (n,): each reward minus the running mean."""
        self._sums = self.sum + np.cumsum(self.sign * excess - DELTA)
        self._minima = np.minimum(np.minimum.accumulate(self._sums), self.minimum)
        return self._sums - self._minima

    def advance(self, last_reward: int, *, count: Array, total: Array, marks: Ids) -> None:
        """Advance the running sum and its minimum to the reward with index `last_reward` in the block.

        count, total (n,): the number and the sum of the rewards of the stream up to each reward; marks (n,): the
        marks of the rewards."""
        if self.count == count[0] - 1:  # the minimum was at the last reward before the block
            self.start = int(marks[0])
        if self._minima[last_reward] < self.minimum:
            minimum_index = int(np.argmax(self._minima[: last_reward + 1] == self._minima[last_reward]))
            self.count, self.total = int(count[minimum_index]), float(total[minimum_index])
            self.start = int(marks[min(minimum_index + 1, len(marks) - 1)])
        self.sum, self.minimum = float(self._sums[last_reward]), float(self._minima[last_reward])


METHODS: dict[str, type[Adwin] | type[PageHinkley]] = {"adwin": Adwin, "page-hinkley": PageHinkley}
