"""This module reads the parameters and priors of a policy as users give them: as K=V, and as CSV files."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Collection, Iterator, Mapping
from math import nan
from pathlib import Path
from typing import Any

from rlrec import policy as kinds
from rlrec.app.inputs import arm_rules, lookup
from rlrec.app.inputs.arm_names import ArmNames
from rlrec.errors import InputError, suggest
from rlrec.policy.beliefs.base import Policy
from rlrec.policy.beliefs.reward import LIMIT
from rlrec.policy.contexts.encoder import Encoder
from rlrec.policy.contexts.features import value_of
from rlrec.policy.slates.page_rules import parse_texts
from rlrec.records import Reward, Version
from rlrec.sentences import DEFAULT_REWARD
from rlrec.store import Store, Unit
from rlrec.store.database.unit import parse
from rlrec.store.policies import arms, policies

FILES = {"probabilities"}  # parameters whose value is a file
ANY_VALUE = "*"  # stands for every value of a context field
TIMELESS = ("discount", "window")  # parameters that a log does not teach
MIN_COUNT, MAX_COUNT = 1e-6, 1e9  # bounds of pseudo-counts within which probabilities are exact


def parse_parameters(kind: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of parameters from their texts. A parameter is a number if its default is one. If a parameter
    takes a file, its value is the contents of the file. Raises InputError for an unknown parameter."""
    defaults = kinds.parameters(kind, texts)
    parameters: dict[str, Any] = {}
    for name, text in texts.items():
        if name not in defaults:
            hint = suggest(name, list(defaults)) or f"it has {', '.join(defaults)}"
            if name.rpartition(".")[2] == kinds.BUDGET:
                paced_kinds = [other for other in kinds.KINDS if kinds.BUDGET in kinds.parameters(other)]
                hint = f"whole policies of these kinds have one: {', '.join(paced_kinds)}"
            raise InputError(f"kind {kind} has no parameter {name!r}", hint=hint)
        stage, dot, last_name = name.rpartition(".")
        if last_name in FILES:
            by = f"{stage}{dot}by" in texts
            by_value = read_tables(Path(text), "probability", by=by)
            parameters[name] = by_value if by else by_value.get(ANY_VALUE, {})
        elif isinstance(defaults[name], float):
            parameters[name] = _parse_number(text, f"parameter {name}")
        else:
            parameters[name] = text
    return parameters


def with_curve(unit: Unit, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with the values of the position curve that they name, and with its number. The values
    are copied since a policy never changes, even if the curve is estimated again. Raises InputError for an unknown
    curve."""
    full_parameters = dict(parameters)
    for name, reference in parameters.items():
        stage, dot, last_name = name.rpartition(".")
        if last_name == "position" and reference:
            curve = lookup.curve(unit, reference)
            full_parameters |= {name: curve.reference, f"{stage}{dot}{kinds.CURVE}": list(curve.examination)}
    return full_parameters


def check_page_rules(unit: Unit, texts: Mapping[str, str]) -> None:
    """Raise InputError if a page rule names an unknown arm or group or only arms that the policy never shows, or if it
    pins a group."""
    rules = parse_texts(texts)
    if rules is None:
        return
    names, lists = ArmNames(unit, rules.names), arm_rules.arm_lists(unit, texts)
    for name, text in rules.names.items():
        if not names.has_all([name]):
            error = names.unknown_error([name])
            raise InputError(f"a rule of the page names {error.message}", hint=error.hint)
        if name in rules.pin.values() and name not in names.ids:
            raise InputError(f"{text} pins a group", hint="pin one of its arms, or give the group a least share")
        members = names.find([name])
        if lists is not None and not lists.keep_allowed(members):
            cause = "block" if members <= lists.blocked_ids else "arms"
            message = f"{text} of the policy contradicts {cause}={texts[cause]} of the policy"
            raise InputError(message, hint="leave one of them out", field="param")


def ruled_policies(unit: Unit) -> list[int]:
    """Return the ids of the policies that have page rules among their parameters."""
    return [
        policy.id for policy in policies.all_policies(unit) if not policy.params.keys().isdisjoint(kinds.PAGE_RULES)
    ]


def notice_page_rules(store: Store, texts: Mapping[str, str]) -> None:
    """Print a notice if a page rule limits how often a value of a field occurs in a slate, and no arm has this
    field."""
    rules = parse_texts(texts)
    if rules is None or not rules.most:
        return
    with store.read() as unit:
        descriptions = [parse(text, "the features of an arm") for text in {arm.features for arm in arms.all_arms(unit)}]
    for field in rules.most:
        if all(value_of(features, field) is None for features in descriptions):
            hint = suggest(field, sorted({name for features in descriptions for name in features}))
            store.notice(
                f"no arm has {field!r}: {rules.text('most', field)} caps nothing until an arm or a request brings it"
                f"{'' if hint is None else f': {hint}'}"
            )


def check_curve(parameters: Mapping[str, Any], reward: Reward) -> None:
    """Raise InputError if a belief discounts positions by a curve, but slots that nobody examined can have a reward
    other than 0."""
    if parameters.get("position") and reward.default:
        raise InputError(
            f"reward {reward.name!r} has the default {reward.default:g}, and position={parameters['position']} "
            "takes a slot that nobody looked at to be worth 0",
            hint="use a reward with the default 0",
        )


def check_budget(unit: Unit, policy: Policy) -> None:
    """Raise InputError if a policy has a budget, but no reward definition weighs the event whose values are the costs.
    Events that no reward weighs are not read again."""
    budget = policy.parsed_budget
    if budget is not None and not any(budget.event in reward.weights for reward in policies.rewards(unit)):
        hint = f"define one, by which costs can be judged, too: `rlrec reward define savings '{budget.event}=-1'`"
        raise InputError(f"no reward definition weighs {budget.event!r}, the event of the budget", hint=hint)


def notice_other_reward(store: Store, parameters: Mapping[str, Any], reward: str) -> None:
    """Print a notice if the policy discounts positions by a curve that was estimated for another reward. reward: the
    name of the policy's reward."""
    if not parameters.get("position"):
        return
    with store.read() as unit:
        curve, learned_reward = lookup.curve(unit, parameters["position"]), lookup.reward(unit, reward)
    if curve.reward_id != learned_reward.id:
        store.notice(
            f"curve {curve.reference} was estimated for another reward than {learned_reward.name}: "
            f"`rlrec position fit {curve.name} --reward {learned_reward.name}` estimates one for it"
        )


def _parse_number(text: str, name: str) -> float:
    try:
        value = float(text.replace("_", "?"))  # only Python reads 1_000 as a number
    except ValueError:
        value = nan
    if not abs(value) <= LIMIT:
        raise InputError(f"{name} is {text!r}", hint=f"give a finite number within {LIMIT:g}")
    return value


def _read_rows(
    path: Path, *headers: tuple[str, ...], article: str = ""
) -> Iterator[tuple[str, str, str, dict[str, float]]]:
    """Yield four parts of each row of a CSV file: its place (file and line) for errors, the value of a context field,
    the arm, and the numbers by column. headers: the headers that the file may have; article: a word before the name of
    a number in errors. Raises InputError for a wrong row or a repeated arm."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) not in headers:
                columns = " or ".join(",".join(header) for header in headers)
                header_text = ",".join(reader.fieldnames or ())
                raise InputError(f"{path} begins with {header_text!r}", hint=f"it needs {columns}")
            keys = set[tuple[str, str]]()
            for row in reader:
                line = f"{path} line {reader.line_num}"
                if None in row or None in row.values():
                    raise InputError(f"{line} has not as many cells as its header")
                value, arm = key = row.pop("value", ANY_VALUE), row.pop("arm")
                if key in keys:
                    raise InputError(f"{line} names arm {arm!r} twice")
                keys.add(key)
                numbers = {name: _parse_number(text, f"{line}, {article}{name}") for name, text in row.items()}
                yield line, value, arm, numbers
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def read_tables(path: Path, column: str, *, by: bool) -> dict[str, dict[str, float]]:
    """Read a CSV file with a number for each arm. Returns the numbers by value of a context field, then by arm. by:
    whether the file has a context field; if not, all numbers are under the key ANY_VALUE."""
    by_value: dict[str, dict[str, float]] = {}
    for _, value, arm, numbers in _read_rows(path, ("value", "arm", column) if by else ("arm", column), article="the "):
        by_value.setdefault(value, {})[arm] = numbers[column]
    return by_value


def parse_features(specs: Mapping[str, Any]) -> dict[str, Encoder]:
    """Return the encoders of contexts and arms from the features that a user declares. specs: the declaration, a JSON
    object with `context`, `arm` or both."""
    if not specs or specs.keys() - {"context", "arm"}:
        hint = 'write {"context": {...}}, and "arm" for shared models'
        raise InputError("no features are declared", hint=hint, field="features")
    return {side: _parse_encoder(side, spec) for side, spec in specs.items()}


def _parse_encoder(side: str, spec: Any) -> Encoder:
    try:
        return Encoder.parse(spec)
    except InputError as error:
        raise InputError(f"{side}: {error.message}", hint=error.hint, field="features") from None


def read_prior(path: Path) -> dict[str, tuple[float, float]]:
    """Return the two pseudo-counts of each arm from a CSV file. If the file has a mean and a variance, the
    pseudo-counts are those of the Beta distribution with this mean and variance."""
    priors: dict[str, tuple[float, float]] = {}
    for line, _, arm, numbers in _read_rows(path, ("arm", "alpha", "beta"), ("arm", "mean", "variance")):
        alpha, beta = numbers.values()
        if "mean" in numbers:
            mean, variance = alpha, beta
            strength = mean * (1 - mean) / variance - 1 if variance > 0 else -1.0
            alpha, beta = mean * strength, (1 - mean) * strength
        if not (MIN_COUNT <= alpha <= MAX_COUNT and MIN_COUNT <= beta <= MAX_COUNT):
            bounds = f"{MIN_COUNT:g} and {MAX_COUNT:g}"
            hint = f"alpha and beta lie between {bounds} (a mean and a variance are turned into them)"
            raise InputError(f"{line} is no prior for arm {arm!r}", hint=hint)
        priors[arm] = alpha, beta
    return priors


def sweep_command(version: Version, options: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the command `sweep` that evaluates a version's kind and parameters on rows from which it has not learned,
    and words for what the command evaluates. A kind that cannot learn the version's reward is replaced by one that can.
    The result is None for a kind that `sweep` cannot evaluate. options: further options of the command."""
    kind, subject = version.policy.kind, "its kind"
    if not kinds.learns_from_slots(kind):
        return None
    exclusions = {*TIMELESS, kinds.BUDGET}
    try:
        kinds.make(kind, {}).check(version.reward)
    except InputError:
        kind, subject = kinds.ANY_REWARD, f"a kind that can learn {version.reward.name}"
        exclusions |= version.policy.params.keys() - {"floor"}
    words = _option_words(version, options, prefix=f"{kind}:", exclusions=exclusions)
    return " ".join(["rlrec sweep --kinds", kind, *words]), subject


def creation_command(version: Version, log: str) -> str:
    """Return the command that creates a policy with the kind and parameters of a version, which learns from a log. log:
    a filter."""
    return " ".join(["rlrec policy create NEW --kind", version.policy.kind, *_option_words(version, {"from-log": log})])


def typed_params(version: Version) -> dict[str, str]:
    """Return those parameters of a version that differ from their defaults, as texts for `--param`."""
    defaults = kinds.parameters(version.policy.kind)
    return {
        name: f"{value:.12g}" if isinstance(value, float) else str(value)
        for name, value in version.policy.params.items()
        if isinstance(value, str | int | float) and value != defaults.get(name, "")
    }


def _option_words(
    version: Version, options: Mapping[str, str], *, prefix: str = "", exclusions: Collection[str] = ()
) -> list[str]:  # fmt: skip
    """Return the options of a command that describe a version: its parameters other than defaults, and its reward.
    options: further options; prefix: a text before each parameter, such as `KIND:`, with which parameters that contain
    a comma are left out, since the command would read several values; exclusions: the parameters to leave out."""
    texts = {name: text for name, text in typed_params(version).items() if name not in exclusions}
    reward = {} if version.reward.name == DEFAULT_REWARD else {"reward": version.reward.name}
    return [
        *(f"--param {shlex.quote(f'{prefix}{name}={text}')}" for name, text in texts.items()
          if not prefix or "," not in text),
        *(f"--{name} {shlex.quote(text)}" for name, text in {**reward, **options}.items()),
    ]  # fmt: skip
