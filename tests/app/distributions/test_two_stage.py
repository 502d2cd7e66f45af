"""Two stages through the store: lists and slates as they are logged, learned from, judged and checked."""

from __future__ import annotations

import json
import random
import sqlite3
from contextlib import closing
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from tests.app.shop import fixed
from tests.conftest import ON_BOTH, Run, click_events, empty_store, runner

ARMS = "abcdef"
RATES = dict(zip(ARMS, (0.7, 0.5, 0.4, 0.3, 0.2, 0.1), strict=True))
LEANING = {"a": 0.3, "b": 0.2, "c": 0.2, "d": 0.1, "e": 0.1, "f": 0.1}
Answers = list[dict[str, Any]]


def created(run: Run, name: str, *words: object, first: str = "uniform", second: str = "uniform") -> None:
    stages = ["--param", f"first={first}", "--param", f"second={second}", "--param", "candidates=3"]
    run("policy", "create", name, "--kind", "two-stage", *stages, *words).done()


def with_arms(run: Run) -> Run:
    run("arm", "import", "-", stdin=[{"arm": arm} for arm in ARMS]).done()
    return run


@pytest.fixture
def kiosk(run: Run) -> Run:
    return with_arms(run)


def served(run: Run, policy: str, *, n: int = 60, k: int = 2, groups: int = 1, seed: int = 1) -> Answers:
    """Answers with clicks by the rates of the arms; a click of a slot is in `clicked`."""
    rng, answers = random.Random(seed), Answers()
    for group in range(groups):
        options = [{"policy": policy, "session": f"s{seed}-{group}-{row}", "k": k} for row in range(n // groups)]
        result = run("recommend", "--input", "-", "--format", "ndjson", "--seed", seed + group, stdin=options).done()
        for answer in result.lines:
            slots = [slot | {"clicked": rng.random() < RATES[slot["arm"]]} for slot in answer["slate"]]
            answers.append(answer | {"slate": slots})
        clicks = click_events(answers[-len(result.lines) :], lambda slot: slot["clicked"])
        run("feedback", "--input", "-", stdin=clicks).done()
    return answers


def race(weights: dict[str, float], left: str | list[str], arms: list[str]) -> float:
    """Probability of arms in this order, each by its weight among those left."""
    chance, options = 1.0, list(left)
    for arm in arms:
        chance *= weights[arm] / sum(weights[other] for other in options)
        options.remove(arm)
    return chance


def at_position(weights: dict[str, float], listed: list[str], arm: str, position: int) -> float:
    slates = (list(slate) for slate in permutations(listed, position) if slate[-1] == arm)
    return sum(race(weights, listed, slate) for slate in slates)


def judged(run: Run, target: str, *words: object) -> dict[str, Any]:
    later = ("--now", "2030-01-01T00:00:00Z")
    rows: list[dict[str, Any]] = run(*later, "evaluate", target, "--estimator", "ips", "--json", *words).done().json
    return rows[0]


@pytest.fixture
def leaning(tmp_path: Any) -> str:
    path = tmp_path / "leaning.csv"
    path.write_text("arm,probability\n" + "".join(f"{arm},{share}\n" for arm, share in LEANING.items()))
    return str(path)


# -- serving --


@ON_BOTH
def test_a_list_and_its_slate_are_logged_with_their_propensities(kiosk: Run) -> None:
    created(kiosk, "p", first="plackett-luce", second="thompson")
    words = ("recommend", "--policy", "p", "--session", "s", "-k", "2", "--seed", "3", "--request-id", "r", "--json")
    dry = kiosk(*words[:-3], "--dry-run", "--json").done().json
    answer = kiosk(*words).done().json
    assert [entry["propensity"] for entry in answer["candidates"]] == pytest.approx([1 / 6, 1 / 5, 1 / 4])
    assert answer["candidates_log_propensity"] == pytest.approx(-4.78749174)
    listed = [entry["arm"] for entry in answer["candidates"]]
    assert all(slot["arm"] in listed for slot in answer["slate"])
    assert [slot["propensity"] for slot in answer["slate"]] == pytest.approx([1 / 3, 1 / 2])
    assert dry["candidates"] == answer["candidates"]
    assert kiosk(*words).done().json == answer | {"duplicate": True}
    shown = kiosk("decision", "show", answer["decision_id"], "--json").done().json
    assert (shown["candidates"], shown["eligible"], shown["agrees"]) == (answer["candidates"], 3, True)
    kiosk("feedback", answer["decision_id"], "click", "--position", 2).done()
    assert kiosk("doctor", "--json").done().json["ok"]
    assert judged(kiosk, "uniform")["n"] == 2


@pytest.mark.slow
def test_both_beliefs_learn_and_the_log_is_sound(kiosk: Run) -> None:
    params = ("--param", "first.floor=0.1", "--param", "second.floor=0.1", "--param", "discount=0.99")
    created(kiosk, "p", *params, first="plackett-luce", second="thompson")
    answers = served(kiosk, "p", n=120, groups=6)
    late = answers[-20:]
    assert all(abs(entry["propensity"] - 1 / 6) > 1e-3 for answer in late for entry in answer["candidates"][:1])
    assert any(abs(slot["propensity"] - 1 / 3) > 1e-2 for answer in late for slot in answer["slate"][:1])
    first = [sum(answer["candidates"][number]["arm"] == "a" for number in range(3) for answer in late)]
    assert first[0] > 10  # half of 20 would be chance
    assert kiosk("doctor", "--json").done().json["ok"]


def test_a_ranker_that_reads_contexts_learns_too(kiosk: Run, tmp_path: Any) -> None:
    features = tmp_path / "features.json"
    features.write_text(json.dumps({"context": {"fields": {"hour": "number"}}, "arm": {"fields": {}}}))
    created(kiosk, "p", "--features", features, first="thompson", second="lin-thompson")
    words = ("recommend", "--policy", "p", "--session", "s", "--context", '{"hour": 9}', "-k", "2", "--json")
    for seed in range(3):
        answer = kiosk(*words, "--seed", seed).done().json
        kiosk("feedback", answer["decision_id"], "click", "--position", "1").done()
    assert kiosk("decision", "show", answer["decision_id"], "--json").done().json["agrees"]
    assert kiosk("doctor", "--json").done().json["ok"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-k", "4"], "k is 4, but there are only 3 candidates"),
        (["--arms", "a,b"], "3 candidates are wanted, with only 2 arms eligible"),
        (["--arms", "a,b,c,a"], "arm 'a' is listed twice"),
    ],
)
def test_lists_and_slates_that_cannot_be_are_refused(kiosk: Run, words: list[str], says: str) -> None:
    created(kiosk, "p")
    result = kiosk("recommend", "--policy", "p", "--session", "s", "--json", *words)
    assert (result.exit_code, says in result.error["error"]) == (2, True)
    assert kiosk("session", "list", "--json").done().json == []


def test_a_list_that_is_longer_than_the_catalogue_is_the_policys_fault(kiosk: Run) -> None:
    kiosk("policy", "create", "long", "--kind", "two-stage", "--param", "candidates=9").done()
    result = kiosk("recommend", "--policy", "long", "--session", "s").failed(2)
    assert result.startswith("Error: --policy: 9 candidates are wanted, with only 6 arms eligible")


# -- judging --


def test_a_target_with_the_same_first_stage_is_weighed_given_the_list(kiosk: Run, leaning: str) -> None:
    created(kiosk, "log")
    created(kiosk, "target", "--param", f"second.probabilities={leaning}", second="fixed")
    answers = served(kiosk, "log")
    weighed = [
        at_position(LEANING, [entry["arm"] for entry in answer["candidates"]], slot["arm"], slot["position"])
        / slot["marginal"] * slot["clicked"]
        for answer in answers for slot in answer["slate"]
    ]  # fmt: skip
    row = judged(kiosk, "target")
    assert row["value"] == pytest.approx(sum(weighed) / len(weighed), abs=1e-12)
    assert "logging-candidates" not in row["reasons"]
    assert "smallest_inclusion" not in row


def test_another_first_stage_is_weighed_by_the_list_too(kiosk: Run, leaning: str) -> None:
    created(kiosk, "log")
    stages = ("--param", f"first.probabilities={leaning}", "--param", f"second.probabilities={leaning}")
    created(kiosk, "target", *stages, first="fixed", second="fixed")
    weighed = []
    for answer in served(kiosk, "log"):
        listed = [entry["arm"] for entry in answer["candidates"]]
        ratio = race(LEANING, ARMS, listed) * 6 * 5 * 4
        for slot in answer["slate"]:
            share = at_position(LEANING, listed, slot["arm"], slot["position"]) / slot["marginal"]
            weighed.append(ratio * share * slot["clicked"])
    row = judged(kiosk, "target")
    assert row["value"] == pytest.approx(sum(weighed) / len(weighed), abs=1e-12)
    assert row["smallest_inclusion"] == pytest.approx(0.5, abs=1e-12)
    for estimator in ("sips", "rips", "tis"):
        other = judged(kiosk, "target", "--estimator", estimator)
        assert other["mean_weight"] > 0


@pytest.mark.simulation
def test_the_product_of_both_finds_what_the_target_earns(kiosk: Run, leaning: str) -> None:
    """Within 4 standard errors, of clicks and of the weights."""
    created(kiosk, "log")
    stages = ("--param", f"first.probabilities={leaning}", "--param", f"second.probabilities={leaning}")
    created(kiosk, "target", *stages, first="fixed", second="fixed")
    served(kiosk, "log", n=2000, k=1)
    truth = sum(
        race(LEANING, ARMS, list(listed)) * LEANING[arm] / sum(LEANING[other] for other in listed) * RATES[arm]
        for listed in permutations(ARMS, 3) for arm in listed
    )  # fmt: skip
    row = judged(kiosk, "target", "--interval", "normal")
    assert abs(row["value"] - truth) < 4 * row["std_error"]
    assert abs(row["mean_weight"] - 1) < 0.2


def test_a_target_that_draws_from_the_catalogue_is_flagged(kiosk: Run) -> None:
    created(kiosk, "log", first="plackett-luce")
    served(kiosk, "log")
    row = judged(kiosk, "uniform")
    assert "logging-candidates" in row["reasons"]
    assert row["mean_weight"] == pytest.approx(1)  # it ranks the candidates that were drawn
    assert 0 < row["smallest_inclusion"] < 1
    result = kiosk("--now", "2030-01-01T00:00:00Z", "evaluate", "uniform", "--details")
    assert "the smallest probability with which an arm that was shown was a candidate is" in result.stdout


def test_without_samples_a_log_without_lists_judges_no_ranker_of_them(kiosk: Run) -> None:
    created(kiosk, "target")
    kiosk("policy", "create", "plain", "--kind", "uniform").done()
    served(kiosk, "plain")
    row = judged(kiosk, "target", "--target-samples", 0)
    assert "no-candidates" in row["reasons"]
    assert (row["n"], row["left_out"]) == (0, 120)


def test_exposure_counts_the_catalogue_that_candidates_are_drawn_from(kiosk: Run) -> None:
    created(kiosk, "p")
    kiosk("recommend", "--policy", "p", "--session", "s", "-k", "2").done()
    shown = kiosk("exposure", "--json").done().json
    assert shown["catalogue"]["arms"] == 6
    assert shown["catalogue"]["coverage"] == pytest.approx(2 / 6)


# -- without lists --


def chance(arms: tuple[str, ...]) -> float:
    """Probability that a target whose stages both lean shows these arms in this order, over all of its lists."""
    return sum(
        race(LEANING, ARMS, list(listed)) * race(LEANING, list(listed), list(arms))
        for listed in permutations(ARMS, 3)
        if set(arms) <= set(listed)
    )


def leaning_target(run: Run, leaning: str) -> None:
    stages = ("--param", f"first.probabilities={leaning}", "--param", f"second.probabilities={leaning}")
    created(run, "target", *stages, first="fixed", second="fixed")


def estimates(run: Run, names: str, *words: object, target: str = "target") -> list[dict[str, Any]]:
    options = ("evaluate", target, "--estimator", names, "--interval", "normal", "--json", *words)
    rows: list[dict[str, Any]] = run("--now", "2030-01-01T00:00:00Z", *options).done().json
    return rows


def exact(answers: Answers) -> dict[str, float]:
    """What estimators say of pages of two of six arms, uniformly shown, where the target is summed over all lists."""
    of_pair = {pair: chance(pair) for pair in permutations(ARMS, 2)}
    rows = []
    for answer in answers:
        upper, lower = answer["slate"]
        pair = 30 * of_pair[upper["arm"], lower["arm"]]
        top = 6 * chance((upper["arm"],))
        below = 6 * sum(of_pair[arm, lower["arm"]] for arm in ARMS if arm != lower["arm"])
        clicks = upper["clicked"], lower["clicked"]
        rows.append(
            {
                "iips": top * clicks[0] + below * clicks[1],
                "rips": top * clicks[0] + pair * clicks[1],
                "sips": pair * sum(clicks),
            }
        )
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return {"ips": means["iips"] / 2, **means, "tis": means["sips"]}


@pytest.fixture
def plain(kiosk: Run, leaning: str) -> Answers:
    """A log of a policy without candidates, beside a target that draws them."""
    leaning_target(kiosk, leaning)
    kiosk("policy", "create", "plain", "--kind", "uniform").done()
    return served(kiosk, "plain", n=100)


@pytest.mark.slow
def test_a_log_without_lists_judges_by_the_mean_over_lists(kiosk: Run, plain: Answers) -> None:
    """20 sets of candidates and 40,000 draws: the estimates are some 0.003 from those of the sum over all lists."""
    wanted = exact(plain)
    rows = estimates(kiosk, ",".join(wanted), "--target-samples", 40_000)
    for row in rows:
        assert row["value"] == pytest.approx(wanted[row["estimator"]], abs=0.02), row["estimator"]
        assert (row["left_out"], "no-candidates" in row["reasons"]) == (0, False)
        assert row["unsupported"] == 0


@pytest.mark.simulation
def test_few_lists_are_unbiased_and_their_error_is_in_the_interval(kiosk: Run, plain: Answers) -> None:
    """Seeded. The mean over 24 seeds within 4 standard errors, and variances that agree within a factor of 4."""
    wanted, names = exact(plain), ("ips", "sips", "rips", "iips", "tis")
    many = {row["estimator"]: row for row in estimates(kiosk, ",".join(names), "--target-samples", 2_000)}
    seeds = [estimates(kiosk, ",".join(names), "--target-samples", 16, "--seed", seed) for seed in range(24)]
    for number, name in enumerate(names):
        values = np.array([rows[number]["value"] for rows in seeds])
        assert abs(values.mean() - wanted[name]) < 4 * values.std(ddof=1) / np.sqrt(len(values)), name
        added = np.mean([rows[number]["std_error"] ** 2 for rows in seeds]) - many[name]["std_error"] ** 2
        assert 0.5 < added / values.var(ddof=1) < 4, name


@pytest.mark.simulation
def test_a_log_of_uniform_pages_agrees_with_what_the_target_earns(kiosk: Run, leaning: str) -> None:
    """Seeded. Within 4 standard errors of both."""
    leaning_target(kiosk, leaning)
    kiosk("policy", "create", "plain", "--kind", "uniform").done()
    rates = ",".join(map(str, RATES.values()))
    for name in ("plain", "target"):
        words = ("simulate", "pbm", "--policy", name, "-k", "2", "--sessions", "600", "--seed", "3")
        kiosk(*words, "--env", f"rates={rates}", "--json").done()
    rows = estimates(kiosk, "ips,sips,rips,cascade-dr,sn-iips", "--log", "policy=plain", "--cluster", "session")
    served_rows = estimates(kiosk, "ips,sips,rips,cascade-dr,sn-iips", "--log", "policy=target", "--cluster", "session")
    for row, truth in zip(rows, served_rows, strict=True):
        error = float(np.hypot(row["std_error"], truth["std_error"]))
        assert abs(row["value"] - truth["value"]) < 4 * error, row["estimator"]


@pytest.mark.slow
def test_an_imported_log_gives_the_same_figures_in_reverse_order(kiosk: Run, tmp_path: Any, leaning: str) -> None:
    kiosk("policy", "create", "plain", "--kind", "uniform").done()
    served(kiosk, "plain", n=40)
    path = tmp_path / "log.jsonl"
    kiosk("export-log", path).done()
    lines, rows = path.read_text().splitlines(keepends=True), []
    for name, step in (("forward", 1), ("reverse", -1)):
        other = empty_store(tmp_path / f"{name}.db")
        other("arm", "import", "-", stdin=[{"arm": arm} for arm in ARMS[::step]]).done()
        other("import-log", "-", "--layout", "jsonl", "--policy", "old", stdin="".join(lines[::step])).done()
        leaning_target(other, leaning)
        rows.append(estimates(other, "ips,dr,sips,iips,rips,cascade-dr,tis", "--target-samples", 40))
    for here, there in zip(*rows, strict=True):
        for name in ("value", "std_error", "ess", "max_weight"):
            assert here[name] == pytest.approx(there[name], rel=1e-9), (here["estimator"], name)


def test_the_mass_on_arms_that_the_logger_could_not_show_is_that_of_all_lists(kiosk: Run, leaning: str) -> None:
    """Some 0.002 from the sum over all lists."""
    leaning_target(kiosk, leaning)
    fixed(kiosk, "few", {"a": 0.5, "b": 0.3, "c": 0.2})
    served(kiosk, "few", n=40)
    (row,) = estimates(kiosk, "ips", "--target-samples", 40_000)
    missing = sum(chance(pair) * sum(arm in "def" for arm in pair) for pair in permutations(ARMS, 2))
    assert row["unsupported"] == pytest.approx(missing / 2, abs=0.01)
    assert "unsupported" in row["reasons"]


@pytest.mark.slow
def test_a_log_with_lists_and_without_takes_each_row_as_it_is(kiosk: Run, leaning: str) -> None:
    """Half of the pages are weighed given their list, which is exact, half by the mean over lists."""
    leaning_target(kiosk, leaning)
    created(kiosk, "lists")
    kiosk("policy", "create", "plain", "--kind", "uniform").done()
    served(kiosk, "lists", n=30)
    served(kiosk, "plain", n=30, seed=2)
    for name in ("ips", "sips", "tis"):
        both, of_lists, of_plain = (
            estimates(kiosk, name, *words)[0] for words in ((), ("--log", "policy=lists"), ("--log", "policy=plain"))
        )
        assert both["value"] == pytest.approx((of_lists["value"] + of_plain["value"]) / 2, rel=1e-9), name
        again = estimates(kiosk, name, "--log", "policy=lists", "--target-samples", 0)[0]
        assert again["value"] == of_lists["value"]


@pytest.mark.parametrize(("words", "size"), [(("--arms", "a,b"), 1), ((), 4)])
def test_pages_that_the_target_could_not_fill_are_left_out(kiosk: Run, words: tuple[str, ...], size: int) -> None:
    created(kiosk, "target")
    kiosk("policy", "create", "plain", "--kind", "uniform").done()
    served(kiosk, "plain", n=20)
    kiosk("recommend", "--policy", "plain", "--session", "s", "-k", size, *words).done()
    for name, left_out in {"ips": size, "sips": 1, "tis": 1}.items():
        (row,) = estimates(kiosk, name)
        assert (row["left_out"], "no-candidates" in row["reasons"]) == (left_out, True), name


@pytest.mark.slow
@pytest.mark.parametrize("second", ["squarecb", "shared", "ucb"])
def test_any_kind_may_rank_the_lists(kiosk: Run, second: str) -> None:
    """Seeded. The mean weight on uniform pages is 1, within 4 standard errors."""
    shared = ("--param", "second.model=shared", "--param", "second.samples=5") if second == "shared" else ()
    kind = "lin-thompson" if second == "shared" else second
    created(kiosk, "learner", *shared, first="plackett-luce", second=kind)
    served(kiosk, "learner", n=60)
    kiosk("policy", "freeze", "learner").done()
    kiosk("policy", "create", "plain", "--kind", "uniform").done()
    served(kiosk, "plain", n=200, seed=2)
    target = "learner@1"
    for row in estimates(kiosk, "ips,dr,sips,cascade-dr,tis", "--log", "policy=plain", target=target):
        assert row["mean_weight"] == pytest.approx(1, abs=4 / np.sqrt(row["ess"])), row["estimator"]
        assert row["left_out"] == 0


# -- checks, and other stores --


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("propensities = '[0.5, 0.2, 0.25]'", "candidate 1 has propensity 0.5, not 0.166666666667"),
        ("log_propensity = -1", "the log propensity of its candidates is -1, not -4.78749174"),
        ("arms = json_array(arms ->> 1, arms ->> 0, arms ->> 2)", "its seed draws another list of candidates"),
    ],
)
def test_doctor_derives_lists_again(kiosk: Run, sqlite_db: str, change: str, says: str) -> None:
    created(kiosk, "p")
    kiosk("recommend", "--policy", "p", "--session", "s", "--seed", "1").done()
    with closing(sqlite3.connect(sqlite_db)) as connection, connection:
        connection.execute(f"UPDATE candidate_list SET {change}")
    result = kiosk("doctor", "--json")
    assert result.exit_code == 3
    assert any(says in finding["detail"] for finding in result.json["findings"])
    assert kiosk("decision", "show", 1, "--json").done().json["agrees"] is change.startswith("arms")


def test_a_list_that_is_gone_is_found(kiosk: Run, sqlite_db: str) -> None:
    created(kiosk, "p")
    kiosk("recommend", "--policy", "p", "--session", "s", "--seed", "1").done()
    with closing(sqlite3.connect(sqlite_db)) as connection, connection:
        connection.execute("DELETE FROM candidate_list")
    findings = kiosk("doctor", "--json").json["findings"]
    assert [finding["detail"] for finding in findings] == ["its list of candidates is not stored"]


def test_an_exported_log_keeps_its_lists(kiosk: Run, tmp_path: Any, leaning: str) -> None:
    created(kiosk, "log")
    served(kiosk, "log", n=20)
    path = tmp_path / "log.jsonl"
    kiosk("export-log", path).done()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(line["eligible"] == sorted(entry["arm"] for entry in line["candidates"]) for line in lines)
    assert all(line["catalogue"] == list(ARMS) for line in lines)
    other = runner(str(tmp_path / "other.db"))
    other("init").done()
    other("import-log", path, "--layout", "jsonl", "--policy", "old").done()
    again = tmp_path / "again.jsonl"
    other("export-log", again).done()
    names = ("candidates", "candidates_log_propensity", "catalogue", "slate", "eligible")
    copied = [json.loads(line) for line in again.read_text().splitlines()]
    assert [[line[name] for name in names] for line in copied] == [[line[name] for name in names] for line in lines]
    stages = ("--param", f"first.probabilities={leaning}", "--param", f"second.probabilities={leaning}")
    for store in (kiosk, other):
        created(store, "target", *stages, first="fixed", second="fixed")
    here, there = (judged(store, "target")["value"] for store in (kiosk, other))
    assert here == pytest.approx(there, abs=1e-12)


def test_a_list_from_an_unknown_catalogue_judges_no_other_first_stage(kiosk: Run) -> None:
    pair = [{"arm": "a", "propensity": 0.5}, {"arm": "b", "propensity": 0.5}]
    line = {"session": "s", "slate": [{"arm": "a", "propensity": 0.5}], "eligible": ["a", "b"], "candidates": pair}
    kiosk("import-log", "-", "--layout", "jsonl", stdin=json.dumps(line | {"reward": 1}) + "\n").done()
    created(kiosk, "target")
    row = judged(kiosk, "target")
    assert (row["n"], "no-candidates" in row["reasons"]) == (0, True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"candidates": [{"arm": "a", "propensity": 0.5}]}, "the candidates are not the eligible arms"),
        ({"candidates": [{"arm": "a", "propensity": 0.5}, {"arm": "b", "propensity": 0}]}, "0.0 is no probability"),
        ({"candidates_log_propensity": 1.0}, "1.0 is the log of no probability"),
        ({"catalogue": ["a", "c"]}, "a candidate is not in the catalogue"),
    ],
)
def test_lines_whose_candidates_cannot_be_are_refused(kiosk: Run, change: dict[str, Any], says: str) -> None:
    pair = [{"arm": "a", "propensity": 0.5}, {"arm": "b", "propensity": 0.5}]
    line = {"session": "s", "slate": [{"arm": "a", "propensity": 0.5}], "eligible": ["a", "b"], "candidates": pair}
    result = kiosk("import-log", "-", "--layout", "jsonl", "--json", stdin=json.dumps(line | change) + "\n")
    assert (result.exit_code, says in result.error["error"]) == (2, True)


def test_tables_name_the_list_that_a_propensity_is_given(kiosk: Run) -> None:
    created(kiosk, "both", second="thompson")
    result = kiosk("recommend", "--policy", "both", "--session", "s", "-k", 2, "--seed", 3)
    answer = kiosk("decision", "show", 1, "--json").json
    listed = ", ".join(entry["arm"] + f" {entry['propensity']:.4g}" for entry in answer["candidates"])
    line = f"candidates, propensity {1 / 120:.4g} in this order: {listed}"
    shown = kiosk("decision", "show", 1).stdout.splitlines()
    assert result.stdout.splitlines()[0].endswith(" given the candidates")
    assert line in result.stdout.splitlines()
    assert line in shown
    assert "3 candidates of 6 eligible arms" in shown[2]
    assert (answer["eligible"], answer["catalogue"]) == (3, 6)
