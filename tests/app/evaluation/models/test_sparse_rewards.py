"""Reward models with a weight of each arm on each hashed column of contexts, against plain loops."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest

from rlrec.app.evaluation.models.reward_models import SPARSE_PENALTY, ContextMoments
from rlrec.app.evaluation.rows.log_rows import cluster_digests
from rlrec.errors import InputError
from rlrec.ope.estimators.direct import Ridge
from rlrec.policy.contexts import features
from rlrec.store.database.unit import parse
from rlrec.store.log import contents, reader
from rlrec.store.log.selected import Selection
from rlrec.store.policies import policies
from tests.app import logs
from tests.conftest import ON_BOTH, Run

RATES = (0.2, 0.5, 0.35)
COLUMNS = 1 << 10


def texts(number: int, *, seed: int = 1) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [{"words": generator.choice(40, 5, replace=False).astype(str).tolist()} for _ in range(number)]


def log(db: str, pages: int = 300) -> None:
    logs.begin(db, len(RATES), "log", "uniform")
    logs.serve(db, "log", pages=pages, rates=RATES, contexts=texts(pages), users=60)


@ON_BOTH
def test_the_direct_method_is_the_mean_of_plain_regressions(db: str) -> None:
    log(db)
    with closing(logs.at(db, 1e6)) as store, store.read() as unit:
        selection = Selection(policy_ids=[policies.by_name(unit, "log").id])
        (batch,) = reader.batches(unit, selection, columns=tuple(reader.COLUMNS))
        bodies = contents.context_bodies(unit, set(batch.slots["context_id"].tolist()))
        x = features.hash_contexts(
            [parse(bodies[key], "a context") for key in batch.slots["context_id"].tolist()], COLUMNS
        )
        cluster, arm = cluster_digests(batch.slots, "user"), batch.slots["arm_id"] - batch.slots["arm_id"].min()
    reward = np.isin(batch.slots["decision_id"], batch.events["decision_id"]).astype(np.float64)
    dense, ridge = np.zeros((len(x), COLUMNS)), Ridge(arms=3)
    np.add.at(dense, (x.row, x.column.astype(np.int64)), x.value)
    fold, position = ridge.fold(cluster), np.ones(len(x), np.int64)
    model = ridge.finish(ridge.sums(reward, arm, position=position, cluster=cluster))
    values = model.offset(fold, position)[:, None] + model.effects[fold]
    for number in range(ridge.folds):
        for each in range(3):
            rows = (fold != number) & (arm == each)
            residual = reward[rows] - reward[rows].mean()
            weights = dense[rows].T @ residual / ((dense[rows] ** 2).sum(axis=0) + SPARSE_PENALTY)
            values[fold == number, each] += dense[fold == number] @ weights
    estimate = logs.estimate(db, "uniform", "dm", log="policy=log", reward_model_hash=COLUMNS)
    assert estimate["value"] == pytest.approx(np.clip(values, 0, 1).mean(), rel=1e-12)


def test_moments_of_batches_add_up() -> None:
    rng = np.random.default_rng(3)
    keys = [np.unique(rng.integers(0, 50, 30)) for _ in range(3)]
    parts = [ContextMoments(key, rng.integers(0, 9, (len(key), 5, 3)).astype(np.float64)) for key in keys]
    dense = np.zeros((50, 5, 3))
    for piece in parts:
        dense[piece.key] += piece.sums
    for total in (parts[0] + parts[1] + parts[2], parts[2] + (parts[0] + parts[1])):
        np.testing.assert_array_equal(total.key, np.unique(np.concatenate(keys)))
        np.testing.assert_array_equal(total.sums, dense[total.key])


@pytest.mark.slow
def test_several_processes_fit_the_same_model(run_sqlite: Run, sqlite_db: str) -> None:
    log(sqlite_db)
    command = (
        "--now",
        "2030-01-01",
        "evaluate",
        "uniform",
        "--estimator",
        "dr",
        "--reward-model-hash",
        COLUMNS,
        "--json",
    )
    alone, together = (run_sqlite(*command, "--jobs", jobs).json for jobs in (1, 2))
    assert alone == together
    assert alone[0]["std_error"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_model_hash": 1000}, "hash of the reward model"),
        ({"reward_model_hash": 1024, "estimators": "ips"}, "no reward model is fitted"),
        ({"reward_model_hash": 1024, "reward_model": "rewards.csv"}, "no reward model is fitted"),
    ],
)
def test_what_hashes_nothing_is_refused(sqlite_db: str, options: dict[str, Any], message: str) -> None:
    logs.catalogue(sqlite_db, 3)
    with pytest.raises(InputError, match=message):
        logs.judged(sqlite_db, "uniform", **{"estimators": "dr", **options})
