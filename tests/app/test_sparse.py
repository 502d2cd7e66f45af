"""Policies that read sparse contexts: their beliefs are sums on columns that came, exact whenever they are asked."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest

from rlrec.app import doctor, feedback, policy, rebuild, recommend, versions
from rlrec.app.distributions import exact
from rlrec.app.learning import slot_statistics
from rlrec.app.serving.cache import ServingCache
from rlrec.policy.encoder import Encoder
from rlrec.store import arms, beliefs, policies
from tests.app import logs

RATES = (0.1, 0.5, 0.3)
VOCABULARY = [f"w{number}" for number in range(300)]
FEATURES = {"context": {"fields": {"words": {"list": [], "hash": 1 << 18}}}}

FEATURES_ENCODER = Encoder.of(FEATURES["context"])


def sentences(number: int, *, seed: int = 1) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [{"words": generator.choice(VOCABULARY, 6, replace=False).tolist()} for _ in range(number)]


def create(db: str, name: str, kind: str = "softmax", **parameters: str) -> None:
    with closing(logs.at(db, 0)) as store:
        request = policy.Request(name=name, kind=kind, parameters={"ridge": "3", **parameters}, features=FEATURES)
        policy.create(store, request)


def log(db: str, kind: str = "softmax", pages: int = 120, **parameters: str) -> None:
    """Decisions of a policy `words` of three arms, with events that come late."""
    logs.catalogue(db, len(RATES))
    create(db, "words", kind, **parameters)
    logs.serve(db, "words", pages=pages, rates=RATES, contexts=sentences(pages), group=10)


def sums_of(db: str, reference: str) -> slot_statistics.Totals:
    with closing(logs.at(db, 1e6)) as store, store.read() as unit:
        name, _, number = reference.partition("@")
        stored = policies.versions(unit, [policies.by_name(unit, name).id])
        version = next(version for version in stored if version.number == int(number))
        ordinal = version.ordinal if version.status == "frozen" else policies.ordinal(unit, version.policy.id)
        return slot_statistics.stored_sums(unit, version, ordinal=ordinal)


def assert_same(first: slot_statistics.Totals, second: slot_statistics.Totals) -> None:
    zero = np.zeros(3)
    for key in first.keys() | second.keys():
        np.testing.assert_allclose(first.get(key, zero), second.get(key, zero), atol=1e-9)


@pytest.mark.parametrize("parameters", [{}, {"discount": "0.99"}])
def test_a_rebuilt_belief_is_the_one_that_learned(db: str, parameters: dict[str, str]) -> None:
    log(db, **parameters)
    with closing(logs.at(db, 1e5)) as store:
        rebuild.rebuild(store, rebuild.Request(reference="words"))
        versions.freeze(store, "words")
    learned = sums_of(db, "words@1")
    assert max(bucket for bucket, _ in learned) > 300
    assert_same(learned, sums_of(db, "words@2"))
    assert_same(learned, sums_of(db, "words@3"))


@pytest.mark.parametrize(("kind", "parameters"), [("softmax", {}), ("squarecb", {"discount": "0.95"})])
def test_the_audit_derives_every_propensity_again(db: str, kind: str, parameters: dict[str, str]) -> None:
    log(db, kind, floor="0.05", **parameters)
    with closing(logs.at(db, 1e5)) as store:
        report = doctor.doctor(store, doctor.Request())
    assert not report.findings
    assert report.checked["propensities"] == 120


def test_late_events_lead_to_the_belief_that_prompt_ones_do(db: str) -> None:
    log(db)
    clicks = [feedback.Line(decision_id=number, position=1, events={"click": 1.0}) for number in range(5, 60, 7)]
    with closing(logs.at(db, 500)) as store:
        feedback.feedback_stream(store, lambda: [clicks[::-1]], quarantine=False, rejected=print)
        feedback.feedback_stream(
            store, lambda: [[feedback.Line(decision_id=5, position=1, censor=True)]], quarantine=False, rejected=print
        )
    with closing(logs.at(db, 1e5)) as store:
        rebuild.rebuild(store, rebuild.Request(reference="words"))
    assert_same(sums_of(db, "words@1"), sums_of(db, "words@2"))


@pytest.mark.parametrize("kind", ["softmax", "squarecb"])
def test_a_target_is_weighed_by_its_regression_on_each_column(db: str, kind: str) -> None:
    log(db, kind)
    logs.create(db, "log", "uniform", minutes=50)
    logs.serve(db, "log", pages=40, rates=RATES, contexts=sentences(40, seed=2), start=100)
    with closing(logs.at(db, 1e6)) as store, store.read() as unit:
        version = policies.versions(unit, [policies.by_name(unit, "words").id])[0]
        served, x = exact.load(unit, version), FEATURES_ENCODER
        ids = np.array(sorted(arm.id for arm in arms.every(unit)))
        rows = {(row.bucket - 1, row.arm_id): row[3:6] for row in beliefs.rows(unit, version.id)}
        for context in sentences(40, seed=2):
            expected = []
            for arm in ids.tolist():
                pulls, reward, _ = rows[-1, arm]
                score, row = reward / (pulls + 3.0), x.sparse([context])
                for column, value in zip(row.column.tolist(), row.value.tolist(), strict=True):
                    squares, response, total = rows.get((column, arm), (0.0, 0.0, 0.0))
                    score += value * (response - reward / pulls * total) / (squares + 3.0)
                expected.append(score)
            case = served.case("all", ids, context, keys={})
            assert case.index is not None
            np.testing.assert_allclose(case.index, expected, rtol=1e-12)
    assert logs.one(db, "words", "ips", log="policy=log")["n"] == 40


def test_a_request_reads_the_columns_of_its_context_alone(db: str) -> None:
    log(db)
    with closing(logs.at(db, 1e6)) as store, store.read() as unit:
        version = policies.versions(unit, [policies.by_name(unit, "words").id])[0]
        served = exact.load(unit, version)
        assert served.columns is not None
        ids = np.array(sorted(arm.id for arm in arms.every(unit)))
        served.case("all", ids, {"words": ["w1", "w2", "never"]}, keys={})
        assert len(served.columns.read) == 3
        assert len(served.columns) <= 3 * len(ids)
        assert len(served.columns.columns()) > 100


def test_a_warm_process_serves_what_a_new_one_would(db: str) -> None:
    log(db)
    requests = [
        recommend.Request(policy="words", session=f"x{n}", context=words)
        for n, words in enumerate(sentences(9, seed=3))
    ]
    with closing(logs.at(db, 300)) as store:
        cache = ServingCache()
        warm = [recommend.recommend_group(store, [each], seed=1, cache=cache, dry_run=True)[0] for each in requests]
        cold = [recommend.recommend_group(store, [each], seed=1, dry_run=True)[0] for each in requests]
    assert warm == cold
