"""This module defines errors for people. Each has one line, a hint, and the exit code that the commands promise."""

from __future__ import annotations

OUT_OF_MEMORY = "out of memory", "give the process more (ulimit -v, its container), or less to do: a narrower --log"


class RlrecError(Exception):
    """This error says that something failed. `hint` says what to do next; the class has the exit code."""

    code = 1
    result: object = None  # an answer given before the error, for a Python caller

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(hint)  # so that a Python traceback shows it, too


class InputError(RlrecError):
    """This error says that the usage or the input was wrong, and that nothing was stored. `field` and `line` locate the
    error in the input."""

    code = 2

    def __init__(
        self, message: str, *, hint: str | None = None, field: str | None = None, line: int | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.field = field
        self.line = line


class CheckFailed(RlrecError):
    """This error says that a check failed: a gate refused, an audit found an error, the store is missing or out of
    date."""

    code = 3


class StoreBusy(RlrecError):
    """This error says that the store is locked or unreachable. A retry is safe, unless the hint says that something was
    stored before."""

    code = 4


class OutcomeUnknown(RlrecError):
    """This error says that the connection broke while the last changes were being stored. They may or may not be
    stored."""


class LinesRefused(RlrecError):
    """This error says that some lines were refused; the others are stored."""

    code = 5


class Conflict(InputError):
    """This error says that a known key or name came with different content."""

    code = 6


MAX_NAMES, MAX_WORD = 1_000, 200  # limits of the comparison


def suggest(word: str, names: list[str], *, cutoff: float = 0.6) -> str | None:
    """Return a hint with the names most similar to a word, or None. Of very many names only those with the same
    beginning are compared."""
    if len(word) > MAX_WORD:
        return None
    from difflib import get_close_matches

    if len(names) > MAX_NAMES:
        names = [name for name in names if name.startswith(word[: len(word) // 2])][:MAX_NAMES]
    matching_names = [name for name in names if word in name.replace(".", "_").split("_")]
    nearest = matching_names[:3] or get_close_matches(word, names, n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(nearest)}?" if nearest else None


def quantity(number: int | str, noun: str) -> str:
    """Write a number, or the text of a number, with its noun: 1 slot, 2,000 slots."""
    text = number if isinstance(number, str) else f"{number:,}"
    return f"{text} {noun}{'' if text == '1' else 's'}"
