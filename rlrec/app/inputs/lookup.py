"""From the names that people give to policies and versions, with the near ones where there is none."""

from __future__ import annotations

from collections.abc import Collection

from rlrec.errors import InputError, suggest
from rlrec.records import Head, Version
from rlrec.store import Unit, policies


def split(reference: str) -> tuple[str, int | None]:
    """NAME or NAME@V: the policy's name and the version's number. POLICY@EXPERIMENT/VARIANT is a name as a whole."""
    name, _, number = reference.rpartition("@")
    if name and number.isascii() and number.isdigit() and len(number) < 18:
        return name, int(number)
    return reference, None


def resolve(unit: Unit, references: Collection[str]) -> dict[str, tuple[Version, Head] | InputError]:
    """The version meant by each reference (NAME means the live one) and its policy's head, or what is wrong."""
    parts = {reference: split(reference) for reference in references}
    live = policies.live(unit, {name for name, _ in parts.values()})
    numbered = {live[name][0].policy.id for name, number in parts.values() if number is not None and name in live}
    versions = {(version.policy.name, version.number): version for version in policies.versions(unit, numbered)}
    found: dict[str, tuple[Version, Head] | InputError] = {}
    for reference, (name, number) in parts.items():
        if name not in live:
            found[reference] = unknown(unit, name)
        elif number is None:
            found[reference] = live[name]
        elif (name, number) in versions:
            found[reference] = versions[name, number], live[name][1]
        else:
            found[reference] = InputError(
                f"policy {name} has no version {number}", hint=f"`rlrec policy show {name}` lists its versions"
            )
    return found


def one(unit: Unit, reference: str) -> tuple[Version, Head]:
    """The version meant by a reference. Raises InputError where there is none."""
    found = resolve(unit, [reference])[reference]
    if isinstance(found, InputError):
        raise found
    return found


def unknown(unit: Unit, name: str) -> InputError:
    known = [policy.name for policy in policies.all_policies(unit)]
    hint = suggest(name, known) or "`rlrec policy list` shows them, `rlrec policy create` makes one"
    return InputError(f"unknown policy {name!r}", hint=hint, field="policy")
