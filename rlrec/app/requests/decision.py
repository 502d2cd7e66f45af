"""This module shows the probabilities of one decision: as stored, and as computed again from the belief."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict, cast

import numpy as np

from rlrec.app.audit.draws import propensities
from rlrec.app.audit.draws.propensities import DRAWS
from rlrec.app.audit.integrity.findings import Findings
from rlrec.app.distributions import exact
from rlrec.app.distributions.exact import EligibleDistribution, VersionDistribution
from rlrec.app.distributions.trained import TrainedModel
from rlrec.app.requests import session
from rlrec.app.serving.draws import to_unsigned
from rlrec.app.serving.requests import Answer
from rlrec.arrays import Array, Index, finite_or_none
from rlrec.errors import InputError
from rlrec.policy import NARROWING
from rlrec.policy.contexts.statements import GROUPS, LOGGED_RULES
from rlrec.policy.gradients import history
from rlrec.policy.gradients.gradient import MEMORY_FEATURES, State
from rlrec.policy.kinds.two_stage import RANKING_KEY
from rlrec.policy.scores.floors import at_positions
from rlrec.policy.scores.scores import Scores
from rlrec.policy.slates import slate
from rlrec.policy.slates.interleaving import TeamDraftSampler
from rlrec.policy.slates.rules import RuledScores
from rlrec.records import Decision, Slot, Version
from rlrec.store import Store, Unit
from rlrec.store.database.unit import damage_error
from rlrec.store.log import candidates, contents, decisions
from rlrec.store.log.candidates import TEAMS
from rlrec.store.policies import arms, policies
from rlrec.times import format_time

N_NEWEST, MAX_SHOWN = 50_000, 20  # decisions that are searched for an arm, and slots that are listed
FIGURES = ("pulls", "reward_sum", "mean", "score")  # of the belief about an arm
SHOWN = ("decision", "at", "session", "policy", "position")  # columns of the listed slots


class LeftOut(TypedDict):
    """This record is an arm that a decision could not show, although the arm was in the catalogue at the time. reason:
    `upcoming`, `ended` or `narrowed` (excluded by a rule)."""

    arm: str
    reason: str


class Result(Answer):
    """This record shows one decision: its context and state, the belief, and the probability of each eligible arm at
    each position."""

    kind: str
    params: dict[str, Any]
    belief_seq: int
    seed: int | None
    context: dict[str, Any]
    state: dict[str, Any]
    eligible: int
    catalogue: int | None  # the number of arms that candidates were drawn from
    floor: float | list[float] | None
    rules: NotRequired[list[str]]  # of the page
    left_out: NotRequired[list[LeftOut]]  # of the arms that the catalogue had then
    narrowed_by: NotRequired[list[str]]  # rules of the request and of the policy
    agrees: bool | None
    arms: list[dict[str, Any]]
    features: NotRequired[dict[str, float] | None]
    events: list[session.TimelineEvent]
    reward_definition: str
    reward: float


def list_shown(store: Store, key: str) -> list[dict[str, Any]]:
    """Return the newest slots that showed an arm, each with its decision, time, session, policy and position. key: the
    key of the arm."""
    with store.read() as unit:
        rows = decisions.slots_of_arm(unit, arms.ids(unit, [key])[key], n_newest=N_NEWEST, limit=MAX_SHOWN)
    return [dict(zip(SHOWN, row, strict=True)) | {"at": format_time(row[1])} for row in rows]


def show(store: Store, decision_id: int) -> Result:
    """Return a decision as stored, and its probabilities as computed again from the belief."""
    with store.read() as unit:
        decisions_by_id = decisions.find(unit, [decision_id])
        if decision_id not in decisions_by_id:
            hint = "`rlrec session show KEY` lists those of a session"
            raise InputError(f"unknown decision {decision_id}", hint=hint)
        decision = decisions_by_id[decision_id]
        if not decision.imported and len(decision.slots) != decision.size:
            raise damage_error(f"decision {decision_id} has {len(decision.slots)} of its {decision.size} slots")
        version = policies.by_id(unit, [decision.version_id])[decision.version_id]
        record = session.records(unit, decisions_by_id)[decision_id]
        replay, findings = DerivedDecision(unit, decision, version, record["context"]), Findings()
        propensities.check(unit, np.array([] if replay.case is None else [decision_id], np.int64), findings=findings)
        del record["duplicate"]
        pairs = zip(record["slate"], decision.slots, strict=True)
        return cast(Result, record | {
            "kind": version.policy.kind, "params": dict(version.params), "belief_seq": decision.belief_seq,
            "seed": None if decision.seed is None else to_unsigned(decision.seed), "eligible": len(replay.arms),
            "catalogue": replay.catalogue, "floor": replay.floor(), **replay.rules(), **replay.left_out(unit),
            "slate": [{**entry, **replay.slot_fields(slot)} for entry, slot in pairs],
            "agrees": None if replay.case is None else all(row.check == DRAWS for row in findings.in_order()),
            "arms": replay.table(), **replay.features(), "reward_definition": version.reward.name,
        })  # fmt: skip


class DerivedDecision:
    """A DerivedDecision computes again the distribution from which a decision was drawn. This is impossible for
    imported decisions, since the store does not have their beliefs.

    case: the distribution, or None if it is impossible; state: the state of the visit, for a policy that reads it;
    catalogue: the number of arms from which candidates were drawn; conditional (k, arms): the probability of each
    eligible arm at each of k positions, given the arms above; marginal (k, arms): the same probability without this
    condition, NaN if it is not computed. If `case` is None, `conditional` has the stored propensities, and NaN for
    arms that were not shown."""

    def __init__(self, unit: Unit, decision: Decision, version: Version, context: Mapping[str, Any]) -> None:
        self.decision, self.context = decision, context
        eligible = contents.eligible_arms(unit, [decision.eligible_id])[decision.eligible_id]
        self.arms, self.keys = np.array(eligible, np.int64), arms.keys(unit, eligible)
        self.columns: Index = np.searchsorted(self.arms, [slot.arm_id for slot in decision.slots])  # of arms shown
        self.case: EligibleDistribution | None = None
        self.state: State | None = None
        self.catalogue: int | None = None
        self.allowed_arms: tuple[int, ...] | None = eligible
        self.conditional = self.marginal = np.full((len(self.columns), len(eligible)), np.nan)
        self.conditional[np.arange(len(self.columns)), self.columns] = [slot.propensity for slot in decision.slots]
        self.serving = None
        if not decision.imported:
            self.serving = exact.load(unit, version, seq=decision.belief_seq, ordinal=decision.belief_ordinal)
            self._derive(unit, self.serving, context)

    def _derive(self, unit: Unit, serving: VersionDistribution, context: Mapping[str, Any]) -> None:
        decision, seed = self.decision, to_unsigned(self.decision.seed or 0)
        if serving.generator is not None:
            candidate_list = candidates.find_lists(unit, [decision.id]).get(decision.id)
            seed ^= 0 if candidate_list is None else RANKING_KEY  # the seed of the second stage
            self.allowed_arms = None
            if candidate_list is not None and (key := candidate_list.catalogue_id) is not None:
                self.allowed_arms = contents.eligible_arms(unit, [key])[key]
                self.catalogue = len(self.allowed_arms)
        if serving.trained_model is None:
            revision = decision.catalogue_revision
            self.case = serving.case(decision.eligible_id, self.arms, context, keys=self.keys, revision=revision)
        else:
            self.case = self._stateful_case(serving, serving.trained_model, context)
        if self.case is None:
            return
        shown_columns, case = self.columns, self.case
        if case.rankers is not None:
            teams = candidates.find_teams(unit, [decision.id]).get(decision.id, "")
            sampler = TeamDraftSampler(case.rankers, len(shown_columns))
            columns = np.array([[*map(TEAMS.index, teams)]], np.intp)
            partial_slates = [(shown_columns[None, :row], columns[:, : row + 1]) for row in range(len(shown_columns))]
            self.conditional = np.vstack([sampler.next_arms(*draft) for draft in partial_slates])
            self.marginal = np.full(self.conditional.shape, np.nan)
            return
        scores = case.scores.decision_scores(seed, decision.id)
        rows = [slate.remaining(scores, shown_columns[:row], floor=case.floor) for row in range(len(shown_columns))]
        self.conditional = np.array(rows)
        self.marginal = slate.marginals(scores, size=1 if self.state else len(shown_columns), floor=case.floor)
        if self.state:  # for positions below the top, marginals are not computed for every decision
            self.marginal = np.vstack([self.marginal, np.full((len(shown_columns) - 1, len(self.arms)), np.nan)])

    def _stateful_case(
        self, serving: VersionDistribution, model: TrainedModel, context: Mapping[str, Any]
    ) -> EligibleDistribution | None:
        """Return the distribution of a policy that reads the visit, in the session state that the decision saw. Returns
        None if this state was not stored."""
        decision, revision = self.decision, self.decision.catalogue_revision
        if decision.history is None or not history.is_packed(decision.history):  # `doctor` reports it
            return None
        past_slots = history.unpack([decision.history], np.array([decision.step]))
        self.state = model.states(model.encode_contexts([context]), past_slots, np.array([revision]))
        feature_revision = model.arm_features.at_request(context, self.arms, self.keys, revision)
        score, policy = model.scores(self.state, self.arms, feature_revision)[0], model.policy
        scores: Scores = policy.distribution(score)
        layout = serving.layout(decision.eligible_id, self.arms, context, keys=self.keys, revision=revision)
        if layout is not None:
            scores = RuledScores(scores, layout, policy.exploration)
        return EligibleDistribution(
            arms=self.arms, scores=scores, index=score, floor=policy.exploration if layout is None else 0.0,
            reads=policy.fields_read, layout=layout,
        )  # fmt: skip

    def floor(self) -> float | list[float] | None:
        """Return the floor of the policy: one number or, if it differs between positions, a number for each position.
        Returns None if the distribution cannot be computed again."""
        floor = None if self.case is None or self.serving is None else self.serving.policy.exploration
        return at_positions(floor, len(self.decision.slots)).tolist() if isinstance(floor, tuple) else floor

    def rules(self) -> dict[str, list[str]]:
        """Return the page rules that applied, under the key `rules`, or an empty dictionary if there were none."""
        if self.serving is None or self.case is None or self.case.layout is None:
            return {}
        pages = self.serving.page_rules(self.context)
        keys = {self.keys[arm] for arm in self.arms.tolist()}
        return {"rules": [text for page in pages for text in page.texts(keys, self.context.get(GROUPS, {}))]}

    def left_out(self, unit: Unit) -> dict[str, Any]:
        """Return the arms that the decision could not show, although they were in the catalogue at the time, as fields
        of the answer. The result is empty if there were none, or if this is not known."""
        decision = self.decision
        if decision.imported or self.allowed_arms is None or self.serving is None:
            return {}
        allowed_ids = set(self.allowed_arms)
        statuses = {
            arm.key: arm.status(decision.at)
            for arm in arms.at_revision(unit, decision.catalogue_revision)
            if arm.id not in allowed_ids
        }
        rows = [
            {"arm": key, "reason": "narrowed" if status == "active" else status}
            for key, status in statuses.items()
            if status != "retired"
        ]
        if not rows:
            return {}
        rules_by_owner = (("request", self.context.get(LOGGED_RULES, {})), ("policy", self.serving.learner.rules))
        rules = [
            f"{name}={value if isinstance(value, str) else ','.join(value)} of the {owner}"
            for owner, words in rules_by_owner
            for name, value in words.items()
            if name in NARROWING
        ]
        if not rules and any(row["reason"] == "narrowed" for row in rows):
            rules = ["arms of the request"]
        return {"left_out": rows, "narrowed_by": rules}

    def slot_fields(self, slot: Slot) -> dict[str, Any]:
        """Return the fields of a slot that are shown in addition to those of `recommend`: the other stored fields, and
        the probabilities as computed again."""
        conditional = marginal = None
        if self.case is not None:
            index = slot.position - 1, self.columns[slot.position - 1]
            conditional, marginal = float(self.conditional[index]), finite_or_none(self.marginal[index])
        return {
            "min_propensity": slot.min_propensity, "rounded": slot.rounded,
            "derived_propensity": conditional, "derived_marginal": marginal,  # None where there is no closed form
        }  # fmt: skip

    def features(self) -> dict[str, Any]:
        """If the policy reads the visit, return the features of context and visit that are not 0, under the key
        `features`. Otherwise return an empty dictionary."""
        if self.serving is None or (trained_model := self.serving.trained_model) is None:
            return {}
        return {
            "features": None if self.state is None else _nonzero_values(trained_model.policy.names, self.state.x[0])
        }

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each eligible arm, most likely first. A row has the belief about the arm, and the
        probability of the arm at every position, given the arms above. If the distribution cannot be computed again,
        shown arms come first, with their stored propensities."""
        figures: dict[str, list[Any]] = dict.fromkeys(FIGURES, [None] * len(self.arms))
        probabilities = np.equal.outer(self.columns, np.arange(len(self.arms))).astype(np.float64)
        if self.case is not None and self.serving is not None:
            belief = self.serving.belief(self.arms, revision=self.decision.catalogue_revision)
            belief = self.serving.policy.local_belief(belief, self.context)
            mean = list(map(finite_or_none, self.serving.policy.mean(belief, default=np.nan)))
            scores = self.case.noiseless_scores(np.arange(len(self.arms))).tolist()
            figures |= {"mean": mean, "score": scores}
            if self.serving.policy.learns_online:  # sums of effects are no pulls
                figures |= {"pulls": belief.pulls.tolist(), "reward_sum": belief.reward_sum.tolist()}
            probabilities = self.conditional
        figures = {"arm": [self.keys[arm] for arm in self.arms.tolist()]} | figures
        figures["probabilities"] = [list(map(finite_or_none, column)) for column in self.conditional.T.tolist()]
        if (state := self.state) is not None:  # memory of the arms that had been shown in the visit
            memory = {
                arm: _nonzero_values(MEMORY_FEATURES, row)
                for arm, row in zip(state.arm.tolist(), state.memory, strict=True)
            }
            figures["seen"] = [memory.get(arm, {}) for arm in self.arms.tolist()]
        order = np.lexsort((self.arms, *-probabilities[::-1]))
        return [{name: values[column] for name, values in figures.items()} for column in order.tolist()]


def _nonzero_values(names: Sequence[str], values: Array) -> dict[str, float]:
    """Return the nonzero values, by name."""
    return {name: value for name, value in zip(names, values.tolist(), strict=True) if value}
