"""Climbs whose end is known, and the gate behind them; at full size: python -m tests.benchmarks -k training -k gate
-k barista."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.evaluation.comparisons.paired_gate import refusal_sentence
from rlrec.app.log.splits import TRAIN
from rlrec.app.training.ascent import Epoch, Trainer, TrainingOptions
from rlrec.app.training.dataset import DatasetSplit
from rlrec.app.training.holdout_value import VISITS, HoldoutValue, fit_values
from rlrec.arrays import Array
from rlrec.cli.commands.policies.train_pg import _result_sentence
from rlrec.ope.checks.verdicts import doubts_of
from rlrec.ope.comparisons import comparison
from rlrec.policy.gradients import returns
from rlrec.simulate.barista import Barista
from rlrec.simulate.corridor import Corridor
from tests.benchmarks import climbs, gates, training
from tests.benchmarks.barista import OF_BANDIT, Bar, claim, value
from tests.benchmarks.measure import Setting
from tests.benchmarks.spools import KIND, Server, drawn, night, spooled


@pytest.mark.simulation
def test_a_baseline_leads_out_of_the_corridor_sooner() -> None:
    """Standard errors .5 and 2.5; of 200 runs the means are -12.0 and -30.7."""
    rate, baseline = training.WITH
    early = training.walks(rate=rate, baseline=baseline, runs=20, episodes=110, seed=1).earned[training.AROUND]
    plain = training.walks(rate=training.SMALL, runs=10, episodes=110, seed=1).earned[training.AROUND]
    assert early.mean() > Corridor().optimum() - 1.5
    assert plain.mean() < -18


def test_neither_way_gets_less_likely_than_one_in_twenty() -> None:
    result = training.bounded(np.array([[3.0, 0.1], [-3.0, 0.2]]))
    assert result.sum(axis=0) == pytest.approx([0, 0.3])
    assert 1 / (1 + np.exp(result[0, 0] - result[1, 0])) == pytest.approx(0.05)
    assert result[:, 1].tolist() == [0.1, 0.2]


# -- the gate --


def gate(
    lower: float | None, verdict: str = "ok", *, upper: float = 2.0, reasons: Sequence[str] = ()
) -> dict[str, Any]:
    """A look of the gate of training."""
    passed = lower is not None and lower > 1e-8 and verdict != "insufficient" and not doubts_of(reasons)
    return {
        "estimator": "wdr", "candidate": 1, "against": 1, "value": 3.0, "live_value": 2.0, "estimate": 1.0,
        "lower": lower, "upper": upper, "alpha": 0.03, "ess": 20.4, "verdict": verdict, "reasons": list(reasons),
        "answer": "better" if passed else "same" if upper < 1e-9 else "unknown", "needed": None, "passed": passed,
        "visits": None, "policy": "visits", "version": 2, "promoted": False,
    }  # fmt: skip


def test_a_candidate_passes_if_its_gain_is_sure() -> None:
    assert refusal_sentence(gate(0.1, "weak")) is None
    assert None not in map(refusal_sentence, (gate(0.0), gate(None), gate(0.1, "insufficient")))


def test_dust_is_no_gain() -> None:
    assert refusal_sentence(gate(4e-16, upper=6e-16)) == "it is the same policy as version 1: no difference"


def test_what_learned_from_its_judges_is_refused_for_that() -> None:
    refused = str(refusal_sentence(gate(0.1, "weak", reasons=["in-sample"])))
    assert refused.startswith("it has learned from visits that the gate judges by")


def test_the_reason_that_decides_comes_first() -> None:
    look = gate(0.1332, "insufficient", reasons=["low-ess"])
    assert _result_sentence(look) == (
        "visits@2: this log cannot tell whether it is better or worse than visits@1, per visit (insufficient: "
        "low-ess); kept, not live."
    )
    assert _result_sentence(look | {"needed": 620}) == (
        "visits@2: cannot tell yet whether it is better or worse than visits@1, per visit; about a 50 % chance of an "
        "answer after 3,100 more visitors; kept, not live."
    )


def test_what_passes_is_better_and_weak_evidence_is_called_so() -> None:
    look = gate(0.1, "weak", upper=1.9, reasons=["low-ess"])
    sentence = "visits@2 is better than visits@1: +50 % [+5.0, +95] per visit (weak: low-ess); kept, not live."
    assert _result_sentence(look) == sentence
    look = gate(0.1, "weak", upper=1.9, reasons=["low-ess", "rare-rewards"])
    doubtful = sentence.replace("is better", "seems better").replace("low-ess", "low-ess, rare-rewards")
    assert _result_sentence(look) == doubtful


def test_all_looks_of_a_year_together_err_with_5_percent() -> None:
    for alpha, first in ((comparison.gate_alpha, 0.0304), (comparison.nightly_alpha, 0.0153)):
        spent = [alpha(number) for number in range(1, 10_001)]
        assert spent[0] == pytest.approx(first, abs=1e-4)
        assert 0.0499 < sum(spent) < 0.05


@pytest.mark.slow
def test_candidates_that_are_no_better_stay_out() -> None:
    """One in 500 passes: two of eight once in 9,000 runs."""
    looks = [of(seed) for seed in range(4) for of in (gates.equal, gates.worse)]
    assert sum(look.promoted for look in looks) < 2


@pytest.mark.slow
def test_a_gain_of_four_standard_errors_gets_through() -> None:
    """92 % pass: none of two once in 156 runs."""
    assert any(gates.better(seed).promoted for seed in range(2))


@pytest.mark.slow
def test_nights_of_equal_candidates_promote_none() -> None:
    assert gates.month(1, nights=6, visits=1_000) == (False, False)


# -- what the log supports --


@pytest.mark.slow
def test_an_epoch_beyond_what_the_log_supports_is_taken_back() -> None:
    live = Server(parameters=KIND.zero_parameters(4))
    spool = spooled(live, drawn(live, Barista(), visits=1_000, seed=1), seed=1)
    with closing(night(spool, live.parameters, options=TrainingOptions(lr=0.2))) as result:
        curve, best = result.climbed.curve, result.climbed.best_epoch
        wanted = result.judge.wanted_ess
        assert (result.judge.reference_ess, wanted) == (pytest.approx(200), pytest.approx(50 + 3 * 50**0.5))
        # the way to the best epoch leads there again
        start, rates = result.climbed.path
        with closing(Trainer(spool.splits[TRAIN], KIND, TrainingOptions(lr=0.2), start)) as trainer:
            end = trainer.follow(rates, progress=lambda: None)
        assert all((end[name] == values).all() for name, values in result.climbed.parameters.items())
    assert [point.supported for point in curve] == [(point.ess or 0) >= wanted for point in curve]
    assert any(not point.supported for point in curve)
    assert best is not None
    assert best.supported
    assert best.gain == max(point.gain or 0.0 for point in curve if point.supported)
    # steps grow while the gain grows, and are halved where it does not
    gain, rate = 0.0, 0.2
    for point in curve:
        assert point.lr == rate
        has_gained = point.supported and (point.gain or 0.0) > gain
        gain, rate = (point.gain or 0.0, min(2 * rate, max(rate, 1.0))) if has_gained else (gain, rate / 2)


@pytest.mark.slow
def test_visits_that_choose_the_epoch_teach_too(tmp_path: Path) -> None:
    """Without them this log leads to .542."""
    assert climbs.digits(Setting(folder=tmp_path), "uniform", 102)[1] > 0.57


def point(gain: float, std_error: float, *, supported: bool = True, ess: float = 100.0) -> Epoch:
    """An epoch with these figures."""
    names = ("value", "lower", "upper", "entropy", "kl")
    return Epoch(
        epoch=1, lr=0.1, gain=gain, std_error=std_error, supported=supported, clipped=0.0, variance=0.0, ess=ess,
        variance_without_baseline=0.0, **dict.fromkeys(names),
    )  # fmt: skip


def test_an_epoch_is_better_by_its_gain_and_ties_go_to_the_earlier() -> None:
    """Along one way up the standard error of a difference is the difference of the standard errors."""
    assert point(0.0065, 0.002).is_better(point(0.0014, 0.001), bold=False)  # its lower bound is the lower one
    assert not point(0.0065, 0.0128).is_better(point(0.0014, 0.0013), bold=False)
    assert not point(0.1, 0.01).is_better(point(0.1, 0.01), bold=False)
    far, lost = point(0.5, 0.1, supported=False, ess=5.0), point(0.9, 0.1, supported=False, ess=6e-33)
    assert not far.is_better(point(0.1, 0.01), bold=False)
    assert far.is_better(point(0.1, 0.01), bold=True)
    assert not lost.is_better(far, bold=True)


# -- the barista --


def test_visits_are_worth_what_is_counted() -> None:
    """False-alarm rate 6e-5: four standard errors."""
    rng = np.random.default_rng(1)
    weights = {name: rng.normal(scale=0.3, size=values.shape) for name, values in KIND.zero_parameters(4).items()}
    server = Server(parameters=weights, blind=True)
    log = drawn(server, Barista(), visits=5_000, seed=1)
    earned = (log.rewards * log.inside).sum(axis=1)
    assert abs(earned.mean() - value(server, Barista())) < 4 * earned.std() / 5_000**0.5


def test_pages_with_rules_count_as_they_were_served() -> None:
    """Where all pages of a log had rules, no parameters gain anything. Where all but the first one of each visit had,
    the weight of a visit is that of its first page."""
    rng = np.random.default_rng(1)
    start, other = (
        {name: rng.normal(scale=0.3, size=values.shape) for name, values in KIND.zero_parameters(4).items()}
        for _ in range(2)
    )
    server = Server(parameters=start)
    with closing(spooled(server, drawn(server, Barista(), visits=900, seed=1), seed=1)) as spool:
        spool.arrange({TRAIN: VISITS})
        taught = spool.splits[TRAIN]
        values = fit_values(taught, gamma=1.0, arms=4)
        plain, pieces = HoldoutValue(taught, KIND, start, gamma=1.0, values=values), list(taught.batches())
        for steps in (range(30), range(1, 30)):
            ratios = list[Array]()
            with closing(DatasetSplit({}, np.concatenate([rows.cluster for rows in pieces]))) as split:
                split.max_length = taught.max_length
                for rows in pieces:
                    ruled = np.isin(returns.steps(rows.start), steps)
                    split.write(replace(rows, is_ruled=ruled.astype(np.int64)))
                    ratio = np.where(ruled, 0.0, plain.log_slates(rows, other) - rows.log_propensity)
                    ratios.append(np.add.reduceat(ratio, rows.start[:-1]))
                point = HoldoutValue(split, KIND, start, gamma=1.0, values=values).point(other, z=1.0)
            weight = np.exp(np.concatenate(ratios))
            assert point["ess"] == pytest.approx(weight.sum() ** 2 / (weight**2).sum())
            assert (point["gain"] == 0) == (weight == 1).all()


@pytest.mark.simulation
def test_a_gain_is_where_its_interval_says() -> None:
    """At 90 % coverage fewer than two of three once in 36 runs."""
    claims = [claim(seed, visits=3_000) for seed in (0, 6, 10)]
    assert sum(each.covers for each in claims) >= 2
    assert all(each.estimate.verdict in ("weak", "insufficient") for each in claims if each.is_broad)


@pytest.mark.simulation
def test_a_round_of_2000_visits_beats_the_best_policy_without_memory(tmp_path: Path) -> None:
    bar = Bar(tmp_path / "bar.db", sessions=2_000, seed=1, log=OF_BANDIT)
    result, (without, _) = bar.round(1), bar.audience.best_context_free()
    assert result.promoted
    assert result.live.value - 4 * result.live.error > without + 0.1 * bar.audience.optimum()
