"""This module translates errors of database drivers into errors of rlrec, whose texts say what failed and what to
do."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import suppress

from sqlalchemy import exc

from rlrec.errors import CheckFailed, InputError, RlrecError, StoreBusy

RETRY_HINT = "nothing was stored; a retry is safe"
AWAY_HINT = f"{RETRY_HINT}, and --reconnect 1m waits for a server"
ROLES_HINT = "`rlrec db roles` prints the rights that a server, a trainer and a reader need"
# PostgreSQL's codes for states.
UNIQUE, DANGLING, LOCKED, IDLE = "23505", "23503", "55P03", "25P03"
CANCELED, READ_ONLY, NO_SCHEMA, FORBIDDEN, DISK_FULL = "57014", "25006", "3F000", "42501", "53100"
# States in which the whole transaction is to be repeated: serialization failure, deadlock; and a key that another
# transaction added meanwhile, or a row that it deleted, which the next attempt will see.
RETRIED = {"40001", "40P01", UNIQUE, DANGLING}
UNTRANSLATABLE = ("22P05", "22021")
# The server is shut down, restarts, has no free connection, or has waited for too long.
UNREACHABLE = ("08", "53300", "57P", IDLE)


class CorruptFile(RlrecError):
    """This error says that SQLite cannot read its file."""


class Unreachable(StoreBusy):
    """This error says that the server cannot be reached, or ended the connection before COMMIT was sent. has_expired:
    whether the time for further attempts is over."""

    has_expired = False


class NotUnique(RlrecError):
    """This error says that a new row has the key of another row."""


class Retry(Exception):
    """This exception says that the database asks for the whole transaction to be repeated. state: PostgreSQL's code for
    the reason."""

    state: str | None = None


def translate(error: BaseException | None, *, address: str) -> Exception:
    """Return the error of rlrec that stands for an error of a driver or of SQLAlchemy. address: the printable name of
    the database."""
    if isinstance(error, exc.DBAPIError):
        error = error.orig
    return (_sqlite_error if isinstance(error, sqlite3.Error) else _postgres_error)(error, address=address)


def _sqlite_error(error: BaseException | None, *, address: str) -> Exception:
    name = getattr(error, "sqlite_errorname", "") or ""
    message = str(error)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return lock_error(address)
    wal_path = f"{address}-wal"
    has_changes = os.path.isfile(wal_path) and os.path.getsize(wal_path)
    if name in ("SQLITE_CANTOPEN", "SQLITE_READONLY_DIRECTORY") and has_changes:
        if not os.path.lexists(address):
            hint = f"move it back beside {wal_path}, which has its last changes, or delete that, too"
            return CheckFailed(f"the store {address} was moved or deleted while it was open", hint=hint)
        hint = f"copy it together with {wal_path} to a folder of yours, and read that"
        return RlrecError(f"the store {address} was not closed, and its folder cannot be written", hint=hint)
    if name == "SQLITE_CANTOPEN":
        return _open_error(address)
    if "no such table" in message or "no such column" in message:
        return (no_store if "rlrec_version" in message else old_store)(address)
    if name.startswith("SQLITE_READONLY"):
        return RlrecError(f"the store {address} cannot be written", hint="check who owns the file and its folder")
    if name == "SQLITE_NOTADB":
        return RlrecError(f"{address} is not a database", hint="give another path with --db")
    if name in ("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"):
        return NotUnique(f"the store {address} failed: {message}")
    if name == "SQLITE_FULL" or (name.startswith("SQLITE_IOERR") and _has_no_room(address)):
        return disk_full(address)
    if name.startswith("SQLITE_CORRUPT"):
        hint = "`rlrec doctor` says where the file is damaged"
        return CorruptFile(f"the store {address} failed: {message}", hint=hint)
    return RlrecError(f"the store {address} failed: {message}")


def _has_no_room(path: str) -> bool:
    """Tell whether the disk that holds a file has no room even for the small files that SQLite keeps next to the
    file."""
    with suppress(OSError):
        disk = os.statvfs(os.path.dirname(os.path.abspath(path)))
        return disk.f_bavail * disk.f_frsize < 1 << 16
    return False


def lock_error(address: str) -> StoreBusy:
    return StoreBusy(f"the store {address} is locked by another process", hint=RETRY_HINT)


def _open_error(address: str) -> RlrecError:
    """Return the error that says why SQLite could not open a file that should exist."""
    try:
        os.stat(address)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            folder = os.path.dirname(os.path.abspath(address))
            if os.path.isdir(folder):
                return CheckFailed(f"no store at {address}", hint="create it with `rlrec init`")
            message = f"no store at {address}: its folder does not exist"
            return CheckFailed(message, hint="make it, then run `rlrec init`")
    if os.path.isdir(address):
        return RlrecError(f"{address} is a folder", hint="name a file in it with --db")
    return RlrecError(f"cannot open {address}: permission denied", hint="check who owns the file and its folder")


def creation_error(error: sqlite3.Error, *, address: str) -> Exception:
    """Return the error that says, in the words of the operating system, why SQLite could not create a file. If `error`
    has another cause, return the result of `translate`. address: the path of the file."""
    if getattr(error, "sqlite_errorname", "") != "SQLITE_CANTOPEN" or os.path.isdir(address):
        return translate(error, address=address)
    folder = os.path.dirname(os.path.abspath(address))
    hint = "choose another path with --db" if os.path.exists(folder) else f"make its folder first: {folder}"
    try:
        os.close(os.open(address, os.O_RDWR | os.O_CREAT))
    except OSError as refused:
        return RlrecError(f"cannot create {address}: {(refused.strerror or str(refused)).lower()}", hint=hint)
    return RlrecError(f"cannot create {address}: {error}", hint=hint)


def _postgres_error(error: BaseException | None, *, address: str) -> Exception:
    from psycopg import InterfaceError, OperationalError

    state = getattr(error, "sqlstate", None)
    message = " ".join(str(error).split())
    # an error of the driver, before it sent anything
    if state is None and not isinstance(error, OperationalError | InterfaceError):
        return RlrecError(f"the store {address} failed: {message[:300]}")
    if state in RETRIED:
        retry_error = Retry(message)
        retry_error.state = state
        return retry_error
    if state == "42P01":
        return (no_store if "rlrec_version" in message else old_store)(address)
    if state == "3D000" or (state is None and "database" in message and "does not exist" in message):
        return CheckFailed(f"no database at {address}", hint="create it with createdb, then run `rlrec init`")
    if state is None and "permission denied for database" in message:
        return RlrecError(f"{address} refused the login: {message[:200]}", hint=ROLES_HINT)
    refusals = ("authentication", "no password", 'role "', "no pg_hba.conf entry")
    if state in ("28P01", "28000") or (state is None and any(words in message for words in refusals)):
        return RlrecError(f"{address} refused the login", hint="check user and password (PGPASSWORD, ~/.pgpass)")
    if state == LOCKED:
        return lock_error(address)
    if state is None or state.startswith(UNREACHABLE):
        message = message.partition(" Is the server running")[0][:200]
        return (StoreBusy if state == IDLE else Unreachable)(f"cannot reach {address}: {message}", hint=AWAY_HINT)
    return _refusal_error(state, message, address=address) or RlrecError(f"the store {address} failed: {message[:300]}")


def _refusal_error(state: str, message: str, *, address: str) -> RlrecError | None:
    """If the server would refuse a statement again, return the error for the user; else return None. state:
    PostgreSQL's code for the reason; message: the server's message; address: the printable name of the database."""
    timeouts = "raise the statement_timeout of the role or of the database, or --statement-timeout"
    read_only = "see default_transaction_read_only of the role and of the database, or name the primary server"
    schema, short_message = "create the schema of its search_path", message[:200]
    characters = f"{address} cannot hold every character: {short_message}"
    encoding_error = RlrecError(characters, hint="its encoding must be UTF8")
    refusals = {
        "22003": out_of_range(),  # a number
        "2200H": ids_exhausted("rows"),  # of a sequence
        CANCELED: RlrecError(f"{address} stopped a statement: {short_message}", hint=timeouts),
        READ_ONLY: RlrecError(f"the store {address} cannot be written: it is read-only", hint=read_only),
        FORBIDDEN: RlrecError(f"{address} refused: {short_message}", hint=ROLES_HINT),
        DISK_FULL: disk_full(address),
        NO_SCHEMA: CheckFailed(f"no schema to create tables in at {address}", hint=schema),
        **dict.fromkeys(UNTRANSLATABLE, encoding_error),
    }
    return refusals.get(READ_ONLY if "during recovery" in message else state)


def disk_full(address: str) -> RlrecError:
    return RlrecError(f"the disk of {address} is full", hint="nothing was stored; make room, and repeat")


def out_of_range() -> InputError:
    return InputError("a number is beyond the range of 64 bits", hint="check the ids that were given")


def ids_exhausted(rows: str) -> RlrecError:
    hint = "a row or a sequence has the largest id there is: start a new store"
    return RlrecError(f"the store has no ids left for new {rows}", hint=hint)


def old_store(address: str) -> CheckFailed:
    return CheckFailed(f"the store {address} was made by an older rlrec", hint="bring it up to date with `rlrec init`")


def no_store(address: str) -> CheckFailed:
    message = f"there is no store in {address}: it is empty, or belongs to another program"
    return CheckFailed(message, hint="`rlrec init` makes a store in an empty one")
