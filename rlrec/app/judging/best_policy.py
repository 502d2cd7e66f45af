"""This module finds which policy is best in the long run, among the policies of the store and further policies that
could be learned from the log.

One regression of the effects of arms evaluates all candidates. A look is a slot weighted by the examination of its
position. To first order, the gain of a candidate on a slate is a sum over arms: the effect of one look at the arm,
times the looks that the candidate gives the arm beyond the looks in the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np

from rlrec import policy as kinds
from rlrec.app import opening
from rlrec.app.audit.integrity import live_versions
from rlrec.app.distributions import designs, exact
from rlrec.app.distributions.exact import VersionDistribution
from rlrec.app.imports import log_stores
from rlrec.app.inputs import filters, lookup
from rlrec.app.log import stored_contexts
from rlrec.arrays import Array
from rlrec.errors import InputError, RlrecError, quantity
from rlrec.records import Reward, StoredPolicy, Version
from rlrec.sentences import pooled_sentence
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.log import contents, selected
from rlrec.store.log.events import RETURN
from rlrec.store.log.selected import Selection
from rlrec.store.policies import arms, experiments, policies, routes
from rlrec.store.policies.beliefs import ArmSums
from rlrec.times import DAY_US

if TYPE_CHECKING:
    from rlrec.app.evaluation.passes.arm_effects import EffectEstimates
    from rlrec.ope.estimators.shrinkage import ShrunkEffects

MAX_JUDGED = 100_000  # newest decisions from which effects are estimated
N_PAGES = 300  # newest ones, whose eligible sets and contexts represent all
MIN_SERVED = 200  # decisions that a version needs for its actual showings to count
MAX_COUNTED = 5_000  # the newest ones among them
LEVEL = 0.95


# A candidate. gain: its reward per page in the long run minus the log's, in units of the reward, to first order; lower,
# upper: bounds at level 0.95, for all candidates together; command: creates it or makes it live; serves: whether it
# served most of the newest pages.
Candidate = TypedDict("Candidate", {
    "name": str, "gain": float, "lower": float, "upper": float, "command": str, "serves": bool,
})  # fmt: skip
# The candidates by their gain minus a standard error, best first; and the sentence that names the first.
Result = TypedDict("Result", {
    "reward": str, "log": str | None, "pages": int, "candidates": list[Candidate], "sentence": str,
})  # fmt: skip


class Draft(NamedTuple):
    """A Draft is a candidate for the best policy.

    command: the command that makes the candidate serve; distribution: how the candidate draws slates; version_id:
    the id of a stored version that may have served, else 0."""

    name: str
    command: str
    distribution: VersionDistribution
    version_id: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class _NewestPages:
    """This record summarises the newest slates of a log.

    counts: the number of slates by eligible set, length and context; sets: the arms of each eligible set; contexts:
    the contexts by id; examination: the examination of each position; columns: the index of each arm in arrays (k,),
    by the id of the arm; keys: the key of each arm, by id; version_id: the version that served most of these slates."""

    counts: Counter[tuple[int, int, int]]
    sets: Mapping[int, tuple[int, ...]]
    contexts: Mapping[int, Mapping[str, Any]]
    examination: Array
    columns: Mapping[int, int]
    keys: Mapping[int, str]
    version_id: int

    @classmethod
    def read(cls, unit: Unit, selection: Selection, examination: Array, arm_keys: Sequence[str]) -> _NewestPages:
        """Read the newest slates of a selection of the log. arm_keys: the keys of all arms, in the order of arrays
        (k,)."""
        rows = selected.newest_pages(unit, selection, N_PAGES)
        context_ids = np.array([row.context_id for row in rows])
        contexts, _ = stored_contexts.distinct_contexts(unit, context_ids)
        keys = {arm.id: arm.key for arm in arms.all_arms(unit)}
        ids = {key: arm for arm, key in keys.items()}
        return cls(
            counts=Counter((row.eligible_id, row.size, row.context_id) for row in rows),
            sets=contents.eligible_arms(unit, {row.eligible_id for row in rows}),
            contexts=dict(zip(np.unique(context_ids).tolist(), contexts, strict=True)),
            examination=examination, columns={ids[key]: column for column, key in enumerate(arm_keys)}, keys=keys,
            version_id=Counter(row.version_id for row in rows).most_common(1)[0][0],
        )  # fmt: skip

    @property
    def looks(self) -> float:
        """Return the mean number of looks on a slate, summed over all arms. A look is a slot weighted by its
        examination."""
        total = sum(count * self.examination[:size].sum() for (_, size, _), count in self.counts.items())
        return float(total / self.counts.total())

    def exposures(self, distribution: VersionDistribution) -> Array | None:
        """Return the expected number of looks (slots weighted by examination) at each arm on a slate that a candidate
        draws, (k,). The result is None if there is no closed form."""
        if distribution.trained_model is not None or distribution.generator is not None or distribution.rankers:
            return None
        looks, counts = np.zeros(len(self.columns)), Counter[tuple[int, int, int]]()
        for (set_id, size, context_id), count in self.counts.items():
            counts[set_id, size, context_id if distribution.learner.fields_read else 0] += count
        distribution.encode_contexts([self.contexts.get(context_id, {}) for *_, context_id in counts])
        for (set_id, size, context_id), count in counts.items():
            members = np.array(self.sets[set_id])
            case = distribution.case(self.sets[set_id], members, self.contexts.get(context_id, {}), keys=self.keys)
            if case.scores.samples:
                return None
            columns = [self.columns[arm] for arm in members.tolist()]
            looks[columns] += count * (self.examination[:size] @ case.slate_sampler(size).marginals)
        return None if np.isnan(looks).any() else looks / self.counts.total()

    def served_looks(self, unit: Unit, selection: Selection, version_id: int) -> Array | None:
        """Return the mean number of looks (slots weighted by examination) at each arm on the newest slates of a
        version, (k,). The result is None if the version served too few slates."""
        looks, n_pages = np.zeros(len(self.columns)), 0
        version_selection = replace(selection, version_ids=[version_id])
        for row in selected.newest_slots(unit, version_selection, MAX_COUNTED):
            looks[self.columns[row.arm_id]] += row.slots * self.examination[row.position - 1]
            n_pages += row.slots if row.position == 1 else 0
        return looks / n_pages if n_pages >= MIN_SERVED else None


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmEffects:
    """This record holds the long-run effects of k arms in two forms. Raw estimates exist only for some arms; posteriors
    exist for all.

    even_looks (k,): the looks at each arm on a slate of the policy `uniform`; log_looks (k,): the looks at each arm
    on a slate in the log. A look is a slot weighted by its examination.

    Raw effects are unbiased; they evaluate `uniform` and versions that served. A candidate that learned from this very
    log shows the arms that happened to look good in it. Its difference from `uniform` is therefore evaluated with
    posteriors around the mean of all arms. Posteriors around the rewards that slot events predict would favour the
    candidate, since it chose its arms by the same predictions."""

    raw: EffectEstimates
    log_looks: Array
    even_looks: Array

    @cached_property
    def posterior(self) -> ShrunkEffects:
        """Return the posterior of the long-run effect of each arm, shrunk towards the mean of all arms."""
        return self.raw.long_run(self.raw.shrink_effects())

    def gain(self, exposures: Array, *, has_learned: bool) -> tuple[float, float]:
        """Return how much more reward than the log a candidate earns per slate, and the standard error of this gain.

        exposures (k,): the looks that the candidate gives each arm on a slate; has_learned: whether the candidate
        learned from this log."""
        raw_looks, error = self.even_looks if has_learned else exposures, self.raw.total(now=1.0)[1]
        is_judged = self.raw.varies & (error > 0)
        change = np.where(is_judged, raw_looks - self.log_looks, 0.0)
        choice = exposures - self.log_looks - change
        (value,), (std_error,) = self.raw.total(now=1.0, weights=change[:, None])
        variance = np.nan_to_num(std_error) ** 2 + np.square(choice) @ np.square(self.posterior.sd)
        # arms that nobody can judge have the error of their common mean together
        variance += float((choice @ (self.posterior.sd * ~is_judged)) ** 2)
        return float(value + choice @ self.posterior.mean), float(np.sqrt(variance))


def find(
    store: Store, *, by: str, reward: str | None = None, policy: str | None = None, log: str | None = None
) -> str | None:
    """Find the best known policy for a reward, by the log. Return the sentence that names this policy, and store the
    sentence for `status`. The result is None if the reward does not count returns of visitors, or if the log has too
    few data.

    reward: the name of the reward, or None for the reward that `policy` learns; by: the name of the calling command."""
    if log is not None and log.startswith(log_stores.PREFIX):
        return None
    try:
        with store.read() as unit:
            policy_reward = lookup.version(unit, policy)[0].reward if policy else None
            definition = policy_reward if reward is None else lookup.reward(unit, reward)
        if definition is None or RETURN not in definition.weights:
            return None
        with store.read() as unit, bulk.alongside(unit):
            result = answer(unit, definition.name, log)
    except RlrecError:
        return None
    from rlrec.store.log import activity

    opening.note(store, activity.BEST_POLICY, {"reward": result["reward"]}, {"sentence": result["sentence"], "by": by})
    return result["sentence"]


def last_reward(store: Store) -> str | None:
    """Return the name of the reward for which the best policy was last looked for, or None if this never happened."""
    from rlrec.store.log import activity

    with store.read() as unit:
        run = activity.last_run(unit, activity.BEST_POLICY)
    return None if run is None else str(run.options["reward"])


def answer(unit: Unit, reward: str, log: str | None) -> Result:
    """Return the candidates for the best policy, and the sentence that names the best of them. `unit` is a transaction
    that is already open. Raises CheckFailed for a log that cannot show effects."""
    from rlrec.app.evaluation.passes import arm_effects
    from rlrec.ope.intervals.tails import t_quantile

    since = selected.newest_at(unit, filters.selection(unit, log), MAX_JUDGED)
    log_filter = filters.with_since(log, since)
    effect_pass, by_group, _ = arm_effects.sum_log(unit, arm_effects.Request(log=log_filter, reward=reward))
    selection, (sums,), keys = filters.selection(unit, log_filter), by_group.values(), effect_pass.arm_keys
    estimates = effect_pass.estimate(sums)
    effects = estimates.long_run(estimates.posteriors)
    pages = _NewestPages.read(unit, selection, np.array(effect_pass.examination), keys)
    drafts = [*_drafts(unit, lookup.reward(unit, reward), effects, [*pages.columns])]
    even_looks = pages.exposures(drafts[0].distribution)
    assert even_looks is not None  # always known for `uniform`
    log_looks = sums.looks * pages.looks / sums.looks.sum()
    belief, gains = (
        ArmEffects(raw=estimates, log_looks=log_looks, even_looks=even_looks),
        list[tuple[float, float, Draft]](),
    )
    for draft in drafts:
        served_looks = pages.served_looks(unit, selection, draft.version_id) if draft.version_id else None
        exposures = pages.exposures(draft.distribution) if served_looks is None else served_looks
        if exposures is None:
            continue
        gains.append((*belief.gain(exposures, has_learned=served_looks is None and draft is not drafts[0]), draft))
    # sorted by the gain minus a standard error, so that uncertain candidates come later
    gains.sort(key=lambda row: row[1] - row[0])
    freedom = max(1, min(int(sums.counts[3]), len(estimates.influence)) - 1)
    # corrected for the number of candidates, among which the best one looks good by chance, too
    t_factor = t_quantile(1 - (1 - LEVEL) / 2 / len(gains), freedom)
    candidates: list[Candidate] = [
        {
            "name": draft.name, "gain": gain, "lower": gain - t_factor * error, "upper": gain + t_factor * error,
            "command": draft.command, "serves": draft.version_id == pages.version_id,
        }
        for gain, error, draft in gains
    ]  # fmt: skip
    sentence, log_us = sentence_of(reward, candidates), effect_pass.evaluation.extent.span_us
    if log_us <= effect_pass.horizon_us:
        days = quantity(round(log_us / DAY_US), "day")
        sentence += f"; the log covers {days}: returns after that are missing"
    if surfaces := arm_effects.shared_surfaces(unit, selection):
        sentence += f"; {pooled_sentence(surfaces, log)}"
    pages_judged = int(sums.counts[0])
    return {"reward": reward, "log": log_filter, "pages": pages_judged, "candidates": candidates, "sentence": sentence}


def _drafts(unit: Unit, reward: Reward, effects: ShrunkEffects, arm_ids: Sequence[int]) -> Iterator[Draft]:
    """Yield the candidates for the best policy. They are `uniform`, every live policy, newer versions that wait to go
    live, bandits retrained with the reward, and a policy of kind `long-term` whose belief is these effects.

    effects: the long-run effects of arms; arm_ids: the id of the arm of each effect."""
    uniform = designs.make_draft("uniform", {}, reward)
    command = f"`rlrec policy create {reward.name}-uniform --kind uniform --reward {reward.name}` makes it"
    yield Draft("uniform", command, VersionDistribution(unit, uniform, designs.policy_of(uniform), sums=(), prior=()))
    names = [policy.name for policy in policies.all_policies(unit) if "@" not in policy.name]
    live = [version for version, _ in policies.live(unit, names).values() if kinds.load(version.policy.kind).can_serve]
    to_rebuild = list[Version]()
    for version in live:
        yield Draft(version.policy.name, _way_to_callers(unit, version.policy), exact.load(unit, version), version.id)
        last_version = version
        if (candidate := live_versions.waiting_version(unit, version)) is not None and candidate.reward.id == reward.id:
            command, last_version = _way_to_callers(unit, version.policy, candidate.reference), candidate
            yield Draft(candidate.reference, command, exact.load(unit, candidate), candidate.id)
        is_rebuilt = last_version.reward.id == reward.id and "rebuilt_from" in last_version.learned_from
        if is_rebuilt and last_version.created_at > unit.now - DAY_US:
            continue  # rebuilding it again would give the same
        to_rebuild.append(version)
        if version.learning and version.reward.id != reward.id:
            yield from _reprice_version(unit, version, reward)
    learners = [row for row in live if row.policy.kind == "long-term" and row.reward.id == reward.id]
    if not learners or learners[-1] in to_rebuild:
        yield _long_term_draft(unit, reward, effects, arm_ids, learners)


def _way_to_callers(unit: Unit, policy: StoredPolicy, waiting: str | None = None) -> str:
    """Return words that say that a live policy already serves users, or by which command a route can lead to it.

    waiting: the reference of the policy's version that waits to go live, if the words are about this version."""
    changes, promotion = routes.newest_changes(unit), f"`rlrec policy promote {waiting}`"
    for change in changes:
        if change.policy_id == policy.id and change.number is None:
            return f"route {change.route} leads to it already" if waiting is None else f"{promotion} lets it serve"
    copies = {row.id for row in policies.all_policies(unit) if row.base_id == policy.id}
    for experiment in experiments.all_experiments(unit):
        if experiment.status == "running" and copies & {variant.policy_id for variant in experiment.serving}:
            if waiting is not None:
                return f"{promotion} makes it live, but {experiment.name} goes on with the version that it serves"
            return f"some users have it already: `rlrec experiment show {experiment.name}` compares"
    claim = "it is live" if waiting is None else f"{promotion} makes it live"
    if len(changes) != 1:
        return f"{claim}, but no route leads to it" if changes or waiting is None else f"{promotion} lets it serve"
    separator = ": " if waiting is None else ", then "
    return f"{claim}{separator}`rlrec route set {changes[0].route} --to {policy.name}` lets a route lead to it"


def _reprice_version(unit: Unit, version: Version, reward: Reward) -> Iterator[Draft]:
    """Yield one candidate: a bandit that has learned this reward from the decisions of the version's policy. If the
    policy's kind cannot learn the reward, the bandit is of the kind epsilon-greedy. Nothing is yielded if no slot can
    be learned from, or if a policy with the name of this bandit exists already."""
    from rlrec.app.learning import slot_statistics, warm_start

    name, command = version.policy.name, f"`rlrec policy rebuild {version.policy.name} --reward {reward.name}` makes it"
    draft = replace(version, reward=reward)
    try:
        designs.policy_of(draft).check(reward)
    except InputError:
        if policies.by_name(unit, f"{name}-{reward.name}") is not None:
            return  # it exists already, and is a candidate itself
        options = f"--kind {kinds.ANY_REWARD} --reward {reward.name} --from-log policy={name}"
        draft = designs.make_draft(kinds.ANY_REWARD, kinds.values(kinds.make(kinds.ANY_REWARD, {})), reward)
        command = f"`rlrec policy create {name}-{reward.name} {options}` makes it"
    selection = replace(filters.selection(unit, None), policy_ids=[version.policy.id], imported=False)
    fit = warm_start.fit_to_log(unit, draft, [selection])
    if fit.weights or not fit.slots:
        return
    distribution = slot_statistics.distribution_of(unit, fit.version, fit.sums)
    yield Draft(f"{name} re-priced", command, distribution)


def _long_term_draft(
    unit: Unit, reward: Reward, effects: ShrunkEffects, arm_ids: Sequence[int], learners: Sequence[Version]
) -> Draft:
    """Return a candidate of kind `long-term` whose belief is the given effects. If there are learners, the candidate is
    the newest learner, rebuilt; otherwise it is a new policy.

    effects: the long-run effects of arms; arm_ids: the id of the arm of each effect; learners: the live versions of
    `long-term` policies that learn this reward."""
    from rlrec.policy.kinds.long_term import MIN_SD, LongTerm

    prior = {"prior_mean": effects.prior_mean, "prior_sd": max(effects.prior_sd, MIN_SD)}
    sds = np.clip(effects.sd, MIN_SD, prior["prior_sd"])  # an arm has at least the information of the prior
    posteriors = zip(arm_ids, effects.mean.tolist(), sds.tolist(), strict=True)
    sums = [ArmSums(arm, *LongTerm.statistics_of(mean, sd, **prior), 0.0) for arm, mean, sd in posteriors]
    version = designs.make_draft("long-term", kinds.values(kinds.make("long-term", prior)), reward)
    distribution = VersionDistribution(unit, version, designs.policy_of(version), sums=sums, prior=())
    if learners:
        name = learners[-1].policy.name
        return Draft(f"{name} rebuilt", f"`rlrec policy rebuild {name}` makes it", distribution)
    name = f"{reward.name}-long-term"
    command = f"`rlrec policy create {name} --kind long-term --reward {reward.name}`"
    return Draft("long-term", f"{command}, then `rlrec policy rebuild {name}`, make it", distribution)


def sentence_of(reward: str, candidates: Sequence[Candidate]) -> str:
    """Return the sentence that names the best candidate and says how uncertain its gain is. If the best candidate
    already serves, the sentence also names a candidate that may be better."""
    pick, start, clause = candidates[0], f"best known for {reward} in the long run", ""
    holder = next((row for row in candidates if row["serves"]), None)
    if holder is not None and (pick is holder or pick["lower"] <= max(0.0, holder["gain"])):
        holder_text = f"{holder['name']}, which serves"
        rival = max((row for row in candidates if row is not holder), key=lambda row: row["gain"], default=holder)
        if rival["gain"] <= max(0.0, holder["gain"]):
            return f"{start}: {holder_text}, by this log as good as any"
        is_first = pick is holder
        start = f"{start}: {holder_text}; perhaps better" if is_first else f"perhaps best for {reward} in the long run"
        pick, clause = rival, f"; {holder['name'] if is_first else f'{holder_text},'} {holder['gain']:+.2g}"
    bounds = ", ".join(f"{pick[name]:+.2g}" for name in ("lower", "upper"))
    doubt = "" if pick["lower"] > 0 else ", which this log alone cannot be sure of"
    figures = f"{pick['gain']:+.2g} {reward} a page [{bounds}] above what this log shows, to first order{doubt}{clause}"
    return f"{start}: {pick['name']} ({figures}): {pick['command']}"
