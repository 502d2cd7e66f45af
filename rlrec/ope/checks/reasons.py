"""This module has the reasons that say what can be wrong with an estimate, and what helps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# Kinds of doubt, each with what a reader can do about it.
GROUPS = {
    "support": "the log shows too little of what the target would show",
    "sample": "there is too little of the log",
    "model": "the estimator assumes something that the log contradicts, or that nobody can check",
    "state": "the target would bring about other states than those in the log",
    "log": "something is wrong with the log, or missing in it",
}


class Reason(NamedTuple):
    """A Reason says what can be wrong with an estimate.

    group: one of GROUPS; best_verdict: the best verdict that an estimate with this reason can have, or `ok` if the
    figures of the estimate decide; text: the reason in words."""

    group: str
    best_verdict: str
    text: str


VERDICTS = ("insufficient", "weak", "ok")  # worst first
LITTLE_DATA = {"low-ess", "few-rewards", "one-cluster", "wide-interval", "rare-rewards"}
LEAST_ESS, ESS_SHARE = 50, 0.05  # smallest effective sample sizes; ESS_SHARE is a share of the clusters
# Thresholds of the effective sample size, worst first; those below 1 are shares of the clusters.
ESS_LIMITS = {
    f"below {LEAST_ESS} (insufficient)": LEAST_ESS,
    "below 1,000 (weak)": 1_000,
    "below 5 % of the clusters (weak)": ESS_SHARE,
}
LEAST_REWARDS = 5  # weighted rewards that are not 0
# Of ESS x weighted share of rewards that are not the default: below the first insufficient, below the second weak.
FEWEST_EFFECTIVE_REWARDS, EFFECTIVE_REWARDS = 2, 30

# All reasons that verdicts can have, worst first. `insufficient` and `weak` name the verdict that a reason can cause.
REASONS = {
    "no-rows": Reason("sample", "insufficient", "no row could be used (insufficient)"),
    "no-units": Reason("sample", "insufficient", "nobody was served yet, nothing is mature, or nobody for as long as "
        "--age says"),
    "none-at-risk": Reason("sample", "insufficient", "no visit ended long enough ago to say whether another one "
        "followed in time"),
    "few-units": Reason("sample", "insufficient", "one unit alone has no error"),
    "few-clusters": Reason("sample", "insufficient", "fewer than 100 units, or than 50 of one side, are too few for an "
        "interval that holds at every look (insufficient)"),
    "wrong-propensities": Reason("log", "insufficient", "some arm was shown more often than its logged propensities "
        "allow, in the whole log or in one kind of context (insufficient): all weights are wrong"),
    "reward-unseen": Reason("model", "insufficient", "the estimator does not see an important part of the reward "
        "(insufficient): `reward_seen` is the share that it sees; events of pages are seen by whole slates or visits "
        "alone"),
    "sampled-rows": Reason("log", "insufficient", "the log dropped rows at known rates, and what is left does not tell "
        "the figure (insufficient): visits of several decisions, or without a state, are left out, and units with "
        "several decisions lack others"),
    "low-ess": Reason("sample", "ok", f"effective sample size {'; '.join(ESS_LIMITS)}"),
    "short-horizon": Reason("support", "ok", "the log does not support the steps that carry 90 % of the return "
        "(insufficient)"),
    "few-rewards": Reason("sample", "ok", f"fewer than {LEAST_REWARDS} non-zero weighted rewards (insufficient); ESS x "
        f"weighted share of rewards that are not the default below {FEWEST_EFFECTIVE_REWARDS} (insufficient) or "
        f"{EFFECTIVE_REWARDS} (weak); too few rewards for a bound (it is null), in an experiment fewer "
        "than 20 units with one"),
    "heavy-tail": Reason("support", "ok", "what few draws happened to show may carry the estimate: no largest weight "
        "is known and k-hat of their tail is above 0.7 (insufficient)"),
    "unsupported": Reason("support", "ok", "the target has more than 1 % on arms the logger gave 0 (insufficient)"),
    "no-variation": Reason("sample", "weak", "all values are the same so far (weak): there is no interval, as later "
        "ones may differ"),
    "one-cluster": Reason("sample", "ok", "one cluster carries more than 20 % of the estimate (weak)"),
    "mean-weight": Reason("support", "ok", "the mean weight is more than 3 standard errors from 1 (weak), or so far "
        "below 0.99 (insufficient): propensities are wrong, or what would carry the most weight is so rare that it did "
        "not occur"),
    "wide-interval": Reason("sample", "weak", "the half-width of the interval exceeds half of the estimated difference "
        "(weak)"),
    "rare-rewards": Reason("sample", "weak", "large rewards are so rare that losing half of one more would undo the "
        "gain (weak): wait for more visits"),
    "sample-ratio": Reason("log", "weak", "units were not split between the variants as defined (weak): something "
        "assigns or loses them, maybe an exclusion or a filter, and may be the cause of the difference"),
    "mixed-units": Reason("log", "weak", "more than 5 % of the persons were served by two variants, under keys that "
        "were merged later (weak): the true difference is larger than what is seen"),
    "decisions-differ": Reason("state", "weak", "the units of one variant have more visits, or decisions, than those "
        "of the other (weak): means per visit, or per decision, are of others; compare per unit"),
    "other-metric": Reason("sample", "weak", "0 lies outside of the interval, but this metric does not decide the "
        "experiment: among so many, some are that far off by chance (weak)"),
    "young-units": Reason("state", "weak", "many units had no time yet to come again, or the difference changes with "
        "the time they had: it may grow or turn; `--age` of `outcomes` compares units at equal age"),
    "turned": Reason("log", "weak", "one side was better for the units that came first, and is worse for those since "
        "(weak): the difference is an average over that time; `--entered-since` of `outcomes` compares newer ones"),
    "not-randomised": Reason("log", "weak", "no p-values: nobody assigned units to these groups at random, so they may "
        "differ in who came and when; `rlrec experiment` compares policies"),
    "picked-decisions": Reason("log", "weak", "the log filter leaves out decisions by what came after units were "
        "assigned, such as whether they came again, or `rlrec db prune` deleted them (weak): no p-values; filter by "
        "user, compare `--by` a field, or with `rlrec outcomes --entered-since` those who came later"),
    "unequal-time": Reason("log", "weak", "these groups were not served at the same times, or not in the same shares: "
        "who comes, and what visitors want, changes with time"),
    "models-differ": Reason("model", "weak", "dr and snips are more than 3 standard errors of their difference apart "
        "(weak): the logged propensities or the model of rewards are wrong"),
    "unlike-loggers": Reason("log", "weak", "the logs of two policies say different things about the same target "
        "(weak): what the visitors want changed, or some propensities are wrong"),
    "drift": Reason("log", "weak", "what arms earn changed while the log was written, or after it (weak): the estimate "
        "is an average over that time"),
    "young-rewards": Reason("log", "weak", "a share of the reward of imported decisions was still on its way when "
        "they were exported (weak): the estimate is too low"),
    "no-users": Reason("log", "weak", "no user is known (weak): people who come back under other session keys count as "
        "others, and the interval is too narrow"),
    "repeated-rows": Reason("log", "weak", "some decisions are in the log more than once, under any keys (weak)"),
    "machine-sessions": Reason("log", "weak", "more sessions click nearly everything, whatever they are shown, than "
        "people account for (weak): machines make rewards look larger"),
    "clipped-propensities": Reason("log", "weak", "arms with small propensities were shown less often than these say, "
        "as where an import cuts them at a smallest value (weak)"),
    "clipping-bias": Reason("sample", "weak", "the bias that changed weights may cause exceeds the standard error "
        "(weak): the interval holds it, and the value may be off by it"),
    "in-sample": Reason("log", "weak", "the target, or the model of rewards, learned from rows of this log (weak); "
        "`--estimator cram` judges a bandit that learned while it served"),
    "unnarrowed": Reason("log", "weak", "rules of the target on what a person did (`not_after`, `not_shown`), and all "
        "that take arms from a policy that draws candidates, hold in its own decisions, not in those of others (weak): "
        "there it is judged without them"),
    "unknown-fit": Reason("log", "weak", "nobody said which decisions a table was fitted on (weak): if on these, the "
        "estimate is too good"),
    "estimated-propensity": Reason("log", "weak", "propensities were not logged, but computed when the log was "
        "imported (weak): no interval shows their error"),
    "no-interval": Reason("model", "weak", "no valid interval exists: the error of dm's model is not in any (weak)"),
    "few-replicates": Reason("sample", "ok", "the level is too high for 2,000 bootstrap replicates: a bound is null"),
    "no-reward-range": Reason("sample", "ok", "the reward has no clip, which this interval needs: a bound is null"),
    "anonymous-units": Reason("log", "ok", "sessions without a user count as units of their own; retention and "
        "returned_* are of users alone, since nobody sees whether the others come again; `rlrec outcomes --users "
        "named` leaves them out"),
    **{
        f"partial-{period}": Reason("sample", "ok", f"the log covers this {period}, or the first one, in part")
        for period in ("hour", "day", "week")
    },
    "no-past": Reason("sample", "ok", "no unit had visits before its assignment: there is nothing to adjust by"),
    "no-propensity": Reason("log", "ok", "rows or visits without a propensity, or cut, or with a censored slot, or "
        "with slates that a table by position cannot weigh, were left out; `left_out` counts them"),
    "censored-pages": Reason("log", "weak", "more than 5 % of the pages were left out for a censored slot (weak): the "
        "others may be those that were seen to their end, and earn more; judge slots, of which only those are left "
        "out"),
    "no-marginal": Reason("log", "ok", "pages were left out whose logger, or whose target without --target-samples, "
        "has no probability of an arm at a position; `left_out` counts them: log `marginal` with each slot (`rlrec "
        "help own-logs`), or judge by rips or sips, which need propensities alone"),
    "no-pairs": Reason("log", "ok", "nothing is estimated: pi cannot weigh some pages, whose logger was not uniform "
        "and has too many slates to list, or whose probabilities of arms at positions are not known"),
    "mixed-cpus": Reason("log", "ok", "workers have processors of several kinds: figures agree to 1e-12, not to the "
        "last bit"),
    "no-state": Reason("log", "ok", "rows or visits without a recorded session state were left out; `left_out` counts "
        "them"),
    "no-scores": Reason("log", "ok", "rows or visits were left out in which an arm that could be shown has no score"),
    "page-rules": Reason("log", "ok", "rows or visits were left out whose page the target cannot make: its rules and "
        "those of the request clash or leave too few arms, its lists leave out an arm that the request names, or (as a "
        "table of scores) it keeps no rules"),
    "ruled-visits": Reason("log", "weak", "more than 5 % of the visits were left out for a page with rules, long ones "
        "before all (weak): what is left is worth less than a visit; judge impressions"),
    "refuted": Reason("model", "weak", "the estimate is more than 3 standard errors of the difference from that of "
        "rips, cascade-dr or sips, which assume less (weak): the reward of a slot depends on what other slots show, or "
        "the curve is wrong"),
    "independent-slots": Reason("model", "ok", "the estimate is right if the reward of a slot does not depend on "
        "what other slots show"),
    "first-order": Reason("sample", "weak", "the estimate adds up effects of arms in place of weights (weak): it is "
        "right if effects add up and stay as they were in the log; more pages of the target would tell"),
    "sum-of-slots": Reason("model", "weak", "the estimate is right if the reward of a page is a sum over its slots "
        "(weak), which even long logs can hardly check"),
    "no-curve": Reason("model", "weak", "no curve was named: all positions within the window count as equally "
        "examined (weak)"),
    "position-model": Reason("model", "ok", "the estimate is as right as its position curve; the interval lacks the "
        "errors of that curve"),
    "no-candidates": Reason("log", "ok", "rows or visits were left out on which the target, which ranks candidates, "
        "cannot be judged (--target-samples is 0, or fewer arms or more positions than it has candidates); `left_out` "
        "counts them"),
    "logging-candidates": Reason("state", "weak", "the target would draw from the catalogue, and was judged as a "
        "ranker of candidates that the logger drew (weak)"),
    "carry-over": Reason("state", "weak", "the reward of an arm depends on the step of the visit, or on how often the "
        "visit has seen the arm (weak): the target would bring about other states than the logger did"),
    "dependent-slots": Reason("model", "weak", "a slot earns less below arms that attract, or below slots that "
        "earned (weak): the target would show other arms above"),
    "logging-states": Reason("state", "ok", "the target reads session state, and was judged in states that the logger "
        "caused"),
}  # fmt: skip

_EXPLORATION_HINT = "`rlrec policy create NAME --kind KIND --param floor=0.05` to log by: it tells more of every target"
_EXPERIMENT_HINT = "`rlrec help experiments`: an experiment compares it with what serves, on new visits"
_EVALUATE = "`rlrec evaluate {target}"
_PLACEHOLDERS = {
    "target": "TARGET",
    "sweep": "rlrec sweep --kinds KIND",
    "subject": "its kind",
    "middle": "DAY",
    "order": "",
    "end": "DAY",
    "log": "",
    "logger": "NAME@V",
    "experiment": "NAME",
    "others": "",
}
SERVED_HINT = "served"  # used in place of `in-sample`, where the target served a part of the log itself
VARIANT_HINT = "variant"  # the same, where an experiment compares the target
SPARED_HINT = "spared"  # the same, where the target learned from none of the gate split
REPLAYED_HINT = "replayed"  # the same, where it learned from this log, and a sweep judges its kind
LATER_HINT = "later"  # used in place of `drift`, where nothing changed before the end of the log
# A command that helps against each reason. Against too little data helps more of the log.
HINTS = {
    "no-rows": f"{_EVALUATE} --log FILTER`, with another part of the log",
    "wrong-propensities": "`rlrec import-log FILE` into a new store with the probability that each draw had in its own "
    "context, or, where nobody wrote that down, the share of its arm among the rows of that context",
    "no-propensity": "`rlrec import-log FILE` into a new store with the propensity of each draw; --propensity fitted "
    "estimates it, which leaves every comparison in doubt: an experiment needs none",
    "censored-pages": f"{_EVALUATE} --estimator dr`, by slots",
    "reward-unseen": f"{_EVALUATE}`: the usual estimator sees all of the reward",
    "low-ess": _EXPLORATION_HINT,
    "heavy-tail": _EXPLORATION_HINT,
    "unsupported": f"{_EXPLORATION_HINT}, but for what its own rules forbid (pin, arms): give the target the same",
    "mean-weight": "`rlrec doctor`",
    "models-differ": "`rlrec doctor`",
    "unlike-loggers": f"{_EVALUATE} --log {{log}}loggers={{logger}}`, by one logger alone, then by each other "
    "one{others}",
    "drift": f"{_EVALUATE} --log {{log}}since={{middle}}`, with the newest decisions{{order}}",
    LATER_HINT: f"{_EVALUATE} --log since={{end}}`: arms earned the same throughout this log, and something else "
    "after it",
    "young-rewards": f"{_EVALUATE} --log {{log}}until={{middle}}`, with decisions that are older, or import the log "
    "again when its rewards have come",
    "no-users": f"log the user of each session; only if each is another person, {_EVALUATE} --cluster session`",
    "repeated-rows": "`rlrec import-log FILE` into a new store, each decision once",
    "machine-sessions": "`rlrec log exclude bots --machines` leaves out those that doctor names",
    "clipped-propensities": "`rlrec import-log FILE` with the propensities that the draws had",
    "in-sample": _EXPERIMENT_HINT,
    SERVED_HINT: "`rlrec outcomes --by policy` shows what it earned as it served; a holdout of a route tells its worth",
    VARIANT_HINT: "`rlrec experiment show {experiment}` compares it, on the visits of each variant",
    REPLAYED_HINT: "`{sweep}` judges {subject} on rows that did not teach it, an experiment itself",
    SPARED_HINT: f"{_EVALUATE} --log {{log}}split=gate`, by users from whom it did not learn",
    "unnarrowed": _EXPERIMENT_HINT,
    "unknown-fit": "`rlrec evaluate --target FILE --fitted-on until=DAY` says it, or another filter of the log",
    "estimated-propensity": f"{_EXPERIMENT_HINT}, and needs no propensities",
    "clipping-bias": f"{_EVALUATE} --estimator dr`",
    "no-interval": f"{_EVALUATE} --estimator dr`",
    "few-replicates": f"{_EVALUATE} --level 0.99`",
    "carry-over": f"{_EVALUATE} --estimator wdr`, by whole visits",
    "dependent-slots": f"{_EVALUATE} --estimator rips`",
    "refuted": f"{_EVALUATE} --estimator rips`",
    "sum-of-slots": f"{_EVALUATE} --estimator rips`",
    "no-curve": "`rlrec position fit CURVE`, and the estimator with that",
    "logging-candidates": _EXPERIMENT_HINT,
}


def helpful_hints(reasons: Iterable[str], *, is_explored: bool = False) -> list[str]:
    """Return the reasons whose hint helps, worst first. If propensities are wrong, no other hint helps; nor if no row
    has a propensity. If only some rows lack a propensity, fitting propensities makes the estimate worse. While rewards
    are young, the hint on drift does not help, since the rewards of the newest decisions are not known.

    is_explored: whether the log explores at least as much as a floor would."""
    reason_set = {*reasons}
    if "wrong-propensities" in reason_set:
        return ["wrong-propensities"]
    if {"no-rows", "no-propensity"} <= reason_set:
        return ["no-propensity"]
    useless_hints = {"no-propensity", *(["drift"] if "young-rewards" in reason_set else [])}
    useless_hints |= {"low-ess", "heavy-tail"} if is_explored else set()
    return [reason for reason in in_order(reason_set - useless_hints) if reason in HINTS]


def hint(reason: str, **names: str) -> str:
    """Return the hint for a reason, which says what helps.

    names: texts that are inserted into the hint, if known: the target with options, the day in the middle of the
    log, the beginning of a filter, and a logger and the other loggers."""
    return HINTS[reason].format_map(_PLACEHOLDERS | names)


def worst_verdict(verdicts: Iterable[str]) -> str:
    """Return the worst of the verdicts, or `ok` if there is no verdict."""
    return min(verdicts, key=VERDICTS.index, default=VERDICTS[-1])


def in_order(reasons: Iterable[str]) -> tuple[str, ...]:
    """Return the reasons without repeats, worst first."""
    distinct_reasons = {*reasons}
    return tuple(reason for reason in REASONS if reason in distinct_reasons)


def in_groups(reasons: Iterable[str]) -> dict[str, list[str]]:
    """Return the reasons by group, worst first. Groups are in the order of their worst reasons."""
    groups: dict[str, list[str]] = {}
    for name in in_order(reasons):
        groups.setdefault(REASONS[name].group, []).append(name)
    return groups
