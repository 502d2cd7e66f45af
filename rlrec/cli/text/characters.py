"""Text on one printable line, and whether a database takes it."""

from __future__ import annotations

LARGEST = 2**63 - 1  # whole number that a database takes


def truncate(text: str, limit: int = 60) -> str:
    """`text` as one printable line: control characters escaped, no longer than `limit`."""
    return printable(text if len(text) <= limit else text[: limit - 1] + "…")


def clipped(text: str, limit: int = 2_000) -> str:
    """`text` without its middle, where it is longer than `limit`."""
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def printable(text: str) -> str:
    """`text` without anything that moves a cursor or breaks a line: such characters as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def unstorable(text: str) -> str | None:
    """Why no database takes `text`: a NUL, or half of a surrogate pair. None if it does."""
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return None
