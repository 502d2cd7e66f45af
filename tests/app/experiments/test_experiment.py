"""Experiments: forked beliefs, sticky assignment, and intervals that hold what they say."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.experiments import compare, experiment
from rlrec.app.experiments.experiment import Request, VariantSpec
from rlrec.app.policies import policy
from rlrec.app.requests import feedback, recommend, user
from rlrec.app.serving import assignment
from rlrec.app.setup.init import init
from rlrec.errors import InputError
from rlrec.store import Store
from rlrec.store.policies import arms, beliefs, experiments, policies
from tests.app.conftest import MINUTE, START, Clocked
from tests.conftest import ON_BOTH


def ask(store: Store, session: str, **wanted: Any) -> Any:
    return recommend.recommend(store, recommend.Request(session=session, **wanted))


def ask_all(store: Store, *sessions: str, users: Sequence[str] | None = None, **wanted: Any) -> Any:
    """One group: a decision a session; users, one a session."""
    names: Sequence[str | None] = users or [None] * len(sessions)
    lines = [recommend.Request(session=key, user=user, **wanted) for key, user in zip(sessions, names, strict=True)]
    return recommend.recommend_group(store, lines)


def click(store: Store, *decision_ids: Any, **more: Any) -> None:
    lines = [feedback.Line(decision_id=number, events={"click": 1.0}, **more) for number in decision_ids]
    feedback.feedback_stream(store, lambda: [lines], quarantine=False, reject=print)


def ids(answers: Any) -> Any:
    return [answer["decision_id"] for answer in answers]


def split(store: Store, *variants: Any, by: str = "session", name: str = "ab") -> Any:
    options = variants or (VariantSpec(label="a", policy="ts"), VariantSpec(label="b", policy="u"))
    return experiment.create(store, Request(name=name, variants=options, by=by))


def pulls(store: Store, name: str) -> Any:
    with store.read() as unit:
        version, _ = policies.live(unit, [name])[name]
        return sum(row[1] for row in beliefs.sums(unit, version.id))


# -- beliefs --


def test_variant_starts_without_immature_slots(at: Clocked) -> None:
    ask(at(0), "old", policy="ts", size=2)
    ask(at(40), "young", policy="ts")
    split(at(45))
    assert pulls(at(45), "ts") == 3
    assert pulls(at(45), "ts@ab/a") == 2


def test_variants_teach_themselves_alone(at: Clocked) -> None:
    split(at(0), VariantSpec(label="a", policy="ts"), VariantSpec(label="b", policy="ts"))
    answers = ask_all(at(1), *map(str, range(12)), experiment="ab")
    shown = [sum(answer["variant"] == label for answer in answers) for label in "ab"]
    assert [pulls(at(1), "ts"), pulls(at(1), "ts@ab/a"), pulls(at(1), "ts@ab/b")] == [0, *shown]


def test_events_of_decisions_before_the_fork_teach_the_policy(at: Clocked) -> None:
    before = ask(at(0), "s", policy="ts")["decision_id"]
    split(at(40))
    with at(41).read() as unit:
        fork = beliefs.sums(unit, policies.live(unit, ["ts@ab/a"])["ts@ab/a"][0].id)
    click(at(41), before)
    with at(42).read() as unit:
        live = {name: version for name, (version, _) in policies.live(unit, ["ts", "ts@ab/a"]).items()}
        assert beliefs.sums(unit, live["ts@ab/a"].id) == fork
        assert sum(row[2] for row in beliefs.sums(unit, live["ts"].id)) == 1


def test_variant_is_a_policy_with_the_number_of_its_version(at: Clocked) -> None:
    split(at(0))
    with at(0).read() as unit:
        version, head = policies.live(unit, ["ts@ab/a"])["ts@ab/a"]
        parent, _ = policies.live(unit, ["ts"])["ts"]
    assert (version.number, version.parent_id, version.policy.base, head.seq) == (1, parent.id, "ts", 0)
    assert ask(at(0), "s", experiment="ab")["policy"] in ("ts@ab/a", "u@ab/b")


def test_pinned_version_is_served_as_it_stands(at: Clocked) -> None:
    from rlrec.app.policies import versions

    ask(at(0), "old", policy="ts")
    versions.freeze(at(40), "ts")
    split(at(41), VariantSpec(label="a", policy="ts@2"), VariantSpec(label="b", policy="ts@2"))
    assert ask(at(42), "s", experiment="ab")["version"] == 2
    assert pulls(at(43), "ts@ab/a") == pulls(at(43), "ts@ab/b") == 1


def test_settled_reward_waits_in_a_variant_too(at: Clocked) -> None:
    from rlrec.app.setup import reward

    reward.define(at(0), reward.Request(name="buy", weights="buy=1", clip=(0.0, 1.0), learn="settled"))
    policy.create(at(0), policy.Request(name="slow", kind="thompson", reward="buy"))
    ask(at(0), "old", policy="slow")
    split(at(40), VariantSpec(label="a", policy="slow"), VariantSpec(label="b", policy="slow"))
    assert pulls(at(40), "slow@ab/a") == 1  # overdue, though nobody has settled it
    answer = ask(at(41), "s", experiment="ab")
    assert pulls(at(41), f"slow@ab/{answer['variant']}") == 1
    click(at(80), answer["decision_id"])  # any writing command of the policy lets it in
    assert pulls(at(80), f"slow@ab/{answer['variant']}") == 2


# -- definition --


def test_an_impossible_experiment_leaves_nothing(at: Clocked) -> None:
    """The label of a log draws nothing; others: tests/cli/commands/experiments/test_experiment.py."""
    policy.create(at(0), policy.Request(name="log", kind="logged"))
    with pytest.raises(InputError):
        split(at(0), VariantSpec(label="a", policy="ts"), VariantSpec(label="b", policy="log"))
    with at(0).read() as unit:
        assert experiments.all_experiments(unit) == []
        assert all("@" not in item.name for item in policies.all_policies(unit))


# -- assignment --


def test_session_keeps_its_variant(at: Clocked) -> None:
    split(at(0))
    keys = [f"s{n}" for n in range(40)]
    first, again = ([item["variant"] for item in ask_all(at(t), *keys, experiment="ab")] for t in (1, 50))
    assert again == first
    assert len(set(first)) == 2


def test_user_keeps_one_variant_over_sessions_and_sessions_inherit_the_user(at: Clocked) -> None:
    split(at(0), by="user")
    answers = (
        ask_all(at(1), *"abcdefgh", users="stuvwxyz", experiment="ab"),
        ask_all(at(2), *"ABCDEFGH", users="stuvwxyz", experiment="ab"),
        ask_all(at(3), *"abcdefgh", experiment="ab"),
    )
    first, elsewhere, inherited = ([item["variant"] for item in group] for group in answers)
    assert first == elsewhere == inherited
    with pytest.raises(InputError, match="assigns by user"):
        ask(at(3), "nobody", experiment="ab")


def test_line_of_a_group_inherits_the_user_of_an_earlier_one(at: Clocked) -> None:
    split(at(0), by="user")
    lines = [recommend.Request(session="s", experiment="ab", user=user) for user in ("u", None)]
    first, second = recommend.recommend_group(at(1), lines)
    assert (second["user"], second["variant"], second["step"]) == ("u", first["variant"], 1)


def test_shares_follow_the_weights(at: Clocked) -> None:
    split(at(0), VariantSpec(label="a", policy="u", weight=1.0), VariantSpec(label="b", policy="u", weight=3.0))
    labels = [answer["variant"] for answer in ask_all(at(1), *map(str, range(400)), experiment="ab")]
    units = compare.show(at(1), "ab")["variants"]
    assert [row["units"] for row in units] == [labels.count("a"), labels.count("b")]
    assert [row["weight"] for row in units] == [0.25, 0.75]
    assert compare.show(at(1), "ab")["sample_ratio"]["p_value"] > 1e-6


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_a_holdout_has_its_share_of_all_units_and_the_others_their_weights(at: Clocked, share: Any) -> None:
    """100,000 hashed units. False alarm: each of six counts lies within 4.5 standard errors but for 7 in a million."""
    variants = VariantSpec(label="a", policy="ts"), VariantSpec(label="b", policy="u", weight=3.0)
    experiment.create(at(0), Request(name="ab", variants=variants, holdout=share))
    with at(0).read() as unit:
        ab = experiments.by_name(unit, ["ab"])["ab"]
    counts = Counter(assignment.hash_variant(ab, f"u{n}").label for n in range(100_000))
    for label, expected in {"a": (1 - share) / 4, "b": (1 - share) * 3 / 4, "holdout": share}.items():
        assert abs(counts[label] - 1e5 * expected) < 4.5 * np.sqrt(1e5 * expected * (1 - expected))


@ON_BOTH
def test_a_holdout_is_uniform_whatever_policy_has_that_name(at: Clocked) -> None:
    policy.create(at(0), policy.Request(name="uniform", kind="thompson"))
    experiment.create(
        at(0), Request(name="ab", variants=[VariantSpec(label="a", policy="uniform")], by="session", holdout=0.5)
    )
    answers = ask_all(at(1), *map(str, range(40)), experiment="ab")
    assert {answer["variant"] for answer in answers} == {"a", "holdout"}
    with at(1).read() as unit:
        assert policies.by_name(unit, "uniform@ab/holdout").kind == "uniform"


def test_a_holdout_cannot_be_given_another_version(at: Clocked) -> None:
    from rlrec.app.policies import versions

    experiment.create(at(0), Request(name="ab", variants=[VariantSpec(label="a", policy="ts")], holdout=0.5))
    versions.freeze(at(1), "uniform@ab/holdout")
    with pytest.raises(InputError, match="variant of the running experiment"):
        versions.promote(at(1), "uniform@ab/holdout@2")


def test_a_variant_named_as_the_holdout_is_refused(at: Clocked) -> None:
    variants = VariantSpec(label="a", policy="ts"), VariantSpec(label="holdout", policy="u")
    with pytest.raises(InputError, match="two variants are named holdout"):
        experiment.create(at(0), Request(name="ab", variants=variants, holdout=0.1))
    assert experiment.create(at(0), Request(name="ab", variants=variants))["created"]
    assert compare.show(at(0), "ab")["holdout"] is None


# -- what it found --


def test_figures_come_from_mature_events_inside_the_window(at: Clocked) -> None:
    split(at(0), VariantSpec(label="a", policy="u"), VariantSpec(label="b", policy="u"), by="user")
    sessions, users = [f"s{n}" for n in range(80)], [f"u{n // 2}" for n in range(80)]
    answers = ask_all(at(1), *sessions, users=users, experiment="ab")
    click(at(2), *ids(answers[::4]))
    click(at(60), answers[1]["decision_id"])  # too late to count
    ask(at(61), "young", user="u0", experiment="ab")
    result = compare.show(at(62), "ab")
    for row in result["variants"]:
        selected = [n for n, answer in enumerate(answers) if answer["variant"] == row["variant"]]
        clicks = sum(n % 4 == 0 for n in selected)
        assert (row["units"], row["sessions"], row["decisions"]) == (len(selected) // 2, len(selected), len(selected))
        assert row["mean"] == pytest.approx(clicks / len(selected))
        assert row["reward_per_unit"] == pytest.approx(2 * clicks / len(selected))
        assert row["lower"] < row["mean"] < row["upper"]


def test_page_reward_counts_page_events_and_slots_that_are_not_censored(at: Clocked) -> None:
    split(at(0), VariantSpec(label="a", policy="u"), VariantSpec(label="b", policy="u"))
    shown = ids(ask_all(at(1), *map(str, range(20)), experiment="ab", size=2))
    click(at(2), *shown, position=1)
    click(at(2), *shown)
    click(at(2), *shown[:2], position=2)
    lines = [
        feedback.Line(decision_id=shown[0], position=2, censor=True),
        feedback.Line(decision_id=shown[1], censor=True),
    ]
    for line in lines:  # of a page whose slots are all censored the visit counts, and no reward
        feedback.feedback(at(3), line)
    result = compare.show(at(60), "ab")
    assert {row["mean"] for row in result["variants"]} == {2.0}
    assert sum(row["decisions"] for row in result["variants"]) == 19
    assert sum(row["units"] for row in result["outcomes"] if row["metric"] == "visits") == 20
    assert all(row["lower"] is None for row in result["variants"])  # no variation seen is no certainty


def test_experiment_without_decisions_has_figures_of_nothing(at: Clocked) -> None:
    split(at(0))
    result = compare.show(at(1), "ab")
    assert json.dumps(result, allow_nan=False)
    assert result["sample_ratio"] == {"chi2": None, "p_value": None}
    assert result["holdout"] is None
    figures = dict.fromkeys(("value", "relative", "lower", "upper", "p_value", "needed", "shortage"))
    nothing = {"reasons": ["no-units"], "answer": "unknown", **figures}
    assert result["differences"] == [{"variant": "b", "against": "a", **nothing}]


def test_a_holdout_without_decisions_has_no_figures(at: Clocked) -> None:
    experiment.create(at(0), Request(name="ab", variants=[VariantSpec(label="a", policy="ts")], holdout=0.01))
    result = compare.show(at(1), "ab")["holdout"]
    assert (result["share"], result["verdict"], result["reasons"]) == (0.01, "insufficient", ["no-rows"])
    assert {result[name] for name in ("value", "estimate", "difference", "p_value")} == {None}


def test_batches_add_up_to_the_whole(at: Clocked, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlrec.store.log import reader

    split(at(0), by="user")
    sessions, users = [f"s{n}" for n in range(30)], [f"u{n % 7}" for n in range(30)]
    click(at(2), *ids(ask_all(at(1), *sessions, users=users, experiment="ab")[::3]))
    complete = compare.show(at(60), "ab")
    monkeypatch.setattr(reader.batches, "__kwdefaults__", {**(reader.batches.__kwdefaults__ or {}), "size": 4})
    assert compare.show(at(60), "ab") == complete


@pytest.mark.parametrize(("counts", "answer"), [((80, 80), "better"), ((120, 52), "unknown")])
def test_a_split_that_is_not_as_defined_answers_nothing(at: Clocked, counts: tuple[int, int], answer: str) -> None:
    """Sessions of `b` get a click in four of five, those of `a` in one of five. 120 of 172 units in one half come
    about once in 5,000,000 splits."""
    split(at(0))
    with at(1).read() as unit:
        stored = experiments.by_name(unit, ["ab"])["ab"]
    of_variant = [[f"s{n}" for n in range(300) if assignment.hash_variant(stored, f"s{n}").label == v] for v in "ab"]
    for keys, count, least in zip(of_variant, counts, (4, 1), strict=True):
        answers = ask_all(at(1), *keys[:count], experiment="ab")
        click(at(2), *[key for number, key in enumerate(ids(answers)) if number % 5 >= least])
    result = compare.show(at(60), "ab")
    (earned,) = [row for row in result["unit_differences"] if row["metric"] == "reward_per_unit"]
    assert earned["lower"] > 0
    assert [earned["answer"], result["differences"][0]["answer"]] == [answer, answer]
    assert ("sample-ratio" in earned["reasons"]) == (answer == "unknown")
    assert earned["needed"] is None


@pytest.mark.parametrize(("merges", "answer"), [(5, "better"), (20, "unknown")])
def test_persons_who_had_two_variants_hide_a_part_of_the_difference(at: Clocked, merges: int, answer: str) -> None:
    """Of 160 users, those of `b` click in four of five decisions; some are merged with one of the other variant."""
    split(at(0), by="user")
    with at(1).read() as unit:
        stored = experiments.by_name(unit, ["ab"])["ab"]
    users = [f"u{n}" for n in range(240)]
    assigned_users = [
        [key for key in users if assignment.hash_variant(stored, key).label == label][:80] for label in "ab"
    ]
    for label, keys in zip("ab", assigned_users, strict=True):
        answers = ask_all(at(1), *(f"{key}s" for key in keys), users=keys, experiment="ab")
        click(at(2), *[key for number, key in enumerate(ids(answers)) if number % 5 >= (1 if label == "b" else 4)])
    for left, right in list(zip(*assigned_users, strict=True))[:merges]:
        user.merge(at(3), left, right)
    result = compare.show(at(60), "ab")
    (earned,) = [row for row in result["unit_differences"] if row["metric"] == "reward_per_unit"]
    assert earned["lower"] > 0
    assert ("mixed-units" in earned["reasons"], earned["answer"]) == (answer == "unknown", answer)


# -- false alarms --


def test_a_true_difference_is_found_and_covered(tmp_path: Path) -> None:
    """One experiment through the store: 300 users, click rates .1 and .4. False alarm: one in 10,000."""
    with closing(Store(str(tmp_path / "x.db"), now=START)) as store:
        init(store)
        store.write(lambda unit: arms.put(unit, {"bad": "{}", "good": "{}"}))
        for name, share in (("dull", 0.0), ("keen", 1.0)):
            table = tmp_path / f"{name}.csv"
            table.write_text(f"arm,probability\nbad,{1 - share}\ngood,{share}\n")
            options = {"probabilities": str(table), "floor": "0.1"}
            policy.create(store, policy.Request(name=name, kind="fixed", parameters=options))
        split(store, VariantSpec(label="a", policy="dull"), VariantSpec(label="b", policy="keen"), by="user")
        sessions, users = [f"s{n}" for n in range(900)], [f"u{n % 300}" for n in range(900)]
        rng = np.random.default_rng(7)
        answers = ask_all(store, *sessions, users=users, experiment="ab")
        rates = [{"bad": 0.1, "good": 0.4}[answer["slate"][0]["arm"]] for answer in answers]
        click(store, *np.array(ids(answers))[rng.random(900) < rates].tolist())
    with closing(Store(str(tmp_path / "x.db"), now=START + 60 * MINUTE)) as later:
        answer = compare.show(later, "ab", level=0.9999)
    result, (earned,) = (
        answer["differences"][0],
        [row for row in answer["unit_differences"] if row["p_value"] is not None],
    )
    assert (earned["metric"], earned["answer"], result["p_value"]) == ("reward_per_unit", "better", None)
    assert earned["p_value"] < 1e-6
    assert result["lower"] < 0.9 * 0.3 < result["upper"]  # the floor shows either arm in one of ten


@pytest.fixture
def held_out(tmp_path: Path) -> Iterator[Any]:
    """A store an hour after an experiment of 4,000 sessions, 30 % of them held out of thompson, and the holdout's mean.
    Three arms of mean .4; the best one of .8."""
    rates, path = {"bad": 0.1, "fair": 0.3, "good": 0.8}, str(tmp_path / "x.db")
    with closing(Store(path, now=START)) as store:
        init(store)
        store.write(lambda unit: arms.put(unit, dict.fromkeys(rates, "{}")))
        policy.create(store, policy.Request(name="ts", kind="thompson", parameters={"floor": "0.2"}))
        options = Request(name="ab", variants=[VariantSpec(label="a", policy="ts")], by="session", holdout=0.3)
        experiment.create(store, options)
        rng, held = np.random.default_rng(5), []
        for group in range(8):
            answers = ask_all(store, *(f"{group}-{n}" for n in range(500)), experiment="ab")
            clicks = rng.random(500) < [rates[answer["slate"][0]["arm"]] for answer in answers]
            held += [won for won, answer in zip(clicks, answers, strict=True) if answer["variant"] == "holdout"]
            click(store, *np.array(ids(answers))[clicks].tolist())
    with closing(Store(path, now=START + 60 * MINUTE)) as later:
        yield later, np.mean(held)


@pytest.mark.slow
def test_what_a_holdout_earned_is_what_was_estimated(held_out: Any) -> None:
    """False alarm: three in 10,000."""
    store, mean = held_out
    result = compare.show(store, "ab", level=0.9999)["holdout"]
    assert result["value"] == pytest.approx(mean)
    assert result["lower"] < 0.4 < result["upper"]
    assert result["estimate_lower"] < 0.4 < result["estimate_upper"]
    assert result["p_value"] > 1e-4
    assert result["verdict"] in ("ok", "weak")


@pytest.mark.slow
def test_propensities_that_are_wrong_are_found_by_the_holdout(held_out: Any) -> None:
    """As if the best arm, shown nearly always, had been logged with a third. False alarm: below one in a million."""
    store, _ = held_out
    third = "UPDATE slot SET propensity = 0.34, marginal = 0.34, min_propensity = 0.1 WHERE propensity <> ?"
    store.write(lambda unit: unit.tell(third, 1 / 3))
    assert compare.show(store, "ab")["holdout"]["p_value"] < 1e-6
