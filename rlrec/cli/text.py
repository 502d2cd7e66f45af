"""What any module here may need of text: one printable line of it, and whether a database takes it."""

from __future__ import annotations

LARGEST = 2**63 - 1


def cut(text: str, limit: int = 60) -> str:
    """`text` as one printable line: control characters escaped, no longer than `limit`."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return printable(short)


def printable(text: str) -> str:
    """`text` without anything that moves a cursor or breaks a line: such characters as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def unstorable(text: str) -> str | None:
    """Why no database takes `text`: a NUL, or half of a surrogate pair. None if it does."""
    if "\0" in text:
        return "holds a NUL character"
    if any("\ud800" <= c <= "\udfff" for c in text):
        return "is not valid Unicode"
    return None
