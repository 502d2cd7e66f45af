"""This module defines errors whose texts are for people. Each error has a message of one line, a hint, and the exit
code that commands promise."""

from __future__ import annotations

OUT_OF_MEMORY = "out of memory", "give the process more (ulimit -v, its container), or less to do: a narrower --log"


class RlrecError(Exception):
    """RlrecError is the base class of all errors for people. hint: a sentence that says what to do next. The attribute
    `code` is the exit code of a command that fails with this error."""

    code = 1
    result: object = None  # an answer given before the error, for a Python caller

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(hint)  # so that a Python traceback shows it, too


class InputError(RlrecError):
    """This error says that the usage or the input was wrong, and that nothing was stored. field, line: the wrong field,
    and the number of the line of input."""

    code = 2

    def __init__(
        self, message: str, *, hint: str | None = None, field: str | None = None, line: int | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.field = field
        self.line = line


class CheckFailed(RlrecError):
    """This error says that a check failed: for example, a gate refused a version, an audit found an error, or the store
    is missing or out of date."""

    code = 3


class StoreBusy(RlrecError):
    """This error says that the store is locked or unreachable. It is safe to try again, unless the hint says that
    something was stored before."""

    code = 4


class OutcomeUnknown(RlrecError):
    """This error says that the connection broke while the last changes were being stored. Nobody knows whether they are
    stored."""


class LinesRefused(RlrecError):
    """This error says that some lines of the input were refused. All other lines are stored."""

    code = 5


class Conflict(InputError):
    """This error says that the input repeats a stored key or name, but with different content."""

    code = 6


MAX_NAMES, MAX_WORD = 1_000, 200  # limits of the comparison


def suggest(word: str, names: list[str], *, cutoff: float = 0.6) -> str | None:
    """Return a hint with the names that are most similar to a word, or None if no name is similar.

    names: the names to compare; if there are more than MAX_NAMES, only names that begin like the word are compared.
    cutoff: the least similarity, from 0 to 1."""
    if len(word) > MAX_WORD:
        return None
    from difflib import get_close_matches

    if len(names) > MAX_NAMES:
        names = [name for name in names if name.startswith(word[: len(word) // 2])][:MAX_NAMES]
    matching_names = [name for name in names if word in name.replace(".", "_").split("_")]
    nearest_names = matching_names[:3] or get_close_matches(word, names, n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(nearest_names)}?" if nearest_names else None


def quantity(number: int | str, noun: str) -> str:
    """Return the text of a number with its noun, such as 1 slot or 2,000 slots. number: an integer, or a text."""
    text = number if isinstance(number, str) else f"{number:,}"
    return f"{text} {noun}{'' if text == '1' else 's'}"
