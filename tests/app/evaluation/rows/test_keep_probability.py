"""A log that kept only some of its rows: each counts as often as it stands for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Run, jsonl

Rows = list[tuple[str, float, float, float]]  # arm, propensity, reward, keep probability
PROPENSITY = {"a": 0.5, "b": 0.3, "c": 0.2}


pytestmark = pytest.mark.usefixtures("folder")


def drawn(number: int, seed: int) -> Rows:
    """Rows of a log that keeps those with a reward, and a quarter of the others; here all of them."""
    random = np.random.default_rng(seed)
    rows = []
    for arm in random.choice(list(PROPENSITY), number, p=list(PROPENSITY.values())).tolist():
        reward = float(random.random() < {"a": 0.2, "b": 0.4, "c": 0.6}[arm])
        rows.append((arm, PROPENSITY[arm], reward, 1.0 if reward else 0.25))
    return rows


def imported(run: Run, rows: Rows, **more: Any) -> None:
    lines = [
        {"session": f"s{n}", "eligible": ["a", "b", "c"],
         "slate": [{"arm": arm, "propensity": p, "min_propensity": 0.2}],
         "events": [{"kind": "click"}] * int(reward), "keep_probability": keep, **more}
        for n, (arm, p, reward, keep) in enumerate(rows)
    ]  # fmt: skip
    Path("log.jsonl").write_text(jsonl(lines))
    assert run("import-log", "log.jsonl", "--layout", "jsonl", "--policy", "old").exit_code == 0


def estimates(run: Run, names: str, target: str = "uniform") -> dict[str, dict[str, Any]]:
    options = "--estimator", names, "--interval", "normal", "--cluster", "session", "--json"
    rows = run("evaluate", target, "--log", "policy=old", *options).json
    return {row["estimator"]: row for row in rows}


def test_estimates_are_sums_over_what_the_log_stands_for(run: Run) -> None:
    """IPS is sum(w r / keep) / sum(1 / keep), SNIPS sum(w r / keep) / sum(w / keep)."""
    rows = drawn(400, 1)
    rows = [row for n, row in enumerate(rows) if row[3] == 1 or n % 4 == 0]
    imported(run, rows)
    _, p, reward, keep = (np.array(column) for column in zip(*rows, strict=True))
    weight, count = 1 / 3 / p, 1 / keep
    rows_of = estimates(run, "ips,snips,clipped-ips:1.2,tis,wis,sips")
    ips = float((weight * reward * count).sum() / count.sum())
    snips = float((weight * reward * count).sum() / (weight * count).sum())
    clipped = float((np.minimum(weight, 1.2) * reward * count).sum() / count.sum())
    expected = {"ips": ips, "snips": snips, "clipped-ips:1.2": clipped, "tis": ips, "wis": snips, "sips": ips}
    assert {name: row["value"] for name, row in rows_of.items()} == pytest.approx(expected, abs=1e-9)
    # each row is a cluster: the delta method over the weighted terms
    terms = weight * reward * count - ips * count
    n = len(rows)
    error = float(np.sqrt((terms**2).sum() * n / (n - 1)) / count.sum())
    assert rows_of["ips"]["std_error"] == pytest.approx(error, rel=1e-9)
    assert rows_of["ips"]["mean_weight"] == pytest.approx(float((weight * count).sum() / count.sum()), abs=1e-9)
    assert rows_of["ips"]["served"] == pytest.approx(float((reward * count).sum() / count.sum()), abs=1e-9)
    assert (rows_of["ips"]["n"], rows_of["ips"]["ess"]) == (
        n, pytest.approx(float((weight * count).sum() ** 2 / ((weight * count) ** 2).sum()))
    )  # fmt: skip


@pytest.mark.simulation
def test_a_subsampled_log_estimates_what_all_of_it_does(sqlite_db: str, run_sqlite: Run) -> None:
    """The mean over 200 subsamples is within four of its errors of the estimate by all rows: wrong once in 16,000."""
    from rlrec import ope
    from rlrec.ope.sums.base import LogBatch
    from rlrec.ope.units.estimate import FinishOptions
    from rlrec.ope.units.fold import ImpressionFold

    rows, random = drawn(3_000, 2), np.random.default_rng(3)
    _, p, reward, keep = (np.array(column) for column in zip(*rows, strict=True))
    normal = FinishOptions(interval="normal")
    fold = ImpressionFold(estimators=ope.parse("ips,snips").impressions, spans_batches=False)

    def values(chosen: Any, count: Any) -> list[float]:
        batch = LogBatch(
            reward=reward[chosen], propensity=p[chosen], target=np.full(chosen.sum(), 1 / 3),
            cluster=np.flatnonzero(chosen), count=count,
        )  # fmt: skip
        return [estimate.value or 0.0 for estimate in fold.finish(fold.row_sums(batch), normal)]

    of_all = np.array(values(np.ones(len(rows), np.bool_), None))
    subsamples = [random.random(len(rows)) < keep for _ in range(200)]
    of_some = np.array([values(chosen, 1 / keep[chosen]) for chosen in subsamples])
    error = of_some.std(axis=0, ddof=1) / np.sqrt(len(of_some))
    assert (np.abs(of_some.mean(axis=0) - of_all) < 4 * error).all()


def test_models_of_rewards_count_rows_as_often_as_they_stand_for_others(run_sqlite: Run) -> None:
    """Without that they would take the share of clicks in what was kept, about 0.7, for the one of 0.4."""
    rows, random = drawn(6_000, 4), np.random.default_rng(5)
    imported(run_sqlite, [row for row in rows if random.random() < row[3]])
    for row in estimates(run_sqlite, "dm,dr").values():
        assert row["value"] == pytest.approx(0.4, abs=0.03)
    assert row["reasons"] == []


def test_visits_of_several_decisions_are_left_out(run: Run) -> None:
    """Nobody knows which of their decisions are missing."""
    imported(run, drawn(50, 5), session="same")
    assert run("evaluate", "uniform", "--log", "policy=old", "--estimator", "wis", "--json").exit_code == 2


def test_where_visits_were_left_out_the_others_tell_nothing(run_sqlite: Run) -> None:
    """Visits with a reward at every decision would be all that is left."""
    visits = [row for n, row in enumerate(drawn(600, 9)) if row[3] == 1 or n % 4 == 0]
    imported(run_sqlite, visits, policy="other")
    imported(run_sqlite, drawn(4, 5), session="same")
    (row,) = run_sqlite("evaluate", "uniform", "--estimator", "wis", "--json").json
    assert (row["verdict"], "sampled-rows" in row["reasons"]) == ("insufficient", True)


def test_rows_without_a_state_tell_nothing_about_a_policy_that_reads_it(run_sqlite: Run) -> None:
    imported(run_sqlite, [row for n, row in enumerate(drawn(600, 9)) if row[3] == 1 or n % 4 == 0])
    run_sqlite("policy", "create", "visits", "--kind", "gradient")
    rows = run_sqlite("evaluate", "visits", "uniform", "--estimator", "snips", "--json").json
    reasons = [(row["verdict"], "sampled-rows" in row["reasons"]) for row in rows]
    assert reasons == [("insufficient", True), ("weak", False)]


@pytest.mark.parametrize("kind", ["thompson", "softmax"])
def test_what_learns_from_a_log_counts_rows_as_often_as_they_stand_for_others(run: Run, kind: str) -> None:
    rows = [row for n, row in enumerate(drawn(400, 6)) if row[3] == 1 or n % 4 == 0]
    imported(run, rows)
    run("policy", "create", "taught", "--kind", kind, "--from-log", "policy=old")
    arms = {row["arm"]: row for row in run("policy", "show", "taught", "--json").json["arms"]}
    for arm in PROPENSITY:
        shown = [row for row in rows if row[0] == arm]
        assert arms[arm]["pulls"] == pytest.approx(sum(1 / row[3] for row in shown))
        assert arms[arm]["reward_sum"] == pytest.approx(sum(row[2] / row[3] for row in shown))


def test_lines_that_were_dropped_by_their_reward_train_nothing(run_sqlite: Run) -> None:
    imported(run_sqlite, drawn(200, 7), state={"step": 0})
    run_sqlite("policy", "create", "visits", "--kind", "gradient")
    assert "keep_probability" in run_sqlite("train-pg", "visits", "--epochs", "2").failed(2)


def test_lines_that_were_dropped_at_one_rate_train(run_sqlite: Run) -> None:
    imported(run_sqlite, [(*row, 0.25) for *row, _ in drawn(200, 8)], state={"step": 0})
    run_sqlite("policy", "create", "visits", "--kind", "gradient")
    assert run_sqlite("train-pg", "visits", "--epochs", "2", "--json").json["sessions"] == 200


def test_rates_of_arms_count_rows_as_often_as_they_stand_for_others(run_sqlite: Run) -> None:
    rows = [row for n, row in enumerate(drawn(400, 6)) if row[3] == 1 or n % 4 == 0]
    imported(run_sqlite, rows)
    rate = {row["arm"]: row["rate"] for row in run_sqlite("exposure", "--json").json["arms"]}
    for arm in PROPENSITY:
        shown = [row for row in rows if row[0] == arm]
        of_all = sum(1 / row[3] for row in shown)
        assert rate[arm] == pytest.approx(sum(row[2] / row[3] for row in shown) / of_all, abs=0.02)


def two_logs(run: Run) -> None:
    """Pages of policy `sampled`, those without a click at rate 1/2, and of policy `complete`, which has those twice."""
    random, lines = np.random.default_rng(11), []
    for n in range(400):
        arms = random.permutation(["a", "b"]).tolist()
        clicks = [at for at, arm in enumerate(arms, 1) if random.random() < {"a": 0.6, "b": 0.3}[arm] / at]
        events = [{"kind": "click", "position": at} for at in clicks]
        line = {"eligible": ["a", "b"], "slate": [{"arm": arm} for arm in arms], "events": events}
        rate = {"policy": "sampled", "keep_probability": 1.0 if clicks else 0.5}
        lines.append({"session": f"s{n}", **rate, **line})
        lines += [{"session": f"c{n}-{times}", "policy": "complete", **line} for times in range(1 if clicks else 2)]
    Path("log.jsonl").write_text(jsonl(lines))
    assert run("import-log", "log.jsonl", "--layout", "jsonl").exit_code == 0


@pytest.mark.parametrize("model", ["pbm", "cascade"])
def test_curves_count_pages_as_often_as_they_stand_for_others(run_sqlite: Run, model: str) -> None:
    two_logs(run_sqlite)
    sampled, complete = (
        run_sqlite("position", "fit", name, "--log", f"policy={name}", "--model", model, "--json").json["positions"]
        for name in ("sampled", "complete")
    )
    for of_sampled, of_complete in zip(sampled, complete, strict=True):
        assert of_sampled["examination"] == pytest.approx(of_complete["examination"], rel=1e-9)
        assert (of_sampled["rewards"], of_sampled["slots"]) == (of_complete["rewards"], 400)


def test_outcomes_count_decisions_as_often_as_they_stand_for_others(run_sqlite: Run) -> None:
    two_logs(run_sqlite)
    sampled, complete = (
        run_sqlite("outcomes", "--log", f"policy={name}", "--json").json["outcomes"] for name in ("sampled", "complete")
    )
    assert [row["value"] for row in sampled] == pytest.approx([row["value"] for row in complete], nan_ok=True)
    assert not any("sampled-rows" in row["reasons"] for row in sampled)


def test_units_of_several_decisions_lack_nobody_knows_what(run_sqlite: Run) -> None:
    imported(run_sqlite, drawn(50, 5), session="same")
    assert all("sampled-rows" in row["reasons"] for row in run_sqlite("outcomes", "--json").json["outcomes"])
    assert "sampled-rows: the log dropped rows" in run_sqlite("outcomes").stdout


def test_exposure_counts_slots_as_often_as_they_stand_for_others(run_sqlite: Run) -> None:
    two_logs(run_sqlite)
    sampled, complete = (run_sqlite("exposure", "--policy", name, "--json").json for name in ("sampled", "complete"))
    assert [row["realised"] for row in sampled["arms"]] == [row["realised"] for row in complete["arms"]]
    assert sampled["catalogue"] == pytest.approx(complete["catalogue"])
    assert (sampled["decisions"], sampled["slots"]) == (400, 800)
    note = f"the log dropped rows (keep_probability): arms and shares are of {complete['slots']:,} slots"
    assert note in run_sqlite("exposure", "--policy", "sampled").stdout


def test_delays_count_decisions_as_often_as_they_stand_for_others(run_sqlite: Run) -> None:
    two_logs(run_sqlite)
    sampled, complete = (
        run_sqlite("reward", "delays", "--log", f"policy={name}", "--json").json for name in ("sampled", "complete")
    )
    names = "reward_per_decision", "share", "events"
    assert [[row[name] for name in names] for row in sampled] == [[row[name] for name in names] for row in complete]
    assert sampled[0]["decisions"] == 400
