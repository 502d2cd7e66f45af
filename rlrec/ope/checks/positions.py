"""This module estimates examination by position from the log. Examination is the probability that a slot is looked at,
relative to the first position.

A slot is clicked if it is examined and its arm attracts: the probability is theta_k x gamma(arm, context). Naive
click rates by position mix the two, since good arms stand higher. Neighbouring positions are therefore compared on
the arms that the logger could have put at either position.

Click models other than the position-based one say whether people go on looking after a click; another test says which
model fits a log best. `pbm`: a slot is examined with a probability that depends on its position. `cascade`: slots are
examined down to the first click. `dcm` (dependent clicks; Guo, Liu & Wang 2009): slots are examined down to a click,
and after it with a probability that depends on its position. In all models, the probability of a click is attraction of
the arm x examination."""

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

VAGUE_RATIO = 1.5  # ratio of upper to lower bound from which on an examination counts as uncertain
MIN_EFFECTIVE = 10.0  # effective rewards, or slots, that each side of a comparison of neighbours needs
MODELS = ("pbm", "cascade", "dcm")
TEST_DIVISOR = 4  # one page in so many is held out, to compare the models
MAX_TEST_PAGES = 50_000  # held out at most
_SALT = 5
_LEAST_PROBABILITY = 1e-6  # stands for the probability of a click that a model rules out
# iterations of expectation-maximisation over cells, and the change at which it stops
_MAX_CELL_ROUNDS, _CELL_TOLERANCE = 5_000, 1e-9
_MAX_PAGE_ROUNDS, _PAGE_TOLERANCE = 100, 1e-5  # the same over pages


class PositionRows(Record, eq=False):
    """PositionRows holds n slots of slates (pages), in order. Each array is (n,), but `marginals` is (n, K).

    page: a number of the slate; arm: a number from 0; position: a number from 1; reward: the reward above the
    default; cluster: the digest of the cluster; count: how many slates of the original log the slate stands for, if
    rows were dropped; marginals: the logger's probability of the slot's arm at each position of the slate, NaN if
    unknown."""

    page: Ids
    arm: Ids
    position: Ids
    reward: Array
    cluster: Ids
    count: Array
    marginals: Array

    def take(self, rows: Flags) -> PositionRows:
        """Return the flagged rows."""
        return PositionRows(**{name: column[rows] for name, column in vars(self).items()})


class ExaminedPosition(Record):
    """This record has a position of a curve, its examination relative to position 1, and the bounds of the examination
    (infinite if unknown).

    rewards, slots: the numbers of slots with a reward, and of slots, at this position of the log."""

    position: int
    examination: float
    lower: float
    upper: float
    rewards: int
    slots: int


class EstimatedCurve(Record):
    """An EstimatedCurve is a curve of examination, from position 1 on.

    reasons: from which position the curve is uncertain, and why the curve ends, each as CODE:POSITION; empty if the
    curve is certain and complete."""

    positions: Sequence[ExaminedPosition]
    reasons: tuple[str, ...]
    clusters: int


class LogRatio(Record):
    """A LogRatio is the logarithm of the examination at a position: the sum of the log ratios of neighbouring positions
    down to this position. It is a smooth function of the numerators and denominators, which alternate."""

    def value(self, mean: Array) -> Array:
        return np.log(mean[..., 1::2]).sum(axis=-1) - np.log(mean[..., ::2]).sum(axis=-1)

    def gradient(self, mean: Array) -> Array:
        gradient = 1 / mean
        gradient[..., ::2] *= -1
        return gradient


class OverlapSums(Sums):
    """OverlapSums holds sums that compare neighbouring positions. The sums of two batches can be added.

    moments: for each cluster, the weighted rewards of each pair of neighbours; weight_sums (K - 1, 2, 2, 2): the sum
    of the weights, and the sum of their squares, for each pair, for its upper and its lower position, and for all
    slots and for slots with a reward; slots, rewards (K,): the number of slots that could be compared, and of those
    with a reward; n_unknown: the number of slots whose marginals at their own and a neighbouring position are not
    known."""

    moments: Moments
    weight_sums: Array
    slots: Ids
    rewards: Ids
    n_unknown: int


def overlap_sums(rows: PositionRows, *, spans_batches: bool) -> OverlapSums:
    """Return the sums of one batch by overlap weights. Let P_k be the marginal of the slot's arm at position k, and h =
    P_k P_(k+1) / (P_k + P_(k+1)). The weight of a slot at k is then h / P_k times its count, and the weight of a slot
    at k + 1 is h / P_(k+1) times its count.

    spans_batches: whether a cluster may have rows in another batch."""
    n, size = rows.marginals.shape
    terms, weight_sums = np.zeros((n, 1 + 2 * (size - 1))), np.zeros((size - 1, 2, 2, 2))
    terms[:, 0] = 1.0
    is_rewarded = rows.reward != 0
    is_comparable = np.zeros(n, np.bool_)
    for pair in range(size - 1):
        for side in (0, 1):
            rows_at_side = np.flatnonzero(rows.position == pair + 1 + side)
            p_slot, p_neighbour = (
                rows.marginals[rows_at_side, pair + side],
                rows.marginals[rows_at_side, pair + 1 - side],
            )
            # h / P_k = P_(k+1) / (P_k + P_(k+1)), for the upper slot; 0 where either is not known
            weight = np.nan_to_num(p_neighbour / np.maximum(p_slot + p_neighbour, 1e-300)) * rows.count[rows_at_side]
            terms[rows_at_side, 1 + 2 * pair + side] = weight * rows.reward[rows_at_side]
            is_comparable[rows_at_side] |= ~np.isnan(p_slot + p_neighbour)
            for number, weights in enumerate((weight, weight[is_rewarded[rows_at_side]])):
                weight_sums[pair, side, number] = weights.sum(), np.square(weights).sum()
    names = ("rows", *(f"{side}:{pair}" for pair in range(1, size) for side in ("upper", "lower")))
    return OverlapSums(
        moments(terms, rows.cluster, columns=names, spans_batches=spans_batches),
        weight_sums,
        *count_slots(rows, size, is_comparable),
        int(np.count_nonzero(~is_comparable & (rows.position <= size))),
    )


def count_slots(rows: PositionRows, size: int, is_comparable: Flags | None = None) -> tuple[Ids, Ids]:
    """Return two arrays (size,): the number of slots at each position, and the number of those with a reward.

    size: the number of positions; is_comparable: flags of the rows to count; None counts all rows."""
    is_inside = rows.position <= size if is_comparable is None else (rows.position <= size) & is_comparable
    position_index, has_reward = rows.position[is_inside] - 1, (rows.reward != 0)[is_inside]
    return np.bincount(position_index, minlength=size), np.bincount(position_index[has_reward], minlength=size)


def chained_curve(sums: OverlapSums, *, level: float = 0.95) -> EstimatedCurve:
    """Return the curve of examination as a product of the ratios of neighbouring positions, with intervals over
    clusters by the delta method on the logarithm. The curve ends above the first position that lacks overlap or
    rewards."""
    summary = sums.moments.summary()
    pair_sums = zip(sums.weight_sums, summary.total[1:].reshape(-1, 2), strict=True)
    lacking_reasons = [_lacking_reason(pair, *sums_of_pair) for pair, sums_of_pair in enumerate(pair_sums)]
    length = 1 + sum(1 for _ in takewhile(lambda reason: reason is None, lacking_reasons))
    n_clusters = int(summary.n_clusters[0])
    log_examination, error = np.zeros(length), np.zeros(length)
    for depth in range(1, length):
        chain_columns = slice(1, 1 + 2 * depth)
        total, moment = summary.total[chain_columns], summary.moment[chain_columns, chain_columns]
        log_examination[depth], error[depth] = value_and_error(LogRatio(), total, moment, n_clusters)
    half_width = -NormalDist().inv_cdf((1 - level) / 2) * error
    vague_positions = np.flatnonzero(np.exp(2 * half_width) > VAGUE_RATIO)
    reasons = [
        *(f"wide:{index + 1}" for index in vague_positions[:1].tolist()),
        *filter(None, lacking_reasons[length - 1 : length]),
    ]
    return EstimatedCurve(
        positions=examined_positions(
            np.exp(log_examination),
            np.exp(log_examination - half_width),
            np.exp(log_examination + half_width),
            sums.rewards,
            sums.slots,
        ),
        reasons=tuple(reasons),
        clusters=n_clusters,
    )


def examined_positions(value: Array, lower: Array, upper: Array, rewards: Ids, slots: Ids) -> list[ExaminedPosition]:
    """Return the positions of a curve, from five arrays with a value for each position."""
    names, n = ("examination", "lower", "upper", "rewards", "slots"), len(value)
    rows = zip(*(column.tolist() for column in (value, lower, upper, rewards[:n], slots[:n])), strict=True)
    return [ExaminedPosition(position=k, **dict(zip(names, row, strict=True))) for k, row in enumerate(rows, 1)]


def _lacking_reason(pair: int, weight_sums: Array, totals: Array) -> str | None:
    """Return the reason why two neighbouring positions cannot be compared, as CODE:POSITION, or None if they can.

    pair: the number of the pair of neighbours, from 0; weight_sums (2, 2, 2): the sums of the pair as in
    `OverlapSums`; totals (2,): the weighted rewards of the two positions."""
    weight, squares = weight_sums[..., 0], weight_sums[..., 1]
    number = np.divide(np.square(weight), squares, out=np.zeros_like(weight), where=squares > 0)
    if number[:, 0].min() < MIN_EFFECTIVE:
        return f"no-overlap:{pair + 2}"
    if number[:, 1].min() < MIN_EFFECTIVE or not (totals > 0).all():
        return f"few-rewards:{pair + 2}"
    return None


class Pages(Record, kw_only=False, eq=False):
    """Pages holds p complete slates (pages) with K positions.

    arm (p, K): the arm at each position, -1 below the end of the slate; click (p, K): whether the slot was clicked;
    cluster, count (p,): the cluster of each slate, and how many slates of the original log it stands for."""

    arm: Ids
    click: Flags
    cluster: Ids
    count: Array

    def __add__(self, other: Pages) -> Pages:
        return Pages(*(np.concatenate(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))

    def take(self, rows: Flags) -> Pages:
        return Pages(*(column[rows] for column in vars(self).values()))

    def examined_slots(self, model: str) -> Flags:
        """Tell which slots were certainly examined, (p, K). These are the slots down to the first click under the
        cascade model, and down to the last click under dcm. Without a click, they are all slots."""
        is_shown, clicks_below = self.arm >= 0, _from_below(self.click)
        has_no_click = clicks_below[:, :1] == 0
        if model == "cascade":
            return is_shown & (has_no_click | (clicks_below == clicks_below[:, :1]))
        return is_shown & (has_no_click | (clicks_below > 0))


def _from_below(click: Flags) -> Ids:
    """Return, for each position, the number of clicks at this position and all positions below, (p, K)."""
    return np.cumsum(click[:, ::-1], axis=1, dtype=np.int64)[:, ::-1]


def complete_pages(rows: PositionRows) -> Pages:
    """Return the slates of a batch in which every slot down to the last one is logged, cut at K positions."""
    size, starts = rows.marginals.shape[1], run_starts(rows.page)
    depth = numbers_in_runs(starts, len(rows.page))
    page_number = np.cumsum(depth == 0) - 1
    is_complete = np.bincount(page_number, weights=rows.position != depth + 1, minlength=len(starts)) == 0
    is_inside = is_complete[page_number] & (depth < size)
    arm, click = np.full((len(starts), size), -1, np.int64), np.zeros((len(starts), size), np.bool_)
    cell = page_number[is_inside], depth[is_inside]
    arm[cell], click[cell] = rows.arm[is_inside], rows.reward[is_inside] != 0
    return Pages(arm, click, rows.cluster[starts], rows.count[starts]).take(is_complete)


class ClickSums(Sums):
    """ClickSums holds sums from which models of clicks are fitted and compared. A quarter of the slates (pages) is held
    out for the comparison. The sums of two batches can be added.

    slots, clicks (A, K): the numbers of slots and of clicks by arm and position, without held-out slates;
    examined_slots, examined_clicks (2, A, K): the same numbers for slots that were surely examined, under cascade
    and under dcm; test_pages: held-out slates, of which a share 1 / thinning is kept; looks: for the fitted model
    (none for pbm) and each cluster, the slates that reach each position, and the slates on which the position is
    examined; totals (2, K): the numbers of slots, and of slots with a reward, in the log."""

    slots: Array
    clicks: Array
    examined_slots: Array
    examined_clicks: Array
    test_pages: Pages
    thinning: int
    looks: Moments
    totals: Ids

    def __add__(self, other: ClickSums) -> ClickSums:
        thinning = max(self.thinning, other.thinning)
        test_pages = _thin_pages(self.test_pages, thinning) + _thin_pages(other.test_pages, thinning)
        while len(test_pages.cluster) > MAX_TEST_PAGES:
            thinning *= 2
            test_pages = _thin_pages(test_pages, thinning)
        return replace(super().__add__(other), test_pages=test_pages, thinning=thinning)


def click_sums(rows: PositionRows, *, arms: int, model: str, spans_batches: bool) -> ClickSums:
    """Return the sums of one batch, from which models of clicks are fitted and compared.

    arms: the number of arms; model: the model whose curve is estimated; spans_batches: whether a cluster may have
    rows in another batch."""
    batch, size = complete_pages(rows), rows.marginals.shape[1]
    is_test = hash_bits(batch.cluster, salt=_SALT) % np.uint64(TEST_DIVISOR) == 0
    fitting_rows = batch.take(~is_test)
    is_shown = fitting_rows.arm >= 0
    # by arm and position: all slots, and those certainly examined
    cell, click = (fitting_rows.arm * size + np.arange(size))[is_shown], fitting_rows.click[is_shown]
    weight = np.repeat(fitting_rows.count, is_shown.sum(axis=1))

    def sum_by_cell(*flag_sets: Flags) -> Array:
        counts = (np.bincount(cell[flags], weights=weight[flags], minlength=arms * size) for flags in flag_sets)
        return np.array([total.astype(np.float64).reshape(arms, size) for total in counts])

    is_examined = [fitting_rows.examined_slots(name)[is_shown] for name in MODELS[1:]]
    slots, clicks = sum_by_cell(np.ones(len(cell), np.bool_), click)
    examined_slots, examined_clicks = sum_by_cell(*is_examined), sum_by_cell(*(flags & click for flags in is_examined))
    # by cluster: the slots examined at each position
    terms = np.concatenate([batch.arm >= 0, batch.examined_slots(model)], axis=1) * batch.count[:, None]
    names = tuple(f"{name}:{position}" for name in ("pages", "examined") for position in range(1, size + 1))
    model_columns = slice(0 if model == "pbm" else None)
    looks = moments(terms[model_columns], batch.cluster[model_columns], columns=names, spans_batches=spans_batches)
    totals = np.array(count_slots(rows, size))
    return ClickSums(slots, clicks, examined_slots, examined_clicks, batch.take(is_test), TEST_DIVISOR, looks, totals)


def _thin_pages(test_pages: Pages, thinning: int) -> Pages:
    return test_pages.take(hash_bits(test_pages.cluster, salt=_SALT) % np.uint64(thinning) == 0)


def model_curve(sums: ClickSums, *, model: str, level: float = 0.95) -> EstimatedCurve:
    """Return the curve of examination under cascade or dcm: the share of slates on which each position is examined. The
    intervals are over clusters. The curve ends at the last position with enough rewards."""
    summary, size = sums.looks.summary(), sums.slots.shape[1]
    slots, rewards = sums.totals
    length = max(1, int((np.cumsum(rewards < MIN_EFFECTIVE) == 0).sum()))
    n_clusters = int(summary.n_clusters[0])
    p_examined_below = _dcm_shares(sums)[1] if model == "dcm" else np.zeros(size)
    value, half_width = np.ones(length), np.zeros(length)
    for position in range(1, length):
        column_pair = [position, size + position]
        total, moment = summary.total[column_pair], summary.moment[np.ix_(column_pair, column_pair)]
        log_share, error = value_and_error(LogRatio(), total, moment, n_clusters)
        certain_share = (1 - p_examined_below[position]) * np.exp(log_share)
        value[position] = certain_share + p_examined_below[position]
        half_width[position] = -NormalDist().inv_cdf((1 - level) / 2) * error * certain_share / value[position]
    return EstimatedCurve(
        positions=examined_positions(value, value * np.exp(-half_width), value * np.exp(half_width), rewards, slots),
        reasons=(f"few-rewards:{length + 1}",) if length < size else (),
        clusters=n_clusters,
    )


def _dcm_shares(sums: ClickSums) -> tuple[Array, Array]:
    """Return two arrays (K,) under dcm: the probability of looking on after a click at each position, and the mean
    probability that a slot below the last click was examined.

    The estimate is by expectation-maximisation. The held-out slates give the probability of looking on, and the
    other slates give the attraction of arms."""
    test_pages, count, size = sums.test_pages, sums.test_pages.count, sums.slots.shape[1]
    is_shown, tail_clicks = test_pages.arm >= 0, _from_below(test_pages.click)
    is_last_click = test_pages.click & (tail_clicks == 1)
    clicks, clicks_before_last = count @ test_pages.click, count @ (test_pages.click & (tail_clicks > 1))
    may_be_examined = is_shown & (tail_clicks == 0) & (tail_clicks[:, :1] > 0)
    p_going_on, p_examined = np.full(size, 0.5), np.full(size, 0.5)
    for _ in range(_MAX_PAGE_ROUNDS):
        # E: below the last click, nothing attracted or nobody looked
        attraction = _attraction(sums, "dcm", p_examined)
        p_missed = np.where(is_shown, 1 - attraction[test_pages.arm], 1.0)
        p_nothing_below = np.cumprod(p_missed[:, ::-1], axis=1)[:, ::-1] / np.maximum(p_missed, _LEAST_PROBABILITY)
        p_looked_on = (
            np.where(is_last_click, p_going_on * p_nothing_below / (1 - p_going_on + p_going_on * p_nothing_below), 0.0)
            * count[:, None]
        )
        # M: means; those of rare positions are shrunk towards the mean of all
        mean_going_on = (clicks_before_last.sum() + p_looked_on.sum()) / max(clicks.sum(), 1)
        previous_going_on, p_going_on = (
            p_going_on,
            (clicks_before_last + p_looked_on.sum(axis=0) + mean_going_on) / (clicks + 1),
        )
        looks_below = np.where(may_be_examined, p_looked_on.sum(axis=1)[:, None], 0.0).sum(axis=0)
        p_examined = looks_below / np.maximum(count @ may_be_examined, 1)
        if np.abs(p_going_on - previous_going_on).max() < _PAGE_TOLERANCE:
            break
    return p_going_on, p_examined


def _attraction(sums: ClickSums, model: str, p_examined: Array) -> Array:
    """Return the attraction of each arm, (A,), shrunk to the mean of all arms by one slot at the mean.

    p_examined (k,): under pbm the examination of each position; under cascade and dcm the examination of slots that
    are not known to have been examined."""
    k = len(p_examined)
    slots, clicks = sums.slots[:, :k], sums.clicks[:, :k]
    looks = slots @ p_examined
    if model != "pbm":
        number = MODELS.index(model) - 1
        examined_slots, clicks = sums.examined_slots[number, :, :k], sums.examined_clicks[number, :, :k]
        looks = examined_slots.sum(axis=1) + (slots - examined_slots) @ p_examined
    return (clicks.sum(axis=1) + clicks.sum() / max(looks.sum(), _LEAST_PROBABILITY)) / (looks + 1)


# -- which model the log prefers --


class ModelComparison(Record):
    """A ModelComparison says which model of examination fits the log best.

    log_likelihood: for each model, the mean logarithm of the likelihood per slot of the held-out slates; best_model:
    the best model, or the model that was to be compared, if none is better by more than two standard errors; None if
    there are no slates on which to compare models."""

    log_likelihood: dict[str, float]
    best_model: str | None


NO_COMPARISON = ModelComparison(log_likelihood={}, best_model=None)


def compare_models(sums: ClickSums, examination: Array, *, model: str) -> ModelComparison:
    """Return how well each model fits the held-out slates (pages).

    examination (k,): the examination of each position in the position-based model; slates are cut at k. With k = 1
    the log has no position-based model, and the other models are compared on whole slates. model: the model that
    another one must surpass to be the best."""
    k = len(examination) if len(examination) > 1 else sums.slots.shape[1]
    test_pages = replace(sums.test_pages, arm=sums.test_pages.arm[:, :k], click=sums.test_pages.click[:, :k])
    is_shown = test_pages.arm >= 0
    if not test_pages.click.any() or not sums.clicks.any():
        return NO_COMPARISON
    no_probabilities = np.zeros(k)
    p_going_on, p_examined = (column[:k] for column in _dcm_shares(sums))
    probability = {
        "cascade": _click_probabilities(
            test_pages, _attraction(sums, "cascade", no_probabilities)[test_pages.arm], no_probabilities
        ),
        "dcm": _click_probabilities(test_pages, _attraction(sums, "dcm", p_examined)[test_pages.arm], p_going_on),
    }
    if len(examination) > 1:
        probability = {"pbm": _attraction(sums, "pbm", examination)[test_pages.arm] * examination, **probability}
    likelihood_by_page = {
        name: np.where(is_shown, _log_likelihood(test_pages, p), 0.0).sum(axis=1) * test_pages.count
        for name, p in probability.items()
    }
    n_slots = test_pages.count @ is_shown.sum(axis=1)
    likelihood = {name: float(pages.sum() / n_slots) for name, pages in likelihood_by_page.items()}
    best_model = max(likelihood, key=lambda name: likelihood[name])
    likelihood_difference = likelihood_by_page[best_model] - likelihood_by_page[model]
    _, cluster_index = distinct(test_pages.cluster)
    cluster_sums = np.bincount(cluster_index, weights=likelihood_difference)
    is_clear = cluster_sums.sum() > 2 * np.sqrt(np.square(cluster_sums - cluster_sums.mean()).sum())
    return ModelComparison(log_likelihood=likelihood, best_model=best_model if is_clear else model)


def _log_likelihood(test_pages: Pages, probability: Array) -> Array:
    probability = np.clip(probability, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return np.log(np.where(test_pages.click, probability, 1 - probability))


def _click_probabilities(test_pages: Pages, attraction: Array, going_on: Array) -> Array:
    """Return the probability of a click at each slot, given the clicks above the slot, (p, K).

    attraction (p, K): the attraction of each slot's arm; going_on (K,): the probability that people look on after a
    click at each position."""
    probability, p_looking = np.empty(attraction.shape), np.ones(len(attraction))
    for position in range(attraction.shape[1]):
        p_attracts, click = attraction[:, position], test_pages.click[:, position]
        probability[:, position] = p_looking * p_attracts
        p_passed = p_looking * (1 - p_attracts) / np.maximum(1 - p_looking * p_attracts, _LEAST_PROBABILITY)
        p_looking = np.where(click, going_on[position], p_passed)
    return probability


# -- imports: expectation-maximisation over arms in equal contexts --


class Cells(Record, kw_only=False, eq=False):
    """A Cells object counts slots in m cells, where a cell is a context, an arm and a position. The counts of two
    batches can be added.

    slots, rewards (m,): the numbers of slots, and of slots with a reward, each multiplied by its count;
    logged_slots, logged_rewards (m,): the same numbers in the log, without counts."""

    context: Ids
    arm: Ids
    position: Ids
    slots: Array
    rewards: Array
    logged_slots: Array
    logged_rewards: Array

    def __add__(self, other: Cells) -> Cells:
        columns = (np.concatenate(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True))
        return merge_cells(*columns)


def merge_cells(context: Ids, arm: Ids, position: Ids, *sums: Array) -> Cells:
    """Return the cells of rows. Rows with the same context, arm and position are added up.

    sums: the four counts of each row, in the order of `Cells`."""
    first_rows, cell_index = distinct(context, arm, position)
    summed_columns = (
        np.bincount(cell_index, weights=column, minlength=len(first_rows)).astype(np.float64) for column in sums
    )
    return Cells(context[first_rows], arm[first_rows], position[first_rows], *summed_columns)


def expectation_maximisation(counts: Cells, *, size: int, clusters: int) -> EstimatedCurve:
    """Return the position-based curve, without intervals, from arms that stood at several positions in equal contexts.
    The curve ends above the first position that these arms do not connect with position 1, or that has too few rewards.

    size: the number of positions; clusters: the number of clusters, for the result."""
    first_rows, pair_index = distinct(counts.context, counts.arm)
    slots, clicks = np.zeros((len(first_rows), size)), np.zeros((len(first_rows), size))
    slots[pair_index, counts.position - 1], clicks[pair_index, counts.position - 1] = counts.slots, counts.rewards
    # informative arms: at several positions in one context, with a reward at one of them
    is_informative = ((slots > 0).sum(axis=1) > 1) & (clicks.sum(axis=1) > 0)
    slots, clicks = slots[is_informative], clicks[is_informative]
    position = counts.position[is_informative[pair_index]] - 1
    totals = [
        np.bincount(position, weights=column[is_informative[pair_index]], minlength=size).astype(np.int64)
        for column in (counts.logged_rewards, counts.logged_slots)
    ]
    length, reasons = _connected_length(slots, totals[0])
    theta = _maximise_likelihood(slots, clicks) if length > 1 else np.ones(size)
    value = theta[:length] / theta[0]
    unknown_bounds = np.r_[1.0, np.full(length - 1, np.nan)]
    return EstimatedCurve(
        positions=examined_positions(value, unknown_bounds, unknown_bounds, *totals), reasons=reasons, clusters=clusters
    )


def _connected_length(slots: Array, rewards: Ids) -> tuple[int, tuple[str, ...]]:
    """Return how many positions, from the first on, can be compared with the first one, and the reason why no more can.

    slots (c, K): the numbers of slots for each context and arm, by position; rewards (K,): the number of logged
    rewards at each position."""
    size = slots.shape[1]
    adjacency = (slots > 0).T.astype(np.float64) @ (slots > 0) > 0
    is_reached = np.eye(size, dtype=np.bool_)[0]
    for _ in range(size):
        is_reached |= adjacency[is_reached].any(axis=0)
    for position in range(1, size):
        if not is_reached[position]:
            return position, (f"no-variation:{position + 1}",)
        if rewards[[0, position]].min() < MIN_EFFECTIVE:
            return position, (f"few-rewards:{position + 1}",)
    return size, ()


def _maximise_likelihood(slots: Array, clicks: Array) -> Array:
    """Return the examination of each position, (K,), up to a factor. Source: Wang et al. 2018.

    slots, clicks (c, K): the numbers of slots and of clicks for each context and arm, by position."""
    theta, no_clicks = np.full(slots.shape[1], 0.5), slots - clicks
    gamma = clicks.sum(axis=1) / slots.sum(axis=1)
    for _ in range(_MAX_CELL_ROUNDS):
        previous_ratio = theta / theta[0]
        # E: without a click, whether the slot was examined or the arm attractive
        p_no_click = np.maximum(1 - gamma[:, None] * theta, _LEAST_PROBABILITY)
        p_looked, p_attracts = theta * (1 - gamma[:, None]) / p_no_click, gamma[:, None] * (1 - theta) / p_no_click
        # M: means
        theta = (clicks + no_clicks * p_looked).sum(axis=0) / np.maximum(slots.sum(axis=0), 1)
        gamma = (clicks + no_clicks * p_attracts).sum(axis=1) / slots.sum(axis=1)
        if np.abs(theta / theta[0] - previous_ratio).max() < _CELL_TOLERANCE:
            break
    return theta
