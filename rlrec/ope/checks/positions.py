"""This module estimates examination by position from the log. Examination is the probability that a slot is looked at,
relative to the first position.

A click takes examination and attraction: theta_k x gamma(arm, context). Naive click rates by position mix both,
since good arms stand higher. Neighbouring positions are compared on the arms that the logger could have put at
either.

Click models other than the position-based one say who still looks after a click; another test says which model fits a
log best.

`pbm`: a slot is examined with a probability that depends on its position. `cascade`: slots are examined down to the
first click. `dcm` (dependent clicks; Guo, Liu & Wang 2009): down to a click, and after it with a probability that
depends on its position. In all of them, the probability of a click is attraction of the arm x examination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from statistics import NormalDist

import numpy as np

from rlrec.arrays import Array, Flags, Ids, distinct, numbers_in_runs, run_starts
from rlrec.ope.intervals.intervals import value_and_error
from rlrec.ope.sums.base import hash_bits
from rlrec.ope.sums.moments import Moments, moments
from rlrec.records import Record, Sums

VAGUE = 1.5  # ratio of upper to lower bound from which on an examination counts as uncertain
FEWEST = 10.0  # effective rewards, or slots, that each side of a comparison of neighbours needs
MODELS = ("pbm", "cascade", "dcm")
TEST_DIVISOR = 4  # one page in so many is held out, to compare the models
PAGES = 50_000  # held out at most
_SALT = 5
_LEAST = 1e-6  # stands for the probability of a click that a model rules out
_STEPS, _CLOSE = 5_000, 1e-9  # iterations of expectation-maximisation over cells, and the change at which it stops
_ROUNDS, _SETTLED = 100, 1e-5  # the same over pages


class PositionRows(Record, eq=False):
    """PositionRows holds the slots of pages in order, (n,) each.

    page; arm (a number from 0); position from 1; reward above the default; cluster; count: how many pages its page
    stands for in a log that dropped some. marginals (n, K): the logger's probability of the slot's arm at each
    position of its page; NaN where unknown."""

    page: Ids
    arm: Ids
    position: Ids
    reward: Array
    cluster: Ids
    count: Array
    marginals: Array

    def take(self, rows: Flags) -> PositionRows:
        """Return some of the rows."""
        return PositionRows(**{name: column[rows] for name, column in vars(self).items()})


class ExaminedPosition(Record):
    """This record has a position of a curve, with its examination relative to position 1, with bounds (infinite where
    unknown), and the slots and rewards of the log there."""

    position: int
    examination: float
    lower: float
    upper: float
    rewards: int
    slots: int


class EstimatedCurve(Record):
    """An EstimatedCurve is a curve of examination from position 1 on.

    reasons: from which position on it is uncertain, and why it ends, each as CODE:POSITION; empty if nothing is
    lacking."""

    positions: Sequence[ExaminedPosition]
    reasons: tuple[str, ...]
    clusters: int


class LogRatio(Record):
    """A LogRatio is the log of the examination at a position, from its chain of d ratios. It is a smooth function of 2d
    sums, alternately numerators and denominators."""

    def value(self, mean: Array) -> Array:
        return np.log(mean[..., 1::2]).sum(axis=-1) - np.log(mean[..., ::2]).sum(axis=-1)

    def gradient(self, mean: Array) -> Array:
        gradient = 1 / mean
        gradient[..., ::2] *= -1
        return gradient


class OverlapSums(Sums):
    """OverlapSums holds sums of some batches, which can be added.

    moments: per cluster, of the weighted rewards of each pair of neighbours. effective (K - 1, 2, 2, 2): for every
    pair, its upper and lower side, over slots and over slots with a reward: the sum of the weights, and of their
    squares. slots, rewards (K,): that could be compared; unknown: slots whose marginals at their own and a
    neighbouring position are not known."""

    moments: Moments
    effective: Array
    slots: Ids
    rewards: Ids
    unknown: int


def overlap(rows: PositionRows, *, spans_batches: bool) -> OverlapSums:
    """Return the sums of one batch by overlap weights. With P_k the marginal of the slot's arm at position k, a slot at
    k has weight h / P_k and one at k + 1 has weight h / P_(k+1), where h = P_k P_(k+1) / (P_k + P_(k+1)), times its
    count.

    spans_batches: whether a cluster may have rows in another batch."""
    n, size = rows.marginals.shape
    terms, effective = np.zeros((n, 1 + 2 * (size - 1))), np.zeros((size - 1, 2, 2, 2))
    terms[:, 0] = 1.0
    rewarded = rows.reward != 0
    comparable = np.zeros(n, np.bool_)
    for pair in range(size - 1):
        for side in (0, 1):
            at = np.flatnonzero(rows.position == pair + 1 + side)
            p_slot, p_neighbour = rows.marginals[at, pair + side], rows.marginals[at, pair + 1 - side]
            # h / P_k = P_(k+1) / (P_k + P_(k+1)), for the upper slot; 0 where either is not known
            weight = np.nan_to_num(p_neighbour / np.maximum(p_slot + p_neighbour, 1e-300)) * rows.count[at]
            terms[at, 1 + 2 * pair + side] = weight * rows.reward[at]
            comparable[at] |= ~np.isnan(p_slot + p_neighbour)
            for number, weights in enumerate((weight, weight[rewarded[at]])):
                effective[pair, side, number] = weights.sum(), np.square(weights).sum()
    names = ("rows", *(f"{side}:{pair}" for pair in range(1, size) for side in ("upper", "lower")))
    return OverlapSums(
        moments(terms, rows.cluster, columns=names, spans_batches=spans_batches),
        effective,
        *count(rows, size, comparable),
        int(np.count_nonzero(~comparable & (rows.position <= size))),
    )


def count(rows: PositionRows, size: int, comparable: Flags | None = None) -> tuple[Ids, Ids]:
    """Return the number of slots at each position, or of those flagged as comparable, and how many of them have a
    reward, (size,) each."""
    inside = rows.position <= size if comparable is None else (rows.position <= size) & comparable
    at, rewarded = rows.position[inside] - 1, (rows.reward != 0)[inside]
    return np.bincount(at, minlength=size), np.bincount(at[rewarded], minlength=size)


def chained(sums: OverlapSums, *, level: float = 0.95) -> EstimatedCurve:
    """Return the curve as the product of the ratios of neighbours from position 1 down, with intervals over clusters by
    the delta method on the logarithm. The curve ends above the first position that lacks overlap or rewards."""
    summary = sums.moments.summary()
    pair_sums = zip(sums.effective, summary.total[1:].reshape(-1, 2), strict=True)
    lacking = [_lack(pair, effective, totals) for pair, (effective, totals) in enumerate(pair_sums)]
    length = 1 + sum(1 for _ in takewhile(lambda reason: reason is None, lacking))
    clusters = int(summary.present[0])
    log, error = np.zeros(length), np.zeros(length)
    for depth in range(1, length):
        chain = slice(1, 1 + 2 * depth)
        total, moment = summary.total[chain], summary.moment[chain, chain]
        log[depth], error[depth] = value_and_error(LogRatio(), total, moment, clusters)
    reach = -NormalDist().inv_cdf((1 - level) / 2) * error
    vague = np.flatnonzero(np.exp(2 * reach) > VAGUE)
    reasons = [*(f"wide:{index + 1}" for index in vague[:1].tolist()), *filter(None, lacking[length - 1 : length])]
    return EstimatedCurve(
        positions=examined(np.exp(log), np.exp(log - reach), np.exp(log + reach), sums.rewards, sums.slots),
        reasons=tuple(reasons),
        clusters=clusters,
    )


def examined(value: Array, lower: Array, upper: Array, rewards: Ids, slots: Ids) -> list[ExaminedPosition]:
    """Return the positions of a curve that has these values."""
    names, n = ("examination", "lower", "upper", "rewards", "slots"), len(value)
    rows = zip(*(column.tolist() for column in (value, lower, upper, rewards[:n], slots[:n])), strict=True)
    return [ExaminedPosition(position=k, **dict(zip(names, row, strict=True))) for k, row in enumerate(rows, 1)]


def _lack(pair: int, effective: Array, totals: Array) -> str | None:
    """Return the reason why the lower one of two neighbours cannot be compared with the upper one.

    pair: counted from 0."""
    weight, squares = effective[..., 0], effective[..., 1]
    number = np.divide(np.square(weight), squares, out=np.zeros_like(weight), where=squares > 0)
    if number[:, 0].min() < FEWEST:
        return f"no-overlap:{pair + 2}"
    if number[:, 1].min() < FEWEST or not (totals > 0).all():
        return f"few-rewards:{pair + 2}"
    return None


class Pages(Record, kw_only=False, eq=False):
    """Pages holds complete pages, (p, K).

    arm: -1 below the end; click; cluster and count (p,), as in `PositionRows`."""

    arm: Ids
    click: Flags
    cluster: Ids
    count: Array

    def __add__(self, other: Pages) -> Pages:
        return Pages(*(np.concatenate(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))

    def take(self, rows: Flags) -> Pages:
        return Pages(*(column[rows] for column in vars(self).values()))

    def examined(self, model: str) -> Flags:
        """Tell which slots were certainly examined, (p, K), down to the first click (cascade), or to the last one
        (dcm)."""
        shown, clicked = self.arm >= 0, _from_below(self.click)
        no_click = clicked[:, :1] == 0
        if model == "cascade":
            return shown & (no_click | (clicked == clicked[:, :1]))
        return shown & (no_click | (clicked > 0))


def _from_below(click: Flags) -> Ids:
    """Return the number of clicks at and below each position, (p, K)."""
    return np.cumsum(click[:, ::-1], axis=1, dtype=np.int64)[:, ::-1]


def pages(rows: PositionRows) -> Pages:
    """Return the pages of a batch that lack no slot above the last one shown, cut at K positions."""
    size, starts = rows.marginals.shape[1], run_starts(rows.page)
    depth = numbers_in_runs(starts, len(rows.page))
    number = np.cumsum(depth == 0) - 1
    is_complete = np.bincount(number, weights=rows.position != depth + 1, minlength=len(starts)) == 0
    inside = is_complete[number] & (depth < size)
    arm, click = np.full((len(starts), size), -1, np.int64), np.zeros((len(starts), size), np.bool_)
    at = number[inside], depth[inside]
    arm[at], click[at] = rows.arm[inside], rows.reward[inside] != 0
    return Pages(arm, click, rows.cluster[starts], rows.count[starts]).take(is_complete)


class ClickSums(Sums):
    """ClickSums holds sums of some batches, where pages are multiplied by their counts. They can be added.

    slots, clicks (A, K): by arm and position, of pages that are not held out; examined, clicked (2, A, K): slots
    that were certainly examined under cascade and under dcm, and clicks on these. test_pages: held-out pages, a
    share 1 / thinning of them. looks: for the fitted model (none for pbm), per cluster: pages down to each position,
    and those that are examined there. totals (2, K): slots of the log, and those with a reward."""

    slots: Array
    clicks: Array
    examined: Array
    clicked: Array
    test_pages: Pages
    thinning: int
    looks: Moments
    totals: Ids

    def __add__(self, other: ClickSums) -> ClickSums:
        thinning = max(self.thinning, other.thinning)
        test_pages = _thinned(self.test_pages, thinning) + _thinned(other.test_pages, thinning)
        while len(test_pages.cluster) > PAGES:
            thinning *= 2
            test_pages = _thinned(test_pages, thinning)
        return replace(super().__add__(other), test_pages=test_pages, thinning=thinning)


def click_sums(rows: PositionRows, *, arms: int, model: str, spans_batches: bool) -> ClickSums:
    """Return the sums of one batch.

    arms: their number; model: the one whose curve is estimated."""
    batch, size = pages(rows), rows.marginals.shape[1]
    is_test = hash_bits(batch.cluster, salt=_SALT) % np.uint64(TEST_DIVISOR) == 0
    fitting_rows = batch.take(~is_test)
    shown = fitting_rows.arm >= 0
    # by arm and position: all slots, and those certainly examined
    cell, click = (fitting_rows.arm * size + np.arange(size))[shown], fitting_rows.click[shown]
    weight = np.repeat(fitting_rows.count, shown.sum(axis=1))

    def counted(*flag_sets: Flags) -> Array:
        counts = (np.bincount(cell[flags], weights=weight[flags], minlength=arms * size) for flags in flag_sets)
        return np.array([total.astype(np.float64).reshape(arms, size) for total in counts])

    looked = [fitting_rows.examined(name)[shown] for name in MODELS[1:]]
    slots, clicks = counted(np.ones(len(cell), np.bool_), click)
    examined, clicked = counted(*looked), counted(*(flags & click for flags in looked))
    # by cluster: the slots examined at each position
    terms = np.concatenate([batch.arm >= 0, batch.examined(model)], axis=1) * batch.count[:, None]
    names = tuple(f"{name}:{position}" for name in ("pages", "examined") for position in range(1, size + 1))
    used = slice(0 if model == "pbm" else None)
    looks = moments(terms[used], batch.cluster[used], columns=names, spans_batches=spans_batches)
    totals = np.array(count(rows, size))
    return ClickSums(slots, clicks, examined, clicked, batch.take(is_test), TEST_DIVISOR, looks, totals)


def _thinned(test_pages: Pages, thinning: int) -> Pages:
    return test_pages.take(hash_bits(test_pages.cluster, salt=_SALT) % np.uint64(thinning) == 0)


def curve(sums: ClickSums, *, model: str, level: float = 0.95) -> EstimatedCurve:
    """Return the share of pages on which each position is examined, under cascade or dcm, with intervals over clusters.
    The curve goes down to the last position with enough rewards."""
    summary, size = sums.looks.summary(), sums.slots.shape[1]
    slots, rewards = sums.totals
    length = max(1, int((np.cumsum(rewards < FEWEST) == 0).sum()))
    clusters, uncertain = int(summary.present[0]), _going_on(sums)[1] if model == "dcm" else np.zeros(size)
    value, reach = np.ones(length), np.zeros(length)
    for position in range(1, length):
        pair = [position, size + position]
        total, moment = summary.total[pair], summary.moment[np.ix_(pair, pair)]
        log, error = value_and_error(LogRatio(), total, moment, clusters)
        certain = (1 - uncertain[position]) * np.exp(log)
        value[position] = certain + uncertain[position]
        reach[position] = -NormalDist().inv_cdf((1 - level) / 2) * error * certain / value[position]
    return EstimatedCurve(
        positions=examined(value, value * np.exp(-reach), value * np.exp(reach), rewards, slots),
        reasons=(f"few-rewards:{length + 1}",) if length < size else (),
        clusters=clusters,
    )


def _going_on(sums: ClickSums) -> tuple[Array, Array]:
    """Return, under dcm, the probability of looking on after a click at each position, and the mean probability that a
    slot below the last click was examined, (K,) each.

    The estimate is by expectation-maximisation. The held-out pages give the probability of looking on, the others
    the attraction of arms."""
    test_pages, count, size = sums.test_pages, sums.test_pages.count, sums.slots.shape[1]
    shown, tail_clicks = test_pages.arm >= 0, _from_below(test_pages.click)
    last = test_pages.click & (tail_clicks == 1)
    clicks, later = count @ test_pages.click, count @ (test_pages.click & (tail_clicks > 1))
    unsure = shown & (tail_clicks == 0) & (tail_clicks[:, :1] > 0)
    going_on, looking = np.full(size, 0.5), np.full(size, 0.5)
    for _ in range(_ROUNDS):
        # E: below the last click, nothing attracted or nobody looked
        attraction = _attraction(sums, "dcm", looking)
        missed = np.where(shown, 1 - attraction[test_pages.arm], 1.0)
        nothing = np.cumprod(missed[:, ::-1], axis=1)[:, ::-1] / np.maximum(missed, _LEAST)
        looked_on = np.where(last, going_on * nothing / (1 - going_on + going_on * nothing), 0.0) * count[:, None]
        # M: means; those of rare positions are shrunk towards the mean of all
        mean = (later.sum() + looked_on.sum()) / max(clicks.sum(), 1)
        previous_going_on, going_on = going_on, (later + looked_on.sum(axis=0) + mean) / (clicks + 1)
        on_page = np.where(unsure, looked_on.sum(axis=1)[:, None], 0.0).sum(axis=0)
        looking = on_page / np.maximum(count @ unsure, 1)
        if np.abs(going_on - previous_going_on).max() < _SETTLED:
            break
    return going_on, looking


def _attraction(sums: ClickSums, model: str, looking: Array) -> Array:
    """Return the attraction of each arm, (A,), shrunk by one slot to the mean of all arms.

    looking (k,): under pbm the examination of each position; under cascade and dcm that of slots that may have been
    examined."""
    k = len(looking)
    slots, clicks = sums.slots[:, :k], sums.clicks[:, :k]
    looks = slots @ looking
    if model != "pbm":
        number = MODELS.index(model) - 1
        examined, clicks = sums.examined[number, :, :k], sums.clicked[number, :, :k]
        looks = examined.sum(axis=1) + (slots - examined) @ looking
    return (clicks.sum(axis=1) + clicks.sum() / max(looks.sum(), _LEAST)) / (looks + 1)


# -- which model the log prefers --


class ModelComparison(Record):
    """A ModelComparison compares models of examination.

    log_likelihood: by model, the mean per slot of the held-out pages; preferred: the model with the largest one if
    it exceeds that of `model` by more than two standard errors, else `model` itself. None: there are no pages to
    compare on."""

    log_likelihood: dict[str, float]
    preferred: str | None


NO_COMPARISON = ModelComparison(log_likelihood={}, preferred=None)


def compare(sums: ClickSums, examination: Array, *, model: str) -> ModelComparison:
    """Compare the models on the held-out pages.

    examination (k,): of the position-based model; pages are cut at k. With k = 1 the log has no such model, and the
    others are compared on whole pages."""
    k = len(examination) if len(examination) > 1 else sums.slots.shape[1]
    test_pages = replace(sums.test_pages, arm=sums.test_pages.arm[:, :k], click=sums.test_pages.click[:, :k])
    shown = test_pages.arm >= 0
    if not test_pages.click.any() or not sums.clicks.any():
        return NO_COMPARISON
    nowhere = np.zeros(k)
    going_on, looking = (column[:k] for column in _going_on(sums))
    probability = {
        "cascade": _chained(test_pages, _attraction(sums, "cascade", nowhere)[test_pages.arm], nowhere),
        "dcm": _chained(test_pages, _attraction(sums, "dcm", looking)[test_pages.arm], going_on),
    }
    if len(examination) > 1:
        probability = {"pbm": _attraction(sums, "pbm", examination)[test_pages.arm] * examination, **probability}
    by_page = {
        name: np.where(shown, _log_likelihood(test_pages, p), 0.0).sum(axis=1) * test_pages.count
        for name, p in probability.items()
    }
    n_slots = test_pages.count @ shown.sum(axis=1)
    likelihood = {name: float(pages.sum() / n_slots) for name, pages in by_page.items()}
    best = max(likelihood, key=lambda name: likelihood[name])
    distance = by_page[best] - by_page[model]
    _, cluster_index = distinct(test_pages.cluster)
    by_cluster = np.bincount(cluster_index, weights=distance)
    clear = by_cluster.sum() > 2 * np.sqrt(np.square(by_cluster - by_cluster.mean()).sum())
    return ModelComparison(log_likelihood=likelihood, preferred=best if clear else model)


def _log_likelihood(test_pages: Pages, probability: Array) -> Array:
    probability = np.clip(probability, _LEAST, 1 - _LEAST)
    return np.log(np.where(test_pages.click, probability, 1 - probability))


def _chained(test_pages: Pages, attraction: Array, going_on: Array) -> Array:
    """Return the probability of a click at each slot given the clicks above, (p, K). After a click at position k,
    looking goes on with probability going_on[k]."""
    probability, looking = np.empty(attraction.shape), np.ones(len(attraction))
    for position in range(attraction.shape[1]):
        attracts, click = attraction[:, position], test_pages.click[:, position]
        probability[:, position] = looking * attracts
        passed = looking * (1 - attracts) / np.maximum(1 - looking * attracts, _LEAST)
        looking = np.where(click, going_on[position], passed)
    return probability


# -- imports: expectation-maximisation over arms in equal contexts --


class Cells(Record, kw_only=False, eq=False):
    """Cells holds slots and those with a reward, by context, arm and position, (m,) each, multiplied by their counts,
    and the numbers of both in the log. They can be added."""

    context: Ids
    arm: Ids
    position: Ids
    slots: Array
    rewards: Array
    logged_slots: Array
    logged_rewards: Array

    def __add__(self, other: Cells) -> Cells:
        columns = (np.concatenate(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True))
        return cells(*columns)


def cells(context: Ids, arm: Ids, position: Ids, *sums: Array) -> Cells:
    """Merge rows into cells of a context, an arm and a position.

    sums: columns in the order of `Cells`."""
    first, cell_index = distinct(context, arm, position)
    added = (np.bincount(cell_index, weights=column, minlength=len(first)).astype(np.float64) for column in sums)
    return Cells(context[first], arm[first], position[first], *added)


def expectation_maximisation(counts: Cells, *, size: int, clusters: int) -> EstimatedCurve:
    """Return the position-based curve from arms that stood at several positions in equal contexts, without
    intervals. The curve ends above the first position that such arms do not connect with position 1, or that has too
    few rewards."""
    first, pair_index = distinct(counts.context, counts.arm)
    slots, clicks = np.zeros((len(first), size)), np.zeros((len(first), size))
    slots[pair_index, counts.position - 1], clicks[pair_index, counts.position - 1] = counts.slots, counts.rewards
    # informative arms: at several positions in one context, with a reward at one of them
    telling = ((slots > 0).sum(axis=1) > 1) & (clicks.sum(axis=1) > 0)
    slots, clicks = slots[telling], clicks[telling]
    position = counts.position[telling[pair_index]] - 1
    totals = [
        np.bincount(position, weights=column[telling[pair_index]], minlength=size).astype(np.int64)
        for column in (counts.logged_rewards, counts.logged_slots)
    ]
    length, reasons = _connected(slots, totals[0])
    theta = _maximise(slots, clicks) if length > 1 else np.ones(size)
    value = theta[:length] / theta[0]
    unknown = np.r_[1.0, np.full(length - 1, np.nan)]
    return EstimatedCurve(positions=examined(value, unknown, unknown, *totals), reasons=reasons, clusters=clusters)


def _connected(slots: Array, rewards: Ids) -> tuple[int, tuple[str, ...]]:
    """Return the number of positions, from the first on, that can be compared with it, and the reason why there are not
    more.

    rewards: logged at each position."""
    size = slots.shape[1]
    adjacency = (slots > 0).T.astype(np.float64) @ (slots > 0) > 0
    reached = np.eye(size, dtype=np.bool_)[0]
    for _ in range(size):
        reached |= adjacency[reached].any(axis=0)
    for position in range(1, size):
        if not reached[position]:
            return position, (f"no-variation:{position + 1}",)
        if rewards[[0, position]].min() < FEWEST:
            return position, (f"few-rewards:{position + 1}",)
    return size, ()


def _maximise(slots: Array, clicks: Array) -> Array:
    """Return the examination of each position, (K,), up to a factor. Source: Wang et al. 2018.

    slots, clicks (c, K)."""
    theta, no_clicks = np.full(slots.shape[1], 0.5), slots - clicks
    gamma = clicks.sum(axis=1) / slots.sum(axis=1)
    for _ in range(_STEPS):
        previous_ratio = theta / theta[0]
        # E: without a click, whether the slot was examined or the arm attractive
        p_no_click = np.maximum(1 - gamma[:, None] * theta, _LEAST)
        looked, attracts = theta * (1 - gamma[:, None]) / p_no_click, gamma[:, None] * (1 - theta) / p_no_click
        # M: means
        theta = (clicks + no_clicks * looked).sum(axis=0) / np.maximum(slots.sum(axis=0), 1)
        gamma = (clicks + no_clicks * attracts).sum(axis=1) / slots.sum(axis=1)
        if np.abs(theta / theta[0] - previous_ratio).max() < _CLOSE:
            break
    return theta
