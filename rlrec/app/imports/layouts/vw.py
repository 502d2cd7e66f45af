"""This module reads the text format of Vowpal Wabbit. Each example becomes a decision. With `--cb` an example is one
line; with `--cb_adf` it has several lines and ends at a blank line.

A label is ACTION:COST:PROBABILITY, and a cost is a negative reward. A word that touches the first bar, or begins
with an apostrophe, is a tag: the tag of an example is its request id, and the tag of an action is the name of its
arm.

Source: the pages Input format and Contextual bandit algorithms of Vowpal Wabbit's wiki."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite, nan
from typing import Any, NamedTuple, cast
from urllib.parse import unquote

from rlrec.app.imports.layouts.base import LINE_BYTES, Decoded, Source, too_long
from rlrec.app.imports.layouts.checks import CHECKS, check_value
from rlrec.app.imports.layouts.dsjson import DsJson, DsJsonLine
from rlrec.app.imports.layouts.writers import RESERVED
from rlrec.errors import InputError, quantity
from rlrec.log_fields import PROBABILITY

BLANK_LINE = re.compile(rb"\n[ \t\r]*(?=\n)")
BETWEEN = " \t"  # characters between words
SEVERAL = "--actions N reads a log of --cb, a line an example; in one of --cb_adf a blank line ends an example"


class Vw(DsJson):
    """This layout reads examples of a contextual bandit in Vowpal Wabbit's text format. The option `actions` is the
    number of actions in a log of `--cb`."""

    reads, most_lines = frozenset({"arm_id", "actions"}), 100_000

    def __init__(self, source: Source, *, policy: str | None, now: int, options: Mapping[str, Any]) -> None:
        n_actions = options.get("actions")
        self.spans = n_actions is None
        self._all = [str(number) for number in range(1, (n_actions or 0) + 1)]
        super().__init__(replace(source, decode=self._examples), policy=policy, now=now, options=options)

    def goes_on(self, text: bytes, next_text: bytes, *, gap: bool) -> bool:
        return not gap

    def complete_bytes(self, data: bytes) -> int:
        """Return the length in bytes of the examples that are certainly complete. If an example has several lines, this
        is the length up to the last blank line."""
        if not self.spans:
            return super().complete_bytes(data)
        return max((match.end() + 1 for match in BLANK_LINE.finditer(data)), default=0)

    def decode(self, numbers: Sequence[int], texts: list[bytes]) -> Decoded:
        examples = self.decision_lines(numbers, texts)
        lengths = {numbers[lines.start]: lines.stop - lines.start for lines in examples}
        group = super().decode([*lengths], [b"\n".join(texts[lines]) for lines in examples])
        return group._replace(lines=[lengths[number] for number in group.rows.number] if self.spans else None)

    def path(self, table: str, field: str, number: int, text: bytes) -> str:
        return "label" if table else {"request_id": "tag", "eligible": "actions"}.get(field, field)

    def _examples(self, group: Sequence[tuple[int, bytes]], kind: type[Any]) -> list[DsJsonLine | InputError]:
        examples = list[DsJsonLine | InputError]()
        for number, text in group:
            lines = list[TextLine]()
            try:
                for line in text.split(b"\n"):
                    lines.append(TextLine.read(line))
                examples.append(self._several_lines(lines) if self.spans else self._single_line(*lines))
            except InputError as error:
                if self.spans and len(lines) <= text.count(b"\n"):
                    error.line = number + len(lines)  # an example has no blank line inside
                examples.append(error)
        return examples

    def _single_line(self, line: TextLine) -> DsJsonLine:
        """Return an example of `--cb` as a decision, with the features of the line as its context. If the line has
        several labels, their actions are eligible, else all actions."""
        if line.is_shared:
            raise InputError("a line of shared features, which --cb_adf has", hint="leave --actions out", field="label")
        arms = [label.action for label in line.labels] if len(line.labels) > 1 else self._all
        if misfits := [label.action for label in line.labels if label.action not in self._all]:
            raise InputError(f"{misfits[0][:80]!r} is none of the {quantity(len(self._all), 'action')}", field="label")
        labels = [(arms.index(label.action), label) for label in line.labels if label.cost is not None]
        return _example(line, [{"_tag": arm} for arm in arms], labels)

    def _several_lines(self, lines: Sequence[TextLine]) -> DsJsonLine:
        """Return an example of `--cb_adf` as a decision. It may begin with a line of shared features, and has a line
        for each action."""
        shared_line, actions = (lines[0], lines[1:]) if lines[0].is_shared else (NO_LINE, lines)
        if not actions or any(line.is_shared for line in actions):
            raise InputError("shared features without actions, or not first", hint=SEVERAL, field="label")
        labels = [(n, label) for n, line in enumerate(actions) for label in line.labels if label.cost is not None]
        if len(lines) == 1 and labels and labels[0][1].probability != 1:
            raise InputError("an example of one action, whose probability is not 1", hint=SEVERAL, field="label")
        features = [{**line.features, **({"_tag": line.tag} if line.tag else {})} for line in actions]
        return _example(shared_line, features, labels)


class Label(NamedTuple):
    """This record holds one label of a line. cost, probability: None for an action that was not shown."""

    action: str
    cost: float | None = None
    probability: float | None = None


class TextLine(NamedTuple):
    """This record holds one parsed line of text. features: the features of the namespace without a name, and an object
    with features for each other namespace."""

    labels: Sequence[Label]
    tag: str | None
    is_shared: bool
    features: Mapping[str, Any]

    @classmethod
    def read(cls, line: bytes) -> TextLine:
        """Parse a line of text. Raises InputError if it is no line of a contextual bandit."""
        if len(line) > LINE_BYTES:
            raise too_long()
        try:
            head, bar, spaces = line.decode().partition("|")
        except UnicodeDecodeError as bad:
            raise InputError(f"not UTF-8: byte 0x{line[bad.start]:02x}") from None
        if not bar:
            raise InputError("no `|` before the features", field="label")
        words, tag = _words(head), None
        if words and (words[-1][0] == "'" or head[-1] not in BETWEEN):
            tag = words.pop()
            if tag == "shared" or (":" in tag and tag[0] != "'"):
                hint = "a space goes between a label and the bar"
                raise InputError(f"{tag[:80]!r} has no space before the bar: it is a tag", hint=hint, field="label")
            tag = unquote(tag.removeprefix("'")) or None
        if words[:1] in (["ccb"], ["slates"]):
            hint = "--layout dsjson takes pages of several slots"
            raise InputError(f"a line of {words[0]}", hint=hint, field="label")
        is_shared = words[:1] == ["shared"]
        if words[1:] and is_shared:
            hint = "a line of shared features has no label"
            raise InputError(f"{words[1][:80]!r} behind `shared`", hint=hint, field="label")
        labels = () if is_shared else [_label(word) for word in words]
        return cls(labels, tag, is_shared, _features(spaces.split("|")))


def _words(text: str) -> list[str]:
    return [word for word in text.replace("\t", " ").split(" ") if word]


NO_LINE = TextLine((), None, True, {})


def _label(word: str) -> Label:
    action, *numbers = word.split(":")
    if not action or len(numbers) not in (0, 2):
        hint = "ACTION:COST:PROBABILITY of the one that was shown, ACTION of others"
        raise InputError(f"{word[:80]!r} is no label", hint=hint, field="label")
    cost, p = [_number(text, "label") for text in numbers] or (None, None)
    return Label(action, cost, check_value(p, CHECKS[PROBABILITY], "label"))


def _number(text: str, field: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = nan
    if not isfinite(value):
        raise InputError(f"{text[:80]!r} is no number", field=field)
    return value


def _example(line: TextLine, actions: Sequence[Mapping[str, Any]], labels: Sequence[tuple[int, Label]]) -> DsJsonLine:
    """Return an example in the form of a line of `dsjson`. An example without labels only asks for a prediction, and is
    skipped. line: the line with the features of the context; labels: the labels with a cost, each after the index of
    its action."""
    context: dict[str, Any] = {**line.features, "_multi": list(actions)}
    if len(labels) > 1:
        raise InputError("several actions of an example have a cost", hint=SEVERAL, field="label")
    if not labels:
        return DsJsonLine(c=context, skip_learn=True)
    ((index, label),) = labels
    cost, p = cast(float, label.cost), cast(float, label.probability)
    return DsJsonLine(c=context, a=[index + 1], p=[p], cost=cost, o=[{"v": 0.0 - cost}], event_id=line.tag)


# -- features --


def _features(spaces: Sequence[str]) -> dict[str, Any]:
    """Return the features of a line by namespace. The weight of a namespace multiplies its features, and features of
    the same name are added up. spaces: the texts of the namespaces."""
    sums = defaultdict[str, dict[str, float]](dict)
    texts = defaultdict[str, dict[str, str]](dict)
    for space in spaces:
        words = _words(space)
        name, _, weight = words.pop(0).partition(":") if words and space[0] not in BETWEEN else ("", "", "")
        factor = _number(weight, name) if weight else 1.0
        sums[name] |= {}
        for word in words:
            feature, _, value = word.partition(":")
            if not feature:
                raise InputError(f"{word[:80]!r} has no name", field=name or None)
            try:
                amount = float(value) if value else 1.0
            except ValueError:
                texts[name][feature] = value
                continue
            if not isfinite(amount):
                raise InputError(f"{word[:80]!r} is no number", field=name or None)
            sums[name][feature] = sums[name].get(feature, 0.0) + factor * amount
    fields = {unquote(name): _fields(sums[name]) | texts[name] for name in sums}
    top = fields.pop("", {})
    for name in fields.keys() & top.keys():  # a namespace with the name of a feature outside namespaces
        inner = {f"{name}.{key}": value for key, value in fields.pop(name).items()}
        if duplicates := inner.keys() & top.keys():
            raise InputError(f"{min(duplicates)[:80]!r} is a feature twice: by itself, and in a namespace", field=name)
        top |= inner
    if clashes := (fields.keys() | top.keys()) & RESERVED:
        raise InputError(f"{min(clashes)!r} cannot be the name of features here", field=min(clashes))
    return top | {name: inner for name, inner in fields.items() if inner}


def _fields(sums: Mapping[str, float]) -> dict[str, Any]:
    """Return features as fields of a JSON object. A feature NAME=VALUE with weight 1 becomes a field NAME with a text,
    unless several features have this NAME. sums: the weight of each feature."""
    count = Counter(name.partition("=")[0] for name in sums)
    fields = dict[str, Any]()
    for name, amount in sums.items():
        key, equals, text = name.partition("=")
        if equals and amount == 1 and count[key] == 1:
            fields[unquote(key)] = unquote(text)
        else:
            fields[unquote(name)] = amount
    return fields
