"""This module finds the targets of an evaluation by name. A target is a policy to evaluate, with the rows from which
the policy learned."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rlrec.app.distributions import designs, exact
from rlrec.app.inputs import lookup
from rlrec.app.inputs.arm_rules import ArmLists, arm_lists, policy_rules
from rlrec.app.log import lineage
from rlrec.app.log.splits import GATE
from rlrec.arrays import Flags, Ids, Words
from rlrec.errors import InputError
from rlrec.policy import TEAM_DRAFT, learns_from_slots
from rlrec.policy.beliefs.base import PRICE
from rlrec.records import Head, Record, Reward, Version
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import selected
from rlrec.store.log.selected import Selection
from rlrec.store.policies import policies
from rlrec.store.policies.beliefs import ArmWeights

if TYPE_CHECKING:
    from rlrec.app.inputs.decision_tables import DecisionTable

BUILT_IN = ("uniform",)


class Target(Record, eq=False):
    """A Target is a version to evaluate, or a built-in target, whose `number` is None.

    serving: the distribution of the target, or None for a table from a user and for the policy of an imported log,
    which only its own rows can evaluate; lessons: which decisions the target learned from; seq: the number of the
    last change of the policy's beliefs; table: the table from a user, if any; arm_lists: the rules of the target
    that take away arms for all users, which also hold in decisions of other policies; ruled_ids: for a table, the
    ids of the policies whose slates have rules that the table does not know; learns: whether the target learns from
    the log on which it is evaluated."""

    learns: ClassVar[bool] = False

    name: str
    reward: Reward
    serving: exact.VersionDistribution | None
    number: int | None = None
    policy_id: int | None = None
    lessons: Sequence[lineage.LearnedFrom] = ()
    seq: int = 0
    table: DecisionTable | None = None
    arm_lists: ArmLists | None = None
    ruled_ids: Collection[int] = ()

    @property
    def fields_read(self) -> tuple[str, ...]:
        """Return the fields of the context that the target depends on. The price of a budget does not count: a target
        with a budget uses the price of a typical past period."""
        reads = () if self.serving is None else self.serving.learner.fields_read
        return () if reads == (PRICE,) else reads

    @property
    def is_stateful(self) -> bool:
        """Tell whether the target reads the state of the session."""
        return self.serving is not None and self.serving.trained_model is not None

    @property
    def narrows(self) -> bool:
        """Tell whether the target's policy has rules that take away arms and cannot be evaluated in decisions of other
        policies. These are rules about the past of a person and, if the policy draws candidates, all rules."""
        if self.serving is None:
            return False
        rules = policy_rules(self.serving.version.policy.params)
        return bool(rules.past_rules) or (self.draws_candidates and any(rules))

    @property
    def is_weighed(self) -> bool:
        """Tell whether rows are weighted by the target's probabilities. If not, the target is evaluated on its own
        rows."""
        return self.serving is not None or self.table is not None

    @property
    def spares_gate(self) -> bool:
        """Tell whether the target learned from decisions of other policies, but from none in the gate split, which is
        set aside for the test before a version goes live."""
        policy_ids = [] if self.serving is None else [self.serving.version.policy.id]
        lessons = [lesson for lesson in self.lessons if lesson.selection.policy_ids != policy_ids]
        splits = [lesson.selection.splits if lesson.splits is None else lesson.splits for lesson in lessons]
        return bool(splits) and all(numbers is not None and GATE not in numbers for numbers in splits)

    @property
    def sweep_version(self) -> Version | None:
        """Return the target's version if it learned slot by slot from decisions of other policies, so that a sweep can
        evaluate its kind. Otherwise return None. The version has the reward by which the target is evaluated."""
        version = None if self.serving is None else self.serving.version
        if version is None or all(lesson.selection.policy_ids == [version.policy.id] for lesson in self.lessons):
            return None
        return replace(version, reward=self.reward) if learns_from_slots(version.policy.kind) else None

    def taught_by(self, slots: Columns) -> Flags:
        """Tell for each row of the log whether the target learned from the row, (n,)."""
        rows = np.zeros(len(slots["decision_id"]), np.bool_)
        for lesson in self.lessons:
            rows |= lesson.rows(slots)
        return rows

    @property
    def is_sampled(self) -> bool:
        """Tell whether the target's probabilities may be computed from posterior samples, which are drawn for each
        decision."""
        return self.serving is not None and any(
            hasattr(policy, "samples") for policy in (self.serving.policy, *self.serving.learner.stages)
        )

    def words(self, slots: Columns) -> tuple[Words, Ids]:
        """Return two arrays (n,) for n rows, a seed and a number, from which the posterior samples of each row are
        drawn. If the target's present belief drew the row, these are the stored seed and the id of the decision, which
        repeat its samples. For any other row, they are 0 and the digest of the decision. A target that draws candidates
        has the seed of its ranking, which is derived from this seed."""
        assert self.serving is not None
        version, policy = self.serving.version, self.serving.policy
        on_policy = slots["version_id"] == version.id
        if version.status != "frozen":
            on_policy &= (slots["belief_seq"] == self.seq) & (not policy.forgetting.forgets)
        seeds = np.where(on_policy, slots["seed"], 0).astype(np.int64).view(np.uint64)
        numbers = np.where(on_policy, slots["decision_id"], slots["decision_digest"])
        if self.serving.generator is not None:
            from rlrec.policy.kinds.two_stage import ranking_seeds

            seeds = ranking_seeds(seeds)
        return seeds, numbers

    @property
    def draws_candidates(self) -> bool:
        """Tell whether the target first draws a list of candidates."""
        return self.serving is not None and self.serving.generator is not None

    @property
    def takes_scores(self) -> bool:
        """Tell whether the target ranks by scores that are stated in requests."""
        return self.serving is not None and self.serving.policy.takes_scores

    @property
    def gap_reason(self) -> str:
        """Return the reason that estimates report if the target has no probability for some rows."""
        table = "no-state" if self.table is None else "no-propensity"
        return "no-candidates" if self.draws_candidates else "no-scores" if self.takes_scores else table


def resolve(
    unit: Unit, names: Sequence[str], *, reward: str | None, greedy: bool, selection: Selection | None = None,
    tables: Mapping[str, DecisionTable] | None = None,
) -> list[Target]:  # fmt: skip
    """Return the targets with these names, with their present beliefs. If a policy and a built-in target have the same
    name, the policy is the target. Raise InputError for an unknown name.

    reward: the name of the reward of all targets, or None for the reward that each target learns; greedy: whether
    targets are evaluated without exploration; selection: the log on which the targets are evaluated; tables: the
    table of each target that is not in the store, by name."""
    versions = lookup.resolve(unit, names, built_in=BUILT_IN)
    definition = None if reward is None else lookup.reward(unit, reward)
    policy_rewards = [
        version_or_error[0].reward
        for version_or_error in versions.values()
        if not isinstance(version_or_error, InputError)
    ]
    targets = []
    for name in dict.fromkeys(names):
        version_or_error = versions[name]
        if name in (tables or {}) and (name in BUILT_IN or not isinstance(version_or_error, InputError)):
            raise InputError(f"--target {name} has the name of another target", hint="write --target NAME=FILE")
        if not isinstance(version_or_error, InputError):
            targets.append(_stored_target(unit, *version_or_error, definition, greedy=greedy))
        elif name in (tables or {}):
            from rlrec.app.inputs.parameters import ruled_policies

            shared_reward = definition or _shared_reward(unit, policy_rewards, selection)
            table, ruled_ids = (tables or {})[name], ruled_policies(unit)
            targets.append(Target(name=name, reward=shared_reward, serving=None, table=table, ruled_ids=ruled_ids))
        elif name in BUILT_IN:
            shared_reward = definition or _shared_reward(unit, policy_rewards, selection)
            version = designs.make_draft(name, {}, shared_reward, name=name, status="frozen")
            policy = designs.policy_of(version)
            policy = policy.greedy() if greedy else policy
            serving = exact.VersionDistribution(unit, version, policy, sums=(), prior=())
            targets.append(Target(name=name, reward=shared_reward, serving=serving))
        else:
            if not version_or_error.message.startswith("unknown policy"):
                raise InputError(version_or_error.message, hint=version_or_error.hint)
            targets_and_policies = [*BUILT_IN, *(policy.name for policy in policies.all_policies(unit))]
            hint = f"a target is a policy, NAME@V or {', '.join(BUILT_IN)}"
            raise lookup.unknown("target", lookup.split_reference(name)[0], targets_and_policies, hint=hint)
    return targets


def _shared_reward(unit: Unit, policy_rewards: Sequence[Reward], selection: Selection | None) -> Reward:
    """Return the reward for a target that learns no reward. This is the reward that the policies among the targets
    learn or, if there are none, the reward that the policies of the log learn. If these learn different rewards, it is
    the reward `default`.

    policy_rewards: the rewards of the policies among the targets; selection: the log."""
    if not policy_rewards and selection is not None:
        counts = selected.version_counts(unit, selection)
        policy_rewards = [version.reward for version in policies.by_id(unit, counts).values()]
    rewards = {reward.id: reward for reward in policy_rewards}
    return next(iter(rewards.values())) if len(rewards) == 1 else lookup.reward(unit, "default")


def _stored_target(unit: Unit, version: Version, head: Head, reward: Reward | None, *, greedy: bool) -> Target:
    is_logged = version.policy.kind == "logged"
    if version.policy.kind == TEAM_DRAFT:
        hint = "judge the two rankers, which `rlrec experiment list` names"
        name = version.policy.name
        raise InputError(f"target {name!r} is an interleaving, whose propensities depend on coins", hint=hint)
    if is_logged and greedy:
        raise InputError(f"target {version.policy.name!r} is the policy of an imported log: it has no greedy form")
    return Target(
        name=version.policy.name, number=version.number, policy_id=version.policy.id, reward=reward or version.reward,
        serving=None if is_logged else exact.load(unit, version, greedy=greedy),
        lessons=lineage.learned_from(lineage.ancestry(unit, version)), seq=head.seq,
        arm_lists=arm_lists(unit, version.policy.params),
    )  # fmt: skip


def trained_target(unit: Unit, version: Version, weights: Sequence[ArmWeights]) -> Target:
    """Return a target for a trained version that is not stored yet. weights: the trained weights of the arms."""
    from rlrec.app.distributions.trained import TrainedModel

    parameters = TrainedModel(unit, version, weights=weights)
    policy = parameters.policy
    distribution = exact.VersionDistribution(unit, version, policy, sums=(), prior=(), trained_model=parameters)
    return Target(
        name=version.policy.name, number=version.number, policy_id=version.policy.id, reward=version.reward,
        serving=distribution, arm_lists=arm_lists(unit, version.policy.params),
    )  # fmt: skip
