"""This module finds arms by the names that users give: a key, or @GROUP for all arms of a group."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rlrec.errors import InputError, suggest
from rlrec.store import Unit
from rlrec.store.policies import arms

MAX_NAMED = 10  # in a message


class ArmNames:
    """An ArmNames object finds arms by names, which are keys of arms or @GROUP. ids: the id of each arm, by key;
    groups: the ids of the arms of each group that was read already, by name."""

    def __init__(self, unit: Unit, names: Collection[str], groups: dict[str, frozenset[int]] | None = None) -> None:
        self.unit = unit
        self.ids = arms.ids(unit, names) if names else {}
        self.groups: dict[str, frozenset[int]] = {} if groups is None else groups
        new_groups = {name[1:] for name in names if name.startswith("@")} - self.groups.keys()
        if new_groups:
            self.groups |= arms.members(unit, new_groups)
        self._has_suggested = False

    def has_all(self, names: Iterable[str]) -> bool:
        """Tell whether all names exist and were looked up when this object was made."""
        return all(map(self._has_arms, names))

    def find(self, names: Iterable[str], *, field: str = "arms") -> frozenset[int]:
        """Return the ids of the arms with these names. Raises InputError for unknown names."""
        names, arm_ids = list(names), set[int]()
        unknown_names = [name for name in names if not self._has_arms(name)]
        if unknown_names:
            raise self.unknown_error(unknown_names, field=field)
        for name in names:
            arm_ids |= {self.ids[name]} if name in self.ids else self.groups[name[1:]]
        return frozenset(arm_ids)

    def _has_arms(self, name: str) -> bool:
        return name in self.ids or (name.startswith("@") and name[1:] in self.groups)

    def unknown_error(self, names: list[str], *, field: str = "arms") -> InputError:
        """Return the error for names that do not exist. It shows the first name, a similar name, and how many other
        names are unknown."""
        first_name, n_hidden = names[0], len(names) - 1
        noun = "group" if first_name.startswith("@") else "arm"
        suggestion = None
        if not self._has_suggested:  # similar names are sought once for a group of requests, not for each bad line
            group_names = [f"@{name}" for name in arms.group_names(self.unit)] if noun == "group" else []
            suggestion = suggest(first_name, group_names or arms.keys_like(self.unit, first_name))
            self._has_suggested = True
        hint = suggestion or "`rlrec arm list` shows them"
        clause = f" and {n_hidden} more" if n_hidden else ""
        return InputError(f"unknown {noun} {first_name!r}{clause}", hint=hint, field=field)


def find(unit: Unit, names: Collection[str]) -> frozenset[int]:
    """Return the ids of the arms with these names. Raises InputError for unknown names."""
    return ArmNames(unit, names).find(names)


def members(
    unit: Unit, names: Collection[str], groups: dict[str, frozenset[int]] | None = None
) -> dict[str, list[str]]:
    """Return the keys of the arms of each group among `names`, in order. groups: the ids of the arms of groups that
    were read already. Raises InputError for a name that is neither an arm nor a group."""
    arm_names = ArmNames(unit, names, groups)
    ids = {name: arm_names.find([name], field="page") for name in names}
    keys = arms.keys(unit, frozenset().union(*ids.values()))
    return {name: sorted(map(keys.__getitem__, ids[name])) for name in names if name not in arm_names.ids}


def inactive_texts(unit: Unit, keys: Collection[str]) -> dict[str, str]:
    """Return, by status, a text for a message that lists the arms in `keys` that may not be shown now. Retired arms
    come last, with the command that restores them."""
    by_status: dict[str, list[str]] = {"upcoming": [], "ended": [], "retired": []}
    for arm in arms.by_keys(unit, keys):
        if (status := arm.status(unit.now)) in by_status:
            by_status[status].append(arm.key)
    texts = {status: some_names(names) for status, names in by_status.items() if names}
    if "retired" in texts:
        texts["retired"] += "; `rlrec arm restore` brings them back"
    return texts


def some_names(keys: Collection[str]) -> str:
    """Return a text for a message with the first of these keys, and the number of the other keys."""
    n_hidden = len(keys) - MAX_NAMED
    return ", ".join([*keys][:MAX_NAMED]) + (f" and {n_hidden} more" if n_hidden > 0 else "")
