"""Sentences: what a reader does after reading them must be right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlrec.sentences import (
    LOGGED,
    YOUNG,
    Claim,
    approximate,
    best_of,
    difference_direction,
    difference_sentence,
    direction,
    earned_sentences,
    effect_sentence,
    ending_command,
    equal_ages,
    experiment_sentences,
    fewer_visits,
    join_doubts,
    next_looks,
    percent,
    plan_sentence,
    prior_sentences,
    quoted_options,
    rounding,
    shown_p,
    time_text,
)


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        (
            {"answer": "better", "value": 0.123, "lower": 0.05, "upper": 0.2, "basis": "per visit"},
            "home@2 is better than what was logged: +12 % [+5.0, +20] per visit",
        ),
        (
            {"answer": "worse", "value": -0.3, "lower": -0.5, "upper": -0.1, "base": 0.5},
            "home@2 is worse than what was logged: -60 % [-100, -20]",
        ),
        ({"answer": "better", "value": 0.2, "lower": 0.1},
         "home@2 is better than what was logged: +20 %, at least +10 %"),
        (
            {"answer": "better", "value": 2.0, "lower": 1.0, "upper": 3.0, "base": 0.0},
            "home@2 is better than what was logged: +2 [+1, +3]",
        ),
        # a difference that the digits of a share would hide is no "+0.0 %"
        (
            {"answer": "better", "value": 2e-4, "lower": 1e-4, "upper": 3e-4},
            "home@2 is better than what was logged: +0.02 % [+0.01, +0.03]",
        ),
        ({"answer": "same", "value": 1e-15, "lower": -1e-15, "upper": 1e-15},
         "home@2 is the same policy as what was logged: no difference"),
        ({"answer": "same", "value": 0.004, "lower": -0.008, "upper": 0.016},
         "home@2 is as good as what was logged: it differs by at most 1.6 %"),
        (
            {"answer": "unknown", "value": 0.03, "lower": -0.04, "upper": 0.1, "needed": 3_123, "days": 11.8},
            "home@2: cannot tell yet whether it is better or worse than what was logged; "
            "about a 50 % chance of an answer after 3,100 more visits (12 days of this traffic), "
            "if the difference is +3.0 % as estimated",
        ),
        # nobody is invited to wait for a year
        (
            {"answer": "unknown", "value": 0.03, "lower": -0.04, "upper": 0.1, "needed": 3_123, "days": 91.0},
            "home@2: this traffic cannot tell in reasonable time whether it is better or worse than what was logged: "
            "about a 50 % chance of an answer after 3,100 more visits (91 days of this traffic), "
            "if the difference is +3.0 % as estimated",
        ),
        (
            {"answer": "better", "value": 0.2, "lower": 0.1, "upper": 0.3, "basis": "per page", "reward": "durable",
             "caveat": "on little data (low-ess)"},
            "home@2 is better than what was logged: +20 % [+10, +30] per page by durable, on little data (low-ess)",
        ),
        # a rate per impression beside a test of what a user earns: one of them decides
        (
            {"answer": "worse", "value": -0.2, "lower": -0.3, "upper": -0.1, "decided_by": "rlrec experiment show ab"},
            "home@2 is worse than what was logged: -20 % [-30, -10]; decide by `rlrec experiment show ab`, a "
            "randomised test of all that it earns",
        ),
        (
            {"answer": "unknown", "groups": {"log": ["drift"]}, "reward": "durable"},
            "home@2: this log cannot tell whether it is better or worse than what was logged by durable (log: drift)",
        ),
        (
            {"answer": "unknown", "needed": 1, "days": 0.1, "cluster": "user"},
            "home@2: cannot tell yet whether it is better or worse than what was logged; about a 50 % chance of an "
            "answer after 1 more user (2 hours of this traffic)",
        ),
        (
            {"answer": "unknown", "groups": {"state": ["carry-over"], "log": ["in-sample", "drift"]}},
            "home@2: this log cannot tell whether it is better or worse than what was logged (state: carry-over; log: "
            "in-sample, drift)",
        ),
    ],
)  # fmt: skip
def test_the_decision_comes_first(figures: dict[str, Any], sentence: str) -> None:
    assert Claim("home@2", LOGGED, **figures).sentence == sentence


def test_a_share_has_a_sign_and_dust_has_none_that_misleads() -> None:
    assert [percent(share) for share in (0.5, 0.051, -1e-15, -0.2)] == ["+50", "+5.1", "+0.0", "-20"]


def test_what_is_needed_has_two_digits() -> None:
    assert [approximate(number) for number in (7, 96, 3_123, 74_398)] == [7, 96, 3_100, 74_000]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"home": True, "uniform": True, "shop": False}, "home and uniform may still be the best; shop is not"),
        ({"home": True, "uniform": False, "shop": False}, "home is the best; uniform and shop are not"),
        ({"a": True, "b": True, "c": True}, "a, b and c may still be the best"),
        ({"home": True, "taught": None}, "home may still be the best; this log cannot tell about taught"),
        ({"home": None, "taught": None}, "this log cannot tell which is the best"),
    ],
)
def test_the_best_is_named_where_it_is_known(flags: dict[str, bool | None], sentence: str) -> None:
    assert best_of(flags) == sentence


def test_a_difference_says_in_how_many_days_of_traffic_it_will_be_known() -> None:
    bounds = {"value": 0.1, "relative": 0.2, "lower": -0.1, "upper": 0.3}
    row = {"group": "b", "against": "a", "answer": "unknown", "needed": 60, "reasons": [], **bounds}
    text = difference_sentence(row, "user", per_day=20.0)
    assert text.endswith(
        "better or worse than a, per user; about a 50 % chance of an answer after 60 more users "
        "(3 days of this traffic), if the difference is +20 % as estimated"
    )
    assert "days" not in difference_sentence(row, "user")


def difference(metric: str, answer: str, relative: float, **fields: Any) -> dict[str, Any]:
    """A row of `unit_differences` of `experiment show`; what it compares with earned 2."""
    figures = {"value": 2 * relative, "relative": relative, "lower": 2 * relative - 0.1, "upper": 2 * relative + 0.1}
    names = {"group": "new", "against": "old", "metric": metric, "reward": "default", "answer": answer}
    return {**names, **figures, "needed": None, "reasons": [], **fields}


def conclusion(
    *rows: dict[str, Any], p_value: float = 0.5, guards: Sequence[dict[str, Any]] = (), status: str = "running",
    outcomes: Sequence[dict[str, Any]] = (),
) -> str:  # fmt: skip
    ratio = {"chi2": 1.0, "p_value": p_value}
    metrics = [{"metric": "reward_per_unit", "reward": row["reward"]} for row in rows]
    answer = {
        "experiment": "ab", "unit": "user", "unit_differences": rows, "differences": [], "sample_ratio": ratio,
        "metric": metrics, "guards": guards, "status": status, "outcomes": outcomes,
    }  # fmt: skip
    return "\n".join(experiment_sentences(answer))


def test_a_sure_answer_names_the_command_that_acts_on_it() -> None:
    def step(row: dict[str, Any], *guards: str, visits: float = 0.0, **fields: Any) -> list[str]:
        rows = [row, difference("visits", "worse" if visits else "unknown", visits)]
        answer = {
            "experiment": "ab", "unit": "user", "unit_differences": rows, "sample_ratio": {"p_value": 0.5},
            "metric": [{"metric": "reward_per_unit", "reward": "default"}], "status": "running", "variants": [{}, {}],
            "guards": [{"answer": guard} for guard in guards], **fields,
        }  # fmt: skip
        return ending_command(answer)

    better, worse = (difference("reward_per_unit", answer, 0.2) for answer in ("better", "worse"))
    keep_new, keep_old = (
        [f"`rlrec experiment stop ab --promote {label}` ends it with {label} for all"] for label in ("new", "old")
    )
    assert (step(better), step(worse), step(better, "lost")) == (keep_new, keep_old, keep_old)
    assert step(worse, ramp="home") == ["`rlrec route rollback home` gives all users what served before"]
    assert step(better, ramp="home") == keep_new
    for row, fields in (
        (difference("reward_per_unit", "unknown", 0.2), {}), (better, {"status": "stopped"}),
        (better, {"visits": -0.3}), (better, {"sample_ratio": {"p_value": 1e-4}}), (better, {"route": "home"}),
        (better, {"variants": [{}] * 3}),
    ):  # fmt: skip
        assert step(row, **fields) == []
    assert step(better, "unknown") == []


def test_a_sure_answer_is_followed_by_one_on_segments() -> None:
    """What is better for all together may be worse for some."""
    answer = {
        "experiment": "ab", "metric": [{"metric": "reward_per_unit", "reward": "default"}], "variants": [],
        "unit_differences": [difference("reward_per_unit", "better", 0.2)], "created_at": "2026-01-01", "unit": "user",
        "first_at": None, "last_at": None, "context_fields": ["device", "hour", "city", "age"],
    }  # fmt: skip
    command = "`rlrec experiment show ab --by device` (or hour, city) says whether that holds for each"
    assert next_looks(answer) == [command]
    assert next_looks({**answer, "segments": [{}]}) == []
    unknown = [difference("reward_per_unit", "unknown", 0.2)]
    assert next_looks({**answer, "unit_differences": unknown}) == []


def test_fewer_visits_are_said_again_at_the_end() -> None:
    visits = difference("visits", "unknown", -0.38, reasons=["young-units"])
    assert fewer_visits(visits, "user") == "brings people back less often: -38 % visits per user so far"
    assert fewer_visits(difference("visits", "unknown", -0.01), "user") == ""


def test_a_p_value_of_the_time_so_far_is_not_shown() -> None:
    """An answer that may still turn stands beside no p-value that looks like a proof."""
    young = difference("reward_per_unit", "unknown", -0.38, reasons=["young-units"])
    rows = [young, {**young, "reasons": []}, {**young, "answer": "worse"}]
    assert [shown_p({**row, "p_value": 6e-24}) for row in rows] == [None, 6e-24, 6e-24]
    assert shown_p({**young, "reasons": [], "p_value": 1.0}) is None  # else read as a share, or a count


def test_an_experiment_is_judged_by_what_a_unit_earned() -> None:
    earned = difference("reward_per_unit", "better", 0.2)
    assert (
        conclusion(earned, difference("retention", "worse", -0.1))
        == "new is better than old: +20 % [+15, +25] per user"
    )
    unknown = difference("reward_per_unit", "unknown", 0.02, needed=412)
    clause = "about a 50 % chance of an answer after 410 more users, if the difference is +2.0 % as estimated"
    assert conclusion(unknown).endswith(f"than old, per user; {clause}")
    ended = "new: this log cannot tell whether it is better or worse than old, per user"
    assert conclusion(unknown, status="stopped") == ended
    young = difference("reward_per_unit", "unknown", 0.02, reasons=["young-units"])
    assert conclusion(young) == (
        "new: this log cannot tell whether it is better or worse than old, per user (young-units)"
    )
    grown = difference("reward_per_unit", "unknown", 0.2, reasons=["young-units"])
    assert conclusion(grown) == (
        "new earned more than old so far: +20 % per user (young-units); it may grow or turn with the time that people "
        "have to come again"
    )
    doubted = difference("reward_per_unit", "unknown", 0.2, reasons=["young-units", "unlike-loggers"])
    assert conclusion(doubted).startswith("new: this log cannot tell")
    durable = difference("reward_per_unit", "better", 0.2, reward="durable")
    assert conclusion(durable) == "new is better than old: +20 % [+15, +25] per user by durable"
    assert conclusion() == "There is nothing to compare."


def test_many_that_are_not_known_yet_have_one_sentence() -> None:
    """That of the first to be known: seven of them that say the same are not read."""
    rows = [
        difference("reward_per_unit", "unknown", 0.02, group=name, needed=needed)
        for name, needed in zip("bcde", (900, 400, 700, 800), strict=True)
    ]
    first, *more = conclusion(*rows).split("\n")
    assert (first[:27], more) == ("c: cannot tell yet whether ", ["b, d and e: no answer either, and none sooner"])
    assert len(conclusion(*rows[:3]).split("\n")) == 3


def test_teams_are_named_by_what_they_rank_by() -> None:
    row = difference("credit", "better", 0.1) | {"variant": "B", "against": "A"}
    row.pop("group")
    teams = [{"variant": "A", "policy": "old@2"}, {"variant": "B", "policy": "new@2"}]
    answer = {
        "experiment": "rank", "interleave": ["old@2", "new@2"], "variants": teams, "differences": [row], "guards": [],
        "sample_ratio": {"p_value": 0.5}, "unit_differences": [], "metric": [], "unit": "user",
    }  # fmt: skip
    assert experiment_sentences(answer) == ["B (new@2) is better than A (old@2): +10 % [+5.0, +15] credit per decision"]


def test_an_answer_says_that_few_units_count() -> None:
    """A headline on the fourth of the users whose rewards are complete is not one on all of them."""
    rows = [{"metric": "visits", "reward": None, "units": 50}] * 2
    for complete, more in ((46, []), (20, ["only 40 of 100 users count in this: the rewards of the others are not"])):
        units = {"costly": 10, "default": complete}  # the first decides nothing
        earned = [{"metric": "reward_per_unit", "reward": name, "units": units[name]} for name in units] * 2
        _, *texts = conclusion(difference("reward_per_unit", "better", 0.2), outcomes=[*rows, *earned]).split("\n")
        assert [text.removesuffix(" complete yet") for text in texts] == more


def test_a_belief_says_where_its_means_come_from() -> None:
    arms = [{"mean": 0.5, "status": "active", "pulls": pulls} for pulls in (0, 0, 9)]
    belief = {"arms": arms[:2], "has_prior": True, "status": "frozen"}
    end = "mean, lower and upper are those of the prior that was given"
    assert prior_sentences(belief) == [f"nothing was learned, as this version is frozen: {end}"]
    assert prior_sentences({**belief, "status": "learning"}) == [f"nothing was learned yet: {end}"]
    assert prior_sentences({**belief, "arms": arms, "has_prior": False}) == [
        "mean, lower and upper include the prior; those of 2 arms without pulls are the prior's"
    ]
    assert prior_sentences({**belief, "arms": arms[2:], "has_prior": False}) == []


def test_where_age_matters_a_command_compares_at_equal_age() -> None:
    young = [difference("reward_per_unit", "unknown", 0.2, reward=name, reasons=["young-units"]) for name in ("a", "b")]
    answer = {"experiment": "ab", "unit": "user", "unit_differences": young, "equal_age_days": 7}
    command = "rlrec outcomes --experiment ab --age 7d --reward a --reward b"
    clause = "compares users at equal age, over their first week"
    assert equal_ages(answer) == [f"`{command}` {clause}"]
    assert equal_ages(answer, quoted_options(log="since=2026-01-08", against="a b")) == [
        f"`{command} --log since=2026-01-08 --against 'a b'` {clause}"
    ]
    assert equal_ages({**answer, "unit_differences": [difference("reward_per_unit", "better", 0.2)]}) == []
    (early,) = equal_ages({**answer, "equal_age_days": 2})
    assert early == f"`{command.replace('7d', '2d')}` compares users at equal age, over their first 2 days"
    assert equal_ages({**answer, "equal_age_days": 0}) == []  # nobody would be old enough


def test_what_may_still_turn_is_said_once_in_a_line() -> None:
    young = [f"b earned {word} than a so far; {YOUNG}" for word in ("more", "less")]
    assert join_doubts([*young, "c"]) == f"b earned more than a so far; b earned less than a so far; c; {YOUNG}"
    assert join_doubts(["c", "d"]) == "c; d"


def test_newer_units_are_compared_from_the_time_when_a_difference_turned() -> None:
    turned = difference("reward_per_unit", "unknown", 0.2, reasons=["turned"]) | {"turned_at": "2026-01-04T00:00:00Z"}
    answer = {"experiment": "ab", "unit": "user", "unit_differences": [turned], "equal_age_days": 7}
    (line,) = equal_ages(answer, quoted_options(log="country=at"))
    command = "rlrec outcomes --experiment ab --entered-since 2026-01-04T00:00:00Z --reward default --log country=at"
    assert line == f"`{command}` compares the users that came since"
    assert equal_ages({**answer, "unit_differences": [difference("visits", "unknown", 0.2)]}) == []


def test_a_gain_that_costs_visits_says_so() -> None:
    earned, visits = difference("reward_per_unit", "better", 0.2), difference("visits", "worse", -0.12)
    clause = "; but it brings people back less often: -12 % visits per user so far"
    assert conclusion(earned, visits).endswith(clause)
    assert clause not in conclusion(earned, {**visits, "answer": "unknown", "reasons": ["sample-ratio"]})
    assert clause in conclusion(earned, {**visits, "answer": "unknown", "reasons": ["young-units"]})
    assert clause in conclusion(earned, {**visits, "answer": "unknown", "reasons": ["other-metric"]})
    assert clause not in conclusion(earned, {**visits, "answer": "unknown", "reasons": ["young-units"], "upper": 0.1})
    assert clause in conclusion({**earned, "answer": "unknown"}, visits)
    assert clause not in conclusion({**earned, "answer": "unknown"}, {**visits, "answer": "unknown"})
    assert clause not in conclusion({**earned, "answer": "worse"}, visits)
    (over_first_days,) = earned_sentences([earned], [earned, visits], "user", equal_ages=True)
    assert over_first_days.endswith(clause.removesuffix(" so far"))


def test_a_declared_metric_is_named_and_so_are_guards_that_do_not_hold() -> None:
    names = {"metric": "visits", "reward": None}
    answer = {
        "experiment": "ab", "unit": "user", "unit_differences": [difference("visits", "better", 0.2, reward=None)],
        "differences": [], "sample_ratio": {"chi2": 1.0, "p_value": 0.5}, "metric": [names], "guards": [],
    }  # fmt: skip
    assert experiment_sentences(answer) == ["new is better than old: +20 % [+15, +25] visits per user"]
    early = difference("visits", "unknown", 0.2, reasons=["few-clusters"], reward=None)
    assert experiment_sentences({**answer, "unit_differences": [early]}) == [
        "new: too early to say whether it is better or worse than old, visits per user (nothing is said before 100 "
        "users, 50 of each side, and 20 of them with a reward)"
    ]
    early |= {"shortage": 74, "share": 0.5}  # of four variants, say
    for pace, ending in {10: "15 days of this traffic)", 0: "nobody new comes)"}.items():
        short = {**answer, "unit_differences": [early], "new_units_per_day": pace}
        (sentence,) = experiment_sentences(short)
        assert sentence.endswith(f"20 of them with a reward; about 150 more users, {ending}")
        assert ("in reasonable time" in sentence) == (pace == 0)
    needing = difference("visits", "unknown", 0.2, reward=None) | {"needed": 500}
    for days, wait in {8: "8 days of this traffic", None: "nobody new comes"}.items():
        waiting = {**answer, "unit_differences": [needing | {"needed_days": days}]}
        (sentence,) = experiment_sentences(waiting)
        assert f"about a 50 % chance of an answer after 500 more users ({wait})" in sentence
        assert ("in reasonable time" in sentence) == (days is None)
    guard: dict[str, Any] = {**names, "group": "new", "against": "old", "least": -0.05, "relative": -0.2, "lower": -0.3,
             "upper": -0.1, "answer": "lost", "reasons": []}  # fmt: skip
    unsure = {**guard, "metric": "reward_per_unit", "reward": "loyal", "upper": 0.01, "answer": "unknown"}
    assert experiment_sentences({**answer, "guards": [guard, unsure, {**guard, "answer": "holds"}]}) == [
        "new breaks a guard: -20 % visits per user, at best -10 %, where -5 % is allowed",
        "new is better than old: +20 % [+15, +25] visits per user",
        "new: cannot tell yet whether reward per user by loyal fell by more than 5 %: -20 % so far, at worst -30 %",
    ]


def test_young_units_bound_nothing() -> None:
    guard: dict[str, Any] = {
        "metric": "visits", "reward": None, "group": "new", "against": "old", "least": -0.05, "relative": 0.017,
        "lower": -0.047, "upper": 0.1, "answer": "unknown", "reasons": ["young-units"],
    }  # fmt: skip
    text = conclusion(guards=[guard])
    assert text.startswith("new: cannot tell yet whether visits per user fell by more than 5 %: +1.7 % so far (young-")
    assert ("at worst" in text, "the time that people have" in text) == (False, True)


def test_an_arm_that_earns_less_than_the_average_now_is_no_bait() -> None:
    """However good its rank is: of many arms most may have been shown next to never."""
    rows = [
        {"arm": f"a{rank}", "now": 0.3 - 0.2 * rank, "rank_now": rank, "shrunk": -0.1 * rank, "shrunk_sd": 0.01,
         "shrunk_lower": -0.1 * rank - 0.02, "shrunk_upper": -0.1 * rank + 0.02}
        for rank in range(1, 9)
    ]  # fmt: skip
    assert effect_sentence(rows).startswith("a1 earns much now (rank 1 of 8) and costs in the long run")
    rows[0]["now"] = -0.01
    assert effect_sentence(rows).startswith("a8 costs in the long run")


def test_a_group_claims_only_what_its_own_pages_say() -> None:
    """Its posterior is drawn towards all groups, and would repeat what they say where it has no look at the arm."""
    row: dict[str, Any] = {
        "arm": "a1", "rank_now": 8, "shrunk": -0.2, "shrunk_sd": 0.02, "shrunk_lower": -0.24, "shrunk_upper": -0.16,
        "now": -0.1, "long_run": -0.1, "lower": -0.4, "upper": 0.2,
    }  # fmt: skip
    start, ending = "its own pages cannot tell whether a1 adds or costs", "; `rlrec effects` tells of all"
    assert effect_sentence([row], has_groups=True) == f"{start} (-0.1 a look [-0.4, +0.2]){ending}"
    unseen = row | dict.fromkeys(("now", "long_run", "lower", "upper"))
    assert effect_sentence([unseen], has_groups=True) == f"{start} (no estimate){ending}"
    assert effect_sentence([row | {"upper": -0.01}], has_groups=True).startswith("a1 costs in the long run")
    assert effect_sentence([row]).startswith("a1 costs in the long run")
    assert "none surely adds" in effect_sentence([row | {"retired": True}])


def test_rewards_that_disagree_and_a_split_that_is_wrong_are_no_advice() -> None:
    rows = difference("reward_per_unit", "better", 0.2), difference("reward_per_unit", "worse", -0.2, reward="costly")
    better, worse, advice = conclusion(*rows).split("\n")
    assert (better.endswith(" per user by reward default"), worse.endswith(" per user by costly")) == (True, True)
    assert advice == "new: the rewards disagree, decide by the one that you want"
    assert conclusion(*rows, p_value=1e-4) == "The split of ab is not as defined: do not trust its differences."


# -- more, less or equal: one rule for every sentence about a difference --


@pytest.mark.parametrize(
    ("lower", "upper", "sign"),
    [
        (0.1, 0.2, "more"), (0.1, None, "more"), (-0.2, -0.1, "less"), (None, -0.1, "less"), (-0.1, 0.1, "unsure"),
        (0.0, 0.0, "equal"), (1e-15, 2e-15, "equal"), (-2e-15, -1e-15, "equal"), (1e-15, 0.1, "unsure"),
        (None, 0.0, "unsure"), (0.0, None, "unsure"), (None, None, "unsure"),
    ],
)  # fmt: skip
def test_what_is_within_rounding_is_equal(lower: float | None, upper: float | None, sign: str) -> None:
    assert direction(lower, upper, tolerance=rounding(0.3, None)) == sign


def test_rounding_is_that_of_the_figures_compared() -> None:
    row = {"value": 1e-4, "relative": 1e-10, "lower": 5e-5, "upper": 2e-4}  # of a mean of a million
    assert difference_direction(row) == "equal"
    assert difference_direction({**row, "relative": 0.1}) == "more"


def test_no_time_is_told_as_none() -> None:
    assert [time_text(seconds / 86_400) for seconds in (1, 80, 5_399, 5_400, 90_000, 200_000)] == [
        "1 minute", "1 minute", "90 minutes", "2 hours", "25 hours", "2 days",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("days", "ending"),
    [
        ((30.0, 92.0, 33.0), "; 33 days are still to come"), ((200.0, 400.0, 380.0), "; this traffic does not tell it"),
        ((30.0, 92.0, None), "at any number of looks"), ((200.0, 400.0, 20.0), "; 20 days are still to come"),
    ],
)  # fmt: skip
def test_a_plan_is_hopeless_where_no_look_comes_in_time(days: Sequence[float], ending: str) -> None:
    fixed, sequential, left = days
    assumed = {"power": 0.8, "lift": 0.1, "metric": "visits", "unit": "user"}
    plan = {"assumed": assumed, "total": 1_105, "total_sequential": 1_962, "days": fixed, "days_left": left}
    sentence = plan_sentence({**plan, "days_sequential": sequential})
    assert sentence.removesuffix(" in reasonable time").endswith(ending)


def test_a_holdout_names_the_gain_by_each_reward() -> None:
    """What earns more clicks may earn fewer returns."""
    rows = [
        difference("reward_per_unit", "better", 0.5), difference("reward_per_unit", "unknown", -0.1, reward="durable"),
        difference("visits", "unknown", -0.06, reasons=[]),
    ]  # fmt: skip
    answer = {"route": "home", "unit": "user", "unit_differences": rows, "sample_ratio": {"p_value": 0.5}}
    (sentence, *_) = experiment_sentences({"experiment": "h", "status": "running", "variants": [], **answer})
    assert sentence.startswith("home against its holdout: default +50 % [+45, +55] a user, durable -10 % [-15, -5.0], ")
