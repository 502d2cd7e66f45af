"""This module estimates the rewards that policies would have earned, from a log that other policies served (off-policy
evaluation)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlrec import ope
from rlrec.app.audit.integrity import live_versions
from rlrec.app.evaluation.passes import estimates
from rlrec.app.evaluation.passes.estimates import EstimateRow
from rlrec.app.evaluation.passes.passes import IN_PROCESS, Workers
from rlrec.app.evaluation.passes.request import EmptyLog, Request
from rlrec.app.evaluation.rows.log_rows import Inclusion
from rlrec.app.evaluation.rows.loggers import taken_loggers
from rlrec.app.imports import log_stores
from rlrec.app.inputs import filters, lookup
from rlrec.app.log import reward_log
from rlrec.compute import Engine
from rlrec.errors import InputError, quantity
from rlrec.ope.checks import verdicts
from rlrec.ope.checks.reasons import (
    GROUPS,
    HINTS,
    LATER_HINT,
    REPLAYED_HINT,
    SERVED_HINT,
    SPARED_HINT,
    VARIANT_HINT,
    VERDICTS,
    helpful_hints,
    hint,
)
from rlrec.policy.beliefs.reward import LIMIT
from rlrec.sentences import quoted_options
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.log import selected
from rlrec.store.log.selected import Selection
from rlrec.store.policies import policies, routes
from rlrec.times import SECOND, date, day_of, format_time, middle

__all__ = [
    "EmptyLog", "Request", "Workers", "answering_rows", "evaluate", "explain_rows", "log_sentences", "reasons_in_words",
]  # fmt: skip
MAX_NAMED = 3  # new arms that a line names at most


def evaluate(store: Store, request: Request, workers: Workers = IN_PROCESS) -> list[EstimateRow]:
    """Return an estimate for every target, group and estimator, from one snapshot of the log.

    Raises InputError for unknown names, an interval that an estimator cannot give, and an empty log."""
    estimators = estimates.estimators(request)
    options = {name: value for name in ("log", "reward", "cluster") if (value := getattr(request, name)) is not None}
    with log_stores.open_log(store, request.log) as (log_store, log), log_store.read() as unit, bulk.alongside(unit):
        selection = filters.selection(unit, log)
        remarks = live_versions.notice_successors(store, unit, request.targets, options)
        paced_policies = {policy.name: policy for policy in policies.all_policies(unit) if policy.params.get("budget")}
        is_paced = request.reward is not None or {lookup.split_reference(target)[0] for target in request.targets} <= {
            *paced_policies
        }
        for policy in () if is_paced else paced_policies.values():
            claim = f"{policy.name} paces what it spends ({policy.params['budget']})"
            store.notice(f"{claim}; what does not may earn more by spending more: a --reward of costs tells")
        try:
            with workers.open_engine(log_store, unit.now, has_reasons=True) as engine, TemporaryDirectory() as folder:
                request = replace(request, log=log)
                table_options = request.reward_model, request.temperature, request.fitted_on
                if request.sources or any(option is not None for option in table_options):
                    request = _with_tables(unit, request, selection, Path(folder))
                rows = estimates.answer(unit, request, estimators, selection, engine)
                rows = rows if request.estimators else _with_visits(unit, request, rows, selection, engine)
                if not any(row.estimate.served for row in rows):
                    names = sorted({row.reward for row in rows})
                    reward_log.notice_uncounted(unit, store, [lookup.reward(unit, name) for name in names])
                at = _changed_at(unit, selection, rows)
                shares = {
                    row.name: {logger.version: share for logger, share in row.estimate.logger_shares}
                    for row in answering_rows(rows)
                    if row.by is None and not row.target_loggers
                }
                other_options = {name: text for name, text in options.items() if name != "log"}
                for name, (sentence, log_filter) in former_rivals(unit, selection, shares, log=log).items():
                    command = f"rlrec evaluate {name}{quoted_options(log=log_filter, **other_options)}"
                    store.notice(f"{sentence}: `{command}` compares it with that")
                return [replace(row, options=options, untaught=remarks.get(row.name), changed_at=at) for row in rows]
        except EmptyLog as error:
            if error.wait_us is not None:
                maturity = reward_log.maturity_sentence(unit, selection, wait_us=error.wait_us)
                error.hint = "; ".join(filter(None, (error.hint, maturity)))
            raise


def _with_tables(unit: Unit, request: Request, selection: Selection, folder: Path) -> Request:
    """Return the request with its sources (numbers by decision) as tables, which are stored in files of the folder.
    Raises InputError for an incomplete table, and for an option that needs a table."""
    from rlrec.app.inputs import decision_tables
    from rlrec.app.inputs.decision_tables import MARGINAL, PROBABILITY, REWARD, SCORE, DecisionTable

    tables, model, temperature = dict[str, DecisionTable](), request.reward_model, request.temperature
    for name, source in request.sources:
        if name in tables:
            raise InputError(f"two --target have the name {name}", hint="write --target NAME=FILE")
        table = decision_tables.index_numbers(
            unit, source, name, (PROBABILITY, SCORE, MARGINAL), folder / str(len(tables))
        )
        if table.column == SCORE and temperature is None and not request.greedy:
            hint = "--temperature T makes them probabilities, by softmax(score / T), or --greedy takes the best arm"
            raise InputError(f"{table.source} has scores", hint=hint)
        if table.column == MARGINAL and (request.greedy or temperature is not None):
            raise InputError(f"{table.source} has marginals", hint="leave out --temperature, --greedy")
        tables[name] = replace(table, temperature=0.0 if request.greedy else temperature or 1.0)
    if temperature is not None and (temperature < 1 / LIMIT or not tables or request.greedy):
        raise InputError(f"--temperature is {temperature:g}", hint="it is above 0, for a --target, without --greedy")
    if model is not None and decision_tables.is_by_decision(model):
        model = decision_tables.index_numbers(unit, model, "reward_model", (REWARD,), folder / REWARD)
    elif model is not None and not isinstance(model, str):
        model = decision_tables.write_csv(model, "reward_model", folder)
    doubts = [] if request.fitted_on == "none" else ["unknown-fit"]
    if request.fitted_on not in (None, "none"):
        if not tables and not isinstance(model, DecisionTable):
            raise InputError("--fitted-on is given, and no table by decision", hint="give --target, or --reward-model")
        fit_log = filters.selection(unit, request.fitted_on)
        doubts = ["in-sample"] if selected.any_common(unit, selection, fit_log) else []
    targets = [*request.targets, *tables]
    return replace(request, sources=(), targets=targets, tables=tables, reward_model=model, fit_doubts=doubts)


def _with_visits(
    unit: Unit, request: Request, rows: list[EstimateRow], selection: Selection, engine: Engine | None
) -> list[EstimateRow]:
    """Return the rows of estimates. If a step of a visit affects later steps, estimates of whole visits are added
    before them and marked as the answer. engine: the engine that reads the log in parallel, if any."""
    answer_rows = {(row.name, row.group): row for row in answering_rows(rows)}
    names = {row.name: None for row in answer_rows.values() if "carry-over" in row.estimate.reasons}
    if not names:
        return rows
    request = replace(request, targets=list(names), estimators="session")
    try:
        visit_rows = estimates.answer(unit, request, estimates.estimators(request), selection, engine)
    except InputError:  # no visit has ended, or the request is about slots
        return rows
    visits = {
        (row.name, row.group): row for row in answering_rows(visit_rows) if row.estimate.verdict != "insufficient"
    }
    chosen_ids = {id(row) for row in {**answer_rows, **visits}.values()}
    return [replace(row, is_answer=id(row) in chosen_ids) for row in (*visits.values(), *rows)] if visits else rows


def former_rivals(
    unit: Unit, selection: Selection, shares: Mapping[str, Mapping[str | None, float]], *, log: str | None
) -> dict[str, tuple[str, str]]:
    """Find the targets that are mostly compared with policies that no longer serve. Return, for each such target, a
    sentence that says this, and a filter of the log for the decisions of the policy that serves now.

    shares: for each target, the share of each logger in its log, by the name of the version; log: the filter of the
    selected log."""
    if unit.folder is not None or not (shares := {name: by_logger for name, by_logger in shares.items() if by_logger}):
        return {}
    changes = routes.newest_changes(unit)
    names = {change.policy for change in changes if not change.running}
    if not changes:  # without routes, who asks names the policy
        (page,) = selected.newest_pages(unit, selection, 1)
        names = {policies.by_id(unit, [page.version_id])[page.version_id].policy.name}
    if len(names) != 1 or "@" in (policy := names.pop()):
        return {}
    sentences = dict[str, tuple[str, str]]()
    for target, by_logger in shares.items():
        policy_by_version = {name: lookup.split_reference(name)[0] for name in by_logger if name}
        versions = [name for name, owner in policy_by_version.items() if owner == policy]
        share = sum(by_logger[name] for name in versions)
        if 0 < share < 0.5:
            sentence = f"{100 - 100 * share:.0f} % of what {target} is compared with is not {policy}, which serves now"
            if any(
                owner.startswith(f"{policy}@") for owner in policy_by_version.values()
            ):  # `policy=` selects variants, too
                sentences[target] = sentence, filters.with_loggers(log, versions)
            else:
                sentences[target] = sentence, filters.join_filters(log, f"policy={policy}")
    return sentences


def _changed_at(unit: Unit, selection: Selection, rows: Sequence[EstimateRow]) -> str | None:
    """Return the time of the newest change of an arm's reward that `doctor` finds within the log, or None if it finds
    no change. The result is also None if no estimate says that rewards drift."""
    if unit.folder is not None or not any("drift" in row.estimate.reasons for row in rows):
        return None
    from rlrec.app.audit.draws import newest

    names = [row.name for row in policies.all_policies(unit) if row.id in (selection.policy_ids or [row.id])]
    changes = [newest.recent_changes(unit, head.version) for head in policies.live(unit, names).values()]
    times = {change["at"] for by_arm in changes for arm, change in by_arm.items() if arm != newest.ALL_ARMS}
    first_at, last_at = (format_time(at) for at in (rows[0].extent.first_at, rows[0].extent.last_at))
    return max((at for at in times if first_at < at <= last_at), default=None)


def comparable_rows(rows: Sequence[EstimateRow]) -> list[EstimateRow]:
    """Return the rows as one table. If targets are evaluated on different rows of the log, a target that is compared
    with its own log gets no figures, since readers would compare these figures with those of the other targets."""
    if len({f"{row.estimate.served or 0.0:.3g}" for row in rows}) < 2:
        return [*rows]
    return [
        replace(row, estimate=replace(row.estimate, value=None, lower=None, upper=None, served=None))
        if row.target_loggers
        else row
        for row in rows
    ]


def explain_rows(rows: Sequence[EstimateRow]) -> list[str]:
    """Return lines that explain the reasons of doubt about the estimates, and the commands to try next. If the log
    supports only the first steps of visits for a target, a line says from which step on it does not."""
    horizons: dict[str, int] = {}
    for row in rows:
        if (horizon := row.estimate.horizon) is not None:
            horizons[row.name] = min(horizon, horizons.get(row.name, horizon))
    inclusion = rows[0].inclusion if rows else Inclusion()
    lines = verdicts.explain_reasons([row.record for row in rows])
    lines += next_steps(rows) + log_weight_lines(rows)
    if inclusion.decisions:
        min_sentence = "the smallest probability with which an arm that was shown was a candidate"
        note = f"(decisions that were derived again: {inclusion.decisions:,})"
        lines.append(f"candidates: {min_sentence} is {inclusion.smallest:.3g} {note}")
    for name, step in horizons.items():
        lines.append(f"horizon: from step {step} on the effective sample size for {name} is below 5 % of the sessions")
    return lines


def answering_rows(rows: Sequence[EstimateRow]) -> list[EstimateRow]:
    """Return the estimate that answers, for each target and group.

    If rows are marked as answers (as for slates and visits), these are returned. Otherwise only estimates of the
    unit of the first row (such as the slot) are considered. The estimate with the best verdict answers. Of equally
    good estimates, the last answers, since its estimator corrects more. An estimate without a valid interval answers
    only if no estimate has an interval."""
    if any(row.is_answer for row in rows):
        return [row for row in rows if row.is_answer]
    best_rows: dict[Any, EstimateRow] = {}
    unit_rows = [row for row in rows if row.estimate.unit == rows[0].estimate.unit]
    for row in [row for row in unit_rows if row.estimate.std_error is not None] or unit_rows:
        key = row.name, row.group
        # where all weights are 1, a model adds nothing but its error
        best_rows[key] = max(
            row,
            best_rows.get(key, row),
            key=lambda row: (VERDICTS.index(row.estimate.verdict), row.is_as_served, row.answer[0] == "same"),
        )
    return list(best_rows.values())


def reasons_in_words(rows: Sequence[EstimateRow]) -> list[str]:
    """Return lines that explain the reasons of doubt about the estimates, by group of reasons. A reason has one line if
    all targets have it, else a line for each target that has it. The last lines say what to try, which loggers are
    used, and what the estimators assume."""
    lines, records = list[str](), {row.name: row.record for row in rows if not row.is_moot}
    for group, meaning in GROUPS.items():
        targets: dict[str, list[str]] = {}
        for name, record in records.items():
            if group in record["reason_groups"]:
                for text in verdicts.explain_reasons([{**record, "reasons": record["reason_groups"][group]}]):
                    targets.setdefault(text, []).append(name)
        if targets:
            lines.append(f"{group}: {meaning}")
        for text, names in targets.items():
            lines += [f"  {text}"] if names == [*records] else [f"  {name}, {text}" for name in names]
    return lines + next_steps(rows) + log_weight_lines(rows) + list_assumptions(rows)


def steps(rows: Sequence[EstimateRow]) -> dict[str, str]:
    """Return what to do next for each target, by the name of the target. It helps against the target's worst reason for
    doubt that has a remedy. A target without such a reason, or equal to its log, is left out."""
    by_name: dict[str, list[EstimateRow]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).extend([row] * (row.answer[0] != "same"))
    commands: dict[str, str] = {}
    for name, target_rows in by_name.items():
        reasons = {reason for row in target_rows for reason in row.estimate.reasons}
        for reason in helpful_hints(reasons, is_explored=any(row.is_explored for row in target_rows))[:1]:
            first = target_rows[0]
            if reason == "carry-over" and first.estimate.unit == "session":
                reason = "logging-candidates"  # whole visits have answered, so an experiment remains
            if reason == "in-sample" and "@" in first.target:
                reason = VARIANT_HINT
            elif reason == "in-sample" and first.has_served:
                reason = SERVED_HINT
            elif reason == "in-sample" and first.spares_gate and "split=" not in first.options.get("log", ""):
                reason = SPARED_HINT
            elif reason == "in-sample" and first.sweep_version is not None:
                reason = REPLAYED_HINT
            elif reason == "drift" and first.has_later_drift:
                reason = LATER_HINT
            commands[name] = hint(reason, **_names(first, reason))
    return commands


def next_steps(rows: Sequence[EstimateRow]) -> list[str]:
    """Return the results of `steps`, which say what to do next, as lines. Targets with the same step share a line."""
    names, commands = {row.name for row in rows}, steps(rows)
    names_by_step = {step: [name for name in commands if commands[name] == step] for step in commands.values()}
    return [
        f"Next: {step}" if len(sharers) == len(names) else f"Next for {' and '.join(sharers)}: {step}"
        for step, sharers in names_by_step.items()
    ]


def _names(row: EstimateRow, reason: str) -> dict[str, str]:
    """Return the words that fill the placeholders of a hint about a target, by the name of the placeholder. The command
    in the hint repeats the options of the request, except the options that it changes. reason: the reason that the hint
    is for."""
    name = row.name if row.origin is None else f"--target {row.name}=FILE"
    words = [f"--{key} {shlex.quote(value)}" for key, value in row.options.items() if f"--{key} " not in HINTS[reason]]
    extent, log = row.extent, row.options.get("log", "")
    for key in re.findall(r"{log}(\w+)=", HINTS[reason]):  # the hint has another value for it
        log = re.sub(rf"(^|,){key}=[^,]*", "", log).removeprefix(",")
    names = {"target": " ".join([name, *words]), "log": log and f"{log},"}
    loggers = [logger.version for logger in row.estimate.logger_weights if logger.version and logger.weight]
    names |= {"logger": loggers[-1], "others": f" ({', '.join(loggers[:-1])})"} if loggers else {}
    names["experiment"] = row.target.partition("@")[2].partition("/")[0]
    if reason == REPLAYED_HINT and row.sweep_version is not None:
        from rlrec.app.inputs.parameters import sweep_command  # which few answers name

        names["sweep"], names["subject"] = sweep_command(row.sweep_version, row.options) or ("", "")
    names["end"] = f"{format_time(extent.last_at + SECOND)[:19]}Z"  # the first second after the log
    if reason == "drift" and row.changed_at is not None:
        order = (
            ""
            if row.version is None
            else ", after the rebuild that `rlrec doctor` names, if any: beliefs still count what came before"
        )
        return names | {"middle": f"{row.changed_at[:19]}Z", "order": order}
    return names | ({"middle": middle(extent.first_at, extent.last_at)} if extent.span_us else {})


def list_assumptions(rows: Sequence[EstimateRow]) -> list[str]:
    """Return the assumptions of the estimators of these rows, one line for each estimator."""
    labels = dict.fromkeys(row.estimate.estimator for row in rows if not row.is_moot)
    return [f"assumed by {label}: {ope.ASSUMPTIONS[label]}" for label in labels if label in ope.ASSUMPTIONS]


def log_sentences(rows: Sequence[EstimateRow]) -> list[str]:
    """Return a line about the decisions that were read and their rewards. Further lines name the arms that targets may
    show today but that no decision of the log could show."""
    extent, rewards = rows[0].extent, dict.fromkeys(row.reward for row in rows)
    first_day, last_day = (date(day_of(at)) for at in (extent.first_at, extent.last_at))
    noun = "reward" if len(rewards) == 1 else "rewards"
    time = f"on {first_day}" if first_day == last_day else f"from {first_day} to {last_day}"
    if extent.first_at == extent.last_at and extent.decisions > 1:
        time = f"with one and the same time {time}"  # as an import sets it for a log without times
    units = {"slate", "impression"} if extent.positions == 1 else {"slate"}  # whose rows are decisions
    counts = {row.estimate.n for row in rows if row.estimate.unit in units and row.by is None}
    limit = "at most " if len(counts) > 1 else ""
    count_note = (
        f", of which {limit}{max(counts):,} count" if max(counts, default=extent.decisions) < extent.decisions else ""
    )
    targets: dict[tuple[str, ...], dict[str, None]] = {}
    for row in (row for row in rows if row.new_arms):
        targets.setdefault(tuple(row.new_arms), {})[row.name] = None
    return [f"{quantity(extent.decisions, 'decision')} {time}{count_note}, {noun} {', '.join(rewards)}"] + [
        f"{', '.join(names)} may show {quantity(len(keys), 'arm')} today that no decision of this log could "
        f"({', '.join(keys[:MAX_NAMED])}{', ...' if len(keys) > MAX_NAMED else ''}), which these figures leave out"
        for keys, names in targets.items()
    ]


def log_weight_lines(rows: Sequence[EstimateRow]) -> list[str]:
    """Return a line for each target whose loggers have different weights, which states the weights of their rows.
    Further lines say whether targets are evaluated on different rows, so that their lifts cannot be compared, and for
    which targets the bounds of lifts hold together."""
    by_target: dict[str, dict[str, list[float]]] = {}
    served_means: dict[tuple[str, str | None], set[str]] = {}
    for row in rows:
        if row.estimate.served is not None:
            served_means.setdefault((row.estimate.estimator, row.group.name), set()).add(f"{row.estimate.served:.3g}")
        weights = by_target.setdefault(row.name, {})
        for logger in () if row.is_moot else row.estimate.logger_weights:
            weights.setdefault(logger.version or "all others", []).append(logger.weight)
    weighted_logs = {name: weights for name, weights in by_target.items() if len({*chain(*weights.values())}) > 1}
    lines = [f"log of {target}: {taken_loggers(target, weights)}" for target, weights in weighted_logs.items()]
    has_several = any(len(figures) > 1 for figures in served_means.values())
    comparison = "`as served` differs, as targets are judged on different rows: neither values nor lifts compare them"
    lines += [f"{comparison}; --log all judges all on the same rows"] * has_several
    joint_rows = (row for row in rows if row.estimate.simultaneous_lower is not None and not row.target_loggers)
    joint_names = dict.fromkeys(row.name for row in joint_rows)
    names = f"all {len(joint_names)} targets" if len(joint_names) == len(by_target) else " and ".join(joint_names)
    return lines + [f"bounds of lifts hold for {names} together"] * (len(joint_names) > 1)
