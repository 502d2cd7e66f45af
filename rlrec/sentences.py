"""Functions here write sentences about the results of comparisons. All commands, the gates and the report use these
functions, so that they all speak in the same way. A unit is here what an experiment assigns to variants: a user or a
session."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from statistics import NormalDist
from typing import Any, NamedTuple

from rlrec.errors import quantity
from rlrec.times import middle, parse

ROUNDING = 1e-9  # relative to the figures that are compared
# A lift this close to 0 is below the precision of a log: propensities of four digits, or of float32, err as much.
LOG_PRECISION = 5e-4
ALARM = 0.001  # p-value below which a split or a log is taken to be wrong
DEFAULT_REWARD = "default"
NOUNS = {"user": "user", "session": "visit", "row": "row"}  # of clusters
LOGGED, SAME_POLICY = "what was logged", "is the same policy as"
GATE_SHARE = 0.2  # of the visitors, who belong to the gate split
LOGGER_HINT = "others are compared with it by an experiment, or --log all"  # without an experiment of its own
TOO_EARLY = {"few-clusters", "few-rewards"}  # reasons for which an experiment gives no answer yet
BASES = {
    "visits": "visits per {unit}",
    "active_days": "active days per {unit}",
    "reward_per_visit": "per visit",
    "credit": "credit per {unit}",
}
GROWING = {"young-units", "anonymous-units"}  # reasons for which a difference only describes the time so far
YOUNG = "it may grow or turn with the time that people have to come again"
COMPLETE_SHARE = 0.9  # of the units; where fewer count, an answer says so
MAX_OPEN = 3  # answers not known yet that have a sentence each
MAX_FIELDS = 3  # of contexts that a sentence names
WEEK = 7  # days over which units are compared at equal age
LONGEST_WAIT = 90  # days; nobody waits longer for an answer


# -- the direction of a difference --


def direction(lower: float | None, upper: float | None, *, tolerance: float) -> str:
    """Return `more` or `less` if both bounds of a difference are on the same side of 0, and `equal` if both are within
    the tolerance. Else return `unsure`.

    lower, upper: the bounds, or None for an unknown bound; tolerance: a difference up to this size counts as none."""
    if lower is not None and lower > tolerance:
        return "more"
    if upper is not None and upper < -tolerance:
        return "less"
    return "unsure" if lower is None or upper is None or max(-lower, upper) > tolerance else "equal"


def rounding(*figures: float | None) -> float:
    """Return the largest difference that rounding may cause between these figures."""
    return ROUNDING * max((abs(figure) for figure in figures if figure is not None), default=0.0)


def difference_direction(row: Mapping[str, Any]) -> str:
    """Return the direction (`more`, `less`, `equal` or `unsure`) of a difference between two groups. row: the
    difference, as `outcomes` and `experiment show` report it."""
    base = row["value"] / row["relative"] if row.get("relative") else None
    return direction(row["lower"], row["upper"], tolerance=rounding(base))


def is_growing(row: Mapping[str, Any]) -> bool:
    """Tell whether the sign of a difference is certain so far, and the only reason for doubt is that the difference
    may still grow. Without any reason for doubt, the result is False. row: the difference, as `experiment show`
    reports it."""
    return difference_direction(row) in ("more", "less") and set() < {*row["reasons"]} <= GROWING


def shown_p(row: Mapping[str, Any]) -> float | None:
    """Return the p-value of a difference, or None if it would mislead readers. It would if the difference only
    describes the time so far and the answer is not known, or if it is 1, which readers would take for a share."""
    is_so_far = row["answer"] == "unknown" and {*GROWING, "turned"} & {*row["reasons"]}
    p_value: float | None = None if is_so_far or row["p_value"] == 1 else row["p_value"]
    return p_value


def gate_direction(gate: Mapping[str, Any]) -> str:
    """Return the direction (`more`, `less`, `equal` or `unsure`) of the gain of a candidate. gate: the report of a
    gate."""
    return direction(gate["lower"], gate["upper"], tolerance=rounding(gate["value"], gate["live_value"]))


def gate_against(gate: Mapping[str, Any]) -> str:
    """Return words for what a gate compared a candidate with: the reference of a policy, `version N`, or `the logged
    average`. gate: the report of the gate."""
    rival = gate["against"]
    return rival if isinstance(rival, str) else "the logged average" if rival is None else f"version {rival}"


# -- sentences --


class Claim(NamedTuple):
    """This record is a comparison of `name` with `rival` that is to be put into words. If `name` is empty, the sentence
    continues a sentence that has named the candidate.

    answer: `better`, `worse`, `same` or `unknown`; value, lower, upper: the difference and its bounds, or None where
    they are unknown or unreliable; base: the figure that counts as 100 % (1 if the difference is a share already, 0
    or None if the difference is not given in percent); needed: how many more clusters would give an answer; days:
    the days that these clusters take with the present traffic; cluster: what a cluster is, `user`, `session` or
    `row`.

    groups: the reasons for an unknown answer, by the name of a group of reasons; basis: the unit of the mean, such as
    `per visit`; reward: the name of the reward, if it must be stated; caveat: a reason for less trust in a known
    answer; decided_by: the command of an experiment that answers the question better; is_logger: whether `name` alone
    served the rows that were used; has_other_loggers: whether `rival` is one of several loggers; way: words for the
    command that compares `name` with these loggers; seems: whether the evidence is weak, so that the sentence says
    `seems`."""

    name: str
    rival: str
    answer: str
    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    base: float | None = 1.0
    needed: int | None = None
    days: float | None = None
    cluster: str = "session"
    groups: Mapping[str, Sequence[str]] = {}
    basis: str = ""
    reward: str = ""
    caveat: str = ""
    decided_by: str = ""
    is_logger: bool = False
    has_other_loggers: bool = False
    way: str = LOGGER_HINT
    seems: bool = False

    @property
    def sentence(self) -> str:
        """Return the answer as a sentence. It includes the basis of the comparison, and the command that answers the
        question better, if there is one."""
        test = f"; decide by `{self.decided_by}`, a randomised test of all that it earns" if self.decided_by else ""
        return self._answer + test

    @property
    def _answer(self) -> str:
        by = by_reward_name(self.reward)
        basis = (f" {self.basis}" if self.basis else "") + by
        subject, caveat = self.name or "it", f", {self.caveat}" if self.caveat else ""
        if self.answer in ("better", "worse"):
            subject += " seems" if self.seems else " is"
            return f"{subject} {self.answer} than {self.rival}: {self.difference}{basis}{caveat}"
        if self.answer == "same":
            share = max(abs(bound) for bound in (self.lower or 0.0, self.upper or 0.0)) / abs(self.base or 1.0)
            if self.is_logger and (share > LOG_PRECISION or self.has_other_loggers):
                return f"{subject} served this log itself: {self.way}"
            if share > LOG_PRECISION:
                return f"{subject} is as good as {self.rival}: it differs by at most {100 * share:.2g} %{basis}{caveat}"
            return f"{subject} {SAME_POLICY} {self.rival}: {self.way if self.has_other_loggers else 'no difference'}"
        start = f"{self.name}: " if self.name else ""
        question = f"whether it is better or worse than {self.rival}{by}{f', {self.basis}' if self.basis else ''}"
        if self.needed is None:
            reasons = "; ".join(f"{group and f'{group}: '}{', '.join(names)}" for group, names in self.groups.items())
            return f"{start}this log cannot tell {question}{f' ({reasons})' if reasons else ''}"
        more = quantity(approximate(self.needed), f"more {NOUNS.get(self.cluster, self.cluster)}")
        pace_text = "nobody new comes" if self.days == inf else f"{time_text(self.days or 0.0)} of this traffic"
        time = "" if self.days is None else f" ({pace_text})"
        condition = f", if the difference is {self._signed_figure(self.value)} as estimated" if self.value else ""
        odds = f"about a 50 % chance of an answer after {more}{time}{condition}"
        if (self.days or 0.0) > LONGEST_WAIT:
            return f"{start}this traffic cannot tell in reasonable time {question}: {odds}"
        return f"{start}cannot tell yet {question}; {odds}"

    @property
    def difference(self) -> str:
        """Return the text of the difference with its bounds."""
        value, low, high = self._signed_figure(self.value), self._figure(self.lower), self._figure(self.upper)
        if low and high:
            return f"{value} [{low}, {high}]"
        bound = self._signed_figure(self.upper if self.lower is None else self.lower)
        return value + (f", at least {bound}" if low else f", at most {bound}" if high else "")

    def _signed_figure(self, figure: float | None) -> str:
        """Return the text of a figure with its sign and, if the figure is a share, the percent sign."""
        return self._figure(figure) + (" %" if self.base else "")

    def _figure(self, figure: float | None) -> str:
        if figure is None:
            return ""
        if not self.base:
            return f"{figure:+.4g}"
        share = figure / abs(self.base)
        return f"{100 * share:+.2g}" if ROUNDING < abs(share) < LOG_PRECISION else percent(share)


def is_weak(gate: Mapping[str, Any]) -> bool:
    """Tell whether a gate has the verdict `weak` for any reason besides a small sample."""
    return gate["verdict"] == "weak" and not {*gate["reasons"]} <= {"low-ess"}


def gate_claim(
    gate: Mapping[str, Any], name: str = "", *, rival: str | None = None, groups: Mapping[str, Sequence[str]] = {}
) -> Claim:  # fmt: skip
    """Return the claim that the report of a gate makes about a candidate. If the gate was passed, the claim says
    `better`. Otherwise it has the answer of the report, or `unknown` for a report of an earlier release, which has no
    answer.

    name: the name of the candidate, or empty if the sentence continues a sentence that names the candidate; rival: a
    name for what the candidate is compared with, by default as the report names it; groups: the reasons to state, by
    the name of a group of reasons, by default all reasons of the gate."""
    answer, n_needed, verdict = gate.get("answer") or "unknown", gate.get("needed"), gate["verdict"]
    bounds = {"value": gate["estimate"], "lower": gate["lower"], "upper": gate["upper"]}
    groups = groups or ({verdict: gate["reasons"]} if gate["reasons"] else {})
    basis = "per visit" if gate.get("visits") is None and gate["estimator"] == "wdr" else "per slot"
    doubt_text = f" ({verdict}: {', '.join(gate['reasons'])})" if gate["passed"] and verdict != "ok" else ""
    return Claim(
        name, rival or gate_against(gate), "better" if gate["passed"] else answer,
        **(bounds if verdict != "insufficient" or answer == "same" else {}), base=gate["live_value"],
        needed=None if n_needed is None else round(n_needed / GATE_SHARE), cluster="visitor", groups=groups,
        basis=basis + doubt_text, seems=bool(doubt_text) and is_weak(gate),
    )  # fmt: skip


def by_reward_name(reward: str | None) -> str:
    """Return words that name a reward, such as `by clicks`. The reward `default` gets the word `reward` before its
    name, so that nobody reads `by default`. Without a reward, the words are empty."""
    return f" by {'reward ' if reward == DEFAULT_REWARD else ''}{reward}" if reward else ""


def difference_sentence(
    row: Mapping[str, Any], unit: str, *, by_reward: bool = False, per_day: float | None = None,
    newest_per_day: float | None = None,
) -> str:  # fmt: skip
    """Return a sentence about a difference in reward per user, session or decision.

    row: the difference, as `experiment show` reports it; unit: the noun, such as `user`; by_reward: whether the
    sentence names the reward; per_day: how many new users or sessions come per day, or None if it is not known;
    newest_per_day: this number for the second half of the time, when most users who come again have already been
    counted."""
    name, reward = row.get("group", row.get("variant")), by_reward_name(row["reward"] if by_reward else None)
    if TOO_EARLY & {*row["reasons"]}:
        needs = f"100 {unit}s, 50 of each side, and 20 of them with a reward" if unit != "decision" else "more data"
        question = f"whether it is better or worse than {row['against']}{reward}, {_basis(row, unit)}"
        start, shortage = "too early to say", (row.get("shortage") or 0) / row.get("share", 1.0)
        days = _days_until(row, shortage, newest_per_day)
        if shortage and days is not None and unit != "decision":
            start = "this traffic cannot tell in reasonable time" if days > LONGEST_WAIT else start
            time = "nobody new comes" if days == inf else f"{time_text(days)} of this traffic"
            needs += f"; about {quantity(approximate(round(shortage)), f'more {NOUNS.get(unit, unit)}')}, {time}"
        return f"{name}: {start} {question} (nothing is said before {needs})"
    if row["answer"] == "unknown" and is_growing(row) and "young-units" in row["reasons"]:
        claim_text = f"{name} earned {difference_direction(row)} than {row['against']} so far"
        so_far = _difference_text({**row, "lower": None, "upper": None})
        return f"{claim_text}: {so_far} {_basis(row, unit)}{reward} ({', '.join(row['reasons'])}); {YOUNG}"
    base = row["value"] / row["relative"] if row["relative"] else None
    claim = Claim(
        name=name, rival=row["against"],
        answer=row["answer"], base=base, value=row["value"], lower=row["lower"], upper=row["upper"],
        needed=row["needed"], cluster=unit, basis=_basis(row, unit),
        reward=row["reward"] if by_reward and row["reward"] else "",
        days=_days_until(row, row["needed"] / row.get("share", 1.0), per_day) if row["needed"] else None,
        groups={"": row["reasons"]} if row["reasons"] else {},
    )  # fmt: skip
    return claim.sentence


def _days_until(row: Mapping[str, Any], units: float, per_day: float | None) -> float | None:
    """Return the number of days until the difference in `row` has enough further users or sessions: infinity if they
    never come, None if the pace is not known. units: how many are needed; per_day: how many new ones come per day."""
    days = row.get("needed_days", per_day and units / per_day)
    return inf if (days is None and "needed_days" in row) or per_day == 0 else days


def _basis(row: Mapping[str, Any], unit: str) -> str:
    """Return words for what a metric is an average over, such as `per visit`. row: a difference, which names the
    metric; unit: `user`, `session` or `decision`."""
    name = row.get("metric", "reward_per_unit")
    return f"per {unit}" if name == "reward_per_unit" else BASES.get(name, f"in {name}").format(unit=unit)


def plan_sentence(plan: Mapping[str, Any]) -> str:
    """Return a sentence about the time that it takes to detect a lift. plan: the answer of `experiment plan`."""
    assumptions, days_left = plan["assumed"], plan.get("days_left")
    chance_clause = f"if it is there, with a chance of {100 * assumptions['power']:g} %"
    looks = (
        (plan["total"], plan["days"], "at one look"),
        (plan["total_sequential"], plan["days_sequential"], "at any number of looks"),
    )
    texts = [
        f"{approximate(total):,} {assumptions['unit']}s{'' if days is None else f' ({time_text(days)})'} {look}"
        for total, days, look in looks
    ]
    days_left_clause = "" if days_left is None else f"; {time_text(days_left)} are still to come"
    days = inf if plan["days"] is None and assumptions.get("traffic_units") else plan["days"] or 0.0
    if days > LONGEST_WAIT and (days_left is None or days_left > LONGEST_WAIT):
        days_left_clause = "; this traffic does not tell it in reasonable time"
    start = f"to tell {percent(assumptions['lift'])} % of {assumptions['metric']}, {chance_clause}"
    return f"{start} takes {texts[0]}, {texts[1]}{days_left_clause}"


def experiment_sentences(answer: Mapping[str, Any]) -> list[str]:
    """Return the conclusions from an experiment. Some are about the metrics that decide, or the credit of interleaved
    rankers. Others are about guards (limits of losses) that are broken or undecided. answer: the answer of `experiment
    show`."""
    p_value = answer["sample_ratio"]["p_value"]
    if p_value is not None and p_value < ALARM:
        return [f"The split of {answer['experiment']} is not as defined: do not trust its differences."]
    if answer.get("selected_ratio", {}).get("p_value", 1.0) < ALARM:
        reason = "an exclusion, or the filter, leaves out more of one variant than of another"
        return [f"{answer['experiment']}: {reason}: do not trust its differences (sample-ratio)."]
    if answer.get("route") is not None:
        return [_holdout_sentence(answer), *_incomplete_rewards(answer)]
    rows, differences, per_day = answer["unit_differences"], answer["differences"], answer.get("units_per_day")
    if "interleave" in answer:  # a credit of teams, which readers know by what they rank by
        teams = {row["variant"]: f"{row['variant']} ({row['policy']})" for row in answer["variants"]}
        sides = ("variant", "against")
        differences = [{**row, "metric": "credit"} | {side: teams[row[side]] for side in sides} for row in differences]
    newest_per_day = answer.get("new_units_per_day")
    if answer.get("status") == "stopped":  # no more units arrive
        rows, differences = ([{**row, "needed": None} for row in table] for table in (rows, differences))
    deciding_names = {(row["metric"], row["reward"]) for row in answer["metric"]}
    deciding_rows = [row for row in rows if (row["metric"], row["reward"]) in deciding_names]
    sentences = earned_sentences(deciding_rows, rows, answer["unit"], per_day=per_day, newest_per_day=newest_per_day)
    guards = {name: [row for row in answer["guards"] if row["answer"] == name] for name in ("lost", "unknown")}
    lost_guards, open_guards = ([guard_sentence(row, answer["unit"]) for row in rows] for rows in guards.values())
    sentences = [*lost_guards, *sentences, *open_guards]
    sentences = sentences or [difference_sentence(row, "decision", per_day=per_day) for row in differences]
    return [*sentences, *_incomplete_rewards(answer)] or ["There is nothing to compare."]


def _incomplete_rewards(answer: Mapping[str, Any]) -> list[str]:
    """Return a list with a sentence that says how many users or sessions have a complete reward. The list is empty if
    nearly all have. answer: the answer of `experiment show`."""
    units = Counter[tuple[str, str | None]]()
    for row in answer.get("outcomes", ()):
        units[row["metric"], row["reward"]] += row["units"]
    deciding_names, total = ((row["metric"], row["reward"]) for row in answer.get("metric", ())), units["visits", None]
    n_counted = min((units[name] for name in deciding_names if name[0] == "reward_per_unit"), default=total)
    if n_counted >= COMPLETE_SHARE * total:
        return []
    sentence = f"only {n_counted:,} of {total:,} {answer['unit']}s count in this"
    return [f"{sentence}: the rewards of the others are not complete yet"]


def _second_half(answer: Mapping[str, Any], options: str) -> list[str]:
    """Return a list with advice to compare only users or sessions of the second half of an experiment. Variants that
    learn change meanwhile, so that figures of the whole experiment are averages over different beliefs. The list is
    empty if no variant learns, or if the first metric that decides has an answer. options: further options of the
    advised command."""
    labels = [row["variant"] for row in answer["variants"] if row.get("learns")]
    first_at, last_at = (parse(answer[end] or answer["created_at"]) for end in ("first_at", "last_at"))
    deciding_names = {(row["metric"], row["reward"]) for row in answer["metric"][:1]}
    deciding_rows = (row for row in answer["unit_differences"] if (row["metric"], row["reward"]) in deciding_names)
    if not labels or first_at == last_at or any(row["answer"] != "unknown" for row in deciding_rows):
        return []
    command = f"rlrec outcomes --experiment {answer['experiment']} --entered-since {middle(first_at, last_at)}"
    command += _reward_options(reward for _, reward in deciding_names)
    hint = f"`{command}{options}` compares the {answer['unit']}s of its second half"
    return [f"{_join_names(labels)} learned meanwhile, so that this is an average over what was known at times: {hint}"]


def _reward_options(names: Iterable[str | None]) -> str:
    """Return an option of a command for each of these rewards but the default reward."""
    return "".join(f" --reward {name}" for name in dict.fromkeys(names) if name not in (None, DEFAULT_REWARD))


def prior_sentences(belief: Mapping[str, Any]) -> list[str]:
    """Return a list with a sentence about means of arms that come from the prior alone, or that include a prior which a
    user gave. The list is empty if there are no such means. belief: the answer of `policy show`."""
    arms = [arm for arm in belief["arms"] if arm["mean"] is not None and arm["status"] == "active"]
    n_unseen = sum(arm["pulls"] == 0 for arm in arms)
    origin = " that was given" if belief["has_prior"] else ""
    if n_unseen and n_unseen == len(arms):
        time = ", as this version is frozen" if belief["status"] == "frozen" else " yet"
        return [f"nothing was learned{time}: mean, lower and upper are those of the prior{origin}"]
    unseen_clause = f"; those of {quantity(n_unseen, 'arm')} without pulls are the prior's" if n_unseen else ""
    return [f"mean, lower and upper include the prior{origin}{unseen_clause}"] if n_unseen or origin else []


def equal_ages(answer: Mapping[str, Any], options: str = "") -> list[str]:
    """Return a list with the command that compares users or sessions over equal times since they first came, or
    compares only newer ones. The list is empty unless the deciding metrics depend on how long ago that was.

    answer: the answer of `experiment show`; options: the options of this answer that the command repeats."""
    days = answer.get("equal_age_days", 0)
    rows = [row for row in answer["unit_differences"] if row["metric"] == "reward_per_unit"]
    if newer_commands := newer_units(answer, options):
        return newer_commands
    if (since := answer.get("pruned_until")) and any("picked-decisions" in row["reasons"] for row in rows):
        command = f"rlrec outcomes --experiment {answer['experiment']} --entered-since {since}"
        deleted_text = f"what {answer['unit']}s earned before {since} was deleted by `rlrec db prune`"
        return [f"{deleted_text}: `{command} --reward {rows[0]['reward']}{options}` compares those who came since"]
    if not days or not any("young-units" in row["reasons"] for row in rows):
        return []
    reward_options = "".join(f" --reward {name}" for name in dict.fromkeys(row["reward"] for row in rows))
    command = f"`rlrec outcomes --experiment {answer['experiment']} --age {days}d{reward_options}{options}`"
    time = "week" if days == WEEK else "day" if days == 1 else f"{days} days"
    return [f"{command} compares {answer['unit']}s at equal age, over their first {time}"]


def ending_command(answer: Mapping[str, Any]) -> list[str]:
    """Return a list with the command that ends or rolls back a running experiment with two variants. The list is empty
    unless the answer of `experiment show` is sure."""
    deciding_names = {(row["metric"], row["reward"]) for row in answer["metric"]}
    rows = [row for row in answer["unit_differences"] if (row["metric"], row["reward"]) in deciding_names]
    is_trusted = all(
        test is None or test["p_value"] is None or test["p_value"] >= ALARM
        for test in (answer["sample_ratio"], answer.get("selected_ratio"))
    )
    is_open = answer["status"] == "running" and answer.get("route") is None and is_trusted
    if not (is_open and rows and len(answer["variants"]) == 2):
        return []
    answers, guards = {row["answer"] for row in rows}, {row["answer"] for row in answer["guards"]}
    visits = next((row for row in answer["unit_differences"] if row["metric"] == "visits"), None)
    is_winner = answers == {"better"} and guards <= {"holds"} and not (visits and _visits_fall(visits))
    if not is_winner and not (answers == {"worse"} or "lost" in guards):
        return []
    if not is_winner and "ramp" in answer:
        return [f"`rlrec route rollback {answer['ramp']}` gives all {answer['unit']}s what served before"]
    label = rows[0]["group" if is_winner else "against"]
    return [f"`rlrec experiment stop {answer['experiment']} --promote {label}` ends it with {label} for all"]


def quoted_options(**options: str | None) -> str:
    """Return the options of a command as text for a shell, with a blank before each. Options without a value are left
    out."""
    return "".join(f" --{name} {shlex.quote(value)}" for name, value in options.items() if value)


def next_looks(answer: Mapping[str, Any], options: str = "") -> list[str]:
    """Return the commands that tell more than an answer does. They compare users or sessions over equal times, by
    segment, and in the second half of an experiment whose variants learn.

    answer: the answer of `experiment show`; options: the options of this answer that each command repeats."""
    return [*equal_ages(answer, options), *_segment_command(answer, options), *_second_half(answer, options)]


def _segment_command(answer: Mapping[str, Any], options: str) -> list[str]:
    """Return a list with the command that compares variants by a field of contexts. The list is empty unless the answer
    about all users or sessions is sure."""
    deciding_names = {(row["metric"], row["reward"]) for row in answer["metric"]}
    rows = [row for row in answer["unit_differences"] if (row["metric"], row["reward"]) in deciding_names]
    fields = answer.get("context_fields", [])[:MAX_FIELDS]
    if not fields or answer.get("segments") or not any(row["answer"] in ("better", "worse") for row in rows):
        return []
    command = f"rlrec experiment show {answer['experiment']} --by {shlex.quote(fields[0])}"
    command += _reward_options(row["reward"] for row in rows) + options
    other_fields = f" (or {', '.join(fields[1:])})" if fields[1:] else ""
    return [f"`{command}`{other_fields} says whether that holds for each"]


def newer_units(answer: Mapping[str, Any], options: str = "") -> list[str]:
    """Return a list with the command that compares only the newer users or sessions. The list is empty unless the
    difference in reward has the opposite sign among the older ones. options: the options of this answer that the
    command repeats."""
    rows = [row for row in (answer.get("unit_differences") or answer["differences"]) if "turned_at" in row]
    reward_rows = [row for row in rows if row["reward"]]
    if not reward_rows:
        return []
    since = max(row["turned_at"] for row in reward_rows)
    command = f"rlrec outcomes --experiment {answer['experiment']} --entered-since {since}"
    reward = reward_rows[0]["reward"]
    return [f"`{command} --reward {reward}{options}` compares the {answer['unit']}s that came since"]


def guard_sentence(row: Mapping[str, Any], unit: str) -> str:
    """Return a sentence that says whether a variant keeps to a guard (a limit of losses). row: the guard, as
    `experiment show` reports it; unit: `user` or `session`."""
    name = f"reward {_basis(row, unit)}" if row["reward"] else _basis(row, unit).removeprefix("in ")
    basis, limit = name + by_reward_name(row["reward"]), f"{100 * row['least']:.12g} %"
    share, low, high = (None if row[name] is None else percent(row[name]) for name in ("relative", "lower", "upper"))
    if row["answer"] == "lost":
        return f"{row['group']} breaks a guard: {share} % {basis}, at best {high} %, where {limit} is allowed"
    if row["answer"] == "holds":
        return f"{row['group']} keeps to a guard: {share} % {basis}, at worst {low} %, where {limit} is allowed"
    is_young = "young-units" in row["reasons"]  # their behaviour so far gives no bounds
    reasons = f" ({', '.join(row['reasons'])})" if row["reasons"] else ""
    so_far = f": {share} % so far" + (f", at worst {low} %" if low and not is_young else "") if share else ""
    start = f"{row['group']}: cannot tell yet whether {basis} fell by more than {limit[1:]}"
    return f"{start}{so_far}{reasons}" + (f"; {YOUNG}" if is_young else "")


def join_doubts(texts: Sequence[str]) -> str:
    """Return the sentences as one line. If several say that the result may still change, the line says so only once, at
    the end."""
    line, doubt = "; ".join(texts), f"; {YOUNG}"
    return line.replace(doubt, "") + doubt if doubt in line else line


def _holdout_sentence(answer: Mapping[str, Any]) -> str:
    """Return the conclusion from the users in the holdout of a route. answer: the answer of `experiment show`."""
    rows = {row["metric"]: row for row in reversed(answer["unit_differences"])}
    reward_row, visits_row = rows["reward_per_unit"], rows["visits"]
    other_rewards = ""
    for row in answer["unit_differences"]:
        if row["metric"] == "reward_per_unit" and row is not reward_row and row["value"] is not None:
            is_young = "young-units" in row["reasons"]
            other_row = {**row, "lower": None, "upper": None} if is_young else row
            other_rewards += f", {row['reward']} {_difference_text(other_row)}{' so far' * is_young}"
    reasons, is_sure = {*reward_row["reasons"]}, difference_direction(reward_row) in ("more", "less")
    if not is_sure or reasons - {*GROWING, "picked-decisions"}:
        named_row = {**reward_row, "group": answer["route"], "against": "its holdout"}
        paces = {"per_day": answer.get("units_per_day"), "newest_per_day": answer.get("new_units_per_day")}
        sentence = difference_sentence(named_row, answer["unit"], by_reward=True, **paces)
        return sentence + other_rewards + _lost_visits(reward_row, visits_row, answer["unit"])
    so_far = " so far (young-units: it may grow or turn)" if "young-units" in reward_row["reasons"] else ""
    if so_far:  # their behaviour so far gives no bounds
        reward_row, visits_row = ({**row, "lower": None, "upper": None} for row in (reward_row, visits_row))
    gain, visits_gain = _difference_text(reward_row), _difference_text(visits_row)
    figures = f"{reward_row['reward']} {gain} a {answer['unit']}{other_rewards}, visits {visits_gain}"
    caveat = (
        "; picked-decisions: whom earlier policies drove away does not count" if "picked-decisions" in reasons else ""
    )
    is_random = any(row["policy"].startswith("uniform@") for row in answer.get("variants", ()))
    is_lower = (reward_row["value"] or 0.0) < 0
    # of what serves now, where neither visits nor visitors follow from what served before
    is_of_policy = not caveat and len(answer.get("led_to", [])) < 2
    verb = "did better" if so_far else "does better"
    random_clause = f"; drawing at random {verb}" if is_random and is_lower and is_of_policy else ""
    sentence = f"{answer['route']} against its holdout: {figures}{so_far}{random_clause}{caveat}"
    if len(policies := answer.get("led_to", [])) > 1:
        command = f"`rlrec outcomes --experiment {answer['experiment']} --reward {reward_row['reward']}"
        command += f" --entered-since {answer['led_since']}` compares those who first came to {policies[-1]}"
        ending = f": {command}" if answer.get("has_newcomers", True) else ", and nobody new has come since"
        sentence += f"; a part of it is what {', '.join(policies[:-1])} served{ending}"
    return sentence


def _difference_text(row: Mapping[str, Any]) -> str:
    """Return the text of a difference with its bounds, in percent if possible."""
    base = row["value"] / row["relative"] if row["relative"] else None
    figures = {name: row[name] for name in ("value", "lower", "upper")}
    return Claim("", "", row["answer"], base=base, **figures).difference


def earned_sentences(
    rows: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]], unit: str, *,
    per_day: float | None = None, newest_per_day: float | None = None, equal_ages: bool = False,
) -> list[str]:  # fmt: skip
    """Return a sentence for each difference in `rows`, and further sentences if metrics disagree. The sentence also
    states if visits fall although the reward does not.

    rows: the differences in the metrics that decide, by group and metric; differences: the differences in all
    metrics; equal_ages: whether users or sessions were compared over times of equal length, so that the differences
    are final; unit, per_day, newest_per_day: as in `difference_sentence`."""
    visits = {row["group"]: row for row in differences if row["metric"] == "visits"}
    by_reward = not {row["reward"] for row in rows} <= {DEFAULT_REWARD, None}
    sentences = []
    for row in rows:
        visits_clause = _lost_visits(row, visits.get(row["group"]), unit, equal_ages=equal_ages)
        paces = {"per_day": per_day, "newest_per_day": newest_per_day}
        sentences.append(difference_sentence(row, unit, by_reward=by_reward, **paces) + visits_clause)
    gains, losses = ({row["group"] for row in rows if row["answer"] == answer} for answer in ("better", "worse"))
    noun = "rewards" if len({row["metric"] for row in rows}) == 1 else "metrics"
    open_rows = [row for row in rows if row["answer"] == "unknown" and row["needed"] and not row["reasons"]]
    if len(open_rows) > MAX_OPEN:
        first_row = min(open_rows, key=lambda row: row["needed"])
        labels = dict.fromkeys(row["group"] for row in open_rows if row is not first_row)
        sentences = [
            text for row, text in zip(rows, sentences, strict=True) if row is first_row or row not in open_rows
        ]
        sentences.append(f"{_join_names([*labels])}: no answer either, and none sooner")
    return sentences + [
        f"{name}: the {noun} disagree, decide by the one that you want" for name in sorted(gains & losses)
    ]


def _lost_visits(
    reward_row: Mapping[str, Any], visits_row: Mapping[str, Any] | None, unit: str, *, equal_ages: bool = False
) -> str:  # fmt: skip
    """Return a clause that says that a group has fewer visits. The clause is empty if the reward of the group is worse,
    or if neither the reward nor the visits have an answer.

    reward_row, visits_row: the differences in reward and in visits; equal_ages: as in `fewer_visits`."""
    if not reward_row["reward"] or reward_row["answer"] == "worse" or visits_row is None:
        return ""
    words = fewer_visits(visits_row, unit, equal_ages=equal_ages)
    is_finding = words and {reward_row["answer"], visits_row["answer"]} != {"unknown"}
    return f"; but it {words}" if is_finding else ""


def fewer_visits(visits_row: Mapping[str, Any], unit: str, *, equal_ages: bool = False) -> str:
    """Return words that say that a group brings people back less often than the group it is compared with. The words
    are empty if it does not.

    visits_row: the difference in visits between the two groups; equal_ages: whether users or sessions were compared
    over times of equal length."""
    if not _visits_fall(visits_row) or not visits_row["relative"]:
        return ""
    so_far = "" if equal_ages else " so far"
    return f"brings people back less often: {percent(visits_row['relative'])} % visits per {unit}{so_far}"


def _visits_fall(row: Mapping[str, Any]) -> bool:
    """Tell whether the interval of a difference in visits lies below 0. The answer holds for the time so far: some
    users or sessions may not have had time to come again."""
    return row["upper"] is not None and row["upper"] < 0 and {*row["reasons"]} <= {*GROWING, "other-metric"}


def best_of(may_be_best: Mapping[str, bool | None]) -> str:
    """Return a sentence that says which of several targets may be the best. may_be_best: for each target, by name,
    whether it may be the best, or None if the log cannot tell."""
    names_by_flag: dict[bool | None, list[str]] = {}
    for name, flag in may_be_best.items():
        names_by_flag.setdefault(flag, []).append(name)
    if not (rivals := names_by_flag.get(True)):
        return "this log cannot tell which is the best"
    other_names, unknown_names = names_by_flag.get(False, []), names_by_flag.get(None, [])
    is_sure = len(rivals) == 1 and not unknown_names
    clauses = [f"{rivals[0]} is the best" if is_sure else f"{_join_names(rivals)} may still be the best"]
    clauses += [f"{_join_names(other_names)} {'is' if len(other_names) == 1 else 'are'} not"] if other_names else []
    clauses += [f"this log cannot tell about {_join_names(unknown_names)}"] if unknown_names else []
    return "; ".join(clauses)


def effect_sentence(arms: Sequence[Mapping[str, Any]], level: float = 0.95, *, has_groups: bool = False) -> str:
    """Return the most important conclusion from the long-run effects of arms. It is about an arm with a high reward now
    and a surely negative effect; if there is none, about the worst arm whose effect is surely negative; else about the
    best arm whose effect is surely positive. Retired arms are left out.

    arms: the effects of the arms, best first; level: the confidence with which the conclusion holds for all arms
    together; has_groups: whether these are effects within one of several groups, such as one policy, shrunk towards
    the effects of all groups. The unshrunk effects of the group must then agree with the conclusion."""
    z_bound = NormalDist().inv_cdf(1 - (1 - level) / 2 / len(arms))
    sure_arms = [row for row in arms if abs(row["shrunk"]) > z_bound * row["shrunk_sd"] > 0 and not row.get("retired")]
    if has_groups and (pooled_arms := sure_arms):
        sure_arms = [
            row for row in sure_arms if (row["upper" if row["shrunk"] < 0 else "lower"] or 0.0) * row["shrunk"] > 0
        ]
        if not sure_arms:
            arm = pooled_arms[-1 if pooled_arms[-1]["shrunk"] < 0 else 0]
            figures = "no estimate" if arm["lower"] is None else _effect_text(arm, ("long_run", "lower", "upper"))
            question = f"whether {arm['arm']} adds or costs ({figures})"
            return f"its own pages cannot tell {question}; `rlrec effects` tells of all"
    harmful_arms = [row for row in sure_arms if row["shrunk"] < 0]
    bait_arms = [row for row in harmful_arms if 4 * row["rank_now"] <= len(arms) and row["now"] > 0]
    if bait_arms:
        bait = min(bait_arms, key=lambda row: row["rank_now"])
        rank = f"rank {bait['rank_now']} of {len(arms)}"
        return f"{bait['arm']} earns much now ({rank}) and costs in the long run ({_effect_text(bait)})"
    if harmful_arms:
        worst_arm = harmful_arms[-1]
        return f"{worst_arm['arm']} costs in the long run, against the average of this log ({_effect_text(worst_arm)})"
    if sure_arms:
        return f"{sure_arms[0]['arm']} adds in the long run to the average of this log ({_effect_text(sure_arms[0])})"
    finding = f"with all {len(arms)} arms looked at together, none surely adds"
    if has_groups:
        return f"{finding} or costs"
    advice = "a policy of kind long-term draws each as often as it may be the best"
    return f"{finding} to the average of this log in the long run, or costs: {advice}"


def pooled_sentence(surfaces: Sequence[str], log: str | None = None) -> str:
    """Return a sentence that says that visits to several surfaces (policies or experiments) were treated as visits to
    one. surfaces: a filter for each surface; log: the filter of the log."""
    surface_filter = shlex.quote(",".join(filter(None, [log, surfaces[0]])))
    sentence = (
        f"visits of {_join_names(surfaces)} are pooled, which share users: a return counts for whichever came before"
    )
    return f"{sentence}; `rlrec effects --log {surface_filter}` tells of one alone"


def _effect_text(row: Mapping[str, Any], names: Sequence[str] = ("shrunk", "shrunk_lower", "shrunk_upper")) -> str:
    value, lower, upper = (f"{row[name]:+.3g}" for name in names)
    return f"{value} a look [{lower}, {upper}]"


def _join_names(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def time_text(days: float) -> str:
    """Return a number of days as text: a whole number, at least 1, of days, hours or minutes."""
    parts = (("day", 1), ("hour", 24), ("minute", 24 * 60))
    amounts = ((max(1, round(days * count)), unit) for unit, count in parts if days * count >= 1.5 or unit == "minute")
    return quantity(*next(amounts))


def percent(share: float) -> str:
    """Return the text of a share in percent, with its sign. A share below 10 % has one decimal, any other share
    none."""
    return f"{100 * share:+.{0 if abs(share) >= 0.1 else 1}f}".replace("-0.0", "+0.0")


def approximate(number: int) -> int:
    """Return a number rounded to two digits. The figures of these sentences are not known more precisely."""
    return int(float(f"{number:.1e}"))
