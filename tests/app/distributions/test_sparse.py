"""Policies that read sparse contexts: their beliefs are sums on columns that came, exact whenever they are asked."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest

from rlrec.app.distributions import exact
from rlrec.app.learning import slot_statistics
from rlrec.app.policies import policy, policy_beliefs, rebuild, train, versions
from rlrec.app.requests import feedback, recommend
from rlrec.app.serving.cache import ServingCache
from rlrec.app.upkeep import db_removals, doctor
from rlrec.errors import InputError
from rlrec.policy.contexts.encoder import Encoder
from rlrec.store.policies import arms, beliefs, policies
from tests.app import logs
from tests.conftest import ON_BOTH, filled

RATES = (0.1, 0.5, 0.3)
VOCABULARY = [f"w{number}" for number in range(300)]
FEATURES = {"context": {"fields": {"words": {"list": [], "hash": 1 << 18}}}}

FEATURES_ENCODER = Encoder.parse(FEATURES["context"])


def sentences(number: int, *, seed: int = 1) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [{"words": generator.choice(VOCABULARY, 6, replace=False).tolist()} for _ in range(number)]


def create(db: str, name: str, kind: str = "softmax", **parameters: str) -> None:
    with closing(logs.at(db, 0)) as store:
        request = policy.Request(name=name, kind=kind, parameters={"ridge": "3", **parameters}, features=FEATURES)
        policy.create(store, request)


def log(db: str, kind: str = "softmax", **parameters: str) -> None:
    """Decisions of a policy `words` of three arms, with events that come late."""
    filled(db, logged, kind, *parameters.items())


def logged(db: str, kind: str, *parameters: tuple[str, str]) -> None:
    logs.catalogue(db, len(RATES))
    create(db, "words", kind, **dict(parameters))
    logs.serve(db, "words", pages=80, rates=RATES, contexts=sentences(80), group=10)


def sums_of(db: str, reference: str) -> slot_statistics.Totals:
    with closing(logs.at(db, 1e6)) as store, store.read() as unit:
        name, _, number = reference.partition("@")
        stored = policies.versions(unit, [policies.by_name(unit, name).id])
        version = next(version for version in stored if version.number == int(number))
        ordinal = version.ordinal if version.status == "frozen" else policies.ordinal(unit, version.policy.id)
        return slot_statistics.stored_sums(unit, version, ordinal=ordinal)


def assert_same(first: slot_statistics.Totals, second: slot_statistics.Totals) -> None:
    for key in first.keys() | second.keys():
        np.testing.assert_allclose(first.get(key, 0.0), second.get(key, 0.0), atol=1e-9)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "parameters"), [("softmax", {}), ("squarecb", {"discount": "0.95"})])
def test_the_audit_derives_every_propensity_again(db: str, kind: str, parameters: dict[str, str]) -> None:
    log(db, kind, floor="0.05", **parameters)
    with closing(logs.at(db, 1e5)) as store:
        report = doctor.doctor(store, doctor.Request())
    assert not report.findings
    assert report.checked["propensities"] == 80


def test_late_events_lead_to_the_belief_that_prompt_ones_do(db: str) -> None:
    log(db)
    clicks = [feedback.Line(decision_id=number, position=1, events={"click": 1.0}) for number in range(5, 60, 7)]
    with closing(logs.at(db, 500)) as store:
        feedback.feedback_stream(store, lambda: [clicks[::-1]], quarantine=False, reject=print)
        feedback.feedback_stream(
            store, lambda: [[feedback.Line(decision_id=5, position=1, censor=True)]], quarantine=False, reject=print
        )
    with closing(logs.at(db, 1e5)) as store:
        rebuild.rebuild(store, rebuild.Request(reference="words"))
    assert_same(sums_of(db, "words@1"), sums_of(db, "words@2"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "squarecb"])
def test_a_target_is_weighed_by_its_regression_on_each_column(db: str, kind: str) -> None:
    log(db, kind)
    logs.create(db, "log", "uniform", minutes=50)
    logs.serve(db, "log", pages=40, rates=RATES, contexts=sentences(40, seed=2), start=100)
    with closing(logs.at(db, 1e6)) as store, store.read() as unit:
        version = policies.versions(unit, [policies.by_name(unit, "words").id])[0]
        served, x = exact.load(unit, version), FEATURES_ENCODER
        ids = np.array(sorted(arm.id for arm in arms.all_arms(unit)))
        rows = {(row.bucket - 1, row.arm_id): row[3:6] for row in beliefs.rows(unit, version.id)}
        for context in sentences(40, seed=2):
            expected = []
            for arm in ids.tolist():
                pulls, reward, _ = rows[-1, arm]
                score, row = reward / (pulls + 3.0), x.encode_sparse([context])
                for column, value in zip(row.column.tolist(), row.value.tolist(), strict=True):
                    squares, response, total = rows.get((column, arm), (0.0, 0.0, 0.0))
                    score += value * (response - reward / pulls * total) / (squares + 3.0)
                expected.append(score)
            case = served.case("all", ids, context, keys={})
            assert case.index is not None
            np.testing.assert_allclose(case.index, expected, rtol=1e-12)
    assert logs.estimate(db, "words", "ips", log="policy=log")["n"] == 40


def test_a_request_reads_the_columns_of_its_context_alone(db: str) -> None:
    log(db)
    with closing(logs.at(db, 1e6)) as store, store.read() as unit:
        version = policies.versions(unit, [policies.by_name(unit, "words").id])[0]
        served = exact.load(unit, version)
        assert served.columns is not None
        ids = np.array(sorted(arm.id for arm in arms.all_arms(unit)))
        served.case("all", ids, {"words": ["w1", "w2", "never"]}, keys={})
        assert len(served.columns.cached_columns) == 3
        assert len(served.columns.column_ids()) > 100


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


def test_a_bandit_with_sparse_contexts_is_not_copied_into_a_trained_kind(sqlite_db: str) -> None:
    log(sqlite_db)
    request = policy.Request(name="copy", kind="gradient", from_policy="words")
    with closing(logs.at(sqlite_db, 1e4)) as store, pytest.raises(InputError, match="262145 columns"):
        policy.create(store, request)


# -- gradient --


def trained(db: str, name: str, features: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A gradient policy after `train-pg` on the log of `log`."""
    with closing(logs.at(db, 1e4)) as store:
        policy.create(store, policy.Request(name=name, kind="gradient", parameters={"floor": "0.1"}, features=features))
        request = train.Request(name=name, log="policy=log", seed=1, promote="always", baseline="mean", **options)
        return dict(train.train(store, request))


def test_sparse_contexts_train_what_dense_ones_do(sqlite_db: str) -> None:
    """The same words as columns of their own: only signs of hashed columns differ, and what rounding leaves."""
    db, words = sqlite_db, VOCABULARY[:100]
    logs.begin(db, len(RATES), "log", "uniform")
    contexts = [{"words": [word for word in each["words"] if word in words]} for each in sentences(300, seed=4)]
    logs.serve(db, "log", pages=300, rates=RATES, contexts=contexts)
    trained(db, "dense", {"context": {"fields": {"words": {"list": words}}}}, epochs=2)
    trained(db, "hashed", FEATURES, epochs=2)
    dense, hashed = (
        logs.estimate(db, name, "ips", log="policy=log", interval="normal") for name in ("dense", "hashed")
    )
    assert dense["value"] != pytest.approx(0.3)
    assert hashed["value"] == pytest.approx(dense["value"], rel=1e-4)
    assert hashed["max_weight"] == pytest.approx(dense["max_weight"], rel=1e-4)


@pytest.mark.parametrize("options", [{"weights": "slate"}, {"weights": "slot"}, {"top_k": 2}])
def test_pages_with_sparse_contexts_are_trained_and_served(sqlite_db: str, options: dict[str, Any]) -> None:
    db = sqlite_db
    logs.begin(db, len(RATES), "log", "uniform")
    logs.serve(db, "log", pages=200, rates=RATES, contexts=sentences(200, seed=4), size=2, together=1)
    assert trained(db, "learner", FEATURES, epochs=2, **options)["trained"]
    logs.serve(db, "learner", pages=20, rates=RATES, contexts=sentences(20, seed=5), size=2, start=2e4)
    with closing(logs.at(db, 1e5)) as store:
        assert not doctor.doctor(store, doctor.Request()).findings


@ON_BOTH
def test_a_trained_version_is_served_shown_and_audited(db: str) -> None:
    logs.begin(db, len(RATES), "log", "uniform")
    logs.serve(db, "log", pages=150, rates=RATES, contexts=sentences(150, seed=4))
    first = trained(db, "learner", FEATURES, epochs=2)
    logs.serve(db, "learner", pages=20, rates=RATES, contexts=sentences(20, seed=5), start=2e4)
    with closing(logs.at(db, 1e5)) as store:
        assert not doctor.doctor(store, doctor.Request()).findings
        shown = policy_beliefs.show(store, "learner", context={"words": VOCABULARY[:3]})
        again = train.train(store, train.Request(name="learner", seed=1, promote="always", epochs=1))
    assert all(any(name.startswith("words#") for name in row["weights"]) for row in shown["arms"])
    assert again["version"] == first["version"] + 1


# -- what leaves a log --


def served_then_settled(db: str, **parameters: str) -> None:
    """A log of ten users, and a frozen version beside the one that learns."""
    logs.catalogue(db, len(RATES))
    create(db, "words", floor="0.1", **parameters)
    logs.serve(db, "words", pages=60, rates=RATES, contexts=sentences(60), group=10, users=10)
    with closing(logs.at(db, 500)) as store:
        versions.freeze(store, "words")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("db", "parameters"), [("postgres", {}), ("sqlite", {"discount": "0.98"})], indirect=["db"]
)  # fmt: skip
def test_a_user_who_is_forgotten_leaves_the_columns(db: str, parameters: dict[str, str]) -> None:
    served_then_settled(db, **parameters)
    with closing(logs.at(db, 1e5)) as store:
        assert db_removals.forget(store, "u3").get("beliefs") == 2
        assert not doctor.doctor(store, doctor.Request()).findings
        rebuild.rebuild(store, rebuild.Request(reference="words"))
    assert_same(sums_of(db, "words@1"), sums_of(db, "words@3"))


@pytest.mark.slow
def test_a_pruned_log_leaves_the_columns_as_they_are(db: str) -> None:
    served_then_settled(db)
    before = sums_of(db, "words@1")
    with closing(logs.at(db, 1e5)) as store:
        pruned = db_removals.prune(store, logs.START + 4 * logs.MINUTE)
        assert pruned["decisions"] > 10
        assert not doctor.doctor(store, doctor.Request()).findings
    assert_same(before, sums_of(db, "words@1"))


def test_a_whole_context_is_hashed(sqlite_db: str) -> None:
    logs.catalogue(sqlite_db, len(RATES))
    with closing(logs.at(sqlite_db, 0)) as store:
        features = {"context": {"hash": 4096}}
        policy.create(store, policy.Request(name="words", kind="softmax", features=features))
    logs.serve(sqlite_db, "words", pages=50, rates=RATES, contexts=sentences(50))
    with closing(logs.at(sqlite_db, 1e5)) as store:
        assert not doctor.doctor(store, doctor.Request()).findings
        shown = policy_beliefs.show(store, "words", context=sentences(1)[0])
    assert all(name.startswith("#") for row in shown["arms"] for name in row["weights"])


# -- fitted to a log --


def fitted(db: str, kind: str = "softmax", **parameters: str) -> None:
    """A policy that starts from a log of ten users, and goes on learning."""
    logs.begin(db, len(RATES), "log", "uniform")
    logs.serve(db, "log", pages=100, rates=RATES, contexts=sentences(100, seed=6), users=10)
    with closing(logs.at(db, 500)) as store:
        policy.create(store, policy.Request(
            name="words", kind=kind, parameters={"ridge": "3", "floor": "0.1", **parameters}, features=FEATURES,
            from_log="policy=log",
        ))  # fmt: skip
    logs.serve(db, "words", pages=40, rates=RATES, contexts=sentences(40, seed=7), start=1000, group=10)


def probabilities(db: str, reference: str) -> list[float]:
    with closing(logs.at(db, 1e5)) as store:
        shown = policy_beliefs.show(store, reference, context=sentences(1, seed=6)[0])
    return [row["probability"] for row in shown["arms"]]


@pytest.mark.slow
def test_a_fitted_policy_goes_on_exactly(db: str) -> None:
    fitted(db, discount="0.98")
    with closing(logs.at(db, 1e5)) as store:
        assert not doctor.doctor(store, doctor.Request()).findings
        versions.freeze(store, "words")
        rebuild.rebuild(store, rebuild.Request(reference="words"))
        assert not doctor.doctor(store, doctor.Request()).findings
    first = probabilities(db, "words@1")
    assert max(first) > 0.5
    np.testing.assert_allclose(probabilities(db, "words@2"), first, rtol=1e-9)
    np.testing.assert_allclose(probabilities(db, "words@3"), first, rtol=1e-6)


def test_a_user_of_the_log_is_taken_out_and_named(db: str) -> None:
    fitted(db)
    with closing(logs.at(db, 1e5)) as store:
        forgotten = db_removals.forget(store, "u3")
        assert forgotten["retrain"] == ["words@1"]
        assert not doctor.doctor(store, doctor.Request()).findings


def test_other_features_start_without_the_fit(sqlite_db: str) -> None:
    fitted(sqlite_db)
    with closing(logs.at(sqlite_db, 1e5)) as store:
        other = {"context": {"fields": {"words": {"list": [], "hash": 1024}}}}
        rebuild.rebuild(store, rebuild.Request(reference="words", features=other))
        assert not doctor.doctor(store, doctor.Request()).findings
    assert max(probabilities(sqlite_db, "words@2")) > 0.4
