"""Off-policy estimates through the store: published figures, known truths, and what must not be judged."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.distributions import designs
from rlrec.app.evaluation.passes.estimates import EstimateRow
from rlrec.app.evaluation.rows import loggers
from rlrec.app.evaluation.targets import probabilities, targets
from rlrec.app.judging import evaluate
from rlrec.app.log import partitions
from rlrec.app.policies import policy, versions
from rlrec.errors import InputError
from rlrec.ope.checks import diagnostics
from rlrec.ope.units.estimate import LoggerWeight
from rlrec.policy.slates import slate
from rlrec.report import figures
from rlrec.store import Store
from rlrec.store.log import reader
from rlrec.store.log.selected import Selection
from rlrec.store.policies import arms
from rlrec.times import parse
from tests.app import logs, trained
from tests.app.evaluation import worlds
from tests.conftest import ON_BOTH, filled, runner

RATES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
SAMPLE = Path(__file__).parents[3] / "sample_data"


def change(db: str, statement: str) -> None:
    """What no command does: rows as another program might have left them."""
    with closing(Store(db)) as store:
        store.write(lambda unit: unit.connection.exec_driver_sql(statement))


@pytest.fixture(scope="module")
def obd(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Any:
    """The two logs of the Open Bandit Dataset sample, and the belief its authors publish."""
    path = tmp_path_factory.mktemp("obd") / "obd.db"
    path.write_bytes(sqlite_template.read_bytes())
    run = runner(str(path))
    for name in ("random", "bts"):
        assert run("import-log", f"{SAMPLE}/{name}_all.csv.gz", "--layout", "obd", "--policy", name).exit_code == 0
    run("policy", "create", "ts", "--kind", "thompson", "--prior", f"{SAMPLE}/bts_all_prior.csv").done()
    return str(path)


def estimates(db: str, *names: str, **options: Any) -> list[dict[str, Any]]:
    with closing(Store(db)) as store:
        return [row.record for row in evaluate.evaluate(store, evaluate.Request(targets=names, **options))]


# -- a real log --


@pytest.mark.slow
def test_a_real_log_gives_the_figures_of_its_readme(obd: Any) -> None:
    ips, snips = estimates(obd, "ts", estimators="ips,snips", log="policy=random")
    figures = [ips[name] for name in ("value", "std_error", "ess", "max_weight", "mean_weight")]
    assert figures == pytest.approx([0.0045627409, 0.0020918784, 1643.239, 19.605877, 0.953347], rel=1e-6)
    assert ips["value"] == pytest.approx(0.0045627409, abs=1e-10)
    assert snips["value"] == pytest.approx(0.0047860253, abs=1e-10)
    assert (snips["verdict"], snips["cluster"], snips["n"], snips["version"]) == ("weak", "session", 10000, 1)


@pytest.mark.slow
def test_bootstrap_t_is_skewed_where_one_click_carries_the_estimate(obd: Any) -> None:
    (row,) = estimates(obd, "ts", estimators="snips", log="policy=random")
    (narrow,) = estimates(obd, "ts", estimators="snips", log="policy=random", interval="normal")
    assert row["lower"] == pytest.approx(0.0018, abs=2e-4)
    assert 0.0180 <= row["upper"] <= 0.0191
    assert [narrow["lower"], narrow["upper"]] == pytest.approx([0.0005, 0.0091], abs=1e-4)


@pytest.mark.slow
def test_what_the_log_taught_is_in_sample_also_after_a_freeze(obd: Any) -> None:
    with closing(Store(obd)) as store:
        options = policy.Request(
            name="greedy", kind="epsilon-greedy", parameters={"epsilon": "0"}, from_log="policy=random"
        )
        policy.create(store, options)
        versions.freeze(store, "greedy")
    rows = estimates(obd, "greedy", "greedy@2", estimators="snips", log="policy=random")
    assert [("in-sample" in row["reasons"], row["verdict"] == "ok") for row in rows] == [(True, False)] * 2
    (other,) = estimates(obd, "greedy@2", estimators="snips", log="policy=bts")
    assert "in-sample" not in other["reasons"]


@pytest.mark.slow
def test_a_log_without_support_is_not_called_ok(obd: Any) -> None:
    for row in estimates(obd, "uniform", log="policy=bts"):
        assert row["verdict"] != "ok"
        assert row["ess"] == pytest.approx(340.4, abs=1)


@pytest.mark.slow
def test_the_policy_of_an_imported_log_is_judged_by_its_own_rows(obd: Any) -> None:
    rows = estimates(obd, "random", "bts", estimators="ips,snips,dm,dr")
    assert [row["n"] for row in rows] == [10_000] * 8
    by_weight = [row["value"] for row in rows if row["estimator"] != "dm"]
    assert by_weight == pytest.approx([0.0038] * 3 + [0.0042] * 3, rel=1e-9)
    assert all("no-propensity" in row["reasons"] for row in rows)


@pytest.mark.slow
def test_rows_as_clusters_are_sessions_where_each_row_is_a_session(obd: Any) -> None:
    keys = ("value", "std_error", "lower", "upper", "ess", "clusters")
    by_row, by_session = (
        estimates(obd, "ts", estimators="snips", log="policy=random", cluster=name)[0] for name in ("row", "session")
    )
    assert [by_row[key] for key in keys] == pytest.approx([by_session[key] for key in keys])


@pytest.mark.parametrize(("field", "groups"), [("position", 3), ("day", 7), ("arm", 80), ("user_feature_1", 6)])
def test_groups_share_out_the_rows(obd: Any, field: str, groups: Any) -> None:
    rows = estimates(obd, "uniform", estimators="snips", log="policy=random", by=field, interval="normal")
    assert len({row["group"] for row in rows}) == len(rows)
    assert sum(row["n"] for row in rows) == 10_000
    assert len(rows) == pytest.approx(groups, abs=0 if field != "user_feature_1" else 6)


@pytest.mark.slow
def test_a_field_that_no_context_has_is_refused_with_near_ones(obd: Any) -> None:
    with pytest.raises(InputError, match="user_feature_9") as caught:
        estimates(obd, "uniform", by="user_feature_9")
    assert "user_feature_" in str(caught.value.hint)


def test_a_given_reward_model_is_all_that_dm_knows(obd: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.csv"
    path.write_text("arm,reward\n" + "".join(f"{arm},{arm / 1000}\n" for arm in range(40)) + "*,0.5\n")
    (row,) = estimates(obd, "uniform", estimators="dm", log="policy=random", reward_model=str(path), cluster="session")
    assert row["value"] == pytest.approx((sum(range(40)) / 1000 + 40 * 0.5) / 80)
    assert (row["lower"], row["reasons"]) == (None, ["no-interval"])


# -- known truths --


def pages_of_three(db: str, pages: int) -> None:
    logs.begin(db, 6, "log", "epsilon-greedy", epsilon="0.4")
    logs.serve(db, "log", pages=pages, rates=RATES, size=3, users=pages // 5)


@pytest.fixture
def slates(sqlite_db: str) -> str:
    """1,000 pages of three positions, served by a policy that learned from them."""
    filled(sqlite_db, pages_of_three, 1_000)
    return sqlite_db


def truth(db: str, name: str) -> float:
    """Mean reward per impression that a target has on these arms."""
    with closing(logs.at(db, 1e6)) as store, store.read() as unit:
        answers = targets.resolve(unit, [name], reward=None, greedy=False)[0].serving
        keys = {arm.id: arm.key for arm in arms.all_arms(unit)}
        case = answers.case("all", np.array(sorted(keys)), {}, keys=keys)
        shares = slate.marginals(case.scores, size=3, floor=case.floor)
    return float((shares @ [RATES[int(keys[arm][1:])] for arm in sorted(keys)]).mean())


@pytest.mark.slow
def test_pages_of_a_learning_logger_judge_a_uniform_target(slates: Any) -> None:
    """Seeded. A right estimate is outside four standard errors in 6 of 100,000 runs."""
    for row in logs.judged(slates, "uniform", estimators="ips,snips,dr", interval="normal"):
        assert abs(row["value"] - 0.175) < 4 * row["std_error"]
        assert (row["n"], row["clusters"], row["cluster"], row["unsupported"]) == (3_000, 200, "user", 0.0)
        assert abs(row["mean_weight_z"]) < 4


def test_a_learner_is_in_sample_on_its_own_rows(slates: Any) -> None:
    row = logs.estimate(slates, "log", "snips", interval="normal")
    assert "in-sample" in row["reasons"]
    assert abs(row["value"] - truth(slates, "log")) < 5 * row["std_error"]


@ON_BOTH
def test_neither_batches_nor_their_size_change_an_estimate(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pages_of_three(db, 250)
    rows = logs.judged(db, "uniform", "log")
    logs.in_batches(monkeypatch, 97)
    for item, other in zip(rows, logs.judged(db, "uniform", "log"), strict=True):
        assert item.keys() == other.keys()
        for key, value in item.items():
            assert other[key] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), key


def test_without_marginals_both_sides_are_the_page_down_to_the_row(slates: Any) -> None:
    """Seeded; four standard errors as above."""
    change(slates, "UPDATE slot SET marginal = NULL")
    row = logs.estimate(slates, "uniform", "ips", interval="normal")
    with closing(logs.at(slates, 1e6)) as store, store.read() as unit:
        (batch,) = reader.batches(unit, Selection())
    shown = batch.slots["propensity"].reshape(-1, 3)
    weight = (1 / np.cumprod([6, 5, 4])) / np.cumprod(shown, axis=1)
    assert row["max_weight"] == pytest.approx(weight.max())
    assert row["mean_weight"] == pytest.approx(weight.mean())
    assert abs(row["value"] - 0.175) < 4 * row["std_error"]


def test_a_row_with_a_marginal_alone_is_weighed_and_one_with_nothing_is_counted(slates: Any) -> None:
    change(slates, "UPDATE slot SET propensity = NULL, min_propensity = NULL WHERE position = 2")
    change(slates, "UPDATE slot SET propensity = NULL, marginal = NULL, min_propensity = NULL WHERE position = 3")
    row = logs.estimate(slates, "uniform", "snips")
    assert (row["n"], row["left_out"]) == (2_000, 1_000)
    assert "no-propensity" in row["reasons"]


def test_no_weight_passes_the_bound_that_is_called_provable(slates: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    observed = []
    real = probabilities.Scorer.log_batch

    def watched(self: Any, **params: Any) -> Any:
        observed.append(real(self, **params))
        return observed[-1]

    monkeypatch.setattr(probabilities.Scorer, "log_batch", watched)
    logs.judged(slates, "uniform", "log", estimators="ips")
    for batch in observed:
        assert np.isfinite(batch.largest).all()
        assert (batch.weight <= batch.largest * (1 + 1e-9)).all()
    assert max(batch.largest.max() for batch in observed) < 100


def test_todays_catalogue_does_not_matter(slates: Any) -> None:
    """But for how many arms of today the log knows nothing of."""
    before = logs.estimate(slates, "uniform", "ips")
    with closing(logs.at(slates, 1e5)) as store:
        store.write(lambda unit: arms.put(unit, {"new": "{}"}))
        store.write(lambda unit: arms.retire(unit, ["a0"], is_retired=True))
    assert logs.estimate(slates, "uniform", "ips") == before | {"new_arms": 1}


def findings(row: EstimateRow) -> list[str]:
    """What a page would begin with."""
    figure = figures.estimates([row], evaluate.steps([row]))
    assert figure is not None
    return [*(figure.findings or ())]


def test_a_hint_repeats_what_was_asked_for(slates: Any) -> None:
    """But for the option that it gives."""
    steps = {}
    with closing(logs.at(slates, 1e6)) as store:
        request = evaluate.Request(targets=["uniform"], estimators="ips", log="policy=log", cluster="session")
        (row,) = evaluate.evaluate(store, request)
    for reason in ("carry-over", "drift", "no-users"):
        doubtful = replace(row, estimate=replace(row.estimate, reasons=(reason,)))
        steps[reason] = evaluate.next_steps([doubtful])[0].split("`")[1]
    served = LoggerWeight(version="log@ab/new@1", rows=9, weight=1.0, is_target=True)
    variant = replace(row, estimate=replace(row.estimate, logger_weights=(served,), reasons=()))
    assert variant.claim.sentence.endswith("log@ab/new@1: `rlrec experiment show ab` compares it")
    # what is compared with its own log alone has no verdict either, and rows that count next to nothing raise no doubt
    unsure = replace(variant.estimate, reasons=("mean-weight",))
    assert replace(variant, estimate=unsure).judgement == {"answer": "own log", "verdict": None, "reasons": []}
    other = replace(served, version="log@1", is_target=False)
    mixed = replace(row, estimate=replace(row.estimate, logger_weights=(served, other)))
    assert mixed.claim.decided_by == "rlrec experiment show ab"  # a rate per slot does not stand against it
    assert mixed.judgement["answer"] == mixed.answer.answer
    assert (
        evaluate.log_weight_lines([mixed]) == evaluate.list_assumptions([variant]) == []
    )  # all rows count alike; nothing is estimated
    weighed = replace(mixed, estimate=replace(mixed.estimate, logger_weights=(served, replace(other, weight=0.5))))
    assert evaluate.log_weight_lines([weighed])[0].startswith("log of uniform: rows count more")
    bounded = replace(row.estimate, simultaneous_lower=0.0)
    joint = [replace(row, target=name, estimate=bounded) for name in "ab"]
    assert evaluate.log_weight_lines(joint)[-1] == "bounds of lifts hold for all 2 targets together"
    assert (
        evaluate.log_weight_lines([*joint, row])[-1] == "bounds of lifts hold for a and b together"
    )  # of three in the table
    logged = replace(row.estimate, lift_lower=0.0, lift_upper=0.0, value=row.estimate.served, reasons=(), verdict="ok")
    modelled = replace(logged, value=0.9, estimator="dr")  # of what served: the mean as served answers
    assert evaluate.answering_rows([replace(row, estimate=each) for each in (logged, modelled)])[0].estimate is logged
    fewer = replace(row, extent=row.extent._replace(positions=1, decisions=row.estimate.n + 1))
    assert f", of which {row.estimate.n:,} count, reward" in evaluate.log_sentences([fewer])[0]
    version = designs.make_draft("ucb", {"c": 0.5, "window": 9.0}, worlds.CLICK)
    sweep = "rlrec sweep --kinds ucb --param ucb:c=0.5 --reward click"
    taught = replace(row, sweep_version=version, estimate=replace(row.estimate, reasons=("in-sample",)))
    assert evaluate.next_steps([taught])[0].startswith(
        f"Next: `{sweep} --log policy=log --cluster session` judges its kind on rows that"
    )
    lasting = worlds.CLICK._replace(name="lasting", weights={"click": 1.0, "return": 1.0})
    unlearnable = replace(taught, sweep_version=designs.make_draft("kl-ucb", {"floor": 0.05}, lasting))
    command = "rlrec sweep --kinds epsilon-greedy --param epsilon-greedy:floor=0.05 --reward lasting"
    assert evaluate.next_steps([unlearnable])[0].startswith(
        f"Next: `{command} --log policy=log --cluster session` judges a kind that can learn lasting on rows that"
    )
    (finding,) = findings(replace(taught, version=1))  # the page says what answers, where the log of a policy cannot
    assert f"(log: in-sample). Next: `{sweep}" in finding
    unclear = replace(row, version=1, estimate=replace(row.estimate, reasons=("drift",)))
    assert findings(unclear)
    for is_target in (True, False):  # what served is what it is compared with
        weights = (replace(served, version=unclear.name, is_target=is_target),)
        assert not findings(replace(unclear, estimate=replace(unclear.estimate, logger_weights=weights)))
    variant_row = replace(taught, target="log@ab/new")  # which an experiment compares with the others
    assert evaluate.next_steps([variant_row])[0].startswith("Next: `rlrec experiment show ab` compares it")
    visits = replace(row, estimate=replace(row.estimate, unit="session", reasons=("carry-over",)))
    assert evaluate.next_steps([visits])[0].startswith("Next: `rlrec help experiments`")  # no estimator is left
    time = steps["drift"].partition("since=")[2]
    assert row.extent.first_at < parse(time) < row.extent.last_at  # within the one day of this log
    assert steps == {
        "carry-over": "rlrec evaluate uniform --log policy=log --cluster session --estimator wdr",
        "drift": f"rlrec evaluate uniform --cluster session --log policy=log,since={time}",
        "no-users": "rlrec evaluate uniform --log policy=log --cluster session",
    }


def test_arms_that_no_decision_could_show_are_named(slates: Any) -> None:
    """Of those that a target may show: its policy blocks one."""
    with closing(logs.at(slates, 1e5)) as store:
        store.write(lambda unit: arms.put(unit, dict.fromkeys(("late", "later", "latest"), "{}")))
        policy.create(store, policy.Request(name="narrow", kind="uniform", parameters={"block": "later"}))
        rows = evaluate.evaluate(store, evaluate.Request(targets=["narrow", "uniform"], estimators="ips"))
    end = "today that no decision of this log could"
    assert evaluate.log_sentences(rows)[1:] == [
        f"narrow@1 may show 2 arms {end} (late, latest), which these figures leave out",
        f"uniform may show 3 arms {end} (late, later, latest), which these figures leave out",
    ]


# -- support --


def test_a_logger_without_exploration_judges_nothing_else(db: str) -> None:
    logs.begin(db, 4, "log", "ucb")
    logs.serve(db, "log", pages=400, rates=RATES, group=20)
    row = logs.estimate(db, "uniform", "snips")
    assert row["verdict"] == "insufficient"
    assert "unsupported" in row["reasons"]
    # the first group met four untried arms, a tie of all: nothing was without support there
    assert row["unsupported"] == pytest.approx(0.75 * 380 / 400, abs=0.03)


def test_a_fixed_logger_leaves_out_the_arms_it_never_shows(
    db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.catalogue(db, 4)
    path = tmp_path / "shares.csv"
    path.write_text("arm,probability\na0,0.5\na1,0.3\na2,0.2\n")
    logs.create(db, "log", "fixed", probabilities=str(path))
    logs.serve(db, "log", pages=400, rates=RATES)
    assert logs.estimate(db, "uniform", "snips")["unsupported"] == pytest.approx(0.25)
    assert logs.estimate(db, "log", "snips")["unsupported"] == 0.0
    monkeypatch.setattr(loggers, "MAX_DERIVED", 0)  # more distributions than may be worked out
    assert logs.estimate(db, "uniform", "snips")["unsupported"] is None


def test_pages_are_judged_by_an_estimator_that_has_rows(db: str) -> None:
    """The target's marginals have no closed form, so that the one that assumes most has none."""
    logs.begin(db, 4, "log", "uniform", pin="2=a3")
    logs.create(db, "same", "lin-thompson", pin="2=a3", model="shared")
    logs.serve(db, "log", pages=40, rates=RATES, size=3)
    rows = logs.judged(db, "same", estimators=None)
    assert [(row["estimator"], row["n"], row["verdict"]) for row in rows[:1]] == [("sn-rips", 40, "insufficient")]


@pytest.mark.parametrize(("kind", "rules"), [("lin-thompson", {"model": "shared"}), ("gradient", {})])
def test_a_pin_that_the_target_has_too_takes_no_support(db: str, kind: str, rules: dict[str, str]) -> None:
    """These are weighted by the page down to a slot, of which the pinned one is a part."""
    logs.begin(db, 4, "log", "uniform", pin="2=a3")
    logs.create(db, "same", kind, pin="2=a3", **rules)
    logs.create(db, "other", kind, pin="2=a2", **rules)
    logs.serve(db, "log", pages=40, rates=RATES, size=3)
    assert logs.estimate(db, "same", "snips")["unsupported"] == 0.0
    assert logs.estimate(db, "other", "snips")["unsupported"] > 0.3


# -- time --


@pytest.mark.slow
def test_silence_counts_and_young_decisions_do_not(db: str) -> None:
    """A stream at 5 %, cut after 60 minutes. Seeded; the interval holds the truth in 95 of 100 seeds."""
    logs.begin(db, 3, "log", "uniform")
    logs.serve(db, "log", pages=3_000, rates=[0.05] * 3, group=150, minutes=3)
    row = logs.estimate(db, "uniform", "snips", minutes=60.5)
    assert row["n"] == 10 * 150  # served up to minute 30.5
    assert row["lower"] < 0.05 < row["upper"]


def test_a_log_that_is_too_young_is_an_empty_one(db: str) -> None:
    logs.begin(db, 3, "log", "uniform")
    with pytest.raises(InputError, match="empty log"):
        logs.judged(db, "uniform")
    logs.serve(db, "log", pages=10, rates=RATES)
    with pytest.raises(InputError, match=r"empty log.*10 impressions") as caught:
        logs.judged(db, "uniform", minutes=20)
    assert "30 minutes" in str(caught.value.hint)


def test_a_log_of_censored_pages_is_an_empty_one(db: str) -> None:
    logs.begin(db, 3, "log", "uniform")
    logs.serve(db, "log", pages=10, rates=RATES)
    change(db, "UPDATE slot SET censored = 1 WHERE decision_id > 4")
    assert logs.estimate(db, "uniform", "ips")["n"] == 4
    change(db, "UPDATE slot SET censored = 1")
    with pytest.raises(InputError, match="censored"):
        logs.judged(db, "uniform")


# -- memory --


@pytest.mark.slow
def test_memory_is_bounded_by_the_batch(slates: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak over four times the log, in batches of 250 pages, is that over the log itself, but for a fifth."""
    monkeypatch.setattr(diagnostics, "N_LARGEST", 500)
    logs.in_batches(monkeypatch, 250)
    monkeypatch.setattr(partitions, "BUCKETS", 2)  # of several batches each, once or four times the log

    def peak() -> int:
        return logs.traced_peak(lambda: logs.judged(slates, "uniform", interval="normal"))

    logs.judged(slates, "uniform")  # imports
    once = peak()
    multiply(slates, 4)
    assert logs.estimate(slates, "uniform", "ips", interval="normal")["n"] == 12_000
    assert peak() < 1.2 * once


def multiply(db: str, times: int) -> None:
    """The log several times over, in sessions of their own."""
    with closing(sqlite3.connect(db)) as connection:
        for copy in range(1, times):
            moved = {name: f"{name} + {copy * 1_000_000}" for name in ("id", "session_id", "decision_id")}
            moved["key"] = f"key || '/{copy}'"
            for table in ("session", "visit", "decision", "slot", "event"):
                columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
                values = [moved.get(name, name) for name in columns if name != "request_key"]
                into = ", ".join(f'"{name}"' for name in columns if name != "request_key")
                owner = next(name for name in ("id", "decision_id", "session_id") if name in columns)
                connection.execute(
                    f"INSERT INTO {table} ({into}) SELECT {', '.join(values)} FROM {table} WHERE {owner} < 1000000"
                )
        connection.commit()


# -- splits --


@ON_BOTH
def test_a_split_of_the_log_can_be_asked_for(db: str) -> None:
    logs.begin(db, 3, "log", "uniform")
    logs.serve(db, "log", pages=400, rates=RATES)
    result = [logs.estimate(db, "uniform", "ips", log=f"split={name}")["n"] for name in ("train", "tune", "gate")]
    with closing(logs.at(db, 1e6)) as store, store.read() as unit:
        counted = unit.ask("SELECT split, count(*) FROM session GROUP BY split ORDER BY split")
    assert result == [2 * count for _, count in counted]
    assert sum(result) == 400


def test_a_trained_version_is_not_in_sample_on_the_gate_split(db: str) -> None:
    logs.begin(db, 3, "log", "uniform")
    logs.create(db, "home", "gradient")
    logs.serve(db, "log", pages=100, rates=RATES, start=3.0)
    trained.version(db, "home", bias=[0.1, 0, 0], minutes=200, selection={}, last_id=10**6, now=10**18, splits=[0, 1])
    result = [
        "in-sample" in logs.estimate(db, "home", "ips", log=filtered)["reasons"]
        for filtered in ("split=train", "split=tune", "split=gate", None)
    ]
    assert result == [True, True, False, True]


# -- names --


def test_a_policy_wins_over_a_built_in_of_its_name(db: str) -> None:
    logs.begin(db, 3, "log", "uniform")
    logs.serve(db, "log", pages=200, rates=RATES)
    assert logs.estimate(db, "uniform", "ips")["version"] is None
    logs.create(db, "uniform", "epsilon-greedy", epsilon="0.2", minutes=2)
    assert logs.estimate(db, "uniform", "ips")["version"] == 1


def test_groups_of_arms_do_not_need_a_mean_weight_of_1(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 3, "log", "uniform")
    logs.create(sqlite_db, "home", "epsilon-greedy", epsilon="0.3")
    logs.serve(sqlite_db, "log", pages=300, rates=RATES)
    logs.serve(sqlite_db, "home", pages=300, rates=RATES, start=500.0)
    rows = logs.judged(sqlite_db, "home", log="policy=log", by="arm")
    assert {row["estimator"] for row in rows} == {"snips"}
    assert max(row["mean_weight"] for row in rows) > 1.5
    assert all(row["mean_weight_z"] is None and "mean-weight" not in row["reasons"] for row in rows)


@pytest.mark.parametrize(
    ("options", "result", "hint"),
    [
        ({"targets": ["unifrom"]}, "unknown target", "uniform"),
        ({"targets": ["lgo"]}, "unknown target", "log"),
        ({"targets": ["log@7"]}, "no version 7", "policy show"),
        ({"targets": ["log"], "estimators": "snip"}, "unknown estimator", "snips"),
        ({"targets": ["log"], "interval": "cressie-read"}, "dr", "bootstrap-t"),
        ({"targets": ["log"], "by": "arm", "interval": "cressie-read"}, "cressie-read .* by arm", "bootstrap-t"),
        ({"targets": ["log"], "by": "arm", "estimators": "snips,dr"}, "dr does not work by arm", "snips"),
        ({"targets": ["log"], "cluster": "sesion"}, "unknown cluster", "session"),
        ({"targets": ["log"], "log": "polcy=log"}, "log filter", "policy"),
        ({"targets": ["log"], "log": "split=gates"}, "unknown split", "gate"),
        ({"targets": ["log"], "log": "until=2020-01-01"}, "empty log", "widen"),
        ({"targets": ["log"], "reward": "defualt"}, "unknown reward", "default"),
        ({"targets": ["log"], "reward_model": "x.csv", "estimators": "ips"}, "reward-model", "dr"),
        ({"targets": ["log"], "reward_model": "x.csv", "estimators": "dr,wdr"}, "wdr fits a model", "leave out wdr"),
        ({"targets": ["log"], "level": 1.0}, "level", ""),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(
    sqlite_db: str, options: dict[str, Any], result: str, hint: Any
) -> None:
    logs.begin(sqlite_db, 3, "log", "uniform")
    logs.serve(sqlite_db, "log", pages=10, rates=RATES)
    with pytest.raises(InputError, match=result) as caught:
        logs.judged(sqlite_db, *options.pop("targets"), **options)
    assert hint in (caught.value.hint or "")


def test_greedy_is_the_target_without_its_floor(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 3, "log", "uniform")
    logs.create(sqlite_db, "home", "epsilon-greedy", epsilon="0.5")
    logs.serve(sqlite_db, "log", pages=600, rates=RATES)
    served, greedy = (logs.estimate(sqlite_db, "home", "ips", greedy=greedy) for greedy in (False, True))
    assert served["max_weight"] == greedy["max_weight"] == pytest.approx(1.0)  # nothing known yet: all tie
    assert "greedy" in greedy["estimand"]
    assert "as served" in served["estimand"]


def test_contexts_are_what_a_target_by_field_is_asked_with(db: str, tmp_path: Path) -> None:
    logs.catalogue(db, 2)
    path = tmp_path / "shares.csv"
    path.write_text("value,arm,probability\nphone,a0,1\nphone,a1,0\n*,a0,0.25\n*,a1,0.75\n")
    logs.create(db, "log", "uniform")
    logs.create(db, "rule", "fixed", probabilities=str(path), by="device")
    logs.serve(db, "log", pages=400, rates=RATES, contexts=[{"device": "phone"}, {"device": "tv", "n": 2.0}])
    rows = logs.judged(db, "rule", estimators="ips", by="device", interval="normal")
    assert [(row["group"], row["n"]) for row in rows] == [("phone", 200), ("tv", 200)]
    assert [row["max_weight"] for row in rows] == pytest.approx([2.0, 1.5])
    assert [row["group"] for row in logs.judged(db, "rule", estimators="ips", by="n", interval="normal")] == [2.0, None]
