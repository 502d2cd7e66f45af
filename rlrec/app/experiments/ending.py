"""This module ends experiments and promotes variants. The belief of a promoted variant becomes the next version of its
policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from rlrec.app.audit.integrity import live_versions
from rlrec.app.evaluation.comparisons import holdout, interleaved
from rlrec.app.experiments import compare, experiment
from rlrec.app.inputs import filters, lookup
from rlrec.app.learning import belief_versions
from rlrec.app.log import lineage
from rlrec.errors import CheckFailed, InputError, quantity
from rlrec.records import Head, Version
from rlrec.sentences import (
    DEFAULT_REWARD,
    difference_direction,
    difference_sentence,
    equal_ages,
    fewer_visits,
    guard_sentence,
    join_doubts,
)
from rlrec.store import Store, Unit
from rlrec.store.log import activity, settings
from rlrec.store.log.candidates import TEAMS
from rlrec.store.policies import experiments, policies, routes

COMMAND = experiment.STOP
Row = Mapping[str, Any]


def stop(
    store: Store, name: str, *, promote: str | None = None, anyway: bool = False,
    confirm: Callable[[str], bool] | None = None,
) -> experiment.ExperimentSummary:  # fmt: skip
    """Stop serving from an experiment; its log stays. Stopping it again changes nothing. If the experiment is a ramp,
    its route goes back to what it served before, or follows the policy of the promoted variant.

    promote: the label of the variant to promote, or None; anyway: whether to promote it whatever the comparison
    says; confirm: a function that asks the user whether to promote it against the comparison.

    Raises CheckFailed if the comparison is against the promotion, and the promotion is not confirmed."""
    run, differences, losses = {"name": name, "promote": promote}, list[Row](), list[str]()
    with store.read() as unit:
        experiment_row = lookup.experiment(unit, name)
        is_repeated = promote is None or settings.state(unit, COMMAND, run) is not None
        successor = None if is_repeated else _successor(unit, experiment_row, str(promote))
    if successor is not None and promote is not None:
        figures = compare.show(store, name)
        differences = _differences(figures, promote)
        unit_name, guards = figures["unit"], [row for row in figures["guards"] if row["group"] == promote]
        losses = [guard_sentence(row, unit_name) for row in guards if row["answer"] == "lost"]
        texts = _doubts(differences, promote, unit_name)
        is_doubtful = bool(texts or losses)
        groups = [row for row in figures["unit_differences"] if (row["metric"], row["group"]) == ("visits", promote)]
        losses += [f"{promote} {words}" for row in groups if (words := fewer_visits(row, unit_name))]
        doubts = join_doubts([*texts, *losses]) if is_doubtful else ""
        if doubts and not (anyway or (confirm is not None and confirm(f"{doubts}. Promote {promote} all the same?"))):
            ends = f"`rlrec {COMMAND} {name}` ends it without a promotion, --anyway promotes {promote} all the same"
            hint = "; ".join([*equal_ages(figures), ends])
            raise CheckFailed(f"{promote} was not promoted: {doubts}", hint=hint)

    def work(unit: Unit) -> experiment.ExperimentSummary:
        route = _route(unit, experiment_row)
        locks = None if successor is None else lock(unit, successor)
        live, is_running = None, experiments.stop(unit, experiment_row.id)
        if is_running:
            if successor is not None and locks is not None:
                live = make_live(unit, successor, *locks)
            settings.add_run(unit, COMMAND, run, {"live": live.reference} if live else None)
            if route is not None and route.experiment == name:
                policy_id, version_id = (live.policy.id, None) if live else (route.policy_id, route.version_id)
                words = f"{COMMAND} {name}" + ("" if promote is None else f" --promote {promote}")
                routes.change(unit, route.route_id, policy_id=policy_id, version_id=version_id, command=words)
        elif successor is not None and settings.state(unit, COMMAND, run) is None:
            raise _stopped_error(experiment_row, successor.policy.name)
        answer = experiment.summary(unit, lookup.experiment(unit, name))
        if route is not None:
            answer["route"] = route.route
        if promote is not None:
            reference = str((settings.state(unit, COMMAND, run) or {})["live"])
            passed_by = live_versions.describe_bypasses(unit, lookup.split_reference(reference)[0])
            answer |= {
                "promoted": promote, "live": reference, "passed_by": passed_by,
                "unit_differences": cast(Any, differences),
            }  # fmt: skip
            if changes := routes.newest_changes(unit):
                names = (
                    reference,
                    lookup.split_reference(reference)[0],
                )  # a route is pinned to the version, or follows the policy
                answer["routes"] = [row.route for row in changes if not row.running and row.reference in names]
                answer["remedy"] = None if answer["routes"] else _remedy(experiment_row, changes, reference)
        return {**answer, "already_stopped": not is_running}

    answer = store.write(work, repeatable=True)
    if not answer["already_stopped"]:
        _notice(store, answer, successor)
        for sentence in losses:
            store.notice(f"{sentence}; promoted anyway")
    return answer


def _route(unit: Unit, experiment: experiments.Experiment) -> routes.RouteChange | None:
    """If an experiment is the ramp of a route, lock the route, and return its newest change; else return None."""
    name = experiment.declaration.get("route")
    return None if name is None else lookup.route(unit, name, lock=True)


def _remedy(experiment: experiments.Experiment, changes: Sequence[routes.RouteChange], reference: str) -> str:
    """Return a command, in a sentence, that makes a route serve the version that went live. The route is one that
    serves the policy of the first variant or, if there is none, the first route. reference: the version that went
    live."""
    policy_name = experiment.variants[0].policy.partition("@")[0]
    change = next((change for change in changes if change.policy == policy_name), changes[0])
    return f"`rlrec route set {change.route} --to {lookup.split_reference(reference)[0]}` lets {change.route} serve it"


def _notice(store: Store, answer: experiment.ExperimentSummary, successor: Version | None) -> None:
    """Print a notice for each variant whose belief is lost, since the variant is no longer served, and for each variant
    that will still learn from late events. successor: the version that was promoted, or None."""
    learners = [row["variant"] for row in answer["variants"] if row["learns"]]
    if successor is None and "route" in answer and learners:
        store.notice(
            f"route {answer['route']} serves what it served before {answer['experiment']}, without what "
            f"{' and '.join(learners)} learned: only the variants' own policies have that; --promote LABEL keeps it"
        )
    if successor is None:
        return
    _notice_excluded(store, answer["live"])
    if answer["live"] == successor.reference:
        return
    policy, live = successor.policy, answer["live"]
    with store.read() as unit:
        n_in_window = activity.count_served_since(unit, policy.id, unit.now - successor.reward.window_us)
        begun_at = lookup.experiment(unit, answer["experiment"]).created_at
        n_bypasses = activity.count_served_since(unit, policy.base_id or 0, begun_at)
    if n_in_window:
        store.notice(
            f"{quantity(n_in_window, 'decision')} of {policy.name} may still get events: {policy.name} learns from "
            f"these, {live} does not"
        )
    if n_bypasses:
        store.notice(
            f"{policy.base} served {quantity(n_bypasses, 'decision')} outside of {answer['experiment']} meanwhile, "
            f"which {live} has not learned from: `rlrec policy rollback {policy.base}` returns to what has"
        )


def _notice_excluded(store: Store, live: str) -> None:
    """Print a notice if a version that goes live has learned from decisions that are excluded. live: its reference."""
    with store.read() as unit:
        tests = filters.exclusion_tests(unit)
        version = lookup.version(unit, live)[0] if tests else None
        if version is None or not lineage.has_learned(unit, version, f"({' OR '.join(tests)})"):
            return
    command = lineage.rebuild_command(version)
    store.notice(f"{live} has learned from decisions that are excluded: `{command}` makes a version without them")


# -- the promoted version --


def _successor(unit: Unit, experiment: experiments.Experiment, label: str) -> Version:
    """Return the version that is promoted with a variant, or with an interleaved ranker. If the variant has learned,
    this is the variant's own version, whose belief becomes the next version of the policy that the variant was copied
    from.

    label: the label of the variant or ranker. Raises InputError if the variant has no version to promote, or if the
    experiment is stopped."""
    rankers, name = interleaved.ranker_names(experiment), experiment.name
    references = dict(zip(TEAMS, rankers, strict=False)) or {row.label: row.policy for row in experiment.variants}
    if label not in references:
        clause, hint = f" in experiment {name}", f"one of {', '.join(references)}"
        raise lookup.unknown("variant", label, references, clause=clause, hint=hint)
    if (route := lookup.route_of_holdout(unit, experiment)) is not None:
        hint = f"`rlrec {COMMAND} {name}` ends it, `rlrec route set {route.route} --to POLICY` changes the route"
        raise InputError(f"experiment {name} is the holdout of route {route.route}", hint=hint)
    if experiment.status == "stopped":
        raise _stopped_error(experiment, references[label])
    version, _ = lookup.version(unit, references[label])
    if rankers:
        return version
    if version.parent_id is None:
        hint = f"`rlrec policy create NAME --kind {holdout.KIND}` makes a policy that serves alike"
        raise InputError(f"variant {label} is the built-in {holdout.KIND}, a version of no policy", hint=hint)
    return version if _has_learned(version) else policies.by_id(unit, [version.parent_id])[version.parent_id]


def _has_learned(version: Version) -> bool:
    """Tell whether a version belongs to a variant of an experiment, and learns a belief of its own there."""
    return version.learning and version.policy.base_id is not None and lineage.learns(version)


def _stopped_error(experiment: experiments.Experiment, reference: str) -> InputError:
    hint = f"`rlrec route set ROUTE --to {reference}` serves what it learned"
    return InputError(f"experiment {experiment.name} is stopped already", hint=hint)


def lock(unit: Unit, successor: Version) -> tuple[dict[int, Head], list[Version]]:
    """Lock the policy of a version that is to go live, until the transaction ends. If the version learned in an
    experiment, also lock the policy from which it was copied. Returns the heads of the locked policies by id, and the
    learning versions of these policies."""
    policy = successor.policy
    has_base = policy.base_id is not None and _has_learned(successor)
    return policies.lock_learning(unit, {policy.id, policy.base_id or policy.id} if has_base else {policy.id})


def make_live(unit: Unit, successor: Version, heads: Mapping[int, Head], learners: Sequence[Version]) -> Version:
    """Make a version live, and return the live version. If the version learned in an experiment, this is a new version
    of the policy from which it was copied. heads, learners: the two results of `lock`."""
    policy = successor.policy
    policy_id = next(iter(heads.keys() - {policy.id}), policy.id)
    if policy_id != policy.id:
        variant = next(version for version in learners if version.id == successor.id)
        successor = belief_versions.adopt(unit, variant, heads[policy_id], ordinal=heads[policy.id].ordinal)
    if successor.status == "retired":
        hint = f"`rlrec policy rebuild {policy.name}` makes a version that learns"
        raise InputError(f"version {successor.number} of {policy.name} is retired", hint=hint)
    if heads[policy_id].live_id != successor.id:
        policies.promote(unit, policy_id, version_id=successor.id, previous_id=heads[policy_id].live_id)
    return successor


# -- what is against a promotion --


def _differences(answer: compare.VariantComparison, label: str) -> list[Row]:
    """Return those differences that decide the experiment and compare this variant with another variant. For
    interleaved rankers, these are the differences in credit. answer: the comparison; label: the label of the
    variant."""
    names = {(row["metric"], row["reward"]) for row in answer["metric"]}
    rows: list[Row] = [row for row in answer["unit_differences"] if (row["metric"], row["reward"]) in names]
    if "interleave" in answer:
        rows = [{**row, "group": row["variant"]} for row in answer["differences"]]
    return [row for row in rows if label in (row["group"], row["against"])]


def _doubts(rows: Sequence[Row], label: str, unit: str) -> list[str]:
    """Return sentences that speak against the promotion of a variant. Each sentence says that the variant is worse, or
    is not shown to be no worse. The first variant needs no such proof: only a variant that is surely better speaks
    against it.

    rows: the differences that compare the variant; label: its label; unit: a word for what is split, such as "user"."""
    rows = [
        row for row in rows
        if (difference_direction(row) == "more" if row["against"] == label else row["answer"] not in ("better", "same"))
    ]  # fmt: skip
    by_reward = not {row.get("reward") for row in rows} <= {DEFAULT_REWARD, None}
    return [difference_sentence(row, unit, by_reward=by_reward) for row in rows]
