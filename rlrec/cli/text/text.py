"""Text on one printable line, and whether a database takes it."""

from __future__ import annotations

LARGEST = 2**63 - 1
KEY_LENGTH = 200


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


def key_problem(text: str) -> str | None:
    """Why `text` cannot be the key of an arm, session, user or request. None if it can."""
    if why := unstorable(text):
        return f"'{truncate(text)}' {why}"
    if not 1 <= len(text) <= KEY_LENGTH:
        return f"a key has 1 to {KEY_LENGTH} characters, '{truncate(text, 20)}' has {len(text)}"
    return None
