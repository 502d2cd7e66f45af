"""Errors a person reads: one line, a way out, and the exit code of the command contract."""

from __future__ import annotations

OUT_OF_MEMORY = "out of memory", "give the process more (ulimit -v, its container), or less to do: a narrower --log"


class RlrecError(Exception):
    """Something failed. `hint` says what to do next; the class holds the exit code."""

    code = 1
    result: object = None  # the answer that came before, for who called the command from Python

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(hint)  # a traceback of Python has it, too


class InputError(RlrecError):
    """Wrong usage or wrong input; nothing was stored. `field` and `line` name the place in an input line."""

    code = 2

    def __init__(
        self, message: str, *, hint: str | None = None, field: str | None = None, line: int | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.field = field
        self.line = line


class CheckFailed(RlrecError):
    """A check said no: gate refused, audit found an error, store missing or out of date."""

    code = 3


class StoreBusy(RlrecError):
    """The store is locked or unreachable. A retry is safe, unless the hint says what was stored before."""

    code = 4


class OutcomeUnknown(RlrecError):
    """The connection broke while the last changes were stored: nobody knows whether they are."""


class LinesRefused(RlrecError):
    """The error where some lines were refused, and the others are stored."""

    code = 5


class Conflict(InputError):
    """A known key or name came with other content."""

    code = 6


MAX_NAMES, MAX_WORD = 1_000, 200  # that are compared


def suggest(word: str, names: list[str], *, cutoff: float = 0.6) -> str | None:
    """A hint with the names nearest to a word, or None. Of very many names those are compared that begin as it does."""
    if len(word) > MAX_WORD:
        return None
    from difflib import get_close_matches

    if len(names) > MAX_NAMES:
        names = [name for name in names if name.startswith(word[: len(word) // 2])][:MAX_NAMES]
    parts = [name for name in names if word in name.replace(".", "_").split("_")]
    nearest = parts[:3] or get_close_matches(word, names, n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(nearest)}?" if nearest else None


def quantity(number: int | str, noun: str) -> str:
    """A number, or the text of one, with its noun: 1 slot, 2,000 slots."""
    text = number if isinstance(number, str) else f"{number:,}"
    return f"{text} {noun}{'' if text == '1' else 's'}"
