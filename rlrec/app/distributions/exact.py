"""This module loads the belief of a version, and computes its distributions over eligible arms in contexts."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from rlrec.app.distributions import sum_tables
from rlrec.app.distributions.designs import CatalogueFeatures, arm_features, policy_of
from rlrec.arrays import Array, Ids, Index, Words, look_up
from rlrec.errors import InputError
from rlrec.policy import KINDS_WITHOUT_PAGE_RULES, TEAM_DRAFT, TWO_STAGE, is_contextual, learns_by_column, learns_stated
from rlrec.policy.beliefs.base import ALL_FIELDS, PRICE, Belief, Policy
from rlrec.policy.contexts import statements
from rlrec.policy.contexts.statements import PAGE, PAGE_FIELDS
from rlrec.policy.scores.floors import Floor, at_positions
from rlrec.policy.scores.scores import Scores, split_runs
from rlrec.policy.slates import slate
from rlrec.policy.slates.slate_draws import Draw, SlateSampler
from rlrec.records import CURVE, Record, Version
from rlrec.store import Unit
from rlrec.store.database.unit import Row, damage_error
from rlrec.store.policies import beliefs, policies
from rlrec.store.policies.beliefs import SUMS, ArmSums, BeliefRow, BeliefRows, Sums

if TYPE_CHECKING:
    from rlrec.app.distributions.page_layouts import PageLayouts
    from rlrec.app.distributions.trained import TrainedModel
    from rlrec.policy.beliefs.solving import ArmMoments, StatedTerms
    from rlrec.policy.beliefs.spend import Spend
    from rlrec.policy.contexts.encoder import ContextualPolicy, EncodedRows
    from rlrec.policy.kinds.fixed import Scored, TeamDraft
    from rlrec.policy.kinds.two_stage import TwoStage
    from rlrec.policy.slates.interleaving import Ranker
    from rlrec.policy.slates.page_layout import PageLayout
    from rlrec.policy.slates.page_rules import PageRules

ARMS = 10_000  # in all cached distributions of one belief: 30 MB
CELLS = 1_000_000  # numbers that the scores of a group of contexts need at a time
WORDS = 100  # columns that a sparse context is assumed to have


class EligibleDistribution(Record, eq=False):
    """This record is the distribution over an eligible set of m arms. It has the ids of the arms (m,), their scores
    and, if the kind has an index (a score without noise), the index of each arm (m,).

    reads: the context fields on which the distribution depends; samplers: the sampler of slates for each length of a
    slate; earlier: the samplers of an earlier belief; rankers: the two rankers that draft a slate, if any; layout:
    the page rules, None if there are none. If there are rules, the scores include the effect of the rules and of the
    floor."""

    arms: Ids
    scores: Scores
    index: Array | None
    floor: Floor
    reads: tuple[str, ...]
    samplers: dict[int, SlateSampler] = field(default_factory=dict)
    earlier: Mapping[int, SlateSampler] = field(default_factory=dict)
    rankers: tuple[Ranker, Ranker] | None = None
    layout: PageLayout | None = None

    def slate_sampler(self, size: int) -> SlateSampler:
        """Return the sampler of slates with `size` positions. The sampler is made once. If there is a sampler of an
        earlier belief, the new sampler reuses what still holds of its tables."""
        if size not in self.samplers:
            earlier_sampler, sampler_class = self.earlier.get(size), SlateSampler
            if self.layout is not None:
                from rlrec.policy.slates.rules import RuledSampler

                sampler_class = RuledSampler
            self.samplers[size] = sampler_class(
                self.scores, size=size, floor=self.floor, earlier_sampler=earlier_sampler
            )
        return self.samplers[size]

    def draw(self, size: int, *, seeds: Words, decisions: Ids) -> Draw:
        """Draw the slates of n decisions, with the team that picked each slot if two rankers draft a slate. seeds (n,),
        decisions (n,): the seed and the id of each decision."""
        if self.rankers is None:
            return self.slate_sampler(size).draw(seeds=seeds, decisions=decisions)
        from rlrec.policy.slates.interleaving import TeamDraftSampler

        return TeamDraftSampler(self.rankers, size).draw(seeds=seeds, decisions=decisions)

    def list_conditionals(self, lists: Ids, *, seeds: Words, decisions: Ids) -> Array:
        """Return the probability of each candidate given the candidates before it in its list, (n, k). A list with an
        arm that is not eligible has probabilities of 0.

        lists (n, k): the ids of the candidates in order; seeds (n,), decisions (n,): the seed and the id of each
        decision, for kinds with correlated scores, which draw samples for each decision."""
        index, eligible = look_up(self.arms, lists)
        possible_rows = np.flatnonzero(eligible.all(axis=1))
        probability = np.zeros(lists.shape)
        if not self.scores.samples:
            probability[possible_rows] = slate.conditionals(self.scores, index[possible_rows], floor=self.floor)
            return probability
        for row in possible_rows.tolist():
            scores = self.scores.decision_scores(int(seeds[row]), int(decisions[row]))
            probability[row] = slate.conditionals(scores, index[row : row + 1], floor=self.floor)[0]
        return probability

    def noiseless_scores(self, arms: Index) -> npt.NDArray[np.object_]:
        """Return the noiseless scores of some arms, in the shape of `arms`. The score is None for an arm without a
        score, or with an infinite score (no pulls). arms: indices of arms, 0..m - 1."""
        no_scores = np.full(arms.shape, None, np.object_)
        if self.index is None:
            return no_scores
        values = self.index[arms]
        return np.where(np.isfinite(values), values, no_scores)


class VersionDistribution:
    """This class holds one version at one moment: its policy, its sums per arm, and a cache of its distributions.

    ordinal: the number of decisions that the policy of the version had made; sums: rows of `beliefs.sums` if the
    belief is three sums per arm, else rows of `beliefs.rows`; arm_features: the features of the arms, if the model
    reads features; trained_model: the parameters of a trained kind; columns: the sums for each column of sparse
    contexts, for kinds that read sparse contexts.

    learner: the policy that learned the sums. If the learner has two stages, `policy` is the second stage, and eligible
    sets are lists of candidates. generator: the first stage, or None if the learner has one stage; rankers: the two
    versions whose rankings are drafted into a slate, empty for other kinds; spend: what a policy with a budget has
    spent; catalogue: the arms from which the price of such a policy is computed."""

    def __init__(
        self, unit: Unit, version: Version, learner: Policy, *, sums: BeliefRows, prior: Sequence[Row],
        ordinal: int = 0, arm_features: CatalogueFeatures | None = None, trained_model: TrainedModel | None = None,
        columns: sum_tables.ColumnSums | None = None,
    ) -> None:  # fmt: skip
        self.unit, self.version, self.ordinal, self.columns = unit, version, ordinal, columns
        self.learner, self.policy, self.trained_model = learner, learner, trained_model
        # a trained model has negative revisions of its own
        self.arm_features = arm_features if trained_model is None else trained_model.arm_features
        self.rankers: tuple[VersionDistribution, ...] = ()
        self.spend: Spend | None = None
        self.catalogue: Ids = np.empty(0, np.int64)
        self._price: float | None = None
        self.generator: VersionDistribution | None = None
        if learner.stages:
            self.policy = learner.stages[-1]
            kind, params = cast("TwoStage", learner).definitions[0]
            parameters = {name: value for name, value in version.parameters.items() if name not in CURVE}
            stage_policy = version.policy._replace(
                kind=kind, params=params
            )  # with the curve, if the stage counts by one
            first_stage = replace(version, policy=stage_policy, parameters=parameters)
            self.generator = VersionDistribution(
                unit, first_stage, policy_of(first_stage), sums=(), prior=prior, arm_features=arm_features
            )
        self._contextual = self.policy if is_contextual(self.policy) else None
        self._prior_arms, self._prior = sum_tables.split_arms(prior, 2)
        self._rows: dict[str, EncodedRows] = {}
        self._page: PageRules | None = None
        if learner.rules:
            from rlrec.policy.slates.page_rules import parse_texts

            self._page = parse_texts(learner.rules)
        self._layouts: PageLayouts | None = None
        self._set_sums(sums)

    def _set_sums(self, sums: BeliefRows, *, all_sums: Mapping[int, sum_tables.Table] | None = None) -> None:
        """Replace the sums of the belief, and drop what was computed from the old sums. Raises an error if the new sums
        are damaged. all_sums: the old sums of all arms by section; `sums` then has only the sums that changed."""
        if has_three_sums(self.learner):
            tables = {0: sum_tables.split_arms(sums, 3)}
        else:
            rows = cast("Sequence[BeliefRow]", sums)
            tables = sum_tables.faded_sums(rows, self.learner.forgetting, self.ordinal)
        for section, old_table in (all_sums or {}).items():
            tables[section] = sum_tables.replace_sums(*old_table, *tables[section]) if section in tables else old_table
        arms, table = tables[0]
        if len(arms) and table.shape[1] != self.learner.width:
            belief = f"the belief of {self.version.reference}"
            raise damage_error(
                f"{belief} has {table.shape[1]} sums of an arm, where its kind counts {self.learner.width}"
            )
        self._all_sums = tables
        for row in np.flatnonzero(table[:, 0] < -1e-6)[:1].tolist():  # lower than rounding explains
            belief = f"the belief of {self.version.reference}"
            raise damage_error(f"{belief} counts {table[row, 0]:g} pulls of arm {arms[row]}")
        if self.generator is not None:
            first_columns, second_columns = cast("TwoStage", self.learner).columns
            earlier_generator, self.generator = self.generator, copy(self.generator)
            self.generator._take_sums(arms, table[:, first_columns] if len(arms) else np.zeros((0, len(first_columns))))
            self.generator.arm_features, self.generator._earlier = self.arm_features, earlier_generator._samplers()
            table = table[:, second_columns] if len(arms) else np.zeros((0, len(second_columns)))
        self._take_sums(arms, table)

    def _take_sums(self, arms: Ids, sums: Array) -> None:
        """Replace the sums per arm, and drop everything computed from the earlier sums."""
        self._arms, self._sums = arms, sums
        self._distributions: dict[tuple[Hashable, ...], EligibleDistribution] = {}
        self._earlier: Mapping[tuple[Hashable, ...], Mapping[int, SlateSampler]] = {}
        self._beliefs: dict[tuple[Hashable, int], Belief] = {}
        self._pools: dict[int, ArmMoments] = {}
        self._cached_arms = self._believed_arms = 0

    def encode_contexts(self, contexts: Collection[Mapping[str, Any]]) -> None:
        """Encode these contexts together, and keep the results for later calls. This is faster than one by one."""
        if self._contextual is not None:
            by_key = {self.reading(context): context for context in contexts}
            rows = self._contextual.design.context.rows(list(by_key.values()))
            self._rows = dict(zip(by_key, rows, strict=True))
        for stage in (*self.rankers, *([] if self.generator is None else [self.generator])):
            stage.encode_contexts(contexts)

    def belief(self, arms: Ids, *, revision: int = 0) -> Belief:
        """Return the sums and the prior of the arms with these ids. An arm without stored sums has sums of 0, and an
        arm without a stored prior has the kind's default prior.

        revision: the revision of the catalogue that describes the arms, if a model reads their features."""
        sums = sum_tables.align_values(self._arms, self._sums, arms, (0.0,) * self.policy.width)
        prior = sum_tables.align_values(self._prior_arms, self._prior, arms, self.policy.prior)
        return Belief(
            pulls=sums[:, 0], reward_sum=sums[:, 1], reward_squares=sums[:, 2], alpha=prior[:, 0], beta=prior[:, 1],
            total=float(self._sums[:, 0].sum()), extra=sums[:, 3:], moments=self._moments(sums[:, 3:], arms, revision),
            parameters=None if self.trained_model is None else self.trained_model.select(arms, revision),
            read_column_sums=None if self.columns is None else partial(self.columns.sums, arms=arms),
            cost=None if self.spend is None else self.spend.costs(arms),
        )  # fmt: skip

    def price_at(self, at: int | None = None) -> float:
        """Return what a policy with a budget subtracts from a score per unit of cost, at a moment. If `at` is None, or
        the version no longer learns, the price is that of a typical past period."""
        belief, policy = self.belief(self.catalogue), self.policy
        location = policy.index(replace(belief, cost=None))
        assert self.spend is not None
        assert location is not None
        assert belief.cost is not None
        return self.spend.price(
            location, policy.score_deviation(belief), belief.cost,
            p_uniform=float(at_positions(policy.exploration, 1)[0]), at=at if self.version.learning else None,
        )  # fmt: skip

    def _moments(self, packed_moments: Array, arms: Ids, revision: int) -> ArmMoments | None:
        """Return sums of products of the context features that the belief learned from; None for kinds that do not
        learn from contexts. packed_moments: the sums of each arm in packed form."""
        policy = self._contextual
        if policy is None or not policy.learns_online or policy.design.context.is_sparse:
            return None
        from rlrec.policy.beliefs.solving import unpack, unpack_stated  # other kinds need none of it

        q = policy.design.context.width
        moments = unpack(packed_moments, q)
        if self.arm_features is None:
            return moments
        learned_revision = self.arm_features.learned_revision(revision)
        epoch = self.arm_features.epoch(learned_revision)
        if epoch not in self._pools:  # solved once, for any eligible set
            all_moments, arm_rows = (unpack(self._sums[:, 3:], q), self._arms) if len(self._arms) else (moments, arms)
            learned_features = self.arm_features.encode(arm_rows, learned_revision)
            stated_sums, table = None, self._all_sums.get(beliefs.BY_ARM)
            if beliefs.TOGETHER in self._all_sums:
                stated_sums = unpack_stated(self._all_sums[beliefs.TOGETHER][1][0, 3:], learned_features.shape[1], q)
            rows = np.empty(0, np.intp) if table is None else np.searchsorted(arm_rows, table[0])
            terms = self._terms(all_moments, arm_rows[rows], learned_features[rows], rows)
            self._pools[epoch] = replace(
                all_moments, arm_features=learned_features, stated_sums=stated_sums, terms=terms
            )
        features, terms = self.arm_features.encode(arms, revision), None
        if revision != learned_revision or beliefs.BY_ARM in self._all_sums:
            learned_features = self.arm_features.encode(arms, learned_revision)
            terms = self._terms(moments, arms, learned_features, np.arange(len(arms)))
        return replace(moments, arm_features=features, terms=terms, pool=self._pools[epoch])

    def _terms(self, moments: ArmMoments, arms: Ids, learned_features: Array, rows: Index) -> StatedTerms | None:
        """Return the sums over all slots of some arms, including slots for which a request stated features; None if
        arms have no weights of their own. learned_features: the features of the arms in the catalogue; rows: the
        indices of the arms."""
        from rlrec.policy.beliefs.solving import terms_width, unpack_terms
        from rlrec.policy.kinds.linear import HYBRID

        if self.version.params.get("model") != HYBRID or not learns_stated(self.learner) or not len(arms):
            return None
        default_sums = (0.0,) * (3 + terms_width(learned_features.shape[1], moments.response.shape[-1]))
        table = self._all_sums.get(beliefs.BY_ARM, (arms[:0], np.zeros((0, len(default_sums)))))
        return unpack_terms(sum_tables.align_values(*table, arms, default_sums)[:, 3:], moments, learned_features, rows)

    def reading(self, context: Mapping[str, Any]) -> str:
        """Return the cache key of a context: contexts with equal keys have equal distributions."""
        reads = self.learner.fields_read
        if reads == ALL_FIELDS and statements.ARMS not in context:
            return repr(context)
        if reads == ALL_FIELDS:  # scores that a request states of arms change nothing
            return repr({**context, statements.ARMS: statements.by_arm(context, statements.FEATURES)})
        if PAGE in context or self._page is not None:  # caps read features of arms
            reads = (*reads, *PAGE_FIELDS)
        if not reads:
            return ""
        from rlrec.policy.contexts.features import value_of

        return repr([value_of(context, field) for field in reads])

    def check(self, context: Mapping[str, Any]) -> None:
        """Raise InputError if a value in a context lacks the type that the policy's features declare."""
        if self.learner.is_contextual:
            cast("ContextualPolicy", self.learner).design.context.check(context)
        for ranker in self.rankers:
            ranker.check(context)
        if statements.ARMS in context and self.learner.is_contextual and self.arm_features is not None:
            encoder = cast("ContextualPolicy", self.learner).design.arm
            for key, features in (statements.by_arm(context, statements.FEATURES) or {}).items():
                encoder.check(features, subject=f"arms.{key}.features", owner=f" of arm {key!r}")

    def candidates(
        self, eligible: Hashable, arms: Ids, context: Mapping[str, Any], *, keys: Mapping[int, str], revision: int = 0
    ) -> EligibleDistribution:
        """Return the distribution from which the first of two stages draws lists of candidates. The arguments are those
        of `case`. Raises InputError if there are page rules."""
        assert self.generator is not None
        if self.page_rules(context):
            raise self._refuse_rules()
        case = self.generator.case(eligible, arms, context, keys=keys, revision=revision)
        return replace(case, reads=self.learner.fields_read)

    def case(
        self, eligible: Hashable, arms: Ids, context: Mapping[str, Any], *, keys: Mapping[int, str], revision: int = 0
    ) -> EligibleDistribution:
        """Return the distribution over an eligible set in a context. Each distribution is computed once. Raises
        InputError if the policy has no distribution in the context.

        eligible: an identifier of the eligible set, for the cache; arms: the ids of its arms; keys: the key of each
        arm, by id; revision: the revision of the catalogue that describes the arms."""
        if self.rankers:
            from rlrec.policy.slates.interleaving import Ranker

            # the two rankings of an eligible set; the scores are those of the first ranker
            rankings = (ranker.case(eligible, arms, context, keys=keys, revision=revision) for ranker in self.rankers)
            first_case, second_case = rankings
            if first_case.layout is not None or second_case.layout is not None:
                raise self._refuse_rules()
            rankers = Ranker(first_case.scores, first_case.floor), Ranker(second_case.scores, second_case.floor)
            return replace(
                first_case, index=None, reads=self.policy.fields_read, samplers={}, earlier={}, rankers=rankers
            )
        reading, features_revision = self.reading(context), revision
        if self.arm_features is not None:
            features_revision = self.arm_features.at_request(context, arms, keys, revision)
        cache_key = eligible, self.epoch(features_revision), reading
        if cache_key not in self._distributions:
            if self._cached_arms > ARMS:
                self.forget()
            self._cached_arms += len(arms)
            belief, policy = self._eligible_belief(eligible, arms, features_revision), self.policy
            index: Array | None
            if self.spend is not None and context.get(PRICE) is None:  # by default, the price of a typical past period
                self._price = self.price_at() if self._price is None else self._price
                context = {**context, PRICE: self._price}
            if self._contextual is not None:
                x = self._rows[reading] if reading in self._rows else self._contextual.encode(context)
                scores, index = self._contextual.scores_at(belief, x), self._contextual.index_at(belief, x)
            else:
                # keys are looked up lazily: few kinds need them
                scores = policy.scores(belief, arms=map(keys.__getitem__, arms), context=context)
                if policy.takes_scores:
                    index = cast("Scored", policy).request_scores(map(keys.__getitem__, arms), context)
                else:
                    index = policy.index(belief, context=context)
            floor, layout = policy.exploration, None
            if self._page is not None or PAGE in context:
                layout = self.layout(eligible, arms, context, keys=keys, revision=revision)
            if layout is not None:
                from rlrec.policy.slates.rules import RuledScores

                scores, floor = RuledScores(scores, layout, floor), 0.0
            self._distributions[cache_key] = EligibleDistribution(
                arms=arms, scores=scores, index=index, reads=policy.fields_read, layout=layout, floor=floor,
                earlier=self._earlier.get(cache_key, {}),
            )  # fmt: skip
        return self._distributions[cache_key]

    def page_rules(self, context: Mapping[str, Any]) -> list[PageRules]:
        """Return the page rules that apply in a context: the rules of the policy, then those of the request, if any."""
        rules = [] if self._page is None else [self._page]
        if context.get(PAGE):
            from rlrec.policy.slates.page_rules import parse

            rules.append(parse(context[PAGE]))
        return rules

    def reads_catalogue(self, contexts: Sequence[Mapping[str, Any]]) -> bool:
        """Tell whether the distribution in any of the contexts depends on the catalogue's features of arms."""
        if self.arm_features is not None:
            return True
        has_rules = self._page is not None or any(PAGE in context for context in contexts)
        return has_rules and any(page.most for context in contexts for page in self.page_rules(context))

    def layout(
        self, eligible: Hashable, arms: Ids, context: Mapping[str, Any], *, keys: Mapping[int, str], revision: int
    ) -> PageLayout | None:
        """Return the layout that the page rules of the policy and of the context give to an eligible set; None without
        rules.

        Raises InputError if the rules contradict each other, or if the kind of policy cannot keep the rules."""
        rules = self.page_rules(context)
        if not rules:
            return None
        if self.generator is not None:
            raise self._refuse_rules()
        if self._layouts is None:
            from rlrec.app.distributions.page_layouts import PageLayouts

            self._layouts = PageLayouts()
        return self._layouts.find(self.unit, rules, eligible, arms, context, keys=keys, revision=revision)

    def _refuse_rules(self) -> InputError:
        reason = KINDS_WITHOUT_PAGE_RULES[TEAM_DRAFT if self.rankers else TWO_STAGE]
        message = f"policy {self.version.policy.name!r} keeps no rules of a page: {reason}"
        return InputError(message, hint="use another policy", field="page")

    def scores(
        self, eligible: Hashable, arms: Ids, contexts: Sequence[Mapping[str, Any]], *, keys: Mapping[int, str],
        revision: int = 0,
    ) -> list[Scores]:  # fmt: skip
        """Return the scores that `case` has in each of several contexts. They are computed together if the kind reads
        contexts."""
        policy = self._contextual
        # statements that no two contexts share: page rules, or features of arms
        needs_case = any(
            context.get(PAGE) or (self.arm_features and statements.by_arm(context, statements.FEATURES))
            for context in contexts
        )
        if policy is None or self._page is not None or needs_case:
            return [self.case(eligible, arms, context, keys=keys, revision=revision).scores for context in contexts]
        belief = self._eligible_belief(eligible, arms, revision)
        x = policy.design.context.rows(contexts)
        # products per column that a score needs
        n_products = policy.design.arm.width if policy.uses_arm_features else 1
        columns = WORDS if policy.design.context.is_sparse else x.shape[1] * max(x.shape[1], n_products)
        step = max(1, CELLS // (len(arms) * columns))
        starts = range(0, len(x), step)
        return [scores for start in starts for scores in split_runs(policy.scores_at(belief, x[start : start + step]))]

    def _eligible_belief(self, eligible: Hashable, arms: Ids, revision: int) -> Belief:
        """Return the belief about the arms of an eligible set, from a cache. The belief keeps the results that a model
        computes from it. The cache keeps beliefs longer than distributions."""
        cache_key = eligible, self.epoch(revision)
        if cache_key not in self._beliefs:
            if self._believed_arms > ARMS:
                self._beliefs.clear()
                self._pools.clear()
                self._believed_arms = 0
            self._believed_arms += len(arms)
            self._beliefs[cache_key] = self.belief(arms, revision=revision)
        return self._beliefs[cache_key]

    def epoch(self, revision: int) -> int:
        """Return the cache key of a revision of the catalogue. Revisions with the same features of arms have equal
        keys."""
        return 0 if self.arm_features is None else self.arm_features.epoch(revision)

    def at_moment(
        self, sums: BeliefRows, *, ordinal: int, columns: sum_tables.ColumnSums | None = None,
        all_sums: Mapping[int, sum_tables.Table] | None = None,
    ) -> VersionDistribution:  # fmt: skip
        """Return the same version with the sums of another moment. Its samplers are updated where an update is cheaper
        than new samplers. all_sums: the earlier sums of all arms by section, if `sums` has only those that changed."""
        distribution = copy(self)  # policy and prior are the same
        distribution.ordinal, distribution.columns = ordinal, columns
        distribution._set_sums(sums, all_sums=all_sums)
        distribution._earlier = self._samplers()
        return distribution

    def _samplers(self) -> Mapping[tuple[Hashable, ...], Mapping[int, SlateSampler]]:
        return {name: {**eligible.earlier, **eligible.samplers} for name, eligible in self._distributions.items()}

    def forget(self) -> None:
        """Drop the cached distributions. They would fill the memory if no two rows share a distribution."""
        self._distributions.clear()
        self._earlier = {}
        self._cached_arms = 0


def has_three_sums(policy: Policy) -> bool:
    """Tell whether the policy's beliefs are three sums per arm, and do not forget. Such beliefs are stored as
    `ArmSums`."""
    return policy.width == len(SUMS) and not policy.forgetting.forgets


def load(
    unit: Unit, version: Version, *, seq: int | None = None, ordinal: int | None = None, greedy: bool = False
) -> VersionDistribution:
    """Load a version as it is now, or as it was after change `seq` of its policy. ordinal: the number of decisions of
    the policy at that moment, None for the present number; greedy: whether to leave out the version's exploration."""
    policy = policy_of(version)
    learner = policy.greedy() if greedy else policy
    sums, ordinal = _stored_sums(unit, version, learner, seq, ordinal)
    return from_sums(unit, version, learner, sums, seq=seq, ordinal=ordinal)


def from_sums(
    unit: Unit, version: Version, learner: Policy, sums: BeliefRows, *, ordinal: int, seq: int | None = None
) -> VersionDistribution:
    """Return the distribution of a version, from its present sums or, if `seq` is given, from its sums after change
    `seq`. learner: the policy that learned the sums; ordinal: the number of decisions that it had made."""
    distribution = VersionDistribution(
        unit, version, learner, sums=sums, prior=beliefs.prior(unit, version.id), ordinal=ordinal,
        arm_features=arm_features(unit, learner) if learner.is_contextual and not learner.is_stateful else None,
        trained_model=_read_trained_model(unit, version, learner) if learner.is_stateful else None,
        columns=column_sums(unit, version, learner, seq=seq, ordinal=ordinal) if learner.is_contextual else None,
    )  # fmt: skip
    if learner.budget:
        _set_spent_budget(unit, distribution, seq)
    if learner.is_draft:  # made from two versions
        draft = cast("TeamDraft", learner)
        versions = policies.by_id(unit, [draft.first, draft.second])
        distribution.rankers = load(unit, versions[draft.first]), load(unit, versions[draft.second])
    return distribution


def set_spend(distribution: VersionDistribution, rows: Iterable[BeliefRow], catalogue: Iterable[int]) -> None:
    """Set what a policy with a budget has spent. rows: the rows of its belief that store this; catalogue: the arms from
    whose scores and costs the price is computed."""
    from rlrec.policy.beliefs.spend import Spend  # few policies have a budget

    budget = distribution.learner.parsed_budget
    assert budget is not None
    distribution.spend = Spend(budget, [(-1 - row.bucket, row.arm_id, *row[3:6]) for row in rows])
    distribution.catalogue, distribution._price = np.array([*catalogue], np.int64), None


def _set_spent_budget(unit: Unit, distribution: VersionDistribution, seq: int | None) -> None:
    """Read what a version has spent of its budget, now or until change `seq`, and set it in the distribution."""
    from rlrec.app.inputs.arm_rules import allowed_arms
    from rlrec.policy.beliefs.spend import N_RECENT_SLICES

    newest_slices = N_RECENT_SLICES if seq is None else None
    version = distribution.version
    rows = beliefs.spend(unit, version.id, newest_slices=newest_slices, seq=seq)
    set_spend(distribution, rows, allowed_arms(unit, version.policy.params))


def _read_trained_model(unit: Unit, version: Version, learner: Policy) -> TrainedModel:
    from rlrec.app.distributions.trained import TrainedModel  # bandits need none of it

    return TrainedModel(unit, version, learner=learner)


def column_sums(
    unit: Unit, version: Version, policy: Policy, *, ordinal: int, seq: int | None = None,
    earlier: sum_tables.ColumnSums | None = None,
) -> sum_tables.ColumnSums | None:  # fmt: skip
    """Return an object that reads the sums for columns of sparse contexts on demand; None for kinds that do not learn
    from sparse contexts. earlier: the same object of the version at another moment."""
    if not learns_by_column(policy):
        return None
    anchor, discount = None if earlier is None else earlier.anchor, policy.forgetting.discount
    return sum_tables.ColumnSums(unit, version.id, seq=seq, ordinal=ordinal, discount=discount, anchor=anchor)


def _stored_sums(
    unit: Unit, version: Version, policy: Policy, seq: int | None = None, ordinal: int | None = None
) -> tuple[BeliefRows, int]:
    """Read the stored sums of a belief. Returns them with the number of decisions of the policy to which they must be
    discounted, which is 0 for a policy that does not forget and has three sums per arm."""
    if has_three_sums(policy):
        return beliefs.sums(unit, version.id, seq=seq), 0
    if version.status == "frozen":  # served unchanged
        ordinal = version.ordinal
    elif ordinal is None:
        ordinal = policies.ordinal(unit, version.policy.id) if version.learning else version.ordinal
    if learns_by_column(policy):
        return beliefs.counts(unit, version.id, seq=seq), ordinal
    return beliefs.rows(unit, version.id, start=policy.forgetting.oldest_bucket(ordinal), seq=seq), ordinal


def renew(
    unit: Unit, version: Version, earlier: VersionDistribution, *, catalogue_changed: bool,
    changed_arms: Mapping[int, Sums | None] | None = None,
) -> VersionDistribution:  # fmt: skip
    """Return a version with its present sums, made from the version as it was served before. Its samplers are updated
    where an update is cheaper than new samplers.

    earlier: the version as it was served; catalogue_changed: whether the catalogue has changed since then;
    changed_arms: the arms whose sums have changed since then, each with its new sums, or with None if the new sums
    must be read. If `changed_arms` is None, the arms are not known, and all sums are read."""
    if earlier.rankers:
        return load(unit, version)
    distribution = earlier
    if catalogue_changed:
        distribution = copy(earlier)
        distribution.unit, distribution._layouts = unit, None
        distribution.arm_features = arm_features(unit, earlier.learner)
        if distribution.trained_model is not None:
            distribution.trained_model = _read_trained_model(unit, version, earlier.learner)
            distribution.arm_features = distribution.trained_model.arm_features
    learner, ordinal, all_sums = distribution.learner, 0, None
    if changed_arms is None or learner.forgetting.forgets:
        sums, ordinal = _stored_sums(unit, version, learner)
    elif has_three_sums(learner) and None not in changed_arms.values():
        changed_sums = [
            ArmSums(arm, *arm_sums) for arm, arm_sums in sorted(changed_arms.items()) if arm_sums is not None
        ]
        sums, all_sums = changed_sums, earlier._all_sums
    else:
        sums = beliefs.arm_rows(unit, ArmSums if has_three_sums(learner) else BeliefRow, version.id, changed_arms)
        all_sums = earlier._all_sums
    columns = column_sums(unit, version, learner, ordinal=ordinal, earlier=earlier.columns)
    new_distribution = distribution.at_moment(sums, ordinal=ordinal, columns=columns, all_sums=all_sums)
    # policy and prior are the same, but it may have stopped learning
    new_distribution.version, new_distribution.unit = version, unit
    if learner.budget:
        _set_spent_budget(unit, new_distribution, None)
    return new_distribution
