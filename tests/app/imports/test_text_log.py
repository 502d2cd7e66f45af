"""A log of texts with 9,500 distinct words: what is learned from them reaches scikit-learn's linear models."""

from __future__ import annotations

from contextlib import closing
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression, Ridge

from rlrec.app.distributions import exact
from rlrec.app.log.splits import GATE, TRAIN
from rlrec.app.policies import policy
from rlrec.arrays import Array
from rlrec.policy.contexts.encoder import Encoder
from rlrec.policy.contexts.features import Sparse
from rlrec.store import Unit
from rlrec.store.log import reader
from rlrec.store.log.selected import Selection
from rlrec.store.policies import arms, policies
from tests.app import logs
from tests.conftest import filled

ARMS, TOPICS, WORDS, LENGTH, TEXTS = 5, 12, 10_500, 20, 8_000
FEATURES = {"context": {"fields": {"words": {"list": [], "hash": 1 << 18}}}}


@cache
def texts(seed: int = 1) -> tuple[list[dict[str, Any]], Array]:
    """Texts on topics, with words as frequent as in a language, and the click rate of each arm, by the weights of their
    words."""
    rng = np.random.default_rng(seed)
    frequency = np.arange(1, WORDS + 1) ** -0.8 * np.exp(1.5 * rng.normal(size=(TOPICS, WORDS)))
    frequency, weights = frequency / frequency.sum(axis=1, keepdims=True), rng.normal(size=(WORDS, ARMS))
    words = [np.unique(rng.choice(WORDS, LENGTH, p=frequency[topic])) for topic in rng.integers(TOPICS, size=TEXTS)]
    logit = np.array([weights[text].sum(axis=0) for text in words])
    rates = 1 / (1 + np.exp(1 - 1.5 * (logit - logit.mean(axis=0)) / logit.std()))
    return [{"words": [f"w{word}" for word in text]} for text in words], rates


def serve(db: str) -> None:
    contexts, rates = texts()
    logs.begin(db, ARMS, "log", "uniform")
    logs.serve(db, "log", pages=TEXTS, rates=rates, contexts=contexts, together=1)


def served(unit: Unit, split: int) -> tuple[Array, Array, Array]:
    """Of the decisions of a split: the number of each text, its arm, and whether it was clicked."""
    selection = Selection(policy_ids=[policies.by_name(unit, "log").id], splits=[split])
    (batch,) = reader.batches(unit, selection, columns=tuple(reader.COLUMNS))
    clicked = np.isin(batch.slots["decision_id"], batch.events["decision_id"])
    return batch.slots["decision_id"] - 1, batch.slots["arm_id"], clicked.astype(np.float64)


def matrix(x: Sparse) -> Any:
    return csr_matrix((x.value, x.column, x.start), shape=(len(x), int(x.column.max()) + 1))


@pytest.mark.simulation
@pytest.mark.parametrize("kind", ["softmax", "squarecb"])
def test_a_bandit_reaches_a_linear_model_less_one_standard_error(sqlite_db: str, kind: str) -> None:
    """Both learn on `train` and are judged on `gate`, greedy. Click rates are known, so that the difference between the
    two is exact; the standard error is that of the estimate."""
    db, (contexts, rates) = sqlite_db, texts()
    assert len({word for text in contexts for word in text["words"]}) > 9_500
    filled(db, serve)
    with closing(logs.at(db, 1e4)) as store:
        policy.create(store, policy.Request(
            name="ours", kind=kind, parameters={"ridge": "50"}, features=FEATURES, from_log="policy=log,split=train",
        ))  # fmt: skip
    estimate = logs.estimate(db, "ours", "snips", log="policy=log,split=gate", interval="normal", greedy=True)
    with closing(logs.at(db, 1e4)) as store, store.read() as unit:
        (rows, arm, clicked), (judged, _, _) = served(unit, TRAIN), served(unit, GATE)
        version = policies.versions(unit, [policies.by_name(unit, "ours").id])[0]
        distribution, ids = exact.load(unit, version), np.array([each.id for each in arms.all_arms(unit)])
        scores = [distribution.case("all", ids, contexts[row], keys={}).index for row in judged.tolist()]
    sparse = Encoder.parse(FEATURES["context"]).encode_sparse(contexts)
    x = matrix(sparse.select_columns(np.unique(sparse.column)))  # columns that no text has would only take time
    predicted = []
    for model in (partial(Ridge, alpha=30.0, solver="sparse_cg"), partial(LogisticRegression, C=0.1)):
        fitted = [model().fit(x[rows[arm == each]], clicked[arm == each]) for each in ids]
        predicted.append(np.column_stack([x[judged] @ each.coef_.ravel() + each.intercept_ for each in fitted]))
    ours, *theirs = (float(rates[judged, np.argmax(score, axis=1)].mean()) for score in (np.array(scores), *predicted))
    assert ours > max(theirs) - estimate["std_error"]
    assert max(theirs) > rates.mean() + 4 * estimate["std_error"]
    assert estimate["value"] == pytest.approx(ours, abs=4 * estimate["std_error"])
