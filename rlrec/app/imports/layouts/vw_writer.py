"""Decisions as text of Vowpal Wabbit: examples of `--cb_adf`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlrec.app.imports.layouts.vw import RESERVED
from rlrec.app.imports.layouts.writers import LayoutWriter, Record

ESCAPES = {ord(character): f"%{ord(character):02X}" for character in "%\t\n\v\f\r :|"}
EQUALS = "%3D"  # in a name


class VwWriter(LayoutWriter):
    """Examples of `--cb_adf`: a line of shared features with the request id as its tag, a line for each eligible arm
    with the arm as its tag, and a blank line. The cost of the arm shown is its negative reward.

    Objects in the context become namespaces, other fields go outside them; texts become NAME=VALUE, and separators in a
    name are escaped as in a URL (%20)."""

    holds = frozenset({"features"})

    def decision(self, record: Record) -> bytes:
        (slot, *others), arms = record["slate"], record["eligible"]
        lost = {
            "pages of several slots": others or record.get("k", 1) > 1,
            "without propensities": slot["propensity"] is None,
            "censored": slot.get("censored"),
        }
        if any(lost.values()):
            self.left_out[next(name for name, is_lost in lost.items() if is_lost)] += 1
            return b""
        context, stated = record["context"], record["context"].get("@arms", {})
        stated_features = {arm: entry["features"] for arm, entry in stated.items() if entry.get("features")}
        features: Mapping[str, Any] = record.get("features") or stated_features or record["catalogue_features"]
        names = {name for fields in (context, *(features.get(arm) or {} for arm in arms)) for name in fields}
        altered = {
            f"fields of the names {', '.join(sorted(RESERVED))}": names & RESERVED,
            "rewards beyond the range of their definition, without --reward": record["clipped"],
            **{name: record.get(name) for name in ("keep_probability", "estimated")},
        }
        self.left_out.update(name for name, is_altered in altered.items() if is_altered)
        tag = f"'{_escaped(record['request_id'])} " if record["request_id"] else ""
        lines = [f"shared {tag}{_namespaces({name: context[name] for name in context if name[:1] != '@'})}"]
        for arm in arms:
            label = f"0:{0.0 - record['reward']!r}:{slot['propensity']!r} " if arm == slot["arm"] else ""
            lines.append(f"{label}'{_escaped(arm)}{_namespaces(features.get(arm) or {'i': {'id': arm}})}")
        return "".join(f"{line}\n" for line in [*lines, ""]).encode()


def _escaped(name: str) -> str:
    return name.translate(ESCAPES)


def _namespaces(fields: Mapping[str, Any]) -> str:
    """The fields of an object as text with bars: objects, and lists of objects, become namespaces."""
    fields = {name: value for name, value in fields.items() if name not in RESERVED}
    inner = {name: list(_words("", value)) for name, value in fields.items() if _is_nested(value)}
    top = [word for name, value in fields.items() if name not in inner for word in _words(name, value)]
    spaces = [f"|{_escaped(name)} {_joined(words)}" for name, words in inner.items() if words]
    return " ".join([f"| {_joined(top)}"] * bool(top) + spaces) or "|"


def _joined(words: Sequence[str]) -> str:
    """The features of a namespace. A name with `=` in it is written unescaped where several names, and no text, share
    the part before `=`: a reader then takes it for a name."""
    names = [word.replace(EQUALS, "=") for word in words]
    heads = [name.partition("=")[0].partition(":")[0] for name in names]
    count, texts = Counter(heads), {word.partition("=")[0] for word in words if "=" in word}
    return " ".join(
        word if count[head] == 1 or head in texts else name
        for word, name, head in zip(words, names, heads, strict=True)
    )  # fmt: skip


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(entry, dict) for entry in value))


def _words(name: str, value: Any) -> Iterator[str]:
    """The features of a value: numbers under their names, texts as NAME=VALUE, nested values with dots between
    names."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _words(f"{name}.{key}" if name else key, entry)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            is_number = isinstance(entry, int | float) and not isinstance(entry, bool)
            yield from _words(f"{name}.{index}" if is_number else name, entry)
    elif isinstance(value, str | bool):
        text = value if isinstance(value, str) else json.dumps(value)
        yield f"{_escaped(name).replace('=', EQUALS)}={_escaped(text)}"
    elif value is not None:
        yield _escaped(name).replace("=", EQUALS) if value == 1 else f"{_escaped(name)}:{value!r}"
