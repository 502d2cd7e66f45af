"""Functions here show the answers of `rlrec policy` (beliefs, versions and comparisons) as tables, with their
sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlrec.cli.output.tables import bar, cell, decimals, interval
from rlrec.cli.text.text import View
from rlrec.errors import quantity
from rlrec.sentences import gate_claim, prior_sentences

if TYPE_CHECKING:
    from rlrec.app.learning.belief_versions import VersionSummary
    from rlrec.app.policies.policy_beliefs import Audience, CountingCurve, PolicyBelief
    from rlrec.app.policies.versions import VersionHistory

N_ARMS, N_WEIGHTED = 20, 5  # on a terminal: arms in the table, and arms of which the weights are shown
BELIEF = (
    "arm", "status", "served", "pending", "pulls", "reward_sum", "mean", "lower", "upper", "ipw_mean", "p_best",
    "probability",
)  # fmt: skip
POLICIES = ("policy", "version", "kind", "params", "reward", "status")
VERSIONS = ("version", "status", "live", "parent", "created_at", "learned_from", "gate")
PRUNED = "old decisions were pruned: served and ipw_mean are of those left, pulls and means of all that were learned"
CURVE_DROP = ("without_baseline", "variance", "clipped", "kl", "entropy", "lr", "value")
CURVE_HEADERS = {"variance_without_baseline": "without_baseline"}  # headers that differ from the key
CURVE = (
    "epoch", "lr", "value", "gain", "lower", "upper", "ess", "entropy", "kl", "clipped", "variance",
    "variance_without_baseline",
)  # fmt: skip


def kinds_view(kinds: Sequence[Mapping[str, Any]]) -> View:
    """Return a table of the kinds of policy, each with its parameters."""
    rows = [[row["kind"], " ".join(_pair(*pair) for pair in row["parameters"].items()), row["when"]] for row in kinds]
    return View(["kind", "parameters", "when to use it"], rows)


def parameters(parameters: dict[str, Any]) -> str:
    """Return the parameters of a policy that have a value as text, with `...` for tables. Rare ones appear only where
    they change something."""
    idle = {"discount": 1.0, "window": 0.0}

    def shows(name: str, value: Any) -> bool:
        undotted = name.rpartition(".")[2]  # a stage's parameter by its own name
        return value not in (None, "") and idle.get(undotted) != value and undotted != "examination"

    used = {name: value for name, value in parameters.items() if shows(name, value)}
    return " ".join(f"{name}=..." if isinstance(value, dict) else _pair(name, value) for name, value in used.items())


def _pair(name: str, value: Any) -> str:
    """Return a parameter as `--param` takes it, or only its name if it has no value, or a table."""
    if isinstance(value, float):
        return f"{name}={value:g}"
    return f"{name}={value}" if isinstance(value, str) and value else name


def list_view(policies: Sequence[VersionSummary]) -> View:
    """Return a table with a line for each policy."""
    return View.select([{**row, "params": parameters(row["params"])} for row in policies], POLICIES)


def versions_view(versions: Sequence[VersionHistory]) -> View:
    """Return a table of the versions of a policy, with a line for each period in which one was live."""
    rows = [
        {**row, "learned_from": _learned_from(row), "gate": row["gate"] and _verdict(row["gate"])} for row in versions
    ]
    times = sorted((time["at"], row["version"], time) for row in versions for time in row["promoted"])
    notes = [
        f"version {version} {'is' if time['until'] is None else 'was'} live from {time['at']} ({time['by']})"
        + ("" if time["until"] is None else f" to {time['until']} ({time['ended_by']})")
        for _, version, time in times
    ]
    return View.select(rows, VERSIONS, notes=notes, drop=["parent", "created_at"])


def _learned_from(row: VersionHistory) -> str:
    """Describe the log that a version learned from, in a few words."""
    record = row["learned_from"]
    texts = [f"version {record['rebuilt_from']} again"] if "rebuilt_from" in record else []
    if "sessions" in record:
        texts.append(quantity(record["sessions"], "session"))
    elif "slots" in record:
        texts.append(quantity(record["slots"], "slot"))
    if "variant" in record:
        texts.append(f"what {record['variant']} had learned")
    if record.get("filter"):
        texts.append(f"of {record['filter']}")
    if row["status"] == "learning":
        texts.append("its own decisions")
    elif "last_id" in record and not texts:
        texts.append(f"decisions up to {record['last_id']}")
    return ", ".join(texts) or "-"


def _verdict(gate: Mapping[str, Any]) -> str:
    return f"{'passed' if gate['passed'] else 'not passed'}: {cell(gate['estimate'])} above {cell(gate['lower'])}"


def belief_view(
    result: PolicyBelief, *, all_arms: bool, curve: bool, terminal: bool, ranked: bool, is_newest: bool = True
) -> View:  # fmt: skip
    """Return a table of the belief of a policy about its arms.

    With `all_arms`, it shows all arms even on a terminal, and with `curve` the learning curve by epoch. With
    `ranked`, arms are sorted by probability. `is_newest` says whether the context shown is the newest one, none
    having been asked for."""
    rows = result["version_list"]
    versions = (f"{row['version']} {row['status']}{' (live)' if row['live'] else ''}" for row in rows)
    title = [
        f"{result['policy']} version {result['version']} ({result['status']}; live: {result['live']}), "
        f"kind {result['kind']} {parameters(result['params'])}".rstrip(),
        *([f"a variant of an experiment that stopped at {result['stopped_at']}"] if "stopped_at" in result else []),
        f"learns reward {result['reward']}{_counting(result['counting'])}",
        f"versions: {', '.join(versions)}",
        *([PRUNED] if "pruned" in result else []),
    ]
    if "budget" in result:
        budget = result["budget"]
        spent, amount, price = map(cell, (budget["spent"], budget["amount"], budget["price"]))
        fate = f"price {price}" if budget["spent"] < budget["amount"] else "nothing is left: the cheapest arms serve"
        title.append(f"spent in this {budget['period']}: {spent} of {amount} ({budget['event']}); {fate}")
    if "context" in result:
        encoder = result["features"]["context"] if "features" in result else {"fields": [result["params"]["by"]]}
        fields, context = encoder["fields"], result["context"]
        values = {name: value for name, value in context.items() if name in fields or not fields}
        named = f"the context {cell(values)}" if values else "a context without these"
        named += ", the newest unless --context names one" if is_newest else ""
        title.append(f"reads {_fields(encoder)}; shown for {named}")
    title += _exposure(result["exposure"], sum(arm["status"] == "active" for arm in result["arms"]))
    notes = [*_training(result["training"], curve=curve), *map(_drift, result["drift"])]
    if result["weighed"] is not None:
        read = quantity(result["weighed"], "decision")
        notes.append(f"ipw_mean is from {read}, from end to end of the log; --all reads all")
    if result["kind"] == "logged":
        title.append(f"an imported log has no belief: `rlrec exposure --policy {result['policy']}` has its rates")
    arms = sorted(result["arms"], key=lambda arm: -(arm["probability"] or 0.0)) if ranked else result["arms"]
    title += prior_sentences(result)
    table = View.select(arms, BELIEF)
    if terminal:
        arms = arms[: None if all_arms else N_ARMS]
        table = _on_terminal(arms)
        notes = [*_hidden_arms(result["arms"], arms), *notes]
    weighted = [row for row in arms if "weights" in row]
    n_weighted = len(weighted) if all_arms or not terminal else N_WEIGHTED
    notes += [f"weights of {row['arm']}: {_largest(row['weights'])}" for row in weighted[:n_weighted]]
    notes += ["--all shows the weights of all arms"] * (len(weighted) > n_weighted)
    return table._replace(title=title, notes=notes[:-1] if notes[-1:] == [""] else notes)


def _on_terminal(ranked: Sequence[dict[str, Any]]) -> View:
    """Return a table of arms for a terminal."""
    places = decimals(arm[name] for arm in ranked for name in ("mean", "lower", "upper"))
    max_probability = max((arm["probability"] or 0.0 for arm in ranked), default=0.0) or 1.0
    rows = [
        {
            **arm, "mean [95 %]": interval(arm["mean"], arm["lower"], arm["upper"], places),
            "": bar((arm["probability"] or 0.0) / max_probability),
        }
        for arm in ranked
    ]  # fmt: skip
    retired = any(arm["status"] != "active" for arm in ranked)
    headers = ["arm", *(["status"] if retired else []), "served", "pending", "pulls", "reward_sum"]
    headers += ["mean [95 %]"] if any(arm["mean"] is not None for arm in ranked) else []
    headers += ["ipw_mean", "p_best", "probability", ""]
    drop = ["ipw_mean", "reward_sum", "pending", "p_best", "pulls", "status", "served"]
    return View.select(rows, headers, drop=drop, fixed=True)


def _hidden_arms(arms: Sequence[Mapping[str, Any]], shown: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line about the arms that are not shown, or none if all are shown."""
    if len(shown) == len(arms):
        return []
    mass = sum(arm["probability"] or 0.0 for arm in arms) - sum(arm["probability"] or 0.0 for arm in shown)
    return [f"{quantity(len(arms) - len(shown), 'more arm')} with {mass:.1%} of the probability; --all shows all", ""]


def _exposure(exposure: Mapping[str, Mapping[str, float | None]], arms: int) -> list[str]:
    """Return a line on how evenly the catalogue was shown so far, and would be from now on."""
    texts = {"served": "so far", "now": "from now on, at position 1,"}
    described = [
        f"{texts[name]} as if {effective:.3g} of {quantity(arms, 'arm')} were shown equally often "
        f"(Gini {figures['gini']:.2f})"
        for name, figures in exposure.items()
        if figures["gini"] is not None and (effective := figures["effective_arms"]) is not None
    ]
    return [f"evenness: {'; '.join(described)}"] if described else []


def _counting(counting: CountingCurve | None) -> str:
    """Name the examination curve by which pulls are counted. The text is empty if each pull counts as one."""
    if counting is None:
        return ""
    bounds = "in the bounds" if counting["in_bounds"] else "not in the bounds"
    return f"; pulls count by the examination of their position, curve {counting['curve']}: its error is {bounds}"


def _training(training: dict[str, Any] | None, *, curve: bool) -> list[str | View]:
    """Return lines about the training of a version, or none if it was not trained.

    With `curve`, they show it by epoch."""
    if training is None:
        return []
    best = f"the best is epoch {training['best']}" if training["best"] else "none is better than the start"
    points = [point for point in training["curve"] if curve or point["epoch"] == training["best"]]
    rows = [[point.get(name) for name in CURVE] for point in points]
    headers = [CURVE_HEADERS.get(name, name) for name in CURVE]
    grid = [View(headers, rows, drop=CURVE_DROP)] if rows else []
    epochs = f"{quantity(len(training['curve']), 'epoch')}{'' if curve else ' (--curve shows them)'}"
    text = f"learning curve, estimated on the tuning split of the log: {epochs}, {best}"
    return [text, *grid, _gate(training["gate"]), ""]


def _gate(gate: dict[str, Any]) -> str:
    if gate["candidate"] is None:
        return "gate: not used for this version"
    shown = {name: cell(value) for name, value in gate.items()}
    sessions = quantity(gate["sessions"] or 0, "session")
    return (
        f"gate: {gate_claim(gate).sentence}; value {shown['value']} against {shown['live_value']}, by "
        f"{shown['estimator']} on {sessions}, ess {shown['ess']}, candidate {shown['candidate']} at alpha "
        f"{shown['alpha']}"
    )


def _fields(encoder: dict[str, Any]) -> str:
    return ", ".join(encoder["fields"]) or ("the whole context, hashed" if encoder.get("hash") else "nothing")


def _drift(change: dict[str, Any]) -> str:
    subject = "" if change["arm"] is None else f"of {change['arm']} "
    learning = "; a policy that learns causes that, too" if change["arm"] is None else ""
    return (
        f"drift: the mean reward {subject}at position 1 went from {change['before']:.4g} to {change['after']:.4g} at "
        f"about decision {change['decision_id']} of {change['at']}{learning}"
    )


def _largest(weights: dict[str, float]) -> str:
    """Return the ten weights with the largest absolute values as text."""
    max_probability = sorted(weights.items(), key=lambda pair: (-abs(pair[1]), pair[0]))[:10]
    return ", ".join(f"{name} {weight:+.3g}" for name, weight in max_probability if weight) or "all 0"


def difference_view(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], audiences: Sequence[tuple[str, Audience]]
) -> View:
    """Return a table of two beliefs side by side.

    `audiences` has their names, and the users whom they serve."""
    named = [(side, name, audience) for side, (name, audience) in zip("ab", audiences, strict=True)]
    title = [f"{side}: {name}{_counting(audience['counting'])}" for side, name, audience in named]
    title += [f"{side} {_audience(audience)}" for side, _, audience in named]
    changes = [row["probability_difference"] for row in rows]
    if rows and None not in changes:
        moved = sum(map(abs, changes)) / 2
        title.append(f"b in place of a would show {moved:.1%} of requests another arm at position 1")
    drop = ("status", "pulls_difference", "mean_difference", "pulls_a", "pulls_b", "mean_a", "mean_b")
    return View.select(rows, columns, title=title, drop=drop)


def _audience(audience: Audience) -> str:
    """Say in words whom a version serves. The words follow its name."""
    routes = f" through {', '.join(audience['routes'])}" if audience["routes"] else ""
    decisions = quantity(audience["decisions_24h"], "decision")
    return (f"is live: {decisions} in 24 h" if audience["live"] else "is not live") + routes
