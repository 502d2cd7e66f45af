"""Queries here read and write the settings of the store, and the runs: records of commands that changed definitions."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from rlrec.errors import CheckFailed, StoreBusy
from rlrec.store.database.unit import Unit
from rlrec.store.log.contents import digest
from rlrec.times import FIRST, LAST

BY_KEY = "key:"  # prefix of the salt of a store whose splits depend on keys alone


class StoreSettings(NamedTuple):
    """This record holds the settings of a store.

    salt: the random salt of experiments, which is the same only in replicas and copies of the store. catalogue_id:
    the eligible set of all active arms of the present catalogue, or None until a request needs this set.
    catalogue_from, catalogue_until: the time over which that set is valid. removals: the number of commands that
    deleted decisions. weighs_returns: whether any reward weighs the event `return`. has_merges: whether any user was
    merged into another user. has_exclusions: whether any decisions are excluded."""

    session_timeout_us: int
    salt: str
    catalogue_revision: int
    catalogue_id: int | None
    catalogue_from: int
    catalogue_until: int
    removals: int | None
    weighs_returns: int
    has_merges: int
    has_exclusions: int

    @property
    def split_salt(self) -> str:
        """Return the salt of the splits, a text that decides in which split each user is. The salt is empty, so that a
        log has the same splits in every store. Stores of an earlier format keep the salt that they had, so that each
        user stays in the same split."""
        return "" if self.salt.startswith(BY_KEY) else self.salt


_COMPUTED = {
    "catalogue_from": f"coalesce(catalogue_from, {FIRST})",
    "catalogue_until": f"coalesce(catalogue_until, {LAST})",
    "weighs_returns": """EXISTS (SELECT 1 FROM reward WHERE replace(weights, '"return":', '') <> weights)""",
    "has_merges": "EXISTS (SELECT 1 FROM merged_user)",
    "has_exclusions": "EXISTS (SELECT 1 FROM exclusion)",
}
COLUMNS = ", ".join(_COMPUTED.get(name, name) for name in StoreSettings._fields)


def get(unit: Unit) -> StoreSettings:
    """Return the present settings. On SQLite, a unit that has not changed the settings returns the settings that it
    read when it began; any other unit reads the settings again."""
    row = unit.settings or unit.ask_row(f"SELECT {COLUMNS} FROM settings")
    if row is None:
        raise CheckFailed("the store was not set up to the end", hint="run `rlrec init` again")
    return StoreSettings._make(row)


def lock(unit: Unit) -> None:
    """On PostgreSQL, take the lock of the settings until this transaction ends. Only one transaction at a time can hold
    this lock."""
    if unit.postgres:
        unit.ask("SELECT id FROM settings FOR NO KEY UPDATE")


def lock_removals(unit: Unit, removals: int | None) -> None:
    """Prevent all commands from deleting decisions until this transaction ends. Raise StoreBusy if decisions were
    deleted since the caller read its data, which may depend on a user who has been forgotten.

    removals: the number of removals when the data were read."""
    lock(unit)
    if get(unit).removals != removals:
        raise StoreBusy("decisions were deleted meanwhile", hint="nothing was stored; a retry is safe")


def exist(unit: Unit) -> bool:
    return unit.ask_row("SELECT id FROM settings") is not None


def create(unit: Unit, *, session_timeout_us: int, salt: str) -> None:
    columns = ("id", "created_at", "session_timeout_us", "salt", "catalogue_revision")
    unit.insert("settings", columns, [(1, unit.now, session_timeout_us, salt, 0)])


def raise_catalogue(unit: Unit) -> int:
    """Increase the revision number of the catalogue by 1 and return the new number. The eligible set of the new
    catalogue is stored later, when a request needs it."""
    update = "UPDATE settings SET catalogue_revision = catalogue_revision + 1, catalogue_id = NULL"
    return int(unit.ask_value(f"{update} RETURNING catalogue_revision"))


def set_catalogue(unit: Unit, *, revision: int, eligible_id: int, span: tuple[int, int]) -> None:
    """Store the eligible set of the catalogue and the time over which it is valid. Nothing is stored if the catalogue
    no longer has the given revision."""
    columns: dict[str, Any] = {"catalogue_id": eligible_id, "catalogue_from": span[0], "catalogue_until": span[1]}
    assignments, settings_row = ", ".join(f"{name} = ?" for name in columns), unit.settings
    update = f"UPDATE settings SET {assignments} WHERE catalogue_revision = ?"
    is_newest = unit.tell(update, *columns.values(), revision)
    if settings_row and is_newest:
        unit.settings = StoreSettings._make(settings_row)._replace(**columns)


def note_removal(unit: Unit, decision_id: int) -> None:
    """Count a command that deleted decisions. Afterwards, new decisions only get ids above `decision_id`."""
    unit.next_ids.clear()
    larger_removed_to = "CASE WHEN coalesce(removed_to, 0) > ? THEN removed_to ELSE ? END"
    update = f"UPDATE settings SET removals = coalesce(removals, 0) + 1, removed_to = {larger_removed_to}"
    unit.tell(update, decision_id, decision_id)


def add_run(unit: Unit, command: str, options: Mapping[str, Any], result: Mapping[str, Any] | None = None) -> int:
    """Record a run of a command, for example one that changed definitions or imported a log. Return the run's id."""
    result_text = None if result is None else _json_text(result)
    options_text = json.dumps(dict(options), sort_keys=True, default=str)
    return unit.add("run", command=command, options=options_text, at=unit.now, result=result_text)


def any_run(unit: Unit, command: str) -> bool:
    """Tell whether any run of a command was recorded."""
    return unit.ask_row("SELECT id FROM run WHERE command = ? LIMIT 1", command) is not None


def open_run(unit: Unit, command: str, options: Mapping[str, Any]) -> tuple[int, dict[str, Any] | None]:
    """Return the id and the result of the only run of a command with these options. If there is no such run, record a
    new run and return its id and None."""
    lock(unit)
    run = _find_run(unit, command, options)
    return (add_run(unit, command, options), None) if run is None else run


def run_state(unit: Unit, run_id: int) -> dict[str, Any] | None:
    """Return the result that is stored in a run. Until the command of the run ends, this is the state of its work."""
    return _json_values(unit.ask_value("SELECT result FROM run WHERE id = ?", run_id))


def move_run(unit: Unit, run_id: int, before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> bool:
    """Replace the state of a run by `after`, and return True. If another process has changed the state, so that it is
    no longer `before`, change nothing and return False."""
    texts = _json_text(after), "" if before is None else _json_text(before)
    query = "UPDATE run SET result = ? WHERE id = ? AND coalesce(result, '') = ? RETURNING id"
    return unit.ask_row(query, texts[0], run_id, texts[1]) is not None


def end_run(unit: Unit, run_id: int, result: Mapping[str, Any]) -> None:
    """Store the result of a run that was recorded before."""
    unit.tell("UPDATE run SET result = ? WHERE id = ?", _json_text(result), run_id)


def state(unit: Unit, command: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state that a command with these options stored for its next run, or None if there is no such state."""
    run = _find_run(unit, command, options)
    return None if run is None else run[1]


def keep_state(unit: Unit, command: str, options: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Store a state for the next run of a command with these options. All runs of a command with the same options share
    one row."""
    run = _find_run(unit, command, options)
    end_run(unit, add_run(unit, command, options) if run is None else run[0], state)


def _find_run(unit: Unit, command: str, options: Mapping[str, Any]) -> tuple[int, dict[str, Any] | None] | None:
    """Return the id and the result of the only run of a command with these options, or None where there is no such
    run."""
    query = "SELECT id, result FROM run WHERE command = ? AND options = ? ORDER BY id LIMIT 1"
    row = unit.ask_row(query, command, _json_text(options))
    return None if row is None else (int(row[0]), _json_values(row[1]))


def _json_text(values: Mapping[str, Any]) -> str:
    """Return the options or the result of a run as the JSON text that is stored."""
    return json.dumps(dict(values), sort_keys=True)


def _json_values(text: str | None) -> dict[str, Any] | None:
    """Return the values that a text from `_json_text` holds."""
    return None if text is None else dict(json.loads(text))


def promoting_commands(unit: Unit, policy: str) -> dict[int, str]:
    """Return the commands that may have promoted a version of a policy, by the time of the command. The command `policy
    promote` is left out."""
    rows = unit.ask(
        "SELECT at, command, options FROM run WHERE command IN ('train-pg', 'experiment stop')"
        " AND (result LIKE ? OR result LIKE ?)", '%"promoted": true%', f'%"live": "{policy}@%',
    )  # fmt: skip
    runs = [(at, command, json.loads(options)) for at, command, options in rows]
    commands = {at: command for at, command, options in runs if options.get("policy", policy) == policy}
    stops = ((at, row["name"], row["promote"]) for at, _, row in runs if "promote" in row)
    return commands | {at: f"experiment stop {name} --promote {version}" for at, name, version in stops}


UNWEIGHED = "notice of events"  # the command of a run that records a notice of kinds that no reward weighs
MAX_NOTICED = 1_000  # kinds; once so many are recorded, no further notice is given


def new_kinds(unit: Unit, kinds: Collection[str]) -> list[str]:
    """Return the kinds of events, among the given ones, for which the user has not yet got the notice that no reward
    weighs such events. Return an empty list once notices for MAX_NOTICED kinds were given."""
    rows = unit.ask("SELECT options FROM run WHERE command = ?", UNWEIGHED)
    noticed_kinds = {kind for (options,) in rows for kind in json.loads(options)["kinds"]}
    if len(noticed_kinds) >= MAX_NOTICED:
        return []
    return sorted(kind for kind in kinds if digest(kind).hex() not in noticed_kinds)


def note_kinds(unit: Unit, kinds: Sequence[str]) -> None:
    """Record that a notice was given for these kinds of events. Only digests of the kinds are stored, so that no text
    of a user stays in the store after the user is forgotten."""
    add_run(unit, UNWEIGHED, {"kinds": [digest(kind).hex() for kind in kinds[:MAX_NOTICED]]})
