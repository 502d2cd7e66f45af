"""Functions here make tables with sentences of the answers of `rlrec policy`, such as beliefs and versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlrec.cli.output.tables import bar, cell, column_decimals, interval_cell
from rlrec.cli.text.text import View
from rlrec.errors import quantity
from rlrec.sentences import gate_claim, prior_sentences

if TYPE_CHECKING:
    from rlrec.app.learning.belief_versions import VersionSummary
    from rlrec.app.policies.policy_beliefs import Audience, CountingCurve, PolicyBelief
    from rlrec.app.policies.versions import VersionHistory

N_ARMS, N_WEIGHTED = 20, 5  # on a terminal: arms in the table, and arms of which the weights are shown
BELIEF_COLUMNS = (
    "arm", "status", "served", "pending", "pulls", "reward_sum", "mean", "lower", "upper", "ipw_mean", "p_best",
    "probability",
)  # fmt: skip
POLICY_COLUMNS = ("policy", "version", "kind", "params", "reward", "status")
VERSION_COLUMNS = ("version", "status", "live", "parent", "created_at", "learned_from", "gate")
PRUNED_NOTE = (
    "old decisions were pruned: served and ipw_mean are of those left, pulls and means of all that were learned"
)
DROPPED_CURVE_COLUMNS = ("without_baseline", "variance", "clipped", "kl", "entropy", "lr", "value")
CURVE_HEADERS = {"variance_without_baseline": "without_baseline"}  # headers that differ from the key
CURVE_COLUMNS = (
    "epoch", "lr", "value", "gain", "lower", "upper", "ess", "entropy", "kl", "clipped", "variance",
    "variance_without_baseline",
)  # fmt: skip


def kinds_view(kinds: Sequence[Mapping[str, Any]]) -> View:
    """Return a table of the kinds of policy, each with its parameters."""
    rows = [
        [row["kind"], " ".join(_parameter_text(*pair) for pair in row["parameters"].items()), row["when"]]
        for row in kinds
    ]
    return View(["kind", "parameters", "when to use it"], rows)


def parameters_text(parameters: dict[str, Any]) -> str:
    """Return the parameters of a policy as text. Parameters without a value are left out, and so are a few rare ones if
    they have no effect. A table is shown as `...`."""
    idle_values = {"discount": 1.0, "window": 0.0}

    def shows(name: str, value: Any) -> bool:
        parameter = name.rpartition(".")[2]  # a stage's parameter by its own name
        return value not in (None, "") and idle_values.get(parameter) != value and parameter != "examination"

    shown_parameters = {name: value for name, value in parameters.items() if shows(name, value)}
    return " ".join(
        f"{name}=..." if isinstance(value, dict) else _parameter_text(name, value)
        for name, value in shown_parameters.items()
    )


def _parameter_text(name: str, value: Any) -> str:
    """Return a parameter in the form that `--param` takes. If the parameter has no value, or its value is a table, the
    result is only its name."""
    if isinstance(value, float):
        return f"{name}={value:g}"
    return f"{name}={value}" if isinstance(value, str) and value else name


def policies_view(policies: Sequence[VersionSummary]) -> View:
    """Return a table with a row for each policy."""
    return View.select([{**row, "params": parameters_text(row["params"])} for row in policies], POLICY_COLUMNS)


def versions_view(versions: Sequence[VersionHistory]) -> View:
    """Return a table of the versions of a policy. Below it, a line for each period says which version was live."""
    rows = [
        {**row, "learned_from": _source_text(row), "gate": row["gate"] and _gate_text(row["gate"])} for row in versions
    ]
    live_periods = sorted((period["at"], row["version"], period) for row in versions for period in row["promoted"])
    notes = [
        f"version {version} {'is' if period['until'] is None else 'was'} live from {period['at']} ({period['by']})"
        + ("" if period["until"] is None else f" to {period['until']} ({period['ended_by']})")
        for _, version, period in live_periods
    ]
    return View.select(rows, VERSION_COLUMNS, notes=notes, drop=["parent", "created_at"])


def _source_text(row: VersionHistory) -> str:
    """Return a few words about the part of the log from which a version learned."""
    source = row["learned_from"]
    texts = [f"version {source['rebuilt_from']} again"] if "rebuilt_from" in source else []
    if "sessions" in source:
        texts.append(quantity(source["sessions"], "session"))
    elif "slots" in source:
        texts.append(quantity(source["slots"], "slot"))
    if "variant" in source:
        texts.append(f"what {source['variant']} had learned")
    log_filters = [log["filter"] for log in (source, source.get("variants", {})) if log.get("filter")]
    if log_filters:
        texts.append(f"of {' and '.join(log_filters)}")
    if row["status"] == "learning":
        texts.append("its own decisions")
    elif "last_id" in source and not texts:
        texts.append(f"decisions up to {source['last_id']}")
    return ", ".join(texts) or "-"


def _gate_text(gate: Mapping[str, Any]) -> str:
    return f"{'passed' if gate['passed'] else 'not passed'}: {cell(gate['estimate'])} above {cell(gate['lower'])}"


def belief_view(
    result: PolicyBelief, *, all_arms: bool, curve: bool, for_terminal: bool, sorts_arms: bool, is_newest: bool = True
) -> View:  # fmt: skip
    """Return a table of what a policy believes about its arms.

    With `all_arms`, the table has all arms even on a terminal. With `curve`, the learning curve is shown by epoch.
    With `sorts_arms`, arms are sorted by probability. `for_terminal` says whether the table is shown on a terminal.
    `is_newest` says whether the user named no context, so that the newest context is shown."""
    rows = result["version_list"]
    versions = (f"{row['version']} {row['status']}{' (live)' if row['live'] else ''}" for row in rows)
    title = [
        f"{result['policy']} version {result['version']} ({result['status']}; live: {result['live']}), "
        f"kind {result['kind']} {parameters_text(result['params'])}".rstrip(),
        *([f"a variant of an experiment that stopped at {result['stopped_at']}"] if "stopped_at" in result else []),
        f"learns reward {result['reward']}{_curve_clause(result['counting'])}",
        f"versions: {', '.join(versions)}",
        *([PRUNED_NOTE] if "pruned" in result else []),
    ]
    if "budget" in result:
        budget = result["budget"]
        expense, amount, price = map(cell, (budget["spent"], budget["amount"], budget["price"]))
        budget_clause = (
            f"price {price}" if budget["spent"] < budget["amount"] else "nothing is left: the cheapest arms serve"
        )
        title.append(f"spent in this {budget['period']}: {expense} of {amount} ({budget['event']}); {budget_clause}")
    if "context" in result:
        encoder = result["features"]["context"] if "features" in result else {"fields": [result["params"]["by"]]}
        fields, context = encoder["fields"], result["context"]
        values = {name: value for name, value in context.items() if name in fields or not fields}
        context_text = f"the context {cell(values)}" if values else "a context without these"
        context_text += ", the newest unless --context names one" if is_newest else ""
        title.append(f"reads {_field_names(encoder)}; shown for {context_text}")
    title += _evenness_lines(result["exposure"], sum(arm["status"] == "active" for arm in result["arms"]))
    notes = [*_training_lines(result["training"], curve=curve), *map(_drift_line, result["drift"])]
    if result["weighed"] is not None:
        decisions_text = quantity(result["weighed"], "decision")
        notes.append(f"ipw_mean is from {decisions_text}, from end to end of the log; --all reads all")
    if result["kind"] == "logged":
        title.append(f"an imported log has no belief: `rlrec exposure --policy {result['policy']}` has its rates")
    arms = sorted(result["arms"], key=lambda arm: -(arm["probability"] or 0.0)) if sorts_arms else result["arms"]
    title += prior_sentences(result)
    table = View.select(arms, BELIEF_COLUMNS)
    if for_terminal:
        arms = arms[: None if all_arms else N_ARMS]
        table = _terminal_table(arms)
        notes = [*_hidden_arms_lines(result["arms"], arms), *notes]
    weighted_arms = [row for row in arms if "weights" in row]
    n_weighted = len(weighted_arms) if all_arms or not for_terminal else N_WEIGHTED
    notes += [f"weights of {row['arm']}: {_largest_weights(row['weights'])}" for row in weighted_arms[:n_weighted]]
    notes += ["--all shows the weights of all arms"] * (len(weighted_arms) > n_weighted)
    return table._replace(title=title, notes=notes[:-1] if notes[-1:] == [""] else notes)


def _terminal_table(arms: Sequence[dict[str, Any]]) -> View:
    """Return a table of arms in the form for a terminal, with intervals and bars."""
    places = column_decimals(arm[name] for arm in arms for name in ("mean", "lower", "upper"))
    max_probability = max((arm["probability"] or 0.0 for arm in arms), default=0.0) or 1.0
    rows = [
        {
            **arm, "mean [95 %]": interval_cell(arm["mean"], arm["lower"], arm["upper"], places),
            "": bar((arm["probability"] or 0.0) / max_probability),
        }
        for arm in arms
    ]  # fmt: skip
    has_retired = any(arm["status"] != "active" for arm in arms)
    headers = ["arm", *(["status"] if has_retired else []), "served", "pending", "pulls", "reward_sum"]
    headers += ["mean [95 %]"] if any(arm["mean"] is not None for arm in arms) else []
    headers += ["ipw_mean", "p_best", "probability", ""]
    drop = ["ipw_mean", "reward_sum", "pending", "p_best", "pulls", "status", "served"]
    return View.select(rows, headers, drop=drop, same_decimals=True)


def _hidden_arms_lines(arms: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line about the arms that the table leaves out, or nothing if it shows all arms.

    `arms` are all arms, and `rows` are the arms in the table."""
    if len(rows) == len(arms):
        return []
    hidden_mass = sum(arm["probability"] or 0.0 for arm in arms) - sum(arm["probability"] or 0.0 for arm in rows)
    return [
        f"{quantity(len(arms) - len(rows), 'more arm')} with {hidden_mass:.1%} of the probability; --all shows all",
        "",
    ]


def _evenness_lines(exposure: Mapping[str, Mapping[str, float | None]], n_arms: int) -> list[str]:
    """Return a line that says how evenly the arms of the catalogue were shown so far, and would be shown from now on.
    The list is empty if neither is known.

    `exposure` has the measures of evenness, by time (`served` and `now`). `n_arms` is the number of arms."""
    time_phrases = {"served": "so far", "now": "from now on, at position 1,"}
    evenness_texts = [
        f"{time_phrases[name]} as if {effective_arms:.3g} of {quantity(n_arms, 'arm')} were shown equally often "
        f"(Gini {figures['gini']:.2f})"
        for name, figures in exposure.items()
        if figures["gini"] is not None and (effective_arms := figures["effective_arms"]) is not None
    ]
    return [f"evenness: {'; '.join(evenness_texts)}"] if evenness_texts else []


def _curve_clause(curve: CountingCurve | None) -> str:
    """Return words that name the examination curve (the probability that each position is looked at). Pulls are counted
    by this curve; the words are empty if each pull counts as one."""
    if curve is None:
        return ""
    bounds_clause = "in the bounds" if curve["in_bounds"] else "not in the bounds"
    return f"; pulls count by the examination of their position, curve {curve['curve']}: its error is {bounds_clause}"


def _training_lines(training: dict[str, Any] | None, *, curve: bool) -> list[str | View]:
    """Return lines and a table about the training of a version. The list is empty if the version was not trained.

    With `curve`, the table has all epochs, otherwise only the best epoch."""
    if training is None:
        return []
    best_clause = f"the best is epoch {training['best']}" if training["best"] else "none is better than the start"
    shown_points = [point for point in training["curve"] if curve or point["epoch"] == training["best"]]
    rows = [[point.get(name) for name in CURVE_COLUMNS] for point in shown_points]
    headers = [CURVE_HEADERS.get(name, name) for name in CURVE_COLUMNS]
    grid = [View(headers, rows, drop=DROPPED_CURVE_COLUMNS)] if rows else []
    epochs = f"{quantity(len(training['curve']), 'epoch')}{'' if curve else ' (--curve shows them)'}"
    text = f"learning curve, estimated on the tuning split of the log: {epochs}, {best_clause}"
    return [text, *grid, _gate_line(training["gate"]), ""]


def _gate_line(gate: dict[str, Any]) -> str:
    if gate["candidate"] is None:
        return "gate: not used for this version"
    texts = {name: cell(value) for name, value in gate.items()}
    sessions = quantity(gate["sessions"] or 0, "session")
    return (
        f"gate: {gate_claim(gate).sentence}; value {texts['value']} against {texts['live_value']}, by "
        f"{texts['estimator']} on {sessions}, ess {texts['ess']}, candidate {texts['candidate']} at alpha "
        f"{texts['alpha']}"
    )


def _field_names(encoder: dict[str, Any]) -> str:
    return ", ".join(encoder["fields"]) or ("the whole context, hashed" if encoder.get("hash") else "nothing")


def _drift_line(change: dict[str, Any]) -> str:
    arm_clause = "" if change["arm"] is None else f"of {change['arm']} "
    learning_clause = "; a policy that learns causes that, too" if change["arm"] is None else ""
    return (
        f"drift: the mean reward {arm_clause}at position 1 went from {change['before']:.4g} to {change['after']:.4g} "
        f"at about decision {change['decision_id']} of {change['at']}{learning_clause}"
    )


def _largest_weights(weights: dict[str, float]) -> str:
    """Return a text with the ten weights that have the largest absolute values, each with its name."""
    largest = sorted(weights.items(), key=lambda pair: (-abs(pair[1]), pair[0]))[:10]
    return ", ".join(f"{name} {weight:+.3g}" for name, weight in largest if weight) or "all 0"


def difference_view(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], audiences: Sequence[tuple[str, Audience]]
) -> View:
    """Return a table of two beliefs side by side.

    `columns` are the keys to show. `audiences` has, for each belief, its name and the users that it serves."""
    named_sides = [(side, name, audience) for side, (name, audience) in zip("ab", audiences, strict=True)]
    title = [f"{side}: {name}{_curve_clause(audience['counting'])}" for side, name, audience in named_sides]
    title += [f"{side} {_audience_clause(audience)}" for side, _, audience in named_sides]
    probability_differences = [row["probability_difference"] for row in rows]
    if rows and None not in probability_differences:
        moved_share = sum(map(abs, probability_differences)) / 2
        title.append(f"b in place of a would show {moved_share:.1%} of requests another arm at position 1")
    drop = ("status", "pulls_difference", "mean_difference", "pulls_a", "pulls_b", "mean_a", "mean_b")
    return View.select(rows, columns, title=title, drop=drop)


def _audience_clause(audience: Audience) -> str:
    """Return words that say whether a version is live, and which routes lead to it. In a sentence, they follow the name
    of the version."""
    routes_clause = f" through {', '.join(audience['routes'])}" if audience["routes"] else ""
    decisions = quantity(audience["decisions_24h"], "decision")
    return (f"is live: {decisions} in 24 h" if audience["live"] else "is not live") + routes_clause
