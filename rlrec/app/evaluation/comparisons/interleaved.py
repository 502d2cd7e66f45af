"""This module runs interleaved experiments. Two frozen rankers fill each slate in turns, and the reward of a slot goes
to the ranker that filled the slot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from rlrec import policy as kinds
from rlrec.app.inputs import canonical, filters, lookup
from rlrec.errors import InputError
from rlrec.policy.beliefs.base import ALL_FIELDS
from rlrec.records import Reward, Version
from rlrec.store import Unit
from rlrec.store.log import candidates
from rlrec.store.log.candidates import TEAMS
from rlrec.store.policies import policies
from rlrec.store.policies.experiments import Experiment

if TYPE_CHECKING:
    from rlrec.ope.comparisons.comparison import Comparison, MetricValue

LABEL, OPTION = "interleaved", "interleave"  # label of the only variant; key in the definition of the experiment


class TeamCredit(NamedTuple):
    """This record compares two teams, which are the rankers of an interleaved experiment. The credit of a team is the
    reward of the slots that its ranker filled.

    means: the mean credit of each team per decision; difference: the second mean minus the first; decisions: the
    number of mature decisions without a censored slot; sessions: the number of their sessions; first_picks: the
    number of decisions in which the first team picked first; wins: how many users or sessions gave more credit to
    the first team, how many to the second, and how many the same to both, or None if there are too many to count."""

    means: list[MetricValue]
    difference: Comparison
    sessions: int
    decisions: int
    first_picks: int
    wins: tuple[int, int, int] | tuple[None, None, None]


def ranker_names(experiment: Experiment) -> list[str]:
    """Return the references of the two rankers of an interleaved experiment, or [] for any other experiment."""
    return [str(reference) for reference in experiment.declaration.get(OPTION) or []]


def ranker_versions(unit: Unit, references: Sequence[str]) -> list[Version]:
    """Return the two versions that will take turns in filling slates. Raise InputError unless the references name two
    different versions that can be interleaved."""
    if len(references) != 2:
        hint = "give two: --interleave home@2,other@1"
        raise InputError(f"--interleave names {len(references)} rankers", hint=hint)
    if references[0] == references[1]:
        raise InputError(f"{references[0]} cannot be interleaved with itself", hint="name two versions")
    return [_ranker(unit, reference) for reference in references]


def _ranker(unit: Unit, reference: str) -> Version:
    from rlrec.app.distributions import designs

    version = lookup.version(unit, reference)[0]
    policy, name = kinds.load(version.policy.kind), version.policy.name
    if version.learning and policy.learns_online and version.policy.kind not in kinds.KINDS_THAT_DO_NOT_LEARN:
        hint = f"`rlrec policy freeze {name}` makes a version to name, {name}@V"
        raise InputError(f"{reference} still learns, and interleaved rankers are frozen", hint=hint)
    ranker = designs.policy_of(version)
    reasons = {
        "only holds an imported log": not policy.can_serve,
        "reads the session": policy.is_stateful,
        "draws candidates first": bool(ranker.stages),
        "ranks by samples of its own for every decision": getattr(ranker, "model", "") in ("shared", "hybrid")
        and hasattr(ranker, "samples"),
        "is interleaved itself": policy.is_draft,
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(f"{reference} cannot be interleaved: it {reason}", hint="name another policy")
    if ranker.rules:
        rule = next(f"{name}={text}" for name, text in ranker.rules.items())
        hint = "name a policy without rules, and give them in requests"
        raise InputError(f"{reference} cannot be interleaved: its rule {rule} would not hold", hint=hint)
    return version


def add_policy(unit: Unit, experiment: str, ranker_versions: Sequence[Version]) -> int:
    """Create the policy that fills slates from these two versions, and return its id.

    experiment: the name of the experiment."""
    from rlrec.app.distributions import designs

    fields = dict.fromkeys(name for version in ranker_versions for name in designs.policy_of(version).fields_read)
    params = {
        "first": ranker_versions[0].id, "second": ranker_versions[1].id, "floor": 0.0,
        "fields": list(ALL_FIELDS if ALL_FIELDS[0] in fields else fields),
    }  # fmt: skip
    policy_id, _ = policies.create(
        unit, name=f"{kinds.TEAM_DRAFT}@{experiment}/{LABEL}", kind=kinds.TEAM_DRAFT, params=params,
        definition=canonical.text({"experiment": experiment, "variant": LABEL}), status="frozen",
        reward_id=ranker_versions[0].reward.id, learned_from={},
    )  # fmt: skip
    return policy_id


def team_credit(unit: Unit, experiment: Experiment, reward: Reward, *, level: float) -> TeamCredit:
    """Return the credit of each team (ranker) on mature decisions. Errors are clustered by the user or session that was
    assigned. level: the level of the intervals."""
    import numpy as np

    from rlrec.ope.comparisons import comparison
    from rlrec.ope.comparisons.comparison import MetricValue, fold

    empty_sums = fold(np.empty(0), np.empty(0, np.int64), spans_batches=True)
    sums, first_picks, n_sessions = [empty_sums, empty_sums, empty_sums], 0, 0
    for unit_ids, session_ids, credit, n_picks in _read_credits(unit, experiment, reward):
        columns = (credit[:, 0], credit[:, 1], credit[:, 1] - credit[:, 0])
        sums = [total + fold(column, unit_ids, spans_batches=True) for total, column in zip(sums, columns, strict=True)]
        first_picks += n_picks
        n_sessions += len(np.unique(session_ids))
    first_value, second_value, difference = map(MetricValue.from_sums, sums)
    summary = sums[2].summary()
    sign = np.sign(summary.units[:, 0])
    wins = int((sign < 0).sum()), int((sign > 0).sum()), int((sign == 0).sum())
    return TeamCredit(
        means=[first_value, second_value],
        difference=comparison.compare_with_zero(difference, level=level, base=first_value.value),
        sessions=n_sessions, decisions=round(difference.denominator), first_picks=first_picks,
        wins=(None, None, None) if summary.is_by_block else wins,
    )  # fmt: skip


def _read_credits(unit: Unit, experiment: Experiment, reward: Reward) -> Iterator[tuple[Any, Any, Any, int]]:
    """Yield four values for each batch of n decisions: the id of the user or session that was assigned, (n,), the id of
    the session, (n,), the credit of each team, (n, 2), and the number of decisions in which the first team picked
    first."""
    import numpy as np

    from rlrec.app.log import reward_log
    from rlrec.arrays import run_starts
    from rlrec.store.log import reader

    selection = replace(filters.selection(unit, None), variant_ids=[variant.id for variant in experiment.variants])
    for batch in reader.batches(unit, selection, columns=(*reward_log.MATURITY_COLUMNS, "user_id")):
        rows = reward_log.with_rewards(batch, reward)
        rows = rows.take(reward_log.is_mature(rows.slots, reward, now=unit.now))
        ids = rows.slots["decision_id"]
        rows = rows.take(~np.isin(ids, ids[rows.slots["censored"]]))
        if not len(rows):
            continue
        # the team of every slot
        ids = rows.slots["decision_id"]
        starts = run_starts(ids)
        teams = candidates.find_teams(unit, ids[starts].tolist())
        letters = "".join(teams[key] for key in ids[starts].tolist())
        is_second = np.frombuffer(letters.encode(), np.uint8) == ord(TEAMS[1])
        # the rewards, summed by decision and team
        credit = np.column_stack(
            [np.add.reduceat(np.where(is_second == team, rows.reward, 0.0), starts) for team in (False, True)]
        )
        unit_ids, session_ids = (rows.slots[name][starts] for name in (f"{experiment.unit}_id", "session_id"))
        yield unit_ids, session_ids, credit, int((~is_second[starts]).sum())
