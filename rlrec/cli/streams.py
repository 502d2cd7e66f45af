"""Streams: each line of an input is answered in order, after the commit of its group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rlrec.cli.output import Show
from rlrec.cli.shared import settings
from rlrec.errors import InputError, LinesRefused

Answer = dict[str, Any]


def answer(
    show: Show, source: str, kind: Any, take: Callable[[list[Any]], Sequence[Answer | InputError]], *, eager: bool
) -> None:
    """Read lines of `kind`, and write what `take` makes of a group of them: of each line, or of what is wrong with it,
    an answer or a refusal. eager: a group also ends where nothing more waits, not only when it is full or at a line
    {"op": "flush"}. Raises LinesRefused at the end if any line was."""
    from rlrec.cli.lines import decode_group, groups

    settings().source = "<stdin>" if source == "-" else source
    refused = 0

    def answers() -> Iterator[list[Answer]]:
        nonlocal refused
        for group in groups(source, eager=eager, flush=True):
            results = take(decode_group(group, kind))
            refused += sum(isinstance(result, InputError) for result in results)
            yield [
                _refusal(result, number) if isinstance(result, InputError) else result
                for result, (number, _) in zip(results, group, strict=True)
            ]

    show.stream(answers())
    if refused:
        raise LinesRefused(f"{refused} line{'s' if refused > 1 else ''} refused, the rest is stored")


def _refusal(error: InputError, number: int) -> Answer:
    message = error.message if error.hint is None else f"{error.message}: {error.hint}"
    return {"line": number, "error": message, "field": error.field}
