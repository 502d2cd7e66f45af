"""Reward models, and the direct method that trusts them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlrec.errors import InputError
from rlrec.ope.estimators.direct import RewardTable, Ridge
from tests.ope.cases import HAND, judged

ARMS, POSITIONS, FEATURES = 4, 2, 3


def rows(seed: int = 0, n: int = 600) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    arm, position = generator.integers(0, ARMS, n), generator.integers(1, POSITIONS + 1, n)
    context = generator.normal(size=(n, FEATURES)) * [1, 10, 0.1]
    mean = 0.2 * arm - 0.1 * position + context @ [0.3, 0.01, -2.0] + 0.5
    reward = mean + generator.normal(size=n) * 0.3
    cluster = generator.integers(0, 200, n)
    return {"reward": reward, "arm": arm, "position": position, "cluster": cluster, "context": context}


def ridge(**changed: Any) -> Ridge:
    return Ridge(**{"arms": ARMS, "positions": POSITIONS, "features": FEATURES, **changed})


def summed(model: Ridge, log: dict[str, Any]) -> Any:
    columns = {name: log[name] for name in ("position", "cluster", "context")}
    return model.sums(log["reward"], log["arm"], **columns)


def test_the_direct_method_is_the_mean_of_the_model() -> None:
    (estimate,) = judged(HAND, "dm")
    assert estimate.value == (0.75 + 0.5 + 0.5 + 1) / 4
    assert (estimate.std_error, estimate.lower, estimate.upper, estimate.ess, estimate.max_weight) == (None,) * 5
    assert (estimate.verdict, "no-interval" in estimate.reasons) == ("insufficient", True)


def test_the_fit_is_ridge_regression_on_the_other_folds() -> None:
    log, model = rows(), ridge(ridge=7.0)
    fitted = model.finish(summed(model, log))
    fold = model.fold(log["cluster"])
    others = {name: column[fold != 2] for name, column in log.items()}
    dummies = [others["arm"][:, None] == np.arange(ARMS), others["position"][:, None] == np.arange(1, POSITIONS + 1)]
    x = np.column_stack([*dummies, others["context"], np.ones(len(others["arm"]))])
    pull = np.diag([7.0] * (ARMS + POSITIONS) + list(7.0 * others["context"].var(axis=0)) + [0.0])
    solved = np.linalg.solve(x.T @ x + pull, x.T @ others["reward"])
    np.testing.assert_allclose(fitted.effects[2], solved[:ARMS], rtol=1e-9)
    np.testing.assert_allclose(fitted.coefficients[2], np.r_[solved[-1], solved[ARMS:-1]], rtol=1e-9)


def test_sums_of_batches_are_the_sums_of_the_log() -> None:
    log, model = rows(), ridge()
    halves = [
        {name: column[rows_of_half] for name, column in log.items()} for rows_of_half in (slice(0, 70), slice(70, None))
    ]
    direct, added = (model.finish(s) for s in (summed(model, log), summed(model, halves[1]) + summed(model, halves[0])))
    np.testing.assert_allclose(added.effects, direct.effects, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(added.coefficients, direct.coefficients, rtol=1e-9, atol=1e-12)


def test_no_row_is_judged_by_a_model_that_saw_its_cluster() -> None:
    log, model = rows(), ridge()
    in_cluster = log["cluster"] == 17
    changed = {**log, "reward": np.where(in_cluster, 1e6, log["reward"])}
    fold = int(model.fold(np.array([17]))[0])
    before, after = (model.finish(summed(model, log)) for log in (log, changed))
    assert before.effects[fold].tolist() == after.effects[fold].tolist()
    assert before.effects[(fold + 1) % 5].tolist() != after.effects[(fold + 1) % 5].tolist()


def test_the_pull_is_strong_where_arms_do_not_differ() -> None:
    generator = np.random.default_rng(3)
    n = 4000
    arm, cluster, position = generator.integers(0, 50, n), np.arange(n), np.ones(n, dtype=np.int64)
    click = (generator.random(n) < 0.02).astype(np.float64)
    same, apart = click, click + (arm == 3)
    model = Ridge(arms=50)
    noise = model.finish(model.sums(same, arm, position=position, cluster=cluster))
    signal = model.finish(model.sums(apart, arm, position=position, cluster=cluster))
    assert np.abs(noise.effects).max() < 0.005
    assert (signal.effects[:, 3] - signal.effects[:, 4]).min() > 0.8


@pytest.mark.parametrize("reward_range", [(-np.inf, np.inf), (-50.0, 50.0), (0.3, 0.6)])
def test_the_mean_under_the_target_uses_the_predictions_as_clipped(reward_range: tuple[float, float]) -> None:
    log, model = rows(n=90), ridge()
    fitted = model.finish(summed(model, log), reward_range=reward_range)
    fold = model.fold(log["cluster"])
    offset = fitted.offset(fold, log["position"], context=log["context"])
    target = np.array([[0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 0.5, 0.5]])
    case = np.arange(90) % 2
    expected = fitted.predict_mean(target, case=case, fold=fold, offset=offset)
    value = np.clip(fitted.effects[fold] + offset[:, None], *fitted.reward_range)
    np.testing.assert_allclose(expected, (target[case] * value).sum(axis=1), rtol=1e-12)
    shown = fitted.predict(log["arm"], fold=fold, offset=offset)
    certain = fitted.predict_mean(np.eye(ARMS), case=log["arm"], fold=fold, offset=offset)
    np.testing.assert_allclose(shown, certain, rtol=1e-12)


def test_a_log_too_small_for_a_fold_predicts_nothing_wild() -> None:
    model = Ridge(arms=3)
    single = np.array([1])
    fitted = model.finish(model.sums(np.array([1.0]), np.array([2]), position=single, cluster=single))
    assert np.isfinite(fitted.effects).all()
    assert fitted.effects[int(model.fold(single)[0])].tolist() == [0.0] * 3


def test_a_table_is_looked_up_by_value_and_arm() -> None:
    table = RewardTable(np.array([[0.1, 0.2], [0.3, 0.4]]))
    value = np.array([0, 1, 1])
    assert table.predict(np.array([1, 0, 1]), value=value).tolist() == [0.2, 0.3, 0.4]
    expected = table.predict_mean(np.array([[0.5, 0.5]]), case=np.zeros(3, dtype=np.int64), value=value)
    assert expected.tolist() == pytest.approx([0.15, 0.35, 0.35])


@pytest.mark.parametrize("changed", [{"arm": ARMS}, {"arm": -1}, {"position": 0}, {"position": POSITIONS + 1}])
def test_rows_outside_the_model_are_refused(changed: dict[str, int]) -> None:
    log = rows(n=5)
    for name, value in changed.items():
        log[name] = np.full(5, value)
    with pytest.raises(InputError, match="outside"):
        summed(ridge(), log)


def test_a_context_of_another_width_is_refused() -> None:
    with pytest.raises(InputError, match="context"):
        summed(ridge(features=1), rows(n=5))
    with pytest.raises(InputError):
        RewardTable(np.array([[np.nan]]))
    with pytest.raises(InputError):
        ridge(ridge=0.0)


def test_a_row_of_weight_two_counts_as_two_rows() -> None:
    generator = np.random.default_rng(4)
    reward, arm, cluster = generator.random(40), generator.integers(0, 3, 40), generator.integers(0, 9, 40)
    position, context = generator.integers(1, 3, 40), generator.random((40, 2))
    ridge, times = Ridge(arms=3, positions=2, features=2), generator.integers(1, 4, 40)
    weighed = ridge.sums(
        reward, arm, position=position, cluster=cluster, context=context, weight=times.astype(np.float64)
    )
    again = np.repeat(np.arange(40), times)
    repeated = ridge.sums(
        reward[again], arm[again], position=position[again], cluster=cluster[again], context=context[again]
    )
    for name, values in vars(weighed).items():
        assert np.allclose(values, getattr(repeated, name)), name


def test_a_feature_that_never_varies_is_no_hazard() -> None:
    """Its variance, a difference of equal squares, may come out as a rounding instead of 0."""
    for seed in range(60):
        generator = np.random.default_rng(seed)
        n = int(generator.integers(6, 40))
        arm, position, cluster = generator.integers(0, 4, n), generator.integers(1, 3, n), generator.integers(0, 99, n)
        model, constant = Ridge(arms=4, positions=2, features=1), np.full((n, 1), generator.random())
        fitted = model.finish(
            model.sums(generator.random(n), arm, position=position, cluster=cluster, context=constant)
        )
        assert np.isfinite(fitted.coefficients).all()
        assert np.abs(fitted.coefficients).max() < 10
