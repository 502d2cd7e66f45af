"""This module computes the belief from which a new version starts, by fitting it to a log or to the past of its
policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from itertools import chain
from math import isqrt
from typing import Any, NamedTuple

import numpy as np

from rlrec import policy as kinds
from rlrec.app.distributions import designs
from rlrec.app.inputs import filters, lookup
from rlrec.app.learning import slot_statistics
from rlrec.app.learning.slot_statistics import BeliefFold, Totals
from rlrec.app.log import lineage, reward_log, stored_contexts
from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.policy.beliefs.solving import MAX_SHARED_WEIGHTS
from rlrec.policy.contexts import marginal
from rlrec.policy.contexts.encoder import Design, Encoder, EncoderFit
from rlrec.policy.contexts.features import MAX_WIDTH, Sparse
from rlrec.policy.gradients.gradient import BILINEAR
from rlrec.policy.kinds.linear import HYBRID, SHARED, Linear
from rlrec.policy.kinds.odds import FEATURES
from rlrec.records import Record, Version
from rlrec.store import Unit
from rlrec.store.database.unit import parse
from rlrec.store.log.selected import Selection
from rlrec.store.policies import arms

ROUNDS = 8  # of Newton's method, at most
CLOSE = 1e-8
Weights = Sequence[tuple[int, bytes]]
"""Weights by the ids of arms, packed."""

HASHED = 16  # columns for hashed features of arms, while there are no arms to fit an encoder to


class InitialBelief(Record):
    """This record holds the belief and the parameters with which a version starts. record: the description of the logs
    from which the sums were computed; logs: the selections of these logs. Only for a trained kind, weights: the weights
    of each arm by id; parent_id: the version that the kind copies."""

    sums: Totals = field(default_factory=dict)
    weights: Weights = ()
    parent_id: int | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    logs: Sequence[Selection] = ()


NO_BELIEF = InitialBelief()


def warm_start(
    unit: Unit, kind: str, params: Mapping[str, Any], encoders: Mapping[str, Encoder] | None, *, reward_name: str,
    from_log: str | None,
) -> InitialBelief:  # fmt: skip
    """Return the belief with which `policy create` starts a version. If there is a log, the belief has learned from the
    mature decisions of this log. from_log: the filter of the log, or None."""
    reward = lookup.reward(unit, reward_name)
    selection = None if from_log is None else filters.selection(unit, from_log)
    version = designs.make_draft(kind, params, reward)
    if kinds.make(kind, params).is_contextual:
        design = fit_design(unit, selection, version, encoders=encoders or {}, is_shared=shares_weights(params))
        version = replace(version, parameters=design.to_json())
        designs.policy_of(version)  # raises where the model cannot hold so many features
    if selection is None or from_log is None or not kinds.load(kind).learns_online:
        return InitialBelief(parameters=version.parameters)
    log_fit = fit_to_log(unit, version, [selection])
    if not log_fit.slots:
        raise InputError("the log has no mature decision to learn from", hint="import a log, or widen the filter")
    record = lineage.make_record(
        unit, from_log, selection, last_id=log_fit.last_id, window_us=reward.window_us, slots=log_fit.slots
    )
    sums, budget = log_fit.sums, kinds.make(kind, params).parsed_budget
    log = replace(selection, last_id=log_fit.last_id)
    if budget is not None:
        sums = sums | BeliefFold(unit, version, ordinal=0).log_spend(log, budget)
    return InitialBelief(
        sums=sums, record=record, parameters=log_fit.version.parameters, weights=log_fit.weights, logs=[log]
    )


def shares_weights(params: Mapping[str, Any]) -> bool:
    """Tell whether these parameters of a policy ask for a model with weights that all arms share."""
    models = {value for name, value in params.items() if name.rpartition(".")[2] == "model"}
    return not models.isdisjoint((SHARED, HYBRID, BILINEAR, FEATURES))


def refit(unit: Unit, version: Version, *, from_prior: bool) -> InitialBelief:
    """Return the belief from which a rebuilt version starts: fitted to the logs to which its parent was fitted, by the
    definition of `version`. If a model expanded around weights got no sums in this way, it is fitted to the policy's
    own mature log. from_prior: whether to leave out the parent's logs, since the world has changed."""
    record = version.learned_from
    fitted_to = {name: record[name] for name in ("prior",) if name in record}
    sums: Totals = {}
    weights: Weights = ()
    selections = list[Selection]()
    for log in () if from_prior else lineage.fitted_logs(record):
        exclusion_tests = filters.exclusion_tests(unit, ignored_names=filters.parse(log["filter"]).get("included"))
        selections.append(Selection(**{"last_id": log.get("last_id"), **log["selection"], "without": exclusion_tests}))
    if selections:
        version, sums, n_slots, _, weights = fit_to_log(unit, version, selections)
        names = ("filter", "selection", "last_id", "now", "window_us", "variants")
        fitted_to |= {name: record[name] for name in names if name in record} | {"slots": n_slots}
    policy = designs.policy_of(version)
    if kinds.is_contextual(policy) and policy.expands_model and not sums:
        all_log, first_id = filters.selection(unit, None), version.since or None
        served_log = replace(all_log, policy_ids=[version.policy.id], first_id=first_id, imported=False)
        version = fit_to_log(unit, version, [served_log]).version
    return InitialBelief(sums=sums, record=fitted_to, parameters=version.parameters, weights=weights, logs=selections)


def fit_design(
    unit: Unit, selection: Selection | None, draft: Version, *, encoders: Mapping[str, Encoder], is_shared: bool
) -> Design:
    """Return a design with the declared encoders. Encoders that are not declared are fitted to the contexts of a log
    and to the catalogue; without a log, values of contexts are hashed.

    is_shared: whether all arms share one model. Such a model can hold only a limited number of products of a context
    feature and an arm feature, so fitted encoders are then kept small enough."""
    log = None if "context" in encoders else selection
    context = encoders.get("context", Encoder.by_hash())
    max_columns = MAX_SHARED_WEIGHTS // context.width if log is None else isqrt(MAX_SHARED_WEIGHTS)
    arm = encoders.get("arm") or _catalogue_encoder(
        unit, max_columns=min(max_columns, MAX_WIDTH) if is_shared else MAX_WIDTH
    )
    if log is not None:
        encoder_fit = EncoderFit()
        for impressions in reward_log.impressions(unit, log, draft.reward, columns=["context_id"]):
            contexts, context_index = stored_contexts.distinct_contexts(unit, impressions.slots["context_id"])
            encoder_fit.take([contexts[row] for row in context_index.tolist()])  # each context as often as it occurs
        max_columns = MAX_SHARED_WEIGHTS // arm.width
        context = Encoder.parse(encoder_fit.spec(max_columns=min(max_columns, MAX_WIDTH) if is_shared else MAX_WIDTH))
    learns = kinds.load(draft.policy.kind).learns_online and draft.policy.kind != kinds.TWO_STAGE
    return Design(context=context, arm=arm, learns_stated=is_shared and learns)


def _catalogue_encoder(unit: Unit, *, max_columns: int) -> Encoder:
    descriptions = [parse(arm.features, f"arm {arm.key}") for arm in arms.all_arms(unit)]
    if not any(descriptions):
        n_columns = HASHED
        while n_columns >= max_columns:
            n_columns //= 2
        return Encoder.by_hash(n_columns)
    encoder_fit = EncoderFit()
    encoder_fit.take(descriptions)
    return Encoder.parse(encoder_fit.spec(max_columns=max_columns))


class LogFit(NamedTuple):
    """This record is the result of fitting a version, not stored yet, to logs. version: the version, with the weights
    around which its model is expanded; sums: the sums with these weights; slots: the number of slots; last_id: the last
    decision; weights: the weights of each arm by id, if contexts are sparse."""

    version: Version
    sums: Totals
    slots: int
    last_id: int
    weights: Weights = ()


def fit_to_log(unit: Unit, version: Version, logs: Sequence[Selection]) -> LogFit:
    """Fit a version, which is not stored yet, to the decisions of all these logs. No decision is in two of them.

    A logistic model is expanded around its weights. The expansion is repeated (Newton's method) until the weights no
    longer change."""
    policy = designs.policy_of(version)
    if isinstance(policy, Linear) and policy.is_sparse:
        weights = _fit_columns(unit, version, policy, logs)
        fold = BeliefFold(unit, version, ordinal=0, anchor=marginal.Anchor.from_packed(weights))
        return LogFit(version, *fold.log_sums(logs, columns=["context_id"]), weights)
    for rounds_left in reversed(range(ROUNDS)):
        sums, n_slots, last_id = BeliefFold(unit, version, ordinal=0).log_sums(logs, columns=["context_id"])
        expanded_version = expand(unit, version, sums) if rounds_left else None
        if expanded_version is None:
            break
        version = expanded_version
    return LogFit(version, sums, n_slots, last_id)


def _fit_columns(unit: Unit, version: Version, policy: Linear, logs: Sequence[Selection]) -> Weights:
    """Fit the weights of each arm on all columns of sparse contexts together, and return them by arm id. All contexts
    of the logs are in memory."""
    batch_columns: list[tuple[Sparse, Array, Array, Array]] = []
    for impressions in chain.from_iterable(
        reward_log.impressions(unit, log, version.reward, columns=["context_id"]) for log in logs
    ):
        contexts, context_index = stored_contexts.distinct_contexts(unit, impressions.slots["context_id"])
        examined_sums = policy.rewards_and_pulls(impressions.reward, impressions.slots["position"])
        count = reward_log.sampling_counts(impressions.slots)
        reward, pulls = examined_sums if count is None else (sums * count for sums in examined_sums)
        x = policy.design.context.encode_sparse(contexts)[context_index]
        batch_columns.append((x, impressions.slots["arm_id"], pulls, reward))
    if not batch_columns:
        return []
    x = Sparse.concatenate([contexts for contexts, *_ in batch_columns])
    arm, pulls, reward = (
        np.concatenate(columns) for columns in zip(*(columns[1:] for columns in batch_columns), strict=True)
    )
    return [
        (number, marginal.fit(
            x[rows], pulls=pulls[rows], reward=reward[rows], ridge=policy.ridge,
            intercept=policy.design.context.intercept,
        ))
        for number, rows in ((number, np.flatnonzero(arm == number)) for number in np.unique(arm).tolist())
    ]  # fmt: skip


def expand(unit: Unit, version: Version, sums: Totals) -> Version | None:
    """Return a version, not stored yet, with its model expanded around the weights that `sums` give. Return None if the
    model is already expanded around these weights, or if it is never expanded."""
    policy = designs.policy_of(version)
    if not sums or not kinds.is_contextual(policy) or not policy.expands_model:
        return None
    draft = slot_statistics.distribution_of(unit, version, sums)
    arm_ids = np.unique([arm for _, arm in sums])
    weights = policy.weights(draft.belief(arm_ids, revision=designs.NOW))
    old_anchor, anchor = policy.design.anchor, dict(zip(arm_ids.tolist(), weights, strict=True))
    if all(arm in old_anchor and np.allclose(old_anchor[arm], anchor[arm], atol=CLOSE) for arm in anchor):
        return None
    return replace(version, parameters={**version.parameters, **replace(policy.design, anchor=anchor).to_json()})
