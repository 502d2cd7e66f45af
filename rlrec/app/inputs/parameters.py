"""Parameters and priors of a policy as people give them: K=V, and CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from rlrec import policy as kinds
from rlrec.errors import InputError, suggest
from rlrec.policy.encoder import Encoder

FILES = {"probabilities"}  # parameters given as a file
LEAST, MOST = 1e-6, 1e9  # pseudo-counts for which probabilities are exact, and then some


def typed(kind: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Typed parameters: numbers where the kind has numbers, the contents of files where it takes one."""
    known = kinds.parameters(kind)
    found: dict[str, Any] = {}
    for name, text in texts.items():
        if name not in known:
            hint = suggest(name, list(known)) or f"it has {', '.join(known)}"
            raise InputError(f"kind {kind} has no parameter {name!r}", hint=hint)
        if name in FILES:
            found[name] = _probabilities(Path(text), by="by" in texts)
        elif isinstance(known[name], float):
            found[name] = _number(text, f"parameter {name}")
        else:
            found[name] = text
    return found


def _number(text: str, what: str) -> float:
    try:
        value = float(text.replace("_", "?"))  # Python's own 1_000 is a number nowhere else
    except ValueError as error:
        raise InputError(f"{what} is {text!r}", hint="give a finite number") from error
    if not isfinite(value):
        raise InputError(f"{what} is {text!r}", hint="give a finite number")
    return value


def _rows(path: Path, *headers: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Numbered rows of a CSV that has one of these headers. Raises InputError naming file and line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reading = csv.DictReader(file)
            if tuple(reading.fieldnames or ()) not in headers:
                wanted = " or ".join(",".join(header) for header in headers)
                raise InputError(
                    f"{path} begins with {','.join(reading.fieldnames or ())!r}", hint=f"it needs {wanted}"
                )
            for row in reading:
                if None in row or None in row.values():
                    raise InputError(f"{path} line {reading.line_num} has not as many cells as its header")
                yield reading.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _probabilities(path: Path, *, by: bool) -> dict[str, Any]:
    header = ("value", "arm", "probability") if by else ("arm", "probability")
    found: dict[str, Any] = {}
    for line, row in _rows(path, header):
        table = found.setdefault(row["value"], {}) if by else found
        if row["arm"] in table:
            raise InputError(f"{path} line {line} names arm {row['arm']!r} twice")
        table[row["arm"]] = _number(row["probability"], f"{path} line {line}, the probability")
    return found


def features(said: Mapping[str, Any]) -> dict[str, Encoder]:
    """How a person declared that contexts and arms are read: a JSON object with `context`, `arm` or both."""
    if not said or said.keys() - {"context", "arm"}:
        hint = 'write {"context": {...}}, and "arm" for shared models'
        raise InputError("no features are declared", hint=hint, field="features")
    return {side: _encoder(side, spec) for side, spec in said.items()}


def _encoder(side: str, spec: Any) -> Encoder:
    try:
        return Encoder.of(spec)
    except InputError as error:
        raise InputError(f"{side}: {error.message}", hint=error.hint, field="features") from None


def prior(path: Path) -> dict[str, tuple[float, float]]:
    """Pseudo-counts per arm; a mean and a variance are matched to the Beta that has them."""
    found: dict[str, tuple[float, float]] = {}
    for line, row in _rows(path, ("arm", "alpha", "beta"), ("arm", "mean", "variance")):
        where = f"{path} line {line}"
        if row["arm"] in found:
            raise InputError(f"{where} names arm {row['arm']!r} twice")
        if "alpha" in row:
            alpha, beta = _number(row["alpha"], f"{where}, alpha"), _number(row["beta"], f"{where}, beta")
        else:
            mean, variance = _number(row["mean"], f"{where}, mean"), _number(row["variance"], f"{where}, variance")
            strength = mean * (1 - mean) / variance - 1 if variance > 0 else -1.0
            alpha, beta = mean * strength, (1 - mean) * strength
        if not (LEAST <= alpha <= MOST and LEAST <= beta <= MOST):
            raise InputError(
                f"{where} is no prior for arm {row['arm']!r}",
                hint=f"alpha and beta lie between {LEAST:g} and {MOST:g} (a mean and a variance are turned into them)",
            )
        found[row["arm"]] = alpha, beta
    return found


def reward_model(path: Path, *, by: bool) -> dict[str, dict[str, float]]:
    """Rewards per value of a context field and arm; without `by` all under the value "*"."""
    found: dict[str, dict[str, float]] = {}
    for line, row in _rows(path, ("value", "arm", "reward") if by else ("arm", "reward")):
        table = found.setdefault(row["value"] if by else "*", {})
        if row["arm"] in table:
            raise InputError(f"{path} line {line} names arm {row['arm']!r} twice")
        table[row["arm"]] = _number(row["reward"], f"{path} line {line}, the reward")
    return found


def rates(path: Path) -> dict[str, float]:
    """Click rates per arm."""
    found: dict[str, float] = {}
    for line, row in _rows(path, ("arm", "rate")):
        if row["arm"] in found:
            raise InputError(f"{path} line {line} names arm {row['arm']!r} twice")
        found[row["arm"]] = _number(row["rate"], f"{path} line {line}, the rate")
    return found
